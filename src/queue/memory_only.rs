//! Stands in for durable queues where the feature `sqlite` is off: there are none, and nothing has a place.

use crate::clock::Timestamp;
use crate::message::{Message, Text};
use crate::queue::core::{Accepted, Core, Patience, Refusal};
use crate::queue::fifo::Chunk;
use crate::queue::keyed::Hold;
use std::convert::Infallible;
use std::marker::PhantomData;

pub(crate) type Mode = Infallible;
pub(crate) type FileError = Infallible;

pub(crate) struct Durable<T>(Infallible, PhantomData<fn() -> T>);
pub(crate) struct Filed<T>(Infallible, PhantomData<fn() -> T>);

pub(crate) fn promise(mode: Mode) -> &'static str {
    match mode {}
}

/// Where a message was in a file: nowhere.
#[must_use]
pub(crate) struct Along;

impl Along {
    pub(crate) fn nothing() -> Self {
        Self
    }
    pub(crate) fn place(&self) -> Option<u64> {
        None
    }
    pub(crate) fn delete(self) {}
}

/// What changes in a file with a message: nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rider;

impl Rider {
    pub(crate) fn for_message(&self) -> Self {
        Self
    }
    pub(crate) fn is_some(&self) -> bool {
        false
    }
    pub(crate) fn revoke(self) {}
    pub(crate) fn end(self) {}
}

pub(crate) struct Moving;

impl Moving {
    pub(crate) fn done() -> Self {
        Self
    }
    pub(crate) fn wait(self) {}
}

impl<T: Send + Sync + 'static> Core<T> {
    #[inline]
    pub(crate) fn is_durable(&self) -> bool {
        false
    }
    #[inline]
    pub(crate) fn forget(&self, _: &mut Message<T>) {}
    pub(crate) fn forget_all<'a>(&self, _: impl IntoIterator<Item = &'a mut Message<T>>) {}
    pub(crate) fn note_return(&self, _: &Message<T>, _: Option<Timestamp>) {}
    pub(crate) fn note_extra(&self, _: &Message<T>) {}
    pub(crate) fn note_parked(&self, _: &Message<T>, _: &Hold) {}
    pub(crate) fn note_done(&self, _: &mut Message<T>, _: &Text, _: Timestamp, _: u64) {}
    pub(crate) fn undecodable_name(&self) -> Option<String> {
        None
    }
    pub(crate) fn is_beyond_reach(&self) -> bool {
        false
    }
    pub(crate) fn note_rest(&self) {}
    pub(crate) fn leave_file(&self, _: &mut Message<T>) -> Along {
        Along
    }
    fn filed(&self) -> &Filed<T> {
        self.filed.get().expect("only asked of durable queues")
    }
    pub(crate) fn accept_durably(&self, _: Message<T>, _: Patience) -> Result<Accepted, (Message<T>, Refusal)> {
        match self.filed().0 {}
    }
    pub(crate) fn accept_chunk_durably(&self, _: &mut Chunk<Message<T>>) -> Result<(), (Message<T>, Refusal)> {
        match self.filed().0 {}
    }
    pub(crate) fn accept_letter_durably(&self, _: Message<T>, _: Along) -> Result<(), (Message<T>, Along)> {
        match self.filed().0 {}
    }
    pub(crate) fn accept_letter_surely(&self, _: Message<T>) -> Result<(), Message<T>> {
        match self.filed().0 {}
    }
    pub(crate) fn readmit_durably(&self, _: Message<T>, _: Option<Timestamp>, _: Along) -> Moving {
        match self.filed().0 {}
    }
}
