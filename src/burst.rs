//! Deadlines of which nearly all are wanted soon, put in order piece by piece.
//!
//! To take one at a time out of a large heap costs a few cache misses each. To sort costs a tenth of that, but all
//! of it before the first one is there; so only the piece that comes next is sorted, and those behind it are told
//! apart from each other and no more.

use crate::heap::Deadline;
use std::cmp::Reverse;

/// Up to so many are sorted at once.
const PIECE: usize = 4096;

/// What is divided leaves this part of it, the earlier one, to be divided again.
const PART: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Burst {
    /// The earlier, the further behind.
    nodes: Vec<Deadline>,
    /// Where pieces begin. Everything in a piece is before everything in front of it.
    pieces: Vec<usize>,
    /// From here on they are in order; never the end unless nothing is left.
    ordered: usize,
    /// All of them came before the one with this sequence.
    next: u32,
}

impl Burst {
    pub(crate) fn new(nodes: Vec<Deadline>, next: u32) -> Self {
        let mut burst = Self { ordered: nodes.len(), nodes, pieces: Vec::new(), next };
        burst.order_next();
        burst
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&Deadline> {
        self.nodes.last()
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Deadline> {
        let first = self.nodes.pop();
        if self.nodes.len() == self.ordered {
            self.order_next();
        }
        first
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Deadline> {
        self.nodes.iter()
    }

    /// Forgets those for which `keep` says no.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Deadline) -> bool) {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.retain(keep);
        *self = Self::new(nodes, self.next);
    }

    /// Puts the last piece in order, dividing it while it is too large.
    #[cold]
    fn order_next(&mut self) {
        if self.nodes.is_empty() {
            return *self = Self::default();
        }
        let latest_first = |deadline: &Deadline| Reverse(deadline.in_order(self.next));
        let mut start = self.pieces.pop().unwrap_or(0);
        while self.nodes.len() - start > PIECE {
            self.pieces.push(start);
            let rest = &mut self.nodes[start..];
            let middle = rest.len() - rest.len() / PART;
            rest.select_nth_unstable_by_key(middle, latest_first);
            start += middle;
        }
        self.nodes[start..].sort_unstable_by_key(latest_first);
        self.ordered = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn random(n: usize, times: u64) -> Vec<Deadline> {
        let mut random = Random::new(n as u64);
        (0..n).map(|at| Deadline::new(random.below(times), at as u32, at as u32)).collect()
    }

    fn all(mut burst: Burst) -> Vec<(u64, u32)> {
        let order = std::iter::from_fn(|| {
            let peeked = burst.peek().copied();
            assert_eq!(peeked, burst.pop());
            peeked
        });
        order.map(|deadline| (deadline.due, deadline.sequence())).collect()
    }

    #[test]
    fn however_many_there_are_they_come_in_order() {
        for (n, times) in [(0, 1), (1, 1), (PIECE, 9), (PIECE + 1, 1 << 40), (20 * PIECE + 7, 1 << 40), (70_000, 3)] {
            let deadlines = random(n, times);
            let mut model: Vec<_> = deadlines.iter().map(|deadline| (deadline.due, deadline.sequence())).collect();
            model.sort_unstable();
            assert_eq!(all(Burst::new(deadlines, n as u32)), model);
        }
    }

    #[test]
    fn those_of_one_time_keep_their_order_however_long_ago_the_first_came() {
        // Three quarters of all numbers apart, with some in between: less than half of them between one and the next.
        let sequence = |n: u32| (n / 3_000).wrapping_mul(1 << 30).wrapping_add(n);
        let deadlines: Vec<_> = (0..12_000).rev().map(|n| Deadline::new(1, sequence(n), n)).collect();
        let mut burst = Burst::new(deadlines, sequence(11_999) + 1);
        let order: Vec<_> = std::iter::from_fn(|| burst.pop()).map(|deadline| deadline.slot()).collect();
        assert_eq!(order, (0..12_000).collect::<Vec<_>>());
    }

    #[test]
    fn some_may_be_forgotten_in_between() {
        let deadlines = random(50_000, 1 << 20);
        let mut model: Vec<_> = deadlines.iter().map(|deadline| (deadline.due, deadline.sequence())).collect();
        model.sort_unstable();
        let mut burst = Burst::new(deadlines, 50_000);
        let first: Vec<_> = (0..10_000).filter_map(|_| burst.pop()).map(|d| (d.due, d.sequence())).collect();
        assert_eq!(first, model[..10_000]);
        burst.retain(|deadline| deadline.sequence() % 3 > 0);
        model.drain(..10_000);
        model.retain(|(_, sequence)| sequence % 3 > 0);
        assert_eq!((burst.len(), burst.iter().count()), (model.len(), model.len()));
        assert_eq!(all(burst), model);
    }
}
