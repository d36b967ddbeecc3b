//! Items that share a row.
//!
//! To insert a row and to delete it costs several times what is in it, and most items come and go in crowds. So
//! neighbours of a stream that one transaction inserts are written as one row, a **pack**, if there is nothing to say
//! about them but their payload: no time to rest until, no key, no headers, no attempts. A pack never changes. Which
//! of its items are gone is noted in a small row beside it, for all that one transaction deletes at once; the pack goes
//! with the last of them. An item that is to be changed or moved is taken out first, and is a row of its own from then
//! on.

use super::brief::Plain;
use super::error::StoreError;
use super::item::{Item, Row, from_column, seq_of_row, to_column};
use std::sync::Arc;

/// Items in a pack, at most.
pub(super) const MOST: usize = 256;
/// Fewer are rows of their own.
pub(super) const FEWEST: usize = 4;
/// Bytes of their payloads, roughly: what is read, and held in memory, for the sake of one item.
const BYTES: usize = 32 << 10;
/// A larger payload gains little.
const LARGEST: usize = BYTES / 8;

/// Items of one transaction and one stream, at places one after another, that may become a pack.
#[derive(Debug)]
pub(super) struct Crowd<'p> {
    pub(super) first: i64,
    pub(super) items: Vec<Plain<'p>>,
    bytes: usize,
}

impl<'p> Crowd<'p> {
    pub(super) fn of_one(row: i64, item: Plain<'p>) -> Self {
        Self { first: row, items: vec![item], bytes: item.payload.len() }
    }

    /// Whether a pack has a place for the item.
    pub(super) fn suits(item: &Plain<'_>) -> bool {
        item.payload.len() <= LARGEST
    }

    /// Whether the item was added: it is the next one, like the others, and there is room.
    pub(super) fn takes(&mut self, row: i64, item: Plain<'p>) -> bool {
        let Some(first) = self.items.first() else { return false };
        let is_next = self.first + self.items.len() as i64 == row;
        let fits = self.items.len() < MOST && self.bytes + item.payload.len() <= BYTES;
        if is_next && fits && first.is_like(&item) {
            self.bytes += item.payload.len();
            self.items.push(item);
            return true;
        }
        false
    }

    /// What differs from item to item, and the payloads one after another.
    pub(super) fn write(&self, payload: &mut Vec<u8>) -> Result<String, StoreError> {
        payload.clear();
        let first = self.items.first().map_or(0, |first| to_column(first.published_at));
        let mut all = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let (id, later) = (item.id.cast_signed(), to_column(item.published_at) - first);
            all.push(About(id, later, payload.len(), item.payload.len()));
            payload.extend_from_slice(item.payload);
        }
        serde_json::to_string(&all).map_err(|error| StoreError::other(error.to_string()))
    }
}

/// Of one item: its message's id, how much later than the first it was published, where in the pack's payload its own
/// begins, and the bytes of that.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct About(i64, i64, usize, usize);

/// Which items of a pack are gone: a letter for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gone(Vec<u8>);

const IS_GONE: u8 = b'x';
const IS_THERE: u8 = b'-';

impl Gone {
    /// As noted in the file, if anything is; `None` if that is no such note.
    pub(super) fn from_column(noted: Option<&str>, count: usize) -> Option<Self> {
        let Some(noted) = noted.map(str::as_bytes) else { return Some(Self(vec![IS_THERE; count])) };
        let is_sound = noted.len() == count && noted.iter().all(|letter| matches!(*letter, IS_GONE | IS_THERE));
        is_sound.then(|| Self(noted.to_vec()))
    }

    pub(super) fn as_column(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    pub(super) fn is_gone(&self, at: usize) -> bool {
        self.0.get(at).is_none_or(|&letter| letter == IS_GONE)
    }

    pub(super) fn remove(&mut self, at: usize) {
        if let Some(letter) = self.0.get_mut(at) {
            *letter = IS_GONE;
        }
    }

    /// Those that are there, in order.
    pub(super) fn left(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.0.len()).filter(|&at| !self.is_gone(at))
    }
}

/// Where a pack is, and what is left of it.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) first: i64,
    pub(super) gone: Gone,
    /// Whether there is a row that says what is gone.
    pub(super) is_noted: bool,
}

impl Head {
    /// What [`from_row`](Self::from_row) reads; both tables by these names.
    pub(super) const COLUMNS: &str = "p.id, p.count, g.gone";
    pub(super) const FROM: &str = "postroom_pack p LEFT JOIN postroom_pack_gone g ON g.id = p.id";

    pub(super) fn from_row(row: &rusqlite::Row<'_>) -> Result<Self, StoreError> {
        let (first, count): (i64, i64) = (row.get(0)?, row.get(1)?);
        let noted = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let count = usize::try_from(count).ok().filter(|count| (1..=MOST).contains(count));
        let gone = count.and_then(|count| Gone::from_column(noted, count));
        let gone = gone.ok_or_else(|| corrupt(first, "how many items it has, and which are gone"))?;
        Ok(Self { first, gone, is_noted: noted.is_some() })
    }

    pub(super) fn last(&self) -> i64 {
        self.first + self.gone.0.len() as i64 - 1
    }

    pub(super) fn has(&self, row: i64) -> bool {
        self.place_of(row).is_some_and(|at| !self.gone.is_gone(at))
    }

    pub(super) fn remove(&mut self, row: i64) {
        if let Some(at) = self.place_of(row) {
            self.gone.remove(at);
        }
    }

    /// Where in the pack the item of that row is, or was.
    pub(super) fn place_of(&self, row: i64) -> Option<usize> {
        usize::try_from(row.checked_sub(self.first)?).ok().filter(|&at| at < self.gone.0.len())
    }

    /// Rows of the items that are left, in order.
    pub(super) fn left(&self) -> impl DoubleEndedIterator<Item = i64> {
        self.gone.left().map(|at| self.first + at as i64)
    }
}

fn corrupt(pack: i64, what: &str) -> StoreError {
    StoreError::Corrupt(format!("postroom_pack {pack}: {what}").into())
}

/// A pack that was read.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) head: Head,
    /// What its items have in common, and the first's time.
    model: Item,
    about: Vec<About>,
    payload: Vec<u8>,
    /// Then nothing is known about its items.
    damaged: Option<Arc<str>>,
}

impl Pack {
    /// What [`from_row`](Self::from_row) reads.
    pub(super) const COLUMNS: &str =
        "p.id, p.count, g.gone, p.priority, p.published_at, p.schema, p.routing_key, p.items, p.payload";
    /// Its column.
    pub(super) const PRIORITY: usize = 3;
    /// As far as that.
    pub(super) const HEAD_AND_PRIORITY: &str = "p.id, p.count, g.gone, p.priority";

    pub(super) fn from_row(row: &rusqlite::Row<'_>) -> Result<Self, StoreError> {
        Self::with_head(Head::from_row(row)?, row)
    }

    /// The same of one whose contents are damaged. If nobody can say which part of it belongs to which item, the first
    /// that is left has all of it, and the others nothing. How many there are has to be known: that is counted on.
    pub(super) fn salvaged(row: &rusqlite::Row<'_>) -> Result<Self, StoreError> {
        let head = Head::from_row(row)?;
        let error = match Self::with_head(head.clone(), row) {
            Err(error) => error,
            sound => return sound,
        };
        let model = Item {
            priority: row.get(Self::PRIORITY).unwrap_or_default(),
            published_at: from_column(row.get(4).unwrap_or_default()),
            schema: row.get(5).unwrap_or_default(),
            routing_key: row.get(6).unwrap_or_default(),
            ..Item::default()
        };
        let payload = row.get_ref(8)?.as_bytes().unwrap_or_default().to_vec();
        let first = head.gone.left().next();
        let bytes = |at| if Some(at) == first { payload.len() } else { 0 };
        // Nobody knows their ids. These tell them apart, and are like no others.
        let id = |at: usize| (head.first + at as i64) | i64::MIN;
        let about = (0..head.gone.0.len()).map(|at| About(id(at), 0, 0, bytes(at))).collect();
        Ok(Self { head, model, about, payload, damaged: Some(error.to_string().into()) })
    }

    fn with_head(head: Head, row: &rusqlite::Row<'_>) -> Result<Self, StoreError> {
        let items = row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?;
        let about: Vec<About> = serde_json::from_str(items).map_err(|e| corrupt(head.first, &e.to_string()))?;
        let payload: Vec<u8> = row.get(8)?;
        let is_within =
            |&About(.., start, bytes): &About| start.checked_add(bytes).is_some_and(|end| end <= payload.len());
        if about.len() != head.gone.0.len() || !about.iter().all(is_within) {
            return Err(corrupt(head.first, "its items are not what it says"));
        }
        let model = Item {
            priority: row.get(Self::PRIORITY)?,
            published_at: from_column(row.get(4)?),
            schema: row.get(5)?,
            routing_key: row.get(6)?,
            ..Item::default()
        };
        Ok(Self { head, model, about, payload, damaged: None })
    }

    /// The item at that place of the pack, be it gone or not.
    fn item(&self, at: usize) -> Item {
        let About(id, later, start, bytes) = self.about[at];
        Item {
            id: id.cast_unsigned(),
            published_at: from_column(to_column(self.model.published_at).saturating_add(later)),
            payload: self.payload[start..start + bytes].to_vec(),
            ..self.model.clone()
        }
    }

    pub(super) fn row(&self, row: i64) -> Option<Row> {
        let item = self.item(self.head.place_of(row)?);
        Some(Row { seq: seq_of_row(row), item, damaged: self.damaged.clone() })
    }

    /// Of the payload of that item.
    pub(super) fn bytes(&self, row: i64) -> u64 {
        self.head.place_of(row).map_or(0, |at| self.about[at].3 as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: u64, payload: &[u8]) -> Item {
        Item { id, published_at: 1_000 - id, payload: payload.to_vec(), ..Item::default() }
    }

    #[test]
    fn only_items_with_nothing_to_say_but_their_payload_share_a_row() {
        let plain = item(1, b"x");
        let odd: [(&str, Item); 7] = [
            ("attempts", Item { attempts: 1, ..plain.clone() }),
            ("due_at", Item { due_at: Some(1), ..plain.clone() }),
            ("expires_at", Item { expires_at: Some(1), ..plain.clone() }),
            ("key", Item { key: Some(String::new()), ..plain.clone() }),
            ("headers", Item { headers: vec![("a".into(), "b".into())], ..plain.clone() }),
            ("extra", Item { extra: Some(Vec::new()), ..plain.clone() }),
            ("payload", Item { payload: vec![0; LARGEST + 1], ..plain.clone() }),
        ];
        let suits = |item: &Item| Plain::of(item).is_some_and(|plain| Crowd::suits(&plain));
        assert!(suits(&plain));
        for (what, item) in odd {
            assert!(!suits(&item), "{what}");
        }
        let alike = Item { priority: 3, schema: 2, routing_key: "a.b".into(), payload: vec![0; LARGEST], ..plain };
        assert!(suits(&alike), "the first says it for all");
    }

    #[test]
    fn a_crowd_takes_its_next_neighbour_as_long_as_it_is_alike_and_there_is_room() {
        let (one, two) = (item(1, b"1"), item(2, b""));
        let strangers = [
            Item { priority: 1, ..two.clone() },
            Item { schema: 1, ..two.clone() },
            Item { routing_key: "a".into(), ..two.clone() },
        ];
        let (one, two) = (Plain::part_of(&one), Plain::part_of(&two));
        let mut crowd = Crowd::of_one(70, one);
        assert!(!crowd.takes(72, two) && !crowd.takes(70, two), "not the next place");
        assert!(strangers.iter().all(|stranger| !crowd.takes(71, Plain::part_of(stranger))));
        assert!(crowd.takes(71, two));
        assert_eq!(crowd.items.len(), 2);

        let large = item(3, &[0; LARGEST]);
        let large = Plain::part_of(&large);
        let mut crowd = Crowd::of_one(0, large);
        assert_eq!((1..100).take_while(|&row| crowd.takes(row, large)).count(), BYTES / LARGEST - 1);
        let mut crowd = Crowd::of_one(0, two);
        assert_eq!((1..1000).take_while(|&row| crowd.takes(row, two)).count(), MOST - 1);
    }

    #[test]
    fn what_is_gone_is_noted_with_a_letter_for_each() {
        let mut gone = Gone::from_column(None, 4).unwrap();
        [1, 1, 4].into_iter().for_each(|at| gone.remove(at));
        assert_eq!(gone.as_column(), "-x--");
        assert_eq!(gone.left().collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(Gone::from_column(Some("-x--"), 4).as_ref(), Some(&gone));
        assert!(["-x-", "-x---", "-y--", ""].iter().all(|noted| Gone::from_column(Some(noted), 4).is_none()));

        let head = Head { first: 70, gone, is_noted: true };
        assert_eq!((head.last(), head.left().collect::<Vec<_>>()), (73, vec![70, 72, 73]));
        let places = [69, 70, 73, 74, i64::MIN].map(|row| head.place_of(row));
        assert_eq!(places, [None, Some(0), Some(3), None, None]);
    }
}
