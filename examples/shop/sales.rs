//! Makes an offer to customers who found an item sold out, once some are back. It has to ask others for what it
//! offers, and knows of them only the topic that takes questions.

use crate::keeping::{Book, Keeping};
use crate::names::{HOW_MANY, InStock, Order, QUESTIONS, Question, Quote, STOCK, WHAT_PRICE};
use crate::unsolved::Unsolved;
use postroom::{Broker, DeadLetter, RequestError, Topic};
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Sales {
    questions: Topic<Question>,
    /// What each customer pays who was made an offer, by order.
    offers: Book<u64, u64>,
}

type Asked<T> = Result<T, RequestError<Question>>;

impl Sales {
    pub fn open(broker: &Broker, keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self { questions: broker.topic(QUESTIONS).declare()?, offers: keeping.book("offers")? })
    }

    pub fn offers(&self) -> &Book<u64, u64> {
        &self.offers
    }

    fn ask<R: Send + 'static>(&self, what: &str, item: &str) -> Asked<R> {
        self.questions.request(what, Question { item: item.to_owned() }, PATIENCE)
    }

    /// How many customers take an offer: all that get one do.
    pub fn make_offers(&mut self, unsolved: &Unsolved) -> Result<usize, String> {
        let of_stock = |letter: &DeadLetter<Order>| letter.queue() == STOCK.as_str();
        let letters = unsolved.list();
        let sold_out = || letters.iter().filter(|letter| of_stock(letter));
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
                    self.offers.insert(letter.id, cents_each * u64::from(letter.quantity));
                }
            }
        }
        drop(letters); // a letter that somebody looks at is not redriven
        let takes_it = |letter: &DeadLetter<Order>| of_stock(letter) && self.offers.contains_key(&letter.id);
        let at_that_price = |order: &Order| Order { cents: self.offers[&order.id], ..order.clone() };
        unsolved.send_back(takes_it, at_that_price).map_err(|why| why.to_string())
    }

    /// Nobody in this shop wraps gifts. That is heard at once, not after the time a patient module would wait.
    pub fn ask_for_gift_wrap(&self, item: &str) -> RequestError<Question> {
        self.ask::<InStock>("gift.wrap", item).expect_err("nobody answers that")
    }
}
