//! Broadcast: every subscriber sees every message.

mod chunk;
mod later;
mod listener;
mod reader;
pub(crate) mod ring;
mod row;
mod seat;
mod state;
pub(crate) mod together;
mod waiting;

pub use listener::Subscription;
pub use seat::Lag;

use crate::error::{BroadcastError, Error, SHUT_DOWN};
use crate::message::Message;
use crate::queue::builder::name_problems;
use crate::queue::core::Patience;
use crate::runtime::Registration;
use listener::Listener;
use reader::Reader;
use ring::Ring;
use seat::{Replay, Seat};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

type LagHook = Box<dyn Fn(u64) + Send + Sync>;

/// Describes a subscriber; nothing is received until [`SubscriberBuilder::open`] or
/// [`SubscriberBuilder::start`].
///
/// ```
/// use postroom::{Broker, Lag, Topic};
///
/// let broker = Broker::new();
/// let prices: Topic<u32> = broker.topic("prices").declare()?;
/// let board = prices.subscribe().name("board").capacity(64).lag(Lag::DropOldest).open()?;
/// prices.publish("tea", 3).unwrap();
/// assert_eq!(**board.recv().unwrap(), 3);
/// # Ok::<(), postroom::Error>(())
/// ```
#[must_use = "nothing is received until `open` or `start` is called"]
pub struct SubscriberBuilder<T> {
    ring: Arc<Ring<T>>,
    name: Option<String>,
    capacity: usize,
    lag: Lag,
    replay: Replay,
    asked_twice: bool,
    on_lag: Option<LagHook>,
}

impl<T: Send + Sync + 'static> SubscriberBuilder<T> {
    /// How far it may fall behind unless [`SubscriberBuilder::capacity`] says otherwise.
    pub const DEFAULT_CAPACITY: usize = 1024;

    pub(crate) fn new(ring: Arc<Ring<T>>) -> Self {
        let (capacity, replay) = (Self::DEFAULT_CAPACITY, Replay::None);
        Self { ring, name: None, capacity, lag: Lag::default(), replay, asked_twice: false, on_lag: None }
    }

    /// What errors, events and threads call it. Default: "subscriber of" and the topic's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many messages it may be behind before its lag policy acts, beside those it has taken ahead (at most
    /// an eighth of this, or 128). Default 1024.
    pub fn capacity(mut self, messages: usize) -> Self {
        self.capacity = messages;
        self
    }

    /// What happens when it is behind by more than that. Default [`Lag::DropOldest`].
    pub fn lag(mut self, lag: Lag) -> Self {
        self.lag = lag;
        self
    }

    /// Starts with the last `n` messages that were published before, or as many as there are. A topic
    /// remembers what [`TopicBuilder::keep_last`](crate::TopicBuilder::keep_last) says and, while it has
    /// subscribers, as many messages as the largest of their capacities. What is replayed and what is
    /// published meanwhile follow each other without a gap and without a message twice. Default 0.
    pub fn replay_last(self, n: usize) -> Self {
        self.replay(if n == 0 { Replay::None } else { Replay::Last(n) })
    }

    /// Starts with the latest message of each key ([`Message::with_key`]; those without a key count as one
    /// more), oldest first. The topic has to be declared with
    /// [`keep_latest_by_key`](crate::TopicBuilder::keep_latest_by_key).
    pub fn replay_latest_by_key(self) -> Self {
        self.replay(Replay::LatestByKey)
    }

    fn replay(mut self, replay: Replay) -> Self {
        self.asked_twice |= self.replay != Replay::None && self.replay != replay;
        self.replay = replay;
        self
    }

    /// In the handler form: called with their number when messages were missed, on its thread. A panic in it
    /// changes nothing.
    pub fn on_lag(mut self, hook: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.on_lag = Some(Box::new(hook));
        self
    }

    /// Subscribes, for receiving by hand.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: a capacity of 0, a replay of more than the capacity, both
    /// kinds of replay, a replay by key of a topic that does not keep it, a bad name, a broker that was shut
    /// down.
    pub fn open(self) -> Result<Subscriber<T>, Error> {
        let mut problems = self.problems();
        if self.on_lag.is_some() {
            problems.push("`on_lag` is for handlers; whoever receives by hand is told by `recv`".into());
        }
        Ok(Subscriber { reader: RefCell::new(self.join(problems, false)?) })
    }

    /// Subscribes, and has a thread call `handler` with one message after the other. In a simulation it is
    /// the thread that drives it.
    ///
    /// A broadcast is not acknowledged: when the handler panics, that is told by
    /// [`Event::HandlerPanicked`](crate::Event::HandlerPanicked), counted, and the next message follows. It
    /// runs until [`Subscription::stop`] or the broker's shutdown, which lets it finish what was published,
    /// whether or not the returned handle is kept.
    ///
    /// # Errors
    /// As [`SubscriberBuilder::open`], or a system that refuses the thread.
    pub fn start(mut self, handler: impl Fn(&Message<T>) + Send + Sync + 'static) -> Result<Subscription, Error> {
        let problems = self.problems();
        let on_lag = self.on_lag.take();
        let subject = self.subject();
        let reader = self.join(problems, true)?;
        let crew = Listener::start(reader, handler, on_lag)
            .map_err(|error| Error::new(subject, format!("the system refused a thread: {error}")))?;
        Ok(Subscription { crew })
    }

    fn subject(&self) -> String {
        match &self.name {
            Some(name) => format!("subscriber {name:?} of topic {:?}", self.ring.topic),
            None => format!("subscriber of topic {:?}", self.ring.topic),
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.name.as_deref().map_or_else(Vec::new, name_problems);
        if self.capacity == 0 {
            problems.push("a capacity of 0 would hold nothing: at least 1".into());
        }
        match self.replay {
            Replay::Last(n) if n > self.capacity => {
                problems.push(format!("a replay of {n} messages does not fit into a capacity of {}", self.capacity));
            }
            Replay::LatestByKey if !self.ring.retention().by_key => {
                problems.push("its topic keeps no latest by key: declare it with `keep_latest_by_key`".into());
            }
            _ => {}
        }
        if self.asked_twice {
            problems.push("it asks for the last messages and for the latest by key: one of them".into());
        }
        if !self.ring.is_open() {
            problems.push(SHUT_DOWN.into());
        }
        problems
    }

    fn join(self, problems: Vec<String>, handled: bool) -> Result<Reader<T>, Error> {
        let subject = self.subject();
        Error::unless_none(&*subject, problems)?;
        let name = self.name.unwrap_or_else(|| format!("subscriber of {}", self.ring.topic));
        let registration = Registration::new(&self.ring.runtime, self.ring.me.clone());
        let seat = Arc::new(Seat::new(name.into(), self.capacity, self.lag, handled, registration));
        let start = self.ring.join(&seat, self.replay).map_err(|problem| Error::new(subject, problem))?;
        Ok(Reader::new(self.ring, seat, start))
    }
}

/// Sees every message published to its topic from the moment it was opened, and none twice.
///
/// "From the moment": every publish that starts after [`SubscriberBuilder::open`] has returned; of those
/// under way then, some. What reaches the topic through a binding of another topic counts as published to it,
/// as far as that binding selects it. All subscribers share one message; its payload is never copied. Messages
/// of one publishing thread come in the order it published them.
///
/// For use by one thread at a time. Dropping it unsubscribes.
///
/// # Lagging
/// A subscriber that is behind by more than its capacity lags, and its [`Lag`] says what happens; it is never
/// silent. Up to an eighth of the capacity (at most 128 messages) is taken ahead: that cannot be missed any
/// more, nor does a publisher wait for it.
///
/// # Closing
/// When the broker has shut down, or the topic is gone with its broker and handles, it receives what is left
/// and then [`BroadcastError::Closed`].
///
/// # Time
/// A delayed message comes when it is due, to whoever has subscribed by then, and needs no room before. One that
/// has outlived its own time to live is left out and counted ([`TopicStats::expired`](crate::TopicStats::expired)).
/// Priorities mean nothing here, and nothing is settled.
///
/// ```
/// use postroom::{BroadcastError, Broker, Topic};
///
/// let broker = Broker::new();
/// let settings: Topic<&str> = broker.topic("settings").keep_last(1).declare()?;
/// settings.publish("", "dark").unwrap();
///
/// let node = settings.subscribe().replay_last(1).open()?;
/// settings.publish("", "light").unwrap();
/// assert_eq!(*node.recv().unwrap().payload(), "dark");
/// assert_eq!(*node.recv().unwrap().payload(), "light");
/// assert_eq!(node.try_recv().unwrap_err(), BroadcastError::Empty);
/// # Ok::<(), postroom::Error>(())
/// ```
pub struct Subscriber<T: Send + Sync + 'static> {
    reader: RefCell<Reader<T>>,
}

impl<T: Send + Sync + 'static> Subscriber<T> {
    /// The next message; waits for it.
    ///
    /// # Errors
    /// [`BroadcastError::Lagged`], after which it goes on with the oldest message left;
    /// [`BroadcastError::Disconnected`], [`BroadcastError::Closed`] and, in a simulation that can go no further,
    /// [`BroadcastError::Deadlock`].
    #[inline]
    pub fn recv(&self) -> Result<Arc<Message<T>>, BroadcastError> {
        self.next(Patience::Forever)
    }

    /// The next message, if there is one now.
    ///
    /// # Errors
    /// As [`Subscriber::recv`], and [`BroadcastError::Empty`].
    #[inline]
    pub fn try_recv(&self) -> Result<Arc<Message<T>>, BroadcastError> {
        self.next(Patience::None)
    }

    /// The next message; waits for it at most `timeout`.
    ///
    /// # Errors
    /// As [`Subscriber::recv`], and [`BroadcastError::Timeout`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Arc<Message<T>>, BroadcastError> {
        let deadline = self.reader.borrow().ring.runtime.clock.now().after(timeout);
        self.next(Patience::Until(deadline))
    }

    /// Up to `max` messages: waits for the first, and takes those that are there as well. Empty only if
    /// `max` is 0.
    ///
    /// # Errors
    /// As [`Subscriber::recv`], of the first. What is wrong later is reported by the next receive.
    pub fn recv_batch(&self, max: usize) -> Result<Vec<Arc<Message<T>>>, BroadcastError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let first = self.recv()?;
        let mut reader = self.reader.borrow_mut();
        let mut batch = Vec::with_capacity(max.min(1 + reader.taken()));
        batch.push(first);
        // Not what comes meanwhile: to take message after message would be slow for all.
        let horizon = reader.horizon();
        while batch.len() < max && reader.is_plain(horizon) && reader.next_of_batch() {
            batch.push(reader.last_shared());
        }
        Ok(batch)
    }

    /// Message after message, each awaited; an error where some were missed. Ends when the topic is closed, or
    /// after the error that says it was disconnected.
    ///
    /// ```
    /// use postroom::{Broker, Topic};
    /// use std::time::Duration;
    ///
    /// let broker = Broker::new();
    /// let topic: Topic<u32> = broker.topic("numbers").declare()?;
    /// let subscriber = topic.subscribe().open()?;
    /// (1..=3).for_each(|n| _ = topic.publish("", n).unwrap());
    /// broker.shutdown(Duration::ZERO);
    /// let sum: u32 = subscriber.iter().flatten().map(|message| **message).sum();
    /// assert_eq!(sum, 6);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Result<Arc<Message<T>>, BroadcastError>> + '_ {
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            match self.recv() {
                Err(BroadcastError::Closed) => None,
                Err(error) => {
                    ended = !matches!(error, BroadcastError::Lagged(_));
                    Some(Err(error))
                }
                message => Some(message),
            }
        })
    }

    /// How many messages it has not received yet, those included that it will have missed.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.reader.borrow().backlog()
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> Arc<str> {
        Arc::clone(&self.reader.borrow().ring.topic)
    }

    #[inline]
    fn next(&self, patience: Patience) -> Result<Arc<Message<T>>, BroadcastError> {
        let mut reader = self.reader.borrow_mut();
        reader.next(patience, &|| true)?;
        Ok(reader.last_shared())
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reader = self.reader.borrow();
        f.debug_struct("Subscriber")
            .field("topic", &reader.ring.topic)
            .field("name", &reader.seat.name)
            .field("backlog", &reader.backlog())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for SubscriberBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriberBuilder")
            .field("topic", &self.ring.topic)
            .field("capacity", &self.capacity)
            .field("lag", &self.lag)
            .finish_non_exhaustive()
    }
}
