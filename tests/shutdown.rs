//! Shutdown loses nothing unreported, returns in time and leaves no thread behind.

mod common;

use common::{eventually, within};
use postroom::{
    Broker, ManualClock, Message, Outcome, PublishError, Queue, QueueBuilder, RecvError, Retry, SendError, Topic,
    TryRecvError,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(100);

#[test]
fn pipelines_are_drained_to_their_end() {
    within(LONG, || {
        let broker = Broker::new();
        let queues: Vec<Queue<u32>> =
            (0..4).map(|n| broker.queue(format!("stage-{n}")).capacity(2).declare().unwrap()).collect();
        let done = Arc::new(AtomicUsize::new(0));
        for pair in queues.windows(2) {
            let next = pair[1].clone();
            let handler = move |message: &Message<u32>| next.send(**message + 1).map(drop).unwrap();
            pair[0].consumer().workers(2).start(handler).unwrap();
        }
        let count = Arc::clone(&done);
        queues[3]
            .consumer()
            .start(move |_: &Message<u32>| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        queues[0].send_batch(0..200).unwrap();
        let report = broker.shutdown(LONG);
        assert!(report.is_clean(), "{report}");
        assert_eq!((done.load(Ordering::Relaxed), report.to_string().as_str()), (200, "nothing left"));
    });
}

#[test]
fn retries_due_in_time_still_happen() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").retry(Retry::fixed(Duration::from_millis(20))).declare().unwrap();
    queue.consumer().start(|m: &Message<u32>| if m.attempt() < 3 { Outcome::Retry } else { Outcome::Ack }).unwrap();
    queue.send(1).unwrap();
    assert!(broker.shutdown(LONG).is_clean());
    assert_eq!(queue.stats().acked, 1);
}

#[test]
fn outsiders_may_not_publish_any_more_while_workers_still_do() {
    within(LONG, || {
        let broker = Broker::new();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let (first, second): (Queue<u32>, Queue<u32>) =
            (broker.queue("a").declare().unwrap(), broker.queue("b").declare().unwrap());
        topic.bind(&second, "#").unwrap();
        let (entered, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (flag, gate, inner) = (Arc::clone(&entered), Arc::clone(&go), topic.clone());
        let handler = move |message: &Message<u32>| {
            flag.store(true, Ordering::SeqCst);
            while !gate.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            inner.publish("k", **message).map(drop).unwrap();
        };
        first.consumer().start(handler).unwrap();
        second.consumer().start(|_: &Message<u32>| ()).unwrap();
        first.send(1).unwrap();
        eventually("the handler runs", || entered.load(Ordering::SeqCst));
        let stopping = broker.clone();
        let shutdown = thread::spawn(move || stopping.shutdown(LONG));
        let mut accepted = 1;
        eventually("outsiders are refused", || {
            let answer = first.try_send(2);
            accepted += u64::from(answer.is_ok());
            matches!(answer, Err(postroom::TrySendError::Closed(_)))
        });
        assert!(matches!(topic.publish("k", 2), Err(PublishError::Closed(_))));
        go.store(true, Ordering::SeqCst);
        let report = shutdown.join().unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(second.stats().acked, accepted);
        assert!(broker.queue::<u32>("new").declare().is_err());
        assert!(first.consumer().start(|_: &Message<u32>| ()).is_err());
    });
}

#[test]
fn what_is_left_is_reported_and_comes_out_typed() {
    let broker = Broker::new();
    let builder = broker.queue("q").retry(Retry::fixed(Duration::from_secs(3600)));
    let queue: Queue<String> = builder.declare().unwrap();
    queue.send_batch(["ready", "delayed", "held", "dead"].map(String::from)).unwrap();
    let mut batch = queue.recv_batch(4).unwrap();
    batch.next().unwrap().requeue().unwrap();
    batch.next().unwrap().retry().unwrap();
    let held = batch.next().unwrap();
    batch.next().unwrap().dead_letter("no").unwrap();
    let report = broker.shutdown(Duration::from_millis(10));
    assert!(!report.is_clean());
    let left = &report.undelivered[0];
    assert_eq!((left.queue.as_str(), left.ready, left.delayed, left.in_flight, left.total()), ("q", 1, 1, 1, 3));
    assert_eq!((report.dead_letters[0].queue.as_str(), report.dead_letters[0].ready), ("q.dead", 1));
    let text = report.to_string();
    assert!(text.contains("undelivered in \"q\": 1 ready, 1 delayed, 1 in flight"), "{text}");
    assert!(serde_json::to_string(&report).unwrap().contains("q.dead"));
    drop(held);
    let mut out: Vec<String> = queue.drain().into_iter().map(|m| m.try_into_payload().unwrap()).collect();
    out.sort();
    assert_eq!(out, ["delayed", "held", "ready"]);
    assert_eq!(queue.dead_letters().drain().len(), 1);
    assert!(broker.shutdown(Duration::ZERO).is_clean());
    assert_eq!(queue.recv().unwrap_err(), RecvError::Closed);
}

/// A consumer whose handler does not return before the sender is dropped.
fn stuck(broker: &Broker) -> (Queue<u32>, mpsc::Sender<()>) {
    let queue: Queue<u32> = broker.queue("stuck").declare().unwrap();
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let entered = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&entered);
    let handler = move |_: &Message<u32>| {
        flag.store(true, Ordering::SeqCst);
        let _ = gate.lock().unwrap().recv();
    };
    queue.consumer().start(handler).unwrap();
    queue.send(1).unwrap();
    eventually("the handler runs", || entered.load(Ordering::SeqCst));
    (queue, release)
}

/// Whether it takes no longer than `limit` at least once in many times: other programs may disturb a run.
fn takes_at_most(limit: Duration, mut work: impl FnMut() -> Duration) -> bool {
    let begin = Instant::now();
    std::iter::from_fn(|| (begin.elapsed() < LONG / 2).then(&mut work)).any(|took| took <= limit)
}

#[test]
fn a_stuck_handler_is_left_behind_and_reported() {
    let attempt = || {
        let broker = Broker::new();
        let (queue, release) = stuck(&broker);
        let other: Queue<u32> = broker.queue("other").declare().unwrap();
        other.consumer().start(|_: &Message<u32>| ()).unwrap();
        other.send_batch(0..100).unwrap();
        let start = Instant::now();
        let report = broker.shutdown(SOON);
        let took = start.elapsed();
        assert!(took >= SOON, "{took:?}");
        drop(release);
        eventually("the message comes back", || queue.len() == 1 && queue.in_flight() == 0);
        assert_eq!((queue.drain().len(), queue.stats().unaccounted()), (1, 0));
        let told_of_other = report.undelivered.iter().any(|left| left.queue == "other")
            || report.stuck_workers.iter().any(|(name, _)| name == "other");
        if told_of_other {
            return Duration::MAX; // its worker was held up, and not by the stuck one
        }
        assert_eq!(other.stats().acked, 100);
        assert_eq!(report.stuck_workers, [("stuck".to_owned(), 1)]);
        assert_eq!((report.undelivered.len(), report.undelivered[0].in_flight), (1, 1));
        took
    };
    assert!(within(LONG, move || takes_at_most(SOON + Duration::from_millis(100), attempt)));
}

#[test]
fn dropping_the_broker_does_not_wait_for_a_handler_that_shutdown_left_behind() {
    let (broker, release) = within(LONG, || {
        let broker = Broker::new();
        let (_, release) = stuck(&broker);
        assert!(!broker.shutdown(SOON).is_clean());
        (broker, release)
    });
    let (done, dropped) = mpsc::channel();
    let dropping = thread::spawn(move || {
        drop(broker);
        let _ = done.send(());
    });
    let in_time = dropped.recv_timeout(LONG).is_ok();
    drop(release);
    dropping.join().unwrap();
    assert!(in_time, "dropping the broker waited for the stuck handler");
}

#[test]
fn from_inside_a_handler_it_does_not_wait_for_that_handler() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let (answer, report) = mpsc::channel();
        let inner = broker.clone();
        let handler = move |_: &Message<u32>| answer.send(inner.shutdown(LONG)).unwrap();
        queue.consumer().workers(2).start(handler).unwrap();
        queue.send(1).unwrap();
        let report = report.recv_timeout(Duration::from_secs(10)).expect("it returns");
        assert_eq!((report.stuck_workers.len(), report.undelivered[0].in_flight), (0, 1));
        eventually("it is back", || queue.len() == 1);
        assert_eq!(queue.drain().len(), 1);
    });
}

#[test]
fn twice_and_from_many_threads_it_reports_what_is_left_then() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        queue.consumer().workers(3).start(|_: &Message<u32>| ()).unwrap();
        queue.send_batch(0..100).unwrap();
        let threads: Vec<_> = (0..4).map(|_| broker.clone()).map(|b| thread::spawn(move || b.shutdown(LONG))).collect();
        let reports: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(reports.iter().all(|report| report.is_clean()), "{reports:?}");
        assert!(broker.shutdown(LONG).is_clean());
        assert_eq!(queue.stats().acked, 100);
    });
}

#[test]
fn blocked_producers_and_receivers_are_released() {
    within(LONG, || {
        let broker = Broker::new();
        let full: Queue<u32> = broker.queue("full").capacity(1).declare().unwrap();
        let empty: Queue<u32> = broker.queue("empty").declare().unwrap();
        let both: Topic<u32> = broker.topic("t").declare().unwrap();
        [&full, &empty].into_iter().for_each(|queue| both.bind(queue, "#").unwrap());
        full.send(0).unwrap();
        let (f, e1, e2, e3) = (full.clone(), empty.clone(), empty.clone(), empty.clone());
        let sender = thread::spawn(move || matches!(f.send(1), Err(SendError::Closed(_))));
        let publisher = thread::spawn(move || matches!(both.publish("k", 2), Err(PublishError::Closed(_))));
        let receivers = [
            thread::spawn(move || e1.recv().is_err()),
            thread::spawn(move || e2.iter().count() == 0),
            thread::spawn(move || e3.recv_batch(9).is_err()),
        ];
        thread::sleep(Duration::from_millis(30));
        let start = Instant::now();
        let report = broker.shutdown(LONG);
        assert!(start.elapsed() < LONG);
        assert!(sender.join().unwrap() && publisher.join().unwrap());
        assert!(receivers.into_iter().all(|receiver| receiver.join().unwrap()));
        assert_eq!((report.undelivered.len(), report.undelivered[0].ready), (1, 1));
    });
}

/// A message of a key waits for its retry, another behind it; somebody waits for that one.
fn ends_behind_a_busy_key(broker: &Broker, queue: Queue<u32>) {
    queue.send_batch([1, 2].map(|n| Message::new(n).with_key("k"))).unwrap();
    queue.recv().unwrap().retry_after(Duration::from_secs(3600)).unwrap();
    let (one, batch) = (queue.clone(), queue.clone());
    let receivers = [thread::spawn(move || one.recv().map(drop)), thread::spawn(move || batch.recv_batch(9).map(drop))];
    thread::sleep(Duration::from_millis(30));
    broker.shutdown(Duration::ZERO);
    assert!(matches!(queue.try_recv(), Err(TryRecvError::Closed)));
    assert_eq!(queue.recv().unwrap_err(), RecvError::Closed);
    receivers.into_iter().for_each(|receiver| assert_eq!(receiver.join().unwrap(), Err(RecvError::Closed)));
}

#[test]
fn receivers_that_wait_behind_a_busy_key_are_released() {
    within(LONG, || {
        let broker = Broker::new();
        let queue = broker.queue("q").ordered_by_key().declare().unwrap();
        ends_behind_a_busy_key(&broker, queue);
    });
}

#[cfg(feature = "sqlite")]
#[test]
fn receivers_that_wait_behind_a_busy_key_of_a_durable_queue_are_released() {
    within(LONG, || {
        let folder = common::store::Folder::new();
        let broker = Broker::builder().store(folder.file()).build().unwrap();
        let queue = broker.queue("q").ordered_by_key().durable(postroom::store::Durability::Buffered);
        let queue = queue.window(100).declare().unwrap();
        ends_behind_a_busy_key(&broker, queue);
    });
}

#[test]
fn a_receiver_behind_a_busy_key_of_a_simulation_is_released() {
    let (broker, _simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").ordered_by_key().declare().unwrap();
    queue.send_batch([1, 2].map(|n| Message::new(n).with_key("k"))).unwrap();
    queue.recv().unwrap().retry_after(Duration::from_secs(3600)).unwrap();
    broker.shutdown(Duration::ZERO);
    assert_eq!(queue.recv().unwrap_err(), RecvError::Closed);
}

#[test]
fn a_worker_blocked_in_a_publish_is_released_and_joined() {
    let attempt = || {
        let broker = Broker::new();
        let full: Queue<u32> = broker.queue("full").capacity(1).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let next = full.clone();
        let handler = move |m: &Message<u32>| if next.send(**m).is_ok() { Outcome::Ack } else { Outcome::Retry };
        queue.consumer().start(handler).unwrap();
        queue.send_batch([1, 2]).unwrap();
        eventually("one is through", || full.len() == 1 && queue.in_flight() == 1 && queue.is_empty());
        let start = Instant::now();
        let report = broker.shutdown(SOON);
        let took = start.elapsed();
        assert_eq!(report.undelivered.iter().map(|left| left.total()).sum::<u64>(), 2, "{report}");
        // Closing the queue it waits for has released it, given a moment to run.
        if report.stuck_workers.is_empty() { took } else { Duration::MAX }
    };
    assert!(within(LONG, move || takes_at_most(SOON + Duration::from_millis(100), attempt)));
}

#[test]
fn a_paused_consumer_is_not_waited_for() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let consumer = queue.consumer().start(|_: &Message<u32>| ()).unwrap();
    consumer.pause();
    thread::sleep(Duration::from_millis(5));
    queue.send(1).unwrap();
    let start = Instant::now();
    let report = broker.shutdown(LONG);
    assert!(start.elapsed() < LONG);
    assert_eq!(report.undelivered.len() as u64 + queue.stats().acked, 1);
}

/// A retry that waits when its queue is closed comes back, and there is still somebody to take it.
#[test]
fn closing_a_queue_keeps_its_workers_until_its_retries_have_come() {
    within(LONG, || {
        let clock = ManualClock::new();
        let broker = Broker::builder().clock(clock.clone()).build().unwrap();
        let builder = broker.queue("q").retry(Retry::fixed(LONG));
        let queue: Queue<u32> = builder.declare().unwrap();
        let handler = |m: &Message<u32>| if m.attempt() == 1 { Outcome::Retry } else { Outcome::Ack };
        queue.consumer().start(handler).unwrap();
        queue.send(1).unwrap();
        eventually("it waits for its retry", || queue.delayed() == 1);
        queue.close();
        thread::sleep(SOON / 5); // for those who would leave
        clock.advance(LONG);
        eventually("it is handled", || queue.stats().acked == 1);
        let report = broker.shutdown(LONG);
        assert!(report.is_clean(), "{report}");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn no_thread_outlives_it() {
    within(LONG, || {
        let broker = Broker::new();
        let builder = broker.queue("gone").retry(Retry::fixed(Duration::from_millis(1)));
        let queue: Queue<u32> = builder.declare().unwrap();
        let consumer =
            queue.consumer().workers(4).start(|m: &Message<u32>| assert!(m.attempt() > 1, "on purpose")).unwrap();
        common::quiet();
        queue.send_batch(0..20).unwrap();
        consumer.scale_to(8).unwrap();
        consumer.scale_to(2).unwrap();
        assert!(broker.wait_idle(LONG));
        assert!(common::threads_named("gone") > 0);
        assert!(broker.shutdown(LONG).is_clean());
        // The system may list a joined thread for a moment longer.
        eventually("all gone", || common::threads_named("gone") == 0);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn dropping_the_last_broker_ends_the_threads_too() {
    within(LONG, || {
        let broker = Broker::new();
        let queue: Queue<u32> = broker.queue("left").declare().unwrap();
        queue.consumer().workers(3).start(|_: &Message<u32>| ()).unwrap();
        eventually("all there", || common::threads_named("left-") == 3);
        drop(broker);
        eventually("all gone", || common::threads_named("left-") == 0);
    });
}

#[test]
fn in_a_simulation_it_takes_no_time_and_ends_the_same() {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").retry(Retry::fixed(Duration::from_secs(600)).max_attempts(2));
    let queue: Queue<u32> = builder.declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| Outcome::Retry).unwrap();
    queue.send(1).unwrap();
    let before = simulation.now();
    assert!(broker.shutdown(Duration::from_secs(3600)).is_clean());
    assert_eq!(simulation.now().duration_since(before).unwrap(), Duration::from_secs(600));
    assert_eq!(queue.dead_letters().len(), 1);
}

#[test]
fn a_queue_without_broker_ends_by_close() {
    within(LONG, || {
        let queue: Queue<u32> = QueueBuilder::new("alone").declare().unwrap();
        queue.consumer().start(|_: &Message<u32>| ()).unwrap();
        queue.send_batch(0..100).unwrap();
        queue.close();
        eventually("drained", || queue.stats().acked == 100);
        assert!(matches!(queue.send(1), Err(SendError::Closed(_))));
    });
}

#[test]
fn dropping_the_broker_releases_a_worker_that_waits_for_room_nobody_makes() {
    within(LONG, || {
        let broker = Broker::new();
        let full: Queue<u32> = broker.queue("full").capacity(1).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        full.send(0).unwrap();
        let target = full.clone();
        let publish = move |n: &Message<u32>| target.send(**n).map(|_| ()).map_err(postroom::Failure::transient);
        queue.consumer().start(publish).unwrap();
        queue.send(1).unwrap();
        eventually("it waits", || queue.in_flight() == 1);
        drop(broker);
        assert_eq!((queue.in_flight(), full.len()), (0, 1));
    });
}
