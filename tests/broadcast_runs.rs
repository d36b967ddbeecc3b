//! Handlers read what stands together in one go, and where nobody else reads, the messages stand there as they are:
//! neither shows.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::{ON_PURPOSE, eventually, quiet};
use postroom::{Broker, Event, Lag, Message, MessageId, Subscription, Topic};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

/// A handler that notes what it sees, and waits at the first message until it is let go.
struct Gated {
    subscription: Subscription,
    seen: Arc<Mutex<Vec<u32>>>,
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Gated {
    fn start(topic: &Topic<u32>, lag: Lag, capacity: usize, then: impl Fn(u32) + Send + Sync + 'static) -> Self {
        let ((arrive, arrived), (go, gate)) = (channel(), channel());
        let (seen, gate) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(gate));
        let noted = Arc::clone(&seen);
        let handler = move |n: &Message<u32>| {
            noted.lock().unwrap().push(**n);
            if **n == 0 {
                arrive.send(()).unwrap();
                gate.lock().unwrap().recv().unwrap();
            }
            then(**n);
        };
        let subscription = topic.subscribe().lag(lag).capacity(capacity).start(handler).unwrap();
        Self { subscription, seen, arrived, go }
    }

    fn seen(&self) -> Vec<u32> {
        self.seen.lock().unwrap().clone()
    }
}

fn topic(broker: &Broker) -> Topic<u32> {
    broker.topic("numbers").declare().unwrap()
}

fn publish(topic: &Topic<u32>, numbers: std::ops::Range<u32>) -> Vec<MessageId> {
    numbers.map(|n| topic.publish("n", n).unwrap().id()).collect()
}

#[test]
fn a_panic_in_a_run_costs_only_its_message() {
    quiet();
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&told);
    let broker = Broker::builder()
        .on_event(move |event| {
            if let Event::HandlerPanicked { message, .. } = event {
                events.lock().unwrap().push(*message);
            }
        })
        .build()
        .unwrap();
    let topic = topic(&broker);
    let gated = Gated::start(&topic, Lag::Block, 1024, |n| assert!(n % 7 != 3, "{ON_PURPOSE}"));
    let ids = publish(&topic, 0..300);
    gated.arrived.recv_timeout(LONG).unwrap();
    gated.go.send(()).unwrap();
    assert!(broker.wait_idle(LONG));
    assert_eq!(gated.seen(), (0..300).collect::<Vec<_>>());
    let failed: Vec<_> = ids.into_iter().skip(3).step_by(7).collect();
    assert_eq!((*told.lock().unwrap()).clone(), failed);
    assert_eq!(gated.subscription.panicked(), failed.len() as u64);
}

#[test]
fn a_handler_that_is_stopped_in_a_run_finishes_the_message_in_hand() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let handle: Arc<Mutex<Option<Subscription>>> = Arc::default();
    let own = Arc::clone(&handle);
    let gated = Gated::start(&topic, Lag::Block, 1024, move |n| {
        if n == 5 {
            own.lock().unwrap().take().unwrap().stop();
        }
    });
    *handle.lock().unwrap() = Some(gated.subscription.clone());
    publish(&topic, 0..100);
    gated.arrived.recv_timeout(LONG).unwrap();
    gated.go.send(()).unwrap();
    eventually("its thread has left", || !gated.subscription.is_running());
    assert_eq!(gated.seen(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn what_is_left_of_a_run_counts_as_waiting() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let ((arrive, arrived), (go, gate)) = (channel(), channel());
    let gate = Mutex::new(gate);
    let gated = Gated::start(&topic, Lag::Block, 1024, move |n| {
        if n == 10 {
            arrive.send(()).unwrap();
            gate.lock().unwrap().recv().unwrap();
        }
    });
    publish(&topic, 0..60);
    gated.arrived.recv_timeout(LONG).unwrap();
    assert_eq!(gated.subscription.backlog(), 60);
    gated.go.send(()).unwrap();
    arrived.recv_timeout(LONG).unwrap();
    assert_eq!(gated.subscription.backlog(), 50, "the one in hand counts");
    go.send(()).unwrap();
    assert!(broker.wait_idle(LONG));
    assert_eq!(gated.subscription.backlog(), 0);
}

#[test]
fn a_handler_that_is_cut_off_in_a_run_gets_nothing_more() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let gated = Gated::start(&topic, Lag::Disconnect, 64, |_| {});
    // An eighth of its capacity, which it takes at once.
    topic.publish_batch("n", 0..8).unwrap();
    gated.arrived.recv_timeout(LONG).unwrap();
    publish(&topic, 8..200);
    gated.go.send(()).unwrap();
    eventually("its thread has left", || !gated.subscription.is_running());
    assert_eq!(gated.seen(), [0]);
}

/// Its copies are counted.
struct Counted(u32, Arc<AtomicUsize>);

impl Counted {
    fn new(n: u32, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(n, Arc::clone(alive))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
        assert!(self.0 >= 900 || self.0 % 10 != 7, "{ON_PURPOSE}");
    }
}

#[test]
fn whoever_comes_late_receives_what_only_handlers_have_read_and_may_keep_it() {
    quiet();
    let alive = Arc::new(AtomicUsize::new(0));
    let broker = Broker::new();
    let topic: Topic<Counted> = broker.topic("counted").declare().unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: &Message<Counted>| _ = count.fetch_add(1, Ordering::SeqCst);
    topic.subscribe().capacity(100).lag(Lag::Block).start(handler).unwrap();
    let publish = |n: u32| topic.publish("n", Message::new(Counted::new(n, &alive)).with_header("n", n.to_string()));
    let ids: Vec<_> = (0..1000).map(|n| publish(n).unwrap().id()).collect();
    let late = topic.subscribe().capacity(100).replay_last(50).open().unwrap();
    (1000..1020).for_each(|n| _ = publish(n).unwrap());
    let got: Vec<_> = (950..1020).map(|_| late.try_recv().unwrap()).collect();
    assert!(late.try_recv().is_err());
    for (n, message) in (950..).zip(&got) {
        assert_eq!((message.payload().0, message.header("n")), (n, Some(&*n.to_string())));
        assert!(ids.get(n as usize).is_none_or(|id| *id == message.id()));
    }
    drop(late);
    assert!(broker.wait_idle(LONG));
    assert_eq!(handled.load(Ordering::SeqCst), 1020);
    broker.shutdown(LONG);
    drop((topic, broker));
    assert_eq!((got[5].payload().0, got[69].payload().0), (955, 1019));
    drop(got);
    eventually("every payload is gone", || alive.load(Ordering::SeqCst) == 0);
}

#[test]
fn who_reads_along_by_hand_changes_nothing_for_handlers() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let other: Topic<u32> = broker.topic("others").declare().unwrap();
    topic.bind(&other, "#").unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    topic.subscribe().lag(Lag::Block).start(move |n| noted.lock().unwrap().push(**n)).unwrap();
    let mut n = 0;
    for round in 0..40 {
        // By another way while the other topic has a subscriber as well, and with one who reads by hand.
        let elsewhere = (round % 3 == 0).then(|| other.subscribe().lag(Lag::Block).start(|_| {}).unwrap());
        let by_hand = (round % 2 == 0).then(|| topic.subscribe().open().unwrap());
        publish(&topic, n..n + 5 + round);
        topic.publish_batch("n", n + 5 + round..n + 10 + 7 * round).unwrap();
        let numbers: Vec<_> = (n..n + 10 + 7 * round).collect();
        if let Some(subscriber) = by_hand {
            let got = subscriber.recv_batch(1000).unwrap();
            assert_eq!(got.iter().map(|message| ***message).collect::<Vec<_>>(), numbers);
        }
        elsewhere.iter().for_each(Subscription::stop);
        n += 10 + 7 * round;
    }
    assert!(broker.wait_idle(LONG));
    assert_eq!(*seen.lock().unwrap(), (0..n).collect::<Vec<_>>());
}
