//! Looking into a file from beside, without leaving a trace.

use super::error::StoreError;
use super::item::StreamInfo;
use super::lock::{self, Holder};
use super::reader::Reader;
use super::{absolute, schema};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a look waits for whoever is just setting the file up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Looks that are disturbed by somebody who opens the file before it is given up.
const LOOKS: usize = 20;

/// Looks into the file of a store that another process may have open, and changes nothing: no row, no lock that
/// would keep a store out, and no file beside it but in one case.
///
/// * While a store has the file, it is read under SQLite's shared locks, as a [`Reader`] of that process would. A
///   look that takes long keeps the log from being emptied.
/// * After a process was killed, its log is read where it lies and stays as it is. If that log is there without its
///   index (`-shm`), as when somebody has copied the file and its log alone, SQLite makes one.
/// * If nobody has it, it is read as it is, without a lock. Should somebody open it meanwhile, the look begins anew.
///
/// It is meant for another process than the store's: a store that is opened in this process during a look may be
/// told that the file cannot be written. Beside a store of your own, use [`Store::reader`](super::Store::reader).
///
/// ```
/// use postroom::store::{Batch, Durability, Inspector, Item, Limit, Options, Store, StoreError};
///
/// # let path = std::env::temp_dir().join(format!("postroom-doc-inspect-{}.db", std::process::id()));
/// let store = Store::open(&path, Options::new())?;
/// let orders = store.declare("queue", "orders", "")?;
/// store.commit(Batch::new().insert(orders, Item::default()), Durability::Buffered)?;
///
/// let inspector = Inspector::open(&path)?;
/// assert_eq!(inspector.streams()?[0].count, 1);
/// assert_eq!(inspector.look(|reader| reader.read(orders, 0, Limit::items(10)))?.len(), 1);
/// assert_eq!(inspector.holder()?.map(|holder| holder.pid), Some(std::process::id()));
/// # store.close()?;
/// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
/// # Ok::<(), StoreError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Inspector {
    path: PathBuf,
    format: i64,
}

impl Inspector {
    /// Checks that the file is one of ours. Nothing is kept open.
    ///
    /// # Errors
    ///
    /// [`Missing`](StoreError::Missing), [`NotADatabase`](StoreError::NotADatabase),
    /// [`NotOurs`](StoreError::NotOurs) for a database without our tables, [`Foreign`](StoreError::Foreign) for one
    /// with odd tables of our names, [`Newer`](StoreError::Newer), and if it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        metadata(path)?.ok_or_else(|| StoreError::Missing { path: path.to_owned() })?;
        let mut found = Self { path: absolute(path)?, format: 0 };
        found.format = found.glance(|reader| schema::known_format(&found.path, reader.sql()))?;
        if found.format == 0 { Err(StoreError::NotOurs { path: found.path }) } else { Ok(found) }
    }

    /// The format it has.
    #[must_use]
    pub fn format(&self) -> i64 {
        self.format
    }

    /// The file, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads of one moment, with a reader that is gone afterwards. `reads` is called again if what it has read may
    /// have changed under its eyes: only if somebody opens the file during the look, and nobody had it before.
    ///
    /// # Errors
    ///
    /// What `reads` says, and if the file cannot be read.
    pub fn look<R>(&self, reads: impl Fn(&Reader<'_>) -> Result<R, StoreError>) -> Result<R, StoreError> {
        self.glance(|reader| {
            schema::pretend_packs(reader.sql())?;
            reads(reader)
        })
    }

    /// At whatever file it is.
    fn glance<R>(&self, reads: impl Fn(&Reader<'_>) -> Result<R, StoreError>) -> Result<R, StoreError> {
        for _ in 0..LOOKS {
            let before = State::of(&self.path)?;
            let result = before.connect(&self.path).and_then(|connection| Reader::alone(connection).consistent(&reads));
            let undisturbed = match before.way() {
                // The log, or its index, may have gone with its owner before it was opened.
                Way::Beside => !matches!(result, Err(StoreError::Io(_) | StoreError::Busy(_))),
                Way::Alone => false,
                Way::WithoutIndex => true,
            };
            if undisturbed || State::of(&self.path)? == before {
                return result;
            }
        }
        Err(StoreError::Busy("it is opened and closed all the time".into()))
    }

    /// All streams, by number.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn streams(&self) -> Result<Vec<StreamInfo>, StoreError> {
        self.look(|reader| reader.streams())
    }

    /// Who has the file open, if anybody. To find out whether the one who is noted beside the file still has it,
    /// their lock is asked for, and given back at once.
    ///
    /// # Errors
    ///
    /// If it cannot be told, as when this process may not write to the file of the lock.
    pub fn holder(&self) -> Result<Option<Holder>, StoreError> {
        lock::holder_of(&self.path)
    }

    /// The size of the database, and that of its write-ahead log, in bytes.
    ///
    /// # Errors
    ///
    /// If they cannot be asked for.
    pub fn sizes(&self) -> Result<(u64, u64), StoreError> {
        let size = |found: Option<Metadata>| found.map_or(0, |found| found.len());
        Ok((size(metadata(&self.path)?), size(metadata(&beside(&self.path, "-wal"))?)))
    }
}

/// What there is of a file. No part of it is opened for that: closing it again would end the locks of a store of
/// this process.
#[derive(Debug, PartialEq, Eq)]
struct State {
    file: Option<(u64, Option<SystemTime>)>,
    log: Option<(u64, Option<SystemTime>)>,
    journal: Option<u64>,
    has_index: bool,
}

enum Way {
    /// Somebody has it open, or was killed.
    Beside,
    /// Nobody has.
    Alone,
    WithoutIndex,
}

impl State {
    fn of(path: &Path) -> Result<Self, StoreError> {
        let stamp = |found: Metadata| (found.len(), found.modified().ok());
        Ok(Self {
            file: metadata(path)?.map(stamp),
            log: metadata(&beside(path, "-wal"))?.map(stamp),
            journal: metadata(&beside(path, "-journal"))?.map(|found| found.len()),
            has_index: metadata(&beside(path, "-shm"))?.is_some(),
        })
    }

    fn way(&self) -> Way {
        match self.log {
            Some(_) if self.has_index => Way::Beside,
            Some((1.., _)) => Way::WithoutIndex,
            _ if self.journal.is_some_and(|bytes| bytes > 0) => Way::WithoutIndex,
            _ => Way::Alone,
        }
    }

    fn connect(&self, path: &Path) -> Result<Connection, StoreError> {
        let how = match self.way() {
            Way::Beside => "&readonly_shm=1",
            Way::Alone => "&immutable=1",
            Way::WithoutIndex => "",
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opening = |error| StoreError::opening(path, error);
        let connection = Connection::open_with_flags(uri(path) + how, flags).map_err(opening)?;
        connection.busy_timeout(PATIENCE).map_err(opening)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(opening)?;
        Ok(connection)
    }
}

fn metadata(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::Io(format!("{}: {error}", path.display()).into())),
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

/// The path as SQLite wants it where there are options.
fn uri(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let bytes = bytes.strip_prefix(br"\\?\").unwrap_or(bytes);
    let start = if cfg!(windows) { "file:///" } else { "file://" };
    let encoded = bytes.iter().map(|&byte| match byte {
        b'/' | b':' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        b'\\' if cfg!(windows) => "/".to_owned(),
        other => format!("%{other:02x}"),
    });
    start.to_owned() + &encoded.collect::<String>() + "?mode=ro"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_path_with_odd_letters_survives_as_an_address() {
        assert_eq!(uri(Path::new("/a/b c?d#e%f.db")), "file:///a/b%20c%3fd%23e%25f.db?mode=ro");
    }
}
