//! SQLite by rusqlite, with one row for all messages of a commit: what is left of its cost where rows are shared.

use std::{collections::BTreeMap, path::Path};

use postroom::rusqlite::{Connection, OptionalExtension, params};

use super::{Bytes, Engine, SIZE, Writes, sqlite};
use crate::work::Contestant;

pub struct Packed {
    db: Connection,
    syncs: bool,
    row: Vec<u8>,
    /// How many are left of each row, by its first number. Which of them is only known here.
    left: BTreeMap<u64, usize>,
}

impl Engine for Packed {
    const SELF: Contestant = Contestant {
        name: "rusqlite, packed",
        package: Some("rusqlite"),
        note: "a row for all messages of a commit, deleted with the last of them: killed before that, it has all of them again",
    };

    fn open(folder: &Path) -> Self {
        let db = sqlite::open(&folder.join("packs.db"));
        db.execute_batch("CREATE TABLE IF NOT EXISTS pack (first INTEGER PRIMARY KEY, bytes BLOB NOT NULL)")
            .expect("a table");
        let left = {
            let mut rows = db.prepare("SELECT first, length(bytes) FROM pack").expect("valid");
            let rows =
                rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as usize / SIZE))).expect("readable");
            rows.map(|row: postroom::rusqlite::Result<(i64, usize)>| row.expect("a number and a length"))
                .map(|(first, count)| (first.cast_unsigned(), count))
                .collect()
        };
        Packed { db, syncs: true, row: Vec::new(), left }
    }

    fn commit(&mut self, writes: &Writes, sync: bool) {
        sqlite::set_sync(&self.db, &mut self.syncs, sync);
        let transaction = self.db.transaction().expect("nobody else writes");
        if let Some((first, _)) = writes.inserts.first() {
            self.row.clear();
            writes.inserts.iter().for_each(|(_, bytes)| self.row.extend_from_slice(bytes));
            let mut insert = transaction.prepare_cached("INSERT INTO pack VALUES (?1, ?2)").expect("valid");
            insert.execute(params![first.cast_signed(), self.row]).expect("inserted");
            self.left.insert(*first, writes.inserts.len());
        }
        let mut delete = transaction.prepare_cached("DELETE FROM pack WHERE first = ?1").expect("valid");
        for number in &writes.deletes {
            let (&first, left) = self.left.range_mut(..=number).next_back().expect("it was inserted");
            *left -= 1;
            if *left == 0 {
                self.left.remove(&first);
                delete.execute([first.cast_signed()]).expect("deleted");
            }
        }
        drop(delete);
        transaction.commit().expect("committed");
    }

    fn first(&self) -> Option<Bytes> {
        let sql = "SELECT substr(bytes, 1, ?1) FROM pack ORDER BY first LIMIT 1";
        self.db.query_row(sql, [SIZE as i64], |row| row.get(0)).optional().expect("it can be read")
    }
}
