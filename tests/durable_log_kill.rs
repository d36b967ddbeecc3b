//! A process that is killed at any moment, also while it recovers, loses no record that was answered with `Ok`, gives
//! no offset twice, and has its group pass over nothing; what comes again is what the file had not heard of.
//!
//! `POSTROOM_KILL_ROUNDS` sets how many processes are killed per mode.
#![cfg(all(feature = "sqlite", unix))]
#![allow(missing_docs)]

mod common;

use common::kill::{EACH, Task, begin, rounds};
use common::store::{Folder, flush};
use postroom::store::Durability;
use postroom::{Broker, Failure, Group, Log, Message, Queue, Record, Retention, Retry, Start, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread;
use std::time::Duration;

const PARTITIONS: usize = 2;
/// In the second log.
const KEPT: u64 = 1000;
/// Records in memory.
const WINDOW: usize = 64;

// ---- the process that is killed --------------------------------------------------------------------

/// What a process says it has done, a line each, before the next thing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// About to append it.
    Tries(u64),
    /// `Ok` was answered: where it is.
    Appended(u64, usize, u64),
    /// The group was given it.
    Read(u64, usize, u64),
    /// The file knows that the group has come so far.
    Safe(usize, u64),
}

impl Said {
    fn say(self) {
        match self {
            Self::Tries(n) => println!("tries {n}"),
            Self::Appended(n, partition, offset) => println!("appended {n} {partition} {offset}"),
            Self::Read(n, partition, offset) => println!("read {n} {partition} {offset}"),
            Self::Safe(partition, committed) => println!("safe {partition} {committed}"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        match (word, &numbers[..]) {
            ("tries", &[n]) => Some(Self::Tries(n)),
            ("appended", &[n, partition, offset]) => Some(Self::Appended(n, partition as usize, offset)),
            ("read", &[n, partition, offset]) => Some(Self::Read(n, partition as usize, offset)),
            ("safe", &[partition, committed]) => Some(Self::Safe(partition as usize, committed)),
            _ => None,
        }
    }
}

struct Parts {
    broker: Broker,
    log: Log<u64>,
    /// Trimmed all the time.
    short: Log<u64>,
    queue: Queue<u64>,
    topic: Topic<u64>,
}

fn open(file: impl AsRef<Path>, mode: &str) -> Parts {
    let mode = if mode == "sync" { Durability::Sync } else { Durability::Buffered };
    let broker = Broker::open(file).unwrap();
    // Most of what the group reads comes from the file.
    let log = broker.log("log").partitions(PARTITIONS).durable(mode).window(WINDOW).declare().unwrap();
    let short = broker.log("short").retain(Retention::count(KEPT)).durable(mode).window(WINDOW).declare().unwrap();
    let queue = broker.queue("queue").capacity(10_000_000).durable(mode).declare().unwrap();
    let topic: Topic<u64> = broker.topic("all").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.bind(&short, "#").unwrap();
    topic.bind(&queue, "#").unwrap();
    Parts { broker, log, short, queue, topic }
}

fn group(log: &Log<u64>) -> Group<u64> {
    log.group("group").retry(Retry::immediate(2)).start(Start::Latest).unwrap()
}

fn with_key(n: u64) -> Message<u64> {
    Message::new(n).with_key((n % 10).to_string())
}

fn produce(parts: &Parts, numbers: std::ops::Range<u64>) {
    let mut under_way = Vec::new();
    for n in numbers {
        Said::Tries(n).say();
        match n % 8 {
            0 => _ = parts.topic.publish("n", with_key(n)).unwrap(),
            1 => {
                let sent = parts.broker.transaction(|tx| {
                    tx.append(&parts.log, with_key(n))?;
                    tx.send(&parts.queue, n)?;
                    tx.append(&parts.short, n)?;
                    Ok(())
                });
                sent.unwrap();
            }
            2 => {
                let at = parts.log.append(with_key(n)).unwrap();
                Said::Appended(n, at.partition, at.offset).say();
            }
            _ => under_way.push((n, parts.log.append_deferred(with_key(n)))),
        }
        if under_way.len() == 20 {
            for (n, ticket) in under_way.drain(..) {
                let at = ticket.wait().unwrap();
                Said::Appended(n, at.partition, at.offset).say();
            }
        }
    }
}

/// Not a test of its own: what the killed process does.
#[test]
fn works_until_it_is_killed() {
    let Some(Task { file, mode, first }) = Task::given() else { return };
    begin();
    let parts = open(file, &mode);
    let group = group(&parts.log);
    let handler = |record: &Record<u64>| -> Result<(), Failure> {
        if ***record % 50 == 7 {
            return Err(Failure::transient("no"));
        }
        Said::Read(***record, record.partition(), record.offset()).say();
        Ok(())
    };
    group.consumer().workers(2).start(handler).unwrap();
    thread::scope(|scope| {
        for half in [first, first + EACH / 2] {
            let parts = &parts;
            scope.spawn(move || produce(parts, half..half + EACH / 2));
        }
        loop {
            let committed: Vec<u64> = (0..PARTITIONS).map(|partition| group.committed(partition).unwrap()).collect();
            flush(&parts.broker);
            committed.iter().enumerate().for_each(|(partition, &committed)| Said::Safe(partition, committed).say());
            thread::sleep(Duration::from_millis(2));
        }
    });
}

// ---- the checker -----------------------------------------------------------------------------------

/// What is wrong with what all processes said, and what is left in the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    /// `Ok` was answered, and it is not there.
    lost: Vec<u64>,
    /// There, or read, although nobody has tried to append it.
    unexpected: Vec<u64>,
    /// Twice in the log.
    doubled: Vec<u64>,
    /// It is elsewhere than was said, or two were said to be at one place.
    moved: Vec<u64>,
    /// Before where the group stands, and neither read nor a dead letter.
    skipped: Vec<u64>,
    /// Read again although the file knew that the group had passed it.
    repeated: Vec<u64>,
    /// Read by a process not in the order of its offsets.
    disordered: Vec<u64>,
}

/// A number at its partition and offset.
type At = (u64, usize, u64);

fn check(processes: &[Vec<Said>], left: &[At], committed: &[u64], letters: &[u64]) -> Wrong {
    let mut wrong = Wrong::default();
    let (mut tried, mut read) = (BTreeSet::new(), BTreeSet::from_iter(letters.iter().copied()));
    let mut places: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for &(n, partition, offset) in left {
        places.insert((partition, offset), n);
        *times.entry(n).or_default() += 1;
    }
    let mut safe: BTreeMap<usize, u64> = BTreeMap::new();
    for process in processes {
        let (mut last, known) = (BTreeMap::new(), safe.clone());
        for said in process {
            match *said {
                Said::Tries(n) => _ = tried.insert(n),
                Said::Appended(n, ..) if !times.contains_key(&n) => wrong.lost.push(n),
                Said::Appended(n, partition, offset) => {
                    wrong.moved.extend((places.get(&(partition, offset)) != Some(&n)).then_some(n));
                }
                Said::Read(n, partition, offset) => {
                    read.insert(n);
                    wrong.moved.extend((places.get(&(partition, offset)) != Some(&n)).then_some(n));
                    wrong.repeated.extend(known.get(&partition).is_some_and(|safe| offset < *safe).then_some(n));
                    let before = last.insert(partition, offset);
                    wrong.disordered.extend(before.is_some_and(|before| before >= offset).then_some(n));
                }
                Said::Safe(partition, committed) => _ = safe.insert(partition, committed),
            }
        }
    }
    wrong.doubled.extend(times.iter().filter(|(_, times)| **times > 1).map(|(n, _)| *n));
    wrong.unexpected.extend(times.keys().chain(&read).filter(|n| !tried.contains(n)));
    let passed = left.iter().filter(|(_, partition, offset)| *offset < committed[*partition]);
    wrong.skipped.extend(passed.filter(|(n, ..)| !read.contains(n)).map(|(n, ..)| *n));
    wrong
}

#[test]
fn the_checker_finds_what_is_wrong() {
    use Said::{Appended, Read, Safe, Tries};
    let (nothing, of) = (Wrong::default, |n| vec![n]);
    let one = vec![Tries(1), Appended(1, 0, 0)];
    let check = |processes: &[Vec<Said>], left: &[At], committed: u64| check(processes, left, &[committed], &[9]);
    assert_eq!(check(&[one.clone(), vec![Tries(9)]], &[(1, 0, 0)], 0), nothing());
    let with_letter = |process: Vec<Said>| [process, vec![Tries(9)]].concat();
    assert_eq!(check(&[with_letter(vec![Tries(1)])], &[(1, 0, 0)], 0), nothing(), "it may be there unanswered");
    assert_eq!(check(&[with_letter(one.clone())], &[], 0), Wrong { lost: of(1), ..nothing() });
    let twice = [(1, 0, 0), (1, 0, 1)];
    assert_eq!(check(&[with_letter(one.clone())], &twice, 0), Wrong { doubled: of(1), ..nothing() });
    assert_eq!(check(&[with_letter(one.clone())], &[(1, 0, 3)], 0), Wrong { moved: of(1), ..nothing() });
    assert_eq!(check(&[with_letter(vec![])], &[(1, 0, 0)], 0), Wrong { unexpected: of(1), ..nothing() });
    assert_eq!(check(&[with_letter(one.clone())], &[(1, 0, 0)], 1), Wrong { skipped: of(1), ..nothing() });
    let reads = [one.clone(), vec![Read(1, 0, 0)]].concat();
    assert_eq!(check(&[with_letter(reads.clone())], &[(1, 0, 0)], 1), nothing());
    assert_eq!(check(&[with_letter(reads.clone()), reads.clone()], &[(1, 0, 0)], 1), nothing(), "in another life");
    let again = [reads, vec![Read(1, 0, 0)]].concat();
    assert_eq!(check(&[with_letter(again)], &[(1, 0, 0)], 1), Wrong { disordered: of(1), ..nothing() });
    let known = [one, vec![Read(1, 0, 0), Safe(0, 1)]].concat();
    let repeats = [with_letter(known.clone()), vec![Read(1, 0, 0)]];
    assert_eq!(check(&repeats, &[(1, 0, 0)], 1), Wrong { repeated: of(1), ..nothing() });
    assert_eq!(check(&[vec![Tries(9)]], &[(9, 0, 0)], 1), nothing(), "a dead letter counts as read");
}

// ---- the rounds ------------------------------------------------------------------------------------

fn all(log: &Log<u64>) -> Vec<At> {
    let mut found = Vec::new();
    for partition in 0..log.partitions() {
        let (mut at, end) = (log.oldest(partition).unwrap(), log.end(partition).unwrap());
        while at < end {
            let record = log.read(partition, at).unwrap();
            at = record.offset() + 1;
            found.push((**record, partition, record.offset()));
        }
    }
    found
}

fn many_rounds(mode: &str) {
    let folder = Folder::new();
    let processes = rounds(&folder.file(), mode, Said::read);
    let Parts { broker, log, short, queue, .. } = open(folder.file(), mode);
    let group = group(&log);
    let committed: Vec<u64> = (0..PARTITIONS).map(|partition| group.committed(partition).unwrap()).collect();
    let letters: Vec<u64> = group.dead_letters().drain().iter().map(|letter| **letter.message()).collect();
    let left = all(&log);
    assert_eq!(check(&processes, &left, &committed, &letters), Wrong::default());

    // One commit has put them into both logs and the queue.
    let together: BTreeSet<u64> = left.iter().map(|(n, ..)| *n).filter(|n| n % 8 < 2).collect();
    let queued: BTreeSet<u64> = queue.drain().iter().map(|message| **message).collect();
    assert_eq!(queued, together);
    let kept = all(&short);
    assert!(kept.iter().all(|(n, ..)| together.contains(n)));
    assert_eq!(short.end(0).unwrap(), together.len() as u64, "no offset is given twice, or left out");
    let enough = KEPT.min(together.len() as u64);
    assert!((enough..=enough + 2 * KEPT).contains(&(kept.len() as u64)), "{} kept", kept.len());

    let read = processes.iter().flatten().filter(|said| matches!(said, Said::Read(..))).count();
    let again = read
        - processes
            .iter()
            .flatten()
            .filter_map(|said| if let Said::Read(n, ..) = said { Some(*n) } else { None })
            .collect::<BTreeSet<_>>()
            .len();
    println!(
        "{mode}: {} rounds, {} records, {read} read, {again} of them again, {} dead letters, {} in one commit",
        processes.len(),
        left.len(),
        letters.len(),
        together.len()
    );
    assert!(left.len() > 100 && read > 50, "{} appended, {read} read: too few to say anything", left.len());
    broker.store().unwrap().check().unwrap();
}

#[test]
fn buffered_logs_survive_kill_9() {
    many_rounds("buffered");
}

#[test]
fn synced_logs_survive_kill_9() {
    many_rounds("sync");
}
