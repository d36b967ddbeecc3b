//! How a store behaves.

use std::time::Duration;

/// When the answer to a submitted batch comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Durability {
    /// Once it is written: it survives the end of the process, however that ends.
    Buffered,
    /// Once it is written and synced, with all that was written before: it survives the loss of power.
    Sync,
}

/// How to open a store. The defaults suit most.
#[derive(Debug, Clone)]
#[must_use]
pub struct Options {
    pub(super) queue_bytes: usize,
    pub(super) lazy_delay: Duration,
    pub(super) wal_bytes: u64,
    pub(super) cache_bytes: usize,
    pub(super) vfs: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_bytes: 16 << 20,
            lazy_delay: Duration::from_millis(5),
            wal_bytes: 4 << 20,
            cache_bytes: 8 << 20,
            vfs: None,
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes may wait for their commit before [`Store::has_room`](super::Store::has_room) says no
    /// (16 MiB).
    pub fn queue_bytes(self, bytes: usize) -> Self {
        Self { queue_bytes: bytes.max(1), ..self }
    }

    /// How long a batch that nobody waits for may wait for others to share a commit with (5 ms).
    pub fn lazy_delay(self, delay: Duration) -> Self {
        Self { lazy_delay: delay, ..self }
    }

    /// How large the write-ahead log may grow before its content moves to the database even though there is
    /// other work (4 MiB). Not more, since a file that is written over syncs faster than one that grows: with 8
    /// producers that wait, a message cost 45 us instead of 78 with 32 MiB. A connection that keeps reading in one long
    /// transaction can hold it open beyond that.
    pub fn wal_bytes(self, bytes: u64) -> Self {
        Self { wal_bytes: bytes, ..self }
    }

    /// How much of the file the writer keeps in memory (8 MiB); readers have a quarter of that each.
    pub fn cache_bytes(self, bytes: usize) -> Self {
        Self { cache_bytes: bytes, ..self }
    }

    /// The SQLite VFS to go through; tests put one there that fails on purpose.
    #[doc(hidden)]
    pub fn vfs(self, name: impl Into<String>) -> Self {
        Self { vfs: Some(name.into()), ..self }
    }
}
