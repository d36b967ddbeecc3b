//! What handlers on a library's own threads have seen.

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Payload, Tally};

/// How long a run may be without its last message. Then a loss is reported as one and not as a hang.
const LOST: Duration = Duration::from_secs(30);

/// A tally one thread writes and others read, on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Slot {
    count: AtomicU64,
    sum: AtomicU64,
}

impl Slot {
    pub fn add(&self, message: &impl Payload) {
        let digest = self.sum.load(Ordering::Relaxed).wrapping_add(message.digest());
        self.sum.store(digest, Ordering::Relaxed);
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    pub fn tally(&self) -> Tally {
        Tally { count: self.count.load(Ordering::Acquire), sum: self.sum.load(Ordering::Relaxed) }
    }
}

/// What the workers of one consumer saw. Each writes to a slot of its own, so counting costs no shared cache
/// line.
pub struct Arrivals {
    workers: AtomicUsize,
    slots: [Slot; 32],
}

thread_local! {
    /// A worker thread lives no longer than its run, so it never meets a second `Arrivals`.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Default for Arrivals {
    fn default() -> Arrivals {
        Arrivals { workers: AtomicUsize::new(0), slots: array::from_fn(|_| Slot::default()) }
    }
}

impl Arrivals {
    pub fn add(&self, message: &impl Payload) {
        let slot = SLOT.get().unwrap_or_else(|| {
            let slot = self.workers.fetch_add(1, Ordering::Relaxed);
            SLOT.set(Some(slot));
            slot
        });
        self.slots[slot].add(message);
    }

    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.slots.iter().for_each(|slot| tally.merge(slot.tally()));
        tally
    }

    pub fn wait_for(&self, n: u64) {
        wait_until(|| self.tally().count >= n);
    }
}

/// Looks rarely enough not to take the cores from the workers: the later, the more rarely, by a hundredth of the time.
pub fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() && start.elapsed() < LOST {
        let pause = start.elapsed() / 100;
        thread::sleep(pause.clamp(Duration::from_micros(50), Duration::from_millis(1)));
    }
}
