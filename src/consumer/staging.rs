//! Messages one by one, and what their handlers publish only once they have succeeded.

use super::work::{Hooks, Stopwatch, Work, panicked};
use crate::breaker::Sign;
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome, contained, drop_contained};
use crate::queue::core::{Core, Nothing, Patience};
use crate::stats::Tally;
use crate::transaction::Transaction;

pub(super) struct Staging<T, H> {
    pub(super) handler: H,
    pub(super) hooks: Hooks<T>,
}

impl<T, H, R> Work<T> for Staging<T, H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>, &mut Transaction) -> R + Send + Sync + 'static,
{
    type Hands = Stopwatch;
    type Load = Message<T>;

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

    fn handle(
        &self,
        core: &Core<T>,
        tally: &Tally,
        watch: &mut Stopwatch,
        load: &mut Option<Message<T>>,
        hear: Option<&dyn Fn(Sign)>,
    ) {
        let Some(mut message) = load.take() else { return };
        let mut staged = Transaction::new(&core.runtime);
        let result = watch.time(&core.runtime.clock, tally, || {
            contained(|| {
                if let Some(before) = &self.hooks.before {
                    before(&message);
                }
                (self.handler)(&message, &mut staged).into_outcome()
            })
        });
        let (mut outcome, mut error) = result.unwrap_or_else(|words| panicked(core, message.id(), words));
        let mut late = false;
        if outcome == Outcome::Ack && !core.has_ended() {
            // From here on nobody takes the message away, so what is released belongs to this handling alone.
            late = core.end_lease(&mut message).is_err();
            if !late && let Err(refused) = staged.commit() {
                (outcome, error) = (Outcome::Retry, Some(refused.to_string()));
            }
        }
        self.hooks.after(&message, &outcome);
        if let Some(hear) = hear {
            hear(Sign::of(&outcome));
        }
        if late {
            return drop_contained(message);
        }
        let verdict = core.judge(&mut message, outcome, error);
        self.hooks.settle(core, message, verdict, tally);
    }

    #[cold]
    fn give_back(&self, core: &Core<T>, _: &mut Stopwatch, message: Message<T>) {
        core.restore(vec![message]);
    }
}
