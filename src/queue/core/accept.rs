//! Taking messages in: at once, as the overflow policy says, in batches, or after a promise.

use super::place::Superseded;
use super::{Accepted, Admission, Core, Gate, Intake, Need, Outlet, Patience, Pledge, Refusal};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Reason};
use crate::deadlock::{Awaited, QueueRef};
use crate::message::{Message, Stamp};
use crate::queue::builder::Overflow;
use crate::queue::fifo::{Chunk, chunk_len};
use crate::queue::throttle::Throttle;
use crate::request::Fate;
use crate::runtime::Event;
use crate::simulation::Until;
use crate::snooze::Snooze;
use crate::sync::{MutexGuard, Ordering, current_thread};
use std::sync::Weak;

/// When those who sleep on a queue hear of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waking {
    Now,
    /// At the end of the commit that has brought it, by the writer. Only for what is shown there.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code))]
    AfterCommit,
}

/// A place in the queue that has been counted, for one message. Whoever owns the message puts it in there
/// himself: it may be large, and each function that it passes through by value may copy it.
#[must_use]
pub(crate) struct Place<'a, T>(pub(super) MutexGuard<'a, Intake<T>>);

impl<T> Place<'_, T> {
    /// Puts a message there that is nothing but its payload. It is put together where it goes to, or else what has just
    /// been written in pieces would be read back as a whole, and such a read has to wait.
    #[inline]
    pub(crate) fn put_bare(&mut self, stamp: Stamp, payload: T) {
        match self.0.tail.lone_place() {
            Some(place) => std::mem::forget(place.replace(Message::stamped(stamp, payload))),
            None => self.0.tail.chunk().push_back(Message::stamped(stamp, payload)),
        }
    }

    /// Where the message goes: to the back.
    #[inline]
    pub(crate) fn chunk(&mut self) -> &mut Chunk<Message<T>> {
        self.0.tail.chunk()
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Takes the message if there is room, and nothing else: no policy, no waiting, no user code. Its id
    /// and time must be set, and neither a delay nor a timer.
    #[inline]
    pub(crate) fn offer(&self, mut message: Message<T>) -> Result<(), (Message<T>, Refusal)> {
        debug_assert!(!message.is_timed());
        if self.is_ordered() {
            return self.offer_by_key(message);
        }
        let mut intake = self.intake.lock();
        if let Err(refusal) = self.let_in(&mut intake) {
            return Err((message, refusal));
        }
        intake.admit(&mut message, Admission::Published);
        self.put(&mut intake, message);
        self.wake_readers(intake, 1);
        Ok(())
    }

    /// A place for the message, in the common case: it is nothing but a payload, the queue a plain one with
    /// room. Otherwise `None`, and [`Core::offer`] or [`Core::accept`] finds out more. Then comes
    /// [`Core::placed`]; until then no user code may run.
    #[inline]
    pub(crate) fn place_for(&self, message: &Message<T>) -> Option<Place<'_, T>> {
        // It holds a slot since it was stamped, before the lock, not between that and the copy into the queue: reading
        // what has been written a moment ago in smaller pieces would stall.
        debug_assert!(message.holds_slot);
        if message.extras.is_some() { None } else { self.place_for_bare() }
    }

    /// The same for a message that is nothing but a payload.
    #[inline]
    pub(crate) fn place_for_bare(&self) -> Option<Place<'_, T>> {
        if self.is_special {
            return None;
        }
        let mut intake = self.intake.lock();
        self.let_in(&mut intake).ok()?;
        intake.slots += 1;
        intake.accepted += 1;
        intake.entered += 1;
        Some(Place(intake))
    }

    /// The message is in its place.
    #[inline]
    pub(crate) fn placed(&self, Place(intake): Place<'_, T>) {
        self.wake_readers(intake, 1);
    }

    /// As [`Core::offer`], for a message with a delay or a timer.
    fn offer_timed(&self, mut message: Message<T>) -> Result<(), (Message<T>, Refusal)> {
        let delayed = self.delayed.lock();
        let mut intake = self.intake.lock();
        if let Err(refusal) = self.let_in(&mut intake) {
            return Err((message, refusal));
        }
        intake.admit(&mut message, Admission::Published);
        self.place(delayed, intake, message);
        Ok(())
    }

    /// Whether one more message may come in now.
    #[inline]
    pub(super) fn let_in(&self, intake: &mut Intake<T>) -> Result<(), Refusal> {
        if intake.gate != Gate::Open && !self.lets_in(intake) {
            return Err(Refusal::Closed);
        }
        if !self.has_room(intake) {
            return Err(Refusal::Full);
        }
        if intake.admission.is_some() { self.admit(intake) } else { Ok(()) }
    }

    /// Takes the message as the overflow policy says; waits as long as `patience` if that is `Wait`.
    pub(crate) fn accept(&self, message: Message<T>, patience: Patience) -> Result<Accepted, (Message<T>, Refusal)> {
        if self.is_durable() {
            return self.accept_durably(message, patience);
        }
        let mut message = message;
        if message.is_timed() {
            match self.order_key(&message) {
                Ok(key) => message.extras_mut().order_key = key,
                Err(refusal) => return Err((message, refusal)),
            }
        }
        let mut round = 0;
        loop {
            let offered = if message.is_timed() { self.offer_timed(message) } else { self.offer(message) };
            message = match offered {
                Ok(()) => {
                    self.writing.over(round);
                    return Ok(Accepted::Queued);
                }
                Err((message, Refusal::Full)) => message,
                Err(refused) => return Err(refused),
            };
            if !self.waits(patience) {
                if let Err(limited) = self.admit_overflow() {
                    return Err((message, limited));
                }
                return self.overflow(message);
            }
            if let Err(refusal) = self.snooze_or(&self.writing, &mut round, || self.wait_for_room(patience)) {
                return Err((message, refusal));
            }
        }
    }

    /// An empty chunk for a batch, one used before if there is one.
    pub(crate) fn spare(&self) -> Chunk<Message<T>> {
        self.intake.lock().tail.spare()
    }

    /// Appends as many as there is room for, from the front; what is left stays in `batch`.
    ///
    /// Not for messages with times or queues with limits or levels, which take them one by one.
    pub(crate) fn offer_batch(&self, batch: &mut Chunk<Message<T>>) -> Result<usize, Refusal> {
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err(Refusal::Closed);
        }
        let room = self.room(&mut intake, batch.len() as u64) as usize;
        if room == 0 {
            return if batch.is_empty() { Ok(0) } else { Err(Refusal::Full) };
        }
        let now = batch.len().min(room);
        batch.iter_mut().take(now).for_each(|message| message.holds_slot = true);
        if now == batch.len() && now >= chunk_len::<Message<T>>() / 4 {
            intake.tail.push_chunk(std::mem::take(batch));
        } else {
            batch.drain(..now).for_each(|message| intake.tail.push(message));
        }
        intake.slots += now as u64;
        intake.accepted += now as u64;
        intake.entered += now as u64;
        self.wake_readers(intake, now);
        Ok(now)
    }

    /// Appends all of them, waiting for room where that is the policy. One at a time would come in between, and
    /// take the rest of the batch out of step with the chunks in which the queue hands on.
    pub(crate) fn offer_all(&self, batch: &mut Chunk<Message<T>>) -> Result<(), Refusal> {
        let mut round = 0;
        while !batch.is_empty() {
            match self.offer_batch(batch) {
                Ok(_) => {
                    self.writing.over(round);
                    round = 0;
                }
                Err(Refusal::Full) if self.waits(Patience::Forever) => {
                    self.snooze_or(&self.writing, &mut round, || self.wait_for_room(Patience::Forever))?;
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// Promises to take one message, or says why not; [`Core::redeem`] or [`Core::forgo`] follows. This is
    /// the first half of a publish to several queues.
    pub(crate) fn pledge(&self) -> Result<Pledge, Refusal> {
        let takes_overflow = self.takes_overflow();
        let mut intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Err(Refusal::Closed);
        }
        let slot = self.has_room(&mut intake);
        if !slot && !takes_overflow {
            return Err(Refusal::Full);
        }
        let admitted = intake.admission.is_some();
        if admitted {
            self.admit(&mut intake)?;
        }
        intake.slots += u64::from(slot);
        intake.pledged += 1;
        Ok(Pledge { slot, admitted })
    }

    /// Whether a publish to a full queue succeeds all the same. May look at another queue, so none may be
    /// locked.
    pub(super) fn takes_overflow(&self) -> bool {
        match self.settings.overflow {
            Overflow::DeadLetter => self.sink().has_room(),
            policy => !policy.refuses(),
        }
    }

    /// Whether a dead letter would be taken now.
    pub(crate) fn takes_letters(&self) -> bool {
        !self.settings.overflow.refuses() || self.has_room(&mut self.intake.lock())
    }

    /// Brings the promised message.
    pub(crate) fn redeem(&self, pledge: Pledge, message: Message<T>) -> Accepted {
        if !pledge.slot {
            let accepted = match self.overflow(message) {
                Ok(accepted) => accepted,
                // Only a full dead-letter queue can still refuse; the promise holds nevertheless.
                Err((message, _)) => {
                    self.enter(message, Admission::Published);
                    Accepted::Queued
                }
            };
            self.intake.lock().pledged -= 1;
            self.runtime.note_progress();
            return accepted;
        }
        self.redeem_slot(message, Waking::Now);
        Accepted::Queued
    }

    /// Brings the message that was promised a slot; what it replaces is removed when the answer is dropped. And whether
    /// there is something to [drop](Core::drop_spilled).
    pub(crate) fn redeem_slot(&self, mut message: Message<T>, waking: Waking) -> (Option<Superseded>, bool) {
        if message.is_timed() {
            let delayed = self.delayed.lock();
            let mut intake = self.intake.lock();
            intake.redeem(&mut message);
            let superseded = self.place(delayed, intake, message);
            let has_spilled = self.intake.lock().has_spilled();
            return (superseded, has_spilled);
        }
        let mut intake = self.intake.lock();
        intake.redeem(&mut message);
        self.put(&mut intake, message);
        let has_spilled = intake.has_spilled();
        match waking {
            Waking::AfterCommit => self.call_or_wake(intake),
            Waking::Now => self.wake_for_one(intake),
        }
        (None, has_spilled)
    }

    /// Wakes a reader for a message that a commit has brought: at the end of that, if it brings more.
    fn call_or_wake(&self, mut intake: MutexGuard<'_, Intake<T>>) {
        if intake.sleeping == 0 || self.is_ordered() || !self.is_durable() {
            return self.wake_for_one(intake);
        }
        intake.uncalled += 1;
        let is_first = intake.uncalled == 1;
        drop(intake);
        if is_first {
            self.call_later();
        }
    }

    /// Wakes readers for those messages.
    #[cfg(feature = "sqlite")]
    pub(crate) fn wake_uncalled(&self) {
        let mut intake = self.intake.lock();
        let arrived = std::mem::take(&mut intake.uncalled);
        self.wake_readers(intake, arrived);
    }

    /// Counts a promise as kept whose message is in.
    pub(crate) fn pledge_kept(&self) {
        self.intake.lock().pledged -= 1;
        self.runtime.note_progress();
    }

    pub(crate) fn count_refused(&self) {
        self.counts.refused.add(1);
    }

    /// Takes a promise back.
    pub(crate) fn forgo(&self, pledge: Pledge) {
        let outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        intake.pledged -= 1;
        if pledge.admitted {
            intake.admission.iter_mut().for_each(Throttle::take_back);
        }
        drop(intake);
        self.release(outlet, u64::from(pledge.slot));
        // Whoever waits for rest has waited for this promise too.
        self.runtime.note_progress();
    }

    /// Whether a publish with this patience waits for room here.
    pub(crate) fn waits(&self, patience: Patience) -> bool {
        self.settings.overflow == Overflow::Wait && !matches!(patience, Patience::None)
    }

    /// Waits a moment, or, where that does not help, for as long as it takes.
    pub(super) fn snooze_or<E>(
        &self,
        kind: &Snooze,
        round: &mut u32,
        sleep: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let clock = &self.runtime.clock;
        if self.runtime.is_simulated() {
            return sleep();
        }
        if kind.again(round, clock) {
            return Ok(());
        }
        let start = clock.now();
        let result = sleep();
        kind.slept(start, clock);
        result
    }

    /// Blocks until there is room, holding nothing. A worker says which one it is, so that it can be told
    /// when it would wait for ever.
    pub(crate) fn wait_for_room(&self, patience: Patience) -> Result<(), Refusal> {
        self.wait_for(Need::One, self.weak(), patience)
    }

    /// As [`Core::wait_for_room`]; `queue` says whether such a wait goes on.
    pub(super) fn wait_for(&self, need: Need, queue: Weak<dyn Awaited>, patience: Patience) -> Result<(), Refusal> {
        let Some(works_for) = self.runtime.works_for() else {
            return self.wait_unwatched(need, patience, || Ok(()), None);
        };
        let ticket = self.runtime.waits.begin(works_for.clone(), self.identity(), queue);
        let check = || {
            let circle = self.runtime.waits.circle(&ticket, |queue| self.runtime.drainers(queue));
            circle.map_or(Ok(()), |circle| {
                Err(Refusal::Deadlock(format!("only its own circle drains it: {circle}").into()))
            })
        };
        let result = self.wait_unwatched(need, patience, check, Some(&works_for));
        self.runtime.waits.end(&ticket);
        result
    }

    /// `check` is called before each sleep, with no lock held.
    fn wait_unwatched(
        &self,
        need: Need,
        patience: Patience,
        check: impl Fn() -> Result<(), Refusal>,
        worker_of: Option<&QueueRef>,
    ) -> Result<(), Refusal> {
        if self.runtime.is_simulated() {
            check()?;
            return self.simulate_until_room(need, patience);
        }
        let deadline = patience.deadline();
        let mut warn_at = worker_of.map(|_| self.runtime.clock.now().after(self.runtime.blocked_warning));
        loop {
            let now = self.runtime.clock.now();
            if let (Some(queue), true) = (worker_of, warn_at.is_some_and(|at| at <= now)) {
                warn_at = None;
                self.tell_blocked(queue);
            }
            if let Some(result) = self.room_or_closed(&self.outlet.lock(), need) {
                return result;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(Refusal::Timeout);
            }
            let seen = self.runtime.waits.changes();
            check()?;
            self.sleep_until_room(need, deadline.into_iter().chain(warn_at).min(), seen);
        }
    }

    /// Sleeps until there may be room, or `until`; not if workers have left since `seen`.
    fn sleep_until_room(&self, need: Need, until: Option<Timestamp>, seen: u64) {
        let wake_up = match need {
            Need::One => &self.writable,
            Need::Together(_) => &self.writable_together,
        };
        let mut outlet = self.outlet.lock();
        // Before it looks for the last time, since what is handed out past the outlet wakes nobody.
        self.intake.lock().writers += 1;
        let over = until.is_some_and(|at| self.runtime.clock.now() >= at);
        if over || self.runtime.waits.changes() != seen || self.room_or_closed(&outlet, need).is_some() {
            self.intake.lock().writers -= 1;
            return;
        }
        outlet.writers += 1;
        // Not before the lock: the call for somebody else's earlier deadline could come in between, and this
        // one's would never be asked for again.
        match self.arrange_wake(until) {
            Some(instant) => drop(wake_up.wait_until(&mut outlet, instant)),
            None => wake_up.wait(&mut outlet),
        }
        outlet.writers -= 1;
        self.intake.lock().writers -= 1;
    }

    /// Wakes another writer, if there is room: for one that was woken and cannot use it.
    pub(crate) fn pass_room_on(&self) {
        let outlet = self.outlet.lock();
        let has_room = outlet.writers > 0 && self.room_or_closed(&outlet, Need::One).is_some();
        drop(outlet);
        if has_room {
            self.writable.notify_one();
        }
    }

    fn tell_blocked(&self, works_for: &QueueRef) {
        self.runtime.tell(|| Event::WorkerBlocked {
            worker: current_thread().name().unwrap_or("unnamed").to_owned(),
            works_for: works_for.name.to_string(),
            waits_for: self.name.to_string(),
        });
    }

    fn simulate_until_room(&self, need: Need, patience: Patience) -> Result<(), Refusal> {
        let mut result = Ok(());
        let end = self.runtime.simulate_until(patience.deadline(), || {
            let answer = self.room_or_closed(&self.outlet.lock(), need);
            let settled = answer.is_some();
            result = answer.unwrap_or(Ok(()));
            settled
        });
        match end {
            Until::Done => result,
            Until::TimedOut => Err(Refusal::Timeout),
            Until::Standstill => Err(Refusal::Deadlock("nothing else in the simulation can run".into())),
        }
    }

    /// Whether a writer that waits for room has to wait on.
    pub(super) fn is_full(&self) -> bool {
        self.lacks(Need::One)
    }

    pub(super) fn lacks(&self, need: Need) -> bool {
        self.room_or_closed(&self.outlet.lock(), need).is_none()
    }

    fn room_or_closed(&self, outlet: &Outlet<T>, need: Need) -> Option<Result<(), Refusal>> {
        let intake = self.intake.lock();
        if intake.gate != Gate::Open && !self.lets_in(&intake) {
            return Some(Err(Refusal::Closed));
        }
        (intake.slots - outlet.released + need.slots() <= self.settings.capacity).then_some(Ok(()))
    }

    pub(super) fn lets_in(&self, intake: &Intake<T>) -> bool {
        intake.gate == Gate::Draining && self.runtime.is_worker()
    }

    #[inline]
    fn has_room(&self, intake: &mut Intake<T>) -> bool {
        if intake.slots - intake.released_seen < self.settings.capacity {
            return true;
        }
        intake.released_seen = self.released.load(Ordering::Acquire);
        intake.slots - intake.released_seen < self.settings.capacity
    }

    pub(super) fn room(&self, intake: &mut Intake<T>, wanted: u64) -> u64 {
        if intake.slots - intake.released_seen + wanted > self.settings.capacity {
            intake.released_seen = self.released.load(Ordering::Acquire);
        }
        self.settings.capacity.saturating_sub(intake.slots - intake.released_seen)
    }

    /// Applies the policy of a queue found full.
    pub(super) fn overflow(&self, message: Message<T>) -> Result<Accepted, (Message<T>, Refusal)> {
        match self.settings.overflow {
            Overflow::Wait | Overflow::Reject => {
                self.counts.refused.add(1);
                Err((message, Refusal::Full))
            }
            Overflow::DropNewest => {
                self.intake.lock().accepted += 1;
                self.count_overflowed(1);
                self.throw_away(message, Fate::Dropped);
                Ok(Accepted::Dropped)
            }
            Overflow::DropOldest => Ok(self.replace_oldest(message)),
            Overflow::DeadLetter => self.dead_letter_overflow(message),
        }
    }

    /// Throws the oldest fresh message away for this one (the lowest level's, where there are levels), in
    /// one step, so that nobody takes the room between. Redeliveries hold no slot: throwing them away
    /// would make no room. One that is lower than all that wait is thrown away itself.
    fn replace_oldest(&self, message: Message<T>) -> Accepted {
        let (accepted, replaced) = self.replace_oldest_quietly(message);
        self.drop_replaced(replaced);
        accepted
    }

    /// The same but for [`Core::drop_replaced`] of what it answers, which may run the user's code.
    pub(crate) fn replace_oldest_quietly(&self, mut message: Message<T>) -> (Accepted, Replaced<T>) {
        let delayed = self.delayed.lock();
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let full = intake.slots - outlet.released >= self.settings.capacity;
        let oldest = if full { self.pop_oldest_fresh(&mut outlet, &mut intake, &message) } else { None };
        if full && oldest.is_none() {
            // All that fills the queue is above it, or out of reach: promised, delayed, or waiting for burial.
            intake.accepted += 1;
            intake.pass_over(&mut message, self.is_ordered());
            drop((intake, outlet, delayed));
            return (Accepted::Dropped, Replaced { oldest: Some(message), superseded: None });
        }
        intake.admit(&mut message, Admission::Published);
        drop(outlet);
        let superseded = self.place(delayed, intake, message);
        (Accepted::Queued, Replaced { oldest, superseded })
    }

    pub(crate) fn drop_replaced(&self, Replaced { oldest, superseded }: Replaced<T>) {
        drop(superseded);
        if let Some(oldest) = oldest {
            self.count_overflowed(1);
            self.throw_away(oldest, Fate::Dropped);
        }
    }

    pub(super) fn pop_oldest_fresh(
        &self,
        outlet: &mut Outlet<T>,
        intake: &mut Intake<T>,
        newcomer: &Message<T>,
    ) -> Option<Message<T>> {
        outlet.sort(intake);
        let in_order = outlet.keyed_mut().and_then(|keyed| keyed.evict(|message| message.holds_slot));
        if intake.lowest_is_unread(newcomer) {
            return None;
        }
        let lowest = in_order.or_else(|| intake.aside.evict_for(newcomer));
        self.note_aside(intake);
        let oldest = lowest.or_else(|| pop_holding_slot(outlet, intake))?;
        outlet.left += 1;
        outlet.released += u64::from(oldest.holds_slot);
        self.released.store(outlet.released, Ordering::Release);
        Some(oldest)
    }

    fn dead_letter_overflow(&self, message: Message<T>) -> Result<Accepted, (Message<T>, Refusal)> {
        let mut letter = DeadLetter::new(message, Reason::Overflow, self);
        let asked = letter.take_request();
        match self.sink().accept(letter) {
            Ok(()) => {
                self.intake.lock().accepted += 1;
                self.counts.dead_lettered.add(1);
                if let Some((request, end)) = asked {
                    request.end(end);
                }
                Ok(Accepted::DeadLettered)
            }
            Err(mut letter) => {
                if let Some((request, _)) = asked {
                    letter.return_request(request);
                }
                self.counts.refused.add(1);
                Err((letter.into_message(), Refusal::Full))
            }
        }
    }

    /// Takes a dead letter of another queue: also while closing, and back to the sender if it is full.
    pub(crate) fn accept_letter(&self, message: Message<T>) -> Result<(), Message<T>> {
        let pledge = self.promise_for_letter();
        if pledge.slot || !self.settings.overflow.refuses() {
            self.redeem(pledge, message);
            return Ok(());
        }
        self.forgo(pledge);
        Err(message)
    }

    /// A promise whatever the gate and the limits say.
    pub(crate) fn promise_for_letter(&self) -> Pledge {
        let mut intake = self.intake.lock();
        let slot = self.has_room(&mut intake);
        intake.slots += u64::from(slot);
        intake.pledged += 1;
        Pledge { slot, admitted: false }
    }

    pub(super) fn count_overflowed(&self, n: u64) {
        self.counts.overflowed.add(n);
        let total = self.counts.overflowed.get();
        if total.is_power_of_two() {
            self.runtime.tell(|| Event::Dropped { queue: self.name.to_string(), total });
        }
    }

    /// Puts a message at the tail, room or not.
    pub(crate) fn enter(&self, mut message: Message<T>, admission: Admission) {
        let delayed = self.delayed.lock();
        let mut intake = self.intake.lock();
        intake.admit(&mut message, admission);
        self.place(delayed, intake, message);
    }

    /// Wakes a reader for a message that has been put where it belongs.
    #[inline]
    pub(super) fn wake_for_one(&self, intake: MutexGuard<'_, Intake<T>>) {
        if !self.is_ordered() {
            self.wake_readers(intake, 1);
        } else if intake.sleeping > 0 {
            drop(intake);
            self.wake_in_turn(1);
        }
    }

    #[inline]
    pub(super) fn wake_readers(&self, intake: MutexGuard<'_, Intake<T>>, arrived: usize) {
        let sleeping = intake.sleeping;
        drop(intake);
        for _ in 0..sleeping.min(arrived) {
            self.readable.notify_one();
        }
    }
}

/// What a message that came into a full queue has taken the place of.
pub(crate) struct Replaced<T> {
    /// Perhaps the newcomer itself.
    oldest: Option<Message<T>>,
    superseded: Option<Superseded>,
}

fn pop_holding_slot<T>(outlet: &mut Outlet<T>, intake: &mut Intake<T>) -> Option<Message<T>> {
    let mut skipped = Vec::new();
    let oldest = loop {
        if outlet.head.is_empty() && !intake.tail.refill(&mut outlet.head) {
            break None;
        }
        match outlet.head.pop() {
            Some(message) if !message.holds_slot => skipped.push(message),
            oldest => break oldest,
        }
    };
    skipped.into_iter().rev().for_each(|message| intake.tail.push_front(&mut outlet.head, message));
    oldest
}
