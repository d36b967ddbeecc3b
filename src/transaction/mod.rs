//! Several publishes that happen together or not at all.

mod basket;
mod commit;
#[cfg(feature = "sqlite")]
mod durably;
mod error;
mod staged;

pub(crate) use staged::spot_in;

pub use error::{Obstacle, StageError, TransactionError, Unpublished};

use crate::broker::Broker;
use crate::error::Refused;
use crate::log::Log;
use crate::message::{Message, MessageId};
use crate::outcome::Failure;
use crate::queue::Queue;
use crate::queue::core::Patience;
use crate::runtime::Runtime;
use crate::topic::Topic;
use staged::{Append, Enqueue, Publish, Staged};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Publishes that are staged, to happen together or not at all; see [`Broker::transaction`].
///
/// Nothing of it is visible, takes up room, or has been routed before it is committed. Dropping it is how it is
/// given up.
#[must_use = "nothing is published before it is committed"]
pub struct Transaction {
    runtime: Arc<Runtime>,
    operations: Vec<Box<dyn Staged>>,
}

impl Broker {
    /// Publishes together what `stage` stages, if it answers `Ok`. If it answers an error or panics, nothing is
    /// published.
    ///
    /// ```
    /// use postroom::{Broker, Log, Queue, Topic, TransactionError};
    ///
    /// let broker = Broker::new();
    /// let orders: Topic<u32> = broker.topic("orders").declare()?;
    /// let billing: Queue<u32> = broker.queue("billing").declare()?;
    /// let mail: Queue<String> = broker.queue("mail").declare()?;
    /// let audit: Log<&str> = broker.log("audit").declare()?;
    /// orders.bind(&billing, "order.*")?;
    ///
    /// broker.transaction(|tx| {
    ///     tx.publish(&orders, "order.placed", 7)?;
    ///     tx.send(&mail, "thank you".to_string())?;
    ///     tx.append(&audit, "placed")?;
    ///     assert!(billing.is_empty(), "nothing is visible yet");
    ///     Ok(())
    /// })?;
    /// assert_eq!((billing.len(), mail.len(), audit.len()), (1, 1, 1));
    ///
    /// let refused = broker.transaction(|tx| {
    ///     tx.publish(&orders, "order.placed", 8)?;
    ///     let _cents: u32 = "free".parse()?;
    ///     Ok(())
    /// });
    /// assert!(matches!(refused, Err(TransactionError::RolledBack(_))));
    /// assert_eq!(billing.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// **What together means.** First all messages are routed, then everything they reach promises to take
    /// them; only then is anything put in. All of it is put in under the locks of the queues, partitions and
    /// subscribers it goes to, held together: whoever sees one of the messages finds all others in place. Several
    /// messages to one queue stand there in the order they were staged, with none of others between them. Apart from
    /// that:
    ///
    /// * A message with a delay becomes visible when that ends. Delays, times to live and ids are as for a
    ///   publish at the moment of the commit.
    /// * A full queue whose policy drops or dead-letters does so; its dead letters come right after the rest.
    ///
    /// **Waiting.** As [`Topic::publish`](crate::Topic::publish) it waits for room in full queues whose policy
    /// that is, holding nothing meanwhile, so that two transactions cannot wait for each other; a worker that
    /// would wait for itself gets [`Obstacle::Deadlock`]. It goes on once there is room for all of its messages
    /// to that queue at once. On a queue that others keep full one by one, a transaction of many messages may
    /// wait for long; one that could not take them if it were empty is refused at once
    /// ([`Obstacle::TooLarge`]).
    ///
    /// # Errors
    /// [`TransactionError::RolledBack`] with what `stage` answered. [`TransactionError::Refused`] if an
    /// operation cannot be carried out: it says which and why, and gives everything back to be committed again.
    pub fn transaction<R>(
        &self,
        stage: impl FnOnce(&mut Transaction) -> Result<R, Failure>,
    ) -> Result<R, TransactionError> {
        self.transact(Patience::Forever, stage)
    }

    /// As [`Broker::transaction`], without ever waiting.
    ///
    /// # Errors
    /// As [`Broker::transaction`], and [`Obstacle::Full`] where that would wait.
    pub fn try_transaction<R>(
        &self,
        stage: impl FnOnce(&mut Transaction) -> Result<R, Failure>,
    ) -> Result<R, TransactionError> {
        self.transact(Patience::None, stage)
    }

    /// As [`Broker::transaction`], waiting for room at most `timeout` from the moment all is staged.
    ///
    /// # Errors
    /// As [`Broker::transaction`], and [`Obstacle::Timeout`] if a queue stayed full.
    pub fn transaction_timeout<R>(
        &self,
        timeout: Duration,
        stage: impl FnOnce(&mut Transaction) -> Result<R, Failure>,
    ) -> Result<R, TransactionError> {
        let mut transaction = Transaction::new(self.runtime());
        let answer = stage(&mut transaction).map_err(TransactionError::RolledBack)?;
        transaction.commit_timeout(timeout)?;
        Ok(answer)
    }

    fn transact<R>(
        &self,
        patience: Patience,
        stage: impl FnOnce(&mut Transaction) -> Result<R, Failure>,
    ) -> Result<R, TransactionError> {
        let mut transaction = Transaction::new(self.runtime());
        let answer = stage(&mut transaction).map_err(TransactionError::RolledBack)?;
        transaction.carry_out(patience)?;
        Ok(answer)
    }
}

impl Transaction {
    pub(crate) fn new(runtime: &Arc<Runtime>) -> Self {
        Self { runtime: Arc::clone(runtime), operations: Vec::new() }
    }

    /// Stages a publish. What the routing key leads to is found out at the commit.
    ///
    /// # Errors
    /// If the topic belongs to another broker.
    pub fn publish<T: Send + Sync + 'static>(
        &mut self,
        topic: &Topic<T>,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, StageError<T>> {
        let core = Arc::clone(&topic.core);
        let message = message.into();
        let given = message.id != MessageId::default();
        let message = self.claim(message, &core.runtime, &core.name)?;
        let id = message.id;
        self.operations.push(Box::new(Publish::new(core, message, key.as_ref(), given)));
        Ok(id)
    }

    /// Stages a message for a queue.
    ///
    /// # Errors
    /// If the queue belongs to another broker, or to none.
    pub fn send<T: Send + Sync + 'static>(
        &mut self,
        queue: &Queue<T>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, StageError<T>> {
        let core = Arc::clone(&queue.core);
        let message = self.claim(message.into(), &core.runtime, &core.name)?;
        let id = message.id;
        self.operations.push(Box::new(Enqueue::new(core, message)));
        Ok(id)
    }

    /// Stages a record for a log.
    ///
    /// # Errors
    /// If the log belongs to another broker.
    pub fn append<T: Send + Sync + 'static>(
        &mut self,
        log: &Log<T>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, StageError<T>> {
        let log = Arc::clone(&log.core);
        let message = self.claim(message.into(), &log.shelf.runtime, &log.shelf.name)?;
        let id = message.id;
        self.operations.push(Box::new(Append::new(log, message)));
        Ok(id)
    }

    /// How many operations are staged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether nothing is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Publishes everything, as [`Broker::transaction`] does: for one that was refused and given back.
    ///
    /// # Errors
    /// [`TransactionError::Refused`], with everything inside.
    pub fn commit(self) -> Result<(), TransactionError> {
        self.carry_out(Patience::Forever)
    }

    /// As [`Transaction::commit`], without ever waiting.
    ///
    /// # Errors
    /// [`TransactionError::Refused`], with everything inside.
    pub fn try_commit(self) -> Result<(), TransactionError> {
        self.carry_out(Patience::None)
    }

    /// As [`Transaction::commit`], waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`TransactionError::Refused`], with everything inside.
    pub fn commit_timeout(self, timeout: Duration) -> Result<(), TransactionError> {
        let deadline = self.runtime.clock.now().after(timeout);
        self.carry_out(Patience::Until(deadline))
    }

    fn carry_out(mut self, patience: Patience) -> Result<(), TransactionError> {
        match commit::carry_out(&mut self.operations, patience) {
            Ok(()) => Ok(()),
            Err(trouble) => Err(TransactionError::Refused(Box::new(Unpublished::new(self, trouble)))),
        }
    }

    /// Gives a message its id, if it belongs here.
    fn claim<T>(
        &self,
        mut message: Message<T>,
        runtime: &Arc<Runtime>,
        name: &Arc<str>,
    ) -> Result<Message<T>, StageError<T>> {
        if !Arc::ptr_eq(runtime, &self.runtime) {
            return Err(StageError::Foreign(Refused::new(message, name)));
        }
        message.forget_request();
        if message.id == MessageId::default() {
            message.id = self.runtime.next_id().into();
        }
        Ok(message)
    }
}

impl Drop for Transaction {
    /// One by one, since a second panic on the way out would abort the process.
    fn drop(&mut self) {
        self.operations.drain(..).for_each(|operation| operation.discard());
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<String> = self.operations.iter().map(|operation| operation.target()).collect();
        f.debug_struct("Transaction").field("operations", &targets).finish()
    }
}
