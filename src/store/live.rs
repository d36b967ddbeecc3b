//! A number that changes more often than it is worth writing.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Noted in the file as it is when the writer takes the batch out of its inbox: however often it changes meanwhile, one
/// note waits at a time.
///
/// As it is then, and not later: whatever was handed in before the number was changed has been taken by then too, and
/// is in the file with the number or before it.
#[derive(Debug)]
pub(crate) struct LiveMark {
    number: AtomicU64,
    waits: AtomicBool,
    taken: AtomicU64,
}

impl LiveMark {
    pub(crate) fn new(number: u64) -> Self {
        Self { number: AtomicU64::new(number), waits: AtomicBool::new(false), taken: AtomicU64::new(number) }
    }

    /// Changes it; whether a batch that notes it has to be handed in.
    #[must_use]
    pub(crate) fn set(&self, number: u64) -> bool {
        self.number.swap(number, Ordering::SeqCst) != number && !self.waits.swap(true, Ordering::SeqCst)
    }

    /// The writer takes the batch. Whoever changes the number from here on hands in another.
    pub(super) fn take(&self) {
        self.waits.store(false, Ordering::SeqCst);
        self.taken.store(self.number.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_note_waits_at_a_time_and_has_the_number_as_it_is_taken() {
        let mark = LiveMark::new(3);
        assert!(!mark.set(3), "nothing has changed");
        assert!(mark.set(4));
        assert!(!mark.set(5), "a note waits");
        mark.take();
        assert!(mark.set(6), "that one has been taken");
        assert_eq!(mark.taken(), 5);
        mark.take();
        assert!(mark.set(2), "back, by a seek");
        assert_eq!(mark.taken(), 6);
    }
}
