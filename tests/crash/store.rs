//! The database of the program that is killed, whichever it is.

use crate::child::{ORDERS, Points, Watched};
use postroom::rusqlite::{self, Connection, hooks::Action, params};
use postroom::{Broker, Failure, Message, Once, RelayBuilder, SqliteInbox, SqliteOutbox};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) n: u64,
    pub(crate) key: String,
    /// Its transaction is rolled back.
    pub(crate) doomed: bool,
}

/// Does an order's work once; calls the other function before it commits.
pub(crate) type Work = Box<dyn Fn(&Message<Order>, &dyn Fn()) -> Result<(), Failure> + Send + Sync>;

pub(crate) trait Store {
    fn create(&self);
    fn relay(&self, broker: &Broker, points: &Points) -> RelayBuilder<Watched>;
    fn worker(&self) -> Work;
    /// Until it is killed.
    fn write_orders(&self, round: u64, points: &Points);
    fn orders(&self) -> Vec<u64>;
    /// In the order in which they happened.
    fn effects(&self) -> Vec<(u64, String)>;
    /// Rows that are not done.
    fn unfinished(&self) -> u64;
}

pub(crate) fn open(database: &str) -> Box<dyn Store> {
    match database.split_once(':').unwrap() {
        ("sqlite", path) => Box::new(Sqlite(path.into())),
        #[cfg(feature = "postgres")]
        ("postgres", url) => Box::new(of_postgres::Postgres(url.to_owned())),
        (other, _) => panic!("{other}?"),
    }
}

/// The orders of one transaction: the first of them has number `first`.
fn orders_of(round: u64, transaction: u64) -> Vec<Order> {
    let doomed = transaction % 4 == 1;
    let first = round * 1_000_000 + transaction * 10;
    (first..first + 1 + transaction % 3).map(|n| Order { n, key: format!("customer {}", n % 7), doomed }).collect()
}

struct Sqlite(PathBuf);

fn connect(path: &PathBuf) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A killed process leaves its writes to the system; only a power cut needs more.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

impl Sqlite {
    fn connection(&self) -> Connection {
        connect(&self.0).unwrap()
    }
}

impl Store for Sqlite {
    fn create(&self) {
        let connection = self.connection();
        connection
            .execute_batch(
                "CREATE TABLE orders (n INTEGER PRIMARY KEY);
                 CREATE TABLE effects (i INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER, key TEXT)",
            )
            .unwrap();
        SqliteOutbox::new("outbox").unwrap().create_table(&connection).unwrap();
        SqliteInbox::new("inbox", "").unwrap().create_table(&connection).unwrap();
    }

    fn relay(&self, broker: &Broker, points: &Points) -> RelayBuilder<Watched> {
        let outbox = SqliteOutbox::with_codec("outbox", Watched(points.clone())).unwrap();
        let (path, points) = (self.0.clone(), points.clone());
        outbox.relay(broker, move || {
            points.pass("connecting");
            let connection = connect(&path)?;
            let (marks, points) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), points.clone());
            let marking = std::sync::Arc::clone(&marks);
            connection.update_hook(Some(move |action: Action, _: &str, table: &str, _: i64| {
                if table == "outbox" && action != Action::SQLITE_INSERT {
                    marking.store(true, std::sync::atomic::Ordering::SeqCst);
                }
            }))?;
            connection.commit_hook(Some(move || {
                if marks.swap(false, std::sync::atomic::Ordering::SeqCst) {
                    points.pass("marking");
                }
                false
            }))?;
            Ok(connection)
        })
    }

    fn worker(&self) -> Work {
        let path = self.0.clone();
        let inbox = SqliteInbox::new("inbox", "work").unwrap();
        Box::new(move |order, written| {
            let mut connection = connect(&path)?;
            let once: Once<()> = inbox.handle(&mut connection, order, |tx| -> rusqlite::Result<()> {
                tx.execute("INSERT INTO effects (n, key) VALUES (?1, ?2)", params![order.n as i64, order.key])?;
                written();
                Ok(())
            })?;
            let _ = once;
            Ok(())
        })
    }

    fn write_orders(&self, round: u64, points: &Points) {
        let outbox = SqliteOutbox::new("outbox").unwrap();
        let mut connection = self.connection();
        for transaction in 0.. {
            let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
            let mut doomed = false;
            for order in orders_of(round, transaction) {
                doomed = order.doomed;
                tx.execute("INSERT INTO orders VALUES (?1)", [order.n as i64]).unwrap();
                let key = order.key.clone();
                outbox.put(&tx, ORDERS, "order.placed", Message::new(order).with_key(key)).unwrap();
            }
            points.pass("put");
            if doomed {
                tx.rollback().unwrap();
            } else {
                tx.commit().unwrap();
                points.pass("committed");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn orders(&self) -> Vec<u64> {
        let connection = self.connection();
        let mut orders = connection.prepare("SELECT n FROM orders").unwrap();
        orders.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|n| n.unwrap() as u64).collect()
    }

    fn effects(&self) -> Vec<(u64, String)> {
        let connection = self.connection();
        let mut effects = connection.prepare("SELECT n, key FROM effects ORDER BY i").unwrap();
        let effects = effects.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))).unwrap();
        effects.map(Result::unwrap).collect()
    }

    fn unfinished(&self) -> u64 {
        let stats = SqliteOutbox::new("outbox").unwrap().stats(&self.connection()).unwrap();
        stats.waiting + stats.dead
    }
}

#[cfg(feature = "postgres")]
mod of_postgres {
    use super::*;
    use postroom::postgres::{self, Client, NoTls};
    use postroom::{PostgresInbox, PostgresOutbox};
    use std::sync::Mutex;

    pub(super) struct Postgres(pub(super) String);

    impl Postgres {
        fn client(&self) -> Client {
            Client::connect(&self.0, NoTls).unwrap()
        }
    }

    impl Store for Postgres {
        fn create(&self) {
            let mut client = self.client();
            client
                .batch_execute(
                    "CREATE TABLE orders (n BIGINT PRIMARY KEY);
                     CREATE TABLE effects (i BIGINT GENERATED ALWAYS AS IDENTITY, n BIGINT, key TEXT)",
                )
                .unwrap();
            PostgresOutbox::new("crash_outbox").unwrap().create_table(&mut client).unwrap();
            PostgresInbox::new("crash_inbox", "").unwrap().create_table(&mut client).unwrap();
        }

        fn relay(&self, broker: &Broker, points: &Points) -> RelayBuilder<Watched> {
            let outbox = PostgresOutbox::with_codec("crash_outbox", Watched(points.clone())).unwrap();
            let (url, points) = (self.0.clone(), points.clone());
            outbox.relay(broker, move || {
                points.pass("connecting");
                Client::connect(&url, NoTls)
            })
        }

        fn worker(&self) -> Work {
            let (url, spare) = (self.0.clone(), Mutex::new(Vec::new()));
            let inbox = PostgresInbox::new("crash_inbox", "work").unwrap();
            Box::new(move |order, written| {
                let taken = spare.lock().unwrap().pop();
                let mut client = match taken {
                    Some(client) => client,
                    None => Client::connect(&url, NoTls)?,
                };
                let once = inbox.handle(&mut client, order, |tx| -> Result<(), postgres::Error> {
                    tx.execute("INSERT INTO effects (n, key) VALUES ($1, $2)", &[&(order.n as i64), &order.key])?;
                    written();
                    Ok(())
                })?;
                let _ = once;
                spare.lock().unwrap().push(client);
                Ok(())
            })
        }

        fn write_orders(&self, round: u64, points: &Points) {
            let outbox = PostgresOutbox::new("crash_outbox").unwrap();
            let mut client = self.client();
            for transaction in 0.. {
                let mut tx = client.transaction().unwrap();
                let mut doomed = false;
                for order in orders_of(round, transaction) {
                    doomed = order.doomed;
                    tx.execute("INSERT INTO orders VALUES ($1)", &[&(order.n as i64)]).unwrap();
                    let key = order.key.clone();
                    outbox.put(&mut tx, ORDERS, "order.placed", Message::new(order).with_key(key)).unwrap();
                }
                points.pass("put");
                if doomed {
                    tx.rollback().unwrap();
                } else {
                    tx.commit().unwrap();
                    points.pass("committed");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn orders(&self) -> Vec<u64> {
            let orders = self.client().query("SELECT n FROM orders", &[]).unwrap();
            orders.iter().map(|row| row.get::<_, i64>(0) as u64).collect()
        }

        fn effects(&self) -> Vec<(u64, String)> {
            let effects = self.client().query("SELECT n, key FROM effects ORDER BY i", &[]).unwrap();
            effects.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect()
        }

        fn unfinished(&self) -> u64 {
            let stats = PostgresOutbox::new("crash_outbox").unwrap().stats(&mut self.client()).unwrap();
            stats.waiting + stats.dead
        }
    }
}
