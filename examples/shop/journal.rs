//! Everything that happens to orders, written down once and read by whoever likes, whenever they like.

use crate::names::{JOURNAL, ORDERS, Order, PAID};
use crate::time::Time;
use postroom::{Broker, Error, Log, LogError, Record, Start};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Nobody writes into the journal: it is bound to the topic. The order's number is the key of its events, so an
/// order's events are in one partition. An event may stand there before the one it follows from, since a worker
/// may be quicker than whoever published to it.
pub fn declare(broker: &Broker) -> Result<Log<Order>, Error> {
    let journal = broker.log(JOURNAL).partitions(4).declare()?;
    broker.topic(ORDERS).find()?.bind(&journal, "order.*")?;
    Ok(journal)
}

/// Which events each order has had.
#[derive(Default)]
pub struct Audit {
    histories: Mutex<BTreeMap<u64, BTreeSet<String>>>,
}

impl Audit {
    pub fn histories(&self) -> BTreeMap<u64, BTreeSet<String>> {
        self.histories.lock().unwrap().clone()
    }

    pub fn start(self: &Arc<Self>, journal: &Log<Order>) -> Result<(), Error> {
        let audit = self.clone();
        journal.group("audit").start(Start::Earliest)?.consumer().start(move |event: &Record<Order>| {
            let mut histories = audit.histories.lock().unwrap();
            histories.entry(event.id).or_default().insert(event.routing_key().to_owned());
        })?;
        Ok(())
    }
}

/// How often what happened, and what was paid for each item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub events: BTreeMap<String, u64>,
    pub cents: BTreeMap<String, u64>,
}

impl Figures {
    fn count(&mut self, event: &Record<Order>) {
        *self.events.entry(event.routing_key().to_owned()).or_default() += 1;
        if event.routing_key() == PAID {
            *self.cents.entry(event.item.clone()).or_default() += event.cents;
        }
    }

    pub fn all(&self) -> u64 {
        self.events.values().sum()
    }
}

/// Counts as it happens, in batches.
pub fn start_analytics(journal: &Log<Order>, time: &Time, figures: Arc<Mutex<Figures>>) -> Result<(), Error> {
    let group = journal.group("analytics").start(Start::Earliest)?;
    group.consumer().workers(2).start_batch(200, time.seconds(1), move |events: &[Record<Order>]| {
        let mut figures = figures.lock().unwrap();
        events.iter().for_each(|event| figures.count(event));
    })?;
    Ok(())
}

/// Counts what counts once more, as a group that comes when all is over.
pub fn recount(
    journal: &Log<Order>,
    group: &str,
    start: Start,
    counts: impl Fn(&Record<Order>) -> bool,
) -> Result<Figures, Box<dyn std::error::Error>> {
    let group = journal.group(group).start(start)?;
    let mut reader = group.reader();
    let mut figures = Figures::default();
    loop {
        match reader.try_recv() {
            Ok(event) => {
                if counts(&event) {
                    figures.count(&event);
                }
                group.commit(event.partition(), event.offset())?;
            }
            Err(LogError::Empty) => return Ok(figures),
            Err(other) => return Err(other.into()),
        }
    }
}
