//! A half message is published, dropped, or a dead letter: never lost, and never published unasked.

mod common;

use common::truth::Truth;
use common::{Bomb, ON_PURPOSE, eventually, quiet, within};
use postroom::{
    Broker, CheckBack, Event, HalfError, HalfFate, Message, Obstacle, Overflow, PrepareError, Published, Queue, Reason,
    Resolution, Simulation, Topic, TransactionalError,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

struct Set {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<u32>,
    queue: Queue<u32>,
    truth: Truth,
}

fn set(adjust: impl FnOnce(CheckBack<u32>) -> CheckBack<u32>, capacity: usize) -> Set {
    let (broker, simulation) = Broker::simulated(1);
    let (truth, clock) = (Truth::since(simulation.now()), simulation.clone());
    let check_back = truth.check_back(move || clock.now());
    let topic = broker.topic("orders").check_back(adjust(check_back)).declare().unwrap();
    let queue = broker.queue("billing").capacity(capacity).declare().unwrap();
    topic.bind(&queue, "order.*").unwrap();
    Set { broker, simulation, topic, queue, truth }
}

fn content(queue: &Queue<u32>) -> Vec<u32> {
    queue.list(100).iter().map(|message| **message).collect()
}

fn assert_conserved(topic: &Topic<u32>) {
    let halves = topic.stats().halves;
    let known = halves.committed + halves.rolled_back + halves.unresolved + halves.drained + halves.open;
    assert_eq!(halves.prepared, known, "{halves:?}");
}

#[test]
fn nobody_sees_it_before_it_is_committed_and_never_if_rolled_back() {
    let Set { topic, queue, simulation, .. } = set(|check| check, 9);
    let watcher = topic.subscribe().open().unwrap();
    let (good, bad) = (topic.prepare("order.a", 1).unwrap(), topic.prepare("order.b", 2).unwrap());
    simulation.advance(SECOND);
    assert_eq!((queue.len(), watcher.try_recv().is_err()), (0, true));
    let listed: Vec<_> = topic.halves().iter().map(|half| (**half, half.routing_key().to_owned())).collect();
    assert_eq!(listed, [(1, "order.a".to_owned()), (2, "order.b".to_owned())]);
    let id = good.id();
    assert_eq!(good.commit().unwrap().id(), id);
    bad.rollback().unwrap();
    simulation.advance(1000 * SECOND);
    assert_eq!((content(&queue), queue.peek().unwrap().id()), (vec![1], id));
    assert_eq!(**watcher.try_recv().unwrap(), 1);
    assert!(watcher.try_recv().is_err());
    let stats = topic.stats();
    let halves = stats.halves;
    assert_eq!((halves.prepared, halves.committed, halves.rolled_back, halves.open), (2, 1, 1, 0));
    assert_eq!((stats.published, halves.checked, halves.unknown), (1, 0, 0));
}

#[test]
fn a_lost_producer_is_asked_about_first_after_6_s_then_every_30_s_15_times() {
    let Set { topic, queue, simulation, truth, .. } = set(|check| check, 9);
    drop(topic.prepare("order.a", 7).unwrap());
    simulation.advance(1000 * SECOND);
    let expected: Vec<_> = (0..15).map(|n| (7, 6 + 30 * n)).collect();
    assert_eq!(truth.asked(), expected);
    assert!(queue.is_empty());
    let halves = topic.stats().halves;
    assert_eq!((halves.unknown, halves.checked, halves.unresolved, halves.open), (1, 15, 1, 0));
    assert_conserved(&topic);
}

#[test]
fn an_unresolved_one_is_a_dead_letter_that_can_be_published_after_all() {
    let Set { broker, topic, queue, simulation, .. } = set(|check| check.first(SECOND).every(2 * SECOND).times(3), 9);
    let half = topic.prepare("order.a", Message::new(7).with_header("tenant", "acme")).unwrap();
    let id = half.id();
    simulation.advance(4 * SECOND);
    assert_eq!(topic.stats().halves.open, 1);
    simulation.advance(SECOND);
    assert_eq!(topic.stats().halves.open, 0);
    let unsettled = half.commit().unwrap_err();
    assert_eq!(*unsettled.why(), HalfError::Settled(HalfFate::Unresolved));
    assert!(unsettled.into_half().is_none());

    let letters: Queue<postroom::DeadLetter<u32>> = broker.queue("orders.half.dead").find().unwrap();
    {
        let letter = letters.peek().unwrap();
        assert_eq!((letter.reason(), letter.queue(), letter.message().id()), (&Reason::Unresolved, "orders", id));
        assert_eq!(
            (letter.message().header("tenant"), letter.reason().to_string().as_str()),
            (Some("acme"), "transaction unresolved")
        );
    }
    let redriven = letters.redrive().run().unwrap();
    assert_eq!((redriven.moved, redriven.kept), (1, 0));
    assert_eq!((content(&queue), queue.peek().unwrap().routing_key()), (vec![7], "order.a"));
    assert_eq!(letters.stats().unaccounted(), 0);
}

#[test]
fn a_redrive_that_the_topic_refuses_keeps_the_letter() {
    let Set { broker, topic, queue, simulation, .. } = set(|check| check.first(SECOND).times(1), 1);
    drop(topic.prepare("order.a", 7).unwrap());
    simulation.advance(SECOND);
    queue.send(0).unwrap();
    let letters: Queue<postroom::DeadLetter<u32>> = broker.queue("orders.half.dead").find().unwrap();
    assert_eq!(letters.redrive().run().unwrap().moved, 0);
    queue.recv().unwrap().ack().unwrap();
    assert_eq!((letters.len(), letters.redrive().run().unwrap().moved), (1, 1));
    assert_eq!(content(&queue), [7]);
}

#[test]
fn the_check_back_decides_and_later_settlements_are_told_so() {
    let Set { topic, queue, simulation, truth, .. } = set(|check| check, 9);
    let halves = [1, 2].map(|n| topic.prepare("order.a", n).unwrap());
    let ids = halves.each_ref().map(postroom::Half::id);
    truth.is(1, Resolution::Commit);
    truth.is(2, Resolution::Rollback);
    simulation.advance(6 * SECOND);
    assert_eq!(content(&queue), [1]);
    let fates = halves.map(|half| half.commit().unwrap_err().why().clone());
    assert_eq!(fates, [HalfError::Settled(HalfFate::Committed), HalfError::Settled(HalfFate::RolledBack)]);
    assert_eq!(topic.commit_half(ids[0]), Err(HalfError::NotOpen(ids[0])));
    assert_eq!(topic.rollback_half(ids[1]), Err(HalfError::NotOpen(ids[1])));
    assert_eq!((content(&queue), topic.stats().halves.unknown), (vec![1], 0));
    assert_conserved(&topic);
}

#[test]
fn a_recovered_producer_settles_by_id_once() {
    let Set { topic, queue, .. } = set(|check| check, 9);
    drop(topic.prepare("order.a", Message::new(1).with_id(4711)).unwrap());
    drop(topic.prepare("order.a", Message::new(2).with_id(4712)).unwrap());
    assert_eq!(topic.commit_half(4711).unwrap().routed(), 1);
    assert_eq!(topic.commit_half(4711), Err(HalfError::NotOpen(4711.into())));
    topic.rollback_half(4712).unwrap();
    assert_eq!(topic.rollback_half(4712), Err(HalfError::NotOpen(4712.into())));
    assert_eq!(content(&queue), [1]);
}

#[test]
fn a_handle_never_settles_a_later_half_of_the_same_id() {
    let Set { topic, queue, .. } = set(|check| check, 9);
    let first = topic.prepare("order.a", Message::new(1).with_id(5)).unwrap();
    topic.commit_half(5).unwrap();
    let second = topic.prepare("order.a", Message::new(2).with_id(5)).unwrap();
    assert_eq!(*first.rollback().unwrap_err().why(), HalfError::Settled(HalfFate::Committed));
    second.commit().unwrap();
    assert_eq!(content(&queue), [1, 2]);
}

#[test]
fn a_commit_that_finds_no_room_keeps_the_half() {
    let Set { topic, queue, simulation, .. } = set(|check| check, 1);
    queue.send(0).unwrap();
    let half = topic.prepare("order.a", 7).unwrap();
    let unsettled = half.try_commit().unwrap_err();
    assert_eq!(*unsettled.why(), HalfError::Refused { by: "billing".into(), why: Obstacle::Full });
    let unsettled = unsettled.into_half().unwrap().commit_timeout(SECOND).unwrap_err();
    assert!(matches!(unsettled.why(), HalfError::Refused { why: Obstacle::Timeout, .. }), "{unsettled}");
    assert_eq!(topic.stats().halves.open, 1);
    queue.recv().unwrap().ack().unwrap();
    unsettled.into_half().unwrap().commit().unwrap();
    simulation.advance(100 * SECOND);
    assert_eq!((content(&queue), topic.stats().halves.checked), (vec![7], 0));
    assert_conserved(&topic);
}

#[test]
fn what_the_check_back_commits_into_a_full_queue_is_published_when_there_is_room() {
    let Set { topic, queue, simulation, truth, .. } = set(|check| check, 1);
    queue.send(0).unwrap();
    let half = topic.prepare("order.a", 7).unwrap();
    truth.is(7, Resolution::Commit);
    simulation.advance(10 * SECOND);
    assert_eq!((truth.asked().len(), topic.stats().halves.open), (1, 1), "asked once, tried every second");
    let why = half.rollback().unwrap_err().why().clone();
    assert_eq!(why, HalfError::Settled(HalfFate::Committed), "too late for that");
    queue.recv().unwrap().ack().unwrap();
    simulation.advance(SECOND);
    assert_eq!((content(&queue), truth.asked().len()), (vec![7], 1));
    assert_conserved(&topic);
}

#[test]
fn a_listener_that_panics_does_not_know() {
    quiet();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let builder = Broker::builder().on_event(move |event| sink.lock().unwrap().push(event.clone()));
    let (broker, simulation) = builder.build_simulated().unwrap();
    let calls = AtomicU32::new(0);
    let check_back = CheckBack::new(move |_: &Message<u32>| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("{ON_PURPOSE}"),
        _ => Resolution::Commit,
    });
    let topic: Topic<u32> = broker.topic("orders").check_back(check_back).declare().unwrap();
    let queue: Queue<u32> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let id = topic.prepare("k", 7).unwrap().id();
    simulation.advance(6 * SECOND);
    assert!(queue.is_empty());
    simulation.advance(30 * SECOND);
    assert_eq!((queue.len(), topic.stats().halves.panicked, topic.stats().halves.checked), (1, 1, 2));
    let text = format!("panicked: {ON_PURPOSE}");
    assert_eq!(*events.lock().unwrap(), [Event::CheckBackPanicked { topic: "orders".into(), message: id, text }]);
}

#[test]
fn bad_preparations_give_the_message_back() {
    let Set { broker, topic, simulation, .. } = set(|check| check.max_open(2), 9);
    let plain: Topic<u32> = broker.topic("plain").declare().unwrap();
    let error = plain.prepare("k", 1).unwrap_err();
    assert!(matches!(error, PrepareError::NoCheckBack(_)));
    assert_eq!(*error.into_message().payload(), 1);
    assert_eq!(plain.commit_half(1), Err(HalfError::NotOpen(1.into())));

    let first = topic.prepare("order.a", Message::new(1).with_id(9)).unwrap();
    let same = topic.prepare("order.a", Message::new(2).with_id(9)).unwrap_err();
    assert!(matches!(same, PrepareError::SameId(_)), "{same}");
    let second = topic.prepare("order.a", 2).unwrap();
    let many = topic.prepare("order.a", 3).unwrap_err();
    assert!(matches!(many, PrepareError::TooMany(_)), "{many}");
    first.rollback().unwrap();
    second.rollback().unwrap();
    topic.prepare("order.a", 4).unwrap().commit().unwrap();
    simulation.advance(SECOND);

    let never = CheckBack::new(|_: &Message<u32>| Resolution::Unknown);
    let result = broker.topic("bad").check_back(never.every(Duration::ZERO).times(0).max_open(0)).declare();
    assert_eq!(result.unwrap_err().problems().len(), 3);
    let _taken: Queue<u32> = broker.queue("taken.half.dead").declare().unwrap();
    let result = broker.topic("taken").check_back(CheckBack::new(|_: &Message<u32>| Resolution::Unknown)).declare();
    assert!(result.unwrap_err().to_string().contains("taken.half.dead"));
}

#[test]
fn it_is_described_and_compared() {
    let Set { broker, .. } = set(|check| check, 9);
    let text = broker.describe().to_string();
    let expected = "half messages: check-back after 6s, then every 30s, 15 times, at most 10000 open, \
                    dead letters to \"orders.half.dead\"";
    assert!(text.contains(expected), "{text}");
    let other = CheckBack::new(|_: &Message<u32>| Resolution::Unknown).times(3);
    assert!(broker.topic("orders").check_back(other).declare().unwrap_err().to_string().contains("3 times"));
    assert!(broker.topic::<u32>("orders").declare().is_err());
    let same = CheckBack::new(|_: &Message<u32>| Resolution::Unknown);
    broker.topic("orders").check_back(same).declare().unwrap();
}

#[test]
fn the_local_transaction_decides() {
    let Set { topic, queue, simulation, truth, .. } = set(|check| check, 9);
    let published = topic.publish_transactional("order.a", 1, |n| assert_eq!(**n, 1)).unwrap();
    assert!(matches!(published, Published::Committed(receipt) if receipt.routed() == 1));
    let published = topic.publish_transactional("order.a", 2, |_| "x".parse::<u32>().map(drop)).unwrap();
    let Published::RolledBack(Some(why)) = published else { panic!("{published:?}") };
    assert_eq!(why.to_string(), "invalid digit found in string");
    truth.is(3, Resolution::Commit);
    let published = topic.publish_transactional("order.a", 3, |_| Resolution::Unknown).unwrap();
    assert!(matches!(published, Published::Unknown(_)));
    assert_eq!(content(&queue), [1]);
    simulation.advance(6 * SECOND);
    assert_eq!(content(&queue), [1, 3]);
    assert_eq!(topic.stats().halves.unknown, 1);
}

#[test]
fn a_local_transaction_that_panics_is_asked_about() {
    quiet();
    let Set { topic, queue, simulation, truth, .. } = set(|check| check, 9);
    truth.is(1, Resolution::Commit);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _ = topic.publish_transactional("order.a", 1, |_| -> Resolution { panic!("{ON_PURPOSE}") });
    }));
    assert!(caught.is_err() && queue.is_empty());
    simulation.advance(6 * SECOND);
    assert_eq!(content(&queue), [1]);
}

#[test]
fn if_the_publish_after_the_local_transaction_is_refused_the_check_back_publishes() {
    let Set { topic, queue, simulation, truth, broker } = set(|check| check, 1);
    let strict: Queue<u32> = broker.queue("strict").capacity(1).overflow(Overflow::Reject).declare().unwrap();
    topic.bind(&strict, "strict").unwrap();
    strict.send(0).unwrap();
    truth.is(7, Resolution::Commit);
    let error = topic.publish_transactional("strict", 7, |_| ()).unwrap_err();
    assert!(matches!(&error, TransactionalError::Settle(unsettled) if unsettled.to_string().contains("is full")));
    drop(error);
    strict.recv().unwrap().ack().unwrap();
    simulation.advance(6 * SECOND);
    assert_eq!((content(&strict), content(&queue)), (vec![7], vec![]));
}

#[test]
fn delays_count_from_the_commit_and_keys_survive() {
    let Set { topic, queue, simulation, .. } = set(|check| check, 9);
    let message = Message::new(7).with_delay(10 * SECOND).with_ttl(5 * SECOND).with_key("k");
    let half = topic.prepare("order.a", message).unwrap();
    simulation.advance(5 * SECOND);
    half.commit().unwrap();
    simulation.advance(9 * SECOND);
    assert!(queue.is_empty());
    simulation.advance(SECOND);
    assert_eq!(queue.peek().unwrap().key(), Some("k"));
    simulation.advance(5 * SECOND);
    assert_eq!(queue.dead_letters().len(), 1);
}

#[test]
fn dead_letters_that_are_full_keep_the_half_until_there_is_room() {
    let (broker, simulation) = Broker::simulated(1);
    let letters = broker.queue("letters").capacity(1).declare().unwrap();
    let check_back = CheckBack::new(|_: &Message<u32>| Resolution::Unknown).first(SECOND).times(1);
    let topic: Topic<u32> = broker.topic("orders").check_back(check_back.dead_letter_to(&letters)).declare().unwrap();
    drop(topic.prepare("k", 1).unwrap());
    drop(topic.prepare("k", 2).unwrap());
    simulation.advance(10 * SECOND);
    assert_eq!((letters.len(), topic.stats().halves.open, topic.stats().halves.checked), (1, 1, 2));
    letters.recv().unwrap().ack().unwrap();
    simulation.advance(SECOND);
    assert_eq!((letters.len(), topic.stats().halves.open, topic.stats().halves.checked), (1, 0, 2));
}

#[test]
fn shutdown_asks_what_is_due_reports_the_rest_and_lets_it_be_taken_out() {
    let Set { broker, topic, queue, truth, .. } = set(|check| check, 9);
    let held = topic.prepare("order.a", 1).unwrap();
    drop(topic.prepare("order.a", 2).unwrap());
    truth.is(2, Resolution::Commit);
    queue.consumer().start(|_: &Message<u32>| ()).unwrap();
    let report = broker.shutdown(10 * SECOND);
    assert_eq!(queue.stats().acked, 1, "the check-back of 2 was due in time");
    assert_eq!(report.half_messages, [("orders".to_owned(), 1)]);
    assert!(!report.is_clean() && report.to_string().contains("1 open half messages of \"orders\""));
    let unsettled = held.commit().unwrap_err();
    assert_eq!(*unsettled.why(), HalfError::Closed);
    assert!(matches!(topic.prepare("order.a", 3), Err(PrepareError::Closed(_))));
    let left: Vec<u32> = topic.drain_halves().iter().map(|message| **message).collect();
    assert_eq!((left, topic.stats().halves.drained), (vec![1], 1));
    assert!(broker.shutdown(SECOND).half_messages.is_empty());
    assert_conserved(&topic);
}

#[test]
fn payloads_that_panic_as_they_go_harm_nobody() {
    quiet();
    let (broker, simulation) = Broker::simulated(1);
    let check_back = CheckBack::new(|_: &Message<Bomb>| Resolution::Rollback);
    let topic: Topic<Bomb> = broker.topic("bombs").check_back(check_back).declare().unwrap();
    topic.prepare("k", Bomb).unwrap().rollback().unwrap();
    drop(topic.prepare("k", Bomb).unwrap());
    simulation.advance(6 * SECOND);
    assert_eq!((topic.stats().halves.rolled_back, topic.stats().halves.open), (2, 0));
    drop(topic.prepare("k", Bomb).unwrap());
    drop(topic.prepare("k", Bomb).unwrap());
    let caught = catch_unwind(AssertUnwindSafe(|| drop((topic, broker, simulation))));
    assert!(caught.is_ok());
}

/// A listener that takes its time delays no timer, and its thread ends with the broker.
#[test]
fn a_slow_listener_holds_up_no_timer() {
    within(LONG, || {
        let broker = Broker::new();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let check_back = CheckBack::new(move |_: &Message<u32>| {
            let _ = wait.lock().unwrap().recv();
            Resolution::Rollback
        });
        let check_back = check_back.first(Duration::from_millis(1)).every(Duration::from_millis(1));
        let topic: Topic<u32> = broker.topic("slow").check_back(check_back).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").declare().unwrap();
        let half = topic.prepare("k", 1).unwrap();
        eventually("it is asked", || topic.stats().halves.open == 1 && common_threads("slow.check-back"));
        std::thread::sleep(Duration::from_millis(20));
        queue.send(Message::new(2).with_delay(Duration::from_millis(5))).unwrap();
        queue.recv_timeout(Duration::from_secs(10)).unwrap().ack().unwrap();
        half.commit().expect("the producer does not wait for the listener");
        drop(go);
        assert!(broker.shutdown(LONG).is_clean());
        // The system may list a joined thread for a moment longer.
        eventually("its thread has ended", || !common_threads("slow.check-back"));
    });
}

#[cfg(target_os = "linux")]
fn common_threads(name: &str) -> bool {
    common::threads_named(&name[..15.min(name.len())]) > 0
}

#[cfg(not(target_os = "linux"))]
fn common_threads(_: &str) -> bool {
    true
}

/// Producers that settle while the listener answers at the same time: each message once or never.
#[test]
fn racing_settlements_settle_once() {
    within(LONG, || {
        let broker = Broker::new();
        let check_back = CheckBack::new(|n: &Message<u32>| match **n % 3 {
            0 => Resolution::Commit,
            1 => Resolution::Rollback,
            _ => Resolution::Unknown,
        });
        let check_back = check_back.first(Duration::ZERO).every(Duration::from_micros(100)).times(1_000_000);
        let topic: Topic<u32> = broker.topic("orders").check_back(check_back).declare().unwrap();
        let queue: Queue<u32> = broker.queue("billing").capacity(5_000).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2_u32 {
                let topic = &topic;
                scope.spawn(move || {
                    for n in (0..1_000).map(|n| 2 * n + thread) {
                        let half = topic.prepare("k", n).unwrap();
                        let mut result = half.commit();
                        while let Err(unsettled) = result {
                            let Some(half) = unsettled.into_half() else { break };
                            result = half.commit();
                        }
                    }
                });
            }
        });
        assert!(broker.wait_idle(LONG));
        let halves = topic.stats().halves;
        assert_eq!((halves.prepared, halves.open), (2_000, 0), "{halves:?}");
        assert_eq!(halves.committed, queue.len() as u64);
        let mut got: Vec<u32> = queue.drain().iter().map(|message| **message).collect();
        got.sort_unstable();
        let all = got.len();
        got.dedup();
        assert_eq!(got.len(), all, "none twice");
        assert!(got.iter().filter(|n| **n % 3 != 1).count() >= 1_333, "all but those that may be rolled back");
        assert_conserved(&topic);
    });
}
