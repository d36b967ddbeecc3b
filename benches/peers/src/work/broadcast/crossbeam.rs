//! A bounded crossbeam-channel for each subscriber: what people write by hand.

use std::{borrow::Borrow, iter, sync::Arc};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::work::{CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "crossbeam fan-out, clones",
    package: Some("crossbeam-channel"),
    note: "a channel for each subscriber; no names, no replay, always waits",
};

pub const ARC: Contestant = Contestant { name: "crossbeam fan-out, Arc", ..SELF };

pub fn clones<T: Payload, const N: usize>(n: u64) -> Outcome {
    to_each::<T, T, N>(n, |message| message)
}

pub fn arcs<T: Payload, const N: usize>(n: u64) -> Outcome {
    to_each::<T, Arc<T>, N>(n, Arc::new)
}

/// `M` is what goes through the channels.
fn to_each<T: Payload, M: Borrow<T> + Clone + Send, const N: usize>(n: u64, wrap: fn(T) -> M) -> Outcome {
    let (senders, receivers): (Vec<_>, Vec<_>) = iter::repeat_with(|| bounded(CAPACITY)).take(N).unzip();
    let subscribers = receivers.into_iter().map(|receiver| || receive::<T, M>(receiver));
    crew::fan_out(n, |share: Share<T>| publish(senders, share.map(wrap)), subscribers.collect())
}

fn publish<M: Clone>(senders: Vec<Sender<M>>, messages: impl Iterator<Item = M>) {
    let (last, others) = senders.split_last().expect("at least one subscriber");
    for message in messages {
        others.iter().for_each(|sender| sender.send(message.clone()).unwrap());
        last.send(message).unwrap();
    }
}

fn receive<T: Payload, M: Borrow<T>>(receiver: Receiver<M>) -> Tally {
    let mut tally = Tally::default();
    receiver.iter().for_each(|message| tally.add(message.borrow()));
    tally
}
