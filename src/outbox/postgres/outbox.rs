use super::classified;
use super::listener::CommitListener;
use super::table::PostgresTable;
use crate::broker::Broker;
use crate::codec::{Codec, Json};
use crate::message::{Message, MessageId};
use crate::name::Name;
use crate::outbox::envelope::{Envelope, Micros, message_id};
use crate::outbox::error::{OutboxError, checked_name};
use crate::outbox::relay::desk::{Bells, Call};
use crate::outbox::relay::{Connect, Listener, RelayBuilder};
use crate::outbox::table::{DEAD, DeadRow, ENVELOPE, Kinds, OutboxStats, SHOWN, Table, VERSION, WAITING, ddl, not_put};
use postgres::types::Type;
use postgres::{Client, GenericClient, Transaction};
use std::sync::Arc;

/// Opens a relay's connections.
pub(super) type ConnectClient = Arc<dyn Fn() -> Result<Client, postgres::Error> + Send + Sync>;

const KINDS: Kinds =
    Kinds { id: "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", long: "BIGINT", short: "SMALLINT", bytes: "BYTEA" };

/// An outbox in a PostgreSQL database: messages are written by your own transaction, on your own connection,
/// and published once it has been committed.
///
/// ```no_run
/// use postroom::postgres::{Client, NoTls};
/// use postroom::{Broker, Message, PostgresOutbox, Queue, TopicName};
///
/// const USERS: TopicName<String> = TopicName::new("users");
/// const URL: &str = "postgres://app@localhost/app";
///
/// let mut db = Client::connect(URL, NoTls)?;
/// let outbox = PostgresOutbox::new("outbox")?;
/// outbox.create_table(&mut db)?; // or run what `outbox.ddl()` prints
///
/// let broker = Broker::new();
/// let users = broker.topic(USERS).declare()?;
/// let billing: Queue<String> = broker.queue("billing").declare()?;
/// users.bind(&billing, "user.*")?;
/// let relay = outbox.relay(&broker, || Client::connect(URL, NoTls)).topic(&users).start()?;
///
/// let mut tx = db.transaction()?;
/// tx.execute("INSERT INTO users VALUES ('ann')", &[])?;
/// outbox.put(&mut tx, USERS, "user.created", Message::new("ann".to_owned()).with_key("ann"))?;
/// tx.commit()?; // both, or neither
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What survives what is told in the [guide](crate::guide#outbox-and-inbox).
///
/// # Order
///
/// Rows are published in the order of their ids. Of two transactions, the one that puts after the other has
/// been committed has the higher ids, so whatever makes them follow each other (a row both lock, such as the
/// user's that both change) keeps their messages in order. Two that do not wait for each other have no order,
/// and whichever becomes visible first is published first.
///
/// Cheap to clone; clones are the same outbox.
#[derive(Debug)]
pub struct PostgresOutbox<C = Json> {
    table: Arc<str>,
    codec: C,
    notifies: bool,
    bells: Arc<Bells>,
}

impl PostgresOutbox<Json> {
    /// An outbox in this table, with payloads as JSON. Nothing is created. A schema may stand before the name:
    /// `billing.outbox`.
    ///
    /// # Errors
    /// [`OutboxError::Name`] unless the name consists of lower-case letters, digits and `_`, at most 40, and so
    /// does the schema's.
    pub fn new(table: impl Into<String>) -> Result<Self, OutboxError> {
        Self::with_codec(table, Json)
    }
}

impl<C> PostgresOutbox<C> {
    /// An outbox whose payloads another codec writes and reads. Outboxes with different codecs may share a
    /// table; every row says which one it was written by.
    ///
    /// # Errors
    /// As [`PostgresOutbox::new`].
    pub fn with_codec(table: impl Into<String>, codec: C) -> Result<Self, OutboxError> {
        let table = table.into();
        checked_name(&table, true)?;
        Ok(Self { table: table.into(), codec, notifies: true, bells: Arc::default() })
    }

    /// Tells nobody of commits, so relays have to poll. PostgreSQL lets transactions that notify commit one
    /// after the other; a program that commits thousands in a second may do better without.
    #[must_use]
    pub fn without_notify(mut self) -> Self {
        self.notifies = false;
        self
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
            "INSERT INTO {}_version VALUES (1, {VERSION}, 1 + floor(random() * 4194303)::bigint) \
             ON CONFLICT DO NOTHING;\n",
            self.table
        );
        ddl(&self.table, &KINDS) + &version
    }

    /// Creates its tables unless they are there. Several programs may do so at once.
    ///
    /// # Errors
    /// [`OutboxError::Version`] if they are there in another version; whatever the database says.
    pub fn create_table(&self, client: &mut impl GenericClient) -> Result<(), OutboxError> {
        create(client, &self.table, &self.ddl()).map_err(|error| self.error("create table", error))?;
        PostgresTable::number(client, &self.table).map(drop)
    }

    /// Puts a message into the outbox, as part of this transaction. The id it will be published under, by every
    /// relay and after every restart.
    ///
    /// Keys, headers, priority, delay and time to live are kept; delay and time to live count from now on.
    ///
    /// # Errors
    /// `Encode` if the codec refuses the payload; `Unsupported` if the message has an id or a timer, or text
    /// that contains a zero character; `Missing` or `Version` if the tables are not there or are another
    /// version's; whatever the database says. As always in PostgreSQL, a transaction with a failed statement
    /// can only be rolled back.
    pub fn put<T>(
        &self,
        transaction: &mut Transaction<'_>,
        topic: impl Into<Name<T>>,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, OutboxError>
    where
        C: Codec<T>,
    {
        let envelope = Envelope::pack(&self.table, topic.into().text, key.as_ref(), &message.into(), &self.codec)?;
        let texts = [Some(&envelope.topic), Some(&envelope.routing_key), envelope.ordering_key.as_ref()];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            let what = "PostgreSQL keeps no text with a zero character";
            return Err(OutboxError::Unsupported { table: self.table.to_string(), what });
        }
        let inserted = self.insert(transaction, &envelope).map_err(|error| self.error("put", error))?;
        match inserted {
            Some((row, number)) => Ok(message_id(number, row)),
            None => Err(not_put(&self.table, PostgresTable::number(transaction, &self.table))),
        }
    }

    /// The row's id and the table's number; `None` if the table is not of this version.
    fn insert(&self, transaction: &mut Transaction<'_>, e: &Envelope) -> Result<Option<(i64, i64)>, postgres::Error> {
        let t = &self.table;
        let notify = if self.notifies { "pg_notify($11, '')::text" } else { "$11" };
        let sql = format!(
            "WITH v AS (SELECT number FROM {t}_version WHERE version = {VERSION}), put AS (
                 INSERT INTO {t} ({ENVELOPE})
                 SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM v RETURNING id)
             SELECT put.id, v.number, {notify} FROM put, v"
        );
        let deliver_at = e.deliver_at.map(|at| at.0);
        let row = transaction.query_typed_opt(
            &sql,
            &[
                (&e.topic, Type::TEXT),
                (&e.routing_key, Type::TEXT),
                (&e.ordering_key, Type::TEXT),
                (&e.headers, Type::TEXT),
                (&e.priority, Type::INT2),
                (&e.codec, Type::TEXT),
                (&e.payload, Type::BYTEA),
                (&e.created.0, Type::INT8),
                (&deliver_at, Type::INT8),
                (&e.ttl, Type::INT8),
                (&&**t, Type::TEXT),
            ],
        )?;
        Ok(row.map(|row| (row.get(0), row.get(1))))
    }

    /// Wakes the relays of this process that were started from this outbox. Only of use after
    /// [`PostgresOutbox::without_notify`]; otherwise the database wakes them.
    pub fn notify(&self) {
        self.bells.ring(Call::Committed);
    }

    /// How many rows it holds in which state. Looks at all of them.
    ///
    /// # Errors
    /// What the database says.
    pub fn stats(&self, client: &mut impl GenericClient) -> Result<OutboxStats, OutboxError> {
        let sql = format!("SELECT state, count(*), min(created_us) FROM {} GROUP BY state", self.table);
        let counts = client.query_typed(&sql, &[]).map_err(|error| self.error("stats", error))?;
        let mut stats = OutboxStats::default();
        for row in counts {
            let (state, n, oldest): (i16, i64, i64) = (row.get(0), row.get(1), row.get(2));
            stats.add(state, n as u64, Micros(oldest));
        }
        Ok(stats)
    }

    /// Up to `limit` of the rows that were given up on, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub fn dead(&self, client: &mut impl GenericClient, limit: usize) -> Result<Vec<DeadRow>, OutboxError> {
        let sql = format!("SELECT {SHOWN} FROM {} WHERE state = {DEAD} ORDER BY id LIMIT $1", self.table);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let dead = client.query_typed(&sql, &[(&limit, Type::INT8)]);
        Ok(dead.map_err(|error| self.error("list dead rows", error))?.iter().map(dead_row).collect())
    }

    /// Has dead rows published again, under the ids they had; how many of these were dead.
    ///
    /// # Errors
    /// What the database says; no row has changed then.
    pub fn retry(&self, client: &mut impl GenericClient, rows: &[i64]) -> Result<usize, OutboxError> {
        let sql = format!(
            "WITH changed AS (UPDATE {} SET state = {WAITING}, ended_us = NULL, reason = NULL
                 WHERE id = ANY($1) AND state = {DEAD} RETURNING 1)
             SELECT count(*), pg_notify($2, '')::text FROM changed",
            self.table
        );
        self.each_dead(client, "retry dead rows", rows, &sql)
    }

    /// Deletes dead rows; how many of these were dead.
    ///
    /// # Errors
    /// What the database says; no row has been deleted then.
    pub fn delete_dead(&self, client: &mut impl GenericClient, rows: &[i64]) -> Result<usize, OutboxError> {
        let sql = format!(
            "WITH gone AS (DELETE FROM {} WHERE id = ANY($1) AND state = {DEAD} RETURNING 1)
             SELECT count(*), $2 FROM gone",
            self.table
        );
        self.each_dead(client, "delete dead rows", rows, &sql)
    }

    fn each_dead(
        &self,
        client: &mut impl GenericClient,
        operation: &'static str,
        rows: &[i64],
        sql: &str,
    ) -> Result<usize, OutboxError> {
        let changed = client.query_typed(sql, &[(&rows, Type::INT8_ARRAY), (&&*self.table, Type::TEXT)]);
        let changed = changed.map_err(|error| self.error(operation, error))?;
        Ok(changed.first().map_or(0, |row| row.get::<_, i64>(0)) as usize)
    }

    /// Describes a relay, which publishes this outbox's rows. `connect` opens its connections, one to work on
    /// and one that listens for commits, and opens them again when they are lost.
    ///
    /// A server that has vanished without a word is noticed only if the connection asks for that: set
    /// `connect_timeout`, `tcp_user_timeout` and `keepalives_idle` in its URL where the network is not your own
    /// machine's.
    pub fn relay(
        &self,
        broker: &Broker,
        connect: impl Fn() -> Result<Client, postgres::Error> + Send + Sync + 'static,
    ) -> RelayBuilder<C>
    where
        C: Clone,
    {
        let open: ConnectClient = Arc::new(connect);
        let (table, client) = (Arc::clone(&self.table), Arc::clone(&open));
        let connect: Connect = Box::new(move || {
            let client = client().map_err(|error| classified(&table, "connect", error))?;
            Ok(Box::new(PostgresTable::new(client, Arc::clone(&table))) as Box<dyn Table>)
        });
        let relay = RelayBuilder::new(broker, &self.table, self.codec.clone(), connect, Arc::clone(&self.bells));
        if !self.notifies {
            return relay;
        }
        let channel = self.table.to_string();
        relay.listening(Box::new(move |desk, said| {
            Box::new(CommitListener::start(open, channel, desk, said)) as Box<dyn Listener>
        }))
    }

    fn error(&self, operation: &'static str, error: postgres::Error) -> OutboxError {
        classified(&self.table, operation, error)
    }
}

/// `IF NOT EXISTS` alone fails if another program creates the same at the same time.
pub(super) fn create(client: &mut impl GenericClient, table: &str, ddl: &str) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    let lock = format!("SELECT pg_advisory_xact_lock(hashtext('postroom {table}'))");
    transaction.batch_execute(&lock)?;
    transaction.batch_execute(ddl)?;
    transaction.commit()
}

fn dead_row(row: &postgres::Row) -> DeadRow {
    DeadRow {
        id: row.get(0),
        topic: row.get(1),
        routing_key: row.get(2),
        key: row.get(3),
        payload: row.get(4),
        reason: row.get(5),
        created_at: Micros(row.get(6)).to_system_time(),
        dead_at: Micros(row.get(7)).to_system_time(),
    }
}

impl<C: Clone> Clone for PostgresOutbox<C> {
    fn clone(&self) -> Self {
        let (table, bells) = (Arc::clone(&self.table), Arc::clone(&self.bells));
        Self { table, codec: self.codec.clone(), notifies: self.notifies, bells }
    }
}
