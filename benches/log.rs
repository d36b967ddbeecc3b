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
        return match only.as_str() {
            "append" => (0..ROUNDS).for_each(|_| println!("{:.1}", append())),
            "batch" => (0..ROUNDS).for_each(|_| println!("{:.1}", append_batch())),
            "push" => (0..ROUNDS).for_each(|_| println!("{:.1}", locked_push())),
            "tail" => (0..ROUNDS).for_each(|_| println!("{:.1}", tail(8) / 1e6)),
            _ => (0..ROUNDS).for_each(|_| println!("{:.1}", catch_up(8) / 1e6)),
        };
    }
    let (mut pushes, mut appends, mut batches) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        pushes.push(locked_push());
        appends.push(append());
        batches.push(append_batch());
    }
    let push = median(pushes);
    let envelopes = median((0..ROUNDS).map(|_| locked_push_of_messages()).collect());
    println!("the same, Message {envelopes:6.1} ns");
    let append = median(appends);
    println!("locked Vec push   {push:6.1} ns");
    println!("append            {append:6.1} ns = {:.2} x", append / push);
    let batch = median(batches);
    println!("append_batch(64)  {batch:6.1} ns = {:.2} x", batch / push);
    let mut tails: Vec<_> = (0..ROUNDS).map(|_| tail(8)).collect();
    tails.sort_by(f64::total_cmp);
    println!("8 groups tailing  {:6.1} M records/s in all", tails[ROUNDS / 2] / 1e6);
    let mut reads: Vec<_> = (0..ROUNDS).map(|_| catch_up(8)).collect();
    reads.sort_by(f64::total_cmp);
    println!("8 groups reading  {:6.1} M records/s in all", reads[ROUNDS / 2] / 1e6);
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
