//! The floor under a broadcast that safe Rust can peek into: chunks that all readers share, and nothing else.
//!
//! The publisher fills a chunk place by place; readers look at each message where it lies, touch a count of references
//! once a chunk, and say once a chunk how far they are. No names, routes, envelopes, late readers or panics to contain,
//! and nobody ever sleeps.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use parking_lot::Mutex;

use crate::work::{BATCH, CAPACITY, Contestant, Outcome, Payload, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "shared chunks",
    package: Some("parking_lot"),
    note: "a floor: one copy that all read by reference, nothing else; yields, never sleeps",
};

type Chunk<T> = [OnceLock<T>; BATCH];

#[repr(align(128))]
struct Padded<V>(V);

struct Ring<T> {
    /// Every one that somebody may still have to begin, with the number of its first message.
    chunks: Mutex<VecDeque<(u64, Arc<Chunk<T>>)>>,
    /// How far each reader is.
    places: Vec<Padded<AtomicU64>>,
    published: Padded<AtomicU64>,
}

pub fn to_each<T: Payload, const N: usize>(n: u64) -> Outcome {
    let ring = &Ring {
        chunks: Mutex::default(),
        places: (0..N).map(|_| Padded(AtomicU64::new(0))).collect(),
        published: Padded(AtomicU64::new(0)),
    };
    let reader = |reader| move || ring.read(reader, n);
    crew::fan_out(n, |share: Share<T>| ring.publish(share), (0..N).map(reader).collect())
}

impl<T: Payload> Ring<T> {
    fn publish(&self, mut share: Share<T>) {
        let mut number = 0;
        loop {
            let Some(first) = share.next() else { return };
            self.wait_for_room(number + BATCH as u64);
            let chunk: Arc<Chunk<T>> = Arc::new([const { OnceLock::new() }; BATCH]);
            self.chunks.lock().push_back((number, Arc::clone(&chunk)));
            for (place, message) in chunk.iter().zip(std::iter::once(first).chain(share.by_ref())) {
                let _ = place.set(message);
                number += 1;
                self.published.0.store(number, Ordering::Release);
            }
        }
    }

    /// Waits for the slowest reader.
    fn wait_for_room(&self, end: u64) {
        loop {
            let slowest = self.places.iter().map(|place| place.0.load(Ordering::Acquire)).min().unwrap_or(end);
            let mut chunks = self.chunks.lock();
            while chunks.front().is_some_and(|(first, _)| first + BATCH as u64 <= slowest) {
                chunks.pop_front();
            }
            drop(chunks);
            if end <= slowest + CAPACITY as u64 {
                return;
            }
            thread::yield_now();
        }
    }

    fn read(&self, reader: usize, n: u64) -> Tally {
        let (mut tally, mut number) = (Tally::default(), 0);
        while number < n {
            let chunk = self.wait_for_chunk(number);
            let end = n.min(number + BATCH as u64);
            for place in &chunk[..(end - number) as usize] {
                tally.add(wait_for_message(place));
            }
            number = end;
            self.places[reader].0.store(number, Ordering::Release);
        }
        tally
    }

    fn wait_for_chunk(&self, number: u64) -> Arc<Chunk<T>> {
        while self.published.0.load(Ordering::Acquire) <= number {
            thread::yield_now();
        }
        let chunks = self.chunks.lock();
        let found = chunks.iter().find(|(first, _)| *first == number);
        Arc::clone(&found.expect("it is kept until everybody has read it").1)
    }
}

fn wait_for_message<T>(place: &OnceLock<T>) -> &T {
    loop {
        match place.get() {
            Some(message) => return message,
            None => thread::yield_now(),
        }
    }
}
