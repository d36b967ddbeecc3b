//! A relay publishes what has been committed, in order, and forgets nothing that has not been handled.

use crate::common::{eventually, quiet};
use crate::lab::{Lab, Puts};
use crate::on_every_database;
use crate::seen::{Printer, SeenByKey, consume, ordered, with_five_keys};
use postroom::{Broker, Event, Message, OutboxError, Overflow, Queue, RelayBuilder, Retry, Topic};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

on_every_database!(
    what_is_committed_is_delivered_and_what_is_rolled_back_is_not,
    a_row_is_done_only_when_every_queue_has_handled_it,
    what_was_not_handled_comes_again_under_the_same_id,
    what_a_queue_gives_up_on_is_a_dead_row_that_can_be_tried_again,
    rows_that_cannot_be_decoded_are_dead_and_others_flow,
    messages_of_one_key_stay_in_order,
    everything_said_of_a_message_is_kept,
    two_relays_take_turns_and_never_publish_together,
    a_relay_that_vanished_is_replaced_when_its_lease_ends,
    shutdown_marks_what_was_handled_and_leaves_the_rest,
    what_is_left_when_the_broker_ends_comes_again,
    a_relay_handle_that_is_dropped_stops_nothing,
    a_full_queue_slows_its_own_topic_and_no_other,
    rows_wait_until_something_is_bound,
    what_no_binding_wants_is_a_dead_row,
    those_who_only_watch_hold_up_nothing,
    done_rows_are_pruned_by_age,
    done_rows_may_be_deleted_at_once,
    done_when_published_does_not_wait_for_handlers,
    a_commit_wakes_the_relay_without_a_poll,
    a_table_that_is_missing_is_said_at_once,
    a_table_of_another_version_is_left_alone,
    a_table_that_vanishes_is_an_error_that_is_told_and_waited_out,
    a_relay_that_makes_no_sense_does_not_start,
    more_rows_than_the_window_all_come,
    a_message_dropped_by_a_full_queue_is_a_dead_row,
    creating_tables_again_changes_nothing,
    what_cannot_be_put_is_refused,
);

const LONG: Duration = Duration::from_secs(20);

/// A broker with one topic and one queue bound to it.
fn post(retry: Retry) -> (Broker, Topic<u64>, Queue<u64>) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").retry(retry).declare().unwrap();
    topic.bind(&queue, "order.#").unwrap();
    (broker, topic, queue)
}

fn numbers(range: std::ops::Range<u64>) -> Puts {
    range.map(|n| ("order.placed", Message::new(n))).collect()
}

fn quick<C: Clone>(relay: RelayBuilder<C>) -> RelayBuilder<C> {
    relay.lease(Duration::from_millis(300))
}

fn what_is_committed_is_delivered_and_what_is_rolled_back_is_not(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let seen = consume(&queue, 1);
    lab.put("orders", numbers(0..10), true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    for n in 1..20 {
        lab.put("orders", numbers(n * 10..n * 10 + 10), n % 2 == 0);
    }
    eventually("all are done", || lab.stats().waiting == 0);
    let expected: Vec<u64> = (0..200).filter(|n| (n / 10) % 2 == 0).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert!(relay.stop(LONG));
    let stats = relay.stats();
    assert_eq!((stats.relayed, stats.done, stats.dead, stats.in_flight), (100, 100, 0, 0));
    assert_eq!((lab.stats().done, lab.stats().oldest_waiting), (100, None));
}

fn a_row_is_done_only_when_every_queue_has_handled_it(lab: &impl Lab) {
    let (broker, topic, billing) = post(Retry::none());
    let mail: Queue<u64> = broker.queue("mail").declare().unwrap();
    topic.bind(&mail, "order.placed").unwrap();
    lab.put("orders", numbers(1..2), true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    billing.recv_timeout(LONG).unwrap().ack().unwrap();
    let delivery = mail.recv_timeout(LONG).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(lab.stats().waiting, 1);
    eventually("it is counted", || relay.stats().in_flight == 1);
    assert!(relay.stats().lag.unwrap() >= Duration::from_millis(50));
    delivery.ack().unwrap();
    eventually("it is done", || lab.stats().done == 1);
    assert_eq!(relay.stats().relayed, 1);
}

fn what_was_not_handled_comes_again_under_the_same_id(lab: &impl Lab) {
    let ids = lab.put("orders", numbers(1..3), true);
    {
        let (broker, topic, queue) = post(Retry::none());
        let relay = quick(lab.relay(&broker)).topic(&topic).start().unwrap();
        let first = queue.recv_timeout(LONG).unwrap();
        assert_eq!(first.id(), ids[0]);
        first.ack().unwrap();
        let second = queue.recv_timeout(LONG).unwrap();
        assert_eq!(second.id(), ids[1]);
        eventually("the first is done", || lab.stats().done == 1);
        assert!(!relay.stop(Duration::from_millis(20)), "the second is in somebody's hand");
        assert!(!relay.stop(LONG), "which does not change by asking again");
    }
    let (broker, topic, queue) = post(Retry::none());
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    let again = queue.recv_timeout(LONG).unwrap();
    assert_eq!((again.id(), *again.payload()), (ids[1], 2));
    again.ack().unwrap();
    assert!(relay.stop(LONG));
    assert_eq!((lab.stats().waiting, lab.stats().done), (0, 2));
}

fn what_a_queue_gives_up_on_is_a_dead_row_that_can_be_tried_again(lab: &impl Lab) {
    quiet();
    let (broker, topic, queue) = post(Retry::immediate(2));
    let printer = Printer::consume(&queue);
    let ids = lab.put("orders", numbers(1..4), true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("all are done or dead", || lab.stats().waiting == 0);
    let dead = lab.dead();
    assert_eq!((lab.stats().done, dead.len()), (2, 1));
    eventually("it is counted", || relay.stats().dead == 1);
    assert_eq!((dead[0].topic.as_str(), dead[0].payload.as_slice()), ("orders", &b"2"[..]));
    assert_eq!(dead[0].reason, "queue \"billing\" gave up on it (attempts exhausted): no printer");
    assert_eq!(queue.dead_letters().len(), 1, "it is among the queue's dead letters as well");

    printer.repair();
    assert_eq!(lab.retry(&[dead[0].id, 4711]), 1);
    eventually("it is done", || lab.stats().done == 3);
    assert_eq!(printer.seen().last(), Some(&(ids[1], 2)));
    assert!(relay.stop(LONG));
}

fn rows_that_cannot_be_decoded_are_dead_and_others_flow(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let seen = consume(&queue, 1);
    lab.put("orders", numbers(1..7), true);
    let row = |n: u32| lab.number(&format!("SELECT id FROM outbox ORDER BY id LIMIT 1 OFFSET {n}"));
    lab.sql(&format!("UPDATE outbox SET payload = 'x' WHERE id = {}", row(1)));
    lab.sql(&format!("UPDATE outbox SET codec = 'protobuf' WHERE id = {}", row(2)));
    lab.sql(&format!("UPDATE outbox SET headers = '[' WHERE id = {}", row(4)));
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("all are done or dead", || lab.stats().waiting == 0);
    assert_eq!(*seen.lock().unwrap(), [1, 4, 6]);
    let reasons: Vec<String> = lab.dead().into_iter().map(|row| row.reason).collect();
    assert!(reasons[0].contains("undecodable: expected value"), "{reasons:?}");
    assert!(reasons[1].contains("written by codec \"protobuf\""), "{reasons:?}");
    assert!(reasons[2].contains("undecodable headers"), "{reasons:?}");
    let ids: Vec<i64> = lab.dead().iter().map(|row| row.id).collect();
    assert_eq!((lab.delete_dead(&ids[..1]), lab.delete_dead(&ids)), (1, 2));
    assert!(relay.stop(LONG));
}

fn messages_of_one_key_stay_in_order(lab: &impl Lab) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let seen = SeenByKey::consume(&ordered(&broker, &topic, 10_000, Retry::immediate(50)));
    let relay = lab.relay(&broker).batch(7).window(20).topic(&topic).start().unwrap();
    for chunk in 0..15 {
        lab.put("orders", with_five_keys(chunk * 20..chunk * 20 + 20), true);
    }
    eventually("all are done", || lab.stats().waiting == 0);
    assert!(relay.stop(LONG));
    seen.assert_in_order(300, "of fifteen puts");
}

fn everything_said_of_a_message_is_kept(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let message =
        Message::new(7).with_key("user-7").with_header("tenant", "acme").with_header("b", "é").with_priority(3);
    lab.put("orders", vec![("order.placed", message)], true);
    let start = Instant::now();
    let late = Message::new(8).with_delay(Duration::from_millis(300));
    lab.put("orders", vec![("order.late", late)], true);
    let _relay = lab.relay(&broker).topic(&topic).start().unwrap();
    let got = queue.recv_timeout(LONG).unwrap();
    assert_eq!((*got.payload(), got.key(), got.routing_key()), (7, Some("user-7"), "order.placed"));
    assert_eq!((got.header("tenant"), got.header("b"), got.priority()), (Some("acme"), Some("é"), 3));
    got.ack().unwrap();
    let late = queue.recv_timeout(LONG).unwrap();
    assert_eq!(*late.payload(), 8);
    assert!(start.elapsed() >= Duration::from_millis(290), "the delay counts from the put: {:?}", start.elapsed());
    late.ack().unwrap();
    eventually("both are done", || lab.stats().done == 2);
}

fn two_relays_take_turns_and_never_publish_together(lab: &impl Lab) {
    let (one, topic_of_one, queue_of_one) = post(Retry::none());
    let (other, topic_of_other, queue_of_other) = post(Retry::none());
    let (seen_by_one, seen_by_other) = (consume(&queue_of_one, 1), consume(&queue_of_other, 1));
    // Prolonged a few times meanwhile, and not lost when a thread is held up for a while.
    let lease = Duration::from_millis(1_500);
    let first = lab.relay(&one).lease(lease).topic(&topic_of_one).start().unwrap();
    eventually("it has the lease", || first.stats().leases == 1);
    let second = lab.relay(&other).lease(lease).topic(&topic_of_other).start().unwrap();
    for n in 0..10 {
        lab.put("orders", numbers(n * 10..n * 10 + 10), true);
        thread::sleep(lease * 2 / 10);
    }
    eventually("all are done", || lab.stats().waiting == 0);
    assert_eq!((seen_by_one.lock().unwrap().len(), seen_by_other.lock().unwrap().len()), (100, 0));
    assert_eq!((first.stats().leases, second.stats().leases), (1, 0));
    assert!(first.stop(LONG));
    lab.put("orders", numbers(100..200), true);
    eventually("all are done", || lab.stats().waiting == 0);
    assert_eq!(*seen_by_other.lock().unwrap(), (100..200).collect::<Vec<_>>());
    assert!(second.stop(LONG));
}

fn a_relay_that_vanished_is_replaced_when_its_lease_ends(lab: &impl Lab) {
    // What a process leaves behind that was killed.
    let start = Instant::now();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    lab.sql(&format!("INSERT INTO outbox_relay VALUES ('orders', 'gone', 7, {}, 400000)", now + 400_000));
    let (broker, topic, queue) = post(Retry::none());
    lab.put("orders", numbers(1..2), true);
    let relay = lab.relay(&broker).lease(3 * LONG).topic(&topic).start().unwrap();
    // That other lease, and not its own.
    queue.recv_timeout(LONG).unwrap().ack().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(390), "{:?}", start.elapsed());
    assert!(relay.stop(LONG));
}

fn shutdown_marks_what_was_handled_and_leaves_the_rest(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let seen = consume(&queue, 4);
    lab.put("orders", numbers(0..500), true);
    let relay = lab.relay(&broker).window(50).batch(20).topic(&topic).start().unwrap();
    eventually("it is under way", || !seen.lock().unwrap().is_empty());
    let report = broker.shutdown(LONG);
    assert!(report.is_clean(), "{report}");
    let handled = seen.lock().unwrap().len();
    assert_eq!(lab.stats().done as usize, handled, "every handled row is marked, and no other");
    assert_eq!(lab.stats().waiting as usize, 500 - handled);
    assert_eq!(relay.stats().in_flight, 0);
    assert!(relay.stop(LONG), "it has ended already");
    let (broker, topic, queue) = post(Retry::none());
    let rest = consume(&queue, 1);
    let _relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("all are done", || lab.stats().done == 500);
    assert!(broker.shutdown(LONG).is_clean());
    let mut all: Vec<u64> = seen.lock().unwrap().iter().chain(rest.lock().unwrap().iter()).copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..500).collect::<Vec<_>>(), "none lost, none twice");
}

fn what_is_left_when_the_broker_ends_comes_again(lab: &impl Lab) {
    lab.put("orders", numbers(0..5), true);
    for shut_down in [true, false] {
        let (broker, topic, queue) = post(Retry::none());
        let relay = quick(lab.relay(&broker)).topic(&topic).start().unwrap();
        eventually("all are in the queue", || queue.len() == 5);
        let in_hand = queue.recv_timeout(LONG).unwrap();
        if shut_down {
            assert!(!broker.shutdown(Duration::from_millis(50)).is_clean());
            assert!(in_hand.ack().is_err(), "the row has been left, so this comes too late");
        } else {
            drop((broker, topic, queue, in_hand));
        }
        assert_eq!((relay.stats().done, lab.stats().waiting), (0, 5));
    }
    let (broker, topic, queue) = post(Retry::none());
    let seen = consume(&queue, 1);
    let _relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("all are done", || lab.stats().done == 5);
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4]);
}

fn a_relay_handle_that_is_dropped_stops_nothing(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    drop(lab.relay(&broker).topic(&topic).start().unwrap());
    consume(&queue, 1);
    lab.put("orders", numbers(0..5), true);
    eventually("all are done", || lab.stats().done == 5);
    assert!(broker.shutdown(LONG).is_clean());
    lab.put("orders", numbers(5..6), true);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.stats().waiting, 1, "and ends with its broker");
}

fn a_full_queue_slows_its_own_topic_and_no_other(lab: &impl Lab) {
    let broker = Broker::new();
    let slow: Topic<u64> = broker.topic("slow").declare().unwrap();
    let fast: Topic<u64> = broker.topic("fast").declare().unwrap();
    let full: Queue<u64> = broker.queue("full").capacity(2).declare().unwrap();
    let refusing: Queue<u64> = broker.queue("refusing").capacity(2).overflow(Overflow::Reject).declare().unwrap();
    let free: Queue<u64> = broker.queue("free").declare().unwrap();
    slow.bind(&full, "#").unwrap();
    slow.bind(&refusing, "#").unwrap();
    fast.bind(&free, "#").unwrap();
    let seen = consume(&free, 1);
    lab.put("slow", numbers(0..20), true);
    lab.put("fast", numbers(0..20), true);
    let relay = lab.relay(&broker).topic(&slow).topic(&fast).start().unwrap();
    eventually("the fast ones are done", || lab.stats().done == 20);
    assert_eq!(seen.lock().unwrap().len(), 20);
    eventually("the slow ones wait for room", || full.len() == 2);
    let (all, also) = (consume(&full, 1), consume(&refusing, 1));
    eventually("the slow ones are done", || lab.stats().done == 40);
    assert_eq!(*all.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!(*also.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert!(relay.stop(LONG));
    assert_eq!(relay.stats().relayed, 40);
}

fn rows_wait_until_something_is_bound(lab: &impl Lab) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    lab.put("orders", numbers(0..3), true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("it says why it waits", || relay.stats().trouble.is_some_and(|words| words.contains("no binding")));
    assert_eq!((lab.stats().waiting, lab.stats().dead), (3, 0));
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    consume(&queue, 1);
    eventually("all are done", || lab.stats().done == 3);
    assert!(relay.stop(LONG));
}

fn what_no_binding_wants_is_a_dead_row(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let seen = consume(&queue, 1);
    lab.put("orders", vec![("stock.low", Message::new(1)), ("order.placed", Message::new(2))], true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("both are through", || lab.stats().waiting == 0);
    assert_eq!(*seen.lock().unwrap(), [2]);
    assert!(lab.dead()[0].reason.contains("no binding of topic \"orders\" matches routing key \"stock.low\""));
    assert!(relay.stop(LONG));
}

fn those_who_only_watch_hold_up_nothing(lab: &impl Lab) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let log = broker.log("history").declare().unwrap();
    topic.bind(&log, "#").unwrap();
    let subscriber = topic.subscribe().open().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "for.queue").unwrap();
    lab.put("orders", vec![("for.log", Message::new(1)), ("for.queue", Message::new(2))], true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("the one for those who watch is done", || lab.stats().done == 1);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(lab.stats().waiting, 1, "the other waits for its queue");
    queue.recv_timeout(LONG).unwrap().ack().unwrap();
    eventually("both are done", || lab.stats().done == 2);
    assert_eq!((**subscriber.recv().unwrap(), **subscriber.recv().unwrap()), (1, 2));
    assert!(relay.stop(LONG));
}

fn done_rows_are_pruned_by_age(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    consume(&queue, 1);
    lab.put("orders", numbers(0..30), true);
    let relay = lab.relay(&broker).keep_done(Duration::from_millis(150)).topic(&topic).start().unwrap();
    eventually("all are handled", || lab.stats().waiting == 0);
    eventually("they are counted", || relay.stats().done == 30);
    eventually("all are gone", || lab.stats().done == 0);
    assert!(relay.stop(LONG));
}

fn done_rows_may_be_deleted_at_once(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    consume(&queue, 1);
    lab.put("orders", numbers(0..30), true);
    let relay = lab.relay(&broker).keep_done(Duration::ZERO).topic(&topic).start().unwrap();
    eventually("all are done", || relay.stats().done == 30);
    assert_eq!(lab.stats(), Default::default());
    assert!(relay.stop(LONG));
}

fn done_when_published_does_not_wait_for_handlers(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    lab.put("orders", numbers(0..50), true);
    let relay = lab.relay(&broker).done_when_published().window(8).batch(8).topic(&topic).start().unwrap();
    eventually("all are done", || lab.stats().done == 50);
    assert_eq!(queue.len(), 50);
    assert!(relay.stop(LONG));
}

fn a_commit_wakes_the_relay_without_a_poll(lab: &impl Lab) {
    let (broker, topic, queue) = post(Retry::none());
    let relay = lab.relay(&broker).poll(Duration::from_secs(3600)).topic(&topic).start().unwrap();
    eventually("it has looked", || relay.stats().leases == 1 && (relay.stats().listening || cfg_sqlite(lab)));
    thread::sleep(Duration::from_millis(50));
    for n in 0..5 {
        lab.put("orders", numbers(n..n + 1), true);
        assert_eq!(*queue.recv_timeout(LONG).unwrap().payload(), n);
    }
    assert!(relay.stop(LONG));
}

/// Nobody listens there: the test's own calls wake the relay.
fn cfg_sqlite(lab: &impl Lab) -> bool {
    std::any::type_name_of_val(lab).contains("Sqlite")
}

fn a_table_that_is_missing_is_said_at_once(lab: &impl Lab) {
    lab.sql("DROP TABLE outbox_version");
    let (broker, topic, _queue) = post(Retry::none());
    let error = lab.relay(&broker).topic(&topic).start().unwrap_err();
    assert!(matches!(&error, OutboxError::Missing { table, .. } if table == "outbox"), "{error}");
    assert!(!error.is_transient());
}

fn a_table_of_another_version_is_left_alone(lab: &impl Lab) {
    lab.sql("UPDATE outbox_version SET version = 99");
    let (broker, topic, _queue) = post(Retry::none());
    for error in [lab.relay(&broker).topic(&topic).start().unwrap_err(), lab.create_table().unwrap_err()] {
        assert!(matches!(error, OutboxError::Version { found: 99, expected: 1, .. }), "{error}");
    }
}

fn a_table_that_vanishes_is_an_error_that_is_told_and_waited_out(lab: &impl Lab) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let broker = Broker::builder().on_event(move |event| heard.lock().unwrap().push(event.clone())).build().unwrap();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let seen = consume(&queue, 1);
    let relay = quick(lab.relay(&broker)).topic(&topic).start().unwrap();
    lab.put("orders", numbers(0..5), true);
    eventually("all are done", || lab.stats().done == 5);
    lab.sql("ALTER TABLE outbox RENAME TO elsewhere");
    let start = Instant::now();
    eventually("it fails", || relay.stats().errors > 0);
    thread::sleep(Duration::from_millis(300));
    let (errors, took) = (relay.stats().errors, start.elapsed());
    assert!(u128::from(errors) < 20 + took.as_millis() / 50, "it does not hammer the database: {errors} in {took:?}");
    assert!(relay.stats().trouble.unwrap().contains("outbox"), "it names the table");
    lab.sql("ALTER TABLE elsewhere RENAME TO outbox");
    lab.put("orders", numbers(5..9), true);
    eventually("all are done", || lab.stats().done == 9);
    assert_eq!(*seen.lock().unwrap(), (0..9).collect::<Vec<_>>());
    eventually("it has recovered", || relay.stats().trouble.is_none());
    assert!(relay.stop(LONG));
    let events = events.lock().unwrap();
    let failing = events.iter().filter(|event| matches!(event, Event::OutboxFailing { .. })).count();
    let recovered = events.iter().filter(|event| matches!(event, Event::OutboxRecovered { .. })).count();
    assert!(failing >= 1 && failing == recovered, "{events:?}");
}

fn a_relay_that_makes_no_sense_does_not_start(lab: &impl Lab) {
    let (broker, topic, _queue) = post(Retry::none());
    let (ended, topic_of_ended, _) = post(Retry::none());
    let _ = ended.shutdown(Duration::ZERO);
    let other = Broker::new();
    for (relay, words) in [
        (lab.relay(&broker), "no topic"),
        (lab.relay(&broker).topic(&topic).topic(&topic), "given twice"),
        (lab.relay(&broker).topic(&topic).window(0), "1 at least"),
        (lab.relay(&broker).topic(&topic).lease(Duration::ZERO), "lease"),
        (lab.relay(&other).topic(&topic), "another broker"),
        (lab.relay(&ended).topic(&topic_of_ended), "shut down"),
    ] {
        let error = relay.start().unwrap_err();
        assert!(matches!(&error, OutboxError::Relay { .. }) && error.to_string().contains(words), "{error}");
    }
}

fn more_rows_than_the_window_all_come(lab: &impl Lab) {
    for (window, batch) in [(1, 1), (3, 2), (64, 1000)] {
        let (broker, topic, queue) = post(Retry::none());
        let seen = consume(&queue, 3);
        lab.put("orders", numbers(0..100), true);
        let relay = lab.relay(&broker).window(window).batch(batch).topic(&topic).start().unwrap();
        eventually("all are done", || lab.stats().waiting == 0);
        assert!(relay.stop(LONG));
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }
}

fn a_message_dropped_by_a_full_queue_is_a_dead_row(lab: &impl Lab) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    let queue: Queue<u64> = broker.queue("latest").capacity(1).overflow(Overflow::DropOldest).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    lab.put("orders", numbers(0..3), true);
    let relay = lab.relay(&broker).topic(&topic).start().unwrap();
    eventually("two are dead", || lab.stats().dead == 2);
    assert!(lab.dead()[0].reason.contains("dropped for overflow by queue \"latest\""));
    let last = queue.recv_timeout(LONG).unwrap();
    assert_eq!(*last.payload(), 2);
    last.discard().unwrap();
    eventually("the last is done, as its consumer wished", || lab.stats().done == 1);
    assert!(relay.stop(LONG));
}

fn creating_tables_again_changes_nothing(lab: &impl Lab) {
    let ids = lab.put("orders", numbers(0..1), true);
    let number = lab.number("SELECT number FROM outbox_version");
    lab.create_table().unwrap();
    assert_eq!(lab.number("SELECT number FROM outbox_version"), number);
    assert_eq!(lab.stats().waiting, 1);
    assert_eq!(ids[0].get() >> 40, number as u64);
}

fn what_cannot_be_put_is_refused(lab: &impl Lab) {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().unwrap();
    // The lab unwraps, so a refusal is a panic here.
    quiet();
    for message in [Message::new(1).with_id(5), Message::new(1).with_timer("unpaid-1")] {
        let put = std::panic::AssertUnwindSafe(|| lab.put("orders", vec![("k", message)], true));
        let words = std::panic::catch_unwind(put).unwrap_err();
        let words = words.downcast_ref::<String>().unwrap();
        assert!(words.contains("Unsupported"), "{words}");
    }
    assert_eq!(lab.stats().waiting, 0);
    drop(topic);
}
