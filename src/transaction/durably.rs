//! A transaction that reaches durable queues or logs: one batch for all of its copies in the file, and all of it appears
//! in memory when that is committed.

use super::basket::Baskets;
use super::error::{Obstacle, Trouble};
use super::staged::Staged;
use crate::log::{Entry, LogCore, Spot, Stored};
use crate::message::Message;
use crate::queue::core::Core;
use crate::queue::durable::{Depot, Errand};
use crate::scheduler::TimedId;
use crate::store::{Batch, Durability, Item, Seq, StoreError, StreamId};
use crate::sync::MutexGuard;
use std::sync::Arc;

/// What goes into the file.
pub(super) struct Stow {
    mode: Durability,
    depot: Option<Arc<Depot>>,
    /// Each item with its queue or log.
    items: Vec<(TimedId, Stowed)>,
    /// The first queue or log that is durable, and the operation that reaches it.
    first: Option<(Arc<str>, usize)>,
    operation: usize,
}

/// One item.
enum Stowed {
    Message(StreamId, Box<Item>),
    Record(Entry),
}

impl Stowed {
    /// Adds it to a batch; of a record, what it is there.
    fn add_to(self, batch: Batch, order: &MutexGuard<'_, ()>) -> (Batch, Option<Stored>) {
        match self {
            Self::Message(stream, item) => (batch.insert(stream, item), None),
            Self::Record(entry) => {
                let (batch, stored) = entry.add_to(batch, order);
                (batch, Some(stored))
            }
        }
    }
}

/// Whose the items of a batch are, in order, and what records are in the file.
type Owners = Vec<(TimedId, Option<Stored>)>;

impl Stow {
    /// `None` if nothing durable is reached. Runs the users' codecs; nothing is promised yet.
    pub(super) fn of(operations: &[Box<dyn Staged>]) -> Result<Option<Self>, Trouble> {
        let (mode, items) = (Durability::Buffered, Vec::new());
        let mut stow = Self { mode, depot: None, items, first: None, operation: 0 };
        for (at, operation) in operations.iter().enumerate() {
            stow.operation = at;
            let stowed = operation.stow(&mut stow);
            stowed.map_err(|(by, why)| Trouble { operation: at, target: operation.target(), by, why })?;
        }
        Ok(stow.depot.is_some().then_some(stow))
    }

    pub(super) fn add<T: Send + Sync + 'static>(
        &mut self,
        core: &Core<T>,
        message: &Message<T>,
    ) -> Result<(), (Arc<str>, Obstacle)> {
        let Some(filed) = core.filed.get() else { return Ok(()) };
        let item = filed.item(message).map_err(|refusal| (Arc::clone(&core.name), refusal.into()))?;
        self.goes_to(&filed.depot, filed.durability, &core.name);
        self.items.push((core.number(), Stowed::Message(filed.stream, item)));
        Ok(())
    }

    pub(super) fn add_record<T: Send + Sync + 'static>(
        &mut self,
        log: &LogCore<T>,
        message: &Message<T>,
        spot: &Spot,
    ) -> Result<(), (Arc<str>, Obstacle)> {
        let shelf = &log.shelf;
        let Some((depot, durability)) = shelf.file() else { return Ok(()) };
        let Some(entry) = shelf.entry(message, spot.partition, spot.key.as_ref()) else { return Ok(()) };
        let entry = entry.map_err(|refusal| (Arc::clone(&shelf.name), refusal.into()))?;
        self.goes_to(depot, durability, &shelf.name);
        self.items.push((shelf.number(), Stowed::Record(entry)));
        Ok(())
    }

    fn goes_to(&mut self, depot: &Arc<Depot>, durability: Durability, name: &Arc<str>) {
        self.mode = self.mode.max(durability);
        self.depot.get_or_insert_with(|| Arc::clone(depot));
        self.first.get_or_insert_with(|| (Arc::clone(name), self.operation));
    }

    /// Everything is promised: commits, and puts it in.
    pub(super) fn carry_out(self, operations: &mut Vec<Box<dyn Staged>>, baskets: Baskets) -> Result<(), Trouble> {
        let Self { mode, depot, items, first, .. } = self;
        let depot = depot.expect("there is something for the file");
        depot.store.wait_for_room();
        let staged = std::mem::take(operations);
        let order = depot.in_order();
        let (mut batch, mut owners) = (Batch::new(), Owners::with_capacity(items.len()));
        for (owner, item) in items {
            let stored;
            (batch, stored) = item.add_to(batch, &order);
            owners.push((owner, stored));
        }
        let show = move |result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>| match result {
            Ok(places) => {
                put_all(staged, baskets, owners, places, errands);
                Ok(())
            }
            Err(error) => {
                let mut baskets = baskets;
                baskets.iter_mut().for_each(|(_, basket)| basket.forgo());
                staged.iter().for_each(|operation| operation.unadmit());
                Err((staged, error))
            }
        };
        let pending = depot.commit(batch, mode, show);
        drop(order);
        pending.wait().map_err(|(staged, error)| {
            *operations = staged;
            let (by, operation) = first.expect("there is something for the file");
            let target = operations[operation].target();
            Trouble { operation, target, by, why: Obstacle::NotStored(error.to_string()) }
        })
    }
}

/// As for any transaction, but for what may run the users' code.
fn put_all(
    staged: Vec<Box<dyn Staged>>,
    mut baskets: Baskets,
    owners: Owners,
    places: &[Seq],
    errands: &mut Vec<Errand>,
) {
    owners.into_iter().zip(places).for_each(|((owner, stored), &place)| baskets.place(owner, place, stored));
    staged.into_iter().for_each(|operation| operation.deliver(&mut baskets));
    let rests: Vec<_> = baskets.put().into_iter().map(|unlocked| unlocked.detach()).collect();
    errands.push(Box::new(move || {
        let mut baskets = baskets;
        baskets.iter_mut().zip(rests).for_each(|((_, basket), rest)| basket.finish(rest));
        baskets.drop_waste();
    }));
}
