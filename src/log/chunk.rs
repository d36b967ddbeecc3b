//! Records of a durable log that are only in the file: what is known of them without reading it.
//!
//! As many as were one segment, so that retention lets go of them as it would of that. A few dozen bytes each, for up
//! to 1,024 records.

use super::segment::Segment;
use crate::clock::Timestamp;
use std::sync::{Arc, Weak};

pub(crate) struct Chunk<T> {
    pub(super) places: Places,
    pub(super) len: u64,
    pub(super) bytes: u64,
    /// When its latest record was published; known if retention goes by age.
    pub(super) latest: Timestamp,
    /// Its records, as long as anybody reads them.
    pub(super) read: Weak<Segment<T>>,
}

/// Offsets from the first to before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(super) base: u64,
    pub(super) end: u64,
}

/// What became of a part of a chunk when it was read.
pub(crate) struct Read<T> {
    pub(super) segment: Arc<Segment<T>>,
    /// Records that were there and could not be decoded.
    pub(super) undecodable: u64,
    /// Where the rest begins, if there was too much to read at once.
    pub(super) cut: Option<u64>,
}

impl<T> Chunk<T> {
    pub(super) fn new(places: Places, len: u64, bytes: u64, latest: Timestamp) -> Self {
        Self { places, len, bytes, latest, read: Weak::new() }
    }

    /// A segment that memory does without from now on.
    pub(super) fn of(segment: &Arc<Segment<T>>) -> Self {
        let places = Places { base: segment.base(), end: segment.end() };
        let latest = segment.latest().unwrap_or_default();
        let read = Arc::downgrade(segment);
        Self { places, len: segment.len() as u64, bytes: segment.bytes(), latest, read }
    }

    /// Takes in the one behind it. Whoever reads one of them goes on doing so, alone.
    pub(super) fn absorb(&mut self, next: Self) {
        self.places.end = next.places.end;
        self.len += next.len;
        self.bytes += next.bytes;
        self.latest = next.latest;
        self.read = Weak::new();
    }

    /// Cuts off what begins at this offset, of which the first part has been read.
    pub(super) fn split(&mut self, cut: u64, read: &Read<T>) -> Self {
        let rest = Self {
            places: Places { base: cut, end: self.places.end },
            len: self.len.saturating_sub(read.segment.len() as u64 + read.undecodable),
            bytes: self.bytes.saturating_sub(read.segment.bytes()),
            latest: self.latest,
            read: Weak::new(),
        };
        self.places.end = cut;
        self.len -= rest.len;
        self.bytes -= rest.bytes;
        self.latest = read.segment.latest().unwrap_or(self.latest);
        rest
    }
}
