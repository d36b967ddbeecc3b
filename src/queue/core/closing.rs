//! Closing in two steps, and telling whether a queue is at rest.

use super::{Core, Gate};
use crate::clock::Timestamp;
use crate::sync::Ordering;

impl<T: Send + Sync + 'static> Core<T> {
    /// From now on only the broker's own workers may publish.
    pub(crate) fn start_draining(&self) {
        self.set_gate(Gate::Draining);
    }

    /// From now on nobody may publish, and receivers find the end after what is left.
    pub(crate) fn close(&self) {
        self.set_gate(Gate::Closed);
    }

    fn set_gate(&self, gate: Gate) {
        let outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Closed {
            intake.gate = gate;
        }
        drop((outlet, intake));
        self.draining.store(true, Ordering::Release);
        self.wake_everyone();
    }

    /// Whether it is of no use to wait for a batch to fill up.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Has all sleepers look again at what they wait for.
    pub(crate) fn wake_everyone(&self) {
        // Taken so that a sleeper between its look and its sleep does not miss the call.
        drop((self.outlet.lock(), self.intake.lock()));
        self.readable.notify_all();
        self.writable.notify_all();
        self.writable_together.notify_all();
    }

    /// Shutdown is about to report; whatever is settled later goes back instead.
    pub(crate) fn end(&self) {
        self.close();
        self.ended.store(true, Ordering::Relaxed);
        self.acks_plainly.store(false, Ordering::Relaxed);
        self.end_waiting();
        self.end_requests();
        self.end_alarms();
        // Who looked after the queue was closed and before it had ended expects what will not come any more.
        self.wake_everyone();
    }

    /// What still has to happen here before the queue is at rest, and a number that changes whenever
    /// anything moves. What is ready, or becomes due by `horizon`, counts if a consumer is there to take it
    /// by then.
    pub(crate) fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let mut delayed = self.delayed.lock();
        let settled = self.settled_ever();
        let (outlet, intake) = self.both_sides();
        let earliest = delayed.earliest().into_iter().chain(intake.soonest_unread()).min();
        let due = u64::from(earliest.is_some_and(|due| due <= horizon));
        let in_flight = outlet.delivered.saturating_sub(settled);
        let ready = outlet.keyed().map_or(intake.entered - outlet.left, |keyed| {
            let due = if keyed.is_stopped() { 0 } else { intake.unread_due() };
            (keyed.available() + self.turns_to_fetch(&outlet, &intake)) as u64 + due
        });
        let moves =
            intake.accepted + intake.entered + outlet.left + settled + delayed.len() as u64 + intake.unread_delayed();
        let promised = intake.pledged + outlet.moving;
        drop((delayed, outlet, intake));
        let consumable = if due + ready > 0 && self.is_consumed_by(horizon) { due + ready } else { 0 };
        (consumable + in_flight + promised, moves)
    }

    /// Whether a consumer takes messages, or will at `horizon`: its circuit may be open until then.
    fn is_consumed_by(&self, horizon: Timestamp) -> bool {
        let comes_back = || {
            let crews = self.runtime.crews();
            let mut ours = crews.iter().filter(|crew| crew.queue_id() == self.number());
            ours.any(|crew| crew.available_at().is_some_and(|at| at <= horizon))
        };
        self.consumers.load(Ordering::SeqCst) > 0 || comes_back()
    }
}
