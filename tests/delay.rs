//! A delay is kept to the nanosecond or a little more, never less, and can be taken back until it ends.

// An allocator that counts cannot be had without it.
#![allow(unsafe_code, missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::within;
use postroom::{
    Binding, Broker, CheckBack, DelayLevel, Headers, ManualClock, Message, Overflow, Queue, Resolution, Simulation,
    Timer, Topic, TryRecvError,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

struct Counting;

thread_local! {
    /// Bytes this thread has allocated and not given back; the other tests run on other threads.
    static HELD: Cell<i64> = const { Cell::new(0) };
    /// How often it has asked for some.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.with(|held| held.set(held.get() + layout.size() as i64));
        ASKED.with(|asked| asked.set(asked.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get() - layout.size() as i64));
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.with(|held| held.set(held.get() + size as i64 - layout.size() as i64));
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NANO: Duration = Duration::from_nanos(1);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn queue() -> (Broker, Simulation, Queue<u64>) {
    let (broker, simulation) = Broker::simulated(1);
    let queue = broker.queue("q").declare().unwrap();
    (broker, simulation, queue)
}

fn delayed(n: u64, delay: impl Into<Duration>) -> Message<u64> {
    Message::new(n).with_delay(delay)
}

/// Takes out what is ready.
fn ready(queue: &Queue<u64>) -> Vec<u64> {
    let deliveries = std::iter::from_fn(|| queue.try_recv().ok());
    deliveries.map(|delivery| (**delivery, delivery.ack()).0).collect()
}

fn is_conserved<T: Send + Sync + 'static>(queue: &Queue<T>) {
    assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats());
}

#[test]
fn every_level_is_kept_to_the_nanosecond() {
    for level in DelayLevel::ALL {
        let (_broker, simulation, queue) = queue();
        queue.send(delayed(1, level)).unwrap();
        simulation.advance(level.duration() - NANO);
        assert_eq!((queue.len(), queue.delayed()), (0, 1), "{level:?}: early");
        simulation.advance(NANO);
        assert_eq!((queue.len(), queue.delayed()), (1, 0), "{level:?}: late");
    }
}

#[test]
fn equal_times_keep_the_order_of_their_publishes() {
    let (_broker, simulation, queue) = queue();
    queue.send_batch((0..3000).map(|n| delayed(n, secs(5 - n % 2)))).unwrap();
    simulation.advance(secs(5));
    let expected: Vec<_> = (0..3000).filter(|n| n % 2 == 1).chain((0..3000).filter(|n| n % 2 == 0)).collect();
    assert_eq!(ready(&queue), expected);
}

#[test]
fn zero_and_past_mean_now() {
    let (_broker, simulation, queue) = queue();
    queue.send(delayed(1, Duration::ZERO)).unwrap();
    queue.send(Message::new(2).with_delivery_at(SystemTime::UNIX_EPOCH)).unwrap();
    queue.send(Message::new(3).with_delivery_at(simulation.now())).unwrap();
    assert_eq!(queue.delayed(), 0);
    assert_eq!(ready(&queue), [1, 2, 3]);
}

#[test]
fn a_time_of_the_wall_clock_is_kept() {
    let (_broker, simulation, queue) = queue();
    queue.send(Message::new(1).with_delivery_at(simulation.now() + secs(60))).unwrap();
    simulation.advance(secs(60) - NANO);
    assert_eq!(queue.len(), 0);
    simulation.advance(NANO);
    assert_eq!(queue.len(), 1);
}

#[test]
fn the_later_wish_counts() {
    let (_broker, simulation, queue) = queue();
    let message = delayed(1, secs(9)).with_delivery_at(simulation.now() + secs(1));
    queue.send(message.with_delay(secs(2))).unwrap();
    assert_eq!(simulation.next_due(), Some(secs(2)));
}

/// Each way to say the same, in every order.
fn wishes() -> Vec<(&'static str, Message<u64>)> {
    let message = || Message::new(1);
    let shown = Message::new(1).with_header("a", "b").with_delay(secs(9)).with_delay(secs(5));
    vec![
        ("delay", message().with_delay(secs(5))),
        ("twice", message().with_delay(secs(9)).with_delay(secs(5))),
        ("after a time", message().with_delivery_at(SystemTime::UNIX_EPOCH).with_delay(secs(5))),
        ("header behind it", message().with_delay(secs(5)).with_header("a", "b")),
        ("header before it", shown),
        ("key", message().with_delay(secs(5)).with_key("k")),
        ("id", message().with_delay(secs(5)).with_id(77)),
        ("ttl", message().with_delay(secs(5)).with_ttl(secs(1))),
        ("timer", message().with_delay(secs(5)).with_timer("t")),
        ("copy", message().with_delay(secs(5)).clone()),
    ]
}

#[test]
fn a_delay_is_kept_whatever_else_is_asked_for_and_whichever_way_it_is_published() {
    type Way = fn(&Broker, &Topic<u64>, &Queue<u64>, Message<u64>);
    let ways: [(&str, Way); 10] = [
        ("send", |_, _, queue, message| _ = queue.send(message).unwrap()),
        ("try_send", |_, _, queue, message| _ = queue.try_send(message).unwrap()),
        ("send_timeout", |_, _, queue, message| _ = queue.send_timeout(message, secs(1)).unwrap()),
        ("send_batch", |_, _, queue, message| _ = queue.send_batch([message]).unwrap()),
        ("publish", |_, topic, _, message| _ = topic.publish("k", message).unwrap()),
        ("publish_batch", |_, topic, _, message| _ = topic.publish_batch("k", [message]).unwrap()),
        ("publish by a known route", |_, topic, queue, message| {
            topic.publish("k", 0).unwrap();
            assert_eq!(ready(queue), [0]);
            assert_eq!(topic.publish("k", message).unwrap().routed(), 1);
            assert_eq!(topic.stats().published, 2);
        }),
        ("a batch of several", |_, topic, queue, message| {
            topic.publish("k", 0).unwrap();
            let others = || (2..4).map(|n| delayed(n, secs(1)));
            let batch = others().chain([message]).chain(others()).chain([Message::new(9)]);
            assert_eq!(topic.publish_batch("k", batch).unwrap(), 6);
            assert_eq!((ready(queue), queue.delayed()), (vec![0, 9], 5));
            assert_eq!((topic.stats().published, queue.purge()), (7, 5));
            queue.send_batch(others().chain([delayed(1, secs(5))])).unwrap();
            assert_eq!((queue.delayed(), queue.purge()), (3, 3));
            topic.publish_batch("k", [delayed(1, secs(5))]).unwrap();
        }),
        ("transaction", |broker, topic, _, message| {
            broker.transaction(|tx| Ok(tx.publish(topic, "k", message)?)).unwrap();
        }),
        ("half", |_, topic, _, message| _ = topic.prepare("k", message).unwrap().commit().unwrap()),
    ];
    for (way, publish) in ways {
        for (wish, message) in wishes() {
            let (broker, simulation, queue) = queue();
            let unknown = CheckBack::new(|_| Resolution::Unknown);
            let topic: Topic<u64> = broker.topic("t").check_back(unknown).declare().unwrap();
            topic.bind(&queue, Binding::all()).unwrap();
            simulation.advance(secs(1));
            let published = simulation.now();
            assert_eq!(message.published_at(), SystemTime::UNIX_EPOCH, "{wish}");
            publish(&broker, &topic, &queue, message);
            simulation.advance(secs(5) - NANO);
            assert_eq!((queue.len(), queue.delayed()), (0, 1), "{way}, {wish}: early");
            simulation.advance(NANO);
            let delivery = queue.try_recv().expect(wish);
            assert_eq!((delivery.published_at(), delivery.attempt()), (published, 1), "{way}, {wish}");
            assert!(delivery.id().get() > 0 && delivery.header("a").is_none_or(|value| value == "b"));
            delivery.ack().unwrap();
            is_conserved(&queue);
        }
    }
}

#[test]
fn one_that_is_refused_comes_back_with_its_delay() {
    let (broker, simulation, _) = queue();
    let small: Queue<u64> = broker.queue("small").capacity(1).overflow(Overflow::Reject).declare().unwrap();
    small.send(1).unwrap();
    let refused = small.send(delayed(2, secs(5))).unwrap_err().into_message();
    assert_eq!(ready(&small), [1]);
    small.send(refused).unwrap();
    simulation.advance(secs(5) - NANO);
    assert_eq!((small.len(), small.delayed()), (0, 1));
    simulation.advance(NANO);
    assert_eq!(ready(&small), [2]);
    is_conserved(&small);
}

#[test]
fn one_for_a_full_queue_waits_for_room_and_its_delay_counts_from_the_publish() {
    let broker = Broker::new();
    let small: Queue<u64> = broker.queue("small").capacity(1).declare().unwrap();
    small.send(1).unwrap();
    let (sender, start) = (small.clone(), Instant::now());
    let sending = thread::spawn(move || sender.send(delayed(2, Duration::from_millis(50))).unwrap());
    small.recv().unwrap().ack().unwrap();
    sending.join().unwrap();
    assert_eq!(**small.recv().unwrap(), 2);
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn what_was_delivered_can_be_delayed_when_it_is_sent_on() {
    let (broker, simulation, queue) = queue();
    let next: Queue<u64> = broker.queue("next").declare().unwrap();
    queue.send(delayed(1, secs(10))).unwrap();
    simulation.advance(secs(10));
    let delivery = queue.try_recv().unwrap();
    let before = delivery.published_at();
    let copy = (*delivery).clone().with_delay(secs(3));
    assert_eq!(copy.published_at(), before);
    next.send(copy).unwrap();
    simulation.advance(secs(3) - NANO);
    assert_eq!((next.len(), next.delayed()), (0, 1));
    simulation.advance(NANO);
    assert_eq!(next.len(), 1);
}

/// Panics when it is dropped, once in a while.
struct Brittle(u64, Arc<AtomicUsize>);

impl Drop for Brittle {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        assert!(!self.0.is_multiple_of(3), "brittle");
    }
}

#[test]
fn a_queue_that_is_dropped_drops_each_of_its_delayed_messages() {
    const MESSAGES: u64 = 3000;
    let dropped = Arc::new(AtomicUsize::new(0));
    let broker = Broker::new();
    let queue: Queue<Brittle> = broker.queue("q").declare().unwrap();
    for n in 0..MESSAGES {
        queue.send(Message::new(Brittle(n, dropped.clone())).with_delay(secs(60 + n * 7919 % 100))).unwrap();
    }
    drop((queue, broker));
    assert_eq!(dropped.load(Ordering::SeqCst) as u64, MESSAGES);
}

#[test]
fn delays_beyond_the_end_of_time_wait_without_harm() {
    let (_broker, simulation, queue) = queue();
    queue.send(delayed(1, Duration::MAX)).unwrap();
    queue.send(Message::new(2).with_delivery_at(SystemTime::UNIX_EPOCH + secs(1 << 40))).unwrap();
    queue.send(delayed(3, secs(1))).unwrap();
    simulation.advance(secs(3600 * 24 * 365 * 100));
    assert_eq!((ready(&queue), queue.delayed()), (vec![3], 2));
    assert_eq!(queue.purge(), 2);
}

#[test]
fn never_early_on_the_system_clock() {
    let broker = Broker::new();
    let queue: Queue<Instant> = broker.queue("q").declare().unwrap();
    for millis in [30, 1, 7, 20, 0, 3] {
        let delay = Duration::from_millis(millis);
        queue.send(Message::new(Instant::now() + delay).with_delay(delay)).unwrap();
    }
    for _ in 0..6 {
        let delivery = queue.recv_timeout(secs(10)).unwrap();
        assert!(Instant::now() >= **delivery, "early");
        delivery.ack().unwrap();
    }
}

#[test]
fn a_clock_of_the_wall_is_met_on_the_system_clock() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let start = Instant::now();
    let time = SystemTime::now() + Duration::from_millis(20);
    queue.send(Message::new(1).with_delivery_at(time)).unwrap();
    queue.recv_timeout(secs(10)).unwrap().ack().unwrap();
    // The clock may have been read a moment before it was told.
    assert!(start.elapsed() >= Duration::from_millis(15));
}

#[test]
fn it_is_counted_listed_and_occupies_capacity_and_its_end_needs_none() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").capacity(2).declare().unwrap();
    let at = simulation.now() + secs(5);
    queue.send(delayed(1, secs(5)).with_header("a", "b")).unwrap();
    queue.send(2).unwrap();
    assert_eq!(queue.try_send(3).unwrap_err().into_message().payload(), &3);
    assert!(queue.try_send(delayed(3, secs(1))).is_err());
    let listed = queue.list_delayed(10);
    assert_eq!((listed.len(), listed[0].0, *listed[0].1.payload()), (1, at, 1));
    assert_eq!(listed[0].1.header("a"), Some("b"));
    assert_eq!((queue.stats().delayed, queue.stats().ready), (1, 1));
    drop(listed);
    simulation.advance(secs(5));
    assert_eq!(ready(&queue), [2, 1]);
    is_conserved(&queue);
}

#[test]
fn purge_and_drain_include_the_delayed_and_free_their_room() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").capacity(4).declare().unwrap();
    queue.send_batch([delayed(1, secs(2)), Message::new(2), delayed(3, secs(1))]).unwrap();
    let drained: Vec<_> = queue.drain().iter().map(|message| *message.payload()).collect();
    assert_eq!(drained, [2, 3, 1]);
    queue.send_batch((0..4).map(|n| delayed(n, secs(1)))).unwrap();
    assert_eq!(queue.purge(), 4);
    queue.send_batch(0..4).unwrap();
    simulation.advance(secs(9));
    assert_eq!((queue.len(), queue.delayed()), (4, 0));
    is_conserved(&queue);
}

#[test]
fn what_was_taken_out_cannot_be_cancelled_any_more() {
    let (broker, _simulation, queue) = queue();
    let timer = Timer::new();
    queue.send(delayed(1, secs(5)).with_timer(&timer)).unwrap();
    queue.send(delayed(2, secs(5)).with_timer("by name")).unwrap();
    assert_eq!(queue.drain().len(), 2);
    assert!(!timer.is_pending() && !timer.cancel() && !broker.cancel_timer("by name"));
    is_conserved(&queue);
}

#[test]
fn a_great_many_that_are_due_together_come_in_their_order_between_those_that_come_and_go() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = broker.queue("q").capacity(100_000).declare().unwrap();
    let timers: Vec<_> = (0..30).map(|_| Timer::new()).collect();
    let due = |n: u64| 1 + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 10_000;
    let mut expected: Vec<_> = (0..30_000).map(|n| (due(n), n)).collect();
    for &(due, n) in &expected {
        let message = delayed(n, NANO * due as u32);
        let message = if n % 1000 == 0 { message.with_timer(&timers[n as usize / 1000]) } else { message };
        queue.send(message).unwrap();
    }
    expected.retain(|&(due, n)| n % 1000 > 0 || due <= 5000);
    simulation.advance(NANO * 5000);
    let in_time = (0..).zip(&timers).filter(|(at, _)| due(at * 1000) > 5000);
    in_time.for_each(|(_, timer)| assert!(timer.cancel()));
    expected.extend((30_000..40_000).map(|n| (5000 + due(n), n)));
    (30_000..40_000).for_each(|n| _ = queue.send(delayed(n, NANO * due(n) as u32)).unwrap());
    simulation.advance(NANO * 20_000);
    expected.sort_unstable();
    assert_eq!(ready(&queue), expected.into_iter().map(|(_, n)| n).collect::<Vec<_>>());
    is_conserved(&queue);
}

#[test]
fn a_timer_cancels_by_handle_and_by_name_once() {
    let (broker, simulation, queue) = queue();
    let timer = Timer::new();
    assert!(!timer.cancel() && !broker.cancel_timer("name"));
    queue.send(delayed(1, secs(5)).with_timer(&timer)).unwrap();
    queue.send(delayed(2, secs(5)).with_timer("name")).unwrap();
    assert!(timer.is_pending() && timer.cancel() && !timer.cancel() && !timer.is_pending());
    assert!(broker.cancel_timer("name") && !broker.cancel_timer("name"));
    assert_eq!((queue.delayed(), queue.stats().cancelled, queue.stats().dropped), (0, 2, 2));
    simulation.advance(secs(10));
    assert!(queue.is_empty());
    is_conserved(&queue);
}

#[test]
fn too_late_is_said() {
    let (broker, simulation, queue) = queue();
    let timer = Timer::new();
    queue.send(delayed(1, secs(5)).with_timer(&timer)).unwrap();
    queue.send(delayed(2, secs(5)).with_timer("name")).unwrap();
    simulation.advance(secs(5));
    assert!(!timer.cancel() && !broker.cancel_timer("name"));
    assert_eq!(ready(&queue), [1, 2]);
}

#[test]
fn publishing_again_replaces_whatever_the_id() {
    let (broker, simulation, queue) = queue();
    let timer = Timer::new();
    // An application that names both the message and the timer by its order.
    for n in 1..=3 {
        queue.send(delayed(n, secs(5)).with_id(42).with_timer(&timer)).unwrap();
        queue.send(delayed(n + 10, secs(5)).with_id(43).with_timer("order-43")).unwrap();
    }
    assert_eq!((queue.delayed(), queue.stats().cancelled), (2, 4));
    simulation.advance(secs(5));
    assert_eq!(ready(&queue), [3, 13]);
    queue.send(delayed(4, secs(5)).with_id(42).with_timer(&timer)).unwrap();
    queue.send(delayed(14, secs(5)).with_id(43).with_timer("order-43")).unwrap();
    assert!(timer.cancel() && broker.cancel_timer("order-43"));
    is_conserved(&queue);
}

#[test]
fn publishing_without_a_delay_replaces_too() {
    let (_broker, simulation, queue) = queue();
    let timer = Timer::new();
    queue.send(delayed(1, secs(5)).with_timer(&timer)).unwrap();
    queue.send(Message::new(2).with_timer(&timer)).unwrap();
    simulation.advance(secs(9));
    assert_eq!(ready(&queue), [2]);
    assert!(!timer.cancel());
}

#[test]
fn a_hundred_thousand_names_leave_no_memory_behind() {
    let (broker, simulation, queue) = queue();
    let round = |from: u64| {
        for n in from..from + 10_000 {
            queue.send(delayed(n, secs(1)).with_timer(format!("a rather long name {n}"))).unwrap();
            if n % 2 == 0 {
                assert!(broker.cancel_timer(&format!("a rather long name {n}")));
            }
        }
        simulation.advance(secs(1));
        assert_eq!(ready(&queue).len(), 5_000);
    };
    // Its tables keep the size of the largest round.
    (0..2).for_each(|n| round(n * 10_000));
    let before = HELD.with(Cell::get);
    (2..12).for_each(|n| round(n * 10_000));
    let grown = HELD.with(Cell::get) - before;
    assert!(grown < 100_000, "{grown} bytes");
}

fn fan_out(broker: &Broker) -> (Topic<u64>, Vec<Queue<u64>>) {
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queues: Vec<Queue<u64>> = (0..3).map(|n| broker.queue(format!("q{n}")).declare().unwrap()).collect();
    queues.iter().for_each(|queue| topic.bind(queue, "#").unwrap());
    (topic, queues)
}

#[test]
fn routing_happens_at_once_and_delivery_later() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let [even, acme]: [Queue<u64>; 2] = ["even", "acme"].map(|name| broker.queue(name).declare().unwrap());
    topic.bind(&even, Binding::filter(|n: &u64| n.is_multiple_of(2))).unwrap();
    topic.bind(&acme, Binding::headers(Headers::all([("tenant", "acme")]))).unwrap();
    for n in 0..4 {
        let tenant = if n < 2 { "acme" } else { "other" };
        topic.publish("k", delayed(n, secs(5)).with_header("tenant", tenant)).unwrap();
    }
    assert_eq!((even.delayed(), acme.delayed()), (2, 2));
    simulation.advance(secs(5));
    assert_eq!((ready(&even), ready(&acme)), (vec![0, 2], vec![0, 1]));
}

#[test]
fn one_cancellation_reaches_all_copies() {
    let (broker, simulation) = Broker::simulated(1);
    let (topic, queues) = fan_out(&broker);
    let timer = Timer::new();
    topic.publish("k", delayed(1, secs(5)).with_timer(&timer)).unwrap();
    topic.publish("k", delayed(2, secs(5)).with_timer("name")).unwrap();
    assert!(timer.cancel() && broker.cancel_timer("name"));
    simulation.advance(secs(9));
    for queue in &queues {
        assert_eq!((queue.len(), queue.delayed(), queue.stats().cancelled), (0, 0, 2));
        is_conserved(queue);
    }
}

/// Lets a cancelling thread race with the end of the delay, so often; how often it was in time.
fn race(
    rounds: u64,
    by_name: bool,
    mut publish: impl FnMut(Message<u64>),
    came: impl Fn() -> Vec<u64>,
    broker: &Broker,
) -> u64 {
    let timer = Timer::new();
    let (to, from) = std::sync::mpsc::sync_channel::<u64>(0);
    let (answer, answers) = std::sync::mpsc::channel();
    let (handle, broker) = (timer.clone(), broker.clone());
    let canceller = thread::spawn(move || {
        for n in from {
            (0..(n * 37) % 400).for_each(|_| std::hint::spin_loop());
            let _ = answer.send(if by_name { broker.cancel_timer("name") } else { handle.cancel() });
        }
    });
    let mut in_time = 0;
    for n in 0..rounds {
        let message = delayed(n, Duration::from_micros(n % 60));
        publish(if by_name { message.with_timer("name") } else { message.with_timer(&timer) });
        to.send(n).unwrap();
        let cancelled = answers.recv().unwrap();
        let all = came();
        let expected = if cancelled { Vec::new() } else { vec![n; all.len().max(1)] };
        assert_eq!(all, expected, "round {n}, cancelled: {cancelled}");
        in_time += u64::from(cancelled);
    }
    drop(to);
    canceller.join().unwrap();
    in_time
}

/// What came of a round once nothing is delayed any more.
fn settled(queues: &[Queue<u64>]) -> Vec<u64> {
    // Thousands of rounds wait here, so they do not sleep.
    while queues.iter().any(|queue| queue.delayed() > 0) {
        thread::yield_now();
    }
    let all: Vec<_> = queues.iter().map(ready).collect();
    assert!(all.iter().all(|one| *one == all[0]), "all or none: {all:?}");
    all.concat()
}

#[test]
fn cancelling_and_firing_exclude_each_other() {
    within(secs(60), || {
        let broker = Broker::new();
        let queue: Queue<u64> = broker.queue("q").declare().unwrap();
        let queues = [queue.clone()];
        let in_time = race(10_000, false, |m| _ = queue.send(m).unwrap(), || settled(&queues), &broker);
        assert_eq!(queue.stats().acked + in_time, 10_000);
        is_conserved(&queue);
    });
}

#[test]
fn cancelling_by_name_hits_all_copies_or_none() {
    within(secs(60), || {
        let broker = Broker::new();
        let (topic, queues) = fan_out(&broker);
        let in_time = race(3_000, true, |m| _ = topic.publish("k", m).unwrap(), || settled(&queues), &broker);
        for queue in &queues {
            assert_eq!(queue.stats().acked + in_time, 3_000);
            is_conserved(queue);
        }
    });
}

#[test]
fn a_cancellation_during_the_publish_hits_all_copies_or_none() {
    within(secs(60), || {
        let broker = Broker::new();
        let (topic, queues) = fan_out(&broker);
        let (start, end) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let cancelled = Arc::new(AtomicUsize::new(0));
        let other = {
            let (start, end, cancelled, broker) = (start.clone(), end.clone(), cancelled.clone(), broker.clone());
            move || {
                for n in 0..1_000 {
                    start.wait();
                    (0..n % 300).for_each(|_| std::hint::spin_loop());
                    cancelled.store(usize::from(broker.cancel_timer("name")), Ordering::SeqCst);
                    end.wait();
                }
            }
        };
        let thread = thread::spawn(other);
        for n in 0..1_000 {
            start.wait();
            topic.publish("k", delayed(n, secs(3600)).with_timer("name")).unwrap();
            end.wait();
            let expected = 1 - cancelled.load(Ordering::SeqCst);
            queues.iter().for_each(|queue| assert_eq!(queue.delayed(), expected, "round {n}"));
            broker.cancel_timer("name");
        }
        thread.join().unwrap();
    });
}

#[test]
fn redriving_others_leaves_the_delayed_alone() {
    let (_broker, simulation, queue) = queue();
    queue.send(delayed(1, secs(10))).unwrap();
    queue.send(2).unwrap();
    queue.try_recv().unwrap().dead_letter("no").unwrap();
    assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 1);
    assert_eq!((ready(&queue), queue.delayed()), (vec![2], 1));
    simulation.advance(secs(10));
    assert_eq!(ready(&queue), [1]);
}

#[test]
fn one_that_a_full_queue_gave_up_on_is_not_early_when_redriven() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").capacity(1).overflow(Overflow::DeadLetter).declare().unwrap();
    let timer = Timer::new();
    queue.send(1).unwrap();
    queue.send(delayed(2, secs(10)).with_timer(&timer)).unwrap();
    assert_eq!(queue.dead_letters().len(), 1);
    queue.dead_letters().redrive().run().unwrap();
    assert_eq!((queue.len(), queue.delayed()), (1, 1));
    assert!(!timer.cancel());
    simulation.advance(secs(10));
    assert_eq!(ready(&queue), [2, 1], "ahead of the fresh, as what is redriven over time");
    queue.send(delayed(3, secs(10))).unwrap();
    queue.dead_letters().purge();
    assert_eq!(queue.purge(), 1);
    is_conserved(&queue);
}

#[test]
fn a_copy_sent_on_does_not_wait_again() {
    let (broker, simulation, queue) = queue();
    let next: Queue<u64> = broker.queue("next").declare().unwrap();
    queue.send(delayed(1, secs(10)).with_key("k")).unwrap();
    simulation.advance(secs(10));
    let delivery = queue.try_recv().unwrap();
    next.send((*delivery).clone()).unwrap();
    delivery.ack().unwrap();
    assert_eq!(ready(&next), [1]);
}

#[test]
fn shutdown_reports_what_is_still_delayed_and_it_can_be_drained() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    let came = Arc::new(Mutex::new(Vec::new()));
    let log = came.clone();
    queue.consumer().start(move |message: &Message<u64>| log.lock().unwrap().push(**message)).unwrap();
    queue.send(delayed(1, Duration::from_millis(20))).unwrap();
    queue.send(delayed(2, secs(3600)).with_timer("later")).unwrap();
    // It does not wait for what comes later than that.
    let report = broker.shutdown(secs(60));
    assert_eq!(*came.lock().unwrap(), [1]);
    assert_eq!((report.undelivered.len(), report.undelivered[0].delayed), (1, 1));
    let left: Vec<_> = queue.drain().iter().map(|message| *message.payload()).collect();
    assert_eq!(left, [2]);
    assert!(!broker.cancel_timer("later"));
    is_conserved(&queue);
}

#[test]
fn a_million_delayed_messages_cost_128_bytes_each_at_most() {
    const MESSAGES: u64 = 1_000_000;
    // Unoptimized, fewer of them show the same. Both fill tables that double just about.
    let messages = if cfg!(debug_assertions) { MESSAGES / 8 } else { MESSAGES };
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue: Queue<u64> = broker.queue("q").capacity(messages as usize).declare().unwrap();
    let (before, start) = (HELD.with(Cell::get), Instant::now());
    for n in 0..messages {
        queue.send(delayed(n, Duration::from_nanos(1 + n * 7919 % messages))).unwrap();
    }
    let each = (HELD.with(Cell::get) - before) as u64 / messages - size_of::<u64>() as u64;
    let inserted = start.elapsed();
    clock.advance(secs(1));
    while queue.delayed() > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let fired = start.elapsed() - inserted;
    assert_eq!(queue.len() as u64, messages);
    println!("{messages} delayed: {each} bytes each beside the payload, {inserted:?} in, {fired:?} out");
    assert!(each <= 128, "{each} bytes each");
}

#[test]
fn whichever_way_it_is_sent_a_delay_alone_takes_no_memory_but_its_place() {
    const MESSAGES: u64 = 16_384;
    type Way = fn(&Topic<u64>, &Queue<u64>);
    fn each() -> impl Iterator<Item = Message<u64>> {
        (0..MESSAGES).map(|n| delayed(n, secs(1 + n % 7)))
    }
    let ways: [(&str, Way); 4] = [
        ("send", |_, queue| each().for_each(|message| _ = queue.send(message).unwrap())),
        ("send_batch", |_, queue| _ = queue.send_batch(each()).unwrap()),
        ("publish", |topic, _| each().for_each(|message| _ = topic.publish("k", message).unwrap())),
        ("publish_batch", |topic, _| _ = topic.publish_batch("k", each()).unwrap()),
    ];
    for (way, send) in ways {
        let (broker, _simulation) = Broker::simulated(1);
        let queue: Queue<u64> = broker.queue("q").capacity(MESSAGES as usize).declare().unwrap();
        let topic: Topic<u64> = broker.topic("t").declare().unwrap();
        topic.bind(&queue, "k").unwrap();
        topic.publish("k", 0).unwrap();
        assert_eq!(ready(&queue), [0]);
        let (before, asked) = (HELD.with(Cell::get), ASKED.with(Cell::get));
        send(&topic, &queue);
        let held = (HELD.with(Cell::get) - before) as u64 / MESSAGES;
        let asked = ASKED.with(Cell::get) - asked;
        assert!(asked < 100, "{way}: asked for memory {asked} times");
        assert_eq!(queue.delayed() as u64, MESSAGES);
        assert!(held <= 128, "{way}: {held} bytes each");
    }
}

#[test]
fn a_delayed_publish_that_is_refused_comes_back_with_its_delay() {
    let (broker, simulation) = Broker::simulated(1);
    let queue = broker.queue("q").capacity(2).overflow(Overflow::Reject).declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").refuse_duplicates(secs(60)).declare().unwrap();
    let free: Topic<u64> = broker.topic("free").declare().unwrap();
    topic.bind(&queue, "k").unwrap();
    free.bind(&queue, "k").unwrap();
    topic.publish("k", delayed(1, secs(1)).with_id(7)).unwrap();
    assert!(topic.publish("k", delayed(1, secs(1)).with_id(7)).is_err(), "a duplicate");
    assert!(topic.publish_batch("k", [delayed(1, secs(1)).with_id(7)]).is_err(), "a duplicate");
    free.publish("k", delayed(2, secs(2))).unwrap();
    let refused = free.publish("k", delayed(3, secs(5))).unwrap_err().into_message();
    let batch = free.publish_batch("k", (4..7).map(|n| delayed(n, secs(5)))).unwrap_err();
    assert_eq!((batch.accepted, batch.rest.len()), (0, 2));
    assert_eq!((free.stats().published, topic.stats().published), (1, 1));
    simulation.advance(secs(1));
    assert_eq!(ready(&queue), [1]);
    assert_eq!(free.publish("k", refused).unwrap().routed(), 1);
    simulation.advance(secs(5) - NANO);
    assert_eq!(ready(&queue), [2]);
    simulation.advance(NANO);
    assert_eq!(ready(&queue), [3]);
    free.publish_batch("k", batch.rest).unwrap();
    simulation.advance(secs(5));
    assert_eq!(ready(&queue), [5, 6]);
    queue.close();
    assert!(free.publish("k", delayed(8, secs(1))).is_err());
    is_conserved(&queue);
}

#[test]
fn a_closed_queue_ends_after_what_falls_due_at_the_last_moment() {
    within(Duration::from_secs(60), || {
        for round in 0..200 {
            let broker = Broker::new();
            let queue: Queue<u32> = broker.queue("q").declare().unwrap();
            (0..100).for_each(|n| _ = queue.send(Message::new(n).with_delay(Duration::from_millis(1))).unwrap());
            queue.close();
            let mut got = 0;
            loop {
                match queue.try_recv() {
                    Ok(delivery) => {
                        delivery.ack().unwrap();
                        got += 1;
                    }
                    Err(TryRecvError::Closed) => break,
                    Err(_) => {}
                }
            }
            assert_eq!((got, queue.len()), (100, 0), "round {round}");
        }
    });
}
