//! Reading by hand.

use super::core::GroupCore;
use super::record::Record;
use crate::error::LogError;
use crate::simulation::Until;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A member of a group that reads by hand: it takes records from any partition that no other member holds.
///
/// A partition stays with it as long as it has not committed all that it got from there. Once it is dropped,
/// what it has not committed goes to other members, or to its successor.
pub struct Reader<T: Send + Sync + 'static> {
    group: Arc<GroupCore<T>>,
    /// Counted from 1; 0 is none, of a group that has been removed.
    number: u64,
}

impl<T: Send + Sync + 'static> Reader<T> {
    pub(super) fn new(group: Arc<GroupCore<T>>) -> Self {
        Self { number: group.enter().unwrap_or(0), group }
    }

    /// The next record, waiting for one.
    ///
    /// # Errors
    /// [`LogError::Trimmed`] if retention has removed it (again at each call, until somebody seeks),
    /// [`LogError::Closed`] once the log is closed and read to its end, [`LogError::Removed`].
    pub fn recv(&mut self) -> Result<Record<T>, LogError> {
        self.wait(None)
    }

    /// The next record, if there is one now.
    ///
    /// # Errors
    /// [`LogError::Empty`], and as [`Reader::recv`].
    pub fn try_recv(&mut self) -> Result<Record<T>, LogError> {
        self.group.read(self.number)
    }

    /// The next record, waiting for one at most `timeout`.
    ///
    /// # Errors
    /// [`LogError::TimedOut`], and as [`Reader::recv`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Record<T>, LogError> {
        self.wait(Some(timeout))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Record<T>, LogError> {
        let runtime = &self.group.shelf.runtime;
        let deadline = timeout.map(|timeout| runtime.clock.now().after(timeout));
        if !runtime.is_simulated() {
            return self.group.read_until(self.number, deadline);
        }
        let mut found = Err(LogError::Empty);
        let end = runtime.simulate_until(deadline, || {
            found = self.group.read(self.number);
            !matches!(found, Err(LogError::Empty))
        });
        match end {
            Until::Done => found,
            Until::TimedOut => Err(LogError::TimedOut),
            Until::Standstill => Err(LogError::Deadlock),
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Reader<T> {
    fn drop(&mut self) {
        if self.number > 0 {
            self.group.leave_reader(self.number);
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("group", &self.group.full_name).finish_non_exhaustive()
    }
}
