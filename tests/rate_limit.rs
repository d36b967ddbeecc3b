//! No window of time sees more messages than its rate allows, coming in or going out.

#![cfg(not(shuttle))]

mod common;

use common::{eventually, within};
use postroom::{
    Broker, Message, Overflow, PublishError, Queue, QueueBuilder, Rate, Retry, SendError, Simulation, Topic,
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

type Log<T> = Arc<Mutex<Vec<T>>>;

fn queue(settings: impl FnOnce(QueueBuilder<u32>) -> QueueBuilder<u32>) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = Broker::simulated(1);
    let queue = settings(broker.queue("q")).declare().unwrap();
    (broker, simulation, queue)
}

fn is_conserved(queue: &Queue<u32>) {
    assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats());
}

/// Handles and notes what came when, on the virtual clock.
fn watched(queue: &Queue<u32>, simulation: &Simulation, workers: usize) -> Log<(SystemTime, u32)> {
    let log = Log::default();
    let (times, clock) = (log.clone(), simulation.clone());
    let handler = move |message: &Message<u32>| times.lock().unwrap().push((clock.now(), **message));
    queue.consumer().workers(workers).start(handler).unwrap();
    log
}

/// The most that came in any window of that length.
fn most_in<T: Copy + Ord + std::ops::Add<Duration, Output = T>>(window: Duration, times: &[T]) -> usize {
    let inside = |i: usize| times[i..].iter().take_while(|time| **time < times[i] + window).count();
    (0..times.len()).map(inside).max().unwrap_or(0)
}

#[test]
fn every_window_keeps_to_the_rate() {
    for (rate, burst, workers) in [(500, 1, 1), (500, 50, 4), (30, 2, 3)] {
        let (_broker, simulation, queue) = queue(|q| q.rate_limit(Rate::per_second(rate).burst(burst)));
        let log = watched(&queue, &simulation, workers);
        queue.send_batch(0..1000).unwrap();
        simulation.advance(secs(1));
        let times: Vec<_> = log.lock().unwrap().iter().map(|entry| entry.0).collect();
        let due = (rate + burst as i32) as usize;
        assert!((due - 1..=due).contains(&times.len()), "{} of {due}", times.len());
        let allowed = (rate / 10) as usize + burst as usize;
        assert!(most_in(millis(100), &times) <= allowed, "{rate}/s, {burst}");
        simulation.advance(secs(60));
        assert_eq!(log.lock().unwrap().len(), 1000);
        is_conserved(&queue);
    }
}

#[test]
fn batches_keep_to_the_rate() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit(Rate::per_second(10).burst(3)));
    queue.send_batch(0..10).unwrap();
    let batch = queue.recv_batch(10).unwrap();
    assert_eq!(batch.len(), 3);
    batch.ack().unwrap();
    simulation.advance(millis(250));
    let batch = queue.recv_batch(10).unwrap();
    assert_eq!(batch.len(), 2);
    batch.ack().unwrap();
}

#[test]
fn real_time_keeps_to_the_rate_too() {
    within(secs(60), || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").rate_limit(Rate::per_second(500).burst(5)).declare().unwrap();
        let times: Log<Instant> = Log::default();
        let log = times.clone();
        queue.consumer().workers(3).start(move |_: &Message<u32>| log.lock().unwrap().push(Instant::now())).unwrap();
        let start = Instant::now();
        queue.send_batch(0..300).unwrap();
        eventually("all handled", || queue.stats().acked == 300);
        assert!(start.elapsed() >= millis(589), "{:?}", start.elapsed());
        // A thread that is held up between the hand-over and its note makes a window look fuller.
        let most = most_in(millis(100), &times.lock().unwrap());
        assert!(most <= 2 * 55, "{most} in 100 ms");
    });
}

#[test]
fn a_batch_handler_that_has_to_wait_sleeps() {
    within(secs(60), || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("sleeper").rate_limit(Rate::per_second(2)).declare().unwrap();
        queue.consumer().start_batch(8, Duration::ZERO, |_: &[Message<u32>]| {}).unwrap();
        queue.send_batch(0..3).unwrap();
        eventually("the first", || queue.stats().acked == 1);
        #[cfg(target_os = "linux")]
        {
            let before = cpu_of_threads("sleeper-");
            thread::sleep(millis(300));
            let used = cpu_of_threads("sleeper-") - before;
            assert!(used <= 5, "{used} of 30 ticks");
        }
        eventually("the last", || queue.stats().acked == 3);
    });
}

/// Hundredths of a second that threads of this name have computed.
#[cfg(target_os = "linux")]
fn cpu_of_threads(prefix: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let ours = stats.filter(|stat| stat.split_once('(').is_some_and(|(_, name)| name.starts_with(prefix)));
    let ticks = |stat: String| -> u64 {
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    ours.map(ticks).sum()
}

#[test]
fn one_key_waits_while_others_flow_and_each_keeps_its_order() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit_per_key(Rate::per_second(10)));
    let log = watched(&queue, &simulation, 1);
    let start = simulation.now();
    queue.send_batch((0..5).map(|n| Message::new(n).with_key("hot"))).unwrap();
    queue.send_batch((100..105).map(|n| Message::new(n).with_key(format!("k{n}")))).unwrap();
    queue.send(200).unwrap();
    simulation.run_until_idle();
    let now: Vec<_> = log.lock().unwrap().iter().map(|entry| entry.1).collect();
    assert_eq!(now, [0, 100, 101, 102, 103, 104, 200]);
    assert_eq!(queue.delayed(), 4);
    simulation.advance(millis(50));
    queue.send(Message::new(5).with_key("hot")).unwrap();
    simulation.advance(secs(5));
    let later: Vec<_> =
        log.lock().unwrap()[7..].iter().map(|(at, n)| (at.duration_since(start).unwrap(), *n)).collect();
    assert_eq!(later, (1..6).map(|n| (millis(100 * u64::from(n)), n)).collect::<Vec<_>>());
    is_conserved(&queue);
}

#[test]
fn redeliveries_wait_for_their_keys_turn_as_well() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit_per_key(Rate::per_second(10)).retry(Retry::immediate(4)));
    let times: Log<SystemTime> = Log::default();
    let (log, clock) = (times.clone(), simulation.clone());
    let handler = move |_: &Message<u32>| {
        log.lock().unwrap().push(clock.now());
        Err::<(), _>(std::io::Error::other("no"))
    };
    queue.consumer().start(handler).unwrap();
    queue.send_batch((0..2).map(|n| Message::new(n).with_key("k"))).unwrap();
    simulation.advance(secs(9));
    let times = times.lock().unwrap();
    assert_eq!((times.len(), most_in(millis(100), &times)), (10, 1));
    assert_eq!(queue.dead_letters().len(), 2);
    is_conserved(&queue);
}

#[test]
fn what_waits_for_its_keys_turn_can_be_cleared_whatever_it_holds() {
    let (_broker, _simulation, queue) = queue(|q| q.capacity(2).rate_limit_per_key(Rate::per_second(10)));
    queue.send(Message::new(1).with_key("k")).unwrap();
    queue.recv().unwrap().requeue().unwrap();
    queue.send(Message::new(2).with_key("k")).unwrap();
    assert!(queue.try_recv().is_err());
    assert_eq!((queue.delayed(), queue.purge()), (2, 2));
    queue.send_batch(0..2).unwrap();
    assert!(queue.try_send(3).is_err(), "capacity is what it was");
    is_conserved(&queue);
}

#[test]
fn a_change_counts_at_once_and_grants_no_burst() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit(Rate::per_minute(1)));
    let log = watched(&queue, &simulation, 1);
    queue.send_batch(0..20).unwrap();
    simulation.advance(secs(1));
    assert_eq!(log.lock().unwrap().len(), 1);
    for _ in 0..100 {
        queue.set_rate_limit(Rate::per_second(10)).unwrap();
        simulation.run_until_idle();
    }
    assert_eq!(log.lock().unwrap().len(), 1);
    simulation.advance(millis(100));
    assert_eq!(log.lock().unwrap().len(), 2);
    queue.set_rate_limit(None).unwrap();
    simulation.run_until_idle();
    assert_eq!(log.lock().unwrap().len(), 20);
}

#[test]
fn lifting_the_limit_per_key_frees_those_who_wait_in_their_order() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit_per_key(Rate::per_minute(1)));
    let log = watched(&queue, &simulation, 1);
    queue.send_batch((0..5).map(|n| Message::new(n).with_key("k"))).unwrap();
    simulation.run_until_idle();
    assert_eq!(queue.delayed(), 4);
    queue.set_rate_limit_per_key(Rate::per_second(1)).unwrap();
    simulation.advance(secs(2));
    assert_eq!((log.lock().unwrap().len(), queue.delayed()), (3, 2));
    queue.set_rate_limit_per_key(None).unwrap();
    queue.send(Message::new(5).with_key("k")).unwrap();
    simulation.run_until_idle();
    let order: Vec<_> = log.lock().unwrap().iter().map(|entry| entry.1).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    is_conserved(&queue);
}

#[test]
fn consumers_that_sleep_notice_a_change() {
    within(secs(30), || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").rate_limit(Rate::per_minute(1)).declare().unwrap();
        queue.consumer().workers(2).start(|_: &Message<u32>| {}).unwrap();
        queue.send_batch(0..10).unwrap();
        eventually("the first", || queue.stats().acked == 1);
        thread::sleep(millis(20));
        queue.set_rate_limit(None).unwrap();
        eventually("the rest", || queue.stats().acked == 10);
    });
}

#[test]
fn admission_gives_back_what_comes_too_soon_and_says_when() {
    let (broker, simulation, queue) = queue(|q| q.admission(Rate::per_second(10)));
    queue.send(1).unwrap();
    simulation.advance(millis(30));
    let Err(SendError::Limited(refused)) = queue.send(2) else { panic!("let in") };
    assert_eq!((refused.retry_in(), **refused), (Some(millis(70)), 2));
    simulation.advance(millis(70) - Duration::from_nanos(1));
    assert!(queue.try_send(2).is_err());
    simulation.advance(Duration::from_nanos(1));
    queue.send(2).unwrap();
    let error = queue.send_batch(0..3).unwrap_err();
    assert_eq!((error.accepted, error.rest.len()), (0, 2));

    let topic: Topic<u32> = broker.topic("t").admission(Rate::per_second(1).burst(2)).declare().unwrap();
    let free: Queue<u32> = broker.queue("free").declare().unwrap();
    topic.bind(&free, "#").unwrap();
    (0..2).for_each(|n| _ = topic.publish("k", n).unwrap());
    let Err(PublishError::Limited(refused)) = topic.publish("k", 2) else { panic!("let in") };
    assert_eq!((refused.retry_in(), refused.by()), (Some(secs(1)), "t"));
    topic.set_admission(None).unwrap();
    topic.publish("k", 3).unwrap();
    assert_eq!(free.len(), 3);
}

#[test]
fn one_queue_over_its_limit_means_none_and_costs_the_others_nothing() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let free: Queue<u32> = broker.queue("free").admission(Rate::per_second(10)).declare().unwrap();
    let strict: Queue<u32> = broker.queue("strict").admission(Rate::per_second(1)).declare().unwrap();
    [&free, &strict].iter().for_each(|queue| topic.bind(*queue, "#").unwrap());
    topic.publish("k", 1).unwrap();
    simulation.advance(millis(100));
    let Err(PublishError::Limited(refused)) = topic.publish("k", 2) else { panic!("let in") };
    assert_eq!((refused.by(), refused.retry_in()), ("strict", Some(millis(900))));
    assert_eq!((free.len(), strict.len()), (1, 1));
    free.send(3).expect("the publish that came to nothing does not count");
}

#[test]
fn a_full_queue_keeps_to_its_admission_limit_whatever_its_policy() {
    for policy in [Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter] {
        let (_broker, _simulation, queue) =
            queue(|q| q.capacity(1).overflow(policy).admission(Rate::per_second(1).burst(3)));
        let taken = (0..10).filter(|n| queue.send(*n).is_ok()).count();
        assert_eq!((taken, queue.stats().published), (3, 3), "{policy:?}");
        is_conserved(&queue);
    }
}

#[test]
fn the_wait_is_estimated_from_what_leaves() {
    let (_broker, simulation, queue) = queue(|q| q.rate_limit(Rate::per_second(100)));
    queue.consumer().start(|_: &Message<u32>| {}).unwrap();
    queue.send_batch(0..1000).unwrap();
    assert_eq!(queue.estimated_wait(), None);
    simulation.advance(secs(2));
    let wait = queue.estimated_wait().unwrap();
    assert!(wait > millis(7_900) && wait < millis(8_100), "{wait:?}");
    simulation.advance(secs(20));
    assert_eq!(queue.estimated_wait(), Some(Duration::ZERO));
}

#[test]
fn the_estimate_bears_messages_taken_for_a_look() {
    let (_broker, simulation, queue) = queue(|q| q);
    queue.send_batch(0..3).unwrap();
    (0..3).for_each(|_| queue.recv().unwrap().dead_letter("no").unwrap());
    let dead = queue.dead_letters();
    let _ = dead.estimated_wait();
    dead.redrive()
        .filter(|_| {
            let _ = dead.estimated_wait();
            false
        })
        .run()
        .unwrap();
    simulation.advance(secs(1));
    assert_eq!(dead.estimated_wait(), None);
}

#[test]
fn rates_that_cannot_be_are_refused_by_name() {
    let (broker, _simulation, queue) = queue(|q| q);
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let bad = [f64::NAN, 0.0, -1.0, f64::INFINITY].map(Rate::per_second);
    for rate in bad.into_iter().chain([Rate::per_second(1).burst(0)]) {
        let named: Queue<u32> = queue.clone();
        assert!(named.set_rate_limit(rate).is_err() && named.set_rate_limit_per_key(rate).is_err());
        assert!(named.set_admission(rate).is_err() && topic.set_admission(rate).is_err());
        let builder: QueueBuilder<u32> = broker.queue("bad").rate_limit(rate).rate_limit_per_key(rate).admission(rate);
        assert_eq!(builder.declare().unwrap_err().problems().len(), 3);
        assert!(broker.topic::<u32>("bad").admission(rate).declare().is_err());
    }
}

#[test]
fn what_a_full_queue_refuses_does_not_count_as_admitted() {
    let (broker, _simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").admission(Rate::per_second(1).burst(2)).declare().unwrap();
    let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    topic.try_publish("x", 1).unwrap();
    assert!(matches!(topic.try_publish("x", 2), Err(PublishError::Full(_))));
    queue.recv().unwrap().ack().unwrap();
    topic.try_publish("x", 3).unwrap();
    queue.recv().unwrap().ack().unwrap();
    assert!(matches!(topic.try_publish("x", 4), Err(PublishError::Limited(_))));
}
