//! Handing messages out, and waiting for one.

use super::{Core, Gate, Intake, Nothing, Outlet, Patience, hand_out, snooze};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::fifo::Chunk;
use crate::simulation::Until;
use crate::sync::{MutexGuard, Ordering, cores};

impl<T: Send + Sync + 'static> Core<T> {
    /// Hands out the next message, if one is ready now.
    #[inline]
    pub(crate) fn try_take(&self) -> Result<Message<T>, Nothing> {
        let mut outlet = self.outlet.lock();
        if outlet.head.is_empty() || self.looks_aside() {
            self.bring_up(&mut outlet)?;
        }
        let mut message = outlet.head.pop().ok_or(Nothing::Empty)?;
        let released = hand_out(&mut message);
        outlet.left += 1;
        outlet.delivered += 1;
        if released {
            self.release(outlet, 1);
        }
        Ok(message)
    }

    /// Hands out up to `max` messages that are ready now; `batch` must be empty.
    pub(crate) fn try_take_batch(&self, max: usize, batch: &mut Chunk<Message<T>>) -> Result<(), Nothing> {
        debug_assert!(batch.is_empty() && max > 0);
        let mut outlet = self.outlet.lock();
        while batch.len() < max {
            if outlet.head.is_empty() || self.looks_aside() {
                match self.bring_up(&mut outlet) {
                    Err(nothing) if batch.is_empty() => return Err(nothing),
                    Err(_) => break,
                    Ok(()) => {}
                }
            }
            if batch.is_empty() && outlet.head.len() <= max && !self.limits_in_flight() {
                *batch = outlet.head.take_chunk(std::mem::take(batch));
            } else {
                batch.extend(outlet.head.pop());
            }
        }
        let released = batch.iter_mut().map(|message| u64::from(hand_out(message))).sum();
        outlet.left += batch.len() as u64;
        outlet.delivered += batch.len() as u64;
        self.release(outlet, released);
        Ok(())
    }

    /// Gives back an emptied batch, for its memory.
    pub(crate) fn recycle(&self, batch: Chunk<Message<T>>) {
        debug_assert!(batch.is_empty());
        self.intake.lock().tail.recycle(batch);
    }

    /// Hands out the next message, waiting for one as long as `patience` and `go_on` say.
    pub(crate) fn take(&self, patience: Patience, go_on: impl Fn() -> bool) -> Result<Message<T>, Nothing> {
        let mut snoozes = 0;
        loop {
            match self.try_take() {
                Err(Nothing::Empty) if !matches!(patience, Patience::None) => {}
                answer => return answer,
            }
            if snoozes < self.spins() {
                snooze(snoozes);
                snoozes += 1;
            } else {
                self.wait_for_message(patience, &go_on)?;
            }
        }
    }

    /// Blocks until a message may be ready, holding nothing.
    pub(crate) fn wait_for_message(&self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), Nothing> {
        if self.runtime.is_simulated() {
            return self.simulate_until_message(patience);
        }
        let deadline = patience.deadline();
        let wake_at = self.arrange_wake(deadline);
        let mut slept = false;
        loop {
            let outlet = self.outlet.lock();
            let mut intake = self.intake.lock();
            let ready = !outlet.head.is_empty() || intake.has_message();
            if ready && self.below_limit(&intake) {
                return Ok(());
            }
            if intake.gate == Gate::Closed && !ready {
                return Err(Nothing::Closed);
            }
            if !go_on() {
                // The wake-up this thread took may have been meant for a message.
                let pass_on = slept && ready && intake.sleeping > 0;
                drop((outlet, intake));
                if pass_on {
                    self.readable.notify_one();
                }
                return Err(Nothing::Interrupted);
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                return Err(Nothing::TimedOut);
            }
            drop(outlet);
            intake.sleeping += 1;
            match wake_at {
                Some(instant) => drop(self.readable.wait_until(&mut intake, instant)),
                None => self.readable.wait(&mut intake),
            }
            intake.sleeping -= 1;
            slept = true;
        }
    }

    fn simulate_until_message(&self, patience: Patience) -> Result<(), Nothing> {
        let mut closed = false;
        let end = self.runtime.simulate_until(patience.deadline(), || {
            let (outlet, intake) = (self.outlet.lock(), self.intake.lock());
            let ready = !outlet.head.is_empty() || intake.has_message();
            closed = intake.gate == Gate::Closed && !ready;
            closed || (ready && self.below_limit(&intake))
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
        self.urgent.load(Ordering::Relaxed) > 0 || self.limits_in_flight()
    }

    pub(super) fn limits_in_flight(&self) -> bool {
        self.settings.max_in_flight.is_some()
    }

    fn below_limit(&self, intake: &Intake<T>) -> bool {
        self.settings.max_in_flight.is_none_or(|max| intake.in_flight < max)
    }

    /// Makes the head's front the next message to hand out; counts it where in-flight is limited.
    fn bring_up(&self, outlet: &mut Outlet<T>) -> Result<(), Nothing> {
        let mut intake = self.intake.lock();
        if !self.below_limit(&intake) {
            return Err(Nothing::Empty);
        }
        if let Some(message) = intake.urgent.pop_front() {
            self.urgent.store(intake.urgent.len(), Ordering::Relaxed);
            outlet.head.push_front(message);
        } else if outlet.head.is_empty() && !intake.tail.refill(&mut outlet.head) {
            return Err(if intake.gate == Gate::Closed { Nothing::Closed } else { Nothing::Empty });
        }
        intake.in_flight += usize::from(self.limits_in_flight());
        Ok(())
    }

    /// Gives slots back and wakes as many writers.
    #[inline]
    pub(super) fn release(&self, mut outlet: MutexGuard<'_, Outlet<T>>, slots: u64) {
        outlet.released += slots;
        self.released.store(outlet.released, Ordering::Release);
        let writers = outlet.writers as u64;
        drop(outlet);
        for _ in 0..writers.min(slots) {
            self.writable.notify_one();
        }
    }

    /// With a manual clock nobody's condvar times out: the scheduler wakes us when the clock is moved.
    pub(super) fn arrange_wake(&self, deadline: Option<Timestamp>) -> Option<std::time::Instant> {
        let deadline = deadline?;
        if self.runtime.clock.is_manual() {
            self.arm(deadline);
        }
        self.runtime.clock.instant_of(deadline)
    }

    /// Rounds of spinning before a thread sleeps; pointless where nobody else can run meanwhile.
    pub(super) fn spins(&self) -> u32 {
        if cores() > 1 && !self.runtime.is_simulated() { 8 } else { 0 }
    }
}
