//! Waiting at a ring: subscribers for messages, publishers for room.

use super::ring::Ring;
use super::seat::{Lag, Seat};
use super::state::{Gate, State};
use crate::clock::Timestamp;
use crate::deadlock::{Awaited, QueueRef};
use crate::error::BroadcastError;
use crate::queue::core::{Patience, Refusal};
use crate::runtime::Event;
use crate::simulation::Until;
use crate::snooze::{ROUNDS, SPINS, pause};
use crate::sync::{Condvar, MutexGuard, Ordering, cores, current_thread, yield_now};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A turn that takes longer to come back is too much to pay for a longer run of messages.
const LONG_TURN: Duration = Duration::from_millis(2);
/// So often, after one that did, nobody gives way for that.
const HASTE: u32 = 256;

impl<T: Send + Sync + 'static> Ring<T> {
    /// Sleeps until there may be something new after `cursor`.
    pub(super) fn wait(
        &self,
        seat: &Arc<Seat>,
        cursor: u64,
        patience: Patience,
        go_on: &impl Fn() -> bool,
    ) -> Result<(), BroadcastError> {
        let news = |state: &State<T>| state.tail > cursor || seat.is_cut() || state.is_over();
        let deadline = patience.deadline();
        if self.runtime.is_simulated() {
            return match self.runtime.simulate_until(deadline, || news(&self.state.lock())) {
                Until::Done => Ok(()),
                Until::TimedOut => Err(BroadcastError::Timeout),
                Until::Standstill => Err(BroadcastError::Deadlock),
            };
        }
        let mut state = self.state.lock();
        loop {
            if news(&state) {
                return Ok(());
            }
            if !go_on() {
                return Err(BroadcastError::Closed);
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                return Err(BroadcastError::Timeout);
            }
            state.sleepers.push_back((cursor, Arc::clone(seat)));
            self.sleep(&seat.bell, &mut state, deadline);
            state.sleepers.retain(|(_, sleeper)| !Arc::ptr_eq(sleeper, seat));
            if let Some(next) = state.next_sleeper() {
                drop(state);
                next.bell.notify_one();
                state = self.state.lock();
            }
        }
    }

    /// Sleeps on the state, at most until `until`.
    fn sleep(&self, condvar: &Condvar, state: &mut MutexGuard<'_, State<T>>, until: Option<Timestamp>) {
        let Some(until) = until else { return condvar.wait(state) };
        if self.runtime.clock.is_manual() {
            // Nobody's condvar times out: the scheduler calls when the clock is moved. It keeps the earliest of
            // all deadlines here, so it has to be told again after each call, and not before the state is held,
            // or the call for another's deadline could come in between.
            self.registration.arm(until);
        }
        match self.runtime.clock.instant_of(until) {
            Some(instant) => drop(condvar.wait_until(state, instant)),
            None => condvar.wait(state),
        }
    }

    /// Whether there is something new after `cursor`. By the time you look there may be more.
    pub(super) fn has_more(&self, cursor: u64) -> bool {
        self.tail.load(Ordering::Acquire) > cursor
    }

    /// Where few come after `cursor`, gives the others a chance to make it more. Where there are as many subscribers as
    /// cores, whoever takes each few as they come spends most of its time on the way, and keeps the others from theirs.
    /// But a turn may be long in coming back, so after one that was, `haste` says how often to go without.
    pub(super) fn wait_for_more(&self, cursor: u64, ahead: u64, haste: &mut u32) {
        if !self.is_crowded() || self.first_snooze() == ROUNDS || self.has_more(cursor + ahead - 1) {
            return;
        }
        if *haste > 0 {
            *haste -= 1;
            return;
        }
        let start = self.runtime.clock.now();
        yield_now();
        if self.runtime.clock.now().since(start) > LONG_TURN {
            *haste = HASTE;
        }
    }

    /// Waits a moment for something new after `cursor`, without the lock.
    pub(super) fn spin(&self, cursor: u64) {
        let mut round = self.first_snooze();
        while round < ROUNDS && !self.has_more(cursor) {
            pause(round);
            round += 1;
        }
    }

    fn is_crowded(&self) -> bool {
        self.crowd.load(Ordering::Relaxed) >= cores()
    }

    /// Where a thread begins that waits a moment before it sleeps: only yielding where the others need this core,
    /// so that they have a batch ready when it is its turn again.
    fn first_snooze(&self) -> u32 {
        if self.runtime.is_simulated() || cfg!(shuttle) {
            return ROUNDS;
        }
        if self.is_crowded() { SPINS } else { 0 }
    }

    /// Blocks until no subscriber has to be waited for, holding nothing.
    pub(crate) fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        self.wait_for_rooms(1, patience)
    }

    /// As [`Ring::wait_for_room`], for `n` messages at once.
    pub(crate) fn wait_for_rooms(&self, n: u64, patience: Patience) -> Result<(), Refusal> {
        for round in self.first_snooze()..ROUNDS {
            if self.full_seat(n)?.is_none() {
                return Ok(());
            }
            pause(round);
        }
        let works_for = self.runtime.works_for();
        let mut warn_at = works_for.as_ref().map(|_| self.runtime.clock.now().after(self.runtime.blocked_warning));
        while let Some(seat) = self.full_seat(n)? {
            let now = self.runtime.clock.now();
            if let (Some(own), true) = (&works_for, warn_at.is_some_and(|at| at <= now)) {
                warn_at = None;
                self.tell_blocked(own, &seat);
            }
            if !self.runtime.is_simulated() && patience.deadline().is_some_and(|deadline| now >= deadline) {
                return Err(Refusal::Timeout);
            }
            self.wait_for_seat((&seat, n), patience.deadline(), works_for.as_ref(), warn_at)?;
        }
        Ok(())
    }

    fn wait_for_seat(
        &self,
        (seat, n): (&Arc<Seat>, u64),
        deadline: Option<Timestamp>,
        works_for: Option<&QueueRef>,
        warn_at: Option<Timestamp>,
    ) -> Result<(), Refusal> {
        let seen = self.runtime.waits.changes();
        if self.runtime.is_simulated() {
            return self.as_waiting((seat, n), works_for, || self.simulate_until_room(n, deadline));
        }
        let until = deadline.into_iter().chain(warn_at).min();
        self.as_waiting((seat, n), works_for, || {
            self.sleep_until_room(n, until, seen);
            Ok(())
        })
    }

    /// A worker says what it waits for, so that it can be told when that would be for ever.
    fn as_waiting(
        &self,
        (seat, n): (&Arc<Seat>, u64),
        works_for: Option<&QueueRef>,
        wait: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some(own) = works_for else { return wait() };
        let waits = &self.runtime.waits;
        let place = Arc::new(Place { ring: Weak::clone(&self.me), seat: Arc::clone(seat), n });
        let awaited: Weak<Place<T>> = Arc::downgrade(&place);
        let ticket = waits.begin(own.clone(), seat.identity(), awaited);
        let result = match waits.circle(&ticket, |queue| self.runtime.drainers(queue)) {
            Some(circle) => Err(Refusal::Deadlock(format!("only its own circle drains it: {circle}").into())),
            None => wait(),
        };
        waits.end(&ticket);
        result
    }

    fn simulate_until_room(&self, n: u64, deadline: Option<Timestamp>) -> Result<(), Refusal> {
        match self.runtime.simulate_until(deadline, || !matches!(self.full_seat(n), Ok(Some(_)))) {
            Until::Done => Ok(()),
            Until::TimedOut => Err(Refusal::Timeout),
            Until::Standstill => Err(Refusal::Deadlock("nothing else in the simulation can run".into())),
        }
    }

    /// Sleeps until there may be room, or `until`; not if workers have left since `seen`.
    fn sleep_until_room(&self, n: u64, until: Option<Timestamp>, seen: u64) {
        let mut state = self.state.lock();
        let over = until.is_some_and(|at| self.runtime.clock.now() >= at);
        if over || self.runtime.waits.changes() != seen || state.gate == Gate::Closed {
            return;
        }
        state.writers += 1;
        self.note_awaited(&state);
        if !state.has_rooms(n) {
            self.sleep(&self.writable, &mut state, until);
        }
        state.writers -= 1;
        self.note_awaited(&state);
    }

    fn tell_blocked(&self, works_for: &QueueRef, seat: &Seat) {
        self.runtime.tell(|| Event::WorkerBlocked {
            worker: current_thread().name().unwrap_or("unnamed").to_owned(),
            works_for: works_for.name.to_string(),
            waits_for: seat.name.to_string(),
        });
    }

    /// The subscriber that has to be waited for, for `n` messages at once.
    pub(super) fn full_seat(&self, n: u64) -> Result<Option<Arc<Seat>>, Refusal> {
        let mut state = self.state.lock();
        match self.let_all_in(&mut state, n) {
            Ok(()) => Ok(None),
            Err(Refusal::Full) => Ok(state.fullest(n)),
            Err(refusal) => Err(refusal),
        }
    }
}

/// The subscriber that one worker waits for.
struct Place<T: Send + Sync + 'static> {
    ring: Weak<Ring<T>>,
    seat: Arc<Seat>,
    n: u64,
}

impl<T: Send + Sync + 'static> Awaited for Place<T> {
    fn wake_everyone(&self) {
        self.ring.upgrade().into_iter().for_each(|ring| ring.wake_everyone());
    }

    fn keeps_waiting(&self) -> bool {
        self.ring.upgrade().is_some_and(|ring| {
            let state = ring.state.lock();
            state.gate != Gate::Closed && state.is_full(&self.seat, self.n)
        })
    }
}

impl Seat {
    pub(super) fn identity(&self) -> QueueRef {
        QueueRef { id: self.registration.id(), name: Arc::clone(&self.name) }
    }
}

impl<T> State<T> {
    /// Whether this subscriber has to be waited for.
    fn is_full(&self, seat: &Arc<Seat>, n: u64) -> bool {
        let end = self.tail + self.pledged + n;
        let waited_for = seat.lag == Lag::Block && end > seat.limit();
        waited_for && self.seats.iter().any(|other| Arc::ptr_eq(other, seat))
    }

    /// One that has to be waited for: the one farthest behind.
    fn fullest(&self, n: u64) -> Option<Arc<Seat>> {
        let full = self.seats.iter().filter(|seat| self.is_full(seat, n));
        full.min_by_key(|seat| seat.limit()).cloned()
    }
}
