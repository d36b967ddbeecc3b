//! Requests: publish, and wait for the reply of whoever handles the message.
//!
//! A request is an ordinary message that carries a way back. Nothing is declared for replies: the requester
//! waits at a slot of its own, in which every queue that got the message has a share. Whoever has the message
//! in hand may fill the slot; when the last share has ended and nobody has, the requester hears why.

use crate::clock::Timestamp;
use crate::consumer::{Consumer, ConsumerBuilder};
use crate::dead_letter::Reason;
use crate::deadlock::{Awaited, QueueRef, Ticket};
use crate::error::{Error, PublishError, Refused};
use crate::message::Message;
use crate::outcome::{Failure, drop_contained};
use crate::queue::Queue;
use crate::queue::core::{Core, Patience};
use crate::runtime::{Registration, Runtime};
use crate::scheduler::Timed;
use crate::simulation::Until;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::topic::{Topic, refusal_error};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::track::{Track, Tracks};
use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;
use thiserror::Error as ThisError;

/// Why a request has no reply.
#[derive(ThisError)]
#[non_exhaustive]
pub enum RequestError<T> {
    /// Nobody got the message; it comes back inside. `Unroutable` if nothing is bound that matches it, whether
    /// or not the topic is `mandatory`; `Deadlock` if the calling worker would wait for itself.
    #[error("{0}")]
    Publish(PublishError<T>),
    /// No reply came in time. The message may be handled all the same, now or later.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    /// The message became a dead letter: its handler failed as often as it may, or for good, or it expired.
    #[error("queue {queue:?} gave up on the request ({reason}){}", .error.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Failed {
        /// The queue that gave up on it.
        queue: String,
        /// Why it did.
        reason: Reason,
        /// What the last failed attempt said; `None` if it was never tried.
        error: Option<String>,
    },
    /// It was handled and acked by someone who did not reply.
    #[error("queue {queue:?} handled the request without a reply")]
    NoReply {
        /// The queue it was handled from.
        queue: String,
    },
    /// It left its queue unhandled, and is not a dead letter.
    #[error("the request was {fate} by queue {queue:?}")]
    Unanswered {
        /// The queue it was in.
        queue: String,
        /// How it left.
        fate: Fate,
    },
    /// Nobody has it any more who could reply: its queue exists no longer, or only those got it who watch.
    #[error("nobody has the request any more who could reply to it")]
    Nobody,
    /// The reply is of another type than the one asked for.
    #[error("asked for a reply of type {expected}, got one of type {got}")]
    WrongType {
        /// The type the requester asked for.
        expected: &'static str,
        /// The type of the reply.
        got: &'static str,
    },
    /// While it waited, the last worker left that could have replied without waiting for this one. The message
    /// stays where it is.
    #[error("waiting for the reply would never end: only its own circle could give it: {0}")]
    Deadlock(String),
}

impl<T> RequestError<T> {
    /// The message, if nobody got it.
    #[must_use]
    pub fn into_message(self) -> Option<Message<T>> {
        match self {
            Self::Publish(error) => Some(error.into_message()),
            _ => None,
        }
    }

    /// Whether a request like it could not even be published, so that nothing has been done.
    #[must_use]
    pub fn is_unpublished(&self) -> bool {
        matches!(self, Self::Publish(_))
    }
}

/// Needs no `T: Debug`, so that `unwrap` works on any payload.
impl<T> fmt::Debug for RequestError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestError({self})")
    }
}

/// How a request left its queue without having been handled or become a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fate {
    /// It was left when shutdown was over.
    Left,
    /// Its delay was cancelled or replaced.
    Cancelled,
    /// It was taken out by [`Queue::drain`].
    Drained,
    /// It was thrown away by [`Queue::purge`].
    Purged,
    /// It outlived its time to live, in a queue that drops such messages.
    Expired,
    /// It was thrown away by the overflow policy.
    Dropped,
    /// Its consumer discarded it.
    Discarded,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left behind",
            Self::Cancelled => "cancelled",
            Self::Drained => "drained",
            Self::Purged => "purged",
            Self::Expired => "let expire",
            Self::Dropped => "dropped for overflow",
            Self::Discarded => "discarded",
        })
    }
}

/// Why [`Message::reply`] replied to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum ReplyError {
    /// The message was published without asking for a reply, or is a mere copy (a clone, a dead letter).
    #[error("the message does not ask for a reply")]
    NotARequest,
    /// The requester has stopped waiting: its time was up, or another reply came first. Counted as
    /// [`late_replies`](crate::Stats::late_replies).
    #[error("the requester does not wait any more")]
    Late,
    /// The requester asked for another type; it has been told.
    #[error("asked for a reply of type {expected}, not {got}")]
    WrongType {
        /// The type the requester asked for.
        expected: &'static str,
        /// The type of this reply.
        got: &'static str,
    },
}

impl<T: Send + Sync + 'static> Topic<T> {
    /// Publishes a message and waits for a reply of type `R`, at most `timeout` in all, waiting for room in a
    /// full queue included.
    ///
    /// The reply comes from a consumer started with [`ConsumerBuilder::respond`], or from whoever calls
    /// [`Message::reply`]. If several queues get the message, the first reply counts.
    ///
    /// ```
    /// use postroom::{Broker, Failure, Message, Queue, Topic};
    /// use std::time::Duration;
    ///
    /// let broker = Broker::new();
    /// let sums: Topic<(u32, u32)> = broker.topic("sums").declare()?;
    /// let adder: Queue<(u32, u32)> = broker.queue("adder").declare()?;
    /// sums.bind(&adder, "add")?;
    /// adder.consumer().respond(|sum: &Message<(u32, u32)>| -> Result<u32, Failure> { Ok(sum.0 + sum.1) })?;
    ///
    /// let sum: u32 = sums.request("add", (2, 3), Duration::from_secs(5)).unwrap();
    /// assert_eq!(sum, 5);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// While the queue's retry policy has attempts left, a failed handling is no answer: the next one may
    /// reply. Everything final is heard at once: a dead letter, an ack without a reply, a message that was
    /// discarded, purged or dropped, the end of the queue. A queue that has no consumer yet may get one, so
    /// there the request waits, as it does behind a paused consumer or an open circuit.
    ///
    /// After a timeout the message is still there; [`Message::with_ttl`] lets it expire instead, and
    /// [`Message::awaits_reply`] tells a handler that nobody waits any more.
    ///
    /// # Errors
    /// See [`RequestError`]. If nobody got the message, it comes back inside.
    pub fn request<R: Send + 'static>(
        &self,
        key: impl AsRef<str>,
        message: impl Into<Message<T>>,
        timeout: Duration,
    ) -> Result<R, RequestError<T>> {
        let runtime = &self.core.runtime;
        let worker = runtime.works_for().and_then(|own| Some((own, self.core.only_queue(key.as_ref())?)));
        ask(runtime, message.into(), timeout, worker, |message, patience| {
            self.core.publish(key.as_ref(), message, patience).map(drop)
        })
    }
}

impl<T: Send + Sync + 'static> Queue<T> {
    /// Puts a message into the queue and waits for a reply of type `R`; see [`Topic::request`].
    ///
    /// # Errors
    /// See [`RequestError`]. If the queue did not take the message, it comes back inside.
    pub fn request<R: Send + 'static>(
        &self,
        message: impl Into<Message<T>>,
        timeout: Duration,
    ) -> Result<R, RequestError<T>> {
        let runtime = &self.core.runtime;
        let worker = runtime.works_for().map(|own| (own, self.core.identity()));
        ask(runtime, message.into(), timeout, worker, |mut message, patience| {
            self.core.stamp(&mut message);
            self.core.accept(message, patience).map(drop).map_err(|refused| refusal_error(&self.core, refused))
        })
    }
}

/// `worker` is given if the caller is a worker: its queue, and the only one the message goes to.
fn ask<T: Send + Sync + 'static, R: Send + 'static>(
    runtime: &Arc<Runtime>,
    mut message: Message<T>,
    timeout: Duration,
    worker: Option<(QueueRef, QueueRef)>,
    publish: impl FnOnce(Message<T>, Patience) -> Result<(), PublishError<T>>,
) -> Result<R, RequestError<T>> {
    let deadline = runtime.clock.now().after(timeout);
    if let Some((circle, queue)) = worker.as_ref().and_then(|worker| endless(runtime, worker)) {
        let refused = Refused::new(message, &queue).because(format!("only its own circle could reply: {circle}"));
        return Err(RequestError::Publish(PublishError::Deadlock(refused)));
    }
    let slot = Slot::new::<R>(runtime);
    message.extras_mut().request = Request::to(&slot);
    publish(message, Patience::Until(deadline)).map_err(RequestError::Publish)?;
    match slot.wait(deadline, worker) {
        Ok(Answer::Reply(value)) => Ok(*value.downcast().expect("the slot takes no other type")),
        Ok(Answer::WrongType(got)) => Err(RequestError::WrongType { expected: slot.expected.1, got }),
        Ok(Answer::Nobody(end)) => Err(end.into_error()),
        Err(Stop::TimedOut) => Err(RequestError::Timeout(timeout)),
        Err(Stop::Circle(circle)) => Err(RequestError::Deadlock(circle)),
    }
}

/// The circle in which a request of this worker would wait for itself, before anything is published.
fn endless(runtime: &Runtime, (own, queue): &(QueueRef, QueueRef)) -> Option<(String, Arc<str>)> {
    let nobody: Weak<Slot> = Weak::new();
    let ticket = runtime.waits.begin(own.clone(), queue.clone(), nobody);
    let circle = runtime.waits.circle(&ticket, |queue| runtime.drainers(queue));
    runtime.waits.end(&ticket);
    circle.map(|circle| (circle, Arc::clone(&queue.name)))
}

impl<T: Send + Sync + 'static> ConsumerBuilder<T> {
    /// Starts workers that answer requests: what `handler` returns is the reply, sent before the message is
    /// acked. An error or a panic is a failed attempt as with [`ConsumerBuilder::start`]; the requester hears
    /// of it once there is no further attempt.
    ///
    /// A message that asks for no reply is handled alike, and so is one whose requester has given up; what the
    /// handler returns is dropped then. A reply of another type than the one asked for is an error for the
    /// requester; the message counts as handled.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::start`].
    pub fn respond<R, E, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: Send + 'static,
        E: Into<Failure>,
        H: Fn(&Message<T>) -> Result<R, E> + Send + Sync + 'static,
    {
        self.start(move |message: &Message<T>| {
            handler(message).map(|reply| {
                // Too late, or not asked for: the work is done all the same.
                let _ = message.reply(reply);
            })
        })
    }
}

impl<T> Message<T> {
    /// Replies to whoever sent this message as a [request](Topic::request). It does not settle the message:
    /// ack it afterwards. A message that is to be answered later, on another thread, is received as a
    /// [`Delivery`](crate::Delivery) and moved there; clones of a message cannot reply.
    ///
    /// # Errors
    /// If nobody gets the reply; see [`ReplyError`]. A handler may ignore that.
    pub fn reply<R: Send + 'static>(&self, value: R) -> Result<(), ReplyError> {
        self.slot().ok_or(ReplyError::NotARequest)?.reply(value)
    }

    /// Whether somebody waits for a reply to it. By the time you look, the requester may have given up.
    #[must_use]
    pub fn awaits_reply(&self) -> bool {
        self.slot().is_some_and(|slot| slot.is_waiting())
    }

    fn slot(&self) -> Option<&Arc<Slot>> {
        match &self.extras.as_ref()?.request.0.as_ref()?.way {
            Way::Slot(slot) => Some(slot),
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Way::Track(_) => None,
        }
    }

    /// Has `owner` told once every queue that gets it is done with it; see [`Tracking`].
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn track(&mut self, row: i64, owner: Arc<dyn Tracks>) -> Tracking {
        let way = Way::Track(Track::new(row, owner));
        self.extras_mut().request = Request(Some(Share::of(&way)));
        Tracking(Share::of(&way))
    }

    #[inline]
    pub(crate) fn is_request(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.request.0.is_some())
    }

    /// As [`Message::share`], for another queue that can have it answered as well.
    pub(crate) fn share_with_queue(&mut self) -> Self {
        self.share_and(|share| Share::of(&share.way))
    }

    /// As [`Message::share`], for the same queue, which may have either copy answered.
    pub(crate) fn share_within_queue(&mut self) -> Self {
        self.share_and(Arc::clone)
    }

    fn share_and(&mut self, pass_on: impl FnOnce(&Arc<Share>) -> Arc<Share>) -> Self {
        let mut copy = self.share();
        if let (Some(copy), Some(extras)) = (&mut copy.extras, &self.extras) {
            copy.request = Request(extras.request.0.as_ref().map(pass_on));
        }
        copy
    }

    /// Its queue is done with it.
    #[inline]
    fn end_request(&mut self, end: impl FnOnce() -> End) {
        if let Some(request) = self.take_request() {
            request.end(end());
        }
    }

    /// Its way back, if it has one; whoever takes it ends it.
    #[inline]
    pub(crate) fn take_request(&mut self) -> Option<Request> {
        let request = &mut self.extras.as_mut()?.request;
        request.0.is_some().then(|| std::mem::take(request))
    }

    /// The requester has it back, and knows; or it goes to somebody who can neither reply nor settle it.
    pub(crate) fn forget_request(&mut self) {
        if let Some(share) = self.take_request().and_then(|request| request.0) {
            share.give_up();
        }
    }

    /// It leaves its queue unhandled.
    #[inline]
    pub(crate) fn unanswered(&mut self, queue: &Arc<str>, fate: Fate) {
        self.end_request(|| End::Unanswered(Arc::clone(queue), fate));
    }

    /// It is acked.
    #[inline]
    pub(crate) fn handled(&mut self, queue: &Arc<str>) {
        self.end_request(|| End::Handled(Arc::clone(queue)));
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Drops a message that nobody will handle.
    pub(crate) fn throw_away(&self, mut message: Message<T>, fate: Fate) {
        message.unanswered(&self.name, fate);
        self.forget(&mut message);
        drop_contained(message);
    }
}

/// A message's way back, if it has one. Clones of a message have none: those kept in a log, a list or by a
/// user must not keep the requester waiting.
#[derive(Default)]
pub(crate) struct Request(Option<Arc<Share>>);

impl Request {
    fn to(slot: &Arc<Slot>) -> Self {
        Self(Some(Share::of(&Way::Slot(Arc::clone(slot)))))
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Nobody will reply.
    pub(crate) fn end(self, end: End) {
        if let Some(share) = self.0 {
            share.end(Some(end));
        }
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Request" } else { "None" })
    }
}

/// Who hears what became of a message.
#[derive(Clone)]
enum Way {
    /// A requester.
    Slot(Arc<Slot>),
    /// Somebody who keeps it until it has been handled.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    Track(Arc<Track>),
}

/// One queue's part in a request, held by the message and by the copy that a deadline may bring back.
struct Share {
    way: Way,
    ended: AtomicBool,
}

impl Share {
    fn of(way: &Way) -> Arc<Self> {
        match way {
            Way::Slot(slot) => slot.state.lock().shares += 1,
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Way::Track(track) => track.add_share(),
        }
        Arc::new(Self { way: way.clone(), ended: AtomicBool::new(false) })
    }

    /// The queue is done with it, whoever may still have a copy in hand.
    fn end(&self, end: Option<End>) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        match &self.way {
            Way::Slot(slot) => slot.share_ended(end),
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Way::Track(track) => track.share_ended(end),
        }
    }

    /// There is no queue that will be done with it.
    fn give_up(&self) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        match &self.way {
            Way::Slot(slot) => slot.share_ended(None),
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Way::Track(track) => track.share_given_up(),
        }
    }
}

/// Held by whoever publishes a tracked message, so that nothing is reported before the publish is over.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) struct Tracking(Arc<Share>);

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl Tracking {
    /// From now on it is reported when all are done with it, which may be at once.
    pub(crate) fn published(self) {
        self.0.give_up();
    }

    /// Nobody got it, so nothing is reported.
    pub(crate) fn call_off(self) {
        if let Way::Track(track) = &self.0.way {
            track.call_off();
        }
    }
}

impl Drop for Share {
    /// Without a word only together with its queue, or if it was never published.
    fn drop(&mut self) {
        self.end(None);
    }
}

/// What became of one copy of a request that nobody answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Together with its queue.
    Gone,
    Unanswered(Arc<str>, Fate),
    Handled(Arc<str>),
    Failed(Arc<str>, Reason, Option<String>),
}

impl End {
    /// Of several copies, the requester hears of the one that says most.
    fn weight(&self) -> u8 {
        match self {
            Self::Gone | Self::Unanswered(..) => 0,
            Self::Handled(_) => 1,
            Self::Failed(..) => 2,
        }
    }

    fn into_error<T>(self) -> RequestError<T> {
        match self {
            Self::Gone => RequestError::Nobody,
            Self::Unanswered(queue, fate) => RequestError::Unanswered { queue: queue.to_string(), fate },
            Self::Handled(queue) => RequestError::NoReply { queue: queue.to_string() },
            Self::Failed(queue, reason, error) => RequestError::Failed { queue: queue.to_string(), reason, error },
        }
    }
}

/// What a requester is told.
enum Answer {
    Reply(Box<dyn Any + Send>),
    /// The type of what was given.
    WrongType(&'static str),
    Nobody(End),
}

/// Why a requester stops waiting without having been told anything.
enum Stop {
    TimedOut,
    Circle(String),
}

/// Where one requester waits.
struct Slot {
    expected: (TypeId, &'static str),
    runtime: Arc<Runtime>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Taken before the locks of [`Waits`](crate::deadlock::Waits), and never under a queue's.
struct State {
    answer: Option<Answer>,
    /// Nobody has been told anything yet, and somebody wants to be.
    open: bool,
    /// Queues that may still have it answered.
    shares: usize,
    /// What became of it in the others.
    end: Option<End>,
    /// Of a worker that waits.
    ticket: Option<Ticket>,
}

impl Slot {
    fn new<R: 'static>(runtime: &Arc<Runtime>) -> Arc<Self> {
        Arc::new(Self {
            expected: (TypeId::of::<R>(), type_name::<R>()),
            runtime: Arc::clone(runtime),
            state: Mutex::new(State { answer: None, open: true, shares: 0, end: None, ticket: None }),
            changed: Condvar::new(),
        })
    }

    fn is_waiting(&self) -> bool {
        self.state.lock().open
    }

    fn reply<R: Send + 'static>(&self, value: R) -> Result<(), ReplyError> {
        let got = type_name::<R>();
        let fits = TypeId::of::<R>() == self.expected.0;
        let answer = if fits { Answer::Reply(Box::new(value)) } else { Answer::WrongType(got) };
        if let Err(late) = self.give(answer) {
            self.runtime.late_replies.add(1);
            drop_contained(late);
            return Err(ReplyError::Late);
        }
        if fits { Ok(()) } else { Err(ReplyError::WrongType { expected: self.expected.1, got }) }
    }

    /// The first answer counts; others come back.
    fn give(&self, answer: Answer) -> Result<(), Answer> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(answer);
        }
        state.answer = Some(answer);
        self.close(&mut state);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Ends the wait here and not when the requester wakes up: whoever has replied may go on to wait for it.
    fn close(&self, state: &mut State) {
        state.open = false;
        if let Some(ticket) = state.ticket.take() {
            self.runtime.waits.end(&ticket);
        }
    }

    /// Notes what became of it in one queue; after the last, nobody can answer any more.
    fn share_ended(&self, end: Option<End>) {
        let mut state = self.state.lock();
        let known = state.end.take();
        state.end = known.into_iter().chain(end).max_by_key(End::weight);
        state.shares -= 1;
        if state.shares > 0 {
            return;
        }
        let end = state.end.take().unwrap_or(End::Gone);
        drop(state);
        let _ = self.give(Answer::Nobody(end));
    }

    fn wait(self: &Arc<Self>, deadline: Timestamp, worker: Option<(QueueRef, QueueRef)>) -> Result<Answer, Stop> {
        let mut state = self.state.lock();
        if let (true, Some((own, queue))) = (state.open, worker) {
            let me: Weak<Self> = Arc::downgrade(self);
            state.ticket = Some(self.runtime.waits.begin(own, queue, me));
        }
        if !self.runtime.is_simulated() {
            return self.wait_awake(state, deadline);
        }
        if let Some(circle) = self.circle(&state) {
            self.close(&mut state);
            return Err(Stop::Circle(circle));
        }
        drop(state);
        let end = self.runtime.simulate_until(Some(deadline), || !self.is_waiting());
        debug_assert!(end != Until::Standstill, "time goes on until the deadline");
        let mut state = self.state.lock();
        self.close(&mut state);
        state.answer.take().ok_or(Stop::TimedOut)
    }

    fn wait_awake(self: &Arc<Self>, mut state: MutexGuard<'_, State>, deadline: Timestamp) -> Result<Answer, Stop> {
        let clock = &self.runtime.clock;
        // With a manual clock nobody's condvar times out: the scheduler calls when the clock is moved.
        let _alarm = clock.is_manual().then(|| self.arm(deadline));
        loop {
            if let Some(answer) = state.answer.take() {
                return Ok(answer);
            }
            if clock.now() >= deadline {
                self.close(&mut state);
                return Err(Stop::TimedOut);
            }
            // Under the lock: who leaves from now on has to wait for it before it can have us look again.
            if let Some(circle) = self.circle(&state) {
                self.close(&mut state);
                return Err(Stop::Circle(circle));
            }
            match clock.instant_of(deadline) {
                Some(instant) => drop(self.changed.wait_until(&mut state, instant)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    fn circle(&self, state: &State) -> Option<String> {
        let runtime = &self.runtime;
        state.ticket.as_ref().and_then(|ticket| runtime.waits.circle(ticket, |queue| runtime.drainers(queue)))
    }

    fn arm(self: &Arc<Self>, deadline: Timestamp) -> Registration {
        let me: Weak<Self> = Arc::downgrade(self);
        let alarm = Registration::in_background(&self.runtime, me);
        alarm.arm(deadline);
        alarm
    }

    fn look_again(&self) {
        // Taken so that a requester between its look and its sleep does not miss the call.
        drop(self.state.lock());
        self.changed.notify_all();
    }
}

impl Awaited for Slot {
    fn wake_everyone(&self) {
        self.look_again();
    }

    /// Its wait is taken off the list the moment it is answered.
    fn keeps_waiting(&self) -> bool {
        true
    }
}

impl Timed for Slot {
    fn fire(&self, _: Timestamp) -> Option<Timestamp> {
        self.look_again();
        None
    }
}
