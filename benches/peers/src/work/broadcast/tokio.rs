//! tokio::sync::broadcast, its blocking half, on plain threads without a runtime.

use std::{iter, thread};

use tokio::sync::broadcast::{Receiver, Sender, channel};

use crate::work::{BATCH, CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "tokio broadcast",
    package: Some("tokio"),
    note: "clones; does not wait, so its publisher looks for room every 64 messages; no names, no replay",
};

pub fn to_each<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (sender, first) = channel(CAPACITY);
    let receivers: Vec<_> = iter::once(first).chain(iter::repeat_with(|| sender.subscribe())).take(N).collect();
    let subscribers = receivers.into_iter().map(|receiver| || receive(receiver));
    let subscribers = subscribers.collect();
    crew::fan_out(n, |share: Share<T>| publish(sender, share), subscribers)
}

/// A receiver that falls behind by more than the capacity would miss messages.
fn publish<T: Payload>(sender: Sender<T>, mut share: Share<T>) {
    loop {
        while sender.len() > CAPACITY - BATCH {
            thread::yield_now();
        }
        let mut batch = share.by_ref().take(BATCH).peekable();
        if batch.peek().is_none() {
            break;
        }
        batch.for_each(|message| assert!(sender.send(message).is_ok()));
    }
}

/// Missed messages end it, and then the tally is short.
fn receive<T: Payload>(mut receiver: Receiver<T>) -> Tally {
    iter::from_fn(|| receiver.blocking_recv().ok()).collect()
}
