//! A handle on a delayed message, to cancel or replace it before it fires.

#[cfg(feature = "sqlite")]
use crate::clock::Timestamp;
#[cfg(feature = "sqlite")]
use crate::message::MessageId;
use crate::message::Text;
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
    /// The latest publish with it, until that is cancelled.
    current: Arc<Mutex<Option<Arc<Shot>>>>,
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
        let shot = self.current.lock().take();
        shot.and_then(|shot| shot.cancel()).is_some()
    }

    /// Whether a message is waiting that could be cancelled. By the time you look, it may have fired.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.current.lock().as_ref().is_some_and(|shot| shot.0.lock().phase == Phase::Pending)
    }
}

type Entries = SmallVec<[(Weak<dyn HoldsDelayed>, DelayKey); 1]>;

/// One publish with a timer. Its copies in several queues share it, whatever their message's id is.
#[derive(Default)]
struct Shot(Mutex<ShotState>);

#[derive(Default)]
struct ShotState {
    phase: Phase,
    entries: Entries,
    /// Of an earlier run.
    #[cfg(feature = "sqlite")]
    earlier: Option<Earlier>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// No copy has arrived anywhere yet.
    #[default]
    Fresh,
    Pending,
    /// The first of its copies has fired, so the others will.
    Fired,
    /// So are copies that are still on their way to a queue.
    Cancelled,
}

impl Shot {
    /// Whether this was the first to move it on.
    fn begin(&self, phase: Phase) -> bool {
        let mut state = self.0.lock();
        let fresh = state.phase == Phase::Fresh;
        if fresh {
            state.phase = phase;
        }
        fresh
    }

    /// Takes note of a copy, which must be removed at once if it comes too late.
    fn add(&self, holder: Weak<dyn HoldsDelayed>, key: DelayKey) -> Removal {
        let mut state = self.0.lock();
        match state.phase {
            Phase::Cancelled => Removal(smallvec::smallvec![(holder, key)]),
            Phase::Fired => Removal::default(),
            Phase::Fresh | Phase::Pending => {
                state.entries.push((holder, key));
                Removal::default()
            }
        }
    }

    fn cancel(&self) -> Option<Removal> {
        let mut state = self.0.lock();
        if state.phase != Phase::Pending {
            return None;
        }
        state.phase = Phase::Cancelled;
        Some(Removal(std::mem::take(&mut state.entries)))
    }

    fn fire(&self) -> bool {
        let mut state = self.0.lock();
        if state.phase == Phase::Cancelled {
            return false;
        }
        state.phase = Phase::Fired;
        state.entries.clear();
        true
    }
}

impl fmt::Debug for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shot").finish_non_exhaustive()
    }
}

/// Cancelled copies, to be removed from their queues when dropped (with no lock held).
#[must_use]
#[derive(Default)]
pub(crate) struct Removal(Entries);

impl Drop for Removal {
    fn drop(&mut self) {
        for (holder, key) in std::mem::take(&mut self.0) {
            if let Some(holder) = holder.upgrade() {
                holder.cancel_delayed(key);
            }
        }
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
    who: Who,
    shot: Arc<Shot>,
}

#[derive(Clone, Debug)]
enum Who {
    Handle(Timer),
    Name(Text),
}

impl From<&Timer> for TimerRef {
    fn from(timer: &Timer) -> Self {
        Self { who: Who::Handle(timer.clone()), shot: Arc::default() }
    }
}

impl From<&str> for TimerRef {
    fn from(name: &str) -> Self {
        Self { who: Who::Name(Text::new(name)), shot: Arc::default() }
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
    #[cfg(feature = "sqlite")]
    fn of(self, earlier: Earlier) -> Self {
        self.shot.0.lock().earlier = Some(earlier);
        self
    }

    /// For another publish of a message that was published before.
    pub(crate) fn renew(&mut self) {
        self.shot = Arc::default();
    }

    /// `None` for a handle, which ends with its process.
    #[cfg(feature = "sqlite")]
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.who {
            Who::Name(name) => Some(name.as_str()),
            Who::Handle(_) => None,
        }
    }

    /// Whether a copy whose time has come is to be delivered.
    pub(crate) fn fire(&self) -> bool {
        self.shot.fire()
    }
}

/// A broker's pending timers that have a name.
#[derive(Default)]
pub(crate) struct NamedTimers(Mutex<AHashMap<Text, Timer>>);

/// A publish of an earlier run, which the copies in several queues tell by its message.
#[cfg(feature = "sqlite")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Earlier {
    id: MessageId,
    at: Timestamp,
}

impl NamedTimers {
    /// Takes note of a delayed copy of a message. What was pending before is removed when the answer is
    /// dropped.
    pub(crate) fn attach(&self, timer: &TimerRef, holder: Weak<dyn HoldsDelayed>, key: DelayKey) -> [Removal; 2] {
        let earlier = if timer.shot.begin(Phase::Pending) { self.make_current(timer) } else { None };
        let earlier = earlier.and_then(|shot| shot.cancel()).unwrap_or_default();
        [earlier, timer.shot.add(holder, key)]
    }

    fn make_current(&self, timer: &TimerRef) -> Option<Arc<Shot>> {
        let shot = Arc::clone(&timer.shot);
        match &timer.who {
            Who::Handle(timer) => timer.current.lock().replace(shot),
            // Under the registry's lock, so that forgetting the name cannot come between.
            Who::Name(name) => self.0.lock().entry(name.clone()).or_default().current.lock().replace(shot),
        }
    }

    /// The timer of a message that was found in the file. Its copies share one; of several messages under one name, of
    /// which a crash has left those that were replaced, the latest counts.
    #[cfg(feature = "sqlite")]
    pub(crate) fn recovered(&self, timer: TimerRef, id: MessageId, at: Timestamp) -> TimerRef {
        let mine = Earlier { id, at };
        let Who::Name(name) = &timer.who else { return timer };
        let pending = self.0.lock().get(name).and_then(|timer| timer.current.lock().clone());
        let Some(pending) = pending else { return timer.of(mine) };
        let state = pending.0.lock();
        match (state.phase, state.earlier) {
            (Phase::Pending, Some(earlier)) if earlier == mine => {
                drop(state);
                TimerRef { who: timer.who, shot: pending }
            }
            (Phase::Pending, Some(earlier)) if earlier.at <= at => timer.of(mine),
            (Phase::Pending, _) => {
                timer.shot.begin(Phase::Cancelled);
                timer
            }
            _ => timer.of(mine),
        }
    }

    /// Removes what is pending under the timer, for a message that replaces it without any delay.
    pub(crate) fn supersede(&self, timer: &TimerRef) {
        if !timer.shot.begin(Phase::Fired) {
            return;
        }
        match &timer.who {
            Who::Name(name) => _ = self.cancel(name.as_str()),
            Who::Handle(timer) => _ = timer.cancel(),
        }
    }

    pub(crate) fn cancel(&self, name: &str) -> bool {
        let name = Text::new(name);
        let timer = self.0.lock().get(&name).cloned();
        let cancelled = timer.is_some_and(|timer| timer.cancel());
        self.forget_name(&name);
        cancelled
    }

    /// Forgets the timer's name once nothing under it is pending.
    pub(crate) fn forget(&self, timer: &TimerRef) {
        if let Who::Name(name) = &timer.who {
            self.forget_name(name);
        }
    }

    fn forget_name(&self, name: &Text) {
        let mut timers = self.0.lock();
        if timers.get(name).is_some_and(|timer| !timer.is_pending()) {
            timers.remove(name);
            if timers.is_empty() {
                timers.shrink_to(1024);
            }
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

    fn attach(timers: &NamedTimers, timer: &TimerRef, holder: &Arc<Holder>) {
        let key = holder.0.lock().insert(Timestamp(1), 1);
        let weak: Weak<Holder> = Arc::downgrade(holder);
        drop(timers.attach(timer, weak, key));
    }

    fn publish(timers: &NamedTimers, name: &str, holder: &Arc<Holder>) -> TimerRef {
        let timer = TimerRef::from(name);
        attach(timers, &timer, holder);
        timer
    }

    fn nothing() -> (NamedTimers, Arc<Holder>) {
        (NamedTimers::default(), Arc::new(Holder(Mutex::new(DelayHeap::new()))))
    }

    #[test]
    fn names_leave_no_trace() {
        let (timers, holder) = nothing();
        let fired = publish(&timers, "a", &holder);
        publish(&timers, "b", &holder);
        assert_eq!(timers.len(), 2);
        assert!(fired.fire());
        timers.forget(&fired);
        assert!(timers.cancel("b"));
        assert!(!timers.cancel("b") && !timers.cancel("never"));
        assert_eq!(timers.len(), 0);
    }

    #[test]
    fn a_later_message_replaces_the_earlier_one() {
        let (timers, holder) = nothing();
        let first = publish(&timers, "a", &holder);
        let second = publish(&timers, "a", &holder);
        assert_eq!(holder.0.lock().len(), 1);
        assert!(!first.fire());
        assert!(second.fire());
        assert!(!timers.cancel("a"));
    }

    #[test]
    fn copies_of_one_message_fire_together_or_not_at_all() {
        let (timers, holder) = nothing();
        let copies = publish(&timers, "a", &holder);
        attach(&timers, &copies, &holder);
        assert!(copies.fire());
        timers.forget(&copies);
        assert!(!timers.cancel("a"), "too late for one is too late for all");
        assert!(copies.fire());
    }

    #[test]
    fn a_copy_that_arrives_after_the_cancellation_is_removed_at_once() {
        let (timers, holder) = nothing();
        let copies = publish(&timers, "a", &holder);
        assert!(timers.cancel("a"));
        attach(&timers, &copies, &holder);
        assert_eq!((holder.0.lock().len(), timers.len()), (0, 0));
        assert!(!copies.fire());
    }
}
