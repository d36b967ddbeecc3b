//! From producers to consumers that share the work.

use super::{MILLION, Row};
use crate::work::{
    Block,
    hand_off::{crossbeam, crossbeam_chunks, flume, kanal, postroom, standard, tokio, two_locks},
};

const ONE_RECEIVER: &str = "no ack, no retry; its only receiver is shared behind a Mutex";
const SINGLY: &str = "no ack, no retry; one at a time";
const SINGLE_SEND: &str = "no ack, no retry; sends one at a time, receives in batches";
const BY_HAND: &str = "no ack, no retry; a Vec of 64 takes one of 16 slots and has one fate";

pub fn rows() -> Vec<Row> {
    vec![
        Row::cost("S1-128B-1p1c", "128-byte struct, one producer, one consumer, capacity 1024", MILLION)
            .reference(crossbeam::SELF)
            .target(1.2, crossbeam::SELF)
            .entry(postroom::SELF, postroom::one_to_one::<Block>)
            .entry(crossbeam::SELF, crossbeam::one_to_one::<Block>)
            .entry(two_locks::SELF, two_locks::one_to_one::<Block>)
            .entry(flume::SELF, flume::one_to_one::<Block>)
            .entry(kanal::SELF, kanal::one_to_one::<Block>)
            .entry(standard::SELF, standard::one_to_one::<Block>)
            .entry(tokio::SELF, tokio::one_to_one::<Block>),
        Row::cost("S1-128B-2p2c", "128-byte struct, two producers, two consumers, capacity 1024", MILLION)
            .reference(crossbeam::SELF)
            .target(1.2, crossbeam::SELF)
            .entry(postroom::SELF, postroom::many::<Block, 2>)
            .entry(crossbeam::SELF, crossbeam::many::<Block, 2>)
            .entry(two_locks::SELF, two_locks::many::<Block, 2>)
            .entry(flume::SELF, flume::many::<Block, 2>)
            .entry(kanal::SELF, kanal::many::<Block, 2>)
            .entry(standard::SELF, standard::many::<Block, 2>)
            .note(ONE_RECEIVER)
            .entry(tokio::SELF, tokio::many::<Block, 2>)
            .note(ONE_RECEIVER),
        Row::cost("S2-u64-1p1c", "u64, one producer, one consumer, capacity 1024", MILLION)
            .reference(crossbeam::SELF)
            .target(2.5, crossbeam::SELF)
            .entry(postroom::SELF, postroom::one_to_one::<u64>)
            .entry(crossbeam::SELF, crossbeam::one_to_one::<u64>)
            .entry(two_locks::SELF, two_locks::one_to_one::<u64>)
            .entry(flume::SELF, flume::one_to_one::<u64>)
            .entry(kanal::SELF, kanal::one_to_one::<u64>)
            .entry(standard::SELF, standard::one_to_one::<u64>)
            .entry(tokio::SELF, tokio::one_to_one::<u64>),
        Row::cost("S2-u64-2p2c", "u64, two producers, two consumers, capacity 1024", MILLION)
            .reference(crossbeam::SELF)
            .target(2.5, crossbeam::SELF)
            .entry(postroom::SELF, postroom::many::<u64, 2>)
            .entry(crossbeam::SELF, crossbeam::many::<u64, 2>)
            .entry(two_locks::SELF, two_locks::many::<u64, 2>)
            .entry(flume::SELF, flume::many::<u64, 2>)
            .entry(kanal::SELF, kanal::many::<u64, 2>)
            .entry(standard::SELF, standard::many::<u64, 2>)
            .note(ONE_RECEIVER)
            .entry(tokio::SELF, tokio::many::<u64, 2>)
            .note(ONE_RECEIVER),
        Row::cost("S2-u64-one-thread", "u64, send then receive on one thread, capacity 1024", MILLION)
            .reference(crossbeam::SELF)
            .target(2.0, crossbeam::SELF)
            .entry(postroom::SELF, postroom::one_thread::<u64>)
            .entry(crossbeam::SELF, crossbeam::one_thread::<u64>)
            .entry(two_locks::SELF, two_locks::one_thread::<u64>)
            .entry(two_locks::SETTLED, two_locks::one_thread_settled::<u64>)
            .entry(flume::SELF, flume::one_thread::<u64>)
            .entry(kanal::SELF, kanal::one_thread::<u64>)
            .entry(standard::SELF, standard::one_thread::<u64>)
            .entry(tokio::SELF, tokio::one_thread::<u64>),
        Row::cost(
            "S3-128B-batch64",
            "128-byte struct, one producer, one consumer, capacity 1024, in batches of 64 where the contestant has any",
            MILLION,
        )
        .reference(crossbeam::SELF)
        .target(0.35, crossbeam::SELF)
        .entry(postroom::SELF, postroom::batches::<Block>)
        .entry(crossbeam::SELF, crossbeam::one_to_one::<Block>)
        .note(SINGLY)
        .entry(crossbeam_chunks::SELF, crossbeam_chunks::batches::<Block>)
        .note(BY_HAND)
        .entry(crossbeam_chunks::ENVELOPES, crossbeam_chunks::envelopes::<Block>)
        .entry(flume::SELF, flume::batches::<Block>)
        .note(SINGLE_SEND)
        .entry(kanal::SELF, kanal::batches::<Block>)
        .note(SINGLE_SEND)
        .entry(standard::SELF, standard::one_to_one::<Block>)
        .note(SINGLY)
        .entry(tokio::SELF, tokio::batches::<Block>)
        .note(SINGLE_SEND),
    ]
}
