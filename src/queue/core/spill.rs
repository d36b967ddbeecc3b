//! A backlog stays in the file: memory holds the first few thousand ready messages of a queue, the rest is read when
//! those have been taken.
//!
//! While a part of the queue is only in the file, what newly arrives counts as spilled too, so that all of it lies
//! behind one place of the stream, in order. That is decided under the intake's lock, by whoever shows a commit, in
//! the order of the file. Whoever finds nothing in memory reads the next portion; others find it once it is there.
//!
//! Only messages that rest until no time of theirs are read that way. What is delayed, or has been handed out and has
//! come back, has a time in the file, be it past, and stays in memory.

use super::{Core, Intake};
use crate::dead_letter::Reason;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::durable::put_apart;
use crate::request::{End, Request};
use crate::store::{Limit, Row, Seq, StoreError};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// No further message is read at once when those read have so many bytes.
const PORTION_BYTES: usize = 4 << 20;
/// Until a read that has failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What of a queue is ready and only in the file: guarded by the intake.
pub(super) struct Spill<T> {
    /// Where to read on.
    from: Seq,
    /// The last of them.
    last: Seq,
    /// Where the next one that another connection puts there can be at the earliest.
    known: Seq,
    count: u64,
    /// Somebody is reading.
    reading: bool,
    /// Counts readings, and those whose outcome nobody wants any more.
    turn: u64,
    /// Reading has failed, and rests.
    resting: bool,
    /// Those before may have been in hand in an earlier run.
    old_before: Seq,
    /// Places among them, and behind, of what did not get in: a full queue threw it away or gave up on it, but its
    /// deletion may be a while. In order; neighbours are one, so there are no more than messages between them.
    passed: VecDeque<Range<Seq>>,
    /// Who waits for replies to some of them.
    requests: BTreeMap<Seq, Request>,
    /// Spilled, and to be dropped when no lock is held.
    waste: Vec<Message<T>>,
}

impl<T> Default for Spill<T> {
    fn default() -> Self {
        Self {
            from: 0,
            last: 0,
            known: 0,
            count: 0,
            reading: false,
            turn: 0,
            resting: false,
            old_before: 0,
            passed: VecDeque::new(),
            requests: BTreeMap::new(),
            waste: Vec::new(),
        }
    }
}

impl<T> Spill<T> {
    fn add(&mut self, first: Seq, last: Seq, count: u64) {
        if self.count == 0 {
            self.read_up_to(first);
        }
        self.last = last;
        self.known = last + 1;
        self.count += count;
    }

    /// Ends a reading, if it was not [taken over](Core::load_rest).
    fn end_reading(&mut self, turn: u64) -> bool {
        let its_turn = self.turn == turn;
        self.reading &= !its_turn;
        its_turn
    }

    fn pass_over(&mut self, place: Seq) {
        if self.count == 0 {
            // Reading begins behind it.
            return;
        }
        match self.passed.back_mut() {
            Some(range) if range.end == place => range.end += 1,
            _ => self.passed.push_back(place..place + 1),
        }
    }

    /// Reading goes on there.
    fn read_up_to(&mut self, from: Seq) {
        self.from = from;
        while self.passed.front().is_some_and(|range| range.end <= from) {
            self.passed.pop_front();
        }
    }
}

impl<T> Intake<T> {
    pub(super) fn new_spill() -> Spill<T> {
        Spill::default()
    }

    /// Whether a reader that finds nothing in memory should fetch more.
    pub(super) fn wants_reading(&self) -> bool {
        self.spill.count > 0 && !self.spill.reading && !self.spill.resting
    }

    /// Whether there is more in the file.
    pub(super) fn has_unread(&self) -> bool {
        self.spill.count > 0
    }

    /// Gives a message back, unless it is fresh in the file and `window` are before it in memory; what is kept
    /// is dropped by [`Core::drop_spilled`].
    pub(super) fn keep_in_file(&mut self, mut message: Message<T>, window: usize) -> Option<Message<T>> {
        let Some(place) = message.take_fresh() else { return Some(message) };
        if self.spill.count == 0 && self.tail.about() < window {
            return Some(message);
        }
        self.spill.add(place, place, 1);
        if let Some(request) = message.take_request() {
            self.spill.requests.insert(place, request);
        }
        self.spill.waste.push(message);
        None
    }

    /// The message does not get in, though the file has it until it is deleted there.
    pub(super) fn pass_over(&mut self, message: &mut Message<T>) {
        if let Some(place) = message.take_fresh() {
            self.spill.pass_over(place);
        }
    }

    pub(super) fn unread_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.spill.requests).into_values().collect()
    }
}

/// What is to be read, as of some moment.
struct Unread {
    from: Seq,
    last: Seq,
    old_before: Seq,
    passed: Vec<Range<Seq>>,
}

/// Rows as messages, and how many could not be.
struct Loaded<T> {
    messages: Vec<Message<T>>,
    rows: u64,
    undecodable: u64,
    last: Option<Seq>,
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Whether a backlog may stay in the file. Where the order is not simply that of arrival, all of it is in memory.
    pub(crate) fn may_spill(&self) -> bool {
        self.is_durable() && !self.is_ordered() && self.settings.priority_levels == 1
    }

    /// See [`Intake::keep_in_file`].
    pub(super) fn put_in_window(&self, intake: &mut Intake<T>, message: Message<T>) -> Option<Message<T>> {
        match self.filed.get().filter(|_| self.may_spill()) {
            Some(filed) => intake.keep_in_file(message, filed.window),
            None => Some(message),
        }
    }

    /// Fetches the next portion from the file, if there is one and nobody else does; whether it is of use to look
    /// again. No lock may be held: the user's codec runs here.
    #[inline]
    pub(crate) fn load_more(&self) -> bool {
        self.settings.durable.is_some() && self.filed.get().is_some_and(|filed| self.load(filed.window))
    }

    #[cold]
    fn load(&self, window: usize) -> bool {
        let (unread, counted, turn) = {
            let mut intake = self.intake.lock();
            if intake.tail.about() >= window.div_ceil(2) || !intake.wants_reading() {
                return false;
            }
            let spill = &mut intake.spill;
            spill.reading = true;
            spill.turn += 1;
            let Spill { from, last, old_before, ref passed, .. } = *spill;
            (Unread { from, last, old_before, passed: passed.iter().cloned().collect() }, spill.count, spill.turn)
        };
        match self.read_portion(&unread) {
            Ok(loaded) => self.take_in(loaded, unread.last, counted, turn),
            Err(_) => {
                let spill = &mut self.intake.lock().spill;
                spill.resting |= spill.end_reading(turn);
                self.arm(self.runtime.clock.now().after(AGAIN));
                return false;
            }
        }
        true
    }

    /// As [`Core::load_more`], for whoever clears the queue: takes over from another who is reading, whose outcome is
    /// dropped, so that nothing is left behind. `false` if nothing is unread, or reading has failed.
    pub(crate) fn load_rest(&self) -> bool {
        {
            let spill = &mut self.intake.lock().spill;
            if spill.count == 0 || spill.resting {
                return false;
            }
            spill.turn += u64::from(spill.reading);
            spill.reading = false;
        }
        self.load_more();
        true
    }

    /// After a read that has failed; called by the scheduler.
    pub(super) fn load_again(&self) {
        let rested = std::mem::take(&mut self.intake.lock().spill.resting);
        if rested {
            self.load_more();
        }
    }

    fn read_portion(&self, unread: &Unread) -> Result<Loaded<T>, StoreError> {
        let filed = self.filed();
        let portion = Limit::items(filed.window.div_ceil(2)).bytes(PORTION_BYTES);
        let rows = filed.depot.store.reader()?.read_ready(filed.stream, unread.from, portion)?;
        let mut loaded = Loaded { messages: Vec::with_capacity(rows.len()), rows: 0, undecodable: 0, last: None };
        let mut refused = Vec::new();
        for row in rows.into_iter().take_while(|row| row.seq <= unread.last) {
            loaded.last = Some(row.seq);
            if unread.passed.iter().any(|range| range.contains(&row.seq)) {
                continue;
            }
            loaded.rows += 1;
            match self.restored(&row, row.seq < unread.old_before) {
                Ok(message) => loaded.messages.push(message),
                Err(error) => refused.push((row, error)),
            }
        }
        if !refused.is_empty() {
            if let Err(error) = put_apart(self, &refused) {
                loaded.messages.into_iter().for_each(drop_contained);
                return Err(error);
            }
            loaded.undecodable = refused.len() as u64;
            self.end_refused(refused);
        }
        Ok(loaded)
    }

    /// Whoever waits for replies to these has to know.
    fn end_refused(&self, refused: Vec<(Row, String)>) {
        for (row, error) in refused {
            let request = self.intake.lock().spill.requests.remove(&row.seq);
            if let Some(request) = request {
                request.end(End::Failed(Arc::clone(&self.name), Reason::Undecodable, Some(error)));
            }
        }
    }

    fn restored(&self, row: &Row, old: bool) -> Result<Message<T>, String> {
        let mut message = self.filed().message(&row.item)?;
        message.redelivered |= old;
        message.holds_slot = true;
        message.set_place(row.seq);
        Ok(message)
    }

    /// `counted` messages up to `last` were only in the file when the reading began.
    fn take_in(&self, loaded: Loaded<T>, last: Seq, counted: u64, turn: u64) {
        let (mut outlet, mut intake) = self.both_sides();
        let spill = &mut intake.spill;
        if !spill.end_reading(turn) {
            drop((outlet, intake));
            return loaded.messages.into_iter().for_each(drop_contained);
        }
        // Some may have been deleted by others.
        let missing = if loaded.last.is_none_or(|seq| seq >= last) { counted - loaded.rows.min(counted) } else { 0 };
        spill.count -= loaded.rows.min(counted) + missing;
        spill.read_up_to(loaded.last.unwrap_or(last) + 1);
        let gone = missing + loaded.undecodable;
        for mut message in loaded.messages {
            if let Some(request) = message.place().and_then(|place| intake.spill.requests.remove(&place)) {
                message.extras_mut().request = request;
            }
            self.note_expiry(&message);
            intake.tail.push(message);
        }
        outlet.left += gone;
        drop(intake);
        self.release(outlet, gone);
        self.wake_everyone();
        self.runtime.note_progress();
    }

    /// Notes what is in the file, unread, when the queue is declared.
    pub(crate) fn recover_backlog(&self, next: Seq, count: u64, was_at_rest: bool) {
        let mut intake = self.intake.lock();
        intake.entered += count;
        intake.slots += count;
        intake.recovered += count;
        if let Some(last) = next.checked_sub(1).filter(|_| count > 0) {
            intake.spill.add(0, last, count);
        }
        intake.spill.known = next;
        intake.spill.old_before = if was_at_rest { 0 } else { next };
        drop(intake);
        self.load_more();
    }

    /// Messages that a transaction of the user's has put into the file: they count as spilled. Called on the writer's
    /// thread.
    pub(crate) fn arrived_in_file(&self, first: Seq, end: Seq) {
        let mut intake = self.intake.lock();
        let first = first.max(intake.spill.known);
        let n = end.saturating_sub(first);
        if n == 0 {
            return;
        }
        intake.entered += n;
        intake.slots += n;
        intake.accepted += n;
        intake.spill.add(first, end - 1, n);
        drop(intake);
        self.wake_everyone();
    }

    /// A full queue has shown it, but does not take it among its own.
    pub(crate) fn pass_over(&self, message: &mut Message<T>) {
        self.intake.lock().pass_over(message);
    }

    /// Whether [`Core::drop_spilled`] has something to drop.
    pub(crate) fn has_spilled(&self) -> bool {
        !self.intake.lock().spill.waste.is_empty()
    }

    /// Drops what was spilled a moment ago.
    pub(crate) fn drop_spilled(&self) {
        let waste = std::mem::take(&mut self.intake.lock().spill.waste);
        waste.into_iter().for_each(drop_contained);
    }
}
