//! apalis' in-memory storage and its worker.

use std::sync::Arc;

use apalis_core::{
    backend::memory::{MemorySink, MemoryStorage, MemoryStorageError},
    task::Task,
    worker::builder::WorkerBuilder,
};
use futures::{Sink, SinkExt, StreamExt, channel::mpsc::unbounded, lock::Mutex};
use tokio::{runtime::Builder, sync::oneshot};

use super::tasks_in;
use crate::work::{Block, Contestant, Outcome, Payload, arrivals::Slot};

pub const SELF: Contestant = Contestant {
    name: "apalis memory",
    package: Some("apalis-core"),
    note: "unbounded; layers could add retry; no dead letters, no routing; on one thread, with two it hangs",
};

type Boxed = Box<dyn Sink<Task<Block>, Error = MemoryStorageError> + Send + Sync + Unpin>;

pub fn one_to_one(n: u64) -> Outcome {
    let (sender, receiver) = unbounded();
    let boxed: Boxed = Box::new(sender.sink_map_err(MemoryStorageError::from));
    let mut sink = MemorySink::new(Arc::new(Mutex::new(boxed)));
    let storage = MemoryStorage::new_with(sink.clone(), receiver.boxed());
    let seen = Arc::new(Slot::default());
    let (done, all_seen) = oneshot::channel();
    let done = Arc::new(std::sync::Mutex::new(Some(done)));
    let slot = Arc::clone(&seen);
    let handler = move |block: Block| {
        slot.add(&block);
        if slot.tally().count == n {
            done.lock().unwrap().take().map(|done| done.send(()));
        }
        async {}
    };
    let produce = async move {
        for number in 0..n {
            sink.feed(Task::new(Block::numbered(number))).await.expect("it is open");
        }
        sink.flush().await.expect("it is open");
    };
    let consume = async move {
        let worker = WorkerBuilder::new("parcels").backend(storage).build(handler);
        tokio::select! {
            _ = worker.run() => {}
            _ = all_seen => {}
        }
        seen.tally()
    };
    // With two threads its sink can wait for ever: the future that waits for its lock is dropped and made again
    // at every poll, and with it the wake-up is lost.
    tasks_in(&mut Builder::new_current_thread(), n, produce, consume)
}
