//! From one publisher to subscribers that each see everything.

use super::Row;
use crate::work::{
    Block,
    broadcast::{async_broadcast, bus, crossbeam, disruptor, postroom, shared_chunks, tokio},
};

pub fn rows() -> Vec<Row> {
    vec![
        row::<1>("S4-broadcast-1", "128-byte struct, one publisher, one subscriber, capacity 1024", 500_000),
        row::<4>("S4-broadcast-4", "128-byte struct, one publisher, 4 subscribers, capacity 1024", 300_000),
        row::<16>("S4-broadcast-16", "128-byte struct, one publisher, 16 subscribers, capacity 1024", 200_000)
            .target(0.2, crossbeam::SELF)
            .target(0.7, bus::SELF)
            .target(0.05, tokio::SELF)
            .targets(postroom::HANDLER.name, 0, 0.2, Some((crossbeam::SELF.name, 0)))
            .targets(postroom::HANDLER.name, 0, 0.7, Some((bus::SELF.name, 0)))
            .targets(postroom::HANDLER.name, 0, 0.05, Some((tokio::SELF.name, 0))),
    ]
}

fn row<const N: usize>(name: &'static str, about: &'static str, messages: u64) -> Row {
    Row::cost(name, about, messages)
        .reference(crossbeam::SELF)
        .entry(postroom::SELF, postroom::received::<Block, N>)
        .entry(postroom::BATCHES, postroom::received_in_batches::<Block, N>)
        .entry(postroom::HANDLER, postroom::handled::<Block, N>)
        .entry(crossbeam::SELF, crossbeam::clones::<Block, N>)
        .entry(crossbeam::ARC, crossbeam::arcs::<Block, N>)
        .entry(shared_chunks::SELF, shared_chunks::to_each::<Block, N>)
        .entry(bus::SELF, bus::to_each::<Block, N>)
        .entry(tokio::SELF, tokio::to_each::<Block, N>)
        .entry(async_broadcast::SELF, async_broadcast::to_each::<Block, N>)
        .entry(disruptor::SELF, disruptor::to_each::<Block, N>)
}
