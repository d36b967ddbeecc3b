//! How far a group has come in one partition, and which records have failed there.

use super::segment::Segment;
use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::message::{Attempt, Message};
use crate::outcome::drop_contained;
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) struct Lane<T> {
    /// The next offset to hand out.
    pub(super) position: u64,
    pub(super) committed: u64,
    /// The offset after the last one that a reader was given by hand; what lies from there to the position
    /// has been removed by compaction.
    handed: u64,
    /// Raised by a seek: what was claimed before it does not count any more.
    pub(super) epoch: u64,
    /// Records from the position on that have failed, by offset. Without the records themselves, so that
    /// they hold up no retention.
    pub(super) failing: VecDeque<Failing>,
    /// Those have been given up on, and the dead-letter queue was full.
    pub(super) given_up: Option<GivenUp<T>>,
    pub(super) linger_until: Option<Timestamp>,
    /// What was read from the file last, so that it stays in memory until the group is through with it. Not to be
    /// dropped under the lock.
    pub(super) ahead: Option<Arc<Segment<T>>>,
    /// Why nothing could be read from the file when it was tried last.
    pub(super) trouble: Option<String>,
    pub(super) counts: LaneCounts,
}

/// The failures of one record.
pub(super) struct Failing {
    pub(super) offset: u64,
    /// How many attempts that were.
    pub(super) attempts: u32,
    pub(super) history: Vec<Attempt>,
}

/// Records that are to become dead letters. They are kept whole, whatever retention says meanwhile.
pub(super) struct GivenUp<T> {
    pub(super) letters: VecDeque<(u64, Message<T>)>,
    pub(super) reason: Reason,
}

impl<T> Drop for GivenUp<T> {
    /// The destructors are a user's.
    fn drop(&mut self) {
        self.letters.drain(..).for_each(drop_contained);
    }
}

/// What a lane has no more to do with.
#[must_use]
pub(super) struct Left<T> {
    given_up: Option<GivenUp<T>>,
    ahead: Option<Arc<Segment<T>>>,
    trouble: Option<String>,
}

impl<T> Left<T> {
    /// Drops what a user has made; why nothing could be read, if so. No lock may be held.
    pub(super) fn settle(self) -> Option<String> {
        let Self { given_up, ahead, trouble } = self;
        drop((given_up, ahead));
        trouble
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneCounts {
    pub(super) delivered: u64,
    pub(super) retried: u64,
    pub(super) dead_lettered: u64,
    pub(super) discarded: u64,
    pub(super) panicked: u64,
    pub(super) skipped: u64,
}

impl<T> Lane<T> {
    pub(super) fn new(position: u64) -> Self {
        Self {
            position,
            committed: position,
            handed: position,
            epoch: 0,
            failing: VecDeque::new(),
            given_up: None,
            linger_until: None,
            ahead: None,
            trouble: None,
            counts: LaneCounts::default(),
        }
    }

    /// Whether nothing is in anybody's hands that has not been committed.
    pub(super) fn is_committed(&self) -> bool {
        self.position == self.committed
    }

    /// There is nothing left before `end`.
    pub(super) fn pass_gap(&mut self, end: u64) {
        if self.is_committed() {
            self.committed = end;
        }
        self.position = end;
    }

    /// A reader was given the record at this offset.
    pub(super) fn hand_out(&mut self, offset: u64) {
        (self.position, self.handed) = (offset + 1, offset + 1);
        self.counts.delivered += 1;
    }

    /// What was handed out and not committed comes again.
    pub(super) fn take_back(&mut self) {
        (self.position, self.handed) = (self.committed, self.committed);
    }

    /// Everything before `offset` is done, and with the last record also the gap behind it.
    #[inline]
    pub(super) fn commit(&mut self, offset: u64) {
        let end = if offset >= self.handed { offset.max(self.position) } else { offset };
        self.committed = self.committed.max(end);
        self.position = self.position.max(end);
        if !self.failing.is_empty() {
            self.forget_failures_before(offset);
        }
    }

    pub(super) fn forget_failures_before(&mut self, offset: u64) {
        let done = self.failing.partition_point(|failing| failing.offset < offset);
        self.failing.drain(..done);
    }

    /// How often the record at this offset has failed.
    pub(super) fn attempts_at(&self, offset: u64) -> u32 {
        let found = self.failing.binary_search_by_key(&offset, |failing| failing.offset);
        found.map_or(0, |at| self.failing[at].attempts)
    }

    /// How many records from the position on have failed together.
    pub(super) fn failed_together(&self) -> Option<usize> {
        let first = self.failing.front()?.attempts;
        Some(self.failing.iter().take_while(|failing| failing.attempts == first).count())
    }

    /// Goes on elsewhere. What comes back is not to be dropped under the lock.
    pub(super) fn move_to(&mut self, offset: u64) -> Left<T> {
        (self.position, self.committed, self.handed) = (offset, offset, offset);
        self.epoch += 1;
        self.linger_until = None;
        self.failing.clear();
        Left { given_up: self.given_up.take(), ahead: self.ahead.take(), trouble: self.trouble.take() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_commit_covers_the_gap_behind_it() {
        let mut lane: Lane<()> = Lane::new(0);
        lane.hand_out(0);
        lane.hand_out(5);
        lane.pass_gap(9);
        lane.commit(1);
        assert_eq!((lane.committed, lane.is_committed()), (1, false));
        lane.commit(6);
        assert_eq!((lane.committed, lane.is_committed()), (9, true));
    }

    #[test]
    fn a_commit_never_goes_back_and_forgets_what_failed_before_it() {
        let failing = |offset| Failing { offset, attempts: 1, history: Vec::new() };
        let mut lane: Lane<()> = Lane::new(3);
        lane.failing.extend([3, 4, 7].map(failing));
        lane.commit(5);
        lane.commit(2);
        assert_eq!((lane.committed, lane.attempts_at(4), lane.attempts_at(7)), (5, 0, 1));
    }
}
