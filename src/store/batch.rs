//! What to change, all of it or nothing.

use super::brief::Brief;
use super::error::{MAX_ITEM_BYTES, StoreError};
use super::item::{Change, Item, Seq, StreamId};
use super::live::LiveMark;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// One change.
#[derive(Debug)]
pub(super) enum Op {
    Insert(StreamId, Box<Item>),
    InsertBrief(StreamId, Brief),
    Delete(StreamId, Seq),
    Update(StreamId, Seq, Change),
    Move { from: StreamId, seq: Seq, to: StreamId, change: Change },
    Trim(StreamId, Seq),
    DeleteRange(StreamId, Range<Seq>),
    LiveMark(StreamId, Vec<u8>, Arc<LiveMark>),
    Mark(StreamId, Vec<u8>, Vec<u8>),
    Unmark(StreamId, Vec<u8>),
    Settings(StreamId, String),
    Declare { kind: String, name: String, settings: String },
    Remove(StreamId),
}

/// Changes that take effect together, in the order they were added here.
///
/// ```
/// # use postroom::store::*;
/// # fn example(store: &Store, orders: StreamId, failed: StreamId) -> Result<(), StoreError> {
/// let seqs = store.commit(Batch::new().insert(orders, Item::default()).insert(orders, Item::default()), Durability::Sync)?;
/// // One is done with, the other one is given up on.
/// let settled = Batch::new().delete(orders, seqs[0]).move_to(orders, seqs[1], failed, Change::new());
/// store.commit(settled, Durability::Buffered)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct Batch {
    ops: SmallVec<[Op; 1]>,
    bytes: usize,
}

impl Batch {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an item. Its place is among the answer's, in the order of the insertions and moves of this batch.
    pub fn insert(self, stream: StreamId, item: impl Into<Box<Item>>) -> Self {
        let item = item.into();
        let bytes = item.bytes() + size_of::<Item>();
        self.with(Op::Insert(stream, item), bytes)
    }

    /// As [`Batch::insert`].
    pub(crate) fn insert_brief(self, stream: StreamId, brief: Brief) -> Self {
        let bytes = brief.bytes();
        self.with(Op::InsertBrief(stream, brief), bytes)
    }

    /// Deletes an item; one that is gone already is no error.
    pub fn delete(self, stream: StreamId, seq: Seq) -> Self {
        self.with(Op::Delete(stream, seq), 0)
    }

    /// Changes an item where it is; one that is gone already is no error.
    pub fn update(self, stream: StreamId, seq: Seq, change: Change) -> Self {
        let bytes = change.bytes();
        self.with(Op::Update(stream, seq, change), bytes)
    }

    /// Moves an item to the end of another stream, changed. One that is gone already is no error, and leaves a
    /// gap at its place there.
    pub fn move_to(self, from: StreamId, seq: Seq, to: StreamId, change: Change) -> Self {
        let bytes = change.bytes();
        self.with(Op::Move { from, seq, to, change }, bytes)
    }

    /// Deletes all items before `seq`; with [`Seq::MAX`] all there are.
    pub fn trim(self, stream: StreamId, seq: Seq) -> Self {
        self.with(Op::Trim(stream, seq), 0)
    }

    /// Deletes all items within these places.
    pub fn delete_range(self, stream: StreamId, seqs: Range<Seq>) -> Self {
        self.with(Op::DeleteRange(stream, seqs), 0)
    }

    /// Notes a number under a name of the stream's: what it is when the writer takes the batch. Handed in with
    /// [`Store::submit_live`](super::Store::submit_live).
    pub(super) fn mark_live(self, stream: StreamId, name: impl Into<Vec<u8>>, number: Arc<LiveMark>) -> Self {
        let name = name.into();
        let bytes = name.len();
        self.with(Op::LiveMark(stream, name, number), bytes)
    }

    /// Notes a value under a name of the stream's, replacing an earlier one: a group's offset, an id seen.
    pub fn mark(self, stream: StreamId, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        let (name, value) = (name.into(), value.into());
        let bytes = name.len() + value.len();
        self.with(Op::Mark(stream, name, value), bytes)
    }

    /// Forgets what was noted under a name.
    pub fn unmark(self, stream: StreamId, name: impl Into<Vec<u8>>) -> Self {
        self.with(Op::Unmark(stream, name.into()), 0)
    }

    /// Replaces a stream's settings.
    pub fn settings(self, stream: StreamId, settings: impl Into<String>) -> Self {
        self.with(Op::Settings(stream, settings.into()), 0)
    }

    /// Removes a stream with everything in it; its number may be given to a later one. Nothing behind it in
    /// the same batch may use the stream.
    pub fn remove(self, stream: StreamId) -> Self {
        self.with(Op::Remove(stream), 0)
    }

    pub(super) fn declare(kind: &str, name: &str, settings: &str) -> Self {
        let op = Op::Declare { kind: kind.into(), name: name.into(), settings: settings.into() };
        Self::new().with(op, 0)
    }

    /// Adds the changes of another batch behind these.
    pub fn and(mut self, other: Batch) -> Self {
        self.ops.extend(other.ops);
        self.bytes += other.bytes;
        self
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// How many changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    fn with(mut self, op: Op, bytes: usize) -> Self {
        self.ops.push(op);
        self.bytes += bytes;
        self
    }

    /// How much memory it takes while it waits, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.ops.len() * size_of::<Op>()
    }

    pub(super) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// What is wrong with it, whatever the file holds.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if let Some(stream) = self.used_after_removal() {
            return Err(StoreError::UnknownStream(stream));
        }
        if self.bytes <= MAX_ITEM_BYTES {
            return Ok(());
        }
        let largest = self.ops.iter().map(Op::bytes).max().unwrap_or(0);
        if largest > MAX_ITEM_BYTES { Err(StoreError::TooLarge { bytes: largest }) } else { Ok(()) }
    }

    fn used_after_removal(&self) -> Option<StreamId> {
        let removals = self.ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Remove(_)));
        removals.into_iter().find_map(|(at, op)| {
            let removed = op.streams().next();
            self.ops[at + 1..].iter().flat_map(Op::streams).find(|&stream| Some(stream) == removed)
        })
    }
}

impl Op {
    /// The streams that have to exist for it.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> {
        let (one, other) = match *self {
            Self::Declare { .. } => (None, None),
            Self::Move { from, to, .. } => (Some(from), Some(to)),
            Self::Insert(stream, _)
            | Self::InsertBrief(stream, _)
            | Self::Delete(stream, _)
            | Self::Update(stream, ..)
            | Self::Trim(stream, _)
            | Self::DeleteRange(stream, _)
            | Self::LiveMark(stream, ..)
            | Self::Mark(stream, ..)
            | Self::Unmark(stream, _)
            | Self::Settings(stream, _)
            | Self::Remove(stream) => (Some(stream), None),
        };
        one.into_iter().chain(other)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Insert(_, item) => item.bytes(),
            Self::InsertBrief(_, brief) => brief.bytes(),
            Self::Update(_, _, change) | Self::Move { change, .. } => change.bytes(),
            Self::Mark(_, name, value) => name.len() + value.len(),
            _ => 0,
        }
    }
}
