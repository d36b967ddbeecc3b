//! What a transaction is going to do, operation by operation.

use super::basket::Baskets;
#[cfg(feature = "sqlite")]
use super::durably::Stow;
use super::error::Obstacle;
use crate::log::{LogCore, Spot};
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::core::Core;
use crate::subscriber::ring::for_subscribers;
use crate::topic::{Destinations, TopicCore};
use std::sync::Arc;

/// One operation, without its payload's type.
pub(super) trait Staged: Send + Sync {
    /// What it is for.
    fn target(&self) -> String;
    /// Finds out where it goes, running what is the user's code, and counts it into the baskets. May be called
    /// again, if the transaction is.
    fn plan(&mut self, baskets: &mut Baskets) -> Result<(), (Arc<str>, Obstacle)>;
    /// Asks the limits that are not those of a queue.
    fn admit(&self) -> Result<(), (Arc<str>, Obstacle)> {
        Ok(())
    }
    /// It was admitted in vain.
    fn unadmit(&self) {}
    /// Adds its copies for durable queues and logs to the batch, running the users' codecs.
    #[cfg(feature = "sqlite")]
    fn stow(&self, _: &mut Stow) -> Result<(), (Arc<str>, Obstacle)> {
        Ok(())
    }
    /// Everything is promised: fills the baskets.
    fn deliver(self: Box<Self>, baskets: &mut Baskets);
    /// Nothing will come of it.
    fn discard(self: Box<Self>);
}

pub(super) struct Enqueue<T> {
    pub(super) core: Arc<Core<T>>,
    pub(super) message: Message<T>,
    key: Option<Text>,
}

impl<T: Send + Sync + 'static> Enqueue<T> {
    pub(super) fn new(core: Arc<Core<T>>, message: Message<T>) -> Self {
        Self { core, message, key: None }
    }
}

impl<T: Send + Sync + 'static> Staged for Enqueue<T> {
    fn target(&self) -> String {
        format!("queue {:?}", self.core.name)
    }
    fn plan(&mut self, baskets: &mut Baskets) -> Result<(), (Arc<str>, Obstacle)> {
        self.core.stamp(&mut self.message);
        let key = self.core.order_key(&self.message);
        self.key = key.map_err(|refusal| (Arc::clone(&self.core.name), refusal.into()))?;
        baskets.queue(&self.core).n += 1;
        Ok(())
    }
    fn deliver(self: Box<Self>, baskets: &mut Baskets) {
        let Self { core, message, key } = *self;
        baskets.queue(&core).push(message.ordered_by(key));
    }
    #[cfg(feature = "sqlite")]
    fn stow(&self, stow: &mut Stow) -> Result<(), (Arc<str>, Obstacle)> {
        stow.add(&self.core, &self.message)
    }
    fn discard(self: Box<Self>) {
        drop_contained(self.message);
    }
}

pub(super) struct Append<T> {
    log: Arc<LogCore<T>>,
    message: Message<T>,
    spot: Option<Spot>,
}

impl<T> Append<T> {
    pub(super) fn new(log: Arc<LogCore<T>>, message: Message<T>) -> Self {
        Self { log, message, spot: None }
    }
}

impl<T: Send + Sync + 'static> Staged for Append<T> {
    fn target(&self) -> String {
        format!("log {:?}", self.log.shelf.name)
    }
    fn plan(&mut self, baskets: &mut Baskets) -> Result<(), (Arc<str>, Obstacle)> {
        self.log.shelf.stamp(&mut self.message);
        self.spot = Some(spot_in(&self.log, &self.message)?);
        baskets.log(&self.log).n += 1;
        Ok(())
    }
    fn deliver(self: Box<Self>, baskets: &mut Baskets) {
        let Self { log, message, spot } = *self;
        let Some(spot) = spot else { return };
        let record = log.shelf.record_at(message, spot);
        baskets.log(&log).push(record);
    }
    #[cfg(feature = "sqlite")]
    fn stow(&self, stow: &mut Stow) -> Result<(), (Arc<str>, Obstacle)> {
        self.spot.iter().try_for_each(|spot| stow.add_record(&self.log, &self.message, spot))
    }
    fn discard(self: Box<Self>) {
        drop_contained(self.message);
    }
}

/// Where in a log a message is going to be. Asks the log's functions for its key and its size.
pub(crate) fn spot_in<T: Send + Sync + 'static>(
    log: &LogCore<T>,
    message: &Message<T>,
) -> Result<Spot, (Arc<str>, Obstacle)> {
    log.shelf.spot_for(message).map_err(|words| (Arc::clone(&log.shelf.name), Obstacle::Panicked(words)))
}

pub(super) struct Publish<T> {
    topic: Arc<TopicCore<T>>,
    message: Message<T>,
    key: Text,
    /// The message brought its id along.
    given: bool,
    to: Option<Destinations<T>>,
}

impl<T: Send + Sync + 'static> Publish<T> {
    pub(super) fn new(topic: Arc<TopicCore<T>>, message: Message<T>, key: &str, given: bool) -> Self {
        Self { topic, message, key: Text::new(key), given, to: None }
    }
}

impl<T: Send + Sync + 'static> Staged for Publish<T> {
    fn target(&self) -> String {
        format!("topic {:?}", self.topic.name)
    }
    fn plan(&mut self, baskets: &mut Baskets) -> Result<(), (Arc<str>, Obstacle)> {
        self.topic.stamp(&mut self.message, self.key.clone());
        let to = self.topic.destinations(&self.message)?;
        to.queues.iter().for_each(|(core, _)| baskets.queue(core).n += 1);
        let later = u64::from(self.message.due().is_some());
        for ring in &to.rings {
            let basket = baskets.ring(ring);
            basket.later += later;
            basket.now += 1 - later;
        }
        to.logs.iter().for_each(|(log, _)| baskets.log(log).n += 1);
        self.to = Some(to);
        Ok(())
    }
    fn admit(&self) -> Result<(), (Arc<str>, Obstacle)> {
        self.topic.pass(self.message.id, self.given).map_err(|why| (Arc::clone(&self.topic.name), why))
    }
    fn unadmit(&self) {
        self.topic.unpass(self.message.id, self.given);
    }
    fn deliver(self: Box<Self>, baskets: &mut Baskets) {
        let Self { topic, mut message, given, to, .. } = *self;
        let Some(Destinations { mut queues, rings, logs, unroutable }) = to else { return };
        topic.passed(message.id, given, unroutable);
        for (log, spot) in logs {
            let record = log.shelf.record_at(message.share(), spot);
            baskets.log(&log).push(record);
        }
        if !rings.is_empty() {
            let mut copy = message.share();
            let timer = copy.take_timer();
            let copy = for_subscribers(copy);
            rings.iter().for_each(|ring| baskets.ring(ring).messages.push((Arc::clone(&copy), timer.clone())));
        }
        // The last queue gets the message itself.
        let Some((last, key)) = queues.pop() else { return baskets.waste.push(Box::new(message)) };
        for (core, key) in queues {
            let copy = message.share().ordered_by(key);
            baskets.queue(&core).push(copy);
        }
        baskets.queue(&last).push(message.ordered_by(key));
    }
    #[cfg(feature = "sqlite")]
    fn stow(&self, stow: &mut Stow) -> Result<(), (Arc<str>, Obstacle)> {
        let Some(to) = &self.to else { return Ok(()) };
        to.queues.iter().try_for_each(|(queue, _)| stow.add(queue, &self.message))?;
        to.logs.iter().try_for_each(|(log, spot)| stow.add_record(log, &self.message, spot))
    }
    fn discard(self: Box<Self>) {
        drop_contained(self.message);
    }
}
