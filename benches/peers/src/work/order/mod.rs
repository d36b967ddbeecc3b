//! Messages of 10,000 keys, each of which has to be handled in order, by two workers.
//!
//! Every contestant notes the last number of each key; only those that promise order are held to it.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{Payload, Tally};

pub mod by_hand;
pub mod postroom;

pub const KEYS: usize = 10_000;
pub const WORKERS: usize = 2;

/// 128 bytes that belong to a key.
#[derive(Clone)]
pub struct Step {
    pub key: u64,
    number: u64,
    filler: [u64; 14],
}

/// Which key a message has.
pub type Keys = fn() -> &'static [u64];

/// Each key as often as any other.
pub fn uniform() -> &'static [u64] {
    static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    TABLE.get_or_init(|| table(|random| (random * KEYS as f64) as u64))
}

/// A few keys have most messages: the k-th has them in proportion to 1 / k, the first about a tenth of all.
pub fn skewed() -> &'static [u64] {
    static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut shares: Vec<f64> = (1..=KEYS).map(|k| 1.0 / k as f64).collect();
        (1..KEYS).for_each(|k| shares[k] += shares[k - 1]);
        let total = shares[KEYS - 1];
        table(|random| shares.partition_point(|share| *share < random * total) as u64)
    })
}

fn table(key: impl Fn(f64) -> u64) -> Vec<u64> {
    let mut state = 1u64;
    let mut random = || {
        // Knuth's linear congruential generator; its upper bits are good enough here.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..1 << 16).map(|_| key(random()).min(KEYS as u64 - 1)).collect()
}

impl Step {
    fn of(keys: &[u64], number: u64) -> Step {
        Step { key: keys[number as usize % keys.len()], number, filler: [number; 14] }
    }
}

/// The check looks at the numbers; the keys follow from them.
impl Payload for Step {
    fn numbered(number: u64) -> Step {
        Step { key: 0, number, filler: [number; 14] }
    }

    fn digest(&self) -> u64 {
        self.filler.iter().fold(self.number, |sum, word| sum.wrapping_add(*word))
    }
}

/// What the workers saw of each key.
pub struct Progress {
    /// The number of the last message, plus 1.
    last: Vec<AtomicU64>,
    broken: AtomicBool,
}

impl Progress {
    pub fn new() -> Progress {
        let last = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        Progress { last, broken: AtomicBool::new(false) }
    }

    pub fn note(&self, step: &Step) {
        let next = step.number + 1;
        if self.last[step.key as usize].swap(next, Ordering::Relaxed) >= next {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    pub fn was_in_order(&self) -> Result<(), String> {
        match self.broken.load(Ordering::Relaxed) {
            true => Err("a key's messages were handled out of order".into()),
            false => Ok(()),
        }
    }
}

/// Fails unless steps `0..n` arrived.
pub fn check(tally: Tally, n: u64) -> Result<(), String> {
    tally.check::<Step>(n)
}
