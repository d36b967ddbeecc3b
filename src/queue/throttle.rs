//! Rates kept to: for a queue as a whole and for each ordering key.

use crate::clock::Timestamp;
use crate::rate::Rate;
use ahash::AHashMap;
use std::time::Duration;

/// Lets so many pass per unit of time, by the generic cell rate algorithm (ITU-T I.371): instead of
/// counting tokens it remembers when the next would be due if all came evenly, and lets a burst run ahead
/// of that. Exact in integers, and one number per key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Throttle {
    interval: u64,
    ahead: u64,
    /// The theoretical arrival time of the next.
    due: Timestamp,
}

impl Throttle {
    /// A checked rate, with a full burst available.
    pub(crate) fn new(rate: &Rate) -> Self {
        let interval = rate.interval();
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self { interval, ahead: interval.saturating_mul(rate.burst_size() - 1), due: Timestamp(0) }
    }

    /// After a change of the rate: what has passed lately counts on, so that no change lets a burst pass.
    pub(crate) fn changed(before: Option<Self>, rate: Option<Rate>, now: Timestamp) -> Option<Self> {
        let mut after = Self::new(&rate?);
        if let Some(before) = before {
            let ahead = u128::from(before.due.0.saturating_sub(now.0));
            let ahead = ahead * u128::from(after.interval) / u128::from(before.interval);
            let most = after.ahead.saturating_add(after.interval);
            let ahead = u64::try_from(ahead).map_or(most, |ahead| ahead.min(most));
            after.due = Timestamp(now.0.saturating_add(ahead));
        }
        Some(after)
    }

    /// One that was let pass has not gone after all.
    pub(crate) fn take_back(&mut self) {
        self.due = Timestamp(self.due.0.saturating_sub(self.interval));
    }

    /// From when the next may pass; now or earlier means at once.
    pub(crate) fn free_at(&self) -> Timestamp {
        Timestamp(self.due.0.saturating_sub(self.ahead))
    }

    /// Lets one pass now, whether or not it should.
    pub(crate) fn pass(&mut self, now: Timestamp) {
        self.due = Timestamp(self.due.0.max(now.0).saturating_add(self.interval));
    }

    /// Lets one pass if it may; otherwise says how long until it may.
    pub(crate) fn try_pass(&mut self, now: Timestamp) -> Result<(), Duration> {
        let free = self.free_at();
        if free > now {
            return Err(free.since(now));
        }
        self.pass(now);
        Ok(())
    }

    /// Books the next free moment and answers it.
    fn book(&mut self, now: Timestamp) -> Timestamp {
        let at = self.free_at().max(now);
        self.pass(now);
        at
    }
}

/// One [`Throttle`] per key, forgetting those that no longer hold anybody back.
pub(crate) struct KeyThrottles {
    fresh: Throttle,
    keys: AHashMap<Box<str>, Throttle>,
    /// At how many keys to look for some to forget.
    sweep_at: usize,
}

impl KeyThrottles {
    const MIN_SWEEP: usize = 1024;

    pub(crate) fn new(rate: &Rate) -> Self {
        Self { fresh: Throttle::new(rate), keys: AHashMap::new(), sweep_at: Self::MIN_SWEEP }
    }

    /// As [`Throttle::changed`], for each key.
    pub(crate) fn changed(before: Option<Self>, rate: &Rate, now: Timestamp) -> Self {
        let mut after = Self::new(rate);
        let keys = before.into_iter().flat_map(|before| before.keys);
        after.keys =
            keys.filter_map(|(key, old)| Some((key, Throttle::changed(Some(old), Some(*rate), now)?))).collect();
        after
    }

    /// When a message of this key may pass; the moment is booked for it.
    pub(crate) fn book(&mut self, key: &str, now: Timestamp) -> Timestamp {
        if let Some(throttle) = self.keys.get_mut(key) {
            return throttle.book(now);
        }
        if self.keys.len() >= self.sweep_at {
            self.keys.retain(|_, throttle| throttle.due > now);
            self.sweep_at = (self.keys.len() * 2).max(Self::MIN_SWEEP);
        }
        let mut throttle = self.fresh;
        let at = throttle.book(now);
        self.keys.insert(key.into(), throttle);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn no_window_sees_more_than_its_share_and_one_burst() {
        for (rate, burst) in [(500, 1), (500, 50), (3, 2), (100_000, 1)] {
            let mut throttle = Throttle::new(&Rate::per_second(rate).burst(burst));
            let mut random = Random::new(9);
            let (mut now, mut passed) = (SECOND, Vec::new());
            for _ in 0..20_000 {
                now += random.below(SECOND / u64::from(rate as u32));
                if throttle.try_pass(Timestamp(now)).is_ok() {
                    passed.push(now);
                }
            }
            let window = SECOND / 10;
            let allowed = rate as usize / 10 + burst as usize;
            for (i, start) in passed.iter().enumerate() {
                let inside = passed[i..].iter().take_while(|&&t| t < start + window).count();
                assert!(inside <= allowed + 1, "{inside} of {allowed} at {rate}/s");
            }
        }
    }

    #[test]
    fn who_comes_too_early_is_told_exactly_when() {
        let mut throttle = Throttle::new(&Rate::per_second(10));
        assert_eq!(throttle.try_pass(Timestamp(SECOND)), Ok(()));
        let wait = throttle.try_pass(Timestamp(SECOND)).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(throttle.try_pass(Timestamp(SECOND).after(wait)), Ok(()));
    }

    #[test]
    fn a_long_quiet_time_saves_up_one_burst_and_no_more() {
        let mut throttle = Throttle::new(&Rate::per_second(10).burst(3));
        let later = Timestamp(3600 * SECOND);
        let passed = (0..100).filter(|_| throttle.try_pass(later).is_ok()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn a_change_of_the_rate_grants_no_burst_and_no_endless_wait() {
        let now = Timestamp(SECOND);
        let mut slow = Throttle::new(&Rate::per_second(1).burst(5));
        (0..5).for_each(|_| slow.pass(now));
        let changed = Throttle::changed(Some(slow), Some(Rate::per_second(1000)), now).unwrap();
        assert_eq!(changed.free_at(), now.after(Duration::from_millis(1)));
        let changed = Throttle::changed(Some(changed), Some(Rate::per_second(10)), now).unwrap();
        assert_eq!(changed.free_at(), now.after(Duration::from_millis(100)));
        assert_eq!(Throttle::changed(Some(changed), None, now), None);
    }

    #[test]
    fn keys_do_not_hold_each_other_back_and_idle_ones_are_forgotten() {
        let mut keys = KeyThrottles::new(&Rate::per_second(1));
        let now = Timestamp(SECOND);
        assert_eq!(keys.book("a", now), now);
        assert_eq!(keys.book("a", now), Timestamp(2 * SECOND));
        assert_eq!(keys.book("b", now), now);
        for n in 0..100_000_u64 {
            keys.book(&n.to_string(), Timestamp(n * SECOND));
        }
        assert!(keys.keys.len() <= 2 * KeyThrottles::MIN_SWEEP);
    }
}
