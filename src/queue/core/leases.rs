//! Deliveries that are taken back if they are not settled in time.

use super::Core;
use crate::clock::Timestamp;
use crate::error::SettleError;
use crate::message::Message;
use crate::outcome::{Outcome, drop_contained};
use crate::queue::lease::{Lease, Leases};
use crate::runtime::Event;
use crate::scheduler::DelayKey;
use std::sync::{Arc, Weak};
use std::time::Duration;

impl<T: Send + Sync + 'static> Core<T> {
    /// Keeps a copy of a message that is handed out, where deliveries have a deadline.
    #[inline]
    pub(super) fn lend(&self, message: &mut Message<T>) {
        if let Some(timeout) = self.settings.ack_timeout
            && self.claims.is_none()
        {
            self.keep_copy(message, timeout);
        }
    }

    /// The same in an idempotent queue, once the message has claimed its key.
    pub(super) fn lend_claimed(&self, message: &mut Message<T>) {
        if let Some(timeout) = self.settings.ack_timeout {
            self.keep_copy(message, timeout);
        }
    }

    #[cold]
    fn keep_copy(&self, message: &mut Message<T>, timeout: Duration) {
        let copy = message.share_within_queue();
        let key = self.keep(copy, timeout);
        let queue: Weak<dyn Leases> = self.weak();
        message.extras_mut().lease = Some(Lease::new(key, queue, Arc::clone(&self.name)));
    }

    fn keep(&self, copy: Message<T>, time: Duration) -> DelayKey {
        let due = self.runtime.clock.now().after(time);
        let (key, earliest) = {
            let mut leases = self.leases.lock();
            let earliest = leases.earliest().is_none_or(|first| due < first);
            (leases.insert(due, copy), earliest)
        };
        if earliest {
            self.arm(due);
        }
        key
    }

    /// Ends the deadline of a delivery that is being settled, if it is in time.
    #[inline]
    pub(crate) fn end_lease(&self, message: &mut Message<T>) -> Result<(), SettleError> {
        if self.settings.ack_timeout.is_none() { Ok(()) } else { self.drop_copy(message) }
    }

    #[cold]
    fn drop_copy(&self, message: &mut Message<T>) -> Result<(), SettleError> {
        let Some(lease) = message.extras.as_mut().and_then(|extras| extras.lease.take()) else { return Ok(()) };
        let copy = self.leases.lock().cancel(lease.key());
        let Some(copy) = copy else {
            self.counts.late.add(1);
            self.runtime.tell(|| Event::SettledLate { queue: self.name.to_string(), message: message.id });
            return Err(SettleError::Late { queue: Arc::clone(&self.name) });
        };
        drop_contained(copy);
        Ok(())
    }

    /// Those of deliveries about to be given back that have not been taken back already.
    pub(super) fn still_lent(&self, messages: Vec<Message<T>>) -> Vec<Message<T>> {
        let in_time = messages.into_iter().filter_map(|mut message| match self.end_lease(&mut message) {
            Ok(()) => Some(message),
            Err(_) => {
                drop_contained(message);
                None
            }
        });
        in_time.collect()
    }

    /// Has everything delivered again that was not settled in time. Answers when the next deadline is.
    pub(super) fn take_back_overdue(&self, now: Timestamp) -> Option<Timestamp> {
        self.settings.ack_timeout?;
        loop {
            let (overdue, next) = {
                let mut leases = self.leases.lock();
                let overdue = leases.pop_due(now);
                (overdue, leases.earliest())
            };
            let Some(mut message) = overdue else { return next };
            self.counts.timed_out.add(1);
            let verdict = self.judge(&mut message, Outcome::Retry, Some("not settled within the ack timeout".into()));
            self.settle_otherwise(message, verdict, &self.tallies.common);
        }
    }
}

impl<T: Send + Sync + 'static> Leases for Core<T> {
    fn extend(&self, key: DelayKey, time: Duration) -> Option<DelayKey> {
        let copy = self.leases.lock().cancel(key)?;
        Some(self.keep(copy, time))
    }
}
