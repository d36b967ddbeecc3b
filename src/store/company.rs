//! When a commit waits a moment for company.
//!
//! Producers that wait for their commit mostly come back with the next message as soon as they are answered. A writer
//! that began as soon as the first of them is back would take that one alone, and the others a commit later: of eight
//! producers, four shared a sync. So after a sync that several have waited for it gives them time to come back, and
//! goes on when they are there. Whoever is not meant to come back costs a wait in vain, after which nobody is waited
//! for in many commits.

use std::time::Duration;

/// So many share a sync well enough.
const MANY: usize = 64;
/// Commits without a wait after one that was in vain,
const REST: u32 = 16;
/// and after one that took much longer than it should: others need the cores.
const LONG_REST: u32 = 256;
/// No wait is longer.
const LONGEST: Duration = Duration::from_micros(500);

/// Who was answered last, and may be back soon.
#[derive(Debug, Default)]
pub(super) struct Company {
    expected: usize,
    patience: Duration,
    rest: u32,
}

impl Company {
    /// So many were answered after a sync that took so long, and so many others have come meanwhile.
    pub(super) fn answered(&mut self, answered: usize, others: usize, took: Duration) {
        self.expected = answered + others;
        self.patience = (took / 2).min(LONGEST);
    }

    /// How many to wait for, and how long at most. Asked once a commit.
    pub(super) fn take_expected(&mut self) -> Option<(usize, Duration)> {
        let expected = std::mem::take(&mut self.expected);
        if !(2..=MANY).contains(&expected) {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        Some((expected, self.patience))
    }

    /// That has been done: `came` of `expected` are there.
    pub(super) fn waited(&mut self, came: usize, expected: usize, waited: Duration) {
        if waited > 4 * self.patience {
            self.rest = LONG_REST;
        } else if came < expected - expected / 4 {
            self.rest = REST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_micros(200);
    const HALF: Duration = Duration::from_micros(100);

    fn after(answered: usize, others: usize) -> Company {
        let mut company = Company::default();
        company.answered(answered, others, SYNC);
        company
    }

    #[test]
    fn several_are_waited_for_and_neither_one_nor_very_many() {
        let table = [
            (0, 0, None),
            (1, 0, None),
            (1, 1, Some((2, HALF))),
            (4, 4, Some((8, HALF))),
            (32, 32, Some((64, HALF))),
            (32, 33, None),
        ];
        for (answered, others, expected) in table {
            assert_eq!(after(answered, others).take_expected(), expected, "{answered} and {others}");
        }
        assert_eq!(Company::default().take_expected(), None, "after a commit that nobody waited for");
    }

    #[test]
    fn each_sync_is_waited_after_once() {
        let mut company = after(8, 0);
        assert!(company.take_expected().is_some());
        assert_eq!(company.take_expected(), None);
    }

    #[test]
    fn nobody_waits_long_after_a_slow_sync() {
        let mut company = Company::default();
        company.answered(2, 0, Duration::from_secs(3));
        assert_eq!(company.take_expected(), Some((2, LONGEST)));
    }

    #[test]
    fn after_a_wait_in_vain_commits_go_on_without() {
        // Most of them, who came; how long it took; commits that do not wait after it.
        let table =
            [(8, 8, HALF, 0), (8, 6, HALF, 0), (8, 5, HALF, REST), (2, 1, HALF, REST), (2, 2, 5 * HALF, LONG_REST)];
        for (expected, came, waited, rest) in table {
            let mut company = after(expected, 0);
            company.take_expected();
            company.waited(came, expected, waited);
            let without = (0..1000).take_while(|_| {
                company.answered(8, 0, SYNC);
                company.take_expected().is_none()
            });
            assert_eq!(without.count() as u32, rest, "{came} of {expected} after {waited:?}");
        }
    }
}
