//! What one queue knows of its stream, and what the file hears of settled messages.

use super::declare::WINDOW;
use super::depot::Depot;
use super::format::{Coding, Format, Plain, Written, extra_of, item_of, message_of};
use super::undecoded::Apart;
use crate::clock::Timestamp;
use crate::idempotency::DoneStream;
use crate::message::{Message, Text};
use crate::queue::core::{Core, Refusal};
use crate::queue::keyed::Hold;
use crate::store::{Batch, Change, Durability, Item, Seq, StreamId};
use std::sync::Arc;

/// The part of a durable queue that is in the file.
pub(crate) struct Filed<T> {
    pub(crate) depot: Arc<Depot>,
    pub(crate) stream: StreamId,
    pub(crate) durability: Durability,
    pub(super) format: Arc<dyn Format<T>>,
    pub(crate) window: usize,
    /// Of an idempotent queue.
    pub(super) done: Option<DoneStream>,
    /// Where what cannot be decoded goes.
    pub(crate) apart: Option<Apart>,
}

impl<T: Send + Sync + 'static> Filed<T> {
    /// Of plain messages.
    pub(crate) fn plain(depot: Arc<Depot>, stream: StreamId, durability: Durability, coding: Coding<T>) -> Self {
        Self::with_format(depot, stream, durability, Arc::new(Plain(coding)))
    }

    pub(super) fn with_format(
        depot: Arc<Depot>,
        stream: StreamId,
        durability: Durability,
        format: Arc<dyn Format<T>>,
    ) -> Self {
        Self { depot, stream, durability, format, window: WINDOW, done: None, apart: None }
    }
}

impl<T> Filed<T> {
    /// In a box, since it is handed on several times. Runs the user's codec, so no lock may be held.
    pub(crate) fn item(&self, message: &Message<T>) -> Result<Box<Item>, Refusal> {
        item_of(&*self.format, message).map_err(|words| Refusal::Unencodable(words.into()))
    }

    /// The same for a message that is published.
    pub(super) fn written(&self, message: &Message<T>) -> Result<Written, Refusal> {
        Written::of(&*self.format, message).map_err(|words| Refusal::Unencodable(words.into()))
    }

    /// Runs the user's codec, so no lock may be held.
    pub(crate) fn message(&self, item: &Item) -> Result<Message<T>, String> {
        message_of(&*self.format, item).map(|mut message| {
            message.extras_mut().due = None;
            message
        })
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn is_durable(&self) -> bool {
        self.settings.durable.is_some()
    }

    /// The queue is done with a message: it is deleted from the file with one of the next commits.
    #[inline]
    pub(crate) fn forget(&self, message: &mut Message<T>) {
        if let Some(place) = message.take_place() {
            self.delete(place);
            self.take_spare(message);
        }
    }

    #[cold]
    fn delete(&self, place: Seq) {
        if let Some(filed) = self.filed.get() {
            filed.depot.forget(filed.stream, place);
        }
    }

    #[cold]
    fn take_spare(&self, message: &mut Message<T>) {
        if let Some((filed, bare)) = self.filed.get().zip(message.take_bare_extras()) {
            filed.depot.spares.give(bare);
        }
    }

    /// As [`Core::forget`], many at once.
    pub(crate) fn forget_all<'a>(&self, messages: impl IntoIterator<Item = &'a mut Message<T>>) {
        let Some(filed) = self.filed.get() else { return };
        let places = messages.into_iter().filter_map(Message::take_place);
        filed.depot.note(places.fold(Batch::new(), |batch, place| batch.delete(filed.stream, place)));
    }

    /// A message of an idempotent queue is done with: its key is remembered in the same commit that deletes it.
    pub(crate) fn note_done(&self, message: &mut Message<T>, key: &Text, now: Timestamp, oldest: Seq) {
        let Some(filed) = self.filed.get() else { return };
        let Some(done) = &filed.done else { return };
        let batch = done.note(message.id.get(), key, now, oldest);
        filed.depot.note(match message.take_place() {
            Some(place) => batch.delete(filed.stream, place),
            None => batch,
        });
    }

    /// A delivery has come back, to be delivered again now or when it is due.
    pub(crate) fn note_return(&self, message: &Message<T>, due: Option<Timestamp>) {
        self.note_back(message, due, None);
    }

    /// A delivery has come back, and its key is parked because of it.
    pub(crate) fn note_parked(&self, message: &Message<T>, hold: &Hold) {
        self.note_back(message, None, Some(hold));
    }

    fn note_back(&self, message: &Message<T>, due: Option<Timestamp>, hold: Option<&Hold>) {
        let (Some(filed), Some(place)) = (self.filed.get(), message.place()) else { return };
        // Always a time, be it past: what has none is fresh, and may be read again.
        let due = due.unwrap_or_else(|| self.runtime.clock.now());
        self.note_returned(place, due);
        let change = Change::new().attempts(message.attempt).due_at(Some(due.0)).extra(extra_of(
            message,
            filed.format.letter(message),
            hold,
        ));
        filed.depot.note(Batch::new().update(filed.stream, place, change));
    }

    /// What is noted of a message beyond its columns has changed; nothing else.
    pub(crate) fn note_extra(&self, message: &Message<T>) {
        let (Some(filed), Some(place)) = (self.filed.get(), message.place()) else { return };
        let change = Change::new().extra(extra_of(message, filed.format.letter(message), None));
        filed.depot.note(Batch::new().update(filed.stream, place, change));
    }

    /// Where its messages go that cannot be decoded.
    pub(crate) fn undecodable_name(&self) -> Option<String> {
        let apart = self.filed.get().filter(|_| !self.is_terminal())?.apart.as_ref()?;
        Some(apart.queue.name().to_owned())
    }

    /// Whether what it holds can still be settled in the file.
    pub(crate) fn is_beyond_reach(&self) -> bool {
        self.is_durable() && self.has_ended()
    }

    /// All that it holds has been noted in the file, and nothing is in hand: whoever reads it next knows which
    /// messages were never handed out.
    pub(crate) fn note_rest(&self) {
        if let Some(filed) = self.filed.get().filter(|_| self.in_flight() == 0) {
            filed.depot.note(Batch::new().mark(filed.stream, super::recover::AT_REST, ""));
        }
    }
}
