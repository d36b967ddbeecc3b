//! The short way of a message that has a delay, and nothing else that few messages have.

use super::route::{Known, LANES, Route};
use super::{Receipt, TopicCore};
use crate::error::PublishError;
use crate::message::Message;
use crate::queue::core::Patience;
use crate::runtime::thread_slot;
use crate::sync::Ordering;
use std::sync::Arc;

impl<T: Send + Sync + 'static> TopicCore<T> {
    /// Publishes a message with only a delay.
    #[inline(never)]
    pub(super) fn publish_delayed(
        &self,
        key: &str,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        self.take_later(key, message).or_else(|message| self.publish_now(key, message, patience))
    }

    /// In the common case: its key is known to lead to one plain queue, which has room. Otherwise gives it back, with
    /// another routing key at most.
    pub(super) fn take_later(&self, key: &str, mut message: Message<T>) -> Result<Receipt, Message<T>> {
        if self.limited.load(Ordering::Relaxed) {
            return Err(message);
        }
        let queue = {
            let mut lane = self.lanes[thread_slot() % LANES].lock();
            let Some(Known { route: Route::One(queue), key: known, published }) = lane.known(self, key) else {
                return Err(message);
            };
            message.routing_key.clone_from(known);
            *published += 1;
            // Whoever lists or clears what is delayed keeps others waiting, who must not have the lane meanwhile.
            Arc::clone(queue)
        };
        let taken = queue.take_later(message);
        if taken.is_err() {
            self.lanes[thread_slot() % LANES].lock().published -= 1;
        }
        taken.map(|id| Receipt { id, routed: 1 })
    }
}
