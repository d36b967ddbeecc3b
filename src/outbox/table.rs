//! What the tables look like in every database, and what a relay needs of one.

use crate::outbox::envelope::{Micros, Row};
use crate::outbox::error::OutboxError;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// The version of the tables that this code reads and writes.
pub(crate) const VERSION: i64 = 1;

/// States of a row.
pub(crate) const WAITING: i16 = 0;
pub(crate) const DONE: i16 = 1;
pub(crate) const DEAD: i16 = 2;

/// The columns of an [`Envelope`](crate::outbox::envelope::Envelope), in the order of its fields.
pub(crate) const ENVELOPE: &str =
    "topic, routing_key, ordering_key, headers, priority, codec, payload, created_us, deliver_us, ttl_us";

/// The columns of a [`DeadRow`], in the order of its fields.
pub(crate) const SHOWN: &str = "id, topic, routing_key, ordering_key, payload, reason, created_us, ended_us";

/// So many rows are deleted in one transaction, so that others need not wait for long.
pub(crate) const PRUNE_AT_ONCE: usize = 1000;

/// What a database calls the kinds of its columns.
pub(crate) struct Kinds {
    /// A number that it gives itself, upwards.
    pub(crate) id: &'static str,
    /// 64 bits.
    pub(crate) long: &'static str,
    /// 16 bits.
    pub(crate) short: &'static str,
    pub(crate) bytes: &'static str,
}

/// The statements that create an outbox's tables, but for the one row of `{table}_version`.
pub(crate) fn ddl(table: &str, kinds: &Kinds) -> String {
    let index = without_schema(table);
    let Kinds { id, long, short, bytes } = kinds;
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (
    id {id},
    topic TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    ordering_key TEXT,
    headers TEXT, -- a JSON object
    priority {short} NOT NULL,
    codec TEXT NOT NULL,
    payload {bytes} NOT NULL,
    created_us {long} NOT NULL, -- microseconds since 1970, as all times here
    deliver_us {long},
    ttl_us {long},
    state {short} NOT NULL DEFAULT {WAITING}, -- {WAITING} waiting, {DONE} done, {DEAD} dead
    ended_us {long},
    reason TEXT
);
CREATE INDEX IF NOT EXISTS {index}_waiting ON {table} (topic, id) WHERE state = {WAITING};
CREATE INDEX IF NOT EXISTS {index}_ended ON {table} (state, ended_us) WHERE state <> {WAITING};
CREATE TABLE IF NOT EXISTS {table}_relay ( -- who publishes, by topic
    topic TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    term {long} NOT NULL,
    until_us {long} NOT NULL,
    length_us {long} NOT NULL
);
CREATE TABLE IF NOT EXISTS {table}_version (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version {long} NOT NULL,
    number {long} NOT NULL -- makes the ids of its messages different from other tables'
);
"
    )
}

/// An index lies in its table's schema and is named without it.
pub(crate) fn without_schema(table: &str) -> &str {
    table.split_once('.').map_or(table, |(_, name)| name)
}

/// The number that tells a table's messages from other tables', out of the version and number found in it.
pub(crate) fn checked_number(table: &str, found: Option<(i64, i64)>) -> Result<i64, OutboxError> {
    let (table, operation) = (table.to_owned(), "check version");
    match found {
        Some((VERSION, number)) => Ok(number),
        Some((found, _)) => Err(OutboxError::Version { table, operation, found, expected: VERSION }),
        None => Err(OutboxError::Missing { table, operation }),
    }
}

/// Why a put has inserted nothing, by what came of a look at the table's number.
pub(crate) fn not_put(table: &str, number: Result<i64, OutboxError>) -> OutboxError {
    number.err().unwrap_or_else(|| OutboxError::Missing { table: table.to_owned(), operation: "put" })
}

/// An open connection to an outbox's tables.
pub(crate) trait Table: Send {
    /// Whether the tables are there and of this version.
    fn check(&mut self) -> Result<(), OutboxError>;

    /// Takes or prolongs the right to publish the rows of a topic.
    fn lease(&mut self, topic: &str, owner: &str, length: Duration) -> Result<Lease, OutboxError>;

    fn release(&mut self, owner: &str) -> Result<(), OutboxError>;

    /// Up to `limit` waiting rows of a topic but those in `held`, in the order of their ids.
    fn fetch(&mut self, topic: &str, held: &BTreeSet<i64>, limit: usize) -> Result<Vec<Row>, OutboxError>;

    /// Marks rows as done, or deletes them.
    fn done(&mut self, rows: &[i64], delete: bool) -> Result<(), OutboxError>;

    /// Marks rows as dead, with the reason.
    fn dead(&mut self, rows: &[(i64, String)]) -> Result<(), OutboxError>;

    /// Deletes some rows that were done longer ago than `age`; whether there may be more.
    fn prune(&mut self, age: Duration) -> Result<bool, OutboxError>;

    /// Whether anything has been committed by others since it was last asked; `true` if that cannot be told.
    fn has_changed(&mut self) -> Result<bool, OutboxError>;

    /// Has the thread that listens for commits look up.
    fn nudge(&mut self) {}
}

/// Who may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// The one who asked. The term is another one whenever somebody else had it in between.
    Held { term: i64 },
    /// Somebody else, for this long yet.
    Taken(Duration),
}

/// A row that was given up on; see `SqliteOutbox::dead` and `PostgresOutbox::dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadRow {
    /// The row's id.
    pub id: i64,
    /// The topic it was to be published to.
    pub topic: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its ordering key.
    pub key: Option<String>,
    /// Its payload, as the codec wrote it.
    pub payload: Vec<u8>,
    /// Why it was given up on.
    pub reason: String,
    /// When it was put.
    pub created_at: SystemTime,
    /// When it was given up on.
    pub dead_at: SystemTime,
}

/// What a table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OutboxStats {
    /// Rows that have not been handled yet.
    pub waiting: u64,
    /// Rows that have been, and are kept for a while.
    pub done: u64,
    /// Rows that were given up on.
    pub dead: u64,
    /// When the oldest waiting row was put.
    pub oldest_waiting: Option<SystemTime>,
}

impl OutboxStats {
    pub(crate) fn add(&mut self, state: i16, rows: u64, oldest: Micros) {
        match state {
            WAITING => (self.waiting, self.oldest_waiting) = (rows, Some(oldest.to_system_time())),
            DONE => self.done = rows,
            _ => self.dead = rows,
        }
    }
}
