//! How a consumer is described and started.

use super::batch::Many;
use super::single::{One, Plain};
use super::squad::Squad;
use super::staging::Staging;
use super::work::{Hooks, Work};
use super::{Consumer, hire_first, subject};
use crate::breaker::CircuitBreaker;
use crate::dead_letter::Reason;
use crate::error::Error;
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome};
use crate::queue::core::Core;
use crate::transaction::Transaction;
use std::sync::Arc;
use std::time::Duration;

/// Describes a consumer; nothing runs until [`ConsumerBuilder::start`] or [`ConsumerBuilder::start_batch`].
#[must_use = "nothing runs until `start` is called"]
pub struct ConsumerBuilder<T> {
    pub(super) core: Arc<Core<T>>,
    pub(super) workers: usize,
    pub(super) hooks: Hooks<T>,
    pub(super) breaker: Option<CircuitBreaker>,
}

impl<T: Send + Sync + 'static> ConsumerBuilder<T> {
    pub(crate) fn new(core: Arc<Core<T>>) -> Self {
        let hooks = Hooks { before: None, after: None, on_give_up: None };
        Self { core, workers: 1, hooks, breaker: None }
    }

    /// How many threads handle messages at the same time. Default 1, which keeps them in order.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Called before each handling, on the worker. A panic in it counts as the handler's.
    pub fn before(mut self, hook: impl Fn(&Message<T>) + Send + Sync + 'static) -> Self {
        self.hooks.before = Some(Box::new(hook));
        self
    }

    /// Called after each handling with what came of it, on the worker. A panic in it changes nothing.
    pub fn after(mut self, hook: impl Fn(&Message<T>, &Outcome) + Send + Sync + 'static) -> Self {
        self.hooks.after = Some(Box::new(hook));
        self
    }

    /// Called before a message becomes a dead letter, on the worker. A panic in it changes nothing.
    pub fn on_give_up(mut self, hook: impl Fn(&Message<T>, &Reason) + Send + Sync + 'static) -> Self {
        self.hooks.on_give_up = Some(Box::new(hook));
        self
    }

    /// Stops taking messages while most handlings fail, and probes with one message now and then until one
    /// succeeds. Default: none, whatever fails.
    ///
    /// It belongs to this consumer: its workers share it, other consumers of the queue have nothing to do
    /// with it. While it is open, [`Consumer::stop`], [`Consumer::scale_to`] and [`Consumer::pause`] act at
    /// once, and the queue counts as one that nobody empties: shutdown and `wait_idle` wait for it only if
    /// the pause ends before their timeout.
    ///
    /// [`Event::CircuitOpened`](crate::Event::CircuitOpened) and
    /// [`Event::CircuitClosed`](crate::Event::CircuitClosed) tell of its changes.
    pub fn circuit_breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Starts the workers. Each takes one message at a time, calls `handler` and settles as it answers:
    /// `()` or `Ok` acks, an error retries or dead-letters (see [`Failure`](crate::Failure)), an
    /// [`Outcome`] says itself. A panic counts as a failed attempt and leaves the worker running.
    ///
    /// The workers run until [`Consumer::stop`] or the broker's shutdown, whether or not the returned
    /// handle is kept.
    ///
    /// # Errors
    /// Zero workers, a queue that is closed, a circuit breaker that cannot be (a window or a pause of zero, a
    /// share of failures that is not above 0 and at most 1), or a system that refuses a thread: none runs then.
    pub fn start<R, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&Message<T>) -> R + Send + Sync + 'static,
    {
        self.launch(Vec::new(), |hooks| One { call: Plain(handler), hooks })
    }

    /// Starts workers whose handlers stage what they publish: it is released, all together, once the handler
    /// has succeeded, and never if it fails, panics, or answers anything but success. So a retry does not
    /// publish twice.
    ///
    /// ```
    /// use postroom::{Broker, Failure, Message, Queue, Transaction};
    ///
    /// let (broker, simulation) = Broker::simulated(1);
    /// let orders: Queue<u32> = broker.queue("orders").declare()?;
    /// let parcels: Queue<u32> = broker.queue("parcels").declare()?;
    /// let target = parcels.clone();
    /// orders.consumer().start_transactional(move |order: &Message<u32>, tx: &mut Transaction| {
    ///     tx.send(&target, **order)?;
    ///     if order.attempt() == 1 { Err(Failure::transient("the printer is busy")) } else { Ok(()) }
    /// })?;
    /// orders.send(7).unwrap();
    /// simulation.advance(std::time::Duration::from_secs(1));
    /// assert_eq!((orders.stats().delivered, parcels.len()), (2, 1));
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// The release comes first and waits for room as a publish does; then the message is acked. If it is refused
    /// (a full queue that rejects, a closed one, a circle of waiting queues), the handling has failed and is
    /// retried. Under an ack timeout a handler that was too slow releases nothing: its message is another's by
    /// then. From the release on the timeout does not count. What a handler publishes in other ways than
    /// through its transaction is published at once.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::start`].
    pub fn start_transactional<R, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&Message<T>, &mut Transaction) -> R + Send + Sync + 'static,
    {
        self.launch(Vec::new(), |hooks| One { call: Staging(handler), hooks })
    }

    /// Starts workers that take up to `max` messages at a time. A worker waits for the first, then at
    /// most `linger` for the batch to fill, and calls `handler` with what there is. The answer settles
    /// all of them alike; a panic counts as a failed attempt of each. Without a `linger`, a batch may end before one
    /// that was sent as one and has just the right size for the next call.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::start`], and a `max` of zero.
    pub fn start_batch<R, H>(self, max: usize, linger: Duration, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
    {
        let problems = if max == 0 { vec!["batches of 0 messages: at least 1".to_owned()] } else { Vec::new() };
        self.launch(problems, |hooks| Many { handler, hooks, max, linger })
    }

    pub(super) fn launch<W: Work<T>>(
        self,
        mut problems: Vec<String>,
        work: impl FnOnce(Hooks<T>) -> W,
    ) -> Result<Consumer, Error> {
        if self.workers == 0 {
            problems.push("0 workers would handle nothing: at least 1".into());
        }
        if self.core.is_closed() {
            problems.push("the queue is closed".into());
        }
        problems.extend(self.breaker.iter().flat_map(CircuitBreaker::problems));
        Error::unless_none(subject(&self.core.name), problems)?;
        let squad = Squad::new(self.core, work(self.hooks), self.breaker);
        hire_first(&*squad, self.workers)?;
        Ok(Consumer { crew: squad })
    }
}
