//! What is moved, and the proof that all of it arrived.

use std::iter::Sum;

/// A message that can be told from every other of its run.
pub trait Payload: Clone + Send + Sync + 'static {
    fn numbered(number: u64) -> Self;

    /// A number that depends on every byte.
    fn digest(&self) -> u64;
}

impl Payload for u64 {
    fn numbered(number: u64) -> u64 {
        number
    }

    fn digest(&self) -> u64 {
        *self
    }
}

/// 128 bytes, moved by value.
#[derive(Clone)]
pub struct Block([u64; 16]);

/// For those that move bytes only.
impl Block {
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(&self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Block {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight of them"));
        }
        Block(words)
    }
}

impl Payload for Block {
    fn numbered(number: u64) -> Block {
        Block([number; 16])
    }

    fn digest(&self) -> u64 {
        self.0.iter().fold(0, |sum, word| sum.wrapping_add(*word))
    }
}

/// How many messages arrived, and the sum of their digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub count: u64,
    pub sum: u64,
}

impl Tally {
    pub fn add(&mut self, message: &impl Payload) {
        self.merge(Tally { count: 1, sum: message.digest() });
    }

    pub fn merge(&mut self, other: Tally) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Fails unless messages `0..n` arrived, each once.
    pub fn check<T: Payload>(self, n: u64) -> Result<(), String> {
        self.compare((0..n).map(T::numbered).collect())
    }

    pub fn compare(self, expected: Tally) -> Result<(), String> {
        match self {
            tally if tally == expected => Ok(()),
            Tally { count, .. } if count != expected.count => {
                Err(format!("{count} of {} messages arrived", expected.count))
            }
            Tally { count, .. } => Err(format!("{count} messages arrived, but not the ones sent")),
        }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |mut total, tally| {
            total.merge(tally);
            total
        })
    }
}

impl<T: Payload> FromIterator<T> for Tally {
    fn from_iter<I: IntoIterator<Item = T>>(messages: I) -> Tally {
        let mut tally = Tally::default();
        messages.into_iter().for_each(|message| tally.add(&message));
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, Payload, Tally};

    #[test]
    fn block_is_128_bytes() {
        assert_eq!(size_of::<Block>(), 128);
    }

    #[test]
    fn lost_doubled_and_swapped_messages_are_noticed() {
        let check = |numbers: &[u64]| {
            let blocks = numbers.iter().map(|number| Block::numbered(*number));
            blocks.collect::<Tally>().check::<Block>(4).is_ok()
        };
        assert!(check(&[3, 1, 0, 2]));
        assert!(!check(&[0, 1, 2]));
        assert!(!check(&[0, 1, 2, 3, 3]));
        assert!(!check(&[0, 1, 2, 2]));
    }
}
