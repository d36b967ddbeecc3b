//! The half messages of one topic: prepared, settled, asked about, given up on.

use super::check_back::{CheckBack, Listener, Timing};
use super::error::HalfError;
use super::filed::Filed;
use super::table::{Ending, Gone, Table};
use super::{HalfFate, Resolution};
use crate::clock::Timestamp;
use crate::consumer::ConsumerBuilder;
use crate::dead_letter::{DeadLetter, DeadLetterSink, Redrives, Return};
use crate::error::{Error, PublishError};
use crate::message::{Delay, Message, MessageId, Text};
use crate::outcome::{contained, drop_contained};
use crate::queue::builder::Settings;
use crate::queue::core::{Admission, Core, Patience};
#[cfg(feature = "sqlite")]
use crate::queue::durable::FileError;
use crate::queue::durable::{Along, Moving};
use crate::queue::keyed::KeyRule;
use crate::retry::Retry;
use crate::runtime::{Event, Registration, Runtime};
use crate::scheduler::Timed;
use crate::stats::{Counter, HalfStats};
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::topic::{Receipt, TopicCore};
use crate::transaction::Obstacle;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// For what a full queue keeps from happening.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Halves<T> {
    pub(crate) topic: Arc<str>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) timing: Timing,
    pub(crate) dead: Arc<dyn DeadLetterSink<T>>,
    core: Weak<TopicCore<T>>,
    me: Weak<Self>,
    listener: Listener<T>,
    /// The part of it that is in the broker's file, set before anybody knows of a durable topic.
    pub(super) filed: OnceLock<Filed<T>>,
    table: Mutex<Table<T>>,
    place: Registration,
    /// Those that the listener is to be asked about, one at a time.
    checks: Arc<Core<MessageId>>,
    asks: Mutex<bool>,
    draining: AtomicBool,
    ended: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) prepared: Counter,
    pub(super) committed: Counter,
    pub(super) rolled_back: Counter,
    pub(super) unknown: Counter,
    checked: Counter,
    panicked: Counter,
    unresolved: Counter,
    drained: Counter,
    recovered: Counter,
}

/// Why nothing could be prepared.
pub(super) enum Unprepared {
    TooMany,
    SameId,
    Closed,
    NoThread(Error),
    /// By the codec, in these words.
    #[cfg(feature = "sqlite")]
    Unencodable(String),
    #[cfg(feature = "sqlite")]
    NotStored(FileError),
}

impl<T: Send + Sync + 'static> Halves<T> {
    pub(crate) fn new(core: &Arc<TopicCore<T>>, check_back: CheckBack<T>, dead: Arc<Core<DeadLetter<T>>>) -> Arc<Self> {
        let CheckBack { listener, timing, .. } = check_back;
        let runtime = Arc::clone(&core.runtime);
        dead.make_terminal();
        let dead: Arc<dyn DeadLetterSink<T>> = dead;
        let settings = Settings { retry: Retry::none(), ..Settings::default() };
        let name: Arc<str> = format!("{}.check-back", core.name).into();
        let checks = Core::new(name, settings, KeyRule::Unordered, Arc::clone(&runtime), None);
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            topic: Arc::clone(&core.name),
            timing,
            dead,
            core: Arc::downgrade(core),
            me: Weak::clone(me),
            listener,
            filed: OnceLock::new(),
            table: Mutex::new(Table::new()),
            place: Registration::new(&runtime, me.clone()),
            checks,
            asks: Mutex::new(false),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            counts: Counts::default(),
            runtime,
        })
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes a message that has its id. Gives it back if it cannot.
    pub(super) fn prepare(
        &self,
        key: &str,
        message: Message<T>,
    ) -> Result<(MessageId, Ending), (Message<T>, Unprepared)> {
        if let Err(error) = self.start_asking() {
            return Err((message, Unprepared::NoThread(error)));
        }
        let (id, next) = (message.id, self.runtime.clock.now().after(self.timing.first));
        let written = self.is_durable();
        let mut table = self.table.lock();
        let shut =
            self.ended.load(Ordering::SeqCst) || self.draining.load(Ordering::SeqCst) && !self.runtime.is_worker();
        if shut {
            return Err((message, Unprepared::Closed));
        }
        if table.contains(id) {
            return Err((message, Unprepared::SameId));
        }
        if table.len() >= self.timing.max_open {
            return Err((message, Unprepared::TooMany));
        }
        if written {
            let ending = table.reserve(id, Text::new(key), next);
            drop(table);
            return self.prepare_durably(message, next).map(|()| (id, ending));
        }
        let ending = table.insert(Text::new(key), message, 0, next);
        self.counts.prepared.add(1);
        let earliest = table.earliest() == Some(next);
        drop(table);
        if earliest {
            self.place.arm(next);
        }
        Ok((id, ending))
    }

    /// Its place in the table is reserved, and nobody sees it before it is in the file.
    fn prepare_durably(&self, mut message: Message<T>, next: Timestamp) -> Result<(), (Message<T>, Unprepared)> {
        match self.write(&message, next) {
            Ok(place) => {
                message.restore_place(place);
                self.counts.prepared.add(1);
                self.put_back(message, Some(next));
                Ok(())
            }
            Err(why) => {
                self.table.lock().forgo(message.id);
                self.runtime.note_progress();
                Err((message, why))
            }
        }
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// One of an earlier run.
    #[cfg(feature = "sqlite")]
    pub(super) fn recovered(&self, message: Message<T>, checks: u32, next: Timestamp) {
        self.counts.recovered.add(1);
        let key = message.routing_key.clone();
        self.table.lock().insert(key, message, checks, next);
    }

    /// Keeps a place for one that comes back, or says why not: [`Halves::recovered_again`] follows.
    #[cfg(feature = "sqlite")]
    pub(super) fn reserve(&self, message: &Message<T>, next: Timestamp) -> Result<(), String> {
        let mut table = self.table.lock();
        if self.ended.load(Ordering::SeqCst) || self.draining.load(Ordering::SeqCst) {
            return Err("its topic takes no half messages any more".into());
        }
        if table.contains(message.id) {
            return Err("a half message of this id is open".into());
        }
        table.reserve(message.id, message.routing_key.clone(), next);
        Ok(())
    }

    /// It is open, as one of an earlier run.
    #[cfg(feature = "sqlite")]
    pub(super) fn recovered_again(&self, message: Message<T>, next: Timestamp) {
        self.counts.recovered.add(1);
        self.put_back(message, Some(next));
    }

    /// When the next is asked about.
    #[cfg(feature = "sqlite")]
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.table.lock().earliest()
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn arm(&self, due: Timestamp) {
        self.place.arm(due);
    }

    /// The worker that asks, before there is anything to ask about.
    pub(super) fn start_asking(&self) -> Result<(), Error> {
        let mut asks = self.asks.lock();
        if *asks || self.checks.is_closed() {
            return Ok(());
        }
        let me = Weak::clone(&self.me);
        let ask = move |id: &Message<MessageId>| {
            if let Some(halves) = me.upgrade() {
                halves.look_into(*id.payload());
            }
        };
        ConsumerBuilder::new(Arc::clone(&self.checks)).start(ask)?;
        *asks = true;
        Ok(())
    }

    /// Another message over the same payload, for the user's code to look at.
    pub(super) fn copy(&self, id: MessageId) -> Option<Message<T>> {
        self.table.lock().get_mut(id)?.message.as_mut().map(Message::share)
    }

    /// Publishes it.
    pub(super) fn commit(
        &self,
        id: MessageId,
        handle: Option<&Ending>,
        patience: Patience,
    ) -> Result<Receipt, HalfError> {
        let (key, message) = self.take(id, handle)?;
        match self.publish(&key, message, patience) {
            Ok(receipt) => {
                self.committed(id);
                Ok(receipt)
            }
            Err((message, why)) => {
                self.put_back(message, None);
                Err(why)
            }
        }
    }

    /// Drops it.
    pub(super) fn roll_back(&self, id: MessageId, handle: Option<&Ending>) -> Result<(), HalfError> {
        if self.table.lock().get_mut(id).is_some_and(|entry| entry.decided && entry.is_for(handle)) {
            return Err(HalfError::Settled(HalfFate::Committed));
        }
        let (_, mut message) = self.take(id, handle)?;
        self.erase(&mut message);
        drop_contained(message);
        self.counts.rolled_back.add(1);
        self.removed(id, HalfFate::RolledBack);
        Ok(())
    }

    fn take(&self, id: MessageId, handle: Option<&Ending>) -> Result<(Text, Message<T>), HalfError> {
        let mut table = self.table.lock();
        if self.ended.load(Ordering::SeqCst) {
            return Err(HalfError::Closed);
        }
        table.take(id, handle).map_err(|gone| match gone {
            Gone::NotOpen => HalfError::NotOpen(id),
            Gone::BeingSettled => HalfError::BeingSettled,
        })
    }

    /// In one commit, it is deleted from the file where it was and written for the durable queues it reaches.
    fn publish(
        &self,
        key: &Text,
        mut message: Message<T>,
        patience: Patience,
    ) -> Result<Receipt, (Message<T>, HalfError)> {
        let Some(topic) = self.core.upgrade() else { return Err((message, HalfError::Closed)) };
        let place = message.place();
        let rider = self.rider(place);
        message.give_rider(&rider);
        match topic.publish(key.as_str(), message, patience) {
            Ok(receipt) => {
                rider.end();
                Ok(receipt)
            }
            Err(error) => {
                rider.revoke();
                let why = HalfError::Refused { by: error.by().to_owned(), why: (&error).into() };
                let mut message = error.into_message();
                message.restore_place(place);
                Err((message, why))
            }
        }
    }

    fn put_back(&self, message: Message<T>, next: Option<Timestamp>) {
        let earliest = self.table.lock().put_back(message, next);
        earliest.into_iter().for_each(|due| self.place.arm(due));
        self.runtime.note_progress();
    }

    fn committed(&self, id: MessageId) {
        self.counts.committed.add(1);
        self.removed(id, HalfFate::Committed);
    }

    fn removed(&self, id: MessageId, fate: HalfFate) {
        self.table.lock().remove(id, fate);
        self.runtime.note_progress();
    }

    /// A check is due.
    fn look_into(&self, id: MessageId) {
        let (copy, decided, given_up) = {
            let mut table = self.table.lock();
            let Some(entry) = table.get_mut(id) else { return };
            let (decided, given_up) = (entry.decided, entry.checks >= self.timing.times);
            let Some(message) = &mut entry.message else {
                // Whoever settles it puts it back if that fails.
                table.looked_at(id, None);
                return;
            };
            (message.share(), decided, given_up)
        };
        let resolution = match (decided, given_up) {
            (true, _) => Resolution::Commit,
            (false, true) => Resolution::Unknown,
            (false, false) => self.ask(&copy),
        };
        drop_contained(copy);
        match resolution {
            Resolution::Commit => {
                self.table.lock().looked_at(id, None);
                self.commit_as_told(id);
            }
            Resolution::Rollback => {
                self.table.lock().looked_at(id, None);
                // It may have been settled meanwhile.
                let _ = self.roll_back(id, None);
            }
            Resolution::Unknown => self.still_unknown(id, given_up),
        }
    }

    fn ask(&self, message: &Message<T>) -> Resolution {
        let answer = contained(|| (self.listener)(message));
        self.counts.checked.add(1);
        answer.unwrap_or_else(|text| {
            self.counts.panicked.add(1);
            let (topic, message) = (self.topic.to_string(), message.id());
            self.runtime.tell(|| Event::CheckBackPanicked { topic, message, text });
            Resolution::Unknown
        })
    }

    /// Without waiting: others are to be asked about. What finds no room is tried again, and not asked about.
    fn commit_as_told(&self, id: MessageId) {
        let Ok((key, message)) = self.take(id, None) else { return };
        // The one who prepared it is gone, and so may be what it was for: perhaps that is only not bound yet.
        let published = match self.core.upgrade() {
            Some(topic) if self.is_durable() && topic.leads_nowhere(&message) => {
                let why = HalfError::Refused { by: self.topic.to_string(), why: Obstacle::Unroutable };
                Err((message, why))
            }
            _ => self.publish(&key, message, Patience::None),
        };
        match published {
            Ok(_) => self.committed(id),
            Err((mut message, HalfError::Refused { why: Obstacle::Duplicate { under_way: false }, .. })) => {
                // It was published in another way, so there is nothing left to do.
                self.erase(&mut message);
                drop_contained(message);
                self.committed(id);
            }
            Err((message, _)) => {
                if let Some(entry) = self.table.lock().get_mut(id) {
                    entry.decided = true;
                }
                self.put_back(message, Some(self.runtime.clock.now().after(AGAIN)));
            }
        }
    }

    fn still_unknown(&self, id: MessageId, given_up: bool) {
        let now = self.runtime.clock.now();
        let checks = {
            let mut table = self.table.lock();
            let Some(entry) = table.get_mut(id) else { return };
            entry.checks += u32::from(!given_up);
            let (checks, place) = (entry.checks, entry.message.as_ref().and_then(Message::place));
            let next = now.after(self.timing.every);
            let earliest = table.looked_at(id, Some(next));
            drop(table);
            self.note_check(place, checks, next);
            earliest.into_iter().for_each(|due| self.place.arm(due));
            checks
        };
        if checks >= self.timing.times {
            self.give_up(id, now);
        }
    }

    fn give_up(&self, id: MessageId, now: Timestamp) {
        let Ok((_, message)) = self.take(id, None) else { return };
        let me: Weak<dyn Redrives<T>> = self.me.clone();
        let letter = DeadLetter::of_half(message, now, &self.topic, me);
        match self.dead.accept(letter) {
            Ok(()) => {
                self.counts.unresolved.add(1);
                self.removed(id, HalfFate::Unresolved);
            }
            Err(letter) => {
                let (queue, dead_letters) = (self.topic.to_string(), self.dead.name().to_string());
                self.runtime.tell(|| Event::DeadLettersFull { queue, dead_letters });
                self.put_back(letter.into_message(), Some(now.after(AGAIN)));
            }
        }
    }

    /// Copies of those that are open, by id.
    pub(super) fn list(&self) -> Vec<Message<T>> {
        let mut table = self.table.lock();
        let ids = table.ids();
        ids.into_iter().filter_map(|id| table.get_mut(id)?.message.as_mut().map(Message::share)).collect()
    }

    /// Takes out all that are open and not just being settled.
    pub(super) fn drain(&self) -> Vec<Message<T>> {
        if self.is_durable() && self.ended.load(Ordering::SeqCst) {
            // They stay in the file.
            return Vec::new();
        }
        let mut table = self.table.lock();
        let ids = table.ids();
        let taken: Vec<_> = ids.into_iter().filter_map(|id| table.take(id, None).ok()).collect();
        taken.iter().for_each(|(_, message)| table.remove(message.id, HalfFate::Drained));
        self.counts.drained.add(taken.len() as u64);
        drop(table);
        self.runtime.note_progress();
        let mut messages: Vec<_> = taken.into_iter().map(|(_, message)| message).collect();
        messages.iter_mut().for_each(|message| self.erase(message));
        messages
    }

    pub(crate) fn stats(&self) -> HalfStats {
        let (table, counts) = (self.table.lock(), &self.counts);
        HalfStats {
            prepared: counts.prepared.get(),
            committed: counts.committed.get(),
            rolled_back: counts.rolled_back.get(),
            unresolved: counts.unresolved.get(),
            drained: counts.drained.get(),
            recovered: counts.recovered.get(),
            unknown: counts.unknown.get(),
            checked: counts.checked.get(),
            panicked: counts.panicked.get(),
            open: table.len() as u64,
        }
    }
}

impl<T: Send + Sync + 'static> Redrives<T> for Halves<T> {
    fn redrive(&self, mut message: Message<T>, delay: Duration) -> Result<Return, Option<String>> {
        if !delay.is_zero() {
            message.set_delay(Delay::For(delay));
        }
        let key = message.routing_key.clone();
        if let Err((message, _)) = self.publish(&key, message, Patience::None) {
            drop_contained(message);
            return Err(None);
        }
        Ok(Box::new(|along| {
            along.delete();
            Moving::done()
        }))
    }

    fn leave_file(&self, message: &mut Message<T>) -> Along {
        self.depart(message)
    }
}

impl<T: Send + Sync + 'static> Timed for Halves<T> {
    fn fire(&self, now: Timestamp) -> Option<Timestamp> {
        let (due, next) = self.table.lock().pop_due(now);
        for id in due {
            let mut check = Message::new(id);
            self.checks.stamp(&mut check);
            // One for each half message at most, so there is no need to ask for room.
            self.checks.enter(check, Admission::Published);
        }
        next
    }
}

impl<T> fmt::Display for Halves<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.timing.dead_letters.is_none() { Some(self.dead.name()) } else { None };
        write!(f, "{}", self.timing)?;
        own.map_or(Ok(()), |queue| write!(f, ", dead letters to {queue:?}"))
    }
}

/// The half messages of a topic without their type, as the broker's shutdown sees them.
pub(crate) trait AnyHalves: Send + Sync {
    fn topic(&self) -> &str;
    fn open(&self) -> u64;
    /// Whether they stay in the broker's file.
    fn stay(&self) -> bool;
    /// From now on only the broker's own workers may prepare any.
    fn start_draining(&self);
    /// Shutdown is about to report; nothing is settled any more.
    fn end(&self);
    /// See `Core::unrest`: what is asked about by `horizon`, or being settled.
    fn unrest(&self, horizon: Timestamp) -> (u64, u64);
}

impl<T: Send + Sync + 'static> AnyHalves for Halves<T> {
    fn topic(&self) -> &str {
        &self.topic
    }
    fn open(&self) -> u64 {
        self.table.lock().len() as u64
    }
    fn stay(&self) -> bool {
        self.is_durable()
    }
    fn start_draining(&self) {
        let _table = self.table.lock();
        self.draining.store(true, Ordering::SeqCst);
    }
    fn end(&self) {
        let table = self.table.lock();
        self.ended.store(true, Ordering::SeqCst);
        drop(table);
        self.checks.close();
    }
    fn unrest(&self, horizon: Timestamp) -> (u64, u64) {
        let (due, settling) = {
            let mut table = self.table.lock();
            (table.earliest().is_some_and(|due| due <= horizon), table.settling)
        };
        let (checks, moves) = self.checks.unrest(horizon);
        let counts = &self.counts;
        let settled = [&counts.prepared, &counts.committed, &counts.rolled_back, &counts.unresolved, &counts.drained];
        let moves = settled.iter().fold(moves, |moves, counter| moves.wrapping_add(counter.get()));
        (checks + u64::from(due) + settling as u64, moves)
    }
}

impl<T> Drop for Table<T> {
    /// One by one, since a second panic on the way out would abort the process.
    fn drop(&mut self) {
        self.take_all().into_iter().for_each(drop_contained);
    }
}

/// Why a publish was refused, without the message.
impl<T> From<&PublishError<T>> for Obstacle {
    fn from(error: &PublishError<T>) -> Self {
        match error {
            PublishError::Full(_) => Self::Full,
            PublishError::Timeout(_) => Self::Timeout,
            PublishError::Closed(_) => Self::Closed,
            PublishError::Unroutable(_) => Self::Unroutable,
            PublishError::Deadlock(refused) => Self::Deadlock(refused.detail().to_owned()),
            PublishError::Limited(refused) => Self::Limited(refused.retry_in().unwrap_or_default()),
            PublishError::Duplicate(refused) => Self::Duplicate { under_way: refused.is_under_way() },
            PublishError::Panicked(refused) => Self::Panicked(refused.detail().to_owned()),
            PublishError::Unencodable(refused) => Self::Unencodable(refused.detail().to_owned()),
            PublishError::NotStored(refused) => Self::NotStored(refused.file_error()),
        }
    }
}
