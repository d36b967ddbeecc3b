//! One handed-out message, settled exactly once.

use crate::dead_letter::{DeadLetter, Reason};
use crate::error::SettleError;
use crate::message::Message;
use crate::outcome::{Outcome, clear_contained, drop_contained};
use crate::queue::core::Core;
use crate::queue::fifo::Chunk;
use crate::request::Fate;
use crate::retry::{Decision, decide};
use crate::stats::Tally;
use crate::sync::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// What is to happen to a delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ack,
    Discard,
    Requeue,
    Again(Duration),
    Bury(Reason),
    /// Keep it, and with it its key, for this reason.
    Hold(Reason),
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Turns what a handler said into what happens, and writes a failure into the message's history.
    pub(crate) fn judge(&self, message: &mut Message<T>, outcome: Outcome, error: Option<String>) -> Verdict {
        match outcome {
            Outcome::Ack => Verdict::Ack,
            Outcome::Discard => Verdict::Discard,
            Outcome::Retry => self.failed(message, error, None),
            Outcome::RetryAfter(delay) => self.failed(message, error, Some(delay)),
            Outcome::DeadLetter(words) => {
                let permanent = error.is_some();
                message.record_failure(self.runtime.clock.now(), error.unwrap_or_else(|| words.clone()));
                self.give_up(if permanent { Reason::Permanent } else { Reason::Rejected(words) })
            }
        }
    }

    fn failed(&self, message: &mut Message<T>, error: Option<String>, asked: Option<Duration>) -> Verdict {
        let error = error.unwrap_or_else(|| "asked for a retry".into());
        message.record_failure(self.runtime.clock.now(), error);
        let policy = &self.settings.retry;
        // A policy made from a function runs it in there, so only the draw is made under the lock.
        let mut chance = self.runtime.with_random(crate::random::Random::fork);
        match decide(policy, message.attempt, asked, &mut chance) {
            Decision::Again(delay) => Verdict::Again(delay),
            Decision::GiveUp => self.give_up(Reason::Exhausted),
        }
    }

    fn give_up(&self, reason: Reason) -> Verdict {
        match self.pause_instead_of_giving_up() {
            Some(pause) => Verdict::Again(pause),
            None if self.holds_back(&reason) => Verdict::Hold(reason),
            None => Verdict::Bury(reason),
        }
    }

    /// Whether somebody has to be told of it when a delivery is settled.
    #[inline]
    fn settles_with_care(&self) -> bool {
        self.ends_one_by_one() || self.is_durable()
    }

    /// Whether each message's end is noted apart from the others'.
    #[inline]
    fn ends_one_by_one(&self) -> bool {
        self.settings.ack_timeout.is_some() || self.settings.idempotent.is_some()
    }

    /// Acks a message where it lies: it may be large. `slot` is empty afterwards, whatever comes of it.
    #[inline]
    pub(crate) fn ack(&self, slot: &mut Option<Message<T>>, tally: &Tally) -> Result<(), SettleError> {
        if self.ack_plainly(slot, tally) { Ok(()) } else { self.ack_otherwise(slot, tally) }
    }

    /// Acks a message of which nobody has to be told, as of most.
    #[inline]
    fn ack_plainly(&self, slot: &mut Option<Message<T>>, tally: &Tally) -> bool {
        let plainly = self.acks_plainly.load(Ordering::Relaxed) && slot.as_ref().is_some_and(Message::ends_plainly);
        if plainly {
            // The way through a destructor that finds nothing is a long one.
            std::mem::forget(slot.take());
            tally.acked.add(1);
            self.runtime.note_progress();
        }
        plainly
    }

    #[inline(never)]
    fn ack_otherwise(&self, slot: &mut Option<Message<T>>, tally: &Tally) -> Result<(), SettleError> {
        if self.settles_with_care() || self.has_ended() {
            return slot.take().map_or(Ok(()), |message| self.settle(message, Verdict::Ack, tally));
        }
        self.finish(slot, tally);
        Ok(())
    }

    /// As [`Core::ack`], whatever comes of it. If that ends the turn of a lane, this is left to the caller, at once:
    /// [`Core::end_turn`] or [`Core::take_next_turn`].
    #[inline]
    pub(crate) fn ack_in_turn(&self, slot: &mut Option<Message<T>>, tally: &Tally) -> Option<u32> {
        if self.ack_plainly(slot, tally) {
            return None;
        }
        if self.settles_with_care() || self.has_ended() || self.limits_in_flight() {
            // Too late means that it went back to its queue and was reported as left.
            let _ = self.ack_otherwise(slot, tally);
            return None;
        }
        let lane = self.part_with(slot);
        if lane.is_none() {
            self.settled(&tally.acked);
        }
        lane
    }

    pub(crate) fn end_turn(&self, lane: u32, tally: &Tally) {
        self.free_lane(Some(lane));
        self.settled(&tally.acked);
    }

    /// It is done with, whatever was noted about it elsewhere.
    #[inline]
    fn finish(&self, slot: &mut Option<Message<T>>, tally: &Tally) {
        let lane = self.part_with(slot);
        self.free_lane(lane);
        self.settled(&tally.acked);
    }

    /// Drops what was handled. Which lane it has kept busy, and still does.
    #[inline]
    fn part_with(&self, slot: &mut Option<Message<T>>) -> Option<u32> {
        let message = slot.as_mut()?;
        let lane = message.take_lane();
        if message.ends_silently() {
            std::mem::forget(slot.take());
        } else {
            message.handled(&self.name);
            clear_contained(slot);
        }
        lane
    }

    /// Does what was decided. Counting comes last, so that the message is never nowhere.
    #[cold]
    pub(crate) fn settle(&self, mut message: Message<T>, verdict: Verdict, tally: &Tally) -> Result<(), SettleError> {
        if let Err(late) = self.end_lease(&mut message) {
            drop_contained(message);
            return Err(late);
        }
        if self.has_ended() {
            return self.settle_too_late(message, tally);
        }
        if verdict == Verdict::Ack {
            self.end_claim(&mut message, true);
            self.forget(&mut message);
            self.finish(&mut Some(message), tally);
            return Ok(());
        }
        self.settle_otherwise(message, verdict, tally);
        Ok(())
    }

    #[cold]
    pub(crate) fn settle_otherwise(&self, mut message: Message<T>, verdict: Verdict, tally: &Tally) {
        let is_request = message.is_request();
        self.end_claim(&mut message, matches!(verdict, Verdict::Ack | Verdict::Discard));
        match verdict {
            Verdict::Ack | Verdict::Discard => {
                self.counts.discarded.add(1);
                let lane = message.take_lane();
                self.throw_away(message, Fate::Discarded);
                self.free_lane(lane);
            }
            Verdict::Requeue => {
                self.counts.requeued.add(1);
                message.attempt -= 1;
                self.take_back(message, false);
            }
            Verdict::Again(delay) => self.retry_after(message, delay),
            Verdict::Bury(reason) => {
                let lane = message.take_lane();
                self.bury(DeadLetter::new(message, reason, self));
                self.free_lane(lane);
            }
            Verdict::Hold(reason) => self.park(message, reason),
        }
        if is_request && self.has_ended() {
            // It came back after all that was left had been told.
            self.end_requests();
        }
        self.settled(&tally.unacked);
    }

    #[cold]
    fn settle_too_late(&self, mut message: Message<T>, tally: &Tally) -> Result<(), SettleError> {
        message.attempt -= 1;
        self.end_claim(&mut message, false);
        message.unanswered(&self.name, Fate::Left);
        self.take_back(message, false);
        self.settled(&tally.unacked);
        Err(SettleError::ShutDown { queue: Arc::clone(&self.name) })
    }
}

/// A message handed to one receiver, who settles it by consuming the delivery.
///
/// Dropping it unsettled counts as a failed attempt: the message is delivered again as its queue's retry
/// policy says, or becomes a dead letter after its last attempt. It is never lost. It may be sent to
/// another thread and settled there.
///
/// Settling twice does not compile:
///
/// ```compile_fail,E0382
/// # fn twice(delivery: postroom::Delivery<u32>) {
/// delivery.ack().unwrap();
/// delivery.ack().unwrap(); // use of moved value
/// # }
/// ```
///
/// # Errors
/// Every way to settle answers [`SettleError::ShutDown`] once `Broker::shutdown` has reported the message
/// as left (it is back in its queue then), and [`SettleError::Late`] once an ack timeout has given the
/// message to another.
#[must_use = "dropping a delivery unsettled counts as a failed attempt"]
pub struct Delivery<T: Send + Sync + 'static> {
    /// `None` only once settled.
    message: Option<Message<T>>,
    core: Arc<Core<T>>,
}

impl<T: Send + Sync + 'static> Delivery<T> {
    pub(crate) fn new(message: Message<T>, core: Arc<Core<T>>) -> Self {
        Self { message: Some(message), core }
    }

    /// For a message in a slot of its own, which stays where it lies.
    #[inline]
    pub(crate) fn of(message: Option<Message<T>>, core: Arc<Core<T>>) -> Self {
        debug_assert!(message.is_some());
        Self { message, core }
    }

    /// Done: the message is gone.
    ///
    /// # Errors
    /// See [`Delivery`].
    #[inline]
    pub fn ack(mut self) -> Result<(), SettleError> {
        self.core.ack(&mut self.message, &self.core.tallies.common)
    }

    /// Failed: delivered again after the queue's back-off, or dead-lettered after the last attempt.
    ///
    /// # Errors
    /// See [`Delivery`].
    pub fn retry(self) -> Result<(), SettleError> {
        self.conclude(Outcome::Retry, None)
    }

    /// Failed: delivered again after `delay`, whatever the queue's back-off says. Its limit of attempts
    /// still counts.
    ///
    /// # Errors
    /// See [`Delivery`].
    pub fn retry_after(self, delay: Duration) -> Result<(), SettleError> {
        self.conclude(Outcome::RetryAfter(delay), None)
    }

    /// Gives the message back, behind all that are ready, without counting a failure.
    ///
    /// # Errors
    /// See [`Delivery`].
    pub fn requeue(mut self) -> Result<(), SettleError> {
        self.settle(Verdict::Requeue)
    }

    /// Gives up on the message at once, for this reason.
    ///
    /// # Errors
    /// See [`Delivery`].
    pub fn dead_letter(self, reason: impl Into<String>) -> Result<(), SettleError> {
        self.conclude(Outcome::DeadLetter(reason.into()), None)
    }

    /// Drops the message on purpose; counted as dropped.
    ///
    /// # Errors
    /// See [`Delivery`].
    pub fn discard(mut self) -> Result<(), SettleError> {
        self.settle(Verdict::Discard)
    }

    fn conclude(mut self, outcome: Outcome, error: Option<String>) -> Result<(), SettleError> {
        let message = self.message.as_mut().expect("settled once");
        let verdict = self.core.judge(message, outcome, error);
        self.settle(verdict)
    }

    #[cold]
    #[inline(never)]
    fn abandon(&mut self) {
        self.message.take().into_iter().for_each(|message| abandon(&self.core, message));
    }

    fn settle(&mut self, verdict: Verdict) -> Result<(), SettleError> {
        let message = self.message.take().expect("settled once");
        self.core.settle(message, verdict, &self.core.tallies.common)
    }
}

impl<T: Send + Sync + 'static> Drop for Delivery<T> {
    #[inline]
    fn drop(&mut self) {
        if self.message.is_some() {
            self.abandon();
        }
    }
}

/// What happens to a message whose delivery is dropped.
#[cold]
fn abandon<T: Send + Sync + 'static>(core: &Core<T>, mut message: Message<T>) {
    let how = if std::thread::panicking() { "dropped by a panic" } else { "dropped unsettled" };
    let verdict = core.judge(&mut message, Outcome::Retry, Some(how.into()));
    // Too late means that it went back to its queue, which is all a drop can wish for.
    let _ = core.settle(message, verdict, &core.tallies.common);
}

impl<T: Send + Sync + 'static> Deref for Delivery<T> {
    type Target = Message<T>;
    fn deref(&self) -> &Message<T> {
        self.message.as_ref().expect("settled once")
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("queue", &self.core.name).field("message", &self.message).finish()
    }
}

/// Several messages handed out at once, to be settled together or one by one.
///
/// Iterating gives a [`Delivery`] for each. What is not settled when the batch (or its iterator) is dropped
/// counts as a failed attempt, as with a single delivery.
#[must_use = "dropping a batch unsettled counts as a failed attempt of each of its messages"]
pub struct Batch<T: Send + Sync + 'static> {
    messages: Chunk<Message<T>>,
    core: Arc<Core<T>>,
}

impl<T: Send + Sync + 'static> Batch<T> {
    pub(crate) fn new(messages: Chunk<Message<T>>, core: Arc<Core<T>>) -> Self {
        Self { messages, core }
    }

    /// How many messages it holds; at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether all of them have been taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages, in the order of the queue.
    pub fn iter(&self) -> impl Iterator<Item = &Message<T>> {
        self.messages.iter()
    }

    /// Done with all of them.
    ///
    /// # Errors
    /// [`SettleError::ShutDown`] once shutdown has reported them as left; they are back in the queue then.
    pub fn ack(mut self) -> Result<(), SettleError> {
        let core = Arc::clone(&self.core);
        core.ack_all(&mut self.messages, &core.tallies.common)?;
        core.recycle(std::mem::take(&mut self.messages));
        Ok(())
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Acks every message of the batch and leaves it empty; leaves all in it after shutdown's report.
    pub(crate) fn ack_all(&self, batch: &mut Chunk<Message<T>>, tally: &Tally) -> Result<(), SettleError> {
        if self.has_ended() {
            return Err(SettleError::ShutDown { queue: Arc::clone(&self.name) });
        }
        if self.ends_one_by_one() {
            let results = batch.drain(..).map(|message| self.settle(message, Verdict::Ack, tally));
            return results.fold(Ok(()), Result::and);
        }
        self.forget_all(batch.iter_mut());
        let n = batch.len();
        let lanes: Vec<u32> = match self.is_ordered() {
            true => batch.iter_mut().filter_map(Message::take_lane).collect(),
            false => Vec::new(),
        };
        if batch.iter().all(Message::ends_silently) {
            batch.drain(..).for_each(std::mem::forget);
        } else {
            batch.iter_mut().for_each(|message| message.handled(&self.name));
            // One by one, since a second panic on the way out would abort the process.
            batch.drain(..).for_each(drop_contained);
        }
        self.free_lanes(&lanes);
        self.settled_many(&tally.acked, n);
        Ok(())
    }
}

impl<T: Send + Sync + 'static> Iterator for Batch<T> {
    type Item = Delivery<T>;
    fn next(&mut self) -> Option<Delivery<T>> {
        let message = self.messages.pop_front()?;
        Some(Delivery::new(message, Arc::clone(&self.core)))
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.messages.len(), Some(self.messages.len()))
    }
}

impl<T: Send + Sync + 'static> ExactSizeIterator for Batch<T> {}

impl<T: Send + Sync + 'static> Drop for Batch<T> {
    fn drop(&mut self) {
        for message in self.messages.drain(..) {
            abandon(&self.core, message);
        }
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("queue", &self.core.name).field("messages", &self.messages).finish()
    }
}
