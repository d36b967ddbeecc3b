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

/// How a handler is called, and what its success brings about.
pub(super) trait Call<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What a handler leaves to be done once it has succeeded.
    type Staged;
    fn stage(&self, core: &Core<T>) -> Self::Staged;
    /// What is staged goes in and comes out by value, so that having nothing staged costs nothing.
    fn call(&self, message: &Message<T>, staged: Self::Staged) -> (Answer, Self::Staged);
    /// If it was a success, does what was left to be done; what the answer is now, and whether it comes too
    /// late, since the message is another's.
    fn release(core: &Core<T>, message: &mut Message<T>, answer: Answer, staged: Self::Staged) -> (Answer, bool);
}

/// What a handler says, and the error it says it with.
pub(super) type Answer = (Outcome, Option<String>);

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
    fn call(&self, message: &Message<T>, (): ()) -> (Answer, ()) {
        ((self.0)(message).into_outcome(), ())
    }

    #[inline]
    fn release(_: &Core<T>, _: &mut Message<T>, answer: Answer, (): ()) -> (Answer, bool) {
        (answer, false)
    }
}

impl<T: Send + Sync + 'static, C: Call<T>> Work<T> for One<T, C> {
    type Hands = Stopwatch;
    type Load = Message<T>;

    #[inline]
    fn take_quickly(&self, core: &Core<T>) -> Option<Message<T>> {
        core.take_plain()
    }

    fn take(
        &self,
        core: &Core<T>,
        _: &mut Stopwatch,
        _: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<Message<T>, Nothing> {
        core.take(Patience::Forever, go_on)
    }

    fn is_ready(&self, _: &Core<T>) -> bool {
        true
    }

    fn take_now(&self, core: &Core<T>, _: &mut Stopwatch, _: usize) -> Option<Message<T>> {
        core.try_take().ok()
    }

    #[inline]
    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        watch: &mut Stopwatch,
        load: &mut Option<Message<T>>,
        hear: Option<&dyn Fn(Sign)>,
    ) {
        let Some(message) = load.as_mut() else { return };
        let (read, staged) = (&*message, self.call.stage(core));
        let result = watch.time(&core.runtime.clock, tally, move || {
            contained(move || {
                if let Some(before) = &self.hooks.before {
                    before(read);
                }
                self.call.call(read, staged)
            })
        });
        let ((outcome, error), late) = match result {
            Ok((answer, staged)) => C::release(core, message, answer, staged),
            Err(words) => (panicked(core, message.id(), words), false),
        };
        self.hooks.after(message, &outcome);
        if let Some(hear) = hear {
            hear(Sign::of(&outcome));
        }
        if late {
            load.take().into_iter().for_each(drop_contained);
        } else if outcome == Outcome::Ack {
            // Too late means that it went back to its queue and was reported as left.
            let _ = core.ack(load, tally);
        } else if let Some(mut message) = load.take() {
            let verdict = core.judge(&mut message, outcome, error);
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, _: &mut Stopwatch, message: Message<T>) {
        core.restore(vec![message]);
    }
}
