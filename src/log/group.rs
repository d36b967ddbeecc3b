//! Groups: each reads everything, at its own pace.

use super::LogCore;
use super::consumer::GroupConsumerBuilder;
use super::core::{GroupCore, GroupSettings};
use super::durable::Marks;
use super::lane::LaneCounts;
use super::partition::Gate;
use super::reader::Reader;
use super::replay::{Replay, Start};
use super::shelf::Shelf;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::error::{Error, LogError, SHUT_DOWN};
use crate::queue::Queue;
use crate::queue::builder::name_problems;
use crate::retry::Retry;
use crate::runtime::Runtime;
use crate::stats::GroupStats;
#[cfg(feature = "sqlite")]
use crate::store::StoreError;
use std::fmt;
use std::sync::Arc;

/// Describes a group of a log; nothing exists until [`GroupBuilder::start`].
#[must_use = "nothing exists until `start` is called"]
pub struct GroupBuilder<T> {
    log: Arc<LogCore<T>>,
    name: String,
    settings: GroupSettings,
    dead_letters: Option<Queue<DeadLetter<T>>>,
}

impl<T: Send + Sync + 'static> GroupBuilder<T> {
    pub(super) fn new(log: Arc<LogCore<T>>, name: String) -> Self {
        let settings = GroupSettings { retry: Retry::default(), replay: Replay::default(), dead_letters: None };
        Self { log, name, settings, dead_letters: None }
    }

    /// How often and how soon a failed record comes again. Its partition waits meanwhile, other partitions
    /// flow. Default [`Retry::default`]: 5 attempts, 100 ms doubling to 30 s.
    pub fn retry(mut self, policy: impl Into<Retry>) -> Self {
        self.settings.retry = policy.into();
        self
    }

    /// How fast its records are handed out. Default: as fast as they are taken.
    pub fn replay(mut self, replay: Replay) -> Self {
        self.settings.replay = replay;
        self
    }

    /// Where records go that it gives up on. Default: a queue of its own named `<log>/<group>.dead`.
    pub fn dead_letter_to(mut self, queue: &Queue<DeadLetter<T>>) -> Self {
        self.settings.dead_letters = Some(Arc::clone(&queue.core.name));
        self.dead_letters = Some(queue.clone());
        self
    }

    /// Makes the group and sets where it begins, or finds the one that has been made alike: that goes on
    /// where it stands, `start` does not count then (see [`Group::rewind`]).
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, an offset
    /// that has been trimmed or lies beyond the end of a partition, a retry policy or a pace that cannot be,
    /// other settings than it was made with, a dead-letter queue of another broker or whose name is taken, a
    /// broker that was shut down.
    pub fn start(self, start: Start) -> Result<Group<T>, Error> {
        let log = Arc::clone(&self.log);
        let _founding = log.found_alone(&self.name);
        let existing = self.log.groups.lock().by_name.get(self.name.as_str()).cloned();
        let mut problems = name_problems(&self.name);
        problems.extend(self.settings.retry.problems());
        problems.extend(self.settings.replay.problem());
        if self.log.shelf.gate() != Gate::Open {
            problems.push(SHUT_DOWN.into());
        }
        let runtime = &self.log.shelf.runtime;
        if self.dead_letters.as_ref().is_some_and(|queue| !Arc::ptr_eq(&queue.core.runtime, runtime)) {
            problems.push("its dead-letter queue belongs to another broker".into());
        }
        if let Some(group) = existing {
            problems.extend(group.is_removed().then(|| "it is being removed".to_owned()));
            problems.extend(group.settings.differences(&self.settings));
            return Error::unless_none(self.subject(), problems).map(|()| Group { core: group });
        }
        let positions = match self.log.shelf.remembered(&self.name) {
            Some(positions) => positions,
            None => {
                let (positions, more) = positions(&self.log, start);
                problems.extend(more);
                positions
            }
        };
        Error::unless_none(self.subject(), problems)?;
        let marks = self.found(&positions)?;
        let queue = self.dead_letter_queue()?;
        queue.core.make_terminal();
        let dead: Arc<dyn DeadLetterSink<T>> = queue.core;
        let name: Arc<str> = self.name.into();
        let shelf = Arc::clone(&self.log.shelf);
        let core = GroupCore::new(Arc::clone(&name), shelf, self.settings, dead, positions, marks);
        self.log.shelf.forget_group(&name);
        self.log.groups.lock().by_name.insert(name, Arc::clone(&core));
        // Shutdown shuts the log before it looks for groups.
        core.shut(self.log.shelf.gate());
        Ok(Group { core })
    }

    fn dead_letter_queue(&self) -> Result<Queue<DeadLetter<T>>, Error> {
        if let Some(queue) = &self.dead_letters {
            return Ok(queue.clone());
        }
        if let Some(left) = self.log.groups.lock().dead_letters.get(self.name.as_str()) {
            return Ok(left.queue());
        }
        let name = format!("{}/{}.dead", self.log.shelf.name, self.name);
        match &self.log.shelf.durable {
            #[cfg(feature = "sqlite")]
            Some(durable) => self.log.broker.adopt_durable_dead_letters(&name, durable),
            _ => self.log.broker.adopt_dead_letters(&name),
        }
    }

    /// Has the file of a durable log know where the group begins, unless it does. A crash cannot have it begin later.
    #[cfg(feature = "sqlite")]
    fn found(&self, positions: &[u64]) -> Result<Option<Marks>, Error> {
        let shelf = &self.log.shelf;
        if shelf.is_durable() && shelf.remembered(&self.name).is_none() {
            let refuse = |error: StoreError| Error::new(self.subject(), format!("its file: {error}"));
            Marks::found(shelf, &self.name, positions).map_err(refuse)?;
        }
        Ok(Marks::of(shelf, &self.name, positions))
    }

    #[cfg(not(feature = "sqlite"))]
    fn found(&self, _: &[u64]) -> Result<Option<Marks>, Error> {
        Ok(None)
    }

    /// The group of that name, whatever its settings; those given here do not count.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(self) -> Result<Group<T>, Error> {
        let core = self.log.groups.lock().by_name.get(self.name.as_str()).cloned();
        core.map(|core| Group { core }).ok_or_else(|| Error::new(self.subject(), "there is none of that name"))
    }

    fn subject(&self) -> String {
        format!("group {:?} of log {:?}", self.name, self.log.shelf.name)
    }
}

/// Where a group begins in each partition, and what is wrong with that.
fn positions<T: Send + Sync + 'static>(log: &LogCore<T>, start: Start) -> (Vec<u64>, Vec<String>) {
    let mut problems = Vec::new();
    let mut positions = Vec::new();
    for (partition, store) in log.shelf.all().enumerate() {
        let (oldest, end) = store.range();
        let position = start_in(&log.shelf, partition, start).unwrap_or_else(|error| {
            problems.push(error.to_string());
            oldest
        });
        if position > end {
            problems.push(LogError::BeyondEnd { partition, asked: position, end }.to_string());
        } else if position < oldest {
            problems.push(LogError::Trimmed { partition, asked: position, oldest }.to_string());
        }
        positions.push(position);
    }
    (positions, problems)
}

fn start_in<T: Send + Sync + 'static>(shelf: &Shelf<T>, partition: usize, start: Start) -> Result<u64, LogError> {
    match start {
        Start::Earliest => Ok(shelf.partition(partition).range().0),
        Start::Latest => Ok(shelf.partition(partition).range().1),
        Start::Offset(offset) => Ok(offset),
        Start::Time(time) => {
            let found = shelf.offset_at(partition, Timestamp::from_system_time(time));
            found.map_err(|_| LogError::NotRead { partition })
        }
    }
}

impl GroupSettings {
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, mine: String, theirs: String, same: bool| {
            if !same {
                found.push(format!("it exists with {what} {mine}, asked for {theirs}"));
            }
        };
        let same = self.retry == other.retry;
        compare("retry", self.retry.to_string(), other.retry.to_string(), same);
        let same = self.replay == other.replay;
        compare("replay", self.replay.to_string(), other.replay.to_string(), same);
        let name = |dead: &Option<Arc<str>>| dead.as_deref().unwrap_or("its own").to_owned();
        let same = self.dead_letters == other.dead_letters;
        compare("dead letters to", name(&self.dead_letters), name(&other.dead_letters), same);
        found
    }
}

/// A handle to a group of a log: its members share the partitions, and together see every record once.
///
/// Cheap to clone; all clones are the same group. A partition is read by one member at a time, so its
/// records are handled in order; whoever is free takes the next one, so members may come and go. How far
/// the group has come is *committed* after the handler has succeeded, or by hand ([`Group::commit`]), and
/// never goes back unless it is told to ([`Group::seek`], [`Group::rewind`]).
///
/// A record that keeps failing becomes a dead letter after its last attempt, and its partition goes on.
/// Until then that partition waits in the scheduler; no worker does.
///
/// A group whose handlers are so slow that retention removes what they have not read goes on at the oldest
/// record: [`GroupStats::skipped`] counts what it has missed, and
/// [`Event::LogTrimmed`](crate::Event::LogTrimmed) tells. A [`Reader`] gets
/// [`LogError::Trimmed`] instead, until somebody seeks.
///
/// ```
/// use postroom::{Broker, Log, Message, Record, Start};
///
/// let (broker, simulation) = Broker::simulated(1);
/// let lines: Log<&str> = broker.log("lines").partitions(2).declare()?;
/// lines.append(Message::new("started").with_key("web-1")).unwrap();
///
/// let indexer = lines.group("indexer").start(Start::Earliest)?;
/// indexer.consumer().workers(2).start(|line: &Record<&str>| println!("{}: {}", line.offset(), line.payload()))?;
/// simulation.run_until_idle();
/// assert_eq!(indexer.lag(), 0);
///
/// // Another group, by hand.
/// let archive = lines.group("archive").start(Start::Earliest)?;
/// let mut reader = archive.reader();
/// let line = reader.recv().unwrap();
/// assert_eq!((*line.payload(), archive.lag()), ("started", 1));
/// archive.commit(line.partition(), line.offset()).unwrap();
/// assert_eq!(archive.lag(), 0);
/// # Ok::<(), postroom::Error>(())
/// ```
pub struct Group<T> {
    core: Arc<GroupCore<T>>,
}

impl<T: Send + Sync + 'static> Group<T> {
    /// The name it was made under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Describes workers that read for it. There may be several such consumers; they share the partitions.
    pub fn consumer(&self) -> GroupConsumerBuilder<T> {
        GroupConsumerBuilder::new(Arc::clone(&self.core))
    }

    /// A member that reads by hand.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        Reader::new(Arc::clone(&self.core))
    }

    /// Says that this record of the partition, and all before it, have been handled. An offset below what
    /// was committed before changes nothing.
    ///
    /// # Errors
    /// [`LogError::BeyondEnd`] if there is no such record yet, [`LogError::NoSuchPartition`].
    pub fn commit(&self, partition: usize, offset: u64) -> Result<(), LogError> {
        self.core.commit(partition, offset)
    }

    /// The offset after the last one that was committed: where the group would go on.
    ///
    /// # Errors
    /// [`LogError::NoSuchPartition`].
    pub fn committed(&self, partition: usize) -> Result<u64, LogError> {
        self.core.range(partition)?;
        Ok(self.core.lane(partition).committed)
    }

    /// Goes on at this offset, before or behind where it stands. What is being handled from elsewhere is
    /// finished, and not committed.
    ///
    /// # Errors
    /// [`LogError::Trimmed`], [`LogError::BeyondEnd`] or [`LogError::NoSuchPartition`]; nothing has changed
    /// then.
    pub fn seek(&self, partition: usize, offset: u64) -> Result<(), LogError> {
        self.core.seek(partition, offset)
    }

    /// Seeks in every partition.
    ///
    /// # Errors
    /// As [`Group::seek`]; partitions before the one it names have moved then.
    pub fn rewind(&self, start: Start) -> Result<(), LogError> {
        (0..self.core.width()).try_for_each(|partition| {
            match self.core.seek(partition, start_in(&self.core.shelf, partition, start)?) {
                // Retention has been faster.
                Err(LogError::Trimmed { oldest, .. }) if !matches!(start, Start::Offset(_)) => {
                    self.core.seek(partition, oldest)
                }
                done => done,
            }
        })
    }

    /// Hands out nothing until [`Group::resume`]; what is in hand is finished.
    pub fn pause(&self) {
        self.core.pause(true);
    }

    /// Goes on after [`Group::pause`].
    pub fn resume(&self) {
        self.core.pause(false);
    }

    /// How far behind the end it is, over all partitions: offsets not yet committed. In a compacted log some
    /// of them may have no record any more.
    #[must_use]
    pub fn lag(&self) -> u64 {
        (0..self.core.width()).map(|partition| self.core.lag_of(partition)).sum()
    }

    /// How far behind the end it is in each partition.
    #[must_use]
    pub fn lag_by_partition(&self) -> Vec<u64> {
        (0..self.core.width()).map(|partition| self.core.lag_of(partition)).collect()
    }

    /// The queue of the records it gave up on. They can be redriven to a queue
    /// ([`Redrive::to`](crate::Redrive::to)); there is none they came from.
    #[must_use]
    pub fn dead_letters(&self) -> Queue<DeadLetter<T>> {
        self.core.dead.queue()
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        self.core.stats()
    }
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    pub(super) fn stats(&self) -> GroupStats {
        let look = |partition| {
            let lane = self.lane(partition);
            (lane.committed, lane.counts)
        };
        let lanes: Vec<_> = (0..self.width()).map(look).collect();
        let sum = |count: fn(&LaneCounts) -> u64| lanes.iter().map(|(_, counts)| count(counts)).sum();
        GroupStats {
            name: self.name.to_string(),
            delivered: sum(|counts| counts.delivered),
            retried: sum(|counts| counts.retried),
            dead_lettered: sum(|counts| counts.dead_lettered),
            discarded: sum(|counts| counts.discarded),
            panicked: sum(|counts| counts.panicked),
            skipped: sum(|counts| counts.skipped),
            committed: lanes.iter().map(|(committed, _)| *committed).collect(),
            lag: (0..self.width()).map(|partition| self.lag_of(partition)).collect(),
            trouble: (0..self.width()).find_map(|partition| self.lane(partition).trouble.clone()),
        }
    }

    pub(super) fn workers(&self, runtime: &Runtime) -> usize {
        let crews = runtime.crews();
        crews.iter().filter(|crew| crew.queue_id() == self.timing.id()).map(|crew| crew.workers()).sum()
    }
}

impl<T> Clone for Group<T> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<T> fmt::Debug for Group<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.core.full_name).finish_non_exhaustive()
    }
}
