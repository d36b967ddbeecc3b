//! Refusals as the errors of each operation.

use super::{Core, Refusal};
use crate::error::{Refused, SendError, SendTimeoutError, TrySendError};
use crate::message::Message;

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn refused(&self, message: Message<T>) -> Refused<T> {
        Refused::new(message, &self.name)
    }

    pub(crate) fn deadlocked(&self, message: Message<T>) -> Refused<T> {
        self.refused(message).because("nothing else in the simulation can run")
    }

    pub(crate) fn send_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendError<T> {
        match refusal {
            Refusal::Full | Refusal::Timeout => SendError::Full(self.refused(message)),
            Refusal::Closed => SendError::Closed(self.refused(message)),
            Refusal::Deadlock => SendError::Deadlock(self.deadlocked(message)),
        }
    }

    pub(crate) fn try_send_error(&self, (message, refusal): (Message<T>, Refusal)) -> TrySendError<T> {
        match refusal {
            Refusal::Closed => TrySendError::Closed(self.refused(message)),
            _ => TrySendError::Full(self.refused(message)),
        }
    }

    pub(crate) fn send_timeout_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendTimeoutError<T> {
        match refusal {
            Refusal::Full => SendTimeoutError::Full(self.refused(message)),
            Refusal::Timeout => SendTimeoutError::Timeout(self.refused(message)),
            Refusal::Closed => SendTimeoutError::Closed(self.refused(message)),
            Refusal::Deadlock => SendTimeoutError::Deadlock(self.deadlocked(message)),
        }
    }
}
