//! A backlog stays in the file: memory holds the first few thousand ready messages of a queue, the rest is read when
//! those have been taken.
//!
//! While a part of the queue is only in the file, what newly arrives counts as spilled too, so that all of it lies
//! behind one place of the stream, in order. That is decided under the intake's lock, by whoever shows a commit, in
//! the order of the file. Whoever finds nothing in memory reads the next portion; others find it once it is there.
//!
//! Only messages that rest until no time of theirs are read that way. What has been handed out and has come back has a
//! time in the file, be it past, and stays in memory; for what has a delay, or came back in an earlier run, see
//! [`rest`](super::rest). With priorities, what had a time that was past when the file was opened is read by its place like
//! the others, since nobody could tell its level otherwise: whatever comes back from then on has a later time.

use super::by_key::ByKey;
use super::not_read::{NotRead, Part};
use super::rest::{Rest, at_of};
use super::{Core, Intake};
use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::message::Message;
use crate::outcome::drop_contained;
use crate::queue::durable::put_apart;
use crate::request::{End, Request};
use crate::store::{Called, Limit, Overdue, Priority, Row, Seq, StoreError};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// No further message is read at once when those read have so many bytes.
pub(super) const PORTION_BYTES: usize = 4 << 20;
/// Until a read that has failed is tried again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What of a queue is ready and only in the file: guarded by the intake.
pub(super) struct Spill<T> {
    /// By priority level; where there are none, one.
    levels: SmallVec<[Backlog; 1]>,
    /// Of all levels.
    count: u64,
    /// Where the next one that another connection puts there can be at the earliest.
    known: Seq,
    /// Somebody is reading.
    reading: bool,
    /// Counts readings, and those whose outcome nobody wants any more.
    turn: u64,
    /// Reading has failed, and rests.
    resting: bool,
    /// Those before may have been in hand in an earlier run.
    pub(super) old_before: Seq,
    /// Where there are levels, these are among those of their level: they were due when the file was opened.
    overdue: Overdue,
    /// Who waits for replies to some of them.
    pub(super) requests: BTreeMap<Seq, Request>,
    /// Spilled, and to be dropped when no lock is held.
    pub(super) waste: Vec<Message<T>>,
    /// What has a delay.
    pub(super) rest: Rest,
    /// Where the order is by key.
    pub(super) by_key: ByKey<T>,
    pub(super) not_read: NotRead,
}

/// What of one priority level is ready and only in the file.
#[derive(Default)]
struct Backlog {
    /// Where to read on.
    from: Seq,
    /// The last of them.
    last: Seq,
    count: u64,
    /// Places among them, and behind, of what did not get in: a full queue threw it away or gave up on it, but its
    /// deletion may be a while. In order; neighbours are one, so there are no more than messages between them.
    passed: VecDeque<Range<Seq>>,
}

impl<T> Spill<T> {
    fn new(levels: u8) -> Self {
        Self {
            levels: (0..levels.max(1)).map(|_| Backlog::default()).collect(),
            count: 0,
            known: 0,
            reading: false,
            turn: 0,
            resting: false,
            old_before: 0,
            overdue: Overdue::default(),
            requests: BTreeMap::new(),
            waste: Vec::new(),
            rest: Rest::default(),
            by_key: ByKey::default(),
            not_read: NotRead::default(),
        }
    }
}

impl<T> Spill<T> {
    fn wants_reading(&self) -> bool {
        self.count > 0 && !self.reading && !self.resting
    }

    fn add(&mut self, level: usize, first: Seq, last: Seq, count: u64) {
        self.levels[level].add(first, last, count);
        self.known = last + 1;
        self.count += count;
    }

    /// Priorities beyond the top count as the top.
    fn level_of(&self, message: &Message<T>) -> usize {
        usize::from(message.priority()).min(self.levels.len() - 1)
    }

    pub(super) fn is_reading_or_rests(&self) -> bool {
        self.reading || self.resting
    }

    /// Which reading it is.
    pub(super) fn begin_reading(&mut self) -> u64 {
        self.reading = true;
        self.turn += 1;
        self.turn
    }

    /// Has the outcome of a reading dropped, if there is one; `false` if reading has failed.
    pub(super) fn interrupt_reading(&mut self) -> bool {
        self.turn += u64::from(self.reading);
        self.reading = false;
        !self.resting
    }

    /// `false` if it was taken over.
    pub(super) fn reading_failed(&mut self, turn: u64) -> bool {
        let its_turn = self.end_reading(turn);
        self.resting |= its_turn;
        its_turn
    }

    /// Ends a reading, if it was not [taken over](Core::load_rest).
    pub(super) fn end_reading(&mut self, turn: u64) -> bool {
        let its_turn = self.turn == turn;
        self.reading &= !its_turn;
        its_turn
    }
}

impl Backlog {
    fn add(&mut self, first: Seq, last: Seq, count: u64) {
        if self.count == 0 {
            self.read_up_to(first);
        }
        self.last = last;
        self.count += count;
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
    pub(super) fn new_spill(levels: u8) -> Spill<T> {
        Spill::new(levels)
    }

    /// Whether a reader that finds nothing in memory should fetch more.
    pub(super) fn wants_reading(&self) -> bool {
        self.spill.wants_reading() || self.spill.rest.wants_reading()
    }

    /// Whether there is more in the file.
    pub(super) fn has_unread(&self) -> bool {
        self.spill.count > 0 || self.spill.rest.unread() > 0
    }

    /// How many with a delay are only in the file.
    pub(super) fn unread_delayed(&self) -> u64 {
        self.spill.rest.waiting()
    }

    /// How many are due.
    pub(super) fn unread_due(&self) -> u64 {
        self.spill.rest.overdue()
    }

    /// When the first of those may be due.
    pub(super) fn soonest_unread(&self) -> Option<Timestamp> {
        self.spill.rest.soonest()
    }

    /// Up to when all with a delay are in memory.
    pub(super) fn delayed_read_to(&self) -> Timestamp {
        self.spill.rest.read_up_to()
    }

    /// The message's time has come.
    pub(super) fn note_fired(&mut self, message: &mut Message<T>) {
        if message.take_fresh().is_some() {
            self.spill.rest.fired();
        }
    }

    /// A message with a delay will be put in its place in a moment.
    pub(super) fn note_coming(&mut self, message: &Message<T>) {
        at_of(message).into_iter().for_each(|at| self.spill.rest.pass_over(at));
    }

    /// Nothing waits in memory any more.
    pub(super) fn note_cleared(&mut self) {
        self.spill.rest.cleared();
    }

    /// Whether a message goes into memory: unless it is fresh in the file and `window` are before it in memory. Then it
    /// is counted as spilled, and [kept](Self::keep_waste) until it is dropped.
    pub(super) fn keep_in_memory(&mut self, message: &mut Message<T>, window: usize) -> bool {
        let Some(place) = message.take_fresh() else { return true };
        let level = self.spill.level_of(message);
        // What has fallen due before and has had to stay in the file comes first.
        let overtakes = self.spill.levels.len() == 1 && self.spill.rest.overdue() > 0;
        if self.spill.levels[level].count == 0 && self.in_memory(level) < window && !overtakes {
            return true;
        }
        self.spill.add(level, place, place, 1);
        self.hold_room(message);
        if let Some(request) = message.take_request() {
            self.spill.requests.insert(place, request);
        }
        false
    }

    /// What is only in the file takes room, also what came back and took none.
    pub(super) fn hold_room(&mut self, message: &Message<T>) {
        self.slots += u64::from(!message.holds_slot);
    }

    /// Spilled; [`Core::drop_spilled`] drops it.
    #[cold]
    pub(super) fn keep_waste(&mut self, message: Message<T>) {
        self.spill.waste.push(message);
    }

    pub(super) fn has_spilled(&self) -> bool {
        !self.spill.waste.is_empty()
    }

    /// How many of a level are ready and in memory, but for a few about to be handed out, or handed out before.
    fn in_memory(&self, level: usize) -> usize {
        self.aside.levels.as_ref().map_or_else(|| self.tail.about(), |levels| levels.fresh(level))
    }

    /// The level that the next message is of, if it has to be read from the file first.
    pub(super) fn level_to_read(&self) -> Option<usize> {
        if self.spill.count == 0 || self.spill.resting {
            return None;
        }
        self.aside.levels.as_ref()?.to_fill(|level| self.spill.levels[level].count > 0)
    }

    /// The highest level of which all are in the file.
    fn empty_level(&self) -> Option<usize> {
        let is_empty = |level: &usize| self.spill.levels[*level].count > 0 && self.in_memory(*level) == 0;
        (0..self.spill.levels.len()).rev().find(is_empty)
    }

    /// Whether the lowest level with a message, up to this one's, has none in memory.
    pub(super) fn lowest_is_unread(&self, message: &Message<T>) -> bool {
        let Some(levels) = self.aside.levels.as_ref().filter(|_| self.spill.count > 0) else { return false };
        let upto = ..=self.spill.level_of(message);
        let lowest =
            (0..).zip(&self.spill.levels[upto]).find(|(level, spilled)| spilled.count > 0 || levels.fresh(*level) > 0);
        lowest.is_some_and(|(level, _)| levels.fresh(level) == 0)
    }

    /// The message does not get in, though the file has it until it is deleted there.
    pub(super) fn pass_over(&mut self, message: &mut Message<T>, ordered: bool) {
        let at = at_of(message);
        match (message.take_fresh(), at) {
            // Also of what memory would have kept: its row may not say so.
            (_, Some(at)) => self.spill.rest.pass_over(at),
            (Some(place), None) if ordered => self.spill.by_key.pass_over(place),
            (Some(place), None) => {
                let level = self.spill.level_of(message);
                self.spill.levels[level].pass_over(place);
            }
            (None, None) => {}
        }
    }

    pub(super) fn unread_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.spill.requests).into_values().collect()
    }
}

/// What is to be read, as of some moment.
struct Unread {
    level: usize,
    /// The priorities that are of this level.
    priorities: Range<u16>,
    from: Seq,
    last: Seq,
    old_before: Seq,
    overdue: Overdue,
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
    /// Whether a backlog may stay in the file as this says; where the order is by key, it may [otherwise](super::by_key).
    pub(crate) fn may_spill(&self) -> bool {
        self.is_durable() && !self.is_ordered()
    }

    /// The same where the order is simply that of arrival.
    pub(crate) fn spills_in_order(&self) -> bool {
        self.may_spill() && self.settings.priority_levels == 1
    }

    /// See [`Intake::keep_in_memory`].
    pub(super) fn put_in_window(&self, intake: &mut Intake<T>, message: &mut Message<T>) -> bool {
        match self.filed.get().filter(|_| self.may_spill()) {
            Some(filed) => intake.keep_in_memory(message, filed.window),
            None => true,
        }
    }

    /// Has readers woken for what a commit has brought.
    pub(super) fn call_later(&self) {
        if let Some(filed) = self.filed.get() {
            let me: Weak<dyn Called> = self.weak();
            filed.depot.store.call_later(me);
        }
    }

    /// Fetches the next portion from the file, if there is one and nobody else does; whether it is of use to look
    /// again. No lock may be held: the user's codec runs here.
    #[inline]
    pub(crate) fn load_more(&self) -> bool {
        let Some(filed) = self.filed.get().filter(|_| self.settings.durable.is_some()) else { return false };
        let due = self.load_due();
        let more = if self.is_ordered() { self.load_turns(false) } else { self.load(filed.window) };
        more || due
    }

    #[cold]
    fn load(&self, window: usize) -> bool {
        let level = if self.settings.priority_levels > 1 { None } else { Some(0) };
        self.load_level(level, window)
    }

    /// `None`: the level that the next message is of, or another of which none is in memory.
    fn load_level(&self, level: Option<usize>, window: usize) -> bool {
        let (unread, counted, turn) = {
            let mut intake = self.intake.lock();
            let Some(level) = level.or_else(|| intake.level_to_read()).or_else(|| intake.empty_level()) else {
                return false;
            };
            let enough = intake.in_memory(level) >= window.div_ceil(2) || intake.spill.levels[level].count == 0;
            if enough || !intake.spill.wants_reading() {
                return false;
            }
            let spill = &mut intake.spill;
            let turn = spill.begin_reading();
            let top = level + 1 == spill.levels.len();
            let priorities = level as u16..if top { u16::MAX } else { level as u16 + 1 };
            let (old_before, overdue) = (spill.old_before, spill.overdue);
            let Backlog { from, last, ref passed, count } = spill.levels[level];
            let passed = passed.iter().cloned().collect();
            (Unread { level, priorities, from, last, old_before, overdue, passed }, count, turn)
        };
        match self.read_portion(&unread) {
            Ok(loaded) => self.take_in(loaded, &unread, counted, turn),
            Err(error) => {
                self.ready_unread(turn, Part::Ready(unread.level), unread.from, &error);
                return false;
            }
        }
        true
    }

    /// Reading has failed from that place on, and rests. No lock may be held.
    pub(super) fn ready_unread(&self, turn: u64, part: Part, from: Seq, error: &StoreError) {
        let began = {
            let spill = &mut self.intake.lock().spill;
            if !spill.reading_failed(turn) {
                return;
            }
            !self.is_end_of_file(error) && spill.not_read.note(part, from, error)
        };
        self.arm(self.runtime.clock.now().after(AGAIN));
        self.tell_not_read(began, error);
    }

    /// As [`Core::load_more`], for whoever clears the queue: takes over from another who is reading, whose outcome is
    /// dropped, so that nothing is left behind. `false` if nothing is unread, or reading has failed.
    pub(crate) fn load_rest(&self) -> bool {
        let delayed = self.load_rest_of_delayed();
        self.load_rest_of_ready() || delayed
    }

    fn load_rest_of_ready(&self) -> bool {
        if self.is_ordered() {
            return self.load_rest_of_turns();
        }
        {
            let spill = &mut self.intake.lock().spill;
            if spill.count == 0 || !spill.interrupt_reading() {
                return false;
            }
        }
        self.filed.get().into_iter().for_each(|filed| _ = self.load(filed.window));
        true
    }

    /// After a read that has failed; called by the scheduler.
    pub(super) fn load_again(&self) {
        let rested = {
            let spill = &mut self.intake.lock().spill;
            std::mem::take(&mut spill.resting) | spill.rest.try_again()
        };
        if rested {
            self.load_more();
        }
    }

    fn read_portion(&self, unread: &Unread) -> Result<Loaded<T>, StoreError> {
        let filed = self.filed();
        let portion = Limit::items(filed.window.div_ceil(2)).bytes(PORTION_BYTES);
        let reader = filed.depot.store.reader()?.with_damaged();
        let rows = if self.settings.priority_levels == 1 {
            reader.read_ready(filed.stream, unread.from, portion)?
        } else {
            let which = (&unread.priorities, unread.overdue);
            reader.read_level(filed.stream, unread.from..=unread.last, which, portion)?
        };
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
    pub(super) fn end_refused(&self, refused: Vec<(Row, String)>) {
        for (row, error) in refused {
            let request = self.intake.lock().spill.requests.remove(&row.seq);
            if let Some(request) = request {
                request.end(End::Failed(Arc::clone(&self.name), Reason::Undecodable, Some(error)));
            }
        }
    }

    pub(super) fn restored(&self, row: &Row, old: bool) -> Result<Message<T>, String> {
        if let Some(words) = &row.damaged {
            return Err(words.to_string());
        }
        let mut message = self.filed().message(&row.item)?;
        message.redelivered |= old || row.item.attempts > 0;
        message.holds_slot = true;
        message.set_place(row.seq);
        Ok(message)
    }

    /// `counted` messages of the level up to its last were only in the file when the reading began.
    fn take_in(&self, loaded: Loaded<T>, unread: &Unread, counted: u64, turn: u64) {
        let (mut outlet, mut intake) = self.both_sides();
        let spill = &mut intake.spill;
        if !spill.end_reading(turn) {
            drop((outlet, intake));
            return loaded.messages.into_iter().for_each(drop_contained);
        }
        let Unread { level, from, last, .. } = *unread;
        let is_over = spill.not_read.is_over(Part::Ready(level), from..Seq::MAX);
        // Some may have been deleted by others.
        let missing = if loaded.last.is_none_or(|seq| seq >= last) { counted - loaded.rows.min(counted) } else { 0 };
        let found = loaded.rows.min(counted) + missing;
        spill.count -= found;
        spill.levels[level].count -= found;
        spill.levels[level].read_up_to(loaded.last.unwrap_or(last) + 1);
        let gone = missing + loaded.undecodable;
        for mut message in loaded.messages {
            if let Some(request) = message.place().and_then(|place| intake.spill.requests.remove(&place)) {
                message.extras_mut().request = request;
            }
            self.note_expiry(&message);
            match &mut intake.aside.levels {
                Some(levels) => levels.push(message.priority(), message),
                None => intake.tail.push(message),
            }
        }
        self.note_aside(&intake);
        outlet.left += gone;
        drop(intake);
        self.release(outlet, gone);
        self.wake_everyone();
        self.runtime.note_progress();
        self.tell_read_again(is_over);
    }

    /// Notes what is in the file, unread, when the queue is declared.
    pub(crate) fn recover_backlog(&self, next: Seq, count: u64, was_at_rest: bool) {
        let last = next.checked_sub(1).filter(|_| count > 0);
        let found = last.map(|last| Priority { priority: 0, count, first: 0, last });
        self.recover_backlogs(next, found.as_slice(), Overdue::default(), was_at_rest);
    }

    /// The same by priority, where there are levels, with what was overdue.
    pub(crate) fn recover_backlogs(&self, next: Seq, found: &[Priority], overdue: Overdue, was_at_rest: bool) {
        let mut intake = self.intake.lock();
        let count: u64 = found.iter().map(|found| found.count).sum();
        intake.entered += count;
        intake.slots += count;
        intake.recovered += count;
        let top = intake.spill.levels.len() - 1;
        for &Priority { priority, count, first, last } in found {
            let backlog = &mut intake.spill.levels[usize::from(priority).min(top)];
            let (first, last) =
                if backlog.count > 0 { (first.min(backlog.from), last.max(backlog.last)) } else { (first, last) };
            backlog.add(first, last, count);
            backlog.from = first;
        }
        intake.spill.count = count;
        (intake.spill.known, intake.spill.overdue) = (next, overdue);
        intake.spill.old_before = if was_at_rest { 0 } else { next };
        drop(intake);
        let window = self.filed().window;
        (0..=top).rev().for_each(|level| _ = self.load_level(Some(level), window));
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
        intake.spill.add(0, first, end - 1, n);
        drop(intake);
        self.wake_everyone();
    }

    /// A full queue has shown it, but does not take it among its own.
    pub(crate) fn pass_over(&self, message: &mut Message<T>) {
        self.intake.lock().pass_over(message, self.is_ordered());
    }

    /// Drops what was spilled a moment ago.
    pub(crate) fn drop_spilled(&self) {
        let waste = std::mem::take(&mut self.intake.lock().spill.waste);
        waste.into_iter().for_each(drop_contained);
    }
}
