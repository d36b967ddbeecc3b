//! Things by number.

use std::ops::{Index, IndexMut};

/// No number.
pub(super) const NONE: u32 = u32::MAX;
/// For how many things memory is kept when there are none.
pub(super) const SPARE: usize = 1024;

/// Things by number, in chunks: growing moves nothing, and numbers are used again, the latest first.
pub(super) struct Slab<N> {
    chunks: Vec<Vec<N>>,
    vacant: Vec<u32>,
    len: u32,
}

impl<N> Slab<N> {
    const CHUNK: usize = 256;

    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), vacant: Vec::new(), len: 0 }
    }

    #[inline]
    pub(super) fn live(&self) -> usize {
        self.len as usize - self.vacant.len()
    }

    /// Whether it holds no memory.
    #[cfg(test)]
    pub(super) fn is_bare(&self) -> bool {
        self.chunks.capacity() == 0 && self.vacant.capacity() == 0
    }

    /// A number that nobody has. What is under it is `new`, or what was left there.
    #[inline]
    pub(super) fn claim(&mut self, new: impl FnOnce() -> N) -> u32 {
        match self.vacant.pop() {
            Some(id) => id,
            None => self.append(new()),
        }
    }

    fn append(&mut self, thing: N) -> u32 {
        let id = self.len;
        assert!(id < NONE, "fewer than 2^32 messages");
        if id as usize / Self::CHUNK == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(Self::CHUNK));
        }
        self.chunks[id as usize / Self::CHUNK].push(thing);
        self.len += 1;
        id
    }

    /// Frees the number; what is left under it must own nothing, or be taken at once. [`Slab::tidy`] follows
    /// at some time.
    #[inline]
    pub(super) fn vacate(&mut self, id: u32) {
        self.vacant.push(id);
    }

    /// Once empty, a large slab gives its memory back.
    #[inline]
    pub(super) fn tidy(&mut self) {
        if self.len as usize > SPARE && self.live() == 0 {
            *self = Self::new();
        }
    }
}

impl<N> Index<u32> for Slab<N> {
    type Output = N;
    #[inline]
    fn index(&self, id: u32) -> &N {
        &self.chunks[id as usize / Self::CHUNK][id as usize % Self::CHUNK]
    }
}

impl<N> IndexMut<u32> for Slab<N> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut N {
        &mut self.chunks[id as usize / Self::CHUNK][id as usize % Self::CHUNK]
    }
}
