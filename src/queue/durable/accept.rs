//! Taking messages in by way of the file.

use super::depot::{Depot, Errand, Pending, Show};
use super::filed::Filed;
use super::format::Written;
use crate::message::{Message, Text};
use crate::queue::builder::Overflow;
use crate::queue::core::{Accepted, Core, Patience, Pledge, Refusal, Waking};
use crate::queue::fifo::Chunk;
use crate::store::{Batch, Called, Durability, Item, Seq, StoreError};
use crate::sync::MutexGuard;
use smallvec::SmallVec;
use std::sync::Arc;

/// Messages that share a batch, at most.
const TOGETHER: usize = 256;
/// Bytes of payload that share one.
const BYTES_TOGETHER: usize = 1 << 20;

/// Whatever gets a message beside queues. Called on the writer's thread.
pub(crate) trait Others<T>: Send {
    /// The file that some of them are in, and the most demanding of their modes.
    fn file(&self) -> Option<(Arc<Depot>, Durability)>;
    /// Adds what goes there to the batch, which is handed in before the order ends. Called by whoever publishes.
    fn stow(&mut self, batch: Batch, order: &MutexGuard<'_, ()>) -> Batch;
    /// Before any queue has it; with the places of what they have added.
    fn first(&mut self, message: &mut Message<T>, places: &[Seq], errands: &mut Vec<Errand>);
    /// After all queues have it.
    fn last(self: Box<Self>, message: Message<T>, errands: &mut Vec<Errand>);
    /// It is not published after all.
    fn forgo(self: Box<Self>);
}

/// A message of which one copy goes to the file for each durable queue.
pub(crate) struct Stowed {
    items: SmallVec<[Option<Box<Item>>; 2]>,
}

impl Stowed {
    /// Runs the users' codecs, so no lock may be held.
    pub(crate) fn of<'a, T: Send + Sync + 'static>(
        queues: &'a [Arc<Core<T>>],
        message: &Message<T>,
    ) -> Result<Self, (&'a Core<T>, Refusal)> {
        let items = queues.iter().map(|queue| {
            let item = queue.filed.get().map(|filed| filed.item(message)).transpose();
            item.map_err(|refusal| (&**queue, refusal))
        });
        Ok(Self { items: items.collect::<Result<_, _>>()? })
    }
}

/// What came of a message.
pub(crate) type Arrival<T> = Result<Accepted, (Message<T>, Refusal)>;

/// A message with a place promised in every queue it goes to.
pub(crate) struct Parcel<T> {
    pub(crate) queues: SmallVec<[Arc<Core<T>>; 2]>,
    pub(crate) pledges: SmallVec<[Pledge; 8]>,
    pub(crate) keys: SmallVec<[Option<Text>; 2]>,
    /// Taken out once it is delivered.
    pub(crate) message: Option<Message<T>>,
    pub(crate) others: Option<Box<dyn Others<T>>>,
}

/// What became of a parcel.
pub(crate) struct Delivered<T> {
    /// How many queues took it, or the message and why none did.
    pub(crate) routed: Result<usize, Box<(Message<T>, Refusal)>>,
    /// All it was for. Perhaps the last handles, and then their messages go with them, which the writer's thread is no
    /// place for.
    pub(crate) queues: SmallVec<[Arc<Core<T>>; 2]>,
}

impl<T: Send + Sync + 'static> Parcel<T> {
    /// Hands it to the store; waits until that has room, holding promises but no lock.
    pub(crate) fn send(mut self, stowed: Stowed) -> Pending<Delivered<T>> {
        let (mut batch, mut mode, mut depot) = (Batch::new(), Durability::Buffered, None::<Arc<Depot>>);
        let mut stored: SmallVec<[bool; 2]> = SmallVec::new();
        for ((queue, pledge), item) in self.queues.iter().zip(&self.pledges).zip(stowed.items) {
            let wanted = queue.filed.get().zip(item).filter(|_| queue.keeps(pledge));
            depot = depot.or_else(|| queue.filed.get().map(|filed| Arc::clone(&filed.depot)));
            stored.push(wanted.is_some());
            if let Some((filed, item)) = wanted {
                mode = mode.max(filed.durability);
                batch = batch.insert(filed.stream, item);
            }
        }
        let beside = self.others.as_ref().and_then(|others| others.file());
        if let Some((file, wanted)) = beside {
            mode = mode.max(wanted);
            depot.get_or_insert(file);
        }
        let depot = depot.expect("a queue or a log is durable");
        depot.store.wait_for_room();
        let order = self.others.as_ref().map(|_| depot.in_order());
        if let (Some(others), Some(order)) = (&mut self.others, &order) {
            batch = others.stow(batch, order);
        }
        // Last, since it may insert something too. Where a full queue throws its copy away there is nothing to write;
        // that is noted once it is gone.
        if let Some(rider) = self.message.as_mut().and_then(Message::take_rider)
            && self.queues.iter().zip(&stored).all(|(queue, stored)| *stored || !queue.is_durable())
        {
            batch = rider.join(batch, &depot);
        }
        let pending = Arc::clone(&depot).commit_shown(batch, mode, Sent { parcel: self, stored });
        drop(order);
        pending
    }
}

/// A parcel on its way, and which of its queues have it in the file.
struct Sent<T> {
    parcel: Parcel<T>,
    stored: SmallVec<[bool; 2]>,
}

impl<T: Send + Sync + 'static> Show<Delivered<T>> for Sent<T> {
    fn show(&mut self, result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>) -> Delivered<T> {
        let Self { parcel: Parcel { queues, pledges, keys, message: own, others }, stored } = self;
        let (queues, pledges, keys) = (std::mem::take(queues), std::mem::take(pledges), std::mem::take(keys));
        let mut others = others.take();
        let places = match result {
            Ok(places) => places,
            Err(error) => {
                queues.iter().zip(pledges).for_each(|(queue, pledge)| queue.forgo(pledge));
                others.into_iter().for_each(|others| others.forgo());
                let message = own.take().expect("shown once");
                return Delivered { routed: Err(Box::new((message, Refusal::NotStored(error)))), queues };
            }
        };
        let (places, beside) = places.split_at(stored.iter().filter(|stored| **stored).count());
        if let Some((others, message)) = others.as_mut().zip(own.as_mut()) {
            others.first(message, beside, errands);
        }
        let mut places = places.iter();
        let mut routed = 0;
        let last = if others.is_some() { queues.len() } else { queues.len() - 1 };
        for (at, (((queue, pledge), key), stored)) in queues.iter().zip(pledges).zip(keys).zip(stored).enumerate() {
            let copy = if at == last { own.take() } else { own.as_mut().map(Message::share_with_queue) };
            let Some(mut copy) = copy else { continue };
            copy.set_order(key);
            if let (true, Some(&place)) = (*stored, if *stored { places.next() } else { None }) {
                copy.set_fresh_place_in(place, || queue.filed().depot.spares.take());
            }
            routed += usize::from(queue.redeem_quietly(pledge, copy, errands).is_routed());
        }
        if let (Some(others), Some(message)) = (others, own.take()) {
            others.last(message, errands);
        }
        Delivered { routed: Ok(routed), queues }
    }
}

/// As [`Sent`], to one queue and to nothing beside it, which most messages are: in less memory, and without loops.
struct Alone<T> {
    /// Taken out once it is shown, as the next two.
    queue: Option<Arc<Core<T>>>,
    message: Option<(Message<T>, Pledge)>,
    key: Option<Text>,
    stored: bool,
}

impl<T: Send + Sync + 'static> Show<Delivered<T>> for Alone<T> {
    fn show(&mut self, result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>) -> Delivered<T> {
        let (mut message, pledge) = self.message.take().expect("shown once");
        let queue = self.queue.take().expect("shown once");
        let places = match result {
            Ok(places) => places,
            Err(error) => {
                queue.forgo(pledge);
                let refused = Box::new((message, Refusal::NotStored(error)));
                return Delivered { routed: Err(refused), queues: only(queue) };
            }
        };
        message.set_order(self.key.take());
        if let (true, Some(&place)) = (self.stored, places.first()) {
            message.set_fresh_place_in(place, || queue.filed().depot.spares.take());
        }
        let routed = queue.redeem_quietly(pledge, message, errands).is_routed();
        Delivered { routed: Ok(routed.into()), queues: only(queue) }
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Whether the file gets a message with such a promise: not if a full queue throws it away. What it gives up on
    /// moves on from there, so that whoever has heard `Ok` has it safe.
    pub(super) fn keeps(&self, pledge: &Pledge) -> bool {
        self.is_durable() && (pledge.has_slot() || self.settings.overflow != Overflow::DropNewest)
    }

    pub(crate) fn filed(&self) -> &Filed<T> {
        self.filed.get().expect("a durable queue")
    }

    /// As [`Core::accept`], by way of the file: waits for the commit whatever the patience says.
    pub(crate) fn accept_durably(&self, message: Message<T>, patience: Patience) -> Arrival<T> {
        let delivered = self.begin_durably(message, patience)?.wait();
        delivered.routed.map(Accepted::of_routed).map_err(|refused| *refused)
    }

    /// The same up to the commit.
    pub(crate) fn begin_durably(
        &self,
        message: Message<T>,
        patience: Patience,
    ) -> Result<Pending<Delivered<T>>, (Message<T>, Refusal)> {
        let Some(me) = self.weak().upgrade() else { return Err((message, Refusal::Closed)) };
        match self.prepare(&message, patience) {
            Ok(prepared) => Ok(me.send_prepared(message, prepared)),
            Err(refusal) => Err((message, refusal)),
        }
    }

    /// As [`Parcel::send`].
    fn send_prepared(self: Arc<Self>, mut message: Message<T>, prepared: Prepared) -> Pending<Delivered<T>> {
        let Prepared { key, item, pledge } = prepared;
        let (filed, stored) = (self.filed(), self.keeps(&pledge));
        let depot = Arc::clone(&filed.depot);
        depot.store.wait_for_room();
        let (mut batch, mut mode) = (Batch::new(), Durability::Buffered);
        let rider = message.take_rider();
        if stored {
            (batch, mode) = (item.add_to(batch, filed.stream), filed.durability);
            if let Some(rider) = rider {
                batch = rider.join(batch, &depot);
            }
        }
        depot.commit_shown(batch, mode, Alone { queue: Some(self), key, message: Some((message, pledge)), stored })
    }

    fn pledge_patiently(&self, patience: Patience) -> Result<Pledge, Refusal> {
        loop {
            match self.pledge() {
                Err(Refusal::Full) if self.waits(patience) => self.wait_for_room(patience)?,
                Err(Refusal::Full) => {
                    self.count_refused();
                    return Err(Refusal::Full);
                }
                answer => return answer,
            }
        }
    }

    /// Accepts messages in order, as many in one batch as there is room for. What was not reached when one is
    /// refused stays in `chunk`.
    pub(crate) fn accept_chunk_durably(&self, chunk: &mut Chunk<Message<T>>) -> Result<(), (Message<T>, Refusal)> {
        while let Some(message) = chunk.pop_front() {
            let first = match self.prepare(&message, Patience::Forever) {
                Ok(first) => first,
                Err(refusal) => return Err((message, refusal)),
            };
            let mut bytes = first.bytes();
            let mut together = vec![(message, first)];
            let mut refused = None;
            while together.len() < TOGETHER && bytes < BYTES_TOGETHER {
                let Some(message) = chunk.pop_front() else { break };
                match self.prepare(&message, Patience::None) {
                    Ok(next) => {
                        bytes += next.bytes();
                        together.push((message, next));
                    }
                    // The next round waits for room.
                    Err(Refusal::Full) if self.settings.overflow == Overflow::Wait => {
                        chunk.push_front(message);
                        break;
                    }
                    Err(other) => {
                        refused = Some((message, other));
                        break;
                    }
                }
            }
            if let Err((mut back, error)) = self.commit_together(together) {
                // None of them got in, so the first one tells, and all others are as they were.
                back.extend(refused.map(|(message, _)| message));
                let first = back.remove(0);
                back.into_iter().rev().for_each(|message| chunk.push_front(message));
                return Err((first, Refusal::NotStored(error)));
            }
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        Ok(())
    }

    fn prepare(&self, message: &Message<T>, patience: Patience) -> Result<Prepared, Refusal> {
        let key = self.order_key(message)?;
        let item = self.filed().written(message)?;
        Ok(Prepared { key, item, pledge: self.pledge_patiently(patience)? })
    }

    fn commit_together(&self, together: Vec<(Message<T>, Prepared)>) -> Result<(), (Vec<Message<T>>, StoreError)> {
        let (filed, me) = (self.filed(), self.weak().upgrade().expect("alive while it is called"));
        let mut batch = Batch::new();
        let mut promised = Vec::with_capacity(together.len());
        for (message, Prepared { key, item, pledge }) in together {
            let stored = self.keeps(&pledge);
            if stored {
                batch = item.add_to(batch, filed.stream);
            }
            promised.push((message, key, pledge, stored));
        }
        filed.depot.store.wait_for_room();
        let arrive = move |result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>| {
            let places = match result {
                Ok(places) => places,
                Err(error) => {
                    let back = promised.into_iter().map(|(message, _, pledge, _)| {
                        me.forgo(pledge);
                        message
                    });
                    return Err((back.collect(), error));
                }
            };
            let mut places = places.iter();
            for (mut message, key, pledge, stored) in promised {
                message.set_order(key);
                if let Some(&place) = if stored { places.next() } else { None } {
                    message.set_fresh_place_in(place, || me.filed().depot.spares.take());
                }
                me.redeem_quietly(pledge, message, errands);
            }
            Ok(())
        };
        filed.depot.commit(batch, filed.durability, arrive).wait()
    }

    /// As [`Core::redeem`], without running any of the user's code.
    pub(crate) fn redeem_quietly(
        self: &Arc<Self>,
        pledge: Pledge,
        mut message: Message<T>,
        errands: &mut Vec<Errand>,
    ) -> Accepted {
        if pledge.has_slot() {
            let (superseded, has_spilled) = self.redeem_slot(message, Waking::AfterCommit);
            if superseded.is_some() {
                errands.push(Box::new(move || drop(superseded)));
            }
            self.runtime.note_progress();
            if has_spilled {
                let me = Arc::clone(self);
                errands.push(Box::new(move || me.drop_spilled()));
            }
            return Accepted::Queued;
        }
        let me = Arc::clone(self);
        if self.settings.overflow == Overflow::DropOldest {
            let (accepted, replaced) = self.replace_oldest_quietly(message);
            self.pledge_kept();
            errands.push(Box::new(move || {
                me.drop_spilled();
                me.drop_replaced(replaced);
            }));
            return accepted;
        }
        self.pass_over(&mut message);
        let dropped = self.settings.overflow == Overflow::DropNewest;
        errands.push(Box::new(move || {
            let _ = me.redeem(pledge, message);
        }));
        if dropped { Accepted::Dropped } else { Accepted::Queued }
    }
}

/// Pushed, which is far less work than to collect it.
fn only<A: smallvec::Array>(item: A::Item) -> SmallVec<A> {
    let mut all = SmallVec::new();
    all.push(item);
    all
}

/// What a message about to get into the file goes there with. Apart from it, since that is large.
struct Prepared {
    key: Option<Text>,
    item: Written,
    pledge: Pledge,
}

impl Prepared {
    fn bytes(&self) -> usize {
        self.item.payload_bytes()
    }
}

impl<T: Send + Sync + 'static> Called for Core<T> {
    fn called(self: Arc<Self>) {
        self.wake_uncalled();
        let depot = self.filed.get().map(|filed| Arc::clone(&filed.depot));
        // Perhaps the last handle, and then its messages go with it, which the writer's thread is no place for.
        if let Some((core, depot)) = Arc::into_inner(self).zip(depot) {
            depot.later(vec![Box::new(move || drop(core))]);
        }
    }
}

impl Accepted {
    fn of_routed(routed: usize) -> Self {
        if routed == 0 { Self::Dropped } else { Self::Queued }
    }
}
