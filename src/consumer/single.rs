//! Messages one by one.

use super::work::{Hooks, Stopwatch, Work, panicked};
use crate::breaker::Sign;
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome, contained};
use crate::queue::core::{Core, Nothing, Patience};
use crate::stats::Tally;

pub(super) struct One<T, H> {
    pub(super) handler: H,
    pub(super) hooks: Hooks<T>,
}

impl<T, H, R> Work<T> for One<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>) -> R + Send + Sync + 'static,
{
    type Hands = Stopwatch;
    type Load = Message<T>;

    #[inline]
    fn take_quickly(&self, core: &Core<T>, load: &mut Option<Message<T>>) -> bool {
        core.take_plain(load)
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
        let Some(message) = &*load else { return };
        // Kept out of the way of what nearly all of them say: an outcome is large, and slow to hand on.
        let mut said = None;
        let handled = watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    before(message);
                }
                match (self.handler)(message).into_outcome() {
                    (Outcome::Ack, _) => {}
                    otherwise => said = Some(Box::new(otherwise)),
                }
            })
        });
        if let Err(words) = handled {
            said = Some(Box::new(panicked(core, message.id(), words)));
        }
        let outcome = said.as_ref().map_or(&Outcome::Ack, |said| &said.0);
        self.hooks.after(message, outcome);
        if let Some(hear) = hear {
            hear(Sign::of(outcome));
        }
        let Some(said) = said else {
            // Too late means that it went back to its queue and was reported as left.
            let _ = core.ack(load, tally);
            return;
        };
        if let Some(mut message) = load.take() {
            let (outcome, error) = *said;
            let verdict = core.judge(&mut message, outcome, error);
            self.hooks.settle(core, message, verdict, tally);
        }
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, _: &mut Stopwatch, message: Message<T>) {
        core.restore(vec![message]);
    }
}
