//! A key that is parked stays parked over a restart, until somebody releases or drops it.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{Broker, Exhausted, Failure, ManualClock, Message, Queue, Reason, Retry, Simulation};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    folder: Folder,
    clock: ManualClock,
    policy: Exhausted,
}

struct Run {
    broker: Broker,
    simulation: Simulation,
    queue: Queue<String>,
}

impl World {
    fn new(policy: Exhausted) -> Self {
        Self { folder: Folder::new(), clock: ManualClock::new(), policy }
    }

    fn run(&self) -> Run {
        let (broker, simulation) = simulated(&self.folder, &self.clock);
        let queue = broker.queue("steps").ordered_by(|step: &String| step.chars().next().unwrap());
        let queue = queue.retry(Retry::fixed(SECOND).max_attempts(2)).on_exhausted(self.policy);
        let queue = queue.durable(Durability::Buffered).declare().unwrap();
        Run { broker, simulation, queue }
    }

    /// As if the process were killed now, and started again.
    fn killed(&mut self, run: Run) -> Run {
        flush(&run.broker);
        let copy = self.folder.killed();
        drop(run);
        self.folder = copy;
        self.run()
    }

    /// One in which key "a" is parked because of "a1", and "b1" was handled.
    fn parked(&self) -> Run {
        let run = self.run();
        for step in ["a1", "b1", "a2", "b2"] {
            run.queue.send(step.to_owned()).unwrap();
        }
        let fails = |step: &Message<String>| match step.as_str() {
            "a1" => Err(Failure::transient("out of stock")),
            _ => Ok(()),
        };
        let consumer = run.queue.consumer().start(fails).unwrap();
        run.simulation.advance(5 * SECOND);
        consumer.stop();
        run
    }
}

impl Run {
    fn parked(&self) -> Vec<(String, usize)> {
        self.queue.parked().into_iter().map(|parked| (parked.key, parked.waiting)).collect()
    }

    /// What is handed out and acked until nothing more is.
    fn handled(&self) -> Vec<String> {
        let hand_out = || {
            let delivery = self.queue.try_recv().ok()?;
            let step = delivery.payload().clone();
            delivery.ack().unwrap();
            Some(step)
        };
        std::iter::from_fn(hand_out).collect()
    }
}

#[test]
fn a_parked_key_is_parked_again_with_all_that_is_known_of_it() {
    let mut world = World::new(Exhausted::Park);
    let mut run = world.parked();
    let before = run.queue.parked();
    assert_eq!((run.parked(), run.queue.len()), (vec![("a".into(), 2)], 2));
    world.clock.advance(100 * SECOND);
    for _ in 0..2 {
        run = world.killed(run);
        assert_eq!(run.queue.parked(), before);
        assert_eq!((run.queue.stats().parked, run.queue.stats().recovered), (2, 2));
    }
    run.queue.send("a3".to_owned()).unwrap();
    run.queue.send("c1".to_owned()).unwrap();
    assert_eq!(run.handled(), ["c1"], "other keys flow");
    assert_eq!(run.queue.stats().unaccounted(), 0);
    assert!(run.queue.release_key("a"));
    assert_eq!(run.handled(), ["a1", "a2", "a3"], "in their order");
    assert_eq!((run.queue.len(), run.queue.stats().unaccounted()), (0, 0));
}

#[test]
fn a_parked_message_holds_no_capacity_after_a_restart() {
    let mut world = World::new(Exhausted::Park);
    let run = world.parked();
    let room = |run: &Run| run.queue.capacity() - run.queue.len();
    let before = room(&run);
    let run = world.killed(run);
    assert_eq!(room(&run), before);
    let one_more = (0..).take_while(|_| run.queue.try_send("d".to_owned()).is_ok()).count();
    assert_eq!(one_more, run.queue.capacity() - 1, "only the one behind it does");
}

#[test]
fn a_key_that_was_released_is_not_parked_after_a_restart() {
    let mut world = World::new(Exhausted::Park);
    let run = world.parked();
    assert!(run.queue.release_key("a"));
    let run = world.killed(run);
    assert_eq!(run.parked(), []);
    let first = run.queue.recv().unwrap();
    assert_eq!(
        (first.payload().as_str(), first.attempt(), first.history().len()),
        ("a1", 1, 2),
        "attempts start again"
    );
    first.ack().unwrap();
    assert_eq!(run.handled(), ["a2"]);
}

#[test]
fn a_key_that_was_dropped_is_among_the_dead_letters() {
    let mut world = World::new(Exhausted::Park);
    let run = world.parked();
    let run = world.killed(run);
    assert_eq!(run.queue.drop_key("a"), 2);
    let run = world.killed(run);
    let letters = run.queue.dead_letters().list(9);
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason().clone()).collect();
    assert_eq!((run.parked(), reasons), (vec![], vec![Reason::Exhausted, Reason::KeyDropped]));
    assert_eq!((letters[0].error(), letters[0].attempts().len()), (Some("out of stock"), 2));
}

#[test]
fn a_stopped_queue_is_stopped_until_it_is_resumed() {
    let mut world = World::new(Exhausted::Stop);
    let run = world.parked();
    assert!(run.queue.is_stopped());
    let run = world.killed(run);
    run.queue.send("c1".to_owned()).unwrap();
    assert!(run.queue.is_stopped() && run.handled().is_empty());
    assert!(run.queue.resume());
    let run = world.killed(run);
    assert!(!run.queue.is_stopped());
    assert_eq!(run.handled().len(), run.queue.stats().acked as usize);
    assert_eq!((run.queue.len(), run.queue.stats().unaccounted()), (0, 0));
}

#[test]
fn with_another_policy_it_is_tried_again() {
    let mut world = World::new(Exhausted::Park);
    let run = world.parked();
    world.policy = Exhausted::DeadLetter;
    let run = world.killed(run);
    assert_eq!((run.parked(), run.handled()), (vec![], vec!["a1".to_owned(), "a2".to_owned()]));
}

#[test]
fn a_parked_key_and_one_that_waits_for_its_retry_keep_apart() {
    let mut world = World::new(Exhausted::Park);
    let run = world.parked();
    run.queue.send("b3".to_owned()).unwrap();
    run.queue.send("b4".to_owned()).unwrap();
    while let Ok(delivery) = run.queue.try_recv() {
        if *delivery.payload() == "b3" {
            delivery.retry_after(60 * SECOND).unwrap();
        } else {
            delivery.ack().unwrap();
        }
    }
    let run = world.killed(run);
    assert_eq!((run.parked(), run.handled()), (vec![("a".into(), 2)], vec![]));
    run.simulation.advance(60 * SECOND);
    assert_eq!(run.handled(), ["b3", "b4"]);
}
