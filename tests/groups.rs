//! Groups of a log: their members come and go, get stuck, fail and are removed, and no partition waits for
//! ever, nothing is lost, and nobody holds what retention lets go.

mod common;

use common::log::{fill, simulated};
use common::{ON_PURPOSE, eventually, quiet, within};
use postroom::{
    AppendError, Broker, DeadLetter, Group, Log, LogError, ManualClock, Message, Outcome, PublishError, Queue, Record,
    Replay, Retention, Retry, Start, Topic,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LONG: Duration = Duration::from_secs(30);

fn letters(dead: &Queue<DeadLetter<u64>>) -> Vec<u64> {
    let mut letters = Vec::new();
    while let Ok(letter) = dead.try_recv() {
        letters.push(*letter.payload().message().payload());
        letter.ack().unwrap();
    }
    letters
}

/// A group that gave up on both records of its log, and room for one among its dead letters.
fn stuck() -> (Broker, Log<u64>, Group<u64>, Queue<DeadLetter<u64>>) {
    let (broker, simulation, log) = simulated(1);
    let dead: Queue<DeadLetter<u64>> = broker.queue("dead").capacity(1).declare().unwrap();
    let group = log.group("g").retry(Retry::none()).dead_letter_to(&dead).start(Start::Earliest).unwrap();
    let consumer = group.consumer().start(|_: &Record<u64>| Outcome::Retry).unwrap();
    fill(&log, 0..2);
    simulation.run_until_idle();
    consumer.stop();
    (broker, log, group, dead)
}

// ---- removing ------------------------------------------------------------------------------------

#[test]
fn a_group_without_members_can_be_removed_and_one_with_members_says_so() {
    let (broker, simulation, log) = simulated(2);
    let unknown = log.remove_group("g").unwrap_err();
    assert!(unknown.to_string().contains(r#"group "g" of log "log": there is none of that name"#), "{unknown}");

    let group = log.group("g").start(Start::Earliest).unwrap();
    let consumer = group.consumer().workers(2).start(|_: &Record<u64>| ()).unwrap();
    let reader = group.reader();
    let busy = log.remove_group("g").unwrap_err();
    assert!(busy.to_string().contains("2 members running"), "{busy}");
    fill(&log, 0..4);
    simulation.run_until_idle();
    drop(reader);
    consumer.pause();
    assert!(log.remove_group("g").unwrap_err().to_string().contains("1 member running"));
    consumer.stop();
    log.remove_group("g").unwrap();
    assert!(log.remove_group("g").is_err());
    assert!(log.stats().groups.is_empty());
    assert!(broker.queue::<DeadLetter<u64>>("log/g.dead").find().is_err());

    // Whoever still has a handle is told.
    assert_eq!(group.reader().try_recv().unwrap_err(), LogError::Removed);
    assert_eq!(group.commit(0, 0), Err(LogError::Removed));
    assert_eq!(group.seek(0, 0), Err(LogError::Removed));
    assert!(group.consumer().start(|_: &Record<u64>| ()).unwrap_err().to_string().contains("has been removed"));

    // One of the same name begins anew.
    let again = log.group("g").start(Start::Earliest).unwrap();
    assert_eq!((again.lag(), again.stats().delivered), (4, 0));
}

#[test]
fn the_dead_letters_of_a_removed_group_stay_and_the_next_of_its_name_goes_on_with_them() {
    let (broker, simulation, log) = simulated(1);
    let start = || log.group("g").retry(Retry::none()).start(Start::Latest).unwrap();
    for round in 0..2 {
        let consumer = start().consumer().start(|_: &Record<u64>| Outcome::Retry).unwrap();
        fill(&log, round..round + 1);
        simulation.run_until_idle();
        consumer.stop();
        log.remove_group("g").unwrap();
    }
    assert_eq!(letters(&broker.queue("log/g.dead").find().unwrap()), [0, 1]);
}

#[test]
fn a_group_is_not_removed_while_what_it_gave_up_on_has_no_room() {
    let (_broker, log, _, dead) = stuck();
    let full = log.remove_group("g").unwrap_err();
    assert!(full.to_string().contains("no room"), "{full}");
    assert_eq!(letters(&dead), [0]);
    log.remove_group("g").unwrap();
    assert_eq!(letters(&dead), [1]);
}

// ---- stuck in front of dead letters ---------------------------------------------------------------

#[test]
fn readers_by_hand_get_on_behind_a_record_that_found_no_room_among_the_dead_letters() {
    let (_broker, log, group, dead) = stuck();
    fill(&log, 2..3);
    let mut reader = group.reader();
    assert_eq!(reader.recv_timeout(10 * SECOND).unwrap_err(), LogError::TimedOut);
    assert_eq!(letters(&dead), [0]);
    // It is tried again every second, by whoever reads.
    assert_eq!(reader.recv_timeout(2 * SECOND).map(|record| *record.payload()), Ok(2));
    assert_eq!((letters(&dead), group.committed(0)), (vec![1], Ok(2)));
}

#[test]
fn a_reader_on_a_thread_gets_on_as_well() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let dead: Queue<DeadLetter<u64>> = broker.queue("dead").capacity(1).declare().unwrap();
    let group = log.group("g").retry(Retry::none()).dead_letter_to(&dead).start(Start::Earliest).unwrap();
    let consumer = group.consumer().start(|_: &Record<u64>| Outcome::Retry).unwrap();
    fill(&log, 0..3);
    eventually("the second record found no room", || group.stats().delivered == 2);
    consumer.stop();
    let reading = thread::spawn({
        let group = group.clone();
        move || group.reader().recv().map(|record| *record.payload())
    });
    assert_eq!(letters(&dead), [0]);
    while !reading.is_finished() {
        clock.advance(SECOND);
        thread::yield_now();
    }
    assert_eq!(reading.join().unwrap(), Ok(2));
}

// ---- memory --------------------------------------------------------------------------------------

#[test]
fn a_group_that_was_left_with_a_failing_record_holds_nothing_that_retention_lets_go() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let append = |log: &Log<Counted>| {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        log.append(Counted).unwrap();
    };
    let (broker, simulation) = Broker::simulated(1);
    let log = broker.log("log").retain(Retention::count(100)).declare().unwrap();
    let group = log.group("g").retry(Retry::fixed(HOUR)).start(Start::Earliest).unwrap();
    (0..20).for_each(|_| append(&log));
    let consumer = group.consumer().start_batch(10, Duration::ZERO, |_: &[Record<Counted>]| Outcome::Retry).unwrap();
    simulation.run_until_idle();
    consumer.stop();
    assert_eq!(group.stats().retried, 10);
    (0..1_000).for_each(|_| append(&log));
    assert_eq!(ALIVE.load(Ordering::SeqCst) as u64, log.len());
}

// ---- members -------------------------------------------------------------------------------------

#[test]
fn what_a_stopped_consumer_leaves_is_taken_by_one_that_slept() {
    for _ in 0..50 {
        let broker = Broker::new();
        let log: Log<u64> = broker.log("log").declare().unwrap();
        let group = log.group("g").start(Start::Earliest).unwrap();
        let (entered, inside) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        let waits = Arc::clone(&gate);
        let handler = move |_: &Record<u64>| {
            entered.send(()).unwrap();
            drop(waits.lock().unwrap());
        };
        let first = group.consumer().start(handler).unwrap();
        fill(&log, 0..3);
        inside.recv().unwrap();
        // The second has nothing to do as long as the first holds the partition.
        group.consumer().start(|_: &Record<u64>| ()).unwrap();
        thread::sleep(Duration::from_millis(1));
        let stopping = thread::spawn({
            let first = first.clone();
            move || first.stop()
        });
        eventually("the stop was ordered", || first.workers() == 0);
        thread::sleep(Duration::from_millis(1));
        drop(shut);
        eventually("the second has handled the rest", || group.lag() == 0);
        stopping.join().unwrap();
        assert_eq!(group.stats().delivered, 3);
    }
}

#[test]
fn a_pause_from_within_a_handler_is_the_end_of_the_run() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    fill(&log, 0..10);
    let inner = group.clone();
    group.consumer().start(move |record: &Record<u64>| _ = (*record.payload() == 3).then(|| inner.pause())).unwrap();
    assert!(broker.wait_idle(LONG));
    eventually("the fourth is committed", || group.committed(0) == Ok(4));
    thread::sleep(Duration::from_millis(5));
    assert_eq!(group.stats().delivered, 4);
    group.resume();
    assert!(broker.wait_idle(LONG));
    assert_eq!(group.lag(), 0);
}

#[test]
fn a_slow_partition_lets_the_others_have_their_turn() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let log: Log<u64> = broker.log("log").partitions(2).declare().unwrap();
    fill(&log, 0..40);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&order);
    let handler = move |record: &Record<u64>| {
        into.lock().unwrap().push(record.partition());
        clock.advance(Duration::from_millis(4));
    };
    group.consumer().start(handler).unwrap();
    assert!(broker.wait_idle(LONG));
    let order = order.lock().unwrap();
    let longest = order.chunk_by(|one, other| one == other).map(<[usize]>::len).max();
    assert_eq!((order.len(), longest), (40, Some(3)), "{order:?}");
}

#[test]
fn the_time_a_reader_waits_passes_at_the_pace_of_a_replay() {
    let (_broker, simulation, log) = simulated(1);
    fill(&log, 0..1);
    simulation.advance(60 * SECOND);
    fill(&log, 1..2);
    let group = log.group("g").replay(Replay::original_pace(2.0)).start(Start::Earliest).unwrap();
    let mut reader = group.reader();
    let before = simulation.now();
    // Nothing is committed, so the partition stays with the reader while the second record is not due.
    assert_eq!([reader.recv(), reader.recv()].map(|record| *record.unwrap().payload()), [0, 1]);
    assert_eq!(simulation.now().duration_since(before).unwrap(), 30 * SECOND);
}

#[test]
fn a_seek_takes_a_partition_from_a_reader_that_does_nothing() {
    let (_broker, _, log) = simulated(1);
    fill(&log, 0..3);
    let group = log.group("g").start(Start::Earliest).unwrap();
    let mut idle = group.reader();
    assert_eq!(idle.recv().unwrap().offset(), 0);
    let mut busy = group.reader();
    assert_eq!(busy.try_recv().unwrap_err(), LogError::Empty);
    group.seek(0, 1).unwrap();
    assert_eq!(busy.try_recv().map(|record| record.offset()), Ok(1));
}

#[test]
fn every_record_of_a_batch_says_which_attempt_it_is() {
    let (_broker, simulation, log) = simulated(1);
    let group = log.group("g").retry(Retry::immediate(3)).start(Start::Earliest).unwrap();
    fill(&log, 0..3);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&attempts);
    let handler = move |records: &[Record<u64>]| {
        into.lock().unwrap().push(records.iter().map(Record::attempt).collect::<Vec<_>>());
        if records[0].attempt() < 3 { Outcome::Retry } else { Outcome::Ack }
    };
    group.consumer().start_batch(3, Duration::ZERO, handler).unwrap();
    simulation.run_until_idle();
    assert_eq!(*attempts.lock().unwrap(), [[1; 3], [2; 3], [3; 3]]);
}

#[test]
fn a_batch_may_be_as_large_as_it_likes() {
    let (_broker, simulation, log) = simulated(1);
    fill(&log, 0..5_000);
    let group = log.group("g").start(Start::Offset(1)).unwrap();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&sizes);
    let handler = move |records: &[Record<u64>]| into.lock().unwrap().push(records.len());
    group.consumer().start_batch(usize::MAX, SECOND, handler).unwrap();
    simulation.advance(2 * SECOND);
    assert_eq!((sizes.lock().unwrap().clone(), group.lag()), (vec![4_999], 0));
}

// ---- shutdown ------------------------------------------------------------------------------------

#[test]
fn after_shutdown_no_group_begins_and_nobody_waits_for_records() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let dead: Queue<DeadLetter<u64>> = broker.queue("dead").declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    let shut_down = broker.clone();
    assert!(within(LONG, move || shut_down.shutdown(SECOND)).is_clean());
    for builder in [log.group("new"), log.group("other").dead_letter_to(&dead)] {
        assert!(builder.start(Start::Earliest).unwrap_err().to_string().contains("was shut down"));
    }
    assert!(group.consumer().start(|_: &Record<u64>| ()).unwrap_err().to_string().contains("closed"));
    assert_eq!(within(LONG, move || group.reader().recv().map(|_| ())), Err(LogError::Closed));
}

#[test]
fn a_queue_may_be_named_like_a_group() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    let queue: Queue<u64> = broker.queue("log/g").declare().unwrap();
    let dead: Queue<DeadLetter<u64>> = broker.queue("dead").declare().unwrap();
    let group = log.group("g").dead_letter_to(&dead).start(Start::Earliest).unwrap();
    group.consumer().workers(2).start(|_: &Record<u64>| ()).unwrap();
    queue.send(1).unwrap();
    // Nobody consumes the queue, so there is nothing to wait for.
    assert!(broker.wait_idle(LONG));
    assert_eq!(broker.describe().queues.iter().find(|queue| queue.name == "log/g").map(|queue| queue.workers), Some(0));
}

// ---- batches appended ----------------------------------------------------------------------------

#[test]
fn a_batch_stands_together_in_each_partition_and_offsets_come_in_its_order() {
    let (_broker, _, log) = simulated(4);
    let message = |n: u64| Message::new(n).with_key(format!("k{}", n % 7));
    let places = log.append_batch((0..100).map(message)).unwrap();
    for (n, place) in places.iter().enumerate() {
        assert_eq!(*log.read(place.partition, place.offset).unwrap().payload(), n as u64);
        assert_eq!(place.partition, log.partition_of(&format!("k{}", n % 7)));
    }
    assert_eq!((log.len(), log.append_batch(Vec::<u64>::new()).unwrap().len()), (100, 0));
    let keyless = log.append_batch(0..10).unwrap();
    assert!(keyless.windows(2).all(|two| two[0].partition == two[1].partition && two[0].offset + 1 == two[1].offset));
}

#[test]
fn batches_of_several_threads_do_not_mix() {
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").declare().unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            scope.spawn(move || {
                (0..200).for_each(|n| _ = log.append_batch((0..16).map(|_| writer * 1_000 + n)).unwrap());
            });
        }
    });
    let all: Vec<_> = (0..log.end(0).unwrap()).map(|offset| *log.read(0, offset).unwrap().payload()).collect();
    assert!(all.chunks(16).all(|batch| batch.iter().all(|n| *n == batch[0])));
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    quiet();
    let broker = Broker::new();
    let log: Log<u64> = broker.log("log").partitions(3).declare().unwrap();
    let fails = || log.append_batch((0..10_u64).inspect(|n| assert!(*n < 9, "{ON_PURPOSE}")));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).is_err());
    assert!(log.is_empty());
    broker.shutdown(SECOND);
    let refused = log.append_batch((0..5_u64).map(|n| Message::new(n).with_key(format!("{n}")))).unwrap_err();
    assert_eq!((refused.accepted, refused.rest.len(), log.len()), (0, 4, 0));
    let rest: Vec<_> = refused.rest.iter().map(|message| (**message, message.attempt())).collect();
    assert_eq!(rest, [(1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(*refused.cause.into_message(), 0);
}

#[test]
fn retention_holds_within_a_batch() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<u64> = broker.log("log").retain(Retention::count(100)).declare().unwrap();
    let places = log.append_batch(0..10_000).unwrap();
    assert_eq!(places.last().map(|place| place.offset), Some(9_999));
    assert!((100..=126).contains(&log.len()), "{}", log.len());
}

#[test]
fn a_size_beyond_all_bounds_counts_as_everything_that_is_kept() {
    let (broker, _) = Broker::simulated(1);
    let mark = Arc::new(AtomicBool::new(false));
    let huge = Arc::clone(&mark);
    let size = move |_: &u64| if huge.load(Ordering::SeqCst) { usize::MAX } else { 8 };
    let log = broker.log("log").retain(Retention::bytes(u64::MAX - 1, size)).compact().declare().unwrap();
    fill(&log, 0..100);
    mark.store(true, Ordering::SeqCst);
    fill(&log, 100..200);
    (0..10).for_each(|n| _ = log.append(Message::new(n).with_key("k")).unwrap());
    log.compact_now();
    assert!((1..=3).contains(&log.len()), "{}", log.len());
    mark.store(false, Ordering::SeqCst);
    fill(&log, 200..300);
    assert_eq!(log.stats().appended, 310);
}

// ---- keys by a function --------------------------------------------------------------------------

#[test]
fn a_function_names_the_key_of_messages_without_one() {
    let (broker, _) = Broker::simulated(1);
    let log: Log<u64> = broker.log("log").partitions(4).keyed_by(|n: &u64| n % 3).compact().declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    for n in 0..30 {
        let at = log.append(n).unwrap();
        assert_eq!(at.partition, log.partition_of(&format!("{}", n % 3)));
    }
    assert!(log.append_batch(30..60).unwrap().iter().all(|at| at.partition < 4));
    topic.publish("x", 60).unwrap();
    let own = log.append(Message::new(61).with_key("own")).unwrap();
    assert_eq!(log.read(own.partition, own.offset).unwrap().key(), Some("own"));
    log.compact_now();
    assert_eq!(log.len(), 4);
    let again = broker.log::<u64>("log").partitions(4).compact().declare().unwrap_err();
    assert!(again.to_string().contains("function for the key"), "{again}");
}

#[test]
fn a_key_function_that_panics_gives_the_message_back_and_nothing_is_published() {
    quiet();
    let broker = Broker::new();
    let key = |n: &u64| if *n == 13 { panic!("{ON_PURPOSE}") } else { *n };
    let log: Log<u64> = broker.log("log").keyed_by(key).declare().unwrap();
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    topic.bind(&queue, "#").unwrap();

    let refused = log.append(13).unwrap_err();
    assert!(matches!(&refused, AppendError::Panicked(_)) && refused.to_string().contains(ON_PURPOSE), "{refused}");
    assert_eq!(*refused.into_message().payload(), 13);

    let refused = topic.publish("x", 13).unwrap_err();
    assert!(matches!(&refused, PublishError::Panicked(_)), "{refused}");
    assert_eq!((refused.by(), log.len(), queue.len()), ("log", 0, 0));

    let refused = log.append_batch([12, 13, 14]).unwrap_err();
    assert_eq!((refused.accepted, *refused.cause.into_message().payload()), (0, 13));
    assert_eq!(refused.rest.iter().map(|message| **message).collect::<Vec<_>>(), [12, 14]);
    assert_eq!((log.append(14).unwrap().offset, broker.wait_idle(LONG)), (0, true));
}
