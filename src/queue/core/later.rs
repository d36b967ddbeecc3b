//! The short way of a message that has a delay, and nothing else that few messages have: from its producer into the
//! heap of the delayed as it is, with no memory of its own.

use super::{Core, Waiting};
use crate::clock::Timestamp;
use crate::message::{Message, MessageId};
use crate::scheduler::DelayHeap;
use crate::sync::MutexGuard;

/// A place among the delayed that has been counted, for one message.
#[must_use]
pub(crate) struct LaterPlace<'a, T>(MutexGuard<'a, DelayHeap<Waiting<T>>>);

impl<T> LaterPlace<'_, T> {
    /// Puts a message there until its time; it has been stamped, and holds a slot. Whether the scheduler has to be
    /// [told](Core::arm) of it, which is left to the caller, once the lock is free.
    #[inline(always)]
    pub(crate) fn put(self, due: Timestamp, message: Message<T>) -> bool {
        let Self(mut delayed) = self;
        delayed.push_made(due, || Waiting::Delayed(message))
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// A place for a message with only a delay, in the common case: the delay is not over, the queue a plain one with
    /// room. Otherwise `None`, and [`Core::accept`] finds out more. Then comes [`LaterPlace::put`]; until then no user code may run.
    #[inline]
    pub(crate) fn place_for_later(&self, now: Timestamp, due: Timestamp) -> Option<LaterPlace<'_, T>> {
        if due <= now || self.is_special {
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

    /// Takes a message with only a delay by this way, or gives it back as it was.
    #[inline(always)]
    pub(crate) fn take_later(&self, mut message: Message<T>) -> Result<MessageId, Message<T>> {
        let id = message.id;
        let stamp = self.runtime.exact_stamp_for(&message);
        let due = message.publish_later(stamp);
        let Some(place) = self.place_for_later(stamp.at, due) else {
            message.revoke_later(due, id);
            return Err(message);
        };
        if place.put(due, message) {
            self.arm(due);
        }
        Ok(stamp.id)
    }
}
