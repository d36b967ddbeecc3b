//! One small type per operation. Whatever refuses a message gives it back.

use crate::message::Message;
use crate::queue::durable::FileError;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error as ThisError;

/// Why nothing can be set up any more.
pub(crate) const SHUT_DOWN: &str = "the broker was shut down";

/// Why a topic, queue, binding or consumer could not be set up: every problem of that declaration at once.
///
/// ```
/// use postroom::{Broker, Queue, Retry};
///
/// let broker = Broker::new();
/// let declared: Result<Queue<u32>, _> =
///     broker.queue("billing").capacity(0).retry(Retry::none().max_attempts(0)).declare();
/// let error = declared.unwrap_err();
/// assert_eq!(error.problems().len(), 2);
/// assert!(error.to_string().contains("queue \"billing\""));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    subject: String,
    problems: Vec<String>,
}

impl Error {
    pub(crate) fn new(subject: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { subject: subject.into(), problems: vec![problem.into()] }
    }

    /// With everything that is wrong, which is something.
    pub(crate) fn all(subject: impl Into<String>, problems: Vec<String>) -> Self {
        debug_assert!(!problems.is_empty());
        Self { subject: subject.into(), problems }
    }

    /// `Ok` if there are no problems.
    pub(crate) fn unless_none(subject: impl Into<String>, problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self::all(subject, problems)) }
    }

    /// What could not be set up, such as `queue "billing"`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Everything that is wrong with it, a sentence each.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.problems.join("; "))
    }
}

impl std::error::Error for Error {}

/// A message that was not taken, with the name of whoever refused it. Dereferences to the message.
#[derive(Debug)]
pub struct Refused<T> {
    message: Message<T>,
    by: Arc<str>,
    kind: Kind,
    detail: Option<Box<str>>,
    retry_in: Option<Duration>,
    under_way: bool,
    file_error: Option<Box<FileError>>,
}

impl<T> Refused<T> {
    pub(crate) fn new(mut message: Message<T>, by: &Arc<str>) -> Self {
        message.forget_request();
        message.leave_order();
        Self {
            message,
            by: Arc::clone(by),
            kind: Kind::Queue,
            detail: None,
            retry_in: None,
            under_way: false,
            file_error: None,
        }
    }

    pub(crate) fn because(mut self, detail: impl Into<Box<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn not_stored(mut self, error: FileError) -> Self {
        self.file_error = Some(Box::new(error));
        self
    }

    /// Not taken by the broker's file: why.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn store_error(&self) -> Option<&crate::store::StoreError> {
        self.file_error.as_deref()
    }

    /// The same in words.
    pub(crate) fn file_error(&self) -> String {
        self.file_error.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    pub(crate) fn limited(mut self, retry_in: Duration) -> Self {
        self.retry_in = Some(retry_in);
        self
    }

    pub(crate) fn under_way(mut self, under_way: bool) -> Self {
        self.under_way = under_way;
        self
    }

    /// Refused as a duplicate: whether the message it repeats is just being published, and may fail.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    pub(crate) fn by_subscriber(mut self) -> Self {
        self.kind = Kind::Subscriber;
        self
    }

    pub(crate) fn by_log(mut self) -> Self {
        self.kind = Kind::Log;
        self
    }

    pub(crate) fn by_topic(mut self) -> Self {
        self.kind = Kind::Topic;
        self
    }

    /// The queue, topic, log or subscriber that did not take it.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.by
    }

    /// Refused by an admission limit: how long until that lets another message pass, if no other comes
    /// first.
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        self.retry_in
    }

    /// The message, as it was offered.
    #[must_use]
    pub fn into_message(self) -> Message<T> {
        self.message
    }

    pub(crate) fn detail(&self) -> &str {
        self.detail.as_deref().unwrap_or("")
    }

    /// What refused it, with its kind.
    fn place(&self) -> String {
        let kind = match self.kind {
            Kind::Queue => "queue",
            Kind::Subscriber => "subscriber",
            Kind::Topic => "topic",
            Kind::Log => "log",
        };
        format!("{kind} {:?}", self.by())
    }
}

/// What refused a message.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Queue,
    Subscriber,
    Topic,
    Log,
}

impl<T> Deref for Refused<T> {
    type Target = Message<T>;
    fn deref(&self) -> &Message<T> {
        &self.message
    }
}

/// Why a topic did not take a message. No queue has got it then; it comes back inside.
#[derive(ThisError)]
#[non_exhaustive]
pub enum PublishError<T> {
    /// A queue it matches is full: `try_publish` with the policy `Wait`, or any publish with `Reject`. Or, for
    /// `try_publish`, a subscriber that is waited for ([`Lag::Block`](crate::Lag::Block)) is too far behind.
    #[error("{} is full", .0.place())]
    Full(Refused<T>),
    /// A queue it matches stayed full, or a subscriber too far behind, for the whole timeout.
    #[error("{} stayed full until the timeout", .0.place())]
    Timeout(Refused<T>),
    /// The broker is shutting down, or a queue it matches was closed.
    #[error("{:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// The topic is `mandatory` and nothing matches the message.
    #[error("no binding of topic {:?} matches routing key {:?}", .0.by(), .0.routing_key())]
    Unroutable(Refused<T>),
    /// Waiting for room would never end, because nothing else can drain the queue or
    /// have the subscriber catch up.
    #[error("waiting for {} would never end: {}", .0.place(), .0.detail())]
    Deadlock(Refused<T>),
    /// An admission limit lets nothing pass now; [`Refused::retry_in`] says when it will.
    #[error("{:?} is over its admission limit; again in {:?}", .0.by(), .0.retry_in().unwrap_or_default())]
    Limited(Refused<T>),
    /// A message of its id was published before, or is just being published; see
    /// [`TopicBuilder::refuse_duplicates`](crate::TopicBuilder::refuse_duplicates).
    #[error("topic {:?} has got a message of id {} before", .0.by(), .0.id())]
    Duplicate(Refused<T>),
    /// A filter, a user's router, or a queue's or log's function for the ordering key panicked while the message was
    /// routed.
    #[error("routing at {:?} {}", .0.by(), .0.detail())]
    Panicked(Refused<T>),
    /// The codec of a durable queue or log could not make bytes of the payload.
    #[error("encoding it for {}: {}", .0.place(), .0.detail())]
    Unencodable(Refused<T>),
    /// The broker's file did not take it (feature `sqlite`); `Refused::store_error` says why. After an error of input
    /// or output it may be there all the same once the file is opened again.
    #[error("the file of {} did not take it: {}", .0.place(), .0.file_error())]
    NotStored(Refused<T>),
}

/// Why [`Queue::send`](crate::Queue::send) did not take a message.
#[derive(ThisError)]
#[non_exhaustive]
pub enum SendError<T> {
    /// The queue is full and its policy is `Reject`.
    #[error("queue {:?} is full", .0.by())]
    Full(Refused<T>),
    /// The queue takes no more messages.
    #[error("queue {:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// Waiting for room would never end, because nothing else can drain the queue.
    #[error("waiting for queue {:?} would never end: {}", .0.by(), .0.detail())]
    Deadlock(Refused<T>),
    /// An admission limit lets nothing pass now; [`Refused::retry_in`] says when it will.
    #[error("queue {:?} is over its admission limit; again in {:?}", .0.by(), .0.retry_in().unwrap_or_default())]
    Limited(Refused<T>),
    /// The queue's function for the ordering key panicked.
    #[error("finding the ordering key for queue {:?} {}", .0.by(), .0.detail())]
    Panicked(Refused<T>),
    /// The codec of a durable queue could not make bytes of the payload.
    #[error("encoding it for queue {:?}: {}", .0.by(), .0.detail())]
    Unencodable(Refused<T>),
    /// The broker's file did not take it (feature `sqlite`); `Refused::store_error` says why. After an error of input
    /// or output it may be there all the same once the file is opened again.
    #[error("the file of queue {:?} did not take it: {}", .0.by(), .0.file_error())]
    NotStored(Refused<T>),
}

/// Why [`Queue::try_send`](crate::Queue::try_send) did not take a message.
#[derive(ThisError)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// The queue is full and its policy is `Wait` or `Reject`.
    #[error("queue {:?} is full", .0.by())]
    Full(Refused<T>),
    /// The queue takes no more messages.
    #[error("queue {:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// An admission limit lets nothing pass now; [`Refused::retry_in`] says when it will.
    #[error("queue {:?} is over its admission limit; again in {:?}", .0.by(), .0.retry_in().unwrap_or_default())]
    Limited(Refused<T>),
    /// The queue's function for the ordering key panicked.
    #[error("finding the ordering key for queue {:?} {}", .0.by(), .0.detail())]
    Panicked(Refused<T>),
    /// The codec of a durable queue could not make bytes of the payload.
    #[error("encoding it for queue {:?}: {}", .0.by(), .0.detail())]
    Unencodable(Refused<T>),
    /// The broker's file did not take it (feature `sqlite`); `Refused::store_error` says why. After an error of input
    /// or output it may be there all the same once the file is opened again.
    #[error("the file of queue {:?} did not take it: {}", .0.by(), .0.file_error())]
    NotStored(Refused<T>),
}

/// Why [`Queue::send_timeout`](crate::Queue::send_timeout) did not take a message.
#[derive(ThisError)]
#[non_exhaustive]
pub enum SendTimeoutError<T> {
    /// The queue stayed full for the whole timeout.
    #[error("queue {:?} stayed full until the timeout", .0.by())]
    Timeout(Refused<T>),
    /// The queue is full and its policy is `Reject`.
    #[error("queue {:?} is full", .0.by())]
    Full(Refused<T>),
    /// The queue takes no more messages.
    #[error("queue {:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// Waiting for room would never end, because nothing else can drain the queue.
    #[error("waiting for queue {:?} would never end: {}", .0.by(), .0.detail())]
    Deadlock(Refused<T>),
    /// An admission limit lets nothing pass now; [`Refused::retry_in`] says when it will.
    #[error("queue {:?} is over its admission limit; again in {:?}", .0.by(), .0.retry_in().unwrap_or_default())]
    Limited(Refused<T>),
    /// The queue's function for the ordering key panicked.
    #[error("finding the ordering key for queue {:?} {}", .0.by(), .0.detail())]
    Panicked(Refused<T>),
    /// The codec of a durable queue could not make bytes of the payload.
    #[error("encoding it for queue {:?}: {}", .0.by(), .0.detail())]
    Unencodable(Refused<T>),
    /// The broker's file did not take it (feature `sqlite`); `Refused::store_error` says why. After an error of input
    /// or output it may be there all the same once the file is opened again.
    #[error("the file of queue {:?} did not take it: {}", .0.by(), .0.file_error())]
    NotStored(Refused<T>),
}

/// Why [`Log::append`](crate::Log::append) did not take a message.
#[derive(ThisError)]
#[non_exhaustive]
pub enum AppendError<T> {
    /// The broker is shutting down.
    #[error("log {:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// The log's function for the ordering key panicked.
    #[error("finding the ordering key for log {:?} {}", .0.by(), .0.detail())]
    Panicked(Refused<T>),
    /// The codec of a durable log could not make bytes of the payload.
    #[error("encoding it for log {:?}: {}", .0.by(), .0.detail())]
    Unencodable(Refused<T>),
    /// The broker's file did not take it (feature `sqlite`); `Refused::store_error` says why. After an error of input
    /// or output it may be there all the same once the file is opened again.
    #[error("the file of log {:?} did not take it: {}", .0.by(), .0.file_error())]
    NotStored(Refused<T>),
}

/// Why a log could not be read, or a group's position not be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum LogError {
    /// Retention has removed the record.
    #[error("partition {partition}: offset {asked} has been trimmed, the oldest is {oldest}")]
    Trimmed {
        /// The partition.
        partition: usize,
        /// The offset that was asked for.
        asked: u64,
        /// The oldest offset that is still there.
        oldest: u64,
    },
    /// There is no such record yet.
    #[error("partition {partition}: offset {asked} lies beyond the end, which is {end}")]
    BeyondEnd {
        /// The partition.
        partition: usize,
        /// The offset that was asked for.
        asked: u64,
        /// The offset of the next record to come.
        end: u64,
    },
    /// The log has fewer partitions.
    #[error("there is no partition {asked}: the log has {partitions}, counted from 0")]
    NoSuchPartition {
        /// The partition that was asked for.
        asked: usize,
        /// How many there are.
        partitions: usize,
    },
    /// The record is in the broker's file (feature `sqlite`) and no longer in memory, and the file could not be read:
    /// it is closed, or damaged. Nothing has changed, and asking again may help.
    #[error("partition {partition}: the file could not be read")]
    NotRead {
        /// The partition.
        partition: usize,
    },
    /// There is no record to read now.
    #[error("no record is there to read")]
    Empty,
    /// No record came in time.
    #[error("no record came in time")]
    TimedOut,
    /// The log is closed and read to its end.
    #[error("the log is closed and read to its end")]
    Closed,
    /// The group has been removed.
    #[error("the group has been removed")]
    Removed,
    /// In a simulation: nothing that could still run would ever append a record.
    #[error("waiting would never end: nothing in the simulation can append a record")]
    Deadlock,
}

/// A batch of which a part was not taken.
#[derive(ThisError)]
#[error("{accepted} messages taken, {} not: {cause}", .rest.len() + 1)]
pub struct BatchError<T, E> {
    /// How many messages, counted from the front, were taken.
    pub accepted: usize,
    /// Why the next one was not; it holds that message.
    #[source]
    pub cause: E,
    /// The messages after it, in order.
    pub rest: Vec<Message<T>>,
}

/// Why [`Queue::recv`](crate::Queue::recv) gave up.
// As wide as what stands in its place in a `Result` with a delivery, or the compiler would copy that in odd pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
#[repr(usize)]
pub enum RecvError {
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
    /// In a simulation: nothing that could still run would ever send a message.
    #[error("waiting would never end: nothing in the simulation can send a message")]
    Deadlock,
}

/// Why [`Queue::try_recv`](crate::Queue::try_recv) found nothing.
// See `RecvError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
#[repr(usize)]
pub enum TryRecvError {
    /// Nothing is ready now.
    #[error("no message is ready")]
    Empty,
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
}

/// Why [`Queue::recv_timeout`](crate::Queue::recv_timeout) found nothing.
// See `RecvError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
#[repr(usize)]
pub enum RecvTimeoutError {
    /// Nothing became ready in time.
    #[error("no message became ready in time")]
    Timeout,
    /// The queue is closed and empty.
    #[error("the queue is closed and empty")]
    Closed,
}

/// Why a [`Subscriber`](crate::Subscriber) did not receive a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum BroadcastError {
    /// It was too slow and has missed this many messages; the next receive goes on with the oldest one left.
    #[error("{0} messages were missed")]
    Lagged(u64),
    /// Nothing is there now: `try_recv`.
    #[error("no message is there")]
    Empty,
    /// Nothing came in time: `recv_timeout`.
    #[error("no message came in time")]
    Timeout,
    /// It was too slow and was cut off, as [`Lag::Disconnect`](crate::Lag::Disconnect) says.
    #[error("the subscriber was too slow and was disconnected")]
    Disconnected,
    /// Nothing is left and nobody can publish any more.
    #[error("the topic is closed and nothing is left")]
    Closed,
    /// In a simulation: nothing that could still run would ever publish.
    #[error("waiting would never end: nothing in the simulation can publish")]
    Deadlock,
}

/// Why a delivery could not be settled.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum SettleError {
    /// Shutdown has ended and reported the message as left; it went back to its queue, from where
    /// [`Queue::drain`](crate::Queue::drain) takes it.
    #[error("queue {queue:?} was shut down: the message counts as undelivered and can be drained")]
    ShutDown {
        /// The message's queue.
        queue: Arc<str>,
    },
    /// The queue's ack timeout was over: the message has been delivered again or given up on, so what was
    /// done with it may be done twice.
    #[error("queue {queue:?} took the message back when its ack timeout was over")]
    Late {
        /// The message's queue.
        queue: Arc<str>,
    },
}

/// The errors that hold a message show it only if its payload can be shown; they themselves need no
/// `T: Debug`, so that `unwrap` works on any payload.
macro_rules! shows_without_payload {
    ($($name:ident),*) => {$(
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

shows_without_payload!(PublishError, SendError, TrySendError, SendTimeoutError, AppendError);

impl<T, E: fmt::Display> fmt::Debug for BatchError<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchError({} taken, {} not: {})", self.accepted, self.rest.len() + 1, self.cause)
    }
}

macro_rules! gives_message_back {
    ($($name:ident { $($variant:ident),* })*) => {$(
        impl<T> $name<T> {
            /// The message, to try again or to keep.
            #[must_use]
            pub fn into_message(self) -> Message<T> {
                match self { $(Self::$variant(refused) => refused.into_message()),* }
            }

            /// The queue or topic that did not take it.
            #[must_use]
            pub fn by(&self) -> &str {
                match self { $(Self::$variant(refused) => refused.by()),* }
            }
        }
    )*};
}

gives_message_back! {
    PublishError { Full, Timeout, Closed, Unroutable, Deadlock, Limited, Panicked, Duplicate, Unencodable, NotStored }
    SendError { Full, Closed, Deadlock, Limited, Panicked, Unencodable, NotStored }
    TrySendError { Full, Closed, Limited, Panicked, Unencodable, NotStored }
    SendTimeoutError { Timeout, Full, Closed, Deadlock, Limited, Panicked, Unencodable, NotStored }
    AppendError { Closed, Panicked, Unencodable, NotStored }
}
