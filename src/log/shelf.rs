//! All partitions of a log: where appends go, and what keeps the retention.

use super::compaction::Compaction;
use super::partition::{Appended, Gate, Partition};
use super::record::Offset;
use super::retention::{Limits, Retention};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::runtime::{Registration, Runtime};
use crate::scheduler::{Timed, TimedId};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, Padded};
use std::sync::{Arc, Weak};

pub(crate) type Tombstone<T> = Box<dyn Fn(&T) -> bool + Send + Sync>;

pub(crate) struct Shelf<T> {
    pub(crate) name: Arc<str>,
    pub(crate) runtime: Arc<Runtime>,
    pub(super) retention: Retention<T>,
    pub(super) compact: bool,
    pub(super) tombstone: Option<Tombstone<T>>,
    limits: Limits,
    partitions: Box<[Padded<Partition<T>>]>,
    /// The partition of the next message without a key.
    turn: AtomicUsize,
    followers: Mutex<Vec<Weak<dyn Follower>>>,
    /// Appends that were promised and have not arrived yet.
    pledged: AtomicU64,
    ageing: Registration,
    /// Something will be too old one day, and the scheduler knows.
    ages: AtomicBool,
}

/// A record that was written, and of which nobody was told yet.
#[must_use]
pub(crate) struct Wrote<T> {
    partition: usize,
    appended: Option<Appended<T>>,
}

/// Somebody who reads a log.
pub(crate) trait Follower: Send + Sync {
    /// A partition it waits for has got a record.
    fn rung(&self, partition: usize);
    /// Everything before this offset has been handled.
    fn read_up_to(&self, partition: usize) -> u64;
}

impl<T: Send + Sync + 'static> Shelf<T> {
    pub(super) fn new(
        name: Arc<str>,
        runtime: Arc<Runtime>,
        partitions: usize,
        retention: Retention<T>,
        (compact, tombstone): (bool, Option<Tombstone<T>>),
    ) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            name,
            limits: retention.limits(),
            retention,
            compact,
            tombstone,
            partitions: (0..partitions).map(|_| Padded(Partition::new())).collect(),
            turn: AtomicUsize::new(0),
            followers: Mutex::default(),
            pledged: AtomicU64::new(0),
            ageing: Registration::in_background(&runtime, me.clone()),
            ages: AtomicBool::new(false),
            runtime,
        })
    }

    pub(crate) fn width(&self) -> usize {
        self.partitions.len()
    }

    pub(crate) fn partition(&self, partition: usize) -> &Partition<T> {
        &self.partitions[partition]
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Partition<T>> {
        self.partitions.iter().map(|partition| &partition.0)
    }

    pub(crate) fn follow(&self, follower: Weak<dyn Follower>) {
        let mut followers = self.followers.lock();
        followers.retain(|follower| follower.strong_count() > 0);
        followers.push(follower);
    }

    fn followers(&self) -> Vec<Arc<dyn Follower>> {
        self.followers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    #[inline]
    pub(crate) fn partition_for(&self, message: &Message<T>) -> usize {
        if self.width() == 1 {
            return 0;
        }
        match message.key() {
            Some(key) => self.partition_of(key),
            None => self.turn.fetch_add(1, Ordering::Relaxed) % self.width(),
        }
    }

    pub(crate) fn partition_of(&self, key: &str) -> usize {
        (fnv1a(key.as_bytes()) % self.width() as u64) as usize
    }

    /// Gives a message from outside its id and time.
    #[inline]
    pub(crate) fn stamp(&self, message: &mut Message<T>) {
        self.runtime.prepare(message);
    }

    /// Appends a stamped message, unless the log is closed to the caller.
    #[inline]
    pub(crate) fn append(&self, partition: usize, message: Message<T>) -> Result<Offset, Message<T>> {
        self.append_if(partition, message, |gate| gate == Gate::Draining && self.runtime.is_worker())
    }

    #[inline]
    fn append_if(
        &self,
        partition: usize,
        mut message: Message<T>,
        may_pass: impl Fn(Gate) -> bool,
    ) -> Result<Offset, Message<T>> {
        message.attempt = 1;
        if self.compact {
            // So that a record that stays can move into another segment.
            message.make_shared();
        }
        let bytes = self.retention.size_of(message.payload());
        let appended = self.partitions[partition].append(&self.limits, message, bytes, may_pass)?;
        let offset = appended.offset;
        self.appended(partition, appended);
        Ok(Offset { partition, offset })
    }

    #[inline]
    fn appended(&self, partition: usize, appended: Appended<T>) {
        if self.limits.age.is_some() && !self.ages.load(Ordering::SeqCst) {
            self.start_ageing();
        }
        if appended.ring || appended.compact || !appended.trash.is_empty() {
            self.follow_up(partition, appended);
        }
    }

    /// What a promised record counts as. Asks the user's function.
    pub(crate) fn size_of(&self, message: &Message<T>) -> u64 {
        self.retention.size_of(message.payload())
    }

    /// As [`Shelf::redeem`], under locks of others: none of the user's code runs before [`Shelf::wrote`].
    pub(crate) fn write(&self, mut message: Message<T>, bytes: u64) -> Wrote<T> {
        message.take_timer();
        message.attempt = 1;
        if self.compact {
            message.make_shared();
        }
        let partition = self.partition_for(&message);
        let appended = self.partitions[partition].append(&self.limits, message, bytes, |_| true);
        debug_assert!(appended.is_ok(), "a log always has room");
        Wrote { partition, appended: appended.ok() }
    }

    /// The rest of it.
    pub(crate) fn wrote(&self, wrote: Wrote<T>) {
        if let Some(appended) = wrote.appended {
            self.appended(wrote.partition, appended);
        }
        self.forgo();
    }

    /// Tells logs, rings and queues of one broker apart.
    pub(crate) fn number(&self) -> TimedId {
        self.ageing.id()
    }

    #[cold]
    fn follow_up(&self, partition: usize, appended: Appended<T>) {
        if appended.ring {
            self.followers().iter().for_each(|follower| follower.rung(partition));
        }
        if appended.compact && self.compact {
            self.compact(partition, false);
        }
        drop_contained(appended.trash);
    }

    #[cold]
    fn start_ageing(&self) {
        if let Some(age) = self.limits.age
            && !self.ages.swap(true, Ordering::SeqCst)
        {
            self.ageing.arm(self.runtime.clock.now().after(age));
        }
    }

    /// Promises to take a message, unless the log is closed to the caller.
    pub(crate) fn pledge(&self) -> bool {
        // Entered first, so that whoever shuts the gate sees it or it sees the gate.
        self.pledged.fetch_add(1, Ordering::SeqCst);
        let open = self.partition(0).admits(self.runtime.is_worker());
        if !open {
            self.forgo();
        }
        open
    }

    pub(crate) fn forgo(&self) {
        self.pledged.fetch_sub(1, Ordering::SeqCst);
        self.runtime.note_progress();
    }

    /// Takes the message that was promised a place, whatever the gate says now.
    pub(crate) fn redeem(&self, mut message: Message<T>) {
        // A log delivers at once: there is no delay that could be cancelled.
        message.take_timer();
        let partition = self.partition_for(&message);
        let appended = self.append_if(partition, message, |_| true);
        debug_assert!(appended.is_ok(), "a log always has room");
        self.forgo();
    }

    pub(crate) fn pledged(&self) -> u64 {
        self.pledged.load(Ordering::SeqCst)
    }

    pub(crate) fn shut(&self, gate: Gate) {
        self.all().for_each(|partition| partition.shut(gate));
    }

    pub(crate) fn compact(&self, partition: usize, seal_first: bool) -> u64 {
        let followers = self.followers();
        let read_by_all = followers.iter().map(|follower| follower.read_up_to(partition)).min();
        let compaction = Compaction {
            limits: &self.limits,
            retention: &self.retention,
            tombstone: self.tombstone.as_deref(),
            read_by_all: read_by_all.unwrap_or(u64::MAX),
        };
        compaction.run(self.partition(partition), seal_first)
    }
}

impl<T: Send + Sync + 'static> Timed for Shelf<T> {
    /// Something may have become too old.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        // Before looking, so that what is appended meanwhile is not missed.
        self.ages.store(false, Ordering::SeqCst);
        let mut next = None;
        for partition in self.all() {
            let (trash, due) = partition.expire(now, &self.limits);
            drop_contained(trash);
            next = next.into_iter().chain(due).min();
        }
        if next.is_some() {
            self.ages.store(true, Ordering::SeqCst);
        }
        next
    }
}

/// FNV-1a, 64 bits: a hash that is the same in every build and on every machine, so a key's partition is too.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_gives_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
