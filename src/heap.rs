//! A queue of deadlines with four children to a node.
//!
//! Large queues of deadlines are bound by cache misses, one or more a level. Four children of 16 bytes
//! share a cache line, so a level costs about one miss and there are half as many levels as in a binary
//! heap (LaMarca and Ladner, "The influence of caches on the performance of heaps", 1996).

/// When, in which order among equals, and where the rest is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) due: u64,
    /// Wraps around: of two, the one is earlier that is less than half the numbers behind.
    pub(crate) sequence: u32,
    pub(crate) slot: u32,
}

const CHILDREN: usize = 4;

/// Deadlines, the earliest on top; equal ones in the order of their sequence.
#[derive(Debug, Default)]
pub(crate) struct DeadlineHeap {
    nodes: Vec<Deadline>,
}

impl Deadline {
    #[inline]
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        let behind = self.sequence.wrapping_sub(other.sequence) as i32;
        self.due < other.due || (self.due == other.due && behind < 0)
    }
}

impl DeadlineHeap {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn peek(&self) -> Option<&Deadline> {
        self.nodes.first()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Deadline> {
        self.nodes.iter()
    }

    pub(crate) fn push(&mut self, deadline: Deadline) {
        self.nodes.push(deadline);
        self.rise(self.nodes.len() - 1);
    }

    pub(crate) fn pop(&mut self) -> Option<Deadline> {
        let last = self.nodes.pop()?;
        if self.nodes.is_empty() {
            return Some(last);
        }
        let top = std::mem::replace(&mut self.nodes[0], last);
        self.sink(0);
        Some(top)
    }

    /// Forgets those for which `keep` says no, and puts the rest in order anew.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Deadline) -> bool) {
        self.nodes.retain(keep);
        let parents = self.nodes.len().div_ceil(CHILDREN);
        (0..parents).rev().for_each(|node| self.sink(node));
    }

    pub(crate) fn clear(&mut self, keep_capacity: usize) {
        self.nodes.clear();
        self.nodes.shrink_to(keep_capacity);
    }

    fn rise(&mut self, mut node: usize) {
        let rising = self.nodes[node];
        while node > 0 {
            let parent = (node - 1) / CHILDREN;
            if !rising.is_before(&self.nodes[parent]) {
                break;
            }
            self.nodes[node] = self.nodes[parent];
            node = parent;
        }
        self.nodes[node] = rising;
    }

    fn sink(&mut self, mut node: usize) {
        let sinking = self.nodes[node];
        loop {
            let first = node * CHILDREN + 1;
            let end = (first + CHILDREN).min(self.nodes.len());
            let Some(children) = self.nodes.get(first..end).filter(|children| !children.is_empty()) else { break };
            let mut least = 0;
            for (child, deadline) in children.iter().enumerate().skip(1) {
                if deadline.is_before(&children[least]) {
                    least = child;
                }
            }
            if !children[least].is_before(&sinking) {
                break;
            }
            self.nodes[node] = children[least];
            node = first + least;
        }
        self.nodes[node] = sinking;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn at(due: u64, sequence: u32) -> Deadline {
        Deadline { due, sequence, slot: sequence }
    }

    #[test]
    fn whatever_goes_in_comes_out_in_order() {
        let mut random = Random::new(5);
        for n in [0, 1, 2, 4, 5, 6, 20, 21, 22, 1000] {
            let mut heap = DeadlineHeap::default();
            let mut model: Vec<_> = (0..n).map(|sequence| (random.below(n as u64 / 2 + 1), sequence)).collect();
            model.iter().for_each(|&(due, sequence)| heap.push(at(due, sequence)));
            model.retain(|(_, sequence)| sequence % 3 > 0);
            heap.retain(|deadline| deadline.sequence % 3 > 0);
            model.sort_unstable();
            let order: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|d| (d.due, d.sequence)).collect();
            assert_eq!(order, model);
        }
    }

    #[test]
    fn equal_times_keep_their_order_where_the_sequence_wraps_around() {
        let mut heap = DeadlineHeap::default();
        let sequence = |n: u32| (u32::MAX - 50).wrapping_add(n);
        (0..100).for_each(|n| heap.push(at(7, sequence(n))));
        let order: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|d| d.sequence).collect();
        assert_eq!(order, (0..100).map(sequence).collect::<Vec<_>>());
    }
}
