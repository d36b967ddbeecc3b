//! Opening what a process that was killed has left: filled by one process, opened by another, so that memory is its
//! own, too.

use std::{env, fs, path::Path, process::Command, time::Instant};

use postroom::store::Durability;

use super::{Bytes, Engine, Folder, Writes, bare::Bare, fjall::Fjall, postroom::Route, redb::Redb, sqlite::Sqlite};
use crate::work::{Block, Payload};

/// What the two processes do.
struct Steps {
    name: &'static str,
    fill: fn(&Path, u64),
    first: fn(&Path) -> Option<Bytes>,
}

const STEPS: &[Steps] = &[
    Steps {
        name: "postroom",
        fill: |folder, n| Route::open(folder, Durability::Buffered, n as usize).fill(n),
        first: |folder| Route::open(folder, Durability::Buffered, 10_000_000).first(),
    },
    Steps::of::<Bare>(),
    Steps::of::<Sqlite>(),
    Steps::of::<Redb>(),
    Steps::of::<Fjall>(),
];

impl Steps {
    const fn of<E: Engine>() -> Steps {
        Steps { name: E::SELF.name, fill: fill::<E>, first: |folder| E::open(folder).first() }
    }
}

fn fill<E: Engine>(folder: &Path, n: u64) {
    let mut engine = E::open(folder);
    for from in (0..n).step_by(1000) {
        let numbers = from..n.min(from + 1000);
        let inserts = numbers.map(|number| (number, Block::numbered(number).to_bytes())).collect();
        let last = from + 1000 >= n;
        engine.commit(&Writes { inserts, deletes: Vec::new() }, last);
    }
    std::mem::forget(engine);
}

/// Milliseconds to the first message, kilobytes the process has had at most, and kilobytes with a hundredth of the
/// messages.
pub fn run(n: u64, name: &str) -> Result<Vec<f64>, String> {
    let (ms, kilobytes) = one(n, name)?;
    let (_, few) = one(n / 100, name)?;
    Ok(vec![ms, kilobytes, few])
}

fn one(n: u64, name: &str) -> Result<(f64, f64), String> {
    let folder = Folder::fresh();
    child("fill", name, folder.path(), n)?;
    let said = child("open", name, folder.path(), n)?;
    let figures: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [ms, kilobytes] = figures[..] else { return Err(format!("opening said {said:?}")) };
    Ok((ms, kilobytes))
}

fn child(step: &str, name: &str, folder: &Path, n: u64) -> Result<String, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program).args(["--reopen", step, name]).arg(folder).arg(n.to_string()).output();
    let output = output.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // Who fills ends by abort.
    if said.ends_with("done\n") {
        return Ok(said);
    }
    Err(format!("{step} failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// In the child.
pub fn here(step: &str, name: &str, folder: &Path, n: u64) -> Result<(), String> {
    let steps = STEPS.iter().find(|steps| steps.name == name).ok_or("nothing of that name can be opened")?;
    if step == "fill" {
        (steps.fill)(folder, n);
        println!("done");
        std::process::abort();
    }
    let start = Instant::now();
    let first = (steps.first)(folder);
    let took = start.elapsed();
    if first != Some(Block::numbered(0).to_bytes()) {
        return Err("the first message is not there".into());
    }
    println!("{} {} done", took.as_secs_f64() * 1e3, most_memory().unwrap_or(f64::NAN));
    Ok(())
}

/// Kilobytes this process has had in memory at most.
fn most_memory() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
