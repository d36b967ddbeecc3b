//! In a steady flow nothing is allocated per message.
//!
//! Steady means: routes are known, and the backlog does not grow. A backlog takes its memory in chunks of
//! many messages and gives most of it back once drained. A routing key longer than 22 bytes does not fit
//! into the envelope; it is allocated once, with its route, and shared.

// An allocator that counts cannot be had without it.
#![allow(unsafe_code, missing_docs)]
#![cfg(not(shuttle))]

use postroom::{Broker, Message, Queue, Topic};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests of this file share the count, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

const MESSAGES: u64 = 100_000;
/// More than the test harness itself needs to print lines and start threads meanwhile, far less than one per message.
const A_FEW: u64 = 1_000;

/// How often any thread allocated while `work` ran for all messages, after a run to warm up.
fn allocations(mut work: impl FnMut(u64)) -> u64 {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    work(MESSAGES / 10);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    work(MESSAGES);
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// Publishes so many under these keys in turn, at most 64 ahead of the worker so that the backlog stays the same.
fn publish_in_step(topic: &Topic<u64>, keys: &[&str], handled: &AtomicU64, n: u64) {
    let start = handled.load(Ordering::Acquire);
    for (i, key) in (0..n).zip(keys.iter().cycle()) {
        topic.publish(key, i).unwrap();
        while start + i >= handled.load(Ordering::Acquire) + 64 {
            std::thread::yield_now();
        }
    }
    while handled.load(Ordering::Acquire) < start + n {
        std::thread::yield_now();
    }
}

/// The allocations of publishing under these keys through a topic and a queue to a worker's handler.
fn published_to_a_worker(keys: &[&str]) -> u64 {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queue = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: &Message<u64>| _ = count.fetch_add(1, Ordering::Release);
    queue.consumer().start(handler).unwrap();
    let allocations = allocations(|n| publish_in_step(&topic, keys, &handled, n));
    assert!(broker.shutdown(Duration::from_secs(10)).is_clean());
    allocations
}

#[test]
fn publish_route_handle_and_ack_allocate_nothing() {
    let allocated = published_to_a_worker(&["order.placed"]);
    assert!(allocated < A_FEW, "{allocated} allocations for {MESSAGES} messages");
}

#[test]
fn long_routing_keys_are_allocated_once_and_not_per_publish() {
    let keys = ["order.placed.europe.belgium.ghent.online", "order.placed.europe.belgium.ghent.by-phone"];
    let allocated = published_to_a_worker(&keys);
    assert!(allocated < A_FEW, "{allocated} allocations for {MESSAGES} messages");
}

#[test]
fn send_receive_and_ack_allocate_nothing() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    let allocated = allocations(|n| {
        for i in 0..n {
            queue.send(i).unwrap();
            queue.recv().unwrap().ack().unwrap();
        }
    });
    assert!(allocated < A_FEW, "{allocated} allocations for {MESSAGES} messages");
}

#[test]
fn a_backlog_that_comes_and_goes_allocates_by_chunks_of_many_messages() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    let allocated = allocations(|n| {
        for _ in 0..n / 5_000 {
            (0..5_000).for_each(|i| _ = queue.send(i).unwrap());
            (0..5_000).for_each(|_| queue.recv().unwrap().ack().unwrap());
        }
    });
    assert!(allocated < MESSAGES / 10, "{allocated} allocations for {MESSAGES} messages");
}

#[test]
fn a_broadcast_allocates_by_chunks_of_many_messages() {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let subscribers = [topic.subscribe().open().unwrap(), topic.subscribe().open().unwrap()];
    let allocated = allocations(|n| {
        for _ in 0..n / 50 {
            (0..50).for_each(|i| _ = topic.publish("k", i).unwrap());
            subscribers.iter().for_each(|subscriber| (0..50).for_each(|_| drop(subscriber.recv().unwrap())));
        }
    });
    assert!(allocated < MESSAGES / 20, "{allocated} allocations for {MESSAGES} messages");
}

#[test]
fn what_handlers_take_one_by_one_is_put_where_others_stood() {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let handled = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&handled);
    let count = move |_: &Message<u64>| _ = counts.fetch_add(1, Ordering::Release);
    let _subscription = topic.subscribe().start(count).unwrap();
    let allocated = allocations(|n| {
        for i in 0..n {
            let before = handled.load(Ordering::Acquire);
            topic.publish("k", i).unwrap();
            while handled.load(Ordering::Acquire) == before {
                std::thread::yield_now();
            }
        }
    });
    // The head of each chunk, and a chunk more often than not is a single message.
    assert!(allocated < MESSAGES + MESSAGES / 10, "{allocated} allocations for {MESSAGES} messages");
}
