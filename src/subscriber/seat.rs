//! One subscriber's place, as it and its topic see it.

use crate::runtime::Registration;
use crate::sync::{AtomicBool, AtomicU64, Condvar, Ordering, Padded};
use std::sync::Arc;

/// What happens when a subscriber falls behind by more than its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Lag {
    /// It misses the oldest messages; its next receive reports
    /// [`Lagged`](crate::BroadcastError::Lagged) with their number and goes on with the oldest one left.
    /// The default: a slow subscriber slows nobody down.
    #[default]
    DropOldest,
    /// It is waited for: `publish` blocks and `try_publish` says full until it has taken a message, as with
    /// a full queue.
    Block,
    /// It is cut off: from its next receive on it is told
    /// [`Disconnected`](crate::BroadcastError::Disconnected), and what it had not received is gone for it.
    Disconnect,
}

/// What a subscriber wants of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replay {
    None,
    Last(usize),
    LatestByKey,
}

/// Places count the messages of the topic's ring.
pub(super) struct Seat {
    pub(super) name: Arc<str>,
    pub(super) capacity: usize,
    pub(super) lag: Lag,
    handled: bool,
    pub(super) registration: Registration,
    /// Waited on with the ring's state.
    pub(super) bell: Condvar,
    places: Padded<Places>,
}

/// Written by the subscriber, apart from what others write.
#[derive(Default)]
struct Places {
    /// Up to here it has taken, some of it ahead of receiving it; that cannot be missed any more, nor is it waited
    /// for.
    fetched: AtomicU64,
    /// Up to here its handler is through.
    done: AtomicU64,
    /// What is left of the replay by key.
    replays: AtomicU64,
    cut: AtomicBool,
}

impl Seat {
    pub(super) fn new(name: Arc<str>, capacity: usize, lag: Lag, handled: bool, registration: Registration) -> Self {
        Self { name, capacity, lag, handled, registration, bell: Condvar::new(), places: Padded::default() }
    }

    pub(super) fn begin(&self, cursor: u64, replays: usize) {
        self.places.fetched.store(cursor, Ordering::SeqCst);
        self.places.done.store(cursor, Ordering::SeqCst);
        self.places.replays.store(replays as u64, Ordering::SeqCst);
    }

    pub(super) fn is_handled(&self) -> bool {
        self.handled
    }

    pub(super) fn fetched(&self) -> u64 {
        self.places.fetched.load(Ordering::SeqCst)
    }

    /// The first place that is too far ahead of it.
    pub(super) fn limit(&self) -> u64 {
        self.fetched().saturating_add(self.capacity as u64)
    }

    /// How many messages it will never see, and has not been told so.
    pub(super) fn missing(&self, tail: u64) -> u64 {
        if self.lag != Lag::DropOldest {
            return 0;
        }
        (tail - self.fetched()).saturating_sub(self.capacity as u64)
    }

    pub(super) fn has_fetched(&self, cursor: u64) {
        self.places.fetched.store(cursor, Ordering::SeqCst);
    }

    pub(super) fn skip_to(&self, cursor: u64) {
        self.has_fetched(cursor);
        self.places.done.store(cursor, Ordering::SeqCst);
    }

    /// Sequentially consistent, as are those who look: either they see it, or whoever says so afterwards with
    /// [`Runtime::note_progress`](crate::runtime::Runtime::note_progress) sees that they wait.
    pub(super) fn has_done(&self, cursor: u64, replays: usize) {
        self.places.replays.store(replays as u64, Ordering::Release);
        self.places.done.store(cursor, Ordering::SeqCst);
    }

    /// The same amid a run, where nothing of a replay is left: whoever waits for the handler may miss it, so
    /// [`Seat::has_done`] follows.
    #[inline]
    pub(super) fn has_done_to(&self, cursor: u64) {
        self.places.done.store(cursor, Ordering::Release);
    }

    pub(super) fn done(&self) -> u64 {
        // What is left of a replay goes down while this goes up.
        self.places.done.load(Ordering::SeqCst).wrapping_sub(self.places.replays.load(Ordering::Acquire))
    }

    /// What its handler still has to do.
    pub(super) fn pending(&self, tail: u64) -> u64 {
        tail.saturating_sub(self.places.done.load(Ordering::SeqCst)) + self.places.replays.load(Ordering::Acquire)
    }

    pub(super) fn cut(&self) {
        self.places.cut.store(true, Ordering::Release);
    }

    #[inline]
    pub(super) fn is_cut(&self) -> bool {
        self.places.cut.load(Ordering::Acquire)
    }
}
