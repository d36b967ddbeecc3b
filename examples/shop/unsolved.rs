//! Where everything ends that a module gave up on, until somebody looks after it.

use crate::names::{Order, UNSOLVED};
use postroom::{Broker, DeadLetter, Error, Queue};
use std::collections::BTreeMap;

/// Once this is full, the modules stop rather than lose anything: it must hold what a bad day brings.
pub fn declare(broker: &Broker) -> Result<Queue<DeadLetter<Order>>, Error> {
    broker.queue(UNSOLVED).capacity(2_000_000).declare()
}

pub fn print(unsolved: &Queue<DeadLetter<Order>>) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for letter in unsolved.list(usize::MAX) {
        *kinds.entry(format!("{:<8} {}", letter.queue(), why(&letter))).or_default() += 1;
    }
    if kinds.is_empty() {
        println!("   nothing");
    }
    for (kind, count) in kinds {
        println!("   {count:>6} x {kind}");
    }
}

fn why(letter: &DeadLetter<Order>) -> String {
    format!("{}: {}", letter.reason(), letter.error().unwrap_or("no error"))
}
