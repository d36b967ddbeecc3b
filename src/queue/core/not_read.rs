//! What is only in the file and cannot be read: told when it begins, and when it is over.

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
}

/// Why parts could not be read when that was tried last, and from which place on: guarded by the intake.
#[derive(Default)]
pub(super) struct NotRead(BTreeMap<Part, (Seq, String)>);

impl<T> Intake<T> {
    /// Why there are messages that cannot be read from the file.
    pub(super) fn trouble(&self) -> Option<String> {
        self.spill.not_read.0.values().next().map(|(_, why)| why.clone())
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Says so, unless something could not be read before. No lock may be held.
    pub(super) fn note_not_read(&self, part: Part, from: Seq, error: &StoreError) {
        if self.has_ended() {
            return; // and the file has been closed with the broker
        }
        let began = {
            let NotRead(parts) = &mut self.intake.lock().spill.not_read;
            let began = parts.is_empty();
            parts.insert(part, (from, error.to_string()));
            began
        };
        if began {
            let (queue, error) = (self.name.to_string(), error.to_string());
            self.runtime.tell(|| Event::NotRead { queue, partition: None, error });
        }
    }

    /// Says so, if these places were all that could not be read before. No lock may be held.
    pub(super) fn note_read(&self, part: Part, places: Range<Seq>) {
        let is_over = {
            let NotRead(parts) = &mut self.intake.lock().spill.not_read;
            let failed = parts.get(&part).is_some_and(|(from, _)| places.contains(from));
            failed && parts.remove(&part).is_some() && parts.is_empty()
        };
        if is_over {
            let queue = self.name.to_string();
            self.runtime.tell(|| Event::ReadAgain { queue, partition: None });
        }
    }
}
