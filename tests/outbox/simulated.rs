//! A relay of a simulated broker is a task like any other: no thread, no poll, virtual time, the same run for the
//! same seed.

use crate::common::{ON_PURPOSE, quiet, within};
use crate::lab::{Lab, SqliteLab, open};
use crate::seen::{Printer, Seen, SeenByKey, consume, ordered, with_five_keys};
use postroom::rusqlite::Connection;
use postroom::{
    Broker, Codec, CodecError, Event, Message, OutboxError, Outcome, Overflow, Queue, Rate, Relay, Retry, Simulation,
    SqliteOutbox, Topic, TopicName,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ORDERS: TopicName<u64> = TopicName::new("orders");
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

struct Post {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<u64>,
    queue: Queue<u64>,
}

/// A simulated broker with one topic and one queue bound to it.
fn post(seed: u64, retry: Retry) -> Post {
    let (broker, simulation) = Broker::simulated(seed);
    let topic = broker.topic(ORDERS).declare().unwrap();
    let queue = broker.queue("billing").retry(retry).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    Post { broker, simulation, topic, queue }
}

impl Post {
    fn relay(&self, lab: &SqliteLab) -> Relay {
        lab.relay(&self.broker).topic(&self.topic).start().unwrap()
    }

    fn consume(&self, workers: usize) -> Seen {
        consume(&self.queue, workers)
    }
}

fn put(lab: &SqliteLab, numbers: std::ops::Range<u64>) {
    lab.put("orders", numbers.map(|n| ("k", Message::new(n))).collect(), true);
}

fn waiting_done_dead(lab: &SqliteLab) -> (u64, u64, u64) {
    let stats = lab.stats();
    (stats.waiting, stats.done, stats.dead)
}

#[test]
fn a_commit_is_delivered_without_a_poll_and_a_rollback_is_not() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    let (relay, seen) = (post.relay(&lab), post.consume(1));
    let mut db = lab.connection();
    lab.outbox.watch(&db).unwrap();
    for n in 0..20 {
        lab.put_by(&mut db, n, n % 3 == 0);
        let before = post.simulation.now();
        post.simulation.run_until_idle();
        assert_eq!(post.simulation.now(), before, "no time passes");
        assert_eq!(seen.lock().unwrap().last(), Some(&(n / 3 * 3)));
    }
    assert_eq!(*seen.lock().unwrap(), [0, 3, 6, 9, 12, 15, 18]);
    assert_eq!(waiting_done_dead(&lab), (0, 7, 0), "and marked");
    assert_eq!(post.simulation.next_due(), None, "it waits for nothing");
    assert_eq!(post.simulation.advance(24 * HOUR), 0, "and does nothing while nothing happens");
    assert_eq!((relay.stats().relayed, relay.stats().done, relay.stats().lag), (7, 7, None));
    assert!(relay.stop(SECOND));
}

#[test]
fn what_another_process_commits_is_found_when_the_relay_is_told() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    let (relay, seen) = (post.relay(&lab), post.consume(1));
    post.simulation.run_until_idle();
    lab.put_from_elsewhere(1);
    post.simulation.advance(HOUR);
    assert!(seen.lock().unwrap().is_empty());
    relay.wake();
    post.simulation.run_until_idle();
    assert_eq!(*seen.lock().unwrap(), [1]);
}

#[test]
fn coming_to_rest_includes_what_has_been_committed() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    let (_relay, seen) = (post.relay(&lab), post.consume(2));
    put(&lab, 0..300);
    let before = post.simulation.now();
    assert!(post.broker.wait_idle(HOUR));
    assert_eq!((seen.lock().unwrap().len(), post.simulation.now()), (300, before));
    assert_eq!(waiting_done_dead(&lab), (0, 300, 0));
}

#[test]
fn a_blocked_receive_lets_the_relay_work() {
    within(SECOND * 30, || {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let relay = post.relay(&lab);
        put(&lab, 0..3);
        for n in 0..3 {
            let delivery = post.queue.recv().unwrap();
            assert_eq!(*delivery.payload(), n);
            delivery.ack().unwrap();
        }
        assert!(post.queue.recv().is_err(), "a standstill is told, not waited out");
        assert!(relay.stop(SECOND));
        assert_eq!(waiting_done_dead(&lab), (0, 3, 0));
    });
}

/// Each handling with its virtual time.
fn trace(seed: u64) -> Vec<String> {
    let lab = SqliteLab::new();
    let post = post(seed, Retry::fixed(SECOND).jitter(1.0).max_attempts(4));
    let mail: Queue<u64> = post.broker.queue("mail").capacity(3).declare().unwrap();
    post.topic.bind(&mail, "#").unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    for queue in [&post.queue, &mail] {
        let (lines, clock, name) = (Arc::clone(&lines), post.simulation.clone(), queue.name().to_owned());
        let handler = move |n: &Message<u64>| {
            lines.lock().unwrap().push(format!("{:?} {name} {} {}", clock.now(), **n, n.attempt()));
            if (**n + u64::from(n.attempt())).is_multiple_of(3) { Outcome::Ack } else { Outcome::Retry }
        };
        queue.consumer().workers(2).start(handler).unwrap();
    }
    let _relay = post.relay(&lab);
    for chunk in 0..5 {
        put(&lab, chunk * 10..chunk * 10 + 10);
        post.simulation.advance(SECOND);
    }
    post.simulation.advance(SECOND * 60);
    assert_eq!(lab.stats().waiting, 0);
    let lines = lines.lock().unwrap();
    lines.clone()
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let (one, again, other) = (trace(1), trace(1), trace(2));
    assert!(one.len() > 100);
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
fn messages_of_one_key_stay_in_order() {
    for seed in 0..10 {
        let lab = SqliteLab::new();
        let (broker, simulation) = Broker::simulated(seed);
        let topic = broker.topic(ORDERS).declare().unwrap();
        let seen = SeenByKey::consume(&ordered(&broker, &topic, 8, Retry::fixed(SECOND).max_attempts(50)));
        let relay = lab.relay(&broker).batch(7).window(20).topic(&topic).start().unwrap();
        for chunk in 0..5 {
            lab.put("orders", with_five_keys(chunk * 20..chunk * 20 + 20), true);
            simulation.run_until_idle();
        }
        assert!(broker.wait_idle(HOUR));
        seen.assert_in_order(100, format_args!("seed {seed}"));
        assert!(relay.stop(SECOND));
        assert_eq!(waiting_done_dead(&lab), (0, 100, 0));
    }
}

#[test]
fn what_a_queue_gives_up_on_is_a_dead_row_that_can_be_tried_again() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::fixed(SECOND).max_attempts(3));
    let printer = Printer::consume(&post.queue);
    let relay = post.relay(&lab);
    put(&lab, 1..4);
    post.simulation.run_until_idle();
    assert_eq!(waiting_done_dead(&lab), (1, 2, 0), "it waits for its retry");
    assert_eq!((relay.stats().in_flight, relay.stats().unmarked), (1, 0));
    post.simulation.advance(SECOND * 2);
    assert_eq!(waiting_done_dead(&lab), (0, 2, 1));
    let dead = lab.dead();
    assert_eq!(dead[0].reason, "queue \"billing\" gave up on it (attempts exhausted): no printer");

    printer.repair();
    assert_eq!(lab.retry(&[dead[0].id]), 1);
    lab.outbox.notify();
    post.simulation.run_until_idle();
    assert_eq!(printer.seen().into_iter().map(|(_, n)| n).collect::<Vec<_>>(), [1, 3, 2]);
    assert_eq!(waiting_done_dead(&lab), (0, 3, 0));
}

#[test]
fn handlers_that_panic_lose_nothing() {
    quiet();
    let lab = SqliteLab::new();
    let post = post(3, Retry::immediate(3));
    let handler = |n: &Message<u64>| assert!(n.attempt() > 1 || n.is_multiple_of(2), "{ON_PURPOSE}");
    post.queue.consumer().workers(3).start(handler).unwrap();
    let relay = post.relay(&lab);
    put(&lab, 0..50);
    assert!(post.broker.wait_idle(HOUR));
    assert_eq!((waiting_done_dead(&lab), relay.stats().done), ((0, 50, 0), 50));
}

#[test]
fn a_full_queue_lets_its_consumers_run_and_holds_up_no_other_topic() {
    within(SECOND * 30, || {
        for overflow in [Overflow::Wait, Overflow::Reject] {
            let lab = SqliteLab::new();
            let (broker, simulation) = Broker::simulated(5);
            let slow: Topic<u64> = broker.topic("slow").declare().unwrap();
            let fast: Topic<u64> = broker.topic("fast").declare().unwrap();
            let full: Queue<u64> = broker.queue("full").capacity(1).overflow(overflow).declare().unwrap();
            let free: Queue<u64> = broker.queue("free").declare().unwrap();
            slow.bind(&full, "#").unwrap();
            fast.bind(&free, "#").unwrap();
            let passed_on = fast.clone();
            free.consumer().start(|_: &Message<u64>| ()).unwrap();
            lab.put("slow", (0..20).map(|n| ("k", Message::new(n))).collect(), true);
            lab.put("fast", (0..20).map(|n| ("k", Message::new(n))).collect(), true);
            let relay = lab.relay(&broker).topic(&slow).topic(&fast).start().unwrap();
            simulation.run_until_idle();
            assert_eq!((waiting_done_dead(&lab), full.len()), ((20, 20, 0), 1));
            assert!(broker.wait_idle(HOUR), "nobody empties the full one");
            let seen = Seen::default();
            let note = Arc::clone(&seen);
            let handler = move |n: &Message<u64>| {
                note.lock().unwrap().push(**n);
                passed_on.publish("k", **n).map(drop)
            };
            full.consumer().start(handler).unwrap();
            simulation.run_until_idle();
            assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
            assert_eq!((waiting_done_dead(&lab), relay.stats().relayed), ((0, 40, 0), 40));
        }
    });
}

#[test]
fn a_topic_that_lets_in_few_at_a_time_gets_them_in_virtual_time() {
    let lab = SqliteLab::new();
    let (broker, simulation) = Broker::simulated(5);
    let topic = broker.topic(ORDERS).admission(Rate::per_second(2.0).burst(1)).declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    put(&lab, 0..100);
    let _relay = lab.relay(&broker).topic(&topic).start().unwrap();
    let start = simulation.now();
    for n in 0..100 {
        let delivery = queue.recv().unwrap();
        assert_eq!(*delivery.payload(), n);
        delivery.ack().unwrap();
    }
    let took = simulation.now().duration_since(start).unwrap();
    assert!((SECOND * 49..SECOND * 51).contains(&took), "{took:?}");
}

#[test]
fn rows_wait_until_something_is_bound_and_keep_nobody_waiting() {
    within(SECOND * 30, || {
        let lab = SqliteLab::new();
        let (broker, simulation) = Broker::simulated(5);
        let topic = broker.topic(ORDERS).declare().unwrap();
        let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
        put(&lab, 0..3);
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        simulation.run_until_idle();
        assert!(relay.stats().trouble.unwrap().contains("no binding"));
        assert!(queue.recv().is_err(), "nobody is kept waiting for what may never be bound");
        assert!(broker.wait_idle(HOUR));
        assert!(simulation.advance(24 * HOUR) < 500, "it does not ask every moment");
        topic.bind(&queue, "#").unwrap();
        simulation.advance(HOUR);
        assert_eq!(queue.len(), 3);
    });
}

#[test]
fn delays_and_times_to_live_are_virtual() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    let _relay = post.relay(&lab);
    let late = Message::new(1).with_delay(HOUR);
    let mortal = Message::new(2).with_ttl(SECOND);
    lab.put("orders", vec![("k", late), ("k", mortal)], true);
    post.simulation.run_until_idle();
    assert_eq!(post.queue.len(), 1);
    post.simulation.advance(SECOND * 2);
    assert_eq!(post.queue.len(), 0, "it has expired");
    post.simulation.advance(HOUR - SECOND * 3);
    assert_eq!(post.queue.len(), 0);
    post.simulation.advance(SECOND);
    assert_eq!(post.queue.len(), 1);
    assert_eq!(*post.queue.recv().unwrap().payload(), 1);
}

#[test]
fn a_locked_table_is_waited_out_in_virtual_time() {
    within(SECOND * 60, || {
        let lab = SqliteLab::new();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let builder = Broker::builder().seed(1).on_event(move |event| heard.lock().unwrap().push(event.clone()));
        let (broker, simulation) = builder.build_simulated().unwrap();
        let topic = broker.topic(ORDERS).declare().unwrap();
        let queue = broker.queue("billing").declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        let post = Post { broker, simulation, topic, queue };
        let (relay, seen) = (post.relay(&lab), post.consume(1));
        put(&lab, 0..5);
        let writer = lab.connection();
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO effects VALUES (1)").unwrap();
        post.simulation.run_until_idle();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4], "what can be read is published");
        let stats = relay.stats();
        assert_eq!((stats.errors, stats.unmarked, stats.done), (1, 5, 0));
        assert!(stats.trouble.unwrap().contains("locked"));
        post.simulation.advance(SECOND);
        let errors = relay.stats().errors;
        assert!((4..10).contains(&errors), "{errors} attempts in a second");
        writer.execute_batch("COMMIT").unwrap();
        assert!(post.broker.wait_idle(HOUR));
        assert_eq!((waiting_done_dead(&lab), relay.stats().trouble), ((0, 5, 0), None));
        assert_eq!(relay.stats().relayed, 5, "none came twice");
        let events = events.lock().unwrap();
        assert!(matches!(&events[..], [Event::OutboxFailing { .. }, Event::OutboxRecovered { .. }]), "{events:?}");
    });
}

#[test]
fn a_table_that_never_comes_back_hangs_nobody() {
    within(SECOND * 60, || {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let relay = post.relay(&lab);
        lab.sql("ALTER TABLE outbox RENAME TO elsewhere");
        lab.outbox.notify();
        assert!(post.queue.recv().is_err(), "a receive without a limit ends");
        assert!(!post.broker.wait_idle(24 * HOUR), "what was committed has not been delivered");
        let errors = relay.stats().errors;
        assert!(errors < 200, "{errors}");
        lab.sql("ALTER TABLE elsewhere RENAME TO outbox");
        put(&lab, 0..3);
        post.simulation.advance(HOUR);
        assert_eq!(post.queue.len(), 3);
        assert!(!relay.stop(SECOND));
    });
}

#[test]
fn a_database_that_cannot_be_opened_yet_is_tried_again() {
    quiet();
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    let seen = post.consume(1);
    put(&lab, 0..3);
    let (path, attempts) = (lab.path.clone(), AtomicUsize::new(0));
    let connect = move || match attempts.fetch_add(1, Ordering::SeqCst) {
        0 => Connection::open("/no/such/directory/app.db"),
        1 => panic!("{ON_PURPOSE}"),
        _ => open(&path),
    };
    let relay = lab.outbox.relay(&post.broker, connect).topic(&post.topic).start().unwrap();
    post.simulation.run_until_idle();
    assert!(!relay.stats().connected);
    post.simulation.advance(SECOND);
    assert_eq!((seen.lock().unwrap().len(), relay.stats().errors), (3, 1));
}

#[test]
fn stopping_marks_what_is_handled_and_leaves_the_rest() {
    let lab = SqliteLab::new();
    let first = post(1, Retry::none());
    let relay = lab.relay(&first.broker).window(10).topic(&first.topic).start().unwrap();
    put(&lab, 0..30);
    first.simulation.run_until_idle();
    let (one, two) = (first.queue.recv().unwrap(), first.queue.recv().unwrap());
    one.ack().unwrap();
    let start = first.simulation.now();
    assert!(!relay.stop(SECOND), "others are in the queue");
    assert_eq!(first.simulation.now().duration_since(start).unwrap(), SECOND, "in virtual time");
    assert_eq!(waiting_done_dead(&lab), (29, 1, 0));
    assert!(!relay.stop(SECOND), "which does not change by asking again");
    drop(two);
    put(&lab, 30..31);
    first.simulation.advance(HOUR);
    assert_eq!((relay.stats().leases, lab.stats().waiting), (0, 30), "it publishes nothing more");

    let second = post(2, Retry::none());
    let begun = Instant::now();
    let (relay, seen) = (second.relay(&lab), second.consume(1));
    assert!(begun.elapsed() < SECOND * 2, "the lease was given back");
    assert!(second.broker.wait_idle(HOUR));
    assert_eq!(*seen.lock().unwrap(), (1..31).collect::<Vec<_>>());
    assert!(relay.stop(SECOND), "all of its own are marked");
}

#[test]
fn shutdown_in_the_middle_leaves_rows_that_come_again() {
    for steps in [0, 1, 2, 5, 20, 77, 150] {
        let lab = SqliteLab::new();
        put(&lab, 0..60);
        let mut all = Vec::new();
        for seed in [1, 2] {
            let post = post(seed, Retry::none());
            let seen = post.consume(2);
            let relay = lab.relay(&post.broker).window(16).topic(&post.topic).start().unwrap();
            if seed == 1 {
                (0..steps).for_each(|_| _ = post.simulation.step());
            } else {
                post.simulation.run_until_idle();
            }
            assert!(post.broker.shutdown(HOUR).is_clean());
            all.append(&mut seen.lock().unwrap());
            assert_eq!(waiting_done_dead(&lab), (60 - all.len() as u64, all.len() as u64, 0));
            assert!(relay.stop(SECOND), "it has ended already");
        }
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>(), "none lost, none twice, after {steps} steps");
    }
}

#[test]
fn what_is_in_a_queue_when_the_broker_ends_comes_again() {
    let lab = SqliteLab::new();
    put(&lab, 0..5);
    for shut_down in [true, false] {
        let Post { broker, simulation, topic, queue } = post(1, Retry::none());
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        simulation.run_until_idle();
        assert_eq!(queue.len(), 5);
        let in_hand = queue.recv().unwrap();
        if shut_down {
            assert!(!broker.shutdown(SECOND).is_clean());
            assert!(in_hand.ack().is_err(), "the row has been left, so this comes too late");
        } else {
            drop((broker, simulation, topic, queue, in_hand));
        }
        assert_eq!((relay.stats().done, lab.stats().waiting), (0, 5));
    }
    let post = post(1, Retry::none());
    let (_relay, seen) = (post.relay(&lab), post.consume(1));
    assert!(post.broker.wait_idle(HOUR));
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4]);
}

#[test]
fn what_cannot_be_marked_at_shutdown_is_tried_for_a_while() {
    within(SECOND * 60, || {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let (relay, seen) = (post.relay(&lab), post.consume(1));
        put(&lab, 0..5);
        let writer = lab.connection();
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO effects VALUES (1)").unwrap();
        post.simulation.run_until_idle();
        assert_eq!(seen.lock().unwrap().len(), 5);
        let begun = Instant::now();
        let report = post.broker.shutdown(SECOND * 10);
        assert!(report.is_clean(), "{report}");
        assert!(begun.elapsed() < SECOND * 20);
        assert!(!relay.stop(SECOND), "they come again");
        let stats = relay.stats();
        assert!((7..20).contains(&stats.errors) && stats.unmarked == 5, "{stats:?}");
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting_done_dead(&lab), (5, 0, 0));
    });
}

#[test]
fn a_second_relay_is_told_that_the_first_is_at_work() {
    within(SECOND * 30, || {
        let lab = SqliteLab::new();
        let (one, other) = (post(1, Retry::none()), post(2, Retry::none()));
        // On threads, so that it prolongs its lease meanwhile.
        let broker = Broker::new();
        let topic = broker.topic(ORDERS).declare().unwrap();
        let short = Duration::from_millis(300);
        let threads = lab.relay(&broker).lease(short).topic(&topic).start().unwrap();
        crate::common::eventually("it has the lease", || threads.stats().leases == 1);
        let error = lab.relay(&one.broker).topic(&one.topic).start().unwrap_err();
        assert!(matches!(error, OutboxError::Relay { .. }), "{error}");
        assert!(error.to_string().contains("topic \"orders\" is another relay's"), "{error}");
        assert!(threads.stop(SECOND));
        // What a process leaves behind that was killed is waited for.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
        let sql = format!("UPDATE outbox_relay SET owner = 'gone', until_us = {}, length_us = 400000", now + 400_000);
        lab.sql(&sql);
        let begun = Instant::now();
        let (_relay, seen) = (other.relay(&lab), other.consume(1));
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
        put(&lab, 0..3);
        other.simulation.run_until_idle();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    });
}

#[test]
fn a_lease_that_ran_out_in_real_time_is_renewed_or_missed() {
    within(SECOND * 30, || {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let seen = post.consume(1);
        let short = Duration::from_millis(50);
        let relay = lab.relay(&post.broker).lease(short).topic(&post.topic).start().unwrap();
        put(&lab, 0..3);
        post.simulation.run_until_idle();
        std::thread::sleep(short * 2);
        put(&lab, 3..6);
        post.simulation.run_until_idle();
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
        // Somebody else takes over while this process is held up.
        std::thread::sleep(short * 2);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
        lab.sql(&format!("UPDATE outbox_relay SET owner = 'other', term = 9, until_us = {}", now + 600_000_000));
        lab.sql("UPDATE outbox_relay SET length_us = 600000000");
        put(&lab, 6..9);
        post.simulation.advance(SECOND);
        assert_eq!(seen.lock().unwrap().len(), 6, "what is another's is not published");
        assert!(relay.stats().trouble.unwrap().contains("another relay's"));
        lab.sql("UPDATE outbox_relay SET owner = '', until_us = 0");
        post.simulation.advance(HOUR);
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    });
}

#[test]
fn a_lease_that_runs_out_during_each_handling_stops_nothing() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    post.queue.consumer().start(|_: &Message<u64>| std::thread::sleep(Duration::from_millis(40))).unwrap();
    let relay = lab.relay(&post.broker).lease(Duration::from_millis(20)).window(1).topic(&post.topic);
    let relay = relay.start().unwrap();
    put(&lab, 0..6);
    post.simulation.run_until_idle();
    // One that runs out before anything was published is had again at the next look.
    (0..100).take_while(|_| lab.stats().waiting > 0).for_each(|_| _ = post.simulation.advance(Duration::from_secs(1)));
    assert_eq!((waiting_done_dead(&lab), relay.stats().relayed), ((0, 6, 0), 6));
}

#[test]
fn more_rows_than_the_window_all_come() {
    for (window, batch) in [(1, 1), (3, 2), (64, 1000)] {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let seen = post.consume(3);
        put(&lab, 0..100);
        let relay = lab.relay(&post.broker).window(window).batch(batch).topic(&post.topic).start().unwrap();
        post.simulation.run_until_idle();
        assert_eq!((waiting_done_dead(&lab), relay.stats().relayed), ((0, 100, 0), 100));
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn done_when_published_and_deleted_at_once() {
    let lab = SqliteLab::new();
    let post = post(1, Retry::none());
    put(&lab, 0..50);
    let relay = lab.relay(&post.broker).done_when_published().keep_done(Duration::ZERO).window(8).batch(8);
    let relay = relay.topic(&post.topic).start().unwrap();
    post.simulation.run_until_idle();
    assert_eq!((waiting_done_dead(&lab), post.queue.len()), ((0, 0, 0), 50));
    assert!(relay.stop(Duration::ZERO));
}

/// Calls back into the simulation, and stops the relay, in the middle of its work.
#[derive(Clone)]
struct Meddler {
    simulation: Simulation,
    relay: Arc<Mutex<Option<Relay>>>,
}

impl Codec<u64> for Meddler {
    fn name(&self) -> &str {
        "json"
    }
    fn encode(&self, n: &u64) -> Result<Vec<u8>, CodecError> {
        Ok(n.to_string().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        let n = std::str::from_utf8(bytes)?.parse()?;
        assert_ne!(n, 1, "{ON_PURPOSE}");
        self.simulation.run_until_idle();
        if n == 3 {
            let relay = self.relay.lock().unwrap().clone();
            let _ = relay.unwrap().stop(SECOND);
        }
        Ok(n)
    }
}

#[test]
fn a_codec_that_meddles_with_its_relay_harms_nobody() {
    quiet();
    within(SECOND * 30, || {
        let lab = SqliteLab::new();
        let post = post(1, Retry::none());
        let seen = post.consume(1);
        put(&lab, 0..6);
        let codec = Meddler { simulation: post.simulation.clone(), relay: Arc::default() };
        let (path, handle) = (lab.path.clone(), Arc::clone(&codec.relay));
        let outbox = SqliteOutbox::with_codec("outbox", codec).unwrap();
        let relay = outbox.relay(&post.broker, move || open(&path)).topic(&post.topic).start().unwrap();
        *handle.lock().unwrap() = Some(relay.clone());
        post.simulation.run_until_idle();
        assert_eq!(seen.lock().unwrap()[..2], [0, 2]);
        assert!(lab.dead()[0].reason.contains(ON_PURPOSE));
        let stats = lab.stats();
        assert_eq!((stats.dead, stats.waiting + stats.done), (1, 5));
        assert!(stats.waiting >= 2, "it was stopped at the third: {stats:?}");
        assert_eq!(relay.stats().leases, 0);
    });
}
