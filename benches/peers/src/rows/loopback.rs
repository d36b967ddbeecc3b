//! Servers reached over loopback that do the same job.

use super::Row;
#[cfg(feature = "brokers")]
use crate::work::loopback::{jetstream, rabbitmq};
use crate::work::{Block, Contestant, Outcome, hand_off::postroom, loopback::redis};

pub fn rows() -> Vec<Row> {
    vec![
        beside(redis::SELF, redis::one_to_one, "S11-redis", 200_000, 30.0).needs(|| redis::address().map(drop)),
        #[cfg(feature = "brokers")]
        beside(jetstream::SELF, jetstream::one_to_one, "S11-jetstream", 100_000, 50.0)
            .needs(|| jetstream::address().map(drop)),
        #[cfg(feature = "brokers")]
        beside(rabbitmq::SELF, rabbitmq::one_to_one, "S11-rabbitmq", 40_000, 200.0)
            .needs(|| rabbitmq::address().map(drop)),
    ]
}

/// Postroom beside a server, and how many times as fast it should be, one at a time and in batches.
fn beside(server: Contestant, run: fn(u64) -> Outcome, name: &'static str, messages: u64, times: f64) -> Row {
    let about = "128 bytes published, consumed, acknowledged; one producer, one consumer";
    Row::cost(name, about, messages)
        .reference(server)
        .target(1.0 / times, server)
        .targets(postroom::BATCHES.name, 0, 1.0 / times, Some((server.name, 0)))
        .entry(postroom::SELF, postroom::one_to_one::<Block>)
        .entry(postroom::BATCHES, postroom::batches::<Block>)
        .entry(server, run)
}
