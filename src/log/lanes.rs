//! Who of a group reads which partition, and how far the group has come in each.
//!
//! A partition is claimed by one member at a time. A worker claims the next one that has something to read,
//! handles some records and gives it back, so that members who come or go change nothing but the number of
//! partitions in hand.
//!
//! | a partition is | because |
//! |---|---|
//! | idle | the group is at its end; the log rings at the next append |
//! | ready | there may be something to read |
//! | held | a member is reading it |
//! | resting | a failed record waits for its retry, a batch for its linger, a replay for its pace |
//!
//! Locks are taken in the order `board`, lane, partition. No user code runs under any of them.

use super::partition::Located;
use super::record::Record;
use super::replay::Replay;
use super::segment::Segment;
use super::shelf::{Follower, Shelf};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetterSink, Reason};
use crate::error::LogError;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::retry::Retry;
use crate::runtime::{Event, Registration};
use crate::scheduler::{DelayHeap, DelayKey, Timed};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Padded};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(crate) struct GroupCore<T> {
    pub(crate) name: Arc<str>,
    /// As `log/group`.
    pub(crate) full_name: Arc<str>,
    pub(crate) shelf: Arc<Shelf<T>>,
    pub(crate) settings: GroupSettings,
    pub(crate) dead: Arc<dyn DeadLetterSink<T>>,
    /// Consumers that are neither stopped nor paused.
    pub(crate) consumers: AtomicUsize,
    lanes: Box<[Padded<Mutex<Lane<T>>>]>,
    board: Mutex<Board>,
    /// Waited on with the board.
    awake: Condvar,
    pub(super) timing: Registration,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupSettings {
    pub(crate) retry: Retry,
    pub(crate) replay: Replay,
    pub(crate) dead_letters: Option<Arc<str>>,
}

/// Failed records with their offsets, as they would become dead letters.
pub(super) type Letters<T> = VecDeque<(u64, Message<T>)>;

/// How far a group has come in one partition.
pub(super) struct Lane<T> {
    /// The next offset to hand out.
    pub(super) position: u64,
    pub(super) committed: u64,
    /// Raised by a seek: what was claimed before it does not count any more.
    pub(super) epoch: u64,
    /// Records from the position on that have failed, by offset.
    pub(super) failing: Letters<T>,
    /// They have been given up on, and the dead-letter queue was full.
    pub(super) given_up: Option<Reason>,
    /// Failed records that compaction has removed; payloads' destructors do not run under the lock.
    outdated: Letters<T>,
    linger_until: Option<Timestamp>,
    pub(super) counts: LaneCounts,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LaneCounts {
    pub(crate) delivered: u64,
    pub(crate) retried: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) discarded: u64,
    pub(crate) panicked: u64,
    pub(crate) skipped: u64,
}

struct Board {
    phases: Box<[Phase]>,
    ready: VecDeque<usize>,
    resting: DelayHeap<usize>,
    paused: bool,
    closed: bool,
    /// Batches are not waited for.
    draining: bool,
    sleeping: usize,
    /// The first record of a paced replay: when it was handed out and when it was published.
    anchor: Option<(Timestamp, Timestamp)>,
    next_reader: u64,
    /// A position has moved without a record, which somebody may be waiting for.
    moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ready,
    /// By a reader of that number; 0 is a worker.
    Held(u64),
    /// Until it is due, or (if not 0) until so many records are there.
    Resting(DelayKey, u64),
}

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

enum Prepared<T> {
    Take(Claim<T>),
    AtEnd,
    Rest { until: Timestamp, wanted: u64 },
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    pub(super) fn new(
        name: Arc<str>,
        shelf: Arc<Shelf<T>>,
        settings: GroupSettings,
        dead: Arc<dyn DeadLetterSink<T>>,
        positions: Vec<u64>,
    ) -> Arc<Self> {
        let group = Arc::new_cyclic(|me: &Weak<Self>| Self {
            full_name: format!("{}/{name}", shelf.name).into(),
            name,
            settings,
            dead,
            consumers: AtomicUsize::new(0),
            board: Mutex::new(Board::new(positions.len())),
            lanes: positions.into_iter().map(|position| Padded(Mutex::new(Lane::new(position)))).collect(),
            awake: Condvar::new(),
            timing: Registration::new(&shelf.runtime, me.clone()),
            shelf,
        });
        let follower: Weak<Self> = Arc::downgrade(&group);
        group.shelf.follow(follower);
        group
    }

    pub(super) fn lane(&self, partition: usize) -> MutexGuard<'_, Lane<T>> {
        self.lanes[partition].lock()
    }

    pub(super) fn width(&self) -> usize {
        self.lanes.len()
    }

    fn now(&self) -> Timestamp {
        self.shelf.runtime.clock.now()
    }

    // ---- workers ---------------------------------------------------------------------------------

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
        while let Some(partition) = board.ready.pop_front() {
            match self.prepare(board, partition, want) {
                Prepared::Take(claim) => {
                    board.phases[partition] = Phase::Held(0);
                    return Some(claim);
                }
                Prepared::AtEnd => board.phases[partition] = Phase::Idle,
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
        // Whoever gives one back takes the next itself.
        if board.ready.len() > 1 {
            self.pass_on(&board);
        }
        drop(board);
        self.shelf.runtime.note_progress();
    }

    /// Has another member look for what this one leaves.
    fn pass_on(&self, board: &Board) {
        if board.sleeping > 0 && !board.ready.is_empty() {
            self.awake.notify_one();
        }
    }

    fn rest(&self, board: &mut Board, partition: usize, until: Timestamp, wanted: u64) {
        let key = board.resting.insert(until, partition);
        board.phases[partition] = Phase::Resting(key, wanted);
        self.timing.arm(until);
    }

    /// Looks at what is next in a partition.
    fn prepare(&self, board: &mut Board, partition: usize, want: Want) -> Prepared<T> {
        let store = self.shelf.partition(partition);
        let mut lane = self.lane(partition);
        loop {
            if lane.given_up.is_some() {
                return Prepared::Take(Claim { partition, epoch: lane.epoch, found: Found::GivenUp });
            }
            match store.locate(lane.position) {
                // If something came since, look again.
                Located::End => {
                    if !store.watch(lane.position) {
                        return Prepared::AtEnd;
                    }
                }
                Located::Gap(end) => {
                    lane.pass_gap(end);
                    board.moved = true;
                }
                Located::Trimmed { oldest } => {
                    let found = Found::Trimmed { asked: lane.position, oldest };
                    return Prepared::Take(Claim { partition, epoch: lane.epoch, found });
                }
                Located::At { segment, index, end } => {
                    lane.forget_failures_before(segment.offset_of(index));
                    if let Some(rest) = self.delay(board, &mut lane, partition, (&segment, index, end), want) {
                        match rest {
                            // To be woken before its time, it has to hear of appends.
                            Prepared::Rest { wanted, .. } if wanted > 0 && store.watch(end) => continue,
                            rest => return rest,
                        }
                    }
                    return Prepared::Take(self.claim_at(&mut lane, partition, segment, index, want));
                }
            }
        }
    }

    fn claim_at(
        &self,
        lane: &mut Lane<T>,
        partition: usize,
        segment: Arc<Segment<T>>,
        index: usize,
        want: Want,
    ) -> Claim<T> {
        lane.linger_until = None;
        let failed = lane.failing.front().map_or(0, |(_, message)| message.attempt);
        let max = if self.settings.replay.is_paced() { 1 } else { want.max };
        let most = if lane.failing.is_empty() { max } else { lane.failing.len().min(max) };
        let first = Record::new(segment, index, partition, failed + 1);
        Claim { partition, epoch: lane.epoch, found: Found::Records { first, most } }
    }

    /// Whether the record has to wait: for the pace of a replay, or for more of its batch.
    fn delay(
        &self,
        board: &mut Board,
        lane: &mut Lane<T>,
        partition: usize,
        (segment, index, end): (&Segment<T>, usize, u64),
        want: Want,
    ) -> Option<Prepared<T>> {
        if !lane.failing.is_empty() {
            return None;
        }
        if self.settings.replay.is_paced() {
            let published = segment.get(index).map_or(Timestamp::default(), |message| message.published_at);
            let due = self.due(board, partition, published);
            if due > self.now() {
                return Some(Prepared::Rest { until: due, wanted: 0 });
            }
        }
        let wanted = lane.position + want.max as u64;
        if want.linger.is_zero() || board.draining || end >= wanted {
            return None;
        }
        let now = self.now();
        let until = *lane.linger_until.get_or_insert_with(|| now.after(want.linger));
        (until > now).then_some(Prepared::Rest { until, wanted })
    }

    /// When a record is due that was published at that time.
    fn due(&self, board: &mut Board, partition: usize, published: Timestamp) -> Timestamp {
        let (began, first) = *board.anchor.get_or_insert_with(|| {
            let others = (0..self.width()).filter(|&other| other != partition);
            let first_of = |other| match self.shelf.partition(other).locate(self.lane(other).position) {
                Located::At { segment, index, .. } => segment.get(index).map(|message| message.published_at),
                _ => None,
            };
            (self.now(), others.filter_map(first_of).min().map_or(published, |other| other.min(published)))
        });
        began.after(self.settings.replay.stretched(published.since(first)))
    }

    /// Goes on at the oldest record, and says so.
    pub(super) fn skip_trimmed(&self, claim: &Claim<T>, asked: u64, oldest: u64) {
        let mut lane = self.lane(claim.partition);
        if lane.epoch == claim.epoch {
            lane.counts.skipped += oldest.saturating_sub(asked);
            let failed = lane.move_to(oldest);
            drop(lane);
            drop_contained(failed);
            let (group, partition) = (self.full_name.to_string(), claim.partition);
            self.shelf.runtime.tell(|| Event::LogTrimmed { group, partition, asked, oldest });
        } else {
            drop(lane);
        }
        self.release(claim.partition, Next::Ready);
    }

    // ---- readers by hand -------------------------------------------------------------------------

    pub(super) fn enter_reader(&self) -> u64 {
        let mut board = self.board.lock();
        board.next_reader += 1;
        board.next_reader
    }

    /// The next record for a reader: of a partition that nobody holds, else of one it holds itself.
    pub(super) fn read(&self, reader: u64) -> Result<Record<T>, LogError> {
        self.read_locked(&mut self.board.lock(), reader)
    }

    /// As [`GroupCore::read`], but sleeps until there is one, or until the deadline.
    pub(super) fn read_until(&self, reader: u64, deadline: Option<Timestamp>) -> Result<Record<T>, LogError> {
        let clock = &self.shelf.runtime.clock;
        let mut board = self.board.lock();
        loop {
            match self.read_locked(&mut board, reader) {
                Err(LogError::Empty) => {}
                found => return found,
            }
            if deadline.is_some_and(|deadline| clock.now() >= deadline) {
                return Err(LogError::TimedOut);
            }
            board.sleeping += 1;
            match deadline.map(|deadline| (deadline, clock.instant_of(deadline))) {
                Some((_, Some(instant))) => drop(self.awake.wait_until(&mut board, instant)),
                // On a manual clock the scheduler wakes it.
                Some((deadline, None)) => {
                    self.timing.arm(deadline);
                    self.awake.wait(&mut board);
                }
                None => self.awake.wait(&mut board),
            }
            board.sleeping -= 1;
        }
    }

    fn read_locked(&self, board: &mut Board, reader: u64) -> Result<Record<T>, LogError> {
        if board.paused {
            return Err(if board.closed { LogError::Closed } else { LogError::Empty });
        }
        let held: Vec<_> = (0..self.width()).filter(|&p| board.phases[p] == Phase::Held(reader)).collect();
        for &partition in &held {
            if self.lane(partition).is_committed() {
                board.make_ready(partition);
            }
        }
        while let Some(partition) = board.ready.pop_front() {
            match self.prepare(board, partition, Want::ONE) {
                Prepared::Take(claim) => return self.hand_over(board, claim, reader),
                Prepared::AtEnd => board.phases[partition] = Phase::Idle,
                Prepared::Rest { until, wanted } => self.rest(board, partition, until, wanted),
            }
        }
        for partition in held.into_iter().filter(|&p| board.phases[p] == Phase::Held(reader)).collect::<Vec<_>>() {
            if let Prepared::Take(claim) = self.prepare(board, partition, Want::ONE) {
                return self.hand_over(board, claim, reader);
            }
        }
        Err(if board.closed { LogError::Closed } else { LogError::Empty })
    }

    fn hand_over(&self, board: &mut Board, claim: Claim<T>, reader: u64) -> Result<Record<T>, LogError> {
        let partition = claim.partition;
        match claim.found {
            Found::Records { first, .. } => {
                board.phases[partition] = Phase::Held(reader);
                let mut lane = self.lane(partition);
                lane.position = first.offset() + 1;
                lane.counts.delivered += 1;
                Ok(first)
            }
            Found::Trimmed { asked, oldest } => {
                board.make_ready(partition);
                Err(LogError::Trimmed { partition, asked, oldest })
            }
            Found::GivenUp => {
                // A worker has to finish it, and will when it is due again.
                self.rest(board, partition, self.now().after(super::settle::ROOM_AGAIN), 0);
                Err(LogError::Empty)
            }
        }
    }

    /// A reader is gone: what it has not committed is for others.
    pub(super) fn leave_reader(&self, reader: u64) {
        let mut board = self.board.lock();
        for partition in 0..self.width() {
            if board.phases[partition] == Phase::Held(reader) {
                let mut lane = self.lane(partition);
                lane.position = lane.committed;
                drop(lane);
                board.make_ready(partition);
                self.pass_on(&board);
            }
        }
    }

    // ---- positions -------------------------------------------------------------------------------

    pub(super) fn commit(&self, partition: usize, offset: u64) -> Result<(), LogError> {
        let (_, end) = self.range(partition)?;
        if offset >= end {
            return Err(LogError::BeyondEnd { partition, asked: offset, end });
        }
        let mut board = self.board.lock();
        let mut lane = self.lane(partition);
        let moves = offset >= lane.committed;
        let failed = if moves { lane.commit(offset + 1) } else { Letters::new() };
        let free = lane.is_committed() && matches!(board.phases[partition], Phase::Held(1..));
        drop(lane);
        if free {
            board.make_ready(partition);
            self.pass_on(&board);
        }
        drop(board);
        drop_contained(failed);
        self.shelf.runtime.note_progress();
        Ok(())
    }

    pub(super) fn seek(&self, partition: usize, offset: u64) -> Result<(), LogError> {
        let (oldest, end) = self.range(partition)?;
        if offset > end {
            return Err(LogError::BeyondEnd { partition, asked: offset, end });
        }
        if offset < oldest {
            return Err(LogError::Trimmed { partition, asked: offset, oldest });
        }
        let mut board = self.board.lock();
        let mut lane = self.lane(partition);
        lane.epoch += 1;
        let failed = lane.move_to(offset);
        drop(lane);
        board.anchor = None;
        match board.phases[partition] {
            Phase::Resting(key, _) => {
                board.resting.cancel(key);
                board.make_ready(partition);
            }
            Phase::Idle => board.make_ready(partition),
            Phase::Ready | Phase::Held(_) => {}
        }
        self.awake.notify_all();
        drop(board);
        drop_contained(failed);
        self.shelf.runtime.note_progress();
        Ok(())
    }

    pub(super) fn range(&self, partition: usize) -> Result<(u64, u64), LogError> {
        if partition >= self.width() {
            return Err(LogError::NoSuchPartition { asked: partition, partitions: self.width() });
        }
        Ok(self.shelf.partition(partition).range())
    }

    /// How many offsets lie between what is committed and the end.
    pub(super) fn lag_of(&self, partition: usize) -> u64 {
        let committed = self.lane(partition).committed;
        let (oldest, end) = self.shelf.partition(partition).range();
        end - committed.max(oldest).min(end)
    }

    // ---- coming to rest --------------------------------------------------------------------------

    pub(super) fn pause(&self, paused: bool) {
        self.board.lock().paused = paused;
        self.awake.notify_all();
        self.shelf.runtime.note_progress();
    }

    pub(super) fn wake_everyone(&self) {
        drop(self.board.lock());
        self.awake.notify_all();
    }

    /// Batches are handed out as they are from now on.
    pub(super) fn drain(&self) {
        let mut board = self.board.lock();
        board.draining = true;
        for partition in 0..self.width() {
            if let Phase::Resting(key, 1..) = board.phases[partition] {
                board.resting.cancel(key);
                board.make_ready(partition);
            }
        }
        self.awake.notify_all();
    }

    pub(super) fn close(&self) {
        self.board.lock().closed = true;
        self.awake.notify_all();
    }

    /// Partitions that somebody still works on or could by `horizon`, and a number that changes whenever the
    /// group moves.
    pub(super) fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let mut board = self.board.lock();
        let consumed = self.consumers.load(Ordering::SeqCst) > 0 && !board.paused;
        // Also whatever is resting under the same due time.
        let due: Vec<_> = board.resting.earliest_mut(self.width()).into_iter().map(|(at, p)| (*p, at)).collect();
        let (mut busy, mut moves) = (0, 0);
        for partition in 0..self.width() {
            let lane = self.lane(partition);
            moves += lane.position + lane.committed + lane.epoch + lane.counts.delivered + lane.counts.retried;
            let behind = lane.position < self.shelf.partition(partition).range().1;
            drop(lane);
            busy += u64::from(match board.phases[partition] {
                Phase::Held(0) => true,
                Phase::Held(_) => false,
                Phase::Resting(..) => consumed && due.iter().any(|&(p, at)| p == partition && at <= horizon),
                Phase::Idle | Phase::Ready => consumed && behind,
            });
        }
        (busy, moves)
    }

    pub(super) fn in_hand(&self) -> (u64, u64) {
        let board = self.board.lock();
        let resting = board.phases.iter().filter(|phase| matches!(phase, Phase::Resting(..))).count();
        let held = board.phases.iter().filter(|phase| matches!(phase, Phase::Held(0))).count();
        (resting as u64, held as u64)
    }
}

impl<T> Lane<T> {
    fn new(position: u64) -> Self {
        Self {
            position,
            committed: position,
            epoch: 0,
            failing: Letters::new(),
            given_up: None,
            outdated: Letters::new(),
            linger_until: None,
            counts: LaneCounts::default(),
        }
    }

    fn is_committed(&self) -> bool {
        self.position == self.committed
    }

    /// There is nothing left before `end`.
    fn pass_gap(&mut self, end: u64) {
        if self.is_committed() {
            self.committed = end;
        }
        self.position = end;
    }

    /// Everything before `offset` is done; what is not to be dropped under the lock comes back.
    #[inline]
    #[must_use]
    pub(super) fn commit(&mut self, offset: u64) -> Letters<T> {
        self.committed = self.committed.max(offset);
        self.position = self.position.max(offset);
        if self.failing.is_empty() && self.outdated.is_empty() {
            return Letters::new();
        }
        self.forget_failures_before(offset);
        std::mem::take(&mut self.outdated)
    }

    fn forget_failures_before(&mut self, offset: u64) {
        let done = self.failing.partition_point(|(failed, _)| *failed < offset);
        self.outdated.extend(self.failing.drain(..done));
    }

    #[must_use]
    fn move_to(&mut self, offset: u64) -> Letters<T> {
        (self.position, self.committed, self.linger_until) = (offset, offset, None);
        self.given_up = None;
        self.outdated.append(&mut self.failing);
        std::mem::take(&mut self.outdated)
    }
}

impl Board {
    fn new(partitions: usize) -> Self {
        Self {
            phases: vec![Phase::Ready; partitions].into(),
            ready: (0..partitions).collect(),
            resting: DelayHeap::new(),
            paused: false,
            closed: false,
            draining: false,
            sleeping: 0,
            anchor: None,
            next_reader: 0,
            moved: false,
        }
    }

    fn make_ready(&mut self, partition: usize) {
        self.phases[partition] = Phase::Ready;
        self.ready.push_back(partition);
    }
}

impl<T: Send + Sync + 'static> Follower for GroupCore<T> {
    fn rung(&self, partition: usize) {
        let mut board = self.board.lock();
        match board.phases[partition] {
            Phase::Idle => {
                board.make_ready(partition);
                self.pass_on(&board);
            }
            // A reader that holds it may sleep.
            Phase::Held(1..) => _ = self.awake.notify_all(),
            Phase::Resting(key, wanted @ 1..) => {
                let store = self.shelf.partition(partition);
                loop {
                    let end = store.range().1;
                    if end >= wanted {
                        board.resting.cancel(key);
                        board.make_ready(partition);
                        return self.pass_on(&board);
                    }
                    if !store.watch(end) {
                        return;
                    }
                }
            }
            Phase::Ready | Phase::Held(_) | Phase::Resting(..) => {}
        }
    }

    fn read_up_to(&self, partition: usize) -> u64 {
        self.lane(partition).committed
    }
}

impl<T: Send + Sync + 'static> Timed for GroupCore<T> {
    /// A retry, a batch, or the pace of a replay is due; or a reader's time is up.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let mut board = self.board.lock();
        while let Some(partition) = board.resting.pop_due(now) {
            board.make_ready(partition);
        }
        let next = board.resting.earliest();
        drop(board);
        self.awake.notify_all();
        self.shelf.runtime.note_progress();
        next
    }
}
