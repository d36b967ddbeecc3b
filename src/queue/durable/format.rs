//! Messages as items of the file, and back.

use super::undecoded::Former;
use crate::clock::Timestamp;
use crate::codec::{Codec, CodecError};
use crate::dead_letter::{DeadLetter, Origin, Reason};
use crate::message::{Attempt, Message, Text};
use crate::outcome::contained;
use crate::queue::keyed::Hold;
use crate::store::{Batch, Brief, Item, StreamId};
use crate::sync::Mutex;
use crate::timer::TimerRef;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Makes a payload of the bytes of an earlier version.
type Upgrade<T> = Arc<dyn Fn(u32, &[u8]) -> Result<T, CodecError> + Send + Sync>;

/// How payloads are written, and which version of their type that is.
pub(crate) struct Coding<T> {
    pub(crate) codec: Arc<dyn Codec<T>>,
    version: u32,
    /// `None` while there is only one version.
    upgrade: Option<Upgrade<T>>,
}

impl<T> Clone for Coding<T> {
    fn clone(&self) -> Self {
        Self { codec: Arc::clone(&self.codec), version: self.version, upgrade: self.upgrade.clone() }
    }
}

impl<T: 'static> Coding<T> {
    pub(crate) fn new(codec: impl Codec<T>) -> Self {
        Self { codec: Arc::new(codec), version: 0, upgrade: None }
    }

    /// Payloads are written as that version, and earlier ones read by `upgrade`; `false` if it is not known yet how.
    pub(crate) fn upgrade_known(
        coding: Option<&mut Self>,
        version: u32,
        upgrade: impl Fn(u32, &[u8]) -> Result<T, CodecError> + Send + Sync + 'static,
    ) -> bool {
        let Some(coding) = coding else { return false };
        coding.version = version;
        coding.upgrade = Some(Arc::new(upgrade));
        true
    }

    fn encode(&self, payload: &T) -> Result<Vec<u8>, String> {
        contained(|| self.codec.encode(payload)).and_then(|encoded| encoded.map_err(|error| error.to_string()))
    }

    fn decode(&self, item: &Item) -> Result<T, String> {
        let (version, bytes) = (item.schema, &item.payload);
        if version > self.version {
            return Err(format!("written as version {version} of its type, known up to {}", self.version));
        }
        let decoded = contained(|| match &self.upgrade {
            Some(upgrade) if version < self.version => upgrade(version, bytes),
            _ => self.codec.decode(bytes),
        });
        decoded.and_then(|decoded| decoded.map_err(|error| error.to_string()))
    }
}

/// How the messages of one queue are written.
pub(super) trait Format<T>: Send + Sync {
    /// The bytes of the payload. Runs the user's codec, so no lock may be held.
    fn payload(&self, message: &Message<T>) -> Result<Vec<u8>, String>;
    /// Which version of its type that is.
    fn version(&self, message: &Message<T>) -> u32;
    /// What is only in the letter: see [`Extra::letter`].
    fn letter(&self, message: &Message<T>) -> Option<Letter>;
    /// The payload these bytes stand for; the rest of the message is restored elsewhere.
    fn restore(&self, item: &Item, letter: Option<Letter>) -> Result<T, String>;
}

/// What an item's columns have no place for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Extra {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) history: Vec<Failed>,
    /// From when a queue's time to live counts, if not from the publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) counts_from: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) redelivered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) letter: Option<Letter>,
    /// Its key is parked because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    /// The name of the timer it waits with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timer: Option<String>,
}

impl Extra {
    pub(super) fn of_letter(letter: Letter) -> Self {
        Self { letter: Some(letter), ..Self::default() }
    }
}

/// What is noted of a message that parks its key has this in it; of few others.
pub(super) const HELD: &[u8] = b"\"held\":";

/// Why and since when a key is parked.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    reason: Reason,
    since: u64,
}

/// One failed attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failed {
    number: u32,
    at: u64,
    error: String,
}

/// What a dead letter says beyond its message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Letter {
    pub(super) reason: Reason,
    pub(super) queue: String,
    pub(super) at: u64,
    pub(super) published_at: u64,
    pub(super) attempts: u32,
    pub(super) history: Vec<Failed>,
    /// Of one that could not be decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) former: Option<Former>,
}

impl Letter {
    pub(super) fn of<T>(letter: &DeadLetter<T>, former: Option<Former>) -> Self {
        Self {
            reason: letter.reason().clone(),
            queue: letter.queue().to_owned(),
            at: Timestamp::from_system_time(letter.at()).0,
            published_at: letter.message().published_at.0,
            attempts: letter.message().attempt,
            history: letter.attempts().iter().map(Failed::from).collect(),
            former,
        }
    }

    /// The letter of an item.
    pub(super) fn restore<T: Send + Sync + 'static>(self, item: &Item, payload: T, origin: Origin<T>) -> DeadLetter<T> {
        let mut message = Message::new(payload);
        restore_envelope(&mut message, item);
        (message.attempt, message.redelivered) = (self.attempts, true);
        message.published_at = Timestamp(self.published_at);
        message.extras_mut().history = self.history.into_iter().map(Attempt::from).collect();
        DeadLetter::restored(message, self.reason, self.queue.into(), Timestamp(self.at), origin)
    }
}

impl From<&Attempt> for Failed {
    fn from(attempt: &Attempt) -> Self {
        Self { number: attempt.number, at: Timestamp::from_system_time(attempt.at).0, error: attempt.error.clone() }
    }
}

impl From<Failed> for Attempt {
    fn from(failed: Failed) -> Self {
        Self { number: failed.number, at: Timestamp(failed.at).to_system_time(), error: failed.error }
    }
}

/// `None` if there is nothing to say: nothing but its time, from which then a queue's time to live counts. `hold` says
/// why its key is parked because of it.
pub(super) fn extra_of<T>(message: &Message<T>, letter: Option<Letter>, hold: Option<&Hold>) -> Option<Vec<u8>> {
    let extras = message.extras.as_deref();
    if extras.is_none() && letter.is_none() && hold.is_none() && !message.redelivered {
        return None;
    }
    let counts_from = extras.and_then(|extras| extras.counts_from).map(|from| from.0);
    let history: Vec<Failed> = message.history().iter().map(Failed::from).collect();
    let held = hold.map(|hold| Held { reason: hold.reason.clone(), since: hold.since.0 });
    let timer = extras.filter(|extras| extras.due.is_some()).and_then(|extras| extras.timer.as_ref()?.name());
    let waits = held.is_some() || timer.is_some();
    let counts_plainly = counts_from.is_none() || counts_from == message.due().map(|due| due.0);
    if history.is_empty() && counts_plainly && !message.redelivered && letter.is_none() && !waits {
        return None;
    }
    let timer = timer.map(str::to_owned);
    let extra = Extra { history, counts_from, redelivered: message.redelivered, letter, held, timer };
    serde_json::to_vec(&extra).ok()
}

/// What is noted of a message that is in memory as long as it rests, if nothing else is.
pub(super) fn known_extra<T>(message: &Message<T>) -> Vec<u8> {
    let counts_from = message.extras.as_deref().and_then(|extras| extras.counts_from).map(|from| from.0);
    serde_json::to_vec(&Extra { counts_from, ..Extra::default() }).unwrap_or_else(|_| b"{}".to_vec())
}

/// The item of a stamped message. Runs the user's codec, so no lock may be held.
pub(super) fn item_of<T>(format: &dyn Format<T>, message: &Message<T>) -> Result<Box<Item>, String> {
    item_with(format, message, format.letter(message))
}

/// The item of a message that is published: in a box, unless there is little to say.
pub(super) enum Written {
    Brief(Brief),
    Item(Box<Item>),
}

impl Written {
    /// As [`item_of`].
    pub(super) fn of<T>(format: &dyn Format<T>, message: &Message<T>) -> Result<Self, String> {
        let letter = format.letter(message);
        if message.extras.is_some() || message.attempt > 0 || message.redelivered || letter.is_some() {
            return item_with(format, message, letter).map(Self::Item);
        }
        Ok(Self::Brief(Brief {
            id: message.id.get(),
            published_at: message.published_at.0,
            routing_key: message.routing_key.clone(),
            schema: format.version(message),
            payload: format.payload(message)?,
        }))
    }

    pub(super) fn add_to(self, batch: Batch, stream: StreamId) -> Batch {
        match self {
            Self::Brief(brief) => batch.insert_brief(stream, brief),
            Self::Item(item) => batch.insert(stream, item),
        }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Self::Brief(brief) => brief.payload.len(),
            Self::Item(item) => item.payload.len(),
        }
    }
}

fn item_with<T>(format: &dyn Format<T>, message: &Message<T>, letter: Option<Letter>) -> Result<Box<Item>, String> {
    Ok(Box::new(Item {
        id: message.id.get(),
        published_at: message.published_at.0,
        attempts: message.attempt,
        due_at: message.due().map(|due| due.0),
        expires_at: message.extras.as_ref().and_then(|extras| extras.expires).map(|expires| expires.0),
        priority: message.priority(),
        key: message.key().map(str::to_owned),
        routing_key: message.routing_key().to_owned(),
        headers: message.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        schema: format.version(message),
        payload: format.payload(message)?,
        extra: extra_of(message, letter, None),
    }))
}

/// The message of an item, without its place.
pub(super) fn message_of<T>(format: &dyn Format<T>, item: &Item) -> Result<Message<T>, String> {
    let nothing = || Extra { counts_from: item.due_at, ..Extra::default() };
    let extra = item.extra.as_deref().map_or_else(|| Ok(nothing()), serde_json::from_slice);
    let Extra { history, counts_from, redelivered, letter, timer, .. } =
        extra.map_err(|e| format!("what is noted of it: {e}"))?;
    let mut message = Message::new(format.restore(item, letter)?);
    restore_envelope(&mut message, item);
    (message.attempt, message.redelivered) = (item.attempts, redelivered);
    let extras = message.extras_mut();
    extras.history = history.into_iter().map(Attempt::from).collect();
    extras.due = item.due_at.map(Timestamp);
    extras.expires = item.expires_at.map(Timestamp);
    extras.counts_from = counts_from.map(Timestamp);
    extras.timer = timer.map(TimerRef::from);
    Ok(message)
}

/// Why the item's key is parked because of it, if it is.
pub(super) fn hold_of(item: &Item) -> Option<Hold> {
    let extra: Extra = serde_json::from_slice(item.extra.as_deref()?).ok()?;
    extra.held.map(|held| Hold { reason: held.reason, since: Timestamp(held.since) })
}

fn restore_envelope<T>(message: &mut Message<T>, item: &Item) {
    message.id = item.id.into();
    message.published_at = Timestamp(item.published_at);
    message.routing_key = Text::new(&item.routing_key);
    let extras = message.extras_mut();
    extras.key = item.key.as_deref().map(Text::new);
    extras.headers = item.headers.iter().map(|(name, value)| (Text::new(name), Text::new(value))).collect();
    extras.priority = item.priority;
}

/// Of an ordinary queue.
pub(super) struct Plain<T>(pub(super) Coding<T>);

impl<T: Send + Sync + 'static> Format<T> for Plain<T> {
    fn payload(&self, message: &Message<T>) -> Result<Vec<u8>, String> {
        self.0.encode(message.payload())
    }
    fn version(&self, _: &Message<T>) -> u32 {
        self.0.version
    }
    fn letter(&self, _: &Message<T>) -> Option<Letter> {
        None
    }
    fn restore(&self, item: &Item, _: Option<Letter>) -> Result<T, String> {
        self.0.decode(item)
    }
}

/// Of a queue that holds the dead letters of another.
pub(super) struct Letters<T> {
    pub(super) coding: Coding<T>,
    /// The queue that a letter of this name came from, once it is there, or the topic.
    pub(super) origin: Mutex<Origin<T>>,
}

impl<T: Send + Sync + 'static> Format<DeadLetter<T>> for Letters<T> {
    fn payload(&self, message: &Message<DeadLetter<T>>) -> Result<Vec<u8>, String> {
        self.coding.encode(message.payload().payload())
    }

    fn version(&self, _: &Message<DeadLetter<T>>) -> u32 {
        self.coding.version
    }

    fn letter(&self, message: &Message<DeadLetter<T>>) -> Option<Letter> {
        Some(Letter::of(message.payload(), None))
    }

    fn restore(&self, item: &Item, letter: Option<Letter>) -> Result<DeadLetter<T>, String> {
        let letter = letter.ok_or("it does not say why it is a dead letter")?;
        let payload = self.coding.decode(item)?;
        let origin = self.origin.lock().if_named(&letter.queue);
        Ok(letter.restore(item, payload, origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Json;

    fn message() -> Message<u32> {
        let mut message = Message::new(7);
        (message.id, message.published_at) = (3.into(), Timestamp(5));
        message.routing_key = Text::new("a.b");
        message
    }

    #[test]
    fn a_message_about_which_there_is_little_to_say_is_written_in_brief_as_in_full() {
        let format = Plain(Coding::new(Json));
        let Written::Brief(brief) = Written::of(&format, &message()).unwrap() else { panic!("in full") };
        let Brief { id, published_at, routing_key, schema, payload } = brief;
        let routing_key = routing_key.as_str().to_owned();
        let in_full = Item { id, published_at, routing_key, schema, payload, ..Item::default() };
        assert_eq!(*item_of(&format, &message()).unwrap(), in_full);
    }

    #[test]
    fn a_message_about_which_there_is_more_to_say_is_written_in_full() {
        let changes: [fn(&mut Message<u32>); 6] = [
            |message| message.extras_mut().key = Some(Text::new("user-7")),
            |message| message.extras_mut().headers.push((Text::new("tenant"), Text::new("acme"))),
            |message| message.extras_mut().priority = 3,
            |message| message.extras_mut().expires = Some(Timestamp(9)),
            |message| message.attempt = 1,
            |message| message.redelivered = true,
        ];
        let format = Plain(Coding::new(Json));
        for (at, change) in changes.into_iter().enumerate() {
            let mut message = message();
            change(&mut message);
            let Written::Item(item) = Written::of(&format, &message).unwrap() else { panic!("{at}: in brief") };
            assert_eq!(item, item_of(&format, &message).unwrap(), "{at}");
            assert_ne!(item.bytes(), 0);
        }
    }
}
