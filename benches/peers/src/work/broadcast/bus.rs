//! bus: one ring, one slot for each message, cloned by each reader.

use std::iter;

use bus::{Bus, BusReader};

use crate::work::{CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "bus",
    package: Some("bus"),
    note: "one publisher only; clones; no names, no replay, always waits; its readers and its publisher spin",
};

pub fn to_each<T: Payload, const N: usize>(n: u64) -> Outcome {
    let mut bus = Bus::new(CAPACITY);
    let subscribers: Vec<_> = iter::repeat_with(|| bus.add_rx()).take(N).map(|reader| || receive(reader)).collect();
    crew::fan_out(n, |share: Share<T>| publish(bus, share), subscribers)
}

fn publish<T: Payload>(mut bus: Bus<T>, share: Share<T>) {
    share.for_each(|message| bus.broadcast(message));
}

fn receive<T: Payload>(reader: BusReader<T>) -> Tally {
    reader.into_iter().collect()
}
