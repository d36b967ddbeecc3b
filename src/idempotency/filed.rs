//! What is done, kept in a stream of the broker's file: an item for each key, in the order of completion.

use super::{Ledger, Window};
use crate::clock::Timestamp;
use crate::message::Text;
use crate::store::{Batch, Durability, Item, Limit, Seq, Store, StoreError, StreamId};
use crate::sync::{AtomicU64, Ordering};

/// How much is read at once.
const PORTION: Limit = Limit { items: 4096, bytes: 4 << 20 };
/// So many that are forgotten are deleted at once, unless the window is small.
const TRIM: u64 = 256;

/// The stream of one ledger. The ledger's numbers are its places.
pub(crate) struct DoneStream {
    stream: StreamId,
    /// Everything before it is deleted, or about to be.
    trimmed: AtomicU64,
    step: u64,
}

impl DoneStream {
    /// Finds or makes the stream of that kind and name, and has the ledger, which is empty, remember what is in it.
    /// Reads no more than the window holds. Keys of another sort (`by`) are forgotten: they could be mistaken for
    /// these.
    pub(crate) fn open<W>(
        store: &Store,
        (kind, name, by): (&str, &str, &str),
        ledger: &Ledger<W>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let found = store.reader()?.stream(kind, name)?;
        let others = found.as_ref().is_some_and(|stream| stream.settings != by);
        let (stream, next) = match found {
            Some(stream) if !others => (stream.id, stream.next),
            Some(stream) => {
                let afresh = Batch::new().trim(stream.id, Seq::MAX).settings(stream.id, by);
                store.commit(afresh, Durability::Sync)?;
                (stream.id, stream.next)
            }
            None => (store.declare(kind, name, by)?, 0),
        };
        let window = ledger.window();
        let first = if others { next } else { first_of_window(store, stream, next, window, now)? };
        read_into(ledger, store, stream, first, now)?;
        ledger.begin_at(next);
        if next > 0 {
            store.submit_lazily(Batch::new().trim(stream, first))?;
        }
        let step = (window.max as u64 / 8).clamp(1, TRIM);
        Ok(Self { stream, trimmed: AtomicU64::new(first), step })
    }

    /// Notes that a key is done, and forgets all before `oldest`.
    pub(crate) fn note(&self, id: u64, key: &Text, now: Timestamp, oldest: Seq) -> Batch {
        self.insertion(id, key, now).and(self.trimming(oldest))
    }

    /// Notes that a key is done.
    pub(crate) fn insertion(&self, id: u64, key: &Text, now: Timestamp) -> Batch {
        let item = Item { id, published_at: now.0, key: Some(key.as_str().to_owned()), ..Item::default() };
        Batch::new().insert(self.stream, item)
    }

    /// Forgets all before `oldest`, if that is worth the while.
    pub(crate) fn trimming(&self, oldest: Seq) -> Batch {
        if oldest < self.trimmed.load(Ordering::Relaxed) + self.step {
            return Batch::new();
        }
        self.trimmed.store(oldest, Ordering::Relaxed);
        Batch::new().trim(self.stream, oldest)
    }
}

fn first_of_window(
    store: &Store,
    stream: StreamId,
    next: Seq,
    window: Window,
    now: Timestamp,
) -> Result<Seq, StoreError> {
    let since = now.0.saturating_sub(Timestamp::default().after(window.time).0);
    let in_time = store.reader()?.find_time(stream, since.saturating_add(1))?.unwrap_or(next);
    Ok(in_time.max(next.saturating_sub(window.max as u64)))
}

fn read_into<W>(
    ledger: &Ledger<W>,
    store: &Store,
    stream: StreamId,
    first: Seq,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (reader, mut from) = (store.reader()?, first);
    loop {
        let rows = reader.read(stream, from, PORTION)?;
        let Some(last) = rows.last() else { return Ok(()) };
        from = last.seq + 1;
        for row in rows {
            // A clock that was set back does not make anything be remembered for longer.
            let at = Timestamp(row.item.published_at).min(now);
            row.item.key.iter().for_each(|key| ledger.restore(Text::new(key), row.seq, at));
        }
    }
}
