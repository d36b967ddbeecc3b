use super::{all_or_none, classified};
use crate::message::Message;
use crate::outbox::envelope::Micros;
use crate::outbox::error::{OutboxError, checked_name};
use crate::outbox::inbox::{InboxError, Once, key_of};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::sync::Arc;
use std::time::Duration;

/// An inbox in a SQLite database: a consumer's work on that database and the note that it was done are
/// committed together, so a message that comes twice has its effect once.
///
/// ```
/// use postroom::rusqlite::{self, Connection};
/// use postroom::{Message, Once, SqliteInbox};
///
/// let mut db = Connection::open_in_memory()?;
/// db.execute_batch("CREATE TABLE account (cents INTEGER); INSERT INTO account VALUES (0)")?;
/// let inbox = SqliteInbox::new("inbox", "billing")?;
/// inbox.create_table(&db)?;
///
/// for attempt in 1..=2 {
///     let once = inbox.handle_as(&mut db, "payment-7", |tx| -> rusqlite::Result<usize> {
///         tx.execute("UPDATE account SET cents = cents + 100", [])
///     }).unwrap();
///     assert_eq!(once, if attempt == 1 { Once::Done(1) } else { Once::AlreadyDone });
/// }
/// let cents: i64 = db.query_row("SELECT cents FROM account", [], |row| row.get(0))?;
/// assert_eq!(cents, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqliteInbox {
    table: Arc<str>,
    consumer: Arc<str>,
}

impl SqliteInbox {
    /// The inbox of a consumer in this table, which several consumers may share.
    ///
    /// # Errors
    /// [`OutboxError::Name`] unless the table's name consists of lower-case letters, digits and `_`, at most 40.
    pub fn new(table: impl Into<String>, consumer: impl Into<String>) -> Result<Self, OutboxError> {
        let table = table.into();
        checked_name(&table, false)?;
        Ok(Self { table: table.into(), consumer: consumer.into().into() })
    }

    /// The statements that create its table. Running them again changes nothing.
    #[must_use]
    pub fn ddl(&self) -> String {
        let t = &self.table;
        format!(
            "CREATE TABLE IF NOT EXISTS {t} (
    consumer TEXT NOT NULL,
    message TEXT NOT NULL,
    seen_us INTEGER NOT NULL, -- microseconds since 1970
    PRIMARY KEY (consumer, message)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {t}_seen ON {t} (seen_us);
"
        )
    }

    /// Creates its table unless it is there.
    ///
    /// # Errors
    /// What the database says.
    pub fn create_table(&self, connection: &Connection) -> Result<(), OutboxError> {
        let created = all_or_none(connection, |connection| connection.execute_batch(&self.ddl()));
        created.map_err(|error| classified(&self.table, "create table", error))
    }

    /// Does a message's work unless this consumer has done it before: `work` and the note of the message's id
    /// are one transaction. If `work` fails or panics, both are rolled back.
    ///
    /// Only for messages that came from an outbox, or whose id you have set to 2^40 or more yourself: the ids a
    /// broker gives begin at 1 in every process, so what bears one now may be another message than what bore it
    /// before. For those there is [`SqliteInbox::handle_as`].
    ///
    /// # Errors
    /// What `work` says, or why the transaction could not be begun, noted or committed.
    pub fn handle<T, R, E>(
        &self,
        connection: &mut Connection,
        message: &Message<T>,
        work: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
    ) -> Result<Once<R>, InboxError<E>> {
        let key = key_of(&self.table, message)?;
        self.handle_as(connection, &key, work)
    }

    /// As [`SqliteInbox::handle`], under a key of your own, such as an order's number.
    ///
    /// # Errors
    /// As [`SqliteInbox::handle`].
    pub fn handle_as<R, E>(
        &self,
        connection: &mut Connection,
        key: &str,
        work: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
    ) -> Result<Once<R>, InboxError<E>> {
        let failed = |operation| move |error| classified(&self.table, operation, error);
        // Immediate: it is going to write, and a lock asked for later could be refused without a wait.
        let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(failed("begin"))?;
        if !self.note(&transaction, key).map_err(failed("note as seen"))? {
            return Ok(Once::AlreadyDone);
        }
        let result = work(&transaction).map_err(InboxError::Work)?;
        transaction.commit().map_err(failed("commit"))?;
        Ok(Once::Done(result))
    }

    /// Whether it is new.
    fn note(&self, transaction: &Transaction<'_>, key: &str) -> rusqlite::Result<bool> {
        let sql = format!("INSERT INTO {} VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING", self.table);
        let noted = transaction.prepare_cached(&sql)?.execute(params![self.consumer, key, Micros::now().0])?;
        Ok(noted == 1)
    }

    /// Forgets what all consumers of the table have done longer ago than `age`; how many messages those are.
    /// One of them that comes again has its effect again, so let `age` be longer than any row can wait in its
    /// outbox.
    ///
    /// # Errors
    /// What the database says.
    pub fn prune(&self, connection: &Connection, age: Duration) -> Result<usize, OutboxError> {
        let sql = format!("DELETE FROM {} WHERE seen_us < ?1", self.table);
        let pruned = connection.execute(&sql, [Micros::now().before(age).0]);
        pruned.map_err(|error| classified(&self.table, "prune", error))
    }
}
