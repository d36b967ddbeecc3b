//! What a handler says about a message.

use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// What becomes of a message after its handler has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the message is gone.
    Ack,
    /// Failed; delivered again after the queue's back-off, or dead-lettered after its last attempt.
    Retry,
    /// Failed; delivered again after this long instead. The queue's limit of attempts still counts.
    RetryAfter(Duration),
    /// Given up on at once, for this reason.
    DeadLetter(String),
    /// Dropped on purpose; counted.
    Discard,
}

/// Why a handler failed, and whether trying again can help.
///
/// Any error converts into a transient failure, so `?` in a handler means "retry". Errors that no retry
/// can mend are marked with [`Classify::permanent`] and lead to a dead letter at once.
///
/// ```
/// use postroom::{Classify, Failure};
///
/// fn charge(card: &str) -> Result<(), Failure> {
///     card.parse::<u64>().permanent()?;            // a bad number stays bad
///     std::fs::read("/no/gateway")?;               // may work the next time
///     Ok(())
/// }
/// assert!(charge("nonsense").unwrap_err().is_permanent());
/// assert!(!charge("4242").unwrap_err().is_permanent());
/// ```
///
/// It does not implement [`std::error::Error`] itself: that is what lets every error convert into it.
pub struct Failure {
    error: Box<dyn StdError + Send + Sync>,
    permanent: bool,
}

impl Failure {
    /// A failure that may go away: the message is retried.
    pub fn transient(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { error: error.into(), permanent: false }
    }

    /// A failure that will not go away: the message becomes a dead letter.
    pub fn permanent(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { error: error.into(), permanent: true }
    }

    /// Whether retrying is pointless.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::transient(error)
    }
}

impl fmt::Display for Failure {
    /// The error and its chain of causes, separated by `: `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.permanent { "permanent" } else { "transient" };
        write!(f, "Failure({kind}: {self})")
    }
}

/// Says of a `Result`'s error whether retrying can help.
pub trait Classify<T> {
    /// Its error is beyond repair: dead letter at once.
    ///
    /// # Errors
    /// The error, marked permanent.
    fn permanent(self) -> Result<T, Failure>;

    /// Its error may go away: retry. The same as plain `?`, for errors that `?` cannot convert (text,
    /// boxed errors).
    ///
    /// # Errors
    /// The error, marked transient.
    fn transient(self) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Classify<T> for Result<T, E> {
    fn permanent(self) -> Result<T, Failure> {
        self.map_err(Failure::permanent)
    }
    fn transient(self) -> Result<T, Failure> {
        self.map_err(Failure::transient)
    }
}

/// What a handler may return: `()`, `Result<(), E>` with any error, or an [`Outcome`].
pub trait IntoOutcome {
    /// The outcome, with the error's text if there was one.
    fn into_outcome(self) -> (Outcome, Option<String>);
}

impl IntoOutcome for () {
    fn into_outcome(self) -> (Outcome, Option<String>) {
        (Outcome::Ack, None)
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> (Outcome, Option<String>) {
        (self, None)
    }
}

impl<R: IntoOutcome, E: Into<Failure>> IntoOutcome for Result<R, E> {
    #[inline]
    fn into_outcome(self) -> (Outcome, Option<String>) {
        match self {
            Ok(outcome) => outcome.into_outcome(),
            Err(error) => from_failure(&error.into()),
        }
    }
}

#[cold]
fn from_failure(failure: &Failure) -> (Outcome, Option<String>) {
    let text = failure.to_string();
    let outcome = if failure.permanent { Outcome::DeadLetter(text.clone()) } else { Outcome::Retry };
    (outcome, Some(text))
}

/// The words a panic carried.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let words =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    words.map_or_else(|| "panicked".to_owned(), |words| format!("panicked: {words}"))
}

/// Runs user code; a panic becomes its words. What a panic carries may panic again when it is dropped.
pub(crate) fn contained<R>(user_code: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(user_code)).map_err(|panic| {
        let words = panic_text(&*panic);
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        words
    })
}

/// Drops a value whose destructor may panic; a panic there must not take a worker or a lock with it.
#[inline]
pub(crate) fn drop_contained<V>(value: V) {
    if std::mem::needs_drop::<V>() {
        let _ = contained(|| drop(value));
    }
}

/// As [`drop_contained`], where the value lies.
#[inline]
pub(crate) fn clear_contained<V>(slot: &mut Option<V>) {
    if std::mem::needs_drop::<V>() {
        let _ = contained(|| *slot = None);
    } else {
        *slot = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn failures_show_their_whole_chain() {
        let cause = "x".parse::<u8>().unwrap_err();
        assert_eq!(Failure::from(Outer(cause)).to_string(), "outer: invalid digit found in string");
    }

    #[test]
    fn what_handlers_return_means_what_it_says() {
        let failed: Result<(), Failure> = Err(Failure::transient("later"));
        assert_eq!(failed.into_outcome(), (Outcome::Retry, Some("later".into())));
        let bad: Result<(), Failure> = Err("bad").permanent();
        assert_eq!(bad.into_outcome(), (Outcome::DeadLetter("bad".into()), Some("bad".into())));
        let io: Result<(), std::io::Error> = Ok(());
        assert_eq!(io.into_outcome(), (Outcome::Ack, None));
        let nested: Result<Outcome, std::io::Error> = Ok(Outcome::Discard);
        assert_eq!(nested.into_outcome(), (Outcome::Discard, None));
        assert_eq!(().into_outcome(), (Outcome::Ack, None));
    }

    #[test]
    fn panics_of_text_keep_their_words() {
        let caught = std::panic::catch_unwind(|| panic!("no {}", "luck")).unwrap_err();
        assert_eq!(panic_text(&*caught), "panicked: no luck");
        assert_eq!(panic_text(&7_u8), "panicked");
    }
}
