//! For tests that kill processes with signal 9: the test binary is started again, with its test
//! `works_until_it_is_killed` alone, and says a line for everything that it has done.

use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const FILE: &str = "POSTROOM_FILE_TO_KILL";
const MODE: &str = "POSTROOM_MODE";
const FIRST: &str = "POSTROOM_FIRST_NUMBER";
const BEGINS: &str = "begins";
const ROUNDS: u64 = 200;
/// A process that says nothing for so long hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Numbers of one process.
pub(crate) const EACH: u64 = 1_000_000;

/// What a process does until it is killed.
pub(crate) struct Task {
    pub(crate) file: PathBuf,
    pub(crate) mode: String,
    /// The first of the numbers that are its own.
    pub(crate) first: u64,
}

impl Task {
    /// That of this process; none if nobody is going to kill it.
    pub(crate) fn given() -> Option<Self> {
        let file = std::env::var_os(FILE)?.into();
        let (mode, first) = (std::env::var(MODE).unwrap(), std::env::var(FIRST).unwrap());
        Some(Self { file, mode, first: first.parse().unwrap() })
    }

    /// Gives it to a new process; all that this one says can be read.
    fn start(&self) -> (Child, BufReader<PipeReader>) {
        let (out, to) = std::io::pipe().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "works_until_it_is_killed", "--nocapture"]);
        command.env(FILE, &self.file).env(MODE, &self.mode).env(FIRST, self.first.to_string());
        (command.stdout(to.try_clone().unwrap()).stderr(to).spawn().unwrap(), BufReader::new(out))
    }

    /// Gives it to a new process, waits until this one begins, has said so many `words`, and `wait` is over, and kills
    /// it: what it has said, as `read` understands it.
    pub(crate) fn killed<S: Send + 'static>(
        &self,
        read: fn(&str) -> Option<S>,
        words: usize,
        wait: impl FnOnce(&Child),
    ) -> Vec<S> {
        let (mut child, out) = self.start();
        let (hear, heard) = mpsc::channel();
        let listener = thread::spawn(move || {
            let (mut said, mut rest) = (Vec::new(), String::new());
            for line in out.lines().map(Result::unwrap) {
                match read(&line) {
                    Some(word) => said.push(word),
                    None if line == BEGINS => (),
                    None => {
                        rest += &(line + "\n");
                        continue;
                    }
                }
                // Nobody listens any more when enough was said.
                _ = hear.send(());
            }
            (said, rest)
        });
        let begun = (0..1 + words).all(|_| heard.recv_timeout(LIMIT).is_ok());
        wait(&child);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (said, rest) = listener.join().unwrap();
        assert!(!rest.contains("panicked"), "{rest}");
        assert!(begun && ended.is_none(), "it ended by itself, or said too little: {rest}");
        said
    }
}

/// From here on this process may be killed.
pub(crate) fn begin() {
    // On a line of its own, even behind what the test harness says on one core.
    println!("\n{BEGINS}");
}

/// What each of many processes said that worked on the file, one after the other; `POSTROOM_KILL_ROUNDS` sets how many.
pub(crate) fn rounds<S: Send + 'static>(file: &Path, mode: &str, read: fn(&str) -> Option<S>) -> Vec<Vec<S>> {
    let rounds = std::env::var("POSTROOM_KILL_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    // From the middle of opening and recovering to well beyond.
    let pause = |round: u64| Duration::from_micros(round * 1_370 % 90_000);
    // However busy the machine is, some have got somewhere.
    let words = |round: u64| if round % 4 == 3 { 40 } else { 0 };
    let task = |round: u64| Task { file: file.into(), mode: mode.into(), first: round * EACH };
    (0..rounds).map(|round| task(round).killed(read, words(round), |_| thread::sleep(pause(round)))).collect()
}
