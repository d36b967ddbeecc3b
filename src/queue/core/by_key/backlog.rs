//! What a queue ordered by key has beside its lanes.

use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::core::places::Places;
use crate::queue::keyed::Key;
use crate::store::Seq;
use std::collections::{BTreeMap, VecDeque};

/// What of a queue ordered by key is ready and not in its lanes: guarded by the intake.
pub(crate) struct ByKey<T> {
    /// Nobody has read from there on.
    pub(super) from: Seq,
    /// The last that is unread.
    pub(super) last: Seq,
    /// How many are in the file only, or late.
    pub(super) count: u64,
    /// Unread ones before `from`.
    pub(super) skipped: Places,
    /// From there on, those that are not to be read: they did not get in, or are gone.
    pub(super) gone: Places,
    /// Late, and not passed yet.
    pub(super) arriving: VecDeque<Late<T>>,
    /// Late, and passed over.
    pub(super) late: BTreeMap<(Seq, u64), Late<T>>,
    /// Numbers the late ones, in the order they came.
    number: u64,
    /// What is due by then and before that place counts as ready.
    pub(super) overdue: Option<(Timestamp, Seq)>,
    /// Messages that have failed and are only in the file, with the lanes that they keep busy.
    pub(in crate::queue::core) failed: BTreeMap<Seq, u32>,
}

/// A message that waits as if it stood in the file.
pub(super) struct Late<T> {
    /// Just before what is there.
    pub(super) place: Seq,
    pub(super) number: u64,
    /// It was passed over before.
    pub(super) passed: bool,
    pub(super) key: Key,
    pub(super) message: Message<T>,
}

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        Self {
            from: 0,
            last: 0,
            count: 0,
            skipped: Places::default(),
            gone: Places::default(),
            arriving: VecDeque::new(),
            late: BTreeMap::new(),
            number: 0,
            overdue: None,
            failed: BTreeMap::new(),
        }
    }
}

impl<T> ByKey<T> {
    /// Whether there is something nobody has looked at.
    pub(super) fn is_ahead(&self) -> bool {
        self.count > 0 && (self.from <= self.last || !self.arriving.is_empty())
    }

    pub(super) fn is_unread(&self, place: Seq) -> bool {
        if place < self.from {
            return self.skipped.contains(place);
        }
        place <= self.last && !self.gone.contains(place)
    }

    /// One that stays in the file; `false` if it is not behind those there are.
    pub(super) fn add(&mut self, place: Seq) -> bool {
        if self.count == 0 {
            self.from = place;
            self.gone.clear();
        } else if place <= self.last {
            return false;
        }
        self.last = place;
        self.count += 1;
        true
    }

    pub(super) fn add_late(&mut self, place: Seq, key: Key, message: Message<T>) {
        self.count += 1;
        self.number += 1;
        self.arriving.push_back(Late { place, number: self.number, passed: false, key, message });
    }

    /// It is in the file, but not to be read.
    pub(in crate::queue::core) fn pass_over(&mut self, place: Seq) {
        if self.count > 0 && place >= self.from {
            self.gone.insert(place);
        }
    }

    /// Takes out what is late and stands before `end`, or just there, in order; of what was passed over before, only
    /// from `from` on.
    pub(super) fn take_late(&mut self, from: Seq, end: Seq) -> VecDeque<Late<T>> {
        let places: Vec<(Seq, u64)> = self.late.range((from, 0)..=(end, u64::MAX)).map(|(&at, _)| at).collect();
        let mut taken: VecDeque<_> = places.into_iter().filter_map(|at| self.late.remove(&at)).collect();
        let arrived = self.arriving.iter().take_while(|late| late.place <= end).count();
        taken.extend(self.arriving.drain(..arrived));
        taken
    }

    pub(super) fn take_all_late(&mut self) -> Vec<Message<T>> {
        let all = std::mem::take(&mut self.late).into_values().chain(self.arriving.drain(..));
        let all: Vec<_> = all.map(|late| late.message).collect();
        self.count -= all.len() as u64;
        all
    }

    /// Everything before has been read or passed over.
    pub(super) fn read_up_to(&mut self, end: Seq) {
        if end > self.from {
            self.gone.remove_within(self.from..=end - 1);
            self.from = end;
        }
    }

    /// Where to read on for whoever wants what stands at `from` or behind.
    pub(super) fn next_unread(&self, from: Seq) -> Seq {
        if from < self.from { self.skipped.next(from).unwrap_or(self.from) } else { from }
    }
}

impl<T> ByKey<T> {
    /// It is not to be read any more; whether it had been passed over.
    pub(super) fn take_place(&mut self, place: Seq) -> bool {
        if place < self.from {
            return self.skipped.remove(place);
        }
        self.gone.insert(place);
        false
    }

    pub(super) fn take_late_of(&mut self, key: &Key, from: Seq, end: Seq) -> Vec<Late<T>> {
        let places = self.late.range((from, 0)..=(end, u64::MAX)).filter(|(_, late)| late.key == *key);
        let places: Vec<(Seq, u64)> = places.map(|(&at, _)| at).collect();
        let mut mine: Vec<_> = places.into_iter().filter_map(|at| self.late.remove(&at)).collect();
        let arriving = std::mem::take(&mut self.arriving).into_iter();
        let (arrived, others): (VecDeque<_>, VecDeque<_>) =
            arriving.partition(|late| late.place <= end && late.key == *key);
        self.arriving = others;
        mine.extend(arrived);
        mine
    }
}
