//! What the command line asks for.

use std::path::PathBuf;

pub const HELP: &str = "\
The same work by postroom and its peers, in one interleaved run.

Usage: cargo run --release -- [OPTIONS]

  --quick       a tenth of the messages, 3 repetitions instead of 7
  --only ROW    only rows whose name starts with ROW, such as S4; repeatable
  --json FILE   also write the results, with every sample, to FILE
  --plots DIR   also draw the rows that are curves, as SVG files in DIR
  --list        list the rows and their contestants, run nothing
  --help        this text

Exit code: 0 all runs were right, 1 a run failed, 2 wrong arguments.
";

pub enum Command {
    Run(Args),
    List,
    /// Prints how much memory one of so many things takes. For the memory row, which runs this program again.
    Weigh(String, u64),
    /// A step of the row about reopening, and its contestant, folder and number of messages: it runs this program
    /// again, too.
    Reopen([String; 3], u64),
    Help,
}

pub struct Args {
    pub repetitions: usize,
    /// Each row's number of messages is divided by this.
    pub scale: u64,
    pub only: Vec<String>,
    pub json: Option<PathBuf>,
    pub plots: Option<PathBuf>,
}

pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut args = Args { repetitions: 7, scale: 1, only: Vec::new(), json: None, plots: None };
    let mut list = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => (args.repetitions, args.scale) = (3, 10),
            "--only" => args.only.push(value("--only", words.next())?),
            "--json" => args.json = Some(value("--json", words.next())?.into()),
            "--weigh" => {
                let count = |word: String| word.parse().map_err(|_| "--weigh needs a count".to_owned());
                return Ok(Command::Weigh(value("--weigh", words.next())?, count(value("--weigh", words.next())?)?));
            }
            "--reopen" => {
                let mut next = || words.next().ok_or("--reopen needs a step, a contestant, a folder and a count");
                let named = [next()?, next()?, next()?];
                return Ok(Command::Reopen(named, next()?.parse().map_err(|_| "--reopen needs a count")?));
            }
            "--plots" => args.plots = Some(value("--plots", words.next())?.into()),
            "--list" => list = true,
            "--help" | "-h" => return Ok(Command::Help),
            _ => return Err(format!("unknown argument `{word}`; see --help")),
        }
    }
    Ok(if list { Command::List } else { Command::Run(args) })
}

fn value(option: &str, word: Option<String>) -> Result<String, String> {
    match word {
        Some(word) if !word.is_empty() && !word.starts_with("--") => Ok(word),
        _ => Err(format!("{option} needs a value; see --help")),
    }
}
