//! crossbeam-channel, bounded.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::work::{
    CAPACITY, Contestant, Outcome, Payload, Tally, crew,
    crew::{Share, handles},
};

pub const SELF: Contestant =
    Contestant { name: "crossbeam-channel", package: Some("crossbeam-channel"), note: "no ack, no retry" };

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
    receiver.into_iter().collect()
}
