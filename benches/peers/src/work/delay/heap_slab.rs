//! A binary heap of deadlines beside a slab of 64-byte envelopes: what people write by hand.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use parking_lot::Mutex;

use super::{Costs, Fired, delay, time};
use crate::work::Contestant;

pub const SELF: Contestant = Contestant {
    name: "heap and slab",
    package: Some("parking_lot"),
    note: "BinaryHeap behind a Mutex; no thread that waits, no queue to go to, no ack, no cancelling",
};

#[derive(Default)]
struct Later {
    due: BinaryHeap<Reverse<(u64, u32)>>,
    slots: Vec<Option<Envelope>>,
    free: Vec<u32>,
}

struct Envelope {
    payload: u64,
    _rest: [u64; 7],
}

pub fn all(n: u64) -> Costs {
    let later = Mutex::new(Later::default());
    let insert = || (0..n).for_each(|number| later.lock().insert(number));
    let fire = |(), fired: &mut Fired| {
        while let Some(number) = take(&later) {
            fired.note(number);
        }
    };
    time(n, insert, fire, Fired::to_the(Duration::ZERO))
}

fn take(later: &Mutex<Later>) -> Option<u64> {
    later.lock().pop()
}

impl Later {
    fn insert(&mut self, number: u64) {
        let envelope = Some(Envelope { payload: number, _rest: [number; 7] });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = envelope;
                slot
            }
            None => {
                self.slots.push(envelope);
                self.slots.len() as u32 - 1
            }
        };
        self.due.push(Reverse((delay(number).as_nanos() as u64, slot)));
    }

    fn pop(&mut self) -> Option<u64> {
        let Reverse((_, slot)) = self.due.pop()?;
        self.free.push(slot);
        self.slots[slot as usize].take().map(|envelope| envelope.payload)
    }
}
