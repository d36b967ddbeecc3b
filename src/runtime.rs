//! What every part of one broker shares: clock, scheduler, ids, chance, the simulation if there is one.

use crate::clock::{Clock, Timestamp};
use crate::consumer::Crew;
use crate::deadlock::{QueueRef, Waits};
use crate::message::{Message, MessageId, Stamp};
use crate::outcome::contained;
use crate::random::Random;
use crate::scheduler::{Scheduler, Timed, TimedId};
use crate::shutdown::Leftover;
use crate::simulation::{Executor, Until};
use crate::stats::Counter;
use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, thread_local};
use crate::timer::NamedTimers;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Something the owner of a broker should hear about; see `Builder::on_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message could not become a dead letter because that queue is full. It is kept, occupies capacity
    /// of its own queue, and is tried again every second.
    DeadLettersFull {
        /// The queue that gave up on the message.
        queue: String,
        /// The dead-letter queue that has no room.
        dead_letters: String,
    },
    /// A handler panicked; its message is retried or becomes a dead letter.
    HandlerPanicked {
        /// The message's queue.
        queue: String,
        /// Which message it was; the first of them for a batch.
        message: MessageId,
        /// What the panic said.
        text: String,
    },
    /// A worker has been waiting for room in a full queue, or for a subscriber, for longer than the threshold (see
    /// `Builder::blocked_warning`); told once per wait.
    WorkerBlocked {
        /// The worker's thread.
        worker: String,
        /// The queue whose messages it handles.
        works_for: String,
        /// The full queue, or the subscriber.
        waits_for: String,
    },
    /// A delivery was settled after its queue's ack timeout had given the message to another.
    SettledLate {
        /// The message's queue.
        queue: String,
        /// Which message it was.
        message: MessageId,
    },
    /// A queue's overflow policy has thrown a message away; told for the first one and then each time
    /// their number has doubled.
    Dropped {
        /// The queue that was full.
        queue: String,
        /// How many messages it has thrown away so far.
        total: u64,
    },
    /// A subscriber was too slow and was cut off, as its [`Lag::Disconnect`](crate::Lag::Disconnect) says.
    SubscriberDisconnected {
        /// The topic.
        topic: String,
        /// The subscriber's name.
        subscriber: String,
    },
    /// A queue ordered by key holds a key back after a failure, as `Exhausted::Park` or `Stop` asks.
    KeyParked {
        /// The queue.
        queue: String,
        /// The ordering key.
        key: String,
        /// Which message failed.
        message: MessageId,
        /// Nothing of the other keys is handed out either, until `Queue::resume`.
        stopped: bool,
    },
    /// A consumer's circuit breaker takes no messages for a while; told again after each probe that failed.
    CircuitOpened {
        /// The consumer's queue.
        queue: String,
        /// How many handlings failed of those it looked at; 1 of 1 after a probe.
        failures: u32,
        /// How many it looked at.
        of: u32,
    },
    /// Retention has removed records that a group with a consumer had not read; it goes on at the oldest.
    LogTrimmed {
        /// The log and the group, as `log/group`.
        group: String,
        /// The partition.
        partition: usize,
        /// The offset it would have read.
        asked: u64,
        /// The oldest offset that is still there.
        oldest: u64,
    },
    /// A topic's check-back panicked; the half message is asked about again.
    CheckBackPanicked {
        /// The topic.
        topic: String,
        /// The half message.
        message: MessageId,
        /// What the panic said.
        text: String,
    },
    /// A message in the broker's file could not be decoded when its turn came to be read. It is kept there: that of a
    /// queue, a dead letter or a half message as a dead letter of bytes (see `Queue::undecodable`), a log's record in a
    /// stream of the kind `undecodable` with the name of its partition (`log/0`).
    Undecodable {
        /// The queue, perhaps one of dead letters, the topic of the half message, or the log.
        queue: String,
        /// Which message it is.
        message: MessageId,
        /// What its codec said.
        error: String,
    },
    /// Messages of a durable queue, or records of a durable log for a group, cannot be read from the broker's file:
    /// perhaps one of them is damaged, or the file is. It is tried again every second. Told once until they can be.
    ///
    /// A thread that is held up may tell this after another has told that it is over. What counts is
    /// `QueueStats::trouble` and `GroupStats::trouble`, which say how it is now.
    NotRead {
        /// The queue, or the log and the group as `log/group`.
        queue: String,
        /// The log's partition.
        partition: Option<usize>,
        /// What went wrong.
        error: String,
    },
    /// What could not be read from the broker's file can be, or need not be any more: the group was moved elsewhere, or
    /// retention has removed it. As with [`NotRead`](Self::NotRead), what counts is `trouble` in the stats.
    ReadAgain {
        /// The queue, or the log and the group as `log/group`.
        queue: String,
        /// The log's partition.
        partition: Option<usize>,
    },
    /// A relay cannot do its work on an outbox's table; it goes on trying. Told once until it recovers.
    OutboxFailing {
        /// The table.
        outbox: String,
        /// What went wrong.
        error: String,
    },
    /// A relay's operations on an outbox's table succeed again.
    OutboxRecovered {
        /// The table.
        outbox: String,
    },
    /// A relay has given up on a row of an outbox's table, which keeps it with the reason.
    OutboxRowDead {
        /// The table.
        outbox: String,
        /// The row's id.
        row: i64,
        /// Why.
        reason: String,
    },
    /// A consumer's probe has succeeded: it works as before.
    CircuitClosed {
        /// The consumer's queue.
        queue: String,
        /// How many dead letters of the outage were sent back to the queue.
        redriven: usize,
    },
}

/// What a broker can be built with, besides its clock.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) events: Option<EventHook>,
    pub(crate) blocked_warning: Duration,
}

pub(crate) type EventHook = Box<dyn Fn(&Event) + Send + Sync>;

pub(crate) struct Runtime {
    /// Tells brokers apart in thread-local state; never 0.
    id: u64,
    pub(crate) clock: Arc<Clock>,
    pub(crate) scheduler: Scheduler,
    pub(crate) executor: Option<Executor>,
    /// Raised by every change of any binding; a cached route of an older version is not used.
    pub(crate) routes_version: AtomicU64,
    /// Held while bindings between topics change, so that two changes cannot close a cycle together.
    pub(crate) topology: Mutex<()>,
    next_id: AtomicU64,
    random: Mutex<Random>,
    events: Option<EventHook>,
    pub(crate) timers: NamedTimers,
    pub(crate) waits: Waits,
    /// After how long a blocked worker is told of.
    pub(crate) blocked_warning: Duration,
    crews: Mutex<Vec<Weak<dyn Crew>>>,
    /// Replies whose requester did not wait any more.
    pub(crate) late_replies: Counter,
    rings: Mutex<Vec<Weak<dyn AnyRing>>>,
    companions: Mutex<Vec<Arc<dyn Companion>>>,
    watchers: AtomicUsize,
    watched: Mutex<()>,
    moved: Condvar,
}

static NEXT_RUNTIME: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
static NEXT_SLOT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Ids a thread takes at once, so that producers do not share a counter.
const ID_BLOCK: u64 = 1024;

thread_local! {
    /// The broker, the next id and the end of this thread's block of ids.
    static IDS: Cell<(u64, u64, u64)> = const { Cell::new((0, 0, 0)) };
    /// The broker and the queue whose worker this thread is right now.
    static WORKS_FOR: RefCell<Option<(u64, QueueRef)>> = const { RefCell::new(None) };
    /// Spreads threads over sharded state.
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A small number that differs between threads, for choosing a shard.
#[inline]
pub(crate) fn thread_slot() -> usize {
    SLOT.with(|slot| {
        if slot.get() == usize::MAX {
            slot.set(NEXT_SLOT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        slot.get()
    })
}

impl Runtime {
    pub(crate) fn new(clock: Clock, executor: Option<Executor>, options: Options) -> Arc<Self> {
        let Options { seed, events, blocked_warning } = options;
        let clock = Arc::new(clock);
        Arc::new(Self {
            id: NEXT_RUNTIME.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            scheduler: Scheduler::new(Arc::clone(&clock), executor.is_none()),
            clock,
            executor,
            routes_version: AtomicU64::new(1),
            topology: Mutex::new(()),
            next_id: AtomicU64::new(1),
            random: Mutex::new(Random::new(seed)),
            events,
            timers: NamedTimers::default(),
            waits: Waits::default(),
            blocked_warning,
            crews: Mutex::new(Vec::new()),
            late_replies: Counter::default(),
            rings: Mutex::new(Vec::new()),
            companions: Mutex::new(Vec::new()),
            watchers: AtomicUsize::new(0),
            watched: Mutex::new(()),
            moved: Condvar::new(),
        })
    }

    /// The next message id of this thread's block.
    #[inline]
    pub(crate) fn next_id(&self) -> u64 {
        IDS.with(|ids| {
            let (owner, next, end) = ids.get();
            let (next, end) = if owner == self.id && next < end { (next, end) } else { self.id_block() };
            ids.set((self.id, next + 1, end));
            next
        })
    }

    #[cold]
    fn id_block(&self) -> (u64, u64) {
        let first = self.next_id.fetch_add(ID_BLOCK, Ordering::Relaxed);
        (first, first + ID_BLOCK)
    }

    /// Has assigned ids begin here, before any is.
    #[cfg(feature = "sqlite")]
    pub(crate) fn begin_ids_at(&self, first: u64) {
        self.next_id.store(first, Ordering::Relaxed);
    }

    /// So many ids in a row.
    fn next_ids(&self, n: u64) -> Range<u64> {
        debug_assert!(n <= ID_BLOCK);
        IDS.with(|ids| {
            let (owner, next, end) = ids.get();
            let (next, end) = if owner == self.id && next + n <= end { (next, end) } else { self.id_block() };
            ids.set((self.id, next + n, end));
            next..next + n
        })
    }

    /// For a message that is about to be published; one that has an id keeps it.
    #[inline]
    pub(crate) fn stamp_for<T>(&self, message: &Message<T>) -> Stamp {
        let id = if message.id == MessageId::default() { self.next_id().into() } else { message.id };
        Stamp { id, at: self.stamp() }
    }

    /// For one that has no id.
    #[inline]
    pub(crate) fn next_stamp(&self) -> Stamp {
        Stamp { id: self.next_id().into(), at: self.stamp() }
    }

    /// The same for one whose delay counts from then on.
    #[inline]
    pub(crate) fn exact_stamp_for<T>(&self, message: &Message<T>) -> Stamp {
        let id = if message.id == MessageId::default() { self.next_id().into() } else { message.id };
        Stamp { id, at: self.clock.now() }
    }

    /// Gives a message that is about to be published its id and times.
    #[inline]
    pub(crate) fn prepare<T>(&self, message: &mut Message<T>) {
        self.prepare_with(message, self.stamp_for(message));
    }

    /// The same for several messages at one time.
    pub(crate) fn prepare_all<'a, T: 'a>(&self, messages: impl ExactSizeIterator<Item = &'a mut Message<T>>) {
        let at = self.stamp();
        let ids = self.next_ids(messages.len() as u64);
        messages.zip(ids).for_each(|(message, next)| {
            let id = if message.id == MessageId::default() { next.into() } else { message.id };
            self.prepare_with(message, Stamp { id, at });
        });
    }

    #[inline]
    pub(crate) fn prepare_with<T>(&self, message: &mut Message<T>, stamp: Stamp) {
        message.unfold_delay();
        message.stamp(stamp);
        if message.extras.is_some() {
            message.leave_order();
            message.resolve_times(&self.clock);
        }
    }

    /// The time for a stamp; see [`Clock::recent`].
    #[inline]
    pub(crate) fn stamp(&self) -> Timestamp {
        let (now, worth_ticking) = self.clock.recent();
        if worth_ticking {
            self.scheduler.start_ticking();
        }
        now
    }

    pub(crate) fn with_random<R>(&self, draw: impl FnOnce(&mut Random) -> R) -> R {
        draw(&mut self.random.lock())
    }

    /// Tells the owner; a hook that panics is not heard of again for this event, nothing else.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(hook) = &self.events {
            let event = event();
            let _ = contained(|| hook(&event));
        }
    }

    /// Runs `work` as one of this broker's workers, whose publishes pass while the broker drains.
    pub(crate) fn as_worker<R>(&self, queue: QueueRef, work: impl FnOnce() -> R) -> R {
        struct Restore(Option<(u64, QueueRef)>);
        impl Drop for Restore {
            fn drop(&mut self) {
                WORKS_FOR.with(|w| w.replace(self.0.take()));
            }
        }
        let _restore = Restore(WORKS_FOR.with(|w| w.replace(Some((self.id, queue)))));
        work()
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.works_for().is_some()
    }

    /// The queue whose worker the calling thread is, if it works for this broker.
    pub(crate) fn works_for(&self) -> Option<QueueRef> {
        WORKS_FOR.with(|w| w.borrow().as_ref().filter(|(id, _)| *id == self.id).map(|(_, queue)| queue.clone()))
    }

    /// How many workers can empty a queue; `None` if others than workers may: it has no consumer, a paused
    /// one, or somebody receives from it by hand.
    pub(crate) fn drainers(&self, queue: TimedId) -> Option<usize> {
        let crews: Vec<_> = self.crews().into_iter().filter(|crew| crew.queue_id() == queue).collect();
        if crews.is_empty() { None } else { crews.iter().map(|crew| crew.drainers()).sum() }
    }

    pub(crate) fn enlist(&self, crew: Weak<dyn Crew>) {
        let mut crews = self.crews.lock();
        crews.retain(|crew| crew.strong_count() > 0);
        crews.push(crew);
    }

    pub(crate) fn crews(&self) -> Vec<Arc<dyn Crew>> {
        self.crews.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn enlist_ring(&self, ring: Weak<dyn AnyRing>) {
        let mut rings = self.rings.lock();
        rings.retain(|ring| ring.strong_count() > 0);
        rings.push(ring);
    }

    /// What the topics' subscribers read.
    pub(crate) fn rings(&self) -> Vec<Arc<dyn AnyRing>> {
        self.rings.lock().iter().filter_map(Weak::upgrade).collect()
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn accompany(&self, companion: Arc<dyn Companion>) {
        self.companions.lock().push(companion);
    }

    pub(crate) fn companions(&self) -> Vec<Arc<dyn Companion>> {
        self.companions.lock().clone()
    }

    pub(crate) fn take_companions(&self) -> Vec<Arc<dyn Companion>> {
        std::mem::take(&mut *self.companions.lock())
    }

    /// It has ended.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn dismiss(&self, companion: &Arc<dyn Companion>) {
        let mut companions = self.companions.lock();
        companions.retain(|other| !Arc::ptr_eq(other, companion));
    }

    /// Called after anything was settled or taken out, never under a queue's lock. Costs a load while
    /// nobody watches.
    #[inline]
    pub(crate) fn note_progress(&self) {
        if self.watchers.load(Ordering::SeqCst) > 0 {
            self.tell_watchers();
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_watchers(&self) {
        // Taken so that a watcher between its look and its wait does not miss the call.
        drop(self.watched.lock());
        self.moved.notify_all();
    }

    /// Waits until `done`, looking again after each progress, at most until `deadline`.
    pub(crate) fn watch(&self, deadline: Option<Instant>, mut done: impl FnMut() -> bool) -> bool {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.watched.lock();
        let result = loop {
            if done() {
                break true;
            }
            let timed_out = match deadline {
                Some(at) => self.moved.wait_until(&mut guard, at).timed_out(),
                None => {
                    self.moved.wait(&mut guard);
                    false
                }
            };
            if timed_out {
                break done();
            }
        };
        drop(guard);
        self.watchers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// In a simulation, runs others until `done`, `deadline` or a standstill.
    pub(crate) fn simulate_until(&self, deadline: Option<Timestamp>, done: impl FnMut() -> bool) -> Until {
        let executor = self.executor.as_ref().expect("only called in a simulation");
        executor.run_until(&self.scheduler, deadline, done)
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.executor.is_some()
    }
}

/// Something that brings messages in for a broker, and ends with it: a thread, or a task of its simulation.
pub(crate) trait Companion: Send + Sync {
    fn name(&self) -> &str;
    /// The broker is coming to rest: nothing more is to be brought in.
    fn stop_bringing(&self);
    /// Whether, in a simulation, it has something to do that it can do by then.
    fn is_busy(&self, horizon: Timestamp) -> bool;
    /// Everything that will be settled has been. Ends it; how many threads have not ended by `deadline`.
    fn end(&self, deadline: Option<Instant>) -> usize;
}

/// What the subscribers of one topic read, without its type.
pub(crate) trait AnyRing: Send + Sync {
    /// From now on only the broker's own workers may publish.
    fn start_draining(&self);
    fn close(&self);
    /// What handlers still have to do, with what becomes due for them by `horizon`, and a number that changes
    /// whenever anything moves.
    fn unrest(&self, horizon: Timestamp) -> (u64, u64);
    /// What handlers have not got to.
    fn leftovers(&self) -> Vec<Leftover>;
}

/// Somebody's place at the scheduler, given up when dropped.
pub(crate) struct Registration {
    runtime: Arc<Runtime>,
    id: TimedId,
}

impl Registration {
    pub(crate) fn new(runtime: &Arc<Runtime>, timed: Weak<dyn Timed>) -> Self {
        Self { runtime: Arc::clone(runtime), id: runtime.scheduler.register(timed) }
    }

    /// For what looks on and brings nothing about: nobody waits for it in a simulation.
    pub(crate) fn in_background(runtime: &Arc<Runtime>, timed: Weak<dyn Timed>) -> Self {
        Self { runtime: Arc::clone(runtime), id: runtime.scheduler.register_in_background(timed) }
    }

    pub(crate) fn id(&self) -> TimedId {
        self.id
    }

    pub(crate) fn arm(&self, due: Timestamp) {
        self.runtime.scheduler.arm(self.id, due);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.runtime.scheduler.unregister(self.id);
    }
}
