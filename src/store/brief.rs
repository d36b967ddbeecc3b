//! Items about which there is little to say, which most are: in less memory, and in one piece with their batch.

use super::item::Item;
use crate::message::Text;

/// An item of which nothing is known but this.
#[derive(Debug)]
pub(crate) struct Brief {
    pub(crate) id: u64,
    pub(crate) published_at: u64,
    pub(crate) routing_key: Text,
    pub(crate) schema: u32,
    pub(crate) payload: Vec<u8>,
}

impl Brief {
    /// As [`Item::bytes`].
    pub(super) fn bytes(&self) -> usize {
        self.routing_key.as_str().len() + self.payload.len()
    }

    pub(super) fn as_plain(&self) -> Plain<'_> {
        let Self { id, published_at, ref routing_key, schema, ref payload } = *self;
        Plain { id, published_at, priority: 0, schema, routing_key: routing_key.as_str(), payload }
    }
}

/// What is to be written of an item about which nothing else is to be said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain<'p> {
    pub(super) id: u64,
    pub(super) published_at: u64,
    pub(super) priority: u8,
    pub(super) schema: u32,
    pub(super) routing_key: &'p str,
    pub(super) payload: &'p [u8],
}

impl<'p> Plain<'p> {
    /// `None` if there is more to say.
    pub(super) fn of(item: &'p Item) -> Option<Self> {
        let Item { attempts, due_at, expires_at, key, headers, extra, .. } = item;
        let times = due_at.is_some() || expires_at.is_some();
        let words = key.is_some() || extra.is_some() || !headers.is_empty();
        (*attempts == 0 && !times && !words).then(|| Self::part_of(item))
    }

    /// Whatever else there is to say.
    pub(super) fn part_of(item: &'p Item) -> Self {
        let Item { id, published_at, priority, ref routing_key, schema, ref payload, .. } = *item;
        Self { id, published_at, priority, schema, routing_key, payload }
    }

    /// Whether the two have in common what is noted once for all that share a row.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.priority == other.priority && self.schema == other.schema && self.routing_key == other.routing_key
    }
}
