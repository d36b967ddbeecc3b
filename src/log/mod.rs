//! Logs: retained, partitioned, read again and again.

// In reading order.
mod record;
mod segment;
mod chunk;
mod retention;
#[cfg(feature = "sqlite")]
mod durable;
#[cfg(not(feature = "sqlite"))]
#[path = "memory_only.rs"]
mod durable;
mod holdings;
mod partition;
mod compaction;
mod shelf;
mod put;
mod builder;
mod replay;
mod board;
mod lane;
mod core;
mod claim;
mod settle;
mod consumer;
mod squad;
mod hand;
mod reader;
mod group;

pub use builder::LogBuilder;
pub use consumer::GroupConsumerBuilder;
#[cfg(feature = "sqlite")]
pub use durable::LogTicket;
pub use group::{Group, GroupBuilder};
pub use reader::Reader;
pub use record::{Offset, Record};
pub use replay::{Replay, Start};
pub use retention::Retention;

use crate::broker::WeakBroker;
use crate::clock::Timestamp;
use crate::dead_letter::DeadLetterSink;
use crate::describe::{GroupDescription, LogDescription};
use crate::error::{AppendError, BatchError, Error, LogError, Refused};
use crate::message::Message;
use crate::queue::durable::promise;
use crate::shutdown::Leftover;
use crate::stats::LogStats;
use crate::sync::{Condvar, Mutex};
use core::GroupCore;
#[cfg(feature = "sqlite")]
pub(crate) use durable::{Durably, Entry};
use partition::{Gate, Located};
pub(crate) use put::{Placed, Putting, Spot, Stored, Written};
use shelf::Shelf;
use std::any::{Any, type_name};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A handle to a log: keeps what is appended for as long as its [`Retention`] says, and lets any number of
/// [groups](Group) read all of it, each at its own pace and from where it likes.
///
/// Cheap to clone; all clones are the same log. It has one or more partitions. Messages with the same
/// ordering key ([`Message::with_key`]) go to the same partition, by the FNV-1a hash of the key, which is the
/// same in every run; others go around. Order is kept within a partition. Each record has an offset there,
/// which never changes and is never given to another.
///
/// A log always has room, so an append waits for nobody and is refused only once the broker shuts down. It
/// delivers at once: a delay, a time to live or a priority of a message mean nothing to it.
///
/// ```
/// use postroom::{Broker, Log, LogName, Message, Record, Retention, Start};
///
/// const LINES: LogName<String> = LogName::new("lines");
///
/// let broker = Broker::new();
/// let lines = broker.log(LINES).partitions(4).retain(Retention::count(100_000)).declare()?;
/// let at = lines.append(Message::new("started".to_string()).with_key("web-1")).unwrap();
/// assert_eq!(at.offset, 0);
///
/// let indexer = lines.group("indexer").start(Start::Earliest)?;
/// indexer.consumer().workers(2).start(|line: &Record<String>| assert_eq!(line.key(), Some("web-1")))?;
/// assert!(broker.wait_idle(std::time::Duration::from_secs(5)));
/// assert_eq!(indexer.lag(), 0);
/// # Ok::<(), postroom::Error>(())
/// ```
pub struct Log<T> {
    pub(crate) core: Arc<LogCore<T>>,
}

pub(crate) struct LogCore<T> {
    pub(crate) shelf: Arc<Shelf<T>>,
    groups: Mutex<Groups<T>>,
    /// Waited on with the groups: one has been made, or could not be.
    founded: Condvar,
    broker: WeakBroker,
}

struct Groups<T> {
    by_name: BTreeMap<Arc<str>, Arc<GroupCore<T>>>,
    /// Of groups that have been removed.
    dead_letters: BTreeMap<Arc<str>, Arc<dyn DeadLetterSink<T>>>,
    /// Of groups that are being made. Nothing is locked meanwhile, since a durable log waits for its file.
    founding: BTreeSet<String>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), dead_letters: BTreeMap::new(), founding: BTreeSet::new() }
    }
}

impl<T: Send + Sync + 'static> Log<T> {
    /// The name it was declared under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.shelf.name
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.core.shelf.width()
    }

    /// The partition of an ordering key.
    #[must_use]
    pub fn partition_of(&self, key: &str) -> usize {
        self.core.shelf.partition_of(key)
    }

    /// Appends a message; where that was.
    ///
    /// # Errors
    /// Gives the message back if the broker is shutting down, or if the log's function for the key panics.
    #[inline]
    pub fn append(&self, message: impl Into<Message<T>>) -> Result<Offset, AppendError<T>> {
        let shelf = &self.core.shelf;
        let mut message = message.into();
        #[cfg(feature = "sqlite")]
        if shelf.is_durable() {
            return self.append_durably(message);
        }
        match shelf.key_for(&message) {
            Ok(key) => message.take_key(key),
            Err(words) => return Err(self.panicked(message, words)),
        }
        shelf.stamp(&mut message);
        let partition = shelf.partition_for(&message);
        // It stays where it is until it goes to its place.
        let Some(mut place) = shelf.place_for(partition, &mut message) else { return Err(self.closed(message)) };
        place.tail().push(message);
        Ok(shelf.placed(partition, place))
    }

    /// Appends many messages; where each was. Those without a key all go to one partition.
    ///
    /// All or none are taken. What goes to one partition is appended at once: it stands there together and in
    /// this order, with nothing of anybody else between. Partitions follow one another, so a reader can see
    /// a part of the batch before the rest of it is there.
    ///
    /// Nothing has been appended if the iterator, or a conversion into a message, panics.
    ///
    /// # Errors
    /// As [`Log::append`]. All messages come back, in order: the one that was refused in the cause (the first
    /// one if the broker is shutting down), all others in `rest`.
    pub fn append_batch<M: Into<Message<T>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Offset>, BatchError<T, AppendError<T>>> {
        let shelf = &self.core.shelf;
        #[cfg(feature = "sqlite")]
        if shelf.is_durable() {
            return self.append_batch_durably(messages.into_iter().map(Into::into).collect());
        }
        let (mut keyless, mut panicked) = (None, None);
        let place = |(at, message): (usize, M)| {
            let mut message = message.into();
            match shelf.key_for(&message) {
                Ok(key) => message.take_key(key),
                Err(words) => _ = panicked.get_or_insert((at, words)),
            }
            shelf.stamp(&mut message);
            let partition = match message.key() {
                Some(key) => shelf.partition_of(key),
                None => *keyless.get_or_insert_with(|| shelf.partition_for(&message)),
            };
            shelf.place(partition, message)
        };
        let batch: Vec<_> = messages.into_iter().enumerate().map(place).collect();
        if let Some((at, words)) = panicked {
            return Err(refused(batch, at, |message| self.panicked(message, words)));
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        shelf.append_batch(batch).map_err(|batch| refused(batch, 0, |message| self.closed(message)))
    }

    #[cold]
    fn panicked(&self, mut message: Message<T>, words: String) -> AppendError<T> {
        message.attempt = 0;
        AppendError::Panicked(Refused::new(message, &self.core.shelf.name).because(words))
    }

    #[cold]
    fn closed(&self, mut message: Message<T>) -> AppendError<T> {
        message.attempt = 0;
        AppendError::Closed(Refused::new(message, &self.core.shelf.name))
    }

    /// Describes a group of readers to start, or to find.
    pub fn group(&self, name: impl Into<String>) -> GroupBuilder<T> {
        GroupBuilder::new(Arc::clone(&self.core), name.into())
    }

    /// Forgets a group: where it stood, what it has not handled, its counters. Nothing is taken from the log,
    /// and the dead letters that the group has made stay in their queue; a group of the same name that is
    /// started later begins as it says and goes on with that queue. What held a [`Group`] or a [`Reader`] of
    /// it finds [`LogError::Removed`].
    ///
    /// # Errors
    /// If there is no group of that name, if it has consumers that were not stopped or readers by hand, or if
    /// there is no room among the dead letters for what it has given up on.
    pub fn remove_group(&self, name: &str) -> Result<(), Error> {
        self.core.remove_group(name)
    }

    /// One record; in a compacted log the first one that is still there from this offset on. If it is only in the
    /// file of a durable log, it is read from there, alone: many in a row are for a group.
    ///
    /// # Errors
    /// [`LogError::Trimmed`], [`LogError::BeyondEnd`], [`LogError::NoSuchPartition`] or [`LogError::NotRead`].
    pub fn read(&self, partition: usize, offset: u64) -> Result<Record<T>, LogError> {
        let (_, end) = self.range(partition)?;
        let shelf = &self.core.shelf;
        let mut from = offset;
        loop {
            // Retention may have been faster than the file was read.
            let oldest = shelf.partition(partition).range().0;
            if offset < oldest {
                return Err(LogError::Trimmed { partition, asked: offset, oldest });
            }
            match shelf.locate(partition, from) {
                Located::At { segment, index, .. } => return Ok(Record::new(segment, index, partition, 1)),
                // A record alone: whoever reads many does better with a group.
                Located::Unread(places) => match shelf.fetch_one(partition, from, places) {
                    Ok(Some(record)) => return Ok(record),
                    Ok(None) => from = places.end,
                    Err(_) => return Err(LogError::NotRead { partition }),
                },
                Located::Trimmed { .. } => {}
                Located::Gap(_) | Located::End => return Err(LogError::BeyondEnd { partition, asked: offset, end }),
            }
        }
    }

    /// The offset of the oldest record that is still there, or of the next one to come.
    ///
    /// # Errors
    /// [`LogError::NoSuchPartition`].
    pub fn oldest(&self, partition: usize) -> Result<u64, LogError> {
        self.range(partition).map(|(oldest, _)| oldest)
    }

    /// The offset of the next record to come.
    ///
    /// # Errors
    /// [`LogError::NoSuchPartition`].
    pub fn end(&self, partition: usize) -> Result<u64, LogError> {
        self.range(partition).map(|(_, end)| end)
    }

    fn range(&self, partition: usize) -> Result<(u64, u64), LogError> {
        if partition >= self.partitions() {
            return Err(LogError::NoSuchPartition { asked: partition, partitions: self.partitions() });
        }
        Ok(self.core.shelf.partition(partition).range())
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.core.shelf.all().map(|partition| partition.counts().retained).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes every record whose key has a later one, on the calling thread; how many that were. Records
    /// without a key stay. A log that was declared without [`LogBuilder::compact`] is left as it is: 0.
    pub fn compact_now(&self) -> u64 {
        if !self.core.shelf.compact {
            return 0;
        }
        (0..self.partitions()).map(|partition| self.core.shelf.compact(partition, true)).sum()
    }

    /// Its counters, and those of its groups.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.core.log_stats()
    }
}

/// Gives back a batch of which the message at this place was refused.
#[cold]
fn refused<T>(
    batch: Vec<Placed<T>>,
    at: usize,
    cause: impl FnOnce(Message<T>) -> AppendError<T>,
) -> BatchError<T, AppendError<T>> {
    let untouched = |placed: Placed<T>| {
        let mut message = placed.into_message();
        message.attempt = 0;
        message
    };
    let mut rest: Vec<_> = batch.into_iter().map(untouched).collect();
    let cause = cause(rest.remove(at));
    BatchError { accepted: 0, cause, rest }
}

/// A group is being made.
struct Founding<'a, T> {
    log: &'a LogCore<T>,
    name: String,
}

impl<T> Drop for Founding<'_, T> {
    fn drop(&mut self) {
        self.log.groups.lock().founding.remove(&self.name);
        self.log.founded.notify_all();
    }
}

impl<T: Send + Sync + 'static> LogCore<T> {
    fn all_groups(&self) -> Vec<Arc<GroupCore<T>>> {
        self.groups.lock().by_name.values().cloned().collect()
    }

    fn remove_group(&self, name: &str) -> Result<(), Error> {
        let subject = || format!("group {name:?} of log {:?}", self.shelf.name);
        let group = self.groups.lock().by_name.get(name).cloned();
        let Some(group) = group else {
            let _founding = self.found_alone(name);
            let remembered = self.shelf.forget_group(name);
            self.forget_marks(name);
            let none = || Error::new(subject(), "there is none of that name");
            return if remembered { Ok(()) } else { Err(none()) };
        };
        group.remove().map_err(|problem| Error::new(subject(), problem))?;
        self.forget_marks(name);
        let mut groups = self.groups.lock();
        // Whatever happened meanwhile: no other of that name could be made.
        groups.by_name.remove(name);
        if group.settings.dead_letters.is_none() && !self.broker.forget_dead_letters(group.dead.name()) {
            groups.dead_letters.insert(Arc::clone(&group.name), Arc::clone(&group.dead));
        }
        Ok(())
    }

    /// Nobody else makes a group of this name as long as the answer lives.
    fn found_alone(&self, name: &str) -> Founding<'_, T> {
        let mut groups = self.groups.lock();
        while !groups.founding.insert(name.to_owned()) {
            self.founded.wait(&mut groups);
        }
        Founding { log: self, name: name.to_owned() }
    }

    #[cfg(feature = "sqlite")]
    fn forget_marks(&self, group: &str) {
        durable::forget(&self.shelf, group);
    }

    #[cfg(not(feature = "sqlite"))]
    fn forget_marks(&self, _: &str) {}

    fn log_stats(&self) -> LogStats {
        let counts: Vec<_> = self.shelf.all().map(partition::Partition::counts).collect();
        LogStats {
            name: self.shelf.name.to_string(),
            partitions: counts.len() as u64,
            recovered: counts.iter().map(|c| c.recovered).sum(),
            appended: counts.iter().map(|c| c.appended).sum(),
            retained: counts.iter().map(|c| c.retained).sum(),
            trimmed: counts.iter().map(|c| c.trimmed).sum(),
            compacted: counts.iter().map(|c| c.compacted).sum(),
            lost: counts.iter().map(|c| c.lost).sum(),
            groups: self.all_groups().iter().map(|group| group.stats()).collect(),
        }
    }

    fn shut(&self, gate: Gate) {
        self.shelf.shut(gate);
        self.all_groups().iter().for_each(|group| group.shut(gate));
    }
}

/// A log without its type.
pub(crate) trait AnyLog: Send + Sync {
    fn payload(&self) -> &'static str;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn stats(&self) -> LogStats;
    fn describe(&self) -> LogDescription;
    fn start_draining(&self);
    fn end(&self);
    /// See `Core::unrest`: what groups with consumers still have to handle.
    fn unrest(&self, horizon: Timestamp) -> (u64, u64);
    fn is_durable(&self) -> bool;
    /// What each group has not handled.
    fn leftovers(&self) -> Vec<Leftover>;
}

impl<T: Send + Sync + 'static> AnyLog for LogCore<T> {
    fn payload(&self) -> &'static str {
        type_name::<T>()
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
    fn stats(&self) -> LogStats {
        self.log_stats()
    }
    fn describe(&self) -> LogDescription {
        let groups = self.all_groups().into_iter().map(|group| GroupDescription {
            name: group.name.to_string(),
            retry: group.settings.retry.to_string(),
            dead_letters: group.dead.name().to_string(),
            workers: group.workers(&self.shelf.runtime),
        });
        LogDescription {
            name: self.shelf.name.to_string(),
            payload: type_name::<T>(),
            partitions: self.shelf.width(),
            retention: self.shelf.retention.to_string(),
            compacted: self.shelf.compact,
            durable: self.shelf.mode().map(promise),
            groups: groups.collect(),
        }
    }
    fn start_draining(&self) {
        self.shut(Gate::Draining);
    }
    fn end(&self) {
        self.shut(Gate::Closed);
    }
    fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let appended: u64 = self.shelf.all().map(|partition| partition.range().1).sum();
        let groups = self.all_groups();
        let sums = groups.iter().map(|group| group.unrest(horizon));
        sums.fold((self.shelf.pledged(), appended), |sum, (busy, moves)| (sum.0 + busy, sum.1.wrapping_add(moves)))
    }
    fn is_durable(&self) -> bool {
        self.shelf.is_durable()
    }
    fn leftovers(&self) -> Vec<Leftover> {
        let left = self.all_groups().into_iter().map(|group| {
            let lag: u64 = (0..group.width()).map(|partition| group.lag_of(partition)).sum();
            let (resting, held) = group.in_hand();
            let (delayed, in_flight) = (resting.min(lag), held.min(lag - resting.min(lag)));
            Leftover { queue: group.full_name.to_string(), ready: lag - delayed - in_flight, delayed, in_flight }
        });
        left.collect()
    }
}

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<T> fmt::Debug for Log<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("name", &self.core.shelf.name).finish_non_exhaustive()
    }
}
