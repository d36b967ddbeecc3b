//! Bringing back what an earlier run has left in the file: where it is, and itself only if all of it has to be in
//! memory.

use super::marks;
use super::on_file::{OLDEST, OnFile};
use crate::clock::Timestamp;
use crate::log::chunk::{Chunk, Places};
use crate::log::holdings::Restored;
use crate::log::retention::Limits;
use crate::log::segment::Segment;
use crate::log::shelf::Shelf;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::store::{Limit, Reader, StoreError, StreamId};
use std::collections::VecDeque;
use std::sync::Arc;

/// How much is read at once.
const PORTION: Limit = Limit { items: 1024, bytes: 4 << 20 };

impl<T: Send + Sync + 'static> Shelf<T> {
    /// Has a log that nobody has seen yet know what the file has of it. No lock is held while the user's codec
    /// runs.
    pub(crate) fn recover(&self) -> Result<(), StoreError> {
        let files: Vec<&OnFile<T>> = self.all().filter_map(|partition| partition.on_file.as_ref()).collect();
        let Some(first) = files.first() else { return Ok(()) };
        for (partition, file) in files.iter().enumerate() {
            self.recover_partition(partition, file)?;
        }
        let mut groups = marks::all_of(&first.depot().store.reader()?, &files)?;
        for positions in groups.values_mut() {
            let within = |(partition, position): (usize, &mut u64)| {
                *position = (*position).min(self.partition(partition).range().1);
            };
            positions.iter_mut().enumerate().for_each(within);
        }
        self.remember(groups);
        self.age_what_was_found();
        Ok(())
    }

    fn recover_partition(&self, partition: usize, file: &OnFile<T>) -> Result<(), StoreError> {
        let stream = file.filed.stream;
        let reader = file.depot().store.reader()?;
        let oldest = reader.mark(stream, OLDEST)?;
        let oldest = oldest.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
        let end = reader.info(stream)?.ok_or(StoreError::UnknownStream(stream))?.next;
        let limits = &self.limits;
        let restored = if limits.keeps_window() && limits.bytes == u64::MAX {
            let (chunks, latest) = reader.consistent(|reader| lay_out(reader, stream, limits, oldest))?;
            Restored { chunks, segments: VecDeque::new(), oldest, end, latest }
        } else {
            self.read_through(partition, file, (oldest, end))?
        };
        file.latest().begin_at(restored.latest);
        drop_contained(self.partition(partition).restore(limits, restored));
        Ok(())
    }

    /// Reads all records: because they are to be in memory, or because nothing but their payloads says how large they
    /// are.
    fn read_through(
        &self,
        partition: usize,
        file: &OnFile<T>,
        (oldest, end): (u64, u64),
    ) -> Result<Restored<T>, StoreError> {
        let reader = file.depot().store.reader()?;
        let restored =
            Restored { chunks: VecDeque::new(), segments: VecDeque::new(), oldest, end, latest: Timestamp::default() };
        let mut found = Restoring { shelf: self, restored, base: oldest, chunk: Vec::new(), bytes: 0 };
        let mut from = oldest;
        loop {
            let rows = reader.read(file.filed.stream, from, PORTION)?;
            let Some(last) = rows.last() else { return Ok(found.finish()) };
            from = last.seq + 1;
            for row in rows {
                match self.record_of_row(file, &row) {
                    Ok(message) => found.add(row.seq, message),
                    Err(error) => self.put_apart(file, partition, &row, error)?,
                }
            }
        }
    }
}

/// Where the records are that nobody has to read yet, and when the latest was published. Where none is missing, counting
/// is all that it takes.
fn lay_out<T>(
    reader: &Reader<'_>,
    stream: StreamId,
    limits: &Limits,
    oldest: u64,
) -> Result<(VecDeque<Chunk<T>>, Timestamp), StoreError> {
    let mut chunks = VecDeque::new();
    let (Some(first), Some(last)) = (reader.first(stream)?, reader.last(stream)?) else {
        return Ok((chunks, Timestamp::default()));
    };
    let count = reader.info(stream)?.map_or(0, |stream| stream.count);
    let is_dense = first >= oldest && last + 1 - first == count;
    let time_of = |seq| Ok::<_, StoreError>(Timestamp(reader.published_at(stream, seq)?.unwrap_or_default()));
    let (mut base, mut from) = (oldest, first.max(oldest));
    while from <= last {
        let counted = if is_dense {
            let len = (last + 1 - from).min(limits.segment as u64);
            Some((len, from + len - 1))
        } else {
            reader.stride(stream, from..last + 1, limits.segment)?
        };
        let Some((len, until)) = counted else { break };
        let latest = if limits.age.is_some() { time_of(until)? } else { Timestamp::default() };
        chunks.push_back(Chunk::new(Places { base, end: until + 1 }, len, 0, latest));
        (base, from) = (until + 1, until + 1);
    }
    Ok((chunks, time_of(last)?))
}

/// Records on their way into segments as large as they may be, so that nothing goes early.
struct Restoring<'a, T> {
    shelf: &'a Shelf<T>,
    restored: Restored<T>,
    /// Where the next segment begins.
    base: u64,
    chunk: Vec<(u64, Message<T>)>,
    bytes: u64,
}

impl<T: Send + Sync + 'static> Restoring<'_, T> {
    fn add(&mut self, offset: u64, mut message: Message<T>) {
        // As they were given, unless somebody else has put it there.
        self.restored.latest = message.published_at.max(self.restored.latest);
        message.published_at = self.restored.latest;
        let bytes = self.shelf.size_of(&message);
        let limits = &self.shelf.limits;
        let full = self.chunk.len() == limits.segment || self.bytes + bytes > limits.segment_bytes();
        if full && !self.chunk.is_empty() {
            self.seal();
        }
        self.chunk.push((offset, message));
        self.bytes += bytes;
    }

    fn seal(&mut self) {
        let Some((last, _)) = self.chunk.last() else { return };
        let next = last + 1;
        let (chunk, bytes) = (std::mem::take(&mut self.chunk), std::mem::take(&mut self.bytes));
        let segment = Arc::new(Segment::restored(self.base, chunk, bytes));
        self.base = next;
        if self.shelf.limits.keeps_window() {
            self.restored.chunks.push_back(Chunk::of(&segment));
        } else {
            self.restored.segments.push_back(segment);
        }
    }

    fn finish(mut self) -> Restored<T> {
        self.seal();
        self.restored
    }
}
