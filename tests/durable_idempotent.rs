//! What an idempotent durable queue has completed, it still knows after a restart; what it has not, is handled.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use postroom::store::Durability;
use postroom::{
    Broker, CheckBack, Claimed, ManualClock, Message, Obstacle, PublishError, Queue, Resolution, Topic,
    TransactionError, Window,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn message(id: u64) -> Message<u64> {
    Message::new(id).with_id(id + 1)
}

fn declared(broker: &Broker, window: impl Into<Window>) -> Queue<u64> {
    broker.queue("q").idempotent(window).durable(Durability::Buffered).declare().unwrap()
}

fn open(folder: &Folder) -> (Broker, Queue<u64>) {
    let broker = Broker::open(folder.file()).unwrap();
    let queue = declared(&broker, HOUR);
    (broker, queue)
}

/// Whether a message of that id is handed out; it is acked then.
fn handles(queue: &Queue<u64>, id: u64) -> bool {
    queue.send(message(id)).unwrap();
    queue.try_recv().map(|delivery| delivery.ack().unwrap()).is_ok()
}

/// How many keys its stream holds.
fn kept(broker: &Broker) -> u64 {
    flush(broker);
    let streams = broker.store().unwrap().reader().unwrap().streams().unwrap();
    streams.iter().filter(|stream| stream.kind == "done").map(|stream| stream.count).sum()
}

#[test]
fn what_was_acked_or_discarded_is_a_duplicate_in_the_next_run() {
    let folder = Folder::new();
    let (broker, queue) = open(&folder);
    assert!(handles(&queue, 1));
    queue.send(message(2)).unwrap();
    queue.recv().unwrap().discard().unwrap();
    drop((broker, queue));

    let (broker, queue) = open(&folder);
    assert!(!handles(&queue, 1) && !handles(&queue, 2) && handles(&queue, 3));
    assert_eq!((queue.stats().duplicates, queue.stats().acked, queue.stats().unaccounted()), (2, 3, 0));
    drop((broker, queue));
    let (_broker, queue) = open(&folder);
    assert!(!handles(&queue, 1) && !handles(&queue, 3), "and in the one after that");
}

#[test]
fn what_failed_or_was_in_hand_when_the_process_died_is_handled() {
    let folder = Folder::new();
    let (broker, queue) = open(&folder);
    (1..=5).for_each(|id| _ = queue.send(message(id)).unwrap());
    queue.recv().unwrap().retry_after(HOUR).unwrap();
    queue.recv().unwrap().dead_letter("no").unwrap();
    let in_hand = queue.recv().unwrap();
    queue.recv().unwrap().ack().unwrap();
    flush(&broker);
    let killed = folder.killed();
    drop(in_hand);
    drop((broker, queue));

    let (_broker, queue) = open(&killed);
    let ids: Vec<u64> = std::iter::from_fn(|| queue.try_recv().ok()).map(|delivery| **delivery).collect();
    assert_eq!(ids, [3, 5], "the first rests, the second is a dead letter, the fourth is done");
    assert!(handles(&queue, 1), "and if one of its id comes before it is tried again");
    queue.dead_letters().redrive().run().unwrap();
    let second = std::iter::from_fn(|| queue.try_recv().ok()).find(|delivery| ***delivery == 2);
    assert!(second.is_some(), "a dead letter is no duplicate");
    assert!(!handles(&queue, 4));
}

#[test]
fn a_second_message_left_in_the_file_is_a_duplicate_once_the_first_was_done() {
    let folder = Folder::new();
    let (broker, queue) = open(&folder);
    (0..3).for_each(|_| _ = queue.send(message(1)).unwrap());
    let first = queue.recv().unwrap();
    assert!(queue.try_recv().is_err(), "the others wait for it");
    first.ack().unwrap();
    queue.send(message(1)).unwrap();
    flush(&broker);
    let killed = folder.killed();
    let (_broker, queue) = open(&killed);
    assert_eq!((queue.len(), queue.try_recv().is_err(), queue.len()), (1, true, 0));
}

#[test]
fn a_key_is_noted_in_the_commit_that_deletes_its_message() {
    let folder = Folder::new();
    let (broker, queue) = open(&folder);
    for id in 0..50 {
        queue.send(message(id)).unwrap();
    }
    let before = broker.stats().file.unwrap().batches;
    for delivery in queue.recv_batch(50).unwrap() {
        delivery.ack().unwrap();
    }
    flush(&broker);
    let after = broker.stats().file.unwrap();
    assert_eq!((after.batches - before, kept(&broker)), (51, 50), "one batch each, and the flush");
}

#[test]
fn the_window_goes_on_over_a_restart_in_time_and_number() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let window = Window::of(10 * SECOND).max(3);
    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, window);
    assert!(handles(&queue, 1));
    simulation.advance(6 * SECOND);
    assert!(handles(&queue, 2));
    drop((broker, queue, simulation));

    clock.advance(3 * SECOND);
    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, window);
    assert!(!handles(&queue, 1) && !handles(&queue, 2));
    simulation.advance(SECOND);
    assert!(handles(&queue, 1) && !handles(&queue, 2), "ten seconds are over for the first");
    assert!(handles(&queue, 3) && handles(&queue, 4), "and three are too many for the second");
    drop((broker, queue, simulation));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, window);
    assert!(!handles(&queue, 1) && !handles(&queue, 3) && !handles(&queue, 4) && handles(&queue, 2));
    drop((broker, queue, simulation));

    clock.advance(HOUR);
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, window);
    assert_eq!(kept(&broker), 0, "what is out of date is deleted when the queue is declared");
    assert!((1..5).all(|id| handles(&queue, id)));
}

#[test]
fn the_file_holds_little_more_than_the_window() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, Window::of(HOUR).max(100));
    assert!((0..1000).all(|id| handles(&queue, id)));
    assert!((100..=112).contains(&kept(&broker)), "{} of 100", kept(&broker));
    drop((broker, queue, simulation));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declared(&broker, Window::of(HOUR).max(10));
    assert_eq!(kept(&broker), 10, "a smaller window forgets");
    assert!(!handles(&queue, 990) && !handles(&queue, 999) && handles(&queue, 989));
    assert!((1000..1100).all(|id| handles(&queue, id)));
    assert!((10..=11).contains(&kept(&broker)));
    simulation.advance(2 * HOUR);
    assert!((0..9).all(|id| handles(&queue, id)));
    assert_eq!(kept(&broker), 9, "in time as in number");
}

#[test]
fn ids_are_not_taken_for_keys_of_the_payload() {
    let folder = Folder::new();
    let by_payload = |broker: &Broker| -> Queue<u64> {
        let queue = broker.queue("q").idempotent_by(HOUR, |n: &u64| n % 10);
        queue.durable(Durability::Buffered).declare().unwrap()
    };
    let (broker, queue) = open(&folder);
    assert!(handles(&queue, 7));
    drop((broker, queue));

    let broker = Broker::open(folder.file()).unwrap();
    let queue = by_payload(&broker);
    assert!(handles(&queue, 17), "another sort of key begins afresh");
    drop((broker, queue));
    let broker = Broker::open(folder.file()).unwrap();
    let queue = by_payload(&broker);
    assert!(!handles(&queue, 27), "and is remembered like any other");
    drop((broker, queue));

    let broker = Broker::open(folder.file()).unwrap();
    let plain: Queue<u64> = broker.queue("q").durable(Durability::Buffered).declare().unwrap();
    assert!(handles(&plain, 7), "a queue that is not idempotent lets it pass");
}

#[test]
fn many_workers_and_many_runs_handle_each_id_once() {
    let folder = Folder::new();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::new()));
    for _ in 0..5 {
        let (broker, queue) = open(&folder);
        queue.send_batch((0..200).map(|n| message(n % 100))).unwrap();
        let log = seen.clone();
        let handler = move |n: &Message<u64>| {
            *log.lock().unwrap().entry(**n).or_insert(0) += 1;
        };
        queue.consumer().workers(4).start(handler).unwrap();
        assert!(broker.shutdown(Duration::from_secs(30)).is_clean());
    }
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen.values().all(|times| *times == 1)), (100, true));
}

// ---- topics that refuse duplicates --------------------------------------------------------------------

/// A topic that remembers, with a durable queue behind it.
fn topic(broker: &Broker) -> (Topic<u64>, Queue<u64>) {
    let check = CheckBack::new(|_| Resolution::Unknown).durable(Durability::Buffered);
    let topic = broker.topic("t").refuse_duplicates_durably(Window::of(HOUR).max(100)).check_back(check);
    let topic = topic.declare().unwrap();
    let queue = broker.queue("behind").capacity(5).durable(Durability::Buffered).declare().unwrap();
    topic.bind(&queue, "queue").unwrap();
    (topic, queue)
}

/// Items in the file's streams of that kind.
fn in_file(broker: &Broker, kind: &str) -> u64 {
    flush(broker);
    let streams = broker.store().unwrap().reader().unwrap().streams().unwrap();
    streams.iter().filter(|stream| stream.kind == kind).map(|stream| stream.count).sum()
}

fn is_duplicate(topic: &Topic<u64>, id: u64) -> bool {
    match topic.try_publish("queue", message(id)) {
        Err(PublishError::Duplicate(refused)) => !refused.is_under_way(),
        _ => false,
    }
}

#[test]
fn an_id_that_was_published_in_an_earlier_run_is_refused() {
    let folder = Folder::new();
    let broker = Broker::open(folder.file()).unwrap();
    let (topic_, queue) = topic(&broker);
    let before = broker.stats().file.unwrap().batches;
    topic_.publish("queue", message(1)).unwrap();
    assert_eq!(broker.stats().file.unwrap().batches - before, 1, "its id is in the commit of the message");
    let crashed = folder.killed();
    topic_.publish("nowhere", message(2)).unwrap();
    broker.transaction(|tx| tx.publish(&topic_, "queue", message(3)).map_err(Into::into)).unwrap();
    topic_.prepare("queue", message(4)).unwrap().commit().unwrap();
    assert!((5..=6).all(|id| topic_.publish("queue", message(id)).is_ok()));
    assert!(matches!(topic_.try_publish("queue", message(7)), Err(PublishError::Full(_))));
    topic_.publish("nowhere", 8).unwrap();
    assert_eq!((in_file(&broker, "published"), in_file(&broker, "half messages")), (6, 0));
    drop((broker, topic_, queue));

    let broker = Broker::open(folder.file()).unwrap();
    let (topic_, queue) = topic(&broker);
    assert!((1..=6).all(|id| is_duplicate(&topic_, id)));
    let staged = broker.transaction(|tx| tx.publish(&topic_, "queue", message(3)).map_err(Into::into)).unwrap_err();
    let TransactionError::Refused(unpublished) = staged else { panic!("{staged}") };
    assert!(matches!(unpublished.why(), Obstacle::Duplicate { under_way: false }));
    let _ = queue.drain();
    assert!(topic_.publish("queue", message(7)).is_ok(), "what was refused is no duplicate");

    let broker = Broker::open(crashed.file()).unwrap();
    let (topic_, queue) = topic(&broker);
    assert_eq!((is_duplicate(&topic_, 1), is_duplicate(&topic_, 2), queue.len()), (true, false, 2));
}

#[test]
fn what_a_topic_remembers_in_the_file_is_bounded() {
    let folder = Folder::new();
    let broker = Broker::open(folder.file()).unwrap();
    let (topic_, _queue) = topic(&broker);
    (0..1000).for_each(|id| _ = topic_.publish("nowhere", message(id)).unwrap());
    assert!((100..=112).contains(&in_file(&broker, "published")));
    let other = broker.topic::<u64>("t").refuse_duplicates(Window::of(HOUR).max(100)).declare().unwrap_err();
    assert!(other.to_string().contains("durably"), "{other}");
    let without = Broker::new();
    assert!(without.topic::<u64>("t").refuse_duplicates_durably(HOUR).declare().is_err());
}

// ---- claims by hand -----------------------------------------------------------------------------------

#[test]
fn claims_by_hand_are_remembered_once_completed() {
    let folder = Folder::new();
    let broker = Broker::open(folder.file()).unwrap();
    let seen = broker.durable_idempotency("payments", HOUR).unwrap();
    let claim = |n: u64| match seen.claim(n) {
        Claimed::New(claim) => claim,
        other => panic!("{other:?}"),
    };
    claim(1).complete();
    claim(2).release();
    let open = claim(3);
    let same = broker.durable_idempotency("payments", HOUR).unwrap();
    assert!(matches!((same.claim(1), same.claim(3)), (Claimed::Done, Claimed::InProgress)), "it is one memory");
    let error = broker.durable_idempotency("payments", SECOND).unwrap_err().to_string();
    assert!(error.contains("it exists with the window"), "{error}");
    let other = broker.durable_idempotency("mails", HOUR).unwrap();
    assert!(matches!(other.claim(1), Claimed::New(_)));
    flush(&broker);
    let killed = folder.killed();
    drop(open);

    let broker = Broker::open(killed.file()).unwrap();
    let seen = broker.durable_idempotency("payments", HOUR).unwrap();
    assert!(matches!(seen.claim(1), Claimed::Done));
    assert!((2..4).all(|n| matches!(seen.claim(n), Claimed::New(_))));
    assert_eq!(in_file(&broker, "idempotency"), 1);
    drop(broker);
    assert!(Broker::new().durable_idempotency("payments", HOUR).is_err());
}
