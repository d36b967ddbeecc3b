//! What is committed is published and what is rolled back is not, whatever happens in between; on SQLite
//! always, on PostgreSQL if there is a server (`scripts/postgres.sh with cargo test ...`).
#![cfg(feature = "sqlite")]

#[path = "../common/mod.rs"]
mod common;
mod inbox;
mod lab;
mod own_postgres;
mod own_sqlite;
mod relay;
mod seen;
mod simulated;

/// Makes a test for each database of everything that holds on both.
macro_rules! on_every_database {
    ($($promise:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[test]
                fn $promise() {
                    let lab = crate::lab::SqliteLab::new();
                    crate::common::within(std::time::Duration::from_secs(60), move || super::$promise(&lab));
                }
            )*
        }

        #[cfg(feature = "postgres")]
        mod postgres {
            $(
                #[test]
                fn $promise() {
                    if let Some(lab) = crate::lab::PostgresLab::new(stringify!($promise)) {
                        crate::common::within(std::time::Duration::from_secs(60), move || super::$promise(&lab));
                    }
                }
            )*
        }
    };
}
pub(crate) use on_every_database;
