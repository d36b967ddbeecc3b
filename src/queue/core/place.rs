//! Where in the queue a message goes.

use super::{Core, Intake, Outlet, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::keyed::Turn;
use crate::runtime::Runtime;
use crate::scheduler::DelayHeap;
use crate::sync::{MutexGuard, Ordering};
use crate::timer::{Removal, TimerRef};
use std::sync::Arc;

/// What a message with a timer replaces. Dropped when no lock is held, which removes it and may run the user's
/// code.
pub(crate) enum Superseded {
    Removed(#[expect(dead_code, reason = "does it when it is dropped")] [Removal; 2]),
    /// By a message without a delay.
    By(TimerRef, Arc<Runtime>),
}

impl Drop for Superseded {
    fn drop(&mut self) {
        if let Self::By(timer, runtime) = self {
            runtime.timers.supersede(timer);
        }
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Behind everything that is ready (of its priority).
    #[inline]
    pub(super) fn put(&self, intake: &mut Intake<T>, message: Message<T>) {
        intake.entered += 1;
        if message.extras.is_some() || self.is_special {
            self.put_specially(intake, message);
        } else {
            intake.tail.push(message);
        }
    }

    #[cold]
    pub(super) fn put_specially(&self, intake: &mut Intake<T>, mut message: Message<T>) {
        if self.is_ordered() {
            return self.put_keyful(intake, message);
        }
        if !self.put_in_window(intake, &mut message) {
            return intake.keep_waste(message);
        }
        self.note_expiry(&message);
        match &mut intake.aside.levels {
            Some(levels) => {
                levels.push(message.priority(), message);
                self.note_aside(intake);
            }
            None => intake.tail.push(message),
        }
    }

    /// Before everything that has not been delivered yet (of its priority or key).
    pub(super) fn put_urgently(&self, outlet: &mut Outlet<T>, intake: &mut Intake<T>, message: Message<T>) {
        if !self.is_ordered() {
            return self.put_aside(intake, message);
        }
        self.note_expiry(&message);
        intake.entered += 1;
        self.return_to_lane(outlet, intake, message, Turn::Last);
    }

    /// Before everything that has not been delivered yet, in a queue that is not ordered.
    pub(super) fn put_aside(&self, intake: &mut Intake<T>, message: Message<T>) {
        self.note_expiry(&message);
        intake.entered += 1;
        match &mut intake.aside.levels {
            Some(levels) => levels.push_redelivered(message.priority(), message),
            None => intake.aside.urgent.push_back(message),
        }
        self.note_aside(intake);
    }

    /// Among the ready or the delayed, as the message asks.
    pub(super) fn place(
        &self,
        delayed: MutexGuard<'_, DelayHeap<Waiting<T>>>,
        mut intake: MutexGuard<'_, Intake<T>>,
        mut message: Message<T>,
    ) -> Option<Superseded> {
        if message.due().is_some() {
            drop(intake);
            return self.delay(delayed, message);
        }
        let timer = message.take_timer();
        self.put(&mut intake, message);
        self.wake_for_one(intake);
        drop(delayed);
        timer.map(|timer| Superseded::By(timer, Arc::clone(&self.runtime)))
    }

    /// Among the delayed, until its time.
    pub(super) fn delay(
        &self,
        mut delayed: MutexGuard<'_, DelayHeap<Waiting<T>>>,
        mut message: Message<T>,
    ) -> Option<Superseded> {
        let due = message.due().expect("only called for what has a delay");
        if self.is_durable() {
            message = self.rest_in_file(&mut delayed, message)?;
        }
        let timer = message.take_timer();
        message.note_delayed(self.settings.ttl.is_some());
        let mut superseded = None;
        let earliest = delayed.earliest().is_none_or(|first| due < first);
        delayed.insert_with(due, |key| {
            if let Some(timer) = timer {
                superseded = Some(self.runtime.timers.attach(&timer, self.weak(), key));
                message.extras_mut().timer = Some(timer);
            }
            Waiting::Delayed(message)
        });
        drop(delayed);
        if earliest {
            self.arm(due);
        }
        superseded.map(Superseded::Removed)
    }

    /// Tells consumers whether they have to look at more than the head.
    pub(super) fn note_aside(&self, intake: &Intake<T>) {
        let limited = intake.pace.is_some() || intake.key_pace.is_some() || self.limits_in_flight();
        let otherwise = usize::from(limited) + usize::from(self.is_ordered()) + usize::from(self.claims.is_some());
        self.aside.store(intake.aside.available() + otherwise, Ordering::Relaxed);
    }

    /// Has the queue looked through when the message expires.
    pub(super) fn note_expiry(&self, message: &Message<T>) {
        if let Some(expires) = self.expires_at(message)
            && self.sweep_at.fetch_min(expires.0, Ordering::SeqCst) > expires.0
        {
            self.arm(expires);
        }
    }

    pub(crate) fn arm(&self, due: Timestamp) {
        self.runtime.scheduler.arm(self.number(), due);
    }
}
