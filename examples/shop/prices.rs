//! Says what things cost, to whoever asks. It looks into its own copy of the settings, so an answer is quick.

use crate::names::{PRICES, QUESTIONS, Question, Quote, WHAT_PRICE};
use crate::settings::Settings;
use postroom::{Broker, Classify, Error, Failure, Message};
use std::sync::Arc;

pub fn start(broker: &Broker, settings: Arc<Settings>) -> Result<(), Error> {
    let queue = broker.queue(PRICES).declare()?;
    broker.topic(QUESTIONS).declare()?.bind(&queue, WHAT_PRICE)?;
    queue.consumer().respond(move |question: &Message<Question>| -> Result<Quote, Failure> {
        let cents_each = settings.price(&question.item).ok_or_else(|| format!("no price for {}", question.item));
        Ok(Quote { cents_each: cents_each.permanent()? })
    })?;
    Ok(())
}
