//! Whatever is done to a durable queue ordered by key: each key's messages come in exactly the order they would have in
//! a plain list, one at a time, be they in memory, delayed, waiting for a retry, parked, or only in the file; also over
//! a restart. The window is tiny, so that most of them are only in the file.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, Delivery, Exhausted, ManualClock, Message, Queue, Retry, Simulation};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

#[derive(Debug, Clone)]
enum Act {
    Send(usize),
    /// To one key.
    SendTo(u32, usize),
    SendLater(usize, u64, bool),
    InTransaction(usize),
    Take(usize),
    Ack(usize),
    Retry(usize),
    Requeue(usize),
    Bury(usize),
    Advance(u64),
    Release(u32),
    Drop(u32),
    Resume,
    Redrive,
    Purge,
    ShutDown,
    Kill,
    /// Killed, and opened again after so long.
    Outage(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (1..10_usize).prop_map(Act::Send),
        4 => (0..KEYS, 1..12_usize).prop_map(|(key, n)| Act::SendTo(key, n)),
        3 => (1..6_usize, 1..25_u64, any::<bool>()).prop_map(|(n, s, timed)| Act::SendLater(n, s, timed)),
        1 => (1..6_usize).prop_map(Act::InTransaction),
        8 => (1..6_usize).prop_map(Act::Take),
        8 => any::<usize>().prop_map(Act::Ack),
        3 => any::<usize>().prop_map(Act::Retry),
        1 => any::<usize>().prop_map(Act::Requeue),
        1 => any::<usize>().prop_map(Act::Bury),
        3 => (1..15_u64).prop_map(Act::Advance),
        1 => (0..KEYS).prop_map(Act::Release),
        1 => (0..KEYS).prop_map(Act::Drop),
        1 => Just(Act::Resume),
        1 => Just(Act::Redrive),
        1 => prop_oneof![5 => Just(Act::Advance(1)), 1 => Just(Act::Purge)],
        1 => Just(Act::ShutDown),
        1 => Just(Act::Kill),
        1 => (1..20_u64).prop_map(Act::Outage),
    ];
    proptest::collection::vec(act, 1..80)
}

fn key_of(act: &Act) -> u32 {
    if let Act::Release(key) | Act::Drop(key) = act { *key } else { 0 }
}

/// What a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Function,
    Message,
    Nothing,
}

const KEYS: u32 = 4;
const RETRY_AFTER: u64 = 10;

/// What was sent: its key is the remainder.
fn key(n: u32) -> u32 {
    n % KEYS
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    by: By,
    window: usize,
    policy: Exhausted,
}

#[derive(Debug, Default)]
struct Lane {
    ready: VecDeque<u32>,
    held: Option<u32>,
    /// Waits for its next attempt until then.
    retrying: Option<(u32, u64)>,
    parked: bool,
}

impl Lane {
    fn is_free(&self) -> bool {
        self.held.is_none() && self.retrying.is_none() && !self.parked
    }
}

/// What is known of a message.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The file has them in this order.
    place: u32,
    attempts: u32,
    attempts_in_file: u32,
}

struct World {
    kind: Kind,
    folder: Folder,
    clock: ManualClock,
    broker: Broker,
    simulation: Simulation,
    queue: Queue<u32>,
    held: Vec<Delivery<u32>>,
    lanes: BTreeMap<u32, Lane>,
    delayed: BTreeMap<(u64, u32), ()>,
    known: BTreeMap<u32, Known>,
    dead: Vec<u32>,
    stopped: bool,
    places: u32,
    next: u32,
    /// In nanoseconds.
    now: u64,
}

const SECOND: u64 = 1_000_000_000;

fn open(folder: &Folder, clock: &ManualClock, kind: Kind) -> (Broker, Simulation, Queue<u32>) {
    let (broker, simulation) = simulated(folder, clock);
    let retry = Retry::fixed(Duration::from_secs(RETRY_AFTER)).max_attempts(2);
    let queue = broker.queue("q").capacity(100_000).retry(retry).on_exhausted(kind.policy);
    let queue = match kind.by {
        By::Function => queue.ordered_by(|n: &u32| key(*n)),
        By::Message => queue.ordered_by_key(),
        By::Nothing => queue.one_at_a_time(),
    };
    let queue = queue.durable(Durability::Buffered).window(kind.window).declare().unwrap();
    (broker, simulation, queue)
}

impl World {
    fn new(kind: Kind) -> Self {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        let (broker, simulation, queue) = open(&folder, &clock, kind);
        Self {
            kind,
            folder,
            clock,
            broker,
            simulation,
            queue,
            held: Vec::new(),
            lanes: BTreeMap::new(),
            delayed: BTreeMap::new(),
            known: BTreeMap::new(),
            dead: Vec::new(),
            stopped: false,
            places: 0,
            next: 0,
            now: 0,
        }
    }

    fn lane_of(&self, n: u32) -> u32 {
        if self.kind.by == By::Nothing { 0 } else { key(n) }
    }

    fn lane(&mut self, n: u32) -> &mut Lane {
        self.lanes.entry(self.lane_of(n)).or_default()
    }

    fn name(&self, lane: u32) -> String {
        if self.kind.by == By::Nothing { String::new() } else { lane.to_string() }
    }

    fn fresh(&mut self, to: Option<u32>) -> u32 {
        let spread = self.next * 7 / 3 % KEYS;
        let n = self.next * KEYS + to.unwrap_or(spread);
        (self.next, self.places) = (self.next + 1, self.places + 1);
        self.known.insert(n, Known { place: self.places, attempts: 0, attempts_in_file: 0 });
        n
    }

    fn message(n: u32) -> Message<u32> {
        Message::new(n).with_key(key(n).to_string())
    }

    fn ready(&mut self, n: usize, to: Option<u32>) -> Vec<Message<u32>> {
        let numbers: Vec<u32> = (0..n).map(|_| self.fresh(to)).collect();
        numbers.iter().for_each(|&n| self.lane(n).ready.push_back(n));
        numbers.into_iter().map(Self::message).collect()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send(n) => {
                let messages = self.ready(n, None);
                self.queue.send_batch(messages).unwrap();
            }
            Act::SendTo(key, n) => {
                for message in self.ready(n, Some(key)) {
                    self.queue.send(message).unwrap();
                }
            }
            Act::SendLater(n, seconds, timed) => self.send_later(n, seconds, timed),
            Act::InTransaction(n) => {
                let messages = self.ready(n, None);
                let queue = &self.queue;
                let sent = self.broker.transaction(|tx| {
                    messages.into_iter().try_for_each(|message| tx.send(queue, message).map(drop))?;
                    Ok(())
                });
                sent.unwrap();
            }
            Act::Take(n) => (0..n).for_each(|_| self.take()),
            Act::Ack(which) => self.settle(which, |delivery| delivery.ack().unwrap(), |_, _| {}),
            Act::Retry(which) => self.settle(which, |delivery| delivery.retry().unwrap(), Self::retry),
            Act::Requeue(which) => self.settle(which, |delivery| delivery.requeue().unwrap(), Self::requeue),
            Act::Bury(which) => {
                self.settle(which, |delivery| delivery.dead_letter("no").unwrap(), |world, n| world.dead.push(n));
            }
            Act::Advance(seconds) => self.advance(seconds),
            Act::Release(_) | Act::Drop(_) if self.kind.by == By::Nothing && key_of(&act) > 0 => {}
            Act::Release(key) => {
                let released = self.queue.release_key(self.name(key));
                assert_eq!(released, self.lanes.get(&key).is_some_and(|lane| lane.parked));
                self.release(key);
            }
            Act::Drop(key) => self.drop_key(key),
            Act::Resume => {
                assert_eq!(self.queue.resume(), self.stopped);
                if std::mem::take(&mut self.stopped) {
                    (0..KEYS).for_each(|key| self.release(key));
                }
            }
            Act::Redrive => {
                self.queue.dead_letters().redrive().run().unwrap();
                for n in std::mem::take(&mut self.dead) {
                    self.places += 1;
                    self.known.insert(n, Known { place: self.places, attempts: 0, attempts_in_file: 0 });
                    self.lane(n).ready.push_back(n);
                }
            }
            Act::Purge => self.purge(),
            Act::ShutDown => {
                self.broker.shutdown(Duration::ZERO);
                self.held.clear();
                self.reopen();
            }
            Act::Kill => self.kill(0),
            Act::Outage(seconds) => self.kill(seconds),
        }
    }

    fn send_later(&mut self, n: usize, seconds: u64, timed: bool) {
        let mut messages = Vec::new();
        for i in 0..n as u64 {
            let n = self.fresh(None);
            // None at the same time as another.
            let after = (1 + (seconds + i * 17) % 25) * SECOND + u64::from(n);
            self.delayed.insert((self.now + after, n), ());
            let message = Self::message(n).with_delay(Duration::from_nanos(after));
            messages.push(if timed { message.with_timer(format!("timer {n}")) } else { message });
        }
        self.queue.send_batch(messages).unwrap();
    }

    fn take(&mut self) {
        let Ok(delivery) = self.queue.try_recv() else {
            let mut free = self.lanes.values().filter(|lane| lane.is_free() && !lane.ready.is_empty());
            assert!(self.stopped || free.next().is_none(), "something is ready");
            return;
        };
        let n = **delivery;
        assert!(!self.stopped, "it is stopped");
        let lane = self.lane(n);
        assert!(lane.is_free(), "{n} while its key is busy: {lane:?}");
        assert_eq!(lane.ready.pop_front(), Some(n), "in order: {lane:?}");
        lane.held = Some(n);
        let known = self.known.get_mut(&n).unwrap();
        known.attempts += 1;
        assert_eq!(delivery.attempt(), known.attempts, "{n}");
        self.held.push(delivery);
    }

    fn settle(&mut self, which: usize, settle: fn(Delivery<u32>), then: fn(&mut Self, u32)) {
        if self.held.is_empty() {
            return;
        }
        let delivery = self.held.swap_remove(which % self.held.len());
        let n = **delivery;
        settle(delivery);
        self.lane(n).held = None;
        then(self, n);
    }

    fn retry(&mut self, n: u32) {
        let known = self.known.get_mut(&n).unwrap();
        known.attempts_in_file = known.attempts;
        if known.attempts < 2 {
            let until = self.now + RETRY_AFTER * SECOND;
            self.lane(n).retrying = Some((n, until));
        } else if self.kind.policy == Exhausted::DeadLetter {
            self.dead.push(n);
        } else {
            self.stopped |= self.kind.policy == Exhausted::Stop;
            let lane = self.lane(n);
            lane.ready.push_front(n);
            lane.parked = true;
        }
    }

    fn requeue(&mut self, n: u32) {
        let known = self.known.get_mut(&n).unwrap();
        known.attempts -= 1;
        known.attempts_in_file = known.attempts;
        self.lane(n).ready.push_front(n);
    }

    fn release(&mut self, key: u32) {
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.parked) else { return };
        lane.parked = false;
        let known = self.known.get_mut(&lane.ready[0]).unwrap();
        (known.attempts, known.attempts_in_file) = (0, 0);
    }

    fn drop_key(&mut self, key: u32) {
        let dropped = self.queue.drop_key(self.name(key));
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.parked) else { return assert_eq!(dropped, 0) };
        lane.parked = false;
        assert_eq!(dropped, lane.ready.len());
        self.dead.extend(lane.ready.drain(..));
        let letters: Vec<u32> = self.queue.dead_letters().list(usize::MAX).iter().map(|l| **l.message()).collect();
        // As far as they are in memory.
        assert_eq!(letters, self.dead[..letters.len()], "in order");
    }

    fn purge(&mut self) {
        self.queue.purge();
        self.delayed.clear();
        for lane in self.lanes.values_mut() {
            lane.ready.clear();
            (lane.retrying, lane.parked) = (None, false);
        }
    }

    fn advance(&mut self, seconds: u64) {
        self.simulation.advance(Duration::from_secs(seconds));
        self.now += seconds * SECOND;
        self.fire(false);
    }

    /// What is due becomes ready; what comes first of its key after an outage is not said here.
    fn fire(&mut self, opened: bool) {
        let now = self.now;
        for lane in self.lanes.values_mut() {
            if let Some((n, _)) = lane.retrying.take_if(|(_, until)| *until <= now) {
                lane.ready.push_front(n);
            }
        }
        let later = self.delayed.split_off(&(now + 1, 0));
        for (_, n) in std::mem::replace(&mut self.delayed, later).into_keys() {
            self.lane(n).ready.push_back(n);
        }
        assert!(opened || self.stopped == self.queue.is_stopped());
    }

    fn kill(&mut self, seconds: u64) {
        flush(&self.broker);
        let copy = self.folder.killed();
        // What they do now happens in a file that nobody opens again.
        self.held.clear();
        self.folder = copy;
        self.clock.advance(Duration::from_secs(seconds));
        self.now += seconds * SECOND;
        self.reopen();
    }

    /// What was handed out before and is to be handed out again leads its key; the others come by their places.
    fn reopen(&mut self) {
        (self.broker, self.simulation, self.queue) = open(&self.folder, &self.clock, self.kind);
        for lane in self.lanes.values_mut() {
            lane.ready.extend(lane.held.take());
        }
        self.fire(true);
        self.stopped = self.kind.policy == Exhausted::Stop && self.lanes.values().any(|lane| lane.parked);
        for lane in self.lanes.values_mut() {
            let culprit = if lane.parked { lane.ready.pop_front() } else { None };
            let known = &mut self.known;
            for n in &lane.ready {
                let known = known.get_mut(n).unwrap();
                known.attempts = known.attempts_in_file;
            }
            let first = |n: &u32| (known[n].attempts == 0, known[n].place);
            lane.ready.make_contiguous().sort_by_key(first);
            culprit.into_iter().for_each(|n| lane.ready.push_front(n));
        }
    }

    fn check(&self) {
        let ready: usize = self.lanes.values().map(|lane| lane.ready.len()).sum();
        let retrying = self.lanes.values().filter(|lane| lane.retrying.is_some()).count();
        let stats = self.queue.stats();
        assert_eq!(self.queue.len(), ready, "{stats:?}");
        assert_eq!(self.queue.delayed(), self.delayed.len() + retrying);
        assert_eq!(self.queue.in_flight(), self.held.len());
        assert_eq!(self.queue.dead_letters().len(), self.dead.len());
        assert_eq!(self.queue.is_stopped(), self.stopped);
        assert_eq!(stats.unaccounted(), 0, "{stats:?}");
        let parked = self.lanes.iter().filter(|(_, lane)| lane.parked);
        let expected: Vec<_> = parked.map(|(&key, lane)| (self.name(key), lane.ready.len())).collect();
        let mut parked: Vec<_> = self.queue.parked().into_iter().map(|parked| (parked.key, parked.waiting)).collect();
        parked.sort_unstable();
        assert_eq!(parked, expected);
        assert!(stats.parked <= expected.iter().map(|(_, waiting)| *waiting as u64).sum());
    }

    /// Everything comes in the end, in its order.
    fn finish(mut self) {
        self.act(Act::Kill);
        self.act(Act::Resume);
        (0..KEYS).for_each(|key| self.act(Act::Release(key)));
        for _ in 0..1_000 {
            self.act(Act::Take(3));
            while !self.held.is_empty() {
                self.act(Act::Ack(0));
            }
            self.act(Act::Advance(1));
            self.check();
            if self.queue.len() + self.queue.delayed() == 0 {
                break;
            }
        }
        assert_eq!((self.queue.len(), self.queue.delayed(), self.queue.stats().keys), (0, 0, 0));
        (self.broker, self.simulation, self.queue) = {
            flush(&self.broker);
            drop((self.broker, self.simulation, self.queue));
            open(&self.folder, &self.clock, self.kind)
        };
        assert_eq!((self.queue.len(), self.queue.delayed(), self.queue.dead_letters().len()), (0, 0, self.dead.len()));
    }
}

fn run(by: By, window: usize, policy: Exhausted, acts: Vec<Act>) {
    let mut world = World::new(Kind { by, window, policy });
    for act in acts {
        world.act(act);
        world.check();
    }
    world.finish();
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(40, |n| n.parse().unwrap())
}

fn policies() -> impl Strategy<Value = Exhausted> {
    prop_oneof![1 => Just(Exhausted::DeadLetter), 3 => Just(Exhausted::Park), 1 => Just(Exhausted::Stop)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn by_a_function(window in 1..8_usize, policy in policies(), acts in acts()) {
        run(By::Function, window, policy, acts);
    }

    #[test]
    fn by_the_key_of_the_message(window in 1..8_usize, policy in policies(), acts in acts()) {
        run(By::Message, window, policy, acts);
    }

    #[test]
    fn one_at_a_time(window in 1..8_usize, policy in policies(), acts in acts()) {
        run(By::Nothing, window, policy, acts);
    }
}
