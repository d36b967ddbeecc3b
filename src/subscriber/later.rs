//! Messages published with a delay: written into the ring when they are due.

use super::ring::{Ring, Waste};
use super::state::{Gate, State};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::scheduler::{DelayKey, Timed};
use crate::shutdown::Leftover;
use crate::sync::MutexGuard;
use crate::timer::{HoldsDelayed, TimerRef};
use std::sync::{Arc, Weak};

/// A message that waits for its time.
pub(super) struct Later<T> {
    message: Arc<Message<T>>,
    timer: Option<TimerRef>,
}

impl<T: Send + Sync + 'static> Ring<T> {
    /// Keeps a message until its time. It takes no room meanwhile: one that is due in half an hour must not keep
    /// others waiting for so long.
    #[cold]
    pub(super) fn delay(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        due: Timestamp,
        message: Arc<Message<T>>,
        timer: Option<TimerRef>,
    ) {
        if state.gate == Gate::Closed {
            // It was promised a place before; its time will not come.
            state.leave_behind(&self.topic, 1);
            drop(state);
            return drop(Waste::of(message));
        }
        let earliest = state.delayed.earliest().is_none_or(|first| due < first);
        let mut superseded = None;
        state.delayed.insert_with(due, |key| {
            let me: Weak<Self> = Weak::clone(&self.me);
            superseded = timer.as_ref().map(|timer| self.runtime.timers.attach(timer, me, key));
            Later { message, timer }
        });
        drop(state);
        if earliest {
            self.registration.arm(due);
        }
        // Now that no lock is held: removes what this message replaces.
        drop(superseded);
    }

    /// Writes what is due, as far as there is room for it.
    pub(super) fn bring_due(&self, state: &mut State<T>, now: Timestamp, waste: &mut Waste<T>) {
        let mut full = false;
        while state.delayed.earliest().is_some_and(|due| due <= now) {
            if !state.has_room() {
                if full {
                    return;
                }
                // Whoever makes room from now on looks again.
                full = true;
                state.overdue = true;
                self.note_awaited(state);
                continue;
            }
            let Some(Later { message, timer }) = state.delayed.pop_due(now) else { return };
            if timer.as_ref().is_some_and(|timer| !timer.fire()) {
                waste.all().messages.push(message);
                continue;
            }
            waste.all().timers.extend(timer.map(|timer| (Arc::clone(&self.runtime), timer)));
            self.append_shared(state, message, waste);
        }
        state.overdue = false;
        self.note_awaited(state);
    }

    /// There may be room for what is overdue.
    #[cold]
    pub(super) fn catch_up(&self, mut state: MutexGuard<'_, State<T>>) {
        let mut waste = Waste::default();
        self.bring_due(&mut state, self.runtime.clock.now(), &mut waste);
        let next = state.next_due();
        self.tell_all(state);
        next.into_iter().for_each(|due| self.registration.arm(due));
    }

    /// Lets everybody know of what was written and of what room is left.
    fn tell_all(&self, state: MutexGuard<'_, State<T>>) {
        self.publish_tail(&state);
        drop(state);
        self.wake_everyone();
        self.runtime.note_progress();
    }
}

impl<T> State<T> {
    /// When something becomes due; what waits for room has no time.
    fn next_due(&mut self) -> Option<Timestamp> {
        if self.overdue { None } else { self.delayed.earliest() }
    }

    /// Takes out what waits for its time, which will not come any more.
    pub(super) fn give_up_delayed(&mut self, topic: &Arc<str>, waste: &mut Waste<T>) {
        let delayed = self.delayed.take_where(|_| true);
        self.overdue = false;
        self.leave_behind(topic, delayed.len() as u64);
        waste.all().messages.extend(delayed.into_iter().map(|later| later.message));
    }

    /// Notes what has not been delivered. Handlers have left by then, so who would have got it cannot be said.
    fn leave_behind(&mut self, topic: &Arc<str>, delayed: u64) {
        if delayed > 0 {
            self.unheard.push(Leftover { queue: topic.to_string(), ready: 0, delayed, in_flight: 0 });
        }
    }
}

impl<T: Send + Sync + 'static> Timed for Ring<T> {
    /// Something is due, or somebody's timeout may be over.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let mut waste = Waste::default();
        let mut state = self.state.lock();
        self.bring_due(&mut state, now, &mut waste);
        let next = state.next_due();
        self.tell_all(state);
        next
    }
}

impl<T: Send + Sync + 'static> HoldsDelayed for Ring<T> {
    fn cancel_delayed(&self, key: DelayKey) {
        let cancelled = self.state.lock().delayed.cancel(key);
        drop(cancelled.map(|later| Waste::of(later.message)));
        self.runtime.note_progress();
    }
}
