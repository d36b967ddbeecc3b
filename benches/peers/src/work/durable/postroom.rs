//! postroom: published by name, routed, in the file, handled by a worker, acknowledged, deleted from the file.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use postroom::{Broker, Codec, CodecError, Message, Queue, QueueName, Topic, TopicName, store::Durability};

use super::{Bytes, Folder, Task, Way};
use crate::work::{Block, Contestant, Outcome, Tally, arrivals, arrivals::Arrivals, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "a durable queue: routing, ack, retry, dead letters",
};

const KEY: &str = "parcel.sent";

/// The 128 bytes as they are.
struct AsTheyAre;

impl Codec<Block> for AsTheyAre {
    fn name(&self) -> &str {
        "128 bytes"
    }

    fn encode(&self, block: &Block) -> Result<Vec<u8>, CodecError> {
        Ok(block.to_bytes().to_vec())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Block, CodecError> {
        Ok(Block::from_bytes(bytes))
    }
}

pub struct Route {
    broker: Broker,
    topic: Topic<Block>,
    queue: Queue<Block>,
}

impl Route {
    pub fn open(folder: &Path, durability: Durability, capacity: usize) -> Route {
        let broker = Broker::open(folder.join("broker.db")).expect("a file");
        let topic = broker.topic(TopicName::<Block>::new("parcels")).declare().expect("a topic");
        let queue = broker.queue(QueueName::<Block>::new("deliveries")).capacity(capacity);
        let queue = queue.durable_with(durability, AsTheyAre).declare().expect("a queue");
        topic.bind(&queue, "parcel.*").expect("a valid pattern");
        Route { broker, topic, queue }
    }

    /// Puts messages `0..n` into the file.
    pub fn fill(&self, n: u64) {
        let mut share = Share::<Block>::of(0..n);
        while self.topic.publish_batch(KEY, share.by_ref().take(1000)).expect("published") > 0 {}
        self.broker.store().expect("it has a file").flush(Durability::Sync).expect("synced");
    }

    pub fn first(&self) -> Option<Bytes> {
        self.queue.recv_timeout(Duration::from_secs(10)).ok().map(|delivery| delivery.payload().to_bytes())
    }
}

pub fn run(n: u64, task: Task) -> Outcome {
    let folder = Folder::fresh();
    let durability = if task.sync { Durability::Sync } else { Durability::Buffered };
    let route = Route::open(folder.path(), durability, 10_000);
    let seen = Arc::new(Arrivals::default());
    let counter = Arc::clone(&seen);
    let handler = move |parcel: &Message<Block>| counter.add(parcel.payload());
    route.queue.consumer().start(handler).expect("workers start");
    let producer = |share: Share<Block>| -> Tally {
        publish(&route.topic, share, task.way);
        Tally::default()
    };
    let end = || -> Tally {
        arrivals::wait_until(|| seen.tally().count >= n && route.queue.stats().acked >= n);
        route.broker.store().expect("it has a file").flush(Durability::Buffered).expect("written");
        Tally::default()
    };
    let mut threads: Vec<crew::Thread> = vec![Box::new(end)];
    threads.extend(crew::shares(n, task.producers).map(|share| Box::new(move || producer(share)) as crew::Thread));
    let (elapsed, _) = crew::time(threads)?;
    seen.tally().check::<Block>(n)?;
    if !route.broker.shutdown(Duration::from_secs(10)).is_clean() {
        return Err("the shutdown left messages behind".into());
    }
    Ok(elapsed)
}

fn publish(topic: &Topic<Block>, mut share: Share<Block>, way: Way) {
    match way {
        Way::Waiting => share.for_each(|block| assert!(topic.publish(KEY, block).is_ok())),
        Way::InFlight(most) => {
            let mut under_way = VecDeque::with_capacity(most);
            for block in share {
                if under_way.len() == most {
                    under_way.pop_front().into_iter().for_each(|oldest: postroom::Ticket<Block>| {
                        assert!(oldest.wait().is_ok());
                    });
                }
                under_way.push_back(topic.publish_deferred(KEY, block));
            }
            under_way.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
        }
        Way::Batches(size) => while topic.publish_batch(KEY, share.by_ref().take(size)).expect("published") > 0 {},
    }
}
