//! What a transaction needs of a topic: where a message would go, and what comes of it once it has gone.

use super::route::Route;
use super::{Duplicate, TopicCore};
use crate::log::{LogCore, Spot};
use crate::message::{Message, MessageId, Text};
use crate::queue::core::Core;
use crate::subscriber::ring::Ring;
use crate::sync::Ordering;
use crate::transaction::{Obstacle, spot_in};
use std::sync::Arc;

/// Everything that is to take one message.
pub(crate) struct Destinations<T> {
    /// Each with what it orders the message by.
    pub(crate) queues: Vec<(Arc<Core<T>>, Option<Text>)>,
    pub(crate) rings: Vec<Arc<Ring<T>>>,
    /// Each with where it is going to be there.
    pub(crate) logs: Vec<(Arc<LogCore<T>>, Spot)>,
    /// Nothing matches it.
    pub(crate) unroutable: bool,
}

/// Queues, subscribers, logs, and whether somebody reads what the subscribers get.
type Reached<T> = (Vec<Arc<Core<T>>>, Vec<Arc<Ring<T>>>, Vec<Arc<LogCore<T>>>, bool);

impl<T: Send + Sync + 'static> TopicCore<T> {
    /// Where a stamped message goes. Runs filters, routers and functions for ordering keys.
    pub(crate) fn destinations(&self, message: &Message<T>) -> Result<Destinations<T>, (Arc<str>, Obstacle)> {
        let (queues, rings, logs, subscribed) = self.reached(message)?;
        let unroutable = queues.is_empty() && logs.is_empty() && !subscribed;
        let queues = match (&self.alternate, unroutable) {
            (_, false) => queues,
            (Some(alternate), true) => vec![Arc::clone(alternate)],
            (None, true) if self.settings.mandatory => return Err((Arc::clone(&self.name), Obstacle::Unroutable)),
            (None, true) => queues,
        };
        let keyed = queues.into_iter().map(|queue| match queue.order_key(message) {
            Ok(key) => Ok((queue, key)),
            Err(refusal) => Err((Arc::clone(&queue.name), refusal.into())),
        });
        let queues = keyed.collect::<Result<_, _>>()?;
        let logs = logs.into_iter().map(|log| spot_in(&log, message).map(|spot| (log, spot)));
        Ok(Destinations { queues, rings, logs: logs.collect::<Result<_, _>>()?, unroutable })
    }

    /// Whether a message would be dropped because nothing matches it. A panic on the way is no answer.
    pub(crate) fn leads_nowhere(&self, message: &Message<T>) -> bool {
        let nobody = |(queues, _, logs, subscribed): Reached<T>| queues.is_empty() && logs.is_empty() && !subscribed;
        self.alternate.is_none() && self.reached(message).is_ok_and(nobody)
    }

    fn reached(&self, message: &Message<T>) -> Result<Reached<T>, (Arc<str>, Obstacle)> {
        let known = self.remembered_route(&message.routing_key);
        let panicked = |words| (Arc::clone(&self.name), Obstacle::Panicked(words));
        let route = if matches!(known, Route::Asks) { self.route_of(message).map_err(panicked)? } else { known };
        Ok(match route {
            Route::Nowhere => (Vec::new(), Vec::new(), Vec::new(), false),
            Route::One(queue) => (vec![queue], Vec::new(), Vec::new(), false),
            Route::Many(queues) => (queues.to_vec(), Vec::new(), Vec::new(), false),
            Route::Ring(ring) => (Vec::new(), vec![ring], Vec::new(), true),
            Route::Wide(wide) => (wide.queues.clone(), wide.rings.clone(), wide.logs.clone(), wide.subscribed),
            Route::Asks => unreachable!("it has been asked"),
        })
    }

    /// Lets a message in if the topic's limits allow it; see `TopicCore::publish_limited`.
    pub(crate) fn pass(&self, id: MessageId, given: bool) -> Result<(), Obstacle> {
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.pass_admission().map_err(Obstacle::Limited)?;
        self.claim_id(id, given).map_err(|Duplicate { under_way }| {
            self.unadmit();
            Obstacle::Duplicate { under_way }
        })
    }

    /// It did not get in after all.
    pub(crate) fn unpass(&self, id: MessageId, given: bool) {
        if self.limited.load(Ordering::Relaxed) {
            self.unadmit();
            self.end_claim(id, given, false);
        }
    }

    /// It is as good as published.
    pub(crate) fn passed(&self, id: MessageId, given: bool, unroutable: bool) {
        self.end_claim(id, given, true);
        self.count(1);
        self.unroutable.add(u64::from(unroutable));
    }
}
