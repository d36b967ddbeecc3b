//! For tests of what is kept in a file.

use postroom::store::{Durability, Item, Limit, Options, Row, Store, StreamId};
use postroom::{Broker, ManualClock, Simulation};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// No limit.
pub(crate) const ALL: Limit = Limit { items: usize::MAX, bytes: usize::MAX };

/// A folder of its own, gone in the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("postroom-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Self(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("store.db")
    }

    /// What a process that is killed now would leave behind.
    pub(crate) fn killed(&self) -> Self {
        let copy = Self::new();
        copy_file(&self.file(), &copy.file());
        copy
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The database and its log as they are now, whoever has them open; without the log once nobody has.
pub(crate) fn copy_file(from: &Path, to: &Path) {
    let log = |database: &Path| PathBuf::from(format!("{}-wal", database.display()));
    std::fs::copy(from, to).unwrap();
    if log(from).exists() {
        std::fs::copy(log(from), log(to)).unwrap();
    }
}

/// On a clock that a later run goes on with.
pub(crate) fn simulated(folder: &Folder, clock: &ManualClock) -> (Broker, Simulation) {
    Broker::builder().clock(clock.clone()).seed(1).store(folder.file()).build_simulated().unwrap()
}

/// What the broker has handed in is in the file.
pub(crate) fn flush(broker: &Broker) {
    broker.store().unwrap().flush(Durability::Buffered).unwrap();
}

/// An item of which only the payload matters.
pub(crate) fn item(payload: &str) -> Item {
    Item { payload: payload.into(), ..Item::default() }
}

pub(crate) fn payloads(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| String::from_utf8_lossy(&row.item.payload).into_owned()).collect()
}

pub(crate) fn open(folder: &Folder) -> Store {
    Store::open(folder.file(), Options::new()).expect("the file is free")
}

pub(crate) fn queue(store: &Store) -> StreamId {
    store.declare("queue", "orders", "").unwrap()
}
