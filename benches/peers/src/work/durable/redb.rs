//! redb: a copy-on-write B-tree in one file.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Bytes, Engine, Writes};
use crate::work::Contestant;

pub struct Redb(Database);

const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");

impl Engine for Redb {
    const SELF: Contestant = Contestant { name: "redb", package: Some("redb"), note: "number and bytes; no delivery" };

    fn open(folder: &Path) -> Self {
        Redb(Database::create(folder.join("rows.redb")).expect("a database"))
    }

    fn commit(&mut self, writes: &Writes, sync: bool) {
        let mut transaction = self.0.begin_write().expect("nobody else writes");
        let durability = if sync { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability).expect("no savepoints");
        {
            let mut table = transaction.open_table(MESSAGES).expect("a table");
            for (number, bytes) in &writes.inserts {
                table.insert(number, bytes.as_slice()).expect("inserted");
            }
            for number in &writes.deletes {
                table.remove(number).expect("removed");
            }
        }
        transaction.commit().expect("committed");
    }

    fn first(&self) -> Option<Bytes> {
        let transaction = self.0.begin_read().expect("it can be read");
        let table = transaction.open_table(MESSAGES).expect("a table");
        let first = table.first().expect("it can be read")?;
        Some(first.1.value().try_into().expect("all are of one size"))
    }
}
