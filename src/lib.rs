//! An embedded message queue: routing, acknowledgement, retry, dead letters and back-pressure inside one
//! process.
//!
//! For programs made of modules that must not call each other. One module publishes to a topic, others
//! consume from queues bound to it; neither knows the other. What fails is retried, what keeps failing
//! becomes a dead letter, and a full queue slows its producers down instead of eating the memory. A plain
//! synchronous library on `std::thread`: no server, no async runtime, no macros, no `unsafe`.
//!
//! ```
//! use postroom::{Broker, Failure, Message, QueueName, TopicName};
//! use std::time::Duration;
//!
//! struct OrderPlaced { id: u64, cents: u64 }
//!
//! // All that the modules share.
//! const ORDERS: TopicName<OrderPlaced> = TopicName::new("orders");
//! const BILLING: QueueName<OrderPlaced> = QueueName::new("billing");
//!
//! let broker = Broker::new();
//! let orders = broker.topic(ORDERS).declare()?;
//! let billing = broker.queue(BILLING).declare()?;
//! orders.bind(&billing, "order.*")?;
//!
//! billing.consumer().workers(4).start(|order: &Message<OrderPlaced>| -> Result<(), Failure> {
//!     println!("order {}: {} cents, attempt {}", order.id, order.cents, order.attempt());
//!     Ok(()) // an error here would be retried: 5 attempts, 100 ms doubling
//! })?;
//!
//! orders.publish("order.placed", OrderPlaced { id: 1, cents: 4200 })?;
//! let report = broker.shutdown(Duration::from_secs(5));
//! assert!(report.is_clean(), "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Messages live in memory: what is not settled when the process dies is lost, unless its queue or log is
//! [durable](guide#durable-queues) or it came through an [outbox](guide#outbox-and-inbox). The [`guide`] says what is
//! promised, shows it, and says [when a queue is the wrong tool](guide#when-a-queue-is-the-wrong-tool).
//!
//! # Where to find what
//!
//! | to | see |
//! |---|---|
//! | set up | [`Broker`], [`Topic`], [`Queue`], and their builders |
//! | select what reaches a queue | [`Routing`], [`Binding`], [`Pattern`], [`Headers`], [`Router`] |
//! | consume with workers | [`Queue::consumer`], [`Consumer`], [`Failure`], [`Classify`], [`Outcome`] |
//! | consume by hand | [`Queue::recv`], [`Delivery`], [`Batch`] |
//! | ask and wait for the reply | [`Topic::request`], [`Queue::request`], [`ConsumerBuilder::respond`], [`Message::reply`] |
//! | have every listener see every message | [`Topic::subscribe`], [`Subscriber`], [`Lag`] |
//! | keep everything, read it again | [`Broker::log`], [`Log`], [`Group`], [`Retention`], [`Replay`] |
//! | keep each key's messages in order | [`QueueBuilder::ordered_by`], [`Exhausted`], [`Queue::parked`] |
//! | deliver later, or regularly | [`Message::with_delay`], [`Timer`], [`Broker::schedule`] |
//! | publish several things together, or none | [`Broker::transaction`], [`ConsumerBuilder::start_transactional`] |
//! | publish what a database transaction decides | [`Topic::prepare`], [`Topic::publish_transactional`], [`CheckBack`] |
//! | do once what comes twice | [`QueueBuilder::idempotent`], [`Idempotency`], [`TopicBuilder::refuse_duplicates`] |
//! | limit and protect | [`QueueBuilder::rate_limit`], [`QueueBuilder::admission`], [`CircuitBreaker`], [`Alarm`] |
//! | say how often to try again | [`Retry`], [`DelayLevel`] |
//! | commit messages with your own rows, and do work once | `SqliteOutbox`, `PostgresOutbox`, and [their section of the guide](guide#outbox-and-inbox) |
//! | look after what failed | [`DeadLetter`], [`Queue::redrive`] |
//! | watch | [`Broker::stats`], [`Broker::describe`], [`Event`] |
//! | keep messages in a file until they are settled, or a log (feature `sqlite`) | `Broker::open`, `QueueBuilder::durable`, `LogBuilder::durable`, and [their section of the guide](guide#durable-queues) |
//! | see to what the file holds and the program cannot read any more | `QueueBuilder::schema`, `Queue::undecodable` |
//! | keep other things in that file | the module `store` |
//! | end | [`Broker::shutdown`], [`ShutdownReport`], [`Queue::drain`] |
//! | test | [`Broker::simulated`], [`Simulation`], [`ManualClock`], [`Broker::wait_idle`] |
//!
//! # Architecture
//!
//! ```text
//!            publish        route            store           deliver            settle
//! producer ----------> Topic ------> Queue: tail | head ---------> Delivery ------ ack ------> gone
//!                                     ^  ^                          |  |  |
//!                                     |  +--- delayed <--- retry ---+  |  +-- dead_letter --> Queue of
//!                                     |                                |                    dead letters
//!                                     +----------- requeue ------------+                          |
//!                                     +--------------------------- redrive -----------------------+
//! ```
//!
//! **A publish** stamps the message with an id and a time, finds the queues for its routing key (a cache
//! lookup, unless filters, headers or a [`Router`] have to see the message), and appends it. With several
//! queues, each first promises a place; if one cannot, the promises are taken back. A topic bound to a topic
//! is resolved in the same step, so a queue gets one copy however many ways lead to it.
//!
//! **A message has one owner at a time.**
//!
//! | where it is | owner | guarded by |
//! |---|---|---|
//! | being published | the publishing thread; an error gives it back | nothing |
//! | ready, not reached by a consumer yet | the queue's tail | the producers' lock |
//! | ready, next to be handed out | the queue's head | the consumers' lock |
//! | waiting for its retry | the queue's heap of delayed messages | that heap's lock |
//! | prepared, not yet published | the topic's table of half messages | that table's lock |
//! | in flight | the [`Delivery`], or the worker that handles it | nothing |
//! | given up on | the dead-letter queue | as in any queue |
//! | in a durable queue | the same, once the broker's file has it; what settles it deletes it there | as in any queue |
//! | in a log | the log, shared with whoever reads it | its partition's lock until it is read, then nothing |
//! | in a durable log | the same, once the broker's file has it; retention and compaction delete it there | as in any log |
//!
//! **Subscribers** share. A topic that has any keeps one ring: a publish writes into it once, under its lock, and
//! each subscriber has a cursor of its own. It takes a chunk of messages at a time, shared with all others, so
//! that the lock is not taken, and no count of references changes, for each message and subscriber. A chunk
//! is let go of when neither a capacity, nor what the topic is to remember, nor a subscriber that is waited for
//! needs it; who still reads in it keeps it alive. With queues beside subscribers, the ring promises a place
//! like a queue.
//!
//! **Locks.** The hand-off is not lock-free. A queue has two short mutexes, one for producers and one for
//! consumers; a consumer takes both only when the head is empty, a producer both only when the queue is
//! full, and a whole chunk of messages changes sides at once. A topic has eight route caches, each under a
//! mutex, and spreads threads over them. A ring has one mutex; a subscriber that finds nothing new watches an
//! atomic for a moment before it sleeps. Settling an ack takes no lock (with
//! [`max_in_flight`](QueueBuilder::max_in_flight) it takes the producers'). None of your code (handlers,
//! hooks, filters, routers, destructors of payloads) runs under any of these locks.
//!
//! A transaction holds the locks of all queues it fills for as long as that takes, in one order for all.
//!
//! **Logs.** A partition is a row of sealed segments and a tail. An append is a push to the tail under the
//! partition's lock; whoever reads up to the tail seals it, and goes through segments without a lock. A group keeps
//! a position for each partition, and a board of which partitions are ready, held, at rest or at their end; a worker
//! claims the next that is ready, handles some records, commits each, and gives it back. A compaction works beside
//! all that, on shares of the sealed segments, and replaces them in one step.
//!
//! **Threads.** Each worker of a [`Consumer`] is one, and each topic that has a [`CheckBack`] and prepares half
//! messages has one. A broker has one more, the scheduler, from the first
//! moment something has to wait for time; it moves due messages back into their queues and, under load,
//! refreshes the clock reading that stamps messages. A broker with a file has one that writes it. A relay of an outbox is one, on PostgreSQL two. There is no
//! other.
//!
//! **When something goes wrong.**
//!
//! * A *panic* in a handler is a failed attempt, and the worker goes on. In a filter or router it gives the
//!   message back to the publisher. In a hook or a payload's destructor it changes nothing.
//! * A *full* queue acts by its [`Overflow`] policy; redelivery needs no room.
//! * *Shutdown* shuts the entrance to all but the broker's own workers, waits until queues with consumers
//!   are at rest or the time is up, joins the threads, and reports the rest. Whoever settles after that
//!   finds the message back in its queue.
//!
//! The sources are meant to be read in the order of the modules in `lib.rs`; the heart is
//! `queue/core/mod.rs`.

#![forbid(unsafe_code)]
// What only durable queues ask of their neighbours has no use without them.
#![cfg_attr(not(feature = "sqlite"), allow(dead_code))]

// In reading order.
mod sync;
mod snooze;
mod error;
mod codec;
mod message;
mod outcome;
mod clock;
mod random;
mod rate;
mod stats;
mod timer;
mod route;
mod retry;
mod breaker;
mod burst;
mod heap;
mod idempotency;
mod scheduler;
mod deadlock;
mod simulation;
mod runtime;
mod queue;
mod name;
mod subscriber;
mod half;
mod topic;
mod delivery;
mod dead_letter;
mod consumer;
mod request;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod track;
mod log;
mod transaction;
#[cfg(feature = "sqlite")]
pub mod store;
mod alarm;
mod describe;
mod shutdown;
mod schedule;
mod broker;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod outbox;
pub mod guide;

pub use alarm::{Alarm, AlarmHandle, Alert, Level};
pub use breaker::{Circuit, CircuitBreaker};
pub use broker::{Broker, Builder};
pub use clock::ManualClock;
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "protobuf")]
pub use codec::Protobuf;
pub use codec::{Codec, CodecError};
pub use consumer::{Consumer, ConsumerBuilder};
pub use dead_letter::{DeadLetter, Reason, Redrive, Redriven};
pub use delivery::{Batch, Delivery};
pub use describe::{Description, GroupDescription, LogDescription, QueueDescription, TopicDescription};
pub use error::{
    AppendError, BatchError, BroadcastError, Error, LogError, PublishError, RecvError, RecvTimeoutError, Refused,
    SendError, SendTimeoutError, SettleError, TryRecvError, TrySendError,
};
pub use half::{
    CheckBack, Half, HalfError, HalfFate, IntoResolution, PrepareError, Published, Resolution, TransactionalError,
    Unsettled,
};
pub use idempotency::{Claim, Claimed, Idempotency, Window};
#[cfg(feature = "sqlite")]
pub use log::LogTicket;
pub use log::{
    Group, GroupBuilder, GroupConsumerBuilder, Log, LogBuilder, Offset, Reader, Record, Replay, Retention, Start,
};
pub use message::{Attempt, Message, MessageId};
pub use name::{LogName, Name, QueueName, TopicName};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use outbox::{DeadRow, InboxError, Once, OutboxError, OutboxStats, Relay, RelayBuilder, RelayStats};
#[cfg(feature = "postgres")]
pub use outbox::{PostgresInbox, PostgresOutbox};
#[cfg(feature = "sqlite")]
pub use outbox::{SqliteInbox, SqliteOutbox};
pub use outcome::{Classify, Failure, IntoOutcome, Outcome};
#[cfg(feature = "sqlite")]
pub use queue::Undecoded;
pub use queue::{Exhausted, Expired, Overflow, Parked, Queue, QueueBuilder};
pub use rate::Rate;
pub use request::{Fate, ReplyError, RequestError};
pub use retry::{DelayLevel, Retry};
pub use route::{Binding, Headers, Pattern, PatternError};
pub use runtime::Event;
pub use schedule::{Missed, Schedule, ScheduleBuilder, ScheduleInfo};
pub use shutdown::{Leftover, ShutdownReport};
pub use simulation::Simulation;
pub use stats::{FileStats, GroupStats, HalfStats, HandlingTime, LogStats, QueueStats, Stats, TopicStats};
pub use subscriber::{Lag, Subscriber, SubscriberBuilder, Subscription};
pub use timer::{Timer, TimerRef};
#[cfg(feature = "sqlite")]
pub use topic::Ticket;
pub use topic::{BindTarget, Receipt, Router, Routing, Topic, TopicBuilder};
pub use transaction::{Obstacle, StageError, Transaction, TransactionError, Unpublished};

/// The version of the `postgres` crate that the outbox and inbox take connections of.
#[cfg(feature = "postgres")]
pub use ::postgres;
/// The version of the `rusqlite` crate that the outbox and inbox take connections of.
#[cfg(feature = "sqlite")]
pub use ::rusqlite;

/// Keeps the README's code compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
