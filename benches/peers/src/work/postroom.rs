//! postroom: routed, acknowledged, with its default retry and dead letters.

use std::{
    array,
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use postroom::{Broker, Message, Queue, QueueName, Topic, TopicName};

use super::{BATCH, CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant =
    Contestant { name: "postroom", package: Some("postroom"), note: "ack, retry and dead letters" };

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    routed::<T, 1>(n)
}

pub fn two_to_two<T: Payload>(n: u64) -> Outcome {
    routed::<T, 2>(n)
}

/// The same in batches: published by name, routed, queued, handled and acknowledged 64 at a time.
pub fn batches<T: Payload>(n: u64) -> Outcome {
    let route = Route::<T>::declare();
    let seen = route.arrivals.clone();
    let handler = move |parcels: &[Message<T>]| parcels.iter().for_each(|parcel| seen.add(parcel.payload()));
    let consumer = route.queue.consumer();
    consumer.start_batch(BATCH, Duration::ZERO, handler).expect("workers start");
    route.run::<1>(n, |topic, share| {
        loop {
            let mut batch = share.by_ref().take(BATCH).peekable();
            if batch.peek().is_none() {
                break;
            }
            assert!(topic.publish_batch("parcel.sent", batch).is_ok());
        }
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
    let (elapsed, tally) = crew::time(vec![Box::new(thread)])?;
    tally.check::<T>(n)?;
    close(&broker, &queue, n)?;
    Ok(elapsed)
}

/// Published by name, routed, queued, handled by a worker, acknowledged.
fn routed<T: Payload, const THREADS: usize>(n: u64) -> Outcome {
    let route = Route::<T>::declare();
    let seen = route.arrivals.clone();
    let handler = move |parcel: &Message<T>| seen.add(parcel.payload());
    route.queue.consumer().workers(THREADS).start(handler).expect("workers start");
    route.run::<THREADS>(n, |topic, share| {
        for payload in share {
            assert!(topic.publish("parcel.sent", payload).is_ok());
        }
    })
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

/// What the workers saw. Each worker writes to a slot of its own, so counting costs no shared cache line.
struct Arrivals {
    workers: AtomicUsize,
    slots: [Slot; 8],
}

#[derive(Default)]
#[repr(align(128))]
struct Slot {
    count: AtomicU64,
    sum: AtomicU64,
}

thread_local! {
    /// A worker thread lives no longer than its broker, so it never meets a second `Arrivals`.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Default for Arrivals {
    fn default() -> Arrivals {
        Arrivals { workers: AtomicUsize::new(0), slots: array::from_fn(|_| Slot::default()) }
    }
}

impl Arrivals {
    fn add(&self, message: &impl Payload) {
        let slot = SLOT.get().unwrap_or_else(|| {
            let slot = self.workers.fetch_add(1, Ordering::Relaxed);
            SLOT.set(Some(slot));
            slot
        });
        let Slot { count, sum } = &self.slots[slot];
        let digest = sum.load(Ordering::Relaxed).wrapping_add(message.digest());
        sum.store(digest, Ordering::Relaxed);
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for Slot { count, sum } in &self.slots {
            tally.merge(Tally { count: count.load(Ordering::Acquire), sum: sum.load(Ordering::Relaxed) });
        }
        tally
    }

    /// Looks rarely enough not to take the cores from the workers. Gives up, so that a loss is reported
    /// as one and not as a hang.
    fn wait_for(&self, n: u64) {
        let start = Instant::now();
        while self.tally().count < n && start.elapsed() < Duration::from_secs(30) {
            thread::sleep(Duration::from_micros(50));
        }
    }
}
