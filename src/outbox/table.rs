//! What a relay needs of a database.

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
