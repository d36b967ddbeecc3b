//! What a topic asks of a message before it routes it: not too soon, and not twice.

use super::{Receipt, TopicCore};
use crate::error::{PublishError, Refused};
#[cfg(feature = "sqlite")]
use crate::idempotency::DoneStream;
use crate::idempotency::{Found, Ledger, Window};
use crate::message::{Message, MessageId, Text};
use crate::queue::core::Patience;
use crate::queue::durable::Rider;
#[cfg(feature = "sqlite")]
use crate::{
    queue::durable::Depot,
    store::{Batch, StoreError},
};
use std::convert::Infallible;
#[cfg(feature = "sqlite")]
use std::sync::{Arc, OnceLock};

/// The ids that have been published.
pub(super) struct Published {
    ids: Ledger<Infallible>,
    /// Set before anybody knows of a topic that keeps them in the broker's file.
    #[cfg(feature = "sqlite")]
    filed: OnceLock<(Arc<Depot>, DoneStream)>,
}

impl Published {
    pub(super) fn new(window: Window) -> Self {
        let ids = Ledger::new(window);
        #[cfg(feature = "sqlite")]
        return Self { ids, filed: OnceLock::new() };
        #[cfg(not(feature = "sqlite"))]
        Self { ids }
    }
}

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
        let mut message = self.admit(message)?;
        let id = message.id;
        if let Err(Duplicate { under_way }) = self.claim_id(id, given) {
            self.unadmit();
            return Err(PublishError::Duplicate(Refused::new(message, &self.name).under_way(under_way)));
        }
        let rider = self.note_with(&mut message, given);
        let published = self.publish_otherwise(message, patience);
        if published.is_ok() {
            self.complete_claim(id, given, true);
            rider.end();
        } else {
            rider.revoke();
            self.unadmit();
            self.end_claim(id, given, false);
        }
        published
    }

    pub(crate) fn claim_id(&self, id: MessageId, given: bool) -> Result<(), Duplicate> {
        let Some(published) = self.published.as_ref().filter(|_| given) else { return Ok(()) };
        match published.ids.claim(&Text::showing(&id.get()), self.runtime.clock.now()) {
            Found::Nothing => Ok(()),
            Found::InProgress => Err(Duplicate { under_way: true }),
            Found::Done => Err(Duplicate { under_way: false }),
        }
    }

    /// It is published, or not after all: then the next one may try.
    pub(crate) fn end_claim(&self, id: MessageId, given: bool, published: bool) {
        let Some(ids) = self.published.as_ref().filter(|_| given) else { return };
        if published {
            self.complete_claim(id, given, false);
        } else {
            ids.ids.release(&Text::showing(&id.get()));
        }
    }

    /// It is published. `noted` says that the file knows, or will by way of [`TopicCore::note_with`].
    fn complete_claim(&self, id: MessageId, given: bool, noted: bool) {
        let Some(published) = self.published.as_ref().filter(|_| given) else { return };
        let (key, now) = (Text::showing(&id.get()), self.runtime.clock.now());
        published.ids.complete_noting(&key, now, |oldest| {
            #[cfg(feature = "sqlite")]
            if let Some((depot, done)) = published.filed.get() {
                let trimming = done.trimming(oldest);
                depot.note(if noted { trimming } else { done.insertion(id.get(), &key, now).and(trimming) });
            }
            #[cfg(not(feature = "sqlite"))]
            let _ = (oldest, noted);
        });
    }

    /// Has the commit that writes the message note its id, too.
    #[cfg(feature = "sqlite")]
    fn note_with(&self, message: &mut Message<T>, given: bool) -> Rider {
        let filed = self.published.as_ref().filter(|_| given).and_then(|published| published.filed.get());
        let Some((depot, done)) = filed else { return Rider::default() };
        let id = message.id.get();
        let insertion: Batch = done.insertion(id, &Text::showing(&id), self.runtime.clock.now());
        let rider = &mut message.extras_mut().rider;
        if rider.is_some() {
            rider.add(insertion);
        } else {
            *rider = Rider::new(depot, insertion);
        }
        rider.for_message()
    }

    #[cfg(not(feature = "sqlite"))]
    fn note_with(&self, _: &mut Message<T>, _: bool) -> Rider {
        Rider
    }

    /// Has it remember in the broker's file what is published, and what was in earlier runs.
    #[cfg(feature = "sqlite")]
    pub(crate) fn open_published(&self, depot: &Arc<Depot>) -> Result<(), StoreError> {
        let Some(published) = &self.published else { return Ok(()) };
        let stream = ("published", &*self.name, "by id");
        let done = DoneStream::open(&depot.store, stream, &published.ids, self.runtime.clock.now())?;
        let _ = published.filed.set((Arc::clone(depot), done));
        Ok(())
    }

    pub(super) fn refuses_duplicates(&self) -> bool {
        self.published.is_some()
    }
}
