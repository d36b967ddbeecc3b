//! A disk that fails on purpose, and one that remembers: a SQLite VFS over the usual one.
//!
//! A [`Disk`] registers a VFS under a name of its own. Every write, sync, truncation and read of the files opened
//! through it is counted and may be made to fail, and all changes are recorded with the syncs between them, so that
//! [`Disk::after_power_cut`] can say what a disk might hold if the power had failed at any moment.

mod log;
mod vfs;

pub use log::{Chance, Event, FileId, Image};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a call to the disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// Bytes from a file.
    Read,
    /// Bytes into a file.
    Write,
    /// A file made shorter.
    Truncate,
    /// All that was written is to be on the disk when this returns.
    Sync,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Input or output error.
    Io,
    /// No space left on the device.
    Full,
    /// The file cannot be written.
    ReadOnly,
}

/// When calls fail.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Calls of which kinds count; all if empty.
    pub calls: &'static [Call],
    /// How many of them succeed first.
    pub after: u64,
    /// How many fail then; all later ones if there is no number.
    pub times: Option<u64>,
    /// In which way.
    pub fault: Fault,
}

/// A disk that fails by plan and records what is done to it. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    name: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    /// Calls that the plan speaks of, since it was made.
    seen: u64,
    failed: u64,
    counts: HashMap<Call, u64>,
    syncs_of: HashMap<FileId, u64>,
    recording: bool,
    events: Vec<Event>,
}

impl Disk {
    /// A disk that works, under a name that no other has.
    #[must_use]
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let name = vfs::register(Arc::clone(&state));
        Self { name, state }
    }

    /// The name of its VFS.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on calls fail by this plan.
    pub fn fail(&self, plan: Plan) {
        let mut state = self.lock();
        state.plan = Some(plan);
        state.seen = 0;
        state.failed = 0;
    }

    /// From now on calls succeed.
    pub fn heal(&self) {
        self.lock().plan = None;
    }

    /// Calls that have failed under the present plan.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Calls of that kind so far.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.lock().counts.get(&call).copied().unwrap_or(0)
    }

    /// Successful syncs of one file so far.
    #[must_use]
    pub fn syncs_of(&self, file: FileId) -> u64 {
        self.lock().syncs_of.get(&file).copied().unwrap_or(0)
    }

    /// Begins to record changes.
    pub fn record(&self) {
        self.lock().recording = true;
    }

    /// Notes something of the test's own among the changes.
    pub fn note(&self, note: u64) {
        let mut state = self.lock();
        if state.recording {
            state.events.push(Event::Note(note));
        }
    }

    /// What was recorded.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Counts a call, and says how it is to fail.
    fn called(&mut self, call: Call) -> Option<Fault> {
        *self.counts.entry(call).or_default() += 1;
        let plan = self.plan?;
        if !plan.calls.is_empty() && !plan.calls.contains(&call) {
            return None;
        }
        self.seen += 1;
        let fails = self.seen > plan.after && plan.times.is_none_or(|times| self.seen <= plan.after + times);
        self.failed += u64::from(fails);
        fails.then_some(plan.fault)
    }

    fn record(&mut self, event: impl FnOnce() -> Event) {
        if self.recording {
            self.events.push(event());
        }
    }
}
