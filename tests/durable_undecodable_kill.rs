//! A process that is killed while it puts apart what it cannot decode, or redrives it, leaves each message in one place.
#![cfg(all(feature = "sqlite", unix))]
#![allow(missing_docs)]

mod common;

use common::kill::{Task, begin};
use common::store::{ALL, Folder};
use postroom::store::{Durability, Options, Store};
use postroom::{Broker, Codec, CodecError, Message, Queue};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const MANY: u64 = 300;
const ROUNDS: u64 = 40;

/// Reads nothing until it has learned to.
#[derive(Clone, Default)]
struct Forgetful(Arc<AtomicBool>);

impl Codec<u64> for Forgetful {
    fn name(&self) -> &str {
        "forgetful"
    }

    fn encode(&self, n: &u64) -> Result<Vec<u8>, CodecError> {
        Ok(n.to_be_bytes().to_vec())
    }

    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        if self.0.load(Ordering::SeqCst) { Ok(u64::from_be_bytes(bytes.try_into()?)) } else { Err("forgotten".into()) }
    }
}

/// With all that is in the file put apart.
fn forgotten(file: &Path) -> (Broker, Queue<u64>) {
    let codec = Forgetful::default();
    let broker = Broker::open(file).unwrap();
    let queue = broker.queue("jobs").durable_with(Durability::Buffered, codec.clone()).declare().unwrap();
    codec.0.store(true, Ordering::SeqCst);
    (broker, queue)
}

/// Not a test of its own: what the killed process does.
#[test]
fn works_until_it_is_killed() {
    let Some(Task { file, .. }) = Task::given() else { return };
    begin();
    loop {
        let (_broker, queue) = forgotten(&file);
        queue.undecodable().redrive().limit(MANY as usize / 2).run().unwrap();
        queue.dead_letters().redrive().limit(3).run().unwrap();
        for _ in 0..5 {
            queue.try_recv().into_iter().for_each(|delivery| delivery.dead_letter("no").unwrap());
        }
    }
}

#[test]
fn each_is_somewhere_and_only_there_after_kill_9() {
    let folder = Folder::new();
    let (broker, queue) = forgotten(&folder.file());
    queue.send_batch((1..=MANY).map(|n| Message::new(n).with_id(n))).unwrap();
    drop((broker, queue));
    for round in 0..ROUNDS {
        let task = Task { file: folder.file(), mode: String::new(), first: 0 };
        task.killed(|_| None::<()>, |_, _| thread::sleep(Duration::from_micros(round * 7_370 % 200_000)));
    }
    let store = Store::open(folder.file(), Options::new()).unwrap();
    let (reader, mut found, mut kinds) = (store.reader().unwrap(), BTreeMap::new(), BTreeMap::new());
    for stream in reader.streams().unwrap() {
        for row in reader.read(stream.id, 0, ALL).unwrap() {
            *found.entry(row.item.id).or_insert(0) += 1;
            *kinds.entry(stream.kind.clone()).or_insert(0) += 1;
        }
    }
    println!("{kinds:?}");
    assert_eq!(found, (1..=MANY).map(|id| (id, 1)).collect(), "{kinds:?}");
    drop(reader);
    store.close().unwrap();
    let (broker, queue) = forgotten(&folder.file());
    assert_eq!(queue.undecodable().redrive().run().unwrap().kept, 0);
    assert_eq!((queue.len() + queue.delayed() + queue.dead_letters().len()) as u64, MANY);
    broker.store().unwrap().check().unwrap();
}
