//! A short wait before a long one.
//!
//! Whoever sleeps costs the one who wakes it some microseconds, and himself more, so a thread first looks again for
//! a moment. It spins for about as long as that costs, then lets others run, which helps where threads outnumber
//! cores. But to give way is a wager. A scheduler remembers who did: a thread that gave way just before it went to
//! sleep is woken late, by a millisecond when all cores are busy; and where somebody else has work for this core,
//! that long may pass before its turn comes again. So only those give way whose latest wait was short, and after
//! one that took long, nobody does for a while.

use crate::clock::{Clock, Timestamp};
use crate::sync::{AtomicU32, Ordering, cores, spin_loop, yield_now};
use std::time::Duration;

/// How many rounds a thread spins,
pub(crate) const SPINS: u32 = 4;
/// and how many rounds there are before it sleeps.
pub(crate) const ROUNDS: u32 = 8;
const SLEPT: u32 = u32::MAX;

/// A sleep that ended sooner had better been a few rounds more: to fall asleep and to be woken takes 20 to 80 us.
const SHORT: Duration = Duration::from_micros(100);
/// So many short waits have to follow a round that took longer than a short sleep.
const PENANCE: u32 = 256;

/// One round.
pub(crate) fn pause(round: u32) {
    if round < SPINS {
        (0..20).for_each(|_| spin_loop());
    } else {
        yield_now();
    }
}

/// Of the threads that wait for the same.
pub(crate) struct Snooze {
    /// How many short waits it takes until threads give way.
    doubts: AtomicU32,
}

impl Default for Snooze {
    fn default() -> Self {
        Self { doubts: AtomicU32::new(1) }
    }
}

impl Snooze {
    /// Waits a moment for another thread to move; `false` says to sleep instead, and to tell [`Snooze::slept`].
    pub(crate) fn again(&self, round: &mut u32, clock: &Clock) -> bool {
        // Where nobody else can run meanwhile, it is pointless.
        if cores() == 1 {
            return false;
        }
        if *round < SPINS {
            pause(*round);
        } else if *round < ROUNDS && self.doubts.load(Ordering::Relaxed) == 0 {
            let start = clock.now();
            pause(*round);
            self.gave_way(clock.now().since(start));
        } else {
            *round = SLEPT;
            return false;
        }
        *round += 1;
        true
    }

    /// It has been worth while, after so many rounds.
    pub(crate) fn over(&self, round: u32) {
        if (1..=SPINS).contains(&round) {
            self.was_short(true);
        }
    }

    /// The sleep has ended that began at `start`.
    pub(crate) fn slept(&self, start: Timestamp, clock: &Clock) {
        self.was_short(clock.now().since(start) < SHORT);
    }

    fn gave_way(&self, time: Duration) {
        if time >= SHORT {
            self.doubts.store(PENANCE, Ordering::Relaxed);
        }
    }

    /// Counts roughly: threads that do so at the same time may count as one.
    fn was_short(&self, short: bool) {
        let doubts = self.doubts.load(Ordering::Relaxed);
        let now = if short { doubts.saturating_sub(1) } else { doubts.max(1) };
        if now != doubts {
            self.doubts.store(now, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    /// The rounds of a wait that nothing ends, before it sleeps.
    fn rounds(snooze: &Snooze) -> u32 {
        let (clock, mut round) = (Clock::Manual(ManualClock::new()), 0);
        std::iter::from_fn(|| snooze.again(&mut round, &clock).then_some(())).count() as u32
    }

    fn sleep(snooze: &Snooze, time: Duration) {
        let manual = ManualClock::new();
        let clock = Clock::Manual(manual.clone());
        let start = clock.now();
        manual.advance(time);
        snooze.slept(start, &clock);
    }

    #[test]
    fn only_those_give_way_whose_kind_has_waited_for_a_short_time() {
        let snooze = Snooze::default();
        let (wary, willing) = if cores() == 1 { (0, 0) } else { (SPINS, ROUNDS) };
        assert_eq!(rounds(&snooze), wary, "nothing is known yet");
        let table: [(&str, &dyn Fn(), u32); 6] = [
            ("it was there at once", &|| snooze.over(0), wary),
            ("it came while spinning", &|| snooze.over(2), willing),
            ("it slept for long", &|| sleep(&snooze, Duration::from_millis(1)), wary),
            ("it had hardly fallen asleep", &|| sleep(&snooze, Duration::from_micros(30)), willing),
            ("giving way took long", &|| snooze.gave_way(Duration::from_millis(3)), wary),
            ("one short wait makes no spring", &|| snooze.over(1), wary),
        ];
        for (what, happens, expected) in table {
            happens();
            assert_eq!(rounds(&snooze), expected, "{what}");
        }
    }

    #[test]
    fn giving_way_is_tried_anew_after_many_short_waits() {
        let snooze = Snooze::default();
        snooze.gave_way(Duration::from_millis(3));
        let waits = (0..).take_while(|_| {
            snooze.over(1);
            snooze.doubts.load(Ordering::Relaxed) > 0
        });
        assert_eq!(waits.count() as u32, PENANCE - 1);
    }
}
