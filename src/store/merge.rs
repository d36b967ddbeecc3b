//! Rows and packs, read as the one sequence of items that they are.

use super::error::StoreError;
use super::item::{Row, StreamId, from_column, seq_of_row};
use super::pack::{Head, Pack};
use super::reader::{Limit, Priority};
use super::statements::to_row;
use rusqlite::{CachedStatement, Connection, Params, Rows, params};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range, RangeInclusive};

/// Rows of one stream, the first and the last of them.
pub(super) type Span = RangeInclusive<i64>;

/// Finds the packs that may have items of rows `?1` to `?2`; the first of them may begin before that, in the stream that
/// begins with row `?3`.
fn packs_within<'c>(connection: &'c Connection, columns: &str) -> rusqlite::Result<CachedStatement<'c>> {
    connection.prepare_cached(&format!(
        "SELECT {columns} FROM {} WHERE p.id BETWEEN \
         coalesce((SELECT max(id) FROM postroom_pack WHERE id BETWEEN ?3 AND ?1), ?1) AND ?2 ORDER BY p.id",
        Head::FROM
    ))
}

fn bounds(span: &Span) -> (i64, i64, i64) {
    (*span.start(), *span.end(), StreamId::rows_around(*span.start()).0)
}

type Reads<R> = fn(&rusqlite::Row<'_>) -> Result<R, StoreError>;

/// What becomes of a damaged pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damaged {
    /// It is an error.
    Fails,
    /// Its items are [shown as such](Row::damaged).
    Shows,
}

/// Items of packs, in order; those of some priorities only, if any are named.
struct Packed<'s> {
    rows: Rows<'s>,
    span: Span,
    priorities: Option<Range<u16>>,
    damaged: Damaged,
    open: Option<Pack>,
    /// Rows that are left of it, the next one last.
    left: Vec<i64>,
}

impl Packed<'_> {
    /// The row of the next item.
    fn peek(&mut self) -> Result<Option<i64>, StoreError> {
        while self.left.is_empty() {
            let Some(row) = self.rows.next()? else { return Ok(None) };
            let pack: Reads<Pack> = match self.damaged {
                Damaged::Fails => Pack::from_row,
                Damaged::Shows => Pack::salvaged,
            };
            let head = Head::from_row(row)?;
            let asked_for = |row: &i64| self.span.contains(row);
            let priority = match self.damaged {
                Damaged::Fails => row.get::<_, u16>(Pack::PRIORITY)?,
                Damaged::Shows => row.get::<_, u8>(Pack::PRIORITY).unwrap_or_default().into(),
            };
            if self.priorities.as_ref().is_none_or(|asked| asked.contains(&priority))
                && head.left().any(|row| asked_for(&row))
            {
                self.left.extend(head.left().filter(asked_for).rev());
                self.open = Some(pack(row)?);
            }
        }
        Ok(self.left.last().copied())
    }

    fn next(&mut self) -> Option<Row> {
        let (row, pack) = (self.left.pop()?, self.open.as_ref()?);
        pack.row(row)
    }
}

/// What `sql` finds within the span, and what packs have there.
pub(super) fn items(
    connection: &Connection,
    (sql, parameters): (&str, impl Params),
    (span, priorities): (Span, Option<Range<u16>>),
    (limit, damaged): (Limit, Damaged),
) -> Result<Vec<Row>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut next_row = || rows.next().map_err(StoreError::from)?.map(to_row).transpose();
    let mut packs = packs_within(connection, Pack::COLUMNS)?;
    let rows_of_packs = packs.query(bounds(&span))?;
    let mut packed = Packed { rows: rows_of_packs, span, priorities, damaged, open: None, left: Vec::new() };

    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut single: Option<Row> = None;
    let mut singles_left = true;
    while found.len() < limit.items && (bytes < limit.bytes || found.is_empty()) {
        if single.is_none() && singles_left {
            single = next_row()?;
            singles_left = single.is_some();
        }
        let is_packed = match (&single, packed.peek()?) {
            (None, None) => break,
            (Some(single), Some(row)) => seq_of_row(row) < single.seq,
            (single, _) => single.is_none(),
        };
        let row = if is_packed { packed.next() } else { single.take() };
        let Some(row) = row else { break };
        bytes += row.item.bytes();
        found.push(row);
    }
    Ok(found)
}

/// Tells of each pack that has items there, in order, until `tell` has heard enough.
fn each_head(
    connection: &Connection,
    span: &Span,
    mut tell: impl FnMut(&Head) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let mut statement = packs_within(connection, Head::COLUMNS)?;
    let mut rows = statement.query(bounds(span))?;
    while let Some(row) = rows.next()? {
        let head = Head::from_row(row)?;
        if head.left().any(|row| span.contains(&row)) && tell(&head)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// How many items there are, counting no further than to `most`, and the row of the last one counted.
pub(super) fn stride(connection: &Connection, span: &Span, most: usize) -> Result<Option<(u64, i64)>, StoreError> {
    let mut rows: Vec<i64> = Vec::new();
    each_head(connection, span, |head| {
        rows.extend(head.left().filter(|row| span.contains(row)));
        Ok(if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    if rows.is_empty() {
        let sql = "SELECT count(*), max(id) FROM \
                   (SELECT id FROM postroom_item WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3)";
        let look = params![span.start(), span.end(), limit];
        let found = connection.prepare_cached(sql)?.query_row(look, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (count, last): (i64, Option<i64>) = found;
        return Ok(last.map(|last| (from_column(count), last)));
    }
    let sql = "SELECT id FROM postroom_item WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let singles = statement.query_map(params![span.start(), span.end(), limit], |row| row.get(0))?;
    rows.extend(singles.collect::<Result<Vec<i64>, _>>()?);
    rows.sort_unstable();
    rows.truncate(most);
    Ok(rows.last().map(|&last| (rows.len() as u64, last)))
}

/// Rows of the first item and of the last one.
pub(super) fn ends(connection: &Connection, span: &Span) -> Result<Option<(i64, i64)>, StoreError> {
    let one = |sql: &str| -> rusqlite::Result<Option<i64>> {
        connection.prepare_cached(sql)?.query_row((span.start(), span.end()), |row| row.get(0))
    };
    let pack = |order: &str| -> Result<Option<Head>, StoreError> {
        let sql = format!(
            "SELECT {} FROM {} WHERE p.id BETWEEN ?1 AND ?2 ORDER BY p.id {order} LIMIT 1",
            Head::COLUMNS,
            Head::FROM
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query((span.start(), span.end()))?;
        rows.next()?.map(Head::from_row).transpose()
    };
    let first = one("SELECT min(id) FROM postroom_item WHERE id BETWEEN ?1 AND ?2")?;
    let last = one("SELECT max(id) FROM postroom_item WHERE id BETWEEN ?1 AND ?2")?;
    let first = first.into_iter().chain(pack("ASC")?.and_then(|head| head.left().next())).min();
    let last = last.into_iter().chain(pack("DESC")?.and_then(|head| head.left().next_back())).max();
    Ok(first.zip(last))
}

/// Bytes of the payloads of packs.
pub(super) fn packed_bytes(connection: &Connection, span: &Span) -> Result<u64, StoreError> {
    let mut whole = connection.prepare_cached("SELECT length(payload) FROM postroom_pack WHERE id = ?1")?;
    let mut statement = packs_within(connection, Pack::COLUMNS)?;
    let mut bytes = 0;
    each_head(connection, span, |head| {
        if !head.is_noted && span.contains(&head.first) && span.contains(&head.last()) {
            bytes += whole.query_row((head.first,), |row| row.get::<_, i64>(0)).map(from_column)?;
        } else if let Some(row) = statement.query(bounds(&(head.first..=head.first)))?.next()? {
            let pack = Pack::from_row(row)?;
            bytes += head.left().filter(|row| span.contains(row)).map(|row| pack.bytes(row)).sum::<u64>();
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(bytes)
}

/// Adds the items of packs, by priority.
pub(super) fn count_packed(
    connection: &Connection,
    span: &Span,
    counts: &mut BTreeMap<u8, Priority>,
) -> Result<(), StoreError> {
    let mut statement = packs_within(connection, Pack::HEAD_AND_PRIORITY)?;
    let mut rows = statement.query(bounds(span))?;
    while let Some(row) = rows.next()? {
        let (head, priority) = (Head::from_row(row)?, row.get(3).unwrap_or_default());
        let mut left = head.left().filter(|row| span.contains(row)).map(seq_of_row);
        let Some(first) = left.next() else { continue };
        let last = left.next_back().unwrap_or(first);
        let count = head.left().filter(|row| span.contains(row)).count() as u64;
        let all = counts.entry(priority).or_insert(Priority { priority, count: 0, first, last });
        *all = Priority { priority, count: all.count + count, first: all.first.min(first), last: all.last.max(last) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::random::Random;
    use crate::store::{Batch, Change, Durability, Item, Limit, Options, Overdue, Reader, Seq, Store, StreamId};
    use std::collections::BTreeMap;

    type Model = BTreeMap<Seq, Item>;

    /// Crowds and single ones, of which some are deleted, some changed.
    fn filled(store: &Store, stream: StreamId, rng: &mut Random) -> Model {
        let mut model = Model::new();
        for _ in 0..8 {
            let mut batch = Batch::new();
            let (crowd, priority) = (1 + rng.below(19), rng.below(3) as u8);
            let items: Vec<Item> = (0..crowd)
                .map(|n| Item {
                    id: n,
                    published_at: model.len() as u64 * 10,
                    priority,
                    payload: vec![7; 3],
                    ..Item::default()
                })
                .collect();
            for item in &items {
                batch = batch.insert(stream, item.clone());
            }
            let places = store.commit(batch, Durability::Buffered).unwrap();
            model.extend(places.iter().copied().zip(items));
            let mut batch = Batch::new();
            for _ in 0..rng.below(8) {
                let seq = rng.below(model.keys().next_back().map_or(0, |last| last + 2));
                if rng.below(2) == 0 {
                    model.remove(&seq);
                    batch = batch.delete(stream, seq);
                } else {
                    model.get_mut(&seq).into_iter().for_each(|item| item.attempts = 5);
                    batch = batch.update(stream, seq, Change::new().attempts(5));
                }
            }
            store.commit(batch, Durability::Buffered).unwrap();
        }
        model
    }

    fn compare(reader: &Reader<'_>, stream: StreamId, model: &Model, rng: &mut Random) {
        let end = model.keys().next_back().map_or(0, |last| last + 3);
        assert_eq!(reader.last(stream).unwrap(), model.keys().next_back().copied());
        for _ in 0..20 {
            let (from, most) = (rng.below(end), 1 + rng.below(39) as usize);
            let seqs = from..from + rng.below(end - from + 1);
            let within = reader.read_within(stream, seqs.clone(), Limit::items(most)).unwrap();
            let asked: Vec<_> = model.range(seqs.clone()).take(most).collect();
            assert!(within.iter().map(|row| (&row.seq, &row.item)).eq(asked.iter().copied()), "{seqs:?}");
            let stride = asked.last().map(|(seq, _)| (asked.len() as u64, **seq));
            assert_eq!(reader.stride(stream, seqs.clone(), most).unwrap(), stride, "{seqs:?}, {most}");
            assert_eq!(reader.published_at(stream, from).unwrap(), model.get(&from).map(|item| item.published_at));

            let priorities = 1..1 + rng.below(3) as u16;
            let places = from..=from + rng.below(end - from + 1);
            let level = reader
                .read_level(stream, places.clone(), (&priorities, Overdue::default()), Limit::items(most))
                .unwrap();
            let asked = model.range(places).filter(|(_, item)| priorities.contains(&item.priority.into()));
            assert!(level.iter().map(|row| (&row.seq, &row.item)).eq(asked.take(most)));
        }
        let mut counts: BTreeMap<u8, (u64, Seq, Seq)> = BTreeMap::new();
        for (&seq, item) in model {
            let count = counts.entry(item.priority).or_insert((0, seq, seq));
            *count = (count.0 + 1, count.1, seq);
        }
        let found = reader.count_by_priority(stream, None).unwrap();
        assert!(found.iter().map(|p| (p.priority, (p.count, p.first, p.last))).eq(counts));
    }

    #[test]
    fn whether_items_share_a_row_shows_in_no_answer() {
        let folder = std::env::temp_dir().join(format!("postroom-merge-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = Store::open(folder.join("store.db"), Options::new()).unwrap();
        for seed in 0..40 {
            let mut rng = Random::new(seed);
            let stream = store.declare("queue", &seed.to_string(), "").unwrap();
            let model = filled(&store, stream, &mut rng);
            compare(&store.reader().unwrap(), stream, &model, &mut rng);
        }
        let packs = "SELECT count(*) FROM postroom_pack";
        let packs: i64 = store.reader().unwrap().sql().query_row(packs, [], |row| row.get(0)).unwrap();
        assert!(packs > 40, "{packs} packs");
        store.close().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
