//! tokio-util's DelayQueue, with tokio's time moved by hand.

use std::{future::poll_fn, time::Duration};

use tokio::runtime::Builder;
use tokio_util::time::DelayQueue;

use super::{Costs, Fired, HOUR, delay, time};
use crate::work::Contestant;

pub const SELF: Contestant = Contestant {
    name: "tokio-util DelayQueue",
    package: Some("tokio-util"),
    note: "for one task; rounds to milliseconds; no queue to go to, no ack",
};

pub fn all(n: u64) -> Costs {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let insert = || {
        runtime.block_on(async {
            let mut queue = DelayQueue::new();
            (0..n).for_each(|number| _ = queue.insert(number, delay(number)));
            queue
        })
    };
    let fire = |mut queue: DelayQueue<u64>, fired: &mut Fired| {
        runtime.block_on(async {
            tokio::time::advance(HOUR + Duration::from_millis(2)).await;
            while let Some(expired) = poll_fn(|cx| queue.poll_expired(cx)).await {
                fired.note(expired.into_inner());
            }
        });
    };
    time(n, insert, fire, Fired::to_the(Duration::from_millis(2)))
}
