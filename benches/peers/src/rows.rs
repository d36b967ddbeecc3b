//! Which work, done by whom, compared with whom.
//!
//! A new kind of work is a new function in the files under `work` and a new row here; the harness and
//! the report need no change.

use crate::work::{Block, Contestant, Outcome, crossbeam, crossbeam_chunks, flume, kanal, postroom, standard, tokio};

/// One piece of work and everybody who does it.
pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    /// How many messages one run moves.
    pub messages: u64,
    /// The contestant whose median is 1.00.
    pub reference: Contestant,
    pub entries: Vec<Entry>,
}

/// One contestant's way to do a row's work.
pub struct Entry {
    pub contestant: Contestant,
    /// Moves so many messages, checks that all arrived, and says how long it took.
    pub run: fn(u64) -> Outcome,
    /// What to know before comparing this entry with the others.
    pub note: &'static str,
}

const MILLION: u64 = 1_000_000;
const ONE_RECEIVER: &str = "no ack, no retry; its only receiver is shared behind a Mutex";
const SINGLY: &str = "no ack, no retry; one at a time";
const SINGLE_SEND: &str = "no ack, no retry; sends one at a time, receives in batches";
const BY_HAND: &str = "no ack, no retry; a Vec of 64 takes one of 16 slots and has one fate";

pub fn all() -> Vec<Row> {
    vec![
        Row {
            name: "u64-1p1c",
            about: "u64, one producer, one consumer, capacity 1024",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::one_to_one::<u64>),
                entry(crossbeam::SELF, crossbeam::one_to_one::<u64>),
                entry(flume::SELF, flume::one_to_one::<u64>),
                entry(kanal::SELF, kanal::one_to_one::<u64>),
                entry(standard::SELF, standard::one_to_one::<u64>),
                entry(tokio::SELF, tokio::one_to_one::<u64>),
            ],
        },
        Row {
            name: "u64-2p2c",
            about: "u64, two producers, two consumers, capacity 1024",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::two_to_two::<u64>),
                entry(crossbeam::SELF, crossbeam::two_to_two::<u64>),
                entry(flume::SELF, flume::two_to_two::<u64>),
                entry(kanal::SELF, kanal::two_to_two::<u64>),
                entry(standard::SELF, standard::two_to_two::<u64>).note(ONE_RECEIVER),
                entry(tokio::SELF, tokio::two_to_two::<u64>).note(ONE_RECEIVER),
            ],
        },
        Row {
            name: "u64-one-thread",
            about: "u64, send then receive on one thread, capacity 1024",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::one_thread::<u64>),
                entry(crossbeam::SELF, crossbeam::one_thread::<u64>),
                entry(flume::SELF, flume::one_thread::<u64>),
                entry(kanal::SELF, kanal::one_thread::<u64>),
                entry(standard::SELF, standard::one_thread::<u64>),
                entry(tokio::SELF, tokio::one_thread::<u64>),
            ],
        },
        Row {
            name: "128B-1p1c",
            about: "128-byte struct, one producer, one consumer, capacity 1024",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::one_to_one::<Block>),
                entry(crossbeam::SELF, crossbeam::one_to_one::<Block>),
                entry(flume::SELF, flume::one_to_one::<Block>),
                entry(kanal::SELF, kanal::one_to_one::<Block>),
                entry(standard::SELF, standard::one_to_one::<Block>),
                entry(tokio::SELF, tokio::one_to_one::<Block>),
            ],
        },
        Row {
            name: "128B-2p2c",
            about: "128-byte struct, two producers, two consumers, capacity 1024",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::two_to_two::<Block>),
                entry(crossbeam::SELF, crossbeam::two_to_two::<Block>),
                entry(flume::SELF, flume::two_to_two::<Block>),
                entry(kanal::SELF, kanal::two_to_two::<Block>),
                entry(standard::SELF, standard::two_to_two::<Block>).note(ONE_RECEIVER),
                entry(tokio::SELF, tokio::two_to_two::<Block>).note(ONE_RECEIVER),
            ],
        },
        Row {
            name: "128B-batch64",
            about: "128-byte struct, one producer, one consumer, capacity 1024, \
                    in batches of 64 where the contestant has any",
            messages: MILLION,
            reference: crossbeam::SELF,
            entries: vec![
                entry(postroom::SELF, postroom::batches::<Block>),
                entry(crossbeam::SELF, crossbeam::one_to_one::<Block>).note(SINGLY),
                entry(crossbeam_chunks::SELF, crossbeam_chunks::batches::<Block>).note(BY_HAND),
                entry(flume::SELF, flume::batches::<Block>).note(SINGLE_SEND),
                entry(kanal::SELF, kanal::batches::<Block>).note(SINGLE_SEND),
                entry(standard::SELF, standard::one_to_one::<Block>).note(SINGLY),
                entry(tokio::SELF, tokio::batches::<Block>).note(SINGLE_SEND),
            ],
        },
    ]
}

fn entry(contestant: Contestant, run: fn(u64) -> Outcome) -> Entry {
    Entry { contestant, run, note: contestant.note }
}

impl Entry {
    /// Replaces the contestant's general note where this row needs another.
    fn note(self, note: &'static str) -> Entry {
        Entry { note, ..self }
    }
}
