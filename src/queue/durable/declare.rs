//! Making a queue's streams, or finding those of an earlier run.

use super::depot::Depot;
use super::filed::Filed;
use super::format::{Coding, Letters, Plain};
use super::recover::recover;
use crate::dead_letter::DeadLetter;
use crate::queue::Queue;
use crate::queue::builder::{Order, Settings};
use crate::runtime::Runtime;
use crate::store::{Durability, StoreError, StreamId};
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// The streams' kinds in the file.
const QUEUE: &str = "queue";
const DEAD_LETTERS: &str = "dead letters";
pub(super) const UNDECODABLE: &str = "undecodable";

/// How a queue is to be kept.
pub(crate) struct Durable<T> {
    pub(crate) durability: Durability,
    pub(crate) coding: Coding<T>,
    /// Ready messages that wait in memory before others stay in the file.
    pub(crate) window: usize,
}

/// The usual window.
pub(crate) const WINDOW: usize = 4096;

/// What a stream's messages rely on, as noted in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    codec: String,
    order: String,
}

impl Noted {
    fn problems(&self, now: &Self) -> Vec<String> {
        let pairs = [("codec", &self.codec, &now.codec), ("order", &self.order, &now.order)];
        let differ = pairs.into_iter().filter(|(_, file, asked)| file != asked);
        differ.map(|(what, file, asked)| format!("its {what} in the file is {file:?}, asked for {asked:?}")).collect()
    }
}

fn order_in_words(order: Option<Order>) -> &'static str {
    match order {
        None => "none",
        Some(Order::ByKey) => "by key",
        Some(Order::OneAtATime) => "one at a time",
        Some(Order::ByFunction) => "by a function",
    }
}

/// A queue's streams, checked and at hand.
pub(crate) struct Streams {
    messages: StreamId,
    letters: Option<StreamId>,
}

impl<T: Send + Sync + 'static> Durable<T> {
    /// Finds or makes the streams. Waits for the commit.
    pub(crate) fn open(
        &self,
        depot: &Depot,
        name: &str,
        settings: &Settings,
        dead: Option<&str>,
    ) -> Result<Streams, Vec<String>> {
        let noted =
            Noted { codec: self.coding.codec.name().to_owned(), order: order_in_words(settings.order).to_owned() };
        let messages = open_stream(depot, QUEUE, name, &noted)?;
        let noted = Noted { order: order_in_words(None).to_owned(), ..noted };
        let letters = dead.map(|dead| open_stream(depot, DEAD_LETTERS, dead, &noted)).transpose()?;
        Ok(Streams { messages, letters })
    }

    /// Fills a new queue with what is in the file. `dead` is its own queue for dead letters, if it has one.
    pub(crate) fn fill(
        &self,
        depot: &Arc<Depot>,
        streams: &Streams,
        queue: &Queue<T>,
        dead: Option<&Queue<DeadLetter<T>>>,
    ) -> Result<(), Vec<String>> {
        let (durability, window) = (self.durability, self.window);
        let format = Arc::new(Plain(self.coding.clone()));
        let filed = Filed { depot: Arc::clone(depot), stream: streams.messages, durability, format, window };
        let _ = queue.core.filed.set(filed);
        // The dead letters first: what has expired in the queue itself joins them as soon as it is there.
        if let (Some(dead), Some(stream)) = (dead, streams.letters) {
            let origin: Mutex<Weak<_>> = Mutex::new(Arc::downgrade(&queue.core));
            let depot = Arc::clone(depot);
            let format = Arc::new(Letters { coding: self.coding.clone(), origin });
            let _ = dead.core.filed.set(Filed { depot, stream, durability, format, window });
            recover(&dead.core).map_err(in_words)?;
        }
        recover(&queue.core).map_err(in_words)?;
        Ok(())
    }
}

/// A queue for the dead letters of something that is no queue, with those of earlier runs.
pub(crate) fn letters_of_group<T: Send + Sync + 'static>(
    depot: &Arc<Depot>,
    coding: Coding<T>,
    durability: Durability,
    name: &str,
    runtime: &Arc<Runtime>,
) -> Result<Queue<DeadLetter<T>>, Vec<String>> {
    let noted = Noted { codec: coding.codec.name().to_owned(), order: order_in_words(None).to_owned() };
    let stream = open_stream(depot, DEAD_LETTERS, name, &noted)?;
    let queue = Queue::for_letters_as(name.into(), Arc::clone(runtime), Some(durability));
    queue.core.make_terminal();
    let format = Arc::new(Letters { coding, origin: Mutex::new(Weak::new()) });
    let _ = queue.core.filed.set(Filed { depot: Arc::clone(depot), stream, durability, format, window: WINDOW });
    recover(&queue.core).map_err(in_words)?;
    Ok(queue)
}

fn in_words(error: StoreError) -> Vec<String> {
    vec![format!("its file: {error}")]
}

fn open_stream(depot: &Depot, kind: &str, name: &str, noted: &Noted) -> Result<StreamId, Vec<String>> {
    let found = depot.store.reader().and_then(|reader| reader.stream(kind, name)).map_err(in_words)?;
    if let Some(stream) = found {
        let before: Noted = serde_json::from_str(&stream.settings)
            .map_err(|e| vec![format!("its settings in the file, {:?}, cannot be read: {e}", stream.settings)])?;
        let problems = before.problems(noted);
        return if problems.is_empty() { Ok(stream.id) } else { Err(problems) };
    }
    let settings = serde_json::to_string(noted).map_err(|e| vec![e.to_string()])?;
    depot.store.declare(kind, name, &settings).map_err(in_words)
}
