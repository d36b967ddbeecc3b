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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, Durability, Limit, Options, Store};

    fn brief(id: u64, routing_key: &str, payload: &[u8]) -> Brief {
        Brief { id, published_at: 10 * id, routing_key: Text::new(routing_key), schema: 3, payload: payload.to_vec() }
    }

    /// What the file is to say of it.
    fn item(id: u64, routing_key: &str, payload: &[u8]) -> Item {
        let (routing_key, payload) = (routing_key.to_owned(), payload.to_vec());
        Item { id, published_at: 10 * id, routing_key, schema: 3, payload, ..Item::default() }
    }

    #[test]
    fn what_is_read_shows_neither_how_it_was_handed_in_nor_with_whom() {
        let folder = std::env::temp_dir().join(format!("postroom-brief-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = Store::open(folder.join("store.db"), Options::new()).unwrap();
        let (large, long) = (vec![7; 100_000], "a routing key longer than what fits into an envelope");
        // One that has all there can be, so that the next rows have to say that they have nothing of it.
        let full = Item {
            attempts: 4,
            due_at: Some(1),
            expires_at: Some(2),
            priority: 9,
            key: Some("user-7".into()),
            headers: vec![("tenant".into(), "acme".into())],
            extra: Some(b"{}".to_vec()),
            ..item(100, "a.b", b"full")
        };
        let crowd: Vec<(u64, &str, &[u8])> = (0..9).map(|n| (n, "a.b", &b"x"[..])).collect();
        let lots: [&[(u64, &str, &[u8])]; 5] =
            [&[(1, "a.b", b"x")], &[(1, long, b""), (2, long, b"y")], &[(1, "a.b", &large)], &crowd, &[(1, "", b"")]];
        for (at, lot) in lots.into_iter().enumerate() {
            let stream = store.declare("queue", &at.to_string(), "").unwrap();
            let mut batch = Batch::new().insert(stream, full.clone());
            let mut expected = vec![full.clone()];
            for &(id, routing_key, payload) in lot {
                batch = batch.insert_brief(stream, brief(id, routing_key, payload));
                batch = batch.insert(stream, item(id, routing_key, payload));
                expected.extend([item(id, routing_key, payload), item(id, routing_key, payload)]);
            }
            assert_eq!(store.commit(batch, Durability::Buffered).unwrap().len(), expected.len());
            let found = store.reader().unwrap().read(stream, 0, Limit::items(100)).unwrap();
            assert!(found.iter().map(|row| &row.item).eq(&expected), "{at}");
        }
        store.close().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_too_large_for_the_file_is_refused() {
        let stream = crate::store::StreamId::from_row(1).unwrap();
        let brief = brief(1, "", &[]);
        let huge = Brief { payload: vec![0; crate::store::MAX_ITEM_BYTES + 1], ..brief };
        assert!(Batch::new().insert_brief(stream, huge).check().is_err());
    }
}
