//! Records on their way into a log: placed, put in under the locks of their partitions, seen, told of.

use super::partition::{Appended, Incoming, Place};
use super::segment::Segment;
use super::shelf::{Follower, Shelf};
use crate::clock::Timestamp;
use crate::message::{Message, Text};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a message is going to be appended, found out before anything is promised.
#[derive(Clone)]
pub(crate) struct Spot {
    /// What the log's function says of a message without a key.
    pub(crate) key: Option<Text>,
    pub(crate) partition: usize,
    pub(super) bytes: u64,
}

/// What a record of a durable log is in the file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stored {
    /// Its time, which is not before that of another.
    pub(crate) at: Timestamp,
    /// About how many bytes it takes, there and in memory.
    pub(crate) bytes: u64,
}

/// A message ready to be appended.
pub(crate) struct Placed<T> {
    pub(super) partition: usize,
    pub(super) bytes: u64,
    pub(super) message: Message<T>,
    /// Its offset, once the file has given it one.
    pub(super) place: Option<u64>,
    /// How many bytes it takes in the file.
    pub(super) stored_bytes: u64,
}

impl<T> Placed<T> {
    /// The file has it: where, and with which time.
    pub(crate) fn set_place(&mut self, place: u64, stored: Stored) {
        self.place = Some(place);
        self.set_stored(stored);
    }

    /// It is on its way there.
    pub(super) fn set_stored(&mut self, stored: Stored) {
        (self.message.published_at, self.stored_bytes) = (stored.at, stored.bytes);
    }

    pub(super) fn into_incoming(self) -> Incoming<T> {
        (self.message, self.bytes, self.place.map(|place| (place, self.stored_bytes)))
    }

    pub(crate) fn into_message(self) -> Message<T> {
        self.message
    }
}

/// Records that are written while the locks of their partitions are still held.
#[must_use]
pub(crate) struct Putting<'a, T> {
    shelf: &'a Shelf<T>,
    places: Vec<(usize, (Place<'a, T>, Vec<Arc<Segment<T>>>))>,
    n: usize,
}

impl<'a, T: Send + Sync + 'static> Putting<'a, T> {
    /// Lets the records be seen; the rest is done by [`Written::finish`], once no lock is held.
    pub(crate) fn release(self) -> Written<'a, T> {
        let Self { shelf, places, n } = self;
        let appended = places.into_iter().map(|(partition, put)| {
            let appended = shelf.partition(partition).finish_all(&shelf.limits, put);
            (partition, appended)
        });
        Written { shelf, appended: appended.collect(), n }
    }
}

/// Records of which nobody was told yet.
#[must_use]
pub(crate) struct Written<'a, T> {
    shelf: &'a Shelf<T>,
    appended: Vec<(usize, Appended<T>)>,
    n: usize,
}

impl<T: Send + Sync + 'static> Written<'_, T> {
    pub(crate) fn finish(self) {
        let shelf = self.shelf;
        shelf.finish_detached(Rest { appended: self.appended, n: self.n, _told: Vec::new() });
    }

    /// Tells whoever waits for them, and leaves what may run the user's code to [`Shelf::finish_detached`], on another
    /// thread.
    pub(crate) fn detach(self) -> Rest<T> {
        let Self { shelf, mut appended, n } = self;
        shelf.start_ageing();
        let awaited = appended.iter().any(|(_, appended)| appended.ring);
        let told = if awaited { shelf.followers() } else { Vec::new() };
        for (partition, appended) in &mut appended {
            if std::mem::take(&mut appended.ring) {
                told.iter().for_each(|follower| follower.rung(*partition));
            }
        }
        shelf.forgo_many(n);
        appended.retain(|(_, appended)| appended.compact || !appended.trash.is_empty());
        Rest { appended, n: 0, _told: told }
    }
}

/// What remains to be done of a write.
pub(crate) struct Rest<T> {
    appended: Vec<(usize, Appended<T>)>,
    n: usize,
    /// Perhaps the last handles.
    _told: Vec<Arc<dyn Follower>>,
}

impl<T: Send + Sync + 'static> Shelf<T> {
    /// Takes records that were promised a place, in order; nobody sees any of them before [`Putting::release`].
    /// Takes the locks of partitions in their order.
    pub(crate) fn put_together(&self, records: Vec<Placed<T>>) -> Putting<'_, T> {
        let n = records.len();
        let mut by_partition: BTreeMap<usize, Vec<Placed<T>>> = BTreeMap::new();
        records.into_iter().for_each(|record| by_partition.entry(record.partition).or_default().push(record));
        let places = by_partition.into_iter().map(|(partition, records)| {
            let messages = records.into_iter().map(Placed::into_incoming);
            (partition, self.partition(partition).put_all(&self.limits, messages))
        });
        Putting { shelf: self, places: places.collect(), n }
    }

    /// Does what [`Written::detach`] has left.
    pub(crate) fn finish_detached(&self, rest: Rest<T>) {
        for (partition, appended) in rest.appended {
            self.finish(partition, appended);
        }
        self.forgo_many(rest.n);
    }
}
