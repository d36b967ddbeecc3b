//! One process at a time.
//!
//! Beside `orders.db` lies `orders.db.lock`, itself a tiny SQLite database in which the holder keeps a write
//! transaction open. The operating system ends that lock with the process, however it dies, so nothing stale is
//! ever in the way; readers still get at the row that says who holds it. It is SQLite's own locking, so wherever
//! SQLite works this does, and the main file stays open to its user's other connections.

use super::error::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Who has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The machine it runs on, as that calls itself.
    pub host: String,
    /// Since when it has the file, in seconds since the UNIX epoch.
    pub since: u64,
}

impl Holder {
    fn this_process() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { pid: std::process::id(), host: host(), since }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("a process that has just taken it");
        }
        write!(f, "process {} on {} (since {} s after the UNIX epoch)", self.pid, self.host, self.since)
    }
}

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct FileLock {
    _transaction: Connection,
}

impl FileLock {
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let side = side_file(path);
        let opening = |error| StoreError::opening(&side, error);
        let connection = Connection::open(&side).map_err(opening)?;
        if connection.is_readonly("main").map_err(opening)? {
            return Err(StoreError::ReadOnly(side.display().to_string().into()));
        }
        match hold(&connection) {
            Ok(()) => Ok(Self { _transaction: connection }),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                Err(StoreError::InUse { path: path.to_owned(), holder: read_holder(&connection) })
            }
            Err(error) => Err(opening(error)),
        }
    }
}

fn side_file(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    name.into()
}

/// How long somebody may have the lock who only asks whether anybody has it.
const MOMENT: Duration = Duration::from_millis(50);

/// Writes who holds it, then opens the transaction that is the lock. If somebody slips in between the two, the row
/// says so, and is written again.
fn hold(connection: &Connection) -> rusqlite::Result<()> {
    let me = Holder::this_process();
    loop {
        connection.busy_timeout(MOMENT)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        if noted(connection).is_ok_and(|noted| noted == me) {
            return Ok(());
        }
        // Somebody who was refused may be reading the row.
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS holder(pid INTEGER, host TEXT, since INTEGER); DELETE FROM holder",
        )?;
        connection.execute("INSERT INTO holder VALUES (?, ?, ?)", params![me.pid, me.host, me.since.cast_signed()])?;
        connection.execute_batch("COMMIT")?;
    }
}

fn noted(connection: &Connection) -> rusqlite::Result<Holder> {
    connection.query_row("SELECT pid, host, since FROM holder", [], |row| {
        Ok(Holder { pid: row.get(0)?, host: row.get(1)?, since: row.get::<_, i64>(2)?.cast_unsigned() })
    })
}

/// The holder may be writing that row just now; then it is read again, for a moment.
fn read_holder(connection: &Connection) -> Holder {
    let _ = connection.busy_timeout(Duration::from_millis(500));
    noted(connection).unwrap_or(Holder { pid: 0, host: String::new(), since: 0 })
}

/// Who holds it, if anybody does. Takes the lock for less than a [`MOMENT`] to find out, and writes nothing.
pub(super) fn holder_of(path: &Path) -> Result<Option<Holder>, StoreError> {
    let side = side_file(path);
    if !side.try_exists().map_err(|error| StoreError::Io(error.to_string().into()))? {
        return Ok(None);
    }
    let opening = |error| StoreError::opening(&side, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&side, flags).map_err(opening)?;
    connection.busy_timeout(Duration::ZERO).map_err(opening)?;
    if connection.is_readonly("main").map_err(opening)? {
        return Err(StoreError::ReadOnly(side.display().to_string().into()));
    }
    match connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
        Ok(()) => Ok(None),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(Some(read_holder(&connection))),
        Err(error) => Err(opening(error)),
    }
}

fn host() -> String {
    let file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok();
    file.or_else(variable).map_or_else(|| "this machine".to_owned(), |name| name.trim().to_owned())
}
