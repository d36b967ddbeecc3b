//! Data sync: a service owns a database, others keep copies of what they need of it.
//!
//! **Situation.** The user service owns the users. The order service and billing need their names and
//! addresses at hand, without asking for each order and without reading a database that is not theirs. So
//! they keep copies. The obvious way (change the row, then publish) loses the message if the process dies in
//! between; the other way around invents changes that were rolled back.
//!
//! **What the outbox gives.** The message is a row in the user service's own database, written by the same
//! transaction as the change: both are there, or neither. A relay publishes committed rows and marks each when
//! every queue has handled it. After a crash it goes on with what is not marked, so a message may come twice.
//! The inbox makes that harmless: a copy is changed, and the message noted, in one transaction of the copy's
//! database.
//!
//! **What to expect on screen.** The program starts its services as a child process and kills it, twice, in
//! the middle of the work; the third one finishes. Some changes are rolled back and must never be seen. The
//! order service handles messages with four workers in any order, and ignores versions older than what it has;
//! billing takes them in order. In the end both copies equal the source, and every new user has been given the
//! welcome credit once.
//!
//! `cargo run --release --features sqlite --example 04_data_sync`
//!
//! With `--features postgres` as well, `--postgres postgres://user@host/db` puts the users into PostgreSQL (in
//! tables whose names begin with `data_sync_`, which are dropped first). The copies stay with their services.

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// All that the services know of each other.
mod names {
    use postroom::TopicName;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct UserChanged {
        pub id: i64,
        /// Raised by every change of this user.
        pub version: i64,
        pub name: String,
        pub city: String,
    }

    pub const USERS: TopicName<UserChanged> = TopicName::new("users");
}

/// Owns the users, in SQLite or in PostgreSQL.
mod user_service {
    use crate::AnyError;
    use crate::names::{USERS, UserChanged};
    use postroom::rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
    use postroom::{Broker, Json, Message, RelayBuilder, SqliteOutbox};
    use std::path::PathBuf;
    use std::time::Duration;

    /// One change of one user. Every 20th is found to be wrong at the last moment, and rolled back.
    pub struct Change {
        pub user: i64,
        pub n: i64,
    }

    impl Change {
        pub fn is_wrong(&self) -> bool {
            self.n % 20 == 13
        }
        pub fn apply(&self, version: i64) -> UserChanged {
            let name = if self.is_wrong() { "WRONG".to_owned() } else { format!("user {}", self.user) };
            UserChanged { id: self.user, version, name, city: format!("city {}", self.n * 7 % 50) }
        }
    }

    pub trait Users {
        fn create(&mut self) -> Result<(), AnyError>;
        /// How many changes have been committed or rolled back so far.
        fn progress(&mut self) -> Result<i64, AnyError>;
        /// The change and its message, in one transaction.
        fn change(&mut self, change: &Change) -> Result<(), AnyError>;
        fn all(&mut self) -> Result<Vec<(i64, i64, String, String)>, AnyError>;
        /// Rows of the outbox that have not been handled.
        fn waiting(&mut self) -> Result<u64, AnyError>;
        fn relay(&self, broker: &Broker) -> RelayBuilder<Json>;
    }

    pub fn open(directory: &std::path::Path, postgres: Option<&str>) -> Result<Box<dyn Users>, AnyError> {
        match postgres {
            None => Ok(Box::new(InSqlite::open(directory.join("users.db"))?)),
            #[cfg(feature = "postgres")]
            Some(url) => Ok(Box::new(super::in_postgres::InPostgres::open(url)?)),
            #[cfg(not(feature = "postgres"))]
            Some(_) => Err("this program was built without the feature `postgres`".into()),
        }
    }

    struct InSqlite {
        path: PathBuf,
        db: Connection,
        outbox: SqliteOutbox,
    }

    impl InSqlite {
        fn open(path: PathBuf) -> Result<Self, AnyError> {
            let db = super::open_sqlite(&path)?;
            let outbox = SqliteOutbox::new("outbox")?;
            outbox.watch(&db)?; // commits wake the relay
            Ok(Self { path, db, outbox })
        }
    }

    fn changed(tx: &Transaction<'_>, change: &Change) -> Result<UserChanged, AnyError> {
        let known = tx.query_row("SELECT version FROM users WHERE id = ?1", [change.user], |row| row.get(0));
        let user = change.apply(known.optional()?.unwrap_or(0) + 1);
        tx.execute(
            "INSERT INTO users VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE
             SET version = excluded.version, name = excluded.name, city = excluded.city",
            params![user.id, user.version, user.name, user.city],
        )?;
        Ok(user)
    }

    impl Users for InSqlite {
        fn create(&mut self) -> Result<(), AnyError> {
            self.db.execute_batch(
                "CREATE TABLE users (id INTEGER PRIMARY KEY, version INTEGER, name TEXT, city TEXT);
                 CREATE TABLE progress (n INTEGER); INSERT INTO progress VALUES (0)",
            )?;
            self.outbox.create_table(&self.db)?;
            Ok(())
        }

        fn progress(&mut self) -> Result<i64, AnyError> {
            Ok(self.db.query_row("SELECT n FROM progress", [], |row| row.get(0))?)
        }

        fn change(&mut self, change: &Change) -> Result<(), AnyError> {
            // Immediate: a transaction that reads before it writes could find that another has written meanwhile.
            let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let user = changed(&tx, change)?;
            let key = user.id.to_string();
            self.outbox.put(&tx, USERS, "user.changed", Message::new(user).with_key(key))?;
            if change.is_wrong() {
                tx.rollback()?;
                self.db.execute("UPDATE progress SET n = ?1", [change.n + 1])?;
            } else {
                tx.execute("UPDATE progress SET n = ?1", [change.n + 1])?;
                tx.commit()?;
            }
            Ok(())
        }

        fn all(&mut self) -> Result<Vec<(i64, i64, String, String)>, AnyError> {
            super::all_users(&self.db)
        }

        fn waiting(&mut self) -> Result<u64, AnyError> {
            Ok(self.outbox.stats(&self.db)?.waiting)
        }

        fn relay(&self, broker: &Broker) -> RelayBuilder<Json> {
            let path = self.path.clone();
            // Short, since here a new process comes right after a killed one and has to wait for its lease.
            self.outbox.relay(broker, move || super::open_sqlite(&path)).lease(Duration::from_millis(300))
        }
    }
}

#[cfg(feature = "postgres")]
mod in_postgres {
    use crate::AnyError;
    use crate::names::USERS;
    use crate::user_service::{Change, Users};
    use postroom::postgres::{Client, NoTls};
    use postroom::{Broker, Json, Message, PostgresOutbox, RelayBuilder};
    use std::time::Duration;

    pub struct InPostgres {
        url: String,
        db: Client,
        outbox: PostgresOutbox,
    }

    impl InPostgres {
        pub fn open(url: &str) -> Result<Self, AnyError> {
            let outbox = PostgresOutbox::new("data_sync_outbox")?;
            Ok(Self { url: url.to_owned(), db: Client::connect(url, NoTls)?, outbox })
        }
    }

    impl Users for InPostgres {
        fn create(&mut self) -> Result<(), AnyError> {
            self.db.batch_execute(
                "DROP TABLE IF EXISTS data_sync_users, data_sync_progress, data_sync_outbox, data_sync_outbox_relay,
                     data_sync_outbox_version;
                 CREATE TABLE data_sync_users (id BIGINT PRIMARY KEY, version BIGINT, name TEXT, city TEXT);
                 CREATE TABLE data_sync_progress (n BIGINT); INSERT INTO data_sync_progress VALUES (0)",
            )?;
            self.outbox.create_table(&mut self.db)?;
            Ok(())
        }

        fn progress(&mut self) -> Result<i64, AnyError> {
            Ok(self.db.query_one("SELECT n FROM data_sync_progress", &[])?.get(0))
        }

        fn change(&mut self, change: &Change) -> Result<(), AnyError> {
            let mut tx = self.db.transaction()?;
            // The lock on the user's row makes changes of one user follow each other, and so their messages.
            let known =
                tx.query_opt("SELECT version FROM data_sync_users WHERE id = $1 FOR UPDATE", &[&change.user])?;
            let user = change.apply(known.map_or(0, |row| row.get::<_, i64>(0)) + 1);
            tx.execute(
                "INSERT INTO data_sync_users VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE
                 SET version = excluded.version, name = excluded.name, city = excluded.city",
                &[&user.id, &user.version, &user.name, &user.city],
            )?;
            let key = user.id.to_string();
            self.outbox.put(&mut tx, USERS, "user.changed", Message::new(user).with_key(key))?;
            if change.is_wrong() {
                tx.rollback()?;
                self.db.execute("UPDATE data_sync_progress SET n = $1", &[&(change.n + 1)])?;
            } else {
                tx.execute("UPDATE data_sync_progress SET n = $1", &[&(change.n + 1)])?;
                tx.commit()?;
            }
            Ok(())
        }

        fn all(&mut self) -> Result<Vec<(i64, i64, String, String)>, AnyError> {
            let users = self.db.query("SELECT id, version, name, city FROM data_sync_users ORDER BY id", &[])?;
            Ok(users.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect())
        }

        fn waiting(&mut self) -> Result<u64, AnyError> {
            Ok(self.outbox.stats(&mut self.db)?.waiting)
        }

        fn relay(&self, broker: &Broker) -> RelayBuilder<Json> {
            let url = self.url.clone();
            self.outbox.relay(broker, move || Client::connect(&url, NoTls)).lease(Duration::from_millis(300))
        }
    }
}

/// A copy of the users, in a database of its own; the order service and billing have one each.
mod copy {
    use crate::AnyError;
    use crate::names::UserChanged;
    use postroom::rusqlite::{self, Connection, Transaction, params};
    use postroom::{Failure, Message, Once, Queue, SqliteInbox};
    use std::path::Path;
    use std::sync::Mutex;

    pub fn create(path: &Path) -> Result<(), AnyError> {
        let db = super::open_sqlite(path)?;
        db.execute_batch(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, version INTEGER, name TEXT, city TEXT);
             CREATE TABLE credit (user INTEGER, cents INTEGER);
             CREATE TABLE ignored (stale INTEGER, repeated INTEGER); INSERT INTO ignored VALUES (0, 0)",
        )?;
        SqliteInbox::new("inbox", "copy")?.create_table(&db)?;
        Ok(())
    }

    pub fn start(queue: &Queue<UserChanged>, path: &Path, workers: usize) -> Result<(), AnyError> {
        // Workers share the connections; SQLite lets one write at a time anyway.
        let connections =
            (0..workers).map(|_| super::open_sqlite(path).map(Mutex::new)).collect::<Result<Vec<_>, _>>()?;
        let inbox = SqliteInbox::new("inbox", "copy")?;
        queue.consumer().workers(workers).start(move |user: &Message<UserChanged>| -> Result<(), Failure> {
            let free = connections.iter().find_map(|connection| connection.try_lock().ok());
            let mut db = free.unwrap_or_else(|| connections[0].lock().unwrap());
            let once = inbox.handle(&mut db, user, |tx| apply(tx, user))?;
            if once == Once::AlreadyDone {
                db.execute("UPDATE ignored SET repeated = repeated + 1", [])?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Only a newer version changes the copy. The credit is not of that kind: given twice, it would be too much.
    fn apply(tx: &Transaction<'_>, user: &UserChanged) -> rusqlite::Result<()> {
        let changed = tx.execute(
            "INSERT INTO users VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE
             SET version = excluded.version, name = excluded.name, city = excluded.city
             WHERE version < excluded.version",
            params![user.id, user.version, user.name, user.city],
        )?;
        if changed == 0 {
            tx.execute("UPDATE ignored SET stale = stale + 1", [])?;
        }
        if user.version == 1 {
            tx.execute("INSERT INTO credit VALUES (?1, 500)", [user.id])?;
        }
        Ok(())
    }

    pub struct Numbers {
        pub stale: i64,
        pub repeated: i64,
        pub credits: i64,
        pub credited: i64,
    }

    pub fn numbers(db: &Connection) -> rusqlite::Result<Numbers> {
        db.query_row(
            "SELECT stale, repeated, (SELECT count(*) FROM credit), (SELECT count(DISTINCT user) FROM credit) FROM ignored",
            [],
            |row| Ok(Numbers { stale: row.get(0)?, repeated: row.get(1)?, credits: row.get(2)?, credited: row.get(3)? }),
        )
    }
}

const CHANGES: i64 = 1200;
const USERS: i64 = 150;
/// After how many changes the first process is killed.
const FIRST_KILL: i64 = 700;

/// The program whose data this is about: all services in one process. It goes on where the last one ended.
fn live(directory: &Path, postgres: Option<&str>) -> Result<(), AnyError> {
    let broker = postroom::Broker::new();
    let topic = broker.topic(names::USERS).declare()?;
    // Any order will do for orders: the newest version wins. It retries when its database is busy.
    let orders = broker.queue("orders.users").declare()?;
    let billing = broker.queue("billing.users").ordered_by_key().declare()?;
    topic.bind(&orders, "user.*")?;
    topic.bind(&billing, "user.*")?;
    copy::start(&orders, &directory.join("orders.db"), 4)?;
    copy::start(&billing, &directory.join("billing.db"), 2)?;

    let mut users = user_service::open(directory, postgres)?;
    let relay = users.relay(&broker).topic(&topic).start()?;
    println!("started");
    for n in users.progress()?..CHANGES {
        users.change(&user_service::Change { user: n / 4 * 37 % USERS, n })?;
        println!("changed {n}");
    }
    while users.waiting()? > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = broker.shutdown(Duration::from_secs(10));
    println!("relayed {}, shut down: {report}", relay.stats().relayed);
    Ok(())
}

/// Starts the program as a process and kills it as soon as it says something that `dies_at` accepts; what it
/// said last.
fn run_process(directory: &Path, postgres: Option<&str>, dies_at: impl Fn(&str) -> bool) -> Result<String, AnyError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--live").arg(directory).args(postgres.iter().flat_map(|url| ["--postgres", url]));
    let mut process = command.stdout(Stdio::piped()).spawn()?;
    let mut last = String::new();
    for line in BufReader::new(process.stdout.take().expect("piped")).lines() {
        last = line?;
        if dies_at(&last) {
            process.kill()?; // SIGKILL: no destructor runs, nothing is flushed
            process.wait()?;
            return Ok(last);
        }
    }
    let status = process.wait()?;
    if status.success() { Ok(last) } else { Err(format!("the services ended with {status}").into()) }
}

fn tell(directory: &Path, postgres: Option<&str>) -> Result<(), AnyError> {
    let start = Instant::now();
    let mut users = user_service::open(directory, postgres)?;
    users.create()?;
    let copies = ["orders.db", "billing.db"].map(|name| directory.join(name));
    copies.iter().try_for_each(|path| copy::create(path))?;
    let kind = if postgres.is_some() { "PostgreSQL" } else { "SQLite" };

    println!("1. {CHANGES} changes of {USERS} users, in {kind}, each with its message in the same transaction.");
    let last = format!("changed {}", FIRST_KILL - 1);
    run_process(directory, postgres, |said| said == last)?;
    let (done, waiting) = (users.progress()?, users.waiting()?);
    println!("   killed right after a commit: {done} changes made, {waiting} messages not handled yet");
    assert!(done >= FIRST_KILL);

    println!("2. The next process goes on, and is killed while the relay is catching up.");
    let last = format!("changed {}", done + 199);
    run_process(directory, postgres, |said| said == last)?;
    println!("   killed: {} changes made, {} messages not handled yet", users.progress()?, users.waiting()?);

    println!("3. The third one comes to the end.");
    println!("   {}", run_process(directory, postgres, |_| false)?);

    println!("4. What the copies have.");
    let source = users.all()?;
    assert_eq!((users.progress()?, users.waiting()?), (CHANGES, 0));
    assert!(source.iter().all(|(_, _, name, _)| name != "WRONG"));
    for (path, service) in copies.iter().zip(["orders", "billing"]) {
        let db = open_sqlite(path)?;
        let numbers = copy::numbers(&db)?;
        println!(
            "   {service}: {} users, {} old versions and {} repeated messages ignored, {} welcome credits",
            source.len(),
            numbers.stale,
            numbers.repeated,
            numbers.credits
        );
        assert_eq!(all_users(&db)?, source, "the copy of {service} is not like the source");
        assert_eq!((numbers.credits, numbers.credited), (USERS, USERS), "each new user has one credit");
        assert!(service != "billing" || numbers.stale == 0, "in order, no version is old");
    }
    println!("Both copies equal the source: {} users. Took {:.1?}.", source.len(), start.elapsed());
    Ok(())
}

fn open_sqlite(path: &Path) -> postroom::rusqlite::Result<postroom::rusqlite::Connection> {
    let db = postroom::rusqlite::Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // Survives the death of the process. With FULL, the default, it survives a power cut as well.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(db)
}

fn all_users(db: &postroom::rusqlite::Connection) -> Result<Vec<(i64, i64, String, String)>, AnyError> {
    let mut users = db.prepare("SELECT id, version, name, city FROM users ORDER BY id")?;
    let users = users.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    Ok(users.collect::<Result<_, _>>()?)
}

const USAGE: &str = "usage: 04_data_sync [--postgres URL]

  --postgres URL  puts the users into this PostgreSQL database instead of a SQLite file";

fn main() -> ExitCode {
    let (mut directory, mut postgres) = (None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--help", _) => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            ("--postgres", Some(url)) => postgres = Some(url),
            ("--live", Some(path)) => directory = Some(PathBuf::from(path)),
            _ => {
                eprintln!("cannot make sense of {arg}\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let result = match directory {
        Some(directory) => live(&directory, postgres.as_deref()),
        None => {
            let directory = std::env::temp_dir().join(format!("postroom-data-sync-{}", std::process::id()));
            let told = std::fs::create_dir_all(&directory).map_err(AnyError::from);
            let told = told.and_then(|()| tell(&directory, postgres.as_deref()));
            let _ = std::fs::remove_dir_all(&directory);
            told
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
