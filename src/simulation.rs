//! The whole topology on one thread, with virtual time and a seeded order.

use crate::clock::{ManualClock, Timestamp};
use crate::random::Random;
use crate::runtime::Runtime;
use crate::scheduler::Scheduler;
use crate::sync::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// Something that can do one piece of work: a consumer.
pub(crate) trait Task: Send + Sync {
    /// Does one piece of work if there is any; whether there was.
    fn poll(&self) -> bool;
}

/// Runs tasks one piece at a time, in an order drawn from a seed.
pub(crate) struct Executor {
    clock: ManualClock,
    tasks: Mutex<Vec<Weak<dyn Task>>>,
    random: Mutex<Random>,
}

/// How [`Executor::run_until`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Done,
    TimedOut,
    /// Nothing is left that could run, now or later.
    Standstill,
}

impl Executor {
    pub(crate) fn new(clock: ManualClock, seed: u64) -> Self {
        Self { clock, tasks: Mutex::new(Vec::new()), random: Mutex::new(Random::new(seed)) }
    }

    pub(crate) fn add(&self, task: Weak<dyn Task>) {
        self.tasks.lock().push(task);
    }

    /// One piece of work, or everything due now; whether there was anything. A task may call this again
    /// from inside its work (when it blocks), so no lock is held across it.
    fn step(&self, scheduler: &Scheduler) -> bool {
        if scheduler.fire_due(self.clock.timestamp()) > 0 {
            return true;
        }
        let mut tasks: Vec<_> = {
            let mut tasks = self.tasks.lock();
            tasks.retain(|task| task.strong_count() > 0);
            tasks.iter().filter_map(Weak::upgrade).collect()
        };
        while !tasks.is_empty() {
            let chosen = self.random.lock().below(tasks.len() as u64) as usize;
            if tasks.swap_remove(chosen).poll() {
                return true;
            }
        }
        false
    }

    fn run_until_idle(&self, scheduler: &Scheduler) -> usize {
        std::iter::from_fn(|| self.step(scheduler).then_some(())).count()
    }

    /// Moves time from one due thing to the next up to `end`, running all that becomes possible.
    fn advance_to(&self, scheduler: &Scheduler, end: Timestamp) -> usize {
        let mut steps = self.run_until_idle(scheduler);
        while let Some(due) = scheduler.next_due().filter(|&due| due <= end) {
            self.clock.move_to(due);
            steps += self.run_until_idle(scheduler);
        }
        self.clock.move_to(end);
        steps + self.run_until_idle(scheduler)
    }

    pub(crate) fn run_until(
        &self,
        scheduler: &Scheduler,
        deadline: Option<Timestamp>,
        mut done: impl FnMut() -> bool,
    ) -> Until {
        loop {
            if done() {
                return Until::Done;
            }
            if self.step(scheduler) {
                continue;
            }
            if deadline.is_none() && !scheduler.awaits_work() {
                return Until::Standstill;
            }
            match scheduler.next_due().filter(|&due| deadline.is_none_or(|end| due <= end)) {
                Some(due) => self.clock.move_to(due),
                None => {
                    let Some(end) = deadline else { return Until::Standstill };
                    self.clock.move_to(end);
                    return if done() { Until::Done } else { Until::TimedOut };
                }
            }
        }
    }
}

/// Drives a broker built with [`Broker::simulated`](crate::Broker::simulated): handlers run on the caller's
/// thread, time stands still until it is advanced, and the same seed gives the same run.
///
/// A handler that blocks (a publish into a full queue, a `recv`) lets the other consumers run meanwhile,
/// as threads would; if nothing can run any more, the blocked call reports a deadlock instead of hanging.
/// Drive one simulation from one thread.
///
/// ```
/// use postroom::{Broker, Message, Queue, Retry};
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let (broker, simulation) = Broker::simulated(42);
/// let mail: Queue<&str> =
///     broker.queue("mail").retry(Retry::fixed(Duration::from_secs(3600)).max_attempts(3)).declare()?;
/// let calls = Arc::new(AtomicU32::new(0));
/// let seen = calls.clone();
/// mail.consumer().start(move |_: &Message<&str>| {
///     seen.fetch_add(1, Ordering::Relaxed);
///     Err::<(), _>(std::io::Error::other("server is down"))
/// })?;
///
/// mail.send("hello").unwrap();
/// simulation.run_until_idle();
/// assert_eq!(calls.load(Ordering::Relaxed), 1);
/// simulation.advance(Duration::from_secs(2 * 3600)); // takes no time
/// assert_eq!(calls.load(Ordering::Relaxed), 3);
/// assert_eq!(mail.dead_letters().len(), 1);
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Clone)]
pub struct Simulation {
    runtime: Arc<Runtime>,
}

impl Simulation {
    pub(crate) fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }

    /// Runs everything that can run without time passing; how many steps that took.
    ///
    /// Does not return while handlers go on producing work for each other for ever; use
    /// [`Simulation::step`] for such a topology.
    pub fn run_until_idle(&self) -> usize {
        self.executor().run_until_idle(&self.runtime.scheduler)
    }

    /// Does one piece of work: one delivery, or everything that is due now. `false` if there was nothing.
    pub fn step(&self) -> bool {
        self.executor().step(&self.runtime.scheduler)
    }

    /// Lets time pass, stopping at every due retry or delay on the way and running all that follows from
    /// it; how many steps that took.
    pub fn advance(&self, by: Duration) -> usize {
        let end = self.executor().clock.timestamp().after(by);
        self.executor().advance_to(&self.runtime.scheduler, end)
    }

    /// How long until the next thing becomes due; `None` if nothing is waiting for time.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let now = self.executor().clock.timestamp();
        self.runtime.scheduler.next_due().map(|due| due.since(now))
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.executor().clock.now()
    }

    fn executor(&self) -> &Executor {
        self.runtime.executor.as_ref().expect("a simulation has an executor")
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("now", &self.now()).finish_non_exhaustive()
    }
}
