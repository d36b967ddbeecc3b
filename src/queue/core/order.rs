//! Order by key: where a message's lane comes from, and what becomes of it.

use super::{Core, Gate, Intake, Refusal};
use crate::dead_letter::{DeadLetter, Reason};
use crate::message::{Message, Text};
use crate::outcome::contained;
use crate::queue::keyed::{Exhausted, Hold, KeyRule, Keyed, Parked, Turn};
use crate::request::End;
use crate::runtime::Event;
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
        match &self.keys {
            KeyRule::Unordered | KeyRule::One => Ok(Text::EMPTY),
            KeyRule::OfMessage => Ok(message.key_text().cloned().unwrap_or(Text::EMPTY)),
            KeyRule::Of(key) => contained(|| key(message.payload())),
        }
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
    pub(super) fn find_key(&self, message: &mut Message<T>) {
        if self.is_ordered() {
            message.extras_mut().order_key = Some(self.key_of(message).unwrap_or(Text::EMPTY));
        }
    }

    /// As [`Core::offer`], into the lane of the message's key.
    pub(super) fn offer_by_key(&self, mut message: Message<T>) -> Result<(), (Message<T>, Refusal)> {
        let known = message.extras.as_mut().and_then(|extras| extras.order_key.take());
        let key = match known.map_or_else(|| self.key_of(&message), Ok) {
            Ok(key) => key,
            Err(words) => return Err((message, Refusal::Panicked(words.into()))),
        };
        let mut intake = self.intake.lock();
        if let Err(refusal) = self.let_in(&mut intake) {
            drop(intake);
            if refusal == Refusal::Full {
                // For the next try, since the user's function may be slow, or count its calls.
                message.extras_mut().order_key = Some(key);
            }
            return Err((message, refusal));
        }
        message.holds_slot = true;
        intake.slots += 1;
        intake.accepted += 1;
        intake.entered += 1;
        self.note_expiry(&message);
        let arrived = intake.aside.keyed.as_mut().is_some_and(|keyed| keyed.push(key, message));
        self.wake_readers(intake, usize::from(arrived));
        Ok(())
    }

    /// The message that kept this lane busy is gone: the next one has its turn.
    #[inline]
    pub(crate) fn free_lane(&self, lane: Option<u32>) {
        if let Some(lane) = lane {
            self.free_lanes(&[lane]);
        }
    }

    pub(crate) fn free_lanes(&self, lanes: &[u32]) {
        if lanes.is_empty() {
            return;
        }
        let mut intake = self.intake.lock();
        let arrived = intake.free_lanes(lanes.iter().copied());
        self.wake_readers(intake, arrived);
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
        // Whether there is a further attempt is up to whoever resumes the key, and when.
        let told = message.take_request().map(|request| {
            let error = message.history().last().map(|attempt| attempt.error.clone());
            (request, End::Failed(Arc::clone(&self.name), reason.clone(), error))
        });
        let hold = Hold { reason, since: self.runtime.clock.now() };
        let key = {
            let mut intake = self.intake.lock();
            self.note_expiry(&message);
            intake.entered += 1;
            let keyed = intake.aside.keyed.as_mut().expect("an ordered queue");
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

    pub(crate) fn parked(&self) -> Vec<Parked> {
        let intake = self.intake.lock();
        let parked = intake.aside.keyed.iter().flat_map(Keyed::parked);
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
        let mut intake = self.intake.lock();
        let released = intake.release(&Text::new(key));
        self.wake_readers(intake, usize::from(released));
        released
    }

    /// Makes dead letters of all that waits under a parked key; how many those are.
    pub(crate) fn drop_key(&self, key: &str) -> usize {
        let (hold, messages) = {
            let mut outlet = self.outlet.lock();
            let mut intake = self.intake.lock();
            let taken = intake.aside.keyed.as_mut().and_then(|keyed| keyed.take_parked(&Text::new(key)));
            let Some((hold, messages)) = taken else { return 0 };
            drop(intake);
            outlet.left += messages.len() as u64;
            outlet.moving += messages.len() as u64;
            let slots = messages.iter().filter(|message| message.holds_slot).count() as u64;
            self.release(outlet, slots);
            (hold, messages)
        };
        let n = messages.len();
        let reasons = std::iter::once(hold.reason).chain(std::iter::repeat(Reason::KeyDropped));
        for (mut message, reason) in messages.into_iter().zip(reasons) {
            message.holds_slot = false;
            self.bury(DeadLetter::new(message, reason, self));
        }
        self.outlet.lock().moving -= n as u64;
        self.note_gone();
        n
    }

    /// Lifts a stop and lets the keys that caused it go on; whether there was one.
    pub(crate) fn resume(&self) -> bool {
        let mut intake = self.intake.lock();
        let Some(keyed) = &mut intake.aside.keyed else { return false };
        if !keyed.resume() {
            return false;
        }
        for key in keyed.parked_keys() {
            intake.release(&key);
        }
        drop(intake);
        self.wake_everyone();
        true
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.intake.lock().aside.keyed.as_ref().is_some_and(Keyed::is_stopped)
    }

    /// What is ready and will be handed out without anything else happening first.
    pub(super) fn servable(&self, intake: &Intake<T>, left: u64) -> u64 {
        match &intake.aside.keyed {
            Some(keyed) => keyed.available() as u64,
            None => intake.entered - left,
        }
    }

    /// The last that sleepers on a closed queue have waited for is handed out.
    pub(super) fn note_last_turn(&self, intake: &Intake<T>) {
        if intake.gate == Gate::Closed && intake.aside.keyed.is_some() && !intake.moves_on() {
            self.readable.notify_all();
        }
    }

    /// Takes what has expired out of the lanes.
    pub(super) fn sweep_lanes(
        &self,
        intake: &mut Intake<T>,
        mut stays: impl FnMut(&Message<T>) -> bool,
    ) -> Vec<Message<T>> {
        intake.aside.keyed.as_mut().map_or_else(Vec::new, |keyed| keyed.retain(&mut stays))
    }
}

impl<T> Intake<T> {
    /// How many of these lanes have another message to hand out.
    pub(super) fn free_lanes(&mut self, lanes: impl IntoIterator<Item = u32>) -> usize {
        let Some(keyed) = &mut self.aside.keyed else { return 0 };
        lanes.into_iter().filter(|&lane| keyed.free(lane)).count()
    }

    /// Puts a message that was handed out, or is due for a retry, at the front of its key; any other at the
    /// end.
    pub(super) fn put_in_lane(&mut self, mut message: Message<T>, turn: Turn) {
        let keyed = self.aside.keyed.as_mut().expect("an ordered queue");
        if let Some(lane) = message.take_lane() {
            keyed.give_back(lane, message, turn);
            return;
        }
        let key = message.extras.as_mut().and_then(|extras| extras.order_key.take());
        debug_assert!(key.is_some(), "found before it came here");
        keyed.push(key.unwrap_or(Text::EMPTY), message);
    }

    fn release(&mut self, key: &Text) -> bool {
        let Some(keyed) = &mut self.aside.keyed else { return false };
        keyed.release(key, |message| message.attempt = 0)
    }

    /// Whether messages wait that will get their turn, sooner or later.
    pub(super) fn moves_on(&self) -> bool {
        self.aside.keyed.as_ref().is_some_and(Keyed::moves_on)
    }
}
