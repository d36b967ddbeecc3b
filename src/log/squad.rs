//! The workers of one consumer of a group: they come, claim partitions, and leave.

use super::claim::{Claim, Found, Nothing};
use super::consumer::Work;
use super::core::GroupCore;
use crate::breaker::Circuit;
use crate::clock::Timestamp;
use crate::consumer::{Crew, Staff, join};
use crate::deadlock::QueueRef;
use crate::error::Error;
use crate::scheduler::TimedId;
use crate::simulation::Task;
use crate::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

pub(super) fn subject(group: &str) -> String {
    format!("consumer of group {group:?}")
}

/// The workers of one consumer and what they do.
pub(super) struct Squad<T, W> {
    group: Arc<GroupCore<T>>,
    work: W,
    me: Weak<Self>,
    roster: Mutex<Roster>,
    /// Waited on with the roster: a pause has ended, or a worker has left.
    changed: Condvar,
    /// Some worker has to look at the roster before its next record.
    attention: AtomicBool,
    /// Handlings under way, in a simulation.
    busy: AtomicUsize,
}

#[derive(Default)]
struct Roster {
    staff: Staff,
    paused: bool,
    stopping: bool,
    /// Among the group's active consumers.
    counted: bool,
    /// Does not count among the group's members any more.
    left: bool,
    /// Keeps the consumer alive where no thread does.
    simulated: Option<Arc<dyn Task>>,
}

impl<T: Send + Sync + 'static, W: Work<T>> Squad<T, W> {
    /// Hires the first workers.
    pub(super) fn start(group: Arc<GroupCore<T>>, work: W, workers: usize) -> Result<Arc<Self>, Error> {
        group.enter().map_err(|removed| Error::new(subject(&group.full_name), removed.to_string()))?;
        let squad = Arc::new_cyclic(|me: &Weak<Self>| Self {
            group,
            work,
            me: Weak::clone(me),
            roster: Mutex::default(),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        });
        let crew: Weak<Self> = Arc::downgrade(&squad);
        squad.group.shelf.runtime.enlist(crew);
        match squad.scale_to(workers) {
            Ok(()) => Ok(squad),
            Err(error) => {
                squad.order_stop();
                squad.join(None);
                Err(error)
            }
        }
    }

    fn identity(&self) -> QueueRef {
        QueueRef { id: self.group.timing.id(), name: Arc::clone(&self.group.full_name) }
    }

    /// What a worker thread does.
    fn serve(&self) {
        let undisturbed = || !self.attention.load(Ordering::Acquire);
        self.group.shelf.runtime.as_worker(self.identity(), || {
            while self.may_go_on() {
                match self.group.claim(self.work.want(), &undisturbed) {
                    Ok(claim) => self.handle(claim, &undisturbed),
                    Err(Nothing::Interrupted) => {}
                    Err(Nothing::Closed) => return self.strike_off(&mut self.roster.lock()),
                }
            }
        });
        self.changed.notify_all();
        self.group.shelf.runtime.note_progress();
        self.group.shelf.runtime.waits.look_again();
    }

    /// Whether this worker is to go on; waits while paused. Has left if not.
    fn may_go_on(&self) -> bool {
        if !self.attention.load(Ordering::Acquire) {
            return true;
        }
        // Whatever this one could have taken next.
        self.group.stand_back();
        let mut roster = self.roster.lock();
        loop {
            if roster.stopping || roster.staff.present > roster.staff.target {
                self.strike_off(&mut roster);
                return false;
            }
            if !roster.paused {
                return true;
            }
            self.changed.wait(&mut roster);
        }
    }

    fn strike_off(&self, roster: &mut Roster) {
        roster.staff.present -= 1;
        self.update(roster);
    }

    fn handle(&self, claim: Claim<T>, go_on: &dyn Fn() -> bool) {
        let partition = claim.partition;
        let Claim { epoch, found, .. } = claim;
        let claim = Claim { partition, epoch, found: Found::GivenUp };
        let next = match found {
            Found::Records { first, most } => self.work.handle(&self.group, &claim, first, most, go_on),
            Found::Trimmed { asked, oldest } => return self.group.skip_trimmed(&claim, asked, oldest),
            Found::GivenUp => self.group.bury_again(&claim),
        };
        self.group.release(partition, next);
    }

    fn update(&self, roster: &mut Roster) {
        let active = !roster.paused && !roster.stopping;
        match (roster.counted, active) {
            (false, true) => _ = self.group.consumers.fetch_add(1, Ordering::SeqCst),
            (true, false) => _ = self.group.consumers.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
        roster.counted = active;
        let orders = roster.paused || roster.stopping || roster.staff.present > roster.staff.target;
        self.attention.store(orders, Ordering::Release);
        if roster.stopping && roster.staff.present == 0 && !std::mem::replace(&mut roster.left, true) {
            self.group.leave();
        }
    }

    /// Makes idle workers look at the roster.
    fn alert(&self) {
        self.changed.notify_all();
        self.group.wake_everyone();
        self.group.shelf.runtime.note_progress();
    }

    fn hire(&self, roster: &mut Roster) -> std::io::Result<()> {
        let squad = self.me.upgrade().expect("alive while it is called");
        if let Some(executor) = &self.group.shelf.runtime.executor {
            roster.staff.present += 1;
            if roster.simulated.is_none() {
                let weak: Weak<Self> = Arc::downgrade(&squad);
                executor.add(weak);
                roster.simulated = Some(squad);
            }
            return Ok(());
        }
        roster.staff.hire(&self.group.full_name, move || squad.serve())
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Crew for Squad<T, W> {
    fn queue(&self) -> &str {
        &self.group.full_name
    }

    fn queue_id(&self) -> TimedId {
        self.group.timing.id()
    }

    fn drainers(&self) -> Option<usize> {
        let roster = self.roster.lock();
        (!roster.paused).then_some(roster.staff.present)
    }

    fn workers(&self) -> usize {
        self.roster.lock().staff.target
    }

    fn scale_to(&self, workers: usize) -> Result<(), Error> {
        let mut roster = self.roster.lock();
        let mut problems = Vec::new();
        if workers == 0 {
            problems.push("0 workers would handle nothing: pause it instead".to_owned());
        }
        if roster.stopping {
            problems.push("it was stopped".to_owned());
        }
        Error::unless_none(subject(&self.group.full_name), problems)?;
        roster.staff.target = workers;
        if self.group.shelf.runtime.is_simulated() {
            roster.staff.present = roster.staff.present.min(workers);
        }
        let mut hired = Ok(());
        while roster.staff.present < roster.staff.target && hired.is_ok() {
            hired = self.hire(&mut roster);
        }
        if let Err(error) = hired {
            roster.staff.target = roster.staff.present;
            let problem = format!("the system refused a thread: {error}");
            return Err(Error::new(subject(&self.group.full_name), problem));
        }
        self.update(&mut roster);
        drop(roster);
        self.alert();
        Ok(())
    }

    fn pause(&self, paused: bool) {
        let mut roster = self.roster.lock();
        roster.paused = paused;
        self.update(&mut roster);
        drop(roster);
        self.alert();
    }

    fn circuit(&self) -> Option<Circuit> {
        None
    }

    fn available_at(&self) -> Option<Timestamp> {
        let roster = self.roster.lock();
        (!roster.paused && !roster.stopping).then(Timestamp::default)
    }

    fn order_stop(&self) {
        let mut roster = self.roster.lock();
        roster.stopping = true;
        roster.staff.target = 0;
        if self.group.shelf.runtime.is_simulated() {
            roster.staff.present = 0;
        }
        let simulated = roster.simulated.take();
        self.update(&mut roster);
        drop(roster);
        drop(simulated);
        self.alert();
    }

    fn join(&self, deadline: Option<Instant>) -> usize {
        join(&self.roster, &self.changed, deadline, |roster| &mut roster.staff)
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Task for Squad<T, W> {
    /// One record, or one batch.
    fn poll(&self) -> bool {
        let idle = {
            let roster = self.roster.lock();
            roster.paused || roster.stopping || self.busy.load(Ordering::SeqCst) >= roster.staff.present
        };
        let claim = if idle { None } else { self.group.try_claim(self.work.want()) };
        let Some(claim) = claim else { return false };
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.group.shelf.runtime.as_worker(self.identity(), || self.handle(claim, &|| false));
        self.busy.fetch_sub(1, Ordering::SeqCst);
        true
    }
}
