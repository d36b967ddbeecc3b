//! A durable queue with priorities of which most is only in the file.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::{eventually, within};
use postroom::store::Durability;
use postroom::{Broker, Expired, ManualClock, Message, Overflow, Queue, QueueBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

const LIMIT: Duration = Duration::from_secs(120);

fn open(folder: &Folder) -> Broker {
    Broker::open(folder.file()).expect("the file is free")
}

fn declare(broker: &Broker, with: impl FnOnce(QueueBuilder<u32>) -> QueueBuilder<u32>) -> Queue<u32> {
    let queue = broker.queue("q").capacity(100_000).priority_levels(3).durable(Durability::Buffered).window(4);
    with(queue).declare().unwrap()
}

fn queue(broker: &Broker) -> Queue<u32> {
    declare(broker, |queue| queue)
}

/// Its last digit is its priority.
fn message(n: u32) -> Message<u32> {
    Message::new(n).with_priority((n % 10) as u8)
}

fn all(queue: &Queue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| queue.try_recv().ok().map(|delivery| (**delivery, delivery.ack()).0)).collect()
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_by_key(|n| (std::cmp::Reverse((n % 10).min(2)), *n));
    numbers
}

#[test]
fn the_highest_level_goes_first_however_much_of_it_is_in_the_file() {
    let folder = Folder::new();
    let broker = open(&folder);
    let first = queue(&broker);
    // Those beyond the top count as the top.
    first.send_batch((0..300).map(message).collect::<Vec<_>>()).unwrap();
    assert_eq!((first.len(), *first.peek().unwrap()), (300, 2));
    let expected = sorted((0..300).collect());
    let begin: Vec<u32> = (0..50).map(|_| first.recv().unwrap()).map(|d| (**d, d.ack()).0).collect();
    assert_eq!(begin, expected[..50]);
    drop((first, broker));
    let broker = open(&folder);
    let queue = queue(&broker);
    assert_eq!((queue.len(), *queue.peek().unwrap()), (250, expected[50]));
    // One that comes now is behind all of its level, and ahead of all others.
    queue.send(message(1_001)).unwrap();
    let mut rest = expected[50..].to_vec();
    rest.push(1_001);
    assert_eq!(all(&queue), sorted(rest));
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
}

#[test]
fn at_the_start_of_a_clock_nothing_that_comes_back_is_taken_for_overdue() {
    let (folder, clock) = (Folder::new(), ManualClock::starting_at(SystemTime::UNIX_EPOCH));
    let (broker, _simulation) = simulated(&folder, &clock);
    let first = queue(&broker);
    first.send_batch((0..20).collect::<Vec<u32>>()).unwrap();
    let mut all: Vec<_> = first.recv_batch(20).unwrap().chain(std::iter::from_fn(|| first.try_recv().ok())).collect();
    all.remove(10).requeue().unwrap();
    flush(&broker);
    let folder = folder.killed();
    drop((all, first, broker));
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = queue(&broker);
    let (mut came, mut held) = (Vec::new(), Vec::new());
    while let Ok(delivery) = queue.try_recv() {
        came.push(**delivery);
        if **delivery == 10 && came.iter().filter(|n| **n == 10).count() == 1 {
            delivery.retry_after(Duration::ZERO).unwrap();
            flush(&broker);
        } else if **delivery != 10 {
            delivery.ack().unwrap();
        } else {
            // In the file it stays.
            held.push(delivery);
        }
    }
    assert_eq!(came.iter().filter(|n| **n == 10).count(), 2, "{came:?}");
    assert_eq!(came.len(), 21);
}

#[test]
fn a_share_for_the_low_ones_is_kept_to() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = declare(&broker, |queue| queue.low_priority_share(0.2));
    queue.send_batch((0..1_000).map(message).collect::<Vec<_>>()).unwrap();
    let first: Vec<u32> = (0..100).map(|_| queue.recv().unwrap()).map(|d| (**d, d.ack()).0).collect();
    assert_eq!(first.iter().filter(|n| **n % 10 == 0).count(), 20);
    assert_eq!(first.iter().filter(|n| **n % 10 >= 2).count(), 80);
}

#[test]
fn a_full_queue_drops_the_oldest_of_the_lowest_level() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = declare(&broker, |queue| queue.capacity(60).overflow(Overflow::DropOldest));
    queue.send_batch((0..60).map(message).collect::<Vec<_>>()).unwrap();
    queue.send(message(101)).unwrap();
    queue.send(message(102)).unwrap();
    let mut expected: Vec<u32> = (1..60).filter(|n| *n != 10).collect();
    expected.extend([101, 102]);
    assert_eq!((queue.len(), queue.stats().dropped), (60, 2));
    assert_eq!(all(&queue), sorted(expected));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn while_the_lowest_level_is_only_in_the_file_no_higher_one_gives_way() {
    let folder = Folder::new();
    let broker = open(&folder);
    let with = |queue: QueueBuilder<u32>| queue.capacity(60).overflow(Overflow::DropOldest).low_priority_share(0.5);
    let queue = declare(&broker, |queue| with(queue).window(1));
    queue.send_batch((0..60).map(message).collect::<Vec<_>>()).unwrap();
    // One of them is the only one of the lowest level in memory.
    let mut expected: Vec<u32> = (0..60).collect();
    for _ in 0..2 {
        let delivery = queue.recv().unwrap();
        expected.retain(|n| *n != **delivery);
        delivery.ack().unwrap();
    }
    queue.send_batch([101, 111].map(message).to_vec()).unwrap();
    expected.extend([101, 111]);
    queue.send(message(102)).unwrap();
    assert_eq!((queue.len(), queue.stats().dropped), (60, 1));
    let mut left = all(&queue);
    left.sort_unstable();
    let higher = |numbers: &[u32]| numbers.iter().copied().filter(|n| n % 10 > 0 && *n != 102).collect::<Vec<_>>();
    assert_eq!(higher(&left), higher(&expected));
}

#[test]
fn what_expires_in_the_file_makes_room_whatever_its_level() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = declare(&broker, |queue| queue.capacity(100).expired(Expired::Drop));
        queue.send(message(2)).unwrap();
        let brief = |n: u32| Message::new(n).with_ttl(Duration::from_millis(50));
        queue.send_batch((0..300).map(|n| brief(n * 10)).collect::<Vec<_>>()).unwrap();
        eventually("all have expired", || queue.stats().expired == 300);
        assert_eq!((queue.len(), queue.stats().unaccounted()), (1, 0));
    });
}

#[test]
fn a_backlog_can_be_purged_and_drained() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = queue(&broker);
    queue.send_batch((0..300).map(message).collect::<Vec<_>>()).unwrap();
    assert_eq!((queue.purge(), queue.len()), (300, 0));
    queue.send_batch((0..300).map(message).collect::<Vec<_>>()).unwrap();
    assert_eq!((queue.drain().len(), queue.len(), queue.stats().unaccounted()), (300, 0, 0));
}

#[test]
fn nothing_is_lost_or_comes_twice_while_many_send_and_take() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = queue(&broker);
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let queue = queue.clone();
                thread::spawn(move || {
                    for first in (0..2_000).step_by(20) {
                        let numbers = (first..first + 20).map(|n| sender * 2_000 + n);
                        queue.send_batch(numbers.map(message).collect::<Vec<_>>()).unwrap();
                    }
                })
            })
            .collect();
        let left = Arc::new(AtomicUsize::new(6_000));
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let (queue, left) = (queue.clone(), left.clone());
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    while left.load(Ordering::SeqCst) > 0 {
                        let Ok(delivery) = queue.recv_timeout(Duration::from_millis(50)) else { continue };
                        if **delivery % 7 == 0 && delivery.attempt() == 1 {
                            delivery.retry_after(Duration::ZERO).unwrap();
                            continue;
                        }
                        seen.push(**delivery);
                        delivery.ack().unwrap();
                        left.fetch_sub(1, Ordering::SeqCst);
                    }
                    seen
                })
            })
            .collect();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        let mut seen: Vec<u32> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..6_000).collect::<Vec<_>>());
        assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    });
}
