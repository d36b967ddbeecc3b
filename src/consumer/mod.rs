//! Workers and handlers.

mod batch;
mod builder;
mod roster;
mod single;
mod squad;
mod staging;
mod staff;
mod work;

pub use self::builder::ConsumerBuilder;
pub(crate) use self::staff::{Staff, join};
use crate::breaker::Circuit;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::scheduler::TimedId;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

fn subject(queue: &str) -> String {
    format!("consumer of queue {queue:?}")
}

/// A running consumer. Dropping this handle leaves its workers running.
#[derive(Clone)]
pub struct Consumer {
    crew: Arc<dyn Crew>,
}

impl Consumer {
    pub(crate) fn of(crew: Arc<dyn Crew>) -> Self {
        Self { crew }
    }

    /// Changes the number of workers while they run. Those who are too many leave after the message they
    /// have in hand; this does not wait for them.
    ///
    /// # Errors
    /// Zero (use [`Consumer::pause`]), a consumer that was stopped, or a system that refuses a thread: then it
    /// keeps the number it had, and those who came before the refusal leave as others who are too many.
    pub fn scale_to(&self, workers: usize) -> Result<(), Error> {
        self.crew.scale_to(workers)
    }

    /// How many workers it is meant to have.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.crew.workers()
    }

    /// Lets no worker take another message until [`Consumer::resume`]; what is in hand, or just being
    /// taken, is finished.
    pub fn pause(&self) {
        self.crew.pause(true);
    }

    /// Lets the workers go on after [`Consumer::pause`].
    pub fn resume(&self) {
        self.crew.pause(false);
    }

    /// What its circuit breaker does; `None` if it has none.
    #[must_use]
    pub fn circuit(&self) -> Option<Circuit> {
        self.crew.circuit()
    }

    /// Ends the consumer: every worker finishes what it has in hand, and is joined. What is ready stays in
    /// the queue. Called from one of its own handlers, it does not wait for that one.
    pub fn stop(&self) {
        self.crew.order_stop();
        self.crew.join(None);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.crew.queue()).field("workers", &self.workers()).finish()
    }
}

/// A consumer without its types, as its handle and the broker's shutdown see it.
pub(crate) trait Crew: Send + Sync {
    fn queue(&self) -> &str;
    fn queue_id(&self) -> TimedId;
    /// How many workers empty the queue now; `None` if others may as well, or it is paused.
    fn drainers(&self) -> Option<usize>;
    fn workers(&self) -> usize;
    fn scale_to(&self, workers: usize) -> Result<(), Error>;
    fn pause(&self, paused: bool);
    fn circuit(&self) -> Option<Circuit>;
    /// From when on it takes messages, in the past if it does now; `None` unless time alone brings that about.
    fn available_at(&self) -> Option<Timestamp>;
    /// Workers leave as soon as their hands are empty.
    fn order_stop(&self);
    /// Waits for the workers that were ordered to stop; how many had not left by `deadline`.
    fn join(&self, deadline: Option<Instant>) -> usize;
}

/// Hires the first workers, all of them or none.
pub(crate) fn hire_first(crew: &dyn Crew, workers: usize) -> Result<(), Error> {
    crew.scale_to(workers).inspect_err(|_| {
        crew.order_stop();
        crew.join(None);
    })
}
