//! What becomes of records after their handler has seen them.

use super::lanes::{Claim, GroupCore, Letters, Next};
use super::record::Record;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Reason};
use crate::outcome::{Outcome, drop_contained};
use crate::random::Random;
use crate::retry::{Decision, decide};
use crate::runtime::Event;
use std::time::Duration;

/// How long a record waits for room among the dead letters before it is tried again.
pub(super) const ROOM_AGAIN: Duration = Duration::from_secs(1);

/// What a handler came to: its outcome, or the words of its panic.
pub(super) type Answer = Result<(Outcome, Option<String>), String>;

/// What is to become of records that failed.
enum Fate {
    Again(Duration),
    Bury(Reason),
}

impl<T: Send + Sync + 'static> GroupCore<T> {
    /// Does what the handler said of these records, the first of the claim; `None` if the claim goes on behind
    /// them.
    #[inline]
    pub(super) fn settle(&self, claim: &Claim<T>, records: &[Record<T>], answer: Answer) -> Option<Next> {
        let last = records.last().expect("handlers are not called with nothing");
        let discarded = matches!(answer, Ok((Outcome::Discard, _)));
        if !discarded && !matches!(answer, Ok((Outcome::Ack, _))) {
            return Some(self.failed(claim, records, answer));
        }
        let mut lane = self.lane(claim.partition);
        if lane.epoch != claim.epoch {
            return Some(Next::Ready);
        }
        let n = records.len();
        lane.counts.delivered += n as u64;
        lane.counts.discarded += if discarded { n as u64 } else { 0 };
        // What is left of a larger batch that failed before keeps its failures.
        let done = lane.commit(last.offset() + 1);
        drop(lane);
        drop_contained(done);
        self.shelf.runtime.note_progress();
        None
    }

    #[cold]
    fn failed(&self, claim: &Claim<T>, records: &[Record<T>], answer: Answer) -> Next {
        let (outcome, error) = answer.unwrap_or_else(|words| self.panicked(claim, records, words));
        let Some((mut letters, rest)) = self.take_failing(claim, records) else { return Next::Ready };
        let now = self.shelf.runtime.clock.now();
        let fate = self.judge(&mut letters, outcome, error, now);
        match fate {
            Fate::Again(delay) => {
                letters.extend(rest);
                self.try_again(claim, letters, now.after(delay))
            }
            Fate::Bury(reason) => self.bury(claim, letters, rest, reason),
        }
    }

    fn panicked(&self, claim: &Claim<T>, records: &[Record<T>], words: String) -> (Outcome, Option<String>) {
        self.lane(claim.partition).counts.panicked += 1;
        let (queue, message) = (self.full_name.to_string(), records[0].id());
        self.shelf.runtime.tell(|| Event::HandlerPanicked { queue, message, text: words.clone() });
        (Outcome::Retry, Some(words))
    }

    /// These records as they would become dead letters, one attempt further, and those that failed with them
    /// before; `None` after a seek.
    fn take_failing(&self, claim: &Claim<T>, records: &[Record<T>]) -> Option<(Letters<T>, Letters<T>)> {
        let mut lane = self.lane(claim.partition);
        if lane.epoch != claim.epoch {
            return None;
        }
        lane.counts.delivered += records.len() as u64;
        let mut known = std::mem::take(&mut lane.failing);
        drop(lane);
        let letter = |record: &Record<T>| {
            let again = known.iter().position(|(offset, _)| *offset == record.offset()).and_then(|i| known.remove(i));
            let again = again.map(|(offset, mut message)| {
                message.attempt += 1;
                (offset, message)
            });
            again.unwrap_or_else(|| (record.offset(), record.to_message()))
        };
        Some((records.iter().map(letter).collect(), known))
    }

    fn judge(&self, letters: &mut Letters<T>, outcome: Outcome, error: Option<String>, now: Timestamp) -> Fate {
        let (asked, rejected) = match outcome {
            Outcome::DeadLetter(words) => (None, Some(words)),
            Outcome::RetryAfter(delay) => (Some(delay), None),
            _ => (None, None),
        };
        let permanent = error.is_some();
        let words = error.or_else(|| rejected.clone()).unwrap_or_else(|| "asked for a retry".into());
        letters.iter_mut().for_each(|(_, letter)| letter.record_failure(now, words.clone()));
        if let Some(words) = rejected {
            return Fate::Bury(if permanent { Reason::Permanent } else { Reason::Rejected(words) });
        }
        // A policy made from a function runs it in there, so only the draw is made under the lock.
        let mut chance = self.shelf.runtime.with_random(Random::fork);
        match decide(&self.settings.retry, letters[0].1.attempt, asked, &mut chance) {
            Decision::Again(delay) => Fate::Again(delay),
            Decision::GiveUp => Fate::Bury(Reason::Exhausted),
        }
    }

    fn try_again(&self, claim: &Claim<T>, letters: Letters<T>, due: Timestamp) -> Next {
        let n = letters.len() as u64;
        self.keep(claim, letters, None).map_or(Next::Ready, |()| {
            self.lane(claim.partition).counts.retried += n;
            Next::RestUntil(due)
        })
    }

    /// Puts failing records back to their partition; `None` if a seek has made them meaningless.
    fn keep(&self, claim: &Claim<T>, letters: Letters<T>, given_up: Option<Reason>) -> Option<()> {
        let mut lane = self.lane(claim.partition);
        if lane.epoch != claim.epoch {
            drop(lane);
            drop_contained(letters);
            return None;
        }
        (lane.failing, lane.given_up) = (letters, given_up);
        Some(())
    }

    /// Goes on burying what found no room among the dead letters.
    pub(super) fn bury_again(&self, claim: &Claim<T>) -> Next {
        let (letters, reason) = {
            let mut lane = self.lane(claim.partition);
            if lane.epoch != claim.epoch {
                return Next::Ready;
            }
            (std::mem::take(&mut lane.failing), lane.given_up.take())
        };
        match reason {
            Some(reason) => self.bury(claim, letters, Letters::new(), reason),
            None => Next::Ready,
        }
    }

    /// Makes dead letters of the first records of the claim, one after the other, and commits each.
    fn bury(&self, claim: &Claim<T>, mut letters: Letters<T>, rest: Letters<T>, reason: Reason) -> Next {
        while let Some((offset, message)) = letters.pop_front() {
            let now = self.shelf.runtime.clock.now();
            let name = self.full_name.clone();
            if let Err(letter) = self.dead.accept(DeadLetter::of_group(message, reason.clone(), name, now)) {
                letters.push_front((offset, letter.into_message()));
                return self.wait_for_room(claim, letters, reason, now.after(ROOM_AGAIN));
            }
            if !self.step_over(claim, offset) {
                return Next::Ready;
            }
        }
        // The rest has failed less often.
        let _ = self.keep(claim, rest, None);
        Next::Ready
    }

    /// Commits a record that is a dead letter now; whether the claim still counts.
    fn step_over(&self, claim: &Claim<T>, offset: u64) -> bool {
        let mut lane = self.lane(claim.partition);
        let valid = lane.epoch == claim.epoch;
        let mut done = Letters::new();
        if valid {
            lane.counts.dead_lettered += 1;
            done = lane.commit(offset + 1);
        }
        drop(lane);
        drop_contained(done);
        self.shelf.runtime.note_progress();
        valid
    }

    fn wait_for_room(&self, claim: &Claim<T>, letters: Letters<T>, reason: Reason, due: Timestamp) -> Next {
        let (queue, dead_letters) = (self.full_name.to_string(), self.dead.name().to_string());
        self.shelf.runtime.tell(|| Event::DeadLettersFull { queue, dead_letters });
        self.keep(claim, letters, Some(reason)).map_or(Next::Ready, |()| Next::RestUntil(due))
    }
}
