//! Random runs beside a model so simple that it is right by inspection: first one queue under a simulated
//! clock, operation by operation, then many threads whose books must balance.

#![allow(missing_docs)]
#![cfg(not(shuttle))]

use postroom::{Broker, Delivery, Message, Outcome, Queue, Retry, Simulation};
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CAPACITY: usize = 4;
const ATTEMPTS: u32 = 3;
/// The delay before the second attempt, in seconds; doubled before the third.
const FIRST_DELAY: u64 = 2;

#[derive(Debug, Clone)]
enum Op {
    TrySend,
    SendBatchOfTwo,
    Recv,
    RecvBatch(usize),
    Settle(usize, How),
    Purge,
    Drain,
    Peek,
    Advance(u64),
    Redrive { even_only: bool },
    AckDeadLetter,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Ack,
    Retry,
    RetryAfter(u64),
    Requeue,
    Drop,
    DeadLetter,
    Discard,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::TrySend),
        2 => Just(Op::SendBatchOfTwo),
        7 => Just(Op::Recv),
        1 => (1_usize..5).prop_map(Op::RecvBatch),
        8 => (0_usize..8, how()).prop_map(|(which, how)| Op::Settle(which, how)),
        3 => (0_u64..6).prop_map(Op::Advance),
        2 => Just(Op::Peek),
        1 => any::<bool>().prop_map(|even_only| Op::Redrive { even_only }),
        1 => Just(Op::AckDeadLetter),
        1 => prop_oneof![Just(Op::Purge), Just(Op::Drain)],
    ]
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        2 => Just(How::Ack),
        3 => Just(How::Retry),
        2 => (0_u64..4).prop_map(How::RetryAfter),
        2 => Just(How::Requeue),
        2 => Just(How::Drop),
        1 => Just(How::DeadLetter),
        1 => Just(How::Discard),
    ]
}

/// A message as the model knows it: its payload, and how often it was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    number: u64,
    attempt: u32,
    /// Occupies capacity: it was published, or put behind as a fresh one, and not handed out since.
    fresh: bool,
}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    urgent: VecDeque<Item>,
    ready: VecDeque<Item>,
    /// Due time and item, in the order they were put there.
    delayed: Vec<(u64, Item)>,
    in_flight: Vec<Item>,
    dead: VecDeque<Item>,
    counted: Counted,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    published: u64,
    delivered: u64,
    acked: u64,
    retried: u64,
    requeued: u64,
    dead_lettered: u64,
    discarded: u64,
    purged: u64,
    redriven: u64,
    refused: u64,
}

impl Model {
    fn room(&self) -> usize {
        CAPACITY - self.ready.iter().filter(|item| item.fresh).count().min(CAPACITY)
    }

    fn publish(&mut self, number: u64) -> bool {
        let accepted = self.room() > 0;
        if accepted {
            self.counted.published += 1;
            self.ready.push_back(Item { number, attempt: 0, fresh: true });
        } else {
            self.counted.refused += 1;
        }
        accepted
    }

    fn hand_out(&mut self) -> Option<Item> {
        let mut item = self.urgent.pop_front().or_else(|| self.ready.pop_front())?;
        item.attempt += 1;
        item.fresh = false;
        self.counted.delivered += 1;
        self.in_flight.push(item);
        Some(item)
    }

    fn settle(&mut self, item: Item, how: How) {
        match how {
            How::Ack => self.counted.acked += 1,
            How::Discard => self.counted.discarded += 1,
            How::DeadLetter => self.bury(item),
            How::Requeue => {
                self.counted.requeued += 1;
                self.ready.push_back(Item { attempt: item.attempt - 1, ..item });
            }
            How::Retry | How::Drop => self.fail(item, FIRST_DELAY << (item.attempt - 1)),
            How::RetryAfter(seconds) => self.fail(item, seconds),
        }
    }

    fn fail(&mut self, item: Item, delay: u64) {
        if item.attempt >= ATTEMPTS {
            return self.bury(item);
        }
        self.counted.retried += 1;
        match delay {
            0 => self.urgent.push_back(item),
            _ => self.delayed.push((self.now + delay, item)),
        }
    }

    fn bury(&mut self, item: Item) {
        self.counted.dead_lettered += 1;
        self.dead.push_back(item);
    }

    /// Everything due becomes urgent: by time, and what is due together in the order it was put there.
    fn advance(&mut self, seconds: u64) {
        self.now += seconds;
        let now = self.now;
        let mut due: Vec<_> = self.delayed.extract_if(.., |(due, _)| *due <= now).collect();
        due.sort_by_key(|(due, _)| *due);
        self.urgent.extend(due.into_iter().map(|(_, item)| item));
    }

    /// Empties it, in the order of `drain`: urgent, ready, delayed by due time.
    fn clear(&mut self) -> Vec<u64> {
        self.delayed.sort_by_key(|(due, _)| *due);
        let delayed = self.delayed.drain(..).map(|(_, item)| item);
        self.urgent.drain(..).chain(self.ready.drain(..)).chain(delayed).map(|item| item.number).collect()
    }

    fn redrive(&mut self, wanted: impl Fn(u64) -> bool) -> usize {
        let (back, stay): (Vec<Item>, Vec<Item>) = self.dead.drain(..).partition(|item| wanted(item.number));
        self.dead = stay.into();
        self.counted.published += back.len() as u64;
        self.counted.redriven += back.len() as u64;
        self.ready.extend(back.iter().map(|item| Item { attempt: 0, ..*item }));
        back.len()
    }

    fn next(&self) -> Option<u64> {
        self.urgent.front().or(self.ready.front()).map(|item| item.number)
    }
}

/// The queue, the model, and what is in hand from the queue, in the model's order.
struct Pair {
    _broker: Broker,
    simulation: Simulation,
    queue: Queue<u64>,
    deliveries: Vec<Delivery<u64>>,
    model: Model,
    next_number: u64,
}

impl Pair {
    fn new() -> Self {
        let (broker, simulation) = Broker::simulated(1);
        let retry = Retry::exponential(Duration::from_secs(FIRST_DELAY)).max_attempts(ATTEMPTS);
        let queue = broker.queue("q").capacity(CAPACITY).retry(retry).declare().unwrap();
        let (deliveries, model) = (Vec::new(), Model::default());
        Self { _broker: broker, simulation, queue, deliveries, model, next_number: 0 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::TrySend => self.try_send(),
            Op::SendBatchOfTwo => self.send_two_if_there_is_room(),
            Op::Recv => self.recv(),
            Op::RecvBatch(max) => self.recv_batch(max),
            Op::Settle(which, how) => self.settle(which, how),
            Op::Purge => {
                let n = self.model.clear().len();
                self.model.counted.purged += n as u64;
                assert_eq!(self.queue.purge(), n);
            }
            Op::Drain => {
                let drained: Vec<u64> = self.queue.drain().iter().map(|message| **message).collect();
                assert_eq!(drained, self.model.clear());
                self.model.counted.acked += drained.len() as u64;
            }
            Op::Peek => assert_eq!(self.queue.peek().map(|message| *message), self.model.next()),
            Op::Advance(seconds) => {
                self.simulation.advance(Duration::from_secs(seconds));
                self.model.advance(seconds);
            }
            Op::Redrive { even_only } => self.redrive(even_only),
            Op::AckDeadLetter => {
                let letter = self.queue.dead_letters().try_recv().ok();
                assert_eq!(
                    letter.as_ref().map(|letter| ***letter.payload()),
                    self.model.dead.pop_front().map(|i| i.number)
                );
                letter.into_iter().for_each(|letter| letter.ack().unwrap());
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn try_send(&mut self) {
        let number = self.number();
        let sent = self.queue.try_send(number);
        assert_eq!(sent.is_ok(), self.model.publish(number));
        sent.err().into_iter().for_each(|error| assert_eq!(*error.into_message(), number));
    }

    /// A batch waits for room, which nobody would make here.
    fn send_two_if_there_is_room(&mut self) {
        if self.model.room() >= 2 {
            let numbers = [self.number(), self.number()];
            assert_eq!(self.queue.send_batch(numbers).unwrap(), 2);
            numbers.iter().for_each(|&number| assert!(self.model.publish(number)));
        }
    }

    fn recv(&mut self) {
        let delivery = self.queue.try_recv().ok();
        let expected = self.model.hand_out();
        assert_eq!(delivery.as_ref().map(|d| (***d, d.attempt())), expected.map(|item| (item.number, item.attempt)));
        self.deliveries.extend(delivery);
    }

    fn recv_batch(&mut self, max: usize) {
        if self.model.next().is_none() {
            return;
        }
        // A batch may end early, where fresh messages follow redelivered ones; never empty, never too long.
        let batch = self.queue.recv_batch(max).unwrap();
        assert!((1..=max).contains(&batch.len()));
        for delivery in batch {
            let item = self.model.hand_out().expect("as many as the queue has");
            assert_eq!((**delivery, delivery.attempt()), (item.number, item.attempt));
            self.deliveries.push(delivery);
        }
    }

    fn settle(&mut self, which: usize, how: How) {
        if self.deliveries.is_empty() {
            return;
        }
        let which = which % self.deliveries.len();
        let delivery = self.deliveries.remove(which);
        let item = self.model.in_flight.remove(which);
        match how {
            How::Ack => delivery.ack().unwrap(),
            How::Retry => delivery.retry().unwrap(),
            How::RetryAfter(seconds) => delivery.retry_after(Duration::from_secs(seconds)).unwrap(),
            How::Requeue => delivery.requeue().unwrap(),
            How::Drop => drop(delivery),
            How::DeadLetter => delivery.dead_letter("unwanted").unwrap(),
            How::Discard => delivery.discard().unwrap(),
        }
        self.model.settle(item, how);
    }

    fn redrive(&mut self, even_only: bool) {
        let wanted = move |number: u64| !even_only || number.is_multiple_of(2);
        let letters = self.queue.dead_letters();
        let redriven = letters.redrive().filter(|letter| wanted(***letter)).run().unwrap();
        assert_eq!(redriven.moved, self.model.redrive(wanted));
        assert_eq!(redriven.kept, self.model.dead.len());
    }

    fn compare(&self) {
        let (queue, model, stats) = (&self.queue, &self.model, self.queue.stats());
        assert_eq!(queue.len(), model.urgent.len() + model.ready.len());
        assert_eq!(queue.in_flight(), model.in_flight.len());
        assert_eq!(queue.delayed(), model.delayed.len());
        assert_eq!(queue.dead_letters().len(), model.dead.len());
        let counted = Counted {
            published: stats.published,
            delivered: stats.delivered,
            acked: stats.acked,
            retried: stats.retried,
            requeued: stats.requeued,
            dead_lettered: stats.dead_lettered,
            discarded: stats.discarded,
            purged: stats.purged,
            redriven: stats.redriven,
            refused: stats.refused,
        };
        assert_eq!(counted, model.counted);
        assert_eq!((stats.unaccounted(), queue.dead_letters().stats().unaccounted()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_does_what_a_few_lists_would_do(ops in prop::collection::vec(op(), 1..120)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
            pair.compare();
        }
    }
}

// ---- many threads ------------------------------------------------------------------------------------

const PRODUCERS: u64 = 4;
const RECEIVERS: usize = 4;
const PER_PRODUCER: u64 = 5_000;

/// How a message fares, by its number alone, so that every thread and the final account agree on it.
fn fate(number: u64, attempt: u32) -> Outcome {
    let failures = number % 11;
    match failures {
        7 => Outcome::Retry,
        8 => Outcome::DeadLetter("unwanted".into()),
        9 => Outcome::Discard,
        // A panic without a report on the console.
        10 => std::panic::resume_unwind(Box::new("a handler that never works")),
        1 | 2 if u64::from(attempt) <= failures => Outcome::Retry,
        3 if attempt == 1 => Outcome::RetryAfter(Duration::from_millis(1)),
        _ => Outcome::Ack,
    }
}

/// How many times a handler must have seen it.
fn calls_expected(number: u64) -> u32 {
    match number % 11 {
        7 | 10 => ATTEMPTS,
        2 => 3,
        1 | 3 => 2,
        _ => 1,
    }
}

fn send_from_many_threads(queue: &Queue<u64>) {
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            scope.spawn(move || {
                let first = producer * PER_PRODUCER;
                (first..first + PER_PRODUCER).for_each(|number| _ = queue.send(number).unwrap());
            });
        }
    });
}

#[test]
fn with_many_threads_every_message_is_handled_exactly_as_often_as_it_must_be() {
    let broker = Broker::new();
    let retry = Retry::fixed(Duration::from_micros(500)).max_attempts(ATTEMPTS);
    let queue: Queue<u64> = broker.queue("q").capacity(64).retry(retry).declare().unwrap();
    let calls: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let seen = Arc::clone(&calls);
    let handler = move |number: &Message<u64>| {
        *seen.lock().unwrap().entry(**number).or_default() += 1;
        fate(**number, number.attempt())
    };
    queue.consumer().workers(RECEIVERS).start(handler).unwrap();
    send_from_many_threads(&queue);
    let report = broker.shutdown(Duration::from_secs(60));
    assert!(report.is_clean(), "{report}");

    let calls = calls.lock().unwrap();
    let all = 0..PRODUCERS * PER_PRODUCER;
    assert!(calls.keys().all(|number| all.contains(number)), "never sent");
    for number in all.clone() {
        assert_eq!(calls.get(&number), Some(&calls_expected(number)), "message {number}");
    }
    let mut dead: Vec<u64> = queue.dead_letters().drain().iter().map(|letter| ***letter.payload()).collect();
    dead.sort_unstable();
    let expected: Vec<u64> = all.filter(|number| matches!(number % 11, 7 | 8 | 10)).collect();
    assert_eq!(dead, expected);
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn with_many_receivers_by_hand_nothing_is_lost_and_nothing_comes_twice() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").capacity(64).retry(Retry::immediate(2)).declare().unwrap();
    let acked: Mutex<Vec<u64>> = Mutex::default();
    std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..RECEIVERS).map(|_| scope.spawn(|| receive(&queue, &acked))).collect();
        send_from_many_threads(&queue);
        assert!(broker.wait_idle(Duration::from_secs(60)));
        while queue.stats().acked < PRODUCERS * PER_PRODUCER {
            std::thread::yield_now();
        }
        queue.close();
        receivers.into_iter().for_each(|receiver| receiver.join().unwrap());
    });
    let mut acked = acked.into_inner().unwrap();
    acked.sort_unstable();
    assert!(acked.into_iter().eq(0..PRODUCERS * PER_PRODUCER));
    let stats = queue.stats();
    assert_eq!((stats.unaccounted(), stats.delivered - stats.retried - stats.requeued), (0, stats.acked));
}

/// Settles until the queue is closed: some messages not at once, each in the end by an ack.
fn receive(queue: &Queue<u64>, acked: &Mutex<Vec<u64>>) {
    for delivery in queue.iter() {
        let number = **delivery;
        match (number % 5, delivery.redelivered()) {
            (1, false) => drop(delivery),
            (2, false) => delivery.requeue().unwrap(),
            (3, false) => delivery.retry().unwrap(),
            _ => {
                delivery.ack().unwrap();
                acked.lock().unwrap().push(number);
            }
        }
    }
}
