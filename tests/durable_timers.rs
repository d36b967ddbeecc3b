//! A timer with a name finds the message of an earlier run.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, CheckBack, ManualClock, Message, Queue, Resolution, Simulation, Topic};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

struct World {
    folder: Folder,
    clock: ManualClock,
}

struct Run {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<u32>,
    /// Both get everything.
    queues: [Queue<u32>; 2],
}

impl World {
    fn new() -> Self {
        Self { folder: Folder::new(), clock: ManualClock::new() }
    }

    fn run(&self) -> Run {
        let (broker, simulation) = simulated(&self.folder, &self.clock);
        let check = CheckBack::new(|_| Resolution::Unknown).durable(Durability::Buffered);
        let topic: Topic<u32> = broker.topic("orders").check_back(check).declare().unwrap();
        let queues = ["mail", "log"].map(|name| queue(&broker, name));
        queues.iter().for_each(|queue| topic.bind(queue, "#").unwrap());
        Run { broker, simulation, topic, queues }
    }

    fn killed(&mut self, run: Run) -> Run {
        self.copy(run);
        self.run()
    }

    fn copy(&mut self, run: Run) {
        flush(&run.broker);
        let copy = self.folder.killed();
        drop(run);
        self.folder = copy;
    }
}

fn queue(broker: &Broker, name: &str) -> Queue<u32> {
    broker.queue(name).durable(Durability::Buffered).declare().unwrap()
}

fn reminder(n: u32) -> Message<u32> {
    Message::new(n).with_delay(10 * MINUTE).with_timer("unpaid-7")
}

impl Run {
    fn delayed(&self) -> [Vec<u32>; 2] {
        [0, 1].map(|at| self.queues[at].list_delayed(9).iter().map(|(_, message)| **message).collect())
    }

    fn ready(&self) -> [Vec<u32>; 2] {
        [0, 1].map(|at| self.queues[at].list(9).iter().map(|message| **message).collect())
    }
}

#[test]
fn to_cancel_it_removes_every_copy_for_good() {
    let mut world = World::new();
    let run = world.run();
    run.topic.publish("reminder", reminder(1)).unwrap();
    let run = world.killed(run);
    assert_eq!(run.delayed(), [[1], [1]]);
    assert!(run.broker.cancel_timer("unpaid-7"));
    assert!(!run.broker.cancel_timer("unpaid-7"));
    let stats = run.queues[0].stats();
    assert_eq!((run.delayed(), stats.unaccounted()), ([vec![], vec![]], 0));
    let run = world.killed(run);
    run.simulation.advance(20 * MINUTE);
    assert_eq!((run.delayed(), run.ready()), ([vec![], vec![]], [vec![], vec![]]));
}

#[test]
fn one_that_fired_cannot_be_cancelled() {
    let mut world = World::new();
    let run = world.run();
    run.topic.publish("reminder", reminder(1)).unwrap();
    let run = world.killed(run);
    run.simulation.advance(10 * MINUTE);
    assert_eq!(run.ready(), [[1], [1]]);
    assert!(!run.broker.cancel_timer("unpaid-7"));
    run.topic.publish("reminder", reminder(2)).unwrap();
    let run = world.killed(run);
    assert_eq!((run.ready(), run.delayed()), ([vec![1], vec![1]], [vec![2], vec![2]]), "that of the first is over");
    assert!(run.broker.cancel_timer("unpaid-7"));
    assert_eq!((run.ready(), run.delayed()), ([vec![1], vec![1]], [vec![], vec![]]));
}

#[test]
fn a_later_message_replaces_one_of_an_earlier_run() {
    let mut world = World::new();
    let run = world.run();
    run.topic.publish("reminder", reminder(1)).unwrap();
    let run = world.killed(run);
    world.clock.advance(MINUTE);
    run.topic.publish("reminder", reminder(2)).unwrap();
    assert_eq!(run.delayed(), [[2], [2]]);
    let run = world.killed(run);
    assert_eq!(run.delayed(), [[2], [2]]);
    run.topic.publish("reminder", Message::new(3).with_timer("unpaid-7")).unwrap();
    assert_eq!((run.delayed(), run.ready()), ([vec![], vec![]], [vec![3], vec![3]]), "now is a time as well");
}

#[test]
fn of_those_a_crash_has_left_under_one_name_the_latest_counts() {
    let mut world = World::new();
    let run = world.run();
    // What is replaced is deleted after the commit of what replaces it; a crash in between leaves both.
    run.queues[0].send(reminder(1)).unwrap();
    world.clock.advance(MINUTE);
    run.queues[1].send(Message::new(2).with_delay(MINUTE).with_timer("other")).unwrap();
    world.copy(run);
    let connection = rusqlite(&world);
    let changed = connection.execute(
        "UPDATE postroom_item SET extra = CAST(replace(CAST(extra AS TEXT), 'other', 'unpaid-7') AS BLOB)",
        [],
    );
    assert_eq!(changed.unwrap(), 2);
    drop(connection);
    for names in [["mail", "log"], ["log", "mail"]] {
        let copy = Folder::new();
        std::fs::copy(world.folder.file(), copy.file()).unwrap();
        let (broker, simulation) = simulated(&copy, &world.clock);
        let queues = names.map(|name| queue(&broker, name));
        simulation.run_until_idle();
        let delayed: Vec<u32> =
            queues.iter().flat_map(|queue| queue.list_delayed(9)).map(|(_, m)| *m.payload()).collect();
        assert_eq!(delayed, [2], "declared in the order {names:?}");
        assert!(broker.cancel_timer("unpaid-7"));
    }
}

fn rusqlite(world: &World) -> postroom::store::rusqlite::Connection {
    let connection = postroom::store::rusqlite::Connection::open(world.folder.file()).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    connection
}

#[test]
fn one_that_was_sent_before_its_queue_was_declared_again_is_not_replaced() {
    let mut world = World::new();
    let run = world.run();
    run.queues[0].send(reminder(1)).unwrap();
    world.copy(run);
    let (broker, simulation) = simulated(&world.folder, &world.clock);
    let memory: Queue<u32> = broker.queue("memory").declare().unwrap();
    memory.send(reminder(2)).unwrap();
    let mail = queue(&broker, "mail");
    simulation.run_until_idle();
    assert_eq!((memory.delayed(), mail.delayed(), mail.len()), (1, 0, 0));
    assert_eq!(mail.stats().unaccounted(), 0);
}

#[test]
fn a_half_message_keeps_the_name_of_its_timer() {
    let mut world = World::new();
    let run = world.run();
    let id = run.topic.prepare("reminder", reminder(1)).unwrap().id();
    let run = world.killed(run);
    run.topic.commit_half(id).unwrap();
    assert_eq!(run.delayed(), [[1], [1]]);
    assert!(run.broker.cancel_timer("unpaid-7"));
    assert_eq!(run.delayed(), [[0_u32; 0], []]);
}
