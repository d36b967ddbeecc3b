//! An accepted message stays owned by the library until it is settled, whatever user code does to it.

mod common;

use common::{Bomb, ON_PURPOSE, eventually, quiet, within};
use postroom::{
    Binding, Broker, Message, Outcome, Overflow, PublishError, Queue, QueueBuilder, Retry, Router, Topic, TryRecvError,
};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

fn failure() -> std::io::Error {
    std::io::Error::other("not yet")
}

#[test]
fn every_failure_raises_the_attempt_until_it_succeeds() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(9)).declare().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let handler = move |message: &Message<u32>| {
        log.lock().unwrap().push((message.attempt(), message.redelivered(), message.history().len()));
        match message.attempt() {
            1 => Err(failure()),
            2 => panic!("{ON_PURPOSE}"),
            _ => Ok(()),
        }
    };
    queue.consumer().start(handler).unwrap();
    queue.send(7).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [(1, false, 0), (2, true, 1), (3, true, 2)]);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.retried, stats.panicked, stats.unaccounted()), (1, 2, 1, 0));
}

#[test]
fn a_dropped_delivery_comes_back() {
    let queue: Queue<u32> = QueueBuilder::new("q").retry(Retry::immediate(1)).declare().unwrap();
    queue.send(7).unwrap();
    drop(queue.recv().unwrap());
    let again = queue.try_recv().unwrap();
    assert_eq!((again.attempt(), again.redelivered()), (2, true));
    assert_eq!(again.history()[0].error, "dropped unsettled");
    drop(again);
    assert_eq!(queue.try_recv().unwrap_err(), TryRecvError::Empty);
    assert_eq!(queue.dead_letters().len(), 1);
}

#[test]
fn a_delivery_dropped_by_a_panic_comes_back() {
    quiet();
    let queue: Queue<u32> = QueueBuilder::new("q").retry(Retry::immediate(1)).declare().unwrap();
    queue.send(7).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _delivery = queue.recv().unwrap();
        panic!("{ON_PURPOSE}");
    }));
    assert!(panicked.is_err());
    let again = queue.try_recv().unwrap();
    assert_eq!((again.attempt(), again.history()[0].error.as_str()), (2, "dropped by a panic"));
    again.ack().unwrap();
}

#[test]
fn what_a_dropped_batch_still_held_comes_back() {
    let queue: Queue<u32> = QueueBuilder::new("q").retry(Retry::immediate(1)).declare().unwrap();
    queue.send_batch(0..5).unwrap();
    let mut batch = queue.recv_batch(5).unwrap();
    batch.next().unwrap().ack().unwrap();
    drop(batch);
    let again: Vec<_> = queue.recv_batch(5).unwrap().map(|d| (*d.payload(), d.attempt())).collect();
    assert_eq!(again, [(1, 2), (2, 2), (3, 2), (4, 2)]);
}

#[test]
fn panics_never_kill_a_worker() {
    quiet();
    let report = within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").capacity(1).retry(Retry::immediate(1)).declare().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        let handler = move |message: &Message<u32>| {
            assert!(message.attempt() > 1, "{ON_PURPOSE}");
            count.fetch_add(1, Ordering::Relaxed);
        };
        let consumer = queue.consumer().workers(2).start(handler).unwrap();
        queue.send_batch(0..300).unwrap();
        assert!(broker.wait_idle(LONG));
        assert_eq!((done.load(Ordering::Relaxed), consumer.workers()), (300, 2));
        assert_eq!((queue.stats().panicked, queue.stats().acked), (300, 300));
        broker.shutdown(LONG)
    });
    assert!(report.is_clean(), "{report}");
}

/// A panic may carry a value that panics once more when it is thrown away.
#[test]
fn a_panic_that_carries_a_bomb_kills_no_worker() {
    quiet();
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
        let handler = |message: &Message<u32>| {
            if message.attempt() == 1 {
                panic_any(Bomb);
            }
        };
        queue.consumer().after(|_, _| panic_any(Bomb)).start(handler).unwrap();
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        eventually("both are handled", || queue.stats().acked == 2);
        assert!(broker.shutdown(LONG).is_clean());
    });
}

struct Silly;

impl fmt::Debug for Silly {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("{ON_PURPOSE}")
    }
}

impl fmt::Display for Silly {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("{ON_PURPOSE}")
    }
}

impl std::error::Error for Silly {}

#[test]
fn an_error_that_cannot_be_shown_counts_as_a_panic() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(2)).declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| Err::<(), _>(Silly)).unwrap();
    queue.send(1).unwrap();
    simulation.run_until_idle();
    assert_eq!((queue.stats().panicked, queue.dead_letters().len()), (3, 1));
}

#[test]
fn payloads_that_panic_when_dropped_harm_nobody() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<Bomb> = broker.topic("t").declare().unwrap();
    let queue: Queue<Bomb> = broker.queue("q").capacity(1).overflow(Overflow::DropOldest).declare().unwrap();
    topic.publish("nowhere", Bomb).unwrap();
    queue.send(Bomb).unwrap();
    queue.send(Bomb).unwrap();
    assert_eq!(queue.purge(), 1);
    let calls = AtomicUsize::new(0);
    let handler = move |_: &Message<Bomb>| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Outcome::Ack,
        _ => Outcome::Discard,
    };
    queue.consumer().start(handler).unwrap();
    for _ in 0..2 {
        queue.send(Bomb).unwrap();
        simulation.run_until_idle();
    }
    queue.send(Bomb).unwrap();
    queue.recv().unwrap().ack().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.discarded, stats.purged, stats.unaccounted()), (2, 1, 1, 0));
}

#[test]
fn a_batch_of_payloads_that_panic_when_dropped_is_acked_whole() {
    quiet();
    let queue: Queue<Bomb> = QueueBuilder::new("q").declare().unwrap();
    queue.send_batch([Bomb, Bomb, Bomb]).unwrap();
    queue.recv_batch(9).unwrap().ack().unwrap();
    assert_eq!((queue.stats().acked, queue.in_flight()), (3, 0));
}

#[test]
fn a_queue_may_be_dropped_with_a_payload_that_panics() {
    quiet();
    let queue: Queue<Bomb> = QueueBuilder::new("q").declare().unwrap();
    queue.send(Bomb).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(queue))).is_ok());
}

#[test]
fn panicking_hooks_change_nothing_but_before_counts_as_the_handlers_panic() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    let builder = queue.consumer().before(|message| assert!(message.attempt() > 1, "{ON_PURPOSE}"));
    let builder = builder.after(|_, _| panic!("{ON_PURPOSE}")).on_give_up(|_, _| panic!("{ON_PURPOSE}"));
    let even = |message: &Message<u32>| if message.is_multiple_of(2) { Ok(()) } else { Err(failure()) };
    builder.start(even).unwrap();
    queue.send_batch(0..4).unwrap();
    simulation.run_until_idle();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.dead_lettered, stats.panicked, stats.unaccounted()), (2, 2, 4, 0));
}

#[test]
fn a_panicking_retry_function_leaves_the_default_policy() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(|_: u32| panic!("{ON_PURPOSE}")).declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| Err::<(), _>(failure())).unwrap();
    queue.send(1).unwrap();
    simulation.advance(Duration::from_secs(60));
    let letter = queue.dead_letters().recv().unwrap();
    assert_eq!(letter.attempts().len(), 5);
}

#[test]
fn a_panicking_filter_gives_the_message_back_and_no_queue_has_it() {
    quiet();
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let (plain, choosy): (Queue<u32>, Queue<u32>) =
        (broker.queue("plain").declare().unwrap(), broker.queue("choosy").declare().unwrap());
    topic.bind(&plain, "#").unwrap();
    topic.bind(&choosy, Binding::filter(|n: &u32| if *n == 13 { panic!("{ON_PURPOSE}") } else { true })).unwrap();
    let error = topic.publish("k", 13).unwrap_err();
    assert!(matches!(error, PublishError::Panicked(_)), "{error}");
    assert_eq!(*error.into_message().payload(), 13);
    assert_eq!(plain.len() + choosy.len(), 0);
    assert_eq!(topic.publish("k", 14).unwrap().routed(), 2);
}

struct Nervous;

impl Router<u32> for Nervous {
    fn route(&self, message: &Message<u32>, _: &[&str], selected: &mut Vec<usize>) {
        assert!(*message.payload() != 13, "{ON_PURPOSE}");
        // Out of range and named twice: both are ignored.
        selected.extend([0, 99, 0]);
    }
}

#[test]
fn a_panicking_router_gives_the_message_back() {
    quiet();
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").router(Nervous).declare().unwrap();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "x").unwrap();
    assert!(matches!(topic.publish("k", 13), Err(PublishError::Panicked(_))));
    assert_eq!((topic.publish("k", 14).unwrap().routed(), queue.len()), (1, 1));
}

#[test]
fn a_panicking_event_hook_is_contained() {
    quiet();
    let broker = Broker::builder().on_event(|_| panic_any(ON_PURPOSE)).build().unwrap();
    let queue: Queue<u32> = broker.queue("q").capacity(1).overflow(Overflow::DropNewest).declare().unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    assert_eq!((queue.len(), queue.stats().dropped), (1, 1));
}

#[test]
fn repairing_a_letter_whose_old_payload_panics_when_dropped_loses_nothing() {
    quiet();
    let queue: Queue<Bomb> = QueueBuilder::new("q").declare().unwrap();
    queue.send(Bomb).unwrap();
    queue.recv().unwrap().dead_letter("bad").unwrap();
    let dead = queue.dead_letters();
    let _ = catch_unwind(AssertUnwindSafe(|| dead.redrive().edit(|_| Bomb).run()));
    assert_eq!(queue.len() + dead.len(), 1);
    assert_eq!((dead.in_flight(), dead.stats().unaccounted(), queue.stats().unaccounted()), (0, 0, 0));
    let _ = (queue.purge(), dead.purge());
}
