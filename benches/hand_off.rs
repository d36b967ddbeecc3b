//! What it costs to hand one message over. Run with `cargo bench --bench hand_off`.
//!
//! The rows take turns, so that a noisy moment of the machine touches all of them, and the median of the
//! rounds is printed. Numbers of different machines, or of one machine at different hours, say little.

#![allow(missing_docs)]

use postroom::{Broker, Message, Queue, Topic};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const MESSAGES: u64 = 50_000;
const BATCH: usize = 64;
const ROUNDS: usize = 21;

/// A row of the table: its name, and what hands over [`MESSAGES`] messages.
type Row = (&'static str, Box<dyn FnMut()>);

fn main() {
    let broker = Broker::new();
    let rows = vec![
        ("send, recv, ack: one thread", one_by_one(&broker)),
        ("send_batch, recv_batch, ack of 64: one thread", by_batches(&broker)),
        ("publish -> worker's handler", to_a_worker(&broker)),
        ("publish_batch of 64 -> batch handler", batches_to_a_worker(&broker)),
    ];
    println!("{:<48}{:>12}", format!("median of {ROUNDS} rounds of {MESSAGES} messages"), "ns/message");
    for (name, nanos) in measure(rows) {
        println!("{name:<48}{nanos:>12.1}");
    }
}

fn measure(mut rows: Vec<Row>) -> Vec<(&'static str, f64)> {
    let mut times = vec![Vec::new(); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in rows.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed().as_nanos() as f64 / MESSAGES as f64);
        }
    }
    let medians = times.into_iter().map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    rows.iter().map(|(name, _)| *name).zip(medians).collect()
}

fn one_by_one(broker: &Broker) -> Box<dyn FnMut()> {
    let queue: Queue<u64> = broker.queue("one by one").declare().unwrap();
    Box::new(move || {
        for n in 0..MESSAGES {
            queue.send(n).unwrap();
            let delivery = queue.recv().unwrap();
            black_box(**delivery);
            delivery.ack().unwrap();
        }
    })
}

fn by_batches(broker: &Broker) -> Box<dyn FnMut()> {
    let queue: Queue<u64> = broker.queue("by batches").declare().unwrap();
    Box::new(move || {
        let mut left = MESSAGES as usize;
        while left > 0 {
            let n = left.min(BATCH);
            queue.send_batch(0..n as u64).unwrap();
            let batch = queue.recv_batch(BATCH).unwrap();
            left -= batch.len();
            batch.iter().for_each(|message| _ = black_box(**message));
            batch.ack().unwrap();
        }
    })
}

/// Publishes all and waits until the worker has seen the last.
fn to_a_worker(broker: &Broker) -> Box<dyn FnMut()> {
    let (topic, queue) = topic_and_queue(broker, "worker");
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let handler = move |n: &Message<u64>| {
        black_box(**n);
        count.fetch_add(1, Ordering::Release);
    };
    queue.consumer().start(handler).unwrap();
    Box::new(move || {
        let goal = handled.load(Ordering::Acquire) + MESSAGES;
        (0..MESSAGES).for_each(|n| _ = topic.publish("order.placed", n).unwrap());
        wait_for(&handled, goal);
    })
}

fn batches_to_a_worker(broker: &Broker) -> Box<dyn FnMut()> {
    let (topic, queue) = topic_and_queue(broker, "batch worker");
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let handler = move |batch: &[Message<u64>]| {
        batch.iter().for_each(|n| _ = black_box(**n));
        count.fetch_add(batch.len() as u64, Ordering::Release);
    };
    queue.consumer().start_batch(BATCH, std::time::Duration::ZERO, handler).unwrap();
    Box::new(move || {
        let goal = handled.load(Ordering::Acquire) + MESSAGES;
        for first in (0..MESSAGES).step_by(BATCH) {
            topic.publish_batch("order.placed", first..MESSAGES.min(first + BATCH as u64)).unwrap();
        }
        wait_for(&handled, goal);
    })
}

fn topic_and_queue(broker: &Broker, name: &str) -> (Topic<u64>, Queue<u64>) {
    let topic: Topic<u64> = broker.topic(name).declare().unwrap();
    let queue = broker.queue(name).declare().unwrap();
    topic.bind(&queue, "order.*").unwrap();
    (topic, queue)
}

fn wait_for(handled: &AtomicU64, goal: u64) {
    while handled.load(Ordering::Acquire) < goal {
        std::thread::yield_now();
    }
}
