//! A run of records that readers share with the log.
//!
//! A slot is written once, under its partition's lock, and read without any: that it is filled is what says
//! that it may be read. So a reader needs the partition only to find its next segment.

use crate::clock::Timestamp;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

pub(crate) struct Segment<T> {
    /// The offset of its first slot.
    base: u64,
    /// The offset of each record, where compaction has left gaps between them.
    offsets: Option<Box<[u64]>>,
    slots: Box<[OnceLock<Message<T>>]>,
    /// Written under the partition's lock, as is `bytes`.
    len: AtomicUsize,
    bytes: AtomicU64,
}

impl<T> Segment<T> {
    pub(crate) fn new(base: u64, capacity: usize) -> Self {
        let slots = (0..capacity).map(|_| OnceLock::new()).collect();
        Self { base, offsets: None, slots, len: AtomicUsize::new(0), bytes: AtomicU64::new(0) }
    }

    /// What compaction has left of the offsets from `base` on.
    pub(crate) fn compacted(base: u64, records: Vec<(u64, Message<T>)>, bytes: u64) -> Self {
        let len = AtomicUsize::new(records.len());
        let (offsets, slots): (Vec<_>, Vec<_>) =
            records.into_iter().map(|(offset, message)| (offset, OnceLock::from(message))).unzip();
        Self { base, offsets: Some(offsets.into()), slots: slots.into(), len, bytes: AtomicU64::new(bytes) }
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.len() < self.slots.len()
    }

    /// Called under the partition's lock, while there is room.
    #[inline]
    pub(crate) fn push(&self, message: Message<T>, bytes: u64) {
        let len = self.len();
        self.bytes.store(self.bytes() + bytes, Ordering::Relaxed);
        self.len.store(len + 1, Ordering::Relaxed);
        // Built in its place: a `set` would move the message once more.
        self.slots[len].get_or_init(|| message);
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Message<T>> {
        self.slots.get(index)?.get()
    }

    #[inline]
    pub(crate) fn offset_of(&self, index: usize) -> u64 {
        self.offsets.as_ref().map_or(self.base + index as u64, |offsets| offsets[index])
    }

    /// Where the first record at or after `offset` is, or would be.
    pub(crate) fn index_of(&self, offset: u64) -> usize {
        match &self.offsets {
            None => offset.saturating_sub(self.base) as usize,
            Some(offsets) => offsets.partition_point(|&other| other < offset),
        }
    }

    /// Where the first record of that time or later is, or would be.
    pub(crate) fn index_at(&self, time: Timestamp) -> usize {
        self.slots[..self.len()].partition_point(|slot| slot.get().is_some_and(|m| m.published_at < time))
    }

    /// When its latest record was published; `None` while it is empty.
    pub(crate) fn latest(&self) -> Option<Timestamp> {
        Some(self.get(self.len().checked_sub(1)?)?.published_at)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, &Message<T>)> {
        (0..self.len()).filter_map(|index| Some((self.offset_of(index), self.get(index)?)))
    }
}

impl<T> Drop for Segment<T> {
    /// A payload's destructor may panic; that must not cost the others theirs.
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            self.slots.iter_mut().filter_map(OnceLock::take).for_each(drop_contained);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_with_gaps_finds_the_next_record() {
        let segment = Segment::compacted(10, vec![(12, Message::new('a')), (17, Message::new('b'))], 0);
        let found = |offset| segment.get(segment.index_of(offset)).map(|message| *message.payload());
        assert_eq!([10, 12, 13, 17, 18].map(found), [Some('a'), Some('a'), Some('b'), Some('b'), None]);
    }
}
