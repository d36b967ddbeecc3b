//! The work itself: one file per contestant, the same functions in the same order.
//!
//! * `one_to_one`: one producer thread, one consumer thread.
//! * `two_to_two`: two of each.
//! * `batches`: one of each, up to 64 messages per call where the contestant can.
//! * `one_thread`: send, then receive, again and again.
//!
//! Every function takes the number of messages and returns how long they took, or why the run is void.

use std::time::Duration;

pub mod crew;
pub mod payload;

pub mod crossbeam;
pub mod crossbeam_chunks;
pub mod flume;
pub mod kanal;
pub mod postroom;
pub mod standard;
pub mod tokio;

pub use payload::{Block, Payload, Tally};

/// How long a run took, or why it does not count.
pub type Outcome = Result<Duration, String>;

/// Every bounded queue holds this many messages.
const CAPACITY: usize = 1024;
/// Messages per call where a contestant moves several at once.
const BATCH: usize = 64;

/// Who does the work.
#[derive(Clone, Copy)]
pub struct Contestant {
    pub name: &'static str,
    /// Its crate; none for the standard library.
    pub package: Option<&'static str>,
    /// What it leaves out of the job postroom does.
    pub note: &'static str,
}
