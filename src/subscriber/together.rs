//! Taking several messages at once, for a transaction: after a promise, and under one hold of the lock.

use super::ring::{Ring, Waste};
use super::seat::Lag;
use super::state::State;
use crate::message::Message;
use crate::queue::core::Refusal;
use crate::scheduler::TimedId;
use crate::sync::MutexGuard;
use crate::timer::TimerRef;
use std::sync::Arc;

/// A message with its own timer, taken out.
pub(crate) type Timed<T> = (Arc<Message<T>>, Option<TimerRef>);

impl<T: Send + Sync + 'static> Ring<T> {
    /// Tells rings, queues and logs of one broker apart.
    pub(crate) fn number(&self) -> TimedId {
        self.registration.id()
    }

    /// A subscriber that is waited for, and could not take so many if it had read all; how many it could.
    pub(crate) fn never_takes(&self, n: u64) -> Option<u64> {
        let state = self.state.lock();
        let small = state.seats.iter().find(|seat| seat.lag == Lag::Block && n > seat.capacity as u64)?;
        Some(small.capacity as u64)
    }

    /// The name of whoever has to be waited for.
    pub(crate) fn waits_for(&self, n: u64) -> Arc<str> {
        match self.full_seat(n) {
            Ok(Some(seat)) => Arc::clone(&seat.name),
            _ => Arc::clone(&self.topic),
        }
    }

    /// Promises to take so many messages now and so many later, which need no room yet;
    /// [`Ring::put_together`] or [`Ring::forgo_all`] follows.
    pub(crate) fn pledge_all(&self, now: u64, later: u64) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        match self.let_all_in(&mut state, now) {
            Err(Refusal::Full) if now == 0 => {}
            answer => answer?,
        }
        state.pledged += now + later;
        Ok(())
    }

    /// Writes what was promised, in order; nobody sees any of it before [`Writing::release`].
    pub(crate) fn put_together(&self, messages: Vec<Timed<T>>) -> Writing<'_, T> {
        let (mut later, mut timers, mut waste) = (Vec::new(), Vec::new(), Waste::default());
        let mut state = self.state.lock();
        for (message, timer) in messages {
            if message.due().is_some() {
                later.push((message, timer));
                continue;
            }
            state.pledged -= 1;
            self.append_shared(&mut state, message, &mut waste);
            timers.extend(timer);
        }
        Writing { state, rest: Written { ring: self, later, timers, _waste: waste } }
    }
}

/// Messages that are written while the lock is still held.
#[must_use]
pub(crate) struct Writing<'a, T: Send + Sync + 'static> {
    state: MutexGuard<'a, State<T>>,
    rest: Written<'a, T>,
}

impl<'a, T: Send + Sync + 'static> Writing<'a, T> {
    /// Lets the messages be seen; the rest is done by [`Written::finish`], once no lock is held.
    pub(crate) fn release(self) -> Written<'a, T> {
        self.rest.ring.finish(self.state);
        self.rest
    }
}

#[must_use]
pub(crate) struct Written<'a, T: Send + Sync + 'static> {
    ring: &'a Ring<T>,
    later: Vec<Timed<T>>,
    timers: Vec<TimerRef>,
    /// Dropped when it is finished.
    _waste: Waste<T>,
}

impl<T: Send + Sync + 'static> Written<'_, T> {
    pub(crate) fn finish(self) {
        let ring = self.ring;
        ring.finish_detached(self.detach());
    }

    /// For [`Ring::finish_detached`], on another thread.
    pub(crate) fn detach(self) -> Rest<T> {
        Rest { later: self.later, timers: self.timers, _waste: self._waste }
    }
}

/// What remains to be done of a write.
pub(crate) struct Rest<T: Send + Sync + 'static> {
    later: Vec<Timed<T>>,
    timers: Vec<TimerRef>,
    _waste: Waste<T>,
}

impl<T: Send + Sync + 'static> Ring<T> {
    pub(crate) fn finish_detached(&self, rest: Rest<T>) {
        rest.timers.iter().for_each(|timer| self.runtime.timers.supersede(timer));
        rest.later.into_iter().for_each(|(message, timer)| self.redeem(message, timer));
        self.runtime.note_progress();
    }
}
