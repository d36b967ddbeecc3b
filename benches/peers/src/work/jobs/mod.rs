//! In-memory queues that do the same job: published, consumed, acknowledged, one at a time.
//!
//! Those for async code run in a tokio runtime of two threads, producer and consumer as a task each.

use std::time::Instant;

use tokio::runtime::Builder;

use super::{Block, Outcome, Payload, Tally};

pub mod apalis;
pub mod mq_bridge;
pub mod omniqueue;
pub mod qubit;
pub mod ruststream;

/// Times a producer and a consumer that ends after so many messages, on two threads.
fn tasks<P, C>(n: u64, producer: P, consumer: C) -> Outcome
where
    P: Future<Output = ()> + Send + 'static,
    C: Future<Output = Tally> + Send + 'static,
{
    tasks_in(Builder::new_multi_thread().worker_threads(2), n, producer, consumer)
}

fn tasks_in<P, C>(runtime: &mut Builder, n: u64, producer: P, consumer: C) -> Outcome
where
    P: Future<Output = ()> + Send + 'static,
    C: Future<Output = Tally> + Send + 'static,
{
    let runtime = runtime.enable_all().build().expect("a runtime");
    let start = Instant::now();
    let tally = runtime.block_on(async {
        let producer = tokio::spawn(producer);
        let tally = tokio::spawn(consumer).await.expect("the consumer does not panic");
        producer.await.expect("the producer does not panic");
        tally
    });
    let took = start.elapsed();
    tally.check::<Block>(n)?;
    Ok(took)
}

/// For those that move bytes only.
fn to_bytes(number: u64) -> [u8; 128] {
    Block::numbered(number).to_bytes()
}

fn from_bytes(bytes: &[u8]) -> Block {
    Block::from_bytes(bytes)
}
