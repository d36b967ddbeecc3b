//! The short way of a message that has a delay, and nothing else that few messages have: from its producer into the
//! heap of the delayed as it is, with no memory of its own.

use super::{Core, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::scheduler::DelayHeap;
use crate::sync::MutexGuard;

/// A place among the delayed that has been counted, for one message.
#[must_use]
pub(crate) struct LaterPlace<'a, T>(MutexGuard<'a, DelayHeap<Waiting<T>>>);

impl<T: Send + Sync + 'static> Core<T> {
    /// A place for a message with only a delay, in the common case: the queue is a plain one with room. Otherwise
    /// `None`, and [`Core::accept`] finds out more. Then comes [`Core::put_later`]; until then no user code may run.
    #[inline]
    pub(crate) fn place_for_later(&self) -> Option<LaterPlace<'_, T>> {
        if self.settings.is_special() {
            return None;
        }
        // Both, so that nobody who looks for it finds it nowhere.
        let delayed = self.delayed.lock();
        let mut intake = self.intake.lock();
        self.let_in(&mut intake).ok()?;
        intake.slots += 1;
        intake.accepted += 1;
        Some(LaterPlace(delayed))
    }

    /// Until its time; it has been stamped, and holds a slot.
    #[inline]
    pub(crate) fn put_later(&self, LaterPlace(mut delayed): LaterPlace<'_, T>, due: Timestamp, message: Message<T>) {
        let first = delayed.push(due, Waiting::Delayed(message));
        drop(delayed);
        if first {
            self.arm(due);
        }
    }
}
