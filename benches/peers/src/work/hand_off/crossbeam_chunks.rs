//! crossbeam-channel moving whole `Vec`s: batching by hand, without a library for it.

use crossbeam_channel::bounded;

use super::two_locks::Envelope;
use crate::work::{BATCH, CAPACITY, Contestant, Outcome, Payload, crew, crew::Share};

pub const SELF: Contestant =
    Contestant { name: "crossbeam-channel (Vec of 64)", package: Some("crossbeam-channel"), note: "no ack, no retry" };

pub const ENVELOPES: Contestant = Contestant {
    name: "crossbeam-channel (Vec of 64 envelopes)",
    note: "a floor: the same, each message in an envelope",
    ..SELF
};

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

/// The same with each message in an envelope.
pub fn envelopes<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = bounded::<Vec<Envelope<T>>>(CAPACITY / BATCH);
    let producer = |share: Share<T>| {
        let mut envelopes = share.zip(0..).map(|(payload, id)| Envelope::new(id, payload));
        loop {
            let chunk: Vec<_> = envelopes.by_ref().take(BATCH).collect();
            if chunk.is_empty() {
                break drop(sender);
            }
            sender.send(chunk).unwrap();
        }
    };
    crew::run(n, [producer], [|| receiver.into_iter().flatten().map(Envelope::open).collect()])
}
