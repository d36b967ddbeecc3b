//! What is PostgreSQL's own: ids that become visible out of order, connections that are lost, notifications.
#![cfg(feature = "postgres")]

use crate::common::{eventually, within};
use crate::lab::{Lab, PostgresLab};
use postroom::postgres::{Client, NoTls};
use postroom::{Broker, Message, OutboxError, PostgresOutbox, Queue, Topic, TopicName};
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const ORDERS: TopicName<u64> = TopicName::new("orders");
const LONG: Duration = Duration::from_secs(20);

fn post() -> (Broker, Topic<u64>, Queue<u64>) {
    let broker = Broker::new();
    let topic = broker.topic(ORDERS).declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    (broker, topic, queue)
}

fn receive(queue: &Queue<u64>) -> u64 {
    let delivery = queue.recv_timeout(LONG).unwrap();
    let n = *delivery.payload();
    delivery.ack().unwrap();
    n
}

#[test]
fn a_simulation_takes_only_relays_that_listen_to_nobody() {
    let Some(lab) = PostgresLab::new("in_a_simulation") else { return };
    let (broker, simulation) = Broker::simulated(1);
    let topic = broker.topic(ORDERS).declare().unwrap();
    let queue: Queue<u64> = broker.queue("billing").declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let error = lab.relay(&broker).topic(&topic).start().unwrap_err();
    assert!(error.to_string().contains("no thread that could listen"), "{error}");

    let quiet = PostgresOutbox::new("outbox").unwrap().without_notify();
    let url = lab.url.clone();
    let relay = quiet.relay(&broker, move || Client::connect(&url, NoTls)).topic(&topic).start().unwrap();
    lab.put("orders", (0..3).map(|n| ("k", Message::new(n))).collect(), true);
    quiet.notify();
    simulation.run_until_idle();
    assert_eq!([receive(&queue), receive(&queue), receive(&queue)], [0, 1, 2]);
    assert!(relay.stop(LONG));
    assert_eq!(lab.stats().done, 3);
}

#[test]
fn a_lower_id_that_is_committed_later_is_not_skipped() {
    let Some(lab) = PostgresLab::new("late_commit") else { return };
    within(Duration::from_secs(60), move || {
        let (broker, topic, queue) = post();
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        let (mut one, mut other) = (lab.client(), lab.client());
        let mut early = one.transaction().unwrap();
        let low = lab.outbox.put(&mut early, ORDERS, "k", 1).unwrap();
        for n in 2..5 {
            let mut late = other.transaction().unwrap();
            let high = lab.outbox.put(&mut late, ORDERS, "k", n).unwrap();
            assert!(high > low);
            late.commit().unwrap();
            assert_eq!(receive(&queue), n);
        }
        eventually("those are done", || lab.stats().done == 3);
        early.commit().unwrap();
        assert_eq!(receive(&queue), 1);
        assert!(relay.stop(LONG));
    });
}

/// The transaction that puts second has the older transaction id. An order by transaction ids, or holding back
/// what is younger than the oldest running transaction, would turn the two around.
#[test]
fn transactions_that_follow_each_other_keep_their_order_whatever_their_own_numbers() {
    let Some(lab) = PostgresLab::new("transaction_ids") else { return };
    within(Duration::from_secs(60), move || {
        let (broker, topic, queue) = post();
        lab.sql("CREATE TABLE users (name TEXT, version INT); INSERT INTO users VALUES ('ann', 0)");
        let (mut one, mut two, mut three) = (lab.client(), lab.client(), lab.client());
        let mut older = one.transaction().unwrap();
        older.execute("INSERT INTO effects VALUES (1)", &[]).unwrap();
        // One that has nothing to do with it keeps running.
        let mut bystander = three.transaction().unwrap();
        bystander.execute("INSERT INTO effects VALUES (2)", &[]).unwrap();
        let mut younger = two.transaction().unwrap();
        younger.execute("UPDATE users SET version = version + 1", &[]).unwrap();
        lab.outbox.put(&mut younger, ORDERS, "k", Message::new(1).with_key("ann")).unwrap();
        younger.commit().unwrap();
        older.execute("UPDATE users SET version = version + 1", &[]).unwrap();
        lab.outbox.put(&mut older, ORDERS, "k", Message::new(2).with_key("ann")).unwrap();
        older.commit().unwrap();
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        assert_eq!([receive(&queue), receive(&queue)], [1, 2]);
        assert!(relay.stop(LONG));
    });
}

#[test]
fn lost_connections_are_made_again_and_nothing_is_lost() {
    let Some(lab) = PostgresLab::new("lost_connections") else { return };
    within(Duration::from_secs(60), move || {
        let (broker, topic, queue) = post();
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        for n in 0..60_u64 {
            lab.put("orders", vec![("k", Message::new(n))], true);
            if n % 10 == 5 {
                lab.cut_off_relays();
            }
            assert_eq!(receive(&queue), n);
        }
        eventually("all are done", || lab.stats().done == 60);
        let stats = relay.stats();
        assert!((1..60).contains(&stats.errors), "{stats:?}");
        eventually("it listens again", || relay.stats().listening);
        assert_eq!(stats.relayed, 60, "nothing came twice, for the relay itself lived on");
        assert!(relay.stop(LONG));
    });
}

#[test]
fn without_notify_rows_are_found_by_polling() {
    let Some(lab) = PostgresLab::new("without_notify") else { return };
    within(Duration::from_secs(60), move || {
        let (broker, topic, queue) = post();
        let outbox = PostgresOutbox::new("outbox").unwrap().without_notify();
        let url = lab.url.clone();
        let relay = outbox.relay(&broker, move || Client::connect(&url, NoTls)).poll(Duration::from_millis(20));
        let relay = relay.topic(&topic).start().unwrap();
        eventually("it has looked", || relay.stats().leases == 1);
        let mut client = lab.client();
        let mut tx = client.transaction().unwrap();
        outbox.put(&mut tx, ORDERS, "k", 7).unwrap();
        tx.commit().unwrap();
        assert_eq!(receive(&queue), 7);
        assert!(!relay.stats().listening);
        assert!(relay.stop(LONG));
    });
}

#[test]
fn a_relay_ends_promptly_and_leaves_no_connection() {
    let Some(lab) = PostgresLab::new("prompt_end") else { return };
    within(Duration::from_secs(60), move || {
        let (broker, topic, _queue) = post();
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        eventually("it listens", || relay.stats().listening);
        let start = Instant::now();
        assert!(broker.shutdown(LONG).is_clean());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tprompt_end_relay'";
        eventually("its connections are closed", || lab.number(open) == 0);
    });
}

#[test]
fn two_programs_may_create_the_tables_at_once() {
    let Some(lab) = PostgresLab::new("create_at_once") else { return };
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| PostgresOutbox::new("another").unwrap().create_table(&mut lab.client()).unwrap());
        }
    });
    let mut client = lab.client();
    let mut tx = client.transaction().unwrap();
    PostgresOutbox::new("another").unwrap().put(&mut tx, ORDERS, "k", 1).unwrap();
    tx.commit().unwrap();
}

#[test]
fn a_schema_may_stand_before_the_name() {
    let Some(lab) = PostgresLab::new("schemas") else { return };
    let outbox = PostgresOutbox::new("tschemas.mine").unwrap();
    let mut client = lab.client();
    outbox.create_table(&mut client).unwrap();
    let mut tx = client.transaction().unwrap();
    outbox.put(&mut tx, ORDERS, "k", 1).unwrap();
    tx.commit().unwrap();
    assert_eq!(outbox.stats(&mut client).unwrap().waiting, 1);
}

#[test]
fn a_zero_character_is_refused_before_it_fails_the_transaction() {
    let Some(lab) = PostgresLab::new("zero_character") else { return };
    let mut client = lab.client();
    let mut tx = client.transaction().unwrap();
    let error = lab.outbox.put(&mut tx, ORDERS, "a\0b", 1).unwrap_err();
    assert!(matches!(error, OutboxError::Unsupported { .. }), "{error}");
    lab.outbox.put(&mut tx, ORDERS, "ab", Message::new(1).with_header("h", "x\0y")).unwrap();
    tx.commit().unwrap();
}

/// A server of the test's own, since it is stopped in the middle.
#[test]
fn a_server_that_is_gone_for_a_while_is_waited_for_without_a_loss_and_without_hurry() {
    if std::env::var("POSTROOM_TEST_POSTGRES").is_err() {
        let _ = writeln!(std::io::stderr(), "skipped the outage of PostgreSQL: POSTROOM_TEST_POSTGRES is not set");
        return;
    }
    within(Duration::from_secs(120), || {
        let server = Server::up();
        let lab = PostgresLab::on(server.url.clone(), "outage");
        let (broker, topic, queue) = post();
        let relay = lab.relay(&broker).topic(&topic).start().unwrap();
        lab.put("orders", (0..20).map(|n| ("k", Message::new(n))).collect(), true);
        let in_hand: Vec<_> = (0..20).map(|_| queue.recv_timeout(LONG).unwrap()).collect();

        server.run("stop");
        let start = Instant::now();
        in_hand.into_iter().for_each(|delivery| delivery.ack().unwrap());
        eventually("it finds out", || !relay.stats().connected);
        thread::sleep(Duration::from_secs(10).saturating_sub(start.elapsed()));
        let stats = relay.stats();
        assert!((2..30).contains(&stats.errors), "{stats:?}");
        assert_eq!((stats.unmarked, stats.listening), (20, false));
        assert!(stats.trouble.unwrap().contains("no connection to the database of table \"outbox\""));

        server.run("start");
        eventually("all are marked", || lab.stats().done == 20);
        lab.put("orders", vec![("k", Message::new(20))], true);
        assert_eq!(receive(&queue), 20);
        eventually("it is counted", || relay.stats().relayed == 21);
        assert!(relay.stop(LONG));
        assert!(relay.stats().trouble.is_none());
    });
}

struct Server {
    directory: String,
    url: String,
}

impl Server {
    fn script(args: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres.sh");
        let output = Command::new(script).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn up() -> Self {
        let said = Self::script(&["up"]);
        let (directory, url) = said.trim().split_once('\n').unwrap();
        Self { directory: directory.into(), url: url.into() }
    }

    fn run(&self, command: &str) {
        Self::script(&[command, &self.directory]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("down");
    }
}
