//! Messages on their way from one stream of the file to another: dead letters, and back.
//!
//! Nobody is to lose a message because the file cannot be written just now. So the message moves in memory
//! whatever comes of the batch; if that fails, the file still has it where it was, and that is where it is found
//! again after the next start.

use super::depot::{Depot, Errand, Pending};
use super::format::known_extra;
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::core::{Core, Pledge};
use crate::store::{Batch, Durability, Seq, StoreError, StreamId};
use std::sync::Arc;

/// Where a message was in the file. It is to be deleted there once it is elsewhere.
#[must_use]
pub(crate) struct Along(Option<(Arc<Depot>, StreamId, Seq)>);

impl Along {
    pub(crate) fn nothing() -> Self {
        Self(None)
    }

    pub(crate) fn from(depot: &Arc<Depot>, stream: StreamId, place: Seq) -> Self {
        Self(Some((Arc::clone(depot), stream, place)))
    }

    pub(crate) fn place(&self) -> Option<u64> {
        self.0.as_ref().map(|(.., place)| *place)
    }

    /// It has left for where no file is.
    pub(crate) fn delete(self) {
        if let Some((depot, stream, place)) = self.0 {
            depot.note(Batch::new().delete(stream, place));
        }
    }

    /// Whether it can be deleted in the same commit as something is written there.
    fn is_in(&self, depot: &Arc<Depot>) -> bool {
        self.0.as_ref().is_none_or(|(own, ..)| Arc::ptr_eq(own, depot))
    }

    pub(crate) fn and(&self, batch: Batch) -> Batch {
        match &self.0 {
            Some((_, stream, place)) => batch.delete(*stream, *place),
            None => batch,
        }
    }
}

/// A move whose commit may be waited for.
pub(crate) struct Moving(Option<Pending<()>>);

impl Moving {
    pub(crate) fn done() -> Self {
        Self(None)
    }

    pub(crate) fn wait(self) {
        self.0.into_iter().for_each(Pending::wait);
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Takes a message out of its place, which has to be dealt with otherwise from now on.
    pub(crate) fn leave_file(&self, message: &mut Message<T>) -> Along {
        let filed = self.filed.get().zip(message.take_place());
        Along(filed.map(|(filed, place)| (Arc::clone(&filed.depot), filed.stream, place)))
    }

    /// As [`Core::accept_letter`], by way of the file. It is seen a moment later, after the commit; nobody waits
    /// for that but in a simulation.
    pub(crate) fn accept_letter_durably(&self, message: Message<T>, along: Along) -> Result<(), (Message<T>, Along)> {
        let Ok(pledge) = self.pledge_for_letter() else { return Err((message, along)) };
        let Some(me) = self.weak().upgrade() else { return Err((message, along)) };
        let filed = self.filed();
        let item = filed.item(&message).ok().filter(|_| self.keeps(&pledge));
        let stored = item.is_some();
        // One that cannot be written stays where it is in the file.
        let batch = item.map_or_else(Batch::new, |item| along.and(Batch::new().insert(filed.stream, item)));
        let mut message = message;
        let pending = filed.depot.commit(batch, Durability::Buffered, move |result, errands| {
            if let (true, Ok(&[place, ..])) = (stored, result) {
                message.set_fresh_place(place);
            }
            me.redeem_quietly(pledge, message, errands);
            errands.push(Box::new(move || drop(me)));
        });
        if filed.depot.is_simulated() {
            pending.wait();
        }
        Ok(())
    }

    /// The same of a letter whose message nobody keeps in the file once this has answered: waits for the commit, and
    /// gives it back if that fails.
    pub(crate) fn accept_letter_surely(&self, message: Message<T>) -> Result<(), Message<T>> {
        let Some(me) = self.weak().upgrade() else { return Err(message) };
        let filed = self.filed();
        let Ok(item) = filed.item(&message) else {
            // No later attempt could write it.
            return self.accept_letter_durably(message, Along::nothing()).map_err(|(message, _)| message);
        };
        let Ok(pledge) = self.pledge_for_letter() else { return Err(message) };
        let stored = self.keeps(&pledge);
        let batch = if stored { Batch::new().insert(filed.stream, item) } else { Batch::new() };
        let mut message = message;
        let arrive = move |result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>| {
            let arrived = match result {
                Ok(places) => {
                    if let (true, Some(&place)) = (stored, places.first()) {
                        message.set_fresh_place(place);
                    }
                    me.redeem_quietly(pledge, message, errands);
                    Ok(())
                }
                Err(_) => {
                    me.forgo(pledge);
                    Err(message)
                }
            };
            errands.push(Box::new(move || drop(me)));
            arrived
        };
        filed.depot.commit(batch, filed.durability, arrive).wait()
    }

    fn pledge_for_letter(&self) -> Result<Pledge, ()> {
        let pledge = self.promise_for_letter();
        if pledge.has_slot() || !self.settings.overflow.refuses() {
            return Ok(pledge);
        }
        self.forgo(pledge);
        Err(())
    }

    /// The second half of [`Core::readmit`], by way of the file. What has no delay comes like a new one, and may stay
    /// there until its turn.
    pub(crate) fn readmit_durably(&self, mut message: Message<T>, due: Option<Timestamp>, along: Along) -> Moving {
        let (filed, me) = (self.filed(), self.weak().upgrade().expect("alive while it is called"));
        message.extras_mut().due = due;
        let item = filed.item(&message).ok().map(|mut item| {
            // That keeps it from being read again.
            if due.is_some() {
                item.extra.get_or_insert_with(|| known_extra(&message));
            }
            item
        });
        message.extras_mut().due = None;
        let stored = item.is_some();
        // A letter may be redriven to a queue of another broker, which has another file.
        let (along, elsewhere) =
            if along.is_in(&filed.depot) { (along, None) } else { (Along::nothing(), Some(along)) };
        let batch = item.map_or_else(Batch::new, |item| along.and(Batch::new().insert(filed.stream, item)));
        Moving(Some(filed.depot.commit(batch, Durability::Buffered, move |result, errands| {
            if let (true, Ok(&[place, ..])) = (stored, result) {
                match due {
                    Some(_) => message.set_place(place),
                    None => message.set_fresh_place(place),
                }
                elsewhere.into_iter().for_each(Along::delete);
            }
            me.come_back(message, due);
            errands.push(Box::new(move || me.drop_spilled()));
        })))
    }
}
