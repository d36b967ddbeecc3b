//! What was done to a disk, and what may be left of it.

use std::collections::HashMap;

/// Which of a database's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// The database.
    Main,
    /// Its write-ahead log.
    Wal,
    /// Its rollback journal, of which a new file has one until it is in WAL mode.
    Journal,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes were written, perhaps only to the cache of the operating system.
    Write(FileId, u64, Vec<u8>),
    /// The file was cut to this length.
    Truncate(FileId, u64),
    /// All of that file is on the disk.
    Sync(FileId),
    /// The file is gone.
    Delete(FileId),
    /// A note of the test's own.
    Note(u64),
}

/// The files as the disk has them.
#[derive(Debug, Clone, Default)]
pub struct Image(pub HashMap<FileId, Vec<u8>>);

/// Decides what becomes of a write that no sync has covered: a number below the given one.
pub type Chance<'a> = &'a mut dyn FnMut(u64) -> u64;

/// The unit in which disks write all or nothing.
const SECTOR: usize = 512;

impl Image {
    /// What the disk may hold if the power fails after these events: everything up to each file's last sync, and of
    /// the rest what chance says, each change wholly, torn at a sector, or not at all, in any combination.
    #[must_use]
    pub fn after_power_cut(events: &[Event], chance: Chance<'_>) -> Self {
        let mut image = Self::default();
        let mut last_sync = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            if let Event::Sync(file) = event {
                last_sync.insert(*file, at);
            }
        }
        for (at, event) in events.iter().enumerate() {
            let Some(file) = event.file() else { continue };
            if last_sync.get(&file).is_some_and(|&sync| at < sync) {
                image.apply(event);
            } else {
                image.apply_perhaps(event, chance);
            }
        }
        image
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Write(file, offset, bytes) => self.write(*file, *offset, bytes),
            Event::Truncate(file, size) => {
                let bytes = self.0.entry(*file).or_default();
                bytes.truncate(usize::try_from(*size).expect("fits"));
            }
            Event::Delete(file) => {
                self.0.remove(file);
            }
            Event::Sync(_) | Event::Note(_) => {}
        }
    }

    fn apply_perhaps(&mut self, event: &Event, chance: Chance<'_>) {
        let (Event::Write(file, offset, bytes), 0) = (event, chance(3)) else {
            if chance(2) == 0 {
                self.apply(event);
            }
            return;
        };
        // Torn: some of its sectors, in no order.
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            if chance(2) == 0 {
                self.write(*file, offset + (n * SECTOR) as u64, sector);
            }
        }
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let content = self.0.entry(file).or_default();
        let offset = usize::try_from(offset).expect("fits");
        let end = offset + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(bytes);
    }
}

impl Event {
    /// The file it is about.
    #[must_use]
    pub fn file(&self) -> Option<FileId> {
        match self {
            Self::Write(file, ..) | Self::Truncate(file, _) | Self::Sync(file) | Self::Delete(file) => Some(*file),
            Self::Note(_) => None,
        }
    }
}
