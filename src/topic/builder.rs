//! How a topic is described and declared.

use super::binding::Table;
use super::once::Published;
use super::route::Lane;
use super::{Router, Routing, Topic, TopicCore};
use crate::broker::Broker;
use crate::error::Error;
use crate::half::{CheckBack, Halves, Timing};
use crate::idempotency::Window;
use crate::queue::Queue;
use crate::queue::builder::name_problems;
#[cfg(feature = "sqlite")]
use crate::queue::durable::Durable;
use crate::queue::throttle::Throttle;
use crate::rate::Rate;
use crate::route::Index;
use crate::runtime::Runtime;
use crate::stats::Counter;
use crate::subscriber::ring::Retention;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Padded};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

/// Describes a topic; nothing exists until [`TopicBuilder::declare`].
#[must_use = "nothing exists until `declare` is called"]
pub struct TopicBuilder<T> {
    pub(super) name: String,
    pub(super) settings: TopicSettings,
    pub(super) router: Option<Box<dyn Router<T>>>,
    pub(super) alternate: Option<Queue<T>>,
    pub(super) check_back: Option<CheckBack<T>>,
    pub(super) broker: Broker,
    pub(super) payload: PhantomData<fn() -> T>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct TopicSettings {
    pub(super) routing: Routing,
    pub(super) own_router: bool,
    pub(super) mandatory: bool,
    pub(super) alternate: Option<Arc<str>>,
    pub(super) admission: Option<Rate>,
    pub(super) refuse_duplicates: Option<Window>,
    /// What was published is kept in the broker's file.
    pub(super) remembers: bool,
    pub(super) retention: Retention,
    pub(super) check_back: Option<Timing>,
}

impl<T: Send + Sync + 'static> TopicBuilder<T> {
    pub(crate) fn of(broker: Broker, name: String) -> Self {
        let settings = TopicSettings::default();
        Self { name, settings, router: None, alternate: None, check_back: None, broker, payload: PhantomData }
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

    /// Refuses a message whose id was published here within a window of time, as [`PublishError::Duplicate`]. Only
    /// ids that messages bring along count ([`Message::with_id`]), and only once their publish has succeeded. While
    /// another thread is just publishing the same id, and may fail, a publish is refused too; the error's
    /// [`is_under_way`](crate::Refused::is_under_way) tells the two apart. Dead letters that are redriven to their
    /// queue do not come this way. Default: duplicates are published.
    ///
    /// ```
    /// use postroom::{Broker, Message, PublishError, Queue, Topic};
    /// use std::time::Duration;
    ///
    /// let broker = Broker::new();
    /// let orders: Topic<&str> = broker.topic("orders").refuse_duplicates(Duration::from_secs(60)).declare()?;
    /// let queue: Queue<&str> = broker.queue("queue").declare()?;
    /// orders.bind(&queue, "#")?;
    ///
    /// orders.publish("placed", Message::new("tea").with_id(17)).unwrap();
    /// let refused = orders.publish("placed", Message::new("tea").with_id(17));
    /// assert!(matches!(refused, Err(PublishError::Duplicate(_))));
    /// assert_eq!(queue.len(), 1);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// [`PublishError::Duplicate`]: crate::PublishError::Duplicate
    /// [`Message::with_id`]: crate::Message::with_id
    pub fn refuse_duplicates(mut self, window: impl Into<Window>) -> Self {
        self.settings.refuse_duplicates = Some(window.into());
        self
    }

    /// As [`TopicBuilder::refuse_duplicates`], over a restart: the ids are kept in the broker's file (see
    /// [`Broker::open`]). Where the message goes to durable queues, its id is noted in the commit that writes it, so
    /// that a producer that publishes again after a crash, not knowing what became of its publish, publishes once.
    /// Otherwise, and in a transaction, it is noted a few milliseconds later. What is out of the window is deleted.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Message, PublishError, Queue, Topic};
    /// use std::time::Duration;
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-published-{}.db", std::process::id()));
    /// let publish = || -> Result<bool, postroom::Error> {
    ///     let broker = Broker::open(&path)?;
    ///     let topic = broker.topic("orders").refuse_duplicates_durably(Duration::from_secs(3600));
    ///     let orders: Topic<String> = topic.declare()?;
    ///     let billing: Queue<String> = broker.queue("billing").durable(Durability::Sync).declare()?;
    ///     orders.bind(&billing, "#")?;
    ///     let published = orders.publish("placed", Message::new("tea".to_string()).with_id(17));
    ///     assert_eq!(billing.len(), 1);
    ///     Ok(published.is_ok())
    /// };
    /// assert!(publish()?);
    /// assert!(!publish()?, "it is there already");
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    pub fn refuse_duplicates_durably(mut self, window: impl Into<Window>) -> Self {
        self.settings.remembers = true;
        self.refuse_duplicates(window)
    }

    /// Remembers the last `n` messages (and up to 63 more) for subscribers to come, whether or not somebody
    /// has subscribed; see [`SubscriberBuilder::replay_last`](crate::SubscriberBuilder::replay_last). Default: only what subscribers may still need.
    pub fn keep_last(mut self, n: usize) -> Self {
        self.settings.retention.last = n;
        self
    }

    /// Remembers the latest message of each ordering key for subscribers to come, for as long as the topic
    /// exists; see [`SubscriberBuilder::replay_latest_by_key`](crate::SubscriberBuilder::replay_latest_by_key). Those without a key count as one more.
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

    /// Lets it take [half messages](Topic::prepare), and says who is asked what became of those that nobody
    /// settles. Two listeners cannot be compared and count as alike. Default: it takes none.
    pub fn check_back(mut self, check_back: CheckBack<T>) -> Self {
        self.settings.check_back = Some(check_back.timing.clone());
        self.check_back = Some(check_back);
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
        problems.extend(self.settings.refuse_duplicates.iter().flat_map(Window::problems));
        problems.extend(self.check_back.iter().flat_map(CheckBack::problems));
        let dead_letters = self.check_back.as_ref().and_then(|check_back| check_back.dead_letters.as_ref());
        if dead_letters.is_some_and(|queue| !Arc::ptr_eq(&queue.core.runtime, self.broker.runtime())) {
            problems.push("the dead-letter queue of its check-back belongs to another broker".into());
        }
        let admission = self.settings.admission.and_then(|rate| rate.checked().err());
        problems.extend(admission.map(|problem| format!("admission: {problem}")));
        Error::unless_none(self.subject(), problems)?;
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

    pub(crate) fn subject(&self) -> String {
        format!("topic {:?}", self.name)
    }

    /// Whether something of it is to be kept in the broker's file.
    #[cfg(feature = "sqlite")]
    pub(crate) fn is_durable(&self) -> bool {
        self.settings.remembers || self.check_back.as_ref().is_some_and(|check_back| check_back.durable.is_some())
    }

    /// How its half messages are to be kept in the broker's file, if they are.
    #[cfg(feature = "sqlite")]
    pub(crate) fn take_durable(&mut self) -> Option<Durable<T>> {
        self.check_back.as_mut()?.durable.take()
    }

    /// Whether its half messages are to be in the file.
    pub(crate) fn keeps_halves(&self) -> bool {
        self.check_back.as_ref().is_some_and(|check_back| check_back.durable.is_some())
    }

    /// Whether it has to be given a dead-letter queue.
    pub(crate) fn needs_dead_letters(&self) -> bool {
        self.check_back.as_ref().is_some_and(|check_back| check_back.dead_letters.is_none())
    }

    pub(crate) fn build(self, runtime: Arc<Runtime>, dead_name: String) -> Topic<T> {
        let admission = self.settings.admission.as_ref().map(Throttle::new);
        let published = self.settings.refuse_duplicates.map(Published::new);
        let retention = self.settings.retention;
        let core = TopicCore {
            ring: OnceLock::new(),
            name: self.name.into(),
            settings: self.settings,
            router: self.router,
            alternate: self.alternate.map(|queue| queue.core),
            runtime,
            table: Mutex::new(Table { index: Index::default(), bound: Vec::new() }),
            only_ring_at: AtomicU64::new(0),
            lanes: std::array::from_fn(|_| Padded(Mutex::new(Lane::new()))),
            limited: AtomicBool::new(admission.is_some() || published.is_some()),
            published,
            admission: Mutex::new(admission),
            unroutable: Counter::default(),
            halves: OnceLock::new(),
        };
        if retention.is_any() {
            core.ring();
        }
        let core = Arc::new(core);
        if let Some(mut check_back) = self.check_back {
            let given = check_back.dead_letters.take();
            let durable = check_back.timing.durable;
            let own = || Queue::for_letters_as(dead_name.into(), Arc::clone(&core.runtime), durable);
            let dead = given.unwrap_or_else(own);
            let _ = core.halves.set(Halves::new(&core, check_back, dead.core));
        }
        Topic { core }
    }

    /// The topic declared before under this name, if it is alike.
    pub(crate) fn same_as(&self, existing: &Topic<T>) -> Result<(), Error> {
        let (mine, theirs) = (&existing.core.settings, &self.settings);
        if mine == theirs {
            return Ok(());
        }
        Err(Error::new(self.subject(), format!("it exists as {mine}, asked for {theirs}")))
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
        if let Some(window) = &self.refuse_duplicates {
            write!(f, ", refuses duplicates within {window}")?;
            if self.remembers {
                f.write_str(", durably")?;
            }
        }
        if self.retention.last > 0 {
            write!(f, ", keeps the last {}", self.retention.last)?;
        }
        if self.retention.by_key {
            f.write_str(", keeps the latest by key")?;
        }
        if let Some(check_back) = &self.check_back {
            write!(f, ", {check_back}")?;
        }
        Ok(())
    }
}
