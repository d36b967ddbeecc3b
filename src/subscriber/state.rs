//! What a ring holds: the messages and the seats.
//!
//! Invariants: chunks follow each other without a gap, and then comes what is being filled, up to `tail`; at least the
//! last `keep` messages are there; no `Lag::Block` subscriber has more than
//! its capacity before it, beside what it has taken ahead.

use super::chunk::{CHUNK, Chunk, Messages, Pool};
use super::later::Later;
use super::ring::Retention;
use super::seat::{Lag, Seat};
use crate::message::{Message, Stamp, Text};
use crate::outcome::drop_contained;
use crate::runtime::{Event, Runtime};
use crate::scheduler::DelayHeap;
use crate::shutdown::Leftover;
use crate::timer::TimerRef;
use ahash::AHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) struct State<T> {
    pub(super) chunks: VecDeque<Arc<Chunk<T>>>,
    /// What comes next, until it is long enough or somebody wants to read it.
    filling: Chunk<T>,
    /// How long the chunk before it became, since the next one may be as long.
    usual: usize,
    /// All subscribers are handlers, and nothing else needs a message that stands by itself.
    only_handlers: bool,
    /// Where the oldest chunk may no longer be needed.
    evicts_at: u64,
    /// Places for messages to come.
    spares: Vec<Arc<Message<T>>>,
    pool: Arc<Pool<T>>,
    /// Messages written, ever.
    pub(super) tail: u64,
    /// Those of them that the topic has not counted.
    pub(super) published: u64,
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
    /// Subscribers asleep until there is something after their place, in the order they fell asleep and so of their
    /// places.
    pub(super) sleepers: VecDeque<(u64, Arc<Seat>)>,
    /// Somebody was woken who wakes the next.
    pub(super) rings: bool,
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

/// What is left to do when no lock is held any more: what is no longer needed is dropped, and destructors are
/// the user's. Mostly nothing, or a chunk.
pub(crate) struct Waste<T> {
    chunk: Option<(Arc<Pool<T>>, Arc<Chunk<T>>)>,
    more: Option<Box<Wasted<T>>>,
}

pub(super) struct Wasted<T> {
    chunks: Vec<(Arc<Pool<T>>, Arc<Chunk<T>>)>,
    pub(super) messages: Vec<Arc<Message<T>>>,
    /// To be told of: whoever listens is a user's function as well.
    pub(super) news: Vec<(Arc<Runtime>, Event)>,
    pub(super) timers: Vec<(Arc<Runtime>, TimerRef)>,
}

impl<T> Default for Waste<T> {
    #[inline]
    fn default() -> Self {
        Self { chunk: None, more: None }
    }
}

impl<T> Waste<T> {
    pub(super) fn of(message: Arc<Message<T>>) -> Self {
        let mut waste = Self::default();
        waste.all().messages.push(message);
        waste
    }

    /// To add to it.
    pub(super) fn all(&mut self) -> &mut Wasted<T> {
        self.more.get_or_insert_with(|| {
            let (chunks, messages, news, timers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            Box::new(Wasted { chunks, messages, news, timers })
        })
    }

    /// Dropping it, without a look at the rest where there is nothing: mostly so, and once for each message.
    #[inline(always)]
    pub(super) fn clear_away(self) {
        if self.chunk.is_none() && self.more.is_none() { std::mem::forget(self) } else { drop(self) }
    }

    fn push_chunk(&mut self, pool: &Arc<Pool<T>>, chunk: Arc<Chunk<T>>) {
        let chunk = (Arc::clone(pool), chunk);
        if self.chunk.is_none() { self.chunk = Some(chunk) } else { self.all().chunks.push(chunk) }
    }
}

impl<T> Drop for Waste<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some((pool, chunk)) = self.chunk.take() {
            pool.give(chunk);
        }
        if let Some(wasted) = self.more.take() {
            wasted.clear_away();
        }
    }
}

impl<T> Wasted<T> {
    #[inline(never)]
    fn clear_away(self) {
        self.chunks.into_iter().for_each(|(pool, chunk)| pool.give(chunk));
        self.messages.into_iter().for_each(drop_contained);
        self.timers.into_iter().for_each(|(runtime, timer)| runtime.timers.forget(&timer));
        for (runtime, event) in self.news {
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
    pub(super) fn new(retention: Retention, pool: Arc<Pool<T>>) -> Self {
        Self {
            chunks: VecDeque::new(),
            filling: Chunk::new(0, 0),
            usual: 4,
            only_handlers: false,
            evicts_at: u64::MAX,
            spares: Vec::new(),
            pool,
            tail: 0,
            published: 0,
            pledged: 0,
            keep: retention.last,
            blocks_at: u64::MAX,
            cuts_at: u64::MAX,
            seats: Vec::new(),
            latest: retention.by_key.then(AHashMap::new),
            sleepers: VecDeque::new(),
            rings: false,
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

    /// The oldest message that is still there.
    pub(super) fn head(&self) -> u64 {
        self.chunks.front().map_or(self.filling.start, |chunk| chunk.start)
    }

    /// The longest a chunk may get, so that little more than `keep` is kept.
    fn longest(&self) -> usize {
        (self.keep / 8).clamp(1, CHUNK)
    }

    /// The chunks from the one with this place on; sooner found if that is the chunk with this number, or the next.
    pub(super) fn chunks_from(&self, place: u64, number: u64) -> impl Iterator<Item = &Arc<Chunk<T>>> {
        let first = self
            .position_near(place, number)
            .unwrap_or_else(|| self.chunks.partition_point(|chunk| chunk.start <= place).saturating_sub(1));
        self.chunks.range(first..)
    }

    fn position_near(&self, place: u64, number: u64) -> Option<usize> {
        let position = (number + 1).checked_sub(self.chunks.front()?.number)? as usize;
        let holds = |position: &usize| self.chunks.get(*position).is_some_and(|chunk| chunk.holds(place));
        Some(position).filter(holds).or_else(|| position.checked_sub(1).filter(holds))
    }

    /// Who is to be woken next, since there is something for it. It does the same when it wakes: so a publish wakes
    /// one subscriber whatever their number, and meanwhile more may be published for the others.
    pub(super) fn next_sleeper(&mut self) -> Option<Arc<Seat>> {
        self.rings = self.sleepers.front().is_some_and(|(place, _)| *place < self.tail);
        if self.rings { self.sleepers.pop_front().map(|(_, seat)| seat) } else { None }
    }

    /// Whether one more message may be promised a place.
    pub(super) fn has_room(&mut self) -> bool {
        self.has_rooms(1)
    }

    /// Whether `n` more may.
    #[inline(always)]
    pub(super) fn has_rooms(&mut self, n: u64) -> bool {
        self.tail + self.pledged + n <= self.blocks_at || self.has_rooms_now(n)
    }

    #[inline(never)]
    fn has_rooms_now(&mut self, n: u64) -> bool {
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
        let handled = !self.seats.is_empty() && self.seats.iter().all(|seat| seat.is_handled());
        self.only_handlers = handled && self.latest.is_none();
        self.look_at_oldest_again();
    }

    /// In a place that was used before if there is one.
    fn wrap(&mut self, message: Message<T>) -> Arc<Message<T>> {
        let Some(mut spare) = self.spares.pop() else { return Arc::new(message) };
        match Arc::get_mut(&mut spare) {
            Some(place) => *place = message,
            None => unreachable!("nobody else has an empty place"),
        }
        spare
    }

    /// Adds a message that nobody else has yet; it has been noted as shown.
    #[inline]
    pub(super) fn append(&mut self, message: Message<T>, waste: &mut Waste<T>) {
        if !self.only_handlers {
            let message = self.wrap(message);
            return self.append_shared(message, waste);
        }
        if self.filling.is_empty() {
            self.begin_chunk(true);
        }
        self.filling.expires |= message.expires();
        match &mut self.filling.messages {
            Messages::Own(row) => row.push(message),
            Messages::Shared(messages) => messages.push(Arc::new(message)),
        }
        self.appended(waste);
    }

    /// Adds a message with nothing but a payload, made where it will stand.
    #[inline(always)]
    pub(super) fn append_bare(&mut self, stamp: Stamp, key: &Text, payload: T, waste: &mut Waste<T>) {
        if !self.only_handlers {
            return self.append_made(stamp, key, payload, waste);
        }
        if self.filling.is_empty() {
            self.begin_chunk(true);
        }
        match &mut self.filling.messages {
            Messages::Own(row) => match row.next_place() {
                Some(place) => place.show(stamp, key, payload),
                None => row.push_made(stamp, key, payload),
            },
            Messages::Shared(_) => return self.append_made(stamp, key, payload, waste),
        }
        self.appended(waste);
    }

    #[inline(never)]
    fn append_made(&mut self, stamp: Stamp, key: &Text, payload: T, waste: &mut Waste<T>) {
        self.append(Message::shown(stamp, key, payload), waste);
    }

    pub(super) fn append_shared(&mut self, message: Arc<Message<T>>, waste: &mut Waste<T>) {
        if let Some(latest) = &mut self.latest {
            let key = message.key().map(Text::new);
            let replaced = latest.insert(key, (self.tail, Arc::clone(&message)));
            if let Some((_, message)) = replaced {
                waste.all().messages.push(message);
            }
        }
        if self.keep == 0 {
            self.tail += 1;
            self.filling.start = self.tail;
            return waste.all().messages.push(message);
        }
        if !matches!(self.filling.messages, Messages::Shared(_)) {
            self.seal();
        }
        if self.filling.is_empty() {
            self.begin_chunk(false);
        }
        self.filling.expires |= message.expires();
        if let Messages::Shared(messages) = &mut self.filling.messages {
            messages.push(message);
        }
        self.appended(waste);
    }

    #[inline(always)]
    fn appended(&mut self, waste: &mut Waste<T>) {
        self.tail += 1;
        if self.filling.messages.len() >= self.longest() {
            self.seal();
        }
        if self.tail >= self.evicts_at {
            self.evict(waste);
        }
    }

    #[inline(never)]
    fn begin_chunk(&mut self, own: bool) {
        let len = self.longest().min(2 * self.usual);
        self.filling.messages = self.pool.take(own, len, &mut self.spares);
    }

    /// Lets everybody read what is being filled.
    #[inline(never)]
    pub(super) fn seal(&mut self) {
        if self.filling.is_empty() {
            return;
        }
        let next = Chunk::new(self.tail, self.filling.number + 1);
        let chunk = std::mem::replace(&mut self.filling, next);
        self.usual = chunk.messages.len();
        self.chunks.push_back(chunk.sealed());
        self.look_at_oldest_again();
    }

    /// Up to here there are chunks to read.
    pub(super) fn sealed(&self) -> u64 {
        self.filling.start
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

    /// Lets go of whole chunks that are neither kept nor still to be read by somebody who is waited for; of all, if
    /// nothing is kept.
    pub(super) fn evict(&mut self, waste: &mut Waste<T>) {
        if self.keep == 0 {
            self.seal();
            let all = std::mem::take(&mut self.chunks);
            self.spares = Vec::new();
            return all.into_iter().for_each(|chunk| waste.push_chunk(&self.pool, chunk));
        }
        while self.tail >= self.evicts_at
            && self.chunks.front().is_some_and(|oldest| oldest.end() <= self.least_fetched())
        {
            let oldest = self.chunks.pop_front();
            oldest.into_iter().for_each(|chunk| waste.push_chunk(&self.pool, chunk));
            self.look_at_oldest_again();
        }
    }

    fn look_at_oldest_again(&mut self) {
        self.evicts_at = self.chunks.front().map_or(u64::MAX, |oldest| oldest.end() + self.keep as u64);
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_found_whatever_is_thought_to_be_near() {
        let mut state = State::new(Retention { last: 40, by_key: false }, Arc::new(Pool::new()));
        let mut waste = Waste::default();
        for n in 0..100 {
            state.append(Message::new(n), &mut waste);
            if n % 3 == 0 {
                state.seal();
            }
        }
        let (head, sealed) = (state.head(), state.sealed());
        assert!(head > 20 && state.chunks.len() > 10);
        for place in head..sealed {
            for number in (0..state.filling.number + 3).chain([u64::MAX - 1]) {
                assert!(state.chunks_from(place, number).next().is_some_and(|chunk| chunk.holds(place)));
            }
        }
    }
}
