//! Extras that are used again.
//!
//! The place in the file stands among a message's extras. They are made on the writer's thread, and were freed on a
//! worker's: memory that changes hands costs several times what it does otherwise, through a lock of the allocator and
//! the cache lines of all that stands in it. So workers give them back, and only the line with the place goes to and fro.

use crate::message::Extras;
use crate::sync::{Mutex, Padded};

/// So many are kept on either side, at most.
const MOST: usize = 512;

#[derive(Default)]
#[expect(clippy::vec_box, reason = "the boxes are what is used again")]
pub(super) struct Spares {
    /// What the writer takes from, by a lock that hardly anybody else wants.
    at_hand: Padded<Mutex<Vec<Box<Extras>>>>,
    returned: Padded<Mutex<Vec<Box<Extras>>>>,
}

impl Spares {
    pub(super) fn take(&self) -> Option<Box<Extras>> {
        let mut at_hand = self.at_hand.lock();
        if at_hand.is_empty() {
            std::mem::swap(&mut *at_hand, &mut *self.returned.lock());
        }
        at_hand.pop()
    }

    /// They must be bare.
    pub(super) fn give(&self, extras: Box<Extras>) {
        let mut returned = self.returned.lock();
        if returned.len() < MOST {
            returned.push(extras);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_taken_again_and_no_more_is_kept_than_some() {
        let spares = Spares::default();
        assert!(spares.take().is_none());
        (0..2 * MOST).for_each(|_| spares.give(Box::default()));
        assert!(spares.take().is_some());
        (0..2 * MOST).for_each(|_| spares.give(Box::default()));
        assert_eq!(std::iter::from_fn(|| spares.take()).count(), 2 * MOST - 1);
    }
}
