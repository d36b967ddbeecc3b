//! The file of a store: who may have it, what it must be, and what users keep in it beside.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{ALL, Folder, item, open, payloads, queue};
use common::{eventually, within};
use postroom::store::rusqlite::{Connection, TransactionBehavior};
use postroom::store::{Batch, Durability, Item, Options, State, Store, StoreError, insert_in};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_second_store_hears_who_has_the_file() {
    let folder = Folder::new();
    let store = open(&folder);
    let refused = Store::open(folder.file(), Options::new()).unwrap_err();
    let StoreError::InUse { holder, .. } = &refused else { panic!("{refused}") };
    assert_eq!(holder.pid, std::process::id());
    assert!(refused.to_string().contains(&holder.pid.to_string()), "{refused}");
    store.close().unwrap();
    open(&folder);
}

#[test]
fn a_closed_store_refuses_and_closing_twice_is_fine() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    store.submit_lazily(Batch::new().insert(orders, item("kept"))).unwrap();
    let other = store.clone();
    store.close().unwrap();
    other.close().unwrap();
    assert_eq!(store.state(), State::Closed);
    assert_eq!(store.commit(Batch::new(), Durability::Sync), Err(StoreError::Closed));
    assert_eq!(store.submit_lazily(Batch::new()), Err(StoreError::Closed));
    let called = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&called);
    assert!(store.submit(Batch::new(), Durability::Sync, move |_| flag.store(true, Ordering::SeqCst)).is_err());
    assert!(!called.load(Ordering::SeqCst));
    assert!(store.reader().is_err());
    store.wait_for_room();
    let left = std::fs::metadata(folder.file().with_extension("db-wal"));
    assert!(left.is_err(), "the log went with the last connection");
    let store = open(&folder);
    assert_eq!(payloads(&store.reader().unwrap().read(orders, 0, ALL).unwrap()), ["kept"]);
}

#[test]
fn what_is_no_database_is_refused_and_left_alone() {
    let folder = Folder::new();
    let text = "This is a letter, not a database. ".repeat(100);
    std::fs::write(folder.file(), &text).unwrap();
    let refused = Store::open(folder.file(), Options::new()).unwrap_err();
    assert!(matches!(refused, StoreError::NotADatabase { .. }), "{refused:?}");
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), text);
    let nowhere = Store::open(folder.file().join("deeper.db"), Options::new()).unwrap_err();
    assert!(matches!(nowhere, StoreError::Io(_)), "{nowhere:?}");
}

#[test]
fn a_later_format_is_refused_and_left_alone() {
    let folder = Folder::new();
    open(&folder).close().unwrap();
    let file = Connection::open(folder.file()).unwrap();
    file.execute("UPDATE postroom_meta SET value = 42 WHERE name = 'format'", []).unwrap();
    drop(file);
    let bytes = std::fs::read(folder.file()).unwrap();
    let refused = Store::open(folder.file(), Options::new()).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 42, known: 4, .. }), "{refused:?}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), bytes);
}

#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let batch = (0..1000).fold(Batch::new(), |batch, _| batch.insert(orders, item(&"x".repeat(100))));
    store.commit(batch, Durability::Sync).unwrap();
    store.check().unwrap();
    store.close().unwrap();
    let mut bytes = std::fs::read(folder.file()).unwrap();
    // All but the page with the schema.
    bytes[8192..].fill(0x5A);
    std::fs::write(folder.file(), bytes).unwrap();
    let refused = match Store::open(folder.file(), Options::new()) {
        Err(error) => error,
        Ok(store) => store.reader().unwrap().read(orders, 0, ALL).unwrap_err(),
    };
    assert!(matches!(refused, StoreError::Corrupt(_)), "{refused:?}");
}

#[test]
fn a_database_of_the_users_gets_our_tables_and_keeps_its_own() {
    let folder = Folder::new();
    let file = Connection::open(folder.file()).unwrap();
    file.execute_batch("PRAGMA user_version = 7; CREATE TABLE invoice (id INTEGER); INSERT INTO invoice VALUES (1)")
        .unwrap();
    drop(file);
    let store = open(&folder);
    queue(&store);
    let reader = store.reader().unwrap();
    let mine: (i64, i64) = reader
        .sql()
        .query_row("SELECT (SELECT user_version FROM pragma_user_version), count(*) FROM invoice", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(mine, (7, 1));
    assert!(reader.sql().execute("DELETE FROM invoice", []).is_err(), "a reader only reads");
}

#[test]
fn the_view_is_for_people() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let message = Item { published_at: 1_700_000_000_000_000_000, routing_key: "order.placed".into(), ..item("hello") };
    store.commit(Batch::new().insert(orders, message), Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    let sql = "SELECT stream || ' ' || seq || ' ' || published || ' ' || routing_key || ' ' || CAST(payload AS TEXT) FROM postroom_items";
    let line: String = reader.sql().query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(line, "orders 0 2023-11-14 22:13:20 order.placed hello");
}

#[test]
fn rows_and_messages_of_one_transaction_appear_together_or_not_at_all() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    store.watch(move |stream, seqs| ears.lock().unwrap().push((stream, seqs)));
    let mut mine = store.connect().unwrap();
    mine.execute_batch("CREATE TABLE invoice (id INTEGER)").unwrap();

    store.commit(Batch::new().insert(orders, item("theirs")), Durability::Buffered).unwrap();
    let seq = store.transaction(&mut mine, |tx| {
        tx.execute("INSERT INTO invoice VALUES (1)", [])?;
        insert_in(tx, orders, &item("a"))?;
        insert_in(tx, orders, &item("b"))
    });
    assert_eq!(seq.unwrap(), 2);
    let failed: Result<(), StoreError> = store.transaction(&mut mine, |tx| {
        tx.execute("INSERT INTO invoice VALUES (2)", [])?;
        insert_in(tx, orders, &item("never"))?;
        Err(StoreError::Closed)
    });
    assert_eq!(failed, Err(StoreError::Closed));
    eventually("the watcher hears of them", || !heard.lock().unwrap().is_empty());
    let seqs = store.commit(Batch::new().insert(orders, item("c")).delete(orders, 1), Durability::Sync).unwrap();
    assert_eq!(seqs.as_slice(), [3]);
    assert_eq!(*heard.lock().unwrap(), [(orders, 1..3)]);
    let reader = store.reader().unwrap();
    assert_eq!(payloads(&reader.read(orders, 0, ALL).unwrap()), ["theirs", "b", "c"]);
    assert_eq!(reader.streams().unwrap()[0].count, 3);
    let invoices: i64 = mine.query_row("SELECT count(*) FROM invoice", [], |row| row.get(0)).unwrap();
    assert_eq!(invoices, 1);
}

#[test]
fn a_connection_to_another_file_is_refused() {
    let folder = Folder::new();
    let store = open(&folder);
    let mut other = Connection::open_in_memory().unwrap();
    let refused: Result<(), StoreError> = store.transaction(&mut other, |_| Ok(()));
    assert!(matches!(refused, Err(StoreError::Other(_))));
}

#[test]
fn the_writer_and_users_transactions_take_turns_under_load() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let (stop, committed) = (AtomicBool::new(false), AtomicUsize::new(0));
    within(LIMIT, move || {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        store.commit(Batch::new().insert(orders, item("s")), Durability::Buffered).unwrap();
                        committed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let users: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut mine = store.connect().unwrap();
                        for _ in 0..50 {
                            store.transaction(&mut mine, |tx| insert_in(tx, orders, &item("u"))).unwrap();
                        }
                    })
                })
                .collect();
            users.into_iter().for_each(|user| user.join().unwrap());
            stop.store(true, Ordering::Relaxed);
        });
        let count = store.reader().unwrap().streams().unwrap()[0].count;
        assert_eq!(count, 100 + committed.load(Ordering::Relaxed) as u64);
        let rows = store.reader().unwrap().read(orders, 0, ALL).unwrap();
        assert!(rows.iter().map(|row| row.seq).eq(0..count), "no place twice, none left out");
    });
}

#[test]
fn a_transaction_run_past_the_store_delays_commits_and_fails_none() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let mut mine = Connection::open(folder.file()).unwrap();
    let transaction = mine.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    insert_in(&transaction, orders, &item("mine")).unwrap();
    let ticket = store.submit_for_ticket(Batch::new().insert(orders, item("theirs")), Durability::Sync).unwrap();
    let ticket = ticket.wait_until(Instant::now() + Duration::from_millis(1500)).expect_err("the file is locked");
    eventually("it finds the lock", || store.stats().times_locked > 0);
    transaction.commit().unwrap();
    assert_eq!(ticket.wait().unwrap().as_slice(), [1]);
    assert_eq!(payloads(&store.reader().unwrap().read(orders, 0, ALL).unwrap()), ["mine", "theirs"]);
}
