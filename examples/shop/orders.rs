//! Takes orders in, and gives up on them.

use crate::names::{ABANDONED, ORDERS, Order, PAYMENT, PLACED};
use crate::source::{Item, Source};
use postroom::{Broker, DeadLetter, Error, PublishError, Queue, Topic};
use std::collections::BTreeMap;
use std::io;

pub struct Intake {
    topic: Topic<Order>,
    /// What was ordered, by order.
    placed: BTreeMap<u64, Order>,
    bad_lines: u64,
}

impl Intake {
    pub fn new(broker: &Broker) -> Result<Self, Error> {
        Ok(Self { topic: broker.topic(ORDERS).declare()?, placed: BTreeMap::new(), bad_lines: 0 })
    }

    /// Places every order of the source. Publishing waits while stock's queue is full, so that reading goes
    /// no faster than the shop works.
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
        self.topic.publish(PLACED, order)?;
        Ok(())
    }

    fn skip(&mut self, line: u64, why: &str) {
        self.bad_lines += 1;
        eprintln!("   line {line}: {why}");
    }

    /// Tells everybody that orders which nobody could get paid will not be: how many those are. Their
    /// letters stay where they are.
    pub fn abandon(&self, unsolved: &Queue<DeadLetter<Order>>) -> Result<usize, PublishError<Order>> {
        let letters = unsolved.list(usize::MAX);
        let unpaid = letters.iter().filter(|letter| letter.queue() == PAYMENT.as_str());
        let mut abandoned = 0;
        for letter in unpaid {
            self.topic.publish(ABANDONED, Order::clone(letter))?;
            abandoned += 1;
        }
        Ok(abandoned)
    }

    pub fn placed(&self) -> &BTreeMap<u64, Order> {
        &self.placed
    }

    pub fn bad_lines(&self) -> u64 {
        self.bad_lines
    }
}
