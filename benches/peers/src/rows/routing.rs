//! Finding the queue of a routing key.

use super::Row;
use crate::work::{
    Contestant, Outcome,
    routing::{Keys, by_hand, cold, postroom, warm},
};

/// Moves so many messages of such keys.
type Work = fn(u64, Keys) -> Outcome;

pub fn rows() -> Vec<Row> {
    vec![
        row("S5-routing-warm", "u64 published with one of 16 routing keys, 10,000 bindings", warm)
            .target(1.5, by_hand::SELF)
            .target(1.5, by_hand::LOOKUP),
        row("S5-routing-cold", "u64 published with each of 10,000 routing keys in turn, 10,000 bindings", cold)
            .target(15.0, by_hand::SELF)
            .target(15.0, by_hand::LOOKUP),
    ]
}

fn row(name: &'static str, about: &'static str, keys: Keys) -> Row {
    let contestants: [(Contestant, Work); 5] = [
        (postroom::SELF, postroom::patterns),
        (postroom::EXACT, postroom::exact),
        (postroom::SEND, postroom::unrouted),
        (by_hand::SELF, by_hand::send),
        (by_hand::LOOKUP, by_hand::lookup),
    ];
    let row = Row::cost(name, about, 100_000).reference(by_hand::SELF);
    contestants.into_iter().fold(row, |row, (contestant, run)| row.entry(contestant, move |n| run(n, keys)))
}
