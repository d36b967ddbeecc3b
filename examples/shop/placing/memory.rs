//! Places orders where nothing outlives the process: on the topic, at once.

use super::{AnyError, Placing};
use crate::names::{ORDERS, Order, PLACED, Placed};
use crate::time::Time;
use postroom::{Broker, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};

#[derive(Default)]
pub struct Memory {
    orders: OnceLock<Topic<Order>>,
    placed: Mutex<BTreeSet<u64>>,
    left_over: BTreeMap<u64, Order>,
}

const WITH_A_DATABASE: &str = "cargo run --release --features sqlite,json --example shop";

impl Memory {
    pub fn open(database: Option<&str>) -> Result<Arc<Self>, AnyError> {
        match database {
            None => Ok(Arc::default()),
            Some(_) => Err(format!("--database: this shop was built without one; for that, {WITH_A_DATABASE}").into()),
        }
    }
}

impl Placing for Memory {
    fn start(&self, broker: &Broker, _: &Time) -> Result<(), AnyError> {
        let orders = broker.topic(ORDERS).find()?;
        self.orders.get_or_init(|| orders);
        Ok(())
    }

    fn print(&self) {
        println!("   (no database: what is placed dies with the process; with one, {WITH_A_DATABASE})");
    }

    /// Waits while stock's queue is full, and the customer with it.
    fn place(&self, order: &Order) -> Result<Placed, AnyError> {
        if !self.placed.lock().unwrap().insert(order.id) {
            return Ok(Placed::Before);
        }
        self.orders.get().expect("the shop is open").publish(PLACED, order.event())?;
        Ok(Placed::Now)
    }

    fn left_over(&self) -> &BTreeMap<u64, Order> {
        &self.left_over
    }

    fn deliver_all(&self, _: &Time) -> Result<(), AnyError> {
        Ok(())
    }

    fn check(&self, placed: &BTreeMap<u64, Order>, _: &BTreeSet<u64>, _: &BTreeSet<u64>) -> Result<(), AnyError> {
        assert!(self.placed.lock().unwrap().iter().eq(placed.keys()), "orders placed and orders on the topic");
        Ok(())
    }

    fn close(&self) -> Result<(), AnyError> {
        Ok(())
    }
}
