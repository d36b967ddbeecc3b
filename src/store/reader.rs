//! Reading while the writer writes.

use super::error::StoreError;
use super::item::{Row, Seq, StreamId, StreamInfo, from_column, seq_of_row, to_column};
use super::merge::{self, Damaged, Span};
use super::options::Options;
use super::schema;
use super::statements::{COLUMNS, to_row};
use crate::sync::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

/// How much to read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// At most so many items.
    pub items: usize,
    /// No further item once those read have so many bytes; a larger one still comes alone.
    pub bytes: usize,
}

impl Limit {
    /// So many items, of any size.
    #[must_use]
    pub fn items(items: usize) -> Self {
        Self { items, bytes: usize::MAX }
    }

    /// The same with a limit of bytes.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

/// How many items have a priority, and between which places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Priority {
    pub(crate) priority: u8,
    pub(crate) count: u64,
    pub(crate) first: Seq,
    pub(crate) last: Seq,
}

/// What is due by then and stands before that place, and has failed or has nothing else noted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Overdue {
    pub(crate) until: u64,
    pub(crate) before: Seq,
}

/// How many, and how many of them are due.
pub(crate) struct Known {
    pub(crate) all: u64,
    pub(crate) due: u64,
}

/// Where a message is that has failed, and the key it was sent with.
pub(crate) struct FailedKey {
    pub(crate) place: Seq,
    pub(crate) due: u64,
    pub(crate) key: Option<String>,
    /// Something is noted of it that was asked for.
    pub(crate) is_noted: bool,
}

/// Connections that are not being read with.
pub(super) struct Readers {
    path: PathBuf,
    options: Options,
    spare: Mutex<Spare>,
}

#[derive(Default)]
struct Spare {
    connections: Vec<Connection>,
    closed: bool,
}

/// More than this many reading at once open connections of their own.
const SPARES: usize = 4;

impl Readers {
    pub(super) fn new(path: PathBuf, options: Options) -> Self {
        Self { path, options, spare: Mutex::new(Spare::default()) }
    }

    pub(super) fn take(&self) -> Result<Reader<'_>, StoreError> {
        let mut spare = self.spare.lock();
        if spare.closed {
            return Err(StoreError::Closed);
        }
        let connection = spare.connections.pop();
        drop(spare);
        let connection = match connection {
            Some(connection) => connection,
            None => self.open()?,
        };
        Ok(Reader { readers: Some(self), connection: Some(connection), damaged: Damaged::Fails })
    }

    fn open(&self) -> Result<Connection, StoreError> {
        let connection = schema::connect(&self.path, &self.options, self.options.cache_bytes / 4)?;
        connection.pragma_update(None, "query_only", true)?;
        // The writer moves the log's content, when it thinks fit.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut spare = self.spare.lock();
        if !spare.closed && spare.connections.len() < SPARES {
            spare.connections.push(connection);
            return;
        }
        drop(spare);
        drop(connection);
    }

    pub(super) fn close(&self) {
        let mut spare = self.spare.lock();
        spare.closed = true;
        let connections = std::mem::take(&mut spare.connections);
        drop(spare);
        drop(connections);
    }
}

/// Reads what is committed, without waiting for the writer or holding it up. Each call sees the file as it is at
/// that moment; [`consistent`](Self::consistent) makes several see the same moment.
pub struct Reader<'a> {
    /// Who gets the connection back.
    readers: Option<&'a Readers>,
    connection: Option<Connection>,
    damaged: Damaged,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some((readers, connection)) = self.readers.zip(self.connection.take())
            && connection.is_autocommit()
        {
            readers.give_back(connection);
        }
    }
}

impl Reader<'_> {
    /// With a connection of its own.
    pub(super) fn alone(connection: Connection) -> Self {
        Self { readers: None, connection: Some(connection), damaged: Damaged::Fails }
    }

    /// For who can do something with [what is damaged](Row::damaged).
    pub(crate) fn with_damaged(mut self) -> Self {
        self.damaged = Damaged::Shows;
        self
    }

    /// Several reads of one moment. The log cannot be emptied while `reads` runs, so let it be short.
    ///
    /// # Errors
    ///
    /// What `reads` says, and if the file cannot be read.
    pub fn consistent<R>(&self, reads: impl FnOnce(&Self) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let transaction = self.sql().unchecked_transaction()?;
        let result = reads(self);
        drop(transaction);
        result
    }

    /// The connection, for questions of your own; it refuses to change anything.
    #[must_use]
    pub fn sql(&self) -> &Connection {
        self.connection.as_ref().expect("taken only when dropped")
    }

    /// Items from place `from` on, in order, resting ones included.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is damaged.
    pub fn read(&self, stream: StreamId, from: Seq, limit: Limit) -> Result<Vec<Row>, StoreError> {
        self.read_within(stream, from..Seq::MAX, limit)
    }

    /// The same of these places only.
    pub(crate) fn read_within(&self, stream: StreamId, seqs: Range<Seq>, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let Some(span) = span(stream, &seqs) else { return Ok(Vec::new()) };
        let sql = format!("SELECT {COLUMNS} FROM postroom_item WHERE id BETWEEN ?1 AND ?2 ORDER BY id");
        self.merged(&sql, (*span.start(), *span.end()), (span, None), limit)
    }

    /// How many items there are within these places, counting no further than to `most`, and the place of the last one
    /// that was counted. Reads no items.
    pub(crate) fn stride(
        &self,
        stream: StreamId,
        seqs: Range<Seq>,
        most: usize,
    ) -> Result<Option<(u64, Seq)>, StoreError> {
        let Some(span) = span(stream, &seqs) else { return Ok(None) };
        let found = self.at_one_moment(|| merge::stride(self.sql(), &span, most))?;
        Ok(found.map(|(count, last)| (count, seq_of_row(last))))
    }

    /// The place of the last item.
    pub(crate) fn last(&self, stream: StreamId) -> Result<Option<Seq>, StoreError> {
        Ok(self.ends(stream)?.map(|(_, last)| last))
    }

    fn ends(&self, stream: StreamId) -> Result<Option<(Seq, Seq)>, StoreError> {
        let ends = self.at_one_moment(|| merge::ends(self.sql(), &(stream.row(0)..=stream.last_row())))?;
        Ok(ends.map(|(first, last)| (seq_of_row(first), seq_of_row(last))))
    }

    /// When the item was published, if it is there.
    pub(crate) fn published_at(&self, stream: StreamId, seq: Seq) -> Result<Option<u64>, StoreError> {
        Ok(self.get(stream, seq)?.map(|row| row.item.published_at))
    }

    /// The same without those that rest until a time of theirs ([`Item::due_at`](super::Item::due_at)), even if
    /// that is past. Passing them over costs little, but not nothing: a tenth of a microsecond each.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_ready(&self, stream: StreamId, from: Seq, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM postroom_item WHERE id BETWEEN ?1 AND ?2 AND due_at IS NULL ORDER BY id");
        let span = stream.row(from)..=stream.last_row();
        self.merged(&sql, (*span.start(), *span.end()), (span, None), limit)
    }

    /// Those that rest until `until` at the latest: by that time, then by place. To read on after a full answer,
    /// ask [`read_due_after`](Self::read_due_after) with its last.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_due(&self, stream: StreamId, until: u64, limit: Limit) -> Result<Vec<Row>, StoreError> {
        self.read_due_after(stream, None, until, limit)
    }

    /// The same behind the item that rests until `after.0` at place `after.1`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_due_after(
        &self,
        stream: StreamId,
        after: Option<(u64, Seq)>,
        until: u64,
        limit: Limit,
    ) -> Result<Vec<Row>, StoreError> {
        self.due_after(stream, after, until, limit, "")
    }

    /// The same of those that have been attempted before, and of which more is noted.
    pub(crate) fn read_failed_after(
        &self,
        stream: StreamId,
        after: Option<(u64, Seq)>,
        until: u64,
        limit: Limit,
    ) -> Result<Vec<Row>, StoreError> {
        self.due_after(stream, after, until, limit, "AND attempts > 0 AND extra IS NOT NULL")
    }

    fn due_after(
        &self,
        stream: StreamId,
        after: Option<(u64, Seq)>,
        until: u64,
        limit: Limit,
        and: &str,
    ) -> Result<Vec<Row>, StoreError> {
        let select =
            format!("SELECT {COLUMNS} FROM postroom_item INDEXED BY postroom_item_due WHERE id >> 48 = ?1 {and}");
        let (due, row) = after.map_or((i64::MIN, 0), |(due, seq)| (to_column(due), stream.row(seq)));
        // Two questions, since a pair would be looked for by its first half alone.
        let same = format!("{select} AND due_at = ?2 AND id > ?3 AND due_at <= ?4 ORDER BY due_at, id");
        let mut found = self.rows(&same, params![stream.get(), due, row, to_column(until)], limit)?;
        let bytes: usize = found.iter().map(|row| row.item.bytes()).sum();
        if found.len() < limit.items && (bytes < limit.bytes || found.is_empty()) {
            let left = Limit { items: limit.items - found.len(), bytes: limit.bytes - bytes };
            let later = format!("{select} AND due_at > ?2 AND due_at <= ?3 ORDER BY due_at, id");
            found.extend(self.rows(&later, params![stream.get(), due, to_column(until)], left)?);
        }
        Ok(found)
    }

    /// Of [`read_ready`](Self::read_ready) those with such a priority; with these that are overdue.
    pub(crate) fn read_level(
        &self,
        stream: StreamId,
        places: RangeInclusive<Seq>,
        (priorities, overdue): (&Range<u16>, Overdue),
        limit: Limit,
    ) -> Result<Vec<Row>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM postroom_item WHERE id BETWEEN ?1 AND ?2 AND priority >= ?3 AND priority < ?4 \
             AND (due_at IS NULL OR due_at <= ?5 AND id < ?6 AND (extra IS NULL OR attempts > 0)) ORDER BY id"
        );
        let span = stream.row(*places.start())..=stream.row(*places.end());
        let Overdue { until, before } = overdue;
        let (until, before) = (to_column(until), stream.row(before));
        let parameters = params![span.start(), span.end(), priorities.start, priorities.end, until, before];
        self.merged(&sql, parameters, (span.clone(), Some(priorities.clone())), limit)
    }

    /// How many rest until no time, by their priority; with those that are overdue at `until`, if that is given, and have
    /// failed or have nothing else noted. Looks at every item, though not at its payload.
    pub(crate) fn count_by_priority(&self, stream: StreamId, until: Option<u64>) -> Result<Vec<Priority>, StoreError> {
        let sql = "SELECT priority, count(*), min(id), max(id) FROM postroom_item WHERE id BETWEEN ?1 AND ?2 \
                   AND (due_at IS NULL OR due_at <= ?3 AND (extra IS NULL OR attempts > 0)) GROUP BY priority";
        let span = stream.row(0)..=stream.last_row();
        let counts = self.at_one_moment(|| {
            let mut statement = self.sql().prepare_cached(sql)?;
            let rows = statement.query_map(params![span.start(), span.end(), until.map(to_column)], |row| {
                let (count, first, last) = (from_column(row.get(1)?), seq_of_row(row.get(2)?), seq_of_row(row.get(3)?));
                let priority = row.get(0)?;
                Ok((priority, Priority { priority, count, first, last }))
            })?;
            let mut counts = rows.collect::<Result<_, _>>()?;
            merge::count_packed(self.sql(), &span, &mut counts)?;
            Ok(counts)
        })?;
        Ok(counts.into_values().collect())
    }

    /// Those that rest and of which [`Item::extra`](super::Item::extra) says something, by place. Looks at no others.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_noted(&self, stream: StreamId, from: Seq, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM postroom_item INDEXED BY postroom_item_noted WHERE id BETWEEN ?1 AND ?2 \
             AND due_at IS NOT NULL AND extra IS NOT NULL ORDER BY id"
        );
        self.rows(&sql, params![stream.row(from), stream.last_row()], limit)
    }

    /// Of [`read_noted`](Self::read_noted) those that have not been attempted.
    pub(crate) fn read_known(&self, stream: StreamId, from: Seq, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM postroom_item INDEXED BY postroom_item_known WHERE id BETWEEN ?1 AND ?2 \
             AND due_at IS NOT NULL AND extra IS NOT NULL AND attempts = 0 ORDER BY id"
        );
        self.rows(&sql, params![stream.row(from), stream.last_row()], limit)
    }

    /// Of [`read_noted`](Self::read_noted) those that have been attempted, as rows.
    pub(crate) fn read_failed(&self, stream: StreamId, from: Seq, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM postroom_item INDEXED BY postroom_item_noted WHERE id BETWEEN ?1 AND ?2 \
             AND due_at IS NOT NULL AND extra IS NOT NULL AND attempts > 0 ORDER BY id"
        );
        self.rows(&sql, params![stream.row(from), stream.last_row()], limit)
    }

    /// Of those the places, times and keys, and whether what is noted has this in it; at most `limit`.
    pub(crate) fn failed_keys(
        &self,
        stream: StreamId,
        from: Seq,
        noted: &[u8],
        limit: usize,
    ) -> Result<Vec<FailedKey>, StoreError> {
        let sql = "SELECT id, due_at, key, instr(extra, ?3) > 0 FROM postroom_item INDEXED BY postroom_item_noted \
                   WHERE id BETWEEN ?1 AND ?2 AND due_at IS NOT NULL AND extra IS NOT NULL AND attempts > 0 \
                   ORDER BY id LIMIT ?4";
        let mut statement = self.sql().prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![stream.row(from), stream.last_row(), noted, limit], |row| {
            let (place, due) = (seq_of_row(row.get(0)?), from_column(row.get(1)?));
            Ok(FailedKey { place, due, key: row.get(2)?, is_noted: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many there are of [`read_known`](Self::read_known).
    pub(crate) fn count_known(&self, stream: StreamId, until: u64) -> Result<Known, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(due_at <= ?3), 0) FROM postroom_item INDEXED BY postroom_item_known \
                   WHERE id BETWEEN ?1 AND ?2 AND due_at IS NOT NULL AND extra IS NOT NULL AND attempts = 0";
        let mut statement = self.sql().prepare_cached(sql)?;
        let values = params![stream.row(0), stream.last_row(), to_column(until)];
        let known =
            |row: &rusqlite::Row<'_>| Ok(Known { all: from_column(row.get(0)?), due: from_column(row.get(1)?) });
        Ok(statement.query_row(values, known)?)
    }

    /// Times and places of those that rest until `until` at the latest, behind `after`, and of which nothing else is
    /// noted, or that stand before `attempted_before` and have been attempted, and whether more is noted: by that time,
    /// then by place; at most `limit`.
    pub(crate) fn due_places(
        &self,
        stream: StreamId,
        after: Option<(u64, Seq)>,
        until: u64,
        attempted_before: Seq,
        limit: usize,
    ) -> Result<Vec<(u64, Seq, bool)>, StoreError> {
        // As in `read_due_after`.
        let (due, row) = after.map_or((i64::MIN, 0), |(due, seq)| (to_column(due), stream.row(seq)));
        let ends = ["due_at = ?2 AND id > ?3", "due_at > ?2 AND ?3 NOT NULL"];
        let mut found = Vec::new();
        for end in ends {
            let sql = format!(
                "SELECT due_at, id, extra IS NOT NULL FROM postroom_item INDEXED BY postroom_item_due WHERE id >> 48 = ?1 AND {end} \
                 AND due_at <= ?4 AND (extra IS NULL OR id < ?6 AND attempts > 0) ORDER BY due_at, id LIMIT ?5"
            );
            let mut statement = self.sql().prepare_cached(&sql)?;
            let left = i64::try_from(limit - found.len()).unwrap_or(i64::MAX);
            let values = params![stream.get(), due, row, to_column(until), left, stream.row(attempted_before)];
            let places = statement
                .query_map(values, |row| Ok((from_column(row.get(0)?), seq_of_row(row.get(1)?), row.get(2)?)))?;
            found.extend(places.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// When the first of those is due that rest beyond `time`.
    pub(crate) fn next_due_after(&self, stream: StreamId, time: u64) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT min(due_at) FROM postroom_item INDEXED BY postroom_item_due \
                   WHERE id >> 48 = ?1 AND due_at > ?2";
        Ok(self.number(sql, params![stream.get(), to_column(time)])?.map(from_column))
    }

    /// How many rest until `until` at the latest. Reads no items, only the index of resting ones.
    pub(crate) fn count_due(&self, stream: StreamId, until: u64) -> Result<u64, StoreError> {
        let sql =
            "SELECT count(*) FROM postroom_item INDEXED BY postroom_item_due WHERE id >> 48 = ?1 AND due_at <= ?2";
        Ok(from_column(self.number(sql, params![stream.get(), to_column(until)])?.unwrap_or(0)))
    }

    /// When the first of those that rest is due.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn next_due(&self, stream: StreamId) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT min(due_at) FROM postroom_item INDEXED BY postroom_item_due \
                   WHERE id >> 48 = ?1 AND due_at IS NOT NULL";
        let due = self.number(sql, params![stream.get()])?;
        Ok(due.map(from_column))
    }

    /// How many rest. Reads no items, only the index of resting ones.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn count_resting(&self, stream: StreamId) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM postroom_item INDEXED BY postroom_item_due \
                   WHERE id >> 48 = ?1 AND due_at IS NOT NULL";
        Ok(from_column(self.number(sql, params![stream.get()])?.unwrap_or(0)))
    }

    /// One item, if it is there.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn get(&self, stream: StreamId, seq: Seq) -> Result<Option<Row>, StoreError> {
        Ok(self.read_within(stream, seq..seq.saturating_add(1), Limit::items(1))?.pop())
    }

    /// The place of the first item.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn first(&self, stream: StreamId) -> Result<Option<Seq>, StoreError> {
        Ok(self.ends(stream)?.map(|(first, _)| first))
    }

    /// The place of the first item published at `time` or later, in a stream whose items were published in
    /// order, as a log's are. Halves the range with each look, so it is quick however long the stream.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn find_time(&self, stream: StreamId, time: u64) -> Result<Option<Seq>, StoreError> {
        let at = |seq| -> Result<Option<(Seq, u64)>, StoreError> {
            let found = self.read(stream, seq, Limit::items(1))?.pop();
            Ok(found.map(|row| (row.seq, row.item.published_at)))
        };
        let Some((first, last)) = self.ends(stream)? else { return Ok(None) };
        let (mut low, mut high) = (first, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match at(middle)? {
                Some((seq, published)) if published < time => low = seq + 1,
                _ => high = middle,
            }
        }
        Ok(at(low)?.map(|(seq, _)| seq))
    }

    /// Bytes of the payloads within these places. Looks at every item there, though not at its payload.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn payload_bytes(&self, stream: StreamId, seqs: Range<Seq>) -> Result<u64, StoreError> {
        let Some(span) = span(stream, &seqs) else { return Ok(0) };
        let sql = "SELECT sum(length(payload)) FROM postroom_item WHERE id BETWEEN ?1 AND ?2";
        self.at_one_moment(|| {
            let single = self.number(sql, params![span.start(), span.end()])?;
            Ok(single.map_or(0, from_column) + merge::packed_bytes(self.sql(), &span)?)
        })
    }

    /// All streams, by number. Reads no items.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn streams(&self) -> Result<Vec<StreamInfo>, StoreError> {
        let sql = "SELECT id, kind, name, settings, next, count FROM postroom_stream ORDER BY id";
        let mut statement = self.sql().prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut streams = Vec::new();
        while let Some(row) = rows.next()? {
            streams.extend(to_info(row)?);
        }
        Ok(streams)
    }

    /// The stream of that name, if there is one.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn stream(&self, kind: &str, name: &str) -> Result<Option<StreamInfo>, StoreError> {
        let sql = "SELECT id, kind, name, settings, next, count FROM postroom_stream WHERE kind = ? AND name = ?";
        Ok(self.sql().prepare_cached(sql)?.query_row((kind, name), to_info).optional()?.flatten())
    }

    /// What the file says about one stream now, if there is one of that number. Reads no items, and no other stream.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn info(&self, stream: StreamId) -> Result<Option<StreamInfo>, StoreError> {
        let sql = "SELECT id, kind, name, settings, next, count FROM postroom_stream WHERE id = ?";
        Ok(self.sql().prepare_cached(sql)?.query_row((stream.get(),), to_info).optional()?.flatten())
    }

    /// What was noted under a name.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn mark(&self, stream: StreamId, name: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM postroom_mark WHERE stream = ? AND name = ?";
        let mut statement = self.sql().prepare_cached(sql)?;
        Ok(statement.query_row((stream.get(), name.as_ref()), |row| row.get(0)).optional()?)
    }

    /// Notes by name, behind `after` if there is one, at most `limit`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn marks(
        &self,
        stream: StreamId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let sql = "SELECT name, value FROM postroom_mark WHERE stream = ?1 AND (?2 IS NULL OR name > ?2) ORDER BY name LIMIT ?3";
        let mut statement = self.sql().prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![stream.get(), after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What `sql` finds, which are rows within the span, and what packs have there.
    fn merged(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        packs: (Span, Option<Range<u16>>),
        limit: Limit,
    ) -> Result<Vec<Row>, StoreError> {
        self.at_one_moment(|| merge::items(self.sql(), (sql, parameters), packs, (limit, self.damaged)))
    }

    /// An item may go from a pack to a row of its own between two questions.
    fn at_one_moment<R>(&self, reads: impl FnOnce() -> Result<R, StoreError>) -> Result<R, StoreError> {
        if self.sql().is_autocommit() { self.consistent(|_| reads()) } else { reads() }
    }

    fn rows(&self, sql: &str, parameters: impl rusqlite::Params, limit: Limit) -> Result<Vec<Row>, StoreError> {
        let mut statement = self.sql().prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while found.len() < limit.items && (bytes < limit.bytes || found.is_empty()) {
            let Some(row) = rows.next()? else { break };
            let row = to_row(row)?;
            bytes += row.item.bytes();
            found.push(row);
        }
        Ok(found)
    }

    fn number(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<Option<i64>, StoreError> {
        Ok(self.sql().prepare_cached(sql)?.query_row(parameters, |row| row.get(0))?)
    }
}

/// `None` if there is no place among these.
fn span(stream: StreamId, seqs: &Range<Seq>) -> Option<Span> {
    Some(stream.row(seqs.start)..=stream.row(seqs.end.checked_sub(1)?))
}

/// `None` for a number that cannot be one.
fn to_info(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<StreamInfo>> {
    let Some(id) = StreamId::from_row(row.get(0)?) else { return Ok(None) };
    Ok(Some(StreamInfo {
        id,
        kind: row.get(1)?,
        name: row.get(2)?,
        settings: row.get(3)?,
        next: from_column(row.get(4)?),
        count: from_column(row.get(5)?),
    }))
}
