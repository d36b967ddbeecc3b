//! A publish that reaches a durable queue or log: everything else gets the message once the file has it.

use super::accept::{Full, order_keys, promise_all, redeem_rings, refusal_error};
use crate::error::{PublishError, Refused};
use crate::log::{Entry, LogCore, Placed, Spot, Stored};
use crate::message::Message;
use crate::queue::core::{Core, Patience, Refusal};
use crate::queue::durable::{Delivered, Depot, Errand, Others, Parcel, Pending, Stowed};
use crate::store::{Batch, Durability, Seq};
use crate::subscriber::ring::Ring;
use crate::sync::MutexGuard;
use smallvec::SmallVec;
use std::sync::Arc;

/// The queue that a publish to all of these is told as refused by, if the file cannot take it.
pub(super) fn first_durable<T: Send + Sync + 'static>(queues: &[Arc<Core<T>>]) -> Option<&Arc<Core<T>>> {
    queues.iter().find(|queue| queue.is_durable())
}

pub(super) fn accept_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    logs: &[Arc<LogCore<T>>],
    records: Vec<ForLog>,
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let records = logs.iter().cloned().zip(records).collect();
    let pending = begin(queues, rings, records, message, patience)?;
    let durable_log = || logs.iter().find(|log| log.shelf.is_durable());
    pending.wait().routed.map_err(|refused| match first_durable(queues) {
        Some(queue) => refusal_error(queue, *refused),
        None => refused_by_log(durable_log().expect("a queue or a log is durable"), *refused),
    })
}

/// What a message is going to be in a log, and in the file if that is durable.
pub(super) struct ForLog {
    spot: Spot,
    entry: Option<Entry>,
}

/// Runs the user's functions and codec, so no lock may be held.
pub(super) fn stow<T: Send + Sync + 'static>(log: &LogCore<T>, message: &Message<T>) -> Result<ForLog, Refusal> {
    let spot = log.shelf.spot_for(message).map_err(|words| Refusal::Panicked(words.into()))?;
    let entry = log.shelf.entry(message, spot.partition, spot.key.as_ref()).transpose()?;
    Ok(ForLog { spot, entry })
}

pub(super) fn refused_by_log<T>(log: &LogCore<T>, (message, refusal): (Message<T>, Refusal)) -> PublishError<T> {
    let refused = Refused::new(message, &log.shelf.name).by_log();
    match refusal {
        Refusal::Panicked(words) => PublishError::Panicked(refused.because(words)),
        Refusal::Unencodable(words) => PublishError::Unencodable(refused.because(words)),
        Refusal::NotStored(error) => PublishError::NotStored(refused.not_stored(error)),
        _ => PublishError::Closed(refused),
    }
}

/// The same up to the commit. Logs have promised already.
pub(super) fn begin<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    logs: Vec<(Arc<LogCore<T>>, ForLog)>,
    mut message: Message<T>,
    patience: Patience,
) -> Result<Pending<Delivered<T>>, PublishError<T>> {
    let found = order_keys(queues, &message).and_then(|keys| Ok((keys, Stowed::of(queues, &message)?)));
    let (keys, stowed) = match found {
        Ok(found) => found,
        Err((queue, refusal)) => return Err(refusal_error(queue, (message, refusal))),
    };
    let pledges = match promise_all(queues, rings, message.due().is_some(), patience) {
        Ok(pledges) => pledges,
        Err((full, refusal)) => return Err(Full::error(&full, (message, refusal))),
    };
    let others: Option<Box<dyn Others<T>>> = if rings.is_empty() && logs.is_empty() {
        None
    } else {
        let logs = logs.into_iter().map(|(log, ForLog { spot, entry })| {
            let record = log.shelf.record_at(message.share(), spot);
            Destined { log, record: Some(record), entry, stored: None }
        });
        Some(Box::new(Beside { logs: logs.collect(), rings: rings.to_vec() }))
    };
    let queues = SmallVec::from_iter(queues.iter().map(Arc::clone));
    Ok(Parcel { queues, pledges, keys, message: Some(message), others }.send(stowed))
}

/// Logs and subscribers.
struct Beside<T: Send + Sync + 'static> {
    logs: Vec<Destined<T>>,
    rings: Vec<Arc<Ring<T>>>,
}

/// A record of one log.
struct Destined<T> {
    log: Arc<LogCore<T>>,
    /// Taken out when it is appended.
    record: Option<Placed<T>>,
    /// Taken out when it is handed in, if the log is durable; and what it is in the file then.
    entry: Option<Entry>,
    stored: Option<Stored>,
}

impl<T: Send + Sync + 'static> Others<T> for Beside<T> {
    fn file(&self) -> Option<(Arc<Depot>, Durability)> {
        let files = self.logs.iter().filter_map(|to| to.log.shelf.file());
        files.max_by_key(|(_, mode)| *mode).map(|(depot, mode)| (Arc::clone(depot), mode))
    }

    fn stow(&mut self, mut batch: Batch, order: &MutexGuard<'_, ()>) -> Batch {
        for to in &mut self.logs {
            if let Some(entry) = to.entry.take() {
                let stored;
                (batch, stored) = entry.add_to(batch, order);
                to.stored = Some(stored);
            }
        }
        batch
    }

    fn first(&mut self, _: &mut Message<T>, places: &[Seq], errands: &mut Vec<Errand>) {
        let mut places = places.iter();
        for to in &mut self.logs {
            let Some(mut record) = to.record.take() else { continue };
            if let Some(stored) = to.stored {
                places.next().into_iter().for_each(|&place| record.set_place(place, stored));
            }
            to.log.show(vec![record], errands);
        }
    }

    fn last(self: Box<Self>, message: Message<T>, errands: &mut Vec<Errand>) {
        errands.push(Box::new(move || redeem_rings(&self.rings, message)));
    }

    fn forgo(self: Box<Self>) {
        // The publisher has the payload too, so nothing of it is dropped here.
        self.rings.iter().for_each(|ring| ring.forgo());
    }
}
