//! The thing that moves: a payload with its envelope.

use crate::clock::{Clock, Timestamp};
use crate::error::SettleError;
use crate::outcome::drop_contained;
use crate::queue::durable::Rider;
use crate::queue::lease::Lease;
use crate::request::Request;
use crate::timer::TimerRef;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::any::Any;
use std::fmt::{self, Write as _};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Names one publish. Every copy that routing makes of a message carries the same id.
///
/// Assigned by the broker unless given with [`Message::with_id`]; assigned ids are unique within their
/// broker, start at 1 and are not in publish order across threads (each thread takes them in blocks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(u64);

impl MessageId {
    /// The id as a number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for MessageId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One failed attempt at handling a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Which attempt failed, counted from 1.
    pub number: u32,
    /// When it failed, on the broker's timeline.
    pub at: SystemTime,
    /// What the handler said, or how it ended ("panicked: ...", "dropped unsettled").
    pub error: String,
}

const HISTORY_LIMIT: usize = 64;

impl Attempt {
    /// Of a long history, the first half and the latest are kept.
    pub(crate) fn add_to(self, history: &mut Vec<Self>) {
        if history.len() == HISTORY_LIMIT {
            history.remove(HISTORY_LIMIT / 2);
        }
        history.push(self);
    }
}

/// A payload on its way, with everything known about its journey.
///
/// Dereferences to the payload, so a handler reads `message.total` rather than `message.payload().total`.
/// Anything that is `Send + Sync + 'static` can be a payload. A payload that routing sends to several
/// queues is shared between them, never cloned.
///
/// ```
/// use postroom::Message;
///
/// let message = Message::new("a parcel").with_key("user-7").with_header("tenant", "acme");
/// assert_eq!(message.len(), 8); // str::len, through the payload
/// assert_eq!(message.key(), Some("user-7"));
/// assert_eq!(message.header("tenant"), Some("acme"));
/// ```
#[derive(Clone)]
pub struct Message<T> {
    pub(crate) id: MessageId,
    /// Of one that is not published yet, its delay, if the mark of its lane says so.
    pub(crate) published_at: Timestamp,
    /// Deliveries begun so far; raised when one is handed out.
    pub(crate) attempt: u32,
    /// Delivered before, whatever became of it.
    pub(crate) redelivered: bool,
    /// Occupies one unit of its queue's capacity.
    pub(crate) holds_slot: bool,
    lane: LaneMark,
    pub(crate) routing_key: Text,
    pub(crate) extras: Option<Box<Extras>>,
    body: Body<T>,
}

/// What a message gets when it is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) id: MessageId,
    pub(crate) at: Timestamp,
}

/// What few messages have, kept out of the envelope that all of them pay for.
#[derive(Clone, Default, Debug)]
pub(crate) struct Extras {
    pub(crate) key: Option<Text>,
    pub(crate) headers: SmallVec<[(Text, Text); 2]>,
    pub(crate) history: Vec<Attempt>,
    pub(crate) delay: Option<Delay>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) priority: u8,
    /// When it is to be delivered first, while that lies ahead.
    pub(crate) due: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    /// From when a queue's time to live counts, if not from the publish.
    pub(crate) counts_from: Option<Timestamp>,
    /// Has waited for its turn under a limit per key.
    pub(crate) paced: bool,
    pub(crate) timer: Option<TimerRef>,
    pub(crate) lease: Option<Arc<Lease>>,
    /// The way back to whoever waits for a reply.
    pub(crate) request: Request,
    /// What it is ordered by in the queue that holds it, while it stands in no lane there.
    pub(crate) order_key: Option<Text>,
    /// Where it is in the file of the durable queue that holds it.
    pub(crate) place: Option<u64>,
    /// It has not been handed out since it got there, and nobody needs it before its turn or its time: it may be only
    /// there.
    pub(crate) fresh: bool,
    /// What changes in the file when it is published.
    pub(crate) rider: Rider,
    /// What it has claimed in the idempotent queue that has handed it out.
    pub(crate) claim: Option<Text>,
    /// The lane, if its mark says so.
    lane: u32,
}

/// Of a message in flight, or waiting for its retry, in a queue ordered by key: the lane that hands out
/// nothing meanwhile. Numbers beyond the envelope's spare bytes are among the extras; they take as many
/// keys under way at once.
///
/// A message that is not published yet has no lane, but may have a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LaneMark(u16);

impl LaneMark {
    const NONE: Self = Self(0);
    /// The delay stands where the time of the publish will, so that a message with nothing else needs no extras.
    const DELAYED: Self = Self(u16::MAX - 1);
    const IN_EXTRAS: Self = Self(u16::MAX);
}

impl Extras {
    /// Whether they are as if they were new; the lane counts only where its mark says so.
    #[cfg(feature = "sqlite")]
    fn is_bare(&self) -> bool {
        let Self { key, headers, history, delay, ttl, priority, due, expires, counts_from, paced, timer, .. } = self;
        let Self { lease, request, order_key, place, fresh, rider, claim, .. } = self;
        let named = key.is_some() || order_key.is_some() || claim.is_some() || !headers.is_empty() || *priority > 0;
        let timed = delay.is_some() || ttl.is_some() || due.is_some() || expires.is_some() || counts_from.is_some();
        let bound = timer.is_some() || lease.is_some() || place.is_some() || request.is_some() || rider.is_some();
        !named && !timed && !bound && !*paced && !*fresh && history.is_empty()
    }

    fn holds_only_times(&self) -> bool {
        let named = self.key.is_some() || self.order_key.is_some() || !self.headers.is_empty() || self.priority > 0;
        let bound = self.ttl.is_some()
            || self.expires.is_some()
            || self.timer.is_some()
            || self.lease.is_some()
            || self.place.is_some()
            || self.rider.is_some();
        !named && !bound && !self.request.is_some() && !self.paced && self.history.is_empty()
    }

    /// What the envelope of a dead letter shows of its message's; times and limits of the old queue do not
    /// hold in the new one.
    pub(crate) fn of_letter(&self) -> Self {
        Self { key: self.key.clone(), headers: self.headers.clone(), priority: self.priority, ..Self::default() }
    }
}

/// When a message asks to be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delay {
    For(Duration),
    Until(SystemTime),
}

#[derive(Clone)]
enum Body<T> {
    Own(T),
    Shared(Arc<T>),
    /// Stays where a log keeps it. In a box, because a wide pointer would make every message larger.
    Kept(Box<Arc<dyn Keeps<T>>>),
    /// While [`Message::make_shared`] turns the first into the second, and once it is cleared.
    Moving,
}

/// Something that holds a payload for messages elsewhere.
pub(crate) trait Keeps<T>: Send + Sync {
    fn payload(&self) -> &T;
}

impl<T> Message<T> {
    /// A message with this payload and nothing else set.
    #[inline]
    #[must_use]
    pub fn new(payload: T) -> Self {
        Self {
            id: MessageId::default(),
            published_at: Timestamp::default(),
            attempt: 0,
            redelivered: false,
            holds_slot: false,
            lane: LaneMark::NONE,
            routing_key: Text::EMPTY,
            extras: None,
            body: Body::Own(payload),
        }
    }

    /// One that has nothing but a payload, as [`Message::stamp`] leaves it.
    #[inline(always)]
    pub(crate) fn stamped(Stamp { id, at }: Stamp, payload: T) -> Self {
        Self { id, published_at: at, holds_slot: true, ..Self::new(payload) }
    }

    /// As [`Message::stamped`], with this routing key, as subscribers see it.
    pub(crate) fn shown(Stamp { id, at }: Stamp, key: &Text, payload: T) -> Self {
        Self { id, published_at: at, attempt: 1, routing_key: key.clone(), holds_slot: true, ..Self::new(payload) }
    }

    /// The payload of one that has nothing else, and has never been anywhere. Where the compiler sees how a message was
    /// made, it knows, and does not make it.
    #[inline(always)]
    pub(crate) fn into_bare(self) -> Result<T, Self> {
        let fresh = self.id == MessageId::default() && self.lane == LaneMark::NONE;
        match self {
            Self { extras: None, routing_key: Text::Inline { len: 0, .. }, body: Body::Own(payload), .. } if fresh => {
                Ok(payload)
            }
            message => Err(message),
        }
    }

    /// Sets the ordering key: what belongs together and must stay in order (`"user-7"`).
    #[must_use]
    pub fn with_key(mut self, key: impl AsRef<str>) -> Self {
        self.extras_mut().key = Some(Text::new(key.as_ref()));
        self
    }

    /// Sets a header; the same name again replaces its value.
    #[must_use]
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let headers = &mut self.extras_mut().headers;
        let value = Text::new(value.as_ref());
        match headers.iter_mut().find(|(n, _)| n.as_str() == name.as_ref()) {
            Some(header) => header.1 = value,
            None => headers.push((Text::new(name.as_ref()), value)),
        }
        self
    }

    /// Delivers it only after this long; see the guide on delays. [`DelayLevel`](crate::DelayLevel) gives
    /// the classic levels. A later call of this or [`Message::with_delivery_at`] replaces an earlier one.
    ///
    /// Never early; a delay beyond the year 2554 ends then. It is accepted and routed at once, and occupies
    /// a queue's capacity while it waits. Those who have subscribed to the topic when it is due get it then.
    #[inline]
    #[must_use]
    pub fn with_delay(mut self, delay: impl Into<Duration>) -> Self {
        self.set_delay(Delay::For(delay.into()));
        self
    }

    /// Delivers it only at this time of the wall clock; a time that is past means now.
    ///
    /// The time is converted into a delay when the message is published, by the system's clock as it
    /// stands then; setting that clock later does not move it.
    #[must_use]
    pub fn with_delivery_at(mut self, time: SystemTime) -> Self {
        self.set_delay(Delay::Until(time));
        self
    }

    /// Makes its delay one that can be cancelled, or replaced by publishing again with the same timer: a
    /// [`Timer`](crate::Timer) of yours, or a name (`"unpaid-42"`) that is unique within the broker; see
    /// [`Broker::cancel_timer`](crate::Broker::cancel_timer).
    #[must_use]
    pub fn with_timer(mut self, timer: impl Into<TimerRef>) -> Self {
        self.extras_mut().timer = Some(timer.into());
        self
    }

    /// Lets it expire this long after its publish (or after its delay): it is never delivered later, and
    /// leaves its queue as that says. A redelivery does not start the time again. Zero expires at once.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.extras_mut().ttl = Some(ttl);
        self
    }

    /// Sets its priority, 0 (the default) being the lowest. Queues without priority levels ignore it, and
    /// those with n levels take everything from n - 1 on alike.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.extras_mut().priority = priority;
        self
    }

    /// Sets the id instead of having one assigned; 0 means "assign one".
    #[must_use]
    pub fn with_id(mut self, id: impl Into<MessageId>) -> Self {
        self.id = id.into();
        self
    }

    /// The payload; the same as dereferencing.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &T {
        // Apart from the others: it is the common case, which then costs a comparison and no jump by table.
        if let Body::Own(payload) = &self.body { payload } else { self.payload_elsewhere() }
    }

    #[cold]
    #[inline(never)]
    fn payload_elsewhere(&self) -> &T {
        match &self.body {
            Body::Own(payload) => payload,
            Body::Shared(payload) => payload,
            Body::Kept(keeper) => keeper.payload(),
            Body::Moving => unreachable!("nobody sees a message without a payload"),
        }
    }

    /// The payload by value.
    ///
    /// # Errors
    /// Gives the message back if another queue, or a log, still holds the same payload, and so may a message that a
    /// subscriber has received: it may stand beside others that handlers read.
    pub fn try_into_payload(mut self) -> Result<T, Self> {
        match std::mem::replace(&mut self.body, Body::Moving) {
            Body::Own(payload) => Ok(payload),
            Body::Shared(payload) => Arc::try_unwrap(payload).map_err(|shared| {
                self.body = Body::Shared(shared);
                self
            }),
            kept @ Body::Kept(_) => {
                self.body = kept;
                Err(self)
            }
            Body::Moving => unreachable!("nobody sees a message without a payload"),
        }
    }

    /// Which publish this is; 0 before it was published.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The ordering key given by [`Message::with_key`].
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.extras.as_ref()?.key.as_ref().map(Text::as_str)
    }

    /// Takes the ordering key that was found for it.
    #[inline]
    pub(crate) fn take_key(&mut self, key: Option<Text>) {
        if key.is_some() {
            self.extras_mut().key = key;
        }
    }

    pub(crate) fn key_text(&self) -> Option<&Text> {
        self.extras.as_ref()?.key.as_ref()
    }

    /// The routing key it was published under; empty if it was sent to a queue directly.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        self.routing_key.as_str()
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// All headers, in the order they were first set.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let headers = self.extras.as_ref().map_or(&[][..], |e| &e.headers);
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The priority given by [`Message::with_priority`].
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.extras.as_ref().map_or(0, |e| e.priority)
    }

    /// When it expires, if its own time to live says so (a queue's may say earlier).
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.extras.as_ref()?.expires.map(Timestamp::to_system_time)
    }

    /// Under an ack timeout: gives the handler `time` more, counted from now.
    ///
    /// # Errors
    /// [`SettleError::Late`] if the time was up already and the message has been given to another.
    /// `Ok` without effect where the queue has no ack timeout.
    pub fn extend_ack(&self, time: Duration) -> Result<(), SettleError> {
        self.extras.as_ref().and_then(|e| e.lease.as_ref()).map_or(Ok(()), |lease| lease.extend(time))
    }

    /// Which delivery this is: 1 on the first, raised by every failure. 0 before the first delivery.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether it was delivered before, even if that was no failure (a requeue).
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// When it was published, on the broker's timeline. Stamps are cached under load, so this is exact to
    /// about a millisecond (a few more when every core is busy).
    #[must_use]
    pub fn published_at(&self) -> SystemTime {
        if self.notes_delay() { Timestamp::default() } else { self.published_at }.to_system_time()
    }

    /// The attempts that failed so far, oldest first. At most [`Message::HISTORY_LIMIT`] are kept: the
    /// first half of them and the latest.
    #[must_use]
    pub fn history(&self) -> &[Attempt] {
        self.extras.as_ref().map_or(&[], |e| &e.history)
    }

    /// How many failed attempts [`Message::history`] keeps.
    pub const HISTORY_LIMIT: usize = HISTORY_LIMIT;

    pub(crate) fn record_failure(&mut self, at: Timestamp, error: String) {
        let attempt = Attempt { number: self.attempt, at: at.to_system_time(), error };
        attempt.add_to(&mut self.extras_mut().history);
    }

    /// Whether it has to wait for its time, or may replace one that does.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.due.is_some() || extras.timer.is_some())
    }

    #[inline]
    pub(crate) fn set_delay(&mut self, delay: Delay) {
        let unpublished = self.lane == LaneMark::NONE && self.published_at == Timestamp::default();
        match delay {
            Delay::For(delay) if unpublished && self.extras.is_none() => {
                (self.lane, self.published_at) = (LaneMark::DELAYED, Timestamp::default().after(delay));
            }
            delay => self.set_delay_in_extras(delay),
        }
    }

    #[cold]
    fn set_delay_in_extras(&mut self, delay: Delay) {
        self.take_noted_delay();
        self.extras_mut().delay = Some(delay);
    }

    /// When it asks to be delivered.
    pub(crate) fn delay(&self) -> Option<Delay> {
        if self.notes_delay() {
            return Some(Delay::For(self.published_at.since(Timestamp::default())));
        }
        self.extras.as_ref()?.delay
    }

    #[inline]
    fn notes_delay(&self) -> bool {
        self.lane == LaneMark::DELAYED
    }

    /// Whether it has a delay, and nothing else that few messages have.
    #[inline]
    pub(crate) fn has_only_delay(&self) -> bool {
        self.notes_delay() && self.extras.is_none()
    }

    /// Gives the time of the publish its place back.
    fn take_noted_delay(&mut self) -> Option<Duration> {
        if !self.notes_delay() {
            return None;
        }
        self.lane = LaneMark::NONE;
        Some(std::mem::take(&mut self.published_at).since(Timestamp::default()))
    }

    /// Whoever publishes it looks for its delay among the extras.
    #[inline]
    pub(crate) fn unfold_delay(&mut self) {
        if self.notes_delay() {
            self.put_delay_into_extras();
        }
    }

    #[cold]
    fn put_delay_into_extras(&mut self) {
        let delay = self.take_noted_delay().map(Delay::For);
        self.extras_mut().delay = delay;
    }

    /// Publishes one that [has only a delay](Self::has_only_delay), of which nothing stays; answers when it is due.
    #[inline]
    pub(crate) fn publish_later(&mut self, stamp: Stamp) -> Timestamp {
        let due = Timestamp(stamp.at.0.saturating_add(self.published_at.0));
        self.stamp(stamp);
        due
    }

    /// As one that has not been delivered, and will take a slot of the queue that admits it. All at once: what has
    /// just been written in several pieces cannot be copied in one before they have arrived.
    #[inline]
    pub(crate) fn stamp(&mut self, stamp: Stamp) {
        (self.id, self.published_at) = (stamp.id, stamp.at);
        (self.attempt, self.redelivered, self.holds_slot, self.lane) = (0, false, true, LaneMark::NONE);
    }

    /// As if that had not been, where it had this id.
    #[cold]
    pub(crate) fn revoke_later(&mut self, due: Timestamp, id: MessageId) {
        self.id = id;
        (self.lane, self.published_at) = (LaneMark::DELAYED, Timestamp(due.0 - self.published_at.0));
    }

    /// What it asked for is about to be fulfilled. Its time stands in the queue's heap from here on, so a
    /// message that had nothing else set gives the memory for it back.
    pub(crate) fn note_delayed(&mut self, ages_in_queue: bool) {
        if let Some(extras) = &mut self.extras {
            extras.delay = None;
            if !ages_in_queue && extras.holds_only_times() {
                self.extras = None;
            }
        }
    }

    pub(crate) fn take_timer(&mut self) -> Option<TimerRef> {
        self.extras.as_mut()?.timer.take()
    }

    /// Whether it has a time to live of its own.
    #[inline]
    pub(crate) fn expires(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.expires.is_some())
    }

    /// Whether its own time to live is over.
    pub(crate) fn is_overdue(&self, now: Timestamp) -> bool {
        self.extras.as_ref().and_then(|extras| extras.expires).is_some_and(|expires| expires <= now)
    }

    #[inline]
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.extras.as_ref()?.due
    }

    /// Fixes what was asked for relative to the publish.
    pub(crate) fn resolve_times(&mut self, clock: &Clock) {
        let Some(extras) = &mut self.extras else { return };
        // It may be a copy of one that has been published before.
        (extras.lease, extras.claim, extras.paced, extras.place) = (None, None, false, None);
        (extras.due, extras.expires, extras.counts_from) = (None, None, None);
        extras.timer.iter_mut().for_each(TimerRef::renew);
        if extras.delay.is_none() && extras.ttl.is_none() {
            return;
        }
        let now = clock.now();
        let due = match extras.delay {
            None => now,
            Some(Delay::For(delay)) => now.after(delay),
            Some(Delay::Until(time)) => clock.timestamp_of(time),
        };
        extras.due = (due > now).then_some(due);
        extras.expires = extras.ttl.map(|ttl| due.max(now).after(ttl));
        extras.counts_from = extras.due;
    }

    /// Notes which lane it keeps busy.
    #[inline]
    pub(crate) fn set_lane(&mut self, lane: u32) {
        self.lane = match u16::try_from(lane + 1) {
            Ok(mark) if mark < LaneMark::DELAYED.0 => LaneMark(mark),
            _ => {
                self.extras_mut().lane = lane;
                LaneMark::IN_EXTRAS
            }
        };
    }

    /// The lane it keeps busy, which it does no longer.
    #[inline]
    pub(crate) fn take_lane(&mut self) -> Option<u32> {
        match std::mem::replace(&mut self.lane, LaneMark::NONE) {
            LaneMark::NONE => None,
            LaneMark::IN_EXTRAS => self.extras.as_ref().map(|extras| extras.lane),
            LaneMark(mark) => Some(u32::from(mark) - 1),
        }
    }

    /// For a queue that orders it by this.
    pub(crate) fn set_order(&mut self, key: Option<Text>) {
        if key.is_some() || self.extras.is_some() {
            self.extras_mut().order_key = key;
        }
    }

    /// The same of a message that is handed on.
    pub(crate) fn ordered_by(mut self, key: Option<Text>) -> Self {
        self.set_order(key);
        self
    }

    /// Forgets what only the queue it came from could use.
    #[inline]
    pub(crate) fn leave_order(&mut self) {
        if !self.notes_delay() {
            self.lane = LaneMark::NONE;
        }
        if let Some(extras) = &mut self.extras {
            extras.order_key = None;
        }
    }

    /// Where it is in its queue's file.
    pub(crate) fn place(&self) -> Option<u64> {
        self.extras.as_ref()?.place
    }

    pub(crate) fn set_place(&mut self, place: u64) {
        let extras = self.extras_mut();
        (extras.place, extras.fresh) = (Some(place), false);
    }

    /// The same for a message that has just been written.
    pub(crate) fn set_fresh_place(&mut self, place: u64) {
        let fresh = self.due().is_none() || self.rests_plainly();
        let extras = self.extras_mut();
        (extras.place, extras.fresh) = (Some(place), fresh);
    }

    /// The same, in extras that another message has given [back](Self::take_bare_extras), if it has none.
    #[cfg(feature = "sqlite")]
    pub(crate) fn set_fresh_place_in(&mut self, place: u64, spare: impl FnOnce() -> Option<Box<Extras>>) {
        if self.extras.is_none() {
            self.extras = spare();
        }
        self.set_fresh_place(place);
    }

    /// Its extras, if they say nothing at all any more.
    #[cfg(feature = "sqlite")]
    pub(crate) fn take_bare_extras(&mut self) -> Option<Box<Extras>> {
        let has_lane = self.lane == LaneMark::IN_EXTRAS;
        self.extras.take_if(|extras| !has_lane && extras.is_bare())
    }

    /// Whether nothing but its time keeps it from being delivered, and nobody but its queue knows of it.
    #[cold]
    fn rests_plainly(&self) -> bool {
        let plainly = |extras: &Extras| {
            let counts = extras.counts_from.is_none() || extras.counts_from == extras.due;
            counts && extras.history.is_empty() && extras.timer.is_none() && !extras.request.is_some()
        };
        self.attempt == 0 && !self.redelivered && self.extras.as_deref().is_some_and(plainly)
    }

    /// Whether it may be only in the file, see [`Extras::fresh`].
    #[cfg(feature = "sqlite")]
    pub(crate) fn is_fresh(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.fresh)
    }

    /// It stays in memory from now on.
    #[cfg(feature = "sqlite")]
    pub(crate) fn known_to_memory(mut self) -> Self {
        self.extras.iter_mut().for_each(|extras| extras.fresh = false);
        self
    }

    /// It has been read from its place.
    #[cfg(feature = "sqlite")]
    pub(crate) fn set_read_place(&mut self, place: u64) {
        let extras = self.extras_mut();
        (extras.place, extras.fresh) = (Some(place), true);
    }

    /// Its place, the first time it is asked for and only if it is the place of a fresh message.
    pub(crate) fn take_fresh(&mut self) -> Option<u64> {
        let extras = self.extras.as_mut()?;
        if std::mem::take(&mut extras.fresh) { extras.place } else { None }
    }

    /// Where it was before somebody did not take it.
    pub(crate) fn restore_place(&mut self, place: Option<u64>) {
        if place.is_some() {
            self.extras_mut().place = place;
        }
    }

    /// Has the commit that writes it do what the rider is for.
    pub(crate) fn give_rider(&mut self, rider: &Rider) {
        if rider.is_some() {
            self.extras_mut().rider = rider.for_message();
        }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn take_rider(&mut self) -> Option<Rider> {
        let extras = self.extras.as_mut().filter(|extras| extras.rider.is_some())?;
        Some(std::mem::take(&mut extras.rider))
    }

    #[inline]
    pub(crate) fn take_place(&mut self) -> Option<u64> {
        self.extras.as_mut()?.place.take()
    }

    pub(crate) fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// Whether nobody waits for its end, and dropping it does nothing.
    #[inline]
    pub(crate) fn ends_silently(&self) -> bool {
        !std::mem::needs_drop::<T>()
            && self.extras.is_none()
            && matches!((&self.routing_key, &self.body), (Text::Inline { .. }, Body::Own(_)))
    }

    /// The same of one that keeps no lane busy either.
    #[inline]
    pub(crate) fn ends_plainly(&self) -> bool {
        self.lane == LaneMark::NONE && self.ends_silently()
    }

    /// With this routing key.
    #[inline]
    pub(crate) fn keyed(&mut self, key: &Text) -> &mut Self {
        self.routing_key.clone_from(key);
        self
    }

    /// Puts another payload into the same envelope.
    pub(crate) fn replace_payload(&mut self, payload: T) {
        let old = std::mem::replace(&mut self.body, Body::Own(payload));
        drop_contained(old);
    }

    /// As subscribers see it: each gets it once.
    #[inline]
    pub(crate) fn note_shown(&mut self) {
        self.attempt = 1;
        if self.is_timed() {
            self.note_delayed(true);
        }
    }

    /// Drops what it holds; nobody may look at it any more, only put another in its place.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.extras = None;
        self.body = Body::Moving;
        if let Text::Shared(_) = self.routing_key {
            self.routing_key = Text::EMPTY;
        }
    }

    /// Becomes a message that has nothing but a payload, as subscribers see it, after [`Message::clear`].
    #[inline(always)]
    pub(crate) fn show(&mut self, stamp: Stamp, key: &Text, payload: T) {
        debug_assert!(self.extras.is_none(), "it was cleared");
        self.stamp(stamp);
        self.attempt = 1;
        self.routing_key.clone_from(key);
        self.body = Body::Own(payload);
    }

    /// Another message over the same payload, if that is shared already.
    pub(crate) fn share_again(&self) -> Option<Self> {
        let body = match &self.body {
            Body::Shared(payload) => Body::Shared(Arc::clone(payload)),
            Body::Kept(keeper) => Body::Kept(keeper.clone()),
            Body::Own(_) | Body::Moving => return None,
        };
        Some(Self { body, routing_key: self.routing_key.clone(), extras: self.extras.clone(), ..*self })
    }

    /// Another message over the same payload, which stays with `keeper` unless it is shared anyway.
    pub(crate) fn share_kept(&self, keeper: impl FnOnce() -> Arc<dyn Keeps<T>>) -> Self {
        self.share_again().unwrap_or_else(|| Self {
            body: Body::Kept(Box::new(keeper())),
            routing_key: self.routing_key.clone(),
            extras: self.extras.clone(),
            ..*self
        })
    }

    /// Another message over the same payload, which both share from now on.
    pub(crate) fn share(&mut self) -> Self {
        self.make_shared();
        self.share_again().expect("shared just now")
    }

    pub(crate) fn make_shared(&mut self) {
        self.body = match std::mem::replace(&mut self.body, Body::Moving) {
            Body::Own(payload) => Body::Shared(Arc::new(payload)),
            shareable => shareable,
        };
    }
}

impl<T> Deref for Message<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.payload()
    }
}

impl<T> From<T> for Message<T> {
    #[inline]
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

impl<T: fmt::Debug> fmt::Debug for Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Message");
        out.field("id", &self.id.0).field("payload", self.payload()).field("attempt", &self.attempt);
        if !self.routing_key().is_empty() {
            out.field("routing_key", &self.routing_key());
        }
        if let Some(key) = self.key() {
            out.field("key", &key);
        }
        for (name, value) in self.headers() {
            out.field(name, &value);
        }
        out.finish_non_exhaustive()
    }
}

/// A short string that allocates only past [`Text::INLINE`] bytes, and is shared rather than copied then.
pub(crate) enum Text {
    Inline { len: u8, bytes: [u8; Text::INLINE] },
    Shared(Arc<str>),
}

impl Clone for Text {
    #[inline]
    fn clone(&self) -> Self {
        match self {
            Self::Inline { len, bytes } => Self::Inline { len: *len, bytes: *bytes },
            Self::Shared(text) => Self::Shared(Arc::clone(text)),
        }
    }

    /// From one place to the other. A clone would be put together on the stack, in pieces other than those in which it
    /// is read back from there, and such a read waits until all that was written before has reached the cache: a
    /// whole message, from another core.
    #[inline]
    fn clone_from(&mut self, other: &Self) {
        match other {
            Self::Inline { len, bytes } => *self = Self::Inline { len: *len, bytes: *bytes },
            Self::Shared(text) => *self = Self::Shared(Arc::clone(text)),
        }
    }
}

impl Text {
    pub(crate) const INLINE: usize = 22;
    pub(crate) const EMPTY: Self = Self::Inline { len: 0, bytes: [0; Self::INLINE] };

    #[inline]
    pub(crate) fn new(text: &str) -> Self {
        if text.len() > Self::INLINE {
            return Self::Shared(text.into());
        }
        let mut bytes = [0; Self::INLINE];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self::Inline { len: text.len() as u8, bytes }
    }

    /// A value as it shows itself, without allocating where it is short; the common kinds by a shorter way.
    #[inline]
    pub(crate) fn showing<V: fmt::Display + Any>(value: &V) -> Self {
        let mut text = Self::EMPTY;
        text.show(value);
        text
    }

    /// Becomes what [`Text::showing`] gives, in its place; see [`Text::clone_from`] for why.
    #[inline]
    pub(crate) fn show<V: fmt::Display + Any>(&mut self, value: &V) {
        let any: &dyn Any = value;
        if let Some(&number) = any.downcast_ref::<u64>() {
            self.show_number(number);
        } else if let Some(&number) = any.downcast_ref::<u32>() {
            self.show_number(number.into());
        } else if let Some(text) = any.downcast_ref::<String>() {
            *self = Self::new(text);
        } else {
            *self = Self::of(value);
        }
    }

    /// Anything that shows itself.
    pub(crate) fn of(value: &impl fmt::Display) -> Self {
        let mut shown = Shown::default();
        // Only the value's own `fmt` can fail; what it has written until then will have to do.
        let _ = write!(shown, "{value}");
        shown.into_text()
    }

    fn show_number(&mut self, mut number: u64) {
        let mut bytes = [0; Self::INLINE];
        let len = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        if len <= 8 {
            // Put together in a register: what is written byte by byte cannot be read as a word for a while.
            let mut digits = 0;
            for _ in 0..len {
                digits = digits << 8 | (u64::from(b'0') + number % 10);
                number /= 10;
            }
            bytes[..8].copy_from_slice(&digits.to_le_bytes());
        } else {
            for byte in bytes[..len].iter_mut().rev() {
                *byte = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        *self = Self::Inline { len: len as u8, bytes };
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Shared(text) => text.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Inline { len, bytes } => std::str::from_utf8(&bytes[..usize::from(*len)]).expect("copied from a str"),
            Self::Shared(text) => text,
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl PartialEq for Text {
    /// Short text is never kept shared and unused bytes are 0, so each form equals only its like.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inline { len, bytes }, Self::Inline { len: others, bytes: other }) => {
                len == others && bytes == other
            }
            (Self::Shared(text), Self::Shared(other)) => text == other,
            _ => false,
        }
    }
}

impl Eq for Text {}

impl std::hash::Hash for Text {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

/// Collects what a value shows of itself.
#[derive(Default)]
struct Shown {
    bytes: [u8; Text::INLINE],
    len: usize,
    /// All of it, once it does not fit.
    long: String,
}

impl Shown {
    fn into_text(self) -> Text {
        if self.long.is_empty() {
            Text::Inline { len: self.len as u8, bytes: self.bytes }
        } else {
            Text::new(&self.long)
        }
    }
}

impl fmt::Write for Shown {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let end = self.len + more.len();
        if self.long.is_empty() && end <= Text::INLINE {
            self.bytes[self.len..end].copy_from_slice(more.as_bytes());
            self.len = end;
            return Ok(());
        }
        if self.long.is_empty() {
            let so_far = std::str::from_utf8(&self.bytes[..self.len]).expect("copied from strs");
            self.long.push_str(so_far);
        }
        self.long.push_str(more);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_stays_small() {
        assert!(size_of::<Text>() <= 24);
        assert!(size_of::<Message<[u64; 16]>>() <= 128 + 64, "{}", size_of::<Message<[u64; 16]>>());
        assert!(size_of::<Message<u64>>() <= 72, "{}", size_of::<Message<u64>>());
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn only_extras_that_say_nothing_are_given_back() {
        let fresh = || {
            let mut message = Message::new(1);
            message.set_fresh_place(7);
            message
        };
        let mut message = fresh();
        assert!(message.take_bare_extras().is_none(), "it has a place");
        message.take_fresh();
        assert_eq!(message.take_place(), Some(7));
        assert!(message.take_bare_extras().is_some());

        let sayings: [fn(&mut Extras); 5] = [
            |extras| extras.key = Some(Text::new("user-7")),
            |extras| extras.headers.push((Text::new("tenant"), Text::new("acme"))),
            |extras| extras.counts_from = Some(Timestamp(0)),
            |extras| extras.paced = true,
            |extras| extras.claim = Some(Text::EMPTY),
        ];
        for (at, says) in sayings.into_iter().enumerate() {
            let mut message = fresh();
            (_, _) = (message.take_fresh(), message.take_place());
            says(message.extras_mut());
            assert!(message.take_bare_extras().is_none(), "{at}");
        }

        let mut message = fresh();
        (_, _) = (message.take_fresh(), message.take_place());
        message.set_lane(70_000);
        assert!(message.take_bare_extras().is_none(), "the lane stands there");
        assert_eq!(message.take_lane(), Some(70_000));
    }

    #[test]
    fn text_of_any_length_reads_back() {
        for text in ["", "a", "exactly-22-bytes-long!", "twenty-three bytes long", "grüße"] {
            assert_eq!(Text::new(text).as_str(), text);
        }
    }

    #[test]
    fn values_show_themselves_as_their_display_does() {
        for number in [0, 7, 10, 99, 12_345_678, 99_999_999, 100_000_000, 4_294_967_295, u64::MAX] {
            assert_eq!(Text::showing(&number).as_str(), number.to_string());
        }
        assert_eq!(Text::showing(&8_u32).as_str(), "8");
        assert_eq!(Text::showing(&-12_i64).as_str(), "-12");
        assert_eq!(Text::showing(&std::net::Ipv4Addr::LOCALHOST).as_str(), "127.0.0.1");
        for text in ["", "short", "exactly-22-bytes-long!", "a good deal longer than twenty-two bytes"] {
            assert_eq!(Text::showing(&text.to_owned()), Text::new(text));
            assert_eq!(Text::showing(&std::borrow::Cow::<'static, str>::Owned(text.into())), Text::new(text));
        }
    }

    #[test]
    fn lanes_of_any_number_are_remembered_once() {
        for lane in [0, 1, 65_533, 65_534, 65_535, 70_000, u32::MAX - 1] {
            let mut message = Message::new(());
            message.set_lane(lane);
            assert_eq!(message.extras.is_some(), lane >= 65_533);
            assert_eq!((message.take_lane(), message.take_lane()), (Some(lane), None));
        }
    }

    #[test]
    fn a_header_set_twice_keeps_the_later_value() {
        let message = Message::new(()).with_header("a", "1").with_header("b", "2").with_header("a", "3");
        assert_eq!(message.headers().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
    }

    #[test]
    fn shared_payloads_come_out_once_alone() {
        let mut first = Message::new(String::from("x"));
        let second = first.share();
        let first = first.try_into_payload().unwrap_err();
        drop(first);
        assert_eq!(second.try_into_payload().unwrap(), "x");
    }

    #[test]
    fn long_histories_keep_their_beginning_and_their_end() {
        let mut message = Message::new(());
        for n in 1..=200 {
            message.attempt = n;
            message.record_failure(Timestamp(0), n.to_string());
        }
        let history = message.history();
        assert_eq!(history.len(), Message::<()>::HISTORY_LIMIT);
        assert_eq!((history[0].number, history[31].number, history[63].number), (1, 32, 200));
    }
}
