//! Bringing back what an earlier run has left in the file.

use super::marks;
use super::on_file::{OLDEST, OnFile, stream_name};
use crate::clock::Timestamp;
use crate::log::segment::Segment;
use crate::log::shelf::Shelf;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::durable::keep_apart;
use crate::store::{Limit, Row, StoreError};
use std::collections::VecDeque;
use std::sync::Arc;

/// How much is read at once.
const PORTION: Limit = Limit { items: 1024, bytes: 4 << 20 };

impl<T: Send + Sync + 'static> Shelf<T> {
    /// Fills a log that nobody has seen yet with all that the file has of it. No lock is held while the user's codec
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
        let store = &file.depot().store;
        let stream = file.filed.stream;
        let reader = store.reader()?;
        let oldest = reader.mark(stream, OLDEST)?;
        let oldest = oldest.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
        let end = reader.info(stream)?.ok_or(StoreError::UnknownStream(stream))?.next;
        let (segments, chunk, latest) = (VecDeque::new(), Vec::new(), Timestamp::default());
        let mut found = Restoring { shelf: self, segments, base: oldest, chunk, bytes: 0, latest };
        let mut from = oldest;
        loop {
            let rows = reader.read(stream, from, PORTION)?;
            let Some(last) = rows.last() else { break };
            from = last.seq + 1;
            for row in rows {
                match self.record_of_row(file, &row) {
                    Ok(message) => found.add(row.seq, message),
                    Err(error) => {
                        let apart = (&*self.name, stream_name(&self.name, partition));
                        keep_apart(&self.runtime, store, (stream, &row), apart, error)?;
                    }
                }
            }
        }
        let segments = found.finish();
        let latest = segments.back().and_then(|segment| segment.latest()).unwrap_or_default();
        file.latest().begin_at(latest);
        drop_contained(self.partition(partition).restore(&self.limits, segments, (oldest, end)));
        Ok(())
    }

    fn record_of_row(&self, file: &OnFile<T>, row: &Row) -> Result<Message<T>, String> {
        let mut message = file.filed.message(&row.item)?;
        self.make_record(&mut message);
        Ok(message)
    }
}

/// Records on their way into segments as large as they may be, so that nothing goes early.
struct Restoring<'a, T> {
    shelf: &'a Shelf<T>,
    segments: VecDeque<Arc<Segment<T>>>,
    /// Where the next segment begins.
    base: u64,
    chunk: Vec<(u64, Message<T>)>,
    bytes: u64,
    latest: Timestamp,
}

impl<T: Send + Sync + 'static> Restoring<'_, T> {
    fn add(&mut self, offset: u64, mut message: Message<T>) {
        // As they were given, unless somebody else has put it there.
        self.latest = message.published_at.max(self.latest);
        message.published_at = self.latest;
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
        self.segments.push_back(Arc::new(Segment::restored(self.base, chunk, bytes)));
        self.base = next;
    }

    fn finish(mut self) -> VecDeque<Arc<Segment<T>>> {
        self.seal();
        self.segments
    }
}
