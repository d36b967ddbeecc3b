//! Which lane a key has.

use super::slab::{NONE, SPARE};

/// Lanes by the hash of their key; the keys themselves stand in the lanes.
///
/// A lane lives as long as something of its key waits or is under way, which is often for one message only,
/// so this is made for coming and going: entries of eight bytes, looked for from the place that the hash
/// names to the next free one, and moved together again when one is taken out.
pub(super) struct Index {
    /// A power of two of them, at most half in use; or none at all.
    entries: Box<[Entry]>,
    used: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u32,
    /// [`NONE`]: free.
    lane: u32,
}

impl Index {
    const FREE: Entry = Entry { hash: 0, lane: NONE };
    const FEWEST: usize = 16;

    pub(super) fn new() -> Self {
        Self { entries: Box::default(), used: 0 }
    }

    /// The lane with this hash of which `is_it` says yes.
    #[inline]
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        if self.entries.is_empty() {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let entry = self.entries[at];
            if entry.lane == NONE {
                return None;
            }
            if entry.hash == hash && is_it(entry.lane) {
                return Some(entry.lane);
            }
            at = self.after(at);
        }
    }

    /// Adds a lane that is not in it.
    #[inline]
    pub(super) fn insert(&mut self, hash: u32, lane: u32) {
        if 2 * (self.used + 1) > self.entries.len() {
            self.resize((2 * self.entries.len()).max(Self::FEWEST));
        }
        self.used += 1;
        self.put(Entry { hash, lane });
    }

    /// Takes out a lane that is in it.
    #[inline]
    pub(super) fn remove(&mut self, hash: u32, lane: u32) {
        let mut gap = self.home(hash);
        while self.entries[gap].lane != lane {
            gap = self.after(gap);
        }
        let mut at = gap;
        loop {
            at = self.after(at);
            let entry = self.entries[at];
            if entry.lane == NONE {
                break;
            }
            // Whoever had to step over the gap to get where it is moves into it.
            if self.steps(self.home(entry.hash), at) >= self.steps(gap, at) {
                self.entries[gap] = entry;
                gap = at;
            }
        }
        self.entries[gap] = Self::FREE;
        self.used -= 1;
        // What many keys have left is given back, also while a few stay.
        if self.entries.len() > 4 * SPARE && 16 * self.used < self.entries.len() {
            self.resize(self.entries.len() / 4);
        }
    }

    /// For how many lanes it has memory.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.entries.len() / 2
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.entries.len() - 1)
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    #[inline]
    fn steps(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len() - 1)
    }

    #[inline]
    fn put(&mut self, entry: Entry) {
        let mut at = self.home(entry.hash);
        while self.entries[at].lane != NONE {
            at = self.after(at);
        }
        self.entries[at] = entry;
    }

    #[cold]
    fn resize(&mut self, len: usize) {
        let old = std::mem::replace(&mut self.entries, vec![Self::FREE; len].into());
        old.iter().filter(|entry| entry.lane != NONE).for_each(|&entry| self.put(entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::BTreeMap;

    /// Few hashes, so that they collide and run into each other; and at the end of the table, so that they
    /// go on at its beginning.
    #[test]
    fn any_mix_of_insertions_and_removals_agrees_with_a_plain_map() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let (mut index, mut model) = (Index::new(), BTreeMap::new());
            let spread = 1 + random.below(40) as u32;
            for _ in 0..2_000 {
                let lane = random.below(60) as u32;
                match model.get(&lane) {
                    None => {
                        let hash = u32::MAX - random.below(u64::from(spread)) as u32;
                        assert_eq!(index.find(hash, |found| found == lane), None);
                        index.insert(hash, lane);
                        model.insert(lane, hash);
                    }
                    Some(&hash) => {
                        assert_eq!(index.find(hash, |found| found == lane), Some(lane));
                        index.remove(hash, lane);
                        model.remove(&lane);
                    }
                }
                let found = model.iter().all(|(&lane, &hash)| index.find(hash, |found| found == lane) == Some(lane));
                assert!(found && index.used == model.len(), "seed {seed}");
            }
        }
    }

    #[test]
    fn it_grows_with_the_lanes_and_shrinks_when_they_have_gone() {
        let mut index = Index::new();
        let hash = |lane: u32| lane.wrapping_mul(0x9E37_79B9);
        (0..200_000).for_each(|lane| index.insert(hash(lane), lane));
        assert!((0..200_000).all(|lane| index.find(hash(lane), |found| found == lane) == Some(lane)));
        (1..200_000).for_each(|lane| index.remove(hash(lane), lane));
        assert_eq!(index.find(hash(0), |found| found == 0), Some(0));
        assert!(index.capacity() <= 2 * SPARE, "{}", index.capacity());
    }
}
