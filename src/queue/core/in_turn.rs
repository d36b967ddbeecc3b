//! The two sides of a queue ordered by key, and handing out by turns.
//!
//! Producers append, as to any queue; whoever takes sorts what has come in into the lanes, which stand on the
//! consumers' side. So the two sides meet no more often than in a plain queue. What makes it right:
//!
//! * Whoever needs to know what may be handed out holds both locks and sorts first; so does a consumer before
//!   it sleeps. While somebody sleeps, nothing lies unsorted but what its producer is about to sort.
//! * Sorting wakes nobody. Whoever brings a message, frees a lane, or lets a key go on does.
//! * A consumer that has something to take looks for more only now and then: after as many turns as lanes
//!   stood in line at its last look, so that a new key waits for about one round.

use super::{Core, Gate, Intake, Nothing, Outlet, hand_out};
use crate::message::Message;
use crate::queue::fifo::{Chunk, Head, Tail};
use crate::queue::keyed::{Keyed, Keyful};
use crate::sync::{MutexGuard, Ordering};

/// What stands in lanes, and what is about to.
pub(super) struct Turns<T> {
    pub(super) keyed: Keyed<Message<T>>,
    unsorted: Head<Keyful<Message<T>>>,
    /// Turns until the next look at what has come in.
    left: usize,
}

impl<T> Turns<T> {
    /// Turns between two looks even if few lanes stand in line.
    const AT_LEAST: usize = 16;

    pub(super) fn new() -> Self {
        Self { keyed: Keyed::new(), unsorted: Head::new(), left: 0 }
    }

    #[inline]
    fn sort(&mut self) {
        while let Some(Keyful { key, message }) = self.unsorted.pop() {
            self.keyed.push(key, message);
        }
    }

    pub(super) fn sort_all(&mut self, tail: &mut Tail<Keyful<Message<T>>>) {
        while tail.refill(&mut self.unsorted) {
            self.sort();
        }
    }
}

impl<T> Outlet<T> {
    /// Brings what has come into an ordered queue to where it will be handed out.
    #[inline]
    pub(super) fn sort(&mut self, intake: &mut Intake<T>) {
        if let Some(turns) = &mut self.turns {
            turns.sort_all(&mut intake.keyful);
        }
    }

    #[inline]
    pub(super) fn keyed(&self) -> Option<&Keyed<Message<T>>> {
        self.turns.as_ref().map(|turns| &turns.keyed)
    }

    #[inline]
    pub(super) fn keyed_mut(&mut self) -> Option<&mut Keyed<Message<T>>> {
        self.turns.as_mut().map(|turns| &mut turns.keyed)
    }

    /// How many of these lanes have another message to hand out.
    pub(super) fn free_lanes(&mut self, lanes: impl IntoIterator<Item = u32>) -> usize {
        let Some(keyed) = self.keyed_mut() else { return 0 };
        lanes.into_iter().filter(|&lane| keyed.free(lane)).count()
    }

    /// How many messages of an ordered queue may be handed out now, as far as they are sorted.
    #[inline]
    pub(super) fn in_turn(&self) -> usize {
        self.keyed().map_or(0, Keyed::available)
    }

    /// Whether messages wait in lanes that will get their turn, sooner or later.
    pub(super) fn moves_on(&self) -> bool {
        self.keyed().is_some_and(Keyed::moves_on)
    }

    pub(super) fn pop_in_turn(&mut self) -> Option<Message<T>> {
        let (lane, mut message) = self.keyed_mut()?.pop()?;
        message.set_lane(lane);
        Some(message)
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Both sides, everything sorted.
    pub(super) fn both_sides(&self) -> (MutexGuard<'_, Outlet<T>>, MutexGuard<'_, Intake<T>>) {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        outlet.sort(&mut intake);
        (outlet, intake)
    }

    /// Whether nothing but the order decides what may be handed out.
    #[inline]
    pub(super) fn only_in_turn(&self) -> bool {
        self.is_ordered() && self.aside.load(Ordering::Relaxed) == 1
    }

    /// Hands out the next message where nothing but the order counts.
    pub(super) fn take_in_turn(&self, mut outlet: MutexGuard<'_, Outlet<T>>) -> Result<Message<T>, Nothing> {
        if !self.has_turn(&mut outlet) {
            return Err(self.nothing_in_turn(&outlet));
        }
        let Some(mut message) = self.next_in_turn(&mut outlet) else { return self.take_looking_aside(outlet) };
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

    /// As [`Core::take_in_turn`], at most `max` under one lock; whether there was any.
    pub(super) fn take_turns(&self, max: usize, batch: &mut Chunk<Message<T>>) -> bool {
        let mut outlet = self.outlet.lock();
        let (before, mut released) = (batch.len(), 0);
        while batch.len() < before + max && self.has_turn(&mut outlet) {
            let Some(mut message) = self.next_in_turn(&mut outlet) else { break };
            released += u64::from(hand_out(&mut message));
            batch.push_back(message);
        }
        let taken = batch.len() - before;
        outlet.left += taken as u64;
        outlet.delivered += taken as u64;
        self.release(outlet, released);
        taken > 0
    }

    /// Whether a message may be handed out; looks for new ones if it is time to.
    #[inline]
    fn has_turn(&self, outlet: &mut Outlet<T>) -> bool {
        let Some(turns) = &mut outlet.turns else { return false };
        if turns.left == 0 || turns.keyed.available() == 0 {
            self.look_for_more(turns);
        }
        turns.keyed.available() > 0
    }

    /// Sorts what has come in, without keeping producers waiting for it.
    fn look_for_more(&self, turns: &mut Turns<T>) {
        loop {
            let more = {
                let mut intake = self.intake.lock();
                intake.keyful.refill(&mut turns.unsorted);
                !intake.keyful.is_empty()
            };
            turns.sort();
            if !more {
                break;
            }
        }
        turns.left = turns.keyed.available().max(Turns::<T>::AT_LEAST);
    }

    /// The message whose turn it is, unless its time is over.
    #[inline]
    fn next_in_turn(&self, outlet: &mut Outlet<T>) -> Option<Message<T>> {
        let turns = outlet.turns.as_mut()?;
        if self.is_overdue(turns.keyed.next()?) {
            return None;
        }
        turns.left = turns.left.saturating_sub(1);
        let (lane, mut message) = turns.keyed.pop()?;
        message.set_lane(lane);
        if self.is_draining() && !turns.keyed.moves_on() {
            self.note_last_turn(&self.intake.lock());
        }
        Some(message)
    }

    #[cold]
    fn nothing_in_turn(&self, outlet: &Outlet<T>) -> Nothing {
        let intake = self.intake.lock();
        let over = intake.gate == Gate::Closed && intake.keyful.is_empty() && !outlet.moves_on();
        if over { Nothing::Closed } else { Nothing::Empty }
    }

    /// The last that sleepers on a closed queue have waited for may be handed out: they look again.
    #[cold]
    pub(super) fn note_last_turn(&self, intake: &Intake<T>) {
        if intake.gate == Gate::Closed {
            self.readable.notify_all();
        }
    }

    /// Wakes consumers for `arrived` messages that an ordered queue has got while some were asleep, as far as
    /// any may be handed out.
    #[cold]
    pub(super) fn wake_in_turn(&self, arrived: usize) {
        let (outlet, intake) = self.both_sides();
        let arrived = arrived.min(outlet.in_turn());
        drop(outlet);
        self.wake_readers(intake, arrived);
    }
}
