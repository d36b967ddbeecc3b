//! Charges cards through a gateway that has its moments, and gives up on who does not pay in time.

use crate::keeping::{Book, Keeping, Ready};
use crate::names::{CANCELLED, Card, DUE, ORDERS, Order, PAID, PAYMENT, PAYMENT_DUE, RESERVED, unpaid};
use crate::source::Dice;
use crate::time::Time;
use crate::unsolved::Unsolved;
use postroom::{Broker, CircuitBreaker, Classify, Error, Failure, Message, Retry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The calls that find the gateway down: the middle of a day of 2,000 orders.
const OUTAGE: Range<u64> = 1_000..1_015;

/// Somebody else's program.
struct Gateway {
    seed: u64,
    call: Duration,
    calls: AtomicU64,
    /// By order: the number under which it takes money only once.
    charged: Mutex<Book<u64, u64>>,
}

impl Gateway {
    fn charge(&self, order: &Message<Order>) -> Result<(), Failure> {
        std::thread::sleep(self.call);
        if OUTAGE.contains(&self.calls.fetch_add(1, Ordering::Relaxed)) {
            return Err("gateway down").transient();
        }
        match order.card {
            Card::Expired => return Err("card expired").permanent(),
            Card::Stolen => return Err("card reported stolen").permanent(),
            Card::Good => {}
        }
        if self.has_a_bad_moment(order) {
            return Err("gateway busy").transient();
        }
        let mut charged = self.charged.lock().unwrap();
        if !charged.contains_key(&order.id) {
            charged.insert(order.id, order.cents);
        }
        Ok(())
    }

    fn refund(&self, order: u64) {
        self.charged.lock().unwrap().remove(&order);
    }

    /// One call in ten, the same ones for the same seed, whatever the threads do.
    fn has_a_bad_moment(&self, order: &Message<Order>) -> bool {
        let tries = order.history().len() as u64;
        Dice::new(self.seed ^ 0x9a7e, order.id.wrapping_mul(64).wrapping_add(tries)).below(10) == 0
    }
}

/// Decides about each order once: paid or cancelled.
pub struct Till {
    gateway: Gateway,
    decided: Mutex<Book<u64, Decision>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Decision {
    Paid,
    Cancelled,
}

impl Till {
    pub fn open(seed: u64, time: &Time, keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        let call = time.call(Duration::from_micros(200));
        let charged = Mutex::new(keeping.book("charged")?);
        let gateway = Gateway { seed, call, calls: AtomicU64::default(), charged };
        Ok(Self { gateway, decided: Mutex::new(keeping.book("decided")?) })
    }

    fn charge(&self, order: &Message<Order>) -> Result<(), Failure> {
        if self.decision(order.id) != Some(Decision::Cancelled) {
            self.gateway.charge(order)?;
            crash_now_and_then(order);
        }
        if self.decide(order.id, Decision::Paid) == Decision::Cancelled {
            // Charged a moment ago, or before a crash, or not at all.
            self.gateway.refund(order.id);
            return Err("cancelled: not paid in time").permanent();
        }
        Ok(())
    }

    fn decision(&self, order: u64) -> Option<Decision> {
        self.decided.lock().unwrap().get(&order).copied()
    }

    /// What holds from now on: this, or what was decided before.
    fn decide(&self, order: u64, decision: Decision) -> Decision {
        let mut decided = self.decided.lock().unwrap();
        if let Some(before) = decided.get(&order) {
            return *before;
        }
        decided.insert(order, decision);
        decision
    }

    /// How much was charged for each order that is paid.
    pub fn charged(&self) -> BTreeMap<u64, u64> {
        BTreeMap::clone(&self.gateway.charged.lock().unwrap())
    }

    pub fn cancelled(&self) -> BTreeSet<u64> {
        let decided = self.decided.lock().unwrap();
        decided.iter().filter(|(_, decision)| **decision == Decision::Cancelled).map(|(order, _)| *order).collect()
    }
}

/// Charges no faster than the gateway allows, and leaves it alone while it is down: then orders wait in the
/// queue instead of using up their attempts.
pub fn open(broker: &Broker, time: &Time, unsolved: &Unsolved, till: Arc<Till>) -> Result<Ready, Error> {
    let retry = Retry::exponential(time.seconds(1)).max_attempts(8).jitter(0.5);
    let rate = time.per_second(40);
    let queue = unsolved.queue(PAYMENT, |payment| payment.capacity(5_000).rate_limit(rate).retry(retry))?;
    let orders = broker.topic(ORDERS).declare()?;
    orders.bind(&queue, RESERVED)?;
    let cancel_unpaid = cancel_unpaid(broker, unsolved, till.clone())?;
    let breaker = CircuitBreaker::new(20, 0.5).pause(time.seconds(30));
    let timers = broker.clone();
    let charge = move |order: &Message<Order>| -> Result<(), Failure> {
        till.charge(order)?;
        // Saves the timer its work. If it has just fired, it finds the order paid.
        timers.cancel_timer(&unpaid(order.id));
        orders.publish(PAID, order.event())?;
        Ok(())
    };
    Ok(Box::new(move || {
        queue.consumer().workers(8).circuit_breaker(breaker).start(charge)?;
        cancel_unpaid()
    }))
}

/// Delayed messages occupy capacity: it has to hold every order that is neither paid nor cancelled.
fn cancel_unpaid(broker: &Broker, unsolved: &Unsolved, till: Arc<Till>) -> Result<Ready, Error> {
    let queue = unsolved.queue(PAYMENT_DUE, |due| due.capacity(100_000))?;
    let orders = broker.topic(ORDERS).declare()?;
    orders.bind(&queue, DUE)?;
    let cancel = move |order: &Message<Order>| -> Result<(), Failure> {
        if till.decide(order.id, Decision::Cancelled) == Decision::Cancelled {
            orders.publish(CANCELLED, order.event())?;
        }
        Ok(())
    };
    Ok(Box::new(move || queue.consumer().start(cancel).map(drop)))
}

/// The worst moment: the money is taken and nobody has been told. The order is delivered again.
fn crash_now_and_then(order: &Message<Order>) {
    let unlucky = order.id % 1_000 == 777 && !order.redelivered();
    assert!(!unlucky, "crashed after charging order {}", order.id);
}
