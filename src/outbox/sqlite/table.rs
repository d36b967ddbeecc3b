use super::{all_or_none, classified};
use crate::outbox::envelope::{Envelope, Micros, Row, Unreadable, message_id, micros};
use crate::outbox::error::OutboxError;
use crate::outbox::table::{DEAD, DONE, ENVELOPE, Lease, PRUNE_AT_ONCE, Table, WAITING, checked_number};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A relay's connection.
pub(super) struct SqliteTable {
    connection: Connection,
    name: Arc<str>,
    /// The table's number, once it has been checked.
    number: i64,
    data_version: Option<i64>,
}

impl SqliteTable {
    pub(super) fn new(connection: Connection, name: Arc<str>) -> Self {
        Self { connection, name, number: 0, data_version: None }
    }

    /// Tells its messages from other tables'.
    pub(super) fn number(connection: &Connection, name: &str) -> Result<i64, OutboxError> {
        let sql = format!("SELECT version, number FROM {name}_version");
        let found = connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).optional();
        checked_number(name, found.map_err(|error| classified(name, "check version", error))?)
    }

    fn run<R>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&Connection, &str) -> rusqlite::Result<R>,
    ) -> Result<R, OutboxError> {
        work(&self.connection, &self.name).map_err(|error| classified(&self.name, operation, error))
    }

    fn write<R>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&Connection, &str) -> rusqlite::Result<R>,
    ) -> Result<R, OutboxError> {
        self.run(operation, |connection, name| all_or_none(connection, |connection| work(connection, name)))
    }
}

impl Table for SqliteTable {
    fn check(&mut self) -> Result<(), OutboxError> {
        self.number = Self::number(&self.connection, &self.name)?;
        Ok(())
    }

    fn lease(&mut self, topic: &str, owner: &str, length: Duration) -> Result<Lease, OutboxError> {
        self.write("lease", |connection, name| {
            let (now, length) = (Micros::now().0, micros(length));
            // A time that lies too far ahead was set by a clock that has been put back since.
            let mut take = connection.prepare_cached(&format!(
                "INSERT INTO {name}_relay AS r VALUES (?1, ?2, 1, ?3 + ?4, ?4)
                 ON CONFLICT (topic) DO UPDATE SET term = r.term + (r.owner <> excluded.owner), owner = excluded.owner,
                     until_us = excluded.until_us, length_us = excluded.length_us
                 WHERE r.owner = excluded.owner OR r.until_us <= ?3 OR r.until_us > ?3 + 2 * r.length_us
                 RETURNING term"
            ))?;
            let term = take.query_row(params![topic, owner, now, length], |row| row.get(0)).optional()?;
            if let Some(term) = term {
                return Ok(Lease::Held { term });
            }
            let mut held = connection.prepare_cached(&format!("SELECT until_us FROM {name}_relay WHERE topic = ?1"))?;
            let until: i64 = held.query_row([topic], |row| row.get(0))?;
            Ok(Lease::Taken(Duration::from_micros(until.saturating_sub(now).max(0) as u64)))
        })
    }

    fn release(&mut self, owner: &str) -> Result<(), OutboxError> {
        self.write("release lease", |connection, name| {
            let sql = format!("UPDATE {name}_relay SET owner = '', until_us = 0 WHERE owner = ?1");
            connection.execute(&sql, [owner]).map(drop)
        })
    }

    fn fetch(&mut self, topic: &str, held: &BTreeSet<i64>, limit: usize) -> Result<Vec<Row>, OutboxError> {
        let number = self.number;
        self.run("fetch", |connection, name| {
            // Ids first, from the index alone, so that the payloads of those held are not read again.
            let mut waiting = connection.prepare_cached(&format!(
                "SELECT id FROM {name} WHERE topic = ?1 AND state = {WAITING} ORDER BY id LIMIT ?2"
            ))?;
            let ids = waiting.query_map(params![topic, (held.len() + limit) as i64], |row| row.get(0))?;
            let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
            let sql = format!("SELECT id, {ENVELOPE} FROM {name} WHERE id = ?1 AND state = {WAITING}");
            let mut load = connection.prepare_cached(&sql)?;
            let fresh = ids.into_iter().filter(|id| !held.contains(id)).take(limit);
            let rows = fresh.map(|id| load.query_row([id], |row| read(row, number)).optional());
            rows.filter_map(Result::transpose).collect()
        })
    }

    fn done(&mut self, rows: &[i64], delete: bool) -> Result<(), OutboxError> {
        self.write("mark done", |connection, name| {
            if delete {
                let mut delete = connection.prepare_cached(&format!("DELETE FROM {name} WHERE id = ?1"))?;
                return rows.iter().try_for_each(|row| delete.execute([row]).map(drop));
            }
            let sql = format!("UPDATE {name} SET state = {DONE}, ended_us = ?2, reason = NULL WHERE id = ?1");
            let mut mark = connection.prepare_cached(&sql)?;
            let now = Micros::now().0;
            rows.iter().try_for_each(|row| mark.execute([*row, now]).map(drop))
        })
    }

    fn dead(&mut self, rows: &[(i64, String)]) -> Result<(), OutboxError> {
        self.write("mark dead", |connection, name| {
            let mut mark = connection.prepare_cached(&format!(
                "UPDATE {name} SET state = {DEAD}, ended_us = ?2, reason = ?3 WHERE id = ?1 AND state = {WAITING}"
            ))?;
            let now = Micros::now().0;
            rows.iter().try_for_each(|(row, reason)| mark.execute(params![row, now, reason]).map(drop))
        })
    }

    fn prune(&mut self, age: Duration) -> Result<bool, OutboxError> {
        self.write("prune", |connection, name| {
            let sql = format!(
                "DELETE FROM {name} WHERE id IN
                     (SELECT id FROM {name} WHERE state = {DONE} AND ended_us < ?1 LIMIT {PRUNE_AT_ONCE})"
            );
            let deleted = connection.prepare_cached(&sql)?.execute([Micros::now().before(age).0])?;
            Ok(deleted == PRUNE_AT_ONCE)
        })
    }

    fn has_changed(&mut self) -> Result<bool, OutboxError> {
        let version = self.run("look for commits", |connection, _| {
            connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
        })?;
        Ok(self.data_version.replace(version) != Some(version))
    }
}

fn read(row: &rusqlite::Row<'_>, number: i64) -> rusqlite::Result<Row> {
    let id = row.get(0)?;
    // SQLite keeps whatever it is given in any column.
    let envelope = read_envelope(row).map_err(|error| Unreadable(error.to_string()));
    Ok(Row { id, message_id: message_id(number, id), envelope })
}

fn read_envelope(row: &rusqlite::Row<'_>) -> rusqlite::Result<Envelope> {
    Ok(Envelope {
        topic: row.get(1)?,
        routing_key: row.get(2)?,
        ordering_key: row.get(3)?,
        headers: row.get(4)?,
        priority: row.get(5)?,
        codec: row.get(6)?,
        payload: bytes(row.get_ref(7)?)?,
        created: Micros(row.get(8)?),
        deliver_at: row.get::<_, Option<i64>>(9)?.map(Micros),
        ttl: row.get(10)?,
    })
}

/// Text as well, so that a row can be written by hand.
pub(super) fn bytes(value: ValueRef<'_>) -> rusqlite::Result<Vec<u8>> {
    value.as_bytes().map(<[u8]>::to_vec).map_err(Into::into)
}
