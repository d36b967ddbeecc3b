//! What a durable queue keeps, and when it is there again.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush, simulated};
use common::{eventually, quiet, within};
use postroom::store::{Durability, Limit, StoreError};
use postroom::{
    Broker, CheckBack, Codec, CodecError, Error, Expired, Log, ManualClock, Message, Obstacle, Overflow, PublishError,
    Queue, Reason, Resolution, Retry, SendError, Start, Topic, TransactionError,
};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const SYNC: Durability = Durability::Sync;

fn open(folder: &Folder) -> Broker {
    Broker::open(folder.file()).expect("the file is free")
}

fn jobs(broker: &Broker) -> Queue<String> {
    broker.queue("jobs").durable(Durability::Buffered).declare().unwrap()
}

fn texts(queue: &Queue<String>) -> Vec<String> {
    queue.list(usize::MAX).into_iter().map(|message| message.payload().clone()).collect()
}

#[test]
fn what_was_sent_is_there_when_the_file_is_opened_again() {
    let folder = Folder::new();
    let sent = Message::new("pay".to_string())
        .with_id(4711)
        .with_key("user-7")
        .with_header("tenant", "acme")
        .with_header("trace", "x\"y")
        .with_priority(3)
        .with_ttl(Duration::from_secs(3600));
    let broker = open(&folder);
    let topic: Topic<String> = broker.topic("work").declare().unwrap();
    let queue = jobs(&broker);
    topic.bind(&queue, "job.*").unwrap();
    assert_eq!(topic.publish("job.new", sent).unwrap().routed(), 1);
    let before = queue.peek().unwrap();
    drop((broker, topic, queue));

    let broker = open(&folder);
    let queue = jobs(&broker);
    let after = queue.peek().unwrap();
    assert_eq!(after.payload(), "pay");
    assert_eq!((after.id(), after.key(), after.routing_key()), (4711.into(), Some("user-7"), "job.new"));
    assert_eq!(after.headers().collect::<Vec<_>>(), [("tenant", "acme"), ("trace", "x\"y")]);
    assert_eq!((after.priority(), after.expires_at()), (3, before.expires_at()));
    assert_eq!((after.published_at(), after.attempt()), (before.published_at(), 0));
    assert_eq!((queue.stats().recovered, queue.stats().unaccounted()), (1, 0));
}

#[test]
fn order_is_kept_and_what_is_settled_is_gone() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    for n in 0..6 {
        queue.send(n.to_string()).unwrap();
    }
    assert_eq!(queue.send_batch((6..600).map(|n| n.to_string())).unwrap(), 594);
    queue.recv().unwrap().ack().unwrap();
    queue.recv().unwrap().discard().unwrap();
    queue.recv_batch(10).unwrap().ack().unwrap();
    let in_hand = queue.recv().unwrap();
    flush(&broker);
    let killed = folder.killed();
    drop((in_hand, queue, broker));

    let broker = open(&killed);
    let queue = jobs(&broker);
    assert_eq!(texts(&queue), (12..600).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(queue.peek().unwrap().redelivered(), "it may have been in hand");
    assert_eq!(queue.purge(), 588);
    drop((broker, queue));
    assert_eq!(jobs(&open(&killed)).len(), 0);
}

#[test]
fn after_a_shutdown_only_what_was_handed_out_is_redelivered() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    for n in 0..3 {
        queue.send(n.to_string()).unwrap();
    }
    queue.recv().unwrap().requeue().unwrap();
    let report = broker.shutdown(Duration::from_secs(1));
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.stored[0].queue.as_str(), report.stored[0].ready), ("jobs", 3));
    assert!(queue.drain().is_empty(), "what is in the file stays there");
    drop((broker, queue));

    let broker = open(&folder);
    let queue = jobs(&broker);
    let all: Vec<_> = queue.list(9).iter().map(|message| (message.payload().clone(), message.redelivered())).collect();
    assert_eq!(all, [("0".to_string(), true), ("1".to_string(), false), ("2".to_string(), false)]);
}

#[test]
fn attempts_and_their_history_go_on_where_they_were() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, simulation) = simulated(&folder, &clock);
    let retry = || Retry::fixed(Duration::from_secs(60)).max_attempts(3);
    let declare =
        |broker: &Broker| -> Queue<String> { broker.queue("jobs").retry(retry()).durable(SYNC).declare().unwrap() };
    let queue = declare(&broker);
    queue.consumer().start(|_: &Message<String>| Err::<(), _>(std::io::Error::other("no"))).unwrap();
    queue.send("a".to_string()).unwrap();
    simulation.advance(Duration::from_secs(61));
    assert_eq!(queue.delayed(), 1);
    let due = queue.list_delayed(1)[0].0;
    drop((broker, simulation, queue));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declare(&broker);
    let (again, message) = queue.list_delayed(1).pop().unwrap();
    assert_eq!((again, message.attempt(), message.history().len()), (due, 2, 2));
    assert_eq!(message.history()[1].error, "no");
    queue.consumer().start(|_: &Message<String>| Err::<(), _>(std::io::Error::other("never"))).unwrap();
    simulation.advance(Duration::from_secs(61));
    let letter = queue.dead_letters().peek().unwrap();
    assert_eq!((letter.attempts().len(), letter.error()), (3, Some("never")));
}

#[test]
fn delays_run_on_while_the_file_is_closed() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = jobs(&broker);
    for minutes in [10, 30] {
        let message = Message::new(minutes.to_string()).with_delay(Duration::from_secs(minutes * 60));
        queue.send(message).unwrap();
    }
    drop((broker, queue));
    clock.advance(Duration::from_secs(20 * 60));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = jobs(&broker);
    assert_eq!((texts(&queue), queue.delayed()), (vec!["10".to_string()], 1));
    simulation.advance(Duration::from_secs(599));
    assert_eq!(queue.len(), 1, "never early");
    simulation.advance(Duration::from_secs(1));
    assert_eq!(queue.len(), 2);
}

#[test]
fn a_time_to_live_runs_on_while_the_file_is_closed() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = jobs(&broker);
    queue.send(Message::new("old".to_string()).with_ttl(Duration::from_secs(60))).unwrap();
    queue.send(Message::new("new".to_string()).with_ttl(Duration::from_secs(600))).unwrap();
    drop((broker, queue));
    clock.advance(Duration::from_secs(61));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = jobs(&broker);
    simulation.run_until_idle();
    assert_eq!(texts(&queue), ["new"]);
    assert_eq!(*queue.dead_letters().peek().unwrap().reason(), Reason::Expired);
}

#[test]
fn dead_letters_keep_everything_and_find_their_way_back() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let (broker, simulation) = simulated(&folder, &clock);
    let declare = |broker: &Broker| -> Queue<String> {
        broker.queue("jobs").retry(Retry::immediate(2)).durable(SYNC).declare().unwrap()
    };
    let queue = declare(&broker);
    let consumer = queue.consumer().start(|_: &Message<String>| Err::<(), _>(std::io::Error::other("no"))).unwrap();
    queue.send(Message::new("a".to_string()).with_key("k").with_header("h", "1")).unwrap();
    simulation.run_until_idle();
    consumer.stop();
    queue.send("b".to_string()).unwrap();
    queue.recv().unwrap().dead_letter("smells").unwrap();
    let times: Vec<_> = queue.dead_letters().list(2).iter().map(|letter| letter.at()).collect();
    drop((broker, simulation, consumer, queue));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declare(&broker);
    let dead = queue.dead_letters();
    assert_eq!(queue.len(), 0);
    let letters = dead.list(9);
    assert_eq!(letters.iter().map(|letter| letter.at()).collect::<Vec<_>>(), times);
    assert_eq!((letters[0].reason(), letters[0].error()), (&Reason::Exhausted, Some("no")));
    assert_eq!(
        (letters[0].message().key(), letters[0].header("h"), letters[0].queue()),
        (Some("k"), Some("1"), "jobs")
    );
    assert_eq!(*letters[1].reason(), Reason::Rejected("smells".into()));
    let attempts = letters[0].attempts().len();
    drop(letters);

    assert_eq!(dead.redrive().filter(|letter| letter.payload() == "a").run().unwrap().moved, 1);
    assert_eq!((dead.len(), queue.len()), (1, 1));
    drop((broker, simulation, queue, dead));

    let (broker, _simulation) = simulated(&folder, &clock);
    let queue = declare(&broker);
    assert_eq!((texts(&queue), queue.dead_letters().len()), (vec!["a".to_string()], 1));
    assert_eq!((queue.peek().unwrap().attempt(), queue.peek().unwrap().history().len()), (0, attempts));
    queue.dead_letters().recv().unwrap().ack().unwrap();
    queue.recv().unwrap().ack().unwrap();
    drop((broker, queue));
    let (broker, _simulation) = simulated(&folder, &clock);
    assert_eq!((declare(&broker).len(), declare(&broker).dead_letters().len()), (0, 0));
}

#[test]
fn what_expired_while_the_file_was_closed_is_among_the_dead_letters() {
    for levels in [1, 2] {
        let folder = Folder::new();
        let declare = |broker: &Broker| -> Queue<u32> {
            let queue = broker.queue("jobs").ttl(Duration::from_millis(20)).expired(Expired::DeadLetter);
            queue.priority_levels(levels).durable(Durability::Buffered).declare().unwrap()
        };
        let broker = open(&folder);
        declare(&broker).send_batch(0..500).unwrap();
        let left = folder.killed();
        thread::sleep(Duration::from_millis(30));

        let broker = open(&left);
        let queue = declare(&broker);
        eventually("all have expired", || queue.dead_letters().len() == 500);
        drop((broker, queue));
        let broker = open(&left);
        let queue = declare(&broker);
        assert_eq!((queue.len(), queue.dead_letters().len()), (0, 500));
    }
}

#[test]
fn what_a_full_queue_gives_up_on_is_safe_before_anybody_hears_of_it() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let queue = broker.queue("jobs").capacity(1).overflow(Overflow::DeadLetter);
        let queue: Queue<String> = queue.durable(SYNC).declare().unwrap();
        queue.send("a".to_string()).unwrap();
        let store = broker.store().unwrap();
        let mut mine = store.connect().unwrap();
        let (said, heard) = mpsc::channel();
        let sender = queue.clone();
        let early = store.transaction(&mut mine, |_| -> Result<_, StoreError> {
            // Nothing is written meanwhile.
            thread::spawn(move || said.send(sender.send("b".to_string()).is_ok()));
            Ok(heard.recv_timeout(Duration::from_millis(200)))
        });
        assert_eq!(early.unwrap(), Err(mpsc::RecvTimeoutError::Timeout));
        eventually("it is a dead letter", || queue.dead_letters().len() == 1);
        assert_eq!((texts(&queue), queue.stats().unaccounted()), (vec!["a".to_string()], 0));
        drop((broker, queue));
        let broker = open(&folder);
        assert_eq!((texts(&jobs(&broker)), jobs(&broker).dead_letters().len()), (vec!["a".to_string()], 1));
    });
}

#[test]
fn a_message_is_never_both_in_its_queue_and_a_dead_letter() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    queue.send_batch((0..50).map(|n| n.to_string())).unwrap();
    for _ in 0..25 {
        queue.recv().unwrap().dead_letter("no").unwrap();
    }
    eventually("all of them", || queue.dead_letters().len() == 25);
    let copy = folder.killed();
    let other = open(&copy);
    let again = jobs(&other);
    assert_eq!((again.len(), again.dead_letters().len()), (25, 25));
}

#[test]
fn one_publish_is_one_commit_for_all_queues_it_reaches() {
    let folder = Folder::new();
    let broker = open(&folder);
    let topic: Topic<String> = broker.topic("work").declare().unwrap();
    let names = ["a", "b"];
    let durable = names.map(|name| broker.queue(name).durable(Durability::Buffered).declare().unwrap());
    let memory: Queue<String> = broker.queue("memory").declare().unwrap();
    durable.iter().for_each(|queue| topic.bind(queue, "#").unwrap());
    topic.bind(&memory, "#").unwrap();
    let seen = topic.subscribe().open().unwrap();
    let before = broker.stats().file.unwrap().batches;
    assert_eq!(topic.publish("x", "1".to_string()).unwrap().routed(), 3);
    assert_eq!(broker.stats().file.unwrap().batches, before + 1);
    assert_eq!((durable[0].len(), durable[1].len(), memory.len()), (1, 1, 1));
    assert_eq!(seen.recv().unwrap().payload(), "1");

    broker.store().unwrap().close().unwrap();
    let refused = topic.publish("x", "2".to_string()).unwrap_err();
    let PublishError::NotStored(refused) = refused else { panic!("{refused}") };
    assert!(refused.store_error().is_some());
    assert_eq!(refused.into_message().try_into_payload().unwrap(), "2");
    assert_eq!((durable[0].len(), durable[1].len(), memory.len()), (1, 1, 1), "all or none");
    assert!(seen.try_recv().is_err());
    assert!(matches!(durable[0].send("3".to_string()), Err(SendError::NotStored(_))));
    let batch = durable[0].send_batch(["4", "5"].map(String::from)).unwrap_err();
    assert_eq!((batch.accepted, batch.cause.into_message().payload().as_str(), batch.rest.len()), (0, "4", 1));
    assert_eq!(broker.stats().file.unwrap().state, "closed");
}

#[test]
fn what_the_file_refuses_leaves_no_trace_in_the_queues() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let topic: Topic<String> = broker.topic("work").declare().unwrap();
        let durable: Queue<String> = broker.queue("jobs").capacity(2).durable(SYNC).declare().unwrap();
        let memory: Queue<String> = broker.queue("memory").capacity(2).declare().unwrap();
        topic.bind(&durable, "#").unwrap();
        topic.bind(&memory, "#").unwrap();
        broker.store().unwrap().close().unwrap();
        for _ in 0..5 {
            assert!(matches!(topic.try_publish("x", "a".to_string()), Err(PublishError::NotStored(_))));
            assert!(matches!(durable.send("b".to_string()), Err(SendError::NotStored(_))));
            assert!(durable.send_batch(["c".to_string()]).is_err());
            assert!(topic.publish_deferred("x", "d".to_string()).wait().is_err());
            let sent = broker.try_transaction(|tx| {
                tx.send(&durable, "e".to_string())?;
                tx.send(&memory, "f".to_string())?;
                Ok(())
            });
            assert!(
                matches!(sent, Err(TransactionError::Refused(refused)) if matches!(refused.why(), Obstacle::NotStored(_)))
            );
        }
        memory.try_send("there is room".to_string()).unwrap();
        assert_eq!((durable.stats().unaccounted(), memory.stats().unaccounted(), topic.stats().published), (0, 0, 0));
        memory.purge();
        memory.consumer().start(|_: &Message<String>| ()).unwrap();
        assert!(broker.wait_idle(LIMIT / 2), "a promise is left over");
    });
}

#[test]
fn a_transaction_is_one_commit_and_is_seen_at_once() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    let numbers: Queue<u32> = broker.queue("numbers").durable(SYNC).declare().unwrap();
    let memory: Queue<u8> = broker.queue("memory").declare().unwrap();
    let before = broker.stats().file.unwrap().batches;
    broker
        .transaction(|tx| {
            tx.send(&queue, "a".to_string())?;
            tx.send(&numbers, 7)?;
            tx.send(&queue, "b".to_string())?;
            tx.send(&memory, 1)?;
            Ok(())
        })
        .unwrap();
    assert_eq!(broker.stats().file.unwrap().batches, before + 1);
    assert_eq!((texts(&queue), numbers.len(), memory.len()), (vec!["a".into(), "b".to_string()], 1, 1));
    queue.recv().unwrap().ack().unwrap();

    broker.store().unwrap().close().unwrap();
    let refused = broker.transaction(|tx| {
        tx.send(&memory, 2)?;
        tx.send(&queue, "c".to_string())?;
        Ok(())
    });
    let Err(TransactionError::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!((refused.by(), refused.operation()), ("jobs", 1));
    assert_eq!((refused.into_transaction().len(), memory.len()), (2, 1));
    drop((queue, numbers, broker));
    let broker = open(&folder);
    assert_eq!(texts(&jobs(&broker)), ["b"]);
}

/// Its destructor panics even while another one's panic is on its way up, which would end the process.
struct Stubborn;

impl Drop for Stubborn {
    fn drop(&mut self) {
        panic!("{}", common::ON_PURPOSE);
    }
}

#[test]
fn a_transaction_keeps_the_panics_of_what_nobody_wants_apart() {
    quiet();
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    let nowhere: Topic<Stubborn> = broker.topic("nowhere").declare().unwrap();
    broker
        .transaction(|tx| {
            tx.publish(&nowhere, "k", Stubborn)?;
            tx.publish(&nowhere, "k", Stubborn)?;
            tx.send(&queue, "a".to_string())?;
            Ok(())
        })
        .unwrap();
    assert_eq!((texts(&queue), nowhere.stats().unroutable), (vec!["a".to_string()], 2));
}

#[test]
fn many_may_be_under_way_and_share_commits() {
    let folder = Folder::new();
    let broker = open(&folder);
    let topic: Topic<u32> = broker.topic("work").declare().unwrap();
    let queue: Queue<u32> = broker.queue("numbers").durable(SYNC).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let tickets: Vec<_> = (0..500).map(|n| topic.publish_deferred("n", n)).collect();
    let others: Vec<_> = (500..1000).map(|n| queue.send_deferred(n)).collect();
    drop(others);
    for ticket in tickets {
        assert_eq!(ticket.wait().unwrap().routed(), 1);
    }
    eventually("what nobody waited for", || queue.len() == 1000);
    let found: Vec<u32> = queue.list(1000).iter().map(|message| **message).collect();
    assert_eq!(found, (0..1000).collect::<Vec<_>>());
    assert!(broker.stats().file.unwrap().commits < 500);
    assert_eq!(topic.stats().published, 500);
    broker.store().unwrap().close().unwrap();
    assert!(matches!(queue.send_deferred(1).wait(), Err(PublishError::NotStored(_))));
}

#[test]
fn an_ordered_queue_keeps_each_keys_order_through_a_restart() {
    let (folder, clock) = (Folder::new(), ManualClock::new());
    let declare = |broker: &Broker| -> Queue<(String, u32)> {
        broker
            .queue("steps")
            .ordered_by(|(key, _): &(String, u32)| key.clone())
            .retry(Retry::fixed(Duration::from_secs(60)))
            .durable(Durability::Buffered)
            .declare()
            .unwrap()
    };
    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declare(&broker);
    for n in 0..3 {
        for key in ["a", "b"] {
            queue.send((key.to_string(), n)).unwrap();
        }
    }
    let first = queue.recv().unwrap();
    assert_eq!(first.0, "a");
    first.retry().unwrap();
    drop((broker, simulation, queue));

    let (broker, simulation) = simulated(&folder, &clock);
    let queue = declare(&broker);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&seen);
    queue
        .consumer()
        .workers(3)
        .start(move |step: &Message<(String, u32)>| book.lock().unwrap().push(step.payload().clone()))
        .unwrap();
    simulation.run_until_idle();
    let b = |n| ("b".to_string(), n);
    assert_eq!(*seen.lock().unwrap(), [b(0), b(1), b(2)], "the other key waits for its retry");
    simulation.advance(Duration::from_secs(60));
    let a: Vec<u32> = seen.lock().unwrap()[3..].iter().map(|(_, n)| *n).collect();
    assert_eq!(a, [0, 1, 2]);
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn a_declaration_that_does_not_fit_the_file_says_both() {
    let folder = Folder::new();
    let broker = open(&folder);
    let _ = jobs(&broker);
    let other = broker.queue::<String>("jobs").declare().unwrap_err();
    assert!(other.to_string().contains("durable"), "{other}");
    drop(broker);
    let broker = open(&folder);
    let ordered = broker.queue::<String>("jobs").ordered_by_key().durable(SYNC).declare().unwrap_err();
    assert!(ordered.to_string().contains("order") && ordered.to_string().contains("\"by key\""), "{ordered}");
    let coded = broker.queue("jobs").durable_with(SYNC, Picky).declare().unwrap_err();
    assert!(coded.to_string().contains("\"json\"") && coded.to_string().contains("\"picky\""), "{coded}");
    assert_eq!(coded.subject(), "queue \"jobs\"");
    let _: Queue<String> = broker.queue("jobs").capacity(3).overflow(Overflow::Reject).durable(SYNC).declare().unwrap();

    let error = Broker::new().queue::<String>("jobs").durable(SYNC).declare().unwrap_err();
    assert!(error.subject().contains("jobs") && error.to_string().contains("Broker::open"), "{error}");
    let error = postroom::QueueBuilder::<String>::new("alone").durable(SYNC).declare().unwrap_err();
    assert!(error.to_string().contains("Broker::open"), "{error}");
    let second = Broker::open(folder.file()).unwrap_err();
    assert!(second.to_string().contains("in use by"), "{second}");
}

/// Refuses some payloads, each way.
struct Picky;

impl Codec<String> for Picky {
    fn name(&self) -> &str {
        "picky"
    }
    fn encode(&self, text: &String) -> Result<Vec<u8>, CodecError> {
        match text.as_str() {
            "panic" => panic!("{}", common::ON_PURPOSE),
            "refuse" => Err("too ugly".into()),
            text => Ok(text.into()),
        }
    }
    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        match bytes {
            b"rotten" => Err("does not smell right".into()),
            bytes => Ok(String::from_utf8(bytes.to_vec())?),
        }
    }
}

#[test]
fn a_payload_that_cannot_be_encoded_comes_back() {
    quiet();
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = broker.queue("jobs").durable_with(SYNC, Picky).declare().unwrap();
    for text in ["panic", "refuse"] {
        let Err(SendError::Unencodable(refused)) = queue.send(text.to_string()) else { panic!("taken") };
        assert_eq!(refused.payload(), text);
    }
    let error = queue.send_batch(["a", "refuse", "b"].map(String::from)).unwrap_err();
    assert_eq!((error.accepted, error.rest.len(), texts(&queue)), (1, 1, vec!["a".to_string()]));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn a_payload_that_cannot_be_decoded_is_put_apart() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = broker.queue("jobs").durable_with(SYNC, Picky).declare().unwrap();
    queue.send_batch(["a", "rotten", "b"].map(String::from)).unwrap();
    drop((broker, queue));
    let told = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&told);
    let hook = move |event: &postroom::Event| book.lock().unwrap().push(format!("{event:?}"));
    let broker = Broker::builder().store(folder.file()).on_event(hook).build().unwrap();
    let queue = broker.queue("jobs").durable_with(SYNC, Picky).declare().unwrap();
    assert_eq!(texts(&queue), ["a", "b"]);
    assert!(told.lock().unwrap()[0].contains("does not smell right"));
    let reader = broker.store().unwrap().reader().unwrap();
    let apart = reader.stream("undecodable", "jobs").unwrap().unwrap();
    assert_eq!(reader.read(apart.id, 0, Limit::items(9)).unwrap()[0].item.payload, b"rotten");
}

#[test]
fn payloads_of_an_earlier_version_are_upgraded_and_later_ones_put_apart() {
    let folder = Folder::new();
    let declare = |broker: &Broker, version: u32| -> Result<Queue<String>, postroom::Error> {
        let upgrade = move |from: u32, bytes: &[u8]| -> Result<String, CodecError> {
            let old: String = serde_json::from_slice(bytes)?;
            if old == "x" { Err("cannot be upgraded".into()) } else { Ok(format!("{old}, {from} to {version}")) }
        };
        broker.queue("jobs").durable(SYNC).schema(version, upgrade).declare()
    };
    let broker = open(&folder);
    let queue = jobs(&broker);
    queue.send_batch(["dead", "a", "x"].map(String::from)).unwrap();
    queue.recv().unwrap().dead_letter("no").unwrap();
    eventually("the letter", || queue.dead_letters().len() == 1);
    drop((broker, queue));

    let broker = open(&folder);
    let queue = declare(&broker, 2).unwrap();
    assert_eq!(texts(&queue), ["a, 0 to 2"]);
    assert_eq!(queue.dead_letters().peek().unwrap().message().payload(), "dead, 0 to 2");
    queue.send("b".to_string()).unwrap();
    drop((broker, queue));

    let broker = open(&folder);
    let queue = declare(&broker, 1).unwrap();
    assert_eq!(texts(&queue), ["a, 0 to 1"], "the other one is of version 2");
    let reader = broker.store().unwrap().reader().unwrap();
    assert_eq!(reader.stream("undecodable", "jobs").unwrap().unwrap().count, 2);
    let early = broker.queue::<String>("other").schema(1, |_, _| Err("no".into())).declare().unwrap_err();
    assert!(early.to_string().contains("schema"), "{early}");
}

#[test]
fn what_an_overflow_throws_away_is_not_in_the_file_either() {
    for (policy, left) in [(Overflow::DropOldest, ["3", "4"]), (Overflow::DropNewest, ["0", "1"])] {
        let folder = Folder::new();
        let broker = open(&folder);
        let declare = |broker: &Broker| -> Queue<String> {
            broker.queue("jobs").capacity(2).overflow(policy).durable(SYNC).declare().unwrap()
        };
        let queue = declare(&broker);
        for n in 0..5 {
            queue.send(n.to_string()).unwrap();
        }
        assert_eq!((queue.stats().dropped, queue.stats().unaccounted()), (3, 0));
        drop((broker, queue));
        let broker = open(&folder);
        assert_eq!(texts(&declare(&broker)), left, "{policy:?}");
    }
}

#[test]
fn recovered_messages_occupy_capacity() {
    let folder = Folder::new();
    let declare = |broker: &Broker| -> Queue<String> {
        broker.queue("jobs").capacity(2).durable(Durability::Buffered).declare().unwrap()
    };
    let broker = open(&folder);
    let queue = declare(&broker);
    queue.send_batch(["a", "b"].map(String::from)).unwrap();
    assert!(queue.try_send("c".to_string()).is_err());
    drop((broker, queue));
    let broker = open(&folder);
    let queue = declare(&broker);
    assert!(queue.try_send("c".to_string()).is_err());
    queue.recv().unwrap().ack().unwrap();
    queue.try_send("c".to_string()).unwrap();
    assert_eq!(texts(&queue), ["b", "c"]);
}

#[test]
fn ids_of_one_run_are_not_assigned_in_another() {
    let folder = Folder::new();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let broker = open(&folder);
        ids.push(jobs(&broker).send("a".to_string()).unwrap());
    }
    ids.dedup();
    assert_eq!((ids.len(), ids[0].get()), (3, 1));
}

#[test]
fn what_the_file_does_not_get_overtakes_nothing_that_it_gets() {
    let folder = Folder::new();
    let broker = open(&folder);
    let topic: Topic<u32> = broker.topic("work").declare().unwrap();
    let first: Queue<u32> =
        broker.queue("first").capacity(1).overflow(Overflow::DropNewest).durable(SYNC).declare().unwrap();
    let all: Queue<u32> = broker.queue("all").declare().unwrap();
    topic.bind(&first, "#").unwrap();
    topic.bind(&all, "#").unwrap();
    let tickets: Vec<_> = (0..20).map(|n| topic.publish_deferred("n", n)).collect();
    tickets.into_iter().for_each(|ticket| _ = ticket.wait().unwrap());
    assert_eq!(all.list(99).iter().map(|message| **message).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!((first.len(), first.stats().dropped), (1, 19));
}

/// Notes on which thread it is dropped.
#[derive(serde::Serialize, serde::Deserialize)]
struct Dropped;

static DROPPED_ON: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Drop for Dropped {
    fn drop(&mut self) {
        let thread = thread::current().name().unwrap_or("unnamed").to_owned();
        DROPPED_ON.lock().unwrap().push(thread);
    }
}

#[test]
fn payloads_are_never_dropped_by_the_thread_that_writes() {
    let folder = Folder::new();
    let broker = open(&folder);
    let topic: Topic<Dropped> = broker.topic("work").declare().unwrap();
    let queue = broker.queue("latest").capacity(2).overflow(Overflow::DropOldest);
    let latest: Queue<Dropped> = queue.durable(Durability::Buffered).declare().unwrap();
    for (name, policy) in [("a", Overflow::DropOldest), ("b", Overflow::DropNewest), ("c", Overflow::DeadLetter)] {
        let queue: Queue<Dropped> =
            broker.queue(name).capacity(1).overflow(policy).durable(Durability::Buffered).declare().unwrap();
        topic.bind(&queue, "#").unwrap();
    }
    let _late = topic.subscribe().capacity(1).open().unwrap();
    for _ in 0..20 {
        topic.publish("x", Dropped).unwrap();
        drop(topic.publish_deferred("x", Dropped));
        let send = Message::new(Dropped).with_delay(Duration::from_secs(60)).with_timer("t");
        let _ = topic.publish("x", send);
        // It replaces the one before of that name, and the oldest of all.
        latest.send(Dropped).unwrap();
        latest.send(Message::new(Dropped).with_delay(Duration::from_secs(60)).with_timer("u")).unwrap();
    }
    broker.store().unwrap().close().unwrap();
    assert!(topic.publish("x", Dropped).is_err());
    drop(topic.publish_deferred("x", Dropped));
    drop((broker, topic, latest));
    let threads = DROPPED_ON.lock().unwrap();
    assert!(threads.len() > 20 && threads.iter().all(|name| name != "postroom-store"), "{threads:?}");
}

#[test]
fn workers_hand_on_from_one_durable_queue_to_the_next() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        let first: Queue<u32> = broker.queue("first").capacity(8).durable(Durability::Buffered).declare().unwrap();
        let second: Queue<u32> = broker.queue("second").capacity(4).durable(SYNC).declare().unwrap();
        let next = second.clone();
        first.consumer().workers(3).start(move |n: &Message<u32>| next.send(**n).map(drop)).unwrap();
        let sum = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&sum);
        second.consumer().workers(2).start(move |n: &Message<u32>| book.lock().unwrap().push(**n)).unwrap();
        let producers: Vec<_> = (0..3)
            .map(|p| {
                let first = first.clone();
                thread::spawn(move || (0..50).for_each(|n| _ = first.send(p * 50 + n).unwrap()))
            })
            .collect();
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        let report = broker.shutdown(Duration::from_secs(30));
        assert!(report.is_clean() && report.stored.is_empty(), "{report}");
        let mut seen = sum.lock().unwrap().clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..150).collect::<Vec<_>>());
        drop((broker, first, second));
        let broker = open(&folder);
        let first: Queue<u32> = broker.queue("first").durable(SYNC).declare().unwrap();
        assert_eq!(first.len(), 0);
    });
}

#[test]
fn a_request_through_a_durable_queue_is_answered() {
    let folder = Folder::new();
    let broker = open(&folder);
    let queue = jobs(&broker);
    queue.consumer().respond(|text: &Message<String>| Ok::<_, postroom::Failure>(text.len())).unwrap();
    let length: usize = queue.request("four".to_string(), LIMIT).unwrap();
    assert_eq!(length, 4);
    assert!(broker.wait_idle(LIMIT));
}

#[test]
fn the_description_says_what_is_promised() {
    let folder = Folder::new();
    let broker = open(&folder);
    let _ = jobs(&broker);
    let _: Queue<u8> = broker.queue("strict").durable(SYNC).declare().unwrap();
    let _: Queue<u8> = broker.queue("quick").declare().unwrap();
    let text = broker.describe().to_string();
    let line = |name: &str| text.lines().find(|line| line.starts_with(&format!("queue {name:?}"))).unwrap().to_owned();
    assert!(line("jobs").contains("survives the end of the process"), "{text}");
    assert!(line("strict").contains("survives the loss of power"), "{text}");
    assert!(!line("quick").contains("survives"), "{text}");
    assert_eq!(broker.stats().file.unwrap().state, "healthy");
    assert_eq!(Broker::new().stats().file, None);
}

#[test]
fn threads_that_declare_the_same_queue_find_one() {
    within(LIMIT, || {
        let folder = Folder::new();
        let broker = open(&folder);
        jobs(&broker).send_batch((0..100).map(|n| n.to_string())).unwrap();
        drop(broker);
        let broker = open(&folder);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let broker = broker.clone();
                thread::spawn(move || jobs(&broker).len())
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 100));
        assert_eq!(jobs(&broker).stats().recovered, 100);
    });
}

/// A codec for text that, asked for its name for the first time, says so and waits.
struct Slow {
    asked: mpsc::Sender<()>,
    go_on: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Codec<String> for Slow {
    fn name(&self) -> &str {
        if let Some(go_on) = self.go_on.lock().unwrap().take() {
            self.asked.send(()).unwrap();
            go_on.recv().unwrap();
        }
        "text"
    }
    fn encode(&self, payload: &String) -> Result<Vec<u8>, CodecError> {
        Ok(payload.clone().into_bytes())
    }
    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        Ok(String::from_utf8(bytes.to_vec())?)
    }
}

#[test]
fn the_name_of_a_queue_that_is_just_being_opened_is_taken_for_dead_letters_in_memory_too() {
    let folder = Folder::new();
    let broker = open(&folder);
    let topic = || broker.topic("orders").check_back(CheckBack::new(|_: &Message<u32>| Resolution::Unknown)).declare();
    let log: Log<u32> = broker.log("lines").declare().unwrap();
    let group = || log.group("readers").start(Start::Earliest);
    let tries: [(&str, &(dyn Fn() -> Option<Error> + Sync)); 2] =
        [("orders.half.dead", &|| topic().err()), ("lines/readers.dead", &|| group().err())];
    for (name, other) in tries {
        let (asked, is_asked) = mpsc::channel();
        let (go, go_on) = mpsc::channel();
        let slow = Slow { asked, go_on: Mutex::new(Some(go_on)) };
        thread::scope(|scope| {
            let queue = scope.spawn(|| broker.queue::<String>(name).durable_with(SYNC, slow).declare());
            is_asked.recv().unwrap();
            // It may wait until it is known what becomes of the other one.
            let refused = scope.spawn(other);
            go.send(()).unwrap();
            let refused = refused.join().unwrap().expect(name);
            assert!(refused.to_string().contains("taken by another queue"), "{refused}");
            queue.join().unwrap().unwrap();
        });
    }
}
