//! Messages that follow each other, which everybody reads without a lock.

use super::row::Row;
use crate::message::{Keeps, Message};
use crate::outcome::{contained, drop_contained};
use crate::sync::Mutex;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

/// The most messages in one chunk: as many as a subscriber takes ahead.
pub(super) const CHUNK: usize = 128;

/// The most chunks that are kept for use again.
const KEPT: usize = 4;

/// A piece of a ring. It is filled under the ring's lock, and never changes once others have it.
pub(super) struct Chunk<T> {
    /// The place of its first message.
    pub(super) start: u64,
    /// How many chunks there were before it.
    pub(super) number: u64,
    pub(super) messages: Messages<T>,
    /// Some of them have a time to live, so that their readers need not look at each.
    pub(super) expires: bool,
}

/// How a chunk holds its messages: all in one way.
pub(super) enum Messages<T> {
    /// Where only handlers read them, who take none along.
    Own(Row<T>),
    Shared(Vec<Arc<Message<T>>>),
}

impl<T> Messages<T> {
    pub(super) fn with_capacity(own: bool, len: usize) -> Self {
        if own { Self::Own(Row::with_capacity(len)) } else { Self::Shared(Vec::with_capacity(len)) }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(row) => row.as_slice().len(),
            Self::Shared(messages) => messages.len(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Own(row) => row.capacity(),
            Self::Shared(messages) => messages.capacity(),
        }
    }

    fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    #[inline]
    fn get(&self, index: usize) -> &Message<T> {
        match self {
            Self::Own(row) => &row.as_slice()[index],
            Self::Shared(messages) => &messages[index],
        }
    }

    #[inline]
    fn range(&self, range: Range<usize>) -> Run<'_, T> {
        match self {
            Self::Own(row) => Run::Own(row.as_slice()[range].iter()),
            Self::Shared(messages) => Run::Shared(messages[range].iter()),
        }
    }

    /// Gives back room for messages that did not come, but for as many as did: the next chunk is made for twice as many,
    /// and should find it among the used.
    fn shrink(&mut self) {
        let room = 2 * self.len();
        if self.capacity() <= room {
            return;
        }
        match self {
            Self::Own(row) => row.shrink_to(room),
            Self::Shared(messages) => messages.shrink_to(room),
        }
    }

    /// Drops what is in the messages. The places of those that nobody else has go to `spares`.
    fn clear(&mut self, spares: &mut Vec<Arc<Message<T>>>) {
        match self {
            Self::Own(row) => row.clear(),
            Self::Shared(messages) => {
                spares.reserve(messages.len());
                messages.drain(..).for_each(|mut message| match Arc::get_mut(&mut message) {
                    Some(alone) => {
                        let _ = contained(|| alone.clear());
                        spares.push(message);
                    }
                    None => drop_contained(message),
                });
            }
        }
    }
}

impl<T> Chunk<T> {
    pub(super) fn new(start: u64, number: u64) -> Self {
        // Takes no memory.
        Self { start, number, messages: Messages::Shared(Vec::new()), expires: false }
    }

    pub(super) fn holds(&self, place: u64) -> bool {
        (self.start..self.end()).contains(&place)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.len() == 0
    }

    /// The place after its last message.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.start + self.messages.len() as u64
    }

    /// For others to see.
    pub(super) fn sealed(mut self) -> Arc<Self> {
        self.messages.shrink();
        Arc::new(self)
    }

    #[inline]
    pub(super) fn get(&self, place: u64) -> &Message<T> {
        self.messages.get((place - self.start) as usize)
    }

    /// Those from one place up to another.
    #[inline]
    pub(super) fn run(&self, places: Range<u64>) -> Run<'_, T> {
        self.messages.range((places.start - self.start) as usize..(places.end - self.start) as usize)
    }
}

/// Messages of one chunk that follow each other.
pub(super) enum Run<'a, T> {
    Own(slice::Iter<'a, Message<T>>),
    Shared(slice::Iter<'a, Arc<Message<T>>>),
}

impl<T> Default for Run<'_, T> {
    fn default() -> Self {
        Self::Own([].iter())
    }
}

impl<'a, T> Iterator for Run<'a, T> {
    type Item = &'a Message<T>;

    #[inline]
    fn next(&mut self) -> Option<&'a Message<T>> {
        match self {
            Self::Own(messages) => messages.next(),
            Self::Shared(messages) => messages.next().map(|message| &**message),
        }
    }
}

impl<T: Send + Sync + 'static> Chunk<T> {
    /// A message for somebody who takes it along. One that stands here for handlers keeps the chunk alive then.
    #[inline]
    pub(super) fn share(self: &Arc<Self>, place: u64) -> Arc<Message<T>> {
        let index = (place - self.start) as usize;
        match &self.messages {
            Messages::Shared(messages) => Arc::clone(&messages[index]),
            Messages::Own(row) => {
                let chunk = Arc::clone(self);
                Arc::new(row.as_slice()[index].share_kept(|| Arc::new(Kept { chunk, index })))
            }
        }
    }
}

/// The payload of a message that stays in its chunk.
struct Kept<T> {
    chunk: Arc<Chunk<T>>,
    index: usize,
}

impl<T: Send + Sync> Keeps<T> for Kept<T> {
    fn payload(&self) -> &T {
        self.chunk.messages.get(self.index).payload()
    }
}

impl<T> Drop for Chunk<T> {
    fn drop(&mut self) {
        match &mut self.messages {
            Messages::Own(row) => row.drop_messages(),
            Messages::Shared(messages) => messages.drain(..).for_each(drop_contained),
        }
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

/// Room for messages, and emptied messages.
type Used<T> = (Messages<T>, Vec<Arc<Message<T>>>);

impl<T> Pool<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Shelf { used: Vec::new(), is_open: false }))
    }

    /// Room for so many messages, and places for them unless `spares` has some.
    pub(super) fn take(&self, own: bool, len: usize, spares: &mut Vec<Arc<Message<T>>>) -> Messages<T> {
        let Some((messages, mut places)) = self.0.lock().used.pop() else {
            return Messages::with_capacity(own, len);
        };
        if spares.is_empty() {
            std::mem::swap(spares, &mut places);
        }
        if messages.is_own() == own && messages.capacity() >= len {
            messages
        } else {
            Messages::with_capacity(own, len)
        }
    }

    /// Lets go of a chunk, holding no lock: whoever is the last to do so drops what is in it.
    pub(super) fn give(&self, chunk: Arc<Chunk<T>>) {
        let Some(mut chunk) = Arc::into_inner(chunk) else { return };
        let mut messages = std::mem::replace(&mut chunk.messages, Messages::Shared(Vec::new()));
        let mut spares = Vec::new();
        messages.clear(&mut spares);
        let mut shelf = self.0.lock();
        if shelf.is_open && shelf.used.len() < KEPT {
            shelf.used.push((messages, spares));
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

    /// A chunk at place 8.
    fn chunk(messages: &[Arc<Message<u32>>]) -> Arc<Chunk<u32>> {
        Arc::new(Chunk { start: 8, number: 0, messages: Messages::Shared(messages.to_vec()), expires: false })
    }

    #[test]
    fn what_is_written_can_be_read() {
        let chunk = chunk(&[Arc::new(Message::new(1)), Arc::new(Message::new(2))]);
        assert_eq!((**chunk.get(8), **chunk.get(9), chunk.end()), (1, 2, 10));
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
        assert_eq!(**reader.get(9), 2);
        pool.give(reader);
        let mut spares = Vec::new();
        let again = pool.take(false, 2, &mut spares);
        assert_eq!((spares.len(), again.len(), again.capacity()), (1, 0, 2));
        assert_eq!(**kept, 1);
    }

    #[test]
    fn a_message_taken_along_outlives_its_place() {
        let (payload, message) = (Arc::new("kept"), Message::new(Arc::new("left")).with_header("of", "this"));
        let messages = Messages::Own(Row::from(vec![message, Message::new(Arc::clone(&payload))]));
        let chunk = Arc::new(Chunk { start: 8, number: 0, messages, expires: false });
        let (taken, left) = (chunk.share(9), chunk.share(8));
        Pool::new().give(chunk);
        assert_eq!((**left.payload(), left.header("of")), ("left", Some("this")));
        drop(left);
        assert_eq!((**taken.payload(), Arc::strong_count(&payload)), ("kept", 2));
        drop(taken);
        assert_eq!(Arc::strong_count(&payload), 1);
    }

    #[test]
    fn room_for_messages_that_did_not_come_is_given_back() {
        let capacity = |len| {
            let mut messages = Messages::with_capacity(true, CHUNK);
            if let Messages::Own(row) = &mut messages {
                (0..len).for_each(|n| row.push(Message::new(n)));
            }
            Chunk { start: 0, number: 0, messages, expires: false }.sealed().messages.capacity()
        };
        assert_eq!((capacity(1), capacity(CHUNK / 4), capacity(CHUNK / 2)), (2, CHUNK / 2, CHUNK));
    }

    #[test]
    fn little_is_kept_and_nothing_once_it_is_closed() {
        let pool = Pool::<u32>::new();
        let kept = |pool: &Pool<u32>| pool.0.lock().used.len();
        pool.give(chunk(&[]));
        assert_eq!(kept(&pool), 0);
        pool.set_open(true);
        (0..9).for_each(|_| pool.give(chunk(&[])));
        assert_eq!(kept(&pool), KEPT);
        pool.set_open(false);
        assert_eq!(kept(&pool), 0);
    }
}
