//! `--durable PATH`: the queues of an example in a file, so that it can be killed and started again.
//!
//! What the modules of a real program keep in their databases, an example notes in a [`Ledger`].

use postroom::{Broker, QueueBuilder, QueueName};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file asked for, if any.
pub fn path_argument(source: &str) -> Option<PathBuf> {
    path_among(source, std::env::args_os().skip(1))
}

/// The same for an example that has taken arguments of its own away.
pub fn path_among(source: &str, mut args: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let first = args.next()?;
    if first != "--durable" {
        super::common::answer(source, &first.to_string_lossy());
    }
    match (args.next(), args.next()) {
        (Some(path), None) if cfg!(feature = "sqlite") => Some(path.into()),
        (Some(_), None) => refuse("--durable needs the feature: cargo run --features sqlite ..."),
        _ => refuse("--durable needs the path of one file; see --help"),
    }
}

pub fn refuse(problem: &str) -> ! {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    eprintln!("{}: {problem}", program.file_stem().unwrap_or_default().to_string_lossy());
    std::process::exit(2);
}

/// A broker on that file, or in memory.
pub fn broker(file: Option<&Path>) -> Broker {
    match file {
        None => Broker::new(),
        #[cfg(feature = "sqlite")]
        Some(file) => Broker::open(file).unwrap_or_else(|error| refuse(&error.to_string())),
        #[cfg(not(feature = "sqlite"))]
        Some(_) => unreachable!("refused before"),
    }
}

/// A queue that is durable if the broker has a file.
pub fn queue<T>(broker: &Broker, name: QueueName<T>) -> QueueBuilder<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let queue = broker.queue(name);
    #[cfg(feature = "sqlite")]
    let queue = if broker.store().is_some() { queue.durable(postroom::store::Durability::Buffered) } else { queue };
    queue
}

/// Says what an earlier run has left in queues declared just now.
pub fn say_what_was_there(broker: &Broker) -> u64 {
    let stats = broker.stats();
    let found: Vec<_> = stats.queues.iter().filter(|queue| queue.recovered > 0).collect();
    if !found.is_empty() {
        let words: Vec<_> = found.iter().map(|queue| format!("{} in {}", queue.recovered, queue.name)).collect();
        println!("   found from before: {}", words.join(", "));
    }
    found.iter().map(|queue| queue.recovered).sum()
}

/// Numbers somebody has dealt with. With a file each is a line there when `insert` returns, and survives a kill.
#[derive(Default)]
pub struct Ledger {
    pub numbers: BTreeSet<u64>,
    path: Option<PathBuf>,
}

impl Ledger {
    /// Beside the queues' file, as `PATH.name`; in memory if there is none.
    pub fn open(file: Option<&Path>, name: &str) -> io::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let mut path = OsString::from(file);
        path.push(".");
        path.push(name);
        let path = PathBuf::from(path);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            read => read.unwrap_or_default(),
        };
        Ok(Self { numbers: text.lines().filter_map(|line| line.parse().ok()).collect(), path: Some(path) })
    }

    /// Notes a number; whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        let new = self.numbers.insert(number);
        if let Some(path) = self.path.as_ref().filter(|_| new) {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.and_then(|mut file| file.write_all(format!("{number}\n").as_bytes())).expect("it can be written");
        }
        new
    }

    /// Its work is done; the next start is a new beginning.
    pub fn forget(&self) -> io::Result<()> {
        match self.path.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
