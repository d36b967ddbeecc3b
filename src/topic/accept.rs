//! What a message reaches takes it altogether, or not at all.

#[cfg(feature = "sqlite")]
use super::durably;
use super::route::Wide;
use crate::error::{PublishError, Refused};
use crate::log::LogCore;
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::core::{Core, Patience, Pledge, Refusal};
use crate::subscriber::ring::{Ring, for_subscribers};
use smallvec::SmallVec;
use std::sync::Arc;

pub(super) fn accept_one<T: Send + Sync + 'static>(
    queue: &Core<T>,
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let accepted = queue.accept(message, patience).map_err(|refused| refusal_error(queue, refused))?;
    Ok(usize::from(accepted.is_routed()))
}

/// Every queue and every ring takes the message, or none does: each promises first. Nothing is promised
/// while waiting, so that two publishes cannot wait for each other.
pub(super) fn accept_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    #[cfg(feature = "sqlite")]
    if durably::first_durable(queues).is_some() {
        return durably::accept_all(queues, rings, &[], Vec::new(), message, patience);
    }
    accept_all_after(queues, rings, message, patience, |_| {})
}

/// As [`accept_all`]; `first` is done once all have promised, and nobody has the message yet.
fn accept_all_after<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    mut message: Message<T>,
    patience: Patience,
    first: impl FnOnce(&mut Message<T>),
) -> Result<usize, PublishError<T>> {
    let keys = match order_keys(queues, &message) {
        Ok(keys) => keys,
        Err((queue, refusal)) => return Err(refusal_error(queue, (message, refusal))),
    };
    let pledges = match promise_all(queues, rings, message.due().is_some(), patience) {
        Ok(pledges) => pledges,
        Err((full, refusal)) => return Err(full.error((message, refusal))),
    };
    first(&mut message);
    Ok(redeem_all(queues, rings, pledges, keys, message))
}

/// Has each promise a place, waiting as long as `patience`. Nothing is promised while waiting.
pub(super) fn promise_all<'a, T: Send + Sync + 'static>(
    queues: &'a [Arc<Core<T>>],
    rings: &'a [Arc<Ring<T>>],
    is_delayed: bool,
    patience: Patience,
) -> Result<SmallVec<[Pledge; 8]>, (Full<'a, T>, Refusal)> {
    let mut woken_by: Option<&Core<T>> = None;
    loop {
        let (full, mut refusal) = match pledge_all(queues, rings, is_delayed) {
            Ok(pledges) => return Ok(pledges),
            Err(refused) => refused,
        };
        // The room this thread was woken for is of no use to it, but may be to another writer.
        if let Some(other) = woken_by.take().filter(|other| !full.is(other)) {
            other.pass_room_on();
        }
        if refusal == Refusal::Full && full.waits(patience) {
            match full.wait_for_room(patience) {
                Ok(()) => {
                    woken_by = full.queue();
                    continue;
                }
                Err(end) => refusal = end,
            }
        }
        return Err((full, refusal));
    }
}

/// As [`accept_all`], with logs. They get the message before anybody else does, so that what a consumer does
/// because of it comes behind it in the log. A log always has room, so only a closed one refuses.
pub(super) fn accept_logged<T: Send + Sync + 'static>(
    reached: &Wide<T>,
    mut message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let Wide { queues, rings, logs, .. } = reached;
    #[cfg(feature = "sqlite")]
    if logs.iter().any(|log| log.shelf.is_durable()) || durably::first_durable(queues).is_some() {
        return accept_logged_durably(reached, message, patience);
    }
    let mut keys: SmallVec<[Option<Text>; 4]> = SmallVec::new();
    for log in logs {
        match log.shelf.key_for(&message) {
            Ok(key) => keys.push(key),
            Err(words) => return Err(PublishError::Panicked(Refused::new(message, &log.shelf.name).because(words))),
        }
    }
    if let Err(closed) = pledge_logs(logs) {
        return Err(PublishError::Closed(Refused::new(message, &closed.shelf.name)));
    }
    if queues.is_empty() && rings.is_empty() {
        // A group cannot reply, and must not keep the requester waiting.
        message.forget_request();
        let mut written = logs.iter().zip(keys);
        let last = written.next_back();
        written.for_each(|(log, key)| log.shelf.redeem(message.share(), key));
        last.into_iter().zip(Some(message)).for_each(|((log, key), message)| log.shelf.redeem(message, key));
        return Ok(logs.len());
    }
    let write = |message: &mut Message<T>| {
        logs.iter().zip(keys).for_each(|(log, key)| log.shelf.redeem(message.share(), key));
    };
    beside(logs, accept_all_after(queues, rings, message, patience, write))
}

/// As [`accept_logged`], by way of the file.
#[cfg(feature = "sqlite")]
fn accept_logged_durably<T: Send + Sync + 'static>(
    reached: &Wide<T>,
    mut message: Message<T>,
    patience: Patience,
) -> Result<usize, PublishError<T>> {
    let Wide { queues, rings, logs, .. } = reached;
    let mut stowed = Vec::with_capacity(logs.len());
    for log in logs {
        match durably::stow(log, &message) {
            Ok(record) => stowed.push(record),
            Err(refusal) => return Err(durably::refused_by_log(log, (message, refusal))),
        }
    }
    if let Err(closed) = pledge_logs(logs) {
        return Err(PublishError::Closed(Refused::new(message, &closed.shelf.name)));
    }
    if queues.is_empty() && rings.is_empty() {
        message.forget_request();
    }
    beside(logs, durably::accept_all(queues, rings, logs, stowed, message, patience))
}

/// Has each promise a place, or none; which one is closed.
fn pledge_logs<T: Send + Sync + 'static>(logs: &[Arc<LogCore<T>>]) -> Result<(), &LogCore<T>> {
    let Some(refusing) = logs.iter().position(|log| !log.shelf.pledge()) else { return Ok(()) };
    logs[..refusing].iter().for_each(|log| log.shelf.forgo());
    Err(&logs[refusing])
}

/// The logs have promised: what came of it, given how many others have taken it, or that they do not.
fn beside<T: Send + Sync + 'static>(
    logs: &[Arc<LogCore<T>>],
    others: Result<usize, PublishError<T>>,
) -> Result<usize, PublishError<T>> {
    if others.is_err() {
        logs.iter().for_each(|log| log.shelf.forgo());
    }
    others.map(|others| logs.len() + others)
}

pub(super) fn redeem_all<T: Send + Sync + 'static>(
    queues: &[Arc<Core<T>>],
    rings: &[Arc<Ring<T>>],
    pledges: SmallVec<[Pledge; 8]>,
    keys: SmallVec<[Option<Text>; 2]>,
    mut message: Message<T>,
) -> usize {
    let mut promised = queues.iter().zip(pledges).zip(keys);
    // Without subscribers, the last queue gets the message itself.
    let last = if rings.is_empty() { promised.next_back() } else { None };
    let mut routed = 0;
    for ((queue, pledge), key) in promised {
        let copy = message.share_with_queue().ordered_by(key);
        routed += usize::from(queue.redeem(pledge, copy).is_routed());
    }
    if let Some(((queue, pledge), key)) = last {
        return routed + usize::from(queue.redeem(pledge, message.ordered_by(key)).is_routed());
    }
    redeem_rings(rings, message);
    routed
}

/// For the subscribers behind each ring, which has promised. They only watch: they cannot reply, and must not keep
/// the requester waiting.
pub(super) fn redeem_rings<T: Send + Sync + 'static>(rings: &[Arc<Ring<T>>], mut message: Message<T>) {
    message.forget_request();
    let timer = message.take_timer();
    let Some((ring, others)) = rings.split_first() else { return drop_contained(message) };
    if others.is_empty() {
        return ring.redeem_alone(message, timer);
    }
    let message = for_subscribers(message);
    others.iter().for_each(|ring| ring.redeem(Arc::clone(&message), timer.clone()));
    ring.redeem(message, timer);
}

/// What did not promise a place.
pub(super) enum Full<'a, T> {
    Queue(&'a Core<T>),
    Ring(&'a Ring<T>),
}

impl<'a, T: Send + Sync + 'static> Full<'a, T> {
    pub(super) fn queue(&self) -> Option<&'a Core<T>> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Ring(_) => None,
        }
    }

    pub(super) fn is(&self, other: &Core<T>) -> bool {
        self.queue().is_some_and(|queue| std::ptr::eq(queue, other))
    }

    pub(super) fn waits(&self, patience: Patience) -> bool {
        match self {
            Self::Queue(queue) => queue.waits(patience),
            Self::Ring(_) => !matches!(patience, Patience::None),
        }
    }

    pub(super) fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        match self {
            Self::Queue(queue) => queue.wait_for_room(patience),
            Self::Ring(ring) => ring.wait_for_room(patience),
        }
    }

    pub(super) fn error(&self, refused: (Message<T>, Refusal)) -> PublishError<T> {
        match self {
            Self::Queue(queue) => refusal_error(queue, refused),
            Self::Ring(ring) => ring.error(refused),
        }
    }
}

/// What each queue orders the message by, if it does. Found before anything is promised, since a user's
/// function may panic.
pub(super) fn order_keys<'a, T: Send + Sync + 'static>(
    queues: &'a [Arc<Core<T>>],
    message: &Message<T>,
) -> Result<SmallVec<[Option<Text>; 2]>, (&'a Core<T>, Refusal)> {
    let keys = queues.iter().map(|queue| queue.order_key(message).map_err(|refusal| (&**queue, refusal)));
    keys.collect()
}

pub(super) fn pledge_all<'a, T: Send + Sync + 'static>(
    queues: &'a [Arc<Core<T>>],
    rings: &'a [Arc<Ring<T>>],
    is_delayed: bool,
) -> Result<SmallVec<[Pledge; 8]>, (Full<'a, T>, Refusal)> {
    let mut pledges = SmallVec::new();
    let mut refused = None;
    for queue in queues {
        match queue.pledge() {
            Ok(pledge) => pledges.push(pledge),
            Err(refusal) => {
                refused = Some((Full::Queue(queue), refusal));
                break;
            }
        }
    }
    let mut promised = 0;
    while refused.is_none() && promised < rings.len() {
        match rings[promised].pledge(is_delayed) {
            Ok(()) => promised += 1,
            Err(refusal) => refused = Some((Full::Ring(&rings[promised]), refusal)),
        }
    }
    let Some(refused) = refused else { return Ok(pledges) };
    queues.iter().zip(pledges).for_each(|(queue, pledge)| queue.forgo(pledge));
    rings[..promised].iter().for_each(|ring| ring.forgo());
    Err(refused)
}

pub(crate) fn refusal_error<T: Send + Sync + 'static>(
    queue: &Core<T>,
    (message, refusal): (Message<T>, Refusal),
) -> PublishError<T> {
    match refusal {
        Refusal::Full => PublishError::Full(queue.refused(message)),
        Refusal::Closed => PublishError::Closed(queue.refused(message)),
        Refusal::Timeout => PublishError::Timeout(queue.refused(message)),
        Refusal::Deadlock(why) => PublishError::Deadlock(queue.deadlocked(message, why)),
        Refusal::Panicked(words) => PublishError::Panicked(queue.refused(message).because(words)),
        Refusal::Limited(wait) => PublishError::Limited(queue.refused(message).limited(wait)),
        Refusal::Unencodable(words) => PublishError::Unencodable(queue.refused(message).because(words)),
        Refusal::NotStored(error) => PublishError::NotStored(queue.refused(message).not_stored(error)),
    }
}
