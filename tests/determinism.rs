//! Time and chance are parameters: the same seed gives the same run, on one thread, in virtual time.

mod common;

use common::{eventually, within};
use postroom::{Broker, ManualClock, Message, Outcome, Queue, RecvError, RecvTimeoutError, Retry, SendError, Topic};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

/// Every handling of a topology with jitter, several consumers and pipelines, with its virtual time.
fn trace(seed: u64) -> Vec<String> {
    let (broker, simulation) = Broker::simulated(seed);
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    let retry = Retry::fixed(SECOND).jitter(1.0).max_attempts(4);
    let queues: Vec<Queue<u32>> =
        ["a", "b", "c"].iter().map(|name| broker.queue(*name).retry(retry.clone()).declare().unwrap()).collect();
    let log = Arc::new(Mutex::new(Vec::new()));
    for queue in &queues {
        topic.bind(queue, "#").unwrap();
        let (lines, clock, name) = (Arc::clone(&log), simulation.clone(), queue.name().to_owned());
        let handler = move |m: &Message<u32>| {
            let time = clock.now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
            lines.lock().unwrap().push(format!("{time} {name} {} {} {}", **m, m.attempt(), m.id()));
            if (**m + m.attempt()).is_multiple_of(3) { Outcome::Ack } else { Outcome::Retry }
        };
        queue.consumer().workers(2).start(handler).unwrap();
    }
    topic.publish_batch("k", 0..20).unwrap();
    simulation.advance(SECOND * 60);
    let lines = log.lock().unwrap();
    lines.clone()
}

/// The lines without what differs by chance alone.
fn sorted_work(trace: &[String]) -> Vec<String> {
    let mut work: Vec<_> = trace.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
    work.sort();
    work
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another_order() {
    let (one, again, other) = (trace(1), trace(1), trace(2));
    assert!(one.len() > 100);
    assert_eq!(one, again);
    assert_ne!(one, other);
    assert_eq!(sorted_work(&one), sorted_work(&other), "the same work is done in either order");
}

#[test]
fn ids_do_not_depend_on_other_brokers() {
    let run = || {
        let (broker, _) = Broker::simulated(1);
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        queue.send(1).unwrap()
    };
    assert_eq!(run(), run());
}

#[cfg(target_os = "linux")]
#[test]
fn a_simulation_starts_no_threads() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("unthreaded").retry(Retry::fixed(SECOND)).declare().unwrap();
    let me = thread::current().id();
    let handler = move |m: &Message<u32>| {
        assert_eq!(thread::current().id(), me);
        if m.attempt() < 3 { Outcome::Retry } else { Outcome::Ack }
    };
    queue.consumer().workers(4).start(handler).unwrap();
    queue.send_batch(0..600).unwrap();
    simulation.advance(SECOND * 10);
    assert_eq!((queue.stats().acked, common::threads_named("unthreaded")), (600, 0));
}

#[test]
fn a_handler_that_blocks_in_a_publish_lets_others_run() {
    let (broker, simulation) = Broker::simulated(3);
    let narrow: Queue<u32> = broker.queue("narrow").capacity(1).declare().unwrap();
    let work: Queue<u32> = broker.queue("work").declare().unwrap();
    let next = narrow.clone();
    let handler = move |m: &Message<u32>| {
        (0..10).for_each(|n| {
            next.send(**m * 10 + n).unwrap();
        })
    };
    work.consumer().start(handler).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    narrow.consumer().start(move |m: &Message<u32>| log.lock().unwrap().push(**m)).unwrap();
    work.send_batch(0..5).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[test]
fn a_handler_that_waits_for_an_answer_gets_it() {
    let (broker, simulation) = Broker::simulated(3);
    let asks: Queue<u32> = broker.queue("asks").declare().unwrap();
    let answers: Queue<u32> = broker.queue("answers").declare().unwrap();
    let work: Queue<u32> = broker.queue("work").declare().unwrap();
    let back = answers.clone();
    asks.consumer()
        .start(move |m: &Message<u32>| {
            back.send(**m * 2).unwrap();
        })
        .unwrap();
    let handler = move |m: &Message<u32>| {
        asks.send(**m).unwrap();
        let answer = answers.recv().unwrap();
        assert_eq!(*answer.payload(), **m * 2);
        answer.ack().unwrap();
    };
    work.consumer().start(handler).unwrap();
    work.send_batch(0..5).unwrap();
    simulation.run_until_idle();
    assert_eq!((work.stats().acked, work.stats().panicked), (5, 0));
}

#[test]
fn a_standstill_is_reported_instead_of_hanging() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
    assert_eq!(queue.recv().unwrap_err(), RecvError::Deadlock);
    assert_eq!(queue.recv_batch(3).unwrap_err(), RecvError::Deadlock);
    queue.send(1).unwrap();
    let error = queue.send(2).unwrap_err();
    assert!(matches!(error, SendError::Deadlock(_)), "{error}");
    assert!(error.to_string().contains("would never end"));
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    assert!(matches!(topic.publish("k", 3), Err(postroom::PublishError::Deadlock(_))));
    assert_eq!(queue.send_batch([4, 5]).unwrap_err().rest.len(), 1);
}

#[test]
fn timeouts_pass_in_virtual_time() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
    let start = simulation.now();
    assert_eq!(queue.recv_timeout(SECOND * 60).unwrap_err(), RecvTimeoutError::Timeout);
    queue.send(1).unwrap();
    assert!(queue.send_timeout(2, SECOND * 60).is_err());
    assert_eq!(simulation.now().duration_since(start).unwrap(), SECOND * 120);
}

#[test]
fn stopping_a_consumer_from_its_simulated_handler_counts_what_it_had_in_hand() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let slot: Arc<Mutex<Option<postroom::Consumer>>> = Arc::default();
    let me = Arc::clone(&slot);
    let handler = move |_: &Message<u32>| me.lock().unwrap().as_ref().unwrap().stop();
    *slot.lock().unwrap() = Some(queue.consumer().start(handler).unwrap());
    queue.send_batch([1, 2]).unwrap();
    simulation.run_until_idle();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.in_flight, stats.ready, stats.unaccounted()), (1, 0, 1, 0));
}

#[test]
fn a_manual_clock_moves_the_retries_of_real_threads() {
    within(LONG, || {
        let clock = ManualClock::new();
        let broker = Broker::builder().clock(clock.clone()).build().unwrap();
        let queue: Queue<u32> = broker.queue("q").retry(Retry::fixed(SECOND * 3600)).declare().unwrap();
        let handler = |m: &Message<u32>| if m.attempt() < 3 { Outcome::Retry } else { Outcome::Ack };
        queue.consumer().workers(2).start(handler).unwrap();
        queue.send(1).unwrap();
        for attempts in 1..=2 {
            // Not as it did before the clock was moved.
            eventually("it waits", || (queue.stats().retried, queue.delayed()) == (attempts, 1));
            thread::sleep(Duration::from_millis(5));
            assert_eq!(queue.delayed(), 1, "nothing comes before its time");
            clock.advance(SECOND * 3600);
        }
        eventually("it is done", || queue.stats().acked == 1);
        assert!(broker.shutdown(LONG).is_clean());
    });
}

#[test]
fn a_manual_clock_wakes_every_timed_wait_at_its_time() {
    // A thread that is held up before it begins to wait ends its wait later than the others: that is another try.
    let tries = [20, 200, 1_000, 5_000].map(Duration::from_millis);
    assert!(tries.into_iter().any(|pause| within(2 * LONG, move || three_timed_waits(pause))), "a wait never ended");
}

/// Whether each of three waits ends when the clock, which moves when all of them have begun, comes to its time.
fn three_timed_waits(pause: Duration) -> bool {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue: Queue<u32> = broker.queue("q").capacity(1).declare().unwrap();
    let (tell, told) = mpsc::channel();
    for seconds in [10, 20, 30] {
        let (queue, tell) = (queue.clone(), tell.clone());
        thread::spawn(move || {
            assert!(queue.recv_timeout(SECOND * seconds).is_err());
            let _ = tell.send(seconds);
        });
    }
    thread::sleep(pause);
    for seconds in [10, 20, 30] {
        assert!(told.try_recv().is_err(), "before its time");
        clock.advance(SECOND * 10);
        if told.recv_timeout(pause.max(SECOND)) != Ok(seconds) {
            return false;
        }
    }
    true
}

#[test]
fn wait_idle_says_exactly_when_all_is_settled() {
    within(LONG, || {
        let broker = Broker::new();
        let (first, second): (Queue<u32>, Queue<u32>) =
            (broker.queue("a").capacity(2).declare().unwrap(), broker.queue("b").capacity(2).declare().unwrap());
        let next = second.clone();
        first
            .consumer()
            .workers(2)
            .start(move |m: &Message<u32>| {
                next.send(**m).unwrap();
            })
            .unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        let handler = move |m: &Message<u32>| {
            if m.attempt() == 1 && m.is_multiple_of(7) {
                return Outcome::RetryAfter(Duration::from_millis(1));
            }
            count.fetch_add(1, Ordering::SeqCst);
            Outcome::Ack
        };
        second.consumer().start(handler).unwrap();
        for round in 1..=100 {
            first.send_batch(0..5).unwrap();
            assert!(broker.wait_idle(LONG));
            assert_eq!((done.load(Ordering::SeqCst), second.stats().acked), (round * 5, round as u64 * 5));
        }
    });
}

#[test]
fn wait_idle_says_no_while_something_is_in_flight() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send_batch([1, 2]).unwrap();
    assert!(broker.wait_idle(Duration::ZERO), "nobody is there to take what is ready");
    let delivery = queue.recv().unwrap();
    assert!(!broker.wait_idle(Duration::from_millis(5)));
    delivery.ack().unwrap();
    assert!(broker.wait_idle(Duration::ZERO));
}
