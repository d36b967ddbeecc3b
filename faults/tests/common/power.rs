//! The power fails in the past: after some of the events of a run that is over.

use super::{Dice, Folder};
use faults::{Event, FileId, Image};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What happened to a disk, and the facts that the notes among that are numbers of.
pub struct Past<Fact> {
    pub events: Vec<Event>,
    pub facts: Vec<Fact>,
}

/// Each cut is followed by a check of the folder that is left, given the facts until then and what was done.
impl<Fact: Clone> Past<Fact> {
    /// After `at` events, the rest left to chance.
    pub fn cut(&self, at: usize, seed: u64, check: impl Fn(&Folder, &[Fact], &str)) {
        let (mut dice, before) = (Dice(seed), &self.events[..at]);
        let image = Image::after_power_cut(before, &mut |sides| dice.roll(sides));
        let notes = before.iter().filter_map(|event| if let Event::Note(n) = event { Some(*n as usize) } else { None });
        let facts: Vec<Fact> = notes.map(|n| self.facts[n].clone()).collect();
        check(&Folder::holding(&image), &facts, &format!("cut after event {at}, seed {seed}"));
    }

    pub fn cut_around_every_sync(&self, check: impl Fn(&Folder, &[Fact], &str)) {
        let end = self.events.len();
        let syncs: Vec<usize> = (0..end).filter(|&at| matches!(self.events[at], Event::Sync(_))).collect();
        assert!(syncs.len() > 20, "{} syncs", syncs.len());
        for at in syncs {
            for at in [at, at + 1, (at + 2).min(end)] {
                self.cut(at, at as u64, &check);
            }
        }
    }

    pub fn cut_at_any_moment(&self, seed: u64, rounds: u64, check: impl Fn(&Folder, &[Fact], &str)) {
        let mut dice = Dice(seed);
        for round in 0..rounds {
            self.cut(dice.roll(self.events.len() as u64 + 1) as usize, round, &check);
        }
    }

    /// The same run, from which the syncs of the log are taken away: somewhere something safe must be lost.
    pub fn assert_noticed_without_syncs(mut self, check: impl Fn(&Folder, &[Fact], &str)) {
        self.events.retain(|event| !matches!(event, Event::Sync(FileId::Wal)));
        let noticed = (0..60).any(|round| {
            let at = self.events.len() * (round + 1) / 61;
            catch_unwind(AssertUnwindSafe(|| self.cut(at, round as u64, &check))).is_err()
        });
        assert!(noticed, "a disk without syncs lost nothing in 60 power cuts");
    }
}
