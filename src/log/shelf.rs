//! All partitions of a log: where appends go, and what keeps the retention.

use super::compaction::Compaction;
use super::durable::{Durably, OnFile};
use super::partition::{Appended, Gate, Located, Partition, Place};
use super::put::{Placed, Spot};
use super::record::Offset;
use super::retention::{Limits, Retention};
use crate::clock::Timestamp;
use crate::message::{Message, Text};
use crate::outcome::{contained, drop_contained};
use crate::queue::durable::Mode;
use crate::runtime::{Registration, Runtime};
use crate::scheduler::{Timed, TimedId};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, Padded};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Names the ordering key of a payload.
pub(crate) type KeyOf<T> = Box<dyn Fn(&T) -> Text + Send + Sync>;
pub(crate) type Tombstone<T> = Box<dyn Fn(&T) -> bool + Send + Sync>;

pub(crate) struct Shelf<T> {
    pub(crate) name: Arc<str>,
    pub(crate) runtime: Arc<Runtime>,
    pub(super) retention: Retention<T>,
    pub(super) compact: bool,
    pub(super) tombstone: Option<Tombstone<T>>,
    pub(super) durable: Option<Durably<T>>,
    keys: Option<KeyOf<T>>,
    pub(super) limits: Limits,
    partitions: Box<[Padded<Partition<T>>]>,
    /// The partition of the next message without a key.
    turn: AtomicUsize,
    following: Mutex<Followings>,
    /// Appends that were promised and have not arrived yet.
    pledged: AtomicU64,
    ageing: Registration,
    /// Something will be too old one day, and the scheduler knows.
    ages: AtomicBool,
}

/// Somebody who reads a log.
pub(crate) trait Follower: Send + Sync {
    /// A partition it waits for has got a record.
    fn rung(&self, partition: usize);
}

/// For each partition, before which offset a follower has handled everything. Compaction reads it under the
/// partition's lock, so it is lowered before what lies behind it is read again.
pub(crate) type Floors = Arc<[Padded<AtomicU64>]>;

#[derive(Default)]
struct Followings {
    here: Vec<Following>,
    /// Groups of earlier runs that nobody has started in this one, and where they stand.
    remembered: BTreeMap<String, Vec<u64>>,
}

struct Following {
    follower: Weak<dyn Follower>,
    floors: Floors,
}

impl<T: Send + Sync + 'static> Shelf<T> {
    pub(super) fn new(
        name: Arc<str>,
        runtime: Arc<Runtime>,
        partitions: usize,
        retention: Retention<T>,
        (compact, tombstone): (bool, Option<Tombstone<T>>),
        keys: Option<KeyOf<T>>,
        (durable, mut files): (Option<Durably<T>>, Vec<OnFile<T>>),
    ) -> Arc<Self> {
        let mut files = files.drain(..);
        let window = durable.as_ref().filter(|_| !compact).map(Durably::window);
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            name,
            limits: window.map_or(retention.limits(), |records| retention.limits().with_window(records)),
            retention,
            compact,
            tombstone,
            durable,
            keys,
            partitions: (0..partitions).map(|_| Padded(Partition::new(files.next()))).collect(),
            turn: AtomicUsize::new(0),
            following: Mutex::default(),
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

    pub(crate) fn follow(&self, follower: Weak<dyn Follower>, floors: Floors) {
        let following = &mut self.following.lock().here;
        following.retain(|one| one.follower.strong_count() > 0);
        following.push(Following { follower, floors });
    }

    /// There are groups of earlier runs.
    pub(super) fn remember(&self, groups: BTreeMap<String, Vec<u64>>) {
        self.following.lock().remembered = groups;
    }

    /// Where a group of an earlier run stands, until it is forgotten.
    pub(super) fn remembered(&self, group: &str) -> Option<Vec<u64>> {
        self.following.lock().remembered.get(group).cloned()
    }

    /// Such a group is here again, or removed; whether there was one.
    pub(super) fn forget_group(&self, group: &str) -> bool {
        self.following.lock().remembered.remove(group).is_some()
    }

    pub(crate) fn unfollow(&self, floors: &Floors) {
        self.following.lock().here.retain(|one| !Arc::ptr_eq(&one.floors, floors));
    }

    pub(super) fn followers(&self) -> Vec<Arc<dyn Follower>> {
        self.following.lock().here.iter().filter_map(|one| one.follower.upgrade()).collect()
    }

    /// Before which offset every follower has handled everything.
    fn read_by_all(&self, partition: usize) -> u64 {
        let following = self.following.lock();
        let alive = following.here.iter().filter(|one| one.follower.strong_count() > 0);
        let floors = alive.map(|one| one.floors[partition].load(Ordering::Acquire));
        floors.chain(following.remembered.values().map(|floors| floors[partition])).min().unwrap_or(u64::MAX)
    }

    #[inline]
    pub(crate) fn partition_for(&self, message: &Message<T>) -> usize {
        self.partition_by(message.key())
    }

    #[inline]
    fn partition_by(&self, key: Option<&str>) -> usize {
        if self.width() == 1 {
            return 0;
        }
        match key {
            Some(key) => self.partition_of(key),
            None => self.turn.fetch_add(1, Ordering::Relaxed) % self.width(),
        }
    }

    pub(crate) fn partition_of(&self, key: &str) -> usize {
        (fnv1a(key.as_bytes()) % self.width() as u64) as usize
    }

    #[inline]
    pub(crate) fn is_durable(&self) -> bool {
        self.durable.is_some()
    }

    pub(super) fn mode(&self) -> Option<Mode> {
        self.durable.as_ref().map(Durably::mode)
    }

    pub(super) fn is_keyed(&self) -> bool {
        self.keys.is_some()
    }

    /// The key of a message that has none, if there is a function for it; or the words of that one's panic.
    #[inline]
    pub(crate) fn key_for(&self, message: &Message<T>) -> Result<Option<Text>, String> {
        match &self.keys {
            Some(key) if message.key().is_none() => contained(|| key(message.payload())).map(Some),
            _ => Ok(None),
        }
    }

    /// Gives a message from outside its id and time.
    #[inline]
    pub(crate) fn stamp(&self, message: &mut Message<T>) {
        self.runtime.prepare(message);
    }

    /// A place for a stamped message, unless the log is closed to the caller; see [`Partition::place_for`].
    #[inline]
    pub(super) fn place_for(&self, partition: usize, message: &mut Message<T>) -> Option<Place<'_, T>> {
        let bytes = self.prepare(message);
        let may_pass = |gate| gate == Gate::Draining && self.runtime.is_worker();
        self.partitions[partition].place_for(&self.limits, message, bytes, may_pass)
    }

    /// The message is in its place.
    #[inline]
    pub(super) fn placed(&self, partition: usize, place: Place<'_, T>) -> Offset {
        let appended = self.partitions[partition].finish(&self.limits, place);
        Offset { partition, offset: self.finish(partition, appended) }
    }

    /// What a message counts for in bytes.
    pub(super) fn size_of(&self, message: &Message<T>) -> u64 {
        self.retention.size_of(message.payload())
    }

    /// What it counts for.
    #[inline]
    fn prepare(&self, message: &mut Message<T>) -> u64 {
        self.make_record(message);
        self.retention.size_of(message.payload())
    }

    #[inline]
    pub(super) fn make_record(&self, message: &mut Message<T>) {
        message.attempt = 1;
        if self.compact || self.limits.keeps_window() {
            // So that a record that stays can move into another segment, and a dead letter keeps its payload alone, and
            // not all that were read with it.
            message.make_shared();
        }
    }

    /// The offset of the first one.
    #[inline]
    pub(super) fn finish(&self, partition: usize, appended: Appended<T>) -> u64 {
        let offset = appended.offset;
        self.start_ageing();
        if appended.ring || appended.compact || !appended.trash.is_empty() {
            self.follow_up(partition, appended);
        }
        offset
    }

    /// Appends stamped messages, each to its partition, or gives all of them back.
    pub(crate) fn append_batch(&self, batch: Vec<Placed<T>>) -> Result<Vec<Offset>, Vec<Placed<T>>> {
        if !self.pledge() {
            return Err(batch);
        }
        let mut places: Vec<_> = batch.iter().map(|placed| Offset { partition: placed.partition, offset: 0 }).collect();
        let mut order: Vec<_> = places.iter().map(|place| place.partition).zip(0..).collect();
        order.sort_unstable();
        let alone = order.first().map(|(first, _)| *first) == order.last().map(|(last, _)| *last);
        if alone {
            let partition = places[0].partition;
            let messages = batch.into_iter().map(Placed::into_incoming);
            let first = self.finish(partition, self.partitions[partition].append_all(&self.limits, messages));
            places.iter_mut().zip(first..).for_each(|(place, offset)| place.offset = offset);
            self.forgo();
            return Ok(places);
        }
        let mut batch: Vec<_> = batch.into_iter().map(Some).collect();
        for chosen in order.chunk_by(|(one, _), (other, _)| one == other) {
            let partition = chosen[0].0;
            let messages = chosen.iter().filter_map(|&(_, at): &(_, usize)| batch[at].take());
            let messages = messages.map(Placed::into_incoming);
            let first = self.finish(partition, self.partitions[partition].append_all(&self.limits, messages));
            chosen.iter().zip(first..).for_each(|(&(_, at), offset)| places[at].offset = offset);
        }
        self.forgo();
        Ok(places)
    }

    /// Says where a message will go.
    #[inline]
    pub(crate) fn place(&self, partition: usize, mut message: Message<T>) -> Placed<T> {
        let bytes = self.prepare(&mut message);
        Placed { partition, bytes, message, place: None, stored_bytes: 0 }
    }

    #[cold]
    fn follow_up(&self, partition: usize, appended: Appended<T>) {
        if appended.ring {
            self.followers().iter().for_each(|follower| follower.rung(partition));
        }
        // One compaction at a time is enough, and what it calls may append.
        if appended.compact && self.compact && !self.partitions[partition].is_compacting() {
            self.compact(partition, false);
        }
        drop_contained(appended.trash);
    }

    #[inline]
    pub(super) fn start_ageing(&self) {
        if self.limits.age.is_some() && !self.ages.load(Ordering::SeqCst) {
            self.begin_ageing();
        }
    }

    #[cold]
    fn begin_ageing(&self) {
        if let Some(age) = self.limits.age
            && !self.ages.swap(true, Ordering::SeqCst)
        {
            self.ageing.arm(self.runtime.clock.now().after(age));
        }
    }

    /// Sees to what has become too old, now and later.
    pub(super) fn age_what_was_found(&self) {
        if let Some(due) = self.expire(self.runtime.clock.now()) {
            self.ageing.arm(due);
        }
    }

    /// Promises to take a message, unless the log is closed to the caller.
    pub(crate) fn pledge(&self) -> bool {
        self.pledge_many(1)
    }

    pub(crate) fn pledge_many(&self, n: usize) -> bool {
        // Entered first, so that whoever shuts the gate sees it or it sees the gate.
        self.pledged.fetch_add(n as u64, Ordering::SeqCst);
        let open = self.partition(0).admits(self.runtime.is_worker());
        if !open {
            self.forgo_many(n);
        }
        open
    }

    pub(crate) fn forgo(&self) {
        self.forgo_many(1);
    }

    pub(crate) fn forgo_many(&self, n: usize) {
        self.pledged.fetch_sub(n as u64, Ordering::SeqCst);
        self.runtime.note_progress();
    }

    /// Takes the message that was promised a place, whatever the gate says now.
    pub(crate) fn redeem(&self, mut message: Message<T>, key: Option<Text>) {
        message.take_key(key);
        // A log delivers at once: there is no delay that could be cancelled.
        message.take_timer();
        let partition = self.partition_for(&message);
        let bytes = self.prepare(&mut message);
        let appended = self.partitions[partition].append_all(&self.limits, std::iter::once((message, bytes, None)));
        self.finish(partition, appended);
        self.forgo();
    }

    /// Where a message is going to be. Asks the user's functions for its key, whose panic is the error, and its size.
    pub(crate) fn spot_for(&self, message: &Message<T>) -> Result<Spot, String> {
        let key = self.key_for(message)?;
        let partition = self.partition_by(message.key().or(key.as_ref().map(Text::as_str)));
        Ok(self.spot_in(partition, message, key))
    }

    pub(super) fn spot_in(&self, partition: usize, message: &Message<T>, key: Option<Text>) -> Spot {
        Spot { key, partition, bytes: self.retention.size_of(message.payload()) }
    }

    /// What a stamped message will be as a record.
    pub(crate) fn record_at(&self, mut message: Message<T>, spot: Spot) -> Placed<T> {
        message.take_key(spot.key);
        // A log delivers at once: there is no delay that could be cancelled.
        message.take_timer();
        self.make_record(&mut message);
        Placed { partition: spot.partition, bytes: spot.bytes, message, place: None, stored_bytes: 0 }
    }

    /// Tells logs, rings and queues of one broker apart.
    pub(crate) fn number(&self) -> TimedId {
        self.ageing.id()
    }

    pub(crate) fn pledged(&self) -> u64 {
        self.pledged.load(Ordering::SeqCst)
    }

    pub(crate) fn shut(&self, gate: Gate) {
        self.all().for_each(|partition| partition.shut(gate));
    }

    pub(crate) fn compact(&self, partition: usize, seal_first: bool) -> u64 {
        let compaction = Compaction {
            limits: &self.limits,
            retention: &self.retention,
            tombstone: self.tombstone.as_deref(),
            read_by_all: &|| self.read_by_all(partition),
        };
        compaction.run(self.partition(partition), seal_first)
    }

    /// What is at an offset of a partition.
    pub(crate) fn locate(&self, partition: usize, offset: u64) -> Located<T> {
        self.partition(partition).locate(&self.limits, offset)
    }

    /// Who may append.
    pub(crate) fn gate(&self) -> Gate {
        self.partition(0).gate()
    }

    fn expire(&self, now: Timestamp) -> Option<Timestamp> {
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

impl<T: Send + Sync + 'static> Timed for Shelf<T> {
    /// Something may have become too old.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        self.expire(now)
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
