//! The workers of a consumer: how many there are meant to be and are, what they were ordered, and how they
//! wait for each other.

use crate::error::Error;
use crate::runtime::Runtime;
use crate::simulation::Task;
use crate::sync::{AtomicUsize, Condvar, JoinHandle, Mutex, Ordering, ThreadBuilder, current_thread};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

#[derive(Default)]
pub(crate) struct Staff {
    pub(crate) target: usize,
    pub(crate) present: usize,
    pub(crate) paused: bool,
    pub(crate) stopping: bool,
    /// Among the active consumers of what it takes from.
    counted: bool,
    /// Keeps the consumer alive where no thread does.
    simulated: Option<Arc<dyn Task>>,
    /// Ever, which numbers them.
    hired: usize,
    /// Those who wait in [`join`] for the others.
    waiting: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Staff {
    /// Whether somebody has to leave.
    pub(crate) fn is_too_large(&self) -> bool {
        self.stopping || self.present > self.target
    }

    /// Whether its workers have something to heed before they take anything else.
    pub(crate) fn has_orders(&self) -> bool {
        self.paused || self.is_too_large()
    }

    /// Whether it takes what comes.
    pub(crate) fn is_active(&self) -> bool {
        !self.paused && !self.stopping
    }

    /// Has it be among the active `consumers`, or not, whatever it was before.
    pub(crate) fn count_as(&mut self, active: bool, consumers: &AtomicUsize) {
        match (self.counted, active) {
            (false, true) => _ = consumers.fetch_add(1, Ordering::SeqCst),
            (true, false) => _ = consumers.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
        self.counted = active;
    }

    /// Hires those who are missing; those who are too many are to leave. If one cannot be hired, so are those
    /// hired just before.
    pub(crate) fn scale_to(
        &mut self,
        workers: usize,
        subject: impl Fn() -> String,
        mut hire: impl FnMut(&mut Self) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut problems = Vec::new();
        if workers == 0 {
            problems.push("0 workers would handle nothing: pause it instead".to_owned());
        }
        if self.stopping {
            problems.push("it was stopped".to_owned());
        }
        if !problems.is_empty() {
            return Error::unless_none(subject(), problems);
        }
        let before = std::mem::replace(&mut self.target, workers);
        if self.simulated.is_some() {
            self.present = self.present.min(workers);
        }
        while self.present < self.target {
            if let Err(error) = hire(self) {
                self.target = before;
                return Err(Error::new(subject(), format!("the system refused a thread: {error}")));
            }
        }
        Ok(())
    }

    /// Hires one: a thread named after whom it works for, which serves, or in a simulation one more of those
    /// whose work the squad does when it is polled.
    pub(crate) fn hire<S: Task + 'static>(
        &mut self,
        squad: Arc<S>,
        serve: fn(&S),
        works_for: &str,
        runtime: &Runtime,
    ) -> io::Result<()> {
        match &runtime.executor {
            None => {
                let name = format!("{works_for}-{}", self.hired);
                self.threads.retain(|thread| !thread.is_finished());
                self.threads.push(ThreadBuilder::new().name(name).spawn(move || serve(&squad))?);
                self.hired += 1;
            }
            Some(_) if self.simulated.is_some() => {}
            Some(executor) => {
                let weak: Weak<S> = Arc::downgrade(&squad);
                executor.add(weak);
                self.simulated = Some(squad);
            }
        }
        self.present += 1;
        Ok(())
    }

    /// Has everybody leave. The answer is to be dropped outside the roster's lock.
    #[must_use]
    pub(crate) fn dismiss(&mut self) -> Option<Arc<dyn Task>> {
        self.stopping = true;
        self.target = 0;
        let simulated = self.simulated.take();
        if simulated.is_some() {
            self.present = 0;
        }
        simulated
    }
}

/// Waits for workers that were ordered to stop; how many had not left by `deadline`. `changed` is waited on
/// with the roster, in which `staff` finds them, and notified by each that leaves.
pub(crate) fn join<R>(
    roster: &Mutex<R>,
    changed: &Condvar,
    deadline: Option<Instant>,
    staff: fn(&mut R) -> &mut Staff,
) -> usize {
    let mut guard = roster.lock();
    let myself = current_thread().id();
    let own = usize::from(staff(&mut guard).threads.iter().any(|thread| thread.thread().id() == myself));
    // Workers that wait in here themselves cannot leave before this returns.
    staff(&mut guard).waiting += own;
    changed.notify_all();
    let expected = |staff: &mut Staff| staff.present.saturating_sub(if own > 0 { staff.waiting } else { 0 });
    while expected(staff(&mut guard)) > 0 {
        let timed_out = match deadline {
            Some(at) => changed.wait_until(&mut guard, at).timed_out(),
            None => {
                changed.wait(&mut guard);
                false
            }
        };
        if timed_out {
            break;
        }
    }
    let left = staff(&mut guard);
    let late = expected(left);
    let others_wait = left.waiting > own;
    left.waiting -= own;
    if late == 0 && !others_wait {
        let threads = std::mem::take(&mut left.threads);
        drop(guard);
        // Their bodies contain every panic, so there is nothing to hear from them.
        let others = threads.into_iter().filter(|thread| thread.thread().id() != myself);
        others.for_each(|thread| drop(thread.join()));
    }
    late
}
