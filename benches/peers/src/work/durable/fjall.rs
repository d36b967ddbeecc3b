//! fjall: a log-structured merge tree.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Bytes, Engine, Writes};
use crate::work::Contestant;

pub struct Fjall {
    db: Database,
    messages: Keyspace,
}

impl Engine for Fjall {
    const SELF: Contestant =
        Contestant { name: "fjall", package: Some("fjall"), note: "number and bytes; no delivery" };

    fn open(folder: &Path) -> Self {
        let db = Database::builder(folder.join("rows")).open().expect("a database");
        let messages = db.keyspace("messages", KeyspaceCreateOptions::default).expect("a keyspace");
        Fjall { db, messages }
    }

    fn commit(&mut self, writes: &Writes, sync: bool) {
        let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
        let mut batch = self.db.batch().durability(Some(mode));
        for (number, bytes) in &writes.inserts {
            batch.insert(&self.messages, number.to_be_bytes(), bytes.as_slice());
        }
        for number in &writes.deletes {
            batch.remove(&self.messages, number.to_be_bytes());
        }
        batch.commit().expect("committed");
    }

    fn first(&self) -> Option<Bytes> {
        let value = self.messages.first_key_value()?.value().expect("it can be read");
        Some(value.as_ref().try_into().expect("all are of one size"))
    }
}
