//! Messages at fixed times: who fires when, under a name.

#[cfg(feature = "cron")]
mod cron;
#[cfg(feature = "sqlite")]
mod filed;
#[cfg(not(feature = "sqlite"))]
#[path = "memory_only.rs"]
mod filed;
mod rule;

use crate::broker::Broker;
use crate::clock::{SystemClock, Timestamp};
use crate::error::{Error, SHUT_DOWN};
use crate::message::Message;
use crate::outcome::{contained, drop_contained};
use crate::queue::Queue;
use crate::queue::builder::name_problems;
#[cfg(feature = "sqlite")]
use crate::queue::core::Patience;
use crate::queue::durable::Rider;
use crate::runtime::Runtime;
use crate::scheduler::{Timed, TimedId};
use crate::sync::Mutex;
use crate::topic::Topic;
use filed::Book;
use rule::{Due, Rule, firings_due};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What becomes of firings that nobody was awake for: the process was suspended, or the scheduler's thread
/// was held up, or a manual clock was moved far ahead.
///
/// A firing less than a minute late is on time, unless the next one is due already. So [`Missed::Skip`] and
/// [`Missed::Once`] differ only for intervals above a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// They are left out. If the latest firing due is on time, that one happens.
    Skip,
    /// One for all of them, at once. The default.
    #[default]
    Once,
    /// Each of them, one after the other at once; at most 64 a millisecond, so that nothing else that waits
    /// for its time is held up.
    All,
}

/// Describes messages to come at fixed times; nothing is scheduled until [`ScheduleBuilder::publish`] or
/// [`ScheduleBuilder::send`].
///
/// Scheduling is idempotent: the same name with the same rule, target and choice about missed firings gives
/// another handle to the same schedule; with others it is an error that says both. Functions cannot be
/// compared, so the first one stays.
///
/// ```
/// use postroom::{Broker, Queue};
/// use std::time::Duration;
///
/// let (broker, simulation) = Broker::simulated(1);
/// let jobs: Queue<&str> = broker.queue("jobs").declare()?;
/// let cleaning = broker.schedule("clean-up").every(Duration::from_secs(60)).send(&jobs, || "clean up")?;
///
/// simulation.advance(Duration::from_secs(180));
/// assert_eq!(jobs.len(), 3);
/// cleaning.pause();
/// simulation.advance(Duration::from_secs(3600));
/// assert_eq!(jobs.len(), 3);
/// # Ok::<(), postroom::Error>(())
/// ```
///
/// # Firing
///
/// The function that makes the message runs on the one thread that also handles retries and delays: keep it
/// short, and leave work to a consumer. That thread never waits for room: a firing that finds its queue full
/// or closed has failed, as has one whose function panics. Failures are counted, [`ScheduleInfo::last_error`]
/// says why, and the next attempt is the next firing.
///
/// A schedule belongs to its broker, not to its handles. It ends when it is removed, when the broker is shut
/// down, or with the broker's last clone. It does not outlive the process: after a restart it is declared
/// anew, and what would have fired meanwhile does not count as missed, unless it is durable (feature `sqlite`).
///
/// # Which time it goes by
///
/// The broker's: the wall clock when it was built, and the monotonic clock from there. A system clock that
/// is set forward or back neither repeats nor omits a firing, but a long-lived process whose system clock
/// was set, or that slept through a suspend of its machine where the monotonic clock stands still (Linux,
/// macOS), reads local times off by as much until it builds a new broker.
///
/// In a simulation firings come in virtual time, in order. While a schedule runs, something is always due,
/// so a blocking call that waits for ever is not found out as a deadlock.
#[must_use = "nothing is scheduled until `publish` or `send` is called"]
pub struct ScheduleBuilder {
    broker: Broker,
    name: String,
    asked: Option<Asked>,
    starting_at: Option<SystemTime>,
    missed: Missed,
    durable: bool,
}

/// A rule as it was asked for.
#[derive(Debug)]
enum Asked {
    Every(Duration),
    #[cfg(feature = "cron")]
    Cron {
        expression: String,
        zone: String,
    },
}

/// Below it, the thread that fires would do nothing else.
const SHORTEST: Duration = Duration::from_millis(1);

impl ScheduleBuilder {
    pub(crate) fn of(broker: Broker, name: String) -> Self {
        Self { broker, name, asked: None, starting_at: None, missed: Missed::default(), durable: false }
    }

    /// Fires at a fixed interval, at least a millisecond, for the first time one interval from now. The
    /// rhythm does not drift: a late firing does not put off the next.
    pub fn every(mut self, interval: Duration) -> Self {
        self.asked = Some(Asked::Every(interval));
        self
    }

    /// Fires at the local times that match a cron expression, instead of at an interval. Needs the feature
    /// `cron`.
    ///
    /// The expression has five fields (minute, hour, day of month, month, day of week), or six with seconds
    /// ahead, or seven with years at the end; names (`MON`, `JAN`), `L`, `W`, `#` and words such as `@daily`
    /// are understood (by the crate `croner`). If both days are restricted, either suffices. The zone is an
    /// IANA name; the zones come from the system, or else from a copy inside this crate's dependencies.
    ///
    /// ```
    /// use postroom::{Broker, ManualClock, Queue};
    /// use std::time::{Duration, SystemTime};
    ///
    /// // 2025-01-01, midnight in Greenwich, one o'clock in Berlin.
    /// let (broker, simulation) = Broker::builder().clock(ManualClock::new()).build_simulated()?;
    /// let reports: Queue<&str> = broker.queue("reports").declare()?;
    /// let nightly = broker.schedule("nightly").cron("0 3 * * *", "Europe/Berlin").send(&reports, || "due")?;
    ///
    /// assert_eq!(nightly.next(), Some(simulation.now() + Duration::from_secs(2 * 3600)));
    /// simulation.advance(Duration::from_secs(7 * 24 * 3600));
    /// assert_eq!(reports.len(), 7);
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// # Daylight saving
    ///
    /// An expression that names one time of day (`30 2 * * *`) fires once on every day it names. If the clock
    /// jumps over that time, it fires at the first moment after the jump; if the time comes twice, at its
    /// first occurrence.
    ///
    /// An expression with several times of day (`*/15 * * * *`, `0 1-3 * * *`) goes by the clock on the wall:
    /// times jumped over do not happen, and times that come twice fire twice. So a rhythm within the hour
    /// stays even through both changes.
    #[cfg(feature = "cron")]
    pub fn cron(mut self, expression: impl Into<String>, zone: impl Into<String>) -> Self {
        self.asked = Some(Asked::Cron { expression: expression.into(), zone: zone.into() });
        self
    }

    /// Fires at no time before this one. An interval is counted from it, so that its first firing is at this
    /// very time; if the time has passed, at the next whole number of intervals after it. Default: after now.
    pub fn starting_at(mut self, time: SystemTime) -> Self {
        self.starting_at = Some(time);
        self
    }

    /// What becomes of firings that come too late. Default [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Notes in the broker's file (see [`Broker::open`]) when it fires next. A later run that schedules the same name
    /// with the same rule goes on from there: what would have fired meanwhile was [missed](Self::missed), and is made
    /// up for at once as far as that says. Default: only in memory.
    ///
    /// * Where a firing's message goes to durable queues only, it is noted in the commit that writes the message, so
    ///   that after a crash the firing has happened once. Otherwise it is noted a few milliseconds later, and a crash
    ///   before that repeats it.
    /// * Bind everything that its messages are for before it is scheduled.
    /// * An interval without a start goes on in the rhythm of the run before. With another rule it begins afresh, as
    ///   it does after [`Schedule::remove`]. A pause ends with the process, and what it left out counts as missed then.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, ManualClock, Queue};
    /// use std::time::Duration;
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-schedule-{}.db", std::process::id()));
    /// const HOUR: Duration = Duration::from_secs(3600);
    /// let clock = ManualClock::new();
    /// let run = || -> Result<usize, postroom::Error> {
    ///     let (broker, simulation) = Broker::builder().clock(clock.clone()).store(&path).build_simulated()?;
    ///     let jobs: Queue<String> = broker.queue("jobs").durable(Durability::Sync).declare()?;
    ///     broker.schedule("daily").every(24 * HOUR).durable().send(&jobs, || "report".to_string())?;
    ///     simulation.advance(10 * HOUR);
    ///     Ok(jobs.len())
    /// };
    /// assert_eq!(run()?, 0);
    /// clock.advance(20 * HOUR); // the process is down
    /// assert_eq!(run()?, 1);
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    #[cfg(feature = "sqlite")]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Publishes what `payload` returns, a payload or a whole [`Message`], to a topic at each firing.
    ///
    /// ```
    /// use postroom::{Broker, Message, Topic};
    /// use std::time::Duration;
    ///
    /// let broker = Broker::new();
    /// let reports: Topic<u32> = broker.topic("reports").declare()?;
    /// broker
    ///     .schedule("report")
    ///     .every(Duration::from_secs(3600))
    ///     .publish(&reports, "report.due", || Message::new(7).with_header("by", "schedule"))?;
    /// assert_eq!(broker.schedules()[0].rule, "every 3600s");
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with it at once: an empty name or one with control characters, no rule, an
    /// interval below a millisecond, a malformed cron expression, an unknown time zone, a rule that never
    /// fires, a name taken by another schedule, a target of another broker, a broker that was shut down.
    pub fn publish<T, M>(
        self,
        topic: &Topic<T>,
        routing_key: impl Into<String>,
        payload: impl Fn() -> M + Send + Sync + 'static,
    ) -> Result<Schedule, Error>
    where
        T: Send + Sync + 'static,
        M: Into<Message<T>>,
    {
        let key = routing_key.into();
        let target = Target {
            text: format!("topic {:?} with key {key:?}", topic.name()),
            ours: Arc::ptr_eq(&topic.core.runtime, self.broker.runtime()),
        };
        let topic = topic.clone();
        let publish = move |message: Message<T>, report: Report| {
            #[cfg(feature = "sqlite")]
            topic.publish_later(&key, message, Patience::None).then(|result| report.give(result));
            #[cfg(not(feature = "sqlite"))]
            report.give(topic.try_publish(&key, message));
        };
        self.declare(target, job(payload, publish))
    }

    /// Sends what `payload` returns, a payload or a whole [`Message`], to a queue at each firing.
    ///
    /// # Errors
    /// As [`ScheduleBuilder::publish`].
    pub fn send<T, M>(
        self,
        queue: &Queue<T>,
        payload: impl Fn() -> M + Send + Sync + 'static,
    ) -> Result<Schedule, Error>
    where
        T: Send + Sync + 'static,
        M: Into<Message<T>>,
    {
        let target = Target {
            text: format!("queue {:?}", queue.name()),
            ours: Arc::ptr_eq(&queue.core.runtime, self.broker.runtime()),
        };
        let queue = queue.clone();
        let send = move |message: Message<T>, report: Report| {
            #[cfg(feature = "sqlite")]
            queue.send_later(message, Patience::None).then(|result| report.give(result));
            #[cfg(not(feature = "sqlite"))]
            report.give(queue.try_send(message));
        };
        self.declare(target, job(payload, send))
    }

    fn declare(self, target: Target, job: Job) -> Result<Schedule, Error> {
        let runtime = Arc::clone(self.broker.runtime());
        let mut problems = name_problems(&self.name);
        let rule = self.rule(runtime.clock.now()).map_err(|found| problems.extend(found)).ok();
        if !target.ours {
            problems.push(format!("its target, {}, belongs to another broker", target.text));
        }
        let plan = Plan { rule: self.rule_text(), target: target.text, missed: self.missed, durable: self.durable };
        let (book, next) = match self.open_book(&plan.rule) {
            Ok(opened) => opened.unzip(),
            Err(problem) => {
                problems.push(problem);
                (None, None)
            }
        };
        self.broker.schedule_table().declare(&self.name, plan, problems, |name, plan| {
            let rule = rule.expect("a problem otherwise").going_on(next.flatten(), runtime.clock.now());
            Entry::start(name, plan, rule, runtime, book, job)
        })
    }

    /// With its next firing, if an earlier run has noted one.
    #[cfg(feature = "sqlite")]
    fn open_book(&self, rule: &str) -> Result<Option<(Book, Option<Timestamp>)>, String> {
        self.durable.then(|| Book::open(&self.broker, &self.name, rule)).transpose()
    }

    #[cfg(not(feature = "sqlite"))]
    fn open_book(&self, _: &str) -> Result<Option<(Book, Option<Timestamp>)>, String> {
        Ok(None)
    }

    /// The rule as a line for people; two rules are the same if their lines are.
    fn rule_text(&self) -> String {
        let start = self.starting_at.map_or_else(String::new, |time| {
            format!(", from Unix time {:?}", time.duration_since(UNIX_EPOCH).unwrap_or_default())
        });
        match &self.asked {
            None => "no rule".into(),
            Some(Asked::Every(interval)) => format!("every {interval:?}{start}"),
            #[cfg(feature = "cron")]
            Some(Asked::Cron { expression, zone }) => format!("cron {expression:?} in {zone}{start}"),
        }
    }

    fn rule(&self, now: Timestamp) -> Result<Rule, Vec<String>> {
        let start = self.starting_at.map(Timestamp::from_system_time);
        let rule = match &self.asked {
            None => return Err(vec!["it has no rule: say how often, or at which times".into()]),
            Some(Asked::Every(interval)) if *interval < SHORTEST => {
                return Err(vec![format!("interval of {interval:?}: at least {SHORTEST:?}")]);
            }
            Some(Asked::Every(interval)) => {
                let period = Timestamp::default().after(*interval).0;
                Rule::Every { period, first: start.unwrap_or_else(|| now.after(*interval)) }
            }
            #[cfg(feature = "cron")]
            Some(Asked::Cron { expression, zone }) => Rule::Cron {
                cron: Box::new(cron::Cron::parse(expression, zone)?),
                start: start.unwrap_or(Timestamp(now.0 + 1)),
            },
        };
        match rule.first_from(now) {
            Some(first) if first < Timestamp::MAX => Ok(rule),
            _ => Err(vec![format!("{} never fires", self.rule_text())]),
        }
    }
}

impl fmt::Debug for ScheduleBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduleBuilder").field("name", &self.name).field("rule", &self.rule_text()).finish()
    }
}

struct Target {
    text: String,
    ours: bool,
}

/// Makes a message and hands it over, then or later reporting what came of it.
type Job = Arc<dyn Fn(Rider, Report) + Send + Sync>;

/// Who hears what came of a firing.
struct Report(Weak<Entry>);

impl Report {
    fn give<R, E: fmt::Display>(self, result: Result<R, E>) {
        if let Some(entry) = self.0.upgrade() {
            entry.count(result.map(drop).map_err(in_words));
        }
    }
}

fn job<T: 'static, M: Into<Message<T>>>(
    payload: impl Fn() -> M + Send + Sync + 'static,
    hand_over: impl Fn(Message<T>, Report) + Send + Sync + 'static,
) -> Job {
    Arc::new(move |rider, report| {
        let mut message = payload().into();
        message.give_rider(&rider);
        hand_over(message, report);
        rider.end();
    })
}

/// The error holds the message, whose destructor is a user's.
fn in_words<E: fmt::Display>(error: E) -> String {
    let words = error.to_string();
    drop_contained(error);
    words
}

/// A handle to a schedule. Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct Schedule {
    entry: Arc<Entry>,
    table: Weak<Schedules>,
}

impl Schedule {
    /// The name it was declared under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Lets it fire no more until [`Schedule::resume`]. A firing under way at this moment still happens.
    pub fn pause(&self) {
        let mut state = self.entry.state.lock();
        state.paused = true;
        state.next = None;
    }

    /// Lets it fire again, in its old rhythm: next at the first of its times that is still to come. What
    /// would have fired while it was paused is not made up for. Does nothing if it is not paused.
    pub fn resume(&self) {
        let now = self.entry.runtime.clock.now();
        let mut state = self.entry.state.lock();
        if state.paused && state.job.is_some() {
            state.paused = false;
            state.next = self.entry.rule.next_after(now);
            self.entry.book.iter().for_each(|book| book.note(state.next));
            self.entry.arm(&state);
        }
    }

    /// Ends it, drops its function and frees its name. A firing under way at this moment still happens.
    pub fn remove(&self) {
        if let Some(table) = self.table.upgrade() {
            table.forget(&self.entry);
        }
        self.entry.state.lock().removed = true;
        self.entry.end();
        self.entry.forget();
    }

    /// When it fires next; `None` while it is paused, and once it has been removed or has no time left.
    #[must_use]
    pub fn next(&self) -> Option<SystemTime> {
        self.entry.state.lock().next.map(Timestamp::to_system_time)
    }

    /// How many firings there were whose message was taken.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.entry.state.lock().fired
    }

    /// How many firings there were whose message was not taken, or could not be made.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.entry.state.lock().failed
    }

    /// All there is to know about it now.
    #[must_use]
    pub fn info(&self) -> ScheduleInfo {
        self.entry.info()
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        f.debug_struct("Schedule")
            .field("name", &info.name)
            .field("rule", &info.rule)
            .field("next", &info.next)
            .finish()
    }
}

/// A schedule at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScheduleInfo {
    /// Its name.
    pub name: String,
    /// When it fires, in words.
    pub rule: String,
    /// Where its messages go, in words.
    pub target: String,
    /// When it fires next; `None` while it is paused, and if it has no time left.
    pub next: Option<SystemTime>,
    /// Whether it is paused.
    pub paused: bool,
    /// Firings whose message was taken.
    pub fired: u64,
    /// Firings whose message was not taken, or could not be made.
    pub failed: u64,
    /// Firings left out because they were missed. Those of a cron rule are counted up to a thousand at a
    /// time.
    pub missed: u64,
    /// Why the latest failed firing failed.
    pub last_error: Option<String>,
}

/// A broker's schedules by name.
#[derive(Default)]
pub(crate) struct Schedules {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    closed: bool,
}

impl Schedules {
    fn declare(
        self: &Arc<Self>,
        name: &str,
        plan: Plan,
        mut problems: Vec<String>,
        start: impl FnOnce(Arc<str>, Plan) -> Arc<Entry>,
    ) -> Result<Schedule, Error> {
        let mut table = self.table.lock();
        if table.closed {
            problems.push(SHUT_DOWN.into());
        }
        let existing = table.entries.get(name).cloned();
        if let Some(existing) = &existing {
            problems.extend(existing.plan.differences(&plan));
        }
        Error::unless_none(format!("schedule {name:?}"), problems)?;
        // An unused `start` is dropped after the lock: the function in it is a user's, with a destructor.
        let entry = match existing {
            Some(entry) => entry,
            None => {
                let entry = start(name.into(), plan);
                table.entries.insert(Arc::clone(&entry.name), Arc::clone(&entry));
                entry
            }
        };
        Ok(Schedule { entry, table: Arc::downgrade(self) })
    }

    pub(crate) fn find(self: &Arc<Self>, name: &str) -> Option<Schedule> {
        let entry = self.table.lock().entries.get(name).cloned()?;
        Some(Schedule { entry, table: Arc::downgrade(self) })
    }

    pub(crate) fn all(&self) -> Vec<ScheduleInfo> {
        self.table.lock().entries.values().map(|entry| entry.info()).collect()
    }

    /// Ends all, and lets none begin.
    pub(crate) fn close(&self) {
        let ended = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.entries)
        };
        ended.values().for_each(|entry| entry.end());
    }

    /// The name may belong to a later schedule by now.
    fn forget(&self, entry: &Arc<Entry>) {
        let mut table = self.table.lock();
        if table.entries.get(&entry.name).is_some_and(|found| Arc::ptr_eq(found, entry)) {
            table.entries.remove(&entry.name);
        }
    }
}

/// What is compared when a name is declared again.
struct Plan {
    rule: String,
    target: String,
    missed: Missed,
    durable: bool,
}

impl Plan {
    /// Each part that differs, as "part: here, there".
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.rule != other.rule {
            found.push(format!("it exists with the rule {}, asked for {}", self.rule, other.rule));
        }
        if self.target != other.target {
            found.push(format!("it exists for {}, asked for {}", self.target, other.target));
        }
        if self.missed != other.missed {
            found.push(format!("missed is {:?}, asked for {:?}", self.missed, other.missed));
        }
        if self.durable != other.durable {
            found.push(format!("durable is {}, asked for {}", self.durable, other.durable));
        }
        found
    }
}

/// One schedule. The broker's table owns it, the scheduler only knows of it, and its job, which holds the
/// target and whatever the user's function captured, is dropped as soon as it ends.
struct Entry {
    name: Arc<str>,
    plan: Plan,
    rule: Rule,
    runtime: Arc<Runtime>,
    /// Of a durable one.
    book: Option<Book>,
    me: Weak<Self>,
    state: Mutex<State>,
}

struct State {
    /// `None` once it has ended.
    job: Option<Job>,
    timed: Option<TimedId>,
    next: Option<Timestamp>,
    paused: bool,
    removed: bool,
    fired: u64,
    failed: u64,
    missed: u64,
    last_error: Option<String>,
}

impl Entry {
    fn start(
        name: Arc<str>,
        plan: Plan,
        (rule, next): (Rule, Option<Timestamp>),
        runtime: Arc<Runtime>,
        book: Option<Book>,
        job: Job,
    ) -> Arc<Self> {
        book.iter().for_each(|book| book.note(next));
        let state = State {
            job: Some(job),
            timed: None,
            next,
            paused: false,
            removed: false,
            fired: 0,
            failed: 0,
            missed: 0,
            last_error: None,
        };
        let state = Mutex::new(state);
        let entry = Arc::new_cyclic(|me| Self { name, plan, rule, runtime, book, me: Weak::clone(me), state });
        let timed: Weak<dyn Timed> = Arc::downgrade(&(Arc::clone(&entry) as Arc<dyn Timed>));
        let mut state = entry.state.lock();
        state.timed = Some(entry.runtime.scheduler.register(timed));
        entry.arm(&state);
        drop(state);
        entry
    }

    fn arm(&self, state: &State) {
        if let (Some(id), Some(next)) = (state.timed, state.next) {
            self.runtime.scheduler.arm(id, next);
        }
    }

    fn end(&self) {
        let (job, timed) = {
            let mut state = self.state.lock();
            state.next = None;
            (state.job.take(), state.timed.take())
        };
        if let Some(id) = timed {
            self.runtime.scheduler.unregister(id);
        }
        drop_contained(job);
    }

    /// What to do now and how often, and from when on. Moves on to the next firing, so that none happens twice.
    fn take_due(&self, now: Timestamp) -> Option<(Job, Due, Timestamp)> {
        let mut state = self.state.lock();
        let job = state.job.clone()?;
        let first = state.next?;
        let due = firings_due(&self.rule, first, now, self.plan.missed);
        state.next = due.next;
        state.missed += due.left_out;
        Some((job, due, first))
    }

    /// Runs user code, so no lock is held. `next` is the firing after this one.
    fn run(&self, job: &Job, next: Option<Timestamp>) {
        let rider = self.book.as_ref().map_or_else(Rider::default, |book| book.rider(next));
        let report = Report(Weak::clone(&self.me));
        let mine = rider.for_message();
        if let Err(words) = contained(|| job(rider, report)) {
            mine.end();
            self.count(Err(format!("its function {words}")));
        }
    }

    fn count(&self, result: Result<(), String>) {
        let mut state = self.state.lock();
        match result {
            Ok(()) => state.fired += 1,
            Err(words) => {
                state.failed += 1;
                state.last_error = Some(words);
            }
        }
    }

    /// What the file says of it.
    fn forget(&self) {
        self.book.iter().for_each(Book::forget);
    }

    fn is_running(&self) -> bool {
        let state = self.state.lock();
        state.job.is_some() && !state.paused
    }

    fn info(&self) -> ScheduleInfo {
        let state = self.state.lock();
        ScheduleInfo {
            name: self.name.to_string(),
            rule: self.plan.rule.clone(),
            target: self.plan.target.clone(),
            next: state.next.map(Timestamp::to_system_time),
            paused: state.paused,
            fired: state.fired,
            failed: state.failed,
            missed: state.missed,
            last_error: state.last_error.clone(),
        }
    }
}

impl Timed for Entry {
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let (job, due, first) = self.take_due(now)?;
        let mut next = Some(first);
        for _ in 0..due.fire {
            // The function itself may pause or remove its schedule.
            if !self.is_running() {
                break;
            }
            next = match (self.plan.missed, next) {
                (Missed::All, Some(this)) => self.rule.next_after(this),
                _ => due.next,
            };
            self.run(&job, next);
        }
        if due.fire == 0 && due.left_out > 0 {
            self.book.iter().for_each(|book| book.note(due.next));
        }
        if self.state.lock().removed {
            // The firing under way has noted the next one.
            self.forget();
        }
        // It may have been removed meanwhile, and this be the last of its job.
        drop_contained(job);
        let next = self.state.lock().next?;
        Some(self.not_at_once(next))
    }
}

impl Entry {
    /// A schedule that is behind must leave the scheduler's thread time for its other duties. A manual
    /// clock does not pass by itself, so waiting for it would stop instead of yield.
    fn not_at_once(&self, next: Timestamp) -> Timestamp {
        let clock = &self.runtime.clock;
        let now = clock.now();
        if next > now || clock.is_manual() { next } else { now.after(SystemClock::TICK) }
    }
}
