//! What becomes of a message after its delivery: back, later, or among the dead letters.

use super::{Admission, BURIAL_RETRY, Core, DUE_AT_ONCE, MAX_DEAD_LETTER_PAUSE, Waiting};
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, DeadLetterSink};
use crate::message::Message;
use crate::runtime::Event;
use crate::stats::Counter;
use crate::sync::Ordering;
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

    /// Gives a delivery back: `urgently` ahead of all fresh messages, otherwise behind them.
    pub(crate) fn take_back(&self, mut message: Message<T>, urgently: bool) {
        message.redelivered = true;
        if !urgently {
            return self.enter(message, Admission::Returned);
        }
        let mut intake = self.intake.lock();
        self.enter_urgently(&mut intake, message);
        self.wake_readers(intake, 1);
    }

    /// Puts messages that were taken for a look back to the front, in their order.
    pub(crate) fn restore(&self, messages: Vec<Message<T>>) {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let n = messages.len();
        for mut message in messages.into_iter().rev() {
            message.attempt -= 1;
            message.holds_slot = true;
            outlet.head.push_front(message);
        }
        intake.slots += n as u64;
        outlet.left -= n as u64;
        outlet.delivered -= n as u64;
        if self.limits_in_flight() {
            intake.in_flight -= n;
        }
        drop(outlet);
        self.wake_readers(intake, n);
        self.runtime.note_progress();
    }

    /// Takes a message back from the dead letters, after `delay`.
    pub(crate) fn readmit(&self, mut message: Message<T>, delay: Duration) {
        message.attempt = 0;
        if delay.is_zero() {
            return self.enter(message, Admission::Redriven);
        }
        self.intake.lock().admit(&mut message, Admission::Redriven);
        self.wait(self.runtime.clock.now().after(delay), Waiting::Retry(message));
    }

    /// Has the message delivered again after `delay`.
    pub(crate) fn retry_after(&self, mut message: Message<T>, delay: Duration) {
        self.counts.retried.add(1);
        if delay.is_zero() {
            return self.take_back(message, true);
        }
        message.redelivered = true;
        self.wait(self.runtime.clock.now().after(delay), Waiting::Retry(message));
    }

    /// Makes a dead letter of it. If their queue has no room, it waits, holding capacity here.
    pub(crate) fn bury(&self, letter: DeadLetter<T>) {
        match self.sink().accept(letter) {
            Ok(()) => self.counts.dead_lettered.add(1),
            Err(letter) => {
                self.intake.lock().slots += 1;
                self.tell_dead_letters_full();
                self.wait(self.runtime.clock.now().after(BURIAL_RETRY), Waiting::Burial(letter));
            }
        }
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

    fn wait(&self, due: Timestamp, waiting: Waiting<T>) {
        let earliest = {
            let mut delayed = self.delayed.lock();
            let earliest = delayed.earliest().is_none_or(|first| due < first);
            delayed.insert(due, waiting);
            earliest
        };
        if earliest {
            self.arm(due);
        }
    }

    pub(super) fn arm(&self, due: Timestamp) {
        self.runtime.scheduler.arm(self.number(), due);
    }

    /// Moves what is due to the front, and collects the dead letters to try again.
    pub(super) fn move_due(&self, now: Timestamp) -> (Vec<DeadLetter<T>>, Option<Timestamp>) {
        let mut letters = Vec::new();
        let mut delayed = self.delayed.lock();
        let mut intake = self.intake.lock();
        let mut arrived = 0;
        for _ in 0..DUE_AT_ONCE {
            match delayed.pop_due(now) {
                Some(Waiting::Retry(message)) => {
                    self.enter_urgently(&mut intake, message);
                    arrived += 1;
                }
                Some(Waiting::Burial(letter)) => letters.push(letter),
                None => break,
            }
        }
        let next = delayed.earliest();
        self.wake_readers(intake, arrived);
        (letters, next)
    }

    pub(super) fn bury_again(&self, letter: DeadLetter<T>, now: Timestamp) -> Option<Timestamp> {
        match self.sink().accept(letter) {
            Ok(()) => {
                self.counts.dead_lettered.add(1);
                self.release(self.outlet.lock(), 1);
                self.runtime.note_progress();
                None
            }
            Err(letter) => {
                let due = now.after(BURIAL_RETRY);
                self.delayed.lock().insert(due, Waiting::Burial(letter));
                Some(due)
            }
        }
    }
}
