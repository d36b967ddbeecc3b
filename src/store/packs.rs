//! The writer's side of packs: made, thinned out, taken apart. One whose contents are damaged does not keep it from
//! writing: what is left of them is taken for what can be told.

use super::error::StoreError;
use super::item::{Item, StreamId, to_column};
use super::pack::{Crowd, Head, Pack};
use rusqlite::{Connection, Rows, Statement};

/// What is in the file is asked for each time, so there is nothing to put right when a transaction is rolled back but
/// what was read last.
pub(super) struct Packs<'c> {
    insert: Statement<'c>,
    at_or_before: Statement<'c>,
    after: Statement<'c>,
    contents: Statement<'c>,
    delete: Statement<'c>,
    note: Statement<'c>,
    forget: Statement<'c>,
    payload: Vec<u8>,
    /// The last one that an item was taken out of: often the next comes out of the same.
    read: Option<Pack>,
}

impl<'c> Packs<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let prepare = |sql: &str| connection.prepare(sql);
        let head = format!("SELECT {} FROM {}", Head::COLUMNS, Head::FROM);
        Ok(Self {
            insert: prepare("INSERT INTO postroom_pack VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?,
            at_or_before: prepare(&format!("{head} WHERE p.id BETWEEN ?1 AND ?2 ORDER BY p.id DESC LIMIT 1"))?,
            after: prepare(&format!("{head} WHERE p.id > ?1 AND p.id <= ?2 ORDER BY p.id LIMIT 1"))?,
            contents: prepare(&format!("SELECT {} FROM {} WHERE p.id = ?1", Pack::COLUMNS, Head::FROM))?,
            delete: prepare("DELETE FROM postroom_pack WHERE id = ?1")?,
            note: prepare("INSERT INTO postroom_pack_gone VALUES (?1, ?2) ON CONFLICT DO UPDATE SET gone = ?2")?,
            forget: prepare("DELETE FROM postroom_pack_gone WHERE id = ?1")?,
            payload: Vec::new(),
            read: None,
        })
    }

    pub(super) fn insert(&mut self, crowd: &Crowd<'_>) -> Result<(), StoreError> {
        let Some(first) = crowd.items.first() else { return Ok(()) };
        let items = crowd.write(&mut self.payload)?;
        self.insert.raw_bind_parameter(1, crowd.first)?;
        self.insert.raw_bind_parameter(2, crowd.items.len() as i64)?;
        self.insert.raw_bind_parameter(3, to_column(first.published_at))?;
        self.insert.raw_bind_parameter(4, first.priority)?;
        self.insert.raw_bind_parameter(5, first.schema)?;
        self.insert.raw_bind_parameter(6, first.routing_key)?;
        self.insert.raw_bind_parameter(7, items)?;
        self.insert.raw_bind_parameter(8, self.payload.as_slice())?;
        self.insert.raw_execute()?;
        Ok(())
    }

    /// The pack that item is in, or else the first one behind it in its stream.
    pub(super) fn at_or_after(&mut self, row: i64) -> Result<Option<Head>, StoreError> {
        let (_, last) = StreamId::rows_around(row);
        let covering = self.at(row)?;
        if covering.is_some() {
            return Ok(covering);
        }
        first(self.after.query((row, last))?)
    }

    fn at(&mut self, row: i64) -> Result<Option<Head>, StoreError> {
        let (start, _) = StreamId::rows_around(row);
        let found = first(self.at_or_before.query((start, row))?)?;
        Ok(found.filter(|head| row <= head.last()))
    }

    /// Removes these items, and the pack with the last of them.
    pub(super) fn remove(&mut self, mut head: Head, rows: &[i64]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        rows.iter().for_each(|&row| head.remove(row));
        if head.left().next().is_none() {
            self.delete.execute((head.first,))?;
            if head.is_noted {
                self.forget.execute((head.first,))?;
            }
        } else {
            self.note.execute((head.first, head.gone.as_column()))?;
        }
        Ok(())
    }

    /// Takes an item out, to be inserted as a row of its own; `None` if no pack has it.
    pub(super) fn take_out(&mut self, row: i64) -> Result<Option<Item>, StoreError> {
        let Some(head) = self.at(row)?.filter(|head| head.has(row)) else { return Ok(None) };
        if self.read.as_ref().is_none_or(|pack| pack.head.first != head.first) {
            let mut rows = self.contents.query((head.first,))?;
            let found = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            self.read = Some(Pack::salvaged(found)?);
        }
        let item = self.read.as_ref().and_then(|pack| Some(pack.row(row)?.item));
        self.remove(head, &[row])?;
        Ok(item)
    }

    /// Of a pack that was inserted by a transaction that is rolled back, or was in a stream that is removed, another one
    /// may get the place.
    pub(super) fn forget_read(&mut self) {
        self.read = None;
    }
}

fn first(mut rows: Rows<'_>) -> Result<Option<Head>, StoreError> {
    rows.next()?.map(Head::from_row).transpose()
}
