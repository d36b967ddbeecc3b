//! Places orders in a SQLite database: an order's row and its message in one transaction. From there on a relay
//! has it. The modules behind it work in memory, so what is not finished when the shop is killed begins again.

use super::file::{self, File};
use super::{AnyError, Placing};
use crate::names::{CANCELLED, ORDER_BOOK, ORDERS, Order, PLACED, Placed, SHIPPED};
use crate::time::Time;
use postroom::rusqlite::{self, Connection, ErrorCode, TransactionBehavior, params};
use postroom::{Broker, Failure, Message, Relay, Retry, SqliteOutbox};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub struct Outbox {
    file: File,
    db: Arc<Mutex<Connection>>,
    outbox: SqliteOutbox,
    relay: OnceLock<Relay>,
    /// Placed in an earlier run of the shop, and not finished.
    left_over: BTreeMap<u64, Order>,
    /// How many of those no module has handled at all.
    unhandled: usize,
    /// Placed and finished in an earlier run.
    finished: BTreeSet<u64>,
}

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS orders (
    number TEXT PRIMARY KEY, -- numbers go beyond SQLite's integers
    state TEXT NOT NULL, -- open, shipped, cancelled
    content TEXT NOT NULL
)";
/// For who would notice that the shop is gone; a relay that was killed leaves it behind.
const LEASE: Duration = Duration::from_millis(300);

impl Outbox {
    /// Opens the database, or one of its own that is removed at the end.
    pub fn open(database: Option<&str>) -> Result<Arc<Self>, AnyError> {
        let file = File::choose(database)?;
        let outbox = SqliteOutbox::new("outbox")?;
        let opened = file.open(|db| {
            db.execute_batch(SCHEMA)?;
            outbox.create_table(db)?;
            begin_again(db, &outbox)
        });
        let (db, (orders, unhandled)) = opened.map_err(|why| format!("cannot use database {}: {why}", file.name()))?;
        outbox.watch(&db)?; // commits wake the relay
        let finished = numbers(&db, "SELECT number FROM orders WHERE state <> 'open'")?;
        let left_over = orders.into_iter().map(|order| (order.id, order)).collect();
        let (db, relay) = (Arc::new(Mutex::new(db)), OnceLock::new());
        Ok(Arc::new(Self { file, db, outbox, relay, left_over, unhandled, finished }))
    }
}

impl Placing for Outbox {
    fn start(&self, broker: &Broker, time: &Time) -> Result<(), AnyError> {
        let orders = broker.topic(ORDERS).find()?;
        let path = self.file.path().to_owned();
        // What is handled is deleted: the orders themselves are in their own table.
        let relay = self.outbox.relay(broker, move || file::connect(&path)).lease(LEASE).keep_done(Duration::ZERO);
        let relay = relay.topic(&orders).start()?;
        self.relay.get_or_init(|| relay);

        let retry = Retry::fixed(time.seconds(1)).max_attempts(100);
        let book = broker.queue(ORDER_BOOK).retry(retry).declare()?;
        orders.bind(&book, SHIPPED)?;
        orders.bind(&book, CANCELLED)?;
        let db = self.db.clone();
        book.consumer().start_batch(200, time.seconds(1), move |events: &[Message<Order>]| {
            note_ends(&mut db.lock().unwrap(), events)
        })?;
        Ok(())
    }

    fn print(&self) {
        println!("   each is placed when it and its message are committed to {}", self.file.name());
        let (all, unhandled) = (self.left_over.len(), self.unhandled);
        if all > 0 {
            println!("   {all} orders placed earlier are not finished and come first: {unhandled} that nobody had");
            println!("   handled yet, {} that begin again, since the modules remember nothing", all - unhandled);
        }
    }

    fn place(&self, order: &Order) -> Result<Placed, AnyError> {
        let mut db = self.db.lock().unwrap();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.outbox.put(&tx, ORDERS, PLACED, order.event())?;
        let row = params![order.id.to_string(), serde_json::to_string(order)?];
        match tx.execute("INSERT INTO orders VALUES (?1, 'open', ?2)", row) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                tx.rollback()?;
                return Ok(Placed::Before);
            }
            inserted => inserted?,
        };
        tx.commit()?;
        Ok(Placed::Now)
    }

    fn left_over(&self) -> &BTreeMap<u64, Order> {
        &self.left_over
    }

    fn deliver_all(&self, time: &Time) -> Result<(), AnyError> {
        for _ in 0..100_000 {
            if self.outbox.stats(&self.db.lock().unwrap())?.waiting == 0 {
                return Ok(());
            }
            time.pass(time.seconds(1));
        }
        let relay = self.relay.get().map(Relay::stats).unwrap_or_default();
        Err(format!("orders do not get out of the database: {relay:?}").into())
    }

    fn check(
        &self,
        placed: &BTreeMap<u64, Order>,
        shipped: &BTreeSet<u64>,
        cancelled: &BTreeSet<u64>,
    ) -> Result<(), AnyError> {
        let db = self.db.lock().unwrap();
        let all = numbers(&db, "SELECT number FROM orders")?;
        assert!(
            all.iter().eq(self.finished.iter().chain(placed.keys()).collect::<BTreeSet<_>>()),
            "orders in the database"
        );
        let of_today = |sql| numbers(&db, sql).map(|all| &all - &self.finished);
        assert_eq!(of_today("SELECT number FROM orders WHERE state = 'shipped'")?, *shipped, "shipped");
        assert_eq!(of_today("SELECT number FROM orders WHERE state = 'cancelled'")?, *cancelled, "cancelled");
        println!(
            "In the database: {} orders, {} of them finished earlier, {} shipped, {} cancelled, {} open.",
            all.len(),
            self.finished.len(),
            shipped.len(),
            cancelled.len(),
            placed.len() - shipped.len() - cancelled.len()
        );
        Ok(())
    }

    fn close(&self) -> Result<(), AnyError> {
        // Closes the file, whoever else still knows the connection.
        *self.db.lock().unwrap() = Connection::open_in_memory()?;
        Ok(self.file.remove()?)
    }
}

/// The orders that an earlier run of the shop has not finished, and how many of those wait in the outbox; the
/// others are put there again. Nothing of them is known but their row: stock and till are in memory.
fn begin_again(db: &Connection, outbox: &SqliteOutbox) -> Result<(Vec<Order>, usize), AnyError> {
    let given_up: Vec<i64> = outbox.dead(db, usize::MAX)?.iter().map(|row| row.id).collect();
    outbox.delete_dead(db, &given_up)?;
    // Killed between the last handling of an order and the relay's note of it: nobody needs the message any more.
    db.execute("DELETE FROM outbox WHERE ordering_key IN (SELECT number FROM orders WHERE state <> 'open')", [])?;
    // Whatever of the outbox is not dead, waits.
    let mut open = db.prepare(
        "SELECT content, number IN (SELECT ordering_key FROM outbox) FROM orders WHERE state = 'open' ORDER BY rowid",
    )?;
    let rows = open.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?;
    let (mut orders, mut unhandled) = (Vec::new(), 0);
    for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
        let (content, waits) = row;
        let order: Order = serde_json::from_str(&content)?;
        if waits {
            unhandled += 1;
        } else {
            outbox.put(db, ORDERS, PLACED, order.event())?;
        }
        orders.push(order);
    }
    Ok((orders, unhandled))
}

fn note_ends(db: &mut Connection, events: &[Message<Order>]) -> Result<(), Failure> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for event in events {
        let state = if event.routing_key() == SHIPPED { "shipped" } else { "cancelled" };
        tx.execute("UPDATE orders SET state = ?2 WHERE number = ?1", params![event.id.to_string(), state])?;
    }
    Ok(tx.commit()?)
}

fn numbers(db: &Connection, sql: &str) -> Result<BTreeSet<u64>, AnyError> {
    let mut query = db.prepare(sql)?;
    let texts = query.query_map([], |row| row.get::<_, String>(0))?;
    texts.map(|text| Ok(text?.parse()?)).collect()
}
