//! Order by key, against no order.

use super::Row;
use crate::work::{
    Contestant, Outcome,
    order::{Keys, by_hand, postroom, skewed, uniform},
};

/// Moves so many messages of such keys.
type Work = fn(u64, Keys) -> Outcome;

pub fn rows() -> Vec<Row> {
    vec![
        row(
            "S8-order-uniform",
            "128-byte struct of one of 10,000 keys, one producer, two workers, capacity 1024",
            uniform,
        )
        .target(2.0, postroom::PLAIN),
        row("S8-order-skewed", "the same, the k-th key in proportion to 1 / k: the first has a tenth of all", skewed),
    ]
}

fn row(name: &'static str, about: &'static str, keys: Keys) -> Row {
    let contestants: [(Contestant, Work); 3] =
        [(postroom::SELF, postroom::ordered), (postroom::PLAIN, postroom::plain), (by_hand::SELF, by_hand::sharded)];
    let row = Row::cost(name, about, 500_000).reference(postroom::PLAIN);
    contestants.into_iter().fold(row, |row, (contestant, run)| row.entry(contestant, move |n| run(n, keys)))
}
