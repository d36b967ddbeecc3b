//! Effectively once: what is done is not done again, and what failed is never taken for done.

mod common;

use common::{ON_PURPOSE, quiet, within};
use postroom::{
    Broker, Claimed, Delivery, Exhausted, Failure, Idempotency, ManualClock, Message, Obstacle, Outcome, PublishError,
    Queue, QueueBuilder, Retry, Topic, TransactionError, Window,
};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LONG: Duration = Duration::from_secs(30);

fn message(id: u64) -> Message<u64> {
    Message::new(id).with_id(id)
}

fn idempotent(broker: &Broker, adjust: impl FnOnce(QueueBuilder<u64>) -> QueueBuilder<u64>) -> Queue<u64> {
    adjust(broker.queue("q").idempotent(HOUR)).declare().unwrap()
}

fn send(queue: &Queue<u64>, id: u64) {
    queue.send(message(id)).unwrap();
}

/// How often each was handled with success.
fn count_into(seen: &Arc<Mutex<HashMap<u64, u32>>>, n: u64) {
    *seen.lock().unwrap().entry(n).or_default() += 1;
}

#[test]
fn a_second_message_of_an_id_that_is_done_is_acked_away() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = idempotent(&broker, |queue| queue);
    for id in [1, 2, 1, 1, 3, 2] {
        queue.send(message(id)).unwrap();
    }
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let log = seen.clone();
    queue.consumer().workers(3).start(move |n: &Message<u64>| count_into(&log, **n)).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), HashMap::from([(1, 1), (2, 1), (3, 1)]));
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.duplicates, stats.unaccounted()), (6, 3, 0));
}

#[test]
fn ids_that_are_assigned_are_never_duplicates() {
    let broker = Broker::new();
    let queue = idempotent(&broker, |queue| queue);
    queue.send_batch([7, 7, 7]).unwrap();
    let got = queue.recv_batch(9).unwrap();
    assert_eq!(got.len(), 3);
    got.ack().unwrap();
}

#[test]
fn the_window_ends() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").idempotent(Window::of(10 * SECOND).max(2)).declare().unwrap();
    let handled = |id| {
        queue.send(message(id)).unwrap();
        queue.try_recv().map(|delivery| delivery.ack().unwrap()).is_ok()
    };
    assert!(handled(1) && !handled(1));
    simulation.advance(9 * SECOND);
    assert!(!handled(1));
    simulation.advance(SECOND);
    assert!(handled(1), "the time is over");
    assert!(handled(2) && handled(3));
    assert!(handled(1), "only the last two are remembered");
    assert!(!handled(3));
}

#[test]
fn a_failed_message_is_no_duplicate_of_itself_and_swallows_no_other() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let queue = idempotent(&broker, |queue| queue.retry(Retry::fixed(10 * SECOND).max_attempts(2)));
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    queue
        .consumer()
        .start(move |_: &Message<u64>| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Failure::transient("busy")),
            1 => panic!("{ON_PURPOSE}"),
            _ => Ok(()),
        })
        .unwrap();
    queue.send(message(1)).unwrap();
    queue.send(message(1)).unwrap();
    simulation.run_until_idle();
    // Both have failed once: the second was no duplicate of the first, which had failed.
    assert_eq!((calls.load(Ordering::SeqCst), queue.delayed(), queue.stats().duplicates), (2, 2, 0));
    simulation.advance(10 * SECOND);
    assert_eq!((calls.load(Ordering::SeqCst), queue.stats().acked, queue.stats().duplicates), (3, 2, 1));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn while_one_is_in_hand_the_others_wait_for_what_becomes_of_it() {
    type End = fn(Delivery<u64>);
    let table: [(&str, End, bool); 6] = [
        ("acked", |d| d.ack().unwrap(), false),
        ("discarded", |d| d.discard().unwrap(), false),
        ("to be retried", |d| d.retry_after(HOUR).unwrap(), true),
        ("requeued", |d| d.requeue().unwrap(), true),
        ("a dead letter", |d| d.dead_letter("bad").unwrap(), true),
        ("dropped", drop, true),
    ];
    for (what, end, comes_back) in table {
        let (broker, _simulation) = Broker::simulated(1);
        let queue = idempotent(&broker, |queue| queue.retry(Retry::fixed(HOUR)));
        (0..3).for_each(|_| send(&queue, 1));
        let first = queue.recv().unwrap();
        assert!(queue.try_recv().is_err(), "{what}");
        assert_eq!((queue.in_flight(), queue.len()), (3, 0), "{what}");
        end(first);
        let next = queue.try_recv();
        assert_eq!(next.is_ok(), comes_back, "{what}");
        if let Ok(next) = next {
            assert_eq!((next.attempt(), next.redelivered() && what != "requeued"), (1, false), "{what}");
            next.ack().unwrap();
        }
        assert!(queue.try_recv().is_err());
        let stats = queue.stats();
        assert_eq!((stats.in_flight, stats.unaccounted()), (0, 0), "{what}: {stats:?}");
    }
}

#[test]
fn a_redriven_dead_letter_is_handled() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = idempotent(&broker, |queue| queue.retry(Retry::none()));
    let mended = Arc::new(AtomicUsize::new(0));
    let state = mended.clone();
    queue
        .consumer()
        .start(move |_: &Message<u64>| match state.load(Ordering::SeqCst) {
            0 => Outcome::Retry,
            _ => Outcome::Ack,
        })
        .unwrap();
    queue.send(message(1)).unwrap();
    simulation.run_until_idle();
    mended.store(1, Ordering::SeqCst);
    assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 1);
    simulation.run_until_idle();
    assert_eq!((queue.stats().acked, queue.stats().duplicates), (1, 0));
}

#[test]
fn a_key_from_the_payload_tells_them_apart() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let by_order = |order: &(u64, &str)| if order.0 == 13 { panic!("{ON_PURPOSE}") } else { order.0 };
    let queue: Queue<(u64, &str)> =
        broker.queue("q").idempotent_by(HOUR, by_order).retry(Retry::immediate(2)).declare().unwrap();
    queue.send_batch([(1, "first"), (13, "bad"), (1, "again"), (2, "other")]).unwrap();
    let mut got = Vec::new();
    while let Ok(delivery) = queue.try_recv() {
        got.push(delivery.1);
        delivery.ack().unwrap();
    }
    simulation.run_until_idle();
    assert_eq!(got, ["first", "other"]);
    let letters = queue.dead_letters();
    assert!(letters.peek().unwrap().error().unwrap().contains(ON_PURPOSE));
    assert_eq!((queue.stats().duplicates, queue.stats().unaccounted()), (1, 0));
}

#[test]
fn under_an_ack_timeout_the_late_one_ends_nobody_elses_claim() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = idempotent(&broker, |queue| queue.ack_timeout(5 * SECOND).retry(Retry::immediate(5)));
    queue.send(message(1)).unwrap();
    queue.send(message(1)).unwrap();
    let slow = queue.recv().unwrap();
    assert!(queue.try_recv().is_err());
    simulation.advance(5 * SECOND);
    // The first was taken back, so both are there again, and one of them may go.
    let second = queue.recv().unwrap();
    assert!(slow.ack().is_err());
    assert!(queue.try_recv().is_err(), "the second one's claim still holds");
    second.ack().unwrap();
    assert!(queue.try_recv().is_err());
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.duplicates, stats.in_flight, stats.unaccounted()), (2, 1, 0, 0));
}

#[test]
fn batches_keys_levels_and_limits_go_with_it() {
    let (broker, simulation) = Broker::simulated(1);
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let queues: [Queue<u64>; 4] = [
        broker.queue("batches").idempotent(HOUR).declare().unwrap(),
        broker.queue("keys").idempotent(HOUR).ordered_by(|n: &u64| n % 3).declare().unwrap(),
        broker.queue("levels").idempotent(HOUR).priority_levels(3).declare().unwrap(),
        broker.queue("limits").idempotent(HOUR).max_in_flight(2).ack_timeout(HOUR).declare().unwrap(),
    ];
    let log = seen.clone();
    let count_all = move |batch: &[Message<u64>]| batch.iter().for_each(|n| count_into(&log, **n));
    queues[0].consumer().start_batch(4, Duration::ZERO, count_all).unwrap();
    for (i, queue) in queues[1..].iter().enumerate() {
        let (log, base) = (seen.clone(), 1_000 * (i as u64 + 1));
        let count = move |n: &Message<u64>| match n.attempt() + **n as u32 % 2 {
            1 => Err(Failure::transient("once")),
            _ => {
                count_into(&log, base + **n);
                Ok(())
            }
        };
        queue.consumer().workers(4).start(count).unwrap();
    }
    for queue in &queues {
        for n in 0..40 {
            queue.send(message(n % 10 + 1).with_priority((n % 3) as u8)).unwrap();
        }
    }
    simulation.advance(HOUR);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 40);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    for queue in &queues {
        let stats = queue.stats();
        assert_eq!((stats.acked, stats.duplicates, stats.unaccounted()), (40, 30, 0), "{stats:?}");
    }
}

#[test]
fn a_parked_key_holds_its_claim_no_longer() {
    let (broker, simulation) = Broker::simulated(1);
    let queue =
        idempotent(&broker, |queue| queue.ordered_by(|n: &u64| *n).retry(Retry::none()).on_exhausted(Exhausted::Park));
    let fail = Arc::new(AtomicU32::new(1));
    let state = fail.clone();
    let handler = move |_: &Message<u64>| if state.load(Ordering::SeqCst) > 0 { Outcome::Retry } else { Outcome::Ack };
    queue.consumer().start(handler).unwrap();
    queue.send(message(1)).unwrap();
    queue.send(message(1)).unwrap();
    simulation.run_until_idle();
    fail.store(0, Ordering::SeqCst);
    assert!(queue.release_key("1"));
    simulation.run_until_idle();
    assert_eq!((queue.stats().acked, queue.stats().duplicates), (2, 1));
}

#[test]
fn shutdown_reports_those_who_waited_and_gives_them_back() {
    let broker = Broker::new();
    let queue = idempotent(&broker, |queue| queue);
    (0..3).for_each(|_| send(&queue, 1));
    let first = queue.recv().unwrap();
    assert!(queue.try_recv().is_err());
    let report = broker.shutdown(Duration::from_millis(10));
    assert_eq!((report.undelivered[0].ready, report.undelivered[0].in_flight), (2, 1));
    assert!(first.ack().is_err());
    assert_eq!((queue.drain().len(), queue.stats().unaccounted()), (3, 0));
}

#[test]
fn bad_windows_are_named_and_other_windows_are_other_settings() {
    let broker = Broker::new();
    let bad = broker.queue::<u64>("bad").idempotent(Window::of(Duration::ZERO).max(0)).declare();
    assert_eq!(bad.unwrap_err().problems().len(), 2);
    assert!(Idempotency::new(Duration::ZERO).is_err() && broker.idempotency(Window::of(SECOND).max(0)).is_err());
    idempotent(&broker, |queue| queue);
    assert!(broker.queue::<u64>("q").idempotent(SECOND).declare().is_err());
    assert!(broker.queue::<u64>("q").declare().is_err());
    broker.queue::<u64>("q").idempotent(HOUR).declare().unwrap();
}

/// Every id is sent by several threads and handled by several workers, some of which fail.
#[test]
fn hammered_by_threads_each_id_succeeds_once() {
    within(LONG, || {
        quiet();
        let broker = Broker::new();
        let queue: Queue<u64> =
            broker.queue("q").capacity(64).idempotent(HOUR).retry(Retry::immediate(50)).declare().unwrap();
        let (seen, calls) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicUsize::new(0)));
        let (log, count) = (seen.clone(), calls.clone());
        queue
            .consumer()
            .workers(4)
            .start(move |n: &Message<u64>| match count.fetch_add(1, Ordering::SeqCst) % 5 {
                0 => Outcome::Retry,
                1 => panic!("{ON_PURPOSE}"),
                _ => {
                    count_into(&log, **n);
                    Outcome::Ack
                }
            })
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (1..=500).for_each(|id| send(&queue, id)));
            }
        });
        assert!(broker.wait_idle(LONG));
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 500);
        assert!(seen.values().all(|times| *times == 1), "handled twice");
        let stats = queue.stats();
        assert_eq!((stats.acked, stats.duplicates, stats.unaccounted()), (1_500, 1_000, 0), "{stats:?}");
    });
}

// ---- by hand ---------------------------------------------------------------------------------------------

#[test]
fn a_claim_ends_as_it_is_told_or_dropped() {
    quiet();
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let seen = broker.idempotency(Window::of(10 * SECOND).max(5)).unwrap();
    let Claimed::New(claim) = seen.claim("order-7") else { panic!("nobody has it") };
    assert!(matches!(seen.clone().claim("order-7"), Claimed::InProgress));
    claim.release();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _claim = seen.claim("order-7");
        panic!("{ON_PURPOSE}");
    }));
    assert!(caught.is_err());
    let Claimed::New(claim) = seen.claim("order-7") else { panic!("it was dropped by the panic") };
    claim.complete();
    assert!(matches!(seen.claim("order-7"), Claimed::Done));
    clock.advance(10 * SECOND);
    assert!(matches!(seen.claim("order-7"), Claimed::New(_)));
    assert!(seen.is_empty());
}

#[test]
fn of_many_who_claim_the_same_one_gets_it() {
    within(LONG, || {
        let seen = Idempotency::new(HOUR).unwrap();
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for key in 0..2_000_u32 {
                        if let Claimed::New(claim) = seen.claim(key) {
                            done.fetch_add(1, Ordering::SeqCst);
                            claim.complete();
                        }
                    }
                });
            }
        });
        assert_eq!((done.load(Ordering::SeqCst), seen.len()), (2_000, 2_000));
    });
}

// ---- at the publish ----------------------------------------------------------------------------------------

#[test]
fn a_topic_refuses_an_id_it_has_published() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u64> = broker.topic("t").refuse_duplicates(10 * SECOND).declare().unwrap();
    let queue: Queue<u64> = broker.queue("q").capacity(2).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    topic.publish("k", message(1)).unwrap();
    let refused = topic.publish("k", message(1)).unwrap_err();
    assert!(matches!(&refused, PublishError::Duplicate(refused) if !refused.is_under_way()), "{refused}");
    assert_eq!((*refused.into_message().payload(), topic.stats().published), (1, 1));
    // What was refused for another reason is no duplicate.
    topic.publish("k", 2).unwrap();
    assert!(matches!(topic.try_publish("k", message(3)), Err(PublishError::Full(_))));
    queue.recv().unwrap().ack().unwrap();
    topic.try_publish("k", message(3)).unwrap();
    queue.purge();
    let error = topic.publish_batch("k", [message(4), message(4), message(5)]).unwrap_err();
    assert!(matches!((error.accepted, &error.cause, error.rest.len()), (1, PublishError::Duplicate(_), 1)));
    simulation.advance(10 * SECOND);
    topic.publish("k", message(1)).unwrap();
    assert!(broker.topic::<u64>("t").declare().is_err(), "another setting");
    topic.set_admission(None).unwrap();
    assert!(topic.publish("k", message(1)).is_err(), "limits that come and go do not matter");
}

#[test]
fn transactions_are_refused_for_duplicates_as_a_whole() {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("t").refuse_duplicates(HOUR).declare().unwrap();
    let queue: Queue<u64> = broker.queue("q").capacity(2).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let publish = |ids: &[u64]| {
        broker.try_transaction(|tx| {
            ids.iter().try_for_each(|&id| tx.publish(&topic, "k", message(id)).map(|_| ()).map_err(Failure::from))
        })
    };
    publish(&[1]).unwrap();
    for ids in [[2, 1], [2, 2]] {
        let Err(TransactionError::Refused(unpublished)) = publish(&ids) else { panic!("{ids:?} refused") };
        assert!(matches!(unpublished.why(), Obstacle::Duplicate { .. }), "{unpublished}");
        assert_eq!(unpublished.operation(), 1);
    }
    assert!(publish(&[2, 3]).is_err(), "no room");
    queue.purge();
    publish(&[2, 3]).expect("nothing of what was refused is remembered");
    assert!(topic.publish("k", message(3)).is_err());
}
