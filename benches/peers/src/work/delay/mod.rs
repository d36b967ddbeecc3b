//! So many messages, each due at a random time within the next hour: all put in, then the hour passes and all
//! come out, in the order they are due.

use std::time::{Duration, Instant};

use super::Tally;

pub mod delay_queue;
pub mod heap_slab;
pub mod postroom;

pub const HOUR: Duration = Duration::from_secs(3600);

/// Nanoseconds for each message: putting in, taking out.
pub type Costs = Result<Vec<f64>, String>;

/// When a message is due, spread evenly over the hour.
pub fn delay(number: u64) -> Duration {
    // Fibonacci hashing: neighbours get far apart.
    let spread = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Duration::from_nanos(((u128::from(spread) * HOUR.as_nanos()) >> 64) as u64)
}

/// What came out, and whether it was in order.
pub struct Fired {
    tally: Tally,
    latest: Duration,
    in_order: bool,
    /// Contestants round what is due up to this.
    grain: Duration,
}

impl Fired {
    pub fn to_the(grain: Duration) -> Fired {
        Fired { tally: Tally::default(), latest: Duration::ZERO, in_order: true, grain }
    }

    pub fn note(&mut self, number: u64) {
        let due = delay(number);
        self.in_order &= due + self.grain >= self.latest;
        self.latest = due;
        self.tally.add(&number);
    }

    pub fn check(&self, n: u64) -> Result<(), String> {
        self.tally.check::<u64>(n)?;
        if self.in_order { Ok(()) } else { Err("not in the order they were due".into()) }
    }
}

/// Times both halves; the second gets what the first made.
pub fn time<S>(n: u64, insert: impl FnOnce() -> S, fire: impl FnOnce(S, &mut Fired), mut fired: Fired) -> Costs {
    let start = Instant::now();
    let state = insert();
    let inserted = start.elapsed();
    let start = Instant::now();
    fire(state, &mut fired);
    let took = start.elapsed();
    fired.check(n)?;
    Ok([inserted, took].map(|time| time.as_nanos() as f64 / n as f64).to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{HOUR, delay};

    #[test]
    fn delays_are_spread_over_the_whole_hour() {
        let delays: Vec<_> = (0..1000).map(delay).collect();
        let in_quarter = |quarter: u32| {
            let range = HOUR * quarter / 4..HOUR * (quarter + 1) / 4;
            delays.iter().filter(|delay| range.contains(*delay)).count()
        };
        assert!((0..4).all(|quarter| (200..300).contains(&in_quarter(quarter))));
        assert!(delays.iter().all(|delay| *delay > Duration::ZERO));
    }
}
