//! Places of messages that have come back in this run: they are in memory, or gone, whatever their rows say, which hear
//! of it later.
//!
//! At a bit each where they are close together, and once however often one comes back. They are forgotten many at a
//! time: there is an older set and a younger one, and the older goes once nobody can come across any of it.

use super::places::Places;
use crate::clock::Timestamp;
use crate::store::Seq;

#[derive(Default)]
pub(super) struct Returned {
    young: Comeback,
    old: Comeback,
}

#[derive(Default)]
struct Comeback {
    places: Places,
    /// None of them is due later, or was.
    until: Timestamp,
}

impl Returned {
    pub(super) fn contains(&self, place: Seq) -> bool {
        self.young.places.contains(place) || self.old.places.contains(place)
    }

    /// The message there is due then, and was never later.
    pub(super) fn insert(&mut self, place: Seq, due: Timestamp) {
        self.young.places.insert(place);
        self.young.until = self.young.until.max(due);
    }

    /// None of the older ones is due later, or was.
    pub(super) fn oldest_until(&self) -> Timestamp {
        self.old.until
    }

    /// The younger ones are the older ones from now on.
    pub(super) fn forget_oldest(&mut self) {
        self.old = std::mem::take(&mut self.young);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_until_it_is_among_the_oldest_and_those_go() {
        let mut returned = Returned::default();
        returned.insert(7, Timestamp(30));
        returned.insert(8, Timestamp(20));
        assert_eq!(returned.oldest_until(), Timestamp(0));
        returned.forget_oldest();
        returned.insert(8, Timestamp(40));
        assert!([7, 8].iter().all(|&place| returned.contains(place)) && !returned.contains(9));
        assert_eq!(returned.oldest_until(), Timestamp(30));
        returned.forget_oldest();
        assert!(!returned.contains(7) && returned.contains(8));
        assert_eq!(returned.oldest_until(), Timestamp(40));
    }
}
