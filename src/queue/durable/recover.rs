//! Bringing back what an earlier run has left in the file.

use super::depot::InFile;
use super::filed::Filed;
use super::recover_by_key;
use super::undecoded::UNDECODABLE;
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::core::{Admission, Core};
use crate::runtime::{Event, Runtime};
use crate::store::{Batch, Change, Durability, Limit, Overdue, Row, Seq, Store, StoreError, StreamId, StreamInfo};
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
        return recover_by_key::recover(core, was_at_rest, now);
    }
    recover_known(core, was_at_rest, now)?;
    if core.spills_in_order() {
        recover_resting(core, was_at_rest, now)?;
        recover_window(core, was_at_rest)
    } else {
        recover_levels(core, was_at_rest, now)
    }
}

/// What has a time and of which more is noted though it has not failed.
fn recover_known<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    each(
        |from| reader.read_known(filed.stream, from, PORTION),
        |row| {
            let due = rests(&row, now);
            bring_back(core, &row, was_at_rest, |message| enter(core, message, due))
        },
    )
}

/// Of the others that have a time, the first.
fn recover_resting<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let (overdue, waiting) = count_unknown(filed, now)?;
    core.recover_delayed(info(filed)?.next, (overdue, waiting), was_at_rest, (None, now));
    Ok(())
}

/// How many those are that are due by then, and how many wait for longer.
pub(super) fn count_unknown<T>(filed: &Filed<T>, until: Timestamp) -> Result<(u64, u64), StoreError> {
    let reader = filed.depot.store.reader()?;
    let (due, all) = (reader.count_due(filed.stream, until.0)?, reader.count_resting(filed.stream)?);
    let known = reader.count_known(filed.stream, until.0)?;
    Ok((due - known.due, all - due - (known.all - known.due)))
}

/// Of what is to come, the first; of what is ready, the first of each level.
fn recover_levels<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    // What comes back from now on was not due by then, so it is told from what is overdue. A clock may be at its start.
    let past = now.0.checked_sub(1).map(Timestamp);
    let before = past.map_or(Ok(0), |past| count_unknown(filed, past).map(|(due, _)| due))?;
    let ((overdue, waiting), next) = (count_unknown(filed, now)?, info(filed)?.next);
    let found = filed.depot.store.reader()?.count_by_priority(filed.stream, past.map(|past| past.0))?;
    let by_level = past.map_or(Overdue::default(), |past| Overdue { until: past.0, before: next });
    core.recover_delayed(next, (overdue - before, waiting), was_at_rest, (past, now));
    core.recover_backlogs(next, &found, by_level, was_at_rest);
    Ok(())
}

pub(super) fn info<T>(filed: &Filed<T>) -> Result<StreamInfo, StoreError> {
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

pub(super) fn enter<T: Send + Sync + 'static>(core: &Core<T>, mut message: Message<T>, due: Option<Timestamp>) {
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

pub(super) fn rests(row: &Row, now: Timestamp) -> Option<Timestamp> {
    row.item.due_at.map(Timestamp).filter(|&due| due > now)
}

pub(super) fn each(
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

pub(super) fn bring_back<T: Send + Sync + 'static>(
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
