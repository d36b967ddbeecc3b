//! Charges cards through a gateway that has its moments, and gives up on who does not pay in time.

use crate::names::{CANCELLED, Card, DUE, ORDERS, Order, PAID, PAYMENT, PAYMENT_DUE, RESERVED, unpaid};
use crate::source::Dice;
use crate::time::Time;
use postroom::{Broker, CircuitBreaker, Classify, DeadLetter, Error, Failure, Message, Queue, Retry};
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
    charged: Mutex<BTreeMap<u64, u64>>,
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
        self.charged.lock().unwrap().entry(order.id).or_insert(order.cents);
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
    decided: Mutex<BTreeMap<u64, Decision>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Paid,
    Cancelled,
}

impl Till {
    pub fn new(seed: u64, time: &Time) -> Self {
        let call = time.call(Duration::from_micros(200));
        let gateway = Gateway { seed, call, calls: AtomicU64::default(), charged: Mutex::default() };
        Self { gateway, decided: Mutex::default() }
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
        *self.decided.lock().unwrap().entry(order).or_insert(decision)
    }

    /// How much was charged for each order that is paid.
    pub fn charged(&self) -> BTreeMap<u64, u64> {
        self.gateway.charged.lock().unwrap().clone()
    }

    pub fn cancelled(&self) -> BTreeSet<u64> {
        let decided = self.decided.lock().unwrap();
        decided.iter().filter(|(_, decision)| **decision == Decision::Cancelled).map(|(order, _)| *order).collect()
    }
}

/// Charges no faster than the gateway allows, and leaves it alone while it is down: then orders wait in the
/// queue instead of using up their attempts.
pub fn start(broker: &Broker, time: &Time, unsolved: &Queue<DeadLetter<Order>>, till: Arc<Till>) -> Result<(), Error> {
    let retry = Retry::exponential(time.seconds(1)).max_attempts(8).jitter(0.5);
    let queue = broker
        .queue(PAYMENT)
        .capacity(5_000)
        .rate_limit(time.per_second(40))
        .retry(retry)
        .dead_letter_to(unsolved)
        .declare()?;
    let orders = broker.topic(ORDERS).declare()?;
    orders.bind(&queue, RESERVED)?;
    let breaker = CircuitBreaker::new(20, 0.5).pause(time.seconds(30));
    let (cashier, timers) = (till.clone(), broker.clone());
    queue.consumer().workers(8).circuit_breaker(breaker).start(
        move |order: &Message<Order>| -> Result<(), Failure> {
            cashier.charge(order)?;
            // Saves the timer its work. If it has just fired, it finds the order paid.
            timers.cancel_timer(&unpaid(order.id));
            orders.publish(PAID, order.event())?;
            Ok(())
        },
    )?;
    cancel_unpaid(broker, unsolved, till)
}

/// Delayed messages occupy capacity: it has to hold every order that is neither paid nor cancelled.
fn cancel_unpaid(broker: &Broker, unsolved: &Queue<DeadLetter<Order>>, till: Arc<Till>) -> Result<(), Error> {
    let queue = broker.queue(PAYMENT_DUE).capacity(100_000).dead_letter_to(unsolved).declare()?;
    let orders = broker.topic(ORDERS).declare()?;
    orders.bind(&queue, DUE)?;
    queue.consumer().start(move |order: &Message<Order>| -> Result<(), Failure> {
        if till.decide(order.id, Decision::Cancelled) == Decision::Cancelled {
            orders.publish(CANCELLED, order.event())?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The worst moment: the money is taken and nobody has been told. The order is delivered again.
fn crash_now_and_then(order: &Message<Order>) {
    let unlucky = order.id % 1_000 == 777 && !order.redelivered();
    assert!(!unlucky, "crashed after charging order {}", order.id);
}
