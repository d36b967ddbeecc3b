//! What a feature costs a queue that has it configured, beside one with defaults. Run with
//! `cargo bench --bench time_and_flow`.
//!
//! The rows take turns, so that a noisy moment of the machine touches all of them; each round of a row is
//! compared with the same round of the default, and the median of the ratios is printed.

#![allow(missing_docs)]

use postroom::{Broker, DelayLevel, Expired, Message, Queue, QueueBuilder, Rate};
use std::hint::black_box;
use std::time::{Duration, Instant};

const MESSAGES: u64 = 20_000;
const ROUNDS: usize = 31;
const HOUR: Duration = Duration::from_secs(3600);

type Settings = fn(QueueBuilder<u64>) -> QueueBuilder<u64>;
type Make = fn(u64) -> Message<u64>;

struct Row {
    name: &'static str,
    queue: Queue<u64>,
    make: Make,
}

fn main() {
    let broker = Broker::new();
    let rows: Vec<(&'static str, Settings, Make)> = vec![
        ("defaults", |q| q, Message::new),
        ("defaults again (noise)", |q| q, Message::new),
        ("a delayed message stands by", |q| q, Message::new),
        ("messages with a header", |q| q, |n| Message::new(n).with_header("a", "b")),
        ("messages with a time to live", |q| q, |n| Message::new(n).with_ttl(HOUR)),
        ("messages with a zero delay", |q| q, |n| Message::new(n).with_delay(Duration::ZERO)),
        ("ttl of the queue", |q| q.ttl(HOUR).expired(Expired::Drop), Message::new),
        ("priority levels", |q| q.priority_levels(4), Message::new),
        ("max_in_flight", |q| q.max_in_flight(1_000_000), Message::new),
        ("ack_timeout", |q| q.ack_timeout(HOUR), Message::new),
        ("rate_limit", |q| q.rate_limit(Rate::per_second(1e9).burst(u32::MAX)), Message::new),
        ("rate_limit_per_key, no key", |q| q.rate_limit_per_key(Rate::per_second(1e9)), Message::new),
        ("admission", |q| q.admission(Rate::per_second(1e9).burst(u32::MAX)), Message::new),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, settings, make)| Row { name, queue: settings(broker.queue(name)).declare().unwrap(), make })
        .collect();
    rows[2].queue.send(Message::new(0).with_delay(DelayLevel::H2)).unwrap();
    println!("{:<44}{:>10}{:>10}", format!("send, recv, ack: {ROUNDS} rounds of {MESSAGES}"), "ns", "ratio");
    let times = measure(&rows);
    for (n, row) in rows.iter().enumerate() {
        let ratios = times.iter().map(|round| round[n] / round[0]).collect();
        let nanos = times.iter().map(|round| round[n]).collect();
        println!("{:<44}{:>10.1}{:>10.2}", row.name, median(nanos), median(ratios));
    }
}

/// By round and row.
fn measure(rows: &[Row]) -> Vec<Vec<f64>> {
    let round = |_| rows.iter().map(run).collect();
    (0..ROUNDS).map(round).collect()
}

fn run(row: &Row) -> f64 {
    let start = Instant::now();
    for n in 0..MESSAGES {
        row.queue.send((row.make)(n)).unwrap();
        let delivery = row.queue.recv().unwrap();
        black_box(**delivery);
        delivery.ack().unwrap();
    }
    start.elapsed().as_nanos() as f64 / MESSAGES as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
