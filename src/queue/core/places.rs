//! Sets of places in a stream, at a bit each where they are close together.

use crate::store::Seq;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

#[derive(Debug, Default)]
pub(super) struct Places {
    /// By place / [`BITS`]; none is empty.
    chunks: BTreeMap<Seq, [u64; WORDS]>,
    len: u64,
}

const WORDS: usize = 8;
const BITS: Seq = 64 * WORDS as Seq;

fn position(place: Seq) -> (Seq, usize, u64) {
    let within = (place % BITS) as usize;
    (place / BITS, within / 64, 1 << (within % 64))
}

impl Places {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn contains(&self, place: Seq) -> bool {
        let (chunk, word, bit) = position(place);
        self.chunks.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }

    pub(super) fn insert(&mut self, place: Seq) {
        let (chunk, word, bit) = position(place);
        let word = &mut self.chunks.entry(chunk).or_default()[word];
        self.len += u64::from(*word & bit == 0);
        *word |= bit;
    }

    /// Whether it was among them.
    pub(super) fn remove(&mut self, place: Seq) -> bool {
        let (chunk, word, bit) = position(place);
        let Some(words) = self.chunks.get_mut(&chunk).filter(|words| words[word] & bit != 0) else { return false };
        words[word] &= !bit;
        if *words == [0; WORDS] {
            self.chunks.remove(&chunk);
        }
        self.len -= 1;
        true
    }

    /// The first from there on.
    pub(super) fn next(&self, from: Seq) -> Option<Seq> {
        let first = from / BITS;
        self.chunks.range(first..).find_map(|(&chunk, words)| {
            let start = if chunk == first { (from % BITS) as usize } else { 0 };
            let words = words.iter().enumerate().skip(start / 64);
            let mut found = words.map(|(at, &word)| {
                let before = if at == start / 64 { start % 64 } else { 0 };
                (at, word & (u64::MAX << before))
            });
            let (at, word) = found.find(|(_, word)| *word != 0)?;
            Some(chunk * BITS + 64 * at as Seq + Seq::from(word.trailing_zeros()))
        })
    }

    /// Removes all of these; how many there were.
    pub(super) fn remove_within(&mut self, places: RangeInclusive<Seq>) -> u64 {
        let before = self.len;
        while let Some(place) = self.next(*places.start()).filter(|place| places.contains(place)) {
            self.remove(place);
        }
        before - self.len
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::BTreeSet;

    #[test]
    fn any_mix_of_changes_agrees_with_a_plain_set() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let (mut places, mut model) = (Places::default(), BTreeSet::new());
            let spread = 1 + random.below(5_000);
            for _ in 0..2_000 {
                let place = random.below(spread);
                match random.below(8) {
                    0 => {
                        let end = place + random.below(spread / 4 + 1);
                        let gone: Vec<Seq> = model.range(place..=end).copied().collect();
                        assert_eq!(places.remove_within(place..=end), gone.len() as u64);
                        model.retain(|place| !gone.contains(place));
                    }
                    1 | 2 => assert_eq!(places.remove(place), model.remove(&place)),
                    _ => {
                        places.insert(place);
                        model.insert(place);
                    }
                }
                let from = random.below(spread);
                assert_eq!(places.next(from), model.range(from..).next().copied(), "seed {seed}");
                assert_eq!((places.contains(from), places.len), (model.contains(&from), model.len() as u64));
            }
            places.remove_within(0..=Seq::MAX);
            assert!(places.is_empty() && places.chunks.is_empty());
        }
    }

    #[test]
    fn a_million_neighbours_take_a_bit_each_or_little_more() {
        let mut places = Places::default();
        (0..1_000_000).for_each(|place| places.insert(place));
        assert!(places.chunks.len() * size_of::<[u64; WORDS + 1]>() < 150_000);
    }
}
