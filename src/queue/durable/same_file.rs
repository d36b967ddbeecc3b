//! Messages in a transaction of the user's, together with rows of theirs.

use crate::error::SendError;
use crate::message::{Message, MessageId};
use crate::queue::Queue;
use crate::queue::core::Refusal;
use crate::store::insert_in;
use rusqlite::Transaction;

impl<T: Send + Sync + 'static> Queue<T> {
    /// Sends a message in a transaction of yours on the broker's file: it is in the queue if and when that commits,
    /// together with the rows that the transaction changed. Nothing relays it. Room is not asked for.
    ///
    /// Begin the transaction with [`Store::transaction`](crate::store::Store::transaction), which takes turns with
    /// the broker's own commits and has the queue look at once.
    ///
    /// ```
    /// use postroom::store::{Durability, StoreError};
    /// use postroom::{Broker, Queue};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-insert-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let orders: Queue<u32> = broker.queue("orders").durable(Durability::Sync).declare()?;
    /// let store = broker.store().unwrap();
    /// let mut mine = store.connect()?;
    /// mine.execute_batch("CREATE TABLE invoice (id INTEGER PRIMARY KEY)")?;
    ///
    /// store.transaction(&mut mine, |tx| -> Result<(), Box<dyn std::error::Error>> {
    ///     tx.execute("INSERT INTO invoice VALUES (7)", [])?;
    ///     orders.send_in(tx, 7)?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(**orders.recv()?, 7);
    /// # drop((mine, orders, broker));
    /// # for end in ["", ".lock", "-wal", "-shm"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Gives the message back if it cannot be encoded or inserted, and at once if the queue is not durable, is ordered
    /// by key, or has priority levels, or the message has a delay.
    pub fn send_in(
        &self,
        transaction: &Transaction<'_>,
        message: impl Into<Message<T>>,
    ) -> Result<MessageId, SendError<T>> {
        let mut message = message.into();
        self.core.stamp(&mut message);
        let refuse = |message, refusal| Err(self.core.send_error((message, refusal)));
        let Some(filed) = self.core.filed.get().filter(|_| self.core.spills_in_order() && message.due().is_none())
        else {
            let words = "only a durable queue without an order or priorities takes it, and no delay";
            return refuse(message, Refusal::Unencodable(words.into()));
        };
        let id = message.id;
        let item = match filed.item(&message) {
            Ok(item) => item,
            Err(refusal) => return refuse(message, refusal),
        };
        match insert_in(transaction, filed.stream, &item) {
            Ok(_) => Ok(id),
            Err(error) => refuse(message, Refusal::NotStored(error)),
        }
    }
}
