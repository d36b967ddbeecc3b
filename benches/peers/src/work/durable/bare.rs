//! A file to which one thread appends, and `fdatasync`: what the machine can do.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::{Bytes, Engine, SIZE, Writes};
use crate::work::Contestant;

pub struct Bare {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
}

const INSERT: u8 = 1;
const DELETE: u8 = 2;

impl Engine for Bare {
    const SELF: Contestant =
        Contestant { name: "append + fdatasync", package: None, note: "a growing file; no checksums, never shorter" };

    fn open(folder: &Path) -> Self {
        let path = folder.join("bare");
        let file = OpenOptions::new().append(true).create(true).open(&path).expect("a file");
        Bare { file, path, buffer: Vec::new() }
    }

    fn commit(&mut self, writes: &Writes, sync: bool) {
        self.buffer.clear();
        for (number, bytes) in &writes.inserts {
            self.buffer.push(INSERT);
            self.buffer.extend_from_slice(&number.to_le_bytes());
            self.buffer.extend_from_slice(bytes);
        }
        for number in &writes.deletes {
            self.buffer.push(DELETE);
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.file.write_all(&self.buffer).expect("written");
        if sync {
            self.file.sync_data().expect("synced");
        }
    }

    /// All of it has to be read: what was deleted is said later.
    fn first(&self) -> Option<Bytes> {
        let content = fs::read(&self.path).expect("it can be read");
        let (mut rest, mut there) = (&content[..], BTreeMap::new());
        while let Some((&kind, after)) = rest.split_first() {
            let (number, after) = after.split_first_chunk()?;
            let number = u64::from_le_bytes(*number);
            rest = if kind == INSERT {
                let (bytes, after) = after.split_first_chunk::<SIZE>()?;
                there.insert(number, *bytes);
                after
            } else {
                there.remove(&number);
                after
            };
        }
        there.pop_first().map(|(_, bytes)| bytes)
    }
}
