//! Batches on their way to the writer.

use super::batch::Batch;
use super::error::StoreError;
use super::item::{Seq, StreamId};
use super::live::LiveMark;
use super::options::{Durability, Options};
use super::ticket::{Answer, Wake};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Called with the places of what a batch inserted.
pub(super) type Call = Box<dyn FnOnce(Result<&[Seq], StoreError>) + Send>;

/// A batch and who waits for it, in one piece of memory: made by whoever hands it in, and mostly freed there too.
pub(crate) trait Submission: Send + Sync {
    fn batch(&self) -> &Batch;
    /// Called on the writer's thread after the commit, with the places of what it inserted, or why it failed; says who
    /// is to be woken after that.
    fn done(self: Arc<Self>, result: Result<&[Seq], StoreError>) -> Option<Wake>;
}

/// Who hears that the batch is committed, with the places of what it inserted, or could not be.
pub(super) enum Done {
    Call(Call),
    Ticket(Answer),
    Submission(Owed),
}

/// An answer to a submission. Dropped without having given one, it answers that the store is closed.
pub(super) struct Owed(Option<Arc<dyn Submission>>);

impl Owed {
    pub(super) fn give(mut self, result: Result<&[Seq], StoreError>) -> Option<Wake> {
        self.0.take()?.done(result)
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|submission| drop(submission.done(Err(StoreError::Closed))));
    }
}

/// One batch and who waits for it.
pub(super) struct Entry {
    /// `None` if whoever is done has it.
    batch: Option<Box<Batch>>,
    pub(super) durability: Durability,
    /// `None` if nobody waits: the batch may share a later commit, and one that failed for want of space is tried
    /// again.
    pub(super) done: Option<Done>,
    bytes: usize,
    /// What it notes as it is when the entry is taken.
    live: Option<Arc<LiveMark>>,
}

impl Entry {
    pub(super) fn new(batch: Batch, durability: Durability, done: Option<Done>) -> Self {
        Self { bytes: batch.bytes(), batch: Some(Box::new(batch)), durability, done, live: None }
    }

    pub(super) fn shared(submission: Arc<dyn Submission>, durability: Durability) -> Self {
        let bytes = submission.batch().bytes();
        Self { batch: None, durability, done: Some(Done::Submission(Owed(Some(submission)))), bytes, live: None }
    }

    /// Nobody waits for it.
    pub(super) fn live(batch: Batch, live: Arc<LiveMark>) -> Self {
        Self { live: Some(live), ..Self::new(batch, Durability::Buffered, None) }
    }

    /// What is to be committed; not to be asked for once it is answered.
    pub(super) fn batch(&self) -> &Batch {
        match (&self.batch, &self.done) {
            (Some(batch), _) => batch,
            (None, Some(Done::Submission(Owed(Some(submission))))) => submission.batch(),
            _ => unreachable!("it was answered before it was committed"),
        }
    }
}

/// What the writer takes at once.
#[derive(Default)]
pub(super) struct Pile {
    pub(super) entries: Vec<Entry>,
    /// Items to delete that nobody waits for, before anything else, since they were there before it. Most of what a
    /// queue writes beside its messages is this, and an entry for each would be twenty times as large.
    pub(super) deletions: Vec<(StreamId, Seq)>,
}

impl Pile {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.deletions.is_empty()
    }

    /// How many batches were handed in.
    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.deletions.len()
    }

    /// How much of the room for waiting work it takes.
    pub(super) fn bytes(&self) -> usize {
        let entries: usize = self.entries.iter().map(|entry| entry.bytes).sum();
        entries + self.deletions.len() * DELETION
    }

    /// Adds what came later.
    pub(super) fn append(&mut self, later: &mut Self) {
        if self.is_empty() {
            return std::mem::swap(self, later);
        }
        self.entries.append(&mut later.entries);
        self.deletions.append(&mut later.deletions);
    }
}

/// What the writer is to do next.
pub(super) enum Work {
    /// There are entries to commit.
    Commit,
    /// Somebody wants it to look for what other connections have written.
    Look,
    /// There has been nothing to do for a while.
    Idle,
    /// The store is being closed, and there is nothing left.
    Close,
}

pub(super) struct Inbox {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    /// As of the last change of the bytes, made under the lock: whoever only asks does not take that.
    is_full: AtomicBool,
    limit: usize,
    lazy_delay: Duration,
}

#[derive(Default)]
struct State {
    pile: Pile,
    /// Of its entries.
    live: Vec<Arc<LiveMark>>,
    /// Of what waits and of what is being committed.
    bytes: usize,
    /// Somebody waits for one of the entries.
    eager: bool,
    /// For how many of them.
    awaited: usize,
    /// When what nobody waits for is to be committed at the latest.
    lazy_until: Option<Instant>,
    look: bool,
    writer_sleeps: bool,
    waiting_for_room: usize,
    closing: bool,
}

/// A commit this large is worth the while, even if nobody waits for it.
const LAZY_BYTES: usize = 1 << 20;
/// What the deletion of one item takes while it waits.
const DELETION: usize = size_of::<(StreamId, Seq)>();

impl Inbox {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            room: Condvar::new(),
            is_full: AtomicBool::new(options.queue_bytes == 0),
            limit: options.queue_bytes,
            lazy_delay: options.lazy_delay,
        }
    }

    /// Never blocks. Gives the entry back if the store is closed; dropped, it says so to whoever waits.
    pub(super) fn push(&self, mut entry: Entry) -> Result<(), Entry> {
        let mut state = self.state.lock();
        if state.closing {
            drop(state);
            return Err(entry);
        }
        self.take_room(&mut state, entry.bytes);
        state.live.extend(entry.live.take());
        let lazy = entry.done.is_none();
        state.awaited += usize::from(!lazy);
        state.pile.entries.push(entry);
        self.pushed(state, lazy);
        Ok(())
    }

    /// Has an item deleted with one of the next commits; `false` if the store is closed.
    pub(super) fn delete(&self, stream: StreamId, seq: Seq) -> bool {
        let mut state = self.state.lock();
        if state.closing {
            return false;
        }
        self.take_room(&mut state, DELETION);
        state.pile.deletions.push((stream, seq));
        self.pushed(state, true);
        true
    }

    fn take_room(&self, state: &mut State, bytes: usize) {
        state.bytes += bytes;
        if state.bytes >= self.limit {
            self.is_full.store(true, Ordering::Release);
        }
    }

    fn pushed(&self, mut state: MutexGuard<'_, State>, lazy: bool) {
        let wake = if lazy && state.bytes < LAZY_BYTES {
            let first = state.lazy_until.is_none();
            state.lazy_until.get_or_insert_with(|| Instant::now() + self.lazy_delay);
            first
        } else {
            !std::mem::replace(&mut state.eager, true)
        };
        self.wake_writer(state, wake);
    }

    pub(super) fn look(&self) {
        let mut state = self.state.lock();
        state.look = true;
        self.wake_writer(state, true);
    }

    fn wake_writer(&self, mut state: MutexGuard<'_, State>, wake: bool) {
        let wake = wake && std::mem::take(&mut state.writer_sleeps);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Sleeps until there is something to do and says what; what came ends up in `into`, in its order, behind what it
    /// holds already. `idle_at` is when to come back even if there is nothing.
    pub(super) fn next(&self, into: &mut Pile, idle_at: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            let late = |at: Instant| Instant::now() >= at;
            if state.eager || (!state.pile.is_empty() && (state.closing || state.lazy_until.is_some_and(late))) {
                (state.eager, state.awaited) = (false, 0);
                state.lazy_until = None;
                state.live.drain(..).for_each(|mark| mark.take());
                into.append(&mut state.pile);
                return Work::Commit;
            }
            if std::mem::take(&mut state.look) {
                return Work::Look;
            }
            if state.closing {
                return Work::Close;
            }
            if idle_at.is_some_and(late) {
                return Work::Idle;
            }
            state.writer_sleeps = true;
            match state.lazy_until.into_iter().chain(idle_at).min() {
                Some(until) => {
                    self.work.wait_until(&mut state, until);
                }
                None => self.work.wait(&mut state),
            }
            state.writer_sleeps = false;
        }
    }

    /// What was taken is done with, and so much room is free again.
    pub(super) fn finished(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        self.is_full.store(state.bytes >= self.limit, Ordering::Release);
        let wake = state.waiting_for_room > 0 && state.bytes < self.limit;
        drop(state);
        if wake {
            self.room.notify_all();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// How many batches that somebody waits for have come.
    pub(super) fn awaited(&self) -> usize {
        self.state.lock().awaited
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.bytes < self.limit || state.closing
    }

    /// Waits, until `end` if there is one; `false` when that came first.
    pub(super) fn wait_for_room(&self, end: Option<Instant>) -> bool {
        if !self.is_full.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state.lock();
        while state.bytes >= self.limit && !state.closing {
            state.waiting_for_room += 1;
            let late = match end {
                Some(end) => self.room.wait_until(&mut state, end).timed_out(),
                None => {
                    self.room.wait(&mut state);
                    false
                }
            };
            state.waiting_for_room -= 1;
            if late {
                return state.bytes < self.limit || state.closing;
            }
        }
        true
    }

    /// From now on nothing is taken; what is in stays.
    pub(super) fn shut(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        self.room.notify_all();
        self.wake_writer(state, true);
    }

    /// The writer is gone. Gives back what it has not seen.
    pub(super) fn abandon(&self) -> Vec<Entry> {
        let mut state = self.state.lock();
        state.closing = true;
        state.bytes = 0;
        self.is_full.store(false, Ordering::Release);
        let left = std::mem::take(&mut state.pile);
        drop(state);
        self.room.notify_all();
        left.entries
    }

    pub(super) fn is_shut(&self) -> bool {
        self.state.lock().closing
    }
}
