use super::{NOW_US, classified};
use crate::outbox::envelope::{Envelope, Micros, Row, message_id, micros};
use crate::outbox::error::OutboxError;
use crate::outbox::table::{DEAD, DONE, ENVELOPE, Lease, PRUNE_AT_ONCE, Table, WAITING, checked_number};
use postgres::types::{ToSql, Type};
use postgres::{Client, GenericClient};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A relay's connection.
///
/// Ids are given when a row is inserted and become visible when it is committed, so a higher one may be seen
/// before a lower one. That is why rows are found by their state and never by "greater than the last one": a
/// row that becomes visible late is late, not skipped.
pub(super) struct PostgresTable {
    client: Client,
    name: Arc<str>,
    number: i64,
}

type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

impl PostgresTable {
    pub(super) fn new(client: Client, name: Arc<str>) -> Self {
        Self { client, name, number: 0 }
    }

    /// The number that tells its messages from other tables'.
    pub(super) fn number(client: &mut impl GenericClient, name: &str) -> Result<i64, OutboxError> {
        let found = client.query_typed(&format!("SELECT version, number FROM {name}_version"), &[]);
        let found = found.map_err(|error| classified(name, "check version", error))?;
        checked_number(name, found.first().map(|row| (row.get(0), row.get(1))))
    }

    fn query(
        &mut self,
        operation: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<postgres::Row>, OutboxError> {
        self.client.query_typed(sql, params).map_err(|error| classified(&self.name, operation, error))
    }
}

impl Table for PostgresTable {
    fn check(&mut self) -> Result<(), OutboxError> {
        self.number = Self::number(&mut self.client, &self.name)?;
        Ok(())
    }

    fn lease(&mut self, topic: &str, owner: &str, length: Duration) -> Result<Lease, OutboxError> {
        let name = Arc::clone(&self.name);
        let length = micros(length);
        let take = format!(
            "INSERT INTO {name}_relay AS r (topic, owner, term, until_us, length_us) VALUES ($1, $2, 1, {NOW_US} + $3, $3)
             ON CONFLICT (topic) DO UPDATE SET term = r.term + (r.owner <> excluded.owner)::int, owner = excluded.owner,
                 until_us = excluded.until_us, length_us = excluded.length_us
             WHERE r.owner = excluded.owner OR r.until_us <= {NOW_US} OR r.until_us > {NOW_US} + 2 * r.length_us
             RETURNING term"
        );
        let taken = self.query("lease", &take, &[(&topic, Type::TEXT), (&owner, Type::TEXT), (&length, Type::INT8)])?;
        if let Some(row) = taken.first() {
            return Ok(Lease::Held { term: row.get(0) });
        }
        let left = format!("SELECT until_us - {NOW_US} FROM {name}_relay WHERE topic = $1");
        let left = self.query("lease", &left, &[(&topic, Type::TEXT)])?;
        let left: i64 = left.first().map_or(0, |row| row.get(0));
        Ok(Lease::Taken(Duration::from_micros(left.max(0) as u64)))
    }

    fn release(&mut self, owner: &str) -> Result<(), OutboxError> {
        let sql = format!("UPDATE {}_relay SET owner = '', until_us = 0 WHERE owner = $1", self.name);
        self.query("release lease", &sql, &[(&owner, Type::TEXT)]).map(drop)
    }

    fn fetch(&mut self, topic: &str, held: &BTreeSet<i64>, limit: usize) -> Result<Vec<Row>, OutboxError> {
        let held: Vec<i64> = held.iter().copied().collect();
        let sql = format!(
            "SELECT id, {ENVELOPE} FROM {}
             WHERE topic = $1 AND state = {WAITING} AND id <> ALL($2) ORDER BY id LIMIT $3",
            self.name
        );
        let limit = limit as i64;
        let rows =
            self.query("fetch", &sql, &[(&topic, Type::TEXT), (&held, Type::INT8_ARRAY), (&limit, Type::INT8)])?;
        Ok(rows.iter().map(|row| read(row, self.number)).collect())
    }

    fn done(&mut self, rows: &[i64], delete: bool) -> Result<(), OutboxError> {
        let name = &self.name;
        let sql = if delete {
            format!("DELETE FROM {name} WHERE id = ANY($1)")
        } else {
            format!("UPDATE {name} SET state = {DONE}, ended_us = {NOW_US}, reason = NULL WHERE id = ANY($1)")
        };
        self.query("mark done", &sql, &[(&rows, Type::INT8_ARRAY)]).map(drop)
    }

    fn dead(&mut self, rows: &[(i64, String)]) -> Result<(), OutboxError> {
        let (ids, reasons): (Vec<i64>, Vec<String>) =
            rows.iter().map(|(id, reason)| (*id, reason.replace('\0', "\u{fffd}"))).unzip();
        let sql = format!(
            "UPDATE {} AS t SET state = {DEAD}, ended_us = {NOW_US}, reason = given.reason
             FROM unnest($1, $2) AS given (id, reason) WHERE t.id = given.id AND t.state = {WAITING}",
            self.name
        );
        self.query("mark dead", &sql, &[(&ids, Type::INT8_ARRAY), (&reasons, Type::TEXT_ARRAY)]).map(drop)
    }

    fn prune(&mut self, age: Duration) -> Result<bool, OutboxError> {
        let sql = format!(
            "DELETE FROM {name} WHERE id IN
                 (SELECT id FROM {name} WHERE state = {DONE} AND ended_us < {NOW_US} - $1 LIMIT {PRUNE_AT_ONCE})
             RETURNING 1",
            name = self.name
        );
        let deleted = self.query("prune", &sql, &[(&micros(age), Type::INT8)])?;
        Ok(deleted.len() == PRUNE_AT_ONCE)
    }

    /// Looking costs as much as asking whether to look.
    fn has_changed(&mut self) -> Result<bool, OutboxError> {
        Ok(true)
    }

    fn nudge(&mut self) {
        // If that fails, the listener finds out by itself.
        let _ = self.query("wake", "SELECT pg_notify($1, '')", &[(&&*self.name.clone(), Type::TEXT)]);
    }
}

fn read(row: &postgres::Row, number: i64) -> Row {
    let id = row.get(0);
    let envelope = Envelope {
        topic: row.get(1),
        routing_key: row.get(2),
        ordering_key: row.get(3),
        headers: row.get(4),
        priority: row.get(5),
        codec: row.get(6),
        payload: row.get(7),
        created: Micros(row.get(8)),
        deliver_at: row.get::<_, Option<i64>>(9).map(Micros),
        ttl: row.get(10),
    };
    Row { id, message_id: message_id(number, id), envelope: Ok(envelope) }
}
