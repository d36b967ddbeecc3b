//! What a relay counts.

use super::desk::Orders;
use super::line::Line;
use crate::outbox::envelope::Micros;
use crate::stats::Counter;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a relay has done since it was started, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RelayStats {
    /// Rows that were published, those that were published again included.
    pub relayed: u64,
    /// Rows that were marked as done.
    pub done: u64,
    /// Rows that were marked as dead.
    pub dead: u64,
    /// Operations on the database that failed, and were or will be tried again.
    pub errors: u64,
    /// Rows that were published and are not settled yet.
    pub in_flight: u64,
    /// Rows that were handled and are not marked yet.
    pub unmarked: u64,
    /// Topics whose rows this relay may publish now; those of the others are another relay's.
    pub leases: u64,
    /// Whether it is connected to the database.
    pub connected: bool,
    /// Whether the database tells it of commits, so that it need not look for them.
    pub listening: bool,
    /// How long the oldest row has been waiting that it knows of and that is not settled. `None` in a simulation,
    /// too: rows are put in real time.
    pub lag: Option<Duration>,
    /// What went wrong last, until everything goes well again.
    pub trouble: Option<String>,
}

/// Where the relay's thread writes it down.
pub(super) struct Board {
    pub(super) relayed: Counter,
    pub(super) done: Counter,
    pub(super) dead: Counter,
    pub(super) errors: Counter,
    listening: AtomicBool,
    standing: Mutex<Standing>,
    changed: Condvar,
}

#[derive(Default)]
struct Standing {
    in_flight: usize,
    unmarked: usize,
    leases: usize,
    connected: bool,
    oldest: Option<Micros>,
    trouble: Option<String>,
    /// Nothing has been published since the pass before the one that noted this.
    winding: bool,
    ended: bool,
}

impl Standing {
    fn is_settled(&self) -> bool {
        self.in_flight + self.unmarked == 0
    }
}

impl Board {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            relayed: Counter::default(),
            done: Counter::default(),
            dead: Counter::default(),
            errors: Counter::default(),
            listening: AtomicBool::new(false),
            standing: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::SeqCst)
    }

    pub(crate) fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::SeqCst);
    }

    pub(super) fn note(&self, lines: &[Line], connected: bool, orders: Orders) {
        let now = Instant::now();
        let mut standing = self.standing.lock();
        standing.in_flight = lines.iter().map(|line| line.in_flight.len()).sum();
        standing.unmarked = lines.iter().map(|line| line.settled.len()).sum();
        standing.leases = lines.iter().filter(|line| line.holds_lease(now)).count();
        standing.oldest = lines.iter().filter_map(Line::oldest).min();
        standing.connected = connected;
        standing.winding = orders > Orders::Work;
        if standing.is_settled() {
            self.changed.notify_all();
        }
    }

    pub(super) fn trouble(&self, words: String) {
        self.standing.lock().trouble = Some(words);
    }

    pub(super) fn recovered(&self) {
        self.standing.lock().trouble = None;
    }

    /// The last thing the relay's thread does.
    pub(super) fn ended(&self) {
        self.standing.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the thread has ended; whether it has by then.
    pub(super) fn wait_ended(&self, deadline: Option<Instant>) -> bool {
        let mut standing = self.standing.lock();
        while !standing.ended {
            match deadline {
                None => self.changed.wait(&mut standing),
                Some(at) if Instant::now() < at => drop(self.changed.wait_until(&mut standing, at)),
                Some(_) => return false,
            }
        }
        true
    }

    /// Waits until everything published has been handled and marked, at most until then.
    pub(super) fn wait_settled(&self, deadline: Instant) {
        let mut standing = self.standing.lock();
        while !(standing.ended || standing.winding && standing.is_settled()) && Instant::now() < deadline {
            let _ = self.changed.wait_until(&mut standing, deadline);
        }
    }

    /// Of a relay that has ended: whether everything it published had been handled and marked.
    pub(super) fn is_settled(&self) -> bool {
        self.standing.lock().is_settled()
    }

    pub(super) fn stats(&self) -> RelayStats {
        let standing = self.standing.lock();
        RelayStats {
            relayed: self.relayed.get(),
            done: self.done.get(),
            dead: self.dead.get(),
            errors: self.errors.get(),
            in_flight: standing.in_flight as u64,
            unmarked: standing.unmarked as u64,
            leases: standing.leases as u64,
            connected: standing.connected,
            listening: self.is_listening(),
            lag: standing.oldest.map(Micros::age),
            trouble: standing.trouble.clone(),
        }
    }
}
