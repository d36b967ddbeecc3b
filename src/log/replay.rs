//! Where a group begins, and how fast it goes.

use std::fmt;
use std::time::{Duration, SystemTime};

/// Where a group of a log begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record that is still there.
    Earliest,
    /// After what is there: only what is appended from now on.
    Latest,
    /// At this offset, in every partition.
    Offset(u64),
    /// At the first record that was published at this time or later.
    Time(SystemTime),
}

/// How fast a group is given its records. Default: as fast as it takes them.
///
/// ```
/// use postroom::{Broker, Log, Record, Replay, Start};
/// use std::time::Duration;
///
/// let (broker, simulation) = Broker::simulated(1);
/// let ticks: Log<u32> = broker.log("ticks").declare()?;
/// ticks.append(1).unwrap();
/// simulation.advance(Duration::from_secs(60));
/// ticks.append(2).unwrap();
///
/// let again = ticks.group("again").replay(Replay::original_pace(2.0)).start(Start::Earliest)?;
/// again.consumer().start(|_: &Record<u32>| ())?;
/// simulation.run_until_idle();
/// assert_eq!(again.lag(), 1); // the second came a minute later, so it comes in half a minute
/// simulation.advance(Duration::from_secs(30));
/// assert_eq!(again.lag(), 0);
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct Replay {
    factor: Option<f64>,
}

impl Replay {
    /// As fast as its consumers take them.
    pub fn as_fast_as_possible() -> Self {
        Self { factor: None }
    }

    /// At the distances in time at which they were published, divided by `factor`: 1 is the original pace, 2
    /// twice as fast. The clock starts with the first record handed out, and again after a seek. Records that
    /// are appended meanwhile keep their distance too; with a factor above 1 the group catches up with them.
    /// Batches have one record then.
    pub fn original_pace(factor: f64) -> Self {
        Self { factor: Some(factor) }
    }

    pub(crate) fn problem(self) -> Option<String> {
        let factor = self.factor.filter(|factor| !factor.is_finite() || *factor <= 0.0)?;
        Some(format!("replay: original_pace({factor}): must be finite and above 0"))
    }

    pub(crate) fn is_paced(self) -> bool {
        self.factor.is_some()
    }

    /// How long after the first record one is due that was published `later`.
    pub(crate) fn stretched(self, later: Duration) -> Duration {
        let Some(factor) = self.factor else { return Duration::ZERO };
        Duration::try_from_secs_f64(later.as_secs_f64() / factor).unwrap_or(Duration::MAX)
    }
}

impl Default for Replay {
    fn default() -> Self {
        Self::as_fast_as_possible()
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.factor {
            None => f.write_str("as fast as possible"),
            Some(factor) => write!(f, "{factor} times the original pace"),
        }
    }
}
