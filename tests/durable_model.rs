//! Whatever is done to a durable queue, in whatever order, however often its file is opened anew or its process is
//! killed: it holds what a plain list would, and hands it out in order: of arrival, by priority, or by key; and what
//! has a delay in its time. The window is tiny, so that most of it lies in the file alone.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, Delivery, ManualClock, Message, Queue, Retry, Simulation, Timer};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone)]
enum Act {
    Send,
    SendMany(usize),
    SendLater(u64),
    SendManyLater(usize, u64),
    SendTimed(u64, bool),
    Cancel(usize),
    InTransaction(usize),
    LaterInTransaction(usize, u64),
    InUsersTransaction(usize),
    Take(usize),
    Settle(usize, How),
    SettleMany(usize, How),
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
    RetryAfter(u64),
    Requeue,
    Bury,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let how = prop_oneof![
        4 => Just(How::Ack),
        1 => Just(How::Retry),
        1 => Just(How::RetryNow),
        2 => (1..40_u64).prop_map(How::RetryAfter),
        1 => Just(How::Requeue),
        1 => Just(How::Bury),
    ];
    let act = prop_oneof![
        4 => Just(Act::Send),
        4 => (1..12_usize).prop_map(Act::SendMany),
        2 => (1..40_u64).prop_map(Act::SendLater),
        2 => (1..12_usize, 1..40_u64).prop_map(|(n, seconds)| Act::SendManyLater(n, seconds)),
        1 => (1..40_u64, any::<bool>()).prop_map(|(seconds, named)| Act::SendTimed(seconds, named)),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => (1..8_usize, 1..40_u64).prop_map(|(n, seconds)| Act::LaterInTransaction(n, seconds)),
        2 => (1..8_usize).prop_map(Act::InTransaction),
        1 => (1..5_usize).prop_map(Act::InUsersTransaction),
        8 => (1..6_usize).prop_map(Act::Take),
        6 => (any::<usize>(), how.clone()).prop_map(|(which, how)| Act::Settle(which, how)),
        4 => (1..6_usize, how).prop_map(|(n, how)| Act::SettleMany(n, how)),
        2 => (1..30_u64).prop_map(Act::Advance),
        1 => Just(Act::Redrive),
        1 => prop_oneof![4 => Just(Act::Advance(1)), 1 => Just(Act::Purge)],
        1 => Just(Act::ShutDown),
        2 => Just(Act::Kill),
    ];
    proptest::collection::vec(act, 1..60)
}

/// What decides the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Arrival,
    Priority,
    Key,
}

const LEVELS: u8 = 3;
const KEYS: u32 = 5;

fn level(n: u32) -> u8 {
    (n * 7 / 3 % u32::from(LEVELS)) as u8
}

fn key(n: u32) -> u32 {
    n * 3 / 2 % KEYS
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Ready, never handed out: the earliest of these comes first.
    Fresh,
    /// Ready again, or after a delay.
    Back,
    Waiting(u64),
    /// For its next attempt.
    Retrying(u64),
    Held,
    Dead,
}

const RETRY_AFTER: u64 = 10;

struct World {
    kind: Kind,
    window: usize,
    folder: Folder,
    clock: ManualClock,
    broker: Broker,
    simulation: Simulation,
    queue: Queue<u32>,
    held: Vec<Delivery<u32>>,
    model: BTreeMap<u32, At>,
    /// How often each has failed, since it was a dead letter and ever.
    failed: BTreeMap<u32, (u32, usize)>,
    /// `None`: by its name.
    timers: BTreeMap<u32, Option<Timer>>,
    next: u32,
    /// In seconds.
    now: u64,
}

fn open(folder: &Folder, clock: &ManualClock, (kind, window): (Kind, usize)) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = simulated(folder, clock);
    let retry = Retry::fixed(Duration::from_secs(RETRY_AFTER)).max_attempts(u32::MAX);
    let queue = broker.queue("q").capacity(100_000).retry(retry).durable(Durability::Buffered).window(window);
    let queue = match kind {
        Kind::Arrival => queue,
        Kind::Priority => queue.priority_levels(LEVELS),
        Kind::Key => queue.ordered_by(|n: &u32| key(*n)),
    };
    let queue = queue.declare().unwrap();
    (broker, simulation, queue)
}

impl World {
    fn new(kind: Kind, window: usize) -> Self {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        let (broker, simulation, queue) = open(&folder, &clock, (kind, window));
        let (held, model, failed, timers) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { kind, window, folder, clock, broker, simulation, queue, held, model, failed, timers, next: 0, now: 0 }
    }

    fn message(&self, n: u32) -> Message<u32> {
        let message = Message::new(n);
        if self.kind == Kind::Priority { message.with_priority(level(n)) } else { message }
    }

    fn later(&mut self, seconds: u64) -> (u32, Message<u32>) {
        let n = self.fresh(1)[0];
        self.model.insert(n, At::Waiting(self.now + seconds));
        (n, self.message(n).with_delay(Duration::from_secs(seconds)))
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
                self.queue.send(self.message(numbers[0])).unwrap();
            }
            Act::SendMany(n) => {
                let numbers = self.fresh(n);
                let messages: Vec<_> = numbers.into_iter().map(|n| self.message(n)).collect();
                self.queue.send_batch(messages).unwrap();
            }
            Act::SendLater(seconds) => {
                let (_, message) = self.later(seconds);
                self.queue.send(message).unwrap();
            }
            Act::SendManyLater(n, seconds) => {
                let messages: Vec<_> = (0..n as u64).map(|i| self.later(1 + (seconds + i * 17) % 40).1).collect();
                self.queue.send_batch(messages).unwrap();
            }
            Act::SendTimed(seconds, named) => {
                let (n, message) = self.later(seconds);
                let timer = (!named).then(Timer::new);
                let message = match &timer {
                    Some(timer) => message.with_timer(timer),
                    None => message.with_timer(format!("timer {n}")),
                };
                self.queue.send(message).unwrap();
                self.timers.insert(n, timer);
            }
            Act::Cancel(which) => self.cancel(which),
            Act::InTransaction(n) => {
                let messages = self.fresh(n).into_iter().map(|n| self.message(n)).collect();
                self.send_together(messages);
            }
            Act::LaterInTransaction(n, seconds) => {
                let messages = (0..n as u64).map(|i| self.later(seconds + i % 3).1).collect();
                self.send_together(messages);
            }
            Act::InUsersTransaction(n) if self.kind == Kind::Arrival => self.send_in(n),
            Act::InUsersTransaction(_) => {}
            Act::Take(n) => (0..n).for_each(|_| self.take()),
            Act::Settle(which, how) => self.settle(which, how),
            Act::SettleMany(n, how) => (0..n).for_each(|_| self.settle(0, how)),
            Act::Advance(seconds) => self.advance(seconds),
            Act::Redrive => {
                self.queue.dead_letters().redrive().run().unwrap();
                let dead = |n: &u32| self.model.get(n) == Some(&At::Dead);
                self.failed.iter_mut().filter(|(n, _)| dead(n)).for_each(|(_, (attempts, _))| *attempts = 0);
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

    fn send_together(&mut self, messages: Vec<Message<u32>>) {
        let queue = &self.queue;
        let sent = self.broker.transaction(|tx| {
            messages.into_iter().try_for_each(|message| tx.send(queue, message).map(drop))?;
            Ok(())
        });
        sent.unwrap();
    }

    fn cancel(&mut self, which: usize) {
        let Some((&n, _)) = self.timers.iter().nth(which % self.timers.len().max(1)) else { return };
        let cancelled = match self.timers.remove(&n).flatten() {
            Some(timer) => timer.cancel(),
            None => self.broker.cancel_timer(&format!("timer {n}")),
        };
        assert_eq!(cancelled, matches!(self.model.get(&n), Some(At::Waiting(_))), "timer {n}");
        if cancelled {
            self.model.remove(&n);
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
        (self.broker, self.simulation, self.queue) = open(&self.folder, &self.clock, (self.kind, self.window));
        self.timers.retain(|_, timer| timer.is_none());
        // A letter that was in hand does not exist here, and nobody knows what was in hand of the rest.
        self.all(|at| if at == At::Held { At::Back } else { at });
    }

    fn all(&mut self, change: impl Fn(At) -> At) {
        self.model.values_mut().for_each(|at| *at = change(*at));
    }

    fn take(&mut self) {
        let Ok(delivery) = self.queue.try_recv() else {
            let mut ready = self.model.iter().filter(|(_, at)| matches!(at, At::Fresh | At::Back));
            assert!(ready.all(|(&n, _)| self.is_blocked(n)), "something is ready");
            return;
        };
        let n = **delivery;
        assert!(!self.is_blocked(n), "another of its key is under way");
        let rivals = self.model.iter().filter(|(other, _)| self.kind != Kind::Key || key(**other) == key(n));
        let best =
            rivals.clone().filter(|(_, at)| matches!(at, At::Fresh | At::Back)).map(|(&n, _)| self.rank(n)).max();
        assert_eq!(Some(self.rank(n)), best, "no higher one is ready");
        let front = rivals.clone().find(|(other, at)| **at == At::Fresh && self.rank(**other) == self.rank(n));
        match self.model.get(&n) {
            Some(At::Fresh) => assert_eq!(Some(&n), front.map(|(n, _)| n), "in order"),
            Some(At::Back) => {}
            other => panic!("{n} was handed out, and is {other:?}"),
        }
        let (attempts, failures) = self.failed.get(&n).copied().unwrap_or_default();
        assert_eq!((delivery.attempt(), delivery.history().len()), (attempts + 1, failures), "{n}");
        assert!(delivery.redelivered() || attempts == 0, "{n} has failed {attempts} times");
        self.model.insert(n, At::Held);
        self.held.push(delivery);
    }

    fn rank(&self, n: u32) -> u8 {
        if self.kind == Kind::Priority { level(n) } else { 0 }
    }

    /// Whether another of its key is in hand, or waits for its next attempt.
    fn is_blocked(&self, n: u32) -> bool {
        let under_way = |at: &At| matches!(at, At::Held | At::Retrying(_));
        self.kind == Kind::Key && self.model.iter().any(|(&other, at)| key(other) == key(n) && under_way(at))
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
            How::RetryAfter(seconds) => {
                delivery.retry_after(Duration::from_secs(seconds)).unwrap();
                At::Retrying(self.now + seconds)
            }
            How::Retry => {
                delivery.retry().unwrap();
                At::Retrying(self.now + RETRY_AFTER)
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
        if !matches!(how, How::Requeue) {
            let (attempts, failures) = self.failed.entry(n).or_default();
            (*attempts, *failures) = (*attempts + 1, *failures + 1);
        }
        self.model.insert(n, at);
    }

    fn advance(&mut self, seconds: u64) {
        self.simulation.advance(Duration::from_secs(seconds));
        self.now += seconds;
        let now = self.now;
        self.all(|at| if matches!(at, At::Waiting(due) | At::Retrying(due) if due <= now) { At::Back } else { at });
    }

    fn check(&self) {
        let count = |wanted: fn(&At) -> bool| self.model.values().filter(|at| wanted(at)).count();
        let ready = count(|at| matches!(at, At::Fresh | At::Back));
        assert_eq!(self.queue.len(), ready, "{:?}", self.queue.stats());
        assert_eq!(self.queue.delayed(), count(|at| matches!(at, At::Waiting(_) | At::Retrying(_))));
        assert_eq!(self.queue.in_flight(), count(|at| *at == At::Held));
        assert_eq!(self.queue.dead_letters().len(), count(|at| *at == At::Dead));
        if self.kind != Kind::Key {
            let ready = self.model.iter().filter(|(_, at)| matches!(at, At::Fresh | At::Back));
            let best = ready.map(|(&n, _)| self.rank(n)).max();
            assert_eq!(self.queue.peek().map(|message| self.rank(*message)), best, "shown next");
        }
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
            open(&self.folder, &self.clock, (self.kind, self.window))
        };
        assert_eq!((self.queue.len(), self.queue.delayed(), self.queue.dead_letters().len()), (0, 0, 0));
    }
}

fn run(kind: Kind, window: usize, acts: Vec<Act>) {
    let mut world = World::new(kind, window);
    for act in acts {
        world.act(act);
        world.check();
    }
    world.finish();
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(60, |n| n.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_durable_queue_is_a_list_that_survives(window in 1..8_usize, acts in acts()) {
        run(Kind::Arrival, window, acts);
    }

    #[test]
    fn with_priorities_the_highest_level_goes_first(window in 1..8_usize, acts in acts()) {
        run(Kind::Priority, window, acts);
    }

    #[test]
    fn ordered_by_key_each_key_goes_one_by_one(window in 1..8_usize, acts in acts()) {
        run(Kind::Key, window, acts);
    }
}
