//! The threads of a run, and its clock.

use std::{
    marker::PhantomData,
    ops::Range,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use super::{Outcome, Payload, Tally};

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
    let (elapsed, tally) = time(threads)?;
    tally.check::<T>(n)?;
    Ok(elapsed)
}

/// Does everything on the calling thread: `step` moves one message through.
pub fn alone<T: Payload>(n: u64, step: impl FnMut(T) -> T) -> Outcome {
    let start = Instant::now();
    let tally: Tally = Share::of(0..n).map(step).collect();
    let elapsed = start.elapsed();
    tally.check::<T>(n)?;
    Ok(elapsed)
}

/// One thread's part of a run; a producer's tally is empty.
pub type Thread<'a> = Box<dyn FnOnce() -> Tally + Send + 'a>;

/// From the first thread's start to the last thread's end, and what all of them received.
///
/// Each thread reads the clock itself: one that started the others may be scheduled long after them.
pub fn time(threads: Vec<Thread>) -> Result<(Duration, Tally), String> {
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
    let mut tally = Tally::default();
    finished.iter().for_each(|(.., part)| tally.merge(*part));
    let elapsed = start.zip(end).map(|(start, end)| end - start);
    Ok((elapsed.ok_or("no thread to time")?, tally))
}

/// The messages one producer has to send.
pub struct Share<T> {
    numbers: Range<u64>,
    payload: PhantomData<T>,
}

impl<T> Share<T> {
    fn of(numbers: Range<u64>) -> Share<T> {
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
