//! The statements a commit consists of, prepared once.

use super::brief::Plain;
use super::error::StoreError;
use super::item::{Change, Item, Row, from_column, headers_from_text, headers_to_text, seq_of_row, to_column};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Statement, ToSql};

pub(super) const INSERT: &str =
    "INSERT INTO postroom_item VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";

/// Which of the columns that may be `NULL` have a value bound to them from the row before. Binding nothing over
/// nothing can be left out, and most rows have nothing in any of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound([bool; 5]);

impl Default for Bound {
    /// Nothing is known.
    fn default() -> Self {
        Self([true; 5])
    }
}

/// Binds an item to [`INSERT`].
pub(super) fn bind_item(insert: &mut Statement<'_>, bound: &mut Bound, row: i64, item: &Item) -> rusqlite::Result<()> {
    bind_plain_part(insert, row, &Plain::part_of(item))?;
    insert.raw_bind_parameter(4, item.attempts)?;
    let [due, expires, key, headers, extra] = &mut bound.0;
    bind_optional(insert, due, 5, item.due_at.map(to_column))?;
    bind_optional(insert, expires, 6, item.expires_at.map(to_column))?;
    bind_optional(insert, key, 9, item.key.as_deref())?;
    bind_optional(insert, headers, 11, headers_to_text(&item.headers))?;
    bind_optional(insert, extra, 12, item.extra.as_deref())
}

/// The same for an item about which nothing else is to be said.
pub(super) fn bind_plain(
    insert: &mut Statement<'_>,
    bound: &mut Bound,
    row: i64,
    item: &Plain<'_>,
) -> rusqlite::Result<()> {
    bind_plain_part(insert, row, item)?;
    insert.raw_bind_parameter(4, 0)?;
    let columns = [5, 6, 9, 11, 12];
    bound.0.iter_mut().zip(columns).try_for_each(|(bound, column)| bind_optional(insert, bound, column, None::<i64>))
}

fn bind_plain_part(insert: &mut Statement<'_>, row: i64, item: &Plain<'_>) -> rusqlite::Result<()> {
    insert.raw_bind_parameter(1, row)?;
    insert.raw_bind_parameter(2, item.id.cast_signed())?;
    insert.raw_bind_parameter(3, to_column(item.published_at))?;
    insert.raw_bind_parameter(7, item.priority)?;
    insert.raw_bind_parameter(8, item.schema)?;
    insert.raw_bind_parameter(10, item.routing_key)?;
    insert.raw_bind_parameter(13, item.payload)
}

fn bind_optional(
    insert: &mut Statement<'_>,
    bound: &mut bool,
    column: usize,
    value: Option<impl ToSql>,
) -> rusqlite::Result<()> {
    let has_value = value.is_some();
    if has_value || *bound {
        insert.raw_bind_parameter(column, value)?;
    }
    *bound = has_value;
    Ok(())
}

/// What [`to_row`] reads.
pub(super) const COLUMNS: &str = "id, message, published_at, attempts, due_at, expires_at, priority, schema, key, routing_key, headers, extra, payload";

pub(super) fn to_row(row: &rusqlite::Row<'_>) -> Result<Row, StoreError> {
    let headers = row.get_ref(10)?;
    let headers = headers.as_str_or_null().map_err(rusqlite::Error::from)?;
    let item = Item {
        id: row.get::<_, i64>(1)?.cast_unsigned(),
        published_at: from_column(row.get(2)?),
        attempts: row.get(3)?,
        due_at: row.get::<_, Option<i64>>(4)?.map(from_column),
        expires_at: row.get::<_, Option<i64>>(5)?.map(from_column),
        priority: row.get(6)?,
        schema: row.get(7)?,
        key: row.get(8)?,
        routing_key: row.get(9)?,
        headers: headers_from_text(headers)?,
        extra: row.get(11)?,
        payload: row.get(12)?,
    };
    Ok(Row { seq: seq_of_row(row.get(0)?), item, damaged: None })
}

pub(super) struct Statements<'c> {
    pub(super) begin: Statement<'c>,
    pub(super) commit: Statement<'c>,
    pub(super) data_version: Statement<'c>,
    pub(super) streams: Statement<'c>,
    pub(super) save_stream: Statement<'c>,
    pub(super) insert: Statement<'c>,
    pub(super) delete: Statement<'c>,
    pub(super) delete_range: Statement<'c>,
    pub(super) update: Statement<'c>,
    pub(super) relocate: Statement<'c>,
    pub(super) mark: Statement<'c>,
    pub(super) unmark: Statement<'c>,
    pub(super) touch: Statement<'c>,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let prepare = |sql: &str| connection.prepare(sql);
        const CHANGES: &str = "attempts = coalesce(?3, attempts), due_at = CASE ?4 WHEN 1 THEN ?5 ELSE due_at END, \
             expires_at = CASE ?6 WHEN 1 THEN ?7 ELSE expires_at END, extra = CASE ?8 WHEN 1 THEN ?9 ELSE extra END \
             WHERE id = ?1";
        Ok(Self {
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            data_version: prepare("PRAGMA data_version")?,
            streams: prepare("SELECT id, next, count FROM postroom_stream")?,
            save_stream: prepare("UPDATE postroom_stream SET next = ?2, count = ?3 WHERE id = ?1")?,
            insert: prepare(INSERT)?,
            delete: prepare("DELETE FROM postroom_item WHERE id = ?1")?,
            delete_range: prepare("DELETE FROM postroom_item WHERE id BETWEEN ?1 AND ?2")?,
            update: prepare(&format!("UPDATE postroom_item SET {CHANGES} AND ?2 IS NULL"))?,
            relocate: prepare(&format!("UPDATE postroom_item SET id = ?2, {CHANGES}"))?,
            mark: prepare(
                "INSERT INTO postroom_mark VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value",
            )?,
            unmark: prepare("DELETE FROM postroom_mark WHERE stream = ?1 AND name = ?2")?,
            touch: prepare(
                "INSERT INTO postroom_meta VALUES ('syncs', 1) ON CONFLICT DO UPDATE SET value = value + 1",
            )?,
        })
    }
}

/// Changes the item at `row`, which moves to another row if `to` says so; answers how many there were.
pub(super) fn change(
    statement: &mut Statement<'_>,
    row: i64,
    to: Option<i64>,
    change: &Change,
) -> rusqlite::Result<usize> {
    statement.raw_bind_parameter(1, row)?;
    statement.raw_bind_parameter(2, to)?;
    statement.raw_bind_parameter(3, change.attempts)?;
    statement.raw_bind_parameter(4, change.due_at.is_some())?;
    statement.raw_bind_parameter(5, change.due_at.flatten().map(to_column))?;
    statement.raw_bind_parameter(6, change.expires_at.is_some())?;
    statement.raw_bind_parameter(7, change.expires_at.flatten().map(to_column))?;
    statement.raw_bind_parameter(8, change.extra.is_some())?;
    statement.raw_bind_parameter(9, Bytes(change.extra.as_ref().and_then(Option::as_deref)))?;
    statement.raw_execute()
}

/// Bytes, or `NULL`.
struct Bytes<'a>(Option<&'a [u8]>);

impl ToSql for Bytes<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Some(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            None => ToSqlOutput::Owned(Value::Null),
        })
    }
}
