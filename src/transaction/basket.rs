//! What a transaction has for one queue, log, or topic's subscribers: promised together, put in together.

use super::error::Obstacle;
use crate::log::{self, LogCore, Placed, Stored};
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::core::{Core, Patience, Refusal};
use crate::queue::core::{Pledges, Putting, Released};
use crate::scheduler::TimedId;
use crate::subscriber::ring::Ring;
use crate::subscriber::together::{self as ring, Timed};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

/// One of them, without its type.
pub(super) trait Basket: Any + Send {
    /// Who refuses.
    fn by(&self) -> Arc<str>;
    /// Whether it could never take what is in here.
    fn is_impossible(&self) -> Option<Obstacle>;
    fn pledge(&mut self) -> Result<(), Refusal>;
    fn forgo(&mut self);
    fn waits(&self, patience: Patience) -> bool;
    /// Holding nothing.
    fn wait(&self, patience: Patience) -> Result<(), Refusal>;
    /// Where the next message is in the file, and with which time if a log has it.
    fn place(&mut self, _: u64, _: Option<Stored>) {}
    /// Puts everything in and keeps the lock.
    fn put<'a>(&'a mut self) -> Box<dyn Locked + 'a>;
    /// What [`Unlocked::detach`] has left to do.
    fn finish(&self, rest: Box<dyn Any + Send>);
}

/// What has been put in, and is not seen yet.
pub(super) trait Locked {
    fn release<'a>(self: Box<Self>) -> Box<dyn Unlocked + 'a>
    where
        Self: 'a;
}

/// What remains to be done when no lock is held any more.
pub(super) trait Unlocked {
    fn finish(self: Box<Self>);
    /// For [`Basket::finish`], on another thread.
    fn detach(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// All of a transaction, with the operation that each is there for first.
#[derive(Default)]
pub(super) struct Baskets {
    all: Vec<(TimedId, usize, Box<dyn Basket>)>,
    /// The operation that is being planned.
    pub(super) operation: usize,
    /// To be dropped when no lock is held.
    pub(super) waste: Vec<Box<dyn Any + Send>>,
}

impl Baskets {
    /// Into the order in which locks are taken.
    pub(super) fn sort(&mut self) {
        self.all.sort_by_key(|(number, ..)| *number);
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut dyn Basket)> {
        self.all.iter_mut().map(|(_, operation, basket)| (*operation, &mut **basket))
    }

    /// Puts in what was promised, and lets go of all locks: every message is in before the first can be seen.
    pub(super) fn put(&mut self) -> Vec<Box<dyn Unlocked + '_>> {
        let locked: Vec<_> = self.iter_mut().map(|(_, basket)| basket.put()).collect();
        locked.into_iter().map(|locked| locked.release()).collect()
    }

    /// Runs the destructors of the users' payloads, each for itself.
    pub(super) fn drop_waste(&mut self) {
        std::mem::take(&mut self.waste).into_iter().for_each(drop_contained);
    }

    /// Where the next message for that queue or log is in the file.
    #[cfg(feature = "sqlite")]
    pub(super) fn place(&mut self, number: TimedId, place: u64, stored: Option<Stored>) {
        let basket = self.all.iter_mut().find(|(other, ..)| *other == number);
        basket.into_iter().for_each(|(.., basket)| basket.place(place, stored));
    }

    fn find<B: Basket>(&mut self, number: TimedId, make: impl FnOnce() -> B) -> &mut B {
        let found = self.all.iter().position(|(other, ..)| *other == number);
        let at = found.unwrap_or_else(|| {
            self.all.push((number, self.operation, Box::new(make())));
            self.all.len() - 1
        });
        let any: &mut dyn Any = &mut *self.all[at].2;
        any.downcast_mut().expect("whoever has a number has one type")
    }

    pub(super) fn queue<T: Send + Sync + 'static>(&mut self, core: &Arc<Core<T>>) -> &mut QueueBasket<T> {
        let make = || QueueBasket {
            core: Arc::clone(core),
            n: 0,
            pledges: None,
            messages: Vec::new(),
            places: VecDeque::new(),
        };
        self.find(core.number(), make)
    }

    pub(super) fn ring<T: Send + Sync + 'static>(&mut self, ring: &Arc<Ring<T>>) -> &mut RingBasket<T> {
        let make = || RingBasket { ring: Arc::clone(ring), now: 0, later: 0, messages: Vec::new() };
        self.find(ring.number(), make)
    }

    pub(super) fn log<T: Send + Sync + 'static>(&mut self, log: &Arc<LogCore<T>>) -> &mut LogBasket<T> {
        let make = || LogBasket { log: Arc::clone(log), n: 0, records: Vec::new(), places: VecDeque::new() };
        self.find(log.shelf.number(), make)
    }
}

/// For a queue.
pub(super) struct QueueBasket<T> {
    core: Arc<Core<T>>,
    pub(super) n: u64,
    pledges: Option<Pledges>,
    messages: Vec<Message<T>>,
    /// Of messages that are in the file and not yet in here.
    places: VecDeque<u64>,
}

impl<T: Send + Sync + 'static> QueueBasket<T> {
    pub(super) fn push(&mut self, mut message: Message<T>) {
        if let Some(place) = self.places.pop_front() {
            message.set_fresh_place(place);
        }
        self.messages.push(message);
    }
}

impl<T: Send + Sync + 'static> Basket for QueueBasket<T> {
    fn place(&mut self, place: u64, _: Option<Stored>) {
        self.places.push_back(place);
    }
    fn finish(&self, rest: Box<dyn Any + Send>) {
        rest.downcast().into_iter().for_each(|rest| self.core.finish_detached(*rest));
    }
    fn by(&self) -> Arc<str> {
        Arc::clone(&self.core.name)
    }
    fn is_impossible(&self) -> Option<Obstacle> {
        let capacity = self.core.settings.capacity;
        self.core.never_takes(self.n).then_some(Obstacle::TooLarge { messages: self.n, capacity })
    }
    fn pledge(&mut self) -> Result<(), Refusal> {
        self.pledges = Some(self.core.pledge_all(self.n)?);
        Ok(())
    }
    fn forgo(&mut self) {
        self.pledges.take().iter().for_each(|pledges| self.core.forgo_all(pledges));
    }
    fn waits(&self, patience: Patience) -> bool {
        self.core.waits(patience)
    }
    fn wait(&self, patience: Patience) -> Result<(), Refusal> {
        self.core.wait_for_rooms(self.n, patience)
    }
    fn put<'a>(&'a mut self) -> Box<dyn Locked + 'a> {
        let pledges = self.pledges.take().expect("promised before");
        Box::new(self.core.put_together(&pledges, std::mem::take(&mut self.messages)))
    }
}

impl<T: Send + Sync + 'static> Locked for Putting<'_, T> {
    fn release<'a>(self: Box<Self>) -> Box<dyn Unlocked + 'a>
    where
        Self: 'a,
    {
        Box::new(Putting::release(*self))
    }
}

impl<T: Send + Sync + 'static> Unlocked for Released<'_, T> {
    fn finish(self: Box<Self>) {
        Released::finish(*self);
    }
    fn detach(self: Box<Self>) -> Box<dyn Any + Send> {
        Box::new(Released::detach(*self))
    }
}

/// For the subscribers of a topic.
pub(super) struct RingBasket<T> {
    ring: Arc<Ring<T>>,
    pub(super) now: u64,
    /// Those with a delay.
    pub(super) later: u64,
    pub(super) messages: Vec<Timed<T>>,
}

impl<T: Send + Sync + 'static> Basket for RingBasket<T> {
    fn by(&self) -> Arc<str> {
        self.ring.waits_for(self.now)
    }
    fn is_impossible(&self) -> Option<Obstacle> {
        let capacity = self.ring.never_takes(self.now)?;
        Some(Obstacle::TooLarge { messages: self.now, capacity })
    }
    fn pledge(&mut self) -> Result<(), Refusal> {
        self.ring.pledge_all(self.now, self.later)
    }
    fn forgo(&mut self) {
        self.ring.forgo_all(self.now + self.later);
    }
    fn waits(&self, patience: Patience) -> bool {
        !matches!(patience, Patience::None)
    }
    fn wait(&self, patience: Patience) -> Result<(), Refusal> {
        self.ring.wait_for_rooms(self.now, patience)
    }
    fn put<'a>(&'a mut self) -> Box<dyn Locked + 'a> {
        Box::new(self.ring.put_together(std::mem::take(&mut self.messages)))
    }
    fn finish(&self, rest: Box<dyn Any + Send>) {
        rest.downcast().into_iter().for_each(|rest| self.ring.finish_detached(*rest));
    }
}

impl<T: Send + Sync + 'static> Locked for ring::Writing<'_, T> {
    fn release<'a>(self: Box<Self>) -> Box<dyn Unlocked + 'a>
    where
        Self: 'a,
    {
        Box::new(ring::Writing::release(*self))
    }
}

impl<T: Send + Sync + 'static> Unlocked for ring::Written<'_, T> {
    fn finish(self: Box<Self>) {
        ring::Written::finish(*self);
    }
    fn detach(self: Box<Self>) -> Box<dyn Any + Send> {
        Box::new(ring::Written::detach(*self))
    }
}

/// For a log, which always has room.
pub(super) struct LogBasket<T> {
    log: Arc<LogCore<T>>,
    pub(super) n: u64,
    records: Vec<Placed<T>>,
    /// Of records that are in the file and not yet in here.
    places: VecDeque<(u64, Stored)>,
}

impl<T: Send + Sync + 'static> LogBasket<T> {
    pub(super) fn push(&mut self, mut record: Placed<T>) {
        if let Some((place, stored)) = self.places.pop_front() {
            record.set_place(place, stored);
        }
        self.records.push(record);
    }
}

impl<T: Send + Sync + 'static> Basket for LogBasket<T> {
    fn place(&mut self, place: u64, stored: Option<Stored>) {
        self.places.extend(stored.map(|stored| (place, stored)));
    }
    fn by(&self) -> Arc<str> {
        Arc::clone(&self.log.shelf.name)
    }
    fn is_impossible(&self) -> Option<Obstacle> {
        None
    }
    fn pledge(&mut self) -> Result<(), Refusal> {
        let promised = (0..self.n).take_while(|_| self.log.shelf.pledge()).count() as u64;
        if promised == self.n {
            return Ok(());
        }
        (0..promised).for_each(|_| self.log.shelf.forgo());
        Err(Refusal::Closed)
    }
    fn forgo(&mut self) {
        (0..self.n).for_each(|_| self.log.shelf.forgo());
    }
    fn waits(&self, _: Patience) -> bool {
        false
    }
    fn wait(&self, _: Patience) -> Result<(), Refusal> {
        Ok(())
    }
    fn put<'a>(&'a mut self) -> Box<dyn Locked + 'a> {
        Box::new(self.log.shelf.put_together(std::mem::take(&mut self.records)))
    }
    fn finish(&self, rest: Box<dyn Any + Send>) {
        rest.downcast().into_iter().for_each(|rest| self.log.shelf.finish_detached(*rest));
    }
}

impl<T: Send + Sync + 'static> Locked for log::Putting<'_, T> {
    fn release<'a>(self: Box<Self>) -> Box<dyn Unlocked + 'a>
    where
        Self: 'a,
    {
        Box::new(log::Putting::release(*self))
    }
}

impl<T: Send + Sync + 'static> Unlocked for log::Written<'_, T> {
    fn finish(self: Box<Self>) {
        log::Written::finish(*self);
    }
    fn detach(self: Box<Self>) -> Box<dyn Any + Send> {
        Box::new(log::Written::detach(*self))
    }
}
