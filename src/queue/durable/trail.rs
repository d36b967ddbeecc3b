//! A message that is published out of the file: the commit that puts it into durable queues deletes it where it was.

use super::depot::Depot;
use crate::store::{Batch, Seq, StreamId};
use crate::sync::{AtomicBool, Ordering};
use std::fmt;
use std::sync::Arc;

/// Leads from a message to where it is in the file. Clones of a message have none: it is deleted once.
#[derive(Default)]
pub(crate) struct Trail(Option<Arc<Start>>);

struct Start {
    depot: Arc<Depot>,
    stream: StreamId,
    place: Seq,
    /// A commit deletes it, or has tried to.
    taken: AtomicBool,
}

impl Trail {
    pub(crate) fn from(depot: &Arc<Depot>, stream: StreamId, place: Seq) -> Self {
        let start = Start { depot: Arc::clone(depot), stream, place, taken: AtomicBool::new(false) };
        Self(Some(Arc::new(start)))
    }

    /// For the message; this one tells what became of it.
    pub(crate) fn for_message(&self) -> Self {
        Self(self.0.clone())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Deletes it in this batch, if that is for the same file.
    pub(super) fn end_in(self, batch: Batch, depot: &Arc<Depot>) -> Batch {
        match self.0 {
            Some(start) if Arc::ptr_eq(&start.depot, depot) && !start.taken.swap(true, Ordering::SeqCst) => {
                batch.delete(start.stream, start.place)
            }
            _ => batch,
        }
    }

    /// It has been published. If it went where no file is, it is deleted now, behind whatever was written for it.
    pub(crate) fn end(self) {
        if let Some(start) = self.0
            && !start.taken.swap(true, Ordering::SeqCst)
        {
            start.depot.note(Batch::new().delete(start.stream, start.place));
        }
    }
}

impl Clone for Trail {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trail").field(&self.0.as_ref().map(|start| start.place)).finish()
    }
}
