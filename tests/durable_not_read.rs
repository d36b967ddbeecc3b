//! What is in the file and cannot be read is told, once, and once more when it can be.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::eventually;
use common::store::{Folder, flush};
use postroom::store::Durability;
use postroom::{
    Broker, Codec, CodecError, Event, Group, Json, Log, ManualClock, Message, Queue, QueueBuilder, Record, Retention,
    Simulation, Start,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

const SECOND: Duration = Duration::from_secs(1);
const BUFFERED: Durability = Durability::Buffered;

/// What the owner of the broker has heard of reading.
type Told = Arc<Mutex<Vec<Event>>>;

fn broker(folder: &Folder, clock: &ManualClock) -> (Broker, Simulation, Told) {
    let told = Told::default();
    let hears = Arc::clone(&told);
    let hook = move |event: &Event| {
        if matches!(event, Event::NotRead { .. } | Event::ReadAgain { .. }) {
            hears.lock().unwrap().push(event.clone());
        }
    };
    let (broker, simulation) =
        Broker::builder().clock(clock.clone()).store(folder.file()).on_event(hook).build_simulated().unwrap();
    (broker, simulation, told)
}

/// Makes of the only row with that payload what cannot be read, or mends it.
fn spoil(broker: &Broker, payload: u64, spoilt: bool) {
    flush(broker);
    let headers = if spoilt { "'['" } else { "NULL" };
    let sql = format!("UPDATE postroom_item SET headers = {headers} WHERE payload = CAST('{payload}' AS BLOB)");
    assert_eq!(broker.store().unwrap().connect().unwrap().execute(&sql, []).unwrap(), 1);
}

/// In a row of its own.
fn alone(n: u64) -> Message<u64> {
    Message::new(n).with_header("n", n.to_string())
}

fn take_all(queue: &Queue<u64>, simulation: &Simulation) -> Vec<u64> {
    let mut all = Vec::new();
    for _ in 0..60 {
        while let Ok(delivery) = queue.try_recv() {
            all.push(**delivery);
            delivery.ack().unwrap();
        }
        simulation.advance(SECOND);
    }
    all.sort_unstable();
    all
}

fn assert_began(told: &[Event], name: &str, at: Option<usize>) {
    let [Event::NotRead { queue, partition, error }] = told else { panic!("{told:?}") };
    assert_eq!((queue.as_str(), *partition), (name, at));
    assert!(!error.is_empty());
}

type Settings = fn(QueueBuilder<u64>) -> QueueBuilder<u64>;
type Sends = fn(u64) -> Message<u64>;

/// What a queue may read from its file in ways of its own.
const KINDS: [(&str, Settings, Sends); 4] = [
    ("in order", |queue| queue, alone),
    ("with priorities", |queue| queue.priority_levels(3), |n| alone(n).with_priority((n % 3) as u8)),
    ("by key", |queue| queue.ordered_by(|n: &u64| n % 3), alone),
    ("delayed", |queue| queue, |n| alone(n).with_delay(Duration::from_millis(1 + n))),
];

#[test]
fn a_row_of_a_queue_that_is_damaged_is_told_of_once_and_shows_until_it_is_mended() {
    for (kind, settings, message) in KINDS {
        let folder = Folder::new();
        let (broker, simulation, told) = broker(&folder, &ManualClock::new());
        let queue = settings(broker.queue("q").capacity(1_000)).durable(BUFFERED).window(4).declare().unwrap();
        (0..40).for_each(|n| _ = queue.send(message(n)).unwrap());
        spoil(&broker, 25, true);
        let before = take_all(&queue, &simulation);
        assert!(before.len() < 40 && !before.contains(&25), "{kind}: {before:?}");
        assert_began(&told.lock().unwrap(), "q", None);
        let trouble = queue.stats().trouble.expect(kind);
        assert!(trouble.contains("damaged"), "{kind}: {trouble}");
        assert_eq!(queue.stats().unaccounted(), 0, "{kind}");

        spoil(&broker, 25, false);
        let after = take_all(&queue, &simulation);
        let mut all = [before, after].concat();
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>(), "{kind}");
        assert_eq!(queue.stats().trouble, None, "{kind}");
        let over = Event::ReadAgain { queue: "q".into(), partition: None };
        assert_eq!(told.lock().unwrap()[1..], [over], "{kind}");
    }
}

#[test]
fn a_record_that_cannot_be_read_for_a_group_is_told_of_once_and_shows_until_it_can() {
    let folder = Folder::new();
    let clock = ManualClock::new();
    {
        let (broker, _simulation, _) = broker(&folder, &clock);
        let log: Log<u64> = broker.log("log").durable(BUFFERED).window(8).declare().unwrap();
        (0..40).for_each(|n| _ = log.append(alone(n)).unwrap());
    }
    let (broker, simulation, told) = broker(&folder, &clock);
    let log: Log<u64> = broker.log("log").durable(BUFFERED).window(8).declare().unwrap();
    let group = log.group("g").start(Start::Earliest).unwrap();
    spoil(&broker, 25, true);
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let sees = Arc::clone(&seen);
    group.consumer().start(move |record: &Record<u64>| sees.lock().unwrap().push(***record)).unwrap();
    simulation.advance(60 * SECOND);
    assert!(seen.lock().unwrap().len() < 26);
    assert_began(&told.lock().unwrap(), "log/g", Some(0));
    assert!(group.stats().trouble.is_some_and(|trouble| trouble.contains("damaged")));

    spoil(&broker, 25, false);
    simulation.advance(60 * SECOND);
    assert_eq!(*seen.lock().unwrap(), (0..40).collect::<Vec<_>>());
    assert_eq!(group.stats().trouble, None);
    let over = Event::ReadAgain { queue: "log/g".into(), partition: Some(0) };
    assert_eq!(told.lock().unwrap()[1..], [over]);
}

type MovesOn = fn(&Log<u64>, &Group<u64>);

#[test]
fn what_a_group_need_not_read_any_more_is_no_trouble() {
    let ways: [(&str, MovesOn); 2] = [
        ("a seek", |_, group| group.seek(0, 40).unwrap()),
        ("retention", |log, _| (40..140).for_each(|n| _ = log.append(n).unwrap())),
    ];
    for (way, move_on) in ways {
        let folder = Folder::new();
        let clock = ManualClock::new();
        let declare = |broker: &Broker| -> Log<u64> {
            broker.log("log").retain(Retention::count(40)).durable(BUFFERED).window(1_000).declare().unwrap()
        };
        {
            let (broker, _simulation, _) = broker(&folder, &clock);
            let log = declare(&broker);
            (0..40).for_each(|n| _ = log.append(alone(n)).unwrap());
        }
        let (broker, simulation, told) = broker(&folder, &clock);
        let log = declare(&broker);
        let group = log.group("g").start(Start::Earliest).unwrap();
        spoil(&broker, 25, true);
        group.consumer().start(|_: &Record<u64>| {}).unwrap();
        simulation.advance(5 * SECOND);
        assert_began(&told.lock().unwrap(), "log/g", Some(0));
        assert!(group.stats().trouble.is_some(), "{way}");

        move_on(&log, &group);
        simulation.advance(5 * SECOND);
        assert_eq!((group.lag(), group.stats().trouble), (0, None), "{way}");
        let over = Event::ReadAgain { queue: "log/g".into(), partition: Some(0) };
        assert_eq!(told.lock().unwrap()[1..], [over], "{way}");
    }
}

/// While it is shut, whoever decodes is held up.
#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    held: Mutex<()>,
    /// What was to be decoded then.
    reached: Mutex<Option<u64>>,
}

struct Gated(Arc<Gate>);

impl Codec<u64> for Gated {
    fn name(&self) -> &str {
        "gated"
    }
    fn encode(&self, n: &u64) -> Result<Vec<u8>, CodecError> {
        Json.encode(n)
    }
    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        let n = Json.decode(bytes)?;
        if self.0.shut.load(Ordering::SeqCst) {
            *self.0.reached.lock().unwrap() = Some(n);
            drop(self.0.held.lock());
        }
        Ok(n)
    }
}

#[test]
fn a_reading_that_was_taken_over_has_no_say_in_what_can_be_read() {
    for (kind, settings, message) in KINDS {
        let (folder, gate) = (Folder::new(), Arc::new(Gate::default()));
        let (broker, simulation, told) = broker(&folder, &ManualClock::new());
        let queue = settings(broker.queue("q").capacity(1_000)).durable_with(BUFFERED, Gated(Arc::clone(&gate)));
        let queue = queue.window(4).declare().unwrap();
        (0..40).for_each(|n| _ = queue.send(message(n)).unwrap());
        simulation.advance(SECOND);
        let held = gate.held.lock().unwrap();
        gate.shut.store(true, Ordering::SeqCst);
        let other = queue.clone();
        let reader = thread::spawn(move || while other.try_recv().is_ok_and(|delivery| delivery.ack().is_ok()) {});
        eventually("somebody decodes", || gate.reached.lock().unwrap().is_some());
        gate.shut.store(false, Ordering::SeqCst);
        let damaged = gate.reached.lock().unwrap().expect("just seen");
        spoil(&broker, damaged, true);
        // Takes over, reads what has been damaged meanwhile, and leaves it.
        queue.purge();
        assert_began(&told.lock().unwrap(), "q", None);
        drop(held);
        reader.join().unwrap();
        assert_began(&told.lock().unwrap(), "q", None);
        assert!(queue.stats().trouble.is_some(), "{kind}");

        spoil(&broker, damaged, false);
        assert!(take_all(&queue, &simulation).contains(&damaged), "{kind}");
        assert_eq!((queue.stats().trouble, queue.stats().unaccounted()), (None, 0), "{kind}");
        let over = Event::ReadAgain { queue: "q".into(), partition: None };
        assert_eq!(told.lock().unwrap()[1..], [over], "{kind}");
    }
}

#[test]
fn what_is_due_and_could_not_be_counted_is_no_trouble_once_it_is_counted_or_read() {
    for (way, unread, takes) in [("counted", 40, false), ("read", 2, true)] {
        let folder = Folder::new();
        let (broker, simulation, told) = broker(&folder, &ManualClock::new());
        let queue: Queue<u64> = broker.queue("q").durable(BUFFERED).window(4).declare().unwrap();
        (0..4).for_each(|n| _ = queue.send(alone(n)).unwrap());
        (4..8 + unread).for_each(|n| _ = queue.send(alone(n).with_delay(SECOND)).unwrap());
        flush(&broker);
        let rename = |from: &str, to: &str| {
            let sql = format!("ALTER TABLE {from} RENAME TO {to}");
            broker.store().unwrap().connect().unwrap().execute(&sql, []).unwrap();
        };
        rename("postroom_item", "elsewhere");
        simulation.advance(SECOND);
        assert_began(&told.lock().unwrap(), "q", None);
        assert!(queue.stats().trouble.is_some(), "{way}");

        rename("elsewhere", "postroom_item");
        if takes {
            while let Ok(delivery) = queue.try_recv() {
                delivery.ack().unwrap();
            }
        }
        simulation.advance(SECOND);
        assert_eq!(queue.stats().trouble, None, "{way}");
        let over = Event::ReadAgain { queue: "q".into(), partition: None };
        assert_eq!(told.lock().unwrap()[1..], [over], "{way}");
        take_all(&queue, &simulation);
        assert_eq!((queue.stats().acked, queue.stats().unaccounted()), (8 + unread, 0), "{way}");
        assert_eq!(told.lock().unwrap().len(), 2, "{way}");
    }
}

type Ends = fn(Broker, Simulation);

const ENDINGS: [(&str, Ends); 2] = [
    ("shut down", |broker, _simulation| _ = broker.shutdown(Duration::ZERO)),
    ("dropped", |broker, simulation| drop((broker, simulation))),
];

#[test]
fn nothing_is_told_of_a_file_that_was_closed_with_its_broker() {
    for (ending, end) in ENDINGS {
        let kinds: [(&str, Settings, Sends); 2] =
            [("in order", |queue| queue, alone), ("by key", |queue| queue.ordered_by(|n: &u64| n % 3), alone)];
        for (kind, settings, message) in kinds {
            let folder = Folder::new();
            let (broker, simulation, told) = broker(&folder, &ManualClock::new());
            let queue = settings(broker.queue("q")).durable(BUFFERED).window(4).declare().unwrap();
            (0..40).for_each(|n| _ = queue.send(message(n)).unwrap());
            end(broker, simulation);
            let left: Vec<_> = std::iter::from_fn(|| queue.try_recv().ok()).collect();
            assert!(left.len() < 40, "{ending}, {kind}");
            assert!(told.lock().unwrap().is_empty(), "{ending}, {kind}: {told:?}");
            assert_eq!(queue.stats().trouble, None, "{ending}, {kind}");
        }
    }
}

#[test]
fn nothing_is_told_to_a_group_of_a_file_that_was_closed_with_its_broker() {
    for (ending, end) in ENDINGS {
        let folder = Folder::new();
        let clock = ManualClock::new();
        let declare =
            |broker: &Broker| -> Log<u64> { broker.log("log").durable(BUFFERED).window(8).declare().unwrap() };
        {
            let (broker, _simulation, _) = broker(&folder, &clock);
            let log = declare(&broker);
            (0..40).for_each(|n| _ = log.append(alone(n)).unwrap());
        }
        let (broker, simulation, told) = broker(&folder, &clock);
        let log = declare(&broker);
        let group = log.group("g").start(Start::Earliest).unwrap();
        let mut reader = group.reader();
        end(broker, simulation);
        assert!(reader.try_recv().is_err(), "{ending}");
        assert!(told.lock().unwrap().is_empty(), "{ending}: {told:?}");
        assert_eq!(group.stats().trouble, None, "{ending}");
    }
}

#[test]
fn what_failed_when_time_began_comes_again_in_the_next_run() {
    let folder = Folder::new();
    let clock = ManualClock::starting_at(SystemTime::UNIX_EPOCH);
    let declare = |broker: &Broker| -> Queue<u64> { broker.queue("q").durable(BUFFERED).window(4).declare().unwrap() };
    {
        let (broker, _simulation, _) = broker(&folder, &clock);
        let queue = declare(&broker);
        (0..3).for_each(|n| _ = queue.send(n).unwrap());
        let all: Vec<_> = (0..3).map(|_| queue.recv().unwrap()).collect();
        all.into_iter().for_each(|delivery| delivery.retry_after(Duration::ZERO).unwrap());
    }
    for _ in 0..2 {
        let (broker, _simulation, _) = broker(&folder, &clock);
        let queue = declare(&broker);
        let all: Vec<_> = std::iter::from_fn(|| queue.try_recv().ok()).collect();
        let numbers: Vec<_> = all.iter().map(|delivery| (***delivery, delivery.attempt())).collect();
        assert_eq!(numbers.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2]);
        all.into_iter().for_each(|delivery| delivery.retry_after(Duration::ZERO).unwrap());
        assert_eq!((queue.len() + queue.delayed(), queue.stats().unaccounted()), (3, 0));
    }
}
