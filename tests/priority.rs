//! Higher priorities first, whatever else happens to a message.

#![cfg(not(shuttle))]

use postroom::{Broker, Expired, Message, Overflow, Queue, QueueBuilder, Retry, Simulation, Topic};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Payload and priority: hundreds are the level.
fn of(n: u32) -> Message<u32> {
    Message::new(n).with_priority((n / 100) as u8)
}

fn queue(settings: impl FnOnce(QueueBuilder<u32>) -> QueueBuilder<u32>) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = Broker::simulated(1);
    let queue = settings(broker.queue("q").priority_levels(4)).declare().unwrap();
    (broker, simulation, queue)
}

fn ready(queue: &Queue<u32>) -> Vec<u32> {
    let deliveries = std::iter::from_fn(|| queue.try_recv().ok());
    deliveries.map(|delivery| (**delivery, delivery.ack()).0).collect()
}

fn is_conserved(queue: &Queue<u32>) {
    assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats());
}

#[test]
fn higher_levels_come_first_and_each_in_the_order_of_its_publishes() {
    let (_broker, _simulation, queue) = queue(|q| q);
    queue.send_batch([1, 301, 102, 3, 304, 205, 106].map(of)).unwrap();
    queue.send(Message::new(999).with_priority(255)).unwrap();
    let expected = [301, 304, 999, 205, 102, 106, 1, 3];
    let seen = |messages: &[Message<u32>]| messages.iter().map(|m| **m).collect::<Vec<_>>();
    assert_eq!(seen(&queue.list(99)), expected);
    assert_eq!(*queue.peek().unwrap().payload(), 301);
    assert_eq!(ready(&queue), expected);
    queue.send_batch([1, 301, 102].map(of)).unwrap();
    assert_eq!(seen(&queue.drain()), [301, 102, 1]);
    is_conserved(&queue);
}

#[test]
fn a_later_one_of_a_higher_level_overtakes() {
    let (_broker, _simulation, queue) = queue(|q| q);
    queue.send_batch([1, 2].map(of)).unwrap();
    queue.recv().unwrap().ack().unwrap();
    queue.send(of(300)).unwrap();
    assert_eq!(ready(&queue), [300, 2]);
}

#[test]
fn without_levels_a_priority_means_nothing() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send_batch([1, 300, 2].map(of)).unwrap();
    assert_eq!(ready(&queue), [1, 300, 2]);
}

#[test]
fn the_low_ones_get_exactly_their_share() {
    for (share, expected) in [(0.1, 100), (0.25, 250), (0.4, 400), (0.75, 750)] {
        let (_broker, _simulation, queue) = queue(|q| q.low_priority_share(share));
        queue.send_batch((0..1000).flat_map(|_| [of(0), of(300)])).unwrap();
        let batch = queue.recv_batch(1000).unwrap();
        assert_eq!(batch.iter().filter(|m| ***m == 0).count(), expected, "{share}");
        batch.ack().unwrap();
    }
}

#[test]
fn a_redelivery_keeps_its_level_and_leads_it() {
    let (_broker, simulation, queue) = queue(|q| q.retry(Retry::fixed(secs(1))));
    queue.send_batch([101, 102, 201].map(of)).unwrap();
    queue.recv().unwrap().ack().unwrap();
    queue.recv().unwrap().retry().unwrap();
    queue.send_batch([202, 1].map(of)).unwrap();
    simulation.advance(secs(1));
    let order: Vec<_> = queue.list(9).iter().map(|m| **m).collect();
    assert_eq!(order, [202, 101, 102, 1]);
    assert_eq!(ready(&queue), order);
}

#[test]
fn overflow_throws_the_oldest_of_the_lowest_away() {
    let (_broker, _simulation, queue) = queue(|q| q.capacity(3).overflow(Overflow::DropOldest));
    queue.send_batch([301, 1, 102].map(of)).unwrap();
    queue.send(of(303)).unwrap();
    queue.send(of(304)).unwrap();
    assert_eq!((ready(&queue), queue.stats().dropped), (vec![301, 303, 304], 2));
    is_conserved(&queue);
}

#[test]
fn overflow_never_throws_a_higher_one_away_for_a_lower() {
    let (broker, _simulation, queue) = queue(|q| q.capacity(3).overflow(Overflow::DropOldest));
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    queue.send_batch([301, 202, 203].map(of)).unwrap();
    assert_eq!(topic.publish("k", of(104)).unwrap().routed(), 0, "lower than all: itself");
    assert_eq!(queue.stats().dropped, 1);
    assert_eq!(topic.publish("k", of(205)).unwrap().routed(), 1, "as low as the lowest: the oldest of those");
    queue.send(of(306)).unwrap();
    queue.send(Message::new(999).with_priority(255)).unwrap();
    queue.send(of(207)).unwrap();
    assert_eq!((ready(&queue), queue.stats().dropped), (vec![301, 306, 999], 5));
    is_conserved(&queue);
}

#[test]
fn overflow_throws_no_redelivery_away_since_that_makes_no_room() {
    let (_broker, _simulation, queue) = queue(|q| q.capacity(2).overflow(Overflow::DropOldest));
    queue.send_batch([1, 2].map(of)).unwrap();
    queue.recv().unwrap().requeue().unwrap();
    queue.send(of(3)).unwrap();
    queue.send(of(4)).unwrap();
    queue.send(of(5)).unwrap();
    // 1 came back and takes no room; of the fresh ones there are never more than two.
    assert_eq!((ready(&queue), queue.stats().dropped), (vec![1, 4, 5], 2));
    is_conserved(&queue);
}

#[test]
fn times_limits_and_batches_keep_the_order_of_the_levels() {
    let (_broker, simulation, queue) = queue(|q| q.max_in_flight(3).expired(Expired::Drop));
    queue.send(of(301).with_ttl(secs(1))).unwrap();
    queue.send(of(302).with_delay(secs(2))).unwrap();
    queue.send(of(203).with_ttl(secs(9))).unwrap();
    queue.send_batch([4, 105].map(of)).unwrap();
    simulation.advance(secs(2));
    let batch = queue.recv_batch(10).unwrap();
    assert_eq!(batch.iter().map(|m| **m).collect::<Vec<_>>(), [302, 203, 105]);
    assert!(queue.try_recv().is_err());
    batch.ack().unwrap();
    assert_eq!(ready(&queue), [4]);
    is_conserved(&queue);
}

#[test]
fn one_worker_handles_them_by_level_through_failures() {
    let (_broker, simulation, queue) = queue(|q| q.retry(Retry::immediate(2)));
    let came = Arc::new(Mutex::new(Vec::new()));
    let log = came.clone();
    let handler = move |message: &Message<u32>| {
        log.lock().unwrap().push(**message);
        if message.attempt() == 1 { Err(std::io::Error::other("once")) } else { Ok(()) }
    };
    queue.send_batch([1, 302, 103].map(of)).unwrap();
    queue.consumer().start(handler).unwrap();
    simulation.run_until_idle();
    assert_eq!(*came.lock().unwrap(), [302, 302, 103, 103, 1, 1]);
    is_conserved(&queue);
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let (broker, _simulation) = Broker::simulated(1);
    for share in [0.0, 1.0, -0.5, f64::NAN] {
        let declared: Result<Queue<u32>, _> = broker.queue("q").low_priority_share(share).declare();
        assert!(declared.unwrap_err().to_string().contains("low_priority_share"), "{share}");
    }
    let declared: Result<Queue<u32>, _> = broker.queue("q").priority_levels(0).declare();
    assert!(declared.unwrap_err().to_string().contains("priority_levels"));
}
