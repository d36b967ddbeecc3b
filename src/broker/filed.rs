//! A broker with a file: opening it, declaring what lives there, closing it.

use super::entry::Entry;
use super::{Broker, Builder, Inner, Registry, WeakBroker};
use crate::dead_letter::DeadLetter;
use crate::error::Error;
use crate::half::half_name;
use crate::idempotency::{Idempotency, Window};
use crate::log::{Durably, Log, LogBuilder};
use crate::queue::builder::name_problems;
use crate::queue::durable::{Depot, Durable, letters_of_group};
use crate::queue::{NO_STORE, Queue, QueueBuilder, dead_letter_name, undecodable_name};
use crate::runtime::Runtime;
use crate::stats::FileStats;
use crate::store::{Batch, Durability, Options, State, Store, StoreError};
use crate::sync::MutexGuard;
use crate::topic::{Topic, TopicBuilder};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Each run of a broker on a file assigns ids of its own, this many.
const IDS_PER_RUN: u32 = 40;
const RUNS: &str = "runs";

impl Builder {
    /// Gives the broker a file for queues that are declared [durable](QueueBuilder::durable): a SQLite database,
    /// which may hold tables of yours. It is made if there is none; its directory has to exist.
    pub fn store(self, path: impl AsRef<Path>) -> Self {
        self.store_with(path, Options::new())
    }

    /// The same with other options.
    pub fn store_with(mut self, path: impl AsRef<Path>, options: Options) -> Self {
        self.store = Some((path.as_ref().to_owned(), options));
        self
    }
}

impl Broker {
    /// A broker on the system's clock with a file for queues that are declared
    /// [durable](QueueBuilder::durable).
    ///
    /// One broker at a time can have a file. It is closed by [`Broker::shutdown`], or with the last clone of the
    /// broker; a queue whose handle lives longer takes nothing more.
    ///
    /// # Errors
    /// If the file cannot be opened: another process has it (the error says which), it is no database, was written
    /// by a later version of this library, is damaged, or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder().store(path).build()
    }

    /// Its file, if it has one: to look into it, to read statistics, and to commit rows of yours.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        self.inner.depot.as_ref().map(|depot| &depot.store)
    }

    pub(super) fn with_store(runtime: Arc<Runtime>, store: Option<(PathBuf, Options)>) -> Result<Self, Error> {
        let mut broker = Self::of(runtime);
        let Some((path, options)) = store else { return Ok(broker) };
        let refuse = |error: StoreError| Error::new(format!("file {:?}", path.display()), error.to_string());
        let store = Store::open(&path, options).map_err(refuse)?;
        let run = count_run(&store).map_err(refuse)?;
        broker.inner.runtime.begin_ids_at((run << IDS_PER_RUN) + 1);
        let inner = Arc::get_mut(&mut broker.inner).expect("made just now");
        inner.depot = Some(Depot::new(store, &inner.runtime));
        Ok(broker)
    }

    pub(super) fn declare_durably<T: Send + Sync + 'static>(
        &self,
        builder: QueueBuilder<T>,
        mut problems: Vec<String>,
    ) -> Result<Queue<T>, Error> {
        let subject = builder.subject();
        let Some(depot) = &self.inner.depot else {
            problems.push(NO_STORE.into());
            return Err(Error::all(subject, problems));
        };
        let dead_name = builder.dead_letters.is_none().then(|| dead_letter_name(&builder.name));
        let _reservation = {
            let mut registry = match self.inner.entry_of_queue(&builder, problems)? {
                Entry::Occupied(queue) => return Ok(queue),
                Entry::Vacant(registry) => registry,
            };
            let apart_name = Some(undecodable_name(&builder.name));
            let names: Vec<String> =
                [Some(builder.name.clone()), dead_name.clone(), apart_name].into_iter().flatten().collect();
            registry.reserved.extend(names.iter().cloned());
            Reservation { inner: &self.inner, names }
        };
        let trouble = |problems| Error::all(subject.clone(), problems);
        let QueueBuilder { name, settings, keys, dead_letters, durable, .. } = builder;
        let durable = durable.expect("only called for those");
        let streams = durable.open(depot, &name, &settings, dead_name.as_deref()).map_err(trouble)?;
        let shared = dead_letters.clone();
        let queue = Queue::build(Arc::clone(&self.inner.runtime), name.into(), settings, keys, dead_letters);
        let own = dead_name.is_some().then(|| queue.dead_letters());
        Durable::fill(&durable, depot, &streams, &queue, own.as_ref()).map_err(trouble)?;
        let mut registry = self.inner.open_registry(&subject)?;
        if let Some(shared) = &shared {
            registry.forget_unused(&dead_letter_name(shared.name()));
        }
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        if let Some(dead) = own {
            registry.queues.insert(Arc::clone(&dead.core.name), dead.core);
        }
        let apart = queue.undecodable().core;
        registry.queues.insert(Arc::clone(&apart.name), apart);
        Ok(queue)
    }
}

impl Broker {
    /// As for queues: what is in the file is read while no lock is held, and the names are nobody else's meanwhile.
    pub(super) fn declare_topic_durably<T: Send + Sync + 'static>(
        &self,
        mut builder: TopicBuilder<T>,
    ) -> Result<Topic<T>, Error> {
        let subject = builder.subject();
        let Some(depot) = &self.inner.depot else { return Err(Error::new(subject, NO_STORE)) };
        let half_name = half_name(builder.name());
        let dead_name = dead_letter_name(&half_name);
        let _reservation = {
            let apart_name = undecodable_name(&half_name);
            let mut registry = match self.inner.entry_of_topic(&builder, &dead_name)? {
                Entry::Occupied(topic) => return Ok(topic),
                Entry::Vacant(registry) => registry,
            };
            let names = vec![topic_reservation(builder.name()), dead_name.clone(), apart_name];
            registry.reserved.extend(names.iter().cloned());
            Reservation { inner: &self.inner, names }
        };
        let durable = builder.take_durable();
        let topic = builder.build(Arc::clone(&self.inner.runtime), dead_name);
        let dead = topic.core.own_dead_letters();
        let opened = topic.core.open_published(depot);
        opened.map_err(|error| Error::new(subject.clone(), format!("its file: {error}")))?;
        if let Some((halves, durable)) = topic.core.halves().zip(durable) {
            let opened = halves.open_file(depot, durable, dead.clone().map(Queue::from_core).as_ref());
            opened.map_err(|problems| Error::all(subject.clone(), problems))?;
        }
        let mut registry = self.inner.open_registry(&subject)?;
        registry.topics.insert(Arc::clone(&topic.core.name), topic.core.clone());
        if let Some(dead) = dead {
            registry.queues.insert(Arc::clone(&dead.name), dead);
        }
        if let Some(apart) = topic.core.undecodable() {
            registry.queues.insert(Arc::clone(&apart.core.name), apart.core);
        }
        Ok(topic)
    }
}

impl Broker {
    /// A memory of what is done that is kept in the broker's file under a name: what was completed in an earlier run
    /// is done, a claim that was open when the process ended is released. Asked for again, it is the same one.
    ///
    /// A completion is written a few milliseconds later, with one of the next commits, and before whatever is settled
    /// or published after it. What is out of the window is deleted.
    ///
    /// ```
    /// use postroom::{Broker, Claimed};
    /// use std::time::Duration;
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-memory-{}.db", std::process::id()));
    /// let pay = |id: u64| -> Result<bool, postroom::Error> {
    ///     let broker = Broker::open(&path)?;
    ///     let seen = broker.durable_idempotency("payments", Duration::from_secs(3600))?;
    ///     match seen.claim(id) {
    ///         Claimed::New(claim) => claim.complete(),
    ///         Claimed::Done | Claimed::InProgress => return Ok(false),
    ///     }
    ///     Ok(true)
    /// };
    /// assert!(pay(17)?);
    /// assert!(!pay(17)? && pay(18)?);
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    ///
    /// # Errors
    /// A window of no time or no keys, or another one than the name has; an empty name or one with control characters;
    /// a broker without a file, or that was shut down.
    pub fn durable_idempotency(
        &self,
        name: impl Into<String>,
        window: impl Into<Window>,
    ) -> Result<Idempotency, Error> {
        let (name, window) = (name.into(), window.into());
        let subject = format!("idempotency {name:?}");
        let mut problems = name_problems(&name);
        problems.extend(window.problems());
        Error::unless_none(subject.clone(), problems)?;
        let Some(depot) = &self.inner.depot else { return Err(Error::new(subject, NO_STORE)) };
        let _reservation = {
            let reserved = memory_reservation(&name);
            let mut registry = self.inner.registry_once_free(&reserved);
            registry.check_open(&subject)?;
            if let Some(existing) = registry.memories.get(&name) {
                return existing.if_within(window).map_err(|problem| Error::new(subject, problem));
            }
            registry.reserved.insert(reserved.clone());
            Reservation { inner: &self.inner, names: vec![reserved] }
        };
        let opened = Idempotency::in_file(Arc::clone(&self.inner.runtime.clock), depot, &name, window);
        let memory = opened.map_err(|error| Error::new(subject, format!("its file: {error}")))?;
        self.inner.registry.lock().memories.insert(name, memory.clone());
        Ok(memory)
    }
}

impl Broker {
    pub(super) fn declare_log_durably<T: Send + Sync + 'static>(
        &self,
        builder: LogBuilder<T>,
        mut problems: Vec<String>,
    ) -> Result<Log<T>, Error> {
        let subject = builder.subject();
        let Some(depot) = &self.inner.depot else {
            problems.push(NO_STORE.into());
            return Err(Error::all(subject, problems));
        };
        let _reservation = {
            let mut registry = match self.inner.entry_of_log(&builder, problems)? {
                Entry::Occupied(log) => return Ok(log),
                Entry::Vacant(registry) => registry,
            };
            let names = vec![log_reservation(&builder.name)];
            registry.reserved.extend(names.iter().cloned());
            Reservation { inner: &self.inner, names }
        };
        let durable = builder.durable.as_ref().expect("only called for those");
        let files = durable.open(depot, &builder.name, builder.width());
        let files = files.map_err(|problems| Error::all(subject.clone(), problems))?;
        let weak = WeakBroker(Arc::downgrade(&self.inner));
        let log = builder.build(Arc::clone(&self.inner.runtime), weak, files);
        let recovered = log.core.shelf.recover();
        recovered.map_err(|error| Error::new(subject.clone(), format!("its file: {error}")))?;
        let mut registry = self.inner.open_registry(&subject)?;
        registry.logs.insert(Arc::clone(&log.core.shelf.name), log.core.clone());
        Ok(log)
    }
}

impl WeakBroker {
    /// As [`WeakBroker::adopt_dead_letters`], by way of the file: with those of earlier runs.
    pub(crate) fn adopt_durable_dead_letters<T: Send + Sync + 'static>(
        &self,
        name: &str,
        durable: &Durably<T>,
    ) -> Result<Queue<DeadLetter<T>>, Error> {
        let subject = format!("queue {name:?}");
        let refuse = |problem: &str| Error::new(&*subject, problem);
        let inner = self.0.upgrade().ok_or_else(|| refuse("its broker is gone"))?;
        let depot = inner.depot.as_ref().ok_or_else(|| refuse(NO_STORE))?;
        let _reservation = {
            let apart_name = undecodable_name(name);
            let mut registry = inner.vacant_for_letters(name)?;
            if let Some(problem) = registry.taken_for_undecodable(&apart_name) {
                return Err(refuse(&problem));
            }
            let names = vec![name.to_owned(), apart_name];
            registry.reserved.extend(names.iter().cloned());
            Reservation { inner: &inner, names }
        };
        let queue = letters_of_group(depot, durable.coding.clone(), durable.durability, name, &inner.runtime);
        let queue = queue.map_err(|problems| refuse(&problems.join("; ")))?;
        let mut registry = inner.open_registry(&subject)?;
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        let apart = queue.undecodable().core;
        registry.queues.insert(Arc::clone(&apart.name), apart);
        Ok(queue)
    }
}

/// Names have no control characters.
fn topic_reservation(name: &str) -> String {
    format!("topic\n{name}")
}

fn log_reservation(name: &str) -> String {
    format!("log\n{name}")
}

fn memory_reservation(name: &str) -> String {
    format!("idempotency\n{name}")
}

/// Names that nobody else may declare meanwhile.
struct Reservation<'a> {
    inner: &'a Inner,
    names: Vec<String>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut registry = self.inner.registry.lock();
        self.names.iter().for_each(|name| _ = registry.reserved.remove(name));
        drop(registry);
        self.inner.declared.notify_all();
    }
}

impl Inner {
    /// Waits while a queue of this name, or of one that comes with it, is being filled from the file.
    pub(super) fn registry_without(&self, name: &str) -> MutexGuard<'_, Registry> {
        let names = [name.to_owned(), dead_letter_name(name), undecodable_name(name)];
        let mut registry = self.registry.lock();
        while names.iter().any(|name| registry.reserved.contains(name)) {
            self.declared.wait(&mut registry);
        }
        registry
    }

    /// Waits while a log of this name is being filled from the file.
    pub(super) fn registry_without_log(&self, name: &str) -> MutexGuard<'_, Registry> {
        self.registry_once_free(&log_reservation(name))
    }

    /// Waits while a topic of this name is being declared.
    pub(super) fn registry_for_topic(&self, name: &str) -> MutexGuard<'_, Registry> {
        self.registry_once_free(&topic_reservation(name))
    }

    fn registry_once_free(&self, name: &str) -> MutexGuard<'_, Registry> {
        let mut registry = self.registry.lock();
        while registry.reserved.contains(name) {
            self.declared.wait(&mut registry);
        }
        registry
    }

    pub(super) fn close_store(&self) {
        let Some(depot) = &self.depot else { return };
        let queues: Vec<_> = self.registry.lock().queues.values().cloned().collect();
        queues.iter().for_each(|queue| queue.note_rest());
        // What is wrong shows in the statistics; every publisher that has to know has been told.
        let _ = depot.close();
    }
}

/// How many runs there were before.
fn count_run(store: &Store) -> Result<u64, StoreError> {
    let stream = store.declare("broker", "", "")?;
    let runs = store.reader()?.mark(stream, RUNS)?;
    let runs = runs.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0_u64);
    store.commit(Batch::new().mark(stream, RUNS, (runs + 1).to_string()), Durability::Sync)?;
    Ok(runs)
}

pub(super) fn stats(store: &Store) -> FileStats {
    let stats = store.stats();
    let state = match &stats.state {
        State::Healthy => "healthy",
        State::Failing { .. } => "failing",
        State::Broken { .. } => "broken",
        State::Closed => "closed",
    };
    FileStats {
        path: store.path().display().to_string(),
        state: state.into(),
        last_error: stats.last_error.map(|error| error.to_string()),
        commits: stats.commits,
        syncs: stats.syncs,
        failed_commits: stats.failed_commits,
        batches: stats.batches,
        inserted: stats.inserted,
        deleted: stats.deleted,
        queued_bytes: stats.queued_bytes as u64,
        wal_bytes: stats.wal_bytes,
    }
}
