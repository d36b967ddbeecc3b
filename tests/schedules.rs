//! Messages at fixed times: when they fire, what is made up for, and who may change that.

use postroom::{Broker, ManualClock, Message, Missed, Overflow, Queue, Schedule, Simulation, Topic};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

const MINUTE: Duration = Duration::from_secs(60);

/// A simulation whose clock may also be moved past everything that is due.
struct Fixture {
    broker: Broker,
    simulation: Simulation,
    clock: ManualClock,
    jobs: Queue<u64>,
}

fn fixture() -> Fixture {
    fixture_on(ManualClock::new())
}

fn fixture_on(clock: ManualClock) -> Fixture {
    let (broker, simulation) = Broker::builder().clock(clock.clone()).seed(1).build_simulated().unwrap();
    let jobs = broker.queue("jobs").declare().unwrap();
    Fixture { broker, simulation, clock, jobs }
}

impl Fixture {
    fn every_minute(&self, name: &str, missed: Missed) -> Schedule {
        self.broker.schedule(name).every(MINUTE).missed(missed).send(&self.jobs, || 1).unwrap()
    }

    /// Moves the clock as a suspended process finds it moved, and lets everybody notice.
    fn sleep_through(&self, time: Duration) {
        self.clock.advance(time);
        self.simulation.run_until_idle();
    }

    /// When the messages were sent, as time since `start`.
    fn arrivals(&self, start: SystemTime) -> Vec<Duration> {
        self.jobs.drain().iter().map(|message| message.published_at().duration_since(start).unwrap()).collect()
    }
}

fn minutes(n: &[u64]) -> Vec<Duration> {
    n.iter().map(|&n| MINUTE * n as u32).collect()
}

#[test]
fn an_interval_fires_at_every_multiple_of_it_and_never_early() {
    let f = fixture();
    let start = f.simulation.now();
    let schedule = f.every_minute("tick", Missed::Once);
    assert_eq!(schedule.next(), Some(start + MINUTE));

    f.simulation.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(f.jobs.len(), 0);
    f.simulation.advance(MINUTE * 3);
    assert_eq!(f.arrivals(start), minutes(&[1, 2, 3]));
    assert_eq!((schedule.fired(), schedule.failed()), (3, 0));
    assert_eq!(schedule.next(), Some(start + MINUTE * 4));
}

#[test]
fn schedules_fire_in_the_order_of_their_times() {
    let f = fixture();
    for period in [3_u32, 5] {
        f.broker
            .schedule(format!("every {period}"))
            .every(MINUTE * period)
            .send(&f.jobs, move || u64::from(period))
            .unwrap();
    }
    f.simulation.advance(MINUTE * 10);
    let order: Vec<u64> = f.jobs.drain().iter().map(|message| **message).collect();
    assert_eq!(order, [3, 5, 3, 3, 5]);
}

#[test]
fn an_interval_counts_from_its_start_even_if_that_has_passed() {
    let f = fixture();
    let start = f.simulation.now();
    let schedule =
        |name: &str, at| f.broker.schedule(name).every(MINUTE * 10).starting_at(at).send(&f.jobs, || 1).unwrap();

    assert_eq!(schedule("later", start + MINUTE * 3).next(), Some(start + MINUTE * 3));
    assert_eq!(schedule("now", start).next(), Some(start));
    assert_eq!(schedule("passed", start - MINUTE * 3).next(), Some(start + MINUTE * 7));
    assert_eq!(schedule("long passed", SystemTime::UNIX_EPOCH - MINUTE).next(), Some(start));

    f.simulation.run_until_idle();
    assert_eq!(f.arrivals(start), minutes(&[0, 0]));
}

#[test]
fn a_topic_gets_the_message_under_the_key_with_its_headers() {
    let f = fixture();
    let topic: Topic<u64> = f.broker.topic("reports").declare().unwrap();
    topic.bind(&f.jobs, "report.*").unwrap();
    let made = AtomicU64::new(0);
    f.broker
        .schedule("report")
        .every(MINUTE)
        .publish(&topic, "report.due", move || {
            Message::new(made.fetch_add(1, Ordering::Relaxed)).with_header("by", "schedule")
        })
        .unwrap();
    f.simulation.advance(MINUTE * 2);
    let messages = f.jobs.drain();
    assert_eq!(messages.iter().map(|message| **message).collect::<Vec<_>>(), [0, 1]);
    assert!(messages.iter().all(|m| m.routing_key() == "report.due" && m.header("by") == Some("schedule")));
}

// ---- missed firings ------------------------------------------------------------------------------

#[test]
fn firings_that_were_slept_through_are_left_out_merged_or_made_up_for() {
    // Ten and a half intervals of ten minutes, so the latest firing is five minutes late.
    for (missed, fired, left_out) in [(Missed::Skip, 0, 10), (Missed::Once, 1, 9), (Missed::All, 10, 0)] {
        let f = fixture();
        let start = f.simulation.now();
        let schedule = f.broker.schedule("s").every(MINUTE * 10).missed(missed).send(&f.jobs, || 1).unwrap();
        f.sleep_through(MINUTE * 105);

        assert_eq!((schedule.fired(), schedule.info().missed), (fired, left_out), "{missed:?}");
        assert_eq!(schedule.next(), Some(start + MINUTE * 110), "{missed:?}");
        f.simulation.advance(MINUTE * 5);
        assert_eq!(schedule.fired(), fired + 1, "{missed:?}: the rhythm goes on");
    }
}

#[test]
fn a_firing_that_is_hardly_late_is_not_a_missed_one() {
    let f = fixture();
    let schedule = f.broker.schedule("s").every(MINUTE * 10).missed(Missed::Skip).send(&f.jobs, || 1).unwrap();
    f.sleep_through(MINUTE * 10 + Duration::from_secs(59));
    assert_eq!((schedule.fired(), schedule.info().missed), (1, 0));
}

#[test]
fn making_up_for_very_many_happens_completely() {
    let f = fixture();
    let schedule = f.every_minute("s", Missed::All);
    f.sleep_through(MINUTE * 5000);
    assert_eq!(schedule.fired(), 5000);
}

#[test]
fn a_schedule_that_is_always_behind_holds_up_neither_others_nor_shutdown() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").overflow(Overflow::DropOldest).declare().unwrap();
    let slow = || {
        std::thread::sleep(Duration::from_millis(3));
        1
    };
    let tick = Duration::from_millis(1);
    let behind = broker.schedule("always behind").every(tick).missed(Missed::All).send(&queue, slow).unwrap();
    let other = broker.schedule("other").every(Duration::from_millis(20)).send(&queue, || 2).unwrap();
    // By now it owes more than it makes up for in one go.
    wait_until(|| behind.fired() > 200);
    let before = other.fired();
    wait_until(|| other.fired() >= before + 3);
    let (before, patience) = (Instant::now(), Duration::from_secs(30));
    broker.shutdown(patience);
    assert!(before.elapsed() < patience, "{:?}", before.elapsed());
}

// ---- pause, resume, remove -----------------------------------------------------------------------

#[test]
fn a_paused_schedule_is_silent_and_resumes_in_its_rhythm_without_making_up() {
    let f = fixture();
    let start = f.simulation.now();
    let schedule = f.every_minute("s", Missed::All);
    f.simulation.advance(MINUTE);
    schedule.pause();
    assert!(schedule.info().paused && schedule.next().is_none());
    f.simulation.advance(MINUTE * 10 + Duration::from_secs(30));
    schedule.resume();
    schedule.resume();
    assert_eq!(schedule.next(), Some(start + MINUTE * 12));
    f.simulation.advance(MINUTE);
    assert_eq!(f.arrivals(start), minutes(&[1, 12]));
    assert_eq!(schedule.info().missed, 0);
}

#[test]
fn a_pause_without_a_firing_in_it_changes_nothing() {
    let f = fixture();
    let start = f.simulation.now();
    let schedule = f.every_minute("s", Missed::Once);
    schedule.pause();
    schedule.resume();
    f.simulation.advance(MINUTE * 2);
    assert_eq!(f.arrivals(start), minutes(&[1, 2]));
}

#[test]
fn a_removed_schedule_is_gone_and_its_name_free() {
    let f = fixture();
    let schedule = f.every_minute("s", Missed::Once);
    schedule.remove();
    schedule.resume();
    f.simulation.advance(MINUTE * 3);
    assert!(f.jobs.is_empty() && f.broker.schedules().is_empty() && f.broker.schedule_named("s").is_none());
    assert_eq!((schedule.next(), f.simulation.next_due()), (None, None));

    let other = f.broker.schedule("s").every(MINUTE * 2).send(&f.jobs, || 1).unwrap();
    schedule.remove();
    assert!(f.broker.schedule_named("s").is_some(), "the old handle does not remove the new schedule");
    f.simulation.advance(MINUTE * 2);
    assert_eq!(other.fired(), 1);
}

#[test]
fn a_schedule_may_remove_itself_while_it_fires() {
    let f = fixture();
    let own = Arc::new(OnceLock::<Schedule>::new());
    let handle = own.clone();
    let remove = move || {
        handle.get().unwrap().remove();
        1
    };
    own.set(f.broker.schedule("once").every(MINUTE).missed(Missed::All).send(&f.jobs, remove).unwrap()).unwrap();
    f.sleep_through(MINUTE * 10);
    f.simulation.advance(MINUTE * 10);
    assert_eq!((f.jobs.len(), Arc::strong_count(&own)), (1, 1), "it has fired once, and its function is dropped");
}

#[test]
fn a_schedule_is_found_by_name_and_all_are_listed() {
    let f = fixture();
    f.every_minute("b", Missed::Once);
    f.every_minute("a", Missed::Once);
    f.broker.schedule_named("b").unwrap().pause();
    f.simulation.advance(MINUTE);

    let [a, b] = f.broker.schedules().try_into().unwrap();
    assert_eq!((a.name.as_str(), a.rule.as_str(), a.target.as_str()), ("a", "every 60s", "queue \"jobs\""));
    assert_eq!((a.fired, a.paused, a.next), (1, false, Some(f.simulation.now() + MINUTE)));
    assert_eq!((b.name.as_str(), b.fired, b.paused, b.next), ("b", 0, true, None));
    assert!(f.broker.schedule_named("c").is_none());
}

#[test]
fn dropping_the_handle_ends_nothing() {
    let f = fixture();
    drop(f.every_minute("s", Missed::Once));
    f.simulation.advance(MINUTE);
    assert_eq!(f.jobs.len(), 1);
}

// ---- declaring -----------------------------------------------------------------------------------

#[test]
fn declaring_alike_gives_the_same_schedule_and_keeps_its_function() {
    let f = fixture();
    let first = f.broker.schedule("s").every(MINUTE).send(&f.jobs, || 1).unwrap();
    f.simulation.advance(MINUTE / 2);
    let second = f.broker.schedule("s").every(MINUTE).send(&f.jobs, || 2).unwrap();
    f.simulation.advance(MINUTE / 2);
    assert_eq!((first.fired(), second.fired(), f.broker.schedules().len()), (1, 1, 1));
    assert_eq!(*f.jobs.drain()[0], 1);
}

#[test]
fn declaring_with_anything_different_says_both_sides_of_each() {
    let f = fixture();
    let topic: Topic<u64> = f.broker.topic("t").declare().unwrap();
    f.every_minute("s", Missed::Once);
    let other = f.broker.schedule("s").every(MINUTE * 2).missed(Missed::All).publish(&topic, "k", || 1);
    let error = other.unwrap_err();
    assert_eq!(error.subject(), "schedule \"s\"");
    assert_eq!(
        error.problems(),
        [
            "it exists with the rule every 60s, asked for every 120s",
            "it exists for queue \"jobs\", asked for topic \"t\" with key \"k\"",
            "missed is Once, asked for All",
        ]
    );
    let later = f.broker.schedule("s").every(MINUTE).starting_at(f.simulation.now()).send(&f.jobs, || 1);
    assert!(later.unwrap_err().to_string().contains("from Unix time 1735689600s"));
}

#[test]
fn everything_wrong_is_told_at_once() {
    let f = fixture();
    let foreign: Queue<u64> = Broker::new().queue("elsewhere").declare().unwrap();
    let error = f.broker.schedule("").every(Duration::ZERO).send(&foreign, || 1).unwrap_err();
    assert_eq!(error.problems().len(), 3, "{error}");
    for part in ["the name is empty", "interval of 0ns: at least 1ms", "queue \"elsewhere\", belongs to another broker"]
    {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    let error = f.broker.schedule("s").send(&f.jobs, || 1).unwrap_err();
    assert!(error.to_string().contains("it has no rule"), "{error}");
    let error = f.broker.schedule("s").every(Duration::MAX).send(&f.jobs, || 1).unwrap_err();
    assert!(error.to_string().contains("never fires"), "{error}");
    assert!(f.broker.schedules().is_empty());
}

// ---- failures ------------------------------------------------------------------------------------

#[test]
fn a_full_queue_fails_a_firing_and_the_next_one_tries_again() {
    let f = fixture();
    let small: Queue<u64> = f.broker.queue("small").capacity(1).declare().unwrap();
    let schedule = f.broker.schedule("s").every(MINUTE).send(&small, || 1).unwrap();
    f.simulation.advance(MINUTE * 3);
    assert_eq!((schedule.fired(), schedule.failed()), (1, 2));
    assert_eq!(schedule.info().last_error.as_deref(), Some("queue \"small\" is full"));
    assert_eq!(small.drain().len(), 1);
    f.simulation.advance(MINUTE);
    assert_eq!((schedule.fired(), schedule.failed()), (2, 2));
}

#[test]
fn a_closed_queue_behind_a_topic_fails_a_firing() {
    let f = fixture();
    let topic: Topic<u64> = f.broker.topic("t").declare().unwrap();
    topic.bind(&f.jobs, "k").unwrap();
    let schedule = f.broker.schedule("s").every(MINUTE).publish(&topic, "k", || 1).unwrap();
    f.jobs.close();
    f.simulation.advance(MINUTE);
    assert_eq!(schedule.info().last_error.as_deref(), Some("\"jobs\" is closed"));
}

#[test]
fn a_function_that_panics_fails_its_firing_alone() {
    let f = fixture();
    let schedule = f
        .broker
        .schedule("s")
        .every(MINUTE)
        .send(&f.jobs, {
            let calls = AtomicU64::new(0);
            move || {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                assert!(call != 1, "no luck");
                call
            }
        })
        .unwrap();
    f.simulation.advance(MINUTE * 3);
    assert_eq!((schedule.fired(), schedule.failed()), (2, 1));
    assert_eq!(schedule.info().last_error.as_deref(), Some("its function panicked: no luck"));
}

// ---- the end -------------------------------------------------------------------------------------

#[test]
fn nothing_fires_or_begins_after_shutdown() {
    let f = fixture();
    let schedule = f.every_minute("s", Missed::Once);
    f.broker.shutdown(Duration::from_secs(1));
    f.sleep_through(MINUTE * 10);
    assert_eq!((schedule.fired(), schedule.failed(), schedule.next()), (0, 0, None));
    assert!(f.broker.schedules().is_empty());
    let error = f.broker.schedule("t").every(MINUTE).send(&f.jobs, || 1).unwrap_err();
    assert_eq!(error.problems(), ["the broker was shut down"]);
}

#[test]
fn a_dropped_broker_takes_its_schedules_and_what_they_hold_with_it() {
    let held = Arc::new(());
    let f = fixture();
    let captured = held.clone();
    let schedule = f
        .broker
        .schedule("s")
        .every(MINUTE)
        .send(&f.jobs, move || {
            let _ = &captured;
            1
        })
        .unwrap();
    let (simulation, jobs) = (f.simulation, f.jobs);
    drop(f.broker);
    assert_eq!(Arc::strong_count(&held), 1, "though a handle is still there");
    simulation.advance(MINUTE * 3);
    assert_eq!((jobs.len(), schedule.fired()), (0, 0));
    schedule.remove();
}

#[test]
fn on_threads_it_fires_by_the_real_clock_and_stops_when_removed() {
    let broker = Broker::new();
    let queue: Queue<Instant> = broker.queue("q").declare().unwrap();
    let before = Instant::now();
    let schedule = broker.schedule("s").every(Duration::from_millis(20)).send(&queue, Instant::now).unwrap();
    for n in 1..=3 {
        let delivery = queue.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(delivery.duration_since(before) >= Duration::from_millis(20) * n);
        delivery.ack().unwrap();
    }
    schedule.remove();
    wait_until(|| queue.drain().is_empty());
    std::thread::sleep(Duration::from_millis(60));
    assert!(queue.len() <= 1, "but for one that was on its way");
}

#[test]
fn on_threads_a_manual_clock_that_is_moved_far_makes_up_for_all() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    let schedule = broker.schedule("s").every(MINUTE).missed(Missed::All).send(&queue, || 1).unwrap();
    clock.advance(MINUTE * 1000);
    wait_until(|| schedule.fired() == 1000);
}

#[test]
fn pausing_and_removing_from_many_threads_ends_in_silence() {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("q").overflow(Overflow::DropOldest).declare().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (broker, queue, stop) = (&broker, &queue, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let schedule = broker.schedule("s").every(Duration::from_millis(1)).send(queue, || 1).unwrap();
                    match n {
                        0 => schedule.pause(),
                        1 => schedule.resume(),
                        _ => schedule.remove(),
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
    });
    broker.shutdown(Duration::from_secs(1));
    assert!(broker.schedules().is_empty());
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to that in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(feature = "cron")]
mod cron {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    /// 2025-03-30T00:00Z, an hour before Berlin's clocks go forward.
    const MARCH: u64 = 1_743_292_800;
    /// 2025-10-26T00:00Z, an hour before Berlin's clocks go back.
    const OCTOBER: u64 = 1_761_436_800;

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    /// When `expression` fires in Berlin after two hours before `midnight` (UTC) until nine hours after it, as
    /// minutes since `midnight`.
    fn fired(expression: &str, midnight: u64) -> Vec<i64> {
        let f = fixture_on(ManualClock::starting_at(at(midnight) - HOUR * 2));
        let start = f.simulation.now();
        f.broker.schedule("s").cron(expression, "Europe/Berlin").send(&f.jobs, || 1).unwrap();
        f.simulation.advance(HOUR * 11);
        f.arrivals(start).iter().map(|time| (time.as_secs() / 60) as i64 - 120).collect()
    }

    #[test]
    fn a_local_time_that_does_not_exist_fires_at_the_first_moment_after_the_gap() {
        assert_eq!(fired("30 2 * * *", MARCH), [60]);
        assert_eq!(fired("0 4 * * *", MARCH), [120]);
    }

    #[test]
    fn a_local_time_that_comes_twice_fires_at_its_first_occurrence() {
        assert_eq!(fired("30 2 * * *", OCTOBER), [30]);
        assert_eq!(fired("0 4 * * *", OCTOBER), [180]);
    }

    #[test]
    fn several_times_a_day_follow_the_clock_on_the_wall() {
        assert_eq!(fired("0 1-3 * * *", MARCH), [0, 60]);
        assert_eq!(fired("0 1-3 * * *", OCTOBER), [-60, 0, 60, 120]);
        for night in [MARCH, OCTOBER] {
            let even: Vec<i64> = (-90..=540).step_by(30).collect();
            assert_eq!(fired("*/30 * * * *", night), even, "not at the moment of declaring");
        }
    }

    #[test]
    fn a_process_that_slept_over_the_change_makes_up_for_each_firing_once() {
        for (midnight, expression, expected) in
            [(MARCH, "30 2 * * *", 1), (OCTOBER, "30 2 * * *", 1), (OCTOBER, "0 2 * * *", 1)]
        {
            let f = fixture_on(ManualClock::starting_at(at(midnight) - HOUR));
            let cron = f.broker.schedule("s").cron(expression, "Europe/Berlin").missed(Missed::All);
            let schedule = cron.send(&f.jobs, || 1).unwrap();
            f.sleep_through(HOUR * 10);
            assert_eq!(schedule.fired(), expected, "{expression} from {midnight}");
        }
    }

    #[test]
    fn a_nightly_job_that_was_slept_through_is_left_out_merged_or_made_up_for() {
        for (missed, fired, left_out) in [(Missed::Skip, 0, 3), (Missed::Once, 1, 2), (Missed::All, 3, 0)] {
            let f = fixture();
            let schedule = f.broker.schedule("s").cron("0 3 * * *", "UTC").missed(missed).send(&f.jobs, || 1).unwrap();
            f.sleep_through(HOUR * (2 * 24 + 12));
            assert_eq!((schedule.fired(), schedule.info().missed), (fired, left_out), "{missed:?}");
        }
    }

    #[test]
    fn a_year_of_missed_seconds_is_got_over_quickly() {
        let f = fixture();
        let schedule = f.broker.schedule("s").cron("* * * * * *", "Europe/Berlin").send(&f.jobs, || 1).unwrap();
        let before = Instant::now();
        f.sleep_through(HOUR * 24 * 365);
        assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
        assert_eq!((schedule.fired(), schedule.info().missed), (1, 999));
        assert_eq!(schedule.next(), Some(f.simulation.now() + Duration::from_secs(1)));
    }

    #[test]
    fn a_start_is_kept_and_pausing_leaves_out() {
        let f = fixture();
        let start = f.simulation.now();
        let cron = f.broker.schedule("s").cron("0 * * * *", "UTC").starting_at(start + HOUR * 5);
        let schedule = cron.send(&f.jobs, || 1).unwrap();
        assert_eq!(schedule.next(), Some(start + HOUR * 5));
        f.simulation.advance(HOUR * 6);
        schedule.pause();
        f.simulation.advance(HOUR * 2);
        schedule.resume();
        f.simulation.advance(HOUR);
        assert_eq!(f.arrivals(start), [HOUR * 5, HOUR * 6, HOUR * 9]);
    }

    #[test]
    fn a_rule_that_runs_out_stops_and_one_that_never_comes_is_refused() {
        let f = fixture();
        let schedule = f.broker.schedule("last").cron("0 0 0 2 1 * 2025", "UTC").send(&f.jobs, || 1).unwrap();
        f.simulation.advance(HOUR * 48);
        assert_eq!((schedule.fired(), schedule.next()), (1, None));
        let error = f.broker.schedule("never").cron("0 0 30 2 *", "UTC").send(&f.jobs, || 1).unwrap_err();
        assert_eq!(error.problems(), ["cron \"0 0 30 2 *\" in UTC never fires"]);
    }

    #[test]
    fn a_malformed_expression_and_an_unknown_zone_are_told_together() {
        let f = fixture();
        let error = f.broker.schedule(" ").cron("0 25 * * *", "Europe/Atlantis").send(&f.jobs, || 1).unwrap_err();
        assert_eq!(error.problems().len(), 2, "{error}");
        assert!(error.to_string().contains("\"0 25 * * *\"") && error.to_string().contains("\"Europe/Atlantis\""));
    }

    #[test]
    fn another_expression_under_the_same_name_is_refused_with_both() {
        let f = fixture();
        let declare = |expression: &str| f.broker.schedule("s").cron(expression, "UTC").send(&f.jobs, || 1);
        declare("0 3 * * *").unwrap();
        declare("0 3 * * *").unwrap();
        let error = declare("0 4 * * *").unwrap_err();
        assert!(
            error.to_string().contains("cron \"0 3 * * *\" in UTC, asked for cron \"0 4 * * *\" in UTC"),
            "{error}"
        );
    }
}
