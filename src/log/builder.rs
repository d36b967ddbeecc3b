//! Describing a log.

use super::durable::{Durably, OnFile};
use super::retention::Retention;
use super::shelf::{KeyOf, Shelf, Tombstone};
use super::{Log, LogCore};
use crate::broker::{Broker, WeakBroker};
use crate::error::Error;
use crate::message::Text;
use crate::queue::builder::{SCHEMA_TOO_EARLY, name_problems};
use crate::queue::durable::Mode;
use crate::runtime::Runtime;
use crate::sync::{Condvar, Mutex};
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
    pub(crate) durable: Option<Durably<T>>,
    /// A schema was given to what was not durable.
    schema_too_early: bool,
    broker: Broker,
}

impl<T: Send + Sync + 'static> LogBuilder<T> {
    pub(crate) fn of(broker: Broker, name: String) -> Self {
        let retention = Retention::everything();
        let (durable, schema_too_early) = (None, false);
        let (partitions, compact, tombstone, keys) = (1, false, None, None);
        Self { name, partitions, retention, compact, tombstone, keys, durable, schema_too_early, broker }
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

    /// Keeps its records in the broker's file (see [`Broker::open`](crate::Broker::open)) for as long as they are
    /// retained, payloads as JSON, and where its groups stand. Default: only in memory.
    ///
    /// * Every form of appending and publishing waits for the commit, and `Ok` says that the record is safe: written,
    ///   or synced too, as `durability` says. Nobody reads it before. Appends of several threads share commits, a batch
    ///   is one commit; [`Log::append_deferred`] does not wait. One publish, half message or transaction that reaches
    ///   several durable logs and queues is one commit for all of them; the most demanding decides.
    /// * Declared again on the file, by a later run, the log has the same records with the same offsets, times, keys,
    ///   headers and ids, and begins where it began. It has to have as many partitions as before, and the same codec.
    /// * A [group](Log::group) that is started again goes on where it had committed, whatever its
    ///   [`Start`](crate::Start); where a new one begins is in the file before it is started. What it commits later, or
    ///   seeks, is noted with one of the next commits, a few milliseconds later, and nobody waits for it. If the process
    ///   ends before that, the group goes back a little and some records come again; none is passed over. How often a
    ///   record has failed is not in the file. Groups of earlier runs count in a compaction until they are
    ///   [removed](Log::remove_group), started in this run or not.
    /// * The dead letters of its groups are durable as well. Those given to
    ///   [`GroupBuilder::dead_letter_to`](crate::GroupBuilder::dead_letter_to) are what that queue was declared as.
    /// * What retention or compaction removes is deleted from the file with one of the next commits; after a crash,
    ///   the last of it may be there again.
    /// * Memory has the latest 4,096 records of each partition that were appended in this run (fewer if they are larger
    ///   than 16 MiB together), which groups read as those of any log. What is older, or of an earlier run, is only in
    ///   the file: a group that is further behind reads up to 1,024 records (4 MiB) at once and holds them until it is
    ///   through; groups that read the same share them. So memory does not grow with the log, but for some 70 bytes
    ///   per 1,024 records, and declaring it reads no records: a million take 0.2 s. Two exceptions:
    ///   * A log that is [compacted](LogBuilder::compact) is in memory as a whole, and declaring it reads all of it.
    ///   * [`Retention::bytes`] has to see each payload once to know its size, so declaring the log reads all of it, and
    ///     keeps none.
    /// * If the file cannot be read, a [`Reader`](crate::Reader) is told so ([`LogError::NotRead`](crate::LogError::NotRead)),
    ///   and a worker tries again every second. After [`Broker::shutdown`](crate::Broker::shutdown) only what is in
    ///   memory can be read.
    /// * A record that cannot be decoded any more is put apart in the file when somebody comes to read it,
    ///   [`Event::Undecodable`](crate::Event::Undecodable) tells, [`LogStats::lost`](crate::LogStats::lost) counts it, and
    ///   its offset stays a gap.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Log, Start};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-durable-log-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let lines: Log<String> = broker.log("lines").durable(Durability::Sync).declare()?;
    /// for line in ["started", "ready", "stopped"] {
    ///     lines.append(line.to_string()).unwrap(); // synced
    /// }
    /// lines.group("indexer").start(Start::Earliest)?.commit(0, 1).unwrap();
    /// drop((broker, lines));
    ///
    /// let broker = Broker::open(&path)?;
    /// let lines: Log<String> = broker.log("lines").durable(Durability::Sync).declare()?;
    /// let indexer = lines.group("indexer").start(Start::Latest)?;
    /// let line = indexer.reader().recv().unwrap();
    /// assert_eq!((line.offset(), line.payload().as_str()), (2, "stopped"));
    /// # drop((broker, lines, indexer, line));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    pub fn durable(self, durability: crate::store::Durability) -> Self
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.durable_with(durability, crate::codec::Json)
    }

    /// As [`LogBuilder::durable`], with a codec for the payloads. The file notes its name, and the log cannot be
    /// declared with another one while that is so.
    #[cfg(feature = "sqlite")]
    pub fn durable_with(mut self, durability: crate::store::Durability, codec: impl crate::codec::Codec<T>) -> Self {
        let coding = crate::queue::durable::Coding::new(codec);
        self.durable = Some(Durably { durability, coding, window: super::durable::WINDOW });
        self
    }

    /// Says which version of its type the payload is, and how to make one of the bytes of an earlier version (of 0, if
    /// none was ever given). Follows [`LogBuilder::durable`]; see [`QueueBuilder::schema`](crate::QueueBuilder::schema).
    /// What is in the file is read that way whenever somebody comes to it, and stays as it is there; an error puts it
    /// apart, as does a version later than this one.
    #[cfg(feature = "sqlite")]
    pub fn schema(
        mut self,
        version: u32,
        upgrade: impl Fn(u32, &[u8]) -> Result<T, crate::codec::CodecError> + Send + Sync + 'static,
    ) -> Self {
        let coding = self.durable.as_mut().map(|durable| &mut durable.coding);
        self.schema_too_early |= !crate::queue::durable::Coding::upgrade_known(coding, version, upgrade);
        self
    }

    /// How many of the latest records of each partition stay in memory, others being read from the file; for tests.
    #[cfg(feature = "sqlite")]
    #[doc(hidden)]
    pub fn window(mut self, records: usize) -> Self {
        self.durable.iter_mut().for_each(|durable| durable.window = records.max(1));
        self
    }

    /// Makes the log, or finds the one that has been declared alike. Functions cannot be compared and count
    /// as alike.
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, no
    /// partitions, a retention that keeps nothing, a name taken by another payload type or by other settings,
    /// a broker that was shut down. Of a durable log also a broker without a file, another number of partitions or
    /// another codec than in the file, a file that cannot be read or written.
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
        if self.schema_too_early {
            problems.push(SCHEMA_TOO_EARLY.into());
        }
        problems
    }

    pub(crate) fn width(&self) -> usize {
        self.partitions
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
        let mode =
            |mode: Option<Mode>| mode.map_or_else(|| "in memory only".to_owned(), |mode| format!("durable, {mode:?}"));
        let (mine, asked) = (shelf.mode(), self.durable.as_ref().map(Durably::mode));
        if mine != asked {
            found.push(format!("it exists {}, asked for {}", mode(mine), mode(asked)));
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

    /// The log, with the part of each partition that is in the file.
    pub(crate) fn build(self, runtime: Arc<Runtime>, broker: WeakBroker, files: Vec<OnFile<T>>) -> Log<T> {
        let Self { name, partitions, retention, compact, tombstone, keys, durable, .. } = self;
        let files = (durable, files);
        let shelf = Shelf::new(name.into(), runtime, partitions, retention, (compact, tombstone), keys, files);
        Log { core: Arc::new(LogCore { shelf, groups: Mutex::default(), founded: Condvar::new(), broker }) }
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
