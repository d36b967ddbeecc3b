//! ruststream's in-memory broker, used by its publisher and subscriber, without its service runtime.

use std::pin::pin;

use futures::StreamExt;
use ruststream::{IncomingMessage, OutgoingMessage, Publisher, Subscriber, memory::MemoryBroker};

use super::{from_bytes, tasks, to_bytes};
use crate::work::{Contestant, Outcome, Tally};

pub const SELF: Contestant = Contestant {
    name: "ruststream memory",
    package: Some("ruststream"),
    note: "bytes only; unbounded; ack and nack; retry and dead letters by its service runtime, not used here",
};

pub fn one_to_one(n: u64) -> Outcome {
    let broker = MemoryBroker::new();
    let mut subscriber = broker.subscribe("parcels");
    let publisher = broker.publisher();
    let produce = async move {
        for number in 0..n {
            let payload = to_bytes(number);
            publisher.publish(OutgoingMessage::new("parcels", &payload), None).await.expect("it is open");
        }
    };
    let consume = async move {
        let mut tally = Tally::default();
        let mut messages = pin!(subscriber.stream());
        for _ in 0..n {
            let message = messages.next().await.expect("it is open").expect("it never fails");
            tally.add(&from_bytes(message.payload()));
            message.ack().await.expect("the broker is up");
        }
        tally
    };
    tasks(n, produce, consume)
}
