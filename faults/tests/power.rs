//! The power fails at any moment: what was answered under `Sync` is there, batches are whole, the file opens.
#![allow(missing_docs)]

mod common;

use common::power::Past;
use common::{Dice, Folder, contents, item};
use faults::{Call, Disk};
use postroom::store::{Batch, Durability, Options, Store};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// What a note among the events stands for.
#[derive(Debug, Clone)]
enum Fact {
    /// The batch with these items was answered.
    Inserted(Vec<u64>, Durability),
    /// The deletion of this item was handed in, and later answered.
    Deleting(u64),
    Deleted(u64, Durability),
}

/// A working day of a store: batches of one to three items, some deletions, some of it synced.
struct Day {
    disk: Disk,
    facts: Arc<Mutex<Vec<Fact>>>,
    store: Store,
}

impl Day {
    fn note(disk: &Disk, facts: &Mutex<Vec<Fact>>, fact: Fact) {
        let mut facts = facts.lock().unwrap();
        facts.push(fact);
        disk.note(facts.len() as u64 - 1);
    }

    /// Hands in a batch; the fact is noted the moment it is answered.
    fn submit(&self, batch: Batch, durability: Durability, fact: Fact) {
        let (disk, facts) = (self.disk.clone(), Arc::clone(&self.facts));
        let done = move |result: Result<&[u64], _>| {
            result.expect("nothing fails");
            Self::note(&disk, &facts, fact);
        };
        self.store.submit(batch, durability, done).unwrap();
    }

    fn run(seed: u64, steps: u64) -> Past<Fact> {
        let (folder, disk, mut dice) = (Folder::new(), Disk::new(), Dice(seed));
        disk.record();
        let options = Options::new().vfs(disk.name()).wal_bytes(120_000);
        let store = Store::open(folder.file(), options).unwrap();
        let stream = store.declare("queue", "q", "").unwrap();
        let day = Day { disk, facts: Arc::default(), store };
        let mut next = 0;
        for _ in 0..steps {
            let durability = if dice.roll(3) == 0 { Durability::Sync } else { Durability::Buffered };
            if dice.roll(3) > 0 || next == 0 {
                let items: Vec<u64> = (0..=dice.roll(3)).map(|n| next + n).collect();
                next += items.len() as u64;
                let batch = items.iter().fold(Batch::new(), |batch, &n| batch.insert(stream, item(n)));
                day.submit(batch, durability, Fact::Inserted(items, durability));
            } else {
                // Places are numbers here, because all goes through one stream in order.
                let n = dice.roll(next);
                Self::note(&day.disk, &day.facts, Fact::Deleting(n));
                day.submit(Batch::new().delete(stream, n), durability, Fact::Deleted(n, durability));
            }
            if dice.roll(4) == 0 {
                day.store.flush(Durability::Buffered).unwrap();
            }
        }
        day.store.close().unwrap();
        let facts = day.facts.lock().unwrap().clone();
        Past { events: day.disk.events(), facts }
    }
}

/// What has to be there, what must not, and which batches go together.
fn check(folder: &Folder, facts: &[Fact], what: &str) {
    let store = Store::open(folder.file(), Options::new()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let Some(stream) = store.reader().unwrap().stream("queue", "q").unwrap() else {
        assert!(facts.is_empty(), "{what}: the stream was declared and is gone");
        return;
    };
    let found: BTreeSet<u64> = contents(&store, stream.id).into_iter().collect();
    let synced = |fact: &Fact| matches!(fact, Fact::Inserted(_, Durability::Sync) | Fact::Deleted(_, Durability::Sync));
    let safe = facts.iter().rposition(synced).map_or(0, |at| at + 1);
    let deleting: BTreeSet<u64> =
        facts.iter().filter_map(|fact| if let Fact::Deleting(n) = fact { Some(*n) } else { None }).collect();
    for (at, fact) in facts.iter().enumerate() {
        match fact {
            Fact::Inserted(items, _) if at < safe => {
                let lost: Vec<_> = items.iter().filter(|n| !found.contains(n) && !deleting.contains(n)).collect();
                assert!(lost.is_empty(), "{what}: {lost:?} were safe and are gone");
            }
            Fact::Inserted(items, _) => {
                let mut left = items.iter().filter(|n| !deleting.contains(n)).map(|n| found.contains(n));
                let first = left.next();
                assert!(left.all(|there| Some(there) == first), "{what}: half of the batch {items:?} is there");
            }
            Fact::Deleted(n, _) if at < safe => assert!(!found.contains(n), "{what}: {n} was safely gone and is back"),
            _ => {}
        }
    }
}

#[test]
fn what_was_synced_survives_a_power_cut_before_and_after_every_sync() {
    Day::run(1, 250).cut_around_every_sync(check);
}

#[test]
fn what_was_synced_survives_a_power_cut_at_any_moment() {
    for seed in 0..4 {
        Day::run(100 + seed, 120).cut_at_any_moment(seed, 60, check);
    }
}

#[test]
fn the_simulation_notices_a_store_that_does_not_sync() {
    Day::run(7, 150).assert_noticed_without_syncs(check);
}

#[test]
fn sync_syncs_every_commit_and_buffered_none() {
    let (folder, disk) = (Folder::new(), Disk::new());
    let store = Store::open(folder.file(), Options::new().vfs(disk.name())).unwrap();
    let stream = store.declare("queue", "q", "").unwrap();
    let syncs = || disk.count(Call::Sync);
    let start = syncs();
    for n in 0..50 {
        store.commit(Batch::new().insert(stream, item(n)), Durability::Buffered).unwrap();
    }
    assert_eq!(syncs() - start, 0);
    for n in 0..50 {
        store.commit(Batch::new().insert(stream, item(n)), Durability::Sync).unwrap();
    }
    // The first one finds a log that has been synced for less than what is in it; that makes no difference.
    assert_eq!(syncs() - start, 50);
    store.commit(Batch::new().insert(stream, item(0)), Durability::Buffered).unwrap();
    let before = syncs();
    store.flush(Durability::Sync).unwrap();
    assert_eq!(syncs() - before, 1, "a flush syncs what was buffered");
    store.flush(Durability::Sync).unwrap();
    assert_eq!(syncs() - before, 1, "and nothing if there is nothing");
}
