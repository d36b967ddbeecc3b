//! Places orders in the broker's own file: an order's row and its message in one transaction, without an outbox and
//! a relay. Everything behind it is in the same file, so that each order goes on where it was.

use super::{AnyError, Placing};
use crate::keeping::{Keeping, file::File};
use crate::names::{ORDERS, Order, PLACED, Placed, TRAY};
use crate::time::Time;
use postroom::rusqlite::params;
use postroom::{Broker, Message, PublishError, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub struct OneFile {
    keeping: Keeping,
    file: Arc<File>,
    /// What is placed and not yet published.
    tray: OnceLock<Queue<Order>>,
    left_over: BTreeMap<u64, Order>,
}

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS orders (
    number TEXT PRIMARY KEY, -- numbers go beyond SQLite's integers
    content TEXT NOT NULL
)";

impl OneFile {
    pub fn open(keeping: &Keeping, file: &Arc<File>) -> Result<Arc<Self>, AnyError> {
        let left_over = file.transaction(|tx| {
            tx.execute_batch(SCHEMA)?;
            let mut query = tx.prepare("SELECT content FROM orders")?;
            let orders = query.query_map([], |row| row.get::<_, String>(0))?;
            let orders = orders.map(|order| Ok(serde_json::from_str::<Order>(&order?)?));
            orders.map(|order| order.map(|order| (order.id, order))).collect::<Result<_, AnyError>>()
        })?;
        let (keeping, file) = (keeping.clone(), file.clone());
        Ok(Arc::new(Self { keeping, file, tray: OnceLock::new(), left_over }))
    }
}

impl Placing for OneFile {
    /// A message in a transaction goes into a queue; from there everybody who listens to the topic gets it.
    fn start(&self, broker: &Broker, _: &Time) -> Result<(), AnyError> {
        let orders = broker.topic(ORDERS).find()?;
        let tray = self.keeping.queue(broker, TRAY).declare()?;
        tray.consumer().start(move |order: &Message<Order>| -> Result<(), PublishError<Order>> {
            orders.publish(PLACED, order.event()).map(drop)
        })?;
        self.tray.get_or_init(|| tray);
        Ok(())
    }

    fn print(&self) {
        println!("   each is placed when its row and its message are committed, together, to the file of the queues");
        if !self.left_over.is_empty() {
            println!("   {} were placed by earlier runs; each goes on where it was", self.left_over.len());
        }
    }

    fn place(&self, order: &Order) -> Result<Placed, AnyError> {
        let tray = self.tray.get().expect("the shop is open");
        self.file.transaction(|tx| {
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO orders VALUES (?1, ?2)")?;
            if insert.execute(params![order.id.to_string(), serde_json::to_string(order)?])? == 0 {
                return Ok(Placed::Before);
            }
            tray.send_in(tx, order.event()).map_err(|refused| refused.to_string())?;
            Ok(Placed::Now)
        })
    }

    fn left_over(&self) -> &BTreeMap<u64, Order> {
        &self.left_over
    }

    fn deliver_all(&self, time: &Time) -> Result<(), AnyError> {
        let tray = self.tray.get().expect("the shop is open");
        for _ in 0..100_000 {
            if tray.len() + tray.in_flight() + tray.delayed() == 0 {
                return Ok(());
            }
            time.pass(time.seconds(1));
        }
        Err("orders do not get out of their tray".into())
    }

    fn check(&self, placed: &BTreeMap<u64, Order>, _: &BTreeSet<u64>, _: &BTreeSet<u64>) -> Result<(), AnyError> {
        let numbers = self.file.transaction(|tx| {
            let mut query = tx.prepare("SELECT number FROM orders")?;
            let numbers = query.query_map([], |row| row.get::<_, String>(0))?;
            numbers.map(|number| Ok(number?.parse::<u64>()?)).collect::<Result<BTreeSet<_>, AnyError>>()
        })?;
        assert!(numbers.iter().eq(placed.keys()), "orders in the file");
        println!("In the file: {} orders, {} of them placed by earlier runs.", numbers.len(), self.left_over.len());
        Ok(())
    }

    fn close(&self) -> Result<(), AnyError> {
        Ok(())
    }
}
