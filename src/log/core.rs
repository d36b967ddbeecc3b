//! A group: where it stands, what it waits for, and how it comes to rest.
//!
//! A partition is claimed by one member at a time. A worker claims the next one that has something to read,
//! handles some records and gives it back, so that members who come or go change nothing but the number of
//! partitions in hand.
//!
//! Locks are taken in the order `board`, lane, partition. No user code runs under any of them.

use super::board::{Board, Phase};
use super::durable::Marks;
use super::lane::Lane;
use super::partition::Gate;
use super::replay::Replay;
use super::shelf::{Floors, Follower, Shelf};
use crate::clock::Timestamp;
use crate::dead_letter::DeadLetterSink;
use crate::error::LogError;
use crate::retry::Retry;
use crate::runtime::Registration;
use crate::scheduler::Timed;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Padded};
use std::sync::{Arc, Weak};

pub(crate) struct GroupCore<T> {
    pub(crate) name: Arc<str>,
    /// As `log/group`.
    pub(crate) full_name: Arc<str>,
    pub(crate) shelf: Arc<Shelf<T>>,
    pub(crate) settings: GroupSettings,
    pub(crate) dead: Arc<dyn DeadLetterSink<T>>,
    /// Consumers that are neither stopped nor paused.
    pub(crate) consumers: AtomicUsize,
    /// As on the board, for workers in the middle of a run.
    paused: AtomicBool,
    lanes: Box<[Padded<Mutex<Lane<T>>>]>,
    /// What is committed in each lane, written under its lock.
    floors: Floors,
    /// The same in the file of a durable log.
    marks: Option<Marks>,
    pub(super) board: Mutex<Board>,
    /// Waited on with the board.
    pub(super) awake: Condvar,
    pub(super) timing: Registration,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupSettings {
    pub(crate) retry: Retry,
    pub(crate) replay: Replay,
    pub(crate) dead_letters: Option<Arc<str>>,
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    pub(super) fn new(
        name: Arc<str>,
        shelf: Arc<Shelf<T>>,
        settings: GroupSettings,
        dead: Arc<dyn DeadLetterSink<T>>,
        positions: Vec<u64>,
        marks: Option<Marks>,
    ) -> Arc<Self> {
        let group = Arc::new_cyclic(|me: &Weak<Self>| Self {
            full_name: format!("{}/{name}", shelf.name).into(),
            name,
            settings,
            dead,
            marks,
            consumers: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            board: Mutex::new(Board::new(positions.len())),
            floors: positions.iter().map(|&position| Padded(AtomicU64::new(position))).collect(),
            lanes: positions.into_iter().map(|position| Padded(Mutex::new(Lane::new(position)))).collect(),
            awake: Condvar::new(),
            timing: Registration::new(&shelf.runtime, me.clone()),
            shelf,
        });
        let follower: Weak<Self> = Arc::downgrade(&group);
        group.shelf.follow(follower, Arc::clone(&group.floors));
        group
    }

    pub(super) fn lane(&self, partition: usize) -> MutexGuard<'_, Lane<T>> {
        self.lanes[partition].lock()
    }

    /// Called under the lane's lock whenever something is committed there.
    #[inline]
    pub(super) fn note_committed(&self, partition: usize, lane: &Lane<T>) {
        self.floors[partition].store(lane.committed, Ordering::Release);
        if let Some(marks) = &self.marks {
            marks.note(partition, lane.committed);
        }
    }

    pub(super) fn width(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.shelf.runtime.clock.now()
    }

    // ---- positions -------------------------------------------------------------------------------

    pub(super) fn commit(&self, partition: usize, offset: u64) -> Result<(), LogError> {
        let (_, end) = self.range(partition)?;
        if offset >= end {
            return Err(LogError::BeyondEnd { partition, asked: offset, end });
        }
        let mut board = self.board.lock();
        if board.removed {
            return Err(LogError::Removed);
        }
        let mut lane = self.lane(partition);
        lane.commit(offset + 1);
        self.note_committed(partition, &lane);
        let free = lane.is_committed() && matches!(board.phases[partition], Phase::Held(1..));
        drop(lane);
        if free {
            board.make_ready(partition);
            self.pass_on(&board);
        }
        drop(board);
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
        if board.removed {
            return Err(LogError::Removed);
        }
        let mut lane = self.lane(partition);
        let left = lane.move_to(offset);
        self.note_committed(partition, &lane);
        drop(lane);
        board.anchor = None;
        // A reader that holds it has nothing left to commit; a worker gives it back soon.
        if board.phases[partition] != Phase::Held(0) {
            board.make_ready(partition);
        }
        self.awake.notify_all();
        drop(board);
        let trouble = left.settle();
        self.shelf.runtime.note_progress();
        self.tell_read_again(partition, trouble);
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

    // ---- members ---------------------------------------------------------------------------------

    /// Counts a consumer or a reader in; its number, if readers have one.
    pub(super) fn enter(&self) -> Result<u64, LogError> {
        let mut board = self.board.lock();
        if board.removed {
            return Err(LogError::Removed);
        }
        board.members += 1;
        board.readers += 1;
        Ok(board.readers)
    }

    pub(super) fn leave(&self) {
        self.board.lock().members -= 1;
    }

    pub(super) fn is_removed(&self) -> bool {
        self.board.lock().removed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.board.lock().closed
    }

    /// Has another member look for what this one leaves.
    pub(super) fn pass_on(&self, board: &Board) {
        if board.sleeping > 0 && board.ready() > 0 {
            self.awake.notify_one();
        }
    }

    /// What the calling member could take next is for others: it leaves, or pauses.
    pub(super) fn stand_back(&self) {
        self.pass_on(&self.board.lock());
    }

    pub(super) fn rest(&self, board: &mut Board, partition: usize, until: Timestamp, wanted: u64) {
        board.rest(partition, until, wanted);
        self.timing.arm(until);
    }

    // ---- removing --------------------------------------------------------------------------------

    /// Takes no more members and lets go of what it holds; why it cannot.
    pub(super) fn remove(&self) -> Result<(), String> {
        {
            let mut board = self.board.lock();
            if board.removed {
                return Err("it is being removed".into());
            }
            if board.members > 0 {
                return Err(format!("it has {} running: stop its consumers, drop its readers", members(board.members)));
            }
            board.removed = true;
        }
        let waiting = (0..self.width()).filter(|&partition| !self.bury_rest(partition)).count();
        if waiting > 0 {
            self.board.lock().removed = false;
            let dead = self.dead.name();
            return Err(format!("in {waiting} of its partitions, records given up on find no room in queue {dead:?}"));
        }
        self.shelf.unfollow(&self.floors);
        Ok(())
    }

    // ---- coming to rest --------------------------------------------------------------------------

    pub(super) fn pause(&self, paused: bool) {
        let mut board = self.board.lock();
        board.paused = paused;
        self.paused.store(paused, Ordering::Release);
        self.awake.notify_all();
        drop(board);
        self.shelf.runtime.note_progress();
    }

    #[inline]
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(super) fn wake_everyone(&self) {
        drop(self.board.lock());
        self.awake.notify_all();
    }

    pub(super) fn shut(&self, gate: Gate) {
        let mut board = self.board.lock();
        board.draining |= gate != Gate::Open;
        board.closed |= gate == Gate::Closed;
        for partition in 0..self.width() {
            // Batches are handed out as they are from now on.
            if board.draining && matches!(board.phases[partition], Phase::Resting(_, 1..)) {
                board.make_ready(partition);
            }
        }
        self.awake.notify_all();
    }

    /// Partitions that somebody still works on or could by `horizon`, and a number that changes whenever the
    /// group moves.
    pub(super) fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let mut board = self.board.lock();
        let consumed = self.consumers.load(Ordering::SeqCst) > 0 && !board.paused;
        let due = board.due_by(horizon);
        let (mut busy, mut moves) = (0, 0_u64);
        for partition in 0..self.width() {
            let lane = self.lane(partition);
            let counts = lane.counts.delivered + lane.counts.retried;
            moves = moves.wrapping_add(lane.position + lane.committed + counts).wrapping_add(lane.epoch << 40);
            let behind = lane.position < self.shelf.partition(partition).range().1;
            drop(lane);
            busy += u64::from(match board.phases[partition] {
                Phase::Held(0) => true,
                Phase::Held(_) => false,
                Phase::Resting(..) => consumed && due.contains(&partition),
                Phase::Idle | Phase::Ready => consumed && behind,
            });
        }
        (busy, moves)
    }

    /// Partitions at rest, and in the hands of workers.
    pub(super) fn in_hand(&self) -> (u64, u64) {
        let board = self.board.lock();
        let resting = board.count(|phase| matches!(phase, Phase::Resting(..)));
        (resting, board.count(|phase| matches!(phase, Phase::Held(0))))
    }
}

fn members(n: usize) -> String {
    if n == 1 { "1 member".into() } else { format!("{n} members") }
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
            Phase::Resting(_, wanted @ 1..) => {
                let store = self.shelf.partition(partition);
                loop {
                    let end = store.range().1;
                    if end >= wanted {
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
}

impl<T: Send + Sync + 'static> Timed for GroupCore<T> {
    /// A retry, a batch, or the pace of a replay is due; or a reader's time is up.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let mut board = self.board.lock();
        let next = board.wake_due(now);
        drop(board);
        self.awake.notify_all();
        self.shelf.runtime.note_progress();
        next
    }
}
