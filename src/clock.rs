//! The only reader of time.
//!
//! A broker's timeline is the wall clock at its start plus what the monotonic clock has counted since, so
//! a system clock that is set back or forward moves no deadline. A [`ManualClock`] replaces it in tests.

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on a broker's timeline, in nanoseconds since the UNIX epoch (enough until the year 2554).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Timestamp(pub(crate) u64);

impl Timestamp {
    pub(crate) const MAX: Self = Self(u64::MAX);

    #[inline]
    pub(crate) fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(nanos(delay)))
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0)
    }

    pub(crate) fn from_system_time(time: SystemTime) -> Self {
        Self(nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

#[inline]
fn nanos(d: Duration) -> u64 {
    d.as_secs()
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(d.subsec_nanos().into()))
        .unwrap_or(u64::MAX)
}

/// Wakes whoever waits for time to pass when a manual clock is moved.
pub(crate) trait OnAdvance: Send + Sync {
    fn advanced(&self);
}

/// A clock that stands still until it is told to move. Clones share one time.
///
/// ```
/// use postroom::{Broker, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let _broker = Broker::builder().clock(clock.clone()).build()?;
/// let before = clock.now();
/// clock.advance(Duration::from_secs(3600));
/// assert_eq!(clock.now().duration_since(before).unwrap(), Duration::from_secs(3600));
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Clone)]
pub struct ManualClock {
    inner: Arc<ManualInner>,
}

struct ManualInner {
    now: AtomicU64,
    listeners: Mutex<Vec<Weak<dyn OnAdvance>>>,
}

impl ManualClock {
    /// A clock standing at 2025-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(UNIX_EPOCH + Duration::from_secs(1_735_689_600))
    }

    /// A clock standing at `time`; a time before 1970 counts as 1970.
    #[must_use]
    pub fn starting_at(time: SystemTime) -> Self {
        let now = AtomicU64::new(Timestamp::from_system_time(time).0);
        Self { inner: Arc::new(ManualInner { now, listeners: Mutex::new(Vec::new()) }) }
    }

    /// The time it stands at.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.timestamp().to_system_time()
    }

    /// Moves the time forward and wakes everything that waits for it. With threads, what became due is
    /// handled by them after this call returns; under a simulation call `Simulation::advance` instead.
    pub fn advance(&self, by: Duration) {
        self.move_to(self.timestamp().after(by));
    }

    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp(self.inner.now.load(Ordering::SeqCst))
    }

    /// Never moves back.
    pub(crate) fn move_to(&self, time: Timestamp) {
        self.inner.now.fetch_max(time.0, Ordering::SeqCst);
        let listeners: Vec<_> = {
            let mut listeners = self.inner.listeners.lock();
            listeners.retain(|l| l.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        listeners.iter().for_each(|l| l.advanced());
    }

    fn listen(&self, listener: Weak<dyn OnAdvance>) {
        self.inner.listeners.lock().push(listener);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManualClock").field("now", &self.now()).finish()
    }
}

/// What a broker reads the time from.
pub(crate) enum Clock {
    System(SystemClock),
    Manual(ManualClock),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self::System(SystemClock::new())
    }

    /// The exact time; about 20 ns on the system clock.
    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Self::System(clock) => clock.now(),
            Self::Manual(clock) => clock.timestamp(),
        }
    }

    /// A recent time for stamps: at most a tick behind while a ticker runs, exact otherwise.
    /// `true` says that it is asked often enough for a ticker to pay.
    #[inline]
    pub(crate) fn recent(&self) -> (Timestamp, bool) {
        match self {
            Self::System(clock) => clock.recent(),
            Self::Manual(clock) => (clock.timestamp(), false),
        }
    }

    /// The timeline's point at which the wall clock, as it stands now, will show `time`.
    pub(crate) fn timestamp_of(&self, time: SystemTime) -> Timestamp {
        match self {
            Self::System(clock) => clock.now().after(time.duration_since(SystemTime::now()).unwrap_or_default()),
            Self::Manual(_) => Timestamp::from_system_time(time),
        }
    }

    /// The instant at which a blocked thread has to wake for `deadline`; `None` on a manual clock, where
    /// the scheduler wakes it.
    pub(crate) fn instant_of(&self, deadline: Timestamp) -> Option<Instant> {
        match self {
            Self::System(clock) => clock.instant_of(deadline),
            Self::Manual(_) => None,
        }
    }

    pub(crate) fn is_manual(&self) -> bool {
        matches!(self, Self::Manual(_))
    }

    pub(crate) fn listen(&self, listener: Weak<dyn OnAdvance>) {
        if let Self::Manual(clock) = self {
            clock.listen(listener);
        }
    }
}

/// The wall clock at start plus the monotonic time since, and a cached reading of it.
///
/// A real reading in the publish path costs more than itself: the queue behind it runs empty and every
/// message pays a trip between cores. So while many stamps are asked for, the scheduler thread refreshes a
/// cached reading every [`SystemClock::TICK`], and stops once nobody asks.
pub(crate) struct SystemClock {
    origin: Instant,
    origin_time: Timestamp,
    cached: AtomicU64,
    ticking: AtomicBool,
    asked: AtomicBool,
    exact_reads: AtomicU64,
}

impl SystemClock {
    pub(crate) const TICK: Duration = Duration::from_millis(1);
    /// Exact readings before a ticker is worth its wake-ups.
    const PATIENCE: u64 = 256;

    fn new() -> Self {
        // In this order: whatever comes in between, its time is not ahead of the system's.
        let origin_time = Timestamp::from_system_time(SystemTime::now());
        Self {
            origin: Instant::now(),
            origin_time,
            cached: AtomicU64::new(0),
            ticking: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            exact_reads: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Timestamp {
        self.origin_time.after(self.origin.elapsed())
    }

    #[inline]
    fn recent(&self) -> (Timestamp, bool) {
        if self.ticking.load(Ordering::Relaxed) {
            if !self.asked.load(Ordering::Relaxed) {
                self.asked.store(true, Ordering::Relaxed);
            }
            return (Timestamp(self.cached.load(Ordering::Relaxed)), false);
        }
        let reads = self.exact_reads.fetch_add(1, Ordering::Relaxed) + 1;
        (self.now(), reads.is_multiple_of(Self::PATIENCE))
    }

    /// Refreshes the cached reading; called by the ticking thread alone.
    pub(crate) fn tick(&self) {
        self.cached.store(self.now().0, Ordering::Relaxed);
        self.ticking.store(true, Ordering::Relaxed);
    }

    /// Whether anybody asked since the last call.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn stop_ticking(&self) {
        self.ticking.store(false, Ordering::Relaxed);
    }

    fn instant_of(&self, deadline: Timestamp) -> Option<Instant> {
        let ahead = Duration::from_nanos(deadline.0.saturating_sub(self.origin_time.0));
        self.origin.checked_add(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_never_moves_back() {
        let clock = ManualClock::new();
        let start = clock.timestamp();
        clock.move_to(start.after(Duration::from_secs(5)));
        clock.move_to(start);
        assert_eq!(clock.timestamp().since(start), Duration::from_secs(5));
    }

    #[test]
    fn timestamps_saturate_instead_of_wrapping() {
        assert_eq!(Timestamp(1).after(Duration::MAX), Timestamp::MAX);
        assert_eq!(Timestamp(1).since(Timestamp(2)), Duration::ZERO);
    }

    #[test]
    fn stamps_are_exact_until_a_ticker_runs_and_again_after_it() {
        let clock = SystemClock::new();
        let before = clock.now();
        assert!(clock.recent().0 >= before);
        clock.tick();
        let cached = clock.recent().0;
        assert_eq!(clock.recent().0, cached);
        assert!(clock.was_asked());
        clock.stop_ticking();
        assert!(clock.recent().0 >= cached);
    }

    #[test]
    fn frequent_exact_reads_ask_for_a_ticker() {
        let clock = SystemClock::new();
        let asked = (0..SystemClock::PATIENCE).filter(|_| clock.recent().1).count();
        assert_eq!(asked, 1);
    }
}
