//! The threads of a run, and its clock.

use std::{
    array,
    marker::PhantomData,
    ops::Range,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Outcome, Payload, Tally};
use crate::machine;

/// Splits messages `0..n` among the producers, lets the consumers receive until the producers are gone,
/// and checks what arrived.
pub fn run<T, P, C, const PRODUCERS: usize, const CONSUMERS: usize>(
    n: u64,
    producers: [P; PRODUCERS],
    consumers: [C; CONSUMERS],
) -> Outcome
where
    T: Payload,
    P: FnOnce(Share<T>) + Send,
    C: FnOnce() -> Tally + Send,
{
    let mut threads: Vec<Thread> = Vec::new();
    for (producer, share) in producers.into_iter().zip(shares(n, PRODUCERS as u64)) {
        threads.push(Box::new(move || {
            producer(share);
            Tally::default()
        }));
    }
    for consumer in consumers {
        threads.push(Box::new(consumer));
    }
    let (elapsed, tallies) = time(threads)?;
    tallies.into_iter().sum::<Tally>().check::<T>(n)?;
    Ok(elapsed)
}

/// Publishes messages `0..n` from one thread; each subscriber receives until the publisher is gone, and has
/// to have received all of them.
pub fn fan_out<T, P, S>(n: u64, publisher: P, subscribers: Vec<S>) -> Outcome
where
    T: Payload,
    P: FnOnce(Share<T>) + Send,
    S: FnOnce() -> Tally + Send,
{
    let mut threads: Vec<Thread> = vec![Box::new(move || {
        publisher(Share::of(0..n));
        Tally::default()
    })];
    threads.extend(subscribers.into_iter().map(|subscriber| Box::new(subscriber) as Thread));
    let (elapsed, tallies) = time(threads)?;
    each_saw_all::<T>(n, tallies.into_iter().skip(1))?;
    Ok(elapsed)
}

/// Fails unless each of the subscribers' tallies says that messages `0..n` arrived.
pub fn each_saw_all<T: Payload>(n: u64, mut tallies: impl Iterator<Item = Tally>) -> Result<(), String> {
    let expected: Tally = Share::<T>::of(0..n).collect();
    tallies.try_for_each(|tally| tally.compare(expected))
}

/// Does everything on the calling thread: `step` moves one message through.
pub fn alone<T: Payload>(n: u64, step: impl FnMut(T) -> T) -> Outcome {
    let start = Instant::now();
    let tally: Tally = Share::of(0..n).map(step).collect();
    let elapsed = start.elapsed();
    tally.check::<T>(n)?;
    Ok(elapsed)
}

/// So many handles of one channel.
pub fn handles<H: Clone, const N: usize>(handle: H) -> [H; N] {
    array::from_fn(|_| handle.clone())
}

/// Keeps every core busy until it is dropped.
pub struct Busy {
    enough: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    pub fn cores() -> Busy {
        let enough = Arc::new(AtomicBool::new(false));
        let spin = || {
            let enough = Arc::clone(&enough);
            thread::spawn(move || while !enough.load(Ordering::Relaxed) {})
        };
        let threads = (0..machine::cores()).map(|_| spin()).collect();
        Busy { enough, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

/// One thread's part of a run; a producer's tally is empty.
pub type Thread<'a> = Box<dyn FnOnce() -> Tally + Send + 'a>;

/// From the first thread's start to the last thread's end, and what each of them received.
///
/// Each thread reads the clock itself: one that started the others may be scheduled long after them.
pub fn time(threads: Vec<Thread>) -> Result<(Duration, Vec<Tally>), String> {
    let barrier = &Barrier::new(threads.len());
    let watched = |thread: Thread| {
        barrier.wait();
        let start = Instant::now();
        let tally = thread();
        (start, Instant::now(), tally)
    };
    let finished: Result<Vec<_>, _> = thread::scope(|scope| {
        let spawn = |thread| scope.spawn(move || watched(thread));
        let handles: Vec<_> = threads.into_iter().map(spawn).collect();
        handles.into_iter().map(|handle| handle.join()).collect()
    });
    let finished = finished.map_err(|_| "a thread panicked")?;
    let start = finished.iter().map(|(start, ..)| *start).min();
    let end = finished.iter().map(|(_, end, _)| *end).max();
    let elapsed = start.zip(end).map(|(start, end)| end - start);
    let tallies = finished.into_iter().map(|(.., tally)| tally).collect();
    Ok((elapsed.ok_or("no thread to time")?, tallies))
}

/// The messages one producer has to send.
pub struct Share<T> {
    numbers: Range<u64>,
    payload: PhantomData<T>,
}

impl<T> Share<T> {
    pub fn of(numbers: Range<u64>) -> Share<T> {
        Share { numbers, payload: PhantomData }
    }
}

impl<T: Payload> Iterator for Share<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.numbers.next().map(T::numbered)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.numbers.size_hint()
    }
}

/// Messages `0..n` in shares of nearly the same size.
pub fn shares<T>(n: u64, parts: u64) -> impl Iterator<Item = Share<T>> {
    (0..parts).map(move |part| Share::of(n * part / parts..n * (part + 1) / parts))
}
