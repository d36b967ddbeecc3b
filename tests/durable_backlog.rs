//! A durable queue that holds more than fits its memory.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::Folder;
use common::{eventually, within};
use postroom::store::{Batch, Durability, Item, Options, Store};
use postroom::{Broker, Codec, CodecError, Expired, Json, Message, Overflow, Queue, RecvError, Retry, Topic};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const MANY: u32 = 15_000;

fn open(folder: &Folder) -> Broker {
    Broker::open(folder.file()).expect("the file is free")
}

fn numbers(broker: &Broker) -> Queue<u32> {
    broker.queue("numbers").capacity(1_000_000).durable(Durability::Buffered).declare().unwrap()
}

fn take_all(queue: &Queue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| {
        let delivery = queue.try_recv().ok()?;
        let number = **delivery;
        delivery.ack().unwrap();
        Some(number)
    })
    .collect()
}

#[test]
fn a_backlog_comes_out_in_order_now_and_after_reopening() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = numbers(&broker);
    queue.send_batch(0..MANY).unwrap();
    assert_eq!((queue.len(), queue.stats().unaccounted()), (MANY as usize, 0));
    assert!(queue.list(usize::MAX).len() < 10_000, "the rest is in the file");
    for n in 0..3_000 {
        let delivery = queue.recv().unwrap();
        assert_eq!(**delivery, n);
        delivery.ack().unwrap();
    }
    queue.send(MANY).unwrap();
    drop((broker, queue));

    let broker = open(&folder);
    let queue = numbers(&broker);
    assert_eq!(queue.stats().recovered, u64::from(MANY) + 1 - 3_000);
    assert_eq!(*queue.peek().unwrap(), 3_000);
    assert_eq!(take_all(&queue), (3_000..=MANY).collect::<Vec<_>>());
    assert_eq!((queue.stats().unaccounted(), queue.len()), (0, 0));
    drop((broker, queue));
    assert_eq!(numbers(&open(&folder)).len(), 0);
}

#[test]
fn every_way_in_goes_behind_the_backlog() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = numbers(&broker);
    let topic: Topic<u32> = broker.topic("work").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    queue.send_batch(0..MANY).unwrap();
    topic.publish("x", MANY).unwrap();
    queue.send_deferred(MANY + 1).wait().unwrap();
    broker
        .transaction(|tx| {
            tx.send(&queue, MANY + 2)?;
            tx.publish(&topic, "x", MANY + 3)?;
            Ok(())
        })
        .unwrap();
    let store = broker.store().unwrap();
    let mut mine = store.connect().unwrap();
    store
        .transaction(&mut mine, |tx| -> Result<(), postroom::store::StoreError> {
            queue.send_in(tx, MANY + 4).unwrap();
            queue.send_in(tx, MANY + 5).unwrap();
            Ok(())
        })
        .unwrap();
    queue.send(MANY + 6).unwrap();
    assert_eq!(take_all(&queue), (0..=MANY + 6).collect::<Vec<_>>());
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn what_a_transaction_of_the_users_sends_wakes_a_receiver() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = numbers(&broker);
        let receiver = {
            let queue = queue.clone();
            thread::spawn(move || **queue.recv().unwrap())
        };
        let store = broker.store().unwrap();
        let mut mine = store.connect().unwrap();
        let undone = store.transaction(&mut mine, |tx| -> Result<(), Box<dyn std::error::Error>> {
            queue.send_in(tx, 1)?;
            Err("changed my mind".into())
        });
        assert!(undone.is_err());
        store
            .transaction(&mut mine, |tx| -> Result<(), Box<dyn std::error::Error>> {
                queue.send_in(tx, 2)?;
                Ok(())
            })
            .unwrap();
        assert_eq!(receiver.join().unwrap(), 2);
        let ordered: Queue<u32> = broker.queue("ordered").ordered_by_key().durable(Durability::Sync).declare().unwrap();
        let tx = mine.transaction().unwrap();
        assert!(ordered.send_in(&tx, 1).is_err());
        assert!(queue.send_in(&tx, Message::new(1).with_delay(LIMIT)).is_err());
    });
}

#[test]
fn producers_and_workers_pass_a_backlog_on_without_loss_or_repetition() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = numbers(&broker);
        queue.send_batch(0..10_000).unwrap();
        let seen = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
        let book = Arc::clone(&seen);
        let work = move |n: &Message<u32>| {
            if n.is_multiple_of(97) && n.attempt() == 1 {
                return Err(std::io::Error::other("once more"));
            }
            *book.lock().unwrap().entry(**n).or_default() += 1;
            Ok(())
        };
        queue.consumer().workers(3).start(work).unwrap();
        let producers: Vec<_> = (0..3)
            .map(|p| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let first = 10_000 + p * 5_000;
                    let tickets: Vec<_> = (first..first + 5_000).map(|n| queue.send_deferred(n)).collect();
                    tickets.into_iter().for_each(|ticket| _ = ticket.wait().unwrap());
                })
            })
            .collect();
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert!(broker.wait_idle(Duration::from_secs(60)), "{:?}", queue.stats());
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 25_000);
        assert!(seen.values().all(|&times| times == 1));
        assert_eq!(queue.stats().unaccounted(), 0);
    });
}

#[test]
fn whoever_reads_on_does_not_outrun_who_commits() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue: Queue<u32> = broker.queue("numbers").durable(Durability::Buffered).window(8).declare().unwrap();
        let producers: Vec<_> = (0..2)
            .map(|p| {
                let queue = queue.clone();
                thread::spawn(move || {
                    for first in (p * 4_000..(p + 1) * 4_000).step_by(10) {
                        let tickets: Vec<_> = (first..first + 10).map(|n| queue.send_deferred(n)).collect();
                        tickets.into_iter().for_each(|ticket| _ = ticket.wait().unwrap());
                    }
                })
            })
            .collect();
        let mut latest = [None, None];
        for _ in 0..8_000 {
            let delivery = queue.recv().unwrap();
            let number = **delivery;
            let before = latest[(number / 4_000) as usize].replace(number);
            assert!(before.is_none_or(|before| before + 1 == number), "{number} after {before:?}");
            delivery.ack().unwrap();
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert!(queue.try_recv().is_err());
        assert_eq!(queue.stats().unaccounted(), 0);
    });
}

#[test]
fn retries_and_delays_are_not_read_a_second_time() {
    let folder = Folder::new();
    let clock = postroom::ManualClock::new();
    let declare = |broker: &Broker| -> Queue<u32> {
        let queue = broker.queue("numbers").capacity(1_000_000).retry(Retry::fixed(Duration::from_secs(60)));
        queue.durable(Durability::Buffered).declare().unwrap()
    };
    let open = || Broker::builder().clock(clock.clone()).store(folder.file()).build_simulated().unwrap();
    let (broker, simulation) = open();
    let queue = declare(&broker);
    queue.send_batch(0..MANY).unwrap();
    queue.send(Message::new(MANY).with_delay(Duration::from_secs(30))).unwrap();
    let taken: Vec<_> = (0..100).map(|_| queue.recv().unwrap()).collect();
    for delivery in taken {
        match **delivery % 3 {
            0 => delivery.retry().unwrap(),
            1 => delivery.requeue().unwrap(),
            _ => delivery.retry_after(Duration::ZERO).unwrap(),
        }
    }
    simulation.advance(Duration::from_secs(60));
    assert_eq!(queue.len(), MANY as usize + 1);
    let half: Vec<u32> = (0..MANY / 2).map(|_| queue.recv().unwrap()).map(|d| (**d, d.ack()).0).collect();
    drop((broker, simulation, queue));

    let (broker, _simulation) = open();
    let queue = declare(&broker);
    let mut all = take_all(&queue);
    all.extend(half);
    all.sort_unstable();
    assert_eq!(all, (0..=MANY).collect::<Vec<_>>());
}

#[test]
fn a_request_behind_a_backlog_is_answered() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = numbers(&broker);
        queue.send_batch(0..8_000).unwrap();
        let asking = {
            let queue = queue.clone();
            thread::spawn(move || queue.request::<u32>(7, LIMIT).unwrap())
        };
        while queue.len() == 8_000 {
            thread::yield_now();
        }
        queue.consumer().respond(|n: &Message<u32>| Ok::<_, postroom::Failure>(**n * 2)).unwrap();
        assert_eq!(asking.join().unwrap(), 14);
    });
}

#[test]
fn a_backlog_can_be_purged_drained_and_closed() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = numbers(&broker);
    queue.send_batch(0..MANY).unwrap();
    assert_eq!(queue.purge(), MANY as usize);
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    queue.send_batch(0..MANY).unwrap();
    assert_eq!(queue.drain().len(), MANY as usize);
    queue.send_batch(0..MANY).unwrap();
    queue.close();
    let left = std::iter::from_fn(|| queue.recv().ok().map(|delivery| delivery.ack().unwrap())).count();
    assert_eq!(left, MANY as usize);
    assert!(matches!(queue.recv(), Err(RecvError::Closed)));
    drop((broker, queue));
    assert_eq!(numbers(&open(&folder)).len(), 0);
}

#[test]
fn a_backlog_that_expires_makes_room_without_a_consumer() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = broker.queue("numbers").capacity(100).ttl(Duration::from_millis(50)).expired(Expired::Drop);
        let queue: Queue<u32> = queue.durable(Durability::Buffered).window(10).declare().unwrap();
        queue.send_batch(0..100).unwrap();
        // Each waits until there is room.
        queue.send_batch(100..300).unwrap();
        eventually("all have expired", || queue.stats().expired == 300);
        assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    });
}

/// Decodes nothing while somebody holds the gate.
struct Gated(Arc<Mutex<()>>);

impl Codec<u32> for Gated {
    fn name(&self) -> &str {
        "gated"
    }
    fn encode(&self, n: &u32) -> Result<Vec<u8>, CodecError> {
        Json.encode(n)
    }
    fn decode(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        drop(self.0.lock());
        Json.decode(bytes)
    }
}

#[test]
fn a_purge_leaves_nothing_that_somebody_is_about_to_read() {
    within(LIMIT, || {
        let (folder, gate) = (Folder::new(), Arc::new(Mutex::new(())));
        let broker = open(&folder);
        let queue = broker.queue("numbers").durable_with(Durability::Buffered, Gated(Arc::clone(&gate))).window(10);
        let queue: Queue<u32> = queue.declare().unwrap();
        queue.send_batch(0..100).unwrap();
        (0..10).for_each(|_| queue.recv().unwrap().ack().unwrap());
        let closed = gate.lock().unwrap();
        let other = queue.clone();
        let reader = thread::spawn(move || {
            let delivery = other.recv().unwrap();
            let number = **delivery;
            delivery.ack().unwrap();
            number
        });
        // It has found nothing in memory, and is held up while it decodes.
        thread::sleep(Duration::from_millis(50));
        let other = queue.clone();
        let purge = thread::spawn(move || other.purge());
        thread::sleep(Duration::from_millis(50));
        drop(closed);
        let purged = purge.join().unwrap();
        assert_eq!(queue.len(), 0);
        queue.send(100).unwrap();
        // The reader may have come first to something that the purge read.
        let read = reader.join().unwrap();
        assert_eq!((purged, queue.len()), if read == 100 { (90, 0) } else { (89, 1) });
        assert_eq!(queue.stats().unaccounted(), 0);
    });
}

#[test]
fn a_full_backlog_drops_its_oldest() {
    let folder = Folder::new();
    let broker = open(&folder);
    let declare = |broker: &Broker| -> Queue<u32> {
        let queue = broker.queue("numbers").capacity(6_000).overflow(Overflow::DropOldest);
        queue.durable(Durability::Buffered).declare().unwrap()
    };
    let queue = declare(&broker);
    for n in 0..6_500 {
        drop(queue.send_deferred(n));
    }
    queue.send(6_500).unwrap();
    eventually("the last count", || queue.stats().dropped == 501);
    assert_eq!(queue.stats().unaccounted(), 0);
    drop((broker, queue));
    let broker = open(&folder);
    assert_eq!(take_all(&declare(&broker)), (501..=6_500).collect::<Vec<_>>());
}

#[test]
fn what_a_full_queue_did_not_take_is_not_read_from_the_file() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = broker.queue("numbers").capacity(4).overflow(Overflow::DropOldest);
    let queue: Queue<u32> = queue.durable(Durability::Buffered).window(2).declare().unwrap();
    queue.send_batch(0..4).unwrap();
    let in_hand = [queue.recv().unwrap(), queue.recv().unwrap()];
    queue.send_batch(4..6).unwrap();
    // All that fills the queue is in the file, so this one is dropped; its row stays until somebody asks.
    let dropped = queue.send_deferred(6);
    eventually("it has been there", || dropped.is_done());
    let first = queue.recv().unwrap();
    queue.send(7).unwrap();
    assert_eq!(**first, 2);
    first.ack().unwrap();
    assert_eq!(take_all(&queue), [3, 4, 5, 7]);
    assert_eq!(dropped.wait().unwrap().routed(), 0);
    in_hand.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_eq!((queue.stats().dropped, queue.stats().unaccounted()), (1, 0));
}

#[test]
fn more_dead_letters_than_fit_memory_are_redriven() {
    let folder = Folder::new();
    let broker = open(&folder);
    let declare = |broker: &Broker| -> Queue<u32> {
        let letters = broker.queue("numbers").capacity(100_000).retry(Retry::none());
        letters.durable(Durability::Buffered).declare().unwrap()
    };
    let queue = declare(&broker);
    for n in 0..9_000 {
        drop(queue.send_deferred(n));
        queue.recv().unwrap().dead_letter("no").unwrap();
    }
    assert!(broker.wait_idle(LIMIT));
    drop((broker, queue));
    let broker = open(&folder);
    let queue = declare(&broker);
    assert_eq!(queue.dead_letters().len(), 9_000);
    assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 9_000);
    assert_eq!(take_all(&queue).len(), 9_000);
}

#[test]
fn what_is_redriven_into_the_file_takes_room_until_it_is_handed_out() {
    for by_key in [false, true] {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = broker.queue("numbers").capacity(10).overflow(Overflow::Reject).durable(Durability::Buffered);
        let queue = if by_key { queue.ordered_by(|n: &u32| n % 2) } else { queue };
        let queue: Queue<u32> = queue.window(2).declare().unwrap();
        let fill = || (0..100).take_while(|&n| queue.try_send(n).is_ok()).count();
        for round in 0..3 {
            assert_eq!(fill(), 10, "round {round}");
            (0..10).for_each(|_| queue.recv().unwrap().dead_letter("no").unwrap());
            assert!(broker.wait_idle(LIMIT));
            assert_eq!(queue.dead_letters().redrive().run().unwrap().moved, 10);
            assert_eq!(queue.len(), 10);
            assert!(fill() < 10, "round {round}");
            take_all(&queue);
        }
        assert_eq!((fill(), queue.stats().unaccounted()), (10, 0));
    }
}

/// Resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn opening_a_long_queue_reads_a_small_part_of_it() {
    static READ: AtomicU32 = AtomicU32::new(0);
    #[derive(serde::Serialize)]
    struct Counted(u32);
    impl<'de> serde::Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            READ.fetch_add(1, Ordering::Relaxed);
            u32::deserialize(from).map(Counted)
        }
    }
    let many: u32 = std::env::var("POSTROOM_MANY").map_or(200_000, |n| n.parse().unwrap());
    let declare = |broker: &Broker| -> Queue<Counted> {
        broker.queue("numbers").durable(Durability::Buffered).declare().unwrap()
    };
    let folder = Folder::new();
    drop(declare(&open(&folder)));
    {
        let store = Store::open(folder.file(), Options::new()).unwrap();
        let stream = store.reader().unwrap().stream("queue", "numbers").unwrap().unwrap().id;
        let item =
            |n: u32| Item { payload: n.to_string().into_bytes(), routing_key: "x".repeat(100), ..Item::default() };
        for first in (0..many).step_by(1000) {
            let batch = (first..first + 1000).fold(Batch::new(), |batch, n| batch.insert(stream, item(n)));
            store.submit_lazily(batch).unwrap();
            store.wait_for_room();
        }
        store.flush(Durability::Buffered).unwrap();
    }
    let (before, begin) = (resident(), std::time::Instant::now());
    let broker = open(&folder);
    let queue = declare(&broker);
    let took = begin.elapsed();
    println!("opening {many}: {took:?}, {} KiB more", (resident() - before.min(resident())) >> 10);
    assert_eq!(queue.len(), many as usize);
    assert!(READ.load(Ordering::Relaxed) <= 4096);
    for n in 0..20_000 {
        let delivery = queue.recv().unwrap();
        assert_eq!(delivery.payload().0, n);
        delivery.ack().unwrap();
    }
    assert!(resident().saturating_sub(before) < 40 << 20, "{} MiB more", (resident() - before) >> 20);
}
