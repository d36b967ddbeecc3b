//! Names to handles, threads, shutdown: wiring only.

mod entry;
#[cfg(feature = "sqlite")]
mod filed;

use crate::clock::{Clock, ManualClock, Timestamp};
use crate::dead_letter::DeadLetter;
use crate::describe::{Description, QueueDescription, TopicDescription};
use crate::error::Error;
use crate::half::{AnyHalves, half_name};
#[cfg(feature = "sqlite")]
use crate::idempotency::Idempotency;
use crate::log::{AnyLog, Log, LogBuilder, LogCore};
use crate::name::Name;
use crate::queue::core::Core;
use crate::queue::durable::promise;
use crate::queue::{Queue, QueueBuilder, dead_letter_name, undecodable_name};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::runtime::Companion;
use crate::runtime::{Event, EventHook, Options, Runtime};
use crate::schedule::{Schedule, ScheduleBuilder, ScheduleInfo, Schedules};
use crate::shutdown::{self, Places, ShutdownReport};
use crate::simulation::{Executor, Simulation};
use crate::stats::{QueueStats, Stats, TopicStats};
use crate::sync::Mutex;
use crate::topic::{Topic, TopicBuilder, TopicCore};
use entry::{Entry, other_payload};
use std::any::{Any, type_name};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The names, threads, clock and shutdown of one in-process message system.
///
/// Cheap to clone; all clones are the same broker. It starts no thread before it needs one: the scheduler
/// at the first delay, workers when a consumer starts.
///
/// When the last clone is dropped without [`Broker::shutdown`], workers finish what they have in hand and
/// end (one that waits for room in a full queue is given a second, then its publish fails as closed); what is still queued is gone with the last handle to its queue. A handler that owns a clone of its
/// broker keeps it alive until shutdown.
///
/// ```
/// use postroom::{Broker, Failure, Message, QueueName, TopicName};
/// use std::time::Duration;
///
/// struct OrderPlaced { total: u64 }
/// const ORDERS: TopicName<OrderPlaced> = TopicName::new("orders");
/// const BILLING: QueueName<OrderPlaced> = QueueName::new("billing");
///
/// let broker = Broker::new();
/// let orders = broker.topic(ORDERS).declare()?;
/// let billing = broker.queue(BILLING).declare()?;
/// orders.bind(&billing, "order.*")?;
/// billing.consumer().workers(4).start(|order: &Message<OrderPlaced>| -> Result<(), Failure> {
///     assert!(order.total > 0);
///     Ok(())
/// })?;
///
/// orders.publish("order.placed", OrderPlaced { total: 42 }).unwrap();
/// let report = broker.shutdown(Duration::from_secs(5));
/// assert!(report.is_clean(), "{report}");
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<Runtime>,
    registry: Mutex<Registry>,
    schedules: Arc<Schedules>,
    /// Something whose name was reserved is declared.
    #[cfg(feature = "sqlite")]
    declared: crate::sync::Condvar,
    #[cfg(feature = "sqlite")]
    depot: Option<Arc<crate::queue::durable::Depot>>,
}

#[derive(Default)]
struct Registry {
    queues: BTreeMap<Arc<str>, Arc<dyn AnyQueue>>,
    topics: BTreeMap<Arc<str>, Arc<dyn AnyTopic>>,
    logs: BTreeMap<Arc<str>, Arc<dyn AnyLog>>,
    closed: bool,
    #[cfg(feature = "sqlite")]
    memories: BTreeMap<String, Idempotency>,
    /// Names of what is being filled from the file.
    #[cfg(feature = "sqlite")]
    reserved: std::collections::BTreeSet<String>,
}

/// Chooses a broker's clock and who hears of its troubles.
#[must_use = "nothing exists until `build` is called"]
#[derive(Default)]
pub struct Builder {
    clock: Option<ManualClock>,
    seed: Option<u64>,
    blocked_warning: Option<Duration>,
    events: Option<EventHook>,
    #[cfg(feature = "sqlite")]
    store: Option<(std::path::PathBuf, crate::store::Options)>,
}

impl Builder {
    /// Uses a clock that stands still until it is moved. Default: the system's.
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The seed of everything random: the jitter of retries and, in a simulation, the order of steps.
    /// Default: another one every time.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// After how long a worker that waits for room in a full queue is told of, by
    /// [`Event::WorkerBlocked`]. Default 1 s.
    pub fn blocked_warning(mut self, threshold: Duration) -> Self {
        self.blocked_warning = Some(threshold);
        self
    }

    /// Called when something happens that its owner should hear about, on the thread where it happens; a
    /// panic in it is contained. Default: nobody is told, the counters still count.
    pub fn on_event(mut self, hook: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.events = Some(Box::new(hook));
        self
    }

    /// Makes the broker.
    ///
    /// # Errors
    /// If it has a file that cannot be opened.
    pub fn build(self) -> Result<Broker, Error> {
        let clock = self.clock.map_or_else(Clock::system, Clock::Manual);
        let runtime = Runtime::new(clock, None, options(self.seed, self.blocked_warning, self.events));
        #[cfg(feature = "sqlite")]
        return Broker::with_store(runtime, self.store);
        #[cfg(not(feature = "sqlite"))]
        Ok(Broker::of(runtime))
    }

    /// Makes a broker whose handlers run on the thread that drives the returned [`Simulation`].
    ///
    /// # Errors
    /// If it has a file that cannot be opened.
    pub fn build_simulated(self) -> Result<(Broker, Simulation), Error> {
        let clock = self.clock.unwrap_or_default();
        let options = options(self.seed, self.blocked_warning, self.events);
        let executor = Executor::new(clock.clone(), options.seed);
        let runtime = Runtime::new(Clock::Manual(clock), Some(executor), options);
        #[cfg(feature = "sqlite")]
        let broker = Broker::with_store(Arc::clone(&runtime), self.store)?;
        #[cfg(not(feature = "sqlite"))]
        let broker = Broker::of(Arc::clone(&runtime));
        Ok((broker, Simulation::new(runtime)))
    }
}

fn options(seed: Option<u64>, blocked_warning: Option<Duration>, events: Option<EventHook>) -> Options {
    let seed = seed.unwrap_or_else(random_seed);
    Options { seed, events, blocked_warning: blocked_warning.unwrap_or(Duration::from_secs(1)) }
}

pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("clock", &self.clock).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

impl Broker {
    /// A broker on the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Runtime::new(Clock::system(), None, options(None, None, None)))
    }

    /// A broker with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A broker that runs on the caller's thread in virtual time, the same way for the same seed.
    #[must_use]
    pub fn simulated(seed: u64) -> (Self, Simulation) {
        Self::builder().seed(seed).build_simulated().expect("the defaults do not contradict each other")
    }

    fn of(runtime: Arc<Runtime>) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                registry: Mutex::default(),
                schedules: Arc::default(),
                #[cfg(feature = "sqlite")]
                declared: crate::sync::Condvar::new(),
                #[cfg(feature = "sqlite")]
                depot: None,
            }),
        }
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.inner.runtime
    }

    pub(crate) fn schedule_table(&self) -> &Arc<Schedules> {
        &self.inner.schedules
    }

    /// What is kept in its file, if it has one.
    #[cfg(feature = "sqlite")]
    pub(crate) fn depot(&self) -> Option<&Arc<crate::queue::durable::Depot>> {
        self.inner.depot.as_ref()
    }

    /// Describes a topic to declare, or one that is declared already.
    pub fn topic<T: Send + Sync + 'static>(&self, name: impl Into<Name<T>>) -> TopicBuilder<T> {
        TopicBuilder::of(self.clone(), name.into().text)
    }

    /// Describes a queue to declare, or one that is declared already.
    pub fn queue<T: Send + Sync + 'static>(&self, name: impl Into<Name<T>>) -> QueueBuilder<T> {
        QueueBuilder::of(self.clone(), name.into().text)
    }

    /// Describes a log to declare, or one that is declared already.
    pub fn log<T: Send + Sync + 'static>(&self, name: impl Into<Name<T>>) -> LogBuilder<T> {
        LogBuilder::of(self.clone(), name.into().text)
    }

    /// Describes messages to come at fixed times, or ones that are scheduled already.
    pub fn schedule(&self, name: impl Into<String>) -> ScheduleBuilder {
        ScheduleBuilder::of(self.clone(), name.into())
    }

    /// The schedule of that name, if there is one.
    #[must_use]
    pub fn schedule_named(&self, name: &str) -> Option<Schedule> {
        self.inner.schedules.find(name)
    }

    /// All schedules, by name.
    #[must_use]
    pub fn schedules(&self) -> Vec<ScheduleInfo> {
        self.inner.schedules.all()
    }

    /// Refuses new publishes, lets consumers empty their queues, ends every thread and says what was left.
    ///
    /// Schedules are removed first. Handlers may go on publishing while their broker drains, so work in
    /// several steps comes to its end.
    /// Queues and groups of logs that have consumers are drained, and deliveries in hand are waited for, together at most
    /// `timeout`; retries that become due in that time still happen. Then everything is closed: receivers
    /// find [`Closed`](crate::RecvError::Closed), workers end after the message in hand. Takes at most
    /// `timeout` and a moment; a handler that never returns is left behind and reported. A file that another
    /// connection keeps locked is given up to 5 s more, for the acknowledgements that are still to be written; what
    /// cannot be comes again in the next run.
    ///
    /// What was left can be taken out with [`Queue::drain`]. Called a second time, it reports what is left
    /// then. Called from a handler, it does not wait for that handler.
    pub fn shutdown(&self, timeout: Duration) -> ShutdownReport {
        self.inner.registry.lock().closed = true;
        self.inner.schedules.close();
        let report = shutdown::run(&self.inner.runtime, &self.places(), timeout);
        #[cfg(feature = "sqlite")]
        self.inner.close_store();
        report
    }

    /// Waits until nothing is ready in any queue that has a consumer, nothing is in flight, and no delay
    /// or retry ends before the timeout; whether that came to be. There is no guessing by inactivity: at the
    /// moment this answers `true`, all that was published before it was called has been settled.
    ///
    /// In a simulation it runs the simulation, its relays included: it waits until they have published what was
    /// committed, as far as there is room, and have marked what was handled.
    #[must_use]
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        shutdown::wait_idle(&self.inner.runtime, &self.places(), timeout)
    }

    fn places(&self) -> Places {
        let registry = self.inner.registry.lock();
        Places {
            queues: registry.queues.values().cloned().collect(),
            logs: registry.logs.values().cloned().collect(),
            halves: registry.topics.values().filter_map(|topic| topic.halves()).collect(),
        }
    }

    /// Prevents the delivery of the delayed message that was published with a timer of this name (see
    /// [`Message::with_timer`](crate::Message::with_timer)); whether that succeeded. `false` means that
    /// there is none, or that it is too late and the message is delivered.
    pub fn cancel_timer(&self, name: &str) -> bool {
        self.inner.runtime.timers.cancel(name)
    }

    /// All counters and what is held now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (queues, topics) = self.all();
        Stats {
            queues: queues.iter().map(|queue| queue.stats()).collect(),
            topics: topics.iter().map(|topic| topic.stats()).collect(),
            late_replies: self.inner.runtime.late_replies.get(),
            logs: self.places().logs.iter().map(|log| log.stats()).collect(),
            #[cfg(feature = "sqlite")]
            file: self.inner.depot.as_ref().map(|depot| filed::stats(&depot.store)),
            #[cfg(not(feature = "sqlite"))]
            file: None,
        }
    }

    /// The topology: topics, bindings, queues and their settings. Shows itself as text; see
    /// [`Description::mermaid`] for a diagram.
    #[must_use]
    pub fn describe(&self) -> Description {
        let (queues, topics) = self.all();
        Description {
            topics: topics.iter().map(|topic| topic.describe()).collect(),
            queues: queues.iter().map(|queue| queue.describe()).collect(),
            logs: self.places().logs.iter().map(|log| log.describe()).collect(),
        }
    }

    fn all(&self) -> (Vec<Arc<dyn AnyQueue>>, Vec<Arc<dyn AnyTopic>>) {
        let registry = self.inner.registry.lock();
        (registry.queues.values().cloned().collect(), registry.topics.values().cloned().collect())
    }

    /// Has it end with the broker, unless that has ended.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn adopt(&self, companion: Arc<dyn Companion>) -> Result<(), Error> {
        let _registry = self.inner.open_registry(companion.name())?;
        self.inner.runtime.accompany(companion);
        Ok(())
    }

    pub(crate) fn declare_queue<T: Send + Sync + 'static>(&self, builder: QueueBuilder<T>) -> Result<Queue<T>, Error> {
        let mut problems = builder.problems();
        if let Some(dead) = &builder.dead_letters
            && !Arc::ptr_eq(&dead.core.runtime, &self.inner.runtime)
        {
            problems.push(format!("its dead-letter queue {:?} belongs to another broker", dead.name()));
        }
        #[cfg(feature = "sqlite")]
        if builder.durable.is_some() {
            return self.declare_durably(builder, problems);
        }
        let mut registry = match self.inner.entry_of_queue(&builder, problems)? {
            Entry::Occupied(queue) => return Ok(queue),
            Entry::Vacant(registry) => registry,
        };
        let QueueBuilder { name, settings, keys, dead_letters, .. } = builder;
        let own_dead_letters = dead_letters.is_none();
        if let Some(shared) = &dead_letters {
            // It holds dead letters from now on, so it will never need a queue for its own.
            registry.forget_unused(&dead_letter_name(shared.name()));
        }
        let queue = Queue::build(Arc::clone(&self.inner.runtime), name.into(), settings, keys, dead_letters);
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        if own_dead_letters {
            let dead = queue.dead_letters().core;
            registry.queues.insert(Arc::clone(&dead.name), dead);
        }
        Ok(queue)
    }

    pub(crate) fn find_queue<T: Send + Sync + 'static>(&self, name: &str) -> Result<Queue<T>, Error> {
        let subject = || format!("queue {name:?}");
        let found = self.inner.registry.lock().queues.get(name).cloned();
        let found = found.ok_or_else(|| Error::new(subject(), "there is none of that name"))?;
        let payload = found.payload();
        let core = found.as_any().downcast::<Core<T>>();
        core.map(Queue::from_core).map_err(|_| Error::new(subject(), other_payload::<T>(payload)))
    }

    pub(crate) fn find_topic<T: Send + Sync + 'static>(&self, name: &str) -> Result<Topic<T>, Error> {
        let subject = || format!("topic {name:?}");
        let found = self.inner.registry.lock().topics.get(name).cloned();
        let found = found.ok_or_else(|| Error::new(subject(), "there is none of that name"))?;
        let payload = found.payload();
        let core = found.as_any().downcast::<TopicCore<T>>();
        core.map(|core| Topic { core }).map_err(|_| Error::new(subject(), other_payload::<T>(payload)))
    }

    pub(crate) fn declare_topic<T: Send + Sync + 'static>(&self, builder: TopicBuilder<T>) -> Result<Topic<T>, Error> {
        #[cfg(feature = "sqlite")]
        if builder.is_durable() {
            return self.declare_topic_durably(builder);
        }
        let dead_name = dead_letter_name(&half_name(builder.name()));
        let mut registry = match self.inner.entry_of_topic(&builder, &dead_name)? {
            Entry::Occupied(topic) => return Ok(topic),
            Entry::Vacant(registry) => registry,
        };
        let topic = builder.build(Arc::clone(&self.inner.runtime), dead_name);
        registry.topics.insert(Arc::clone(&topic.core.name), topic.core.clone());
        if let Some(dead) = topic.core.own_dead_letters() {
            registry.queues.insert(Arc::clone(&dead.name), dead);
        }
        Ok(topic)
    }
}

impl Broker {
    pub(crate) fn declare_log<T: Send + Sync + 'static>(&self, builder: LogBuilder<T>) -> Result<Log<T>, Error> {
        let problems = builder.problems();
        #[cfg(feature = "sqlite")]
        if builder.durable.is_some() {
            return self.declare_log_durably(builder, problems);
        }
        let mut registry = match self.inner.entry_of_log(&builder, problems)? {
            Entry::Occupied(log) => return Ok(log),
            Entry::Vacant(registry) => registry,
        };
        let weak = WeakBroker(Arc::downgrade(&self.inner));
        let log = builder.build(Arc::clone(&self.inner.runtime), weak, Vec::new());
        registry.logs.insert(Arc::clone(&log.core.shelf.name), log.core.clone());
        Ok(log)
    }

    pub(crate) fn find_log<T: Send + Sync + 'static>(&self, name: &str) -> Result<Log<T>, Error> {
        let subject = || format!("log {name:?}");
        let found = self.inner.registry.lock().logs.get(name).cloned();
        let found = found.ok_or_else(|| Error::new(subject(), "there is none of that name"))?;
        let payload = found.payload();
        let core = found.as_any().downcast::<LogCore<T>>();
        core.map(|core| Log { core }).map_err(|_| Error::new(subject(), other_payload::<T>(payload)))
    }
}

/// A broker that is not kept alive by this.
pub(crate) struct WeakBroker(Weak<Inner>);

impl WeakBroker {
    /// Makes the queue for dead letters of something that is no queue.
    pub(crate) fn adopt_dead_letters<T: Send + Sync + 'static>(
        &self,
        name: &str,
    ) -> Result<Queue<DeadLetter<T>>, Error> {
        let inner = self.0.upgrade().ok_or_else(|| Error::new(format!("queue {name:?}"), "its broker is gone"))?;
        let mut registry = inner.vacant_for_letters(name)?;
        let queue = Queue::for_letters(name.into(), Arc::clone(&inner.runtime));
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        Ok(queue)
    }

    /// Forgets such a queue if it has never held a letter; whether it did.
    pub(crate) fn forget_dead_letters(&self, name: &str) -> bool {
        let Some(inner) = self.0.upgrade() else { return true };
        let mut registry = inner.registry.lock();
        // It comes, and goes, with another one if it is durable.
        let undecodable = undecodable_name(name);
        if !registry.is_unused(&undecodable) {
            return false;
        }
        registry.forget_unused(name);
        let forgotten = !registry.queues.contains_key(name);
        if forgotten {
            registry.forget_unused(&undecodable);
        }
        forgotten
    }
}

impl Registry {
    /// Removes the dead-letter queue of a queue that can have no dead letters any more.
    fn forget_unused(&mut self, name: &str) {
        if self.is_unused(name) {
            self.queues.remove(name);
        }
    }

    /// Whether there is none of that name, or one that has never held a dead letter.
    fn is_unused(&self, name: &str) -> bool {
        self.queues.get(name).is_none_or(|queue| {
            let stats = queue.stats();
            queue.holds_dead_letters() && stats.published + stats.recovered == 0
        })
    }
}

#[cfg(not(feature = "sqlite"))]
impl Inner {
    fn registry_without(&self, _: &str) -> crate::sync::MutexGuard<'_, Registry> {
        self.registry.lock()
    }
    fn registry_without_log(&self, _: &str) -> crate::sync::MutexGuard<'_, Registry> {
        self.registry.lock()
    }
    fn registry_for_topic(&self, _: &str) -> crate::sync::MutexGuard<'_, Registry> {
        self.registry.lock()
    }
}

/// How long a dropped broker lets its workers wait for room in each other's queues.
const PATIENCE: Duration = Duration::from_secs(1);

impl Drop for Inner {
    fn drop(&mut self) {
        self.schedules.close();
        let companions = self.runtime.take_companions();
        companions.iter().for_each(|companion| companion.stop_bringing());
        let crews = self.runtime.crews();
        crews.iter().for_each(|crew| crew.order_stop());
        let (closed, queues) = {
            let registry = self.registry.lock();
            (registry.closed, registry.queues.values().cloned().collect::<Vec<_>>())
        };
        let patience = if closed { Duration::ZERO } else { PATIENCE };
        let deadline = Instant::now() + patience;
        let late: usize = crews.iter().map(|crew| crew.join(Some(deadline))).sum();
        if late > 0 && !closed {
            // Some may wait for room in a queue that nobody empties any more. Whoever shutdown left behind
            // is not waited for again.
            queues.iter().for_each(|queue| queue.close());
            crews.iter().for_each(|crew| _ = crew.join(None));
        }
        companions.iter().for_each(|companion| _ = companion.end(Some(Instant::now() + PATIENCE)));
        self.runtime.scheduler.stop();
        #[cfg(feature = "sqlite")]
        self.close_store();
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registry = self.inner.registry.lock();
        f.debug_struct("Broker")
            .field("topics", &registry.topics.keys())
            .field("queues", &registry.queues.keys())
            .finish()
    }
}

/// A queue without its type.
pub(crate) trait AnyQueue: Send + Sync {
    fn payload(&self) -> &'static str;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn stats(&self) -> QueueStats;
    fn describe(&self) -> QueueDescription;
    fn holds_dead_letters(&self) -> bool;
    fn start_draining(&self);
    fn close(&self);
    fn end(&self);
    /// See [`Core::end_requests`].
    fn end_requests(&self);
    fn is_durable(&self) -> bool;
    /// See [`Core::note_rest`].
    fn note_rest(&self);
    /// See [`Core::unrest`].
    fn unrest(&self, horizon: Timestamp) -> (u64, u64);
}

impl<T: Send + Sync + 'static> AnyQueue for Core<T> {
    fn payload(&self) -> &'static str {
        type_name::<T>()
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
    fn stats(&self) -> QueueStats {
        Core::stats(self)
    }
    fn describe(&self) -> QueueDescription {
        QueueDescription {
            name: self.name.to_string(),
            payload: type_name::<T>(),
            capacity: self.settings.capacity,
            overflow: self.settings.overflow,
            retry: (!self.is_terminal()).then(|| self.settings.retry.to_string()),
            dead_letters: self.dead_letters_name(),
            undecodable: self.undecodable_name(),
            workers: self.workers(),
            durable: self.settings.durable.map(promise),
        }
    }
    fn holds_dead_letters(&self) -> bool {
        self.is_terminal()
    }
    fn start_draining(&self) {
        Core::start_draining(self);
    }
    fn close(&self) {
        Core::close(self);
    }
    fn end(&self) {
        Core::end(self);
    }
    fn end_requests(&self) {
        Core::end_requests(self);
    }
    fn is_durable(&self) -> bool {
        Core::is_durable(self)
    }
    fn note_rest(&self) {
        Core::note_rest(self);
    }
    fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        Core::unrest(self, horizon)
    }
}

/// A topic without its type.
pub(crate) trait AnyTopic: Send + Sync {
    fn payload(&self) -> &'static str;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn stats(&self) -> TopicStats;
    fn describe(&self) -> TopicDescription;
    fn halves(&self) -> Option<Arc<dyn AnyHalves>>;
}

impl<T: Send + Sync + 'static> AnyTopic for TopicCore<T> {
    fn payload(&self) -> &'static str {
        type_name::<T>()
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
    fn stats(&self) -> TopicStats {
        TopicCore::stats(self)
    }
    fn describe(&self) -> TopicDescription {
        TopicDescription {
            name: self.name.to_string(),
            payload: type_name::<T>(),
            routing: self.routing(),
            bindings: self.bindings(),
            subscribers: self.subscribers(),
            check_back: TopicCore::halves(self).map(|halves| halves.to_string()),
        }
    }
    fn halves(&self) -> Option<Arc<dyn AnyHalves>> {
        let halves = Arc::clone(TopicCore::halves(self)?);
        Some(halves)
    }
}
