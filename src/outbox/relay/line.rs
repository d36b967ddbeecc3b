//! One topic's rows on their way from the table to the queues.

use super::desk::Desk;
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::codec::Codec;
use crate::error::PublishError;
use crate::message::Message;
use crate::outbox::envelope::{Micros, Row};
use crate::outcome::contained;
use crate::topic::Topic;
use crate::track::Tracks;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A topic without its type.
pub(super) trait Target: Send {
    fn topic(&self) -> &str;
    fn belongs_to(&self, broker: &Broker) -> bool;
    /// Publishes a row, if the lease still holds when it has been decoded, waiting for room at most `patience`.
    fn publish(&mut self, row: &Row, desk: &Arc<Desk>, lease: Instant, patience: Duration) -> Published;
}

/// What came of publishing a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// Queues have it, or whoever only watches; the desk hears when they are done with it.
    Taken,
    /// There was no room in time.
    Full,
    /// Another relay may have taken over.
    TooLate,
    /// Refused at once; again after this long, or when the relay thinks fit.
    Refused(Option<Duration>, String),
    /// It can never be published as it is.
    Impossible(String),
}

pub(super) struct TopicTarget<T, C> {
    topic: Topic<T>,
    codec: C,
    /// Decoded before, and refused.
    at_hand: Option<(i64, Message<T>)>,
}

impl<T, C> TopicTarget<T, C> {
    pub(super) fn new(topic: Topic<T>, codec: C) -> Self {
        Self { topic, codec, at_hand: None }
    }
}

impl<T: Send + Sync + 'static, C: Codec<T>> TopicTarget<T, C> {
    fn message_of(&mut self, row: &Row) -> Result<Message<T>, String> {
        match self.at_hand.take().filter(|(id, _)| *id == row.id) {
            Some((_, message)) => Ok(message),
            None if self.topic.core.runtime.is_simulated() => row.unpack_anew(&self.codec),
            None => row.unpack(&self.codec),
        }
    }

    /// Whether nobody could get a message, because nothing is bound yet.
    fn is_unbound(&self) -> bool {
        self.topic.core.bindings().is_empty() && self.topic.core.subscribers() == 0
    }

    fn offer(&self, key: &str, message: Message<T>, patience: Duration) -> Result<(), PublishError<T>> {
        // On a manual clock no time passes by waiting.
        let waits = !self.topic.core.runtime.clock.is_manual();
        let published = if waits {
            self.topic.publish_timeout(key, message, patience)
        } else {
            self.topic.try_publish(key, message)
        };
        published.map(drop)
    }
}

impl<T: Send + Sync + 'static, C: Codec<T>> Target for TopicTarget<T, C> {
    fn topic(&self) -> &str {
        self.topic.name()
    }

    fn belongs_to(&self, broker: &Broker) -> bool {
        Arc::ptr_eq(broker.runtime(), &self.topic.core.runtime)
    }

    fn publish(&mut self, row: &Row, desk: &Arc<Desk>, lease: Instant, patience: Duration) -> Published {
        let mut message = match self.message_of(row) {
            Ok(message) => message,
            Err(problem) => return Published::Impossible(problem),
        };
        let left = lease.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Published::TooLate;
        }
        let owner: Arc<dyn Tracks> = desk.clone();
        let tracking = message.track(row.id, owner);
        let offered = contained(|| self.offer(row.routing_key(), message, patience.min(left)));
        let error = match offered {
            Ok(Ok(())) => {
                tracking.published();
                return Published::Taken;
            }
            Ok(Err(error)) => error,
            Err(words) => {
                tracking.call_off();
                return Published::Impossible(format!("publishing {words}"));
            }
        };
        tracking.call_off();
        let words = error.to_string();
        let (published, refused) = match error {
            PublishError::Timeout(refused) => (Published::Full, refused),
            // There, room is made by others between two attempts.
            PublishError::Full(refused) if self.topic.core.runtime.is_simulated() => (Published::Full, refused),
            PublishError::Limited(refused) => (Published::Refused(refused.retry_in(), words), refused),
            // Modules may still be about to bind their queues.
            PublishError::Unroutable(refused) if self.is_unbound() => (Published::Refused(None, words), refused),
            PublishError::Unroutable(refused)
            | PublishError::Panicked(refused)
            | PublishError::Unencodable(refused) => (Published::Impossible(words), refused),
            // A duplicate is one until the topic's window is over, or until the first one is settled and the row with it.
            PublishError::Full(refused)
            | PublishError::Closed(refused)
            | PublishError::Deadlock(refused)
            | PublishError::NotStored(refused)
            | PublishError::Duplicate(refused) => (Published::Refused(None, words), refused),
        };
        let message = refused.into_message();
        // What time it has left is reckoned from the row each time.
        let is_timed = message.delay().is_some() || message.extras.as_ref().is_some_and(|extras| extras.ttl.is_some());
        self.at_hand = (!is_timed).then_some((row.id, message));
        published
    }
}

/// How far one topic has come.
pub(super) struct Line {
    pub(super) target: Box<dyn Target>,
    /// Fetched and not published.
    pub(super) pending: VecDeque<Row>,
    /// Published and not settled, by row, with the time they were put.
    pub(super) in_flight: BTreeMap<i64, Micros>,
    /// Settled, and not marked yet.
    pub(super) settled: BTreeSet<i64>,
    /// Until when the lease holds, and its term. It is promised to other processes, so it holds in real time.
    pub(super) held: Option<(Instant, i64)>,
    pub(super) renew_at: Instant,
    /// Refused for now.
    pub(super) paused_until: Option<Timestamp>,
    /// How often in a row, without having been told when to come again.
    pub(super) refusals: u32,
    /// There was no room for the latest row that was offered.
    pub(super) full: bool,
    /// The latest fetch found as many as it asked for.
    pub(super) more: bool,
}

impl Line {
    pub(super) fn new(target: Box<dyn Target>) -> Self {
        Self {
            target,
            pending: VecDeque::new(),
            in_flight: BTreeMap::new(),
            settled: BTreeSet::new(),
            held: None,
            renew_at: Instant::now(),
            paused_until: None,
            refusals: 0,
            full: false,
            more: false,
        }
    }

    pub(super) fn holds_lease(&self, now: Instant) -> bool {
        self.held.is_some_and(|(until, _)| now < until)
    }

    pub(super) fn is_paused(&self, now: Timestamp) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Rows that must not be fetched again.
    pub(super) fn rows_at_hand(&self) -> BTreeSet<i64> {
        let pending = self.pending.iter().map(|row| row.id);
        self.in_flight.keys().copied().chain(self.settled.iter().copied()).chain(pending).collect()
    }

    /// Whether it makes sense to look for more: a fetch costs as much for one row as for many.
    pub(super) fn has_room(&self, window: usize) -> bool {
        self.pending.is_empty() && self.in_flight.len() + self.settled.len() <= window - window.div_ceil(4)
    }

    pub(super) fn oldest(&self) -> Option<Micros> {
        let pending = self.pending.front().map(Row::created);
        self.in_flight.values().next().copied().into_iter().chain(pending).min()
    }
}
