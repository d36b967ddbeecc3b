//! Staged publishes happen all together or not at all.

mod common;

use common::{Bomb, ON_PURPOSE, eventually, quiet, within};
use postroom::{
    Binding, Broker, Failure, Lag, Log, Message, MessageId, Obstacle, Overflow, Queue, Rate, Reason, Subscriber, Topic,
    Transaction, TransactionError, Unpublished,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn queue(broker: &Broker, name: &str, capacity: usize, overflow: Overflow) -> Queue<u32> {
    broker.queue(name).capacity(capacity).overflow(overflow).declare().unwrap()
}

fn refused(result: Result<(), TransactionError>) -> Unpublished {
    match result {
        Err(TransactionError::Refused(unpublished)) => *unpublished,
        other => panic!("not refused: {other:?}"),
    }
}

fn staged<E: Into<Failure>>(result: Result<MessageId, E>) -> Result<(), Failure> {
    result.map(|_| ()).map_err(Into::into)
}

fn content(queue: &Queue<u32>) -> Vec<u32> {
    queue.list(100).iter().map(|message| **message).collect()
}

#[test]
fn everything_appears_in_the_order_it_was_staged() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let (a, b) = (queue(&broker, "a", 9, Overflow::Wait), queue(&broker, "b", 9, Overflow::Wait));
    let names: Queue<String> = broker.queue("names").declare().unwrap();
    let log: Log<u32> = broker.log("log").declare().unwrap();
    let watcher: Subscriber<u32> = topic.subscribe().open().unwrap();
    topic.bind(&a, "#").unwrap();
    topic.bind(&b, "b.*").unwrap();
    topic.bind(&log, "#").unwrap();
    let id = broker
        .transaction(|tx| {
            tx.send(&a, 1)?;
            let id = tx.publish(&topic, "b.x", 2)?;
            tx.publish(&topic, "a.x", 3)?;
            tx.send(&names, "four".to_string())?;
            tx.send(&a, 5)?;
            tx.append(&log, 6)?;
            assert_eq!(tx.len(), 6);
            Ok(id)
        })
        .unwrap();
    assert_eq!((content(&a), content(&b)), (vec![1, 2, 3, 5], vec![2]));
    assert_eq!(b.peek().unwrap().id(), id);
    assert_eq!((names.len(), log.len()), (1, 3));
    let seen = [watcher.recv().unwrap(), watcher.recv().unwrap()].map(|message| **message);
    assert_eq!(seen, [2, 3]);
    let stats = broker.stats();
    assert_eq!(stats.topic("t").unwrap().published, 2);
    assert!(stats.queues.iter().all(|queue| queue.unaccounted() == 0), "{stats:?}");
}

#[test]
fn an_error_inside_publishes_nothing_and_is_the_answer() {
    let broker = Broker::new();
    let a = queue(&broker, "a", 9, Overflow::Wait);
    let result = broker.transaction(|tx| -> Result<(), Failure> {
        tx.send(&a, 1)?;
        "x".parse::<u32>()?;
        Ok(())
    });
    let Err(TransactionError::RolledBack(why)) = result else { panic!("{result:?}") };
    assert_eq!(why.to_string(), "invalid digit found in string");
    assert_eq!((a.len(), a.stats().published), (0, 0));
}

#[test]
fn a_panic_inside_publishes_nothing_even_if_payloads_panic_as_they_go() {
    quiet();
    let broker = Broker::new();
    let bombs: Queue<Bomb> = broker.queue("bombs").declare().unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        broker.transaction(|tx| -> Result<(), Failure> {
            tx.send(&bombs, Bomb)?;
            tx.send(&bombs, Bomb)?;
            panic!("{ON_PURPOSE}");
        })
    }));
    assert!(caught.is_err());
    assert_eq!(bombs.stats().published, 0);
    let error = broker.transaction(|tx| {
        tx.send(&bombs, Bomb)?;
        Err::<(), _>(Failure::transient("no"))
    });
    assert!(error.is_err());
}

#[test]
fn one_that_refuses_keeps_it_from_all_and_everything_comes_back() {
    let broker = Broker::new();
    let roomy = queue(&broker, "roomy", 9, Overflow::Wait);
    let full = queue(&broker, "full", 1, Overflow::Reject);
    let log: Log<u32> = broker.log("log").declare().unwrap();
    full.send(0).unwrap();
    let unpublished = refused(broker.transaction(|tx| {
        tx.append(&log, 1)?;
        tx.send(&roomy, 2)?;
        tx.send(&full, 3)?;
        Ok(())
    }));
    assert_eq!((unpublished.operation(), unpublished.target(), unpublished.by()), (2, "queue \"full\"", "full"));
    assert_eq!(*unpublished.why(), Obstacle::Full);
    assert_eq!(unpublished.to_string(), "operation 2, for queue \"full\": \"full\" is full");
    assert_eq!((log.len(), roomy.len(), roomy.stats().published), (0, 0, 0));
    assert!(broker.wait_idle(LONG), "no promise is left behind");

    let again = unpublished.into_transaction();
    full.recv().unwrap().ack().unwrap();
    again.commit().unwrap();
    assert_eq!((log.len(), content(&roomy), content(&full)), (1, vec![2], vec![3]));
}

#[test]
fn the_three_forms_wait_as_they_say() {
    within(LONG, || {
        let broker = Broker::new();
        let full = queue(&broker, "full", 2, Overflow::Wait);
        full.send(0).unwrap();
        let two = |tx: &mut Transaction| {
            tx.send(&full, 1)?;
            tx.send(&full, 2)?;
            Ok(())
        };
        assert_eq!(*refused(broker.try_transaction(two)).why(), Obstacle::Full);
        let timed = refused(broker.transaction_timeout(Duration::from_millis(5), two));
        assert_eq!(*timed.why(), Obstacle::Timeout);
        assert_eq!(*refused(timed.into_transaction().try_commit()).why(), Obstacle::Full);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| broker.transaction(two));
            thread::sleep(Duration::from_millis(20));
            assert_eq!(content(&full), [0]);
            full.recv().unwrap().ack().unwrap();
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(content(&full), [1, 2]);
    });
}

#[test]
fn one_too_large_for_a_queue_is_refused_at_once() {
    let broker = Broker::new();
    let small = queue(&broker, "small", 2, Overflow::Wait);
    let unpublished = refused(broker.transaction(|tx| {
        for n in 0..3 {
            tx.send(&small, n)?;
        }
        Ok(())
    }));
    assert_eq!(*unpublished.why(), Obstacle::TooLarge { messages: 3, capacity: 2 });
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let _slow = topic.subscribe().name("slow").capacity(1).lag(Lag::Block).open().unwrap();
    let unpublished = refused(broker.transaction(|tx| {
        tx.publish(&topic, "k", 1)?;
        tx.publish(&topic, "k", 2)?;
        Ok(())
    }));
    assert_eq!(*unpublished.why(), Obstacle::TooLarge { messages: 2, capacity: 1 });
    assert_eq!(small.stats().published, 0);
}

#[test]
fn each_overflow_policy_does_what_it_does_for_single_messages() {
    let broker = Broker::new();
    for (policy, kept) in
        [(Overflow::DropOldest, [2, 3, 4]), (Overflow::DropNewest, [0, 1, 2]), (Overflow::DeadLetter, [0, 1, 2])]
    {
        let target = queue(&broker, &format!("{policy:?}"), 3, policy);
        target.send(0).unwrap();
        target.send(1).unwrap();
        let all = |tx: &mut Transaction| (2..5).try_for_each(|n| staged(tx.send(&target, n)));
        broker.transaction(all).unwrap();
        assert_eq!(content(&target), kept, "{policy:?}");
        let stats = target.stats();
        assert_eq!((stats.published, stats.unaccounted()), (5, 0), "{policy:?}");
        let letters = target.dead_letters().list(9);
        let letters: Vec<_> = letters.iter().map(|letter| (***letter.payload(), letter.reason().clone())).collect();
        let expected = [(3, Reason::Overflow), (4, Reason::Overflow)];
        assert_eq!(letters, if policy == Overflow::DeadLetter { &expected[..] } else { &[] });
        // More than it holds, all at once.
        broker.transaction(|tx| (10..20).try_for_each(|n| staged(tx.send(&target, n)))).unwrap();
        assert_eq!((target.len(), target.stats().unaccounted()), (3, 0), "{policy:?}");
    }
}

#[test]
fn delays_count_from_the_commit() {
    let (broker, simulation) = Broker::simulated(1);
    let second = Duration::from_secs(1);
    let a = queue(&broker, "a", 9, Overflow::Wait);
    broker
        .transaction(|tx| {
            tx.send(&a, Message::new(1).with_delay(10 * second).with_timer("one"))?;
            tx.send(&a, Message::new(2).with_delay(20 * second).with_timer("two"))?;
            tx.send(&a, 3)?;
            simulation.advance(10 * second);
            Ok(())
        })
        .unwrap();
    assert_eq!((content(&a), a.delayed()), (vec![3], 2));
    simulation.advance(9 * second);
    assert_eq!(a.delayed(), 2);
    assert!(broker.cancel_timer("two"));
    simulation.advance(11 * second);
    assert_eq!((content(&a), a.stats().cancelled, a.stats().unaccounted()), (vec![3, 1], 1, 0));
    // Without a delay, the timer's earlier message is replaced.
    a.send(Message::new(4).with_delay(second).with_timer("x")).unwrap();
    broker.transaction(|tx| Ok(tx.send(&a, Message::new(5).with_timer("x"))?)).unwrap();
    simulation.advance(10 * second);
    assert_eq!(content(&a), [3, 1, 5]);
}

#[test]
fn keys_priorities_and_expiry_hold_as_for_single_messages() {
    let (broker, simulation) = Broker::simulated(1);
    let keyed: Queue<u32> = broker.queue("keyed").ordered_by(|n: &u32| n % 2).declare().unwrap();
    let levels: Queue<u32> = broker.queue("levels").priority_levels(2).declare().unwrap();
    broker
        .transaction(|tx| {
            for n in 0..4 {
                tx.send(&keyed, n)?;
            }
            tx.send(&levels, Message::new(1).with_ttl(Duration::from_secs(1)))?;
            tx.send(&levels, Message::new(2).with_priority(1))?;
            Ok(())
        })
        .unwrap();
    let (first, second) = (keyed.recv().unwrap(), keyed.recv().unwrap());
    assert_eq!((**first, **second), (0, 1));
    assert!(keyed.try_recv().is_err(), "both keys are busy");
    first.ack().unwrap();
    assert_eq!(**keyed.recv().unwrap(), 2);
    drop(second);
    assert_eq!(*levels.peek().unwrap().payload(), 2);
    simulation.advance(Duration::from_secs(1));
    assert_eq!((levels.len(), levels.dead_letters().len()), (1, 1));
}

#[test]
fn a_delayed_broadcast_needs_no_room_now_and_appears_when_it_is_due() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let slow = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
    topic.publish("k", 0).unwrap();
    let later =
        |tx: &mut Transaction| staged(tx.publish(&topic, "k", Message::new(1).with_delay(Duration::from_secs(1))));
    broker.try_transaction(later).unwrap();
    assert_eq!(*refused(broker.try_transaction(|tx| staged(tx.publish(&topic, "k", 2)))).why(), Obstacle::Full);
    assert_eq!(**slow.recv().unwrap(), 0);
    assert!(slow.try_recv().is_err());
    simulation.advance(Duration::from_secs(1));
    assert_eq!(**slow.try_recv().unwrap(), 1);
}

#[test]
fn user_code_that_panics_while_routing_is_named_and_publishes_nothing() {
    quiet();
    let broker = Broker::new();
    let a = queue(&broker, "a", 9, Overflow::Wait);
    let keyed: Queue<u32> = broker
        .queue("keyed")
        .ordered_by(|n: &u32| if *n == 13 { panic!("{ON_PURPOSE}") } else { *n })
        .declare()
        .unwrap();
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    topic.bind(&a, Binding::filter(|n: &u32| if *n == 7 { panic!("{ON_PURPOSE}") } else { true })).unwrap();
    for (first, second) in [(7, 1), (1, 13)] {
        let unpublished = refused(broker.transaction(|tx| {
            tx.send(&a, 0)?;
            tx.publish(&topic, "k", first)?;
            tx.send(&keyed, second)?;
            Ok(())
        }));
        assert!(matches!(unpublished.why(), Obstacle::Panicked(words) if words.contains(ON_PURPOSE)));
        assert_eq!((a.stats().published, keyed.stats().published), (0, 0));
    }
}

#[test]
fn mandatory_alternate_and_limits_count() {
    let (broker, _simulation) = Broker::simulated(1);
    let strict: Topic<u32> = broker.topic("strict").mandatory().declare().unwrap();
    let a = queue(&broker, "a", 9, Overflow::Wait);
    let caught: Topic<u32> = broker.topic("caught").alternate(&a).declare().unwrap();
    let gate: Topic<u32> = broker.topic("gate").admission(Rate::per_second(1).burst(2)).declare().unwrap();
    gate.bind(&a, "#").unwrap();
    let unpublished = refused(broker.transaction(|tx| {
        tx.send(&a, 1)?;
        tx.publish(&strict, "k", 2)?;
        Ok(())
    }));
    assert_eq!((unpublished.operation(), unpublished.why()), (1, &Obstacle::Unroutable));
    broker.transaction(|tx| Ok(tx.publish(&caught, "k", 3)?)).unwrap();
    assert_eq!((content(&a), caught.stats().unroutable), (vec![3], 1));
    let three = |tx: &mut Transaction| (0..3).try_for_each(|n| staged(tx.publish(&gate, "k", n)));
    let unpublished = refused(broker.transaction(three));
    assert!(matches!(unpublished.why(), Obstacle::Limited(_)), "{unpublished}");
    let two = |tx: &mut Transaction| (0..2).try_for_each(|n| staged(tx.publish(&gate, "k", n)));
    broker.transaction(two).expect("what was refused did not use the burst up");
    assert_eq!(content(&a), [3, 0, 1]);
}

#[test]
fn another_brokers_queue_is_refused_as_it_is_staged() {
    let (broker, other) = (Broker::new(), Broker::new());
    let foreign = queue(&other, "a", 9, Overflow::Wait);
    let result = broker.transaction(|tx| Ok(tx.send(&foreign, 1)?));
    assert!(matches!(result, Err(TransactionError::RolledBack(_))), "{result:?}");
}

#[test]
fn a_closed_broker_refuses() {
    let broker = Broker::new();
    let (a, log) = (queue(&broker, "a", 9, Overflow::Wait), broker.log("log").declare().unwrap());
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let _watcher = topic.subscribe().open().unwrap();
    broker.shutdown(Duration::ZERO);
    let send = |tx: &mut Transaction| staged(tx.send(&a, 1));
    let append = |tx: &mut Transaction| staged(tx.append(&log, 1));
    let publish = |tx: &mut Transaction| staged(tx.publish(&topic, "k", 1));
    let results = [broker.transaction(send), broker.transaction(append), broker.transaction(publish)];
    assert!(results.into_iter().all(|result| *refused(result).why() == Obstacle::Closed));
}

#[test]
fn a_worker_that_would_wait_for_itself_is_told() {
    within(LONG, || {
        let broker = Broker::new();
        let tasks = queue(&broker, "tasks", 3, Overflow::Wait);
        let (told, hear) = std::sync::mpsc::channel();
        let (target, owner) = (tasks.clone(), broker.clone());
        tasks
            .consumer()
            .start(move |n: &Message<u32>| {
                if **n == 0 {
                    // One place is taken, and three are needed.
                    target.send(1).unwrap();
                    let result = owner.transaction(|tx| (1..4).try_for_each(|n| staged(tx.send(&target, n))));
                    told.send(refused(result).why().clone()).unwrap();
                }
            })
            .unwrap();
        tasks.send(0).unwrap();
        let why = hear.recv_timeout(LONG).unwrap();
        assert!(matches!(&why, Obstacle::Deadlock(circle) if circle.contains("tasks -> tasks")), "{why:?}");
        broker.shutdown(LONG);
    });
}

/// Two transactions over the same two queues, which they name in opposite order, with room for one.
#[test]
fn opposite_orders_do_not_block_each_other() {
    within(LONG, || {
        let broker = Broker::new();
        let (a, b) = (queue(&broker, "a", 1, Overflow::Wait), queue(&broker, "b", 1, Overflow::Wait));
        let readers = [&a, &b]
            .map(Queue::clone)
            .map(|queue| thread::spawn(move || queue.iter().map(|delivery| delivery.ack().unwrap()).count()));
        let writers = [(a.clone(), b.clone()), (b.clone(), a.clone())].map(|(first, second)| {
            let broker = broker.clone();
            thread::spawn(move || {
                for n in 0..500 {
                    let both = |tx: &mut Transaction| {
                        tx.send(&first, n)?;
                        tx.send(&second, n)?;
                        Ok(())
                    };
                    broker.transaction(both).unwrap();
                }
            })
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        a.close();
        b.close();
        assert_eq!(readers.map(|reader| reader.join().unwrap()), [1000, 1000]);
    });
}

/// Whoever sees one message finds the others: a reader that takes from one queue looks into the other at once.
#[test]
fn nobody_sees_half_of_it() {
    within(LONG, || {
        let broker = Broker::new();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let (a, b) = (queue(&broker, "a", 9, Overflow::Wait), queue(&broker, "b", 9, Overflow::Wait));
        let levels: Queue<u32> = broker.queue("levels").priority_levels(3).declare().unwrap();
        let watcher = topic.subscribe().open().unwrap();
        let log: Log<u32> = broker.log("log").partitions(2).declare().unwrap();
        const ROUNDS: u32 = 3_000;
        let start = Arc::new(Barrier::new(2));
        let writer = {
            let (broker, a, b, levels, topic, log, start) =
                (broker.clone(), a.clone(), b.clone(), levels.clone(), topic.clone(), log.clone(), start.clone());
            thread::spawn(move || {
                for n in 0..ROUNDS {
                    start.wait();
                    let all = |tx: &mut Transaction| {
                        // The order changes, so that every queue is the last one now and then.
                        for i in 0..5 {
                            match (n + i) % 5 {
                                0 => staged(tx.send(&a, n)),
                                1 => staged(tx.send(&b, n)),
                                2 => staged(tx.send(&levels, n)),
                                3 => staged(tx.publish(&topic, "k", n)),
                                _ => (0..4).try_for_each(|i| staged(tx.append(&log, i))),
                            }?;
                        }
                        Ok(())
                    };
                    broker.transaction(all).unwrap();
                }
            })
        };
        for n in 0..ROUNDS {
            start.wait();
            let queues = [&a, &b, &levels];
            // Awake all the time, so as to come in between if there is a between.
            let first = std::iter::repeat_with(|| queues[n as usize % 3].try_recv()).find_map(Result::ok).unwrap();
            let others = queues.iter().enumerate().filter(|(i, _)| *i != n as usize % 3);
            for (_, other) in others {
                other.try_recv().expect("the other half").ack().unwrap();
            }
            watcher.try_recv().expect("the other half");
            assert_eq!(log.len(), 4 * (u64::from(n) + 1));
            first.ack().unwrap();
        }
        writer.join().unwrap();
    });
}

/// A writer that waits for one place must not be robbed of its wake-up by a transaction that waits for more.
#[test]
fn a_waiting_transaction_swallows_nobodys_room() {
    within(LONG, || {
        let broker = Broker::new();
        let full = queue(&broker, "full", 2, Overflow::Wait);
        full.send(0).unwrap();
        full.send(0).unwrap();
        thread::scope(|scope| {
            let pair = scope.spawn(|| broker.transaction(|tx| (1..3).try_for_each(|n| staged(tx.send(&full, n)))));
            thread::sleep(Duration::from_millis(30));
            let single = scope.spawn(|| full.send_timeout(3, Duration::from_secs(100)).is_ok());
            thread::sleep(Duration::from_millis(30));
            full.recv().unwrap().ack().unwrap();
            eventually("one place, and one who needs no more", || full.len() == 2);
            assert!(single.join().unwrap());
            full.recv().unwrap().ack().unwrap();
            full.recv().unwrap().ack().unwrap();
            pair.join().unwrap().unwrap();
        });
        assert_eq!(content(&full), [1, 2]);
    });
}

#[test]
fn what_a_handler_stages_is_released_only_if_it_succeeds() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let (jobs, results) = (queue(&broker, "jobs", 9, Overflow::Wait), queue(&broker, "results", 9, Overflow::Wait));
    let target = results.clone();
    jobs.consumer()
        .start_transactional(move |job: &Message<u32>, tx: &mut Transaction| -> Result<(), Failure> {
            tx.send(&target, 100 * job.attempt() + **job)?;
            match (**job, job.attempt()) {
                (1, 1) => Err(Failure::transient("busy")),
                (2, 1) => panic!("{ON_PURPOSE}"),
                (3, _) => Err(Failure::permanent("never")),
                _ => Ok(()),
            }
        })
        .unwrap();
    jobs.send_batch(0..4).unwrap();
    simulation.advance(Duration::from_secs(1));
    let mut got = content(&results);
    got.sort_unstable();
    assert_eq!(got, [100, 201, 202]);
    assert_eq!((jobs.stats().acked, jobs.dead_letters().len(), jobs.stats().unaccounted()), (3, 1, 0));
}

#[test]
fn a_handling_whose_messages_are_refused_has_failed_and_is_tried_again() {
    let (broker, simulation) = Broker::simulated(1);
    let (jobs, results) = (queue(&broker, "jobs", 9, Overflow::Wait), queue(&broker, "results", 1, Overflow::Reject));
    let target = results.clone();
    let handler = move |job: &Message<u32>, tx: &mut Transaction| -> Result<(), Failure> {
        tx.send(&target, **job)?;
        Ok(())
    };
    jobs.consumer().start_transactional(handler).unwrap();
    jobs.send_batch([1, 2]).unwrap();
    simulation.run_until_idle();
    assert_eq!((jobs.stats().acked, jobs.delayed(), results.len()), (1, 1, 1));
    let history = jobs.list_delayed(1)[0].1.history().to_vec();
    assert!(history[0].error.contains("\"results\" is full"), "{}", history[0].error);
    results.recv().unwrap().ack().unwrap();
    simulation.advance(Duration::from_secs(1));
    assert_eq!((jobs.stats().acked, results.len()), (2, 1));
}

#[test]
fn a_handler_that_was_too_slow_releases_nothing() {
    let (broker, simulation) = Broker::simulated(1);
    let jobs: Queue<u32> = broker.queue("jobs").ack_timeout(Duration::from_secs(5)).declare().unwrap();
    let results = queue(&broker, "results", 9, Overflow::Wait);
    let (target, time, slow) = (results.clone(), simulation.clone(), AtomicBool::new(true));
    let handler = move |job: &Message<u32>, tx: &mut Transaction| -> Result<(), Failure> {
        tx.send(&target, job.attempt())?;
        if slow.swap(false, Ordering::SeqCst) {
            time.advance(Duration::from_secs(6));
        }
        Ok(())
    };
    jobs.consumer().start_transactional(handler).unwrap();
    jobs.send(7).unwrap();
    simulation.advance(Duration::from_secs(60));
    assert_eq!(content(&results), [2], "only the attempt that still had the message");
    assert_eq!((jobs.stats().settled_late, jobs.stats().acked), (1, 1));
}

#[test]
fn while_the_broker_drains_handlers_still_release() {
    within(LONG, || {
        let broker = Broker::new();
        let (jobs, results) =
            (queue(&broker, "jobs", 99, Overflow::Wait), queue(&broker, "results", 1, Overflow::Wait));
        let target = results.clone();
        let handler = move |job: &Message<u32>, tx: &mut Transaction| -> Result<(), Failure> {
            tx.send(&target, **job)?;
            Ok(())
        };
        jobs.consumer().workers(2).start_transactional(handler).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        results.consumer().start(move |_: &Message<u32>| _ = seen.fetch_add(1, Ordering::SeqCst)).unwrap();
        jobs.send_batch(0..50).unwrap();
        let report = broker.shutdown(LONG);
        assert!(report.is_clean(), "{report}");
        eventually("all results", || count.load(Ordering::SeqCst) == 50);
    });
}
