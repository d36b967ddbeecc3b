//! The workers of one consumer of a group: they come, claim partitions, and leave.

use super::claim::{Claim, Found, Next, Nothing};
use super::consumer::Work;
use super::core::GroupCore;
use crate::breaker::Circuit;
use crate::clock::Timestamp;
use crate::consumer::{Crew, Staff, hire_first, join};
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
    /// Does not count among the group's members any more.
    left: bool,
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
            // Nobody takes anything before all of the first workers have been hired.
            attention: AtomicBool::new(true),
            busy: AtomicUsize::new(0),
        });
        let crew: Weak<Self> = Arc::downgrade(&squad);
        squad.group.shelf.runtime.enlist(crew);
        hire_first(&*squad, workers)?;
        Ok(squad)
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
            if roster.staff.is_too_large() {
                self.strike_off(&mut roster);
                return false;
            }
            if !roster.staff.paused {
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
            Found::Through(segment) => {
                drop(segment);
                Next::Ready
            }
            Found::Unread(chunks) => self.group.after_reading(self.group.read_all(&chunks)),
            Found::Trimmed { asked, oldest } => return self.group.skip_trimmed(&claim, asked, oldest),
            Found::GivenUp => self.group.bury_again(&claim),
        };
        self.group.release(partition, next);
    }

    fn update(&self, roster: &mut Roster) {
        let active = roster.staff.is_active();
        roster.staff.count_as(active, &self.group.consumers);
        self.attention.store(roster.staff.has_orders(), Ordering::Release);
        if roster.staff.stopping && roster.staff.present == 0 && !std::mem::replace(&mut roster.left, true) {
            self.group.leave();
        }
    }

    /// Makes idle workers look at the roster.
    fn alert(&self) {
        self.changed.notify_all();
        self.group.wake_everyone();
        self.group.shelf.runtime.note_progress();
    }

    /// Changes the roster, and makes everybody look at it.
    fn order<R>(&self, change: impl FnOnce(&mut Roster) -> R) -> R {
        let mut roster = self.roster.lock();
        let result = change(&mut roster);
        self.update(&mut roster);
        drop(roster);
        self.alert();
        result
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
        (!roster.staff.paused).then_some(roster.staff.present)
    }

    fn workers(&self) -> usize {
        self.roster.lock().staff.target
    }

    fn scale_to(&self, workers: usize) -> Result<(), Error> {
        let GroupCore { full_name, shelf, .. } = &*self.group;
        let squad = self.me.upgrade().expect("alive while it is called");
        self.order(|roster| {
            let hire = |staff: &mut Staff| staff.hire(Arc::clone(&squad), Self::serve, full_name, &shelf.runtime);
            roster.staff.scale_to(workers, || subject(full_name), hire)
        })
    }

    fn pause(&self, paused: bool) {
        self.order(|roster| roster.staff.paused = paused);
    }

    fn circuit(&self) -> Option<Circuit> {
        None
    }

    fn available_at(&self) -> Option<Timestamp> {
        self.roster.lock().staff.is_active().then(Timestamp::default)
    }

    fn order_stop(&self) {
        drop(self.order(|roster| roster.staff.dismiss()));
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
            !roster.staff.is_active() || self.busy.load(Ordering::SeqCst) >= roster.staff.present
        };
        let claim = if idle { None } else { self.group.try_claim(self.work.want()) };
        let Some(claim) = claim else { return false };
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.group.shelf.runtime.as_worker(self.identity(), || self.handle(claim, &|| false));
        self.busy.fetch_sub(1, Ordering::SeqCst);
        true
    }
}
