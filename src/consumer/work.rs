//! What every kind of handling has in common.

use crate::breaker::Sign;
use crate::clock::Clock;
use crate::dead_letter::Reason;
use crate::delivery::Verdict;
use crate::message::{Message, MessageId};
use crate::outcome::{Outcome, contained};
use crate::queue::core::{Core, Nothing};
use crate::runtime::Event;
use crate::stats::Tally;
use std::time::Duration;

pub(super) type Hook<T> = Box<dyn Fn(&Message<T>) + Send + Sync>;
pub(super) type AfterHook<T> = Box<dyn Fn(&Message<T>, &Outcome) + Send + Sync>;
pub(super) type GiveUpHook<T> = Box<dyn Fn(&Message<T>, &Reason) + Send + Sync>;

pub(super) struct Hooks<T> {
    pub(super) before: Option<Hook<T>>,
    pub(super) after: Option<AfterHook<T>>,
    pub(super) on_give_up: Option<GiveUpHook<T>>,
}

/// How messages are taken and handled: one by one or in batches.
pub(super) trait Work<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What a worker keeps from one handling to the next.
    type Hands: Default;
    /// What was taken, as far as it is not in the hands.
    type Load;
    /// Takes what is there in the common case, along with what the handling before has left to do; `false` says
    /// nothing, [`Work::take`] follows.
    #[inline]
    fn take_quickly(&self, _: &Core<T>, _: &Tally, _: &mut Self::Hands, _: &mut Option<Self::Load>) -> bool {
        false
    }
    /// Does what a handling has left to do, for a worker that may not take anything now.
    fn tidy_up(&self, _: &Core<T>, _: &Tally, _: &mut Self::Hands) {}
    /// Waits for something to handle: at most `limit` messages.
    fn take(
        &self,
        core: &Core<T>,
        hands: &mut Self::Hands,
        limit: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<Self::Load, Nothing>;
    /// Whether a simulated worker should handle what is there now.
    fn is_ready(&self, core: &Core<T>) -> bool;
    /// Takes what is there now.
    fn take_now(&self, core: &Core<T>, hands: &mut Self::Hands, limit: usize) -> Option<Self::Load>;
    /// Handles what was taken and settles it, which empties `load`. Before it is settled, `hear` is told what
    /// it says.
    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut Self::Hands,
        load: &mut Option<Self::Load>,
        hear: Option<&dyn Fn(Sign)>,
    );
    /// Puts what was taken back as if it had not been.
    fn give_back(&self, core: &Core<T>, hands: &mut Self::Hands, load: Self::Load);
}

/// Times handlings: all of slow ones, one in sixteen of those below a microsecond, where two readings of
/// the clock would cost more than the handling.
#[derive(Default)]
pub(super) struct Stopwatch {
    pub(super) skip: u32,
}

impl Stopwatch {
    const SKIP: u32 = 15;

    #[inline]
    pub(super) fn time<R>(&mut self, clock: &Clock, tally: &Tally, work: impl FnOnce() -> R) -> R {
        if self.skip > 0 {
            self.skip -= 1;
            return work();
        }
        let start = clock.now();
        let result = work();
        let took = clock.now().since(start);
        let quick = took < Duration::from_micros(1);
        self.skip = if quick { Self::SKIP } else { 0 };
        tally.handling.record(took, if quick { u64::from(Self::SKIP) + 1 } else { 1 });
        result
    }
}

#[cold]
pub(super) fn panicked<T: Send + Sync + 'static>(
    core: &Core<T>,
    message: MessageId,
    text: String,
) -> (Outcome, Option<String>) {
    core.counts.panicked.add(1);
    core.runtime.tell(|| Event::HandlerPanicked { queue: core.name.to_string(), message, text: text.clone() });
    (Outcome::Retry, Some(text))
}

impl<T: Send + Sync + 'static> Hooks<T> {
    #[inline]
    pub(super) fn after(&self, message: &Message<T>, outcome: &Outcome) {
        if let Some(after) = &self.after {
            let _ = contained(|| after(message, outcome));
        }
    }

    #[cold]
    pub(super) fn settle(&self, core: &Core<T>, message: Message<T>, verdict: Verdict, tally: &Tally) {
        if let (Some(hook), Verdict::Bury(reason)) = (&self.on_give_up, &verdict) {
            let _ = contained(|| hook(&message, reason));
        }
        // Too late means that it went back to its queue and was reported as left.
        let _ = core.settle(message, verdict, tally);
    }
}
