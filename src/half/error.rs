//! Why a half message could not be prepared or settled.

use super::{Half, HalfFate};
use crate::error::Refused;
use crate::message::{Message, MessageId};
use crate::transaction::Obstacle;
use std::fmt;
use thiserror::Error as ThisError;

/// Why [`Topic::prepare`](crate::Topic::prepare) did not take a message. It comes back inside.
#[derive(ThisError)]
#[non_exhaustive]
pub enum PrepareError<T> {
    /// The topic was declared without [`check_back`](crate::TopicBuilder::check_back), so nobody could say what
    /// became of a message whose producer has gone.
    #[error("topic {:?} has no check-back", .0.by())]
    NoCheckBack(Refused<T>),
    /// As many half messages are open as [`CheckBack::max_open`](crate::CheckBack::max_open) allows.
    #[error("topic {:?} has too many open half messages", .0.by())]
    TooMany(Refused<T>),
    /// A half message of its id is open already.
    #[error("topic {:?} has an open half message of id {} already", .0.by(), .0.id())]
    SameId(Refused<T>),
    /// The broker is shutting down.
    #[error("topic {:?} is closed", .0.by())]
    Closed(Refused<T>),
    /// The system refused the thread that is to ask the listener.
    #[error("topic {:?} has no thread for its check-back", .0.by())]
    NoThread(Refused<T>),
    /// The topic's half messages are durable, and its codec refuses the payload.
    #[error("topic {:?} cannot write it: {}", .0.by(), .0.detail())]
    Unencodable(Refused<T>),
    /// The topic's half messages are durable, and the file did not take it.
    #[error("the file did not take it for topic {:?}", .0.by())]
    NotStored(Refused<T>),
}

impl<T> PrepareError<T> {
    /// The message.
    #[must_use]
    pub fn into_message(self) -> Message<T> {
        match self {
            Self::NoCheckBack(refused)
            | Self::TooMany(refused)
            | Self::SameId(refused)
            | Self::Closed(refused)
            | Self::NoThread(refused)
            | Self::Unencodable(refused)
            | Self::NotStored(refused) => refused.into_message(),
        }
    }
}

impl<T> fmt::Debug for PrepareError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrepareError({self})")
    }
}

/// Why a half message could not be committed or rolled back.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum HalfError {
    /// It could not be published now. It stays open, and is asked about as before.
    #[error("{by:?} {why}")]
    Refused {
        /// Who refused it.
        by: String,
        /// Why.
        why: Obstacle,
    },
    /// It was settled in another way before.
    #[error("it is {0} already")]
    Settled(HalfFate),
    /// No half message of this id is open: it was settled, or never prepared.
    #[error("no half message of id {0} is open")]
    NotOpen(MessageId),
    /// Somebody else settles it at this moment; how, is not known yet.
    #[error("somebody else is settling it")]
    BeingSettled,
    /// The broker was shut down. The half message is where shutdown has reported it:
    /// [`Topic::drain_halves`](crate::Topic::drain_halves) takes it out.
    #[error("the broker was shut down")]
    Closed,
}

/// A half message that was not settled through its handle.
pub struct Unsettled<T: Send + Sync + 'static> {
    pub(super) why: HalfError,
    pub(super) half: Option<Half<T>>,
}

impl<T: Send + Sync + 'static> Unsettled<T> {
    /// Why not.
    #[must_use]
    pub fn why(&self) -> &HalfError {
        &self.why
    }

    /// The handle, if the half message may still be open. To drop it leaves the message to the check-back.
    #[must_use]
    pub fn into_half(self) -> Option<Half<T>> {
        self.half
    }
}

impl<T: Send + Sync + 'static> fmt::Display for Unsettled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the half message was not settled: {}", self.why)
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Unsettled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unsettled({})", self.why)
    }
}

impl<T: Send + Sync + 'static> std::error::Error for Unsettled<T> {}

/// Why [`Topic::publish_transactional`](crate::Topic::publish_transactional) has not come to an end.
#[derive(ThisError)]
#[non_exhaustive]
pub enum TransactionalError<T: Send + Sync + 'static> {
    /// The half message could not be prepared; the local transaction was not run.
    #[error("{0}")]
    Prepare(PrepareError<T>),
    /// The local transaction was run, and the half message could not be settled accordingly. If it is still open,
    /// the check-back will ask about it.
    #[error("{0}")]
    Settle(Unsettled<T>),
}

impl<T: Send + Sync + 'static> fmt::Debug for TransactionalError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransactionalError({self})")
    }
}
