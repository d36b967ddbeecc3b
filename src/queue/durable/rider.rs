//! A change of the file that belongs to a message: it rides in the commit that writes the message for durable queues.

use super::depot::Depot;
use crate::store::Batch;
use crate::sync::Mutex;
use std::fmt;
use std::sync::Arc;

/// Deletes a half message that is published, or notes that a schedule has fired. Clones of a message have none: it is
/// done once.
#[derive(Default)]
pub(crate) struct Rider(Option<Arc<Change>>);

struct Change {
    depot: Arc<Depot>,
    /// `None` once a commit does it, or has tried to.
    batch: Mutex<Option<Batch>>,
}

impl Rider {
    pub(crate) fn new(depot: &Arc<Depot>, batch: Batch) -> Self {
        Self(Some(Arc::new(Change { depot: Arc::clone(depot), batch: Mutex::new(Some(batch)) })))
    }

    /// For the message; this one stays to see to the [end](Self::end).
    pub(crate) fn for_message(&self) -> Self {
        Self(self.0.clone())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Does it in this batch, if that is for the same file.
    pub(super) fn join(self, batch: Batch, depot: &Arc<Depot>) -> Batch {
        let Some(change) = self.0.filter(|change| Arc::ptr_eq(&change.depot, depot)) else { return batch };
        let mine = change.batch.lock().take();
        match mine {
            Some(mine) => batch.and(mine),
            None => batch,
        }
    }

    /// Does this as well.
    pub(crate) fn add(&self, batch: Batch) {
        let Some(change) = &self.0 else { return };
        let mut mine = change.batch.lock();
        *mine = Some(mine.take().unwrap_or_default().and(batch));
    }

    /// The message is not published after all.
    pub(crate) fn revoke(self) {
        self.0.iter().for_each(|change| drop(change.batch.lock().take()));
    }

    /// The message is where it belongs. If that is no durable queue, the change is made now, behind whatever was
    /// written for the message.
    pub(crate) fn end(self) {
        let Some(change) = self.0 else { return };
        let mine = change.batch.lock().take();
        mine.into_iter().for_each(|mine| change.depot.note(mine));
    }
}

impl Clone for Rider {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl fmt::Debug for Rider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rider").field(&self.is_some()).finish()
    }
}
