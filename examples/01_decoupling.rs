//! Decoupling: placing an order must inform stock, loyalty points, e-mail and analytics.
//!
//! **Situation.** With direct calls the order module knows every module that cares about an order. Its
//! customers wait for all of them, one broken module breaks every order, and each new module means another
//! change in the one place that must not break.
//!
//! **What the queue gives.** The order module publishes to a topic and is done. Each module that cares
//! declares a queue of its own and binds it to that topic: it works at its own pace, fails on its own, and
//! what it could not do is kept as dead letters until it is repaired.
//!
//! **What to expect on screen.** The time a customer waits, with direct calls and with the topic, while
//! e-mail is down for the whole run; a fifth module that joins half-way; what every module has done; the
//! e-mails that failed, and how they are sent after all once the mail server is back.
//!
//! With `--durable PATH` the queues are in that file, and each module notes what it has done beside it. Kill the
//! program whenever you like and start it again with the same path: it says what it has found, goes on with the first
//! order that was not placed, and no order is lost to any module. A few may come twice, which changes nothing.
//!
//! `cargo run --release --example 01_decoupling`
//! `cargo run --release --features sqlite --example 01_decoupling -- --durable orders.db`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;
#[path = "common/durable.rs"]
mod durable;

use durable::Ledger;
use postroom::Broker;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub struct OrderPlaced {
        pub id: u64,
        pub customer: String,
        pub total_cents: u64,
    }

    pub const ORDERS: TopicName<OrderPlaced> = TopicName::new("orders");
    pub const STOCK: QueueName<OrderPlaced> = QueueName::new("stock");
    pub const LOYALTY: QueueName<OrderPlaced> = QueueName::new("loyalty");
    pub const EMAIL: QueueName<OrderPlaced> = QueueName::new("email");
    pub const ANALYTICS: QueueName<OrderPlaced> = QueueName::new("analytics");
    pub const RECOMMENDATIONS: QueueName<OrderPlaced> = QueueName::new("recommendations");
}

/// Takes orders. Nothing in here changes when a module is added, removed or broken.
mod orders {
    use crate::names::{ORDERS, OrderPlaced};
    use postroom::{Broker, Error, PublishError, Topic};

    pub struct Orders {
        topic: Topic<OrderPlaced>,
    }

    impl Orders {
        pub fn new(broker: &Broker) -> Result<Self, Error> {
            Ok(Self { topic: broker.topic(ORDERS).declare()? })
        }

        /// Returns as soon as every queue that cares has the order; the work happens later.
        pub fn place(&self, order: OrderPlaced) -> Result<(), PublishError<OrderPlaced>> {
            self.topic.publish("order.placed", order)?;
            Ok(())
        }
    }
}

mod stock {
    use crate::durable::{self, Ledger};
    use crate::names::{ORDERS, OrderPlaced, STOCK};
    use postroom::{Broker, Error, Message};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct Stock {
        pub reserved: Mutex<Ledger>,
    }

    impl Stock {
        pub fn reserve(&self, order: &OrderPlaced) {
            std::thread::sleep(Duration::from_micros(300)); // its database
            self.reserved.lock().unwrap().insert(order.id);
        }
    }

    pub fn start(broker: &Broker, stock: Arc<Stock>) -> Result<(), Error> {
        let queue = durable::queue(broker, STOCK).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, "order.placed")?;
        queue.consumer().workers(4).start(move |order: &Message<OrderPlaced>| stock.reserve(order))?;
        Ok(())
    }
}

mod loyalty {
    use crate::durable::{self, Ledger};
    use crate::names::{LOYALTY, ORDERS, OrderPlaced};
    use postroom::{Broker, Error, Message};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct Loyalty {
        /// An order delivered twice still counts once.
        pub counted: Mutex<Ledger>,
        pub points: AtomicU64,
    }

    impl Loyalty {
        pub fn add_points(&self, order: &OrderPlaced) {
            std::thread::sleep(Duration::from_micros(200)); // its database
            if self.counted.lock().unwrap().insert(order.id) {
                self.points.fetch_add(order.total_cents / 100, Ordering::Relaxed);
            }
        }
    }

    pub fn start(broker: &Broker, loyalty: Arc<Loyalty>) -> Result<(), Error> {
        let queue = durable::queue(broker, LOYALTY).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, "order.placed")?;
        queue.consumer().workers(4).start(move |order: &Message<OrderPlaced>| loyalty.add_points(order))?;
        Ok(())
    }
}

mod email {
    use crate::durable::{self, Ledger};
    use crate::names::{EMAIL, ORDERS, OrderPlaced};
    use postroom::{Broker, Error, Message, Queue, Retry};
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct MailServer {
        pub up: AtomicBool,
        pub sent: Mutex<Ledger>,
    }

    impl MailServer {
        pub fn send(&self, order: &OrderPlaced) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(2)); // the network
            if !self.up.load(Ordering::Relaxed) {
                let words = format!("no answer from the mail server for {}", order.customer);
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            self.sent.lock().unwrap().insert(order.id);
            Ok(())
        }
    }

    /// The capacity is what protects the others: a queue that is full makes publishers wait, so it has to
    /// hold what comes in while the mail server is slow.
    pub fn start(broker: &Broker, server: Arc<MailServer>) -> Result<Queue<OrderPlaced>, Error> {
        let retry = Retry::fixed(Duration::from_millis(5)).max_attempts(3);
        let queue = durable::queue(broker, EMAIL).capacity(50_000).retry(retry).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, "order.placed")?;
        queue.consumer().workers(8).start(move |order: &Message<OrderPlaced>| server.send(order))?;
        Ok(queue)
    }
}

mod analytics {
    use crate::durable::{self, Ledger};
    use crate::names::{ANALYTICS, ORDERS, OrderPlaced};
    use postroom::{Broker, Error, Message};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[derive(Default)]
    pub struct Analytics {
        pub counted: Mutex<Ledger>,
        pub cents: AtomicU64,
    }

    impl Analytics {
        pub fn record(&self, order: &OrderPlaced) {
            std::thread::sleep(Duration::from_micros(500)); // its database
            if self.counted.lock().unwrap().insert(order.id) {
                self.cents.fetch_add(order.total_cents, Ordering::Relaxed);
            }
        }
    }

    pub fn start(broker: &Broker, analytics: Arc<Analytics>) -> Result<(), Error> {
        let queue = durable::queue(broker, ANALYTICS).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, "order.placed")?;
        queue.consumer().workers(4).start(move |order: &Message<OrderPlaced>| analytics.record(order))?;
        Ok(())
    }
}

/// The fifth module: written a year later, added without touching any of the others.
mod recommendations {
    use crate::durable::{self, Ledger};
    use crate::names::{ORDERS, OrderPlaced, RECOMMENDATIONS};
    use postroom::{Broker, Error, Message};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    pub struct Recommendations {
        pub learned: Mutex<Ledger>,
    }

    pub fn start(broker: &Broker, model: Arc<Recommendations>) -> Result<(), Error> {
        let queue = durable::queue(broker, RECOMMENDATIONS).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, "order.placed")?;
        queue.consumer().start(move |order: &Message<OrderPlaced>| {
            model.learned.lock().unwrap().insert(order.id);
        })?;
        Ok(())
    }
}

/// What the order module looks like without a queue: it knows everybody and waits for everybody.
mod direct {
    use crate::names::OrderPlaced;
    use crate::{analytics::Analytics, email::MailServer, loyalty::Loyalty, stock::Stock};
    use std::io;

    #[derive(Default)]
    pub struct Orders {
        pub stock: Stock,
        pub loyalty: Loyalty,
        pub mail: MailServer,
        pub analytics: Analytics,
    }

    impl Orders {
        pub fn place(&self, order: &OrderPlaced) -> io::Result<()> {
            self.stock.reserve(order);
            self.loyalty.add_points(order);
            self.mail.send(order)?; // what now? The stock is reserved, the points are given.
            self.analytics.record(order);
            Ok(())
        }
    }
}

const ORDERS_PLACED: u64 = 1_000;
const DIRECT_ORDERS: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = durable::path_argument(include_str!("01_decoupling.rs"));
    let broker = durable::broker(file.as_deref());
    let direct_median = place_with_direct_calls();
    let topic_median = place_with_a_topic(&broker, file.as_deref())?;

    if topic_median.is_zero() {
        return Ok(()); // an earlier run has placed them all
    }
    println!("\nThe same order, the same four modules: the customer waits {direct_median:.1?} for direct calls,");
    println!("{topic_median:.1?} for a publish.");
    assert!(topic_median < direct_median);
    Ok(())
}

/// The typical time to place an order when all is well; then what a broken mail server does to it.
fn place_with_direct_calls() -> Duration {
    println!("1. Direct calls: the order module calls stock, loyalty, e-mail and analytics in turn.");
    let orders = direct::Orders::default();
    orders.mail.up.store(true, Ordering::Relaxed);
    let mut waits = Vec::new();
    for id in 1..=DIRECT_ORDERS {
        let start = Instant::now();
        orders.place(&order(id)).expect("the mail server is up");
        waits.push(start.elapsed());
    }
    let median = quantile(&mut waits, 0.5);
    println!("   e-mail up:   {DIRECT_ORDERS} of {DIRECT_ORDERS} orders placed, {}", describe(&mut waits));

    orders.mail.up.store(false, Ordering::Relaxed);
    let more = DIRECT_ORDERS + 1..=2 * DIRECT_ORDERS;
    let placed = more.filter(|&id| orders.place(&order(id)).is_ok()).count();
    println!("   e-mail down: {placed} of {DIRECT_ORDERS} orders placed, yet stock is reserved for each of them");
    assert_eq!(orders.stock.reserved.lock().unwrap().numbers.len() as u64, 2 * DIRECT_ORDERS);
    assert_eq!(placed, 0);
    median
}

/// The typical time to place an order while e-mail is down.
fn place_with_a_topic(broker: &Broker, file: Option<&Path>) -> Result<Duration, Box<dyn std::error::Error>> {
    println!("\n2. A topic: the order module publishes, whoever cares has a queue. E-mail is down all the time.");
    let orders = orders::Orders::new(broker)?;
    let ledger = |name| Ledger::open(file, name).map(Mutex::new);
    let placed = ledger("placed")?;
    let stock = Arc::new(stock::Stock { reserved: ledger("stock")? });
    let loyalty = Arc::new(loyalty::Loyalty { counted: ledger("loyalty")?, ..Default::default() });
    let mail_server = Arc::new(email::MailServer { sent: ledger("email")?, ..Default::default() });
    let analytics = Arc::new(analytics::Analytics { counted: ledger("analytics")?, ..Default::default() });
    let recommendations = Arc::new(recommendations::Recommendations { learned: ledger("recommendations")? });
    stock::start(broker, stock.clone())?;
    loyalty::start(broker, loyalty.clone())?;
    let email = email::start(broker, mail_server.clone())?;
    analytics::start(broker, analytics.clone())?;
    durable::say_what_was_there(broker);
    let placed_before = placed.lock().unwrap().numbers.len();

    let mut waits = Vec::new();
    for id in 1..=ORDERS_PLACED {
        if id == ORDERS_PLACED / 2 + 1 {
            recommendations::start(broker, recommendations.clone())?;
            println!("   a fifth module, recommendations, joined before order {id}; nothing else changed");
        }
        if placed.lock().unwrap().numbers.contains(&id) {
            continue; // by an earlier run
        }
        let start = Instant::now();
        orders.place(order(id))?;
        waits.push(start.elapsed());
        placed.lock().unwrap().insert(id);
    }
    if placed_before == 0 {
        println!("   {ORDERS_PLACED} of {ORDERS_PLACED} orders placed, {}", describe(&mut waits));
    } else {
        println!("   {placed_before} orders were placed before, and {} now", waits.len());
    }

    assert!(broker.wait_idle(PATIENCE), "the modules did not finish in time");
    print_modules(broker);
    assert_eq!(stock.reserved.lock().unwrap().numbers.len() as u64, ORDERS_PLACED);
    assert_eq!(loyalty.counted.lock().unwrap().numbers.len() as u64, ORDERS_PLACED);
    assert_eq!(analytics.counted.lock().unwrap().numbers.len() as u64, ORDERS_PLACED);
    let learned: Vec<u64> = recommendations.learned.lock().unwrap().numbers.iter().copied().collect();
    assert!(learned.into_iter().eq(ORDERS_PLACED / 2 + 1..=ORDERS_PLACED), "the late module saw another half");
    assert_eq!(broker.stats().queue("stock").map(|queue| queue.retried), Some(0));

    let letters = email.dead_letters();
    let mut mails: BTreeSet<u64> = letters.list(usize::MAX).iter().map(|letter| letter.id).collect();
    mails.extend(&mail_server.sent.lock().unwrap().numbers); // by an earlier run; this one could not
    assert!(mails.into_iter().eq(1..=ORDERS_PLACED), "an e-mail was lost");
    if let Some(letter) = letters.peek() {
        println!("\n3. E-mail gave up on {} messages but lost none. The first dead letter says:", letters.len());
        println!("   order {}, {}, after {} attempts", letter.id, letter.reason(), letter.attempts().len());
        println!("   last error: {}", letter.error().unwrap_or("none"));
    } // a letter that somebody looks at is not redriven

    mail_server.up.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let redriven = letters.redrive().run()?;
    assert!(broker.wait_idle(PATIENCE), "the e-mails were not sent in time");
    let sent = mail_server.sent.lock().unwrap().numbers.len();
    println!("   mail server repaired: {} redriven, {sent} sent in {:.1?}", redriven.moved, start.elapsed());
    assert_eq!(sent as u64, ORDERS_PLACED);
    assert!(letters.is_empty());

    assert!(broker.stats().queues.iter().all(|queue| queue.unaccounted() == 0));
    let report = broker.shutdown(PATIENCE);
    println!("   shut down: {report}");
    assert!(report.is_clean(), "{report}");
    // "Placed" goes first: without it, all orders are placed anew.
    placed.lock().unwrap().forget()?;
    for done in [&stock.reserved, &loyalty.counted, &mail_server.sent, &analytics.counted, &recommendations.learned] {
        done.lock().unwrap().forget()?;
    }
    Ok(quantile(&mut waits, 0.5))
}

fn order(id: u64) -> names::OrderPlaced {
    names::OrderPlaced { id, customer: format!("customer-{}", id % 97), total_cents: 100 * (id % 50 + 1) }
}

fn print_modules(broker: &Broker) {
    println!("   {:<16} {:>8} {:>8} {:>8} {:>13}", "queue", "received", "done", "retried", "dead letters");
    for queue in broker.stats().queues.iter().filter(|queue| !queue.name.ends_with(".dead")) {
        let (name, published, acked, retried) = (&queue.name, queue.published, queue.acked, queue.retried);
        println!("   {name:<16} {published:>8} {acked:>8} {retried:>8} {:>13}", queue.dead_lettered);
    }
}

fn describe(waits: &mut [Duration]) -> String {
    let (median, most) = (quantile(waits, 0.5), quantile(waits, 0.99));
    format!("each in {median:.1?} typically, in {most:.1?} for 99 of 100")
}

fn quantile(waits: &mut [Duration], share: f64) -> Duration {
    waits.sort_unstable();
    if waits.is_empty() {
        return Duration::ZERO;
    }
    waits[((waits.len() - 1) as f64 * share) as usize]
}
