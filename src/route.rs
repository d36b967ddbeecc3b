//! Bindings and matching: which targets want a message, found from its routing key and headers.
//!
//! Everything here is data and pure functions: no locks, no threads. Filters are carried but
//! never called; whoever routes calls them, with no lock held.

use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;
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

/// Header names and values a message must carry: all of them, or any of them.
///
/// `all` of nothing matches every message, `any` of nothing matches none.
///
/// ```
/// use postroom::Headers;
///
/// let wanted = Headers::all([("tenant", "acme"), ("kind", "pdf")]);
/// assert!(wanted.matches(|name| match name {
///     "tenant" => Some("acme"),
///     "kind" => Some("pdf"),
///     _ => None,
/// }));
/// assert!(!wanted.matches(|name| (name == "kind").then_some("pdf")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    quantifier: Quantifier,
    pairs: Arc<[(String, String)]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantifier {
    All,
    Any,
}

impl Headers {
    /// A message must carry every one of `pairs`.
    pub fn all<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        Self::new(Quantifier::All, pairs)
    }

    /// A message must carry at least one of `pairs`.
    pub fn any<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        Self::new(Quantifier::Any, pairs)
    }

    fn new<N, V>(quantifier: Quantifier, pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        let owned = |(name, value): (N, V)| (name.into(), value.into());
        Self { quantifier, pairs: pairs.into_iter().map(owned).collect() }
    }

    /// Whether a message matches whose headers are looked up by `header`.
    pub fn matches<'a>(&self, header: impl Fn(&str) -> Option<&'a str>) -> bool {
        let mut carried = self.pairs.iter().map(|(n, v)| header(n) == Some(v));
        match self.quantifier {
            Quantifier::All => carried.all(|yes| yes),
            Quantifier::Any => carried.any(|yes| yes),
        }
    }

    fn is_unconditional(&self) -> bool {
        self.quantifier == Quantifier::All && self.pairs.is_empty()
    }

    /// The pairs of which a matching message carries at least one: where to index this.
    fn handles(&self) -> &[(String, String)] {
        match self.quantifier {
            Quantifier::All => &self.pairs[..self.pairs.len().min(1)],
            Quantifier::Any => &self.pairs,
        }
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.quantifier {
            Quantifier::All => "all",
            Quantifier::Any => "any",
        })?;
        if self.pairs.is_empty() {
            return f.write_str(" of nothing");
        }
        for (at, (name, value)) in self.pairs.iter().enumerate() {
            let before = if at == 0 { " " } else { ", " };
            write!(f, "{before}{name}={value}")?;
        }
        Ok(())
    }
}

/// A topic pattern as in AMQP: segments split by `.`, where `*` stands for exactly one segment
/// and `#` for zero or more.
///
/// Empty segments are segments: the key `""` is one, `"a..b"` is three. The time to match is at
/// most proportional to the segments of the pattern times those of the key.
///
/// ```
/// use postroom::Pattern;
///
/// let pattern = Pattern::parse("order.*.#")?;
/// assert!(pattern.matches("order.eu"));
/// assert!(pattern.matches("order.eu.paid.late"));
/// assert!(!pattern.matches("order"));
/// # Ok::<(), postroom::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    // Valid, so splitting it again cannot fail.
    text: Box<str>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// If `*` or `#` shares a segment with anything else, as in `ord*` or `##`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        match text.split('.').find(|segment| is_malformed(segment)) {
            None => Ok(Self { text: text.into() }),
            Some(segment) => Err(PatternError { pattern: text.into(), segment: segment.into() }),
        }
    }

    /// Whether a message with routing key `key` matches.
    pub fn matches(&self, key: &str) -> bool {
        let (mut wanted, mut given) = (self.segments(), key.split('.'));
        // What follows the last `#`, and the first segment of the key it has not swallowed. An
        // earlier `#` need never be tried again: the last one can swallow whatever it could.
        let mut retry = None;
        loop {
            let here = given.clone();
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(Segment::Many), _) => {
                    given = here.clone();
                    retry = Some((wanted.clone(), here));
                }
                (Some(Segment::One), Some(_)) => {}
                (Some(Segment::Word(word)), Some(segment)) if word == segment => {}
                _ => {
                    let Some((after, from)) = &mut retry else {
                        return false;
                    };
                    if from.next().is_none() {
                        return false;
                    }
                    (wanted, given) = (after.clone(), from.clone());
                }
            }
        }
    }

    fn segments(&self) -> impl Iterator<Item = Segment<'_>> + Clone {
        self.text.split('.').map(Segment::read)
    }

    /// The only key that matches, if the pattern has no wildcards.
    fn literal(&self) -> Option<&str> {
        (!self.text.contains(['*', '#'])).then_some(&*self.text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_malformed(segment: &str) -> bool {
    segment.len() > 1 && segment.contains(['*', '#'])
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Word(&'a str),
    One,
    Many,
}

impl<'a> Segment<'a> {
    fn read(text: &'a str) -> Self {
        match text {
            "*" => Self::One,
            "#" => Self::Many,
            word => Self::Word(word),
        }
    }
}

/// A [`Pattern`] with `*` or `#` next to other characters in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    pattern: String,
    segment: String,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, segment } = self;
        write!(f, "malformed pattern {pattern:?}: in segment {segment:?} a wildcard does not stand alone")
    }
}

impl std::error::Error for PatternError {}

/// What a [`Selector`] becomes once the topic's routing kind has been applied.
#[derive(Clone, Debug)]
pub(crate) enum Resolved {
    Key(String),
    Pattern(Pattern),
    Headers(Headers),
    All,
}

/// Index over resolved selectors: finds those that match without visiting the others.
///
/// Ids are the caller's. `remove` undoes one `insert` of the same id and selector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    everything: Ids,
    keys: AHashMap<Box<str>, Ids>,
    patterns: Trie,
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
fn take<A: smallvec::Array>(items: &mut SmallVec<A>, is_it: impl FnMut(&A::Item) -> bool) {
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

/// Patterns by their segments. Nodes live in one vector, freed ones are used again; without
/// patterns there are no nodes at all.
#[derive(Clone, Debug, Default)]
struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

const ROOT: u32 = 0;

#[derive(Clone, Debug, Default)]
struct Node {
    words: AHashMap<Box<str>, u32>,
    one: Option<u32>,
    many: Option<u32>,
    /// Of the patterns that end here.
    ids: Ids,
}

impl Trie {
    fn insert(&mut self, id: u32, pattern: &Pattern) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut node = ROOT;
        for segment in pattern.segments() {
            node = match self.node(node).child(segment) {
                Some(child) => child,
                None => self.grow(node, segment),
            };
        }
        self.node_mut(node).ids.push(id);
    }

    fn grow(&mut self, parent: u32, segment: Segment<'_>) -> u32 {
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 pattern segments")
        });
        self.node_mut(parent).link(segment, child);
        child
    }

    fn remove(&mut self, id: u32, pattern: &Pattern) {
        let Some((path, end)) = self.path(pattern) else {
            return;
        };
        take(&mut self.node_mut(end).ids, |it| *it == id);
        self.prune(path, end);
    }

    /// The steps of `pattern`, each with the node it leaves from, and the node where it ends.
    fn path<'p>(&self, pattern: &'p Pattern) -> Option<(Vec<(u32, Segment<'p>)>, u32)> {
        let mut node = ROOT;
        let mut path = Vec::new();
        if self.nodes.is_empty() {
            return None;
        }
        for segment in pattern.segments() {
            path.push((node, segment));
            node = self.node(node).child(segment)?;
        }
        Some((path, node))
    }

    /// Frees the nodes of a path, from its end up, that no pattern needs any more.
    fn prune(&mut self, path: Vec<(u32, Segment<'_>)>, end: u32) {
        let mut node = end;
        for (parent, segment) in path.into_iter().rev() {
            if !self.node(node).is_empty() {
                return;
            }
            *self.node_mut(node) = Node::default();
            self.free.push(node);
            self.node_mut(parent).unlink(segment);
            node = parent;
        }
        if self.node(ROOT).is_empty() {
            *self = Self::default();
        }
    }

    /// Appends the ids of the patterns that match, in no order.
    fn find(&self, key: &str, found: &mut SmallVec<[u32; 8]>) {
        if self.nodes.is_empty() {
            return;
        }
        let mut walk = Walk::start(self);
        for segment in key.split('.') {
            walk.advance(segment);
            if walk.is_over() {
                return;
            }
        }
        for node in walk.active() {
            found.extend_from_slice(&node.ids);
        }
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

impl Node {
    fn child(&self, segment: Segment<'_>) -> Option<u32> {
        match segment {
            Segment::Word(word) => self.words.get(word).copied(),
            Segment::One => self.one,
            Segment::Many => self.many,
        }
    }

    fn link(&mut self, segment: Segment<'_>, child: u32) {
        match segment {
            Segment::Word(word) => drop(self.words.insert(word.into(), child)),
            Segment::One => self.one = Some(child),
            Segment::Many => self.many = Some(child),
        }
    }

    fn unlink(&mut self, segment: Segment<'_>) {
        match segment {
            Segment::Word(word) => drop(self.words.remove(word)),
            Segment::One => self.one = None,
            Segment::Many => self.many = None,
        }
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.words.is_empty() && self.one.is_none() && self.many.is_none()
    }
}

/// A walk down the trie along all paths at once, as a nondeterministic automaton: the active
/// nodes are those that the segments read so far can lead to.
///
/// A node below a `#` stays active once reached, whatever follows. So these are kept apart and
/// only they can be reached twice: any other node has one parent, and is entered only from it.
struct Walk<'t> {
    trie: &'t Trie,
    steps: Active,
    /// Nodes below a `#`, sorted.
    loops: Active,
}

type Active = SmallVec<[u32; 16]>;

impl<'t> Walk<'t> {
    fn start(trie: &'t Trie) -> Self {
        let steps = Active::from_slice(&[ROOT]);
        let loops = Active::new();
        let mut walk = Self { trie, steps, loops };
        walk.skip_to_loops(ROOT);
        walk
    }

    fn advance(&mut self, segment: &str) {
        let mut next = Active::new();
        for node in self.active() {
            next.extend(node.words.get(segment).copied());
            next.extend(node.one);
        }
        for &node in &next {
            self.skip_to_loops(node);
        }
        self.steps = next;
    }

    /// `#` also stands for no segment: what is below it is reached along with its parent.
    fn skip_to_loops(&mut self, from: u32) {
        let mut below = self.trie.node(from).many;
        while let Some(node) = below {
            let Err(place) = self.loops.binary_search(&node) else {
                return;
            };
            self.loops.insert(place, node);
            below = self.trie.node(node).many;
        }
    }

    fn active(&self) -> impl Iterator<Item = &'t Node> {
        let nodes = self.steps.iter().chain(&self.loops);
        nodes.map(|&node| {
            #[cfg(test)]
            tests::VISITED.set(tests::VISITED.get() + 1);
            self.trie.node(node)
        })
    }

    fn is_over(&self) -> bool {
        self.steps.is_empty() && self.loops.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static VISITED: Cell<usize> = const { Cell::new(0) };
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn index(selectors: &[Resolved]) -> Index {
        let mut index = Index::default();
        for (id, selector) in (0..).zip(selectors) {
            index.insert(id, selector);
        }
        index
    }

    fn by_key(index: &Index, key: &str) -> Vec<u32> {
        let mut found = SmallVec::new();
        index.by_key(key, &mut found);
        found.to_vec()
    }

    fn by_headers(index: &Index, headers: Pairs<'_>) -> Vec<u32> {
        let mut found = SmallVec::new();
        index.by_headers(headers.iter().copied(), &mut found);
        found.to_vec()
    }

    fn carries(wanted: &Headers, headers: Pairs<'_>) -> bool {
        wanted.matches(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
    }

    /// How many nodes are visited to route `key`.
    fn visits(index: &Index, key: &str) -> usize {
        VISITED.set(0);
        by_key(index, key);
        VISITED.get()
    }

    fn live_nodes(index: &Index) -> usize {
        index.patterns.nodes.len() - index.patterns.free.len()
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit as u64) as usize
        }

        fn segments(&mut self, alphabet: &[&str]) -> String {
            let count = 1 + self.below(6);
            let segments = (0..count).map(|_| alphabet[self.below(alphabet.len())]);
            segments.collect::<Vec<_>>().join(".")
        }
    }

    /// By definition, in exponential time.
    fn matches_slowly(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern, key) {
            ([], []) => true,
            (["#", after @ ..], _) => (0..=key.len()).any(|taken| matches_slowly(after, &key[taken..])),
            ([one, after @ ..], [segment, rest @ ..]) => (*one == "*" || one == segment) && matches_slowly(after, rest),
            _ => false,
        }
    }

    #[test]
    fn patterns_match_as_in_the_table() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("a.b", &["a.b"], &["a", "a.b.c", "a.B", "a.", "", "b.a"]),
            ("*", &["a", "", "#", "*"], &["a.b", "."]),
            ("a.*", &["a.b", "a."], &["a", "a.b.c", "b.a"]),
            ("*.b", &["a.b", ".b"], &["b", "a.a.b"]),
            ("a.*.c", &["a.b.c", "a..c"], &["a.c", "a.b.b.c"]),
            ("#", &["", "a", "a.b", "..."], &[]),
            ("#.b", &["b", "a.b", "a.a.b", ".b", "b.b"], &["a", "b.a", ""]),
            ("a.#", &["a", "a.b", "a.b.c", "a."], &["b", "", "ab"]),
            ("a.#.c", &["a.c", "a.b.c", "a.c.c", "a..c"], &["a", "c", "a.c.b"]),
            ("#.a.#", &["a", "b.a", "a.b", "b.a.b", "a.a"], &["b", "", "b.b"]),
            ("*.#", &["", "a", "a.b", "a.b.c"], &[]),
            ("#.*", &["", "a", "a.b"], &[]),
            ("#.*.*", &["a.b", "a.b.c", "."], &["", "a"]),
            ("#.#", &["", "a", "a.b"], &[]),
            ("#.a.#.b.#", &["a.b", "x.a.x.b.x", "b.a.b"], &["b.a", "a", "ab"]),
            ("#.a.b.#.a.c", &["a.b.a.c", "a.a.b.a.b.a.c"], &["a.b.c", "a.b.a.c.a"]),
            ("", &[""], &["a", "."]),
            (".", &["."], &["", "a.", ".."]),
            ("a..b", &["a..b"], &["a.b", "a.x.b", "a...b"]),
            ("é.*", &["é.ü"], &["e.ü"]),
        ];
        for (text, yes, no) in table {
            let pattern = pattern(text);
            let index = index(&[Resolved::Pattern(pattern.clone())]);
            for (keys, expected) in [(yes, true), (no, false)] {
                for key in *keys {
                    assert_eq!(pattern.matches(key), expected, "{text:?}, {key:?}");
                    assert_eq!(by_key(&index, key).len() == 1, expected, "{text:?}, {key:?}");
                }
            }
        }
    }

    #[test]
    fn malformed_patterns_name_the_segment() {
        let table =
            [("ord*", "ord*"), ("a.##", "##"), ("*#.b", "*#"), ("a.*.**", "**"), ("#a.b*", "#a"), ("a.é#.b", "é#")];
        for (text, segment) in table {
            let error = Pattern::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains(&format!("{segment:?}")), "{error}");
        }
    }

    #[test]
    fn pattern_shows_its_text() {
        assert_eq!(pattern("a.*.#.b").to_string(), "a.*.#.b");
    }

    #[test]
    fn random_patterns_match_by_definition_and_by_index() {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for _ in 0..200 {
            let patterns: Vec<_> = (0..20).map(|_| pattern(&random.segments(&["a", "b", "", "*", "#", "#"]))).collect();
            let selectors: Vec<_> = patterns.iter().cloned().map(Resolved::Pattern).collect();
            let index = index(&selectors);
            for _ in 0..20 {
                let key = random.segments(&["a", "b", ""]);
                assert_eq!(by_key(&index, &key), matching(&patterns, &key), "{key:?}");
            }
        }
    }

    fn matching(patterns: &[Pattern], key: &str) -> Vec<u32> {
        let key_segments: Vec<_> = key.split('.').collect();
        let matches = |pattern: &Pattern| {
            let segments: Vec<_> = pattern.text.split('.').collect();
            let expected = matches_slowly(&segments, &key_segments);
            assert_eq!(pattern.matches(key), expected, "{pattern}, {key:?}");
            expected
        };
        let matching = (0..).zip(patterns).filter(|(_, pattern)| matches(pattern));
        matching.map(|(id, _)| id).collect()
    }

    #[test]
    fn removal_in_any_order_keeps_the_rest_and_leaves_nothing() {
        let mut random = Random(42);
        for _ in 0..100 {
            let patterns: Vec<_> = (0..20).map(|_| pattern(&random.segments(&["a", "b", "*", "#"]))).collect();
            let selectors: Vec<_> = patterns.iter().cloned().map(Resolved::Pattern).collect();
            let mut index = index(&selectors);
            let mut left: Vec<u32> = (0..20).collect();
            while !left.is_empty() {
                let id = left.swap_remove(random.below(left.len()));
                index.remove(id, &selectors[id as usize]);
                let key = random.segments(&["a", "b"]);
                let mut expected = matching(&patterns, &key);
                expected.retain(|id| left.contains(id));
                assert_eq!(by_key(&index, &key), expected, "{key:?}");
            }
            assert!(index.patterns.nodes.is_empty() && index.patterns.free.is_empty());
            assert!(index.keys.is_empty());
        }
    }

    #[test]
    fn removed_nodes_are_used_again() {
        let mut index = index(&[Resolved::Pattern(pattern("a.*"))]);
        let (nodes, added) = (live_nodes(&index), Resolved::Pattern(pattern("a.#.b.c")));
        for _ in 0..3 {
            index.insert(1, &added);
            assert_eq!(live_nodes(&index), nodes + 3);
            index.remove(1, &added);
            assert_eq!(live_nodes(&index), nodes);
        }
        assert_eq!(index.patterns.nodes.len(), nodes + 3);
        assert_eq!(by_key(&index, "a.b"), [0]);
    }

    #[test]
    fn removing_what_is_not_there_changes_nothing() {
        let kept = [
            Resolved::Key("a".into()),
            Resolved::Pattern(pattern("a.*")),
            Resolved::Headers(Headers::all([("a", "1")])),
            Resolved::All,
        ];
        let absent = [
            Resolved::Key("b".into()),
            Resolved::Pattern(pattern("b.*")),
            Resolved::Pattern(pattern("a.*.#")),
            Resolved::Headers(Headers::all([("a", "2")])),
            Resolved::Headers(Headers::any([("b", "1")])),
        ];
        let mut index = index(&kept);
        for selector in kept.iter().chain(&absent) {
            index.remove(77, selector);
        }
        assert_eq!(by_key(&index, "a"), [0, 3]);
        assert_eq!(by_key(&index, "a.b"), [1, 3]);
        assert_eq!(by_headers(&index, &[("a", "1")]), [2]);
        Index::default().remove(0, &absent[1]);
    }

    #[test]
    fn by_key_appends_each_id_once_in_order() {
        let mut index = Index::default();
        let selectors = [
            Resolved::Pattern(pattern("#.b")),
            Resolved::Key("a.b".into()),
            Resolved::Pattern(pattern("a.b")),
            Resolved::All,
            Resolved::Pattern(pattern("x.*")),
        ];
        for (id, selector) in [9, 3, 5, 3, 1].into_iter().zip(&selectors) {
            index.insert(id, selector);
        }
        let mut found = SmallVec::from_slice(&[3, 0]);
        index.by_key("a.b", &mut found);
        assert_eq!(found.as_slice(), [3, 0, 3, 5, 9]);
    }

    #[test]
    fn ten_thousand_patterns_visit_few_nodes() {
        let shapes = ["tenant.N.*", "*.N.#", "#.N", "N.#.x", "N.#.N"];
        for shape in shapes {
            let selectors: Vec<_> =
                (0..10_000).map(|n| Resolved::Pattern(pattern(&shape.replace('N', &n.to_string())))).collect();
            let index = index(&selectors);
            for key in ["tenant.77.order", "a.77.b.c", "b.c.77", "77.x", "77.77"] {
                let visits = visits(&index, key);
                assert!(visits <= 20, "{shape}, {key}: {visits}");
            }
        }
    }

    #[test]
    fn long_keys_and_many_wildcards_stay_cheap() {
        let text = "#.a.#.b.#.c.#.*.#.a.#.b.#.missing";
        let index = index(&[Resolved::Pattern(pattern(text))]);
        let key = ["a.b.c"; 334].join(".");
        let (segments, nodes) = (key.split('.').count(), live_nodes(&index));
        assert!(visits(&index, &key) <= segments * nodes);
        assert!(!pattern(text).matches(&key));
        assert!(pattern("#.a.#.b.#.c.#").matches(&key));
    }

    #[test]
    fn headers_match_as_in_the_table() {
        let none: [(&str, &str); 0] = [];
        let (a, ab) = ([("a", "1")], [("a", "1"), ("b", "2")]);
        let table: &[(Headers, Pairs<'_>, bool)] = &[
            (Headers::all(ab), &[("b", "2"), ("c", "3"), ("a", "1")], true),
            (Headers::all(ab), &[("a", "1")], false),
            (Headers::all(ab), &[("a", "1"), ("b", "3")], false),
            (Headers::all(a), &[("a", "2"), ("a", "1")], false),
            (Headers::all([("a", "1"), ("a", "2")]), &[("a", "1")], false),
            (Headers::any(ab), &[("b", "2")], true),
            (Headers::any(ab), &[("a", "1"), ("b", "2")], true),
            (Headers::any(ab), &[("a", "2"), ("b", "1")], false),
            (Headers::any(ab), &[], false),
            (Headers::any([("a", "1"), ("a", "1")]), &[("a", "1")], true),
            (Headers::all(none), &[], true),
            (Headers::all(none), &[("a", "1")], true),
            (Headers::any(none), &[("a", "1")], false),
        ];
        for (wanted, headers, expected) in table {
            let selector = Resolved::Headers(wanted.clone());
            let mut index = index(std::slice::from_ref(&selector));
            let found = [by_key(&index, "k"), by_headers(&index, headers)].concat();
            assert_eq!(carries(wanted, headers), *expected, "{wanted}, {headers:?}");
            assert_eq!(found.len(), usize::from(*expected), "{wanted}, {headers:?}");
            index.remove(0, &selector);
            assert!(!index.has_headers() && index.everything.is_empty());
        }
    }

    #[test]
    fn has_headers_only_when_headers_decide() {
        let none: [(&str, &str); 0] = [];
        assert!(!index(&[Resolved::All]).has_headers());
        assert!(!index(&[Resolved::Headers(Headers::all(none))]).has_headers());
        assert!(!index(&[Resolved::Headers(Headers::any(none))]).has_headers());
        assert!(index(&[Resolved::Headers(Headers::any([("a", "1")]))]).has_headers());
    }

    #[test]
    fn header_bindings_with_a_common_handle_are_told_apart() {
        let selectors = [
            Headers::all([("tenant", "acme"), ("kind", "pdf")]),
            Headers::all([("tenant", "acme"), ("kind", "png")]),
            Headers::any([("tenant", "acme"), ("kind", "png")]),
            Headers::all([("tenant", "acme")]),
        ];
        let selectors = selectors.map(Resolved::Headers);
        let mut index = index(&selectors);
        let message = [("kind", "png"), ("tenant", "acme")];
        assert_eq!(by_headers(&index, &message), [1, 2, 3]);
        index.remove(2, &selectors[2]);
        assert_eq!(by_headers(&index, &message), [1, 3]);
        assert!(by_headers(&index, &message[..1]).is_empty());
    }

    #[test]
    fn bindings_show_what_they_select() {
        let none: [(&str, &str); 0] = [];
        let headers = Headers::all([("tenant", "acme"), ("kind", "pdf")]);
        let table: [(Binding<u32>, &str); 8] = [
            (Binding::pattern("order.*"), r#"pattern "order.*""#),
            (Binding::key("a"), r#"key "a""#),
            ("a".into(), r#""a""#),
            (Binding::headers(headers), "headers all tenant=acme, kind=pdf"),
            (Binding::headers(Headers::any([("a", "1")])), "headers any a=1"),
            (Binding::headers(Headers::any(none)), "headers any of nothing"),
            (Binding::all(), "everything"),
            (Binding::filter(|n| *n > 1), "everything and a filter"),
        ];
        for (binding, expected) in table {
            assert_eq!(binding.to_string(), expected);
        }
    }

    #[test]
    fn bindings_are_the_same_by_selector_and_filter_identity() {
        let plain = || Binding::<u32>::key("a");
        let filtered = plain().and_filter(|n| *n > 1);
        assert!(plain().same_as(&plain()));
        assert!(filtered.same_as(&filtered.clone()));
        assert!(!filtered.same_as(&plain()));
        assert!(!filtered.same_as(&plain().and_filter(|n| *n > 1)));
        assert!(!plain().same_as(&Binding::pattern("a")));
        assert!(!plain().same_as(&"a".into()));
        assert!(Binding::<u32>::from("a").same_as(&String::from("a").into()));
    }

    #[test]
    fn a_second_filter_narrows_the_first() {
        let binding = Binding::filter(|n: &u32| *n > 1).and_filter(|n| *n < 4);
        let accepts = binding.filter.unwrap();
        let accepted: Vec<_> = (0..6).filter(|n| accepts(n)).collect();
        assert_eq!(accepted, [2, 3]);
    }
}
