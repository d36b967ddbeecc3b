//! crossbeam-channel moving whole `Vec`s: batching by hand, without a library for it.

use crossbeam_channel::bounded;

use crate::work::{BATCH, CAPACITY, Contestant, Outcome, Payload, crew, crew::Share};

pub const SELF: Contestant =
    Contestant { name: "crossbeam-channel (Vec of 64)", package: Some("crossbeam-channel"), note: "no ack, no retry" };

pub fn batches<T: Payload>(n: u64) -> Outcome {
    batches_of::<T, BATCH>(n)
}

pub fn batches_of<T: Payload, const SIZE: usize>(n: u64) -> Outcome {
    let (sender, receiver) = bounded::<Vec<T>>(CAPACITY / SIZE);
    let producer = |mut share: Share<T>| {
        loop {
            let chunk: Vec<T> = share.by_ref().take(SIZE).collect();
            if chunk.is_empty() {
                break drop(sender);
            }
            sender.send(chunk).unwrap();
        }
    };
    crew::run(n, [producer], [|| receiver.into_iter().flatten().collect()])
}
