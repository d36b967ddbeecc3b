//! An answer to wait for.

use super::error::StoreError;
use super::item::Seq;
use crate::sync::{Condvar, Mutex};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Instant;

/// The places of what a batch inserted or moved, in the order of the batch.
pub type Seqs = SmallVec<[Seq; 2]>;

/// Stands for a batch that has been submitted. Dropping it changes nothing about the batch.
#[derive(Debug)]
#[must_use = "waiting for it says whether the batch is safe"]
pub struct Ticket {
    slot: Arc<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    answer: Mutex<Option<Result<Seqs, StoreError>>>,
    came: Condvar,
}

impl Ticket {
    /// The ticket, and what gives it its answer.
    pub(super) fn new() -> (Self, Answer) {
        let slot = Arc::new(Slot::default());
        (Self { slot: Arc::clone(&slot) }, Answer { slot, given: false })
    }

    /// Waits for the commit.
    ///
    /// # Errors
    ///
    /// Why the batch could not be committed.
    pub fn wait(self) -> Result<Seqs, StoreError> {
        let mut answer = self.slot.answer.lock();
        loop {
            if let Some(result) = answer.take() {
                return result;
            }
            self.slot.came.wait(&mut answer);
        }
    }

    /// Waits until `end`, and gives the ticket back if the answer has not come by then.
    ///
    /// # Errors
    ///
    /// The ticket; with the answer inside, that the batch could not be committed.
    pub fn wait_until(self, end: Instant) -> Result<Result<Seqs, StoreError>, Self> {
        let mut answer = self.slot.answer.lock();
        while answer.is_none() {
            if self.slot.came.wait_until(&mut answer, end).timed_out() {
                break;
            }
        }
        match answer.take() {
            Some(result) => Ok(result),
            None => {
                drop(answer);
                Err(self)
            }
        }
    }

    /// Whether the answer has come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.slot.answer.lock().is_some()
    }
}

/// Somebody who waits for an answer that has been given.
pub(crate) trait Sleeper: Send + Sync {
    fn wake(&self);
}

/// Wakes them when it is dropped: after the answers to others of the same commit, as [`Answer`] does.
#[must_use]
pub(crate) struct Wake(pub(crate) Arc<dyn Sleeper>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// Wakes whoever waits when it is dropped, which is apart from giving the answer so that a commit can give all of
/// its answers first: who waits for several tickets in turn is then woken once, and not for each. Dropped without
/// having given one, it answers that the store is closed.
pub(super) struct Answer {
    slot: Arc<Slot>,
    given: bool,
}

impl Answer {
    pub(super) fn give(&mut self, result: Result<Seqs, StoreError>) {
        *self.slot.answer.lock() = Some(result);
        self.given = true;
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.give(Err(StoreError::Closed));
        }
        self.slot.came.notify_one();
    }
}
