//! Messages leave a queue in the order they came, and can be looked at, taken and thrown away in it.

mod common;

use common::within;
use postroom::{
    Broker, Message, Outcome, Overflow, PublishError, Queue, QueueBuilder, RecvError, Retry, SendError, Topic,
    TryRecvError,
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn queue(capacity: usize) -> Queue<u32> {
    QueueBuilder::new("q").capacity(capacity).overflow(Overflow::Reject).declare().unwrap()
}

fn payloads(messages: &[Message<u32>]) -> Vec<u32> {
    messages.iter().map(|message| *message.payload()).collect()
}

#[test]
fn one_worker_keeps_the_publish_order() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").capacity(7).declare().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        queue.consumer().start(move |m: &Message<u32>| log.lock().unwrap().push(**m)).unwrap();
        for n in 0..1000 {
            if n % 10 == 0 {
                queue.send_batch((0..10).map(|i| n * 10 + i)).unwrap();
            } else {
                (0..10).for_each(|i| {
                    queue.send(n * 10 + i).unwrap();
                });
            }
        }
        assert!(broker.shutdown(LONG).is_clean());
        assert!(seen.lock().unwrap().iter().copied().eq(0..10_000));
    });
}

#[test]
fn each_producers_messages_stay_in_their_order() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<(usize, u32)> = broker.queue("q").capacity(3).declare().unwrap();
        let topic: Topic<(usize, u32)> = broker.topic("t").declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        let seen: Arc<Mutex<[Vec<u32>; 4]>> = Arc::default();
        let log = Arc::clone(&seen);
        queue.consumer().start(move |m: &Message<(usize, u32)>| log.lock().unwrap()[m.0].push(m.1)).unwrap();
        let producers = [0, 1, 2, 3].map(|producer| {
            let topic = topic.clone();
            thread::spawn(move || {
                (0..500).for_each(|n| {
                    topic.publish("k", (producer, n)).unwrap();
                })
            })
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert!(broker.shutdown(LONG).is_clean());
        assert!(seen.lock().unwrap().iter().all(|numbers| numbers.iter().copied().eq(0..500)));
    });
}

#[test]
fn a_retry_comes_ahead_of_fresh_messages() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let handler = move |m: &Message<u32>| {
        log.lock().unwrap().push(**m);
        if **m == 1 && m.attempt() == 1 { Outcome::Retry } else { Outcome::Ack }
    };
    queue.consumer().start(handler).unwrap();
    queue.send_batch(0..4).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 1, 2, 3]);
}

#[test]
fn peeking_and_listing_take_nothing() {
    let queue = queue(1000);
    assert!(queue.peek().is_none() && queue.list(9).is_empty());
    queue.send_batch(0..700).unwrap();
    drop(queue.recv().unwrap().ack());
    for _ in 0..2 {
        assert_eq!(*queue.peek().unwrap().payload(), 1);
        assert_eq!(payloads(&queue.list(3)), [1, 2, 3]);
        assert!(payloads(&queue.list(9999)).into_iter().eq(1..700));
    }
    assert_eq!((queue.len(), queue.list(0).len()), (699, 0));
}

#[test]
fn peeked_messages_share_their_payload() {
    let queue = queue(9);
    queue.send(7).unwrap();
    let peeked = queue.peek().unwrap();
    assert_eq!(peeked.attempt(), 0);
    let delivery = queue.recv().unwrap();
    assert!(std::ptr::eq(peeked.payload(), delivery.payload()));
    let peeked = peeked.try_into_payload().unwrap_err();
    delivery.ack().unwrap();
    assert_eq!(peeked.try_into_payload().unwrap(), 7);
}

#[test]
fn purge_and_drain_empty_it_but_leave_what_is_in_flight() {
    let queue = queue(9);
    for purges in [true, false] {
        queue.send_batch(0..6).unwrap();
        let held = queue.recv().unwrap();
        queue.recv().unwrap().retry().unwrap();
        assert_eq!((queue.len(), queue.delayed(), queue.in_flight()), (4, 1, 1));
        if purges {
            assert_eq!(queue.purge(), 5);
        } else {
            assert_eq!(payloads(&queue.drain()), [2, 3, 4, 5, 1]);
        }
        assert_eq!((queue.len(), queue.delayed(), queue.in_flight()), (0, 0, 1));
        held.ack().unwrap();
        assert_eq!(queue.stats().unaccounted(), 0);
    }
    assert_eq!((queue.stats().purged, queue.stats().acked), (5, 7));
    assert_eq!(queue.send_batch(0..9).unwrap(), 9, "all the room is back");
}

#[test]
fn iterating_ends_when_the_queue_is_closed_and_empty() {
    let queue = queue(9);
    queue.send_batch(0..5).unwrap();
    queue.close();
    let all: Vec<_> = queue.iter().map(|d| (*d.payload(), d.ack().unwrap()).0).collect();
    assert_eq!(all, [0, 1, 2, 3, 4]);
    assert_eq!(queue.recv().unwrap_err(), RecvError::Closed);
    assert_eq!(queue.try_recv().unwrap_err(), TryRecvError::Closed);
    assert_eq!(queue.recv_batch(1).unwrap_err(), RecvError::Closed);
}

#[test]
fn batches_take_up_to_so_many_in_order() {
    let queue = queue(2000);
    queue.send_batch(0..1000).unwrap();
    let mut got = Vec::new();
    for max in [1, 7, 300, 0, 255, 2000] {
        let batch = queue.recv_batch(max).unwrap();
        assert!(!batch.is_empty() && batch.len() <= max.max(1));
        got.extend(batch.iter().map(|m| *m.payload()));
        batch.ack().unwrap();
    }
    while !queue.is_empty() {
        let batch = queue.recv_batch(2000).unwrap();
        got.extend(batch.iter().map(|m| *m.payload()));
        batch.ack().unwrap();
    }
    assert!(got.into_iter().eq(0..1000));
    assert_eq!((queue.stats().acked, queue.stats().unaccounted()), (1000, 0));
}

#[test]
fn a_batch_that_does_not_fit_says_how_much_did() {
    for (capacity, n) in [(3, 5), (300, 1000), (256, 257), (1, 2)] {
        let queue = queue(capacity);
        let error = queue.send_batch(0..n).unwrap_err();
        assert_eq!((error.accepted, queue.len()), (capacity, capacity));
        assert_eq!(payloads(&error.rest), (capacity as u32 + 1..n).collect::<Vec<_>>());
        assert!(error.to_string().contains(&format!("{capacity} messages taken")), "{error}");
        assert!(matches!(&error.cause, SendError::Full(_)));
        assert_eq!(error.cause.into_message().try_into_payload().unwrap(), capacity as u32);
        assert!(payloads(&queue.list(9999)).into_iter().eq(0..capacity as u32));
    }
}

#[test]
fn a_published_batch_that_does_not_fit_says_how_much_did() {
    for targets in [1, 2] {
        let broker = Broker::new();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let queues: Vec<Queue<u32>> = (0..targets)
            .map(|n| broker.queue(format!("q{n}")).capacity(300).overflow(Overflow::Reject).declare().unwrap())
            .collect();
        queues.iter().for_each(|queue| topic.bind(queue, "#").unwrap());
        let error = topic.publish_batch("k", 0..1000).unwrap_err();
        assert_eq!((error.accepted, error.rest.len()), (300, 699));
        assert!(matches!(error.cause, PublishError::Full(_)));
        assert!(queues.iter().all(|queue| queue.len() == 300));
        assert_eq!(topic.stats().published, 300);
    }
}

#[test]
fn an_empty_batch_is_no_batch() {
    let queue = queue(1);
    assert_eq!(queue.send_batch(Vec::<u32>::new()).unwrap(), 0);
    queue.send(1).unwrap();
    assert_eq!(queue.send_batch(Vec::<u32>::new()).unwrap(), 0);
}

#[test]
fn a_message_sent_again_starts_afresh() {
    let queue = queue(9);
    queue.send(1).unwrap();
    queue.recv().unwrap().requeue().unwrap();
    let out = queue.drain().remove(0);
    queue.send(out).unwrap();
    let again = queue.recv().unwrap();
    assert_eq!((again.attempt(), again.redelivered()), (1, false));
    again.ack().unwrap();
}

#[test]
fn a_batch_that_was_sent_as_one_comes_as_one() {
    let queue = queue(1000);
    let send = |n: u32| _ = queue.send_batch(0..n).unwrap();
    let take = |max| {
        let batch = queue.recv_batch(max).unwrap();
        let numbers: Vec<u32> = batch.iter().map(|message| **message).collect();
        batch.ack().unwrap();
        numbers.len()
    };
    [40, 64, 64, 64].into_iter().for_each(send);
    assert_eq!([take(64), take(64), take(64), take(64)], [40, 64, 64, 64], "rather than 64 of two each");
    [40, 64, 64].into_iter().for_each(send);
    assert_eq!([take(100), take(100)], [100, 68], "where they have to be split anyway");
}

#[test]
fn what_alone_is_set_on_a_message_comes_along_to_an_empty_queue() {
    let queue = queue(1);
    let set = [
        Message::new(1),
        Message::new(2).with_id(77),
        Message::new(3).with_key("user-7"),
        Message::new(4).with_header("tenant", "acme"),
        Message::new(5).with_priority(3),
        Message::new(6).with_ttl(LONG),
    ];
    for message in set {
        let (given, payload) = (message.id().get(), *message.payload());
        let asked = (message.key().map(String::from), message.header("tenant").map(String::from), message.priority());
        let id = queue.send(message).unwrap();
        assert!(given == 0 && id.get() > 0 || id.get() == given);
        let delivery = queue.try_recv().unwrap();
        assert_eq!((delivery.id(), *delivery.payload(), delivery.attempt()), (id, payload, 1));
        let got = (delivery.key().map(String::from), delivery.header("tenant").map(String::from), delivery.priority());
        assert_eq!(got, asked);
        assert_eq!(delivery.expires_at().is_some(), payload == 6);
        delivery.ack().unwrap();
    }
    assert_eq!((queue.stats().acked, queue.stats().unaccounted()), (6, 0));
}
