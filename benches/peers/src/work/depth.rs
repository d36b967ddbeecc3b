//! What a message costs while so many others are queued: one in, one out, on one thread.

use std::time::Instant;

use postroom::{Broker, Queue};

use super::{Contestant, hand_off};

pub const POSTROOM: Contestant = hand_off::postroom::SELF;
pub const CROSSBEAM: Contestant = Contestant { name: "crossbeam-channel, unbounded", ..hand_off::crossbeam::SELF };

/// How many messages are queued meanwhile, in hundredths of the number that is moved.
const DEPTHS: [u64; 5] = [1, 10, 100, 1_000, 10_000];

/// Nanoseconds for each message, at each depth.
pub type Costs = Result<Vec<f64>, String>;

pub fn postroom(n: u64) -> Costs {
    let broker = Broker::new();
    let capacity = n as usize * 100 + 1;
    let queue: Queue<u64> = broker.queue("deep").capacity(capacity).declare().expect("a new queue");
    let receive = || {
        let delivery = queue.recv().expect("it is open");
        let number = *delivery.payload();
        delivery.ack().expect("the broker is up");
        number
    };
    at_each_depth(n, |number| assert!(queue.send(number).is_ok()), receive)
}

pub fn crossbeam(n: u64) -> Costs {
    let (sender, receiver) = crossbeam_channel::unbounded();
    at_each_depth(n, |number| sender.send(number).unwrap(), || receiver.recv().unwrap())
}

/// Fills up to a depth, moves `n` messages through, fills up to the next. Each has to come out in its turn. The
/// shallowest depth goes first and once more without being timed, or it alone would pay for fresh memory.
fn at_each_depth(n: u64, send: impl Fn(u64), receive: impl Fn() -> u64) -> Costs {
    let (mut sent, mut received) = (0, 0);
    let mut costs = Vec::new();
    for depth in DEPTHS[..1].iter().chain(&DEPTHS) {
        while sent - received < n * depth / 100 {
            send(sent);
            sent += 1;
        }
        let start = Instant::now();
        for _ in 0..n {
            send(sent);
            sent += 1;
            if receive() != received {
                return Err(format!("message {received} did not come in its turn"));
            }
            received += 1;
        }
        costs.push(start.elapsed().as_nanos() as f64 / n as f64);
    }
    Ok(costs.split_off(1))
}
