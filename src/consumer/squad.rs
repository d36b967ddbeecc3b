//! The workers of one consumer: they come, take, wait, and leave.

use super::roster::{Pass, Roster};
use super::staff::{Staff, join};
use super::work::Work;
use super::{Crew, subject};
use crate::breaker::{Breaker, Change, Circuit, CircuitBreaker, Permit, Sign};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Reason};
use crate::error::Error;
use crate::queue::core::{Core, Nothing};
use crate::runtime::{Event, Registration};
use crate::scheduler::{Timed, TimedId};
use crate::simulation::Task;
use crate::stats::Tally;
use crate::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The workers of one consumer and what they do.
pub(super) struct Squad<T, W> {
    pub(super) core: Arc<Core<T>>,
    pub(super) work: W,
    pub(super) me: Weak<Self>,
    pub(super) roster: Mutex<Roster>,
    /// Waited on with the roster: pause has ended, the circuit lets somebody through, or a worker has left.
    pub(super) changed: Condvar,
    /// Some worker has to look at the roster before its next message.
    pub(super) attention: AtomicBool,
    /// Also the worker that waits for a message to probe with.
    pub(super) orders: AtomicBool,
    /// Handlings under way, in a simulation.
    pub(super) busy: AtomicUsize,
    /// Ends the pauses of the circuit breaker, if there is one.
    pub(super) reopening: Option<Registration>,
}

impl<T: Send + Sync + 'static, W: Work<T>> Squad<T, W> {
    pub(super) fn new(core: Arc<Core<T>>, work: W, breaker: Option<CircuitBreaker>) -> Arc<Self> {
        let tally = core.runtime.is_simulated().then(|| core.tallies.for_worker());
        let squad = Arc::new_cyclic(|me: &Weak<Self>| Self {
            reopening: breaker.as_ref().map(|_| Registration::new(&core.runtime, me.clone())),
            core,
            work,
            me: Weak::clone(me),
            roster: Mutex::new(Roster { breaker: breaker.map(Breaker::new), tally, ..Roster::default() }),
            changed: Condvar::new(),
            // Nobody takes anything before all of the first workers have been hired.
            attention: AtomicBool::new(true),
            orders: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        });
        let crew: Weak<Self> = Arc::downgrade(&squad);
        squad.core.runtime.enlist(crew);
        squad
    }

    /// What a worker thread does.
    pub(super) fn serve(&self) {
        let tally = self.core.tallies.for_worker();
        self.core.runtime.as_worker(self.core.identity(), || {
            let (mut hands, mut load) = (W::Hands::default(), None);
            while let Some(pass) = self.may_go_on(&tally, &mut hands) {
                if !self.work.take_quickly(&self.core, &tally, &mut hands, &mut load) {
                    match self.work.take(&self.core, &mut hands, pass.limit(), || self.may_wait(pass)) {
                        Ok(taken) => load = Some(taken),
                        Err(nothing) => {
                            self.unused(pass);
                            if matches!(nothing, Nothing::Closed | Nothing::Deadlock) {
                                return self.leave();
                            }
                            continue;
                        }
                    }
                }
                self.handle(pass, &mut load, &tally, &mut hands);
            }
        });
        self.core.tallies.worker_ended(&tally);
    }

    /// As what this worker is to take another message; waits while paused, or while the circuit is not
    /// closed. Has left if `None`.
    #[inline]
    pub(super) fn may_go_on(&self, tally: &Tally, hands: &mut W::Hands) -> Option<Pass> {
        if self.attention.load(Ordering::Acquire) { self.report(tally, hands) } else { Some(Pass::Free) }
    }

    #[cold]
    pub(super) fn report(&self, tally: &Tally, hands: &mut W::Hands) -> Option<Pass> {
        self.work.tidy_up(&self.core, tally, hands);
        let mut roster = self.roster.lock();
        loop {
            if roster.staff.is_too_large() {
                self.strike_off(roster);
                return None;
            }
            let pass = if roster.staff.paused { None } else { roster.pass() };
            if pass.is_some() {
                return pass;
            }
            self.changed.wait(&mut roster);
        }
    }

    pub(super) fn may_wait(&self, pass: Pass) -> bool {
        let call = if pass == Pass::Free { &self.attention } else { &self.orders };
        !call.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn handle(&self, pass: Pass, load: &mut Option<W::Load>, tally: &Tally, hands: &mut W::Hands) {
        match &self.reopening {
            None => self.work.handle(&self.core, tally, hands, load, None),
            Some(reopening) => self.handle_watched(reopening, pass, load, tally, hands),
        }
    }

    pub(super) fn handle_watched(
        &self,
        reopening: &Registration,
        pass: Pass,
        load: &mut Option<W::Load>,
        tally: &Tally,
        hands: &mut W::Hands,
    ) {
        let permit = self.roster.lock().permit(pass);
        match permit {
            None => load.take().into_iter().for_each(|load| self.work.give_back(&self.core, hands, load)),
            Some(permit) => {
                let hear = |sign| self.heard(permit, sign, reopening);
                self.work.handle(&self.core, tally, hands, load, Some(&hear));
            }
        }
    }

    /// The breaker hears of a handling before its message is settled, so that a failure which opens the
    /// circuit is not redelivered just before. Settling it is also what has shutdown look again.
    pub(super) fn heard(&self, permit: Permit, sign: Sign, reopening: &Registration) {
        let now = self.core.runtime.clock.now();
        let mut roster = self.roster.lock();
        let change = roster.breaker.as_mut().and_then(|breaker| breaker.record(permit, sign, now));
        let Some(change) = change else { return };
        let redrives = roster.breaker.as_ref().is_some_and(Breaker::redrives);
        self.update(&mut roster);
        drop(roster);
        self.alert();
        match change {
            Change::ProbeAgain => {}
            Change::Opened { until, failures, of } => {
                reopening.arm(until);
                self.core.runtime.tell(|| Event::CircuitOpened { queue: self.core.name.to_string(), failures, of });
            }
            Change::Closed { since } => {
                let redriven = if redrives { self.redrive(since) } else { 0 };
                self.core.runtime.tell(|| Event::CircuitClosed { queue: self.core.name.to_string(), redriven });
            }
        }
    }

    /// Sends the dead letters of an outage back; how many those are.
    pub(super) fn redrive(&self, since: Timestamp) -> usize {
        let Some(letters) = self.core.dead.as_ref().map(|sink| sink.queue()) else { return 0 };
        let since = since.to_system_time();
        let of_outage = |letter: &DeadLetter<T>| {
            letter.queue() == &*self.core.name && *letter.reason() == Reason::Exhausted && letter.at() >= since
        };
        // Only a rate can be wrong with a redrive, and this one has none.
        letters.redrive().filter(of_outage).run().map_or(0, |redriven| redriven.moved)
    }

    /// Nothing was taken with this pass. Nobody needs to be woken: whoever had it reports next and claims it
    /// again, or leaves, of which the others hear.
    pub(super) fn unused(&self, pass: Pass) {
        if pass == Pass::Probe {
            self.roster.lock().breaker.iter_mut().for_each(Breaker::return_probe);
        }
    }

    /// The queue has closed: nothing will come any more.
    pub(super) fn leave(&self) {
        let roster = self.roster.lock();
        self.strike_off(roster);
    }

    pub(super) fn strike_off(&self, mut roster: MutexGuard<'_, Roster>) {
        roster.staff.present -= 1;
        self.update(&mut roster);
        drop(roster);
        self.changed.notify_all();
        self.core.runtime.note_progress();
        // Who counted on this worker to make room may now wait for ever.
        self.core.runtime.waits.look_again();
    }

    pub(super) fn update(&self, roster: &mut Roster) {
        let circuit = roster.circuit();
        let active = roster.staff.is_active() && circuit != Circuit::Open;
        roster.staff.count_as(active, &self.core.consumers);
        let orders = roster.staff.has_orders();
        self.orders.store(orders, Ordering::Release);
        self.attention.store(orders || circuit != Circuit::Closed, Ordering::Release);
    }

    /// Makes idle workers look at the roster.
    pub(super) fn alert(&self) {
        self.changed.notify_all();
        self.core.wake_everyone();
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

    /// Hands in what was counted once stopped, but not before the handler that ordered the stop is done.
    pub(super) fn retire_simulated(&self, roster: &mut Roster) {
        if roster.staff.stopping && self.busy.load(Ordering::SeqCst) == 0 {
            roster.tally.take().into_iter().for_each(|tally| self.core.tallies.worker_ended(&tally));
        }
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Crew for Squad<T, W> {
    fn queue(&self) -> &str {
        &self.core.name
    }

    fn queue_id(&self) -> TimedId {
        self.core.number()
    }

    fn drainers(&self) -> Option<usize> {
        let roster = self.roster.lock();
        (!roster.staff.paused && !self.core.has_receivers()).then_some(roster.staff.present)
    }

    fn workers(&self) -> usize {
        self.roster.lock().staff.target
    }

    fn scale_to(&self, workers: usize) -> Result<(), Error> {
        let Core { name, runtime, .. } = &*self.core;
        let squad = self.me.upgrade().expect("alive while it is called");
        self.order(|roster| {
            let hire = |staff: &mut Staff| staff.hire(Arc::clone(&squad), Self::serve, name, runtime);
            roster.staff.scale_to(workers, || subject(name), hire)
        })
    }

    fn pause(&self, paused: bool) {
        self.order(|roster| roster.staff.paused = paused);
    }

    fn circuit(&self) -> Option<Circuit> {
        self.roster.lock().breaker.as_ref().map(Breaker::circuit)
    }

    fn available_at(&self) -> Option<Timestamp> {
        let roster = self.roster.lock();
        let reopens = || roster.breaker.as_ref().and_then(Breaker::open_until).unwrap_or_default();
        roster.staff.is_active().then(reopens)
    }

    fn order_stop(&self) {
        drop(self.order(|roster| {
            let simulated = roster.staff.dismiss();
            self.retire_simulated(roster);
            simulated
        }));
    }

    fn join(&self, deadline: Option<Instant>) -> usize {
        join(&self.roster, &self.changed, deadline, |roster| &mut roster.staff)
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Task for Squad<T, W> {
    fn poll(&self) -> bool {
        let (tally, pass) = {
            let mut roster = self.roster.lock();
            let idle = !roster.staff.is_active() || self.busy.load(Ordering::SeqCst) >= roster.staff.present;
            let Some(tally) = roster.tally.clone().filter(|_| !idle) else { return false };
            let Some(pass) = roster.pass() else { return false };
            (tally, pass)
        };
        if pass == Pass::Free && !self.work.is_ready(&self.core) {
            return false;
        }
        self.busy.fetch_add(1, Ordering::SeqCst);
        let mut hands = W::Hands::default();
        let handled = self.core.runtime.as_worker(self.core.identity(), || {
            let mut load = self.work.take_now(&self.core, &mut hands, pass.limit());
            let taken = load.is_some();
            if taken {
                self.handle(pass, &mut load, &tally, &mut hands);
                self.work.tidy_up(&self.core, &tally, &mut hands);
            }
            taken
        });
        self.busy.fetch_sub(1, Ordering::SeqCst);
        if !handled {
            self.unused(pass);
        }
        self.retire_simulated(&mut self.roster.lock());
        handled
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Timed for Squad<T, W> {
    /// The pause of an open circuit may be over.
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let mut roster = self.roster.lock();
        let still_open = roster.breaker.as_mut().and_then(|breaker| breaker.tick(now));
        self.update(&mut roster);
        drop(roster);
        self.changed.notify_all();
        self.core.runtime.note_progress();
        still_open
    }
}
