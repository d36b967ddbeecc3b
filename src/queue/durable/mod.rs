//! Queues whose messages live in the broker's file until they are settled.
//!
//! The file comes first: a message is encoded with no lock held, every queue it goes to promises a place, one
//! batch with all of its copies is handed to the store, and only after the commit do the copies appear in memory
//! (on the writer's thread, in the order of the file). So nobody handles what a crash could take back, and whoever
//! has heard `Ok` has it safe. Settling goes the other way round: memory first, and the file hears of it with one of
//! the next commits; what was settled but not yet deleted when the process ends is delivered again.
//!
//! Whatever may run the user's code (destructors, hooks) is an [`Errand`]: done by the publisher once it wakes, or
//! by the scheduler if nobody waits, never by the writer.

mod accept;
mod declare;
mod depot;
mod filed;
mod format;
mod letters;
mod recover;
mod recover_by_key;
mod same_file;
mod spares;
mod rider;
mod undecoded;

pub(crate) use self::accept::{Delivered, Others, Parcel, Stowed};
pub(crate) use self::declare::{Durable, letters_of_group};
pub(crate) use self::depot::{Depot, Errand, Pending};
pub(crate) use self::filed::Filed;
pub(crate) use self::format::Coding;
pub(crate) use self::letters::{Along, Moving};
pub(crate) use self::recover::{keep_apart, put_apart};
pub(crate) use self::rider::Rider;
pub use self::undecoded::Undecoded;
pub(crate) use self::undecoded::{Apart, Home, former_item};

use crate::store::Durability;

/// How durable a queue is.
pub(crate) type Mode = Durability;
/// Why something did not get into the file.
pub(crate) type FileError = crate::store::StoreError;

pub(crate) fn promise(mode: Mode) -> &'static str {
    match mode {
        Durability::Buffered => "durable: written before Ok, survives the end of the process",
        Durability::Sync => "durable: synced before Ok, survives the loss of power",
    }
}
