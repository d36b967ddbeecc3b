//! Keeping only the latest record of each key.
//!
//! Works on sealed segments and replaces them by others, while appends and readers go on: offsets stay, and
//! who reads an old segment has a share of it. Nothing is locked while it works, since it asks functions of
//! the user's. Under the partition's lock it then looks whether what it went by still holds (nothing trimmed,
//! no other compaction, no group that has begun or gone back before a tombstone it removes); if not, the work
//! is done again.

use super::durable::Deletions;
use super::holdings::Store;
use super::partition::Partition;
use super::retention::{Limits, Retention};
use super::segment::Segment;
use crate::message::Message;
use crate::outcome::{contained, drop_contained};
use crate::sync::{Ordering, thread_local};
use ahash::AHashMap;
use std::cell::Cell;
use std::sync::Arc;

/// What decides which records go.
pub(super) struct Compaction<'a, T> {
    pub(super) limits: &'a Limits,
    pub(super) retention: &'a Retention<T>,
    /// Whether a payload says that its key is no more.
    pub(super) tombstone: Option<&'a (dyn Fn(&T) -> bool + Send + Sync)>,
    /// What every group has read lies before this offset.
    pub(super) read_by_all: &'a dyn Fn() -> u64,
}

thread_local! {
    /// This thread is in the middle of a compaction, and what that calls had better not begin another.
    static AT_IT: Cell<bool> = const { Cell::new(false) };
}

/// How often it starts again because others were faster.
const ROUNDS: usize = 16;

/// What a round of work went by.
struct Seen<T> {
    sealed: Vec<Arc<Segment<T>>>,
    oldest: u64,
    end: u64,
    generation: u64,
    read_by_all: u64,
}

impl<T> Compaction<'_, T> {
    /// Compacts everything that is sealed; how many records went.
    pub(super) fn run(&self, partition: &Partition<T>, seal_first: bool) -> u64 {
        if AT_IT.with(|at_it| at_it.replace(true)) {
            return 0;
        }
        partition.compactions.fetch_add(1, Ordering::SeqCst);
        let mut trash = Vec::new();
        let removed = (0..ROUNDS).find_map(|_| self.round(partition, seal_first, &mut trash));
        partition.compactions.fetch_sub(1, Ordering::SeqCst);
        drop_contained(trash);
        AT_IT.with(|at_it| at_it.set(false));
        removed.unwrap_or(0)
    }

    /// `None` if it has to be done again.
    fn round(&self, partition: &Partition<T>, seal_first: bool, trash: &mut Vec<Arc<Segment<T>>>) -> Option<u64> {
        let seen = self.look(&mut partition.store(), seal_first);
        let before: u64 = seen.sealed.iter().map(|segment| segment.len() as u64).sum();
        let survivors = self.survivors(&seen);
        let from_file = partition.on_file.as_ref().map(|file| {
            let mut stay = survivors.iter().map(|(offset, _)| *offset).peekable();
            let records = seen.sealed.iter().flat_map(|segment| segment.records());
            file.deletions(records.map(|(offset, _)| (offset, stay.next_if_eq(&offset).is_some())))
        });
        let removed = before - survivors.len() as u64;
        let fresh = (removed > 0).then(|| self.packed(seen.sealed.first().map_or(0, |first| first.base()), survivors));
        let replaced = {
            let mut store = partition.store();
            let replaced = self.replace(&mut store, &seen, fresh, trash);
            // Under the lock, so that a tombstone never goes from the file before what it stands for.
            from_file.into_iter().filter(|_| replaced).for_each(Deletions::hand_in);
            replaced
        };
        // The last share of a segment may be the one in here.
        trash.extend(seen.sealed);
        replaced.then_some(removed)
    }

    fn look(&self, store: &mut Store<T>, seal_first: bool) -> Seen<T> {
        if seal_first {
            store.seal(self.limits);
        }
        Seen {
            sealed: store.segments.iter().cloned().collect(),
            oldest: store.oldest,
            end: store.sealed_end(),
            generation: store.generation,
            read_by_all: (self.read_by_all)(),
        }
    }

    fn survivors<'s>(&self, seen: &'s Seen<T>) -> Vec<(u64, &'s Message<T>)> {
        let records = || seen.sealed.iter().flat_map(|segment| segment.records());
        let latest: AHashMap<&str, u64> =
            records().filter_map(|(offset, message)| Some((message.key()?, offset))).collect();
        let stays = |(offset, message): &(u64, &Message<T>)| {
            let Some(key) = message.key() else { return true };
            latest[key] == *offset && (*offset >= seen.read_by_all || !self.is_tombstone(message))
        };
        records().filter(stays).collect()
    }

    /// A function that panics keeps the record.
    fn is_tombstone(&self, message: &Message<T>) -> bool {
        self.tombstone.is_some_and(|says| contained(|| says(message.payload())).unwrap_or(false))
    }

    /// New segments that hold the survivors; the payloads are shared with the old ones.
    fn packed(&self, base: u64, survivors: Vec<(u64, &Message<T>)>) -> Vec<Arc<Segment<T>>> {
        let mut start = base;
        let mut fresh = Vec::new();
        for chunk in survivors.chunks(self.limits.segment) {
            let bytes = chunk.iter().map(|(_, message)| self.retention.size_of(message.payload())).sum();
            let share = |message: &Message<T>| message.share_again().expect("shared when it was appended");
            let records = chunk.iter().map(|(offset, message)| (*offset, share(message))).collect();
            fresh.push(Arc::new(Segment::compacted(start, records, bytes)));
            start = chunk.last().map_or(start, |(offset, _)| offset + 1);
        }
        fresh
    }

    /// Puts `fresh` (`None`: the same as was there) in the place of what was seen, if it still may.
    fn replace(
        &self,
        store: &mut Store<T>,
        seen: &Seen<T>,
        fresh: Option<Vec<Arc<Segment<T>>>>,
        trash: &mut Vec<Arc<Segment<T>>>,
    ) -> bool {
        let unchanged = (store.oldest, store.generation) == (seen.oldest, seen.generation);
        if !unchanged || (self.read_by_all)() < seen.read_by_all {
            trash.extend(fresh.into_iter().flatten());
            return false;
        }
        if let Some(fresh) = fresh {
            let behind = store.segments.partition_point(|segment| segment.base() < seen.end);
            let later = store.segments.split_off(behind);
            let old = sums(store.segments.iter());
            let new = sums(fresh.iter());
            trash.extend(std::mem::replace(&mut store.segments, fresh.into()));
            store.segments.extend(later);
            store.compacted += old.0 - new.0;
            store.retained = store.retained + new.0 - old.0;
            store.bytes = store.bytes - old.1 + new.1;
        }
        store.generation += 1;
        store.clean_end = seen.end;
        store.clean = store.segments.iter().take_while(|s| s.base() < seen.end).map(|s| s.len() as u64).sum();
        true
    }
}

/// How many records and how many bytes.
fn sums<'s, T: 's>(segments: impl Iterator<Item = &'s Arc<Segment<T>>>) -> (u64, u64) {
    segments.fold((0, 0), |sum, segment| (sum.0 + segment.len() as u64, sum.1 + segment.bytes()))
}
