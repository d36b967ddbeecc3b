//! Interleavings: small scenarios under a scheduler that tries thousands of them.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle`. Every scenario says what must
//! hold at its end; that it ends at all is checked too, because the scheduler reports a deadlock when every
//! thread is blocked. Time stands still (a manual clock), so a timed wait ends only when a scenario moves
//! the clock, and nothing here depends on a real deadline.

#![cfg(shuttle)]
#![allow(missing_docs)]

mod common;

use common::interleavings::{SECOND, broker, explore};
use postroom::{
    Binding, BroadcastError, Broker, CheckBack, Claimed, Consumer, Exhausted, Failure, HalfError, HalfFate, Lag,
    Message, Outcome, Overflow, PublishError, Queue, RecvTimeoutError, Resolution, Retry, SendError, Topic,
    Transaction, TransactionError,
};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread::{self, JoinHandle};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What handlers and receivers have seen. No scheduling happens while it is locked, so a plain lock will do.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u32>>>);

impl Seen {
    /// How many there are with this one.
    fn add(&self, n: u32) -> usize {
        let mut seen = self.0.lock().unwrap();
        seen.push(n);
        seen.len()
    }

    fn count(&self, n: u32) -> usize {
        self.0.lock().unwrap().iter().filter(|&&seen| seen == n).count()
    }

    fn sorted(&self) -> Vec<u32> {
        let mut all = self.0.lock().unwrap().clone();
        all.sort_unstable();
        all
    }
}

fn start(queue: &Queue<u32>, workers: usize, seen: &Seen) -> Consumer {
    let seen = seen.clone();
    let record = move |n: &Message<u32>| {
        seen.add(**n);
    };
    queue.consumer().workers(workers).start(record).unwrap()
}

/// A thread that acks everything until the queue is closed and empty.
fn receive_all(queue: &Queue<u32>, seen: &Seen) -> JoinHandle<()> {
    let (queue, seen) = (queue.clone(), seen.clone());
    thread::spawn(move || {
        while let Ok(delivery) = queue.recv() {
            seen.add(**delivery);
            delivery.ack().unwrap();
        }
    })
}

fn publish(topic: &Topic<u32>, numbers: std::ops::Range<u32>) -> JoinHandle<()> {
    let topic = topic.clone();
    thread::spawn(move || numbers.for_each(|n| _ = topic.publish("k", n).unwrap()))
}

fn send(queue: &Queue<u32>, numbers: std::ops::Range<u32>) -> JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || numbers.for_each(|n| _ = queue.send(n).unwrap()))
}

fn assert_conserved(queue: &Queue<u32>) {
    let stats = queue.stats();
    assert_eq!((stats.unaccounted(), stats.in_flight), (0, 0), "{stats:?}");
}

#[test]
fn published_is_handled_once_and_shutdown_is_clean() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let queue = broker.queue("q").capacity(2).declare().unwrap();
        topic.bind(&queue, "k").unwrap();
        let seen = Seen::default();
        start(&queue, 2, &seen);
        let producers = [publish(&topic, 0..2), publish(&topic, 2..4)];
        producers.into_iter().for_each(|p| p.join().unwrap());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.sorted(), [0, 1, 2, 3]);
        assert_conserved(&queue);
    });
}

#[test]
fn shutdown_amid_publishes_handles_what_was_accepted_and_refuses_the_rest() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let queue = broker.queue("q").capacity(1).declare().unwrap();
        topic.bind(&queue, "k").unwrap();
        let (seen, accepted) = (Seen::default(), Seen::default());
        start(&queue, 1, &seen);
        let producers = [0..2, 2..4].map(|numbers| {
            let (topic, accepted) = (topic.clone(), accepted.clone());
            thread::spawn(move || {
                for n in numbers {
                    match topic.publish("k", n) {
                        Ok(_) => _ = accepted.add(n),
                        Err(PublishError::Closed(refused)) => assert_eq!(*refused.into_message(), n),
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        });
        let report = broker.shutdown(SECOND);
        producers.into_iter().for_each(|p| p.join().unwrap());
        assert!(report.is_clean(), "{report}");
        assert_eq!(seen.sorted(), accepted.sorted());
        assert_conserved(&queue);
    });
}

#[test]
fn handlers_go_on_publishing_while_their_broker_drains() {
    explore(|| {
        let (broker, _) = broker();
        // Queues are looked at by name, so messages move behind the back of whoever looks for rest.
        let first: Queue<u32> = broker.queue("z").declare().unwrap();
        let second: Queue<u32> = broker.queue("a").capacity(1).declare().unwrap();
        let seen = Seen::default();
        start(&second, 1, &seen);
        let onward = second.clone();
        let forward = move |n: &Message<u32>| _ = onward.send(**n).unwrap();
        first.consumer().workers(2).start(forward).unwrap();
        (0..3).for_each(|n| _ = first.send(n).unwrap());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.sorted(), [0, 1, 2]);
    });
}

#[test]
fn wait_idle_answers_when_all_is_settled() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let seen = Seen::default();
        start(&queue, 2, &seen);
        (0..3).for_each(|n| _ = queue.send(n).unwrap());
        assert!(broker.wait_idle(SECOND));
        assert_eq!(seen.sorted(), [0, 1, 2]);
    });
}

/// Settles each number its own way on first sight, and acks it afterwards; the last ack closes the queue.
fn settle_in_many_ways(queue: Queue<u32>, acked: Seen) {
    while let Ok(delivery) = queue.recv() {
        let n = **delivery;
        match (n, delivery.redelivered()) {
            (0, false) => drop(delivery),
            (1, false) => delivery.retry().unwrap(),
            (2, false) => delivery.requeue().unwrap(),
            _ => {
                delivery.ack().unwrap();
                if acked.add(n) == 3 {
                    queue.close();
                }
            }
        }
    }
}

#[test]
fn what_is_not_acked_comes_back_to_one_of_the_receivers() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(3)).declare().unwrap();
        let acked = Seen::default();
        let receivers = [(), ()].map(|()| {
            let (queue, acked) = (queue.clone(), acked.clone());
            thread::spawn(move || settle_in_many_ways(queue, acked))
        });
        (0..3).for_each(|n| _ = queue.send(n).unwrap());
        receivers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!(acked.sorted(), [0, 1, 2]);
        let stats = queue.stats();
        assert_eq!((stats.retried, stats.requeued, stats.delivered), (2, 1, 6));
        assert_conserved(&queue);
    });
}

#[test]
fn a_retry_comes_back_when_the_clock_is_moved() {
    explore(|| {
        let (broker, clock) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let receivers = [(), ()].map(|()| {
            let (queue, clock) = (queue.clone(), clock.clone());
            thread::spawn(move || {
                while let Ok(delivery) = queue.recv() {
                    if delivery.attempt() < 3 {
                        delivery.retry_after(SECOND).unwrap();
                        clock.advance(SECOND);
                    } else {
                        delivery.ack().unwrap();
                        queue.close();
                    }
                }
            })
        });
        queue.send(0).unwrap();
        receivers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!(queue.stats().acked, 1);
    });
}

#[test]
fn a_failing_message_gets_its_attempts_and_one_dead_letter() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(2)).declare().unwrap();
        let calls = Seen::default();
        let seen = calls.clone();
        let fail = move |n: &Message<u32>| {
            seen.add(**n);
            Outcome::Retry
        };
        queue.consumer().workers(2).start(fail).unwrap();
        (0..2).for_each(|n| _ = queue.send(n).unwrap());
        let report = broker.shutdown(SECOND);
        assert!(report.is_clean(), "{report}");
        assert_eq!(calls.sorted(), [0, 0, 0, 1, 1, 1]);
        assert_eq!(queue.dead_letters().len(), 2);
        assert_conserved(&queue);
    });
}

#[test]
fn scaling_a_busy_consumer_loses_no_message_and_no_worker() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(2).declare().unwrap();
        let seen = Seen::default();
        let consumer = start(&queue, 2, &seen);
        let producer = send(&queue, 0..4);
        consumer.scale_to(1).unwrap();
        consumer.scale_to(3).unwrap();
        consumer.scale_to(1).unwrap();
        producer.join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.sorted(), [0, 1, 2, 3]);
    });
}

#[test]
fn binding_changes_amid_publishes_touch_only_their_own_queue() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let [always, sometimes] = ["always", "sometimes"].map(|name| broker.queue(name).declare().unwrap());
        topic.bind(&always, Binding::all()).unwrap();
        topic.bind(&sometimes, Binding::all()).unwrap();
        // From now on this thread remembers the route.
        assert_eq!(topic.publish("k", 7).unwrap().routed(), 2);
        let producers = [publish(&topic, 0..2), publish(&topic, 2..4)];
        topic.unbind(&sometimes, Binding::all()).unwrap();
        assert_eq!(topic.publish("k", 8).unwrap().routed(), 1);
        topic.bind(&sometimes, Binding::all()).unwrap();
        assert_eq!(topic.publish("k", 9).unwrap().routed(), 2);
        producers.into_iter().for_each(|p| p.join().unwrap());
        let numbers = |queue: &Queue<u32>| {
            let mut all: Vec<u32> = queue.drain().iter().map(|message| **message).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(numbers(&always), [0, 1, 2, 3, 7, 8, 9]);
        let mut reached = numbers(&sometimes);
        assert!(reached.contains(&7) && !reached.contains(&8) && reached.contains(&9));
        let n = reached.len();
        reached.dedup();
        assert_eq!(reached.len(), n, "twice in one queue");
    });
}

#[test]
fn a_binding_counts_for_the_next_publish_although_there_were_only_subscribers() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let subscriber = topic.subscribe().open().unwrap();
        let producers = [publish(&topic, 0..2), publish(&topic, 2..4)];
        topic.bind(&queue, Binding::all()).unwrap();
        assert_eq!(topic.publish("k", 4).unwrap().routed(), 1);
        topic.unbind(&queue, Binding::all()).unwrap();
        assert_eq!(topic.publish("k", 5).unwrap().routed(), 0);
        producers.into_iter().for_each(|p| p.join().unwrap());
        let heard: Vec<u32> = (0..6).map(|_| **subscriber.try_recv().unwrap()).collect();
        assert_eq!(heard.iter().sum::<u32>(), 15);
        for pair in [[0, 1], [2, 3], [4, 5]] {
            assert_eq!(heard.iter().copied().filter(|n| pair.contains(n)).collect::<Vec<_>>(), pair);
        }
        let queued: Vec<u32> = queue.drain().iter().map(|message| **message).collect();
        assert!(queued.contains(&4) && !queued.contains(&5));
        assert_eq!(topic.stats().published, 6);
    });
}

/// A topic bound to two queues with room for one message each.
fn two_small_queues(broker: &Broker) -> (Topic<u32>, [Queue<u32>; 2]) {
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let queues = ["a", "b"].map(|name| broker.queue(name).capacity(1).declare().unwrap());
    queues.iter().for_each(|queue| topic.bind(queue, "k").unwrap());
    (topic, queues)
}

#[test]
fn waiting_publishes_reach_both_queues_once() {
    explore(|| {
        let (broker, _) = broker();
        let (topic, queues) = two_small_queues(&broker);
        let seen = [Seen::default(), Seen::default()];
        let receivers = [0, 1].map(|i| receive_all(&queues[i], &seen[i]));
        let producers = [publish(&topic, 0..2), publish(&topic, 2..4)];
        producers.into_iter().for_each(|p| p.join().unwrap());
        queues.iter().for_each(Queue::close);
        receivers.into_iter().for_each(|r| r.join().unwrap());
        seen.iter().for_each(|seen| assert_eq!(seen.sorted(), [0, 1, 2, 3]));
        queues.iter().for_each(assert_conserved);
    });
}

#[test]
fn a_refused_publish_reached_no_queue() {
    explore(|| {
        let (broker, _) = broker();
        let (topic, queues) = two_small_queues(&broker);
        let (seen, accepted) = ([Seen::default(), Seen::default()], Seen::default());
        let receivers = [0, 1].map(|i| receive_all(&queues[i], &seen[i]));
        let producers = [0..2, 2..4].map(|numbers| {
            let (topic, accepted) = (topic.clone(), accepted.clone());
            thread::spawn(move || {
                numbers.filter(|&n| topic.try_publish("k", n).is_ok()).for_each(|n| _ = accepted.add(n));
            })
        });
        producers.into_iter().for_each(|p| p.join().unwrap());
        queues.iter().for_each(Queue::close);
        receivers.into_iter().for_each(|r| r.join().unwrap());
        seen.iter().for_each(|seen| assert_eq!(seen.sorted(), accepted.sorted()));
    });
}

#[test]
fn shutdown_waits_for_a_publish_that_is_half_way_into_two_queues() {
    explore(|| {
        let (broker, _) = broker();
        let (topic, queues) = two_small_queues(&broker);
        let seen = [Seen::default(), Seen::default()];
        [0, 1].into_iter().for_each(|i| _ = start(&queues[i], 1, &seen[i]));
        let producer = thread::spawn(move || topic.publish("k", 7).is_ok());
        let report = broker.shutdown(SECOND);
        let accepted = usize::from(producer.join().unwrap());
        assert!(report.is_clean(), "{report}");
        seen.iter().for_each(|seen| assert_eq!(seen.count(7), accepted));
        queues.iter().for_each(assert_conserved);
    });
}

#[test]
fn a_publish_that_still_waits_for_one_queue_keeps_nobody_from_the_other() {
    explore(|| {
        let (broker, _) = broker();
        let (topic, [a, b]) = two_small_queues(&broker);
        b.send(0).unwrap();
        let both = publish(&topic, 1..2);
        let alone = send(&b, 2..3);
        let first_in_a = a.try_send(3).is_ok();
        // Makes room in the second queue only: whoever waits for it alone must get in, now or after the
        // publish to both.
        let seen = Seen::default();
        let receiver = receive_all(&b, &seen);
        alone.join().unwrap();
        if first_in_a {
            assert_eq!(**a.recv().unwrap(), 3);
        }
        both.join().unwrap();
        b.close();
        receiver.join().unwrap();
        assert_eq!(seen.sorted(), [0, 1, 2]);
    });
}

#[test]
fn pause_resume_and_stop_amid_publishes_lose_nothing() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let seen = Seen::default();
        let consumer = start(&queue, 2, &seen);
        let producer = send(&queue, 0..3);
        consumer.pause();
        consumer.resume();
        consumer.stop();
        producer.join().unwrap();
        queue.drain().iter().for_each(|message| _ = seen.add(**message));
        assert_eq!(seen.sorted(), [0, 1, 2]);
        assert_conserved(&queue);
    });
}

#[test]
fn a_resumed_consumer_takes_what_came_while_it_was_paused() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
        let seen = Seen::default();
        let consumer = start(&queue, 2, &seen);
        consumer.pause();
        let producer = send(&queue, 0..3);
        consumer.resume();
        producer.join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.sorted(), [0, 1, 2]);
    });
}

#[test]
fn a_message_meant_for_a_stopping_worker_goes_to_another_receiver() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let seen = Seen::default();
        let consumer = start(&queue, 1, &seen);
        let receiver = {
            let (queue, seen) = (queue.clone(), seen.clone());
            thread::spawn(move || {
                // One of the two messages may be the worker's, the other never is.
                let delivery = queue.recv().unwrap();
                seen.add(**delivery);
                delivery.ack().unwrap();
            })
        };
        let stopper = thread::spawn(move || consumer.stop());
        queue.send(0).unwrap();
        stopper.join().unwrap();
        queue.send(1).unwrap();
        receiver.join().unwrap();
        queue.drain().iter().for_each(|message| _ = seen.add(**message));
        assert_eq!(seen.sorted(), [0, 1]);
    });
}

#[test]
fn handlers_that_stop_their_own_consumer_do_not_wait_for_each_other() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let myself: Arc<Mutex<Option<Consumer>>> = Arc::default();
        let own = Arc::clone(&myself);
        let stop = move |_: &Message<u32>| {
            let consumer = own.lock().unwrap().clone();
            consumer.into_iter().for_each(|consumer| consumer.stop());
        };
        let consumer = queue.consumer().workers(2).start(stop).unwrap();
        *myself.lock().unwrap() = Some(consumer.clone());
        (0..2).for_each(|n| _ = queue.send(n).unwrap());
        consumer.stop();
        assert_conserved(&queue);
        *myself.lock().unwrap() = None;
    });
}

#[test]
fn a_blocked_producer_hears_of_the_close() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
        queue.send(0).unwrap();
        let accepted = Seen::default();
        let producers = [1, 2].map(|n| {
            let (queue, accepted) = (queue.clone(), accepted.clone());
            thread::spawn(move || match queue.send(n) {
                Ok(_) => _ = accepted.add(n),
                Err(SendError::Closed(refused)) => assert_eq!(*refused.into_message(), n),
                Err(other) => panic!("{other}"),
            })
        });
        let closer = {
            let queue = queue.clone();
            thread::spawn(move || queue.close())
        };
        let seen = Seen::default();
        let delivery = queue.recv().unwrap();
        seen.add(**delivery);
        delivery.ack().unwrap();
        producers.into_iter().for_each(|p| p.join().unwrap());
        closer.join().unwrap();
        queue.drain().iter().for_each(|message| _ = seen.add(**message));
        accepted.add(0);
        assert_eq!(seen.sorted(), accepted.sorted());
    });
}

#[test]
fn a_limit_in_flight_holds_and_lets_every_receiver_end() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").max_in_flight(1).declare().unwrap();
        let (seen, in_hand) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
        let receivers = [(); 4].map(|()| {
            let (queue, seen, in_hand) = (queue.clone(), seen.clone(), Arc::clone(&in_hand));
            thread::spawn(move || {
                while let Ok(delivery) = queue.recv() {
                    assert_eq!(in_hand.fetch_add(1, Ordering::SeqCst), 0);
                    seen.add(**delivery);
                    in_hand.fetch_sub(1, Ordering::SeqCst);
                    delivery.ack().unwrap();
                }
            })
        });
        (0..2).for_each(|n| _ = queue.send(n).unwrap());
        queue.close();
        receivers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!(seen.sorted(), [0, 1]);
    });
}

#[test]
fn every_timed_receiver_times_out_when_the_clock_gets_there() {
    explore(|| {
        let (broker, clock) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let ended = Seen::default();
        let receivers = [1, 2].map(|seconds| {
            let (queue, ended) = (queue.clone(), ended.clone());
            thread::spawn(move || {
                let answer = queue.recv_timeout(SECOND * seconds).err();
                ended.add(0);
                answer
            })
        });
        // A receiver's time counts from when it started, so the clock goes on until both have ended.
        while ended.count(0) < 2 {
            clock.advance(SECOND);
            thread::yield_now();
        }
        receivers.into_iter().for_each(|r| assert_eq!(r.join().unwrap(), Some(RecvTimeoutError::Timeout)));
    });
}

#[test]
fn drop_oldest_never_blocks_and_counts_what_it_drops() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(1).overflow(Overflow::DropOldest).declare().unwrap();
        let seen = Seen::default();
        let receiver = receive_all(&queue, &seen);
        let producers = [send(&queue, 0..2), send(&queue, 2..4)];
        producers.into_iter().for_each(|p| p.join().unwrap());
        queue.close();
        receiver.join().unwrap();
        let stats = queue.stats();
        assert_eq!(seen.sorted().len() as u64 + stats.dropped, 4);
        assert!((0..4).all(|n| seen.count(n) <= 1));
        assert_conserved(&queue);
    });
}

#[test]
fn draining_amid_traffic_takes_each_message_once() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(1).retry(Retry::immediate(5)).declare().unwrap();
        let seen = Seen::default();
        let (failing, drained) = (queue.clone(), seen.clone());
        let receiver = thread::spawn(move || {
            while let Ok(delivery) = failing.recv() {
                drop(delivery);
                failing.drain().iter().for_each(|message| _ = drained.add(**message));
            }
        });
        let producers = [send(&queue, 0..1), send(&queue, 1..3)];
        producers.into_iter().for_each(|p| p.join().unwrap());
        queue.close();
        receiver.join().unwrap();
        assert_eq!(seen.sorted(), [0, 1, 2]);
        assert_conserved(&queue);
    });
}

#[test]
fn dropping_the_broker_ends_its_workers() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let seen = Seen::default();
        start(&queue, 2, &seen);
        let producer = send(&queue, 0..2);
        drop(broker);
        producer.join().unwrap();
        queue.drain().iter().for_each(|message| _ = seen.add(**message));
        assert_eq!(seen.sorted(), [0, 1]);
    });
}

/// Numbers follow each other without a gap from the first one seen on.
fn read_along(topic: &Topic<u32>, lag: Lag) -> JoinHandle<()> {
    let topic = topic.clone();
    thread::spawn(move || {
        let subscriber = topic.subscribe().capacity(8).lag(lag).replay_last(1).open().unwrap();
        let mut previous = None;
        loop {
            match subscriber.recv() {
                Ok(n) => {
                    assert!(previous.is_none_or(|previous| **n == previous + 1), "{previous:?} then {}", **n);
                    previous = Some(**n);
                }
                Err(BroadcastError::Closed) => break,
                Err(other) => panic!("{other}"),
            }
            if previous == Some(3) {
                break;
            }
        }
    })
}

#[test]
fn subscribers_come_and_go_while_somebody_publishes() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").keep_last(1).declare().unwrap();
        let first = topic.subscribe().open().unwrap();
        let publisher = publish(&topic, 0..4);
        let readers = [Lag::Block, Lag::Disconnect].map(|lag| read_along(&topic, lag));
        let seen: Vec<u32> = (0..4).map(|_| **first.recv().unwrap()).collect();
        assert_eq!(seen, [0, 1, 2, 3]);
        drop(first);
        publisher.join().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(topic.stats().subscribers, 0);
    });
}

#[test]
fn a_blocked_publisher_is_woken_by_a_receive_and_by_an_unsubscribe() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        topic.bind(&queue, "k").unwrap();
        let strict = || topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        let (reads, leaves) = (strict(), strict());
        let publishers = [publish(&topic, 0..2), publish(&topic, 2..4)];
        let reader = thread::spawn(move || {
            let mut seen: Vec<u32> = (0..4).map(|_| **reads.recv().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3]);
        });
        let leaver = thread::spawn(move || {
            leaves.recv().unwrap();
            drop(leaves);
        });
        for thread in publishers.into_iter().chain([reader, leaver]) {
            thread.join().unwrap();
        }
        assert_eq!(queue.len(), 4);
    });
}

#[test]
fn strict_subscribers_come_and_go_at_capacity_one() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let strict = |topic: &Topic<u32>| topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        let stays = strict(&topic);
        let visitor = {
            let topic = topic.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let subscriber = strict(&topic);
                    // Whatever it sees follows each other without a gap.
                    let seen: Vec<u32> =
                        subscriber.try_recv().into_iter().chain(subscriber.try_recv()).map(|n| **n).collect();
                    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
                }
            })
        };
        let publisher = publish(&topic, 0..3);
        let seen: Vec<u32> = (0..3).map(|_| **stays.recv().unwrap()).collect();
        assert_eq!(seen, [0, 1, 2]);
        [publisher, visitor].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_publisher_hears_of_room_that_was_made_without_the_lock() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let subscriber = topic.subscribe().capacity(16).lag(Lag::Block).open().unwrap();
        // A chunk has two messages, so the subscriber takes the second one without the lock: then there is room.
        topic.publish("k", 0).unwrap();
        assert_eq!(**subscriber.recv().unwrap(), 0);
        (1..17).for_each(|n| _ = topic.publish("k", n).unwrap());
        let publisher = publish(&topic, 17..18);
        assert_eq!(**subscriber.recv().unwrap(), 1);
        publisher.join().unwrap();
        assert!((2..18).all(|n| **subscriber.recv().unwrap() == n));
    });
}

#[test]
fn subscribers_that_sleep_wake_each_other() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let readers: Vec<_> = (0..3)
            .map(|n| {
                let subscriber = topic.subscribe().open().unwrap();
                // One of them leaves after the first, while others may count on it to wake them.
                thread::spawn(move || (0..if n == 0 { 1 } else { 2 }).map(|_| **subscriber.recv().unwrap()).sum())
            })
            .collect();
        let publisher = publish(&topic, 1..3);
        let sums: Vec<u32> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        publisher.join().unwrap();
        assert_eq!(sums, [1, 3, 3]);
    });
}

#[test]
fn a_batch_goes_on_when_its_last_subscriber_leaves() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        let (onward, reader) = (topic.clone(), thread::spawn(move || **subscriber.recv().unwrap()));
        let publisher = thread::spawn(move || onward.publish_batch("k", 0..4).unwrap());
        assert_eq!((reader.join().unwrap(), publisher.join().unwrap()), (0, 4));
    });
}

#[test]
fn a_publisher_that_waits_for_a_subscriber_hears_of_the_close() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        let onward = topic.clone();
        let publisher = thread::spawn(move || (0..3).filter(|n| onward.publish("k", *n).is_ok()).count());
        let reader = thread::spawn(move || {
            let first = subscriber.recv().is_ok();
            // Nothing is read any more, and the subscriber stays.
            (subscriber, first)
        });
        broker.shutdown(SECOND);
        let accepted = publisher.join().unwrap();
        let (subscriber, first) = reader.join().unwrap();
        let left = std::iter::from_fn(|| subscriber.try_recv().ok()).count();
        assert_eq!(accepted, left + usize::from(first));
    });
}

#[test]
fn what_is_due_waits_for_a_full_subscriber_and_is_not_forgotten() {
    explore(|| {
        let (broker, clock) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        topic.publish("k", Message::new(9).with_delay(SECOND)).unwrap();
        let publisher = publish(&topic, 0..2);
        let mover = thread::spawn(move || clock.advance(SECOND));
        let mut seen: Vec<u32> = (0..3).map(|_| **subscriber.recv().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 9]);
        [publisher, mover].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn shutdown_lets_broadcast_handlers_finish() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let (seen, accepted) = (Seen::default(), Seen::default());
        let record = seen.clone();
        topic.subscribe().capacity(2).lag(Lag::Block).start(move |n: &Message<u32>| _ = record.add(**n)).unwrap();
        let (onward, taken) = (topic.clone(), accepted.clone());
        let publisher = thread::spawn(move || {
            for n in 0..3 {
                if onward.publish("k", n).is_ok() {
                    taken.add(n);
                }
            }
        });
        let report = broker.shutdown(SECOND);
        publisher.join().unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(seen.sorted(), accepted.sorted());
    });
}

/// Per key, what handlers may see: one at a time, in order.
fn checks_order(queue: &Queue<(u32, u32)>, failing: Option<(u32, u32)>) -> Arc<Mutex<Vec<(u32, u32)>>> {
    let done = Arc::new(Mutex::new(Vec::new()));
    let (seen, busy) = (done.clone(), Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]));
    let handler = move |step: &Message<(u32, u32)>| {
        assert_eq!(busy[step.0 as usize].fetch_add(1, Ordering::SeqCst), 0, "never two of a key");
        thread::yield_now();
        busy[step.0 as usize].fetch_sub(1, Ordering::SeqCst);
        if failing == Some(**step) && step.attempt() == 1 {
            return Outcome::Retry;
        }
        seen.lock().unwrap().push(**step);
        Outcome::Ack
    };
    queue.consumer().workers(2).start(handler).unwrap();
    done
}

fn of_key(done: &Mutex<Vec<(u32, u32)>>, key: u32) -> Vec<u32> {
    done.lock().unwrap().iter().filter(|step| step.0 == key).map(|step| step.1).collect()
}

#[test]
fn two_workers_never_handle_one_key_at_once() {
    explore(|| {
        let (broker, _) = broker();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).capacity(2).declare().unwrap();
        let done = checks_order(&queue, None);
        let producers: Vec<_> = (0..2)
            .map(|key| {
                let queue = queue.clone();
                thread::spawn(move || (0..2).for_each(|n| _ = queue.send((key, n)).unwrap()))
            })
            .collect();
        producers.into_iter().for_each(|p| p.join().unwrap());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!((of_key(&done, 0), of_key(&done, 1)), (vec![0, 1], vec![0, 1]));
        let stats = queue.stats();
        assert_eq!((stats.unaccounted(), stats.keys), (0, 0), "{stats:?}");
    });
}

#[test]
fn a_retry_keeps_its_place_in_its_key() {
    explore(|| {
        let (broker, _) = broker();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).retry(Retry::immediate(2));
        let queue = queue.declare().unwrap();
        let done = checks_order(&queue, Some((0, 0)));
        queue.send_batch([(0, 0), (0, 1), (1, 0)]).unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!((of_key(&done, 0), of_key(&done, 1)), (vec![0, 1], vec![0]));
        assert_eq!((queue.stats().retried, queue.stats().keys), (1, 0));
    });
}

/// Receives and acks this many; a wake-up that is lost leaves it asleep for ever.
fn receive(queue: &Queue<(u32, u32)>, many: usize) -> JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || (0..many).for_each(|_| queue.recv().unwrap().ack().unwrap()))
}

#[test]
fn whoever_sleeps_for_a_turn_is_woken_by_a_publish_or_by_a_freed_key() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<(u32, u32)> = broker.topic("t").declare().unwrap();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).capacity(3).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        let receivers = [receive(&queue, 2), receive(&queue, 3)];
        let publisher = thread::spawn(move || [(0, 0), (0, 1), (1, 0)].map(|step| topic.publish("k", step).unwrap()));
        [(2, 0), (2, 1)].iter().for_each(|step| _ = queue.send(*step).unwrap());
        publisher.join().unwrap();
        receivers.into_iter().for_each(|r| r.join().unwrap());
        let stats = queue.stats();
        assert_eq!((stats.acked, stats.keys, stats.unaccounted()), (5, 0, 0), "{stats:?}");
    });
}

#[test]
fn a_worker_that_is_stopped_amid_a_key_leaves_its_turn_to_another_receiver() {
    explore(|| {
        let (broker, _) = broker();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).declare().unwrap();
        let handled = Arc::new(AtomicUsize::new(0));
        let counts = handled.clone();
        let consumer =
            queue.consumer().workers(1).start(move |_: &Message<_>| _ = counts.fetch_add(1, Ordering::SeqCst));
        let consumer = consumer.unwrap();
        let receiver = {
            let (queue, handled) = (queue.clone(), handled.clone());
            thread::spawn(move || {
                while let Ok(delivery) = queue.recv() {
                    handled.fetch_add(1, Ordering::SeqCst);
                    delivery.ack().unwrap();
                }
            })
        };
        queue.send_batch([(0, 0), (0, 1), (0, 2)]).unwrap();
        consumer.pause();
        queue.close();
        receiver.join().unwrap();
        consumer.stop();
        assert_eq!((handled.load(Ordering::SeqCst), queue.stats().keys), (3, 0));
    });
}

#[test]
fn receivers_of_a_closed_queue_end_when_the_last_turn_is_taken() {
    explore(|| {
        let (broker, _) = broker();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).declare().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                let (queue, taken) = (queue.clone(), taken.clone());
                thread::spawn(move || {
                    while let Ok(delivery) = queue.recv() {
                        taken.fetch_add(1, Ordering::SeqCst);
                        delivery.ack().unwrap();
                    }
                })
            })
            .collect();
        (0..3).for_each(|n| _ = queue.send((0, n)).unwrap());
        queue.close();
        receivers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!((taken.load(Ordering::SeqCst), queue.stats().keys), (3, 0));
    });
}

#[test]
fn a_parked_key_is_released_amid_traffic_and_a_stop_is_lifted() {
    for policy in [Exhausted::Park, Exhausted::Stop] {
        explore(move || {
            let (broker, _) = broker();
            let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).on_exhausted(policy);
            let queue = queue.retry(Retry::none()).declare().unwrap();
            queue.send((0, 0)).unwrap();
            queue.recv().unwrap().retry().unwrap();
            let receivers = [receive(&queue, 1), receive(&queue, 2)];
            let operator = {
                let queue = queue.clone();
                thread::spawn(move || match policy {
                    Exhausted::Stop => assert!(queue.resume()),
                    _ => assert!(queue.release_key("0")),
                })
            };
            [(0, 1), (1, 0)].iter().for_each(|step| _ = queue.send(*step).unwrap());
            operator.join().unwrap();
            receivers.into_iter().for_each(|r| r.join().unwrap());
            let stats = queue.stats();
            assert_eq!((stats.acked, stats.keys, stats.parked, stats.unaccounted()), (3, 0, 0, 0), "{stats:?}");
        });
    }
}

#[test]
fn ordered_batches_and_a_limit_in_flight_leave_nobody_asleep() {
    explore(|| {
        let (broker, _) = broker();
        let queue = broker.queue("q").ordered_by(|step: &(u32, u32)| step.0).max_in_flight(1).declare().unwrap();
        let receivers = [receive(&queue, 2), receive(&queue, 2)];
        queue.send_batch([(0, 0), (0, 1), (1, 0), (1, 1)]).unwrap();
        receivers.into_iter().for_each(|r| r.join().unwrap());

        let left = Arc::new(AtomicUsize::new(4));
        let many = broker.queue("many").ordered_by(|step: &(u32, u32)| step.0).declare().unwrap();
        let counted = left.clone();
        let handler = move |batch: &[Message<(u32, u32)>]| {
            counted.fetch_sub(batch.len(), Ordering::SeqCst);
        };
        many.consumer().workers(2).start_batch(3, Duration::ZERO, handler).unwrap();
        many.send_batch([(0, 0), (0, 1), (1, 0), (1, 1)]).unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!((left.load(Ordering::SeqCst), many.stats().keys, queue.stats().keys), (0, 0, 0));
    });
}

/// A thread that sends each number to both queues, in one transaction; which ones were taken.
fn transact(broker: &Broker, queues: [&Queue<u32>; 2], numbers: std::ops::Range<u32>) -> JoinHandle<Vec<u32>> {
    let (broker, queues) = (broker.clone(), queues.map(Queue::clone));
    thread::spawn(move || {
        let both = |n: u32| {
            broker.transaction(|tx: &mut Transaction| -> Result<(), Failure> {
                queues.iter().try_for_each(|queue| tx.send(queue, n).map(|_| ()).map_err(Into::into))
            })
        };
        numbers.filter(|&n| both(n).is_ok()).collect()
    })
}

#[test]
fn transactions_over_the_same_queues_in_opposite_orders_do_not_block_each_other() {
    explore(|| {
        let (broker, _) = broker();
        let (_, [a, b]) = two_small_queues(&broker);
        let seen = [Seen::default(), Seen::default()];
        let readers = [receive_all(&a, &seen[0]), receive_all(&b, &seen[1])];
        let writers = [transact(&broker, [&a, &b], 0..2), transact(&broker, [&b, &a], 2..4)];
        let sent: usize = writers.into_iter().map(|writer| writer.join().unwrap().len()).sum();
        assert_eq!(sent, 4);
        a.close();
        b.close();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!((seen[0].sorted(), seen[1].sorted()), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
        assert_conserved(&a);
        assert_conserved(&b);
    });
}

#[test]
fn whoever_sees_one_message_of_a_transaction_finds_the_other() {
    explore(|| {
        let (broker, _) = broker();
        let a: Queue<u32> = broker.queue("a").declare().unwrap();
        let b: Queue<u32> = broker.queue("b").priority_levels(2).declare().unwrap();
        let readers = [(a.clone(), b.clone()), (b.clone(), a.clone())].map(|(first, second)| {
            thread::spawn(move || {
                if first.stats().published > 0 {
                    assert!(second.stats().published > 0, "half of it");
                }
            })
        });
        let writer = transact(&broker, [&a, &b], 0..1);
        let both = {
            let (a, b) = (a.clone(), b.clone());
            thread::spawn(move || {
                let first = a.recv().unwrap();
                b.try_recv().expect("half of it").ack().unwrap();
                first.ack().unwrap();
            })
        };
        writer.join().unwrap();
        both.join().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn shutdown_amid_transactions_leaves_both_queues_with_the_same() {
    explore(|| {
        let (broker, _) = broker();
        let (_, [a, b]) = two_small_queues(&broker);
        let seen = [Seen::default(), Seen::default()];
        start(&a, 1, &seen[0]);
        start(&b, 1, &seen[1]);
        let writer = transact(&broker, [&a, &b], 0..3);
        let report = broker.shutdown(SECOND);
        let sent = writer.join().unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((seen[0].sorted(), seen[1].sorted()), (sent.clone(), sent));
        assert_conserved(&a);
        assert_conserved(&b);
    });
}

#[test]
fn room_for_one_is_not_lost_on_a_transaction_that_waits_for_more() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").capacity(2).declare().unwrap();
        let seen = Seen::default();
        let writers = [send(&queue, 0..2), send(&queue, 2..3)];
        let pair = transact(&broker, [&queue, &queue], 9..10);
        let reader = receive_all(&queue, &seen);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(pair.join().unwrap(), [9]);
        queue.close();
        reader.join().unwrap();
        assert_eq!(seen.sorted(), [0, 1, 2, 9, 9]);
        assert_conserved(&queue);
    });
}

#[test]
fn a_commit_that_meets_a_check_back_settles_once() {
    for answer in [Resolution::Commit, Resolution::Rollback, Resolution::Unknown] {
        explore(move || {
            let (broker, clock) = broker();
            let check_back = CheckBack::new(move |_: &Message<u32>| answer).times(1);
            let topic: Topic<u32> = broker.topic("t").check_back(check_back).declare().unwrap();
            let queue: Queue<u32> = broker.queue("q").declare().unwrap();
            topic.bind(&queue, "#").unwrap();
            let half = topic.prepare("k", 7).unwrap();
            let time = thread::spawn(move || clock.advance(6 * SECOND));
            let committed = half.commit().map(|_| ()).map_err(|unsettled| unsettled.why().clone());
            time.join().unwrap();
            assert!(broker.wait_idle(SECOND));
            let halves = topic.stats().halves;
            let fates = (halves.committed, halves.rolled_back, halves.unresolved);
            let expected = match (&committed, answer) {
                (Ok(()), _) => (1, 0, 0),
                (Err(_), Resolution::Commit) => (1, 0, 0),
                (Err(_), Resolution::Rollback) => (0, 1, 0),
                (Err(_), Resolution::Unknown) => (0, 0, 1),
            };
            assert_eq!((fates, halves.open), (expected, 0), "{committed:?}");
            assert_eq!(queue.len() as u64, halves.committed);
            if let Err(why) = committed {
                assert!(matches!(why, HalfError::BeingSettled | HalfError::Settled(_)), "{why}");
                assert_ne!((why, answer), (HalfError::Settled(HalfFate::RolledBack), Resolution::Commit));
            }
            queue.purge();
            assert!(broker.shutdown(SECOND).is_clean());
        });
    }
}

#[test]
fn of_two_duplicates_one_succeeds_whichever_fails_first() {
    explore(|| {
        let (broker, _) = broker();
        let queue: Queue<u32> = broker.queue("q").idempotent(SECOND).retry(Retry::immediate(3)).declare().unwrap();
        let seen = Seen::default();
        let (log, calls) = (seen.clone(), AtomicUsize::new(0));
        let handler = move |n: &Message<u32>| {
            thread::yield_now();
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                return Outcome::Retry;
            }
            log.add(**n);
            Outcome::Ack
        };
        queue.consumer().workers(2).start(handler).unwrap();
        let producers = [0, 1].map(|_| {
            let queue = queue.clone();
            thread::spawn(move || _ = queue.send(Message::new(7).with_id(7)).unwrap())
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.sorted(), [7]);
        assert_eq!((queue.stats().acked, queue.stats().duplicates), (2, 1));
        assert_conserved(&queue);
    });
}

#[test]
fn a_key_is_claimed_by_one_at_a_time() {
    explore(|| {
        let (broker, _) = broker();
        let seen = broker.idempotency(SECOND).unwrap();
        let (inside, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let threads = [0, 1, 2].map(|n| {
            let (seen, inside, done) = (seen.clone(), inside.clone(), done.clone());
            thread::spawn(move || {
                let Claimed::New(claim) = seen.claim(7) else { return };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                if n > 0 {
                    done.fetch_add(1, Ordering::SeqCst);
                    claim.complete();
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(done.load(Ordering::SeqCst) <= 1);
    });
}

#[test]
fn a_topic_publishes_an_id_once_however_many_try() {
    explore(|| {
        let (broker, _) = broker();
        let topic: Topic<u32> = broker.topic("t").refuse_duplicates(SECOND).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        let message = || Message::new(7).with_id(7);
        let plain = {
            let topic = topic.clone();
            thread::spawn(move || topic.publish("k", message()).is_ok())
        };
        let staged = {
            let (topic, broker) = (topic.clone(), broker.clone());
            thread::spawn(move || {
                let result = broker.transaction(|tx| Ok(tx.publish(&topic, "k", message())?));
                assert!(!matches!(result, Err(TransactionError::RolledBack(_))));
                result.is_ok()
            })
        };
        let published = usize::from(plain.join().unwrap()) + usize::from(staged.join().unwrap());
        assert_eq!((published, queue.len()), (1, 1));
    });
}
