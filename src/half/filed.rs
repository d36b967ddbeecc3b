//! Half messages in the broker's file: written before they are prepared, deleted in the commit that publishes them.

use super::half_name;
use super::halves::{Halves, Unprepared};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Redrives, Return};
use crate::error::Error;
use crate::message::{Delay, Message};
use crate::outcome::drop_contained;
use crate::queue::Queue;
use crate::queue::durable::{Along, Apart, Depot, Durable, Home, Moving, Rider, Undecoded, former_item};
use crate::store::{Batch, Change, Durability, Item, Limit, Seq, StoreError, StreamId};
use crate::timer::TimerRef;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The stream's kind.
const HALVES: &str = "half messages";
/// How much is read at once.
const PORTION: Limit = Limit { items: 1024, bytes: 4 << 20 };

/// The part of a topic's half messages that is in the file.
pub(super) struct Filed<T> {
    depot: Arc<Depot>,
    stream: StreamId,
    durable: Durable<T>,
    /// Where what cannot be decoded goes.
    apart: Apart,
}

/// What a message asks for when it is published, which counts from then on.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Wishes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Duration>,
    /// By its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timer: Option<String>,
}

impl Wishes {
    fn of<T>(message: &Message<T>) -> Self {
        let Some(extras) = &message.extras else { return Self::default() };
        let (delay, until) = match extras.delay {
            None => (None, None),
            Some(Delay::For(delay)) => (Some(delay), None),
            Some(Delay::Until(time)) => (None, Some(Timestamp::from_system_time(time).0)),
        };
        let timer = extras.timer.as_ref().and_then(|timer| timer.name()).map(str::to_owned);
        Self { delay, until, ttl: extras.ttl, timer }
    }

    fn apply<T>(self, message: &mut Message<T>) {
        let extras = message.extras_mut();
        let until = self.until.map(|time| Delay::Until(Timestamp(time).to_system_time()));
        (extras.delay, extras.ttl) = (self.delay.map(Delay::For).or(until), self.ttl);
        extras.timer = self.timer.map(TimerRef::from);
    }
}

impl<T: Send + Sync + 'static> Filed<T> {
    /// Runs the user's codec, so no lock may be held.
    fn item(&self, message: &Message<T>, next: Timestamp) -> Result<Item, String> {
        let item = self.durable.item(message)?;
        let extra = serde_json::to_vec(&Wishes::of(message)).map_err(|e| e.to_string())?;
        Ok(Item { attempts: 0, due_at: Some(next.0), expires_at: None, extra: Some(extra), ..*item })
    }

    /// Without its place. Runs the user's codec, so no lock may be held.
    fn message(&self, item: &Item) -> Result<Message<T>, String> {
        let wishes: Wishes = serde_json::from_slice(item.extra.as_deref().unwrap_or(b"{}"))
            .map_err(|e| format!("what is noted of it: {e}"))?;
        let plain = Item { attempts: 0, due_at: None, expires_at: None, extra: None, ..item.clone() };
        let mut message = self.durable.message(&plain)?;
        wishes.apply(&mut message);
        Ok(message)
    }
}

impl<T: Send + Sync + 'static> Halves<T> {
    /// Finds or makes the streams, and takes in what an earlier run has left open.
    pub(crate) fn open_file(
        self: &Arc<Self>,
        depot: &Arc<Depot>,
        durable: Durable<T>,
        own_dead: Option<&Queue<DeadLetter<T>>>,
    ) -> Result<(), Vec<String>> {
        let stream = durable.open_stream(depot, HALVES, &self.topic)?;
        let me = Home { name: Arc::clone(&self.topic), way: Arc::new(Reopens(self.weak())) };
        let homes = [Some(me), own_dead.map(Home::queue)].into_iter().flatten().collect();
        let unread = durable.open_undecodable(depot, &self.runtime, &half_name(&self.topic), homes)?;
        if let Some(dead) = own_dead {
            durable.fill_letters_of_topic(depot, dead, self.weak(), &unread)?;
        }
        let filed = Filed { depot: Arc::clone(depot), stream, durable, apart: Apart::to(&unread) };
        self.take_in(&filed).map_err(|error| vec![format!("its file: {error}")])?;
        let _ = self.filed.set(filed);
        self.resume().map_err(|error| vec![error.to_string()])
    }

    fn take_in(&self, filed: &Filed<T>) -> Result<(), StoreError> {
        // Whoever declares the topic still has to bind what its messages are for.
        let soonest = self.runtime.clock.now().after(self.timing.first);
        let reader = filed.depot.store.reader()?;
        let mut from: Seq = 0;
        loop {
            let rows = reader.read(filed.stream, from, PORTION)?;
            let Some(last) = rows.last() else { return Ok(()) };
            from = last.seq + 1;
            for row in rows {
                match filed.message(&row.item) {
                    Ok(mut message) => {
                        message.set_place(row.seq);
                        let next = row.item.due_at.map_or(soonest, |due| Timestamp(due).max(soonest));
                        self.recovered(message, row.item.attempts, next);
                    }
                    Err(error) => _ = filed.apart.take(filed.stream, &[(row, error)], &self.topic)?,
                }
            }
        }
    }

    pub(super) fn is_durable(&self) -> bool {
        self.filed.get().is_some()
    }

    /// Those of them, and of its own dead letters, that cannot be decoded.
    pub(crate) fn undecodable(&self) -> Option<Queue<DeadLetter<Undecoded>>> {
        self.filed.get().map(|filed| filed.apart.queue.clone())
    }

    /// Waits for the commit; its place. No lock may be held.
    pub(super) fn write(&self, message: &Message<T>, next: Timestamp) -> Result<Option<Seq>, Unprepared> {
        let Some(filed) = self.filed.get() else { return Ok(None) };
        let item = filed.item(message, next).map_err(Unprepared::Unencodable)?;
        filed.depot.store.wait_for_room();
        let written = filed.depot.store.commit(Batch::new().insert(filed.stream, item), filed.durable.durability);
        written.map(|places| places.first().copied()).map_err(Unprepared::NotStored)
    }

    /// It is dropped, or drained.
    pub(super) fn erase(&self, message: &mut Message<T>) {
        if let Some((filed, place)) = self.filed.get().zip(message.take_place()) {
            filed.depot.note(Batch::new().delete(filed.stream, place));
        }
    }

    /// It has been asked about, and will be again.
    pub(super) fn note_check(&self, place: Option<Seq>, checks: u32, next: Timestamp) {
        if let Some((filed, place)) = self.filed.get().zip(place) {
            let change = Change::new().attempts(checks).due_at(Some(next.0));
            filed.depot.note(Batch::new().update(filed.stream, place, change));
        }
    }

    /// Deletes it there in the commit that publishes it.
    pub(super) fn rider(&self, place: Option<Seq>) -> Rider {
        let found = self.filed.get().zip(place);
        found.map_or_else(Rider::default, |(filed, place)| {
            Rider::new(&filed.depot, Batch::new().delete(filed.stream, place))
        })
    }

    /// Takes it out of its place, which is dealt with otherwise from now on.
    pub(super) fn depart(&self, message: &mut Message<T>) -> Along {
        match self.filed.get().zip(message.take_place()) {
            Some((filed, place)) => Along::from(&filed.depot, filed.stream, place),
            None => Along::nothing(),
        }
    }

    /// The worker that asks, if there is something to ask about.
    fn resume(&self) -> Result<(), Error> {
        let Some(next) = self.next() else { return Ok(()) };
        self.start_asking()?;
        self.arm(next);
        Ok(())
    }
}

/// A half message that could not be decoded is open again once it can be: whether it is to be published, nobody has
/// said.
struct Reopens<T>(Weak<Halves<T>>);

impl<T: Send + Sync + 'static> Redrives<Undecoded> for Reopens<T> {
    fn redrive(&self, letter: Message<Undecoded>, delay: Duration) -> Result<Return, Option<String>> {
        let halves = self.0.upgrade().ok_or(None)?;
        let filed = halves.filed.get().ok_or(None)?;
        let message = filed.message(&former_item(&letter))?;
        let next = halves.runtime.clock.now().after(delay).after(halves.timing.first);
        if let Err(why) = halves.start_asking().map_err(|e| e.to_string()).and_then(|()| halves.reserve(&message, next))
        {
            drop_contained(message);
            return Err(Some(why));
        }
        Ok(Box::new(move |along| {
            halves.reopen(message, next, &along);
            Moving::done()
        }))
    }

    fn leave_file(&self, _: &mut Message<Undecoded>) -> Along {
        Along::nothing()
    }
}

impl<T: Send + Sync + 'static> Halves<T> {
    /// Its place in the table is reserved. It is open whatever becomes of the commit; if that fails, the file has it
    /// where it was.
    fn reopen(&self, mut message: Message<T>, next: Timestamp, along: &Along) {
        let filed = self.filed.get().expect("it was decoded for it");
        if let Ok(item) = filed.item(&message, next) {
            let batch = along.and(Batch::new().insert(filed.stream, item));
            let written = filed.depot.store.commit(batch, Durability::Buffered);
            message.restore_place(written.ok().and_then(|places| places.first().copied()));
        }
        self.recovered_again(message, next);
    }
}
