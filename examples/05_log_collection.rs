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
//! **What to expect on screen.** How fast each group read, and how far the archive was behind when the others
//! were done; alerts and when they were over; a search whose hits are read from the log; what two late groups
//! read; what retention left of each partition.
//!
//! `cargo run --release --example 05_log_collection [FILE | -]...`: each file becomes an application, whatever
//! text is in it, and logs from a thread of its own. Without files, eight made-up ones log 5,000 lines each.

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

use apps::{App, Logged};
use names::{LINES, Line};
use postroom::{Broker, Group, Log, LogError, Record, Retention, Start};
use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const HELP: &str = "\
usage: 05_log_collection [FILE | -]...

  FILE    any text; it becomes an application of that name, whose lines are logged as fast as they are read
  -       standard input
  --help  show this

Without files, eight made-up applications log 5,000 lines each. Bytes that are no text are replaced, lines of
more than 8 KiB are cut, and both are counted. Everything stays in memory: mind the size of your files.

Exit code 0: every group has read every line. Exit code 2: bad arguments, or a file that cannot be read.
";

const PARTITIONS: usize = 4;
/// Of each partition, in the last part of the run.
const KEPT_BYTES: u64 = 20_000;
/// Far more than it needs, unless the files are huge.
const SOON: Duration = Duration::from_secs(600);

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

/// Applications: each a name and its lines. They know the log, and nobody who reads it.
mod apps {
    use crate::names::Line;
    use postroom::{Log, Message};
    use std::fs::File;
    use std::io::{self, BufRead, BufReader, Read};
    use std::ops::AddAssign;
    use std::thread;

    /// A line that never ends must not fill the memory.
    pub const LONGEST: usize = 8 << 10;

    pub struct App {
        pub name: String,
        lines: Box<dyn Iterator<Item = io::Result<Text>> + Send>,
    }

    struct Text {
        text: String,
        cut: bool,
        replaced: bool,
    }

    /// What an application has logged, counted where it was logged.
    #[derive(Default)]
    pub struct Logged {
        pub lines: u64,
        pub bytes: u64,
        pub errors: u64,
        pub cut: u64,
        pub replaced: u64,
        /// Why it could not be read to its end.
        pub broken: Vec<String>,
    }

    pub fn open(path: &str) -> Result<App, String> {
        let cannot = |why: &dyn std::fmt::Display| format!("cannot read {path}: {why}");
        let reader: Box<dyn BufRead + Send> = match path {
            "-" => Box::new(BufReader::new(io::stdin())),
            _ => {
                let file = File::open(path).map_err(|why| cannot(&why))?;
                // It can be opened, and fails only when it is read.
                if file.metadata().is_ok_and(|file| file.is_dir()) {
                    return Err(cannot(&"it is a directory"));
                }
                Box::new(BufReader::new(file))
            }
        };
        let mut reader = reader;
        Ok(App { name: path.to_owned(), lines: Box::new(std::iter::from_fn(move || next(&mut reader).transpose())) })
    }

    /// A log line is looked at, not computed with: what is not UTF-8 is replaced, so that it spoils nothing else.
    fn next(reader: &mut impl BufRead) -> io::Result<Option<Text>> {
        let mut line = Vec::new();
        if reader.take(LONGEST as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let cut = line.len() == LONGEST && !line.ends_with(b"\n") && reader.skip_until(b'\n')? > 0;
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        let replaced = matches!(text, std::borrow::Cow::Owned(_));
        Ok(Some(Text { text: text.into_owned(), cut, replaced }))
    }

    pub fn made_up() -> Vec<App> {
        let level = |n: u64| match n % 100 {
            // A bad while in the middle.
            0..50 if (2000..2500).contains(&n) => "ERROR",
            0 => "ERROR",
            1..10 => "WARN",
            _ => "INFO",
        };
        let text = move |app, n| format!("{} request {n} took {} ms", level(n), (n * 7 + app) % 90);
        let line = move |app, n| Ok(Text { text: text(app, n), cut: false, replaced: false });
        let lines = |app| Box::new((0..5000).map(move |n| line(app, n)));
        (0..8).map(|app| App { name: format!("web-{app}"), lines: lines(app) }).collect()
    }

    pub fn is_error(text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        ["error", "fatal", "exception"].iter().any(|word| text.contains(word))
    }

    /// Each application logs from a thread of its own.
    pub fn run(apps: Vec<App>, log: &Log<Line>) -> Logged {
        let mut all = Logged::default();
        thread::scope(|scope| {
            let threads: Vec<_> = apps.into_iter().map(|app| scope.spawn(|| app.run(log))).collect();
            threads.into_iter().for_each(|thread| all += thread.join().expect("it does not panic"));
        });
        all
    }

    impl App {
        fn run(self, log: &Log<Line>) -> Logged {
            let mut logged = Logged::default();
            for line in self.lines {
                let Text { text, cut, replaced } = match line {
                    Ok(line) => line,
                    Err(why) => {
                        logged.broken.push(format!("cannot read {} after line {}: {why}", self.name, logged.lines));
                        break;
                    }
                };
                let number = logged.lines;
                logged += Logged {
                    lines: 1,
                    bytes: text.len() as u64,
                    errors: u64::from(is_error(&text)),
                    cut: u64::from(cut),
                    replaced: u64::from(replaced),
                    broken: Vec::new(),
                };
                let line = Line { app: self.name.clone(), number, text };
                log.append(Message::new(line).with_key(&self.name)).expect("the broker runs");
            }
            logged
        }
    }

    impl AddAssign for Logged {
        fn add_assign(&mut self, other: Self) {
            self.lines += other.lines;
            self.bytes += other.bytes;
            self.errors += other.errors;
            self.cut += other.cut;
            self.replaced += other.replaced;
            self.broken.extend(other.broken);
        }
    }
}

/// Words, and where in the log they are; adding many lines at once is what it is good at.
mod indexer {
    use crate::names::{LINES, Line};
    use postroom::{Broker, Error, Group, Record, Start};
    use std::collections::{BTreeSet, HashMap};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    const BATCH: usize = 500;

    #[derive(Default)]
    pub struct Index {
        /// Partition and offset. The text stays in the log. A batch that comes again changes nothing.
        pub words: HashMap<String, BTreeSet<(usize, u64)>>,
        pub lines: u64,
        pub batches: u64,
    }

    fn add(index: &Mutex<Index>, lines: &[Record<Line>]) {
        // Taken apart before the index is locked, so that the workers do that side by side.
        let words = lines.iter().flat_map(|line| {
            let words = line.text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            words.map(|word| (word.to_lowercase(), (line.partition(), line.offset())))
        });
        let words: Vec<_> = words.collect();
        let mut index = index.lock().unwrap();
        for (word, place) in words {
            index.words.entry(word).or_default().insert(place);
        }
        index.lines += lines.len() as u64;
        index.batches += 1;
    }

    pub fn start(broker: &Broker, index: Arc<Mutex<Index>>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("indexer").start(Start::Earliest)?;
        let linger = Duration::from_millis(5);
        group.consumer().workers(2).start_batch(BATCH, linger, move |lines: &[Record<Line>]| add(&index, lines))?;
        Ok(group)
    }
}

/// Alerts when of an application's latest lines too many are errors: once, until it is over.
mod alerter {
    use crate::apps::is_error;
    use crate::names::{LINES, Line};
    use postroom::{Broker, Error, Group, Record, Start};
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Arc, Mutex};

    const WINDOW: usize = 100;
    const TOO_MANY: usize = 20;
    /// Well below, or an application on the edge would alert with every other line.
    const FINE_AGAIN: usize = 10;

    #[derive(Default)]
    pub struct Watch {
        latest: BTreeMap<String, Latest>,
        /// What whoever is on duty would be told.
        pub told: Vec<String>,
        pub alerts: u64,
        pub lines: u64,
        pub errors: u64,
    }

    #[derive(Default)]
    struct Latest {
        are_errors: VecDeque<bool>,
        alarmed: bool,
    }

    impl Watch {
        fn see(&mut self, line: &Line) {
            let error = is_error(&line.text);
            self.lines += 1;
            self.errors += u64::from(error);
            let latest = self.latest.entry(line.app.clone()).or_default();
            latest.are_errors.push_back(error);
            if latest.are_errors.len() > WINDOW {
                latest.are_errors.pop_front();
            }
            let errors = latest.are_errors.iter().filter(|error| **error).count();
            let (app, number) = (&line.app, line.number + 1);
            if errors >= TOO_MANY && !latest.alarmed {
                latest.alarmed = true;
                let of = latest.are_errors.len();
                self.alerts += 1;
                self.told.push(format!("{app}: {errors} of the latest {of} lines are errors, at line {number}"));
            } else if errors < FINE_AGAIN && latest.alarmed {
                latest.alarmed = false;
                self.told.push(format!("{app}: over, at line {number}"));
            }
        }
    }

    pub fn start(broker: &Broker, watch: Arc<Mutex<Watch>>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("alerter").start(Start::Earliest)?;
        group.consumer().start(move |line: &Record<Line>| watch.lock().unwrap().see(line))?;
        Ok(group)
    }
}

/// Slow, until it is given a faster disk.
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
        pub has_fast_disk: AtomicBool,
        pub lines: AtomicU64,
        pub bytes: AtomicU64,
        pub out_of_order: AtomicU64,
        /// The next number of each application.
        next: Mutex<BTreeMap<String, u64>>,
    }

    impl Archive {
        fn file(&self, line: &Line) {
            if !self.has_fast_disk.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            let expected = self.next.lock().unwrap().insert(line.app.clone(), line.number + 1).unwrap_or(0);
            self.out_of_order.fetch_add(u64::from(line.number != expected), Ordering::Relaxed);
            self.lines.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(line.text.len() as u64, Ordering::Relaxed);
        }
    }

    pub fn start(broker: &Broker, archive: Arc<Archive>) -> Result<Group<Line>, Error> {
        let group = broker.log(LINES).find()?.group("archive").start(Start::Earliest)?;
        group.consumer().workers(2).start(move |line: &Record<Line>| archive.file(line))?;
        Ok(group)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let problem = match open(&args) {
        Err(problem) => problem,
        Ok(apps) => match run(apps, args.is_empty()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(problem) => problem.to_string(),
        },
    };
    eprintln!("05_log_collection: {problem}");
    ExitCode::from(2)
}

/// Before anything is started, so that a wrong name costs nothing.
fn open(args: &[String]) -> Result<Vec<App>, String> {
    for (n, arg) in args.iter().enumerate() {
        if arg.starts_with('-') && arg != "-" {
            return Err(format!("unknown argument {arg}\n\n{HELP}"));
        }
        if args[..n].contains(arg) {
            return Err(format!("{arg} is given twice: an application has one log"));
        }
    }
    if args.is_empty() { Ok(apps::made_up()) } else { args.iter().map(|path| apps::open(path)).collect() }
}

fn run(apps: Vec<App>, made_up: bool) -> Result<(), Box<dyn Error>> {
    let broker = Broker::new();
    let log = broker.log(LINES).partitions(PARTITIONS).declare()?;
    println!("1. Applications log, three groups read: {}.", apps.len());
    let logged = three_groups(&broker, &log, apps, made_up)?;
    late_groups(&log, logged.lines)?;
    retention(&broker, &log, made_up)?;

    let report = broker.shutdown(SOON);
    println!("\nshut down: {report}");
    assert!(report.is_clean());
    if logged.broken.is_empty() { Ok(()) } else { Err(logged.broken.join("\n").into()) }
}

fn three_groups(broker: &Broker, log: &Log<Line>, apps: Vec<App>, made_up: bool) -> Result<Logged, Box<dyn Error>> {
    let index: Arc<Mutex<indexer::Index>> = Arc::default();
    let watch: Arc<Mutex<alerter::Watch>> = Arc::default();
    let archive = Arc::new(archive::Archive::default());
    let indexer = indexer::start(broker, Arc::clone(&index))?;
    let alerter = alerter::start(broker, Arc::clone(&watch))?;
    let archiver = archive::start(broker, Arc::clone(&archive))?;

    let start = Instant::now();
    let logged = apps::run(apps, log);
    print_rate("logged", logged.lines, start.elapsed());
    let watched = thread::scope(|scope| {
        let watched = scope.spawn(|| done(&alerter, start));
        print_rate("indexed", logged.lines, done(&indexer, start));
        watched.join().expect("it does not panic")
    });
    print_rate("watched", logged.lines, watched);
    let behind = archiver.lag();
    println!("   ... the archive, meanwhile, is {behind} lines behind, and gets a faster disk");
    archive.has_fast_disk.store(true, Ordering::Relaxed);
    print_rate("archived", logged.lines, done(&archiver, start));
    println!("   {} lines cut, {} with bytes that are no text", logged.cut, logged.replaced);

    let watch = watch.lock().unwrap();
    println!("\n2. The alerter has seen {} errors and raised {} alerts.", watch.errors, watch.alerts);
    print_some(&watch.told, 6);
    let index = index.lock().unwrap();
    println!("\n3. The index: {} words from {} lines in {} batches.", index.words.len(), index.lines, index.batches);
    search(log, &index, "error")?;

    assert_eq!((index.lines, watch.lines), (logged.lines, logged.lines), "each reads everything");
    assert_eq!(watch.errors, logged.errors);
    let archived = (archive.lines.load(Ordering::Relaxed), archive.bytes.load(Ordering::Relaxed));
    assert_eq!(archived, (logged.lines, logged.bytes));
    assert_eq!(archive.out_of_order.load(Ordering::Relaxed), 0, "lines of one application keep their order");
    assert_eq!(log.len(), logged.lines, "reading takes nothing away");
    if made_up {
        assert!(behind > logged.lines / 2, "who is slow holds up nobody");
        assert!(index.batches * 20 < index.lines, "the index is written in batches");
        assert_eq!((watch.alerts, watch.told.len()), (8, 16), "one bad while per application, and its end");
    }
    Ok(logged)
}

/// How long after `start` a group had read everything.
fn done(group: &Group<Line>, start: Instant) -> Duration {
    while group.lag() > 0 {
        assert!(start.elapsed() < SOON, "{} did not come to the end", group.name());
        thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn print_rate(what: &str, lines: u64, took: Duration) {
    println!("   {what:<9} {lines:>8} lines {:>10.0} a second", lines as f64 / took.as_secs_f64());
}

fn print_some(lines: &[String], most: usize) {
    lines.iter().take(most).for_each(|line| println!("   {line}"));
    if lines.len() > most {
        println!("   ... and {} more", lines.len() - most);
    }
}

/// The index knows where the lines are; they are read from the log.
fn search(log: &Log<Line>, index: &indexer::Index, word: &str) -> Result<(), LogError> {
    let places = index.words.get(word);
    println!("   {word:?} is in {} of them", places.map_or(0, |places| places.len()));
    for &(partition, offset) in places.into_iter().flatten().take(2) {
        let line = log.read(partition, offset)?;
        assert!(line.text.to_lowercase().contains(word), "{}", line.text);
        println!("   {partition}:{offset} {}, line {}: {}", line.app, line.number + 1, start_of(&line.text));
    }
    Ok(())
}

fn start_of(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '.' } else { c }).take(80).collect()
}

/// Groups that come when everything has been read long ago.
fn late_groups(log: &Log<Line>, total: u64) -> Result<(), Box<dyn Error>> {
    println!("\n4. Late groups.");
    let auditor = log.group("auditor").start(Start::Earliest)?;
    let mut reader = auditor.reader();
    let mut times: Vec<SystemTime> = Vec::new();
    let start = Instant::now();
    while let Ok(line) = reader.try_recv() {
        times.push(line.published_at());
        auditor.commit(line.partition(), line.offset())?;
    }
    print_rate("replayed", times.len() as u64, start.elapsed());
    assert_eq!((times.len() as u64, auditor.lag()), (total, 0));

    times.sort_unstable();
    let (Some(&first), Some(&middle)) = (times.first(), times.get(times.len() / 2)) else { return Ok(()) };
    let expected = times.iter().filter(|&&time| time >= middle).count() as u64;
    let detective = log.group("detective").start(Start::Time(middle))?;
    let mut reader = detective.reader();
    let mut since = 0;
    while let Ok(line) = reader.try_recv() {
        assert!(line.published_at() >= middle, "{}:{} is older", line.partition(), line.offset());
        detective.commit(line.partition(), line.offset())?;
        since += 1;
    }
    println!("   from {:.1?} after the first line on: {since} of {total} lines", middle.duration_since(first)?);
    assert_eq!(since, expected);
    Ok(())
}

/// The same lines once more, into a log that keeps little.
fn retention(broker: &Broker, log: &Log<Line>, made_up: bool) -> Result<(), Box<dyn Error>> {
    println!("\n5. The same lines into a log that keeps {KEPT_BYTES} bytes of each of its {PARTITIONS} partitions.");
    let keep = Retention::bytes(KEPT_BYTES, |line: &Line| line.text.len());
    let short: Log<Line> = broker.log("short").partitions(PARTITIONS).retain(keep).declare()?;
    let behind = short.group("behind").start(Start::Earliest)?;
    let copier = log.group("copier").start(Start::Earliest)?;
    let to = short.clone();
    // The text is shared between the two logs, not copied.
    copier.consumer().start(move |line: &Record<Line>| _ = to.append(line.to_message()).expect("the broker runs"))?;
    done(&copier, Instant::now());

    let mut read: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let mut reader = behind.reader();
    let mut gone = 0;
    loop {
        match reader.try_recv() {
            Ok(line) => {
                let (lines, bytes) = read.entry(line.partition()).or_default();
                (*lines, *bytes) = (*lines + 1, *bytes + line.text.len() as u64);
                behind.commit(line.partition(), line.offset())?;
            }
            Err(trimmed @ LogError::Trimmed { partition, asked, oldest }) => {
                println!("   {trimmed}: go on there");
                gone += oldest - asked;
                behind.seek(partition, oldest)?;
            }
            Err(LogError::Empty) => break,
            Err(other) => return Err(other.into()),
        }
    }
    for (partition, (lines, bytes)) in &read {
        println!("   partition {partition}: {lines:>5} lines of {bytes:>6} bytes are left");
        assert!(*bytes <= KEPT_BYTES * 5 / 4 + apps::LONGEST as u64 * 3, "retention bounds the memory");
    }
    let stats = short.stats();
    println!("   {} appended, {} kept, {} trimmed", stats.appended, stats.retained, stats.trimmed);
    assert_eq!((stats.appended, stats.retained + stats.trimmed), (log.len(), log.len()));
    let lines: u64 = read.values().map(|(lines, _)| lines).sum();
    assert_eq!((lines, gone, behind.lag()), (stats.retained, stats.trimmed, 0), "who comes too late is told of it");
    assert!(!made_up || stats.trimmed > stats.retained);
    Ok(())
}
