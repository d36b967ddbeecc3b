//! Doing once what may be asked for twice.

#[cfg(feature = "sqlite")]
mod filed;
mod ledger;

#[cfg(feature = "sqlite")]
pub(crate) use filed::DoneStream;
pub(crate) use ledger::{Found, Ledger, Screened};

use crate::broker::Broker;
use crate::clock::Clock;
use crate::error::Error;
use crate::message::Text;
#[cfg(feature = "sqlite")]
use crate::{queue::durable::Depot, store::StoreError};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long, and how many, keys are remembered that are done. A duration alone gives one with
/// [`Window::DEFAULT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    time: Duration,
    max: usize,
}

impl Window {
    /// How many keys are remembered at most, unless [`Window::max`] says otherwise.
    pub const DEFAULT_MAX: usize = 100_000;

    /// Remembers what is done for this long.
    #[must_use]
    pub fn of(time: Duration) -> Self {
        Self { time, max: Self::DEFAULT_MAX }
    }

    /// Remembers at most so many that are done: the oldest is forgotten for the next. What is in progress is never
    /// forgotten and does not count. A key takes about 100 bytes, and its text if that is longer than 22.
    #[must_use]
    pub fn max(mut self, keys: usize) -> Self {
        self.max = keys;
        self
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.time.is_zero() {
            problems.push("a window of 0 s remembers nothing: more than zero".into());
        }
        if self.max == 0 {
            problems.push("a window of 0 keys remembers nothing: at least 1".into());
        }
        problems
    }
}

impl From<Duration> for Window {
    fn from(time: Duration) -> Self {
        Self::of(time)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} keys", self.time, self.max)
    }
}

/// Remembers what is done, so that it is not done twice: for consumers written by hand. For handlers, a queue
/// can do it by itself; see [`QueueBuilder::idempotent`](crate::QueueBuilder::idempotent).
///
/// Claim a key before the work, complete the claim after it; a claim that is released, or dropped by an early
/// return or a panic, leaves the key as if nothing had been. So work that failed is never taken for a duplicate.
/// Clones share one memory. It is kept in this process and ends with it, unless it is
/// `Broker::durable_idempotency` (feature `sqlite`).
///
/// ```
/// use postroom::{Claimed, Idempotency, Message, Queue, QueueBuilder};
/// use std::time::Duration;
///
/// let payments: Queue<u32> = Queue::standalone(QueueBuilder::new("payments"))?;
/// for cents in [500, 500, 700] {
///     payments.send(Message::new(cents).with_id(u64::from(cents))).unwrap();
/// }
///
/// let seen = Idempotency::new(Duration::from_secs(3600))?;
/// let mut paid = Vec::new();
/// while let Ok(payment) = payments.try_recv() {
///     match seen.claim(payment.id()) {
///         Claimed::New(claim) => {
///             paid.push(**payment); // an error here would drop the claim
///             claim.complete();
///             payment.ack()?;
///         }
///         Claimed::Done => payment.ack()?,
///         Claimed::InProgress => payment.retry()?, // elsewhere, and it may fail there
///     }
/// }
/// assert_eq!(paid, [500, 700]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Idempotency {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger<Infallible>,
    clock: Arc<Clock>,
    window: Window,
    #[cfg(feature = "sqlite")]
    filed: Option<(Arc<Depot>, DoneStream)>,
}

impl Inner {
    fn complete(&self, key: &Text) {
        let now = self.clock.now();
        self.ledger.complete_noting(key, now, |oldest| {
            #[cfg(feature = "sqlite")]
            if let Some((depot, done)) = &self.filed {
                depot.note(done.note(0, key, now, oldest));
            }
            #[cfg(not(feature = "sqlite"))]
            let _ = oldest;
        });
    }
}

/// What [`Idempotency::claim`] finds.
#[derive(Debug)]
#[must_use = "a claim that is dropped is released"]
pub enum Claimed {
    /// Not done within the window, nor in progress: it is yours.
    New(Claim),
    /// Somebody has claimed it and not said yet what came of it. It may fail, so this is no duplicate yet.
    InProgress,
    /// Done within the window.
    Done,
}

/// The right to do something that nobody else does. Dropped, it is released.
#[must_use = "a claim that is dropped is released"]
pub struct Claim {
    inner: Arc<Inner>,
    key: Option<Text>,
}

impl Idempotency {
    /// A memory of its own, on the system's clock.
    ///
    /// # Errors
    /// A window of no time or no keys.
    pub fn new(window: impl Into<Window>) -> Result<Self, Error> {
        Self::on(Arc::new(Clock::system()), window.into())
    }

    fn on(clock: Arc<Clock>, window: Window) -> Result<Self, Error> {
        Error::unless_none("idempotency", window.problems())?;
        let ledger = Ledger::new(window);
        #[cfg(feature = "sqlite")]
        let inner = Inner { ledger, clock, window, filed: None };
        #[cfg(not(feature = "sqlite"))]
        let inner = Inner { ledger, clock, window };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// With what earlier runs have completed under that name.
    #[cfg(feature = "sqlite")]
    pub(crate) fn in_file(
        clock: Arc<Clock>,
        depot: &Arc<Depot>,
        name: &str,
        window: Window,
    ) -> Result<Self, StoreError> {
        let ledger = Ledger::new(window);
        let done = DoneStream::open(&depot.store, ("idempotency", name, "by key"), &ledger, clock.now())?;
        let filed = Some((Arc::clone(depot), done));
        Ok(Self { inner: Arc::new(Inner { ledger, clock, window, filed }) })
    }

    /// The same, if that is its window.
    #[cfg(feature = "sqlite")]
    pub(crate) fn if_within(&self, window: Window) -> Result<Self, String> {
        if self.inner.window == window {
            return Ok(self.clone());
        }
        Err(format!("it exists with the window {}, asked for {window}", self.inner.window))
    }

    /// Claims a message's id, or any key that shows itself as text.
    pub fn claim(&self, key: impl fmt::Display) -> Claimed {
        let key = Text::of(&key);
        match self.inner.ledger.claim(&key, self.inner.clock.now()) {
            Found::Nothing => Claimed::New(Claim { inner: Arc::clone(&self.inner), key: Some(key) }),
            Found::InProgress => Claimed::InProgress,
            Found::Done => Claimed::Done,
        }
    }

    /// How many keys it holds, in progress or done. Those out of date are forgotten little by little as it is used,
    /// and count until then.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.ledger.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Broker {
    /// A memory of what is done, on this broker's clock; see [`Idempotency`].
    ///
    /// # Errors
    /// A window of no time or no keys.
    pub fn idempotency(&self, window: impl Into<Window>) -> Result<Idempotency, Error> {
        Idempotency::on(Arc::clone(&self.runtime().clock), window.into())
    }
}

impl Claim {
    /// It is done: others find [`Claimed::Done`] for as long as the window says.
    pub fn complete(mut self) {
        if let Some(key) = self.key.take() {
            self.inner.complete(&key);
        }
    }

    /// It was not done: the next one may claim it. The same as dropping it.
    pub fn release(self) {}
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.inner.ledger.release(&key);
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.key).finish()
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("window", &self.inner.window).field("len", &self.len()).finish()
    }
}
