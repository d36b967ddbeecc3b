//! SQLite by rusqlite: one table, one row a message, the write-ahead log.

use std::path::Path;

use postroom::rusqlite::{Connection, OptionalExtension, params};

use super::{Bytes, Engine, Writes};
use crate::work::Contestant;

pub struct Sqlite {
    db: Connection,
    syncs: bool,
}

impl Engine for Sqlite {
    const SELF: Contestant = Contestant {
        name: "rusqlite",
        package: Some("rusqlite"),
        note: "a table of number and bytes; no times, headers, attempts; no delivery",
    };

    fn open(folder: &Path) -> Self {
        let db = open(&folder.join("rows.db"));
        db.execute_batch("CREATE TABLE IF NOT EXISTS message (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL)")
            .expect("a table");
        Sqlite { db, syncs: true }
    }

    fn commit(&mut self, writes: &Writes, sync: bool) {
        set_sync(&self.db, &mut self.syncs, sync);
        let transaction = self.db.transaction().expect("nobody else writes");
        {
            let mut insert = transaction.prepare_cached("INSERT INTO message VALUES (?1, ?2)").expect("valid");
            for (number, bytes) in &writes.inserts {
                insert.execute(params![number.cast_signed(), bytes]).expect("inserted");
            }
            let mut delete = transaction.prepare_cached("DELETE FROM message WHERE number = ?1").expect("valid");
            for number in &writes.deletes {
                delete.execute([number.cast_signed()]).expect("deleted");
            }
        }
        transaction.commit().expect("committed");
    }

    fn first(&self) -> Option<Bytes> {
        let sql = "SELECT bytes FROM message ORDER BY number LIMIT 1";
        self.db.query_row(sql, [], |row| row.get(0)).optional().expect("it can be read")
    }
}

/// With the write-ahead log, and synced commits.
pub fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    db.pragma_update(None, "journal_mode", "WAL").expect("WAL mode");
    db.pragma_update(None, "synchronous", "FULL").expect("synced commits");
    db
}

pub fn set_sync(db: &Connection, is: &mut bool, sync: bool) {
    if sync != *is {
        db.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" }).expect("a mode");
        *is = sync;
    }
}
