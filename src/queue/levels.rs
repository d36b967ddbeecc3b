//! Messages by priority.

use std::collections::VecDeque;

/// One lane per priority level; the highest level that has a message goes first.
///
/// With a share for the low ones, so many of the deliveries go to the lowest level that has a message
/// instead, evenly spread, so that it cannot starve.
pub(crate) struct Levels<M> {
    lanes: Vec<Lane<M>>,
    /// The lowest level's share of the deliveries, in parts of [`Levels::WHOLE`], and what it is owed.
    low_share: u64,
    owed: u64,
    len: usize,
}

struct Lane<M> {
    /// Redelivered messages, ahead of the fresh ones of their level.
    back: VecDeque<M>,
    fresh: VecDeque<M>,
}

impl<M> Levels<M> {
    /// Makes exact what is given in decimals.
    const WHOLE: u64 = 1_000_000_000;

    pub(crate) fn new(levels: u8, low_share: Option<f64>) -> Self {
        let lanes = (0..levels).map(|_| Lane { back: VecDeque::new(), fresh: VecDeque::new() }).collect();
        let low_share = low_share.map_or(0, |share| (share * Self::WHOLE as f64).round() as u64);
        Self { lanes, low_share, owed: 0, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, level: u8, message: M) {
        self.lane(level).fresh.push_back(message);
        self.len += 1;
    }

    pub(crate) fn push_redelivered(&mut self, level: u8, message: M) {
        self.lane(level).back.push_back(message);
        self.len += 1;
    }

    /// Back where it was taken from.
    pub(crate) fn push_front(&mut self, level: u8, message: M) {
        self.lane(level).back.push_front(message);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<M> {
        let owed = self.owed + self.low_share;
        let low = owed >= Self::WHOLE;
        let message = if low { self.pop_lowest() } else { self.pop_highest() }?;
        self.owed = if low { owed - Self::WHOLE } else { owed };
        self.len -= 1;
        Some(message)
    }

    /// How many of a level have not been handed out before.
    #[cfg(feature = "sqlite")]
    pub(crate) fn fresh(&self, level: usize) -> usize {
        self.lanes[level].fresh.len()
    }

    /// The level of the next message, if that is one of which all are elsewhere.
    #[cfg(feature = "sqlite")]
    pub(crate) fn to_fill(&self, has_more: impl Fn(usize) -> bool) -> Option<usize> {
        let low = self.owed + self.low_share >= Self::WHOLE;
        let has_message = |level: &usize| !self.lanes[*level].is_empty() || has_more(*level);
        let mut levels = 0..self.lanes.len();
        let next = if low { levels.find(has_message) } else { levels.rev().find(has_message) };
        next.filter(|&level| self.lanes[level].is_empty())
    }

    /// The oldest fresh message of the lowest level that has one for which it is `of_use`: the one to throw
    /// away for another of this `level`, unless all are above that.
    pub(crate) fn evict(&mut self, level: u8, of_use: impl Fn(&M) -> bool) -> Option<M> {
        let message = self.lanes.iter_mut().take(usize::from(level) + 1).find_map(|lane| {
            let at = lane.fresh.iter().position(&of_use)?;
            lane.fresh.remove(at)
        })?;
        self.len -= 1;
        Some(message)
    }

    /// Lets `keep` take messages out; the others stay where they are.
    pub(crate) fn sift(&mut self, keep: &mut impl FnMut(M) -> Option<M>) {
        for line in self.lanes.iter_mut().rev().flat_map(|lane| [&mut lane.back, &mut lane.fresh]) {
            *line = std::mem::take(line).into_iter().filter_map(&mut *keep).collect();
        }
        self.len = self.lanes.iter().map(|lane| lane.back.len() + lane.fresh.len()).sum();
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = M> + '_ {
        self.len = 0;
        self.lanes.iter_mut().rev().flat_map(|lane| lane.back.drain(..).chain(lane.fresh.drain(..)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.lanes.iter_mut().rev().flat_map(|lane| lane.back.iter_mut().chain(&mut lane.fresh))
    }

    fn lane(&mut self, level: u8) -> &mut Lane<M> {
        let top = self.lanes.len() - 1;
        &mut self.lanes[usize::from(level).min(top)]
    }

    fn pop_highest(&mut self) -> Option<M> {
        self.lanes.iter_mut().rev().find_map(Lane::pop)
    }

    fn pop_lowest(&mut self) -> Option<M> {
        self.lanes.iter_mut().find_map(Lane::pop)
    }
}

impl<M> Lane<M> {
    #[cfg(feature = "sqlite")]
    fn is_empty(&self) -> bool {
        self.back.is_empty() && self.fresh.is_empty()
    }

    fn pop(&mut self) -> Option<M> {
        self.back.pop_front().or_else(|| self.fresh.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(low_share: Option<f64>) -> Levels<(u8, u32)> {
        let mut levels = Levels::new(3, low_share);
        for n in 0..100 {
            for level in 0..3 {
                levels.push(level, (level, n));
            }
        }
        levels
    }

    #[test]
    fn higher_levels_go_first_and_each_in_order() {
        let mut levels = filled(None);
        let order: Vec<_> = std::iter::from_fn(|| levels.pop()).collect();
        let expected: Vec<_> = (0..3).rev().flat_map(|level| (0..100).map(move |n| (level, n))).collect();
        assert_eq!(order, expected);
        assert_eq!(levels.len(), 0);
    }

    #[test]
    fn a_share_for_the_low_ones_is_kept_to() {
        let mut levels = filled(Some(0.2));
        let first: Vec<u8> = std::iter::from_fn(|| levels.pop()).take(100).map(|m| m.0).collect();
        assert_eq!(first.iter().filter(|&&level| level == 0).count(), 20);
        assert_eq!(&first[..5], [2, 2, 2, 2, 0]);
        for (share, expected) in [(0.1, 10), (0.4, 40), (0.7, 70), (0.9, 90)] {
            let mut levels = filled(Some(share));
            let first: Vec<u8> = std::iter::from_fn(|| levels.pop()).take(100).map(|m| m.0).collect();
            assert_eq!(first.iter().filter(|&&level| level == 0).count(), expected, "{share}");
        }
    }

    #[test]
    fn redelivered_messages_lead_their_level_but_no_other() {
        let mut levels = filled(None);
        levels.push_redelivered(1, (1, 999));
        assert_eq!(levels.pop(), Some((2, 0)));
        (0..99).for_each(|_| assert!(levels.pop().is_some()));
        assert_eq!(levels.pop(), Some((1, 999)));
    }

    #[test]
    fn priorities_beyond_the_top_count_as_the_top_and_the_lowest_is_evicted() {
        let mut levels = Levels::new(2, None);
        levels.push(0, "low");
        levels.push(200, "high");
        assert_eq!(levels.evict(0, |text| *text != "low"), None, "not for one below it");
        assert_eq!(levels.evict(1, |text| *text != "low"), Some("high"));
        levels.push(200, "high");
        assert_eq!(levels.evict(0, |_| true), Some("low"));
        assert_eq!(levels.evict(0, |_| true), None);
        assert_eq!(levels.evict(100, |_| true), Some("high"));
        assert_eq!((levels.evict(100, |_| true), levels.len()), (None, 0));
    }
}
