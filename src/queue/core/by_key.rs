//! Backlogs of queues ordered by key. As with [others](super::spill), memory holds a window of what is ready, and the
//! rest is read from the file when it is wanted. Here that is not always what comes next there: a key that waits for
//! its retry, or is parked, must not keep others from flowing that stand behind its thousands.
//!
//! Everything before one place has been read, or was passed over because its key could not use it; everything from
//! there on is unread. For each key of which something was passed over, its lane knows
//! [from where on](crate::queue::keyed), so that nothing later of that key gets in before it. Whoever finds nothing
//! to hand out [passes](Pass) over a portion of the file: from the first message that a key is waiting for, or else
//! from where nobody has read yet. If memory is full then, what it holds of keys that have no turn goes back to where
//! it is anyway, the latest first. So each pass gets somewhere, and memory holds a window, besides a bit for each
//! message that was passed over.
//!
//! While anything is unread, what arrives stays in the file. What cannot, since its row says something else (it fell
//! due a moment ago, or was redriven), waits in memory as if it stood in the file behind all that had arrived by then:
//! it is [late](Late).

use super::places::Places;
use super::spill::{AGAIN, PORTION_BYTES};
use super::{Core, Intake, Outlet};
use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::builder::Order;
use crate::queue::durable::put_apart;
use crate::queue::keyed::{Key, KeyRule, Keyed, Pass};
use crate::request::Request;
use crate::store::{Limit, Row, Seq, StoreError};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// What of a queue ordered by key is ready and not in its lanes: guarded by the intake.
pub(super) struct ByKey<T> {
    /// Nobody has read from there on.
    from: Seq,
    /// The last that is unread.
    last: Seq,
    /// How many are in the file only, or late.
    count: u64,
    /// Unread ones before `from`.
    skipped: Places,
    /// From there on, those that are not to be read: they did not get in, or are gone.
    gone: Places,
    /// Late, and not passed yet.
    arriving: VecDeque<Late<T>>,
    /// Late, and passed over.
    late: BTreeMap<(Seq, u64), Late<T>>,
    /// Numbers the late ones, in the order they came.
    number: u64,
    /// What is due by then and before that place counts as ready.
    overdue: Option<(Timestamp, Seq)>,
}

/// A message that waits as if it stood in the file.
struct Late<T> {
    /// Just before what is there.
    place: Seq,
    number: u64,
    /// It was passed over before.
    passed: bool,
    key: Key,
    message: Message<T>,
}

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        Self {
            from: 0,
            last: 0,
            count: 0,
            skipped: Places::default(),
            gone: Places::default(),
            arriving: VecDeque::new(),
            late: BTreeMap::new(),
            number: 0,
            overdue: None,
        }
    }
}

impl<T> ByKey<T> {
    /// Whether there is something nobody has looked at.
    fn is_ahead(&self) -> bool {
        self.count > 0 && (self.from <= self.last || !self.arriving.is_empty())
    }

    fn is_unread(&self, place: Seq) -> bool {
        if place < self.from {
            return self.skipped.contains(place);
        }
        place <= self.last && !self.gone.contains(place)
    }

    /// One that stays in the file; `false` if it is not behind those there are.
    fn add(&mut self, place: Seq) -> bool {
        if self.count == 0 {
            self.from = place;
            self.gone.clear();
        } else if place <= self.last {
            return false;
        }
        self.last = place;
        self.count += 1;
        true
    }

    fn add_late(&mut self, place: Seq, key: Key, message: Message<T>) {
        self.count += 1;
        self.number += 1;
        self.arriving.push_back(Late { place, number: self.number, passed: false, key, message });
    }

    /// It is in the file, but not to be read.
    pub(super) fn pass_over(&mut self, place: Seq) {
        if self.count > 0 && place >= self.from {
            self.gone.insert(place);
        }
    }

    /// Takes out what is late and stands before `end`, or just there, in order; of what was passed over before, only
    /// from `from` on.
    fn take_late(&mut self, from: Seq, end: Seq) -> VecDeque<Late<T>> {
        let places: Vec<(Seq, u64)> = self.late.range((from, 0)..=(end, u64::MAX)).map(|(&at, _)| at).collect();
        let mut taken: VecDeque<_> = places.into_iter().filter_map(|at| self.late.remove(&at)).collect();
        let arrived = self.arriving.iter().take_while(|late| late.place <= end).count();
        taken.extend(self.arriving.drain(..arrived));
        taken
    }

    fn take_all_late(&mut self) -> Vec<Message<T>> {
        let all = std::mem::take(&mut self.late).into_values().chain(self.arriving.drain(..));
        let all: Vec<_> = all.map(|late| late.message).collect();
        self.count -= all.len() as u64;
        all
    }

    /// Everything before has been read or passed over.
    fn read_up_to(&mut self, end: Seq) {
        if end > self.from {
            self.gone.remove_within(self.from..=end - 1);
            self.from = end;
        }
    }

    /// Where to read on for whoever wants what stands at `from` or behind.
    fn next_unread(&self, from: Seq) -> Seq {
        if from < self.from { self.skipped.next(from).unwrap_or(self.from) } else { from }
    }
}

impl<T> Intake<T> {
    /// As [`keep_in_file`](Self::keep_in_file), where the order is by key. `left` is how many messages had left when
    /// somebody last looked.
    fn keep_turn_in_file(
        &mut self,
        key: Key,
        mut message: Message<T>,
        window: usize,
        left: u64,
    ) -> Option<(Key, Message<T>)> {
        let spill = &mut self.spill;
        let place = unread_place(&message);
        // It is counted already.
        let fits = self.entered.saturating_sub(left) <= window as u64;
        if spill.by_key.count == 0 && (fits || place.is_none()) {
            return Some((key, message));
        }
        if let Some(place) = place {
            if spill.by_key.add(place) {
                spill.requests.extend(message.take_request().map(|request| (place, request)));
                spill.waste.push(message);
                return None;
            }
            spill.by_key.pass_over(place);
        }
        let behind_all = spill.by_key.last + 1;
        spill.by_key.add_late(behind_all, key, message.known_to_memory());
        None
    }

    /// Everything that waits outside of the lanes.
    pub(super) fn take_late(&mut self) -> Vec<Message<T>> {
        self.spill.by_key.take_all_late()
    }

    pub(super) fn late_requests(&mut self) -> Vec<Request> {
        let ByKey { late, arriving, .. } = &mut self.spill.by_key;
        late.values_mut().chain(arriving).filter_map(|late| late.message.take_request()).collect()
    }
}

/// The place of a message of which the file knows no more than when it was published.
fn unread_place<T>(message: &Message<T>) -> Option<Seq> {
    message.place().filter(|_| message.is_fresh() && message.attempt == 0)
}

impl<T> Outlet<T> {
    /// Whether reading on may bring something that can be handed out. With a single key, that has to be through with
    /// what it has.
    fn misses(&self, intake: &Intake<T>, order: Option<Order>) -> bool {
        let (Some(keyed), by_key) = (self.keyed(), &intake.spill.by_key) else { return false };
        if keyed.is_stopped() || by_key.count == 0 {
            return false;
        }
        let alone = order == Some(Order::OneAtATime) && keyed.keys() > 0;
        keyed.hungry().is_some() || by_key.is_ahead() && !alone || is_astray(by_key, keyed)
    }

    /// Whether something unread will get its turn, sooner or later.
    fn misses_in_time(&self, intake: &Intake<T>, order: Option<Order>) -> bool {
        let (Some(keyed), by_key) = (self.keyed(), &intake.spill.by_key) else { return false };
        let held = order == Some(Order::OneAtATime) && keyed.held() > 0;
        !keyed.is_stopped() && by_key.count > 0 && !held && (keyed.misses_turns() || by_key.is_ahead())
    }
}

/// Whether something was passed over that no key is missing: the user's function has found another key for it.
fn is_astray<T>(by_key: &ByKey<T>, keyed: &Keyed<Message<T>>) -> bool {
    let passed_over = !by_key.skipped.is_empty() || !by_key.late.is_empty();
    passed_over && !keyed.is_behind()
}

/// What is to be read, as of some moment.
struct Ask {
    pass: Pass,
    /// Reading begins there, or behind.
    from: Seq,
    last: Seq,
    old_before: Seq,
    overdue: Option<(Timestamp, Seq)>,
    turn: u64,
}

struct Portion<T> {
    messages: Vec<(Seq, Key, Message<T>)>,
    undecodable: Vec<Seq>,
    /// Everything before has been looked at.
    end: Seq,
}

impl<T: Send + Sync + 'static> Core<T> {
    fn keeps_turns_in_file(&self) -> bool {
        self.is_ordered() && self.filed.get().is_some()
    }

    /// See [`Intake::keep_turn_in_file`].
    pub(super) fn put_in_window_of_turns(
        &self,
        intake: &mut Intake<T>,
        key: Key,
        message: Message<T>,
    ) -> Option<(Key, Message<T>)> {
        let Some(filed) = self.filed.get() else { return Some((key, message)) };
        intake.keep_turn_in_file(key, message, filed.window, self.left_seen())
    }

    /// Whether a reader that finds nothing to hand out should fetch more.
    pub(super) fn wants_reading(&self, outlet: &Outlet<T>, intake: &Intake<T>) -> bool {
        if !self.keeps_turns_in_file() {
            return intake.wants_reading();
        }
        let busy = intake.spill.is_reading_or_rests();
        intake.spill.rest.wants_reading() || !busy && outlet.misses(intake, self.settings.order)
    }

    /// Whether there is more in the file that will get its turn.
    pub(super) fn expects_unread(&self, outlet: &Outlet<T>, intake: &Intake<T>) -> bool {
        if !self.keeps_turns_in_file() {
            return intake.has_unread();
        }
        intake.spill.rest.unread() > 0 || outlet.misses_in_time(intake, self.settings.order)
    }

    /// How many lanes could go on if they had what is in the file, at least.
    pub(super) fn turns_to_fetch(&self, outlet: &Outlet<T>, intake: &Intake<T>) -> usize {
        usize::from(self.keeps_turns_in_file() && outlet.misses(intake, self.settings.order))
    }

    /// Where there is only one key, nobody looks for more while it is busy.
    pub(super) fn may_miss_a_turn(&self) -> bool {
        self.settings.order == Some(Order::OneAtATime) && self.is_durable()
    }

    /// As [`Core::load_more`]; `all` is for whoever clears the queue.
    #[cold]
    pub(super) fn load_turns(&self, all: bool) -> bool {
        let Some(ask) = self.ask_for_turns(all) else { return false };
        self.drop_spilled();
        match self.read_turns(&ask) {
            Ok(portion) => self.take_in_turns(portion, ask),
            Err(_) => {
                self.turns_unread(ask.turn);
                return false;
            }
        }
        self.drop_spilled();
        true
    }

    fn turns_unread(&self, turn: u64) {
        self.intake.lock().spill.reading_failed(turn);
        self.arm(self.runtime.clock.now().after(AGAIN));
    }

    /// Makes room, if there is none.
    fn ask_for_turns(&self, all: bool) -> Option<Ask> {
        let half = self.filed().window.div_ceil(2);
        let (mut outlet, mut intake) = self.both_sides();
        let keyed = outlet.keyed()?;
        let (present, available, hungry) = (keyed.present(), keyed.available(), keyed.hungry());
        let wanted = if all {
            intake.spill.by_key.count > 0
        } else {
            self.wants_reading(&outlet, &intake) && (available == 0 || present < half)
        };
        if !wanted {
            return None;
        }
        if !all && available == 0 && present > self.filed().window / 2 {
            self.shed(&mut outlet, &mut intake);
        }
        let by_key = &intake.spill.by_key;
        let ahead = by_key.is_ahead().then_some(by_key.from);
        let from = if all { 0 } else { hungry.into_iter().chain(ahead).min().unwrap_or(0) };
        Some(intake.ask_for_turns(from, all))
    }

    /// What memory holds of keys that have no turn goes back to where it is anyway.
    fn shed(&self, outlet: &mut Outlet<T>, intake: &mut Intake<T>) {
        let Some(keyed) = outlet.keyed_mut() else { return };
        let spill = &mut intake.spill;
        for (place, mut message) in keyed.shed(self.filed().window / 2, unread_place) {
            debug_assert!(place < spill.by_key.from, "what is there has been read");
            spill.by_key.skipped.insert(place);
            spill.by_key.count += 1;
            spill.requests.extend(message.take_request().map(|request| (place, request)));
            spill.waste.push(message);
        }
    }

    /// Runs the user's codec and function for the key, so no lock may be held.
    fn read_turns(&self, ask: &Ask) -> Result<Portion<T>, StoreError> {
        let filed = self.filed();
        let limit = Limit::items(filed.window.div_ceil(2)).bytes(PORTION_BYTES);
        let reader = filed.depot.store.reader()?;
        let mut rows = match ask.overdue {
            Some((_, before)) if ask.from < before => {
                reader.read_within(filed.stream, ask.from..ask.last.saturating_add(1), limit)?
            }
            _ => reader.read_ready(filed.stream, ask.from, limit)?,
        };
        drop(reader);
        let end = rows.last().filter(|row| row.seq < ask.last).map_or(ask.last, |row| row.seq) + 1;
        {
            let intake = self.intake.lock();
            rows.retain(|row| row.seq < end && ask.is_ready(row) && intake.spill.by_key.is_unread(row.seq));
        }
        let mut portion = Portion { messages: Vec::with_capacity(rows.len()), undecodable: Vec::new(), end };
        let mut refused = Vec::new();
        for row in rows {
            match self.restored(&row, row.seq < ask.old_before) {
                Ok(mut message) => {
                    message.set_read_place(row.seq);
                    let key = self.take_key(&mut message);
                    portion.messages.push((row.seq, key, message));
                }
                Err(error) => {
                    portion.undecodable.push(row.seq);
                    refused.push((row, error));
                }
            }
        }
        if let Err(error) = put_apart(self, &refused) {
            portion.messages.into_iter().for_each(|(.., message)| drop_contained(message));
            return Err(error);
        }
        self.end_refused(refused);
        Ok(portion)
    }

    fn take_key(&self, message: &mut Message<T>) -> Key {
        self.find_key(message);
        let text = message.extras_mut().order_key.take();
        Key::new(text.unwrap_or(Text::EMPTY), &self.seed)
    }

    fn take_in_turns(&self, portion: Portion<T>, ask: Ask) {
        let (mut outlet, mut intake) = self.both_sides();
        if !intake.spill.end_reading(ask.turn) {
            drop((outlet, intake));
            return portion.messages.into_iter().for_each(|(.., message)| drop_contained(message));
        }
        let Some(keyed) = outlet.keyed_mut() else { return };
        let gone = intake.take_in_turns(keyed, portion, ask, |message| self.note_expiry(message));
        outlet.left += gone;
        drop(intake);
        self.release(outlet, gone);
        self.wake_everyone();
        self.runtime.note_progress();
    }

    /// Takes over from whoever is reading.
    pub(super) fn load_rest_of_turns(&self) -> bool {
        {
            let spill = &mut self.intake.lock().spill;
            if spill.by_key.count == 0 || !spill.interrupt_reading() {
                return false;
            }
        }
        self.load_turns(true);
        true
    }

    /// Notes what is in the file, unread, when the queue is declared; what is due by `overdue`, too, counts as ready.
    pub(crate) fn recover_turns(&self, next: Seq, count: u64, overdue: Option<Timestamp>, was_at_rest: bool) {
        let mut intake = self.intake.lock();
        intake.entered += count;
        intake.slots += count;
        intake.recovered += count;
        let spill = &mut intake.spill;
        spill.old_before = if was_at_rest { 0 } else { next };
        let by_key = &mut spill.by_key;
        (by_key.count, by_key.last) = (count, next.saturating_sub(1));
        by_key.overdue = overdue.map(|until| (until, next));
    }

    /// A message that the file gave back comes among those that are to be read yet, by its place.
    pub(crate) fn recover_among_turns(&self, mut message: Message<T>) {
        let key = self.take_key(&mut message);
        let mut intake = self.intake.lock();
        intake.admit(&mut message, super::Admission::Recovered);
        intake.entered += 1;
        let place = message.place().unwrap_or(0);
        intake.spill.by_key.add_late(place, key, message);
    }

    /// Makes dead letters of what a key has in the file, from the first place to the second, and frees its lane, which
    /// has kept it from going on; how many. What cannot be read stays, and goes on.
    pub(super) fn drop_unread(&self, key: &Key, lane: u32, (from, last): (Seq, Seq)) -> usize {
        let (mut n, mut next, mut end) = (0, Some(from), from);
        while let Some(from) = next {
            let Ok((messages, rest)) = self.take_unread(key, from, last) else { break };
            n += self.bury_dropped(messages, std::iter::repeat(Reason::KeyDropped));
            (next, end) = (rest, rest.unwrap_or(last + 1));
        }
        let (mut outlet, intake) = self.both_sides();
        let known = intake.spill.by_key.from;
        outlet.keyed_mut().into_iter().for_each(|keyed| keyed.nothing_before(lane, end, known));
        outlet.free_lanes([lane]);
        drop((outlet, intake));
        self.wake_everyone();
        n
    }

    /// How many messages these keys have in the file of which nobody has looked at any.
    pub(super) fn count_ahead(&self, keys: &mut HashMap<String, usize>) {
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
        let mut rows =
            filed.depot.store.reader()?.read_within(filed.stream, ask.from..ask.last.saturating_add(1), limit)?;
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
                self.turns_unread(ask.turn);
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
        let (taken, others, gone) = intake.take_of_key(keyed, key, from, portion);
        let slots = taken.iter().filter(|message| message.holds_slot).count() as u64;
        outlet.left += gone + taken.len() as u64;
        outlet.moving += taken.len() as u64;
        drop(intake);
        self.release(outlet, gone + slots);
        others.into_iter().for_each(drop_contained);
        self.wake_everyone();
        Ok((taken, (end <= last).then_some(end)))
    }

    /// What a key that is being dropped may have in the file: from where on, and up to where.
    pub(super) fn unread_of(&self, outlet: &Outlet<T>, intake: &Intake<T>, lane: u32) -> Option<(Seq, Seq)> {
        let by_key = &intake.spill.by_key;
        let missing = outlet.keyed().and_then(|keyed| keyed.missing_from(lane));
        (by_key.count > 0).then(|| (missing.unwrap_or(by_key.from).min(by_key.from), by_key.last))
    }
}

impl Ask {
    /// Whether it is no delayed message, nor one of which more is noted.
    fn is_ready(&self, row: &Row) -> bool {
        row.item.due_at.is_none_or(|due| {
            row.item.extra.is_none() && self.overdue.is_some_and(|(until, before)| due <= until.0 && row.seq < before)
        })
    }
}

impl<T> Intake<T> {
    fn ask_for_turns(&mut self, from: Seq, all: bool) -> Ask {
        let turn = self.spill.begin_reading();
        let (by_key, old_before) = (&self.spill.by_key, self.spill.old_before);
        let pass = Pass::new(from, all);
        Ask { pass, from: by_key.next_unread(from), last: by_key.last, old_before, overdue: by_key.overdue, turn }
    }

    /// Brings a portion to the lanes, as far as those may have it; how many were not there any more.
    fn take_in_turns(
        &mut self,
        keyed: &mut Keyed<Message<T>>,
        portion: Portion<T>,
        ask: Ask,
        note: impl Fn(&Message<T>),
    ) -> u64 {
        let Ask { mut pass, from, .. } = ask;
        let Portion { messages, undecodable, end } = portion;
        let by_key = &mut self.spill.by_key;
        let known = by_key.from;
        let marked = if from < end.min(known) { by_key.skipped.remove_within(from..=end.min(known) - 1) } else { 0 };
        let seen = messages.iter().map(|(place, ..)| place).chain(&undecodable).filter(|place| **place < known);
        let missing = marked.saturating_sub(seen.count() as u64);
        let mut late = by_key.take_late(pass.from(), end);
        for (place, key, mut message) in messages {
            let before = late.iter().take_while(|late| late.place <= place).count();
            for late in late.drain(..before) {
                self.take_in_late(keyed, &mut pass, late, &note);
            }
            if place < known {
                keyed.seen_again(&key);
            }
            if let Some(request) = self.spill.requests.remove(&place) {
                message.extras_mut().request = request;
            }
            note(&message);
            match keyed.take_in(&mut pass, place, &key, message) {
                Ok(()) => self.spill.by_key.count -= 1,
                Err(mut message) => {
                    self.spill.requests.extend(message.take_request().map(|request| (place, request)));
                    self.spill.by_key.skipped.insert(place);
                    self.spill.waste.push(message);
                }
            }
        }
        late.into_iter().for_each(|late| self.take_in_late(keyed, &mut pass, late, &note));
        let by_key = &mut self.spill.by_key;
        by_key.read_up_to(end);
        keyed.end_pass(&pass, end, by_key.from);
        self.settle(keyed, missing + undecodable.len() as u64)
    }

    fn take_in_late(
        &mut self,
        keyed: &mut Keyed<Message<T>>,
        pass: &mut Pass,
        late: Late<T>,
        note: &impl Fn(&Message<T>),
    ) {
        let Late { place, number, passed, key, message } = late;
        let by_key = &mut self.spill.by_key;
        if passed {
            keyed.seen_again(&key);
        }
        note(&message);
        match keyed.take_in(pass, place, &key, message) {
            Ok(()) => by_key.count -= 1,
            Err(message) => {
                by_key.late.insert((place, number), Late { place, number, passed: true, key, message });
            }
        }
    }

    /// So many are not there any more; with those that some other has deleted, if that shows now.
    fn settle(&mut self, keyed: &mut Keyed<Message<T>>, gone: u64) -> u64 {
        let by_key = &mut self.spill.by_key;
        let mut gone = gone.min(by_key.count);
        by_key.count -= gone;
        let nothing_left = by_key.skipped.is_empty() && by_key.late.is_empty() && !by_key.is_ahead();
        if nothing_left {
            gone += std::mem::take(&mut by_key.count);
        }
        if by_key.count == 0 {
            by_key.skipped.clear();
            keyed.catch_up_all();
        }
        gone
    }

    /// Of a portion and of what is late, takes what is of this key; the others, and how many were not there any more.
    fn take_of_key(
        &mut self,
        keyed: &mut Keyed<Message<T>>,
        wanted: &Key,
        from: Seq,
        portion: Portion<T>,
    ) -> (Vec<Message<T>>, Vec<Message<T>>, u64) {
        let Portion { messages, undecodable, end } = portion;
        let spill = &mut self.spill;
        let (of_key, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(|(_, key, _)| key == wanted);
        let mut taken = Vec::new();
        for (place, key, mut message) in of_key {
            if spill.by_key.take_place(place) {
                keyed.seen_again(&key);
            }
            if let Some(request) = spill.requests.remove(&place) {
                message.extras_mut().request = request;
            }
            // Late ones come just before what is there.
            taken.push((place, true, message));
        }
        for late in spill.by_key.take_late_of(wanted, from, end) {
            if late.passed {
                keyed.seen_again(&late.key);
            }
            taken.push((late.place, false, late.message));
        }
        taken.sort_by_key(|(place, in_file, _)| (*place, *in_file));
        undecodable.iter().for_each(|&place| _ = spill.by_key.take_place(place));
        spill.by_key.count -= (taken.len() as u64).min(spill.by_key.count);
        let gone = self.settle(keyed, undecodable.len() as u64);
        (taken.into_iter().map(|(.., message)| message).collect(), others.into_iter().map(|(.., m)| m).collect(), gone)
    }
}

impl<T> ByKey<T> {
    /// It is not to be read any more; whether it had been passed over.
    fn take_place(&mut self, place: Seq) -> bool {
        if place < self.from {
            return self.skipped.remove(place);
        }
        self.gone.insert(place);
        false
    }

    fn take_late_of(&mut self, key: &Key, from: Seq, end: Seq) -> Vec<Late<T>> {
        let places = self.late.range((from, 0)..=(end, u64::MAX)).filter(|(_, late)| late.key == *key);
        let places: Vec<(Seq, u64)> = places.map(|(&at, _)| at).collect();
        let mut mine: Vec<_> = places.into_iter().filter_map(|at| self.late.remove(&at)).collect();
        let arriving = std::mem::take(&mut self.arriving).into_iter();
        let (arrived, others): (VecDeque<_>, VecDeque<_>) =
            arriving.partition(|late| late.place <= end && late.key == *key);
        self.arriving = others;
        mine.extend(arrived);
        mine
    }
}
