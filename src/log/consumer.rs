//! Workers of a group, and what they do with a partition they have claimed.

use super::claim::{Claim, Found, Next, Nothing, Want};
use super::core::GroupCore;
use super::record::Record;
use super::settle::Answer;
use crate::breaker::Circuit;
use crate::clock::Timestamp;
use crate::consumer::{Consumer, Crew};
use crate::deadlock::QueueRef;
use crate::error::Error;
use crate::outcome::{IntoOutcome, contained};
use crate::scheduler::TimedId;
use crate::simulation::Task;
use crate::sync::{
    AtomicBool, AtomicUsize, Condvar, JoinHandle, Mutex, Ordering, ThreadBuilder, current_thread, yield_now,
};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How many records a worker handles before it lets another partition have its turn.
const RUN: usize = 128;

/// Describes a consumer of a group; nothing runs until it is started.
#[must_use = "nothing runs until `start` is called"]
pub struct GroupConsumerBuilder<T> {
    group: Arc<GroupCore<T>>,
    workers: usize,
}

impl<T: Send + Sync + 'static> GroupConsumerBuilder<T> {
    pub(super) fn new(group: Arc<GroupCore<T>>) -> Self {
        Self { group, workers: 1 }
    }

    /// How many threads handle records at the same time, each of another partition. Default 1. More than
    /// there are partitions have nothing to do.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Starts the workers. Each claims a partition, calls `handler` with its records one by one, commits each
    /// that succeeded, and gives the partition back after a while. `()` or `Ok` commits, an error tries again
    /// as the group's retry policy says (the partition waits, others flow) or makes a dead letter; an
    /// [`Outcome`](crate::Outcome) says itself. A panic is a failed attempt.
    ///
    /// # Errors
    /// Zero workers, or a system that refuses the threads.
    pub fn start<R, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&Record<T>) -> R + Send + Sync + 'static,
    {
        self.launch(Vec::new(), Single { handler })
    }

    /// Starts workers that take up to `max` records of one partition at a time: as soon as there are so many,
    /// or `linger` after the first was seen. The answer holds for all of them; if they fail, the same
    /// records come again together.
    ///
    /// # Errors
    /// As [`GroupConsumerBuilder::start`], and a `max` of zero.
    pub fn start_batch<R, H>(self, max: usize, linger: Duration, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&[Record<T>]) -> R + Send + Sync + 'static,
    {
        let problems = if max == 0 { vec!["batches of 0 records: at least 1".to_owned()] } else { Vec::new() };
        self.launch(problems, Batches { handler, want: Want { max, linger } })
    }

    fn launch<W: Work<T>>(self, mut problems: Vec<String>, work: W) -> Result<Consumer, Error> {
        if self.workers == 0 {
            problems.push("0 workers would handle nothing: at least 1".into());
        }
        Error::unless_none(subject(&self.group.full_name), problems)?;
        let squad = Squad::new(self.group, work);
        squad.scale_to(self.workers)?;
        Ok(Consumer::of(squad))
    }
}

fn subject(group: &str) -> String {
    format!("consumer of group {group:?}")
}

/// How a claimed partition is handled.
trait Work<T>: Send + Sync + 'static {
    fn want(&self) -> Want;
    /// Handles at most `calls` times something from `first` on and settles it; what becomes of the partition.
    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        most: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Next;
}

struct Single<H> {
    handler: H,
}

impl<T, H, R> Work<T> for Single<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Record<T>) -> R + Send + Sync + 'static,
{
    fn want(&self) -> Want {
        Want::ONE
    }

    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        _: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Next {
        let mut record = first;
        // What failed before, or has to keep its pace, is looked at one by one.
        let run = if record.attempt() > 1 || group.settings.replay.is_paced() { 1 } else { RUN };
        for _ in 0..run {
            let answer: Answer = contained(|| (self.handler)(&record).into_outcome());
            if let Some(next) = group.settle(claim, std::slice::from_ref(&record), answer) {
                return next;
            }
            if !go_on() || !moves_on(group, &mut record) {
                break;
            }
        }
        Next::Ready
    }
}

/// Moves on to the next record. At the end of the log it lets others run a few times first: giving the
/// partition back and sleeping costs far more, and so does waking up for each append.
fn moves_on<T: Send + Sync + 'static>(group: &GroupCore<T>, record: &mut Record<T>) -> bool {
    const PATIENCE: usize = 4;
    group.advance(record)
        || (0..PATIENCE).any(|_| {
            yield_now();
            group.advance(record)
        })
}

struct Batches<H> {
    handler: H,
    want: Want,
}

impl<T, H, R> Work<T> for Batches<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Record<T>]) -> R + Send + Sync + 'static,
{
    fn want(&self) -> Want {
        self.want
    }

    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        most: usize,
        _: &dyn Fn() -> bool,
    ) -> Next {
        let batch = group.collect(first, most);
        let answer: Answer = contained(|| (self.handler)(&batch).into_outcome());
        group.settle(claim, &batch, answer).unwrap_or(Next::Ready)
    }
}

/// The workers of one consumer and what they do.
struct Squad<T, W> {
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
    target: usize,
    present: usize,
    paused: bool,
    stopping: bool,
    /// Among the group's active consumers.
    counted: bool,
    hired: usize,
    /// Workers that wait in [`Crew::join`] for the others.
    waiting: usize,
    threads: Vec<JoinHandle<()>>,
    /// Keeps the consumer alive where no thread does.
    simulated: Option<Arc<dyn Task>>,
}

impl<T: Send + Sync + 'static, W: Work<T>> Squad<T, W> {
    fn new(group: Arc<GroupCore<T>>, work: W) -> Arc<Self> {
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
        squad
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
        let mut roster = self.roster.lock();
        loop {
            if roster.stopping || roster.present > roster.target {
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
        roster.present -= 1;
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
        let orders = roster.paused || roster.stopping || roster.present > roster.target;
        self.attention.store(orders, Ordering::Release);
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
            roster.present += 1;
            if roster.simulated.is_none() {
                let weak: Weak<Self> = Arc::downgrade(&squad);
                executor.add(weak);
                roster.simulated = Some(squad);
            }
            return Ok(());
        }
        let name = format!("{}-{}", self.group.full_name, roster.hired);
        roster.threads.retain(|thread| !thread.is_finished());
        roster.threads.push(ThreadBuilder::new().name(name).spawn(move || squad.serve())?);
        roster.hired += 1;
        roster.present += 1;
        Ok(())
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
        (!roster.paused).then_some(roster.present)
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
        Error::unless_none(subject(&self.group.full_name), problems)?;
        roster.target = workers;
        if self.group.shelf.runtime.is_simulated() {
            roster.present = roster.present.min(workers);
        }
        let mut hired = Ok(());
        while roster.present < roster.target && hired.is_ok() {
            hired = self.hire(&mut roster);
        }
        if let Err(error) = hired {
            roster.target = roster.present;
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
        roster.target = 0;
        if self.group.shelf.runtime.is_simulated() {
            roster.present = 0;
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
    /// One record, or one batch.
    fn poll(&self) -> bool {
        let idle = {
            let roster = self.roster.lock();
            roster.paused || roster.stopping || self.busy.load(Ordering::SeqCst) >= roster.present
        };
        let claim = if idle { None } else { self.group.try_claim(self.work.want()) };
        let Some(claim) = claim else { return false };
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.group.shelf.runtime.as_worker(self.identity(), || self.handle(claim, &|| false));
        self.busy.fetch_sub(1, Ordering::SeqCst);
        true
    }
}
