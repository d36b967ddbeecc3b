use std::cell::Cell;

use super::*;
use smallvec::SmallVec;

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
    let table = [("ord*", "ord*"), ("a.##", "##"), ("*#.b", "*#"), ("a.*.**", "**"), ("#a.b*", "#a"), ("a.é#.b", "é#")];
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
