//! What a topic asks of a message before it routes it: not too soon, and not twice.

use super::{Receipt, TopicCore};
use crate::error::{PublishError, Refused};
use crate::idempotency::{Found, Ledger};
use crate::message::{Message, MessageId, Text};
use crate::queue::core::Patience;
use std::convert::Infallible;

/// The ids that have been published.
pub(super) type Published = Ledger<Infallible>;

/// A message of the same id was published before, or is just being published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Duplicate {
    pub(crate) under_way: bool,
}

impl<T: Send + Sync + 'static> TopicCore<T> {
    /// Publishes through the topic's limits. `given` says that the message brought its id along: those that are
    /// assigned are never the same.
    #[cold]
    pub(super) fn publish_limited(
        &self,
        message: Message<T>,
        given: bool,
        patience: Patience,
    ) -> Result<Receipt, PublishError<T>> {
        let message = self.admit(message)?;
        let id = message.id;
        if let Err(Duplicate { under_way }) = self.claim_id(id, given) {
            self.unadmit();
            return Err(PublishError::Duplicate(Refused::new(message, &self.name).under_way(under_way)));
        }
        let published = self.publish_otherwise(message, patience);
        if published.is_err() {
            self.unadmit();
        }
        self.end_claim(id, given, published.is_ok());
        published
    }

    pub(crate) fn claim_id(&self, id: MessageId, given: bool) -> Result<(), Duplicate> {
        let Some(published) = self.published.as_ref().filter(|_| given) else { return Ok(()) };
        match published.claim(&Text::showing(&id.get()), self.runtime.clock.now()) {
            Found::Nothing => Ok(()),
            Found::InProgress => Err(Duplicate { under_way: true }),
            Found::Done => Err(Duplicate { under_way: false }),
        }
    }

    /// It is published, or not after all: then the next one may try.
    pub(crate) fn end_claim(&self, id: MessageId, given: bool, published: bool) {
        let Some(ids) = self.published.as_ref().filter(|_| given) else { return };
        let key = Text::showing(&id.get());
        if published {
            ids.complete(&key, self.runtime.clock.now());
        } else {
            ids.release(&key);
        }
    }

    pub(super) fn refuses_duplicates(&self) -> bool {
        self.published.is_some()
    }
}
