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

    /// In the common case: its key is known to lead to one plain queue, which has room. Otherwise gives it back as it
    /// was.
    pub(super) fn take_later(&self, key: &str, mut message: Message<T>) -> Result<Receipt, Message<T>> {
        if self.limited.load(Ordering::Relaxed) {
            return Err(message);
        }
        let mut lane = self.lanes[thread_slot() % LANES].lock();
        let Some(Known { route: Route::One(queue), key: known, published }) = lane.known(self, key) else {
            return Err(message);
        };
        let id = message.id;
        let stamp = self.runtime.exact_stamp_for(&message);
        let due = message.publish_later(stamp);
        let Some(place) = queue.place_for_later(stamp.at, due) else {
            message.revoke_later(due, id);
            return Err(message);
        };
        message.routing_key.clone_from(known);
        *published += 1;
        let to_arm = place.put(due, message).then(|| Arc::clone(queue));
        drop(lane);
        if let Some(queue) = to_arm {
            queue.arm(due);
        }
        Ok(Receipt { id: stamp.id, routed: 1 })
    }
}
