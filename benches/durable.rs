//! The store beside a bare file to which one thread appends, both with group commit: publish and acknowledgement of
//! 128 bytes each. Only the ratios mean something.
//!
//! `cargo bench --features sqlite --bench durable [rounds]`; with `ONLY=text` in the environment, the lines whose name
//! has that text; with `STATS=1`, what the store counted.

#![allow(missing_docs)]

use postroom::store::{Batch, Durability, Item, Limit, Options, Seqs, Store, StreamId, Ticket};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PAYLOAD: usize = 128;
const IN_FLIGHT: usize = 1024;
const BACKLOG: u64 = 1_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if let [command, path] = arguments.as_slice()
        && command == "reopen"
    {
        return reopen(Path::new(path));
    }
    let rounds = arguments.first().and_then(|n| n.parse().ok()).unwrap_or(7);
    let sync = Durability::Sync;
    for (name, durability, producers, messages) in [
        ("Sync, 1 producer that waits", sync, 1, 600),
        ("Sync, 8 producers that wait", sync, 8, 600),
        ("Sync, 32 producers that wait", sync, 32, 300),
        ("Buffered, 1 producer that waits", Durability::Buffered, 1, 10_000),
    ] {
        compare(name, rounds, |target| waiting(target, durability, producers, messages));
    }
    for (name, durability) in [("Sync", sync), ("Buffered", Durability::Buffered)] {
        let name = format!("{name}, 1 producer with {IN_FLIGHT} in flight");
        compare(&name, rounds, |target| pipelined(target, durability, 200_000));
    }
    if std::env::var_os("ONLY").is_none() {
        backlog();
    }
}

/// One line: messages per second of both, and the median of the ratios of neighbouring runs.
fn compare(name: &str, rounds: usize, run: impl Fn(&dyn Target) -> f64) {
    if std::env::var("ONLY").is_ok_and(|only| !name.contains(&only)) {
        return;
    }
    let (mut stores, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut store_cpu, mut bare_cpu) = (0.0, 0.0);
    for _ in 0..rounds {
        let start = cpu_seconds();
        let bare = in_folder(|folder| run(&Bare::open(&folder.join("bare"))));
        let middle = cpu_seconds();
        let store = in_folder(|folder| run(&Durable::open(&folder.join("store.db"))));
        bare_cpu += middle - start;
        store_cpu += cpu_seconds() - middle;
        ratios.push(store / bare);
        stores.push(store);
        bares.push(bare);
    }
    let spread = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        (v[0], v[v.len() / 2], v[v.len() - 1])
    };
    let (low, middle, high) = spread(&mut ratios);
    println!(
        "{name:40} bare {:>9.0}/s  store {:>9.0}/s  ratio {middle:.2} ({low:.2} to {high:.2}); CPU time {:.1} x",
        spread(&mut bares).1,
        spread(&mut stores).1,
        store_cpu / bare_cpu
    );
}

/// Of all threads of this process; zero where that cannot be read.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().filter_map(|f| f.parse().ok()).collect();
    // The state, the third field, is no number; user and system time are the fourteenth and fifteenth.
    fields.get(10..12).map_or(0.0, |times| (times[0] + times[1]) / 100.0)
}

fn in_folder<R>(work: impl FnOnce(&Path) -> R) -> R {
    let folder: PathBuf = std::env::temp_dir().join(format!("postroom-bench-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for temporary files");
    let result = work(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// Where messages are published and acknowledged.
trait Target: Sync {
    fn publish(&self, payload: &[u8; PAYLOAD], durability: Durability) -> Published;
    fn ack(&self, seqs: u64);
    fn finish(&self);
}

enum Published {
    Store(Ticket),
    Bare(Arc<Slot>),
}

impl Published {
    fn wait(self) -> u64 {
        match self {
            Self::Store(ticket) => ticket.wait().map(|seqs: Seqs| seqs[0]).expect("committed"),
            Self::Bare(slot) => slot.wait(),
        }
    }
}

fn waiting(target: &dyn Target, durability: Durability, producers: usize, messages: usize) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                for n in 0..messages {
                    let seq = target.publish(&[n as u8; PAYLOAD], durability).wait();
                    target.ack(seq);
                }
            });
        }
    });
    target.finish();
    (producers * messages) as f64 / start.elapsed().as_secs_f64()
}

fn pipelined(target: &dyn Target, durability: Durability, messages: usize) -> f64 {
    let start = Instant::now();
    let mut under_way = VecDeque::with_capacity(IN_FLIGHT);
    for n in 0..messages {
        if under_way.len() == IN_FLIGHT {
            let oldest: Published = under_way.pop_front().expect("not empty");
            target.ack(oldest.wait());
        }
        under_way.push_back(target.publish(&[n as u8; PAYLOAD], durability));
    }
    under_way.into_iter().for_each(|published| target.ack(published.wait()));
    target.finish();
    messages as f64 / start.elapsed().as_secs_f64()
}

struct Durable(Store, StreamId);

impl Durable {
    fn open(path: &Path) -> Self {
        let store = Store::open(path, Options::new()).expect("opens");
        let stream = store.declare("queue", "q", "").expect("declared");
        Self(store, stream)
    }
}

impl Target for Durable {
    fn publish(&self, payload: &[u8; PAYLOAD], durability: Durability) -> Published {
        let item = Item {
            id: 1,
            published_at: 1_700_000_000_000_000_000,
            routing_key: "order.placed".to_owned(),
            payload: payload.to_vec(),
            ..Item::default()
        };
        let ticket = self.0.submit_for_ticket(Batch::new().insert(self.1, item), durability);
        Published::Store(ticket.expect("open"))
    }

    fn ack(&self, seq: u64) {
        self.0.submit_lazily(Batch::new().delete(self.1, seq)).expect("open");
    }

    fn finish(&self) {
        self.0.flush(Durability::Buffered).expect("committed");
        if std::env::var_os("STATS").is_some() {
            let stats = self.0.stats();
            let per = stats.batches as f64 / stats.commits as f64;
            println!(
                "  {} commits, {} syncs, {per:.0} batches each, {} checkpoints",
                stats.commits, stats.syncs, stats.checkpoints
            );
        }
    }
}

/// A file, a thread that appends what has arrived, and nothing else.
struct Bare {
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    waiting: Vec<Arc<Slot>>,
    sync: bool,
    closing: bool,
    next: u64,
}

#[derive(Default)]
struct Slot(Mutex<Option<u64>>, Condvar);

impl Slot {
    fn wait(&self) -> u64 {
        let mut seq = self.0.lock().unwrap();
        loop {
            if let Some(seq) = *seq {
                return seq;
            }
            seq = self.1.wait(seq).unwrap();
        }
    }
}

impl Bare {
    fn open(path: &Path) -> Self {
        let mut file = File::create(path).expect("a file");
        let inbox = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let its = Arc::clone(&inbox);
        let writer = thread::spawn(move || {
            let mut next = 0;
            loop {
                let mut state = its.0.lock().unwrap();
                // As in the store, acknowledgements alone wait for company.
                while state.waiting.is_empty() && !state.closing {
                    state = its.1.wait(state).unwrap();
                }
                let (bytes, waiting) = (std::mem::take(&mut state.bytes), std::mem::take(&mut state.waiting));
                let (sync, closing) = (std::mem::take(&mut state.sync), state.closing);
                drop(state);
                file.write_all(&bytes).expect("written");
                if sync {
                    file.sync_data().expect("synced");
                }
                // As in the store, all answers first, so that who waits for many is woken once.
                for slot in &waiting {
                    *slot.0.lock().unwrap() = Some(next);
                    next += 1;
                }
                waiting.iter().for_each(|slot| slot.1.notify_one());
                if closing {
                    return;
                }
            }
        });
        Self { inbox, writer: Some(writer) }
    }
}

impl Target for Bare {
    fn publish(&self, payload: &[u8; PAYLOAD], durability: Durability) -> Published {
        let slot = Arc::new(Slot::default());
        let mut state = self.inbox.0.lock().unwrap();
        state.next += 1;
        let header = state.next.to_le_bytes();
        state.bytes.extend_from_slice(&header);
        state.bytes.extend_from_slice(payload);
        state.sync |= durability == Durability::Sync;
        state.waiting.push(Arc::clone(&slot));
        let first = state.waiting.len() == 1;
        drop(state);
        if first {
            self.inbox.1.notify_one();
        }
        Published::Bare(slot)
    }

    fn ack(&self, seq: u64) {
        let mut state = self.inbox.0.lock().unwrap();
        state.bytes.extend_from_slice(&seq.to_le_bytes());
    }

    fn finish(&self) {}
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.inbox.0.lock().unwrap().closing = true;
        self.inbox.1.notify_one();
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

/// Opens a file with a large backlog in a process of its own, whose memory is then its own too.
fn backlog() {
    for size in [PAYLOAD, 1024] {
        in_folder(|folder| {
            let path = folder.join("store.db");
            fill(&path, size);
            let me = std::env::current_exe().expect("this program");
            let output = std::process::Command::new(me).arg("reopen").arg(&path).output().expect("runs");
            print!("{BACKLOG} messages of {size} bytes: {}", String::from_utf8_lossy(&output.stdout));
        });
    }
}

fn fill(path: &Path, size: usize) {
    let store = Store::open(path, Options::new()).expect("opens");
    let stream = store.declare("queue", "q", "").expect("declared");
    for _ in 0..BACKLOG / 1000 {
        let item = || Item { payload: vec![7; size], ..Item::default() };
        let batch = (0..1000).fold(Batch::new(), |batch, _| batch.insert(stream, item()));
        store.wait_for_room();
        store.submit(batch, Durability::Buffered, |result| assert!(result.is_ok())).expect("open");
    }
    store.flush(Durability::Sync).expect("committed");
    // As if killed: the log is not emptied.
    std::mem::forget(store.clone());
    for end in ["", "-wal"] {
        let file = format!("{}{end}", path.display());
        std::fs::copy(&file, format!("{file}.copy")).expect("copied");
    }
    store.close().expect("closed");
    for end in ["", "-wal"] {
        let file = format!("{}{end}", path.display());
        std::fs::rename(format!("{file}.copy"), file).expect("moved");
    }
}

fn reopen(path: &Path) {
    let start = Instant::now();
    let store = Store::open(path, Options::new()).expect("opens");
    let reader = store.reader().expect("reads");
    let info = reader.stream("queue", "q").expect("reads").expect("is there");
    let first = reader.read_ready(info.id, 0, Limit::items(1024)).expect("reads");
    let ready: Duration = start.elapsed();
    assert_eq!((info.count, first.len()), (BACKLOG, 1024));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!(
        "first delivery after {:.1} ms, {}",
        ready.as_secs_f64() * 1e3,
        peak.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    );
}
