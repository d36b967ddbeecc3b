//! Interleavings of logs: appends, readers, commits, members, retention, compaction and the end, under a
//! scheduler that tries thousands of them. See `tests/shuttle.rs`.

#![cfg(shuttle)]
#![allow(missing_docs)]

mod common;

use common::interleavings::{SECOND, broker, explore};
use postroom::{Consumer, Group, Log, LogError, Message, Outcome, Record, Retention, Retry, Start};
use shuttle::thread::{self, JoinHandle};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What handlers have seen, by partition. No scheduling happens while it is locked, so a plain lock will do.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<usize, Vec<u64>>>>);

impl Seen {
    fn add(&self, partition: usize, offset: u64) {
        self.0.lock().unwrap().entry(partition).or_default().push(offset);
    }

    fn of(&self, partition: usize) -> Vec<u64> {
        self.0.lock().unwrap().get(&partition).cloned().unwrap_or_default()
    }

    fn assert_each_once_in_order<T: Send + Sync + 'static>(&self, log: &Log<T>) {
        for partition in 0..log.partitions() {
            let expected: Vec<_> = (0..log.end(partition).unwrap()).collect();
            assert_eq!(self.of(partition), expected, "partition {partition}");
        }
    }
}

fn consume(group: &Group<u64>, workers: usize, seen: &Seen) -> Consumer {
    let seen = seen.clone();
    let handler = move |record: &Record<u64>| seen.add(record.partition(), record.offset());
    group.consumer().workers(workers).start(handler).unwrap()
}

fn append(log: &Log<u64>, numbers: std::ops::Range<u64>) -> JoinHandle<()> {
    let log = log.clone();
    thread::spawn(move || numbers.for_each(|n| _ = log.append(n).unwrap()))
}

#[test]
fn members_read_what_is_appended_once_and_in_order() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").partitions(2).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let seen = Seen::default();
        consume(&group, 2, &seen);
        let appending = [append(&log, 0..2), append(&log, 2..4)];
        appending.into_iter().for_each(|a| a.join().unwrap());
        assert!(broker.shutdown(SECOND).is_clean());
        seen.assert_each_once_in_order(&log);
        assert_eq!(group.lag(), 0);
    });
}

#[test]
fn a_member_that_leaves_strands_no_partition() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let seen = Seen::default();
        let passing = consume(&group, 1, &seen);
        consume(&group, 1, &seen);
        let appending = append(&log, 0..3);
        passing.stop();
        appending.join().unwrap();
        assert!(broker.wait_idle(SECOND));
        assert_eq!(group.lag(), 0);
        seen.assert_each_once_in_order(&log);
        assert!(broker.shutdown(SECOND).is_clean());
    });
}

#[test]
fn a_paused_member_strands_no_partition_either() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").partitions(2).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let seen = Seen::default();
        let pausing = consume(&group, 1, &seen);
        consume(&group, 1, &seen).scale_to(2).unwrap();
        let appending = append(&log, 0..4);
        pausing.pause();
        appending.join().unwrap();
        assert!(broker.wait_idle(SECOND));
        assert_eq!(group.lag(), 0);
        seen.assert_each_once_in_order(&log);
    });
}

#[test]
fn a_reader_by_hand_and_workers_share_partitions_and_lose_nothing() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").partitions(2).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let seen = Seen::default();
        consume(&group, 1, &seen);
        let appending = append(&log, 0..4);
        let mut reader = group.reader();
        for commits in [true, false] {
            if let Ok(record) = reader.try_recv()
                && commits
            {
                seen.add(record.partition(), record.offset());
                group.commit(record.partition(), record.offset()).unwrap();
            }
        }
        drop(reader);
        appending.join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        seen.assert_each_once_in_order(&log);
    });
}

#[test]
fn a_reader_that_retention_overtakes_is_told_and_goes_on() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").retain(Retention::count(1)).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let appending = append(&log, 0..4);
        let mut reader = group.reader();
        let mut next = 0;
        while next < 4 {
            match reader.recv() {
                Ok(record) => {
                    assert_eq!(*record.payload(), record.offset());
                    assert!(record.offset() >= next);
                    next = record.offset() + 1;
                    group.commit(0, record.offset()).unwrap();
                }
                Err(LogError::Trimmed { oldest, .. }) => _ = group.seek(0, oldest),
                Err(other) => panic!("{other}"),
            }
        }
        appending.join().unwrap();
        assert_eq!(group.lag(), 0);
        drop(broker);
    });
}

#[test]
fn workers_that_retention_overtakes_count_what_they_missed() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").retain(Retention::count(1)).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let seen = Seen::default();
        consume(&group, 2, &seen);
        append(&log, 0..4).join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        let stats = group.stats();
        assert_eq!((stats.delivered + stats.skipped, stats.total_lag()), (4, 0));
        assert!(seen.of(0).windows(2).all(|two| two[0] < two[1]));
    });
}

#[test]
fn a_group_that_goes_back_reads_everything_again_whatever_is_being_committed() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        (0..3).for_each(|n| _ = log.append(n).unwrap());
        let seen = Seen::default();
        consume(&group, 2, &seen);
        group.rewind(Start::Earliest).unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(group.committed(0), Ok(3));
        let seen = seen.of(0);
        assert_eq!(seen[seen.len() - 3..], [0, 1, 2], "{seen:?}");
    });
}

/// Each step of a copy is what its key had, or has, so the copy is right if it ends right.
#[test]
fn compaction_takes_no_tombstone_from_a_group_that_goes_back() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<Option<u64>> = broker.log("l").tombstone(Option::is_none).declare().unwrap();
        let keyed = |key: &str, value: Option<u64>| Message::new(value).with_key(key);
        let group = log.group("g").start(Start::Earliest).unwrap();
        let copy: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let into = Arc::clone(&copy);
        let handler = move |record: &Record<Option<u64>>| {
            let (mut copy, key) = (into.lock().unwrap(), record.key().unwrap().to_owned());
            match record.payload() {
                Some(value) => _ = copy.insert(key, *value),
                None => _ = copy.remove(&key),
            }
        };
        log.append(keyed("a", Some(1))).unwrap();
        log.append(keyed("a", None)).unwrap();
        group.consumer().start(handler).unwrap();
        let compacting = [(); 2].map(|()| {
            let log = log.clone();
            thread::spawn(move || _ = log.compact_now())
        });
        let going_back = thread::spawn({
            let group = group.clone();
            move || _ = group.rewind(Start::Earliest).unwrap()
        });
        log.append(keyed("b", Some(2))).unwrap();
        compacting.into_iter().for_each(|c| c.join().unwrap());
        going_back.join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(*copy.lock().unwrap(), BTreeMap::from([("b".to_owned(), 2)]));
        let stats = log.stats();
        assert_eq!(stats.appended, stats.retained + stats.trimmed + stats.compacted);
    });
}

#[test]
fn shutdown_amid_appends_handles_what_was_accepted_and_ends_every_reader() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").partitions(2).declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let watching = log.group("watching").start(Start::Latest).unwrap();
        let seen = Seen::default();
        consume(&group, 1, &seen);
        let appending = thread::spawn({
            let log = log.clone();
            move || {
                let one = usize::from(log.append(0).is_ok());
                one + log.append_batch((1..3).map(|n| Message::new(n).with_key(format!("{n}")))).map_or(0, |b| b.len())
            }
        });
        let reading = thread::spawn(move || {
            let mut reader = watching.reader();
            while reader.recv().is_ok() {}
        });
        broker.shutdown(SECOND);
        let accepted = appending.join().unwrap();
        reading.join().unwrap();
        assert!([0, 1, 2, 3].contains(&accepted));
        assert_eq!((log.len(), group.lag()), (accepted as u64, 0));
        seen.assert_each_once_in_order(&log);
    });
}

#[test]
fn a_failing_record_comes_again_before_its_successors_whoever_has_it() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").declare().unwrap();
        let group = log.group("g").retry(Retry::immediate(2)).start(Start::Earliest).unwrap();
        let seen = Seen::default();
        let into = seen.clone();
        let handler = move |record: &Record<u64>| {
            if record.offset() == 0 && record.attempt() == 1 {
                return Outcome::Retry;
            }
            into.add(record.partition(), record.offset());
            Outcome::Ack
        };
        group.consumer().workers(2).start(handler).unwrap();
        append(&log, 0..3).join().unwrap();
        assert!(broker.shutdown(SECOND).is_clean());
        seen.assert_each_once_in_order(&log);
        assert_eq!((group.stats().retried, group.stats().dead_lettered), (1, 0));
    });
}

#[test]
fn a_group_is_removed_or_has_members_never_both() {
    explore(|| {
        let (broker, _) = broker();
        let log: Log<u64> = broker.log("l").declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        log.append(0).unwrap();
        let removing = thread::spawn({
            let log = log.clone();
            move || log.remove_group("g").is_ok()
        });
        let seen = Seen::default();
        let into = seen.clone();
        let started = group.consumer().start(move |record: &Record<u64>| into.add(0, record.offset()));
        let removed = removing.join().unwrap();
        assert_eq!(removed, started.is_err());
        assert!(broker.shutdown(SECOND).is_clean());
        assert_eq!(seen.of(0).len(), usize::from(!removed));
    });
}
