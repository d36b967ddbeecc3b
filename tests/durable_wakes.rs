//! Whoever sleeps on a durable queue is woken when a commit has brought messages.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::Folder;
use common::within;
use postroom::store::{Batch, Durability};
use postroom::{Broker, Queue};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// By then they sleep.
const SOON: Duration = Duration::from_millis(20);

fn jobs(folder: &Folder) -> (Broker, Queue<u32>) {
    let broker = Broker::open(folder.file()).expect("the file is free");
    let queue = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
    (broker, queue)
}

#[test]
fn one_commit_wakes_as_many_as_it_has_messages_for() {
    const READERS: usize = 4;
    let folder = Folder::new();
    let (_broker, queue) = jobs(&folder);
    within(LIMIT, move || {
        for _ in 0..10 {
            let all_have_one = Arc::new(Barrier::new(READERS));
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    let (queue, all_have_one) = (queue.clone(), Arc::clone(&all_have_one));
                    thread::spawn(move || {
                        let delivery = queue.recv().unwrap();
                        all_have_one.wait();
                        delivery.ack().unwrap();
                    })
                })
                .collect();
            thread::sleep(SOON);
            assert_eq!(queue.send_batch(0..READERS as u32).unwrap(), READERS);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        }
    });
}

#[test]
fn nobody_is_kept_asleep_by_a_function_called_after_the_same_commit() {
    let folder = Folder::new();
    let (broker, queue) = jobs(&folder);
    let store = broker.store().unwrap().clone();
    let came = within(LIMIT, move || {
        let (handled, is_handled) = mpsc::channel();
        let worker = queue.consumer().start(move |_: &postroom::Message<u32>| handled.send(()).unwrap()).unwrap();
        thread::sleep(SOON);
        // What comes while the writer is busy here shares the next commit.
        let (go_on, gate) = mpsc::channel::<()>();
        store.submit(Batch::new(), Durability::Buffered, move |_| gate.recv().unwrap()).unwrap();
        let ticket = queue.send_deferred(1);
        let (tell, told) = mpsc::channel();
        let waits = move |_: Result<&[u64], _>| tell.send(is_handled.recv_timeout(LIMIT / 4)).unwrap();
        store.submit(Batch::new(), Durability::Buffered, waits).unwrap();
        go_on.send(()).unwrap();
        ticket.wait().unwrap();
        let came = told.recv().unwrap();
        worker.stop();
        came
    });
    assert_eq!(came, Ok(()));
}

#[test]
fn more_messages_than_are_called_for_at_once_wake_a_worker_each_time() {
    let folder = Folder::new();
    let (_broker, queue) = jobs(&folder);
    within(LIMIT, move || {
        for n in [1, 255, 256, 257, 1_000] {
            let tickets: Vec<_> = (0..n).map(|n| queue.send_deferred(n)).collect();
            for expected in 0..n {
                let delivery = queue.recv().unwrap();
                assert_eq!(*delivery.payload(), expected);
                delivery.ack().unwrap();
            }
            assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
        }
    });
}
