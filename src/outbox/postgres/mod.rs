//! Outbox and inbox in a PostgreSQL database.

mod inbox;
mod listener;
mod outbox;
mod table;

pub use inbox::PostgresInbox;
pub use outbox::PostgresOutbox;

use crate::outbox::error::OutboxError;
use postgres::error::SqlState;
use std::error::Error as _;

/// What a driver's error means for an operation on a table.
fn classified(table: &str, operation: &'static str, error: postgres::Error) -> OutboxError {
    let table = table.to_owned();
    let code = error.code().cloned();
    let lost = error.is_closed() || error.source().is_some_and(|cause| cause.is::<std::io::Error>());
    let source = error.into();
    match code {
        Some(SqlState::UNDEFINED_TABLE) => OutboxError::Missing { table, operation },
        Some(
            SqlState::LOCK_NOT_AVAILABLE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::QUERY_CANCELED,
        ) => OutboxError::Busy { table, operation, source },
        Some(code) if is_of_the_connection(&code) => OutboxError::Connection { table, operation, source },
        None if lost => OutboxError::Connection { table, operation, source },
        _ => OutboxError::Database { table, operation, source },
    }
}

fn is_of_the_connection(code: &SqlState) -> bool {
    let shut_down = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
    ];
    code.code().starts_with("08") || shut_down.contains(code)
}

/// The time on the server's clock, which all relays share.
const NOW_US: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
