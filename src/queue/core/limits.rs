//! Rates: how fast messages may come in and go out, and how fast they do.

use super::{Core, Intake, Nothing, Refusal, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::throttle::{KeyThrottles, Throttle};
use crate::rate::Rate;
use std::time::Duration;

/// How fast the queue was seen to be served.
#[derive(Default)]
pub(super) struct ServiceRate {
    /// The latest look: when, and how many messages had left for good by then.
    seen: Option<(Timestamp, u64)>,
    per_second: Option<f64>,
}

impl ServiceRate {
    /// A look this long after another measures anew; a sooner one relies on that.
    const WINDOW: Duration = Duration::from_millis(100);

    fn look(&mut self, now: Timestamp, left: u64) -> Option<f64> {
        let Some((then, had_left)) = self.seen else {
            self.seen = Some((now, left));
            return None;
        };
        let passed = now.since(then);
        if passed >= Self::WINDOW {
            self.per_second = Some(left.saturating_sub(had_left) as f64 / passed.as_secs_f64());
            self.seen = Some((now, left));
        }
        self.per_second
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Lets one message in if the admission limit allows it.
    #[cold]
    pub(super) fn admit(&self, intake: &mut Intake<T>) -> Result<(), Refusal> {
        let Some(admission) = &mut intake.admission else { return Ok(()) };
        admission.try_pass(self.runtime.clock.now()).map_err(Refusal::Limited)
    }

    /// The same for a message that a full queue takes in its own way.
    pub(super) fn admit_overflow(&self) -> Result<(), Refusal> {
        if self.settings.overflow.refuses() { Ok(()) } else { self.admit(&mut self.intake.lock()) }
    }

    /// Whether the consumption limit lets one message go now.
    pub(super) fn may_go(&self, intake: &Intake<T>) -> Result<(), Nothing> {
        let Some(pace) = &intake.pace else { return Ok(()) };
        let at = pace.free_at();
        if at <= self.runtime.clock.now() { Ok(()) } else { Err(Nothing::NotBefore(at)) }
    }

    pub(super) fn count_gone(&self, intake: &mut Intake<T>) {
        if let Some(pace) = &mut intake.pace {
            pace.pass(self.runtime.clock.now());
        }
    }

    /// Under a limit per key: when this message may go, if not now.
    pub(super) fn held_by_key(&self, intake: &mut Intake<T>, message: &mut Message<T>) -> Option<Timestamp> {
        let keys = intake.key_pace.as_mut()?;
        if let Some(extras) = message.extras.as_mut().filter(|extras| extras.paced) {
            // It goes now; should it come back, it has to wait again.
            extras.paced = false;
            return None;
        }
        let now = self.runtime.clock.now();
        let at = keys.book(message.key()?, now);
        if at <= now {
            return None;
        }
        message.extras_mut().paced = true;
        Some(at)
    }

    pub(crate) fn set_rate_limit(&self, rate: Option<Rate>) {
        let mut intake = self.intake.lock();
        intake.pace = Throttle::changed(intake.pace, rate, self.runtime.clock.now());
        self.note_aside(&intake);
        drop(intake);
        self.wake_everyone();
    }

    pub(crate) fn set_rate_limit_per_key(&self, rate: Option<Rate>) {
        let mut delayed = self.delayed.lock();
        let mut outlet = self.outlet.lock();
        let mut intake = self.intake.lock();
        let before = intake.key_pace.take();
        intake.key_pace = rate.map(|rate| KeyThrottles::changed(before, &rate, self.runtime.clock.now()));
        // Who waits by the old rate waits by the new one, so that nobody of the same key overtakes.
        for waiting in delayed.take_where(|waiting| matches!(waiting, Waiting::Paced(_))) {
            let Waiting::Paced(mut message) = waiting else { unreachable!("asked for no other") };
            message.extras_mut().paced = false;
            self.put_urgently(&mut outlet, &mut intake, *message);
        }
        self.note_aside(&intake);
        drop((delayed, outlet, intake));
        self.wake_everyone();
    }

    pub(crate) fn set_admission(&self, rate: Option<Rate>) {
        let mut intake = self.intake.lock();
        intake.admission = Throttle::changed(intake.admission, rate, self.runtime.clock.now());
    }

    pub(crate) fn estimated_wait(&self) -> Option<Duration> {
        let now = self.runtime.clock.now();
        let (ready, left) = {
            let (outlet, intake) = self.counted_sides();
            (intake.entered - outlet.left, outlet.delivered)
        };
        let per_second = self.service.lock().look(now, left)?;
        if ready == 0 {
            return Some(Duration::ZERO);
        }
        Duration::try_from_secs_f64(ready as f64 / per_second).ok()
    }
}
