//! Calls to the disk fail under a durable queue: whoever publishes hears of it with the message, and nothing that was
//! answered is lost.
#![allow(missing_docs)]

mod common;

use common::{CHANGES, Folder};
use faults::{Call, Disk, Fault, Plan};
use postroom::store::{Durability, Options, StoreError};
use postroom::{Broker, Delivery, PublishError, Queue, Topic};
use std::collections::BTreeSet;
use std::time::Duration;

fn open(folder: &Folder, disk: &Disk) -> (Broker, Topic<u64>, Queue<u64>, Queue<u64>) {
    let options = Options::new().vfs(disk.name()).wal_bytes(60_000).lazy_delay(Duration::ZERO);
    let broker = Broker::builder().store_with(folder.file(), options).build().unwrap();
    let queue = broker.queue("numbers").durable(Durability::Sync).declare().unwrap();
    let memory: Queue<u64> = broker.queue("memory").declare().unwrap();
    let topic: Topic<u64> = broker.topic("work").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    topic.bind(&memory, "#").unwrap();
    (broker, topic, queue, memory)
}

/// Publishes; what was answered with `Ok`, and why the others were refused.
fn publish(topic: &Topic<u64>, numbers: std::ops::Range<u64>) -> (BTreeSet<u64>, Vec<StoreError>) {
    let (mut taken, mut errors) = (BTreeSet::new(), Vec::new());
    for n in numbers {
        match topic.publish("n", n) {
            Ok(_) => _ = taken.insert(n),
            Err(PublishError::NotStored(refused)) => {
                assert_eq!(**refused, n, "the message comes back");
                errors.push(refused.store_error().unwrap().clone());
            }
            Err(other) => panic!("{other}"),
        }
    }
    (taken, errors)
}

fn numbers(queue: &Queue<u64>) -> BTreeSet<u64> {
    queue.list(usize::MAX).iter().map(|message| **message).collect()
}

#[test]
fn after_a_failed_write_or_sync_no_publish_is_ok_and_reopening_has_all_that_was() {
    let mut broke = 0;
    for after in (0..80).step_by(3) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let (broker, topic, queue, memory) = open(&folder, &disk);
        disk.fail(Plan { calls: CHANGES, after, times: Some(1), fault: Fault::Io });
        let (taken, errors) = publish(&topic, 0..40);
        if let Some(first) = errors.first() {
            broke += 1;
            assert!(matches!(first, StoreError::Io(_)), "{first}");
            assert_eq!(errors.len(), 40 - taken.len());
            assert!(taken.iter().all(|&n| n < taken.len() as u64), "no Ok after the first refusal");
            assert_eq!(broker.stats().file.unwrap().state, "broken");
        }
        assert_eq!((numbers(&queue), numbers(&memory)), (taken.clone(), taken.clone()), "all or none");
        drop((broker, topic, queue, memory));
        let (_broker, _topic, queue, _memory) = open(&folder, &Disk::new());
        assert!(taken.is_subset(&numbers(&queue)), "call {after}: something answered is gone");
    }
    assert!(broke > 10, "only {broke} of the runs met a failure");
}

#[test]
fn a_full_disk_refuses_publishes_and_takes_them_again_once_there_is_space() {
    for after in (0..60).step_by(7) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let (broker, topic, queue, memory) = open(&folder, &disk);
        let (mut taken, none) = publish(&topic, 0..10);
        assert_eq!(none, []);
        queue.recv().unwrap().ack().unwrap();
        disk.fail(Plan { calls: &[Call::Write], after, times: None, fault: Fault::Full });
        let (during, errors) = publish(&topic, 10..60);
        assert!(!errors.is_empty() && errors.iter().all(|error| matches!(error, StoreError::DiskFull(_))));
        assert_eq!(broker.stats().file.unwrap().state, "failing");
        queue.recv().unwrap().ack().unwrap();
        queue.recv().unwrap().dead_letter("no").unwrap();
        disk.heal();
        let (afterwards, none) = publish(&topic, 60..70);
        assert_eq!(none, []);
        assert_eq!(broker.stats().file.unwrap().state, "healthy");
        taken.extend(during.into_iter().chain(afterwards));
        assert_eq!(numbers(&memory), taken);
        assert!(broker.wait_idle(Duration::from_secs(30)));
        assert_eq!((queue.stats().unaccounted(), queue.dead_letters().len()), (0, 1));
        drop((broker, topic, queue, memory));

        let (_broker, _topic, queue, _memory) = open(&folder, &Disk::new());
        let mut found = numbers(&queue);
        // Given up on while the disk was full: a dead letter in memory, and in the file where it was, or moved.
        found.extend(queue.dead_letters().list(9).iter().map(|letter| **letter.message()));
        taken.retain(|&n| n > 1);
        assert_eq!(found, taken, "full after {after} writes");
    }
}

/// Holds what it is given; nothing is written meanwhile.
fn take_all(queue: &Queue<u64>, held: &mut Vec<Delivery<u64>>) {
    while let Ok(delivery) = queue.try_recv() {
        held.push(delivery);
    }
}

#[test]
fn a_backlog_that_could_not_be_read_is_read_once_the_disk_answers_again() {
    const BACKLOG: u64 = 6000;
    let (folder, disk) = (Folder::new(), Disk::new());
    let (broker, _topic, queue, _memory) = open(&folder, &disk);
    queue.send_batch(0..BACKLOG).unwrap();
    drop((broker, queue, _topic, _memory));

    // On a thread of its own, since a scheduler that hangs takes whoever looks at the queue along.
    let (tell, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (_broker, _topic, queue, _memory) = open(&folder, &disk);
        let mut held = Vec::new();
        disk.fail(Plan { calls: &[Call::Read], after: 0, times: None, fault: Fault::Io });
        take_all(&queue, &mut held);
        let before = held.len() as u64;
        assert!(before < BACKLOG && disk.failed() > 0, "{before} were read, {} reads failed", disk.failed());
        disk.heal();
        while let Ok(delivery) = queue.recv_timeout(Duration::from_secs(10)) {
            held.push(delivery);
            take_all(&queue, &mut held);
            if held.len() as u64 == BACKLOG {
                break;
            }
        }
        tell.send(held.iter().map(|delivery| ***delivery).collect::<Vec<u64>>()).unwrap();
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    });
    let found = hear.recv_timeout(Duration::from_secs(60)).expect("it goes on within a second or so");
    assert_eq!(found, (0..BACKLOG).collect::<Vec<_>>());
}
