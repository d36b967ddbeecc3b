//! tokio-util's DelayQueue, in a runtime of its own.

use std::{future::poll_fn, time::Instant};

use tokio::runtime::Builder;
use tokio_util::time::DelayQueue;

use super::{Lateness, deadlines, summarise};
use crate::work::Contestant;

pub const SELF: Contestant = Contestant {
    name: "tokio-util DelayQueue",
    package: Some("tokio-util"),
    note: "to the task that polls it; ticks every millisecond, on purpose",
};

pub fn timers(n: u64) -> Lateness {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut fired = Vec::with_capacity(n as usize);
    runtime.block_on(async {
        let mut queue = DelayQueue::new();
        for due in deadlines(n) {
            queue.insert_at(due, due.into());
        }
        while let Some(expired) = poll_fn(|cx| queue.poll_expired(cx)).await {
            fired.push((expired.into_inner(), Instant::now()));
        }
    });
    summarise(fired, n)
}
