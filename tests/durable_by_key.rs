//! A backlog of a durable queue ordered by key stays in the file, and holds up nobody but its own keys.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::{eventually, quiet, within};
use postroom::store::Durability;
use postroom::{
    Broker, Codec, CodecError, Exhausted, Failure, Json, ManualClock, Message, Overflow, Queue, QueueBuilder, Retry,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn broker(folder: &Folder) -> Broker {
    Broker::open(folder.file()).unwrap()
}

/// Ordered by the hundreds, a window of eight.
fn queue(broker: &Broker, more: impl FnOnce(QueueBuilder<u32>) -> QueueBuilder<u32>) -> Queue<u32> {
    let queue = broker.queue("q").capacity(100_000).ordered_by(|n: &u32| n / 100).durable(Durability::Buffered);
    more(queue.window(8)).declare().unwrap()
}

fn take_all(queue: &Queue<u32>) -> Vec<u32> {
    let take = || {
        let delivery = queue.try_recv().ok()?;
        let n = **delivery;
        delivery.ack().unwrap();
        Some(n)
    };
    std::iter::from_fn(take).collect()
}

#[test]
fn a_key_in_hand_holds_up_no_other_wherever_that_stands() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = broker(&folder);
        let queue = queue(&broker, |queue| queue);
        queue.send_batch(0..100).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (wait, done) = (Mutex::new(wait), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&done);
        let work = move |n: &Message<u32>| {
            if **n == 0 {
                wait.lock().unwrap().recv().unwrap();
            }
            seen.lock().unwrap().push(**n);
        };
        let consumer = queue.consumer().workers(2).start(work).unwrap();
        // Behind the first hundred in the file, while the other worker sleeps.
        for n in [100, 300, 101, 200] {
            queue.send(n).unwrap();
            eventually("another key", || done.lock().unwrap().contains(&n));
        }
        assert_eq!(*done.lock().unwrap(), [100, 300, 101, 200]);
        go.send(()).unwrap();
        eventually("all", || done.lock().unwrap().len() == 104);
        assert_eq!(done.lock().unwrap()[4..], (0..100).collect::<Vec<_>>());
        consumer.stop();
        assert_eq!(queue.stats().unaccounted(), 0);
    });
}

#[test]
fn who_sleeps_is_woken_for_a_message_that_is_only_in_the_file() {
    within(LIMIT, || {
        for one_at_a_time in [false, true] {
            let folder = Folder::new();
            let broker = broker(&folder);
            let queue = broker.queue("q").durable(Durability::Buffered).window(1);
            let queue = if one_at_a_time { queue.one_at_a_time() } else { queue.ordered_by(|_: &u32| "one") };
            let queue = queue.declare().unwrap();
            queue.send_batch(0..100).unwrap();
            for n in 0..50 {
                let first = queue.recv().unwrap();
                assert_eq!(**first, 2 * n);
                let other = queue.clone();
                let sleeper = thread::spawn(move || {
                    let delivery = other.recv().unwrap();
                    let n = **delivery;
                    delivery.ack().unwrap();
                    n
                });
                // Long enough to be asleep, most of the times.
                thread::sleep(Duration::from_millis(4));
                first.ack().unwrap();
                assert_eq!(sleeper.join().unwrap(), 2 * n + 1);
            }
        }
    });
}

#[test]
fn what_is_dropped_is_not_read_before_it_is_gone_from_the_file() {
    within(LIMIT, || {
        for _ in 0..10 {
            let folder = Folder::new();
            let broker = broker(&folder);
            let queue = queue(&broker, |queue| queue.on_exhausted(Exhausted::Park).retry(Retry::none()));
            queue.send_batch((0..200).map(|n| n % 2 * 100 + n / 2)).unwrap();
            let first = queue.recv().unwrap();
            assert_eq!(**first, 0);
            first.retry().unwrap();
            assert_eq!(queue.drop_key("0"), 100);
            assert_eq!(take_all(&queue), (100..200).collect::<Vec<_>>());
            eventually("all letters", || queue.dead_letters().len() == 100);
            assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
        }
    });
}

#[test]
fn one_at_a_time_many_workers_take_all_of_a_backlog() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = broker(&folder);
        let queue = broker.queue("q").one_at_a_time().capacity(10_000).durable(Durability::Buffered).window(8);
        let queue: Queue<u32> = queue.declare().unwrap();
        queue.send_batch(0..1_000).unwrap();
        let done = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&done);
        let consumer =
            queue.consumer().workers(4).start(move |n: &Message<u32>| seen.lock().unwrap().push(**n)).unwrap();
        (1_000..2_000).for_each(|n| _ = queue.send(n).unwrap());
        eventually("all", || done.lock().unwrap().len() == 2_000);
        consumer.stop();
        assert_eq!(*done.lock().unwrap(), (0..2_000).collect::<Vec<_>>());
    });
}

/// Many producers and workers, failures, retries, parked keys that are released and others that are dropped: each key
/// in its order, everything once.
#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_goes_on() {
    quiet();
    for (window, keys) in [(1, 3), (4, 40), (16, 7), (64, 400)] {
        within(LIMIT, move || whatever_goes_on(window, keys));
    }
}

fn whatever_goes_on(window: usize, keys: u32) {
    const EACH: u32 = 2_000;
    const PRODUCERS: u32 = 3;
    let folder = Folder::new();
    let broker = broker(&folder);
    let retry = Retry::fixed(Duration::from_millis(2)).max_attempts(2);
    let queue = broker.queue("q").capacity(100_000).ordered_by(move |n: &u32| n % keys).retry(retry);
    let queue = queue.on_exhausted(Exhausted::Park).durable(Durability::Buffered).window(window).declare().unwrap();
    let done: Arc<Mutex<Vec<u32>>> = Arc::default();
    let busy: Arc<Mutex<BTreeMap<u32, u32>>> = Arc::default();
    let (seen, wrong) = (Arc::clone(&done), Arc::new(AtomicBool::new(false)));
    let overlapped = Arc::clone(&wrong);
    let work = move |n: &Message<u32>| {
        let other = busy.lock().unwrap().insert(**n % keys, **n);
        overlapped.fetch_or(other.is_some(), Ordering::SeqCst);
        let outcome = match **n % 97 {
            3 if n.attempt() == 1 => Err(Failure::transient("again")),
            7 if n.history().len() < 2 => Err(Failure::transient("park")),
            11 if n.attempt() == 1 => {
                busy.lock().unwrap().remove(&(**n % keys));
                panic!("on purpose")
            }
            _ => Ok(()),
        };
        if outcome.is_ok() {
            seen.lock().unwrap().push(**n);
        }
        busy.lock().unwrap().remove(&(**n % keys));
        outcome
    };
    let consumer = queue.consumer().workers(4).start(work).unwrap();
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|p| {
            let queue: Queue<u32> = queue.clone();
            thread::spawn(move || {
                for n in (p * EACH..(p + 1) * EACH).step_by(20) {
                    if n % 100 == 0 {
                        (n..n + 20).for_each(|n| {
                            queue
                                .send(Message::new(n).with_delay(Duration::from_micros(u64::from(n % 7) * 500)))
                                .unwrap();
                        });
                    } else {
                        queue.send_batch(n..n + 20).unwrap();
                    }
                }
            })
        })
        .collect();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                queue.parked().iter().for_each(|parked| _ = queue.release_key(&parked.key));
                thread::sleep(Duration::from_millis(1));
            }
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        let all = (EACH * PRODUCERS) as usize;
        let begin = std::time::Instant::now();
        while done.lock().unwrap().len() < all && begin.elapsed() < LIMIT / 2 {
            thread::sleep(Duration::from_millis(2));
        }
        end.store(true, Ordering::SeqCst);
        assert_eq!(done.lock().unwrap().len(), all, "{:?}", queue.stats());
    });
    assert!(!wrong.load(Ordering::SeqCst), "two of a key at once");
    consumer.stop();
    let done = done.lock().unwrap();
    let mut last = BTreeMap::new();
    // What has no delay, by producer and key.
    for n in done.iter().filter(|n| *n / 20 * 20 % 100 != 0) {
        let before = last.insert((n % keys, n / EACH), *n);
        assert!(before.is_none_or(|before| before < *n), "{n} after {before:?}");
    }
    let mut sorted = done.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..EACH * PRODUCERS).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0), "{:?}", queue.stats());
}

#[test]
fn shutdown_drains_what_is_only_in_the_file() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = broker(&folder);
        let queue = queue(&broker, |queue| queue);
        queue.send_batch(0..2_000).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        let _consumer =
            queue.consumer().workers(3).start(move |_: &Message<u32>| _ = seen.fetch_add(1, Ordering::SeqCst));
        let report = broker.shutdown(LIMIT);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(count.load(Ordering::SeqCst), 2_000);
    });
}

#[test]
fn a_closed_queue_ends_though_a_parked_key_has_messages_in_the_file() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = broker(&folder);
        let queue = queue(&broker, |queue| queue.on_exhausted(Exhausted::Park).retry(Retry::none()));
        queue.send_batch((0..90).chain(100..110)).unwrap();
        queue.recv().unwrap().retry().unwrap();
        assert_eq!(queue.parked()[0].waiting, 90);
        let receiver = queue.clone();
        let thread =
            thread::spawn(move || std::iter::from_fn(|| receiver.recv().ok().map(|d| d.ack().unwrap())).count());
        eventually("the others", || queue.len() == 90);
        broker.shutdown(Duration::from_secs(20));
        assert_eq!(thread.join().unwrap(), 10);
        assert_eq!((queue.len(), queue.stats().unaccounted()), (90, 0));
    });
}

/// Counts what it decodes.
#[derive(Clone, Default)]
struct Counting {
    decoded: Arc<AtomicUsize>,
    /// Refuses these, if not 0.
    refuses: Arc<AtomicU32>,
}

impl Codec<u32> for Counting {
    fn name(&self) -> &str {
        "counting"
    }
    fn encode(&self, n: &u32) -> Result<Vec<u8>, CodecError> {
        Json.encode(n)
    }
    fn decode(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        self.decoded.fetch_add(1, Ordering::SeqCst);
        let n: u32 = Json.decode(bytes)?;
        let refuses = self.refuses.load(Ordering::SeqCst);
        if refuses > 0 && n.is_multiple_of(refuses) { Err("no such number".into()) } else { Ok(n) }
    }
}

fn counted(broker: &Broker, codec: &Counting, policy: Exhausted) -> Queue<u32> {
    let queue = broker.queue("q").capacity(100_000).ordered_by(|n: &u32| n / 100).on_exhausted(policy);
    let queue = queue.retry(Retry::none()).durable_with(Durability::Buffered, codec.clone());
    queue.window(8).declare().unwrap()
}

#[test]
fn a_stopped_queue_reads_nothing_until_it_is_resumed() {
    let (folder, clock, codec) = (Folder::new(), ManualClock::new(), Counting::default());
    {
        let (broker, _simulation) = simulated(&folder, &clock);
        let queue = counted(&broker, &codec, Exhausted::Stop);
        queue.send_batch((0..50).chain(100..150)).unwrap();
        queue.recv().unwrap().retry().unwrap();
        assert!(queue.is_stopped());
        let before = codec.decoded.load(Ordering::SeqCst);
        assert!(queue.try_recv().is_err() && queue.try_recv().is_err());
        assert_eq!((codec.decoded.load(Ordering::SeqCst), queue.len()), (before, 100));
        flush(&broker);
    }
    codec.decoded.store(0, Ordering::SeqCst);
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = counted(&broker, &codec, Exhausted::Stop);
    assert!(queue.is_stopped() && queue.try_recv().is_err());
    assert_eq!((codec.decoded.load(Ordering::SeqCst), queue.len()), (1, 100), "the one that stopped it");
    assert!(queue.resume());
    let all = take_all(&queue);
    assert_eq!(all.iter().filter(|n| **n < 100).copied().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert_eq!((all.len(), queue.stats().unaccounted()), (100, 0));
}

#[test]
fn what_cannot_be_decoded_holds_up_nobody_wherever_it_stands() {
    let (folder, clock, codec) = (Folder::new(), ManualClock::new(), Counting::default());
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = counted(&broker, &codec, Exhausted::Park);
    queue.send_batch((1..100).chain(101..200)).unwrap();
    let (first, other) = (queue.recv().unwrap(), queue.recv().unwrap());
    assert_eq!((**first, **other), (1, 101));
    other.ack().unwrap();
    // Of both keys, some have been passed over before.
    let passed = take_all(&queue);
    assert!(passed.len() == 98 && passed.iter().all(|n| *n > 101));
    codec.refuses.store(10, Ordering::SeqCst);
    first.ack().unwrap();
    let rest = take_all(&queue);
    assert!(rest.is_sorted() && rest.iter().filter(|n| **n % 10 != 0).count() == 89, "{rest:?}");
    assert_eq!(rest.len() + queue.undecodable().len(), 98);
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
}

#[test]
fn a_key_that_is_dropped_leaves_nothing_behind_and_what_cannot_be_decoded_apart() {
    let (folder, clock, codec) = (Folder::new(), ManualClock::new(), Counting::default());
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = counted(&broker, &codec, Exhausted::Park);
    queue.send_batch((1..100).chain(100..200)).unwrap();
    queue.recv().unwrap().retry().unwrap();
    assert_eq!(queue.parked()[0].waiting, 99);
    codec.refuses.store(10, Ordering::SeqCst);
    let dropped = queue.drop_key("0");
    let apart = queue.undecodable().len();
    assert!(dropped >= 90 && apart >= 9, "{dropped} {apart}");
    assert_eq!(queue.dead_letters().len(), dropped);
    let rest = take_all(&queue);
    assert!(rest.iter().all(|n| *n >= 100));
    assert_eq!(dropped + rest.len() + queue.undecodable().len(), 199);
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
    // What comes under the key from now on flows.
    queue.send(1).unwrap();
    assert_eq!(take_all(&queue), [1]);
}

#[test]
fn capacity_counts_what_is_only_in_the_file() {
    let folder = Folder::new();
    let broker = broker(&folder);
    let queue = queue(&broker, |queue| queue.capacity(100).overflow(Overflow::Reject));
    queue.send_batch(0..100).unwrap();
    assert!(queue.try_send(100).is_err());
    let first = queue.recv().unwrap();
    assert!(queue.try_recv().is_err());
    queue.try_send(200).unwrap();
    assert!(queue.try_send(201).is_err());
    first.ack().unwrap();
    assert_eq!(take_all(&queue).len(), 100);
    assert!((0..101).filter(|n| queue.try_send(*n).is_ok()).count() == 100);
    assert_eq!(queue.purge(), 100);
    assert_eq!((queue.len(), queue.stats().unaccounted()), (0, 0));
}

#[test]
fn a_full_backlog_drops_some_and_keeps_order() {
    for overflow in [Overflow::DropOldest, Overflow::DropNewest, Overflow::DeadLetter] {
        let folder = Folder::new();
        let broker = broker(&folder);
        let queue = queue(&broker, |queue| queue.capacity(100).overflow(overflow));
        queue.send_batch(0..80).unwrap();
        let first = queue.recv().unwrap();
        assert!(queue.try_recv().is_err());
        (80..300).for_each(|n| _ = queue.send(n));
        first.ack().unwrap();
        eventually("the last count", || queue.stats().unaccounted() == 0);
        let mut last = [0; 3];
        let rest = take_all(&queue);
        for &n in &rest {
            assert!(n > last[n as usize / 100], "{overflow:?}: {n}");
            last[n as usize / 100] = n;
        }
        assert_eq!((rest.len(), queue.len(), queue.stats().unaccounted()), (100, 0, 0), "{overflow:?}");
        flush(&broker);
        drop((broker, queue));
        let broker = self::broker(&folder);
        let queue = self::queue(&broker, |queue| queue.capacity(100).overflow(overflow));
        assert_eq!(queue.len(), 0, "{overflow:?}");
    }
}

#[test]
fn what_expires_in_the_file_is_found_when_its_turn_comes() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, simulation) = simulated(&folder, &clock);
    let queue = queue(&broker, |queue| queue.ttl(Duration::from_secs(10)));
    queue.send_batch(0..100).unwrap();
    let first = queue.recv().unwrap();
    simulation.advance(Duration::from_secs(11));
    queue.send_batch(100..105).unwrap();
    assert_eq!(take_all(&queue), (100..105).collect::<Vec<_>>());
    first.ack().unwrap();
    assert!(take_all(&queue).is_empty());
    assert_eq!(
        (queue.len(), queue.dead_letters().len(), queue.stats().unaccounted()),
        (0, 99, 0),
        "{:?}",
        queue.stats()
    );
}

#[test]
fn a_key_is_dropped_as_a_whole_while_workers_go_on_with_others() {
    within(LIMIT, || {
        for round in 0..20 {
            let folder = Folder::new();
            let broker = broker(&folder);
            let queue = queue(&broker, |queue| queue.on_exhausted(Exhausted::Park).retry(Retry::none()));
            queue.send_batch((0..1_000).map(|n| n % 10 * 100 + n / 10)).unwrap();
            let (done, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
            let (count, of_key) = (Arc::clone(&done), Arc::clone(&seen));
            let work = move |n: &Message<u32>| {
                count.fetch_add(1, Ordering::SeqCst);
                if **n < 100 {
                    of_key.lock().unwrap().push(**n);
                    return Err(Failure::transient("park"));
                }
                Ok(())
            };
            let consumer = queue.consumer().workers(2).start(work).unwrap();
            eventually("it is parked", || !queue.parked().is_empty());
            assert_eq!(queue.drop_key("0"), 100, "round {round}");
            eventually("the others", || done.load(Ordering::SeqCst) >= 901);
            eventually("all", || queue.is_empty() && queue.in_flight() == 0);
            assert_eq!(*seen.lock().unwrap(), [0]);
            consumer.stop();
            eventually("all letters", || queue.dead_letters().len() == 100);
            assert_eq!(queue.stats().unaccounted(), 0);
        }
    });
}

#[test]
fn a_purge_leaves_no_key_waiting_for_what_it_took() {
    within(LIMIT, || {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        let (broker, simulation) = simulated(&folder, &clock);
        let queue = broker.queue("q").ordered_by(|n: &u32| n / 100).retry(Retry::none()).on_exhausted(Exhausted::Park);
        let queue: Queue<u32> = queue.durable(Durability::Buffered).window(1).declare().unwrap();
        queue.send(0).unwrap();
        queue.recv().unwrap().retry().unwrap();
        queue.send(Message::new(1).with_delay(Duration::from_secs(1))).unwrap();
        queue.send_batch(100..104).unwrap();
        simulation.advance(Duration::from_secs(1));
        assert_eq!(take_all(&queue), [100, 101, 102, 103]);
        assert_eq!(queue.parked()[0].waiting, 2);
        assert_eq!(queue.purge(), 2);
        assert_eq!((queue.stats().keys, queue.parked().len(), queue.stats().unaccounted()), (0, 0, 0));
        queue.close();
        assert!(queue.recv().is_err());
    });
}

#[test]
fn receivers_see_the_end_though_what_their_keys_miss_cannot_be_read_any_more() {
    within(LIMIT, || {
        // In some rounds a sleeper has looked after the queue was closed and before it had ended.
        for _ in 0..20 {
            let folder = Folder::new();
            let broker = broker(&folder);
            let queue = queue(&broker, |queue| queue.window(1));
            queue.send_batch((0..50).chain(100..150)).unwrap();
            // Of both keys, all was passed over while one of each was in hand.
            let in_hand: Vec<_> = (0..2).map(|_| queue.recv().unwrap()).collect();
            assert!(queue.try_recv().is_err());
            let sleepers = [0; 8].map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.recv().is_err())
            });
            thread::sleep(Duration::from_millis(2));
            // It closes the file.
            broker.shutdown(Duration::ZERO);
            assert!(sleepers.into_iter().all(|sleeper| sleeper.join().unwrap()));
            assert!(queue.recv().is_err() && queue.recv_timeout(Duration::from_secs(1)).is_err());
            drop(in_hand);
        }
    });
}
