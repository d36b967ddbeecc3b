//! One partition: sealed segments in a row, and behind them the tail that takes the appends.
//!
//! An append is a push to a `Vec` under the partition's lock. Whoever reads up to the tail seals it: the
//! `Vec` becomes a segment as it is, and another one takes the appends. Readers that keep up make small
//! segments so; those are joined again as soon as nobody reads them.
//!
//! Of a durable log, the oldest may be only in the file. Nothing is read from there under the lock: whoever wants it
//! is told so, reads it, and comes back with it.

use super::chunk::{Places, Read};
use super::durable::OnFile;
use super::holdings::{Restored, Store};
use super::retention::Limits;
use super::segment::{Run, Segment};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use std::sync::Arc;

pub(crate) struct Partition<T> {
    store: Mutex<Store<T>>,
    /// The next offset, written under the lock, for readers who would rather not take that in vain.
    end: AtomicU64,
    /// Compactions under way.
    pub(super) compactions: AtomicUsize,
    /// Of a durable log.
    pub(super) on_file: Option<OnFile<T>>,
}

/// A message, what it counts for, and if it is in the file its offset and its size there.
pub(super) type Incoming<T> = (Message<T>, u64, Option<(u64, u64)>);

/// Who may append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Only the broker's own workers.
    Draining,
    Closed,
}

/// A place in a partition that has been counted, for one message. That may be large, and each function it
/// passes through by value may copy it.
#[must_use]
pub(super) struct Place<'a, T> {
    store: MutexGuard<'a, Store<T>>,
    offset: u64,
    sealed: bool,
}

impl<T> Place<'_, T> {
    /// Where the message goes: to the back.
    #[inline]
    pub(super) fn tail(&mut self) -> &mut Run<T> {
        &mut self.store.tail
    }
}

/// What an append came to, and what is to be done now that the lock is released.
pub(crate) struct Appended<T> {
    /// Of the first one.
    pub(crate) offset: u64,
    /// A group waits for it.
    pub(crate) ring: bool,
    /// The tail was sealed, and enough is sealed now to be worth a compaction.
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
    /// It is only in the file: in there, unless somebody changes that meanwhile.
    Unread(Places),
    /// It is the end.
    End,
    Trimmed {
        oldest: u64,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PartitionCounts {
    pub(crate) recovered: u64,
    pub(crate) appended: u64,
    pub(crate) retained: u64,
    pub(crate) trimmed: u64,
    pub(crate) compacted: u64,
    pub(crate) lost: u64,
}

impl<T> Partition<T> {
    pub(super) fn new(on_file: Option<OnFile<T>>) -> Self {
        Self { store: Mutex::new(Store::new()), end: AtomicU64::new(0), compactions: AtomicUsize::new(0), on_file }
    }

    /// A place for a message, unless the gate is shut to the caller. Whoever owns the message puts it there
    /// himself; then comes [`Partition::finish`], and until then no user code may run.
    #[inline]
    pub(super) fn place_for(
        &self,
        limits: &Limits,
        message: &mut Message<T>,
        bytes: u64,
        may_pass: impl Fn(Gate) -> bool,
    ) -> Option<Place<'_, T>> {
        let mut store = self.store.lock();
        if store.gate != Gate::Open && !may_pass(store.gate) {
            return None;
        }
        let offset = store.end;
        let sealed = store.admit(limits, message, bytes, None);
        Some(Place { store, offset, sealed })
    }

    /// Appends messages with their sizes one behind the other, whatever the gate says.
    pub(crate) fn append_all(&self, limits: &Limits, messages: impl Iterator<Item = Incoming<T>>) -> Appended<T> {
        self.finish_all(limits, self.put_all(limits, messages))
    }

    /// As [`Partition::append_all`], and keeps the lock, so that nobody sees them before
    /// [`Partition::finish_all`].
    pub(super) fn put_all(
        &self,
        limits: &Limits,
        messages: impl Iterator<Item = Incoming<T>>,
    ) -> (Place<'_, T>, Vec<Arc<Segment<T>>>) {
        let store = self.store.lock();
        let mut place = Place { offset: store.end, store, sealed: false };
        let mut trash = Vec::new();
        for (mut message, bytes, at) in messages {
            place.sealed |= place.store.admit(limits, &mut message, bytes, at);
            place.tail().push(message);
            trash.append(&mut place.store.trim(limits));
        }
        trash.append(&mut place.store.leave_to_file(limits));
        self.note_trim(&mut place.store);
        (place, trash)
    }

    pub(super) fn finish_all(
        &self,
        limits: &Limits,
        (place, mut trash): (Place<'_, T>, Vec<Arc<Segment<T>>>),
    ) -> Appended<T> {
        let mut appended = self.finish(limits, place);
        appended.trash.append(&mut trash);
        appended
    }

    /// Says what has been appended.
    #[inline]
    pub(super) fn finish(&self, limits: &Limits, place: Place<'_, T>) -> Appended<T> {
        let Place { mut store, offset, sealed } = place;
        let trash = if store.is_over(limits) { store.trim(limits) } else { Vec::new() };
        self.note_trim(&mut store);
        let ring = std::mem::take(&mut store.awaited);
        self.end.store(store.end, Ordering::Release);
        Appended { offset, ring, compact: sealed && store.is_dirty(), trash }
    }

    /// Has the file let go of what retention has let go of. Under the lock, so that these notes have an order.
    #[inline]
    fn note_trim(&self, store: &mut Store<T>) {
        if let Some(file) = self.on_file.as_ref().filter(|_| store.told != store.oldest) {
            store.told = store.oldest;
            file.trim(store.oldest);
        }
    }

    #[inline]
    pub(crate) fn locate(&self, limits: &Limits, offset: u64) -> Located<T> {
        self.store.lock().locate(limits, offset)
    }

    /// Whether there may be something at this offset.
    #[inline]
    pub(crate) fn reaches(&self, offset: u64) -> bool {
        self.end.load(Ordering::Acquire) > offset
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

    /// The offset of the first record in memory of that time or later, and whether there may be an earlier one in the
    /// file.
    pub(crate) fn offset_at(&self, time: Timestamp) -> (u64, bool) {
        let store = self.store.lock();
        let first = store.segments.partition_point(|segment| segment.latest().is_some_and(|latest| latest < time));
        let (offset, index) = match store.segments.get(first) {
            Some(segment) => (segment.offset_of(segment.index_at(time)), segment.index_at(time)),
            None => (store.sealed_end() + store.tail.index_at(time) as u64, store.tail.index_at(time)),
        };
        (offset, !store.chunks.is_empty() && first == 0 && index == 0)
    }

    /// Removes what is older than `age`; what that was, and when there will be something again.
    pub(crate) fn expire(&self, now: Timestamp, limits: &Limits) -> (Vec<Arc<Segment<T>>>, Option<Timestamp>) {
        let Some(age) = limits.age else { return (Vec::new(), None) };
        let mut store = self.store.lock();
        let mut trash = Vec::new();
        loop {
            if store.front().is_none() {
                store.seal(limits);
            }
            let due = store.front().map(|front| front.latest.after(age));
            if due.is_none_or(|due| due > now) {
                self.note_trim(&mut store);
                return (trash, due);
            }
            trash.extend(store.drop_front());
        }
    }

    /// Takes what the file held, and lets go of what is too much. Nobody reads it yet.
    pub(super) fn restore(&self, limits: &Limits, restored: Restored<T>) -> Vec<Arc<Segment<T>>> {
        let mut store = self.store.lock();
        store.restore(restored);
        let trash = store.trim(limits);
        self.note_trim(&mut store);
        self.end.store(store.end, Ordering::Release);
        trash
    }

    /// Whether nobody else has seen to this record, which cannot be decoded.
    pub(super) fn put_apart(&self, offset: u64) -> bool {
        self.store.lock().apart.insert(offset)
    }

    /// That has failed.
    pub(super) fn not_apart(&self, offset: u64) {
        self.store.lock().apart.remove(&offset);
    }

    /// What was read of a chunk, for as long as anybody holds it: this, or what another has read meanwhile. `None` if
    /// the chunk is not there any more, so one has to look again.
    pub(super) fn take_in(&self, places: Places, read: &Read<T>) -> Option<Arc<Segment<T>>> {
        self.store.lock().take_in(places, read)
    }

    pub(crate) fn shut(&self, gate: Gate) {
        self.store.lock().gate = gate;
    }

    pub(crate) fn gate(&self) -> Gate {
        self.store.lock().gate
    }

    pub(crate) fn admits(&self, worker: bool) -> bool {
        let gate = self.gate();
        gate == Gate::Open || gate == Gate::Draining && worker
    }

    pub(crate) fn counts(&self) -> PartitionCounts {
        let store = self.store.lock();
        let (retained, trimmed, compacted) = (store.retained, store.trimmed, store.compacted);
        let (recovered, appended, lost) = (store.found, store.end - store.found_end, store.lost);
        PartitionCounts { recovered, appended, retained, trimmed, compacted, lost }
    }

    pub(crate) fn is_compacting(&self) -> bool {
        self.compactions.load(Ordering::SeqCst) > 0
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store<T>> {
        self.store.lock()
    }
}
