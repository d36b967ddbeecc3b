//! Messages side by side, in places that are used again.

use crate::message::{Message, Stamp, Text};
use crate::outcome::{contained, drop_contained};

/// The first `len` of these. Behind them stand those of the last use, emptied, since what is
/// written into such a place is copied once less than what is pushed.
pub(super) struct Row<T> {
    messages: Vec<Message<T>>,
    len: usize,
}

impl<T> Row<T> {
    pub(super) fn with_capacity(len: usize) -> Self {
        Self { messages: Vec::with_capacity(len), len: 0 }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[Message<T>] {
        &self.messages[..self.len]
    }

    /// An emptied message, if there is one, which is to become the next.
    #[inline(always)]
    pub(super) fn next_place(&mut self) -> Option<&mut Message<T>> {
        let place = self.messages.get_mut(self.len)?;
        self.len += 1;
        Some(place)
    }

    #[inline]
    pub(super) fn push(&mut self, message: Message<T>) {
        match self.next_place() {
            Some(place) => *place = message,
            None => {
                self.messages.push(message);
                self.len += 1;
            }
        }
    }

    /// Behind the last emptied place.
    #[inline(never)]
    pub(super) fn push_made(&mut self, stamp: Stamp, key: &Text, payload: T) {
        self.push(Message::shown(stamp, key, payload));
    }

    /// Keeps room for so many, and for those that are there.
    pub(super) fn shrink_to(&mut self, room: usize) {
        self.messages.truncate(room.max(self.len));
        self.messages.shrink_to(room);
    }

    /// One by one: a second panic on the way out would abort the process.
    pub(super) fn clear(&mut self) {
        let messages = self.messages[..self.len].iter_mut();
        if std::mem::needs_drop::<T>() {
            messages.for_each(|message| _ = contained(|| message.clear()));
        } else {
            // Nothing in them is the user's, so there is nobody to panic.
            messages.for_each(Message::clear);
        }
        self.len = 0;
    }

    pub(super) fn drop_messages(&mut self) {
        self.len = 0;
        if std::mem::needs_drop::<T>() {
            self.messages.drain(..).for_each(drop_contained);
        } else {
            self.messages.clear();
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.messages.capacity()
    }
}

impl<T> From<Vec<Message<T>>> for Row<T> {
    fn from(messages: Vec<Message<T>>) -> Self {
        let len = messages.len();
        Self { messages, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::sync::Arc;

    fn numbers(row: &Row<Arc<u32>>) -> Vec<u32> {
        row.as_slice().iter().map(|message| ***message).collect()
    }

    #[test]
    fn emptied_places_come_first_and_then_new_ones() {
        let mut row = Row::with_capacity(3);
        (0..2).for_each(|n| row.push(Message::new(Arc::new(n))));
        row.clear();
        assert_eq!((row.as_slice().len(), row.messages.len()), (0, 2));
        let stamp = Stamp { id: 7.into(), at: Timestamp(8) };
        row.next_place().expect("emptied").show(stamp, &Text::new("key"), Arc::new(5));
        (6..8).for_each(|n| row.push(Message::new(Arc::new(n))));
        assert!(row.next_place().is_none());
        assert_eq!((numbers(&row), row.messages.len()), (vec![5, 6, 7], 3));
        let first = &row.as_slice()[0];
        assert_eq!((first.id().get(), first.routing_key(), first.attempt()), (7, "key", 1));
    }

    #[test]
    fn what_is_in_a_place_is_dropped_when_it_is_emptied() {
        let payload = Arc::new(1);
        let mut row = Row::with_capacity(4);
        (0..3).for_each(|_| row.push(Message::new(Arc::clone(&payload)).with_header("some", "extras")));
        row.clear();
        assert_eq!(Arc::strong_count(&payload), 1);
        row.push(Message::new(Arc::clone(&payload)));
        row.shrink_to(2);
        assert_eq!((row.messages.len(), row.capacity()), (2, 2));
        row.shrink_to(0);
        assert_eq!((row.messages.len(), row.capacity()), (1, 1));
        row.drop_messages();
        assert_eq!((row.as_slice().len(), Arc::strong_count(&payload)), (0, 1));
    }
}
