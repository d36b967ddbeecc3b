//! Charges cards through a gateway that has its moments.

use crate::names::{Card, ORDERS, Order, PAID, PAYMENT, RESERVED};
use crate::source::Dice;
use postroom::{Broker, Classify, DeadLetter, Error, Failure, Message, Queue, Retry};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Gateway {
    seed: u64,
    /// By order: the number under which it takes money only once.
    charged: Mutex<BTreeMap<u64, u64>>,
}

impl Gateway {
    pub fn new(seed: u64) -> Self {
        Self { seed, charged: Mutex::default() }
    }

    fn charge(&self, order: &Message<Order>) -> Result<(), Failure> {
        std::thread::sleep(Duration::from_micros(200)); // the network
        match order.card {
            Card::Expired => return Err("card expired").permanent(),
            Card::Stolen => return Err("card reported stolen").permanent(),
            Card::Good => {}
        }
        if self.has_a_bad_moment(order) {
            return Err("gateway busy").transient();
        }
        self.charged.lock().unwrap().entry(order.id).or_insert(order.cents);
        Ok(())
    }

    /// One call in ten, the same ones for the same seed, whatever the threads do.
    fn has_a_bad_moment(&self, order: &Message<Order>) -> bool {
        let tries = order.history().len() as u64;
        Dice::new(self.seed ^ 0x9a7e, order.id.wrapping_mul(64).wrapping_add(tries)).below(10) == 0
    }

    /// How much was charged for each order that is paid.
    pub fn charged(&self) -> BTreeMap<u64, u64> {
        self.charged.lock().unwrap().clone()
    }
}

pub fn start(broker: &Broker, unsolved: &Queue<DeadLetter<Order>>, gateway: Arc<Gateway>) -> Result<(), Error> {
    let retry = Retry::exponential(Duration::from_millis(5)).max_attempts(8).jitter(0.5);
    let queue = broker.queue(PAYMENT).capacity(5_000).retry(retry).dead_letter_to(unsolved).declare()?;
    let orders = broker.topic(ORDERS).declare()?;
    orders.bind(&queue, RESERVED)?;
    queue.consumer().workers(8).start(move |order: &Message<Order>| -> Result<(), Failure> {
        gateway.charge(order)?;
        crash_now_and_then(order);
        orders.publish(PAID, order.payload().clone())?;
        Ok(())
    })?;
    Ok(())
}

/// The worst moment: the money is taken and nobody has been told. The order is delivered again.
fn crash_now_and_then(order: &Message<Order>) {
    let unlucky = order.id % 1_000 == 777 && !order.redelivered();
    assert!(!unlucky, "crashed after charging order {}", order.id);
}
