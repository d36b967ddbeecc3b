//! A publish that reaches a durable queue: everything else gets the message once the file has it.

use super::accept::{Full, order_keys, promise_all, redeem_rings, refusal_error};
use crate::error::PublishError;
use crate::log::{LogCore, Placed};
use crate::message::{Message, Text};
use crate::queue::core::{Core, Patience};
use crate::queue::durable::{Delivered, Errand, Others, Parcel, Pending, Stowed};
use crate::subscriber::ring::Ring;
use smallvec::SmallVec;
use std::sync::Arc;

/// The queue that a publish to all of these is told as refused by, if the file cannot take it.
pub(super) fn first_durable<T: Send + Sync + 'static>(queues: &[Arc<Core<T>>]) -> Option<&Arc<Core<T>>> {
    queues.iter().find(|queue| queue.is_durable())
}

pub(super) fn accept_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    logs: Vec<(Arc<LogCore<T>>, Option<Text>)>,
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let pending = begin(queues, rings, logs, message, patience)?;
    let refused = |refused| refusal_error(first_durable(queues).expect("there is one"), refused);
    pending.wait().map_err(refused)
}

/// The same up to the commit. Logs have promised already.
pub(super) fn begin<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    logs: Vec<(Arc<LogCore<T>>, Option<Text>)>,
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
        let logs = logs.into_iter().map(|(log, key)| {
            let record = log.shelf.record_of(message.share(), key);
            (log, Some(record))
        });
        Some(Box::new(Beside { logs: logs.collect(), rings: rings.to_vec() }))
    };
    let queues = SmallVec::from_iter(queues.iter().map(Arc::clone));
    Ok(Parcel { queues, pledges, keys, message, others }.send(stowed))
}

/// Logs and subscribers.
struct Beside<T: Send + Sync + 'static> {
    /// The record is taken out when it is written.
    logs: Vec<(Arc<LogCore<T>>, Option<Placed<T>>)>,
    rings: Vec<Arc<Ring<T>>>,
}

impl<T: Send + Sync + 'static> Others<T> for Beside<T> {
    fn first(&mut self, _: &mut Message<T>, errands: &mut Vec<Errand>) {
        for (log, record) in &mut self.logs {
            let Some(record) = record.take() else { continue };
            let rest = log.shelf.put_together(vec![record]).release().detach();
            let log = Arc::clone(log);
            errands.push(Box::new(move || log.shelf.finish_detached(rest)));
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
