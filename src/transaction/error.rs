//! Why a transaction did not happen.

use super::Transaction;
use crate::error::Refused;
use crate::outcome::Failure;
use crate::queue::core::Refusal;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error as ThisError;

/// Why a message could not be staged. It comes back inside.
#[derive(ThisError)]
#[non_exhaustive]
pub enum StageError<T> {
    /// The topic, queue or log belongs to another broker than the transaction.
    #[error("{:?} belongs to another broker than the transaction", .0.by())]
    Foreign(Refused<T>),
}

impl<T> StageError<T> {
    /// The message.
    #[must_use]
    pub fn into_message(self) -> crate::Message<T> {
        match self {
            Self::Foreign(refused) => refused.into_message(),
        }
    }
}

impl<T> fmt::Debug for StageError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StageError({self})")
    }
}

/// Why nothing of a transaction was published.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum TransactionError {
    /// Its function said so, for this reason.
    #[error("rolled back: {0}")]
    RolledBack(Failure),
    /// An operation could not be carried out. All of them come back inside.
    #[error("{0}")]
    Refused(Box<Unpublished>),
}

impl TransactionError {
    /// The transaction as it was staged, if it was refused and can be tried again.
    #[must_use]
    pub fn into_transaction(self) -> Option<Transaction> {
        match self {
            Self::RolledBack(_) => None,
            Self::Refused(unpublished) => Some(unpublished.into_transaction()),
        }
    }
}

/// A transaction that was refused, with what was refused and why.
#[derive(Debug)]
pub struct Unpublished {
    transaction: Transaction,
    trouble: Trouble,
}

impl Unpublished {
    pub(super) fn new(transaction: Transaction, trouble: Trouble) -> Self {
        Self { transaction, trouble }
    }

    /// Which operation it was, counted from 0 in the order they were staged; the first one that needed what
    /// could not be had.
    #[must_use]
    pub fn operation(&self) -> usize {
        self.trouble.operation
    }

    /// What that operation was for, such as `topic "orders"`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.trouble.target
    }

    /// The queue, topic, log or subscriber that refused.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.trouble.by
    }

    /// Why it did.
    #[must_use]
    pub fn why(&self) -> &Obstacle {
        &self.trouble.why
    }

    /// The transaction as it was staged, to be [committed](Transaction::commit) later.
    pub fn into_transaction(self) -> Transaction {
        self.transaction
    }
}

impl fmt::Display for Unpublished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trouble { operation, target, by, why } = &self.trouble;
        write!(f, "operation {operation}, for {target}: {by:?} {why}")
    }
}

/// Why something could not be published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// It is full, and refuses or was not to be waited for.
    Full,
    /// It stayed full until the timeout.
    Timeout,
    /// It is closed.
    Closed,
    /// It could not take so many messages at once if it were empty.
    TooLarge {
        /// How many it was to take.
        messages: u64,
        /// How many it can hold.
        capacity: u64,
    },
    /// The topic is `mandatory` and nothing matches the message.
    Unroutable,
    /// Waiting for room would never end, for this reason.
    Deadlock(String),
    /// An admission limit lets nothing pass for so long.
    Limited(Duration),
    /// A filter, a user's router, or a queue's function for the ordering key panicked, in these words.
    Panicked(String),
    /// The codec of a durable queue could not make bytes of a payload, in these words.
    Unencodable(String),
    /// The broker's file did not take it, for this reason.
    NotStored(String),
    /// A message of its id was published before, or is being published; see
    /// [`TopicBuilder::refuse_duplicates`](crate::TopicBuilder::refuse_duplicates).
    Duplicate {
        /// It is just being published, and that may fail.
        under_way: bool,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("is full"),
            Self::Timeout => f.write_str("stayed full until the timeout"),
            Self::Closed => f.write_str("is closed"),
            Self::TooLarge { messages, capacity } => write!(f, "holds {capacity} messages, never {messages}"),
            Self::Unroutable => f.write_str("has no binding that matches"),
            Self::Deadlock(why) => write!(f, "would never have room: {why}"),
            Self::Limited(wait) => write!(f, "is over its admission limit; again in {wait:?}"),
            Self::Panicked(words) => write!(f, "could not route it: {words}"),
            Self::Unencodable(words) => write!(f, "could not encode it: {words}"),
            Self::NotStored(why) => write!(f, "could not be stored: {why}"),
            Self::Duplicate { under_way: false } => f.write_str("has got a message of this id before"),
            Self::Duplicate { under_way: true } => f.write_str("is just getting a message of this id"),
        }
    }
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Closed => Self::Closed,
            Refusal::Timeout => Self::Timeout,
            Refusal::Deadlock(why) => Self::Deadlock(why.into()),
            Refusal::Panicked(words) => Self::Panicked(words.into()),
            Refusal::Limited(wait) => Self::Limited(wait),
            Refusal::Unencodable(words) => Self::Unencodable(words.into()),
            Refusal::NotStored(error) => Self::NotStored(error.to_string()),
        }
    }
}

/// What went wrong at which operation.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) operation: usize,
    pub(super) target: String,
    pub(super) by: Arc<str>,
    pub(super) why: Obstacle,
}
