//! Who is to be told, a little later, of what a commit has brought.
//!
//! To wake a thread for the first of many messages costs the writer its core, often for as long as the thread needs for
//! that one; and again for the next. So whoever sleeps is woken when there is more to do.

use crate::sync::{AtomicBool, Mutex, Ordering};
use std::sync::{Arc, Weak};

/// Somebody who may have others asleep.
pub(crate) trait Called: Send + Sync {
    /// Runs on the writer's thread.
    fn called(self: Arc<Self>);
}

#[derive(Default)]
pub(super) struct Calls {
    waiting: Mutex<Vec<Weak<dyn Called>>>,
    are_there: AtomicBool,
}

impl Calls {
    pub(super) fn add(&self, whom: Weak<dyn Called>) {
        let mut waiting = self.waiting.lock();
        waiting.push(whom);
        self.are_there.store(true, Ordering::Release);
    }

    pub(super) fn make(&self) {
        if self.are_there.load(Ordering::Acquire) {
            self.make_all();
        }
    }

    #[cold]
    fn make_all(&self) {
        let waiting = {
            let mut waiting = self.waiting.lock();
            self.are_there.store(false, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        waiting.iter().filter_map(Weak::upgrade).for_each(Called::called);
    }
}
