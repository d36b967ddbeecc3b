//! What becomes of records after their handler has seen them.

use super::claim::{Claim, Found, Next};
use super::core::GroupCore;
use super::lane::{Failing, GivenUp};
use super::record::Record;
use crate::clock::Timestamp;
use crate::dead_letter::{DeadLetter, Reason};
use crate::message::{Attempt, Message};
use crate::outcome::Outcome;
use crate::random::Random;
use crate::retry::{Decision, decide};
use crate::runtime::Event;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a record waits for room among the dead letters before it is tried again.
const ROOM_AGAIN: Duration = Duration::from_secs(1);

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
        let discarded = match answer {
            Ok((Outcome::Ack, _)) => false,
            Ok((Outcome::Discard, _)) => true,
            failed => return Some(self.failed(claim, records, failed)),
        };
        let n = records.len() as u64;
        let mut lane = self.lane(claim.partition);
        lane.counts.delivered += n;
        if lane.epoch != claim.epoch {
            return Some(Next::Ready);
        }
        lane.counts.discarded += if discarded { n } else { 0 };
        // What is left of a larger batch that failed before keeps its failures.
        lane.commit(last.offset() + 1);
        self.note_committed(claim.partition, &lane);
        None
    }

    #[cold]
    fn failed(&self, claim: &Claim<T>, records: &[Record<T>], answer: Answer) -> Next {
        let (outcome, error) = answer.unwrap_or_else(|words| self.panicked(claim, records, words));
        let Some((mut failing, rest)) = self.take_failing(claim, records) else { return Next::Ready };
        let now = self.shelf.runtime.clock.now();
        match self.judge(&mut failing, outcome, error, now) {
            Fate::Again(delay) => {
                let n = failing.len() as u64;
                failing.extend(rest);
                self.try_again(claim, failing, n, now.after(delay))
            }
            Fate::Bury(reason) => {
                let letters = records.iter().zip(failing).map(|(record, failing)| letter(record, failing)).collect();
                self.bury(claim, GivenUp { letters, reason }, rest)
            }
        }
    }

    fn panicked(&self, claim: &Claim<T>, records: &[Record<T>], words: String) -> (Outcome, Option<String>) {
        self.lane(claim.partition).counts.panicked += 1;
        let (queue, message) = (self.full_name.to_string(), records[0].id());
        self.shelf.runtime.tell(|| Event::HandlerPanicked { queue, message, text: words.clone() });
        (Outcome::Retry, Some(words))
    }

    /// What is known of these records' failures, one attempt further, and of those that failed with them
    /// before; `None` after a seek.
    fn take_failing(&self, claim: &Claim<T>, records: &[Record<T>]) -> Option<(VecDeque<Failing>, VecDeque<Failing>)> {
        let mut lane = self.lane(claim.partition);
        lane.counts.delivered += records.len() as u64;
        if lane.epoch != claim.epoch {
            return None;
        }
        let mut known = std::mem::take(&mut lane.failing);
        drop(lane);
        let once_more = |record: &Record<T>| {
            let offset = record.offset();
            let again = known.iter().position(|failing| failing.offset == offset).and_then(|at| known.remove(at));
            let history = || record.history().to_vec();
            let again = again.unwrap_or_else(|| Failing { offset, attempts: 0, history: history() });
            Failing { attempts: again.attempts + 1, ..again }
        };
        Some((records.iter().map(once_more).collect(), known))
    }

    fn judge(&self, failing: &mut VecDeque<Failing>, outcome: Outcome, error: Option<String>, now: Timestamp) -> Fate {
        let (asked, rejected) = match outcome {
            Outcome::DeadLetter(words) => (None, Some(words)),
            Outcome::RetryAfter(delay) => (Some(delay), None),
            _ => (None, None),
        };
        let permanent = error.is_some();
        let words = error.or_else(|| rejected.clone()).unwrap_or_else(|| "asked for a retry".into());
        for one in failing.iter_mut() {
            Attempt { number: one.attempts, at: now.to_system_time(), error: words.clone() }.add_to(&mut one.history);
        }
        if let Some(words) = rejected {
            return Fate::Bury(if permanent { Reason::Permanent } else { Reason::Rejected(words) });
        }
        // A policy made from a function runs it in there, so only the draw is made under the lock.
        let mut chance = self.shelf.runtime.with_random(Random::fork);
        match decide(&self.settings.retry, failing[0].attempts, asked, &mut chance) {
            Decision::Again(delay) => Fate::Again(delay),
            Decision::GiveUp => Fate::Bury(Reason::Exhausted),
        }
    }

    fn try_again(&self, claim: &Claim<T>, failing: VecDeque<Failing>, n: u64, due: Timestamp) -> Next {
        let mut lane = self.lane(claim.partition);
        if lane.epoch != claim.epoch {
            return Next::Ready;
        }
        lane.failing = failing;
        lane.counts.retried += n;
        Next::RestUntil(due)
    }

    /// Goes on burying what found no room among the dead letters.
    pub(super) fn bury_again(&self, claim: &Claim<T>) -> Next {
        let mut lane = self.lane(claim.partition);
        let given_up = if lane.epoch == claim.epoch { lane.given_up.take() } else { None };
        let Some(given_up) = given_up else { return Next::Ready };
        let rest = std::mem::take(&mut lane.failing);
        drop(lane);
        self.bury(claim, given_up, rest)
    }

    /// Buries what is left in a partition that no member reads any more; whether nothing is left.
    pub(super) fn bury_rest(&self, partition: usize) -> bool {
        let epoch = self.lane(partition).epoch;
        self.bury_again(&Claim { partition, epoch, found: Found::GivenUp });
        self.lane(partition).given_up.is_none()
    }

    /// Makes dead letters of the first records of the claim, one after the other, and commits each.
    fn bury(&self, claim: &Claim<T>, mut given_up: GivenUp<T>, rest: VecDeque<Failing>) -> Next {
        while let Some((offset, message)) = given_up.letters.pop_front() {
            let now = self.shelf.runtime.clock.now();
            let name = self.full_name.clone();
            let letter = DeadLetter::of_group(message, given_up.reason.clone(), name, now);
            // Once a durable log's group has passed the record, nobody comes back to it.
            let accepted =
                if self.shelf.is_durable() { self.dead.accept_surely(letter) } else { self.dead.accept(letter) };
            if let Err(letter) = accepted {
                given_up.letters.push_front((offset, letter.into_message()));
                return self.wait_for_room(claim, given_up, rest, now.after(ROOM_AGAIN));
            }
            if !self.step_over(claim, offset) {
                return Next::Ready;
            }
        }
        // The rest has failed less often.
        let mut lane = self.lane(claim.partition);
        if lane.epoch == claim.epoch {
            lane.failing = rest;
        }
        Next::Ready
    }

    /// Commits a record that is a dead letter now; whether the claim still counts.
    fn step_over(&self, claim: &Claim<T>, offset: u64) -> bool {
        let mut lane = self.lane(claim.partition);
        lane.counts.dead_lettered += 1;
        let valid = lane.epoch == claim.epoch;
        if valid {
            lane.commit(offset + 1);
            self.note_committed(claim.partition, &lane);
        }
        valid
    }

    fn wait_for_room(&self, claim: &Claim<T>, given_up: GivenUp<T>, rest: VecDeque<Failing>, due: Timestamp) -> Next {
        let (queue, dead_letters) = (self.full_name.to_string(), self.dead.name().to_string());
        self.shelf.runtime.tell(|| Event::DeadLettersFull { queue, dead_letters });
        let mut lane = self.lane(claim.partition);
        if lane.epoch != claim.epoch {
            drop(lane);
            drop(given_up);
            return Next::Ready;
        }
        (lane.failing, lane.given_up) = (rest, Some(given_up));
        Next::RestUntil(due)
    }
}

/// A record as its dead letter shows it.
fn letter<T: Send + Sync + 'static>(record: &Record<T>, failing: Failing) -> (u64, Message<T>) {
    let mut message = record.to_message();
    message.attempt = failing.attempts;
    message.extras_mut().history = failing.history;
    (failing.offset, message)
}
