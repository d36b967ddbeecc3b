//! Messages that outlive their time.

use super::Core;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Reason};
use crate::message::Message;
use crate::queue::builder::Expired;
use crate::request::Fate;
use crate::sync::Ordering;
use std::time::Duration;

/// The least time between two looks through the whole queue.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);
/// And how much more for each message looked at: some fifty times what that costs. Not measured, since on a
/// busy machine a look lasts for as long as its thread is not let run.
const SWEEP_PAUSE_EACH: Duration = Duration::from_micros(2);

impl<T: Send + Sync + 'static> Core<T> {
    /// When the message expires, by its own time to live or the queue's, whichever is earlier.
    pub(super) fn expires_at(&self, message: &Message<T>) -> Option<Timestamp> {
        let extras = message.extras.as_ref();
        let own = extras.and_then(|extras| extras.expires);
        let starts = extras.and_then(|extras| extras.counts_from).unwrap_or(message.published_at);
        let queues = self.settings.ttl.map(|ttl| starts.after(ttl));
        own.into_iter().chain(queues).min()
    }

    #[inline]
    pub(super) fn is_overdue(&self, message: &Message<T>) -> bool {
        (self.settings.ttl.is_some() || message.extras.is_some()) && self.has_expired(message)
    }

    #[cold]
    fn has_expired(&self, message: &Message<T>) -> bool {
        self.expires_at(message).is_some_and(|expires| expires <= self.runtime.clock.now())
    }

    /// What becomes of expired messages, whose slots are free already. No lock is held.
    pub(super) fn expire(&self, expired: Vec<Message<T>>) {
        for mut message in expired {
            message.holds_slot = false;
            if self.settings.expired == Expired::DeadLetter && self.pause_instead_of_giving_up().is_none() {
                self.bury(DeadLetter::new(message, Reason::Expired, self));
            } else {
                self.counts.expired.add(1);
                self.throw_away(message, Fate::Expired);
            }
        }
    }

    /// Takes out every ready message that has expired, wherever it stands. Answers when to look again.
    ///
    /// A look visits everything that is ready, so in a long queue looks are spaced out to cost about a
    /// fiftieth of the time; an expired message that still stands is never delivered all the same.
    pub(super) fn sweep_expired(&self, now: Timestamp) -> Option<Timestamp> {
        let at = Timestamp(self.sweep_at.load(Ordering::SeqCst));
        if at > now {
            return (at != Timestamp::MAX).then_some(at);
        }
        self.sweep_at.store(u64::MAX, Ordering::SeqCst);
        let (looked_at, next) = self.sweep(now);
        // What stands behind in the file may have expired too, and holds room that somebody waits for.
        self.load_more();
        let pause = if self.runtime.clock.is_manual() {
            Duration::ZERO
        } else {
            SWEEP_PAUSE.max(SWEEP_PAUSE_EACH.saturating_mul(looked_at))
        };
        let next = next?.max(now.after(pause));
        self.sweep_at.fetch_min(next.0, Ordering::SeqCst);
        Some(next)
    }

    /// Looks through the queue once; answers at how many messages, and when the next of them expires.
    fn sweep(&self, now: Timestamp) -> (u32, Option<Timestamp>) {
        let (mut outlet, mut intake) = self.both_sides();
        let looked_at = u32::try_from(intake.entered - outlet.left).unwrap_or(u32::MAX);
        let (mut expired, mut next) = (Vec::new(), None);
        let expiry = |message: &Message<T>| self.expires_at(message);
        expired.extend(self.sweep_lanes(&mut outlet, |message| {
            let expires = expiry(message);
            let stays = expires.is_none_or(|expires| expires > now);
            if stays {
                next = next.into_iter().chain(expires).min();
            }
            stays
        }));
        let mut keep = |message: Message<T>| match self.expires_at(&message) {
            Some(expires) if expires <= now => {
                expired.push(message);
                None
            }
            expires => {
                next = next.into_iter().chain(expires).min();
                Some(message)
            }
        };
        intake.aside.sift(&mut keep);
        let plain = intake.tail.take_all(&mut outlet.head);
        plain.into_iter().filter_map(&mut keep).for_each(|message| intake.tail.push(message));
        self.note_aside(&intake);
        // A key may have been held up by what expired.
        let servable = outlet.in_turn();
        self.wake_readers(intake, servable);
        let slots = expired.iter().filter(|message| message.holds_slot).count() as u64;
        let n = expired.len() as u64;
        outlet.left += n;
        outlet.moving += n;
        self.release(outlet, slots);
        self.finish_moving(expired, Vec::new());
        (looked_at, next)
    }

    /// Brings messages that a consumer came across, and could not take, to where they belong.
    pub(super) fn finish_moving(&self, expired: Vec<Message<T>>, early: Vec<(Timestamp, Message<T>)>) {
        let n = (expired.len() + early.len()) as u64;
        if n == 0 {
            return;
        }
        self.expire(expired);
        for (at, message) in early {
            let due = self.expires_at(&message).map_or(at, |expires| expires.min(at));
            self.wait(due, super::Waiting::Paced(Box::new(message)));
        }
        self.outlet.lock().moving -= n;
        self.note_gone();
    }
}
