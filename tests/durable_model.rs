//! Whatever is done to a durable queue, in whatever order, however often its file is opened anew or its process is
//! killed: it holds what a plain list would, and hands it out in order. The window is tiny, so that most of it lies
//! in the file alone.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, Delivery, ManualClock, Message, Queue, Retry, Simulation};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone)]
enum Act {
    Send,
    SendMany(usize),
    SendLater(u64),
    InTransaction(usize),
    InUsersTransaction(usize),
    Take(usize),
    Settle(usize, How),
    Advance(u64),
    Redrive,
    Purge,
    ShutDown,
    Kill,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Ack,
    Retry,
    RetryNow,
    Requeue,
    Bury,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let how = prop_oneof![
        4 => Just(How::Ack),
        1 => Just(How::Retry),
        1 => Just(How::RetryNow),
        1 => Just(How::Requeue),
        1 => Just(How::Bury),
    ];
    let act = prop_oneof![
        4 => Just(Act::Send),
        4 => (1..12_usize).prop_map(Act::SendMany),
        2 => (1..40_u64).prop_map(Act::SendLater),
        2 => (1..8_usize).prop_map(Act::InTransaction),
        1 => (1..5_usize).prop_map(Act::InUsersTransaction),
        8 => (1..6_usize).prop_map(Act::Take),
        8 => (any::<usize>(), how).prop_map(|(which, how)| Act::Settle(which, how)),
        2 => (1..30_u64).prop_map(Act::Advance),
        1 => Just(Act::Redrive),
        1 => prop_oneof![4 => Just(Act::Advance(1)), 1 => Just(Act::Purge)],
        1 => Just(Act::ShutDown),
        2 => Just(Act::Kill),
    ];
    proptest::collection::vec(act, 1..60)
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Ready, never handed out: the earliest of these comes first.
    Fresh,
    /// Ready again, or after a delay.
    Back,
    Waiting(u64),
    Held,
    Dead,
}

const RETRY_AFTER: u64 = 10;

struct World {
    folder: Folder,
    clock: ManualClock,
    broker: Broker,
    simulation: Simulation,
    queue: Queue<u32>,
    held: Vec<Delivery<u32>>,
    model: BTreeMap<u32, At>,
    next: u32,
    /// In seconds.
    now: u64,
}

fn open(folder: &Folder, clock: &ManualClock) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = simulated(folder, clock);
    let retry = Retry::fixed(Duration::from_secs(RETRY_AFTER)).max_attempts(u32::MAX);
    let queue = broker.queue("q").capacity(100_000).retry(retry).durable(Durability::Buffered).window(4);
    let queue = queue.declare().unwrap();
    (broker, simulation, queue)
}

impl World {
    fn new() -> Self {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        let (broker, simulation, queue) = open(&folder, &clock);
        let (held, model) = (Vec::new(), BTreeMap::new());
        Self { folder, clock, broker, simulation, queue, held, model, next: 0, now: 0 }
    }

    fn fresh(&mut self, n: usize) -> Vec<u32> {
        let numbers: Vec<u32> = (self.next..).take(n).collect();
        self.next += n as u32;
        self.model.extend(numbers.iter().map(|&n| (n, At::Fresh)));
        numbers
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send => {
                let numbers = self.fresh(1);
                self.queue.send(numbers[0]).unwrap();
            }
            Act::SendMany(n) => {
                let numbers = self.fresh(n);
                self.queue.send_batch(numbers).unwrap();
            }
            Act::SendLater(seconds) => {
                let n = self.fresh(1)[0];
                self.model.insert(n, At::Waiting(self.now + seconds));
                self.queue.send(Message::new(n).with_delay(Duration::from_secs(seconds))).unwrap();
            }
            Act::InTransaction(n) => {
                let (numbers, queue) = (self.fresh(n), &self.queue);
                let sent = self.broker.transaction(|tx| {
                    numbers.iter().try_for_each(|&n| tx.send(queue, n).map(drop))?;
                    Ok(())
                });
                sent.unwrap();
            }
            Act::InUsersTransaction(n) => self.send_in(n),
            Act::Take(n) => (0..n).for_each(|_| self.take()),
            Act::Settle(which, how) => self.settle(which, how),
            Act::Advance(seconds) => self.advance(seconds),
            Act::Redrive => {
                self.queue.dead_letters().redrive().run().unwrap();
                self.all(|at| if at == At::Dead { At::Back } else { at });
            }
            Act::Purge => {
                self.queue.purge();
                self.model.retain(|_, at| matches!(at, At::Held | At::Dead));
            }
            Act::ShutDown => {
                self.broker.shutdown(Duration::ZERO);
                self.held.clear();
                self.reopen();
            }
            Act::Kill => {
                flush(&self.broker);
                let copy = self.folder.killed();
                // What they do now happens in a file that nobody opens again.
                self.held.clear();
                self.folder = copy;
                self.reopen();
            }
        }
    }

    fn send_in(&mut self, n: usize) {
        let numbers = self.fresh(n);
        let (store, queue) = (self.broker.store().unwrap(), &self.queue);
        let mut mine = store.connect().unwrap();
        let sent = store.transaction(&mut mine, |tx| -> Result<(), postroom::store::StoreError> {
            numbers.iter().for_each(|&n| _ = queue.send_in(tx, n).unwrap());
            Ok(())
        });
        sent.unwrap();
        // The store has told the queue once it has committed something itself.
        store.flush(Durability::Buffered).unwrap();
    }

    fn reopen(&mut self) {
        (self.broker, self.simulation, self.queue) = open(&self.folder, &self.clock);
        // A letter that was in hand does not exist here, and nobody knows what was in hand of the rest.
        self.all(|at| if at == At::Held { At::Back } else { at });
    }

    fn all(&mut self, change: impl Fn(At) -> At) {
        self.model.values_mut().for_each(|at| *at = change(*at));
    }

    fn take(&mut self) {
        let front = self.model.iter().find(|(_, at)| **at == At::Fresh).map(|(n, _)| *n);
        let Ok(delivery) = self.queue.try_recv() else {
            assert!(!self.model.values().any(|at| matches!(at, At::Fresh | At::Back)), "something is ready");
            return;
        };
        let n = **delivery;
        match self.model.insert(n, At::Held) {
            Some(At::Fresh) => assert_eq!(Some(n), front, "in order"),
            Some(At::Back) => {}
            other => panic!("{n} was handed out, and is {other:?}"),
        }
        self.held.push(delivery);
    }

    fn settle(&mut self, which: usize, how: How) {
        if self.held.is_empty() {
            return;
        }
        let delivery = self.held.swap_remove(which % self.held.len());
        let n = **delivery;
        let at = match how {
            How::Ack => {
                delivery.ack().unwrap();
                self.model.remove(&n);
                return;
            }
            How::Retry => {
                delivery.retry().unwrap();
                At::Waiting(self.now + RETRY_AFTER)
            }
            How::RetryNow => {
                delivery.retry_after(Duration::ZERO).unwrap();
                At::Back
            }
            How::Requeue => {
                delivery.requeue().unwrap();
                At::Back
            }
            How::Bury => {
                delivery.dead_letter("no").unwrap();
                At::Dead
            }
        };
        self.model.insert(n, at);
    }

    fn advance(&mut self, seconds: u64) {
        self.simulation.advance(Duration::from_secs(seconds));
        self.now += seconds;
        let now = self.now;
        self.all(|at| if matches!(at, At::Waiting(due) if due <= now) { At::Back } else { at });
    }

    fn check(&self) {
        let count = |wanted: fn(&At) -> bool| self.model.values().filter(|at| wanted(at)).count();
        let ready = count(|at| matches!(at, At::Fresh | At::Back));
        assert_eq!(self.queue.len(), ready, "{:?}", self.queue.stats());
        assert_eq!(self.queue.delayed(), count(|at| matches!(at, At::Waiting(_))));
        assert_eq!(self.queue.in_flight(), count(|at| *at == At::Held));
        assert_eq!(self.queue.dead_letters().len(), count(|at| *at == At::Dead));
        assert_eq!(self.queue.stats().unaccounted(), 0, "{:?}", self.queue.stats());
    }

    /// Everything, by name, in the end.
    fn finish(mut self) {
        self.act(Act::Kill);
        self.check();
        let mut dead: Vec<u32> = self.queue.dead_letters().drain().iter().map(|letter| **letter.message()).collect();
        let mut alive: Vec<u32> = self.queue.drain().iter().map(|message| **message).collect();
        dead.sort_unstable();
        alive.sort_unstable();
        let expect = |dead: bool| {
            let found = self.model.iter().filter(|(_, at)| (**at == At::Dead) == dead);
            found.map(|(n, _)| *n).collect::<Vec<_>>()
        };
        assert_eq!((dead, alive), (expect(true), expect(false)));
        (self.broker, self.simulation, self.queue) = {
            drop((self.broker, self.simulation, self.queue));
            open(&self.folder, &self.clock)
        };
        assert_eq!((self.queue.len(), self.queue.delayed(), self.queue.dead_letters().len()), (0, 0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_durable_queue_is_a_list_that_survives(acts in acts()) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
            world.check();
        }
        world.finish();
    }
}
