//! Who of a group reads which partition.
//!
//! | a partition is | because |
//! |---|---|
//! | idle | the group is at its end; the log rings at the next append |
//! | ready | there may be something to read |
//! | held | a member is reading it |
//! | resting | a failed record waits for its retry, a batch for its linger, a replay for its pace |

use crate::clock::Timestamp;
use crate::scheduler::{DelayHeap, DelayKey};
use std::collections::VecDeque;

pub(super) struct Board {
    pub(super) phases: Box<[Phase]>,
    ready: VecDeque<usize>,
    resting: DelayHeap<usize>,
    pub(super) paused: bool,
    pub(super) closed: bool,
    /// Batches are not waited for.
    pub(super) draining: bool,
    /// There are no members any more, and none may come.
    pub(super) removed: bool,
    /// Members that sleep.
    pub(super) sleeping: usize,
    /// The first record of a paced replay: when it was handed out and when it was published.
    pub(super) anchor: Option<(Timestamp, Timestamp)>,
    /// Readers by hand ever.
    pub(super) readers: u64,
    /// Consumers and readers by hand now.
    pub(super) members: usize,
    /// A position has moved without a record, which somebody may be waiting for.
    pub(super) moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Ready,
    /// By a reader of that number; 0 is a worker.
    Held(u64),
    /// Until it is due, or (if not 0) until so many records are there.
    Resting(DelayKey, u64),
}

impl Board {
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            phases: vec![Phase::Ready; partitions].into(),
            ready: (0..partitions).collect(),
            resting: DelayHeap::new(),
            paused: false,
            closed: false,
            draining: false,
            removed: false,
            sleeping: 0,
            anchor: None,
            readers: 0,
            members: 0,
            moved: false,
        }
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The partition that has been ready for longest, which counts as idle until it is said otherwise.
    pub(super) fn next_ready(&mut self) -> Option<usize> {
        let partition = self.ready.pop_front()?;
        self.phases[partition] = Phase::Idle;
        Some(partition)
    }

    pub(super) fn make_ready(&mut self, partition: usize) {
        match std::mem::replace(&mut self.phases[partition], Phase::Ready) {
            Phase::Ready => return,
            Phase::Resting(key, _) => _ = self.resting.cancel(key),
            Phase::Idle | Phase::Held(_) => {}
        }
        self.ready.push_back(partition);
    }

    pub(super) fn rest(&mut self, partition: usize, until: Timestamp, wanted: u64) {
        let key = self.resting.insert(until, partition);
        self.phases[partition] = Phase::Resting(key, wanted);
    }

    /// Makes everything ready that has rested for long enough; when the next one has.
    pub(super) fn wake_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some(partition) = self.resting.pop_due(now) {
            self.phases[partition] = Phase::Ready;
            self.ready.push_back(partition);
        }
        self.resting.earliest()
    }

    /// The partitions that will have rested for long enough by then.
    pub(super) fn due_by(&mut self, horizon: Timestamp) -> Vec<usize> {
        let resting = self.resting.earliest_mut(self.phases.len());
        resting.into_iter().filter(|(due, _)| *due <= horizon).map(|(_, partition)| *partition).collect()
    }

    pub(super) fn held_by(&self, reader: u64) -> Vec<usize> {
        (0..self.phases.len()).filter(|&partition| self.phases[partition] == Phase::Held(reader)).collect()
    }

    pub(super) fn count(&self, is_one: impl Fn(&Phase) -> bool) -> u64 {
        self.phases.iter().filter(|phase| is_one(phase)).count() as u64
    }
}
