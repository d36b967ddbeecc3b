//! The way of a message from a producer into what takes it.

use super::accept::{accept_all, accept_logged, accept_one, redeem_rings, refusal_error};
use super::route::{Known, LANES, Route, Wide};
use super::{Receipt, TopicCore};
use crate::deadlock::QueueRef;
use crate::error::{PublishError, Refused};
use crate::message::{Message, MessageId, Stamp, Text};
use crate::queue::core::{Core, Patience, Refusal};
use crate::queue::take_while_delayed;
use crate::queue::throttle::Throttle;
use crate::runtime::thread_slot;
use crate::subscriber::ring::{Ring, Waste};
use crate::sync::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

impl<T: Send + Sync + 'static> TopicCore<T> {
    #[inline]
    pub(crate) fn stamp(&self, message: &mut Message<T>, key: Text) {
        self.stamp_with(message, self.runtime.stamp_for(message), &key);
    }

    #[inline(always)]
    pub(crate) fn publish(
        &self,
        key: &str,
        message: impl Into<Message<T>>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        // Made in either of them, so that it is not made and then moved.
        match self.only_ring(key) {
            None => self.publish_by_lane(key, message.into(), patience),
            Some(ring) => self.publish_to_ring(ring, key, message.into(), patience),
        }
    }

    #[inline(always)]
    fn publish_by_lane(&self, key: &str, message: Message<T>, patience: Patience) -> Result<Receipt, PublishError<T>> {
        // Where the compiler sees how the message was made, it knows.
        if message.has_only_delay() {
            self.publish_delayed(key, message, patience)
        } else {
            self.publish_now(key, message, patience)
        }
    }

    /// A payload that has nothing else becomes a message where it will stand.
    #[inline(always)]
    fn publish_to_ring(
        &self,
        ring: &Ring<T>,
        key: &str,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let payload = match message.into_bare() {
            Ok(payload) => payload,
            Err(message) => return self.publish_after_all(key, message, patience),
        };
        // Both before the lock, which waits until they have been written; read back sooner, that would have to.
        let (stamp, text) = (self.runtime.next_stamp(), Text::new(key));
        match ring.room() {
            Some(room) => {
                ring.put_bare(room, stamp, &text, payload);
                Ok(Receipt { id: stamp.id, routed: 0 })
            }
            None => self.publish_after_all(key, Message::new(payload), patience),
        }
    }

    /// What is not quite as simple, for all that its topic is.
    #[inline(never)]
    fn publish_after_all(
        &self,
        key: &str,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        self.publish_by_lane(key, message, patience)
    }

    /// Where everything goes, if it goes to the own subscribers and nowhere else: no lane has to be asked then. Nor
    /// does it have to remember a key that takes no memory.
    #[inline(always)]
    fn only_ring(&self, key: &str) -> Option<&Ring<T>> {
        // Most topics are never alone with their subscribers, and need not ask further.
        let at = self.only_ring_at.load(Ordering::Acquire);
        let is_only = at != 0 && at == self.runtime.routes_version.load(Ordering::Acquire);
        let plainly = is_only && key.len() <= Text::INLINE && !self.limited.load(Ordering::Relaxed);
        if plainly { self.ring.get().map(|ring| &**ring) } else { None }
    }

    #[inline]
    pub(super) fn publish_now(
        &self,
        key: &str,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let given = message.id != MessageId::default();
        let stamp = self.runtime.stamp_for(&message);
        if self.limited.load(Ordering::Relaxed) {
            self.stamp_with(&mut message, stamp, &Text::new(key));
            return self.publish_limited(message, given, patience);
        }
        // The common case: a key that is known to lead to one plain queue, which has room. No user code runs
        // under these locks, and nobody keeps them for long.
        // What it replaces in a ring is dropped after the lane's lock.
        let _waste: Waste<T>;
        let mut lane = self.lanes[thread_slot() % LANES].lock();
        match lane.known(self, key) {
            Some(Known { route: Route::One(queue), key: known, published }) => {
                self.stamp_with(&mut message, stamp, known);
                if let Some(mut place) = queue.place_for(&message) {
                    place.chunk().push_back(message);
                    queue.placed(place);
                    *published += 1;
                    return Ok(Receipt { id: stamp.id, routed: 1 });
                }
                if queue.is_ordered() && !message.is_timed() && !queue.is_durable() {
                    let queue = Arc::clone(queue);
                    *published += 1;
                    drop(lane);
                    return self.publish_in_order(&queue, message, patience);
                }
            }
            Some(Known { route: Route::Ring(ring), key: known, published }) => {
                self.stamp_with(&mut message, stamp, known);
                if let Some(room) = ring.room_for(&message) {
                    _waste = ring.put(room, message);
                    *published += 1;
                    return Ok(Receipt { id: stamp.id, routed: 0 });
                }
            }
            _ => self.stamp_with(&mut message, stamp, &Text::new(key)),
        }
        drop(lane);
        self.publish_otherwise(message, patience)
    }

    #[inline]
    fn stamp_with(&self, message: &mut Message<T>, stamp: Stamp, key: &Text) {
        self.runtime.prepare_with(message, stamp);
        message.routing_key.clone_from(key);
    }

    #[cold]
    pub(super) fn publish_otherwise(
        &self,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let route = self.remembered_route(&message.routing_key);
        self.publish_slowly(&route, message, patience)
    }

    /// Into a queue ordered by key, which a user's function may have to find: no lock is held. The message has
    /// been counted as published.
    #[inline(never)]
    fn publish_in_order(
        &self,
        queue: &Core<T>,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let id = message.id;
        let published = match queue.place_in_order(&mut message) {
            Ok(mut place) => {
                place.chunk().push_back(message);
                queue.placed_in_order(place);
                return Ok(Receipt { id, routed: 1 });
            }
            Err(Refusal::Full) => accept_one(queue, message, patience),
            Err(refusal) => Err(refusal_error(queue, (message, refusal))),
        };
        if published.is_err() {
            self.lanes[thread_slot() % LANES].lock().published -= 1;
        }
        published.map(|routed| Receipt { id, routed })
    }

    /// Counts one more, or says how long that is too soon.
    pub(super) fn pass_admission(&self) -> Result<(), Duration> {
        let mut admission = self.admission.lock();
        admission.as_mut().map_or(Ok(()), |throttle| throttle.try_pass(self.runtime.clock.now()))
    }

    /// What was admitted did not get in after all, so it does not count.
    #[cold]
    pub(super) fn unadmit(&self) {
        self.admission.lock().iter_mut().for_each(Throttle::take_back);
    }

    /// Gives the message back if it comes too soon.
    #[cold]
    pub(super) fn admit(&self, message: Message<T>) -> Result<Message<T>, PublishError<T>> {
        match self.pass_admission() {
            Ok(()) => Ok(message),
            Err(wait) => Err(PublishError::Limited(Refused::new(message, &self.name).limited(wait))),
        }
    }

    #[cold]
    pub(super) fn publish_slowly(
        &self,
        route: &Route<T>,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let id = message.id;
        let routed = self.accept_by(route, message, patience)?;
        self.count(1);
        Ok(Receipt { id, routed })
    }

    /// An empty chunk for a batch with this key.
    pub(super) fn spare_chunk(&self, key: &Text) -> VecDeque<Message<T>> {
        match self.remembered_route(key) {
            Route::One(queue) => queue.spare(),
            _ => VecDeque::new(),
        }
    }

    pub(super) fn publish_chunk(&self, key: &Text, chunk: &mut VecDeque<Message<T>>) -> Result<(), PublishError<T>> {
        if self.refuses_duplicates() {
            // A duplicate is told by the id it was given.
            while let Some(message) = chunk.pop_front() {
                self.publish(key.as_str(), message, Patience::Forever)?;
            }
            return Ok(());
        }
        take_while_delayed(chunk, |message| self.take_later(key.as_str(), message));
        self.runtime.prepare_all(chunk.iter_mut().map(|message| message.keyed(key)));
        let n = chunk.len();
        let route = self.remembered_route(key);
        let limited = self.limited.load(Ordering::Relaxed);
        if let (Route::One(queue), false) = (&route, limited) {
            let result = queue.accept_chunk(chunk);
            self.count((n - chunk.len()) as u64 - u64::from(result.is_err()));
            return result.map_err(|refused| refusal_error(queue, refused));
        }
        if let (Route::Ring(ring), false) = (&route, limited || chunk.iter().any(Ring::is_special)) {
            let result = accept_chunk(ring, chunk);
            self.count((n - chunk.len()) as u64 - u64::from(result.is_err()));
            return result;
        }
        while let Some(message) = chunk.pop_front() {
            let message = if limited { self.admit(message)? } else { message };
            if let Err(error) = self.publish_slowly(&route, message, Patience::Forever) {
                if limited {
                    self.unadmit();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The queue that everything with this key goes to, if there is just one.
    pub(crate) fn only_queue(&self, key: &str) -> Option<QueueRef> {
        match self.remembered_route(&Text::new(key)) {
            Route::One(queue) => Some(queue.identity()),
            _ => None,
        }
    }

    pub(super) fn count(&self, published: u64) {
        self.lanes[thread_slot() % LANES].lock().published += published;
    }

    /// By what the route leads to; how many queues and logs have taken it.
    fn accept_by(&self, route: &Route<T>, message: Message<T>, patience: Patience) -> Result<usize, PublishError<T>> {
        match route {
            Route::Nowhere => self.unroutable(message, patience),
            Route::One(queue) => accept_one(queue, message, patience),
            Route::Many(queues) => accept_all(queues, &[], message, patience),
            Route::Ring(ring) => accept_all(&[], std::slice::from_ref(ring), message, patience),
            Route::Wide(wide) => self.accept_wide(wide, message, patience),
            Route::Asks => match self.route_of(&message) {
                // That one does not ask again.
                Ok(route) => self.accept_by(&route, message, patience),
                Err(words) => Err(PublishError::Panicked(Refused::new(message, &self.name).because(words))),
            },
        }
    }

    pub(super) fn accept_wide(
        &self,
        wide: &Wide<T>,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<usize, PublishError<T>> {
        if !wide.logs.is_empty() {
            return accept_logged(wide, message, patience);
        }
        if wide.subscribed || !wide.queues.is_empty() {
            return accept_all(&wide.queues, &wide.rings, message, patience);
        }
        if let Some(ring) = wide.rings.iter().find(|ring| ring.is_shut()) {
            return Err(ring.error((message, Refusal::Closed)));
        }
        // Nobody sees it now, but it is remembered unless it is refused.
        let copy = message.share();
        let routed = self.unroutable(message, patience)?;
        let is_delayed = copy.due().is_some();
        let open: Vec<_> = wide.rings.iter().filter(|ring| ring.pledge(is_delayed).is_ok()).cloned().collect();
        redeem_rings(&open, copy);
        Ok(routed)
    }

    pub(super) fn unroutable(&self, message: Message<T>, patience: Patience) -> Result<usize, PublishError<T>> {
        if let Some(queue) = &self.alternate {
            let routed = accept_one(queue, message, patience)?;
            self.unroutable.add(1);
            return Ok(routed);
        }
        if self.settings.mandatory || message.is_request() {
            return Err(PublishError::Unroutable(Refused::new(message, &self.name)));
        }
        self.unroutable.add(1);
        crate::outcome::drop_contained(message);
        Ok(0)
    }
}

/// As many messages at once as there is room for, waiting for more room in between.
fn accept_chunk<T: Send + Sync + 'static>(
    ring: &Ring<T>,
    chunk: &mut VecDeque<Message<T>>,
) -> Result<(), PublishError<T>> {
    loop {
        let refusal = match ring.offer_chunk(chunk) {
            Ok(()) => return Ok(()),
            Err(Refusal::Full) => ring.wait_for_room(Patience::Forever).err(),
            Err(refusal) => Some(refusal),
        };
        if let Some(refusal) = refusal {
            let message = chunk.pop_front().expect("one of them was refused");
            return Err(ring.error((message, refusal)));
        }
    }
}
