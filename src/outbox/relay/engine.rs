//! What a relay does, whoever drives it: from the table to the topics, and what was handled back to the table.
//!
//! A thread of its own drives it, or a simulation. It hears of commits, of settled messages and of orders at one
//! place, the [`Desk`]. Whatever fails is tried again after a pause that grows; nothing is forgotten meanwhile,
//! since a row stays as it is until it is marked.
//!
//! Polls and pauses go by a clock, which may be virtual. A lease is a promise to other processes: it always holds
//! in real time.

use super::desk::{Call, Desk, Found, Orders};
use super::line::{Line, Published};
use super::stats::Board;
use super::{Connect, Settings};
use crate::clock::{Clock, Timestamp};
use crate::outbox::error::OutboxError;
use crate::outbox::table::{Lease, Table};
use crate::random::Random;
use crate::runtime::{Event, Runtime};
use crate::track::Ended;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Engine {
    pub(super) desk: Arc<Desk>,
    pub(super) board: Arc<Board>,
    pub(super) runtime: Arc<Runtime>,
    /// The simulation's, or the real one.
    pub(super) clock: Arc<Clock>,
    pub(super) settings: Settings,
    pub(super) connect: Connect,
    pub(super) table: Option<Box<dyn Table>>,
    pub(super) lines: Vec<Line>,
    pub(super) owner: String,
    /// Handled and not marked yet.
    pub(super) done: Vec<i64>,
    pub(super) dead: Vec<(i64, String)>,
    pub(super) rhythm: Rhythm,
    pub(super) chance: Random,
}

/// When the next of each duty is.
pub(super) struct Rhythm {
    pub(super) poll_at: Timestamp,
    pub(super) prune_at: Timestamp,
    /// After an error.
    pub(super) retry_at: Option<Timestamp>,
    pub(super) errors: u32,
    /// A commit has been announced that is not visible yet: so many looks to go.
    expectant: u32,
    /// Something may be there to fetch.
    pub(super) look: bool,
}

/// How often a commit that was announced is looked for, after 0.5 ms and then each time twice as long.
const LOOKS: u32 = 8;
const FIRST_LOOK: Duration = Duration::from_micros(500);
/// The longest single wait for room, so that other topics, leases and orders get their turn.
const PATIENCE: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Waiting costs a simulation nothing, but each attempt does: what does not end soon is asked for seldom.
const LONGEST_VIRTUAL_PAUSE: Duration = Duration::from_secs(20 * 60);
const PRUNE_EVERY: Duration = Duration::from_secs(10);

impl Rhythm {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { poll_at: now, prune_at: now, retry_at: None, errors: 0, expectant: 0, look: true }
    }
}

impl Engine {
    pub(super) fn has_unmarked(&self) -> bool {
        !self.done.is_empty() || !self.dead.is_empty()
    }

    pub(super) fn take_note(&mut self, found: Found) {
        let now = self.clock.now();
        if let Some(call) = found.call {
            self.rhythm.look = true;
            if call == Call::Committing {
                self.rhythm.expectant = LOOKS;
                self.rhythm.poll_at = now.after(FIRST_LOOK);
            }
        }
        for (row, how) in found.ended {
            let Some(line) = self.lines.iter_mut().find(|line| line.in_flight.contains_key(&row)) else { continue };
            line.in_flight.remove(&row);
            match how {
                Ended::Settled => {
                    self.done.push(row);
                    line.settled.insert(row);
                }
                Ended::Failed(reason) => {
                    self.dead.push((row, reason));
                    line.settled.insert(row);
                }
                // It is still in the table, for the next process or the next look.
                Ended::Lost => {
                    line.more = true;
                    line.paused_until = Some(now.after(FIRST_PAUSE));
                }
            }
        }
    }

    /// Whether it could fetch more rows now than it has at hand.
    pub(super) fn look_for_more(&mut self) {
        // Simulated, it has a lease for as long as it wants one, and renews it when it has something to publish.
        let (now, window, simulated) = (Instant::now(), self.settings.window, self.runtime.is_simulated());
        let may_fetch = |line: &Line| line.has_room(window) && (simulated || line.holds_lease(now));
        self.rhythm.look |= self.lines.iter().any(|line| line.more && may_fetch(line));
    }

    pub(super) fn connect(&mut self) -> Result<(), OutboxError> {
        if self.table.is_none() {
            let mut table = (self.connect)()?;
            table.check()?;
            self.table = Some(table);
            self.rhythm.look = true;
        }
        Ok(())
    }

    fn table(&mut self) -> &mut dyn Table {
        &mut **self.table.as_mut().expect("connected at the beginning of the pass")
    }

    /// Writes down what has been handled.
    pub(super) fn mark(&mut self) -> Result<(), OutboxError> {
        if !self.done.is_empty() {
            let (rows, delete) = (std::mem::take(&mut self.done), self.settings.keep.is_zero());
            let marked = self.table().done(&rows, delete);
            if let Err(error) = marked {
                self.done = rows;
                return Err(error);
            }
            self.board.done.add(rows.len() as u64);
            self.forget(rows.into_iter());
        }
        if !self.dead.is_empty() {
            let rows = std::mem::take(&mut self.dead);
            if let Err(error) = self.table().dead(&rows) {
                self.dead = rows;
                return Err(error);
            }
            self.board.dead.add(rows.len() as u64);
            for (row, reason) in &rows {
                self.runtime.tell(|| Event::OutboxRowDead {
                    outbox: self.settings.name.clone(),
                    row: *row,
                    reason: reason.clone(),
                });
            }
            self.forget(rows.into_iter().map(|(row, _)| row));
        }
        Ok(())
    }

    fn forget(&mut self, rows: impl Iterator<Item = i64>) {
        for row in rows {
            self.lines.iter_mut().for_each(|line| _ = line.settled.remove(&row));
        }
    }

    /// Takes or prolongs the leases whose time has come; one that somebody else has, and for how long.
    pub(super) fn renew_leases(&mut self) -> Result<Option<(String, Duration)>, OutboxError> {
        let (length, simulated) = (self.settings.lease, self.runtime.is_simulated());
        let Self { lines, table, owner, .. } = self;
        let table = table.as_mut().expect("connected at the beginning of the pass");
        let mut taken = None;
        for line in lines {
            let now = Instant::now();
            // Only who waits in real time can wait for another's to end.
            let may_wait = line.holds_lease(now) || line.held.is_none() && !simulated;
            if now < line.renew_at && may_wait {
                continue;
            }
            match table.lease(line.target.topic(), owner, length)? {
                Lease::Held { term } => {
                    if line.held.is_none_or(|(_, held)| held != term) {
                        // Others may have published since what was fetched was fetched.
                        line.pending.clear();
                        self.rhythm.look = true;
                    }
                    // Reckoned from before it was asked for, and given up a little early.
                    line.held = Some((now + length - length / 8, term));
                    line.renew_at = now + length / 3;
                }
                Lease::Taken(left) => {
                    line.pending.clear();
                    line.held = None;
                    line.renew_at = now + left.min(length / 3) + Duration::from_millis(1);
                    taken = taken.or_else(|| Some((line.target.topic().to_owned(), left)));
                }
            }
        }
        Ok(taken)
    }

    pub(super) fn look_for_changes(&mut self) -> Result<(), OutboxError> {
        let now = self.clock.now();
        if self.rhythm.look || now < self.rhythm.poll_at {
            return Ok(());
        }
        if self.table().has_changed()? {
            self.rhythm.look = true;
            self.rhythm.expectant = 0;
        }
        self.rhythm.expectant = self.rhythm.expectant.saturating_sub(1);
        self.rhythm.poll_at = self.next_poll(now);
        Ok(())
    }

    /// Until when it sleeps if nothing happens before.
    fn next_poll(&self, now: Timestamp) -> Timestamp {
        match self.rhythm.expectant {
            0 => now.after(self.settings.poll_every(self.board.is_listening())),
            left => now.after(FIRST_LOOK * 2_u32.pow(LOOKS - left)),
        }
    }

    /// Reads rows of all topics that have room for them.
    pub(super) fn fetch(&mut self) -> Result<(), OutboxError> {
        let Self { lines, table, settings, rhythm, .. } = self;
        let table = table.as_mut().expect("connected at the beginning of the pass");
        for line in lines {
            if !line.holds_lease(Instant::now()) {
                continue;
            }
            if !line.has_room(settings.window) {
                line.more = true;
                continue;
            }
            let held = line.rows_at_hand();
            let limit = (settings.window - line.in_flight.len() - line.settled.len()).min(settings.batch);
            let rows = table.fetch(line.target.topic(), &held, limit)?;
            line.more = rows.len() == limit;
            line.pending.extend(rows);
        }
        rhythm.look = false;
        Ok(())
    }

    /// Publishes the next row of a topic; whether that went on, or `None` if there is none to publish now.
    pub(super) fn publish_one(&mut self, i: usize) -> Option<bool> {
        let line = &mut self.lines[i];
        let now = self.clock.now();
        let (lease, _) = line.held.filter(|_| line.holds_lease(Instant::now()) && !line.is_paused(now))?;
        let row = line.pending.front()?;
        let (id, created) = (row.id, row.created());
        // Before it is published: it may be settled at once.
        line.in_flight.insert(id, created);
        let published = line.target.publish(row, &self.desk, lease, PATIENCE);
        line.full = published == Published::Full;
        if published == Published::Taken {
            line.pending.pop_front();
            (line.paused_until, line.refusals) = (None, 0);
            self.board.relayed.add(1);
            if self.settings.done_when_published {
                line.in_flight.remove(&id);
                line.settled.insert(id);
                self.done.push(id);
            }
            return Some(true);
        }
        line.in_flight.remove(&id);
        match published {
            Published::Impossible(reason) => {
                line.pending.pop_front();
                line.settled.insert(id);
                self.dead.push((id, reason));
                Some(true)
            }
            Published::Refused(Some(retry_in), words) => {
                line.paused_until = Some(now.after(retry_in));
                self.board.trouble(words);
                Some(false)
            }
            Published::Refused(None, words) => {
                line.refusals += 1;
                let refusals = line.refusals;
                let until = now.after(self.pause(refusals));
                self.lines[i].paused_until = Some(until);
                self.board.trouble(words);
                Some(false)
            }
            // No poll brings it back there.
            Published::TooLate if self.runtime.is_simulated() => {
                line.paused_until = Some(now.after(FIRST_PAUSE));
                Some(false)
            }
            Published::Full | Published::TooLate | Published::Taken => Some(false),
        }
    }

    pub(super) fn prune(&mut self) -> Result<(), OutboxError> {
        let now = self.clock.now();
        if self.settings.keep.is_zero() || now < self.rhythm.prune_at {
            return Ok(());
        }
        let keep = self.settings.keep;
        let more = self.table().prune(keep)?;
        let pause = PRUNE_EVERY.min(keep.max(Duration::from_millis(100)));
        self.rhythm.prune_at = if more { now } else { now.after(pause) };
        Ok(())
    }

    pub(super) fn is_resting_after_error(&self) -> bool {
        self.rhythm.retry_at.is_some_and(|at| self.clock.now() < at)
    }

    pub(super) fn recovered(&mut self) {
        if std::mem::take(&mut self.rhythm.errors) > 0 {
            self.rhythm.retry_at = None;
            self.board.recovered();
            self.runtime.tell(|| Event::OutboxRecovered { outbox: self.settings.name.clone() });
        }
    }

    pub(super) fn failed(&mut self, error: &OutboxError) {
        self.board.errors.add(1);
        let words = error.in_full();
        if self.rhythm.errors == 0 {
            let outbox = self.settings.name.clone();
            self.runtime.tell(|| Event::OutboxFailing { outbox, error: words.clone() });
        }
        self.board.trouble(words);
        if !matches!(error, OutboxError::Busy { .. }) {
            self.table = None;
        }
        self.rhythm.errors = self.rhythm.errors.saturating_add(1);
        let pause = self.pause(self.rhythm.errors);
        self.rhythm.retry_at = Some(self.clock.now().after(pause));
    }

    pub(super) fn leave(mut self) {
        if let Some(table) = &mut self.table {
            // If that fails the lease runs out by itself.
            let _ = table.release(&self.owner);
            table.nudge();
        }
        self.lines.iter_mut().for_each(|line| line.held = None);
        self.board.note(&self.lines, self.table.is_some(), Orders::Leave);
    }

    /// Doubles from 20 ms to its longest, with up to a quarter more by chance.
    fn pause(&mut self, failures: u32) -> Duration {
        let longest = if self.runtime.is_simulated() { LONGEST_VIRTUAL_PAUSE } else { LONGEST_PAUSE };
        let floor = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest);
        floor.mul_f64(1.0 + self.chance.unit() / 4.0)
    }
}
