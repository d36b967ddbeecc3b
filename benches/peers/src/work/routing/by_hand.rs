//! A hash map from routing keys to queues: exact keys only.

use std::hint::black_box;

use ahash::AHashMap;
use postroom::{Broker, Queue};

use super::{BINDINGS, Keys, each_found, postroom::sink};
use crate::work::{Contestant, Outcome};

pub const SELF: Contestant = Contestant {
    name: "hash lookup and send",
    package: Some("ahash"),
    note: "AHashMap of 10,000 exact keys, then the same queue's send; no patterns, no changes while it runs",
};
pub const LOOKUP: Contestant = Contestant {
    name: "hash lookup alone",
    package: Some("ahash"),
    note: "AHashMap of 10,000 exact keys; sends nothing",
};

pub fn send(n: u64, keys: Keys) -> Outcome {
    let queue = sink(&Broker::new());
    let table = table(&queue);
    let publish = |key: &str| usize::from(table.get(key).is_some_and(|queue| queue.send(0).is_ok()));
    each_found(keys(n), publish, || _ = queue.purge())
}

pub fn lookup(n: u64, keys: Keys) -> Outcome {
    let table = table(&sink(&Broker::new()));
    each_found(keys(n), |key| usize::from(black_box(table.get(key)).is_some()), || ())
}

fn table(queue: &Queue<u64>) -> AHashMap<String, Queue<u64>> {
    (0..BINDINGS).map(|number| (format!("site{number}.order"), queue.clone())).collect()
}
