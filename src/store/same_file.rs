//! The user's own rows, in the same file and the same transaction.

use super::Store;
use super::error::StoreError;
use super::item::{Item, Seq, StreamId, from_column};
use super::schema;
use super::statements::{Bound, INSERT, bind_item};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::path::Path;

/// Inserts an item in a transaction of yours, on a connection to the store's file; it is there if the transaction
/// commits. Its place is taken within the transaction, so it collides with nobody's.
///
/// [`Store::transaction`] does the rest. If you run the transaction yourself, begin it `IMMEDIATE` (one that has
/// read before it writes may be refused with [`StoreError::Busy`]), and call [`Store::notice`] after its commit.
///
/// # Errors
///
/// If there is no such stream, or the file cannot be written.
pub fn insert_in(transaction: &Transaction<'_>, stream: StreamId, item: &Item) -> Result<Seq, StoreError> {
    let take = "UPDATE postroom_stream SET next = next + 1, count = count + 1 WHERE id = ? RETURNING next - 1";
    let mut take = transaction.prepare_cached(take)?;
    let seq = take.query_row((stream.get(),), |row| row.get(0)).optional()?;
    let seq = seq.map(from_column).ok_or(StoreError::UnknownStream(stream))?;
    let mut insert = transaction.prepare_cached(INSERT)?;
    bind_item(&mut insert, &mut Bound::default(), stream.row(seq), item)?;
    insert.raw_execute()?;
    Ok(seq)
}

impl Store {
    /// A connection of your own to the same file: in WAL mode, every commit synced, ready to wait a while for its
    /// turn. Any other connection to the file does as well.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened.
    pub fn connect(&self) -> Result<Connection, StoreError> {
        schema::connect(&self.shared.path, &self.shared.options, 2 << 20)
    }

    /// Runs a transaction on a connection of yours to the store's file: your rows and the items of [`insert_in`]
    /// appear together or, if `work` fails or panics, not at all. It takes turns with the store's own commits.
    ///
    /// Keep it short: no commit of the store's succeeds meanwhile. For the same reason `work` must not wait for
    /// one ([`commit`](Self::commit), [`flush`](Self::flush), [`Ticket::wait`](super::Ticket::wait)), nor call
    /// this again; it would wait forever. Sending or publishing to a durable queue is such a wait too, and so is
    /// shutting the broker down; [`Queue::send_in`](crate::Queue::send_in) is the way to send from there.
    ///
    /// ```
    /// use postroom::store::{Item, Options, Store, StoreError, insert_in};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-{}.db", std::process::id()));
    /// let store = Store::open(&path, Options::new())?;
    /// let orders = store.declare("queue", "orders", "")?;
    /// let mut mine = store.connect()?;
    /// mine.execute_batch("CREATE TABLE IF NOT EXISTS invoice (id INTEGER PRIMARY KEY, cents INTEGER)")?;
    ///
    /// store.transaction(&mut mine, |tx| {
    ///     tx.execute("INSERT INTO invoice (cents) VALUES (?)", [4200])?;
    ///     insert_in(tx, orders, &Item { payload: b"invoice made".to_vec(), ..Item::default() })
    /// })?;
    /// # drop(mine);
    /// store.close()?;
    /// # for end in ["", ".lock", "-wal", "-shm"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), StoreError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What `work` says, and if the transaction cannot be begun or committed. A commit whose sync failed breaks the
    /// store too (see [`State::Broken`](super::State::Broken)).
    pub fn transaction<R, E: From<StoreError>>(
        &self,
        connection: &mut Connection,
        work: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        self.must_be_ours(connection)?;
        if let Some(error) = self.shared.status.broken() {
            return Err(error.into());
        }
        let turn = self.shared.turn.guest();
        let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(StoreError::from)?;
        let result = work(&transaction)?;
        transaction.commit().map_err(StoreError::from).inspect_err(|error| self.doubt(error))?;
        drop(turn);
        self.notice();
        Ok(result)
    }

    /// Looks for what other connections have inserted, and tells [`watch`](Self::watch). Every commit looks too.
    pub fn notice(&self) {
        self.shared.inbox.look();
    }

    fn must_be_ours(&self, connection: &Connection) -> Result<(), StoreError> {
        let ours = connection.path().is_some_and(|path| same_file(Path::new(path), &self.shared.path));
        if ours { Ok(()) } else { Err(StoreError::other("the connection is to another file than the store's")) }
    }

    /// After a failed sync, what was written before it without one may be gone too.
    fn doubt(&self, error: &StoreError) {
        if matches!(error, StoreError::Io(_) | StoreError::Corrupt(_)) {
            self.shared.status.troubled(error);
        }
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}
