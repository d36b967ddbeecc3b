//! What a partition holds, oldest first: chunks that are only in the file, sealed segments, the tail. Guarded by the
//! partition's lock.

use super::chunk::{Chunk, Places, Read};
use super::partition::{Gate, Located};
use super::retention::Limits;
use super::segment::{Run, Segment};
use crate::clock::Timestamp;
use crate::message::Message;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Tails start small and double, so that a log of few records is small.
const FIRST_TAIL: usize = 16;
/// So many bytes in the file make a segment, however few records that is.
const SEGMENT_WEIGHT: u64 = 4 << 20;
/// Large records leave memory before there are as many as otherwise would.
const WINDOW_WEIGHT: u64 = 4 * SEGMENT_WEIGHT;

pub(super) struct Store<T> {
    /// Only in the file, before everything in memory.
    pub(super) chunks: VecDeque<Chunk<T>>,
    /// How many records that is.
    pub(super) filed: u64,
    /// Sealed; without gaps between them.
    pub(super) segments: VecDeque<Arc<Segment<T>>>,
    /// What nobody has read yet.
    pub(super) tail: Run<T>,
    pub(super) tail_bytes: u64,
    pub(super) tail_weight: u64,
    /// How many bytes what is in memory takes in the file.
    pub(super) weight: u64,
    pub(super) oldest: u64,
    /// What the file was told of that.
    pub(super) told: u64,
    pub(super) end: u64,
    /// Where it ended when the file was opened, and what was in there.
    pub(super) found_end: u64,
    pub(super) found: u64,
    pub(super) retained: u64,
    pub(super) bytes: u64,
    pub(super) compacted: u64,
    pub(super) trimmed: u64,
    pub(super) lost: u64,
    /// Undecodable, and being put apart in the file, or so already.
    pub(super) apart: BTreeSet<u64>,
    pub(super) latest: Timestamp,
    pub(super) gate: Gate,
    /// Some group wants to hear of the next append.
    pub(super) awaited: bool,
    /// Records before this offset have been compacted, so many times, and so many of them are left.
    pub(super) clean_end: u64,
    pub(super) clean: u64,
    pub(super) generation: u64,
}

/// The oldest records of a partition, as far as retention goes by them.
pub(super) struct Front {
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) bytes: u64,
    pub(super) latest: Timestamp,
}

/// What a partition holds when its file is opened.
pub(crate) struct Restored<T> {
    pub(crate) chunks: VecDeque<Chunk<T>>,
    pub(crate) segments: VecDeque<Arc<Segment<T>>>,
    pub(crate) oldest: u64,
    pub(crate) end: u64,
    pub(crate) latest: Timestamp,
}

impl<T> Store<T> {
    pub(super) fn new() -> Self {
        Self {
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
        }
    }

    /// Prepares for a message that is pushed next, at the next offset or at the one that the file has given it;
    /// whether the tail had to be sealed for it.
    #[inline]
    pub(super) fn admit(
        &mut self,
        limits: &Limits,
        message: &mut Message<T>,
        bytes: u64,
        at: Option<(u64, u64)>,
    ) -> bool {
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
    pub(super) fn leave_gap(&mut self, limits: &Limits, next: u64) {
        debug_assert!(next > self.end, "a place is given once");
        self.seal(limits);
        self.end = self.end.max(next);
    }

    #[cold]
    pub(super) fn seal_full(&mut self, limits: &Limits) -> bool {
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
    pub(super) fn join_small(&mut self, limits: &Limits) {
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
    pub(super) fn is_over(&self, limits: &Limits) -> bool {
        self.retained > limits.count || self.bytes > limits.bytes
    }

    pub(super) fn restore(&mut self, restored: Restored<T>) {
        let Restored { chunks, segments, oldest, end, latest } = restored;
        (self.oldest, self.told, self.end, self.found_end, self.latest) = (oldest, oldest, end, end, latest);
        self.filed = chunks.iter().map(|chunk| chunk.len).sum();
        self.retained = self.filed + segments.iter().map(|segment| segment.len() as u64).sum::<u64>();
        self.bytes = chunks.iter().map(|chunk| chunk.bytes).chain(segments.iter().map(|segment| segment.bytes())).sum();
        self.found = self.retained;
        (self.chunks, self.segments) = (chunks, segments);
    }

    /// What retention would let go of next, if that is sealed.
    pub(super) fn front(&self) -> Option<Front> {
        if let Some(chunk) = self.chunks.front() {
            return Some(Front { base: chunk.places.base, len: chunk.len, bytes: chunk.bytes, latest: chunk.latest });
        }
        let segment = self.segments.front()?;
        let latest = segment.latest().unwrap_or_default();
        Some(Front { base: segment.base(), len: segment.len() as u64, bytes: segment.bytes(), latest })
    }

    /// Lets go of segments without which the limits are still kept.
    #[cold]
    pub(super) fn trim(&mut self, limits: &Limits) -> Vec<Arc<Segment<T>>> {
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
    pub(super) fn drop_front(&mut self) -> Option<Arc<Segment<T>>> {
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
    pub(super) fn leave_to_file(&mut self, limits: &Limits) -> Vec<Arc<Segment<T>>> {
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
    pub(super) fn add_chunk(&mut self, limits: &Limits, next: Chunk<T>) {
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

    pub(super) fn take_in(&mut self, places: Places, read: &Read<T>) -> Option<Arc<Segment<T>>> {
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
    pub(super) fn is_dirty(&self) -> bool {
        let dirty = self.retained - self.clean - self.tail.len() as u64;
        dirty > 0 && dirty >= self.clean
    }

    #[inline]
    pub(super) fn locate(&mut self, limits: &Limits, offset: u64) -> Located<T> {
        if offset < self.oldest {
            return Located::Trimmed { oldest: self.oldest };
        }
        if offset >= self.end {
            return Located::End;
        }
        if !self.chunks.is_empty()
            && let Some(found) = self.locate_filed(offset)
        {
            return found;
        }
        if let Some(found) = self.locate_sealed(offset) {
            return found;
        }
        self.seal(limits);
        self.locate_sealed(offset).unwrap_or(Located::Gap(self.end))
    }

    #[cold]
    pub(super) fn locate_filed(&self, offset: u64) -> Option<Located<T>> {
        let first = self.chunks.partition_point(|chunk| chunk.places.end <= offset);
        let chunk = self.chunks.range(first..).find(|chunk| chunk.len > 0)?;
        Some(match chunk.read.upgrade() {
            Some(segment) => Located::At { index: segment.index_of(offset), segment, end: self.end },
            None => Located::Unread(chunk.places),
        })
    }

    pub(super) fn locate_sealed(&self, offset: u64) -> Option<Located<T>> {
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        let mut behind = self.segments.range(after.saturating_sub(1)..);
        behind.find_map(|segment| {
            let index = segment.index_of(offset);
            (index < segment.len()).then(|| Located::At { segment: Arc::clone(segment), index, end: self.end })
        })
    }
}
