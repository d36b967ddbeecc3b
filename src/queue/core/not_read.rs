//! What is only in the file and cannot be read: told when it begins, and when it is over.
//!
//! It is noted together with the end of the reading, so that a reading whose outcome nobody wants changes nothing.

use super::{Core, Intake};
use crate::runtime::Event;
use crate::store::{Seq, StoreError};
use std::collections::BTreeMap;
use std::ops::Range;

/// What is read apart from the rest, so that it may fail while that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Of a priority level, or of all where there are none.
    Ready(usize),
    Delayed,
    /// What has a delay, as far as it is counted only.
    Due,
}

/// Why parts could not be read when that was tried last, and from which place on: guarded by the intake.
#[derive(Default)]
pub(super) struct NotRead(BTreeMap<Part, (Seq, String)>);

impl NotRead {
    /// Whether something could be read before that cannot be now.
    pub(super) fn note(&mut self, part: Part, from: Seq, error: &StoreError) -> bool {
        let began = self.0.is_empty();
        self.0.insert(part, (from, error.to_string()));
        began
    }

    /// These places could be read; whether they were all that could not be before.
    pub(super) fn is_over(&mut self, part: Part, places: Range<Seq>) -> bool {
        let failed = self.0.get(&part).is_some_and(|(from, _)| places.contains(from));
        failed && self.0.remove(&part).is_some() && self.0.is_empty()
    }
}

impl<T> Intake<T> {
    /// Why there are messages that cannot be read from the file.
    pub(super) fn trouble(&self) -> Option<String> {
        self.spill.not_read.0.values().next().map(|(_, why)| why.clone())
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Whether it was no more than the file's being closed with the broker.
    pub(super) fn is_end_of_file(&self, error: &StoreError) -> bool {
        self.has_ended() || matches!(error, StoreError::Closed)
    }

    /// If it began a moment ago. No lock may be held.
    pub(super) fn tell_not_read(&self, began: bool, error: &StoreError) {
        if began {
            let (queue, error) = (self.name.to_string(), error.to_string());
            self.runtime.tell(|| Event::NotRead { queue, partition: None, error });
        }
    }

    /// If it was over a moment ago. No lock may be held.
    pub(super) fn tell_read_again(&self, is_over: bool) {
        if is_over {
            let queue = self.name.to_string();
            self.runtime.tell(|| Event::ReadAgain { queue, partition: None });
        }
    }
}
