//! For tests that kill processes with signal 9: the test binary is started again, with its test
//! `works_until_it_is_killed` alone, and says a line for everything that it has done.

use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const FILE: &str = "POSTROOM_FILE_TO_KILL";
const MODE: &str = "POSTROOM_MODE";
const FIRST: &str = "POSTROOM_FIRST_NUMBER";
const BEGINS: &str = "begins";
const ROUNDS: u64 = 200;
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

    /// Gives it to a new process, waits until this one begins and `wait` is over, and kills it: what it has said, as
    /// `read` understands it. How much that is so far is told to `wait`.
    pub(crate) fn killed<S: Send + 'static>(
        &self,
        read: fn(&str) -> Option<S>,
        wait: impl FnOnce(&Child, &AtomicUsize),
    ) -> Vec<S> {
        let (mut child, out) = self.start();
        let (begun, begins) = mpsc::channel();
        let so_far = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&so_far);
        let listener = thread::spawn(move || {
            let (mut said, mut rest) = (Vec::new(), String::new());
            for line in out.lines().map(Result::unwrap) {
                match read(&line) {
                    Some(word) => {
                        said.push(word);
                        counts.store(said.len(), Ordering::Relaxed);
                    }
                    None if line == BEGINS => _ = begun.send(()),
                    None => rest += &(line + "\n"),
                }
            }
            (said, rest)
        });
        let begun = begins.recv().is_ok();
        wait(&child, &so_far);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (said, rest) = listener.join().unwrap();
        assert!(!rest.contains("panicked"), "{rest}");
        assert!(begun && ended.is_none(), "it ended by itself: {rest}");
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
    let task = |round: u64| Task { file: file.into(), mode: mode.into(), first: round * EACH };
    let wait = |round: u64, so_far: &AtomicUsize| {
        // On a machine that is too busy for them to get far in that time, some of them do all the same.
        let end = Instant::now() + Duration::from_secs(5);
        while round % 8 == 7 && so_far.load(Ordering::Relaxed) < 50 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(pause(round));
    };
    (0..rounds).map(|round| task(round).killed(read, |_, so_far| wait(round, so_far))).collect()
}
