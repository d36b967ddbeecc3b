//! A first-in-first-out queue in two halves, so that those who put and those who take rarely meet.
//!
//! Producers fill the [`Tail`], consumers empty the [`Head`], each under a lock of its own. When the head
//! is empty, a consumer takes both locks once and moves a whole chunk over. Emptied chunks go back to be
//! filled again, so a steady flow allocates nothing; a backlog grows by chunks, never by copying what is
//! there, so its millionth message costs what its first did.

use std::collections::VecDeque;
use std::marker::PhantomData;

pub(crate) type Chunk<M> = VecDeque<M>;

/// Emptied chunks kept for reuse; a drained backlog gives the others back.
const SPARE_CHUNKS: usize = 4;

/// Messages to a chunk: about 16 KiB, in a power of two between 16 and 256.
pub(crate) const fn chunk_len<M>() -> usize {
    let size = if size_of::<M>() == 0 { 1 } else { size_of::<M>() };
    let fitting = 16 * 1024 / size;
    if fitting >= 256 {
        256
    } else if fitting <= 16 {
        16
    } else {
        fitting.next_power_of_two() / 2
    }
}

/// The half that is filled, in chunks as long as those of `Like`: two that are filled and emptied in step
/// have their chunks in step.
pub(crate) struct Tail<M, Like = M> {
    full: VecDeque<Chunk<M>>,
    filling: Chunk<M>,
    /// The only message of both halves, if it came in by [`Tail::lone_place`].
    lone: Option<M>,
    spare: Vec<Chunk<M>>,
    /// The head may have messages.
    fed: bool,
    like: PhantomData<fn() -> Like>,
}

/// The half that is emptied.
pub(crate) struct Head<M> {
    chunk: Chunk<M>,
}

impl<M, Like> Tail<M, Like> {
    pub(crate) fn new() -> Self {
        let (full, filling, spare) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Self { full, filling, lone: None, spare, fed: false, like: PhantomData }
    }

    #[inline]
    pub(crate) fn push(&mut self, message: M) {
        self.chunk().push_back(message);
    }

    /// The chunk for the next message.
    #[inline]
    pub(crate) fn chunk(&mut self) -> &mut Chunk<M> {
        self.join_lone();
        if self.filling.len() >= chunk_len::<Like>() {
            self.close_chunk();
        }
        &mut self.filling
    }

    /// Where the next message may stand by itself, if it is the only one. It is put in there and taken out in one piece
    /// each; a chunk takes it by way of another copy.
    #[inline]
    pub(crate) fn lone_place(&mut self) -> Option<&mut Option<M>> {
        let free = !self.fed && self.lone.is_none() && self.filling.is_empty() && self.full.is_empty();
        free.then_some(&mut self.lone)
    }

    /// The message that stands by itself.
    #[inline]
    pub(crate) fn lone(&mut self) -> &mut Option<M> {
        &mut self.lone
    }

    /// It is to have company.
    #[inline]
    fn join_lone(&mut self) {
        if self.lone.is_some() {
            self.filling.extend(self.lone.take());
        }
    }

    /// Appends a chunk without moving its messages.
    pub(crate) fn push_chunk(&mut self, chunk: Chunk<M>) {
        if chunk.is_empty() {
            return;
        }
        self.join_lone();
        if !self.filling.is_empty() {
            self.close_chunk();
        }
        self.full.push_back(chunk);
    }

    /// An empty chunk, one used before if there is one.
    pub(crate) fn spare(&mut self) -> Chunk<M> {
        self.spare.pop().unwrap_or_default()
    }

    /// Hands back a chunk that has been emptied.
    pub(crate) fn recycle(&mut self, chunk: Chunk<M>) {
        let usual = chunk.capacity() > 0 && chunk.capacity() <= 2 * chunk_len::<Like>();
        if usual && self.spare.len() < SPARE_CHUNKS {
            self.spare.push(chunk);
        }
    }

    /// How many messages, counted chunk by chunk.
    #[cfg(feature = "sqlite")]
    pub(crate) fn about(&self) -> usize {
        self.full.iter().map(VecDeque::len).sum::<usize>() + self.filling.len() + usize::from(self.lone.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lone.is_none() && self.filling.is_empty() && self.full.is_empty()
    }

    /// Moves the oldest chunk to an empty head. `false` if there is none.
    pub(crate) fn refill(&mut self, head: &mut Head<M>) -> bool {
        debug_assert!(head.chunk.is_empty());
        self.join_lone();
        if let Some(next) = self.full.pop_front() {
            let emptied = std::mem::replace(&mut head.chunk, next);
            self.recycle(emptied);
            self.fed = true;
            return true;
        }
        std::mem::swap(&mut head.chunk, &mut self.filling);
        self.fed = !head.chunk.is_empty();
        self.fed
    }

    /// The only message of both halves, if any; `None` unless there is at most one, and it is known to be here.
    #[inline]
    pub(crate) fn alone(&self) -> Option<Option<&M>> {
        let alone = !self.fed && self.filling.len() <= 1 && self.full.is_empty();
        alone.then(|| self.lone.as_ref().or(self.filling.front()))
    }

    /// Takes it, unless it stands by itself.
    #[inline]
    pub(crate) fn pop_alone(&mut self) -> Option<M> {
        self.filling.pop_front()
    }

    /// The head has been found empty.
    pub(crate) fn note_drained(&mut self) {
        self.fed = false;
    }

    /// Puts a message before all others.
    pub(crate) fn push_front(&mut self, head: &mut Head<M>, message: M) {
        self.join_lone();
        head.chunk.push_front(message);
        self.fed = true;
    }

    /// Takes everything, oldest first.
    pub(crate) fn take_all(&mut self, head: &mut Head<M>) -> Vec<M> {
        self.join_lone();
        let mut all: Vec<M> = std::mem::take(&mut head.chunk).into();
        for chunk in self.full.drain(..) {
            all.extend(chunk);
        }
        all.extend(std::mem::take(&mut self.filling));
        all
    }

    /// Visits everything, oldest first.
    pub(crate) fn iter_mut<'a>(&'a mut self, head: &'a mut Head<M>) -> impl Iterator<Item = &'a mut M> {
        let full = self.full.iter_mut().flatten();
        head.chunk.iter_mut().chain(full).chain(self.filling.iter_mut()).chain(&mut self.lone)
    }

    fn close_chunk(&mut self) {
        // Whoever fills one chunk will fill the next, so it need not grow step by step as the first does.
        let spare = self.spare.pop().unwrap_or_else(|| Chunk::with_capacity(chunk_len::<Like>()));
        let full = std::mem::replace(&mut self.filling, spare);
        self.full.push_back(full);
    }
}

impl<M> Head<M> {
    pub(crate) fn new() -> Self {
        Self { chunk: VecDeque::new() }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.chunk.len()
    }

    /// How many of the next messages, up to `max`, are all of a kind.
    pub(crate) fn run(&self, max: usize, of_the_kind: impl Fn(&M) -> bool) -> usize {
        self.chunk.iter().take(max).take_while(|message| of_the_kind(message)).count()
    }

    #[inline]
    pub(crate) fn first(&self) -> Option<&M> {
        self.chunk.front()
    }

    #[inline]
    pub(crate) fn first_mut(&mut self) -> Option<&mut M> {
        self.chunk.front_mut()
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<M> {
        self.chunk.pop_front()
    }

    /// Moves the first `n` behind what is in `chunk`.
    pub(crate) fn move_to(&mut self, n: usize, chunk: &mut Chunk<M>) {
        if n == self.chunk.len() {
            chunk.append(&mut self.chunk);
        } else {
            chunk.extend(self.chunk.drain(..n));
        }
    }

    /// Takes the whole chunk, leaving `empty` in its place.
    pub(crate) fn take_chunk(&mut self, empty: Chunk<M>) -> Chunk<M> {
        std::mem::replace(&mut self.chunk, empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn pop(tail: &mut Tail<u64>, head: &mut Head<u64>) -> Option<u64> {
        if head.is_empty() && !tail.refill(head) {
            return None;
        }
        head.pop()
    }

    #[test]
    fn any_mix_of_pushes_and_pops_keeps_the_order() {
        let mut random = Random::new(11);
        let (mut tail, mut head, mut model) = (Tail::new(), Head::new(), VecDeque::new());
        for n in 0..100_000 {
            match random.below(20) {
                0..=4 => {
                    let place = tail.lone_place();
                    assert!(place.is_none() || model.is_empty());
                    match place {
                        Some(place) => *place = Some(n),
                        None => tail.push(n),
                    }
                    model.push_back(n);
                }
                5..=9 => {
                    tail.push(n);
                    model.push_back(n);
                }
                10 => {
                    let chunk: Chunk<u64> = (n..n + random.below(300)).collect();
                    model.extend(chunk.iter());
                    tail.push_chunk(chunk);
                }
                12 if head.is_empty() => {
                    tail.note_drained();
                    if let Some(alone) = tail.alone() {
                        assert_eq!(alone.copied(), model.front().copied());
                        let taken = tail.lone().take().or_else(|| tail.pop_alone());
                        assert_eq!(taken, model.pop_front());
                    }
                }
                13 if n % 7 == 0 => {
                    tail.push_front(&mut head, n);
                    model.push_front(n);
                }
                11 if n % 50 == 0 => assert_eq!(tail.take_all(&mut head), model.drain(..).collect::<Vec<_>>()),
                _ => (0..random.below(40)).for_each(|_| assert_eq!(pop(&mut tail, &mut head), model.pop_front())),
            }
            assert_eq!(tail.is_empty() && head.is_empty(), model.is_empty());
        }
        assert!(tail.iter_mut(&mut head).map(|m| *m).eq(model));
    }

    #[test]
    fn a_drained_backlog_leaves_a_few_chunks() {
        let (mut tail, mut head) = (Tail::new(), Head::new());
        (0..100_000).for_each(|n| tail.push(n));
        while pop(&mut tail, &mut head).is_some() {}
        assert!(tail.spare.len() <= SPARE_CHUNKS && tail.full.is_empty());
    }

    #[test]
    fn chunks_fit_their_messages() {
        assert_eq!(chunk_len::<u8>(), 256);
        assert_eq!(chunk_len::<[u8; 192]>(), 64);
        assert_eq!(chunk_len::<[u8; 100_000]>(), 16);
        assert_eq!(chunk_len::<()>(), 256);
    }
}
