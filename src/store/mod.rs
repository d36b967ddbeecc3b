//! What outlives the process: streams of items in one SQLite file.
//!
//! This layer knows bytes and names, and nothing of queues. A **stream** is a named, numbered sequence: the
//! messages of a queue, its dead letters, half messages, one partition of a log. An **item** is one message in it,
//! with a place ([`Seq`]) that is never given twice. A **mark** is a small value under a name of a stream's: the
//! offset of a group, an id seen, a schedule.
//!
//! ```
//! use postroom::store::{Batch, Change, Durability, Item, Limit, Options, Store, StoreError};
//!
//! # let path = std::env::temp_dir().join(format!("postroom-doc-mod-{}.db", std::process::id()));
//! let store = Store::open(&path, Options::new())?;
//! let orders = store.declare("queue", "orders", "capacity 100")?;
//!
//! // Insert, and wait until it is synced.
//! let item = Item { payload: b"order 1".to_vec(), ..Item::default() };
//! let seqs = store.commit(Batch::new().insert(orders, item), Durability::Sync)?;
//!
//! // It failed once, and rests until its next attempt; nobody waits for that to be written.
//! store.submit_lazily(Batch::new().update(orders, seqs[0], Change::new().attempts(1).due_at(Some(7))))?;
//! store.flush(Durability::Buffered)?;
//!
//! let reader = store.reader()?;
//! assert!(reader.read_ready(orders, 0, Limit::items(10))?.is_empty());
//! assert_eq!(reader.read_due(orders, 7, Limit::items(10))?[0].item.payload, b"order 1");
//! # drop(reader);
//!
//! // Done with.
//! store.submit_lazily(Batch::new().delete(orders, seqs[0]))?;
//! store.close()?;
//! # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
//! # Ok::<(), StoreError>(())
//! ```
//!
//! # Writing
//!
//! Changes come in a [`Batch`], which takes effect as a whole, and there are four ways to hand one in:
//!
//! | call | returns | for |
//! |---|---|---|
//! | [`Store::commit`] | when it is committed | set-up, one publisher that waits |
//! | [`Store::submit_for_ticket`] | at once, with a [`Ticket`] to wait with | a publisher with many under way |
//! | [`Store::submit`] | at once; a function is called later | the queue that shows a message once it is safe |
//! | [`Store::submit_lazily`] | at once; nobody is told | acknowledgements |
//!
//! **One thread writes.** It takes all that has arrived and makes one transaction of it; what arrives meanwhile
//! shares the next. If one batch of a transaction asked for [`Durability::Sync`], all of it is synced, together
//! with all that was written before. Lazy batches ride along; alone they are committed after
//! [`Options::lazy_delay`], unsynced.
//!
//! **Order.** Batches take effect in the order in which they were handed in, and the functions of [`Store::submit`]
//! are called in that order, on the writer's thread, after the commit: whoever appends to memory there has memory
//! in the order of the file. Such a function should be quick, since the next commit waits for it, and must not
//! wait for a commit. A panic in it is contained.
//!
//! **Nothing blocks under your locks.** Handing in never waits, not even when the disk is slow. Instead, whoever
//! produces calls [`Store::wait_for_room`] first, while holding no lock; it waits while more than
//! [`Options::queue_bytes`] are on their way. Acknowledgements need no room.
//!
//! # Reading
//!
//! [`Store::reader`] reads what is committed beside the writer, neither waiting for the other. Read in portions
//! (a [`Limit`] of items and bytes) from the place behind the last one; memory then depends on the portion, not on
//! the backlog. How many items a stream holds is kept with it ([`Reader::streams`]), so that opening a file with
//! millions of them reads none.
//!
//! [`Inspector`] looks into a file that another process has open, or nobody, and changes nothing.
//!
//! # What can go wrong
//!
//! | what | batches of that commit | the store |
//! |---|---|---|
//! | no space left | [`StoreError::DiskFull`]; lazy ones are kept and tried again | [`State::Failing`]; works on once there is space |
//! | a write or sync fails | [`StoreError::Io`] | [`State::Broken`]: every batch from then on is answered with that error, nothing is tried again; close it and open the file anew |
//! | the file is damaged | [`StoreError::Corrupt`] | the same |
//! | another connection keeps it locked | wait for it; [`StoreError::Busy`] only while closing | counted in the stats |
//! | a stream is unknown, an item too large | an error for that batch alone | goes on |
//! | the process ends | those answered are safe | the next one finds the file unlocked |
//! | the power fails | those answered under [`Durability::Sync`] are safe | the file opens; of the rest, a first part is there |
//!
//! A batch that failed with an I/O error is in doubt: it may turn up when the file is opened again, as a
//! publisher's crash between write and answer would leave it. What was answered with `Ok` is there. On opening,
//! all that the write-ahead log holds is first moved to the database and synced, so that what a failed sync left
//! in doubt is behind us.
//!
//! # The user's own tables
//!
//! The file may hold tables of the user's beside ours, which all begin with `postroom_`; for that reason the format
//! is noted in `postroom_meta` and neither `user_version` nor `application_id` is touched. [`Store::transaction`]
//! changes the user's rows and inserts items in one transaction; [`Store::watch`] hears of items that came that way.
//! SQLite lets one connection write at a time: transactions run through [`Store::transaction`] take turns with the
//! writer; those run past it may have to try for a while when the store is busy, and the store waits for them as
//! long as they take.
//!
//! Delete and change items through the store only. Reading is free: `postroom_items` is a view for people.
//!
//! ```sql
//! SELECT stream, seq, published, attempts, key, CAST(payload AS TEXT) FROM postroom_items WHERE kind = 'queue';
//! ```
//!
//! | table | a row is | columns |
//! |---|---|---|
//! | `postroom_stream` | a stream | `id`, `kind`, `name`, `settings`, `next` place, `count` of items |
//! | `postroom_item` | an item | `id` = stream << 48 \| place, `message`, `published_at`, `attempts`, `due_at`, `expires_at`, `priority`, `schema`, `key`, `routing_key`, `headers` (JSON pairs), `extra`, `payload` |
//! | `postroom_pack` | several items | `id` of the first, `count`, `message`, `published_at`, `priority`, `schema`, `routing_key`, `items` (JSON: what differs), `payload` |
//! | `postroom_pack_gone` | what is gone of those | `id`, `gone`: a letter for each, `x` if it is gone |
//! | `postroom_mark` | a note | `stream`, `name`, `value` |
//! | `postroom_meta` | a fact about the file | `name` (`format`, `written_by`), `value` |
//!
//! **Packs.** Items that come together share a row: neighbours of a stream, 4 to 256 of them with up to 32 KiB, that
//! one transaction inserts and that have nothing to tell but a payload of up to 4 KiB (no time to rest until, no
//! expiry, key, headers, attempts or [`Item::extra`]; priority, schema and routing key alike). That costs a fraction of
//! a row for each. A pack stays until its last item is deleted; an item that is changed or moved becomes a row of its
//! own. Nothing but the tables shows which of them share a row.
//!
//! # The file
//!
//! WAL mode, so beside `orders.db` there are `orders.db-wal` and `orders.db-shm` while it is open, and always
//! `orders.db.lock`, through which one store at a time has the file (see [`StoreError::InUse`]); the operating
//! system releases it when the process ends, however that happens. Do not delete it while a store is open. WAL
//! needs a local file system.
//!
//! The log's content moves to the database when there is nothing else to do, or when the log has grown to
//! [`Options::wal_bytes`]. Space of deleted items is used again but not given back to the file system: the file
//! stays as large as its largest backlog, because keeping track of what could be given back (`auto_vacuum`) would
//! cost every commit. `VACUUM`, on a file that no store has open, shrinks it.

mod error;
mod item;
mod options;
mod live;
mod batch;
mod brief;
mod ticket;
mod inbox;
mod turn;
mod company;
mod calls;
mod status;
mod lock;
mod schema;
mod statements;
mod pack;
mod packs;
mod merge;
mod reader;
mod shared;
mod commit;
mod writer;
mod same_file;
mod inspector;

pub use batch::Batch;
pub(crate) use brief::Brief;
pub use error::{MAX_ITEM_BYTES, StoreError};
pub use inspector::Inspector;
pub use item::{Change, Item, MAX_STREAMS, Row, Seq, StreamId, StreamInfo};
pub(crate) use live::LiveMark;
pub use lock::Holder;
pub use options::{Durability, Options};
pub(crate) use reader::{FailedKey, Overdue, Priority};
pub use reader::{Limit, Reader};
/// The SQLite bindings, in the version this library uses.
pub use rusqlite;
pub use same_file::insert_in;
pub use status::{State, StoreStats};
pub use ticket::{Seqs, Ticket};

pub(crate) use calls::Called;
pub(crate) use inbox::Submission;
pub(crate) use ticket::{Sleeper, Wake};

use crate::sync::{JoinHandle, Mutex, ThreadBuilder, current_thread};
use inbox::{Done, Entry};
use lock::FileLock;
use shared::Shared;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::Instant;

/// An open file. Clones are the same store; the last one to be dropped closes it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Arc<WriterThread>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a file, or creates it; a database that is there already gets our tables added. Its directory has to
    /// exist.
    ///
    /// # Errors
    ///
    /// [`InUse`](StoreError::InUse) if a store has it open, [`Newer`](StoreError::Newer),
    /// [`NotADatabase`](StoreError::NotADatabase) and [`Foreign`](StoreError::Foreign) if it is not for us,
    /// [`ReadOnly`](StoreError::ReadOnly), [`Corrupt`](StoreError::Corrupt) and the like if it cannot be used.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let path = absolute(path.as_ref())?;
        let lock = FileLock::acquire(&path)?;
        let connection = schema::open_for_writing(&path, &options)?;
        let shared = Arc::new(Shared::new(path, options));
        let (begun, ready) = Ticket::new();
        let its = Arc::clone(&shared);
        let thread = ThreadBuilder::new()
            .name("postroom-store".to_owned())
            .spawn(move || writer::run(&its, connection, lock, ready))
            .map_err(|e| StoreError::other(format!("cannot start a thread: {e}")))?;
        let id = thread.thread().id();
        let writer = Arc::new(WriterThread { shared: Arc::clone(&shared), id, thread: Mutex::new(Some(thread)) });
        begun.wait()?;
        Ok(Self { shared, writer })
    }

    /// The stream of that kind and name, made if there is none. Its settings are replaced by these.
    ///
    /// Synced. Waits for its commit, so not to be called from a function given to [`submit`](Self::submit).
    ///
    /// # Errors
    ///
    /// If it could not be committed.
    pub fn declare(&self, kind: &str, name: &str, settings: &str) -> Result<StreamId, StoreError> {
        let seqs = self.commit(Batch::declare(kind, name, settings), Durability::Sync)?;
        let id = seqs.first().and_then(|&id| i64::try_from(id).ok()).and_then(StreamId::from_row);
        id.ok_or_else(|| StoreError::other("a stream without a number"))
    }

    /// Commits a batch and waits for it; answers the places of what it inserted and moved.
    ///
    /// # Errors
    ///
    /// Why it could not be committed.
    pub fn commit(&self, batch: Batch, durability: Durability) -> Result<Seqs, StoreError> {
        self.submit_for_ticket(batch, durability)?.wait()
    }

    /// Hands in a batch; the ticket waits for its commit.
    ///
    /// # Errors
    ///
    /// If the store is closed.
    pub fn submit_for_ticket(&self, batch: Batch, durability: Durability) -> Result<Ticket, StoreError> {
        let (ticket, answer) = Ticket::new();
        let entry = Entry::new(batch, durability, Some(Done::Ticket(answer)));
        self.shared.inbox.push(entry).map_err(|_| StoreError::Closed)?;
        Ok(ticket)
    }

    /// Hands in a batch. `done` is called after its commit, on the writer's thread, in the order in which batches
    /// were handed in, with the places of what it inserted and moved, or with the reason why it could not be.
    /// It must not wait for another commit.
    ///
    /// # Errors
    ///
    /// If the store is closed; then `done` is not called.
    pub fn submit(
        &self,
        batch: Batch,
        durability: Durability,
        done: impl FnOnce(Result<&[Seq], StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        let entry = Entry::new(batch, durability, Some(Done::Call(Box::new(done))));
        self.shared.inbox.push(entry).map_err(|_| StoreError::Closed)
    }

    /// The same in one piece of memory. It hears of a store that is closed too, here and now.
    pub(crate) fn submit_shared(&self, submission: Arc<dyn Submission>, durability: Durability) {
        if let Err(refused) = self.shared.inbox.push(Entry::shared(submission, durability)) {
            drop(refused);
            self.call_now();
        }
    }

    /// Has them called in a moment: at the end of the commit that is being answered, or before.
    pub(crate) fn call_later(&self, whom: Weak<dyn Called>) {
        self.shared.calls.add(whom);
    }

    /// The same now, for whoever answers without a commit.
    pub(crate) fn call_now(&self) {
        self.shared.calls.make();
    }

    /// Hands in a batch that nobody waits for. It shares a commit with others, or gets its own after
    /// [`Options::lazy_delay`]. If that fails for want of space, it is tried again with the next, and every second.
    ///
    /// # Errors
    ///
    /// If the store is closed.
    pub fn submit_lazily(&self, batch: Batch) -> Result<(), StoreError> {
        let entry = Entry::new(batch, Durability::Buffered, None);
        self.shared.inbox.push(entry).map_err(|_| StoreError::Closed)
    }

    /// As [`submit_lazily`](Self::submit_lazily) with the deletion of one item, for less.
    pub(crate) fn delete_lazily(&self, stream: StreamId, seq: Seq) -> Result<(), StoreError> {
        if self.shared.inbox.delete(stream, seq) { Ok(()) } else { Err(StoreError::Closed) }
    }

    /// Has a number noted under a name of the stream's, as it is when the writer takes it; see [`LiveMark`]. As
    /// [`submit_lazily`](Self::submit_lazily).
    pub(crate) fn submit_live(&self, stream: StreamId, name: &str, number: &Arc<LiveMark>) -> Result<(), StoreError> {
        let batch = Batch::new().mark_live(stream, name, Arc::clone(number));
        let entry = Entry::live(batch, Arc::clone(number));
        self.shared.inbox.push(entry).map_err(|_| StoreError::Closed)
    }

    /// Waits until all that was handed in before is committed; with [`Durability::Sync`], synced too.
    ///
    /// # Errors
    ///
    /// Why it could not be.
    pub fn flush(&self, durability: Durability) -> Result<(), StoreError> {
        self.commit(Batch::new(), durability).map(|_| ())
    }

    /// Whether fewer than [`Options::queue_bytes`] are on their way.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.inbox.has_room()
    }

    /// Waits until there is room. Not a reservation: several who wait may all go on, each with a batch of theirs.
    /// Comes back at once from a store that is closed.
    pub fn wait_for_room(&self) {
        self.shared.inbox.wait_for_room(None);
    }

    /// The same until `end` at the latest; `false` if there was no room by then.
    #[must_use]
    pub fn wait_for_room_until(&self, end: Instant) -> bool {
        self.shared.inbox.wait_for_room(Some(end))
    }

    /// Reads beside the writer.
    ///
    /// # Errors
    ///
    /// If the store is closed, or the file cannot be opened once more.
    pub fn reader(&self) -> Result<Reader<'_>, StoreError> {
        self.shared.readers.take()
    }

    /// Has `watcher` called, on the writer's thread, with the places of items that another connection has
    /// inserted, when the store comes to see them: at the next commit or [`notice`](Self::notice), before the
    /// functions of that commit are called. One watcher at a time; it should be quick, and must not wait for a
    /// commit. Some of those items may be gone already.
    pub fn watch(&self, watcher: impl Fn(StreamId, Range<Seq>) + Send + Sync + 'static) {
        self.shared.set_watcher(Arc::new(watcher));
    }

    /// What it has done, and how it is.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let mut stats = self.shared.status.read();
        stats.queued_bytes = self.shared.inbox.bytes();
        stats
    }

    /// Whether it takes work.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.status.read().state
    }

    /// The file, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Has SQLite look at every page of the file, which takes as long as reading all of it.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](StoreError::Corrupt) with what it found.
    pub fn check(&self) -> Result<(), StoreError> {
        let reader = self.reader()?;
        let found: String = reader.sql().query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt(found.into())) }
    }

    /// Commits all that was handed in, moves the log's content to the database, and lets go of the file. Further
    /// batches are refused. Dropping the last clone does the same.
    ///
    /// # Errors
    ///
    /// What was wrong at the end: then batches that nobody waited for may not be in the file.
    pub fn close(&self) -> Result<(), StoreError> {
        self.writer.end();
        self.shared.status.trouble_at_end().map_or(Ok(()), Err)
    }
}

struct WriterThread {
    shared: Arc<Shared>,
    id: ThreadId,
    /// Locked while somebody waits for its end.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WriterThread {
    /// Whoever comes second waits for the first. The writer's own thread cannot wait; it ends after this.
    fn end(&self) {
        self.shared.inbox.shut();
        if current_thread().id() == self.id {
            return;
        }
        let mut thread = self.thread.lock();
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// One name for one file, whatever the directory the process is in later.
fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let absolute = std::path::absolute(path).map_err(|e| StoreError::Io(e.to_string().into()))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(e) => Err(StoreError::Io(format!("{}: {e}", parent.display()).into())),
    }
}
