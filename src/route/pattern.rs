//! AMQP topic patterns.

use std::fmt;

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
    pub(super) text: Box<str>,
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

    pub(super) fn segments(&self) -> impl Iterator<Item = Segment<'_>> + Clone {
        self.text.split('.').map(Segment::read)
    }

    /// The only key that matches, if the pattern has no wildcards.
    pub(super) fn literal(&self) -> Option<&str> {
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
pub(super) enum Segment<'a> {
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
