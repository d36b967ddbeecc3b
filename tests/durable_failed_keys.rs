//! What has failed in a durable queue ordered by key may be in the file alone when that is opened again: its key waits
//! for it all the same, and no other does.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::within;
use postroom::store::{Batch, Durability};
use postroom::{
    Broker, Codec, CodecError, Exhausted, Expired, Json, ManualClock, Message, Queue, QueueBuilder, RecvError, Retry,
};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// How many keys; message n is of key n % KEYS.
const KEYS: u32 = 50;

type Settings = fn(QueueBuilder<u32>) -> QueueBuilder<u32>;

struct World {
    folder: Folder,
    clock: ManualClock,
    settings: Settings,
}

fn plain(queue: QueueBuilder<u32>) -> QueueBuilder<u32> {
    queue.ordered_by(|n: &u32| n % KEYS)
}

fn message(n: u32) -> Message<u32> {
    Message::new(n).with_key((n % KEYS).to_string())
}

impl World {
    /// Of each key but the last ten, the first of three has failed, and waits for a second for each.
    fn new(settings: Settings) -> Self {
        let world = Self { folder: Folder::new(), clock: ManualClock::new(), settings };
        let (broker, _simulation) = simulated(&world.folder, &world.clock);
        let queue = world.queue(&broker);
        queue.send_batch((0..3 * KEYS).map(message)).unwrap();
        let first: Vec<_> = (0..KEYS).map(|_| queue.recv().unwrap()).collect();
        for delivery in first {
            let n = **delivery;
            if n < KEYS - 10 { delivery.retry_after(SECOND * (1 + n)).unwrap() } else { delivery.ack().unwrap() }
        }
        flush(&broker);
        Self { folder: world.folder.killed(), ..world }
    }

    fn queue(&self, broker: &Broker) -> Queue<u32> {
        let queue = broker.queue("q").capacity(10_000).durable(Durability::Buffered).window(2);
        (self.settings)(queue).declare().unwrap()
    }
}

fn take_all(queue: &Queue<u32>) -> Vec<u32> {
    let take = || {
        let delivery = queue.try_recv().ok()?;
        assert_eq!(delivery.attempt(), if **delivery < KEYS - 10 { 2 } else { 1 });
        let n = **delivery;
        delivery.ack().unwrap();
        Some(n)
    };
    std::iter::from_fn(take).collect()
}

#[test]
fn each_key_waits_for_its_own_and_no_other_does() {
    for settings in [plain as Settings, |queue| queue.ordered_by_key()] {
        let world = World::new(settings);
        let (broker, simulation) = simulated(&world.folder, &world.clock);
        let queue = world.queue(&broker);
        assert_eq!((queue.delayed(), queue.len()), (40, 100));
        assert_eq!(take_all(&queue).len(), 20, "of the keys that nothing has failed of");
        for n in 0..5 {
            simulation.advance(SECOND);
            assert_eq!(take_all(&queue), [n, n + KEYS, n + 2 * KEYS]);
        }
        drop((broker, simulation, queue));
        // What is overdue comes in its time's order, before all that follows it.
        world.clock.advance(20 * SECOND);
        let (broker, simulation) = simulated(&world.folder, &world.clock);
        let queue = world.queue(&broker);
        assert_eq!((queue.delayed(), queue.len()), (15, 20 + 70));
        let first: Vec<u32> = queue.list(usize::MAX).iter().map(|message| **message).collect();
        assert!((1..10).contains(&first.len()) && first.iter().all(|n| (5..25).contains(n)), "{first:?}");
        assert_eq!(take_all(&queue).len(), 60);
        simulation.advance(20 * SECOND);
        assert_eq!(take_all(&queue).len(), 45);
        assert_eq!((queue.stats().keys, queue.stats().unaccounted()), (0, 0));
    }
}

/// Holds so many that have failed, of a key each, and wait for a second for each.
fn failed(n: u32, settings: Settings) -> World {
    let world = World { folder: Folder::new(), clock: ManualClock::new(), settings };
    let (broker, _simulation) = simulated(&world.folder, &world.clock);
    let queue = world.queue(&broker);
    queue.send_batch(0..n).unwrap();
    let all: Vec<_> = (0..n).map(|_| queue.recv().unwrap()).collect();
    for delivery in all {
        let n = **delivery;
        delivery.retry_after(SECOND * (1 + n)).unwrap();
    }
    flush(&broker);
    World { folder: world.folder.killed(), ..world }
}

fn take_one(queue: &Queue<u32>) -> u32 {
    let delivery = queue.recv().unwrap();
    let n = **delivery;
    delivery.ack().unwrap();
    n
}

#[test]
fn what_is_overdue_is_not_overtaken_by_what_keeps_coming() {
    let world = failed(48, |queue| queue.ordered_by(|n: &u32| *n).window(64).capacity(60));
    world.clock.advance(SECOND * 60);
    let (broker, _simulation) = simulated(&world.folder, &world.clock);
    let queue = world.queue(&broker);
    // As many as its capacity lets, always fewer than its window.
    let mut fresh = 100..;
    queue.send_batch(fresh.by_ref().take(12)).unwrap();
    for n in 0..48 {
        assert_eq!(take_one(&queue), n);
        queue.try_send(fresh.next().unwrap()).unwrap();
    }
    (100..200).for_each(|n| assert_eq!((take_one(&queue), queue.try_send(n + 60).is_ok()), (n, true)));
    assert_eq!((queue.len(), queue.stats().unaccounted()), (60, 0));
}

#[test]
fn who_clears_the_queue_frees_every_key() {
    for wait in [0, 20, 60] {
        let world = World::new(plain);
        world.clock.advance(SECOND * wait);
        let (broker, _simulation) = simulated(&world.folder, &world.clock);
        let queue = world.queue(&broker);
        let mut all: Vec<u32> = queue.drain().iter().map(|message| **message).collect();
        all.sort_unstable();
        assert_eq!(all, (0..3 * KEYS).filter(|n| !(KEYS - 10..KEYS).contains(n)).collect::<Vec<_>>());
        assert_eq!((queue.stats().keys, queue.stats().unaccounted()), (0, 0));
        queue.send(0).unwrap();
        queue.recv().unwrap().ack().unwrap();
    }
}

/// Decodes nothing below a number once it is told to.
struct Forgetful(u32);

impl Codec<u32> for Forgetful {
    fn name(&self) -> &str {
        "json"
    }
    fn encode(&self, n: &u32) -> Result<Vec<u8>, CodecError> {
        Json.encode(n)
    }
    fn decode(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        let n = Json.decode(bytes)?;
        if n < self.0 { Err("no".into()) } else { Ok(n) }
    }
}

#[test]
fn one_that_cannot_be_decoded_frees_its_key_once_it_is_read() {
    for forgotten in [5, KEYS] {
        let world = World::new(|queue| queue.ordered_by_key());
        let (broker, simulation) = simulated(&world.folder, &world.clock);
        let queue = broker.queue("q").capacity(10_000).ordered_by_key().window(2);
        let queue = queue.durable_with(Durability::Buffered, Forgetful(forgotten)).declare().unwrap();
        let gone = forgotten.min(40);
        let mut taken = take_all(&queue);
        simulation.advance(5 * SECOND);
        taken.extend(take_all(&queue));
        assert!((0..5).all(|n| taken.contains(&(n + KEYS))), "{taken:?}");
        simulation.advance(35 * SECOND);
        taken.extend(take_all(&queue));
        assert_eq!(taken.len() as u32, 140 - gone);
        assert_eq!((queue.undecodable().len() as u32, queue.stats().keys), (gone, 0));
        assert_eq!(queue.stats().unaccounted(), 0);
    }
}

#[test]
fn what_somebody_deletes_holds_up_its_key_no_longer_than_all_are_read() {
    let world = World::new(plain);
    let (broker, simulation) = simulated(&world.folder, &world.clock);
    let queue = world.queue(&broker);
    let store = broker.store().unwrap();
    let stream = store.reader().unwrap().stream("queue", "q").unwrap().unwrap().id;
    store.commit((30..40).fold(Batch::new(), |batch, n| batch.delete(stream, n)), Durability::Buffered).unwrap();
    assert_eq!(take_all(&queue).len(), 20);
    simulation.advance(60 * SECOND);
    assert_eq!(take_all(&queue).len(), 30 * 3 + 10 * 2);
    assert_eq!((queue.len(), queue.delayed(), queue.stats().keys), (0, 0, 0));
}

#[test]
fn what_has_expired_meanwhile_is_not_delivered_and_frees_its_key() {
    let world = World::new(|queue| plain(queue).ttl(10 * SECOND).expired(Expired::Drop));
    world.clock.advance(SECOND * 60);
    let (broker, simulation) = simulated(&world.folder, &world.clock);
    let queue = world.queue(&broker);
    queue.send_batch(3 * KEYS..4 * KEYS).unwrap();
    assert_eq!(take_all(&queue), (3 * KEYS..4 * KEYS).collect::<Vec<_>>());
    simulation.advance(SECOND);
    assert_eq!((queue.stats().expired, queue.stats().keys, queue.stats().unaccounted()), (140, 0, 0));
}

#[test]
fn a_stopped_queue_reads_none_of_them_until_it_is_resumed() {
    within(LIMIT, || {
        let world =
            World::new(|queue| plain(queue).retry(Retry::fixed(SECOND).max_attempts(2)).on_exhausted(Exhausted::Stop));
        let (broker, simulation) = simulated(&world.folder, &world.clock);
        let queue = world.queue(&broker);
        simulation.advance(SECOND);
        let mut stops = queue.recv().unwrap();
        while stops.attempt() < 2 {
            stops.ack().unwrap();
            stops = queue.recv().unwrap();
        }
        stops.retry().unwrap();
        assert!(queue.is_stopped());
        flush(&broker);
        let folder = world.folder.killed();
        drop((broker, simulation, queue));
        // With threads, and all of them due.
        let clock = ManualClock::new();
        clock.advance(SECOND * 60);
        let broker = Broker::builder().clock(clock).store(folder.file()).build().unwrap();
        let queue = world.queue(&broker);
        assert!(queue.is_stopped());
        assert!(matches!(queue.try_recv(), Err(postroom::TryRecvError::Empty)));
        assert!(queue.list(usize::MAX).len() <= 10);
        let consumer = queue.consumer().workers(2).start(|_: &Message<u32>| ()).unwrap();
        assert!(broker.wait_idle(LIMIT), "nothing can be done");
        assert!(queue.len() > 100);
        assert!(queue.resume());
        assert!(broker.wait_idle(LIMIT));
        assert_eq!((queue.len(), queue.stats().keys, queue.stats().unaccounted()), (0, 0, 0));
        consumer.stop();
    });
}

#[test]
fn a_closed_queue_hands_out_all_of_them_before_it_ends() {
    within(LIMIT, || {
        for wait in [0, 60] {
            let world = World::new(plain);
            world.clock.advance(SECOND * wait);
            let broker = Broker::builder().clock(world.clock.clone()).store(world.folder.file()).build().unwrap();
            let queue = world.queue(&broker);
            queue.close();
            let mut n = 0;
            if wait == 0 {
                while queue.delayed() > 0 {
                    world.clock.advance(SECOND * 10);
                    while let Ok(delivery) = queue.try_recv() {
                        delivery.ack().unwrap();
                        n += 1;
                    }
                }
            }
            n += std::iter::from_fn(|| queue.recv().ok().map(|delivery| delivery.ack().unwrap())).count();
            assert_eq!(n, 140);
            assert!(matches!(queue.recv(), Err(RecvError::Closed)));
            assert_eq!(queue.stats().unaccounted(), 0);
        }
    });
}
