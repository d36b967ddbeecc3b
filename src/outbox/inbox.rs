//! What inboxes of all databases have in common.

use crate::message::Message;
use crate::outbox::envelope::is_stable;
use crate::outbox::error::OutboxError;
use crate::outcome::{Failure, IntoOutcome, Outcome};
use std::fmt;

/// What became of work that is to be done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once<R> {
    /// It was done and committed, with this result.
    Done(R),
    /// It had been done and committed before, so it was not done again.
    AlreadyDone,
}

impl<R> Once<R> {
    /// What the work came to, if it was done now.
    pub fn done(self) -> Option<R> {
        match self {
            Self::Done(result) => Some(result),
            Self::AlreadyDone => None,
        }
    }
}

/// So that a handler may end with it.
impl<R> IntoOutcome for Once<R> {
    fn into_outcome(self) -> (Outcome, Option<String>) {
        (Outcome::Ack, None)
    }
}

/// Why work was not done, or not committed. In a handler, `?` turns it into a [`Failure`]: the work's own
/// error as it is, the table's as one that may go away.
pub enum InboxError<E> {
    /// The work itself failed, and was rolled back.
    Work(E),
    /// The inbox's table or the transaction around the work.
    Table(OutboxError),
}

impl<E> From<OutboxError> for InboxError<E> {
    fn from(error: OutboxError) -> Self {
        Self::Table(error)
    }
}

impl<E: Into<Failure>> From<InboxError<E>> for Failure {
    fn from(error: InboxError<E>) -> Self {
        match error {
            InboxError::Work(error) => error.into(),
            InboxError::Table(error @ OutboxError::UnstableId { .. }) => Self::permanent(error),
            InboxError::Table(error) => Self::transient(error),
        }
    }
}

impl<E: fmt::Display> fmt::Display for InboxError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(error) => error.fmt(f),
            Self::Table(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for InboxError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(error) => f.debug_tuple("Work").field(error).finish(),
            Self::Table(error) => f.debug_tuple("Table").field(error).finish(),
        }
    }
}

/// What an inbox knows a message by.
pub(super) fn key_of<T>(table: &str, message: &Message<T>) -> Result<String, OutboxError> {
    let id = message.id();
    if !is_stable(id) {
        return Err(OutboxError::UnstableId { table: table.to_owned(), id: id.get() });
    }
    Ok(id.to_string())
}
