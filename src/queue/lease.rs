//! Deliveries that have to be settled in time.

use crate::error::SettleError;
use crate::scheduler::DelayKey;
use crate::sync::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A queue that takes deliveries back which are not settled in time.
pub(crate) trait Leases: Send + Sync {
    /// Lets a delivery count for `time` more from now; its new key, or `None` if it was taken back.
    fn extend(&self, key: DelayKey, time: Duration) -> Option<DelayKey>;
}

/// What a delivered message knows of its deadline. Its queue holds a copy that shares the payload.
pub(crate) struct Lease {
    key: Mutex<DelayKey>,
    queue: Weak<dyn Leases>,
    name: Arc<str>,
}

impl Lease {
    pub(crate) fn new(key: DelayKey, queue: Weak<dyn Leases>, name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { key: Mutex::new(key), queue, name })
    }

    pub(crate) fn key(&self) -> DelayKey {
        *self.key.lock()
    }

    pub(crate) fn extend(&self, time: Duration) -> Result<(), SettleError> {
        let mut key = self.key.lock();
        let extended = self.queue.upgrade().and_then(|queue| queue.extend(*key, time));
        *key = extended.ok_or_else(|| SettleError::Late { queue: Arc::clone(&self.name) })?;
        Ok(())
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("queue", &self.name).finish_non_exhaustive()
    }
}
