//! Of what has a delay, memory holds a window too: those due soonest. The rest is in the file only, and is read when
//! memory runs out of them, or their time comes.
//!
//! Everything up to one moment has been read, and everything behind it has not. Told by its row, what may be unread
//! is a message with a time of which nothing else is noted, or that had failed when the file was opened: then nobody has
//! it. What has a timer, or was redriven to a later time, has more in its row but no attempt, is in memory as a whole, and
//! is passed over by whoever reads; so is what has failed since.
//!
//! In a queue ordered by key, what had failed has kept its key busy since then, and goes to the front of that key once it
//! is read and due. Of these it is known [which](super::by_key::ByKey::failed) are unread. With priorities, what was
//! overdue when the file was opened is not for here: it is [ready](super::spill).
//!
//! Of each row that may be unread, one of three is true at any moment, whatever the file has heard by then: nobody has
//! its message in memory, and it is counted as unread; its time is not behind the moment up to which all has been read;
//! or it is noted as being elsewhere. So whoever brings a message back notes [its place](Returned) before the file is
//! told of the new time, and forgets it only when what has been read has passed all times that its row had or will
//! have.
//!
//! What falls due while the ready messages fill their window stays in the file, and is counted as ready. It is read
//! before the others, since it is due before them.
//!
//! While somebody reads, or clears the queue, what arrives stays in memory, and is noted as
//! [elsewhere](Rest::elsewhere) if it lies behind that moment; so does what only memory can have, and what comes back.

use super::by_key::ByKey;
use super::not_read::Part;
use super::returned::Returned;
use super::spill::{AGAIN, PORTION_BYTES, Spill};
use super::{Core, Intake, Outlet, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::durable::put_apart;
use crate::queue::keyed::Turn;
use crate::scheduler::DelayHeap;
use crate::store::{Limit, Row, Seq, StoreError};
use crate::sync::MutexGuard;
use std::collections::BTreeSet;
use std::time::Duration;

/// The least time between two counts of what is due and has to wait for room.
const COUNT_PAUSE: Duration = Duration::from_millis(10);

/// When a message is due, as far as the file can say, and the place behind its own: the order in which they are read.
/// Nothing is at the default.
type At = (Timestamp, Seq);

/// What has a delay and is only in the file: guarded by the intake.
pub(super) struct Rest {
    /// What is due up to there is in memory, or has been. `None` while nothing is unread.
    read_to: Option<At>,
    /// Unread, and not known to be due.
    waiting: u64,
    /// Unread, due, and counted as ready.
    overdue: u64,
    /// Unread ones up to there are overdue.
    looked: At,
    /// No other is due before.
    soonest: Timestamp,
    /// Those at these places have been shown to memory, and not all of them have been cleared away.
    begin: Seq,
    shown: Seq,
    /// In memory though they may be unread.
    resident: usize,
    /// So many of these had failed and could not leave memory before their time, when somebody last looked.
    staying: usize,
    /// Not to be read though they look like it: they are in memory, or gone.
    elsewhere: BTreeSet<At>,
    /// The same by their places alone: they have come back. Only places [before](Self::failed_before) one are noted.
    returned: Returned,
    /// What has failed and stands before is from an earlier run, and may be unread. Any other is in memory, or gone.
    failed_before: Seq,
    /// Up to there, only what has failed is unread: the others are not for here.
    failed_to: At,
    /// Nothing that has been forgotten was due later.
    latest: Timestamp,
    reading: bool,
    /// Counts readings, and those whose outcome nobody wants any more.
    turn: u64,
    /// Reading has failed, and rests.
    failed: bool,
    /// So many are clearing the queue.
    clearing: usize,
}

impl Default for Rest {
    fn default() -> Self {
        let nowhere = (Timestamp(0), 0);
        Self {
            read_to: None,
            waiting: 0,
            overdue: 0,
            looked: nowhere,
            soonest: Timestamp::MAX,
            begin: 0,
            shown: 0,
            resident: 0,
            staying: 0,
            elsewhere: BTreeSet::new(),
            returned: Returned::default(),
            failed_before: 0,
            failed_to: nowhere,
            latest: Timestamp(0),
            reading: false,
            turn: 0,
            failed: false,
            clearing: 0,
        }
    }
}

/// What is to be done about those in the file.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Read,
    /// Count those that are due by now.
    Count,
    /// Look again then.
    Wait(Option<Timestamp>),
}

impl Rest {
    pub(super) fn unread(&self) -> u64 {
        self.waiting + self.overdue
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Unread, and due.
    pub(super) fn overdue(&self) -> u64 {
        self.overdue
    }

    /// Up to when all are in memory.
    pub(super) fn read_up_to(&self) -> Timestamp {
        self.read_to.filter(|_| self.waiting > 0).map_or(Timestamp::MAX, |(due, _)| due)
    }

    /// One of those in memory is no longer.
    pub(super) fn fired(&mut self) {
        self.resident = self.resident.saturating_sub(1);
    }

    /// How many of those in memory could go back to the file, about.
    fn could_leave(&self) -> usize {
        self.resident.saturating_sub(self.staying)
    }

    /// When the next of those that wait may be due.
    pub(super) fn soonest(&self) -> Option<Timestamp> {
        (self.waiting > 0).then_some(self.soonest)
    }

    /// Whether something ready should be fetched.
    pub(super) fn wants_reading(&self) -> bool {
        self.overdue > 0 && !self.reading && !self.failed
    }

    pub(super) fn try_again(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    fn is_behind(&self, at: At) -> bool {
        self.read_to.is_some_and(|read_to| at > read_to)
    }

    /// A row at that place need not be read, now or ever.
    pub(super) fn pass_over(&mut self, at: At) {
        self.shown = self.shown.max(at.1);
        self.elsewhere.insert(at);
    }

    /// A message has come back, and its row will say that it is due then.
    fn note_returned(&mut self, due: Timestamp, place: Seq, now: Timestamp) {
        let oldest = (self.returned.oldest_until(), Seq::MAX);
        if oldest.0 <= now && !self.is_behind(oldest) {
            self.latest = self.latest.max(oldest.0);
            self.returned.forget_oldest();
        }
        self.returned.insert(place, due);
    }

    fn is_elsewhere(&self, at: At) -> bool {
        self.elsewhere.contains(&at) || self.returned.contains(at.1 - 1)
    }

    /// Forgets what nobody can come across any more.
    fn tidy(&mut self, now: Timestamp) {
        self.latest = self.latest.max(now);
        while self.elsewhere.first().is_some_and(|&at| at.0 <= now && !self.is_behind(at)) {
            self.elsewhere.pop_first();
        }
    }

    /// Counts one that stays in the file; whether it is ready.
    fn add(&mut self, at: At) -> bool {
        let overdue = at <= self.looked;
        if overdue {
            self.overdue += 1;
        } else {
            self.soonest = self.soonest().map_or(at.0, |soonest| soonest.min(at.0));
            self.waiting += 1;
        }
        overdue
    }

    /// Counts one off that was unread; whether it was ready.
    fn remove(&mut self, at: At) -> bool {
        let overdue = at <= self.looked && self.overdue > 0;
        if overdue {
            self.overdue -= 1;
        } else {
            self.waiting = self.waiting.saturating_sub(1);
        }
        overdue
    }

    fn settle_bounds(&mut self) {
        if self.unread() == 0 {
            (self.read_to, self.soonest) = (None, Timestamp::MAX);
        }
    }

    /// `ready` are so in memory.
    fn next_step(&self, now: Timestamp, ready: usize, window: usize) -> Step {
        if self.unread() == 0 || self.reading || self.failed {
            return Step::Wait(None);
        }
        if self.overdue > 0 && ready < window.div_ceil(2) {
            return Step::Read;
        }
        if self.waiting == 0 {
            return Step::Wait(None);
        }
        let (due, has_room) = (self.soonest <= now, ready + self.resident < window);
        if self.overdue == 0 && has_room && (due || self.resident < window.div_ceil(4)) {
            return Step::Read;
        }
        if due { Step::Count } else { Step::Wait(Some(self.soonest)) }
    }

    fn begin_reading(&mut self) -> Ask {
        self.reading = true;
        self.turn += 1;
        let from = self.read_to.unwrap_or_default();
        Ask {
            from,
            looked: self.looked.max(from),
            begin: self.begin,
            shown: self.shown,
            failed_before: self.failed_before,
            failed_to: self.failed_to,
            turn: self.turn,
        }
    }

    /// Ends a reading, if it was not taken over.
    fn end_reading(&mut self, turn: u64) -> bool {
        let its_turn = self.turn == turn;
        self.reading &= !its_turn;
        its_turn
    }

    /// Everything in memory has been taken away.
    pub(super) fn cleared(&mut self) {
        (self.resident, self.staying) = (0, 0);
        if self.unread() == 0 {
            self.begin = self.shown;
            self.elsewhere.clear();
        }
    }
}

/// What to read, as of some moment.
struct Ask {
    from: At,
    looked: At,
    begin: Seq,
    shown: Seq,
    failed_before: Seq,
    failed_to: At,
    turn: u64,
}

impl Ask {
    /// Whether more is noted of it than its time, so that it is in memory as a whole, unless it failed in an earlier run.
    fn is_known(&self, row: &Row) -> bool {
        row.item.extra.is_some() && (row.item.attempts == 0 || row.seq >= self.failed_before)
    }

    fn covers(&self, place: Seq) -> bool {
        (self.begin..self.shown).contains(&place)
    }
}

struct Read<T> {
    messages: Vec<(At, Message<T>)>,
    undecodable: Vec<At>,
    /// The last that was looked at; `None` if there is nothing left.
    last: Option<At>,
}

pub(super) fn at_of<T>(message: &Message<T>) -> Option<At> {
    // Later times are cut off in the file.
    let due = message.due()?.0.min(i64::MAX as u64);
    Some((Timestamp(due), message.place()? + 1))
}

fn at_of_row(row: &Row) -> At {
    (Timestamp(row.item.due_at.unwrap_or_default()), row.seq + 1)
}

/// Time and place of the last before what is to be read next, if anything can be.
fn behind((due, next): At) -> Option<(u64, Seq)> {
    next.checked_sub(1).map(|place| (due.0, place))
}

/// Where a message stands that waits for its time, and whether it may be only in the file.
fn resting<T>(waiting: &Waiting<T>) -> Option<(At, bool)> {
    let Waiting::Delayed(message) = waiting else { return None };
    Some((at_of(message)?, message.is_fresh()))
}

fn may_leave<T>(waiting: &Waiting<T>) -> Option<At> {
    resting(waiting).and_then(|(at, fresh)| fresh.then_some(at))
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Gives a message back that is to wait in memory; what is kept is dropped by [`Core::drop_spilled`].
    pub(super) fn rest_in_file(
        &self,
        delayed: &mut MutexGuard<'_, DelayHeap<Waiting<T>>>,
        message: Message<T>,
    ) -> Option<Message<T>> {
        let Some((filed, at)) = self.filed.get().zip(at_of(&message)) else { return Some(message) };
        let now = self.runtime.clock.now();
        let mut intake = self.intake.lock();
        let rest = &mut intake.spill.rest;
        rest.shown = rest.shown.max(at.1);
        if !rest.reading {
            rest.settle_bounds();
        }
        rest.tidy(now);
        // Of a dead letter, more than its time is noted.
        if !message.is_fresh() || self.is_terminal() || at.1 <= rest.begin || at <= rest.failed_to {
            rest.elsewhere.insert(at);
            return Some(message.known_to_memory());
        }
        if rest.reading || rest.clearing > 0 {
            rest.elsewhere.insert(at);
            rest.resident += 1;
            return Some(message);
        }
        rest.elsewhere.remove(&at);
        // Each look passes all that is in memory, of which timers may be the most: so they are spaced out to find a
        // part of it that may go.
        if rest.could_leave() >= filed.window.max(delayed.len() / 4) {
            intake.let_go(delayed, filed.window, now);
        }
        let rest = &mut intake.spill.rest;
        if !rest.is_behind(at) {
            rest.resident += 1;
            return Some(message);
        }
        let soonest = rest.soonest().unwrap_or(Timestamp::MAX);
        let ready = rest.add(at);
        intake.entered += u64::from(ready);
        intake.spill.waste.push(message);
        drop(intake);
        if ready || at.0 < soonest {
            self.arm(if ready { now } else { at.0 });
        }
        None
    }

    /// A message has come back, to be delivered again then; the file will hear of it after this. It stays in memory.
    pub(crate) fn note_returned(&self, place: Seq, due: Timestamp) {
        if self.is_ordered() {
            // There, what is not known to be in the file alone is not read; and the caller may have the intake.
            return;
        }
        let mut intake = self.intake.lock();
        let rest = &mut intake.spill.rest;
        if place < rest.failed_before {
            rest.note_returned(due, place, self.runtime.clock.now());
        }
    }

    /// Sees to those in the file: reads them if there is room for them, and counts what is due. Answers when to look
    /// again. No lock may be held: the user's codec runs here.
    pub(super) fn attend_to_rest(&self, now: Timestamp) -> Option<Timestamp> {
        self.attend(now).1
    }

    /// The same, and whether anything was done.
    fn attend(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let Some(window) = self.filed.get().map(|filed| filed.window) else { return (false, None) };
        let mut something = false;
        loop {
            let (step, ask) = {
                let mut intake = self.intake.lock();
                // With priorities, what is due may go before all that is ready.
                let ready = if self.spills_in_order() { intake.about_ready() } else { 0 };
                let rest = &intake.spill.rest;
                let ready = if self.is_ordered() && rest.wants_reading() {
                    drop(intake);
                    let has_room = self.has_room_for_due(window);
                    intake = self.intake.lock();
                    if has_room { 0 } else { window }
                } else {
                    ready
                };
                let step = intake.spill.rest.next_step(now, ready, window);
                match step {
                    Step::Wait(next) => return (something, next),
                    step => (step, intake.spill.rest.begin_reading()),
                }
            };
            let (part, done) = match step {
                Step::Count => (Part::Due, self.count_due(&ask, now, window)),
                _ => (Part::Delayed, self.read_rest(&ask)),
            };
            if let Err(error) = done {
                self.reading_failed(ask.turn, part, &error);
                return (something, None);
            }
            something = true;
        }
    }

    fn reading_failed(&self, turn: u64, part: Part, error: &StoreError) {
        let began = {
            let Spill { rest, not_read, .. } = &mut self.intake.lock().spill;
            if !rest.end_reading(turn) {
                return; // it was taken over
            }
            rest.failed = true;
            !self.is_end_of_file(error) && not_read.note(part, 0, error)
        };
        self.arm(self.runtime.clock.now().after(AGAIN));
        self.tell_not_read(began, error);
    }

    /// For [`Core::load_more`]: whether it is of use to look again.
    pub(super) fn load_due(&self) -> bool {
        if !self.intake.lock().spill.rest.wants_reading() {
            return false;
        }
        let (something, next) = self.attend(self.runtime.clock.now());
        next.into_iter().for_each(|next| self.arm(next));
        something
    }

    /// For whoever clears the queue: takes over from another who is reading. `false` if nothing is unread, or reading
    /// has failed.
    pub(super) fn load_rest_of_delayed(&self) -> bool {
        let ask = {
            let rest = &mut self.intake.lock().spill.rest;
            if rest.unread() == 0 || rest.failed {
                return false;
            }
            rest.begin_reading()
        };
        if let Err(error) = self.read_rest(&ask) {
            self.reading_failed(ask.turn, Part::Delayed, &error);
        }
        true
    }

    /// What arrives stays in memory meanwhile.
    pub(super) fn clearing<R>(&self, clear: impl FnOnce() -> R) -> R {
        self.intake.lock().spill.rest.clearing += 1;
        let cleared = clear();
        self.intake.lock().spill.rest.clearing -= 1;
        cleared
    }

    fn read_rest(&self, ask: &Ask) -> Result<(), StoreError> {
        let read = self.read_portion_of_rest(ask)?;
        self.take_in_rest(read, ask.turn);
        Ok(())
    }

    fn read_portion_of_rest(&self, ask: &Ask) -> Result<Read<T>, StoreError> {
        let filed = self.filed();
        let portion = Limit::items(filed.window.div_ceil(2)).bytes(PORTION_BYTES);
        let old_before = self.intake.lock().spill.old_before;
        let mut read = Read { messages: Vec::new(), undecodable: Vec::new(), last: Some(ask.from) };
        let mut refused = Vec::new();
        // What cannot be decoded is put apart a portion at a time, too: whoever reads comes again.
        while let (Some(last), true) = (read.last, read.messages.is_empty() && refused.is_empty()) {
            let reader = filed.depot.store.reader()?;
            let mut rows = if last < ask.failed_to {
                reader.read_failed_after(filed.stream, behind(last), ask.failed_to.0.0, portion)?
            } else {
                reader.read_due_after(filed.stream, behind(last), u64::MAX, portion)?
            };
            drop(reader);
            read.last = rows.last().map(at_of_row).or_else(|| Some(ask.failed_to).filter(|&end| last < end));
            rows.retain(|row| !ask.is_known(row) && ask.covers(row.seq));
            self.leave_out_elsewhere(&mut rows);
            for row in rows {
                let at @ (due, _) = at_of_row(&row);
                match self.restored(&row, row.seq < old_before) {
                    Ok(mut message) => {
                        self.find_key(&mut message);
                        message.set_read_place(row.seq);
                        message.extras_mut().due = Some(due);
                        read.messages.push((at, message));
                    }
                    Err(error) => {
                        refused.push((row, error));
                        read.undecodable.push(at);
                    }
                }
            }
        }
        if let Err(error) = put_apart(self, &refused) {
            read.messages.into_iter().for_each(drop_contained);
            return Err(error);
        }
        Ok(read)
    }

    /// Before they are decoded. What comes to be elsewhere during a reading is not covered by it.
    fn leave_out_elsewhere(&self, rows: &mut Vec<Row>) {
        let intake = self.intake.lock();
        let Spill { rest, by_key, .. } = &intake.spill;
        rows.retain(|row| {
            !rest.is_elsewhere(at_of_row(row)) && self.is_unread(by_key, row.seq, row.item.extra.is_some())
        });
    }

    /// Where the order is by key, what has failed is in memory or gone unless it is [known](ByKey::failed) to be here.
    fn is_unread(&self, by_key: &ByKey<T>, place: Seq, is_noted: bool) -> bool {
        !self.is_ordered() || !is_noted || by_key.failed.contains_key(&place)
    }

    fn take_in_rest(&self, read: Read<T>, turn: u64) {
        let mut delayed = self.delayed.lock();
        let (mut outlet, mut intake) = self.both_sides();
        let rest = &mut intake.spill.rest;
        if !rest.end_reading(turn) {
            drop((delayed, outlet, intake));
            return read.messages.into_iter().for_each(drop_contained);
        }
        let (mut gone, mut left, mut waste) = (0, 0, Vec::new());
        for at in read.undecodable {
            left += u64::from(intake.spill.rest.remove(at));
            gone += 1;
            outlet.free_lanes(intake.spill.by_key.failed.remove(&(at.1 - 1)));
        }
        for (at, mut message) in read.messages {
            let Spill { rest, by_key, .. } = &mut intake.spill;
            if let Some(lane) = by_key.failed.remove(&(at.1 - 1)) {
                message.set_lane(lane);
                self.take_in_failed(&mut delayed, &mut outlet, &mut intake, at, message);
            } else if rest.is_elsewhere(at) {
                waste.push(message);
            } else if rest.remove(at) {
                message = message.known_to_memory();
                message.extras_mut().due = None;
                // It is counted already.
                self.put_specially(&mut intake, message);
            } else {
                rest.resident += 1;
                message.note_delayed(self.settings.ttl.is_some());
                delayed.insert(at.0, Waiting::Delayed(message));
            }
        }
        let rest = &mut intake.spill.rest;
        match read.last {
            Some(last) => (rest.read_to, rest.soonest) = (Some(last), rest.soonest.max(last.0)),
            // Some may have been deleted by others.
            None => {
                gone += rest.unread();
                left += rest.overdue;
                (rest.waiting, rest.overdue) = (0, 0);
                outlet.free_lanes(std::mem::take(&mut intake.spill.by_key.failed).into_values());
            }
        }
        intake.spill.rest.settle_bounds();
        let Spill { rest, not_read, .. } = &mut intake.spill;
        let mut is_over = not_read.is_over(Part::Delayed, 0..Seq::MAX);
        if rest.waiting == 0 {
            // There will be no count that could succeed.
            is_over |= not_read.is_over(Part::Due, 0..Seq::MAX);
        }
        let earliest = delayed.earliest();
        drop((delayed, intake));
        outlet.left += left;
        self.release(outlet, gone);
        waste.into_iter().for_each(drop_contained);
        earliest.into_iter().for_each(|due| self.arm(due));
        self.wake_everyone();
        self.runtime.note_progress();
        self.tell_read_again(is_over);
    }

    /// One that has kept this lane of its key busy goes before the others of it, now or when it is due.
    fn take_in_failed(
        &self,
        delayed: &mut DelayHeap<Waiting<T>>,
        outlet: &mut Outlet<T>,
        intake: &mut Intake<T>,
        at: At,
        mut message: Message<T>,
    ) {
        let extras = message.extras_mut();
        (extras.due, extras.order_key) = (None, None);
        let rest = &mut intake.spill.rest;
        if rest.remove(at) {
            message = message.known_to_memory();
            self.note_expiry(&message);
            // It is counted already.
            self.return_to_lane(outlet, intake, message, Turn::Last);
        } else {
            rest.resident += 1;
            delayed.insert(at.0, Waiting::Retry(Box::new(message)));
        }
    }

    /// Counts those as ready that are due by now.
    fn count_due(&self, ask: &Ask, now: Timestamp, window: usize) -> Result<(), StoreError> {
        let filed = self.filed();
        let reader = filed.depot.store.reader()?;
        let (looked, limit) = (behind(ask.looked), window.max(1024));
        let places = reader.due_places(filed.stream, looked, now.0, ask.failed_before, limit)?;
        let more = places.last().filter(|_| places.len() == limit).map(|&(due, place, _)| (Timestamp(due), place + 1));
        let next = if more.is_some() { Some(now.0) } else { reader.next_due_after(filed.stream, now.0)? };
        let pause = if more.is_some() || self.runtime.clock.is_manual() { Duration::ZERO } else { COUNT_PAUSE };
        let delayed = self.delayed.lock();
        let (outlet, mut intake) = self.both_sides();
        let Spill { rest, by_key, not_read, .. } = &mut intake.spill;
        if !rest.end_reading(ask.turn) {
            return Ok(());
        }
        let is_over = not_read.is_over(Part::Due, 0..Seq::MAX);
        let is_unread = |&&(due, place, is_noted): &&(u64, Seq, bool)| {
            let is_here = !rest.is_elsewhere((Timestamp(due), place + 1)) && self.is_unread(by_key, place, is_noted);
            ask.covers(place) && is_here
        };
        let due = (places.iter().filter(is_unread).count() as u64).min(rest.waiting);
        rest.waiting -= due;
        rest.overdue += due;
        rest.looked = more.unwrap_or((now, Seq::MAX));
        // Until then they count as delayed; nobody could have had them sooner.
        rest.soonest = next.map_or(Timestamp::MAX, |next| Timestamp(next).max(now.after(pause)));
        intake.entered += due;
        drop((delayed, outlet, intake));
        self.wake_everyone();
        self.runtime.note_progress();
        self.tell_read_again(is_over);
        Ok(())
    }

    /// Notes what has a delay and is in the file, unread, when the queue is declared: so many are due, so many wait. What
    /// was due by `past` does not count.
    pub(crate) fn recover_delayed(
        &self,
        next: Seq,
        (overdue, waiting): (u64, u64),
        was_at_rest: bool,
        (past, now): (Option<Timestamp>, Timestamp),
    ) {
        let mut intake = self.intake.lock();
        intake.entered += overdue;
        intake.slots += overdue + waiting;
        intake.recovered += overdue + waiting;
        intake.spill.old_before = if was_at_rest { 0 } else { next };
        let rest = &mut intake.spill.rest;
        rest.failed_before = next;
        rest.shown = next;
        if self.is_ordered() {
            // The others come by their places.
            rest.failed_to = (now, Seq::MAX);
        }
        if overdue + waiting > 0 {
            (rest.overdue, rest.waiting) = (overdue, waiting);
            let until_now = (now, Seq::MAX);
            let before = past.map_or(At::default(), |past| (past, Seq::MAX));
            rest.read_to = Some(if overdue > 0 { before } else { until_now });
            (rest.looked, rest.soonest) = (until_now, now);
        }
        drop(intake);
        let next = self.attend_to_rest(now);
        next.into_iter().for_each(|next| self.arm(next));
    }
}

impl<T> Intake<T> {
    /// How many are ready and in memory, but for a few that are about to be handed out.
    fn about_ready(&self) -> usize {
        self.tail.about() + self.aside.available()
    }

    /// The later half of the window goes back to where it is anyway.
    fn let_go(&mut self, delayed: &mut DelayHeap<Waiting<T>>, window: usize, now: Timestamp) {
        let mut places: Vec<At> = delayed.entries().filter_map(may_leave).collect();
        let retries =
            delayed.entries().filter(|waiting| matches!(waiting, Waiting::Retry(message) if message.is_fresh()));
        let rest = &mut self.spill.rest;
        rest.staying = retries.count();
        rest.resident = places.len() + rest.staying;
        let half = window / 2;
        if places.len() <= half {
            return;
        }
        // What is due by now may have been taken long ago, and be deleted in a while.
        let taken = (now.max(rest.latest), Seq::MAX);
        let limit = taken.max(*places.select_nth_unstable(half).1);
        if rest.read_to.is_some_and(|read_to| read_to <= limit) {
            return;
        }
        let out = delayed.remove_where(|waiting| may_leave(waiting).is_some_and(|at| at > limit));
        let stay = delayed.entries().filter_map(resting).map(|(at, _)| at);
        let stay: Vec<At> = stay.filter(|&at| at > limit).collect();
        rest.elsewhere.extend(stay);
        rest.read_to = Some(limit);
        rest.resident -= out.len();
        for waiting in out {
            let Waiting::Delayed(message) = waiting else { unreachable!("asked for no other") };
            if let Some(at) = at_of(&message) {
                rest.elsewhere.remove(&at);
                rest.add(at);
            }
            self.spill.waste.push(message);
        }
    }
}
