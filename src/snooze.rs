//! A short wait before a long one.
//!
//! Whoever sleeps costs the one who wakes it some microseconds, so a thread first looks again for a moment. It
//! spins for about as long as that costs, then lets others run, which helps where threads outnumber cores. But
//! a scheduler remembers who gave way: a thread that did so just before it went to sleep is woken late, by a
//! millisecond when all cores are busy. So only those give way who are likely to find something: when the
//! latest wait ended while it span.

use crate::sync::{AtomicBool, Ordering, cores, spin_loop, yield_now};

/// How many rounds a thread spins,
pub(crate) const SPINS: u32 = 4;
/// and how many rounds there are before it sleeps.
pub(crate) const ROUNDS: u32 = 8;
const SLEPT: u32 = u32::MAX;

/// One round.
pub(crate) fn pause(round: u32) {
    if round < SPINS {
        (0..20).for_each(|_| spin_loop());
    } else {
        yield_now();
    }
}

/// Of the threads that wait for the same.
#[derive(Default)]
pub(crate) struct Snooze {
    /// A wait was short, and none has been long since.
    pays: AtomicBool,
}

impl Snooze {
    /// Waits a moment for another thread to move; `false` says to sleep instead.
    pub(crate) fn again(&self, round: &mut u32) -> bool {
        // Where nobody else can run meanwhile, it is pointless.
        if cores() == 1 {
            return false;
        }
        if *round < SPINS || (*round < ROUNDS && self.pays.load(Ordering::Relaxed)) {
            pause(*round);
            *round += 1;
            return true;
        }
        self.note(false);
        *round = SLEPT;
        false
    }

    /// It has been worth while, after so many rounds.
    pub(crate) fn over(&self, round: u32) {
        if (1..=SPINS).contains(&round) {
            self.note(true);
        }
    }

    fn note(&self, pays: bool) {
        if self.pays.load(Ordering::Relaxed) != pays {
            self.pays.store(pays, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn rounds(snooze: &Snooze, round: &mut u32) -> u32 {
        std::iter::from_fn(|| snooze.again(round).then_some(())).count() as u32
    }

    #[test]
    fn only_those_give_way_whose_kind_has_just_found_something_while_spinning() {
        let (alone, snooze) = (cores() == 1, Snooze::default());
        let mut round = 0;
        assert_eq!(rounds(&snooze, &mut round), if alone { 0 } else { SPINS });
        snooze.over(round);
        assert!(!snooze.pays.load(Ordering::Relaxed), "it was found after a sleep");
        snooze.over(0);
        assert!(!snooze.pays.load(Ordering::Relaxed), "it was there at once");
        snooze.over(2);
        assert_eq!(rounds(&snooze, &mut 0), if alone { 0 } else { ROUNDS });
        let now = if alone { 0 } else { SPINS };
        assert!(alone || rounds(&snooze, &mut 0) == now, "that wait was long");
    }
}
