//! What can go wrong with a table.

use crate::codec::CodecError;
use std::error::Error as StdError;
use thiserror::Error as ThisError;

/// Why an operation on an outbox's or inbox's table failed.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum OutboxError {
    /// The name cannot be a table's.
    #[error("{table:?} cannot name a table: {problem}")]
    Name {
        /// The name.
        table: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The tables do not exist; `create_table` makes them, `ddl` prints how.
    #[error("{operation}: table {table:?} does not exist")]
    Missing {
        /// The table.
        table: String,
        /// What was to be done.
        operation: &'static str,
    },
    /// The tables were made by another version of this library.
    #[error("{operation}: table {table:?} has version {found}, this program reads and writes version {expected}")]
    Version {
        /// The table.
        table: String,
        /// What was to be done.
        operation: &'static str,
        /// The version of the table.
        found: i64,
        /// The version it would have to have.
        expected: i64,
    },
    /// The connection has no transaction open, so the message could not be part of one.
    #[error("put into {table:?}: no transaction is open on this connection")]
    NoTransaction {
        /// The table.
        table: String,
    },
    /// Somebody else holds a lock; trying again may help.
    #[error("{operation}: table {table:?} is locked")]
    Busy {
        /// The table.
        table: String,
        /// What was to be done.
        operation: &'static str,
        /// What the database said.
        source: CodecError,
    },
    /// The connection could not be made, or is lost.
    #[error("{operation}: no connection to the database of table {table:?}")]
    Connection {
        /// The table.
        table: String,
        /// What was to be done.
        operation: &'static str,
        /// What the driver said.
        source: CodecError,
    },
    /// Anything else the database refused.
    #[error("{operation}: table {table:?}")]
    Database {
        /// The table.
        table: String,
        /// What was to be done.
        operation: &'static str,
        /// What the database said.
        source: CodecError,
    },
    /// The payload has no bytes.
    #[error("put into {table:?}: the {codec} codec refuses the payload")]
    Encode {
        /// The table.
        table: String,
        /// The codec.
        codec: String,
        /// What it said.
        source: CodecError,
    },
    /// The message asks for something that cannot be written down.
    #[error("put into {table:?}: {what}")]
    Unsupported {
        /// The table.
        table: String,
        /// What that is.
        what: &'static str,
    },
    /// The message's id was assigned by its broker, which begins again at 1 in every process.
    #[error("table {table:?}: message id {id} is not the same after a restart; name a key of your own")]
    UnstableId {
        /// The table.
        table: String,
        /// The id.
        id: u64,
    },
    /// A relay that cannot be started.
    #[error("relay of {table:?}: {problem}")]
    Relay {
        /// The table.
        table: String,
        /// Why.
        problem: String,
    },
}

impl OutboxError {
    /// Whether the same may succeed later without anybody changing anything: a lock, a lost connection.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Connection { .. })
    }

    /// With the chain of causes, separated by `: `.
    pub(crate) fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// A table's name as it stands in SQL: letters, digits and `_`, with a schema before a dot if there is one.
pub(crate) fn checked_name(table: &str, schemas: bool) -> Result<(), OutboxError> {
    let refuse = |problem| Err(OutboxError::Name { table: table.to_owned(), problem });
    let parts: Vec<&str> = table.split('.').collect();
    if parts.len() > if schemas { 2 } else { 1 } {
        return refuse(if schemas { "one dot at most" } else { "no dots" });
    }
    // PostgreSQL's limit for the name of a notification, too.
    if table.len() > 60 {
        return refuse("60 characters at most");
    }
    for part in parts {
        let mut letters = part.chars();
        if !letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_') {
            return refuse("it has to begin with a lower-case letter or _");
        }
        if !letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            return refuse("only lower-case letters, digits and _");
        }
        if part.len() > 40 {
            return refuse("40 characters at most");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_into_sql_as_they_are_so_they_are_plain() {
        for good in ["outbox", "_o", "o2", "billing.outbox"] {
            assert!(checked_name(good, true).is_ok(), "{good}");
        }
        for bad in ["", "2o", "o-x", "o x", "Outbox", "o;drop", "o\"", "a.b.c", ".o", "o.", &"o".repeat(41)] {
            assert!(checked_name(bad, true).is_err(), "{bad}");
        }
        assert!(checked_name("main.outbox", false).is_err());
    }
}
