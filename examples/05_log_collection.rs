//! Log collection: many application threads log; an indexer, an alerter and an archive each read everything.
//!
//! **Situation.** Every line of every application has to reach three modules that have nothing to do with
//! each other: a search index, which is fast in batches; an alerter, which watches the share of errors; an
//! archive, which is slow. None may hold up the applications or the others. Later somebody wants to look at
//! what was logged before they came.
//!
//! **What the log gives.** One append per line, whoever reads it. Lines of one application keep their order,
//! because its name is their key. Each group has its own position and its own pace. A late group starts at
//! the oldest line that is still there, or at a time. Retention bounds the memory, and a reader who asks for
//! what is gone is told.
//!
//! **What to expect on screen.** Lines and rates per group; how far the archive was behind when the others
//! were done; alerts; what two late groups read; what retention left.
//!
//! `cargo run --release --example 05_log_collection [FILE]...`: each file, whatever text is in it, becomes an
//! application of that name. Without files, eight made-up ones log 5,000 lines each.

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

use names::{LINES, Line};
use postroom::{Broker, Log, LogError, Record, Retention, Start};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

const PARTITIONS: usize = 4;
/// Of each partition, in the second part of the run.
const KEPT_BYTES: u64 = 20_000;
const SOON: Duration = Duration::from_secs(30);

/// All that the modules know of each other.
mod names {
    use postroom::LogName;

    pub struct Line {
        pub app: String,
        /// Counted from 0 in each application.
        pub number: u64,
        pub text: String,
    }

    pub const LINES: LogName<Line> = LogName::new("lines");
}

/// Applications: each a name and its lines.
mod apps {
    use crate::names::Line;
    use postroom::{Log, Message};
    use std::path::Path;
    use std::{fs, io, thread};

    pub struct App {
        pub name: String,
        pub lines: Vec<String>,
    }

    /// Bytes that are not UTF-8 are replaced: a log line is looked at, not computed with.
    pub fn read(path: &str) -> io::Result<App> {
        let text = fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy());
        let lines = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
        Ok(App { name: name.into_owned(), lines })
    }

    pub fn made_up() -> Vec<App> {
        let level = |n: u64| match n % 100 {
            // A bad while in the middle.
            0..50 if (2000..2500).contains(&n) => "ERROR",
            0 => "ERROR",
            1..10 => "WARN",
            _ => "INFO",
        };
        let lines =
            |app: u64| (0..5000).map(move |n| format!("{} request {n} took {} ms", level(n), (n * 7 + app) % 90));
        (0..8).map(|app| App { name: format!("web-{app}"), lines: lines(app).collect() }).collect()
    }

    /// Each application logs from a thread of its own.
    pub fn run(apps: Vec<App>, log: &Log<Line>) {
        thread::scope(|scope| {
            for app in apps {
                scope.spawn(move || {
                    for (number, text) in (0..).zip(app.lines) {
                        let line = Line { app: app.name.clone(), number, text };
                        log.append(Message::new(line).with_key(&app.name)).expect("the broker runs");
                    }
                });
            }
        });
    }
}

/// Words and the lines they are in; adding many lines at once is what it is good at.
mod indexer {
    use crate::names::{LINES, Line};
    use postroom::{Broker, Error, Group, Record, Start};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct Index {
        pub words: BTreeMap<String, u64>,
        pub lines: u64,
        pub batches: u64,
    }

    pub fn start(broker: &Broker, index: Arc<Mutex<Index>>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("indexer").start(Start::Earliest)?;
        group.consumer().workers(2).start_batch(500, Duration::from_millis(5), move |lines: &[Record<Line>]| {
            let mut index = index.lock().unwrap();
            for line in lines {
                for word in line.text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
                    *index.words.entry(word.to_lowercase()).or_default() += 1;
                }
            }
            index.lines += lines.len() as u64;
            index.batches += 1;
        })?;
        Ok(group)
    }
}

/// Alerts when of an application's latest lines too many are errors, once per bad while.
mod alerter {
    use crate::names::{LINES, Line};
    use postroom::{Broker, Error, Group, Record, Start};
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Arc, Mutex};

    const WINDOW: usize = 100;
    const TOO_MANY: usize = 20;

    #[derive(Default)]
    pub struct Watch {
        latest: BTreeMap<String, (VecDeque<bool>, bool)>,
        pub alerts: Vec<String>,
        pub errors: u64,
    }

    pub fn is_error(text: &str) -> bool {
        ["error", "fatal", "exception"].iter().any(|word| text.to_lowercase().contains(word))
    }

    impl Watch {
        fn see(&mut self, line: &Line) {
            let error = is_error(&line.text);
            self.errors += u64::from(error);
            let (window, alarmed) = self.latest.entry(line.app.clone()).or_default();
            window.push_back(error);
            if window.len() > WINDOW {
                window.pop_front();
            }
            let errors = window.iter().filter(|error| **error).count();
            if errors >= TOO_MANY && !*alarmed {
                self.alerts.push(format!("{}: {errors} errors in its last {} lines", line.app, window.len()));
            }
            *alarmed = errors >= TOO_MANY;
        }
    }

    pub fn start(broker: &Broker, watch: Arc<Mutex<Watch>>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("alerter").start(Start::Earliest)?;
        group.consumer().start(move |line: &Record<Line>| watch.lock().unwrap().see(line))?;
        Ok(group)
    }
}

/// Slow: it opens at last when the others are done.
mod archive {
    use crate::names::{LINES, Line};
    use postroom::{Broker, Error, Group, Record, Start};
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    #[derive(Default)]
    pub struct Archive {
        pub catches_up: AtomicBool,
        pub lines: AtomicU64,
        /// The next number of each application; in another order nothing is filed.
        next: Mutex<BTreeMap<String, u64>>,
    }

    impl Archive {
        fn file(&self, line: &Line) {
            if !self.catches_up.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            let mut next = self.next.lock().unwrap();
            let expected = next.entry(line.app.clone()).or_default();
            assert_eq!(line.number, *expected, "a line of {} out of order", line.app);
            *expected += 1;
            self.lines.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn start(broker: &Broker, archive: Arc<Archive>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("archive").start(Start::Earliest)?;
        group.consumer().workers(2).start(move |line: &Record<Line>| archive.file(line))?;
        Ok(group)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.iter().any(|file| file == "--help" || file == "-h") {
        println!("05_log_collection [FILE]...  (any text files; without any, made-up lines)");
        return Ok(());
    }
    let made_up = files.is_empty();
    let apps =
        if made_up { apps::made_up() } else { files.iter().map(|file| apps::read(file)).collect::<Result<_, _>>()? };
    let total: u64 = apps.iter().map(|app| app.lines.len() as u64).sum();
    println!("{} applications, {total} lines", apps.len());

    let broker = Broker::new();
    let log = broker.log(LINES).partitions(PARTITIONS).declare()?;
    three_groups(&broker, &log, apps, made_up)?;
    late_groups(&log, total)?;
    retention(&broker, &log)?;

    let report = broker.shutdown(SOON);
    assert!(report.is_clean(), "{report}");
    println!("\nshut down: {report}");
    Ok(())
}

fn three_groups(broker: &Broker, log: &Log<Line>, apps: Vec<apps::App>, made_up: bool) -> Result<(), Box<dyn Error>> {
    let total: u64 = apps.iter().map(|app| app.lines.len() as u64).sum();
    let errors = apps.iter().flat_map(|app| &app.lines).filter(|text| alerter::is_error(text)).count() as u64;
    let (index, watch) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
    let archive = Arc::new(archive::Archive::default());
    let indexer = indexer::start(broker, Arc::clone(&index))?;
    let alerter = alerter::start(broker, Arc::clone(&watch))?;
    let slow = archive::start(broker, Arc::clone(&archive))?;

    let start = Instant::now();
    apps::run(apps, log);
    println!("  logged     {:>9.0} lines/s", rate(total, start));
    while indexer.lag() + alerter.lag() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("  indexed and watched at {:.0} lines/s; the archive is {} lines behind", rate(total, start), slow.lag());
    archive.catches_up.store(true, Ordering::Relaxed);
    assert!(broker.wait_idle(SOON));
    println!("  archived   {:>9.0} lines/s", rate(total, start));

    let (index, watch): (_, std::sync::MutexGuard<'_, alerter::Watch>) = (index.lock().unwrap(), watch.lock().unwrap());
    let index: &indexer::Index = &index;
    println!("  {} words from {} lines in {} batches", index.words.len(), index.lines, index.batches);
    println!("  {} errors, {} alerts", watch.errors, watch.alerts.len());
    watch.alerts.iter().take(4).for_each(|alert| println!("    {alert}"));
    assert_eq!((index.lines, watch.errors, archive.lines.load(Ordering::Relaxed)), (total, errors, total));
    assert_eq!((slow.lag(), log.len()), (0, total));
    assert!(!made_up || watch.alerts.len() == 8, "one bad while per application");
    Ok(())
}

/// Groups that come when everything has been read long ago.
fn late_groups(log: &Log<Line>, total: u64) -> Result<(), Box<dyn Error>> {
    println!("\nlate groups");
    let auditor = log.group("auditor").start(Start::Earliest)?;
    let mut reader = auditor.reader();
    let mut times: Vec<SystemTime> = Vec::new();
    let start = Instant::now();
    while let Ok(line) = reader.try_recv() {
        times.push(line.published_at());
        auditor.commit(line.partition(), line.offset())?;
    }
    println!("  from the start: {} lines at {:.0} lines/s", times.len(), rate(times.len() as u64, start));
    assert_eq!((times.len() as u64, auditor.lag()), (total, 0));

    times.sort_unstable();
    let Some(&middle) = times.get(times.len() / 2) else { return Ok(()) };
    let since = times.iter().filter(|&&time| time >= middle).count() as u64;
    let detective = log.group("detective").start(Start::Time(middle))?;
    println!("  from a time: {} of {total} lines", detective.lag());
    assert_eq!(detective.lag(), since);
    detective.rewind(Start::Latest)?;
    Ok(())
}

/// The same lines once more, into a log that keeps little.
fn retention(broker: &Broker, log: &Log<Line>) -> Result<(), Box<dyn Error>> {
    println!("\nretention");
    let keep = Retention::bytes(KEPT_BYTES, |line: &Line| line.text.len()).and(Retention::age(SOON));
    let short: Log<Line> = broker.log("short").partitions(PARTITIONS).retain(keep).declare()?;
    let behind = short.group("behind").start(Start::Earliest)?;
    let copier = log.group("copier").start(Start::Earliest)?;
    let (to, bytes) = (short.clone(), Arc::new(Mutex::new(BTreeMap::<usize, u64>::new())));
    let count = Arc::clone(&bytes);
    // The payloads are shared between the two logs, not copied.
    copier.consumer().start(move |line: &Record<Line>| {
        *count.lock().unwrap().entry(line.partition()).or_default() += line.text.len() as u64;
        to.append(line.to_message()).map(|_| ()).map_err(|error| std::io::Error::other(error.to_string()))
    })?;
    assert!(broker.wait_idle(SOON));

    let stats = short.stats();
    println!("  {} lines appended, {} kept, {} trimmed", stats.appended, stats.retained, stats.trimmed);
    assert_eq!(stats.appended, log.len());
    assert_eq!(stats.appended, stats.retained + stats.trimmed);
    let overflowed = bytes.lock().unwrap().values().any(|bytes| *bytes > 2 * KEPT_BYTES);
    assert!(!overflowed || stats.trimmed > 0);
    let mut reader = behind.reader();
    let mut read = 0;
    loop {
        match reader.try_recv() {
            Ok(line) => {
                read += 1;
                behind.commit(line.partition(), line.offset())?;
            }
            Err(LogError::Trimmed { partition, asked, oldest }) => {
                println!("  partition {partition}: asked for {asked}, the oldest is {oldest}");
                behind.seek(partition, oldest)?;
            }
            Err(_) => break,
        }
    }
    println!("  a reader that came too late got {read} lines");
    assert_eq!((read, behind.lag()), (stats.retained, 0));
    Ok(())
}

fn rate(n: u64, since: Instant) -> f64 {
    n as f64 / since.elapsed().as_secs_f64()
}
