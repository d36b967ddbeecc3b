//! When a schedule fires, and which firings a late wake-up still owes. Pure.

use super::Missed;
use crate::clock::Timestamp;
use std::time::Duration;

/// How many firings [`Missed::All`] makes up for in one go.
pub(crate) const AT_ONCE: u64 = 64;
/// A firing less than this late counts as on time.
pub(crate) const ON_TIME: Duration = Duration::from_secs(60);
/// More missed firings than this are not counted one by one where counting means searching a calendar.
const COUNTED: u64 = 1000;

/// The times a schedule fires at, as a strictly rising sequence.
#[derive(Debug)]
pub(crate) enum Rule {
    /// At `first` and every whole number of periods after it.
    Every { period: u64, first: Timestamp },
    /// At the times of the expression, none before `start`.
    #[cfg(feature = "cron")]
    Cron { cron: Box<super::cron::Cron>, start: Timestamp },
}

/// What a wake-up at some moment has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) fire: u64,
    pub(crate) left_out: u64,
    /// The first firing that this wake-up does not deal with; not after the wake-up if it was bounded.
    pub(crate) next: Option<Timestamp>,
}

impl Rule {
    /// The first firing strictly after `time`; `None` if there is none until the timeline ends in 2554.
    pub(crate) fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every { period, first } => {
                let Some(passed) = time.0.checked_sub(first.0) else { return Some(*first) };
                (passed / period + 1).checked_mul(*period)?.checked_add(first.0).map(Timestamp)
            }
            #[cfg(feature = "cron")]
            Self::Cron { cron, start } => cron.next_after(time.max(just_before(*start))),
        }
    }

    pub(crate) fn first_from(&self, time: Timestamp) -> Option<Timestamp> {
        self.next_after(just_before(time))
    }

    /// The rule with its first firing: the one that was noted as the next in an earlier run, if that is not too far
    /// ahead to be right. An interval goes on from there.
    pub(crate) fn going_on(self, noted: Option<Timestamp>, now: Timestamp) -> (Self, Option<Timestamp>) {
        let fresh = self.first_from(now);
        match (self, noted.filter(|&noted| fresh.is_none_or(|fresh| noted <= fresh))) {
            (Self::Every { period, .. }, Some(first)) => (Self::Every { period, first }, Some(first)),
            #[cfg(feature = "cron")]
            (Self::Cron { cron, .. }, Some(start)) => (Self::Cron { cron, start }, Some(start)),
            (rule, None) => (rule, fresh),
        }
    }

    /// How many firings there are from the firing `first` up to `end`, counted up to a bound, and the
    /// one after those.
    fn count(&self, first: Timestamp, end: Timestamp, at_most: u64) -> (u64, Option<Timestamp>) {
        match self {
            Self::Every { period, .. } => {
                let n = end.0.checked_sub(first.0).map_or(0, |passed| passed / period + 1).min(at_most);
                (n, n.checked_mul(*period).and_then(|ahead| first.0.checked_add(ahead)).map(Timestamp))
            }
            #[cfg(feature = "cron")]
            Self::Cron { .. } => {
                let mut n = 0;
                let mut next = Some(first);
                while let Some(due) = next.filter(|&due| due <= end && n < at_most) {
                    n += 1;
                    next = self.next_after(due);
                }
                (n, next)
            }
        }
    }
}

/// What is owed at `now` by a schedule whose next firing was to be at `next`.
pub(crate) fn firings_due(rule: &Rule, next: Timestamp, now: Timestamp, missed: Missed) -> Due {
    if next > now {
        return Due { fire: 0, left_out: 0, next: Some(next) };
    }
    if missed == Missed::All {
        let (fire, next) = rule.count(next, now, AT_ONCE);
        return Due { fire, left_out: 0, next };
    }
    let bound = if matches!(rule, Rule::Every { .. }) { u64::MAX } else { COUNTED };
    let (owed, _) = rule.count(next, now, bound);
    let fire = u64::from(missed == Missed::Once || any_on_time(rule, next, now));
    Due { fire, left_out: owed - fire, next: rule.next_after(now) }
}

/// Whether a firing, not before `next`, is due at `now` and less than [`ON_TIME`] late.
fn any_on_time(rule: &Rule, next: Timestamp, now: Timestamp) -> bool {
    let too_late = Timestamp(now.0.saturating_sub(Timestamp::default().after(ON_TIME).0));
    rule.next_after(too_late.max(just_before(next))).is_some_and(|due| due <= now)
}

fn just_before(time: Timestamp) -> Timestamp {
    Timestamp(time.0.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * S)
    }

    fn every(period: u64, first: u64) -> Rule {
        Rule::Every { period: period * S, first: at(first) }
    }

    #[test]
    fn the_next_firing_of_an_interval_lies_on_its_grid_and_strictly_ahead() {
        // (period, first, time) -> next
        let table = [
            ((10, 100, 0), 100),
            ((10, 100, 99), 100),
            ((10, 100, 100), 110),
            ((10, 100, 101), 110),
            ((10, 100, 109), 110),
            ((10, 100, 110), 120),
            ((3600, 0, 86_399), 86_400),
        ];
        for ((period, first, time), next) in table {
            let rule = every(period, first);
            assert_eq!(rule.next_after(at(time)), Some(at(next)), "every {period} from {first} after {time}");
        }
        assert_eq!(every(10, 100).first_from(at(110)), Some(at(110)));
    }

    #[test]
    fn nothing_fires_beyond_the_end_of_the_timeline() {
        let rule = Rule::Every { period: u64::MAX / 2, first: Timestamp(u64::MAX / 2) };
        assert_eq!(rule.next_after(Timestamp(u64::MAX / 2)), Some(Timestamp(u64::MAX / 2 * 2)));
        assert_eq!(rule.next_after(Timestamp(u64::MAX - 1)), None);
        assert_eq!(firings_due(&rule, Timestamp(u64::MAX - 1), Timestamp::MAX, Missed::All).next, None);
    }

    #[test]
    fn what_a_wake_up_owes_depends_on_how_late_it_is() {
        use Missed::{All, Once, Skip};
        // A firing was to come at 1000; (period, now, missed) -> (fire, left out, next)
        let table = [
            ((600, 999, All), (0, 0, 1000)),
            ((600, 999, Once), (0, 0, 1000)),
            ((600, 1000, Skip), (1, 0, 1600)),
            ((600, 1000, Once), (1, 0, 1600)),
            ((600, 1000, All), (1, 0, 1600)),
            // Late, though none has been passed over.
            ((600, 1059, Skip), (1, 0, 1600)),
            ((600, 1060, Skip), (0, 1, 1600)),
            ((600, 1060, Once), (1, 0, 1600)),
            // Two passed over, the latest just now.
            ((600, 2210, Skip), (1, 2, 2800)),
            ((600, 2210, Once), (1, 2, 2800)),
            ((600, 2210, All), (3, 0, 2800)),
            // Two passed over, the latest long ago.
            ((600, 2799, Skip), (0, 3, 2800)),
            ((600, 2799, Once), (1, 2, 2800)),
            // Intervals below a minute are always on time.
            ((10, 1095, Skip), (1, 9, 1100)),
            ((10, 1095, Once), (1, 9, 1100)),
            // More than one go can make up for.
            ((10, 10_000, All), (AT_ONCE, 0, 1640)),
        ];
        for ((period, now, missed), (fire, left_out, next)) in table {
            let due = firings_due(&every(period, 1000), at(1000), at(now), missed);
            assert_eq!(due, Due { fire, left_out, next: Some(at(next)) }, "every {period}, {missed:?} at {now}");
        }
    }

    #[test]
    fn a_firing_before_the_next_one_is_not_owed() {
        // Resumed at 1030, so the firing at 1000 is none of its own although it would be on time.
        let due = firings_due(&every(100, 1000), at(1100), at(1040), Missed::Skip);
        assert_eq!(due, Due { fire: 0, left_out: 0, next: Some(at(1100)) });
    }

    #[test]
    fn making_up_in_bounded_goes_loses_and_repeats_none() {
        let rule = every(7, 70);
        let (mut next, mut fired) = (Some(at(70)), 0);
        loop {
            let due = firings_due(&rule, next.unwrap(), at(7000), Missed::All);
            if due.fire == 0 {
                break;
            }
            assert!(due.fire <= AT_ONCE);
            fired += due.fire;
            next = due.next;
        }
        assert_eq!((fired, next), (991, Some(at(7007))));
    }

    #[cfg(feature = "cron")]
    #[test]
    fn a_cron_rule_owes_like_an_interval() {
        let cron = Box::new(super::super::cron::Cron::parse("*/10 * * * *", "UTC").unwrap());
        let (by_cron, by_interval) = (Rule::Cron { cron, start: at(0) }, every(600, 0));
        for missed in [Missed::Skip, Missed::Once, Missed::All] {
            for now in [599, 600, 601, 659, 660, 1200, 1205, 7000, 7260, 90_000] {
                let owed = |rule| firings_due(rule, at(600), at(now), missed);
                assert_eq!(owed(&by_cron), owed(&by_interval), "{missed:?} at {now}");
            }
        }
    }
}
