//! Appending by way of the file.

use super::on_file::Entry;
use crate::error::{AppendError, BatchError, Refused};
use crate::log::put::{Placed, Spot};
use crate::log::shelf::Shelf;
use crate::log::{Log, LogCore, Offset, refused};
use crate::message::{Message, Text};
use crate::queue::core::Refusal;
use crate::queue::durable::{Depot, Errand, Pending};
use crate::store::{Batch, Durability, Seq, StoreError};
use std::fmt;
use std::sync::Arc;

/// Where they are, or all of them and why not.
type Arrival<T> = Result<Vec<Offset>, (Vec<Placed<T>>, StoreError)>;

/// An append whose commit may be under way; see [`Log::append_deferred`].
///
/// Dropped, nobody hears what came of it: the record appears if its commit succeeds.
#[must_use = "waiting for it says whether the record is safe"]
pub struct LogTicket<T: Send + Sync + 'static> {
    log: Arc<str>,
    state: State<T>,
}

enum State<T: Send + Sync + 'static> {
    Known(Result<Offset, AppendError<T>>),
    Pending(Pending<Arrival<T>>),
}

impl<T: Send + Sync + 'static> LogTicket<T> {
    /// Whether [`LogTicket::wait`] would not wait any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Known(_) => true,
            State::Pending(pending) => pending.is_done(),
        }
    }

    /// Waits for the commit; where the record is.
    ///
    /// # Errors
    /// Gives the message back, and the log does not have it; see [`Log::append`].
    pub fn wait(self) -> Result<Offset, AppendError<T>> {
        match self.state {
            State::Known(result) => result,
            State::Pending(pending) => first_of(&self.log, pending.wait()),
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for LogTicket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogTicket").field("log", &self.log).field("done", &self.is_done()).finish()
    }
}

impl<T: Send + Sync + 'static> Log<T> {
    /// As [`Log::append`], without waiting for the commit of a durable log: one producer can have many under way, and
    /// they share commits. Waits only before a file that cannot keep up. Records of one thread that go to the same
    /// partition have the order of these calls, and none is read before its commit.
    ///
    /// In a simulation, and by a log that is only in memory, the record is there when this returns.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Log};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-log-deferred-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let lines: Log<String> = broker.log("lines").durable(Durability::Sync).declare()?;
    /// let tickets: Vec<_> = (0..100).map(|n| lines.append_deferred(format!("line {n}"))).collect();
    /// for (n, ticket) in (0..).zip(tickets) {
    ///     assert_eq!(ticket.wait().unwrap().offset, n); // synced
    /// }
    /// # drop((broker, lines));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn append_deferred(&self, message: impl Into<Message<T>>) -> LogTicket<T> {
        let (shelf, message) = (&self.core.shelf, message.into());
        let log = Arc::clone(&shelf.name);
        if !shelf.is_durable() {
            return LogTicket { log, state: State::Known(self.append(message)) };
        }
        let state = match self.begin(message) {
            Err(error) => State::Known(Err(error)),
            // So that the same seed gives the same run.
            Ok(pending) if shelf.runtime.is_simulated() => State::Known(first_of(&log, pending.wait())),
            Ok(pending) => State::Pending(pending),
        };
        LogTicket { log, state }
    }

    #[cold]
    pub(in crate::log) fn append_durably(&self, message: Message<T>) -> Result<Offset, AppendError<T>> {
        first_of(&self.core.shelf.name, self.begin(message)?.wait())
    }

    fn begin(&self, mut message: Message<T>) -> Result<Pending<Arrival<T>>, AppendError<T>> {
        let shelf = &self.core.shelf;
        shelf.stamp(&mut message);
        let spot = match shelf.spot_for(&message) {
            Ok(spot) => spot,
            Err(words) => return Err(self.panicked(message, words)),
        };
        let (record, entry) = match shelf.stowed(message, spot) {
            Ok(stowed) => stowed,
            Err((message, refusal)) => return Err(refusal_error(&shelf.name, message, refusal)),
        };
        shelf.commit(vec![record], vec![entry]).map_err(|mut back| self.closed(back.remove(0).into_message()))
    }

    /// As [`Log::append_batch`], in one commit.
    #[cold]
    pub(in crate::log) fn append_batch_durably(
        &self,
        messages: Vec<Message<T>>,
    ) -> Result<Vec<Offset>, BatchError<T, AppendError<T>>> {
        let shelf = &self.core.shelf;
        let (mut records, mut entries) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        let (mut keyless, mut trouble) = (None, None);
        for mut message in messages {
            shelf.stamp(&mut message);
            let key = shelf.key_for(&message).unwrap_or_else(|words| {
                trouble.get_or_insert((records.len(), Trouble::Panicked(words)));
                None
            });
            let partition = match message.key().or(key.as_ref().map(Text::as_str)) {
                Some(key) => shelf.partition_of(key),
                None => *keyless.get_or_insert_with(|| shelf.partition_for(&message)),
            };
            let spot = shelf.spot_in(partition, &message, key);
            match shelf.stowed(message, spot) {
                Ok((record, entry)) => {
                    records.push(record);
                    entries.push(entry);
                }
                Err((message, refusal)) => {
                    trouble.get_or_insert((records.len(), Trouble::Refused(refusal)));
                    records.push(shelf.place(0, message));
                }
            }
        }
        match trouble {
            Some((at, Trouble::Panicked(words))) => {
                return Err(refused(records, at, |message| self.panicked(message, words)));
            }
            Some((at, Trouble::Refused(refusal))) => {
                return Err(refused(records, at, |message| refusal_error(&shelf.name, message, refusal)));
            }
            None if records.is_empty() => return Ok(Vec::new()),
            None => {}
        }
        match shelf.commit(records, entries) {
            Err(records) => Err(refused(records, 0, |message| self.closed(message))),
            Ok(pending) => pending.wait().map_err(|(records, error)| {
                refused(records, 0, |message| refusal_error(&shelf.name, message, Refusal::NotStored(error)))
            }),
        }
    }
}

/// Why a message of a batch is refused.
enum Trouble {
    Panicked(String),
    Refused(Refusal),
}

fn first_of<T>(log: &Arc<str>, arrival: Arrival<T>) -> Result<Offset, AppendError<T>> {
    match arrival {
        Ok(places) => Ok(places[0]),
        Err((mut records, error)) => {
            Err(refusal_error(log, records.remove(0).into_message(), Refusal::NotStored(error)))
        }
    }
}

fn refusal_error<T>(log: &Arc<str>, mut message: Message<T>, refusal: Refusal) -> AppendError<T> {
    message.attempt = 0;
    let refused = Refused::new(message, log);
    match refusal {
        Refusal::Unencodable(words) => AppendError::Unencodable(refused.because(words)),
        Refusal::NotStored(error) => AppendError::NotStored(refused.not_stored(error)),
        _ => AppendError::Closed(refused),
    }
}

impl<T: Send + Sync + 'static> Shelf<T> {
    /// What a message going to a durable log is in the file. Runs the user's codec, so no lock may be held.
    pub(crate) fn entry(
        &self,
        message: &Message<T>,
        partition: usize,
        key: Option<&Text>,
    ) -> Option<Result<Entry, Refusal>> {
        self.partition(partition).on_file.as_ref().map(|file| file.entry(message, key))
    }

    fn stowed(&self, message: Message<T>, spot: Spot) -> Result<(Placed<T>, Entry), (Message<T>, Refusal)> {
        match self.entry(&message, spot.partition, spot.key.as_ref()) {
            Some(Ok(entry)) => Ok((self.record_at(message, spot), entry)),
            Some(Err(refusal)) => Err((message, refusal)),
            None => Err((message, Refusal::Closed)),
        }
    }

    /// The file it is in, and how.
    pub(crate) fn file(&self) -> Option<(&Arc<Depot>, Durability)> {
        self.partition(0).on_file.as_ref().map(|file| (file.depot(), file.durability()))
    }

    /// Hands in records; they appear together after the commit. All come back if the log is closed to the caller.
    fn commit(
        self: &Arc<Self>,
        mut records: Vec<Placed<T>>,
        entries: Vec<Entry>,
    ) -> Result<Pending<Arrival<T>>, Vec<Placed<T>>> {
        let Some((depot, durability)) = self.file().filter(|_| self.pledge_many(records.len())) else {
            return Err(records);
        };
        depot.store.wait_for_room();
        let me = Arc::clone(self);
        let order = depot.in_order();
        let mut batch = Batch::new();
        for (record, entry) in records.iter_mut().zip(entries) {
            let stored;
            (batch, stored) = entry.add_to(batch, &order);
            record.set_stored(stored);
        }
        let pending = depot.commit(batch, durability, move |result, errands| me.arrive(records, result, errands));
        drop(order);
        Ok(pending)
    }

    fn arrive(
        self: Arc<Self>,
        mut records: Vec<Placed<T>>,
        result: Result<&[Seq], StoreError>,
        errands: &mut Vec<Errand>,
    ) -> Arrival<T> {
        let arrival = match result {
            Ok(places) => {
                let mut offsets = Vec::with_capacity(records.len());
                for (record, &place) in records.iter_mut().zip(places) {
                    record.place = Some(place);
                    offsets.push(Offset { partition: record.partition, offset: place });
                }
                let rest = self.put_together(records).release().detach();
                let me = Arc::clone(&self);
                errands.push(Box::new(move || me.finish_detached(rest)));
                Ok(offsets)
            }
            Err(error) => {
                self.forgo_many(records.len());
                Err((records, error))
            }
        };
        // Perhaps the last handle, and then its records go with it.
        errands.push(Box::new(move || drop(self)));
        arrival
    }
}

impl<T: Send + Sync + 'static> LogCore<T> {
    /// Appends what the file has given places, without running any of the user's code.
    pub(crate) fn show(self: &Arc<Self>, records: Vec<Placed<T>>, errands: &mut Vec<Errand>) {
        let rest = self.shelf.put_together(records).release().detach();
        let log = Arc::clone(self);
        errands.push(Box::new(move || log.shelf.finish_detached(rest)));
    }
}
