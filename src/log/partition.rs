//! One partition: sealed segments in a row, and behind them the tail that takes the appends.
//!
//! An append is a push to a `Vec` under the partition's lock. Whoever reads up to the tail seals it: the
//! `Vec` becomes a segment as it is, and another one takes the appends. Readers that keep up make small
//! segments so; those are joined again as soon as nobody reads them.
//!
//! Of a durable log, the oldest may be only in the file. Nothing is read from there under the lock: whoever wants it
//! is told so, reads it, and comes back with it.

use super::chunk::{Chunk, Places, Read};
use super::durable::OnFile;
use super::retention::Limits;
use super::segment::{Run, Segment};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Tails start small and double, so that a log of few records is small.
const FIRST_TAIL: usize = 16;
/// So many bytes in the file make a segment, however few records that is.
const SEGMENT_WEIGHT: u64 = 4 << 20;
/// Large records leave memory before there are as many as otherwise would.
const WINDOW_WEIGHT: u64 = 4 * SEGMENT_WEIGHT;

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

pub(super) struct Store<T> {
    /// Only in the file, before everything in memory.
    chunks: VecDeque<Chunk<T>>,
    /// How many records that is.
    filed: u64,
    /// Sealed; without gaps between them.
    pub(super) segments: VecDeque<Arc<Segment<T>>>,
    /// What nobody has read yet.
    tail: Run<T>,
    tail_bytes: u64,
    tail_weight: u64,
    /// How many bytes what is in memory takes in the file.
    weight: u64,
    pub(super) oldest: u64,
    /// What the file was told of that.
    told: u64,
    end: u64,
    /// Where it ended when the file was opened, and what was in there.
    found_end: u64,
    found: u64,
    pub(super) retained: u64,
    pub(super) bytes: u64,
    pub(super) compacted: u64,
    trimmed: u64,
    lost: u64,
    /// Undecodable, and being put apart in the file, or so already.
    apart: BTreeSet<u64>,
    latest: Timestamp,
    gate: Gate,
    /// Some group wants to hear of the next append.
    awaited: bool,
    /// Records before this offset have been compacted, so many times, and so many of them are left.
    pub(super) clean_end: u64,
    pub(super) clean: u64,
    pub(super) generation: u64,
}

/// The oldest records of a partition, as far as retention goes by them.
struct Front {
    base: u64,
    len: u64,
    bytes: u64,
    latest: Timestamp,
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

/// What a partition holds when its file is opened.
pub(crate) struct Restored<T> {
    pub(crate) chunks: VecDeque<Chunk<T>>,
    pub(crate) segments: VecDeque<Arc<Segment<T>>>,
    pub(crate) oldest: u64,
    pub(crate) end: u64,
    pub(crate) latest: Timestamp,
}

impl<T> Partition<T> {
    pub(super) fn new(on_file: Option<OnFile<T>>) -> Self {
        let store = Store {
            chunks: VecDeque::new(),
            filed: 0,
            segments: VecDeque::new(),
            tail: Run::new(),
            tail_bytes: 0,
            tail_weight: 0,
            weight: 0,
            oldest: 0,
            told: 0,
            end: 0,
            found_end: 0,
            found: 0,
            retained: 0,
            bytes: 0,
            compacted: 0,
            trimmed: 0,
            lost: 0,
            apart: BTreeSet::new(),
            latest: Timestamp::default(),
            gate: Gate::Open,
            awaited: false,
            clean_end: 0,
            clean: 0,
            generation: 0,
        };
        Self { store: Mutex::new(store), end: AtomicU64::new(0), compactions: AtomicUsize::new(0), on_file }
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

impl<T> Store<T> {
    /// Prepares for a message that is pushed next, at the next offset or at the one that the file has given it;
    /// whether the tail had to be sealed for it.
    #[inline]
    fn admit(&mut self, limits: &Limits, message: &mut Message<T>, bytes: u64, at: Option<(u64, u64)>) -> bool {
        if let Some((at, _)) = at.filter(|(at, _)| *at != self.end) {
            self.leave_gap(limits, at);
        }
        let weight = at.map_or(0, |(_, weight)| weight);
        let heavy = at.is_some() && self.tail_weight + weight > SEGMENT_WEIGHT;
        let full = self.tail.is_full() || self.tail_bytes + bytes > limits.segment_bytes() || heavy;
        let sealed = full && self.seal_full(limits);
        if at.is_some() {
            self.tail_weight += weight;
            self.weight += weight;
        }
        // So that times never go back within a partition and can be searched.
        message.published_at = message.published_at.max(self.latest);
        self.latest = message.published_at;
        self.end += 1;
        self.retained += 1;
        self.bytes += bytes;
        self.tail_bytes += bytes;
        sealed
    }

    /// There are places in the file that nobody here has heard of.
    #[cold]
    fn leave_gap(&mut self, limits: &Limits, next: u64) {
        debug_assert!(next > self.end, "a place is given once");
        self.seal(limits);
        self.end = self.end.max(next);
    }

    #[cold]
    fn seal_full(&mut self, limits: &Limits) -> bool {
        let some = !self.tail.is_empty();
        self.seal(limits);
        if self.tail.is_full() {
            self.tail = Run::with_capacity(FIRST_TAIL.min(limits.segment));
        }
        some
    }

    /// Makes a segment of the tail, which nobody changes from then on.
    pub(super) fn seal(&mut self, limits: &Limits) {
        let len = self.tail.len();
        if len == 0 {
            return;
        }
        let base = self.sealed_end();
        let next = Run::with_capacity((2 * len).max(FIRST_TAIL).min(limits.segment));
        let mut records = std::mem::replace(&mut self.tail, next);
        records.fit();
        self.join_small(limits);
        let bytes = std::mem::take(&mut self.tail_bytes);
        let weight = std::mem::take(&mut self.tail_weight);
        self.segments.push_back(Arc::new(Segment::new(base, records, bytes).with_weight(weight)));
    }

    /// Joins two small segments close to the end that nobody reads any more; who keeps up still holds the
    /// one behind them.
    fn join_small(&mut self, limits: &Limits) {
        let Some(place) = self.segments.len().checked_sub(2) else { return };
        let Some(before) = place.checked_sub(1) else { return };
        let (one, other) = (&self.segments[before], &self.segments[place]);
        let fits = one.len() + other.len() <= limits.segment && one.bytes() + other.bytes() <= limits.segment_bytes();
        let in_a_row = !one.has_gaps() && !other.has_gaps() && one.base() + one.len() as u64 == other.base();
        let fits = fits && one.weight() + other.weight() <= SEGMENT_WEIGHT;
        let alike = in_a_row && other.base() != self.clean_end;
        let free = Arc::strong_count(one) == 1 && Arc::strong_count(other) == 1;
        if !(fits && alike && free) {
            return;
        }
        let Some(other) = self.segments.remove(place).and_then(Arc::into_inner) else { return };
        if let Some(one) = Arc::get_mut(&mut self.segments[before]) {
            one.absorb(other);
        }
    }

    /// Where the tail begins.
    pub(super) fn sealed_end(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    #[inline]
    fn is_over(&self, limits: &Limits) -> bool {
        self.retained > limits.count || self.bytes > limits.bytes
    }

    fn restore(&mut self, restored: Restored<T>) {
        let Restored { chunks, segments, oldest, end, latest } = restored;
        (self.oldest, self.told, self.end, self.found_end, self.latest) = (oldest, oldest, end, end, latest);
        self.filed = chunks.iter().map(|chunk| chunk.len).sum();
        self.retained = self.filed + segments.iter().map(|segment| segment.len() as u64).sum::<u64>();
        self.bytes = chunks.iter().map(|chunk| chunk.bytes).chain(segments.iter().map(|segment| segment.bytes())).sum();
        self.found = self.retained;
        (self.chunks, self.segments) = (chunks, segments);
    }

    /// What retention would let go of next, if that is sealed.
    fn front(&self) -> Option<Front> {
        if let Some(chunk) = self.chunks.front() {
            return Some(Front { base: chunk.places.base, len: chunk.len, bytes: chunk.bytes, latest: chunk.latest });
        }
        let segment = self.segments.front()?;
        let latest = segment.latest().unwrap_or_default();
        Some(Front { base: segment.base(), len: segment.len() as u64, bytes: segment.bytes(), latest })
    }

    /// Lets go of segments without which the limits are still kept.
    #[cold]
    fn trim(&mut self, limits: &Limits) -> Vec<Arc<Segment<T>>> {
        let mut trash = Vec::new();
        while let Some(front) = self.front().filter(|_| self.is_over(limits)) {
            let spare = self.retained - front.len >= limits.count || self.bytes - front.bytes >= limits.bytes;
            if !spare {
                break;
            }
            trash.extend(self.drop_front());
        }
        trash
    }

    /// Only what was in memory has to be dropped.
    fn drop_front(&mut self) -> Option<Arc<Segment<T>>> {
        let front = self.front()?;
        let segment = match self.chunks.pop_front() {
            Some(_) => {
                self.filed -= front.len;
                None
            }
            None => self.segments.pop_front(),
        };
        self.oldest = self.front().map_or(self.sealed_end(), |next| next.base);
        self.retained -= front.len;
        self.trimmed += front.len;
        self.bytes -= front.bytes;
        if front.base < self.clean_end {
            self.clean -= front.len;
        }
        self.weight -= segment.as_ref().map_or(0, |segment| segment.weight());
        if !self.apart.is_empty() {
            self.apart = self.apart.split_off(&self.oldest);
        }
        segment
    }

    /// Does without what is sealed in memory and not among the latest: the file has it.
    fn leave_to_file(&mut self, limits: &Limits) -> Vec<Arc<Segment<T>>> {
        let mut left = Vec::new();
        if !limits.keeps_window() {
            return left;
        }
        while let Some(front) = self.segments.front() {
            let (len, weight) = (front.len() as u64, front.weight());
            let spare = self.retained - self.filed - len >= limits.window || self.weight - weight >= WINDOW_WEIGHT;
            if !spare {
                break;
            }
            self.filed += len;
            self.weight -= weight;
            self.add_chunk(limits, Chunk::of(front));
            left.extend(self.segments.pop_front());
        }
        left
    }

    /// Small segments, as of readers that keep up, make one chunk.
    fn add_chunk(&mut self, limits: &Limits, next: Chunk<T>) {
        if let Some(last) = self.chunks.back_mut() {
            let in_a_row = last.places.end == next.places.base;
            let fits =
                last.len + next.len <= limits.segment as u64 && last.bytes + next.bytes <= limits.segment_bytes();
            if in_a_row && fits {
                return last.absorb(next);
            }
        }
        self.chunks.push_back(next);
    }

    fn take_in(&mut self, places: Places, read: &Read<T>) -> Option<Arc<Segment<T>>> {
        let at = self.chunks.partition_point(|chunk| chunk.places.base < places.base);
        let chunk = self.chunks.get_mut(at)?;
        // It may have grown meanwhile.
        if chunk.places.base != places.base || chunk.places.end < places.end {
            return None;
        }
        if let Some(other) = chunk.read.upgrade() {
            return Some(other);
        }
        let cut = read.cut.or((chunk.places.end > places.end).then_some(places.end));
        let rest = cut.map(|cut| chunk.split(cut, read));
        let gone = chunk.len - (read.segment.len() as u64).min(chunk.len);
        chunk.len -= gone;
        chunk.places.end = read.segment.end().max(chunk.places.base);
        chunk.read = Arc::downgrade(&read.segment);
        (self.filed, self.retained) = (self.filed - gone, self.retained - gone);
        self.lost += gone;
        rest.into_iter().for_each(|rest| self.chunks.insert(at + 1, rest));
        Some(Arc::clone(&read.segment))
    }

    /// Whether sealed segments hold at least as much that was never compacted as that was, so that
    /// compacting costs each append a constant share.
    fn is_dirty(&self) -> bool {
        let dirty = self.retained - self.clean - self.tail.len() as u64;
        dirty > 0 && dirty >= self.clean
    }

    fn locate(&mut self, limits: &Limits, offset: u64) -> Located<T> {
        if offset < self.oldest {
            return Located::Trimmed { oldest: self.oldest };
        }
        if offset >= self.end {
            return Located::End;
        }
        if let Some(found) = self.locate_filed(offset).or_else(|| self.locate_sealed(offset)) {
            return found;
        }
        self.seal(limits);
        self.locate_sealed(offset).unwrap_or(Located::Gap(self.end))
    }

    fn locate_filed(&self, offset: u64) -> Option<Located<T>> {
        if self.chunks.is_empty() {
            return None;
        }
        let first = self.chunks.partition_point(|chunk| chunk.places.end <= offset);
        let chunk = self.chunks.range(first..).find(|chunk| chunk.len > 0)?;
        Some(match chunk.read.upgrade() {
            Some(segment) => Located::At { index: segment.index_of(offset), segment, end: self.end },
            None => Located::Unread(chunk.places),
        })
    }

    fn locate_sealed(&self, offset: u64) -> Option<Located<T>> {
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        let mut behind = self.segments.range(after.saturating_sub(1)..);
        behind.find_map(|segment| {
            let index = segment.index_of(offset);
            (index < segment.len()).then(|| Located::At { segment: Arc::clone(segment), index, end: self.end })
        })
    }
}
