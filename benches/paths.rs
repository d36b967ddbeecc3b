//! The hot paths, one at a time, for counting their instructions.
//!
//! `.ci/instructions` runs this under valgrind and compares with `benches/instructions.txt`; by hand:
//! `cargo bench --bench paths -- PATH MESSAGES`. Everything happens on one thread but for the worker's
//! path, by a clock that stands still, so that the same source gives the same count.

#![allow(missing_docs)]

use postroom::{Broker, Log, ManualClock, Message, Queue, Start, Topic};
use std::hint::black_box;
use std::time::Duration;

type Path = fn(&Broker, usize);

/// Multiples of this many messages.
const BATCH: usize = 64;

const PATHS: [(&str, Path); 10] = [
    ("send-recv-ack", one_by_one),
    ("publish-recv-ack", through_a_topic),
    ("publish-128-bytes", large),
    ("publish-to-4-queues", to_four_queues),
    ("batches-of-64", in_batches),
    ("publish-then-work", by_a_worker),
    ("ordered-by-key", ordered),
    ("broadcast-to-4", broadcast),
    ("log-append-read", logged),
    ("delay-1-second", delayed),
];

fn main() {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [name, messages] = &given[..] else {
        PATHS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let Some((_, path)) = PATHS.iter().find(|(path, _)| path == name) else {
        eprintln!("no path {name:?}; without arguments, they are listed");
        std::process::exit(2);
    };
    let Ok(messages) = messages.parse::<usize>() else {
        eprintln!("{messages:?} is not a number of messages");
        std::process::exit(2);
    };
    let broker = Broker::builder().clock(ManualClock::new()).build().unwrap();
    path(&broker, messages.next_multiple_of(BATCH));
}

fn one_by_one(broker: &Broker, messages: usize) {
    let queue: Queue<u64> = broker.queue("queue").declare().unwrap();
    for n in 0..messages as u64 {
        queue.send(n).unwrap();
        receive(&queue);
    }
}

fn through_a_topic(broker: &Broker, messages: usize) {
    let (topic, queue) = topic_and_queue(broker);
    for n in 0..messages as u64 {
        topic.publish("parcel.sent", n).unwrap();
        receive(&queue);
    }
}

fn large(broker: &Broker, messages: usize) {
    let (topic, queue) = topic_and_queue(broker);
    for n in 0..messages as u64 {
        topic.publish("parcel.sent", [n; 16]).unwrap();
        receive(&queue);
    }
}

fn to_four_queues(broker: &Broker, messages: usize) {
    let topic: Topic<u64> = broker.topic("parcels").declare().unwrap();
    let queues: Vec<Queue<u64>> = (0..4).map(|n| broker.queue(format!("queue-{n}")).declare().unwrap()).collect();
    queues.iter().for_each(|queue| topic.bind(queue, "parcel.*").unwrap());
    for n in 0..messages as u64 {
        topic.publish("parcel.sent", n).unwrap();
        queues.iter().for_each(receive);
    }
}

fn in_batches(broker: &Broker, messages: usize) {
    let (topic, queue) = topic_and_queue(broker);
    for _ in 0..messages / BATCH {
        topic.publish_batch("parcel.sent", 0..BATCH as u64).unwrap();
        let batch = queue.recv_batch(BATCH).unwrap();
        batch.iter().for_each(|message| _ = black_box(**message));
        batch.ack().unwrap();
    }
}

/// The worker has a thread of its own, which does nothing but take what is there already.
fn by_a_worker(broker: &Broker, messages: usize) {
    let topic: Topic<u64> = broker.topic("parcels").declare().unwrap();
    let queue: Queue<u64> = broker.queue("deliveries").capacity(messages).declare().unwrap();
    topic.bind(&queue, "parcel.*").unwrap();
    (0..messages as u64).for_each(|n| _ = topic.publish("parcel.sent", n).unwrap());
    let (last, main) = (messages as u64 - 1, std::thread::current());
    let handler = move |n: &Message<u64>| {
        if black_box(**n) == last {
            main.unpark();
        }
    };
    let _consumer = queue.consumer().start(handler).unwrap();
    while !queue.is_empty() {
        std::thread::park();
    }
}

fn ordered(broker: &Broker, messages: usize) {
    let queue: Queue<u64> = broker.queue("queue").ordered_by(|n: &u64| n % 10_000).declare().unwrap();
    for n in 0..messages as u64 {
        queue.send(n).unwrap();
        receive(&queue);
    }
}

fn broadcast(broker: &Broker, messages: usize) {
    let topic: Topic<u64> = broker.topic("settings").declare().unwrap();
    let subscribers: Vec<_> = (0..4).map(|_| topic.subscribe().open().unwrap()).collect();
    for _ in 0..messages / BATCH {
        (0..BATCH as u64).for_each(|n| _ = topic.publish("setting", n).unwrap());
        for subscriber in &subscribers {
            (0..BATCH).for_each(|_| _ = black_box(subscriber.recv().unwrap()));
        }
    }
}

fn logged(broker: &Broker, messages: usize) {
    let log: Log<u64> = broker.log("events").declare().unwrap();
    let group = log.group("reader").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    for _ in 0..messages / BATCH {
        (0..BATCH as u64).for_each(|n| _ = log.append(n).unwrap());
        (0..BATCH).for_each(|_| _ = black_box(reader.recv().unwrap()));
    }
}

fn delayed(broker: &Broker, messages: usize) {
    let queue: Queue<u64> = broker.queue("queue").capacity(messages).declare().unwrap();
    for n in 0..messages as u64 {
        queue.send(Message::new(n).with_delay(Duration::from_secs(1))).unwrap();
    }
}

fn topic_and_queue<T: Send + Sync + 'static>(broker: &Broker) -> (Topic<T>, Queue<T>) {
    let topic = broker.topic("parcels").declare().unwrap();
    let queue = broker.queue("deliveries").declare().unwrap();
    topic.bind(&queue, "parcel.*").unwrap();
    (topic, queue)
}

fn receive<T: Send + Sync + Copy + 'static>(queue: &Queue<T>) {
    let delivery = queue.recv().unwrap();
    black_box(**delivery);
    delivery.ack().unwrap();
}
