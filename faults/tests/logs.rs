//! Calls to the disk fail under a durable log: whoever appends hears of it with the message, nobody reads what is not
//! in the file, and neither a record nor a dead letter that a group has passed is gone.
#![allow(missing_docs)]

mod common;

use common::{CHANGES, Folder};
use faults::{Call, Disk, Fault, Plan};
use postroom::store::{Durability, Options, StoreError};
use postroom::{AppendError, Broker, Failure, Group, Log, Record, Retention, Retry, Start};
use std::collections::BTreeSet;
use std::time::Duration;

fn open(folder: &Folder, disk: &Disk) -> (Broker, Log<u64>, Group<u64>) {
    let options = Options::new().vfs(disk.name()).wal_bytes(60_000).lazy_delay(Duration::ZERO);
    let broker = Broker::builder().store_with(folder.file(), options).build().unwrap();
    let log: Log<u64> = broker.log("numbers").durable(Durability::Sync).declare().unwrap();
    let group = log.group("group").retry(Retry::none()).start(Start::Earliest).unwrap();
    (broker, log, group)
}

/// Appends; what was answered with `Ok`, and why the others were refused.
fn append(log: &Log<u64>, numbers: std::ops::Range<u64>) -> (Vec<u64>, Vec<StoreError>) {
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for n in numbers {
        match log.append(n) {
            Ok(_) => taken.push(n),
            Err(AppendError::NotStored(refused)) => {
                assert_eq!(**refused, n, "the message comes back");
                errors.push(refused.store_error().unwrap().clone());
            }
            Err(other) => panic!("{other}"),
        }
    }
    (taken, errors)
}

/// What a process that is killed now would leave behind.
fn killed(folder: &Folder) -> Folder {
    let copy = Folder::new();
    for (from, to) in [(folder.file(), copy.file()), (folder.log(), copy.log())] {
        std::fs::copy(from, to).unwrap();
    }
    copy
}

/// Each with its offset.
fn all(log: &Log<u64>) -> Vec<(u64, u64)> {
    let end = log.end(0).unwrap();
    (log.oldest(0).unwrap()..end).map(|at| (at, **log.read(0, at).unwrap())).collect()
}

fn placed(numbers: &[u64]) -> Vec<(u64, u64)> {
    (0..).zip(numbers.iter().copied()).collect()
}

#[test]
fn after_a_failed_write_or_sync_no_append_is_ok_and_reopening_has_all_that_was() {
    let mut broke = 0;
    for after in (0..80).step_by(3) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let (broker, log, group) = open(&folder, &disk);
        disk.fail(Plan { calls: CHANGES, after, times: Some(1), fault: Fault::Io });
        let (taken, errors) = append(&log, 0..40);
        if let Some(first) = errors.first() {
            broke += 1;
            assert!(matches!(first, StoreError::Io(_)), "{first}");
            assert_eq!(errors.len(), 40 - taken.len());
        }
        assert_eq!(all(&log), placed(&taken), "nobody reads what was refused");
        drop((broker, log, group));
        let (_broker, log, _group) = open(&folder, &Disk::new());
        let found = all(&log);
        assert_eq!(found[..taken.len()], placed(&taken), "call {after}: something answered is gone or elsewhere");
        // The first one that was refused may have got there before the failure.
        assert!(found.len() <= taken.len() + 1);
    }
    assert!(broke > 10, "only {broke} of the runs met a failure");
}

#[test]
fn a_full_disk_refuses_appends_and_gives_no_offset_for_them() {
    for after in (0..60).step_by(7) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let (broker, log, group) = open(&folder, &disk);
        let (mut taken, none) = append(&log, 0..10);
        assert_eq!(none, []);
        group.commit(0, 4).unwrap();
        disk.fail(Plan { calls: &[Call::Write], after, times: None, fault: Fault::Full });
        let (during, errors) = append(&log, 10..60);
        assert!(!errors.is_empty() && errors.iter().all(|error| matches!(error, StoreError::DiskFull(_))));
        group.commit(0, 7).unwrap();
        disk.heal();
        let (afterwards, none) = append(&log, 60..70);
        assert_eq!(none, []);
        taken.extend(during.into_iter().chain(afterwards));
        assert_eq!(all(&log), placed(&taken));
        drop((broker, log, group));

        let (_broker, log, group) = open(&folder, &Disk::new());
        assert_eq!((all(&log), group.committed(0)), (placed(&taken), Ok(8)), "full after {after} writes");
    }
}

#[test]
fn a_group_passes_no_record_whose_dead_letter_is_not_in_the_file() {
    for after in (0..40).step_by(5) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let (broker, log, group) = open(&folder, &disk);
        let (taken, _) = append(&log, 0..20);
        disk.fail(Plan { calls: &[Call::Write], after, times: None, fault: Fault::Full });
        let fails =
            |record: &Record<u64>| if record.is_multiple_of(3) { Err(Failure::permanent("no")) } else { Ok(()) };
        group.consumer().start(fails).unwrap();
        // What finds no room is tried again every second.
        let _ = broker.wait_idle(Duration::from_millis(300));
        disk.heal();
        // With this, what could not be noted before gets into the file.
        broker.store().unwrap().flush(Durability::Sync).unwrap();
        let copy = killed(&folder);
        drop((broker, log, group));

        let (_broker, log, group) = open(&copy, &Disk::new());
        let letters: BTreeSet<u64> = group.dead_letters().list(99).iter().map(|letter| **letter.message()).collect();
        let committed = group.committed(0).unwrap();
        let passed = all(&log).into_iter().filter(|(at, n)| *at < committed && n % 3 == 0);
        let missing: Vec<_> = passed.filter(|(_, n)| !letters.contains(n)).collect();
        assert_eq!(missing, [], "full after {after} writes, {committed} passed");
        assert_eq!(all(&log), placed(&taken));
    }
}

#[test]
fn what_retention_could_not_delete_for_want_of_space_is_deleted_later() {
    let (folder, disk) = (Folder::new(), Disk::new());
    let (broker, log, group) = open(&folder, &disk);
    let short: Log<u64> = broker.log("short").retain(Retention::count(20)).durable(Durability::Sync).declare().unwrap();
    append(&short, 0..100);
    disk.fail(Plan { calls: &[Call::Write], after: 0, times: None, fault: Fault::Full });
    assert!(append(&short, 100..110).0.is_empty());
    disk.heal();
    append(&short, 110..150);
    broker.store().unwrap().flush(Durability::Sync).unwrap();
    let streams = broker.store().unwrap().reader().unwrap().streams().unwrap();
    let stream = streams.iter().find(|stream| stream.name == "short/0").unwrap();
    assert_eq!((stream.count, stream.next), (short.len(), 140));
    drop((broker, log, group, short));
}
