//! A transaction that reaches durable queues: one batch for all of its copies in the file, and all of it appears
//! in memory when that is committed.

use super::basket::Baskets;
use super::error::{Obstacle, Trouble};
use super::staged::Staged;
use crate::message::Message;
use crate::queue::core::Core;
use crate::queue::durable::{Depot, Errand};
use crate::scheduler::TimedId;
use crate::store::{Batch, Durability, Seq, StoreError};
use std::sync::Arc;

/// What goes into the file.
pub(super) struct Stow {
    batch: Batch,
    mode: Durability,
    depot: Option<Arc<Depot>>,
    /// For each item of the batch its queue.
    owners: Vec<TimedId>,
    /// The first queue that is durable, and the operation that reaches it.
    first: Option<(Arc<str>, usize)>,
    operation: usize,
}

impl Stow {
    /// `None` if no durable queue is reached. Runs the users' codecs; nothing is promised yet.
    pub(super) fn of(operations: &[Box<dyn Staged>]) -> Result<Option<Self>, Trouble> {
        let (batch, owners) = (Batch::new(), Vec::new());
        let mut stow = Self { batch, mode: Durability::Buffered, depot: None, owners, first: None, operation: 0 };
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
        self.batch = std::mem::take(&mut self.batch).insert(filed.stream, item);
        self.mode = self.mode.max(filed.durability);
        self.depot.get_or_insert_with(|| Arc::clone(&filed.depot));
        self.first.get_or_insert_with(|| (Arc::clone(&core.name), self.operation));
        self.owners.push(core.number());
        Ok(())
    }

    /// Everything is promised: commits, and puts it in.
    pub(super) fn carry_out(self, operations: &mut Vec<Box<dyn Staged>>, baskets: Baskets) -> Result<(), Trouble> {
        let Self { batch, mode, depot, owners, first, .. } = self;
        let depot = depot.expect("there is something for the file");
        depot.store.wait_for_room();
        let staged = std::mem::take(operations);
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
        depot.commit(batch, mode, show).wait().map_err(|(staged, error)| {
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
    owners: Vec<TimedId>,
    places: &[Seq],
    errands: &mut Vec<Errand>,
) {
    owners.into_iter().zip(places).for_each(|(owner, &place)| baskets.place(owner, place));
    staged.into_iter().for_each(|operation| operation.deliver(&mut baskets));
    let rests: Vec<_> = baskets.put().into_iter().map(|unlocked| unlocked.detach()).collect();
    errands.push(Box::new(move || {
        let mut baskets = baskets;
        baskets.iter_mut().zip(rests).for_each(|((_, basket), rest)| basket.finish(rest));
        baskets.drop_waste();
    }));
}
