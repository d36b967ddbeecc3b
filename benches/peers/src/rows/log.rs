//! Logs: appending, and reading by groups.

use super::Row;
use crate::work::{
    Block, Outcome,
    log::{locked_vec, postroom},
};

pub fn rows() -> Vec<Row> {
    vec![
        Row::cost("S9-log-append", "128-byte struct appended by one thread, nobody reads", 500_000)
            .reference(locked_vec::SELF)
            .target(2.0, locked_vec::SELF)
            .entry(postroom::SELF, postroom::append::<Block>)
            .entry(postroom::BATCHES, postroom::append_batches::<Block>)
            .entry(locked_vec::SELF, locked_vec::append::<Block>),
        reading::<1>(
            "S9-log-tail-1",
            "128-byte struct appended while a group follows; ns for each record read",
            postroom::tail::<Block, 1>,
            locked_vec::tail::<Block, 1>,
        ),
        reading::<8>(
            "S9-log-tail-8",
            "128-byte struct appended while 8 groups follow; ns for each record read by any of them",
            postroom::tail::<Block, 8>,
            locked_vec::tail::<Block, 8>,
        )
        .targets("postroom", 0, 100.0, None),
        reading::<1>(
            "S9-log-full-1",
            "a full log read by a group; ns for each record read",
            postroom::catch_up::<Block, 1>,
            locked_vec::catch_up::<Block, 1>,
        )
        .entry(postroom::BATCHES, |n| each::<1>(postroom::catch_up_in_batches::<Block, 1>, n)),
        reading::<8>(
            "S9-log-full-8",
            "a full log read by 8 groups; ns for each record read by any of them",
            postroom::catch_up::<Block, 8>,
            locked_vec::catch_up::<Block, 8>,
        )
        .entry(postroom::BATCHES, |n| each::<8>(postroom::catch_up_in_batches::<Block, 8>, n))
        .targets("postroom", 0, 100.0, None),
    ]
}

/// The cost of reading: all groups together read so many times as many records as there are.
fn reading<const GROUPS: u32>(
    name: &'static str,
    about: &'static str,
    postroom: fn(u64) -> Outcome,
    by_hand: fn(u64) -> Outcome,
) -> Row {
    Row::cost(name, about, 500_000)
        .reference(locked_vec::SELF)
        .entry(postroom::SELF, move |n| each::<GROUPS>(postroom, n))
        .entry(locked_vec::SELF, move |n| each::<GROUPS>(by_hand, n))
}

fn each<const GROUPS: u32>(run: fn(u64) -> Outcome, n: u64) -> Outcome {
    run(n).map(|took| took / GROUPS)
}
