//! Messages their queues gave up on, and the way back.

use crate::clock::Timestamp;
use crate::error::Error;
use crate::message::{Attempt, Message};
use crate::outcome::drop_contained;
use crate::queue::Queue;
use crate::queue::core::Core;
use crate::queue::durable::{Along, Moving};
use crate::rate::Rate;
use crate::request::{End, Request};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// Why a queue gave up on a message.
///
/// With serde, and so in the file of a durable queue, it is its name in lower case with underscores:
/// `"key_dropped"`, `{"rejected": "in these words"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Its handler failed as often as the retry policy allows.
    Exhausted,
    /// Its handler failed in a way that no retry can mend.
    Permanent,
    /// Its consumer asked for it, in these words.
    Rejected(String),
    /// It was not handled within its time to live.
    Expired,
    /// Its queue was full and has the policy `Overflow::DeadLetter`.
    Overflow,
    /// It was a half message, and its topic's check-back could not say what became of its transaction.
    Unresolved,
    /// It waited behind a message that had failed for good, and its key was dropped; see
    /// [`Queue::drop_key`].
    KeyDropped,
    /// Its payload in the broker's file could not be decoded; see `Queue::undecodable`.
    Undecodable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted => f.write_str("attempts exhausted"),
            Self::Permanent => f.write_str("permanent failure"),
            Self::Rejected(words) => write!(f, "rejected: {words}"),
            Self::Expired => f.write_str("expired"),
            Self::Overflow => f.write_str("queue was full"),
            Self::Unresolved => f.write_str("transaction unresolved"),
            Self::KeyDropped => f.write_str("key dropped"),
            Self::Undecodable => f.write_str("undecodable"),
        }
    }
}

/// A message its queue gave up on, with everything that is known about why.
///
/// Dereferences to the message, so its payload, headers and keys read as before.
pub struct DeadLetter<T> {
    message: Message<T>,
    reason: Reason,
    queue: Arc<str>,
    at: Timestamp,
    origin: Origin<T>,
}

/// Where it can be sent back to.
pub(crate) enum Origin<T> {
    Queue(Weak<Core<T>>),
    /// A topic, or whatever else has a way of its own.
    Other(Weak<dyn Redrives<T>>),
}

impl<T> Clone for Origin<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Queue(queue) => Self::Queue(Weak::clone(queue)),
            Self::Other(other) => Self::Other(Weak::clone(other)),
        }
    }
}

impl<T> Origin<T> {
    /// The same, if it is a topic or the queue of that name, and otherwise nowhere.
    #[cfg(feature = "sqlite")]
    pub(crate) fn if_named(&self, name: &str) -> Self {
        match self {
            Self::Queue(queue) if queue.upgrade().is_none_or(|core| *core.name != *name) => Self::Queue(Weak::new()),
            home => home.clone(),
        }
    }
}

impl<T> DeadLetter<T> {
    /// Why it is here.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// What the last failed attempt said; `None` if it never failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.attempts().last().map(|attempt| attempt.error.as_str())
    }

    /// Every failed attempt with its time and error, oldest first, those before an earlier redrive
    /// included; see [`Message::history`] for the limit.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.message.history()
    }

    /// The queue that gave up on it, or the topic that it was a half message of. Of what could not be decoded, the queue
    /// that has held it, which may be one of dead letters.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// When it was given up on.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        self.at.to_system_time()
    }

    /// The message as it was published; the same as dereferencing.
    #[must_use]
    pub fn message(&self) -> &Message<T> {
        &self.message
    }

    /// The message by value.
    #[must_use]
    pub fn into_message(self) -> Message<T> {
        self.message
    }
}

impl<T: Send + Sync + 'static> DeadLetter<T> {
    pub(crate) fn share_message(&mut self) -> Message<T> {
        self.message.share()
    }

    /// Whoever waits for a reply, and what to tell once the letter can be found.
    pub(crate) fn take_request(&mut self) -> Option<(Request, End)> {
        let request = self.message.take_request()?;
        let error = self.error().map(str::to_owned);
        Some((request, End::Failed(Arc::clone(&self.queue), self.reason.clone(), error)))
    }

    /// Takes the message out of its place in the file of the queue that gave up on it.
    fn leave_file(&mut self) -> Along {
        match &self.origin {
            Origin::Queue(core) => core.upgrade().map(|core| core.leave_file(&mut self.message)),
            Origin::Other(other) => other.upgrade().map(|other| other.leave_file(&mut self.message)),
        }
        .unwrap_or_else(Along::nothing)
    }

    /// The message that carries it.
    fn into_envelope(self) -> Message<Self> {
        let mut message = Message::new(self);
        message.id = message.payload().id();
        message.published_at = message.payload().at;
        message.routing_key = message.payload().message.routing_key.clone();
        if let Some(extras) = &message.payload().message.extras {
            message.extras = Some(Box::new(extras.of_letter()));
        }
        message
    }

    fn from_envelope(message: Message<Self>) -> Self {
        match message.try_into_payload() {
            Ok(letter) => letter,
            Err(_) => unreachable!("a letter that was not taken has not been shared"),
        }
    }

    /// The same with one more failure.
    fn failed_again(&self, at: Timestamp, error: String) -> Self {
        let mut message = self.message.share_again().expect("made shareable when it became a letter");
        message.record_failure(at, error);
        let (queue, origin) = (Arc::clone(&self.queue), self.origin.clone());
        Self { message, reason: self.reason.clone(), queue, at: self.at, origin }
    }

    pub(crate) fn return_request(&mut self, request: Request) {
        self.message.extras_mut().request = request;
    }

    pub(crate) fn new(mut message: Message<T>, reason: Reason, core: &Core<T>) -> Self {
        // So that it can be redriven even while somebody who peeked still looks at the letter.
        message.make_shared();
        let at = core.runtime.clock.now();
        Self { message, reason, queue: Arc::clone(&core.name), at, origin: Origin::Queue(core.weak()) }
    }
}

impl<T: Send + Sync + 'static> DeadLetter<T> {
    /// A letter of a log's group; there is no queue it could be redriven to.
    pub(crate) fn of_group(message: Message<T>, reason: Reason, group: Arc<str>, at: Timestamp) -> Self {
        Self { message, reason, queue: group, at, origin: Origin::Queue(Weak::new()) }
    }

    /// A letter found in the broker's file.
    #[cfg(feature = "sqlite")]
    pub(crate) fn restored(
        mut message: Message<T>,
        reason: Reason,
        queue: Arc<str>,
        at: Timestamp,
        origin: Origin<T>,
    ) -> Self {
        message.make_shared();
        Self { message, reason, queue, at, origin }
    }

    /// A half message that nobody could resolve.
    pub(crate) fn of_half(
        mut message: Message<T>,
        at: Timestamp,
        topic: &Arc<str>,
        origin: Weak<dyn Redrives<T>>,
    ) -> Self {
        message.make_shared();
        let (reason, queue, origin) = (Reason::Unresolved, Arc::clone(topic), Origin::Other(origin));
        Self { message, reason, queue, at, origin }
    }
}

/// What takes letters back in a way of its own: a topic publishes its unresolved half messages after all, and what
/// could not be decoded is decoded again. An object, for the same reason as a [`DeadLetterSink`].
pub(crate) trait Redrives<T>: Send + Sync {
    /// Readies a message for its way back. The error says that its letter has to stay, and why if that is news.
    fn redrive(&self, message: Message<T>, delay: Duration) -> Result<Return, Option<String>>;
    /// Takes a message that has become a letter out of its place in the file.
    fn leave_file(&self, message: &mut Message<T>) -> Along;
}

/// The way back of a message whose letter has left its queue, and where that was in the file.
pub(crate) type Return = Box<dyn FnOnce(Along) -> Moving>;

/// Where a queue's dead letters go. An object, so that the type of a queue does not contain the type of
/// its dead letters' dead letters without end.
pub(crate) trait DeadLetterSink<T>: Send + Sync {
    /// Takes the letter, closed or not; gives it back if there is no room.
    fn accept(&self, letter: DeadLetter<T>) -> Result<(), DeadLetter<T>>;
    /// As [`DeadLetterSink::accept`]; a durable queue waits for its file, and gives the letter back if that does not
    /// take it.
    fn accept_surely(&self, letter: DeadLetter<T>) -> Result<(), DeadLetter<T>>;
    /// Whether it would take a letter now.
    fn has_room(&self) -> bool;
    fn name(&self) -> &Arc<str>;
    fn queue(&self) -> Queue<DeadLetter<T>>;
}

impl<T: Send + Sync + 'static> DeadLetterSink<T> for Core<DeadLetter<T>> {
    fn accept(&self, mut letter: DeadLetter<T>) -> Result<(), DeadLetter<T>> {
        let along = letter.leave_file();
        let message = letter.into_envelope();
        let (message, along) = if self.is_durable() {
            match self.accept_letter_durably(message, along) {
                Ok(()) => return Ok(()),
                Err(back) => back,
            }
        } else {
            match self.accept_letter(message) {
                Ok(()) => {
                    along.delete();
                    return Ok(());
                }
                Err(message) => (message, along),
            }
        };
        let mut letter = DeadLetter::from_envelope(message);
        letter.message.restore_place(along.place());
        Err(letter)
    }

    fn accept_surely(&self, letter: DeadLetter<T>) -> Result<(), DeadLetter<T>> {
        if !self.is_durable() {
            return DeadLetterSink::accept(self, letter);
        }
        self.accept_letter_surely(letter.into_envelope()).map_err(DeadLetter::from_envelope)
    }

    fn has_room(&self) -> bool {
        self.takes_letters()
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn queue(&self) -> Queue<DeadLetter<T>> {
        Queue::from_core(self.weak().upgrade().expect("alive while it is called"))
    }
}

impl<T> Deref for DeadLetter<T> {
    type Target = Message<T>;
    fn deref(&self) -> &Message<T> {
        &self.message
    }
}

impl<T: fmt::Debug> fmt::Debug for DeadLetter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("message", &self.message)
            .field("reason", &self.reason)
            .field("queue", &self.queue)
            .field("attempts", &self.attempts())
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Queue<DeadLetter<T>> {
    /// Sends dead letters back to the queues that gave up on them: all of them, unless narrowed.
    ///
    /// ```
    /// use postroom::{Broker, Message, Queue, Retry};
    ///
    /// let (broker, simulation) = Broker::simulated(1);
    /// let mail: Queue<String> = broker.queue("mail").retry(Retry::none()).declare()?;
    /// let consumer = mail.consumer().start(|address: &Message<String>| {
    ///     if address.contains('@') { Ok(()) } else { Err(std::io::Error::other("no such address")) }
    /// })?;
    /// mail.send("ann.example.org".to_string()).unwrap();
    /// simulation.run_until_idle();
    ///
    /// let dead = mail.dead_letters();
    /// assert_eq!(dead.len(), 1);
    /// let redriven = dead.redrive().edit(|letter| letter.replacen('.', "@", 1)).run()?;
    /// assert_eq!((redriven.moved, redriven.kept), (1, 0));
    /// simulation.run_until_idle();
    /// assert_eq!((dead.len(), mail.stats().acked), (0, 1));
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[must_use = "nothing moves until `run` is called"]
    pub fn redrive(&self) -> Redrive<'_, T> {
        Redrive { letters: self, wanted: None, edit: None, limit: usize::MAX, rate: None, to: None }
    }
}

/// What to send back from a dead-letter queue, and how; see [`Queue::redrive`].
#[must_use = "nothing moves until `run` is called"]
pub struct Redrive<'a, T> {
    letters: &'a Queue<DeadLetter<T>>,
    wanted: Option<Box<dyn FnMut(&DeadLetter<T>) -> bool + 'a>>,
    edit: Option<Box<dyn FnMut(&DeadLetter<T>) -> T + 'a>>,
    limit: usize,
    rate: Option<Rate>,
    to: Option<Queue<T>>,
}

/// So many letters may be on their way through the file at once.
const UNDER_WAY: usize = 4096;

/// What [`Redrive::run`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Redriven {
    /// Letters sent back.
    pub moved: usize,
    /// Letters that stay: not wanted, over the limit, from a queue that exists no more, or still undecodable.
    pub kept: usize,
}

impl<'a, T: Send + Sync + 'static> Redrive<'a, T> {
    /// Only letters for which `wanted` answers `true`. If it panics, that letter and all after it stay.
    pub fn filter(mut self, wanted: impl FnMut(&DeadLetter<T>) -> bool + 'a) -> Self {
        self.wanted = Some(Box::new(wanted));
        self
    }

    /// Each with a new payload, made from the letter. Id, keys, headers and history stay.
    pub fn edit(mut self, edit: impl FnMut(&DeadLetter<T>) -> T + 'a) -> Self {
        self.edit = Some(Box::new(edit));
        self
    }

    /// At most this many; the oldest first. Default: all.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Spread over time: the first now, the n-th after n/rate. Until then they wait in the scheduler of
    /// the queue they go to. Default: all at once.
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// To this queue instead of the one each came from (or of the topic, which publishes an unresolved half
    /// message; one that it refuses stays).
    pub fn to(mut self, queue: &Queue<T>) -> Self {
        self.to = Some(queue.clone());
        self
    }

    /// Moves them. Their attempts start again at 1, their history stays. A redriven message is a
    /// redelivery: it needs no free capacity, so this never blocks. In a durable queue with a backlog it waits in the file
    /// like the others, and then counts against the capacity until it is handed out.
    ///
    /// # Errors
    /// If the rate is not a positive, finite number; nothing has moved then.
    pub fn run(mut self) -> Result<Redriven, Error> {
        let pace = self.rate.as_ref().map(Rate::checked).transpose();
        let pace = pace.map_err(|problem| Error::new(format!("redrive of {:?}", self.letters.name()), problem))?;
        let core = &self.letters.core;
        let mut kept = Kept { core, messages: Vec::new() };
        let mut moved = 0;
        let mut moving = VecDeque::new();
        for _ in 0..core.ready() {
            if moved == self.limit {
                break;
            }
            let Ok(message) = core.take_to_look() else { break };
            kept.messages.push(message);
            let letter = kept.messages.last().expect("just pushed").payload();
            let Some(home) = self.destination(letter) else { continue };
            let mut message = letter.message.share_again().expect("made shareable when it became a letter");
            if let Some(edit) = &mut self.edit {
                message.replace_payload(edit(letter));
            }
            let delay = pace.map_or(Duration::ZERO, |pace| pace.time_for(moved as u64));
            let back = match home.redrive(message, delay) {
                Ok(back) => back,
                Err(why) => {
                    let letter = kept.messages.last_mut().expect("still there");
                    why.into_iter().for_each(|why| core.note_why_it_stays(letter, why));
                    continue;
                }
            };
            let mut letter = kept.messages.pop();
            let lane = letter.as_mut().and_then(Message::take_lane);
            if letter.as_ref().is_some_and(|letter| letter.holds_slot) {
                core.free_slot();
            }
            let along = letter.as_mut().map_or_else(Along::nothing, |letter| core.leave_file(letter));
            drop_contained(letter);
            moving.push_back(back(along));
            if moving.len() > UNDER_WAY {
                moving.pop_front().into_iter().for_each(Moving::wait);
            }
            core.free_lane(lane);
            core.settled(&core.tallies.common.acked);
            moved += 1;
        }
        drop(kept);
        moving.into_iter().for_each(Moving::wait);
        Ok(Redriven { moved, kept: self.letters.len() })
    }

    /// Where the letter goes; `None` if it is to stay.
    fn destination(&mut self, letter: &DeadLetter<T>) -> Option<Home<T>> {
        let origin = match (&self.to, &letter.origin) {
            (Some(queue), _) => Home::Queue(Arc::clone(&queue.core)),
            (None, Origin::Queue(origin)) => Home::Queue(origin.upgrade()?),
            (None, Origin::Other(origin)) => Home::Other(origin.upgrade()?),
        };
        let wanted = self.wanted.as_mut().is_none_or(|wanted| wanted(letter));
        wanted.then_some(origin)
    }
}

/// Where a letter is sent back to.
enum Home<T> {
    Queue(Arc<Core<T>>),
    /// Which may refuse.
    Other(Arc<dyn Redrives<T>>),
}

impl<T: Send + Sync + 'static> Home<T> {
    fn redrive(self, message: Message<T>, delay: Duration) -> Result<Return, Option<String>> {
        match self {
            Self::Queue(queue) => Ok(Box::new(move |along| queue.readmit(message, delay, along))),
            Self::Other(other) => other.redrive(message, delay),
        }
    }
}

impl<T: Send + Sync + 'static> Core<DeadLetter<T>> {
    /// A letter has failed to go back: that belongs to its history.
    fn note_why_it_stays(&self, letter: &mut Message<DeadLetter<T>>, why: String) {
        let failed = letter.payload().failed_again(self.runtime.clock.now(), why);
        letter.replace_payload(failed);
        self.note_extra(letter);
    }
}

/// Letters taken for a look that stay; they go back to the front even if a user's function panics.
struct Kept<'a, T: Send + Sync + 'static> {
    core: &'a Core<DeadLetter<T>>,
    messages: Vec<Message<DeadLetter<T>>>,
}

impl<T: Send + Sync + 'static> Drop for Kept<'_, T> {
    fn drop(&mut self) {
        self.core.restore(std::mem::take(&mut self.messages));
    }
}
