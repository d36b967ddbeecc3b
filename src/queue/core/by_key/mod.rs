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
//! While anything is unread, what arrives stays in the file; also while something is overdue there that comes before it,
//! see [`rest`](super::rest). What cannot, since its row says something else (it fell due a moment ago, or was redriven
//! to a later time that has come), waits in memory as if it stood in the file behind all that had arrived by then: it is
//! late.

mod backlog;
mod whole_key;

pub(super) use backlog::ByKey;

use super::not_read::Part;
use super::spill::PORTION_BYTES;
use super::{Core, Intake, Outlet};
use crate::clock::Timestamp;
use crate::message::{Message, Text};
use crate::outcome::drop_contained;
use crate::queue::builder::Order;
use crate::queue::durable::put_apart;
use crate::queue::keyed::{Key, Keyed, Pass};
use crate::request::Request;
use crate::store::{Limit, Row, Seq, StoreError};
use backlog::Late;

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
        // What was due before and has had to stay in the file comes first. This one is counted already.
        let fits = spill.rest.overdue() == 0 && self.entered.saturating_sub(left) <= window as u64;
        if spill.by_key.count == 0 && (fits || place.is_none()) {
            return Some((key, message));
        }
        if let Some(place) = place {
            if spill.by_key.add(place) {
                spill.requests.extend(message.take_request().map(|request| (place, request)));
                self.hold_room(&message);
                self.spill.waste.push(message);
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

    /// What waited outside of the lanes has been taken: they need not wait for it. How many were not there any more.
    pub(super) fn settle_cleared(&mut self, outlet: &mut Outlet<T>) -> u64 {
        outlet.keyed_mut().map_or(0, |keyed| self.settle(keyed, 0))
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
    pub(super) fn is_stopped(&self) -> bool {
        self.keyed().is_some_and(Keyed::is_stopped)
    }

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
        intake.spill.rest.wants_reading() && !outlet.is_stopped() || self.wants_turns(outlet, intake)
    }

    fn wants_turns(&self, outlet: &Outlet<T>, intake: &Intake<T>) -> bool {
        !intake.spill.is_reading_or_rests() && outlet.misses(intake, self.settings.order)
    }

    /// Whether there is room in memory for what is due in the file and comes before all that is there.
    pub(super) fn has_room_for_due(&self, window: usize) -> bool {
        let (outlet, _intake) = self.both_sides();
        let room = |keyed: &Keyed<_>| keyed.available() == 0 || keyed.present() < window.div_ceil(2);
        !outlet.is_stopped() && outlet.keyed().is_none_or(room)
    }

    /// Whether there is more in the file that will get its turn.
    pub(super) fn expects_unread(&self, outlet: &Outlet<T>, intake: &Intake<T>) -> bool {
        if !self.keeps_turns_in_file() {
            return intake.has_unread();
        }
        let rest = &intake.spill.rest;
        rest.waiting() > 0
            || rest.overdue() > 0 && !outlet.is_stopped()
            || outlet.misses_in_time(intake, self.settings.order)
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
            Err(error) => {
                self.ready_unread(ask.turn, Part::Ready(0), ask.from, &error);
                return false;
            }
        }
        self.drop_spilled();
        true
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
            self.wants_turns(&outlet, &intake) && (available == 0 || present < half)
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
        for (place, mut message) in keyed.shed(self.filed().window / 2, unread_place) {
            intake.hold_room(&message);
            let spill = &mut intake.spill;
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
        let reader = filed.depot.store.reader()?.with_damaged();
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

    /// A message in the file has failed and keeps its key busy, until it is read when it is due; `false` if there is more
    /// of that key in memory. Comes before anybody knows of the queue, as [`Core::recover_resting`] does.
    pub(crate) fn recover_failed(&self, place: Seq, key: Text) -> bool {
        let key = Key::new(key, &self.seed);
        let (mut outlet, mut intake) = self.both_sides();
        let lane = outlet.keyed_mut().and_then(|keyed| keyed.occupy(key));
        intake.spill.by_key.failed.extend(lane.map(|lane| (place, lane)));
        lane.is_some()
    }

    /// The key a message that has been read is ordered by.
    pub(crate) fn take_key_text(&self, message: &mut Message<T>) -> Text {
        self.find_key(message);
        message.extras_mut().order_key.take().unwrap_or(Text::EMPTY)
    }

    fn take_key(&self, message: &mut Message<T>) -> Key {
        Key::new(self.take_key_text(message), &self.seed)
    }

    fn take_in_turns(&self, portion: Portion<T>, ask: Ask) {
        let (mut outlet, mut intake) = self.both_sides();
        if !intake.spill.end_reading(ask.turn) {
            drop((outlet, intake));
            return portion.messages.into_iter().for_each(|(.., message)| drop_contained(message));
        }
        let Some(keyed) = outlet.keyed_mut() else { return };
        let is_over = intake.spill.not_read.is_over(Part::Ready(0), ask.from..portion.end);
        let gone = intake.take_in_turns(keyed, portion, ask, |message| self.note_expiry(message));
        outlet.left += gone;
        drop(intake);
        self.release(outlet, gone);
        self.wake_everyone();
        self.runtime.note_progress();
        self.tell_read_again(is_over);
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
