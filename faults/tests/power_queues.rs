//! The power fails at any moment under durable queues: what was published with `Ok` and not settled is there, in its
//! order, publishes and transactions are whole, nothing is invented, and a dead letter is in one place.
#![allow(missing_docs)]

mod common;

use common::power::Past;
use common::{Dice, Folder};
use faults::Disk;
use postroom::store::{Durability, Options};
use postroom::{Broker, Queue, Retry, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const QUEUES: [(&str, Durability); 2] = [("first", Durability::Sync), ("second", Durability::Buffered)];

/// What a note among the events stands for.
#[derive(Debug, Clone)]
enum Fact {
    /// These were handed in together.
    Publishing(Vec<u64>),
    /// And were answered with `Ok`.
    Published(Vec<u64>),
    /// About to be acknowledged in that queue,
    Settling(usize, u64),
    /// given up on,
    Burying(usize, u64),
    /// or sent back for another attempt.
    Returning(usize, u64),
}

/// Every publish reaches both queues, and is as safe as the one that asks for more.
fn declare(broker: &Broker) -> (Topic<u64>, [Queue<u64>; 2]) {
    let topic: Topic<u64> = broker.topic("work").declare().unwrap();
    let queues = QUEUES.map(|(name, durability)| {
        let retry = Retry::fixed(Duration::from_secs(7_000));
        let queue = broker.queue(name).retry(retry).durable(durability).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        queue
    });
    (topic, queues)
}

struct Day {
    disk: Disk,
    facts: Vec<Fact>,
    broker: Broker,
    topic: Topic<u64>,
    queues: [Queue<u64>; 2],
    next: u64,
}

impl Day {
    fn run(seed: u64, steps: u64) -> Past<Fact> {
        let (folder, disk, mut dice) = (Folder::new(), Disk::new(), Dice(seed));
        disk.record();
        let options = Options::new().vfs(disk.name()).wal_bytes(120_000).lazy_delay(Duration::ZERO);
        let broker = Broker::builder().store_with(folder.file(), options).build().unwrap();
        let (topic, queues) = declare(&broker);
        let mut day = Day { disk, facts: Vec::new(), broker, topic, queues, next: 0 };
        for _ in 0..steps {
            match dice.roll(3) {
                0 => day.publish(dice.roll(4)),
                _ => day.consume(dice.roll(2) as usize, dice.roll(6)),
            }
        }
        let Day { disk, facts, broker, topic, queues, .. } = day;
        drop((topic, queues));
        assert!(broker.store().unwrap().close().is_ok());
        drop(broker);
        Past { events: disk.events(), facts }
    }

    fn note(&mut self, fact: Fact) {
        self.facts.push(fact);
        self.disk.note(self.facts.len() as u64 - 1);
    }

    /// One, or two or three in a transaction, or a few that are waited for afterwards.
    fn publish(&mut self, how: u64) {
        let numbers: Vec<u64> = (0..if how == 0 { 1 } else { how }).map(|n| self.next + n).collect();
        self.next += numbers.len() as u64;
        if how == 3 {
            numbers.iter().for_each(|&n| self.note(Fact::Publishing(vec![n])));
            let tickets: Vec<_> = numbers.iter().map(|&n| (n, self.topic.publish_deferred("n", n))).collect();
            for (n, ticket) in tickets {
                ticket.wait().unwrap();
                self.note(Fact::Published(vec![n]));
            }
            return;
        }
        self.note(Fact::Publishing(numbers.clone()));
        if how == 0 {
            self.topic.publish("n", numbers[0]).unwrap();
        } else {
            let publish = |n: &u64| (*n, self.topic.clone());
            let all: Vec<_> = numbers.iter().map(publish).collect();
            self.broker
                .transaction(|tx| {
                    for (n, topic) in &all {
                        tx.publish(topic, "n", *n)?;
                    }
                    Ok(())
                })
                .unwrap();
        }
        self.note(Fact::Published(numbers));
    }

    fn consume(&mut self, queue: usize, how: u64) {
        let Ok(delivery) = self.queues[queue].try_recv() else { return };
        let n = **delivery;
        self.note(match how {
            0 => Fact::Burying(queue, n),
            1 | 2 => Fact::Returning(queue, n),
            _ => Fact::Settling(queue, n),
        });
        let settled = match how {
            0 => delivery.dead_letter("no"),
            1 => delivery.retry(),
            2 => delivery.requeue(),
            _ => delivery.ack(),
        };
        settled.unwrap();
    }
}

/// What a queue has, and where.
struct Found {
    ready: Vec<u64>,
    letters: Vec<u64>,
    everywhere: BTreeMap<u64, usize>,
}

fn find(queue: &Queue<u64>) -> Found {
    let ready: Vec<u64> = queue.list(usize::MAX).iter().map(|message| **message).collect();
    let delayed = queue.list_delayed(usize::MAX).into_iter().map(|(_, message)| *message);
    let letters = queue.dead_letters().list(usize::MAX);
    let letters: Vec<u64> = letters.iter().map(|letter| **letter.message()).collect();
    let mut everywhere = BTreeMap::new();
    ready
        .iter()
        .copied()
        .chain(delayed)
        .chain(letters.iter().copied())
        .for_each(|n| *everywhere.entry(n).or_default() += 1);
    Found { ready, letters, everywhere }
}

fn check(folder: &Folder, facts: &[Fact], what: &str) {
    let broker = Broker::open(folder.file()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (_topic, queues) = declare(&broker);
    for (at, queue) in queues.iter().enumerate() {
        check_queue(at, &find(queue), facts, &format!("{what}, queue {}", queue.name()));
    }
    let [first, second] = queues.map(|queue| find(&queue).everywhere);
    let settling = |n: &u64| facts.iter().any(|fact| matches!(fact, Fact::Settling(_, m) if m == n));
    let same = |n: &u64| settling(n) || first.contains_key(n) == second.contains_key(n);
    assert!(first.keys().chain(second.keys()).all(same), "{what}: half of a publish is there");
}

fn check_queue(queue: usize, found: &Found, facts: &[Fact], what: &str) {
    let mut handed_in: BTreeSet<u64> = BTreeSet::new();
    let (mut settling, mut returning, mut burying) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for fact in facts {
        match fact {
            Fact::Publishing(numbers) => handed_in.extend(numbers),
            Fact::Settling(at, n) if *at == queue => _ = settling.insert(*n),
            Fact::Returning(at, n) if *at == queue => _ = returning.insert(*n),
            Fact::Burying(at, n) if *at == queue => _ = burying.insert(*n),
            _ => {}
        }
    }
    for (n, times) in &found.everywhere {
        assert!(handed_in.contains(n), "{what}: {n} was never published");
        assert_eq!(*times, 1, "{what}: {n} is there more than once");
    }
    assert!(found.letters.iter().all(|n| burying.contains(n)), "{what}: a dead letter that nobody gave up on");
    let there = |n: &u64| found.everywhere.contains_key(n);
    for fact in facts {
        match fact {
            Fact::Published(numbers) => {
                let lost: Vec<_> = numbers.iter().filter(|n| !there(n) && !settling.contains(n)).collect();
                assert!(lost.is_empty(), "{what}: {lost:?} were safe and are gone");
            }
            Fact::Publishing(numbers) => {
                let mut left = numbers.iter().filter(|n| !settling.contains(n)).map(there);
                let first = left.next();
                assert!(left.all(|there| Some(there) == first), "{what}: half of transaction {numbers:?} is there");
            }
            _ => {}
        }
    }
    let fresh = found.ready.iter().filter(|n| !returning.contains(n));
    assert!(fresh.is_sorted(), "{what}: out of order: {:?}", found.ready);
}

#[test]
fn what_was_published_survives_a_power_cut_around_every_sync() {
    Day::run(1, 150).cut_around_every_sync(check);
}

#[test]
fn what_was_published_survives_a_power_cut_at_any_moment() {
    for seed in 0..4 {
        Day::run(100 + seed, 120).cut_at_any_moment(seed, 40, check);
    }
}

#[test]
fn the_simulation_notices_queues_that_do_not_sync() {
    Day::run(7, 150).assert_noticed_without_syncs(check);
}
