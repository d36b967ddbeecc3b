//! How a queue is to behave, checked as a whole when it is declared.

use super::Queue;
use crate::broker::Broker;
use crate::dead_letter::DeadLetter;
use crate::error::Error;
use crate::idempotency::Window;
use crate::message::Text;
use crate::queue::core::Keys;
use crate::queue::durable::{Durable, Mode};
use crate::queue::keyed::{Exhausted, KeyRule};
use crate::rate::Rate;
use crate::retry::Retry;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// What a full queue does with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// `publish` and `send` block until there is room; the `try` forms give the message back. The default.
    #[default]
    Wait,
    /// Every form gives the message back at once.
    Reject,
    /// The oldest ready message is thrown away for the new one, and counted. Where there are
    /// [priority levels](QueueBuilder::priority_levels) that is the oldest of the lowest level; a new message
    /// lower than all that wait is the one thrown away, and its receipt does not count this queue.
    DropOldest,
    /// The new message is thrown away, and counted; its receipt does not count this queue.
    DropNewest,
    /// The new message becomes a dead letter. If their queue is full too, it is given back.
    DeadLetter,
}

impl Overflow {
    /// Whether a full queue gives a message back.
    pub(crate) fn refuses(self) -> bool {
        matches!(self, Self::Wait | Self::Reject)
    }
}

/// What becomes of a message that outlives its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expired {
    /// It becomes a dead letter, with [`Reason::Expired`](crate::Reason::Expired). The default.
    #[default]
    DeadLetter,
    /// It is thrown away, and counted as expired.
    Drop,
}

/// By what a queue orders its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    ByKey,
    OneAtATime,
    /// Functions cannot be compared.
    ByFunction,
}

/// A queue's settings, as they are compared when it is declared again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) capacity: u64,
    pub(crate) overflow: Overflow,
    pub(crate) retry: Retry,
    pub(crate) max_in_flight: Option<usize>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) expired: Expired,
    pub(crate) priority_levels: u8,
    pub(crate) low_priority_share: Option<f64>,
    pub(crate) rate_limit: Option<Rate>,
    pub(crate) rate_limit_per_key: Option<Rate>,
    pub(crate) admission: Option<Rate>,
    pub(crate) ack_timeout: Option<Duration>,
    /// And whether by a function, which cannot be compared.
    pub(crate) idempotent: Option<(Window, bool)>,
    pub(crate) order: Option<Order>,
    pub(crate) exhausted: Exhausted,
    /// `None`: only in memory.
    pub(crate) durable: Option<Mode>,
    /// `None`: a dead-letter queue of its own.
    pub(crate) dead_letters: Option<Arc<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            overflow: Overflow::Wait,
            retry: Retry::default(),
            max_in_flight: None,
            ttl: None,
            expired: Expired::DeadLetter,
            priority_levels: 1,
            low_priority_share: None,
            rate_limit: None,
            rate_limit_per_key: None,
            admission: None,
            ack_timeout: None,
            idempotent: None,
            order: None,
            exhausted: Exhausted::DeadLetter,
            durable: None,
            dead_letters: None,
        }
    }
}

impl Settings {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.retry.problems();
        if self.capacity == 0 {
            problems.push("capacity of 0 can hold nothing: at least 1".into());
        }
        if self.max_in_flight == Some(0) {
            problems.push("max_in_flight of 0 lets nothing be delivered: at least 1".into());
        }
        for (name, time) in [("ttl", self.ttl), ("ack_timeout", self.ack_timeout)] {
            if time == Some(Duration::ZERO) {
                problems.push(format!("{name} of zero lets nothing be handled: more than zero"));
            }
        }
        problems.extend(self.idempotent.iter().flat_map(|(window, _)| window.problems()));
        if self.priority_levels == 0 {
            problems.push("priority_levels of 0 has no place for a message: at least 1".into());
        }
        if let Some(share) = self.low_priority_share
            && !(share > 0.0 && share < 1.0)
        {
            problems.push(format!("low_priority_share of {share}: must be above 0 and below 1"));
        }
        if self.order.is_some() && self.priority_levels > 1 {
            problems.push("a queue ordered by key cannot have priority_levels, which would break the order".into());
        }
        if self.order.is_none() && self.exhausted != Exhausted::DeadLetter {
            problems
                .push(format!("on_exhausted({:?}) holds a key back: only a queue ordered by key can", self.exhausted));
        }
        let limits = [
            ("rate_limit", &self.rate_limit),
            ("rate_limit_per_key", &self.rate_limit_per_key),
            ("admission", &self.admission),
        ];
        for (name, rate) in limits {
            problems.extend(rate.and_then(|rate| rate.checked().err()).map(|problem| format!("{name}: {problem}")));
        }
        problems
    }

    /// Whether messages take another way through the queue than the plain one.
    #[inline]
    pub(crate) fn is_special(&self) -> bool {
        self.ttl.is_some() || self.priority_levels > 1 || self.order.is_some() || self.durable.is_some()
    }

    /// Whether nothing is noted of a message when it is handed out or acked, but that it was.
    pub(crate) fn acks_plainly(&self) -> bool {
        let noted = self.ack_timeout.is_some() || self.idempotent.is_some() || self.max_in_flight.is_some();
        !noted && self.durable.is_none()
    }

    /// Each setting that differs, as "setting: here, there".
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, mine: &dyn fmt::Debug, theirs: &dyn fmt::Debug, same: bool| {
            if !same {
                found.push(format!("{name} is {mine:?}, asked for {theirs:?}"));
            }
        };
        compare("capacity", &self.capacity, &other.capacity, self.capacity == other.capacity);
        compare("overflow", &self.overflow, &other.overflow, self.overflow == other.overflow);
        let (mine, theirs) = (self.retry.to_string(), other.retry.to_string());
        compare("retry", &mine, &theirs, self.retry == other.retry);
        let same = self.max_in_flight == other.max_in_flight;
        compare("max_in_flight", &self.max_in_flight, &other.max_in_flight, same);
        compare("dead_letter_to", &self.dead_letters, &other.dead_letters, self.dead_letters == other.dead_letters);
        compare("ttl", &self.ttl, &other.ttl, self.ttl == other.ttl);
        compare("expired", &self.expired, &other.expired, self.expired == other.expired);
        compare("ack_timeout", &self.ack_timeout, &other.ack_timeout, self.ack_timeout == other.ack_timeout);
        compare("idempotent", &self.idempotent, &other.idempotent, self.idempotent == other.idempotent);
        let same = self.priority_levels == other.priority_levels;
        compare("priority_levels", &self.priority_levels, &other.priority_levels, same);
        let (mine, theirs) = (self.low_priority_share, other.low_priority_share);
        compare("low_priority_share", &mine, &theirs, mine == theirs);
        compare("rate_limit", &self.rate_limit, &other.rate_limit, self.rate_limit == other.rate_limit);
        let (mine, theirs) = (&self.rate_limit_per_key, &other.rate_limit_per_key);
        compare("rate_limit_per_key", mine, theirs, mine == theirs);
        compare("admission", &self.admission, &other.admission, self.admission == other.admission);
        compare("ordered_by", &self.order, &other.order, self.order == other.order);
        compare("durable", &self.durable, &other.durable, self.durable == other.durable);
        compare("on_exhausted", &self.exhausted, &other.exhausted, self.exhausted == other.exhausted);
        found
    }
}

/// Describes a queue; nothing exists until [`QueueBuilder::declare`].
///
/// Declaring is idempotent: the same name with the same payload type and settings gives another handle to
/// the same queue; with others it is an error that says both. Retry policies made from a function count as
/// the same only if they are clones of one.
#[must_use = "nothing exists until `declare` is called"]
pub struct QueueBuilder<T> {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) dead_letters: Option<Queue<DeadLetter<T>>>,
    pub(crate) keys: Keys<T>,
    pub(crate) durable: Option<Durable<T>>,
    /// A schema was given to what was not durable.
    schema_too_early: bool,
    broker: Option<Broker>,
    payload: PhantomData<fn() -> T>,
}

impl<T: Send + Sync + 'static> QueueBuilder<T> {
    /// Describes a queue that belongs to no broker; see [`Queue::standalone`].
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            settings: Settings::default(),
            dead_letters: None,
            keys: KeyRule::Unordered.into(),
            durable: None,
            schema_too_early: false,
            broker: None,
            payload: PhantomData,
        }
    }

    pub(crate) fn of(broker: Broker, name: String) -> Self {
        Self { broker: Some(broker), ..Self::new(name) }
    }

    /// How many messages it may hold before the overflow policy acts: ready ones, delayed ones, and those
    /// waiting for room among the dead letters. Messages in flight or waiting for a retry do not count.
    /// Default 10,000.
    pub fn capacity(mut self, messages: usize) -> Self {
        self.settings.capacity = messages as u64;
        self
    }

    /// What happens when it is full. Default [`Overflow::Wait`].
    pub fn overflow(mut self, policy: Overflow) -> Self {
        self.settings.overflow = policy;
        self
    }

    /// How often and how soon a failed message is delivered again. Default [`Retry::default`]: 5 attempts,
    /// 100 ms doubling to 30 s.
    pub fn retry(mut self, policy: impl Into<Retry>) -> Self {
        self.settings.retry = policy.into();
        self
    }

    /// How many messages may be handed out and not yet settled, over all consumers. Default: no limit.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.settings.max_in_flight = Some(messages);
        self
    }

    /// How long a message may wait to be handled, from its publish (or the end of its delay); a message may
    /// set a shorter time itself. An expired message is never delivered and leaves the queue wherever it
    /// stands; in a very long queue that may take a moment. What is in flight is left alone. Default: for
    /// ever.
    pub fn ttl(mut self, time: Duration) -> Self {
        self.settings.ttl = Some(time);
        self
    }

    /// What becomes of messages that expire. Default: dead letters.
    pub fn expired(mut self, fate: Expired) -> Self {
        self.settings.expired = fate;
        self
    }

    /// Keeps so many levels of priority, up to 255: 0 is the lowest, and a message of a higher level is
    /// delivered before all of lower ones. Redeliveries keep their level and lead it. Default 1: none.
    pub fn priority_levels(mut self, levels: u8) -> Self {
        self.settings.priority_levels = levels;
        self
    }

    /// Gives this share of all deliveries to the lowest level that has a message, so that it cannot
    /// starve; above 0 and below 1. Default: strict order.
    pub fn low_priority_share(mut self, share: f64) -> Self {
        self.settings.low_priority_share = Some(share);
        self
    }

    /// How fast messages are handed out, over all consumers. [`Queue::set_rate_limit`] changes it while it
    /// runs. Default: as fast as they are taken.
    pub fn rate_limit(mut self, rate: Rate) -> Self {
        self.settings.rate_limit = Some(rate);
        self
    }

    /// How fast messages of one ordering key are handed out. Those of other keys flow past one that has to
    /// wait; messages without a key are not limited. Default: as fast as they are taken.
    pub fn rate_limit_per_key(mut self, rate: Rate) -> Self {
        self.settings.rate_limit_per_key = Some(rate);
        self
    }

    /// How fast messages are let in. One that comes too soon is given back at once, by every form of
    /// sending, saying when to come again. [`Queue::set_admission`] changes it while it runs. Default: as
    /// fast as there is room.
    pub fn admission(mut self, rate: Rate) -> Self {
        self.settings.admission = Some(rate);
        self
    }

    /// How long a delivery may stay unsettled. After that the message is taken back, which counts as a
    /// failed attempt; settling it then answers [`SettleError::Late`](crate::SettleError::Late). A handler
    /// that needs longer says so with [`Message::extend_ack`](crate::Message::extend_ack). Default: for
    /// ever.
    pub fn ack_timeout(mut self, time: Duration) -> Self {
        self.settings.ack_timeout = Some(time);
        self
    }

    /// Hands out each message id successfully once within a window of time: what comes again is acked without
    /// anybody seeing it, and counted as `duplicates`. Ids that the broker assigns are never the same, so this is
    /// for messages that bring their own ([`Message::with_id`](crate::Message::with_id)).
    ///
    /// * Let all messages of such a queue bring theirs, or none: assigned ids are small numbers, and one that is
    ///   brought along may be the same.
    /// * An id is claimed when its message is handed out, done when that is acked (or discarded), and free again
    ///   when it fails in any way: a retry, a dead letter, a panic, an ack timeout. So a message that failed is
    ///   never taken for a duplicate, nor is it for one of itself when it is delivered again.
    /// * A second message of an id whose first one is in hand waits for what comes of that, and is counted as in
    ///   flight meanwhile: if the first is acked it is a duplicate, if it fails it goes back to the front.
    /// * The memory is the queue's own and ends with the process; [`Window`] bounds it. A handler that did its work
    ///   and failed then is called again, as everywhere: effectively once is this and a handler whose failures
    ///   leave nothing behind.
    ///
    /// ```
    /// use postroom::{Broker, Failure, Message, Queue};
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    ///
    /// let (broker, simulation) = Broker::simulated(1);
    /// let payments: Queue<u32> = broker.queue("payments").idempotent(Duration::from_secs(3600)).declare()?;
    /// let paid = Arc::new(Mutex::new(Vec::new()));
    /// let book = paid.clone();
    /// payments.consumer().start(move |cents: &Message<u32>| {
    ///     if cents.attempt() == 1 {
    ///         return Err(Failure::transient("the bank does not answer"));
    ///     }
    ///     book.lock().unwrap().push(**cents);
    ///     Ok(())
    /// })?;
    /// for _ in 0..3 {
    ///     payments.send(Message::new(500).with_id(4711)).unwrap(); // somebody is impatient
    /// }
    /// simulation.advance(Duration::from_secs(10));
    /// assert_eq!(*paid.lock().unwrap(), [500]);
    /// assert_eq!((payments.stats().acked, payments.stats().duplicates), (3, 2));
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn idempotent(mut self, window: impl Into<Window>) -> Self {
        self.settings.idempotent = Some((window.into(), false));
        self.keys.claim = None;
        self
    }

    /// As [`QueueBuilder::idempotent`], by a key that is found in the payload, whatever shows itself as text. The
    /// function runs when a message is about to be handed out; a panic in it is a failed attempt. Declaring again
    /// with another function is not noticed.
    pub fn idempotent_by<K: fmt::Display + 'static>(
        mut self,
        window: impl Into<Window>,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Self {
        self.settings.idempotent = Some((window.into(), true));
        self.keys.claim = Some(Arc::new(move |payload| Text::showing(&key(payload))));
        self
    }

    /// Orders its messages by a key that is found in the payload (an order's number, say), whatever shows
    /// itself as text. Messages of one key are handed out one at a time, in the order they were accepted,
    /// however many workers there are; different keys flow side by side and take turns.
    ///
    /// * A message keeps its key busy until it is settled for good: while it is in flight, while it waits for
    ///   its retry, and when it comes back by a panic, a dropped delivery, a requeue or an ack timeout. It
    ///   then leads its key again; those behind it wait, other keys do not.
    /// * What is given up on becomes a dead letter and the next of its key goes on, unless
    ///   [`QueueBuilder::on_exhausted`] says otherwise. What expires or is discarded holds up nobody.
    /// * A message with a delay gets its place when the delay is over; a redriven dead letter, when it is
    ///   redriven: behind what waits under its key then.
    /// * A batch holds at most one message of each key.
    /// * Under [`QueueBuilder::rate_limit_per_key`] a message that has to wait makes its key wait.
    ///
    /// The function runs once per message and queue, on the thread that publishes. If it panics, the message
    /// is given back; a redriven dead letter, which cannot be, is ordered under the empty key. Declaring
    /// again with another function is not noticed. Priority levels do not go with it, and dead letters of
    /// other queues cannot be sent to such a queue.
    ///
    /// ```
    /// use postroom::{Broker, Queue};
    ///
    /// struct Step { order: u64, to: &'static str }
    ///
    /// let broker = Broker::new();
    /// let steps: Queue<Step> = broker.queue("steps").ordered_by(|step: &Step| step.order).declare()?;
    /// for to in ["paid", "shipped"] {
    ///     steps.send(Step { order: 7, to }).unwrap();
    /// }
    /// steps.send(Step { order: 8, to: "paid" }).unwrap();
    ///
    /// let first = steps.recv().unwrap();
    /// let other = steps.recv().unwrap();
    /// assert_eq!((first.order, first.to, other.order), (7, "paid", 8));
    /// assert!(steps.try_recv().is_err(), "order 7 is shipped once it is paid");
    /// first.ack().unwrap();
    /// assert_eq!(steps.recv().unwrap().to, "shipped");
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn ordered_by<K: fmt::Display + 'static>(mut self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        self.settings.order = Some(Order::ByFunction);
        self.keys.order = KeyRule::Of(Arc::new(move |payload, text| text.show(&key(payload))));
        self
    }

    /// As [`QueueBuilder::ordered_by`], by the key given to each message with
    /// [`Message::with_key`](crate::Message::with_key). Messages without one count as those of one key, the
    /// empty one.
    pub fn ordered_by_key(mut self) -> Self {
        self.settings.order = Some(Order::ByKey);
        self.keys.order = KeyRule::OfMessage;
        self
    }

    /// Hands out one message at a time, strictly in order, whatever the number of workers and consumers, and
    /// through retries: [`QueueBuilder::ordered_by`] with one key for all. Elsewhere known as a single active
    /// consumer; here another worker takes over at the next message.
    pub fn one_at_a_time(mut self) -> Self {
        self.settings.order = Some(Order::OneAtATime);
        self.keys.order = KeyRule::One;
        self
    }

    /// What a queue ordered by key does when it gives up on a message. Default: it becomes a dead letter and
    /// the next of its key goes on.
    ///
    /// What is held back keeps its place: the message that failed holds no capacity, those behind it, which
    /// were never handed out, do. All of it counts as ready, and as `parked` in the statistics; shutdown
    /// does not wait for it, and receivers of a closed queue find the end without it.
    pub fn on_exhausted(mut self, policy: Exhausted) -> Self {
        self.settings.exhausted = policy;
        self
    }

    /// Where messages go that it gives up on. Default: a queue of its own named `<name>.dead`.
    ///
    /// Several queues may share one. Such a queue gives up on nothing itself: a dead letter whose handler
    /// fails is delivered again, at most 30 s later, until it is settled.
    pub fn dead_letter_to(mut self, queue: &Queue<DeadLetter<T>>) -> Self {
        self.settings.dead_letters = Some(Arc::clone(&queue.core.name));
        self.dead_letters = Some(queue.clone());
        self
    }

    /// Keeps its messages in the broker's file (see [`Broker::open`](crate::Broker::open)) until they are settled,
    /// payloads as JSON. Default: only in memory.
    ///
    /// * Every form of sending and publishing waits for the commit, and `Ok` says that the message is safe:
    ///   written, or synced too, as `durability` says. One publish to several durable queues is one commit; the most
    ///   demanding of them decides. A `try_` form and a timeout limit only the wait for room.
    /// * [`Queue::send_deferred`] and [`Topic::publish_deferred`](crate::Topic::publish_deferred) do not wait.
    /// * What is settled is deleted with one of the next commits, a few milliseconds later, and nobody waits for
    ///   it. If the process ends before that, it is delivered again.
    /// * Declared again on the file, by a later run, the queue has all that was not settled: in order, with its
    ///   attempts and their history, delays and times to live still running. What may have been in hand comes back
    ///   as [redelivered](crate::Message::redelivered): after a shutdown that is what was handed out before, after
    ///   a crash everything. A retry that waited, in a queue ordered by key, still holds its key.
    /// * Of a backlog, the first few thousand messages are in memory and the rest stays in the file until its turn
    ///   comes, also right after opening; that is [listed](Queue::list) and swept for expired messages only then.
    ///   With priority levels, memory has the first few thousand of each. In a queue that is ordered by key, keys do
    ///   not hold each other up: when all that memory has is of keys whose turn it is not, others are looked for further
    ///   back in the file, however far; memory keeps a bit for each message that is passed over.
    ///   [`parked`](Queue::parked) and [`drop_key`](Queue::drop_key) look through all of it;
    ///   [`QueueStats::parked`](crate::QueueStats::parked) counts what has been seen. A function for the key has to
    ///   find the same one whenever it is asked.
    /// * Of what has a delay, too, memory has the few thousand that are due soonest; what falls due while as many are
    ///   ready waits for them in the file, and is counted as ready (not where there is an order by key, or
    ///   priority levels: there it is in memory). In memory as a whole are messages with a
    ///   [timer](crate::Message::with_timer), requests that wait for their reply, and what has been handed out in this
    ///   run and waits for its next attempt; they may overtake what is ready and in the file,
    ///   other than of their key in a queue ordered by that. What waited for its next attempt when the file was opened
    ///   is read as what has a delay is; where there is an order by key, memory has the key of each. The
    ///   [list of delayed messages](Queue::list_delayed) ends with the last before which all are in memory.
    /// * [`Queue::send_in`] sends in a transaction of yours, together with your own rows in the same file.
    /// * Its own dead-letter queue is durable as well. One given with [`QueueBuilder::dead_letter_to`] is what it
    ///   was declared as: a dead letter in memory is lost with the process.
    /// * A [timer](crate::Message::with_timer) with a name finds a delayed message of an earlier run once its queue is
    ///   declared; a handle ends with its process. What is cancelled is deleted a few milliseconds later, as what is
    ///   settled is. A key that is [parked](QueueBuilder::on_exhausted) stays so until it is released or dropped, and
    ///   a stopped queue until it is resumed, also by a later run; one declared with another policy tries again.
    /// * What its codec cannot read when its turn comes is a dead letter of bytes: see [`Queue::undecodable`].
    /// * An [idempotent](QueueBuilder::idempotent) queue remembers over a restart what it has completed, within its
    ///   window: a key is noted in the commit that deletes its message, and deleted once the window has passed. What
    ///   was in hand when the process ended counts as released. Other sorts of keys (by id, by a function) than before
    ///   begin afresh.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Queue};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-durable-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<String> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// orders.send("ten of them".to_string()).unwrap(); // synced
    /// drop((broker, orders));
    ///
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<String> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// assert_eq!(orders.recv().unwrap().payload(), "ten of them");
    /// # drop((broker, orders));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    pub fn durable(self, durability: crate::store::Durability) -> Self
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.durable_with(durability, crate::codec::Json)
    }

    /// As [`QueueBuilder::durable`], with a codec for the payloads. The file notes its name, and the queue cannot be
    /// declared with another one while that is so.
    #[cfg(feature = "sqlite")]
    pub fn durable_with(mut self, durability: crate::store::Durability, codec: impl crate::codec::Codec<T>) -> Self {
        self.settings.durable = Some(durability);
        self.durable = Some(Durable::with(durability, codec));
        self
    }

    /// Says which version of its type the payload is, and how to make one of the bytes of an earlier version (of
    /// 0, if none was ever given). Follows [`QueueBuilder::durable`]. What is in the file is read that way when its
    /// turn comes, dead letters included; an error puts it apart, as does a version later than this one: see
    /// [`Queue::undecodable`].
    ///
    /// ```
    /// # use postroom::store::Durability;
    /// # use postroom::{Broker, Queue};
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Order {
    ///     id: u64,
    ///     currency: String,
    /// }
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-schema-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let numbers: Queue<u64> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// numbers.send(7).unwrap(); // last year, an order was its number
    /// drop((broker, numbers));
    ///
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<Order> = broker
    ///     .queue("orders")
    ///     .durable(Durability::Sync)
    ///     .schema(1, |_version, bytes| {
    ///         Ok(Order { id: serde_json::from_slice(bytes)?, currency: "EUR".to_string() })
    ///     })
    ///     .declare()?;
    /// let order = orders.recv().unwrap();
    /// assert_eq!((order.id, order.currency.as_str()), (7, "EUR"));
    /// # drop((order, broker, orders));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    pub fn schema(
        mut self,
        version: u32,
        upgrade: impl Fn(u32, &[u8]) -> Result<T, crate::codec::CodecError> + Send + Sync + 'static,
    ) -> Self {
        let coding = self.durable.as_mut().map(|durable| &mut durable.coding);
        self.schema_too_early |= !crate::queue::durable::Coding::upgrade_known(coding, version, upgrade);
        self
    }

    /// How many ready messages wait in memory before others stay in the file; for tests.
    #[cfg(feature = "sqlite")]
    #[doc(hidden)]
    pub fn window(mut self, messages: usize) -> Self {
        self.durable.iter_mut().for_each(|durable| durable.window = messages.max(1));
        self
    }

    /// Makes the queue, or finds the one that has been declared alike.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, a capacity,
    /// limit or time of 0, a retry policy that cannot be, a name taken by another payload type or by other
    /// settings, a dead-letter queue of another broker, a broker that was shut down.
    pub fn declare(self) -> Result<Queue<T>, Error> {
        match self.broker.clone() {
            Some(broker) => broker.declare_queue(self),
            None => Queue::standalone(self),
        }
    }

    /// The queue that is declared under this name, whatever its settings; those given here do not count.
    /// This is how a module that knows only a name gets at a queue that another has declared.
    ///
    /// ```
    /// use postroom::{Broker, DeadLetter, Queue};
    ///
    /// let broker = Broker::new();
    /// let _jobs: Queue<u32> = broker.queue("jobs").capacity(5).declare()?;
    ///
    /// let jobs: Queue<u32> = broker.queue("jobs").find()?;
    /// let dead: Queue<DeadLetter<u32>> = broker.queue("jobs.dead").find()?;
    /// assert_eq!((jobs.capacity(), dead.len()), (5, 0));
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is none, or one with another payload type.
    pub fn find(self) -> Result<Queue<T>, Error> {
        match &self.broker {
            Some(broker) => broker.find_queue(&self.name),
            None => Err(Error::new(self.subject(), "a queue without a broker cannot be found by its name")),
        }
    }

    pub(crate) fn subject(&self) -> String {
        format!("queue {:?}", self.name)
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = name_problems(&self.name);
        problems.extend(self.settings.problems());
        if self.schema_too_early {
            problems.push(SCHEMA_TOO_EARLY.into());
        }
        if let Some(queue) = self.dead_letters.as_ref().filter(|queue| queue.core.is_ordered()) {
            problems.push(format!("queue {:?} is ordered by key and cannot hold dead letters", queue.name()));
        }
        problems
    }
}

pub(crate) const SCHEMA_TOO_EARLY: &str = "schema without durable before it: only what is in a file has versions";

/// Names end up in thread names and diagrams.
pub(crate) fn name_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.is_empty() {
        problems.push("the name is empty".into());
    }
    if name.chars().any(char::is_control) {
        problems.push(format!("the name {name:?} has control characters"));
    }
    problems
}

impl<T> fmt::Debug for QueueBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueBuilder").field("name", &self.name).field("settings", &self.settings).finish()
    }
}
