//! A crossbeam-channel for each worker, chosen by the key: what people write by hand.

use std::iter;

use crossbeam_channel::{Receiver, bounded};

use super::{Keys, Progress, Step, WORKERS, check};
use crate::work::{CAPACITY, Contestant, Outcome, Tally, crew};

pub const SELF: Contestant = Contestant {
    name: "crossbeam, a channel per worker",
    package: Some("crossbeam-channel"),
    note: "no ack, no retry; a slow key holds up all keys of its worker; the number of workers is fixed",
};

pub fn sharded(n: u64, keys: Keys) -> Outcome {
    let keys = keys();
    let progress = &Progress::new();
    let (senders, receivers): (Vec<_>, Vec<_>) =
        iter::repeat_with(|| bounded(CAPACITY / WORKERS)).take(WORKERS).unzip();
    let mut threads: Vec<crew::Thread> = vec![Box::new(move || {
        for number in 0..n {
            let step = Step::of(keys, number);
            senders[step.key as usize % WORKERS].send(step).unwrap();
        }
        Tally::default()
    })];
    for receiver in receivers {
        threads.push(Box::new(move || receive(receiver, progress)));
    }
    let (elapsed, tallies) = crew::time(threads)?;
    check(tallies.into_iter().sum(), n)?;
    progress.was_in_order()?;
    Ok(elapsed)
}

fn receive(receiver: Receiver<Step>, progress: &Progress) -> Tally {
    receiver.into_iter().inspect(|step| progress.note(step)).collect()
}
