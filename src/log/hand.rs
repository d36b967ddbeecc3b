//! What readers by hand take, and give back.

use super::board::{Board, Phase};
use super::chunk::Places;
use super::claim::{Claim, Found, Prepared, Want};
use super::core::GroupCore;
use super::record::Record;
use super::segment::Segment;
use crate::clock::Timestamp;
use crate::error::LogError;
use std::sync::Arc;

/// What a reader has come by.
enum Taken<T> {
    Record(Record<T>),
    /// Nothing yet, but what the group was reading before, to be dropped when no lock is held.
    Through(Arc<Segment<T>>),
    /// Of that partition, which the reader holds: only when these have been read from the file.
    Unread(usize, Vec<(usize, Places)>),
    /// Records that were given up on have to become dead letters before the partition goes on, and whoever
    /// comes by sees to it: there may be no worker any more.
    GivenUp(Claim<T>),
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    /// The next record for a reader: of a partition that nobody holds, else of one it holds itself.
    pub(super) fn read(&self, reader: u64) -> Result<Record<T>, LogError> {
        loop {
            let taken = self.take(&mut self.board.lock(), reader);
            match taken? {
                Taken::Record(record) => return Ok(record),
                other => self.see_to(other, reader)?,
            }
        }
    }

    /// What has to be done before there may be a record. No lock may be held.
    #[cold]
    fn see_to(&self, taken: Taken<T>, reader: u64) -> Result<(), LogError> {
        match taken {
            Taken::Record(_) => {}
            Taken::Through(segment) => drop(segment),
            Taken::GivenUp(claim) => self.release(claim.partition, self.bury_again(&claim)),
            Taken::Unread(partition, chunks) => {
                if !self.read_all(&chunks) {
                    self.let_go(partition, reader);
                    // The file is closed with the broker.
                    let closed = self.board.lock().closed;
                    return Err(if closed { LogError::Closed } else { LogError::NotRead { partition } });
                }
            }
        }
        Ok(())
    }

    /// A reader that could not get anything there holds it only if it has something in hand.
    fn let_go(&self, partition: usize, reader: u64) {
        let mut board = self.board.lock();
        if board.phases[partition] == Phase::Held(reader) && self.lane(partition).is_committed() {
            board.make_ready(partition);
            self.pass_on(&board);
        }
    }

    /// As [`GroupCore::read`], but sleeps until there is one, or until the deadline.
    pub(super) fn read_until(&self, reader: u64, deadline: Option<Timestamp>) -> Result<Record<T>, LogError> {
        let clock = &self.shelf.runtime.clock;
        let mut board = self.board.lock();
        loop {
            match self.take(&mut board, reader) {
                Ok(Taken::Record(record)) => return Ok(record),
                Ok(other) => {
                    drop(board);
                    self.see_to(other, reader)?;
                    board = self.board.lock();
                    continue;
                }
                Err(LogError::Empty) => {}
                Err(other) => return Err(other),
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

    fn take(&self, board: &mut Board, reader: u64) -> Result<Taken<T>, LogError> {
        let nothing = |board: &Board| Err(if board.closed { LogError::Closed } else { LogError::Empty });
        if board.removed || reader == 0 {
            return Err(LogError::Removed);
        }
        // Also while it is paused: what this reader is through with is no longer its own.
        for partition in board.held_by(reader) {
            if self.lane(partition).is_committed() {
                board.make_ready(partition);
            }
        }
        if board.paused {
            return nothing(board);
        }
        while let Some(partition) = board.next_ready() {
            match self.prepare(board, partition, Want::ONE) {
                Prepared::Take(claim) => return self.hand_over(board, claim, reader),
                Prepared::AtEnd => {}
                Prepared::Rest { until, wanted } => self.rest(board, partition, until, wanted),
            }
        }
        for partition in board.held_by(reader) {
            match self.prepare(board, partition, Want::ONE) {
                Prepared::Take(claim) => return self.hand_over(board, claim, reader),
                Prepared::AtEnd => {}
                // It stays with this reader, which has to be woken then.
                Prepared::Rest { until, .. } => self.timing.arm(until),
            }
        }
        nothing(board)
    }

    fn hand_over(&self, board: &mut Board, claim: Claim<T>, reader: u64) -> Result<Taken<T>, LogError> {
        let partition = claim.partition;
        match claim.found {
            Found::Records { first, .. } => {
                board.phases[partition] = Phase::Held(reader);
                self.lane(partition).hand_out(first.offset());
                Ok(Taken::Record(first))
            }
            // It may be in the middle of this one, which nobody else gets hold of meanwhile.
            Found::Unread(chunks) => {
                board.phases[partition] = Phase::Held(reader);
                Ok(Taken::Unread(partition, chunks))
            }
            Found::Through(segment) => {
                board.phases[partition] = Phase::Held(reader);
                Ok(Taken::Through(segment))
            }
            Found::Trimmed { asked, oldest } => {
                board.make_ready(partition);
                Err(LogError::Trimmed { partition, asked, oldest })
            }
            Found::GivenUp => {
                board.phases[partition] = Phase::Held(0);
                Ok(Taken::GivenUp(claim))
            }
        }
    }

    /// A reader is gone: what it has not committed is for others.
    pub(super) fn leave_reader(&self, reader: u64) {
        let mut board = self.board.lock();
        board.members -= 1;
        for partition in board.held_by(reader) {
            self.lane(partition).take_back();
            board.make_ready(partition);
            self.pass_on(&board);
        }
        // It may have been woken for something that it does not take any more.
        self.pass_on(&board);
    }
}
