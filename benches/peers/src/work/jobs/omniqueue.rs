//! omniqueue's in-memory backend.

use omniqueue::backends::InMemoryBackend;

use super::{from_bytes, tasks, to_bytes};
use crate::work::{Contestant, Outcome, Tally};

pub const SELF: Contestant = Contestant {
    name: "omniqueue memory",
    package: Some("omniqueue"),
    note: "bytes only; unbounded, one consumer; ack and nack, no retry policy, no dead letters, no routing",
};

pub fn one_to_one(n: u64) -> Outcome {
    let pair = InMemoryBackend::builder().build_pair();
    let (producer, mut consumer) = futures::executor::block_on(pair).map_err(|error| error.to_string())?;
    let produce = async move {
        for number in 0..n {
            producer.send_raw(&to_bytes(number)).await.expect("it is open");
        }
    };
    let consume = async move {
        let mut tally = Tally::default();
        for _ in 0..n {
            let delivery = consumer.receive().await.expect("it is open");
            tally.add(&from_bytes(delivery.borrow_payload().unwrap_or_default()));
            delivery.ack().await.map_err(|(error, _)| error).expect("not yet acknowledged");
        }
        tally
    };
    tasks(n, produce, consume)
}
