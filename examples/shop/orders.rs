//! Takes orders in.

use crate::names::{Answer, GATE, ORDER_DESK, Order, PLACED, Placed};
use crate::placing::Placing;
use crate::source::{Item, Source};
use crate::time::Time;
use postroom::{Broker, Error, Message, PublishError, RequestError, Topic};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Long enough for whoever waits behind a full queue.
const PATIENCE: Duration = Duration::from_secs(3600);

pub struct Intake {
    time: Time,
    gate: Topic<Order>,
    /// What was ordered, by order: what an earlier run of the shop left unfinished, and what came in.
    placed: BTreeMap<u64, Order>,
    left_over: BTreeMap<u64, Order>,
    before: u64,
    bad_lines: u64,
    busy: u64,
    longest_wait: Duration,
}

impl Intake {
    /// The limit is the gate's alone: behind it is the desk, which places what passes.
    pub fn open(broker: &Broker, time: Time, placing: Arc<dyn Placing>) -> Result<Self, Error> {
        let gate = broker.topic(GATE).admission(time.per_second(50).burst(50)).declare()?;
        let desk = broker.queue(ORDER_DESK).declare()?;
        gate.bind(&desk, PLACED)?;
        let left_over = placing.left_over().clone();
        desk.consumer().respond(move |order: &Message<Order>| -> Result<Answer, Infallible> {
            Ok(placing.place(order).map_err(|why| why.to_string()))
        })?;
        Ok(Self {
            time,
            gate,
            placed: left_over.clone(),
            left_over,
            before: 0,
            bad_lines: 0,
            busy: 0,
            longest_wait: Duration::ZERO,
        })
    }

    /// Places every order of the source. They all come at once: a rush.
    pub fn take_all(&mut self, mut source: Source) -> io::Result<()> {
        while let Some(item) = source.next()? {
            match item {
                Item::BadLine(why) => self.skip(source.position(), &why),
                Item::Order(order) if self.is_new(order.id) => self.place(order).map_err(io::Error::other)?,
                Item::Order(order) => self.skip(source.position(), &format!("order {} was placed before", order.id)),
            }
        }
        Ok(())
    }

    /// Whether none of that number came in today.
    fn is_new(&self, order: u64) -> bool {
        self.left_over.contains_key(&order) || !self.placed.contains_key(&order)
    }

    fn place(&mut self, order: Order) -> Result<(), String> {
        let mut message = order.event();
        let mut waited = Duration::ZERO;
        loop {
            match self.gate.request::<Answer>(PLACED, message, PATIENCE) {
                Ok(Ok(Placed::Now)) => {
                    self.placed.insert(order.id, order);
                    return Ok(());
                }
                Ok(Ok(Placed::Before)) => {
                    self.before += 1;
                    return Ok(());
                }
                Ok(Err(why)) => return Err(format!("order {} cannot be placed: {why}", order.id)),
                // The customer hears at once that we are busy, and when to come again; and does so.
                Err(RequestError::Publish(PublishError::Limited(refused))) => {
                    assert_eq!(waited, Duration::ZERO, "who comes again when told to is let in");
                    waited = refused.retry_in().expect("the limit knows");
                    message = refused.into_message();
                    self.busy += 1;
                    self.longest_wait = self.longest_wait.max(waited);
                    self.time.pass(waited);
                }
                Err(other) => return Err(format!("order {}: {other}", order.id)),
            }
        }
    }

    fn skip(&mut self, line: u64, why: &str) {
        self.bad_lines += 1;
        eprintln!("   line {line}: {why}");
    }

    /// How many customers were told to come again, and after how long at most.
    pub fn busy(&self) -> (u64, Duration) {
        (self.busy, self.longest_wait)
    }

    /// All orders that this run of the shop deals with.
    pub fn placed(&self) -> &BTreeMap<u64, Order> {
        &self.placed
    }

    /// How many of those came in today.
    pub fn new_orders(&self) -> usize {
        self.placed.len() - self.left_over.len()
    }

    /// How many came in that an earlier run of the shop had placed.
    pub fn placed_before(&self) -> u64 {
        self.before
    }

    pub fn bad_lines(&self) -> u64 {
        self.bad_lines
    }
}
