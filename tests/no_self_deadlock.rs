//! A worker that would wait for ever gets its message back; one that would not, waits.

#![cfg(not(shuttle))]

mod common;

use common::{eventually, within};
use postroom::{Broker, Consumer, Event, Message, Outcome, PublishError, Queue, SendError, Topic};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What workers were told, with the message each got back.
type Refusals = Arc<Mutex<Vec<(String, u32)>>>;

fn queue(broker: &Broker, name: &str, capacity: usize) -> Queue<u32> {
    broker.queue(name).capacity(capacity).declare().unwrap()
}

/// Workers begin only once all queues are as a test wants them.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn pass(&self) {
        while !self.0.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Workers of `from` that send each message on to `to`, up to `last`, and note deadlocks.
fn forward(from: &Queue<u32>, to: &Queue<u32>, workers: usize, gate: &Gate, refusals: &Refusals) -> Consumer {
    let (to, gate, refusals) = (to.clone(), gate.clone(), refusals.clone());
    let handler = move |message: &Message<u32>| {
        gate.pass();
        if let Err(error) = to.send(**message) {
            assert!(matches!(error, SendError::Deadlock(_)), "{error}");
            let words = error.to_string();
            refusals.lock().unwrap().push((words, *error.into_message().payload()));
        }
    };
    from.consumer().workers(workers).start(handler).unwrap()
}

/// Fills the queue, once its workers have their hands full.
fn fill(queue: &Queue<u32>, in_hand: usize, numbers: &mut impl Iterator<Item = u32>) {
    for _ in 0..in_hand {
        queue.send(numbers.next().unwrap()).unwrap();
    }
    eventually("hands are full", || queue.in_flight() == in_hand);
    (0..queue.capacity()).for_each(|_| _ = queue.try_send(numbers.next().unwrap()).unwrap());
}

/// A ring of queues, every one of them full and every worker about to send on: what they were told, and
/// how many messages went in.
fn ring(names: &[&str], workers: usize) -> (Vec<(String, u32)>, u64) {
    let broker = Broker::new();
    let (gate, refusals) = (Gate::default(), Refusals::default());
    let queues: Vec<_> = names.iter().map(|name| queue(&broker, name, 1)).collect();
    let mut numbers = 0..;
    let consumers: Vec<_> = (0..queues.len())
        .map(|n| forward(&queues[n], &queues[(n + 1) % queues.len()], workers, &gate, &refusals))
        .collect();
    queues.iter().for_each(|queue| fill(queue, workers, &mut numbers));
    gate.open();
    eventually("somebody is told", || !refusals.lock().unwrap().is_empty());
    // One that is told goes on, and so do the others: round and round until shutdown.
    consumers.iter().for_each(Consumer::pause);
    drop(broker.shutdown(millis(5)));
    queues.iter().for_each(|queue| assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats()));
    let told = refusals.lock().unwrap().clone();
    (told, numbers.next().unwrap().into())
}

#[test]
fn a_worker_does_not_wait_for_its_own_full_queue() {
    within(secs(30), || {
        let (told, _) = ring(&["a"], 1);
        assert!(told[0].0.contains("a -> a"), "{told:?}");
    });
}

#[test]
fn rings_of_two_and_three_are_named() {
    within(secs(60), || {
        let (told, sent) = ring(&["a", "b"], 1);
        assert!(told[0].0.contains("a -> b -> a") || told[0].0.contains("b -> a -> b"), "{told:?}");
        assert!(u64::from(told[0].1) < sent);
        let (told, _) = ring(&["a", "b", "c"], 1);
        let ways = ["a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c"];
        assert!(ways.iter().any(|way| told[0].0.contains(way)), "{told:?}");
    });
}

#[test]
fn several_workers_that_are_all_blocked_are_told() {
    within(secs(60), || {
        assert!(!ring(&["a"], 3).0.is_empty());
        assert!(!ring(&["a", "b"], 3).0.is_empty());
    });
}

#[test]
fn rings_end_every_time() {
    within(secs(120), || {
        for round in 0..200 {
            let names = &["a", "b", "c"][..1 + round % 3];
            assert!(!ring(names, 1 + round % 2).0.is_empty());
        }
    });
}

#[test]
fn one_free_worker_is_enough_to_wait_for() {
    within(secs(30), || {
        let broker = Broker::new();
        let q = queue(&broker, "q", 1);
        let (filled, over) = (Gate::default(), Gate::default());
        let told = Refusals::default();
        let (to, full, end, log) = (q.clone(), filled.clone(), over.clone(), told.clone());
        // The first sends into the full queue; the second takes its time, then there is room.
        let handler = move |message: &Message<u32>| match **message {
            0 => {
                full.pass();
                if let Err(error) = to.send(9) {
                    log.lock().unwrap().push((error.to_string(), 9));
                }
            }
            1 => end.pass(),
            _ => {}
        };
        q.consumer().workers(2).start(handler).unwrap();
        fill(&q, 2, &mut (0..));
        filled.open();
        thread::sleep(millis(30));
        assert_eq!((q.in_flight(), q.len()), (2, 1));
        over.open();
        eventually("all are done", || q.stats().acked == 4);
        assert!(told.lock().unwrap().is_empty(), "{told:?}");
        assert_eq!(q.stats().unaccounted(), 0);
    });
}

/// A worker of "q" that waits for room in it, until `free` is called.
fn blocked_until(free: impl FnOnce(&Queue<u32>), receives: bool) -> Vec<(String, u32)> {
    let broker = Broker::new();
    let (gate, told) = (Gate::default(), Refusals::default());
    let q = queue(&broker, "q", 1);
    if receives {
        assert!(q.try_recv().is_err());
    }
    forward(&q, &q, 1, &gate, &told);
    fill(&q, 1, &mut (0..));
    gate.open();
    thread::sleep(millis(50));
    let early = told.lock().unwrap().len();
    assert_eq!(early, usize::from(!receives));
    free(&q);
    // Paused workers would not count; closing ends the round and round.
    q.close();
    broker.shutdown(secs(5));
    told.lock().unwrap().clone()
}

#[test]
fn somebody_who_receives_by_hand_may_still_come() {
    within(secs(30), || {
        let told = blocked_until(|q| q.recv().unwrap().ack().unwrap(), true);
        assert!(told.is_empty(), "{told:?}");
    });
}

#[test]
fn the_last_free_worker_that_leaves_turns_a_wait_into_an_error() {
    within(secs(30), || {
        let broker = Broker::new();
        let (a, b) = (queue(&broker, "a", 1), queue(&broker, "b", 1));
        let (gate, told) = (Gate::default(), Refusals::default());
        forward(&a, &b, 1, &Gate(Arc::new(AtomicBool::new(true))), &told);
        let (back, pass, log) = (a.clone(), gate.clone(), told.clone());
        let handler = move |message: &Message<u32>| {
            if **message == 100 {
                return pass.pass();
            }
            if let Err(error) = back.send(**message) {
                log.lock().unwrap().push((error.to_string(), **message));
            }
        };
        let consumer = b.consumer().workers(2).start(handler).unwrap();
        // One worker of b has something else to do; the other, and that of a, wait for each other.
        b.send(100).unwrap();
        eventually("one is busy", || b.in_flight() == 1);
        for n in 0..4 {
            a.send(n).unwrap();
        }
        thread::sleep(millis(50));
        assert!(told.lock().unwrap().is_empty());
        consumer.scale_to(1).unwrap();
        gate.open();
        eventually("it is told", || !told.lock().unwrap().is_empty() || (a.is_empty() && b.is_empty()));
        a.close();
        b.close();
        broker.shutdown(secs(5));
        [&a, &b].iter().for_each(|queue| assert_eq!(queue.stats().unaccounted(), 0));
        let told = told.lock().unwrap();
        assert!(
            told.iter().any(|(words, _)| words.contains("a -> b -> a") || words.contains("b -> a -> b")),
            "{told:?}"
        );
    });
}

#[test]
fn a_fan_out_that_leads_back_is_told_and_reaches_nobody() {
    within(secs(30), || {
        let broker = Broker::new();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let (own, other) = (queue(&broker, "own", 1), queue(&broker, "other", 10));
        topic.bind(&other, "#").unwrap();
        topic.bind(&own, "#").unwrap();
        let (gate, told) = (Gate::default(), Refusals::default());
        let (pass, log) = (gate.clone(), told.clone());
        let handler = move |message: &Message<u32>| {
            pass.pass();
            if let Err(error) = topic.publish("k", **message + 10) {
                assert!(matches!(error, PublishError::Deadlock(_)), "{error}");
                let words = error.to_string();
                log.lock().unwrap().push((words, *error.into_message().payload()));
            }
            Outcome::Ack
        };
        own.consumer().start(handler).unwrap();
        fill(&own, 1, &mut (0..));
        gate.open();
        eventually("it is told", || !told.lock().unwrap().is_empty());
        let first = told.lock().unwrap()[0].clone();
        assert!(first.0.contains("own -> own") && first.1 == 10, "{first:?}");
        assert!(other.list(99).iter().all(|message| **message != 10), "all or none");
        // The next one goes through, and so on until nobody empties the other queue.
        broker.shutdown(millis(20));
    });
}

#[test]
fn a_plain_thread_waits_as_ever() {
    within(secs(30), || {
        let broker = Broker::new();
        let q = queue(&broker, "q", 1);
        let (gate, done) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
        let (pass, count) = (gate.clone(), done.clone());
        let handler = move |_: &Message<u32>| {
            pass.pass();
            count.fetch_add(1, Ordering::SeqCst);
        };
        q.consumer().start(handler).unwrap();
        fill(&q, 1, &mut (0..));
        let sender = q.clone();
        let thread = thread::spawn(move || sender.send(7).map(drop).map_err(|error| error.to_string()));
        thread::sleep(millis(30));
        assert!(!thread.is_finished());
        gate.open();
        thread.join().unwrap().unwrap();
        eventually("all handled", || done.load(Ordering::SeqCst) == 3);
    });
}

#[test]
fn a_blocked_worker_is_told_of_after_the_threshold_once() {
    within(secs(30), || {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let log = events.clone();
        let told_at: Arc<Mutex<Option<Instant>>> = Arc::default();
        let at = told_at.clone();
        let hook = move |event: &Event| {
            at.lock().unwrap().get_or_insert_with(Instant::now);
            log.lock().unwrap().push(event.clone());
        };
        let broker = Broker::builder().blocked_warning(millis(30)).on_event(hook).build().unwrap();
        let (from, to) = (queue(&broker, "from", 9), queue(&broker, "to", 1));
        to.send(0).unwrap();
        forward(&from, &to, 1, &Gate(Arc::new(AtomicBool::new(true))), &Refusals::default());
        let begin = Instant::now();
        from.send(1).unwrap();
        eventually("it is told of", || !events.lock().unwrap().is_empty());
        assert!(told_at.lock().unwrap().unwrap() - begin >= millis(30), "too soon");
        thread::sleep(millis(100));
        let events = events.lock().unwrap();
        let [Event::WorkerBlocked { worker, works_for, waits_for }] = &events[..] else { panic!("{events:?}") };
        assert_eq!((worker.as_str(), works_for.as_str(), waits_for.as_str()), ("from-0", "from", "to"));
        to.recv().unwrap().ack().unwrap();
    });
}

#[test]
fn a_worker_that_has_room_but_has_not_woken_up_yet_is_not_stuck() {
    within(secs(60), || {
        // Three messages going round in two queues of one place each always leave room for one to move.
        let broker = Broker::new();
        let (a, b) = (queue(&broker, "a", 1), queue(&broker, "b", 1));
        let told = Refusals::default();
        let open = Gate(Arc::new(AtomicBool::new(true)));
        forward(&a, &b, 1, &open, &told);
        forward(&b, &a, 1, &open, &told);
        for n in 0..3 {
            a.send(n).unwrap();
        }
        // Fewer on a machine that takes its time.
        let end = Instant::now() + secs(5);
        let many = || a.stats().acked > 5_000 || a.stats().acked > 100 && Instant::now() > end;
        eventually("many rounds", || many() || !told.lock().unwrap().is_empty());
        assert!(told.lock().unwrap().is_empty(), "{told:?}");
        a.close();
        b.close();
        broker.shutdown(secs(5));
    });
}
