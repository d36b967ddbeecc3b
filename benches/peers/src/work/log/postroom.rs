//! postroom's log: offsets, groups with commits and retry, retention.

use std::{array, sync::Arc, time::Duration};

use postroom::{Broker, Log, Record, Start};

use crate::work::{
    BATCH, Contestant, Outcome, Payload, Tally,
    arrivals::{Slot, wait_until},
    crew,
    crew::Share,
};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "ids, times, offsets; each record committed, retry and dead letters",
};

pub const BATCHES: Contestant =
    Contestant { name: "postroom, in batches of 64", package: Some("postroom"), note: "as above, 64 at a time" };

pub fn append<T: Payload>(n: u64) -> Outcome {
    appended(n, fill::<T>)
}

pub fn append_batches<T: Payload>(n: u64) -> Outcome {
    appended(n, |log, mut share: Share<T>| {
        loop {
            let mut batch = share.by_ref().take(BATCH).peekable();
            if batch.peek().is_none() {
                break;
            }
            assert!(log.append_batch(batch).is_ok());
        }
    })
}

/// Groups follow while the records are appended.
pub fn tail<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (broker, log) = declare::<T>();
    let groups = Groups::<N>::start(&log, Style::Single);
    groups.time(n, || fill(&log, Share::of(0..n)))?.check::<T>(n, &broker)
}

/// Groups start when all records are there.
pub fn catch_up<T: Payload, const N: usize>(n: u64) -> Outcome {
    read_all::<T, N>(n, Style::Single)
}

pub fn catch_up_in_batches<T: Payload, const N: usize>(n: u64) -> Outcome {
    read_all::<T, N>(n, Style::Batches)
}

fn read_all<T: Payload, const N: usize>(n: u64, style: Style) -> Outcome {
    let (broker, log) = declare::<T>();
    fill(&log, Share::of(0..n));
    let groups = Groups::<N>::default();
    groups.clone().time(n, || groups.join(&log, style))?.check::<T>(n, &broker)
}

fn appended<T: Payload>(n: u64, append: impl FnOnce(&Log<T>, Share<T>) + Send) -> Outcome {
    let (_broker, log) = declare::<T>();
    let thread: crew::Thread = Box::new(|| {
        append(&log, Share::of(0..n));
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![thread])?;
    let mut tally = Tally::default();
    for offset in 0..n {
        tally.add(log.read(0, offset).map_err(|error| error.to_string())?.payload());
    }
    tally.check::<T>(n)?;
    Ok(elapsed)
}

fn declare<T: Payload>() -> (Broker, Log<T>) {
    let broker = Broker::new();
    let log = broker.log("records").declare().expect("a new log");
    (broker, log)
}

fn fill<T: Payload>(log: &Log<T>, share: Share<T>) {
    share.for_each(|record| assert!(log.append(record).is_ok()));
}

#[derive(Clone, Copy)]
enum Style {
    Single,
    Batches,
}

/// What each of the groups has seen.
#[derive(Clone)]
struct Groups<const N: usize>(Arc<[Slot; N]>);

impl<const N: usize> Default for Groups<N> {
    fn default() -> Self {
        Self(Arc::new(array::from_fn(|_| Slot::default())))
    }
}

impl<const N: usize> Groups<N> {
    fn start<T: Payload>(log: &Log<T>, style: Style) -> Self {
        let groups = Self::default();
        groups.join(log, style);
        groups
    }

    fn join<T: Payload>(&self, log: &Log<T>, style: Style) {
        for index in 0..N {
            let slots = Arc::clone(&self.0);
            let group = log.group(format!("group {index}")).start(Start::Earliest).expect("a new group");
            let see = move |record: &Record<T>| slots[index].add(record.payload());
            let started = match style {
                Style::Single => group.consumer().start(see),
                Style::Batches => {
                    group.consumer().start_batch(BATCH, Duration::ZERO, move |records: &[Record<T>]| {
                        records.iter().for_each(&see);
                    })
                }
            };
            started.expect("a worker starts");
        }
    }

    /// From the start of `work` until every group has seen all.
    fn time(self, n: u64, work: impl FnOnce() + Send) -> Result<Done<N>, String> {
        let thread: crew::Thread = Box::new(|| {
            work();
            wait_until(|| self.0.iter().all(|slot| slot.tally().count >= n));
            Tally::default()
        });
        let (elapsed, _) = crew::time(vec![thread])?;
        Ok(Done { groups: self, elapsed })
    }
}

struct Done<const N: usize> {
    groups: Groups<N>,
    elapsed: Duration,
}

impl<const N: usize> Done<N> {
    fn check<T: Payload>(self, n: u64, broker: &Broker) -> Outcome {
        if !broker.shutdown(Duration::from_secs(10)).is_clean() {
            return Err("the shutdown left records behind".into());
        }
        crew::each_saw_all::<T>(n, self.groups.0.iter().map(Slot::tally))?;
        Ok(self.elapsed)
    }
}
