//! Workers: how many, when they take, when they leave, and what they call.

mod common;

use common::{eventually, within};
use postroom::{Broker, Consumer, Message, Outcome, Queue, Reason, Retry};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
const MILLI: Duration = Duration::from_millis(1);

/// Holds every handler that comes until it is opened, and knows how many are in there.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        let now = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        drop(open);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

fn gated(broker: &Broker, workers: usize) -> (Queue<u32>, Consumer, Arc<Gate>) {
    let queue: Queue<u32> = broker.queue("gated").declare().unwrap();
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let consumer = queue.consumer().workers(workers).start(move |_: &Message<u32>| held.pass()).unwrap();
    (queue, consumer, gate)
}

#[test]
fn as_many_messages_are_handled_at_once_as_there_are_workers() {
    within(LONG, || {
        let broker = Broker::new();
        let (queue, consumer, gate) = gated(&broker, 3);
        queue.send_batch(0..10).unwrap();
        eventually("three are busy", || gate.inside() == 3);
        thread::sleep(MILLI * 5);
        assert_eq!((gate.inside(), consumer.workers(), queue.len(), queue.in_flight()), (3, 3, 7, 3));
        gate.open();
        assert!(broker.shutdown(LONG).is_clean());
    });
}

#[test]
fn worker_threads_bear_the_queues_name_and_a_number() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("orders").declare().unwrap();
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&names);
        // Each keeps its message until the other has one too.
        let both = Barrier::new(2);
        let handler = move |_: &Message<u32>| {
            seen.lock().unwrap().insert(thread::current().name().unwrap().to_owned());
            both.wait();
        };
        let consumer = queue.consumer().workers(2).start(handler).unwrap();
        queue.send_batch(0..50).unwrap();
        assert!(broker.wait_idle(LONG));
        consumer.stop();
        let names: Vec<_> = names.lock().unwrap().iter().cloned().collect();
        assert_eq!(names, ["orders-0", "orders-1"]);
    });
}

#[test]
fn zero_workers_are_refused() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let error = queue.consumer().workers(0).start(|_: &Message<u32>| ()).unwrap_err();
    assert!(error.to_string().contains("0 workers"), "{error}");
    let error = queue.consumer().workers(0).start_batch(0, MILLI, |_: &[Message<u32>]| ()).unwrap_err();
    assert_eq!(error.problems().len(), 2);
    let consumer = queue.consumer().start(|_: &Message<u32>| ()).unwrap();
    assert!(consumer.scale_to(0).is_err());
    assert_eq!(consumer.workers(), 1);
    consumer.stop();
    assert!(consumer.scale_to(2).is_err());
}

#[test]
fn scaling_up_and_down_while_busy() {
    within(LONG, || {
        let broker = Broker::new();
        let (queue, consumer, gate) = gated(&broker, 1);
        queue.send_batch(0..20).unwrap();
        eventually("one is busy", || gate.inside() == 1);
        consumer.scale_to(6).unwrap();
        eventually("six are busy", || gate.inside() == 6);
        consumer.scale_to(2).unwrap();
        assert_eq!((gate.inside(), consumer.workers()), (6, 2));
        gate.open();
        assert!(broker.wait_idle(LONG));
        assert_eq!(queue.stats().acked, 20);
        // From now on at most two at once.
        *gate.open.lock().unwrap() = false;
        gate.most.store(0, Ordering::SeqCst);
        queue.send_batch(0..20).unwrap();
        eventually("two are busy", || gate.inside() == 2);
        thread::sleep(MILLI * 10);
        assert_eq!(gate.most.load(Ordering::SeqCst), 2);
        gate.open();
        assert!(broker.shutdown(LONG).is_clean());
    });
}

#[test]
fn scaling_wildly_under_load_loses_nothing() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").capacity(2).declare().unwrap();
        let consumer = queue.consumer().start(|_: &Message<u32>| ()).unwrap();
        let scaling = consumer.clone();
        let scaler = thread::spawn(move || (0..60).for_each(|n| scaling.scale_to(1 + n % 5).unwrap()));
        let pausing = consumer.clone();
        let pauser = thread::spawn(move || (0..60).for_each(|_| (pausing.pause(), pausing.resume()).0));
        queue.send_batch(0..2000).unwrap();
        scaler.join().unwrap();
        pauser.join().unwrap();
        assert!(broker.wait_idle(LONG));
        assert_eq!(queue.stats().acked, 2000);
        assert!(broker.shutdown(LONG).is_clean());
    });
}

#[test]
fn a_paused_consumer_takes_nothing_until_it_is_resumed() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let consumer = queue.consumer().workers(2).start(|_: &Message<u32>| ()).unwrap();
        consumer.pause();
        // A worker "just taking" one when it was paused may still handle it, whenever it goes on.
        (0..12).for_each(|n| _ = queue.send(n).unwrap());
        thread::sleep(MILLI * 20);
        assert!(queue.stats().acked <= 2, "{:?}", queue.stats());
        consumer.resume();
        eventually("all handled", || queue.stats().acked == 12);
        consumer.pause();
        consumer.stop();
    });
}

#[test]
fn stop_finishes_what_is_in_hand_and_leaves_the_rest() {
    within(LONG, || {
        let broker = Broker::new();
        let (queue, consumer, gate) = gated(&broker, 2);
        queue.send_batch(0..10).unwrap();
        eventually("two are busy", || gate.inside() == 2);
        let stopping = consumer.clone();
        let stop = thread::spawn(move || stopping.stop());
        eventually("the stop is ordered", || consumer.scale_to(2).is_err());
        assert!(!stop.is_finished(), "it waits for what is in hand");
        gate.open();
        stop.join().unwrap();
        assert_eq!((queue.stats().acked, queue.len(), queue.in_flight()), (2, 8, 0));
        consumer.stop();
        queue.consumer().start(|_: &Message<u32>| ()).unwrap();
        assert!(broker.wait_idle(LONG));
        assert_eq!(queue.stats().acked, 10);
    });
}

#[test]
fn stop_from_inside_a_handler() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let slot: Arc<Mutex<Option<Consumer>>> = Arc::default();
        let me = Arc::clone(&slot);
        let handler = move |_: &Message<u32>| {
            let consumer = me.lock().unwrap().clone();
            consumer.unwrap().stop();
        };
        *slot.lock().unwrap() = Some(queue.consumer().start(handler).unwrap());
        queue.send_batch(0..3).unwrap();
        eventually("the first is acked", || queue.stats().acked == 1);
        thread::sleep(MILLI * 5);
        assert_eq!((queue.len(), queue.in_flight()), (2, 0));
        assert!(slot.lock().unwrap().as_ref().unwrap().scale_to(1).is_err());
    });
}

/// Both handlers stop their consumer at once: neither may wait for the other for ever.
#[test]
fn two_handlers_may_stop_their_consumer_at_the_same_time() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let slot: Arc<Mutex<Option<Consumer>>> = Arc::default();
        let (me, inside) = (Arc::clone(&slot), AtomicUsize::new(0));
        let handler = move |_: &Message<u32>| {
            inside.fetch_add(1, Ordering::SeqCst);
            eventually("both are inside", || inside.load(Ordering::SeqCst) == 2);
            let consumer = me.lock().unwrap().clone();
            consumer.unwrap().stop();
        };
        *slot.lock().unwrap() = Some(queue.consumer().workers(2).start(handler).unwrap());
        queue.send_batch(0..2).unwrap();
        eventually("both are acked", || queue.stats().acked == 2);
    });
}

#[test]
fn two_consumers_of_one_queue_compete() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let consumers = [0, 1].map(|_| {
            let count = Arc::clone(&count);
            queue
                .consumer()
                .start(move |_: &Message<u32>| {
                    count.fetch_add(1, Ordering::SeqCst);
                })
                .unwrap()
        });
        queue.send_batch(0..500).unwrap();
        assert!(broker.wait_idle(LONG));
        assert_eq!(count.load(Ordering::SeqCst), 500);
        consumers[0].stop();
        queue.send_batch(0..10).unwrap();
        assert!(broker.wait_idle(LONG));
        assert_eq!(count.load(Ordering::SeqCst), 510);
    });
}

type Sizes = Arc<Mutex<Vec<usize>>>;

#[test]
fn batches_are_full_or_as_old_as_the_linger() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let sizes = Sizes::default();
    let log = Arc::clone(&sizes);
    let handler = move |batch: &[Message<u32>]| log.lock().unwrap().push(batch.len());
    queue.consumer().start_batch(4, MILLI * 100, handler).unwrap();
    queue.send_batch(0..10).unwrap();
    simulation.run_until_idle();
    assert_eq!(*sizes.lock().unwrap(), [4, 4]);
    simulation.advance(MILLI * 99);
    assert_eq!(sizes.lock().unwrap().len(), 2);
    simulation.advance(MILLI);
    assert_eq!(*sizes.lock().unwrap(), [4, 4, 2]);
}

#[test]
fn batches_of_real_threads_wait_for_more_up_to_the_linger() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let sizes = Sizes::default();
        let log = Arc::clone(&sizes);
        let handler = move |batch: &[Message<u32>]| log.lock().unwrap().push(batch.len());
        queue.consumer().start_batch(3, 100 * LONG, handler).unwrap();
        (0..3).for_each(|n| {
            queue.send(n).unwrap();
            thread::sleep(MILLI * 2);
        });
        eventually("one full batch", || queue.stats().acked == 3);
        assert_eq!(*sizes.lock().unwrap(), [3]);
        // A stop cuts the lingering short, and what is in hand is handled.
        queue.send(9).unwrap();
        eventually("it is in hand", || queue.in_flight() == 1);
        let report = broker.shutdown(LONG / 2);
        assert_eq!(queue.stats().acked, 4, "{report}");
    });
}

#[test]
fn a_failing_batch_fails_for_each_of_its_messages() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    let handler = |batch: &[Message<u32>]| {
        assert!(batch.iter().all(|m| **m != 3), "on purpose");
        if batch.iter().any(|m| **m == 2) { Outcome::DeadLetter("two".into()) } else { Outcome::Ack }
    };
    common::quiet();
    queue.consumer().start_batch(1, Duration::ZERO, handler).unwrap();
    queue.send_batch(0..4).unwrap();
    simulation.run_until_idle();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.dead_lettered, stats.panicked, stats.unaccounted()), (2, 2, 2, 0));
}

#[test]
fn hooks_are_called_in_order_with_what_came_of_it() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = || {
        let log = Arc::clone(&log);
        move |line: String| log.lock().unwrap().push(line)
    };
    let (before, after, gave_up, handled) = (note(), note(), note(), note());
    let builder = queue.consumer().before(move |m| before(format!("before {}", **m)));
    let builder = builder.after(move |m, outcome| after(format!("after {} {outcome:?}", **m)));
    let builder = builder.on_give_up(move |m, reason: &Reason| gave_up(format!("gave up {} {reason}", **m)));
    let handler = move |m: &Message<u32>| {
        handled(format!("handle {}", **m));
        if **m == 0 { Outcome::Ack } else { Outcome::Retry }
    };
    builder.start(handler).unwrap();
    queue.send_batch([0, 1]).unwrap();
    simulation.run_until_idle();
    let retry = ["before 1", "handle 1", "after 1 Retry"];
    let mut expected = vec!["before 0", "handle 0", "after 0 Ack"];
    expected.extend(retry.iter().chain(&retry).chain(&["gave up 1 attempts exhausted"]));
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn a_message_and_an_idle_worker_meet_soon_whatever_the_number_of_sleepers() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
        queue.consumer().workers(6).start(|_: &Message<u32>| ()).unwrap();
        for n in 0..300 {
            queue.send(n).unwrap();
            if n % 50 == 0 {
                thread::sleep(MILLI);
            }
            assert!(broker.wait_idle(LONG / 2), "message {n} was left");
        }
    });
}

#[test]
fn a_batch_that_waits_for_company_takes_first_what_is_there() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    (0..5).for_each(|n| _ = queue.send(n).unwrap());
    (0..2).for_each(|_| _ = queue.send_batch(0..64).unwrap());
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    let handler = move |batch: &[Message<u32>]| seen.lock().unwrap().push(batch.len());
    queue.consumer().start_batch(16, MILLI * 100, handler).unwrap();
    simulation.run_until_idle();
    simulation.advance(MILLI * 200);
    assert_eq!(*sizes.lock().unwrap(), [16, 16, 16, 16, 16, 16, 16, 16, 5]);
}
