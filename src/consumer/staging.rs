//! Handlers that publish only once they have succeeded.

use super::single::{Answer, Call, answer};
use crate::message::Message;
use crate::outcome::{IntoOutcome, Outcome};
use crate::queue::core::Core;
use crate::transaction::Transaction;

pub(super) struct Staging<H>(pub(super) H);

impl<T, H, R> Call<T> for Staging<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Message<T>, &mut Transaction) -> R + Send + Sync + 'static,
{
    type Staged = Transaction;

    fn stage(&self, core: &Core<T>) -> Transaction {
        Transaction::new(&core.runtime)
    }

    fn call(&self, message: &Message<T>, staged: &mut Transaction) -> Answer {
        answer((self.0)(message, staged))
    }

    fn release(core: &Core<T>, message: &mut Message<T>, answer: Answer, staged: Transaction) -> (Answer, bool) {
        // Once it was reported as left it goes back to its queue.
        if answer.is_some() || core.has_ended() {
            return (answer, false);
        }
        // From here on nobody takes the message away, so what is released belongs to this handling alone.
        if core.end_lease(message).is_err() {
            return (answer, true);
        }
        match staged.commit() {
            Ok(()) => (answer, false),
            Err(refused) => (Some(Box::new((Outcome::Retry, Some(refused.to_string())))), false),
        }
    }
}
