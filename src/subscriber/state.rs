//! What a ring holds: the messages and the seats.
//!
//! Invariants: chunks and the open end follow each other without a gap up to `tail`; a chunk that has been
//! closed never changes; at least the last `keep` messages are there; no `Lag::Block` subscriber has more than
//! its capacity before it, beside what it has taken ahead.

use super::later::Later;
use super::ring::Retention;
use super::seat::{Lag, Seat};
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::runtime::{Event, Runtime};
use crate::scheduler::DelayHeap;
use crate::shutdown::Leftover;
use crate::timer::TimerRef;
use ahash::AHashMap;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most messages in one chunk.
const CHUNK: usize = 64;

pub(super) struct State<T> {
    pub(super) chunks: VecDeque<Arc<Chunk<T>>>,
    /// The newest messages, not in a chunk yet.
    pub(super) open: Vec<Arc<Message<T>>>,
    /// Some of those have a time to live.
    pub(super) open_expires: bool,
    /// Messages written, ever.
    pub(super) tail: u64,
    /// Publishes that were promised a place and have not arrived yet.
    pub(super) pledged: u64,
    /// How many messages are kept: retention or the largest capacity.
    pub(super) keep: usize,
    /// The first place at which a blocking subscriber may have to be waited for.
    pub(super) blocks_at: u64,
    /// The first place at which a subscriber may have to be cut off.
    pub(super) cuts_at: u64,
    pub(super) seats: Vec<Arc<Seat>>,
    pub(super) latest: Option<AHashMap<Option<Text>, (u64, Arc<Message<T>>)>>,
    /// Some subscriber may be asleep on `readable`.
    pub(super) sleepers: bool,
    /// Publishers asleep on `writable`.
    pub(super) writers: usize,
    pub(super) gate: Gate,
    /// What waits for its time.
    pub(super) delayed: DelayHeap<Later<T>>,
    /// Some of it waits for room instead.
    pub(super) overdue: bool,
    /// What handlers had not got to when shutdown stopped them.
    pub(super) unheard: Vec<Leftover>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
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
    /// Some of them have a time to live, so that their readers need not look at each.
    pub(super) expires: bool,
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

/// What is left to do when no lock is held any more: what is no longer needed is dropped, and destructors are
/// the user's.
pub(crate) struct Waste<T> {
    pub(super) chunks: SmallVec<[Arc<Chunk<T>>; 2]>,
    pub(super) messages: Vec<Arc<Message<T>>>,
    /// To be told of: whoever listens is a user's function as well.
    pub(super) news: Vec<(Arc<Runtime>, Event)>,
    pub(super) timers: Vec<(Arc<Runtime>, TimerRef)>,
}

impl<T> Waste<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: SmallVec::new(), messages: Vec::new(), news: Vec::new(), timers: Vec::new() }
    }

    pub(super) fn of(message: Arc<Message<T>>) -> Self {
        let mut waste = Self::new();
        waste.messages.push(message);
        waste
    }
}

impl<T> Drop for Waste<T> {
    fn drop(&mut self) {
        self.messages.drain(..).for_each(drop_contained);
        self.timers.drain(..).for_each(|(runtime, timer)| runtime.timers.forget(&timer));
        for (runtime, event) in self.news.drain(..) {
            runtime.tell(|| event);
            runtime.note_progress();
        }
    }
}

/// What a new subscriber starts with.
pub(super) struct Start<T> {
    pub(super) cursor: u64,
    pub(super) replay: VecDeque<Arc<Message<T>>>,
}

impl<T> State<T> {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            chunks: VecDeque::new(),
            open: Vec::new(),
            open_expires: false,
            tail: 0,
            pledged: 0,
            keep: retention.last,
            blocks_at: u64::MAX,
            cuts_at: u64::MAX,
            seats: Vec::new(),
            latest: retention.by_key.then(AHashMap::new),
            sleepers: false,
            writers: 0,
            gate: Gate::Open,
            delayed: DelayHeap::new(),
            overdue: false,
            unheard: Vec::new(),
        }
    }

    /// Whether nothing will ever be written again.
    pub(super) fn is_over(&self) -> bool {
        self.gate == Gate::Closed && self.pledged == 0
    }

    pub(super) fn open_start(&self) -> u64 {
        self.tail - self.open.len() as u64
    }

    /// The oldest message that is still there.
    pub(super) fn head(&self) -> u64 {
        self.chunks.front().map_or_else(|| self.open_start(), |chunk| chunk.start)
    }

    /// The longest a chunk may get, so that little more than `keep` is kept.
    fn longest(&self) -> usize {
        (self.keep / 8).clamp(1, CHUNK)
    }

    pub(super) fn seal(&mut self) {
        if !self.open.is_empty() {
            let start = self.open_start();
            let next = Vec::with_capacity(self.longest());
            let messages = std::mem::replace(&mut self.open, next);
            let expires = std::mem::take(&mut self.open_expires);
            self.chunks.push_back(Arc::new(Chunk { start, messages, expires }));
        }
    }

    /// Whether one more message may be promised a place.
    pub(super) fn has_room(&mut self) -> bool {
        self.has_rooms(1)
    }

    /// Whether `n` more may.
    pub(super) fn has_rooms(&mut self, n: u64) -> bool {
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

    pub(super) fn look_at_seats_again(&mut self, retention: Retention) {
        self.blocks_at = self.limit_of(Lag::Block);
        self.cuts_at = self.limit_of(Lag::Disconnect);
        let largest = self.seats.iter().map(|seat| seat.capacity).max().unwrap_or(0);
        self.keep = largest.max(retention.last);
    }

    #[inline]
    pub(super) fn append(&mut self, message: Arc<Message<T>>, waste: &mut Waste<T>) {
        if let Some(latest) = &mut self.latest {
            let key = message.key().map(Text::new);
            let replaced = latest.insert(key, (self.tail, Arc::clone(&message)));
            waste.messages.extend(replaced.map(|(_, message)| message));
        }
        self.tail += 1;
        if self.keep == 0 {
            return waste.messages.push(message);
        }
        self.open_expires |= message.expires();
        self.open.push(message);
        if self.open.len() >= self.longest() {
            self.seal();
        }
        self.evict(waste);
    }

    /// Which seats are too far behind for one more message; they are given up.
    pub(super) fn cut_off(&mut self) -> Vec<Arc<Seat>> {
        let tail = self.tail;
        let too_far = |seat: &mut Arc<Seat>| seat.lag == Lag::Disconnect && tail >= seat.limit();
        let cut: Vec<_> = self.seats.extract_if(.., too_far).collect();
        cut.iter().for_each(|seat| seat.cut());
        self.cuts_at = self.limit_of(Lag::Disconnect);
        cut
    }

    /// Lets go of whole chunks that are neither kept nor still to be read by somebody who is waited for.
    pub(super) fn evict(&mut self, waste: &mut Waste<T>) {
        let kept_from = self.tail.saturating_sub(self.keep as u64);
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= kept_from && chunk.end() <= self.least_fetched()) {
            waste.chunks.extend(self.chunks.pop_front());
        }
    }

    /// Promises made before a subscriber joined may fill it beyond its capacity.
    fn least_fetched(&self) -> u64 {
        if self.blocks_at == u64::MAX {
            return u64::MAX;
        }
        let blocking = self.seats.iter().filter(|seat| seat.lag == Lag::Block);
        blocking.map(|seat| seat.fetched()).min().unwrap_or(u64::MAX)
    }
}

impl<T> Drop for State<T> {
    fn drop(&mut self) {
        self.open.drain(..).for_each(drop_contained);
        self.latest.take().into_iter().flatten().for_each(drop_contained);
        self.delayed.take_where(|_| true).into_iter().for_each(drop_contained);
    }
}

pub(super) fn snapshot<T>(state: &State<T>) -> VecDeque<Arc<Message<T>>> {
    let mut latest: Vec<_> =
        state.latest.iter().flatten().map(|(_, (at, message))| (*at, Arc::clone(message))).collect();
    latest.sort_unstable_by_key(|(at, _)| *at);
    latest.into_iter().map(|(_, message)| message).collect()
}
