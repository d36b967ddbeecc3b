//! What can go wrong with a file, told apart by what its owner can do about it.

use super::item::StreamId;
use super::lock::Holder;
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error as ThisError;

/// The most bytes one item may have, all its parts together (SQLite's own limit is a little less than twice this).
pub const MAX_ITEM_BYTES: usize = 512 << 20;

/// Why the store could not do something. Cheap to clone: one failed commit answers everybody who waited for it.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process, or another store of this one, has the file open.
    #[error("{} is in use by {holder}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// A later version of this library wrote the file; nothing in it was touched.
    #[error("{} has format {found}, this version of postroom knows formats up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format it has.
        found: i64,
        /// The latest format this library knows.
        known: i64,
    },
    /// The file is something else than a SQLite database.
    #[error("{} is not a SQLite database", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The database has tables of the names this library uses, and they are not this library's.
    #[error("{} has tables named postroom_* that postroom did not make: {detail}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is odd about them.
        detail: Arc<str>,
    },
    /// There is no such file, where one is only to be looked at.
    #[error("there is no file {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The database has no tables of this library, and is only to be looked at.
    #[error("{} is a SQLite database without anything of postroom in it", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// No space left. The store works on as soon as there is some.
    #[error("no space left: {0}")]
    DiskFull(Arc<str>),
    /// A read, a write or a sync failed. After a failed write or sync the store has to be opened anew.
    #[error("input or output failed: {0}")]
    Io(Arc<str>),
    /// The file, or the directory it is in, cannot be written.
    #[error("cannot be written: {0}")]
    ReadOnly(Arc<str>),
    /// The file is damaged.
    #[error("damaged: {0}")]
    Corrupt(Arc<str>),
    /// Another connection kept the file locked.
    #[error("locked by another connection: {0}")]
    Busy(Arc<str>),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// An item of more than [`MAX_ITEM_BYTES`].
    #[error("an item of {bytes} bytes; at most {MAX_ITEM_BYTES} are possible")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No such stream: never declared, or removed meanwhile.
    #[error("there is no stream {0}")]
    UnknownStream(StreamId),
    /// The file has as many streams as it can.
    #[error("the file has {0} streams, which is all it can have")]
    TooManyStreams(usize),
    /// Something else.
    #[error("{0}")]
    Other(Arc<str>),
}

impl StoreError {
    /// Whether the store can go on after a commit failed with this: SQLite has rolled it back cleanly, and no
    /// write or sync is in doubt.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::DiskFull(_)
                | Self::Busy(_)
                | Self::TooLarge { .. }
                | Self::UnknownStream(_)
                | Self::TooManyStreams(_)
        )
    }

    pub(crate) fn other(detail: impl Into<Arc<str>>) -> Self {
        Self::Other(detail.into())
    }

    /// As the plain conversion, for what happens while a file is being opened.
    pub(super) fn opening(path: &Path, error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path: path.to_owned() },
            _ => Self::from(error),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let detail = describe(&error);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull(detail),
            // The shared memory beside the file could not grow.
            Some(ErrorCode::SystemIoFailure) if extended(&error) == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => {
                Self::DiskFull(detail)
            }
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => Self::Io(detail),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly(detail),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(detail),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(detail),
            _ => Self::Other(detail),
        }
    }
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|e| e.extended_code)
}

/// SQLite's words, with the code that tells one failure of a disk from another.
fn describe(error: &rusqlite::Error) -> Arc<str> {
    match extended(error) {
        Some(code) => format!("{error} (SQLite code {code})").into(),
        None => error.to_string().into(),
    }
}
