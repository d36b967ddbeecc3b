//! A system that has no more threads to give: a consumer has all the workers it asked for, or those it had.
#![cfg(target_os = "linux")]

mod common;

use common::{eventually, threads_named, within};
use postroom::{Broker, Consumer, Log, Message, Queue, Record, Start};
use std::process::Command;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
/// More than there is room for.
const TOO_MANY: usize = 1_000;

/// Some stacks fit into the memory that the child may address.
const STACK: usize = 256 << 20;
const MEMORY_KIB: usize = 4 << 20;

#[test]
fn a_refused_thread_leaves_a_consumer_as_it_was() {
    let limited = format!("ulimit -v {MEMORY_KIB} && exec \"$0\" --exact child --nocapture --test-threads 1");
    let child = Command::new("sh")
        .args(["-c", &limited])
        .arg(std::env::current_exe().unwrap())
        .env("POSTROOM_FEW_THREADS", "1")
        .env("RUST_MIN_STACK", STACK.to_string())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn child() {
    if std::env::var_os("POSTROOM_FEW_THREADS").is_none() {
        return;
    }
    within(LONG, || {
        let broker = Broker::new();
        of_a_queue(&broker);
        of_a_group(&broker);
        assert!(broker.shutdown(LONG).is_clean());
    });
}

fn of_a_queue(broker: &Broker) {
    let queue: Queue<u32> = broker.queue("orders").declare().unwrap();
    queue.send(1).unwrap();
    assert_refused(queue.consumer().workers(TOO_MANY).start(|_: &Message<u32>| ()).map(drop));
    assert_eq!((threads_named("orders-"), queue.stats().delivered, queue.len()), (0, 0, 1));

    let two = queue.consumer().workers(2).start(|_: &Message<u32>| ()).unwrap();
    assert_stays_at_two(&two, "orders-");
    eventually("the message is handled", || queue.stats().acked == 1);
    two.stop();
}

fn of_a_group(broker: &Broker) {
    let log: Log<u32> = broker.log("prices").declare().unwrap();
    let group = log.group("shown").start(Start::Earliest).unwrap();
    log.append(1).unwrap();
    assert_refused(group.consumer().workers(TOO_MANY).start(|_: &Record<u32>| ()).map(drop));
    assert_eq!((threads_named("prices"), group.lag()), (0, 1));

    let two = group.consumer().workers(2).start(|_: &Record<u32>| ()).unwrap();
    assert_stays_at_two(&two, "prices");
    eventually("the record is handled", || group.lag() == 0);
}

fn assert_stays_at_two(consumer: &Consumer, threads: &str) {
    assert_refused(consumer.scale_to(TOO_MANY));
    assert_eq!(consumer.workers(), 2);
    eventually("those who came in vain have left", || threads_named(threads) == 2);
}

fn assert_refused(result: Result<(), postroom::Error>) {
    let words = result.unwrap_err().to_string();
    assert!(words.contains("the system refused a thread"), "{words}");
}
