//! Lanes of which a part is not here: it stays in a file, to be fetched when it is wanted.
//!
//! A place says where in the file a message is, and they come in its order. Of each lane all is here up to some place;
//! from there on it is behind, and a later message of it may only be taken in once all before it are. A lane that is
//! behind lives on, also if nothing of it is here.

use super::list::Links;
use super::{Hold, Key, Keyed, Lane, NONE, State};
use std::collections::{BTreeSet, HashMap};

type Place = u64;

/// Which lanes are behind, and from where on.
#[derive(Debug, Default)]
pub(super) struct Behind {
    lanes: HashMap<u32, Missing, ahash::RandomState>,
    /// The same by place.
    order: BTreeSet<(Place, u32)>,
    /// Those that could go on at once if they had their next message.
    hungry: BTreeSet<(Place, u32)>,
    /// How many of them are parked.
    parked: usize,
    /// Lanes that are being dropped: nothing of them is taken in.
    dropping: BTreeSet<u32>,
}

/// What of a lane is not here.
#[derive(Debug, Clone, Copy)]
struct Missing {
    /// Nothing before.
    from: Place,
    /// How many, as far as has been seen.
    count: u64,
}

impl Behind {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    #[inline]
    pub(super) fn has(&self, lane: u32) -> bool {
        !self.is_empty() && self.lanes.contains_key(&lane)
    }

    pub(super) fn set_hungry(&mut self, lane: u32, hungry: bool) {
        let Some(missing) = self.lanes.get(&lane) else { return };
        if hungry {
            self.hungry.insert((missing.from, lane));
        } else {
            self.hungry.remove(&(missing.from, lane));
        }
    }

    pub(super) fn note_parked(&mut self, lane: u32) {
        self.parked += usize::from(self.has(lane));
    }

    pub(super) fn note_unparked(&mut self, lane: u32) {
        self.parked -= usize::from(self.has(lane));
    }

    /// How many of those are not parked.
    pub(super) fn moving(&self) -> usize {
        self.lanes.len() - self.parked
    }

    fn set(&mut self, lane: u32, missing: Missing) {
        if let Some(old) = self.lanes.insert(lane, missing) {
            self.order.remove(&(old.from, lane));
            if self.hungry.remove(&(old.from, lane)) {
                self.hungry.insert((missing.from, lane));
            }
        }
        self.order.insert((missing.from, lane));
    }

    fn clear(&mut self, lane: u32) {
        if let Some(old) = self.lanes.remove(&lane) {
            self.order.remove(&(old.from, lane));
            self.hungry.remove(&(old.from, lane));
        }
    }
}

/// One pass over places in their order, from one on. What it may do to a lane depends on what it has left behind.
#[derive(Debug)]
pub(crate) struct Pass {
    from: Place,
    /// Also what is parked is wanted.
    all: bool,
    /// Lanes of which something was left behind.
    closed: BTreeSet<u32>,
}

impl Pass {
    pub(crate) fn new(from: Place, all: bool) -> Self {
        Self { from, all, closed: BTreeSet::new() }
    }

    pub(crate) fn from(&self) -> Place {
        self.from
    }
}

impl<M> Keyed<M> {
    /// The place from which on a key is missing its next message, which could be handed out at once.
    pub(crate) fn hungry(&self) -> Option<Place> {
        self.behind.hungry.first().map(|&(place, _)| place)
    }

    /// Whether something is missing that will get its turn without anybody's help.
    pub(crate) fn misses_turns(&self) -> bool {
        self.behind.moving() > 0
    }

    /// How many messages of parked keys are missing, as far as has been seen.
    pub(crate) fn held_behind(&self) -> u64 {
        let parked = self.parked.keys().filter_map(|lane| self.behind.lanes.get(lane));
        parked.map(|missing| missing.count).sum()
    }

    /// The same of one.
    pub(super) fn missing(&self, lane: u32) -> u64 {
        self.behind.lanes.get(&lane).map_or(0, |missing| missing.count)
    }

    /// Keeps a key busy whose next message is elsewhere, and is [given back](Keyed::give_back) one day; its lane, unless
    /// there is one already.
    pub(crate) fn occupy(&mut self, mut key: Key) -> Option<u32> {
        if self.find(&key).is_some() {
            return None;
        }
        let lane = self.lane_of(&mut key);
        self.lanes[lane].state = State::Busy;
        Some(lane)
    }

    pub(crate) fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Messages that are here.
    pub(crate) fn present(&self) -> usize {
        self.nodes.live()
    }

    /// Takes in the next message that a pass comes across, unless an earlier one of its key is still missing, or nobody
    /// would want it: then it is left behind.
    pub(crate) fn take_in(&mut self, pass: &mut Pass, place: Place, key: &Key, message: M) -> Result<(), M> {
        if let Some(lane) = self.find(key)
            && !self.may_take_in(pass, lane)
        {
            self.leave_behind(lane, place);
            pass.closed.insert(lane);
            return Err(message);
        }
        let mut message = Some(message);
        self.push_next(&mut key.clone(), || message.take());
        Ok(())
    }

    fn may_take_in(&self, pass: &Pass, lane: u32) -> bool {
        let starts_before = || self.behind.lanes.get(&lane).is_some_and(|missing| missing.from < pass.from);
        let unwanted = self.lanes[lane].state == State::Parked && !pass.all || self.behind.dropping.contains(&lane);
        !unwanted && !pass.closed.contains(&lane) && (self.behind.is_empty() || !starts_before())
    }

    /// Counts one more as missing.
    fn leave_behind(&mut self, lane: u32, place: Place) {
        let missing = match self.behind.lanes.get(&lane) {
            Some(missing) => Missing { from: missing.from.min(place), count: missing.count + 1 },
            None => {
                self.behind.parked += usize::from(self.lanes[lane].state == State::Parked);
                Missing { from: place, count: 1 }
            }
        };
        self.behind.set(lane, missing);
        let Lane { state, waiting, .. } = &self.lanes[lane];
        let hungry = *state == State::Open && *waiting == 0;
        self.behind.set_hungry(lane, hungry);
    }

    /// One that was left behind before has been seen again.
    pub(crate) fn seen_again(&mut self, key: &Key) {
        let Some(lane) = self.find(key) else { return };
        if let Some(missing) = self.behind.lanes.get_mut(&lane) {
            missing.count = missing.count.saturating_sub(1);
        }
    }

    /// A pass has come to its end, before `end`: what is missing of the lanes that it was to look at, and of which it
    /// has left nothing behind, is from there on. Beyond `known` nothing has been seen of any.
    pub(crate) fn end_pass(&mut self, pass: &Pass, end: Place, known: Place) {
        let passed: Vec<(Place, u32)> = self.behind.order.range((pass.from, 0)..(end, 0)).copied().collect();
        for (_, lane) in passed {
            if !pass.closed.contains(&lane) {
                self.nothing_before(lane, end, known);
            }
        }
    }

    /// Nothing of this key is missing before `end`.
    pub(crate) fn nothing_before(&mut self, lane: u32, end: Place, known: Place) {
        let Some(&missing) = self.behind.lanes.get(&lane) else { return };
        if missing.from >= end {
            return;
        }
        if missing.count > 0 && end < known {
            return self.behind.set(lane, Missing { from: end, ..missing });
        }
        self.catch_up(lane);
    }

    /// Nothing of the lane is missing.
    fn catch_up(&mut self, lane: u32) {
        let Lane { state, waiting, .. } = &self.lanes[lane];
        let (state, waiting) = (*state, *waiting);
        if state == State::Parked {
            self.behind.note_unparked(lane);
        }
        self.behind.clear(lane);
        if state == State::Open && waiting == 0 {
            self.forget(lane);
        }
    }

    /// Nothing of any lane is missing.
    pub(crate) fn catch_up_all(&mut self) {
        let lanes: Vec<u32> = self.behind.lanes.keys().copied().collect();
        lanes.into_iter().for_each(|lane| self.catch_up(lane));
    }

    /// Leaves messages behind of lanes that have no turn now, the latest to come first, until so many are here; only
    /// such as `place_of` has a place for, and such that only later ones of their key are missing.
    pub(crate) fn shed(&mut self, stay: usize, place_of: impl Fn(&M) -> Option<Place>) -> Vec<(Place, M)> {
        let mut shed = Vec::new();
        let mut node = self.arrival.last();
        while node != NONE && self.nodes.live() > stay {
            let (Links { previous, .. }, lane) = (self.nodes[node].arrived, self.nodes[node].lane);
            let message = self.nodes[node].message.as_ref().expect("linked");
            let is_last = self.lanes[lane].messages.last() == node && self.lanes[lane].state != State::Open;
            if let Some(place) = if is_last { place_of(message) } else { None } {
                self.held -= usize::from(self.lanes[lane].state == State::Parked);
                shed.extend(self.take_out(node).map(|message| (place, message)));
                self.leave_behind(lane, place);
            }
            node = previous;
        }
        shed
    }

    /// Takes what is here of a parked key, and keeps it from going on, and from getting more, until
    /// [`Keyed::end_drop`] and its lane is freed.
    pub(crate) fn begin_drop(&mut self, key: &Key) -> Option<(u32, Hold, Vec<M>)> {
        let lane = self.parked_lane(key)?;
        let hold = self.parked.remove(&lane)?;
        self.behind.dropping.insert(lane);
        self.behind.note_unparked(lane);
        self.held -= self.lanes[lane].waiting as usize;
        // Its messages leave before it gets in line.
        self.lanes[lane].state = State::Busy;
        let mut messages = Vec::with_capacity(self.lanes[lane].waiting as usize);
        while !self.lanes[lane].messages.is_empty() {
            let first = self.lanes[lane].messages.first;
            messages.extend(self.take_out(first));
        }
        Some((lane, hold, messages))
    }

    /// The lane is about to be freed.
    pub(crate) fn end_drop(&mut self, lane: u32) {
        self.behind.dropping.remove(&lane);
    }

    /// Where the first of a lane's is that is missing.
    pub(crate) fn missing_from(&self, lane: u32) -> Option<Place> {
        self.behind.lanes.get(&lane).map(|missing| missing.from)
    }
}
