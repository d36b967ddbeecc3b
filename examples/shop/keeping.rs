//! What outlives the process, if there is a file: messages, and what the modules have to remember of them.
//!
//! The modules of a real shop would have databases of their own for that. Here each has a book, all of them in one
//! table beside the broker's.

use postroom::{Broker, Error, QueueBuilder, QueueName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Deref;
#[cfg(feature = "sqlite")]
use std::sync::Arc;

type AnyError = Box<dyn std::error::Error>;

/// A module whose queues are declared and bound, and that has yet to begin its work. Since a queue may have messages
/// from the start, nobody begins before all have got so far: what is published while nobody is bound is lost.
pub type Ready = Box<dyn FnOnce() -> Result<(), Error>>;

/// The broker's file, if it has one.
#[derive(Clone, Default)]
pub struct Keeping {
    #[cfg(feature = "sqlite")]
    file: Option<Arc<file::File>>,
}

impl Keeping {
    #[cfg(feature = "sqlite")]
    pub fn of(broker: &Broker) -> Result<Self, AnyError> {
        Ok(Self { file: broker.store().map(file::File::open).transpose()?.map(Arc::new) })
    }

    #[cfg(not(feature = "sqlite"))]
    pub fn of(_: &Broker) -> Result<Self, AnyError> {
        Ok(Self::default())
    }

    #[cfg(feature = "sqlite")]
    pub fn file(&self) -> Option<&Arc<file::File>> {
        self.file.as_ref()
    }

    pub fn is_on(&self) -> bool {
        #[cfg(feature = "sqlite")]
        return self.file.is_some();
        #[cfg(not(feature = "sqlite"))]
        return false;
    }

    /// A queue that is in the file.
    pub fn queue<T>(&self, broker: &Broker, name: QueueName<T>) -> QueueBuilder<T>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let queue = broker.queue(name);
        #[cfg(feature = "sqlite")]
        let queue = if self.is_on() { queue.durable(postroom::store::Durability::Buffered) } else { queue };
        queue
    }

    /// A book with all that earlier runs have noted there.
    pub fn book<K, V>(&self, name: &'static str) -> Result<Book<K, V>, AnyError>
    where
        K: Serialize + DeserializeOwned + Ord,
        V: Serialize + DeserializeOwned,
    {
        #[cfg(feature = "sqlite")]
        if let Some(file) = &self.file {
            return Ok(Book { entries: file.read(name)?, name, keeping: self.clone() });
        }
        Ok(Book { entries: BTreeMap::new(), name, keeping: self.clone() })
    }

    #[cfg(feature = "sqlite")]
    fn note<K: Serialize, V: Serialize>(&self, book: &str, key: &K, value: Option<&V>) {
        if let Some(file) = &self.file {
            file.note(book, key, value).unwrap_or_else(|why| panic!("cannot be noted: {why}"));
        }
    }

    #[cfg(not(feature = "sqlite"))]
    fn note<K: Serialize, V: Serialize>(&self, _: &str, _: &K, _: Option<&V>) {}
}

/// What a module knows, by order or whatever it goes by. With a file, what is noted survives the process.
pub struct Book<K, V> {
    entries: BTreeMap<K, V>,
    name: &'static str,
    keeping: Keeping,
}

impl<K, V> Deref for Book<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.entries
    }
}

impl<K: Serialize + Ord, V: Serialize> Book<K, V> {
    pub fn insert(&mut self, key: K, value: V) {
        self.keeping.note(self.name, &key, Some(&value));
        self.entries.insert(key, value);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.keeping.note(self.name, key, None::<&V>);
        self.entries.remove(key)
    }
}

#[cfg(feature = "sqlite")]
pub mod file {
    use super::AnyError;
    use postroom::rusqlite::{Connection, Transaction, params};
    use postroom::store::{Store, StoreError};
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    const TABLE: &str = "CREATE TABLE IF NOT EXISTS books (
        book TEXT NOT NULL,
        entry TEXT NOT NULL,
        content TEXT NOT NULL,
        PRIMARY KEY (book, entry)
    ) WITHOUT ROWID";

    /// A connection to the file, for tables beside the broker's.
    pub struct File {
        store: Store,
        db: Mutex<Connection>,
    }

    impl File {
        pub fn open(store: &Store) -> Result<Self, AnyError> {
            let db = store.connect()?;
            // As the queues: what is committed survives the process. For a power cut, FULL.
            db.pragma_update(None, "synchronous", "NORMAL")?;
            db.execute_batch(TABLE)?;
            Ok(Self { store: store.clone(), db: Mutex::new(db) })
        }

        /// Runs a transaction, which may put messages into queues as well.
        pub fn transaction<R>(
            &self,
            work: impl FnOnce(&Transaction<'_>) -> Result<R, AnyError>,
        ) -> Result<R, AnyError> {
            self.store.transaction(&mut self.db.lock().unwrap(), work)
        }

        pub fn read<K: DeserializeOwned + Ord, V: DeserializeOwned>(
            &self,
            book: &str,
        ) -> Result<BTreeMap<K, V>, AnyError> {
            let db = self.db.lock().unwrap();
            let mut query = db.prepare("SELECT entry, content FROM books WHERE book = ?1")?;
            let rows = query.query_map([book], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            let parsed = rows.map(|row| {
                let (entry, content) = row?;
                Ok((serde_json::from_str(&entry)?, serde_json::from_str(&content)?))
            });
            parsed.collect()
        }

        pub fn note<K: Serialize, V: Serialize>(&self, book: &str, key: &K, value: Option<&V>) -> Result<(), AnyError> {
            let key = serde_json::to_string(key)?;
            let content = value.map(serde_json::to_string).transpose()?;
            self.store.transaction(&mut self.db.lock().unwrap(), |tx| -> Result<(), StoreError> {
                match content {
                    Some(content) => {
                        let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO books VALUES (?1, ?2, ?3)")?;
                        insert.execute(params![book, key, content])?
                    }
                    None => {
                        tx.prepare_cached("DELETE FROM books WHERE book = ?1 AND entry = ?2")?.execute([book, &key])?
                    }
                };
                Ok(())
            })?;
            Ok(())
        }
    }
}
