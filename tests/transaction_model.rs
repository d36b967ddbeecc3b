//! Random transactions over queues of every policy, beside a model in which all of one happens at once.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

use postroom::{
    Broker, Failure, Log, Message, MessageId, Overflow, Queue, Simulation, Subscriber, Topic, Transaction,
    TransactionError,
};
use proptest::prelude::*;
use std::collections::VecDeque;

const QUEUES: usize = 4;
const POLICIES: [Overflow; 5] =
    [Overflow::Wait, Overflow::Reject, Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter];

/// Where one operation of a transaction goes.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send(usize),
    /// To the queues of an even number, to the log, and to the subscriber.
    Publish,
    Append,
    /// Its function gives up here.
    Fail,
}

#[derive(Debug, Clone)]
enum Action {
    Transact(Vec<Step>),
    /// Of this queue: ack the first message.
    Take(usize),
    Send(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..QUEUES).prop_map(Step::Send),
        6 => Just(Step::Publish),
        2 => Just(Step::Append),
        1 => Just(Step::Fail),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => prop::collection::vec(step(), 0..6).prop_map(Action::Transact),
        3 => (0..QUEUES).prop_map(Action::Take),
        1 => (0..QUEUES).prop_map(Action::Send),
    ]
}

#[derive(Clone)]
struct ModelQueue {
    capacity: usize,
    policy: Overflow,
    ready: VecDeque<u32>,
    letters: Vec<u32>,
    dropped: u64,
}

impl ModelQueue {
    /// Whether it took it, in its way.
    fn take(&mut self, n: u32) -> bool {
        if self.ready.len() < self.capacity {
            self.ready.push_back(n);
            return true;
        }
        match self.policy {
            Overflow::Wait | Overflow::Reject => return false,
            Overflow::DropOldest => {
                self.ready.pop_front();
                self.ready.push_back(n);
                self.dropped += 1;
            }
            Overflow::DropNewest => self.dropped += 1,
            Overflow::DeadLetter => self.letters.push(n),
        }
        true
    }
}

#[derive(Clone)]
struct Model {
    queues: Vec<ModelQueue>,
    log: Vec<u32>,
    seen: Vec<u32>,
}

impl Model {
    /// What comes of it if all of it works, one after the other.
    fn after(&self, steps: &[Step], first: u32) -> Option<Self> {
        let mut next = self.clone();
        for (n, step) in (first..).zip(steps) {
            let taken = match *step {
                Step::Send(queue) => next.queues[queue].take(n),
                Step::Append => {
                    next.log.push(n);
                    true
                }
                Step::Publish => {
                    next.log.push(n);
                    next.seen.push(n);
                    (0..QUEUES).step_by(2).all(|queue| next.queues[queue].take(n))
                }
                Step::Fail => false,
            };
            if !taken {
                return None;
            }
        }
        Some(next)
    }
}

struct Real {
    broker: Broker,
    _simulation: Simulation,
    queues: Vec<Queue<u32>>,
    topic: Topic<u32>,
    log: Log<u32>,
    watcher: Subscriber<u32>,
    seen: Vec<u32>,
}

impl Real {
    fn new(settings: &[(usize, Overflow)]) -> Self {
        let (broker, simulation) = Broker::simulated(1);
        let queues: Vec<Queue<u32>> = (0..)
            .zip(settings)
            .map(|(i, &(capacity, policy))| {
                broker.queue(format!("q{i}")).capacity(capacity).overflow(policy).declare().unwrap()
            })
            .collect();
        let topic: Topic<u32> = broker.topic("t").declare().unwrap();
        let log: Log<u32> = broker.log("log").declare().unwrap();
        queues.iter().step_by(2).for_each(|queue| topic.bind(queue, "#").unwrap());
        topic.bind(&log, "#").unwrap();
        let watcher = topic.subscribe().open().unwrap();
        Self { broker, _simulation: simulation, queues, topic, log, watcher, seen: Vec::new() }
    }

    fn transact(&self, steps: &[Step], first: u32) -> Result<(), TransactionError> {
        let done = |_: MessageId| ();
        self.broker.try_transaction(|tx: &mut Transaction| {
            for (n, step) in (first..).zip(steps) {
                match *step {
                    Step::Send(queue) => tx.send(&self.queues[queue], n).map(done)?,
                    Step::Publish => tx.publish(&self.topic, "k", n).map(done)?,
                    Step::Append => tx.append(&self.log, n).map(done)?,
                    Step::Fail => return Err(Failure::transient("on purpose")),
                }
            }
            Ok(())
        })
    }

    fn check(&mut self, model: &Model) {
        for (queue, expected) in self.queues.iter().zip(&model.queues) {
            let ready: VecDeque<u32> = queue.list(99).iter().map(|message| **message).collect();
            assert_eq!(ready, expected.ready, "{}", queue.name());
            let letters: Vec<u32> = queue.dead_letters().list(999).iter().map(|letter| ***letter.payload()).collect();
            assert_eq!(letters, expected.letters);
            let stats = queue.stats();
            assert_eq!((stats.dropped, stats.unaccounted()), (expected.dropped, 0), "{stats:?}");
        }
        let log: Vec<u32> = (0..self.log.len()).map(|at| **self.log.read(0, at).unwrap()).collect();
        assert_eq!(log, model.log);
        self.seen.extend(std::iter::from_fn(|| self.watcher.try_recv().ok()).map(|message| **message));
        assert_eq!(self.seen, model.seen);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn all_of_a_transaction_happens_or_nothing(
        settings in prop::collection::vec((1..4_usize, prop::sample::select(&POLICIES[..])), QUEUES),
        actions in prop::collection::vec(action(), 1..40),
    ) {
        let queue = |&(capacity, policy): &(usize, Overflow)| {
            ModelQueue { capacity, policy, ready: VecDeque::new(), letters: Vec::new(), dropped: 0 }
        };
        let mut model = Model { queues: settings.iter().map(queue).collect(), log: Vec::new(), seen: Vec::new() };
        let mut real = Real::new(&settings);
        let mut next = 0;
        for action in actions {
            match action {
                Action::Transact(steps) => {
                    let expected = model.after(&steps, next);
                    let result = real.transact(&steps, next);
                    prop_assert_eq!(result.is_ok(), expected.is_some(), "{:?} {:?}", steps, result);
                    model = expected.unwrap_or(model);
                    next += steps.len() as u32;
                }
                Action::Take(queue) => {
                    let got = real.queues[queue].try_recv().ok().map(|delivery| {
                        let n = **delivery;
                        delivery.ack().unwrap();
                        n
                    });
                    prop_assert_eq!(got, model.queues[queue].ready.pop_front());
                }
                Action::Send(queue) => {
                    let taken = real.queues[queue].try_send(Message::new(next)).is_ok();
                    prop_assert_eq!(taken, model.queues[queue].take(next));
                    next += 1;
                }
            }
            real.check(&model);
        }
    }
}
