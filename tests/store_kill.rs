//! A process that is killed takes nothing along that was answered, and leaves the file to the next one.
#![cfg(all(feature = "sqlite", unix))]
#![allow(missing_docs)]

mod common;

use common::kill::{Task, begin};
use common::store::{Folder, item};
use postroom::store::{Batch, Durability, Limit, Options, Seq, Store, StoreError};
use std::collections::BTreeSet;
use std::io::Write;
use std::thread;
use std::time::Duration;

const ROUNDS: u64 = 50;

/// Not a test of its own: what the killed process does. It writes a line for each answer, so that the line is there
/// if the answer was.
#[test]
fn works_until_it_is_killed() {
    let Some(Task { file, .. }) = Task::given() else { return };
    let store = Store::open(file, Options::new().wal_bytes(200_000)).unwrap();
    let stream = store.declare("queue", "q", "").unwrap();
    let first = store.reader().unwrap().streams().unwrap()[0].next;
    begin();
    for n in first.. {
        let durability = if n % 64 == 0 { Durability::Sync } else { Durability::Buffered };
        let say = move |seqs: Result<&[Seq], StoreError>| {
            let mut out = std::io::stdout();
            writeln!(out, "ok {}", seqs.unwrap()[0]).unwrap();
            out.flush().unwrap();
        };
        store.wait_for_room();
        store.submit(Batch::new().insert(stream, item(&n.to_string())), durability, say).unwrap();
        if n % 10 == 9 {
            // Deleted by a batch that says so, and moved in the same commit as a mark.
            let say = |_: Result<&[Seq], StoreError>| {};
            store
                .submit(Batch::new().delete(stream, n - 9).mark(stream, "gone", n.to_string()), durability, say)
                .unwrap();
            store.flush(Durability::Buffered).unwrap();
        }
    }
}

fn task(folder: &Folder) -> Task {
    Task { file: folder.file(), mode: String::new(), first: 0 }
}

/// The place that an answer has given.
fn read(line: &str) -> Option<Seq> {
    line.strip_prefix("ok ")?.parse().ok()
}

#[test]
fn what_was_answered_survives_kill_9_at_any_moment() {
    let folder = Folder::new();
    let (mut answered, mut most) = (BTreeSet::new(), 0);
    for round in 0..ROUNDS {
        // It begins, because the file is free the moment its holder is dead.
        let pause = Duration::from_micros(round * 1_700 % 23_000);
        let before = answered.len();
        answered.extend(task(&folder).killed(read, |_, _| thread::sleep(pause)));
        most = most.max(answered.len() - before);

        let store = Store::open(folder.file(), Options::new()).unwrap();
        let reader = store.reader().unwrap();
        let info = reader.stream("queue", "q").unwrap().unwrap();
        let rows = reader.read(info.id, 0, Limit::items(usize::MAX)).unwrap();
        assert_eq!(info.count, rows.len() as u64);
        let found: BTreeSet<Seq> = rows.iter().map(|row| row.seq).collect();
        let lost: Vec<_> = answered.iter().filter(|seq| *seq % 10 != 0 && !found.contains(seq)).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
        assert!(rows.iter().all(|row| row.item.payload == row.seq.to_string().as_bytes()), "each in its own place");
        // A deletion and its mark are one batch: no mark without the deletion, no deletion without a mark. What
        // was to be deleted when the process was killed may stay for good.
        let mark = reader.mark(info.id, "gone").unwrap().map(|mark| String::from_utf8(mark).unwrap());
        let deleted = mark.map(|mark| mark.parse::<u64>().unwrap() - 9);
        assert!(deleted.is_none_or(|seq| !found.contains(&seq)), "round {round}: {deleted:?} is said to be deleted");
        let gone = (1..info.next).filter(|seq| seq % 10 == 0 && !found.contains(seq)).max();
        assert!(gone <= deleted, "round {round}: {gone:?} was deleted, and {deleted:?} noted");
    }
    assert!(most > 20, "only {most} answers in the busiest round");
    let store = Store::open(folder.file(), Options::new()).unwrap();
    store.check().unwrap();
}

#[test]
fn another_process_is_told_who_has_the_file_and_gets_it_when_that_one_is_killed() {
    let folder = Folder::new();
    task(&folder).killed(read, |child, _| {
        let refused = Store::open(folder.file(), Options::new()).unwrap_err();
        let StoreError::InUse { holder, .. } = &refused else { panic!("{refused}") };
        assert_eq!(holder.pid, child.id());
    });
    Store::open(folder.file(), Options::new()).unwrap();
}
