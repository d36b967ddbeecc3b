//! std::sync::mpsc, bounded.

use std::{
    iter,
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use crate::work::{
    CAPACITY, Contestant, Outcome, Payload, Tally, crew,
    crew::{Share, handles},
};

pub const SELF: Contestant = Contestant { name: "std sync_channel", package: None, note: "no ack, no retry" };

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = sync_channel(CAPACITY);
    crew::run(n, [|share: Share<T>| send(sender, share)], [|| receive(receiver)])
}

/// It has one receiver only, so the consumers take turns.
pub fn many<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (sender, receiver) = sync_channel(CAPACITY);
    let receiver = &Mutex::new(receiver);
    let producers = handles::<_, N>(sender).map(|sender| |share: Share<T>| send(sender, share));
    let consumers = [receiver; N].map(|receiver| || receive_shared(receiver));
    crew::run(n, producers, consumers)
}

pub fn one_thread<T: Payload>(n: u64) -> Outcome {
    let (sender, receiver) = sync_channel(CAPACITY);
    crew::alone(n, |message: T| {
        sender.send(message).unwrap();
        receiver.recv().unwrap()
    })
}

fn send<T: Payload>(sender: SyncSender<T>, share: Share<T>) {
    share.for_each(|message| sender.send(message).unwrap());
}

fn receive<T: Payload>(receiver: Receiver<T>) -> Tally {
    receiver.into_iter().collect()
}

fn receive_shared<T: Payload>(receiver: &Mutex<Receiver<T>>) -> Tally {
    iter::from_fn(|| receiver.lock().unwrap().recv().ok()).collect()
}
