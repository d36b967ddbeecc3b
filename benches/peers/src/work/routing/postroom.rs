//! postroom's topics.

use postroom::{Binding, Broker, Queue, Topic};

use super::{BINDINGS, Keys, each_found};
use crate::work::{Contestant, Outcome};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "10,000 patterns `site7.*.#`; id and time; then the queue's send",
};
pub const EXACT: Contestant = Contestant {
    name: "postroom, exact keys",
    package: Some("postroom"),
    note: "10,000 exact keys instead of patterns",
};
pub const SEND: Contestant =
    Contestant { name: "postroom, no routing", package: Some("postroom"), note: "straight to the queue" };

pub fn patterns(n: u64, keys: Keys) -> Outcome {
    published(n, keys, |number| Binding::pattern(format!("site{number}.*.#")))
}

pub fn exact(n: u64, keys: Keys) -> Outcome {
    published(n, keys, |number| Binding::key(format!("site{number}.order")))
}

pub fn unrouted(n: u64, keys: Keys) -> Outcome {
    let queue = sink(&Broker::new());
    each_found(keys(n), |_| usize::from(queue.send(0).is_ok()), || _ = queue.purge())
}

fn published(n: u64, keys: Keys, binding: fn(usize) -> Binding<u64>) -> Outcome {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().expect("a new topic");
    let queue = sink(&broker);
    (0..BINDINGS).for_each(|number| topic.bind(&queue, binding(number)).expect("a valid binding"));
    each_found(keys(n), |key| topic.publish(key, 0).map_or(0, |receipt| receipt.routed()), || _ = queue.purge())
}

pub(super) fn sink(broker: &Broker) -> Queue<u64> {
    broker.queue("all").capacity(BINDINGS).declare().expect("a new queue")
}
