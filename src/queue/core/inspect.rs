//! Looking at what a queue holds, and clearing it.

use super::{Core, Intake, Outlet, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::keyed::Keyed;
use crate::request::{End, Fate};
use crate::stats::{HandlingTime, QueueStats};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

impl<T: Send + Sync + 'static> Core<T> {
    /// How many messages are ready.
    pub(crate) fn ready(&self) -> u64 {
        let (outlet, intake) = self.counted_sides();
        intake.entered - outlet.left
    }

    /// Whether the oldest ready message was published `linger` ago; if not, has the scheduler call then.
    pub(crate) fn has_lingered(&self, linger: Duration) -> bool {
        let Some(due) = self.oldest_ready().map(|stamp| stamp.after(linger)) else { return false };
        let lingered = due <= self.runtime.clock.now();
        if !lingered {
            self.arm(due);
        }
        lingered
    }

    pub(crate) fn delayed(&self) -> usize {
        let delayed = self.delayed.lock();
        delayed.len() + self.intake.lock().unread_delayed() as usize
    }

    pub(crate) fn in_flight(&self) -> u64 {
        // Settled first: a delivery counted there has been counted as delivered.
        let settled = self.settled_ever();
        self.counted_sides().0.delivered.saturating_sub(settled)
    }

    /// How many deliveries were settled ever, and how many of them acked.
    pub(crate) fn settled_and_acked(&self) -> (u64, u64) {
        let (mut settled, mut acked) = (0, 0);
        self.tallies.each(|tally| {
            // Read once: another ack in between must not make it more than what was settled.
            let (good, bad) = (tally.acked.get(), tally.unacked.get());
            acked += good;
            settled += good + bad;
        });
        (settled, acked)
    }

    /// When the ready message was published that has been waiting longest.
    pub(crate) fn oldest_ready(&self) -> Option<Timestamp> {
        let found = self.oldest_in_memory();
        if found.is_none() && self.load_more() { self.oldest_in_memory() } else { found }
    }

    fn oldest_in_memory(&self) -> Option<Timestamp> {
        let (mut outlet, mut intake) = self.both_sides();
        intake.oldest(&mut outlet)
    }

    pub(super) fn settled_ever(&self) -> u64 {
        let mut settled = 0;
        self.tallies.each(|tally| settled += tally.settled());
        settled
    }

    /// Copies of up to `max` of the next messages, sharing their payloads with the queue.
    pub(crate) fn peek(&self, max: usize) -> Vec<Message<T>> {
        // With priorities, the next may not be in memory though others are.
        while max > 0 && self.intake.lock().level_to_read().is_some() && self.load_more() {}
        let found = self.peek_at_memory(max);
        if found.is_empty() && max > 0 && self.load_more() { self.peek_at_memory(max) } else { found }
    }

    fn peek_at_memory(&self, max: usize) -> Vec<Message<T>> {
        let (mut outlet, mut intake) = self.both_sides();
        let Intake { aside, tail, .. } = &mut *intake;
        if let Some(keyed) = outlet.keyed_mut() {
            let mut copies = Vec::new();
            keyed.show(max, |message| copies.push(message.share()));
            return copies;
        }
        let ready = aside.iter_mut().chain(tail.iter_mut(&mut outlet.head));
        ready.take(max).map(Message::share).collect()
    }

    /// Copies of up to `max` of the waiting messages with their times, earliest first.
    pub(crate) fn list_delayed(&self, max: usize) -> Vec<(SystemTime, Message<T>)> {
        let mut delayed = self.delayed.lock();
        // Beyond there are others, in the file.
        let end = self.intake.lock().delayed_read_to();
        let known = delayed.earliest_mut(max).into_iter().take_while(|(due, _)| *due <= end);
        let waiting = known.map(|(due, waiting)| match waiting {
            Waiting::Delayed(message) => (due, message.share()),
            Waiting::Retry(message) | Waiting::Paced(message) => (due, message.share()),
            Waiting::Burial(letter) => (due, letter.share_message()),
        });
        waiting.map(|(due, message)| (due.to_system_time(), message)).collect()
    }

    /// Removes everything ready and waiting, oldest first; what is in flight stays.
    fn clear(&self) -> Vec<Message<T>> {
        let mut delayed = self.delayed.lock();
        let (mut outlet, mut intake) = self.both_sides();
        let mut all = intake.aside.take_all();
        all.extend(outlet.keyed_mut().map_or_else(Vec::new, Keyed::take_all));
        all.extend(intake.take_late());
        self.note_aside(&intake);
        all.extend(intake.tail.take_all(&mut outlet.head));
        outlet.left += all.len() as u64;
        let (mut burials, mut fired, mut cancelled) = (0, Vec::new(), Vec::new());
        for waiting in delayed.take_where(|_| true) {
            let mut message = match waiting {
                Waiting::Delayed(message) => message,
                Waiting::Retry(mut message) | Waiting::Paced(mut message) => {
                    outlet.free_lanes(message.take_lane());
                    *message
                }
                Waiting::Burial(letter) => {
                    burials += 1;
                    letter.into_message()
                }
            };
            let timer = message.take_timer();
            if timer.as_ref().is_some_and(|timer| !timer.fire()) {
                cancelled.push(message);
                continue;
            }
            fired.extend(timer);
            all.push(message);
        }
        let gone = intake.settle_cleared(&mut outlet);
        outlet.left += gone;
        intake.note_cleared();
        drop((delayed, intake));
        let slots = gone + all.iter().filter(|message| message.holds_slot).count() as u64;
        self.release(outlet, slots + burials);
        self.forget_timers(&fired);
        self.drop_cancelled(cancelled);
        all
    }

    pub(crate) fn purge(&self) -> usize {
        if self.is_beyond_reach() {
            return 0;
        }
        let n = self.clearing(|| {
            let mut n = 0;
            loop {
                let mut all = self.clear();
                n += all.len();
                self.forget_all(&mut all);
                self.counts.purged.add(all.len() as u64);
                all.into_iter().for_each(|message| self.throw_away(message, Fate::Purged));
                if !self.load_rest() {
                    return n;
                }
            }
        });
        self.note_gone();
        n
    }

    pub(crate) fn drain(&self) -> Vec<Message<T>> {
        if self.is_beyond_reach() {
            return Vec::new();
        }
        let mut all = self.clearing(|| {
            let mut all = self.clear();
            while self.load_rest() {
                all.extend(self.clear());
            }
            self.forget_all(&mut all);
            all
        });
        all.iter_mut().for_each(|message| message.unanswered(&self.name, Fate::Drained));
        self.counts.drained.add(all.len() as u64);
        self.note_gone();
        all
    }

    /// Tells whoever waits for a reply to a message in here that none will come. What is in flight may still
    /// be answered.
    pub(crate) fn end_requests(&self) {
        let mut delayed = self.delayed.lock();
        let (mut outlet, mut intake) = self.both_sides();
        let Intake { aside, tail, .. } = &mut *intake;
        let ready = aside.iter_mut().chain(tail.iter_mut(&mut outlet.head));
        let waiting = delayed.entries_mut().filter_map(|waiting| match waiting {
            Waiting::Delayed(message) => Some(message),
            Waiting::Retry(message) | Waiting::Paced(message) => Some(&mut **message),
            // Those who asked know that it is a dead letter.
            Waiting::Burial(_) => None,
        });
        let mut requests: Vec<_> = ready.chain(waiting).filter_map(Message::take_request).collect();
        requests.extend(intake.unread_requests());
        requests.extend(intake.late_requests());
        if let Some(keyed) = outlet.keyed_mut() {
            keyed.show(usize::MAX, |message| requests.extend(message.take_request()));
        }
        drop((intake, outlet, delayed));
        requests.into_iter().for_each(|request| request.end(End::Unanswered(Arc::clone(&self.name), Fate::Left)));
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let now = self.runtime.clock.now();
        let mut handling = HandlingTime::default();
        let (mut acked, mut settled) = (0, 0);
        let delayed = self.delayed.lock();
        let (mut outlet, mut intake) = self.both_sides();
        self.tallies.each(|tally| {
            acked += tally.acked.get();
            settled += tally.settled();
            handling.add(&tally.handling);
        });
        let oldest = intake.oldest(&mut outlet);
        let keyed = outlet.keyed();
        let counts = &self.counts;
        let (discarded, purged, cancelled) = (counts.discarded.get(), counts.purged.get(), counts.cancelled.get());
        QueueStats {
            name: self.name.to_string(),
            holds_dead_letters: self.is_terminal(),
            capacity: self.settings.capacity,
            published: intake.accepted,
            delivered: outlet.delivered,
            acked: acked + counts.drained.get(),
            retried: counts.retried.get(),
            requeued: counts.requeued.get(),
            panicked: counts.panicked.get(),
            dead_lettered: counts.dead_lettered.get(),
            expired: counts.expired.get(),
            dropped: counts.overflowed.get() + discarded + purged + cancelled,
            discarded,
            purged,
            cancelled,
            timed_out: counts.timed_out.get(),
            duplicates: counts.duplicates.get(),
            settled_late: counts.late.get(),
            redriven: intake.redriven,
            recovered: intake.recovered,
            refused: counts.refused.get(),
            ready: intake.entered - outlet.left,
            in_flight: outlet.delivered.saturating_sub(settled),
            delayed: delayed.len() as u64 + intake.unread_delayed(),
            oldest_age: oldest.map(|stamp| now.since(stamp)),
            parked: keyed.map_or(0, |keyed| keyed.held() as u64 + keyed.held_behind()),
            keys: keyed.map_or(0, |keyed| keyed.keys() as u64),
            handling,
            trouble: intake.trouble(),
        }
    }
}

impl<T> Intake<T> {
    /// When the ready message was published that has been waiting longest, as far as the fronts of the
    /// lanes tell.
    fn oldest(&mut self, outlet: &mut Outlet<T>) -> Option<Timestamp> {
        let aside = self.aside.iter_mut().map(|message| message.published_at).min();
        let plain = self.tail.iter_mut(&mut outlet.head).next().map(|message| message.published_at);
        let keyed = outlet.keyed().and_then(Keyed::oldest).map(|message| message.published_at);
        aside.into_iter().chain(plain).chain(keyed).min()
    }
}
