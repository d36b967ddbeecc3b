//! Many queues, many bindings, many consumers, many messages: all of it works, and none of it takes long.
//!
//! What it costs is measured by `benches/peers`. The limits here are far above that: they catch something
//! that grows with the square of the number, not something that is a little slower.

mod common;

use common::within;
use postroom::{Binding, Broker, Lag, Log, ManualClock, Message, Queue, Record, Start, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_queues_and_bindings_are_declared_and_found() {
    within(MINUTE, || {
        let broker = Broker::new();
        let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
        let queues: Vec<Queue<u64>> =
            (0..10_000).map(|n| broker.queue(format!("queue {n}")).declare().unwrap()).collect();
        for (n, queue) in queues.iter().enumerate() {
            topic.bind(queue, Binding::pattern(format!("site{n}.*.#"))).unwrap();
        }
        for n in 0..queues.len() {
            assert_eq!(topic.publish(format!("site{n}.order"), n as u64).unwrap().routed(), 1);
        }
        for (n, queue) in queues.iter().enumerate() {
            assert_eq!((queue.len(), **queue.try_recv().unwrap()), (1, n as u64));
        }
        assert_eq!(broker.stats().queues.len(), broker.describe().queues.len());
    });
}

#[test]
fn ten_thousand_bindings_of_one_queue_give_it_one_copy() {
    within(MINUTE, || {
        let broker = Broker::new();
        let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
        let queue: Queue<u64> = broker.queue("all").declare().unwrap();
        (0..10_000).for_each(|n| topic.bind(&queue, Binding::pattern(format!("#.{n}.#"))).unwrap());
        assert_eq!(topic.publish("0.1.2.3.9999", 7).unwrap().routed(), 1);
        assert_eq!(queue.len(), 1);
    });
}

#[test]
fn two_hundred_and_fifty_six_workers_share_the_work_and_stop() {
    within(MINUTE, || {
        let broker = Broker::new();
        let queue: Queue<u64> = broker.queue("numbers").declare().unwrap();
        let sum = Arc::new(AtomicU64::new(0));
        let total = sum.clone();
        let handler = move |n: &Message<u64>| _ = total.fetch_add(**n, Ordering::Relaxed);
        let consumer = queue.consumer().workers(256).start(handler).unwrap();
        (1..=10_000).for_each(|n| _ = queue.send(n).unwrap());
        assert!(broker.wait_idle(MINUTE));
        assert_eq!(sum.load(Ordering::Relaxed), 10_000 * 10_001 / 2);
        consumer.stop();
        assert_eq!(consumer.workers(), 0);
    });
}

#[test]
fn two_hundred_and_fifty_six_consumers_of_a_queue_each_shut_down() {
    within(MINUTE, || {
        let broker = Broker::new();
        for n in 0..256 {
            let queue: Queue<u64> = broker.queue(format!("queue {n}")).declare().unwrap();
            queue.consumer().start(|_: &Message<u64>| ()).unwrap();
            queue.send(n).unwrap();
        }
        assert!(broker.shutdown(MINUTE).is_clean());
    });
}

#[test]
fn a_million_queued_messages_come_out_in_order() {
    within(MINUTE, || {
        let queue: Queue<u64> = Broker::new().queue("deep").capacity(1_000_000).declare().unwrap();
        (0..1_000_000).for_each(|n| _ = queue.send(n).unwrap());
        assert_eq!(queue.len(), 1_000_000);
        for n in 0..1_000_000 {
            let delivery = queue.try_recv().unwrap();
            assert_eq!(**delivery, n);
            delivery.ack().unwrap();
        }
        assert!(queue.is_empty());
    });
}

#[test]
fn a_million_delayed_messages_fire_in_the_order_they_are_due() {
    within(2 * MINUTE, || {
        let clock = ManualClock::new();
        let broker = Broker::builder().clock(clock.clone()).build().unwrap();
        let queue: Queue<u64> = broker.queue("later").capacity(1_000_000).declare().unwrap();
        for n in 0..1_000_000u64 {
            let delay = n * 7919 % 1_000_000;
            queue.send(Message::new(delay).with_delay(Duration::from_millis(1 + delay))).unwrap();
        }
        assert_eq!((queue.delayed(), queue.len()), (1_000_000, 0));
        clock.advance(Duration::from_millis(500_000));
        for n in 0..500_000 {
            assert_eq!(*queue.recv_timeout(MINUTE).unwrap().payload(), n);
        }
    });
}

#[test]
fn a_thousand_subscribers_each_see_everything() {
    within(MINUTE, || {
        let broker = Broker::new();
        let topic: Topic<u64> = broker.topic("numbers").declare().unwrap();
        let open = |_| topic.subscribe().capacity(100).lag(Lag::Block).open().unwrap();
        let subscribers: Vec<_> = (0..1000).map(open).collect();
        (0..100).for_each(|n| _ = topic.publish("n", n).unwrap());
        for subscriber in &subscribers {
            (0..100).for_each(|n| assert_eq!(**subscriber.recv().unwrap(), n));
        }
    });
}

#[test]
fn a_hundred_groups_each_read_the_whole_log() {
    within(MINUTE, || {
        let broker = Broker::new();
        let log: Log<u64> = broker.log("numbers").declare().unwrap();
        (1..=1000).for_each(|n| _ = log.append(n).unwrap());
        let sum = Arc::new(AtomicU64::new(0));
        for n in 0..100 {
            let total = sum.clone();
            let group = log.group(format!("group {n}")).start(Start::Earliest).unwrap();
            group
                .consumer()
                .start(move |n: &Record<u64>| _ = total.fetch_add(*n.payload(), Ordering::Relaxed))
                .unwrap();
        }
        assert!(broker.wait_idle(MINUTE));
        assert_eq!(sum.load(Ordering::Relaxed), 100 * 1000 * 1001 / 2);
    });
}
