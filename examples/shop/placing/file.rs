//! The file: the shop's own and nobody else's.

use postroom::rusqlite::{self, Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

type AnyError = Box<dyn std::error::Error>;

pub struct File {
    path: PathBuf,
    /// To be removed at the end.
    directory: Option<PathBuf>,
    /// Holds a lock for as long as this process lives, so that a second shop is refused.
    lock: Mutex<Option<Connection>>,
}

/// Tells the shop's databases from others: "shop".
const OURS: i64 = 0x7368_6f70;

impl File {
    /// That one, or a fresh one in a directory of its own.
    pub fn choose(path: Option<&str>) -> io::Result<Self> {
        let lock = Mutex::default();
        if let Some(path) = path {
            return Ok(Self { path: path.into(), directory: None, lock });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let directory = std::env::temp_dir().join(format!("shop-{}-{now}", std::process::id()));
        fs::create_dir(&directory)?;
        Ok(Self { path: directory.join("shop.db"), directory: Some(directory), lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> String {
        if self.directory.is_some() {
            "a database of its own, removed at the end".into()
        } else {
            self.path.display().to_string()
        }
    }

    /// Opens it, and does what is to be done first, as one transaction. Another program's database is left as it
    /// is.
    pub fn open<R>(&self, first: impl FnOnce(&Connection) -> Result<R, AnyError>) -> Result<(Connection, R), AnyError> {
        let mut db = connect(&self.path)?;
        let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let (id, tables) = (number("PRAGMA application_id")?, number("SELECT count(*) FROM sqlite_master")?);
        if id != OURS && (id != 0 || tables > 0) {
            return Err("it is another program's".into());
        }
        *self.lock.lock().unwrap() = Some(lock(&self.path)?);
        db.pragma_update(None, "journal_mode", "WAL")?;
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.pragma_update(None, "application_id", OURS)?;
        let result = first(&tx)?;
        tx.commit()?;
        Ok((db, result))
    }

    /// Removes it if it is one of its own.
    pub fn remove(&self) -> io::Result<()> {
        self.lock.lock().unwrap().take();
        self.directory.as_ref().map_or(Ok(()), fs::remove_dir_all)
    }
}

pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    // In write-ahead mode, what is committed survives the process. For a power cut, FULL.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(db)
}

/// As a file name, never as a URI.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

/// A transaction on an empty database beside it, which never ends.
fn lock(path: &Path) -> Result<Connection, AnyError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let lock = open(Path::new(&name))?;
    lock.busy_timeout(Duration::ZERO)?;
    match lock.execute_batch("BEGIN EXCLUSIVE") {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            Err("another shop is at work on it".into())
        }
        begun => Ok(begun.map(|()| lock)?),
    }
}
