//! What is SQLite's own: hooks, one writer at a time, transactions by hand.

use crate::common::{eventually, within};
use crate::lab::{Lab, SqliteLab, open};
use postroom::rusqlite::Connection;
use postroom::{Broker, Message, OutboxError, Queue, SqliteOutbox, Topic, TopicName};
use std::thread;
use std::time::{Duration, Instant};

const ORDERS: TopicName<u64> = TopicName::new("orders");
const LONG: Duration = Duration::from_secs(20);

fn post() -> (Broker, Topic<u64>, Queue<u64>) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    (broker, topic, queue)
}

#[test]
fn commits_of_a_watched_connection_wake_the_relay() {
    let lab = SqliteLab::new();
    let (broker, topic, queue) = post();
    let relay = lab.relay(&broker).poll(Duration::from_secs(3600)).topic(&topic).start().unwrap();
    eventually("it has the lease", || relay.stats().leases == 1);
    let mut db = lab.connection();
    lab.outbox.watch(&db).unwrap();
    for n in 0..20 {
        let committed = n % 3 != 0;
        lab.put_by(&mut db, n, committed);
        if !committed {
            continue;
        }
        let start = Instant::now();
        let delivery = queue.recv_timeout(LONG).unwrap();
        assert_eq!(*delivery.payload(), n);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        delivery.ack().unwrap();
    }
    assert!(relay.stop(LONG));
}

#[test]
fn commits_of_another_process_are_found_by_polling() {
    let lab = SqliteLab::new();
    let (broker, topic, queue) = post();
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("it has looked", || relay.stats().leases == 1);
    lab.put_from_elsewhere(1);
    queue.recv_timeout(LONG).unwrap().ack().unwrap();
    assert!(relay.stop(LONG));
}

#[test]
fn a_message_is_part_of_a_transaction_or_refused() {
    let lab = SqliteLab::new();
    let db = lab.connection();
    let error = lab.outbox.put(&db, ORDERS, "k", 1_u64).unwrap_err();
    assert!(matches!(error, OutboxError::NoTransaction { .. }), "{error}");
    db.execute_batch("BEGIN").unwrap();
    lab.outbox.put(&db, ORDERS, "k", 1_u64).unwrap();
    db.execute_batch("SAVEPOINT s").unwrap();
    lab.outbox.put(&db, ORDERS, "k", 2_u64).unwrap();
    db.execute_batch("ROLLBACK TO s; COMMIT").unwrap();
    assert_eq!(lab.stats().waiting, 1);
}

#[test]
fn a_table_that_is_missing_or_of_another_version_is_named() {
    let mut db = Connection::open_in_memory().unwrap();
    let outbox = SqliteOutbox::new("outbox").unwrap();
    let tx = db.transaction().unwrap();
    let error = outbox.put(&tx, ORDERS, "k", 1_u64).unwrap_err();
    assert_eq!(error.to_string(), "put: table \"outbox\" does not exist");
    outbox.create_table(&tx).unwrap();
    tx.execute_batch("UPDATE outbox_version SET version = 2").unwrap();
    let error = outbox.put(&tx, ORDERS, "k", 1_u64).unwrap_err();
    assert!(matches!(error, OutboxError::Version { found: 2, .. }), "{error}");
    assert!(SqliteOutbox::new("no; such").is_err());
}

#[test]
fn the_printed_statements_are_those_that_create_the_tables() {
    let db = Connection::open_in_memory().unwrap();
    let outbox = SqliteOutbox::new("my_outbox").unwrap();
    db.execute_batch(&outbox.ddl()).unwrap();
    db.execute_batch(&outbox.ddl()).unwrap();
    outbox.create_table(&db).unwrap();
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_master WHERE name LIKE 'my_outbox%' AND type = 'table'", [], |r| {
            r.get(0)
        })
        .unwrap();
    assert_eq!(tables, 3);
}

#[test]
fn a_locked_database_is_waited_out_without_a_loss_and_without_hurry() {
    within(Duration::from_secs(60), || {
        let lab = SqliteLab::new();
        let (broker, topic, queue) = post();
        let relay = lab.relay(&broker).lease(Duration::from_millis(400)).topic(&topic).start().unwrap();
        lab.put("orders", (0..50).map(|n| ("k", Message::new(n))).collect(), true);
        let deliveries: Vec<_> = (0..50).map(|_| queue.recv_timeout(LONG).unwrap()).collect();
        // Another program writes for so long that the lease ends meanwhile, and nothing can be marked.
        let writer = lab.connection();
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO effects VALUES (1)").unwrap();
        deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
        eventually("it finds the lock", || relay.stats().errors > 0);
        thread::sleep(Duration::from_secs(2));
        let stats = relay.stats();
        assert!(stats.errors < 25, "{stats:?}");
        assert_eq!(stats.leases, 0, "nobody knows whether it still has the lease, so it does not publish");
        assert!(stats.trouble.unwrap().contains("locked"));
        assert_eq!(stats.unmarked, 50);
        writer.execute_batch("COMMIT").unwrap();
        eventually("all are marked", || lab.stats().done == 50);
        lab.put("orders", vec![("k", Message::new(50))], true);
        assert_eq!(*queue.recv_timeout(LONG).unwrap().payload(), 50, "and none came twice");
        eventually("it is counted", || relay.stats().relayed == 51);
    });
}

#[test]
fn a_row_that_holds_something_else_is_dead_and_stops_nobody() {
    let lab = SqliteLab::new();
    let (broker, topic, queue) = post();
    lab.put("orders", (0..5).map(|n| ("k", Message::new(n))).collect(), true);
    lab.sql("UPDATE outbox SET payload = 3.5 WHERE id = 1; UPDATE outbox SET created_us = 'noon' WHERE id = 2");
    lab.sql("UPDATE outbox SET routing_key = x'ff' WHERE id = 4; UPDATE outbox SET payload = '77' WHERE id = 5");
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    let delivered = [queue.recv_timeout(LONG).unwrap(), queue.recv_timeout(LONG).unwrap()];
    assert_eq!(delivered.map(|delivery| *delivery.payload()), [2, 77], "text will do");
    eventually("the others are dead", || lab.dead().len() == 3);
    assert!(lab.dead().iter().all(|row| row.reason.contains("unreadable")), "{:?}", lab.dead());
    assert!(!relay.stop(Duration::ZERO));
}

#[test]
fn a_put_that_finds_the_database_locked_says_so() {
    let lab = SqliteLab::new();
    let (one, mut other) = (lab.connection(), open(&lab.path).unwrap());
    other.busy_timeout(Duration::from_millis(10)).unwrap();
    one.execute_batch("BEGIN IMMEDIATE").unwrap();
    let tx = other.transaction().unwrap();
    let error = lab.outbox.put(&tx, ORDERS, "k", 1_u64).unwrap_err();
    assert!(matches!(error, OutboxError::Busy { operation: "put", .. }) && error.is_transient(), "{error}");
}

#[test]
fn a_database_that_cannot_be_opened_yet_is_tried_again() {
    let lab = SqliteLab::new();
    let (broker, topic, queue) = post();
    lab.put("orders", vec![("k", Message::new(1))], true);
    let (path, opened) = (lab.path.clone(), std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0)));
    let attempts = std::sync::Arc::clone(&opened);
    let connect = move || match attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Connection::open("/no/such/directory/app.db"),
        1 => panic!("{}", crate::common::ON_PURPOSE),
        _ => open(&path),
    };
    crate::common::quiet();
    let relay = lab.outbox.relay(&broker, connect).topic(&topic).start().unwrap();
    queue.recv_timeout(LONG).unwrap().ack().unwrap();
    assert!(relay.stop(LONG));
    assert_eq!(opened.load(std::sync::atomic::Ordering::SeqCst), 3);
}

/// The first relay is stopped in its tracks, as by a debugger, for longer than its lease.
#[test]
fn a_relay_that_was_held_up_past_its_lease_publishes_nothing_more() {
    within(Duration::from_secs(60), || {
        let lab = SqliteLab::new();
        let (one, topic_of_one, queue_of_one) = post();
        let (other, topic_of_other, queue_of_other) = post();
        let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
        let held = Held { gate: std::sync::Arc::clone(&gate) };
        let path = lab.path.clone();
        let outbox = SqliteOutbox::with_codec("outbox", held).unwrap();
        lab.put("orders", (0..5).map(|n| ("k", Message::new(n))).collect(), true);
        let first = outbox.relay(&one, move || open(&path)).lease(Duration::from_millis(200)).topic(&topic_of_one);
        let first = first.start().unwrap();
        gate.wait(); // it is about to publish number 2
        // Which this one keeps, however long it is held up.
        let second = lab.relay(&other).lease(3 * LONG).topic(&topic_of_other).start().unwrap();
        let taken: Vec<u64> = (0..5).map(|_| *queue_of_other.recv_timeout(LONG).unwrap().payload()).collect();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        eventually("the lease has changed hands", || second.stats().leases == 1);
        gate.wait(); // it goes on
        eventually("it has gone on", || first.stats().relayed == 2 && first.stats().connected);
        thread::sleep(Duration::from_millis(100));
        // What it had in hand is not out, nor is anything behind it.
        assert_eq!((queue_of_one.len(), first.stats().leases), (2, 0));
    });
}

#[derive(Clone)]
struct Held {
    gate: std::sync::Arc<std::sync::Barrier>,
}

impl postroom::Codec<u64> for Held {
    fn name(&self) -> &str {
        "json"
    }
    fn encode(&self, n: &u64) -> Result<Vec<u8>, postroom::CodecError> {
        Ok(n.to_string().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<u64, postroom::CodecError> {
        let n = std::str::from_utf8(bytes)?.parse()?;
        if n == 2 {
            self.gate.wait();
            self.gate.wait();
        }
        Ok(n)
    }
}
