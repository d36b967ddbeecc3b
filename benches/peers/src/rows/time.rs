//! Delays and timers.

use super::{Figure, Row};
use crate::work::{
    crew,
    delay::{self, delay_queue as delays, heap_slab},
    lateness::{self, Lateness, condvar, delay_queue},
};

const COSTS: &[Figure] = &[Figure { name: "insert", unit: "ns" }, Figure { name: "fire", unit: "ns" }];
pub(super) const QUANTILES: &[Figure] = &[Figure { name: "p50", unit: "us" }, Figure { name: "p99", unit: "us" }];

pub fn rows() -> Vec<Row> {
    let postroom = delay::postroom::SELF.name;
    let by_hand = Some((heap_slab::SELF.name, 0));
    vec![
        Row::of("S6-delay", "u64, each due at a random time of the next hour, which then passes", 1_000_000, COSTS)
            .repetitions(5)
            .reference(heap_slab::SELF)
            .targets(postroom, 0, 1.3, by_hand)
            .targets(postroom, 1, 1.3, Some((heap_slab::SELF.name, 1)))
            .gauge(delay::postroom::SELF, delay::postroom::all)
            .gauge(heap_slab::SELF, heap_slab::all)
            .gauge(delays::SELF, delays::all),
        lateness(
            "S7-lateness-idle",
            "timers a tenth of a millisecond apart, idle cores: how late each fires",
            |run, n| run(n),
        ),
        lateness("S7-lateness-busy", "the same with a busy thread for each core", |run, n| {
            let _busy = crew::Busy::cores();
            run(n)
        }),
    ]
}

fn lateness(name: &'static str, about: &'static str, under: fn(fn(u64) -> Lateness, u64) -> Lateness) -> Row {
    let postroom = lateness::postroom::SELF;
    // Exactly: of a few timers, one turn of some other program on this core makes more than a hundredth late.
    Row::of(name, about, 10_000, QUANTILES)
        .exactly()
        .repetitions(5)
        .reference(condvar::SELF)
        .targets(postroom.name, 1, 1.5, Some((condvar::SELF.name, 1)))
        .targets(postroom.name, 1, 0.1, Some((delay_queue::SELF.name, 1)))
        .gauge(postroom, move |n| under(lateness::postroom::timers, n))
        .gauge(condvar::SELF, move |n| under(condvar::timers, n))
        .gauge(condvar::WORKER, move |n| under(condvar::timers_with_worker, n))
        .gauge(delay_queue::SELF, move |n| under(delay_queue::timers, n))
}
