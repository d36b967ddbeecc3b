//! Outbox and inbox in a SQLite database.

mod inbox;
mod outbox;
mod table;

pub use inbox::SqliteInbox;
pub use outbox::SqliteOutbox;

use crate::outbox::error::OutboxError;
use rusqlite::{Connection, ErrorCode};

/// What a driver's error means for an operation on a table.
fn classified(table: &str, operation: &'static str, error: rusqlite::Error) -> OutboxError {
    let (table, text) = (table.to_owned(), error.to_string());
    let code = error.sqlite_error_code();
    let source = error.into();
    match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OutboxError::Busy { table, operation, source },
        Some(ErrorCode::CannotOpen) => OutboxError::Connection { table, operation, source },
        _ if text.contains("no such table") => OutboxError::Missing { table, operation },
        _ => OutboxError::Database { table, operation, source },
    }
}

/// Runs statements so that all of them count or none does.
fn all_or_none<R>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<R>,
) -> rusqlite::Result<R> {
    if !connection.is_autocommit() {
        return work(connection);
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let result = work(connection).and_then(|result| connection.execute_batch("COMMIT").map(|()| result));
    if result.is_err() && !connection.is_autocommit() {
        // The error that led here says more than one of this could.
        let _ = connection.execute_batch("ROLLBACK");
    }
    result
}
