//! Who owns a message at each instant, and which lock guards what.
//!
//! | where a message is | owner | guarded by |
//! |---|---|---|
//! | ready, not yet reached by a consumer | [`Tail`] in [`Intake`] | `intake` |
//! | ready, next to be handed out | [`Head`] in [`Outlet`] | `outlet` |
//! | ready in a queue ordered by key, not yet reached by a consumer | [`Tail`] in [`Intake`] | `intake` |
//! | ready in a queue ordered by key, sorted | [`Turns`] in [`Outlet`] | `outlet` |
//! | the same, behind others that are only in the file | [`Spill`] in [`Intake`] | `intake` |
//! | to be redelivered now, or ready in a queue with priorities | [`Aside`] in [`Intake`] | `intake` |
//! | waiting for its time, its turn, a retry, or room among the dead letters | [`DelayHeap`] | `delayed` |
//! | in flight | the `Delivery` or the worker's stack; under an ack timeout `leases` holds a copy too | `leases` |
//!
//! Locks are taken in the order `delayed`, `outlet`, `intake`; `leases` is taken alone. No user code (handlers, destructors of
//! payloads, hooks) runs under any of them. A producer takes `intake` alone and a consumer `outlet` alone,
//! except when the queue is found full or empty. A message that is the only one there is leaves by `intake` alone.
//!
//! Capacity is counted in slots: a message takes one when it is accepted and gives it up when it is first
//! handed out. A redelivery holds none, so it never needs room.

mod accept;
mod afterwards;
#[cfg(feature = "sqlite")]
mod by_key;
mod closing;
mod expiry;
mod hand_out;
mod in_turn;
mod inspect;
mod later;
mod leases;
mod limits;
#[cfg(feature = "sqlite")]
mod not_read;
mod order;
pub(crate) mod place;
#[cfg(feature = "sqlite")]
mod places;
mod refusal;
mod screen;
#[cfg(feature = "sqlite")]
mod rest;
#[cfg(feature = "sqlite")]
mod returned;
#[cfg(feature = "sqlite")]
mod spill;
#[cfg(not(feature = "sqlite"))]
#[path = "no_spill.rs"]
mod spill;
mod together;

use super::builder::{Order, Settings};
use super::durable::{FileError, Filed};
use super::fifo::{Head, Tail};
use super::keyed::{Key, KeyRule, Keyed};
use super::levels::Levels;
use super::throttle::{KeyThrottles, Throttle};
use crate::alarm::Alarms;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::deadlock::{Awaited, QueueRef};
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::runtime::Runtime;
use crate::scheduler::{DelayHeap, Timed, TimedId};
use crate::snooze::Snooze;
use crate::stats::{Counter, Tally};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, Padded};
#[cfg(feature = "sqlite")]
pub(crate) use accept::Waking;
use ahash::RandomState;
pub(crate) use hand_out::Portion;
use in_turn::Turns;
use limits::ServiceRate;
pub(crate) use screen::ClaimKey;
use screen::Claims;
use spill::Spill;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
pub(crate) use together::{Pledges, Putting, Released};

pub(crate) struct Core<T> {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Settings,
    /// [`Settings::is_special`].
    pub(crate) is_special: bool,
    pub(crate) keys: KeyRule<T>,
    /// What of it is in the broker's file, set before anybody knows of a durable queue.
    pub(crate) filed: OnceLock<Filed<T>>,
    /// Of an idempotent queue.
    claims: Option<Claims<T>>,
    /// Of the hashes of ordering keys.
    seed: RandomState,
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
    /// `Outlet::left` of some moment, for producers that do not hold the outlet of a queue ordered by key.
    left_seen: AtomicU64,
    /// `Intake::sleeping`, for consumers that do not hold the intake.
    asleep: AtomicUsize,
    /// Not 0 if a consumer has to look at more than the head: something is aside, or a limit is set.
    aside: AtomicUsize,
    /// What comes next may be alone: see [`Core::take_alone`].
    lonely: AtomicBool,
    delayed: Mutex<DelayHeap<Waiting<T>>>,
    /// Copies of deliveries that have to be settled in time.
    leases: Mutex<DelayHeap<Message<T>>>,
    /// When the next ready message may expire, in nanoseconds of the timeline.
    sweep_at: AtomicU64,
    service: Mutex<ServiceRate>,
    /// Of readers.
    reading: Snooze,
    /// Of writers.
    writing: Snooze,
    /// Waited on with the intake.
    readable: Condvar,
    /// Waited on with the outlet.
    writable: Condvar,
    /// The same, for writers that need room for several messages at once: a wake-up for one place is not
    /// theirs, and must not be lost with them.
    writable_together: Condvar,
    /// The gate is no longer open, for consumers that do not hold the intake.
    draining: AtomicBool,
    /// Somebody has received from it other than by a consumer.
    by_hand: AtomicBool,
    /// Shutdown has reported what was left; settling comes too late.
    ended: AtomicBool,
    /// Nobody has to be told of a message that is acked, or could object. Never again once it has ended.
    pub(crate) acks_plainly: AtomicBool,
}

/// The producers' side.
struct Intake<T> {
    tail: Tail<Message<T>>,
    /// Of what is in the tail, where it is ordered by key.
    keys: Tail<Key, Message<T>>,
    /// Ready, and only in the file.
    spill: Spill<T>,
    aside: Aside<Message<T>>,
    gate: Gate,
    /// Messages accepted from outside, ever.
    accepted: u64,
    redriven: u64,
    recovered: u64,
    /// Messages that became ready, ever; with `Outlet::left` this gives how many are ready.
    entered: u64,
    /// Messages handed out from here that `Outlet::left` and `Outlet::delivered` do not count yet.
    handed: u64,
    /// Slots taken, ever, but for those given back here; with `Outlet::released` this gives how many are taken now.
    slots: u64,
    released_seen: u64,
    /// Publishes that were promised acceptance and have not arrived yet.
    pledged: u64,
    /// Readers asleep on `readable`.
    sleeping: usize,
    /// Messages for which readers are to be woken at the end of a commit.
    uncalled: usize,
    /// Writers that are asleep, or have found no room and are about to be.
    writers: usize,
    /// Counted only where `max_in_flight` is set.
    in_flight: usize,
    /// Limits how fast messages come in, go out, and go out per key.
    admission: Option<Throttle>,
    pace: Option<Throttle>,
    key_pace: Option<KeyThrottles>,
}

/// Ready messages that are not in the plain queue.
struct Aside<M> {
    /// Redeliveries, ahead of all fresh messages; unused where there are levels.
    urgent: VecDeque<M>,
    levels: Option<Levels<M>>,
}

/// The consumers' side.
struct Outlet<T> {
    head: Head<Message<T>>,
    /// Where messages are ordered by key; the head is only a place to pass through then.
    turns: Option<Turns<T>>,
    left: u64,
    delivered: u64,
    released: u64,
    /// Messages taken out by a consumer that were found expired or too early and are not yet elsewhere.
    moving: u64,
    /// Writers asleep on `writable` or `writable_together`.
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

/// What waits for time to pass. The rarer ones are in boxes, so that a delayed message needs no more than itself.
enum Waiting<T> {
    /// Not delivered before; becomes ready behind what is ready then.
    Delayed(Message<T>),
    Retry(Box<Message<T>>),
    /// Ready but for a limit per key.
    Paced(Box<Message<T>>),
    /// A dead letter that its queue had no room for.
    Burial(Box<DeadLetter<T>>),
}

/// What a queue finds in its messages: what it orders them by, and what it tells them apart by.
pub(crate) struct Keys<T> {
    pub(crate) order: KeyRule<T>,
    pub(crate) claim: Option<ClaimKey<T>>,
}

impl<T> From<KeyRule<T>> for Keys<T> {
    fn from(order: KeyRule<T>) -> Self {
        Self { order, claim: None }
    }
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
    expired: Counter,
    cancelled: Counter,
    pub(crate) timed_out: Counter,
    duplicates: Counter,
    late: Counter,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
    Timeout,
    /// And why.
    Deadlock(Box<str>),
    /// The user's function for its ordering key did, in these words.
    Panicked(Box<str>),
    /// By an admission limit that lets the next one pass after this long.
    Limited(Duration),
    /// The queue's codec did, in these words.
    Unencodable(Box<str>),
    /// The broker's file did not take it.
    NotStored(FileError),
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
    pub(crate) fn deadline(self) -> Option<Timestamp> {
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
    /// Something is ready, but a rate limit holds it back until then.
    NotBefore(Timestamp),
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
        keys: impl Into<Keys<T>>,
        runtime: Arc<Runtime>,
        dead: Option<Arc<dyn DeadLetterSink<T>>>,
    ) -> Arc<Self> {
        let Keys { order: keys, claim } = keys.into();
        let claims = settings.idempotent.map(|(window, _)| Claims::new(window, claim));
        let acks_plainly = settings.acks_plainly();
        let (intake, outlet) = (Intake::new(&settings), Outlet::new(settings.order));
        let core = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name,
            is_special: settings.is_special(),
            settings,
            keys,
            filed: OnceLock::new(),
            claims,
            seed: RandomState::new(),
            runtime,
            dead,
            terminal: AtomicBool::new(false),
            tallies: Tallies::default(),
            counts: Counts::default(),
            consumers: AtomicUsize::new(0),
            alarms: Alarms::default(),
            timed: OnceLock::new(),
            intake: Padded(Mutex::new(intake)),
            outlet: Padded(Mutex::new(outlet)),
            released: Padded(AtomicU64::new(0)),
            left_seen: AtomicU64::new(0),
            asleep: AtomicUsize::new(0),
            aside: AtomicUsize::new(0),
            lonely: AtomicBool::new(true),
            delayed: Mutex::new(DelayHeap::new()),
            leases: Mutex::new(DelayHeap::new()),
            sweep_at: AtomicU64::new(u64::MAX),
            service: Mutex::new(ServiceRate::default()),
            reading: Snooze::default(),
            writing: Snooze::default(),
            readable: Condvar::new(),
            writable: Condvar::new(),
            writable_together: Condvar::new(),
            draining: AtomicBool::new(false),
            by_hand: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            acks_plainly: AtomicBool::new(acks_plainly),
        });
        let timed: Weak<dyn Timed> = Arc::downgrade(&(Arc::clone(&core) as Arc<dyn Timed>));
        let _ = core.timed.set(core.runtime.scheduler.register(timed));
        core.note_aside(&core.intake.lock());
        core
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// Tells queues of one broker apart, in the order they were declared.
    pub(crate) fn number(&self) -> TimedId {
        *self.timed.get().expect("registered when it was made")
    }

    pub(crate) fn identity(&self) -> QueueRef {
        QueueRef { id: self.number(), name: Arc::clone(&self.name) }
    }

    #[inline]
    pub(crate) fn note_receiver(&self) {
        if !self.by_hand.load(Ordering::Relaxed) {
            self.by_hand.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn has_receivers(&self) -> bool {
        self.by_hand.load(Ordering::SeqCst)
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
        crews.iter().filter(|crew| crew.queue_id() == self.number()).map(|crew| crew.workers()).sum()
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
    /// The admission limit was asked.
    admitted: bool,
}

impl Pledge {
    pub(crate) fn has_slot(&self) -> bool {
        self.slot
    }
}

/// How much room a writer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    One,
    Together(u64),
}

impl Need {
    fn slots(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Together(n) => n,
        }
    }
}

/// On what grounds a message enters without being offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Published,
    /// The promise has taken its slot.
    Pledged,
    Redriven,
    /// It was here before.
    Returned,
    /// It was in the file.
    Recovered,
}

impl<T> Intake<T> {
    fn new(settings: &Settings) -> Self {
        Self {
            tail: Tail::new(),
            keys: Tail::new(),
            spill: Self::new_spill(settings.priority_levels),
            aside: Aside::new(settings),
            gate: Gate::Open,
            accepted: 0,
            redriven: 0,
            recovered: 0,
            entered: 0,
            handed: 0,
            slots: 0,
            released_seen: 0,
            pledged: 0,
            sleeping: 0,
            uncalled: 0,
            writers: 0,
            in_flight: 0,
            admission: settings.admission.as_ref().map(Throttle::new),
            pace: settings.rate_limit.as_ref().map(Throttle::new),
            key_pace: settings.rate_limit_per_key.as_ref().map(KeyThrottles::new),
        }
    }

    /// Counts a message that enters.
    #[inline]
    fn admit(&mut self, message: &mut Message<T>, admission: Admission) {
        message.holds_slot = matches!(admission, Admission::Published | Admission::Pledged | Admission::Recovered);
        self.slots += u64::from(matches!(admission, Admission::Published | Admission::Recovered));
        self.accepted += u64::from(!matches!(admission, Admission::Returned | Admission::Recovered));
        self.recovered += u64::from(admission == Admission::Recovered);
        self.redriven += u64::from(admission == Admission::Redriven);
    }

    /// The same for one that was promised a slot.
    #[inline]
    fn redeem(&mut self, message: &mut Message<T>) {
        self.pledged -= 1;
        self.admit(message, Admission::Pledged);
    }

    fn has_message(&self) -> bool {
        self.aside.available() > 0 || !self.tail.is_empty()
    }
}

impl<M> Aside<M> {
    fn new(settings: &Settings) -> Self {
        let levels =
            (settings.priority_levels > 1).then(|| Levels::new(settings.priority_levels, settings.low_priority_share));
        Self { urgent: VecDeque::new(), levels }
    }

    /// How many may be handed out now.
    fn available(&self) -> usize {
        self.urgent.len() + self.levels.as_ref().map_or(0, Levels::len)
    }

    fn take_all(&mut self) -> Vec<M> {
        let levels = self.levels.as_mut().map(Levels::take_all);
        self.urgent.drain(..).chain(levels.into_iter().flatten()).collect()
    }

    /// Lets `keep` take messages out; the others stay where they are.
    fn sift(&mut self, keep: &mut impl FnMut(M) -> Option<M>) {
        self.urgent = std::mem::take(&mut self.urgent).into_iter().filter_map(&mut *keep).collect();
        self.levels.iter_mut().for_each(|levels| levels.sift(keep));
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.urgent.iter_mut().chain(self.levels.as_mut().map(Levels::iter_mut).into_iter().flatten())
    }
}

impl<T> Aside<Message<T>> {
    fn pop(&mut self) -> Option<Message<T>> {
        self.urgent.pop_front().or_else(|| self.levels.as_mut()?.pop())
    }

    /// The oldest fresh message of the lowest level, if that is not above the newcomer's.
    fn evict_for(&mut self, newcomer: &Message<T>) -> Option<Message<T>> {
        self.levels.as_mut()?.evict(newcomer.priority(), |message| message.holds_slot)
    }
}

impl<T> Outlet<T> {
    /// Whether anything may be handed out, limits aside; for an ordered queue, when all is sorted.
    fn has_message(&self, intake: &Intake<T>) -> bool {
        !self.head.is_empty() || self.in_turn() > 0 || intake.has_message()
    }

    /// Counts what has been handed out past it.
    fn catch_up(&mut self, intake: &mut Intake<T>) {
        let handed = std::mem::take(&mut intake.handed);
        self.left += handed;
        self.delivered += handed;
    }

    fn new(order: Option<Order>) -> Self {
        let turns = order.map(Turns::new);
        Self { head: Head::new(), turns, left: 0, delivered: 0, released: 0, moving: 0, writers: 0 }
    }
}

impl<T: Send + Sync + 'static> Timed for Core<T> {
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_durable() {
            self.load_again();
        }
        let mut next =
            [self.move_due(now), self.take_back_overdue(now), self.sweep_expired(now), self.attend_to_rest(now)];
        if self.runtime.clock.is_manual() {
            self.wake_everyone();
        }
        next.sort_by_key(|due| due.unwrap_or(Timestamp::MAX));
        next[0]
    }
}

impl<T: Send + Sync + 'static> Awaited for Core<T> {
    fn wake_everyone(&self) {
        Core::wake_everyone(self);
    }

    fn keeps_waiting(&self) -> bool {
        self.is_full()
    }
}

impl<T> Core<T> {
    /// One by one, since a second panic on the way out would abort the process.
    fn drop_messages(&self) {
        let ready = {
            let (mut outlet, mut intake) = (self.outlet.lock(), self.intake.lock());
            let mut ready = intake.aside.take_all();
            ready.extend(intake.take_late());
            outlet.sort(&mut intake);
            ready.extend(outlet.keyed_mut().map_or_else(Vec::new, Keyed::take_all));
            ready.extend(intake.tail.take_all(&mut outlet.head));
            ready
        };
        ready.into_iter().for_each(drop_contained);
        let delayed = self.delayed.lock().take_all();
        delayed.for_each(drop_contained);
        self.claims.iter().flat_map(Claims::take_waiting).for_each(drop_contained);
        let leases = self.leases.lock().take_all();
        leases.for_each(drop_contained);
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
