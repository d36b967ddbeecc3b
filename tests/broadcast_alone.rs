//! A topic with subscribers and nothing else takes plain payloads by a shorter way: it does not show.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::{ON_PURPOSE, eventually, quiet};
use postroom::{Broker, Lag, Message, MessageId, PublishError, Queue, Rate, Subscription, Topic};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

const LONG: Duration = Duration::from_secs(20);

/// What a handler has seen of a message.
type Seen = (MessageId, String, u32, u32);

fn listen(topic: &Topic<u32>, lag: Lag, capacity: usize) -> (Subscription, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let handler = move |n: &Message<u32>| {
        assert!(n.published_at() <= SystemTime::now() + LONG && !n.redelivered() && n.headers().next().is_none());
        noted.lock().unwrap().push((n.id(), n.routing_key().to_owned(), n.attempt(), **n));
    };
    (topic.subscribe().lag(lag).capacity(capacity).start(handler).unwrap(), seen)
}

#[test]
fn places_that_are_used_again_show_nothing_of_what_stood_there() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let (_subscription, seen) = listen(&topic, Lag::Block, 64);
    // The longest two take memory of their own.
    let keys =
        ["", "n", "exactly-twenty-two-byte", "exactly-twenty-2-bytes", "longer than any key that fits beside it"];
    let mut expected = Vec::new();
    for n in 0..3_000 {
        let key = keys[(n / 7) as usize % keys.len()];
        let given = n % 5 == 0;
        let message = if given { Message::new(n).with_id(u64::from(n) + 1_000_000) } else { Message::new(n) };
        let receipt = topic.publish(key, message).unwrap();
        assert_eq!(receipt.routed(), 0);
        expected.push((receipt.id(), key.to_owned(), 1, n));
    }
    assert!(broker.wait_idle(LONG));
    assert_eq!(*seen.lock().unwrap(), expected);
    let ids: BTreeSet<_> = expected.iter().map(|(id, ..)| *id).collect();
    assert_eq!((ids.len(), topic.stats().published), (3_000, 3_000));
}

#[test]
fn what_is_bound_amid_publishes_gets_the_next_one() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let other: Topic<u32> = broker.topic("others").declare().unwrap();
    let queue: Queue<u32> = broker.queue("queue").declare().unwrap();
    let (subscription, seen) = listen(&topic, Lag::Block, 64);
    let (_elsewhere, seen_there) = listen(&other, Lag::Block, 64);
    let publish = |n| topic.publish("n", n).unwrap().routed();
    for n in (0..60).step_by(6) {
        assert_eq!((publish(n), publish(n + 1)), (0, 0));
        topic.bind(&queue, "#").unwrap();
        assert_eq!(publish(n + 2), 1);
        topic.unbind(&queue, "#").unwrap();
        assert_eq!(publish(n + 3), 0);
        topic.bind(&other, "#").unwrap();
        assert_eq!(publish(n + 4), 0);
        topic.unbind(&other, "#").unwrap();
        assert_eq!(publish(n + 5), 0);
    }
    assert!(broker.wait_idle(LONG));
    let numbers = |seen: &Mutex<Vec<Seen>>| seen.lock().unwrap().iter().map(|seen| seen.3).collect::<Vec<_>>();
    assert_eq!(numbers(&seen), (0..60).collect::<Vec<_>>());
    assert_eq!(numbers(&seen_there), (4..60).step_by(6).collect::<Vec<_>>());
    assert_eq!(queue.len(), 10);
    subscription.stop();
    assert_eq!(publish(60), 0);
    let stats = topic.stats();
    assert_eq!((stats.published, stats.unroutable), (61, 1));
}

#[test]
fn a_limit_that_is_set_amid_publishes_holds_for_the_next_one() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let (_subscription, seen) = listen(&topic, Lag::Block, 64);
    (0..10).for_each(|n| _ = topic.publish("n", n).unwrap());
    topic.set_admission(Rate::per_second(0.001).burst(1)).unwrap();
    topic.publish("n", 10).unwrap();
    assert!(matches!(topic.publish("n", 11), Err(PublishError::Limited(_))));
    topic.set_admission(None).unwrap();
    topic.publish("n", 12).unwrap();
    assert!(broker.wait_idle(LONG));
    assert_eq!((seen.lock().unwrap().len(), topic.stats().published), (12, 12));
}

#[test]
fn what_does_not_fit_comes_back_and_is_not_counted() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let slow = topic.subscribe().lag(Lag::Block).capacity(3).open().unwrap();
    (0..3).for_each(|n| _ = topic.publish("n", n).unwrap());
    match topic.try_publish("n", 3) {
        Err(PublishError::Full(refused)) => {
            let message = refused.into_message();
            assert_eq!((*message.payload(), message.routing_key()), (3, "n"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(topic.stats().published, 3);
    assert_eq!(**slow.recv().unwrap(), 0);
    topic.try_publish("n", 4).unwrap();
    broker.shutdown(Duration::ZERO);
    assert!(matches!(topic.publish("n", 5), Err(PublishError::Closed(_))));
    assert_eq!(topic.stats().published, 4);
    let rest: Vec<_> = slow.iter().flatten().map(|n| **n).collect();
    assert_eq!(rest, [1, 2, 4]);
}

#[test]
fn whoever_lags_or_is_cut_off_hears_of_it() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let lagging = topic.subscribe().capacity(4).lag(Lag::DropOldest).open().unwrap();
    let cut = topic.subscribe().capacity(4).lag(Lag::Disconnect).open().unwrap();
    (0..10).for_each(|n| _ = topic.publish("n", n).unwrap());
    assert_eq!(lagging.recv().unwrap_err(), postroom::BroadcastError::Lagged(6));
    assert_eq!(**lagging.recv().unwrap(), 6);
    assert_eq!(cut.recv().unwrap_err(), postroom::BroadcastError::Disconnected);
    let stats = topic.stats();
    assert_eq!((stats.published, stats.lagged, stats.disconnected, stats.subscribers), (10, 6, 1, 1));
}

/// Its copies are counted, and some panic when they are dropped.
struct Counted(u32, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
        assert!(self.0 % 10 != 7, "{ON_PURPOSE}");
    }
}

#[test]
fn payloads_that_panic_when_they_are_dropped_cost_nobody_a_message() {
    quiet();
    let (alive, sum) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let broker = Broker::new();
    let topic: Topic<Counted> = broker.topic("counted").declare().unwrap();
    for _ in 0..3 {
        let sum = Arc::clone(&sum);
        let handler = move |n: &Message<Counted>| _ = sum.fetch_add(n.0 as usize, Ordering::SeqCst);
        topic.subscribe().capacity(16).lag(Lag::Block).start(handler).unwrap();
    }
    for n in 0..2_000 {
        alive.fetch_add(1, Ordering::SeqCst);
        topic.publish("n", Counted(n, Arc::clone(&alive))).unwrap();
    }
    assert!(broker.wait_idle(LONG));
    assert_eq!(sum.load(Ordering::SeqCst), 3 * 1_999_000);
    assert!(alive.load(Ordering::SeqCst) < 100, "what nobody needs is dropped");
    broker.shutdown(LONG);
    drop((topic, broker));
    eventually("every payload is gone", || alive.load(Ordering::SeqCst) == 0);
}

#[test]
fn threads_that_publish_while_bindings_change_are_counted_and_heard_in_order() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").declare().unwrap();
    let queue: Queue<u32> = broker.queue("queue").capacity(100_000).declare().unwrap();
    let (_subscription, seen) = listen(&topic, Lag::Block, 256);
    let publish = |thread: u32| {
        let topic = &topic;
        move || (0..5_000).for_each(|n| _ = topic.publish("n", thread * 5_000 + n).unwrap())
    };
    thread::scope(|scope| {
        (0..3).for_each(|thread| _ = scope.spawn(publish(thread)));
        for n in 0..50 {
            topic.bind(&queue, "n").unwrap();
            assert_eq!(topic.publish("n", 20_000 + 2 * n).unwrap().routed(), 1);
            topic.unbind(&queue, "n").unwrap();
            assert_eq!(topic.publish("n", 20_001 + 2 * n).unwrap().routed(), 0);
        }
    });
    assert!(broker.wait_idle(LONG));
    let seen: Vec<_> = seen.lock().unwrap().iter().map(|seen| seen.3).collect();
    assert_eq!((seen.len(), topic.stats().published), (15_100, 15_100));
    for thread in 0..3 {
        let own: Vec<_> = seen.iter().copied().filter(|n| n / 5_000 == thread).collect();
        assert_eq!(own, (thread * 5_000..(thread + 1) * 5_000).collect::<Vec<_>>());
    }
}
