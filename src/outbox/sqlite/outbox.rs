use super::table::{SqliteTable, bytes};
use super::{all_or_none, classified};
use crate::broker::Broker;
use crate::codec::{Codec, Json};
use crate::message::{Message, MessageId};
use crate::name::Name;
use crate::outbox::envelope::{Envelope, Micros, message_id};
use crate::outbox::error::{OutboxError, checked_name};
use crate::outbox::relay::desk::{Bells, Call};
use crate::outbox::relay::{Connect, RelayBuilder};
use crate::outbox::table::{DEAD, DeadRow, ENVELOPE, Kinds, OutboxStats, SHOWN, Table, VERSION, WAITING, ddl, not_put};
use rusqlite::hooks::Action;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KINDS: Kinds =
    Kinds { id: "INTEGER PRIMARY KEY AUTOINCREMENT", long: "INTEGER", short: "INTEGER", bytes: "BLOB" };

/// An outbox in a SQLite database: messages are written by your own transaction, on your own connection, and
/// published once it has been committed.
///
/// ```
/// use postroom::rusqlite::Connection;
/// use postroom::{Broker, Message, Queue, SqliteOutbox, Topic, TopicName};
/// use std::time::Duration;
///
/// const USERS: TopicName<String> = TopicName::new("users");
///
/// # let directory = std::env::temp_dir().join(format!("postroom-doc-outbox-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("users.db");
/// let mut db = Connection::open(&path)?;
/// db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE user (name TEXT)")?;
/// let outbox = SqliteOutbox::new("outbox")?;
/// outbox.create_table(&db)?; // or run what `outbox.ddl()` prints
///
/// let broker = Broker::new();
/// let users = broker.topic(USERS).declare()?;
/// let billing: Queue<String> = broker.queue("billing").declare()?;
/// users.bind(&billing, "user.*")?;
/// let relay = outbox.relay(&broker, move || Connection::open(&path)).topic(&users).start()?;
/// outbox.watch(&db)?; // commits of this connection wake the relay at once
///
/// let tx = db.transaction()?;
/// tx.execute("INSERT INTO user VALUES ('ann')", [])?;
/// outbox.put(&tx, USERS, "user.created", Message::new("ann".to_owned()).with_key("ann"))?;
/// tx.commit()?; // both, or neither
///
/// let delivery = billing.recv_timeout(Duration::from_secs(5))?;
/// assert_eq!(delivery.payload(), "ann");
/// delivery.ack()?; // only now the row is done
/// assert!(relay.stop(Duration::from_secs(5)));
/// # drop(db);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What survives what is told in the [guide](crate::guide#outbox-and-inbox).
///
/// Cheap to clone; clones are the same outbox, and so are others of the same name on the same database, except
/// that [`SqliteOutbox::watch`] and [`SqliteOutbox::notify`] wake only the relays started from their own.
///
/// Use write-ahead logging (`PRAGMA journal_mode = WAL`) and a busy timeout: relay and program write to one
/// file, and SQLite lets one write at a time. Begin transactions that read before they write with
/// [`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate); a deferred one fails at its first
/// write if anybody has written since its first read.
#[derive(Debug)]
pub struct SqliteOutbox<C = Json> {
    table: Arc<str>,
    codec: C,
    bells: Arc<Bells>,
}

impl SqliteOutbox<Json> {
    /// An outbox in this table, with payloads as JSON. Nothing is created.
    ///
    /// # Errors
    /// [`OutboxError::Name`] unless the name consists of lower-case letters, digits and `_`, at most 40.
    pub fn new(table: impl Into<String>) -> Result<Self, OutboxError> {
        Self::with_codec(table, Json)
    }
}

impl<C> SqliteOutbox<C> {
    /// An outbox whose payloads another codec writes and reads. Outboxes with different codecs may share a
    /// table; every row says which one it was written by.
    ///
    /// # Errors
    /// As [`SqliteOutbox::new`].
    pub fn with_codec(table: impl Into<String>, codec: C) -> Result<Self, OutboxError> {
        let table = table.into();
        checked_name(&table, false)?;
        Ok(Self { table: table.into(), codec, bells: Arc::default() })
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The statements that create its tables, for those who run migrations. Running them again changes
    /// nothing.
    #[must_use]
    pub fn ddl(&self) -> String {
        let version = format!(
            "INSERT OR IGNORE INTO {}_version VALUES (1, {VERSION}, 1 + abs(random() % 4194303));\n",
            self.table
        );
        ddl(&self.table, &KINDS) + &version
    }

    /// Creates its tables unless they are there.
    ///
    /// # Errors
    /// [`OutboxError::Version`] if they are there in another version; whatever the database says.
    pub fn create_table(&self, connection: &Connection) -> Result<(), OutboxError> {
        let created = all_or_none(connection, |connection| connection.execute_batch(&self.ddl()));
        created.map_err(|error| self.error("create table", error))?;
        SqliteTable::number(connection, &self.table).map(drop)
    }

    /// Puts a message into the outbox, as part of the transaction that is open on this connection (a
    /// [`rusqlite::Transaction`] can be given as well). The id it will be published under, by every relay and
    /// after every restart.
    ///
    /// Keys, headers, priority, delay and time to live are kept; delay and time to live count from now on.
    ///
    /// # Errors
    /// [`OutboxError::NoTransaction`] if none is open; `Encode` if the codec refuses the payload; `Unsupported`
    /// if the message has an id or a timer; `Missing` or `Version` if the tables are not there or are another
    /// version's; whatever the database says.
    pub fn put<T>(
        &self,
        transaction: &Connection,
        topic: impl Into<Name<T>>,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, OutboxError>
    where
        C: Codec<T>,
    {
        if transaction.is_autocommit() {
            return Err(OutboxError::NoTransaction { table: self.table.to_string() });
        }
        let envelope = Envelope::pack(&self.table, topic.into().text, key.as_ref(), &message.into(), &self.codec)?;
        let inserted = self.insert(transaction, &envelope).map_err(|error| self.error("put", error))?;
        match inserted {
            Some((row, number)) => Ok(message_id(number, row)),
            None => Err(not_put(&self.table, SqliteTable::number(transaction, &self.table))),
        }
    }

    /// The row's id and the table's number; `None` if the table is not of this version.
    fn insert(&self, transaction: &Connection, e: &Envelope) -> rusqlite::Result<Option<(i64, i64)>> {
        let t = &self.table;
        let mut insert = transaction.prepare_cached(&format!(
            "INSERT INTO {t} ({ENVELOPE})
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM {t}_version WHERE version = {VERSION}
             RETURNING id, (SELECT number FROM {t}_version)"
        ))?;
        let (deliver_at, ttl) = (e.deliver_at.map(|at| at.0), e.ttl);
        insert
            .query_row(
                params![
                    e.topic,
                    e.routing_key,
                    e.ordering_key,
                    e.headers,
                    e.priority,
                    e.codec,
                    e.payload,
                    e.created.0,
                    deliver_at,
                    ttl
                ],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
    }

    /// Wakes the relays of this process that were started from this outbox whenever this connection commits
    /// messages. Without it they look for them (see [`RelayBuilder::poll`]).
    ///
    /// SQLite tells of a commit just before it is made, so the relay looks a few times within a quarter of a
    /// second. This takes the connection's update, commit and rollback hooks; if you need those yourself, call
    /// [`SqliteOutbox::notify`] after your commits instead.
    ///
    /// # Errors
    /// What the database says.
    pub fn watch(&self, connection: &Connection) -> Result<(), OutboxError> {
        let (bells, table) = (Arc::clone(&self.bells), Arc::clone(&self.table));
        let touched = Arc::new(AtomicBool::new(false));
        let (touches, forgets) = (Arc::clone(&touched), Arc::clone(&touched));
        let inserted = move |action: Action, _: &str, changed: &str, _: i64| {
            if action == Action::SQLITE_INSERT && *changed == *table {
                touches.store(true, Ordering::Relaxed);
            }
        };
        let commits = move || {
            if touched.swap(false, Ordering::Relaxed) {
                bells.ring(Call::Committing);
            }
            false
        };
        let hooked = connection
            .update_hook(Some(inserted))
            .and_then(|()| connection.commit_hook(Some(commits)))
            .and_then(|()| connection.rollback_hook(Some(move || forgets.store(false, Ordering::Relaxed))));
        hooked.map_err(|error| self.error("watch", error))
    }

    /// Wakes the relays of this process that were started from this outbox: call it after a commit.
    pub fn notify(&self) {
        self.bells.ring(Call::Committed);
    }

    /// How many rows it holds in which state. Looks at all of them.
    ///
    /// # Errors
    /// What the database says.
    pub fn stats(&self, connection: &Connection) -> Result<OutboxStats, OutboxError> {
        let sql =
            format!("SELECT state, count(*), min(CAST(created_us AS INTEGER)) FROM {} GROUP BY state", self.table);
        let count = || -> rusqlite::Result<OutboxStats> {
            let mut stats = OutboxStats::default();
            let mut counts = connection.prepare(&sql)?;
            let mut rows = counts.query([])?;
            while let Some(row) = rows.next()? {
                let (state, n, oldest): (i16, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                stats.add(state, n as u64, Micros(oldest));
            }
            Ok(stats)
        };
        count().map_err(|error| self.error("stats", error))
    }

    /// Up to `limit` of the rows that were given up on, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub fn dead(&self, connection: &Connection, limit: usize) -> Result<Vec<DeadRow>, OutboxError> {
        let list = || -> rusqlite::Result<Vec<DeadRow>> {
            let sql = format!("SELECT {SHOWN} FROM {} WHERE state = {DEAD} ORDER BY id LIMIT ?1", self.table);
            let mut dead = connection.prepare(&sql)?;
            dead.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], dead_row)?.collect()
        };
        list().map_err(|error| self.error("list dead rows", error))
    }

    /// Has dead rows published again, under the ids they had; how many of these were dead. The relay finds
    /// them as it finds new ones.
    ///
    /// # Errors
    /// What the database says; no row has changed then.
    pub fn retry(&self, connection: &Connection, rows: &[i64]) -> Result<usize, OutboxError> {
        self.each_dead(
            connection,
            "retry dead rows",
            rows,
            &format!(
                "UPDATE {} SET state = {WAITING}, ended_us = NULL, reason = NULL WHERE id = ?1 AND state = {DEAD}",
                self.table
            ),
        )
    }

    /// Deletes dead rows; how many of these were dead.
    ///
    /// # Errors
    /// What the database says; no row has been deleted then.
    pub fn delete_dead(&self, connection: &Connection, rows: &[i64]) -> Result<usize, OutboxError> {
        let sql = format!("DELETE FROM {} WHERE id = ?1 AND state = {DEAD}", self.table);
        self.each_dead(connection, "delete dead rows", rows, &sql)
    }

    fn each_dead(
        &self,
        connection: &Connection,
        operation: &'static str,
        rows: &[i64],
        sql: &str,
    ) -> Result<usize, OutboxError> {
        let changed = all_or_none(connection, |connection| {
            let mut change = connection.prepare(sql)?;
            rows.iter().map(|row| change.execute([row])).sum()
        });
        changed.map_err(|error| self.error(operation, error))
    }

    /// Describes a relay, which publishes this outbox's rows. `connect` opens a connection for it, at first and
    /// again after every error; the relay sets its busy timeout to a tenth of a second.
    pub fn relay(
        &self,
        broker: &Broker,
        connect: impl Fn() -> rusqlite::Result<Connection> + Send + 'static,
    ) -> RelayBuilder<C>
    where
        C: Clone,
    {
        let table = Arc::clone(&self.table);
        let connect: Connect = Box::new(move || {
            let connection = connect().map_err(|error| classified(&table, "connect", error))?;
            let wait = connection.busy_timeout(BUSY_TIMEOUT);
            wait.map_err(|error| classified(&table, "connect", error))?;
            Ok(Box::new(SqliteTable::new(connection, Arc::clone(&table))) as Box<dyn Table>)
        });
        RelayBuilder::new(broker, &self.table, self.codec.clone(), connect, Arc::clone(&self.bells))
    }

    fn error(&self, operation: &'static str, error: rusqlite::Error) -> OutboxError {
        classified(&self.table, operation, error)
    }
}

/// The relay has other things to do than to wait, and comes again.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

fn dead_row(row: &Row<'_>) -> rusqlite::Result<DeadRow> {
    Ok(DeadRow {
        id: row.get(0)?,
        topic: row.get(1)?,
        // What was dead on arrival may be of any kind.
        routing_key: row.get(2).unwrap_or_default(),
        key: row.get(3).unwrap_or_default(),
        payload: bytes(row.get_ref(4)?).unwrap_or_default(),
        reason: row.get(5)?,
        created_at: Micros(row.get(6).unwrap_or_default()).to_system_time(),
        dead_at: Micros(row.get(7).unwrap_or_default()).to_system_time(),
    })
}

impl<C: Clone> Clone for SqliteOutbox<C> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), codec: self.codec.clone(), bells: Arc::clone(&self.bells) }
    }
}
