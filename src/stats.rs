//! Counters and their snapshot.
//!
//! Counting must not make threads meet: what a publish or a receive counts is a plain number under the
//! lock it holds anyway, and what a worker counts goes to a [`Tally`] of its own.

use crate::sync::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A counter that several threads raise.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::SeqCst);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What one worker (or all hand-written receivers of a queue together) has settled.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acked: Counter,
    /// Deliveries settled in any other way.
    pub(crate) unacked: Counter,
    pub(crate) handling: Histogram,
}

impl Tally {
    pub(crate) fn settled(&self) -> u64 {
        self.acked.get() + self.unacked.get()
    }

    /// Takes over what a worker that has ended counted.
    pub(crate) fn absorb(&self, other: &Self) {
        self.acked.add(other.acked.get());
        self.unacked.add(other.unacked.get());
        for (mine, theirs) in self.handling.buckets.iter().zip(&other.handling.buckets) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Durations in buckets that double: bucket `i` counts those below `2^i` ns that no lower one counts.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

/// The last one takes everything from about 4.6 minutes on.
const BUCKETS: usize = 40;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Histogram {
    /// Counts `times` durations of that length.
    pub(crate) fn record(&self, duration: Duration, times: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (64 - nanos.leading_zeros() as usize).min(BUCKETS - 1);
        self.buckets[bucket].fetch_add(times, Ordering::Relaxed);
    }
}

/// How long handling took: counts in buckets that double from 1 ns.
///
/// Handlers faster than a microsecond are timed one in sixteen, each such reading counted sixteen times,
/// so the counts are estimates there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlingTime {
    counts: Vec<u64>,
}

impl Default for HandlingTime {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl HandlingTime {
    pub(crate) fn add(&mut self, histogram: &Histogram) {
        for (count, bucket) in self.counts.iter_mut().zip(&histogram.buckets) {
            *count += bucket.load(Ordering::Relaxed);
        }
    }

    /// How many handlings were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A duration that at least this share (0 to 1) of the handlings did not exceed, exact to a factor
    /// of two; `None` before the first one.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|&count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_nanos(1 << bucket))
    }

    /// Each bucket that is not empty: its upper bound and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0).map(|(i, &count)| (Duration::from_nanos(1 << i), count))
    }
}

/// Everything a broker has counted, per queue and topic, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// One entry per queue, dead-letter queues included.
    pub queues: Vec<QueueStats>,
    /// One entry per topic.
    pub topics: Vec<TopicStats>,
    /// Replies to requests that came when nobody waited for them any more; they were dropped.
    #[serde(default)]
    pub late_replies: u64,
    /// One entry per log.
    #[serde(default)]
    pub logs: Vec<LogStats>,
    /// The broker's file, if it has one.
    #[serde(default)]
    pub file: Option<FileStats>,
}

/// How a broker's file is doing, and what was done since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileStats {
    /// Where it is.
    pub path: String,
    /// `healthy`, `failing` (the last commit failed for a reason that may pass, such as a full disk), `broken` (a write
    /// or a sync failed: nothing is tried until the file is opened anew) or `closed`.
    pub state: String,
    /// The last thing that went wrong, even if all is well again.
    pub last_error: Option<String>,
    /// Commits that succeeded.
    pub commits: u64,
    /// Those among them that were synced.
    pub syncs: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Batches in the commits that succeeded: publishes, settlements, moves.
    pub batches: u64,
    /// Messages written.
    pub inserted: u64,
    /// Messages deleted.
    pub deleted: u64,
    /// Bytes on their way to a commit.
    pub queued_bytes: u64,
    /// Bytes in the write-ahead log.
    pub wal_bytes: u64,
}

impl Stats {
    /// The numbers of one queue.
    #[must_use]
    pub fn queue(&self, name: &str) -> Option<&QueueStats> {
        self.queues.iter().find(|q| q.name == name)
    }

    /// The numbers of one topic.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&TopicStats> {
        self.topics.iter().find(|t| t.name == name)
    }

    /// The numbers of one log.
    #[must_use]
    pub fn log(&self, name: &str) -> Option<&LogStats> {
        self.logs.iter().find(|log| log.name == name)
    }
}

/// A queue's counters since it was declared, and what it holds now.
///
/// Whenever nothing is moving,
/// `published + recovered = acked + ready + delayed + in_flight + dead_lettered + expired + dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueStats {
    /// The queue's name.
    pub name: String,
    /// Whether other queues send their dead letters here.
    pub holds_dead_letters: bool,
    /// How many messages it may hold before its overflow policy acts.
    pub capacity: u64,
    /// Messages accepted from outside; a redelivery is not one, a redriven dead letter is.
    pub published: u64,
    /// Deliveries handed out, redeliveries included.
    pub delivered: u64,
    /// Messages settled for good by their consumer, or taken out by `drain`.
    pub acked: u64,
    /// Failed deliveries that were scheduled again.
    pub retried: u64,
    /// Deliveries given back without counting as a failure.
    pub requeued: u64,
    /// Handlers that panicked; each also counts as retried or dead-lettered.
    pub panicked: u64,
    /// Messages that became dead letters, for whatever reason.
    pub dead_lettered: u64,
    /// Messages that outlived their time to live without becoming dead letters.
    pub expired: u64,
    /// Messages thrown away: by an overflow policy, discarded by their consumer, purged, or cancelled.
    pub dropped: u64,
    /// The part of `dropped` that consumers discarded on purpose.
    pub discarded: u64,
    /// The part of `dropped` that `purge` removed.
    pub purged: u64,
    /// The part of `dropped` whose delay was cancelled or replaced.
    pub cancelled: u64,
    /// Deliveries taken back because they were not settled within the ack timeout; each also counts as
    /// retried or dead-lettered.
    pub timed_out: u64,
    /// The part of `acked` that an idempotent queue has recognised as duplicates, and never handed to anybody.
    #[serde(default)]
    pub duplicates: u64,
    /// Deliveries settled after they had been taken back.
    pub settled_late: u64,
    /// The part of `published` that came back from a dead-letter queue.
    pub redriven: u64,
    /// Messages found in the broker's file when the queue was declared; see
    /// [`QueueBuilder::durable`](crate::QueueBuilder).
    #[serde(default)]
    pub recovered: u64,
    /// Offers that were refused because the queue was full; those messages went back to their producer.
    pub refused: u64,
    /// Messages waiting to be delivered.
    pub ready: u64,
    /// Messages handed out and not yet settled.
    pub in_flight: u64,
    /// Messages waiting for their time: a delay, a retry, a rate limit per key, or room in the dead-letter queue.
    pub delayed: u64,
    /// The part of `ready` that is held back because its key is parked; see [`Exhausted`](crate::Exhausted). Of a
    /// durable queue, without what is only in the file and has not been come across yet.
    pub parked: u64,
    /// In a queue ordered by key: how many keys have a message that is ready, in flight or waiting for its
    /// retry; of a durable one, as far as its backlog has been read.
    pub keys: u64,
    /// How long the oldest ready message has been waiting since it was published.
    pub oldest_age: Option<Duration>,
    /// How long handlers took.
    pub handling: HandlingTime,
    /// Of a durable queue: why some of its messages cannot be read from the broker's file now, if so. It is tried again
    /// every second; see [`Event::NotRead`](crate::Event::NotRead).
    #[serde(default)]
    pub trouble: Option<String>,
}

impl QueueStats {
    /// By how much the conservation equation is off: 0 whenever nothing is moving.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let known =
            self.acked + self.ready + self.delayed + self.in_flight + self.dead_lettered + self.expired + self.dropped;
        (self.published + self.recovered).wrapping_sub(known) as i64
    }
}

/// A topic's counters since it was declared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TopicStats {
    /// The topic's name.
    pub name: String,
    /// Messages published.
    pub published: u64,
    /// Published messages that no binding matched and no subscriber saw, whether or not an alternate queue
    /// caught them.
    pub unroutable: u64,
    /// Its subscribers now.
    #[serde(default)]
    pub subscribers: u64,
    /// Messages that subscribers have missed because they were too slow, counted once per subscriber.
    #[serde(default)]
    pub lagged: u64,
    /// Subscribers that were cut off because they were too slow.
    #[serde(default)]
    pub disconnected: u64,
    /// Messages that subscribers did not get since their time to live was over, counted once per subscriber.
    #[serde(default)]
    pub expired: u64,
    /// Its half messages.
    #[serde(default)]
    pub halves: HalfStats,
}

/// A topic's half messages since it was declared:
/// `prepared + recovered = committed + rolled_back + unresolved + drained + open`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HalfStats {
    /// Half messages prepared.
    pub prepared: u64,
    /// Half messages found open in the broker's file when the topic was declared.
    #[serde(default)]
    pub recovered: u64,
    /// Half messages published, by their producer or the check-back; each also counts as published.
    pub committed: u64,
    /// Half messages dropped, by their producer or the check-back.
    pub rolled_back: u64,
    /// Half messages that became dead letters.
    pub unresolved: u64,
    /// Half messages taken out by `drain_halves`.
    pub drained: u64,
    /// Handles that were dropped without a word.
    pub unknown: u64,
    /// How often the check-back was asked.
    pub checked: u64,
    /// How often it panicked.
    pub panicked: u64,
    /// Half messages that are neither published nor dropped yet.
    pub open: u64,
}

/// A log's counters since it was declared, and what it holds now: `recovered + appended = retained + trimmed +
/// compacted + lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogStats {
    /// The log's name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u64,
    /// Of a durable log, the records that its file held when it was declared.
    #[serde(default)]
    pub recovered: u64,
    /// Records appended.
    pub appended: u64,
    /// Records it holds.
    pub retained: u64,
    /// Records removed by retention.
    pub trimmed: u64,
    /// Records removed by compaction.
    pub compacted: u64,
    /// Of a durable log, records that its file turned out not to have when they were to be read: they cannot be decoded
    /// ([`Event::Undecodable`](crate::Event::Undecodable) tells of each), or somebody else has removed them.
    #[serde(default)]
    pub lost: u64,
    /// One entry per group, by name.
    pub groups: Vec<GroupStats>,
}

impl LogStats {
    /// The numbers of one group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&GroupStats> {
        self.groups.iter().find(|group| group.name == name)
    }
}

/// The counters of a log's group since it was made, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupStats {
    /// The group's name.
    pub name: String,
    /// Records handed out, those that came again included.
    pub delivered: u64,
    /// Failed records that were to come again.
    pub retried: u64,
    /// Records that became dead letters.
    pub dead_lettered: u64,
    /// Records that handlers discarded on purpose.
    pub discarded: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Offsets passed over because retention had removed their records before the group read them.
    pub skipped: u64,
    /// Per partition, the offset after the last one committed.
    pub committed: Vec<u64>,
    /// Per partition, how many offsets lie between that and the end.
    pub lag: Vec<u64>,
    /// Of a durable log: why some records cannot be read from the broker's file for the group now, if so. It is tried
    /// again every second; see [`Event::NotRead`](crate::Event::NotRead).
    #[serde(default)]
    pub trouble: Option<String>,
}

impl GroupStats {
    /// How far behind it is over all partitions.
    #[must_use]
    pub fn total_lag(&self) -> u64 {
        self.lag.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds_within_a_factor_of_two() {
        let histogram = Histogram::default();
        for micros in 1..=100 {
            histogram.record(Duration::from_micros(micros), 1);
        }
        let mut time = HandlingTime::default();
        assert_eq!(time.quantile(0.5), None);
        time.add(&histogram);
        assert_eq!(time.count(), 100);
        for (share, exact) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            let found = time.quantile(share).unwrap();
            let exact = Duration::from_micros(exact);
            assert!(found >= exact && found <= exact * 2, "{share}: {found:?}");
        }
    }

    #[test]
    fn extremes_have_a_bucket() {
        let histogram = Histogram::default();
        histogram.record(Duration::ZERO, 1);
        histogram.record(Duration::MAX, 1);
        let mut time = HandlingTime::default();
        time.add(&histogram);
        assert_eq!(time.count(), 2);
    }
}
