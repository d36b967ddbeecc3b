//! A queue holds no more than its capacity; its overflow policy says what happens to the rest.

mod common;

use common::{eventually, within};
use postroom::{
    Broker, Event, ManualClock, Message, Overflow, Queue, QueueBuilder, Reason, Retry, SendError, SendTimeoutError,
    Topic, TrySendError,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);

fn of(capacity: usize, overflow: Overflow) -> Queue<u32> {
    QueueBuilder::new("q").capacity(capacity).overflow(overflow).retry(Retry::immediate(9)).declare().unwrap()
}

fn contents(queue: &Queue<u32>) -> Vec<u32> {
    queue.list(99).iter().map(|message| *message.payload()).collect()
}

#[test]
fn reject_gives_the_message_back_in_every_form() {
    let queue = of(1, Overflow::Reject);
    queue.send(1).unwrap();
    assert!(matches!(queue.send(2), Err(SendError::Full(_))));
    assert!(matches!(queue.try_send(3), Err(TrySendError::Full(_))));
    let error = queue.send_timeout(4, LONG).unwrap_err();
    assert!(matches!(error, SendTimeoutError::Full(_)));
    assert_eq!(error.into_message().try_into_payload().unwrap(), 4);
    assert_eq!((contents(&queue), queue.stats().refused), (vec![1], 3));
}

#[test]
fn drop_oldest_keeps_the_latest() {
    let queue = of(3, Overflow::DropOldest);
    (0..10).for_each(|n| assert!(queue.send(n).is_ok()));
    assert_eq!((contents(&queue), queue.stats().dropped, queue.stats().unaccounted()), (vec![7, 8, 9], 7, 0));
}

#[test]
fn drop_newest_keeps_the_first() {
    let queue = of(3, Overflow::DropNewest);
    (0..10).for_each(|n| assert!(queue.try_send(n).is_ok()));
    assert_eq!((contents(&queue), queue.stats().dropped, queue.stats().unaccounted()), (vec![0, 1, 2], 7, 0));
}

#[test]
fn overflow_becomes_dead_letters_until_those_are_full_too() {
    let broker = Broker::new();
    let dead = broker.queue("graves").capacity(2).overflow(Overflow::Reject).declare().unwrap();
    let builder = broker.queue("q").capacity(1).overflow(Overflow::DeadLetter);
    let queue: Queue<u32> = builder.dead_letter_to(&dead).declare().unwrap();
    (0..3).for_each(|n| assert!(queue.send(n).is_ok()));
    assert!(matches!(queue.send(3), Err(SendError::Full(_))));
    assert_eq!(contents(&queue), [0]);
    let letter = dead.recv().unwrap();
    assert_eq!((letter.reason(), ****letter, letter.error()), (&Reason::Overflow, 1, None));
    assert_eq!((queue.stats().dead_lettered, queue.stats().refused, queue.stats().unaccounted()), (2, 1, 0));
}

#[test]
fn wait_blocks_until_there_is_room() {
    within(LONG, || {
        let queue = of(1, Overflow::Wait);
        queue.send(1).unwrap();
        assert!(matches!(queue.try_send(2), Err(TrySendError::Full(_))));
        let (sender, sent) = (queue.clone(), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&sent);
        let blocked = thread::spawn(move || {
            sender.send(2).unwrap();
            flag.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(30));
        assert!(!sent.load(Ordering::SeqCst));
        let delivery = queue.recv().unwrap();
        blocked.join().unwrap();
        assert_eq!(contents(&queue), [2]);
        delivery.ack().unwrap();
    });
}

#[test]
fn send_timeout_gives_up_in_time() {
    let queue = of(1, Overflow::Wait);
    queue.send(1).unwrap();
    let (start, limit) = (Instant::now(), Duration::from_millis(30));
    assert!(matches!(queue.send_timeout(2, limit), Err(SendTimeoutError::Timeout(_))));
    assert!(start.elapsed() >= limit);
    assert!(matches!(queue.send_timeout(2, Duration::ZERO), Err(SendTimeoutError::Timeout(_))));
}

#[test]
fn a_redelivery_needs_no_capacity() {
    let queue = of(1, Overflow::Wait);
    queue.send(1).unwrap();
    let first = queue.recv().unwrap();
    queue.send(2).unwrap();
    first.retry().unwrap();
    assert_eq!(contents(&queue), [1, 2]);
    queue.recv().unwrap().requeue().unwrap();
    assert_eq!(contents(&queue), [2, 1]);
    assert!(matches!(queue.try_send(3), Err(TrySendError::Full(_))));
}

/// What was given back holds no capacity, so throwing it away makes no room for a fresh message either.
#[test]
fn drop_oldest_stays_bounded_beside_redeliveries() {
    let queue = of(1, Overflow::DropOldest);
    let mut hands = Vec::new();
    for n in 0..10 {
        queue.send(n).unwrap();
        hands.push(queue.recv().unwrap());
    }
    hands.into_iter().for_each(|delivery| delivery.requeue().unwrap());
    (10..40).for_each(|n| assert!(queue.send(n).is_ok()));
    let fresh = contents(&queue).into_iter().filter(|n| *n >= 10).count();
    assert_eq!(fresh, 1, "fresh messages in a queue with a capacity of 1: {:?}", contents(&queue));
    assert_eq!(queue.stats().unaccounted(), 0);
}

fn hammer(overflow: Overflow, direct: bool, fan_out: bool) {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").capacity(1).overflow(overflow).declare().unwrap();
    let other: Queue<u32> = broker.queue("other").capacity(1).overflow(overflow).declare().unwrap();
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    [&queue, &other].into_iter().for_each(|queue| topic.bind(queue, "#").unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for n in 0..3_u32 {
        let (queue, topic) = (queue.clone(), topic.clone());
        threads.push(thread::spawn(move || {
            for i in 0..300 {
                if direct && (n + i) % 2 == 0 || !fan_out {
                    let _ = queue.try_send(i);
                } else {
                    let _ = topic.try_publish("k", i);
                }
            }
        }));
    }
    while threads.iter().any(|thread| !thread.is_finished()) {
        over.fetch_or(queue.len() > 1 || other.len() > 1, Ordering::SeqCst);
        queue.try_recv().into_iter().for_each(|delivery| delivery.ack().unwrap());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!over.load(Ordering::SeqCst), "{overflow:?}: more than its capacity");
    assert!(queue.len() <= 1 && other.len() <= 1, "{overflow:?}: {} {}", queue.len(), other.len());
    assert_eq!((queue.stats().unaccounted(), other.stats().unaccounted()), (0, 0), "{overflow:?}");
}

const POLICIES: [Overflow; 5] =
    [Overflow::Wait, Overflow::Reject, Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter];

#[test]
fn concurrent_senders_never_exceed_the_capacity() {
    within(LONG, || POLICIES.into_iter().for_each(|policy| hammer(policy, true, false)));
}

#[test]
fn concurrent_publishers_to_several_queues_never_exceed_the_capacity() {
    within(LONG, || POLICIES.into_iter().for_each(|policy| hammer(policy, false, true)));
}

#[test]
fn senders_and_publishers_together_never_exceed_the_capacity() {
    within(LONG, || POLICIES.into_iter().for_each(|policy| hammer(policy, true, true)));
}

#[test]
fn many_blocked_producers_all_get_through() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
        queue.consumer().workers(2).start(|_: &Message<u32>| ()).unwrap();
        let senders: Vec<_> = (0..8).map(|_| queue.clone()).collect();
        let threads: Vec<_> =
            senders.into_iter().map(|q| thread::spawn(move || q.send_batch(0..100).unwrap())).collect();
        assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 800);
        eventually("all handled", || queue.stats().acked == 800);
        assert!(broker.shutdown(LONG).is_clean());
    });
}

#[test]
fn the_owner_hears_of_drops_the_first_time_and_at_each_doubling() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let broker = Broker::builder().on_event(move |event| log.lock().unwrap().push(event.clone())).build().unwrap();
    let queue: Queue<u32> = broker.queue("q").capacity(1).overflow(Overflow::DropNewest).declare().unwrap();
    (0..10).for_each(|n| assert!(queue.send(n).is_ok()));
    let expected = [1, 2, 4, 8].map(|total| Event::Dropped { queue: "q".into(), total });
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[test]
fn max_in_flight_bounds_what_is_handed_out() {
    let queue: Queue<u32> = QueueBuilder::new("q").max_in_flight(2).retry(Retry::immediate(9)).declare().unwrap();
    queue.send_batch(0..5).unwrap();
    let mut batch = queue.recv_batch(5).unwrap();
    assert_eq!((batch.len(), queue.in_flight(), queue.try_recv().is_err()), (2, 2, true));
    batch.next().unwrap().retry().unwrap();
    assert_eq!(*queue.try_recv().unwrap().payload(), 0);
    batch.ack().unwrap();
    assert_eq!(queue.recv_batch(9).unwrap().len(), 2);
}

#[test]
fn each_ack_lets_one_more_be_in_flight() {
    let queue: Queue<u32> = QueueBuilder::new("q").max_in_flight(1).declare().unwrap();
    (0..5).for_each(|n| _ = queue.send(n).unwrap());
    for n in 0..5 {
        let delivery = queue.try_recv().unwrap();
        assert_eq!((*delivery.payload(), queue.try_recv().is_err()), (n, true));
        delivery.ack().unwrap();
    }
}

#[test]
fn on_a_manual_clock_each_of_several_waits_for_room_times_out() {
    for _ in 0..20 {
        let clock = ManualClock::new();
        let broker = Broker::builder().clock(clock.clone()).build().unwrap();
        let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
        queue.send(0).unwrap();
        let waits: Vec<_> = [3, 1, 2]
            .map(|seconds| {
                let queue = queue.clone();
                thread::spawn(move || queue.send_timeout(1, Duration::from_secs(seconds)).unwrap_err())
            })
            .into();
        eventually("all of them end", || {
            clock.advance(Duration::from_millis(100));
            waits.iter().all(thread::JoinHandle::is_finished)
        });
        waits.into_iter().for_each(|wait| assert!(matches!(wait.join().unwrap(), SendTimeoutError::Timeout(_))));
    }
}
