//! Opening a durable queue that holds a great deal reads a small part of it, whatever its messages wait for.
//!
//! `POSTROOM_MANY` sets how many there are.
#![cfg(all(feature = "sqlite", target_os = "linux"))]
#![allow(missing_docs, unsafe_code)]

mod common;

use common::store::{Folder, simulated};
use postroom::store::{Batch, Durability, Item, Options, Store};
use postroom::{Broker, ManualClock, Queue, Simulation};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes that this process has allocated, SQLite's own aside.
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: both pass the call on unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One at a time, since they measure the same memory.
static ALONE: Mutex<()> = Mutex::new(());

const LIMIT: usize = 8 << 20;

fn many() -> u64 {
    std::env::var("POSTROOM_MANY").map_or(100_000, |n| n.parse().unwrap())
}

struct World {
    folder: Folder,
    clock: ManualClock,
}

impl World {
    /// One whose queue holds `n` of these items.
    fn holding(n: u64, declare: fn(&Broker) -> Queue<u64>, item: impl Fn(u64, u64) -> Item) -> Self {
        let world = Self { folder: Folder::new(), clock: ManualClock::new() };
        let (broker, _simulation) = world.broker();
        drop((declare(&broker), broker));
        let store = Store::open(world.folder.file(), Options::new()).unwrap();
        let stream = store.reader().unwrap().stream("queue", "q").unwrap().unwrap().id;
        let now = nanos(world.clock.now());
        for first in (0..n).step_by(1000) {
            let numbers = first..(first + 1000).min(n);
            let batch = numbers.fold(Batch::new(), |batch, n| batch.insert(stream, item(n, now)));
            store.submit_lazily(batch).unwrap();
            store.wait_for_room();
        }
        store.flush(Durability::Buffered).unwrap();
        store.close().unwrap();
        world
    }

    fn broker(&self) -> (Broker, Simulation) {
        simulated(&self.folder, &self.clock)
    }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn item(n: u64) -> Item {
    let payload = serde_json::to_vec(&n).unwrap();
    Item { id: n + 1, routing_key: "x".repeat(100), payload, ..Item::default() }
}

/// Resident memory of this process in bytes, SQLite's included.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// What it takes to open the queue and to get the first message.
fn measure<R>(what: &str, open: impl FnOnce() -> R) -> R {
    measure_within(LIMIT, what, open)
}

/// The same of taking many; what is to be deleted waits for the writer.
fn measure_taking(what: &str, take: impl FnOnce()) {
    measure_within(40 << 20, what, take);
}

fn measure_within<R>(limit: usize, what: &str, open: impl FnOnce() -> R) -> R {
    let (before, before_it, begin) = (HELD.load(Ordering::Relaxed), resident(), Instant::now());
    PEAK.store(before, Ordering::Relaxed);
    let opened = open();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let more = resident().saturating_sub(before_it);
    println!("{what}: {:?}, {} KiB at most, {} KiB more resident", begin.elapsed(), peak >> 10, more >> 10);
    assert!(peak < limit, "{what}: {peak} bytes at most");
    opened
}

fn plain(broker: &Broker) -> Queue<u64> {
    broker.queue("q").capacity(10_000_000).durable(Durability::Buffered).declare().unwrap()
}

fn four_levels(broker: &Broker) -> Queue<u64> {
    let queue = broker.queue("q").capacity(10_000_000).priority_levels(4).durable(Durability::Buffered);
    queue.declare().unwrap()
}

#[test]
fn of_each_priority_a_window_is_in_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    let declare = four_levels;
    // The rarest are the most urgent, and the last.
    let priority = |n: u64| if n + 10 > many { 3 } else { (n % 3) as u8 };
    let world = World::holding(many, declare, |n, _| Item { priority: priority(n), ..item(n) });
    let (broker, _simulation) = world.broker();
    let queue = measure(&format!("{many} of four priorities"), || {
        let queue = declare(&broker);
        assert_eq!(queue.len() as u64, many);
        let delivery = queue.recv().unwrap();
        assert_eq!(delivery.priority(), 3);
        delivery.ack().unwrap();
        queue
    });
    let part = (many / 2).min(50_000);
    measure_taking("a part of them", || {
        let mut last = 3;
        for _ in 1..part {
            let delivery = queue.recv().unwrap();
            assert!(delivery.priority() <= last);
            last = delivery.priority();
            delivery.ack().unwrap();
        }
    });
    assert_eq!((queue.len() as u64, queue.stats().unaccounted()), (many - part, 0));
}

const SECOND: u64 = 1_000_000_000;

/// A thousand a second, in no order.
fn due_in_no_order(n: u64, many: u64, now: u64) -> u64 {
    now + SECOND + n.wrapping_mul(7_919) % many * SECOND / 1_000
}

/// Those of the ten seconds that follow the first come, and no others.
fn ten_seconds_of_them_come(queue: &Queue<u64>, simulation: &Simulation, many: u64) {
    measure_taking("ten seconds of them", || {
        for _ in 0..100 {
            simulation.advance(Duration::from_millis(100));
            while let Ok(delivery) = queue.try_recv() {
                delivery.ack().unwrap();
            }
        }
    });
    let came = many.min(10_001);
    assert_eq!((queue.stats().acked, queue.delayed() as u64), (came, many - came));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn what_has_a_delay_is_read_when_its_time_comes_near() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    let world = World::holding(many, plain, |n, now| Item {
        due_at: Some(due_in_no_order(n, many, now)),
        published_at: now,
        ..item(n)
    });
    let (broker, simulation) = world.broker();
    let queue = measure(&format!("{many} delayed"), || {
        let queue = plain(&broker);
        assert_eq!((queue.delayed() as u64, queue.len()), (many, 0));
        simulation.advance(Duration::from_secs(1));
        queue.recv().unwrap().ack().unwrap();
        queue
    });
    ten_seconds_of_them_come(&queue, &simulation, many);
}

#[test]
fn what_was_due_while_nobody_ran_is_read_as_its_turn_comes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    for (what, apart) in [("overdue", SECOND / 1_000), ("overdue at one time", 0)] {
        let world = World::holding(many, plain, |n, now| Item { due_at: Some(now - SECOND - n * apart), ..item(n) });
        let (broker, _simulation) = world.broker();
        let queue = measure(&format!("{many} {what}"), || {
            let queue = plain(&broker);
            assert_eq!((queue.delayed() as u64, queue.len() as u64), (0, many));
            queue.recv().unwrap().ack().unwrap();
            queue
        });
        let part = (many / 2).min(50_000);
        measure_taking("a part of them", || (1..part).for_each(|_| queue.recv().unwrap().ack().unwrap()));
        assert_eq!((queue.len() as u64, queue.stats().unaccounted()), (many - part, 0));
    }
}

/// One that has failed once, and is due then.
fn failed(n: u64, due: u64) -> Item {
    let extra = format!(r#"{{"history":[{{"number":1,"at":{due},"error":"down"}}],"redelivered":true}}"#);
    Item { attempts: 1, due_at: Some(due), extra: Some(extra.into_bytes()), ..item(n) }
}

fn assert_failed_once(delivery: &postroom::Delivery<u64>) {
    let errors: Vec<_> = delivery.history().iter().map(|attempt| (attempt.number, &*attempt.error)).collect();
    assert_eq!((delivery.attempt(), delivery.redelivered(), errors), (2, true, vec![(1, "down")]));
}

#[test]
fn what_has_failed_and_waited_while_nobody_ran_is_read_as_its_turn_comes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    for (what, apart) in [("failed, overdue", SECOND / 1_000), ("failed, overdue at one time", 0)] {
        let world = World::holding(many, plain, |n, now| failed(n, now - SECOND - (many - n) * apart));
        let (broker, simulation) = world.broker();
        let queue = measure(&format!("{many} {what}"), || {
            let queue = plain(&broker);
            assert_eq!((queue.delayed() as u64, queue.len() as u64), (0, many));
            let delivery = queue.recv().unwrap();
            assert_failed_once(&delivery);
            delivery.ack().unwrap();
            queue
        });
        let part = (many / 2).min(30_000);
        measure_taking("a part of them", || {
            for n in 1..part {
                let delivery = queue.recv().unwrap();
                assert_eq!(**delivery, n, "in the order of their times");
                assert_failed_once(&delivery);
                delivery.ack().unwrap();
            }
        });
        // A few fail again: they are not read a second time.
        (0..1_000).for_each(|_| queue.recv().unwrap().retry_after(Duration::from_secs(60)).unwrap());
        assert_eq!((queue.len() as u64, queue.delayed()), (many - part - 1_000, 1_000));
        simulation.advance(Duration::from_secs(60));
        (0..1_000).for_each(|_| assert_eq!(queue.recv().unwrap().attempt(), 3));
        assert_eq!(queue.stats().unaccounted(), 0);
    }
}

#[test]
fn what_waits_for_its_next_attempt_is_read_when_its_time_comes_near() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    for (what, declare) in [("waiting", plain as fn(&Broker) -> _), ("waiting, of four priorities", four_levels)] {
        let world = World::holding(many, declare, |n, now| Item {
            priority: (n % 4) as u8,
            ..failed(n, due_in_no_order(n, many, now))
        });
        let (broker, simulation) = world.broker();
        let queue = measure(&format!("{many} {what}"), || {
            let queue = declare(&broker);
            assert_eq!((queue.delayed() as u64, queue.len()), (many, 0));
            simulation.advance(Duration::from_secs(1));
            let delivery = queue.recv().unwrap();
            assert_failed_once(&delivery);
            delivery.ack().unwrap();
            queue
        });
        ten_seconds_of_them_come(&queue, &simulation, many);
    }
}

#[test]
fn what_falls_due_while_nobody_takes_it_stays_in_the_file() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (what, apart) in [("fall due", SECOND / 10_000), ("fall due at one time", 0)] {
        // On a manual clock, each time that comes is an event.
        let many = if apart > 0 { 10_000 } else { many() };
        let world = World::holding(many, plain, |n, now| Item { due_at: Some(now + SECOND + n * apart), ..item(n) });
        let (broker, simulation) = world.broker();
        let queue = plain(&broker);
        measure(&format!("{many} {what}"), || {
            simulation.advance(Duration::from_secs(1) + Duration::from_nanos(many * apart))
        });
        assert_eq!((queue.delayed() as u64, queue.len() as u64), (0, many));
        measure_taking("a part of them", || (0..5_000).for_each(|_| queue.recv().unwrap().ack().unwrap()));
        measure_taking("the rest", || assert_eq!(queue.purge() as u64, many - 5_000));
        assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    }
}

#[test]
fn what_is_sent_with_a_delay_stays_in_the_file_but_for_the_soonest() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::holding(0, plain, |n, _| item(n));
    let (broker, simulation) = world.broker();
    let queue = plain(&broker);
    let n = many().min(30_000);
    let messages = |from: u64| {
        let number = move |n: u64| from + n.wrapping_mul(7_919) % 1_000;
        (0..1_000).map(number).map(|n| postroom::Message::new(n).with_delay(Duration::from_millis(1_000 + n)))
    };
    measure(&format!("{n} sent with delays"), || {
        (0..n).step_by(1_000).for_each(|from| _ = queue.send_batch(messages(from)).unwrap())
    });
    assert_eq!(queue.delayed() as u64, n);
    let mut last = 0;
    for _ in 0..n {
        while queue.is_empty() {
            simulation.advance(Duration::from_millis(50));
        }
        let delivery = queue.recv().unwrap();
        assert!(**delivery >= last / 50 * 50, "{} after {last}", **delivery);
        last = **delivery;
        delivery.ack().unwrap();
    }
    assert_eq!((queue.delayed(), queue.stats().unaccounted()), (0, 0));
}

fn by_key(broker: &Broker) -> Queue<u64> {
    let queue = broker.queue("q").capacity(10_000_000).ordered_by_key().durable(Durability::Buffered);
    queue.declare().unwrap()
}

fn of_key(n: u64, key: u64) -> Item {
    Item { key: Some(format!("key-{key}")), ..item(n) }
}

/// How many keys a queue of so many has.
const KEYS: [(&str, fn(u64) -> u64); 3] =
    [("10,000 keys", |_| 10_000), ("one key", |_| 1), ("a key each", |many| many)];

#[test]
fn of_a_queue_ordered_by_key_a_window_is_in_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    for (what, keys) in KEYS {
        let keys = keys(many);
        let world = World::holding(many, by_key, |n, _| of_key(n, n % keys));
        let (broker, _simulation) = world.broker();
        let queue = measure(&format!("{many} of {what}"), || {
            let queue = by_key(&broker);
            assert_eq!(queue.len() as u64, many);
            let delivery = queue.recv().unwrap();
            assert_eq!(**delivery, 0);
            delivery.ack().unwrap();
            queue
        });
        let part = (many / 2).min(50_000);
        measure_taking("a part of them", || {
            for n in 1..part {
                let delivery = queue.recv().unwrap();
                assert_eq!(**delivery % keys, n % keys);
                delivery.ack().unwrap();
            }
        });
        assert_eq!((queue.len() as u64, queue.stats().unaccounted()), (many - part, 0));
    }
}

#[test]
fn of_a_function_for_the_key_too() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    let declare = |broker: &Broker| -> Queue<u64> {
        let queue = broker.queue("q").capacity(10_000_000).ordered_by(|n: &u64| n % 10_000);
        queue.durable(Durability::Buffered).declare().unwrap()
    };
    let world = World::holding(many, declare, |n, _| item(n));
    let (broker, _simulation) = world.broker();
    measure(&format!("{many} by a function"), || declare(&broker).recv().unwrap().ack().unwrap());
}

#[test]
fn what_stands_behind_a_key_that_is_held_up_flows_and_memory_stays_small() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    // Nine of ten are of one key, of which the first is in hand.
    let key = |n: u64| if n.is_multiple_of(10) { 1 + n / 10 % 100 } else { 0 };
    let world = World::holding(many, by_key, |n, _| of_key(n, key(n + 1)));
    let (broker, _simulation) = world.broker();
    let queue = by_key(&broker);
    let first = queue.recv().unwrap();
    assert_eq!(**first, 0);
    measure_taking(&format!("{} behind those of a key in hand", many / 10), || {
        for _ in 0..many / 10 {
            let delivery = queue.try_recv().unwrap();
            assert_ne!(key(**delivery + 1), 0);
            delivery.ack().unwrap();
        }
        assert!(queue.try_recv().is_err());
    });
    first.ack().unwrap();
    let part = (many / 2).min(50_000);
    measure_taking("a part of that key", || {
        let mut last = 0;
        for _ in 0..part {
            let delivery = queue.try_recv().unwrap();
            assert!(**delivery > last, "in order");
            last = **delivery;
            delivery.ack().unwrap();
        }
    });
    assert_eq!(queue.len() as u64, many - 1 - many / 10 - part);
    measure_taking("the rest", || assert_eq!(queue.purge() as u64, many - 1 - many / 10 - part));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn what_is_sent_to_a_queue_ordered_by_key_and_not_taken_stays_in_the_file() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::holding(0, by_key, |n, _| item(n));
    let (broker, _simulation) = world.broker();
    let queue = by_key(&broker);
    let n = many().min(50_000);
    let messages = |from: u64| (from..from + 1_000).map(|n| postroom::Message::new(n).with_key(format!("{}", n % 100)));
    measure(&format!("{n} sent by key"), || {
        (0..n).step_by(1_000).for_each(|from| _ = queue.send_batch(messages(from)).unwrap())
    });
    for n in 0..n {
        let delivery = queue.recv().unwrap();
        assert_eq!(**delivery, n, "keys take turns");
        delivery.ack().unwrap();
    }
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
}

#[test]
fn of_what_has_failed_in_a_queue_ordered_by_key_only_the_keys_are_in_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    let limit = LIMIT + usize::try_from(many).unwrap() * 160;
    let world = World::holding(many, by_key, |n, now| Item {
        key: Some(format!("key-{n}")),
        ..failed(n, due_in_no_order(n, many, now))
    });
    let (broker, simulation) = world.broker();
    let queue = measure_within(limit, &format!("{many} failed of a key each, waiting"), || {
        let queue = by_key(&broker);
        assert_eq!((queue.delayed() as u64, queue.len()), (many, 0));
        simulation.advance(Duration::from_secs(1));
        let delivery = queue.recv().unwrap();
        assert_failed_once(&delivery);
        delivery.ack().unwrap();
        queue
    });
    ten_seconds_of_them_come(&queue, &simulation, many);
    drop((broker, simulation, queue));

    let world = World::holding(many, by_key, |n, now| Item {
        key: Some(format!("key-{n}")),
        ..failed(n, now - SECOND - (many - n))
    });
    let (broker, _simulation) = world.broker();
    let queue = measure_within(limit, &format!("{many} failed of a key each, overdue"), || {
        let queue = by_key(&broker);
        assert_eq!((queue.delayed() as u64, queue.len() as u64), (0, many));
        queue.recv().unwrap().ack().unwrap();
        queue
    });
    let part = (many / 2).min(30_000);
    measure_taking("a part of them", || {
        for n in 1..part {
            let delivery = queue.recv().unwrap();
            assert_eq!(**delivery, n, "in the order of their times");
            assert_failed_once(&delivery);
            delivery.ack().unwrap();
        }
    });
    assert_eq!((queue.len() as u64, queue.stats().unaccounted()), (many - part, 0));
}

#[test]
fn with_priorities_too_what_is_overdue_is_read_as_its_turn_comes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many();
    let kinds: [(&str, fn(u64, u64) -> Item); 2] = [
        ("failed, of four priorities, overdue", |n, due| Item { priority: (n % 4) as u8, ..failed(n, due) }),
        ("delayed, of four priorities, overdue", |n, due| Item {
            priority: (n % 4) as u8,
            due_at: Some(due),
            ..item(n)
        }),
    ];
    for (what, item) in kinds {
        let world = World::holding(many, four_levels, |n, now| item(n, now - SECOND - n));
        let (broker, _simulation) = world.broker();
        let queue = measure(&format!("{many} {what}"), || {
            let queue = four_levels(&broker);
            assert_eq!((queue.delayed() as u64, queue.len() as u64), (0, many));
            let delivery = queue.recv().unwrap();
            assert_eq!(**delivery, 3, "the first of the highest");
            delivery.ack().unwrap();
            queue
        });
        let part = (many / 2).min(30_000);
        measure_taking("a part of them", || {
            for n in 1..part {
                let delivery = queue.recv().unwrap();
                assert_eq!(delivery.priority(), 3 - (n / (many / 4)) as u8);
                delivery.ack().unwrap();
            }
        });
        assert_eq!((queue.len() as u64, queue.stats().unaccounted()), (many - part, 0));
    }
}

#[test]
fn what_is_redriven_stays_in_the_file_until_its_turn() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let many = many().min(15_000);
    let settings: [(&str, fn(&Broker) -> Queue<u64>); 3] =
        [("in order", plain), ("of four priorities", four_levels), ("by key", by_key)];
    for (what, declare) in settings {
        let world = World { folder: Folder::new(), clock: ManualClock::new() };
        let (broker, simulation) = world.broker();
        let queue = declare(&broker);
        let source: Queue<u64> = broker.queue("source").durable(Durability::Buffered).declare().unwrap();
        let (before, message) = (HELD.load(Ordering::Relaxed), |n: u64| postroom::Message::new(n).with_key("k"));
        for first in (0..many).step_by(5_000) {
            source.send_batch((first..(first + 5_000).min(many)).map(message)).unwrap();
            while let Ok(delivery) = source.try_recv() {
                delivery.dead_letter("no").unwrap();
            }
            broker.store().unwrap().flush(Durability::Buffered).unwrap();
            source.dead_letters().redrive().to(&queue).run().unwrap();
        }
        broker.store().unwrap().flush(Durability::Buffered).unwrap();
        let held = HELD.load(Ordering::Relaxed).saturating_sub(before);
        println!("{many} redriven {what}: {} KiB", held >> 10);
        assert!(held < LIMIT / 2, "{what}: {held} bytes");
        assert_eq!((queue.len() as u64, queue.stats().redriven), (many, many));
        drop((broker, simulation, queue, source));
        let (broker, _simulation) = world.broker();
        let queue = measure(&format!("{many} redriven {what} in an earlier run"), || declare(&broker));
        for n in 0..many {
            let delivery = queue.recv().unwrap();
            assert_eq!((**delivery, delivery.attempt()), (n, 1));
            delivery.ack().unwrap();
        }
        assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    }
}
