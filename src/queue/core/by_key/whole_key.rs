//! Counting, and dropping, all that a parked key has, also what is only in the file.

use super::backlog::ByKey;
use super::{Ask, PORTION_BYTES};
use crate::dead_letter::Reason;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::core::not_read::Part;
use crate::queue::core::spill::AGAIN;
use crate::queue::core::{Core, Intake, Outlet};
use crate::queue::keyed::{Key, KeyRule, Pass};
use crate::store::{Limit, Seq, StoreError};
use std::collections::HashMap;

impl<T: Send + Sync + 'static> Core<T> {
    /// Makes dead letters of what a key has in the file, from the first place to the second, and frees its lane, which
    /// has kept it from going on; how many. What cannot be read stays, and goes on.
    pub(in crate::queue::core) fn drop_unread(&self, key: &Key, lane: u32, (from, last): (Seq, Seq)) -> usize {
        let (mut n, mut next, mut end) = (0, Some(from), from);
        while let Some(from) = next {
            let Ok((messages, rest)) = self.take_unread(key, from, last) else { break };
            n += self.bury_dropped(messages, std::iter::repeat(Reason::KeyDropped));
            (next, end) = (rest, rest.unwrap_or(last + 1));
        }
        let (mut outlet, intake) = self.both_sides();
        let known = intake.spill.by_key.from;
        outlet.keyed_mut().into_iter().for_each(|keyed| keyed.nothing_before(lane, end, known));
        outlet.end_drop(lane);
        drop((outlet, intake));
        self.wake_everyone();
        n
    }

    /// How many messages these keys have in the file of which nobody has looked at any.
    pub(in crate::queue::core) fn count_ahead(&self, keys: &mut HashMap<String, usize>) {
        for late in &self.intake.lock().spill.by_key.arriving {
            keys.get_mut(late.key.as_str()).into_iter().for_each(|count| *count += 1);
        }
        let mut from = 0;
        while let Some(ask) = self.ask_ahead(from) {
            let Ok(places) = self.read_keys(&ask, keys) else { return };
            from = places;
        }
    }

    fn ask_ahead(&self, from: Seq) -> Option<Ask> {
        let intake = self.intake.lock();
        let ByKey { from: ahead, last, count, overdue, .. } = intake.spill.by_key;
        let from = from.max(ahead);
        (count > 0 && from <= last).then(|| Ask {
            pass: Pass::new(0, false),
            from,
            last,
            old_before: 0,
            overdue,
            turn: 0,
        })
    }

    /// Adds to the counts of these keys; answers where to go on.
    fn read_keys(&self, ask: &Ask, keys: &mut HashMap<String, usize>) -> Result<Seq, StoreError> {
        let filed = self.filed();
        let limit = Limit::items(filed.window.div_ceil(2)).bytes(PORTION_BYTES);
        let mut rows = filed.depot.store.reader()?.with_damaged().read_within(
            filed.stream,
            ask.from..ask.last.saturating_add(1),
            limit,
        )?;
        let end = rows.last().map_or(ask.last, |row| row.seq) + 1;
        {
            let intake = self.intake.lock();
            rows.retain(|row| ask.is_ready(row) && intake.spill.by_key.is_unread(row.seq));
        }
        for row in rows {
            let key = match &self.keys {
                KeyRule::OfMessage => Some(row.item.key.unwrap_or_default()),
                KeyRule::Of(_) => self.restored(&row, false).ok().map(|mut message| {
                    let key = self.take_key(&mut message).into_text();
                    drop_contained(message);
                    key.as_str().to_owned()
                }),
                KeyRule::One | KeyRule::Unordered => Some(String::new()),
            };
            key.and_then(|key| keys.get_mut(&key)).into_iter().for_each(|count| *count += 1);
        }
        Ok(end)
    }

    /// Takes the next of a key's messages that are not in its lane, which is kept from going on meanwhile: those in a
    /// portion from `from` on, up to `last`. Answers where to go on, if not all was looked at.
    fn take_unread(&self, key: &Key, from: Seq, last: Seq) -> Result<(Vec<Message<T>>, Option<Seq>), StoreError> {
        let mut ask = {
            let mut intake = self.intake.lock();
            if intake.spill.by_key.count == 0 {
                return Ok((Vec::new(), None));
            }
            intake.spill.interrupt_reading();
            intake.ask_for_turns(from, false)
        };
        ask.last = ask.last.min(last);
        let read = self.read_turns(&ask);
        let portion = match read {
            Ok(portion) => portion,
            Err(error) => {
                // Whoever hands out comes across it, and says so if it lasts.
                self.intake.lock().spill.reading_failed(ask.turn);
                self.arm(self.runtime.clock.now().after(AGAIN));
                return Err(error);
            }
        };
        let (mut outlet, mut intake) = self.both_sides();
        if !intake.spill.end_reading(ask.turn) {
            drop((outlet, intake));
            portion.messages.into_iter().for_each(|(.., message)| drop_contained(message));
            return Ok((Vec::new(), Some(from)));
        }
        let Some(keyed) = outlet.keyed_mut() else { return Ok((Vec::new(), None)) };
        let end = portion.end;
        let is_over = intake.spill.not_read.is_over(Part::Ready(0), ask.from..end);
        let (taken, others, gone) = intake.take_of_key(keyed, key, from, portion);
        let slots = taken.iter().filter(|message| message.holds_slot).count() as u64;
        outlet.left += gone + taken.len() as u64;
        outlet.moving += taken.len() as u64;
        drop(intake);
        self.release(outlet, gone + slots);
        others.into_iter().for_each(drop_contained);
        self.wake_everyone();
        self.tell_read_again(is_over);
        Ok((taken, (end <= last).then_some(end)))
    }

    /// What a key that is being dropped may have in the file: from where on, and up to where.
    pub(in crate::queue::core) fn unread_of(
        &self,
        outlet: &Outlet<T>,
        intake: &Intake<T>,
        lane: u32,
    ) -> Option<(Seq, Seq)> {
        let by_key = &intake.spill.by_key;
        let missing = outlet.keyed().and_then(|keyed| keyed.missing_from(lane));
        (by_key.count > 0).then(|| (missing.unwrap_or(by_key.from).min(by_key.from), by_key.last))
    }
}
