//! Where producers publish.

use crate::broker::Broker;
use crate::deadlock::QueueRef;
use crate::error::{BatchError, Error, PublishError, Refused};
use crate::log::{Log, LogCore};
use crate::message::{Message, MessageId, Text};
use crate::outcome::{IntoOutcome, Outcome, contained};
use crate::queue::builder::name_problems;
use crate::queue::core::{Core, Patience, Pledge, Refusal};
use crate::queue::throttle::Throttle;
use crate::queue::{Queue, in_chunks};
use crate::rate::Rate;
use crate::route::{Binding, Index, Pattern, Resolved, Selector};
use crate::runtime::{Runtime, thread_slot};
use crate::stats::{Counter, TopicStats};
use crate::subscriber::SubscriberBuilder;
use crate::subscriber::ring::{Retention, Ring, Waste, for_subscribers};
use crate::sync::{AtomicBool, Mutex, Ordering, Padded};
use ahash::AHashMap;
use smallvec::SmallVec;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How a topic chooses among its bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Routing {
    /// By exact routing key. Text in a binding is a key.
    Direct,
    /// By AMQP pattern; the default. Text in a binding is a pattern. Exact keys and headers may be bound
    /// as well.
    #[default]
    Pattern,
    /// Everything to everyone. Text in a binding is ignored.
    Fanout,
    /// By headers only.
    Headers,
}

/// A user's own routing.
///
/// ```
/// use postroom::{Broker, Message, Queue, Router, Topic};
///
/// /// Sends each user always to the same queue.
/// struct ByUser;
/// impl Router<u64> for ByUser {
///     fn route(&self, user: &Message<u64>, bindings: &[&str], selected: &mut Vec<usize>) {
///         selected.push((**user % bindings.len() as u64) as usize);
///     }
/// }
///
/// let broker = Broker::new();
/// let users: Topic<u64> = broker.topic("users").router(ByUser).declare()?;
/// let queues: Vec<Queue<u64>> =
///     ["a", "b"].into_iter().map(|name| broker.queue(name).declare()).collect::<Result<_, _>>()?;
/// for queue in &queues {
///     users.bind(queue, queue.name())?;
/// }
/// for user in 0..10 {
///     users.publish("", user).unwrap();
/// }
/// assert_eq!((queues[0].len(), queues[1].len()), (5, 5));
/// # Ok::<(), postroom::Error>(())
/// ```
pub trait Router<T>: Send + Sync + 'static {
    /// Chooses bindings for a message, by their index. `bindings` holds the text each was bound with, in
    /// the order they were bound; it is never empty. An index out of range or named twice is ignored.
    /// Called on the publishing thread; a panic gives the message back as [`PublishError::Panicked`].
    fn route(&self, message: &Message<T>, bindings: &[&str], selected: &mut Vec<usize>);
}

/// What a publish came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    id: MessageId,
    routed: usize,
}

impl Receipt {
    /// The message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// How many queues took it; 0 if none matched. A queue that dropped it as its newest is not counted, nor
    /// are subscribers.
    #[must_use]
    pub fn routed(&self) -> usize {
        self.routed
    }
}

/// So that a handler may end with a publish.
impl IntoOutcome for Receipt {
    fn into_outcome(self) -> (Outcome, Option<String>) {
        (Outcome::Ack, None)
    }
}

/// Describes a topic; nothing exists until [`TopicBuilder::declare`].
#[must_use = "nothing exists until `declare` is called"]
pub struct TopicBuilder<T> {
    name: String,
    settings: TopicSettings,
    router: Option<Box<dyn Router<T>>>,
    alternate: Option<Queue<T>>,
    broker: Broker,
    payload: PhantomData<fn() -> T>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct TopicSettings {
    routing: Routing,
    own_router: bool,
    mandatory: bool,
    alternate: Option<Arc<str>>,
    admission: Option<Rate>,
    retention: Retention,
}

impl<T: Send + Sync + 'static> TopicBuilder<T> {
    pub(crate) fn of(broker: Broker, name: String) -> Self {
        let settings = TopicSettings::default();
        Self { name, settings, router: None, alternate: None, broker, payload: PhantomData }
    }

    /// How it chooses among its bindings. Default [`Routing::Pattern`].
    pub fn routing(mut self, routing: Routing) -> Self {
        self.settings.routing = routing;
        self
    }

    /// Lets your own code choose among the bindings instead.
    pub fn router(mut self, router: impl Router<T>) -> Self {
        self.settings.own_router = true;
        self.router = Some(Box::new(router));
        self
    }

    /// Makes a message that nothing matches, and no subscriber sees, an error of its publish. Default: it is
    /// counted, and its receipt says 0.
    pub fn mandatory(mut self) -> Self {
        self.settings.mandatory = true;
        self
    }

    /// Where messages go that nothing matches and no subscriber sees.
    pub fn alternate(mut self, queue: &Queue<T>) -> Self {
        self.settings.alternate = Some(Arc::clone(&queue.core.name));
        self.alternate = Some(queue.clone());
        self
    }

    /// How fast messages are let in. One that comes too soon is given back at once, by every form of
    /// publishing, saying when to come again. [`Topic::set_admission`] changes it while it runs. Default:
    /// no limit.
    pub fn admission(mut self, rate: Rate) -> Self {
        self.settings.admission = Some(rate);
        self
    }

    /// Remembers the last `n` messages (and up to 63 more) for subscribers to come, whether or not somebody
    /// has subscribed; see [`SubscriberBuilder::replay_last`]. Default: only what subscribers may still need.
    pub fn keep_last(mut self, n: usize) -> Self {
        self.settings.retention.last = n;
        self
    }

    /// Remembers the latest message of each ordering key for subscribers to come, for as long as the topic
    /// exists; see [`SubscriberBuilder::replay_latest_by_key`]. Those without a key count as one more.
    ///
    /// ```
    /// use postroom::{Broker, Message, Topic};
    ///
    /// let broker = Broker::new();
    /// let switches: Topic<bool> = broker.topic("switches").keep_latest_by_key().declare()?;
    /// for (name, on) in [("search", true), ("chat", true), ("search", false)] {
    ///     switches.publish("", Message::new(on).with_key(name)).unwrap();
    /// }
    /// let late = switches.subscribe().replay_latest_by_key().open()?;
    /// let state = [late.recv().unwrap(), late.recv().unwrap()].map(|m| (m.key().unwrap().to_owned(), **m));
    /// assert_eq!(state, [("chat".into(), true), ("search".into(), false)]);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn keep_latest_by_key(mut self) -> Self {
        self.settings.retention.by_key = true;
        self
    }

    /// Makes the topic, or finds the one that has been declared alike. Two routers of one's own cannot be
    /// compared and count as alike.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, a name
    /// taken by another payload type or by other settings, an alternate queue of another broker, a broker
    /// that was shut down.
    pub fn declare(self) -> Result<Topic<T>, Error> {
        let mut problems = name_problems(&self.name);
        if self.alternate.as_ref().is_some_and(|queue| !Arc::ptr_eq(&queue.core.runtime, self.broker.runtime())) {
            problems.push("its alternate queue belongs to another broker".into());
        }
        let admission = self.settings.admission.and_then(|rate| rate.checked().err());
        problems.extend(admission.map(|problem| format!("admission: {problem}")));
        Error::unless_none(format!("topic {:?}", self.name), problems)?;
        let broker = self.broker.clone();
        broker.declare_topic(self)
    }

    /// The topic that is declared under this name, whatever its settings; those given here do not count.
    ///
    /// # Errors
    /// If there is none, or one with another payload type.
    pub fn find(self) -> Result<Topic<T>, Error> {
        self.broker.find_topic(&self.name)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn build(self, runtime: Arc<Runtime>) -> Topic<T> {
        let admission = self.settings.admission.as_ref().map(Throttle::new);
        let retention = self.settings.retention;
        let core = TopicCore {
            ring: OnceLock::new(),
            name: self.name.into(),
            settings: self.settings,
            router: self.router,
            alternate: self.alternate.map(|queue| queue.core),
            runtime,
            table: Mutex::new(Table { index: Index::default(), bound: Vec::new() }),
            lanes: std::array::from_fn(|_| Padded(Mutex::new(Lane::new()))),
            limited: AtomicBool::new(admission.is_some()),
            admission: Mutex::new(admission),
            unroutable: Counter::default(),
        };
        if retention.is_any() {
            core.ring();
        }
        Topic { core: Arc::new(core) }
    }

    /// The topic declared before under this name, if it is alike.
    pub(crate) fn same_as(&self, existing: &Topic<T>) -> Result<(), Error> {
        let (mine, theirs) = (&existing.core.settings, &self.settings);
        if mine == theirs {
            return Ok(());
        }
        Err(Error::new(format!("topic {:?}", self.name), format!("it exists as {mine}, asked for {theirs}")))
    }
}

impl fmt::Display for TopicSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.own_router {
            f.write_str("own router")?;
        } else {
            write!(f, "{:?}", self.routing)?;
        }
        if self.mandatory {
            f.write_str(", mandatory")?;
        }
        if let Some(queue) = &self.alternate {
            write!(f, ", alternate {queue:?}")?;
        }
        if let Some(rate) = &self.admission {
            write!(f, ", admission {rate}")?;
        }
        if self.retention.last > 0 {
            write!(f, ", keeps the last {}", self.retention.last)?;
        }
        if self.retention.by_key {
            f.write_str(", keeps the latest by key")?;
        }
        Ok(())
    }
}

/// A handle to a topic: routes each message to the queues bound to it.
///
/// Cheap to clone; all clones are the same topic. Every method may be called from any thread at any time.
/// A publish reaches every queue it matches or, if one cannot take it, none; a queue reached by several
/// bindings or through several topics gets one copy. A binding counts for every publish that starts after
/// [`Topic::bind`] has returned.
///
/// ```
/// use postroom::{Broker, Queue, Topic};
///
/// let broker = Broker::new();
/// let orders: Topic<u32> = broker.topic("orders").declare()?;
/// let billing: Queue<u32> = broker.queue("billing").declare()?;
/// orders.bind(&billing, "order.*")?;
///
/// assert_eq!(orders.publish("order.placed", 7).unwrap().routed(), 1);
/// assert_eq!(orders.publish("stock.low", 8).unwrap().routed(), 0);
/// # Ok::<(), postroom::Error>(())
/// ```
pub struct Topic<T> {
    pub(crate) core: Arc<TopicCore<T>>,
}

/// Threads spread over this many route caches.
const LANES: usize = 8;
/// Routes a lane remembers before it starts afresh.
const REMEMBERED_ROUTES: usize = 1024;

pub(crate) struct TopicCore<T> {
    pub(crate) name: Arc<str>,
    settings: TopicSettings,
    router: Option<Box<dyn Router<T>>>,
    alternate: Option<Arc<Core<T>>>,
    pub(crate) runtime: Arc<Runtime>,
    table: Mutex<Table<T>>,
    lanes: [Padded<Mutex<Lane<T>>>; LANES],
    limited: AtomicBool,
    /// Made for the first subscriber.
    ring: OnceLock<Arc<Ring<T>>>,
    admission: Mutex<Option<Throttle>>,
    unroutable: Counter,
}

struct Table<T> {
    index: Index,
    /// By the id the index knows it by; `None` once unbound.
    bound: Vec<Option<Arc<Bound<T>>>>,
}

struct Bound<T> {
    binding: Binding<T>,
    resolved: Resolved,
    target: Target<T>,
}

/// What a topic can be bound to.
pub(crate) enum Target<T> {
    Queue(Arc<Core<T>>),
    Topic(Arc<TopicCore<T>>),
    Log(Arc<LogCore<T>>),
}

/// What some threads' publishes share: their memory of resolved routes, and a count.
struct Lane<T> {
    version: u64,
    /// By routing key, the position in `routes`.
    index: AHashMap<Box<str>, usize>,
    routes: Vec<Route<T>>,
    /// The latest key and its position: producers repeat themselves.
    latest: (Text, usize),
    published: u64,
}

/// Where a routing key leads.
enum Route<T> {
    Nowhere,
    One(Arc<Core<T>>),
    Many(Arc<[Arc<Core<T>>]>),
    /// To the subscribers of one topic and to nobody else.
    Ring(Arc<Ring<T>>),
    Wide(Arc<Wide<T>>),
    /// Depends on the message: filters, headers, a user's router.
    Asks,
}

/// Queues, logs, and the subscribers of some topics.
struct Wide<T> {
    queues: Vec<Arc<Core<T>>>,
    rings: Vec<Arc<Ring<T>>>,
    logs: Vec<Arc<LogCore<T>>>,
    /// Otherwise the rings only remember.
    subscribed: bool,
}

impl<T: Send + Sync + 'static> Topic<T> {
    /// The name it was declared under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Publishes a message under a routing key, waiting for room in queues whose policy that is.
    ///
    /// # Errors
    /// Gives the message back, and no queue has it: a queue is full and refuses, something is closed,
    /// nothing matches and the topic is `mandatory`, a filter panicked, or waiting would never end.
    #[inline]
    pub fn publish(&self, key: impl AsRef<str>, message: impl Into<Message<T>>) -> Result<Receipt, PublishError<T>> {
        self.core.publish(key.as_ref(), message.into(), Patience::Forever)
    }

    /// Publishes without ever waiting.
    ///
    /// # Errors
    /// As [`Topic::publish`], and [`PublishError::Full`] where that would wait.
    #[inline]
    pub fn try_publish(
        &self,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
    ) -> Result<Receipt, PublishError<T>> {
        self.core.publish(key.as_ref(), message.into(), Patience::None)
    }

    /// Publishes, waiting for room at most `timeout`.
    ///
    /// # Errors
    /// As [`Topic::publish`], and [`PublishError::Timeout`] if a queue stayed full.
    pub fn publish_timeout(
        &self,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
        timeout: Duration,
    ) -> Result<Receipt, PublishError<T>> {
        let deadline = self.core.runtime.clock.now().after(timeout);
        self.core.publish(key.as_ref(), message.into(), Patience::Until(deadline))
    }

    /// Publishes many messages under one key, at a fraction of the cost of one by one where the key leads
    /// to one queue; how many that were. Each message is routed as by [`Topic::publish`]; "all or none"
    /// holds for each, not for the batch.
    ///
    /// # Errors
    /// Stops at the first message that is refused; the error holds that one and all after it.
    pub fn publish_batch<M: Into<Message<T>>>(
        &self,
        key: impl AsRef<str>,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<usize, BatchError<T, PublishError<T>>> {
        let text = Text::new(key.as_ref());
        let messages = messages.into_iter().map(|message| {
            let mut message = message.into();
            self.core.stamp(&mut message, text.clone());
            message
        });
        in_chunks(messages, |chunk| self.core.publish_chunk(&text, chunk))
    }

    /// Sends what `binding` selects to a queue or on to another topic. Text is a pattern, unless the topic
    /// routes otherwise. Binding the same twice changes nothing.
    ///
    /// # Errors
    /// A malformed pattern, a kind of binding that the topic's routing cannot match, a target of another
    /// broker, or a topic from which messages would come back here.
    pub fn bind(&self, target: &impl BindTarget<T>, binding: impl Into<Binding<T>>) -> Result<(), Error> {
        self.core.bind(target.target(), binding.into())
    }

    /// Describes a subscriber, which sees every message published here from then on, whatever its routing
    /// key; see [`Subscriber`](crate::Subscriber).
    ///
    /// ```
    /// use postroom::{Broker, Topic};
    ///
    /// let broker = Broker::new();
    /// let settings: Topic<&str> = broker.topic("settings").declare()?;
    /// let nodes = [settings.subscribe().open()?, settings.subscribe().open()?];
    /// settings.publish("theme", "dark").unwrap();
    /// for node in nodes {
    ///     assert_eq!(*node.recv().unwrap().payload(), "dark");
    /// }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn subscribe(&self) -> SubscriberBuilder<T> {
        SubscriberBuilder::new(self.core.ring())
    }

    /// Takes a binding back. A publish under way may still use it.
    ///
    /// A binding with a filter is found by the same [`Binding`] (or a clone) that was bound.
    ///
    /// # Errors
    /// If there is no such binding.
    pub fn unbind(&self, target: &impl BindTarget<T>, binding: impl Into<Binding<T>>) -> Result<(), Error> {
        self.core.unbind(&target.target(), &binding.into())
    }

    /// Changes how fast messages are let in; `None` lifts the limit.
    ///
    /// # Errors
    /// If the rate is not a positive, finite number or its burst is 0.
    pub fn set_admission(&self, rate: impl Into<Option<Rate>>) -> Result<(), Error> {
        let rate = rate.into().map(|rate| rate.checked()).transpose();
        let rate = rate.map_err(|problem| Error::new(format!("topic {:?}", self.name()), problem))?;
        let mut admission = self.core.admission.lock();
        *admission = Throttle::changed(*admission, rate, self.core.runtime.clock.now());
        self.core.limited.store(rate.is_some(), Ordering::SeqCst);
        Ok(())
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> TopicStats {
        self.core.stats()
    }
}

impl<T: Send + Sync + 'static> TopicCore<T> {
    #[inline]
    fn stamp(&self, message: &mut Message<T>, key: Text) {
        self.runtime.prepare(message);
        message.routing_key = key;
    }

    #[inline]
    pub(crate) fn publish(
        &self,
        key: &str,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        self.stamp(&mut message, Text::new(key));
        let id = message.id;
        let limited = self.limited.load(Ordering::Relaxed);
        if limited {
            message = self.admit(message)?;
        }
        // A route may hold the last handle to a queue, whose messages must not be dropped under the lock.
        let mut outdated = Vec::new();
        let mut waste = Waste::new();
        let route = {
            let mut lane = self.lanes[thread_slot() % LANES].lock();
            match lane.look_up(self, &message.routing_key, &mut outdated) {
                // The common case ends here: nothing in `offer` runs user code or waits.
                Route::One(queue) if !message.is_timed() && !queue.is_ordered() => match queue.offer(message) {
                    Ok(()) => {
                        lane.published += 1;
                        return Ok(Receipt { id, routed: 1 });
                    }
                    Err((refused, _)) => {
                        message = refused;
                        Route::One(Arc::clone(queue))
                    }
                },
                Route::Ring(ring) if !message.is_request() => match ring.offer(message, &mut waste) {
                    Ok(()) => {
                        lane.published += 1;
                        return Ok(Receipt { id, routed: 0 });
                    }
                    Err((refused, _)) => {
                        message = refused;
                        Route::Ring(Arc::clone(ring))
                    }
                },
                route => route.clone(),
            }
        };
        let published = self.publish_slowly(&route, message, patience);
        if limited && published.is_err() {
            self.unadmit();
        }
        published
    }

    /// What was admitted did not get in after all, so it does not count.
    #[cold]
    fn unadmit(&self) {
        self.admission.lock().iter_mut().for_each(Throttle::take_back);
    }

    /// Gives the message back if it comes too soon.
    #[cold]
    fn admit(&self, message: Message<T>) -> Result<Message<T>, PublishError<T>> {
        let mut admission = self.admission.lock();
        let passed = admission.as_mut().map_or(Ok(()), |throttle| throttle.try_pass(self.runtime.clock.now()));
        match passed {
            Ok(()) => Ok(message),
            Err(wait) => Err(PublishError::Limited(Refused::new(message, &self.name).limited(wait))),
        }
    }

    #[cold]
    fn publish_slowly(
        &self,
        route: &Route<T>,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let id = message.id;
        let routed = match route {
            Route::Nowhere => self.unroutable(message, patience),
            Route::One(queue) => accept_one(queue, message, patience),
            Route::Many(queues) => accept_all(queues, &[], message, patience),
            Route::Ring(ring) => accept_all(&[], std::slice::from_ref(ring), message, patience),
            Route::Wide(wide) => self.accept_wide(wide, message, patience),
            Route::Asks => self.ask(message, patience),
        }?;
        self.count(1);
        Ok(Receipt { id, routed })
    }

    fn publish_chunk(
        &self,
        key: &Text,
        chunk: &mut std::collections::VecDeque<Message<T>>,
    ) -> Result<(), PublishError<T>> {
        let n = chunk.len();
        let mut outdated = Vec::new();
        let route = self.lanes[thread_slot() % LANES].lock().look_up(self, key, &mut outdated).clone();
        let limited = self.limited.load(Ordering::Relaxed);
        if let (Route::One(queue), false) = (&route, limited) {
            let result = queue.accept_chunk(chunk);
            self.count((n - chunk.len()) as u64 - u64::from(result.is_err()));
            return result.map_err(|refused| refusal_error(queue, refused));
        }
        while let Some(message) = chunk.pop_front() {
            let message = if limited { self.admit(message)? } else { message };
            if let Err(error) = self.publish_slowly(&route, message, Patience::Forever) {
                if limited {
                    self.unadmit();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The queue that everything with this key goes to, if there is just one.
    pub(crate) fn only_queue(&self, key: &str) -> Option<QueueRef> {
        // Dropped after the lock: a route may hold the last handle to a queue.
        let mut outdated = Vec::new();
        let mut lane = self.lanes[thread_slot() % LANES].lock();
        match lane.look_up(self, &Text::new(key), &mut outdated) {
            Route::One(queue) => Some(queue.identity()),
            _ => None,
        }
    }

    fn count(&self, published: u64) {
        self.lanes[thread_slot() % LANES].lock().published += published;
    }

    /// Routes a message whose way depends on what it holds.
    fn ask(&self, message: Message<T>, patience: Patience) -> Result<usize, PublishError<T>> {
        let mut found = Found::default();
        let routing_key = message.routing_key.clone();
        match self.collect(routing_key.as_str(), Some(&message), &mut found) {
            Err(Unresolved::Panicked(words)) => {
                Err(PublishError::Panicked(Refused::new(message, &self.name).because(words)))
            }
            Err(Unresolved::NeedsMessage) => unreachable!("it was given one"),
            Ok(()) => match found.into_route() {
                Route::Nowhere => self.unroutable(message, patience),
                Route::One(queue) => accept_one(&queue, message, patience),
                Route::Many(queues) => accept_all(&queues, &[], message, patience),
                Route::Ring(ring) => accept_all(&[], &[ring], message, patience),
                Route::Wide(wide) => self.accept_wide(&wide, message, patience),
                Route::Asks => unreachable!("it has been asked"),
            },
        }
    }

    fn accept_wide(
        &self,
        wide: &Wide<T>,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<usize, PublishError<T>> {
        if !wide.logs.is_empty() {
            return accept_logged(wide, message, patience);
        }
        if wide.subscribed || !wide.queues.is_empty() {
            return accept_all(&wide.queues, &wide.rings, message, patience);
        }
        // Nobody sees it now, but it is remembered unless it is refused. Only a closed ring does not take it.
        let mut copies: Vec<_> = wide.rings.iter().map(|_| message.share()).collect();
        let routed = self.unroutable(message, patience)?;
        for ring in &wide.rings {
            let mut waste = Waste::new();
            let _ = copies.pop().map(|copy| ring.offer(copy, &mut waste));
        }
        Ok(routed)
    }

    fn unroutable(&self, message: Message<T>, patience: Patience) -> Result<usize, PublishError<T>> {
        if let Some(queue) = &self.alternate {
            let routed = accept_one(queue, message, patience)?;
            self.unroutable.add(1);
            return Ok(routed);
        }
        if self.settings.mandatory || message.is_request() {
            return Err(PublishError::Unroutable(Refused::new(message, &self.name)));
        }
        self.unroutable.add(1);
        crate::outcome::drop_contained(message);
        Ok(0)
    }

    /// What a routing key leads to, as far as that can be said without a message.
    fn resolve(&self, key: &str) -> Route<T> {
        let mut found = Found::default();
        if self.collect(key, None, &mut found).is_err() {
            return Route::Asks;
        }
        found.into_route()
    }

    fn ring(&self) -> Arc<Ring<T>> {
        if let Some(ring) = self.ring.get() {
            return Arc::clone(ring);
        }
        // Not made inside of `get_or_init`, where others would wait for the locks this takes.
        let ring = Ring::new(Arc::clone(&self.name), Arc::clone(&self.runtime), self.settings.retention);
        Arc::clone(self.ring.get_or_init(|| ring))
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.ring.get().map_or(0, |ring| ring.subscribers())
    }

    /// Adds every queue that the message reaches from here. No lock is held while user code runs.
    fn collect(&self, key: &str, message: Option<&Message<T>>, found: &mut Found<T>) -> Result<(), Unresolved> {
        if found.visited(self) {
            return Ok(());
        }
        if let Some(ring) = self.ring.get() {
            let (wants, subscribed) = ring.interest();
            found.subscribed |= subscribed;
            found.rings.extend(wants.then(|| Arc::clone(ring)));
        }
        for bound in self.matching(key, message)? {
            if !passes(bound.binding.filter.as_deref(), message)? {
                continue;
            }
            match &bound.target {
                Target::Queue(queue) => found.queues.push(Arc::clone(queue)),
                Target::Topic(topic) => topic.collect(key, message, found)?,
                Target::Log(log) => found.logs.push(Arc::clone(log)),
            }
        }
        Ok(())
    }

    fn matching(&self, key: &str, message: Option<&Message<T>>) -> Result<SmallVec<[Arc<Bound<T>>; 8]>, Unresolved> {
        let table = self.table.lock();
        if let Some(router) = &self.router {
            let bound: SmallVec<_> = table.bound.iter().flatten().cloned().collect();
            drop(table);
            return if bound.is_empty() { Ok(bound) } else { ask_router(&**router, message, &bound) };
        }
        let mut ids = SmallVec::new();
        table.index.by_key(key, &mut ids);
        if table.index.has_headers() {
            let message = message.ok_or(Unresolved::NeedsMessage)?;
            table.index.by_headers(message.headers(), &mut ids);
        }
        Ok(ids.iter().filter_map(|&id| table.bound[id as usize].clone()).collect())
    }

    fn bind(&self, target: Target<T>, binding: Binding<T>) -> Result<(), Error> {
        let resolved =
            self.resolve_selector(&binding.selector).map_err(|problem| self.binding_error(&binding, problem))?;
        if !Arc::ptr_eq(target.runtime(), &self.runtime) {
            return Err(self.binding_error(&binding, format!("{target} belongs to another broker")));
        }
        // Held until the binding is in, so that no other can close a cycle meanwhile.
        let _topology = self.runtime.topology.lock();
        if let Target::Topic(topic) = &target
            && let Some(path) = topic.path_to(self)
        {
            return Err(self.binding_error(&binding, format!("messages would go in a circle: {} -> {path}", self.name)));
        }
        let mut table = self.table.lock();
        if table.find(&target, &binding).is_some() {
            return Ok(());
        }
        table.insert(Bound { binding, resolved, target });
        drop(table);
        self.runtime.routes_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn unbind(&self, target: &Target<T>, binding: &Binding<T>) -> Result<(), Error> {
        let removed = {
            let mut table = self.table.lock();
            let found = table.find(target, binding);
            found.and_then(|id| table.remove(id))
        };
        if removed.is_none() {
            return Err(self.binding_error(binding, format!("there is no such binding to {target}")));
        }
        self.runtime.routes_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn binding_error(&self, binding: &Binding<T>, problem: impl Into<String>) -> Error {
        Error::new(format!("binding {binding} of topic {:?}", self.name), problem)
    }

    /// Reads a binding as this topic's kind of routing does.
    fn resolve_selector(&self, selector: &Selector) -> Result<Resolved, String> {
        if self.settings.own_router {
            return match selector {
                Selector::Text(_) | Selector::All => Ok(Resolved::All),
                _ => Err("a topic with a router of its own takes plain text, which the router reads".into()),
            };
        }
        match (self.settings.routing, selector) {
            (_, Selector::All) | (Routing::Fanout, Selector::Text(_)) => Ok(Resolved::All),
            (Routing::Direct, Selector::Text(key)) => Ok(Resolved::Key(key.clone())),
            (Routing::Direct | Routing::Pattern, Selector::Key(key)) => Ok(Resolved::Key(key.clone())),
            (Routing::Pattern, Selector::Text(pattern) | Selector::Pattern(pattern)) => {
                Pattern::parse(pattern).map(Resolved::Pattern).map_err(|error| error.to_string())
            }
            (Routing::Pattern | Routing::Headers, Selector::Headers(headers)) => Ok(Resolved::Headers(headers.clone())),
            (routing, _) => Err(format!("a topic with routing {routing:?} cannot match it")),
        }
    }

    /// The way from here to `goal` over topics, if there is one, as "a -> b -> c".
    fn path_to(&self, goal: &TopicCore<T>) -> Option<String> {
        if std::ptr::eq(self, goal) {
            return Some(goal.name.to_string());
        }
        let next: Vec<_> = self.table.lock().bound.iter().flatten().cloned().collect();
        next.iter().find_map(|bound| match &bound.target {
            Target::Topic(topic) => topic.path_to(goal).map(|path| format!("{} -> {path}", self.name)),
            Target::Queue(_) | Target::Log(_) => None,
        })
    }

    pub(crate) fn stats(&self) -> TopicStats {
        let published = self.lanes.iter().map(|lane| lane.lock().published).sum();
        let ring = self.ring.get();
        TopicStats {
            name: self.name.to_string(),
            published,
            unroutable: self.unroutable.get(),
            subscribers: self.subscribers() as u64,
            lagged: ring.map_or(0, |ring| ring.missed()),
            disconnected: ring.map_or(0, |ring| ring.cut_off()),
        }
    }

    /// `None` for a router of the user's own.
    pub(crate) fn routing(&self) -> Option<Routing> {
        (!self.settings.own_router).then_some(self.settings.routing)
    }

    /// Each binding and the name of what it leads to.
    pub(crate) fn bindings(&self) -> Vec<(String, String)> {
        let table = self.table.lock();
        let bound = table.bound.iter().flatten();
        let mut bindings: Vec<_> = bound.map(|bound| (bound.binding.to_string(), bound.target.to_string())).collect();
        if let Some(queue) = &self.alternate {
            bindings.push(("nothing else".into(), format!("queue {:?}", queue.name)));
        }
        bindings
    }
}

impl<T: Send + Sync + 'static> Lane<T> {
    fn new() -> Self {
        Self { version: 0, index: AHashMap::new(), routes: Vec::new(), latest: (Text::EMPTY, 0), published: 0 }
    }

    #[inline]
    fn look_up(&mut self, topic: &TopicCore<T>, key: &Text, outdated: &mut Vec<Route<T>>) -> &Route<T> {
        let version = topic.runtime.routes_version.load(Ordering::Acquire);
        if self.version != version || self.routes.len() > REMEMBERED_ROUTES {
            self.index.clear();
            outdated.append(&mut self.routes);
            self.version = version;
        }
        if self.routes.is_empty() || self.latest.0 != *key {
            let position = self.index.get(key.as_str()).copied();
            self.latest = (key.clone(), position.unwrap_or_else(|| self.learn(topic, key.as_str())));
        }
        &self.routes[self.latest.1]
    }

    #[cold]
    fn learn(&mut self, topic: &TopicCore<T>, key: &str) -> usize {
        self.index.insert(key.into(), self.routes.len());
        self.routes.push(topic.resolve(key));
        self.routes.len() - 1
    }
}

impl<T: Send + Sync + 'static> Table<T> {
    fn find(&self, target: &Target<T>, binding: &Binding<T>) -> Option<u32> {
        let same = |bound: &Arc<Bound<T>>| bound.target.is(target) && bound.binding.same_as(binding);
        let position = self.bound.iter().position(|bound| bound.as_ref().is_some_and(same));
        position.map(|id| id as u32)
    }

    fn insert(&mut self, bound: Bound<T>) {
        // Never reused: ids give the order of binding, which a user's router sees.
        let id = self.bound.len() as u32;
        self.index.insert(id, &bound.resolved);
        self.bound.push(Some(Arc::new(bound)));
    }

    fn remove(&mut self, id: u32) -> Option<Arc<Bound<T>>> {
        let bound = self.bound[id as usize].take()?;
        self.index.remove(id, &bound.resolved);
        while self.bound.last().is_some_and(Option::is_none) {
            self.bound.pop();
        }
        Some(bound)
    }
}

impl<T: Send + Sync + 'static> Target<T> {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Queue(one), Self::Queue(other)) => Arc::ptr_eq(one, other),
            (Self::Topic(one), Self::Topic(other)) => Arc::ptr_eq(one, other),
            (Self::Log(one), Self::Log(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    fn runtime(&self) -> &Arc<Runtime> {
        match self {
            Self::Queue(queue) => &queue.runtime,
            Self::Topic(topic) => &topic.runtime,
            Self::Log(log) => &log.shelf.runtime,
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Display for Target<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue {:?}", queue.name),
            Self::Topic(topic) => write!(f, "topic {:?}", topic.name),
            Self::Log(log) => write!(f, "log {:?}", log.shelf.name),
        }
    }
}

impl<T> Clone for Route<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Nowhere => Self::Nowhere,
            Self::One(queue) => Self::One(Arc::clone(queue)),
            Self::Many(queues) => Self::Many(Arc::clone(queues)),
            Self::Ring(ring) => Self::Ring(Arc::clone(ring)),
            Self::Wide(wide) => Self::Wide(Arc::clone(wide)),
            Self::Asks => Self::Asks,
        }
    }
}

/// What one walk over the topics has come across.
struct Found<T> {
    queues: Vec<Arc<Core<T>>>,
    rings: Vec<Arc<Ring<T>>>,
    /// Somebody reads one of them.
    subscribed: bool,
    logs: Vec<Arc<LogCore<T>>>,
    topics: SmallVec<[*const (); 8]>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { queues: Vec::new(), rings: Vec::new(), subscribed: false, logs: Vec::new(), topics: SmallVec::new() }
    }
}

impl<T: Send + Sync + 'static> Found<T> {
    /// Whether the walk has been here; a topic reached twice adds nothing the second time.
    fn visited(&mut self, topic: &TopicCore<T>) -> bool {
        let topic = std::ptr::from_ref(topic).cast();
        let visited = self.topics.contains(&topic);
        if !visited {
            self.topics.push(topic);
        }
        visited
    }

    /// Each queue and log once, queues in the order they were declared.
    fn into_route(mut self) -> Route<T> {
        self.queues.sort_by_key(|queue| queue.number());
        self.queues.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.logs.sort_by(|one, other| one.shelf.name.cmp(&other.shelf.name));
        self.logs.dedup_by(|one, other| Arc::ptr_eq(one, other));
        let Self { mut queues, mut rings, subscribed, logs, .. } = self;
        match (queues.len(), rings.len()) {
            _ if !logs.is_empty() => Route::Wide(Arc::new(Wide { queues, rings, logs, subscribed })),
            (0, 0) => Route::Nowhere,
            (1, 0) => Route::One(queues.remove(0)),
            (_, 0) => Route::Many(queues.into()),
            (0, 1) if subscribed => Route::Ring(rings.remove(0)),
            _ => Route::Wide(Arc::new(Wide { queues, rings, logs, subscribed })),
        }
    }
}

/// Why a walk could not be finished.
enum Unresolved {
    NeedsMessage,
    Panicked(String),
}

fn passes<T>(
    filter: Option<&(dyn Fn(&T) -> bool + Send + Sync)>,
    message: Option<&Message<T>>,
) -> Result<bool, Unresolved> {
    let Some(filter) = filter else { return Ok(true) };
    let message = message.ok_or(Unresolved::NeedsMessage)?;
    contained(|| filter(message.payload())).map_err(Unresolved::Panicked)
}

fn ask_router<T: Send + Sync + 'static>(
    router: &dyn Router<T>,
    message: Option<&Message<T>>,
    bound: &[Arc<Bound<T>>],
) -> Result<SmallVec<[Arc<Bound<T>>; 8]>, Unresolved> {
    let message = message.ok_or(Unresolved::NeedsMessage)?;
    let texts: Vec<&str> = bound.iter().map(|bound| bound.text()).collect();
    let mut selected = Vec::new();
    contained(|| router.route(message, &texts, &mut selected)).map_err(Unresolved::Panicked)?;
    Ok(selected.into_iter().filter_map(|i| bound.get(i).cloned()).collect())
}

impl<T: Send + Sync + 'static> Bound<T> {
    fn text(&self) -> &str {
        match &self.binding.selector {
            Selector::Text(text) => text,
            _ => "",
        }
    }
}

fn accept_one<T: Send + Sync + 'static>(
    queue: &Core<T>,
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let accepted = queue.accept(message, patience).map_err(|refused| refusal_error(queue, refused))?;
    Ok(usize::from(accepted.is_routed()))
}

/// Every queue and every ring takes the message, or none does: each promises first. Nothing is promised
/// while waiting, so that two publishes cannot wait for each other.
fn accept_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let keys = match order_keys(queues, &message) {
        Ok(keys) => keys,
        Err((queue, refusal)) => return Err(refusal_error(queue, (message, refusal))),
    };
    let mut woken_by: Option<&Core<T>> = None;
    let pledges = loop {
        let (full, mut refusal) = match pledge_all(queues, rings) {
            Ok(pledges) => break pledges,
            Err(refused) => refused,
        };
        // The room this thread was woken for is of no use to it, but may be to another writer.
        if let Some(other) = woken_by.take().filter(|other| !full.is(other)) {
            other.pass_room_on();
        }
        if refusal == Refusal::Full && full.waits(patience) {
            match full.wait_for_room(patience) {
                Ok(()) => {
                    woken_by = full.queue();
                    continue;
                }
                Err(end) => refusal = end,
            }
        }
        return Err(full.error((message, refusal)));
    };
    Ok(redeem_all(queues, rings, pledges, keys, message))
}

/// As [`accept_all`], with logs: they promise first, and are kept to it once all others have taken the
/// message. A log always has room, so only a closed one refuses.
fn accept_logged<T: Send + Sync + 'static>(
    reached: &Wide<T>,
    mut message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let Wide { queues, rings, logs, .. } = reached;
    if let Some(refusing) = logs.iter().position(|log| !log.shelf.pledge()) {
        logs[..refusing].iter().for_each(|log| log.shelf.forgo());
        return Err(PublishError::Closed(Refused::new(message, &logs[refusing].shelf.name)));
    }
    let mut copies: SmallVec<[_; 4]> = logs[1..].iter().map(|_| message.share()).collect();
    let mut routed = logs.len();
    if queues.is_empty() && rings.is_empty() {
        // A group cannot reply, and must not keep the requester waiting.
        message.forget_request();
        copies.push(message);
    } else {
        copies.push(message.share());
        match accept_all(queues, rings, message, patience) {
            Ok(queues) => routed += queues,
            Err(refused) => {
                logs.iter().for_each(|log| log.shelf.forgo());
                return Err(refused);
            }
        }
    }
    logs.iter().zip(copies).for_each(|(log, copy)| log.shelf.redeem(copy));
    Ok(routed)
}

fn redeem_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    pledges: SmallVec<[Pledge; 8]>,
    keys: SmallVec<[Option<Text>; 8]>,
    mut message: Message<T>,
) -> usize {
    let mut promised = queues.iter().zip(pledges).zip(keys);
    // Without subscribers, the last queue gets the message itself.
    let last = if rings.is_empty() { promised.next_back() } else { None };
    let mut routed = 0;
    for ((queue, pledge), key) in promised {
        let copy = message.share_with_queue().ordered_by(key);
        routed += usize::from(queue.redeem(pledge, copy).is_routed());
    }
    if let Some(((queue, pledge), key)) = last {
        return routed + usize::from(queue.redeem(pledge, message.ordered_by(key)).is_routed());
    }
    let Some((ring, other_rings)) = rings.split_first() else { return routed };
    // Those who watch cannot reply, and must not keep the requester waiting.
    message.forget_request();
    let message = for_subscribers(message);
    other_rings.iter().for_each(|ring| ring.redeem(Arc::clone(&message)));
    ring.redeem(message);
    routed
}

/// What did not promise a place.
enum Full<'a, T> {
    Queue(&'a Core<T>),
    Ring(&'a Ring<T>),
}

impl<'a, T: Send + Sync + 'static> Full<'a, T> {
    fn queue(&self) -> Option<&'a Core<T>> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Ring(_) => None,
        }
    }

    fn is(&self, other: &Core<T>) -> bool {
        self.queue().is_some_and(|queue| std::ptr::eq(queue, other))
    }

    fn waits(&self, patience: Patience) -> bool {
        match self {
            Self::Queue(queue) => queue.waits(patience),
            Self::Ring(_) => !matches!(patience, Patience::None),
        }
    }

    fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        match self {
            Self::Queue(queue) => queue.wait_for_room(patience),
            Self::Ring(ring) => ring.wait_for_room(patience),
        }
    }

    fn error(&self, refused: (Message<T>, Refusal)) -> PublishError<T> {
        match self {
            Self::Queue(queue) => refusal_error(queue, refused),
            Self::Ring(ring) => ring.error(refused),
        }
    }
}

/// What each queue orders the message by, if it does. Found before anything is promised, since a user's
/// function may panic.
fn order_keys<'a, T: Send + Sync + 'static>(
    queues: &'a [Arc<Core<T>>],
    message: &Message<T>,
) -> Result<SmallVec<[Option<Text>; 8]>, (&'a Core<T>, Refusal)> {
    let keys = queues.iter().map(|queue| queue.order_key(message).map_err(|refusal| (&**queue, refusal)));
    keys.collect()
}

fn pledge_all<'a, T: Send + Sync + 'static>(
    queues: &'a [Arc<Core<T>>],
    rings: &'a [Arc<Ring<T>>],
) -> Result<SmallVec<[Pledge; 8]>, (Full<'a, T>, Refusal)> {
    let mut pledges = SmallVec::new();
    let mut refused = None;
    for queue in queues {
        match queue.pledge() {
            Ok(pledge) => pledges.push(pledge),
            Err(refusal) => {
                refused = Some((Full::Queue(queue), refusal));
                break;
            }
        }
    }
    let mut promised = 0;
    while refused.is_none() && promised < rings.len() {
        match rings[promised].pledge() {
            Ok(()) => promised += 1,
            Err(refusal) => refused = Some((Full::Ring(&rings[promised]), refusal)),
        }
    }
    let Some(refused) = refused else { return Ok(pledges) };
    queues.iter().zip(pledges).for_each(|(queue, pledge)| queue.forgo(pledge));
    rings[..promised].iter().for_each(|ring| ring.forgo());
    Err(refused)
}

pub(crate) fn refusal_error<T: Send + Sync + 'static>(
    queue: &Core<T>,
    (message, refusal): (Message<T>, Refusal),
) -> PublishError<T> {
    match refusal {
        Refusal::Full => PublishError::Full(queue.refused(message)),
        Refusal::Closed => PublishError::Closed(queue.refused(message)),
        Refusal::Timeout => PublishError::Timeout(queue.refused(message)),
        Refusal::Deadlock(why) => PublishError::Deadlock(queue.deadlocked(message, why)),
        Refusal::Panicked(words) => PublishError::Panicked(queue.refused(message).because(words)),
        Refusal::Limited(wait) => PublishError::Limited(queue.refused(message).limited(wait)),
    }
}

mod sealed {
    pub trait Sealed {}
    impl<T> Sealed for super::Queue<T> {}
    impl<T> Sealed for super::Topic<T> {}
    impl<T> Sealed for super::Log<T> {}
}

/// What a topic can be bound to: a [`Queue`], a [`Log`] or another [`Topic`] of the same payload.
pub trait BindTarget<T>: sealed::Sealed {
    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T>;
}

impl<T> BindTarget<T> for Queue<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Queue(Arc::clone(&self.core))
    }
}

impl<T> BindTarget<T> for Log<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Log(Arc::clone(&self.core))
    }
}

impl<T> BindTarget<T> for Topic<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Topic(Arc::clone(&self.core))
    }
}

impl<T> Drop for TopicCore<T> {
    /// Nobody can publish any more.
    fn drop(&mut self) {
        if let Some(ring) = self.ring.get() {
            ring.close();
        }
    }
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Topic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.name()).finish_non_exhaustive()
    }
}
