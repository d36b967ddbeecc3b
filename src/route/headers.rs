//! What a message's headers must be.

use std::fmt;
use std::sync::Arc;

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

    pub(super) fn is_unconditional(&self) -> bool {
        self.quantifier == Quantifier::All && self.pairs.is_empty()
    }

    /// The pairs of which a matching message carries at least one: where to index this.
    pub(super) fn handles(&self) -> &[(String, String)] {
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
