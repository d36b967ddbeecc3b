//! What cannot be decoded, as dead letters of bytes, and its way back.
//!
//! A row that its codec refuses moves to a stream of the kind `undecodable`, in one commit, and is a dead letter there:
//! noted beside it are why, and whatever else its columns had said. So its item can be put together again as it was,
//! and be decoded by whoever had it, as often as somebody asks.

use super::depot::{Depot, Errand};
use super::filed::Filed;
use super::format::{Extra, Format, Letter};
use super::letters::Along;
use super::recover::{PORTION, recover};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Origin, Reason, Redrives, Return};
use crate::message::{Attempt, Message};
use crate::queue::core::Core;
use crate::queue::{Queue, undecodable_name};
use crate::runtime::{Event, Runtime};
use crate::store::{Batch, Change, Durability, Item, Row, Seq, StoreError, StreamId};
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The streams' kind in the file.
pub(crate) const UNDECODABLE: &str = "undecodable";
/// Of what an earlier version of this library has put apart.
const NOT_NOTED: &str = "could not be decoded; why was not noted then";

/// The payload of a message that could not be decoded: the bytes as they are in the file. See [`Queue::undecodable`].
#[derive(Clone, PartialEq)]
pub struct Undecoded {
    bytes: Vec<u8>,
    schema: u32,
    former: Former,
}

impl Undecoded {
    /// What the codec refused.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which version of its type they were written with; 0 if none was ever given.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.schema
    }

    /// Why its queue had given up on it before, if it was a dead letter already.
    #[must_use]
    pub fn given_up(&self) -> Option<Reason> {
        self.former.reason()
    }

    /// Other bytes for the same message, to be [redriven](crate::Redrive::edit) with.
    #[must_use]
    pub fn with_bytes(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..self }
    }

    /// The same bytes as those of another version.
    #[must_use]
    pub fn with_schema(self, version: u32) -> Self {
        Self { schema: version, ..self }
    }
}

impl fmt::Debug for Undecoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = String::from_utf8_lossy(&self.bytes);
        f.debug_struct("Undecoded").field("schema", &self.schema).field("bytes", &bytes).finish_non_exhaustive()
    }
}

/// What an item's columns said before it was put apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Former {
    published_at: u64,
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extra: Option<Value>,
}

impl Former {
    fn of(item: &Item) -> Self {
        let as_text = |bytes: &[u8]| Value::String(String::from_utf8_lossy(bytes).into_owned());
        let read = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_else(|_| as_text(bytes));
        Self {
            published_at: item.published_at,
            attempts: item.attempts,
            due_at: item.due_at,
            expires_at: item.expires_at,
            extra: item.extra.as_deref().map(read),
        }
    }

    /// Of a dead letter.
    fn reason(&self) -> Option<Reason> {
        let letter = self.extra.as_ref()?.get("letter")?;
        serde_json::from_value(letter.get("reason")?.clone()).ok()
    }
}

/// The item as it was, but for what has become of its payload since.
pub(crate) fn former_item(message: &Message<Undecoded>) -> Item {
    let Undecoded { bytes, schema, former } = message.payload();
    Item {
        id: message.id.get(),
        published_at: former.published_at,
        attempts: former.attempts,
        due_at: former.due_at,
        expires_at: former.expires_at,
        priority: message.priority(),
        key: message.key().map(str::to_owned),
        routing_key: message.routing_key().to_owned(),
        headers: message.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        schema: *schema,
        payload: bytes.clone(),
        extra: former.extra.as_ref().and_then(|extra| serde_json::to_vec(extra).ok()),
    }
}

/// The letter that an item becomes which something of that name cannot decode.
fn letter_of(item: &Item, home: &str, now: Timestamp, error: String) -> Letter {
    let noted: Extra = item.extra.as_deref().and_then(|extra| serde_json::from_slice(extra).ok()).unwrap_or_default();
    // One that was a dead letter before has its message's own history.
    let (attempts, published_at, history) = match noted.letter {
        Some(letter) => (letter.attempts, letter.published_at, letter.history),
        None => (item.attempts, item.published_at, noted.history),
    };
    let mut history: Vec<Attempt> = history.into_iter().map(Attempt::from).collect();
    Attempt { number: attempts, at: now.to_system_time(), error }.add_to(&mut history);
    Letter {
        reason: Reason::Undecodable,
        queue: home.to_owned(),
        at: now.0,
        published_at,
        attempts,
        history: history.iter().map(Into::into).collect(),
        former: Some(Former::of(item)),
    }
}

/// What is noted of an item that is put apart, in place of all that it had.
fn extra_apart(letter: Letter) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Extra::of_letter(letter)).map_err(|error| StoreError::other(error.to_string()))
}

fn change_apart(extra: Option<Vec<u8>>) -> Change {
    Change::new().attempts(0).due_at(None).expires_at(None).extra(extra)
}

/// Where what a stream holds goes if it cannot be decoded.
pub(crate) struct Apart {
    pub(crate) queue: Queue<DeadLetter<Undecoded>>,
    /// Held while a row is moved there.
    moves: Mutex<()>,
}

impl Apart {
    pub(crate) fn to(queue: &Queue<DeadLetter<Undecoded>>) -> Self {
        Self { queue: queue.clone(), moves: Mutex::new(()) }
    }

    /// Moves rows there that are refused in these words, in one commit, but for those that somebody else has moved;
    /// `home` names whose they are. Waits for the commit, so no other lock may be held.
    pub(crate) fn take(&self, from: StreamId, refused: &[(Row, String)], home: &str) -> Result<usize, StoreError> {
        if refused.is_empty() {
            return Ok(0);
        }
        let core = &self.queue.core;
        // Two readers may have come upon them, and each is to be here once.
        let moves = self.moves.lock();
        let reader = core.filed().depot.store.reader()?.with_damaged();
        let mut there = Vec::with_capacity(refused.len());
        for (row, error) in refused {
            there.extend(reader.get(from, row.seq)?.map(|_| (row, error)));
        }
        drop(reader);
        if !there.is_empty() {
            self.bring(from, &there, home)?;
        }
        drop(moves);
        for (row, error) in &there {
            let (queue, message, error) = (home.to_owned(), row.item.id.into(), (*error).clone());
            core.runtime.tell(|| Event::Undecodable { queue, message, error });
        }
        Ok(there.len())
    }

    fn bring(&self, from: StreamId, rows: &[(&Row, &String)], home: &str) -> Result<(), StoreError> {
        let (me, filed) = (Arc::clone(&self.queue.core), self.queue.core.filed());
        let (mut batch, mut letters, now) = (Batch::new(), Vec::with_capacity(rows.len()), me.runtime.clock.now());
        for (row, error) in rows {
            let extra = extra_apart(letter_of(&row.item, home, now, (*error).clone()))?;
            let letter = Item { attempts: 0, due_at: None, expires_at: None, extra: Some(extra), ..row.item.clone() };
            letters.push(filed.message(&letter).map_err(StoreError::other)?);
            batch = batch.move_to(from, row.seq, filed.stream, change_apart(letter.extra));
        }
        let letters: Vec<_> = letters.into_iter().map(|letter| (me.promise_for_letter(), letter)).collect();
        let arrive = move |result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>| {
            let arrived = match result {
                Ok(places) => {
                    for ((pledge, mut letter), &place) in letters.into_iter().zip(places) {
                        letter.set_fresh_place(place);
                        me.redeem_quietly(pledge, letter, errands);
                    }
                    Ok(())
                }
                Err(error) => {
                    letters.into_iter().for_each(|(pledge, _)| me.forgo(pledge));
                    Err(error)
                }
            };
            errands.push(Box::new(move || drop(me)));
            arrived
        };
        filed.depot.commit(batch, Durability::Buffered, arrive).wait()
    }
}

/// Who decodes it again, and the name that its letters have for that.
pub(crate) struct Home {
    pub(crate) name: Arc<str>,
    pub(crate) way: Arc<dyn Redrives<Undecoded>>,
}

impl Home {
    pub(crate) fn queue<T: Send + Sync + 'static>(queue: &Queue<T>) -> Self {
        Self { name: Arc::clone(&queue.core.name), way: Arc::new(ToQueue(queue.core.weak())) }
    }
}

/// A queue, perhaps of dead letters, takes back what it can decode by now.
struct ToQueue<T>(Weak<Core<T>>);

impl<T: Send + Sync + 'static> Redrives<Undecoded> for ToQueue<T> {
    fn redrive(&self, letter: Message<Undecoded>, delay: Duration) -> Result<Return, Option<String>> {
        let core = self.0.upgrade().filter(|core| !core.is_beyond_reach()).ok_or(None)?;
        let mut message = core.filed().message(&former_item(&letter))?;
        if letter.given_up().is_none() {
            message.extras_mut().history = letter.history().to_vec();
        }
        let due = letter.payload().former.due_at.map(Timestamp);
        message.extras_mut().due = due;
        message.redelivered |= letter.attempt > 0;
        Ok(Box::new(move |along| core.readmit(message, delay, along)))
    }

    fn leave_file(&self, _: &mut Message<Undecoded>) -> Along {
        Along::nothing()
    }
}

/// How such letters are written.
struct Letters {
    homes: Vec<Home>,
}

impl Letters {
    fn origin(&self, name: &str) -> Origin<Undecoded> {
        match self.homes.iter().find(|home| *home.name == *name) {
            Some(home) => Origin::Other(Arc::downgrade(&home.way)),
            None => Origin::Queue(Weak::new()),
        }
    }
}

impl Format<DeadLetter<Undecoded>> for Letters {
    fn payload(&self, message: &Message<DeadLetter<Undecoded>>) -> Result<Vec<u8>, String> {
        Ok(message.payload().bytes.clone())
    }

    fn version(&self, message: &Message<DeadLetter<Undecoded>>) -> u32 {
        message.payload().schema
    }

    fn letter(&self, message: &Message<DeadLetter<Undecoded>>) -> Option<Letter> {
        let letter = message.payload();
        Some(Letter::of(letter, Some(letter.former.clone())))
    }

    fn restore(&self, item: &Item, letter: Option<Letter>) -> Result<DeadLetter<Undecoded>, String> {
        let mut letter = letter.filter(|letter| letter.former.is_some()).unwrap_or_else(|| {
            // An earlier version of this library has had the file meanwhile.
            letter_of(item, &self.homes[0].name, Timestamp(item.published_at), NOT_NOTED.into())
        });
        let former = letter.former.take().ok_or("it does not say what it was")?;
        let payload = Undecoded { bytes: item.payload.clone(), schema: item.schema, former };
        let origin = self.origin(&letter.queue);
        Ok(letter.restore(item, payload, origin))
    }
}

/// A queue for what its homes cannot decode: the first is what it is named after, others are queues of dead letters.
pub(super) struct Opening<'a> {
    pub(super) depot: &'a Arc<Depot>,
    pub(super) runtime: &'a Arc<Runtime>,
    pub(super) durability: Durability,
    /// The stream's, and the queue's but for its ending.
    pub(super) name: &'a str,
    /// Of the stream, as the other streams have them.
    pub(super) settings: String,
    pub(super) homes: Vec<Home>,
}

impl Opening<'_> {
    /// Finds or makes the stream, and has what earlier runs have left there.
    pub(super) fn open(self) -> Result<Queue<DeadLetter<Undecoded>>, StoreError> {
        let store = &self.depot.store;
        let found = store.reader()?.stream(UNDECODABLE, self.name)?;
        let stream = match &found {
            Some(stream) => stream.id,
            None => store.declare(UNDECODABLE, self.name, &self.settings)?,
        };
        if found.is_some_and(|found| found.settings != self.settings) {
            self.make_letters((stream, &self.homes[0].name), stream)?;
            store.commit(Batch::new().settings(stream, self.settings.as_str()), Durability::Buffered)?;
        }
        for home in &self.homes[1..] {
            if let Some(other) = store.reader()?.stream(UNDECODABLE, &home.name)? {
                self.make_letters((other.id, &home.name), stream)?;
                store.commit(Batch::new().remove(other.id), Durability::Buffered)?;
            }
        }
        let name = undecodable_name(self.name).into();
        let queue = Queue::for_undecodable(name, Arc::clone(self.runtime), self.durability);
        let format = Arc::new(Letters { homes: self.homes });
        let depot = Arc::clone(self.depot);
        let _ = queue.core.filed.set(Filed::with_format(depot, stream, self.durability, format));
        recover(&queue.core)?;
        Ok(queue)
    }

    /// Earlier versions of this library have put rows apart as they were, those of dead letters in a stream of their
    /// own. They become letters, each portion in one commit; one that is a letter already stays as it is.
    fn make_letters(&self, (from, home): (StreamId, &str), to: StreamId) -> Result<(), StoreError> {
        let store = &self.depot.store;
        let (reader, now) = (store.reader()?, self.runtime.clock.now());
        let mut next: Seq = 0;
        loop {
            let rows = reader.read(from, next, PORTION)?;
            let Some(last) = rows.last() else { return Ok(()) };
            next = last.seq + 1;
            let mut batch = Batch::new();
            for Row { seq, item, .. } in &rows {
                let change = match is_letter(item) {
                    true => Change::new(),
                    false => change_apart(Some(extra_apart(letter_of(item, home, now, NOT_NOTED.into()))?)),
                };
                batch = if from == to { batch.update(to, *seq, change) } else { batch.move_to(from, *seq, to, change) };
            }
            store.commit(batch, Durability::Buffered)?;
        }
    }
}

fn is_letter(item: &Item) -> bool {
    let noted: Option<Extra> = item.extra.as_deref().and_then(|extra| serde_json::from_slice(extra).ok());
    noted.and_then(|noted| noted.letter).is_some_and(|letter| letter.former.is_some())
}
