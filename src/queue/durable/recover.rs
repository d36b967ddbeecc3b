//! Bringing back what an earlier run has left in the file.

use super::declare::UNDECODABLE;
use super::filed::Filed;
use super::format::message_of;
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::core::{Admission, Core};
use crate::runtime::Event;
use crate::store::{Batch, Change, Durability, Limit, Row, Seq, StoreError};

/// Noted when a run ends with nothing in hand.
pub(super) const AT_REST: &str = "at rest";
/// How much is read at once.
const PORTION: Limit = Limit { items: 1024, bytes: 4 << 20 };

/// Puts everything that the file holds into a queue that nobody has seen yet, in its order. No lock is held while
/// the user's codec runs.
pub(super) fn recover<T: Send + Sync + 'static>(core: &Core<T>) -> Result<(), StoreError> {
    let filed = core.filed();
    let was_at_rest = ask_rest(filed)?;
    let now = core.runtime.clock.now();
    if core.is_ordered() {
        // First those that keep their key busy while they wait for their next attempt.
        each_row(filed, |row| match rests(&row, now).filter(|_| row.item.attempts > 0) {
            Some(due) => bring_back(core, &row, was_at_rest, |message| core.recover_resting(message, due)),
            None => Ok(()),
        })?;
    }
    each_row(filed, |row| {
        let due = rests(&row, now);
        if core.is_ordered() && due.is_some() && row.item.attempts > 0 {
            return Ok(());
        }
        bring_back(core, &row, was_at_rest, |mut message| {
            message.extras_mut().due = due;
            core.enter(message, Admission::Recovered);
        })
    })
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

fn each_row<T>(filed: &Filed<T>, mut visit: impl FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let reader = filed.depot.store.reader()?;
    let mut from: Seq = 0;
    loop {
        let rows = reader.read(filed.stream, from, PORTION)?;
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
    match message_of(&*filed.format, &row.item) {
        Ok(mut message) => {
            message.redelivered |= row.item.attempts > 0 || !was_at_rest;
            message.extras_mut().due = None;
            message.set_place(row.seq);
            core.find_key(&mut message);
            enter(message);
            Ok(())
        }
        Err(error) => put_apart(core, row, error),
    }
}

/// What cannot be decoded is kept as it is, in a stream of its own.
fn put_apart<T: Send + Sync + 'static>(core: &Core<T>, row: &Row, error: String) -> Result<(), StoreError> {
    let filed = core.filed();
    let store = &filed.depot.store;
    let apart = match store.reader()?.stream(UNDECODABLE, &core.name)? {
        Some(stream) => stream.id,
        None => store.declare(UNDECODABLE, &core.name, "")?,
    };
    let moved = Batch::new().move_to(filed.stream, row.seq, apart, Change::new());
    store.commit(moved, Durability::Buffered)?;
    let (queue, message) = (core.name.to_string(), row.item.id.into());
    core.runtime.tell(|| Event::Undecodable { queue, message, error });
    Ok(())
}
