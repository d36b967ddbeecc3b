//! Workers and handlers.

use crate::breaker::{Breaker, Change, Circuit, CircuitBreaker, Permit, Sign};
use crate::clock::{Clock, Timestamp};
use crate::dead_letter::{DeadLetter, Reason};
use crate::delivery::Verdict;
use crate::error::Error;
use crate::message::{Message, MessageId};
use crate::outcome::{IntoOutcome, Outcome, contained};
use crate::queue::core::{Core, Nothing, Patience};
use crate::queue::fifo::Chunk;
use crate::runtime::{Event, Registration};
use crate::scheduler::{Timed, TimedId};
use crate::simulation::Task;
use crate::stats::Tally;
use crate::sync::{
    AtomicBool, AtomicUsize, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, ThreadBuilder, current_thread,
};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

type Hook<T> = Box<dyn Fn(&Message<T>) + Send + Sync>;
type AfterHook<T> = Box<dyn Fn(&Message<T>, &Outcome) + Send + Sync>;
type GiveUpHook<T> = Box<dyn Fn(&Message<T>, &Reason) + Send + Sync>;

struct Hooks<T> {
    before: Option<Hook<T>>,
    after: Option<AfterHook<T>>,
    on_give_up: Option<GiveUpHook<T>>,
}

/// Describes a consumer; nothing runs until [`ConsumerBuilder::start`] or [`ConsumerBuilder::start_batch`].
#[must_use = "nothing runs until `start` is called"]
pub struct ConsumerBuilder<T> {
    core: Arc<Core<T>>,
    workers: usize,
    hooks: Hooks<T>,
    breaker: Option<CircuitBreaker>,
}

impl<T: Send + Sync + 'static> ConsumerBuilder<T> {
    pub(crate) fn new(core: Arc<Core<T>>) -> Self {
        let hooks = Hooks { before: None, after: None, on_give_up: None };
        Self { core, workers: 1, hooks, breaker: None }
    }

    /// How many threads handle messages at the same time. Default 1, which keeps them in order.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Called before each handling, on the worker. A panic in it counts as the handler's.
    pub fn before(mut self, hook: impl Fn(&Message<T>) + Send + Sync + 'static) -> Self {
        self.hooks.before = Some(Box::new(hook));
        self
    }

    /// Called after each handling with what came of it, on the worker. A panic in it changes nothing.
    pub fn after(mut self, hook: impl Fn(&Message<T>, &Outcome) + Send + Sync + 'static) -> Self {
        self.hooks.after = Some(Box::new(hook));
        self
    }

    /// Called before a message becomes a dead letter, on the worker. A panic in it changes nothing.
    pub fn on_give_up(mut self, hook: impl Fn(&Message<T>, &Reason) + Send + Sync + 'static) -> Self {
        self.hooks.on_give_up = Some(Box::new(hook));
        self
    }

    /// Stops taking messages while most handlings fail, and probes with one message now and then until one
    /// succeeds. Default: none, whatever fails.
    ///
    /// It belongs to this consumer: its workers share it, other consumers of the queue have nothing to do
    /// with it. While it is open, [`Consumer::stop`], [`Consumer::scale_to`] and [`Consumer::pause`] act at
    /// once, and the queue counts as one that nobody empties: shutdown and `wait_idle` wait for it only if
    /// the pause ends before their timeout.
    ///
    /// [`Event::CircuitOpened`](crate::Event::CircuitOpened) and
    /// [`Event::CircuitClosed`](crate::Event::CircuitClosed) tell of its changes.
    pub fn circuit_breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Starts the workers. Each takes one message at a time, calls `handler` and settles as it answers:
    /// `()` or `Ok` acks, an error retries or dead-letters (see [`Failure`](crate::Failure)), an
    /// [`Outcome`] says itself. A panic counts as a failed attempt and leaves the worker running.
    ///
    /// The workers run until [`Consumer::stop`] or the broker's shutdown, whether or not the returned
    /// handle is kept.
    ///
    /// # Errors
    /// Zero workers, a queue that is closed, a circuit breaker that cannot be (a window or a pause of zero, a
    /// share of failures that is not above 0 and at most 1), or a system that refuses the threads.
    pub fn start<R, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&Message<T>) -> R + Send + Sync + 'static,
    {
        self.launch(Vec::new(), |hooks| One { handler, hooks })
    }

    /// Starts workers that take up to `max` messages at a time. A worker waits for the first, then at
    /// most `linger` for the batch to fill, and calls `handler` with what there is. The answer settles
    /// all of them alike; a panic counts as a failed attempt of each.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::start`], and a `max` of zero.
    pub fn start_batch<R, H>(self, max: usize, linger: Duration, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
    {
        let problems = if max == 0 { vec!["batches of 0 messages: at least 1".to_owned()] } else { Vec::new() };
        self.launch(problems, |hooks| Many { handler, hooks, max, linger })
    }

    fn launch<W: Work<T>>(
        self,
        mut problems: Vec<String>,
        work: impl FnOnce(Hooks<T>) -> W,
    ) -> Result<Consumer, Error> {
        if self.workers == 0 {
            problems.push("0 workers would handle nothing: at least 1".into());
        }
        if self.core.is_closed() {
            problems.push("the queue is closed".into());
        }
        problems.extend(self.breaker.iter().flat_map(CircuitBreaker::problems));
        Error::unless_none(subject(&self.core.name), problems)?;
        let squad = Squad::new(self.core, work(self.hooks), self.breaker);
        squad.scale_to(self.workers)?;
        Ok(Consumer { crew: squad })
    }
}

fn subject(queue: &str) -> String {
    format!("consumer of queue {queue:?}")
}

/// A running consumer. Dropping this handle leaves its workers running.
#[derive(Clone)]
pub struct Consumer {
    crew: Arc<dyn Crew>,
}

impl Consumer {
    pub(crate) fn of(crew: Arc<dyn Crew>) -> Self {
        Self { crew }
    }

    /// Changes the number of workers while they run. Those who are too many leave after the message they
    /// have in hand; this does not wait for them.
    ///
    /// # Errors
    /// Zero (use [`Consumer::pause`]), a consumer that was stopped, or a system that refuses the threads.
    pub fn scale_to(&self, workers: usize) -> Result<(), Error> {
        self.crew.scale_to(workers)
    }

    /// How many workers it is meant to have.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.crew.workers()
    }

    /// Lets no worker take another message until [`Consumer::resume`]; what is in hand, or just being
    /// taken, is finished.
    pub fn pause(&self) {
        self.crew.pause(true);
    }

    /// Lets the workers go on after [`Consumer::pause`].
    pub fn resume(&self) {
        self.crew.pause(false);
    }

    /// What its circuit breaker does; `None` if it has none.
    #[must_use]
    pub fn circuit(&self) -> Option<Circuit> {
        self.crew.circuit()
    }

    /// Ends the consumer: every worker finishes what it has in hand, and is joined. What is ready stays in
    /// the queue. Called from one of its own handlers, it does not wait for that one.
    pub fn stop(&self) {
        self.crew.order_stop();
        self.crew.join(None);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.crew.queue()).field("workers", &self.workers()).finish()
    }
}

/// A consumer without its types, as its handle and the broker's shutdown see it.
pub(crate) trait Crew: Send + Sync {
    fn queue(&self) -> &str;
    fn queue_id(&self) -> TimedId;
    /// How many workers empty the queue now; `None` if others may as well, or it is paused.
    fn drainers(&self) -> Option<usize>;
    fn workers(&self) -> usize;
    fn scale_to(&self, workers: usize) -> Result<(), Error>;
    fn pause(&self, paused: bool);
    fn circuit(&self) -> Option<Circuit>;
    /// From when on it takes messages, in the past if it does now; `None` unless time alone brings that about.
    fn available_at(&self) -> Option<Timestamp>;
    /// Workers leave as soon as their hands are empty.
    fn order_stop(&self);
    /// Waits for the workers that were ordered to stop; how many had not left by `deadline`.
    fn join(&self, deadline: Option<Instant>) -> usize;
}

/// The workers of one consumer and what they do.
struct Squad<T, W> {
    core: Arc<Core<T>>,
    work: W,
    me: Weak<Self>,
    roster: Mutex<Roster>,
    /// Waited on with the roster: pause has ended, the circuit lets somebody through, or a worker has left.
    changed: Condvar,
    /// Some worker has to look at the roster before its next message.
    attention: AtomicBool,
    /// Also the worker that waits for a message to probe with.
    orders: AtomicBool,
    /// Handlings under way, in a simulation.
    busy: AtomicUsize,
    /// Ends the pauses of the circuit breaker, if there is one.
    reopening: Option<Registration>,
}

#[derive(Default)]
struct Roster {
    target: usize,
    present: usize,
    paused: bool,
    stopping: bool,
    breaker: Option<Breaker>,
    /// Among the queue's active consumers.
    counted: bool,
    hired: usize,
    /// Workers that wait in [`Crew::join`] for the others.
    waiting: usize,
    threads: Vec<JoinHandle<()>>,
    /// Keeps the consumer alive where no thread does.
    simulated: Option<Arc<dyn Task>>,
    tally: Option<Arc<Tally>>,
}

impl Roster {
    fn circuit(&self) -> Circuit {
        self.breaker.as_ref().map_or(Circuit::Closed, Breaker::circuit)
    }

    /// As what a worker may take its next message, if the circuit lets it.
    fn pass(&mut self) -> Option<Pass> {
        match (self.circuit(), &mut self.breaker) {
            (Circuit::HalfOpen, Some(breaker)) => breaker.claim_probe().then_some(Pass::Probe),
            (Circuit::Open, _) => None,
            _ => Some(Pass::Free),
        }
    }

    /// On what grounds a message taken with this pass is handled; `None` if the circuit opened meanwhile.
    fn permit(&self, pass: Pass) -> Option<Permit> {
        match pass {
            Pass::Probe => Some(Permit::Probe),
            Pass::Free => self.breaker.as_ref().and_then(Breaker::call),
        }
    }
}

/// As what a worker takes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Free,
    /// The only one of its consumer, to see whether the downstream works again.
    Probe,
}

impl Pass {
    /// How many messages it is good for.
    fn limit(self) -> usize {
        match self {
            Self::Free => usize::MAX,
            Self::Probe => 1,
        }
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Squad<T, W> {
    fn new(core: Arc<Core<T>>, work: W, breaker: Option<CircuitBreaker>) -> Arc<Self> {
        let squad = Arc::new_cyclic(|me: &Weak<Self>| Self {
            reopening: breaker.as_ref().map(|_| Registration::new(&core.runtime, me.clone())),
            core,
            work,
            me: Weak::clone(me),
            roster: Mutex::new(Roster { breaker: breaker.map(Breaker::new), ..Roster::default() }),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            orders: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        });
        let crew: Weak<Self> = Arc::downgrade(&squad);
        squad.core.runtime.enlist(crew);
        squad
    }

    /// What a worker thread does.
    fn serve(&self) {
        let tally = self.core.tallies.for_worker();
        self.core.runtime.as_worker(self.core.identity(), || {
            let mut hands = W::Hands::default();
            while let Some(pass) = self.may_go_on() {
                match self.work.take(&self.core, &mut hands, pass.limit(), || self.may_wait(pass)) {
                    Ok(load) => self.handle(pass, load, &tally, &mut hands),
                    Err(nothing) => {
                        self.unused(pass);
                        if matches!(nothing, Nothing::Closed | Nothing::Deadlock) {
                            return self.leave();
                        }
                    }
                }
            }
        });
        self.core.tallies.worker_ended(&tally);
    }

    /// As what this worker is to take another message; waits while paused, or while the circuit is not
    /// closed. Has left if `None`.
    #[inline]
    fn may_go_on(&self) -> Option<Pass> {
        if self.attention.load(Ordering::Acquire) { self.report() } else { Some(Pass::Free) }
    }

    #[cold]
    fn report(&self) -> Option<Pass> {
        let mut roster = self.roster.lock();
        loop {
            if roster.stopping || roster.present > roster.target {
                self.strike_off(roster);
                return None;
            }
            let pass = if roster.paused { None } else { roster.pass() };
            if pass.is_some() {
                return pass;
            }
            self.changed.wait(&mut roster);
        }
    }

    fn may_wait(&self, pass: Pass) -> bool {
        let call = if pass == Pass::Free { &self.attention } else { &self.orders };
        !call.load(Ordering::Acquire)
    }

    #[inline]
    fn handle(&self, pass: Pass, load: W::Load, tally: &Tally, hands: &mut W::Hands) {
        match &self.reopening {
            None => self.work.handle(&self.core, tally, hands, load, None),
            Some(reopening) => self.handle_watched(reopening, pass, load, tally, hands),
        }
    }

    fn handle_watched(&self, reopening: &Registration, pass: Pass, load: W::Load, tally: &Tally, hands: &mut W::Hands) {
        let permit = self.roster.lock().permit(pass);
        match permit {
            None => self.work.give_back(&self.core, hands, load),
            Some(permit) => {
                let hear = |sign| self.heard(permit, sign, reopening);
                self.work.handle(&self.core, tally, hands, load, Some(&hear));
            }
        }
    }

    /// The breaker hears of a handling before its message is settled, so that a failure which opens the
    /// circuit is not redelivered just before. Settling it is also what has shutdown look again.
    fn heard(&self, permit: Permit, sign: Sign, reopening: &Registration) {
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
    fn redrive(&self, since: Timestamp) -> usize {
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
    fn unused(&self, pass: Pass) {
        if pass == Pass::Probe {
            self.roster.lock().breaker.iter_mut().for_each(Breaker::return_probe);
        }
    }

    /// The queue has closed: nothing will come any more.
    fn leave(&self) {
        let roster = self.roster.lock();
        self.strike_off(roster);
    }

    fn strike_off(&self, mut roster: MutexGuard<'_, Roster>) {
        roster.present -= 1;
        self.update(&mut roster);
        drop(roster);
        self.changed.notify_all();
        self.core.runtime.note_progress();
        // Who counted on this worker to make room may now wait for ever.
        self.core.runtime.waits.look_again();
    }

    fn update(&self, roster: &mut Roster) {
        let circuit = roster.circuit();
        let active = !roster.paused && !roster.stopping && circuit != Circuit::Open;
        match (roster.counted, active) {
            (false, true) => _ = self.core.consumers.fetch_add(1, Ordering::SeqCst),
            (true, false) => _ = self.core.consumers.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
        roster.counted = active;
        let orders = roster.paused || roster.stopping || roster.present > roster.target;
        self.orders.store(orders, Ordering::Release);
        self.attention.store(orders || circuit != Circuit::Closed, Ordering::Release);
    }

    /// Makes idle workers look at the roster.
    fn alert(&self) {
        self.changed.notify_all();
        self.core.wake_everyone();
    }

    fn hire(&self, roster: &mut Roster) -> std::io::Result<()> {
        let squad = self.me.upgrade().expect("alive while it is called");
        if self.core.runtime.is_simulated() {
            self.hire_simulated(roster, squad);
            return Ok(());
        }
        let name = format!("{}-{}", self.core.name, roster.hired);
        roster.threads.retain(|thread| !thread.is_finished());
        roster.threads.push(ThreadBuilder::new().name(name).spawn(move || squad.serve())?);
        roster.hired += 1;
        roster.present += 1;
        Ok(())
    }

    /// Hands in what was counted once stopped, but not before the handler that ordered the stop is done.
    fn retire_simulated(&self, roster: &mut Roster) {
        if roster.stopping && self.busy.load(Ordering::SeqCst) == 0 {
            roster.tally.take().into_iter().for_each(|tally| self.core.tallies.worker_ended(&tally));
        }
    }

    fn hire_simulated(&self, roster: &mut Roster, squad: Arc<Self>) {
        roster.present += 1;
        if roster.simulated.is_none() {
            let weak: Weak<Self> = Arc::downgrade(&squad);
            self.core.runtime.executor.as_ref().expect("in a simulation").add(weak);
            roster.tally = Some(self.core.tallies.for_worker());
            roster.simulated = Some(squad);
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
        (!roster.paused && !self.core.has_receivers()).then_some(roster.present)
    }

    fn workers(&self) -> usize {
        self.roster.lock().target
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
        Error::unless_none(subject(&self.core.name), problems)?;
        roster.target = workers;
        if self.core.runtime.is_simulated() {
            roster.present = roster.present.min(workers);
        }
        let mut hired = Ok(());
        while roster.present < roster.target && hired.is_ok() {
            hired = self.hire(&mut roster);
        }
        if let Err(error) = hired {
            roster.target = roster.present;
            return Err(Error::new(subject(&self.core.name), format!("the system refused a thread: {error}")));
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
        self.roster.lock().breaker.as_ref().map(Breaker::circuit)
    }

    fn available_at(&self) -> Option<Timestamp> {
        let roster = self.roster.lock();
        if roster.paused || roster.stopping {
            return None;
        }
        Some(roster.breaker.as_ref().and_then(Breaker::open_until).unwrap_or_default())
    }

    fn order_stop(&self) {
        let mut roster = self.roster.lock();
        roster.stopping = true;
        roster.target = 0;
        if roster.tally.is_some() {
            roster.present = 0;
            self.retire_simulated(&mut roster);
        }
        let simulated = roster.simulated.take();
        self.update(&mut roster);
        drop(roster);
        drop(simulated);
        self.alert();
    }

    fn join(&self, deadline: Option<Instant>) -> usize {
        let mut roster = self.roster.lock();
        let myself = current_thread().id();
        let own = usize::from(roster.threads.iter().any(|thread| thread.thread().id() == myself));
        // Workers that wait in here themselves cannot leave before this returns.
        roster.waiting += own;
        self.changed.notify_all();
        let expected = |roster: &Roster| roster.present.saturating_sub(if own > 0 { roster.waiting } else { 0 });
        while expected(&roster) > 0 {
            let timed_out = match deadline {
                Some(at) => self.changed.wait_until(&mut roster, at).timed_out(),
                None => {
                    self.changed.wait(&mut roster);
                    false
                }
            };
            if timed_out {
                break;
            }
        }
        let late = expected(&roster);
        let others_wait = roster.waiting > own;
        roster.waiting -= own;
        if late == 0 && !others_wait {
            let threads = std::mem::take(&mut roster.threads);
            drop(roster);
            // Their bodies contain every panic, so there is nothing to hear from them.
            let others = threads.into_iter().filter(|thread| thread.thread().id() != myself);
            others.for_each(|thread| drop(thread.join()));
        }
        late
    }
}

impl<T: Send + Sync + 'static, W: Work<T>> Task for Squad<T, W> {
    fn poll(&self) -> bool {
        let (tally, pass) = {
            let mut roster = self.roster.lock();
            let idle = roster.paused || roster.stopping || self.busy.load(Ordering::SeqCst) >= roster.present;
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
            let load = self.work.take_now(&self.core, &mut hands, pass.limit());
            load.map(|load| self.handle(pass, load, &tally, &mut hands)).is_some()
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

/// How messages are taken and handled: one by one or in batches.
trait Work<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What a worker keeps from one handling to the next.
    type Hands: Default;
    /// What was taken, as far as it is not in the hands.
    type Load;
    /// Waits for something to handle: at most `limit` messages.
    fn take(
        &self,
        core: &Core<T>,
        hands: &mut Self::Hands,
        limit: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<Self::Load, Nothing>;
    /// Whether a simulated worker should handle what is there now.
    fn is_ready(&self, core: &Core<T>) -> bool;
    /// Takes what is there now.
    fn take_now(&self, core: &Core<T>, hands: &mut Self::Hands, limit: usize) -> Option<Self::Load>;
    /// Handles what was taken and settles it. Before it is settled, `hear` is told what it says.
    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut Self::Hands,
        load: Self::Load,
        hear: Option<&dyn Fn(Sign)>,
    );
    /// Puts what was taken back as if it had not been.
    fn give_back(&self, core: &Core<T>, hands: &mut Self::Hands, load: Self::Load);
}

/// Times handlings: all of slow ones, one in sixteen of those below a microsecond, where two readings of
/// the clock would cost more than the handling.
#[derive(Default)]
struct Stopwatch {
    skip: u32,
}

impl Stopwatch {
    const SKIP: u32 = 15;

    #[inline]
    fn time<R>(&mut self, clock: &Clock, tally: &Tally, work: impl FnOnce() -> R) -> R {
        if self.skip > 0 {
            self.skip -= 1;
            return work();
        }
        let start = clock.now();
        let result = work();
        let took = clock.now().since(start);
        let quick = took < Duration::from_micros(1);
        self.skip = if quick { Self::SKIP } else { 0 };
        tally.handling.record(took, if quick { u64::from(Self::SKIP) + 1 } else { 1 });
        result
    }
}

struct One<T, H> {
    handler: H,
    hooks: Hooks<T>,
}

#[cold]
fn panicked<T: Send + Sync + 'static>(core: &Core<T>, message: MessageId, text: String) -> (Outcome, Option<String>) {
    core.counts.panicked.add(1);
    core.runtime.tell(|| Event::HandlerPanicked { queue: core.name.to_string(), message, text: text.clone() });
    (Outcome::Retry, Some(text))
}

impl<T: Send + Sync + 'static> Hooks<T> {
    #[inline]
    fn after(&self, message: &Message<T>, outcome: &Outcome) {
        if let Some(after) = &self.after {
            let _ = contained(|| after(message, outcome));
        }
    }

    #[cold]
    fn settle(&self, core: &Core<T>, message: Message<T>, verdict: Verdict, tally: &Tally) {
        if let (Some(hook), Verdict::Bury(reason)) = (&self.on_give_up, &verdict) {
            let _ = contained(|| hook(&message, reason));
        }
        // Too late means that it went back to its queue and was reported as left.
        let _ = core.settle(message, verdict, tally);
    }
}

impl<T, H, R> Work<T> for One<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>) -> R + Send + Sync + 'static,
{
    type Hands = Stopwatch;
    type Load = Message<T>;

    #[inline]
    fn take(
        &self,
        core: &Core<T>,
        _: &mut Stopwatch,
        _: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<Message<T>, Nothing> {
        core.take(Patience::Forever, go_on)
    }

    fn is_ready(&self, _: &Core<T>) -> bool {
        true
    }

    fn take_now(&self, core: &Core<T>, _: &mut Stopwatch, _: usize) -> Option<Message<T>> {
        core.try_take().ok()
    }

    #[inline]
    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        watch: &mut Stopwatch,
        mut message: Message<T>,
        hear: Option<&dyn Fn(Sign)>,
    ) {
        let result = watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    before(&message);
                }
                (self.handler)(&message).into_outcome()
            })
        });
        let (outcome, error) = result.unwrap_or_else(|words| panicked(core, message.id(), words));
        self.hooks.after(&message, &outcome);
        if let Some(hear) = hear {
            hear(Sign::of(&outcome));
        }
        if outcome == Outcome::Ack {
            let _ = core.settle(message, Verdict::Ack, tally);
            return;
        }
        let verdict = core.judge(&mut message, outcome, error);
        self.hooks.settle(core, message, verdict, tally);
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, _: &mut Stopwatch, message: Message<T>) {
        core.restore(vec![message]);
    }
}

struct Many<T, H> {
    handler: H,
    hooks: Hooks<T>,
    max: usize,
    linger: Duration,
}

impl<T, H, R> Many<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
{
    /// Waits for the batch to fill up, at most for `linger` after its first message.
    fn linger(&self, core: &Core<T>, batch: &mut Chunk<Message<T>>, max: usize, go_on: &impl Fn() -> bool) {
        if self.linger.is_zero() {
            return;
        }
        let patience = Patience::Until(core.runtime.clock.now().after(self.linger));
        let go_on = || go_on() && !core.is_draining();
        let mut more = Chunk::new();
        while batch.len() < max && core.wait_for_message(patience, &go_on).is_ok() {
            if core.try_take_batch(max - batch.len(), &mut more).is_ok() {
                batch.append(&mut more);
            }
        }
    }
}

struct BatchHands<T> {
    batch: Chunk<Message<T>>,
    watch: Stopwatch,
}

impl<T> Default for BatchHands<T> {
    fn default() -> Self {
        Self { batch: Chunk::new(), watch: Stopwatch::default() }
    }
}

impl<T, H, R> Work<T> for Many<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
{
    type Hands = BatchHands<T>;
    type Load = ();

    fn take(
        &self,
        core: &Core<T>,
        hands: &mut BatchHands<T>,
        limit: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing> {
        let max = self.max.min(limit);
        loop {
            match core.try_take_batch(max, &mut hands.batch) {
                Ok(()) => break,
                Err(Nothing::Empty | Nothing::NotBefore(_)) => core.wait_for_message(Patience::Forever, &go_on)?,
                Err(nothing) => return Err(nothing),
            }
        }
        self.linger(core, &mut hands.batch, max, &go_on);
        Ok(())
    }

    /// A simulated worker does not wait for its batch to fill: it takes a full one at once, a partial one
    /// when the oldest message has waited for as long as a thread would linger.
    fn is_ready(&self, core: &Core<T>) -> bool {
        core.ready() >= self.max as u64 || core.has_lingered(self.linger)
    }

    fn take_now(&self, core: &Core<T>, hands: &mut BatchHands<T>, limit: usize) -> Option<()> {
        core.try_take_batch(self.max.min(limit), &mut hands.batch).ok()
    }

    fn handle(&self, core: &Core<T>, tally: &Tally, hands: &mut BatchHands<T>, (): (), hear: Option<&dyn Fn(Sign)>) {
        let batch = &mut hands.batch;
        let messages: &[Message<T>] = batch.make_contiguous();
        let result = hands.watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    messages.iter().for_each(before);
                }
                (self.handler)(messages).into_outcome()
            })
        });
        let (outcome, error) = result.unwrap_or_else(|words| panicked(core, messages[0].id(), words));
        messages.iter().for_each(|message| self.hooks.after(message, &outcome));
        if let Some(hear) = hear {
            hear(Sign::of(&outcome));
        }
        if outcome == Outcome::Ack && core.ack_all(batch, tally).is_ok() {
            return;
        }
        for mut message in batch.drain(..) {
            let verdict = core.judge(&mut message, outcome.clone(), error.clone());
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, hands: &mut BatchHands<T>, (): ()) {
        core.restore(hands.batch.drain(..).collect());
    }
}
