//! The messages of a topic that its subscribers read, each at its own place.
//!
//! A publish writes once, whatever the number of subscribers. Messages stand in chunks, which all subscribers
//! share once they are filled, or looked for; so neither the lock nor a count of references is touched per message
//! and subscriber.

use super::chunk::{Chunk, Pool};
use super::seat::{Lag, Replay, Seat};
use super::state::{Gate, Start, State, snapshot};
use crate::clock::Timestamp;
use crate::error::{BroadcastError, PublishError, Refused, SHUT_DOWN};
use crate::message::{Message, Stamp, Text};
use crate::queue::core::Refusal;
use crate::runtime::{AnyRing, Event, Registration, Runtime};
use crate::shutdown::Leftover;
use crate::stats::Counter;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Padded};
use crate::timer::TimerRef;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

pub(crate) use super::state::Waste;

/// The ring of one topic.
pub(crate) struct Ring<T> {
    pub(crate) topic: Arc<str>,
    pub(crate) runtime: Arc<Runtime>,
    pub(super) me: Weak<Self>,
    pub(super) state: Mutex<State<T>>,
    pub(super) pool: Arc<Pool<T>>,
    /// Waited on with the state, as the seats' bells are.
    pub(super) writable: Condvar,
    /// As the state's, for subscribers that wait a moment before they sleep.
    pub(super) tail: Padded<AtomicU64>,
    /// Somebody waits for room, so whoever takes messages without the lock has to say so.
    awaited: AtomicBool,
    /// How many subscribers there are.
    pub(super) crowd: AtomicUsize,
    pub(super) lagged: Counter,
    pub(super) disconnected: Counter,
    /// Messages that subscribers did not get since their time to live was over.
    pub(super) expired: Counter,
    pub(super) registration: Registration,
    /// What is kept although nobody has subscribed.
    retention: Retention,
}

/// What a topic remembers for subscribers to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Retention {
    pub(crate) last: usize,
    pub(crate) by_key: bool,
}

impl Retention {
    pub(crate) fn is_any(self) -> bool {
        self.last > 0 || self.by_key
    }
}

/// Nobody else writes while it is held.
pub(crate) struct Room<'a, T>(MutexGuard<'a, State<T>>);

impl<T: Send + Sync + 'static> Ring<T> {
    pub(crate) fn new(topic: Arc<str>, runtime: Arc<Runtime>, retention: Retention) -> Arc<Self> {
        let pool = Arc::new(Pool::new());
        let ring = Arc::new_cyclic(|me: &Weak<Self>| Self {
            topic,
            me: Weak::clone(me),
            state: Mutex::new(State::new(retention, Arc::clone(&pool))),
            pool,
            writable: Condvar::new(),
            tail: Padded::default(),
            awaited: AtomicBool::new(false),
            crowd: AtomicUsize::new(0),
            lagged: Counter::default(),
            disconnected: Counter::default(),
            expired: Counter::default(),
            registration: Registration::new(&runtime, me.clone()),
            retention,
            runtime,
        });
        let weak: Weak<Self> = Arc::downgrade(&ring);
        ring.runtime.enlist_ring(weak);
        ring
    }

    pub(crate) fn retention(&self) -> Retention {
        self.retention
    }

    /// Whether publishes have to come by, and whether anybody would see them. Once closing, they come by to
    /// be refused.
    pub(crate) fn interest(&self) -> (bool, bool) {
        let state = self.state.lock();
        let subscribed = !state.seats.is_empty() || state.gate == Gate::Closed;
        (subscribed || state.gate != Gate::Open || self.retention.is_any(), subscribed)
    }

    /// Whether nothing that this thread publishes is taken any more.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut_now(&self.state.lock())
    }

    fn is_shut_now(&self, state: &State<T>) -> bool {
        state.gate != Gate::Open && !(state.gate == Gate::Draining && self.runtime.is_worker())
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.state.lock().seats.len()
    }

    /// Messages that subscribers have missed, whether or not they have asked since.
    pub(crate) fn missed(&self) -> u64 {
        let state = self.state.lock();
        let unasked: u64 = state.seats.iter().map(|seat| seat.missing(state.tail)).sum();
        self.lagged.get() + unasked
    }

    pub(crate) fn disconnected(&self) -> u64 {
        self.disconnected.get()
    }

    pub(crate) fn expired(&self) -> u64 {
        self.expired.get()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().gate == Gate::Open
    }

    /// What is not taken by the short way.
    #[inline]
    pub(crate) fn is_special(message: &Message<T>) -> bool {
        message.extras.is_some() && (message.is_timed() || message.is_request())
    }

    /// Room for this message, if it can be taken as it is and no subscriber is to be waited for; [`Ring::put`] follows.
    #[inline]
    pub(crate) fn room_for(&self, message: &Message<T>) -> Option<Room<'_, T>> {
        if Self::is_special(message) { None } else { self.room() }
    }

    /// The same for a message that has nothing but a payload; [`Ring::put_bare`] may follow.
    #[inline(always)]
    pub(crate) fn room(&self) -> Option<Room<'_, T>> {
        let mut state = self.state.lock();
        self.let_in(&mut state).is_ok().then_some(Room(state))
    }

    /// Takes a message that has its id and times.
    #[inline]
    pub(crate) fn put(&self, Room(mut state): Room<'_, T>, message: Message<T>) -> Waste<T> {
        let mut waste = Waste::default();
        self.append(&mut state, message, &mut waste);
        self.finish(state);
        waste
    }

    /// Makes a message of a payload where it will stand, and counts it as published.
    #[inline(always)]
    pub(crate) fn put_bare(&self, Room(mut state): Room<'_, T>, stamp: Stamp, key: &Text, payload: T) {
        let mut waste = Waste::default();
        if state.tail >= state.cuts_at {
            self.cut_off(&mut state, &mut waste);
        }
        state.append_bare(stamp, key, payload, &mut waste);
        state.published += 1;
        self.finish(state);
        waste.clear_away();
    }

    /// How many messages came by [`Ring::put_bare`].
    pub(crate) fn published(&self) -> u64 {
        self.state.lock().published
    }

    /// Takes as many of these as it can, from the front, with one visit; says why not all.
    pub(crate) fn offer_chunk(&self, chunk: &mut VecDeque<Message<T>>) -> Result<(), Refusal> {
        let mut waste = Waste::default();
        let mut state = self.state.lock();
        while !chunk.is_empty() {
            if let Err(refusal) = self.let_in(&mut state) {
                self.finish(state);
                return Err(refusal);
            }
            chunk.pop_front().into_iter().for_each(|message| self.append(&mut state, message, &mut waste));
        }
        self.finish(state);
        Ok(())
    }

    /// Promises to take one message, or says why not; [`Ring::redeem`] or [`Ring::forgo`] follows. One with a
    /// delay needs no room now.
    pub(crate) fn pledge(&self, is_delayed: bool) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        match self.let_in(&mut state) {
            Err(Refusal::Full) if is_delayed => {}
            answer => answer?,
        }
        state.pledged += 1;
        Ok(())
    }

    /// `timer` is the message's own, taken out.
    pub(crate) fn redeem(&self, message: Arc<Message<T>>, timer: Option<TimerRef>) {
        match message.due() {
            Some(due) => self.redeem_later(due, message, timer),
            None => self.redeem_by(timer, |state, waste| self.append_shared(state, message, waste)),
        }
    }

    /// As [`Ring::redeem`], of a message that nobody else has.
    pub(crate) fn redeem_alone(&self, message: Message<T>, timer: Option<TimerRef>) {
        match message.due() {
            Some(due) => self.redeem_later(due, for_subscribers(message), timer),
            None => self.redeem_by(timer, |state, waste| self.append(state, message, waste)),
        }
    }

    fn redeem_by(&self, timer: Option<TimerRef>, append: impl FnOnce(&mut State<T>, &mut Waste<T>)) {
        let mut waste = Waste::default();
        let mut state = self.state.lock();
        state.pledged -= 1;
        append(&mut state, &mut waste);
        self.finish(state);
        timer.iter().for_each(|timer| self.runtime.timers.supersede(timer));
        self.runtime.note_progress();
    }

    fn redeem_later(&self, due: Timestamp, message: Arc<Message<T>>, timer: Option<TimerRef>) {
        let mut state = self.state.lock();
        state.pledged -= 1;
        self.delay(state, due, message, timer);
        self.runtime.note_progress();
    }

    pub(crate) fn forgo(&self) {
        self.forgo_all(1);
    }

    pub(crate) fn forgo_all(&self, n: u64) {
        let mut state = self.state.lock();
        state.pledged -= n;
        if state.overdue {
            return self.catch_up(state);
        }
        drop(state);
        self.wake_everyone();
        self.runtime.note_progress();
    }

    #[inline]
    pub(super) fn let_in(&self, state: &mut State<T>) -> Result<(), Refusal> {
        self.let_all_in(state, 1)
    }

    #[inline]
    pub(super) fn let_all_in(&self, state: &mut State<T>, n: u64) -> Result<(), Refusal> {
        if self.is_shut_now(state) {
            return Err(Refusal::Closed);
        }
        if state.has_rooms(n) { Ok(()) } else { Err(Refusal::Full) }
    }

    /// Writes one message. [`Ring::finish`] follows after the last.
    #[inline]
    fn append(&self, state: &mut State<T>, mut message: Message<T>, waste: &mut Waste<T>) {
        message.note_shown();
        if state.tail >= state.cuts_at {
            self.cut_off(state, waste);
        }
        state.append(message, waste);
    }

    /// As [`Ring::append`], of a message that others have too.
    pub(super) fn append_shared(&self, state: &mut State<T>, message: Arc<Message<T>>, waste: &mut Waste<T>) {
        if state.tail >= state.cuts_at {
            self.cut_off(state, waste);
        }
        state.append_shared(message, waste);
    }

    #[inline(always)]
    pub(super) fn finish(&self, mut state: MutexGuard<'_, State<T>>) {
        self.publish_tail(&state);
        let sleeper = if state.rings || state.sleepers.is_empty() { None } else { state.next_sleeper() };
        drop(state);
        if let Some(seat) = sleeper {
            seat.bell.notify_one();
        }
    }

    pub(super) fn publish_tail(&self, state: &State<T>) {
        self.tail.store(state.tail, Ordering::Release);
    }

    #[cold]
    fn cut_off(&self, state: &mut State<T>, waste: &mut Waste<T>) {
        let cut = state.cut_off();
        if cut.is_empty() {
            return;
        }
        self.disconnected.add(cut.len() as u64);
        waste.all().news.extend(cut.iter().map(|seat| {
            let (topic, subscriber) = (self.topic.to_string(), seat.name.to_string());
            (Arc::clone(&self.runtime), Event::SubscriberDisconnected { topic, subscriber })
        }));
        self.seats_changed(state);
        state.evict(waste);
        if state.seats.is_empty() {
            // From now on nobody sees what is published.
            self.runtime.routes_version.fetch_add(1, Ordering::Release);
        }
    }

    fn seats_changed(&self, state: &mut State<T>) {
        state.look_at_seats_again(self.retention);
        self.pool.set_open(!state.seats.is_empty());
        self.crowd.store(state.seats.len(), Ordering::Relaxed);
    }

    /// Gives a subscriber its place; every publish that starts later finds it there.
    pub(super) fn join(&self, seat: &Arc<Seat>, replay: Replay) -> Result<Start<T>, String> {
        let mut state = self.state.lock();
        if state.gate != Gate::Open {
            return Err(SHUT_DOWN.into());
        }
        let mut start = Start { cursor: state.tail, replay: VecDeque::new() };
        match replay {
            Replay::None => {}
            Replay::Last(n) => start.cursor = state.head().max(state.tail.saturating_sub(n as u64)),
            Replay::LatestByKey => start.replay = snapshot(&state),
        }
        seat.begin(start.cursor, start.replay.len());
        let first = state.seats.is_empty();
        state.seats.push(Arc::clone(seat));
        self.seats_changed(&mut state);
        drop(state);
        if first {
            self.runtime.routes_version.fetch_add(1, Ordering::Release);
        }
        Ok(start)
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        let mut waste = Waste::default();
        let mut state = self.state.lock();
        let before = state.seats.len();
        state.seats.retain(|other| !Arc::ptr_eq(other, seat));
        if state.seats.len() < before {
            self.lagged.add(seat.missing(state.tail));
            if state.gate != Gate::Open {
                let unheard = unheard_by(seat, state.tail);
                state.unheard.extend(unheard);
            }
        }
        self.seats_changed(&mut state);
        let last = state.seats.is_empty() && before > 0;
        state.evict(&mut waste);
        let overdue = state.overdue;
        drop(state);
        if overdue {
            self.catch_up(self.state.lock());
        }
        if last {
            self.runtime.routes_version.fetch_add(1, Ordering::Release);
        }
        self.wake_everyone();
        self.runtime.note_progress();
    }

    /// Takes what is next from `cursor` on, at most `ahead` messages; where that ends. What is being filled only if
    /// there is nothing else, so that chunks do not get short where all are busy. `latest` is the number of the chunk
    /// it has read last.
    pub(super) fn fetch(
        &self,
        seat: &Seat,
        cursor: u64,
        ahead: u64,
        (into, latest): (&mut VecDeque<Arc<Chunk<T>>>, u64),
    ) -> Result<u64, BroadcastError> {
        let mut state = self.state.lock();
        if seat.is_cut() {
            return Err(BroadcastError::Disconnected);
        }
        if cursor == state.tail {
            return Err(if state.is_over() { BroadcastError::Closed } else { BroadcastError::Empty });
        }
        let missed = seat.missing(state.tail);
        if missed > 0 {
            seat.skip_to(cursor + missed);
            self.lagged.add(missed);
            return Err(BroadcastError::Lagged(missed));
        }
        if cursor >= state.sealed() {
            state.seal();
        }
        let until = (cursor + ahead).min(state.sealed());
        for chunk in state.chunks_from(cursor, latest) {
            if chunk.start >= until {
                break;
            }
            into.push_back(Arc::clone(chunk));
        }
        seat.has_fetched(until);
        self.pass_room_on(state, seat);
        Ok(until)
    }

    /// As [`Ring::fetch`], without the lock, of the rest of a chunk it has; where that ends, if there is any.
    pub(super) fn fetch_on(&self, seat: &Seat, cursor: u64, ahead: u64, chunk: &Chunk<T>) -> Option<u64> {
        let tail = self.tail.load(Ordering::Acquire);
        let until = chunk.end().min(cursor + ahead);
        if until <= cursor || seat.missing(tail) > 0 {
            return None;
        }
        seat.has_fetched(until);
        if self.awaited.load(Ordering::SeqCst) {
            self.pass_room_on(self.state.lock(), seat);
        }
        Some(until)
    }

    /// This subscriber has taken messages; somebody may have waited for that.
    fn pass_room_on(&self, mut state: MutexGuard<'_, State<T>>, seat: &Seat) {
        if state.overdue {
            return self.catch_up(state);
        }
        let room = state.writers > 0 && seat.lag == Lag::Block && state.has_room();
        drop(state);
        if room {
            self.writable.notify_all();
        }
    }

    /// Has subscribers look for those who wait for room; to be called before looking for the last time whether
    /// there is some. A subscriber takes first and looks then, so one of both sees the other.
    pub(super) fn note_awaited(&self, state: &State<T>) {
        self.awaited.store(state.overdue || state.writers > 0, Ordering::SeqCst);
    }

    /// Says of a message why it was not taken.
    pub(crate) fn error(&self, (message, refusal): (Message<T>, Refusal)) -> PublishError<T> {
        let refused = match self.full_seat(1) {
            Ok(Some(seat)) => Refused::new(message, &seat.name).by_subscriber(),
            _ => Refused::new(message, &self.topic).by_topic(),
        };
        match refusal {
            Refusal::Full => PublishError::Full(refused),
            Refusal::Timeout => PublishError::Timeout(refused),
            Refusal::Deadlock(why) => PublishError::Deadlock(refused.because(why)),
            Refusal::Closed => PublishError::Closed(refused),
            Refusal::Panicked(words) => PublishError::Panicked(refused.because(words)),
            Refusal::Limited(wait) => PublishError::Limited(refused.limited(wait)),
            Refusal::Unencodable(words) => PublishError::Unencodable(refused.because(words)),
            Refusal::NotStored(error) => PublishError::NotStored(refused.not_stored(error)),
        }
    }

    /// What a handler still has to do; nothing once it has left.
    pub(super) fn pending(&self, seat: &Arc<Seat>) -> u64 {
        let state = self.state.lock();
        if state.seats.iter().any(|other| Arc::ptr_eq(other, seat)) { seat.pending(state.tail) } else { 0 }
    }

    /// Whether there is something after `cursor` that has not been missed.
    pub(super) fn has_plain(&self, seat: &Seat, cursor: u64) -> bool {
        let tail = self.tail.load(Ordering::Acquire);
        tail > cursor && seat.missing(tail) == 0
    }

    pub(super) fn backlog(&self, cursor: u64) -> u64 {
        self.state.lock().tail - cursor
    }
}

impl<T> Ring<T> {
    pub(super) fn wake_everyone(&self) {
        let sleepers = std::mem::take(&mut self.state.lock().sleepers);
        sleepers.into_iter().for_each(|(_, seat)| _ = seat.bell.notify_one());
        self.writable.notify_all();
    }

    fn set_gate(&self, gate: Gate) {
        let mut waste = Waste::default();
        let mut state = self.state.lock();
        if state.gate != Gate::Closed {
            state.gate = gate;
        }
        if state.gate == Gate::Closed {
            state.give_up_delayed(&self.topic, &mut waste);
        }
        drop(state);
        self.runtime.routes_version.fetch_add(1, Ordering::Release);
        self.wake_everyone();
    }

    /// Nobody can publish any more; subscribers get what is left.
    pub(crate) fn close(&self) {
        self.set_gate(Gate::Closed);
    }
}

impl<T: Send + Sync + 'static> AnyRing for Ring<T> {
    fn start_draining(&self) {
        self.set_gate(Gate::Draining);
    }

    fn close(&self) {
        Ring::close(self);
    }

    fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let mut state = self.state.lock();
        let due = state.delayed.earliest().is_some_and(|due| due <= horizon);
        let handled = || state.seats.iter().filter(|seat| seat.is_handled());
        let pending: u64 = handled().map(|seat| seat.pending(state.tail)).sum();
        let to_come = if handled().next().is_some() { state.pledged + u64::from(due) } else { 0 };
        let settled: u64 = handled().map(|seat| seat.done()).sum();
        (pending + to_come, state.tail.wrapping_add(settled))
    }

    fn leftovers(&self) -> Vec<Leftover> {
        let state = self.state.lock();
        let stuck = state.seats.iter().filter_map(|seat| unheard_by(seat, state.tail));
        state.unheard.iter().cloned().chain(stuck).collect()
    }
}

/// As subscribers see it: each gets it once.
pub(crate) fn for_subscribers<T>(mut message: Message<T>) -> Arc<Message<T>> {
    message.note_shown();
    Arc::new(message)
}

fn unheard_by(seat: &Seat, tail: u64) -> Option<Leftover> {
    let ready = if seat.is_handled() { seat.pending(tail) } else { 0 };
    (ready > 0).then(|| Leftover { queue: seat.name.to_string(), ready, delayed: 0, in_flight: 0 })
}
