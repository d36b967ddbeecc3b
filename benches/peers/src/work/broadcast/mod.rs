//! From one publisher to subscribers that each have to see everything, with at most 1024 messages on the way.
//!
//! Everybody here waits for the slowest subscriber. Where the contestant does not do so by itself, its
//! publisher does.

pub mod async_broadcast;
pub mod bus;
pub mod crossbeam;
pub mod disruptor;
pub mod postroom;
pub mod shared_chunks;
pub mod tokio;
