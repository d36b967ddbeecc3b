//! A durable schedule goes on where the run before has stopped, and one that writes to the file holds up nobody.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, copy_file, flush, simulated};
use common::{ON_PURPOSE, eventually, quiet, within};
use postroom::store::Durability;
use postroom::{Broker, ManualClock, Message, Missed, Overflow, Queue, Schedule, ScheduleBuilder, Simulation, Topic};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// One run after the other on a clock that goes on.
struct World {
    folder: Folder,
    clock: ManualClock,
    start: SystemTime,
}

struct Run {
    broker: Broker,
    simulation: Simulation,
    jobs: Queue<u64>,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::new();
        Self { folder: Folder::new(), start: clock.now(), clock }
    }

    fn run(&self) -> Run {
        let (broker, simulation) = simulated(&self.folder, &self.clock);
        let jobs = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        Run { broker, simulation, jobs }
    }

    /// As if the process were killed now, and started again.
    fn killed(&mut self, run: Run) -> Run {
        let copy = self.folder.killed();
        drop(run);
        self.folder = copy;
        self.run()
    }

    fn minutes(&self, time: SystemTime) -> f64 {
        time.duration_since(self.start).unwrap().as_secs_f64() / 60.0
    }
}

impl Run {
    fn schedule(&self, missed: Missed) -> Schedule {
        self.schedule_as(|schedule| schedule.every(10 * MINUTE).missed(missed))
    }

    fn schedule_as(&self, adjust: impl FnOnce(ScheduleBuilder) -> ScheduleBuilder) -> Schedule {
        let schedule = adjust(self.broker.schedule("tick")).durable().send(&self.jobs, || 1).unwrap();
        self.simulation.run_until_idle();
        schedule
    }

    fn flush(&self) {
        flush(&self.broker);
    }

    fn batches(&self) -> u64 {
        self.flush();
        self.broker.stats().file.unwrap().batches
    }
}

#[test]
fn what_was_missed_while_the_process_was_down_is_made_up_for_as_asked() {
    for (missed, made_up) in [(Missed::Skip, 0), (Missed::Once, 1), (Missed::All, 3)] {
        let world = World::new();
        let run = world.run();
        run.schedule(missed);
        run.simulation.advance(25 * MINUTE);
        assert_eq!(run.jobs.len(), 2);
        drop(run);

        world.clock.advance(33 * MINUTE);
        let run = world.run();
        let schedule = run.schedule(missed);
        assert_eq!(run.jobs.len(), 2 + made_up, "{missed:?}: those of 30, 40 and 50 minutes");
        assert_eq!(schedule.info().missed, 3 - made_up as u64);
        assert_eq!(world.minutes(schedule.next().unwrap()), 60.0, "in the rhythm of the first run");
        run.simulation.advance(2 * MINUTE);
        assert_eq!(run.jobs.len(), 3 + made_up);
    }
}

#[test]
fn a_restart_between_two_firings_changes_nothing() {
    let mut world = World::new();
    let mut run = world.run();
    for minute in (2..=60).step_by(2) {
        run.schedule(Missed::All);
        run.simulation.advance(2 * MINUTE);
        assert_eq!(run.jobs.len(), minute / 10, "after {minute} minutes");
        run.flush();
        run = world.killed(run);
    }
}

#[test]
fn a_firing_is_noted_in_the_commit_that_writes_its_message() {
    let mut world = World::new();
    let run = world.run();
    let schedule = run.schedule(Missed::Once);
    let before = run.batches();
    run.simulation.advance(10 * MINUTE);
    assert_eq!((run.batches() - before, run.jobs.len(), schedule.fired()), (2, 1, 1), "one, and the flush");
    let run = world.killed(run);
    let schedule = run.schedule(Missed::Once);
    assert_eq!((run.jobs.len(), world.minutes(schedule.next().unwrap())), (1, 20.0));
}

#[test]
fn each_of_many_firings_that_are_made_up_for_is_noted_with_its_own_message() {
    let mut world = World::new();
    let run = world.run();
    run.schedule(Missed::All);
    run.flush();
    let run = world.killed(run);
    world.clock.advance(2 * HOUR);
    let before = run.batches();
    run.schedule(Missed::All);
    assert_eq!((run.jobs.len(), run.batches() - before), (12, 14), "one each, the declaration, and the flush");
    let run = world.killed(run);
    run.schedule(Missed::All);
    assert_eq!(run.jobs.len(), 12);
}

#[test]
fn a_crash_while_it_makes_up_for_many_loses_and_repeats_none() {
    let world = World::new();
    let run = world.run();
    run.schedule(Missed::All);
    drop(run);
    world.clock.advance(2 * HOUR);
    let run = world.run();
    let copy = Folder::new();
    let (from, to) = (world.folder.file(), copy.file());
    let calls = AtomicU64::new(0);
    let job = move || {
        let n = calls.fetch_add(1, Ordering::SeqCst);
        if n == 5 {
            copy_file(&from, &to);
        }
        n
    };
    let schedule = run.broker.schedule("tick").every(10 * MINUTE).missed(Missed::All).durable();
    schedule.send(&run.jobs, job).unwrap();
    run.simulation.run_until_idle();
    assert_eq!(run.jobs.len(), 12);
    drop(run);

    let world = World { folder: copy, ..world };
    let run = world.run();
    assert_eq!(run.jobs.len(), 5, "the crash");
    run.schedule(Missed::All);
    assert_eq!(run.jobs.len(), 12);
}

#[test]
fn a_firing_into_memory_or_into_a_full_queue_is_noted_too() {
    let mut world = World::new();
    let declare = |run: &Run| -> (Queue<u64>, Schedule, Schedule) {
        let full = run.broker.queue("full").capacity(1).overflow(Overflow::Reject);
        let full: Queue<u64> = full.durable(Durability::Buffered).declare().unwrap();
        let _ = full.try_send(0);
        let memory: Queue<u64> = run.broker.queue("memory").declare().unwrap();
        let topic: Topic<u64> = run.broker.topic("ticks").declare().unwrap();
        topic.bind(&memory, "#").unwrap();
        let every = |name: &str| run.broker.schedule(name).every(10 * MINUTE).durable();
        let refused = every("refused").send(&full, || 1).unwrap();
        let taken = every("taken").publish(&topic, "tick", || Message::new(1)).unwrap();
        run.simulation.run_until_idle();
        (memory, refused, taken)
    };
    let run = world.run();
    let (memory, refused, taken) = declare(&run);
    run.simulation.advance(10 * MINUTE);
    assert_eq!((memory.len(), refused.failed(), taken.fired()), (1, 1, 1));
    run.flush();
    drop((memory, refused, taken));
    let run = world.killed(run);
    let (memory, refused, taken) = declare(&run);
    assert_eq!((memory.len(), refused.failed(), taken.fired()), (0, 0, 0), "it is not repeated");
    run.simulation.advance(10 * MINUTE);
    assert_eq!((memory.len(), refused.failed()), (1, 1));
}

#[test]
fn another_rule_a_removed_one_and_one_that_is_not_durable_begin_afresh() {
    let world = World::new();
    let run = world.run();
    run.schedule(Missed::Once);
    drop(run);
    world.clock.advance(7 * MINUTE);
    let run = world.run();
    let other = run.schedule_as(|schedule| schedule.every(9 * MINUTE));
    assert_eq!(world.minutes(other.next().unwrap()), 16.0);
    other.remove();
    let again = run.schedule_as(|schedule| schedule.every(9 * MINUTE));
    assert_eq!(world.minutes(again.next().unwrap()), 16.0);
    run.simulation.advance(MINUTE);
    again.remove();
    drop(run);
    let run = world.run();
    let again = run.schedule_as(|schedule| schedule.every(9 * MINUTE));
    assert_eq!(world.minutes(again.next().unwrap()), 17.0, "removed before the restart");
    drop(run);
    world.clock.advance(HOUR);
    let run = world.run();
    let plain = run.broker.schedule("tick").every(9 * MINUTE).send(&run.jobs, || 1).unwrap();
    run.simulation.run_until_idle();
    assert_eq!((world.minutes(plain.next().unwrap()), run.jobs.len()), (77.0, 0));
}

#[test]
fn one_that_removes_itself_leaves_nothing_in_the_file() {
    let world = World::new();
    let run = world.run();
    let broker = run.broker.clone();
    let remove = move || {
        broker.schedule_named("tick").unwrap().remove();
        1
    };
    run.broker.schedule("tick").every(10 * MINUTE).durable().send(&run.jobs, remove).unwrap();
    run.simulation.advance(15 * MINUTE);
    assert_eq!((run.jobs.len(), run.broker.schedules().len()), (1, 0));
    drop(run);
    let run = world.run();
    let schedule = run.schedule(Missed::Once);
    assert_eq!(world.minutes(schedule.next().unwrap()), 25.0, "it begins afresh");
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_it() {
    let folder = Folder::new();
    let run = |clock: &ManualClock| {
        let (broker, simulation) = simulated(&folder, clock);
        let jobs: Queue<u64> = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        broker.schedule("tick").every(10 * MINUTE).durable().send(&jobs, || 1).unwrap();
        simulation.advance(10 * MINUTE);
        jobs.len()
    };
    let (late, early) = (ManualClock::new(), ManualClock::new());
    late.advance(1000 * HOUR);
    assert_eq!((run(&late), run(&early)), (1, 2));
}

#[test]
fn a_job_that_panics_has_fired() {
    quiet();
    let mut world = World::new();
    let panics = || -> u64 { panic!("{ON_PURPOSE}") };
    let run = world.run();
    let schedule = run.broker.schedule("tick").every(10 * MINUTE).durable().send(&run.jobs, panics).unwrap();
    run.simulation.advance(10 * MINUTE);
    assert_eq!((schedule.failed(), schedule.fired()), (1, 0));
    run.flush();
    let run = world.killed(run);
    let schedule = run.schedule(Missed::Once);
    assert_eq!((run.jobs.len(), world.minutes(schedule.next().unwrap())), (0, 20.0));
}

#[test]
fn a_paused_one_that_is_resumed_goes_on_from_there_in_the_next_run_too() {
    let mut world = World::new();
    let run = world.run();
    let schedule = run.schedule(Missed::All);
    schedule.pause();
    run.simulation.advance(35 * MINUTE);
    schedule.resume();
    run.flush();
    let run = world.killed(run);
    let schedule = run.schedule(Missed::All);
    assert_eq!((run.jobs.len(), world.minutes(schedule.next().unwrap())), (0, 40.0));
}

#[cfg(feature = "cron")]
#[test]
fn a_cron_rule_makes_up_for_what_was_missed() {
    let world = World::new();
    let run = world.run();
    run.schedule_as(|schedule| schedule.cron("0 3 * * *", "UTC").missed(Missed::All));
    drop(run);
    world.clock.advance(50 * HOUR);
    let run = world.run();
    run.schedule_as(|schedule| schedule.cron("0 3 * * *", "UTC").missed(Missed::All));
    assert_eq!(run.jobs.len(), 2, "two nights");
}

#[test]
fn what_contradicts_is_told() {
    let world = World::new();
    let run = world.run();
    run.schedule(Missed::Once);
    let other = run.broker.schedule("tick").every(10 * MINUTE).send(&run.jobs, || 1).unwrap_err().to_string();
    assert!(other.contains("durable is true, asked for false"), "{other}");
    let broker = Broker::new();
    let jobs: Queue<u64> = broker.queue("jobs").declare().unwrap();
    let error = broker.schedule("tick").every(MINUTE).durable().send(&jobs, || 1).unwrap_err().to_string();
    assert!(error.contains("no file"), "{error}");
}

/// While nothing can be committed, what else waits for its time goes on.
#[test]
fn a_firing_does_not_wait_for_its_commit_on_the_thread_that_fires() {
    within(Duration::from_secs(60), || {
        let folder = Folder::new();
        let broker = Broker::open(folder.file()).unwrap();
        let jobs: Queue<u64> = broker.queue("jobs").durable(Durability::Sync).declare().unwrap();
        let topic: Topic<u64> = broker.topic("ticks").declare().unwrap();
        topic.bind(&jobs, "#").unwrap();
        let memory: Queue<u64> = broker.queue("memory").declare().unwrap();
        let store = broker.store().unwrap();
        let mut mine = store.connect().unwrap();
        let (sent, published) = store
            .transaction(&mut mine, |_| -> Result<_, Box<dyn std::error::Error>> {
                let every = |name: &str| broker.schedule(name).every(Duration::from_millis(2));
                let sent = every("send").send(&jobs, || 1)?;
                let published = every("publish").publish(&topic, "tick", || 2)?;
                for delay in [5, 20, 50] {
                    memory.send(Message::new(delay).with_delay(Duration::from_millis(delay)))?;
                }
                (0..3).for_each(|_| memory.recv().unwrap().ack().unwrap());
                assert_eq!((jobs.len(), sent.fired(), published.fired()), (0, 0, 0), "none is safe yet");
                Ok((sent, published))
            })
            .unwrap();
        eventually("they are reported", || sent.fired() > 3 && published.fired() > 3);
        broker.schedules().iter().for_each(|info| assert_eq!(info.failed, 0, "{info:?}"));
        assert!(jobs.len() > 6);
    });
}
