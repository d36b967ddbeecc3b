//! A delivery that is not settled in time is taken back, once, and whoever settles it later hears of it.

#![cfg(not(shuttle))]

mod common;

use common::{eventually, within};
use postroom::{
    Broker, CircuitBreaker, Event, ManualClock, Message, Queue, QueueBuilder, Retry, SettleError, Simulation,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

const NANO: Duration = Duration::from_nanos(1);

fn queue(settings: impl FnOnce(QueueBuilder<u32>) -> QueueBuilder<u32>) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").ack_timeout(secs(10)).retry(Retry::immediate(2));
    let queue = settings(builder).declare().unwrap();
    (broker, simulation, queue)
}

fn is_conserved(queue: &Queue<u32>) {
    assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats());
}

fn is_late(result: Result<(), SettleError>) -> bool {
    matches!(result, Err(SettleError::Late { .. }))
}

#[test]
fn it_comes_again_at_its_time_with_the_attempt_raised() {
    let (_broker, simulation, queue) = queue(|q| q);
    queue.send(1).unwrap();
    let first = queue.recv().unwrap();
    simulation.advance(secs(10) - NANO);
    assert_eq!((queue.len(), queue.in_flight()), (0, 1));
    simulation.advance(NANO);
    assert_eq!((queue.len(), queue.in_flight(), queue.stats().timed_out), (1, 0, 1));
    let second = queue.recv().unwrap();
    assert_eq!((second.attempt(), second.redelivered(), second.history().len()), (2, true, 1));
    assert!(second.history()[0].error.contains("ack timeout"));
    assert!(is_late(first.ack()));
    second.ack().unwrap();
    assert_eq!((queue.stats().acked, queue.stats().settled_late, queue.stats().retried), (1, 1, 1));
    is_conserved(&queue);
}

#[test]
fn every_way_to_settle_late_changes_nothing_and_is_told() {
    let events = Arc::new(Mutex::new(0));
    let log = events.clone();
    let note = move |event: &Event| *log.lock().unwrap() += usize::from(matches!(event, Event::SettledLate { .. }));
    let (broker, simulation) = Broker::builder().on_event(note).build_simulated().unwrap();
    let queue: Queue<u32> = broker.queue("q").ack_timeout(secs(1)).retry(Retry::immediate(9)).declare().unwrap();
    queue.send_batch(0..7).unwrap();
    let mut late: Vec<_> = (0..7).map(|_| queue.recv().unwrap()).collect();
    simulation.advance(secs(1));
    assert_eq!(queue.len(), 7);
    drop(late.pop());
    let mut settle = |how: &dyn Fn(postroom::Delivery<u32>) -> Result<(), SettleError>| {
        assert!(is_late(how(late.pop().unwrap())));
    };
    settle(&|d| d.ack());
    settle(&|d| d.retry());
    settle(&|d| d.retry_after(secs(5)));
    settle(&|d| d.requeue());
    settle(&|d| d.dead_letter("no"));
    settle(&|d| d.discard());
    let stats = queue.stats();
    assert_eq!((stats.ready, stats.settled_late, stats.delayed, stats.discarded, stats.requeued), (7, 7, 0, 0, 0));
    assert_eq!((queue.dead_letters().len(), *events.lock().unwrap()), (0, 7));
    is_conserved(&queue);
}

#[test]
fn a_settled_delivery_is_never_taken_back() {
    let (_broker, simulation, queue) = queue(|q| q);
    queue.send_batch(0..3).unwrap();
    queue.recv().unwrap().ack().unwrap();
    queue.recv().unwrap().discard().unwrap();
    queue.recv().unwrap().dead_letter("no").unwrap();
    assert_eq!(simulation.next_due().filter(|due| *due > secs(10)), None);
    simulation.advance(secs(100));
    assert_eq!((queue.len(), queue.stats().timed_out, queue.dead_letters().len()), (0, 0, 1));
    is_conserved(&queue);
}

#[test]
fn more_time_can_be_asked_for_until_it_is_over() {
    let (_broker, simulation, queue) = queue(|q| q);
    queue.send(1).unwrap();
    let delivery = queue.recv().unwrap();
    for _ in 0..5 {
        simulation.advance(secs(9));
        delivery.extend_ack(secs(10)).unwrap();
    }
    simulation.advance(secs(10));
    assert_eq!(queue.len(), 1);
    assert!(is_late(delivery.extend_ack(secs(10))));
    assert!(is_late(delivery.ack()));
}

#[test]
fn without_a_timeout_asking_for_time_does_nothing() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send(1).unwrap();
    let delivery = queue.recv().unwrap();
    delivery.extend_ack(secs(1)).unwrap();
    delivery.ack().unwrap();
}

#[test]
fn the_last_attempt_ends_among_the_dead_letters_once() {
    let (_broker, simulation, queue) = queue(|q| q.retry(Retry::immediate(2)));
    queue.send(1).unwrap();
    let mut held = Vec::new();
    for attempt in 1..=3 {
        held.push(queue.recv().unwrap());
        assert_eq!(held.last().unwrap().attempt(), attempt);
        simulation.advance(secs(10));
    }
    assert_eq!((queue.len(), queue.dead_letters().len()), (0, 1));
    assert!(held.into_iter().all(|delivery| is_late(delivery.retry())));
    assert_eq!((queue.dead_letters().len(), queue.stats().timed_out), (1, 3));
    assert_eq!(queue.dead_letters().peek().unwrap().attempts().len(), 3);
    is_conserved(&queue);
}

#[test]
fn each_message_of_a_batch_has_its_own_time() {
    let (_broker, simulation, queue) = queue(|q| q);
    queue.send_batch(0..4).unwrap();
    let mut batch = queue.recv_batch(4).unwrap();
    batch.next().unwrap().ack().unwrap();
    let extended = batch.next().unwrap();
    extended.extend_ack(secs(20)).unwrap();
    simulation.advance(secs(10));
    assert_eq!((queue.len(), queue.in_flight()), (2, 1));
    assert!(is_late(batch.ack()));
    extended.ack().unwrap();
    let again = queue.recv_batch(4).unwrap();
    assert!(again.iter().all(|message| message.attempt() == 2));
    again.ack().unwrap();
    is_conserved(&queue);
}

#[test]
fn the_limit_in_flight_is_freed_once() {
    let (_broker, simulation, queue) = queue(|q| q.max_in_flight(1));
    queue.send_batch(0..2).unwrap();
    let first = queue.recv().unwrap();
    assert!(queue.try_recv().is_err());
    simulation.advance(secs(10));
    let second = queue.recv().unwrap();
    assert!(is_late(first.ack()));
    assert!(queue.try_recv().is_err(), "a late ack frees nothing");
    second.ack().unwrap();
    queue.recv().unwrap().ack().unwrap();
    is_conserved(&queue);
}

/// Threads on a clock that stands still: however long one of them is held up, it is no later than a test says.
fn threaded() -> (Broker, ManualClock) {
    let clock = ManualClock::new();
    (Broker::builder().clock(clock.clone()).build().unwrap(), clock)
}

#[test]
fn a_handler_still_running_does_not_hinder_the_redelivery() {
    within(secs(30), || {
        let (broker, clock) = threaded();
        let builder = broker.queue("q").ack_timeout(millis(30)).retry(Retry::immediate(3));
        let queue: Queue<u32> = builder.declare().unwrap();
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let handler = move |message: &Message<u32>| {
            if message.attempt() == 1 {
                let _ = gone.lock().unwrap().recv();
                assert!(is_late(message.extend_ack(secs(1))));
            }
        };
        queue.consumer().workers(2).start(handler).unwrap();
        queue.send(1).unwrap();
        eventually("the first handling", || queue.in_flight() == 1);
        clock.advance(millis(30));
        eventually("the second handling", || queue.stats().acked == 1);
        go.send(()).unwrap();
        eventually("the late one", || queue.stats().settled_late == 1);
        assert!(broker.shutdown(secs(30)).is_clean());
        assert_eq!((queue.stats().acked, queue.stats().timed_out), (1, 1));
        is_conserved(&queue);
    });
}

#[test]
fn a_handler_that_asks_for_time_keeps_its_message() {
    within(secs(30), || {
        let (broker, clock) = threaded();
        let queue: Queue<u32> = broker.queue("q").ack_timeout(secs(10)).declare().unwrap();
        let handler = move |message: &Message<u32>| {
            for _ in 0..5 {
                message.extend_ack(secs(60)).unwrap();
                clock.advance(secs(59));
            }
        };
        queue.consumer().workers(2).start(handler).unwrap();
        queue.send(1).unwrap();
        eventually("handled", || queue.stats().acked == 1);
        assert_eq!((queue.stats().timed_out, queue.stats().delivered), (0, 1));
    });
}

#[test]
fn shutdown_meanwhile_leaves_one_copy_and_no_more() {
    within(secs(30), || {
        let (broker, clock) = threaded();
        let builder = broker.queue("q").ack_timeout(millis(20)).retry(Retry::fixed(secs(3600)));
        let queue: Queue<u32> = builder.declare().unwrap();
        queue.send_batch(0..2).unwrap();
        let [first, second] = [queue.recv().unwrap(), queue.recv().unwrap()];
        second.extend_ack(secs(3600)).unwrap();
        clock.advance(millis(20));
        eventually("taken back", || queue.delayed() == 1);
        let report = broker.shutdown(millis(50));
        assert_eq!(report.undelivered[0].total(), 2);
        assert!(is_late(first.ack()));
        assert!(matches!(second.ack(), Err(SettleError::ShutDown { .. })));
        assert_eq!((queue.len(), queue.delayed(), queue.in_flight()), (1, 1, 0));
        is_conserved(&queue);
        assert_eq!(queue.drain().len(), 2);
    });
}

#[test]
fn what_an_open_circuit_gives_back_is_not_taken_back_too() {
    within(secs(30), || {
        let (broker, clock) = threaded();
        let builder = broker.queue("q").ack_timeout(millis(50)).retry(Retry::fixed(secs(3600)));
        let queue: Queue<u32> = builder.declare().unwrap();
        let breaker = CircuitBreaker::new(4, 0.5).pause(secs(3600));
        let handler = |_: &Message<u32>| Err::<(), _>(std::io::Error::other("down"));
        queue.consumer().workers(4).circuit_breaker(breaker).start(handler).unwrap();
        queue.send_batch(0..64).unwrap();
        eventually("the circuit opens and hands are empty", || queue.delayed() >= 2 && queue.in_flight() == 0);
        clock.advance(millis(120));
        thread::sleep(millis(20));
        assert_eq!((queue.len() + queue.delayed(), queue.stats().timed_out), (64, 0));
        is_conserved(&queue);
    });
}

#[test]
fn a_copy_sent_on_has_no_part_in_the_deadline() {
    let (broker, simulation, queue) = queue(|q| q);
    let other: Queue<u32> = broker.queue("other").declare().unwrap();
    queue.send(1).unwrap();
    let delivery = queue.recv().unwrap();
    other.send((*delivery).clone()).unwrap();
    simulation.advance(secs(10));
    let copy = other.recv().unwrap();
    copy.extend_ack(secs(1)).unwrap();
    copy.ack().unwrap();
    assert!(is_late(delivery.ack()));
}

#[test]
fn every_message_is_settled_in_time_once_whoever_is_slow() {
    within(secs(60), || {
        const MESSAGES: u32 = 400;
        let broker = Broker::new();
        let builder = broker.queue("q").ack_timeout(millis(5)).retry(Retry::immediate(100));
        let queue: Queue<u32> = builder.declare().unwrap();
        let (calls, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(BTreeMap::new())));
        let (count, log) = (calls.clone(), seen.clone());
        let handler = move |message: &Message<u32>| {
            if count.fetch_add(1, Ordering::SeqCst) % 20 == 0 {
                thread::sleep(millis(8));
            }
            *log.lock().unwrap().entry(**message).or_insert(0) += 1;
        };
        queue.consumer().workers(4).start(handler).unwrap();
        queue.send_batch(0..MESSAGES).unwrap();
        eventually("all settled", || queue.stats().acked == u64::from(MESSAGES) && queue.in_flight() == 0);
        assert!(broker.shutdown(secs(30)).is_clean());
        let stats = queue.stats();
        let handled: usize = seen.lock().unwrap().values().sum();
        assert_eq!(handled as u64, stats.acked + stats.settled_late);
        assert_eq!(stats.timed_out, stats.settled_late);
        is_conserved(&queue);
    });
}
