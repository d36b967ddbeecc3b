//! Broadcast lag is chosen, never silent; every subscriber sees every message from the moment it subscribed.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

mod common;

use common::eventually;
use postroom::{Binding, BroadcastError, Broker, Event, Lag, Message, Outcome, PublishError, Queue, Subscriber, Topic};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

fn topic(broker: &Broker) -> Topic<u32> {
    broker.topic("numbers").declare().unwrap()
}

fn publish(topic: &Topic<u32>, numbers: impl IntoIterator<Item = u32>) {
    numbers.into_iter().for_each(|n| _ = topic.publish("n", n).unwrap());
}

/// All that is there, up to the first error.
fn take_all(subscriber: &Subscriber<u32>) -> (Vec<u32>, BroadcastError) {
    let mut seen = Vec::new();
    loop {
        match subscriber.try_recv() {
            Ok(message) => seen.push(**message),
            Err(end) => return (seen, end),
        }
    }
}

fn lagged<T>(broker: &Broker, topic: &Topic<T>) -> (u64, u64, u64)
where
    T: Send + Sync + 'static,
{
    let stats = broker.stats();
    let topic = stats.topic(topic.name()).unwrap();
    (topic.subscribers, topic.lagged, topic.disconnected)
}

#[test]
fn every_subscriber_sees_what_is_published_from_then_on() {
    let broker = Broker::new();
    let topic = topic(&broker);
    publish(&topic, [1]);
    let first = topic.subscribe().open().unwrap();
    publish(&topic, [2, 3]);
    let second = topic.subscribe().open().unwrap();
    publish(&topic, [4]);
    assert_eq!(take_all(&first), (vec![2, 3, 4], BroadcastError::Empty));
    assert_eq!(take_all(&second), (vec![4], BroadcastError::Empty));
    assert_eq!(first.recv_timeout(Duration::from_millis(5)).unwrap_err(), BroadcastError::Timeout);
    assert_eq!(&*first.topic(), "numbers");
}

#[test]
fn the_message_is_shared_with_its_envelope() {
    struct NotClone(u8);
    let broker = Broker::new();
    let topic: Topic<NotClone> = broker.topic("t").declare().unwrap();
    let queue: Queue<NotClone> = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let [one, two] = [(), ()].map(|()| topic.subscribe().open().unwrap());
    let message = Message::new(NotClone(7)).with_key("k").with_header("tenant", "acme").with_id(99);
    assert_eq!(topic.publish("a.b", message).unwrap().routed(), 1);
    let (one, two) = (one.recv().unwrap(), two.recv().unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!((one.0, one.routing_key(), one.key(), one.header("tenant")), (7, "a.b", Some("k"), Some("acme")));
    assert_eq!((one.id().get(), one.attempt(), one.redelivered()), (99, 1, false));
    let delivery = queue.recv().unwrap();
    assert!(std::ptr::eq(delivery.payload(), one.payload()));
    delivery.ack().unwrap();
}

#[test]
fn batches_take_what_is_there() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().open().unwrap();
    assert!(subscriber.recv_batch(0).unwrap().is_empty());
    topic.publish_batch("n", 0..200).unwrap();
    assert_eq!(subscriber.backlog(), 200);
    let sizes = [150, 150].map(|max| subscriber.recv_batch(max).unwrap().len());
    assert_eq!(sizes, [150, 50]);
    assert_eq!(subscriber.backlog(), 0);
}

#[test]
fn a_batch_stops_before_a_gap_and_the_next_receive_reports_it() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().capacity(16).open().unwrap();
    publish(&topic, 0..3);
    // Two are taken ahead of which one is handed out.
    assert_eq!(**subscriber.recv().unwrap(), 0);
    publish(&topic, 3..30);
    assert_eq!(subscriber.recv_batch(100).unwrap().iter().map(|m| ***m).collect::<Vec<_>>(), [1]);
    assert_eq!(subscriber.recv().unwrap_err(), BroadcastError::Lagged(12));
    assert_eq!(take_all(&subscriber).0, (14..30).collect::<Vec<_>>());
}

#[test]
fn dropping_unsubscribes() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("numbers").mandatory().declare().unwrap();
    assert!(matches!(topic.publish("n", 1), Err(PublishError::Unroutable(_))));
    let subscriber = topic.subscribe().open().unwrap();
    publish(&topic, [1]);
    assert!(broker.describe().to_string().contains("routing Pattern, 1 subscriber\n"));
    assert!(broker.describe().mermaid().contains("1 subscribers"));
    drop(subscriber);
    assert!(matches!(topic.publish("n", 1), Err(PublishError::Unroutable(_))));
    assert_eq!(lagged(&broker, &topic), (0, 0, 0));
}

#[test]
fn what_only_subscribers_saw_is_not_unroutable() {
    let broker = Broker::new();
    let spare: Queue<u32> = broker.queue("spare").declare().unwrap();
    let topic: Topic<u32> = broker.topic("t").alternate(&spare).declare().unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    assert_eq!(topic.publish("n", 1).unwrap().routed(), 0);
    assert_eq!((spare.len(), topic.stats().unroutable), (0, 0));
    drop(subscriber);
    assert_eq!(topic.publish("n", 1).unwrap().routed(), 1);
    assert_eq!((spare.len(), topic.stats().unroutable), (1, 1));
}

#[test]
fn while_a_broker_drains_nobody_counts_as_subscribed_who_has_left() {
    let broker = Broker::new();
    let spare: Queue<u32> = broker.queue("spare").declare().unwrap();
    let caught: Topic<u32> = broker.topic("caught").alternate(&spare).declare().unwrap();
    let strict: Topic<u32> = broker.topic("strict").mandatory().declare().unwrap();
    let plain = topic(&broker);
    [&caught, &strict, &plain].into_iter().for_each(|topic| drop(topic.subscribe().open().unwrap()));
    let jobs: Queue<u32> = broker.queue("jobs").declare().unwrap();
    let (go, gone) = std::sync::mpsc::channel();
    let gone = Mutex::new(gone);
    let (tell, told) = std::sync::mpsc::channel();
    let topics = [caught, strict, plain.clone()];
    jobs.consumer()
        .start(move |n: &Message<u32>| {
            gone.lock().unwrap().recv().unwrap();
            topics.iter().for_each(|topic| tell.send(topic.publish("n", **n).map(|receipt| receipt.routed())).unwrap());
        })
        .unwrap();
    jobs.send(7).unwrap();
    thread::scope(|scope| {
        let report = scope.spawn(|| broker.shutdown(LONG));
        eventually("it drains", || matches!(plain.publish("n", 8), Err(PublishError::Closed(_))));
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap().unwrap(), 1);
        assert!(matches!(told.recv().unwrap(), Err(PublishError::Unroutable(_))));
        assert_eq!(told.recv().unwrap().unwrap(), 0);
        let report = report.join().unwrap();
        assert_eq!(report.undelivered.len(), 1, "{report}");
    });
    assert_eq!(spare.drain().iter().map(|message| **message).collect::<Vec<_>>(), [7]);
}

#[test]
fn bindings_between_topics_select_what_subscribers_see_once() {
    let broker = Broker::new();
    let [all, left, right, end] = ["all", "left", "right", "end"].map(|name| {
        let topic: Topic<u32> = broker.topic(name).declare().unwrap();
        topic
    });
    all.bind(&left, "left.#").unwrap();
    all.bind(&right, Binding::filter(|n: &u32| *n > 10)).unwrap();
    left.bind(&end, "#").unwrap();
    right.bind(&end, "#").unwrap();
    let subscribers = [&all, &left, &right, &end].map(|topic| topic.subscribe().open().unwrap());
    all.publish("left.a", 1).unwrap();
    all.publish("other", 20).unwrap();
    all.publish("left.b", 30).unwrap();
    all.publish("other", 2).unwrap();
    left.publish("direct", 3).unwrap();
    let seen = subscribers.map(|subscriber| take_all(&subscriber).0);
    assert_eq!(seen, [vec![1, 20, 30, 2], vec![1, 30, 3], vec![20, 30], vec![1, 20, 30, 3]]);
}

#[test]
fn a_late_binding_counts_for_subscribers() {
    let broker = Broker::new();
    let from: Topic<u32> = broker.topic("from").declare().unwrap();
    let to: Topic<u32> = broker.topic("to").declare().unwrap();
    let subscriber = to.subscribe().open().unwrap();
    from.publish("n", 1).unwrap();
    from.bind(&to, "#").unwrap();
    from.publish("n", 2).unwrap();
    from.unbind(&to, "#").unwrap();
    from.publish("n", 3).unwrap();
    assert_eq!(take_all(&subscriber).0, [2]);
}

#[test]
fn a_message_that_is_refused_as_mandatory_is_not_remembered() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").keep_last(3).mandatory().declare().unwrap();
    assert!(matches!(topic.publish("n", 1), Err(PublishError::Unroutable(_))));
    let subscriber = topic.subscribe().replay_last(3).open().unwrap();
    publish(&topic, [2]);
    drop(subscriber);
    assert!(matches!(topic.publish("n", 3), Err(PublishError::Unroutable(_))));
    assert_eq!(take_all(&topic.subscribe().replay_last(3).open().unwrap()).0, [2]);
}

#[test]
fn a_queue_ordered_by_key_and_subscribers_each_get_their_order() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").ordered_by(|n| n % 2).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    publish(&topic, 0..6);
    assert_eq!(take_all(&subscriber).0, (0..6).collect::<Vec<_>>());
    let handled = Arc::new(Mutex::new(Vec::new()));
    let record = handled.clone();
    let handler = move |n: &Message<u32>| {
        let fails = **n == 0 && n.attempt() == 1;
        if !fails {
            record.lock().unwrap().push(**n);
        }
        if fails { Outcome::Retry } else { Outcome::Ack }
    };
    queue.consumer().workers(2).start(handler).unwrap();
    simulation.run_until_idle();
    simulation.advance(SECOND);
    let handled = handled.lock().unwrap();
    let of = |rest| handled.iter().copied().filter(|n| n % 2 == rest).collect::<Vec<_>>();
    assert_eq!((of(0), of(1)), (vec![0, 2, 4], vec![1, 3, 5]));
    assert_eq!(take_all(&subscriber).0, [0_u32; 0], "a retry concerns only its queue");
}

#[test]
fn a_batch_larger_than_a_subscriber_waits_for_comes_whole_and_in_order() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let capacities = [1, 3, 8, 64, 1000];
    let readers = capacities.map(|capacity| {
        let subscriber = topic.subscribe().capacity(capacity).lag(Lag::Block).open().unwrap();
        thread::spawn(move || {
            let mut next = 0;
            while next < 5_000 {
                for message in subscriber.recv_batch(50).unwrap() {
                    assert_eq!(**message, next);
                    next += 1;
                }
            }
        })
    });
    assert_eq!(topic.publish_batch("n", 0..5_000).unwrap(), 5_000);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(topic.stats().published, 5_000);
}

#[test]
fn a_batch_that_is_refused_half_way_gives_the_rest_back() {
    let (broker, _simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let subscriber = topic.subscribe().name("slow").capacity(100).lag(Lag::Block).open().unwrap();
    let refused = topic.publish_batch("n", 0..300).unwrap_err();
    assert_eq!((refused.accepted, *refused.cause.into_message(), refused.rest.len()), (100, 100, 199));
    assert_eq!(topic.stats().published, 100);
    assert_eq!(take_all(&subscriber).0, (0..100).collect::<Vec<_>>());
    broker.shutdown(Duration::ZERO);
    let refused = topic.publish_batch("n", 0..3).unwrap_err();
    assert!(matches!(refused.cause, PublishError::Closed(_)));
    assert_eq!((refused.accepted, refused.rest.len()), (0, 2));
    let refused = topic.publish_batch("n", 0..500).unwrap_err();
    assert!(refused.rest.len() == 499 && refused.rest.iter().all(|message| message.routing_key() == "n"));
}

// Lag

#[test]
fn drop_oldest_reports_exactly_what_was_missed() {
    let broker = Broker::new();
    let topic = topic(&broker);
    for capacity in [1, 2, 7, 8, 9, 64, 100, 1000] {
        let subscriber = topic.subscribe().capacity(capacity).lag(Lag::DropOldest).open().unwrap();
        let capacity = capacity as u32;
        publish(&topic, 0..capacity);
        assert_eq!(take_all(&subscriber).0.len() as u32, capacity, "a full ring is not too far");
        publish(&topic, 0..capacity + 5);
        assert_eq!(lagged(&broker, &topic).0, 1);
        assert_eq!(subscriber.try_recv().unwrap_err(), BroadcastError::Lagged(5));
        assert_eq!(take_all(&subscriber).0, (5..capacity + 5).collect::<Vec<_>>());
    }
    assert_eq!(lagged(&broker, &topic), (0, 8 * 5, 0));
}

#[test]
fn what_a_subscriber_missed_is_counted_before_it_asks_and_after_it_left() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().capacity(2).open().unwrap();
    publish(&topic, 0..5);
    assert_eq!(lagged(&broker, &topic), (1, 3, 0));
    subscriber.try_recv().unwrap_err();
    assert_eq!(lagged(&broker, &topic), (1, 3, 0));
    publish(&topic, 0..4);
    assert_eq!(lagged(&broker, &topic), (1, 7, 0));
    drop(subscriber);
    assert_eq!(lagged(&broker, &topic), (0, 7, 0));
}

#[test]
fn a_slow_subscriber_does_not_make_others_miss_anything() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let slow = topic.subscribe().capacity(3).open().unwrap();
    let fast = topic.subscribe().capacity(100).open().unwrap();
    publish(&topic, 0..100);
    assert_eq!(take_all(&fast).0.len(), 100);
    assert_eq!(slow.recv().unwrap_err(), BroadcastError::Lagged(97));
    assert_eq!(take_all(&slow).0, [97, 98, 99]);
}

#[test]
fn disconnect_cuts_off_who_falls_too_far_behind() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = told.clone();
    let broker = Broker::builder().on_event(move |event| events.lock().unwrap().push(event.clone())).build().unwrap();
    let topic = topic(&broker);
    let slow = topic.subscribe().name("node 3").capacity(4).lag(Lag::Disconnect).open().unwrap();
    publish(&topic, 0..4);
    assert_eq!(take_all(&slow).0, [0, 1, 2, 3], "as many as its capacity is not too far");
    publish(&topic, 0..5);
    assert_eq!(lagged(&broker, &topic), (0, 0, 1));
    assert_eq!(slow.recv().unwrap_err(), BroadcastError::Disconnected);
    assert_eq!(slow.try_recv().unwrap_err(), BroadcastError::Disconnected);
    assert_eq!(slow.iter().collect::<Vec<_>>().len(), 1);
    let event = Event::SubscriberDisconnected { topic: "numbers".into(), subscriber: "node 3".into() };
    assert_eq!(*told.lock().unwrap(), [event]);
}

#[test]
fn after_the_last_subscriber_was_cut_off_messages_reach_nobody_and_that_is_told() {
    let broker = Broker::new();
    let caught: Queue<u32> = broker.queue("caught").declare().unwrap();
    let mandatory: Topic<u32> = broker.topic("m").mandatory().declare().unwrap();
    let alternate: Topic<u32> = broker.topic("a").alternate(&caught).declare().unwrap();
    for topic in [&mandatory, &alternate] {
        let slow = topic.subscribe().capacity(1).lag(Lag::Disconnect).open().unwrap();
        publish(topic, 0..2);
        assert_eq!(topic.stats().disconnected, 1);
        let next = topic.publish("n", 2);
        assert_eq!(next.is_ok(), topic.name() == "a", "{next:?}");
        drop(slow);
    }
    assert_eq!(caught.len(), 1);
}

#[test]
fn who_hears_of_a_disconnect_may_publish_to_the_topic() {
    let told = Arc::new(AtomicU64::new(0));
    let (count, back) = (told.clone(), Arc::new(Mutex::new(None::<Topic<u32>>)));
    let to = back.clone();
    let hook = move |event: &Event| {
        if matches!(event, Event::SubscriberDisconnected { .. }) {
            let topic = to.lock().unwrap().clone();
            topic.unwrap().publish("n", 7).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    };
    let broker = Broker::builder().on_event(hook).build().unwrap();
    let topic = topic(&broker);
    *back.lock().unwrap() = Some(topic.clone());
    let watching = topic.subscribe().open().unwrap();
    let slow = topic.subscribe().capacity(1).lag(Lag::Disconnect).open().unwrap();
    common::within(LONG, move || publish(&topic, 0..2));
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(take_all(&watching).0, [0, 1, 7]);
    *back.lock().unwrap() = None;
    drop(slow);
}

#[test]
fn a_worker_that_waits_for_a_subscriber_is_told_of() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let hook = move |event: &Event| told.lock().unwrap().push(event.clone());
    let broker = Broker::builder().blocked_warning(Duration::from_millis(20)).on_event(hook).build().unwrap();
    let topic = topic(&broker);
    let slow = topic.subscribe().name("slow").capacity(1).lag(Lag::Block).open().unwrap();
    publish(&topic, [0]);
    let queue: Queue<u32> = broker.queue("work").declare().unwrap();
    let onward = topic.clone();
    queue.consumer().start(move |n: &Message<u32>| onward.publish("n", **n)).unwrap();
    queue.send(1).unwrap();
    common::eventually("it is told of", || !events.lock().unwrap().is_empty());
    thread::sleep(Duration::from_millis(60));
    assert_eq!([slow.recv(), slow.recv()].map(|n| **n.unwrap()), [0, 1]);
    let events = events.lock().unwrap();
    let [Event::WorkerBlocked { works_for, waits_for, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((works_for.as_str(), waits_for.as_str()), ("work", "slow"));
}

#[test]
fn block_is_a_full_queue_for_every_form_of_publishing() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().name("node").capacity(2).lag(Lag::Block).open().unwrap();
    publish(&topic, 0..2);
    let Err(PublishError::Full(refused)) = topic.try_publish("n", 2) else { panic!("not full") };
    assert_eq!((refused.by(), **refused), ("node", 2));
    assert_eq!(PublishError::Full(refused).to_string(), "subscriber \"node\" is full");
    let refused = topic.publish_timeout("n", 2, Duration::from_millis(10));
    assert!(matches!(refused, Err(PublishError::Timeout(_))), "{refused:?}");
    assert_eq!(**subscriber.recv().unwrap(), 0);
    topic.try_publish("n", 2).unwrap();
    assert!(matches!(topic.try_publish("n", 3), Err(PublishError::Full(_))));
    assert_eq!(take_all(&subscriber).0, [1, 2]);
}

#[test]
fn a_blocked_publish_goes_on_when_its_subscriber_receives_or_leaves() {
    let broker = Broker::new();
    let topic = topic(&broker);
    for leaves in [false, true] {
        let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
        publish(&topic, [1]);
        thread::scope(|scope| {
            let publisher = scope.spawn(|| publish(&topic, [2]));
            thread::sleep(Duration::from_millis(20));
            assert!(!publisher.is_finished());
            if leaves {
                drop(subscriber)
            } else {
                assert_eq!(**subscriber.recv().unwrap(), 1)
            }
            publisher.join().unwrap();
        });
    }
}

#[test]
fn a_publish_reaches_all_queues_and_blocking_subscribers_or_none() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").capacity(2).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let subscriber = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
    let other = topic.subscribe().open().unwrap();
    topic.try_publish("n", 1).unwrap();
    assert!(matches!(topic.try_publish("n", 2), Err(PublishError::Full(_))));
    assert_eq!((queue.len(), other.backlog()), (1, 1));
    subscriber.recv().unwrap();
    topic.try_publish("n", 3).unwrap();
    subscriber.recv().unwrap();
    assert_eq!(topic.try_publish("n", 4).unwrap_err().by(), "q");
    assert_eq!((queue.len(), other.backlog(), subscriber.backlog()), (2, 2, 0));
    queue.recv().unwrap().ack().unwrap();
    topic.try_publish("n", 5).unwrap();
    assert_eq!(take_all(&subscriber).0, [5]);
}

#[test]
fn a_handler_that_waits_for_itself_is_told() {
    for simulated in [false, true] {
        let (broker, simulation) = if simulated {
            let (broker, simulation) = Broker::simulated(1);
            (broker, Some(simulation))
        } else {
            (Broker::new(), None)
        };
        let topic = topic(&broker);
        let (back, verdicts) = (topic.clone(), Arc::new(Mutex::new(Vec::new())));
        let heard = verdicts.clone();
        let handler = move |n: &Message<u32>| {
            if **n == 0 {
                let results = [1, 2, 3].map(|n| back.publish("n", n));
                heard.lock().unwrap().extend(results.into_iter().map(|r| r.map(|_| ()).map_err(|e| e.to_string())));
            }
        };
        topic.subscribe().name("echo").capacity(2).lag(Lag::Block).start(handler).unwrap();
        publish(&topic, [0]);
        simulation.iter().for_each(|simulation| _ = simulation.run_until_idle());
        assert!(broker.wait_idle(LONG));
        let verdicts = verdicts.lock().unwrap();
        assert!(verdicts[..2].iter().all(Result::is_ok), "{verdicts:?}");
        let third = verdicts[2].as_ref().unwrap_err();
        assert!(third.contains("would never end") && third.contains("echo -> echo"), "{third}");
    }
}

// Replay

#[test]
fn a_late_subscriber_starts_with_the_last_messages() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").keep_last(3).declare().unwrap();
    assert!(take_all(&topic.subscribe().replay_last(2).open().unwrap()).0.is_empty());
    publish(&topic, 0..500);
    for (n, expected) in [(0, vec![]), (1, vec![499]), (3, vec![497, 498, 499])] {
        let late = topic.subscribe().replay_last(n).open().unwrap();
        publish(&topic, [500]);
        let expected: Vec<u32> = expected.into_iter().chain([500]).collect();
        assert_eq!(take_all(&late).0, expected, "{n}");
        publish(&topic, 497..500);
    }
    assert_eq!((topic.stats().published, topic.stats().unroutable), (512, 500));
}

#[test]
fn while_somebody_has_subscribed_late_ones_get_the_last_of_its_capacity() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let early = topic.subscribe().capacity(100).open().unwrap();
    publish(&topic, 0..1000);
    let late = topic.subscribe().replay_last(100).open().unwrap();
    assert_eq!(take_all(&late).0, (900..1000).collect::<Vec<_>>());
    drop((early, late));
    assert!(take_all(&topic.subscribe().replay_last(1).open().unwrap()).0.is_empty());
}

#[test]
fn the_latest_of_each_key_comes_first_oldest_first() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").keep_latest_by_key().declare().unwrap();
    let set = |key: &str, n: u32| _ = topic.publish("", Message::new(n).with_key(key)).unwrap();
    (0..1000).for_each(|n| set(&format!("key {}", n % 10), n));
    set("key 3", 1000);
    publish(&topic, [1001, 1002]);
    let late = topic.subscribe().capacity(1).replay_latest_by_key().open().unwrap();
    assert_eq!(late.backlog(), 11);
    let expected = [990, 991, 992, 994, 995, 996, 997, 998, 999, 1000, 1002];
    assert_eq!(take_all(&late).0, expected);
    set("key 1", 1003);
    assert_eq!(take_all(&late).0, [1003]);
}

#[test]
fn replay_and_live_follow_each_other_without_a_gap_or_a_double() {
    for round in 0..100 {
        let broker = Broker::new();
        let topic: Topic<u32> = broker.topic("t").keep_last(8).declare().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| publish(&topic, 0..300));
            for late in 0..3 {
                let topic = &topic;
                scope.spawn(move || {
                    for _ in 0..late * 10 + round % 7 {
                        thread::yield_now();
                    }
                    let subscriber = topic.subscribe().replay_last(8).open().unwrap();
                    let mut previous: Option<u32> = None;
                    while previous != Some(299) {
                        let n = **subscriber.recv().unwrap();
                        assert!(previous.is_none_or(|previous| n == previous + 1), "{previous:?} then {n}");
                        previous = Some(n);
                    }
                });
            }
        });
    }
}

// Threads

/// Each publisher counts up; a subscriber that saw a number of one must see all later ones of it, once.
#[test]
fn subscribers_that_come_and_go_see_each_later_message_exactly_once() {
    const PUBLISHERS: usize = 2;
    for round in 0..100 {
        let broker = Broker::new();
        let topic: Topic<(usize, u32)> = broker.topic("t").declare().unwrap();
        let queue: Queue<(usize, u32)> = broker.queue("q").declare().unwrap();
        if round % 2 == 0 {
            topic.bind(&queue, "#").unwrap();
        }
        let published: [AtomicU64; PUBLISHERS] = Default::default();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let joiners = [0, 1, 2].map(|n| {
                let (topic, published, done) = (&topic, &published, &done);
                scope.spawn(move || join_and_leave(topic, published, done, n))
            });
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|me| {
                    let (topic, published) = (&topic, &published);
                    scope.spawn(move || {
                        for n in 0..200 {
                            topic.publish("k", (me, n)).unwrap();
                            published[me].store(u64::from(n) + 1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
            done.store(true, Ordering::SeqCst);
            joiners.into_iter().for_each(|joiner| joiner.join().unwrap());
        });
        assert_eq!(lagged(&broker, &topic), (0, 0, 0));
    }
}

fn join_and_leave(topic: &Topic<(usize, u32)>, published: &[AtomicU64; 2], done: &AtomicBool, n: usize) {
    let lag = [Lag::Block, Lag::DropOldest, Lag::Disconnect][n];
    loop {
        let last_round = done.load(Ordering::SeqCst);
        let subscriber = topic.subscribe().lag(lag).open().unwrap();
        // Started after this: must be seen.
        let before: Vec<u64> = published.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        let mut next: [Option<u32>; 2] = [None; 2];
        for _ in 0..50 {
            let Ok(message) = subscriber.recv_timeout(Duration::from_millis(1)) else { break };
            let (publisher, n) = **message;
            match next[publisher] {
                Some(expected) => assert_eq!(n, expected, "of publisher {publisher}"),
                // The one that was under way when it subscribed may have been missed.
                None => assert!(u64::from(n) <= before[publisher] + 1, "{n} is later than {}", before[publisher]),
            }
            next[publisher] = Some(n + 1);
        }
        if last_round {
            return;
        }
    }
}

#[test]
fn many_subscribers_with_each_policy_read_along_with_many_publishers() {
    const EACH: u32 = 5_000;
    let broker = Broker::new();
    let topic: Topic<(u32, u32)> = broker.topic("t").declare().unwrap();
    let ready = Barrier::new(6);
    let missed = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..4_u32 {
            let (lag, capacity) = [(Lag::Block, 16), (Lag::DropOldest, 32)][n as usize % 2];
            let (topic, ready, missed) = (&topic, &ready, &missed);
            scope.spawn(move || {
                let subscriber = topic.subscribe().lag(lag).capacity(capacity).open().unwrap();
                ready.wait();
                let (mut next, mut seen, mut lost) = ([0; 2], 0, 0);
                while seen + lost < u64::from(2 * EACH) {
                    match subscriber.recv() {
                        Ok(message) => {
                            let (publisher, n) = **message;
                            assert!(n >= next[publisher as usize], "twice or out of order");
                            assert!(lost > 0 || n == next[publisher as usize]);
                            next[publisher as usize] = n + 1;
                            seen += 1;
                        }
                        Err(BroadcastError::Lagged(n)) => lost += n,
                        Err(other) => panic!("{other}"),
                    }
                }
                assert_eq!(seen + lost, u64::from(2 * EACH), "what was missed is known exactly");
                assert!(lost == 0 || lag == Lag::DropOldest);
                missed.fetch_add(lost, Ordering::Relaxed);
            });
        }
        for publisher in 0..2 {
            let (topic, ready) = (&topic, &ready);
            scope.spawn(move || {
                ready.wait();
                (0..EACH).for_each(|n| _ = topic.publish("k", (publisher, n)).unwrap());
            });
        }
    });
    assert_eq!(lagged(&broker, &topic).1, missed.into_inner());
}

// Handlers

#[test]
fn a_handler_gets_every_message_and_a_panic_is_contained() {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let told = panics.clone();
    let broker = Broker::builder()
        .on_event(move |event| {
            if let Event::HandlerPanicked { queue, text, .. } = event {
                told.lock().unwrap().push((queue.clone(), text.clone()));
            }
        })
        .build()
        .unwrap();
    let topic = topic(&broker);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let subscription = topic
        .subscribe()
        .start(move |n: &Message<u32>| {
            assert!(**n != 2, "no twos");
            assert_eq!(thread::current().name(), Some("subscriber of numbers"));
            record.lock().unwrap().push(**n);
        })
        .unwrap();
    publish(&topic, 0..5);
    assert!(broker.wait_idle(LONG));
    assert_eq!(*seen.lock().unwrap(), [0, 1, 3, 4]);
    assert_eq!((subscription.panicked(), subscription.backlog(), subscription.is_running()), (1, 0, true));
    assert_eq!(*panics.lock().unwrap(), [("subscriber of numbers".to_owned(), "panicked: no twos".to_owned())]);
    subscription.stop();
    subscription.stop();
    assert!(!subscription.is_running());
    publish(&topic, [9]);
    assert_eq!((seen.lock().unwrap().len(), topic.stats().subscribers), (4, 0));
}

#[test]
fn a_handler_may_stop_itself_and_start_others() {
    for simulated in [false, true] {
        let (broker, simulation) = Broker::simulated(3);
        let (broker, simulation) = if simulated { (broker, Some(simulation)) } else { (Broker::new(), None) };
        let topic = topic(&broker);
        let own: Arc<Mutex<Option<postroom::Subscription>>> = Arc::default();
        let (slot, other, count) = (own.clone(), topic.clone(), Arc::new(AtomicU64::new(0)));
        let (counted, started) = (count.clone(), Arc::new(AtomicU64::new(0)));
        let starts = started.clone();
        let handler = move |_: &Message<u32>| {
            let counted = counted.clone();
            slot.lock().unwrap().take().unwrap().stop();
            other.subscribe().start(move |_: &Message<u32>| _ = counted.fetch_add(1, Ordering::SeqCst)).unwrap();
            starts.fetch_add(1, Ordering::SeqCst);
        };
        *own.lock().unwrap() = Some(topic.subscribe().start(handler).unwrap());
        publish(&topic, [1]);
        simulation.iter().for_each(|simulation| _ = simulation.run_until_idle());
        let patience = Instant::now() + LONG;
        while topic.stats().subscribers != 1 || started.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < patience);
            thread::yield_now();
        }
        publish(&topic, [2]);
        assert!(broker.wait_idle(LONG));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_slow_handler_is_told_what_it_missed() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let (gate, missed, seen) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (wait, told, count) = (gate.clone(), missed.clone(), seen.clone());
    let subscription = topic
        .subscribe()
        .capacity(5)
        .on_lag(move |n| _ = told.fetch_add(n, Ordering::SeqCst))
        .start(move |_: &Message<u32>| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                wait.wait();
            }
        })
        .unwrap();
    publish(&topic, [0]);
    while seen.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    publish(&topic, 1..20);
    gate.wait();
    assert!(broker.wait_idle(LONG));
    assert_eq!((seen.load(Ordering::SeqCst), missed.load(Ordering::SeqCst), subscription.lagged()), (6, 14, 14));
}

#[test]
fn handlers_take_turns_in_a_simulation() {
    let run = |seed| {
        let (broker, simulation) = Broker::simulated(seed);
        let topic = topic(&broker);
        let order = Arc::new(Mutex::new(Vec::new()));
        let subscriptions = [0, 1].map(|me| {
            let order = order.clone();
            topic.subscribe().start(move |n: &Message<u32>| order.lock().unwrap().push((me, **n))).unwrap()
        });
        publish(&topic, 0..10);
        assert_eq!(subscriptions[0].backlog(), 10);
        assert_eq!(simulation.run_until_idle(), 20);
        subscriptions[0].stop();
        publish(&topic, [10]);
        assert_eq!(simulation.run_until_idle(), 1);
        assert!(broker.shutdown(SECOND).is_clean());
        order.lock().unwrap().clone()
    };
    let (one, again, other) = (run(1), run(1), run(2));
    assert_eq!(one, again);
    assert_ne!(one, other);
    for me in [0, 1] {
        let of_one: Vec<u32> = one.iter().filter(|(who, _)| *who == me).map(|(_, n)| *n).collect();
        assert_eq!(of_one, (0..10 + me).collect::<Vec<_>>());
    }
}

#[test]
fn receiving_in_a_simulation_lets_others_run() {
    let (broker, _simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    let onward = topic.clone();
    queue.consumer().start(move |n: &Message<u32>| _ = onward.publish("n", **n + 1).unwrap()).unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    queue.send(1).unwrap();
    assert_eq!(**subscriber.recv().unwrap(), 2);
    queue.send(Message::new(5).with_delay(SECOND * 60)).unwrap();
    assert_eq!(subscriber.recv_timeout(SECOND).unwrap_err(), BroadcastError::Timeout);
    assert_eq!(**subscriber.recv_timeout(SECOND * 100).unwrap(), 6);
    assert_eq!(subscriber.recv().unwrap_err(), BroadcastError::Deadlock);
}

#[test]
fn a_timeout_ends_when_a_manual_clock_is_moved() {
    let clock = postroom::ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let topic = topic(&broker);
    let full = topic.subscribe().capacity(1).lag(Lag::Block).open().unwrap();
    publish(&topic, [1]);
    thread::scope(|scope| {
        let waits = scope.spawn(|| matches!(topic.publish_timeout("n", 2, SECOND), Err(PublishError::Timeout(_))));
        let other: Topic<u32> = broker.topic("other").declare().unwrap();
        let receives = scope.spawn(move || {
            let subscriber = other.subscribe().open().unwrap();
            subscriber.recv_timeout(SECOND).unwrap_err()
        });
        let patience = Instant::now() + LONG;
        while !(waits.is_finished() && receives.is_finished()) {
            assert!(Instant::now() < patience);
            thread::sleep(Duration::from_millis(5));
            clock.advance(SECOND);
        }
        assert!(waits.join().unwrap());
        assert_eq!(receives.join().unwrap(), BroadcastError::Timeout);
    });
    drop(full);
}

// The end

#[test]
fn after_shutdown_subscribers_get_what_is_left_and_then_closed() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().open().unwrap();
    publish(&topic, 0..100);
    let sleeper = topic.subscribe().open().unwrap();
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || sleeper.recv().unwrap_err());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(sleeper.join().unwrap(), BroadcastError::Closed);
    });
    assert!(matches!(topic.publish("n", 1), Err(PublishError::Closed(_))));
    assert_eq!(take_all(&subscriber), ((0..100).collect(), BroadcastError::Closed));
    assert_eq!(subscriber.recv().unwrap_err(), BroadcastError::Closed);
    let error = topic.subscribe().open().unwrap_err();
    assert_eq!(error.problems(), ["the broker was shut down"]);
}

#[test]
fn shutdown_lets_handlers_finish_and_publish_on() {
    for simulated in [false, true] {
        let (broker, _simulation) = if simulated {
            let (broker, simulation) = Broker::simulated(1);
            (broker, Some(simulation))
        } else {
            (Broker::new(), None)
        };
        let first = topic(&broker);
        let second: Topic<u32> = broker.topic("a second").declare().unwrap();
        let sum = Arc::new(AtomicU64::new(0));
        let (onward, total) = (second.clone(), sum.clone());
        first.subscribe().start(move |n: &Message<u32>| _ = onward.publish("", **n).unwrap()).unwrap();
        second
            .subscribe()
            .start(move |n: &Message<u32>| _ = total.fetch_add(u64::from(**n), Ordering::SeqCst))
            .unwrap();
        publish(&first, 0..100);
        let report = broker.shutdown(LONG);
        assert!(report.is_clean(), "{report}");
        assert_eq!(sum.load(Ordering::SeqCst), 4950);
        assert!(matches!(first.publish("n", 1), Err(PublishError::Closed(_))), "not lost in silence");
    }
}

#[test]
fn shutdown_reports_what_handlers_had_not_got_to_and_who_is_stuck() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let (started, release) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let (begin, go) = (started.clone(), release.clone());
    let handler = move |n: &Message<u32>| {
        if **n == 0 {
            begin.wait();
        }
        while !go.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    };
    topic.subscribe().name("stuck").start(handler).unwrap();
    publish(&topic, 0..4);
    started.wait();
    let report = broker.shutdown(Duration::from_millis(50));
    assert_eq!(report.stuck_workers, [("stuck".to_owned(), 1)]);
    let left: Vec<_> = report.undelivered.iter().map(|left| (left.queue.as_str(), left.ready)).collect();
    assert_eq!(left, [("stuck", 4)]);
    release.store(true, Ordering::SeqCst);
}

#[test]
fn subscribers_outlive_their_broker() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let subscriber = topic.subscribe().open().unwrap();
    let subscription = topic.subscribe().start(|_: &Message<u32>| {}).unwrap();
    publish(&topic, [1]);
    drop(broker);
    assert!(!subscription.is_running(), "its thread was joined");
    publish(&topic, [2]);
    drop(topic);
    assert_eq!(take_all(&subscriber), (vec![1, 2], BroadcastError::Closed));
}

// Memory

/// Counts itself, and may panic when dropped.
#[derive(Debug)]
struct Guest(Arc<AtomicU64>, bool);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        assert!(!self.1 || thread::panicking(), "rude");
    }
}

#[test]
fn payloads_go_when_nobody_can_need_them() {
    let broker = Broker::new();
    let topic: Topic<Guest> = broker.topic("t").declare().unwrap();
    let alive = Arc::new(AtomicU64::new(0));
    let publish = |n: u64, rude: bool| {
        for _ in 0..n {
            alive.fetch_add(1, Ordering::SeqCst);
            topic.publish("", Guest(alive.clone(), rude)).unwrap();
        }
    };
    publish(10, true);
    assert_eq!(alive.load(Ordering::SeqCst), 0, "nobody has subscribed");
    let subscriber = topic.subscribe().capacity(100).open().unwrap();
    let slow = topic.subscribe().capacity(20).open().unwrap();
    publish(4900, false);
    publish(1, true);
    publish(99, false);
    assert!((100..=112).contains(&alive.load(Ordering::SeqCst)), "the capacity and one chunk");
    assert_eq!(subscriber.recv().unwrap_err(), BroadcastError::Lagged(4900));
    let held = subscriber.recv().unwrap();
    drop(subscriber);
    publish(5000, false);
    drop(slow);
    assert_eq!(alive.load(Ordering::SeqCst), 1, "the last one to leave takes the rest along");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(held))).is_err(), "the user's own drop");
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn a_topic_that_remembers_takes_it_along() {
    let alive = Arc::new(AtomicU64::new(0));
    let broker = Broker::new();
    let topic: Topic<Guest> = broker.topic("t").keep_last(10).keep_latest_by_key().declare().unwrap();
    for n in 0..1000 {
        alive.fetch_add(1, Ordering::SeqCst);
        let guest = Message::new(Guest(alive.clone(), n % 100 == 0)).with_key((n % 3).to_string());
        topic.publish("", guest).unwrap();
    }
    assert!((10..=14).contains(&alive.load(Ordering::SeqCst)));
    drop((topic, broker));
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

// Bad input

#[test]
fn everything_wrong_is_said_at_once() {
    let broker = Broker::new();
    let topic = topic(&broker);
    let error = topic.subscribe().name("\n").capacity(0).replay_last(5).on_lag(|_| {}).open().unwrap_err();
    assert_eq!(error.subject(), r#"subscriber "\n" of topic "numbers""#);
    assert_eq!(error.problems().len(), 4, "{error}");
    let error = topic.subscribe().replay_last(2).replay_latest_by_key().start(|_: &Message<u32>| {}).unwrap_err();
    assert_eq!(error.problems().len(), 2, "{error}");
    let error = topic.subscribe().capacity(4).replay_last(5).open().unwrap_err().to_string();
    assert!(error.contains(r#"subscriber of topic "numbers": a replay of 5 messages does not fit"#), "{error}");
    assert_eq!(topic.stats().subscribers, 0);
    let again = broker.topic::<u32>("numbers").keep_last(3).keep_latest_by_key().declare().unwrap_err();
    assert!(again.to_string().contains("keeps the last 3, keeps the latest by key"), "{again}");
}

#[test]
fn outcomes_of_queues_are_untouched_by_subscribers() {
    let (broker, simulation) = Broker::simulated(1);
    let topic = topic(&broker);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    queue.consumer().start(|n: &Message<u32>| if n.attempt() < 3 { Outcome::Retry } else { Outcome::Ack }).unwrap();
    publish(&topic, 0..10);
    simulation.advance(SECOND * 60);
    assert_eq!((queue.stats().acked, take_all(&subscriber).0.len()), (10, 10));
}
