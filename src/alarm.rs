//! High and low water: telling the owner when a queue gets into trouble, and when it is out of it.

use crate::clock::Timestamp;
use crate::error::{Error, SHUT_DOWN};
use crate::outcome::{contained, drop_contained};
use crate::queue::core::Core;
use crate::runtime::Registration;
use crate::scheduler::{Timed, TimedId};
use crate::sync::Mutex;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// What to watch of a queue, and from when to when it is alarming; see [`Queue::alarm`](crate::Queue::alarm).
///
/// It is raised once when the value reaches `high`, and cleared once when it has fallen to `low`; in between
/// nothing is said, so a value that wavers around one line does not ring all day. If both are the same, it is
/// cleared below them.
///
/// ```
/// use postroom::{Alarm, Broker, Queue};
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
///
/// let (broker, simulation) = Broker::simulated(1);
/// let jobs: Queue<u32> = broker.queue("jobs").declare()?;
/// let said = Arc::new(Mutex::new(Vec::new()));
/// let log = said.clone();
/// jobs.alarm(Alarm::backlog(1000, 100).every(Duration::from_secs(5)), move |alert| {
///     log.lock().unwrap().push(alert.to_string());
/// })?;
///
/// jobs.send_batch(0..1200).unwrap();
/// simulation.advance(Duration::from_secs(60));
/// jobs.purge();
/// simulation.advance(Duration::from_secs(60));
/// assert_eq!(*said.lock().unwrap(), [
///     "queue \"jobs\": 1200 messages ready, alarm at 1000 messages ready raised",
///     "queue \"jobs\": 0 messages ready, alarm at 1000 messages ready cleared",
/// ]);
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "an alarm watches nothing until a queue is given it"]
pub struct Alarm {
    high: Level,
    low: Level,
    every: Duration,
}

impl Alarm {
    /// How many messages are ready.
    pub fn backlog(high: usize, low: usize) -> Self {
        Self::of(Level::Backlog(high), Level::Backlog(low))
    }

    /// How long the oldest of the next messages has been waiting since it was published; zero if none is
    /// ready.
    ///
    /// A message that was requeued goes to the end and counts again once it is next.
    pub fn age(high: Duration, low: Duration) -> Self {
        Self::of(Level::Age(high), Level::Age(low))
    }

    /// The share of deliveries that were settled in any other way than by an ack, among all that were settled
    /// since the last look. While nothing is settled, it stays as it is.
    pub fn failures(high: f64, low: f64) -> Self {
        Self::of(Level::Failures(high), Level::Failures(low))
    }

    /// How often it looks, at least every millisecond. Default once a second.
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    fn of(high: Level, low: Level) -> Self {
        Self { high, low, every: Duration::from_secs(1) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.every < Self::SHORTEST {
            problems.push(format!("a look every {:?} is too often: at least {:?} apart", self.every, Self::SHORTEST));
        }
        for (name, level) in [("high", self.high), ("low", self.low)] {
            if let Level::Failures(share) = level
                && !(0.0..=1.0).contains(&share)
            {
                problems.push(format!("{name} share of failures is {share}: must be from 0 to 1"));
            }
        }
        if self.high.is_zero() {
            problems.push(format!("high is {}, which is always reached", self.high));
        }
        if self.low > self.high {
            problems.push(format!("low is {}, above high, {}", self.low, self.high));
        }
        problems
    }

    /// A shorter interval would keep the thread of all delays busy.
    const SHORTEST: Duration = Duration::from_millis(1);

    /// Whether it is raised at this value, given whether it was.
    fn is_raised(&self, was: bool, value: Level) -> bool {
        if was { value > self.low || value >= self.high } else { value >= self.high }
    }
}

/// A value that an [`Alarm`] watches, shown as `1200 messages ready`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Level {
    /// Messages ready.
    Backlog(usize),
    /// Age of the oldest of them.
    Age(Duration),
    /// Share of deliveries not acked, from 0 to 1.
    Failures(f64),
}

impl Level {
    fn is_zero(&self) -> bool {
        match *self {
            Self::Backlog(n) => n == 0,
            Self::Age(age) => age.is_zero(),
            Self::Failures(share) => share == 0.0,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backlog(n) => write!(f, "{n} messages ready"),
            Self::Age(age) => write!(f, "oldest message waiting for {age:?}"),
            Self::Failures(share) => write!(f, "{:.1} % of deliveries failed", share * 100.0),
        }
    }
}

/// An [`Alarm`] was raised or cleared. Shows itself as a line of text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// The queue's name.
    pub queue: String,
    /// The value it was at.
    pub value: Level,
    /// The value at which the alarm is raised.
    pub high: Level,
    /// The value at which it is cleared.
    pub low: Level,
    /// Raised, or cleared if `false`.
    pub raised: bool,
    /// When, on the broker's timeline.
    pub at: SystemTime,
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.raised { "raised" } else { "cleared" };
        write!(f, "queue {:?}: {}, alarm at {} {what}", self.queue, self.value, self.high)
    }
}

/// An alarm that is on. Dropping this handle leaves it on.
pub struct AlarmHandle {
    sentry: Weak<dyn Watch>,
}

impl AlarmHandle {
    /// Whether it was raised and has not been cleared since.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.sentry.upgrade().is_some_and(|sentry| sentry.is_raised())
    }

    /// Turns it off; if it is raised, nobody is told that it ends. A callback under way on another thread still finishes; none begins after this.
    pub fn remove(self) {
        if let Some(sentry) = self.sentry.upgrade() {
            sentry.remove();
        }
    }
}

impl fmt::Debug for AlarmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlarmHandle").field("is_raised", &self.is_raised()).finish_non_exhaustive()
    }
}

/// An alarm without the type of its queue.
trait Watch: Send + Sync {
    fn is_raised(&self) -> bool;
    fn remove(&self);
}

/// Alarms that a queue keeps alive; they hold it weakly.
pub(crate) type Alarms = Mutex<Vec<(TimedId, Arc<dyn Timed>)>>;

/// Looks at one value of one queue every now and then.
struct Sentry<T> {
    core: Weak<Core<T>>,
    alarm: Alarm,
    callback: Box<dyn Fn(&Alert) + Send + Sync>,
    state: Mutex<State>,
    place: Registration,
}

#[derive(Debug, Clone, Copy)]
struct State {
    raised: bool,
    removed: bool,
    settled: u64,
    acked: u64,
}

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn watch(
        &self,
        alarm: Alarm,
        callback: Box<dyn Fn(&Alert) + Send + Sync>,
    ) -> Result<AlarmHandle, Error> {
        let mut problems = alarm.problems();
        if self.has_ended() {
            problems.push(SHUT_DOWN.into());
        }
        Error::unless_none(format!("alarm on queue {:?}", self.name), problems)?;
        let (settled, acked) = self.settled_and_acked();
        let sentry = Arc::new_cyclic(|me: &Weak<Sentry<T>>| Sentry {
            core: self.weak(),
            alarm,
            callback,
            state: Mutex::new(State { raised: false, removed: false, settled, acked }),
            place: Registration::in_background(&self.runtime, me.clone()),
        });
        let timed: Arc<dyn Timed> = sentry.clone();
        self.alarms.lock().push((sentry.place.id(), timed));
        sentry.place.arm(self.runtime.clock.now().after(alarm.every));
        let watch: Arc<dyn Watch> = sentry;
        Ok(AlarmHandle { sentry: Arc::downgrade(&watch) })
    }

    /// Turns all alarms off.
    pub(crate) fn end_alarms(&self) {
        let alarms = std::mem::take(&mut *self.alarms.lock());
        // A callback's destructor is the user's.
        alarms.into_iter().for_each(drop_contained);
    }
}

impl<T: Send + Sync + 'static> Sentry<T> {
    /// The value to compare; `None` if there is nothing to say.
    fn look(&self, core: &Core<T>, state: &mut State, now: Timestamp) -> Option<Level> {
        match self.alarm.high {
            Level::Backlog(_) => Some(Level::Backlog(core.ready() as usize)),
            Level::Age(_) => {
                Some(Level::Age(core.oldest_ready().map_or(Duration::ZERO, |published| now.since(published))))
            }
            Level::Failures(_) => {
                let (settled, acked) = core.settled_and_acked();
                let (all, good) = (settled - state.settled, acked - state.acked);
                (state.settled, state.acked) = (settled, acked);
                (all > 0).then(|| Level::Failures((all - good) as f64 / all as f64))
            }
        }
    }

    /// What there is to tell, if the value has crossed a line.
    fn sample(&self, core: &Core<T>, now: Timestamp) -> Option<Alert> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        let value = self.look(core, &mut state, now)?;
        let raised = self.alarm.is_raised(state.raised, value);
        if raised == state.raised {
            return None;
        }
        state.raised = raised;
        let Alarm { high, low, .. } = self.alarm;
        Some(Alert { queue: core.name.to_string(), value, high, low, raised, at: now.to_system_time() })
    }
}

impl<T: Send + Sync + 'static> Timed for Sentry<T> {
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let core = self.core.upgrade()?;
        if let Some(alert) = self.sample(&core, now) {
            let _ = contained(|| (self.callback)(&alert));
        }
        // Counted from the end of the callback, so that a slow one leaves time for others.
        Some(core.runtime.clock.now().after(self.alarm.every))
    }
}

impl<T: Send + Sync + 'static> Watch for Sentry<T> {
    fn is_raised(&self) -> bool {
        self.state.lock().raised
    }

    fn remove(&self) {
        self.state.lock().removed = true;
        let Some(core) = self.core.upgrade() else { return };
        let removed = {
            let mut alarms = core.alarms.lock();
            alarms.iter().position(|(id, _)| *id == self.place.id()).map(|at| alarms.swap_remove(at))
        };
        // A callback's destructor is the user's.
        drop_contained(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_at_the_high_line_and_cleared_at_the_low_one() {
        for (high, low, values, expected) in [
            (10, 5, vec![9, 10, 9, 6, 5, 9, 10], vec![false, true, true, true, false, false, true]),
            (10, 9, vec![10, 9, 10], vec![true, false, true]),
            (10, 10, vec![10, 10, 9, 10], vec![true, true, false, true]),
            (10, 0, vec![50, 1, 0], vec![true, true, false]),
        ] {
            let alarm = Alarm::backlog(high, low);
            let raised = values.iter().scan(false, |raised, &value| {
                *raised = alarm.is_raised(*raised, Level::Backlog(value));
                Some(*raised)
            });
            assert_eq!(raised.collect::<Vec<_>>(), expected, "{high} {low}");
        }
    }

    #[test]
    fn nonsense_is_named_all_at_once() {
        let second = Duration::from_secs(1);
        for (alarm, problems) in [
            (Alarm::backlog(1, 0), 0),
            (Alarm::backlog(5, 5), 0),
            (Alarm::backlog(5, 6), 1),
            (Alarm::backlog(0, 0), 1),
            (Alarm::backlog(0, 1).every(Duration::ZERO), 3),
            (Alarm::age(second, second * 2), 1),
            (Alarm::age(Duration::ZERO, Duration::ZERO), 1),
            (Alarm::failures(1.0, 0.0), 0),
            (Alarm::failures(f64::NAN, 0.0), 1),
            (Alarm::failures(1.5, -0.5), 2),
            (Alarm::failures(0.2, 0.3).every(Duration::from_micros(999)), 2),
        ] {
            assert_eq!(alarm.problems().len(), problems, "{alarm:?}: {:?}", alarm.problems());
        }
    }
}
