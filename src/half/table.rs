//! Who owns a half message: the table, until somebody takes it out to settle it.

use super::HalfFate;
use crate::clock::Timestamp;
use crate::message::{Message, MessageId, Text};
use crate::scheduler::{DelayHeap, DelayKey};
use crate::sync::Mutex;
use ahash::AHashMap;
use std::sync::Arc;

/// How a half message ended, for the handle that its producer may still hold.
pub(super) type Ending = Arc<Mutex<Option<HalfFate>>>;

pub(super) struct Entry<T> {
    pub(super) key: Text,
    /// `None` while somebody settles it.
    pub(super) message: Option<Message<T>>,
    pub(super) ending: Ending,
    /// Checks that were answered with `Unknown`.
    pub(super) checks: u32,
    /// When it is looked at next, unless somebody does so now.
    next: Timestamp,
    due: Option<DelayKey>,
    /// It is being looked at, or about to be, and will be given its next time then.
    looked_at: bool,
    /// The listener has said commit; it only could not be published yet.
    pub(super) decided: bool,
}

pub(super) struct Table<T> {
    entries: AHashMap<MessageId, Entry<T>>,
    due: DelayHeap<MessageId>,
    /// How many are being settled.
    pub(super) settling: usize,
}

impl<T> Entry<T> {
    pub(super) fn is_for(&self, handle: Option<&Ending>) -> bool {
        handle.is_none_or(|handle| Arc::ptr_eq(handle, &self.ending))
    }
}

/// Why a half message cannot be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    NotOpen,
    BeingSettled,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self { entries: AHashMap::new(), due: DelayHeap::new(), settling: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.entries.contains_key(&id)
    }

    pub(super) fn insert(&mut self, key: Text, message: Message<T>, checks: u32, next: Timestamp) -> Ending {
        let due = Some(self.due.insert(next, message.id));
        self.enter(message.id, key, Some(message), checks, next, due)
    }

    /// Keeps a place for one that is being written: [`Table::put_back`] or [`Table::forgo`] follows.
    pub(super) fn reserve(&mut self, id: MessageId, key: Text, next: Timestamp) -> Ending {
        self.settling += 1;
        self.enter(id, key, None, 0, next, None)
    }

    fn enter(
        &mut self,
        id: MessageId,
        key: Text,
        message: Option<Message<T>>,
        checks: u32,
        next: Timestamp,
        due: Option<DelayKey>,
    ) -> Ending {
        let ending = Ending::default();
        let ours = Arc::clone(&ending);
        let entry = Entry { key, message, ending: ours, checks, next, due, looked_at: false, decided: false };
        self.entries.insert(id, entry);
        ending
    }

    /// It could not be written.
    pub(super) fn forgo(&mut self, id: MessageId) {
        self.settling -= 1;
        self.entries.remove(&id);
    }

    pub(super) fn get_mut(&mut self, id: MessageId) -> Option<&mut Entry<T>> {
        self.entries.get_mut(&id)
    }

    /// Takes it out to be settled: [`Table::put_back`] or [`Table::remove`] follows. A handle says which one it is
    /// for, since a later one may have the same id.
    pub(super) fn take(&mut self, id: MessageId, handle: Option<&Ending>) -> Result<(Text, Message<T>), Gone> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.is_for(handle)).ok_or(Gone::NotOpen)?;
        let message = entry.message.take().ok_or(Gone::BeingSettled)?;
        let (key, due) = (entry.key.clone(), entry.due.take());
        self.settling += 1;
        due.and_then(|due| self.due.cancel(due));
        Ok((key, message))
    }

    /// It could not be settled; `next` is when to look at it, if not as before.
    pub(super) fn put_back(&mut self, message: Message<T>, next: Option<Timestamp>) -> Option<Timestamp> {
        self.settling -= 1;
        let id = message.id;
        let entry = self.entries.get_mut(&id)?;
        entry.message = Some(message);
        if next.is_none() && entry.looked_at {
            return None;
        }
        let next = next.unwrap_or(entry.next);
        self.look_at(id, next)
    }

    /// It was looked at, and is to be again at that time: by whoever settles it now, if somebody does.
    pub(super) fn looked_at(&mut self, id: MessageId, next: Option<Timestamp>) -> Option<Timestamp> {
        let entry = self.entries.get_mut(&id)?;
        entry.looked_at = false;
        entry.next = next.unwrap_or(entry.next);
        if next.is_none() || entry.message.is_none() {
            return None;
        }
        self.look_at(id, next?)
    }

    /// Has it looked at then; the earliest time of all if that changes it.
    pub(super) fn look_at(&mut self, id: MessageId, next: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get_mut(&id)?;
        entry.next = next;
        if let Some(due) = entry.due.take() {
            self.due.cancel(due);
        }
        entry.due = Some(self.due.insert(next, id));
        self.due.earliest().filter(|&earliest| earliest == next)
    }

    /// It is settled.
    pub(super) fn remove(&mut self, id: MessageId, fate: HalfFate) {
        self.settling -= 1;
        if let Some(entry) = self.entries.remove(&id) {
            *entry.ending.lock() = Some(fate);
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(1024);
        }
    }

    /// Those that are to be looked at now, and when the next one is.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> (Vec<MessageId>, Option<Timestamp>) {
        let mut ids = Vec::new();
        while let Some(id) = self.due.pop_due(now) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.due = None;
                entry.looked_at = true;
                ids.push(id);
            }
        }
        (ids, self.due.earliest())
    }

    pub(super) fn earliest(&mut self) -> Option<Timestamp> {
        self.due.earliest()
    }

    pub(super) fn ids(&self) -> Vec<MessageId> {
        let mut ids: Vec<_> = self.entries.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn take_all(&mut self) -> Vec<Message<T>> {
        self.entries.drain().filter_map(|(_, entry)| entry.message).collect()
    }
}
