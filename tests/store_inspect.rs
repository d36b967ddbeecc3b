//! A look into a file shows what is there, and leaves everything as it was.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, item, payloads};
use postroom::store::rusqlite::Connection;
use postroom::store::{Batch, Durability, Inspector, Limit, Options, Store, StoreError};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const ALL: Limit = Limit { items: usize::MAX, bytes: usize::MAX };

fn open(folder: &Folder) -> Store {
    Store::open(folder.file(), Options::new()).expect("the file is free")
}

fn filled(store: &Store, payload: &str) {
    let orders = store.declare("queue", "orders", "s").unwrap();
    store.commit(Batch::new().insert(orders, item(payload)), Durability::Buffered).unwrap();
}

fn payloads_in(inspector: &Inspector) -> Vec<String> {
    let orders = inspector.streams().unwrap()[0].id;
    payloads(&inspector.look(|reader| reader.read(orders, 0, ALL)).unwrap())
}

/// Every file of a folder, with what it holds.
fn everything(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder.file().parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())).collect()
}

/// What a process that is killed leaves, or somebody who copies files.
fn copy(from: &Folder, ends: &[&str]) -> Folder {
    let to = Folder::new();
    let name = |path: &Path, end: &str| format!("{}{end}", path.display());
    ends.iter().for_each(|end| _ = fs::copy(name(&from.file(), end), name(&to.file(), end)).unwrap());
    to
}

#[test]
fn a_file_that_is_closed_is_read_without_a_trace() {
    let folder = Folder::new();
    let store = open(&folder);
    filled(&store, "a");
    store.close().unwrap();

    let before = everything(&folder);
    let inspector = Inspector::open(folder.file()).unwrap();
    assert_eq!((payloads_in(&inspector), inspector.holder()), (vec!["a".to_owned()], Ok(None)));
    assert_eq!((inspector.format(), inspector.sizes().unwrap().1), (4, 0));
    assert!(inspector.path().is_absolute());
    assert_eq!(everything(&folder).keys().collect::<Vec<_>>(), ["store.db", "store.db.lock"]);
    assert!(everything(&folder) == before);
}

#[test]
fn a_file_that_is_open_shows_what_is_committed_and_who_has_it() {
    let folder = Folder::new();
    let store = open(&folder);
    filled(&store, "a");
    let inspector = Inspector::open(folder.file()).unwrap();
    assert_eq!(payloads_in(&inspector), ["a"]);
    filled(&store, "b");
    assert_eq!(payloads_in(&inspector), ["a", "b"], "each look sees the file as it is then");
    assert_eq!(inspector.holder().unwrap().unwrap().pid, std::process::id());
    store.close().unwrap();
    assert_eq!((payloads_in(&inspector).len(), inspector.holder()), (2, Ok(None)));
    filled(&open(&folder), "c");
    assert_eq!(payloads_in(&inspector).len(), 3);
}

#[test]
fn the_log_of_a_killed_process_is_read_and_stays_as_it_is() {
    let folder = Folder::new();
    let store = open(&folder);
    filled(&store, "a");
    let killed = copy(&folder, &["", "-wal", "-shm", ".lock"]);
    let before = everything(&killed);
    assert!(!before["store.db-wal"].is_empty());
    let inspector = Inspector::open(killed.file()).unwrap();
    assert_eq!((payloads_in(&inspector), inspector.holder()), (vec!["a".to_owned()], Ok(None)));
    assert!(inspector.sizes().unwrap().1 > 0);
    assert!(everything(&killed) == before);

    let copied = copy(&folder, &["", "-wal"]);
    let before = everything(&copied);
    assert_eq!(payloads_in(&Inspector::open(copied.file()).unwrap()), ["a"]);
    let mut after = everything(&copied);
    after.remove("store.db-shm");
    assert!(after == before, "the log and the database are as they were");
}

#[test]
fn a_look_sees_one_moment_and_changes_nothing() {
    let folder = Folder::new();
    let store = open(&folder);
    filled(&store, "a");
    let inspector = Inspector::open(folder.file()).unwrap();
    let counts = inspector.look(|reader| {
        let first = reader.streams()?[0].count;
        filled(&store, "b");
        Ok((first, reader.streams()?[0].count))
    });
    assert_eq!(counts, Ok((1, 1)));
    let refused = inspector.look(|reader| Ok(reader.sql().execute("DELETE FROM postroom_item", [])?));
    assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    assert_eq!(payloads_in(&inspector).len(), 2);
}

#[test]
fn a_look_begins_anew_if_somebody_opens_the_file_meanwhile() {
    let folder = Folder::new();
    filled(&open(&folder), "a");
    let inspector = Inspector::open(folder.file()).unwrap();
    let looks = std::cell::Cell::new(0);
    let seen = inspector.look(|reader| {
        let count = reader.streams()?[0].count;
        looks.set(looks.get() + 1);
        if looks.get() == 1 {
            filled(&open(&folder), "b");
        }
        Ok(count)
    });
    assert_eq!((seen, looks.get()), (Ok(2), 2));
}

#[test]
fn what_is_no_file_of_ours_is_told_apart_and_left_alone() {
    let folder = Folder::new();
    let path = folder.file();
    let refused = || Inspector::open(&path).map(|_| ()).unwrap_err();
    assert!(matches!(refused(), StoreError::Missing { .. }));
    assert!(matches!(Inspector::open(path.join("no/folder")), Err(StoreError::Missing { .. })));
    fs::write(&path, "no database, but long enough to look like a page of something".repeat(9)).unwrap();
    assert!(matches!(refused(), StoreError::NotADatabase { .. }));
    for sql in [None, Some("CREATE TABLE mine (a)")] {
        fs::write(&path, "").unwrap();
        sql.into_iter().for_each(|sql| Connection::open(&path).unwrap().execute_batch(sql).unwrap());
        assert!(matches!(refused(), StoreError::NotOurs { .. }), "{sql:?}");
    }
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE postroom_mine (a)").unwrap();
    assert!(matches!(refused(), StoreError::Foreign { .. }));
    fs::remove_file(&path).unwrap();
    drop(open(&folder));
    Connection::open(&path)
        .unwrap()
        .execute_batch("UPDATE postroom_meta SET value = 99 WHERE name = 'format'")
        .unwrap();
    assert!(matches!(refused(), StoreError::Newer { found: 99, .. }));
    assert!(matches!(Inspector::open(path.parent().unwrap()), Err(StoreError::Io(_))));
}

#[test]
fn asking_who_has_the_file_keeps_nobody_from_opening_it() {
    let folder = Folder::new();
    drop(open(&folder));
    let inspector = Inspector::open(folder.file()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                inspector.holder().unwrap();
            }
        });
        let opened = (0..100).map(|_| Store::open(folder.file(), Options::new()).map(drop)).collect::<Vec<_>>();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    });
}

#[test]
fn a_file_of_an_earlier_format_is_read_as_it_is() {
    let folder = Folder::new();
    let store = open(&folder);
    filled(&store, "a");
    store.close().unwrap();
    let file = Connection::open(folder.file()).unwrap();
    let earlier = "DROP TABLE postroom_pack; DROP TABLE postroom_pack_gone; DROP INDEX postroom_item_noted; DROP INDEX postroom_item_known;
                   UPDATE postroom_meta SET value = 1 WHERE name = 'format'; PRAGMA wal_checkpoint(TRUNCATE)";
    file.execute_batch(earlier).unwrap_or_default();
    drop(file);

    let before = everything(&folder);
    let inspector = Inspector::open(folder.file()).unwrap();
    assert_eq!((inspector.format(), payloads_in(&inspector)), (1, vec!["a".to_owned()]));
    assert!(everything(&folder) == before);

    // Opened, it gets what it lacks.
    open(&folder).close().unwrap();
    let inspector = Inspector::open(folder.file()).unwrap();
    assert_eq!((inspector.format(), payloads_in(&inspector)), (4, vec!["a".to_owned()]));
}
