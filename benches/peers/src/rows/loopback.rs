//! Servers reached over loopback that do the same job.

use super::Row;
use crate::work::{Block, hand_off, loopback::redis};

pub fn rows() -> Vec<Row> {
    let batches = hand_off::postroom::BATCHES.name;
    vec![
        Row::cost("S11-loopback", "128 bytes published, consumed, acknowledged; one producer, one consumer", 200_000)
            .needs(|| redis::address().map(drop))
            .reference(redis::SELF)
            .target(1.0 / 30.0, redis::SELF)
            .targets(batches, 0, 1.0 / 30.0, Some((redis::SELF.name, 0)))
            .entry(hand_off::postroom::SELF, hand_off::postroom::one_to_one::<Block>)
            .entry(hand_off::postroom::BATCHES, hand_off::postroom::batches::<Block>)
            .entry(redis::SELF, redis::one_to_one),
    ]
}
