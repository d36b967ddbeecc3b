//! Messages that are in a file before the publish returns: published, delivered, acknowledged, 128 bytes each.
//!
//! The rivals store and sync, and deliver nothing. So each has the same few lines around it: one thread that commits
//! whatever has arrived, and a channel to the consumer. See `group`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::Contestant;

pub mod bare;
pub mod fjall;
pub mod group;
pub mod packed;
pub mod postroom;
pub mod redb;
pub mod reopen;
pub mod sqlite;
pub mod yaque;

pub const SIZE: usize = 128;
pub type Bytes = [u8; SIZE];

/// How one producer publishes.
#[derive(Clone, Copy)]
pub enum Way {
    /// It waits for each message.
    Waiting,
    /// So many may be under way before it waits for the oldest.
    InFlight(usize),
    /// So many at once, and it waits for them.
    Batches(usize),
}

/// What is asked of a run.
#[derive(Clone, Copy)]
pub struct Task {
    pub way: Way,
    pub producers: u64,
    /// Synced, or only written, before the publish returns.
    pub sync: bool,
}

/// What is to be written together.
#[derive(Default)]
pub struct Writes {
    /// In the order of their numbers.
    pub inserts: Vec<(u64, Bytes)>,
    pub deletes: Vec<u64>,
}

/// Something that keeps numbered messages in a file.
pub trait Engine: Send + 'static {
    const SELF: Contestant;

    /// Makes its file in a folder, or opens what is there.
    fn open(folder: &Path) -> Self;

    /// Returns once everything is written; synced, too, if asked for.
    fn commit(&mut self, writes: &Writes, sync: bool);

    /// The first message there.
    fn first(&self) -> Option<Bytes>;
}

/// A folder of its own on a disk, removed in the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn fresh() -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("peers-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder for temporary files");
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether temporary files are on a disk: in memory, a sync costs nothing.
pub fn on_disk() -> Result<(), String> {
    let folder = env::temp_dir().canonicalize().map_err(|error| error.to_string())?;
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?, words.next()?))
    });
    let mount = mounts.filter(|(point, _)| folder.starts_with(point)).max_by_key(|(point, _)| point.len());
    match mount {
        Some((_, "tmpfs" | "ramfs")) => Err("temporary files are in memory; set TMPDIR to a folder on a disk".into()),
        _ => Ok(()),
    }
}
