//! Making a queue's streams, or finding those of an earlier run.

use super::depot::Depot;
use super::filed::Filed;
use super::format::{Coding, Letters, Plain, item_of, message_of};
use super::recover::recover;
use super::undecoded::{Apart, Home, Opening, Undecoded};
use crate::codec::Codec;
use crate::dead_letter::{DeadLetter, Origin, Redrives};
use crate::idempotency::DoneStream;
use crate::message::Message;
use crate::queue::Queue;
use crate::queue::builder::{Order, Settings};
use crate::queue::core::Core;
use crate::runtime::Runtime;
use crate::store::{Durability, Item, StoreError, StreamId};
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// The streams' kinds in the file.
const QUEUE: &str = "queue";
const DEAD_LETTERS: &str = "dead letters";
const DONE: &str = "done";

/// How a queue is to be kept.
pub(crate) struct Durable<T> {
    pub(crate) durability: Durability,
    pub(crate) coding: Coding<T>,
    /// Ready messages that wait in memory before others stay in the file.
    pub(crate) window: usize,
}

/// The usual window.
pub(super) const WINDOW: usize = 4096;

/// What a stream's messages rely on, as noted in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    codec: String,
    order: String,
}

impl Noted {
    /// As the file has it.
    fn in_words(&self) -> Result<String, Vec<String>> {
        serde_json::to_string(self).map_err(|e| vec![e.to_string()])
    }

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
    pub(crate) fn with(durability: Durability, codec: impl Codec<T>) -> Self {
        Self { durability, coding: Coding::new(codec), window: WINDOW }
    }

    /// Finds or makes the streams. Waits for the commit.
    pub(crate) fn open(
        &self,
        depot: &Depot,
        name: &str,
        settings: &Settings,
        dead: Option<&str>,
    ) -> Result<Streams, Vec<String>> {
        let messages = open_stream(depot, QUEUE, name, &self.noted(settings.order))?;
        let letters = dead.map(|dead| self.open_stream(depot, DEAD_LETTERS, dead)).transpose()?;
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
        let done = remember_done(depot, &queue.core).map_err(in_words)?;
        let homes = [Some(Home::queue(queue)), dead.map(Home::queue)].into_iter().flatten().collect();
        let unread = self.open_undecodable(depot, &queue.core.runtime, queue.name(), homes)?;
        let apart = Some(Apart::to(&unread));
        let depot_of = Arc::clone(depot);
        let filed = Filed { depot: depot_of, stream: streams.messages, durability, format, window, done, apart };
        let _ = queue.core.filed.set(filed);
        // The dead letters first: what has expired in the queue itself joins them as soon as it is there.
        if let (Some(dead), Some(stream)) = (dead, streams.letters) {
            self.fill_letters(depot, stream, dead, Origin::Queue(Arc::downgrade(&queue.core)), &unread)?;
        }
        recover(&queue.core).map_err(in_words)?;
        Ok(())
    }

    fn fill_letters(
        &self,
        depot: &Arc<Depot>,
        stream: StreamId,
        dead: &Queue<DeadLetter<T>>,
        origin: Origin<T>,
        unread: &Queue<DeadLetter<Undecoded>>,
    ) -> Result<(), Vec<String>> {
        let format = Arc::new(Letters { coding: self.coding.clone(), origin: Mutex::new(origin) });
        let (depot, durability, window) = (Arc::clone(depot), self.durability, self.window);
        let apart = Some(Apart::to(unread));
        let _ = dead.core.filed.set(Filed { depot, stream, durability, format, window, done: None, apart });
        recover(&dead.core).map_err(in_words)
    }

    /// Makes the queue for what these cannot decode, with what is there.
    pub(crate) fn open_undecodable(
        &self,
        depot: &Arc<Depot>,
        runtime: &Arc<Runtime>,
        name: &str,
        homes: Vec<Home>,
    ) -> Result<Queue<DeadLetter<Undecoded>>, Vec<String>> {
        let settings = self.noted(None).in_words()?;
        Opening { depot, runtime, durability: self.durability, name, settings, homes }.open().map_err(in_words)
    }

    fn noted(&self, order: Option<Order>) -> Noted {
        Noted { codec: self.coding.codec.name().to_owned(), order: order_in_words(order).to_owned() }
    }

    /// Fills a new queue for the half messages of a topic that nobody could resolve.
    pub(crate) fn fill_letters_of_topic(
        &self,
        depot: &Arc<Depot>,
        dead: &Queue<DeadLetter<T>>,
        topic: Weak<dyn Redrives<T>>,
        unread: &Queue<DeadLetter<Undecoded>>,
    ) -> Result<(), Vec<String>> {
        let stream = self.open_stream(depot, DEAD_LETTERS, dead.name())?;
        self.fill_letters(depot, stream, dead, Origin::Other(topic), unread)
    }

    /// Finds or makes a stream of messages in no special order. Waits for the commit.
    pub(crate) fn open_stream(&self, depot: &Depot, kind: &str, name: &str) -> Result<StreamId, Vec<String>> {
        open_stream(depot, kind, name, &self.noted(None))
    }

    /// Runs the user's codec, so no lock may be held.
    pub(crate) fn item(&self, message: &Message<T>) -> Result<Box<Item>, String> {
        item_of(&Plain(self.coding.clone()), message)
    }

    /// Runs the user's codec, so no lock may be held.
    pub(crate) fn message(&self, item: &Item) -> Result<Message<T>, String> {
        message_of(&Plain(self.coding.clone()), item)
    }
}

/// What an idempotent queue has completed in earlier runs.
fn remember_done<T: Send + Sync + 'static>(depot: &Depot, core: &Core<T>) -> Result<Option<DoneStream>, StoreError> {
    let Some((ledger, (_, by_function))) = core.ledger().zip(core.settings.idempotent) else { return Ok(None) };
    let by = if by_function { "by a function" } else { "by id" };
    DoneStream::open(&depot.store, (DONE, &core.name, by), ledger, core.runtime.clock.now()).map(Some)
}

/// A queue for the dead letters of something that is no queue, with those of earlier runs.
pub(crate) fn letters_of_group<T: Send + Sync + 'static>(
    depot: &Arc<Depot>,
    coding: Coding<T>,
    durability: Durability,
    name: &str,
    runtime: &Arc<Runtime>,
) -> Result<Queue<DeadLetter<T>>, Vec<String>> {
    let durable = Durable { durability, coding, window: WINDOW };
    let stream = durable.open_stream(depot, DEAD_LETTERS, name)?;
    let queue = Queue::for_letters_as(name.into(), Arc::clone(runtime), Some(durability));
    queue.core.make_terminal();
    let unread = durable.open_undecodable(depot, runtime, name, vec![Home::queue(&queue)])?;
    durable.fill_letters(depot, stream, &queue, Origin::Queue(Weak::new()), &unread)?;
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
    depot.store.declare(kind, name, &noted.in_words()?).map_err(in_words)
}
