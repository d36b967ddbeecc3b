//! Refusals as the errors of each operation.

use super::{Core, Refusal};
use crate::error::{Refused, SendError, SendTimeoutError, TrySendError};
use crate::message::Message;

impl<T: Send + Sync + 'static> Core<T> {
    pub(crate) fn refused(&self, message: Message<T>) -> Refused<T> {
        Refused::new(message, &self.name)
    }

    pub(crate) fn deadlocked(&self, message: Message<T>, why: Box<str>) -> Refused<T> {
        self.refused(message).because(why)
    }

    pub(crate) fn send_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendError<T> {
        match refusal {
            Refusal::Full | Refusal::Timeout => SendError::Full(self.refused(message)),
            Refusal::Closed => SendError::Closed(self.refused(message)),
            Refusal::Deadlock(why) => SendError::Deadlock(self.deadlocked(message, why)),
            Refusal::Panicked(words) => SendError::Panicked(self.refused(message).because(words)),
            Refusal::Limited(wait) => SendError::Limited(self.refused(message).limited(wait)),
            Refusal::Unencodable(words) => SendError::Unencodable(self.refused(message).because(words)),
            Refusal::NotStored(error) => SendError::NotStored(self.refused(message).not_stored(error)),
        }
    }

    pub(crate) fn try_send_error(&self, (message, refusal): (Message<T>, Refusal)) -> TrySendError<T> {
        match refusal {
            Refusal::Closed => TrySendError::Closed(self.refused(message)),
            Refusal::Panicked(words) => TrySendError::Panicked(self.refused(message).because(words)),
            Refusal::Limited(wait) => TrySendError::Limited(self.refused(message).limited(wait)),
            Refusal::Unencodable(words) => TrySendError::Unencodable(self.refused(message).because(words)),
            Refusal::NotStored(error) => TrySendError::NotStored(self.refused(message).not_stored(error)),
            _ => TrySendError::Full(self.refused(message)),
        }
    }

    pub(crate) fn send_timeout_error(&self, (message, refusal): (Message<T>, Refusal)) -> SendTimeoutError<T> {
        match refusal {
            Refusal::Full => SendTimeoutError::Full(self.refused(message)),
            Refusal::Timeout => SendTimeoutError::Timeout(self.refused(message)),
            Refusal::Closed => SendTimeoutError::Closed(self.refused(message)),
            Refusal::Deadlock(why) => SendTimeoutError::Deadlock(self.deadlocked(message, why)),
            Refusal::Panicked(words) => SendTimeoutError::Panicked(self.refused(message).because(words)),
            Refusal::Limited(wait) => SendTimeoutError::Limited(self.refused(message).limited(wait)),
            Refusal::Unencodable(words) => SendTimeoutError::Unencodable(self.refused(message).because(words)),
            Refusal::NotStored(error) => SendTimeoutError::NotStored(self.refused(message).not_stored(error)),
        }
    }
}
