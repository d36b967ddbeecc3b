//! Takes orders in.

use crate::names::{GATE, ORDERS, Order, PLACED};
use crate::source::{Item, Source};
use crate::time::Time;
use postroom::{Broker, Error, PublishError, Topic};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

pub struct Intake {
    time: Time,
    gate: Topic<Order>,
    /// What was ordered, by order.
    placed: BTreeMap<u64, Order>,
    bad_lines: u64,
    busy: u64,
    longest_wait: Duration,
}

impl Intake {
    /// The limit is the gate's alone: what passes it is published to the topic of all orders, whose other
    /// messages must not be held up.
    pub fn new(broker: &Broker, time: Time) -> Result<Self, Error> {
        let gate = broker.topic(GATE).admission(time.per_second(50).burst(50)).declare()?;
        gate.bind(&broker.topic(ORDERS).find()?, PLACED)?;
        Ok(Self { time, gate, placed: BTreeMap::new(), bad_lines: 0, busy: 0, longest_wait: Duration::ZERO })
    }

    /// Places every order of the source. They all come at once: a rush. Publishing waits while stock's queue
    /// is full, so that reading goes no faster than the shop works.
    pub fn take_all(&mut self, mut source: Source) -> io::Result<()> {
        while let Some(item) = source.next()? {
            match item {
                Item::BadLine(why) => self.skip(source.position(), &why),
                Item::Order(order) if self.placed.contains_key(&order.id) => {
                    self.skip(source.position(), &format!("order {} was placed before", order.id));
                }
                Item::Order(order) => self.place(order).map_err(io::Error::other)?,
            }
        }
        Ok(())
    }

    fn place(&mut self, order: Order) -> Result<(), PublishError<Order>> {
        self.placed.insert(order.id, order.clone());
        let mut order = order.event();
        let mut waited = Duration::ZERO;
        loop {
            match self.gate.publish(PLACED, order) {
                Ok(_) => return Ok(()),
                // The customer hears at once that we are busy, and when to come again; and does so.
                Err(PublishError::Limited(refused)) => {
                    assert_eq!(waited, Duration::ZERO, "who comes again when told to is let in");
                    waited = refused.retry_in().expect("the limit knows");
                    order = refused.into_message();
                    self.busy += 1;
                    self.longest_wait = self.longest_wait.max(waited);
                    self.time.pass(waited);
                }
                Err(other) => return Err(other),
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

    pub fn placed(&self) -> &BTreeMap<u64, Order> {
        &self.placed
    }

    pub fn bad_lines(&self) -> u64 {
        self.bad_lines
    }
}
