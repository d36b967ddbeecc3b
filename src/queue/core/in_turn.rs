//! The two sides of a queue ordered by key, and handing out by turns.
//!
//! Producers append, as to any queue; whoever takes sorts what has come in into the lanes, which stand on the
//! consumers' side. So the two sides meet no more often than in a plain queue. What makes it right:
//!
//! * Whoever needs to know what may be handed out holds both locks and sorts first; so does a consumer before
//!   it sleeps. While somebody sleeps, nothing lies unsorted but what its producer is about to sort.
//! * Sorting wakes nobody. Whoever brings a message, frees a lane, or lets a key go on does.
//! * A consumer that has something to take looks for more only now and then: after as many turns as lanes
//!   stood in line at its last look, so that a new key waits for about one round. It looks as far as it takes
//!   to have [`ENOUGH`] lanes in line: a key of which thousands wait does not hide the others, and a long
//!   queue of many keys is not spread out in memory long before its turn.

use super::{Core, Gate, Intake, Outlet, hand_out};
use crate::message::Message;
use crate::queue::builder::Order;
use crate::queue::fifo::{Chunk, Head};
use crate::queue::keyed::{Key, Keyed};
use crate::stats::Tally;
use crate::sync::{MutexGuard, Ordering};

/// Lanes in line that are enough to choose from.
const ENOUGH: usize = 1024;
/// Turns between two looks even if few lanes stand in line.
const AT_LEAST: usize = 16;

/// What stands in lanes, and what is about to.
pub(super) struct Turns<T> {
    pub(super) keyed: Keyed<Message<T>>,
    /// Of what is in the head.
    keys: Head<Key>,
    /// Turns until the next look at what has come in.
    left: usize,
    /// Lanes in line beyond which nobody looks for more.
    enough: usize,
}

impl<T> Turns<T> {
    pub(super) fn new(order: Order) -> Self {
        // Where there is only one key, there is nobody to look for.
        let enough = if order == Order::OneAtATime { 1 } else { ENOUGH };
        Self { keyed: Keyed::new(), keys: Head::new(), left: 0, enough }
    }

    #[inline]
    fn sort(&mut self, head: &mut Head<Message<T>>) {
        while let Some(key) = self.keys.first_mut() {
            debug_assert!(!head.is_empty(), "as many as keys");
            self.keyed.push_next(key, || head.pop());
            drop(self.keys.pop());
        }
        debug_assert!(head.is_empty());
    }

    /// Moves the next chunk over; whether there was one.
    #[inline]
    fn refill(&mut self, head: &mut Head<Message<T>>, intake: &mut Intake<T>) -> bool {
        let keys = intake.keys.refill(&mut self.keys);
        let messages = intake.tail.refill(head);
        debug_assert_eq!(keys, messages);
        messages
    }
}

impl<T> Outlet<T> {
    /// Brings what has come into an ordered queue to where it will be handed out.
    #[inline]
    pub(super) fn sort(&mut self, intake: &mut Intake<T>) {
        let Some(turns) = &mut self.turns else { return };
        while turns.refill(&mut self.head, intake) {
            turns.sort(&mut self.head);
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

    /// A key of which all has been dropped goes on.
    pub(super) fn end_drop(&mut self, lane: u32) {
        self.keyed_mut().into_iter().for_each(|keyed| keyed.end_drop(lane));
        self.free_lanes([lane]);
    }

    /// How many messages of an ordered queue may be handed out now, as far as they are sorted.
    #[inline]
    pub(super) fn in_turn(&self) -> usize {
        self.keyed().map_or(0, Keyed::available)
    }

    /// The message whose turn it is, handed out; adds its slot to those released.
    #[inline(always)]
    fn pop_marked(&mut self, released: &mut u64) -> Option<Message<T>> {
        let turns = self.turns.as_mut()?;
        turns.left = turns.left.saturating_sub(1);
        // It is marked where it lies: moving it costs more.
        turns.keyed.pop(|message, lane| {
            message.set_lane(lane);
            *released += u64::from(hand_out(message));
        })
    }

    pub(super) fn pop_in_turn(&mut self) -> Option<Message<T>> {
        self.keyed_mut()?.pop(Message::set_lane)
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Both sides, everything counted and nothing sorted, which takes long where much waits to be.
    pub(super) fn counted_sides(&self) -> (MutexGuard<'_, Outlet<T>>, MutexGuard<'_, Intake<T>>) {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        outlet.catch_up(&mut intake);
        (outlet, intake)
    }

    /// Both sides, everything sorted and counted.
    pub(super) fn both_sides(&self) -> (MutexGuard<'_, Outlet<T>>, MutexGuard<'_, Intake<T>>) {
        let (mut outlet, mut intake) = self.counted_sides();
        outlet.sort(&mut intake);
        self.note_left(&outlet);
        (outlet, intake)
    }

    /// Whether messages wait in lanes that will get their turn, sooner or later. Once the queue has ended, nobody waits
    /// for the message before them, which may come back in another run only.
    pub(super) fn moves_on(&self, outlet: &Outlet<T>) -> bool {
        !self.has_ended() && outlet.keyed().is_some_and(Keyed::moves_on)
    }

    /// Whether nothing but the order decides what may be handed out, and nobody has to know that it was.
    #[inline]
    pub(super) fn only_in_turn(&self) -> bool {
        self.is_ordered() && self.aside.load(Ordering::Relaxed) == 1 && self.settings.ack_timeout.is_none()
    }

    /// Hands out the next message where nothing but the order counts. `None` says nothing about why not.
    #[inline(never)]
    pub(super) fn take_in_turn(&self, mut outlet: MutexGuard<'_, Outlet<T>>) -> Option<Message<T>> {
        if !self.only_in_turn() || !self.has_turn(&mut outlet) {
            return None;
        }
        if self.is_next_overdue(&outlet) {
            return None;
        }
        outlet.left += 1;
        outlet.delivered += 1;
        let mut released = 0;
        let next = outlet.pop_marked(&mut released);
        self.note_turn(&outlet);
        self.release(outlet, released);
        next
    }

    /// As [`Core::take_in_turn`], once the turn of this lane has ended: its message is counted by then.
    #[inline(never)]
    pub(crate) fn take_next_turn(&self, lane: u32, tally: &Tally, slot: &mut Option<Message<T>>) -> bool {
        let mut outlet = self.outlet.lock();
        let arrived = outlet.free_lanes([lane]).max(self.may_miss_a_turn().into());
        // Before another is, so that no more count as in flight than there are workers.
        tally.acked.add(1);
        *slot = self.take_in_turn(outlet);
        if slot.is_none() {
            self.wake_for_freed(arrived);
        }
        // Otherwise there are as many for others as before.
        self.runtime.note_progress();
        slot.is_some()
    }

    /// As [`Core::take_in_turn`], at most `max` under one lock; whether there was any.
    pub(super) fn take_turns(&self, max: usize, batch: &mut Chunk<Message<T>>) -> bool {
        let mut outlet = self.outlet.lock();
        let (before, mut released) = (batch.len(), 0);
        while batch.len() < before + max && self.has_turn(&mut outlet) && !self.is_next_overdue(&outlet) {
            batch.extend(outlet.pop_marked(&mut released));
        }
        self.note_turn(&outlet);
        let taken = batch.len() - before;
        outlet.left += taken as u64;
        outlet.delivered += taken as u64;
        self.release(outlet, released);
        taken > 0
    }

    /// Whether a message may be handed out; looks for new ones if it is time to.
    #[inline]
    fn has_turn(&self, outlet: &mut Outlet<T>) -> bool {
        let Some(turns) = &outlet.turns else { return false };
        if turns.left == 0 || turns.keyed.available() == 0 {
            self.look_for_more(outlet);
        }
        outlet.in_turn() > 0
    }

    /// Sorts what has come in, without keeping producers waiting for it.
    #[inline(never)]
    fn look_for_more(&self, outlet: &mut Outlet<T>) {
        let Outlet { head, turns: Some(turns), .. } = outlet else { return };
        let mut more = true;
        while more && turns.keyed.available() < turns.enough {
            let mut intake = self.intake.lock();
            turns.refill(head, &mut intake);
            more = !intake.tail.is_empty();
            drop(intake);
            turns.sort(head);
        }
        turns.left = turns.keyed.available().max(AT_LEAST);
    }

    #[inline]
    fn is_next_overdue(&self, outlet: &Outlet<T>) -> bool {
        outlet.keyed().and_then(Keyed::next).is_some_and(|message| self.is_overdue(message))
    }

    /// Tells those who sleep on a closed queue when the last of what they wait for has been handed out.
    #[inline]
    fn note_turn(&self, outlet: &Outlet<T>) {
        self.note_left(outlet);
        if self.is_draining() && !self.moves_on(outlet) {
            self.note_last_turn(&self.intake.lock());
        }
    }

    #[inline]
    pub(super) fn note_left(&self, outlet: &Outlet<T>) {
        if self.is_durable() {
            self.left_seen.store(outlet.left, Ordering::Relaxed);
        }
    }

    /// How many messages had left when somebody last looked: seldom long ago, and never too many.
    pub(super) fn left_seen(&self) -> u64 {
        self.left_seen.load(Ordering::Relaxed)
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
        let arrived = arrived.min(outlet.in_turn() + usize::from(self.wants_reading(&outlet, &intake)));
        drop(outlet);
        self.wake_readers(intake, arrived);
    }
}
