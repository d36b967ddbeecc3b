//! Data hub: one stream of changes into several stores, one of which is down for a while.
//!
//! **Situation.** Every change of a product has to reach the search index, the cache and the data warehouse.
//! The warehouse is taken down for ten minutes in the middle of the day.
//!
//! **What the queue gives.** Each store has a queue of its own, bound to the one topic, so a store that does
//! not answer delays nobody else and the source does not notice. Its changes wait in its queue. A circuit
//! breaker keeps the warehouse from being called in vain meanwhile: after a few failures only one probe every
//! thirty seconds is sent, and when one succeeds the backlog flows. What had become a dead letter before the
//! circuit opened is sent back by itself.
//!
//! **What to expect on screen.** How far each store is before, during and after the outage; when the circuit
//! opened and closed; how few calls the warehouse got while it was down. The clock is virtual, so twenty
//! minutes take no time.
//!
//! `cargo run --release --example data_hub`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use names::{CHANGES, Change};
use postroom::{Broker, Event, Simulation, Topic};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// All that the modules know of each other.
mod names {
    use postroom::TopicName;

    #[derive(Clone, Debug)]
    pub struct Change {
        pub product: u64,
        /// Raised by every change of a product, so that a store can tell old from new.
        pub version: u64,
        pub cents: u64,
    }

    pub const CHANGES: TopicName<Change> = TopicName::new("changes");
}

/// A store of products; the three differ in nothing but their name.
mod store {
    use crate::names::{CHANGES, Change};
    use postroom::{Broker, CircuitBreaker, Error, Message, Queue, Retry};
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct Store {
        pub down: AtomicBool,
        pub calls: AtomicU64,
        /// Version and price by product.
        pub products: Mutex<BTreeMap<u64, (u64, u64)>>,
    }

    impl Store {
        /// Idempotent, and deaf to what is older than what it knows: a retried change may come late or twice.
        fn apply(&self, change: &Change) -> std::io::Result<()> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if self.down.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("no connection"));
            }
            let mut products = self.products.lock().unwrap();
            let known = products.entry(change.product).or_default();
            *known = (*known).max((change.version, change.cents));
            Ok(())
        }
    }

    pub fn start(broker: &Broker, name: &str) -> Result<(Arc<Store>, Queue<Change>), Error> {
        let store = Arc::new(Store::default());
        let retry = Retry::exponential(Duration::from_secs(1)).max_attempts(3);
        let queue = broker.queue(name).capacity(100_000).retry(retry).declare()?;
        broker.topic(CHANGES).declare()?.bind(&queue, "product.*")?;
        let writing = store.clone();
        let breaker = CircuitBreaker::new(20, 0.5).pause(Duration::from_secs(30)).redrive_on_close();
        queue
            .consumer()
            .workers(2)
            .circuit_breaker(breaker)
            .start(move |change: &Message<Change>| writing.apply(change))?;
        Ok((store, queue))
    }
}

const PRODUCTS: u64 = 500;
const PER_SECOND: u64 = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("data_hub.rs"));
    let (broker, simulation) = broker_that_reports()?;
    let changes = broker.topic(CHANGES).declare()?;
    let mut hub = Vec::new();
    for name in ["search", "cache", "warehouse"] {
        let (store, queue) = store::start(&broker, name)?;
        hub.push((name, store, queue));
    }
    let warehouse = hub[2].1.clone();
    let mut source = Source { changes, simulation, version: 0, truth: BTreeMap::new() };
    let print = |when: &str| {
        println!("   {when}");
        for (name, store, queue) in &hub {
            let calls = store.calls.load(Ordering::Relaxed);
            let (stats, dead) = (queue.stats(), queue.dead_letters().len());
            let waiting = stats.ready + stats.delayed;
            println!(
                "   {name:>9}: {:>5} changes applied, {waiting:>4} waiting, {dead} dead, {calls} calls",
                stats.acked
            );
        }
    };

    println!("1. Five minutes, {PER_SECOND} changes a second, all stores up.");
    source.run_for(300);
    print("after 5 minutes:");

    println!("\n2. The warehouse goes down for ten minutes.");
    warehouse.down.store(true, Ordering::Relaxed);
    let before = warehouse.calls.load(Ordering::Relaxed);
    source.run_for(600);
    print("after 15 minutes:");
    let in_vain = warehouse.calls.load(Ordering::Relaxed) - before;
    println!("   {in_vain} calls in vain for {} changes", 600 * PER_SECOND);
    assert!(in_vain < 100, "the circuit breaker spares what is down");
    for (name, store, queue) in &hub[..2] {
        assert_eq!(*store.products.lock().unwrap(), source.truth, "{name} does not notice");
        assert_eq!((queue.len(), queue.stats().retried), (0, 0));
    }
    assert_ne!(*warehouse.products.lock().unwrap(), source.truth);

    println!("\n3. It is back, and catches up while changes go on.");
    warehouse.down.store(false, Ordering::Relaxed);
    source.run_for(300);
    print("after 20 minutes:");
    for (name, store, queue) in &hub {
        assert_eq!(*store.products.lock().unwrap(), source.truth, "{name} equals the source");
        assert_eq!((queue.stats().acked, queue.dead_letters().len()), (source.version, 0), "{name} missed nothing");
    }
    println!("   all three stores equal the source: {PRODUCTS} products, {} changes", source.version);
    let report = broker.shutdown(Duration::from_secs(5));
    println!("   shut down: {report}");
    assert!(report.is_clean());
    Ok(())
}

/// Where the changes come from. It knows the topic alone.
struct Source {
    changes: Topic<Change>,
    simulation: Simulation,
    version: u64,
    truth: BTreeMap<u64, (u64, u64)>,
}

impl Source {
    fn run_for(&mut self, seconds: u64) {
        for _ in 0..seconds * PER_SECOND {
            self.version += 1;
            let (product, version) = (self.version * 7 % PRODUCTS, self.version);
            let change = Change { product, version, cents: version % 997 };
            self.truth.insert(product, (version, change.cents));
            self.changes.publish("product.changed", change).expect("the hub is wide enough");
            self.simulation.advance(Duration::from_millis(1000 / PER_SECOND));
        }
    }
}

fn broker_that_reports() -> Result<(Broker, Simulation), postroom::Error> {
    let tell = |event: &Event| match event {
        // Each probe that fails tells as well.
        Event::CircuitOpened { of: 1, .. } => {}
        Event::CircuitOpened { queue, failures, of } => {
            println!("   [{queue}] circuit open: {failures} of {of} failed")
        }
        Event::CircuitClosed { queue, redriven } => {
            println!("   [{queue}] circuit closed, {redriven} dead letters sent back")
        }
        _ => {}
    };
    Broker::builder().on_event(tell).build_simulated()
}
