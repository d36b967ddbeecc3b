//! Reading along the ring.

use super::chunk::{Chunk, Run};
use super::ring::Ring;
use super::seat::Seat;
use super::state::Start;
use crate::error::BroadcastError;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::core::Patience;
use crate::sync::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most messages taken ahead under one lock.
const AHEAD: usize = 128;

/// A subscriber's hands. Dropping it gives its seat up.
pub(super) struct Reader<T: Send + Sync + 'static> {
    pub(super) ring: Arc<Ring<T>>,
    pub(super) seat: Arc<Seat>,
    /// The chunk being read.
    current: Option<Arc<Chunk<T>>>,
    /// The place of the next message to hand out; up to `until` they stand in the current chunk.
    cursor: u64,
    until: u64,
    /// Up to here it has taken messages; the rest of them:
    fetched: u64,
    chunks: VecDeque<Arc<Chunk<T>>>,
    /// The number of the chunk begun last.
    latest: u64,
    /// So many times it takes the few messages that are there without giving way.
    haste: u32,
    /// Comes before everything else.
    replay: VecDeque<Arc<Message<T>>>,
    /// Missed, and nobody has been told: a batch had begun before.
    missed: u64,
    /// Handed out last from the replay.
    replayed: Option<Arc<Message<T>>>,
}

impl<T: Send + Sync + 'static> Reader<T> {
    pub(super) fn new(ring: Arc<Ring<T>>, seat: Arc<Seat>, start: Start<T>) -> Self {
        let Start { cursor, replay } = start;
        let (until, fetched, chunks) = (cursor, cursor, VecDeque::new());
        Self {
            ring,
            seat,
            current: None,
            cursor,
            until,
            fetched,
            chunks,
            latest: 0,
            haste: 0,
            replay,
            missed: 0,
            replayed: None,
        }
    }

    /// The next message, waiting as long as `patience` and `go_on` say.
    #[inline]
    pub(super) fn next(&mut self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), BroadcastError> {
        loop {
            if self.cursor < self.until && !self.seat.is_cut() {
                self.cursor += 1;
            } else {
                self.advance(patience, go_on)?;
            }
            if !self.may_expire() || !self.skip_expired() {
                return Ok(());
            }
        }
    }

    /// As [`Reader::next`] where only what is there can be taken: what was missed is told by the next call.
    pub(super) fn next_of_batch(&mut self) -> bool {
        match self.next(Patience::None, &|| true) {
            Ok(()) => true,
            Err(BroadcastError::Lagged(missed)) => {
                self.missed = missed;
                false
            }
            Err(_) => false,
        }
    }

    /// What has been taken already of the current chunk and needs no second look; [`Reader::go_to`] follows.
    #[inline]
    pub(super) fn run(&self) -> Run<'_, T> {
        let plain = self.current.as_ref().filter(|chunk| !chunk.expires && self.cursor < self.until);
        plain.map_or_else(Run::default, |chunk| chunk.run(self.cursor..self.until))
    }

    /// The place of the next message to hand out.
    pub(super) fn place(&self) -> u64 {
        self.cursor
    }

    /// So much of a run has been handed out.
    pub(super) fn go_to(&mut self, place: u64) {
        self.cursor = place;
    }

    /// Goes on to the next message when no more of the current chunk has been taken.
    fn advance(&mut self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), BroadcastError> {
        if self.seat.is_cut() {
            self.let_go();
            return Err(BroadcastError::Disconnected);
        }
        if self.missed > 0 {
            return Err(BroadcastError::Lagged(std::mem::take(&mut self.missed)));
        }
        if !self.replay.is_empty() {
            let before = std::mem::replace(&mut self.replayed, self.replay.pop_front());
            drop_contained(before);
            return Ok(());
        }
        if self.cursor == self.fetched && !self.fetch_on() {
            self.fetch(patience, go_on)?;
        }
        if self.cursor == self.until {
            let next = self.chunks.pop_front().expect("what was fetched stands in chunks");
            self.release_current();
            self.latest = next.number;
            self.current = Some(next);
            self.until = self.chunks.front().map_or(self.fetched, |next| next.start);
        }
        self.cursor += 1;
        Ok(())
    }

    /// What was handed out last.
    #[inline]
    pub(super) fn last(&self) -> &Message<T> {
        match &self.current {
            Some(chunk) => chunk.get(self.cursor - 1),
            None => self.replayed.as_ref().expect("a replay comes before all chunks"),
        }
    }

    /// As [`Reader::last`], to be taken along.
    #[inline]
    pub(super) fn last_shared(&self) -> Arc<Message<T>> {
        match &self.current {
            Some(chunk) => chunk.share(self.cursor - 1),
            None => Arc::clone(self.replayed.as_ref().expect("a replay comes before all chunks")),
        }
    }

    /// Whether what is to be handed out may have a time to live.
    #[inline]
    fn may_expire(&self) -> bool {
        self.current.as_ref().is_none_or(|chunk| chunk.expires)
    }

    /// Whether what was to be handed out has outlived its time, and is left out.
    #[cold]
    fn skip_expired(&mut self) -> bool {
        let overdue = self.last().is_overdue(self.ring.runtime.clock.now());
        if overdue {
            self.ring.expired.add(1);
            self.is_done();
        }
        overdue
    }

    /// The handler is through with what was handed out last.
    pub(super) fn is_done(&self) {
        self.seat.has_done(self.cursor, self.replay.len());
    }

    /// How many it has taken beyond what was handed out last.
    pub(super) fn taken(&self) -> usize {
        (self.fetched - self.cursor) as usize + self.replay.len()
    }

    /// So few messages at once that what it holds counts as its capacity says, or nearly so.
    fn ahead(&self) -> u64 {
        (self.seat.capacity / 8).clamp(1, AHEAD) as u64
    }

    /// Takes more of the current chunk.
    fn fetch_on(&mut self) -> bool {
        let Some(chunk) = &self.current else { return false };
        let Some(until) = self.ring.fetch_on(&self.seat, self.cursor, self.ahead(), chunk) else { return false };
        (self.until, self.fetched) = (until, until);
        true
    }

    fn fetch(&mut self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), BroadcastError> {
        let ahead = self.ahead();
        let mut has_spun = matches!(patience, Patience::None);
        if !has_spun {
            if self.ring.has_more(self.cursor) {
                self.ring.wait_for_more(self.cursor, ahead, &mut self.haste);
            } else {
                self.ring.spin(self.cursor);
                has_spun = true;
            }
        }
        self.let_go();
        loop {
            match self.ring.fetch(&self.seat, self.cursor, ahead, (&mut self.chunks, self.latest)) {
                Ok(fetched) => {
                    self.fetched = fetched;
                    return Ok(());
                }
                Err(BroadcastError::Lagged(missed)) => {
                    self.cursor += missed;
                    (self.until, self.fetched) = (self.cursor, self.cursor);
                    return Err(BroadcastError::Lagged(missed));
                }
                Err(BroadcastError::Empty) if !matches!(patience, Patience::None) => {}
                Err(end) => return Err(end),
            }
            if !has_spun {
                self.ring.spin(self.cursor);
                has_spun = true;
            } else {
                self.ring.wait(&self.seat, self.cursor, patience, go_on)?;
            }
        }
    }

    /// Whether the next one can be had without waiting.
    pub(super) fn is_ready(&self) -> bool {
        !self.replay.is_empty()
            || self.cursor < self.fetched
            || self.ring.backlog(self.fetched) > 0
            || self.missed > 0
            || self.seat.is_cut()
    }

    /// Where what is there now ends.
    pub(super) fn horizon(&self) -> u64 {
        self.ring.tail.load(Ordering::Acquire)
    }

    /// Whether the next one can be had without waiting and without an error, if it comes before `horizon`.
    pub(super) fn is_plain(&self, horizon: u64) -> bool {
        let there = || !self.replay.is_empty() || self.cursor < self.fetched;
        let more = || self.cursor < horizon && self.ring.has_plain(&self.seat, self.cursor);
        !self.seat.is_cut() && (there() || more())
    }

    pub(super) fn backlog(&self) -> u64 {
        self.replay.len() as u64 + self.ring.backlog(self.cursor)
    }

    /// Lets go of what was taken, outside of any lock: destructors are the user's.
    fn let_go(&mut self) {
        self.chunks.drain(..).for_each(|chunk| self.ring.pool.give(chunk));
        (self.until, self.fetched) = (self.cursor, self.cursor);
        self.release_current();
        drop_contained(self.replayed.take());
        if self.seat.is_cut() {
            self.replay.drain(..).for_each(drop_contained);
        }
    }
}

impl<T: Send + Sync + 'static> Reader<T> {
    fn release_current(&mut self) {
        self.current.take().into_iter().for_each(|chunk| self.ring.pool.give(chunk));
    }
}

impl<T: Send + Sync + 'static> Drop for Reader<T> {
    fn drop(&mut self) {
        self.ring.leave(&self.seat);
        self.let_go();
        self.replay.drain(..).for_each(drop_contained);
    }
}
