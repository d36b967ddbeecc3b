//! A relay as a task of a simulation: it does one thing at a time, on the thread that drives everything.
//!
//! It looks into the table when something rang, never because time has passed: nothing else can have happened
//! that the simulation should know of. What rings is committed when its turn comes, since one thread drives all.
//! Time only ends its pauses, after an error or a refusal.

use super::desk::{Desk, Orders, WORTHWHILE};
use super::engine::Engine;
use super::stats::Board;
use crate::clock::Timestamp;
use crate::outbox::error::OutboxError;
use crate::outcome::contained;
use crate::runtime::{Registration, Runtime};
use crate::scheduler::Timed;
use crate::simulation::Task;
use crate::sync::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(super) struct Simulated {
    desk: Arc<Desk>,
    board: Arc<Board>,
    runtime: Arc<Runtime>,
    /// Not there while it is at work further up the stack, and when it has ended.
    engine: Mutex<Option<Engine>>,
    /// Ends the pauses of what is expected to go on soon.
    soon: Registration,
    /// Ends the pauses of what may never go on: nobody who is blocked waits for that.
    some_day: Registration,
}

/// After so many failures in a row it takes them for lasting.
const HOPE: u32 = 10;
/// How often it tries to mark what has been handled when it has to end: time does not pass any more.
const LAST_ATTEMPTS: u32 = 3;

impl Simulated {
    pub(super) fn start(engine: Engine) -> Arc<Self> {
        let (desk, board, runtime) = (Arc::clone(&engine.desk), Arc::clone(&engine.board), Arc::clone(&engine.runtime));
        let relay = Arc::new_cyclic(|me: &Weak<Self>| Self {
            desk,
            board,
            soon: Registration::new(&runtime, me.clone()),
            some_day: Registration::in_background(&runtime, me.clone()),
            runtime,
            engine: Mutex::new(Some(engine)),
        });
        let task: Weak<Self> = Arc::downgrade(&relay);
        relay.runtime.executor.as_ref().expect("in a simulation").add(task);
        relay
    }

    /// Lets the simulation go on until everything published has been handled and marked, at most for that long.
    pub(super) fn wait_settled(&self, timeout: Duration) {
        let deadline = self.runtime.clock.now().after(timeout);
        let is_settled = || self.engine.lock().as_ref().is_none_or(Engine::is_settled);
        self.runtime.simulate_until(Some(deadline), is_settled);
    }

    /// Marks what it can. If it is at work, whose caller's caller asks for this, it ends when it is done.
    pub(super) fn end(&self) {
        self.desk.dismiss(None);
        let engine = self.engine.lock().take();
        engine.into_iter().for_each(|engine| self.finish(engine));
    }

    fn finish(&self, engine: Engine) {
        let _ = contained(|| engine.finish());
        self.board.ended();
    }

    /// Whether anything is left to do that can be done by then.
    pub(super) fn is_busy(&self, horizon: Timestamp) -> bool {
        let engine = self.engine.lock();
        engine.as_ref().is_some_and(|engine| engine.is_busy(self.desk.orders(), horizon))
    }

    fn set_alarms(&self, engine: &Engine) {
        let now = self.runtime.clock.now();
        for (until, failures) in engine.pauses().filter(|(until, _)| *until > now) {
            let alarm = if failures > HOPE { &self.some_day } else { &self.soon };
            alarm.arm(until);
        }
    }
}

impl Task for Simulated {
    fn poll(&self) -> bool {
        let Some(mut engine) = self.engine.lock().take() else { return false };
        // As a relay's thread does, it ends with a panic that nobody foresaw.
        let Ok(worked) = contained(|| engine.step()) else {
            let _ = contained(move || drop(engine));
            self.board.ended();
            return false;
        };
        self.set_alarms(&engine);
        let mut place = self.engine.lock();
        if self.desk.orders() == Orders::Leave {
            drop(place);
            self.finish(engine);
        } else {
            *place = Some(engine);
        }
        worked
    }
}

impl Timed for Simulated {
    /// That time has come is all it has to know; its turn comes as a task.
    fn fire(&self, _: Timestamp) -> Option<Timestamp> {
        None
    }
}

impl Engine {
    /// Has its leases before anything runs. Nobody in a simulation can wait for real time to pass, so this is
    /// done here, for as long as somebody may have left them behind.
    pub(super) fn claim(&mut self) -> Result<(), OutboxError> {
        if self.table.is_none() {
            return Ok(());
        }
        // Whatever else goes wrong is tried again by the first look.
        let Ok(Some((_, left))) = self.renew_leases() else { return Ok(()) };
        std::thread::sleep(left + Duration::from_millis(1));
        match self.renew_leases() {
            Ok(Some((topic, left))) => Err(taken(&self.settings.name, &topic, left)),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// One piece of work; whether there was any.
    fn step(&mut self) -> bool {
        let found = self.desk.take();
        let (orders, noted) = (found.orders, !found.ended.is_empty());
        self.take_note(found);
        self.look_for_more();
        // More may be handled before it is its turn again; what it is told of goes into the table together.
        let gathers = noted && self.unmarked() < WORTHWHILE;
        if gathers || self.is_resting_after_error() || !self.has_work(orders) {
            self.board.note(&self.lines, self.table.is_some(), orders);
            return noted;
        }
        let worked = match self.do_one_thing(orders) {
            Ok(worked) => {
                self.recovered();
                worked
            }
            Err(error) => {
                self.failed(&error);
                noted
            }
        };
        self.board.note(&self.lines, self.table.is_some(), orders);
        worked
    }

    fn has_work(&self, orders: Orders) -> bool {
        self.has_unmarked() || orders == Orders::Work && (self.wants_rows() || self.rhythm.errors > 0)
    }

    fn wants_rows(&self) -> bool {
        let now = self.clock.now();
        self.rhythm.look || self.lines.iter().any(|line| !line.pending.is_empty() && !line.is_paused(now))
    }

    /// Whether anything came of it; an error says that nothing did that others could go on with. Marking can wait
    /// while there is something to publish, and is the cheaper for it.
    fn do_one_thing(&mut self, orders: Orders) -> Result<bool, OutboxError> {
        self.connect()?;
        if self.unmarked() < WORTHWHILE && orders == Orders::Work && self.wants_rows() && self.publish_next()? {
            self.look_for_more();
            return Ok(true);
        }
        let marks = self.has_unmarked();
        if marks {
            self.mark()?;
            self.prune()?;
        }
        self.look_for_more();
        Ok(marks)
    }

    fn unmarked(&self) -> usize {
        self.done.len() + self.dead.len()
    }

    /// Publishes one row, of the first topic that has room for it.
    fn publish_next(&mut self) -> Result<bool, OutboxError> {
        if let Some((topic, left)) = self.renew_leases()? {
            self.rhythm.look = true;
            return Err(taken(&self.settings.name, &topic, left));
        }
        if self.rhythm.look {
            self.fetch()?;
        }
        Ok((0..self.lines.len()).any(|i| self.publish_one(i) == Some(true)))
    }

    /// Until when it waits before it tries again, and how often it has failed.
    fn pauses(&self) -> impl Iterator<Item = (Timestamp, u32)> {
        let after_error = self.rhythm.retry_at.map(|at| (at, self.rhythm.errors));
        let waiting = self.lines.iter().filter(|line| !line.pending.is_empty());
        let refused = waiting.filter_map(|line| line.paused_until.map(|until| (until, line.refusals)));
        after_error.into_iter().chain(refused)
    }

    fn is_settled(&self) -> bool {
        self.lines.iter().all(|line| line.in_flight.is_empty() && line.settled.is_empty())
    }

    /// What waits for room or for a binding is not its own to do. What fails is, however long it may take.
    fn is_busy(&self, orders: Orders, horizon: Timestamp) -> bool {
        let can_publish = || {
            self.lines
                .iter()
                .filter(|line| !line.pending.is_empty() && !line.full)
                .any(|line| line.paused_until.is_none_or(|until| until <= horizon && line.refusals <= HOPE))
        };
        let has_work = self.has_unmarked() || orders == Orders::Work && (self.rhythm.look || can_publish());
        self.desk.has_news() || has_work
    }

    fn finish(mut self) {
        for _ in 0..LAST_ATTEMPTS {
            let found = self.desk.take();
            self.take_note(found);
            if !self.has_unmarked() {
                break;
            }
            match self.connect().and_then(|()| self.mark()) {
                Ok(()) => self.recovered(),
                Err(error) => self.failed(&error),
            }
        }
        self.leave();
    }
}

fn taken(table: &str, topic: &str, left: Duration) -> OutboxError {
    let problem = format!("topic {topic:?} is another relay's, for {left:.1?} more at least");
    OutboxError::Relay { table: table.to_owned(), problem }
}
