//! One producer publishes to one queue, which the routing key has to find among 10,000 bindings. Nobody
//! receives: what is measured is the way in.

use std::time::{Duration, Instant};

use super::Outcome;

pub mod by_hand;
pub mod postroom;

pub const BINDINGS: usize = 10_000;

/// The routing keys of a run.
pub type Keys = fn(n: u64) -> Vec<String>;

/// A few keys again and again.
pub fn warm(n: u64) -> Vec<String> {
    (0..n as usize).map(|number| format!("site{}.order", number % 16 * 601)).collect()
}

/// Each of the 10,000 keys in turn, in an order memory does not like: no result is used again before all
/// others were.
pub fn cold(n: u64) -> Vec<String> {
    (0..n as usize).map(|number| format!("site{}.order", number * 7919 % BINDINGS)).collect()
}

/// Times `publish`, which says for each key how many queues it found. After every 10,000 `empty` empties the queue,
/// outside the time, and the first 10,000 come once more than asked for, so that nobody measures fresh memory.
fn each_found(keys: Vec<String>, mut publish: impl FnMut(&str) -> usize, empty: impl Fn()) -> Outcome {
    let (mut took, mut found) = (Duration::ZERO, 0);
    let rounds = keys.chunks(BINDINGS);
    for (round, keys) in rounds.clone().take(1).chain(rounds).enumerate() {
        let start = Instant::now();
        let queues: usize = keys.iter().map(|key| publish(key)).sum();
        let elapsed = start.elapsed();
        empty();
        if round > 0 {
            took += elapsed;
            found += queues;
        }
    }
    match found == keys.len() {
        true => Ok(took),
        false => Err(format!("{} keys found {found} queues", keys.len())),
    }
}
