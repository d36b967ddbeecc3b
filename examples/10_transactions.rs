//! Transactions: an order row and its event must both exist, or neither.
//!
//! **Situation.** Placing an order writes a row into a database and tells the rest of the program. The program may
//! crash between the two, and the database may be slow to say whether it has committed. Told first and saved
//! afterwards, an order that was never saved is billed. Saved first and told afterwards, an order is saved that
//! nobody ever hears of.
//!
//! **What the queue gives.** A half message: prepared first, seen by nobody, published once the row is committed,
//! dropped if it is rolled back. If the producer vanishes in between, a check-back looks into the database and
//! decides: after 6 seconds, then every 30, 15 times at most. What it cannot decide becomes a dead letter.
//!
//! **What to expect on screen.** Four orders, one for each way it can go. Then 1,000 orders with random outcomes in
//! the two naive ways, with the orders each of them loses or invents, and with half messages, which end with exactly
//! the committed ones. Last, a step that publishes several events at once, all of them or none. The clock is
//! virtual, so the minutes take no time.
//!
//! A half message is for a database elsewhere. With `--durable PATH` the orders' table and the queue are in that one
//! file, and a fourth part places the same orders there, on the real clock: one transaction has the row and the event,
//! so there is nothing to check back. Kill the program whenever you like and start it again with the same path: it says
//! what it has found, goes on with the orders that have no row, and at the end exactly those with a row are billed,
//! each of them once, although some events may come twice. Another `--seed` is for another file.
//!
//! `cargo run --release --example 10_transactions -- [--seed N]`
//! `cargo run --release --features sqlite --example 10_transactions -- [--seed N] --durable orders.db`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;
#[path = "common/durable.rs"]
#[allow(dead_code)] // it keeps no ledgers, and without the feature nothing at all
mod durable;

use chance::{Chance, Outcome};
use database::Database;
use names::{OrderPlaced, SHIPMENTS};
use postroom::{Broker, CheckBack, Message, Published, Queue, Simulation, Topic, TransactionError};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct OrderPlaced {
        pub order: u64,
    }

    pub const ORDERS: TopicName<OrderPlaced> = TopicName::new("orders");
    pub const BILLING: QueueName<OrderPlaced> = QueueName::new("billing");
    pub const SHIPMENTS: QueueName<u64> = QueueName::new("shipments");
}

/// The world outside.
mod database {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// A table of orders. A row is there or not; a transaction that is still open can be neither yet.
    #[derive(Default)]
    pub struct Database {
        rows: Mutex<BTreeSet<u64>>,
        open: Mutex<BTreeSet<u64>>,
    }

    #[derive(Debug)]
    pub struct Refused;

    impl std::fmt::Display for Refused {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the database refused the row")
        }
    }

    impl std::error::Error for Refused {}

    impl Database {
        pub fn save(&self, order: u64) {
            self.rows.lock().unwrap().insert(order);
            self.open.lock().unwrap().remove(&order);
        }

        pub fn begin(&self, order: u64) {
            self.open.lock().unwrap().insert(order);
        }

        pub fn has(&self, order: u64) -> bool {
            self.rows.lock().unwrap().contains(&order)
        }

        pub fn is_open(&self, order: u64) -> bool {
            self.open.lock().unwrap().contains(&order)
        }

        /// A connection that hangs is ended by the database one day.
        pub fn roll_back_what_is_open(&self) -> Vec<u64> {
            std::mem::take(&mut *self.open.lock().unwrap()).into_iter().collect()
        }

        pub fn rows(&self) -> BTreeSet<u64> {
            self.rows.lock().unwrap().clone()
        }
    }
}

/// How each order ends, drawn from a seed.
mod chance {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Outcome {
        Commits,
        /// The database refuses the row.
        RollsBack,
        /// The program crashes before the row is written,
        CrashesBefore,
        /// or after it was committed, before anybody was told.
        CrashesAfter,
        /// The connection hangs: whether the row is committed is known later.
        HangsThenCommits,
        HangsThenRollsBack,
    }

    pub struct Chance(u64);

    impl Chance {
        pub fn new(seed: u64) -> Self {
            Self(seed)
        }

        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }

        pub fn outcome(&mut self) -> Outcome {
            match self.below(100) {
                0..70 => Outcome::Commits,
                70..80 => Outcome::RollsBack,
                80..85 => Outcome::CrashesBefore,
                85..90 => Outcome::CrashesAfter,
                90..95 => Outcome::HangsThenCommits,
                _ => Outcome::HangsThenRollsBack,
            }
        }
    }
}

/// The module that takes orders. It knows its database and a topic.
mod shop {
    use crate::chance::Outcome;
    use crate::database::{Database, Refused};
    use crate::names::{ORDERS, OrderPlaced};
    use postroom::{Broker, CheckBack, Error, Half, Message, PublishError, Resolution, Topic};
    use std::sync::Arc;

    pub const KEY: &str = "order.placed";

    /// What the check-back asks: the truth is in the database.
    pub fn check_back(database: Arc<Database>) -> CheckBack<OrderPlaced> {
        CheckBack::new(move |event: &Message<OrderPlaced>| {
            if database.has(event.order) {
                Resolution::Commit
            } else if database.is_open(event.order) {
                Resolution::Unknown
            } else {
                Resolution::Rollback
            }
        })
    }

    pub fn open(broker: &Broker, database: Arc<Database>) -> Result<Topic<OrderPlaced>, Error> {
        broker.topic(ORDERS).check_back(check_back(database)).declare()
    }

    /// The local transaction. A hanging one has begun, and is not ended here.
    pub fn save(database: &Database, order: u64, outcome: Outcome) -> Result<Resolution, Refused> {
        match outcome {
            Outcome::Commits | Outcome::CrashesAfter => database.save(order),
            Outcome::RollsBack => return Err(Refused),
            Outcome::CrashesBefore => {}
            Outcome::HangsThenCommits | Outcome::HangsThenRollsBack => {
                database.begin(order);
                return Ok(Resolution::Unknown);
            }
        }
        Ok(Resolution::Commit)
    }

    /// The event first, then the row.
    pub fn place_told_first(
        orders: &Topic<OrderPlaced>,
        database: &Database,
        order: u64,
        outcome: Outcome,
    ) -> Result<(), PublishError<OrderPlaced>> {
        orders.publish(KEY, OrderPlaced { order })?;
        if outcome != Outcome::CrashesBefore {
            let _ = save(database, order, outcome); // too late for the event
        }
        Ok(())
    }

    /// The row first, then the event.
    pub fn place_saved_first(
        orders: &Topic<OrderPlaced>,
        database: &Database,
        order: u64,
        outcome: Outcome,
    ) -> Result<(), PublishError<OrderPlaced>> {
        if outcome == Outcome::CrashesBefore || !matches!(save(database, order, outcome), Ok(Resolution::Commit)) {
            return Ok(()); // of a row that hangs, nobody will say
        }
        if outcome == Outcome::CrashesAfter {
            return Ok(());
        }
        orders.publish(KEY, OrderPlaced { order }).map(|_| ())
    }

    /// The program ends here, as far as this order is concerned: nobody says what became of it.
    pub fn crash(half: Half<OrderPlaced>) {
        drop(half);
    }
}

/// The orders' table and the queue in one file: no half message, no check-back, no relay.
#[cfg(feature = "sqlite")]
mod one_file {
    use crate::chance::Outcome;
    use crate::database::Refused;
    use crate::durable;
    use crate::names::{BILLING, OrderPlaced};
    use postroom::rusqlite::Connection;
    use postroom::store::{Store, StoreError};
    use postroom::{Broker, Message, Queue};
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    type AnyError = Box<dyn std::error::Error>;

    const TABLES: &str = "
        CREATE TABLE IF NOT EXISTS placed (number INTEGER PRIMARY KEY);
        CREATE TABLE IF NOT EXISTS billed (number INTEGER PRIMARY KEY);";
    const PATIENCE: Duration = Duration::from_secs(60);

    pub fn run(file: &Path, outcomes: &[(u64, Outcome)]) -> Result<(), AnyError> {
        println!("\n4. The same orders, their rows and events in one file, on the real clock.");
        let broker = durable::broker(Some(file));
        let store = broker.store().expect("opened with one").clone();
        let mut db = store.connect()?;
        db.execute_batch(TABLES)?;
        let billing = durable::queue(&broker, BILLING).declare()?;
        durable::say_what_was_there(&broker);
        bill(&store, &billing)?;

        let before = numbers(&db, "SELECT number FROM placed")?;
        for (n, &(order, outcome)) in outcomes.iter().enumerate() {
            if n == outcomes.len() / 2 {
                println!("   half of them are dealt with");
            }
            if !before.contains(&order) {
                place(&store, &mut db, &billing, order, outcome)?;
            }
        }
        let now = numbers(&db, "SELECT number FROM placed")?.len() - before.len();
        println!("   {} orders were placed before, and {now} now", before.len());
        check(&broker, &db, outcomes)?;
        assert!(broker.shutdown(PATIENCE).is_clean());
        // Together: with one of them, the next run would not balance.
        Ok(db.execute_batch("BEGIN; DROP TABLE placed; DROP TABLE billed; COMMIT")?)
    }

    /// One transaction for the row and the event. Whatever ends it early, a crash included, ends both.
    fn place(
        store: &Store,
        db: &mut Connection,
        billing: &Queue<OrderPlaced>,
        order: u64,
        outcome: Outcome,
    ) -> Result<(), AnyError> {
        let placed = store.transaction(db, |tx| {
            tx.execute("INSERT INTO placed VALUES (?1)", [order.cast_signed()])?;
            billing.send_in(tx, OrderPlaced { order })?;
            if commits(outcome) { Ok(()) } else { Err(AnyError::from(Refused)) }
        });
        placed.or_else(|error| if error.is::<Refused>() { Ok(()) } else { Err(error) })
    }

    fn commits(outcome: Outcome) -> bool {
        matches!(outcome, Outcome::Commits | Outcome::CrashesAfter | Outcome::HangsThenCommits)
    }

    /// What was billed shortly before a kill may come again, and is in the table already.
    fn bill(store: &Store, billing: &Queue<OrderPlaced>) -> Result<(), AnyError> {
        let (store, db) = (store.clone(), std::sync::Mutex::new(store.connect()?));
        billing.consumer().start_batch(100, Duration::from_millis(50), move |events: &[Message<OrderPlaced>]| {
            store.transaction(&mut db.lock().unwrap(), |tx| -> Result<(), StoreError> {
                let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO billed VALUES (?1)")?;
                events.iter().try_for_each(|event| Ok(insert.execute([event.order.cast_signed()]).map(drop)?))
            })
        })?;
        Ok(())
    }

    fn check(broker: &Broker, db: &Connection, outcomes: &[(u64, Outcome)]) -> Result<(), AnyError> {
        assert!(broker.wait_idle(PATIENCE), "billing did not finish in time");
        let (placed, billed) = (numbers(db, "SELECT number FROM placed")?, numbers(db, "SELECT number FROM billed")?);
        let (lost, invented) = (placed.difference(&billed).count(), billed.difference(&placed).count());
        println!("   one file:     {} saved, {lost:>3} of them lost, {invented:>3} invented", placed.len());
        assert_eq!((lost, invented), (0, 0), "exactly the orders with a row are billed");
        let due: BTreeSet<u64> = outcomes.iter().filter(|(_, outcome)| commits(*outcome)).map(|(n, _)| *n).collect();
        assert_eq!(placed, due, "is it the same seed as before?");
        assert!(broker.stats().queues.iter().all(|queue| queue.unaccounted() == 0));
        Ok(())
    }

    fn numbers(db: &Connection, sql: &str) -> postroom::rusqlite::Result<BTreeSet<u64>> {
        db.prepare(sql)?.query_map([], |row| row.get(0).map(i64::cast_unsigned))?.collect()
    }
}

const ORDERS: u64 = 1_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (seed, file) = arguments();
    four_ways()?;
    let outcomes: Vec<(u64, Outcome)> = {
        let mut chance = Chance::new(seed);
        (1..=ORDERS).map(|order| (order, chance.outcome())).collect()
    };
    println!("\n2. {ORDERS} orders with random outcomes, seed {seed}.");
    naive("told first ", &outcomes, shop::place_told_first)?;
    naive("saved first", &outcomes, shop::place_saved_first)?;
    with_half_messages(&outcomes)?;
    all_or_nothing()?;
    #[cfg(feature = "sqlite")]
    file.map_or(Ok(()), |file| one_file::run(&file, &outcomes))?;
    #[cfg(not(feature = "sqlite"))]
    drop(file);
    Ok(())
}

fn arguments() -> (u64, Option<PathBuf>) {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut seed = 10;
    if let Some(at) = args.iter().position(|arg| arg == "--seed") {
        let number = args.get(at + 1).and_then(|arg| arg.to_str()?.parse().ok());
        seed = number.unwrap_or_else(|| durable::refuse("--seed needs a number; see --help"));
        args.drain(at..at + 2);
    }
    (seed, durable::path_among(include_str!("10_transactions.rs"), args.into_iter()))
}

/// One order each: committed, rolled back, and vanished before and after the commit.
fn four_ways() -> Result<(), Box<dyn std::error::Error>> {
    println!("1. Four orders.");
    let (broker, simulation) = Broker::simulated(10);
    let database = Arc::new(Database::default());
    let orders = shop::open(&broker, database.clone())?;
    let billing = bill(&broker, &orders)?;

    // By hand: prepare, save, commit.
    let half = orders.prepare(shop::KEY, OrderPlaced { order: 1 })?;
    simulation.run_until_idle();
    assert!(billing.0.lock().unwrap().is_empty(), "prepared is not published");
    database.save(1);
    half.commit()?;
    println!("   order 1: prepared, saved, committed");

    // Or let the library do it.
    let local = |_: &Message<OrderPlaced>| shop::save(&database, 2, Outcome::RollsBack);
    let published = orders.publish_transactional(shop::KEY, OrderPlaced { order: 2 }, local)?;
    let Published::RolledBack(Some(why)) = published else { return Err("order 2 was to be rolled back".into()) };
    println!("   order 2: rolled back, since {why}");

    let half = orders.prepare(shop::KEY, OrderPlaced { order: 3 })?;
    shop::crash(half);
    let half = orders.prepare(shop::KEY, OrderPlaced { order: 4 })?;
    database.save(4);
    shop::crash(half);
    println!("   orders 3 and 4: the producer vanished, before and after order 4 was saved");

    simulation.advance(Duration::from_secs(5));
    assert_eq!(*billing.0.lock().unwrap(), [1]);
    simulation.advance(Duration::from_secs(1));
    assert_eq!(*billing.0.lock().unwrap(), [1, 4]);
    println!("   6 s later the check-back has looked into the database: billed are orders 1 and 4");

    // A recovered producer may come back with nothing but the id, once.
    let id = orders.prepare(shop::KEY, Message::new(OrderPlaced { order: 5 }).with_id(5_000))?.id();
    database.save(5);
    orders.commit_half(id)?;
    println!("   order 5: committed by its id; a second time: {}", orders.commit_half(id).unwrap_err());
    Ok(())
}

/// Billing, and what it has billed.
#[derive(Clone, Default)]
struct Billed(Arc<Mutex<Vec<u64>>>);

fn bill(broker: &Broker, orders: &Topic<OrderPlaced>) -> Result<Billed, postroom::Error> {
    let billing = broker.queue(names::BILLING).declare()?;
    orders.bind(&billing, "order.*")?;
    let billed = Billed::default();
    let book = billed.clone();
    billing.consumer().start(move |event: &Message<OrderPlaced>| book.0.lock().unwrap().push(event.order))?;
    Ok(billed)
}

type Place = fn(&Topic<OrderPlaced>, &Database, u64, Outcome) -> Result<(), postroom::PublishError<OrderPlaced>>;

/// What billing and the database agree on, and what not.
fn naive(name: &str, outcomes: &[(u64, Outcome)], place: Place) -> Result<(), Box<dyn std::error::Error>> {
    let (broker, simulation) = Broker::simulated(10);
    let database = Database::default();
    let orders = broker.topic(names::ORDERS).declare()?;
    let billed = bill(&broker, &orders)?;
    for &(order, outcome) in outcomes {
        place(&orders, &database, order, outcome)?;
    }
    end_hanging(&database, outcomes);
    simulation.run_until_idle();
    let (lost, invented) = compare(&database, &billed);
    println!("   {name}: {:>4} saved, {lost:>3} of them lost, {invented:>3} invented", database.rows().len());
    assert!(lost + invented > 0, "the naive ways get some wrong");
    Ok(())
}

/// How many orders are saved but not billed, and billed but not saved.
fn compare(database: &Database, billed: &Billed) -> (usize, usize) {
    let (rows, billed) = (database.rows(), billed.0.lock().unwrap().clone());
    let unique: BTreeSet<u64> = billed.iter().copied().collect();
    assert_eq!(unique.len(), billed.len(), "none is billed twice");
    (rows.difference(&unique).count(), unique.difference(&rows).count())
}

/// Connections that hang come to an end at last.
fn end_hanging(database: &Database, outcomes: &[(u64, Outcome)]) {
    let hanging = database.roll_back_what_is_open();
    let commits = |order: &u64| outcomes.contains(&(*order, Outcome::HangsThenCommits));
    hanging.into_iter().filter(commits).for_each(|order| database.save(order));
}

fn with_half_messages(outcomes: &[(u64, Outcome)]) -> Result<(), Box<dyn std::error::Error>> {
    let (broker, simulation) = Broker::simulated(10);
    let database = Arc::new(Database::default());
    let orders = shop::open(&broker, database.clone())?;
    let billed = bill(&broker, &orders)?;
    for &(order, outcome) in outcomes {
        place_with_half(&orders, &database, order, outcome)?;
        simulation.advance(Duration::from_millis(20));
    }
    // The connections hang for a minute, and the check-backs do not know.
    simulation.advance(Duration::from_secs(60));
    end_hanging(&database, outcomes);
    simulation.advance(Duration::from_secs(600));

    let (lost, invented) = compare(&database, &billed);
    let halves = orders.stats().halves;
    println!("   half message: {:>2} saved, {lost:>3} of them lost, {invented:>3} invented", database.rows().len());
    println!(
        "      {} prepared, {} committed, {} rolled back, {} left to the check-back, which was asked {} times",
        halves.prepared, halves.committed, halves.rolled_back, halves.unknown, halves.checked
    );
    assert_eq!((lost, invented), (0, 0), "exactly the committed ones are billed");
    assert_eq!((halves.open, halves.unresolved), (0, 0));
    assert_eq!(halves.prepared, halves.committed + halves.rolled_back);
    unresolved(&broker, &simulation)?;
    Ok(())
}

fn place_with_half(
    orders: &Topic<OrderPlaced>,
    database: &Database,
    order: u64,
    outcome: Outcome,
) -> Result<(), Box<dyn std::error::Error>> {
    match outcome {
        Outcome::CrashesBefore | Outcome::CrashesAfter => {
            let half = orders.prepare(shop::KEY, OrderPlaced { order })?;
            shop::save(database, order, outcome)?;
            shop::crash(half);
        }
        _ => {
            let local = |_: &Message<OrderPlaced>| shop::save(database, order, outcome);
            orders.publish_transactional(shop::KEY, OrderPlaced { order }, local)?;
        }
    }
    Ok(())
}

/// What the check-back never finds out is kept, with everything that is known.
fn unresolved(broker: &Broker, simulation: &Simulation) -> Result<(), Box<dyn std::error::Error>> {
    let deaf = CheckBack::new(|_: &Message<OrderPlaced>| panic!("crashed: the database does not answer"));
    let imports: Topic<OrderPlaced> = broker.topic("imports").check_back(deaf).declare()?;
    print_crashes_in_one_line();
    shop::crash(imports.prepare("imported", OrderPlaced { order: 7 })?);
    simulation.advance(Duration::from_secs(6 + 15 * 30));
    let letters: Queue<postroom::DeadLetter<OrderPlaced>> = broker.queue("imports.half.dead").find()?;
    let letter = letters.peek().ok_or("it is a dead letter")?;
    let asked = imports.stats().halves.checked;
    println!("   order {} of the imports: {} after {asked} check-backs, kept", letter.order, letter.reason());
    Ok(())
}

/// Without a database: several publishes, all of them or none.
fn all_or_nothing() -> Result<(), Box<dyn std::error::Error>> {
    println!("\n3. Several publishes together: an event and a shipment, with room for two shipments.");
    let broker = Broker::new();
    let orders: Topic<OrderPlaced> = broker.topic(names::ORDERS).declare()?;
    let billing = broker.queue(names::BILLING).declare()?;
    let shipments = broker.queue(SHIPMENTS).capacity(2).declare()?;
    orders.bind(&billing, "order.*")?;
    for order in 1..=3 {
        let placed = broker.try_transaction(|tx| {
            tx.publish(&orders, shop::KEY, OrderPlaced { order })?;
            tx.send(&shipments, order)?;
            Ok(())
        });
        match placed {
            Ok(()) => println!("   order {order}: both are there"),
            Err(TransactionError::Refused(unpublished)) => {
                println!("   order {order}: neither is, since {unpublished}");
                // Nothing is lost: it can be committed again once there is room.
                shipments.recv()?.ack()?;
                unpublished.into_transaction().commit()?;
                println!("   order {order}: committed again after a shipment has left");
            }
            Err(error) => return Err(error.into()),
        }
        assert!(billing.len() as u64 == order && shipments.len() as u64 == order.min(2));
    }
    Ok(())
}

/// A check-back survives a panic, but the standard hook would fill the screen with it.
fn print_crashes_in_one_line() {
    let standard = std::panic::take_hook();
    let first = std::sync::Once::new();
    std::panic::set_hook(Box::new(move |panic| match panic.payload().downcast_ref::<&str>() {
        Some(words) if words.starts_with("crashed") => {
            first.call_once(|| eprintln!("   [check-back] panicked: {words}"));
        }
        _ => standard(panic),
    }));
}
