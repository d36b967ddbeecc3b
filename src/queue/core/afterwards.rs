//! What becomes of a message after its delivery: back, later, or among the dead letters.

use super::{Admission, BURIAL_RETRY, Core, DUE_AT_ONCE, Intake, MAX_DEAD_LETTER_PAUSE, Outlet, Waiting};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::message::Message;
use crate::queue::durable::{Along, Moving};
use crate::queue::keyed::Turn;
use crate::request::Fate;
use crate::runtime::Event;
use crate::scheduler::DelayKey;
use crate::stats::Counter;
use crate::sync::Ordering;
use crate::timer::{HoldsDelayed, TimerRef};
use std::sync::Arc;
use std::time::Duration;

impl<T: Send + Sync + 'static> Core<T> {
    /// Counts a delivery as no longer in flight. Comes after whatever else becomes of the message, so
    /// that nobody ever sees it nowhere.
    #[inline]
    pub(crate) fn settled(&self, counter: &Counter) {
        self.settled_many(counter, 1);
    }

    pub(crate) fn settled_many(&self, counter: &Counter, n: usize) {
        counter.add(n as u64);
        if self.limits_in_flight() {
            let mut intake = self.intake.lock();
            intake.in_flight -= n;
            self.wake_readers(intake, n);
        }
        self.runtime.note_progress();
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Gives a delivery back: `urgently` ahead of all fresh messages, otherwise behind them; in a queue
    /// ordered by key always ahead of its key.
    pub(crate) fn take_back(&self, mut message: Message<T>, urgently: bool) {
        message.redelivered = true;
        // Its row will say more than it did.
        let _ = message.take_fresh();
        self.note_return(&message, None);
        if !urgently && !self.is_ordered() {
            return self.enter(message, Admission::Returned);
        }
        if self.is_ordered() {
            return self.take_back_in_order(message);
        }
        let mut intake = self.intake.lock();
        self.put_aside(&mut intake, message);
        self.wake_readers(intake, 1);
    }

    /// Puts messages that were taken for a look back to the front, in their order.
    pub(crate) fn restore(&self, messages: Vec<Message<T>>) {
        let mut messages = self.still_lent(messages);
        messages.iter_mut().for_each(|message| self.end_claim(message, false));
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        // They may have been handed out past it.
        outlet.catch_up(&mut intake);
        let n = messages.len();
        for mut message in messages.into_iter().rev() {
            message.attempt -= 1;
            if self.is_ordered() {
                self.return_to_lane(&mut outlet, &mut intake, message, Turn::First);
                continue;
            }
            match &mut intake.aside.levels {
                Some(levels) => levels.push_front(message.priority(), message),
                None => intake.tail.push_front(&mut outlet.head, message),
            }
        }
        self.note_aside(&intake);
        outlet.left -= n as u64;
        outlet.delivered -= n as u64;
        if self.limits_in_flight() {
            intake.in_flight -= n;
        }
        drop(outlet);
        self.wake_readers(intake, n);
        self.runtime.note_progress();
    }

    /// Takes a message back from the dead letters, after `delay`; `along` says where it was in the file.
    pub(crate) fn readmit(&self, mut message: Message<T>, delay: Duration, along: Along) -> Moving {
        message.attempt = 0;
        self.find_key(&mut message);
        let now = self.runtime.clock.now();
        if let Some(extras) = &mut message.extras {
            // Its own time was up when it was given up on, or is no longer what matters.
            extras.expires = None;
            // Whatever has replaced it since is not to be replaced by it.
            (extras.timer, extras.paced) = (None, false);
        }
        // One that a full queue gave up on may still have its delay before it.
        let due = message.extras.as_mut().and_then(|extras| extras.due.take()).unwrap_or(now);
        let due = due.max(now.after(delay));
        if self.settings.ttl.is_some() {
            message.extras_mut().counts_from = Some(due);
        }
        let due = (due > now).then_some(due);
        if self.is_durable() {
            return self.readmit_durably(message, due, along);
        }
        self.come_back(message, due);
        along.delete();
        Moving::done()
    }

    /// Puts a redriven message where it belongs.
    pub(crate) fn come_back(&self, mut message: Message<T>, due: Option<Timestamp>) {
        let Some(due) = due else { return self.enter(message, Admission::Redriven) };
        self.intake.lock().admit(&mut message, Admission::Redriven);
        self.wait(due, Waiting::Retry(Box::new(message)));
    }

    /// Has the message delivered again after `delay`.
    pub(crate) fn retry_after(&self, mut message: Message<T>, delay: Duration) {
        self.counts.retried.add(1);
        if delay.is_zero() {
            return self.take_back(message, true);
        }
        message.redelivered = true;
        let _ = message.take_fresh();
        let due = self.runtime.clock.now().after(delay);
        let due = self.expires_at(&message).map_or(due, |expires| expires.min(due));
        self.note_return(&message, Some(due));
        self.wait(due, Waiting::Retry(Box::new(message)));
    }

    /// Makes a dead letter of it. If their queue has no room, it waits, holding capacity here.
    pub(crate) fn bury(&self, mut letter: DeadLetter<T>) {
        let asked = letter.take_request();
        match self.sink().accept(letter) {
            Ok(()) => self.counts.dead_lettered.add(1),
            Err(letter) => {
                self.intake.lock().slots += 1;
                self.tell_dead_letters_full();
                self.wait(self.runtime.clock.now().after(BURIAL_RETRY), Waiting::Burial(Box::new(letter)));
            }
        }
        if let Some((request, end)) = asked {
            request.end(end);
        }
    }

    /// Messages of its have become dead letters in another way.
    pub(crate) fn count_dead_lettered(&self, n: usize) {
        self.counts.dead_lettered.add(n as u64);
    }

    /// It was in the file, and becomes something else at once.
    pub(crate) fn count_recovered(&self) {
        self.intake.lock().recovered += 1;
    }

    /// How long a dead-letter queue's own failing message waits, since it cannot be given up on.
    pub(crate) fn pause_instead_of_giving_up(&self) -> Option<Duration> {
        (self.is_terminal() || self.dead.is_none()).then_some(MAX_DEAD_LETTER_PAUSE)
    }

    pub(super) fn sink(&self) -> &Arc<dyn DeadLetterSink<T>> {
        self.dead.as_ref().expect("only queues that have dead letters give up on messages")
    }

    fn tell_dead_letters_full(&self) {
        self.runtime.tell(|| Event::DeadLettersFull {
            queue: self.name.to_string(),
            dead_letters: self.sink().name().to_string(),
        });
    }

    pub(super) fn wait(&self, due: Timestamp, waiting: Waiting<T>) {
        let earliest = self.delayed.lock().push(due, waiting);
        if earliest {
            self.arm(due);
        }
    }

    /// Brings everything due to where it belongs now. Answers when the next is due.
    pub(super) fn move_due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut due = Due::default();
        let mut next = self.collect_due(now, &mut due);
        self.forget_timers(&due.fired);
        self.drop_cancelled(due.cancelled);
        self.finish_moving(due.expired, Vec::new());
        for letter in due.letters {
            next = next.into_iter().chain(self.bury_again(*letter, now)).min();
        }
        next
    }

    /// No user code runs in here; what may involve some is collected.
    fn collect_due(&self, now: Timestamp, due: &mut Due<T>) -> Option<Timestamp> {
        let mut delayed = self.delayed.lock();
        // They are sought while producers and consumers go on, who need only the other two.
        let run = delayed.pop_run(now, DUE_AT_ONCE);
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let (mut arrived, mut released) = (0, 0);
        for waiting in run {
            match waiting {
                Waiting::Burial(letter) => due.letters.push(letter),
                Waiting::Delayed(message) => arrived += self.fire_delayed(&mut intake, message, due),
                Waiting::Retry(mut message) => {
                    intake.note_fired(&mut message);
                    let (ready, slots) = self.fire_again(&mut outlet, &mut intake, message, due);
                    (arrived, released) = (arrived + ready, released + slots);
                }
                Waiting::Paced(mut message) => {
                    // It was not counted among those that are to be read before their time.
                    let _ = message.take_fresh();
                    let (ready, slots) = self.fire_again(&mut outlet, &mut intake, message, due);
                    (arrived, released) = (arrived + ready, released + slots);
                }
            }
        }
        let next = delayed.earliest();
        outlet.sort(&mut intake);
        self.wake_readers(intake, arrived);
        self.release(outlet, released);
        next
    }

    /// How many messages became ready by it.
    fn fire_delayed(&self, intake: &mut Intake<T>, mut message: Message<T>, due: &mut Due<T>) -> usize {
        let timer = message.take_timer();
        intake.note_fired(&mut message);
        if let Some(extras) = &mut message.extras {
            extras.due = None;
        }
        if timer.as_ref().is_some_and(|timer| !timer.fire()) {
            due.cancelled.push(message);
            return 0;
        }
        due.fired.extend(timer);
        self.put(intake, message);
        1
    }

    /// The same for one that was ready before: how many became so by it, and how many slots it gave back.
    fn fire_again(
        &self,
        outlet: &mut Outlet<T>,
        intake: &mut Intake<T>,
        mut message: Box<Message<T>>,
        due: &mut Due<T>,
    ) -> (usize, u64) {
        if !self.is_overdue(&message) {
            self.put_urgently(outlet, intake, *message);
            return (1, 0);
        }
        let freed = outlet.free_lanes(message.take_lane()).max(self.may_miss_a_turn().into());
        outlet.moving += 1;
        let slots = u64::from(message.holds_slot);
        due.expired.push(*message);
        (freed, slots)
    }

    pub(super) fn forget_timers(&self, timers: &[TimerRef]) {
        timers.iter().for_each(|timer| self.runtime.timers.forget(timer));
    }

    pub(super) fn drop_cancelled(&self, cancelled: Vec<Message<T>>) {
        if cancelled.is_empty() {
            return;
        }
        let slots = cancelled.iter().filter(|message| message.holds_slot).count() as u64;
        self.counts.cancelled.add(cancelled.len() as u64);
        cancelled.into_iter().for_each(|message| self.throw_away(message, Fate::Cancelled));
        self.release(self.outlet.lock(), slots);
        self.note_gone();
    }

    /// Something that receivers of a closed queue may have waited for will not come.
    pub(super) fn note_gone(&self) {
        if self.is_draining() {
            self.wake_everyone();
        }
        self.runtime.note_progress();
    }

    fn bury_again(&self, letter: DeadLetter<T>, now: Timestamp) -> Option<Timestamp> {
        match self.sink().accept(letter) {
            Ok(()) => {
                self.counts.dead_lettered.add(1);
                self.release(self.outlet.lock(), 1);
                self.note_gone();
                None
            }
            Err(letter) => {
                let due = now.after(BURIAL_RETRY);
                self.delayed.lock().insert(due, Waiting::Burial(Box::new(letter)));
                Some(due)
            }
        }
    }
}

impl<T: Send + Sync + 'static> HoldsDelayed for Core<T> {
    fn cancel_delayed(&self, key: DelayKey) {
        let cancelled = self.delayed.lock().cancel(key);
        if let Some(Waiting::Delayed(message)) = cancelled {
            self.drop_cancelled(vec![message]);
        }
    }
}

/// What has become due but concerns more than the queue.
struct Due<T> {
    letters: Vec<Box<DeadLetter<T>>>,
    expired: Vec<Message<T>>,
    cancelled: Vec<Message<T>>,
    fired: Vec<TimerRef>,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self { letters: Vec::new(), expired: Vec::new(), cancelled: Vec::new(), fired: Vec::new() }
    }
}
