//! Patterns by their segments, walked along all matching paths at once.

use super::Ids;
use super::index::take;
use super::pattern::{Pattern, Segment};
use ahash::AHashMap;
use smallvec::SmallVec;

/// Patterns by their segments. Nodes live in one vector, freed ones are used again; without
/// patterns there are no nodes at all.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    pub(super) nodes: Vec<Node>,
    pub(super) free: Vec<u32>,
}

const ROOT: u32 = 0;

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    words: AHashMap<Box<str>, u32>,
    one: Option<u32>,
    many: Option<u32>,
    /// Of the patterns that end here.
    ids: Ids,
}

impl Trie {
    pub(super) fn insert(&mut self, id: u32, pattern: &Pattern) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut node = ROOT;
        for segment in pattern.segments() {
            node = match self.node(node).child(segment) {
                Some(child) => child,
                None => self.grow(node, segment),
            };
        }
        self.node_mut(node).ids.push(id);
    }

    fn grow(&mut self, parent: u32, segment: Segment<'_>) -> u32 {
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 pattern segments")
        });
        self.node_mut(parent).link(segment, child);
        child
    }

    pub(super) fn remove(&mut self, id: u32, pattern: &Pattern) {
        let Some((path, end)) = self.path(pattern) else {
            return;
        };
        take(&mut self.node_mut(end).ids, |it| *it == id);
        self.prune(path, end);
    }

    /// The steps of `pattern`, each with the node it leaves from, and the node where it ends.
    fn path<'p>(&self, pattern: &'p Pattern) -> Option<(Vec<(u32, Segment<'p>)>, u32)> {
        let mut node = ROOT;
        let mut path = Vec::new();
        if self.nodes.is_empty() {
            return None;
        }
        for segment in pattern.segments() {
            path.push((node, segment));
            node = self.node(node).child(segment)?;
        }
        Some((path, node))
    }

    /// Frees the nodes of a path, from its end up, that no pattern needs any more.
    fn prune(&mut self, path: Vec<(u32, Segment<'_>)>, end: u32) {
        let mut node = end;
        for (parent, segment) in path.into_iter().rev() {
            if !self.node(node).is_empty() {
                return;
            }
            *self.node_mut(node) = Node::default();
            self.free.push(node);
            self.node_mut(parent).unlink(segment);
            node = parent;
        }
        if self.node(ROOT).is_empty() {
            *self = Self::default();
        }
    }

    /// Appends the ids of the patterns that match, in no order.
    pub(super) fn find(&self, key: &str, found: &mut SmallVec<[u32; 8]>) {
        if self.nodes.is_empty() {
            return;
        }
        let mut walk = Walk::start(self);
        for segment in key.split('.') {
            walk.advance(segment);
            if walk.is_over() {
                return;
            }
        }
        for node in walk.active() {
            found.extend_from_slice(&node.ids);
        }
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

impl Node {
    fn child(&self, segment: Segment<'_>) -> Option<u32> {
        match segment {
            Segment::Word(word) => self.words.get(word).copied(),
            Segment::One => self.one,
            Segment::Many => self.many,
        }
    }

    fn link(&mut self, segment: Segment<'_>, child: u32) {
        match segment {
            Segment::Word(word) => drop(self.words.insert(word.into(), child)),
            Segment::One => self.one = Some(child),
            Segment::Many => self.many = Some(child),
        }
    }

    fn unlink(&mut self, segment: Segment<'_>) {
        match segment {
            Segment::Word(word) => drop(self.words.remove(word)),
            Segment::One => self.one = None,
            Segment::Many => self.many = None,
        }
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.words.is_empty() && self.one.is_none() && self.many.is_none()
    }
}

/// A walk down the trie along all paths at once, as a nondeterministic automaton: the active
/// nodes are those that the segments read so far can lead to.
///
/// A node below a `#` stays active once reached, whatever follows. So these are kept apart and
/// only they can be reached twice: any other node has one parent, and is entered only from it.
struct Walk<'t> {
    trie: &'t Trie,
    steps: Active,
    /// Nodes below a `#`, sorted.
    loops: Active,
}

type Active = SmallVec<[u32; 16]>;

impl<'t> Walk<'t> {
    fn start(trie: &'t Trie) -> Self {
        let steps = Active::from_slice(&[ROOT]);
        let loops = Active::new();
        let mut walk = Self { trie, steps, loops };
        walk.skip_to_loops(ROOT);
        walk
    }

    fn advance(&mut self, segment: &str) {
        let mut next = Active::new();
        for node in self.active() {
            next.extend(node.words.get(segment).copied());
            next.extend(node.one);
        }
        for &node in &next {
            self.skip_to_loops(node);
        }
        self.steps = next;
    }

    /// `#` also stands for no segment: what is below it is reached along with its parent.
    fn skip_to_loops(&mut self, from: u32) {
        let mut below = self.trie.node(from).many;
        while let Some(node) = below {
            let Err(place) = self.loops.binary_search(&node) else {
                return;
            };
            self.loops.insert(place, node);
            below = self.trie.node(node).many;
        }
    }

    fn active(&self) -> impl Iterator<Item = &'t Node> {
        let nodes = self.steps.iter().chain(&self.loops);
        nodes.map(|&node| {
            #[cfg(test)]
            super::tests::VISITED.set(super::tests::VISITED.get() + 1);
            self.trie.node(node)
        })
    }

    fn is_over(&self) -> bool {
        self.steps.is_empty() && self.loops.is_empty()
    }
}
