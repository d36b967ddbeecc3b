//! mq-bridge's memory endpoint.

use std::sync::atomic::{AtomicU64, Ordering};

use mq_bridge::{
    CanonicalMessage,
    endpoints::memory::{MemoryConsumer, MemoryPublisher},
    models::MemoryConfig,
    traits::{MessageConsumer, MessageDisposition, MessagePublisher},
};

use super::{from_bytes, tasks, to_bytes};
use crate::work::{CAPACITY, Contestant, Outcome, Tally};

pub const SELF: Contestant = Contestant {
    name: "mq-bridge memory",
    package: Some("mq-bridge"),
    note: "bytes only; ack and nack; retry and dead letters by middleware, not used here; no routing keys",
};

/// Its topics belong to the process, so every run needs one of its own.
static RUNS: AtomicU64 = AtomicU64::new(0);

pub fn one_to_one(n: u64) -> Outcome {
    let topic = format!("parcels {}", RUNS.fetch_add(1, Ordering::Relaxed));
    let config = MemoryConfig { topic, capacity: Some(CAPACITY), enable_nack: true, ..Default::default() };
    let publisher = MemoryPublisher::new(&config).map_err(|error| error.to_string())?;
    let mut consumer = MemoryConsumer::new(&config).map_err(|error| error.to_string())?;
    let produce = async move {
        for number in 0..n {
            let message = CanonicalMessage::new(to_bytes(number).to_vec(), None);
            publisher.send(message).await.expect("it is open");
        }
    };
    let consume = async move {
        let mut tally = Tally::default();
        for _ in 0..n {
            let received = consumer.receive().await.expect("it is open");
            tally.add(&from_bytes(&received.message.payload));
            (received.commit)(MessageDisposition::Ack).await.expect("it is open");
        }
        tally
    };
    tasks(n, produce, consume)
}
