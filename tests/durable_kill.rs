//! A process that is killed at any moment, also while it recovers, loses nothing that was answered with `Ok` and
//! repeats nothing whose settling had reached the file.
//!
//! `POSTROOM_KILL_ROUNDS` sets how many processes are killed per mode.
#![cfg(all(feature = "sqlite", unix))]
#![allow(missing_docs)]

mod common;

use common::kill::{EACH, Task, begin, rounds};
use common::store::{Folder, flush};
use postroom::store::Durability;
use postroom::{Broker, CheckBack, Message, Queue, Resolution, Retry, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

/// Everything is published twice, under one id.
const IDEMPOTENT: &str = "idempotent";
/// Everything is prepared first, and one of four local transactions is rolled back.
const HALVES: &str = "halves";
/// Everything has a delay of some milliseconds, and memory holds only a few.
const DELAYED: &str = "delayed";
/// Everything fails at first, some of it twice, and waits some milliseconds for its next attempt; memory holds only a few.
const FAILING: &str = "failing";
/// Of seven keys, four are always in hand, and memory holds only a few.
const BY_KEY: &str = "by key";

// ---- the process that is killed --------------------------------------------------------------------

/// What a process says it has done, a line each, before the next thing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// About to publish it.
    Tries(u64),
    /// `Ok` was answered.
    Published(u64),
    /// Handled, about to be acked.
    Did(u64),
    /// All that was settled before is in the file.
    Safe,
}

impl Said {
    fn say(self) {
        match self {
            Self::Tries(n) => println!("tries {n}"),
            Self::Published(n) => println!("published {n}"),
            Self::Did(n) => println!("did {n}"),
            Self::Safe => println!("safe"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let (word, n) = line.split_once(' ').unwrap_or((line, ""));
        let n = n.parse();
        match word {
            "tries" => n.ok().map(Self::Tries),
            "published" => n.ok().map(Self::Published),
            "did" => n.ok().map(Self::Did),
            "safe" => Some(Self::Safe),
            _ => None,
        }
    }
}

fn queue(broker: &Broker, mode_name: &str) -> Queue<u64> {
    let mut queue = broker.queue("work").capacity(5_000).retry(Retry::immediate(3));
    if mode_name == IDEMPOTENT {
        queue = queue.idempotent(Duration::from_secs(3600));
    }
    let queue = queue.durable(mode(mode_name));
    let queue = match mode_name {
        DELAYED | FAILING => queue.window(16),
        BY_KEY => queue.window(16).ordered_by(|n: &u64| n % 7),
        _ => queue,
    };
    queue.declare().unwrap()
}

fn mode(name: &str) -> Durability {
    if name == "sync" { Durability::Sync } else { Durability::Buffered }
}

fn produce(topic: &Topic<u64>, numbers: std::ops::Range<u64>, mode: &str) {
    let mut under_way = Vec::new();
    let times = if mode == IDEMPOTENT { 2 } else { 1 };
    let message = |n: u64| match mode {
        IDEMPOTENT => Message::new(n).with_id(n + 1),
        DELAYED => Message::new(n).with_delay(Duration::from_micros(n * 7_919 % 50_000)),
        _ => Message::new(n),
    };
    for n in numbers.flat_map(|n| (0..times).map(move |_| n)) {
        Said::Tries(n).say();
        if n % 3 == 0 {
            topic.publish("n", message(n)).unwrap();
            Said::Published(n).say();
            continue;
        }
        under_way.push((n, topic.publish_deferred("n", message(n))));
        if under_way.len() == 20 {
            for (n, ticket) in under_way.drain(..) {
                ticket.wait().unwrap();
                Said::Published(n).say();
            }
        }
    }
}

/// What became of its local transaction.
fn resolution(n: u64) -> Resolution {
    if n % 4 == 3 { Resolution::Rollback } else { Resolution::Commit }
}

fn topic(broker: &Broker, mode: &str) -> Topic<u64> {
    let topic = broker.topic("work");
    if mode != HALVES {
        return topic.declare().unwrap();
    }
    let ask = CheckBack::new(|n: &Message<u64>| resolution(**n))
        .first(Duration::from_millis(5))
        .every(Duration::from_millis(5));
    topic.check_back(ask.durable(Durability::Buffered)).declare().unwrap()
}

/// Only what is to be published is spoken of.
fn prepare(topic: &Topic<u64>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let published = resolution(n) == Resolution::Commit;
        if published {
            Said::Tries(n).say();
        }
        let half = topic.prepare("n", n).unwrap();
        if published {
            Said::Published(n).say();
        }
        let id = half.id();
        // The check-back may have been faster.
        match n % 8 {
            0 | 4 => _ = half.commit(),
            1 => _ = topic.commit_half(id),
            3 => _ = half.rollback(),
            _ => drop(half),
        }
    }
}

/// Not a test of its own: what the killed process does.
#[test]
fn works_until_it_is_killed() {
    let Some(Task { file, mode, first }) = Task::given() else { return };
    begin();
    let broker = Broker::open(file).unwrap();
    let queue = queue(&broker, &mode);
    let topic = topic(&broker, &mode);
    topic.bind(&queue, "#").unwrap();
    for half in [first, first + EACH / 2] {
        let (topic, numbers, mode) = (topic.clone(), half..half + EACH / 2, mode.clone());
        thread::spawn(move || if mode == HALVES { prepare(&topic, numbers) } else { produce(&topic, numbers, &mode) });
    }
    let mut settled = 0;
    let mut in_hand = Vec::new();
    for delivery in queue.iter() {
        in_hand.push(delivery);
        if mode == BY_KEY && in_hand.len() < 5 && !queue.is_empty() {
            continue;
        }
        let delivery = in_hand.swap_remove(settled % in_hand.len());
        let n = **delivery;
        let failures = if mode == FAILING { 1 + (n % 2) as u32 } else { 0 };
        match n % 10 {
            _ if delivery.attempt() <= failures => {
                delivery.retry_after(Duration::from_micros(n * 7_919 % 50_000)).unwrap();
            }
            3 if delivery.attempt() == 1 => delivery.retry().unwrap(),
            6 if !delivery.redelivered() => delivery.requeue().unwrap(),
            7 => delivery.dead_letter("no").unwrap(),
            _ => {
                Said::Did(n).say();
                delivery.ack().unwrap();
            }
        }
        settled += 1;
        if settled % 40 == 0 {
            flush(&broker);
            Said::Safe.say();
        }
        if settled % 700 == 0 {
            queue.dead_letters().redrive().limit(1).run().unwrap();
        }
    }
}

// ---- the checker -----------------------------------------------------------------------------------

/// What is wrong with what all processes said, and what is left in the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    /// `Ok` was answered, and nobody has handled it, and it is not there.
    lost: Vec<u64>,
    /// Handled or there, and nobody has tried to publish it.
    unexpected: Vec<u64>,
    /// Handled or there again although the file knew that it was settled.
    repeated: Vec<u64>,
    /// Twice in the file.
    doubled: Vec<u64>,
}

fn check(processes: &[Vec<Said>], left: &[u64]) -> Wrong {
    let mut wrong = Wrong::default();
    let (mut tried, mut published, mut did) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut settled_for_good = BTreeSet::new();
    for process in processes {
        let mut unsure = Vec::new();
        for said in process {
            match *said {
                Said::Tries(n) => _ = tried.insert(n),
                Said::Published(n) => _ = published.insert(n),
                Said::Did(n) => {
                    did.insert(n);
                    wrong.repeated.extend(settled_for_good.get(&n));
                    unsure.push(n);
                }
                Said::Safe => settled_for_good.extend(unsure.drain(..)),
            }
        }
    }
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    left.iter().for_each(|n| *times.entry(*n).or_default() += 1);
    wrong.doubled.extend(times.iter().filter(|(_, times)| **times > 1).map(|(n, _)| *n));
    wrong.repeated.extend(times.keys().filter(|n| settled_for_good.contains(n)));
    wrong.lost.extend(published.iter().filter(|n| !did.contains(n) && !times.contains_key(n)));
    wrong.unexpected.extend(did.iter().chain(times.keys()).filter(|n| !tried.contains(n)));
    wrong
}

#[test]
fn the_checker_finds_what_is_wrong() {
    use Said::{Did, Published, Safe, Tries};
    let one = |n| vec![Tries(n), Published(n)];
    let (nothing, of) = (Wrong::default, |n| vec![n]);
    assert_eq!(check(&[one(1), one(2)], &[1, 2]), nothing());
    assert_eq!(check(&[vec![Tries(1)]], &[1]), nothing(), "it may be there without an answer");
    assert_eq!(check(&[[one(1), vec![Did(1)]].concat(), vec![Did(1)]], &[1]), nothing(), "nobody knew");
    assert_eq!(check(&[one(1)], &[]), Wrong { lost: of(1), ..nothing() });
    assert_eq!(check(&[one(1)], &[1, 1]), Wrong { doubled: of(1), ..nothing() });
    assert_eq!(check(&[vec![Did(1)]], &[]), Wrong { unexpected: of(1), ..nothing() });
    assert_eq!(check(&[], &[1]), Wrong { unexpected: of(1), ..nothing() });
    let safe = [one(1), vec![Did(1), Safe]].concat();
    assert_eq!(check(&[safe.clone(), vec![Did(1)]], &[]), Wrong { repeated: of(1), ..nothing() });
    assert_eq!(check(std::slice::from_ref(&safe), &[1]), Wrong { repeated: of(1), ..nothing() });
    assert_eq!(check(&[safe], &[]), nothing());
}

// ---- the rounds ------------------------------------------------------------------------------------

fn drained(queue: &Queue<u64>) -> Vec<u64> {
    let letters = queue.dead_letters().drain();
    let messages = queue.drain();
    messages.iter().map(|message| **message).chain(letters.iter().map(|letter| **letter.message())).collect()
}

/// What is left once all that was done before has been told apart.
fn handed_out(queue: &Queue<u64>) -> Vec<u64> {
    queue.dead_letters().redrive().run().unwrap();
    let hand_out = || {
        let delivery = queue.try_recv().ok()?;
        let n = **delivery;
        delivery.ack().unwrap();
        Some(n)
    };
    std::iter::from_fn(hand_out).collect()
}

fn many_rounds(mode_name: &str) {
    let folder = Folder::new();
    let processes = rounds(&folder.file(), mode_name, Said::read);
    let broker = Broker::open(folder.file()).unwrap();
    let queue = queue(&broker, mode_name);
    // Before anybody asks about them.
    let halves = topic(&broker, mode_name).drain_halves();
    let mut left = if mode_name == IDEMPOTENT { handed_out(&queue) } else { drained(&queue) };
    left.extend(halves.iter().map(|half| **half).filter(|&n| resolution(n) == Resolution::Commit));
    assert_eq!(check(&processes, &left), Wrong::default());
    let count = |wanted: fn(&Said) -> bool| processes.iter().flatten().filter(|said| wanted(said)).count();
    let (published, did) = (count(|s| matches!(s, Said::Published(_))), count(|s| matches!(s, Said::Did(_))));
    let safe = count(|said| *said == Said::Safe);
    println!(
        "{mode_name}: {} rounds, {published} published, {did} handled, {safe} times safe, {} left",
        processes.len(),
        left.len()
    );
    assert!(published > 100 && did > 50, "{published} published, {did} handled: too few to say anything");
    broker.store().unwrap().check().unwrap();
}

#[test]
fn buffered_messages_survive_kill_9() {
    many_rounds("buffered");
}

#[test]
fn what_an_idempotent_queue_has_completed_survives_kill_9() {
    many_rounds(IDEMPOTENT);
}

#[test]
fn there_is_the_half_message_or_the_message_after_kill_9() {
    many_rounds(HALVES);
}

#[test]
fn delayed_messages_survive_kill_9() {
    many_rounds(DELAYED);
}

#[test]
fn messages_that_wait_for_their_next_attempt_survive_kill_9() {
    many_rounds(FAILING);
}

#[test]
fn messages_ordered_by_key_survive_kill_9() {
    many_rounds(BY_KEY);
}

#[test]
fn synced_messages_survive_kill_9() {
    many_rounds("sync");
}
