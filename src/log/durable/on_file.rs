//! A partition's stream.

use crate::clock::Timestamp;
use crate::log::put::Stored;
use crate::message::{Message, Text};
use crate::queue::core::Refusal;
use crate::queue::durable::{Coding, Depot, Filed};
use crate::store::{Batch, Durability, Item, StoreError, StreamId};
use crate::sync::{AtomicU64, MutexGuard, Ordering};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// The streams' kind in the file.
pub(super) const LOG: &str = "log";
/// The mark of what retention has left: the oldest offset.
pub(super) const OLDEST: &str = "oldest";
/// Deletions that share a batch, at most.
const TOGETHER: usize = 1024;

/// How a log is to be kept.
pub(crate) struct Durably<T> {
    pub(crate) durability: Durability,
    pub(crate) coding: Coding<T>,
    /// How many of the latest records of each partition stay in memory.
    pub(crate) window: usize,
}

/// The usual window.
pub(crate) const WINDOW: usize = 4096;

/// What the streams rely on, as noted in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    codec: String,
    partitions: usize,
}

impl Noted {
    fn problems(&self, now: &Self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.codec != now.codec {
            problems.push(format!("its codec in the file is {:?}, asked for {:?}", self.codec, now.codec));
        }
        if self.partitions != now.partitions {
            let (file, asked) = (self.partitions, now.partitions);
            problems.push(format!("it has {file} partitions in the file, asked for {asked}"));
        }
        problems
    }
}

/// The name of a partition's stream.
pub(super) fn stream_name(log: &str, partition: usize) -> String {
    format!("{log}/{partition}")
}

impl<T> Durably<T> {
    pub(crate) fn mode(&self) -> Durability {
        self.durability
    }

    pub(crate) fn window(&self) -> usize {
        self.window
    }
}

impl<T: Send + Sync + 'static> Durably<T> {
    /// Finds or makes the streams. Waits for the commits.
    pub(crate) fn open(&self, depot: &Arc<Depot>, log: &str, partitions: usize) -> Result<Vec<OnFile<T>>, Vec<String>> {
        let noted = Noted { codec: self.coding.codec.name().to_owned(), partitions };
        let in_words = |error: StoreError| vec![format!("its file: {error}")];
        let found = |name: &str| depot.store.reader().and_then(|reader| reader.stream(LOG, name)).map_err(in_words);
        if let Some(first) = found(&stream_name(log, 0))? {
            let before: Noted = serde_json::from_str(&first.settings)
                .map_err(|e| vec![format!("its settings in the file, {:?}, cannot be read: {e}", first.settings)])?;
            let problems = before.problems(&noted);
            if !problems.is_empty() {
                return Err(problems);
            }
        }
        let settings = serde_json::to_string(&noted).map_err(|e| vec![e.to_string()])?;
        // The first one last: where it is, all others are.
        let streams = (0..partitions).rev().map(|partition| -> Result<_, Vec<String>> {
            let name = stream_name(log, partition);
            let stream = match found(&name)? {
                Some(stream) => stream.id,
                None => depot.store.declare(LOG, &name, &settings).map_err(in_words)?,
            };
            Ok(OnFile::new(Filed::plain(Arc::clone(depot), stream, self.durability, self.coding.clone())))
        });
        let mut files = streams.collect::<Result<Vec<_>, _>>()?;
        files.reverse();
        Ok(files)
    }
}

/// The latest time that was given to a record of a partition. Changed under the depot's order.
#[derive(Default)]
pub(crate) struct Latest(AtomicU64);

impl Latest {
    /// The time of the next record: never before that of another.
    pub(crate) fn stamp(&self, _: &MutexGuard<'_, ()>, at: Timestamp) -> Timestamp {
        let at = at.0.max(self.0.load(Ordering::Relaxed));
        self.0.store(at, Ordering::Relaxed);
        Timestamp(at)
    }

    pub(super) fn begin_at(&self, at: Timestamp) {
        self.0.store(at.0, Ordering::Relaxed);
    }
}

/// The part of a partition that is in the file.
pub(crate) struct OnFile<T> {
    pub(super) filed: Filed<T>,
    latest: Arc<Latest>,
}

/// A record on its way into the file.
pub(crate) struct Entry {
    stream: StreamId,
    item: Box<Item>,
    latest: Arc<Latest>,
}

impl Entry {
    /// Adds it to a batch, and says what it is there. Whoever holds the order hands the batch in.
    pub(crate) fn add_to(self, batch: Batch, order: &MutexGuard<'_, ()>) -> (Batch, Stored) {
        let Self { stream, mut item, latest } = self;
        let at = latest.stamp(order, Timestamp(item.published_at));
        item.published_at = at.0;
        let stored = Stored { at, bytes: item.bytes() as u64 };
        (batch.insert(stream, item), stored)
    }
}

impl<T: Send + Sync + 'static> OnFile<T> {
    fn new(filed: Filed<T>) -> Self {
        Self { filed, latest: Arc::default() }
    }

    pub(crate) fn depot(&self) -> &Arc<Depot> {
        &self.filed.depot
    }

    pub(crate) fn durability(&self) -> Durability {
        self.filed.durability
    }

    pub(super) fn latest(&self) -> &Latest {
        &self.latest
    }

    /// A stamped message with the key that the log finds for it. Runs the user's codec, so no lock may be held.
    pub(crate) fn entry(&self, message: &Message<T>, key: Option<&Text>) -> Result<Entry, Refusal> {
        let mut item = self.filed.item(message)?;
        // A log delivers at once and for good.
        (item.attempts, item.due_at, item.expires_at) = (1, None, None);
        if item.key.is_none() {
            item.key = key.map(|key| key.as_str().to_owned());
        }
        Ok(Entry { stream: self.filed.stream, item, latest: Arc::clone(&self.latest) })
    }
}

impl<T> OnFile<T> {
    /// Retention has let go of what is before this offset.
    pub(crate) fn trim(&self, oldest: u64) {
        let stream = self.filed.stream;
        self.filed.depot.note(Batch::new().trim(stream, oldest).mark(stream, OLDEST, oldest.to_string()));
    }

    /// What compaction is going to remove, of all records in order with whether they stay.
    pub(crate) fn deletions(&self, records: impl Iterator<Item = (u64, bool)>) -> Deletions {
        let mut gone: Vec<Range<u64>> = Vec::new();
        let mut goes_on = false;
        for (offset, stays) in records {
            match gone.last_mut().filter(|_| goes_on && !stays) {
                Some(range) => range.end = offset + 1,
                None if !stays => gone.push(offset..offset + 1),
                None => {}
            }
            goes_on = !stays;
        }
        let batch = |ranges: &[Range<u64>]| {
            let add = |batch: Batch, range: &Range<u64>| batch.delete_range(self.filed.stream, range.clone());
            ranges.iter().fold(Batch::new(), add)
        };
        Deletions { depot: Arc::clone(&self.filed.depot), batches: gone.chunks(TOGETHER).map(batch).collect() }
    }
}

/// What the file is to hear of a compaction.
pub(crate) struct Deletions {
    depot: Arc<Depot>,
    batches: Vec<Batch>,
}

impl Deletions {
    pub(crate) fn hand_in(self) {
        self.batches.into_iter().for_each(|batch| self.depot.note(batch));
    }
}
