//! From a pile of batches to one transaction.

use super::batch::Op;
use super::brief::Plain;
use super::error::StoreError;
use super::inbox::{Entry, Pile};
use super::item::{Change, Item, MAX_STREAMS, Seq, StreamId};
use super::options::Durability;
use super::pack::{Crowd, FEWEST};
use super::packs::Packs;
use super::statements::{Bound, Statements, bind_item, bind_plain, change};
use rusqlite::{Connection, ErrorCode, Statement};
use std::collections::{BTreeMap, btree_map};
use std::ops::Range;

/// The writer's side of the file: its statements, and what it knows of the streams.
pub(super) struct Committer<'c> {
    connection: &'c Connection,
    sql: Statements<'c>,
    packs: Packs<'c>,
    /// By number.
    streams: Vec<Option<Stream>>,
    /// Numbers of streams that this transaction has changed.
    dirty: Vec<usize>,
    /// Rows to delete, gathered so that neighbours go in one statement.
    doomed: Vec<i64>,
    bound: Bound,
    data_version: Option<i64>,
    synchronous: Option<Durability>,
    /// Something was written since the last sync.
    unsynced: bool,
    pub(super) inserted: u64,
    pub(super) deleted: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    next: Seq,
    count: u64,
    /// `next` as of the last commit.
    known: Seq,
    dirty: bool,
}

/// What is kept back of each stream.
type Crowds<'p> = BTreeMap<usize, Crowd<'p>>;

/// What became of one batch of a commit that succeeded.
pub(super) type Outcome = Result<Range<usize>, StoreError>;

/// Why a transaction could not be begun, or done.
pub(super) enum Failure {
    /// Another connection writes; nothing was tried.
    Locked(StoreError),
    /// It was begun, and is rolled back.
    RolledBack(StoreError),
}

/// Items another connection has inserted.
pub(super) type Arrival = (StreamId, Range<Seq>);

/// What comes of a transaction, in memory that the next one uses again.
#[derive(Default)]
pub(super) struct Results {
    /// The places of what was inserted.
    pub(super) seqs: Vec<Seq>,
    /// Which of them belong to which entry.
    pub(super) answers: Vec<Outcome>,
    /// What others inserted before.
    pub(super) arrivals: Vec<Arrival>,
}

impl<'c> Committer<'c> {
    pub(super) fn new(connection: &'c Connection) -> Result<Self, StoreError> {
        let mut committer = Self {
            connection,
            sql: Statements::prepare(connection)?,
            packs: Packs::prepare(connection)?,
            streams: Vec::new(),
            dirty: Vec::new(),
            doomed: Vec::new(),
            bound: Bound::default(),
            data_version: None,
            synchronous: None,
            unsynced: true,
            inserted: 0,
            deleted: 0,
        };
        committer.look(&mut Vec::new())?;
        Ok(committer)
    }

    /// One transaction for all of it.
    pub(super) fn commit(&mut self, pile: &Pile, durability: Durability, results: &mut Results) -> Result<(), Failure> {
        self.set_durability(durability).map_err(Failure::RolledBack)?;
        self.begin()?;
        let before = (self.inserted, self.deleted);
        let done = self.fill(pile, durability, results);
        match done.and_then(|()| Ok(self.sql.commit.raw_execute()?)) {
            Ok(_) => {
                self.committed(durability);
                Ok(())
            }
            Err(error) => {
                self.roll_back();
                (self.inserted, self.deleted) = before;
                Err(Failure::RolledBack(error))
            }
        }
    }

    fn begin(&mut self) -> Result<(), Failure> {
        match self.sql.begin.raw_execute() {
            Ok(_) => Ok(()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                Err(Failure::Locked(error.into()))
            }
            Err(error) => Err(Failure::RolledBack(error.into())),
        }
    }

    /// Takes effect from the next transaction on.
    fn set_durability(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.synchronous != Some(durability) {
            let mode = match durability {
                Durability::Buffered => "NORMAL",
                Durability::Sync => "FULL",
            };
            self.synchronous = None;
            self.connection.pragma_update(None, "synchronous", mode)?;
            self.synchronous = Some(durability);
        }
        Ok(())
    }

    fn fill(&mut self, pile: &Pile, durability: Durability, results: &mut Results) -> Result<(), StoreError> {
        let Results { seqs, answers, arrivals } = results;
        let before = self.connection.total_changes();
        self.look(arrivals)?;
        self.packs.forget_read();
        pile.deletions.iter().for_each(|&(stream, seq)| self.doom(stream, seq));
        let mut crowds = Crowds::new();
        for entry in &pile.entries {
            answers.push(match self.refusal(entry) {
                Some(error) => Err(error),
                None => {
                    let first = seqs.len();
                    for op in entry.batch().ops() {
                        self.apply(op, seqs, &mut crowds)?;
                    }
                    Ok(first..seqs.len())
                }
            });
        }
        self.catch_up(&mut crowds)?;
        self.save_streams()?;
        let wrote = self.connection.total_changes() != before;
        self.unsynced |= wrote;
        // A commit without content writes nothing and syncs nothing, but what was written earlier may need it.
        if durability == Durability::Sync && !wrote && self.unsynced {
            self.sql.touch.raw_execute()?;
        }
        Ok(())
    }

    fn refusal(&self, entry: &Entry) -> Option<StoreError> {
        let streams = || entry.batch().ops().iter().flat_map(Op::streams);
        let missing = streams().find(|&stream| self.stream(stream).is_none());
        missing
            .map(StoreError::UnknownStream)
            .or_else(|| entry.batch().check().err())
            .or_else(|| self.no_number_left(entry))
    }

    /// A new stream has no number left to take.
    fn no_number_left(&self, entry: &Entry) -> Option<StoreError> {
        let mut names = entry.batch().ops().iter().filter_map(|op| match op {
            Op::Declare { kind, name, .. } => Some((kind, name)),
            _ => None,
        });
        let sql = "SELECT 1 FROM postroom_stream WHERE kind = ? AND name = ?";
        let is_new = |name| self.connection.query_row(sql, name, |_| Ok(())).is_err();
        names
            .any(|name| self.free_number().is_none() && is_new(name))
            .then_some(StoreError::TooManyStreams(MAX_STREAMS))
    }

    fn free_number(&self) -> Option<usize> {
        (1..=MAX_STREAMS).find(|&id| self.streams.get(id).is_none_or(Option::is_none))
    }

    fn stream(&self, stream: StreamId) -> Option<&Stream> {
        self.streams.get(stream.index())?.as_ref()
    }

    /// The stream, about to be changed. A removal earlier in the same commit makes it unknown.
    fn stream_mut(&mut self, index: usize) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(index)?.as_mut()?;
        if !std::mem::replace(&mut stream.dirty, true) {
            self.dirty.push(index);
        }
        Some(stream)
    }

    fn apply<'p>(&mut self, op: &'p Op, seqs: &mut Vec<Seq>, crowds: &mut Crowds<'p>) -> Result<(), StoreError> {
        match op {
            Op::Insert(stream, item) => {
                let seq = self.take_place_for_one(*stream)?;
                match Plain::of(item) {
                    Some(plain) => self.gather(stream.row(seq), plain, crowds)?,
                    None => self.insert(stream.row(seq), item)?,
                }
                seqs.push(seq);
            }
            Op::InsertBrief(stream, brief) => {
                let seq = self.take_place_for_one(*stream)?;
                self.gather(stream.row(seq), brief.as_plain(), crowds)?;
                seqs.push(seq);
            }
            Op::Delete(stream, seq) => self.doom(*stream, *seq),
            Op::Update(stream, seq, what) => {
                self.catch_up(crowds)?;
                self.change(stream.row(*seq), None, what)?;
            }
            Op::Move { from, seq, to, change: what } => {
                self.catch_up(crowds)?;
                let place = self.take_place(*to)?;
                let moved = self.change(from.row(*seq), Some(to.row(place)), what)?;
                self.inserted += moved as u64;
                self.grow(to.index(), moved);
                self.shrink(from.index(), moved);
                seqs.push(place);
            }
            Op::Trim(stream, seq) => {
                if let Some(last) = seq.checked_sub(1) {
                    self.catch_up(crowds)?;
                    self.delete_range(stream.row(0), stream.row(last))?;
                }
            }
            Op::DeleteRange(stream, seqs) => {
                // As with a single one: only what has been given.
                let next = self.stream(*stream).map_or(0, |stream| stream.next);
                if let Some(last) = seqs.end.min(next).checked_sub(1).filter(|last| seqs.start <= *last) {
                    self.catch_up(crowds)?;
                    self.delete_range(stream.row(seqs.start), stream.row(last))?;
                }
            }
            Op::LiveMark(stream, name, number) => {
                run(&mut self.sql.mark, (stream.get(), name, number.taken().to_string().into_bytes()))?;
            }
            Op::Mark(stream, name, value) => {
                run(&mut self.sql.mark, (stream.get(), name, value))?;
            }
            Op::Unmark(stream, name) => {
                run(&mut self.sql.unmark, (stream.get(), name))?;
            }
            Op::Settings(stream, settings) => {
                let sql = "UPDATE postroom_stream SET settings = ?2 WHERE id = ?1";
                self.connection.execute(sql, (stream.get(), settings))?;
            }
            Op::Declare { kind, name, settings } => seqs.push(self.declare(kind, name, settings)?),
            Op::Remove(stream) => {
                self.catch_up(crowds)?;
                self.remove(*stream)?;
            }
        }
        Ok(())
    }

    /// Keeps an item back for a moment, in case its neighbours come too.
    fn gather<'p>(&mut self, row: i64, item: Plain<'p>, crowds: &mut Crowds<'p>) -> Result<(), StoreError> {
        if !Crowd::suits(&item) {
            return self.insert_plain(row, &item);
        }
        match crowds.entry(StreamId::of_row(row)) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(Crowd::of_one(row, item))),
            btree_map::Entry::Occupied(mut entry) => {
                if !entry.get_mut().takes(row, item) {
                    let full = entry.insert(Crowd::of_one(row, item));
                    self.insert_crowd(&full)?;
                }
            }
        }
        Ok(())
    }

    fn insert_crowd(&mut self, crowd: &Crowd<'_>) -> Result<(), StoreError> {
        if crowd.items.len() >= FEWEST {
            return self.packs.insert(crowd);
        }
        (crowd.first..).zip(&crowd.items).try_for_each(|(row, item)| self.insert_plain(row, item))
    }

    fn insert_plain(&mut self, row: i64, item: &Plain<'_>) -> Result<(), StoreError> {
        bind_plain(&mut self.sql.insert, &mut self.bound, row, item)?;
        self.sql.insert.raw_execute()?;
        Ok(())
    }

    fn insert(&mut self, row: i64, item: &Item) -> Result<(), StoreError> {
        bind_item(&mut self.sql.insert, &mut self.bound, row, item)?;
        self.sql.insert.raw_execute()?;
        Ok(())
    }

    /// Writes what was kept back: first what came, then what went.
    fn catch_up(&mut self, crowds: &mut Crowds<'_>) -> Result<(), StoreError> {
        std::mem::take(crowds).values().try_for_each(|crowd| self.insert_crowd(crowd))?;
        self.delete_doomed()
    }

    /// Changes an item, which moves to another row if `to` says so; answers how many there were.
    fn change(&mut self, row: i64, to: Option<i64>, what: &Change) -> Result<usize, StoreError> {
        let statement = if to.is_some() { &mut self.sql.relocate } else { &mut self.sql.update };
        let changed = change(statement, row, to, what)?;
        if changed > 0 {
            return Ok(changed);
        }
        let Some(mut item) = self.packs.take_out(row)? else { return Ok(0) };
        what.apply(&mut item);
        self.insert(to.unwrap_or(row), &item)?;
        Ok(1)
    }

    fn take_place(&mut self, stream: StreamId) -> Result<Seq, StoreError> {
        let found = self.stream_mut(stream.index()).ok_or(StoreError::UnknownStream(stream))?;
        let seq = found.next;
        found.next += 1;
        Ok(seq)
    }

    /// For an item that is inserted there, which is counted.
    fn take_place_for_one(&mut self, stream: StreamId) -> Result<Seq, StoreError> {
        let seq = self.take_place(stream)?;
        self.inserted += 1;
        self.grow(stream.index(), 1);
        Ok(seq)
    }

    fn grow(&mut self, stream: usize, by: usize) {
        if let Some(stream) = self.stream_mut(stream) {
            stream.count += by as u64;
        }
    }

    fn shrink(&mut self, stream: usize, by: usize) {
        self.deleted += by as u64;
        if by > 0
            && let Some(stream) = self.stream_mut(stream)
        {
            stream.count = stream.count.saturating_sub(by as u64);
        }
    }

    /// Gathers it for deletion. A place not given yet must not lose what a later insertion puts there.
    fn doom(&mut self, stream: StreamId, seq: Seq) {
        if self.stream(stream).is_some_and(|stream| seq < stream.next) {
            self.doomed.push(stream.row(seq));
        }
    }

    /// Deletes what was gathered: of a pack with one statement, of rows runs of neighbours with one each.
    fn delete_doomed(&mut self) -> Result<(), StoreError> {
        if self.doomed.is_empty() {
            return Ok(());
        }
        let mut doomed = std::mem::take(&mut self.doomed);
        doomed.sort_unstable();
        doomed.dedup();
        for of_stream in doomed.chunk_by(|a, b| StreamId::of_row(*a) == StreamId::of_row(*b)) {
            self.delete_from(of_stream)?;
        }
        doomed.clear();
        self.doomed = doomed;
        Ok(())
    }

    /// These items of one stream, in order.
    fn delete_from(&mut self, mut doomed: &[i64]) -> Result<(), StoreError> {
        while let Some(&first) = doomed.first() {
            let Some(pack) = self.packs.at_or_after(first)? else { return self.delete_rows(doomed) };
            let (before, rest) = doomed.split_at(doomed.partition_point(|&row| row < pack.first));
            let (inside, behind) = rest.split_at(rest.partition_point(|&row| row <= pack.last()));
            self.delete_rows(before)?;
            let (there, taken_out): (Vec<_>, Vec<_>) = inside.iter().partition(|row| pack.has(**row));
            self.delete_rows(&taken_out)?;
            self.packs.remove(pack, &there)?;
            self.shrink(StreamId::of_row(first), there.len());
            doomed = behind;
        }
        Ok(())
    }

    fn delete_rows(&mut self, doomed: &[i64]) -> Result<(), StoreError> {
        for run_of in doomed.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (run_of[0], run_of[run_of.len() - 1]);
            let gone = if first == last {
                run(&mut self.sql.delete, (first,))?
            } else {
                run(&mut self.sql.delete_range, (first, last))?
            };
            self.shrink(StreamId::of_row(first), gone);
        }
        Ok(())
    }

    /// All there is between these rows of one stream.
    fn delete_range(&mut self, first: i64, last: i64) -> Result<(), StoreError> {
        let mut gone = run(&mut self.sql.delete_range, (first, last))?;
        let mut from = first;
        while from <= last
            && let Some(pack) = self.packs.at_or_after(from)?
            && pack.first <= last
        {
            from = pack.last() + 1;
            let there: Vec<i64> = pack.left().filter(|row| (first..=last).contains(row)).collect();
            gone += there.len();
            self.packs.remove(pack, &there)?;
        }
        self.shrink(StreamId::of_row(first), gone);
        Ok(())
    }

    /// The number of the stream of that name, which is made if there is none; its settings are replaced.
    fn declare(&mut self, kind: &str, name: &str, settings: &str) -> Result<Seq, StoreError> {
        let sql = "INSERT INTO postroom_stream (id, kind, name, settings) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (kind, name) DO UPDATE SET settings = excluded.settings RETURNING id, next, count";
        let id = self.free_number().map_or(0, usize::cast_signed);
        let mut declare = self.connection.prepare_cached(sql)?;
        let declared = declare.query_row((id, kind, name, settings), read_stream)?;
        let (index, stream) = declared.ok_or(StoreError::TooManyStreams(MAX_STREAMS))?;
        // What is known already may be ahead of the row.
        if self.streams.get(index).copied().flatten().is_none() {
            self.learn(index, stream);
        }
        Ok(index as u64)
    }

    fn remove(&mut self, stream: StreamId) -> Result<(), StoreError> {
        self.delete_range(stream.row(0), stream.last_row())?;
        self.packs.forget_read();
        self.connection.execute("DELETE FROM postroom_mark WHERE stream = ?", (stream.get(),))?;
        self.connection.execute("DELETE FROM postroom_stream WHERE id = ?", (stream.get(),))?;
        self.streams[stream.index()] = None;
        Ok(())
    }

    fn save_streams(&mut self) -> Result<(), StoreError> {
        for &index in &self.dirty {
            if let Some(stream) = &self.streams[index] {
                let (next, count) = (stream.next.cast_signed(), stream.count.cast_signed());
                run(&mut self.sql.save_stream, (index.cast_signed(), next, count))?;
            }
        }
        Ok(())
    }

    fn committed(&mut self, durability: Durability) {
        for index in self.dirty.drain(..) {
            if let Some(stream) = self.streams[index].as_mut() {
                stream.known = stream.next;
                stream.dirty = false;
            }
        }
        self.unsynced &= durability != Durability::Sync;
    }

    /// Some failures roll back by themselves.
    fn roll_back(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.doomed.clear();
        self.dirty.clear();
        self.bound = Bound::default();
        self.data_version = None;
    }

    /// Reads the streams anew if another connection has committed something, and says what it inserted.
    pub(super) fn look(&mut self, arrivals: &mut Vec<Arrival>) -> Result<(), StoreError> {
        let version = {
            let mut rows = self.sql.data_version.raw_query();
            let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            row.get(0)?
        };
        if self.data_version == Some(version) {
            return Ok(());
        }
        let mut found = Vec::new();
        {
            let mut rows = self.sql.streams.raw_query();
            while let Some(row) = rows.next()? {
                found.extend(read_stream(row)?);
            }
        }
        let old = std::mem::take(&mut self.streams);
        for (index, stream) in found {
            let known = old.get(index).copied().flatten().map(|old| old.known);
            if let Some(known) = known
                && known < stream.next
                && let Some(id) = StreamId::from_row(index.cast_signed() as i64)
            {
                arrivals.push((id, known..stream.next));
            }
            self.learn(index, stream);
        }
        self.data_version = Some(version);
        Ok(())
    }

    fn learn(&mut self, index: usize, stream: Stream) {
        if self.streams.len() <= index {
            self.streams.resize(index + 1, None);
        }
        self.streams[index] = Some(stream);
    }
}

/// `None` for a number that cannot be one.
fn read_stream(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<(usize, Stream)>> {
    let (id, next, count): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let next = u64::try_from(next).unwrap_or(0);
    let stream = Stream { next, count: u64::try_from(count).unwrap_or(0), known: next, dirty: false };
    Ok(StreamId::from_row(id).map(|id| (id.index(), stream)))
}

fn run(statement: &mut Statement<'_>, parameters: impl rusqlite::Params) -> rusqlite::Result<usize> {
    statement.execute(parameters)
}
