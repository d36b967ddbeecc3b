//! Handing messages out, and waiting for one.

use super::{Core, Gate, Intake, Nothing, Outlet, Patience, hand_out};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::fifo::Chunk;
use crate::simulation::Until;
use crate::sync::{MutexGuard, Ordering};

/// A batch of so many is worth handing out as the chunk in which it stands.
const LARGE: usize = 16;

/// How much of what is there a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Portion {
    /// As much as it may.
    Full,
    /// Less, if that leaves the next chunk whole for the next batch.
    Whole,
}

/// What came of looking for messages that follow each other.
enum Run {
    Some,
    None,
    /// There are more, but they make up batches of their own: to split them would copy every message from then on,
    /// since each batch would be put together from two chunks.
    Whole,
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Hands out the next message where only the head counts: the common case. `false` says nothing about why
    /// not; [`Core::try_take`] does. `slot` must be empty: the message is moved there at once, since it may be
    /// large.
    #[inline(never)]
    pub(crate) fn take_plain(&self, slot: &mut Option<Message<T>>) -> bool {
        debug_assert!(slot.is_none());
        if self.lonely.load(Ordering::Relaxed)
            && !self.looks_aside()
            && let Some(taken) = self.take_alone(self.intake.lock(), slot)
        {
            return taken;
        }
        let mut outlet = self.outlet.lock();
        if self.looks_aside() {
            *slot = self.take_in_turn(outlet);
            return slot.is_some();
        }
        if outlet.head.is_empty() {
            outlet = match self.refill_or_take(outlet, slot) {
                Ok(outlet) => outlet,
                Err(taken) => return taken,
            };
        }
        if outlet.head.first().is_none_or(|message| self.is_overdue(message)) {
            return false;
        }
        // Rather than assigned, which would first drop what is not there, by way of another copy.
        std::mem::forget(std::mem::replace(slot, outlet.head.pop()));
        // Not before: what only one core writes, the other gets back at half the price.
        let Some(message) = slot else { return false };
        outlet.left += 1;
        outlet.delivered += 1;
        if hand_out(message) {
            self.release(outlet, 1);
        } else {
            drop(outlet);
        }
        self.lend(message);
        true
    }

    /// As [`Core::take_plain`], by one lock instead of two: a message that is the only one there is, and stands where
    /// its producer has put it. `None` if somebody has to look who has the outlet too.
    #[inline]
    fn take_alone(&self, mut intake: MutexGuard<'_, Intake<T>>, slot: &mut Option<Message<T>>) -> Option<bool> {
        // A writer that sleeps is woken by whoever has the outlet.
        if self.looks_aside() || intake.writers > 0 || self.settings.ttl.is_some() {
            return None;
        }
        if intake.tail.lone().as_ref().is_some_and(|message| message.extras.is_none()) {
            // Nobody asks what it is on the way, or it would be copied in other pieces than those in which it is read.
            std::mem::forget(std::mem::replace(slot, intake.tail.lone().take()));
        } else if intake.tail.alone()?.is_none_or(|message| message.extras.is_some()) {
            return intake.tail.is_empty().then_some(false);
        } else {
            std::mem::forget(std::mem::replace(slot, intake.tail.pop_alone()));
        }
        let message = slot.as_mut()?;
        intake.handed += 1;
        intake.slots -= u64::from(hand_out(message));
        drop(intake);
        self.lend(message);
        Some(true)
    }

    /// Fills an empty head, or takes the only message where it is, and lets go of the outlet then.
    #[inline]
    fn refill_or_take<'a>(
        &self,
        mut outlet: MutexGuard<'a, Outlet<T>>,
        slot: &mut Option<Message<T>>,
    ) -> Result<MutexGuard<'a, Outlet<T>>, bool> {
        let mut intake = self.intake.lock();
        intake.tail.note_drained();
        let is_plain = |next: Option<&Message<T>>| next.is_none_or(|message| message.extras.is_none());
        let lonely = intake.writers == 0 && self.settings.ttl.is_none() && intake.tail.alone().is_some_and(is_plain);
        self.lonely.store(lonely, Ordering::Relaxed);
        if lonely {
            drop(outlet);
            return Err(self.take_alone(intake, slot).unwrap_or(false));
        }
        if intake.tail.refill(&mut outlet.head) { Ok(outlet) } else { Err(false) }
    }

    /// Hands out the next message, if one is ready now.
    pub(crate) fn try_take(&self) -> Result<Message<T>, Nothing> {
        match self.take_unscreened() {
            Ok(message) if self.claims.is_some() => self.screen(message, || self.take_unscreened()),
            answer => answer,
        }
    }

    fn take_unscreened(&self) -> Result<Message<T>, Nothing> {
        let mut is_last_look = false;
        loop {
            match self.take_ready() {
                Err(Nothing::Empty | Nothing::Closed) if self.load_more() => {}
                // What waits for its time comes back to a closed queue too.
                Err(Nothing::Closed) if self.expects_more() => return Err(Nothing::Empty),
                // What was falling due during the look stands there now.
                Err(Nothing::Closed) if !is_last_look => is_last_look = true,
                answer => return answer,
            }
        }
    }

    fn expects_more(&self) -> bool {
        if self.has_ended() || self.delayed() > 0 {
            return !self.has_ended();
        }
        let (outlet, intake) = self.both_sides();
        self.expects_unread(&outlet, &intake)
    }

    fn take_ready(&self) -> Result<Message<T>, Nothing> {
        let mut outlet = self.outlet.lock();
        if self.looks_aside() {
            return self.take_otherwise(outlet);
        }
        let mut message = self.next_plain(&mut outlet)?;
        if self.is_overdue(&message) {
            return self.take_past_expired(outlet, message);
        }
        let released = hand_out(&mut message);
        outlet.left += 1;
        outlet.delivered += 1;
        if released {
            self.release(outlet, 1);
        } else {
            drop(outlet);
        }
        self.lend(&mut message);
        Ok(message)
    }

    fn next_plain(&self, outlet: &mut Outlet<T>) -> Result<Message<T>, Nothing> {
        if let Some(message) = outlet.head.pop() {
            return Ok(message);
        }
        self.refill(outlet)?;
        outlet.head.pop().ok_or(Nothing::Empty)
    }

    /// Moves the next chunk over to an empty head.
    fn refill(&self, outlet: &mut Outlet<T>) -> Result<(), Nothing> {
        let mut intake = self.intake.lock();
        if intake.tail.refill(&mut outlet.head) {
            self.lonely.store(false, Ordering::Relaxed);
            return Ok(());
        }
        Err(if intake.gate == Gate::Closed && intake.aside.available() == 0 { Nothing::Closed } else { Nothing::Empty })
    }

    #[cold]
    fn take_past_expired(
        &self,
        mut outlet: MutexGuard<'_, Outlet<T>>,
        first: Message<T>,
    ) -> Result<Message<T>, Nothing> {
        let mut expired = vec![first];
        let result = loop {
            match self.next_plain(&mut outlet) {
                Ok(message) if self.is_overdue(&message) => expired.push(message),
                result => break result,
            }
        };
        self.conclude(outlet, result, expired, Vec::new())
    }

    #[cold]
    fn take_otherwise(&self, outlet: MutexGuard<'_, Outlet<T>>) -> Result<Message<T>, Nothing> {
        if !self.only_in_turn() {
            return self.take_looking_aside(outlet);
        }
        match self.take_in_turn(outlet) {
            Some(message) => Ok(message),
            None => self.take_looking_aside(self.outlet.lock()),
        }
    }

    #[cold]
    pub(super) fn take_looking_aside(&self, mut outlet: MutexGuard<'_, Outlet<T>>) -> Result<Message<T>, Nothing> {
        let (mut expired, mut early) = (Vec::new(), Vec::new());
        let result = self.next_aside(&mut outlet, &mut expired, &mut early);
        self.conclude(outlet, result, expired, early)
    }

    /// The next message where more than the head counts: redeliveries, priorities, limits.
    fn next_aside(
        &self,
        outlet: &mut Outlet<T>,
        expired: &mut Vec<Message<T>>,
        early: &mut Vec<(Timestamp, Message<T>)>,
    ) -> Result<Message<T>, Nothing> {
        let mut intake = self.intake.lock();
        let intake = &mut *intake;
        if !self.below_limit(intake) {
            return Err(Nothing::Empty);
        }
        outlet.sort(intake);
        loop {
            if !outlet.has_message(intake) {
                let over = intake.gate == Gate::Closed && !self.moves_on(outlet);
                return Err(if over { Nothing::Closed } else { Nothing::Empty });
            }
            self.may_go(intake)?;
            if intake.level_to_read().is_some() {
                return Err(Nothing::Empty);
            }
            let aside = outlet.pop_in_turn().or_else(|| intake.aside.pop());
            self.note_aside(intake);
            let mut message = match aside {
                Some(message) => message,
                None => {
                    if outlet.head.is_empty() {
                        intake.tail.refill(&mut outlet.head);
                    }
                    outlet.head.pop().expect("there is a message, and not aside")
                }
            };
            if self.is_overdue(&message) {
                outlet.free_lanes(message.take_lane());
                expired.push(message);
            } else if let Some(at) = self.held_by_key(intake, &mut message) {
                early.push((at, message));
            } else {
                self.count_gone(intake);
                if self.is_ordered() && !self.moves_on(outlet) {
                    self.note_last_turn(intake);
                }
                intake.in_flight += usize::from(self.limits_in_flight());
                return Ok(message);
            }
        }
    }

    /// Counts the delivery, and lets go of the outlet and of what could not be handed out.
    fn conclude(
        &self,
        mut outlet: MutexGuard<'_, Outlet<T>>,
        mut result: Result<Message<T>, Nothing>,
        expired: Vec<Message<T>>,
        early: Vec<(Timestamp, Message<T>)>,
    ) -> Result<Message<T>, Nothing> {
        let mut released = 0;
        if let Ok(message) = &mut result {
            released = u64::from(hand_out(message));
            outlet.left += 1;
            outlet.delivered += 1;
        }
        self.pass_by(outlet, released, expired, early);
        match &mut result {
            Ok(message) => self.lend(message),
            // Nobody's sleep ends by itself on a manual clock.
            Err(Nothing::NotBefore(at)) if self.runtime.clock.is_manual() => self.arm(*at),
            Err(_) => {}
        }
        result
    }

    /// Lets go of the outlet, and of messages that a consumer came across but may not have.
    fn pass_by(
        &self,
        mut outlet: MutexGuard<'_, Outlet<T>>,
        mut released: u64,
        expired: Vec<Message<T>>,
        early: Vec<(Timestamp, Message<T>)>,
    ) {
        let passed = (expired.len() + early.len()) as u64;
        released += expired.iter().filter(|message| message.holds_slot).count() as u64;
        outlet.left += passed;
        outlet.moving += passed;
        self.note_left(&outlet);
        self.release(outlet, released);
        self.finish_moving(expired, early);
    }

    /// Hands out the next message for a look: it keeps its slot, since it may come back by
    /// [`Core::restore`]; if not, [`Core::free_slot`] follows.
    pub(crate) fn take_to_look(&self) -> Result<Message<T>, Nothing> {
        match self.take_what_is_there() {
            Err(_) if self.load_more() => self.take_what_is_there(),
            answer => answer,
        }
    }

    fn take_what_is_there(&self) -> Result<Message<T>, Nothing> {
        let mut outlet = self.outlet.lock();
        let (mut expired, mut early) = (Vec::new(), Vec::new());
        let mut result = self.next_aside(&mut outlet, &mut expired, &mut early);
        if let Ok(message) = &mut result {
            message.attempt += 1;
            outlet.left += 1;
            outlet.delivered += 1;
        }
        self.pass_by(outlet, 0, expired, early);
        result
    }

    pub(crate) fn free_slot(&self) {
        self.release(self.outlet.lock(), 1);
    }

    /// Hands out up to `max` messages that are ready now; `batch` must be empty.
    pub(crate) fn try_take_batch(
        &self,
        max: usize,
        batch: &mut Chunk<Message<T>>,
        portion: Portion,
    ) -> Result<(), Nothing> {
        debug_assert!(batch.is_empty() && max > 0);
        let plain = !self.is_special && self.settings.ack_timeout.is_none();
        loop {
            while plain && !self.looks_aside() && batch.len() < max {
                match self.take_run(max, batch, portion) {
                    Run::Some => {}
                    Run::None => break,
                    Run::Whole => return Ok(()),
                }
            }
            if self.only_in_turn() {
                self.take_turns(max - batch.len(), batch);
            }
            if batch.len() == max {
                return Ok(());
            }
            match self.try_take() {
                // What comes behind it may be a run again.
                Ok(message) => batch.push_back(message),
                Err(nothing) if batch.is_empty() => return Err(nothing),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Hands out a run of messages without times under one lock, as far as `max` are not reached.
    fn take_run(&self, max: usize, batch: &mut Chunk<Message<T>>, portion: Portion) -> Run {
        let mut outlet = self.outlet.lock();
        if outlet.head.is_empty() && self.refill(&mut outlet).is_err() {
            return Run::None;
        }
        let may_end = portion == Portion::Whole && !batch.is_empty();
        if may_end && max >= LARGE && outlet.head.len().is_multiple_of(max) {
            return Run::Whole;
        }
        let run = outlet.head.run(max - batch.len(), |message| message.extras.is_none());
        let released = if batch.is_empty() && run == outlet.head.len() {
            *batch = outlet.head.take_chunk(std::mem::take(batch));
            batch.iter_mut().map(|message| u64::from(hand_out(message))).sum()
        } else {
            let before = batch.len();
            outlet.head.move_to(run, batch);
            batch.range_mut(before..).map(|message| u64::from(hand_out(message))).sum()
        };
        outlet.left += run as u64;
        outlet.delivered += run as u64;
        self.release(outlet, released);
        if run > 0 { Run::Some } else { Run::None }
    }

    /// Gives back an emptied batch, for its memory.
    pub(crate) fn recycle(&self, batch: Chunk<Message<T>>) {
        debug_assert!(batch.is_empty());
        self.intake.lock().tail.recycle(batch);
    }

    /// Hands out the next message, waiting for one as long as `patience` and `go_on` say.
    #[cold]
    pub(crate) fn take(&self, patience: Patience, go_on: impl Fn() -> bool) -> Result<Message<T>, Nothing> {
        self.take_by(patience, go_on, || self.try_take())
    }

    /// As [`Core::take`], where the message is to lie. A caller who moved it there himself would put it together from
    /// what two ways leave behind, in other pieces than those in which it is read back.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_into(&self, slot: &mut Option<Message<T>>, patience: Patience) -> Result<(), Nothing> {
        let next = match patience {
            Patience::None => self.try_take(),
            patience => self.take(patience, || true),
        };
        *slot = Some(next?);
        Ok(())
    }

    /// As [`Core::take`], up to `max` messages; `batch` must be empty.
    pub(crate) fn take_batch(
        &self,
        max: usize,
        batch: &mut Chunk<Message<T>>,
        portion: Portion,
        patience: Patience,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing> {
        self.take_by(patience, go_on, || self.try_take_batch(max, batch, portion))
    }

    /// Looks for a moment, then waits.
    #[inline]
    fn take_by<R>(
        &self,
        patience: Patience,
        go_on: impl Fn() -> bool,
        mut look: impl FnMut() -> Result<R, Nothing>,
    ) -> Result<R, Nothing> {
        let mut round = 0;
        loop {
            match look() {
                Err(Nothing::Empty | Nothing::NotBefore(_)) if !matches!(patience, Patience::None) => {}
                answer => {
                    self.reading.over(round);
                    return answer;
                }
            }
            self.snooze_or(&self.reading, &mut round, || self.wait_for_message(patience, &go_on))?;
        }
    }

    /// Blocks until a message may be ready, holding nothing.
    pub(crate) fn wait_for_message(&self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), Nothing> {
        if self.runtime.is_simulated() {
            return self.simulate_until_message(patience);
        }
        let deadline = patience.deadline();
        loop {
            // All three at once: what moves from one to another is seen in one of them.
            let delayed = self.delayed.lock();
            let (outlet, mut intake) = self.both_sides();
            let expects_more = (delayed.len() > 0 || self.expects_unread(&outlet, &intake)) && !self.has_ended();
            drop(delayed);
            let ready = outlet.has_message(&intake) && intake.level_to_read().is_none();
            if !ready && self.wants_reading(&outlet, &intake) {
                drop((outlet, intake));
                self.load_more();
                continue;
            }
            let held = self.may_go(&intake);
            if ready && self.below_limit(&intake) && held.is_ok() {
                return Ok(());
            }
            if intake.gate == Gate::Closed && !ready && !expects_more && !self.moves_on(&outlet) {
                // With a limit in flight, readers sleep on a closed queue too, and settling wakes one.
                drop((outlet, intake));
                self.readable.notify_all();
                return Err(Nothing::Closed);
            }
            if !go_on() {
                // Whoever changed that has woken everybody, so no wake-up meant for a message is lost.
                return Err(Nothing::Interrupted);
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                return Err(Nothing::TimedOut);
            }
            intake.sleeping += 1;
            // Seen by whoever frees a lane, which takes the outlet alone.
            self.asleep.store(intake.sleeping, Ordering::Relaxed);
            drop(outlet);
            let turn = match held {
                Err(Nothing::NotBefore(at)) if ready => Some(at),
                _ => None,
            };
            match self.arrange_wake(deadline.into_iter().chain(turn).min()) {
                Some(instant) => drop(self.readable.wait_until(&mut intake, instant)),
                None => self.readable.wait(&mut intake),
            }
            intake.sleeping -= 1;
            self.asleep.store(intake.sleeping, Ordering::Relaxed);
        }
    }

    fn simulate_until_message(&self, patience: Patience) -> Result<(), Nothing> {
        let mut closed = false;
        let end = self.runtime.simulate_until(patience.deadline(), || {
            let expects_more = self.expects_more();
            let (outlet, intake) = self.both_sides();
            let ready = outlet.has_message(&intake) || self.wants_reading(&outlet, &intake);
            closed = intake.gate == Gate::Closed && !ready && !expects_more && !self.moves_on(&outlet);
            closed || (ready && self.below_limit(&intake) && self.may_go(&intake).is_ok())
        });
        match end {
            Until::Done if closed => Err(Nothing::Closed),
            Until::Done => Ok(()),
            Until::TimedOut => Err(Nothing::TimedOut),
            Until::Standstill => Err(Nothing::Deadlock),
        }
    }

    /// Whether a consumer has to look at more than the head.
    #[inline]
    fn looks_aside(&self) -> bool {
        self.aside.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn limits_in_flight(&self) -> bool {
        self.settings.max_in_flight.is_some()
    }

    fn below_limit(&self, intake: &Intake<T>) -> bool {
        self.settings.max_in_flight.is_none_or(|max| intake.in_flight < max)
    }

    /// Gives slots back and wakes as many writers.
    #[inline]
    pub(super) fn release(&self, mut outlet: MutexGuard<'_, Outlet<T>>, slots: u64) {
        outlet.released += slots;
        self.released.store(outlet.released, Ordering::Release);
        let writers = outlet.writers as u64;
        drop(outlet);
        if writers > 0 && slots > 0 {
            self.wake_writers(writers.min(slots));
        }
    }

    #[cold]
    fn wake_writers(&self, n: u64) {
        for _ in 0..n {
            self.writable.notify_one();
        }
        self.writable_together.notify_all();
    }

    /// With a manual clock nobody's condvar times out: the scheduler wakes us when the clock is moved.
    pub(super) fn arrange_wake(&self, deadline: Option<Timestamp>) -> Option<std::time::Instant> {
        let deadline = deadline?;
        if self.runtime.clock.is_manual() {
            self.arm(deadline);
        }
        self.runtime.clock.instant_of(deadline)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use crate::random::Random;
    use crate::{Queue, QueueBuilder};
    use std::collections::VecDeque;

    fn queue(capacity: usize) -> Queue<u64> {
        Queue::standalone(QueueBuilder::new("q").capacity(capacity)).unwrap()
    }

    #[test]
    fn a_lone_message_that_is_given_back_comes_again_as_if_for_the_first_time() {
        let queue = queue(1);
        for round in 1..4 {
            queue.send(round).unwrap();
            let mut slot = None;
            assert!(queue.core.take_plain(&mut slot));
            queue.core.restore(slot.into_iter().collect());
            assert_eq!((queue.len(), queue.in_flight(), queue.stats().delivered), (1, 0, round - 1));
            let delivery = queue.try_recv().unwrap();
            assert_eq!((**delivery, delivery.attempt()), (round, 1));
            delivery.ack().unwrap();
            assert_eq!(queue.stats().unaccounted(), 0);
        }
    }

    #[test]
    fn however_few_there_are_they_come_in_order_and_are_counted_at_each_step() {
        let (queue, mut random, mut model) = (queue(3), Random::new(7), VecDeque::new());
        let (mut held, mut acked) = (Vec::new(), 0);
        for n in 0..20_000 {
            match random.below(5) {
                0 | 1 => {
                    assert_eq!(queue.try_send(n).is_ok(), model.len() < 3);
                    if model.len() < 3 {
                        model.push_back(n);
                    }
                }
                2 | 3 => {
                    let next = queue.try_recv().ok();
                    assert_eq!(next.as_ref().map(|delivery| ***delivery), model.pop_front());
                    held.extend(next);
                }
                _ => held.drain(..).for_each(|delivery| {
                    delivery.ack().unwrap();
                    acked += 1;
                }),
            }
            let stats = queue.stats();
            assert_eq!((stats.ready, stats.in_flight, stats.acked), (model.len() as u64, held.len() as u64, acked));
            assert_eq!((queue.len(), queue.in_flight()), (model.len(), held.len()));
            assert_eq!(stats.unaccounted(), 0);
        }
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    }
}
