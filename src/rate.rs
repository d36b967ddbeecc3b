//! How many per unit of time.

use std::time::Duration;

/// So many a second (or minute), at most so many at once.
///
/// Whoever takes a rate checks it: a rate that is not a positive, finite number and a burst of 0 are
/// errors of that call.
///
/// ```
/// use postroom::Rate;
///
/// let rate = Rate::per_second(500).burst(50);
/// assert_eq!(rate.to_string(), "500/s, bursts of 50");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    per_second: f64,
    burst: u32,
}

impl Rate {
    /// This many every second, one at a time.
    #[must_use]
    pub fn per_second(n: impl Into<f64>) -> Self {
        Self { per_second: n.into(), burst: 1 }
    }

    /// This many every minute, one at a time.
    #[must_use]
    pub fn per_minute(n: impl Into<f64>) -> Self {
        Self::per_second(n.into() / 60.0)
    }

    /// Lets up to this many pass at once after a quiet time. Default 1.
    #[must_use]
    pub fn burst(self, n: u32) -> Self {
        Self { burst: n, ..self }
    }

    /// Itself, or what is wrong with it.
    pub(crate) fn checked(&self) -> Result<Self, String> {
        if !self.per_second.is_finite() || self.per_second <= 0.0 {
            return Err(format!("rate of {} a second: must be a positive, finite number", self.per_second));
        }
        if self.burst == 0 {
            return Err("rate with a burst of 0 lets nothing pass: at least 1".into());
        }
        Ok(*self)
    }

    /// Between two that pass evenly.
    pub(crate) fn interval(&self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::MAX)
    }

    pub(crate) fn burst_size(&self) -> u64 {
        u64::from(self.burst)
    }

    /// How long after the start the `n`-th (counted from 0) may pass, when all are waiting.
    pub(crate) fn time_for(&self, n: u64) -> Duration {
        let after_burst = n.saturating_sub(u64::from(self.burst) - 1);
        Duration::try_from_secs_f64(after_burst as f64 / self.per_second).unwrap_or(Duration::MAX)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/s", self.per_second)?;
        if self.burst > 1 {
            write!(f, ", bursts of {}", self.burst)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_name() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Rate::per_second(rate).checked().unwrap_err().contains("rate of"), "{rate}");
        }
        assert!(Rate::per_second(1).burst(0).checked().unwrap_err().contains("burst of 0"));
        assert!(Rate::per_minute(1).checked().is_ok());
    }

    #[test]
    fn the_burst_passes_at_once_and_the_rest_evenly() {
        let rate = Rate::per_second(10).burst(3);
        let times: Vec<_> = (0..5).map(|n| rate.time_for(n).as_millis()).collect();
        assert_eq!(times, [0, 0, 0, 100, 200]);
        assert_eq!(Rate::per_second(f64::MIN_POSITIVE).time_for(u64::MAX), Duration::MAX);
    }
}
