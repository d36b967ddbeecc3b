//! The tables, and how a file gets them.

use super::error::StoreError;
use super::options::Options;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// Step `n` makes format `n + 1` out of format `n`; a file without our tables has format 0.
const STEPS: &[&str] = &[FORMAT_1, FORMAT_2, FORMAT_3, FORMAT_4];

const FORMAT_1: &str = "
CREATE TABLE postroom_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE postroom_stream (
    id       INTEGER PRIMARY KEY,        -- 1 to 32767
    kind     TEXT    NOT NULL,           -- what its owner uses it for: 'queue', 'log', ...
    name     TEXT    NOT NULL,
    settings TEXT    NOT NULL DEFAULT '',
    next     INTEGER NOT NULL DEFAULT 0, -- the place the next item gets
    count    INTEGER NOT NULL DEFAULT 0, -- items in it
    UNIQUE (kind, name)
);

CREATE TABLE postroom_item (
    id           INTEGER PRIMARY KEY,    -- (stream << 48) | place in the stream
    message      INTEGER NOT NULL,       -- the message's id
    published_at INTEGER NOT NULL,       -- times are nanoseconds since 1970
    attempts     INTEGER NOT NULL,
    due_at       INTEGER,                -- it rests until then
    expires_at   INTEGER,
    priority     INTEGER NOT NULL,
    schema       INTEGER NOT NULL,       -- version of the payload's type
    key          TEXT,
    routing_key  TEXT    NOT NULL,
    headers      TEXT,                   -- JSON: [[name, value], ...]
    extra        BLOB,
    payload      BLOB    NOT NULL
);
CREATE INDEX postroom_item_due ON postroom_item (id >> 48, due_at) WHERE due_at IS NOT NULL;

CREATE TABLE postroom_mark (
    stream INTEGER NOT NULL,
    name   BLOB    NOT NULL,
    value  BLOB    NOT NULL,
    PRIMARY KEY (stream, name)
) WITHOUT ROWID;

CREATE VIEW postroom_items AS
SELECT s.kind AS kind, s.name AS stream, i.id & 281474976710655 AS seq, i.message AS message,
       datetime(i.published_at / 1000000000, 'unixepoch') AS published, i.attempts AS attempts,
       datetime(i.due_at / 1000000000, 'unixepoch') AS due, datetime(i.expires_at / 1000000000, 'unixepoch') AS expires,
       i.priority AS priority, i.key AS key, i.routing_key AS routing_key, i.headers AS headers,
       i.schema AS schema, length(i.payload) AS bytes, i.payload AS payload
FROM postroom_stream s JOIN postroom_item i ON i.id BETWEEN s.id << 48 AND (s.id << 48) | 281474976710655;
";

/// Finds those that rest and of which more is noted than their time: whatever has been handed out before, or has a
/// timer.
const FORMAT_2: &str = "
CREATE INDEX postroom_item_noted ON postroom_item (id) WHERE due_at IS NOT NULL AND extra IS NOT NULL;
";

/// Items that share a row, and a view that shows each of them.
const FORMAT_3: &str = "
DROP VIEW IF EXISTS postroom_items;

CREATE TABLE postroom_pack (
    id           INTEGER PRIMARY KEY,    -- of its first item; the others have the places behind it
    count        INTEGER NOT NULL,       -- how many there were at first
    published_at INTEGER NOT NULL,       -- of its first item
    priority     INTEGER NOT NULL,
    schema       INTEGER NOT NULL,
    routing_key  TEXT    NOT NULL,
    items        TEXT    NOT NULL,       -- JSON: [[message, published_at - the first's, its place in payload, bytes], ...]
    payload      BLOB    NOT NULL        -- one after another
);

CREATE TABLE postroom_pack_gone (
    id   INTEGER PRIMARY KEY,            -- of a pack of which items are gone
    gone TEXT    NOT NULL                -- a letter for each: 'x' is gone
);

CREATE VIEW postroom_items AS
SELECT s.kind AS kind, s.name AS stream, i.id & 281474976710655 AS seq, i.message AS message,
       datetime(i.published_at / 1000000000, 'unixepoch') AS published, i.attempts AS attempts,
       datetime(i.due_at / 1000000000, 'unixepoch') AS due, datetime(i.expires_at / 1000000000, 'unixepoch') AS expires,
       i.priority AS priority, i.key AS key, i.routing_key AS routing_key, i.headers AS headers,
       i.schema AS schema, length(i.payload) AS bytes, i.payload AS payload
FROM postroom_stream s JOIN postroom_item i ON i.id BETWEEN s.id << 48 AND (s.id << 48) | 281474976710655
UNION ALL
SELECT s.kind, s.name, (p.id & 281474976710655) + j.key, json_extract(j.value, '$[0]'),
       datetime((p.published_at + json_extract(j.value, '$[1]')) / 1000000000, 'unixepoch'), 0,
       NULL, NULL, p.priority, NULL, p.routing_key, NULL, p.schema, json_extract(j.value, '$[3]'),
       coalesce(substr(p.payload, json_extract(j.value, '$[2]') + 1, json_extract(j.value, '$[3]')), x'')
FROM postroom_stream s JOIN postroom_pack p ON p.id BETWEEN s.id << 48 AND (s.id << 48) | 281474976710655
     JOIN json_each(p.items) j LEFT JOIN postroom_pack_gone g ON g.id = p.id
WHERE coalesce(substr(g.gone, j.key + 1, 1), '-') <> 'x';
";

/// Finds those of them that have not failed yet: what has a timer, was redriven to a later time, or was given back without
/// a failure. Of what is in its file when it is opened, a queue has these in memory, and reads the others when their time
/// comes near.
const FORMAT_4: &str = "
CREATE INDEX IF NOT EXISTS postroom_item_known ON postroom_item (id)
WHERE due_at IS NOT NULL AND extra IS NOT NULL AND attempts = 0;
";

/// Lets a file of an earlier format be read as if it had packs, and none of them. In the memory of that connection: the
/// file stays as it is.
pub(super) fn pretend_packs(connection: &Connection) -> Result<(), StoreError> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE name = 'postroom_pack'";
    if connection.query_row(sql, [], |_| Ok(())).optional()?.is_some() {
        return Ok(());
    }
    connection.execute_batch(
        "CREATE TEMP TABLE postroom_pack (id INTEGER PRIMARY KEY, count, published_at, priority, schema, \
         routing_key, items, payload); CREATE TEMP TABLE postroom_pack_gone (id INTEGER PRIMARY KEY, gone)",
    )?;
    Ok(())
}

/// The format this version writes.
pub(super) const FORMAT: i64 = STEPS.len() as i64;

/// How long set-up waits for a transaction of somebody else.
const SETUP_PATIENCE: Duration = Duration::from_secs(5);

/// Opens the file for the writer: created if missing, in WAL mode, of the present format, its log emptied.
pub(super) fn open_for_writing(path: &Path, options: &Options) -> Result<Connection, StoreError> {
    let mut connection = connect(path, options, options.cache_bytes)?;
    prepare(path, &mut connection).map_err(|error| match error {
        StoreError::Corrupt(_) if !has_header(path) => StoreError::NotADatabase { path: path.to_owned() },
        error => error,
    })?;
    Ok(connection)
}

fn prepare(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    if connection.is_readonly("main")? {
        return Err(StoreError::ReadOnly(path.display().to_string().into()));
    }
    known_format(path, connection)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::other(format!("{} cannot be used in WAL mode, only in mode {mode}", path.display())));
    }
    migrate(path, connection, STEPS)?;
    // What a failed sync may have left in doubt is written anew, elsewhere, and synced.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// A connection as all of ours are.
pub(super) fn connect(path: &Path, options: &Options, cache_bytes: usize) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
        None => Connection::open_with_flags(path, flags),
    };
    let opening = |error| StoreError::opening(path, error);
    let connection = opened.map_err(opening)?;
    connection.busy_timeout(SETUP_PATIENCE).map_err(opening)?;
    let kibibytes = i64::try_from(cache_bytes / 1024).unwrap_or(i64::MAX).max(64);
    connection.pragma_update(None, "cache_size", -kibibytes).map_err(opening)?;
    // In WAL mode the same as FULL. Before that, it keeps the journal of the switch to WAL from coming back after a
    // power cut, and undoing it.
    connection.pragma_update(None, "synchronous", "EXTRA").map_err(opening)?;
    Ok(connection)
}

/// The file's format, 0 if there is nothing of ours yet; refused if it is a later one.
pub(super) fn known_format(path: &Path, connection: &Connection) -> Result<i64, StoreError> {
    let found = format_of(path, connection)?;
    if found > FORMAT { Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT }) } else { Ok(found) }
}

/// 0 if there is nothing of ours yet.
fn format_of(path: &Path, connection: &Connection) -> Result<i64, StoreError> {
    let opening = |error| StoreError::opening(path, error);
    let foreign = |detail: &str| StoreError::Foreign { path: path.to_owned(), detail: detail.into() };
    let ours = "SELECT count(*), coalesce(sum(name = 'postroom_meta'), 0) FROM sqlite_schema WHERE name LIKE 'postroom\\_%' ESCAPE '\\'";
    let (tables, meta) =
        connection.query_row(ours, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).map_err(opening)?;
    if tables == 0 {
        return Ok(0);
    }
    if meta == 0 {
        return Err(foreign("there is no postroom_meta among them"));
    }
    let format = connection.query_row("SELECT value FROM postroom_meta WHERE name = 'format'", [], |row| row.get(0));
    match format.optional() {
        Ok(Some(format)) => Ok(format),
        Ok(None) => Err(foreign("postroom_meta does not say which format this is")),
        Err(error) if error.sqlite_error_code().is_none() => Err(foreign("the format in postroom_meta is no number")),
        Err(error) => Err(opening(error)),
    }
}

/// Takes the file through the steps it lacks, all of them or none.
fn migrate(path: &Path, connection: &mut Connection, steps: &[&str]) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = format_of(path, &transaction)?;
    let missing = usize::try_from(found).ok().and_then(|done| steps.get(done..)).unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    for step in missing {
        transaction.execute_batch(step)?;
    }
    note_format(&transaction, steps.len())?;
    transaction.commit()?;
    Ok(())
}

fn note_format(transaction: &Transaction<'_>, format: usize) -> rusqlite::Result<()> {
    let sql = "INSERT INTO postroom_meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    transaction.execute(sql, ("format", i64::try_from(format).unwrap_or(i64::MAX)))?;
    transaction.execute(sql, ("written_by", concat!("postroom ", env!("CARGO_PKG_VERSION"))))?;
    Ok(())
}

/// Whether the file begins as SQLite files do; a damaged one still does.
fn has_header(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"SQLite format 3\0"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(connection: &Connection) -> i64 {
        format_of(Path::new("x"), connection).unwrap()
    }

    #[test]
    fn an_older_file_takes_the_steps_it_lacks_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x");
        migrate(path, &mut connection, &STEPS[..1]).unwrap();
        connection.execute("INSERT INTO postroom_stream(kind, name) VALUES ('queue', 'old')", []).unwrap();
        assert_eq!(format(&connection), 1);

        let later = [FORMAT_1, "ALTER TABLE postroom_stream ADD COLUMN colour TEXT DEFAULT 'red'", "SELECT 1"];
        migrate(path, &mut connection, &later).unwrap();
        assert_eq!(format(&connection), 3);
        let row = connection.query_row("SELECT name, colour FROM postroom_stream", [], |r| {
            Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?))
        });
        assert_eq!(row.unwrap(), ("old".to_owned(), "red".to_owned()));
        migrate(path, &mut connection, &later).unwrap();
    }

    #[test]
    fn every_earlier_format_becomes_the_present_one_and_shows_its_items() {
        let path = Path::new("x");
        let filled = "INSERT INTO postroom_stream(kind, name) VALUES ('queue', 'old');
             INSERT INTO postroom_item(id, message, published_at, attempts, priority, schema, routing_key, payload)
             VALUES (1 << 48 | 7, 3, 0, 0, 0, 0, 'a', 'b')";
        for earlier in 1..STEPS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate(path, &mut connection, &STEPS[..earlier]).unwrap();
            connection.execute_batch(filled).unwrap();
            // It is for people, so they may have removed it. What makes another does not mind.
            if earlier < 3 {
                connection.execute("DROP VIEW postroom_items", []).unwrap();
            }
            migrate(path, &mut connection, STEPS).unwrap();
            assert_eq!(format(&connection), FORMAT);
            let seen: rusqlite::Result<(String, i64, i64)> =
                connection.query_row("SELECT stream, seq, message FROM postroom_items", [], |row| row.try_into());
            assert_eq!(seen.unwrap(), ("old".to_owned(), 7, 3));
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x");
        migrate(path, &mut connection, STEPS).unwrap();
        let later =
            [FORMAT_1, FORMAT_2, FORMAT_3, FORMAT_4, "CREATE TABLE postroom_new (a)", "CREATE TABLE postroom_new (a)"];
        assert!(migrate(path, &mut connection, &later).is_err());
        assert_eq!(format(&connection), FORMAT);
        assert!(connection.prepare("SELECT * FROM postroom_new").is_err());
    }

    #[test]
    fn a_later_format_is_refused_with_both_numbers() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x");
        migrate(path, &mut connection, STEPS).unwrap();
        connection.execute("UPDATE postroom_meta SET value = 99 WHERE name = 'format'", []).unwrap();
        let refused = known_format(path, &connection).unwrap_err();
        assert_eq!(refused, StoreError::Newer { path: path.to_owned(), found: 99, known: FORMAT });
    }

    #[test]
    fn tables_of_our_name_that_are_not_ours_are_told_apart() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE postroomy (a); CREATE TABLE mine (a)").unwrap();
        assert_eq!(format(&connection), 0);
        connection.execute_batch("CREATE TABLE postroom_stuff (a)").unwrap();
        assert!(matches!(format_of(Path::new("x"), &connection), Err(StoreError::Foreign { .. })));
    }
}
