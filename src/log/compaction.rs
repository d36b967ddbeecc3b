//! Keeping only the latest record of each key.
//!
//! Works on sealed segments and replaces them by others, while appends and readers go on: offsets stay, and
//! who reads an old segment has a share of it.

use super::partition::Partition;
use super::retention::{Limits, Retention};
use super::segment::Segment;
use crate::message::Message;
use crate::outcome::contained;
use ahash::AHashMap;
use std::sync::Arc;

/// What decides which records go.
pub(super) struct Compaction<'a, T> {
    pub(super) limits: &'a Limits,
    pub(super) retention: &'a Retention<T>,
    /// Whether a payload says that its key is no more.
    pub(super) tombstone: Option<&'a (dyn Fn(&T) -> bool + Send + Sync)>,
    /// Every group has read what lies before this offset.
    pub(super) read_by_all: u64,
}

impl<T> Compaction<'_, T> {
    /// Compacts everything that is sealed; how many records went.
    pub(super) fn run(&self, partition: &Partition<T>, seal_first: bool) -> u64 {
        let _alone = partition.compacting.lock();
        let (sealed, end): (Vec<_>, u64) = {
            let mut store = partition.store();
            if seal_first && !store.segments.is_empty() {
                store.seal(self.limits);
            }
            let active = store.segments.len().saturating_sub(1);
            let end = store.segments.back().map_or(0, |active| active.base());
            (store.segments.range(..active).cloned().collect(), end)
        };
        if sealed.is_empty() {
            return 0;
        }
        let before: u64 = sealed.iter().map(|segment| segment.len() as u64).sum();
        let survivors = self.survivors(&sealed);
        let removed = before - survivors.len() as u64;
        let fresh = if removed > 0 { self.packed(sealed[0].base(), survivors) } else { sealed };
        let _trash = replace(partition, fresh, end);
        removed
    }

    fn survivors<'s>(&self, sealed: &'s [Arc<Segment<T>>]) -> Vec<(u64, &'s Message<T>)> {
        let records = || sealed.iter().flat_map(|segment| segment.records());
        let latest: AHashMap<&str, u64> =
            records().filter_map(|(offset, message)| Some((message.key()?, offset))).collect();
        let stays = |(offset, message): &(u64, &Message<T>)| {
            let Some(key) = message.key() else { return true };
            latest[key] == *offset && (*offset >= self.read_by_all || !self.is_tombstone(message))
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
}

/// Puts `fresh` in the place of everything before `end`, as far as retention has not removed it meanwhile.
fn replace<T>(partition: &Partition<T>, mut fresh: Vec<Arc<Segment<T>>>, end: u64) -> Vec<Arc<Segment<T>>> {
    let mut store = partition.store();
    if store.oldest >= end {
        return fresh;
    }
    let mut trash = Vec::new();
    let mut old = (0, 0);
    while store.segments.front().is_some_and(|segment| segment.base() < end) {
        let Some(segment) = store.segments.pop_front() else { break };
        old = (old.0 + segment.len() as u64, old.1 + segment.bytes());
        trash.push(segment);
    }
    // What retention has let go of goes here too, except the part of a segment that reaches beyond it.
    let gone = fresh.partition_point(|segment| segment.base() <= store.oldest).saturating_sub(1);
    trash.extend(fresh.drain(..gone));
    let new = fresh.iter().fold((0, 0), |sum, s| (sum.0 + s.len() as u64, sum.1 + s.bytes()));
    store.compacted += old.0.saturating_sub(new.0);
    store.retained = store.retained + new.0 - old.0;
    store.bytes = store.bytes + new.1 - old.1;
    (store.clean, store.clean_end) = (new.0, end);
    fresh.into_iter().rev().for_each(|segment| store.segments.push_front(segment));
    trash
}
