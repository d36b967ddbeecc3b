//! Subscribers get a delayed message when it is due, and none that has outlived its time to live.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::eventually;
use postroom::{BroadcastError, Broker, Lag, ManualClock, Message, PublishError, Queue, Subscriber, Timer, Topic};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn topic(broker: &Broker) -> Topic<u32> {
    broker.topic("numbers").declare().unwrap()
}

fn later(n: u32) -> Message<u32> {
    Message::new(n).with_delay(SECOND)
}

fn seen(subscriber: &Subscriber<u32>) -> Vec<u32> {
    std::iter::from_fn(|| subscriber.try_recv().ok()).map(|message| **message).collect()
}

#[test]
fn a_delayed_message_comes_when_it_is_due_to_queues_and_subscribers_alike() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    assert_eq!(topic.publish("n", later(1)).unwrap().routed(), 1);
    topic.publish("n", 2).unwrap();
    simulation.advance(SECOND - Duration::from_nanos(1));
    assert_eq!((seen(&subscriber), queue.len()), (vec![2], 1));
    simulation.advance(Duration::from_nanos(1));
    assert_eq!((seen(&subscriber), queue.len()), (vec![1], 2));
}

#[test]
fn whoever_has_subscribed_when_it_is_due_gets_it() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").keep_last(1).declare().unwrap();
    let early = topic.subscribe().open().unwrap();
    topic.publish("n", later(1)).unwrap();
    drop(early);
    let late = topic.subscribe().open().unwrap();
    simulation.advance(SECOND);
    assert_eq!(seen(&late), [1]);
    topic.publish("n", later(2)).unwrap();
    assert_eq!(seen(&topic.subscribe().replay_last(1).open().unwrap()), [1], "not remembered yet");
    simulation.advance(SECOND);
    assert_eq!(seen(&topic.subscribe().replay_last(1).open().unwrap()), [2]);
}

#[test]
fn what_nobody_watches_is_remembered_when_it_is_due() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").keep_last(1).declare().unwrap();
    topic.publish("n", later(1)).unwrap();
    assert_eq!(seen(&topic.subscribe().replay_last(1).open().unwrap()), [0_u32; 0]);
    simulation.advance(SECOND);
    assert_eq!(seen(&topic.subscribe().replay_last(1).open().unwrap()), [1]);
}

#[test]
fn delays_in_a_batch_and_to_a_lone_subscriber_are_kept() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let subscriber = topic.subscribe().open().unwrap();
    topic.publish_batch("n", [Message::new(1), later(3), Message::new(2), later(4)]).unwrap();
    assert_eq!(seen(&subscriber), [1, 2]);
    simulation.advance(SECOND);
    assert_eq!(seen(&subscriber), [3, 4]);
}

#[test]
fn on_threads_a_delayed_message_wakes_its_subscriber() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = heard.clone();
    topic.subscribe().start(move |n: &Message<u32>| hear.lock().unwrap().push(**n)).unwrap();
    topic.publish("n", Message::new(1).with_delay(Duration::from_millis(20))).unwrap();
    eventually("it is heard", || *heard.lock().unwrap() == [1]);
}

#[test]
fn a_cancelled_timer_reaches_nobody_and_one_that_fired_everybody() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    for bound in [false, true] {
        if bound {
            topic.bind(&queue, "#").unwrap();
        }
        let timer = Timer::new();
        topic.publish("n", later(1).with_timer(&timer)).unwrap();
        assert!(timer.cancel());
        topic.publish("n", later(2).with_timer(&timer)).unwrap();
        topic.publish("n", later(3).with_timer(&timer)).unwrap();
        simulation.advance(SECOND);
        assert!(!timer.cancel());
        assert_eq!(seen(&subscriber), [3], "each publish with a timer replaces the one before");
        topic.publish("n", later(4).with_timer("named")).unwrap();
        topic.publish("n", Message::new(5).with_timer("named")).unwrap();
        assert!(!broker.cancel_timer("named"));
        simulation.advance(SECOND);
        assert_eq!(seen(&subscriber), [5], "without a delay it replaces as well");
    }
    assert_eq!(queue.drain().into_iter().map(|m| *m).collect::<Vec<_>>(), [3, 5]);
}

#[test]
fn a_delayed_message_takes_no_room_and_waits_for_some_when_it_is_due() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
    topic.publish("n", later(1)).unwrap();
    topic.publish("n", later(2)).unwrap();
    topic.try_publish("n", 0).unwrap();
    assert!(topic.try_publish("n", later(3)).is_ok(), "it needs no room now");
    simulation.advance(SECOND * 10);
    assert!(matches!(topic.try_publish("n", 9), Err(PublishError::Full(_))));
    for n in 0..=3 {
        assert_eq!(**subscriber.try_recv().unwrap(), n, "in the order in which they were due");
    }
    assert_eq!(subscriber.try_recv().unwrap_err(), BroadcastError::Empty);
    topic.try_publish("n", later(5)).unwrap();
    simulation.advance(SECOND);
    assert_eq!(seen(&subscriber), [5], "the next one's time is known again");
}

#[test]
fn a_full_subscriber_that_leaves_makes_room_for_what_is_due() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let [leaves, stays] = [1, 9].map(|capacity| topic.subscribe().capacity(capacity).lag(Lag::Block).open().unwrap());
    topic.publish("n", 0).unwrap();
    topic.publish("n", later(1)).unwrap();
    simulation.advance(SECOND);
    assert_eq!(seen(&stays), [0]);
    drop(leaves);
    assert_eq!(seen(&stays), [1]);
}

#[test]
fn delayed_broadcasts_to_handlers_hold_the_shutdown_and_others_are_reported() {
    let (broker, _simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = heard.clone();
    topic.subscribe().start(move |n: &Message<u32>| hear.lock().unwrap().push(**n)).unwrap();
    topic.publish("n", later(1)).unwrap();
    topic.publish("n", Message::new(2).with_delay(SECOND * 100)).unwrap();
    let report = broker.shutdown(SECOND * 10);
    assert_eq!(*heard.lock().unwrap(), [1]);
    let left: Vec<_> = report.undelivered.iter().map(|left| (left.queue.as_str(), left.delayed)).collect();
    assert_eq!(left, [("numbers", 1)]);
    assert!(matches!(topic.publish("n", later(3)), Err(PublishError::Closed(_))));
}

#[test]
fn what_has_outlived_its_time_to_live_is_left_out_and_counted() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("numbers").keep_last(10).declare().unwrap();
    let subscribers = [topic.subscribe().open().unwrap(), topic.subscribe().open().unwrap()];
    let briefly = |n: u32| Message::new(n).with_ttl(SECOND);
    topic.publish_batch("n", [briefly(1), Message::new(2), briefly(3), later(4).with_ttl(SECOND)]).unwrap();
    assert_eq!(**subscribers[0].recv().unwrap(), 1);
    simulation.advance(SECOND);
    assert_eq!(seen(&subscribers[0]), [2, 4], "its time to live begins with the end of its delay");
    simulation.advance(SECOND);
    assert_eq!(seen(&subscribers[1]), [2]);
    assert_eq!(topic.stats().expired, 1 + 3);
    assert_eq!(seen(&topic.subscribe().replay_last(4).open().unwrap()), [2]);
}

#[test]
fn a_handler_goes_on_after_messages_that_have_expired() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u32> = broker.topic("t").keep_latest_by_key().declare().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    topic.publish("n", Message::new(1).with_ttl(Duration::ZERO).with_key("a")).unwrap();
    topic.publish("n", Message::new(2).with_key("b")).unwrap();
    let hear = heard.clone();
    let handler = move |n: &Message<u32>| hear.lock().unwrap().push(**n);
    let subscription = topic.subscribe().replay_latest_by_key().start(handler).unwrap();
    topic.publish("n", Message::new(3).with_ttl(Duration::ZERO)).unwrap();
    simulation.run_until_idle();
    assert!(subscription.is_running());
    topic.publish("n", 4).unwrap();
    simulation.run_until_idle();
    assert_eq!((heard.lock().unwrap().clone(), subscription.backlog()), (vec![2, 4], 0));
}

#[test]
fn on_a_manual_clock_each_of_several_timeouts_ends() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let topic = topic(&broker);
    let waits: Vec<_> = [3, 1, 2]
        .map(|seconds| {
            let subscriber = topic.subscribe().open().unwrap();
            thread::spawn(move || subscriber.recv_timeout(SECOND * seconds).unwrap_err())
        })
        .into();
    // Bit by bit: the first deadline must not use up the others' call.
    eventually("all of them end", || {
        clock.advance(SECOND / 10);
        waits.iter().all(thread::JoinHandle::is_finished)
    });
    waits.into_iter().for_each(|wait| assert_eq!(wait.join().unwrap(), BroadcastError::Timeout));
}

#[test]
fn what_a_batch_missed_is_told_by_the_next_receive() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let subscriber = topic.subscribe().capacity(24).lag(Lag::DropOldest).open().unwrap();
    topic.publish("n", 0).unwrap();
    topic.publish("n", 1).unwrap();
    topic.publish("n", Message::new(2).with_ttl(SECOND)).unwrap();
    assert_eq!(**subscriber.recv().unwrap(), 0);
    // It had taken 1 and 2 along, and finds only then that the one has expired, and what came behind it is gone.
    simulation.advance(2 * SECOND);
    (3..60).for_each(|n| _ = topic.publish("n", n).unwrap());
    let batch: Vec<u32> = subscriber.recv_batch(10).unwrap().iter().map(|message| ***message).collect();
    assert_eq!(batch, [1]);
    let BroadcastError::Lagged(missed) = subscriber.recv_batch(10).unwrap_err() else { panic!("nobody was told") };
    assert_eq!(u64::from(**subscriber.recv().unwrap()), 3 + missed);
}
