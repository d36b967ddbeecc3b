//! postroom's delayed messages, handled by a worker.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use postroom::{Broker, Message, Queue};

use super::{Lateness, deadlines, summarise};
use crate::work::{Contestant, arrivals::wait_until};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "to the start of the handler: scheduler, queue, worker",
};

pub fn timers(n: u64) -> Lateness {
    let broker = Broker::new();
    let queue: Queue<Instant> = broker.queue("later").capacity(n as usize).declare().expect("a new queue");
    let fired = Arc::new(Mutex::new(Vec::with_capacity(n as usize)));
    let notes = Arc::clone(&fired);
    let handler = move |due: &Message<Instant>| notes.lock().unwrap().push((*due.payload(), Instant::now()));
    queue.consumer().start(handler).expect("a worker starts");
    for due in deadlines(n) {
        let delay = due.saturating_duration_since(Instant::now());
        assert!(queue.send(Message::new(due).with_delay(delay)).is_ok());
    }
    wait_until(|| fired.lock().unwrap().len() as u64 >= n);
    broker.shutdown(Duration::from_secs(10));
    let fired = fired.lock().unwrap().clone();
    summarise(fired, n)
}
