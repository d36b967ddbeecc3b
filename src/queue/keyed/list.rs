//! Lists that run through the things of a slab.

use super::slab::{NONE, Slab};

/// A member's neighbours in a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    pub(super) previous: u32,
    pub(super) next: u32,
}

impl Links {
    pub(super) const NOWHERE: Self = Self { previous: NONE, next: NONE };
}

/// A list of things in a slab, by their links: taking one out costs the same anywhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) first: u32,
    last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.first == NONE
    }

    #[inline]
    pub(super) fn last(self) -> u32 {
        self.last
    }

    /// The links of a thing about to be appended.
    #[inline]
    pub(super) fn at_end(self) -> Links {
        Links { previous: self.last, next: NONE }
    }

    #[inline]
    pub(super) fn push_back<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        *links(&mut slab[id]) = self.at_end();
        self.append(slab, id, links);
    }

    /// Adds a thing whose links say already that it is at the end.
    #[inline]
    pub(super) fn append<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        match self.last {
            NONE => self.first = id,
            last => links(&mut slab[last]).next = id,
        }
        self.last = id;
    }

    pub(super) fn push_front<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        *links(&mut slab[id]) = Links { previous: NONE, next: self.first };
        match self.first {
            NONE => self.last = id,
            first => links(&mut slab[first]).previous = id,
        }
        self.first = id;
    }

    #[inline]
    pub(super) fn remove<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        let Links { previous, next } = std::mem::replace(links(&mut slab[id]), Links::NOWHERE);
        match previous {
            NONE => self.first = next,
            previous => links(&mut slab[previous]).next = next,
        }
        match next {
            NONE => self.last = previous,
            next => links(&mut slab[next]).previous = previous,
        }
    }
}
