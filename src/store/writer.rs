//! The one thread that writes.
//!
//! It takes all that has arrived, makes one transaction of it, tells everybody, and looks again; whatever came
//! meanwhile shares the next transaction. That is the group commit: its size follows the load by itself.

use super::commit::{Committer, Failure, Results};
use super::company::Company;
use super::error::StoreError;
use super::inbox::{Done, Entry, Pile, Work};
use super::item::Seq;
use super::lock::FileLock;
use super::options::Durability;
use super::shared::Shared;
use super::ticket::{Answer, Seqs, Wake};
use crate::sync::yield_now;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the writer sits idle before it tidies up.
const IDLE: Duration = Duration::from_millis(200);
/// How long one attempt waits for a connection that has the file locked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many of those a store that is being closed still makes.
const LAST_ATTEMPTS: u32 = 5;
/// When batches that nobody waits for are tried again after the disk was full.
const RETRY: Duration = Duration::from_secs(1);
/// So many get their answers before the first of them is woken: one who waits for many in turn finds them all.
const ANSWERED_TOGETHER: usize = 64;
/// So many bring messages before those who sleep on their queues are woken.
const CALLED_TOGETHER: usize = 256;
/// Room for so many batches is kept from one commit to the next.
const SPARE_ENTRIES: usize = 16 << 10;
/// Pages in the log that are worth moving while there is nothing else to do.
const IDLE_PAGES: u32 = 64;

thread_local! {
    /// Pages in the log, as SQLite said after the last commit of this thread.
    static WAL_PAGES: Cell<u32> = const { Cell::new(0) };
}

/// In place of SQLite's own hook, which would move pages in the middle of a commit that somebody waits for.
fn note_pages(_: &Wal, pages: std::ffi::c_int) -> rusqlite::Result<()> {
    WAL_PAGES.set(u32::try_from(pages).unwrap_or(0));
    Ok(())
}

/// Runs until the store is closed. The file stays locked until all is written and the connection is gone.
/// `ready` hears whether it could begin.
pub(super) fn run(shared: &Arc<Shared>, connection: Connection, lock: FileLock, mut ready: Answer) {
    let ending = Ending { shared: Arc::clone(shared), _lock: lock };
    let connection = connection;
    connection.wal_hook(Some(note_pages));
    let prepared = connection.busy_timeout(PATIENCE).map_err(StoreError::from);
    match prepared.and_then(|()| Committer::new(&connection)) {
        Ok(committer) => {
            ready.give(Ok(Seqs::new()));
            drop(ready);
            Writer::new(shared, &connection, committer).work();
        }
        Err(error) => ready.give(Err(error)),
    }
    if shared.status.broken().is_some() {
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }
    shared.readers.close();
    drop(connection);
    drop(ending);
}

/// However the writer ends, nobody is left waiting.
struct Ending {
    shared: Arc<Shared>,
    _lock: FileLock,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared.status.closed();
        for entry in self.shared.inbox.abandon() {
            answer(entry.done, Err(StoreError::Closed));
        }
        self.shared.calls.make();
        // It may hold a handle of this very store.
        let watcher = self.shared.take_watcher();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    committer: Committer<'a>,
    pile: Pile,
    /// Nobody waits for this, and it did not get in for want of space.
    held_back: Pile,
    results: Results,
    /// Whoever waits for these is yet to be woken.
    given: Vec<Given>,
    company: Company,
    tidy: bool,
    page_bytes: u64,
}

impl<'a> Writer<'a> {
    fn new(shared: &'a Shared, connection: &'a Connection, committer: Committer<'a>) -> Self {
        let page_bytes = connection.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0)).unwrap_or(4096);
        Self {
            shared,
            connection,
            committer,
            pile: Pile::default(),
            held_back: Pile::default(),
            results: Results::default(),
            given: Vec::new(),
            company: Company::default(),
            tidy: true,
            page_bytes: page_bytes.into(),
        }
    }

    fn work(mut self) {
        loop {
            self.wait_for_company();
            let idle_at = self.wake_at();
            match self.shared.inbox.next(&mut self.pile, idle_at) {
                Work::Commit => self.commit_all(),
                Work::Look => self.look(),
                Work::Idle => self.tidy_up(),
                Work::Close => break,
            }
        }
        if !self.held_back.is_empty() {
            self.commit_all();
        }
        self.give_up_held_back();
        if self.shared.status.broken().is_none() {
            self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }

    /// Gives those who have just been answered time to come back.
    fn wait_for_company(&mut self) {
        let Some((expected, patience)) = self.company.take_expected() else { return };
        let (inbox, start) = (&self.shared.inbox, Instant::now());
        while inbox.awaited() < expected && start.elapsed() < patience && !inbox.is_shut() {
            yield_now();
        }
        self.company.waited(inbox.awaited(), expected, start.elapsed());
    }

    fn wake_at(&self) -> Option<Instant> {
        if !self.held_back.is_empty() {
            return Some(Instant::now() + RETRY);
        }
        (!self.tidy).then(|| Instant::now() + IDLE)
    }

    fn commit_all(&mut self) {
        if !self.held_back.is_empty() {
            self.held_back.append(&mut self.pile);
            std::mem::swap(&mut self.held_back, &mut self.pile);
        }
        let (bytes, start) = (self.pile.bytes(), Instant::now());
        let outcome = match self.shared.status.broken() {
            Some(error) => Err(error),
            None => self.commit(),
        };
        self.tell_arrivals();
        match outcome {
            Ok(()) => {
                self.note_company(start.elapsed());
                self.answer_all();
            }
            Err(error) => self.fail_all(&error),
        }
        self.shared.inbox.finished(bytes - self.held_back.bytes());
        self.check_log();
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let durability = self.pile.entries.iter().map(|entry| entry.durability).max().unwrap_or(Durability::Buffered);
        let mut attempts = 0;
        loop {
            self.results.seqs.clear();
            self.results.answers.clear();
            let turn = self.shared.turn.writer();
            let done = self.committer.commit(&self.pile, durability, &mut self.results);
            drop(turn);
            match done {
                Ok(()) => {
                    self.note_success(durability);
                    return Ok(());
                }
                Err(Failure::Locked(error)) => {
                    self.shared.status.note(|stats| stats.times_locked += 1);
                    attempts += 1;
                    if self.shared.inbox.is_shut() && attempts >= LAST_ATTEMPTS {
                        self.shared.status.failed(&error);
                        return Err(error);
                    }
                }
                Err(Failure::RolledBack(error)) => {
                    self.shared.status.failed(&error);
                    return Err(error);
                }
            }
        }
    }

    fn note_success(&mut self, durability: Durability) {
        self.tidy = false;
        let batches = self.pile.len() as u64;
        let bytes = self.pile.bytes();
        let (inserted, deleted) = (self.committer.inserted, self.committer.deleted);
        self.shared.status.note(|stats| {
            stats.commits += 1;
            stats.syncs += u64::from(durability == Durability::Sync);
            stats.batches += batches;
            stats.largest_commit = stats.largest_commit.max(batches);
            stats.bytes += bytes as u64;
            stats.inserted = inserted;
            stats.deleted = deleted;
            stats.wal_bytes = u64::from(WAL_PAGES.get()) * self.page_bytes;
            stats.recover();
        });
    }

    /// Before those are answered who waited for a commit that took so long.
    fn note_company(&mut self, took: Duration) {
        let synced = |entry: &&Entry| entry.done.is_some() && entry.durability == Durability::Sync;
        let answered = self.pile.entries.iter().filter(synced).count();
        if answered > 0 {
            self.company.answered(answered, self.shared.inbox.awaited(), took);
        }
    }

    fn tell_arrivals(&mut self) {
        for (stream, seqs) in self.results.arrivals.drain(..) {
            if let Some(watcher) = self.shared.watcher() {
                let _ = catch_unwind(AssertUnwindSafe(|| watcher(stream, seqs)));
            }
        }
    }

    fn answer_all(&mut self) {
        // The answers first: somebody waits for them, and for the payloads' memory nobody does.
        let Results { seqs, answers, .. } = &mut self.results;
        let calls = &self.shared.calls;
        for (at, (entry, result)) in self.pile.entries.iter_mut().zip(answers.drain(..)).enumerate() {
            // Nobody is kept asleep by somebody else's code, or for long.
            if matches!(entry.done, Some(Done::Call(_))) || at % CALLED_TOGETHER == CALLED_TOGETHER - 1 {
                calls.make();
            }
            self.given.extend(answer(entry.done.take(), result.map(|range| &seqs[range])));
            if self.given.len() >= ANSWERED_TOGETHER {
                self.given.clear();
            }
        }
        self.given.clear();
        calls.make();
        self.pile.entries.clear();
        self.pile.entries.shrink_to(SPARE_ENTRIES);
        self.pile.deletions.clear();
        self.pile.deletions.shrink_to(SPARE_ENTRIES);
    }

    /// Whoever waits hears of it. What nobody waits for (settled messages) has to get in some day.
    fn fail_all(&mut self, error: &StoreError) {
        let mut deletions = std::mem::take(&mut self.pile.deletions);
        if error.is_passing() {
            self.held_back.deletions.append(&mut deletions);
        }
        for entry in self.pile.entries.drain(..) {
            if entry.done.is_none() && error.is_passing() {
                self.held_back.entries.push(entry);
            } else {
                self.given.extend(answer(entry.done, Err(error.clone())));
            }
        }
        self.given.clear();
        self.shared.calls.make();
        if matches!(error, StoreError::DiskFull(_)) {
            // Perhaps the log can be used from its start again, which takes no space.
            self.checkpoint("PRAGMA wal_checkpoint(RESTART)");
        }
    }

    fn give_up_held_back(&mut self) {
        let left = std::mem::take(&mut self.held_back);
        self.shared.inbox.finished(left.bytes());
    }

    fn look(&mut self) {
        if self.shared.status.broken().is_some() {
            return;
        }
        if let Err(error) = self.committer.look(&mut self.results.arrivals) {
            self.shared.status.troubled(&error);
        }
        self.tell_arrivals();
    }

    fn tidy_up(&mut self) {
        if !self.held_back.is_empty() {
            return self.commit_all();
        }
        self.tidy = true;
        if WAL_PAGES.get() >= IDLE_PAGES && self.shared.status.broken().is_none() {
            self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)");
        }
    }

    fn check_log(&mut self) {
        let pages = u64::from(WAL_PAGES.get());
        if pages * self.page_bytes >= self.shared.options.wal_bytes && self.shared.status.broken().is_none() {
            self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)");
        }
    }

    /// Moves the log's content to the database. Readers and other writers in the way are no failure: it is tried
    /// again after the next commits.
    fn checkpoint(&mut self, pragma: &str) {
        let _turn = self.shared.turn.writer();
        match self.connection.query_row(pragma, [], |row| row.get::<_, i64>(0)) {
            Ok(_) => {
                WAL_PAGES.set(0);
                self.shared.status.note(|stats| stats.checkpoints += 1);
            }
            Err(error) => match StoreError::from(error) {
                StoreError::Busy(_) => {}
                error => self.shared.status.troubled(&error),
            },
        }
    }
}

/// Who has an answer, and sleeps until this is dropped.
enum Given {
    Ticket { _answer: Answer },
    Submission { _wake: Wake },
}

/// Tells who waits; whoever sleeps is woken when what is returned here is dropped.
fn answer(done: Option<Done>, result: Result<&[Seq], StoreError>) -> Option<Given> {
    match done? {
        // Somebody else's code: it may panic, and so may the destructor of what it holds.
        Done::Call(call) => {
            let _ = catch_unwind(AssertUnwindSafe(|| call(result)));
            None
        }
        Done::Submission(submission) => {
            let wake = catch_unwind(AssertUnwindSafe(|| submission.give(result))).ok()??;
            Some(Given::Submission { _wake: wake })
        }
        Done::Ticket(mut answer) => {
            answer.give(result.map(Seqs::from_slice));
            Some(Given::Ticket { _answer: answer })
        }
    }
}
