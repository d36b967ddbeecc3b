//! Where the numbers come from.

use std::{fmt::Write, fs, thread};

use crate::{args::Args, rows, work::Contestant};

/// The versions cargo locked for this very build.
const LOCK: &str = include_str!("../Cargo.lock");

pub fn header(args: &Args, load: &str) -> String {
    let mut text = String::from("# Peers\n\n");
    let _ = writeln!(text, "* machine: {}, {} cores", cpu(), cores());
    let _ = writeln!(text, "* load average before: {load}");
    let _ = writeln!(text, "* compiler: {}, {}", rustc(), profile());
    let _ = writeln!(text, "* contestants: {}", versions().join(", "));
    let _ = writeln!(text, "* {} repetitions, interleaved; only the ratios inside one run compare", args.repetitions);
    text
}

pub fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':'));
    model.map_or("unknown CPU".into(), |(_, name)| name.trim().into())
}

/// How many threads wanted to run during the last minute, of whatever process; more than the cores means noise.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").into()
}

pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

pub fn rustc() -> &'static str {
    env!("RUSTC_VERSION")
}

pub fn profile() -> &'static str {
    if cfg!(debug_assertions) { "DEBUG BUILD, the numbers mean nothing" } else { "release, thin LTO" }
}

/// The crate and version behind a contestant; the standard library has the compiler's.
pub fn version(contestant: Contestant) -> String {
    let Some(package) = contestant.package else {
        return rustc().into();
    };
    let entry = format!("name = \"{package}\"\nversion = \"");
    let version = LOCK.split_once(&entry).and_then(|(_, rest)| rest.split_once('"'));
    format!("{package} {}", version.map_or("unknown", |(version, _)| version))
}

fn versions() -> Vec<String> {
    let rows = rows::all();
    let entries = rows.iter().flat_map(|row| &row.entries);
    let packaged = entries.filter(|entry| entry.contestant.package.is_some());
    let mut versions: Vec<_> = packaged.map(|entry| version(entry.contestant)).collect();
    versions.sort();
    versions.dedup();
    versions
}
