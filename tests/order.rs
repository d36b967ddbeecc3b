//! Order by key: one message of a key at a time and in publish order, whatever happens to it and however
//! many workers there are; other keys flow past one that waits.

// An allocator that counts cannot be had without it.
#![allow(unsafe_code, missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::{ON_PURPOSE, eventually, quiet, within};
use postroom::{
    Broker, Event, Exhausted, Expired, Failure, ManualClock, Message, Outcome, Overflow, PublishError, Queue,
    QueueBuilder, Rate, Reason, Retry, SendError, SendTimeoutError, SettleError, Simulation, Topic, TryRecvError,
    TrySendError,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

struct Counting;

static ALLOCATED: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as i64, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECOND: Duration = Duration::from_secs(1);

/// A message of a key, and which of them it is.
type Step = (u32, u32);

fn steps(broker: &Broker) -> QueueBuilder<Step> {
    broker.queue("steps").ordered_by(|step: &Step| step.0)
}

fn assert_conserved(queue: &Queue<Step>) {
    let stats = queue.stats();
    assert_eq!(stats.unaccounted(), 0, "{stats:?}");
}

/// A small generator, so that a failing seed can be run again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What handlers check: no two of a key at once, none out of order, none twice in a row unless it failed.
#[derive(Default)]
struct Watch {
    keys: Mutex<BTreeMap<u32, (bool, u32)>>,
    wrong: Mutex<Vec<String>>,
}

impl Watch {
    fn enters(&self, (key, n): Step) {
        let mut keys = self.keys.lock().unwrap();
        let (busy, next) = keys.entry(key).or_default();
        if *busy || n != *next {
            let text = format!("key {key}: {n} came, {next} is next, busy: {busy}");
            self.wrong.lock().unwrap().push(text);
        }
        *busy = true;
    }

    fn leaves(&self, (key, n): Step, done: bool) {
        let mut keys = self.keys.lock().unwrap();
        let (busy, next) = keys.get_mut(&key).unwrap();
        *busy = false;
        *next = n + u32::from(done);
    }

    fn assert_in_order(&self) {
        assert_eq!(*self.wrong.lock().unwrap(), Vec::<String>::new());
    }

    fn done(&self) -> BTreeMap<u32, u32> {
        self.keys.lock().unwrap().iter().map(|(key, (_, next))| (*key, *next)).collect()
    }
}

#[test]
fn a_failing_key_waits_with_its_successors_while_others_flow() {
    let (broker, simulation) = Broker::simulated(3);
    let queue = steps(&broker).retry(Retry::fixed(10 * SECOND).max_attempts(3)).declare().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let handler = move |step: &Message<Step>| {
        seen.lock().unwrap().push(**step);
        if **step == (1, 0) && step.attempt() < 3 { Err(Failure::transient("not yet")) } else { Ok(()) }
    };
    queue.consumer().workers(4).start(handler).unwrap();
    for n in 0..3 {
        (1..=2).for_each(|key| _ = queue.send((key, n)).unwrap());
    }
    simulation.run_until_idle();
    assert_eq!(queue.stats().acked, 3, "all of key 2");
    assert_eq!((queue.len(), queue.delayed(), queue.stats().keys), (2, 1, 1));
    simulation.advance(20 * SECOND);
    let of_1: Vec<u32> = order.lock().unwrap().iter().filter(|step| step.0 == 1).map(|step| step.1).collect();
    assert_eq!(of_1, [0, 0, 0, 1, 2]);
    assert_eq!((queue.stats().acked, queue.stats().keys), (6, 0));
    assert_conserved(&queue);
}

/// However a delivery ends that is not done, its message leads its key again.
#[test]
fn what_comes_back_leads_its_key() {
    type End = fn(postroom::Delivery<Step>) -> Result<(), SettleError>;
    let ends: [(&str, End, u32); 5] = [
        ("retry", |delivery| delivery.retry(), 0),
        ("retry after", |delivery| delivery.retry_after(5 * SECOND), 5),
        ("requeue", |delivery| delivery.requeue(), 0),
        ("drop", |delivery| drop_it(delivery), 0),
        ("panic", |delivery| panic_with(delivery), 0),
    ];
    quiet();
    for (name, end, wait) in ends {
        let (broker, simulation) = Broker::simulated(1);
        let queue = steps(&broker).retry(Retry::immediate(5)).declare().unwrap();
        [(1, 0), (1, 1), (2, 0)].into_iter().for_each(|step| _ = queue.send(step).unwrap());
        end(queue.recv().unwrap()).unwrap();
        let other = queue.recv().unwrap();
        assert_eq!(**other, (2, 0), "{name}: another key has its turn first");
        if wait > 0 {
            assert!(queue.try_recv().is_err(), "{name}: the next of the key does not overtake");
            simulation.advance(wait * SECOND);
        }
        let again = queue.recv().unwrap();
        assert_eq!((**again, again.redelivered()), ((1, 0), true), "{name}");
        assert_eq!(queue.try_recv().unwrap_err(), TryRecvError::Empty, "{name}");
        again.ack().unwrap();
        assert_eq!(**queue.recv().unwrap(), (1, 1), "{name}");
        other.ack().unwrap();
        assert_conserved(&queue);
    }
}

fn drop_it(delivery: postroom::Delivery<Step>) -> Result<(), SettleError> {
    drop(delivery);
    Ok(())
}

fn panic_with(delivery: postroom::Delivery<Step>) -> Result<(), SettleError> {
    let holding = std::panic::AssertUnwindSafe(move || {
        let _delivery = delivery;
        panic!("{ON_PURPOSE}");
    });
    assert!(std::panic::catch_unwind(holding).is_err());
    Ok(())
}

/// What ends for good lets the next one go.
#[test]
fn whatever_ends_a_message_lets_its_key_go_on() {
    type End = fn(postroom::Delivery<Step>);
    let ends: [(&str, End); 4] = [
        ("ack", |delivery| delivery.ack().unwrap()),
        ("discard", |delivery| delivery.discard().unwrap()),
        ("dead letter", |delivery| delivery.dead_letter("bad").unwrap()),
        ("exhausted", |delivery| delivery.retry().unwrap()),
    ];
    for (name, end) in ends {
        let (broker, _simulation) = Broker::simulated(1);
        let queue = steps(&broker).retry(Retry::none()).declare().unwrap();
        (0..2).for_each(|n| _ = queue.send((1, n)).unwrap());
        let first = queue.recv().unwrap();
        assert!(queue.try_recv().is_err());
        end(first);
        let second = queue.recv().unwrap();
        assert_eq!(second.1, 1, "{name}");
        second.ack().unwrap();
        assert_eq!(queue.stats().keys, 0, "{name}");
        assert_conserved(&queue);
    }
}

#[test]
fn an_ack_timeout_redelivers_in_order_and_a_late_ack_frees_nobody() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).ack_timeout(SECOND).retry(Retry::immediate(3)).declare().unwrap();
    (0..2).for_each(|n| _ = queue.send((1, n)).unwrap());
    let slow = queue.recv().unwrap();
    simulation.advance(SECOND);
    let again = queue.recv().unwrap();
    assert_eq!((**again, again.attempt()), ((1, 0), 2));
    assert!(matches!(slow.ack(), Err(SettleError::Late { .. })));
    assert!(queue.try_recv().is_err(), "the key is busy with the second delivery");
    again.ack().unwrap();
    let last = queue.recv().unwrap();
    assert_eq!(last.1, 1);
    last.ack().unwrap();
    assert_eq!(queue.stats().keys, 0);
    assert_conserved(&queue);
}

#[test]
fn a_hot_key_does_not_starve_cold_ones() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue = steps(&broker).capacity(100_000).declare().unwrap();
    (0..20_000).for_each(|n| _ = queue.send((0, n)).unwrap());
    (1..=10_000).for_each(|key| _ = queue.send((key, 0)).unwrap());
    let mut hot = 0;
    for _ in 0..10_002 {
        let delivery = queue.recv().unwrap();
        hot += u32::from(delivery.0 == 0);
        delivery.ack().unwrap();
    }
    assert!((2..=20).contains(&hot), "one turn in a thousand or so, whatever waits under a key: {hot}");
}

#[test]
fn a_batch_holds_one_message_of_each_key() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).declare().unwrap();
    for n in 0..3 {
        (0..4).for_each(|key| _ = queue.send((key, n)).unwrap());
    }
    let batch = queue.recv_batch(100).unwrap();
    assert_eq!(batch.iter().map(|m| **m).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    batch.ack().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sizes = seen.clone();
    let handler = move |batch: &[Message<Step>]| sizes.lock().unwrap().push(batch.len());
    queue.consumer().start_batch(100, Duration::ZERO, handler).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [4, 4]);
    assert_eq!(queue.stats().keys, 0);
}

#[test]
fn keys_may_come_from_the_message_or_be_one_for_all() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("by message").ordered_by_key().declare().unwrap();
    queue.send(Message::new(1).with_key("a")).unwrap();
    queue.send(Message::new(2).with_key("a")).unwrap();
    queue.send(3).unwrap();
    queue.send(4).unwrap();
    let (first, second) = (queue.recv().unwrap(), queue.recv().unwrap());
    assert_eq!((**first, **second), (1, 3), "those without a key are in order among themselves");
    assert!(queue.try_recv().is_err());

    let single: Queue<u32> = broker.queue("single").one_at_a_time().declare().unwrap();
    single.send_batch(0..3).unwrap();
    let first = single.recv().unwrap();
    assert!(single.try_recv().is_err());
    first.requeue().unwrap();
    assert_eq!(**single.recv().unwrap(), 0);
}

#[test]
fn delayed_and_redriven_messages_get_their_place_when_they_become_ready() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).retry(Retry::none()).declare().unwrap();
    queue.send(Message::new((1, 0)).with_delay(SECOND)).unwrap();
    queue.send((1, 1)).unwrap();
    let first = queue.recv().unwrap();
    assert_eq!(first.1, 1, "one that waits for its time holds nobody up");
    simulation.advance(SECOND);
    assert!(queue.try_recv().is_err());
    first.dead_letter("no").unwrap();
    queue.send((1, 2)).unwrap();
    assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 1);
    assert_eq!(queue.dead_letters().redrive().rate(Rate::per_second(1)).run().unwrap().moved, 0);
    let order: Vec<u32> = (0..3).map(|_| settle_next(&queue)).collect();
    assert_eq!(order, [0, 2, 1]);
    assert_eq!(queue.stats().keys, 0);
    assert_conserved(&queue);
}

fn settle_next(queue: &Queue<Step>) -> u32 {
    let delivery = queue.recv().unwrap();
    let n = delivery.1;
    delivery.ack().unwrap();
    n
}

#[test]
fn a_slow_redrive_gets_its_place_too() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).retry(Retry::none()).declare().unwrap();
    for n in 0..2 {
        queue.send((1, n)).unwrap();
        queue.recv().unwrap().dead_letter("no").unwrap();
    }
    let redriven = queue.dead_letters().redrive().rate(Rate::per_second(1)).edit(|letter| (9, letter.1)).run().unwrap();
    assert_eq!(redriven.moved, 2);
    simulation.advance(2 * SECOND);
    let first = queue.recv().unwrap();
    assert_eq!(**first, (9, 0), "by the key of the new payload");
    assert!(queue.try_recv().is_err());
    first.ack().unwrap();
    assert_eq!(settle_next(&queue), 1);
    assert_conserved(&queue);
}

#[test]
fn expired_messages_hold_up_nobody() {
    for fate in [Expired::Drop, Expired::DeadLetter] {
        let (broker, simulation) = Broker::simulated(1);
        let queue = steps(&broker).expired(fate).retry(Retry::fixed(60 * SECOND)).declare().unwrap();
        // The first fails and expires while it waits for its retry, the second while it waits behind it.
        (0..2).for_each(|n| _ = queue.send(Message::new((1, n)).with_ttl(5 * SECOND)).unwrap());
        queue.send((1, 2)).unwrap();
        queue.recv().unwrap().retry().unwrap();
        simulation.advance(4 * SECOND);
        assert!(queue.try_recv().is_err());
        simulation.advance(SECOND);
        assert_eq!(settle_next(&queue), 2);
        let stats = queue.stats();
        assert_eq!((stats.expired + stats.dead_lettered, stats.keys), (2, 0));
        assert_conserved(&queue);
    }
}

#[test]
fn an_expired_message_at_the_front_lets_the_next_one_go() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue = steps(&broker).declare().unwrap();
    queue.send(Message::new((1, 0)).with_ttl(SECOND)).unwrap();
    (1..3).for_each(|n| _ = queue.send((1, n)).unwrap());
    clock.advance(SECOND);
    let second = queue.recv().unwrap();
    assert_eq!(second.1, 1);
    assert!(queue.try_recv().is_err());
    second.ack().unwrap();
    assert_eq!(settle_next(&queue), 2);
}

#[test]
fn rates_hold_for_ordered_queues() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).rate_limit(Rate::per_second(10)).declare().unwrap();
    let watch = Arc::new(Watch::default());
    handle_in_order(&queue, &watch, 4);
    for n in 0..10 {
        (0..10).for_each(|key| _ = queue.send((key, n)).unwrap());
    }
    simulation.advance(5 * SECOND);
    assert!((50..=51).contains(&queue.stats().acked), "{}", queue.stats().acked);
    simulation.advance(5 * SECOND);
    assert_eq!((queue.stats().acked, queue.stats().keys), (100, 0));
    watch.assert_in_order();
}

#[test]
fn a_limit_per_key_keeps_the_order() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).rate_limit_per_key(Rate::per_second(1)).declare().unwrap();
    let watch = Arc::new(Watch::default());
    handle_in_order(&queue, &watch, 4);
    for n in 0..3 {
        (0..3).for_each(|key| _ = queue.send(Message::new((key, n)).with_key(key.to_string())).unwrap());
    }
    simulation.run_until_idle();
    assert_eq!(queue.stats().acked, 3);
    simulation.advance(2 * SECOND);
    assert_eq!((queue.stats().acked, queue.stats().keys), (9, 0));
    watch.assert_in_order();
    assert_conserved(&queue);
}

fn handle_in_order(queue: &Queue<Step>, watch: &Arc<Watch>, workers: usize) {
    let watch = watch.clone();
    let handler = move |step: &Message<Step>| {
        watch.enters(**step);
        watch.leaves(**step, true);
    };
    queue.consumer().workers(workers).start(handler).unwrap();
}

#[test]
fn overflow_policies_act_as_in_any_queue() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue = steps(&broker).capacity(3).overflow(Overflow::DropOldest).declare().unwrap();
    (0..3).for_each(|n| _ = queue.send((1, n)).unwrap());
    (0..2).for_each(|n| _ = queue.send((2, n)).unwrap());
    let left: Vec<Step> = queue.list(10).iter().map(|m| **m).collect();
    assert_eq!(left, [(1, 2), (2, 0), (2, 1)]);
    assert_eq!((queue.peek().map(|m| *m), queue.stats().keys), (Some((1, 2)), 2));
    queue.send((3, 0)).unwrap();
    assert_eq!(queue.stats().keys, 2, "the last of key 1 was the oldest");
    assert_eq!(queue.purge(), 3);
    assert_eq!((queue.stats().keys, queue.stats().unaccounted()), (0, 0));

    let letters = broker.queue("letters").ordered_by(|s: &Step| s.0).capacity(1).overflow(Overflow::DeadLetter);
    let letters: Queue<Step> = letters.declare().unwrap();
    (0..2).for_each(|n| _ = letters.send((1, n)).unwrap());
    assert_eq!((letters.len(), letters.dead_letters().len()), (1, 1));
}

#[test]
fn draining_takes_what_waits_for_a_retry_and_leaves_no_key_behind() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue = steps(&broker).retry(Retry::fixed(60 * SECOND)).declare().unwrap();
    for key in 0..3 {
        (0..3).for_each(|n| _ = queue.send((key, n)).unwrap());
    }
    queue.recv().unwrap().retry().unwrap();
    let in_flight = queue.recv().unwrap();
    assert_eq!(queue.drain().len(), 8);
    assert_eq!(queue.stats().keys, 1, "the one in flight");
    queue.send((1, 9)).unwrap();
    assert!(queue.try_recv().is_err());
    in_flight.ack().unwrap();
    assert_eq!(settle_next(&queue), 9);
    assert_eq!(queue.stats().keys, 0);
    assert_conserved(&queue);
}

fn failing_first(
    policy: Exhausted,
    events: Arc<Mutex<Vec<Event>>>,
) -> (Broker, Queue<Step>, Simulation, Arc<AtomicBool>) {
    let told = move |event: &Event| events.lock().unwrap().push(event.clone());
    let (broker, simulation) = Broker::builder().seed(7).on_event(told).build_simulated().unwrap();
    let retry = Retry::fixed(SECOND).max_attempts(3);
    let queue = steps(&broker).retry(retry).on_exhausted(policy).declare().unwrap();
    let repaired = Arc::new(AtomicBool::new(false));
    let mended = repaired.clone();
    let handler = move |step: &Message<Step>| {
        if **step == (1, 1) && !mended.load(Ordering::Relaxed) { Err(Failure::transient("broken")) } else { Ok(()) }
    };
    queue.consumer().workers(4).start(handler).unwrap();
    for n in 0..5 {
        (0..3).for_each(|key| _ = queue.send((key, n)).unwrap());
    }
    (broker, queue, simulation, repaired)
}

#[test]
fn by_default_what_is_exhausted_is_skipped() {
    let (_broker, queue, simulation, _) = failing_first(Exhausted::DeadLetter, Arc::default());
    simulation.advance(5 * SECOND);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.dead_lettered, stats.ready, stats.keys), (14, 1, 0, 0));
    assert!(queue.parked().is_empty());
}

#[test]
fn a_parked_key_is_listed_held_and_released() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let (_broker, queue, simulation, repaired) = failing_first(Exhausted::Park, events.clone());
    simulation.advance(5 * SECOND);
    let parked = queue.parked();
    assert_eq!(parked.len(), 1);
    let one = &parked[0];
    assert_eq!((one.key.as_str(), one.waiting, one.attempts), ("1", 4, 3));
    assert_eq!((&one.reason, one.error.as_deref()), (&Reason::Exhausted, Some("broken")));
    let told = events.lock().unwrap().clone();
    assert!(matches!(&told[..], [Event::KeyParked { key, stopped: false, .. }] if key == "1"), "{told:?}");
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.ready, stats.parked, stats.delayed, stats.in_flight), (11, 4, 4, 0, 0));
    assert_conserved(&queue);

    queue.send((1, 5)).unwrap();
    queue.send((2, 5)).unwrap();
    simulation.run_until_idle();
    assert_eq!((queue.stats().acked, queue.stats().parked), (12, 5));

    // Not repaired: after three more attempts it is parked again.
    assert!(queue.release_key("1"));
    assert!(!queue.release_key("1") && !queue.release_key("2") && !queue.release_key("nobody"));
    simulation.advance(5 * SECOND);
    assert_eq!((queue.parked()[0].attempts, queue.stats().retried), (3, 4));
    repaired.store(true, Ordering::Relaxed);
    assert!(queue.release_key("1"));
    simulation.run_until_idle();
    assert_eq!((queue.stats().acked, queue.stats().keys, queue.stats().parked), (17, 0, 0));
    assert_conserved(&queue);
}

#[test]
fn a_dropped_key_becomes_dead_letters_in_order() {
    let (_broker, queue, simulation, _) = failing_first(Exhausted::Park, Arc::default());
    simulation.advance(5 * SECOND);
    assert_eq!(queue.drop_key("0"), 0);
    assert_eq!(queue.drop_key("1"), 4);
    let letters = queue.dead_letters().list(10);
    let story: Vec<_> = letters.iter().map(|letter| (letter.1, letter.reason().clone())).collect();
    let after = |n| (n, Reason::KeyDropped);
    assert_eq!(story, [(1, Reason::Exhausted), after(2), after(3), after(4)]);
    assert_eq!((queue.stats().keys, queue.stats().ready), (0, 0));
    assert_conserved(&queue);
    queue.send((1, 5)).unwrap();
    simulation.run_until_idle();
    assert_eq!(queue.stats().acked, 12, "the key starts afresh");
}

#[test]
fn a_key_dropped_into_full_dead_letters_waits_for_room() {
    let (broker, simulation) = Broker::simulated(1);
    let dead = broker.queue("dead").capacity(1).declare().unwrap();
    let queue = steps(&broker).retry(Retry::none()).on_exhausted(Exhausted::Park).dead_letter_to(&dead);
    let queue = queue.capacity(3).declare().unwrap();
    (0..3).for_each(|n| _ = queue.send((1, n)).unwrap());
    queue.recv().unwrap().retry().unwrap();
    assert_eq!(queue.drop_key("1"), 3);
    assert_eq!((dead.len(), queue.delayed(), queue.stats().unaccounted()), (1, 2, 0));
    queue.send((2, 0)).unwrap();
    assert!(queue.try_send((2, 1)).is_err(), "what waits for burial holds capacity");
    for n in 0..3 {
        let letter = dead.recv().unwrap();
        assert_eq!(letter.1, n);
        letter.ack().unwrap();
        simulation.advance(SECOND);
    }
    assert_eq!((queue.delayed(), queue.stats().dead_lettered), (0, 3));
    assert_conserved(&queue);
}

#[test]
fn permanent_failures_park_but_rejections_do_not() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).on_exhausted(Exhausted::Park).declare().unwrap();
    let handler = |step: &Message<Step>| match **step {
        (1, 0) => Err(Failure::permanent("never")),
        (2, 0) => Ok(Outcome::DeadLetter("unwanted".into())),
        _ => Ok(Outcome::Ack),
    };
    queue.consumer().start(handler).unwrap();
    for n in 0..2 {
        (1..=2).for_each(|key| _ = queue.send((key, n)).unwrap());
    }
    simulation.run_until_idle();
    assert_eq!(
        queue.parked().iter().map(|p| (p.key.as_str(), p.reason.clone())).collect::<Vec<_>>(),
        [("1", Reason::Permanent)]
    );
    assert_eq!((queue.stats().acked, queue.stats().dead_lettered, queue.stats().parked), (1, 1, 2));
}

#[test]
fn a_stop_holds_everything_until_it_is_lifted() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let (_broker, queue, simulation, repaired) = failing_first(Exhausted::Stop, events.clone());
    simulation.advance(5 * SECOND);
    assert!(queue.is_stopped());
    assert!(matches!(&events.lock().unwrap()[..], [Event::KeyParked { stopped: true, .. }]));
    assert_eq!(queue.parked().len(), 1);
    queue.send((7, 0)).unwrap();
    simulation.advance(5 * SECOND);
    assert_eq!((queue.stats().acked, queue.len()), (11, 5));
    assert_eq!(queue.try_recv().unwrap_err(), TryRecvError::Empty);
    assert!(queue.release_key("1"), "released, but not handed out");
    simulation.run_until_idle();
    assert_eq!(queue.stats().acked, 11);
    repaired.store(true, Ordering::Relaxed);
    assert!(queue.resume());
    assert!(!queue.resume() && !queue.is_stopped());
    simulation.run_until_idle();
    assert_eq!((queue.stats().acked, queue.stats().keys), (16, 0));
    assert_conserved(&queue);
}

#[test]
fn a_parked_message_that_expires_lets_its_key_go_on() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = steps(&broker).on_exhausted(Exhausted::Park).retry(Retry::none()).expired(Expired::Drop);
    let queue = queue.declare().unwrap();
    queue.send(Message::new((1, 0)).with_ttl(5 * SECOND)).unwrap();
    queue.send((1, 1)).unwrap();
    queue.recv().unwrap().retry().unwrap();
    assert!(queue.try_recv().is_err());
    simulation.advance(5 * SECOND);
    assert_eq!((settle_next(&queue), queue.stats().expired), (1, 1));
    assert_conserved(&queue);
}

#[test]
fn shutdown_and_closed_receivers_do_not_wait_for_what_is_parked() {
    within(20 * SECOND, || {
        let broker = Broker::new();
        let queue = steps(&broker).on_exhausted(Exhausted::Park).retry(Retry::none()).declare().unwrap();
        let handler = |step: &Message<Step>| if step.0 == 1 { Err(Failure::transient("broken")) } else { Ok(()) };
        queue.consumer().workers(3).start(handler).unwrap();
        for n in 0..3 {
            (0..3).for_each(|key| _ = queue.send((key, n)).unwrap());
        }
        assert!(broker.wait_idle(10 * SECOND));
        let start = std::time::Instant::now();
        let report = broker.shutdown(10 * SECOND);
        assert!(start.elapsed() < 10 * SECOND);
        assert_eq!((report.undelivered[0].total(), report.stuck_workers.len()), (3, 0), "{report}");
        assert_eq!(queue.drain().iter().map(|m| m.1).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(queue.try_recv().is_err());
    });
}

#[test]
fn receivers_of_a_closed_queue_get_what_waits_behind_others() {
    for _ in 0..20 {
        within(20 * SECOND, || {
            let broker = Broker::new();
            let queue = steps(&broker).declare().unwrap();
            (0..50).for_each(|n| _ = queue.send((n % 2, n / 2)).unwrap());
            queue.close();
            let taken = Arc::new(AtomicU32::new(0));
            let receivers: Vec<_> = (0..4)
                .map(|_| {
                    let (queue, taken) = (queue.clone(), taken.clone());
                    thread::spawn(move || {
                        for delivery in queue.iter() {
                            taken.fetch_add(1, Ordering::Relaxed);
                            delivery.ack().unwrap();
                        }
                    })
                })
                .collect();
            receivers.into_iter().for_each(|r| r.join().unwrap());
            assert_eq!(taken.load(Ordering::Relaxed), 50);
        });
    }
}

fn panicking(step: &Step) -> u32 {
    assert!(step.0 != 13, "{ON_PURPOSE}");
    step.0
}

#[test]
fn a_key_that_panics_gives_the_message_back() {
    quiet();
    let broker = Broker::new();
    let queue: Queue<Step> = broker.queue("steps").ordered_by(panicking).capacity(3).declare().unwrap();
    let plain: Queue<Step> = broker.queue("plain").declare().unwrap();
    assert!(matches!(queue.send((13, 1)), Err(SendError::Panicked(m)) if **m == (13, 1)));
    assert!(matches!(queue.try_send((13, 1)), Err(TrySendError::Panicked(_))));
    assert!(matches!(queue.send_timeout((13, 1), SECOND), Err(SendTimeoutError::Panicked(_))));
    let delayed = Message::new((13, 1)).with_delay(SECOND);
    let error = queue.send(delayed).unwrap_err();
    assert!(error.to_string().contains("ordering key") && error.to_string().contains(ON_PURPOSE), "{error}");
    let error = queue.send_batch([(1, 0), (13, 1), (2, 0)]).unwrap_err();
    assert_eq!((error.accepted, error.rest.len()), (1, 1));

    let one: Topic<Step> = broker.topic("one").declare().unwrap();
    let both: Topic<Step> = broker.topic("both").declare().unwrap();
    one.bind(&queue, "#").unwrap();
    both.bind(&queue, "#").unwrap();
    both.bind(&plain, "#").unwrap();
    for topic in [&one, &both] {
        let error = topic.publish("k", (13, 1)).unwrap_err();
        assert!(matches!(&error, PublishError::Panicked(_)), "{error}");
        assert_eq!(error.by(), "steps");
        assert_eq!(error.into_message().payload(), &(13, 1));
        topic.publish("k", (14, 1)).unwrap();
    }
    assert_eq!((queue.len(), plain.len()), (3, 1), "all or none");
    assert_eq!(queue.stats().unaccounted(), 0);
    queue.purge();
    assert_eq!(queue.stats().keys, 0);
}

#[test]
fn a_redriven_letter_without_a_key_still_comes_back() {
    quiet();
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<Step> = broker.queue("steps").ordered_by(panicking).declare().unwrap();
    queue.send((1, 0)).unwrap();
    queue.recv().unwrap().dead_letter("no").unwrap();
    assert_eq!(queue.dead_letters().redrive().edit(|_| (13, 0)).run().unwrap().moved, 1);
    assert_eq!(**queue.recv().unwrap(), (13, 0));
}

/// The key is asked for once per message, also while the queue is full, and never under a lock: it may use
/// the queue itself.
#[test]
fn the_key_function_runs_once_and_may_use_the_queue() {
    let broker = Broker::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let own: Arc<Mutex<Option<(Queue<u32>, Topic<u32>)>>> = Arc::default();
    let (count, inside) = (calls.clone(), own.clone());
    let key = move |n: &u32| {
        count.fetch_add(1, Ordering::Relaxed);
        if let Some((queue, topic)) = &*inside.lock().unwrap() {
            assert!(queue.len() <= 2 && topic.stats().published < 100 && queue.stats().capacity == 2);
        }
        *n
    };
    let queue: Queue<u32> = broker.queue("q").capacity(2).ordered_by(key).declare().unwrap();
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    *own.lock().unwrap() = Some((queue.clone(), topic.clone()));
    topic.publish("k", 1).unwrap();
    queue.send(2).unwrap();
    let third = {
        let topic = topic.clone();
        thread::spawn(move || topic.publish("k", 3).unwrap())
    };
    eventually("it waits for room", || calls.load(Ordering::Relaxed) == 3);
    thread::sleep(Duration::from_millis(20));
    queue.recv().unwrap().ack().unwrap();
    third.join().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    *own.lock().unwrap() = None;
}

#[test]
fn settings_that_cannot_go_together_are_refused() {
    let broker = Broker::new();
    let ordered = || broker.queue::<Step>("q").ordered_by_key();
    let error = ordered().priority_levels(3).declare().unwrap_err();
    assert!(error.to_string().contains("priority_levels"), "{error}");
    let error = broker.queue::<Step>("q").on_exhausted(Exhausted::Park).declare().unwrap_err();
    assert!(error.to_string().contains("only a queue ordered by key"), "{error}");
    let letters = broker.queue("letters").ordered_by_key().declare().unwrap();
    let error = broker.queue::<Step>("q").dead_letter_to(&letters).declare().unwrap_err();
    assert!(error.to_string().contains("\"letters\" is ordered by key"), "{error}");
    ordered().declare().unwrap();
    ordered().declare().unwrap();
    let error = broker.queue::<Step>("q").declare().unwrap_err();
    assert!(error.to_string().contains("ordered_by"), "{error}");
    let error = ordered().on_exhausted(Exhausted::Stop).declare().unwrap_err();
    assert!(error.to_string().contains("on_exhausted"), "{error}");
}

#[test]
fn a_million_keys_leave_no_trace() {
    let broker = Broker::new();
    let queue: Queue<u32> =
        broker.queue("many").capacity(2_000_000).ordered_by(|n: &u32| *n).retry(Retry::none()).declare().unwrap();
    for _ in 0..3 {
        queue.send(1).unwrap();
        queue.recv().unwrap().ack().unwrap();
    }
    let before = ALLOCATED.load(Ordering::SeqCst);
    queue.send_batch(0..1_000_000).unwrap();
    assert_eq!(queue.stats().keys, 1_000_000);
    let peak = ALLOCATED.load(Ordering::SeqCst) - before;
    // All of them in flight at once: more than the envelope has numbers for.
    let deliveries: Vec<_> = (0..100_000).map(|_| queue.recv().unwrap()).collect();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    (0..900_000).for_each(|_| queue.recv().unwrap().ack().unwrap());
    let stats = queue.stats();
    assert_eq!((stats.keys, stats.acked, stats.unaccounted()), (0, 1_000_003, 0));
    let left = ALLOCATED.load(Ordering::SeqCst) - before;
    // Other tests of this file run meanwhile.
    assert!(left < peak / 10, "{left} of {peak} bytes left");
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Done,
    Fail,
    FailFor(Duration),
    Panic,
}

/// Random outcomes in virtual time, against what the order demands.
#[test]
fn random_runs_keep_every_key_in_order() {
    quiet();
    for seed in 0..30 {
        let (broker, simulation) = Broker::simulated(seed);
        let retry = Retry::exponential(SECOND).max_attempts(u32::MAX).jitter(0.5);
        let queue = steps(&broker).retry(retry).capacity(10_000).declare().unwrap();
        let watch = Arc::new(Watch::default());
        let dice = Arc::new(Mutex::new(Dice(seed)));
        let (seen, chance) = (watch.clone(), dice.clone());
        let handler = move |step: &Message<Step>| {
            let fate = match chance.lock().unwrap().below(8) {
                0 => Fate::Fail,
                1 => Fate::FailFor(Duration::from_millis(300)),
                2 => Fate::Panic,
                _ => Fate::Done,
            };
            seen.enters(**step);
            seen.leaves(**step, matches!(fate, Fate::Done));
            match fate {
                Fate::Done => Outcome::Ack,
                Fate::Fail => Outcome::Retry,
                Fate::FailFor(time) => Outcome::RetryAfter(time),
                Fate::Panic => panic!("{ON_PURPOSE}"),
            }
        };
        let consumer = queue.consumer().workers(4).start(handler).unwrap();
        let mut next: BTreeMap<u32, u32> = BTreeMap::new();
        let mut by_hand = Vec::new();
        for _ in 0..300 {
            let choice = dice.lock().unwrap().below(10);
            match choice {
                0..=4 => {
                    let key = dice.lock().unwrap().below(12) as u32;
                    let n = next.entry(key).or_default();
                    queue.send((key, *n)).unwrap();
                    *n += 1;
                }
                5 => _ = simulation.step(),
                6 => _ = simulation.advance(Duration::from_millis(200)),
                7 => {
                    if let Ok(delivery) = queue.try_recv() {
                        watch.enters(**delivery);
                        by_hand.push(delivery);
                    }
                }
                8 if !by_hand.is_empty() => {
                    let at = dice.lock().unwrap().below(by_hand.len() as u64) as usize;
                    settle_somehow(by_hand.swap_remove(at), &watch, &dice);
                }
                _ => consumer.scale_to(1 + dice.lock().unwrap().below(8) as usize).unwrap(),
            }
            assert_conserved(&queue);
        }
        by_hand.drain(..).for_each(|delivery| settle_somehow(delivery, &watch, &dice));
        simulation.advance(Duration::from_secs(3600));
        watch.assert_in_order();
        assert_eq!(watch.done(), next, "seed {seed}");
        let stats = queue.stats();
        assert_eq!((stats.keys, stats.acked + stats.discarded), (0, next.values().map(|&n| u64::from(n)).sum()));
        assert_conserved(&queue);
    }
}

fn settle_somehow(delivery: postroom::Delivery<Step>, watch: &Watch, dice: &Mutex<Dice>) {
    let choice = dice.lock().unwrap().below(5);
    watch.leaves(**delivery, choice < 2);
    match choice {
        0 => delivery.ack().unwrap(),
        1 => delivery.discard().unwrap(),
        2 => delivery.requeue().unwrap(),
        3 => delivery.retry().unwrap(),
        _ => drop(delivery),
    }
}

/// Threads: thousands of keys, failures, panics, scaling and pauses, and the order checked in the handler.
#[test]
fn eight_workers_keep_thousands_of_keys_in_order() {
    quiet();
    within(60 * SECOND, || {
        const KEYS: u32 = 2_000;
        const EACH: u32 = 10;
        let broker = Broker::new();
        let topic: Topic<Step> = broker.topic("t").declare().unwrap();
        let retry = Retry::fixed(Duration::from_millis(1)).max_attempts(u32::MAX);
        let queue = steps(&broker).retry(retry).capacity(500).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        let watch = Arc::new(Watch::default());
        let seen = watch.clone();
        let handler = move |step: &Message<Step>| {
            let fails = step.attempt() == 1 && (step.0 + step.1).is_multiple_of(17);
            seen.enters(**step);
            if step.0.is_multiple_of(64) {
                thread::yield_now();
            }
            seen.leaves(**step, !fails);
            if fails && step.1.is_multiple_of(2) {
                panic!("{ON_PURPOSE}");
            }
            if fails { Err(Failure::transient("now and then")) } else { Ok(()) }
        };
        let consumer = queue.consumer().workers(8).start(handler).unwrap();
        let producers: Vec<_> = (0..2)
            .map(|half| {
                let (topic, queue) = (topic.clone(), queue.clone());
                thread::spawn(move || {
                    for n in 0..EACH {
                        for key in (half..KEYS).step_by(2) {
                            match key % 4 < 2 {
                                true => _ = topic.publish("k", (key, n)).unwrap(),
                                false => _ = queue.send((key, n)).unwrap(),
                            }
                        }
                    }
                })
            })
            .collect();
        for workers in [2, 8, 1, 6, 8] {
            thread::sleep(Duration::from_millis(5));
            consumer.pause();
            consumer.scale_to(workers).unwrap();
            consumer.resume();
        }
        producers.into_iter().for_each(|p| p.join().unwrap());
        assert!(broker.wait_idle(50 * SECOND));
        watch.assert_in_order();
        assert!(watch.done().values().all(|&n| n == EACH));
        let stats = queue.stats();
        assert_eq!((stats.acked, stats.keys), (u64::from(KEYS * EACH), 0), "{stats:?}");
        assert_conserved(&queue);
        assert!(broker.shutdown(30 * SECOND).is_clean());
    });
}

/// Batches, an ack timeout and a limit in flight, under threads.
#[test]
fn order_holds_with_batches_and_limits() {
    within(60 * SECOND, || {
        let broker = Broker::new();
        let queue = steps(&broker).max_in_flight(5).ack_timeout(30 * SECOND).declare().unwrap();
        let watch = Arc::new(Watch::default());
        let seen = watch.clone();
        let handler = move |batch: &[Message<Step>]| {
            let keys: BTreeSet<u32> = batch.iter().map(|step| step.0).collect();
            assert_eq!(keys.len(), batch.len());
            batch.iter().for_each(|step| seen.enters(**step));
            batch.iter().for_each(|step| seen.leaves(**step, true));
        };
        queue.consumer().workers(3).start_batch(4, Duration::from_millis(1), handler).unwrap();
        for n in 0..300 {
            queue.send_batch((0..7).map(|key| (key, n))).unwrap();
        }
        assert!(broker.wait_idle(50 * SECOND));
        watch.assert_in_order();
        assert_eq!((queue.stats().acked, queue.stats().keys), (2_100, 0));
        assert!(broker.shutdown(30 * SECOND).is_clean());
    });
}
