//! What readers of a log get.

use super::segment::Segment;
use crate::message::{Keeps, Message};
use crate::outcome::{IntoOutcome, Outcome};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Where a record is in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Offset {
    /// The partition, counted from 0.
    pub partition: usize,
    /// The place in the partition, counted from 0 and never given to another record.
    pub offset: u64,
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

/// So that a handler may end with an append to another log.
impl IntoOutcome for Offset {
    fn into_outcome(self) -> (Outcome, Option<String>) {
        (Outcome::Ack, None)
    }
}

/// A record of a log: a message, and where it is. Dereferences to the message.
///
/// It refers to the log's own memory, nothing is copied; while it exists, so does the segment it is in (up
/// to 1,024 records), also if that was read from the file of a durable log.
pub struct Record<T> {
    segment: Arc<Segment<T>>,
    index: usize,
    partition: usize,
    offset: u64,
    attempt: u32,
}

impl<T> Record<T> {
    pub(super) fn new(segment: Arc<Segment<T>>, index: usize, partition: usize, attempt: u32) -> Self {
        let offset = segment.offset_of(index);
        Self { segment, index, partition, offset, attempt }
    }

    /// Where it is: its partition and its place there.
    #[must_use]
    pub fn place(&self) -> Offset {
        Offset { partition: self.partition, offset: self.offset }
    }

    /// The partition it is in.
    #[must_use]
    pub fn partition(&self) -> usize {
        self.partition
    }

    /// Its place in the partition.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Which delivery to its group this is: 1 on the first, raised by every failure.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The message; the same as dereferencing.
    #[must_use]
    #[inline]
    pub fn message(&self) -> &Message<T> {
        self.segment.get(self.index).expect("made for a record that is there")
    }

    /// Moves on to the next record of the same segment, if there is one.
    #[inline]
    pub(super) fn advance(&mut self) -> bool {
        if self.index + 1 == self.segment.len() {
            return false;
        }
        self.index += 1;
        self.offset = self.segment.offset_of(self.index);
        self.attempt = 1;
        true
    }

    pub(super) fn set_attempt(&mut self, attempt: u32) {
        self.attempt = attempt;
    }
}

impl<T: Send + Sync + 'static> Record<T> {
    /// A message of its own over the same payload, with keys, headers and id, to publish elsewhere. The
    /// payload is not copied, so it keeps the record's segment in memory.
    #[must_use]
    pub fn to_message(&self) -> Message<T> {
        self.message().share_kept(|| Arc::new(self.clone()))
    }
}

impl<T: Send + Sync> Keeps<T> for Record<T> {
    fn payload(&self) -> &T {
        self.message().payload()
    }
}

impl<T> Deref for Record<T> {
    type Target = Message<T>;
    #[inline]
    fn deref(&self) -> &Message<T> {
        self.message()
    }
}

impl<T> Clone for Record<T> {
    fn clone(&self) -> Self {
        Self { segment: Arc::clone(&self.segment), ..*self }
    }
}

impl<T: fmt::Debug> fmt::Debug for Record<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .field("attempt", &self.attempt)
            .field("message", self.message())
            .finish()
    }
}
