//! postroom: routed, acknowledged, with its default retry and dead letters.

use std::{sync::Arc, time::Duration};

use postroom::{Broker, Message, Queue, QueueName, Topic, TopicName};

use crate::work::{BATCH, CAPACITY, Contestant, Outcome, Payload, Tally, arrivals::Arrivals, crew, crew::Share};

pub const SELF: Contestant =
    Contestant { name: "postroom", package: Some("postroom"), note: "ack, retry and dead letters" };

pub const BATCHES: Contestant = Contestant { name: "postroom, in batches", ..SELF };

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    many::<T, 1>(n)
}

/// Published by name, routed, queued, handled by a worker, acknowledged.
pub fn many<T: Payload, const N: usize>(n: u64) -> Outcome {
    let route = Route::<T>::declare();
    let seen = route.arrivals.clone();
    let handler = move |parcel: &Message<T>| seen.add(parcel.payload());
    route.queue.consumer().workers(N).start(handler).expect("workers start");
    route.run::<N>(n, |topic, share| {
        for payload in share {
            assert!(topic.publish("parcel.sent", payload).is_ok());
        }
    })
}

/// The same in batches: published by name, routed, queued, handled and acknowledged so many at a time.
pub fn batches<T: Payload>(n: u64) -> Outcome {
    batches_of::<T, BATCH>(n)
}

pub fn batches_of<T: Payload, const SIZE: usize>(n: u64) -> Outcome {
    let route = Route::<T>::declare();
    let seen = route.arrivals.clone();
    let handler = move |parcels: &[Message<T>]| parcels.iter().for_each(|parcel| seen.add(parcel.payload()));
    let consumer = route.queue.consumer();
    consumer.start_batch(SIZE, Duration::ZERO, handler).expect("workers start");
    // Nothing is left to publish once a batch is empty.
    route.run::<1>(n, |topic, share| {
        while topic.publish_batch("parcel.sent", share.by_ref().take(SIZE)).expect("the broker is up") > 0 {}
    })
}

/// Straight to the queue. The payload cannot leave a delivery that is settled, so its digest does.
pub fn one_thread<T: Payload>(n: u64) -> Outcome {
    let broker = Broker::new();
    let queue = declare::<T>(&broker);
    let thread = || {
        let mut tally = Tally::default();
        for number in 0..n {
            assert!(queue.send(T::numbered(number)).is_ok());
            let delivery = queue.recv().expect("the queue is open");
            tally.add(delivery.payload());
            delivery.ack().expect("the broker is up");
        }
        tally
    };
    let (elapsed, tallies) = crew::time(vec![Box::new(thread)])?;
    tallies.into_iter().sum::<Tally>().check::<T>(n)?;
    close(&broker, &queue, n)?;
    Ok(elapsed)
}

/// A topic bound to a queue by a pattern, and what its consumer has seen.
struct Route<T: Payload> {
    broker: Broker,
    topic: Topic<T>,
    queue: Queue<T>,
    arrivals: Arc<Arrivals>,
}

impl<T: Payload> Route<T> {
    fn declare() -> Self {
        let broker = Broker::new();
        let topic = broker.topic(TopicName::<T>::new("parcels")).declare().expect("a new topic");
        let queue = declare::<T>(&broker);
        topic.bind(&queue, "parcel.*").expect("a valid pattern");
        Self { broker, topic, queue, arrivals: Arc::new(Arrivals::default()) }
    }

    /// Publishes from so many threads and waits until all has been handled; the clock stops then.
    fn run<const THREADS: usize>(self, n: u64, publish: impl Fn(&Topic<T>, &mut Share<T>) + Sync) -> Outcome {
        let producer = |mut share: Share<T>| -> Tally {
            publish(&self.topic, &mut share);
            self.arrivals.wait_for(n);
            Tally::default()
        };
        let threads = crew::shares(n, THREADS as u64).map(|share| Box::new(|| producer(share)) as crew::Thread);
        let (elapsed, _) = crew::time(threads.collect())?;
        close(&self.broker, &self.queue, n)?;
        self.arrivals.tally().check::<T>(n)?;
        Ok(elapsed)
    }
}

fn declare<T: Payload>(broker: &Broker) -> Queue<T> {
    let name = QueueName::<T>::new("deliveries");
    broker.queue(name).capacity(CAPACITY).declare().expect("a new queue")
}

/// Nothing may be left over, and every message must have been acknowledged.
fn close<T: Payload>(broker: &Broker, queue: &Queue<T>, n: u64) -> Result<(), String> {
    if !broker.shutdown(Duration::from_secs(10)).is_clean() {
        return Err("the shutdown left messages behind".into());
    }
    match queue.stats().acked {
        acked if acked == n => Ok(()),
        acked => Err(format!("{acked} of {n} messages were acknowledged")),
    }
}
