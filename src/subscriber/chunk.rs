//! Messages that follow each other, written once and read by everybody without a lock.

use crate::message::Message;
use crate::outcome::{contained, drop_contained};
use crate::sync::{AtomicBool, Mutex, Ordering};
use std::sync::{Arc, OnceLock};

/// The most messages in one chunk.
pub(super) const CHUNK: usize = 64;

/// The most chunks that are kept for use again.
const KEPT: usize = 2;

/// A piece of a ring. Its slots are filled in order, under the ring's lock, and never change after that.
pub(super) struct Chunk<T> {
    /// The place of its first message.
    pub(super) start: u64,
    slots: Vec<OnceLock<Arc<Message<T>>>>,
    /// Some of them have a time to live, so that their readers need not look at each.
    expires: AtomicBool,
}

impl<T> Chunk<T> {
    pub(super) fn new(start: u64, len: usize) -> Self {
        Self { start, slots: (0..len).map(|_| OnceLock::new()).collect(), expires: AtomicBool::new(false) }
    }

    /// Where it ends at the latest; the next one may begin earlier.
    pub(super) fn limit(&self) -> u64 {
        self.start + self.slots.len() as u64
    }

    #[inline]
    pub(super) fn put(&self, place: u64, message: Arc<Message<T>>) {
        if message.expires() {
            self.expires.store(true, Ordering::Relaxed);
        }
        assert!(self.slots[(place - self.start) as usize].set(message).is_ok(), "a place is written once");
    }

    /// `None` if nothing has been written there.
    #[inline]
    pub(super) fn get(&self, place: u64) -> Option<&Arc<Message<T>>> {
        self.slots[(place - self.start) as usize].get()
    }

    #[inline]
    pub(super) fn expires(&self) -> bool {
        self.expires.load(Ordering::Relaxed)
    }

    /// Drops the messages, one by one, since a second panic on the way out would abort the process. The places of
    /// those that nobody else has go to `spares`.
    fn clear(&mut self, spares: &mut Vec<Arc<Message<T>>>) {
        for mut message in self.slots.iter_mut().filter_map(OnceLock::take) {
            let Some(alone) = Arc::get_mut(&mut message) else {
                drop_contained(message);
                continue;
            };
            let _ = contained(|| alone.clear());
            spares.push(message);
        }
    }
}

impl<T> Drop for Chunk<T> {
    fn drop(&mut self) {
        self.slots.iter_mut().filter_map(OnceLock::take).for_each(drop_contained);
    }
}

/// Used chunks and the places of their messages, to be used again: a ring in motion allocates a little for each
/// chunk, and nothing for a message.
pub(super) struct Pool<T>(Mutex<Shelf<T>>);

struct Shelf<T> {
    used: Vec<Used<T>>,
    /// Nothing is kept while nobody has subscribed.
    is_open: bool,
}

/// An emptied chunk and emptied messages.
type Used<T> = (Chunk<T>, Vec<Arc<Message<T>>>);

impl<T> Pool<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Shelf { used: Vec::new(), is_open: false }))
    }

    /// A chunk, and places for its messages unless `spares` has some.
    pub(super) fn take(&self, start: u64, len: usize, spares: &mut Vec<Arc<Message<T>>>) -> Chunk<T> {
        let Some((mut chunk, mut places)) = self.0.lock().used.pop() else { return Chunk::new(start, len) };
        if spares.is_empty() {
            std::mem::swap(spares, &mut places);
        }
        if chunk.slots.len() != len {
            return Chunk::new(start, len);
        }
        chunk.start = start;
        chunk.expires = AtomicBool::new(false);
        chunk
    }

    /// Lets go of a chunk, holding no lock: whoever is the last to do so drops what is in it.
    pub(super) fn give(&self, chunk: Arc<Chunk<T>>) {
        let Some(mut chunk) = Arc::into_inner(chunk) else { return };
        let mut spares = Vec::with_capacity(chunk.slots.len());
        chunk.clear(&mut spares);
        let mut shelf = self.0.lock();
        if shelf.is_open && shelf.used.len() < KEPT {
            shelf.used.push((chunk, spares));
        }
    }

    pub(super) fn set_open(&self, is_open: bool) {
        let mut shelf = self.0.lock();
        shelf.is_open = is_open;
        if !is_open {
            shelf.used = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk of four at place 8, with messages in its first places.
    fn chunk(messages: &[Arc<Message<u32>>]) -> Arc<Chunk<u32>> {
        let chunk = Chunk::new(8, 4);
        (8..).zip(messages).for_each(|(place, message)| chunk.put(place, Arc::clone(message)));
        Arc::new(chunk)
    }

    #[test]
    fn what_is_written_can_be_read_and_the_rest_is_not_there() {
        let chunk = chunk(&[Arc::new(Message::new(1)), Arc::new(Message::new(2))]);
        let read = |place| chunk.get(place).map(|message| ***message);
        assert_eq!((read(8), read(9), read(10), chunk.limit()), (Some(1), Some(2), None, 12));
    }

    #[test]
    fn only_what_nobody_else_has_is_used_again() {
        let pool = Pool::new();
        pool.set_open(true);
        let kept = Arc::new(Message::new(1));
        let full = chunk(&[Arc::clone(&kept), Arc::new(Message::new(2))]);
        let reader = Arc::clone(&full);
        pool.give(full);
        assert!(pool.0.lock().used.is_empty(), "somebody still reads it");
        assert_eq!(***reader.get(9).unwrap(), 2);
        pool.give(reader);
        let mut spares = Vec::new();
        let again = pool.take(12, 4, &mut spares);
        assert_eq!((spares.len(), again.start, again.get(12).is_none()), (1, 12, true));
        assert_eq!(**kept, 1);
    }

    #[test]
    fn little_is_kept_and_nothing_once_it_is_closed() {
        let pool = Pool::<u32>::new();
        let kept = |pool: &Pool<u32>| pool.0.lock().used.len();
        pool.give(chunk(&[]));
        assert_eq!(kept(&pool), 0);
        pool.set_open(true);
        (0..5).for_each(|_| pool.give(chunk(&[])));
        assert_eq!(kept(&pool), KEPT);
        pool.set_open(false);
        assert_eq!(kept(&pool), 0);
    }
}
