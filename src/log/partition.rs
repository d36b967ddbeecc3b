//! One partition: segments in a row, the last of which takes the appends.

use super::retention::Limits;
use super::segment::Segment;
use crate::clock::Timestamp;
use crate::message::Message;
use crate::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;

/// Segments start small and double, so that a log of few records is small.
const FIRST_SEGMENT: usize = 64;

pub(crate) struct Partition<T> {
    store: Mutex<Store<T>>,
    /// Held while it is compacted.
    pub(super) compacting: Mutex<()>,
}

/// Who may append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Only the broker's own workers.
    Draining,
    Closed,
}

pub(super) struct Store<T> {
    /// Without gaps between them; the last one takes the appends.
    pub(super) segments: VecDeque<Arc<Segment<T>>>,
    pub(super) oldest: u64,
    pub(super) end: u64,
    pub(super) retained: u64,
    pub(super) bytes: u64,
    pub(super) compacted: u64,
    trimmed: u64,
    latest: Timestamp,
    gate: Gate,
    /// Some group wants to hear of the next append.
    awaited: bool,
    /// Records before this offset have been compacted.
    pub(super) clean_end: u64,
    pub(super) clean: u64,
}

/// What an append came to, and what is to be done now that the lock is released.
pub(crate) struct Appended<T> {
    pub(crate) offset: u64,
    /// A group waits for it.
    pub(crate) ring: bool,
    /// A segment was sealed, and enough of them now to be worth a compaction.
    pub(crate) compact: bool,
    /// Dropped by retention; payloads' destructors do not run under the lock.
    pub(crate) trash: Vec<Arc<Segment<T>>>,
}

/// What is at an offset.
pub(crate) enum Located<T> {
    /// The first record at or after it, and the partition's end.
    At {
        segment: Arc<Segment<T>>,
        index: usize,
        end: u64,
    },
    /// Only what compaction has removed, up to this end.
    Gap(u64),
    /// It is the end.
    End,
    Trimmed {
        oldest: u64,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PartitionCounts {
    pub(crate) appended: u64,
    pub(crate) retained: u64,
    pub(crate) trimmed: u64,
    pub(crate) compacted: u64,
}

impl<T> Partition<T> {
    pub(crate) fn new() -> Self {
        let store = Store {
            segments: VecDeque::new(),
            oldest: 0,
            end: 0,
            retained: 0,
            bytes: 0,
            compacted: 0,
            trimmed: 0,
            latest: Timestamp::default(),
            gate: Gate::Open,
            awaited: false,
            clean_end: 0,
            clean: 0,
        };
        Self { store: Mutex::new(store), compacting: Mutex::new(()) }
    }

    /// Appends, unless the gate is shut to the caller.
    #[inline]
    pub(crate) fn append(
        &self,
        limits: &Limits,
        message: Message<T>,
        bytes: u64,
        may_pass: impl Fn(Gate) -> bool,
    ) -> Result<Appended<T>, Message<T>> {
        let mut store = self.store.lock();
        if store.gate != Gate::Open && !may_pass(store.gate) {
            return Err(message);
        }
        let (offset, sealed) = store.push(limits, message, bytes);
        let trash = if store.is_over(limits) { store.trim(limits) } else { Vec::new() };
        let ring = std::mem::take(&mut store.awaited);
        Ok(Appended { offset, ring, compact: sealed && store.is_dirty(), trash })
    }

    pub(crate) fn locate(&self, offset: u64) -> Located<T> {
        self.store.lock().locate(offset)
    }

    /// Asks for a ring at the next append, unless there was one since the end was `seen`; whether there was.
    pub(crate) fn watch(&self, seen: u64) -> bool {
        let mut store = self.store.lock();
        let moved = store.end != seen;
        store.awaited |= !moved;
        moved
    }

    /// The offsets of the oldest record and of the next one to come.
    pub(crate) fn range(&self) -> (u64, u64) {
        let store = self.store.lock();
        (store.oldest, store.end)
    }

    /// The offset of the first record of that time or later.
    pub(crate) fn offset_at(&self, time: Timestamp) -> u64 {
        let store = self.store.lock();
        let first = store.segments.partition_point(|segment| segment.latest().is_some_and(|latest| latest < time));
        let segment = store.segments.get(first).filter(|segment| segment.len() > 0);
        segment.map_or(store.end, |segment| {
            let index = segment.index_at(time);
            if index < segment.len() { segment.offset_of(index) } else { store.end }
        })
    }

    /// Removes what is older than `age`; what that was, and when there will be something again.
    pub(crate) fn expire(&self, now: Timestamp, limits: &Limits) -> (Vec<Arc<Segment<T>>>, Option<Timestamp>) {
        let Some(age) = limits.age else { return (Vec::new(), None) };
        let mut store = self.store.lock();
        let mut trash = Vec::new();
        while let Some(due) = store.segments.front().and_then(|segment| segment.latest()).map(|last| last.after(age)) {
            if due > now {
                return (trash, Some(due));
            }
            trash.extend(store.drop_front());
        }
        (trash, None)
    }

    pub(crate) fn shut(&self, gate: Gate) {
        self.store.lock().gate = gate;
    }

    pub(crate) fn admits(&self, worker: bool) -> bool {
        let gate = self.store.lock().gate;
        gate == Gate::Open || gate == Gate::Draining && worker
    }

    pub(crate) fn counts(&self) -> PartitionCounts {
        let store = self.store.lock();
        let (retained, trimmed, compacted) = (store.retained, store.trimmed, store.compacted);
        PartitionCounts { appended: store.end, retained, trimmed, compacted }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store<T>> {
        self.store.lock()
    }
}

impl<T> Store<T> {
    /// The record's offset, and whether a segment was sealed for it.
    #[inline]
    fn push(&mut self, limits: &Limits, mut message: Message<T>, bytes: u64) -> (u64, bool) {
        // So that times never go back within a partition and can be searched.
        message.published_at = message.published_at.max(self.latest);
        self.latest = message.published_at;
        let full = self.segments.back().is_none_or(|last| !last.has_room() || last.bytes() >= limits.segment_bytes());
        if full {
            self.seal(limits);
        }
        let offset = self.end;
        self.segments.back().expect("there is one").push(message, bytes);
        self.end += 1;
        self.retained += 1;
        self.bytes += bytes;
        (offset, full)
    }

    /// Begins another segment, unless the last one is empty.
    #[cold]
    pub(super) fn seal(&mut self, limits: &Limits) {
        let last = self.segments.back().map(|last| last.len());
        if last == Some(0) {
            return;
        }
        let capacity = last.map_or(FIRST_SEGMENT, |len| (2 * len).max(FIRST_SEGMENT)).min(limits.segment);
        self.segments.push_back(Arc::new(Segment::new(self.end, capacity)));
    }

    #[inline]
    fn is_over(&self, limits: &Limits) -> bool {
        self.retained > limits.count || self.bytes > limits.bytes
    }

    /// Lets go of segments without which the limits are still kept.
    fn trim(&mut self, limits: &Limits) -> Vec<Arc<Segment<T>>> {
        let mut trash = Vec::new();
        while self.segments.len() > 1 {
            let front = &self.segments[0];
            let spare =
                self.retained - front.len() as u64 >= limits.count || self.bytes - front.bytes() >= limits.bytes;
            if !spare {
                break;
            }
            trash.extend(self.drop_front());
        }
        trash
    }

    fn drop_front(&mut self) -> Option<Arc<Segment<T>>> {
        let front = self.segments.pop_front()?;
        self.oldest = self.segments.front().map_or(self.end, |next| next.base());
        self.retained -= front.len() as u64;
        self.trimmed += front.len() as u64;
        self.bytes -= front.bytes();
        if front.base() < self.clean_end {
            self.clean -= front.len() as u64;
        }
        Some(front)
    }

    /// Whether sealed segments hold at least as much that was never compacted as that was, so that
    /// compacting costs each append a constant share.
    fn is_dirty(&self) -> bool {
        let active = self.segments.back().map_or(0, |last| last.len() as u64);
        let dirty = self.retained - self.clean - active;
        dirty > 0 && dirty >= self.clean
    }

    fn locate(&self, offset: u64) -> Located<T> {
        if offset < self.oldest {
            return Located::Trimmed { oldest: self.oldest };
        }
        if offset >= self.end {
            return Located::End;
        }
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        for segment in self.segments.range(after.saturating_sub(1)..) {
            let index = segment.index_of(offset);
            if index < segment.len() {
                return Located::At { segment: Arc::clone(segment), index, end: self.end };
            }
        }
        Located::Gap(self.end)
    }
}
