//! A growing `Vec` behind a lock, each reader with an index: what people write by hand.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::work::{BATCH, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "Vec behind a Mutex",
    package: Some("parking_lot"),
    note: "no offsets to commit, no retry, no retention, no partitions; a push that grows it stops everybody",
};

pub fn append<T: Payload>(n: u64) -> Outcome {
    let records = Mutex::new(Vec::new());
    let thread: crew::Thread = Box::new(|| {
        Share::of(0..n).for_each(|record: T| records.lock().push(record));
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![thread])?;
    records.into_inner().into_iter().collect::<Tally>().check::<T>(n)?;
    Ok(elapsed)
}

/// Readers follow while the records are appended, 64 at a time.
pub fn tail<T: Payload, const N: usize>(n: u64) -> Outcome {
    let shelf = &Shelf::default();
    let publisher = |share: Share<T>| {
        share.for_each(|record| shelf.push(record));
        shelf.close();
    };
    crew::fan_out(n, publisher, (0..N).map(|_| || shelf.read()).collect())
}

/// Readers start when all records are there.
pub fn catch_up<T: Payload, const N: usize>(n: u64) -> Outcome {
    let shelf = &Shelf::default();
    Share::of(0..n).for_each(|record: T| shelf.push(record));
    shelf.close();
    crew::fan_out(n, |_: Share<T>| {}, (0..N).map(|_| || shelf.read()).collect())
}

struct Shelf<T> {
    records: Mutex<Vec<T>>,
    more: Condvar,
    closed: AtomicBool,
}

impl<T> Default for Shelf<T> {
    fn default() -> Shelf<T> {
        Shelf { records: Mutex::default(), more: Condvar::new(), closed: AtomicBool::new(false) }
    }
}

impl<T: Payload> Shelf<T> {
    fn push(&self, record: T) {
        self.records.lock().push(record);
        self.more.notify_all();
    }

    fn close(&self) {
        let _records = self.records.lock();
        self.closed.store(true, Ordering::Relaxed);
        self.more.notify_all();
    }

    /// Copies up to 64 records while it has the lock, and looks at them afterwards.
    fn read(&self) -> Tally {
        let mut tally = Tally::default();
        let mut place = 0;
        loop {
            let mut records = self.records.lock();
            while records.len() == place {
                if self.closed.load(Ordering::Relaxed) {
                    return tally;
                }
                self.more.wait(&mut records);
            }
            let batch = records[place..].iter().take(BATCH).cloned().collect::<Vec<_>>();
            drop(records);
            place += batch.len();
            batch.iter().for_each(|record| tally.add(record));
        }
    }
}
