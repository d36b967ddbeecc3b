//! kanal, bounded.

use std::iter;

use kanal::{Receiver, Sender, bounded};

use crate::work::{
    CAPACITY, Contestant, Outcome, Payload, Tally, crew,
    crew::{Share, handles},
};

pub const SELF: Contestant = Contestant { name: "kanal", package: Some("kanal"), note: "no ack, no retry" };

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = bounded(CAPACITY);
    crew::run(n, [|share: Share<T>| send(sender, share)], [|| receive(receiver)])
}

pub fn many<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (sender, receiver) = bounded(CAPACITY);
    let producers = handles::<_, N>(sender).map(|sender| |share: Share<T>| send(sender, share));
    let consumers = handles::<_, N>(receiver).map(|receiver| || receive(receiver));
    crew::run(n, producers, consumers)
}

/// Receives whatever is there, up to the capacity.
pub fn batches<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = bounded(CAPACITY);
    let consumer = || {
        let mut tally = Tally::default();
        let mut buffer = Vec::with_capacity(CAPACITY);
        while let Ok(first) = receiver.recv() {
            tally.add(&first);
            // An error means closed and empty, which the next `recv` says as well.
            let _ = receiver.drain_into(&mut buffer);
            buffer.drain(..).for_each(|message| tally.add(&message));
        }
        tally
    };
    crew::run(n, [|share: Share<T>| send(sender, share)], [consumer])
}

pub fn one_thread<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = bounded(CAPACITY);
    crew::alone(n, |message: T| {
        sender.send(message).unwrap();
        receiver.recv().unwrap()
    })
}

fn send<T: Payload>(sender: Sender<T>, share: Share<T>) {
    share.for_each(|message| sender.send(message).unwrap());
}

fn receive<T: Payload>(receiver: Receiver<T>) -> Tally {
    iter::from_fn(|| receiver.recv().ok()).collect()
}
