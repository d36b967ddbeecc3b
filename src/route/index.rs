//! Finding the bindings that match without visiting those that do not.

use super::headers::Headers;
use super::pattern::Pattern;
use super::trie::Trie;
use super::{Ids, Resolved};
use ahash::AHashMap;
use smallvec::SmallVec;

/// Index over resolved selectors: finds those that match without visiting the others.
///
/// Ids are the caller's. `remove` undoes one `insert` of the same id and selector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(super) everything: Ids,
    pub(super) keys: AHashMap<Box<str>, Ids>,
    pub(super) patterns: Trie,
    headers: HeaderIndex,
}

impl Index {
    pub(crate) fn insert(&mut self, id: u32, selector: &Resolved) {
        match Place::of(selector) {
            Place::Everything => self.everything.push(id),
            Place::Key(key) => self.keys.entry(key.into()).or_default().push(id),
            Place::Pattern(pattern) => self.patterns.insert(id, pattern),
            Place::Headers(headers) => self.headers.insert(id, headers),
        }
    }

    /// Leaves nothing empty behind.
    pub(crate) fn remove(&mut self, id: u32, selector: &Resolved) {
        match Place::of(selector) {
            Place::Everything => take(&mut self.everything, |it| *it == id),
            Place::Key(key) => self.remove_key(id, key),
            Place::Pattern(pattern) => self.patterns.remove(id, pattern),
            Place::Headers(headers) => self.headers.remove(id, headers),
        }
    }

    fn remove_key(&mut self, id: u32, key: &str) {
        let Some(ids) = self.keys.get_mut(key) else {
            return;
        };
        take(ids, |it| *it == id);
        if ids.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Whether any selector needs a look at the headers. `all` of no headers does not: it is
    /// found by key, with the unconditional ones.
    pub(crate) fn has_headers(&self) -> bool {
        !self.headers.values.is_empty()
    }

    /// Appends the ids whose key, pattern or unconditional selectors match, each once, ascending.
    pub(crate) fn by_key(&self, key: &str, found: &mut SmallVec<[u32; 8]>) {
        let start = found.len();
        found.extend_from_slice(&self.everything);
        if let Some(ids) = self.keys.get(key) {
            found.extend_from_slice(ids);
        }
        self.patterns.find(key, found);
        order(found, start);
    }

    /// Appends the ids whose header selectors match, each once, ascending. Of headers with the
    /// same name the first counts.
    pub(crate) fn by_headers<'a>(
        &self,
        headers: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        found: &mut SmallVec<[u32; 8]>,
    ) {
        let start = found.len();
        self.headers.find(headers, found);
        order(found, start);
    }
}

/// Sorts what was appended from `start` on and drops repetitions.
fn order(found: &mut SmallVec<[u32; 8]>, start: usize) {
    found[start..].sort_unstable();
    let mut kept = start;
    for at in start..found.len() {
        if kept == start || found[kept - 1] != found[at] {
            found[kept] = found[at];
            kept += 1;
        }
    }
    found.truncate(kept);
}

/// Removes the first item that `is_it` says.
pub(super) fn take<A: smallvec::Array>(items: &mut SmallVec<A>, is_it: impl FnMut(&A::Item) -> bool) {
    if let Some(at) = items.iter().position(is_it) {
        items.swap_remove(at);
    }
}

/// Where in an [`Index`] a selector is kept: the cheapest place that finds it.
enum Place<'a> {
    Everything,
    Key(&'a str),
    Pattern(&'a Pattern),
    Headers(&'a Headers),
}

impl<'a> Place<'a> {
    fn of(selector: &'a Resolved) -> Self {
        match selector {
            Resolved::All => Self::Everything,
            Resolved::Headers(headers) if headers.is_unconditional() => Self::Everything,
            Resolved::Headers(headers) => Self::Headers(headers),
            Resolved::Key(key) => Self::Key(key),
            Resolved::Pattern(pattern) => match pattern.literal() {
                Some(key) => Self::Key(key),
                None => Self::Pattern(pattern),
            },
        }
    }
}

/// Header selectors by name, then value, of their handles.
#[derive(Clone, Debug, Default)]
struct HeaderIndex {
    values: AHashMap<Box<str>, AHashMap<Box<str>, Candidates>>,
}

type Candidates = SmallVec<[Candidate; 1]>;

/// Shares a handle with the message; whether all of it matches remains to be seen.
#[derive(Clone, Debug)]
struct Candidate {
    id: u32,
    headers: Headers,
}

impl HeaderIndex {
    fn insert(&mut self, id: u32, headers: &Headers) {
        for (name, value) in headers.handles() {
            let values = self.values.entry(name.as_str().into()).or_default();
            let candidates = values.entry(value.as_str().into()).or_default();
            candidates.push(Candidate { id, headers: headers.clone() });
        }
    }

    fn remove(&mut self, id: u32, headers: &Headers) {
        for (name, value) in headers.handles() {
            self.remove_handle(name, value, |it| it.id == id && it.headers == *headers);
        }
    }

    fn remove_handle(&mut self, name: &str, value: &str, is_it: impl Fn(&Candidate) -> bool) {
        let Some(values) = self.values.get_mut(name) else {
            return;
        };
        let Some(candidates) = values.get_mut(value) else {
            return;
        };
        take(candidates, is_it);
        if candidates.is_empty() {
            values.remove(value);
        }
        if values.is_empty() {
            self.values.remove(name);
        }
    }

    fn find<'a>(&self, headers: impl Iterator<Item = (&'a str, &'a str)> + Clone, found: &mut SmallVec<[u32; 8]>) {
        let lookup = |name: &str| headers.clone().find(|(n, _)| *n == name).map(|(_, v)| v);
        for (name, value) in headers.clone() {
            let candidates = self.values.get(name).and_then(|values| values.get(value));
            let matching = candidates.into_iter().flatten();
            let matching = matching.filter(|it| it.headers.matches(lookup));
            found.extend(matching.map(|it| it.id));
        }
    }
}
