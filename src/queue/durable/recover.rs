//! Bringing back what an earlier run has left in the file.

use super::depot::InFile;
use super::filed::Filed;
use super::format::hold_of;
use super::undecoded::UNDECODABLE;
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::core::{Admission, Core};
use crate::queue::keyed::{Exhausted, Hold};
use crate::runtime::{Event, Runtime};
use crate::store::{Batch, Change, Durability, Limit, Row, Seq, Store, StoreError, StreamId, StreamInfo};
use std::sync::Weak;

/// Noted when a run ends with nothing in hand.
pub(super) const AT_REST: &str = "at rest";
/// How much is read at once.
pub(super) const PORTION: Limit = Limit { items: 1024, bytes: 4 << 20 };

/// Puts what the file holds into a queue that nobody has seen yet, in its order: all of it, or as much as is to be in
/// memory. No lock is held while the user's codec runs.
pub(super) fn recover<T: Send + Sync + 'static>(core: &Core<T>) -> Result<(), StoreError> {
    let was_at_rest = ask_rest(core.filed())?;
    let now = core.runtime.clock.now();
    if core.is_ordered() {
        return recover_in_order(core, was_at_rest, now);
    }
    recover_resting(core, was_at_rest, now)?;
    if core.spills_in_order() {
        return recover_window(core, was_at_rest);
    }
    let filed = core.filed();
    let found = filed.depot.store.reader()?.count_by_priority(filed.stream)?;
    core.recover_backlogs(info(filed)?.next, &found, was_at_rest);
    Ok(())
}

/// Of what has failed before or has a timer, all; the first of the others.
fn recover_in_order<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    let (info, due, resting) =
        (info(filed)?, reader.count_due(filed.stream, now.0)?, reader.count_resting(filed.stream)?);
    let (mut overdue, mut waiting) = (due, resting.saturating_sub(due));
    drop(reader);
    // First those that keep their key busy while they wait for their next attempt, or hold it back.
    each_noted(filed, |row| {
        *(if rests(&row, now).is_some() { &mut waiting } else { &mut overdue }) -= 1;
        match keeps_key(core, &row, now) {
            Some(Keeps::Until(due)) => {
                bring_back(core, &row, was_at_rest, |message| core.recover_resting(message, due))
            }
            Some(Keeps::Parked(hold)) => {
                bring_back(core, &row, was_at_rest, |message| core.recover_parked(message, hold))
            }
            None => Ok(()),
        }
    })?;
    let goes_first = |row: &Row| row.item.attempts > 0 && rests(row, now).is_none();
    each_noted(filed, |row| match keeps_key(core, &row, now) {
        None if goes_first(&row) => bring_back(core, &row, was_at_rest, |message| enter(core, message, None)),
        _ => Ok(()),
    })?;
    let fresh = info.count.saturating_sub(resting);
    core.recover_turns(info.next, fresh + overdue, (overdue > 0).then_some(now), was_at_rest);
    each_noted(filed, |row| match (keeps_key(core, &row, now), rests(&row, now)) {
        (None, Some(due)) => bring_back(core, &row, was_at_rest, |message| enter(core, message, Some(due))),
        (None, None) if !goes_first(&row) => {
            bring_back(core, &row, was_at_rest, |message| core.recover_among_turns(message))
        }
        _ => Ok(()),
    })?;
    core.recover_delayed(info.next, 0, waiting, was_at_rest, now);
    core.recover_stop();
    core.load_more();
    Ok(())
}

/// What a message does to its key.
enum Keeps {
    Until(Timestamp),
    Parked(Hold),
}

fn keeps_key<T: Send + Sync + 'static>(core: &Core<T>, row: &Row, now: Timestamp) -> Option<Keeps> {
    if row.item.attempts == 0 {
        return None;
    }
    let hold = if core.settings.exhausted == Exhausted::DeadLetter { None } else { hold_of(&row.item) };
    hold.map(Keeps::Parked).or_else(|| rests(row, now).map(Keeps::Until))
}

/// Of what has a time, that of which more is noted though it has not failed, and the first of the others.
fn recover_resting<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    let (mut overdue, mut waiting) = (reader.count_due(filed.stream, now.0)?, reader.count_resting(filed.stream)?);
    waiting -= overdue;
    each(
        |from| reader.read_known(filed.stream, from, PORTION),
        |row| {
            let due = rests(&row, now);
            *(if due.is_some() { &mut waiting } else { &mut overdue }) -= 1;
            bring_back(core, &row, was_at_rest, |message| enter(core, message, due))
        },
    )?;
    let next = info(filed)?.next;
    core.recover_delayed(next, overdue, waiting, was_at_rest, now);
    Ok(())
}

fn info<T>(filed: &Filed<T>) -> Result<StreamInfo, StoreError> {
    filed.depot.store.reader()?.info(filed.stream)?.ok_or(StoreError::UnknownStream(filed.stream))
}

/// The first of what has no time.
fn recover_window<T: Send + Sync + 'static>(core: &Core<T>, was_at_rest: bool) -> Result<(), StoreError> {
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    let stream = info(filed)?;
    let resting = reader.count_resting(filed.stream)?;
    core.recover_backlog(stream.next, stream.count.saturating_sub(resting), was_at_rest);
    let me: Weak<Core<T>> = core.weak();
    filed.depot.watch(filed.stream, me);
    // What came between the look and the watch.
    reader.info(filed.stream)?.into_iter().for_each(|stream| core.arrived_in_file(0, stream.next));
    Ok(())
}

fn enter<T: Send + Sync + 'static>(core: &Core<T>, mut message: Message<T>, due: Option<Timestamp>) {
    let timer = message.take_timer().filter(|_| due.is_some() && message.attempt == 0);
    let (id, at) = (message.id, message.published_at);
    let extras = message.extras_mut();
    extras.due = due;
    extras.timer = timer.map(|timer| core.runtime.timers.recovered(timer, id, at));
    core.enter(message, Admission::Recovered);
}

impl<T: Send + Sync + 'static> InFile for Core<T> {
    fn arrived(&self, first: Seq, end: Seq) {
        self.arrived_in_file(first, end);
    }
}

/// Whether the run before ended with nothing in hand. This one may not.
fn ask_rest<T>(filed: &Filed<T>) -> Result<bool, StoreError> {
    let noted = filed.depot.store.reader()?.mark(filed.stream, AT_REST)?.is_some();
    if noted {
        filed.depot.store.commit(Batch::new().unmark(filed.stream, AT_REST), Durability::Buffered)?;
    }
    Ok(noted)
}

fn rests(row: &Row, now: Timestamp) -> Option<Timestamp> {
    row.item.due_at.map(Timestamp).filter(|&due| due > now)
}

/// Those that rest, or have, and of which more is noted.
fn each_noted<T>(filed: &Filed<T>, visit: impl FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let reader = filed.depot.store.reader()?;
    each(|from| reader.read_noted(filed.stream, from, PORTION), visit)
}

fn each(
    read: impl Fn(Seq) -> Result<Vec<Row>, StoreError>,
    mut visit: impl FnMut(Row) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from: Seq = 0;
    loop {
        let rows = read(from)?;
        let Some(last) = rows.last() else { return Ok(()) };
        from = last.seq + 1;
        rows.into_iter().try_for_each(&mut visit)?;
    }
}

fn bring_back<T: Send + Sync + 'static>(
    core: &Core<T>,
    row: &Row,
    was_at_rest: bool,
    enter: impl FnOnce(Message<T>),
) -> Result<(), StoreError> {
    let filed = core.filed();
    match filed.message(&row.item) {
        Ok(mut message) => {
            message.redelivered |= row.item.attempts > 0 || !was_at_rest;
            message.set_place(row.seq);
            core.find_key(&mut message);
            enter(message);
            Ok(())
        }
        Err(error) => {
            core.count_recovered();
            put_apart(core, &[(row.clone(), error)])
        }
    }
}

/// What cannot be decoded becomes a dead letter of bytes.
pub(crate) fn put_apart<T: Send + Sync + 'static>(core: &Core<T>, refused: &[(Row, String)]) -> Result<(), StoreError> {
    let filed = core.filed();
    if let Some(apart) = &filed.apart {
        core.count_dead_lettered(apart.take(filed.stream, refused, &core.name)?);
        return Ok(());
    }
    // What is noted of such a letter itself makes no sense: it stays where it is.
    core.count_dead_lettered(refused.len());
    for (row, error) in refused {
        let (queue, message, error) = (core.name.to_string(), row.item.id.into(), error.clone());
        core.runtime.tell(|| Event::Undecodable { queue, message, error });
    }
    Ok(())
}

/// Keeps a log's record that cannot be decoded as it is, in a stream of that name.
pub(crate) fn keep_apart(
    runtime: &Runtime,
    store: &Store,
    (from, row): (StreamId, &Row),
    (name, stream): (&str, String),
    error: String,
) -> Result<(), StoreError> {
    let apart = match store.reader()?.stream(UNDECODABLE, &stream)? {
        Some(stream) => stream.id,
        None => store.declare(UNDECODABLE, &stream, "")?,
    };
    let moved = Batch::new().move_to(from, row.seq, apart, Change::new());
    store.commit(moved, Durability::Buffered)?;
    let (queue, message) = (name.to_owned(), row.item.id.into());
    runtime.tell(|| Event::Undecodable { queue, message, error });
    Ok(())
}
