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

mod accept;
mod afterwards;
mod closing;
mod hand_out;
mod inspect;
mod refusal;

use super::builder::Settings;
use super::fifo::{Head, Tail};
use crate::alarm::Alarms;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::message::Message;
use crate::runtime::Runtime;
use crate::scheduler::{DelayHeap, Timed, TimedId};
use crate::stats::{Counter, Tally};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, Padded, spin_loop, yield_now};
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
    pub(crate) alarms: Alarms,
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
            alarms: Alarms::default(),
            timed: OnceLock::new(),
            intake: Padded(Mutex::new(Intake::new())),
            outlet: Padded(Mutex::new(Outlet::new())),
            released: Padded(AtomicU64::new(0)),
            urgent: AtomicUsize::new(0),
            delayed: Mutex::new(DelayHeap::new()),
            readable: Condvar::new(),
            writable: Condvar::new(),
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

impl<T> Drop for Core<T> {
    fn drop(&mut self) {
        if let Some(id) = self.timed.get() {
            self.runtime.scheduler.unregister(*id);
        }
    }
}
