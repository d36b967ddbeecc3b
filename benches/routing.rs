//! What it costs to find the way of a message among ten thousand bindings, beside the least it could
//! cost: a look into a hash map. Run with `cargo bench --bench routing`.
//!
//! A publish remembers where its routing key leads, so a key used before ("warm") does not meet the
//! patterns at all; one that was forgotten since ("cold") does. The rows take turns and the median of the rounds is
//! printed.

#![allow(missing_docs)]

use postroom::{Binding, Broker, Queue, Topic};
use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

const BINDINGS: usize = 10_000;
const PUBLISHES: usize = 5_000;
const ROUNDS: usize = 21;
/// Few enough to be remembered all.
const WARM_KEYS: usize = 100;

/// Looks up [`PUBLISHES`] keys in the given round; how long that alone took.
type Run = Box<dyn FnMut(usize) -> Duration>;
/// A row of the table.
type Row = (&'static str, Run);

fn main() {
    let rows: Vec<Row> = vec![
        ("HashMap lookup of an exact key", exact_keys_in_a_map()),
        ("send to the queue, no routing", no_routing()),
        ("publish, exact keys, warm", publishes(exact_binding, warm_key)),
        ("publish, patterns, warm", publishes(pattern_binding, warm_key)),
        ("publish, exact keys, cold", publishes(exact_binding, cold_key)),
        ("publish, patterns, cold", publishes(pattern_binding, cold_key)),
    ];
    println!("{:<48}{:>12}", format!("{BINDINGS} bindings, median of {ROUNDS} rounds"), "ns/message");
    for (name, nanos) in measure(rows) {
        println!("{name:<48}{nanos:>12.1}");
    }
}

fn measure(mut rows: Vec<Row>) -> Vec<(&'static str, f64)> {
    let mut times = vec![Vec::new(); rows.len()];
    for round in 0..ROUNDS {
        for ((_, run), times) in rows.iter_mut().zip(&mut times) {
            times.push(run(round).as_nanos() as f64 / PUBLISHES as f64);
        }
    }
    let medians = times.into_iter().map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    rows.iter().map(|(name, _)| *name).zip(medians).collect()
}

fn pattern_binding(n: usize) -> Binding<u64> {
    Binding::pattern(format!("site{n}.*.#"))
}

fn exact_binding(n: usize) -> Binding<u64> {
    Binding::key(format!("site{n}.order"))
}

/// One of the few keys that every round uses; the exact bindings have them all.
fn warm_key(_: usize, n: usize) -> String {
    format!("site{}.order", n % WARM_KEYS)
}

/// Thousands of other keys come before the same one again, more than are remembered.
fn cold_key(round: usize, n: usize) -> String {
    format!("site{}.order", (round * PUBLISHES + n) % BINDINGS)
}

/// Publishes to a topic with so many bindings, each of which takes another key, all to one queue.
fn publishes(binding: fn(usize) -> Binding<u64>, key: fn(usize, usize) -> String) -> Run {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queue = sink(&broker);
    (0..BINDINGS).for_each(|n| topic.bind(&queue, binding(n)).unwrap());
    Box::new(move |round| {
        let keys = prepare(key, round);
        let took = time(|| keys.iter().for_each(|key| assert_eq!(topic.publish(key, 0).unwrap().routed(), 1)));
        queue.purge();
        took
    })
}

fn prepare(key: fn(usize, usize) -> String, round: usize) -> Vec<String> {
    (0..PUBLISHES).map(|n| key(round, n)).collect()
}

fn no_routing() -> Run {
    let queue = sink(&Broker::new());
    Box::new(move |_| {
        let took = time(|| (0..PUBLISHES).for_each(|_| _ = black_box(queue.send(0).unwrap())));
        queue.purge();
        took
    })
}

fn exact_keys_in_a_map() -> Run {
    let map: HashMap<String, usize> = (0..BINDINGS).map(|n| (format!("site{n}.order"), n)).collect();
    Box::new(move |round| {
        let keys = prepare(warm_key, round);
        time(|| keys.iter().for_each(|key| _ = black_box(map.get(key))))
    })
}

fn sink(broker: &Broker) -> Queue<u64> {
    broker.queue("sink").capacity(PUBLISHES).declare().unwrap()
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
