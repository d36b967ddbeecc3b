//! The same for queues ordered by key: what has failed keeps its key busy, wherever it is.

use super::format::{HELD, hold_of};
use super::recover::{PORTION, bring_back, count_unknown, each, enter, info, rests};
use crate::clock::Timestamp;
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::core::Core;
use crate::queue::keyed::{Exhausted, KeyRule};
use crate::store::{FailedKey, Row, Seq, StoreError};

/// How many are in the file only, of those that have a time.
struct Left {
    overdue: u64,
    waiting: u64,
    /// Of those that have failed, and come first.
    failed_overdue: u64,
}

/// Of what has failed, the key; of what has parked its key or has a timer, all; the first of the others.
pub(super) fn recover<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let (overdue, waiting) = count_unknown(filed, now)?;
    let info = info(filed)?;
    let fresh = info.count - filed.depot.store.reader()?.count_resting(filed.stream)?;
    let mut left = Left { overdue, waiting, failed_overdue: 0 };
    keep_keys_busy(core, was_at_rest, now, &mut left)?;
    core.recover_turns(info.next, fresh + left.overdue, (left.overdue > 0).then_some(now), was_at_rest);
    each_known(core, |row| {
        bring_back(core, &row, was_at_rest, |message| match rests(&row, now) {
            Some(due) => enter(core, message, Some(due)),
            None => core.recover_among_turns(message),
        })
    })?;
    core.recover_delayed(info.next, (left.failed_overdue, left.waiting), was_at_rest, (None, now));
    core.recover_stop();
    core.load_more();
    Ok(())
}

fn each_known<T>(core: &Core<T>, visit: impl FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError>
where
    T: Send + Sync + 'static,
{
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    each(|from| reader.read_known(filed.stream, from, PORTION), visit)
}

/// Finds out which keys those are. What parks its key is brought back.
fn keep_keys_busy<T: Send + Sync + 'static>(
    core: &Core<T>,
    was_at_rest: bool,
    now: Timestamp,
    left: &mut Left,
) -> Result<(), StoreError> {
    let filed = core.filed();
    let reader = filed.depot.store.reader()?;
    let parks = core.settings.exhausted != Exhausted::DeadLetter;
    let bring = |row: &Row, left: &mut Left| bring_failed(core, row, was_at_rest, now, left);
    if matches!(core.keys, KeyRule::Of(_)) {
        return each(
            |from| reader.read_failed(filed.stream, from, PORTION),
            |row| {
                let holds = parks && hold_of(&row.item).is_some();
                let key = if holds { None } else { filed.message(&row.item).ok().map(|message| key_of(core, message)) };
                if key.is_none_or(|key| !core.recover_failed(row.seq, key)) {
                    return bring(&row, left);
                }
                left.count_failed(Timestamp(row.item.due_at.unwrap_or_default()), now);
                Ok(())
            },
        );
    }
    let mut from: Seq = 0;
    loop {
        let found = reader.failed_keys(filed.stream, from, HELD, PORTION.items)?;
        let Some(last) = found.last() else { return Ok(()) };
        from = last.place + 1;
        for FailedKey { place, due, key, is_noted } in found {
            let key = key.filter(|_| matches!(core.keys, KeyRule::OfMessage));
            let key = key.map_or(Text::EMPTY, |key| Text::new(&key));
            if !(parks && is_noted) && core.recover_failed(place, key) {
                left.count_failed(Timestamp(due), now);
            } else if let Some(row) = reader.get(filed.stream, place)? {
                bring(&row, left)?;
            }
        }
    }
}

fn key_of<T: Send + Sync + 'static>(core: &Core<T>, mut message: Message<T>) -> Text {
    let key = core.take_key_text(&mut message);
    drop_contained(message);
    key
}

/// Brings one back that parks its key, or of whose key there is more in memory.
fn bring_failed<T: Send + Sync + 'static>(
    core: &Core<T>,
    row: &Row,
    was_at_rest: bool,
    now: Timestamp,
    left: &mut Left,
) -> Result<(), StoreError> {
    let parks = core.settings.exhausted != Exhausted::DeadLetter;
    let (hold, due) = (hold_of(&row.item).filter(|_| parks), rests(row, now));
    *(if due.is_some() { &mut left.waiting } else { &mut left.overdue }) -= 1;
    bring_back(core, row, was_at_rest, |message| match (hold, due) {
        (Some(hold), _) => core.recover_parked(message, hold),
        (None, Some(due)) => core.recover_resting(message, due),
        (None, None) => enter(core, message, None),
    })
}

impl Left {
    /// One that keeps its key busy.
    fn count_failed(&mut self, due: Timestamp, now: Timestamp) {
        if due <= now {
            self.overdue -= 1;
            self.failed_overdue += 1;
        }
    }
}
