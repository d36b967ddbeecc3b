//! Who owns a message at each instant, and which lock guards what.
//!
//! | where a message is | owner | guarded by |
//! |---|---|---|
//! | ready, not yet reached by a consumer | [`Tail`] in [`Intake`] | `intake` |
//! | ready, next to be handed out | [`Head`] in [`Outlet`] | `outlet` |
//! | to be redelivered now | `urgent` in [`Intake`] | `intake` |
//! | waiting for a retry, or for room among the dead letters | [`DelayHeap`] | `delayed` |
//! | in flight | the `Delivery` or the worker's stack | nobody else |
//!
//! Locks are taken in the order `delayed`, `outlet`, `intake`. No user code (handlers, destructors of
//! payloads, hooks) runs under any of them. A producer takes `intake` alone and a consumer `outlet` alone,
//! except when the queue is found full or empty.
//!
//! Capacity is counted in slots: a message takes one when it is accepted and gives it up when it is first
//! handed out. A redelivery holds none, so it never needs room.

use super::builder::{Overflow, Settings};
use super::fifo::{Chunk, Head, Tail, chunk_len};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink, Reason};
use crate::error::{Refused, SendError, SendTimeoutError, TrySendError};
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::runtime::{Event, Runtime};
use crate::scheduler::{DelayHeap, Timed, TimedId};
use crate::simulation::Until;
use crate::stats::{Counter, HandlingTime, QueueStats, Tally};
use crate::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Padded, cores, spin_loop, yield_now,
};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

pub(crate) struct Core<T> {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Settings,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) dead: Option<Arc<dyn DeadLetterSink<T>>>,
    /// Other queues send their dead letters here, so nothing may be given up on: there is nowhere to go.
    terminal: AtomicBool,
    pub(crate) tallies: Tallies,
    pub(crate) counts: Counts,
    /// Consumers that are neither stopped nor paused.
    pub(crate) consumers: AtomicUsize,
    me: Weak<Self>,
    timed: OnceLock<TimedId>,
    intake: Padded<Mutex<Intake<T>>>,
    outlet: Padded<Mutex<Outlet<T>>>,
    /// `Outlet::released`, for producers that do not hold the outlet.
    released: Padded<AtomicU64>,
    /// `Intake::urgent.len()`, for consumers that do not hold the intake.
    urgent: AtomicUsize,
    delayed: Mutex<DelayHeap<Waiting<T>>>,
    /// Waited on with the intake.
    readable: Condvar,
    /// Waited on with the outlet.
    writable: Condvar,
    /// The gate is no longer open, for consumers that do not hold the intake.
    draining: AtomicBool,
    /// Shutdown has reported what was left; settling comes too late.
    ended: AtomicBool,
}

/// The producers' side.
struct Intake<T> {
    tail: Tail<Message<T>>,
    urgent: VecDeque<Message<T>>,
    gate: Gate,
    /// Messages accepted from outside, ever.
    accepted: u64,
    redriven: u64,
    /// Messages that became ready, ever; with `Outlet::left` this gives how many are ready.
    entered: u64,
    /// Slots taken, ever; with `Outlet::released` this gives how many are taken now.
    slots: u64,
    released_seen: u64,
    /// Publishes that were promised acceptance and have not arrived yet.
    pledged: u64,
    /// Readers asleep on `readable`.
    sleeping: usize,
    /// Counted only where `max_in_flight` is set.
    in_flight: usize,
}

/// The consumers' side.
struct Outlet<T> {
    head: Head<Message<T>>,
    left: u64,
    delivered: u64,
    released: u64,
    /// Writers asleep on `writable`.
    writers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Only the broker's own workers may still publish; receivers empty the queue.
    Draining,
    /// Nobody may publish; receivers get what is left, then "closed".
    Closed,
}

/// What waits for time to pass.
enum Waiting<T> {
    Retry(Message<T>),
    /// A dead letter that its queue had no room for.
    Burial(DeadLetter<T>),
}

/// Counted rarely enough to be shared.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) retried: Counter,
    pub(crate) requeued: Counter,
    pub(crate) panicked: Counter,
    pub(crate) discarded: Counter,
    dead_lettered: Counter,
    overflowed: Counter,
    purged: Counter,
    drained: Counter,
    refused: Counter,
}

/// What was settled, by worker.
#[derive(Default)]
pub(crate) struct Tallies {
    /// Of hand-written receivers, and of workers that have ended.
    pub(crate) common: Tally,
    workers: Mutex<Vec<Arc<Tally>>>,
}

impl Tallies {
    pub(crate) fn for_worker(&self) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        self.workers.lock().push(Arc::clone(&tally));
        tally
    }

    pub(crate) fn worker_ended(&self, tally: &Arc<Tally>) {
        let mut workers = self.workers.lock();
        self.common.absorb(tally);
        workers.retain(|other| !Arc::ptr_eq(other, tally));
    }

    fn each(&self, mut visit: impl FnMut(&Tally)) {
        let workers = self.workers.lock();
        visit(&self.common);
        workers.iter().for_each(|tally| visit(tally));
    }
}

/// Why a queue did not take a message at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
    Timeout,
    Deadlock,
}

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    Queued,
    /// By `DropNewest`.
    Dropped,
    /// By `Overflow::DeadLetter`.
    DeadLettered,
}

/// How long an operation may block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Timestamp),
    Forever,
}

impl Patience {
    fn deadline(self) -> Option<Timestamp> {
        match self {
            Self::Until(deadline) => Some(deadline),
            Self::None | Self::Forever => None,
        }
    }
}

/// Why no message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nothing {
    Empty,
    Closed,
    TimedOut,
    /// The caller's `go_on` said no.
    Interrupted,
    Deadlock,
}

const MAX_DEAD_LETTER_PAUSE: Duration = Duration::from_secs(30);
const BURIAL_RETRY: Duration = Duration::from_secs(1);
/// How many due messages are moved under one hold of the locks.
const DUE_AT_ONCE: usize = 256;

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn new(
        name: Arc<str>,
        settings: Settings,
        runtime: Arc<Runtime>,
        dead: Option<Arc<dyn DeadLetterSink<T>>>,
    ) -> Arc<Self> {
        let core = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name,
            settings,
            runtime,
            dead,
            terminal: AtomicBool::new(false),
            tallies: Tallies::default(),
            counts: Counts::default(),
            consumers: AtomicUsize::new(0),
            timed: OnceLock::new(),
            intake: Padded(Mutex::new(Intake::new())),
            outlet: Padded(Mutex::new(Outlet::new())),
            released: Padded(AtomicU64::new(0)),
            urgent: AtomicUsize::new(0),
            delayed: Mutex::new(DelayHeap::new()),
            readable: Condvar::new(),
            writable: Condvar::new(),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let timed: Weak<dyn Timed> = Arc::downgrade(&(Arc::clone(&core) as Arc<dyn Timed>));
        let _ = core.timed.set(core.runtime.scheduler.register(timed));
        core
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// Tells queues of one broker apart, in the order they were declared.
    pub(crate) fn number(&self) -> TimedId {
        *self.timed.get().expect("registered when it was made")
    }

    pub(crate) fn make_terminal(&self) {
        self.terminal.store(true, Ordering::Relaxed);
    }

    /// Whether other queues send their dead letters here.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal.load(Ordering::Relaxed)
    }

    pub(crate) fn dead_letters_name(&self) -> Option<String> {
        let sink = self.dead.as_ref().filter(|_| !self.is_terminal())?;
        Some(sink.name().to_string())
    }

    /// Workers of all its consumers.
    pub(crate) fn workers(&self) -> usize {
        let crews = self.runtime.crews();
        crews.iter().filter(|crew| *crew.queue() == *self.name).map(|crew| crew.workers()).sum()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.intake.lock().gate == Gate::Closed
    }

    // ---- accepting -------------------------------------------------------------------------------

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
        if !slot && !self.takes_overflow() {
            return Err(Refusal::Full);
        }
        intake.slots += u64::from(slot);
        intake.pledged += 1;
        Ok(Pledge { slot })
    }

    /// Whether a publish to a full queue succeeds all the same.
    fn takes_overflow(&self) -> bool {
        match self.settings.overflow {
            Overflow::DeadLetter => self.sink().has_room(),
            policy => !policy.refuses(),
        }
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
        let mut outlet = self.outlet.lock();
        outlet.writers += 1;
        let result = loop {
            if let Some(result) = self.room_or_closed(&outlet) {
                break result;
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                break Err(Refusal::Timeout);
            }
            match self.arrange_wake(deadline) {
                Some(instant) => drop(self.writable.wait_until(&mut outlet, instant)),
                None => self.writable.wait(&mut outlet),
            }
        };
        outlet.writers -= 1;
        result
    }

    /// Wakes another writer, if there is room: for one that was woken and cannot use it.
    pub(crate) fn pass_room_on(&self) {
        let outlet = self.outlet.lock();
        let has_room = outlet.writers > 0 && self.room_or_closed(&outlet).is_some();
        drop(outlet);
        if has_room {
            self.writable.notify_one();
        }
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

    /// Whether a dead letter would be taken now.
    pub(crate) fn takes_letters(&self) -> bool {
        !self.settings.overflow.refuses() || self.has_room(&mut self.intake.lock())
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

    /// Throws the oldest fresh message away for this one, in one step, so that nobody takes the room
    /// between. Redeliveries hold no slot: throwing them away would make no room.
    fn replace_oldest(&self, mut message: Message<T>) -> Accepted {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let full = intake.slots - outlet.released >= self.settings.capacity;
        let oldest = if full { self.pop_oldest_fresh(&mut outlet, &mut intake) } else { None };
        if full && oldest.is_none() {
            // All that fills the queue is out of reach: promised, or waiting for burial.
            intake.accepted += 1;
            drop((intake, outlet));
            self.count_overflowed(1);
            drop_contained(message);
            return Accepted::Dropped;
        }
        intake.admit(&mut message, Admission::Published);
        intake.entered += 1;
        intake.tail.push(message);
        drop(outlet);
        self.wake_readers(intake, 1);
        if let Some(oldest) = oldest {
            self.count_overflowed(1);
            drop_contained(oldest);
        }
        Accepted::Queued
    }

    fn pop_oldest_fresh(&self, outlet: &mut Outlet<T>, intake: &mut Intake<T>) -> Option<Message<T>> {
        let mut skipped = Vec::new();
        let oldest = loop {
            if outlet.head.is_empty() && !intake.tail.refill(&mut outlet.head) {
                break None;
            }
            match outlet.head.pop() {
                Some(message) if !message.holds_slot => skipped.push(message),
                oldest => break oldest,
            }
        };
        skipped.into_iter().rev().for_each(|message| outlet.head.push_front(message));
        if oldest.is_some() {
            outlet.left += 1;
            outlet.released += 1;
            self.released.store(outlet.released, Ordering::Release);
        }
        oldest
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
    fn enter_urgently(&self, intake: &mut Intake<T>, message: Message<T>) {
        intake.entered += 1;
        intake.urgent.push_back(message);
        self.urgent.store(intake.urgent.len(), Ordering::Relaxed);
    }

    #[inline]
    fn wake_readers(&self, intake: MutexGuard<'_, Intake<T>>, arrived: usize) {
        let sleeping = intake.sleeping;
        drop(intake);
        for _ in 0..sleeping.min(arrived) {
            self.readable.notify_one();
        }
    }

    // ---- handing out -----------------------------------------------------------------------------

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

    /// Hands out the next message for a look: it keeps its slot, since it may come back by
    /// [`Core::restore`]; if not, [`Core::free_slot`] follows.
    pub(crate) fn take_to_look(&self) -> Result<Message<T>, Nothing> {
        let mut outlet = self.outlet.lock();
        if outlet.head.is_empty() || self.looks_aside() {
            self.bring_up(&mut outlet)?;
        }
        let mut message = outlet.head.pop().ok_or(Nothing::Empty)?;
        message.attempt += 1;
        outlet.left += 1;
        outlet.delivered += 1;
        Ok(message)
    }

    pub(crate) fn free_slot(&self) {
        self.release(self.outlet.lock(), 1);
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
            match self.arrange_wake(deadline) {
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

    fn limits_in_flight(&self) -> bool {
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
    fn release(&self, mut outlet: MutexGuard<'_, Outlet<T>>, slots: u64) {
        outlet.released += slots;
        self.released.store(outlet.released, Ordering::Release);
        let writers = outlet.writers as u64;
        drop(outlet);
        for _ in 0..writers.min(slots) {
            self.writable.notify_one();
        }
    }

    /// With a manual clock nobody's condvar times out: the scheduler wakes us when the clock is moved. It
    /// knows one time per queue and forgets it once it has called, so this comes before each wait.
    fn arrange_wake(&self, deadline: Option<Timestamp>) -> Option<std::time::Instant> {
        let deadline = deadline?;
        if self.runtime.clock.is_manual() {
            self.arm(deadline);
        }
        self.runtime.clock.instant_of(deadline)
    }

    /// Rounds of spinning before a thread sleeps; pointless where nobody else can run meanwhile.
    fn spins(&self) -> u32 {
        if cores() > 1 && !self.runtime.is_simulated() { 8 } else { 0 }
    }

    // ---- after the delivery ----------------------------------------------------------------------

    /// Counts a delivery as no longer in flight. Comes after whatever else becomes of the message, so
    /// that nobody ever sees it nowhere.
    #[inline]
    pub(crate) fn settled(&self, counter: &Counter) {
        self.settled_many(counter, 1);
    }

    pub(crate) fn settled_many(&self, counter: &Counter, n: usize) {
        counter.add(n as u64);
        if self.limits_in_flight() {
            let mut intake = self.intake.lock();
            intake.in_flight -= n;
            self.wake_readers(intake, n);
        }
        self.runtime.note_progress();
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Gives a delivery back: `urgently` ahead of all fresh messages, otherwise behind them.
    pub(crate) fn take_back(&self, mut message: Message<T>, urgently: bool) {
        message.redelivered = true;
        if !urgently {
            return self.enter(message, Admission::Returned);
        }
        let mut intake = self.intake.lock();
        self.enter_urgently(&mut intake, message);
        self.wake_readers(intake, 1);
    }

    /// Puts messages that were taken for a look back to the front, in their order.
    pub(crate) fn restore(&self, messages: Vec<Message<T>>) {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let n = messages.len();
        for mut message in messages.into_iter().rev() {
            message.attempt -= 1;
            outlet.head.push_front(message);
        }
        outlet.left -= n as u64;
        outlet.delivered -= n as u64;
        if self.limits_in_flight() {
            intake.in_flight -= n;
        }
        drop(outlet);
        self.wake_readers(intake, n);
        self.runtime.note_progress();
    }

    /// Takes a message back from the dead letters, after `delay`.
    pub(crate) fn readmit(&self, mut message: Message<T>, delay: Duration) {
        message.attempt = 0;
        if delay.is_zero() {
            return self.enter(message, Admission::Redriven);
        }
        self.intake.lock().admit(&mut message, Admission::Redriven);
        self.wait(self.runtime.clock.now().after(delay), Waiting::Retry(message));
    }

    /// Has the message delivered again after `delay`.
    pub(crate) fn retry_after(&self, mut message: Message<T>, delay: Duration) {
        self.counts.retried.add(1);
        if delay.is_zero() {
            return self.take_back(message, true);
        }
        message.redelivered = true;
        self.wait(self.runtime.clock.now().after(delay), Waiting::Retry(message));
    }

    /// Makes a dead letter of it. If their queue has no room, it waits, holding capacity here.
    pub(crate) fn bury(&self, letter: DeadLetter<T>) {
        match self.sink().accept(letter) {
            Ok(()) => self.counts.dead_lettered.add(1),
            Err(letter) => {
                self.intake.lock().slots += 1;
                self.tell_dead_letters_full();
                self.wait(self.runtime.clock.now().after(BURIAL_RETRY), Waiting::Burial(letter));
            }
        }
    }

    /// How long a dead-letter queue's own failing message waits, since it cannot be given up on.
    pub(crate) fn pause_instead_of_giving_up(&self) -> Option<Duration> {
        (self.is_terminal() || self.dead.is_none()).then_some(MAX_DEAD_LETTER_PAUSE)
    }

    fn sink(&self) -> &Arc<dyn DeadLetterSink<T>> {
        self.dead.as_ref().expect("only queues that have dead letters give up on messages")
    }

    fn tell_dead_letters_full(&self) {
        self.runtime.tell(|| Event::DeadLettersFull {
            queue: self.name.to_string(),
            dead_letters: self.sink().name().to_string(),
        });
    }

    fn wait(&self, due: Timestamp, waiting: Waiting<T>) {
        let earliest = {
            let mut delayed = self.delayed.lock();
            let earliest = delayed.earliest().is_none_or(|first| due < first);
            delayed.insert(due, waiting);
            earliest
        };
        if earliest {
            self.arm(due);
        }
    }

    fn arm(&self, due: Timestamp) {
        self.runtime.scheduler.arm(self.number(), due);
    }

    /// Moves what is due to the front, and collects the dead letters to try again.
    fn move_due(&self, now: Timestamp) -> (Vec<DeadLetter<T>>, Option<Timestamp>) {
        let mut letters = Vec::new();
        let mut delayed = self.delayed.lock();
        let mut intake = self.intake.lock();
        let mut arrived = 0;
        for _ in 0..DUE_AT_ONCE {
            match delayed.pop_due(now) {
                Some(Waiting::Retry(message)) => {
                    self.enter_urgently(&mut intake, message);
                    arrived += 1;
                }
                Some(Waiting::Burial(letter)) => letters.push(letter),
                None => break,
            }
        }
        let next = delayed.earliest();
        self.wake_readers(intake, arrived);
        (letters, next)
    }

    fn bury_again(&self, letter: DeadLetter<T>, now: Timestamp) -> Option<Timestamp> {
        match self.sink().accept(letter) {
            Ok(()) => {
                self.counts.dead_lettered.add(1);
                self.release(self.outlet.lock(), 1);
                self.runtime.note_progress();
                None
            }
            Err(letter) => {
                let due = now.after(BURIAL_RETRY);
                self.delayed.lock().insert(due, Waiting::Burial(letter));
                Some(due)
            }
        }
    }

    // ---- looking and clearing --------------------------------------------------------------------

    /// How many messages are ready.
    pub(crate) fn ready(&self) -> u64 {
        let outlet = self.outlet.lock();
        self.intake.lock().entered - outlet.left
    }

    /// Whether the oldest ready message was published `linger` ago; if not, has the scheduler call then.
    pub(crate) fn has_lingered(&self, linger: Duration) -> bool {
        let oldest = {
            let mut outlet = self.outlet.lock();
            let mut intake = self.intake.lock();
            let Intake { urgent, tail, .. } = &mut *intake;
            let stamps = urgent.iter_mut().chain(tail.iter_mut(&mut outlet.head)).map(|message| message.published_at);
            stamps.take(1).next()
        };
        let Some(due) = oldest.map(|stamp| stamp.after(linger)) else { return false };
        let lingered = due <= self.runtime.clock.now();
        if !lingered {
            self.arm(due);
        }
        lingered
    }

    pub(crate) fn delayed(&self) -> usize {
        self.delayed.lock().len()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        // Settled first: a delivery counted there has been counted as delivered.
        let settled = self.settled_ever();
        self.outlet.lock().delivered.saturating_sub(settled)
    }

    fn settled_ever(&self) -> u64 {
        let mut settled = 0;
        self.tallies.each(|tally| settled += tally.settled());
        settled
    }

    /// Copies of up to `max` of the next messages, sharing their payloads with the queue.
    pub(crate) fn peek(&self, max: usize) -> Vec<Message<T>> {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let Intake { urgent, tail, .. } = &mut *intake;
        let ready = urgent.iter_mut().chain(tail.iter_mut(&mut outlet.head));
        ready.take(max).map(Message::share).collect()
    }

    /// Removes everything ready and waiting, oldest first; what is in flight stays.
    fn clear(&self) -> Vec<Message<T>> {
        let mut delayed = self.delayed.lock();
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let mut all: Vec<_> = intake.urgent.drain(..).collect();
        self.urgent.store(0, Ordering::Relaxed);
        all.extend(intake.tail.take_all(&mut outlet.head));
        outlet.left += all.len() as u64;
        let mut slots = all.iter().filter(|message| message.holds_slot).count() as u64;
        while let Some(waiting) = delayed.pop_due(Timestamp::MAX) {
            all.push(match waiting {
                Waiting::Retry(message) => message,
                Waiting::Burial(letter) => {
                    slots += 1;
                    letter.into_message()
                }
            });
        }
        drop((delayed, intake));
        self.release(outlet, slots);
        all
    }

    pub(crate) fn purge(&self) -> usize {
        let all = self.clear();
        let n = all.len();
        self.counts.purged.add(n as u64);
        all.into_iter().for_each(drop_contained);
        self.runtime.note_progress();
        n
    }

    pub(crate) fn drain(&self) -> Vec<Message<T>> {
        let all = self.clear();
        self.counts.drained.add(all.len() as u64);
        self.runtime.note_progress();
        all
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let now = self.runtime.clock.now();
        let mut handling = HandlingTime::default();
        let (mut acked, mut settled) = (0, 0);
        let delayed = self.delayed.lock();
        let outlet = self.outlet.lock();
        let intake = self.intake.lock();
        self.tallies.each(|tally| {
            acked += tally.acked.get();
            settled += tally.settled();
            handling.add(&tally.handling);
        });
        let fresh = outlet.head.front().or_else(|| intake.tail.front());
        let oldest = fresh.into_iter().chain(intake.urgent.front()).map(|message| message.published_at).min();
        let counts = &self.counts;
        let (discarded, purged) = (counts.discarded.get(), counts.purged.get());
        QueueStats {
            name: self.name.to_string(),
            capacity: self.settings.capacity,
            published: intake.accepted,
            delivered: outlet.delivered,
            acked: acked + counts.drained.get(),
            retried: counts.retried.get(),
            requeued: counts.requeued.get(),
            panicked: counts.panicked.get(),
            dead_lettered: counts.dead_lettered.get(),
            expired: 0,
            dropped: counts.overflowed.get() + discarded + purged,
            discarded,
            purged,
            redriven: intake.redriven,
            refused: counts.refused.get(),
            ready: intake.entered - outlet.left,
            in_flight: outlet.delivered.saturating_sub(settled),
            delayed: delayed.len() as u64,
            oldest_age: oldest.map(|stamp| now.since(stamp)),
            handling,
        }
    }

    // ---- closing ---------------------------------------------------------------------------------

    /// From now on only the broker's own workers may publish.
    pub(crate) fn start_draining(&self) {
        self.set_gate(Gate::Draining);
    }

    /// From now on nobody may publish, and receivers find the end after what is left.
    pub(crate) fn close(&self) {
        self.set_gate(Gate::Closed);
    }

    fn set_gate(&self, gate: Gate) {
        let outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Closed {
            intake.gate = gate;
        }
        drop((outlet, intake));
        self.draining.store(true, Ordering::Release);
        self.wake_everyone();
    }

    /// Whether it is of no use to wait for a batch to fill up.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Has all sleepers look again at what they wait for.
    pub(crate) fn wake_everyone(&self) {
        // Taken so that a sleeper between its look and its sleep does not miss the call.
        drop((self.outlet.lock(), self.intake.lock()));
        self.readable.notify_all();
        self.writable.notify_all();
    }

    /// Shutdown is about to report; whatever is settled later goes back instead.
    pub(crate) fn end(&self) {
        self.close();
        self.ended.store(true, Ordering::Relaxed);
    }

    /// What still has to happen here before the queue is at rest, and a number that changes whenever
    /// anything moves. What is ready, or becomes due by `horizon`, counts if a consumer is there to take it.
    pub(crate) fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let mut delayed = self.delayed.lock();
        let due = u64::from(delayed.earliest().is_some_and(|due| due <= horizon));
        let settled = self.settled_ever();
        let outlet = self.outlet.lock();
        let intake = self.intake.lock();
        let in_flight = outlet.delivered.saturating_sub(settled);
        let ready = intake.entered - outlet.left;
        let moves = intake.accepted + intake.entered + outlet.left + settled + delayed.len() as u64;
        let consumable = if self.consumers.load(Ordering::SeqCst) > 0 { due + ready } else { 0 };
        (consumable + in_flight + intake.pledged, moves)
    }
}

/// Whether the message gave up its slot.
#[inline]
fn hand_out<T>(message: &mut Message<T>) -> bool {
    message.attempt += 1;
    std::mem::take(&mut message.holds_slot)
}

/// A promise to take one message.
#[must_use]
#[derive(Debug)]
pub(crate) struct Pledge {
    slot: bool,
}

/// On what grounds a message enters without being offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Published,
    Redriven,
    /// It was here before.
    Returned,
}

impl<T> Intake<T> {
    fn new() -> Self {
        Self {
            tail: Tail::new(),
            urgent: VecDeque::new(),
            gate: Gate::Open,
            accepted: 0,
            redriven: 0,
            entered: 0,
            slots: 0,
            released_seen: 0,
            pledged: 0,
            sleeping: 0,
            in_flight: 0,
        }
    }

    fn admit(&mut self, message: &mut Message<T>, admission: Admission) {
        message.holds_slot = admission == Admission::Published;
        self.slots += u64::from(message.holds_slot);
        self.accepted += u64::from(admission != Admission::Returned);
        self.redriven += u64::from(admission == Admission::Redriven);
    }

    fn has_message(&self) -> bool {
        !self.urgent.is_empty() || !self.tail.is_empty()
    }
}

impl<T> Outlet<T> {
    fn new() -> Self {
        Self { head: Head::new(), left: 0, delivered: 0, released: 0, writers: 0 }
    }
}

/// Waits a moment for another thread to move, more patiently each time.
fn snooze(round: u32) {
    if round < 4 {
        (0..20).for_each(|_| spin_loop());
    } else {
        yield_now();
    }
}

impl<T: Send + Sync + 'static> Timed for Core<T> {
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let (letters, mut next) = self.move_due(now);
        for letter in letters {
            let again = self.bury_again(letter, now);
            next = next.into_iter().chain(again).min();
        }
        if self.runtime.clock.is_manual() {
            self.wake_everyone();
        }
        next
    }
}

impl<T> Core<T> {
    /// One by one, since a second panic on the way out would abort the process.
    fn drop_messages(&self) {
        let (mut delayed, mut outlet, mut intake) = (self.delayed.lock(), self.outlet.lock(), self.intake.lock());
        intake.urgent.drain(..).for_each(drop_contained);
        intake.tail.take_all(&mut outlet.head).into_iter().for_each(drop_contained);
        while let Some(waiting) = delayed.pop_due(Timestamp::MAX) {
            drop_contained(waiting);
        }
    }
}

impl<T> Drop for Core<T> {
    fn drop(&mut self) {
        if let Some(id) = self.timed.get() {
            self.runtime.scheduler.unregister(*id);
        }
        self.drop_messages();
    }
}

// ---- refusals as the errors of each operation --------------------------------------------------------

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn refused(&self, message: Message<T>) -> Refused<T> {
        Refused::new(message, &self.name)
    }

    pub(crate) fn deadlocked(&self, message: Message<T>) -> Refused<T> {
        self.refused(message).because("nothing else in the simulation can run")
    }

    pub(crate) fn send_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendError<T> {
        match refusal {
            Refusal::Full | Refusal::Timeout => SendError::Full(self.refused(message)),
            Refusal::Closed => SendError::Closed(self.refused(message)),
            Refusal::Deadlock => SendError::Deadlock(self.deadlocked(message)),
        }
    }

    pub(crate) fn try_send_error(&self, (message, refusal): (Message<T>, Refusal)) -> TrySendError<T> {
        match refusal {
            Refusal::Closed => TrySendError::Closed(self.refused(message)),
            _ => TrySendError::Full(self.refused(message)),
        }
    }

    pub(crate) fn send_timeout_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendTimeoutError<T> {
        match refusal {
            Refusal::Full => SendTimeoutError::Full(self.refused(message)),
            Refusal::Timeout => SendTimeoutError::Timeout(self.refused(message)),
            Refusal::Closed => SendTimeoutError::Closed(self.refused(message)),
            Refusal::Deadlock => SendTimeoutError::Deadlock(self.deadlocked(message)),
        }
    }
}
