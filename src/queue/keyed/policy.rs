//! What is to happen to a key whose message is given up on, and what can be seen of it.

use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::message::MessageId;
use std::time::SystemTime;

/// What a queue ordered by key does when it gives up on a message after its last attempt, or after a
/// failure that no retry can mend.
///
/// What a consumer rejects itself ([`Delivery::dead_letter`](crate::Delivery::dead_letter),
/// [`Outcome::DeadLetter`](crate::Outcome::DeadLetter)) and what expires is a decision or the clock's doing,
/// not a failure: those become dead letters, and their key goes on, whatever is set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Exhausted {
    /// The message becomes a dead letter, and the next one of its key goes on. The default.
    #[default]
    DeadLetter,
    /// The key is parked: the message and all that follow under its key stay until
    /// [`Queue::release_key`](crate::Queue::release_key) or [`Queue::drop_key`](crate::Queue::drop_key). Other
    /// keys flow.
    Park,
    /// The key is parked, and nothing at all is handed out until [`Queue::resume`](crate::Queue::resume).
    Stop,
}

/// A key that is held back since one of its messages failed for good; see [`Exhausted::Park`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parked {
    /// The ordering key.
    pub key: String,
    /// How many messages stay, the one that failed included.
    pub waiting: usize,
    /// The message that failed.
    pub message: MessageId,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was given up on.
    pub reason: Reason,
    /// What its last attempt said.
    pub error: Option<String>,
    /// Since when the key is held back, on the broker's timeline.
    pub since: SystemTime,
}

/// Why and since when a lane is held back.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) reason: Reason,
    pub(crate) since: Timestamp,
}
