//! Messages one by one.

use super::work::{Hooks, Stopwatch, Work, panicked};
use crate::breaker::Sign;
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome, contained, drop_contained};
use crate::queue::core::{Core, Nothing, Patience};
use crate::stats::Tally;

pub(super) struct One<T, C> {
    pub(super) call: C,
    pub(super) hooks: Hooks<T>,
}

/// What a worker keeps.
#[derive(Default)]
pub(super) struct Hands {
    watch: Stopwatch,
    /// The message that was last handled keeps it busy, and counts as in flight. It is freed by the same lock by which
    /// the next is taken, since workers of an ordered queue spend their time on handing that lock to each other.
    lane: Option<u32>,
}

/// How a handler is called, and what its success brings about.
pub(super) trait Call<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What a handler leaves to be done once it has succeeded.
    type Staged;
    fn stage(&self, core: &Core<T>) -> Self::Staged;
    fn call(&self, message: &Message<T>, staged: &mut Self::Staged) -> Answer;
    /// If it was a success, does what was left to be done; what the answer is now, and whether it comes too
    /// late, since the message is another's.
    fn release(core: &Core<T>, message: &mut Message<T>, answer: Answer, staged: Self::Staged) -> (Answer, bool);
}

/// What a handler says, and the error it says it with, unless it is an ack: that is large, and slow to hand on.
pub(super) type Answer = Option<Box<(Outcome, Option<String>)>>;

#[inline]
pub(super) fn answer(said: impl IntoOutcome) -> Answer {
    match said.into_outcome() {
        (Outcome::Ack, _) => None,
        otherwise => Some(Box::new(otherwise)),
    }
}

/// A handler whose effects are its own affair.
pub(super) struct Plain<H>(pub(super) H);

impl<T, H, R> Call<T> for Plain<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>) -> R + Send + Sync + 'static,
{
    type Staged = ();

    #[inline]
    fn stage(&self, _: &Core<T>) {}

    #[inline]
    fn call(&self, message: &Message<T>, (): &mut ()) -> Answer {
        answer((self.0)(message))
    }

    #[inline]
    fn release(_: &Core<T>, _: &mut Message<T>, answer: Answer, (): ()) -> (Answer, bool) {
        (answer, false)
    }
}

impl<T: Send + Sync + 'static, C: Call<T>> Work<T> for One<T, C> {
    type Hands = Hands;
    type Load = Message<T>;

    #[inline]
    fn take_quickly(&self, core: &Core<T>, tally: &Tally, hands: &mut Hands, load: &mut Option<Message<T>>) -> bool {
        match hands.lane.take() {
            Some(lane) => core.take_next_turn(lane, tally, load),
            None => core.take_plain(load),
        }
    }

    fn tidy_up(&self, core: &Core<T>, tally: &Tally, hands: &mut Hands) {
        hands.lane.take().into_iter().for_each(|lane| core.end_turn(lane, tally));
    }

    fn take(&self, core: &Core<T>, _: &mut Hands, _: usize, go_on: impl Fn() -> bool) -> Result<Message<T>, Nothing> {
        core.take(Patience::Forever, go_on)
    }

    fn is_ready(&self, _: &Core<T>) -> bool {
        true
    }

    fn take_now(&self, core: &Core<T>, _: &mut Hands, _: usize) -> Option<Message<T>> {
        core.try_take().ok()
    }

    #[inline]
    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        hands: &mut Hands,
        load: &mut Option<Message<T>>,
        hear: Option<&dyn Fn(Sign)>,
    ) {
        let Some(message) = load.as_mut() else { return };
        let (mut answer, mut staged) = (None, self.call.stage(core));
        let handled = hands.watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    before(message);
                }
                answer = self.call.call(message, &mut staged);
            })
        });
        let (answer, late) = match handled {
            Ok(()) => C::release(core, message, answer, staged),
            Err(words) => (Some(Box::new(panicked(core, message.id(), words))), false),
        };
        let outcome = answer.as_ref().map_or(&Outcome::Ack, |answer| &answer.0);
        self.hooks.after(message, outcome);
        if let Some(hear) = hear {
            hear(Sign::of(outcome));
        }
        if late {
            load.take().into_iter().for_each(drop_contained);
            return;
        }
        let Some(answer) = answer else {
            hands.lane = core.ack_in_turn(load, tally);
            return;
        };
        if let Some(mut message) = load.take() {
            let (outcome, error) = *answer;
            let verdict = core.judge(&mut message, outcome, error);
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, _: &mut Hands, message: Message<T>) {
        core.restore(vec![message]);
    }
}
