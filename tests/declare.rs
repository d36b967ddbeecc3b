//! Declaring is explicit, idempotent, and says everything that is wrong at once.

use postroom::{Broker, Error, Overflow, Queue, QueueBuilder, QueueName, Retry, Router, Routing, Topic, TopicName};
use std::time::Duration;

const JOBS: QueueName<u32> = QueueName::new("jobs");
const ORDERS: TopicName<u32> = TopicName::new("orders");

#[test]
fn the_same_again_is_the_same() {
    let broker = Broker::new();
    let build = || broker.queue(JOBS).capacity(5).retry(Retry::fixed(Duration::from_secs(1)));
    let (one, other) = (build().declare().unwrap(), build().declare().unwrap());
    one.send(7).unwrap();
    assert_eq!(other.len(), 1);
    let build = || broker.topic(ORDERS).routing(Routing::Direct).mandatory();
    let (one, other) = (build().declare().unwrap(), build().declare().unwrap());
    let queue = broker.queue(JOBS).capacity(5).retry(Retry::fixed(Duration::from_secs(1))).declare().unwrap();
    one.bind(&queue, "k").unwrap();
    assert_eq!(other.publish("k", 8).unwrap().routed(), 1);
}

#[test]
fn defaults_spelled_out_are_the_defaults() {
    let broker = Broker::new();
    broker.queue(JOBS).declare().unwrap();
    let spelled = broker.queue(JOBS).capacity(10_000).overflow(Overflow::Wait).retry(Retry::default());
    spelled.declare().unwrap();
}

#[test]
fn another_payload_type_is_an_error_that_says_both() {
    let broker = Broker::new();
    broker.queue(JOBS).declare().unwrap();
    broker.topic(ORDERS).declare().unwrap();
    let queue = broker.queue::<String>("jobs").declare().unwrap_err().to_string();
    let topic = broker.topic::<String>("orders").declare().unwrap_err().to_string();
    for error in [queue, topic] {
        assert!(error.contains("u32") && error.contains("String"), "{error}");
    }
}

#[test]
fn other_settings_are_an_error_that_says_each_both_ways() {
    let broker = Broker::new();
    let graves = broker.queue("graves").declare().unwrap();
    broker.queue(JOBS).declare().unwrap();
    let other = broker.queue(JOBS).capacity(5).overflow(Overflow::Reject).max_in_flight(3).retry(Retry::none());
    let error = other.dead_letter_to(&graves).declare().unwrap_err();
    assert_eq!(error.subject(), "queue \"jobs\"");
    assert_eq!(error.problems().len(), 5, "{error}");
    assert!(error.problems().iter().any(|p| p.contains("10000") && p.contains('5')), "{error}");
    broker.topic(ORDERS).declare().unwrap();
    let error = broker.topic(ORDERS).routing(Routing::Fanout).declare().unwrap_err().to_string();
    assert!(error.contains("Pattern") && error.contains("Fanout"), "{error}");
}

#[test]
fn all_problems_come_at_once() {
    let broker = Broker::new();
    let retry = Retry::fixed(Duration::ZERO).max_attempts(0).jitter(2.0).factor(3.0);
    let queue: Result<Queue<u32>, Error> = broker.queue("a\nb").capacity(0).max_in_flight(0).retry(retry).declare();
    let error = queue.unwrap_err();
    assert_eq!(error.problems().len(), 6, "{error}");
    for words in ["control characters", "capacity of 0", "max_in_flight of 0", "max_attempts(0)", "jitter", "factor"] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert!(broker.describe().queues.is_empty(), "nothing was made");
}

#[test]
fn names_must_be_there_and_printable() {
    let broker = Broker::new();
    for name in ["", "a\0b", "tab\there", "line\n"] {
        assert!(broker.queue::<u32>(name).declare().is_err(), "{name:?}");
        assert!(broker.topic::<u32>(name).declare().is_err(), "{name:?}");
        assert!(Queue::<u32>::standalone(QueueBuilder::new(name)).is_err(), "{name:?}");
    }
    for name in ["ä", "with space", "\"quoted\"", "a.b-c_d/e", "very long ".repeat(50).as_str()] {
        let queue: Queue<u32> = broker.queue(name).declare().unwrap();
        queue.consumer().start(|_: &postroom::Message<u32>| ()).unwrap().stop();
        broker.topic::<u32>(name).declare().unwrap();
    }
}

#[test]
fn a_queue_and_a_topic_may_share_a_name() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("same").declare().unwrap();
    let topic: Topic<u32> = broker.topic("same").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    assert_eq!(topic.publish("k", 1).unwrap().routed(), 1);
}

#[test]
fn parts_of_another_broker_are_refused() {
    let (here, there) = (Broker::new(), Broker::new());
    let graves = there.queue("graves").declare().unwrap();
    let error = here.queue(JOBS).dead_letter_to(&graves).capacity(0).declare().unwrap_err();
    assert_eq!(error.problems().len(), 2);
    assert!(error.to_string().contains("\"graves\" belongs to another broker"), "{error}");
    let other = there.queue::<u32>("other").declare().unwrap();
    assert!(here.topic(ORDERS).alternate(&other).declare().is_err());
    // Names are each broker's own.
    here.queue::<String>("other").declare().unwrap();
}

#[test]
fn the_name_of_the_dead_letter_queue_must_be_free() {
    let broker = Broker::new();
    broker.queue::<u32>("jobs.dead").declare().unwrap();
    assert!(broker.queue(JOBS).declare().unwrap_err().to_string().contains("jobs.dead"));
    let graves = broker.queue("graves").declare().unwrap();
    broker.queue(JOBS).dead_letter_to(&graves).declare().unwrap();
}

#[test]
fn a_dead_letter_queue_can_be_found_by_its_name() {
    let broker = Broker::new();
    let jobs = broker.queue(JOBS).declare().unwrap();
    let found: Queue<postroom::DeadLetter<u32>> = broker.queue("jobs.dead").declare().unwrap();
    jobs.send(1).unwrap();
    jobs.recv().unwrap().dead_letter("no").unwrap();
    assert_eq!(found.len(), 1);
}

struct Mine;

impl Router<u32> for Mine {
    fn route(&self, _: &postroom::Message<u32>, _: &[&str], _: &mut Vec<usize>) {}
}

#[test]
fn routers_of_ones_own_count_as_alike() {
    let broker = Broker::new();
    broker.topic(ORDERS).router(Mine).declare().unwrap();
    broker.topic(ORDERS).router(Mine).declare().unwrap();
    assert!(broker.topic(ORDERS).declare().unwrap_err().to_string().contains("own router"));
}

#[test]
fn custom_retry_functions_are_alike_only_as_clones() {
    let broker = Broker::new();
    let retry = Retry::custom(|_| None);
    broker.queue(JOBS).retry(retry.clone()).declare().unwrap();
    broker.queue(JOBS).retry(retry).declare().unwrap();
    assert!(broker.queue(JOBS).retry(Retry::custom(|_| None)).declare().is_err());
}

#[test]
fn declaring_from_many_threads_makes_one() {
    let broker = Broker::new();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let broker = &broker;
            scope.spawn(move || {
                broker.queue(JOBS).declare().unwrap().send(n).unwrap();
            });
        }
    });
    assert_eq!(broker.queue(JOBS).declare().unwrap().len(), 8);
}
