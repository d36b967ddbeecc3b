//! A log keeps what its retention says; groups read it from where they like, in order, and again.

mod common;

use common::log::{fill, simulated};
use common::{Bomb, ON_PURPOSE, quiet, within};
use postroom::{
    Broker, DeadLetter, Error, Event, Failure, Log, LogError, LogName, ManualClock, Message, Outcome, Queue, Reason,
    Record, Replay, Retention, Retry, Start, Topic,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

/// What a group's handler has seen, in order.
type Seen = Arc<Mutex<Vec<u64>>>;

fn collecting(seen: &Seen) -> impl Fn(&Record<u64>) + Send + Sync + 'static {
    let seen = Arc::clone(seen);
    move |record| seen.lock().unwrap().push(*record.payload())
}

// ---- appending and keeping -----------------------------------------------------------------------

#[test]
fn equal_keys_share_a_partition_and_others_go_around() {
    let (_broker, _, log) = simulated(4);
    for n in 0..100 {
        let key = format!("key-{}", n % 10);
        let at = log.append(Message::new(n).with_key(&key)).unwrap();
        assert_eq!(at.partition, log.partition_of(&key));
    }
    // Published so that it never changes: FNV-1a of "a" is 0xaf63dc4c8601ec8c.
    assert_eq!(log.partition_of("a"), 0);
    let spread: std::collections::BTreeSet<_> = (0..4).map(|n| log.append(n).unwrap().partition).collect();
    assert_eq!(spread.len(), 4);
}

#[test]
fn offsets_count_up_in_each_partition_and_records_can_be_read_by_them() {
    let (_broker, _, log) = simulated(1);
    let places = log.append_batch(0..3000_u64).unwrap();
    assert!(places.iter().enumerate().all(|(n, at)| (at.partition, at.offset) == (0, n as u64)));
    for n in [0, 63, 64, 1023, 1024, 2999] {
        assert_eq!(*log.read(0, n).unwrap().payload(), n);
    }
    assert_eq!(log.read(0, 3000).unwrap_err(), LogError::BeyondEnd { partition: 0, asked: 3000, end: 3000 });
    assert_eq!(log.read(1, 0).unwrap_err(), LogError::NoSuchPartition { asked: 1, partitions: 1 });
}

#[test]
fn retention_by_count_keeps_at_least_that_and_not_much_more() {
    let (broker, _) = Broker::simulated(1);
    for count in [1, 10, 100, 5000] {
        let log: Log<u64> = broker.log(format!("l{count}")).retain(Retention::count(count)).declare().unwrap();
        fill(&log, 0..20_000);
        assert!((count..=count + count / 4 + 1).contains(&log.len()), "{count}: {}", log.len());
        let oldest = log.oldest(0).unwrap();
        assert_eq!(oldest, 20_000 - log.len());
        assert_eq!(log.read(0, oldest).unwrap().offset(), oldest);
        let asked = oldest - 1;
        assert_eq!(log.read(0, asked).unwrap_err(), LogError::Trimmed { partition: 0, asked, oldest });
        let stats = log.stats();
        assert_eq!(stats.appended, stats.retained + stats.trimmed);
    }
}

#[test]
fn retention_by_bytes_asks_the_user_for_sizes() {
    let (broker, _) = Broker::simulated(1);
    let retention = Retention::bytes(10_000, |text: &String| text.len());
    let log = broker.log("log").retain(retention).declare().unwrap();
    (0..1000).for_each(|_| _ = log.append("x".repeat(100)).unwrap());
    assert!((100..=130).contains(&log.len()), "{}", log.len());
    log.append("y".repeat(50_000)).unwrap();
    log.append("z".to_string()).unwrap();
    assert!(log.len() <= 2, "{}", log.len());
}

#[test]
fn a_size_function_that_panics_costs_no_record() {
    quiet();
    let (broker, _) = Broker::simulated(1);
    let log = broker.log("log").retain(Retention::bytes(1000, |_: &u64| panic!("{ON_PURPOSE}"))).declare().unwrap();
    (0..1000_u64).for_each(|n| _ = log.append(n).unwrap());
    assert!((125..=160).contains(&log.len()), "{}", log.len());
}

#[test]
fn retention_by_age_holds_for_a_log_that_stands_still() {
    let (broker, simulation) = Broker::simulated(1);
    let log: Log<u64> = broker.log("log").retain(Retention::age(60 * SECOND)).declare().unwrap();
    fill(&log, 0..10);
    simulation.advance(30 * SECOND);
    fill(&log, 10..1000);
    simulation.advance(59 * SECOND);
    assert_eq!(log.end(0).unwrap(), 1000);
    assert_eq!(*log.read(0, 999).unwrap().payload(), 999);
    simulation.advance(2 * SECOND);
    assert!(log.is_empty());
    assert_eq!((log.oldest(0), log.append(5).unwrap().offset), (Ok(1000), 1000));
    assert_eq!(simulation.next_due(), Some(60 * SECOND));
}

#[test]
fn limits_combine() {
    let (broker, simulation) = Broker::simulated(1);
    let both = Retention::count(100).and(Retention::age(SECOND));
    let log: Log<u64> = broker.log("log").retain(both).declare().unwrap();
    fill(&log, 0..1000);
    assert!(log.len() <= 125);
    simulation.advance(2 * SECOND);
    assert_eq!(log.len(), 0);
}

#[test]
fn what_is_trimmed_is_freed_once_nobody_reads_it() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Counted {
        fn new() -> Self {
            ALIVE.fetch_add(1, Ordering::SeqCst);
            Self
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (broker, _) = Broker::simulated(1);
    let log = broker.log("log").retain(Retention::count(100)).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    log.append(Counted::new()).unwrap();
    let mut reader = group.reader();
    let record = reader.recv().unwrap();
    (0..10_000).for_each(|_| _ = log.append(Counted::new()).unwrap());
    assert!(ALIVE.load(Ordering::SeqCst) <= 125 + 25, "{}", ALIVE.load(Ordering::SeqCst));
    drop(record);
    assert_eq!(ALIVE.load(Ordering::SeqCst) as u64, log.len());
    drop((log, group, reader, broker));
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
}

#[test]
fn a_destructor_that_panics_does_no_harm() {
    quiet();
    let (broker, _) = Broker::simulated(1);
    let log = broker.log("log").retain(Retention::count(10)).declare().unwrap();
    (0..100).for_each(|_| _ = log.append(Bomb).unwrap());
    assert!(log.len() <= 13);
}

// ---- compaction ----------------------------------------------------------------------------------

fn keyed(key: u64, payload: Option<u64>) -> Message<Option<u64>> {
    Message::new(payload).with_key(format!("k{key}"))
}

#[test]
fn compaction_keeps_the_latest_of_each_key_at_its_offset() {
    let (broker, simulation) = Broker::simulated(1);
    let log: Log<Option<u64>> = broker.log("log").compact().declare().unwrap();
    (0..1000).for_each(|n| _ = log.append(keyed(n % 10, Some(n))).unwrap());
    log.append(Message::new(None)).unwrap();
    log.compact_now();
    assert_eq!(log.len(), 11);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let handler = move |r: &Record<Option<u64>>| into.lock().unwrap().push((r.offset(), *r.payload()));
    group.consumer().start(handler).unwrap();
    simulation.run_until_idle();
    let expected: Vec<_> = (990..1000).map(|n| (n, Some(n))).chain([(1000, None)]).collect();
    assert_eq!((seen.lock().unwrap().clone(), group.lag()), (expected, 0));
    let stats = log.stats();
    assert_eq!(stats.appended, stats.retained + stats.compacted);
    assert_eq!(log.read(0, 5).unwrap().offset(), 990);
    assert_eq!(log.append(keyed(1, None)).unwrap().offset, 1001);
}

#[test]
fn compaction_happens_by_itself_and_bounds_the_log() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<Option<u64>> = broker.log("log").compact().declare().unwrap();
    (0..100_000).for_each(|n| _ = log.append(keyed(n % 100, Some(n))).unwrap());
    assert!(log.len() <= 2 * 1024 + 200, "{}", log.len());
    log.compact_now();
    assert_eq!(log.len(), 100);
}

#[test]
fn a_tombstone_removes_its_key_once_every_group_has_read_it() {
    let (broker, simulation) = Broker::simulated(1);
    let log: Log<Option<u64>> = broker.log("log").tombstone(Option::is_none).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    log.append(keyed(1, Some(1))).unwrap();
    log.append(keyed(2, Some(2))).unwrap();
    log.append(keyed(1, None)).unwrap();
    assert_eq!(log.compact_now(), 1);
    assert_eq!(log.len(), 2);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let handler = move |r: &Record<Option<u64>>| into.lock().unwrap().push(*r.payload());
    group.consumer().start(handler).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [Some(2), None]);
    assert_eq!(log.compact_now(), 1);
    assert_eq!((log.len(), log.end(0)), (1, Ok(3)));
    // A late group comes to the end over the gap.
    let late = log.group("late").start(Start::Earliest).unwrap();
    late.consumer().start(|_: &Record<Option<u64>>| ()).unwrap();
    simulation.run_until_idle();
    assert_eq!(late.lag(), 0);
}

// ---- where a group begins ------------------------------------------------------------------------

#[test]
fn a_group_begins_where_it_is_told() {
    let (_broker, simulation, log) = simulated(1);
    fill(&log, 0..100);
    simulation.advance(60 * SECOND);
    let noon = simulation.now();
    fill(&log, 100..3000);
    let starts = [(Start::Earliest, 0), (Start::Latest, 3000), (Start::Offset(2000), 2000), (Start::Time(noon), 100)];
    for (n, (start, first)) in starts.into_iter().enumerate() {
        let group = log.group(format!("g{n}")).start(start).unwrap();
        assert_eq!(group.lag(), 3000 - first, "{start:?}");
        if first < 3000 {
            assert_eq!(group.reader().recv().unwrap().offset(), first);
        }
    }
    let future = log.group("future").start(Start::Time(noon + LONG)).unwrap();
    assert_eq!((future.lag(), future.committed(0)), (0, Ok(3000)));
}

#[test]
fn time_travel_works_in_every_segment() {
    let (_broker, simulation, log) = simulated(1);
    let start = simulation.now();
    for n in 0..5000 {
        log.append(n).unwrap();
        simulation.advance(SECOND);
    }
    for n in [0, 1, 63, 64, 65, 1000, 2048, 4999] {
        let group = log.group(format!("g{n}")).start(Start::Time(start + SECOND * n as u32)).unwrap();
        assert_eq!(group.committed(0), Ok(n));
    }
}

#[test]
fn a_group_that_exists_goes_on_where_it_stood() {
    let (_broker, simulation, log) = simulated(1);
    fill(&log, 0..10);
    let seen = Seen::default();
    let consumer = log.group("g").start(Start::Earliest).unwrap().consumer().start(collecting(&seen)).unwrap();
    simulation.run_until_idle();
    consumer.stop();
    fill(&log, 10..20);
    let again = log.group("g").start(Start::Earliest).unwrap();
    again.consumer().start(collecting(&seen)).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!(log.group("g").find().unwrap().lag(), 0);
}

// ---- committing, seeking, pausing ----------------------------------------------------------------

#[test]
fn by_hand_nothing_is_committed_until_told_and_never_back() {
    let (_broker, _, log) = simulated(1);
    fill(&log, 0..10);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    let read: Vec<_> = (0..10).map(|_| reader.try_recv().unwrap().offset()).collect();
    assert_eq!((read, reader.try_recv().unwrap_err(), group.lag()), ((0..10).collect(), LogError::Empty, 10));
    group.commit(0, 6).unwrap();
    group.commit(0, 3).unwrap();
    assert_eq!((group.committed(0), group.lag_by_partition()), (Ok(7), vec![3]));
    assert_eq!(group.commit(0, 10).unwrap_err(), LogError::BeyondEnd { partition: 0, asked: 10, end: 10 });
    drop(reader);
    assert_eq!(group.reader().recv().unwrap().offset(), 7);
}

#[test]
fn a_partition_stays_with_the_reader_that_has_not_committed() {
    let (_broker, _, log) = simulated(2);
    fill(&log, 0..4);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let (mut one, mut other) = (group.reader(), group.reader());
    let (first, second) = (one.recv().unwrap(), other.recv().unwrap());
    assert_ne!(first.partition(), second.partition());
    assert_eq!(one.recv().unwrap().partition(), first.partition());
    assert_eq!(one.try_recv().unwrap_err(), LogError::Empty);
    group.commit(second.partition(), second.offset()).unwrap();
    assert_eq!(one.recv().unwrap().partition(), second.partition());
    drop(one);
    assert_eq!(other.recv().map(|r| r.offset()), Ok(0));
}

#[test]
fn seek_and_rewind_read_again() {
    let (_broker, simulation, log) = simulated(2);
    fill(&log, 0..10);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let seen = Seen::default();
    group.consumer().start(collecting(&seen)).unwrap();
    simulation.run_until_idle();
    group.seek(0, 3).unwrap();
    assert_eq!(group.lag(), 2);
    simulation.run_until_idle();
    assert_eq!(seen.lock().unwrap()[10..], [6, 8]);
    group.rewind(Start::Earliest).unwrap();
    simulation.run_until_idle();
    assert_eq!((seen.lock().unwrap().len(), group.lag()), (22, 0));
    group.seek(0, 5).unwrap();
    assert_eq!(group.seek(0, 6).unwrap_err(), LogError::BeyondEnd { partition: 0, asked: 6, end: 5 });
    assert_eq!(group.seek(2, 0).unwrap_err(), LogError::NoSuchPartition { asked: 2, partitions: 2 });
}

#[test]
fn a_seek_inside_a_handler_wins_over_its_commit() {
    let (_broker, simulation, log) = simulated(1);
    fill(&log, 0..5);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let seen = Seen::default();
    let (into, inner, once) = (Arc::clone(&seen), group.clone(), AtomicBool::new(false));
    let handler = move |record: &Record<u64>| {
        into.lock().unwrap().push(*record.payload());
        if *record.payload() == 3 && !once.swap(true, Ordering::SeqCst) {
            inner.seek(0, 1).unwrap();
        }
    };
    group.consumer().start(handler).unwrap();
    simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 1, 2, 3, 4]);
}

#[test]
fn a_paused_group_hands_out_nothing() {
    let (broker, simulation, log) = simulated(1);
    let group = log.group("g").start(Start::Earliest).unwrap();
    group.consumer().start(|_: &Record<u64>| ()).unwrap();
    group.pause();
    fill(&log, 0..5);
    simulation.run_until_idle();
    assert_eq!((group.lag(), group.reader().try_recv().unwrap_err()), (5, LogError::Empty));
    assert!(broker.wait_idle(SECOND));
    group.resume();
    simulation.run_until_idle();
    assert_eq!(group.lag(), 0);
}

// ---- failures ------------------------------------------------------------------------------------

#[test]
fn a_poison_record_holds_up_its_partition_until_it_is_a_dead_letter() {
    let (broker, simulation, log) = simulated(2);
    let retry = Retry::fixed(10 * SECOND).max_attempts(3);
    let group = log.group("g").retry(retry).start(Start::Earliest).unwrap();
    let seen = Seen::default();
    let into = Arc::clone(&seen);
    let handler = move |record: &Record<u64>| {
        into.lock().unwrap().push(*record.payload());
        if *record.payload() == 2 { Err(std::io::Error::other(format!("no {}", record.attempt()))) } else { Ok(()) }
    };
    group.consumer().start(handler).unwrap();
    fill(&log, 0..8);
    simulation.run_until_idle();
    let odd = |seen: &Seen| seen.lock().unwrap().iter().filter(|n| *n % 2 == 1).count();
    let even = |seen: &Seen| seen.lock().unwrap().iter().copied().filter(|n| n % 2 == 0).collect::<Vec<_>>();
    assert_eq!((odd(&seen), even(&seen)), (4, vec![0, 2]));
    simulation.advance(10 * SECOND);
    assert_eq!(even(&seen), [0, 2, 2]);
    simulation.advance(10 * SECOND);
    assert_eq!((even(&seen), group.lag()), (vec![0, 2, 2, 2, 4, 6], 0));

    let dead = broker.queue::<DeadLetter<u64>>("log/g.dead").find().unwrap();
    let letter = dead.recv().unwrap();
    let errors: Vec<_> = letter.payload().attempts().iter().map(|a| (a.number, a.error.as_str())).collect();
    assert_eq!(errors, [(1, "no 1"), (2, "no 2"), (3, "no 3")]);
    assert_eq!((*letter.payload().message().payload(), letter.payload().queue()), (2, "log/g"));
    letter.ack().unwrap();
    let stats = group.stats();
    assert_eq!((stats.delivered, stats.retried, stats.dead_lettered), (10, 2, 1));
}

#[test]
fn handlers_say_what_becomes_of_a_record() {
    quiet();
    let (_broker, simulation, log) = simulated(1);
    let group = log.group("g").start(Start::Earliest).unwrap();
    group
        .consumer()
        .start(|record: &Record<u64>| match *record.payload() {
            0 => Outcome::Discard,
            1 => Outcome::DeadLetter("unwanted".into()),
            2 if record.attempt() == 1 => Outcome::RetryAfter(5 * SECOND),
            3 if record.attempt() == 1 => panic!("{ON_PURPOSE}"),
            _ => Outcome::Ack,
        })
        .unwrap();
    fill(&log, 0..5);
    simulation.run_until_idle();
    assert_eq!(group.committed(0), Ok(2));
    simulation.advance(5 * SECOND);
    assert_eq!(group.committed(0), Ok(3));
    simulation.advance(SECOND);
    let stats = group.stats();
    assert_eq!(stats.total_lag(), 0);
    assert_eq!((stats.discarded, stats.dead_lettered, stats.retried, stats.panicked), (1, 1, 2, 1));
    let letter = group.dead_letters().recv().unwrap();
    assert_eq!(*letter.payload().reason(), Reason::Rejected("unwanted".into()));
    letter.ack().unwrap();
}

#[test]
fn a_failed_batch_comes_again_as_it_was() {
    let (_broker, simulation, log) = simulated(1);
    let group = log.group("g").retry(Retry::fixed(SECOND).max_attempts(2)).start(Start::Earliest).unwrap();
    let batches = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&batches);
    let handler = move |records: &[Record<u64>]| -> Result<(), Failure> {
        let batch: Vec<_> = records.iter().map(|record| *record.payload()).collect();
        let bad = batch.contains(&3);
        into.lock().unwrap().push(batch);
        if bad { Err(Failure::transient("three")) } else { Ok(()) }
    };
    fill(&log, 0..5);
    group.consumer().start_batch(4, SECOND, handler).unwrap();
    simulation.run_until_idle();
    fill(&log, 5..9);
    simulation.advance(2 * SECOND);
    assert_eq!(*batches.lock().unwrap(), [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8]]);
    assert_eq!((group.dead_letters().len(), group.lag()), (4, 0));
}

#[test]
fn a_batch_waits_for_its_linger_or_until_it_is_full() {
    let (_broker, simulation, log) = simulated(1);
    let group = log.group("g").start(Start::Latest).unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&sizes);
    let handler = move |records: &[Record<u64>]| into.lock().unwrap().push(records.len());
    group.consumer().start_batch(10, SECOND, handler).unwrap();
    fill(&log, 0..3);
    simulation.run_until_idle();
    assert!(sizes.lock().unwrap().is_empty());
    fill(&log, 3..10);
    simulation.run_until_idle();
    assert_eq!(*sizes.lock().unwrap(), [10]);
    fill(&log, 0..2);
    simulation.advance(SECOND);
    assert_eq!(*sizes.lock().unwrap(), [10, 2]);
}

#[test]
fn a_full_dead_letter_queue_holds_the_partition_and_loses_nothing() {
    let (broker, simulation, log) = simulated(1);
    let dead: Queue<DeadLetter<u64>> = broker.queue("dead").capacity(1).declare().unwrap();
    let group = log.group("g").retry(Retry::none()).dead_letter_to(&dead).start(Start::Earliest).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    group
        .consumer()
        .start(move |_: &Record<u64>| {
            count.fetch_add(1, Ordering::SeqCst);
            Outcome::Retry
        })
        .unwrap();
    fill(&log, 0..3);
    simulation.advance(5 * SECOND);
    assert_eq!((dead.len(), group.lag(), calls.load(Ordering::SeqCst)), (1, 2, 2));
    let mut letters = Vec::new();
    while let Ok(letter) = dead.try_recv() {
        letters.push(*letter.payload().message().payload());
        letter.ack().unwrap();
        simulation.advance(2 * SECOND);
    }
    assert_eq!((letters, group.lag(), calls.load(Ordering::SeqCst)), (vec![0, 1, 2], 0, 3));
}

#[test]
fn dead_letters_of_a_group_can_be_redriven_to_a_queue() {
    let (broker, simulation, log) = simulated(1);
    let group = log.group("g").retry(Retry::none()).start(Start::Earliest).unwrap();
    group.consumer().start(|_: &Record<u64>| Outcome::Retry).unwrap();
    fill(&log, 0..2);
    simulation.run_until_idle();
    let repair: Queue<u64> = broker.queue("repair").declare().unwrap();
    let kept = group.dead_letters().redrive().run().unwrap();
    assert_eq!((kept.moved, kept.kept), (0, 2));
    assert_eq!(group.dead_letters().redrive().to(&repair).run().unwrap().moved, 2);
    let repaired = repair.recv().unwrap();
    assert_eq!((*repaired.payload(), repaired.history().len()), (0, 1));
    repaired.ack().unwrap();
}

// ---- falling behind ------------------------------------------------------------------------------

#[test]
fn a_reader_behind_the_log_is_told_the_oldest_offset() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<u64> = broker.log("log").retain(Retention::count(100)).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    fill(&log, 0..1000);
    let oldest = log.oldest(0).unwrap();
    let trimmed = LogError::Trimmed { partition: 0, asked: 0, oldest };
    assert_eq!(reader.recv().unwrap_err(), trimmed);
    assert_eq!(reader.try_recv().unwrap_err(), trimmed);
    assert!(trimmed.to_string().contains(&oldest.to_string()));
    assert_eq!(group.seek(0, 1).unwrap_err(), LogError::Trimmed { partition: 0, asked: 1, oldest });
    group.seek(0, oldest).unwrap();
    assert_eq!(reader.recv().unwrap().offset(), oldest);
}

#[test]
fn handlers_that_fell_behind_go_on_at_the_oldest_and_say_so() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&events);
    let builder = Broker::builder().seed(1).on_event(move |event| into.lock().unwrap().push(event.clone()));
    let (broker, simulation) = builder.build_simulated().unwrap();
    let log: Log<u64> = broker.log("log").retain(Retention::count(100)).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    fill(&log, 0..1000);
    let seen = Seen::default();
    group.consumer().start(collecting(&seen)).unwrap();
    simulation.run_until_idle();
    let oldest = log.oldest(0).unwrap();
    assert_eq!(*seen.lock().unwrap(), (oldest..1000).collect::<Vec<_>>());
    assert_eq!(group.stats().skipped, oldest);
    let expected = Event::LogTrimmed { group: "log/g".into(), partition: 0, asked: 0, oldest };
    assert_eq!(*events.lock().unwrap(), [expected]);
}

// ---- pace ----------------------------------------------------------------------------------------

#[test]
fn a_replay_keeps_the_original_pace() {
    let (_broker, simulation, log) = simulated(2);
    for n in 0..4 {
        log.append(n).unwrap();
        simulation.advance(60 * SECOND);
    }
    let group = log.group("g").replay(Replay::original_pace(60.0)).start(Start::Earliest).unwrap();
    let seen = Seen::default();
    group.consumer().start(collecting(&seen)).unwrap();
    for n in 0..4 {
        simulation.run_until_idle();
        assert_eq!(*seen.lock().unwrap(), (0..=n).collect::<Vec<_>>());
        simulation.advance(SECOND);
    }
    group.rewind(Start::Earliest).unwrap();
    simulation.advance(4 * SECOND);
    assert_eq!(seen.lock().unwrap()[4..], [0, 1, 2, 3]);
}

// ---- topics --------------------------------------------------------------------------------------

#[test]
fn a_topic_publishes_into_a_log() {
    let (broker, simulation, log) = simulated(1);
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    topic.bind(&log, "order.*").unwrap();
    assert_eq!(topic.publish("order.placed", 1).unwrap().routed(), 1);
    assert_eq!(topic.publish("other", 2).unwrap().routed(), 0);
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let receipt = topic.publish("order.paid", 3).unwrap();
    assert_eq!((receipt.routed(), queue.len(), log.len()), (2, 1, 2));
    let record = log.read(0, 1).unwrap();
    assert_eq!((record.id(), record.routing_key(), *record.payload()), (receipt.id(), "order.paid", 3));
    topic.unbind(&log, "order.*").unwrap();
    topic.publish("order.paid", 4).unwrap();
    assert_eq!(log.len(), 2);
    drop(simulation);
}

#[test]
fn a_log_has_a_message_before_anybody_acts_on_it() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("journal").declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.bind(&queue, "cause").unwrap();
    let effects = topic.clone();
    queue.consumer().workers(2).start(move |n: &Message<u64>| effects.publish("effect", 1_000_000 + **n)).unwrap();
    (0..2_000).for_each(|n| _ = topic.publish("cause", n).unwrap());
    assert!(broker.wait_idle(LONG));
    let mut seen = std::collections::BTreeSet::new();
    for place in 0..4_000 {
        let n = *log.read(0, place).unwrap().payload();
        assert!(n < 1_000_000 || seen.contains(&(n - 1_000_000)), "{n} before its cause");
        seen.insert(n);
    }
}

#[test]
fn a_handler_may_end_with_an_append_to_another_log() {
    let (broker, simulation, log) = simulated(1);
    let copy: Log<u64> = broker.log("copy").declare().unwrap();
    let places = Arc::new(Mutex::new(Vec::new()));
    let (to, seen) = (copy.clone(), Arc::clone(&places));
    let forward = move |record: &Record<u64>| {
        seen.lock().unwrap().push(record.place());
        to.append(record.to_message())
    };
    log.group("mirror").start(Start::Earliest).unwrap().consumer().start(forward).unwrap();
    let appended = log.append_batch(0..10).unwrap();
    simulation.run_until_idle();
    assert_eq!((copy.len(), &*places.lock().unwrap()), (10, &appended));
}

#[test]
fn a_full_queue_keeps_a_publish_out_of_the_log_too() {
    let (broker, _, log) = simulated(1);
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queue: Queue<u64> = broker.queue("q").capacity(1).declare().unwrap();
    let other: Log<u64> = broker.log("other").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.bind(&other, "#").unwrap();
    topic.bind(&queue, "#").unwrap();
    assert_eq!(topic.try_publish("a", 1).unwrap().routed(), 3);
    let refused = topic.try_publish("a", 2).unwrap_err();
    assert_eq!((*refused.into_message().payload(), log.len(), other.len(), queue.len()), (2, 1, 1, 1));
    assert!(broker.wait_idle(SECOND));
}

// ---- coming to rest ------------------------------------------------------------------------------

#[test]
fn shutdown_drains_groups_with_consumers_and_reports_the_lag_of_others() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").partitions(2).declare().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&done);
    let busy = log.group("busy").start(Start::Earliest).unwrap();
    let idle = log.group("idle").start(Start::Earliest).unwrap();
    let handler = move |_: &[Record<u64>]| count.fetch_add(1, Ordering::SeqCst);
    busy.consumer().start_batch(1000, LONG, move |records| _ = handler(records)).unwrap();
    fill(&log, 0..100);
    let report = within(LONG, move || broker.shutdown(LONG / 2));
    assert_eq!(report.undelivered.len(), 1, "{report}");
    assert_eq!((report.undelivered[0].queue.as_str(), report.undelivered[0].ready), ("log/idle", 100));
    assert_eq!((busy.lag(), done.load(Ordering::SeqCst)), (0, 2));
    let refused = log.append(7).unwrap_err();
    assert_eq!(refused.by(), "log");
    assert_eq!(*refused.into_message().payload(), 7);
    // What is left can still be taken out.
    let mut reader = idle.reader();
    let left = (0..100).filter(|_| reader.recv().is_ok()).count();
    assert_eq!((left, reader.recv().unwrap_err()), (100, LogError::Closed));
}

#[test]
fn workers_are_named_after_log_and_group() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("lines").declare().unwrap();
    let name = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&name);
    let handler = move |_: &Record<u64>| *into.lock().unwrap() = thread::current().name().unwrap_or("").to_owned();
    log.group("indexer").start(Start::Earliest).unwrap().consumer().start(handler).unwrap();
    log.append(1).unwrap();
    assert!(broker.wait_idle(LONG));
    assert_eq!(*name.lock().unwrap(), "lines/indexer-0");
}

#[test]
fn stats_and_description_tell_of_logs_and_groups() {
    let (broker, simulation) = Broker::simulated(1);
    let log: Log<u64> = broker.log("log").partitions(2).retain(Retention::count(50)).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    group.consumer().workers(3).start(|_: &Record<u64>| ()).unwrap();
    fill(&log, 0..10);
    simulation.run_until_idle();
    let stats = broker.stats();
    let log_stats = stats.log("log").unwrap();
    assert_eq!((log_stats.appended, log_stats.retained, log_stats.partitions), (10, 10, 2));
    assert_eq!(log_stats.group("g").unwrap().committed, [5, 5]);
    assert_eq!(serde_json::from_str::<postroom::Stats>(&serde_json::to_string(&stats).unwrap()).unwrap(), stats);
    let text = broker.describe().to_string();
    assert!(text.contains(r#"log "log" of u64, 2 partitions, keeps 50 records"#), "{text}");
    assert!(text.contains(r#"group "g", retry 5 attempts, 100ms doubling to 30s"#), "{text}");
    assert!(text.contains("3 workers"), "{text}");
    assert!(broker.describe().mermaid().contains("group g"));
}

#[test]
fn a_standstill_in_simulation_is_reported_and_time_passes_for_a_timeout() {
    let (_broker, simulation, log) = simulated(1);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    assert_eq!(reader.recv().unwrap_err(), LogError::Deadlock);
    let before = simulation.now();
    assert_eq!(reader.recv_timeout(SECOND).unwrap_err(), LogError::TimedOut);
    assert_eq!(simulation.now().duration_since(before).unwrap(), SECOND);
}

#[test]
fn a_manual_clock_ends_a_readers_timeout() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let waiting = thread::spawn(move || group.reader().recv_timeout(SECOND).map(|_| ()));
    while !waiting.is_finished() {
        clock.advance(SECOND);
        thread::yield_now();
    }
    assert_eq!(waiting.join().unwrap(), Err(LogError::TimedOut));
}

// ---- bad input -----------------------------------------------------------------------------------

#[test]
fn everything_wrong_with_a_declaration_is_said_at_once() {
    let broker = Broker::new();
    let bad: Result<Log<u64>, Error> = broker
        .log("")
        .partitions(0)
        .retain(Retention::count(0).and(Retention::bytes_inline(0)).and(Retention::age(Duration::ZERO)))
        .declare();
    assert_eq!(bad.unwrap_err().problems().len(), 5);

    const LOG: LogName<u64> = LogName::new("log");
    let log = broker.log(LOG).partitions(2).declare().unwrap();
    assert!(broker.log(LOG).partitions(2).declare().is_ok());
    let other = broker.log(LOG).partitions(3).compact().declare().unwrap_err();
    assert_eq!(other.problems().len(), 2, "{other}");
    assert!(other.to_string().contains("2 partitions, asked for 3"), "{other}");
    let other = broker.log::<String>("log").partitions(2).declare().unwrap_err();
    assert!(other.to_string().contains("u64") && other.to_string().contains("String"), "{other}");
    assert!(broker.log::<u64>("none").find().unwrap_err().to_string().contains("none of that name"));
    assert_eq!(broker.log(LOG).find().unwrap().partitions(), 2);

    let unknown = log.group("nobody").find().unwrap_err();
    assert!(unknown.to_string().contains(r#"group "nobody" of log "log""#), "{unknown}");
    let bad = log.group("g").retry(Retry::none().max_attempts(0)).replay(Replay::original_pace(-1.0));
    let bad = bad.start(Start::Offset(9)).unwrap_err();
    assert_eq!(bad.problems().len(), 4, "{bad}");
    let group = log.group("g").start(Start::Latest).unwrap();
    assert!(log.group("g").retry(Retry::none()).start(Start::Latest).unwrap_err().to_string().contains("retry"));
    assert!(group.consumer().workers(0).start(|_: &Record<u64>| ()).is_err());
    assert_eq!(
        group.consumer().workers(0).start_batch(0, SECOND, |_: &[Record<u64>]| ()).unwrap_err().problems().len(),
        2
    );
}

// ---- with threads --------------------------------------------------------------------------------

#[derive(Default)]
struct Book {
    /// By partition, the offsets in the order they were handled.
    seen: Mutex<BTreeMap<usize, Vec<u64>>>,
    inside: [AtomicBool; 8],
}

impl Book {
    /// Fails if two members are in one partition at a time.
    fn enter(&self, record: &Record<u64>) {
        assert!(!self.inside[record.partition()].swap(true, Ordering::SeqCst), "two members in one partition");
        self.seen.lock().unwrap().entry(record.partition()).or_default().push(record.offset());
        self.inside[record.partition()].store(false, Ordering::SeqCst);
    }

    fn assert_each_once_in_order(&self, log: &Log<u64>) {
        let seen = self.seen.lock().unwrap();
        for partition in 0..log.partitions() {
            let expected: Vec<_> = (0..log.end(partition).unwrap()).collect();
            assert_eq!(seen.get(&partition).unwrap_or(&Vec::new()), &expected, "partition {partition}");
        }
    }
}

#[test]
fn members_come_and_go_and_every_record_is_handled_once_in_order() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").partitions(8).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let book = Arc::new(Book::default());
    let start = |workers| {
        let book = Arc::clone(&book);
        group.consumer().workers(workers).start(move |record: &Record<u64>| book.enter(record)).unwrap()
    };
    let lasting = start(1);
    let producers: Vec<_> = (0..2)
        .map(|_| {
            let log = log.clone();
            thread::spawn(move || {
                (0..10_000).for_each(|n| _ = log.append(Message::new(n).with_key(format!("{}", n % 50))).unwrap());
            })
        })
        .collect();
    for round in 0..10 {
        let passing = start(2);
        lasting.scale_to(1 + round % 4).unwrap();
        let mut reader = group.reader();
        if let Ok(record) = reader.recv_timeout(Duration::from_millis(1)) {
            book.enter(&record);
            group.commit(record.partition(), record.offset()).unwrap();
        }
        drop(reader);
        thread::yield_now();
        passing.stop();
    }
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    assert!(broker.wait_idle(LONG));
    assert_eq!(group.lag(), 0);
    book.assert_each_once_in_order(&log);
    assert!(within(LONG, move || broker.shutdown(LONG / 2)).is_clean());
}

#[test]
fn panics_and_failures_lose_nothing_and_keep_order() {
    quiet();
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").partitions(4).declare().unwrap();
    let group = log.group("g").retry(Retry::immediate(3)).start(Start::Earliest).unwrap();
    let book = Arc::new(Book::default());
    let into = Arc::clone(&book);
    let handler = move |record: &Record<u64>| match (*record.payload() % 7, record.attempt()) {
        (0, 1) => panic!("{ON_PURPOSE}"),
        (1, 1..=2) => Outcome::Retry,
        _ => {
            into.enter(record);
            Outcome::Ack
        }
    };
    group.consumer().workers(3).start(handler).unwrap();
    fill(&log, 0..2000);
    assert!(broker.wait_idle(LONG));
    book.assert_each_once_in_order(&log);
    assert_eq!(group.stats().dead_lettered, 0);
}

#[test]
fn a_slow_group_holds_up_nobody() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let slow = log.group("slow").start(Start::Earliest).unwrap();
    let fast = log.group("fast").start(Start::Earliest).unwrap();
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock().unwrap();
    let waits = Arc::clone(&gate);
    slow.consumer().start(move |_: &Record<u64>| drop(waits.lock().unwrap())).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    fast.consumer().start(move |record: &Record<u64>| tell.send(*record.payload()).unwrap()).unwrap();
    fill(&log, 0..1000);
    let got: Vec<_> = (0..1000).map(|_| told.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(got, (0..1000).collect::<Vec<_>>());
    assert!(slow.lag() >= 999);
    drop(shut);
    assert!(broker.wait_idle(LONG));
    assert_eq!(slow.lag(), 0);
}

#[test]
fn readers_race_with_retention_and_see_only_records_that_exist() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").retain(Retention::count(64)).declare().unwrap();
    let handled = log.group("handled").start(Start::Earliest).unwrap();
    let latest = Arc::new(AtomicU64::new(0));
    let last = Arc::clone(&latest);
    let handler = move |record: &Record<u64>| {
        assert_eq!(*record.payload(), record.offset());
        let before = last.swap(record.offset() + 1, Ordering::SeqCst);
        assert!(record.offset() >= before);
    };
    handled.consumer().workers(2).start(handler).unwrap();
    let by_hand = log.group("by hand").start(Start::Earliest).unwrap();
    let reading = thread::spawn(move || {
        let mut reader = by_hand.reader();
        let mut next = 0;
        while next < 20_000 {
            match reader.recv_timeout(LONG) {
                Ok(record) => {
                    assert_eq!((*record.payload(), record.offset() >= next), (record.offset(), true));
                    next = record.offset() + 1;
                    by_hand.commit(0, record.offset()).unwrap();
                }
                Err(LogError::Trimmed { oldest, .. }) => {
                    if let Err(again) = by_hand.seek(0, oldest) {
                        assert!(matches!(again, LogError::Trimmed { .. }), "{again}");
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
    });
    fill(&log, 0..20_000);
    reading.join().unwrap();
    assert!(broker.wait_idle(LONG));
    let stats = handled.stats();
    assert_eq!((stats.delivered + stats.skipped, stats.total_lag(), stats.panicked), (20_000, 0, 0));
}

#[test]
fn compaction_races_with_appends_and_readers() {
    let broker = Broker::new();
    let log: Log<Option<u64>> = broker.log("log").tombstone(Option::is_none).declare().unwrap();
    let group = log.group("copy").start(Start::Earliest).unwrap();
    let copy = Arc::new(Mutex::new(BTreeMap::new()));
    let into = Arc::clone(&copy);
    let handler = move |record: &Record<Option<u64>>| {
        let key = record.key().unwrap().to_owned();
        let mut copy = into.lock().unwrap();
        match record.payload() {
            Some(value) => _ = copy.insert(key, *value),
            None => _ = copy.remove(&key),
        }
    };
    group.consumer().start(handler).unwrap();
    let appending = {
        let log = log.clone();
        thread::spawn(move || {
            (0..30_000).for_each(|n| _ = log.append(keyed(n % 20, (n % 3 > 0).then_some(n))).unwrap());
        })
    };
    while !appending.is_finished() {
        log.compact_now();
    }
    appending.join().unwrap();
    assert!(broker.wait_idle(LONG));
    log.compact_now();
    let expected: BTreeMap<_, _> =
        (29_980..30_000_u64).filter(|n| n % 3 > 0).map(|n| (format!("k{}", n % 20), n)).collect();
    assert_eq!((&*copy.lock().unwrap(), log.len()), (&expected, expected.len() as u64));
}

#[test]
fn a_handler_may_append_while_the_broker_drains() {
    let broker = Broker::new();
    let first: Log<u64> = broker.log("first").declare().unwrap();
    let second: Log<u64> = broker.log("second").declare().unwrap();
    let onward = second.clone();
    let handler = move |record: &Record<u64>| {
        onward.append(*record.payload()).map(|_| ()).map_err(|e| Failure::transient(e.to_string()))
    };
    first.group("g").start(Start::Earliest).unwrap().consumer().start(handler).unwrap();
    let end = second.group("g").start(Start::Earliest).unwrap();
    end.consumer().start(|_: &Record<u64>| ()).unwrap();
    fill(&first, 0..5000);
    let report = within(LONG, move || broker.shutdown(LONG / 2));
    assert!(report.is_clean(), "{report}");
    assert_eq!((second.len(), end.lag()), (5000, 0));
}
