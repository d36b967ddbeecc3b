//! What the handles, the writer and the readers of one store have in common.

use super::calls::Calls;
use super::inbox::Inbox;
use super::item::{Seq, StreamId};
use super::options::Options;
use super::reader::Readers;
use super::status::Status;
use super::turn::Turn;
use crate::sync::Mutex;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Hears of items that another connection has inserted.
pub(super) type Watcher = dyn Fn(StreamId, Range<Seq>) + Send + Sync;

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) options: Options,
    pub(super) inbox: Inbox,
    pub(super) calls: Calls,
    pub(super) turn: Turn,
    pub(super) status: Status,
    pub(super) readers: Readers,
    watcher: Mutex<Option<Arc<Watcher>>>,
}

impl Shared {
    pub(super) fn new(path: PathBuf, options: Options) -> Self {
        Self {
            inbox: Inbox::new(&options),
            calls: Calls::default(),
            turn: Turn::default(),
            status: Status::new(),
            readers: Readers::new(path.clone(), options.clone()),
            watcher: Mutex::new(None),
            path,
            options,
        }
    }

    pub(super) fn watcher(&self) -> Option<Arc<Watcher>> {
        self.watcher.lock().clone()
    }

    pub(super) fn take_watcher(&self) -> Option<Arc<Watcher>> {
        self.watcher.lock().take()
    }

    pub(super) fn set_watcher(&self, watcher: Arc<Watcher>) {
        let old = self.watcher.lock().replace(watcher);
        drop(old);
    }
}
