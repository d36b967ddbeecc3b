//! Queues: competing consumers, bounded, nothing lost.

pub(crate) mod builder;
pub(crate) mod core;
#[cfg(feature = "sqlite")]
pub(crate) mod durable;
#[cfg(not(feature = "sqlite"))]
#[path = "memory_only.rs"]
pub(crate) mod durable;
pub(crate) mod fifo;
pub(crate) mod keyed;
pub(crate) mod lease;
pub(crate) mod levels;
pub(crate) mod throttle;

pub use builder::{Expired, Overflow, QueueBuilder};
#[cfg(feature = "sqlite")]
pub use durable::Undecoded;
pub use keyed::{Exhausted, Parked};

use crate::alarm::{Alarm, AlarmHandle, Alert};
use crate::clock::Clock;
use crate::consumer::ConsumerBuilder;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::delivery::{Batch, Delivery};
use crate::error::{
    BatchError, Error, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::message::{Message, MessageId};
use crate::rate::Rate;
use crate::runtime::{Options, Runtime};
use crate::stats::QueueStats;
use builder::Settings;
use core::{Accepted, Core, Keys, Nothing, Patience, Portion, Refusal};
use durable::Mode;
use fifo::{Chunk, chunk_len};
use keyed::KeyRule;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A handle to a queue: bounded, first in first out, each message to one of its competing consumers.
///
/// Cheap to clone; all clones are the same queue. Every method may be called from any thread at any time.
/// Blocking calls come in three forms: `x` waits, `try_x` never does, `x_timeout` waits up to a duration.
///
/// With one consumer thread, messages are handled in the order they were accepted (each producer's in its
/// order); redeliveries come ahead of fresh messages once they are due, requeued ones at the end.
///
/// ```
/// use postroom::{Broker, Queue};
///
/// let broker = Broker::new();
/// let jobs: Queue<u32> = broker.queue("jobs").declare()?;
/// jobs.send(7).unwrap();
///
/// let delivery = jobs.recv().unwrap();
/// assert_eq!(*delivery.payload(), 7);
/// delivery.ack().unwrap();
/// assert!(jobs.is_empty());
/// # Ok::<(), postroom::Error>(())
/// ```
pub struct Queue<T> {
    pub(crate) core: Arc<Core<T>>,
}

impl<T: Send + Sync + 'static> Queue<T> {
    /// A queue without a broker, for use inside one module. It has a clock and, once something has to be
    /// delayed, a scheduler thread of its own. It ends when [`Queue::close`] has been called and its
    /// handles are dropped.
    ///
    /// ```
    /// use postroom::{Queue, QueueBuilder};
    ///
    /// let queue: Queue<u32> = Queue::standalone(QueueBuilder::new("scratch").capacity(10))?;
    /// queue.send(1).unwrap();
    /// assert_eq!(queue.len(), 1);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with the description at once.
    pub fn standalone(description: QueueBuilder<T>) -> Result<Self, Error> {
        let mut problems = description.problems();
        if description.settings.durable.is_some() {
            problems.push(NO_STORE.into());
        }
        Error::unless_none(description.subject(), problems)?;
        let options = Options { blocked_warning: Duration::from_secs(1), ..Options::default() };
        let runtime = Runtime::new(Clock::system(), None, options);
        let QueueBuilder { name, settings, keys, dead_letters, .. } = description;
        Ok(Self::build(runtime, name.into(), settings, keys, dead_letters))
    }

    pub(crate) fn build(
        runtime: Arc<Runtime>,
        name: Arc<str>,
        settings: Settings,
        keys: Keys<T>,
        dead_letters: Option<Queue<DeadLetter<T>>>,
    ) -> Self {
        let own = || Queue::for_letters_as(dead_letter_name(&name).into(), Arc::clone(&runtime), settings.durable);
        let dead = dead_letters.unwrap_or_else(own);
        dead.core.make_terminal();
        let sink: Arc<dyn DeadLetterSink<T>> = dead.core;
        Self { core: Core::new(name, settings, keys, runtime, Some(sink)) }
    }

    /// A queue with no dead letters of its own, to hold those of others.
    pub(crate) fn for_letters(name: Arc<str>, runtime: Arc<Runtime>) -> Self {
        Self::for_letters_as(name, runtime, None)
    }

    pub(crate) fn for_letters_as(name: Arc<str>, runtime: Arc<Runtime>, durable: Option<Mode>) -> Self {
        let settings = Settings { durable, ..Settings::default() };
        Self { core: Core::new(name, settings, KeyRule::Unordered, runtime, None) }
    }

    /// A queue for what another's codec refuses. Its messages are in the file, and only a few of them in memory, so it
    /// takes them all.
    #[cfg(feature = "sqlite")]
    pub(crate) fn for_undecodable(name: Arc<str>, runtime: Arc<Runtime>, durability: Mode) -> Self {
        let settings = Settings { capacity: u64::MAX, durable: Some(durability), ..Settings::default() };
        let core = Core::new(name, settings, KeyRule::Unordered, runtime, None);
        core.make_terminal();
        Self { core }
    }

    pub(crate) fn from_core(core: Arc<Core<T>>) -> Self {
        Self { core }
    }

    /// The name it was declared under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    // ---- sending ---------------------------------------------------------------------------------

    /// Puts a message into the queue, waiting for room if that is the queue's policy.
    ///
    /// # Errors
    /// Gives the message back if the queue is full and refuses (`Reject`), is closed, or would never have
    /// room again.
    #[inline]
    pub fn send(&self, message: impl Into<Message<T>>) -> Result<MessageId, SendError<T>> {
        self.send_with(message.into(), Patience::Forever).map_err(|refused| self.core.send_error(refused))
    }

    /// Puts a message into the queue without ever waiting.
    ///
    /// # Errors
    /// Gives the message back if the queue is full and refuses or would wait, or is closed.
    #[inline]
    pub fn try_send(&self, message: impl Into<Message<T>>) -> Result<MessageId, TrySendError<T>> {
        self.send_with(message.into(), Patience::None).map_err(|refused| self.core.try_send_error(refused))
    }

    /// Puts a message into the queue, waiting for room at most `timeout`.
    ///
    /// # Errors
    /// Gives the message back if there was no room in time, or as [`Queue::send`] does.
    pub fn send_timeout(
        &self,
        message: impl Into<Message<T>>,
        timeout: Duration,
    ) -> Result<MessageId, SendTimeoutError<T>> {
        let patience = self.patience(timeout);
        self.send_with(message.into(), patience).map_err(|refused| self.core.send_timeout_error(refused))
    }

    /// Puts many messages into the queue at a fraction of the cost of one by one, waiting for room where
    /// that is the queue's policy; how many that were. They stay together unless the queue fills up
    /// between them.
    ///
    /// # Errors
    /// Stops at the first message that is refused, as by [`Queue::send`]; the error holds that one and all
    /// after it.
    pub fn send_batch<M: Into<Message<T>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<usize, BatchError<T, SendError<T>>> {
        in_chunks(
            messages.into_iter(),
            || self.core.spare(),
            |chunk| {
                take_while_delayed(chunk, |message| self.core.take_later(message));
                self.core.runtime.prepare_all(chunk.iter_mut());
                self.core.accept_chunk(chunk).map_err(|refused| self.core.send_error(refused))
            },
        )
    }

    #[inline(always)]
    fn send_with(&self, message: Message<T>, patience: Patience) -> Result<MessageId, (Message<T>, Refusal)> {
        match message.into_bare() {
            Ok(payload) => self.send_bare(payload, patience),
            Err(message) if message.has_only_delay() => self.send_delayed(message, patience),
            Err(message) => self.send_now(message, patience),
        }
    }

    #[inline(never)]
    fn send_bare(&self, payload: T, patience: Patience) -> Result<MessageId, (Message<T>, Refusal)> {
        if self.core.is_special {
            return self.send_now(Message::new(payload), patience);
        }
        let stamp = self.core.runtime.next_stamp();
        if let Some(mut place) = self.core.place_for_bare() {
            place.put_bare(stamp, payload);
            self.core.placed(place);
            return Ok(stamp.id);
        }
        self.send_now(Message::stamped(stamp, payload), patience)
    }

    #[inline(never)]
    fn send_now(&self, mut message: Message<T>, patience: Patience) -> Result<MessageId, (Message<T>, Refusal)> {
        self.core.stamp(&mut message);
        let id = message.id;
        if let Some(mut place) = self.core.place_for(&message) {
            place.chunk().push_back(message);
            self.core.placed(place);
            return Ok(id);
        }
        if self.core.is_ordered() && !message.is_timed() && !self.core.is_durable() {
            return self.send_in_order(message, patience).map(|()| id);
        }
        self.core.accept(message, patience).map(|_| id)
    }

    #[inline(never)]
    fn send_delayed(&self, message: Message<T>, patience: Patience) -> Result<MessageId, (Message<T>, Refusal)> {
        let mut message = match self.core.take_later(message) {
            Ok(id) => return Ok(id),
            Err(message) => message,
        };
        self.core.stamp(&mut message);
        let id = message.id;
        self.core.accept(message, patience).map(|_| id)
    }

    #[inline(never)]
    fn send_in_order(&self, mut message: Message<T>, patience: Patience) -> Result<(), (Message<T>, Refusal)> {
        match self.core.place_in_order(&mut message) {
            Ok(mut place) => {
                place.chunk().push_back(message);
                self.core.placed_in_order(place);
                Ok(())
            }
            Err(Refusal::Full) => self.core.accept(message, patience).map(drop),
            Err(refusal) => Err((message, refusal)),
        }
    }

    // ---- receiving -------------------------------------------------------------------------------

    /// The next message, waiting for one.
    ///
    /// # Errors
    /// [`RecvError::Closed`] once the queue is closed and empty.
    #[inline]
    pub fn recv(&self) -> Result<Delivery<T>, RecvError> {
        self.core.note_receiver();
        let mut slot = None;
        if !self.core.take_plain(&mut slot)
            && let Err(nothing) = self.core.take_into(&mut slot, Patience::Forever)
        {
            return Err(if nothing == Nothing::Deadlock { RecvError::Deadlock } else { RecvError::Closed });
        }
        Ok(Delivery::of(slot, Arc::clone(&self.core)))
    }

    /// The next message, if one is ready now.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] if none is, [`TryRecvError::Closed`] if none ever will be.
    #[inline]
    pub fn try_recv(&self) -> Result<Delivery<T>, TryRecvError> {
        self.core.note_receiver();
        let mut slot = None;
        if !self.core.take_plain(&mut slot)
            && let Err(nothing) = self.core.take_into(&mut slot, Patience::None)
        {
            return Err(if nothing == Nothing::Closed { TryRecvError::Closed } else { TryRecvError::Empty });
        }
        Ok(Delivery::of(slot, Arc::clone(&self.core)))
    }

    /// The next message, waiting at most `timeout` on the broker's clock.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Timeout`] if none came, [`RecvTimeoutError::Closed`] if none ever will.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Delivery<T>, RecvTimeoutError> {
        self.core.note_receiver();
        let taken = self.core.take(self.patience(timeout), || true);
        taken.map(|message| self.deliver(message)).map_err(|nothing| match nothing {
            Nothing::Closed => RecvTimeoutError::Closed,
            _ => RecvTimeoutError::Timeout,
        })
    }

    /// Up to `max` messages (at least 1 counts as asked for), waiting only for the first of them. It may end before a
    /// batch that was sent as one and has just the right size for the next call.
    ///
    /// # Errors
    /// As [`Queue::recv`].
    pub fn recv_batch(&self, max: usize) -> Result<Batch<T>, RecvError> {
        self.core.note_receiver();
        let mut batch = Chunk::new();
        match self.core.take_batch(max.max(1), &mut batch, Portion::Whole, Patience::Forever, || true) {
            Ok(()) => Ok(Batch::new(batch, Arc::clone(&self.core))),
            Err(Nothing::Deadlock) => Err(RecvError::Deadlock),
            Err(_) => Err(RecvError::Closed),
        }
    }

    /// Deliveries until the queue is closed and empty, waiting for each.
    pub fn iter(&self) -> impl Iterator<Item = Delivery<T>> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// Prepares worker threads that handle its messages.
    pub fn consumer(&self) -> ConsumerBuilder<T> {
        ConsumerBuilder::new(Arc::clone(&self.core))
    }

    #[inline]
    fn deliver(&self, message: Message<T>) -> Delivery<T> {
        Delivery::new(message, Arc::clone(&self.core))
    }

    fn patience(&self, timeout: Duration) -> Patience {
        Patience::Until(self.core.runtime.clock.now().after(timeout))
    }

    // ---- looking and clearing --------------------------------------------------------------------

    /// How many messages are ready to be delivered. By the time you look, it may have changed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.core.ready() as usize
    }

    /// Whether no message is ready; there may be some in flight or delayed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages are handed out and not yet settled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.core.in_flight() as usize
    }

    /// How many messages wait for their time: a delay, a retry, their turn under a limit per key, or room
    /// among the dead letters.
    #[must_use]
    pub fn delayed(&self) -> usize {
        self.core.delayed()
    }

    /// How many messages it may hold before its overflow policy acts.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.settings.capacity as usize
    }

    /// The next message without taking it; it shares its payload with the one in the queue.
    #[must_use]
    pub fn peek(&self) -> Option<Message<T>> {
        self.list(1).pop()
    }

    /// Up to `max` of the next messages without taking them; they share their payloads with those in the
    /// queue.
    #[must_use]
    pub fn list(&self, max: usize) -> Vec<Message<T>> {
        self.core.peek(max)
    }

    /// Throws away everything ready or delayed, and counts it; how many that were. What is in flight stays.
    pub fn purge(&self) -> usize {
        self.core.purge()
    }

    /// Takes everything ready or delayed out, oldest first, as if received and acked. Also after shutdown.
    #[must_use = "the messages are no longer in the queue"]
    pub fn drain(&self) -> Vec<Message<T>> {
        self.core.drain()
    }

    /// Where its dead letters go. A dead-letter queue gives up on nothing and has none of its own; what it
    /// answers here is closed and always empty.
    #[must_use]
    pub fn dead_letters(&self) -> Queue<DeadLetter<T>> {
        if let Some(sink) = &self.core.dead {
            return sink.queue();
        }
        Queue::none(dead_letter_name(&self.core.name), &self.core.runtime)
    }

    /// What it holds in the broker's file and cannot decode: dead letters of bytes, each with what its codec said as
    /// its last [error](DeadLetter::error), and otherwise as it was: id, keys, headers, attempts and history.
    ///
    /// It is a durable queue of its own, named `<queue>.undecodable`; list it, consume it, purge it. A queue and its
    /// own dead letters share one. A message gets there when its turn comes to be read from the file: then it moves
    /// there in one commit, [`Event::Undecodable`](crate::Event::Undecodable) tells, and it counts as dead-lettered,
    /// with [`Reason::Undecodable`](crate::Reason::Undecodable). It holds back no key. As many as there are fit in.
    ///
    /// Small messages that are sent together share a row of the file. If such a row is damaged, so that nobody can say
    /// which part of it is whose, each of them gets there: the first with all bytes of the row, the others with none,
    /// without ids. If not even their number can be told, it is the first alone.
    ///
    /// Once the codec (or the [upgrade](QueueBuilder::schema)) is mended, [redrive](Queue::redrive) them: they are
    /// decoded again, by what the queue is declared with now. What is decoded goes back to its queue, as any redriven
    /// dead letter does: its attempts start again, its history stays. What was a dead letter is again the one it was,
    /// among the queue's [dead letters](Queue::dead_letters). What still cannot be decoded stays, with the new error.
    /// [`Redrive::edit`](crate::Redrive::edit) mends bytes, with [`Undecoded::with_bytes`].
    ///
    /// A queue that is not durable has none; what this answers then is closed and always empty.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Queue, Reason};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-undecodable-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let texts: Queue<String> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// texts.send_batch(["17", "eighteen"].map(String::from)).unwrap();
    /// drop((broker, texts));
    ///
    /// // The next version of the program has numbers there, and has forgotten what is in the file.
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<u32> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// assert_eq!((orders.len(), orders.undecodable().len()), (0, 2));
    /// let letter = orders.undecodable().peek().unwrap();
    /// assert_eq!((letter.reason(), letter.bytes()), (&Reason::Undecodable, &b"\"17\""[..]));
    /// assert!(letter.error().unwrap().contains("invalid type"));
    /// drop((broker, orders));
    ///
    /// // The one after that knows better.
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<u32> = broker
    ///     .queue("orders")
    ///     .durable(Durability::Sync)
    ///     .schema(1, |_, bytes| Ok(serde_json::from_slice::<String>(bytes)?.parse()?))
    ///     .declare()?;
    /// let redriven = orders.undecodable().redrive().run()?;
    /// assert_eq!((redriven.moved, redriven.kept), (1, 1));
    /// assert_eq!(**orders.recv().unwrap(), 17);
    ///
    /// let mend = |letter: &postroom::DeadLetter<postroom::Undecoded>| letter.payload().clone().with_bytes("\"18\"");
    /// assert_eq!(orders.undecodable().redrive().edit(mend).run()?.moved, 1);
    /// assert_eq!(**orders.recv().unwrap(), 18);
    /// # drop((broker, orders, letter));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn undecodable(&self) -> Queue<DeadLetter<Undecoded>> {
        let apart = self.core.filed.get().and_then(|filed| filed.apart.as_ref());
        let none = || Queue::none(undecodable_name(&self.core.name), &self.core.runtime);
        apart.map_or_else(none, |apart| apart.queue.clone())
    }

    /// Closed, and always empty.
    fn none(name: String, runtime: &Arc<Runtime>) -> Self {
        let none = Core::new(name.into(), Settings::default(), KeyRule::Unordered, Arc::clone(runtime), None);
        none.close();
        Self { core: none }
    }

    /// Up to `max` of the delayed messages with the time each becomes ready, earliest first: delays,
    /// retries, and those held back by a rate limit per key. They share their payloads with those waiting. Of a durable
    /// queue's backlog, those that memory has: fewer, or none, while earlier ones are only in the file.
    #[must_use]
    pub fn list_delayed(&self, max: usize) -> Vec<(SystemTime, Message<T>)> {
        self.core.list_delayed(max)
    }

    /// How long a message sent now would wait to be handed out, estimated from what is ready and from the
    /// rate at which messages left between the two latest calls that were at least 100 ms apart. `None`
    /// until there have been two, or while nothing leaves.
    #[must_use]
    pub fn estimated_wait(&self) -> Option<Duration> {
        self.core.estimated_wait()
    }

    /// Changes how fast messages are handed out; `None` lifts the limit.
    ///
    /// # Errors
    /// If the rate is not a positive, finite number or its burst is 0.
    pub fn set_rate_limit(&self, rate: impl Into<Option<Rate>>) -> Result<(), Error> {
        self.core.set_rate_limit(self.checked(rate.into())?);
        Ok(())
    }

    /// Changes how fast messages of one key are handed out; `None` lifts the limit.
    ///
    /// # Errors
    /// If the rate is not a positive, finite number or its burst is 0.
    pub fn set_rate_limit_per_key(&self, rate: impl Into<Option<Rate>>) -> Result<(), Error> {
        self.core.set_rate_limit_per_key(self.checked(rate.into())?);
        Ok(())
    }

    /// Changes how fast messages are let in; `None` lifts the limit.
    ///
    /// # Errors
    /// If the rate is not a positive, finite number or its burst is 0.
    pub fn set_admission(&self, rate: impl Into<Option<Rate>>) -> Result<(), Error> {
        self.core.set_admission(self.checked(rate.into())?);
        Ok(())
    }

    fn checked(&self, rate: Option<Rate>) -> Result<Option<Rate>, Error> {
        let checked = rate.map(|rate| rate.checked()).transpose();
        checked.map_err(|problem| Error::new(format!("queue {:?}", self.name()), problem))
    }

    /// Its counters and what it holds now.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.core.stats()
    }

    /// Calls `callback` when `alarm` is raised, and again when it is cleared.
    ///
    /// It looks for the first time one interval from now, then every interval on the broker's clock; whatever
    /// happened between two looks goes unseen. The callback runs on the thread that all delays and retries of
    /// the broker wait for, so it must be quick: note the alert, count it, hand it to another thread. A panic
    /// in it is contained.
    ///
    /// The alarm stays on until [`AlarmHandle::remove`] or the broker's shutdown, whether or not the handle is
    /// kept. It does not keep the queue alive, but a callback that owns a handle to the queue does so until
    /// then.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: `low` above `high`, a `high` of zero, an interval below a
    /// millisecond, a share that is not from 0 to 1, a broker that was shut down.
    pub fn alarm(&self, alarm: Alarm, callback: impl Fn(&Alert) + Send + Sync + 'static) -> Result<AlarmHandle, Error> {
        self.core.watch(alarm, Box::new(callback))
    }

    // ---- keys that are held back -------------------------------------------------------------------

    /// The keys that are held back since one of their messages failed for good, longest first; see
    /// [`QueueBuilder::on_exhausted`].
    ///
    /// ```
    /// use postroom::{Broker, Exhausted, Message, Queue, Retry};
    ///
    /// let (broker, simulation) = Broker::simulated(1);
    /// let transfers: Queue<i64> = broker
    ///     .queue("transfers")
    ///     .ordered_by(|cents: &i64| if *cents < 0 { "out" } else { "in" })
    ///     .on_exhausted(Exhausted::Park)
    ///     .retry(Retry::none())
    ///     .declare()?;
    /// transfers.consumer().start(|cents: &Message<i64>| {
    ///     if **cents == -5 { Err(std::io::Error::other("not covered")) } else { Ok(()) }
    /// })?;
    /// for cents in [-5, 10, -6, 20] {
    ///     transfers.send(cents).unwrap();
    /// }
    /// simulation.run_until_idle();
    ///
    /// let parked = transfers.parked();
    /// assert_eq!((parked[0].key.as_str(), parked[0].waiting), ("out", 2));
    /// assert_eq!(parked[0].error.as_deref(), Some("not covered"));
    /// assert_eq!(transfers.stats().acked, 2, "what comes in is not held up");
    ///
    /// assert_eq!(transfers.drop_key("out"), 2);
    /// assert_eq!(transfers.dead_letters().len(), 2);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[must_use]
    pub fn parked(&self) -> Vec<Parked> {
        self.core.parked()
    }

    /// Lets a parked key go on from the message that failed, whose attempts start again at 1; its history
    /// stays. Whether the key was parked.
    pub fn release_key(&self, key: impl AsRef<str>) -> bool {
        self.core.release_key(key.as_ref())
    }

    /// Makes dead letters of everything that waits under a parked key, in order: the message that failed with
    /// its reason, those behind it with [`Reason::KeyDropped`](crate::Reason::KeyDropped). How many those are;
    /// 0 if the key was not parked. What is sent under the key from now on flows.
    ///
    /// In a durable queue those that are only in the file are read for this, a portion at a time, and the key waits
    /// until all have been; should the file fail meanwhile, the rest of them stay and flow on.
    pub fn drop_key(&self, key: impl AsRef<str>) -> usize {
        self.core.drop_key(key.as_ref())
    }

    /// Whether it hands out nothing since a message failed for good; see [`Exhausted::Stop`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.core.is_stopped()
    }

    /// Ends such a stop: every parked key is released, and everything flows again. Whether it was stopped.
    pub fn resume(&self) -> bool {
        self.core.resume()
    }

    /// Takes no more messages from now on; receivers get what is left, what is delayed included, then find
    /// it closed. What is given back later stays, and can be drained.
    pub fn close(&self) {
        self.core.close();
    }
}

/// Why a queue cannot be durable.
pub(crate) const NO_STORE: &str = "durable, but there is no file to keep it in: see Broker::open";

/// The name of the dead-letter queue that a queue has unless it is given another.
pub(crate) fn dead_letter_name(queue: &str) -> String {
    format!("{queue}.dead")
}

/// The name of the queue for what a durable queue cannot decode.
pub(crate) fn undecodable_name(queue: &str) -> String {
    format!("{queue}.undecodable")
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Gives a message its id and time.
    #[inline]
    pub(crate) fn stamp(&self, message: &mut Message<T>) {
        self.runtime.prepare(message);
    }

    /// Accepts the messages one after the other, many under one lock where there is room. What was not
    /// reached when one is refused stays in `chunk`.
    pub(crate) fn accept_chunk(&self, chunk: &mut Chunk<Message<T>>) -> Result<(), (Message<T>, Refusal)> {
        if self.is_durable() {
            return self.accept_chunk_durably(chunk);
        }
        let singly = self.is_special
            || self.settings.admission.is_some()
            || chunk.iter().any(|message| message.extras.is_some());
        while !chunk.is_empty() {
            let refusal = if singly { Some(Refusal::Full) } else { self.offer_all(chunk).err() };
            let Some(refusal) = refusal else { break };
            let first = chunk.pop_front().expect("one of them was refused");
            match refusal {
                // The overflow policy acts for each.
                Refusal::Full => _ = self.accept(first, Patience::Forever)?,
                refusal => return Err((first, refusal)),
            }
        }
        Ok(())
    }
}

/// Has those at the front of a chunk that have only a delay taken by their short way, as far as that goes.
#[inline]
pub(crate) fn take_while_delayed<T, R>(
    chunk: &mut Chunk<Message<T>>,
    mut take: impl FnMut(Message<T>) -> Result<R, Message<T>>,
) {
    while chunk.front().is_some_and(Message::has_only_delay) {
        let Some(message) = chunk.pop_front() else { return };
        if let Err(message) = take(message) {
            return chunk.push_front(message);
        }
    }
}

/// Sends messages in chunks through `accept`, which leaves in the chunk what it did not reach. On refusal:
/// how many were accepted, why the next was not, and the rest. The iterator is the caller's code, so it
/// runs outside all locks. `spare` may have an empty chunk that was used before.
pub(crate) fn in_chunks<T, M: Into<Message<T>>, E>(
    mut messages: impl Iterator<Item = M>,
    spare: impl Fn() -> Chunk<Message<T>>,
    mut accept: impl FnMut(&mut Chunk<Message<T>>) -> Result<(), E>,
) -> Result<usize, BatchError<T, E>> {
    let mut chunk = Chunk::new();
    let mut accepted = 0;
    loop {
        let (least, most) = messages.size_hint();
        if most == Some(0) {
            return Ok(accepted);
        }
        if least >= FEW && chunk.capacity() == 0 {
            chunk = spare();
        }
        fill(&mut chunk, messages.by_ref().map(Into::into));
        let n = chunk.len();
        if n == 0 {
            return Ok(accepted);
        }
        if let Err(cause) = accept(&mut chunk) {
            accepted += n - chunk.len() - 1;
            return Err(BatchError {
                accepted,
                cause,
                rest: chunk.into_iter().chain(messages.map(Into::into)).collect(),
            });
        }
        accepted += n;
    }
}

/// Few enough to be copied once more where it turns out that there are many.
const FEW: usize = 8;

/// Fills an empty chunk, as far as there is something to fill it with.
fn fill<M>(chunk: &mut Chunk<M>, mut messages: impl Iterator<Item = M>) {
    let full = chunk_len::<M>();
    if messages.size_hint().0 < FEW {
        // A chunk that doubled its memory time and again would copy each of them about once.
        chunk.extend(messages.by_ref().take(FEW));
        if chunk.len() < FEW {
            return;
        }
        chunk.reserve_exact(full - FEW);
    }
    chunk.extend(messages.take(full - chunk.len()));
}

/// What a queue's answer means to whoever counts copies.
impl Accepted {
    pub(crate) fn is_routed(self) -> bool {
        self != Self::Dropped
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name()).field("len", &self.len()).finish_non_exhaustive()
    }
}
