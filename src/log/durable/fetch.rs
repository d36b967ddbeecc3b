//! Reading what is only in the file, by whoever wants it and with no lock held.
//!
//! What is read counts only if its chunk is still there afterwards: retention drops a chunk under the partition's lock
//! before the file hears of it, so then nothing was missing.

use super::on_file::{OnFile, stream_name};
use crate::clock::Timestamp;
use crate::log::chunk::{Places, Read};
use crate::log::record::Record;
use crate::log::segment::Segment;
use crate::log::shelf::Shelf;
use crate::message::Message;
use crate::queue::durable::keep_apart;
use crate::store::{Limit, Row, StoreError};
use std::sync::Arc;

/// No further record is read at once when those read have so many bytes.
const PORTION_BYTES: usize = 4 << 20;

/// Why records could not be read.
pub(in crate::log) type ReadError = StoreError;

/// Whether it was no more than the file's being closed with the broker.
pub(in crate::log) fn is_end_of_file(error: &ReadError) -> bool {
    matches!(error, StoreError::Closed)
}

impl<T: Send + Sync + 'static> Shelf<T> {
    /// Reads the records of a chunk, or as many of the first of them as are to be in memory at once. `None` if one has to
    /// look again where they are.
    pub(in crate::log) fn fetch(
        &self,
        partition: usize,
        places: Places,
    ) -> Result<Option<Arc<Segment<T>>>, StoreError> {
        let Some(file) = &self.partition(partition).on_file else { return Ok(None) };
        let stream = file.filed.stream;
        let limit = Limit { items: self.limits.segment, bytes: PORTION_BYTES };
        let (rows, cut) = {
            let reader = file.depot().store.reader()?;
            let rows = reader.read_within(stream, places.base..places.end, limit)?;
            let next = rows.last().map_or(places.end, |row| row.seq + 1);
            let more = next < places.end && reader.stride(stream, next..places.end, 1)?.is_some();
            (rows, more.then_some(next))
        };
        let n = rows.len();
        let segment = self.segment_of(file, partition, places.base, rows)?;
        let undecodable = (n - segment.len()) as u64;
        Ok(self.partition(partition).take_in(places, &Read { segment: Arc::new(segment), undecodable, cut }))
    }

    fn segment_of(
        &self,
        file: &OnFile<T>,
        partition: usize,
        base: u64,
        rows: Vec<Row>,
    ) -> Result<Segment<T>, StoreError> {
        let (mut records, mut trouble) = (Vec::with_capacity(rows.len()), Vec::new());
        let (mut bytes, mut latest) = (0, Timestamp::default());
        for row in rows {
            match self.record_of_row(file, &row) {
                Ok(mut message) => {
                    // As they were given, unless somebody else has put it there.
                    latest = latest.max(message.published_at);
                    message.published_at = latest;
                    bytes += if self.limits.bytes < u64::MAX { self.size_of(&message) } else { 0 };
                    records.push((row.seq, message));
                }
                Err(error) => trouble.push((row, error)),
            }
        }
        // Whatever happens, it is dropped as it has to be.
        let segment = Segment::restored(base, records, bytes);
        trouble.into_iter().try_for_each(|(row, error)| self.put_apart(file, partition, &row, error))?;
        Ok(segment)
    }

    pub(super) fn record_of_row(&self, file: &OnFile<T>, row: &Row) -> Result<Message<T>, String> {
        let mut message = file.filed.message(&row.item)?;
        self.make_record(&mut message);
        Ok(message)
    }

    /// A record that cannot be decoded is kept elsewhere in the file, once, whoever comes across it.
    pub(super) fn put_apart(
        &self,
        file: &OnFile<T>,
        partition: usize,
        row: &Row,
        error: String,
    ) -> Result<(), StoreError> {
        let here = self.partition(partition);
        if !here.put_apart(row.seq) {
            return Ok(());
        }
        let apart = (&*self.name, stream_name(&self.name, partition));
        let kept = keep_apart(&self.runtime, &file.depot().store, (file.filed.stream, row), apart, error);
        kept.inspect_err(|_| here.not_apart(row.seq))
    }

    /// The first record from this offset on and nothing else, if it is before the end of these places.
    pub(in crate::log) fn fetch_one(
        &self,
        partition: usize,
        offset: u64,
        places: Places,
    ) -> Result<Option<Record<T>>, StoreError> {
        let Some(file) = &self.partition(partition).on_file else { return Ok(None) };
        let mut from = offset.max(places.base);
        loop {
            let one = Limit::items(1);
            let row = file.depot().store.reader()?.read_within(file.filed.stream, from..places.end, one)?.pop();
            let Some(row) = row else { return Ok(None) };
            match self.record_of_row(file, &row) {
                Ok(message) => {
                    let segment = Arc::new(Segment::restored(row.seq, vec![(row.seq, message)], 0));
                    return Ok(Some(Record::new(segment, 0, partition, 1)));
                }
                Err(error) => self.put_apart(file, partition, &row, error)?,
            }
            from = row.seq + 1;
        }
    }

    /// The offset of the first record of that time or later, which may be only in the file.
    pub(in crate::log) fn offset_at(&self, partition: usize, time: Timestamp) -> Result<u64, StoreError> {
        let here = self.partition(partition);
        let (offset, earlier) = here.offset_at(time);
        let Some(file) = here.on_file.as_ref().filter(|_| earlier) else { return Ok(offset) };
        let found = file.depot().store.reader()?.find_time(file.filed.stream, time.0)?;
        Ok(found.map_or(offset, |found| found.min(offset)).max(here.range().0))
    }
}
