//! Timers a tenth of a millisecond apart, put in in random order: how long after it was due each one fires.

use std::time::{Duration, Instant};

pub mod condvar;
pub mod delay_queue;
pub mod postroom;

/// Microseconds: half, and 99 of 100, were no later than this.
pub type Lateness = Result<Vec<f64>, String>;

const APART: Duration = Duration::from_micros(100);

/// When each of the timers is due; there is time enough to put them all in.
pub fn deadlines(n: u64) -> Vec<Instant> {
    let base = Instant::now() + Duration::from_millis(50) + 10 * Duration::from_micros(n);
    let step = |number: u64| (number * 7919 % n) as u32;
    (0..n).map(|number| base + APART * step(number)).collect()
}

/// What became of the timers: when each was due and when it fired.
pub fn summarise(mut fired: Vec<(Instant, Instant)>, n: u64) -> Lateness {
    if fired.len() as u64 != n {
        return Err(format!("{} of {n} timers fired", fired.len()));
    }
    if fired.iter().any(|(due, at)| at < due) {
        return Err("a timer fired early".into());
    }
    fired.sort_by_key(|(due, _)| *due);
    if fired.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err("a timer fired twice".into());
    }
    Ok(quantiles(fired.into_iter().map(|(due, at)| at - due).collect()))
}

pub fn quantiles(mut times: Vec<Duration>) -> Vec<f64> {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_nanos() as f64 / 1000.0;
    vec![at(50), at(99)]
}
