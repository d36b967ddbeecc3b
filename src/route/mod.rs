//! Bindings and matching: which targets want a message, found from its routing key and headers.
//!
//! Everything here is data and pure functions: no locks, no threads. Filters are carried but
//! never called; whoever routes calls them, with no lock held.

mod headers;
mod index;
mod pattern;
mod trie;

pub use headers::Headers;
pub use pattern::{Pattern, PatternError};

pub(crate) use index::Index;

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// A user's predicate on the payload, shared by the clones of its binding.
pub(crate) type Filter<T> = Arc<dyn Fn(&T) -> bool + Send + Sync>;

type Ids = SmallVec<[u32; 4]>;

/// Which messages of a topic a target wants: a selector on routing key or headers, and
/// optionally a filter on the payload.
///
/// A plain `&str` or `String` is a binding too, read as the topic's routing kind says: a
/// pattern for a pattern topic, a key for a direct one.
///
/// ```
/// use postroom::Binding;
///
/// let large: Binding<u64> = Binding::pattern("order.*").and_filter(|cents| *cents > 10_000);
/// assert_eq!(large.to_string(), r#"pattern "order.*" and a filter"#);
/// ```
pub struct Binding<T> {
    pub(crate) selector: Selector,
    pub(crate) filter: Option<Filter<T>>,
}

impl<T> Binding<T> {
    /// Messages whose routing key is exactly `key`.
    pub fn key(key: impl Into<String>) -> Self {
        Selector::Key(key.into()).into()
    }

    /// Messages whose routing key matches a [`Pattern`]. A malformed pattern is reported when
    /// the topic is bound.
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Selector::Pattern(pattern.into()).into()
    }

    /// Messages that carry the given headers.
    pub fn headers(headers: Headers) -> Self {
        Selector::Headers(headers).into()
    }

    /// Every message whose payload `f` accepts.
    pub fn filter(f: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        Self { selector: Selector::All, filter: Some(Arc::new(f)) }
    }

    /// Every message.
    pub fn all() -> Self {
        Selector::All.into()
    }

    /// Narrows the binding to payloads that `f` accepts too. Filters add up: with a second one,
    /// both must accept, the earlier is asked first.
    pub fn and_filter(self, f: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self
    where
        T: 'static,
    {
        let filter: Filter<T> = match self.filter {
            None => Arc::new(f),
            Some(earlier) => Arc::new(move |payload: &T| earlier(payload) && f(payload)),
        };
        Self { selector: self.selector, filter: Some(filter) }
    }

    /// Whether binding both would be binding one twice. Filters can only be compared by
    /// identity, so only clones of one filtered binding are the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let same_filter = match (&self.filter, &other.filter) {
            (None, None) => true,
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            _ => false,
        };
        same_filter && self.selector == other.selector
    }
}

// By hand: a derive would ask for `T: Clone`.
impl<T> Clone for Binding<T> {
    fn clone(&self) -> Self {
        Self { selector: self.selector.clone(), filter: self.filter.clone() }
    }
}

impl<T> From<Selector> for Binding<T> {
    fn from(selector: Selector) -> Self {
        Self { selector, filter: None }
    }
}

impl<T> From<&str> for Binding<T> {
    fn from(text: &str) -> Self {
        Selector::Text(text.into()).into()
    }
}

impl<T> From<String> for Binding<T> {
    fn from(text: String) -> Self {
        Selector::Text(text).into()
    }
}

impl<T> fmt::Display for Binding<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.selector.fmt(f)?;
        match self.filter {
            Some(_) => f.write_str(" and a filter"),
            None => Ok(()),
        }
    }
}

impl<T> fmt::Debug for Binding<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("selector", &self.selector)
            .field("filter", &self.filter.as_ref().map(|_| ".."))
            .finish()
    }
}

/// What a binding selects, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// Key or pattern: the topic's routing kind decides.
    Text(String),
    Key(String),
    Pattern(String),
    Headers(Headers),
    All,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Key(key) => write!(f, "key {key:?}"),
            Self::Pattern(pattern) => write!(f, "pattern {pattern:?}"),
            Self::Headers(headers) => write!(f, "headers {headers}"),
            Self::All => f.write_str("everything"),
        }
    }
}

/// What a [`Selector`] becomes once the topic's routing kind has been applied.
#[derive(Clone, Debug)]
pub(crate) enum Resolved {
    Key(String),
    Pattern(Pattern),
    Headers(Headers),
    All,
}

#[cfg(test)]
mod tests;
