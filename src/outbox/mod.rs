//! Messages that are committed together with the rows of a database, and work that is done once.
//!
//! An *outbox* is a table in your own database. A message is put into it by your own transaction, so both
//! are committed or neither is; a [`Relay`] publishes committed rows and marks each when it has been handled.
//! An *inbox* is a table in which a consumer's transaction notes the id of the message whose work it does,
//! so that a message that comes twice has its effect once.

mod envelope;
mod error;
mod inbox;
#[cfg(feature = "postgres")]
mod postgres;
mod relay;
#[cfg(feature = "sqlite")]
mod sqlite;
mod table;

pub use error::OutboxError;
pub use inbox::{InboxError, Once};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresInbox, PostgresOutbox};
pub use relay::{Relay, RelayBuilder, RelayStats};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteInbox, SqliteOutbox};
pub use table::{DeadRow, OutboxStats};
