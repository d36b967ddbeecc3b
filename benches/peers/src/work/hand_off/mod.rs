//! From producers to consumers that share the work: one file per contestant, the same functions in the same
//! order.
//!
//! * `one_to_one`: one producer thread, one consumer thread; `many::<_, N>`: N of each.
//! * `batches`: one of each, up to 64 messages per call where the contestant can.
//! * `one_thread`: send, then receive, again and again.

pub mod crossbeam;
pub mod crossbeam_chunks;
pub mod flume;
pub mod kanal;
pub mod postroom;
pub mod standard;
pub mod tokio;
pub mod two_locks;
