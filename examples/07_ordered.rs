//! Order by key: the state machine of an order, driven by eight workers.
//!
//! **Situation.** An order is created, paid, shipped and done. Each step is a message; thousands of orders
//! are under way at once. One worker would keep the steps in order but is too slow, since every step waits
//! for some other system. With several workers, "shipped" may overtake "paid".
//!
//! **What the queue gives.** It is ordered by the order's number: the steps of one order are handed out one
//! at a time and as they were published, whatever the number of workers, also through retries. An order that
//! keeps failing delays only itself; when its attempts are used up it is parked, with the steps behind it,
//! until somebody has repaired what was wrong.
//!
//! **What to expect on screen.** The rate of one worker and of eight, with the transitions that came out of
//! order (none); the same eight workers on a plain queue, where they do; and the story of one order that
//! fails, is parked, repaired and released, while all others go through.
//!
//! `cargo run --release --example 07_ordered`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use names::{State, Step};
use postroom::{Broker, Exhausted, ManualClock, Queue, Retry, Topic};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum State {
        New,
        Created,
        Paid,
        Shipped,
        Done,
    }

    impl State {
        pub const STEPS: [Self; 4] = [Self::Created, Self::Paid, Self::Shipped, Self::Done];

        /// The state from which a step leads here.
        pub fn before(self) -> Self {
            match self {
                Self::New | Self::Created => Self::New,
                Self::Paid => Self::Created,
                Self::Shipped => Self::Paid,
                Self::Done => Self::Shipped,
            }
        }
    }

    /// An order is to become this.
    #[derive(Clone, Copy, Debug)]
    pub struct Step {
        pub order: u64,
        pub to: State,
    }

    pub const STEPS: TopicName<Step> = TopicName::new("order-steps");
    pub const MACHINE: QueueName<Step> = QueueName::new("state-machine");
    pub const UNORDERED: QueueName<Step> = QueueName::new("unordered");
}

/// Keeps the state of every order, and counts what must not happen.
mod machine {
    use crate::names::{State, Step};
    use postroom::{Failure, Message};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    pub struct Machine {
        states: Vec<Mutex<State>>,
        /// Steps that did not fit the state they found.
        pub out_of_order: AtomicU64,
        /// Steps that are being taken, now and at most.
        busy: AtomicUsize,
        most_at_once: AtomicUsize,
        /// The order whose carrier does not answer, and whether it does now.
        pub troubled: Option<u64>,
        pub repaired: AtomicBool,
    }

    impl Machine {
        pub fn of(orders: u64, troubled: Option<u64>) -> Self {
            let states = (0..orders).map(|_| Mutex::new(State::New)).collect();
            Self {
                states,
                out_of_order: AtomicU64::new(0),
                busy: AtomicUsize::new(0),
                most_at_once: AtomicUsize::new(0),
                troubled,
                repaired: AtomicBool::new(false),
            }
        }

        pub fn take_step(&self, step: &Message<Step>) -> Result<(), Failure> {
            let found = self.state(step.order);
            // Some other system is asked, which takes its time.
            self.most_at_once.fetch_max(self.busy.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(50));
            self.busy.fetch_sub(1, Ordering::Relaxed);
            let troubled = self.troubled == Some(step.order) && step.to == State::Shipped;
            if troubled && !self.repaired.load(Ordering::Relaxed) {
                return Err(Failure::transient("the carrier does not answer"));
            }
            let mut state = self.states[step.order as usize].lock().unwrap();
            if found != step.to.before() || *state != found {
                self.out_of_order.fetch_add(1, Ordering::Relaxed);
            }
            *state = step.to;
            Ok(())
        }

        pub fn state(&self, order: u64) -> State {
            *self.states[order as usize].lock().unwrap()
        }

        pub fn in_state(&self, state: State) -> usize {
            self.states.iter().filter(|s| *s.lock().unwrap() == state).count()
        }

        pub fn most_at_once(&self) -> usize {
            self.most_at_once.load(Ordering::Relaxed)
        }

        pub fn misses(&self) -> u64 {
            self.out_of_order.load(Ordering::Relaxed)
        }
    }
}

/// Takes orders, and knows nothing of who handles them.
mod shop {
    use crate::names::{State, Step};
    use postroom::Topic;

    /// How many orders are under way at the same time.
    const AT_ONCE: u64 = 4;

    /// All steps of all orders, interleaved as they happen in a busy shop.
    pub fn trade(topic: &Topic<Step>, orders: u64) {
        for first in (0..orders).step_by(AT_ONCE as usize) {
            for to in State::STEPS {
                for order in first..orders.min(first + AT_ONCE) {
                    topic.publish("order.step", Step { order, to }).expect("open, and waits for room");
                }
            }
        }
    }
}

const ORDERS: u64 = 2_000;
const TROUBLED: u64 = 42;
const PATIENCE: Duration = Duration::from_secs(120);
/// Before each retry of what failed.
const PAUSE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    common::takes_no_arguments(include_str!("07_ordered.rs"));
    println!("1. {ORDERS} orders of four steps through a queue ordered by the order's number.");
    let (one, alone) = all_through(1)?;
    let (eight, together) = all_through(8)?;
    println!("   eight workers took {:.1} times fewer seconds than one", one.as_secs_f64() / eight.as_secs_f64());
    println!("   they took up to {together} steps at once");
    assert!(alone == 1 && (2..=8).contains(&together), "they wait side by side: {together}, and not {alone}");

    println!("\n2. The same eight workers on a plain queue.");
    let misses = unordered()?;
    println!("   {misses} steps came out of order");
    assert!(misses > 0, "without order by key, who is quicker overtakes");

    println!("\n3. The carrier of order {TROUBLED} does not answer.");
    one_order_in_trouble()?;
    Ok(())
}

/// How long so many workers took, and how many steps they took at once.
fn all_through(workers: usize) -> Result<(Duration, usize), Box<dyn Error>> {
    let broker = Broker::new();
    let steps: Topic<Step> = broker.topic(names::STEPS).declare()?;
    let queue = broker.queue(names::MACHINE).ordered_by(|step: &Step| step.order).declare()?;
    steps.bind(&queue, "order.*")?;
    let machine = Arc::new(machine::Machine::of(ORDERS, None));
    Ok((run(&broker, &steps, &queue, &machine, workers)?, machine.most_at_once()))
}

fn run(
    broker: &Broker,
    steps: &Topic<Step>,
    queue: &Queue<Step>,
    machine: &Arc<machine::Machine>,
    workers: usize,
) -> Result<Duration, Box<dyn Error>> {
    let handler = Arc::clone(machine);
    queue.consumer().workers(workers).start(move |step| handler.take_step(step))?;
    let start = Instant::now();
    shop::trade(steps, ORDERS);
    assert!(broker.wait_idle(PATIENCE), "all steps are taken");
    let took = start.elapsed();
    let rate = (ORDERS * 4) as f64 / took.as_secs_f64();
    println!("   with {workers} at work: {rate:>7.0} steps a second, {} out of order", machine.misses());
    assert_eq!((machine.misses(), machine.in_state(State::Done)), (0, ORDERS as usize));
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.unaccounted(), stats.keys), (ORDERS * 4, 0, 0));
    assert!(broker.shutdown(PATIENCE).is_clean());
    Ok(took)
}

fn unordered() -> Result<u64, Box<dyn Error>> {
    let broker = Broker::new();
    let steps: Topic<Step> = broker.topic(names::STEPS).declare()?;
    let queue = broker.queue(names::UNORDERED).declare()?;
    steps.bind(&queue, "order.*")?;
    let machine = Arc::new(machine::Machine::of(ORDERS, None));
    let handler = Arc::clone(&machine);
    queue.consumer().workers(8).start(move |step| handler.take_step(step))?;
    shop::trade(&steps, ORDERS);
    assert!(broker.shutdown(PATIENCE).is_clean());
    Ok(machine.misses())
}

fn one_order_in_trouble() -> Result<(), Box<dyn Error>> {
    // Eight real workers, but no time passes for the retry unless it is told to.
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build()?;
    let steps: Topic<Step> = broker.topic(names::STEPS).declare()?;
    let queue = broker
        .queue(names::MACHINE)
        .ordered_by(|step: &Step| step.order)
        .retry(Retry::fixed(PAUSE).max_attempts(4))
        .on_exhausted(Exhausted::Park)
        .declare()?;
    steps.bind(&queue, "order.*")?;
    let machine = Arc::new(machine::Machine::of(ORDERS, Some(TROUBLED)));
    let handler = Arc::clone(&machine);
    queue.consumer().workers(8).start(move |step| handler.take_step(step))?;
    shop::trade(&steps, ORDERS);
    until(|| machine.in_state(State::Done) == ORDERS as usize - 1);
    until(|| (queue.in_flight(), queue.delayed()) == (0, 1));
    println!("   before its second attempt, {} of {ORDERS} orders are done", ORDERS - 1);
    assert_eq!(machine.state(TROUBLED), State::Paid, "its last step has not overtaken the one that fails");
    assert_eq!(queue.stats().retried, 1);

    while queue.parked().is_empty() {
        clock.advance(PAUSE);
        until(|| queue.delayed() == 1 || !queue.parked().is_empty());
    }
    let parked = queue.parked();
    let [trouble] = &parked[..] else { panic!("one order is parked, not {parked:?}") };
    println!(
        "   parked: order {} with {} steps, after {} attempts: {}",
        trouble.key,
        trouble.waiting,
        trouble.attempts,
        trouble.error.as_deref().unwrap_or("no error")
    );
    assert_eq!((trouble.key.as_str(), trouble.waiting, trouble.attempts), ("42", 2, 4));
    assert_eq!(machine.state(TROUBLED), State::Paid);

    machine.repaired.store(true, Ordering::Relaxed);
    assert!(queue.release_key(TROUBLED.to_string()));
    until(|| machine.in_state(State::Done) == ORDERS as usize);
    assert_eq!((machine.in_state(State::Done), machine.misses()), (ORDERS as usize, 0));
    println!("   carrier repaired, order {TROUBLED} released: all {ORDERS} orders are done, none out of order");
    let report = broker.shutdown(PATIENCE);
    assert!(report.is_clean(), "{report}");
    Ok(())
}

fn until(done: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < patience, "it did not come to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}
