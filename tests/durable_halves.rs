//! Durable half messages: after a crash there is either the half message or the message, and somebody asks on.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::truth::Truth;
use common::{ON_PURPOSE, eventually, quiet};
use postroom::store::Durability;
use postroom::{
    Broker, CheckBack, Codec, CodecError, DeadLetter, HalfError, ManualClock, Message, Obstacle, Overflow,
    PrepareError, Published, Queue, Reason, Resolution, Simulation, Topic,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const BUFFERED: Durability = Durability::Buffered;

/// One run after the other on a clock that goes on.
struct World {
    folder: Folder,
    clock: ManualClock,
    /// Since the first run began.
    truth: Truth,
}

struct Run {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<u32>,
    queue: Queue<u32>,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::new();
        Self { folder: Folder::new(), truth: Truth::since(clock.now()), clock }
    }

    fn check_back(&self) -> CheckBack<u32> {
        let clock = self.clock.clone();
        self.truth.check_back(move || clock.now()).durable(BUFFERED)
    }

    fn run(&self) -> Run {
        let (broker, simulation) = simulated(&self.folder, &self.clock);
        let topic = broker.topic("orders").check_back(self.check_back()).declare().unwrap();
        let queue = broker.queue("billing").durable(BUFFERED).declare().unwrap();
        topic.bind(&queue, "order.*").unwrap();
        Run { broker, simulation, topic, queue }
    }

    /// As if the process were killed now, and started again.
    fn killed(&mut self, run: Run) -> Run {
        let copy = self.folder.killed();
        drop(run);
        self.folder = copy;
        self.run()
    }
}

fn content(queue: &Queue<u32>) -> Vec<u32> {
    queue.list(100).iter().map(|message| **message).collect()
}

fn open(topic: &Topic<u32>) -> Vec<u32> {
    topic.halves().iter().map(|half| **half).collect()
}

/// Items in the file's streams of that kind.
fn in_file(broker: &Broker, kind: &str) -> u64 {
    flush(broker);
    let streams = broker.store().unwrap().reader().unwrap().streams().unwrap();
    streams.iter().filter(|stream| stream.kind == kind).map(|stream| stream.count).sum()
}

#[test]
fn a_prepared_message_survives_a_crash_with_all_it_asks_for() {
    let mut world = World::new();
    let run = world.run();
    let message = Message::new(7).with_id(4711).with_key("user-7").with_header("tenant", "acme").with_priority(3);
    let _half = run.topic.prepare("order.a", message.with_delay(5 * SECOND).with_ttl(60 * SECOND)).unwrap();
    let run = world.killed(run);
    let half = run.topic.halves().pop().unwrap();
    assert_eq!((*half.payload(), half.routing_key(), half.key()), (7, "order.a", Some("user-7")));
    assert_eq!((half.header("tenant"), half.priority()), (Some("acme"), 3));
    assert_eq!((run.topic.stats().halves.recovered, run.queue.len(), run.queue.delayed()), (1, 0, 0));

    world.clock.advance(2 * SECOND);
    assert_eq!(run.topic.commit_half(4711).unwrap().routed(), 1);
    assert_eq!(run.topic.commit_half(4711), Err(HalfError::NotOpen(4711.into())));
    let run = world.killed(run);
    assert_eq!((open(&run.topic), run.queue.delayed()), (vec![], 1), "its delay counts from the commit");
    run.simulation.advance(4 * SECOND);
    assert_eq!(run.queue.len(), 0);
    run.simulation.advance(SECOND);
    let got = run.queue.peek().unwrap();
    let left = got.expires_at().unwrap().duration_since(world.clock.now()).unwrap();
    assert_eq!((*got.payload(), got.id(), left), (7, 4711.into(), 60 * SECOND), "and its time to live from there");
}

#[test]
fn the_check_back_goes_on_where_it_was() {
    let mut world = World::new();
    let run = world.run();
    drop(run.topic.prepare("order.a", 7).unwrap());
    run.simulation.advance(40 * SECOND);
    flush(&run.broker);
    assert_eq!(world.truth.asked(), [(7, 6), (7, 36)]);
    let run = world.killed(run);
    run.simulation.advance(1000 * SECOND);
    let expected: Vec<_> = (0..15).map(|n| (7, 6 + 30 * n)).collect();
    assert_eq!(world.truth.asked(), expected, "no answer is forgotten, and no time put off");
    let halves = run.topic.stats().halves;
    assert_eq!((halves.recovered, halves.unresolved, halves.open), (1, 1, 0));
}

#[test]
fn what_is_overdue_is_asked_about_once_there_was_time_to_bind() {
    let mut world = World::new();
    let run = world.run();
    (1..=3).for_each(|n| drop(run.topic.prepare("order.a", n).unwrap()));
    world.truth.is(1, Resolution::Commit);
    world.truth.is(2, Resolution::Rollback);
    let run = world.killed(run);
    world.clock.advance(100 * SECOND);
    let run = world.killed(run);
    run.simulation.advance(5 * SECOND);
    assert_eq!(world.truth.asked(), []);
    run.simulation.advance(SECOND);
    assert_eq!(world.truth.asked(), [(1, 106), (2, 106), (3, 106)]);
    assert_eq!((content(&run.queue), open(&run.topic)), (vec![1], vec![3]));
    flush(&run.broker);
    let run = world.killed(run);
    assert_eq!((content(&run.queue), open(&run.topic)), (vec![1], vec![3]));
}

#[test]
fn to_commit_is_one_batch_for_all_durable_queues() {
    let world = World::new();
    let run = world.run();
    let audit: Queue<u32> = run.broker.queue("audit").durable(BUFFERED).declare().unwrap();
    let memory: Queue<u32> = run.broker.queue("memory").declare().unwrap();
    run.topic.bind(&audit, "#").unwrap();
    run.topic.bind(&memory, "#").unwrap();
    let watcher = run.topic.subscribe().open().unwrap();
    let half = run.topic.prepare("order.a", 7).unwrap();
    assert_eq!((in_file(&run.broker, "half messages"), in_file(&run.broker, "queue")), (1, 0));
    let before = run.broker.stats().file.unwrap().batches;
    assert_eq!(half.commit().unwrap().routed(), 3);
    assert_eq!(run.broker.stats().file.unwrap().batches - before, 1);
    assert_eq!((in_file(&run.broker, "half messages"), in_file(&run.broker, "queue")), (0, 2));
    assert_eq!((content(&run.queue), content(&audit), content(&memory)), (vec![7], vec![7], vec![7]));
    assert_eq!(**watcher.try_recv().unwrap(), 7);
}

#[test]
fn what_is_dropped_or_goes_where_no_file_is_leaves_the_file() {
    let mut world = World::new();
    let run = world.run();
    let memory: Queue<u32> = run.broker.queue("memory").declare().unwrap();
    run.topic.bind(&memory, "memory").unwrap();
    let halves: Vec<_> = ["memory", "nobody", "order.a"].map(|key| run.topic.prepare(key, 1).unwrap()).into();
    for (half, routed) in halves.into_iter().zip([Some(1), Some(0), None]) {
        match routed {
            Some(routed) => assert_eq!(half.commit().unwrap().routed(), routed),
            None => half.rollback().unwrap(),
        }
    }
    drop(run.topic.prepare("order.a", 4).unwrap());
    assert_eq!(run.topic.drain_halves().len(), 1);
    assert_eq!((in_file(&run.broker, "half messages"), content(&memory)), (0, vec![1]));
    let run = world.killed(run);
    assert_eq!((open(&run.topic), run.queue.len()), (vec![], 0));
}

#[test]
fn a_commit_that_finds_no_room_keeps_it_in_the_file_and_can_be_tried_again() {
    let mut world = World::new();
    let run = world.run();
    let small: Queue<u32> = run.broker.queue("small").capacity(1).durable(BUFFERED).declare().unwrap();
    run.topic.bind(&small, "order.*").unwrap();
    small.send(0).unwrap();
    let half = run.topic.prepare("order.a", 7).unwrap();
    let half = half.try_commit().unwrap_err().into_half().unwrap();
    assert_eq!((in_file(&run.broker, "half messages"), run.queue.len()), (1, 0));
    small.recv().unwrap().ack().unwrap();
    half.commit().unwrap();
    assert_eq!((in_file(&run.broker, "half messages"), content(&small)), (0, vec![7]));
    let run = world.killed(run);
    assert_eq!((content(&run.queue), open(&run.topic)), (vec![7], vec![]));
}

#[test]
fn a_full_queue_that_gives_up_on_it_has_the_dead_letter_in_the_file_first() {
    let mut world = World::new();
    let run = world.run();
    let small = run.broker.queue("small").capacity(1).overflow(Overflow::DeadLetter);
    let small: Queue<u32> = small.durable(BUFFERED).declare().unwrap();
    run.topic.bind(&small, "small").unwrap();
    small.send(0).unwrap();
    run.topic.prepare("small", 7).unwrap().commit().unwrap();
    assert_eq!((in_file(&run.broker, "half messages"), in_file(&run.broker, "dead letters")), (0, 1));
    let run = world.killed(run);
    let small = run.broker.queue("small").capacity(1).overflow(Overflow::DeadLetter);
    let small: Queue<u32> = small.durable(BUFFERED).declare().unwrap();
    assert_eq!((small.len(), **small.dead_letters().peek().unwrap().message()), (1, 7));
    assert!(open(&run.topic).is_empty());
}

#[test]
fn unresolved_ones_are_dead_letters_that_survive_and_can_be_published() {
    let mut world = World::new();
    let run = world.run();
    let id = run.topic.prepare("order.a", Message::new(7).with_header("tenant", "acme")).unwrap().id();
    run.simulation.advance(1000 * SECOND);
    assert_eq!((in_file(&run.broker, "half messages"), in_file(&run.broker, "dead letters")), (0, 1));
    let run = world.killed(run);
    assert!(open(&run.topic).is_empty());
    let letters: Queue<DeadLetter<u32>> = run.broker.queue("orders.half.dead").find().unwrap();
    {
        let letter = letters.peek().unwrap();
        assert_eq!((letter.reason(), letter.queue(), letter.message().id()), (&Reason::Unresolved, "orders", id));
        assert_eq!(letter.message().header("tenant"), Some("acme"));
    }
    assert_eq!(letters.redrive().run().unwrap().moved, 1);
    flush(&run.broker);
    let run = world.killed(run);
    let letters: Queue<DeadLetter<u32>> = run.broker.queue("orders.half.dead").find().unwrap();
    assert_eq!((content(&run.queue), letters.len()), (vec![7], 0));
}

#[test]
fn what_the_check_back_commits_is_kept_until_something_is_bound() {
    let world = World::new();
    let run = world.run();
    drop(run.topic.prepare("order.a", 7).unwrap());
    world.truth.is(7, Resolution::Commit);
    drop(run);
    let (broker, simulation) = simulated(&world.folder, &world.clock);
    let topic: Topic<u32> = broker.topic("orders").check_back(world.check_back()).declare().unwrap();
    simulation.advance(100 * SECOND);
    assert_eq!((world.truth.asked().len(), open(&topic)), (1, vec![7]), "decided, and nobody is there");
    let queue: Queue<u32> = broker.queue("billing").durable(BUFFERED).declare().unwrap();
    topic.bind(&queue, "order.*").unwrap();
    simulation.advance(SECOND);
    assert_eq!((content(&queue), open(&topic), world.truth.asked().len()), (vec![7], vec![], 1));
}

#[test]
fn a_shutdown_leaves_them_in_the_file() {
    let mut world = World::new();
    let run = world.run();
    let half = run.topic.prepare("order.a", 7).unwrap();
    let report = run.broker.shutdown(SECOND);
    assert!(report.is_clean(), "{report}");
    let stored: Vec<_> = report.stored.iter().map(|left| (left.queue.as_str(), left.delayed)).collect();
    assert_eq!((stored, report.half_messages.len()), (vec![("orders", 1)], 0));
    assert_eq!(run.topic.drain_halves().len(), 0, "what is in the file stays there");
    assert_eq!(*half.commit().unwrap_err().why(), HalfError::Closed);
    let run = world.killed(run);
    assert_eq!(open(&run.topic), [7]);
}

#[test]
fn ids_and_bounds_hold_over_a_restart() {
    let mut world = World::new();
    let run = world.run();
    drop(run.topic.prepare("order.a", Message::new(1).with_id(9)).unwrap());
    let run = world.killed(run);
    let same = run.topic.prepare("order.a", Message::new(2).with_id(9)).unwrap_err();
    assert!(matches!(same, PrepareError::SameId(_)), "{same}");
    let new = run.topic.prepare("order.a", 3).unwrap();
    assert_ne!(new.id(), 9.into());
    drop((new, run));

    let (broker, _simulation) = simulated(&world.folder, &world.clock);
    let few = world.check_back().max_open(2);
    let topic: Topic<u32> = broker.topic("orders").check_back(few).declare().unwrap();
    assert!(matches!(topic.prepare("order.a", 4), Err(PrepareError::TooMany(_))));
    topic.rollback_half(9).unwrap();
    drop(topic.prepare("order.a", Message::new(5).with_id(9)).unwrap());
    assert_eq!((topic.halves().len(), in_file(&broker, "half messages")), (2, 2));
}

#[test]
fn publish_transactional_settles_it_or_leaves_it_to_the_check_back() {
    let mut world = World::new();
    let run = world.run();
    let save = |n: &Message<u32>| match **n {
        1 => Resolution::Commit,
        2 => Resolution::Rollback,
        _ => Resolution::Unknown,
    };
    assert!(matches!(run.topic.publish_transactional("order.a", 1, save).unwrap(), Published::Committed(_)));
    assert!(matches!(run.topic.publish_transactional("order.a", 2, save).unwrap(), Published::RolledBack(_)));
    assert!(matches!(run.topic.publish_transactional("order.a", 3, save).unwrap(), Published::Unknown(_)));
    flush(&run.broker);
    let run = world.killed(run);
    assert_eq!((content(&run.queue), open(&run.topic)), (vec![1], vec![3]));
}

/// Refuses 13, and panics at 14.
#[derive(Clone, Copy)]
struct Superstitious;

impl Codec<u32> for Superstitious {
    fn name(&self) -> &str {
        "superstitious"
    }
    fn encode(&self, n: &u32) -> Result<Vec<u8>, CodecError> {
        assert_ne!(*n, 14, "{ON_PURPOSE}");
        if *n == 13 { Err("13".into()) } else { Ok(n.to_be_bytes().to_vec()) }
    }
    fn decode(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        let n = u32::from_be_bytes(bytes.try_into()?);
        if n == 15 { Err("15".into()) } else { Ok(n) }
    }
}

#[test]
fn what_cannot_be_written_or_read_is_told() {
    quiet();
    let folder = Folder::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let declare = |broker: &Broker| -> Topic<u32> {
        let check = CheckBack::new(|_| Resolution::Unknown).durable_with(BUFFERED, Superstitious);
        broker.topic("orders").check_back(check).declare().unwrap()
    };
    let open = || {
        let told = told.clone();
        let hook = move |event: &postroom::Event| told.lock().unwrap().push(format!("{event:?}"));
        Broker::builder().store(folder.file()).on_event(hook).build().unwrap()
    };
    let broker = open();
    let topic = declare(&broker);
    for n in [13, 14] {
        let error = topic.prepare("a", Message::new(n).with_id(77)).unwrap_err();
        assert!(matches!(error, PrepareError::Unencodable(_)), "{error}");
        assert_eq!(*error.into_message(), n);
    }
    (15..=16).for_each(|n| drop(topic.prepare("a", Message::new(n).with_id(u64::from(n))).unwrap()));
    assert_eq!((topic.stats().halves.prepared, topic.stats().halves.open), (2, 2));
    drop((topic, broker));

    let broker = open();
    let topic = declare(&broker);
    let kept: Vec<u32> = topic.halves().iter().map(|half| **half).collect();
    assert_eq!((kept, in_file(&broker, "undecodable")), (vec![16], 1));
    assert!(told.lock().unwrap().iter().any(|event| event.contains("Undecodable")), "{told:?}");
    broker.store().unwrap().close().unwrap();
    let error = topic.prepare("a", 1).unwrap_err();
    assert!(matches!(&error, PrepareError::NotStored(refused) if refused.store_error().is_some()), "{error}");
    assert_eq!((topic.stats().halves.open, *error.into_message()), (1, 1));
    let refused = topic.commit_half(16);
    assert!(refused.is_ok(), "nothing durable is bound: {refused:?}");
}

#[test]
fn a_commit_that_the_file_does_not_take_leaves_it_open() {
    let folder = Folder::new();
    let broker = Broker::open(folder.file()).unwrap();
    let check = CheckBack::new(|_| Resolution::Unknown).durable(BUFFERED);
    let topic: Topic<u32> = broker.topic("orders").check_back(check).declare().unwrap();
    let queue: Queue<u32> = broker.queue("billing").durable(BUFFERED).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let half = topic.prepare("a", 1).unwrap();
    broker.store().unwrap().close().unwrap();
    let unsettled = half.commit().unwrap_err();
    assert!(matches!(unsettled.why(), HalfError::Refused { why: Obstacle::NotStored(_), .. }), "{unsettled}");
    assert_eq!((topic.stats().halves.open, queue.len()), (1, 0));
    assert!(unsettled.into_half().is_some());
}

#[test]
fn with_threads_a_lost_producer_is_found_out_after_a_restart() {
    let folder = Folder::new();
    let declare = |broker: &Broker| -> (Topic<u32>, Queue<u32>) {
        let check = CheckBack::new(|n: &Message<u32>| match **n % 2 {
            0 => Resolution::Commit,
            _ => Resolution::Rollback,
        });
        let check = check.first(Duration::from_millis(20)).durable(Durability::Sync);
        let topic = broker.topic("orders").check_back(check).declare().unwrap();
        let queue = broker.queue("billing").durable(Durability::Sync).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        (topic, queue)
    };
    let broker = Broker::open(folder.file()).unwrap();
    let (topic, queue) = declare(&broker);
    (0..20).for_each(|n| drop(topic.prepare("a", n).unwrap()));
    drop((broker, topic, queue));
    let broker = Broker::open(folder.file()).unwrap();
    let (topic, queue) = declare(&broker);
    eventually("all are settled", || topic.stats().halves.open == 0);
    eventually("half of them are there", || queue.len() == 10);
    assert!(broker.shutdown(Duration::from_secs(10)).is_clean());
}

#[test]
fn declarations_that_contradict_each_other_are_told() {
    let folder = Folder::new();
    let check = || CheckBack::new(|_: &Message<u32>| Resolution::Unknown);
    let without = Broker::new();
    let error = without.topic("orders").check_back(check().durable(BUFFERED)).declare().unwrap_err().to_string();
    assert!(error.contains("no file"), "{error}");

    let broker = Broker::open(folder.file()).unwrap();
    let topic = broker.topic("orders").check_back(check().durable(BUFFERED)).declare().unwrap();
    let again = broker.topic("orders").check_back(check().durable(BUFFERED)).declare().unwrap();
    drop(topic.prepare("a", 1).unwrap());
    assert_eq!(again.halves().len(), 1, "alike is the same");
    for other in [check(), check().durable(Durability::Sync)] {
        let error = broker.topic("orders").check_back(other).declare().unwrap_err().to_string();
        assert!(error.contains("it exists as"), "{error}");
    }
    drop((broker, topic, again));
    let broker = Broker::open(folder.file()).unwrap();
    let other = check().durable_with(BUFFERED, Superstitious);
    let error = broker.topic("orders").check_back(other).declare().unwrap_err().to_string();
    assert!(error.contains("codec"), "{error}");
}
