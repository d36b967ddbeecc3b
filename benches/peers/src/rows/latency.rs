//! Hand-off to a consumer that sleeps.

use super::{Row, time::QUANTILES};
use crate::work::{
    crew,
    latency::{self, Latency},
};

pub fn rows() -> Vec<Row> {
    vec![
        row("latency-idle", "from the send to a consumer that was asleep, idle cores", 2000, |run, n| run(n)),
        row("latency-busy", "the same with a busy thread for each core", 500, |run, n| {
            let _busy = crew::Busy::cores();
            run(n)
        }),
    ]
}

fn row(name: &'static str, about: &'static str, n: u64, under: fn(fn(u64) -> Latency, u64) -> Latency) -> Row {
    Row::of(name, about, n, QUANTILES)
        .repetitions(5)
        .reference(latency::CROSSBEAM)
        .gauge(latency::POSTROOM, move |n| under(latency::postroom, n))
        .gauge(latency::CROSSBEAM, move |n| under(latency::crossbeam, n))
        .gauge(latency::FLUME, move |n| under(latency::flume, n))
        .gauge(latency::KANAL, move |n| under(latency::kanal, n))
        .gauge(latency::STANDARD, move |n| under(latency::standard, n))
        .gauge(latency::TOKIO, move |n| under(latency::tokio, n))
}
