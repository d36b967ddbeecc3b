//! The same work by postroom and its peers, in one interleaved run.
//!
//! Read on in this order:
//!
//! 1. `args`: what the command line asks for.
//! 2. `rows`: which work, done by whom, compared with whom.
//! 3. `harness`: who runs when, and what counts as a result.
//! 4. `report`: the table and the JSON file; `plots`: the curves; `machine`: where they come from.
//! 5. `work`: a directory for each kind of work, in it a file for each contestant.

#![forbid(unsafe_code)]

mod args;
mod rows;

mod harness;

mod machine;
mod plots;
mod report;

mod work;

use std::process::ExitCode;

use args::{Args, Command};
use rows::Row;

/// The run itself failed: a contestant lost messages or hung, or a file could not be written.
const FAILED: u8 = 1;
/// The command line made no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match args::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::List) => {
            print!("{}", report::list(&rows::all()));
            ExitCode::SUCCESS
        }
        Ok(Command::Weigh(name, n)) => match work::scale::weigh_here(&name, n) {
            Some(bytes) => {
                println!("{bytes}");
                ExitCode::SUCCESS
            }
            None => exit(USAGE, "nothing of that name can be weighed here"),
        },
        Ok(Command::Reopen([step, name, folder], n)) => match reopen(&step, &name, folder.as_ref(), n) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => exit(USAGE, &message),
        },
        Ok(Command::Run(args)) => match select(rows::all(), &args.only) {
            Ok(rows) => run(&rows, &args),
            Err(message) => exit(USAGE, &message),
        },
        Err(message) => exit(USAGE, &message),
    }
}

#[cfg(feature = "durable")]
fn reopen(step: &str, name: &str, folder: &std::path::Path, n: u64) -> Result<(), String> {
    work::durable::reopen::here(step, name, folder, n)
}

#[cfg(not(feature = "durable"))]
fn reopen(_: &str, _: &str, _: &std::path::Path, _: u64) -> Result<(), String> {
    Err("built without the feature durable".into())
}

/// The rows whose name starts with one of the prefixes; all rows if there is none. `S1` is not a prefix of
/// `S10`.
fn select(mut rows: Vec<Row>, only: &[String]) -> Result<Vec<Row>, String> {
    let starts = |row: &Row, prefix: &String| {
        let digit = |c: char| c.is_ascii_digit();
        let rest = row.name.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| !(prefix.ends_with(digit) && rest.starts_with(digit)))
    };
    if let Some(prefix) = only.iter().find(|p| !rows.iter().any(|row| starts(row, p))) {
        return Err(format!("no row starts with `{prefix}`; see --list"));
    }
    rows.retain(|row| only.is_empty() || only.iter().any(|prefix| starts(row, prefix)));
    Ok(rows)
}

fn run(rows: &[Row], args: &Args) -> ExitCode {
    let load = machine::load();
    print!("{}", machine::header(args, &load));
    let mut results = Vec::new();
    for row in rows {
        if let Err(reason) = (row.needs)() {
            print!("{}", report::skipped(row, &reason));
            continue;
        }
        match harness::measure(row, args.repetitions, args.scale) {
            Ok(result) => {
                print!("{}", report::table(&result));
                results.push(result);
            }
            Err(message) => return exit(FAILED, &message),
        }
    }
    print!("{}", report::targets(&results));
    if let Some(file) = &args.json
        && let Err(error) = std::fs::write(file, report::json(&results, args, &load))
    {
        return exit(FAILED, &format!("cannot write {}: {error}", file.display()));
    }
    if let Some(directory) = &args.plots
        && let Err(error) = plots::write(&results, directory)
    {
        return exit(FAILED, &format!("cannot write to {}: {error}", directory.display()));
    }
    if results.iter().any(harness::RowResult::has_failure) {
        return exit(FAILED, "at least one run failed; see the table");
    }
    ExitCode::SUCCESS
}

fn exit(code: u8, message: &str) -> ExitCode {
    eprintln!("peers: {message}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::{rows, select};

    #[test]
    fn rows_are_chosen_by_whole_numbers() {
        let names = |only: &str| -> Vec<_> {
            select(rows::all(), &[only.into()]).unwrap_or_default().iter().map(|row| row.name).collect()
        };
        assert_eq!(names("S1"), ["S1-128B-1p1c", "S1-128B-2p2c"]);
        assert_eq!(names("S15"), ["S15-depth"]);
        assert!(names("S99").is_empty());
    }

    #[test]
    fn targets_and_references_name_contestants_of_their_row() {
        for row in rows::all() {
            let has = |name: &str| row.entries.iter().any(|entry| entry.contestant.name == name);
            assert!(row.reference.is_none_or(|reference| has(reference.name)), "{}", row.name);
            for target in &row.targets {
                assert!(has(target.who) && target.of.is_none_or(|(of, _)| has(of)), "{}", row.name);
            }
        }
    }
}
