//! A thread that waits on a condvar until the head of a heap is due: what people write by hand.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

use super::{Lateness, deadlines, summarise};
use crate::work::Contestant;

pub const SELF: Contestant = Contestant {
    name: "condvar loop",
    package: Some("parking_lot"),
    note: "to the loop itself: whatever is done there makes the next one late",
};

pub const WORKER: Contestant = Contestant {
    name: "condvar loop and worker",
    package: Some("parking_lot"),
    note: "the same, handed to a worker by std's sync_channel, which wakes it without a detour",
};

#[derive(Default)]
struct Timers {
    due: Mutex<BinaryHeap<Reverse<Instant>>>,
    sooner: Condvar,
}

pub fn timers(n: u64) -> Lateness {
    let mut fired = Vec::with_capacity(n as usize);
    run(n, |due| fired.push((due, Instant::now())));
    summarise(fired, n)
}

pub fn timers_with_worker(n: u64) -> Lateness {
    let (sender, receiver) = sync_channel(n as usize);
    let worker = thread::spawn(move || receiver.iter().map(|due: Instant| (due, Instant::now())).collect());
    hand_over(n, sender);
    summarise(worker.join().map_err(|_| "the worker panicked")?, n)
}

fn hand_over(n: u64, sender: SyncSender<Instant>) {
    run(n, |due| sender.send(due).unwrap());
}

fn run(n: u64, mut fire: impl FnMut(Instant) + Send) {
    let timers = Arc::new(Timers::default());
    thread::scope(|scope| {
        let waiting = Arc::clone(&timers);
        scope.spawn(move || (0..n).for_each(|_| fire(waiting.next())));
        deadlines(n).into_iter().for_each(|due| timers.insert(due));
    });
}

impl Timers {
    fn insert(&self, due: Instant) {
        let mut heap = self.due.lock();
        let is_first = heap.peek().is_none_or(|Reverse(first)| due < *first);
        heap.push(Reverse(due));
        drop(heap);
        if is_first {
            self.sooner.notify_one();
        }
    }

    fn next(&self) -> Instant {
        let mut heap = self.due.lock();
        loop {
            match heap.peek() {
                None => self.sooner.wait(&mut heap),
                Some(Reverse(first)) if *first <= Instant::now() => break,
                Some(Reverse(first)) => {
                    let first = *first;
                    self.sooner.wait_until(&mut heap, first);
                }
            }
        }
        heap.pop().expect("it was there").0
    }
}
