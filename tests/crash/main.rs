//! A process that is killed at any moment loses nothing and invents nothing.
//!
//! Rounds of a child process that writes orders, relays them and handles them, all in one database. Each is
//! killed (SIGKILL) at a named point or after a random time, and the next goes on with what it left behind.
//! In the end every order that was committed has had its effect, once; none that was rolled back has.
#![cfg(all(feature = "sqlite", unix))]

mod child;
mod store;

use rand::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use store::Store;

/// What the child is to be killed at, besides random times. All lie between the commit of an order and the
/// end of its row, but the first, which lies before.
const POINTS: [&str; 9] = [
    "put",
    "committed",
    "connecting",
    "fetched",
    "handler started",
    "effect written",
    "effect committed",
    "marking",
    "acked",
];

/// How many rows of a relay may be under way, which is how many may come twice after a kill.
const WINDOW: usize = 32;

/// So that a kill may hit what a point does not.
const LONGEST_LIFE: Duration = Duration::from_millis(60);

#[test]
fn sqlite_survives_two_hundred_kills() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let database = format!("sqlite:{}", directory.join("app.db").display());
    survives(&database, &directory, rounds(200), &POINTS);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
#[cfg(feature = "postgres")]
fn postgres_survives_a_hundred_kills() {
    let Ok(url) = std::env::var("POSTROOM_TEST_POSTGRES") else {
        let _ = writeln!(std::io::stderr(), "skipped the kills on PostgreSQL: POSTROOM_TEST_POSTGRES is not set");
        return;
    };
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-pg-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let database = format!("postgres:{url}");
    // The server commits there, where no hook of the client's is.
    let points: Vec<_> = POINTS.into_iter().filter(|point| *point != "marking").collect();
    survives(&database, &directory, rounds(100), &points);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// `POSTROOM_CRASH_ROUNDS` asks for others.
fn rounds(usual: u64) -> u64 {
    std::env::var("POSTROOM_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

/// The process that is killed; does nothing when it is run as a test.
#[test]
fn child() {
    if let Ok(database) = std::env::var("POSTROOM_CRASH_DATABASE") {
        child::run(&*store::open(&database));
    }
}

fn survives(database: &str, directory: &Path, rounds: u64, points: &[&str]) {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let journal = directory.join("deliveries");
    let store = store::open(database);
    store.create();
    let mut hit: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..rounds {
        // Every other time at a point.
        let point = (round % 2 == 0).then(|| points[(round / 2) as usize % points.len()]);
        let was_hit = live_and_die(database, &journal, round, point, &mut chance);
        *hit.entry(if was_hit { point.unwrap() } else { "at random" }).or_default() += 1;
    }
    println!("killed {hit:?}");
    let named: u64 = points.iter().filter_map(|point| hit.get(point)).sum();
    assert!(named * 3 >= rounds, "too few were killed at their point: {hit:?}");
    child::finish(&*store, &journal);
    check(&*store, &journal, rounds);
}

/// Whether it died at the point.
fn live_and_die(database: &str, journal: &Path, round: u64, point: Option<&str>, chance: &mut Chance) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("POSTROOM_CRASH_DATABASE", database)
        .env("POSTROOM_CRASH_JOURNAL", journal)
        .env("POSTROOM_CRASH_ROUND", round.to_string())
        .env("POSTROOM_CRASH_POINT", point.unwrap_or("none"))
        .env("POSTROOM_CRASH_AFTER", chance.below(12).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let (said, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        stdout.lines().map_while(Result::ok).for_each(|line| _ = said.send(line));
    });
    let limit = Instant::now() + Duration::from_secs(20);
    let mut wait = Duration::from_secs(20);
    let mut was_hit = false;
    while let Ok(line) = lines.recv_timeout(wait) {
        assert!(!line.contains("panicked"), "{line}");
        if line == "working" && point.is_none() {
            wait = Duration::from_micros(chance.below(LONGEST_LIFE.as_micros() as u64));
        } else if line == "working" {
            wait = Duration::from_secs(3);
        }
        was_hit = line == "at the point";
        if was_hit {
            break;
        }
    }
    assert!(Instant::now() < limit, "round {round} never began to work");
    assert!(child.try_wait().unwrap().is_none(), "round {round} ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    was_hit
}

fn check(store: &dyn Store, journal: &Path, kills: u64) {
    let (orders, effects) = (store.orders(), store.effects());
    let committed: BTreeSet<u64> = orders.iter().copied().collect();
    let had_effect: BTreeSet<u64> = effects.iter().map(|(n, _)| *n).collect();
    assert_eq!(had_effect, committed, "lost or invented");
    assert_eq!(effects.len(), committed.len(), "an effect happened twice");
    assert!(committed.len() as u64 > kills, "hardly anything was written");

    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (n, key) in &effects {
        let before = last.insert(key, *n);
        assert!(before < Some(*n), "{key}: {n} after {before:?}");
    }

    // Every line is a delivery: the round, the order, whether its transaction was to be rolled back.
    let text = std::fs::read_to_string(journal).unwrap();
    let mut deliveries: BTreeMap<u64, u64> = BTreeMap::new();
    let mut in_round = BTreeSet::new();
    for line in text.lines() {
        let [round, n, doomed] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let n: u64 = n.parse().unwrap();
        assert_eq!(doomed, "false", "{n} was rolled back and delivered");
        assert!(in_round.insert((round.to_owned(), n)), "{n} came twice in one life");
        *deliveries.entry(n).or_default() += 1;
    }
    assert_eq!(deliveries.keys().copied().collect::<BTreeSet<_>>(), committed, "at least once, and nothing else");
    let again: u64 = deliveries.values().map(|times| times - 1).sum();
    assert!(again <= kills * WINDOW as u64, "{again} came again after {kills} kills");
    assert_eq!(store.unfinished(), 0, "rows that are not done");
    println!("{kills} kills, {} orders, each with one effect; {again} deliveries came again", committed.len());
}

mod rand {
    /// SplitMix64.
    pub(crate) struct Chance(pub(crate) u64);

    impl Chance {
        pub(crate) fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) % n
        }
    }
}
