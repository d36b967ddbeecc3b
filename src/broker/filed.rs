//! A broker with a file: opening it, declaring what lives there, closing it.

use super::{Broker, Builder, Inner, Registry, WeakBroker, same_log, same_queue};
use crate::dead_letter::DeadLetter;
use crate::error::Error;
use crate::log::{Durably, Log, LogBuilder};
use crate::queue::durable::{Depot, Durable, letters_of_group};
use crate::queue::{NO_STORE, Queue, QueueBuilder, dead_letter_name};
use crate::runtime::Runtime;
use crate::stats::FileStats;
use crate::store::{Batch, Durability, Options, State, Store, StoreError};
use crate::sync::MutexGuard;
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
        mut builder: QueueBuilder<T>,
        mut problems: Vec<String>,
    ) -> Result<Queue<T>, Error> {
        let subject = builder.subject();
        let Some(depot) = &self.inner.depot else {
            problems.push(NO_STORE.into());
            return Err(Error::unless_none(subject, problems).expect_err("there is one"));
        };
        let durable = builder.durable.take().expect("only called for those");
        let dead_name = builder.dead_letters.is_none().then(|| dead_letter_name(&builder.name));
        let _reservation = {
            let mut registry = self.inner.registry_without(&builder.name);
            if registry.closed {
                problems.push("the broker was shut down".into());
            }
            if let Some(existing) = registry.queues.get(builder.name.as_str()).cloned() {
                drop(registry);
                return same_queue(&builder, existing, problems);
            }
            if let Some(dead) = dead_name.as_deref().filter(|dead| registry.queues.contains_key(*dead)) {
                problems.push(format!("the name of its dead-letter queue, {dead:?}, is taken by another queue"));
            }
            Error::unless_none(subject.clone(), problems)?;
            let names: Vec<String> = [Some(builder.name.clone()), dead_name.clone()].into_iter().flatten().collect();
            registry.reserved.extend(names.iter().cloned());
            Reservation { inner: &self.inner, names }
        };
        let trouble = |problems| Error::unless_none(subject.clone(), problems).expect_err("there are some");
        let streams = durable.open(depot, &builder.name, &builder.settings, dead_name.as_deref()).map_err(trouble)?;
        let QueueBuilder { name, settings, keys, dead_letters, .. } = builder;
        let shared = dead_letters.clone();
        let queue = Queue::build(Arc::clone(&self.inner.runtime), name.into(), settings, keys, dead_letters);
        let own = dead_name.is_some().then(|| queue.dead_letters());
        Durable::fill(&durable, depot, &streams, &queue, own.as_ref()).map_err(trouble)?;
        let mut registry = self.inner.registry.lock();
        if registry.closed {
            drop(registry);
            return Err(Error::new(subject, "the broker was shut down"));
        }
        if let Some(shared) = &shared {
            registry.forget_unused(&dead_letter_name(shared.name()));
        }
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        if let Some(dead) = own {
            registry.queues.insert(Arc::clone(&dead.core.name), dead.core);
        }
        Ok(queue)
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
            return Err(Error::unless_none(subject, problems).expect_err("there is one"));
        };
        let _reservation = {
            let mut registry = self.inner.registry_without_log(&builder.name);
            if registry.closed {
                problems.push("the broker was shut down".into());
            }
            if let Some(existing) = registry.logs.get(builder.name.as_str()).cloned() {
                drop(registry);
                return same_log(&builder, existing, problems);
            }
            Error::unless_none(subject.clone(), problems)?;
            registry.reserved_logs.insert(builder.name.clone());
            LogReservation { inner: &self.inner, name: builder.name.clone() }
        };
        let durable = builder.durable.as_ref().expect("only called for those");
        let files = durable.open(depot, &builder.name, builder.width());
        let files = files.map_err(|problems| Error::unless_none(subject.clone(), problems).expect_err("some"))?;
        let weak = WeakBroker(Arc::downgrade(&self.inner));
        let log = builder.build(Arc::clone(&self.inner.runtime), weak, files);
        let recovered = log.core.shelf.recover();
        recovered.map_err(|error| Error::new(subject.clone(), format!("its file: {error}")))?;
        let mut registry = self.inner.registry.lock();
        if registry.closed {
            return Err(Error::new(subject, "the broker was shut down"));
        }
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
        let refuse = |problem: &str| Error::new(format!("queue {name:?}"), problem);
        let inner = self.0.upgrade().ok_or_else(|| refuse("its broker is gone"))?;
        let depot = inner.depot.as_ref().ok_or_else(|| refuse(NO_STORE))?;
        let _reservation = {
            let mut registry = inner.registry_without(name);
            if registry.closed {
                return Err(refuse("the broker was shut down"));
            }
            if registry.queues.contains_key(name) {
                return Err(refuse("the name is taken by another queue"));
            }
            registry.reserved.insert(name.to_owned());
            Reservation { inner: &inner, names: vec![name.to_owned()] }
        };
        let queue = letters_of_group(depot, durable.coding.clone(), durable.durability, name, &inner.runtime);
        let queue = queue.map_err(|problems| refuse(&problems.join("; ")))?;
        let mut registry = inner.registry.lock();
        if registry.closed {
            return Err(refuse("the broker was shut down"));
        }
        registry.queues.insert(Arc::clone(&queue.core.name), queue.core.clone());
        Ok(queue)
    }
}

/// The name of a log that nobody else may declare meanwhile.
struct LogReservation<'a> {
    inner: &'a Inner,
    name: String,
}

impl Drop for LogReservation<'_> {
    fn drop(&mut self) {
        self.inner.registry.lock().reserved_logs.remove(&self.name);
        self.inner.declared.notify_all();
    }
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
    /// Waits while a queue of this name, or with dead letters of this name, is being filled from the file.
    pub(super) fn registry_without(&self, name: &str) -> MutexGuard<'_, Registry> {
        let dead = dead_letter_name(name);
        let mut registry = self.registry.lock();
        while registry.reserved.contains(name) || registry.reserved.contains(&dead) {
            self.declared.wait(&mut registry);
        }
        registry
    }

    /// Waits while a log of this name is being filled from the file.
    pub(super) fn registry_without_log(&self, name: &str) -> MutexGuard<'_, Registry> {
        let mut registry = self.registry.lock();
        while registry.reserved_logs.contains(name) {
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
