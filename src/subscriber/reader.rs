//! Reading along the ring.

use super::ring::Ring;
use super::seat::Seat;
use super::state::{Chunk, Start};
use crate::error::BroadcastError;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::core::Patience;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most messages taken ahead under one lock.
const AHEAD: usize = 128;

/// A subscriber's hands. Dropping it gives its seat up.
pub(super) struct Reader<T: Send + Sync + 'static> {
    pub(super) ring: Arc<Ring<T>>,
    pub(super) seat: Arc<Seat>,
    /// The chunk being read, and what of it is still to be handed out.
    current: Option<Arc<Chunk<T>>>,
    at: usize,
    until: usize,
    /// The place in the ring where what was taken of the current chunk ends.
    end: u64,
    /// Up to here it has taken messages; the rest of them:
    fetched: u64,
    chunks: VecDeque<Arc<Chunk<T>>>,
    /// Comes before everything else.
    replay: VecDeque<Arc<Message<T>>>,
    /// Handed out last from the replay.
    replayed: Option<Arc<Message<T>>>,
}

impl<T: Send + Sync + 'static> Reader<T> {
    pub(super) fn new(ring: Arc<Ring<T>>, seat: Arc<Seat>, start: Start<T>) -> Self {
        let Start { cursor: end, replay } = start;
        let chunks = VecDeque::new();
        Self { ring, seat, current: None, at: 0, until: 0, end, fetched: end, chunks, replay, replayed: None }
    }

    /// The next message, waiting as long as `patience` and `go_on` say.
    #[inline]
    pub(super) fn next(
        &mut self,
        patience: Patience,
        go_on: &impl Fn() -> bool,
    ) -> Result<&Arc<Message<T>>, BroadcastError> {
        loop {
            if self.at < self.until && !self.seat.is_cut() {
                self.at += 1;
            } else {
                self.advance(patience, go_on)?;
            }
            if !self.may_expire() || !self.skip_expired() {
                return Ok(self.last());
            }
        }
    }

    /// Goes on to the next message when the current chunk has no more.
    fn advance(&mut self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), BroadcastError> {
        if self.seat.is_cut() {
            self.let_go();
            return Err(BroadcastError::Disconnected);
        }
        if !self.replay.is_empty() {
            let before = std::mem::replace(&mut self.replayed, self.replay.pop_front());
            drop_contained(before);
            return Ok(());
        }
        if self.end == self.fetched {
            self.fetch(patience, go_on)?;
        }
        let chunk = self.chunks.pop_front().expect("what was fetched stands in chunks");
        self.at = (self.end - chunk.start) as usize + 1;
        self.end = chunk.end().min(self.fetched);
        self.until = (self.end - chunk.start) as usize;
        self.current = Some(chunk);
        Ok(())
    }

    /// What was handed out last.
    #[inline]
    fn last(&self) -> &Arc<Message<T>> {
        match &self.current {
            Some(chunk) => &chunk.messages[self.at - 1],
            None => self.replayed.as_ref().expect("a replay comes before all chunks"),
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

    /// The place of the next message to hand out.
    fn cursor(&self) -> u64 {
        self.end - (self.until - self.at) as u64
    }

    /// The handler is through with what was handed out last.
    pub(super) fn is_done(&self) {
        self.seat.has_done(self.cursor(), self.replay.len());
    }

    fn fetch(&mut self, patience: Patience, go_on: &impl Fn() -> bool) -> Result<(), BroadcastError> {
        self.let_go();
        // So little that what it holds counts as its capacity says, or nearly so.
        let ahead = (self.seat.capacity / 8).clamp(1, AHEAD) as u64;
        let mut has_spun = matches!(patience, Patience::None);
        if !has_spun && !self.ring.has_more(self.end) {
            self.ring.spin(self.end);
            has_spun = true;
        }
        loop {
            match self.ring.fetch(&self.seat, self.end, ahead, &mut self.chunks) {
                Ok(fetched) => {
                    self.fetched = fetched;
                    return Ok(());
                }
                Err(BroadcastError::Lagged(missed)) => {
                    self.end += missed;
                    self.fetched = self.end;
                    return Err(BroadcastError::Lagged(missed));
                }
                Err(BroadcastError::Empty) if !matches!(patience, Patience::None) => {}
                Err(end) => return Err(end),
            }
            if !has_spun {
                self.ring.spin(self.end);
                has_spun = true;
            } else {
                self.ring.wait(&self.seat, self.end, patience, go_on)?;
            }
        }
    }

    /// Whether the next one can be had without waiting.
    pub(super) fn is_ready(&self) -> bool {
        !self.replay.is_empty()
            || self.cursor() < self.fetched
            || self.ring.backlog(self.fetched) > 0
            || self.seat.is_cut()
    }

    /// Whether the next one can be had without waiting and without an error.
    pub(super) fn is_plain(&self) -> bool {
        let cut = self.seat.is_cut();
        let lags = || self.cursor() == self.fetched && self.ring.missing(&self.seat) > 0;
        !cut && (!self.replay.is_empty() || !lags())
    }

    pub(super) fn backlog(&self) -> u64 {
        self.replay.len() as u64 + self.ring.backlog(self.cursor())
    }

    /// Lets go of what was taken, outside of any lock: destructors are the user's.
    fn let_go(&mut self) {
        self.chunks.clear();
        self.end = self.cursor();
        (self.at, self.until, self.fetched) = (0, 0, self.end);
        self.current = None;
        drop_contained(self.replayed.take());
        if self.seat.is_cut() {
            self.replay.drain(..).for_each(drop_contained);
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Reader<T> {
    fn drop(&mut self) {
        self.ring.leave(&self.seat);
        self.let_go();
        self.replay.drain(..).for_each(drop_contained);
    }
}
