//! disruptor: one ring, written and read in place, by threads that never sleep.

use std::{array, sync::Arc, thread};

use disruptor::{Producer, Sequence, build_single_producer, wait_strategies::WaitStrategy};

use crate::work::{CAPACITY, Contestant, Outcome, Payload, Tally, arrivals::Slot, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "disruptor",
    package: Some("disruptor"),
    note: "handlers; subscribers fixed before the first message; waits by yielding, never sleeps, always takes all cores",
};

/// Busy spinning, which it does by itself, would take seconds where threads outnumber cores.
#[derive(Clone, Copy)]
struct Yield;

impl WaitStrategy for Yield {
    fn wait_for(&self, _: Sequence) {
        thread::yield_now();
    }
}

pub fn to_each<T: Payload, const N: usize>(n: u64) -> Outcome {
    let slots: Arc<[Slot; N]> = Arc::new(array::from_fn(|_| Slot::default()));
    let handler = |index: usize| {
        let slots = Arc::clone(&slots);
        move |message: &T, _: Sequence, _: bool| slots[index].add(message)
    };
    let mut builder = build_single_producer(CAPACITY, || T::numbered(0), Yield).with_multi_consumer();
    for index in 0..N {
        builder = builder.handle_events_with(handler(index));
    }
    let mut producer = builder.build();
    // Dropping the producer waits for the handlers.
    let publisher: crew::Thread = Box::new(move || {
        Share::of(0..n).for_each(|message| producer.publish(|slot| *slot = message));
        drop(producer);
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![publisher])?;
    crew::each_saw_all::<T>(n, slots.iter().map(Slot::tally))?;
    Ok(elapsed)
}
