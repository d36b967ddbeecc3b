use super::outbox::create;
use super::{NOW_US, classified};
use crate::message::Message;
use crate::outbox::envelope::micros;
use crate::outbox::error::{OutboxError, checked_name};
use crate::outbox::inbox::{InboxError, Once, key_of};
use crate::outbox::table::without_schema;
use postgres::types::Type;
use postgres::{Client, GenericClient, Transaction};
use std::sync::Arc;
use std::time::Duration;

/// An inbox in a PostgreSQL database: a consumer's work on that database and the note that it was done are
/// committed together, so a message that comes twice has its effect once.
///
/// ```no_run
/// use postroom::postgres::{self, Client, NoTls};
/// use postroom::{Failure, Message, PostgresInbox, Queue};
/// use std::sync::Mutex;
///
/// # fn start(payments: Queue<i64>) -> Result<(), Box<dyn std::error::Error>> {
/// let mut db = Client::connect("postgres://app@localhost/app", NoTls)?;
/// let inbox = PostgresInbox::new("inbox", "billing")?;
/// inbox.create_table(&mut db)?;
///
/// let db = Mutex::new(db);
/// payments.consumer().start(move |cents: &Message<i64>| -> Result<_, Failure> {
///     let once = inbox.handle(&mut db.lock().unwrap(), cents, |tx| -> Result<u64, postgres::Error> {
///         tx.execute("UPDATE account SET cents = cents + $1", &[cents.payload()])
///     })?;
///     Ok(once)
/// })?;
/// # Ok(())
/// # }
/// ```
///
/// Two that handle one message at the same time wait for each other. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PostgresInbox {
    table: Arc<str>,
    consumer: Arc<str>,
}

impl PostgresInbox {
    /// The inbox of a consumer in this table, which several consumers may share.
    ///
    /// # Errors
    /// [`OutboxError::Name`] unless the table's name consists of lower-case letters, digits and `_`, at most 40,
    /// and so does a schema's before it.
    pub fn new(table: impl Into<String>, consumer: impl Into<String>) -> Result<Self, OutboxError> {
        let table = table.into();
        checked_name(&table, true)?;
        Ok(Self { table: table.into(), consumer: consumer.into().into() })
    }

    /// The statements that create its table. Running them again changes nothing.
    #[must_use]
    pub fn ddl(&self) -> String {
        let t = &self.table;
        let index = without_schema(t);
        format!(
            "CREATE TABLE IF NOT EXISTS {t} (
    consumer TEXT NOT NULL,
    message TEXT NOT NULL,
    seen_us BIGINT NOT NULL, -- microseconds since 1970
    PRIMARY KEY (consumer, message)
);
CREATE INDEX IF NOT EXISTS {index}_seen ON {t} (seen_us);
"
        )
    }

    /// Creates its table unless it is there. Several programs may do so at once.
    ///
    /// # Errors
    /// What the database says.
    pub fn create_table(&self, client: &mut impl GenericClient) -> Result<(), OutboxError> {
        let created = create(client, &self.table, &self.ddl());
        created.map_err(|error| classified(&self.table, "create table", error))
    }

    /// Does a message's work unless this consumer has done it before: `work` and the note of the message's id
    /// are one transaction. If `work` fails or panics, both are rolled back.
    ///
    /// Only for messages that came from an outbox, or whose id you have set to 2^40 or more yourself: the ids a
    /// broker gives begin at 1 in every process, so what bears one now may be another message than what bore it
    /// before. For those there is [`PostgresInbox::handle_as`].
    ///
    /// # Errors
    /// What `work` says, or why the transaction could not be begun, noted or committed.
    pub fn handle<T, R, E>(
        &self,
        client: &mut Client,
        message: &Message<T>,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<R, E>,
    ) -> Result<Once<R>, InboxError<E>> {
        let key = key_of(&self.table, message)?;
        self.handle_as(client, &key, work)
    }

    /// As [`PostgresInbox::handle`], under a key of your own, such as an order's number.
    ///
    /// # Errors
    /// As [`PostgresInbox::handle`].
    pub fn handle_as<R, E>(
        &self,
        client: &mut Client,
        key: &str,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<R, E>,
    ) -> Result<Once<R>, InboxError<E>> {
        let failed = |operation| move |error| classified(&self.table, operation, error);
        let mut transaction = client.transaction().map_err(failed("begin"))?;
        if !self.note(&mut transaction, key).map_err(failed("note as seen"))? {
            return Ok(Once::AlreadyDone);
        }
        let result = work(&mut transaction).map_err(InboxError::Work)?;
        transaction.commit().map_err(failed("commit"))?;
        Ok(Once::Done(result))
    }

    /// Whether it is new. Waits for another transaction that is about to note the same.
    fn note(&self, transaction: &mut Transaction<'_>, key: &str) -> Result<bool, postgres::Error> {
        let sql = format!(
            "INSERT INTO {} (consumer, message, seen_us) VALUES ($1, $2, {NOW_US}) ON CONFLICT DO NOTHING",
            self.table
        );
        let noted = transaction.execute_typed(&sql, &[(&&*self.consumer, Type::TEXT), (&key, Type::TEXT)])?;
        Ok(noted == 1)
    }

    /// Forgets what all consumers of the table have done longer ago than `age`; how many messages those are.
    /// One of them that comes again has its effect again, so let `age` be longer than any row can wait in its
    /// outbox.
    ///
    /// # Errors
    /// What the database says.
    pub fn prune(&self, client: &mut impl GenericClient, age: Duration) -> Result<u64, OutboxError> {
        let sql = format!("DELETE FROM {} WHERE seen_us < {NOW_US} - $1", self.table);
        let pruned = client.execute_typed(&sql, &[(&micros(age), Type::INT8)]);
        pruned.map_err(|error| classified(&self.table, "prune", error))
    }
}
