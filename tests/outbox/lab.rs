//! One database to try outbox and inbox on, whichever it is.

use postroom::rusqlite::{Connection, params};
use postroom::{
    Broker, DeadRow, InboxError, Json, Message, MessageId, Once, OutboxError, OutboxStats, RelayBuilder, SqliteInbox,
    SqliteOutbox, TopicName, rusqlite,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Messages to put: routing key and message.
pub(crate) type Puts = Vec<(&'static str, Message<u64>)>;

pub(crate) trait Lab: Send + Sync {
    /// Puts them in one transaction, which is rolled back unless `commit`.
    fn put(&self, topic: &'static str, messages: Puts, commit: bool) -> Vec<MessageId>;
    fn relay(&self, broker: &Broker) -> RelayBuilder<Json>;
    fn stats(&self) -> OutboxStats;
    fn dead(&self) -> Vec<DeadRow>;
    fn retry(&self, rows: &[i64]) -> usize;
    fn delete_dead(&self, rows: &[i64]) -> usize;
    fn create_table(&self) -> Result<(), OutboxError>;
    fn sql(&self, sql: &str);
    fn number(&self, sql: &str) -> i64;
    /// Writes the payload into the table `effects`, through the inbox of that consumer; fails after that if
    /// told to.
    fn effect(&self, consumer: &str, message: &Message<u64>, fails: bool) -> Result<Once<()>, InboxError<String>>;
    fn prune_inbox(&self, age: Duration) -> u64;
    /// Has the connections of relays lost, where that can happen.
    fn cut_off_relays(&self) {}
}

pub(crate) struct SqliteLab {
    pub(crate) path: PathBuf,
    pub(crate) outbox: SqliteOutbox,
}

/// A directory of this test run, removed with the lab.
fn directory() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("outbox-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

pub(crate) fn open(path: &PathBuf) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    Ok(connection)
}

impl SqliteLab {
    pub(crate) fn new() -> Self {
        let path = directory().join("app.db");
        let connection = open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE effects (n INTEGER)").unwrap();
        let outbox = SqliteOutbox::new("outbox").unwrap();
        outbox.create_table(&connection).unwrap();
        SqliteInbox::new("inbox", "").unwrap().create_table(&connection).unwrap();
        Self { path, outbox }
    }

    pub(crate) fn connection(&self) -> Connection {
        let connection = open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection
    }

    /// Puts one number by a connection of the test's, and tells no relay of it.
    pub(crate) fn put_by(&self, connection: &mut Connection, n: u64, commit: bool) {
        let tx = connection.transaction().unwrap();
        self.outbox.put(&tx, TopicName::<u64>::new("orders"), "k", n).unwrap();
        if commit { tx.commit().unwrap() } else { tx.rollback().unwrap() }
    }

    /// As another process would: by an outbox of its own that knows of no relay.
    pub(crate) fn put_from_elsewhere(&self, n: u64) {
        let elsewhere = SqliteOutbox::new("outbox").unwrap();
        let mut connection = self.connection();
        let tx = connection.transaction().unwrap();
        elsewhere.put(&tx, TopicName::<u64>::new("orders"), "k", n).unwrap();
        tx.commit().unwrap();
    }
}

impl Lab for SqliteLab {
    fn put(&self, topic: &'static str, messages: Puts, commit: bool) -> Vec<MessageId> {
        let mut connection = self.connection();
        let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        let ids = messages
            .into_iter()
            .map(|(key, message)| self.outbox.put(&tx, TopicName::<u64>::new(topic), key, message).unwrap())
            .collect();
        if commit {
            tx.commit().unwrap();
            self.outbox.notify();
        }
        ids
    }

    fn relay(&self, broker: &Broker) -> RelayBuilder<Json> {
        let path = self.path.clone();
        self.outbox.relay(broker, move || open(&path)).poll(Duration::from_millis(20))
    }

    fn stats(&self) -> OutboxStats {
        self.outbox.stats(&self.connection()).unwrap()
    }

    fn dead(&self) -> Vec<DeadRow> {
        self.outbox.dead(&self.connection(), 100).unwrap()
    }

    fn retry(&self, rows: &[i64]) -> usize {
        self.outbox.retry(&self.connection(), rows).unwrap()
    }

    fn delete_dead(&self, rows: &[i64]) -> usize {
        self.outbox.delete_dead(&self.connection(), rows).unwrap()
    }

    fn create_table(&self) -> Result<(), OutboxError> {
        self.outbox.create_table(&self.connection())
    }

    fn sql(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn effect(&self, consumer: &str, message: &Message<u64>, fails: bool) -> Result<Once<()>, InboxError<String>> {
        let inbox = SqliteInbox::new("inbox", consumer)?;
        inbox.handle(&mut self.connection(), message, |tx| {
            let written = tx.execute("INSERT INTO effects VALUES (?1)", params![*message.payload() as i64]);
            written.map_err(|error| error.to_string())?;
            if fails { Err("on purpose".into()) } else { Ok(()) }
        })
    }

    fn prune_inbox(&self, age: Duration) -> u64 {
        SqliteInbox::new("inbox", "any").unwrap().prune(&self.connection(), age).unwrap() as u64
    }
}

impl Drop for SqliteLab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
    }
}

#[cfg(feature = "postgres")]
pub(crate) use of_postgres::PostgresLab;

#[cfg(feature = "postgres")]
mod of_postgres {
    use super::*;
    use postroom::postgres::{Client, NoTls};
    use postroom::{PostgresInbox, PostgresOutbox};
    use std::io::Write;

    pub(crate) struct PostgresLab {
        pub(crate) url: String,
        schema: String,
        pub(crate) outbox: PostgresOutbox,
    }

    impl PostgresLab {
        /// `None`, and a word about it, if there is no server to test with.
        pub(crate) fn new(test: &str) -> Option<Self> {
            let Ok(url) = std::env::var("POSTROOM_TEST_POSTGRES") else {
                // Not by `eprintln`, which is shown only when a test fails.
                let why = "POSTROOM_TEST_POSTGRES is not set; run it by scripts/postgres.sh with cargo test";
                let _ = writeln!(std::io::stderr(), "skipped {test} on PostgreSQL: {why}");
                return None;
            };
            Some(Self::on(url, test))
        }

        /// In a schema of its own.
        pub(crate) fn on(url: String, test: &str) -> Self {
            let schema = format!("t{}", &test[..test.len().min(30)]);
            let mut client = Client::connect(&url, NoTls).unwrap();
            client.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")).unwrap();
            let url = format!("{url}?options=-csearch_path%3D{schema}&application_name={schema}");
            let mut client = Client::connect(&url, NoTls).unwrap();
            client.batch_execute("CREATE TABLE effects (n BIGINT)").unwrap();
            let outbox = PostgresOutbox::new("outbox").unwrap();
            outbox.create_table(&mut client).unwrap();
            PostgresInbox::new("inbox", "").unwrap().create_table(&mut client).unwrap();
            Self { url, schema, outbox }
        }

        pub(crate) fn client(&self) -> Client {
            Client::connect(&self.url, NoTls).unwrap()
        }
    }

    impl Lab for PostgresLab {
        fn put(&self, topic: &'static str, messages: Puts, commit: bool) -> Vec<MessageId> {
            let mut client = self.client();
            let mut tx = client.transaction().unwrap();
            let put = |(key, message)| self.outbox.put(&mut tx, TopicName::<u64>::new(topic), key, message).unwrap();
            let ids = messages.into_iter().map(put).collect();
            if commit {
                tx.commit().unwrap();
            }
            ids
        }

        fn relay(&self, broker: &Broker) -> RelayBuilder<Json> {
            let url = format!("{}_relay", self.url);
            self.outbox.relay(broker, move || Client::connect(&url, NoTls)).poll(Duration::from_millis(50))
        }

        fn stats(&self) -> OutboxStats {
            self.outbox.stats(&mut self.client()).unwrap()
        }

        fn dead(&self) -> Vec<DeadRow> {
            self.outbox.dead(&mut self.client(), 100).unwrap()
        }

        fn retry(&self, rows: &[i64]) -> usize {
            self.outbox.retry(&mut self.client(), rows).unwrap()
        }

        fn delete_dead(&self, rows: &[i64]) -> usize {
            self.outbox.delete_dead(&mut self.client(), rows).unwrap()
        }

        fn create_table(&self) -> Result<(), OutboxError> {
            self.outbox.create_table(&mut self.client())
        }

        fn sql(&self, sql: &str) {
            self.client().batch_execute(sql).unwrap();
        }

        fn number(&self, sql: &str) -> i64 {
            self.client().query_one(sql, &[]).unwrap().get(0)
        }

        fn effect(&self, consumer: &str, message: &Message<u64>, fails: bool) -> Result<Once<()>, InboxError<String>> {
            let inbox = PostgresInbox::new("inbox", consumer)?;
            inbox.handle(&mut self.client(), message, |tx| {
                let written = tx.execute("INSERT INTO effects VALUES ($1)", &[&(*message.payload() as i64)]);
                written.map_err(|error| error.to_string())?;
                if fails { Err("on purpose".into()) } else { Ok(()) }
            })
        }

        fn prune_inbox(&self, age: Duration) -> u64 {
            PostgresInbox::new("inbox", "any").unwrap().prune(&mut self.client(), age).unwrap()
        }

        fn cut_off_relays(&self) {
            let sql = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}_relay'",
                self.schema
            );
            self.sql(&sql);
        }
    }
}
