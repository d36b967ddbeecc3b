//! tokio::sync::mpsc, its blocking half, on plain threads without a runtime.

use std::{iter, sync::Mutex};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::work::{
    BATCH, CAPACITY, Contestant, Outcome, Payload, Tally, crew,
    crew::{Share, handles},
};

pub const SELF: Contestant = Contestant { name: "tokio mpsc", package: Some("tokio"), note: "no ack, no retry" };

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = channel(CAPACITY);
    crew::run(n, [|share: Share<T>| send(sender, share)], [|| receive(receiver)])
}

/// It has one receiver only, so the consumers take turns.
pub fn many<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (sender, receiver) = channel(CAPACITY);
    let receiver = &Mutex::new(receiver);
    let producers = handles::<_, N>(sender).map(|sender| |share: Share<T>| send(sender, share));
    let consumers = [receiver; N].map(|receiver| || receive_shared(receiver));
    crew::run(n, producers, consumers)
}

pub fn batches<T: Payload>(n: u64) -> Outcome {
    let (sender, mut receiver) = channel(CAPACITY);
    let consumer = || {
        let mut tally = Tally::default();
        let mut buffer = Vec::with_capacity(BATCH);
        while receiver.blocking_recv_many(&mut buffer, BATCH) > 0 {
            buffer.drain(..).for_each(|message| tally.add(&message));
        }
        tally
    };
    crew::run(n, [|share: Share<T>| send(sender, share)], [consumer])
}

pub fn one_thread<T: Payload>(n: u64) -> Outcome {
    let (sender, mut receiver) = channel(CAPACITY);
    crew::alone(n, |message: T| {
        sender.blocking_send(message).unwrap();
        receiver.blocking_recv().unwrap()
    })
}

fn send<T: Payload>(sender: Sender<T>, share: Share<T>) {
    share.for_each(|message| sender.blocking_send(message).unwrap());
}

fn receive<T: Payload>(mut receiver: Receiver<T>) -> Tally {
    iter::from_fn(|| receiver.blocking_recv()).collect()
}

fn receive_shared<T: Payload>(receiver: &Mutex<Receiver<T>>) -> Tally {
    iter::from_fn(|| receiver.lock().unwrap().blocking_recv()).collect()
}
