//! Order by key: where a message's lane comes from, and what becomes of it.

use super::accept::Place;
use super::{Admission, Core, Intake, Outlet, Refusal};
use crate::dead_letter::{DeadLetter, Reason};
use crate::message::{Message, Text};
use crate::outcome::contained;
use crate::queue::keyed::{Exhausted, Hold, Key, KeyRule, Keyed, Parked, Turn};
use crate::request::End;
use crate::runtime::Event;
use crate::sync::Ordering;
use std::sync::Arc;

impl<T: Send + Sync + 'static> Core<T> {
    /// Whether its messages are ordered by key.
    #[inline]
    pub(crate) fn is_ordered(&self) -> bool {
        !matches!(self.keys, KeyRule::Unordered)
    }

    /// The key a message is ordered by here, or what the user's function said when it panicked. That is why
    /// no lock may be held.
    #[inline]
    fn key_of(&self, message: &Message<T>) -> Result<Text, String> {
        let mut text = Text::EMPTY;
        self.write_key(message, &mut text)?;
        Ok(text)
    }

    /// As [`Core::key_of`], into an empty text.
    #[inline]
    fn write_key(&self, message: &Message<T>, text: &mut Text) -> Result<(), String> {
        match &self.keys {
            KeyRule::Unordered | KeyRule::One => {}
            KeyRule::OfMessage => message.key_text().into_iter().for_each(|key| text.clone_from(key)),
            KeyRule::Of(key) => contained(|| key(message.payload(), text))?,
        }
        Ok(())
    }

    /// The key for a message that comes by a way where it can still be refused.
    pub(crate) fn order_key(&self, message: &Message<T>) -> Result<Option<Text>, Refusal> {
        if !self.is_ordered() {
            return Ok(None);
        }
        self.key_of(message).map(Some).map_err(|words| Refusal::Panicked(words.into()))
    }

    /// Notes the key of a message that must be taken; one whose key cannot be found is ordered with those
    /// that have none.
    pub(crate) fn find_key(&self, message: &mut Message<T>) {
        if self.is_ordered() {
            message.extras_mut().order_key = Some(self.key_of(message).unwrap_or(Text::EMPTY));
        }
    }

    /// As [`Core::offer`], by the message's key.
    pub(super) fn offer_by_key(&self, mut message: Message<T>) -> Result<(), (Message<T>, Refusal)> {
        match self.place_in_order(&mut message) {
            Ok(mut place) => {
                place.chunk().push_back(message);
                self.placed_in_order(place);
                Ok(())
            }
            Err(refusal) => Err((message, refusal)),
        }
    }

    /// As [`Core::place_for`], in an ordered queue, for a message without a delay or a timer; says why there
    /// is none. Its key is found here, so no lock may be held. [`Core::placed_in_order`] follows.
    pub(crate) fn place_in_order(&self, message: &mut Message<T>) -> Result<Place<'_, T>, Refusal> {
        debug_assert!(!message.is_timed());
        let known = message.extras.as_mut().and_then(|extras| extras.order_key.take());
        let mut key = Key::NONE;
        key.write(&self.seed, |text| match known {
            Some(known) => {
                *text = known;
                Ok(())
            }
            None => self.write_key(message, text).map_err(|words| Refusal::Panicked(words.into())),
        })?;
        let mut intake = self.intake.lock();
        if let Err(refusal) = self.let_in(&mut intake) {
            drop(intake);
            if refusal == Refusal::Full {
                // For the next try, since the user's function may be slow, or count its calls.
                message.extras_mut().order_key = Some(key.into_text());
            }
            return Err(refusal);
        }
        intake.admit(message, Admission::Published);
        intake.entered += 1;
        if message.extras.is_some() || self.settings.ttl.is_some() {
            self.note_expiry(message);
        }
        intake.keys.push(key);
        Ok(Place(intake))
    }

    /// The message is in its place.
    #[inline]
    pub(crate) fn placed_in_order(&self, Place(intake): Place<'_, T>) {
        self.wake_for_one(intake);
    }

    /// The message that kept this lane busy is gone: the next one has its turn.
    #[inline]
    pub(crate) fn free_lane(&self, lane: Option<u32>) {
        if let Some(lane) = lane {
            self.free_one_lane(lane);
        }
    }

    pub(crate) fn free_lanes(&self, lanes: &[u32]) {
        if lanes.is_empty() {
            return;
        }
        let arrived = self.outlet.lock().free_lanes(lanes.iter().copied()).max(self.may_miss_a_turn().into());
        self.wake_for_freed(arrived);
    }

    #[inline(never)]
    fn free_one_lane(&self, lane: u32) {
        let arrived = self.outlet.lock().keyed_mut().is_some_and(|keyed| keyed.free(lane)) || self.may_miss_a_turn();
        self.wake_for_freed(usize::from(arrived));
    }

    #[inline]
    pub(super) fn wake_for_freed(&self, arrived: usize) {
        // Whoever sleeps has said so before it let go of the outlet.
        if arrived > 0 && self.asleep.load(Ordering::Relaxed) > 0 {
            self.wake_readers(self.intake.lock(), arrived);
        }
    }

    /// Takes back what was handed out, ahead of its key.
    pub(super) fn take_back_in_order(&self, message: Message<T>) {
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        self.put_urgently(&mut outlet, &mut intake, message);
        drop(outlet);
        self.wake_readers(intake, 1);
    }

    /// Puts a message that was handed out, or is due for a retry, at the front of its key; any other at the
    /// end.
    pub(super) fn return_to_lane(
        &self,
        outlet: &mut Outlet<T>,
        intake: &mut Intake<T>,
        mut message: Message<T>,
        turn: Turn,
    ) {
        match (message.take_lane(), outlet.keyed_mut()) {
            (Some(lane), Some(keyed)) => keyed.give_back(lane, message, turn),
            _ => self.put_keyful(intake, message),
        }
    }

    /// Behind all of its key, which is known by now.
    pub(super) fn put_keyful(&self, intake: &mut Intake<T>, mut message: Message<T>) {
        let text = message.extras.as_mut().and_then(|extras| extras.order_key.take());
        debug_assert!(text.is_some(), "found before it came here");
        let key = Key::new(text.unwrap_or(Text::EMPTY), &self.seed);
        let Some((key, message)) = self.put_in_window_of_turns(intake, key, message) else { return };
        self.note_expiry(&message);
        intake.keys.push(key);
        intake.tail.push(message);
    }

    /// Whether a failure for this reason holds its key back.
    pub(crate) fn holds_back(&self, reason: &Reason) -> bool {
        self.settings.exhausted != Exhausted::DeadLetter && matches!(reason, Reason::Exhausted | Reason::Permanent)
    }

    /// Keeps a message that failed for good, and with it its key.
    #[cold]
    pub(crate) fn park(&self, mut message: Message<T>, reason: Reason) {
        let lane = message.take_lane().expect("only an ordered queue parks, and only what it has handed out");
        let (id, stopped) = (message.id, self.settings.exhausted == Exhausted::Stop);
        message.redelivered = true;
        let _ = message.take_fresh();
        let hold = Hold { reason, since: self.runtime.clock.now() };
        self.note_parked(&message, &hold);
        // Whether there is a further attempt is up to whoever resumes the key, and when.
        let told = message.take_request().map(|request| {
            let error = message.history().last().map(|attempt| attempt.error.clone());
            (request, End::Failed(Arc::clone(&self.name), hold.reason.clone(), error))
        });
        let key = {
            let (mut outlet, mut intake) = self.both_sides();
            self.note_expiry(&message);
            intake.entered += 1;
            let keyed = outlet.keyed_mut().expect("an ordered queue");
            keyed.park(lane, message, hold);
            if stopped {
                keyed.stop();
            }
            keyed.key(lane).clone()
        };
        self.note_gone();
        if let Some((request, end)) = told {
            request.end(end);
        }
        let (queue, key) = (self.name.to_string(), key.as_str().to_owned());
        self.runtime.tell(|| Event::KeyParked { queue, key, message: id, stopped });
    }

    /// Has a message that the file gave back wait for its next attempt, keeping its key busy. Comes before the
    /// others of its key, and before anybody knows of the queue.
    #[cfg(feature = "sqlite")]
    pub(crate) fn recover_resting(&self, message: Message<T>, due: crate::clock::Timestamp) {
        self.enter(message, Admission::Recovered);
        let (mut outlet, intake) = self.both_sides();
        // All other lanes are busy by now, with what was recovered like it.
        let Some(message) = outlet.pop_in_turn() else { return };
        outlet.left += 1;
        drop((outlet, intake));
        self.wait(due, super::Waiting::Retry(Box::new(message)));
    }

    /// Has a message that the file gave back park its key, as it did before. Comes when [`Core::recover_resting`] does.
    #[cfg(feature = "sqlite")]
    pub(crate) fn recover_parked(&self, message: Message<T>, hold: Hold) {
        self.enter(message, Admission::Recovered);
        let (mut outlet, mut intake) = self.both_sides();
        let Some(mut message) = outlet.pop_in_turn() else { return };
        let (lane, slot) = (message.take_lane(), std::mem::take(&mut message.holds_slot));
        outlet.left += 1;
        intake.entered += 1;
        if let Some((lane, keyed)) = lane.zip(outlet.keyed_mut()) {
            keyed.park(lane, message, hold);
        }
        drop(intake);
        self.release(outlet, u64::from(slot));
    }

    /// Stops again if it was stopped, once everything is recovered.
    #[cfg(feature = "sqlite")]
    pub(crate) fn recover_stop(&self) {
        if self.settings.exhausted == Exhausted::Stop
            && let Some(keyed) = self.outlet.lock().keyed_mut()
            && keyed.held() > 0
        {
            keyed.stop();
        }
    }

    pub(crate) fn parked(&self) -> Vec<Parked> {
        let mut list = self.parked_as_seen();
        if !list.is_empty() {
            let mut ahead = list.iter().map(|parked| (parked.key.clone(), 0)).collect();
            self.count_ahead(&mut ahead);
            list.iter_mut().for_each(|parked| parked.waiting += ahead[&parked.key]);
        }
        list
    }

    /// Without what nobody has read.
    fn parked_as_seen(&self) -> Vec<Parked> {
        let (outlet, _intake) = self.both_sides();
        let parked = outlet.keyed().into_iter().flat_map(Keyed::parked);
        let list = parked.map(|(key, hold, first, waiting)| Parked {
            key: key.as_str().to_owned(),
            waiting,
            message: first.id(),
            attempts: first.attempt(),
            reason: hold.reason.clone(),
            error: first.history().last().map(|attempt| attempt.error.clone()),
            since: hold.since.to_system_time(),
        });
        list.collect()
    }

    /// Lets a parked key go on; whether there was such a one.
    pub(crate) fn release_key(&self, key: &str) -> bool {
        let key = Key::new(Text::new(key), &self.seed);
        let (mut outlet, intake) = self.both_sides();
        let released = outlet.keyed_mut().is_some_and(|keyed| keyed.release(&key, |message| self.start_again(message)));
        drop(outlet);
        self.wake_readers(intake, usize::from(released));
        released
    }

    /// Makes dead letters of all that waits under a parked key; how many those are.
    pub(crate) fn drop_key(&self, key: &str) -> usize {
        let key = Key::new(Text::new(key), &self.seed);
        let (lane, hold, messages, unread) = {
            let (mut outlet, intake) = self.both_sides();
            let Some((lane, hold, messages)) = outlet.keyed_mut().and_then(|keyed| keyed.begin_drop(&key)) else {
                return 0;
            };
            let unread = self.unread_of(&outlet, &intake, lane);
            drop(intake);
            if unread.is_none() {
                outlet.end_drop(lane);
            }
            outlet.left += messages.len() as u64;
            outlet.moving += messages.len() as u64;
            let slots = messages.iter().filter(|message| message.holds_slot).count() as u64;
            self.release(outlet, slots);
            (lane, hold, messages, unread)
        };
        let reasons = std::iter::once(hold.reason).chain(std::iter::repeat(Reason::KeyDropped));
        let mut n = self.bury_dropped(messages, reasons);
        if let Some(unread) = unread {
            n += self.drop_unread(&key, lane, unread);
        }
        self.note_gone();
        n
    }

    /// Messages that have been taken out of their lane become dead letters; how many.
    pub(super) fn bury_dropped(&self, messages: Vec<Message<T>>, reasons: impl Iterator<Item = Reason>) -> usize {
        let n = messages.len();
        for (mut message, reason) in messages.into_iter().zip(reasons) {
            message.holds_slot = false;
            self.bury(DeadLetter::new(message, reason, self));
        }
        self.outlet.lock().moving -= n as u64;
        n
    }

    /// Lifts a stop and lets the keys that caused it go on; whether there was one.
    pub(crate) fn resume(&self) -> bool {
        let mut outlet = self.outlet.lock();
        let Some(keyed) = outlet.keyed_mut() else { return false };
        if !keyed.resume() {
            return false;
        }
        for key in keyed.parked_keys() {
            keyed.release(&key, |message| self.start_again(message));
        }
        drop(outlet);
        self.wake_everyone();
        true
    }

    /// What was given up on gets all its attempts again, in the file too. Noted under the lock, so that nothing that
    /// becomes of it is noted before; that waits for nobody.
    fn start_again(&self, message: &mut Message<T>) {
        message.attempt = 0;
        self.note_return(message, None);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.outlet.lock().keyed().is_some_and(Keyed::is_stopped)
    }

    /// Takes what has expired out of the lanes.
    pub(super) fn sweep_lanes(
        &self,
        outlet: &mut Outlet<T>,
        mut stays: impl FnMut(&Message<T>) -> bool,
    ) -> Vec<Message<T>> {
        outlet.keyed_mut().map_or_else(Vec::new, |keyed| keyed.retain(&mut stays))
    }
}
