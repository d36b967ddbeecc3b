//! Makes an offer to customers who found an item sold out, once some are back. It has to ask others for what it
//! offers, and knows of them only the topic that takes questions.

use crate::names::{HOW_MANY, InStock, Order, QUESTIONS, Question, Quote, STOCK, WHAT_PRICE};
use postroom::{Broker, DeadLetter, Error, Queue, RequestError, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

pub struct Sales {
    questions: Topic<Question>,
}

type Asked<T> = Result<T, RequestError<Question>>;

impl Sales {
    pub fn new(broker: &Broker) -> Result<Self, Error> {
        Ok(Self { questions: broker.topic(QUESTIONS).declare()? })
    }

    fn ask<R: Send + 'static>(&self, what: &str, item: &str) -> Asked<R> {
        self.questions.request(what, Question { item: item.to_owned() }, PATIENCE)
    }

    /// What each customer pays who takes the offer, by order. They all do.
    pub fn make_offers(&self, unsolved: &Queue<DeadLetter<Order>>) -> Result<BTreeMap<u64, u64>, String> {
        let of_stock = |letter: &DeadLetter<Order>| letter.queue() == STOCK.as_str();
        let letters = unsolved.list(usize::MAX);
        let sold_out = || letters.iter().filter(|letter| of_stock(letter));
        let mut offers = BTreeMap::new();
        for item in sold_out().map(|letter| &letter.item).collect::<BTreeSet<_>>() {
            let InStock(mut left) = self.ask(HOW_MANY, item).map_err(|why| why.to_string())?;
            println!("   stock says: {left} x {item}");
            if left == 0 {
                continue;
            }
            let Quote { cents_each } = self.ask(WHAT_PRICE, item).map_err(|why| why.to_string())?;
            println!("   prices says: {}.{:02} each", cents_each / 100, cents_each % 100);
            for letter in sold_out().filter(|letter| letter.item == *item) {
                if let Some(rest) = left.checked_sub(letter.quantity) {
                    left = rest;
                    offers.insert(letter.id, cents_each * u64::from(letter.quantity));
                }
            }
        }
        drop(letters); // a letter that somebody looks at is not redriven
        let taken = unsolved.redrive().filter(|letter| of_stock(letter) && offers.contains_key(&letter.id));
        let taken = taken.edit(|letter| Order { cents: offers[&letter.id], ..letter.payload().clone() });
        assert_eq!(taken.run().map_err(|why| why.to_string())?.moved, offers.len());
        Ok(offers)
    }

    /// Nobody in this shop wraps gifts. That is heard at once, not after the time a patient module would wait.
    pub fn ask_for_gift_wrap(&self, item: &str) -> RequestError<Question> {
        self.ask::<InStock>("gift.wrap", item).expect_err("nobody answers that")
    }
}
