//! Publishing what has been committed.

mod core;
pub(crate) mod desk;
mod engine;
mod line;
mod simulated;
mod stats;
mod thread;

use self::core::Core;
use crate::broker::Broker;
use crate::clock::Clock;
use crate::codec::Codec;
use crate::outbox::error::OutboxError;
use crate::outbox::table::Table;
use crate::outcome::contained;
use crate::runtime::Companion;
use crate::topic::Topic;
use desk::{Bells, Desk};
use engine::{Engine, Rhythm};
use line::{Line, Target, TopicTarget};
use stats::Board;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use stats::RelayStats;

/// Opens the connection of a relay.
pub(crate) type Connect = Box<dyn Fn() -> Result<Box<dyn Table>, OutboxError> + Send>;

/// A thread that tells a relay of commits, until it is dropped.
pub(crate) trait Listener: Send {
    /// Has it end as soon as it hears something.
    fn stop(&self);
}

/// Starts such a thread; it rings the desk and says whether it listens.
pub(crate) type Listen = Box<dyn FnOnce(Arc<Desk>, Box<dyn Fn(bool) + Send>) -> Box<dyn Listener> + Send>;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The table.
    pub(crate) name: String,
    pub(crate) batch: usize,
    pub(crate) window: usize,
    pub(crate) lease: Duration,
    pub(crate) poll: Duration,
    pub(crate) keep: Duration,
    pub(crate) done_when_published: bool,
}

/// How often a relay looks all the same where the database tells it of commits.
const POLL_WHILE_LISTENING: Duration = Duration::from_secs(5);

impl Settings {
    fn of(name: String) -> Self {
        Self {
            name,
            batch: 256,
            window: 1024,
            lease: Duration::from_secs(5),
            poll: Duration::from_millis(250),
            keep: Duration::from_secs(3600),
            done_when_published: false,
        }
    }

    pub(crate) fn poll_every(&self, listening: bool) -> Duration {
        if listening { self.poll.max(POLL_WHILE_LISTENING) } else { self.poll }
    }

    fn refusal(&self, problem: String) -> OutboxError {
        OutboxError::Relay { table: self.name.clone(), problem }
    }

    fn problem(&self) -> Option<&'static str> {
        match () {
            () if self.batch == 0 || self.window == 0 => Some("batch and window have to be 1 at least"),
            () if self.lease < Duration::from_millis(20) => Some("a lease lasts 20 ms at least"),
            () if self.poll < Duration::from_millis(1) => Some("1 ms between polls at least"),
            () => None,
        }
    }
}

/// Describes a relay; nothing is published before [`RelayBuilder::start`].
///
/// `C` is the codec of the outbox that it was made by.
#[must_use = "nothing is relayed before `start` is called"]
pub struct RelayBuilder<C> {
    broker: Broker,
    codec: C,
    settings: Settings,
    targets: Vec<Box<dyn Target>>,
    connect: Connect,
    listen: Option<Listen>,
    bells: Arc<Bells>,
}

impl<C: Clone> RelayBuilder<C> {
    pub(crate) fn new(broker: &Broker, name: &str, codec: C, connect: Connect, bells: Arc<Bells>) -> Self {
        let settings = Settings::of(name.to_owned());
        Self { broker: broker.clone(), codec, settings, targets: Vec::new(), connect, listen: None, bells }
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn listening(mut self, listen: Listen) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Publishes the rows of this topic; those of other topics stay for other relays.
    pub fn topic<T: Send + Sync + 'static>(self, topic: &Topic<T>) -> Self
    where
        C: Codec<T>,
    {
        let codec = self.codec.clone();
        self.topic_with(topic, codec)
    }

    /// As [`RelayBuilder::topic`], for rows written by another codec.
    pub fn topic_with<T: Send + Sync + 'static>(mut self, topic: &Topic<T>, codec: impl Codec<T>) -> Self {
        self.targets.push(Box::new(TopicTarget::new(topic.clone(), codec)));
        self
    }

    /// How many rows it reads at a time. Default 256.
    pub fn batch(mut self, rows: usize) -> Self {
        self.settings.batch = rows;
        self
    }

    /// How many rows of each topic may be published and not yet handled and marked. After a crash, as many may
    /// be delivered a second time. Default 1024.
    pub fn window(mut self, rows: usize) -> Self {
        self.settings.window = rows;
        self
    }

    /// For how long it has a topic's rows to itself if it does not say that it is still there, as it does three
    /// times in that time. After a crash another relay has to wait for that long. Default 5 s.
    pub fn lease(mut self, length: Duration) -> Self {
        self.settings.lease = length;
        self
    }

    /// How often it looks for rows that nobody has told it of. Default 250 ms; 5 s while the database tells it
    /// of commits, unless this is longer. In a simulation it does not.
    pub fn poll(mut self, every: Duration) -> Self {
        self.settings.poll = every;
        self
    }

    /// How long rows are kept that are done; zero deletes them at once. Dead ones stay until somebody deletes
    /// them. Default 1 hour.
    pub fn keep_done(mut self, age: Duration) -> Self {
        self.settings.keep = age;
        self
    }

    /// Takes a row as done as soon as the queues have it. Faster, but what is in the queues when the process
    /// dies is lost. Default: when it has been handled.
    pub fn done_when_published(mut self) -> Self {
        self.settings.done_when_published = true;
        self
    }

    /// Starts the relay, on a thread of its own.
    ///
    /// For a simulated broker there is no thread: the relay is one more task of the simulation, which looks into
    /// the table when a commit has rung (see `SqliteOutbox::watch`; the commit has to be made on the thread that
    /// drives the simulation) or it is told to ([`Relay::wake`], `SqliteOutbox::notify`), and publishes one row at a
    /// time, between whatever the consumers do. It never polls, so time that passes brings nothing about but the
    /// next attempt after an error or a refusal, and the same seed gives the same run. Pauses go by virtual time;
    /// since waiting costs nothing there, they grow to 20 minutes. Delay and time to live count from the
    /// publication. Leases hold in real time, there as well: `start` takes them at once, and if a relay that was
    /// killed has left one behind, it waits for that to end. Relays of PostgreSQL hear of commits on another
    /// thread; in a simulation they work only if their outbox is `without_notify`.
    ///
    /// It works until [`Relay::stop`] or the broker's shutdown, whether or not the handle is kept. A database
    /// that cannot be reached now does not keep it from starting.
    ///
    /// # Errors
    /// [`OutboxError::Missing`] or [`OutboxError::Version`] if the tables are not there or are another
    /// version's; [`OutboxError::Relay`] if it has no topic, one twice, one of another broker, a setting that
    /// makes no sense, or its broker was shut down; in a simulation also if another relay is at work on one of its
    /// topics, or if the database would tell it of commits on another thread.
    pub fn start(self) -> Result<Relay, OutboxError> {
        let settings = self.settings.clone();
        if let Some(problem) = self.problem() {
            return Err(settings.refusal(problem));
        }
        let connect: Connect = {
            let (connect, table) = (self.connect, settings.name.clone());
            Box::new(move || contained(&connect).unwrap_or_else(|words| Err(unconnected(&table, words))))
        };
        let table = match connect().and_then(|mut table| table.check().map(|()| table)) {
            Ok(table) => Some(table),
            Err(error @ (OutboxError::Missing { .. } | OutboxError::Version { .. })) => return Err(error),
            Err(_) => None,
        };
        let runtime = Arc::clone(self.broker.runtime());
        let clock = if runtime.is_simulated() { Arc::clone(&runtime.clock) } else { Arc::new(Clock::system()) };
        let mut chance = runtime.with_random(crate::random::Random::fork);
        let engine = Engine {
            desk: Desk::new(),
            board: Board::new(),
            runtime,
            settings: self.settings,
            connect,
            table,
            lines: self.targets.into_iter().map(Line::new).collect(),
            owner: format!("{}-{:016x}", std::process::id(), crate::broker::random_seed() ^ chance.next_u64()),
            done: Vec::new(),
            dead: Vec::new(),
            rhythm: Rhythm::new(clock.now()),
            clock,
            chance,
        };
        let core = Core::start(&settings, engine, self.listen)?;
        if let Err(error) = self.broker.adopt(core.clone()) {
            core.end(Some(std::time::Instant::now() + settings.lease));
            return Err(settings.refusal(error.to_string()));
        }
        self.bells.add(&core.desk);
        Ok(Relay { core })
    }

    fn problem(&self) -> Option<String> {
        if let Some(problem) = self.settings.problem() {
            return Some(problem.to_owned());
        }
        if self.broker.runtime().is_simulated() && self.listen.is_some() {
            return Some("a simulated broker has no thread that could listen for commits".into());
        }
        let mut topics: Vec<&str> = self.targets.iter().map(|target| target.topic()).collect();
        if topics.is_empty() {
            return Some("it has no topic".into());
        }
        if let Some(target) = self.targets.iter().find(|target| !target.belongs_to(&self.broker)) {
            return Some(format!("topic {:?} belongs to another broker", target.topic()));
        }
        topics.sort_unstable();
        let twice = topics.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(format!("topic {:?} is given twice", twice[0]))
    }
}

fn unconnected(table: &str, words: String) -> OutboxError {
    OutboxError::Connection { table: table.to_owned(), operation: "connect", source: words.into() }
}

impl<C> fmt::Debug for RelayBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A handle to a running relay. Dropping it stops nothing.
#[derive(Clone)]
pub struct Relay {
    core: Arc<Core>,
}

impl Relay {
    /// What it has counted, and how it stands.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        let stats = self.core.board.stats();
        // Rows are put in real time.
        let lag = stats.lag.filter(|_| !self.core.runtime.is_simulated());
        RelayStats { lag, ..stats }
    }

    /// Has it look into the table now. Only of use where nothing else tells it of a commit and it is not to
    /// wait for its next poll.
    pub fn wake(&self) {
        self.core.desk.ring(desk::Call::Committed);
    }

    /// Publishes nothing more, waits until what was published is handled and marked, at most `timeout`, and
    /// ends it. Whether everything was marked; what was not will be published again by the next relay. In a
    /// simulation it runs the simulation, and the time is virtual.
    ///
    /// From a handler of one of its messages this waits for that handler in vain.
    pub fn stop(&self, timeout: Duration) -> bool {
        self.core.stop(timeout)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("table", &self.core.name).field("stats", &self.stats()).finish()
    }
}
