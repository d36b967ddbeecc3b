//! The program that is killed: it takes orders, relays them, and does their work.

use crate::WINDOW;
use crate::store::{Order, Store};
use postroom::{Broker, Codec, CodecError, Consumer, Failure, Json, Message, Queue, Topic, TopicName};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const ORDERS: TopicName<Order> = TopicName::new("orders");

/// Passed by every thread; the one that is the last to pass the chosen point says so and stops there, to be
/// killed.
#[derive(Clone)]
pub(crate) struct Points {
    chosen: String,
    passes_left: Arc<AtomicI64>,
}

impl Points {
    fn of_environment() -> Self {
        let passes = variable("POSTROOM_CRASH_AFTER").parse().unwrap();
        Self { chosen: variable("POSTROOM_CRASH_POINT"), passes_left: Arc::new(AtomicI64::new(passes)) }
    }

    fn none() -> Self {
        Self { chosen: "none".into(), passes_left: Arc::default() }
    }

    pub(crate) fn pass(&self, point: &str) {
        let scarce = point == "connecting";
        if self.chosen == point && (scarce || self.passes_left.fetch_sub(1, Ordering::SeqCst) == 0) {
            println!("\nat the point");
            loop {
                thread::park();
            }
        }
    }
}

/// JSON, which the relay reads between the table and the topic.
#[derive(Clone)]
pub(crate) struct Watched(pub(crate) Points);

impl Codec<Order> for Watched {
    fn name(&self) -> &str {
        "json"
    }
    fn encode(&self, order: &Order) -> Result<Vec<u8>, CodecError> {
        Json.encode(order)
    }
    fn decode(&self, bytes: &[u8]) -> Result<Order, CodecError> {
        self.0.pass("fetched");
        Json.decode(bytes)
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

struct Office {
    broker: Broker,
    topic: Topic<Order>,
    _consumer: Consumer,
}

/// A topic, a queue in order by key, and workers who do an order's work through the inbox.
fn open(store: &dyn Store, journal: PathBuf, round: String, points: &Points) -> Office {
    let broker = Broker::new();
    let topic = broker.topic(ORDERS).declare().unwrap();
    let queue: Queue<Order> = broker.queue("work").ordered_by_key().capacity(WINDOW / 2).declare().unwrap();
    topic.bind(&queue, "order.*").unwrap();
    let (works, points) = (store.worker(), points.clone());
    let handler = move |order: &Message<Order>| -> Result<(), Failure> {
        points.pass("handler started");
        // One write, so that it is there whole or not at all.
        let line = format!("{round} {} {}\n", order.n, order.doomed);
        OpenOptions::new().create(true).append(true).open(&journal)?.write_all(line.as_bytes())?;
        works(order, &|| points.pass("effect written"))?;
        points.pass("effect committed");
        Ok(())
    };
    let consumer = queue.consumer().workers(3).start(handler).unwrap();
    Office { broker, topic, _consumer: consumer }
}

pub(crate) fn run(store: &dyn Store) {
    let round = variable("POSTROOM_CRASH_ROUND");
    let points = Points::of_environment();
    let office = open(store, variable("POSTROOM_CRASH_JOURNAL").into(), round.clone(), &points);
    // In turn, rows are kept or deleted when they are done.
    let keep = if round.parse::<u64>().unwrap().is_multiple_of(2) { Duration::ZERO } else { Duration::from_secs(3600) };
    let relay = store.relay(&office.broker, &points).topic(&office.topic).window(WINDOW).batch(10).keep_done(keep);
    let relay = relay.lease(Duration::from_millis(60)).poll(Duration::from_millis(5)).start().unwrap();
    println!("\nworking");
    let watch = points.clone();
    thread::spawn(move || {
        let mut seen = 0;
        loop {
            // Handled, acked, and not marked yet.
            let stats = relay.stats();
            if stats.done > seen || stats.unmarked > 0 {
                seen = stats.done;
                watch.pass("acked");
            }
            thread::sleep(Duration::from_micros(300));
        }
    });
    store.write_orders(round.parse().unwrap(), &points);
}

/// What the last process left behind is done by one that is not killed.
pub(crate) fn finish(store: &dyn Store, journal: &Path) {
    let office = open(store, journal.into(), "last".into(), &Points::none());
    let relay = store.relay(&office.broker, &Points::none()).topic(&office.topic).window(WINDOW);
    let relay = relay.lease(Duration::from_millis(60)).poll(Duration::from_millis(5)).start().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while store.unfinished() > 0 {
        assert!(Instant::now() < end, "{:?}", relay.stats());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(relay.stop(Duration::from_secs(10)));
    assert!(office.broker.shutdown(Duration::from_secs(10)).is_clean());
}
