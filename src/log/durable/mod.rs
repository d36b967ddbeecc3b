//! Logs whose records live in the broker's file for as long as they are retained.
//!
//! Each partition is a stream of the file, and a record's offset is its place there. The file comes first: a record is
//! encoded with no lock held, handed to the store together with all else that has to be there with it, and only after
//! the commit is it appended to the partition in memory (on the writer's thread, in the order of the file). So nobody
//! reads what a crash could take back, and whoever has heard `Ok` has it safe.
//!
//! | a record is | where | under |
//! |---|---|---|
//! | being encoded | with whoever appends | nothing; the log has promised to take it |
//! | given its time, handed in | with the store's function for it | the depot's order |
//! | committed | in the partition's tail, then in a segment | the partition's lock |
//! | not among the latest | only in the file, and in memory while somebody reads there | nothing; see below |
//! | let go of by retention or compaction | gone; the file hears of it with one of the next commits | handed in under the partition's lock |
//!
//! What the file hears is handed in under a lock, so that it has an order, but nothing is written or waited for there.
//! A partition that is not compacted has its latest records in memory. Of the others it knows where they are, in chunks
//! as large as segments: right after opening that is all of them, and later what new ones have pushed out. Whoever
//! wants one reads its chunk, decodes it with no lock held, and shows it as a segment, which others find as long as
//! somebody holds it; each group holds the one it reads. Compaction needs to see all records, so a compacted log has
//! them in memory.
//!
//! Where a group stands is a mark of each partition's stream, written lazily as settled messages are deleted: after a
//! crash it may be a little behind, so that some records come again, and never ahead.

mod append;
mod fetch;
mod marks;
mod on_file;
mod recover;

pub use append::LogTicket;
pub(super) use fetch::{ReadError, is_end_of_file};
pub(crate) use marks::{Marks, forget};
pub(crate) use on_file::{Deletions, Durably, Entry, OnFile, WINDOW};
