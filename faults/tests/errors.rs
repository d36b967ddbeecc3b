//! Calls to the disk fail: whoever waits hears of it, nobody is told `Ok` for what is not so, and opening the file
//! anew brings back all that was answered.
#![allow(missing_docs)]

mod common;

use common::{CHANGES, Folder, contents, item};
use faults::{Call, Disk, Fault, Plan};
use postroom::store::{Batch, Durability, Options, Seq, State, Store, StoreError, StreamId};
use std::collections::BTreeSet;

/// What a run of commits was told.
struct Told {
    answered: BTreeSet<u64>,
    refused: Vec<(u64, StoreError)>,
}

/// Inserts 0, 1, 2, ..., synced and buffered in turn, and deletes every third again.
fn work(store: &Store, stream: StreamId, numbers: std::ops::Range<u64>) -> Told {
    let mut told = Told { answered: BTreeSet::new(), refused: Vec::new() };
    for n in numbers {
        let durability = if n % 2 == 0 { Durability::Sync } else { Durability::Buffered };
        match store.commit(Batch::new().insert(stream, item(n)), durability) {
            Ok(seqs) => {
                told.answered.insert(n);
                if n % 3 == 0 {
                    told.answered.remove(&n);
                    store.submit_lazily(Batch::new().delete(stream, seqs[0])).unwrap();
                }
            }
            Err(error) => told.refused.push((n, error)),
        }
    }
    told
}

fn options(disk: &Disk) -> Options {
    // Small, so that checkpoints fail too.
    Options::new().vfs(disk.name()).wal_bytes(60_000).lazy_delay(std::time::Duration::ZERO)
}

/// All that was answered is there, and nothing else but what was refused or deleted without being waited for.
fn reopened(folder: &Folder, told: &Told, what: &str) {
    let store = Store::open(folder.file(), Options::new()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let stream = store.reader().unwrap().stream("queue", "q").unwrap().expect("declared");
    let found: BTreeSet<u64> = contents(&store, stream.id).into_iter().collect();
    let lost: Vec<_> = told.answered.difference(&found).collect();
    assert!(lost.is_empty(), "{what}: {lost:?} were answered and are gone");
    let seqs = store.commit(Batch::new().insert(stream.id, item(0)), Durability::Sync).unwrap();
    assert!(seqs[0] >= stream.next);
}

#[test]
fn after_a_failed_write_or_sync_nobody_is_told_ok_and_reopening_recovers() {
    let mut broke = 0;
    for after in 0..120 {
        let (folder, disk) = (Folder::new(), Disk::new());
        let store = Store::open(folder.file(), options(&disk)).unwrap();
        let stream = store.declare("queue", "q", "").unwrap();
        disk.fail(Plan { calls: CHANGES, after, times: Some(1), fault: Fault::Io });
        let told = work(&store, stream, 0..40);
        let what = format!("call {after} failed");
        if disk.failed() > 0 {
            broke += 1;
            assert!(matches!(store.state(), State::Broken { error: StoreError::Io(_), .. }), "{what}");
            // From the first refusal on there are only refusals, though the disk works again.
            if let Some((first, _)) = told.refused.first() {
                assert!(told.answered.iter().all(|n| n < first), "{what}");
            }
            assert!(told.refused.iter().all(|(_, error)| matches!(error, StoreError::Io(_))), "{what}");
            assert!(matches!(store.commit(Batch::new(), Durability::Buffered), Err(StoreError::Io(_))));
            assert!(matches!(store.close(), Err(StoreError::Io(_))), "{what}");
        }
        drop(store);
        reopened(&folder, &told, &what);
    }
    assert!(broke > 60, "only {broke} of the runs met a failure");
}

#[test]
fn a_full_disk_refuses_batches_and_works_again_once_there_is_space() {
    for after in (0..100).step_by(3) {
        let (folder, disk) = (Folder::new(), Disk::new());
        let store = Store::open(folder.file(), options(&disk)).unwrap();
        let stream = store.declare("queue", "q", "").unwrap();
        let before = work(&store, stream, 0..10);
        disk.fail(Plan { calls: &[Call::Write], after, times: None, fault: Fault::Full });
        let during = work(&store, stream, 10..60);
        let what = format!("full after {after} writes");
        let refusals = during.refused.len();
        assert!(refusals > 0 && during.refused.iter().all(|(_, e)| matches!(e, StoreError::DiskFull(_))), "{what}");
        assert!(matches!(store.state(), State::Failing { error: StoreError::DiskFull(_), .. }), "{what}");
        assert!(store.stats().failed_commits > 0);
        disk.heal();
        let afterwards = work(&store, stream, 60..70);
        assert_eq!(afterwards.refused, [], "{what}");
        assert_eq!(store.state(), State::Healthy, "{what}");
        store.flush(Durability::Buffered).unwrap();
        // Acknowledgements that failed meanwhile have got in too, and nothing that was refused did.
        let expected: BTreeSet<u64> =
            [&before, &during, &afterwards].iter().flat_map(|told| told.answered.clone()).collect();
        assert_eq!(contents(&store, stream).into_iter().collect::<BTreeSet<_>>(), expected, "{what}");
        let stats = store.stats();
        assert_eq!(stats.inserted - stats.deleted, expected.len() as u64, "what failed is not counted: {what}");
        store.close().unwrap();
        reopened(&folder, &Told { answered: expected, refused: Vec::new() }, &what);
    }
}

#[test]
fn everybody_who_waits_for_a_failed_commit_hears_of_it_in_order() {
    let (folder, disk) = (Folder::new(), Disk::new());
    let store = Store::open(folder.file(), options(&disk)).unwrap();
    let stream = store.declare("queue", "q", "").unwrap();
    disk.fail(Plan { calls: &[Call::Sync], after: 0, times: Some(1), fault: Fault::Io });
    let (tell, told) = std::sync::mpsc::channel();
    for n in 0..100 {
        let tell = tell.clone();
        let done = move |result: Result<&[Seq], StoreError>| tell.send((n, result.map(|_| ()))).unwrap();
        store.submit(Batch::new().insert(stream, item(n)), Durability::Sync, done).unwrap();
    }
    for n in 0..100 {
        let (which, result) = told.recv_timeout(std::time::Duration::from_secs(30)).expect("nobody is forgotten");
        assert_eq!(which, n);
        assert!(matches!(result, Err(StoreError::Io(_))), "{result:?}");
    }
    assert_eq!(disk.failed(), 1, "the sync is not tried again");
    let syncs = disk.count(Call::Sync);
    assert!(store.close().is_err());
    assert_eq!(disk.count(Call::Sync), syncs, "not even on closing");
}

#[test]
fn opening_with_a_failing_disk_is_an_error_and_works_later() {
    for fault in [Fault::Io, Fault::Full] {
        for after in 0..60 {
            let (folder, disk) = (Folder::new(), Disk::new());
            disk.fail(Plan { calls: &[], after, times: Some(1), fault });
            let opened = Store::open(folder.file(), options(&disk));
            let failed = disk.failed() > 0;
            disk.heal();
            match opened {
                Ok(store) => drop(store.close()),
                Err(error) => {
                    assert!(failed, "{error}");
                    assert!(
                        matches!(error, StoreError::Io(_) | StoreError::DiskFull(_) | StoreError::Corrupt(_)),
                        "{error:?}"
                    );
                }
            }
            let store = Store::open(folder.file(), options(&disk)).unwrap_or_else(|e| panic!("{fault:?} {after}: {e}"));
            store.declare("queue", "q", "").unwrap();
        }
    }
}

#[test]
fn a_file_that_cannot_be_written_says_so() {
    let (folder, disk) = (Folder::new(), Disk::new());
    let store = Store::open(folder.file(), options(&disk)).unwrap();
    let stream = store.declare("queue", "q", "").unwrap();
    disk.fail(Plan { calls: &[Call::Write], after: 0, times: None, fault: Fault::ReadOnly });
    let refused = store.commit(Batch::new().insert(stream, item(0)), Durability::Sync).unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly(_)), "{refused:?}");
    assert!(matches!(store.state(), State::Broken { .. }));
}

#[test]
fn a_failed_read_is_an_error_for_the_reader_alone() {
    let (folder, disk) = (Folder::new(), Disk::new());
    let store = Store::open(folder.file(), options(&disk)).unwrap();
    let stream = store.declare("queue", "q", "").unwrap();
    work(&store, stream, 0..40);
    let reader = store.reader().unwrap();
    disk.fail(Plan { calls: &[Call::Read], after: 0, times: Some(1), fault: Fault::Io });
    assert!(matches!(reader.read(stream, 0, common::ALL), Err(StoreError::Io(_))));
    assert_eq!(store.state(), State::Healthy);
    reader.read(stream, 0, common::ALL).unwrap();
}
