//! What streams hold.

use super::error::StoreError;
use std::fmt;
use std::sync::Arc;

/// The bits of an item's number that say where in its stream it is; the rest say which stream.
const SEQ_BITS: u32 = 48;
const SEQ_MASK: i64 = (1 << SEQ_BITS) - 1;

/// The most streams one file can have.
pub const MAX_STREAMS: usize = (1 << (63 - SEQ_BITS)) - 1;

/// The place of an item in its stream: 0, 1, 2, ... and never given twice, whatever is deleted.
pub type Seq = u64;

/// Names a stream within its file, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u16);

impl StreamId {
    /// The number as in the tables.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    pub(super) fn from_row(id: i64) -> Option<Self> {
        u16::try_from(id).ok().filter(|&id| (1..=MAX_STREAMS).contains(&usize::from(id))).map(Self)
    }

    pub(super) fn index(self) -> usize {
        self.0.into()
    }

    /// The primary key of the item at `seq`: one integer, which keeps a stream's items side by side and costs
    /// half of what a key of two columns does.
    pub(super) fn row(self, seq: Seq) -> i64 {
        let seq = i64::try_from(seq).unwrap_or(SEQ_MASK).min(SEQ_MASK);
        (i64::from(self.0) << SEQ_BITS) | seq
    }

    pub(super) fn last_row(self) -> i64 {
        self.row(Seq::MAX)
    }

    /// The row of the stream's first place, and of its last.
    pub(super) fn rows_around(row: i64) -> (i64, i64) {
        (row & !SEQ_MASK, row | SEQ_MASK)
    }

    pub(super) fn of_row(row: i64) -> usize {
        usize::try_from(row >> SEQ_BITS).unwrap_or(0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn seq_of_row(row: i64) -> Seq {
    u64::try_from(row & SEQ_MASK).unwrap_or(0)
}

/// One message, record, dead letter or half message, as bytes and names.
///
/// Times are nanoseconds since the UNIX epoch; the file keeps them as SQLite integers, so what lies beyond the
/// year 2262 becomes that year.
///
/// ```
/// use postroom::store::Item;
///
/// let item = Item { routing_key: "order.placed".into(), payload: b"{}".to_vec(), ..Item::default() };
/// assert_eq!(item.attempts, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Item {
    /// The message's id.
    pub id: u64,
    /// When it was published.
    pub published_at: u64,
    /// Deliveries begun so far.
    pub attempts: u32,
    /// It rests until then: [`Reader::read_ready`](super::Reader::read_ready) passes it over.
    pub due_at: Option<u64>,
    /// When it expires.
    pub expires_at: Option<u64>,
    /// Higher is more urgent.
    pub priority: u8,
    /// The ordering key.
    pub key: Option<String>,
    /// The routing key.
    pub routing_key: String,
    /// The headers, in their order.
    pub headers: Vec<(String, String)>,
    /// Which version of its type the payload was written with.
    pub schema: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// Whatever else its owner wants back, such as a dead letter's reason and history.
    pub extra: Option<Vec<u8>>,
}

impl Item {
    /// How much of the queue of waiting work it takes.
    pub(crate) fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let texts = self.key.as_ref().map_or(0, String::len) + self.routing_key.len() + headers;
        texts + self.payload.len() + self.extra.as_ref().map_or(0, Vec::len)
    }
}

/// An item where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where in its stream.
    pub seq: Seq,
    /// The item.
    pub item: Item,
    /// What is wrong with the row that it shared with others, if nobody can say which part of it was this one's. Only
    /// who [asks for such](super::Reader::with_damaged) gets any.
    pub(crate) damaged: Option<Arc<str>>,
}

/// What to change about an item; what is not named stays.
///
/// ```
/// use postroom::store::Change;
///
/// let failed_once = Change::new().attempts(1).due_at(Some(1_700_000_000_000_000_000));
/// let ready_again = Change::new().due_at(None);
/// # let _ = (failed_once, ready_again);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Change {
    pub(super) attempts: Option<u32>,
    pub(super) due_at: Option<Option<u64>>,
    pub(super) expires_at: Option<Option<u64>>,
    pub(super) extra: Option<Option<Vec<u8>>>,
}

impl Change {
    /// Changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of deliveries begun.
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts: Some(attempts), ..self }
    }

    /// Lets it rest until then, or rest no longer.
    pub fn due_at(self, at: Option<u64>) -> Self {
        Self { due_at: Some(at), ..self }
    }

    /// Lets it expire then, or never.
    pub fn expires_at(self, at: Option<u64>) -> Self {
        Self { expires_at: Some(at), ..self }
    }

    /// Replaces [`Item::extra`].
    pub fn extra(self, extra: Option<Vec<u8>>) -> Self {
        Self { extra: Some(extra), ..self }
    }

    pub(super) fn apply(&self, item: &mut Item) {
        let Self { attempts, due_at, expires_at, extra } = self;
        item.attempts = attempts.unwrap_or(item.attempts);
        item.due_at = due_at.unwrap_or(item.due_at);
        item.expires_at = expires_at.unwrap_or(item.expires_at);
        if let Some(extra) = extra {
            item.extra.clone_from(extra);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.extra.iter().flatten().map(Vec::len).sum()
    }
}

/// What the file says about a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// Names it in every other call.
    pub id: StreamId,
    /// What its owner uses it for, such as `queue` or `log`.
    pub kind: String,
    /// Its name, unique among its kind.
    pub name: String,
    /// Its owner's settings, in its owner's words.
    pub settings: String,
    /// The place the next item will have.
    pub next: Seq,
    /// How many items it holds, resting ones included.
    pub count: u64,
}

pub(super) fn to_column(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

pub(super) fn from_column(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

/// Headers as a person and SQLite's JSON functions can read them: `[["tenant","acme"]]`.
pub(super) fn headers_to_text(headers: &[(String, String)]) -> Option<String> {
    (!headers.is_empty()).then(|| serde_json::to_string(headers).unwrap_or_default())
}

pub(super) fn headers_from_text(text: Option<&str>) -> Result<Vec<(String, String)>, StoreError> {
    let parse = |text| serde_json::from_str(text);
    text.map_or(Ok(Vec::new()), parse).map_err(|e| StoreError::Corrupt(format!("headers {text:?}: {e}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_number_says_the_stream_and_the_place() {
        for (stream, seq) in [(1, 0), (1, 77), (32_767, (1 << 48) - 1)] {
            let id = StreamId::from_row(stream).unwrap();
            let row = id.row(seq);
            assert!(row > 0);
            assert_eq!((StreamId::of_row(row), seq_of_row(row)), (id.index(), seq));
            assert!(id.last_row() >= row);
        }
        assert_eq!(StreamId::from_row(0), None);
        assert_eq!(StreamId::from_row(32_768), None);
    }

    #[test]
    fn headers_survive_as_text() {
        let headers = vec![("a".to_owned(), "\"b\"".to_owned()), ("a".to_owned(), "ü".to_owned())];
        assert_eq!(headers_from_text(headers_to_text(&headers).as_deref()).unwrap(), headers);
        assert_eq!(headers_to_text(&[]), None);
        assert!(matches!(headers_from_text(Some("{")), Err(StoreError::Corrupt(_))));
    }
}
