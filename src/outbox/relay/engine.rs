//! The relay's thread: from the table to the topics, and what was handled back to the table.
//!
//! It waits at one place, the [`Desk`], for commits, for settled messages, for orders, and for the time of
//! its next duty. Whatever fails is tried again after a pause that grows; nothing is forgotten meanwhile,
//! since a row stays as it is until it is marked.

use super::desk::{Call, Desk, Found, Orders};
use super::line::{Line, Published};
use super::stats::Board;
use super::{Connect, Settings};
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
    poll_at: Instant,
    prune_at: Instant,
    /// After an error.
    retry_at: Option<Instant>,
    errors: u32,
    /// A commit has been announced that is not visible yet: so many looks to go.
    expectant: u32,
    /// Something may be there to fetch.
    look: bool,
}

/// How often a commit that was announced is looked for, after 0.5 ms and then each time twice as long.
const LOOKS: u32 = 8;
const FIRST_LOOK: Duration = Duration::from_micros(500);
/// The longest single wait for room, so that other topics, leases and orders get their turn.
const PATIENCE: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const PRUNE_EVERY: Duration = Duration::from_secs(10);

impl Rhythm {
    pub(super) fn new(now: Instant) -> Self {
        Self { poll_at: now, prune_at: now, retry_at: None, errors: 0, expectant: 0, look: true }
    }
}

impl Engine {
    pub(super) fn run(mut self) {
        let mut orders = Orders::Work;
        loop {
            let until = self.next_duty(orders);
            let found = self.desk.wait(orders, until);
            let (ordered, leave_by) = (found.orders, found.leave_by);
            let dismissed = ordered == Orders::Leave && orders < Orders::Leave;
            orders = ordered;
            self.take_note(found);
            if !self.is_resting_after_error() || dismissed {
                match self.pass(orders) {
                    Ok(()) => self.recovered(),
                    Err(error) => self.failed(&error),
                }
            }
            self.board.note(&self.lines, self.table.is_some(), orders);
            let in_time = leave_by.is_none_or(|at| Instant::now() < at);
            if orders == Orders::Leave && !(self.has_unmarked() && in_time) {
                break;
            }
        }
        self.leave();
    }

    fn has_unmarked(&self) -> bool {
        !self.done.is_empty() || !self.dead.is_empty()
    }

    fn take_note(&mut self, found: Found) {
        let now = Instant::now();
        if let Some(call) = found.call {
            self.rhythm.look = true;
            if call == Call::Committing {
                self.rhythm.expectant = LOOKS;
                self.rhythm.poll_at = now + FIRST_LOOK;
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
                    line.paused_until = Some(now + FIRST_PAUSE);
                }
            }
        }
    }

    fn pass(&mut self, orders: Orders) -> Result<(), OutboxError> {
        self.connect()?;
        self.mark()?;
        self.renew_leases()?;
        if orders == Orders::Work {
            self.look_for_changes()?;
            if std::mem::take(&mut self.rhythm.look) {
                self.fetch().inspect_err(|_| self.rhythm.look = true)?;
            }
            self.publish();
            self.mark()?;
            self.prune()?;
            let (now, window) = (Instant::now(), self.settings.window);
            self.rhythm.look |=
                self.lines.iter().any(|line| line.more && line.has_room(window) && line.holds_lease(now));
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), OutboxError> {
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
    fn mark(&mut self) -> Result<(), OutboxError> {
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

    fn renew_leases(&mut self) -> Result<(), OutboxError> {
        let length = self.settings.lease;
        let Self { lines, table, owner, .. } = self;
        let table = table.as_mut().expect("connected at the beginning of the pass");
        for line in lines {
            let now = Instant::now();
            if now < line.renew_at && (line.held.is_none() || line.holds_lease(now)) {
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
                }
            }
        }
        Ok(())
    }

    fn look_for_changes(&mut self) -> Result<(), OutboxError> {
        let now = Instant::now();
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
    fn next_poll(&self, now: Instant) -> Instant {
        match self.rhythm.expectant {
            0 => now + self.settings.poll_every(self.board.is_listening()),
            left => now + FIRST_LOOK * 2_u32.pow(LOOKS - left),
        }
    }

    fn fetch(&mut self) -> Result<(), OutboxError> {
        let Self { lines, table, settings, .. } = self;
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
        Ok(())
    }

    fn publish(&mut self) {
        for i in 0..self.lines.len() {
            while let Some(published) = self.publish_one(i) {
                if !published || self.desk.orders() > Orders::Work {
                    break;
                }
            }
        }
    }

    /// Publishes the next row of a topic; whether that went on, or `None` if there is none to publish now.
    fn publish_one(&mut self, i: usize) -> Option<bool> {
        let line = &mut self.lines[i];
        let now = Instant::now();
        let (lease, _) = line.held.filter(|_| line.holds_lease(now) && !line.is_paused(now))?;
        let row = line.pending.front()?;
        let (id, created) = (row.id, row.created());
        // Before it is published: it may be settled at once.
        line.in_flight.insert(id, created);
        let published = line.target.publish(row, &self.desk, lease, PATIENCE);
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
            Published::Refused(retry_in, words) => {
                line.refusals += 1;
                line.paused_until = Some(now + retry_in.unwrap_or_else(|| pause(line.refusals, &mut self.chance)));
                self.board.trouble(words);
                Some(false)
            }
            Published::Full | Published::TooLate | Published::Taken => Some(false),
        }
    }

    fn prune(&mut self) -> Result<(), OutboxError> {
        let now = Instant::now();
        if self.settings.keep.is_zero() || now < self.rhythm.prune_at {
            return Ok(());
        }
        let keep = self.settings.keep;
        let more = self.table().prune(keep)?;
        let pause = PRUNE_EVERY.min(keep.max(Duration::from_millis(100)));
        self.rhythm.prune_at = if more { now } else { now + pause };
        Ok(())
    }

    fn is_resting_after_error(&self) -> bool {
        self.rhythm.retry_at.is_some_and(|at| Instant::now() < at)
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.rhythm.errors) > 0 {
            self.rhythm.retry_at = None;
            self.board.recovered();
            self.runtime.tell(|| Event::OutboxRecovered { outbox: self.settings.name.clone() });
        }
    }

    fn failed(&mut self, error: &OutboxError) {
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
        self.rhythm.retry_at = Some(Instant::now() + pause(self.rhythm.errors, &mut self.chance));
    }

    /// When there is something to do even if nothing happens.
    fn next_duty(&self, orders: Orders) -> Instant {
        let now = Instant::now();
        if let Some(at) = self.rhythm.retry_at {
            return at;
        }
        let renewals = self.lines.iter().map(|line| line.renew_at);
        let mut next = renewals.min().unwrap_or(now + LONGEST_PAUSE);
        if orders == Orders::Work {
            next = next.min(self.rhythm.poll_at);
            if !self.settings.keep.is_zero() {
                next = next.min(self.rhythm.prune_at);
            }
            for line in self.lines.iter().filter(|line| !line.pending.is_empty() && line.held.is_some()) {
                next = next.min(line.paused_until.unwrap_or(now));
            }
            if self.rhythm.look {
                next = now;
            }
        }
        if self.has_unmarked() { now } else { next }
    }

    fn leave(mut self) {
        if let Some(table) = &mut self.table {
            // If that fails the lease runs out by itself.
            let _ = table.release(&self.owner);
            table.nudge();
        }
    }
}

/// Doubles from 20 ms to 2 s, with up to a quarter more by chance.
fn pause(errors: u32, chance: &mut Random) -> Duration {
    let floor = FIRST_PAUSE.saturating_mul(1 << errors.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    floor.mul_f64(1.0 + chance.unit() / 4.0)
}
