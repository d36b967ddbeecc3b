//! Compaction keeps the latest record of each key, and takes no group's tombstone away, whatever happens while
//! it works.

mod common;

use common::{ON_PURPOSE, quiet, within};
use postroom::{Broker, Group, Log, LogError, Message, Record, Retention, Simulation, Start};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

type Value = Option<u64>;

fn keyed(key: u64, payload: Value) -> Message<Value> {
    Message::new(payload).with_key(format!("k{key}"))
}

/// A log whose tombstone function runs `meanwhile` when a compaction first calls it.
fn log_with(
    retention: Retention<Value>,
    meanwhile: impl Fn(&Log<Value>) + Send + Sync + 'static,
) -> (Broker, Simulation, Log<Value>) {
    let (broker, simulation) = Broker::simulated(3);
    let here: Arc<OnceLock<Log<Value>>> = Arc::default();
    let (log, done) = (Arc::clone(&here), AtomicBool::new(false));
    let is_tombstone = move |value: &Value| {
        if !done.swap(true, Ordering::SeqCst) {
            meanwhile(log.get().expect("declared before it is compacted"));
        }
        value.is_none()
    };
    let log = broker.log("log").retain(retention).tombstone(is_tombstone).declare().unwrap();
    assert!(here.set(log.clone()).is_ok());
    (broker, simulation, log)
}

fn read_all(group: &Group<Value>) -> Vec<(u64, Value)> {
    let mut reader = group.reader();
    let mut seen = Vec::new();
    while let Ok(record) = reader.try_recv() {
        seen.push((record.offset(), *record.payload()));
        group.commit(record.partition(), record.offset()).unwrap();
    }
    seen
}

#[test]
fn a_group_that_goes_back_meanwhile_still_gets_the_tombstone() {
    let (_broker, _, log) = log_with(Retention::everything(), |log| {
        let group = log.group("g").find().unwrap();
        group.rewind(Start::Earliest).unwrap();
        // It reads the value before the compaction replaces anything.
        let first = group.reader().recv().unwrap();
        assert_eq!(*first.payload(), Some(1));
        group.commit(0, first.offset()).unwrap();
    });
    let group = log.group("g").start(Start::Earliest).unwrap();
    [Some(1), None].into_iter().for_each(|value| _ = log.append(keyed(1, value)).unwrap());
    assert_eq!(read_all(&group), [(0, Some(1)), (1, None)]);
    assert_eq!(log.compact_now(), 1);
    assert_eq!((read_all(&group), log.len()), (vec![(1, None)], 1));
    assert_eq!((log.compact_now(), log.len()), (1, 0));
}

#[test]
fn a_group_that_has_read_and_not_committed_still_gets_the_tombstone() {
    let held = Arc::new(Mutex::new(None));
    let into = Arc::clone(&held);
    let (_broker, _, log) = log_with(Retention::everything(), move |log| {
        let group = log.group("g").find().unwrap();
        group.rewind(Start::Earliest).unwrap();
        let mut reader = group.reader();
        assert_eq!(*reader.recv().unwrap().payload(), Some(1));
        *into.lock().unwrap() = Some(reader);
    });
    let group = log.group("g").start(Start::Earliest).unwrap();
    [Some(1), None].into_iter().for_each(|value| _ = log.append(keyed(1, value)).unwrap());
    read_all(&group);
    assert_eq!(log.compact_now(), 1);
    let mut reader = held.lock().unwrap().take().unwrap();
    assert_eq!(reader.recv().map(|record| *record.payload()), Ok(None));
}

#[test]
fn a_group_that_starts_meanwhile_still_gets_the_tombstone() {
    let (_broker, _, log) = log_with(Retention::everything(), |log| {
        let group = log.group("new").start(Start::Earliest).unwrap();
        let first = group.reader().recv().unwrap();
        assert_eq!(*first.payload(), Some(1));
        group.commit(0, first.offset()).unwrap();
    });
    [Some(1), None].into_iter().for_each(|value| _ = log.append(keyed(1, value)).unwrap());
    assert_eq!(log.compact_now(), 1);
    assert_eq!(read_all(&log.group("new").find().unwrap()), [(1, None)]);
}

#[test]
fn a_group_that_was_removed_holds_no_tombstone() {
    let (_broker, _, log) = log_with(Retention::everything(), |_| ());
    let group = log.group("g").start(Start::Earliest).unwrap();
    [Some(1), None].into_iter().for_each(|value| _ = log.append(keyed(1, value)).unwrap());
    assert_eq!((log.compact_now(), log.len()), (1, 1));
    log.remove_group("g").unwrap();
    assert_eq!((log.compact_now(), log.len()), (1, 0));
    assert_eq!(group.commit(0, 1), Err(LogError::Removed));
}

#[test]
fn what_is_appended_meanwhile_stays() {
    let (_broker, _, log) = log_with(Retention::everything(), |log| {
        (10..3000).for_each(|n| _ = log.append(keyed(n, Some(n))).unwrap());
    });
    (0..10).for_each(|_| _ = log.append(keyed(1, Some(1))).unwrap());
    assert_eq!((log.compact_now(), log.len()), (9, 2991));
    let group = log.group("g").start(Start::Earliest).unwrap();
    assert_eq!(read_all(&group).len(), 2991);
}

#[test]
fn what_is_trimmed_meanwhile_stays_trimmed_and_the_counters_add_up() {
    let (_broker, _, log) = log_with(Retention::count(100), |log| {
        (0..50).for_each(|n| _ = log.append(keyed(n, Some(n))).unwrap());
    });
    (0..100).for_each(|n| _ = log.append(keyed(n % 60, Some(n))).unwrap());
    log.compact_now();
    let stats = log.stats();
    assert_eq!(stats.appended, stats.retained + stats.trimmed + stats.compacted);
    let oldest = log.oldest(0).unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let seen = read_all(&group);
    assert_eq!(seen.len() as u64, stats.retained);
    assert!(seen.iter().all(|&(offset, _)| offset >= oldest));
    // Trimming what is left brings every counter home.
    (0..10_000).for_each(|_| _ = log.append(Message::new(None)).unwrap());
    let stats = log.stats();
    assert_eq!(stats.appended, stats.retained + stats.trimmed + stats.compacted);
}

#[test]
fn what_was_compacted_and_what_was_not_are_counted_apart() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<Value> = broker.log("log").retain(Retention::count(16)).compact().declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    for n in 0..100 {
        log.append(keyed(n, Some(n))).unwrap();
        // Who keeps up makes small segments, which are joined later.
        let record = reader.recv().unwrap();
        group.commit(0, record.offset()).unwrap();
        if n == 2 {
            assert_eq!(log.compact_now(), 0);
        }
    }
    let stats = log.stats();
    assert_eq!((stats.appended, stats.compacted), (100, 0));
    assert!((16..=20).contains(&stats.retained), "{}", stats.retained);
}

#[test]
fn functions_and_destructors_may_use_the_log() {
    /// Appends when it is dropped, and compacts.
    struct Talkative(Option<Arc<OnceLock<Log<Talkative>>>>);
    impl Drop for Talkative {
        fn drop(&mut self) {
            if let Some(log) = self.0.take().and_then(|log| log.get().cloned()) {
                log.append(Message::new(Talkative(None)).with_key("k")).unwrap();
                log.compact_now();
            }
        }
    }
    let len = within(LONG, || {
        let (broker, _) = Broker::simulated(1);
        let here: Arc<OnceLock<Log<Talkative>>> = Arc::default();
        let inner = Arc::clone(&here);
        let is_tombstone = move |value: &Talkative| {
            inner.get().map(Log::compact_now);
            value.0.is_none()
        };
        let retention = Retention::count(1_000);
        let log = broker.log("log").retain(retention).tombstone(is_tombstone).declare().unwrap();
        assert!(here.set(log.clone()).is_ok());
        for _ in 0..300 {
            log.append(Message::new(Talkative(Some(Arc::clone(&here)))).with_key("k")).unwrap();
        }
        log.compact_now();
        log.compact_now();
        log.len()
    });
    assert!(len < 1_300, "{len}");
}

#[test]
fn a_tombstone_function_that_panics_costs_no_record() {
    quiet();
    let (broker, _) = Broker::simulated(1);
    let log = broker.log("log").tombstone(|_: &Value| panic!("{ON_PURPOSE}")).declare().unwrap();
    [Some(1), None].into_iter().for_each(|value| _ = log.append(keyed(1, value)).unwrap());
    assert_eq!((log.compact_now(), log.len()), (1, 1));
}

#[test]
fn a_log_without_compaction_is_left_as_it_is() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<Value> = broker.log("log").declare().unwrap();
    (0..10).for_each(|n| _ = log.append(keyed(1, Some(n))).unwrap());
    assert_eq!((log.compact_now(), log.len()), (0, 10));
}

#[test]
fn committing_the_last_record_commits_the_gap_behind_it() {
    let (_broker, _, log) = log_with(Retention::everything(), |_| ());
    [keyed(1, Some(1)), keyed(2, Some(2)), keyed(2, None)].into_iter().for_each(|m| _ = log.append(m).unwrap());
    assert_eq!((log.compact_now(), log.len()), (2, 1));
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    assert_eq!(reader.recv().unwrap().offset(), 0);
    assert_eq!(reader.try_recv().unwrap_err(), LogError::Empty);
    assert_eq!(group.lag(), 3);
    group.commit(0, 0).unwrap();
    assert_eq!(group.lag(), 0);
}

#[test]
fn many_threads_compact_append_and_rewind_and_the_copy_is_right() {
    let broker = Broker::new();
    let log: Log<Value> = broker.log("log").tombstone(Option::is_none).declare().unwrap();
    let group = log.group("copy").start(Start::Earliest).unwrap();
    let copy: Arc<Mutex<std::collections::BTreeMap<String, u64>>> = Arc::default();
    let into = Arc::clone(&copy);
    let handler = move |record: &Record<Value>| {
        let (mut copy, key) = (into.lock().unwrap(), record.key().unwrap().to_owned());
        match record.payload() {
            Some(value) => _ = copy.insert(key, *value),
            None => _ = copy.remove(&key),
        }
    };
    group.consumer().start(handler).unwrap();
    let appended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..20_000 {
                log.append(keyed(n % 20, (n % 3 > 0).then_some(n))).unwrap();
                appended.store(n + 1, Ordering::SeqCst);
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while appended.load(Ordering::SeqCst) < 20_000 {
                    log.compact_now();
                }
            });
        }
        scope.spawn(|| {
            for at in 1..=10 {
                while appended.load(Ordering::SeqCst) < at * 1_500 {
                    std::thread::yield_now();
                }
                group.rewind(Start::Earliest).unwrap();
            }
        });
    });
    assert!(broker.wait_idle(LONG));
    let expected: std::collections::BTreeMap<_, _> =
        (19_980..20_000_u64).filter(|n| n % 3 > 0).map(|n| (format!("k{}", n % 20), n)).collect();
    assert_eq!(*copy.lock().unwrap(), expected);
}
