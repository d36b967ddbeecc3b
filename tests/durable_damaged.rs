//! A shared row of the file that is damaged harms the messages that were in it, and no others.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush};
use common::within;
use postroom::store::rusqlite::Connection;
use postroom::store::{Batch, Change, Durability, Item, Limit, Options, Store};
use postroom::{Broker, Queue, QueueBuilder, Reason};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const BUFFERED: Durability = Durability::Buffered;

/// What happens to a pack of nine.
const DAMAGES: [&str; 5] = [
    "UPDATE postroom_pack SET items = '[]' WHERE count = 9",
    "UPDATE postroom_pack SET items = 'x' WHERE count = 9",
    "UPDATE postroom_pack SET items = x'00' WHERE count = 9",
    "UPDATE postroom_pack SET payload = x'00' WHERE count = 9",
    "UPDATE postroom_pack SET payload = 1.5 WHERE count = 9",
];

type Settings = fn(QueueBuilder<u32>) -> QueueBuilder<u32>;

const KINDS: [(&str, Settings); 3] = [
    ("in order", |queue| queue),
    ("with priorities", |queue| queue.priority_levels(2)),
    ("by key", |queue| queue.ordered_by(|n: &u32| n % 3)),
];

fn open(folder: &Folder, settings: Settings) -> (Broker, Queue<u32>, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&told);
    let hook = move |event: &postroom::Event| events.lock().unwrap().push(format!("{event:?}"));
    let broker = Broker::builder().store(folder.file()).on_event(hook).build().unwrap();
    let queue = settings(broker.queue("q")).durable(BUFFERED).window(4).declare().unwrap();
    (broker, queue, told)
}

/// Three packs, of which the one in the middle is damaged: 10 to 18.
fn filled(settings: Settings, damage: &str) -> Folder {
    let folder = Folder::new();
    let (broker, queue, _) = open(&folder, settings);
    for numbers in [0..10, 10..19, 19..29] {
        queue.send_batch(numbers).unwrap();
    }
    drop((queue, broker));
    let file = Connection::open(folder.file()).unwrap();
    assert_eq!(file.execute(damage, []).unwrap(), 1, "{damage}");
    folder
}

/// Until there are none left, in memory or in the file.
fn take_all(queue: &Queue<u32>) -> Vec<u32> {
    let mut all = Vec::new();
    while !queue.is_empty() {
        if let Ok(delivery) = queue.recv_timeout(Duration::from_millis(50)) {
            all.push(**delivery);
            delivery.ack().unwrap();
        }
    }
    all
}

#[test]
fn its_messages_become_dead_letters_and_all_others_come() {
    within(LIMIT, || {
        for (kind, settings) in KINDS {
            for damage in DAMAGES {
                let folder = filled(settings, damage);
                let (broker, queue, told) = open(&folder, settings);
                assert_eq!(queue.len(), 29, "{kind}: {damage}");
                let mut came = take_all(&queue);
                came.sort_unstable();
                assert_eq!(came, (0..10).chain(19..29).collect::<Vec<_>>(), "{kind}: {damage}");
                let letters = queue.undecodable().list(100);
                assert_eq!((letters.len(), told.lock().unwrap().len()), (9, 9), "{kind}: {damage}");
                assert!(letters.iter().all(|letter| *letter.reason() == Reason::Undecodable));
                let ids: BTreeSet<_> = letters.iter().map(|letter| letter.message().id()).collect();
                assert_eq!(ids.len(), 9, "{kind}: {damage}");
                // All that there was.
                let first = letters[0].message().payload().bytes();
                assert!(first == b"101112131415161718" || damage.contains("payload"), "{kind}: {damage}");
                assert_eq!((queue.stats().dead_lettered, queue.stats().unaccounted()), (9, 0), "{kind}: {damage}");
                // The store goes on, and a later run finds nothing of it.
                queue.send(100).unwrap();
                assert_eq!(take_all(&queue), [100]);
                flush(&broker);
                assert!(broker.stats().file.is_some());
                drop((queue, broker));
                let (_broker, queue, _) = open(&folder, settings);
                assert_eq!((queue.len(), queue.undecodable().len()), (0, 9), "{kind}: {damage}");
            }
        }
    });
}

#[test]
fn each_of_its_messages_is_another_to_an_idempotent_queue() {
    within(LIMIT, || {
        let settings: Settings = |queue| queue.idempotent(Duration::from_secs(3600));
        let folder = filled(settings, DAMAGES[1]);
        let (broker, queue, _) = open(&folder, settings);
        assert_eq!(take_all(&queue).len(), 20);
        drop((queue, broker));
        // Their ids are the same in another run.
        let (_broker, queue, _) = open(&folder, settings);
        let mended = queue.undecodable().redrive().edit(|letter| letter.payload().clone().with_bytes("7")).run();
        assert_eq!(mended.unwrap().moved, 9);
        assert_eq!(take_all(&queue), [7; 9]);
        assert_eq!((queue.stats().duplicates, queue.stats().unaccounted()), (0, 0));
    });
}

#[test]
fn some_of_which_had_gone_before_leaves_as_many_dead_letters_as_were_left() {
    within(LIMIT, || {
        for (kind, settings) in KINDS {
            let folder = filled(settings, "UPDATE postroom_pack SET count = 9 WHERE count = 9");
            let (broker, queue, _) = open(&folder, settings);
            let mut acked = Vec::new();
            while acked.len() < 14 {
                let next = queue.recv().unwrap();
                acked.push(**next);
                next.ack().unwrap();
            }
            flush(&broker);
            drop((queue, broker));
            let left = (0..29).filter(|n| !acked.contains(n));
            let (harmed, sound): (Vec<u32>, Vec<u32>) = left.partition(|n| (10..19).contains(n));
            Connection::open(folder.file()).unwrap().execute(DAMAGES[1], []).unwrap();

            let (_broker, queue, _) = open(&folder, settings);
            let mut came = take_all(&queue);
            came.sort_unstable();
            assert_eq!((came, queue.undecodable().len()), (sound, harmed.len()), "{kind}");
            assert_eq!((queue.stats().unaccounted(), queue.len()), (0, 0), "{kind}");
        }
    });
}

#[test]
fn the_writer_goes_on_whatever_it_is_to_do_with_it() {
    for damage in DAMAGES {
        let folder = Folder::new();
        let store = Store::open(folder.file(), Options::new()).unwrap();
        let (queue, other) = (store.declare("queue", "q", "").unwrap(), store.declare("queue", "other", "").unwrap());
        let many = (0..9).map(|id| Item { id, payload: b"abc".to_vec(), ..Item::default() });
        let many = many.fold(Batch::new(), |batch, item| batch.insert(queue, item));
        store.commit(many, BUFFERED).unwrap();
        store.connect().unwrap().execute(damage, []).unwrap();
        let batches = [
            Batch::new().delete(queue, 0),
            Batch::new().update(queue, 1, Change::new().attempts(7)),
            Batch::new().move_to(queue, 2, other, Change::new()),
            Batch::new().delete(queue, 8).insert(queue, Item::default()),
            Batch::new().trim(queue, 5),
            Batch::new().delete(queue, 5).delete(queue, 6).delete(queue, 7).trim(queue, 9),
        ];
        for batch in batches {
            store.commit(batch, BUFFERED).unwrap_or_else(|error| panic!("{damage}: {error}"));
        }
        let reader = store.reader().unwrap();
        assert_eq!(reader.read(queue, 0, Limit::items(9)).unwrap().len(), 1, "{damage}: the latest");
        drop(reader);
        store.commit(Batch::new().remove(queue), BUFFERED).unwrap();
        store.close().unwrap();
    }
}
