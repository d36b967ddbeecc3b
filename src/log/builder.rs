//! Describing a log.

use super::retention::Retention;
use super::shelf::{KeyOf, Shelf, Tombstone};
use super::{Log, LogCore};
use crate::broker::{Broker, WeakBroker};
use crate::error::Error;
use crate::message::Text;
use crate::queue::builder::name_problems;
use crate::runtime::Runtime;
use crate::sync::Mutex;
use std::fmt;
use std::sync::Arc;

/// Describes a log; nothing exists until [`LogBuilder::declare`].
#[must_use = "nothing exists until `declare` is called"]
pub struct LogBuilder<T> {
    pub(crate) name: String,
    partitions: usize,
    retention: Retention<T>,
    compact: bool,
    tombstone: Option<Tombstone<T>>,
    keys: Option<KeyOf<T>>,
    broker: Broker,
}

impl<T: Send + Sync + 'static> LogBuilder<T> {
    pub(crate) fn of(broker: Broker, name: String) -> Self {
        let retention = Retention::everything();
        Self { name, partitions: 1, retention, compact: false, tombstone: None, keys: None, broker }
    }

    /// How many partitions it has: how many members of a group can read at the same time. Default 1.
    pub fn partitions(mut self, n: usize) -> Self {
        self.partitions = n;
        self
    }

    /// The ordering key of messages that come without one: it decides on the partition, is what compaction
    /// goes by, and readers see it as [`Message::key`](crate::Message::key). Default: none, such messages go
    /// around.
    ///
    /// Called once for each such message, by whoever appends it. If it panics, the message comes back in
    /// [`AppendError::Panicked`](crate::AppendError::Panicked), or in
    /// [`PublishError::Panicked`](crate::PublishError::Panicked) with nothing published anywhere.
    ///
    /// ```
    /// use postroom::{Broker, Log};
    ///
    /// struct Reading { sensor: u32, celsius: f64 }
    ///
    /// let readings: Log<Reading> = Broker::new().log("readings").keyed_by(|r: &Reading| r.sensor).declare()?;
    /// let at = readings.append(Reading { sensor: 7, celsius: 21.5 }).unwrap();
    /// assert_eq!(readings.read(at.partition, at.offset).unwrap().key(), Some("7"));
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn keyed_by<K: fmt::Display + 'static>(mut self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        self.keys = Some(Box::new(move |payload| Text::showing(&key(payload))));
        self
    }

    /// How much it keeps. Asked for again, both hold, as by [`Retention::and`]. Default: everything.
    pub fn retain(mut self, retention: Retention<T>) -> Self {
        self.retention = self.retention.and(retention);
        self
    }

    /// Keeps of each ordering key only the latest record, so that a group which reads from the start gets
    /// the state of things and not their whole history. Records without a key stay.
    ///
    /// Happens when a segment is full, once as much has been appended as the last time was left, and when
    /// asked ([`Log::compact_now`]); what is in the segment that is being filled is not looked at before. So
    /// the log holds about twice what is live. Offsets do not change: there are gaps afterwards.
    pub fn compact(mut self) -> Self {
        self.compact = true;
        self
    }

    /// Which payloads say that their key is no more (for a payload of `Option<V>`: `Option::is_none`).
    ///
    /// Such a record is appended and read as any other, so groups hear of it. Compaction removes what its key
    /// had before, and the tombstone itself once every group has read it. Implies [`LogBuilder::compact`].
    pub fn tombstone(mut self, is_one: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.compact = true;
        self.tombstone = Some(Box::new(is_one));
        self
    }

    /// Makes the log, or finds the one that has been declared alike. Functions cannot be compared and count
    /// as alike.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, no
    /// partitions, a retention that keeps nothing, a name taken by another payload type or by other settings,
    /// a broker that was shut down.
    pub fn declare(self) -> Result<Log<T>, Error> {
        let broker = self.broker.clone();
        broker.declare_log(self)
    }

    /// The log that is declared under this name, whatever its settings; those given here do not count.
    ///
    /// # Errors
    /// If there is none, or one with another payload type.
    pub fn find(self) -> Result<Log<T>, Error> {
        self.broker.find_log(&self.name)
    }

    pub(crate) fn subject(&self) -> String {
        format!("log {:?}", self.name)
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = name_problems(&self.name);
        if self.partitions == 0 {
            problems.push("0 partitions could hold nothing: at least 1".into());
        }
        problems.extend(self.retention.problems());
        problems
    }

    /// What differs from a log that exists.
    pub(crate) fn differences(&self, existing: &Log<T>) -> Vec<String> {
        let shelf = &existing.core.shelf;
        let mut found = Vec::new();
        if shelf.width() != self.partitions {
            found.push(format!("it exists with {} partitions, asked for {}", shelf.width(), self.partitions));
        }
        if !shelf.retention.is_like(&self.retention) {
            found.push(format!("it exists with retention {}, asked for {}", shelf.retention, self.retention));
        }
        match (shelf.is_keyed(), self.keys.is_some()) {
            (true, false) => found.push("it exists with a function for the key, asked for without".into()),
            (false, true) => found.push("it exists without a function for the key, asked for with one".into()),
            _ => {}
        }
        let compaction = |compact: bool, tombstone: bool| match (compact, tombstone) {
            (false, _) => "no compaction",
            (true, false) => "compaction",
            (true, true) => "compaction with tombstones",
        };
        let mine = compaction(shelf.compact, shelf.tombstone.is_some());
        let asked = compaction(self.compact, self.tombstone.is_some());
        if mine != asked {
            found.push(format!("it exists with {mine}, asked for {asked}"));
        }
        found
    }

    pub(crate) fn build(self, runtime: Arc<Runtime>, broker: WeakBroker) -> Log<T> {
        let Self { name, partitions, retention, compact, tombstone, keys, .. } = self;
        let shelf = Shelf::new(name.into(), runtime, partitions, retention, (compact, tombstone), keys);
        Log { core: Arc::new(LogCore { shelf, groups: Mutex::default(), broker }) }
    }
}

impl<T> fmt::Debug for LogBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogBuilder")
            .field("name", &self.name)
            .field("partitions", &self.partitions)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
