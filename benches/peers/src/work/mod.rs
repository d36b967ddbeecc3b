//! The work itself: one directory per kind of work, in it one file per contestant.
//!
//! Every function takes the number of messages and returns how long they took, or why the run is void.

use std::time::Duration;

pub mod arrivals;
pub mod crew;
pub mod payload;

// In the order of the rows.
pub mod hand_off;
pub mod broadcast;
pub mod order;
pub mod log;
pub mod routing;
pub mod delay;
pub mod lateness;
pub mod depth;
pub mod latency;
pub mod sweeps;
pub mod scale;
#[cfg(feature = "jobs")]
pub mod jobs;
pub mod loopback;
#[cfg(feature = "durable")]
pub mod durable;

pub use payload::{Block, Payload, Tally};

/// How long a run took, or why it does not count.
pub type Outcome = Result<Duration, String>;

/// Every bounded queue holds this many messages.
pub const CAPACITY: usize = 1024;
/// Messages per call where a contestant moves several at once.
pub const BATCH: usize = 64;

/// Who does the work.
#[derive(Clone, Copy)]
pub struct Contestant {
    pub name: &'static str,
    /// Its crate; none for the standard library.
    pub package: Option<&'static str>,
    /// What it leaves out of the job postroom does.
    pub note: &'static str,
}
