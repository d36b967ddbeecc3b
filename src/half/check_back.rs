//! Asking what became of a half message whose producer has not said.

use crate::dead_letter::DeadLetter;
use crate::message::Message;
use crate::outcome::Failure;
use crate::queue::Queue;
use crate::queue::durable::{Durable, Mode, promise};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What became of the local transaction that a half message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It was committed: the message is published.
    Commit,
    /// It was rolled back, or never begun: the message is dropped.
    Rollback,
    /// It is under way, or it cannot be said now: the message is asked about again.
    Unknown,
}

/// What a local transaction may answer: `()` or `Ok` commits, an error rolls back, a [`Resolution`] says itself.
pub trait IntoResolution {
    /// The resolution, with the error if there was one.
    fn into_resolution(self) -> (Resolution, Option<Failure>);
}

impl IntoResolution for Resolution {
    fn into_resolution(self) -> (Resolution, Option<Failure>) {
        (self, None)
    }
}

impl IntoResolution for () {
    fn into_resolution(self) -> (Resolution, Option<Failure>) {
        (Resolution::Commit, None)
    }
}

impl<R: IntoResolution, E: Into<Failure>> IntoResolution for Result<R, E> {
    fn into_resolution(self) -> (Resolution, Option<Failure>) {
        match self {
            Ok(answer) => answer.into_resolution(),
            Err(error) => (Resolution::Rollback, Some(error.into())),
        }
    }
}

pub(crate) type Listener<T> = Arc<dyn Fn(&Message<T>) -> Resolution + Send + Sync>;

/// How a topic finds out about half messages that nobody settles; see [`TopicBuilder::check_back`].
///
/// The listener looks where the truth is (has the order been saved?) and answers. It runs on a thread of the
/// topic's own, one half message at a time, so it may take its time and ask a database; it may be called for a
/// message that its producer settles at the same moment, and more than once for the same. A panic in it counts as
/// [`Resolution::Unknown`].
///
/// [`TopicBuilder::check_back`]: crate::TopicBuilder::check_back
pub struct CheckBack<T> {
    pub(crate) listener: Listener<T>,
    pub(crate) timing: Timing,
    pub(crate) dead_letters: Option<Queue<DeadLetter<T>>>,
    /// How half messages are to be kept in the broker's file.
    pub(crate) durable: Option<Durable<T>>,
    /// A schema was given to what was not durable.
    schema_too_early: bool,
}

/// When to ask, as it is compared when a topic is declared again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Timing {
    pub(crate) first: Duration,
    pub(crate) every: Duration,
    pub(crate) times: u32,
    pub(crate) max_open: usize,
    /// `None`: a queue of the topic's own.
    pub(crate) dead_letters: Option<Arc<str>>,
    /// `None`: only in memory.
    pub(crate) durable: Option<Mode>,
}

impl<T: Send + Sync + 'static> CheckBack<T> {
    /// Asks `listener`: 6 s after a half message was prepared, then every 30 s, 15 times in all.
    pub fn new(listener: impl Fn(&Message<T>) -> Resolution + Send + Sync + 'static) -> Self {
        let (first, every) = (Duration::from_secs(6), Duration::from_secs(30));
        let timing = Timing { first, every, times: 15, max_open: 10_000, dead_letters: None, durable: None };
        Self { listener: Arc::new(listener), timing, dead_letters: None, durable: None, schema_too_early: false }
    }

    /// How long after it was prepared a half message is first asked about: longer than local transactions
    /// usually take. Default 6 s.
    #[must_use]
    pub fn first(mut self, delay: Duration) -> Self {
        self.timing.first = delay;
        self
    }

    /// How long after an answer of `Unknown` it is asked about again. Default 30 s.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.timing.every = interval;
        self
    }

    /// How often it is asked about before it becomes a dead letter with
    /// [`Reason::Unresolved`](crate::Reason::Unresolved). Default 15.
    #[must_use]
    pub fn times(mut self, checks: u32) -> Self {
        self.timing.times = checks;
        self
    }

    /// How many half messages may be open; to prepare another is refused. Default 10,000.
    #[must_use]
    pub fn max_open(mut self, halves: usize) -> Self {
        self.timing.max_open = halves;
        self
    }

    /// Where those go that stay unresolved. Default: a queue of the topic's own named `<topic>.half.dead`.
    #[must_use]
    pub fn dead_letter_to(mut self, queue: &Queue<DeadLetter<T>>) -> Self {
        self.timing.dead_letters = Some(Arc::clone(&queue.core.name));
        self.dead_letters = Some(queue.clone());
        self
    }

    /// Keeps half messages in the broker's file (see [`Broker::open`](crate::Broker::open)) until they are settled,
    /// payloads as JSON. Default: only in memory.
    ///
    /// * [`Topic::prepare`](crate::Topic::prepare) waits for the commit: once it has answered, the half message is
    ///   written, or synced too, as `durability` says. So the local transaction that follows never commits without
    ///   it.
    /// * To commit it is one commit of the file: it is deleted there and written for all durable queues that it
    ///   reaches. After a crash at any moment there is either the half message or the message. Where it goes to
    ///   queues in memory or logs only, a full queue throws it away, or it is rolled back, the file hears of it a few
    ///   milliseconds later; after a crash before that it is asked about again.
    /// * A later run that declares the topic on the file has all that were open. They are asked about when it is their
    ///   time, with the answers so far counted, but no sooner than [`CheckBack::first`] after the declaration: until
    ///   then everything should be bound that their messages are for. If the listener says commit and nothing matches
    ///   a message then, it is kept and tried again every second.
    /// * A handle does not survive the process; [`Topic::commit_half`](crate::Topic::commit_half) and
    ///   [`Topic::rollback_half`](crate::Topic::rollback_half) find it by its id.
    /// * Unresolved ones are durable as well, as dead letters of the topic's own queue.
    /// * What the codec cannot read is a dead letter of bytes in the queue `<topic>.half.undecodable`, together with
    ///   unresolved ones it cannot read. Redriven with a codec that can, it is open again, and asked about: whether it is
    ///   to be published, nobody has said. See [`Queue::undecodable`].
    /// * What a shutdown leaves open stays in the file and counts as [stored](crate::ShutdownReport::stored).
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, CheckBack, Queue, Resolution, Topic};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-half-{}.db", std::process::id()));
    /// fn orders(broker: &Broker) -> Result<(Topic<u32>, Queue<u32>), postroom::Error> {
    ///     let check = CheckBack::new(|_| Resolution::Unknown).durable(Durability::Sync);
    ///     let orders = broker.topic("orders").check_back(check).declare()?;
    ///     let billing = broker.queue("billing").durable(Durability::Sync).declare()?;
    ///     orders.bind(&billing, "#")?;
    ///     Ok((orders, billing))
    /// }
    ///
    /// let broker = Broker::open(&path)?;
    /// let (topic, queue) = orders(&broker)?;
    /// let id = topic.prepare("order.placed", 17)?.id(); // synced
    /// drop((broker, topic, queue)); // the process ends, however it ends
    ///
    /// let broker = Broker::open(&path)?;
    /// let (topic, queue) = orders(&broker)?;
    /// topic.commit_half(id)?; // one commit
    /// assert_eq!(**queue.recv()?, 17);
    /// # drop((broker, topic, queue));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn durable(self, durability: crate::store::Durability) -> Self
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.durable_with(durability, crate::codec::Json)
    }

    /// As [`CheckBack::durable`], with a codec for the payloads. The file notes its name, and the topic cannot be
    /// declared with another one while that is so.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn durable_with(mut self, durability: crate::store::Durability, codec: impl crate::codec::Codec<T>) -> Self {
        self.timing.durable = Some(durability);
        self.durable = Some(Durable::with(durability, codec));
        self
    }

    /// Says which version of its type the payload is, and how to make one of the bytes of an earlier version (of 0, if
    /// none was ever given). Follows [`CheckBack::durable`]; see [`QueueBuilder::schema`](crate::QueueBuilder::schema).
    /// What is in the file is read that way when the topic is declared, unresolved ones included; an error puts it
    /// apart, as does a version later than this one: see [`Queue::undecodable`].
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, CheckBack, Resolution, Topic};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-half-schema-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let check = CheckBack::new(|_: &_| Resolution::Unknown).durable(Durability::Sync);
    /// let numbers: Topic<u64> = broker.topic("orders").check_back(check).declare()?;
    /// drop(numbers.prepare("order.placed", 17)?);
    /// drop((broker, numbers));
    ///
    /// let broker = Broker::open(&path)?;
    /// let check = CheckBack::new(|_: &_| Resolution::Unknown)
    ///     .durable(Durability::Sync)
    ///     .schema(1, |_version, bytes| Ok(format!("order {}", serde_json::from_slice::<u64>(bytes)?)));
    /// let orders: Topic<String> = broker.topic("orders").check_back(check).declare()?;
    /// assert_eq!(orders.halves()[0].payload(), "order 17");
    /// # drop((broker, orders));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn schema(
        mut self,
        version: u32,
        upgrade: impl Fn(u32, &[u8]) -> Result<T, crate::codec::CodecError> + Send + Sync + 'static,
    ) -> Self {
        let coding = self.durable.as_mut().map(|durable| &mut durable.coding);
        self.schema_too_early |= !crate::queue::durable::Coding::upgrade_known(coding, version, upgrade);
        self
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let Timing { every, times, max_open, .. } = self.timing;
        let mut problems = Vec::new();
        if every.is_zero() {
            problems.push("check-backs every 0 s would never rest: more than zero".into());
        }
        if times == 0 {
            problems.push("0 check-backs would never ask: at least 1".into());
        }
        if max_open == 0 {
            problems.push("max_open of 0 lets nothing be prepared: at least 1".into());
        }
        if self.schema_too_early {
            problems.push("schema without durable before it: only what is in a file has versions".into());
        }
        if let Some(queue) = self.dead_letters.as_ref().filter(|queue| queue.core.is_ordered()) {
            problems.push(format!("queue {:?} is ordered by key and cannot hold dead letters", queue.name()));
        }
        problems
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, every, times, max_open, dead_letters, durable } = self;
        write!(f, "check-back after {first:?}, then every {every:?}, {times} times, at most {max_open} open")?;
        durable.map_or(Ok(()), |mode| write!(f, ", {}", promise(mode)))?;
        dead_letters.as_ref().map_or(Ok(()), |queue| write!(f, ", dead letters to {queue:?}"))
    }
}

impl<T> fmt::Debug for CheckBack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckBack({})", self.timing)
    }
}
