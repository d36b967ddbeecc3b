//! postroom's delayed messages, with a clock that is moved by hand.

use std::time::Duration;

use postroom::{Broker, ManualClock, Message, Queue};

use super::{Costs, Fired, HOUR, delay, time};
use crate::work::Contestant;

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "fired by its scheduler into the queue, received and acknowledged; ids, times, retry, cancelling",
};

pub fn all(n: u64) -> Costs {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().expect("a new broker");
    let queue: Queue<u64> = broker.queue("later").capacity(n as usize).declare().expect("a new queue");
    let insert = || {
        for number in 0..n {
            assert!(queue.send(Message::new(number).with_delay(delay(number))).is_ok());
        }
    };
    let fire = |(), fired: &mut Fired| {
        clock.advance(HOUR);
        for _ in 0..n {
            let Ok(delivery) = queue.recv_timeout(Duration::from_secs(20)) else { break };
            fired.note(*delivery.payload());
            delivery.ack().expect("the broker is up");
        }
    };
    time(n, insert, fire, Fired::to_the(Duration::ZERO))
}
