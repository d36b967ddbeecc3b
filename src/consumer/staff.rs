//! The threads of a consumer: how many there are meant to be, are, and wait for each other.

use crate::sync::{Condvar, JoinHandle, Mutex, ThreadBuilder, current_thread};
use std::time::Instant;

#[derive(Default)]
pub(crate) struct Staff {
    pub(crate) target: usize,
    pub(crate) present: usize,
    /// Ever, which numbers them.
    hired: usize,
    /// Those who wait in [`join`] for the others.
    waiting: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Staff {
    /// Starts a thread named after whom it works for.
    pub(crate) fn hire(&mut self, works_for: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let name = format!("{works_for}-{}", self.hired);
        self.threads.retain(|thread| !thread.is_finished());
        self.threads.push(ThreadBuilder::new().name(name).spawn(work)?);
        self.hired += 1;
        self.present += 1;
        Ok(())
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
