//! The public counters account for every message, and the topology can be shown.

mod common;

use common::within;
use postroom::{Broker, DeadLetter, Message, Outcome, Overflow, Queue, Rate, Retry, Simulation, Stats, Topic};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

/// A small generator (xorshift), enough to mix operations.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn assert_balanced(broker: &Broker, what: &str) {
    for queue in broker.stats().queues {
        assert_eq!(queue.unaccounted(), 0, "{what}: {queue:?}");
    }
}

const POLICIES: [Overflow; 5] =
    [Overflow::Wait, Overflow::Reject, Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter];

struct World {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<u64>,
    queues: Vec<Queue<u64>>,
    graves: Queue<DeadLetter<u64>>,
    hands: Vec<postroom::Delivery<u64>>,
}

fn world(seed: u64) -> World {
    let (broker, simulation) = Broker::simulated(seed);
    let topic = broker.topic("t").declare().unwrap();
    let graves = broker.queue("graves").capacity(4).declare().unwrap();
    let retry = Retry::fixed(SECOND).immediate_first(1).max_attempts(3);
    let mut queues = Vec::new();
    for (n, policy) in POLICIES.into_iter().enumerate() {
        let builder = broker.queue(format!("q{n}")).capacity(3).overflow(policy).retry(retry.clone());
        let builder = if n % 2 == 0 { builder.dead_letter_to(&graves) } else { builder.max_in_flight(4) };
        let queue = builder.declare().unwrap();
        topic.bind(&queue, "all.#").unwrap();
        topic.bind(&queue, format!("one.{n}").as_str()).unwrap();
        queues.push(queue);
    }
    World { broker, simulation, topic, queues, graves, hands: Vec::new() }
}

impl World {
    fn step(&mut self, dice: &mut Dice) -> u64 {
        let queue = self.queues[dice.below(5) as usize].clone();
        let dead = queue.dead_letters();
        let what = dice.below(24);
        match what {
            0..=3 => drop(queue.try_send(what)),
            4 | 5 => drop(self.topic.try_publish("all.x", what)),
            6 => drop(self.topic.publish_timeout(format!("one.{}", dice.below(6)), what, SECOND)),
            7..=10 => self.hands.extend(queue.try_recv()),
            11 => self.hands.extend(queue.recv_timeout(SECOND)),
            12..=17 => self.settle(dice),
            18 => _ = self.simulation.advance(SECOND * dice.below(4) as u32),
            19 => _ = if dice.below(4) == 0 { queue.purge() } else { queue.drain().len() },
            20 => _ = dead.redrive().limit(dice.below(5) as usize).run().unwrap(),
            21 => _ = dead.redrive().filter(|m| m.error().is_none()).rate(Rate::per_second(1)).run().unwrap(),
            22 => _ = dead.redrive().to(&self.queues[2]).edit(|letter| ***letter + 1).run().unwrap(),
            _ => dead.try_recv().into_iter().for_each(|letter| letter.ack().unwrap()),
        }
        what
    }

    fn settle(&mut self, dice: &mut Dice) {
        if self.hands.is_empty() {
            return;
        }
        let delivery = self.hands.swap_remove(dice.below(self.hands.len() as u64) as usize);
        match dice.below(8) {
            0 | 1 => delivery.ack().unwrap(),
            2 => delivery.retry().unwrap(),
            3 => delivery.retry_after(SECOND * 2).unwrap(),
            4 => delivery.requeue().unwrap(),
            5 => delivery.dead_letter("no").unwrap(),
            6 => delivery.discard().unwrap(),
            _ => drop(delivery),
        }
    }
}

#[test]
fn every_message_is_accounted_for_after_every_operation() {
    for seed in 1..=30 {
        let (mut world, mut dice) = (world(seed), Dice(seed));
        for n in 0..400 {
            let what = world.step(&mut dice);
            assert_balanced(&world.broker, &format!("seed {seed}, step {n}, operation {what}"));
            let in_hand = world.queues.iter().map(Queue::in_flight).sum::<usize>();
            assert_eq!(in_hand, world.hands.len(), "seed {seed}, step {n}, operation {what}");
        }
        world.hands.drain(..).for_each(|delivery| delivery.ack().unwrap());
        let _ = world.broker.shutdown(SECOND * 100);
        world.queues.iter().for_each(|queue| drop(queue.drain()));
        world.graves.purge();
        assert_balanced(&world.broker, "in the end");
        let stats = world.broker.stats();
        let own = stats.queues.iter().filter(|queue| !queue.name.contains(".dead"));
        assert!(own.clone().all(|queue| queue.ready + queue.delayed + queue.in_flight == 0), "{stats:?}");
    }
}

#[test]
fn counters_balance_when_threads_have_come_to_rest() {
    common::quiet();
    within(LONG, || {
        let broker = Broker::new();
        let topic: Topic<u64> = broker.topic("t").declare().unwrap();
        let retry = Retry::fixed(Duration::from_micros(200)).max_attempts(3);
        for (n, policy) in POLICIES.into_iter().enumerate() {
            let builder = broker.queue(format!("q{n}")).capacity(2).overflow(policy).retry(retry.clone());
            let queue: Queue<u64> = builder.declare().unwrap();
            topic.bind(&queue, "#").unwrap();
            let handler = |m: &Message<u64>| match (**m + u64::from(m.attempt())) % 11 {
                0 => panic!("{}", common::ON_PURPOSE),
                1 => Outcome::Discard,
                2 => Outcome::DeadLetter("no".into()),
                3 | 4 => Outcome::Retry,
                _ => Outcome::Ack,
            };
            queue.consumer().workers(2).start(handler).unwrap();
        }
        let threads = [0, 1, 2].map(|n| (n, topic.clone())).map(|(n, topic)| {
            thread::spawn(move || {
                for i in 0..300 {
                    let _ = if i % 2 == 0 { topic.try_publish("k", n + i) } else { topic.publish("k", n + i) };
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(broker.wait_idle(LONG));
        assert_balanced(&broker, "at rest");
        let stats = broker.stats();
        assert!(stats.queues.iter().all(|queue| queue.in_flight == 0 && queue.delayed == 0));
    });
}

#[test]
fn the_oldest_message_is_as_old_as_it_is() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    assert_eq!(queue.stats().oldest_age, None);
    queue.send(1).unwrap();
    simulation.advance(SECOND * 5);
    queue.send(2).unwrap();
    assert_eq!(queue.stats().oldest_age, Some(SECOND * 5));
    queue.recv().unwrap().ack().unwrap();
    assert_eq!(queue.stats().oldest_age, Some(Duration::ZERO));
}

#[test]
fn the_oldest_may_be_one_that_is_to_be_redelivered() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    queue.send_batch([1, 2]).unwrap();
    let first = queue.recv().unwrap();
    queue.recv().unwrap().ack().unwrap();
    simulation.advance(SECOND * 5);
    queue.send_batch([3, 4]).unwrap();
    queue.recv().unwrap().ack().unwrap();
    first.retry().unwrap();
    assert_eq!(queue.stats().oldest_age, Some(SECOND * 5));
}

#[test]
fn handling_time_is_counted() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| ()).unwrap();
    queue.send_batch(0..160).unwrap();
    simulation.run_until_idle();
    let handling = queue.stats().handling;
    assert!(handling.count() >= 160 && handling.quantile(0.5).is_some());
}

#[test]
fn stats_survive_serialisation() {
    let mut world = world(5);
    let mut dice = Dice(5);
    (0..300).for_each(|_| {
        world.step(&mut dice);
    });
    let stats = world.broker.stats();
    let json = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), stats);
    assert_eq!(stats.queue("q0").unwrap().name, "q0");
    assert!(stats.topic("t").unwrap().published > 0 && stats.queue("nobody").is_none());
}

#[test]
fn the_topology_reads_as_text_and_as_a_diagram() {
    let broker = Broker::new();
    let (rest, orders): (Queue<u32>, Queue<u32>) = (
        broker.queue("rest").declare().unwrap(),
        broker.queue("orders \"eu\"").capacity(5).overflow(Overflow::Reject).retry(Retry::none()).declare().unwrap(),
    );
    let (top, sub): (Topic<u32>, Topic<u32>) =
        (broker.topic("top").alternate(&rest).declare().unwrap(), broker.topic("sub").declare().unwrap());
    top.bind(&sub, "order.*").unwrap();
    sub.bind(&orders, "#").unwrap();
    let consumer = orders.consumer().workers(3).start(|_: &Message<u32>| ()).unwrap();
    let text = broker.describe().to_string();
    for line in [
        "topic \"top\" of u32, routing Pattern",
        "  \"order.*\" -> topic \"sub\"",
        "  nothing else -> queue \"rest\"",
        "  \"#\" -> queue \"orders \\\"eu\\\"\"",
        "queue \"rest\" of u32, capacity 10000, Wait, retry 5 attempts, 100ms doubling to 30s, dead letters to \"rest.dead\"",
        "capacity 5, Reject, retry 1 attempt, dead letters to \"orders \\\"eu\\\".dead\", 3 workers",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let diagram = broker.describe().mermaid();
    assert!(diagram.starts_with("flowchart LR\n"), "{diagram}");
    assert!(diagram.contains("orders #quot;eu#quot;") && !diagram.contains("unknown"), "{diagram}");
    consumer.stop();
    assert!(!broker.describe().to_string().contains("workers"), "a stopped consumer has no workers");
}
