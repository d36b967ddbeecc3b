//! Delayed messages of a durable queue, of which most are only in the file.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, simulated};
use common::within;
use postroom::store::Durability;
use postroom::store::rusqlite::Connection;
use postroom::{Broker, Expired, ManualClock, Message, Overflow, Queue, Rate, Retry, Simulation, Timer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const SECOND: Duration = Duration::from_secs(1);

struct World {
    folder: Folder,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        Self { folder: Folder::new(), clock: ManualClock::new() }
    }

    fn broker(&self) -> (Broker, Simulation) {
        simulated(&self.folder, &self.clock)
    }
}

fn queue(broker: &Broker) -> Queue<u32> {
    broker.queue("q").capacity(10_000).durable(Durability::Buffered).window(4).declare().unwrap()
}

fn later(n: u32) -> Message<u32> {
    Message::new(n).with_delay(n * SECOND)
}

fn all(queue: &Queue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| queue.try_recv().ok().map(|delivery| (**delivery, delivery.ack()).0)).collect()
}

#[test]
fn they_come_in_the_order_of_their_times_however_they_were_sent() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    let numbers = |step: u32| (0..100).map(move |n| 1 + n * step % 100);
    queue.send_batch(numbers(37).map(later).collect::<Vec<_>>()).unwrap();
    for n in numbers(53) {
        queue.send(later(n + 100)).unwrap();
    }
    assert_eq!((queue.delayed(), queue.len()), (200, 0));
    simulation.advance(50 * SECOND);
    assert_eq!((queue.delayed(), queue.len()), (150, 50));
    assert_eq!(all(&queue), (1..=50).collect::<Vec<_>>());
    simulation.advance(200 * SECOND);
    assert_eq!(queue.len(), 150, "all are counted");
    assert_eq!(all(&queue), (51..=200).collect::<Vec<_>>());
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn a_sooner_one_that_is_sent_later_does_not_wait_for_those_in_the_file() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    queue.send_batch((100..200).map(later).collect::<Vec<_>>()).unwrap();
    queue.send_batch((1..10).map(later).collect::<Vec<_>>()).unwrap();
    simulation.advance(10 * SECOND);
    assert_eq!(all(&queue), (1..10).collect::<Vec<_>>());
    let soonest: Vec<u32> = queue.list_delayed(2).iter().map(|(_, message)| **message).collect();
    assert_eq!(soonest, [100, 101]);
}

#[test]
fn who_waits_for_the_pace_of_its_key_makes_no_room_for_them() {
    let world = World::new();
    let open = |broker: &Broker| {
        let queue = broker.queue("q").capacity(10_000).ordered_by_key().rate_limit_per_key(Rate::per_second(1));
        queue.durable(Durability::Buffered).window(16).declare().unwrap()
    };
    let (broker, simulation) = world.broker();
    open(&broker).send_batch((1_000..1_100).map(later).collect::<Vec<_>>()).unwrap();
    drop((broker, simulation));
    let (broker, simulation) = world.broker();
    let queue: Queue<u32> = open(&broker);
    let in_memory = || queue.list_delayed(usize::MAX).len();
    assert_eq!(in_memory(), 8, "half a window");
    queue.send_batch((0..16).map(|n| Message::new(n).with_key("k"))).unwrap();
    for n in 0..16 {
        assert_eq!(all(&queue), [n]);
        simulation.advance(SECOND);
    }
    assert_eq!(in_memory(), 8);
    simulation.advance(2_000 * SECOND);
    assert_eq!(all(&queue), (1_000..1_100).collect::<Vec<_>>());
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn timers_are_found_wherever_the_others_are() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let first = queue(&broker);
    let handle = Timer::new();
    first.send(later(60).with_timer(&handle)).unwrap();
    first.send(later(61).with_timer("named")).unwrap();
    first.send_batch((1..50).map(later).collect::<Vec<_>>()).unwrap();
    first.send(later(62).with_timer("other")).unwrap();
    assert!(handle.is_pending() && handle.cancel() && !handle.cancel());
    simulation.advance(20 * SECOND);
    drop((first, broker, simulation));
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    assert_eq!((queue.delayed(), queue.len()), (31, 20));
    assert!(broker.cancel_timer("named"));
    simulation.advance(60 * SECOND);
    assert!(!broker.cancel_timer("other"), "it has fired");
    let mut came = all(&queue);
    // It was in memory, and most others were not.
    came.sort_unstable();
    assert_eq!(came, (1..50).chain([62]).collect::<Vec<_>>());
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn a_time_to_live_counts_from_when_they_are_due() {
    let world = World::new();
    let open = || {
        let (broker, simulation) = world.broker();
        let queue = broker.queue("q").ttl(5 * SECOND).expired(Expired::Drop).durable(Durability::Buffered).window(4);
        let queue: Queue<u32> = queue.declare().unwrap();
        (broker, simulation, queue)
    };
    let run = open();
    run.2.send_batch((1..40).map(later).collect::<Vec<_>>()).unwrap();
    drop(run);
    let (_broker, simulation, queue) = open();
    simulation.advance(20 * SECOND);
    assert_eq!((queue.delayed(), queue.len()), (19, 5), "{:?}", queue.stats());
    assert_eq!(all(&queue), (16..=20).collect::<Vec<_>>());
    simulation.advance(100 * SECOND);
    assert_eq!((queue.delayed(), queue.len(), queue.stats().expired), (0, 0, 34));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn attempts_and_what_failed_are_known_after_reopening() {
    let world = World::new();
    let open = || {
        let (broker, simulation) = world.broker();
        let queue = broker.queue("q").retry(Retry::fixed(30 * SECOND).max_attempts(9)).durable(Durability::Buffered);
        let queue: Queue<u32> = queue.window(4).declare().unwrap();
        (broker, simulation, queue)
    };
    let run = open();
    run.2.send_batch((1..40).map(later).collect::<Vec<_>>()).unwrap();
    run.1.advance(10 * SECOND);
    (0..10).for_each(|_| run.2.recv().unwrap().retry().unwrap());
    assert_eq!((run.2.delayed(), run.2.len()), (39, 0));
    drop(run);
    let (_broker, simulation, queue) = open();
    simulation.advance(100 * SECOND);
    let mut attempts = BTreeMap::new();
    while let Ok(delivery) = queue.try_recv() {
        attempts.insert(**delivery, delivery.attempt());
        delivery.ack().unwrap();
    }
    assert_eq!(attempts, (1..40).map(|n| (n, if n <= 10 { 2 } else { 1 })).collect());
}

/// Another message comes back, and goes, as often as it takes for what came back before to be old.
fn many_come_back(queue: &Queue<u32>) {
    for _ in 0..4 {
        queue.recv().unwrap().retry_after(Duration::ZERO).unwrap();
    }
    queue.recv().unwrap().ack().unwrap();
}

#[test]
fn what_is_in_hand_again_is_not_read_when_its_time_is_passed_over() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let first = queue(&broker);
    first.send_batch((1..=40).map(later).collect::<Vec<_>>()).unwrap();
    simulation.advance(100 * SECOND);
    drop((first, broker, simulation));
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    // It is due later than all that is overdue, and unread.
    queue.recv().unwrap().retry_after(Duration::ZERO).unwrap();
    let in_hand = queue.recv().unwrap();
    assert_eq!((**in_hand, in_hand.attempt()), (1, 2));
    many_come_back(&queue);
    queue.send_batch((41..=50).map(later).collect::<Vec<_>>()).unwrap();
    simulation.advance(100 * SECOND);
    assert_eq!(all(&queue), (3..=50).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.in_flight(), queue.stats().unaccounted()), (0, 1, 0));
    in_hand.ack().unwrap();
}

#[test]
fn what_waits_for_its_next_attempt_is_not_read_when_others_go_back_to_the_file() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    queue.send_batch([1, 2]).unwrap();
    queue.recv().unwrap().retry_after(50 * SECOND).unwrap();
    many_come_back(&queue);
    queue.send_batch((3..=100).rev().map(later).collect::<Vec<_>>()).unwrap();
    simulation.advance(200 * SECOND);
    let mut came = all(&queue);
    came.sort_unstable();
    assert_eq!(came, [1].into_iter().chain(3..=100).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.delayed(), queue.stats().unaccounted()), (0, 0, 0));
}

#[test]
fn what_had_failed_comes_first_after_a_crash_in_the_order_of_its_times() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let first = queue(&broker);
    first.send_batch((1..=30).collect::<Vec<_>>()).unwrap();
    let in_hand: Vec<_> = (0..20).map(|_| first.recv().unwrap()).collect();
    // The later ones are due sooner, and the last two are in hand again.
    in_hand.into_iter().for_each(|delivery| {
        let wait = (30 - **delivery) * SECOND;
        delivery.retry_after(wait).unwrap();
    });
    simulation.advance(11 * SECOND);
    let again: Vec<_> = (0..2).map(|_| first.recv().unwrap()).collect();
    assert_eq!(again.iter().map(|delivery| ***delivery).collect::<Vec<_>>(), [20, 19]);
    simulation.advance(4 * SECOND);
    common::store::flush(&broker);
    let world = World { folder: world.folder.killed(), clock: world.clock };
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    assert_eq!((queue.len(), queue.delayed()), (16, 14));
    let came = |n: usize| -> Vec<_> { (0..n).map(|_| queue.recv().unwrap()).collect() };
    let overdue = came(6);
    assert!(overdue.iter().all(|delivery| delivery.attempt() == 2 && delivery.redelivered()));
    assert_eq!(overdue.iter().map(|delivery| ***delivery).collect::<Vec<_>>(), [20, 19, 18, 17, 16, 15]);
    assert_eq!(came(10).iter().map(|delivery| ***delivery).collect::<Vec<_>>(), (21..=30).collect::<Vec<_>>());
    overdue.into_iter().for_each(|delivery| delivery.ack().unwrap());
    // The ten have been given back.
    simulation.advance(100 * SECOND);
    let mut rest = all(&queue);
    rest.sort_unstable();
    assert_eq!(rest, (1..=14).chain(21..=30).collect::<Vec<_>>());
}

#[test]
fn a_redriven_letter_is_not_taken_for_one_of_them() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    queue.send_batch((1..40).map(later).collect::<Vec<_>>()).unwrap();
    simulation.advance(39 * SECOND);
    queue.recv().unwrap().dead_letter("no").unwrap();
    assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 1);
    queue.send(later(40)).unwrap();
    simulation.advance(40 * SECOND);
    let mut came = all(&queue);
    came.sort_unstable();
    assert_eq!(came, (1..=40).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.delayed(), queue.stats().unaccounted()), (0, 0, 0));
}

#[test]
fn a_file_of_the_first_format_is_taken_over() {
    let mut world = World::new();
    let (broker, simulation) = world.broker();
    let first = queue(&broker);
    first.send_batch((1..40).map(later).collect::<Vec<_>>()).unwrap();
    first.send(later(40).with_timer("named")).unwrap();
    drop((first, broker, simulation));
    let file = Connection::open(world.folder.file()).unwrap();
    // That is what it had there.
    file.execute_batch(
        "DROP INDEX postroom_item_noted; DROP INDEX postroom_item_known; DROP TABLE postroom_pack; DROP TABLE postroom_pack_gone;
         UPDATE postroom_meta SET value = 1 WHERE name = 'format';
         UPDATE postroom_item SET extra = CAST('{\"counts_from\":' || due_at || '}' AS BLOB) WHERE extra IS NULL;
         PRAGMA wal_checkpoint(TRUNCATE)",
    )
    .unwrap_or_default();
    drop(file);
    world.clock.advance(10 * SECOND);
    let (broker, simulation) = world.broker();
    let queue = queue(&broker);
    assert_eq!((queue.len(), queue.delayed()), (10, 30));
    assert!(broker.cancel_timer("named"));
    simulation.advance(100 * SECOND);
    assert_eq!(all(&queue), (1..40).collect::<Vec<_>>());
    world.clock = ManualClock::new();
}

#[test]
fn a_full_queue_gives_its_oldest_up_and_loses_nothing_else() {
    for policy in [Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter] {
        let world = World::new();
        let (broker, simulation) = world.broker();
        let queue = broker.queue("q").capacity(30).overflow(policy).durable(Durability::Buffered).window(4);
        let queue: Queue<u32> = queue.declare().unwrap();
        for n in 1..=40 {
            queue.send(later(n)).unwrap();
        }
        simulation.advance(100 * SECOND);
        let stats = queue.stats();
        let letters = queue.dead_letters().len();
        assert_eq!((queue.len(), stats.dropped as usize + letters, stats.unaccounted()), (30, 10, 0), "{policy:?}");
        assert_eq!(all(&queue).len(), 30, "{policy:?}");
        drop((queue, broker, simulation));
        let (broker, _simulation) = world.broker();
        let queue: Queue<u32> = broker.queue("q").durable(Durability::Buffered).declare().unwrap();
        assert_eq!(queue.len() + queue.delayed(), 0, "{policy:?}");
    }
}

#[test]
fn none_is_lost_early_or_twice_while_many_send_and_take() {
    within(LIMIT, || {
        for _ in 0..3 {
            let folder = Folder::new();
            let broker = Broker::open(folder.file()).unwrap();
            let queue = broker.queue("q").capacity(100_000).durable(Durability::Buffered).window(16);
            let queue: Queue<u32> = queue.declare().unwrap();
            let begin = Instant::now();
            let due = |n: u32| Duration::from_millis(u64::from(n.wrapping_mul(7_919) % 400));
            let senders: Vec<_> = (0..3)
                .map(|sender| {
                    let queue = queue.clone();
                    thread::spawn(move || {
                        for first in (0..1_000).step_by(20) {
                            let numbers = (first..first + 20).map(|n| sender * 1_000 + n);
                            let messages =
                                numbers.map(|n| Message::new(n).with_delay(due(n).saturating_sub(begin.elapsed())));
                            queue.send_batch(messages.collect::<Vec<_>>()).unwrap();
                        }
                    })
                })
                .collect();
            let left = Arc::new(AtomicUsize::new(3_000));
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    let (queue, left) = (queue.clone(), left.clone());
                    thread::spawn(move || {
                        let mut seen = Vec::new();
                        while left.load(Ordering::SeqCst) > 0 {
                            let Ok(delivery) = queue.recv_timeout(Duration::from_millis(50)) else { continue };
                            left.fetch_sub(1, Ordering::SeqCst);
                            assert!(begin.elapsed() >= due(**delivery), "{} is early", **delivery);
                            seen.push(**delivery);
                            delivery.ack().unwrap();
                        }
                        seen
                    })
                })
                .collect();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            let mut seen: Vec<u32> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..3_000).collect::<Vec<_>>());
            assert_eq!((queue.delayed(), queue.len(), queue.stats().unaccounted()), (0, 0, 0));
        }
    });
}

#[test]
fn what_fails_again_and_again_comes_as_often_as_it_failed_in_however_many_runs() {
    within(LIMIT, || {
        let folder = Folder::new();
        let (mut acked, mut failed) = (BTreeMap::<u32, u32>::new(), BTreeMap::<u32, u32>::new());
        for run in 0..6 {
            let broker = Broker::open(folder.file()).unwrap();
            let retry = Retry::immediate(3).max_attempts(100);
            let queue = broker.queue("q").capacity(100_000).retry(retry).durable(Durability::Buffered).window(16);
            let queue: Queue<u32> = queue.declare().unwrap();
            let sender = thread::spawn({
                let queue = queue.clone();
                move || {
                    for first in (run * 300..run * 300 + 300).step_by(10) {
                        let delay = |n: u32| Duration::from_micros(u64::from(n.wrapping_mul(7_919) % 20_000));
                        let some = (first..first + 10).map(|n| match n % 3 {
                            0 => Message::new(n),
                            _ => Message::new(n).with_delay(delay(n)),
                        });
                        queue.send_batch(some.collect::<Vec<_>>()).unwrap();
                    }
                }
            });
            let left = Arc::new(AtomicUsize::new(1_800 - acked.len()));
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    let (queue, left) = (queue.clone(), left.clone());
                    thread::spawn(move || {
                        let (mut acked, mut failed) = (Vec::new(), Vec::new());
                        // All but the last run end before all is done.
                        while left.load(Ordering::SeqCst) > 0 {
                            let delivery = match queue.recv_timeout(Duration::from_millis(200)) {
                                Ok(delivery) => delivery,
                                Err(_) if run < 5 => break,
                                Err(_) => continue,
                            };
                            let (n, attempt) = (**delivery, delivery.attempt());
                            if attempt <= n % 5 {
                                let wait = u64::from(n.wrapping_mul(attempt).wrapping_mul(104_729) % 30_000);
                                failed.push((n, attempt));
                                delivery.retry_after(Duration::from_micros(wait)).unwrap();
                            } else {
                                acked.push((n, attempt));
                                delivery.ack().unwrap();
                                left.fetch_sub(1, Ordering::SeqCst);
                            }
                            if run < 5 && acked.len() + failed.len() >= 400 {
                                break;
                            }
                        }
                        (acked, failed)
                    })
                })
                .collect();
            sender.join().unwrap();
            for (done, back) in takers.into_iter().map(|taker| taker.join().unwrap()) {
                back.into_iter().for_each(|(n, _)| *failed.entry(n).or_default() += 1);
                done.into_iter().for_each(|(n, attempt)| assert_eq!(acked.insert(n, attempt), None, "{n} came twice"));
            }
            assert_eq!(queue.stats().unaccounted(), 0);
            assert!(run < 5 || queue.is_empty() && queue.delayed() == 0);
        }
        assert_eq!(acked, (0..1_800).map(|n| (n, n % 5 + 1)).collect());
        assert_eq!(failed, (0..1_800).filter(|n| n % 5 > 0).map(|n| (n, n % 5)).collect());
    });
}
