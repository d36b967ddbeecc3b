//! A durable log that holds more than memory does: what is not among its latest records is read from the file, and
//! nobody can tell.
#![cfg(feature = "sqlite")]
// An allocator that counts cannot be had without it.
#![allow(unsafe_code, missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::{Bomb, eventually, quiet, within};
use postroom::store::{Batch, Durability};
use postroom::{
    Broker, Codec, CodecError, Event, Failure, Group, Log, LogError, ManualClock, Message, Record, Replay, Retention,
    Retry, Start,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = ALLOCATED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests of this file share the count: one has it alone, the others side by side.
static ALONE: std::sync::RwLock<()> = std::sync::RwLock::new(());

fn among_others() -> std::sync::RwLockReadGuard<'static, ()> {
    ALONE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

const LIMIT: Duration = Duration::from_secs(120);
const BUFFERED: Durability = Durability::Buffered;
/// Records in memory. A quarter of it is read at once.
const WINDOW: usize = 8;

fn open(folder: &Folder) -> Broker {
    Broker::open(folder.file()).expect("the file is free")
}

fn numbers(broker: &Broker) -> Log<u64> {
    broker.log("numbers").durable(BUFFERED).window(WINDOW).declare().unwrap()
}

/// In an earlier run.
fn filled(numbers: std::ops::Range<u64>) -> Folder {
    let folder = Folder::new();
    self::numbers(&open(&folder)).append_batch(numbers).unwrap();
    folder
}

fn earliest(log: &Log<u64>, name: &str) -> Group<u64> {
    log.group(name).retry(Retry::immediate(3)).start(Start::Earliest).unwrap()
}

/// What a reader gets without committing any of it.
fn rest(group: &Group<u64>) -> Vec<u64> {
    let mut reader = group.reader();
    std::iter::from_fn(|| reader.try_recv().ok()).map(|record| **record).collect()
}

type Seen = Arc<Mutex<Vec<u64>>>;

fn collect(group: &Group<u64>) -> Seen {
    let seen = Seen::default();
    let sees = Arc::clone(&seen);
    group.consumer().start(move |record: &Record<u64>| sees.lock().unwrap().push(***record)).unwrap();
    seen
}

// ---- memory ------------------------------------------------------------------------------------------

/// The most that is allocated beyond what there was, while a log of so many records is opened and read.
fn peak_of(records: u64) -> usize {
    let folder = Folder::new();
    let declare = |broker: &Broker| -> Log<String> { broker.log("lines").durable(BUFFERED).declare().unwrap() };
    {
        let broker = open(&folder);
        let log = declare(&broker);
        for from in (0..records).step_by(10_000) {
            log.append_batch((from..records.min(from + 10_000)).map(|n| format!("{n:0100}"))).unwrap();
        }
        assert_eq!(log.len(), records);
        assert!(broker.shutdown(LIMIT).is_clean());
    }
    let before = ALLOCATED.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let broker = open(&folder);
    let log = declare(&broker);
    assert_eq!(log.len(), records);
    let groups = ["one", "other"].map(|name| log.group(name).start(Start::Earliest).unwrap());
    let next = groups.each_ref().map(|group| {
        let next = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&next);
        let check = move |line: &Record<String>| {
            assert_eq!(line.payload().parse(), Ok(counts.fetch_add(1, Ordering::SeqCst)));
        };
        group.consumer().start(check).unwrap();
        next
    });
    assert!(broker.wait_idle(LIMIT));
    assert!(next.iter().all(|next| next.load(Ordering::SeqCst) == records));
    PEAK.load(Ordering::SeqCst) - before
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let _alone = ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (few, many) = (peak_of(20_000), peak_of(200_000));
    assert!(many < few + few / 2, "{few} bytes for 20,000 records, {many} for 200,000");
    assert!(many < 8 << 20, "{many} bytes");
}

#[test]
fn appending_leaves_only_the_latest_in_memory() {
    let _alone = ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = Folder::new();
    let broker = open(&folder);
    let log: Log<Vec<u8>> = broker.log("blobs").durable_with(BUFFERED, Bytes).declare().unwrap();
    let append = |n: usize| (0..n).for_each(|_| _ = log.append(vec![1; 1000]).unwrap());
    append(6_000);
    let before = ALLOCATED.load(Ordering::SeqCst);
    append(12_000);
    let grown = ALLOCATED.load(Ordering::SeqCst).saturating_sub(before);
    assert!(grown < 3 << 20, "{grown} bytes of 12 MB");
    assert_eq!(log.len(), 18_000);
}

#[test]
fn a_few_large_records_fill_memory_as_little_as_many_small_ones() {
    let _alone = ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    const MIB: usize = 1 << 20;
    let folder = Folder::new();
    let declare =
        |broker: &Broker| -> Log<Vec<u8>> { broker.log("blobs").durable_with(BUFFERED, Bytes).declare().unwrap() };
    let before = ALLOCATED.load(Ordering::SeqCst);
    {
        let broker = open(&folder);
        let log = declare(&broker);
        let append = |n: u8| log.append(vec![n; MIB]).unwrap();
        (0..60).for_each(|n| _ = append(n));
        let there = ALLOCATED.load(Ordering::SeqCst).saturating_sub(before);
        assert!((12 * MIB..30 * MIB).contains(&there), "{there} bytes of 60 MiB");
        assert_eq!((log.len(), log.read(0, 3).unwrap().payload()[0]), (60, 3));
    }
    let before = ALLOCATED.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let broker = open(&folder);
    let log = declare(&broker);
    let mut reader = log.group("g").start(Start::Earliest).unwrap().reader();
    for n in 0..60 {
        assert_eq!(reader.recv().unwrap().payload()[..], [n; MIB]);
    }
    let peak = PEAK.load(Ordering::SeqCst) - before;
    assert!(peak < 20 * MIB, "{peak} bytes of 60 MiB");
    assert_eq!((log.stats().retained, log.stats().lost), (60, 0));
}

/// As it is.
struct Bytes;

impl Codec<Vec<u8>> for Bytes {
    fn name(&self) -> &str {
        "bytes"
    }
    fn encode(&self, bytes: &Vec<u8>) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.clone())
    }
    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

// ---- nobody can tell ---------------------------------------------------------------------------------

#[test]
fn a_group_far_behind_sees_everything_once_and_in_order_while_others_append() {
    let _guard = among_others();
    within(LIMIT, || {
        let folder = filled(0..2_000);
        let broker = open(&folder);
        let log = numbers(&broker);
        let groups = ["a", "b", "c"].map(|name| earliest(&log, name));
        let seen = groups.each_ref().map(collect);
        let (later, tail) = (log.clone(), log.group("tail").start(Start::Latest).unwrap());
        let at_the_end = collect(&tail);
        thread::spawn(move || (2_000..6_000).for_each(|n| drop(later.append_deferred(n)))).join().unwrap();
        flush(&broker);
        assert!(broker.wait_idle(LIMIT));
        for seen in seen {
            assert_eq!(*seen.lock().unwrap(), (0..6_000).collect::<Vec<_>>());
        }
        assert_eq!(*at_the_end.lock().unwrap(), (2_000..6_000).collect::<Vec<_>>());
        assert!(groups.iter().all(|group| group.lag() == 0 && group.stats().skipped == 0));
    });
}

#[test]
fn what_retention_removes_is_skipped_and_counted_and_nothing_else_is_missing() {
    let _guard = among_others();
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let retain = Retention::count(50);
        let log: Log<u64> = broker.log("short").retain(retain).durable(BUFFERED).window(WINDOW).declare().unwrap();
        let group = earliest(&log, "slow");
        let (seen, appended) = (Seen::default(), Arc::new(AtomicU64::new(0)));
        let (sees, progress) = (Arc::clone(&seen), Arc::clone(&appended));
        let slow = move |record: &Record<u64>| {
            assert_eq!(***record, record.offset());
            if record.offset() == 0 {
                eventually("it is behind", || progress.load(Ordering::SeqCst) > 2_000);
            }
            if record.offset().is_multiple_of(64) {
                thread::sleep(Duration::from_millis(3));
            }
            sees.lock().unwrap().push(***record);
        };
        group.consumer().start(slow).unwrap();
        for from in (0..8_000).step_by(20) {
            log.append_batch(from..from + 20).unwrap();
            appended.fetch_add(20, Ordering::SeqCst);
        }
        assert!(broker.wait_idle(LIMIT));
        let (seen, stats) = (seen.lock().unwrap(), group.stats());
        assert!(seen.windows(2).all(|two| two[0] < two[1]));
        assert!(seen.iter().rev().take(50).copied().eq((7_950..8_000).rev()));
        assert!(stats.skipped > 0, "it was too slow");
        // A record may have been in hand when it was trimmed.
        let gaps: u64 = seen.windows(2).map(|two| two[1] - two[0] - 1).sum::<u64>() + seen[0];
        assert_eq!(gaps, stats.skipped);
        assert_eq!(log.stats().appended, log.stats().retained + log.stats().trimmed);
    });
}

#[test]
fn a_reader_whose_record_was_trimmed_is_told_and_a_seek_helps() {
    let _guard = among_others();
    let folder = Folder::new();
    let broker = open(&folder);
    let declare = |broker: &Broker| -> Log<u64> {
        broker.log("short").retain(Retention::count(40)).durable(BUFFERED).window(WINDOW).declare().unwrap()
    };
    let log = declare(&broker);
    log.append_batch(0..40).unwrap();
    let group = earliest(&log, "g");
    let mut reader = group.reader();
    let first = reader.try_recv().unwrap();
    log.append_batch(40..100).unwrap();
    let oldest = log.oldest(0).unwrap();
    assert!(oldest > 50);
    let told = LogError::Trimmed { partition: 0, asked: 1, oldest };
    assert_eq!(reader.try_recv().unwrap_err(), told);
    assert_eq!((**first, log.read(0, 1).unwrap_err()), (0, told));
    group.seek(0, oldest).unwrap();
    assert_eq!(**reader.try_recv().unwrap(), oldest);
    drop((broker, log, group, reader));
    let log = declare(&open(&folder));
    assert_eq!((log.oldest(0), log.len()), (Ok(oldest), 100 - oldest));
}

#[test]
fn age_lets_go_of_what_nobody_has_read() {
    let _guard = among_others();
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let retain = || Retention::age(Duration::from_secs(60));
    let declare = |broker: &Broker| -> Log<u64> {
        broker.log("young").retain(retain()).durable(BUFFERED).window(WINDOW).declare().unwrap()
    };
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    for n in 0..30 {
        log.append_batch([2 * n, 2 * n + 1]).unwrap();
        simulation.advance(Duration::from_secs(1));
    }
    drop((broker, simulation, log));
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    assert_eq!((log.len(), log.oldest(0)), (60, Ok(0)));
    let group = earliest(&log, "g");
    simulation.advance(Duration::from_secs(40));
    let oldest = log.oldest(0).unwrap();
    assert!((18..=22).contains(&oldest), "{oldest}");
    assert_eq!(rest(&group).len(), 0, "it is told first");
    group.rewind(Start::Earliest).unwrap();
    assert_eq!(rest(&group), (oldest..60).collect::<Vec<_>>());
    drop(broker);
}

#[test]
fn a_group_begins_anywhere_in_the_file() {
    let _guard = among_others();
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, simulation) = simulated(&folder, &clock);
    let log = numbers(&broker);
    let times: Vec<SystemTime> = (0..100)
        .map(|n| {
            let now = simulation.now();
            log.append(n).unwrap();
            simulation.advance(Duration::from_secs(1));
            now
        })
        .collect();
    drop((broker, simulation, log));
    let (broker, simulation) = simulated(&folder, &clock);
    let log = numbers(&broker);
    log.append_batch(100..105).unwrap();
    let group = log.group("g").start(Start::Time(times[37])).unwrap();
    for (n, &time) in times.iter().enumerate() {
        group.rewind(Start::Time(time)).unwrap();
        assert_eq!(group.committed(0), Ok(n as u64));
        group.rewind(Start::Time(time - Duration::from_millis(1))).unwrap();
        assert_eq!(group.committed(0), Ok(n as u64));
    }
    group.rewind(Start::Time(simulation.now() + Duration::from_secs(1))).unwrap();
    assert_eq!(group.committed(0), Ok(105));
    for from in [0, 1, 50, 99, 103, 105] {
        group.seek(0, from).unwrap();
        assert_eq!(rest(&group), (from..105).collect::<Vec<_>>());
        assert_eq!(log.read(0, from).map(|record| **record).ok(), (from < 105).then_some(from));
    }
}

#[test]
fn batches_are_as_large_as_asked_for_and_come_again_whole() {
    let _guard = among_others();
    let folder = filled(0..100);
    let (broker, simulation) = simulated(&folder, &ManualClock::new());
    let log = numbers(&broker);
    let group = earliest(&log, "g");
    let batches = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&batches);
    let twice = move |records: &[Record<u64>]| {
        let batch: Vec<(u64, u32)> = records.iter().map(|record| (***record, record.attempt())).collect();
        sees.lock().unwrap().push(batch);
        if records[0].attempt() == 1 { Err(Failure::transient("again")) } else { Ok(()) }
    };
    group.consumer().start_batch(30, Duration::from_secs(1), twice).unwrap();
    simulation.run_until_idle();
    simulation.advance(Duration::from_secs(2));
    let batches = batches.lock().unwrap();
    let expected = [0..30, 30..60, 60..90, 90..100_u64]
        .into_iter()
        .flat_map(|range| [1, 2].map(|attempt| range.clone().map(|n| (n, attempt)).collect::<Vec<_>>()));
    assert_eq!(*batches, expected.collect::<Vec<_>>());
}

#[test]
fn what_fails_comes_again_and_becomes_a_dead_letter_with_its_payload() {
    let _guard = among_others();
    let folder = filled(0..50);
    let (broker, simulation) = simulated(&folder, &ManualClock::new());
    let log = numbers(&broker);
    let group = earliest(&log, "g");
    let seen = Seen::default();
    let sees = Arc::clone(&seen);
    let fails = move |record: &Record<u64>| {
        sees.lock().unwrap().push(***record);
        if ***record % 7 == 3 { Err(Failure::transient("no")) } else { Ok(()) }
    };
    group.consumer().start(fails).unwrap();
    simulation.run_until_idle();
    let times = |n: u64| if n % 7 == 3 { 4 } else { 1 };
    assert_eq!(*seen.lock().unwrap(), (0..50).flat_map(|n| std::iter::repeat_n(n, times(n))).collect::<Vec<_>>());
    let letters = group.dead_letters();
    let dead = std::iter::from_fn(|| letters.try_recv().ok()).map(|letter| **letter.payload().message());
    assert_eq!(dead.collect::<Vec<_>>(), (0..50).filter(|n| n % 7 == 3).collect::<Vec<_>>());
}

#[test]
fn a_reader_in_the_middle_of_a_partition_keeps_it_while_it_reads_on() {
    let _guard = among_others();
    let folder = filled(0..40);
    let broker = open(&folder);
    let hooks = Arc::new(Hooks::default());
    let log = hooks.declare(&broker);
    let group = earliest(&log, "g");
    let mut one = group.reader();
    assert_eq!(**one.try_recv().unwrap(), 0);
    let other = Arc::new(Mutex::new(group.reader()));
    let tries = Arc::clone(&other);
    let while_decoding = move || {
        // Unless it is the one that reads.
        if let Ok(mut other) = tries.try_lock() {
            assert_eq!(other.try_recv().unwrap_err(), LogError::Empty);
        }
    };
    assert!(hooks.while_decoding.set(Box::new(while_decoding)).is_ok());
    for n in 1..40 {
        assert_eq!(**one.try_recv().unwrap(), n);
        assert_eq!(other.lock().unwrap().try_recv().unwrap_err(), LogError::Empty);
    }
    assert_eq!((hooks.decoded.load(Ordering::SeqCst), log.stats().lost), (40, 0), "no panic while decoding");
    let mut other = other.lock().unwrap();
    group.commit(0, 9).unwrap();
    drop(one);
    assert_eq!(
        std::iter::from_fn(|| other.try_recv().ok()).map(|r| **r).collect::<Vec<_>>(),
        (10..40).collect::<Vec<_>>()
    );
}

#[test]
fn a_replay_keeps_its_pace_over_partitions_that_are_only_in_the_file() {
    let _guard = among_others();
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let declare = |broker: &Broker| -> Log<u64> {
        broker.log("ticks").partitions(3).durable(BUFFERED).window(WINDOW).declare().unwrap()
    };
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    for n in 0..60 {
        log.append(n).unwrap();
        simulation.advance(Duration::from_secs(1));
    }
    drop((broker, simulation, log));
    let (broker, simulation) = simulated(&folder, &clock);
    let log = declare(&broker);
    let group = log.group("g").replay(Replay::original_pace(2.0)).start(Start::Earliest).unwrap();
    // The first partition goes on in memory, and the earliest records are those of others.
    let last = log.append(60).unwrap();
    assert_eq!((last.partition, last.offset), (0, 20));
    group.commit(0, 19).unwrap();
    let seen = collect(&group);
    simulation.run_until_idle();
    for n in 1..=60 {
        let expected: Vec<u64> = (1..=n).filter(|n| n % 3 > 0 || *n == 60).collect();
        assert_eq!(*seen.lock().unwrap(), expected);
        simulation.advance(Duration::from_millis(500));
    }
    drop(broker);
}

#[test]
fn a_file_of_a_log_that_was_compacted_is_read_with_its_gaps() {
    let _guard = among_others();
    let folder = Folder::new();
    {
        let broker = open(&folder);
        let log: Log<u64> = broker.log("numbers").compact().durable(BUFFERED).declare().unwrap();
        log.append_batch((0..500).map(|n| Message::new(n).with_key((n % 97).to_string()))).unwrap();
        log.compact_now();
        assert_eq!(log.len(), 97);
        broker.shutdown(LIMIT);
    }
    let broker = open(&folder);
    let log = numbers(&broker);
    log.append_batch(500..520).unwrap();
    let expected: Vec<u64> = (403..520).collect();
    assert_eq!((log.len(), log.oldest(0)), (117, Ok(0)));
    assert_eq!(rest(&earliest(&log, "g")), expected);
    assert_eq!((log.read(0, 0).map(|record| record.offset()), log.stats().lost), (Ok(403), 0));
}

// ---- sharing, user code, failures --------------------------------------------------------------------

#[derive(Default)]
struct Hooks {
    decoded: AtomicU64,
    refuses: Option<u64>,
    log: OnceLock<(Log<u64>, Group<u64>)>,
    in_it: AtomicBool,
    while_decoding: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Hooks {
    fn declare(self: &Arc<Self>, broker: &Broker) -> Log<u64> {
        let codec = Meddler(Arc::clone(self));
        broker.log("numbers").durable_with(BUFFERED, codec).window(WINDOW).declare().unwrap()
    }
}

/// Its codec does with the log what it likes.
struct Meddler(Arc<Hooks>);

impl Codec<u64> for Meddler {
    fn name(&self) -> &str {
        "json"
    }
    fn encode(&self, n: &u64) -> Result<Vec<u8>, CodecError> {
        Ok(n.to_string().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        self.0.decoded.fetch_add(1, Ordering::SeqCst);
        self.0.while_decoding.get().into_iter().for_each(|meddles| meddles());
        if let Some((log, group)) = self.0.log.get() {
            let _ = (log.stats(), group.lag(), log.len(), group.stats());
            if !self.0.in_it.swap(true, Ordering::SeqCst) {
                log.append(1_000).unwrap();
                group.commit(0, 0).unwrap();
            }
        }
        let n = std::str::from_utf8(bytes)?.parse()?;
        if self.0.refuses == Some(n) {
            panic!("on purpose")
        }
        Ok(n)
    }
}

#[test]
fn groups_that_read_the_same_share_it() {
    let _guard = among_others();
    let folder = filled(0..64);
    let broker = open(&folder);
    let hooks = Arc::new(Hooks::default());
    let log = hooks.declare(&broker);
    assert_eq!(hooks.decoded.load(Ordering::SeqCst), 0, "nothing is read before anybody asks");
    let groups: Vec<_> = (0..5).map(|n| earliest(&log, &format!("{n}"))).collect();
    let mut readers: Vec<_> = groups.iter().map(Group::reader).collect();
    for n in 0..64 {
        for reader in &mut readers {
            assert_eq!(**reader.try_recv().unwrap(), n);
        }
    }
    assert_eq!(hooks.decoded.load(Ordering::SeqCst), 64);
}

#[test]
fn the_codec_may_use_the_log_it_belongs_to() {
    let _guard = among_others();
    within(LIMIT, || {
        let folder = filled(0..64);
        let broker = open(&folder);
        let hooks = Arc::new(Hooks::default());
        let log = hooks.declare(&broker);
        let group = earliest(&log, "g");
        hooks.log.set((log.clone(), group.clone())).unwrap();
        let seen = collect(&group);
        assert!(broker.wait_idle(LIMIT));
        let mut expected: Vec<u64> = (0..64).collect();
        expected.push(1_000);
        let mut seen = seen.lock().unwrap().clone();
        // What it has committed meanwhile does not come.
        seen.retain(|&n| n > 0);
        assert_eq!(seen, expected[1..]);
    });
}

#[test]
fn what_cannot_be_decoded_is_passed_over_put_apart_and_told_of_once() {
    let _guard = among_others();
    quiet();
    within(LIMIT, || {
        let folder = filled(0..64);
        let told = Arc::new(AtomicU64::new(0));
        let tells = Arc::clone(&told);
        let hook = move |event: &Event| {
            tells.fetch_add(u64::from(matches!(event, Event::Undecodable { .. })), Ordering::SeqCst);
        };
        let broker = Broker::builder().store(folder.file()).on_event(hook).build().unwrap();
        let hooks = Arc::new(Hooks { refuses: Some(31), ..Hooks::default() });
        let log = hooks.declare(&broker);
        let groups: Vec<_> = (0..4).map(|n| earliest(&log, &format!("{n}"))).collect();
        let seen: Vec<_> = groups.iter().map(collect).collect();
        assert!(broker.wait_idle(LIMIT));
        let expected: Vec<u64> = (0..64).filter(|&n| n != 31).collect();
        assert!(seen.iter().all(|seen| *seen.lock().unwrap() == expected));
        assert_eq!((told.load(Ordering::SeqCst), groups[0].lag(), groups[0].stats().skipped), (1, 0, 0));
        let stats = log.stats();
        assert_eq!((stats.recovered, stats.retained, stats.lost), (64, 63, 1));
        assert_eq!(log.read(0, 31).map(|record| record.offset()), Ok(32));
        drop((broker, log, groups));
        assert_eq!(numbers(&open(&folder)).len(), 63);
    });
}

#[test]
fn what_somebody_else_has_deleted_is_passed_over_and_counted() {
    let _guard = among_others();
    let folder = filled(0..64);
    let broker = open(&folder);
    let log = numbers(&broker);
    let store = broker.store().unwrap();
    let stream = store.reader().unwrap().stream("log", "numbers/0").unwrap().unwrap().id;
    store.commit(Batch::new().delete_range(stream, 10..20).delete(stream, 0), BUFFERED).unwrap();
    let expected: Vec<u64> = (1..10).chain(20..64).collect();
    assert_eq!(rest(&earliest(&log, "g")), expected);
    assert_eq!((log.len(), log.stats().lost), (53, 11));
}

#[test]
fn a_file_that_cannot_be_read_any_more_loses_and_hangs_nothing() {
    let _guard = among_others();
    within(LIMIT, || {
        let folder = filled(0..64);
        let broker = open(&folder);
        let log = numbers(&broker);
        let (group, by_hand) = (earliest(&log, "g"), earliest(&log, "h"));
        let mut reader = by_hand.reader();
        assert_eq!(**reader.recv().unwrap(), 0);
        broker.store().unwrap().close().unwrap();
        let seen = collect(&group);
        assert_eq!(**reader.recv().unwrap(), 1, "in memory");
        let not_read = LogError::NotRead { partition: 0 };
        assert_eq!(reader.recv().unwrap_err(), not_read);
        assert_eq!(reader.try_recv().unwrap_err(), not_read);
        assert_eq!((log.read(0, 40).unwrap_err(), log.len()), (not_read, 64));
        assert_eq!(group.rewind(Start::Time(SystemTime::UNIX_EPOCH)), Err(not_read));
        eventually("the worker rests", || broker.stats().logs[0].groups.len() == 2);
        assert!(seen.lock().unwrap().len() < 64 && by_hand.committed(0) == Ok(0));
        broker.shutdown(Duration::from_millis(100));
        drop((broker, log, group, by_hand, reader));
        let broker = open(&folder);
        assert_eq!(rest(&earliest(&numbers(&broker), "h")), (0..64).collect::<Vec<_>>());
    });
}

/// Its destructor asks the log how it is.
struct Asks(u64, Arc<OnceLock<Log<Asks>>>, #[allow(dead_code)] Option<Bomb>);

impl Drop for Asks {
    fn drop(&mut self) {
        if let Some(log) = self.1.get() {
            let _ = (log.stats(), log.len());
        }
    }
}

struct Asking(Arc<OnceLock<Log<Asks>>>);

impl Codec<Asks> for Asking {
    fn name(&self) -> &str {
        "asking"
    }
    fn encode(&self, asks: &Asks) -> Result<Vec<u8>, CodecError> {
        Ok(asks.0.to_string().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<Asks, CodecError> {
        let n: u64 = std::str::from_utf8(bytes)?.parse()?;
        Ok(Asks(n, Arc::clone(&self.0), n.is_multiple_of(5).then(|| Bomb)))
    }
}

#[test]
fn destructors_run_without_a_lock_and_may_panic() {
    let _guard = among_others();
    quiet();
    within(LIMIT, || {
        let folder = Folder::new();
        let own = Arc::new(OnceLock::new());
        let broker = open(&folder);
        let retain = Retention::count(100);
        let log = broker.log("asks").retain(retain).durable_with(BUFFERED, Asking(Arc::clone(&own)));
        let log: Log<Asks> = log.window(WINDOW).declare().unwrap();
        let _ = own.set(log.clone());
        let groups: Vec<_> = (0..3).map(|n| log.group(format!("{n}")).start(Start::Earliest).unwrap()).collect();
        let handled = Arc::new(AtomicU64::new(0));
        for group in &groups {
            let counts = Arc::clone(&handled);
            group.consumer().start(move |_: &Record<Asks>| _ = counts.fetch_add(1, Ordering::SeqCst)).unwrap();
        }
        let mut reader = log.group("by hand").start(Start::Earliest).unwrap().reader();
        for n in 0..400 {
            log.append(Asks(n, Arc::clone(&own), n.is_multiple_of(5).then(|| Bomb))).unwrap();
            let _ = reader.try_recv();
        }
        assert!(broker.wait_idle(LIMIT));
        assert!(handled.load(Ordering::SeqCst) > 300);
        drop(reader);
        groups.into_iter().for_each(|group| assert_eq!(group.lag(), 0));
    });
}
