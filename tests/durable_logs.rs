//! What a durable log keeps, and where its groups go on.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::{eventually, quiet, within};
use postroom::store::{Durability, Inspector, Limit, Options, StoreError};
use postroom::{
    AppendError, Broker, Codec, CodecError, Event, Group, Log, ManualClock, Message, Obstacle, PublishError, Queue,
    Record, Resolution, Retention, Retry, Start, Topic, TransactionError,
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

const LIMIT: Duration = Duration::from_secs(60);
const BUFFERED: Durability = Durability::Buffered;
const SYNC: Durability = Durability::Sync;

fn open(folder: &Folder) -> Broker {
    Broker::open(folder.file()).expect("the file is free")
}

fn numbers(broker: &Broker) -> Log<u64> {
    broker.log("numbers").durable(BUFFERED).declare().unwrap()
}

/// All that a reader can know of a record.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    partition: usize,
    offset: u64,
    payload: String,
    id: u64,
    key: Option<String>,
    routing_key: String,
    headers: Vec<(String, String)>,
    published_at: SystemTime,
}

impl Seen {
    fn of(record: &Record<String>) -> Self {
        Self {
            partition: record.partition(),
            offset: record.offset(),
            payload: record.payload().clone(),
            id: record.id().get(),
            key: record.key().map(str::to_owned),
            routing_key: record.routing_key().to_owned(),
            headers: record.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            published_at: record.published_at(),
        }
    }
}

fn all(log: &Log<String>) -> Vec<Seen> {
    let of_partition = |partition| {
        let (mut at, end) = (log.oldest(partition).unwrap(), log.end(partition).unwrap());
        let mut found = Vec::new();
        while let Some(record) = (at < end).then(|| log.read(partition, at).ok()).flatten() {
            at = record.offset() + 1;
            found.push(Seen::of(&record));
        }
        found
    };
    (0..log.partitions()).flat_map(of_partition).collect()
}

fn offsets(log: &Log<u64>) -> Vec<(u64, u64)> {
    let (mut at, end) = (log.oldest(0).unwrap(), log.end(0).unwrap());
    let mut found = Vec::new();
    while let Some(record) = (at < end).then(|| log.read(0, at).ok()).flatten() {
        at = record.offset() + 1;
        found.push((record.offset(), **record));
    }
    found
}

/// What a group has not handled, in order, handed to a reader and not committed.
fn rest(group: &Group<u64>) -> Vec<u64> {
    let mut reader = group.reader();
    std::iter::from_fn(|| reader.try_recv().ok()).map(|record| **record).collect()
}

fn in_file(folder: &Folder, kind: &str, name: &str) -> u64 {
    let streams = Inspector::open(folder.file()).unwrap().streams().unwrap();
    streams.iter().find(|stream| stream.kind == kind && stream.name == name).map_or(0, |stream| stream.count)
}

// ---- records -----------------------------------------------------------------------------------------

#[test]
fn what_was_appended_is_there_when_the_file_is_opened_again() {
    let folder = Folder::new();
    let broker = open(&folder);
    let declare = |broker: &Broker| -> Log<String> {
        broker.log("lines").partitions(3).keyed_by(|line: &String| line.len()).durable(SYNC).declare().unwrap()
    };
    let log = declare(&broker);
    let first = Message::new("one".to_string()).with_id(4711).with_key("user-7").with_header("tenant", "acme");
    log.append(first.with_header("trace", "x\"y")).unwrap();
    log.append_batch((0..50).map(|n| n.to_string())).unwrap();
    let topic: Topic<String> = broker.topic("work").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.publish("job.new", "by a topic".to_string()).unwrap();
    broker.transaction(|tx| tx.append(&log, "in a transaction".to_string()).map_err(Into::into)).unwrap();
    log.append_deferred("later".to_string()).wait().unwrap();
    let before = all(&log);
    assert_eq!((before.len(), log.len()), (54, 54));
    let after_a_kill = folder.killed();
    assert!(broker.shutdown(LIMIT).is_clean());
    assert_eq!(all(&log), before, "what is in memory can be read on");
    drop((broker, topic, log));

    for folder in [folder, after_a_kill] {
        let broker = open(&folder);
        let log = declare(&broker);
        assert_eq!(all(&log), before);
        let stats = log.stats();
        assert_eq!((stats.recovered, stats.appended, stats.retained), (54, 0, 54));
        let seven = log.partition_of("user-7");
        let end = log.end(seven).unwrap();
        let at = log.append(Message::new("two".to_string()).with_key("user-7")).unwrap();
        assert_eq!((at.partition, at.offset), (seven, end), "offsets go on");
        assert_eq!((log.stats().appended, log.stats().retained), (1, 55));
    }
}

#[test]
fn order_in_memory_is_that_of_the_file() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log: Log<String> = broker.log("lines").partitions(2).durable(BUFFERED).declare().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let log = log.clone();
            thread::spawn(move || {
                for n in 0..100 {
                    match n % 3 {
                        0 => drop(log.append(format!("{thread} {n}")).unwrap()),
                        1 => drop(log.append_deferred(format!("{thread} {n}"))),
                        _ => drop(log.append_batch([format!("{thread} {n}"), "more".into()]).unwrap()),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    flush(&broker);
    eventually("all are there", || log.len() == 8 * 133);
    let before = all(&log);
    let commits = broker.store().unwrap().stats();
    assert!(commits.commits < commits.batches, "they share commits: {commits:?}");
    drop((broker, log));
    let broker = open(&folder);
    let log: Log<String> = broker.log("lines").partitions(2).durable(BUFFERED).declare().unwrap();
    assert_eq!(all(&log), before);
    let times: Vec<_> = before.iter().map(|seen| (seen.partition, seen.offset, seen.published_at)).collect();
    assert!(times.windows(2).all(|two| two[0].0 != two[1].0 || two[0].2 <= two[1].2), "times never go back");
}

#[test]
fn a_batch_is_one_commit_and_deferred_appends_keep_their_order() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log: Log<u64> = broker.log("numbers").partitions(4).durable(SYNC).declare().unwrap();
    let before = broker.store().unwrap().stats().commits;
    assert_eq!(log.append_batch((0..1000).map(|n| Message::new(n).with_key(n.to_string()))).unwrap().len(), 1000);
    assert_eq!(broker.store().unwrap().stats().commits, before + 1);
    assert!(log.append_batch(Vec::<u64>::new()).unwrap().is_empty());

    let tickets: Vec<_> = (0..1000).map(|n| log.append_deferred(Message::new(n).with_key("one"))).collect();
    let offsets: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait().unwrap().offset).collect();
    assert!(offsets.windows(2).all(|two| two[1] == two[0] + 1));
}

#[test]
fn a_reader_that_sleeps_hears_of_an_append_that_nobody_waits_for() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let log = numbers(&broker);
        let group = log.group("g").start(Start::Earliest).unwrap();
        let (heard, hears) = std::sync::mpsc::channel();
        group.consumer().start(move |record: &Record<u64>| heard.send(***record).unwrap()).unwrap();
        let mut tickets = Vec::new();
        for n in 0..100 {
            // Kept, and not waited for.
            tickets.push(log.append_deferred(n));
            assert_eq!(hears.recv().unwrap(), n);
        }
        assert!(broker.wait_idle(LIMIT), "nothing is under way although nobody has waited");
    });
}

#[test]
fn times_do_not_go_back_when_the_clock_has() {
    let folder = Folder::new();
    let late = ManualClock::new();
    late.advance(Duration::from_secs(3600));
    let (broker, _simulation) = simulated(&folder, &late);
    let log: Log<String> = broker.log("lines").durable(BUFFERED).declare().unwrap();
    log.append("late".to_string()).unwrap();
    drop((broker, log));

    let early = ManualClock::new();
    let (broker, _simulation) = simulated(&folder, &early);
    let log: Log<String> = broker.log("lines").durable(BUFFERED).declare().unwrap();
    let topic: Topic<String> = broker.topic("work").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    log.append("early".to_string()).unwrap();
    topic.publish("a", "early too".to_string()).unwrap();
    broker.transaction(|tx| tx.append(&log, "and this".to_string()).map_err(Into::into)).unwrap();
    let before = all(&log);
    assert!(before.iter().all(|seen| seen.published_at == before[0].published_at));
    drop((broker, topic, log));
    let (broker, _simulation) = simulated(&folder, &early);
    assert_eq!(all(&broker.log("lines").durable(BUFFERED).declare().unwrap()), before);
    let stored = broker.store().unwrap().reader().unwrap();
    let times: Vec<u64> = {
        let stream = stored.stream("log", "lines/0").unwrap().unwrap();
        stored.read(stream.id, 0, Limit::items(9)).unwrap().iter().map(|row| row.item.published_at).collect()
    };
    assert!(times.windows(2).all(|two| two[0] == two[1]), "{times:?}");
}

#[test]
fn a_place_that_somebody_else_has_taken_is_left_out() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log = numbers(&broker);
    let group = log.group("g").start(Start::Earliest).unwrap();
    log.append(0).unwrap();
    let store = broker.store().unwrap();
    let insert = || {
        let stream = store.reader().unwrap().stream("log", "numbers/0").unwrap().unwrap();
        let item = postroom::store::Item { payload: b"77".to_vec(), ..Default::default() };
        store.commit(postroom::store::Batch::new().insert(stream.id, item), BUFFERED).unwrap();
    };
    insert();
    broker.transaction(|tx| tx.append(&log, 2).map_err(Into::into)).unwrap();
    insert();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.publish("a", 4).unwrap();
    insert();
    assert_eq!(log.append(6).unwrap().offset, 6);
    assert_eq!((offsets(&log), rest(&group)), (vec![(0, 0), (2, 2), (4, 4), (6, 6)], vec![0, 2, 4, 6]));
    drop((broker, log, group, topic));
    let expected = (0..7).map(|at| (at, if at % 2 == 0 { at } else { 77 })).collect::<Vec<_>>();
    assert_eq!(offsets(&numbers(&open(&folder))), expected);
}

// ---- groups ------------------------------------------------------------------------------------------

#[test]
fn a_group_goes_on_where_it_had_committed_whatever_its_start() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log = numbers(&broker);
    log.append_batch(0..10).unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    group.commit(0, 4).unwrap();
    log.group("back").start(Start::Latest).unwrap().seek(0, 2).unwrap();
    log.group("untouched").start(Start::Offset(7)).unwrap();
    assert!(broker.shutdown(LIMIT).stored.iter().any(|left| left.queue == "numbers/g" && left.ready == 5));
    drop((broker, log, group));

    let broker = open(&folder);
    let log = numbers(&broker);
    for start in [Start::Latest, Start::Earliest, Start::Offset(99)] {
        assert_eq!(log.group("g").start(start).unwrap().committed(0), Ok(5));
    }
    let next = |name: &str| rest(&log.group(name).start(Start::Latest).unwrap());
    assert_eq!((next("g"), next("back"), next("untouched")), ((5..10).collect(), (2..10).collect(), vec![7, 8, 9]));
    assert!(next("new").is_empty());
}

#[test]
fn where_a_new_group_begins_survives_a_kill() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log = numbers(&broker);
    log.append_batch(0..10).unwrap();
    log.group("g").start(Start::Latest).unwrap();
    log.append_batch(10..13).unwrap();
    let after = folder.killed();
    let broker = open(&after);
    let log = numbers(&broker);
    // Latest again would lose what came since.
    assert_eq!(rest(&log.group("g").start(Start::Latest).unwrap()), [10, 11, 12]);
}

#[test]
fn what_consumers_commit_is_noted_soon_and_in_few_writes() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log = numbers(&broker);
    log.append_batch(0..20_000).unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let before = broker.store().unwrap().stats().batches;
    group.consumer().start(|_: &Record<u64>| ()).unwrap();
    assert!(broker.wait_idle(LIMIT));
    flush(&broker);
    let notes = broker.store().unwrap().stats().batches - before;
    assert!(notes < 5_000, "{notes} notes of 20,000 commits");
    let after = folder.killed();
    let broker = open(&after);
    assert_eq!(numbers(&broker).group("g").start(Start::Earliest).unwrap().lag(), 0);
}

#[test]
fn a_removed_group_is_forgotten_and_so_is_one_that_was_never_started_again() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log = numbers(&broker);
    log.append_batch(0..5).unwrap();
    for name in ["one", "other"] {
        log.group(name).start(Start::Earliest).unwrap().commit(0, 2).unwrap();
    }
    log.remove_group("one").unwrap();
    assert_eq!(log.group("one").start(Start::Latest).unwrap().committed(0), Ok(5));
    log.remove_group("one").unwrap();
    drop((broker, log));

    let broker = open(&folder);
    let log = numbers(&broker);
    assert_eq!(log.group("one").start(Start::Earliest).unwrap().committed(0), Ok(0));
    log.remove_group("other").unwrap();
    assert!(log.remove_group("other").unwrap_err().to_string().contains("there is none of that name"));
    drop((broker, log));
    let broker = open(&folder);
    assert_eq!(numbers(&broker).group("other").start(Start::Earliest).unwrap().committed(0), Ok(0));
}

#[test]
fn dead_letters_of_a_group_outlive_the_process_with_what_they_say() {
    let folder = Folder::new();
    let clock = ManualClock::new();
    let (broker, simulation) = simulated(&folder, &clock);
    let log = numbers(&broker);
    log.append(Message::new(7).with_key("k").with_header("h", "v")).unwrap();
    log.append(8).unwrap();
    let group = log.group("g").retry(Retry::fixed(Duration::from_secs(1)).max_attempts(3)).start(Start::Earliest);
    let group = group.unwrap();
    let fails = |record: &Record<u64>| if ***record == 7 { Err(postroom::Failure::transient("no")) } else { Ok(()) };
    group.consumer().start(fails).unwrap();
    simulation.advance(Duration::from_secs(10));
    assert_eq!((group.dead_letters().len(), group.lag()), (1, 0));
    flush(&broker);
    let after = folder.killed();
    drop((broker, simulation, log, group));

    for folder in [folder, after] {
        let (broker, _simulation) = simulated(&folder, &clock);
        let log = numbers(&broker);
        let group = log.group("g").retry(Retry::fixed(Duration::from_secs(1)).max_attempts(3));
        let group = group.start(Start::Earliest).unwrap();
        let letters = group.dead_letters().list(9);
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((**letter.message(), letter.queue(), letter.attempts().len()), (7, "numbers/g", 3));
        assert_eq!((letter.message().key(), letter.message().header("h")), (Some("k"), Some("v")));
        assert_eq!(group.lag(), 0, "and the record does not come again");
        drop(letters);
        log.remove_group("g").unwrap();
        let again: Queue<postroom::DeadLetter<u64>> = broker.queue("numbers/g.dead").find().unwrap();
        assert_eq!(again.len(), 1, "removing the group has left them");
    }
}

// ---- retention and compaction ------------------------------------------------------------------------

#[test]
fn retention_deletes_from_the_file_and_the_log_begins_where_it_began() {
    type Limited = fn(&Broker) -> Log<u64>;
    let by_count: Limited =
        |broker| broker.log("numbers").retain(Retention::count(40)).durable(BUFFERED).declare().unwrap();
    let by_bytes: Limited =
        |broker| broker.log("numbers").retain(Retention::bytes(400, |_| 10)).durable(BUFFERED).declare().unwrap();
    for declare in [by_count, by_bytes] {
        let folder = Folder::new();
        let broker = open(&folder);
        let log = declare(&broker);
        let behind = log.group("behind").start(Start::Earliest).unwrap();
        for n in 0..333 {
            log.append(n).unwrap();
        }
        log.append_batch(333..500).unwrap();
        let (before, oldest, end) = (offsets(&log), log.oldest(0), log.end(0));
        assert!((40..=50).contains(&before.len()), "{before:?}");
        flush(&broker);
        let after = folder.killed();
        drop((broker, log, behind));
        for folder in [folder, after] {
            assert_eq!(in_file(&folder, "log", "numbers/0"), before.len() as u64);
            let broker = open(&folder);
            let log = declare(&broker);
            assert_eq!((offsets(&log), log.oldest(0), log.end(0)), (before.clone(), oldest, end));
            let behind = log.group("behind").start(Start::Earliest).unwrap();
            let trimmed = behind.reader().try_recv().unwrap_err().to_string();
            assert!(trimmed.contains("offset 0 has been trimmed"), "{trimmed}");
            log.append_batch(500..600).unwrap();
            assert_eq!((log.len() + log.stats().trimmed, log.end(0)), (log.stats().recovered + 100, Ok(600)));
        }
    }
}

#[test]
fn what_is_too_old_is_gone_from_the_file_also_if_it_became_so_while_nobody_had_it_open() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let hour = Duration::from_secs(3600);
    let declare = |broker: &Broker| -> Log<u64> {
        broker.log("numbers").retain(Retention::age(hour)).durable(BUFFERED).declare().unwrap()
    };
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    log.append_batch(0..10).unwrap();
    simulation.advance(hour / 2);
    log.read(0, 9).unwrap();
    log.append_batch(10..20).unwrap();
    simulation.advance(hour / 2);
    assert_eq!((log.oldest(0), log.len()), (Ok(10), 10));
    flush(&broker);
    assert_eq!(in_file(&folder.killed(), "log", "numbers/0"), 10);
    drop((broker, simulation, log));

    clock.advance(hour);
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    assert_eq!((log.oldest(0), log.end(0), log.len()), (Ok(20), Ok(20), 0));
    log.append(20).unwrap();
    drop((broker, simulation, log));
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    assert_eq!(offsets(&log), [(20, 20)]);
    simulation.advance(hour);
    assert_eq!((log.oldest(0), log.len()), (Ok(21), 0), "what was found grows old too");
}

#[test]
fn compaction_deletes_from_the_file_and_leaves_the_same_gaps() {
    let folder = Folder::new();
    let declare =
        |broker: &Broker| -> Log<u64> { broker.log("numbers").compact().durable(BUFFERED).declare().unwrap() };
    let broker = open(&folder);
    let log = declare(&broker);
    let group = log.group("g").start(Start::Earliest).unwrap();
    for n in 0..5_000_u64 {
        let keyed = Message::new(n).with_key((n % 7).to_string());
        drop(log.append_deferred(if n % 1000 == 0 { Message::new(n) } else { keyed }));
    }
    flush(&broker);
    group.commit(0, 1).unwrap();
    log.compact_now();
    log.append(Message::new(5_000).with_key("0")).unwrap();
    let before = offsets(&log);
    assert_eq!(before.len(), 5 + 7 + 1, "{before:?}");
    flush(&broker);
    let after = folder.killed();
    drop((broker, log, group));
    for folder in [folder, after] {
        assert_eq!(in_file(&folder, "log", "numbers/0"), before.len() as u64);
        let broker = open(&folder);
        let log = declare(&broker);
        assert_eq!((offsets(&log), log.oldest(0)), (before.clone(), Ok(0)));
        let group = log.group("g").start(Start::Latest).unwrap();
        assert_eq!(rest(&group).len(), 12, "no gap counts as trimmed");
        assert_eq!(log.compact_now(), 1, "what was found is compacted as well");
        assert_eq!(offsets(&log).len(), 12);
    }
}

#[test]
fn a_tombstone_waits_for_groups_that_are_only_in_the_file() {
    let folder = Folder::new();
    let declare = |broker: &Broker| -> Log<Option<u64>> {
        broker.log("state").tombstone(Option::is_none).durable(BUFFERED).declare().unwrap()
    };
    let broker = open(&folder);
    let log = declare(&broker);
    let slow = log.group("slow").start(Start::Earliest).unwrap();
    let keyed = |payload: Option<u64>| Message::new(payload).with_key("k");
    log.append_batch([keyed(Some(1)), keyed(None)]).unwrap();
    log.append(Some(2)).unwrap();
    drop((broker, log, slow));

    let broker = open(&folder);
    let log = declare(&broker);
    log.compact_now();
    assert_eq!(log.read(0, 0).unwrap().offset(), 1, "its value has gone, the tombstone has not");
    let slow = log.group("slow").start(Start::Earliest).unwrap();
    log.compact_now();
    assert_eq!(log.read(0, 0).unwrap().offset(), 1);
    slow.commit(0, 1).unwrap();
    assert_eq!(log.compact_now(), 1);
    drop((broker, log, slow));
    assert_eq!(declare(&open(&folder)).len(), 1);
}

// ---- all or none -------------------------------------------------------------------------------------

struct Office {
    broker: Broker,
    topic: Topic<u64>,
    queue: Queue<u64>,
    in_memory: Log<u64>,
    log: Log<u64>,
    other: Log<u64>,
}

fn office(folder: &Folder) -> Office {
    let broker = open(folder);
    let check_back = postroom::CheckBack::new(|_: &Message<u64>| Resolution::Unknown);
    let topic: Topic<u64> = broker.topic("work").check_back(check_back).declare().unwrap();
    let queue: Queue<u64> = broker.queue("jobs").durable(BUFFERED).declare().unwrap();
    let in_memory: Log<u64> = broker.log("in memory").declare().unwrap();
    let log = numbers(&broker);
    let other: Log<u64> = broker.log("other").partitions(3).durable(SYNC).declare().unwrap();
    for log in [&in_memory, &log, &other] {
        topic.bind(log, "#").unwrap();
    }
    topic.bind(&queue, "#").unwrap();
    Office { broker, topic, queue, in_memory, log, other }
}

impl Office {
    fn lens(&self) -> [u64; 4] {
        [self.queue.len() as u64, self.in_memory.len(), self.log.len(), self.other.len()]
    }
}

#[test]
fn one_commit_reaches_every_durable_queue_and_log() {
    let folder = Folder::new();
    let office = office(&folder);
    let commits = || office.broker.store().unwrap().stats().commits;
    let before = commits();
    assert_eq!(office.topic.publish("a", 1).unwrap().routed(), 4);
    assert_eq!((commits() - before, office.lens()), (1, [1; 4]));
    let sent = office.broker.transaction(|tx| {
        tx.publish(&office.topic, "a", 2)?;
        tx.append(&office.log, 3)?;
        tx.append(&office.in_memory, 3)?;
        tx.append(&office.other, Message::new(4).with_key("k"))?;
        tx.send(&office.queue, 5)?;
        Ok(())
    });
    sent.unwrap();
    assert_eq!((commits() - before, office.lens()), (2, [3; 4]));
    office.topic.prepare("a", 6).unwrap().commit().unwrap();
    office.topic.publish_deferred("a", 7).wait().unwrap();
    assert_eq!((commits() - before, office.lens()), (4, [5; 4]));
    assert_eq!(offsets(&office.log), [(0, 1), (1, 2), (2, 3), (3, 6), (4, 7)]);
    let before = offsets(&office.log);
    let after = folder.killed();
    drop(office);
    for folder in [folder, after] {
        let broker = open(&folder);
        assert_eq!(offsets(&numbers(&broker)), before);
        let other: Log<u64> = broker.log("other").partitions(3).durable(SYNC).declare().unwrap();
        let queue: Queue<u64> = broker.queue("jobs").durable(BUFFERED).declare().unwrap();
        assert_eq!((other.len(), queue.len()), (5, 5));
    }
}

#[test]
fn a_durable_half_message_reaches_a_log_in_the_commit_that_ends_it() {
    let folder = Folder::new();
    let declare = |broker: &Broker| -> (Topic<u64>, Log<u64>) {
        let check_back = postroom::CheckBack::new(|_: &Message<u64>| Resolution::Unknown).durable(BUFFERED);
        let topic = broker.topic("t").check_back(check_back).declare().unwrap();
        let log = numbers(broker);
        topic.bind(&log, "#").unwrap();
        (topic, log)
    };
    let broker = open(&folder);
    let (topic, log) = declare(&broker);
    let half = topic.prepare("a", 7).unwrap();
    let before = broker.store().unwrap().stats().commits;
    half.commit().unwrap();
    assert_eq!((broker.store().unwrap().stats().commits - before, log.len()), (1, 1));
    let after = folder.killed();
    drop((broker, topic, log));
    let broker = open(&after);
    let (topic, log) = declare(&broker);
    assert_eq!((offsets(&log), topic.halves().len()), (vec![(0, 7)], 0));
}

#[test]
fn a_log_alone_behind_a_topic_takes_it_durably() {
    let folder = Folder::new();
    let broker = open(&folder);
    let (topic, log): (Topic<u64>, _) = (broker.topic("t").declare().unwrap(), numbers(&broker));
    topic.bind(&log, "#").unwrap();
    let listener = topic.subscribe().open().unwrap();
    assert_eq!(topic.publish("a", 1).unwrap().routed(), 1);
    assert_eq!(**listener.recv().unwrap(), 1);
    drop(listener);
    assert_eq!(topic.publish("a", 2).unwrap().routed(), 1);
    assert_eq!(topic.publish_batch("a", [3, 4]).unwrap(), 2);
    broker.store().unwrap().close().unwrap();
    let refused = topic.publish("a", 5).unwrap_err();
    assert!(matches!(refused, PublishError::NotStored(_)), "{refused}");
    assert!(refused.to_string().contains("log \"numbers\""), "{refused}");
    assert_eq!(*refused.into_message(), 5);
    drop((broker, topic, log));
    assert_eq!(offsets(&numbers(&open(&folder))), [(0, 1), (1, 2), (2, 3), (3, 4)]);
}

#[test]
fn what_the_file_does_not_take_nobody_sees_and_it_comes_back() {
    let folder = Folder::new();
    let office = office(&folder);
    let Office { broker, topic, log, .. } = &office;
    log.append(0).unwrap();
    let reader = log.group("g").start(Start::Earliest).unwrap();
    let before = office.lens();
    broker.store().unwrap().close().unwrap();
    let refused = log.append(Message::new(1).with_key("k")).unwrap_err();
    assert!(matches!(&refused, AppendError::NotStored(refused) if refused.store_error() == Some(&StoreError::Closed)));
    let message = refused.into_message();
    assert_eq!((*message, message.key(), message.attempt()), (1, Some("k"), 0));
    assert!(matches!(log.append_deferred(2).wait(), Err(AppendError::NotStored(_))));
    let refused = log.append_batch([3, 4, 5]).unwrap_err();
    assert_eq!((refused.accepted, *refused.cause.into_message(), refused.rest.len()), (0, 3, 2));
    assert_eq!(*topic.publish("a", 6).unwrap_err().into_message(), 6);
    let refused = broker.transaction(|tx| tx.append(log, 7).map_err(Into::into)).unwrap_err();
    let TransactionError::Refused(unpublished) = &refused else { panic!("{refused}") };
    assert!(matches!(unpublished.why(), Obstacle::NotStored(_)), "{refused}");
    assert_eq!(refused.into_transaction().unwrap().len(), 1);
    let half = topic.prepare("a", 8).unwrap();
    half.commit().unwrap_err().into_half().unwrap().rollback().unwrap();
    assert_eq!((office.lens(), rest(&reader)), (before, vec![0]));
    assert!(broker.wait_idle(LIMIT), "and nothing is promised any more");
}

// ---- codecs ------------------------------------------------------------------------------------------

/// Refuses 13, panics at 14.
struct Superstitious;

impl Codec<u64> for Superstitious {
    fn name(&self) -> &str {
        "superstitious"
    }
    fn encode(&self, n: &u64) -> Result<Vec<u8>, CodecError> {
        match n {
            13 => Err("thirteen".into()),
            14 => panic!("on purpose"),
            n => Ok(n.to_string().into_bytes()),
        }
    }
    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        Ok(std::str::from_utf8(bytes)?.parse()?)
    }
}

#[test]
fn what_cannot_be_encoded_comes_back_and_costs_nobody_else() {
    quiet();
    let folder = Folder::new();
    let broker = open(&folder);
    let log: Log<u64> = broker.log("numbers").durable_with(BUFFERED, Superstitious).declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    for n in [13, 14] {
        assert!(matches!(log.append(n), Err(AppendError::Unencodable(refused)) if **refused == n));
        assert!(matches!(log.append_deferred(n).wait(), Err(AppendError::Unencodable(_))));
        assert!(matches!(topic.publish("a", n), Err(PublishError::Unencodable(refused)) if **refused == n));
        let refused = log.append_batch([1, n, 2]).unwrap_err();
        assert_eq!((refused.accepted, *refused.cause.into_message()), (0, n));
        assert_eq!(refused.rest.iter().map(|message| **message).collect::<Vec<_>>(), [1, 2]);
        let refused = broker.transaction(|tx| {
            tx.append(&log, 1)?;
            tx.append(&log, n).map_err(Into::into)
        });
        assert!(
            matches!(refused, Err(TransactionError::Refused(why)) if matches!(why.why(), Obstacle::Unencodable(_)))
        );
    }
    assert!(log.is_empty() && broker.wait_idle(LIMIT));
    assert_eq!(log.append(1).unwrap().offset, 0, "no offset was given for them");
}

#[test]
fn what_cannot_be_decoded_is_put_apart_and_leaves_a_gap() {
    let folder = Folder::new();
    let broker = open(&folder);
    log_of_words(&broker).append_batch(["1", "two", "3", "four"].map(str::to_owned)).unwrap();
    drop(broker);

    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = Arc::clone(&told);
    let hook = move |event: &Event| {
        if let Event::Undecodable { queue, message, .. } = event {
            tells.lock().unwrap().push((queue.clone(), message.get()));
        }
    };
    let numbers = |broker: &Broker| -> Log<u64> {
        let upgrade = |_: u32, bytes: &[u8]| Ok(serde_json::from_slice::<String>(bytes)?.parse()?);
        broker.log("words").durable(BUFFERED).schema(1, upgrade).declare().unwrap()
    };
    let broker = Broker::builder().store(folder.file()).on_event(hook).build().unwrap();
    let log = numbers(&broker);
    assert_eq!((offsets(&log), log.end(0)), (vec![(0, 1), (2, 3)], Ok(4)));
    assert_eq!(told.lock().unwrap().iter().map(|(queue, _)| queue.as_str()).collect::<Vec<_>>(), ["words"; 2]);
    let group = log.group("g").start(Start::Earliest).unwrap();
    group.consumer().start(|_: &Record<u64>| ()).unwrap();
    assert_eq!(log.append(5).unwrap().offset, 4);
    assert!(broker.wait_idle(LIMIT));
    assert_eq!((group.lag(), group.stats().delivered, group.stats().skipped), (0, 3, 0));
    drop((broker, log, group));
    assert_eq!(in_file(&folder, "undecodable", "words/0"), 2);
    let broker = open(&folder);
    assert_eq!(offsets(&numbers(&broker)), [(0, 1), (2, 3), (4, 5)]);
    assert_eq!(told.lock().unwrap().len(), 2, "told once");
}

fn log_of_words(broker: &Broker) -> Log<String> {
    broker.log("words").durable(BUFFERED).declare().unwrap()
}

#[test]
fn sizes_and_keys_are_found_out_by_whoever_appends() {
    let folder = Folder::new();
    let broker = open(&folder);
    let me = thread::current().id();
    let size = move |_: &u64| {
        assert_eq!(thread::current().id(), me, "on purpose");
        8
    };
    let queue: Queue<u64> = broker.queue("jobs").durable(BUFFERED).declare().unwrap();
    let wide = Retention::bytes(1 << 20, size);
    let in_memory: Log<u64> = broker.log("in memory").retain(wide.clone()).declare().unwrap();
    let log: Log<u64> = broker.log("numbers").retain(wide).durable(BUFFERED).declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    topic.bind(&in_memory, "#").unwrap();
    topic.bind(&log, "#").unwrap();
    quiet();
    log.append(1).unwrap();
    topic.publish("a", 2).unwrap();
    let sent = broker.transaction(|tx| {
        tx.send(&queue, 3)?;
        tx.append(&in_memory, 3)?;
        tx.append(&log, 3)?;
        tx.publish(&topic, "a", 4)?;
        Ok(())
    });
    sent.unwrap();
    assert_eq!((log.len(), in_memory.len()), (4, 3));
}

// ---- set-up and what is said about it ----------------------------------------------------------------

#[test]
fn what_does_not_fit_the_file_is_refused_with_both_sides() {
    let folder = Folder::new();
    let refused = Broker::new().log::<u64>("numbers").durable(BUFFERED).declare().unwrap_err().to_string();
    assert!(refused.contains("there is no file to keep it in"), "{refused}");
    let broker = open(&folder);
    let four: Log<u64> = broker.log("numbers").partitions(4).durable(BUFFERED).declare().unwrap();
    four.append_batch(0..4).unwrap();
    let again = |mode| broker.log::<u64>("numbers").partitions(4).durable(mode).declare();
    assert!(again(BUFFERED).is_ok());
    let refused = again(SYNC).unwrap_err().to_string();
    assert!(refused.contains("it exists durable, Buffered, asked for durable, Sync"), "{refused}");
    let refused = broker.log::<u64>("numbers").partitions(4).declare().unwrap_err().to_string();
    assert!(refused.contains("asked for in memory only"), "{refused}");
    drop((broker, four));

    let broker = open(&folder);
    let refused = broker.log::<u64>("numbers").partitions(2).durable_with(BUFFERED, Superstitious).declare();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("it has 4 partitions in the file, asked for 2"), "{refused}");
    assert!(refused.contains(r#"its codec in the file is "json", asked for "superstitious""#), "{refused}");
    let refused = broker.log::<u64>("x").schema(1, |_, _| Err("no".into())).declare().unwrap_err().to_string();
    assert!(refused.contains("schema without durable before it"), "{refused}");
    let four: Log<u64> = broker.log("numbers").partitions(4).durable(SYNC).declare().unwrap();
    assert_eq!(four.len(), 4, "a refusal has changed nothing");
    broker.shutdown(Duration::ZERO);
    assert!(broker.log::<u64>("late").durable(SYNC).declare().is_err());
    assert!(matches!(four.append(1), Err(AppendError::Closed(_))));
}

#[test]
fn declared_by_many_at_once_it_is_one_log() {
    within(LIMIT, || {
        let folder = Folder::new();
        numbers(&open(&folder)).append_batch(0..3000).unwrap();
        let broker = open(&folder);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let broker = broker.clone();
                thread::spawn(move || {
                    let log = numbers(&broker);
                    log.append(1).unwrap();
                    log.group("g").start(Start::Earliest).unwrap()
                })
            })
            .collect();
        let groups: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(numbers(&broker).len(), 3008);
        groups[0].commit(0, 9).unwrap();
        assert!(groups.iter().all(|group| group.committed(0) == Ok(10)));
    });
}

#[test]
fn it_says_that_it_is_durable_and_the_inspector_shows_its_partitions() {
    let folder = Folder::new();
    let broker = open(&folder);
    let log: Log<u64> = broker.log("numbers").partitions(2).durable(SYNC).declare().unwrap();
    let said = broker.describe().to_string();
    assert!(said.contains("2 partitions, keeps everything, durable: synced before Ok"), "{said}");
    let group = log.group("g").start(Start::Earliest).unwrap();
    assert!(broker.describe().to_string().contains("queue \"numbers/g.dead\""));
    log.append_batch(["a", "b", "c"].map(|key| Message::new(1).with_key(key))).unwrap();
    let report = broker.shutdown(LIMIT);
    assert!(report.is_clean() && report.undelivered.is_empty(), "{report}");
    assert_eq!((report.stored[0].queue.as_str(), report.stored[0].ready), ("numbers/g", 3));
    drop((broker, log, group));
    let inspector = Inspector::open(folder.file()).unwrap();
    let streams = inspector.streams().unwrap();
    let logs: Vec<_> = streams.iter().filter(|stream| stream.kind == "log").collect();
    assert_eq!(logs.len(), 2);
    assert_eq!(logs.iter().map(|stream| stream.count).sum::<u64>(), 3);
    assert!(logs.iter().all(|stream| stream.settings == r#"{"codec":"json","partitions":2}"#));
    let marks = inspector.look(|reader| reader.marks(logs[0].id, None, 9)).unwrap();
    assert_eq!(marks, [(b"group/g".to_vec(), b"0".to_vec())]);
    let rows = inspector.look(|reader| reader.read_ready(logs[0].id, 0, Limit::items(9))).unwrap();
    assert_eq!(rows.len() as u64, logs[0].count, "nothing in a log rests");
}

#[test]
fn a_slow_file_is_waited_for_without_anybody_else_waiting() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = Broker::builder().store_with(folder.file(), Options::new().queue_bytes(1)).build().unwrap();
        let log = numbers(&broker);
        let group = log.group("g").start(Start::Earliest).unwrap();
        group.consumer().workers(2).start(|_: &Record<u64>| ()).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let log = log.clone();
                thread::spawn(move || (0..200).for_each(|n| drop(log.append_deferred(n))))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(broker.shutdown(LIMIT).is_clean());
        assert_eq!((log.len(), group.lag()), (800, 0));
    });
}
