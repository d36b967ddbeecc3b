//! Who may write next: the writer, or a user's transaction.
//!
//! SQLite lets one connection write at a time, and makes the others poll. A writer under load leaves gaps of
//! microseconds between its commits, which somebody who polls every few milliseconds would never hit. So the two
//! sides take turns here first, and neither starves.

use crate::sync::{Condvar, Mutex};

#[derive(Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    taken: bool,
    guest_was_last: bool,
    guests_waiting: usize,
    writer_waits: bool,
}

/// It is somebody's turn as long as this lives.
pub(super) struct Taken<'a>(&'a Turn);

impl Turn {
    pub(super) fn writer(&self) -> Taken<'_> {
        let mut state = self.state.lock();
        state.writer_waits = true;
        while state.taken || (state.guests_waiting > 0 && !state.guest_was_last) {
            self.changed.wait(&mut state);
        }
        state.writer_waits = false;
        state.taken = true;
        state.guest_was_last = false;
        Taken(self)
    }

    pub(super) fn guest(&self) -> Taken<'_> {
        let mut state = self.state.lock();
        state.guests_waiting += 1;
        while state.taken || (state.writer_waits && state.guest_was_last) {
            self.changed.wait(&mut state);
        }
        state.guests_waiting -= 1;
        state.taken = true;
        state.guest_was_last = true;
        Taken(self)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.taken = false;
        let somebody_waits = state.writer_waits || state.guests_waiting > 0;
        drop(state);
        if somebody_waits {
            self.0.changed.notify_all();
        }
    }
}
