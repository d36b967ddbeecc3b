//! A run of records that readers share with the log.
//!
//! Sealed before anybody reads it, and never changed as long as anybody does. So a reader needs the
//! partition's lock only to find its next segment, and none to go through one.

use crate::clock::Timestamp;
use crate::message::Message;
use crate::outcome::drop_contained;

/// Messages in a row.
pub(crate) struct Run<T>(Vec<Message<T>>);

pub(crate) struct Segment<T> {
    /// Where it begins: the offset of its first record, or of one before that is gone.
    base: u64,
    /// The offset of each record, where compaction has left gaps between them.
    offsets: Option<Box<[u64]>>,
    records: Run<T>,
    bytes: u64,
    /// About how much memory it takes beyond its records' own size, if a file knows.
    weight: u64,
}

impl<T> Run<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() == self.0.capacity()
    }

    #[inline]
    pub(crate) fn push(&mut self, message: Message<T>) {
        self.0.push(message);
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Gives back room that is not going to be used.
    pub(crate) fn fit(&mut self) {
        if self.0.len() < self.0.capacity() / 2 {
            self.0.shrink_to_fit();
        }
    }

    /// Where the first record of that time or later is, or would be.
    pub(crate) fn index_at(&self, time: Timestamp) -> usize {
        self.0.partition_point(|message| message.published_at < time)
    }
}

impl<T> std::ops::Deref for Run<T> {
    type Target = [Message<T>];
    fn deref(&self) -> &[Message<T>] {
        &self.0
    }
}

impl<T> Drop for Run<T> {
    /// A payload's destructor may panic; that must not cost the others theirs.
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            self.0.drain(..).for_each(drop_contained);
        }
    }
}

impl<T> Segment<T> {
    pub(crate) fn new(base: u64, records: Run<T>, bytes: u64) -> Self {
        Self { base, offsets: None, records, bytes, weight: 0 }
    }

    /// What compaction has left of the offsets from `base` on.
    pub(crate) fn compacted(base: u64, records: Vec<(u64, Message<T>)>, bytes: u64) -> Self {
        let (offsets, records): (Vec<_>, Vec<_>) = records.into_iter().unzip();
        Self { base, offsets: Some(offsets.into()), records: Run(records), bytes, weight: 0 }
    }

    /// What the file holds of the offsets from `base` on.
    pub(crate) fn restored(base: u64, records: Vec<(u64, Message<T>)>, bytes: u64) -> Self {
        if records.iter().zip(base..).all(|((offset, _), expected)| *offset == expected) {
            let records = records.into_iter().map(|(_, message)| message).collect();
            return Self::new(base, Run(records), bytes);
        }
        Self::compacted(base, records, bytes)
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The offset after the last record.
    pub(crate) fn end(&self) -> u64 {
        self.len().checked_sub(1).map_or(self.base, |last| self.offset_of(last) + 1)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn with_weight(self, weight: u64) -> Self {
        Self { weight, ..self }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    pub(crate) fn has_gaps(&self) -> bool {
        self.offsets.is_some()
    }

    /// Takes in the one behind it; neither has gaps.
    pub(crate) fn absorb(&mut self, next: Self) {
        self.bytes += next.bytes;
        self.weight += next.weight;
        self.records.append(next.records);
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Message<T>> {
        self.records.get(index)
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
        self.records.index_at(time)
    }

    /// When its latest record was published.
    pub(crate) fn latest(&self) -> Option<Timestamp> {
        self.records.last().map(|message| message.published_at)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, &Message<T>)> {
        self.records.iter().enumerate().map(|(index, message)| (self.offset_of(index), message))
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
