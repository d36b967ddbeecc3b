//! A handle on a delayed message, to cancel or replace it before it fires.

use crate::message::{MessageId, Text};
use crate::scheduler::DelayKey;
use crate::sync::Mutex;
use ahash::AHashMap;
use smallvec::SmallVec;
use std::fmt;
use std::sync::{Arc, Weak};

/// Something that holds delayed messages.
pub(crate) trait HoldsDelayed: Send + Sync {
    /// Removes a delayed message for good, if it is still there.
    fn cancel_delayed(&self, key: DelayKey);
}

/// A handle on the delay of a message, whichever queues hold it. Clones are the same timer.
///
/// ```
/// use postroom::{Broker, DelayLevel, Message, Queue, Timer};
///
/// let (broker, simulation) = Broker::simulated(1);
/// let reminders: Queue<&str> = broker.queue("reminders").declare()?;
/// let timer = Timer::new();
/// reminders.send(Message::new("pay, please").with_delay(DelayLevel::M30).with_timer(&timer)).unwrap();
/// assert_eq!(reminders.delayed(), 1);
///
/// assert!(timer.cancel());  // paid
/// assert!(!timer.cancel()); // there is nothing left to cancel
/// simulation.advance(DelayLevel::H1.duration());
/// assert!(reminders.is_empty());
/// # Ok::<(), postroom::Error>(())
/// ```
///
/// Cancelling and firing exclude each other: either [`Timer::cancel`] answers `true` and no queue delivers
/// the message, or it answers `false` and every queue that took the message does. Publishing another
/// message with a timer that is pending cancels the earlier one.
#[derive(Clone, Default)]
pub struct Timer {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// Which publish is pending; its copies in several queues share the timer.
    message: MessageId,
    entries: SmallVec<[(Weak<dyn HoldsDelayed>, DelayKey); 1]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Nothing has been published with it, or that has fired or was cancelled.
    #[default]
    Idle,
    Pending,
    /// The first of its copies has fired, so the others will.
    Fired,
}

impl Timer {
    /// A timer to give to [`Message::with_timer`](crate::Message::with_timer).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Prevents the delivery of the pending message; whether that succeeded. `false` if it has fired, was
    /// cancelled before, or was never published. A cancelled message counts as dropped.
    pub fn cancel(&self) -> bool {
        let entries = {
            let mut state = self.state.lock();
            if state.phase != Phase::Pending {
                return false;
            }
            state.phase = Phase::Idle;
            state.message = MessageId::default();
            std::mem::take(&mut state.entries)
        };
        remove(entries);
        true
    }

    /// Whether a message is waiting that could be cancelled. By the time you look, it may have fired.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.state.lock().phase == Phase::Pending
    }

    /// Takes note of a delayed copy of a message. What was pending before must be removed by the caller,
    /// once it holds no lock.
    fn attach(&self, message: MessageId, holder: Weak<dyn HoldsDelayed>, key: DelayKey) -> Superseded {
        let mut state = self.state.lock();
        let same = state.message == message;
        let old = if same { SmallVec::new() } else { std::mem::take(&mut state.entries) };
        if !same {
            state.phase = Phase::Pending;
            state.message = message;
        }
        state.entries.push((holder, key));
        Superseded(old)
    }

    /// Whether a copy whose time has come is to be delivered.
    fn fire(&self, message: MessageId) -> bool {
        let mut state = self.state.lock();
        let valid = state.message == message;
        if valid {
            state.phase = Phase::Fired;
            state.entries.clear();
        }
        valid
    }
}

fn remove(entries: SmallVec<[(Weak<dyn HoldsDelayed>, DelayKey); 1]>) {
    for (holder, key) in entries {
        if let Some(holder) = holder.upgrade() {
            holder.cancel_delayed(key);
        }
    }
}

/// Copies of a replaced message, to be removed from their queues when dropped (with no lock held).
#[must_use]
pub(crate) struct Superseded(SmallVec<[(Weak<dyn HoldsDelayed>, DelayKey); 1]>);

impl Drop for Superseded {
    fn drop(&mut self) {
        remove(std::mem::take(&mut self.0));
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("pending", &self.is_pending()).finish()
    }
}

/// A timer by handle or by name.
#[derive(Clone, Debug)]
pub struct TimerRef {
    name: Option<Text>,
    /// Of a named timer only once a delayed message is attached to it.
    timer: Option<Timer>,
}

impl From<&Timer> for TimerRef {
    fn from(timer: &Timer) -> Self {
        Self { name: None, timer: Some(timer.clone()) }
    }
}

impl From<&str> for TimerRef {
    fn from(name: &str) -> Self {
        Self { name: Some(Text::new(name)), timer: None }
    }
}

impl From<&String> for TimerRef {
    fn from(name: &String) -> Self {
        Self::from(name.as_str())
    }
}

impl From<String> for TimerRef {
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

impl TimerRef {
    /// Whether a copy whose time has come is to be delivered.
    pub(crate) fn fire(&self, message: MessageId) -> bool {
        self.timer.as_ref().is_none_or(|timer| timer.fire(message))
    }
}

/// A broker's pending timers that have a name.
#[derive(Default)]
pub(crate) struct NamedTimers(Mutex<AHashMap<Text, Timer>>);

impl NamedTimers {
    pub(crate) fn attach(
        &self,
        timer: &mut TimerRef,
        message: MessageId,
        holder: Weak<dyn HoldsDelayed>,
        key: DelayKey,
    ) -> Superseded {
        let Some(name) = &timer.name else {
            return timer.timer.get_or_insert_default().attach(message, holder, key);
        };
        // Attached under the registry's lock, so that forgetting the name cannot come between.
        let mut timers = self.0.lock();
        let named = timers.entry(name.clone()).or_default();
        timer.timer = Some(named.clone());
        named.attach(message, holder, key)
    }

    /// Removes what is pending under the timer, for a message that replaces it without any delay.
    pub(crate) fn supersede(&self, timer: &TimerRef) {
        match (&timer.name, &timer.timer) {
            (Some(name), _) => _ = self.cancel(name.as_str()),
            (None, Some(timer)) => _ = timer.cancel(),
            (None, None) => {}
        }
    }

    pub(crate) fn cancel(&self, name: &str) -> bool {
        let timer = self.0.lock().get(&Text::new(name)).cloned();
        let cancelled = timer.is_some_and(|timer| timer.cancel());
        self.forget_name(&Text::new(name));
        cancelled
    }

    /// Forgets the timer's name once nothing under it is pending.
    pub(crate) fn forget(&self, timer: &TimerRef) {
        if let Some(name) = &timer.name {
            self.forget_name(name);
        }
    }

    fn forget_name(&self, name: &Text) {
        let mut timers = self.0.lock();
        if timers.get(name).is_some_and(|timer| !timer.is_pending()) {
            timers.remove(name);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::scheduler::DelayHeap;

    struct Holder(Mutex<DelayHeap<u64>>);

    impl HoldsDelayed for Holder {
        fn cancel_delayed(&self, key: DelayKey) {
            self.0.lock().cancel(key);
        }
    }

    fn attach(timers: &NamedTimers, name: &str, message: u64, holder: &Arc<Holder>) -> TimerRef {
        let mut timer = TimerRef::from(name);
        let key = holder.0.lock().insert(Timestamp(1), message);
        let weak: Weak<Holder> = Arc::downgrade(holder);
        drop(timers.attach(&mut timer, message.into(), weak, key));
        timer
    }

    #[test]
    fn names_leave_no_trace() {
        let (timers, holder) = (NamedTimers::default(), Arc::new(Holder(Mutex::new(DelayHeap::new()))));
        let fired = attach(&timers, "a", 1, &holder);
        attach(&timers, "b", 2, &holder);
        assert_eq!(timers.len(), 2);
        assert!(fired.fire(1.into()));
        timers.forget(&fired);
        assert!(timers.cancel("b"));
        assert!(!timers.cancel("b") && !timers.cancel("never"));
        assert_eq!(timers.len(), 0);
    }

    #[test]
    fn a_later_message_replaces_the_earlier_one() {
        let (timers, holder) = (NamedTimers::default(), Arc::new(Holder(Mutex::new(DelayHeap::new()))));
        let first = attach(&timers, "a", 1, &holder);
        let second = attach(&timers, "a", 2, &holder);
        assert_eq!(holder.0.lock().len(), 1);
        assert!(!first.fire(1.into()));
        assert!(second.fire(2.into()));
        assert!(!timers.cancel("a"));
    }

    #[test]
    fn copies_of_one_message_fire_together_or_not_at_all() {
        let (timers, holder) = (NamedTimers::default(), Arc::new(Holder(Mutex::new(DelayHeap::new()))));
        let first = attach(&timers, "a", 1, &holder);
        let second = attach(&timers, "a", 1, &holder);
        assert!(first.fire(1.into()));
        timers.forget(&first);
        assert!(!timers.cancel("a"), "too late for one is too late for all");
        assert!(second.fire(1.into()));
    }
}
