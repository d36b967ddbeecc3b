//! Messages in batches.

use super::work::{Hooks, Stopwatch, Work, panicked};
use crate::breaker::Sign;
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome, contained};
use crate::queue::core::{Core, Nothing, Patience, Portion};
use crate::queue::fifo::Chunk;
use crate::stats::Tally;
use std::time::Duration;

pub(super) struct Many<T, H> {
    pub(super) handler: H,
    pub(super) hooks: Hooks<T>,
    pub(super) max: usize,
    pub(super) linger: Duration,
}

impl<T, H, R> Many<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
{
    /// Whoever waits for more takes what there is first.
    fn portion(&self) -> Portion {
        if self.linger.is_zero() { Portion::Whole } else { Portion::Full }
    }

    /// Waits for the batch to fill up, at most for `linger` after its first message.
    pub(super) fn linger(&self, core: &Core<T>, batch: &mut Chunk<Message<T>>, max: usize, go_on: &impl Fn() -> bool) {
        if self.linger.is_zero() {
            return;
        }
        let patience = Patience::Until(core.runtime.clock.now().after(self.linger));
        let go_on = || go_on() && !core.is_draining();
        let mut more = Chunk::new();
        while batch.len() < max && core.wait_for_message(patience, &go_on).is_ok() {
            if core.try_take_batch(max - batch.len(), &mut more, Portion::Full).is_ok() {
                batch.append(&mut more);
            }
        }
    }
}

pub(super) struct BatchHands<T> {
    pub(super) batch: Chunk<Message<T>>,
    pub(super) watch: Stopwatch,
}

impl<T> Default for BatchHands<T> {
    fn default() -> Self {
        Self { batch: Chunk::new(), watch: Stopwatch::default() }
    }
}

impl<T, H, R> Work<T> for Many<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Message<T>]) -> R + Send + Sync + 'static,
{
    type Hands = BatchHands<T>;
    type Load = ();

    fn take(
        &self,
        core: &Core<T>,
        hands: &mut BatchHands<T>,
        limit: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Nothing> {
        let max = self.max.min(limit);
        core.take_batch(max, &mut hands.batch, self.portion(), Patience::Forever, &go_on)?;
        self.linger(core, &mut hands.batch, max, &go_on);
        Ok(())
    }

    /// A simulated worker does not wait for its batch to fill: it takes a full one at once, a partial one
    /// when the oldest message has waited for as long as a thread would linger.
    fn is_ready(&self, core: &Core<T>) -> bool {
        core.ready() >= self.max as u64 || core.has_lingered(self.linger)
    }

    fn take_now(&self, core: &Core<T>, hands: &mut BatchHands<T>, limit: usize) -> Option<()> {
        core.try_take_batch(self.max.min(limit), &mut hands.batch, self.portion()).ok()
    }

    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut BatchHands<T>,
        _: &mut Option<()>,
        hear: Option<&dyn Fn(Sign)>,
    ) {
        let batch = &mut hands.batch;
        let messages: &[Message<T>] = batch.make_contiguous();
        let result = hands.watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    messages.iter().for_each(before);
                }
                (self.handler)(messages).into_outcome()
            })
        });
        let (outcome, error) = result.unwrap_or_else(|words| panicked(core, messages[0].id(), words));
        messages.iter().for_each(|message| self.hooks.after(message, &outcome));
        if let Some(hear) = hear {
            hear(Sign::of(&outcome));
        }
        if outcome == Outcome::Ack && core.ack_all(batch, tally).is_ok() {
            return;
        }
        for mut message in batch.drain(..) {
            let verdict = core.judge(&mut message, outcome.clone(), error.clone());
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, hands: &mut BatchHands<T>, (): ()) {
        core.restore(hands.batch.drain(..).collect());
    }
}
