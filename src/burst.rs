//! Deadlines of which nearly all are wanted soon, put in order piece by piece.
//!
//! To take one at a time out of a large heap costs a few cache misses each. To sort costs a tenth of that, but all
//! of it before the first one is there; so only the piece that comes next is sorted, and those behind it are told
//! apart from each other and no more.

use crate::heap::Deadline;
use std::cmp::Ordering;

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
}

impl Burst {
    pub(crate) fn new(nodes: Vec<Deadline>) -> Self {
        let mut burst = Self { ordered: nodes.len(), nodes, pieces: Vec::new() };
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
        *self = Self::new(nodes);
    }

    /// Puts the last piece in order, dividing it while it is too large.
    #[cold]
    fn order_next(&mut self) {
        if self.nodes.is_empty() {
            return *self = Self::default();
        }
        let mut start = self.pieces.pop().unwrap_or(0);
        while self.nodes.len() - start > PIECE {
            self.pieces.push(start);
            let rest = &mut self.nodes[start..];
            let middle = rest.len() - rest.len() / PART;
            rest.select_nth_unstable_by(middle, latest_first);
            start += middle;
        }
        self.nodes[start..].sort_unstable_by(latest_first);
        self.ordered = start;
    }
}

fn latest_first(one: &Deadline, other: &Deadline) -> Ordering {
    Deadline::earliest_first(other, one)
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
            assert_eq!(all(Burst::new(deadlines)), model);
        }
    }

    #[test]
    fn some_may_be_forgotten_in_between() {
        let deadlines = random(50_000, 1 << 20);
        let mut model: Vec<_> = deadlines.iter().map(|deadline| (deadline.due, deadline.sequence())).collect();
        model.sort_unstable();
        let mut burst = Burst::new(deadlines);
        let first: Vec<_> = (0..10_000).filter_map(|_| burst.pop()).map(|d| (d.due, d.sequence())).collect();
        assert_eq!(first, model[..10_000]);
        burst.retain(|deadline| deadline.sequence() % 3 > 0);
        model.drain(..10_000);
        model.retain(|(_, sequence)| sequence % 3 > 0);
        assert_eq!((burst.len(), burst.iter().count()), (model.len(), model.len()));
        assert_eq!(all(burst), model);
    }
}
