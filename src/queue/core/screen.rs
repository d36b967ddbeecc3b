//! Idempotent queues: a message whose key is done is not handed out, and one whose key is in hand waits.
//!
//! A claim is held from the moment a message is handed out until it is settled. What waits for one is counted as in
//! flight. It becomes a duplicate once the claim is completed, and goes back to the front if it is released.

use super::{Core, Nothing};
use crate::delivery::Verdict;
use crate::idempotency::{Ledger, Screened, Window};
use crate::message::{Message, Text};
use crate::outcome::{Outcome, contained};
use std::sync::Arc;

/// By what an idempotent queue tells messages apart.
pub(crate) type ClaimKey<T> = Arc<dyn Fn(&T) -> Text + Send + Sync>;

/// What an idempotent queue remembers.
pub(crate) struct Claims<T> {
    ledger: Ledger<Message<T>>,
    /// `None`: the message's id.
    key: Option<ClaimKey<T>>,
}

impl<T> Claims<T> {
    pub(super) fn new(window: Window, key: Option<ClaimKey<T>>) -> Self {
        Self { ledger: Ledger::new(window), key }
    }

    fn key_of(&self, message: &Message<T>) -> Result<Text, String> {
        match &self.key {
            None => Ok(Text::showing(&message.id().get())),
            Some(key) => contained(|| key(message.payload())),
        }
    }

    pub(super) fn take_waiting(&self) -> Vec<Message<T>> {
        self.ledger.take_waiting()
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Of an idempotent queue.
    #[cfg(feature = "sqlite")]
    pub(crate) fn ledger(&self) -> Option<&Ledger<Message<T>>> {
        self.claims.as_ref().map(|claims| &claims.ledger)
    }

    /// Goes on taking until a message may be handed out.
    #[cold]
    pub(super) fn screen(
        &self,
        mut taken: Message<T>,
        mut next: impl FnMut() -> Result<Message<T>, Nothing>,
    ) -> Result<Message<T>, Nothing> {
        let Some(claims) = &self.claims else { return Ok(taken) };
        loop {
            if let Some(message) = self.claim(claims, taken) {
                return Ok(message);
            }
            taken = next()?;
        }
    }

    fn claim(&self, claims: &Claims<T>, mut message: Message<T>) -> Option<Message<T>> {
        let key = match claims.key_of(&message) {
            Ok(key) => key,
            Err(words) => {
                let verdict = self.judge(&mut message, Outcome::Retry, Some(words));
                self.settle_otherwise(message, verdict, &self.tallies.common);
                return None;
            }
        };
        message.extras_mut().claim = Some(key.clone());
        match claims.ledger.claim_or_wait(&key, self.runtime.clock.now(), message) {
            Screened::Claimed(mut message) => {
                self.lend_claimed(&mut message);
                Some(message)
            }
            Screened::Waits => None,
            Screened::Done(message) => {
                self.drop_duplicate(message);
                None
            }
        }
    }

    fn drop_duplicate(&self, mut message: Message<T>) {
        message.extras_mut().claim = None;
        self.counts.duplicates.add(1);
        // Too late means that it went back to its queue and was reported as left.
        let _ = self.settle(message, Verdict::Ack, &self.tallies.common);
    }

    /// A message that is being settled gives its claim up: `done`, or for another to try.
    #[inline]
    pub(crate) fn end_claim(&self, message: &mut Message<T>, done: bool) {
        if let Some(claims) = &self.claims {
            self.end_claim_in(claims, message, done);
        }
    }

    #[cold]
    fn end_claim_in(&self, claims: &Claims<T>, message: &mut Message<T>, done: bool) {
        let Some(key) = message.extras.as_mut().and_then(|extras| extras.claim.take()) else { return };
        if done {
            let now = self.runtime.clock.now();
            let note = |oldest| self.note_done(message, &key, now, oldest);
            let duplicates = claims.ledger.complete_noting(&key, now, note);
            duplicates.into_iter().for_each(|duplicate| self.drop_duplicate(duplicate));
        } else {
            self.no_longer_waiting(claims.ledger.release(&key));
        }
    }

    /// Puts those who waited for a claim back where they came from.
    fn no_longer_waiting(&self, mut waiting: Vec<Message<T>>) {
        if waiting.is_empty() {
            return;
        }
        waiting.iter_mut().for_each(|message| message.extras_mut().claim = None);
        self.restore(waiting);
    }

    /// Shutdown is about to report what is left.
    pub(super) fn end_waiting(&self) {
        if let Some(claims) = &self.claims {
            self.no_longer_waiting(claims.take_waiting());
        }
    }
}
