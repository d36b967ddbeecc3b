//! How much a log keeps.

use crate::outcome::contained;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How much a log keeps; default: everything.
///
/// A log lets go of whole segments (at most 1,024 records, fewer where the limit is small), oldest first. So
/// by count and by bytes it keeps at least what is asked for and at most about a quarter (or one record)
/// more; by age it keeps a record at least that long, and together with its younger neighbours of the same
/// segment.
///
/// Groups are not waited for: one that is too far behind finds that out, see [`Group`](crate::Group).
///
/// ```
/// use postroom::{Broker, Log, Retention};
/// use std::time::Duration;
///
/// let broker = Broker::new();
/// let lines: Log<String> = broker
///     .log("lines")
///     .retain(Retention::bytes(64 << 20, |line: &String| line.len()).and(Retention::age(Duration::from_secs(3600))))
///     .declare()?;
/// # Ok::<(), postroom::Error>(())
/// ```
#[must_use]
pub struct Retention<T> {
    count: Option<u64>,
    bytes: Option<u64>,
    age: Option<Duration>,
    size: Option<Size<T>>,
}

/// A limit that nobody reaches; a few times as much still fits the counter.
const MOST: u64 = 1 << 60;

type Size<T> = Arc<dyn Fn(&T) -> usize + Send + Sync>;

impl<T> Retention<T> {
    /// No limit.
    pub fn everything() -> Self {
        Self { count: None, bytes: None, age: None, size: None }
    }

    /// The latest `records` of each partition.
    pub fn count(records: u64) -> Self {
        Self { count: Some(records), ..Self::everything() }
    }

    /// The latest `bytes` of each partition, where `size` says how many a payload has.
    ///
    /// `size` is called once for each append (and again by a compaction, and of what a durable log reads from its
    /// file). If it panics, the size of the type counts.
    pub fn bytes(bytes: u64, size: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        Self { bytes: Some(bytes), size: Some(Arc::new(size)), ..Self::everything() }
    }

    /// As [`Retention::bytes`], for payloads that are as large as their type says.
    pub fn bytes_inline(bytes: u64) -> Self {
        Self::bytes(bytes, |_| size_of::<T>())
    }

    /// What is younger than this. The broker's scheduler sees to it, so it holds for an idle log too.
    pub fn age(age: Duration) -> Self {
        Self { age: Some(age), ..Self::everything() }
    }

    /// Both: a record goes when either lets it go. Of two limits of one kind the later replaces the earlier.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: other.count.or(self.count),
            bytes: other.bytes.or(self.bytes),
            age: other.age.or(self.age),
            size: other.size.or(self.size),
        }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let nothing = |limit: &str| format!("retention {limit} would keep nothing");
        let mut problems = Vec::new();
        problems.extend((self.count == Some(0)).then(|| nothing("count(0)")));
        problems.extend((self.bytes == Some(0)).then(|| nothing("bytes(0)")));
        problems.extend((self.age == Some(Duration::ZERO)).then(|| nothing("age(0)")));
        problems
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            count: self.count.unwrap_or(u64::MAX),
            bytes: self.bytes.map_or(u64::MAX, |bytes| bytes.min(MOST)),
            age: self.age,
            segment: segment_len::<T>(self.count),
            window: u64::MAX,
        }
    }

    /// What a payload counts for. One that is larger than everything that is kept counts as that much, so
    /// that no sum of sizes overflows.
    #[inline]
    pub(crate) fn size_of(&self, payload: &T) -> u64 {
        match &self.size {
            None => 0,
            Some(size) => self.capped(contained(|| size(payload)).unwrap_or(size_of::<T>()) as u64),
        }
    }

    fn capped(&self, size: u64) -> u64 {
        size.min(self.bytes.unwrap_or(MOST)).min(MOST)
    }

    /// Functions cannot be compared, so they count as alike.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.count, self.bytes, self.age) == (other.count, other.bytes, other.age)
    }
}

/// How many records a segment takes: a quarter of what is kept, and not much memory that nothing is in yet.
fn segment_len<T>(count: Option<u64>) -> usize {
    const MOST_RECORDS: usize = 1024;
    const MOST_BYTES: usize = 1 << 20;
    let by_count = count.map_or(MOST_RECORDS, |count| usize::try_from(count / 4).unwrap_or(MOST_RECORDS));
    let by_size = MOST_BYTES / size_of::<T>().max(1);
    by_count.min(MOST_RECORDS).min(by_size.max(16)).max(1)
}

/// The numbers of a [`Retention`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) age: Option<Duration>,
    /// How many records a segment takes.
    pub(crate) segment: usize,
    /// How many of the latest records a partition has in memory if it has a file for the others.
    pub(crate) window: u64,
}

impl Limits {
    /// From how many bytes on a segment takes no more records.
    pub(crate) fn segment_bytes(&self) -> u64 {
        if self.bytes == u64::MAX { u64::MAX } else { (self.bytes / 4).max(1) }
    }

    /// Of a partition that leaves its older records in the file: no more of them are read at once than a part of what
    /// is in memory anyway.
    pub(crate) fn with_window(self, records: usize) -> Self {
        Self { segment: self.segment.min((records / 4).max(1)), window: records as u64, ..self }
    }

    pub(crate) fn keeps_window(&self) -> bool {
        self.window < u64::MAX
    }
}

impl<T> Default for Retention<T> {
    fn default() -> Self {
        Self::everything()
    }
}

impl<T> Clone for Retention<T> {
    fn clone(&self) -> Self {
        Self { size: self.size.clone(), ..*self }
    }
}

impl<T> fmt::Display for Retention<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            self.count.map(|count| format!("{count} records")),
            self.bytes.map(|bytes| format!("{bytes} bytes")),
            self.age.map(|age| format!("{age:?}")),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        f.write_str(&if limits.is_empty() { "everything".into() } else { limits.join(", ") })
    }
}

impl<T> fmt::Debug for Retention<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retention({self})")
    }
}
