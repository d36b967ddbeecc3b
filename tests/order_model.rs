//! A queue ordered by key against a naive model: any mix of what producers, receivers and operators do.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

use postroom::{Broker, Delivery, Exhausted, Queue, Retry, Simulation, TryRecvError};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A message of a key, and its number among all.
type Step = (u8, u32);

const KEYS: u8 = 5;
const ATTEMPTS: u32 = 3;
/// The queue's back-off.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Op {
    Send(u8),
    Take,
    TakeBatch(usize),
    /// Which of those in hand, and how.
    Settle(usize, End),
    Advance(Duration),
    Release(u8),
    DropKey(u8),
    Resume,
    Purge,
    Close,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Ack,
    Discard,
    DeadLetter,
    Requeue,
    Retry,
    RetryAfter(Duration),
    Drop,
}

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Ack),
        1 => Just(End::Discard),
        1 => Just(End::DeadLetter),
        1 => Just(End::Requeue),
        2 => Just(End::Retry),
        1 => (0..3_000_u64).prop_map(|ms| End::RetryAfter(Duration::from_millis(ms))),
        1 => Just(End::RetryAfter(Duration::ZERO)),
        1 => Just(End::Drop),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        60 => (0..KEYS).prop_map(Op::Send),
        40 => Just(Op::Take),
        10 => (1..8_usize).prop_map(Op::TakeBatch),
        70 => (any::<usize>(), ends()).prop_map(|(at, end)| Op::Settle(at, end)),
        15 => (0..2_000_u64).prop_map(|ms| Op::Advance(Duration::from_millis(ms))),
        8 => (0..KEYS).prop_map(Op::Release),
        6 => (0..KEYS).prop_map(Op::DropKey),
        5 => Just(Op::Resume),
        1 => Just(Op::Purge),
        1 => Just(Op::Close),
    ]
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Free,
    /// In somebody's hands.
    Busy,
    /// Waits for its retry: the message, and until when.
    Waits(u32, Duration),
    Parked,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<u32>,
    state: State,
}

/// What should be, by lists.
#[derive(Debug, Default)]
struct Model {
    lanes: BTreeMap<u8, Lane>,
    /// Failures so far, as the queue counts them.
    attempts: BTreeMap<u32, u32>,
    now: Duration,
    stopped: bool,
    closed: bool,
    dead: usize,
}

impl Model {
    fn lane(&mut self, key: u8) -> &mut Lane {
        self.lanes.entry(key).or_default()
    }

    fn servable(&self) -> usize {
        let free = |lane: &&Lane| lane.state == State::Free && !lane.waiting.is_empty();
        if self.stopped { 0 } else { self.lanes.values().filter(free).count() }
    }

    fn delayed(&self) -> usize {
        self.lanes.values().filter(|lane| matches!(lane.state, State::Waits(..))).count()
    }

    fn parked(&self) -> usize {
        self.lanes.values().filter(|lane| lane.state == State::Parked).map(|lane| lane.waiting.len()).sum()
    }

    fn ready(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    /// What a receiver that gets nothing is told.
    fn nothing(&self) -> TryRecvError {
        let moves_on = !self.stopped && self.ready() > self.parked();
        if self.closed && !moves_on && self.delayed() == 0 { TryRecvError::Closed } else { TryRecvError::Empty }
    }

    fn takes(&mut self, (key, n): Step) {
        assert!(!self.stopped);
        let lane = self.lane(key);
        assert_eq!((lane.state, lane.waiting.pop_front()), (State::Free, Some(n)), "one at a time, in order");
        lane.state = State::Busy;
        *self.attempts.entry(n).or_default() += 1;
    }

    fn settles(&mut self, (key, n): Step, end: End, policy: Exhausted) {
        let (now, attempts) = (self.now, self.attempts[&n]);
        let state = match end {
            End::Ack | End::Discard => State::Free,
            End::DeadLetter => {
                self.dead += 1;
                State::Free
            }
            End::Requeue => {
                self.attempts.insert(n, attempts - 1);
                self.lane(key).waiting.push_front(n);
                State::Free
            }
            _ if attempts >= ATTEMPTS => self.gives_up((key, n), policy),
            End::RetryAfter(Duration::ZERO) => {
                self.lane(key).waiting.push_front(n);
                State::Free
            }
            End::RetryAfter(pause) => State::Waits(n, now + pause),
            End::Retry | End::Drop => State::Waits(n, now + PAUSE),
        };
        self.lane(key).state = state;
    }

    fn gives_up(&mut self, (key, n): Step, policy: Exhausted) -> State {
        if policy == Exhausted::DeadLetter {
            self.dead += 1;
            return State::Free;
        }
        self.stopped |= policy == Exhausted::Stop;
        self.lane(key).waiting.push_front(n);
        State::Parked
    }

    fn advances(&mut self, by: Duration) {
        self.now += by;
        for lane in self.lanes.values_mut() {
            if let State::Waits(n, due) = lane.state
                && due <= self.now
            {
                lane.waiting.push_front(n);
                lane.state = State::Free;
            }
        }
    }

    fn releases(&mut self, key: u8) -> bool {
        let lane = self.lane(key);
        let parked = lane.state == State::Parked;
        if parked {
            lane.state = State::Free;
            let first = lane.waiting[0];
            self.attempts.insert(first, 0);
        }
        parked
    }

    fn drops(&mut self, key: u8) -> usize {
        let lane = self.lane(key);
        if lane.state != State::Parked {
            return 0;
        }
        lane.state = State::Free;
        let dropped = std::mem::take(&mut lane.waiting).len();
        self.dead += dropped;
        dropped
    }

    fn resumes(&mut self) -> bool {
        let stopped = std::mem::take(&mut self.stopped);
        if stopped {
            (0..KEYS).for_each(|key| _ = self.releases(key));
        }
        stopped
    }

    fn purges(&mut self) -> usize {
        let purged = self.ready() + self.delayed();
        for lane in self.lanes.values_mut() {
            lane.waiting.clear();
            if lane.state != State::Busy {
                lane.state = State::Free;
            }
        }
        purged
    }
}

struct Run {
    queue: Queue<Step>,
    simulation: Simulation,
    policy: Exhausted,
    model: Model,
    in_hand: Vec<Delivery<Step>>,
    sent: u32,
}

impl Run {
    fn new(broker: &Broker, simulation: Simulation, policy: Exhausted) -> Self {
        let queue = broker.queue("steps").ordered_by(|step: &Step| step.0).on_exhausted(policy);
        let queue = queue.retry(Retry::fixed(PAUSE).max_attempts(ATTEMPTS)).declare().unwrap();
        Self { queue, simulation, policy, model: Model::default(), in_hand: Vec::new(), sent: 0 }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Send(key) => {
                let sent = self.queue.send((key, self.sent)).is_ok();
                assert_eq!(sent, !self.model.closed);
                if sent {
                    self.model.lane(key).waiting.push_back(self.sent);
                }
                self.sent += 1;
            }
            Op::Take => self.take(),
            Op::TakeBatch(max) => {
                let expected = self.model.servable().min(max);
                if expected > 0 {
                    let batch: Vec<_> = self.queue.recv_batch(max).unwrap().collect();
                    assert_eq!(batch.len(), expected);
                    batch.into_iter().for_each(|delivery| self.hold(delivery));
                }
            }
            Op::Settle(at, end) if !self.in_hand.is_empty() => {
                let delivery = self.in_hand.swap_remove(at % self.in_hand.len());
                self.model.settles(**delivery, end, self.policy);
                settle(delivery, end);
            }
            Op::Settle(..) => {}
            Op::Advance(time) => {
                self.simulation.advance(time);
                self.model.advances(time);
            }
            Op::Release(key) => assert_eq!(self.queue.release_key(key.to_string()), self.model.releases(key)),
            Op::DropKey(key) => assert_eq!(self.queue.drop_key(key.to_string()), self.model.drops(key)),
            Op::Resume => assert_eq!(self.queue.resume(), self.model.resumes()),
            Op::Purge => assert_eq!(self.queue.purge(), self.model.purges()),
            Op::Close => {
                self.queue.close();
                self.model.closed = true;
            }
        }
    }

    fn take(&mut self) {
        let servable = self.model.servable();
        match self.queue.try_recv() {
            Ok(delivery) => self.hold(delivery),
            Err(nothing) => assert_eq!((servable, nothing), (0, self.model.nothing())),
        }
    }

    fn hold(&mut self, delivery: Delivery<Step>) {
        self.model.takes(**delivery);
        assert_eq!(delivery.attempt(), self.model.attempts[&delivery.1]);
        self.in_hand.push(delivery);
    }

    fn check(&self) {
        let (stats, model) = (self.queue.stats(), &self.model);
        let counts = (stats.ready, stats.parked, stats.delayed, stats.in_flight);
        let expected = (model.ready(), model.parked(), model.delayed(), self.in_hand.len());
        let expected = (expected.0 as u64, expected.1 as u64, expected.2 as u64, expected.3 as u64);
        assert_eq!(counts, expected);
        let used = |lane: &&Lane| lane.state != State::Free || !lane.waiting.is_empty();
        assert_eq!(stats.keys as usize, model.lanes.values().filter(used).count());
        assert_eq!((stats.dead_lettered as usize, stats.unaccounted()), (model.dead, 0));
        assert_eq!(self.queue.is_stopped(), model.stopped);
        let parked: BTreeMap<String, usize> = self.queue.parked().into_iter().map(|p| (p.key, p.waiting)).collect();
        let held = model.lanes.iter().filter(|(_, lane)| lane.state == State::Parked);
        assert_eq!(parked, held.map(|(key, lane)| (key.to_string(), lane.waiting.len())).collect());
    }

    /// Whatever happened, everything can be brought to its end.
    fn finish(mut self) {
        while let Some(delivery) = self.in_hand.pop() {
            self.model.settles(**delivery, End::Ack, self.policy);
            delivery.ack().unwrap();
        }
        self.apply(Op::Resume);
        (0..KEYS).for_each(|key| self.apply(Op::Release(key)));
        self.apply(Op::Advance(Duration::from_secs(10)));
        self.apply(Op::Close);
        while self.model.servable() > 0 {
            self.take();
            self.apply(Op::Settle(0, End::Ack));
        }
        self.check();
        assert_eq!((self.queue.stats().keys, self.queue.try_recv().unwrap_err()), (0, TryRecvError::Closed));
    }
}

fn settle(delivery: Delivery<Step>, end: End) {
    match end {
        End::Ack => delivery.ack().unwrap(),
        End::Discard => delivery.discard().unwrap(),
        End::DeadLetter => delivery.dead_letter("unwanted").unwrap(),
        End::Requeue => delivery.requeue().unwrap(),
        End::Retry => delivery.retry().unwrap(),
        End::RetryAfter(pause) => delivery.retry_after(pause).unwrap(),
        End::Drop => drop(delivery),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// `checked` after how many steps: looking at a queue has its messages sorted, which must make no
    /// difference.
    #[test]
    fn any_mix_of_operations_agrees_with_lists(
        policy in prop_oneof![Just(Exhausted::DeadLetter), Just(Exhausted::Park), Just(Exhausted::Stop)],
        ops in prop::collection::vec(ops(), 1..250),
        checked in prop_oneof![Just(1_usize), Just(7), Just(1_000)],
    ) {
        let (broker, simulation) = Broker::simulated(1);
        let mut run = Run::new(&broker, simulation, policy);
        for (i, op) in ops.into_iter().enumerate() {
            run.apply(op);
            if i % checked == checked - 1 {
                run.check();
            }
        }
        run.finish();
    }
}
