//! async-broadcast, its blocking half, on plain threads without a runtime.

use std::iter;

use async_broadcast::{Receiver, Sender, broadcast};

use crate::work::{CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant =
    Contestant { name: "async-broadcast", package: Some("async-broadcast"), note: "clones; no names, no replay" };

pub fn to_each<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (sender, receiver) = broadcast(CAPACITY);
    let receivers = iter::repeat_n(receiver, N);
    let subscribers = receivers.map(|receiver| || receive(receiver)).collect();
    crew::fan_out(n, |share: Share<T>| publish(sender, share), subscribers)
}

fn publish<T: Payload>(sender: Sender<T>, share: Share<T>) {
    share.for_each(|message| assert!(sender.broadcast_blocking(message).is_ok()));
}

fn receive<T: Payload>(mut receiver: Receiver<T>) -> Tally {
    iter::from_fn(|| receiver.recv_blocking().ok()).collect()
}
