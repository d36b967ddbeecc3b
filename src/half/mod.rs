//! Half messages: prepared before a local transaction, published or dropped by what becomes of it.

mod check_back;
mod error;
#[cfg(feature = "sqlite")]
mod filed;
#[cfg(not(feature = "sqlite"))]
#[path = "memory_only.rs"]
mod filed;
mod halves;
mod table;

pub use check_back::{CheckBack, IntoResolution, Resolution};
pub use error::{HalfError, PrepareError, TransactionalError, Unsettled};

pub(crate) use check_back::Timing;
pub(crate) use halves::{AnyHalves, Halves};

use crate::error::Refused;
use crate::message::{Message, MessageId, Text};
use crate::outcome::Failure;
use crate::queue::core::Patience;
use crate::topic::{Receipt, Topic};
use halves::Unprepared;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use table::Ending;

/// What the names of queues begin with that belong to a topic's half messages.
pub(crate) fn half_name(topic: &str) -> String {
    format!("{topic}.half")
}

/// How a half message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HalfFate {
    /// It was published, or will be as soon as there is room.
    Committed,
    /// It was dropped.
    RolledBack,
    /// It became a dead letter: nobody could say what became of its transaction.
    Unresolved,
    /// It was taken out by [`Topic::drain_halves`].
    Drained,
}

impl fmt::Display for HalfFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::Unresolved => "a dead letter",
            Self::Drained => "drained",
        })
    }
}

/// A message that is prepared but not published: its producer's handle on it; see [`Topic::prepare`].
///
/// Dropping it says nothing about the local transaction, so the topic's [`CheckBack`] finds out. Settling twice
/// does not compile:
///
/// ```compile_fail,E0382
/// # fn twice(half: postroom::Half<u32>) {
/// half.commit().unwrap();
/// half.commit().unwrap(); // use of moved value
/// # }
/// ```
#[must_use = "dropping it leaves the message to the check-back"]
pub struct Half<T: Send + Sync + 'static> {
    id: MessageId,
    halves: Arc<Halves<T>>,
    ending: Ending,
    open: bool,
}

impl<T: Send + Sync + 'static> Half<T> {
    /// The message's id, by which [`Topic::commit_half`] and [`Topic::rollback_half`] find it.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The local transaction was committed: publishes the message, waiting for room as [`Topic::publish`] does. A
    /// delay or time to live of the message counts from here.
    ///
    /// # Errors
    /// If it could not be published, it stays open and the handle comes back; if the check-back has settled it
    /// before, that says how.
    pub fn commit(self) -> Result<Receipt, Unsettled<T>> {
        self.commit_with(Patience::Forever)
    }

    /// As [`Half::commit`], without ever waiting.
    ///
    /// # Errors
    /// As [`Half::commit`].
    pub fn try_commit(self) -> Result<Receipt, Unsettled<T>> {
        self.commit_with(Patience::None)
    }

    /// As [`Half::commit`], waiting for room at most `timeout`.
    ///
    /// # Errors
    /// As [`Half::commit`].
    pub fn commit_timeout(self, timeout: Duration) -> Result<Receipt, Unsettled<T>> {
        let deadline = self.halves.runtime.clock.now().after(timeout);
        self.commit_with(Patience::Until(deadline))
    }

    /// The local transaction was rolled back: drops the message.
    ///
    /// # Errors
    /// If the check-back has settled it before, or does so now.
    pub fn rollback(self) -> Result<(), Unsettled<T>> {
        let result = self.halves.roll_back(self.id, Some(&self.ending));
        self.conclude(result)
    }

    fn commit_with(self, patience: Patience) -> Result<Receipt, Unsettled<T>> {
        let result = self.halves.commit(self.id, Some(&self.ending), patience);
        self.conclude(result)
    }

    fn conclude<R>(mut self, result: Result<R, HalfError>) -> Result<R, Unsettled<T>> {
        // A later message may have the same id.
        let ended = *self.ending.lock();
        match (result, ended) {
            (Ok(answer), _) => {
                self.open = false;
                Ok(answer)
            }
            (Err(HalfError::NotOpen(_) | HalfError::BeingSettled | HalfError::Settled(_)), Some(fate)) => {
                self.open = false;
                Err(Unsettled { why: HalfError::Settled(fate), half: None })
            }
            (Err(why @ HalfError::Settled(_)), None) => {
                self.open = false;
                Err(Unsettled { why, half: None })
            }
            (Err(why), _) => Err(Unsettled { why, half: Some(self) }),
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Half<T> {
    fn drop(&mut self) {
        if self.open {
            self.halves.counts().unknown.add(1);
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Half<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Half").field("topic", &self.halves.topic).field("id", &self.id).finish_non_exhaustive()
    }
}

/// What [`Topic::publish_transactional`] came to.
#[derive(Debug)]
pub enum Published {
    /// The local transaction was committed and the message published.
    Committed(Receipt),
    /// The local transaction was rolled back, with the error it answered; the message is gone.
    RolledBack(Option<Failure>),
    /// The local transaction answered [`Resolution::Unknown`]; the check-back will find out about this message.
    Unknown(MessageId),
}

impl<T: Send + Sync + 'static> Topic<T> {
    /// Keeps a message back until it is known whether it is to be published: prepare it, run the local
    /// transaction (save the order), then [commit](Half::commit) or [roll back](Half::rollback). Neither consumers
    /// nor subscribers see it before.
    ///
    /// If the producer vanishes in between, the topic's [`CheckBack`] asks what became of the transaction, and the
    /// message is published, dropped, or in the end a dead letter: never lost, and never published unasked. So
    /// what is saved and what is published agree, without a transaction over both. The message itself lives in
    /// memory, and is gone when the process dies, unless the check-back is `durable` (feature `sqlite`): then this
    /// waits until it is in the broker's file.
    ///
    /// ```
    /// use postroom::{Broker, CheckBack, Message, Queue, Resolution, Topic};
    /// use std::collections::HashSet;
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    ///
    /// let (broker, simulation) = Broker::simulated(1);
    /// let saved = Arc::new(Mutex::new(HashSet::new())); // the database
    /// let table = saved.clone();
    /// let check = CheckBack::new(move |order: &Message<u32>| match table.lock().unwrap().contains(&**order) {
    ///     true => Resolution::Commit,
    ///     false => Resolution::Rollback,
    /// });
    /// let orders: Topic<u32> = broker.topic("orders").check_back(check).declare()?;
    /// let billing: Queue<u32> = broker.queue("billing").declare()?;
    /// orders.bind(&billing, "#")?;
    ///
    /// let half = orders.prepare("order.placed", 1)?;
    /// assert!(billing.is_empty());
    /// saved.lock().unwrap().insert(1);
    /// half.commit()?;
    ///
    /// let half = orders.prepare("order.placed", 2)?;
    /// saved.lock().unwrap().insert(2);
    /// drop(half); // crashed before it could say so
    /// drop(orders.prepare("order.placed", 3)?); // crashed before it had saved anything
    ///
    /// simulation.advance(Duration::from_secs(6));
    /// let billed: Vec<u32> = billing.list(9).iter().map(|order| **order).collect();
    /// assert_eq!(billed, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Gives the message back: the topic has no check-back, too many are open, one of the same id is, the broker is
    /// shutting down, or the broker's file does not take it.
    pub fn prepare(&self, key: impl AsRef<str>, message: impl Into<Message<T>>) -> Result<Half<T>, PrepareError<T>> {
        let mut message = message.into();
        message.forget_request();
        let refused = |message| Refused::new(message, &self.core.name);
        let Some(halves) = self.core.halves() else { return Err(PrepareError::NoCheckBack(refused(message))) };
        self.core.stamp(&mut message, Text::new(key.as_ref()));
        match halves.prepare(key.as_ref(), message) {
            Ok((id, ending)) => Ok(Half { id, halves: Arc::clone(halves), ending, open: true }),
            Err((message, Unprepared::TooMany)) => Err(PrepareError::TooMany(refused(message))),
            Err((message, Unprepared::SameId)) => Err(PrepareError::SameId(refused(message))),
            Err((message, Unprepared::Closed)) => Err(PrepareError::Closed(refused(message))),
            Err((message, Unprepared::NoThread(error))) => {
                Err(PrepareError::NoThread(refused(message).because(error.to_string())))
            }
            #[cfg(feature = "sqlite")]
            Err((message, Unprepared::Unencodable(words))) => {
                Err(PrepareError::Unencodable(refused(message).because(words)))
            }
            #[cfg(feature = "sqlite")]
            Err((message, Unprepared::NotStored(error))) => {
                Err(PrepareError::NotStored(refused(message).not_stored(error)))
            }
        }
    }

    /// Prepares a message, runs `local` with it, and settles it as that answers: `()` or `Ok` commits, an error
    /// rolls back, a [`Resolution`] says itself. If `local` panics, the message is left to the check-back, and the
    /// panic goes on.
    ///
    /// An error must mean that nothing was saved. One that leaves it open (the connection broke during the
    /// commit) is answered as [`Resolution::Unknown`].
    ///
    /// ```
    /// use postroom::{Broker, CheckBack, Published, Queue, Resolution, Topic};
    ///
    /// let broker = Broker::new();
    /// let check = CheckBack::new(|_| Resolution::Unknown);
    /// let orders: Topic<&str> = broker.topic("orders").check_back(check).declare()?;
    /// let billing: Queue<&str> = broker.queue("billing").declare()?;
    /// orders.bind(&billing, "#")?;
    ///
    /// let save = |order: &&str| order.parse::<u32>().map(drop);
    /// assert!(matches!(orders.publish_transactional("placed", "17", |order| save(order))?, Published::Committed(_)));
    /// assert!(matches!(orders.publish_transactional("placed", "x", |order| save(order))?, Published::RolledBack(_)));
    /// assert_eq!(billing.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the message could not be prepared, `local` is not run. If it could not be settled, the handle comes back;
    /// dropped, it leaves the message to the check-back.
    pub fn publish_transactional<R: IntoResolution>(
        &self,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
        local: impl FnOnce(&Message<T>) -> R,
    ) -> Result<Published, TransactionalError<T>> {
        let half = self.prepare(key, message).map_err(TransactionalError::Prepare)?;
        // Only a drain in the same moment can have taken it.
        let Some(copy) = half.halves.copy(half.id) else { return Ok(Published::Unknown(half.id)) };
        let (resolution, error) = local(&copy).into_resolution();
        crate::outcome::drop_contained(copy);
        match resolution {
            Resolution::Commit => half.commit().map(Published::Committed),
            Resolution::Rollback => half.rollback().map(|()| Published::RolledBack(error)),
            Resolution::Unknown => Ok(Published::Unknown(half.id)),
        }
        .map_err(TransactionalError::Settle)
    }

    /// Commits a half message by its id: for a producer that has lost its handle. Waits for room as
    /// [`Topic::publish`] does.
    ///
    /// # Errors
    /// [`HalfError::NotOpen`] the second time.
    pub fn commit_half(&self, id: impl Into<MessageId>) -> Result<Receipt, HalfError> {
        let id = id.into();
        self.core.halves().map_or(Err(HalfError::NotOpen(id)), |halves| halves.commit(id, None, Patience::Forever))
    }

    /// Rolls a half message back by its id.
    ///
    /// # Errors
    /// [`HalfError::NotOpen`] the second time.
    pub fn rollback_half(&self, id: impl Into<MessageId>) -> Result<(), HalfError> {
        let id = id.into();
        self.core.halves().map_or(Err(HalfError::NotOpen(id)), |halves| halves.roll_back(id, None))
    }

    /// The half messages that are open and not just being settled, by id. They share their payloads with those
    /// kept back.
    #[must_use]
    pub fn halves(&self) -> Vec<Message<T>> {
        self.core.halves().map_or_else(Vec::new, |halves| halves.list())
    }

    /// Takes all open half messages out, except those just being settled. Also after shutdown, unless they are
    /// durable: then they stay in the file.
    #[must_use = "the messages are no longer kept"]
    pub fn drain_halves(&self) -> Vec<Message<T>> {
        self.core.halves().map_or_else(Vec::new, |halves| halves.drain())
    }
}
