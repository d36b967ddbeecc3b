//! Where producers publish.

mod accept;
mod binding;
mod builder;
#[cfg(feature = "sqlite")]
mod deferred;
#[cfg(feature = "sqlite")]
mod durably;
mod later;
mod once;
mod publish;
mod route;
mod stage;

pub(crate) use self::accept::refusal_error;
pub use self::binding::BindTarget;
use self::binding::Table;
pub use self::builder::TopicBuilder;
use self::builder::TopicSettings;
#[cfg(feature = "sqlite")]
pub use self::deferred::Ticket;
pub(crate) use self::once::Duplicate;
use self::once::Published;
use self::route::{LANES, Lane};
pub(crate) use self::stage::Destinations;
use crate::dead_letter::DeadLetter;
use crate::error::{BatchError, Error, PublishError};
use crate::half::Halves;
use crate::message::{Message, MessageId, Text};
use crate::outcome::{IntoOutcome, Outcome};
use crate::queue::core::{Core, Patience};
use crate::queue::in_chunks;
use crate::queue::throttle::Throttle;
use crate::rate::Rate;
use crate::route::Binding;
use crate::runtime::Runtime;
use crate::stats::{Counter, TopicStats};
use crate::subscriber::SubscriberBuilder;
use crate::subscriber::ring::Ring;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Padded};
use std::fmt;
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

/// A handle to a topic: routes each message to the queues bound to it.
///
/// Cheap to clone; all clones are the same topic. Every method may be called from any thread at any time.
/// A publish reaches every queue it matches or, if one cannot take it, none; a queue reached by several
/// bindings or through several topics gets one copy. A binding counts for every publish that starts after
/// [`Topic::bind`] has returned. Logs have a message before any queue or subscriber, so that what is
/// done because of it comes behind it in the log; among queues and subscribers there is no order.
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

pub(crate) struct TopicCore<T> {
    pub(crate) name: Arc<str>,
    settings: TopicSettings,
    router: Option<Box<dyn Router<T>>>,
    alternate: Option<Arc<Core<T>>>,
    pub(crate) runtime: Arc<Runtime>,
    table: Mutex<Table<T>>,
    lanes: [Padded<Mutex<Lane<T>>>; LANES],
    limited: AtomicBool,
    /// The latest version of all routes of which it is known that nothing is bound here, but somebody has subscribed.
    only_ring_at: AtomicU64,
    /// Made for the first subscriber.
    ring: OnceLock<Arc<Ring<T>>>,
    admission: Mutex<Option<Throttle>>,
    published: Option<Published>,
    unroutable: Counter,
    /// Set once it is built, if it has a check-back.
    halves: OnceLock<Arc<Halves<T>>>,
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
        self.core.publish(key.as_ref(), message, Patience::Forever)
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
        self.core.publish(key.as_ref(), message, Patience::None)
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
        self.core.publish(key.as_ref(), message, Patience::Until(deadline))
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
        let spare = || self.core.spare_chunk(&text);
        let result = in_chunks(messages.into_iter(), spare, |chunk| self.core.publish_chunk(&text, chunk));
        result.map_err(|mut error| {
            error.rest.iter_mut().for_each(|message| message.routing_key = text.clone());
            error
        })
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
        self.core.limited.store(rate.is_some() || self.core.refuses_duplicates(), Ordering::SeqCst);
        Ok(())
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> TopicStats {
        self.core.stats()
    }
}

impl<T: Send + Sync + 'static> TopicCore<T> {
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

    pub(crate) fn stats(&self) -> TopicStats {
        let by_lanes: u64 = self.lanes.iter().map(|lane| lane.lock().published).sum();
        let ring = self.ring.get();
        let published = by_lanes + ring.map_or(0, |ring| ring.published());
        TopicStats {
            name: self.name.to_string(),
            published,
            unroutable: self.unroutable.get(),
            subscribers: self.subscribers() as u64,
            lagged: ring.map_or(0, |ring| ring.missed()),
            halves: self.halves.get().map_or_else(Default::default, |halves| halves.stats()),
            disconnected: ring.map_or(0, |ring| ring.disconnected()),
            expired: ring.map_or(0, |ring| ring.expired()),
        }
    }

    pub(crate) fn halves(&self) -> Option<&Arc<Halves<T>>> {
        self.halves.get()
    }

    /// Where unresolved half messages go, unless it was given another queue.
    pub(crate) fn own_dead_letters(&self) -> Option<Arc<Core<DeadLetter<T>>>> {
        let halves = self.halves.get().filter(|halves| halves.timing.dead_letters.is_none())?;
        Some(halves.dead.queue().core)
    }

    /// What of its half messages, and of their own dead letters, cannot be decoded, if they are in a file.
    #[cfg(feature = "sqlite")]
    pub(crate) fn undecodable(&self) -> Option<crate::queue::Queue<DeadLetter<crate::queue::Undecoded>>> {
        self.halves.get()?.undecodable()
    }

    /// `None` for a router of the user's own.
    pub(crate) fn routing(&self) -> Option<Routing> {
        (!self.settings.own_router).then_some(self.settings.routing)
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
