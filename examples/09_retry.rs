//! Retry: a payment gateway fails now and then, and some cards are simply bad.
//!
//! **Situation.** Charging a card can fail for a moment (the gateway is busy), for an hour (the bank is
//! down) or for ever (the card has expired). A charge may also have happened although the program crashed
//! before it could note that down.
//!
//! **What the queue gives.** A temporary failure is tried again after a growing delay with jitter, during
//! which no worker waits. A permanent one becomes a dead letter at once. A crash in the middle leads to
//! another delivery, so the charge carries the order's number and the gateway refuses to take money twice.
//! Dead letters keep their whole story; they can be repaired and sent back.
//!
//! **What to expect on screen.** The schedule of the policy; what became of 400 payments; the attempts of
//! one of them, to be compared with the schedule; the dead letters by reason; what is left after the bank
//! is back and customers have given new cards. The clock is virtual, so the minutes take no time.
//!
//! `cargo run --release --example 09_retry`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use names::Payment;
use postroom::{Broker, DeadLetter, Queue, Rate, Reason};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::QueueName;

    #[derive(Clone)]
    pub struct Payment {
        pub order: u64,
        pub cents: u64,
        pub card: Card,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Card {
        Good,
        /// Good, but its bank is down at first.
        OfBankDown,
        Expired,
        Stolen,
    }

    pub const PAYMENTS: QueueName<Payment> = QueueName::new("payments");
}

/// The world outside: slow to trust, quick to fail.
mod gateway {
    use crate::names::{Card, Payment};
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    #[derive(Debug)]
    pub enum GatewayError {
        Busy,
        BankDown,
        CardExpired,
        CardStolen,
    }

    impl std::fmt::Display for GatewayError {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(match self {
                Self::Busy => "gateway busy",
                Self::BankDown => "bank does not answer",
                Self::CardExpired => "card expired",
                Self::CardStolen => "card reported stolen",
            })
        }
    }

    impl std::error::Error for GatewayError {}

    #[derive(Default)]
    pub struct Gateway {
        pub bank_is_back: AtomicBool,
        pub calls: AtomicU64,
        /// By order: the number that makes charging idempotent.
        pub charged: Mutex<BTreeMap<u64, u64>>,
        pub charged_already: Mutex<BTreeSet<u64>>,
    }

    impl Gateway {
        pub fn charge(&self, payment: &Payment) -> Result<(), GatewayError> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            match payment.card {
                Card::Expired => return Err(GatewayError::CardExpired),
                Card::Stolen => return Err(GatewayError::CardStolen),
                Card::OfBankDown if !self.bank_is_back.load(Ordering::Relaxed) => return Err(GatewayError::BankDown),
                _ if call % 4 == 3 => return Err(GatewayError::Busy),
                _ => {}
            }
            if self.charged.lock().unwrap().insert(payment.order, payment.cents).is_some() {
                self.charged_already.lock().unwrap().insert(payment.order);
            }
            Ok(())
        }
    }
}

mod payment {
    use crate::gateway::{Gateway, GatewayError};
    use crate::names::{PAYMENTS, Payment};
    use postroom::{Broker, Classify, Error, Failure, Message, Queue, Retry};
    use std::sync::Arc;
    use std::time::Duration;

    /// The order whose worker crashes after the charge and before it could say so.
    pub const CRASHES: u64 = 77;

    pub fn retry() -> Retry {
        Retry::exponential(Duration::from_millis(200)).max_attempts(6).jitter(0.5)
    }

    pub fn start(broker: &Broker, gateway: Arc<Gateway>) -> Result<Queue<Payment>, Error> {
        let queue = broker.queue(PAYMENTS).retry(retry()).declare()?;
        queue.consumer().workers(4).start(move |payment: &Message<Payment>| -> Result<(), Failure> {
            charge(&gateway, payment)?;
            assert!(payment.order != CRASHES || payment.redelivered(), "crashed after charging order {CRASHES}");
            Ok(())
        })?;
        Ok(queue)
    }

    /// Only this module knows which errors another attempt can mend.
    fn charge(gateway: &Gateway, payment: &Payment) -> Result<(), Failure> {
        match gateway.charge(payment) {
            Err(error @ (GatewayError::CardExpired | GatewayError::CardStolen)) => Err(error).permanent(),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(()),
        }
    }
}

const ORDERS: u64 = 400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("09_retry.rs"));
    print_crashes_in_one_line();
    let start = Instant::now();
    let (broker, simulation) = Broker::simulated(9);
    let gateway = Arc::new(gateway::Gateway::default());
    let queue = payment::start(&broker, gateway.clone())?;

    let policy = payment::retry();
    println!("1. The policy: {policy}.");
    let floors: Vec<Duration> = policy.schedule().collect();
    for (n, floor) in floors.iter().enumerate() {
        println!("   after attempt {} failed: wait {floor:?} to {:?}", n + 1, *floor + *floor / 2);
    }

    println!("\n2. {ORDERS} payments. One call in four finds the gateway busy, one bank is down, some cards are bad.");
    for payment in (1..=ORDERS).map(payment) {
        queue.send(payment)?;
    }
    simulation.advance(Duration::from_secs(60));
    print_numbers(&queue, &gateway);
    assert_eq!(gateway.charged_already.lock().unwrap().iter().copied().collect::<Vec<_>>(), [payment::CRASHES]);
    println!("   order {} was charged, crashed, was delivered again, and was charged once", payment::CRASHES);
    assert_eq!(queue.stats().panicked, 1);

    println!("\n3. The dead letters, by reason.");
    let letters = queue.dead_letters();
    print_letters(&letters);
    check_schedule(&letters, &floors);
    assert_eq!(charged(&gateway) + letters.len() as u64, ORDERS, "every payment is charged or a dead letter");

    println!("\n4. Repair: the bank is back, customers with an expired card give a new one. A stolen card stays.");
    gateway.bank_is_back.store(true, Ordering::Relaxed);
    let of_bank = letters.redrive().filter(|letter| *letter.reason() == Reason::Exhausted);
    let of_bank = of_bank.rate(Rate::per_second(10)).run()?;
    println!("   {} redriven as they were, ten a second: a bank that has just come back is not flooded", of_bank.moved);
    let renewed = letters.redrive().filter(|letter| letter.card == names::Card::Expired);
    let renewed = renewed.edit(|letter| Payment { card: names::Card::Good, ..letter.payload().clone() }).run()?;
    println!("   {} redriven with a new card", renewed.moved);
    simulation.advance(Duration::from_secs(60));
    print_numbers(&queue, &gateway);
    print_letters(&letters);

    let stolen = (1..=ORDERS).map(payment).filter(|payment| payment.card == names::Card::Stolen);
    let expected: BTreeMap<u64, u64> = (1..=ORDERS)
        .map(payment)
        .filter(|payment| payment.card != names::Card::Stolen)
        .map(|payment| (payment.order, payment.cents))
        .collect();
    assert_eq!(*gateway.charged.lock().unwrap(), expected, "every other payment is charged, once");
    assert!(letters.list(usize::MAX).iter().map(|letter| letter.order).eq(stolen.map(|payment| payment.order)));
    assert_eq!(queue.stats().unaccounted(), 0);

    println!("\nTwo minutes of retries took {:.1?}.", start.elapsed());
    Ok(())
}

fn payment(order: u64) -> Payment {
    let card = match order {
        _ if order.is_multiple_of(40) => names::Card::Stolen,
        _ if order.is_multiple_of(20) => names::Card::Expired,
        _ if order % 10 == 5 => names::Card::OfBankDown,
        _ => names::Card::Good,
    };
    Payment { order, cents: 500 + order, card }
}

fn charged(gateway: &gateway::Gateway) -> u64 {
    gateway.charged.lock().unwrap().len() as u64
}

fn print_numbers(queue: &Queue<Payment>, gateway: &gateway::Gateway) {
    let (stats, calls) = (queue.stats(), gateway.calls.load(Ordering::Relaxed));
    let (delivered, retried) = (stats.delivered, stats.retried);
    println!("   {} charged after {delivered} deliveries, {retried} retries and {calls} calls", charged(gateway));
}

fn print_letters(letters: &Queue<DeadLetter<Payment>>) {
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for letter in letters.list(usize::MAX) {
        let kind = format!("{}: {}", letter.reason(), letter.error().unwrap_or("no error"));
        let (count, attempts) = kinds.entry(kind).or_default();
        *count += 1;
        *attempts = letter.attempts().len();
    }
    for (kind, (count, attempts)) in kinds {
        println!("   {count:>3} x {kind} (attempts: {attempts})");
    }
}

/// The attempts of an exhausted payment against what the policy promises.
fn check_schedule(letters: &Queue<DeadLetter<Payment>>, floors: &[Duration]) {
    let letters = letters.list(usize::MAX);
    let exhausted = letters.iter().filter(|letter| *letter.reason() == Reason::Exhausted);
    for (n, letter) in exhausted.enumerate() {
        if n == 0 {
            println!("   order {}, of the bank that was down:", letter.order);
        }
        let gaps = letter.attempts().windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).unwrap_or_default());
        for (gap, (floor, attempt)) in gaps.zip(floors.iter().zip(letter.attempts())) {
            assert!(gap >= *floor && gap <= *floor + *floor / 2, "{gap:?} is not within the schedule");
            if n == 0 {
                println!("   attempt {}: {}, next one {gap:.1?} later", attempt.number, attempt.error);
            }
        }
        assert_eq!(letter.attempts().len(), floors.len() + 1);
    }
}

/// A worker survives a panic, but the standard hook would fill the screen with it.
fn print_crashes_in_one_line() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.payload().downcast_ref::<String>() {
        Some(words) if words.starts_with("crashed") => eprintln!("   [worker] panicked: {words}"),
        _ => standard(panic),
    }));
}
