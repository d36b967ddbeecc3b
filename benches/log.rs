//! Appends beside a locked `Vec`, and eight groups tailing one log.
//!
//! `cargo bench --bench log`

#![allow(missing_docs)]

use postroom::{Broker, Log, Message, Record, Start};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RECORDS: u64 = 1_000_000;
const ROUNDS: usize = 7;

type Payload = [u64; 16];

fn payload(n: u64) -> Payload {
    [n; 16]
}

fn main() {
    if let Some(only) = std::env::args().nth(1).filter(|arg| arg != "--bench") {
        // One kind of work alone, for a profiler.
        return (0..ROUNDS).for_each(|_| println!("{only}: {:.1}", one_round(&only)));
    }
    let kinds = ["push", "push of messages", "append", "batch"];
    let rounds: Vec<_> = (0..ROUNDS).map(|_| kinds.map(one_round)).collect();
    for (n, kind) in kinds.into_iter().enumerate() {
        let time = median(rounds.iter().map(|round| round[n]).collect());
        let ratio = median(rounds.iter().map(|round| round[n] / round[0]).collect());
        println!("{kind:<17} {time:6.1} ns = {ratio:.2} x a locked Vec push");
    }
    for kind in ["tail", "read"] {
        let rate = median((0..ROUNDS).map(|_| one_round(kind)).collect());
        println!("8 groups {kind:<8} {rate:6.1} M records/s in all");
    }
}

/// Nanoseconds a record, or millions of records a second.
fn one_round(kind: &str) -> f64 {
    match kind {
        "push" => locked_push(),
        "push of messages" => locked_push_of_messages(),
        "append" => append(),
        "batch" => append_batch(),
        "tail" => tail(8) / 1e6,
        _ => catch_up(8) / 1e6,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn per_record(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / RECORDS as f64
}

fn locked_push() -> f64 {
    let vec = parking_lot::Mutex::new(Vec::new());
    let start = Instant::now();
    for n in 0..RECORDS {
        vec.lock().push(black_box(payload(n)));
    }
    let took = per_record(start);
    black_box(vec);
    took
}

fn locked_push_of_messages() -> f64 {
    let vec = parking_lot::Mutex::new(Vec::new());
    let start = Instant::now();
    for n in 0..RECORDS {
        vec.lock().push(Message::new(black_box(payload(n))));
    }
    let took = per_record(start);
    black_box(vec);
    took
}

fn append() -> f64 {
    let broker = Broker::new();
    let log: Log<Payload> = broker.log("l").declare().unwrap();
    let start = Instant::now();
    for n in 0..RECORDS {
        black_box(log.append(black_box(payload(n))).unwrap());
    }
    per_record(start)
}

fn append_batch() -> f64 {
    let broker = Broker::new();
    let log: Log<Payload> = broker.log("l").declare().unwrap();
    let start = Instant::now();
    for chunk in 0..RECORDS / 64 {
        black_box(log.append_batch((0..64).map(|n| black_box(payload(chunk * 64 + n)))).unwrap());
    }
    per_record(start)
}

/// Groups follow while the records are appended.
fn tail(groups: usize) -> f64 {
    read(groups, true)
}

/// Groups start when all records are there.
fn catch_up(groups: usize) -> f64 {
    read(groups, false)
}

fn read(groups: usize, live: bool) -> f64 {
    let broker = Broker::new();
    let log: Log<Payload> = broker.log("l").declare().unwrap();
    let seen = Arc::new(Mutex::new(0));
    let fill = || (0..RECORDS).for_each(|n| _ = log.append(payload(n)).unwrap());
    if !live {
        fill();
    }
    let start = Instant::now();
    for group in 0..groups {
        let sum = AtomicU64::new(0);
        let seen = Arc::clone(&seen);
        let group = log.group(format!("g{group}")).start(Start::Earliest).unwrap();
        let handler = move |record: &Record<Payload>| {
            let n = sum.load(Ordering::Relaxed) + 1;
            sum.store(n, Ordering::Relaxed);
            black_box(record.payload()[0]);
            if n == RECORDS {
                *seen.lock().unwrap() += n;
            }
        };
        group.consumer().start(handler).unwrap();
    }
    if live {
        fill();
    }
    assert!(broker.wait_idle(Duration::from_secs(60)));
    let took = start.elapsed();
    assert_eq!(*seen.lock().unwrap(), RECORDS * groups as u64);
    *seen.lock().unwrap() as f64 / took.as_secs_f64()
}
