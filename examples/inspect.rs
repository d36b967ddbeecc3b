//! What is in the file of a broker: streams, messages, dead letters, and who has it open.
//!
//! **Situation.** A program keeps its queues in a file and does not do what it should. What is in there? The program
//! is running and must not be disturbed, or was killed and must not be started before somebody has looked.
//!
//! **What the queue gives.** The file is a SQLite database, and `Inspector` reads it beside whoever has it open. It
//! changes nothing and keeps nobody waiting.
//!
//! **What to expect on screen.** The size of the file and of its log, its format, who has it; each stream with its
//! settings, how many items it has, how many of those wait for their time, and the age of the oldest. With the name of
//! a stream, its first items: key, headers, attempts, payload (as text if it is text), and of a dead letter why it is
//! one. What a queue could not decode is in a stream of its name and of the kind `undecodable`, and shown after it
//! (alone as `jobs.undecodable`), with what the codec said and the version of the bytes. A partition of a log is a stream too (`lines/0`), and shows how far each group is.
//!
//! Nothing is written. Only if somebody has copied the file with its log (`-wal`) but without the log's index
//! (`-shm`), SQLite makes that index. To find out whether its holder lives, the lock is asked for and given back.
//!
//! Exit code 2: the arguments or the file are not what is needed.
//!
//! `cargo run --release --features sqlite --example inspect -- PATH [STREAM] [--limit n]`

use postroom::store::{Inspector, Item, Limit, Reader, Row, StoreError, StreamInfo};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::exit;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: inspect PATH [STREAM] [--limit n]   (n items of the stream, 10 unless told)";
/// The kind of streams of what could not be decoded.
const UNDECODABLE: &str = "undecodable";
/// Longer ones are cut.
const LONGEST: usize = 400;

fn main() {
    let text = |arg: std::ffi::OsString| arg.into_string().unwrap_or_else(|arg| refuse(&format!("{arg:?} is no text")));
    let asked = Asked::from_arguments(std::env::args_os().skip(1).map(text)).unwrap_or_else(|problem| refuse(&problem));
    let report = report(&asked).unwrap_or_else(|problem| refuse(&problem));
    // Whoever reads may have seen enough.
    let _ = std::io::stdout().write_all(report.as_bytes());
}

fn refuse(problem: &str) -> ! {
    eprintln!("inspect: {problem}");
    exit(2);
}

struct Asked {
    path: String,
    stream: Option<String>,
    limit: usize,
}

impl Asked {
    fn from_arguments(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut names, mut limit) = (Vec::new(), 10);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--help" | "-h" => help(),
                "--limit" => {
                    let n = args.next().ok_or_else(|| format!("--limit needs a number\n{USAGE}"))?;
                    limit = n.parse().map_err(|e| format!("--limit {n}: {e}\n{USAGE}"))?;
                }
                other if other.starts_with("--") => return Err(format!("unknown argument {other}\n{USAGE}")),
                _ => names.push(arg),
            }
        }
        let mut names = names.into_iter();
        let path = names.next().ok_or_else(|| format!("which file?\n{USAGE}"))?;
        let stream = names.next();
        match names.next() {
            None => Ok(Self { path, stream, limit }),
            Some(more) => Err(format!("one stream at a time, and what is {more}?\n{USAGE}")),
        }
    }
}

fn help() -> ! {
    println!("{USAGE}\n");
    let header = include_str!("inspect.rs").lines().map_while(|line| line.strip_prefix("//!"));
    header.for_each(|line| println!("{}", line.strip_prefix(' ').unwrap_or(line)));
    exit(0);
}

fn report(asked: &Asked) -> Result<String, String> {
    let inspector = Inspector::open(&asked.path).map_err(|e| e.to_string())?;
    let mut out = String::new();
    describe_file(&mut out, &inspector).map_err(|e| e.to_string())?;
    let known = inspector.streams().map_err(|e| e.to_string())?;
    let chosen =
        known.iter().filter(|stream| asked.stream.as_ref().is_some_and(|name| is_called(stream, name))).count();
    match &asked.stream {
        Some(name) if chosen == 0 => return Err(unknown_stream(name, &known)),
        _ => {}
    }
    // One moment for all of it.
    let lines = inspector.look(|reader| match &asked.stream {
        None => overview(reader),
        Some(name) => items_of(reader, name, asked.limit),
    });
    Ok(out + &lines.map_err(|e| e.to_string())?)
}

fn unknown_stream(name: &str, known: &[StreamInfo]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for stream in known.iter().filter(|stream| !stream.name.is_empty()) {
        if !names.contains(&stream.name.as_str()) {
            names.push(&stream.name);
        }
    }
    format!("no stream {name:?} in it; there are: {}", if names.is_empty() { "none".into() } else { names.join(", ") })
}

/// What a queue could not decode also has the name of the queue that shows it to the program.
fn is_called(stream: &StreamInfo, name: &str) -> bool {
    stream.name == name || stream.kind == UNDECODABLE && name.strip_suffix(".undecodable") == Some(&stream.name)
}

fn describe_file(out: &mut String, inspector: &Inspector) -> Result<(), StoreError> {
    let (file, log) = inspector.sizes()?;
    let holder = match inspector.holder() {
        Ok(None) => "nobody".to_owned(),
        Ok(Some(holder)) if holder.pid == 0 => holder.to_string(),
        Ok(Some(holder)) => {
            let since = age(holder.since.saturating_mul(1_000_000_000));
            format!("process {} on {}, opened {since}", holder.pid, shown(&holder.host))
        }
        Err(error) => format!("cannot be told: {error}"),
    };
    let _ = writeln!(out, "file     {}", inspector.path().display());
    let _ = writeln!(out, "format   {}", inspector.format());
    let _ = writeln!(out, "size     {file} bytes, and {log} in the log");
    let _ = writeln!(out, "held by  {holder}\n");
    Ok(())
}

fn overview(reader: &Reader<'_>) -> Result<String, StoreError> {
    let mut out =
        format!("{:<14} {:<24} {:>8} {:>8}  {:<14} settings\n", "kind", "stream", "items", "waiting", "oldest");
    for stream in reader.streams()? {
        let waiting = reader.count_resting(stream.id)?;
        let oldest = reader.read(stream.id, 0, Limit::items(1))?.pop().map(|row| age(row.item.published_at));
        let (kind, name, settings) = (shown(&stream.kind), shown(&stream.name), shown(&stream.settings));
        let (count, oldest) = (stream.count, oldest.unwrap_or_default());
        let line = format!("{kind:<14} {name:<24} {count:>8} {waiting:>8}  {oldest:<14} {settings}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    Ok(out)
}

fn items_of(reader: &Reader<'_>, name: &str, limit: usize) -> Result<String, StoreError> {
    let mut out = String::new();
    for stream in reader.streams()?.iter().filter(|stream| is_called(stream, name)) {
        // Every queue has one, and hardly any has something in it.
        if stream.kind == UNDECODABLE && stream.count == 0 && stream.name == name {
            continue;
        }
        let _ = writeln!(out, "{} {}: {} items", shown(&stream.kind), shown(&stream.name), stream.count);
        if stream.kind == "log" {
            describe_partition(&mut out, reader, stream)?;
        }
        let rows = reader.read(stream.id, 0, Limit::items(limit).bytes(64 << 20))?;
        rows.iter().for_each(|row| describe_item(&mut out, row));
        let more = stream.count.saturating_sub(rows.len() as u64);
        if more > 0 {
            let _ = writeln!(out, "  and {more} more");
        }
    }
    Ok(out)
}

/// Where a partition of a log begins and ends, and how far each group is.
fn describe_partition(out: &mut String, reader: &Reader<'_>, stream: &StreamInfo) -> Result<(), StoreError> {
    let oldest = reader.first(stream.id)?.unwrap_or(stream.next);
    let _ = writeln!(out, "  offsets from {oldest}, the next is {}", stream.next);
    for (name, value) in reader.marks(stream.id, None, 1000)? {
        let (name, value) = (String::from_utf8_lossy(&name), String::from_utf8_lossy(&value));
        if let Some((group, at)) = name.strip_prefix("group/").zip(value.parse::<u64>().ok()) {
            let behind = stream.next.saturating_sub(at);
            let _ = writeln!(out, "  group {} goes on at {at}, {behind} behind", shown(group));
        }
    }
    Ok(())
}

fn describe_item(out: &mut String, row: &Row) {
    let item = &row.item;
    // What the columns have no place for, as the queue notes it.
    let noted: Value = item.extra.as_deref().and_then(|extra| serde_json::from_slice(extra).ok()).unwrap_or_default();
    let letter = &noted["letter"];
    let attempts = letter["attempts"].as_u64().unwrap_or(item.attempts.into());
    let published = letter["published_at"].as_u64().unwrap_or(item.published_at);
    let _ = write!(out, "  {}: id {}, published {}, attempts {attempts}", row.seq, item.id, age(published));
    // Of what could not be decoded, its queue's own notes are one level further down.
    let former = &letter["former"];
    let time = |known: Option<u64>, name| known.or_else(|| former[name].as_u64());
    let times = [("due", time(item.due_at, "due_at")), ("expires", time(item.expires_at, "expires_at"))];
    times.into_iter().for_each(|(what, time)| _ = time.map(|time| write!(out, ", {what} {}", age(time))));
    describe_envelope(out, item);
    if letter.is_object() {
        let (queue, at) = (letter["queue"].as_str().unwrap_or("?"), letter["at"].as_u64().unwrap_or(0));
        let _ =
            write!(out, "\n     dead letter of {}, {}: {}", shown(queue), age(at), shown(&reason(&letter["reason"])));
    }
    let before = &former["extra"]["letter"]["reason"];
    if !before.is_null() {
        let _ = write!(out, ", and before that: {}", shown(&reason(before)));
    }
    if former.is_object() || item.schema > 0 {
        let _ = write!(out, "\n     version {} of its type, {} bytes", item.schema, item.payload.len());
    }
    let history = if letter.is_object() { &letter["history"] } else { &noted["history"] };
    if let Some(error) = history.as_array().and_then(|failed| failed.last()?["error"].as_str()) {
        let _ = write!(out, "\n     last error: {}", shown(error));
    }
    let _ = writeln!(out, "\n     {}", payload(&item.payload));
}

fn describe_envelope(out: &mut String, item: &Item) {
    if let Some(key) = &item.key {
        let _ = write!(out, ", key {}", shown(key));
    }
    if !item.routing_key.is_empty() {
        let _ = write!(out, ", routing key {}", shown(&item.routing_key));
    }
    if item.priority > 0 {
        let _ = write!(out, ", priority {}", item.priority);
    }
    for (name, value) in &item.headers {
        let _ = write!(out, "\n     {}: {}", shown(name), shown(value));
    }
}

/// `"key_dropped"`, or `{"rejected": "words"}`.
fn reason(reason: &Value) -> String {
    match reason.as_object().and_then(|object| object.iter().next()) {
        Some((kind, words)) => format!("{kind}: {}", words.as_str().unwrap_or_default()),
        None => reason.as_str().unwrap_or("?").replace('_', " "),
    }
}

fn payload(bytes: &[u8]) -> String {
    let is_text = |text: &&str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    match std::str::from_utf8(bytes).ok().filter(is_text) {
        Some("") => "nothing".to_owned(),
        Some(text) => shown(text),
        None => {
            let start: String = bytes.iter().take(32).map(|byte| format!(" {byte:02x}")).collect();
            format!("{} bytes:{start}{}", bytes.len(), if bytes.len() > 32 { " ..." } else { "" })
        }
    }
}

/// On one line, not too long, and harmless to a terminal.
fn shown(text: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let mut out: String = text.chars().take(LONGEST).map(one).collect();
    if text.chars().nth(LONGEST).is_some() {
        let _ = write!(out, "... ({} bytes)", text.len());
    }
    out
}

/// A time in nanoseconds, as seen from now.
fn age(time: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Duration::from_nanos(time);
    match now.checked_sub(time) {
        Some(past) => format!("{} ago", rounded(past)),
        None => format!("in {}", rounded(time.saturating_sub(now))),
    }
}

fn rounded(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
