//! Which queues a publish reaches.

mod common;

use common::within;
use postroom::{Binding, Broker, Headers, Message, Overflow, PublishError, Queue, Router, Routing, Topic};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn queue(broker: &Broker, name: &str) -> Queue<u32> {
    broker.queue(name).declare().unwrap()
}

fn topic(broker: &Broker, name: &str, routing: Routing) -> Topic<u32> {
    broker.topic(name).routing(routing).declare().unwrap()
}

#[test]
fn direct_topics_go_by_the_exact_key() {
    let broker = Broker::new();
    let topic = topic(&broker, "t", Routing::Direct);
    let (a, b) = (queue(&broker, "a"), queue(&broker, "b"));
    topic.bind(&a, "order.*").unwrap();
    topic.bind(&b, "order.placed").unwrap();
    topic.publish("order.*", 1).unwrap();
    topic.publish("order.placed", 2).unwrap();
    assert_eq!(topic.publish("order", 3).unwrap().routed(), 0);
    assert_eq!((*a.peek().unwrap().payload(), *b.peek().unwrap().payload()), (1, 2));
    assert!(topic.bind(&a, Binding::pattern("a.*")).is_err());
}

#[test]
fn patterns_match_as_in_amqp() {
    let table = [
        ("order.*", "order.placed", true),
        ("order.*", "order", false),
        ("order.*", "order.placed.late", false),
        ("order.#", "order", true),
        ("order.#", "order.placed.late", true),
        ("#", "", true),
        ("#.late", "late", true),
        ("#.late", "order.placed.late", true),
        ("*.*", "a.b", true),
        ("a.#.b.#.c", "a.x.b.y.z.c", true),
        ("a.#.b.#.c", "a.c.b", false),
        ("*", "", true),
    ];
    for (pattern, key, matches) in table {
        let broker = Broker::new();
        let (topic, queue) = (topic(&broker, "t", Routing::Pattern), queue(&broker, "q"));
        topic.bind(&queue, pattern).unwrap();
        // Twice: the second time, the way is remembered.
        for _ in 0..2 {
            assert_eq!(topic.publish(key, 1).unwrap().routed() == 1, matches, "{pattern} {key}");
        }
    }
}

#[test]
fn malformed_patterns_are_refused() {
    let broker = Broker::new();
    let (topic, queue) = (topic(&broker, "t", Routing::Pattern), queue(&broker, "q"));
    let error = topic.bind(&queue, "order.pl*").unwrap_err().to_string();
    assert!(error.contains("order.pl*") && error.contains("\"t\""), "{error}");
}

#[test]
fn fanout_topics_ignore_the_key() {
    let broker = Broker::new();
    let topic = topic(&broker, "t", Routing::Fanout);
    let queues = ["a", "b", "c"].map(|name| queue(&broker, name));
    queues.iter().for_each(|queue| topic.bind(queue, "what.ever").unwrap());
    assert_eq!(topic.publish("some.thing", 1).unwrap().routed(), 3);
}

#[test]
fn headers_select_by_all_or_any() {
    let broker = Broker::new();
    let topic = topic(&broker, "t", Routing::Headers);
    let (all, any) = (queue(&broker, "all"), queue(&broker, "any"));
    topic.bind(&all, Binding::headers(Headers::all([("kind", "pdf"), ("tenant", "acme")]))).unwrap();
    topic.bind(&any, Binding::headers(Headers::any([("kind", "pdf"), ("tenant", "acme")]))).unwrap();
    let routed = |message: Message<u32>| topic.publish("k", message).unwrap().routed();
    assert_eq!(routed(Message::new(1)), 0);
    assert_eq!(routed(Message::new(2).with_header("kind", "pdf")), 1);
    assert_eq!(routed(Message::new(3).with_header("kind", "txt").with_header("tenant", "acme")), 1);
    assert_eq!(routed(Message::new(4).with_header("kind", "pdf").with_header("tenant", "acme")), 2);
    assert_eq!((all.len(), any.len()), (1, 3));
    assert!(topic.bind(&all, Binding::key("k")).is_err());
}

#[test]
fn filters_look_at_the_payload() {
    let broker = Broker::new();
    let topic = topic(&broker, "t", Routing::Pattern);
    let (large, odd) = (queue(&broker, "large"), queue(&broker, "odd"));
    topic.bind(&large, Binding::pattern("n.*").and_filter(|n| *n > 5)).unwrap();
    let filtered = Binding::filter(|n: &u32| n % 2 == 1);
    topic.bind(&odd, filtered.clone()).unwrap();
    (0..10).for_each(|n| {
        topic.publish("n.x", n).unwrap();
    });
    assert_eq!((large.len(), odd.len()), (4, 5));
    assert!(topic.unbind(&odd, Binding::filter(|n: &u32| n % 2 == 1)).is_err());
    topic.unbind(&odd, filtered).unwrap();
    assert_eq!(topic.publish("x", 1).unwrap().routed(), 0);
}

struct Modulo;

impl Router<u32> for Modulo {
    fn route(&self, message: &Message<u32>, bindings: &[&str], selected: &mut Vec<usize>) {
        let wanted = format!("rest {}", message.payload() % 3);
        selected.extend(bindings.iter().position(|text| *text == wanted));
    }
}

#[test]
fn a_router_of_ones_own_chooses_by_the_text_of_the_binding() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").router(Modulo).mandatory().declare().unwrap();
    let queues = ["a", "b"].map(|name| queue(&broker, name));
    topic.bind(&queues[0], "rest 0").unwrap();
    topic.bind(&queues[1], "rest 1").unwrap();
    assert_eq!(topic.publish("", 3).unwrap().routed() + topic.publish("", 4).unwrap().routed(), 2);
    assert!(matches!(topic.publish("", 5), Err(PublishError::Unroutable(_))));
    assert_eq!((queues[0].len(), queues[1].len()), (1, 1));
    assert!(topic.bind(&queues[0], Binding::key("k")).is_err());
}

#[test]
fn topics_lead_to_topics_and_a_diamond_gives_one_copy() {
    let broker = Broker::new();
    let [top, left, right, bottom] =
        ["top", "left", "right", "bottom"].map(|name| topic(&broker, name, Routing::Pattern));
    let queue = queue(&broker, "q");
    top.bind(&left, "#").unwrap();
    top.bind(&right, "order.#").unwrap();
    left.bind(&bottom, "*.placed").unwrap();
    right.bind(&bottom, "#").unwrap();
    bottom.bind(&queue, "#").unwrap();
    assert_eq!(top.publish("order.placed", 1).unwrap().routed(), 1);
    assert_eq!(top.publish("order.paid", 2).unwrap().routed(), 1);
    assert_eq!(top.publish("stock.low", 3).unwrap().routed(), 0);
    assert_eq!(queue.len(), 2);
}

#[test]
fn circles_are_refused_and_the_path_is_named() {
    let broker = Broker::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| topic(&broker, name, Routing::Fanout));
    a.bind(&b, "").unwrap();
    b.bind(&c, "").unwrap();
    let error = c.bind(&a, "").unwrap_err().to_string();
    assert!(["a", "b", "c"].iter().all(|name| error.contains(name)), "{error}");
    assert!(error.contains("c -> a -> b -> c") || error.contains("a -> b -> c -> a"), "the path in order: {error}");
    let error = a.bind(&a, "").unwrap_err().to_string();
    assert!(error.contains("a -> a"), "{error}");
    // Once the way is open again, it may be bound.
    b.unbind(&c, "").unwrap();
    c.bind(&a, "").unwrap();
}

#[test]
fn mandatory_topics_give_back_what_nothing_matches() {
    let broker = Broker::new();
    let topic: Topic<u32> = broker.topic("t").mandatory().declare().unwrap();
    let error = topic.publish("no.where", 7).unwrap_err();
    assert!(matches!(error, PublishError::Unroutable(_)) && error.to_string().contains("no.where"), "{error}");
    assert_eq!(error.into_message().try_into_payload().unwrap(), 7);
}

#[test]
fn an_alternate_queue_catches_what_nothing_matches() {
    let broker = Broker::new();
    let (rest, some) = (queue(&broker, "rest"), queue(&broker, "some"));
    let topic: Topic<u32> = broker.topic("t").alternate(&rest).mandatory().declare().unwrap();
    topic.bind(&some, "some.*").unwrap();
    assert_eq!(topic.publish("some.thing", 1).unwrap().routed(), 1);
    assert_eq!(topic.publish("no.thing", 2).unwrap().routed(), 1);
    assert_eq!((some.len(), rest.len(), topic.stats().unroutable, topic.stats().published), (1, 1, 1, 2));
}

#[test]
fn binding_twice_is_binding_once_and_unbinding_the_unknown_is_an_error() {
    let broker = Broker::new();
    let (topic, queue) = (topic(&broker, "t", Routing::Pattern), queue(&broker, "q"));
    topic.bind(&queue, "a").unwrap();
    topic.bind(&queue, "a").unwrap();
    topic.unbind(&queue, "a").unwrap();
    assert_eq!(topic.publish("a", 1).unwrap().routed(), 0);
    let error = topic.unbind(&queue, "a").unwrap_err().to_string();
    assert!(error.contains("no such binding") && error.contains("\"q\""), "{error}");
}

#[test]
fn unbinding_one_of_two_ways_leaves_the_other() {
    let broker = Broker::new();
    let (topic, queue) = (topic(&broker, "t", Routing::Pattern), queue(&broker, "q"));
    topic.bind(&queue, "a.*").unwrap();
    topic.bind(&queue, "*.b").unwrap();
    topic.unbind(&queue, "a.*").unwrap();
    assert_eq!((topic.publish("a.b", 1).unwrap().routed(), topic.publish("a.c", 1).unwrap().routed()), (1, 0));
}

#[test]
fn a_target_of_another_broker_is_refused() {
    let (here, there) = (Broker::new(), Broker::new());
    let topic = topic(&here, "t", Routing::Pattern);
    assert!(topic.bind(&queue(&there, "q"), "#").unwrap_err().to_string().contains("another broker"));
}

/// While other threads publish on the same key, each bind counts for the next publish and each unbind too.
#[test]
fn bindings_count_from_the_publish_after_the_call() {
    within(LONG, || {
        let broker = Broker::new();
        let topic = topic(&broker, "t", Routing::Pattern);
        let (mine, noise) = (queue(&broker, "mine"), quiet_sink(&broker));
        topic.bind(&noise, "k").unwrap();
        // Drained all along, or the noise would fill it and the numbered publishes would wait for ever.
        let numbered = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&numbered);
        mine.consumer()
            .start(move |n: &Message<u32>| {
                if **n > 0 {
                    seen.lock().unwrap().push(**n)
                }
            })
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..3).map(|_| (topic.clone(), Arc::clone(&stop))).collect();
        let publish = |(topic, stop): (Topic<u32>, Arc<AtomicBool>)| {
            while !stop.load(Ordering::Relaxed) {
                let _ = topic.try_publish("k", 0);
                thread::yield_now();
            }
        };
        let threads: Vec<_> = publishers.into_iter().map(|p| thread::spawn(move || publish(p))).collect();
        for n in 1..=150 {
            topic.bind(&mine, "k").unwrap();
            publish_elsewhere(&topic, n);
            topic.unbind(&mine, "k").unwrap();
            publish_elsewhere(&topic, n + 1000);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(broker.wait_idle(LONG));
        assert_eq!(*numbered.lock().unwrap(), (1..=150).collect::<Vec<_>>());
    });
}

/// Takes all there is, however fast, and never refuses.
fn quiet_sink(broker: &Broker) -> Queue<u32> {
    broker.queue("noise").capacity(1).overflow(Overflow::DropNewest).declare().unwrap()
}

/// From another thread each time, so that no thread's memory of the route helps.
fn publish_elsewhere(topic: &Topic<u32>, n: u32) {
    thread::scope(|scope| drop(scope.spawn(|| topic.publish("k", n).unwrap())));
}

#[test]
fn two_threads_cannot_close_a_circle_together() {
    within(LONG, || {
        for _ in 0..100 {
            let broker = Broker::new();
            let [a, b] = ["a", "b"].map(|name| topic(&broker, name, Routing::Fanout));
            let results = thread::scope(|scope| {
                let one = scope.spawn(|| a.bind(&b, "").is_ok());
                let other = scope.spawn(|| b.bind(&a, "").is_ok());
                (one.join().unwrap(), other.join().unwrap())
            });
            assert!(results.0 ^ results.1, "{results:?}");
        }
    });
}
