//! A queue of deadlines with four children to a node.
//!
//! Large queues of deadlines are bound by cache misses, one or more a level. Four children of 16 bytes
//! share a cache line, so a level costs about one miss and there are half as many levels as in a binary
//! heap (LaMarca and Ladner, "The influence of caches on the performance of heaps", 1996).
//!
//! If a good part of a large one is due at once, it leaves the heap together, to be sorted: see [`Burst`].

use crate::burst::Burst;

/// When, in which order among equals, and where the rest is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) due: u64,
    /// The sequence above the slot, in one word: read as it was written, it comes from the store that is under way.
    rank: u64,
}

const CHILDREN: usize = 4;

/// So many are looked at to learn how many are due.
const SAMPLE: usize = 64;

/// Deadlines, the earliest on top; equal ones in the order of their sequence.
#[derive(Debug, Default)]
pub(crate) struct DeadlineHeap {
    nodes: Vec<Deadline>,
    /// Those that have left it together.
    burst: Burst,
}

impl Deadline {
    /// The sequence wraps around: of two, the one is earlier that is less than half the numbers behind.
    #[inline]
    pub(crate) fn new(due: u64, sequence: u32, slot: u32) -> Self {
        Self { due, rank: u64::from(sequence) << 32 | u64::from(slot) }
    }

    #[inline]
    pub(crate) fn sequence(&self) -> u32 {
        (self.rank >> 32) as u32
    }

    #[inline]
    pub(crate) fn slot(&self) -> u32 {
        self.rank as u32
    }

    #[inline]
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        let behind = self.rank.wrapping_sub(other.rank) as i64;
        // Without a branch: which one it is, nobody can foretell.
        (self.due < other.due) | ((self.due == other.due) & (behind < 0))
    }

    /// By what to sort, where `next` is the sequence of the one to come: an order of all of them, however far apart, which
    /// [`Deadline::is_before`] is not.
    #[inline]
    pub(crate) fn in_order(&self, next: u32) -> (u64, u64) {
        (self.due, self.rank.wrapping_sub(u64::from(next) << 32))
    }
}

impl DeadlineHeap {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() + self.burst.len()
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&Deadline> {
        if self.starts_with_burst() { self.burst.peek() } else { self.nodes.first() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Deadline> {
        self.nodes.iter().chain(self.burst.iter())
    }

    /// Whether it is on top.
    #[inline]
    pub(crate) fn push(&mut self, deadline: Deadline) -> bool {
        self.nodes.push(deadline);
        self.rise(self.nodes.len() - 1, deadline) && !self.starts_with_burst()
    }

    pub(crate) fn pop(&mut self) -> Option<Deadline> {
        if self.starts_with_burst() {
            return self.burst.pop();
        }
        let last = self.nodes.pop()?;
        if self.nodes.is_empty() {
            return Some(last);
        }
        let top = std::mem::replace(&mut self.nodes[0], last);
        self.sink(0);
        Some(top)
    }

    /// More are due than have been asked for: if they are a good part of all, the next ones will come faster. `next` is
    /// the sequence of the one to come.
    pub(crate) fn expect_more(&mut self, now: u64, next: u32) {
        if self.burst.len() > 0 || !self.is_largely_due(now) {
            return;
        }
        let mut due = Vec::new();
        self.retain(|deadline| {
            let is_due = deadline.due <= now;
            due.extend(is_due.then_some(*deadline));
            !is_due
        });
        self.nodes.shrink_to(2 * self.nodes.len());
        self.burst = Burst::new(due, next);
    }

    fn is_largely_due(&self, now: u64) -> bool {
        let step = self.nodes.len() / SAMPLE;
        step >= SAMPLE && (0..SAMPLE).filter(|at| self.nodes[at * step].due <= now).count() >= SAMPLE / 4
    }

    /// Forgets those for which `keep` says no, and puts the rest in order anew.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Deadline) -> bool) {
        if self.burst.len() > 0 {
            self.burst.retain(&mut keep);
        }
        self.nodes.retain(keep);
        let parents = self.nodes.len().div_ceil(CHILDREN);
        (0..parents).rev().for_each(|node| self.sink(node));
    }

    pub(crate) fn clear(&mut self, keep_capacity: usize) {
        self.nodes.clear();
        self.nodes.shrink_to(keep_capacity);
        self.burst = Burst::default();
    }

    #[inline]
    fn starts_with_burst(&self) -> bool {
        let Some(first) = self.burst.peek() else { return false };
        self.nodes.first().is_none_or(|top| first.is_before(top))
    }

    #[inline]
    fn rise(&mut self, mut node: usize, rising: Deadline) -> bool {
        while node > 0 {
            let parent = (node - 1) / CHILDREN;
            if !rising.is_before(&self.nodes[parent]) {
                break;
            }
            self.nodes[node] = self.nodes[parent];
            node = parent;
        }
        self.nodes[node] = rising;
        node == 0
    }

    fn sink(&mut self, mut node: usize) {
        let sinking = self.nodes[node];
        let mut fetched = 0;
        loop {
            let first = node * CHILDREN + 1;
            let end = (first + CHILDREN).min(self.nodes.len());
            let Some(children) = self.nodes.get(first..end).filter(|children| !children.is_empty()) else { break };
            // Wherever it goes from here: by the time that is known, what stands there has been fetched.
            if let Some(next) = self.nodes.get(first * CHILDREN + 1..first * CHILDREN + 1 + CHILDREN * CHILDREN) {
                fetched ^= next[0].due ^ next[4].due ^ next[8].due ^ next[12].due ^ next[15].due;
            }
            let mut least = 0;
            for (child, deadline) in children.iter().enumerate().skip(1) {
                least = if deadline.is_before(&children[least]) { child } else { least };
            }
            if !children[least].is_before(&sinking) {
                break;
            }
            self.nodes[node] = children[least];
            node = first + least;
        }
        self.nodes[node] = sinking;
        std::hint::black_box(fetched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn at(due: u64, sequence: u32) -> Deadline {
        Deadline::new(due, sequence, sequence)
    }

    #[test]
    fn whatever_goes_in_comes_out_in_order() {
        let mut random = Random::new(5);
        for n in [0, 1, 2, 4, 5, 6, 20, 21, 22, 1000] {
            let mut heap = DeadlineHeap::default();
            let mut model: Vec<_> = (0..n).map(|sequence| (random.below(n as u64 / 2 + 1), sequence)).collect();
            model.iter().for_each(|&(due, sequence)| _ = heap.push(at(due, sequence)));
            model.retain(|(_, sequence)| sequence % 3 > 0);
            heap.retain(|deadline| deadline.sequence() % 3 > 0);
            model.sort_unstable();
            let order: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|d| (d.due, d.sequence())).collect();
            assert_eq!(order, model);
        }
    }

    #[test]
    fn what_is_due_together_keeps_its_place_among_all_that_comes_and_goes() {
        let mut random = Random::new(17);
        let (mut heap, mut model, mut bursts) = (DeadlineHeap::default(), std::collections::BTreeSet::new(), 0);
        for sequence in 0..200_000_u32 {
            let due = random.below(1 << 16);
            let on_top = model.first().is_none_or(|first| (due, sequence) < *first);
            assert_eq!(heap.push(at(due, sequence)), on_top);
            model.insert((due, sequence));
            if sequence % 20_000 != 19_999 {
                continue;
            }
            heap.expect_more(random.below(1 << 16), sequence + 1_000_000);
            bursts += u32::from(heap.burst.len() > 0);
            heap.retain(|deadline| deadline.sequence() % 7 > 0);
            model.retain(|(_, sequence)| sequence % 7 > 0);
            for taken in 0..random.below(15_000) {
                let first = model.pop_first();
                assert_eq!(heap.peek().map(|d| (d.due, d.sequence())), first);
                assert_eq!(heap.pop().map(|d| (d.due, d.sequence())), first);
                let later = (random.below(1 << 16), sequence + 1_000_000 + taken as u32);
                heap.push(at(later.0, later.1));
                model.insert(later);
            }
            assert_eq!((heap.len(), heap.iter().count()), (model.len(), model.len()));
        }
        assert!(bursts > 2, "{bursts}");
        heap.clear(0);
        assert!(heap.len() == 0 && heap.peek().is_none() && heap.pop().is_none());
    }

    #[test]
    fn a_few_that_are_due_stay_in_the_heap() {
        let heap_of = |n: u32| {
            let mut heap = DeadlineHeap::default();
            (0..n).for_each(|n| _ = heap.push(at(n.into(), n)));
            heap
        };
        for (n, now, together) in [(100, 100, 0), (10_000, 500, 0), (10_000, 4999, 5000), (10_000, 20_000, 10_000)] {
            let mut heap = heap_of(n);
            heap.expect_more(now, n);
            assert_eq!((heap.burst.len(), heap.len()), (together, n as usize));
        }
    }

    #[test]
    fn equal_times_keep_their_order_where_the_sequence_wraps_around() {
        let mut heap = DeadlineHeap::default();
        let sequence = |n: u32| (u32::MAX - 50).wrapping_add(n);
        for n in [100, 10_000] {
            (0..n).for_each(|n| _ = heap.push(at(7, sequence(n))));
            heap.expect_more(7, sequence(n));
            let order: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|d| d.sequence()).collect();
            assert_eq!(order, (0..n).map(sequence).collect::<Vec<_>>());
        }
    }
}
