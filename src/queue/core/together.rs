//! Taking several messages at once, for a transaction: after a promise, and under one hold of the locks.
//!
//! A transaction holds the locks of several queues while it puts its messages in, so that nobody sees some of
//! them without the others. It takes them in the order of the queues' numbers; whoever else holds a lock of
//! one queue waits for none of another.

use super::{Admission, Core, Gate, Intake, Need, Outlet, Patience, Refusal};
use crate::deadlock::Awaited;
use crate::message::Message;
use crate::queue::builder::Overflow;
use crate::queue::throttle::Throttle;
use crate::request::Fate;
use crate::sync::MutexGuard;
use crate::timer::TimerRef;
use std::sync::{Arc, Weak};

/// A promise to take so many messages.
#[must_use]
#[derive(Debug)]
pub(crate) struct Pledges {
    n: u64,
    /// How many of them have room; the overflow policy acts on the others.
    slots: u64,
    admitted: bool,
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Whether so many would not fit if the queue were empty.
    pub(crate) fn never_takes(&self, n: u64) -> bool {
        n > self.settings.capacity && self.settings.overflow.refuses()
    }

    /// Promises to take `n` messages, or says why not; [`Core::put_together`] or [`Core::forgo_all`] follows.
    pub(crate) fn pledge_all(&self, n: u64) -> Result<Pledges, Refusal> {
        let takes_overflow = self.takes_overflow();
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err(Refusal::Closed);
        }
        let slots = self.room(&mut intake, n).min(n);
        if slots < n && !takes_overflow {
            return Err(Refusal::Full);
        }
        let admitted = intake.admission.is_some();
        for passed in 0..n {
            if let Err(limited) = self.admit(&mut intake) {
                give_passage_back(&mut intake, passed);
                return Err(limited);
            }
        }
        intake.slots += slots;
        intake.pledged += n;
        Ok(Pledges { n, slots, admitted })
    }

    /// Takes such a promise back.
    pub(crate) fn forgo_all(&self, pledges: &Pledges) {
        let outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        intake.pledged -= pledges.n;
        if pledges.admitted {
            give_passage_back(&mut intake, pledges.n);
        }
        drop(intake);
        self.release(outlet, pledges.slots);
        self.runtime.note_progress();
    }

    /// Blocks until there is room for `n` messages at once, holding nothing.
    pub(crate) fn wait_for_rooms(&self, n: u64, patience: Patience) -> Result<(), Refusal> {
        let wait = Arc::new(Together { core: self.weak(), n });
        let weak: Weak<Together<T>> = Arc::downgrade(&wait);
        self.wait_for(Need::Together(n), weak, patience)
    }

    /// Puts the promised messages in, in their order. Nobody sees any of them before [`Putting::release`].
    pub(crate) fn put_together(&self, pledges: &Pledges, messages: Vec<Message<T>>) -> Putting<'_, T> {
        debug_assert_eq!(pledges.n, messages.len() as u64);
        let replaces = self.settings.overflow == Overflow::DropOldest && pledges.slots < pledges.n;
        let mut outlet = replaces.then(|| self.outlet.lock());
        let mut intake = self.intake.lock();
        let mut after = Afterwards::default();
        for (i, mut message) in (0..).zip(messages) {
            message.holds_slot = i < pledges.slots;
            if message.due().is_some() && message.holds_slot {
                intake.note_coming(&message);
                after.delayed.push(message);
                continue;
            }
            let takes = match &mut outlet {
                _ if message.holds_slot => true,
                Some(outlet) if message.due().is_none() => self.makes_way(outlet, &mut intake, &message, &mut after),
                _ => {
                    intake.pass_over(&mut message, self.is_ordered());
                    after.overflowing.push(message);
                    continue;
                }
            };
            intake.pledged -= 1;
            if !takes {
                intake.accepted += 1;
                intake.pass_over(&mut message, self.is_ordered());
                after.overflowed.push(message);
                continue;
            }
            after.timers.extend(message.take_timer());
            intake.slots += u64::from(!message.holds_slot);
            message.holds_slot = true;
            intake.accepted += 1;
            self.put(&mut intake, message);
            after.arrived += 1;
        }
        Putting { core: self, intake, outlet, after }
    }

    /// Throws the oldest message away if the queue is full; whether there is room for one now.
    fn makes_way(
        &self,
        outlet: &mut Outlet<T>,
        intake: &mut Intake<T>,
        newcomer: &Message<T>,
        after: &mut Afterwards<T>,
    ) -> bool {
        if intake.slots - outlet.released < self.settings.capacity {
            return true;
        }
        let oldest = self.pop_oldest_fresh(outlet, intake, newcomer);
        let found = oldest.is_some();
        after.overflowed.extend(oldest);
        found
    }

    pub(crate) fn finish_detached(&self, rest: Afterwards<T>) {
        self.put_the_rest(rest);
    }

    /// What could not be done under the locks, since it may take others or run the user's code.
    fn put_the_rest(&self, after: Afterwards<T>) {
        if self.is_ordered() && after.arrived > 0 {
            // Who may be woken shows only in both sides of the queue together.
            self.wake_in_turn(after.arrived);
        }
        after.timers.iter().for_each(|timer| self.runtime.timers.supersede(timer));
        for message in after.delayed {
            let delayed = self.delayed.lock();
            let mut intake = self.intake.lock();
            intake.pledged -= 1;
            intake.accepted += 1;
            self.place(delayed, intake, message);
        }
        if self.is_durable() {
            self.drop_spilled();
        }
        for message in after.overflowing {
            // Only a full dead-letter queue can still refuse; the promise holds nevertheless.
            if let Err((message, _)) = self.overflow(message) {
                self.enter(message, Admission::Published);
            }
            self.intake.lock().pledged -= 1;
        }
        let overflowed = after.overflowed.len();
        (0..overflowed).for_each(|_| self.count_overflowed(1));
        after.overflowed.into_iter().for_each(|message| self.throw_away(message, Fate::Dropped));
        self.runtime.note_progress();
    }
}

fn give_passage_back<T>(intake: &mut Intake<T>, n: u64) {
    (0..n).for_each(|_| intake.admission.iter_mut().for_each(Throttle::take_back));
}

/// Messages that are in their queue while its lock is still held.
#[must_use]
pub(crate) struct Putting<'a, T> {
    core: &'a Core<T>,
    intake: MutexGuard<'a, Intake<T>>,
    outlet: Option<MutexGuard<'a, Outlet<T>>>,
    after: Afterwards<T>,
}

/// What remains to be done once the locks are released.
pub(crate) struct Afterwards<T> {
    arrived: usize,
    delayed: Vec<Message<T>>,
    /// For the overflow policy, which deals with them one by one.
    overflowing: Vec<Message<T>>,
    /// Thrown away.
    overflowed: Vec<Message<T>>,
    timers: Vec<TimerRef>,
}

impl<T> Default for Afterwards<T> {
    fn default() -> Self {
        let (delayed, overflowing, overflowed) = (Vec::new(), Vec::new(), Vec::new());
        Self { arrived: 0, delayed, overflowing, overflowed, timers: Vec::new() }
    }
}

impl<'a, T: Send + Sync + 'static> Putting<'a, T> {
    /// Lets the messages be seen. Locks are released here, and what takes others is left to what this answers.
    pub(crate) fn release(self) -> Released<'a, T> {
        drop(self.outlet);
        if !self.core.is_ordered() {
            self.core.wake_readers(self.intake, self.after.arrived);
        }
        Released { core: self.core, after: self.after }
    }
}

/// To be finished when no lock of any queue is held.
#[must_use]
pub(crate) struct Released<'a, T> {
    core: &'a Core<T>,
    after: Afterwards<T>,
}

impl<T: Send + Sync + 'static> Released<'_, T> {
    pub(crate) fn finish(self) {
        self.core.put_the_rest(self.after);
    }

    /// For [`Core::finish_detached`], on another thread.
    pub(crate) fn detach(self) -> Afterwards<T> {
        self.after
    }
}

/// A wait for room for several messages.
struct Together<T> {
    core: Weak<Core<T>>,
    n: u64,
}

impl<T: Send + Sync + 'static> Awaited for Together<T> {
    fn wake_everyone(&self) {
        if let Some(core) = self.core.upgrade() {
            core.wake_everyone();
        }
    }

    fn keeps_waiting(&self) -> bool {
        self.core.upgrade().is_some_and(|core| core.lacks(Need::Together(self.n)))
    }
}
