//! Batches on their way to the writer.

use super::batch::Batch;
use super::error::StoreError;
use super::item::Seq;
use super::live::LiveMark;
use super::options::{Durability, Options};
use super::ticket::{Answer, Wake};
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Called with the places of what a batch inserted; says who is to be woken after that.
pub(crate) type Call = Box<dyn FnOnce(Result<&[Seq], StoreError>) -> Option<Wake> + Send>;

/// Who hears that the batch is committed, with the places of what it inserted, or could not be.
pub(super) enum Done {
    Call(Call),
    Ticket(Answer),
}

/// One batch and who waits for it.
pub(super) struct Entry {
    pub(super) batch: Batch,
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
        Self { bytes: batch.bytes(), batch, durability, done, live: None }
    }

    /// Nobody waits for it.
    pub(super) fn live(batch: Batch, live: Arc<LiveMark>) -> Self {
        Self { live: Some(live), ..Self::new(batch, Durability::Buffered, None) }
    }
}

pub(super) fn bytes_of(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.bytes).sum()
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
    limit: usize,
    lazy_delay: Duration,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// Theirs.
    live: Vec<Arc<LiveMark>>,
    /// Of entries waiting and being committed.
    bytes: usize,
    /// Somebody waits for one of the entries.
    eager: bool,
    /// When the entries that nobody waits for are to be committed at the latest.
    lazy_until: Option<Instant>,
    look: bool,
    writer_sleeps: bool,
    waiting_for_room: usize,
    closing: bool,
}

/// A commit this large is worth the while, even if nobody waits for it.
const LAZY_BYTES: usize = 1 << 20;

impl Inbox {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            room: Condvar::new(),
            limit: options.queue_bytes,
            lazy_delay: options.lazy_delay,
        }
    }

    /// Never blocks. Gives the entry back if the store is closed.
    pub(super) fn push(&self, mut entry: Entry) -> Result<(), Entry> {
        let mut state = self.state.lock();
        if state.closing {
            drop(state);
            return Err(entry);
        }
        state.bytes += entry.bytes;
        state.live.extend(entry.live.take());
        let lazy = entry.done.is_none();
        state.entries.push(entry);
        let wake = if lazy && state.bytes < LAZY_BYTES {
            let first = state.lazy_until.is_none();
            state.lazy_until.get_or_insert_with(|| Instant::now() + self.lazy_delay);
            first
        } else {
            !std::mem::replace(&mut state.eager, true)
        };
        self.wake_writer(state, wake);
        Ok(())
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

    /// Sleeps until there is something to do and says what; entries end up in `into`, in the order they came,
    /// behind what it holds already. `idle_at` is when to come back even if there is nothing.
    pub(super) fn next(&self, into: &mut Vec<Entry>, idle_at: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            let late = |at: Instant| Instant::now() >= at;
            if state.eager || (!state.entries.is_empty() && (state.closing || state.lazy_until.is_some_and(late))) {
                state.eager = false;
                state.lazy_until = None;
                state.live.drain(..).for_each(|mark| mark.take());
                if into.is_empty() {
                    std::mem::swap(into, &mut state.entries);
                } else {
                    into.append(&mut state.entries);
                }
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
        let wake = state.waiting_for_room > 0 && state.bytes < self.limit;
        drop(state);
        if wake {
            self.room.notify_all();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.bytes < self.limit || state.closing
    }

    /// Waits, until `end` if there is one; `false` when that came first.
    pub(super) fn wait_for_room(&self, end: Option<Instant>) -> bool {
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
        let left = std::mem::take(&mut state.entries);
        drop(state);
        self.room.notify_all();
        left
    }

    pub(super) fn is_shut(&self) -> bool {
        self.state.lock().closing
    }
}
