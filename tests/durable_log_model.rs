//! Whatever is done to a durable log, in whatever order, however often its file is opened anew or its process is
//! killed: it holds what a list would that is trimmed or compacted in the same way, and its groups go on where they
//! stood.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, Log, LogError, ManualClock, Message, Queue, Retention, Simulation, Start, Topic};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

#[derive(Debug, Clone)]
enum Act {
    Append(u8),
    AppendMany(Vec<u8>),
    Later(Vec<u8>),
    Publish(u8),
    InTransaction(Vec<u8>),
    /// A group by its number, and how it is to start.
    Start(usize, u8),
    Remove(usize),
    Read(usize, usize),
    /// To a part of the way.
    Seek(usize, u8),
    Compact,
    Advance(u64),
    ShutDown,
    Kill,
}

const GROUPS: usize = 3;
const PARTITIONS: usize = 2;
const KEPT: u64 = 12;
const AGE: u64 = 60;
/// A payload divisible by this is a tombstone.
const TOMBSTONE: u32 = 5;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let keys = || proptest::collection::vec(0..6_u8, 0..9);
    let group = 0..GROUPS;
    let act = prop_oneof![
        5 => (0..6_u8).prop_map(Act::Append),
        3 => keys().prop_map(Act::AppendMany),
        3 => keys().prop_map(Act::Later),
        2 => (0..6_u8).prop_map(Act::Publish),
        2 => keys().prop_map(Act::InTransaction),
        4 => (group.clone(), 0..4_u8).prop_map(|(group, start)| Act::Start(group, start)),
        1 => group.clone().prop_map(Act::Remove),
        6 => (group.clone(), 1..12_usize).prop_map(|(group, n)| Act::Read(group, n)),
        2 => (group, any::<u8>()).prop_map(|(group, part)| Act::Seek(group, part)),
        1 => Just(Act::Compact),
        2 => (1..40_u64).prop_map(Act::Advance),
        2 => Just(Act::ShutDown),
        2 => Just(Act::Kill),
    ];
    proptest::collection::vec(act, 1..60)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Everything,
    ByCount,
    ByBytes,
    ByAge,
    Compacted,
}

/// How many records of a partition stay in memory: next to none, a few, more than there ever are.
const WINDOWS: [usize; 3] = [1, 6, 4096];

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    offset: u64,
    n: u32,
    key: Option<String>,
    id: u64,
    at: SystemTime,
}

/// All that can be seen of a log.
#[derive(Debug, Clone, PartialEq)]
struct View {
    ranges: Vec<(u64, u64)>,
    entries: Vec<Vec<Entry>>,
}

struct World {
    kind: Kind,
    window: usize,
    folder: Folder,
    clock: ManualClock,
    broker: Broker,
    simulation: Simulation,
    log: Log<u32>,
    queue: Queue<u32>,
    topic: Topic<u32>,
    /// All that was ever appended to each partition: its offset is its place.
    appended: Vec<Vec<(u32, Option<String>)>>,
    /// Where each group stands; those of this run are also started.
    groups: BTreeMap<usize, Vec<u64>>,
    started: BTreeSet<usize>,
    next: u32,
}

fn open(
    folder: &Folder,
    clock: &ManualClock,
    kind: Kind,
    window: usize,
) -> (Broker, Simulation, Log<u32>, Queue<u32>, Topic<u32>) {
    let (broker, simulation) = simulated(folder, clock);
    let log = broker.log("log").partitions(PARTITIONS).durable(Durability::Buffered).window(window);
    let log = match kind {
        Kind::Everything => log,
        Kind::ByCount => log.retain(Retention::count(KEPT)),
        Kind::ByBytes => log.retain(Retention::bytes(KEPT * 8, |_: &u32| 8)),
        Kind::ByAge => log.retain(Retention::age(Duration::from_secs(AGE))),
        Kind::Compacted => log.tombstone(|n| n % TOMBSTONE == 0),
    };
    let log = log.declare().unwrap();
    let queue = broker.queue("queue").capacity(100_000).durable(Durability::Buffered).declare().unwrap();
    let topic: Topic<u32> = broker.topic("topic").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.bind(&queue, "#").unwrap();
    (broker, simulation, log, queue, topic)
}

fn name(group: usize) -> String {
    format!("group {group}")
}

impl World {
    fn new(kind: Kind, window: usize) -> Self {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        let (broker, simulation, log, queue, topic) = open(&folder, &clock, kind, window);
        let (appended, groups) = (vec![Vec::new(); PARTITIONS], BTreeMap::new());
        let started = BTreeSet::new();
        Self { kind, window, folder, clock, broker, simulation, log, queue, topic, appended, groups, started, next: 0 }
    }

    fn message(&mut self, key: u8) -> Message<u32> {
        self.next += 1;
        let message = Message::new(self.next);
        message.with_key(format!("k{key}"))
    }

    fn messages(&mut self, keys: &[u8]) -> Vec<Message<u32>> {
        keys.iter().map(|&key| self.message(key)).collect()
    }

    fn note(&mut self, messages: &[Message<u32>]) {
        for message in messages {
            let key = message.key().map(str::to_owned);
            self.appended[self.log.partition_of(message.key().unwrap())].push((**message, key));
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Append(key) => {
                let message = self.message(key);
                let at = self.log.append(message.clone()).unwrap();
                assert_eq!(at.offset, self.appended[at.partition].len() as u64);
                self.note(&[message]);
            }
            Act::AppendMany(keys) => {
                let messages = self.messages(&keys);
                assert_eq!(self.log.append_batch(messages.clone()).unwrap().len(), keys.len());
                self.note(&messages);
            }
            Act::Later(keys) => {
                let messages = self.messages(&keys);
                let tickets: Vec<_> =
                    messages.iter().map(|message| self.log.append_deferred(message.clone())).collect();
                tickets.into_iter().for_each(|ticket| _ = ticket.wait().unwrap());
                self.note(&messages);
            }
            Act::Publish(key) => {
                let message = self.message(key);
                self.topic.publish("a", message.clone()).unwrap();
                self.note(&[message]);
            }
            Act::InTransaction(keys) => {
                let messages = self.messages(&keys);
                let sent = self.broker.transaction(|tx| {
                    for (n, message) in messages.iter().enumerate() {
                        match n % 2 {
                            0 => drop(tx.append(&self.log, message.clone())?),
                            _ => drop(tx.publish(&self.topic, "a", message.clone())?),
                        }
                    }
                    Ok(())
                });
                sent.unwrap();
                self.note(&messages);
            }
            Act::Start(group, start) => self.start(group, start),
            Act::Remove(group) => {
                assert_eq!(self.log.remove_group(&name(group)).is_ok(), self.groups.remove(&group).is_some());
                self.started.remove(&group);
            }
            Act::Read(group, n) => self.read(group, n),
            Act::Seek(group, part) => self.seek(group, part),
            Act::Compact => drop(self.log.compact_now()),
            Act::Advance(seconds) => drop(self.simulation.advance(Duration::from_secs(seconds))),
            Act::ShutDown => {
                let before = self.view();
                self.broker.shutdown(Duration::ZERO);
                self.reopen(before);
            }
            Act::Kill => {
                let before = self.view();
                flush(&self.broker);
                let copy = self.folder.killed();
                self.folder = copy;
                self.reopen(before);
            }
        }
    }

    fn reopen(&mut self, before: View) {
        (self.broker, self.simulation, self.log, self.queue, self.topic) =
            open(&self.folder, &self.clock, self.kind, self.window);
        assert_eq!(self.view(), before);
        let stats = self.log.stats();
        assert_eq!((stats.recovered, stats.appended), (self.log.len(), 0));
        self.started.clear();
    }

    fn start(&mut self, group: usize, start: u8) {
        let wanted = match start {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => Start::Time(SystemTime::UNIX_EPOCH),
            _ => Start::Time(self.simulation.now() - Duration::from_secs(20)),
        };
        let begun = self.log.group(name(group)).start(wanted).unwrap();
        let stands: Vec<u64> = (0..PARTITIONS).map(|partition| begun.committed(partition).unwrap()).collect();
        if let Some(expected) = self.groups.get(&group) {
            assert_eq!(&stands, expected, "{wanted:?}");
        }
        self.groups.insert(group, stands);
        self.started.insert(group);
    }

    fn read(&mut self, group: usize, n: usize) {
        if !self.started.contains(&group) {
            return;
        }
        let view = self.view();
        let handle = self.log.group(name(group)).find().unwrap();
        let mut reader = handle.reader();
        let stands = self.groups.get_mut(&group).unwrap();
        for _ in 0..n {
            match reader.try_recv() {
                Ok(record) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    let expected = view.entries[partition].iter().find(|entry| entry.offset >= stands[partition]);
                    assert_eq!(Some((offset, **record)), expected.map(|entry| (entry.offset, entry.n)));
                    handle.commit(partition, offset).unwrap();
                    stands[partition] = offset + 1;
                }
                Err(LogError::Trimmed { partition, asked, oldest }) => {
                    assert_eq!((asked, oldest), (stands[partition], view.ranges[partition].0));
                    handle.seek(partition, oldest).unwrap();
                    stands[partition] = oldest;
                }
                Err(LogError::Empty) => break,
                Err(other) => panic!("{other}"),
            }
        }
        drop(reader);
        for (partition, stands) in stands.iter_mut().enumerate() {
            // With the last record, a group passes the gap behind it.
            let committed = handle.committed(partition).unwrap();
            assert!(committed >= *stands);
            let passed = |entry: &&Entry| (*stands..committed).contains(&entry.offset);
            assert_eq!(view.entries[partition].iter().find(passed), None);
            *stands = committed;
        }
    }

    fn seek(&mut self, group: usize, part: u8) {
        if !self.started.contains(&group) {
            return;
        }
        let partition = usize::from(part) % PARTITIONS;
        let (oldest, end) = (self.log.oldest(partition).unwrap(), self.log.end(partition).unwrap());
        let offset = oldest + (end - oldest) * u64::from(part) / 255;
        self.log.group(name(group)).find().unwrap().seek(partition, offset).unwrap();
        self.groups.get_mut(&group).unwrap()[partition] = offset;
    }

    fn view(&self) -> View {
        let range = |partition| (self.log.oldest(partition).unwrap(), self.log.end(partition).unwrap());
        let ranges: Vec<_> = (0..PARTITIONS).map(range).collect();
        let entries = ranges.iter().enumerate().map(|(partition, &(oldest, end))| {
            let (mut at, mut found) = (oldest, Vec::new());
            while let Some(record) = (at < end).then(|| self.log.read(partition, at).ok()).flatten() {
                at = record.offset() + 1;
                let (offset, n, key) = (record.offset(), **record, record.key().map(str::to_owned));
                found.push(Entry { offset, n, key, id: record.id().get(), at: record.published_at() });
            }
            found
        });
        View { entries: entries.collect(), ranges }
    }

    fn check(&self) {
        let view = self.view();
        let now = self.simulation.now();
        for (partition, entries) in view.entries.iter().enumerate() {
            let all = &self.appended[partition];
            assert_eq!(view.ranges[partition].1, all.len() as u64);
            for entry in entries {
                assert_eq!((entry.n, entry.key.clone()), all[entry.offset as usize]);
            }
            let kept: BTreeSet<u64> = entries.iter().map(|entry| entry.offset).collect();
            let in_a_row = kept.len() as u64 == all.len() as u64 - view.ranges[partition].0;
            match self.kind {
                Kind::Everything => assert_eq!(entries.len(), all.len()),
                Kind::ByCount | Kind::ByBytes => {
                    assert!(in_a_row);
                    assert!(kept.len() as u64 >= KEPT.min(all.len() as u64) && kept.len() as u64 <= KEPT + KEPT / 4);
                }
                Kind::ByAge => {
                    assert!(in_a_row);
                    let newest = entries.last().map(|entry| now.duration_since(entry.at).unwrap_or_default());
                    assert!(newest.is_none_or(|age| age < Duration::from_secs(AGE)), "{newest:?}");
                }
                Kind::Compacted => self.check_compacted(partition, &kept),
            }
        }
        let stats = self.log.stats();
        assert_eq!(stats.recovered + stats.appended, stats.retained + stats.trimmed + stats.compacted + stats.lost);
        assert_eq!(stats.retained, view.entries.iter().map(|entries| entries.len() as u64).sum::<u64>());
    }

    /// What compaction must not remove.
    fn check_compacted(&self, partition: usize, kept: &BTreeSet<u64>) {
        let all = &self.appended[partition];
        let latest: BTreeMap<_, _> = all.iter().enumerate().map(|(at, (_, key))| (key, at as u64)).collect();
        for (at, (n, key)) in all.iter().enumerate() {
            let at = at as u64;
            if latest[key] != at || kept.contains(&at) {
                continue;
            }
            assert!(n % TOMBSTONE == 0, "{n} is the latest of its key");
        }
        // Nothing of a key is left once its tombstone is gone.
        for at in kept {
            let key = &all[*at as usize].1;
            assert!(kept.contains(&latest[key]), "{key:?} is back");
        }
    }

    fn finish(mut self) {
        self.act(Act::Kill);
        self.check();
        let known: Vec<_> = self.groups.keys().copied().collect();
        known.into_iter().for_each(|group| self.start(group, 1));
        let published = self.queue.len();
        self.act(Act::ShutDown);
        assert_eq!(self.queue.len(), published);
    }
}

fn survives(kind: Kind, window: usize, acts: Vec<Act>) {
    let mut world = World::new(kind, window);
    for act in acts {
        world.act(act);
        world.check();
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_durable_log_is_a_list_that_survives(window in 0..3_usize, acts in acts()) {
        survives(Kind::Everything, WINDOWS[window], acts);
    }

    #[test]
    fn one_that_keeps_the_latest_keeps_the_same_of_them(window in 0..3_usize, acts in acts()) {
        survives(Kind::ByCount, WINDOWS[window], acts);
    }

    #[test]
    fn one_that_keeps_so_many_bytes_keeps_the_same_of_them(window in 0..3_usize, acts in acts()) {
        survives(Kind::ByBytes, WINDOWS[window], acts);
    }

    #[test]
    fn one_that_grows_old_keeps_what_is_young(window in 0..3_usize, acts in acts()) {
        survives(Kind::ByAge, WINDOWS[window], acts);
    }

    #[test]
    fn one_that_is_compacted_keeps_the_latest_of_each_key(window in 0..3_usize, acts in acts()) {
        survives(Kind::Compacted, WINDOWS[window], acts);
    }
}
