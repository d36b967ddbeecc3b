//! In-memory queues that do the same job.

use super::Row;
use crate::work::{
    Block, hand_off,
    jobs::{apalis, mq_bridge, omniqueue, qubit, ruststream},
};

pub fn rows() -> Vec<Row> {
    vec![
        Row::cost("S10-jobs", "128 bytes published, consumed, acknowledged; one producer, one consumer", 100_000)
            .reference(omniqueue::SELF)
            .target(1.0 / 3.0, omniqueue::SELF)
            .target(1.0 / 10.0, apalis::SELF)
            .target(1.0, mq_bridge::SELF)
            .target(1.0, ruststream::SELF)
            .target(1.0, qubit::SELF)
            .entry(hand_off::postroom::SELF, hand_off::postroom::one_to_one::<Block>)
            .entry(omniqueue::SELF, omniqueue::one_to_one)
            .entry(apalis::SELF, apalis::one_to_one)
            .entry(mq_bridge::SELF, mq_bridge::one_to_one)
            .entry(ruststream::SELF, ruststream::one_to_one)
            .entry(qubit::SELF, qubit::one_to_one),
    ]
}
