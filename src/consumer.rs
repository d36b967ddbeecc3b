//! Workers and handlers.

use crate::clock::Clock;
use crate::dead_letter::Reason;
use crate::delivery::Verdict;
use crate::error::Error;
use crate::message::{Message, MessageId};
use crate::outcome::{IntoOutcome, Outcome, contained};
use crate::queue::core::{Core, Nothing, Patience};
use crate::queue::fifo::Chunk;
use crate::runtime::Event;
use crate::scheduler::TimedId;
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
}

impl<T: Send + Sync + 'static> ConsumerBuilder<T> {
    pub(crate) fn new(core: Arc<Core<T>>) -> Self {
        Self { core, workers: 1, hooks: Hooks { before: None, after: None, on_give_up: None } }
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

    /// Starts the workers. Each takes one message at a time, calls `handler` and settles as it answers:
    /// `()` or `Ok` acks, an error retries or dead-letters (see [`Failure`](crate::Failure)), an
    /// [`Outcome`] says itself. A panic counts as a failed attempt and leaves the worker running.
    ///
    /// The workers run until [`Consumer::stop`] or the broker's shutdown, whether or not the returned
    /// handle is kept.
    ///
    /// # Errors
    /// Zero workers, a queue that is closed, or a system that refuses the threads.
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
        Error::unless_none(subject(&self.core.name), problems)?;
        let squad = Squad::new(self.core, work(self.hooks));
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
    /// Waited on with the roster: pause has ended, or a worker has left.
    changed: Condvar,
    /// Some worker has to look at the roster before its next message.
    attention: AtomicBool,
    /// Handlings under way, in a simulation.
    busy: AtomicUsize,
}

#[derive(Default)]
struct Roster {
    target: usize,
    present: usize,
    paused: bool,
    stopping: bool,
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

impl<T: Send + Sync + 'static, W: Work<T>> Squad<T, W> {
    fn new(core: Arc<Core<T>>, work: W) -> Arc<Self> {
        let squad = Arc::new_cyclic(|me| Self {
            core,
            work,
            me: Weak::clone(me),
            roster: Mutex::new(Roster::default()),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
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
            while self.may_go_on() {
                let go_on = || !self.attention.load(Ordering::Acquire);
                let handled = self.work.take_and_handle(&self.core, &tally, &mut hands, go_on);
                if matches!(handled, Err(Nothing::Closed | Nothing::Deadlock)) {
                    return self.leave();
                }
            }
        });
        self.core.tallies.worker_ended(&tally);
    }

    /// Whether this worker is to take another message; waits while paused. Has left if not.
    #[inline]
    fn may_go_on(&self) -> bool {
        !self.attention.load(Ordering::Acquire) || self.report()
    }

    #[cold]
    fn report(&self) -> bool {
        let mut roster = self.roster.lock();
        loop {
            if roster.stopping || roster.present > roster.target {
                self.strike_off(roster);
                return false;
            }
            if !roster.paused {
                return true;
            }
            self.changed.wait(&mut roster);
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
        let active = !roster.paused && !roster.stopping;
        match (roster.counted, active) {
            (false, true) => _ = self.core.consumers.fetch_add(1, Ordering::SeqCst),
            (true, false) => _ = self.core.consumers.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
        roster.counted = active;
        let needed = roster.paused || roster.stopping || roster.present > roster.target;
        self.attention.store(needed, Ordering::Release);
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
        let tally = {
            let roster = self.roster.lock();
            let idle = roster.paused || roster.stopping || self.busy.load(Ordering::SeqCst) >= roster.present;
            match (&roster.tally, idle) {
                (Some(tally), false) => Arc::clone(tally),
                _ => return false,
            }
        };
        if !self.work.is_ready(&self.core) {
            return false;
        }
        self.busy.fetch_add(1, Ordering::SeqCst);
        let mut hands = W::Hands::default();
        let handled =
            self.core.runtime.as_worker(self.core.identity(), || self.work.take_now(&self.core, &tally, &mut hands));
        self.busy.fetch_sub(1, Ordering::SeqCst);
        self.retire_simulated(&mut self.roster.lock());
        handled
    }
}

/// How messages are taken and handled: one by one or in batches.
trait Work<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What a worker keeps from one handling to the next.
    type Hands: Default;
    /// Waits for something to handle and handles it.
    fn take_and_handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut Self::Hands,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing>;
    /// Whether a simulated worker should handle what is there now.
    fn is_ready(&self, core: &Core<T>) -> bool;
    /// Handles what is there now; whether there was anything.
    fn take_now(&self, core: &Core<T>, tally: &Tally, hands: &mut Self::Hands) -> bool;
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

impl<T, H, R> One<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>) -> R + Send + Sync + 'static,
{
    #[inline]
    fn handle(&self, core: &Core<T>, tally: &Tally, watch: &mut Stopwatch, mut message: Message<T>) {
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
        if outcome == Outcome::Ack {
            let _ = core.settle(message, Verdict::Ack, tally);
            return;
        }
        let verdict = core.judge(&mut message, outcome, error);
        self.hooks.settle(core, message, verdict, tally);
    }
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

    #[inline]
    fn take_and_handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        watch: &mut Stopwatch,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing> {
        let message = core.take(Patience::Forever, go_on)?;
        self.handle(core, tally, watch, message);
        Ok(())
    }

    fn is_ready(&self, _: &Core<T>) -> bool {
        true
    }

    fn take_now(&self, core: &Core<T>, tally: &Tally, watch: &mut Stopwatch) -> bool {
        core.try_take().map(|message| self.handle(core, tally, watch, message)).is_ok()
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
    fn handle(&self, core: &Core<T>, tally: &Tally, hands: &mut BatchHands<T>) {
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
        if outcome == Outcome::Ack && core.ack_all(batch, tally).is_ok() {
            return;
        }
        for mut message in batch.drain(..) {
            let verdict = core.judge(&mut message, outcome.clone(), error.clone());
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    /// Waits for the batch to fill up, at most for `linger` after its first message.
    fn linger(&self, core: &Core<T>, batch: &mut Chunk<Message<T>>, go_on: &impl Fn() -> bool) {
        if self.linger.is_zero() {
            return;
        }
        let patience = Patience::Until(core.runtime.clock.now().after(self.linger));
        let go_on = || go_on() && !core.is_draining();
        let mut more = Chunk::new();
        while batch.len() < self.max && core.wait_for_message(patience, &go_on).is_ok() {
            if core.try_take_batch(self.max - batch.len(), &mut more).is_ok() {
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

    fn take_and_handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut BatchHands<T>,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing> {
        match core.try_take_batch(self.max, &mut hands.batch) {
            Ok(()) => {}
            Err(Nothing::Empty) => return core.wait_for_message(Patience::Forever, &go_on),
            Err(nothing) => return Err(nothing),
        }
        self.linger(core, &mut hands.batch, &go_on);
        self.handle(core, tally, hands);
        Ok(())
    }

    /// A simulated worker does not wait for its batch to fill: it takes a full one at once, a partial one
    /// when the oldest message has waited for as long as a thread would linger.
    fn is_ready(&self, core: &Core<T>) -> bool {
        core.ready() >= self.max as u64 || core.has_lingered(self.linger)
    }

    fn take_now(&self, core: &Core<T>, tally: &Tally, hands: &mut BatchHands<T>) -> bool {
        let taken = core.try_take_batch(self.max, &mut hands.batch).is_ok();
        if taken {
            self.handle(core, tally, hands);
        }
        taken
    }
}
