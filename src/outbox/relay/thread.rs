//! A relay on a thread of its own, as it is wherever time is real.

use super::Listener;
use super::desk::{Desk, Orders};
use super::engine::{Engine, LONGEST_PAUSE};
use super::stats::Board;
use crate::outbox::error::OutboxError;
use crate::outcome::contained;
use crate::sync::{JoinHandle, ThreadBuilder, current_thread};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Thread {
    relay: Option<JoinHandle<()>>,
    listener: Option<Box<dyn Listener>>,
}

/// For a thread that has only to end.
const GRACE: Duration = Duration::from_millis(30);

impl Thread {
    pub(super) fn start(name: &str, engine: Engine) -> std::io::Result<Self> {
        let board = Arc::clone(&engine.board);
        let work = move || {
            let _ = contained(|| engine.run());
            board.ended();
        };
        let relay = ThreadBuilder::new().name(format!("relay {name}")).spawn(work)?;
        Ok(Self { relay: Some(relay), listener: None })
    }

    pub(super) fn listen(&mut self, listener: Box<dyn Listener>) {
        self.listener = Some(listener);
    }

    /// Has it mark what it can until then, and waits for it; how many have not ended.
    pub(super) fn end(self, desk: &Desk, board: &Board, deadline: Option<Instant>) -> usize {
        let deadline = deadline.map(|at| at.max(Instant::now() + GRACE));
        let Self { relay, listener } = self;
        listener.iter().for_each(|listener| listener.stop());
        desk.dismiss(deadline);
        let Some(relay) = relay else { return 0 };
        if relay.thread().id() == current_thread().id() {
            return 0;
        }
        let ended = board.wait_ended(deadline);
        if ended {
            let _ = relay.join();
        }
        drop(listener);
        usize::from(!ended)
    }
}

impl Engine {
    /// Waits at one place for news and for the time of its next duty.
    fn run(mut self) {
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

    fn pass(&mut self, orders: Orders) -> Result<(), OutboxError> {
        self.connect()?;
        self.mark()?;
        self.renew_leases()?;
        if orders == Orders::Work {
            self.look_for_changes()?;
            if self.rhythm.look {
                self.fetch()?;
            }
            self.publish_all();
            self.mark()?;
            self.prune()?;
            self.look_for_more();
        }
        Ok(())
    }

    fn publish_all(&mut self) {
        for i in 0..self.lines.len() {
            while let Some(published) = self.publish_one(i) {
                if !published || self.desk.orders() > Orders::Work {
                    break;
                }
            }
        }
    }

    /// When there is something to do even if nothing happens.
    fn next_duty(&self, orders: Orders) -> Instant {
        let (now, clock_now) = (Instant::now(), self.clock.now());
        let at = |due| self.clock.instant_of(due).unwrap_or(now + LONGEST_PAUSE);
        if let Some(retry_at) = self.rhythm.retry_at {
            return at(retry_at);
        }
        let renewals = self.lines.iter().map(|line| line.renew_at);
        let mut next = renewals.min().unwrap_or(now + LONGEST_PAUSE);
        if orders == Orders::Work {
            next = next.min(at(self.rhythm.poll_at));
            if !self.settings.keep.is_zero() {
                next = next.min(at(self.rhythm.prune_at));
            }
            for line in self.lines.iter().filter(|line| !line.pending.is_empty() && line.held.is_some()) {
                next = next.min(at(line.paused_until.unwrap_or(clock_now)));
            }
            if self.rhythm.look {
                next = now;
            }
        }
        if self.has_unmarked() { now } else { next }
    }
}
