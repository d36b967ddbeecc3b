//! What a store keeps, in which order, and what it says when it cannot.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{ALL, Folder, item, open, payloads, queue};
use common::{eventually, quiet, within};
use postroom::store::{Batch, Change, Durability, Item, Limit, MAX_ITEM_BYTES, Options, Seq, State, Store, StoreError};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A writer that is busy for as long as the answer lives.
fn hold_up_writer(store: &Store) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (busy, is_busy) = mpsc::channel();
    let wait = move |_: Result<&[Seq], StoreError>| {
        busy.send(()).unwrap();
        let _ = released.recv();
    };
    store.submit(Batch::new(), Durability::Buffered, wait).unwrap();
    is_busy.recv().unwrap();
    release
}

#[test]
fn everything_about_an_item_comes_back_after_reopening() {
    let folder = Folder::new();
    let full = Item {
        id: u64::MAX,
        published_at: 1_700_000_000_123_456_789,
        attempts: 3,
        due_at: Some(1_800_000_000_000_000_001),
        expires_at: Some(1_900_000_000_000_000_001),
        priority: 9,
        key: Some("user-7".into()),
        routing_key: "order.placed".into(),
        headers: vec![("tenant".into(), "ac\"me".into()), ("tenant".into(), String::new())],
        schema: 2,
        payload: (0..=255).collect(),
        extra: Some(b"history".to_vec()),
    };
    let store = open(&folder);
    let orders = queue(&store);
    let batch = Batch::new().insert(orders, full.clone()).insert(orders, Item::default());
    let seqs = store.commit(batch, Durability::Sync).unwrap();
    assert_eq!(seqs.as_slice(), [0, 1]);
    store.close().unwrap();

    let store = open(&folder);
    let rows = store.reader().unwrap().read(orders, 0, ALL).unwrap();
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(rows[0].item, full);
    assert_eq!(rows[1].item, Item::default());
}

#[test]
fn streams_are_told_apart_by_kind_and_name_and_know_their_count() {
    let folder = Folder::new();
    let store = open(&folder);
    let (a, b) = (store.declare("queue", "x", "one").unwrap(), store.declare("log", "x", "").unwrap());
    assert_ne!(a, b);
    assert_eq!(store.declare("queue", "x", "two").unwrap(), a);
    let batch = Batch::new().insert(a, item("1")).insert(a, item("2")).insert(b, item("3")).delete(a, 0);
    store.commit(batch, Durability::Buffered).unwrap();
    drop(store);

    let store = open(&folder);
    let reader = store.reader().unwrap();
    let info = reader.stream("queue", "x").unwrap().unwrap();
    assert_eq!((info.id, info.settings.as_str(), info.next, info.count), (a, "two", 2, 1));
    assert_eq!(reader.streams().unwrap().len(), 2);
    assert_eq!(reader.stream("queue", "y").unwrap(), None);
    assert_eq!(reader.info(a).unwrap(), Some(info));
    assert_eq!(reader.info(b).unwrap(), reader.stream("log", "x").unwrap());
    let elsewhere = Folder::new();
    let other = open(&elsewhere);
    let third = ["a", "b", "c"].map(|name| other.declare("queue", name, "").unwrap())[2];
    assert_eq!(reader.info(third).unwrap(), None, "a number of another file's");
    assert_eq!(payloads(&reader.read(b, 0, ALL).unwrap()), ["3"]);
}

#[test]
fn a_place_is_never_given_twice_even_when_the_stream_was_emptied() {
    let folder = Folder::new();
    for round in 0..5 {
        let store = open(&folder);
        let orders = queue(&store);
        let seqs = store.commit(Batch::new().insert(orders, item("x")), Durability::Buffered).unwrap();
        assert_eq!(seqs.as_slice(), [round]);
        store.commit(Batch::new().trim(orders, Seq::MAX), Durability::Buffered).unwrap();
    }
}

#[test]
fn resting_items_are_found_by_time_and_passed_over_otherwise() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let other = store.declare("queue", "other", "").unwrap();
    let resting = |due| Item { due_at: Some(due), ..item(&due.to_string()) };
    let batch = [30, 10, 20, 10].into_iter().fold(Batch::new(), |batch, due| batch.insert(orders, resting(due)));
    store.commit(batch.insert(orders, item("now")).insert(other, resting(5)), Durability::Buffered).unwrap();

    let reader = store.reader().unwrap();
    assert_eq!(payloads(&reader.read_ready(orders, 0, ALL).unwrap()), ["now"]);
    assert_eq!(payloads(&reader.read_due(orders, 20, ALL).unwrap()), ["10", "10", "20"]);
    assert_eq!(reader.read_due(orders, 9, ALL).unwrap(), []);
    let first = reader.read_due(orders, 99, Limit::items(1)).unwrap();
    assert_eq!(first[0].seq, 1);
    let rest = reader.read_due_after(orders, Some((10, 1)), 99, ALL).unwrap();
    assert_eq!(rest.iter().map(|row| row.seq).collect::<Vec<_>>(), [3, 2, 0]);
    assert_eq!((reader.next_due(orders).unwrap(), reader.count_resting(orders).unwrap()), (Some(10), 4));

    store.commit(Batch::new().update(orders, 1, Change::new().due_at(None).attempts(4)), Durability::Buffered).unwrap();
    let ready = reader.read_ready(orders, 0, ALL).unwrap();
    assert_eq!((payloads(&ready), ready[0].item.attempts), (vec!["10".to_owned(), "now".to_owned()], 4));
    assert_eq!(reader.count_resting(orders).unwrap(), 3);

    assert_eq!(reader.read_noted(orders, 0, ALL).unwrap(), []);
    let noted = Batch::new().update(orders, 2, Change::new().extra(Some(b"!".to_vec())));
    store
        .commit(noted.insert(orders, Item { extra: Some(b"!".to_vec()), ..item("ready") }), Durability::Buffered)
        .unwrap();
    assert_eq!(payloads(&reader.read_noted(orders, 0, ALL).unwrap()), ["20"]);
    assert_eq!(reader.read_noted(orders, 3, ALL).unwrap(), []);
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let whole = Item { expires_at: Some(9), due_at: Some(8), extra: Some(b"x".to_vec()), attempts: 1, ..item("p") };
    store.commit(Batch::new().insert(orders, whole.clone()), Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    let cases = [
        (Change::new(), whole.clone()),
        (Change::new().attempts(7), Item { attempts: 7, ..whole.clone() }),
        (Change::new().expires_at(None), Item { attempts: 7, expires_at: None, ..whole.clone() }),
        (
            Change::new().extra(None).due_at(Some(3)),
            Item { attempts: 7, expires_at: None, extra: None, due_at: Some(3), ..whole.clone() },
        ),
    ];
    for (change, expected) in cases {
        store
            .commit(Batch::new().update(orders, 0, change).update(orders, 77, Change::new()), Durability::Buffered)
            .unwrap();
        assert_eq!(reader.get(orders, 0).unwrap().unwrap().item, expected);
    }
    assert_eq!(reader.get(orders, 77).unwrap(), None);
}

#[test]
fn a_moved_item_is_in_one_stream_only() {
    let folder = Folder::new();
    let store = open(&folder);
    let (orders, dead) = (queue(&store), store.declare("dead letters", "orders", "").unwrap());
    store.commit(Batch::new().insert(orders, item("a")).insert(orders, item("b")), Durability::Buffered).unwrap();
    let change = Change::new().extra(Some(b"why".to_vec()));
    let seqs = store.commit(Batch::new().move_to(orders, 0, dead, change), Durability::Buffered).unwrap();
    assert_eq!(seqs.as_slice(), [0]);
    // Gone meanwhile: no error, and counted nowhere.
    store.commit(Batch::new().move_to(orders, 0, dead, Change::new()), Durability::Buffered).unwrap();

    let reader = store.reader().unwrap();
    assert_eq!(payloads(&reader.read(orders, 0, ALL).unwrap()), ["b"]);
    let rows = reader.read(dead, 0, ALL).unwrap();
    assert_eq!((payloads(&rows), rows[0].item.extra.as_deref()), (vec!["a".to_owned()], Some(&b"why"[..])));
    let counts: Vec<_> = reader.streams().unwrap().iter().map(|stream| stream.count).collect();
    assert_eq!(counts, [1, 1]);
}

#[test]
fn deletes_in_any_order_take_what_they_name() {
    let folder = Folder::new();
    let store = open(&folder);
    let (a, b) = (queue(&store), store.declare("queue", "b", "").unwrap());
    let fill = |stream| (0..20).fold(Batch::new(), |batch, n: u32| batch.insert(stream, item(&n.to_string())));
    store.commit(fill(a).and(fill(b)), Durability::Buffered).unwrap();
    let doomed = [7, 3, 4, 5, 19, 4, 0, 999, 1, 12];
    let batch = doomed.into_iter().fold(Batch::new(), |batch, seq| batch.delete(a, seq));
    store.commit(batch.delete(b, 0), Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    let left: Vec<Seq> = reader.read(a, 0, ALL).unwrap().iter().map(|row| row.seq).collect();
    assert_eq!(left, [2, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18]);
    let counts: Vec<_> = reader.streams().unwrap().iter().map(|stream| stream.count).collect();
    assert_eq!(counts, [12, 19]);
}

#[test]
fn reading_in_portions_sees_each_item_once() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let batch = (0..100).fold(Batch::new(), |batch, n: u32| batch.insert(orders, item(&format!("{n:10}"))));
    store.commit(batch, Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    for limit in [Limit::items(7), Limit::items(100), Limit::items(50).bytes(31), Limit::items(1).bytes(0)] {
        let (mut next, mut seen) = (0, 0);
        loop {
            let rows = reader.read(orders, next, limit).unwrap();
            let Some(last) = rows.last() else { break };
            next = last.seq + 1;
            seen += rows.len();
            assert!(rows.len() <= limit.items);
        }
        assert_eq!(seen, 100, "even if there is room for nothing, one comes at a time");
    }
}

#[test]
fn trimming_and_times_serve_a_log() {
    let folder = Folder::new();
    let store = open(&folder);
    let log = store.declare("log", "clicks", "").unwrap();
    let at = |time| Item { published_at: time, ..item("four") };
    let batch = (0..100).fold(Batch::new(), |batch, n| batch.insert(log, at(n * 10)));
    store.commit(batch, Durability::Buffered).unwrap();
    store.commit(Batch::new().trim(log, 30).delete(log, 50), Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    assert_eq!(reader.first(log).unwrap(), Some(30));
    for (time, found) in
        [(0, Some(30)), (300, Some(30)), (301, Some(31)), (500, Some(51)), (990, Some(99)), (991, None)]
    {
        assert_eq!(reader.find_time(log, time).unwrap(), found, "{time}");
    }
    assert_eq!(reader.payload_bytes(log, 0..Seq::MAX).unwrap(), 69 * 4);
    assert_eq!(reader.payload_bytes(log, 0..0).unwrap(), 0);
    store.commit(Batch::new().trim(log, Seq::MAX), Durability::Buffered).unwrap();
    assert_eq!((reader.first(log).unwrap(), reader.find_time(log, 0).unwrap()), (None, None));
    assert_eq!(reader.stream("log", "clicks").unwrap().unwrap().next, 100);
}

#[test]
fn marks_are_replaced_forgotten_and_listed_in_portions() {
    let folder = Folder::new();
    let store = open(&folder);
    let (a, b) = (queue(&store), store.declare("queue", "b", "").unwrap());
    let batch = (0..10).fold(Batch::new(), |batch, n| batch.mark(a, format!("id{n}"), [n]));
    store.commit(batch.mark(b, "id0", "other").mark(a, "id3", "new").unmark(a, "id4"), Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    assert_eq!(reader.mark(a, "id3").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(reader.mark(a, "id4").unwrap(), None);
    let first = reader.marks(a, None, 5).unwrap();
    let rest = reader.marks(a, Some(&first[4].0), 99).unwrap();
    let names: Vec<_> = first.iter().chain(&rest).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["id0", "id1", "id2", "id3", "id5", "id6", "id7", "id8", "id9"]);
}

#[test]
fn a_removed_stream_takes_everything_along() {
    let folder = Folder::new();
    let store = open(&folder);
    let (a, b) = (queue(&store), store.declare("queue", "b", "").unwrap());
    store
        .commit(Batch::new().insert(a, item("a")).mark(a, "m", "v").insert(b, item("b")), Durability::Buffered)
        .unwrap();
    let after = Batch::new().remove(a).insert(a, item("too late"));
    assert_eq!(store.commit(after, Durability::Buffered), Err(StoreError::UnknownStream(a)));
    store.commit(Batch::new().remove(a), Durability::Buffered).unwrap();
    assert_eq!(store.commit(Batch::new().insert(a, item("x")), Durability::Sync), Err(StoreError::UnknownStream(a)));

    let again = store.declare("queue", "orders", "").unwrap();
    let reader = store.reader().unwrap();
    assert_eq!(reader.read(again, 0, ALL).unwrap(), []);
    assert_eq!(reader.marks(again, None, 9).unwrap(), []);
    assert_eq!(payloads(&reader.read(b, 0, ALL).unwrap()), ["b"]);
}

#[test]
fn a_batch_that_cannot_be_fails_alone() {
    let folder = Folder::new();
    let store = open(&folder);
    let (orders, gone) = (queue(&store), store.declare("queue", "gone", "").unwrap());
    store.commit(Batch::new().remove(gone), Durability::Buffered).unwrap();
    let release = hold_up_writer(&store);
    let submit = |batch| store.submit_for_ticket(batch, Durability::Buffered).unwrap();
    let good = submit(Batch::new().insert(orders, item("1")));
    let bad = submit(Batch::new().insert(orders, item("half")).insert(gone, item("2")));
    let huge = Item { payload: vec![0; MAX_ITEM_BYTES + 1], ..Item::default() };
    let large = submit(Batch::new().insert(orders, huge));
    let also_good = submit(Batch::new().insert(orders, item("3")));
    drop(release);
    assert_eq!(good.wait().unwrap().as_slice(), [0]);
    assert_eq!(bad.wait(), Err(StoreError::UnknownStream(gone)));
    assert_eq!(large.wait(), Err(StoreError::TooLarge { bytes: MAX_ITEM_BYTES + 1 }));
    assert_eq!(also_good.wait().unwrap().as_slice(), [1]);
    assert_eq!(store.state(), State::Healthy);
    assert_eq!(payloads(&store.reader().unwrap().read(orders, 0, ALL).unwrap()), ["1", "3"]);
}

#[test]
fn what_arrives_during_a_commit_shares_the_next() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let before = store.stats();
    let release = hold_up_writer(&store);
    let tickets: Vec<_> = (0..100)
        .map(|n| store.submit_for_ticket(Batch::new().insert(orders, item(&n.to_string())), Durability::Sync).unwrap())
        .collect();
    assert!(tickets.iter().all(|ticket| !ticket.is_done()));
    drop(release);
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.wait().unwrap().as_slice(), [n as Seq]);
    }
    let stats = store.stats();
    assert_eq!((stats.commits - before.commits, stats.syncs - before.syncs), (2, 1), "the busy one, and one for all");
    assert_eq!((stats.largest_commit, stats.inserted), (100, 100));
}

#[test]
fn waiting_producers_share_commits() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    within(LIMIT, move || {
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for n in 0..20 {
                        store.commit(Batch::new().insert(orders, item(&n.to_string())), Durability::Sync).unwrap();
                    }
                });
            }
        });
        let stats = store.stats();
        assert!(stats.commits < 200, "{} commits for 320 batches", stats.commits);
        assert_eq!(store.reader().unwrap().streams().unwrap()[0].count, 320);
    });
}

#[test]
fn functions_are_called_in_the_order_of_the_file() {
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    let order = Arc::new(Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..500_u32 {
                    let order = Arc::clone(&order);
                    let durability = if n % 50 == 0 { Durability::Sync } else { Durability::Buffered };
                    let done =
                        move |seqs: Result<&[Seq], StoreError>| order.lock().unwrap().extend_from_slice(seqs.unwrap());
                    store.submit(Batch::new().insert(orders, item("x")), durability, done).unwrap();
                }
            });
        }
    });
    store.flush(Durability::Buffered).unwrap();
    let order = order.lock().unwrap();
    assert_eq!(*order, (0..2000).collect::<Vec<Seq>>());
}

#[test]
fn a_function_that_panics_or_drops_the_store_hurts_nobody() {
    quiet();
    let folder = Folder::new();
    let store = open(&folder);
    let orders = queue(&store);
    store.submit(Batch::new(), Durability::Buffered, |_| panic!("{}", common::ON_PURPOSE)).unwrap();
    let bomb = common::Bomb;
    store.submit(Batch::new(), Durability::Buffered, move |_| drop(bomb)).unwrap();
    store.commit(Batch::new().insert(orders, item("x")), Durability::Buffered).unwrap();
    let (last, release) = (store.clone(), hold_up_writer(&store));
    store.submit(Batch::new(), Durability::Buffered, move |_| drop(last)).unwrap();
    drop(store);
    drop(release);
    eventually("the file is let go", || Store::open(folder.file(), Options::new()).is_ok());
}

#[test]
fn lazy_batches_ride_along_or_go_alone_after_a_while() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new().lazy_delay(Duration::from_secs(3600))).unwrap();
    let orders = queue(&store);
    let seqs =
        store.commit(Batch::new().insert(orders, item("a")).insert(orders, item("b")), Durability::Sync).unwrap();
    let before = store.stats();
    store.submit_lazily(Batch::new().delete(orders, seqs[0])).unwrap();
    assert_eq!(store.stats().commits, before.commits);
    store.commit(Batch::new().insert(orders, item("c")), Durability::Buffered).unwrap();
    assert_eq!(store.stats().commits, before.commits + 1);
    assert_eq!(payloads(&store.reader().unwrap().read(orders, 0, ALL).unwrap()), ["b", "c"]);
    // Closing does not wait an hour either.
    store.submit_lazily(Batch::new().delete(orders, seqs[1])).unwrap();
    store.close().unwrap();

    let store = Store::open(folder.file(), Options::new().lazy_delay(Duration::from_millis(1))).unwrap();
    assert_eq!(payloads(&store.reader().unwrap().read(orders, 0, ALL).unwrap()), ["c"]);
    store.submit_lazily(Batch::new().delete(orders, 2)).unwrap();
    eventually("nobody waits, yet it is committed", || store.stats().deleted == 1);
    assert_eq!(store.stats().syncs, 0);
}

#[test]
fn room_is_bounded_by_bytes_and_comes_back() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new().queue_bytes(1000)).unwrap();
    let orders = queue(&store);
    let release = hold_up_writer(&store);
    assert!(store.has_room());
    let ticket =
        store.submit_for_ticket(Batch::new().insert(orders, item(&"x".repeat(1000))), Durability::Buffered).unwrap();
    assert!(!store.has_room());
    assert!(!store.wait_for_room_until(Instant::now() + Duration::from_millis(10)));
    let waiting = {
        let store = store.clone();
        thread::spawn(move || store.wait_for_room())
    };
    assert!(store.stats().queued_bytes >= 1000);
    drop(release);
    within(LIMIT, move || waiting.join().unwrap());
    ticket.wait().unwrap();
    eventually("all is done", || store.stats().queued_bytes == 0);
}

#[test]
fn the_log_stays_bounded_under_load() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new().wal_bytes(1 << 20)).unwrap();
    let orders = queue(&store);
    for _ in 0..200 {
        let batch = (0..20).fold(Batch::new(), |batch, _| batch.insert(orders, item(&"x".repeat(1000))));
        store.commit(batch, Durability::Buffered).unwrap();
    }
    assert!(store.stats().checkpoints > 1);
    let wal = std::fs::metadata(folder.file().with_extension("db-wal")).unwrap().len();
    assert!(wal < 2 << 20, "{wal} bytes");
}

#[test]
fn items_that_share_a_row_leave_nothing_behind() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new()).unwrap();
    let queue = store.declare("queue", "q", "").unwrap();
    let rows = |store: &Store| -> (i64, i64, i64) {
        let sql = "SELECT (SELECT count(*) FROM postroom_item), (SELECT count(*) FROM postroom_pack),
                   (SELECT count(*) FROM postroom_pack_gone)";
        let reader = store.reader().unwrap();
        reader.sql().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    let many = |n: u64| (0..n).fold(Batch::new(), |batch, id| batch.insert(queue, Item { id, ..Item::default() }));
    let seqs = store.commit(many(3), Durability::Buffered).unwrap();
    assert_eq!(rows(&store), (3, 0, 0), "too few to share a row");
    store.commit(Batch::new().delete_range(queue, seqs[0]..seqs[2] + 1), Durability::Buffered).unwrap();

    let seqs = store.commit(many(300), Durability::Buffered).unwrap();
    assert_eq!(rows(&store), (0, 2, 0));
    store.commit(Batch::new().update(queue, seqs[7], Change::new().attempts(1)), Durability::Buffered).unwrap();
    assert_eq!(rows(&store), (1, 2, 1), "one that is changed is a row of its own");
    for at in [0, 299, 7, 150] {
        store.commit(Batch::new().delete(queue, seqs[at]), Durability::Buffered).unwrap();
    }
    assert_eq!((rows(&store), store.reader().unwrap().streams().unwrap()[0].count), ((0, 2, 2), 296));
    let rest = (0..300).filter(|at| at % 2 == 0).chain((0..300).filter(|at| at % 2 == 1));
    store.commit(rest.fold(Batch::new(), |batch, at| batch.delete(queue, seqs[at])), Durability::Buffered).unwrap();
    assert_eq!((rows(&store), store.reader().unwrap().streams().unwrap()[0].count), ((0, 0, 0), 0));

    store.commit(many(50).remove(queue), Durability::Buffered).unwrap();
    assert_eq!(rows(&store), (0, 0, 0));
    assert_eq!((store.stats().inserted, store.stats().deleted), (353, 353));
}

#[test]
fn the_view_shows_items_that_share_a_row_and_sorts_nothing_to_do_so() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new()).unwrap();
    let queue = store.declare("queue", "q", "").unwrap();
    let ids = [1, u64::MAX, i64::MAX as u64, 1 << 63];
    let many = ids.into_iter().fold(Batch::new(), |batch, id| batch.insert(queue, Item { id, ..Item::default() }));
    store.commit(many, Durability::Buffered).unwrap();
    let reader = store.reader().unwrap();
    let mut view = reader.sql().prepare("SELECT message, bytes, payload FROM postroom_items ORDER BY seq").unwrap();
    let seen = view.query_map([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?, row.get(2)?)));
    let seen: Vec<(u64, i64, Vec<u8>)> = seen.unwrap().map(Result::unwrap).collect();
    assert_eq!(seen, ids.map(|id| (id, 0, Vec::new())));

    let mut plan = reader.sql().prepare("EXPLAIN QUERY PLAN SELECT * FROM postroom_items WHERE stream = 'q'").unwrap();
    let steps: Vec<String> = plan.query_map([], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
    assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE") || step.contains("MATERIALIZE")), "{steps:#?}");
}

#[test]
fn an_item_that_becomes_a_row_of_its_own_is_there_all_the_time() {
    let folder = Folder::new();
    let store = Store::open(folder.file(), Options::new()).unwrap();
    let queue = store.declare("queue", "q", "").unwrap();
    let many = (0..250).fold(Batch::new(), |batch, id| batch.insert(queue, Item { id, ..Item::default() }));
    let seqs = store.commit(many, Durability::Buffered).unwrap();
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for &seq in &seqs {
                store.commit(Batch::new().update(queue, seq, Change::new().attempts(1)), Durability::Buffered).unwrap();
            }
        });
        let mut looks = 0;
        while !changes.is_finished() || looks == 0 {
            let reader = store.reader().unwrap();
            assert_eq!(reader.read(queue, 0, ALL).unwrap().len(), 250);
            assert_eq!(reader.payload_bytes(queue, 0..Seq::MAX).unwrap(), 0);
            looks += 1;
        }
    });
}

#[test]
fn a_shared_row_that_is_damaged_is_an_error_that_names_it() {
    let damages = [
        "UPDATE postroom_pack SET items = '[]'",
        "UPDATE postroom_pack SET items = 'x'",
        "UPDATE postroom_pack SET payload = x'00'",
        "UPDATE postroom_pack SET count = 8",
        "UPDATE postroom_pack SET count = 1000000",
        "INSERT INTO postroom_pack_gone SELECT id, 'x' FROM postroom_pack",
        "INSERT INTO postroom_pack_gone SELECT id, '--x--y---' FROM postroom_pack",
    ];
    for damage in damages {
        let folder = Folder::new();
        let store = Store::open(folder.file(), Options::new()).unwrap();
        let queue = store.declare("queue", "q", "").unwrap();
        let payload = || b"abc".to_vec();
        let many = (0..9).map(|id| Item { id, payload: payload(), ..Item::default() });
        let many = many.fold(Batch::new(), |batch, item| batch.insert(queue, item));
        store.commit(many, Durability::Buffered).unwrap();
        store.connect().unwrap().execute(damage, []).unwrap();
        let error = store.reader().unwrap().read(queue, 0, ALL).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt(words) if words.contains("postroom_pack")), "{damage}: {error:?}");
    }
}
