//! Where a relay is told things: a commit, a message that was handled, the order to stop.

use crate::sync::{Condvar, Mutex};
use crate::track::{Ended, Tracks};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What a relay is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Orders {
    Work,
    /// Publish nothing more; mark what gets handled.
    Wind,
    /// Mark what has been handled, and end.
    Leave,
}

pub(crate) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    orders: Orders,
    /// Until when it may try to mark before it ends.
    leave_by: Option<Instant>,
    call: Option<Call>,
    ended: Vec<(i64, Ended)>,
    sleeping: bool,
}

/// Why to look into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    /// Something has been committed.
    Committed,
    /// Something is about to be: it may take a moment to become visible.
    Committing,
}

/// So many settled messages are worth a transaction of their own.
pub(super) const WORTHWHILE: usize = 64;
/// For fewer, the relay waits this long for more.
const LINGER: Duration = Duration::from_millis(2);

/// What woke a relay, and what it finds.
pub(super) struct Found {
    pub(super) orders: Orders,
    pub(super) leave_by: Option<Instant>,
    pub(super) call: Option<Call>,
    pub(super) ended: Vec<(i64, Ended)>,
}

impl Desk {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            orders: Orders::Work,
            leave_by: None,
            call: Some(Call::Committed),
            ended: Vec::new(),
            sleeping: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Calls the relay to the table.
    pub(crate) fn ring(&self, call: Call) {
        let mut state = self.state.lock();
        state.call = state.call.max(Some(call));
        self.wake(&state);
    }

    /// Orders only ever become stricter.
    pub(super) fn order(&self, orders: Orders) {
        let mut state = self.state.lock();
        state.orders = state.orders.max(orders);
        self.wake(&state);
    }

    /// Ends it; what has been handled may be marked until then.
    pub(super) fn dismiss(&self, leave_by: Option<Instant>) {
        self.state.lock().leave_by = leave_by;
        self.order(Orders::Leave);
    }

    pub(super) fn orders(&self) -> Orders {
        self.state.lock().orders
    }

    fn wake(&self, state: &State) {
        if state.sleeping {
            self.changed.notify_all();
        }
    }

    /// Waits until there is something to do or it is time.
    pub(super) fn wait(&self, seen: Orders, until: Instant) -> Found {
        let mut state = self.state.lock();
        let mut until = until;
        let mut lingering = false;
        loop {
            if state.call.is_some() || state.orders > seen || state.ended.len() >= WORTHWHILE {
                break;
            }
            if !state.ended.is_empty() && !lingering {
                lingering = true;
                until = until.min(Instant::now() + LINGER);
            }
            if Instant::now() >= until {
                break;
            }
            state.sleeping = true;
            // A timed wait that does not end by the clock ends by one of the above.
            let _ = self.changed.wait_until(&mut state, until);
            state.sleeping = false;
        }
        state.take()
    }

    /// What there is now.
    pub(super) fn take(&self) -> Found {
        self.state.lock().take()
    }

    /// Whether there is anything.
    pub(super) fn has_news(&self) -> bool {
        let state = self.state.lock();
        state.call.is_some() && state.orders == Orders::Work || !state.ended.is_empty()
    }
}

impl State {
    fn take(&mut self) -> Found {
        let (orders, leave_by) = (self.orders, self.leave_by);
        Found { orders, leave_by, call: self.call.take(), ended: std::mem::take(&mut self.ended) }
    }
}

impl Tracks for Desk {
    fn ended(&self, row: i64, how: Ended) {
        let mut state = self.state.lock();
        state.ended.push((row, how));
        if matches!(state.ended.len(), 1 | WORTHWHILE) {
            self.wake(&state);
        }
    }
}

/// The relays of this process that were started from one outbox.
#[derive(Default)]
pub(crate) struct Bells(Mutex<Vec<Weak<Desk>>>);

impl Bells {
    pub(crate) fn add(&self, desk: &Arc<Desk>) {
        let mut desks = self.0.lock();
        desks.retain(|desk| desk.strong_count() > 0);
        desks.push(Arc::downgrade(desk));
    }

    pub(crate) fn ring(&self, call: Call) {
        let desks: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        desks.iter().for_each(|desk| desk.ring(call));
    }
}

impl std::fmt::Debug for Bells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bells")
    }
}
