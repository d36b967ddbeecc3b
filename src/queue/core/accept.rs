//! Taking messages in: at once, as the overflow policy says, in batches, or after a promise.

use super::{Accepted, Admission, Core, Gate, Intake, Outlet, Patience, Pledge, Refusal, snooze};
use crate::dead_letter::{DeadLetter, Reason};
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::builder::Overflow;
use crate::queue::fifo::{Chunk, chunk_len};
use crate::runtime::Event;
use crate::simulation::Until;
use crate::sync::{MutexGuard, Ordering};

impl<T: Send + Sync + 'static> Core<T> {
    /// Takes the message if there is room, and nothing else: no policy, no waiting, no user code. Its id
    /// and time must be set.
    #[inline]
    pub(crate) fn offer(&self, mut message: Message<T>) -> Result<(), (Message<T>, Refusal)> {
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err((message, Refusal::Closed));
        }
        if !self.has_room(&mut intake) {
            return Err((message, Refusal::Full));
        }
        message.holds_slot = true;
        intake.slots += 1;
        intake.accepted += 1;
        intake.entered += 1;
        intake.tail.push(message);
        self.wake_readers(intake, 1);
        Ok(())
    }

    /// Takes the message as the overflow policy says; waits as long as `patience` if that is `Wait`.
    pub(crate) fn accept(&self, message: Message<T>, patience: Patience) -> Result<Accepted, (Message<T>, Refusal)> {
        let mut message = message;
        let mut snoozes = 0;
        loop {
            message = match self.offer(message) {
                Ok(()) => return Ok(Accepted::Queued),
                Err((message, Refusal::Full)) => message,
                Err(refused) => return Err(refused),
            };
            if !self.waits(patience) {
                return self.overflow(message);
            }
            if snoozes < self.spins() {
                snooze(snoozes);
                snoozes += 1;
            } else if let Err(refusal) = self.wait_for_room(patience) {
                return Err((message, refusal));
            }
        }
    }

    /// Appends as many as there is room for, from the front; what is left stays in `batch`.
    pub(crate) fn offer_batch(&self, batch: &mut Chunk<Message<T>>) -> Result<usize, Refusal> {
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err(Refusal::Closed);
        }
        let room = self.room(&mut intake, batch.len() as u64) as usize;
        if room == 0 {
            return if batch.is_empty() { Ok(0) } else { Err(Refusal::Full) };
        }
        let now = batch.len().min(room);
        batch.iter_mut().take(now).for_each(|message| message.holds_slot = true);
        if now == batch.len() && now >= chunk_len::<Message<T>>() / 4 {
            let spare = intake.tail.spare();
            intake.tail.push_chunk(std::mem::replace(batch, spare));
        } else {
            batch.drain(..now).for_each(|message| intake.tail.push(message));
        }
        intake.slots += now as u64;
        intake.accepted += now as u64;
        intake.entered += now as u64;
        self.wake_readers(intake, now);
        Ok(now)
    }

    /// Promises to take one message, or says why not; [`Core::redeem`] or [`Core::forgo`] follows. This is
    /// the first half of a publish to several queues.
    pub(crate) fn pledge(&self) -> Result<Pledge, Refusal> {
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err(Refusal::Closed);
        }
        let slot = self.has_room(&mut intake);
        if !slot && self.settings.overflow.refuses() {
            return Err(Refusal::Full);
        }
        intake.slots += u64::from(slot);
        intake.pledged += 1;
        Ok(Pledge { slot })
    }

    /// Brings the promised message.
    pub(crate) fn redeem(&self, pledge: Pledge, mut message: Message<T>) -> Accepted {
        if !pledge.slot {
            let accepted = match self.overflow(message) {
                Ok(accepted) => accepted,
                // Only a full dead-letter queue can still refuse; the promise holds nevertheless.
                Err((message, _)) => {
                    self.enter(message, Admission::Published);
                    Accepted::Queued
                }
            };
            self.intake.lock().pledged -= 1;
            return accepted;
        }
        let mut intake = self.intake.lock();
        message.holds_slot = true;
        intake.pledged -= 1;
        intake.accepted += 1;
        intake.entered += 1;
        intake.tail.push(message);
        self.wake_readers(intake, 1);
        Accepted::Queued
    }

    /// Takes a promise back.
    pub(crate) fn forgo(&self, pledge: Pledge) {
        let outlet = self.outlet.lock();
        self.intake.lock().pledged -= 1;
        self.release(outlet, u64::from(pledge.slot));
    }

    /// Whether a publish with this patience waits for room here.
    pub(crate) fn waits(&self, patience: Patience) -> bool {
        self.settings.overflow == Overflow::Wait && !matches!(patience, Patience::None)
    }

    /// Blocks until there is room, holding nothing.
    pub(crate) fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        if self.runtime.is_simulated() {
            return self.simulate_until_room(patience);
        }
        let deadline = patience.deadline();
        let wake_at = self.arrange_wake(deadline);
        let mut outlet = self.outlet.lock();
        outlet.writers += 1;
        let result = loop {
            if let Some(result) = self.room_or_closed(&outlet) {
                break result;
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                break Err(Refusal::Timeout);
            }
            match wake_at {
                Some(instant) => drop(self.writable.wait_until(&mut outlet, instant)),
                None => self.writable.wait(&mut outlet),
            }
        };
        outlet.writers -= 1;
        result
    }

    fn simulate_until_room(&self, patience: Patience) -> Result<(), Refusal> {
        let mut result = Ok(());
        let end = self.runtime.simulate_until(patience.deadline(), || {
            let answer = self.room_or_closed(&self.outlet.lock());
            result = answer.unwrap_or(Ok(()));
            answer.is_some()
        });
        match end {
            Until::Done => result,
            Until::TimedOut => Err(Refusal::Timeout),
            Until::Standstill => Err(Refusal::Deadlock),
        }
    }

    fn room_or_closed(&self, outlet: &Outlet<T>) -> Option<Result<(), Refusal>> {
        let intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Some(Err(Refusal::Closed));
        }
        (intake.slots - outlet.released < self.settings.capacity).then_some(Ok(()))
    }

    fn lets_in(&self, intake: &Intake<T>) -> bool {
        intake.gate == Gate::Draining && self.runtime.is_worker()
    }

    #[inline]
    fn has_room(&self, intake: &mut Intake<T>) -> bool {
        if intake.slots - intake.released_seen < self.settings.capacity {
            return true;
        }
        intake.released_seen = self.released.load(Ordering::Acquire);
        intake.slots - intake.released_seen < self.settings.capacity
    }

    fn room(&self, intake: &mut Intake<T>, wanted: u64) -> u64 {
        if intake.slots - intake.released_seen + wanted > self.settings.capacity {
            intake.released_seen = self.released.load(Ordering::Acquire);
        }
        self.settings.capacity.saturating_sub(intake.slots - intake.released_seen)
    }

    /// Applies the policy of a queue found full.
    fn overflow(&self, message: Message<T>) -> Result<Accepted, (Message<T>, Refusal)> {
        match self.settings.overflow {
            Overflow::Wait | Overflow::Reject => {
                self.counts.refused.add(1);
                Err((message, Refusal::Full))
            }
            Overflow::DropNewest => {
                self.intake.lock().accepted += 1;
                self.count_overflowed(1);
                drop_contained(message);
                Ok(Accepted::Dropped)
            }
            Overflow::DropOldest => Ok(self.replace_oldest(message)),
            Overflow::DeadLetter => self.dead_letter_overflow(message),
        }
    }

    fn replace_oldest(&self, message: Message<T>) -> Accepted {
        let oldest = {
            let mut outlet = self.outlet.lock();
            let mut intake = self.intake.lock();
            if outlet.head.is_empty() {
                intake.tail.refill(&mut outlet.head);
            }
            // Everything that fills the queue may be out of reach: promised or waiting for burial.
            let oldest = outlet.head.pop();
            outlet.left += u64::from(oldest.is_some());
            if oldest.as_ref().is_some_and(|m| m.holds_slot) {
                drop(intake);
                self.release(outlet, 1);
            }
            oldest
        };
        self.enter(message, Admission::Published);
        if let Some(oldest) = oldest {
            self.count_overflowed(1);
            drop_contained(oldest);
        }
        Accepted::Queued
    }

    fn dead_letter_overflow(&self, message: Message<T>) -> Result<Accepted, (Message<T>, Refusal)> {
        let letter = DeadLetter::new(message, Reason::Overflow, self);
        match self.sink().accept(letter) {
            Ok(()) => {
                self.intake.lock().accepted += 1;
                self.counts.dead_lettered.add(1);
                Ok(Accepted::DeadLettered)
            }
            Err(letter) => {
                self.counts.refused.add(1);
                Err((letter.into_message(), Refusal::Full))
            }
        }
    }

    /// Takes a dead letter of another queue: also while closing, and back to the sender if it is full.
    pub(crate) fn accept_letter(&self, message: Message<T>) -> Result<(), Message<T>> {
        let pledge = {
            let mut intake = self.intake.lock();
            let slot = self.has_room(&mut intake);
            intake.slots += u64::from(slot);
            intake.pledged += 1;
            Pledge { slot }
        };
        if pledge.slot || !self.settings.overflow.refuses() {
            self.redeem(pledge, message);
            return Ok(());
        }
        self.forgo(pledge);
        Err(message)
    }

    fn count_overflowed(&self, n: u64) {
        self.counts.overflowed.add(n);
        let total = self.counts.overflowed.get();
        if total.is_power_of_two() {
            self.runtime.tell(|| Event::Dropped { queue: self.name.to_string(), total });
        }
    }

    /// Puts a message at the tail, room or not.
    pub(crate) fn enter(&self, mut message: Message<T>, admission: Admission) {
        let mut intake = self.intake.lock();
        intake.admit(&mut message, admission);
        intake.entered += 1;
        intake.tail.push(message);
        self.wake_readers(intake, 1);
    }

    /// Puts a message before all that have not been delivered yet; needs no room.
    pub(super) fn enter_urgently(&self, intake: &mut Intake<T>, message: Message<T>) {
        intake.entered += 1;
        intake.urgent.push_back(message);
        self.urgent.store(intake.urgent.len(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn wake_readers(&self, intake: MutexGuard<'_, Intake<T>>, arrived: usize) {
        let sleeping = intake.sleeping;
        drop(intake);
        for _ in 0..sleeping.min(arrived) {
            self.readable.notify_one();
        }
    }
}
