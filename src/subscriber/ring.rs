//! The messages of a topic that its subscribers read, each at its own place.
//!
//! A publish writes once, whatever the number of subscribers. Messages stand in chunks; a subscriber takes
//! whole chunks, which it shares with all others, so that neither the lock nor a count of references is
//! touched per message and subscriber.
//!
//! Invariants: chunks and the open end follow each other without a gap up to `tail`; a chunk that has been
//! closed never changes; at least the last `keep` messages are there; no `Lag::Block` subscriber has more than
//! its capacity before it.

use super::seat::{Lag, Replay, Seat};
use crate::clock::Timestamp;
use crate::deadlock::{Awaited, QueueRef};
use crate::error::{BroadcastError, PublishError, Refused};
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::core::{Patience, Refusal};
use crate::runtime::{AnyRing, Event, Registration, Runtime};
use crate::scheduler::{Timed, TimedId};
use crate::shutdown::Leftover;
use crate::simulation::Until;
use crate::stats::Counter;
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, cores, spin_loop, yield_now};
use ahash::AHashMap;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// The most messages in one chunk, and the most a subscriber takes ahead.
const CHUNK: usize = 64;

/// The ring of one topic.
pub(crate) struct Ring<T> {
    pub(crate) topic: Arc<str>,
    pub(crate) runtime: Arc<Runtime>,
    pub(super) me: Weak<Self>,
    state: Mutex<State<T>>,
    /// Waited on with the state.
    readable: Condvar,
    writable: Condvar,
    /// Publishers asleep on `writable`, for subscribers that do not hold the state.
    writers: AtomicUsize,
    pub(super) lagged: Counter,
    pub(super) disconnected: Counter,
    registration: Registration,
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

struct State<T> {
    chunks: VecDeque<Arc<Chunk<T>>>,
    /// The newest messages, not in a chunk yet.
    open: Vec<Arc<Message<T>>>,
    /// Messages written, ever.
    tail: u64,
    /// Publishes that were promised a place and have not arrived yet.
    pledged: u64,
    /// How many messages are kept: retention or the largest capacity.
    keep: usize,
    /// The first place at which a blocking subscriber may have to be waited for.
    blocks_at: u64,
    /// The first place at which a subscriber may have to be cut off.
    cuts_at: u64,
    seats: Vec<Arc<Seat>>,
    latest: Option<AHashMap<Option<Text>, (u64, Arc<Message<T>>)>>,
    /// Some subscriber may be asleep on `readable`.
    sleepers: bool,
    gate: Gate,
    /// What handlers had not got to when shutdown stopped them.
    unheard: Vec<Leftover>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Only the broker's own workers may still publish.
    Draining,
    /// Nobody may; subscribers get what is left, then "closed".
    Closed,
}

/// Some messages that follow each other.
pub(super) struct Chunk<T> {
    pub(super) start: u64,
    pub(super) messages: Vec<Arc<Message<T>>>,
}

impl<T> Chunk<T> {
    pub(super) fn end(&self) -> u64 {
        self.start + self.messages.len() as u64
    }
}

impl<T> Drop for Chunk<T> {
    /// One by one, since a second panic on the way out would abort the process.
    fn drop(&mut self) {
        self.messages.drain(..).for_each(drop_contained);
    }
}

/// What is no longer needed, to be dropped when no lock is held: destructors are the user's.
pub(crate) struct Waste<T> {
    chunks: SmallVec<[Arc<Chunk<T>>; 2]>,
    messages: Vec<Arc<Message<T>>>,
}

impl<T> Waste<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: SmallVec::new(), messages: Vec::new() }
    }
}

impl<T> Drop for Waste<T> {
    fn drop(&mut self) {
        self.messages.drain(..).for_each(drop_contained);
    }
}

/// What a new subscriber starts with.
pub(super) struct Start<T> {
    pub(super) cursor: u64,
    pub(super) replay: VecDeque<Arc<Message<T>>>,
}

impl<T> State<T> {
    fn open_start(&self) -> u64 {
        self.tail - self.open.len() as u64
    }

    /// The oldest message that is still there.
    fn head(&self) -> u64 {
        self.chunks.front().map_or_else(|| self.open_start(), |chunk| chunk.start)
    }

    /// The longest a chunk may get, so that little more than `keep` is kept.
    fn longest(&self) -> usize {
        (self.keep / 8).clamp(1, CHUNK)
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            let start = self.open_start();
            let messages = std::mem::take(&mut self.open);
            self.chunks.push_back(Arc::new(Chunk { start, messages }));
        }
    }

    /// Whether `n` more messages may be promised a place.
    fn has_room(&mut self, n: u64) -> bool {
        if self.tail + self.pledged + n <= self.blocks_at {
            return true;
        }
        self.blocks_at = self.limit_of(Lag::Block);
        self.tail + self.pledged + n <= self.blocks_at
    }

    /// The place that is too far for one of the seats with this policy.
    fn limit_of(&self, lag: Lag) -> u64 {
        let seats = self.seats.iter().filter(|seat| seat.lag == lag);
        seats.map(|seat| seat.limit()).min().unwrap_or(u64::MAX)
    }

    fn look_at_seats_again(&mut self, retention: Retention) {
        self.blocks_at = self.limit_of(Lag::Block);
        self.cuts_at = self.limit_of(Lag::Disconnect);
        let largest = self.seats.iter().map(|seat| seat.capacity).max().unwrap_or(0);
        self.keep = largest.max(retention.last);
    }

    /// Writes one message; which seats were cut off by it.
    #[inline]
    fn append(&mut self, message: Arc<Message<T>>, waste: &mut Waste<T>) -> Vec<Arc<Seat>> {
        let cut = if self.tail >= self.cuts_at { self.cut_off() } else { Vec::new() };
        if let Some(latest) = &mut self.latest {
            let key = message.key().map(Text::new);
            let replaced = latest.insert(key, (self.tail, Arc::clone(&message)));
            waste.messages.extend(replaced.map(|(_, message)| message));
        }
        self.tail += 1;
        if self.keep == 0 {
            waste.messages.push(message);
            return cut;
        }
        self.open.push(message);
        if self.open.len() >= self.longest() {
            self.seal();
        }
        self.evict(waste);
        cut
    }

    #[cold]
    fn cut_off(&mut self) -> Vec<Arc<Seat>> {
        let tail = self.tail;
        let too_far = |seat: &mut Arc<Seat>| seat.lag == Lag::Disconnect && tail >= seat.limit();
        let cut: Vec<_> = self.seats.extract_if(.., too_far).collect();
        cut.iter().for_each(|seat| seat.cut());
        self.cuts_at = self.limit_of(Lag::Disconnect);
        cut
    }

    /// Lets go of whole chunks that are neither kept nor still to be read by somebody who is waited for.
    fn evict(&mut self, waste: &mut Waste<T>) {
        let kept_from = self.tail.saturating_sub(self.keep as u64);
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= kept_from && chunk.end() <= self.least_read()) {
            waste.chunks.extend(self.chunks.pop_front());
        }
    }

    /// Promises made before a subscriber joined may fill it beyond its capacity.
    fn least_read(&self) -> u64 {
        if self.blocks_at == u64::MAX {
            return u64::MAX;
        }
        let blocking = self.seats.iter().filter(|seat| seat.lag == Lag::Block);
        blocking.map(|seat| seat.read()).min().unwrap_or(u64::MAX)
    }
}

impl<T: Send + Sync + 'static> Ring<T> {
    pub(crate) fn new(topic: Arc<str>, runtime: Arc<Runtime>, retention: Retention) -> Arc<Self> {
        let state = State {
            chunks: VecDeque::new(),
            open: Vec::new(),
            tail: 0,
            pledged: 0,
            keep: retention.last,
            blocks_at: u64::MAX,
            cuts_at: u64::MAX,
            seats: Vec::new(),
            latest: retention.by_key.then(AHashMap::new),
            sleepers: false,
            gate: Gate::Open,
            unheard: Vec::new(),
        };
        let ring = Arc::new_cyclic(|me: &Weak<Self>| Self {
            topic,
            me: Weak::clone(me),
            state: Mutex::new(state),
            readable: Condvar::new(),
            writable: Condvar::new(),
            writers: AtomicUsize::new(0),
            lagged: Counter::default(),
            disconnected: Counter::default(),
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
        let subscribed = !state.seats.is_empty() || state.gate != Gate::Open;
        (subscribed || self.retention.is_any(), subscribed)
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

    pub(crate) fn cut_off(&self) -> u64 {
        self.disconnected.get()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().gate == Gate::Open
    }

    /// Takes one message if no subscriber is to be waited for. It must have its id and times.
    #[inline]
    pub(crate) fn offer(&self, message: Message<T>, waste: &mut Waste<T>) -> Result<(), (Message<T>, Refusal)> {
        let message = for_subscribers(message);
        let mut state = self.state.lock();
        match self.let_in(&mut state, 1) {
            Ok(()) => {
                self.write(state, message, waste);
                Ok(())
            }
            Err(refusal) => {
                drop(state);
                let message = Arc::into_inner(message).expect("nobody has seen it");
                Err((message, refusal))
            }
        }
    }

    /// Promises to take one message, or says why not; [`Ring::redeem`] or [`Ring::forgo`] follows.
    pub(crate) fn pledge(&self) -> Result<(), Refusal> {
        self.pledge_all(1)
    }

    /// As [`Ring::pledge`], for several messages; [`Ring::put_together`] or [`Ring::forgo_all`] follows.
    pub(crate) fn pledge_all(&self, n: u64) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        self.let_in(&mut state, n)?;
        state.pledged += n;
        Ok(())
    }

    /// A subscriber that is waited for, and could not take so many if it had read all.
    pub(crate) fn never_takes(&self, n: u64) -> Option<(Arc<str>, u64)> {
        let state = self.state.lock();
        let small = state.seats.iter().find(|seat| seat.lag == Lag::Block && n > seat.capacity as u64)?;
        Some((Arc::clone(&small.name), small.capacity as u64))
    }

    /// Writes what was promised, in order; nobody sees any of it before [`Writing::release`].
    pub(crate) fn put_together(&self, messages: Vec<Arc<Message<T>>>) -> Writing<'_, T> {
        let mut writing = Writing { ring: self, state: self.state.lock(), waste: Waste::new(), cut: Vec::new() };
        for message in messages {
            writing.state.pledged -= 1;
            let cut = writing.state.append(message, &mut writing.waste);
            writing.cut.extend(cut);
        }
        writing
    }

    pub(crate) fn redeem(&self, message: Arc<Message<T>>) {
        let mut waste = Waste::new();
        let mut state = self.state.lock();
        state.pledged -= 1;
        self.write(state, message, &mut waste);
        self.runtime.note_progress();
    }

    pub(crate) fn forgo(&self) {
        self.forgo_all(1);
    }

    pub(crate) fn forgo_all(&self, n: u64) {
        let mut state = self.state.lock();
        state.pledged -= n;
        drop(state);
        self.wake_everyone();
        self.runtime.note_progress();
    }

    #[inline]
    fn let_in(&self, state: &mut State<T>, n: u64) -> Result<(), Refusal> {
        if state.gate != Gate::Open && !(state.gate == Gate::Draining && self.runtime.is_worker()) {
            return Err(Refusal::Closed);
        }
        if state.has_room(n) { Ok(()) } else { Err(Refusal::Full) }
    }

    #[inline]
    fn write(&self, mut state: MutexGuard<'_, State<T>>, message: Arc<Message<T>>, waste: &mut Waste<T>) {
        let cut = state.append(message, waste);
        let wake = std::mem::take(&mut state.sleepers);
        drop(state);
        if wake {
            self.readable.notify_all();
        }
        if !cut.is_empty() {
            self.tell_cut(&cut);
        }
    }

    #[cold]
    fn tell_cut(&self, cut: &[Arc<Seat>]) {
        self.disconnected.add(cut.len() as u64);
        for seat in cut {
            self.runtime.tell(|| Event::SubscriberDisconnected {
                topic: self.topic.to_string(),
                subscriber: seat.name.to_string(),
            });
        }
        self.runtime.note_progress();
    }

    /// Gives a subscriber its place; every publish that starts later finds it there.
    pub(super) fn join(&self, seat: &Arc<Seat>, replay: Replay) -> Result<Start<T>, String> {
        let mut state = self.state.lock();
        if state.gate != Gate::Open {
            return Err("the broker was shut down".into());
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
        state.look_at_seats_again(self.retention);
        drop(state);
        if first {
            self.runtime.routes_version.fetch_add(1, Ordering::Release);
        }
        Ok(start)
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        let mut waste = Waste::new();
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
        state.look_at_seats_again(self.retention);
        let last = state.seats.is_empty() && before > 0;
        if state.keep == 0 {
            waste.chunks.extend(state.chunks.drain(..));
            waste.messages.append(&mut state.open);
            state.chunks.shrink_to_fit();
        } else {
            state.evict(&mut waste);
        }
        drop(state);
        if last {
            self.runtime.routes_version.fetch_add(1, Ordering::Release);
        }
        self.wake_everyone();
        self.runtime.note_progress();
    }

    /// Takes what is next from `cursor` on, at most `ahead` messages; where that ends.
    pub(super) fn fetch(
        &self,
        seat: &Seat,
        cursor: u64,
        ahead: u64,
        into: &mut VecDeque<Arc<Chunk<T>>>,
    ) -> Result<u64, BroadcastError> {
        let mut state = self.state.lock();
        if seat.is_cut() {
            return Err(BroadcastError::Disconnected);
        }
        if cursor == state.tail {
            let over = state.gate == Gate::Closed && state.pledged == 0;
            return Err(if over { BroadcastError::Closed } else { BroadcastError::Empty });
        }
        let missed = seat.missing(state.tail);
        if missed > 0 {
            seat.skip_to(cursor + missed);
            self.lagged.add(missed);
            return Err(BroadcastError::Lagged(missed));
        }
        if cursor + ahead > state.open_start() {
            state.seal();
        }
        let first = state.chunks.partition_point(|chunk| chunk.end() <= cursor);
        let until = (cursor + ahead).min(state.tail);
        into.extend(state.chunks.range(first..).take_while(|chunk| chunk.start < until).cloned());
        seat.fetched(until);
        Ok(until)
    }

    /// Sleeps until there may be something new after `cursor`.
    pub(super) fn wait(
        &self,
        seat: &Seat,
        cursor: u64,
        patience: Patience,
        go_on: &impl Fn() -> bool,
    ) -> Result<(), BroadcastError> {
        let news =
            |state: &State<T>| state.tail > cursor || seat.is_cut() || state.gate == Gate::Closed && state.pledged == 0;
        if self.runtime.is_simulated() {
            return match self.runtime.simulate_until(deadline_of(patience), || news(&self.state.lock())) {
                Until::Done => Ok(()),
                Until::TimedOut => Err(BroadcastError::Timeout),
                Until::Standstill => Err(BroadcastError::Deadlock),
            };
        }
        let deadline = deadline_of(patience);
        let wake_at = self.arrange_wake(deadline);
        let mut state = self.state.lock();
        loop {
            if news(&state) {
                return Ok(());
            }
            if !go_on() {
                return Err(BroadcastError::Closed);
            }
            if deadline.is_some_and(|deadline| self.runtime.clock.now() >= deadline) {
                return Err(BroadcastError::Timeout);
            }
            state.sleepers = true;
            match wake_at {
                Some(instant) => drop(self.readable.wait_until(&mut state, instant)),
                None => self.readable.wait(&mut state),
            }
        }
    }

    /// With a manual clock nobody's condvar times out: the scheduler wakes us when the clock is moved.
    fn arrange_wake(&self, deadline: Option<Timestamp>) -> Option<std::time::Instant> {
        let deadline = deadline?;
        if self.runtime.clock.is_manual() {
            self.registration.arm(deadline);
        }
        self.runtime.clock.instant_of(deadline)
    }

    /// Rounds of spinning before a subscriber sleeps; pointless where nobody else can run meanwhile.
    pub(super) fn spins(&self) -> u32 {
        if cores() > 1 && !self.runtime.is_simulated() { 8 } else { 0 }
    }

    /// A blocking subscriber has taken a message.
    #[inline]
    pub(super) fn has_read(&self) {
        if self.writers.load(Ordering::SeqCst) > 0 {
            self.wake_writers();
        }
    }

    #[cold]
    fn wake_writers(&self) {
        // Taken so that a writer between its look and its sleep does not miss the call.
        drop(self.state.lock());
        self.writable.notify_all();
    }

    /// Blocks until no subscriber has to be waited for, holding nothing.
    pub(crate) fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        self.wait_for_rooms(1, patience)
    }

    /// As [`Ring::wait_for_room`], for `n` messages at once.
    pub(crate) fn wait_for_rooms(&self, n: u64, patience: Patience) -> Result<(), Refusal> {
        let mut snoozes = 0;
        loop {
            let Some(seat) = self.full_seat(n)? else { return Ok(()) };
            if snoozes < self.spins() {
                snooze(snoozes);
                snoozes += 1;
                continue;
            }
            let deadline = deadline_of(patience);
            if !self.runtime.is_simulated() && deadline.is_some_and(|at| self.runtime.clock.now() >= at) {
                return Err(Refusal::Timeout);
            }
            self.wait_for_seat(&seat, n, deadline)?;
        }
    }

    fn wait_for_seat(&self, seat: &Arc<Seat>, n: u64, deadline: Option<Timestamp>) -> Result<(), Refusal> {
        let seen = self.runtime.waits.changes();
        let Some(works_for) = self.runtime.works_for() else { return self.sleep_until_room(n, deadline, seen) };
        let wait = Arc::new(Together { ring: self.me.clone(), n });
        let weak: Weak<Together<T>> = Arc::downgrade(&wait);
        let ticket = self.runtime.waits.begin(works_for, seat.identity(), weak);
        let circle = self.runtime.waits.circle(&ticket, |queue| self.runtime.drainers(queue));
        let result = match circle {
            Some(circle) => Err(Refusal::Deadlock(format!("only its own circle drains it: {circle}").into())),
            None => self.sleep_until_room(n, deadline, seen),
        };
        self.runtime.waits.end(&ticket);
        result
    }

    fn sleep_until_room(&self, n: u64, deadline: Option<Timestamp>, seen: u64) -> Result<(), Refusal> {
        if self.runtime.is_simulated() {
            let end = self.runtime.simulate_until(deadline, || !matches!(self.full_seat(n), Ok(Some(_))));
            return match end {
                Until::Done => Ok(()),
                Until::TimedOut => Err(Refusal::Timeout),
                Until::Standstill => Err(Refusal::Deadlock("nothing else in the simulation can run".into())),
            };
        }
        let wake_at = self.arrange_wake(deadline);
        let mut state = self.state.lock();
        // Raised before the look: whoever reads after it sees that somebody has to be woken.
        self.writers.fetch_add(1, Ordering::SeqCst);
        let over = deadline.is_some_and(|at| self.runtime.clock.now() >= at);
        if !over && self.runtime.waits.changes() == seen && state.gate != Gate::Closed && !state.has_room(n) {
            match wake_at {
                Some(instant) => drop(self.writable.wait_until(&mut state, instant)),
                None => self.writable.wait(&mut state),
            }
        }
        drop(state);
        self.writers.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// The subscriber that has to be waited for.
    fn full_seat(&self, n: u64) -> Result<Option<Arc<Seat>>, Refusal> {
        let mut state = self.state.lock();
        match self.let_in(&mut state, n) {
            Ok(()) => Ok(None),
            Err(Refusal::Full) => {
                let end = state.tail + state.pledged + n - 1;
                Ok(state.seats.iter().find(|seat| seat.lag == Lag::Block && end >= seat.limit()).cloned())
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The name of whoever has to be waited for.
    pub(crate) fn waits_for(&self, n: u64) -> Arc<str> {
        match self.full_seat(n) {
            Ok(Some(seat)) => Arc::clone(&seat.name),
            _ => Arc::clone(&self.topic),
        }
    }

    /// Tells rings and queues of one broker apart.
    pub(crate) fn number(&self) -> TimedId {
        self.registration.id()
    }

    /// Says of a message why it was not taken.
    pub(crate) fn error(&self, (message, refusal): (Message<T>, Refusal)) -> PublishError<T> {
        let waits_for = || self.waits_for(1);
        match refusal {
            Refusal::Full => PublishError::Full(Refused::new(message, &waits_for())),
            Refusal::Timeout => PublishError::Timeout(Refused::new(message, &waits_for())),
            Refusal::Deadlock(why) => PublishError::Deadlock(Refused::new(message, &waits_for()).because(why)),
            Refusal::Closed => PublishError::Closed(Refused::new(message, &self.topic)),
            Refusal::Panicked(words) => PublishError::Panicked(Refused::new(message, &self.topic).because(words)),
            Refusal::Limited(wait) => PublishError::Limited(Refused::new(message, &self.topic).limited(wait)),
        }
    }

    /// What a handler still has to do; nothing once it has left.
    pub(super) fn pending(&self, seat: &Arc<Seat>) -> u64 {
        let state = self.state.lock();
        if state.seats.iter().any(|other| Arc::ptr_eq(other, seat)) { seat.pending(state.tail) } else { 0 }
    }

    pub(super) fn missing(&self, seat: &Seat) -> u64 {
        seat.missing(self.state.lock().tail)
    }

    pub(super) fn backlog(&self, cursor: u64) -> u64 {
        self.state.lock().tail - cursor
    }
}

impl<T> Ring<T> {
    pub(super) fn wake_everyone(&self) {
        drop(self.state.lock());
        self.readable.notify_all();
        self.writable.notify_all();
    }

    fn set_gate(&self, gate: Gate) {
        let mut state = self.state.lock();
        if state.gate != Gate::Closed {
            state.gate = gate;
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

    fn unrest(&self) -> (u64, u64) {
        let state = self.state.lock();
        let handled = || state.seats.iter().filter(|seat| seat.is_handled());
        let pending: u64 = handled().map(|seat| seat.pending(state.tail)).sum();
        let promised = if handled().next().is_some() { state.pledged } else { 0 };
        let settled: u64 = handled().map(|seat| seat.done()).sum();
        (pending + promised, state.tail.wrapping_add(settled))
    }

    fn leftovers(&self) -> Vec<Leftover> {
        let state = self.state.lock();
        let stuck = state.seats.iter().filter_map(|seat| unheard_by(seat, state.tail));
        state.unheard.iter().cloned().chain(stuck).collect()
    }
}

impl<T: Send + Sync + 'static> Timed for Ring<T> {
    /// Somebody's timeout may be over.
    fn fire(&self, _: Timestamp) -> Option<Timestamp> {
        self.wake_everyone();
        None
    }
}

/// A wait for places for so many messages.
struct Together<T> {
    ring: Weak<Ring<T>>,
    n: u64,
}

impl<T: Send + Sync + 'static> Awaited for Together<T> {
    fn wake_everyone(&self) {
        if let Some(ring) = self.ring.upgrade() {
            ring.wake_everyone();
        }
    }

    fn keeps_waiting(&self) -> bool {
        self.ring.upgrade().is_some_and(|ring| matches!(ring.full_seat(self.n), Ok(Some(_))))
    }
}

/// Messages that are written while the lock is still held.
#[must_use]
pub(crate) struct Writing<'a, T> {
    ring: &'a Ring<T>,
    state: MutexGuard<'a, State<T>>,
    waste: Waste<T>,
    cut: Vec<Arc<Seat>>,
}

impl<'a, T: Send + Sync + 'static> Writing<'a, T> {
    /// Lets the messages be seen; the rest is done by [`Written::finish`], once no lock is held.
    pub(crate) fn release(self) -> Written<'a, T> {
        let Self { ring, mut state, waste, cut } = self;
        let wake = std::mem::take(&mut state.sleepers);
        drop(state);
        if wake {
            ring.readable.notify_all();
        }
        Written { ring, _waste: waste, cut }
    }
}

#[must_use]
pub(crate) struct Written<'a, T> {
    ring: &'a Ring<T>,
    /// Dropped when it is finished.
    _waste: Waste<T>,
    cut: Vec<Arc<Seat>>,
}

impl<T: Send + Sync + 'static> Written<'_, T> {
    pub(crate) fn finish(self) {
        if !self.cut.is_empty() {
            self.ring.tell_cut(&self.cut);
        }
        self.ring.runtime.note_progress();
    }
}

impl<T> Drop for State<T> {
    fn drop(&mut self) {
        self.open.drain(..).for_each(drop_contained);
        self.latest.take().into_iter().flatten().for_each(drop_contained);
    }
}

impl Seat {
    pub(super) fn identity(&self) -> QueueRef {
        QueueRef { id: self.registration.id(), name: Arc::clone(&self.name) }
    }
}

/// As subscribers see it: each gets it once.
pub(crate) fn for_subscribers<T>(mut message: Message<T>) -> Arc<Message<T>> {
    message.attempt = 1;
    Arc::new(message)
}

fn unheard_by(seat: &Seat, tail: u64) -> Option<Leftover> {
    let ready = if seat.is_handled() { seat.pending(tail) } else { 0 };
    (ready > 0).then(|| Leftover { queue: seat.name.to_string(), ready, delayed: 0, in_flight: 0 })
}

fn snapshot<T>(state: &State<T>) -> VecDeque<Arc<Message<T>>> {
    let mut latest: Vec<_> =
        state.latest.iter().flatten().map(|(_, (at, message))| (*at, Arc::clone(message))).collect();
    latest.sort_unstable_by_key(|(at, _)| *at);
    latest.into_iter().map(|(_, message)| message).collect()
}

pub(super) fn deadline_of(patience: Patience) -> Option<Timestamp> {
    match patience {
        Patience::Until(deadline) => Some(deadline),
        Patience::None | Patience::Forever => None,
    }
}

/// Waits a moment for another thread to move, more patiently each time.
pub(super) fn snooze(round: u32) {
    if round < 4 {
        (0..20).for_each(|_| spin_loop());
    } else {
        yield_now();
    }
}
