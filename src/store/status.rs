//! How a store is doing.

use super::error::StoreError;
use crate::sync::Mutex;
use std::time::SystemTime;

/// Whether a store takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It does.
    Healthy,
    /// The last commit failed, for a reason that may pass, such as a full disk. The next one is tried.
    Failing {
        /// Since when none has succeeded.
        since: SystemTime,
        /// Why the last one did not.
        error: StoreError,
    },
    /// A write or a sync failed. Nothing is tried again, because nothing it could say would be trustworthy: every
    /// batch is answered with this error until the store is closed and the file opened anew.
    Broken {
        /// Since when.
        since: SystemTime,
        /// What failed.
        error: StoreError,
    },
    /// It was closed.
    Closed,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Whether it takes work.
    pub state: State,
    /// Commits that succeeded.
    pub commits: u64,
    /// Those among them that were synced.
    pub syncs: u64,
    /// Batches in them.
    pub batches: u64,
    /// Batches in the largest of them.
    pub largest_commit: u64,
    /// Items inserted, including those moved.
    pub inserted: u64,
    /// Items deleted, including those moved.
    pub deleted: u64,
    /// Bytes of the batches committed.
    pub bytes: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Times the log's content was moved to the database.
    pub checkpoints: u64,
    /// Bytes in the write-ahead log after the last commit.
    pub wal_bytes: u64,
    /// Bytes of batches waiting for their commit, or in it.
    pub queued_bytes: usize,
    /// Times the writer found the file locked by a connection it does not take turns with.
    pub times_locked: u64,
    /// The last thing that went wrong, even if all is well again.
    pub last_error: Option<StoreError>,
    trouble_at_end: Option<StoreError>,
}

/// The writer's notes, for everybody to read.
pub(super) struct Status(Mutex<StoreStats>);

impl Status {
    pub(super) fn new() -> Self {
        Self(Mutex::new(StoreStats {
            state: State::Healthy,
            commits: 0,
            syncs: 0,
            batches: 0,
            largest_commit: 0,
            inserted: 0,
            deleted: 0,
            bytes: 0,
            failed_commits: 0,
            checkpoints: 0,
            wal_bytes: 0,
            queued_bytes: 0,
            times_locked: 0,
            last_error: None,
            trouble_at_end: None,
        }))
    }

    pub(super) fn read(&self) -> StoreStats {
        self.0.lock().clone()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut StoreStats)) {
        change(&mut self.0.lock());
    }

    pub(super) fn failed(&self, error: &StoreError) {
        self.note(|stats| {
            stats.failed_commits += 1;
            stats.fail(error);
        });
    }

    /// A checkpoint failed: no batch of anybody's.
    pub(super) fn troubled(&self, error: &StoreError) {
        self.note(|stats| stats.fail(error));
    }

    pub(super) fn closed(&self) {
        self.note(|stats| {
            stats.trouble_at_end = match std::mem::replace(&mut stats.state, State::Closed) {
                State::Failing { error, .. } | State::Broken { error, .. } => Some(error),
                State::Healthy | State::Closed => None,
            }
        });
    }

    /// What was wrong when it was closed.
    pub(super) fn trouble_at_end(&self) -> Option<StoreError> {
        self.0.lock().trouble_at_end.clone()
    }

    /// What every batch is answered with, if nothing is tried any more.
    pub(super) fn broken(&self) -> Option<StoreError> {
        match &self.0.lock().state {
            State::Broken { error, .. } => Some(error.clone()),
            _ => None,
        }
    }
}

impl StoreStats {
    pub(super) fn recover(&mut self) {
        if matches!(self.state, State::Failing { .. }) {
            self.state = State::Healthy;
        }
    }

    fn fail(&mut self, error: &StoreError) {
        self.last_error = Some(error.clone());
        let now = SystemTime::now();
        let error = error.clone();
        self.state = match &self.state {
            State::Broken { .. } | State::Closed => return,
            State::Failing { since, .. } if error.is_passing() => State::Failing { since: *since, error },
            _ if error.is_passing() => State::Failing { since: now, error },
            _ => State::Broken { since: now, error },
        };
    }
}
