//! From the send to a consumer that was asleep: one message, a pause, the next.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{CAPACITY, arrivals::wait_until, hand_off, lateness::quantiles};

/// Microseconds: half, and 99 of 100, took no longer than this.
pub type Latency = Result<Vec<f64>, String>;

pub use hand_off::{
    crossbeam::SELF as CROSSBEAM, flume::SELF as FLUME, kanal::SELF as KANAL, postroom::SELF as POSTROOM,
    standard::SELF as STANDARD, tokio::SELF as TOKIO,
};

/// Long enough for the consumer to fall asleep.
const PAUSE: Duration = Duration::from_micros(200);

pub fn postroom(n: u64) -> Latency {
    use postroom::{Broker, Message, Queue};
    let broker = Broker::new();
    let queue: Queue<Instant> = broker.queue("pings").capacity(CAPACITY).declare().expect("a new queue");
    let taken = Arc::new(Mutex::new(Vec::with_capacity(n as usize)));
    let notes = Arc::clone(&taken);
    let handler = move |sent: &Message<Instant>| notes.lock().unwrap().push(sent.payload().elapsed());
    queue.consumer().start(handler).expect("a worker starts");
    ping(n, |now| assert!(queue.send(now).is_ok()));
    wait_until(|| taken.lock().unwrap().len() as u64 >= n);
    broker.shutdown(Duration::from_secs(10));
    let taken = taken.lock().unwrap().clone();
    summarise(taken, n)
}

pub fn crossbeam(n: u64) -> Latency {
    let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
    channel(n, move |now| sender.send(now).unwrap(), move || receiver.recv().ok())
}

pub fn flume(n: u64) -> Latency {
    let (sender, receiver) = flume::bounded(CAPACITY);
    channel(n, move |now| sender.send(now).unwrap(), move || receiver.recv().ok())
}

pub fn kanal(n: u64) -> Latency {
    let (sender, receiver) = kanal::bounded(CAPACITY);
    channel(n, move |now| sender.send(now).unwrap(), move || receiver.recv().ok())
}

pub fn standard(n: u64) -> Latency {
    let (sender, receiver) = std::sync::mpsc::sync_channel(CAPACITY);
    channel(n, move |now| sender.send(now).unwrap(), move || receiver.recv().ok())
}

pub fn tokio(n: u64) -> Latency {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(CAPACITY);
    channel(n, move |now| sender.blocking_send(now).unwrap(), move || receiver.blocking_recv())
}

fn channel(n: u64, send: impl Fn(Instant), mut receive: impl FnMut() -> Option<Instant> + Send + 'static) -> Latency {
    let consumer = thread::spawn(move || {
        let mut taken = Vec::with_capacity(n as usize);
        while let Some(sent) = receive() {
            taken.push(sent.elapsed());
        }
        taken
    });
    ping(n, &send);
    drop(send);
    summarise(consumer.join().map_err(|_| "the consumer panicked")?, n)
}

fn ping(n: u64, send: impl Fn(Instant)) {
    for _ in 0..n {
        thread::sleep(PAUSE);
        send(Instant::now());
    }
}

fn summarise(taken: Vec<Duration>, n: u64) -> Latency {
    match taken.len() as u64 == n {
        true => Ok(quantiles(taken)),
        false => Err(format!("{} of {n} messages arrived", taken.len())),
    }
}
