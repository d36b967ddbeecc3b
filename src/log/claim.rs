//! Which partition a worker reads next, and what it finds there.

use super::board::{Board, Phase};
use super::chunk::Places;
use super::core::GroupCore;
use super::durable::{ReadError, is_end_of_file};
use super::lane::Lane;
use super::partition::Located;
use super::record::Record;
use super::segment::Segment;
use crate::clock::Timestamp;
use crate::outcome::drop_contained;
use crate::runtime::Event;
use std::sync::Arc;
use std::time::Duration;

/// Until a file that could not be read is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a member takes at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub(super) max: usize,
    pub(super) linger: Duration,
}

impl Want {
    pub(super) const ONE: Self = Self { max: 1, linger: Duration::ZERO };
}

/// A partition in a worker's hand.
pub(super) struct Claim<T> {
    pub(super) partition: usize,
    pub(super) epoch: u64,
    pub(super) found: Found<T>,
}

pub(super) enum Found<T> {
    /// The first of at most so many records.
    Records { first: Record<T>, most: usize },
    /// Nothing before what the group was reading is dropped, with no lock held: it is through with it.
    Through(Arc<Segment<T>>),
    /// Nothing before these have been read from the file, each in its partition.
    Unread(Vec<(usize, Places)>),
    /// Retention was faster.
    Trimmed { asked: u64, oldest: u64 },
    /// Records that were given up on still have to become dead letters.
    GivenUp,
}

/// Why there is nothing to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    Interrupted,
    Closed,
}

/// What becomes of a partition that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Ready,
    RestUntil(Timestamp),
}

pub(super) enum Prepared<T> {
    Take(Claim<T>),
    AtEnd,
    Rest { until: Timestamp, wanted: u64 },
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    /// The next partition with something to read; waits for one.
    pub(super) fn claim(&self, want: Want, go_on: &dyn Fn() -> bool) -> Result<Claim<T>, Nothing> {
        let mut board = self.board.lock();
        loop {
            if !go_on() {
                self.pass_on(&board);
                return Err(Nothing::Interrupted);
            }
            if let Some(claim) = self.claim_ready(&mut board, want) {
                return Ok(claim);
            }
            if board.closed {
                return Err(Nothing::Closed);
            }
            if std::mem::take(&mut board.moved) {
                drop(board);
                self.shelf.runtime.note_progress();
                board = self.board.lock();
                continue;
            }
            board.sleeping += 1;
            self.awake.wait(&mut board);
            board.sleeping -= 1;
        }
    }

    pub(super) fn try_claim(&self, want: Want) -> Option<Claim<T>> {
        self.claim_ready(&mut self.board.lock(), want)
    }

    fn claim_ready(&self, board: &mut Board, want: Want) -> Option<Claim<T>> {
        if board.paused {
            return None;
        }
        while let Some(partition) = board.next_ready() {
            match self.prepare(board, partition, want) {
                Prepared::Take(claim) => {
                    board.phases[partition] = Phase::Held(0);
                    return Some(claim);
                }
                Prepared::AtEnd => {}
                Prepared::Rest { until, wanted } => self.rest(board, partition, until, wanted),
            }
        }
        None
    }

    /// Gives a partition back.
    pub(super) fn release(&self, partition: usize, next: Next) {
        let mut board = self.board.lock();
        match next {
            Next::Ready => board.make_ready(partition),
            Next::RestUntil(until) => self.rest(&mut board, partition, until, 0),
        }
        // Whoever gives one back takes the next itself, or stands back.
        if board.ready() > 1 {
            self.pass_on(&board);
        }
        drop(board);
        self.shelf.runtime.note_progress();
    }

    /// Looks at what is next in a partition.
    pub(super) fn prepare(&self, board: &mut Board, partition: usize, want: Want) -> Prepared<T> {
        let store = self.shelf.partition(partition);
        let mut lane = self.lane(partition);
        let claim = |epoch, found| Prepared::Take(Claim { partition, epoch, found });
        loop {
            if lane.given_up.is_some() {
                return claim(lane.epoch, Found::GivenUp);
            }
            match self.shelf.locate(partition, lane.position) {
                // If something came since, look again.
                Located::End => {
                    if let Some(before) = lane.ahead.take() {
                        return claim(lane.epoch, Found::Through(before));
                    }
                    if !store.watch(lane.position) {
                        return Prepared::AtEnd;
                    }
                }
                Located::Gap(end) => {
                    lane.pass_gap(end);
                    self.note_committed(partition, &lane);
                    board.moved = true;
                }
                Located::Trimmed { oldest } => {
                    return claim(lane.epoch, Found::Trimmed { asked: lane.position, oldest });
                }
                Located::Unread(places) => return claim(lane.epoch, Found::Unread(vec![(partition, places)])),
                Located::At { segment, index, end } => {
                    if lane.ahead.as_ref().is_some_and(|ahead| !Arc::ptr_eq(ahead, &segment)) {
                        // Kept, since nobody else may have it any more, and destructors are no business of a lock.
                        let kept = Some(segment).filter(|_| self.shelf.limits.keeps_window());
                        let before = std::mem::replace(&mut lane.ahead, kept).expect("just seen");
                        return claim(lane.epoch, Found::Through(before));
                    }
                    if self.settings.replay.is_paced() && board.anchor.is_none() {
                        let unread = self.unread_elsewhere(partition);
                        if !unread.is_empty() {
                            return claim(lane.epoch, Found::Unread(unread));
                        }
                    }
                    if !lane.failing.is_empty() {
                        lane.forget_failures_before(segment.offset_of(index));
                    }
                    match self.delay(board, &mut lane, partition, (&segment, index, end), want) {
                        // To be woken before its time, it has to hear of appends.
                        Some((_, wanted)) if wanted > 0 && store.watch(end) => continue,
                        Some((until, wanted)) => {
                            if self.shelf.limits.keeps_window() {
                                lane.ahead.get_or_insert(segment);
                            }
                            return Prepared::Rest { until, wanted };
                        }
                        None => {}
                    }
                    return claim(lane.epoch, self.found(&mut lane, partition, segment, index, want));
                }
            }
        }
    }

    fn found(
        &self,
        lane: &mut Lane<T>,
        partition: usize,
        segment: Arc<Segment<T>>,
        index: usize,
        want: Want,
    ) -> Found<T> {
        lane.linger_until = None;
        let max = if self.settings.replay.is_paced() { 1 } else { want.max };
        let most = lane.failed_together().map_or(max, |failed| failed.min(max));
        let attempt = lane.attempts_at(segment.offset_of(index)) + 1;
        Found::Records { first: Record::new(segment, index, partition, attempt), most }
    }

    /// Whether the record has to wait, and until when or how many are there: for the pace of a replay, or for
    /// more of its batch.
    fn delay(
        &self,
        board: &mut Board,
        lane: &mut Lane<T>,
        partition: usize,
        (segment, index, end): (&Segment<T>, usize, u64),
        want: Want,
    ) -> Option<(Timestamp, u64)> {
        if !lane.failing.is_empty() {
            return None;
        }
        if self.settings.replay.is_paced() {
            let published = segment.get(index).map_or(Timestamp::default(), |message| message.published_at);
            let due = self.due(board, partition, published);
            if due > self.now() {
                return Some((due, 0));
            }
        }
        let wanted = lane.position.saturating_add(want.max as u64);
        if want.linger.is_zero() || board.draining || end >= wanted {
            return None;
        }
        let now = self.now();
        let until = *lane.linger_until.get_or_insert_with(|| now.after(want.linger));
        (until > now).then_some((until, wanted))
    }

    /// When a record is due that was published at that time.
    fn due(&self, board: &mut Board, partition: usize, published: Timestamp) -> Timestamp {
        let (began, first) = *board.anchor.get_or_insert_with(|| {
            let others = (0..self.width()).filter(|&other| other != partition);
            let first_of = |other| {
                let position = self.lane(other).position;
                match self.shelf.locate(other, position) {
                    Located::At { segment, index, .. } => segment.get(index).map(|message| message.published_at),
                    _ => None,
                }
            };
            (self.now(), others.filter_map(first_of).min().map_or(published, |other| other.min(published)))
        });
        began.after(self.settings.replay.stretched(published.since(first)))
    }

    /// Whose first records have to be seen before a paced replay can begin.
    #[cold]
    fn unread_elsewhere(&self, partition: usize) -> Vec<(usize, Places)> {
        let others = (0..self.width()).filter(|&other| other != partition);
        let unread = |other| match self.shelf.locate(other, self.lane(other).position) {
            Located::Unread(places) => Some((other, places)),
            _ => None,
        };
        others.filter_map(unread).collect()
    }

    /// Reads from the file; whether it could. No lock may be held: the user's codec runs here.
    pub(super) fn read_all(&self, chunks: &[(usize, Places)]) -> bool {
        chunks.iter().all(|&(partition, places)| self.read_ahead(partition, places))
    }

    #[cold]
    fn read_ahead(&self, partition: usize, places: Places) -> bool {
        let epoch = self.lane(partition).epoch;
        match self.shelf.fetch(partition, places) {
            Ok(None) => true,
            Ok(Some(segment)) => {
                let (before, trouble) = {
                    let mut lane = self.lane(partition);
                    (lane.ahead.replace(segment), lane.trouble.take())
                };
                drop_contained(before);
                self.tell_read_again(partition, trouble);
                true
            }
            Err(error) => {
                self.note_not_read(partition, epoch, &error);
                false
            }
        }
    }

    /// Says so, unless it could not be read before, or the group goes on elsewhere since.
    fn note_not_read(&self, partition: usize, epoch: u64, error: &ReadError) {
        if self.is_closed() || is_end_of_file(error) {
            return; // and the file has been closed with the broker
        }
        let error = error.to_string();
        let began = {
            let mut lane = self.lane(partition);
            lane.epoch == epoch && lane.trouble.replace(error.clone()).is_none()
        };
        if began {
            let queue = self.full_name.to_string();
            self.shelf.runtime.tell(|| Event::NotRead { queue, partition: Some(partition), error });
        }
    }

    /// What could not be read can be, or need not be any more. No lock may be held.
    pub(super) fn tell_read_again(&self, partition: usize, trouble: Option<String>) {
        if trouble.is_some() {
            let queue = self.full_name.to_string();
            self.shelf.runtime.tell(|| Event::ReadAgain { queue, partition: Some(partition) });
        }
    }

    /// What becomes of a partition whose records were to be read from the file.
    pub(super) fn after_reading(&self, could: bool) -> Next {
        if could { Next::Ready } else { Next::RestUntil(self.now().after(READ_AGAIN)) }
    }

    /// Goes on at the oldest record, and says so.
    pub(super) fn skip_trimmed(&self, claim: &Claim<T>, asked: u64, oldest: u64) {
        let mut lane = self.lane(claim.partition);
        if lane.epoch == claim.epoch {
            lane.counts.skipped += oldest.saturating_sub(asked);
            let left = lane.move_to(oldest);
            self.note_committed(claim.partition, &lane);
            drop(lane);
            self.tell_read_again(claim.partition, left.settle());
            let (group, partition) = (self.full_name.to_string(), claim.partition);
            self.shelf.runtime.tell(|| Event::LogTrimmed { group, partition, asked, oldest });
        } else {
            drop(lane);
        }
        self.release(claim.partition, Next::Ready);
    }

    /// The record behind this one, as it is delivered for the first time; `false` if there is none now.
    #[inline]
    pub(super) fn advance(&self, record: &mut Record<T>) -> bool {
        record.advance() || self.next_segment(record)
    }

    fn next_segment(&self, record: &mut Record<T>) -> bool {
        let (partition, next) = (record.partition(), record.offset() + 1);
        if !self.shelf.partition(partition).reaches(next) {
            return false;
        }
        loop {
            match self.shelf.locate(partition, next) {
                Located::At { segment, index, .. } => {
                    *record = Record::new(segment, index, partition, 1);
                    return true;
                }
                Located::Unread(places) if self.read_ahead(partition, places) => {}
                _ => return false,
            }
        }
    }

    /// Up to `most` records of one partition, from `first` on.
    pub(super) fn collect(&self, first: Record<T>, most: usize) -> Vec<Record<T>> {
        let again = first.attempt() > 1;
        let mut next = first.clone();
        let mut batch = vec![first];
        while batch.len() < most && self.advance(&mut next) {
            batch.push(next.clone());
        }
        if again {
            let lane = self.lane(next.partition());
            batch.iter_mut().for_each(|record| record.set_attempt(lane.attempts_at(record.offset()) + 1));
        }
        batch
    }
}
