//! What several test files need.
#![allow(dead_code)]

pub mod power;

use faults::{Call, FileId, Image};
use postroom::store::{Item, Limit, Store, StreamId};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls that change what is on the disk.
pub const CHANGES: &[Call] = &[Call::Write, Call::Truncate, Call::Sync];
pub const ALL: Limit = Limit { items: usize::MAX, bytes: usize::MAX };

/// A folder of its own, gone in the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("postroom-faults-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Self(path)
    }

    /// With the files that a disk holds.
    pub fn holding(image: &Image) -> Self {
        let folder = Self::new();
        let journal = folder.0.join("store.db-journal");
        for (id, path) in [(FileId::Main, folder.file()), (FileId::Wal, folder.log()), (FileId::Journal, journal)] {
            if let Some(bytes) = image.0.get(&id) {
                std::fs::write(path, bytes).unwrap();
            }
        }
        folder
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("store.db")
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("store.db-wal")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn item(n: u64) -> Item {
    Item { id: n, payload: vec![n as u8; 300], ..Item::default() }
}

/// Numbers of the items in a stream, which has to be sound in every other respect.
pub fn contents(store: &Store, stream: StreamId) -> Vec<u64> {
    store.check().expect("SQLite finds nothing wrong");
    let reader = store.reader().expect("reads");
    let rows = reader.read(stream, 0, ALL).expect("reads");
    let info = reader.streams().expect("reads").into_iter().find(|info| info.id == stream).expect("is there");
    assert_eq!(info.count, rows.len() as u64, "the count is that of the rows");
    assert!(rows.iter().all(|row| row.seq < info.next && row.item == item(row.item.id)), "items are as they were");
    rows.iter().map(|row| row.item.id).collect()
}

/// A generator that needs no crate (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides.max(1)
    }
}
