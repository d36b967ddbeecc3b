//! Traffic shaping: a flash sale, 200,000 requests for 1,000 items, and a database that takes 500 orders a
//! second.
//!
//! **Situation.** At noon everybody clicks at once, and whoever gets no answer clicks again. Whatever reaches
//! the database reaches it too fast; it falls over, and then nobody buys anything. Selling one item twice is
//! as bad.
//!
//! **What the queue gives.** An admission limit at the gate refuses at once what is too much and says when to
//! come again; refusing costs microseconds. What passes has its item set aside already, with one atomic
//! subtraction, and waits in a queue that is bounded, so that nobody who was told "yours" waits for long. The
//! queue's rate limit hands orders to the database no faster than it can take them.
//!
//! **What to expect on screen.** What the 200,000 requests were answered; that the items were sold to as many
//! buyers, each one once and none lost; how many orders the database saw in the fullest 100 ms of the sale.
//! Then Black Friday in virtual time: 10,000 orders a minute over 50 workers, all of them placed in the first
//! ten seconds.
//!
//! `cargo run --release --example 03_traffic_shaping`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use database::Database;
use gate::{Answer, Gate};
use names::Order;
use postroom::{Broker, Message, Queue, Rate};
use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};

    pub struct Order {
        pub buyer: u64,
    }

    pub const SALE: TopicName<Order> = TopicName::new("sale");
    pub const ORDERED: &str = "order.placed";
    pub const FULFILMENT: QueueName<Order> = QueueName::new("fulfilment");
}

/// What there is to sell. An item is set aside before anything else happens, and comes back by itself if the
/// order comes to nothing.
mod stock {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub struct Stock {
        items: u32,
        left: AtomicU32,
        sold: AtomicU32,
        /// Who has bought, or is about to.
        buyers: Mutex<HashSet<u64>>,
    }

    pub enum None {
        /// All are set aside for others; some of those may yet come back.
        Now,
        Ever,
        /// This buyer has one.
        More,
    }

    impl Stock {
        pub fn new(items: u32) -> Self {
            Self { items, left: AtomicU32::new(items), sold: AtomicU32::new(0), buyers: Mutex::default() }
        }

        /// Sets one item aside. Two can never get the last one: the subtraction is one step.
        pub fn set_aside(&self, buyer: u64) -> Result<SetAside<'_>, None> {
            if self.sold() == self.items {
                return Err(None::Ever);
            }
            if !self.buyers.lock().unwrap().insert(buyer) {
                return Err(None::More);
            }
            match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(_) => Ok(SetAside { stock: self, buyer, sold: false }),
                Err(_) => {
                    self.buyers.lock().unwrap().remove(&buyer);
                    Err(None::Now)
                }
            }
        }

        pub fn sold(&self) -> u32 {
            self.sold.load(Ordering::SeqCst)
        }

        pub fn left(&self) -> u32 {
            self.left.load(Ordering::SeqCst)
        }
    }

    pub struct SetAside<'a> {
        stock: &'a Stock,
        buyer: u64,
        sold: bool,
    }

    impl SetAside<'_> {
        pub fn sell(mut self) {
            self.sold = true;
            self.stock.sold.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Drop for SetAside<'_> {
        fn drop(&mut self) {
            if !self.sold {
                self.stock.buyers.lock().unwrap().remove(&self.buyer);
                self.stock.left.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Where the requests arrive. It never waits: everybody gets an answer at once, and a true one.
mod gate {
    use crate::names::{FULFILMENT, ORDERED, Order, SALE};
    use crate::stock::{None, Stock};
    use postroom::{Broker, Error, PublishError, Queue, Rate, Topic};
    use std::time::Duration;

    pub const PER_SECOND: u32 = 1_000;

    pub struct Gate {
        stock: Stock,
        topic: Topic<Order>,
        fulfilment: Queue<Order>,
    }

    #[derive(Debug, PartialEq, Eq)]
    pub enum Answer {
        /// The item is theirs, and the order will be carried out.
        Yours,
        /// Too many at once, with the time after which it makes sense to come again.
        TooFast {
            again_in: Duration,
        },
        /// More orders wait than can be carried out soon, with the time that working them off takes.
        Backlog {
            again_in: Option<Duration>,
        },
        /// All items are set aside, but some may come back.
        AllSetAside,
        SoldOut,
        OneEach,
    }

    impl Gate {
        pub fn open(broker: &Broker, items: u32) -> Result<Self, Error> {
            let topic = broker.topic(SALE).find()?;
            Ok(Self { stock: Stock::new(items), topic, fulfilment: broker.queue(FULFILMENT).find()? })
        }

        pub fn request(&self, buyer: u64) -> Answer {
            let item = match self.stock.set_aside(buyer) {
                Ok(item) => item,
                Err(None::Now) => return Answer::AllSetAside,
                Err(None::Ever) => return Answer::SoldOut,
                Err(None::More) => return Answer::OneEach,
            };
            // Whoever is refused below gives the item back: dropping `item` does it.
            match self.topic.try_publish(ORDERED, Order { buyer }) {
                Ok(_) => {
                    item.sell();
                    Answer::Yours
                }
                Err(PublishError::Limited(order)) => {
                    Answer::TooFast { again_in: order.retry_in().expect("the limit knows") }
                }
                Err(PublishError::Full(_)) => Answer::Backlog { again_in: self.fulfilment.estimated_wait() },
                Err(other) => panic!("the sale cannot go on: {other}"),
            }
        }

        pub fn stock(&self) -> &Stock {
            &self.stock
        }
    }

    /// The topic with its limit; whoever wires the sale declares it, the gate finds it by name.
    pub fn declare(broker: &Broker) -> Result<Topic<Order>, Error> {
        broker.topic(SALE).admission(Rate::per_second(PER_SECOND).burst(100)).declare()
    }
}

/// Carries orders out, as fast as its database takes them and no faster.
mod database {
    use crate::names::{FULFILMENT, ORDERED, Order, SALE};
    use postroom::{Broker, Error, Message, Overflow, Rate};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant, SystemTime};

    pub const PER_SECOND: u32 = 500;
    pub const WORKERS: usize = 2;
    /// Half a second's worth at full pace: that is how long somebody who was told "yours" may have to wait.
    pub const CAPACITY: usize = 250;

    #[derive(Default)]
    pub struct Database {
        /// By buyer, so that an order delivered twice would be one row.
        rows: Mutex<BTreeMap<u64, Row>>,
    }

    #[derive(Clone, Copy)]
    pub struct Row {
        pub written: Instant,
        pub waited: Duration,
    }

    impl Database {
        fn write(&self, order: &Message<Order>) {
            let written = Instant::now();
            let waited = SystemTime::now().duration_since(order.published_at()).unwrap_or_default();
            self.rows.lock().unwrap().entry(order.buyer).or_insert(Row { written, waited });
            std::thread::sleep(Duration::from_micros(500)); // the disk
        }

        pub fn rows(&self) -> BTreeMap<u64, Row> {
            self.rows.lock().unwrap().clone()
        }
    }

    pub fn start(broker: &Broker, database: Arc<Database>) -> Result<(), Error> {
        let queue = broker
            .queue(FULFILMENT)
            .capacity(CAPACITY)
            .overflow(Overflow::Reject)
            .rate_limit(Rate::per_second(PER_SECOND))
            .declare()?;
        broker.topic(SALE).find()?.bind(&queue, ORDERED)?;
        queue.consumer().workers(WORKERS).start(move |order: &Message<Order>| database.write(order))?;
        Ok(())
    }
}

const ITEMS: u32 = 1_000;
const REQUESTS: u64 = 200_000;
/// Each of them asks four times, whatever the answer was.
const BUYERS: u64 = 50_000;
const THREADS: u64 = 32;
const WINDOW: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("03_traffic_shaping.rs"));
    flash_sale()?;
    black_friday()
}

fn flash_sale() -> Result<(), Box<dyn std::error::Error>> {
    println!("1. A flash sale: {REQUESTS} requests of {BUYERS} buyers, {THREADS} threads, {ITEMS} items.");
    let broker = Broker::new();
    gate::declare(&broker)?;
    let database = Arc::new(Database::default());
    database::start(&broker, database.clone())?;
    let gate = Gate::open(&broker, ITEMS)?;

    let start = Instant::now();
    let answers = everybody_asks(&gate);
    println!("   all answered in {:.1?}:", start.elapsed());
    answers.print();
    assert_eq!(answers.total(), REQUESTS, "everybody got an answer");
    assert!(answers.busy > 0 && answers.sold_out > 0, "the gate was never tested");
    // The limit lets one pass every so often; nobody is told to wait for longer than until the next one.
    assert!(answers.longest_again > Duration::ZERO);
    assert!(answers.longest_again <= Duration::from_secs(1) / gate::PER_SECOND);

    assert!(broker.wait_idle(PATIENCE), "the orders were not carried out in time");
    let rows = database.rows();
    let longest = rows.values().map(|row| row.waited).max().unwrap_or_default();
    println!("\n2. The database has {} orders; the one that waited longest did so for {longest:.0?}.", rows.len());
    assert_eq!((gate.stock().sold(), gate.stock().left()), (ITEMS, 0));
    assert_eq!(answers.winners.len() as u64, answers.yours, "a buyer was told twice that an item is theirs");
    assert_eq!(rows.len(), ITEMS as usize, "sold exactly what there was");
    assert!(rows.keys().eq(&answers.winners), "every order is carried out, and no other");

    let mut written: Vec<Instant> = rows.values().map(|row| row.written).collect();
    written.sort_unstable();
    let fullest = fullest_window(&written, |later, earlier| later.duration_since(earlier));
    let took = written[written.len() - 1] - written[0];
    let allowed = database::PER_SECOND as usize / 10;
    let average = (rows.len() - 1) as f64 / took.as_secs_f64();
    println!("   {average:.0} orders a second on average; {fullest} in the fullest 100 ms, of {allowed} allowed");
    // The limit rules when an order is handed out. Each worker may have been held up on its way from there to
    // the clock by the system, and so write one order into a later window.
    assert!(fullest <= allowed + database::WORKERS, "{fullest} orders in 100 ms");

    let stats = broker.stats();
    let queue = stats.queue(names::FULFILMENT.as_str()).expect("declared above");
    assert_eq!((queue.published, queue.acked, queue.retried), (u64::from(ITEMS), u64::from(ITEMS), 0));
    assert_eq!((queue.dropped, queue.dead_lettered, queue.unaccounted()), (0, 0, 0));
    let report = broker.shutdown(PATIENCE);
    println!("   shut down: {report}");
    assert!(report.is_clean());
    Ok(())
}

#[derive(Default)]
struct Answers {
    yours: u64,
    busy: u64,
    backlog: u64,
    all_set_aside: u64,
    sold_out: u64,
    one_each: u64,
    winners: BTreeSet<u64>,
    longest_again: Duration,
    times: Vec<Duration>,
}

impl Answers {
    fn note(&mut self, buyer: u64, answer: &Answer, took: Duration) {
        match answer {
            Answer::Yours => {
                self.yours += 1;
                self.winners.insert(buyer);
            }
            Answer::TooFast { again_in } => {
                self.busy += 1;
                self.longest_again = self.longest_again.max(*again_in);
            }
            Answer::Backlog { .. } => self.backlog += 1,
            Answer::AllSetAside => self.all_set_aside += 1,
            Answer::SoldOut => self.sold_out += 1,
            Answer::OneEach => self.one_each += 1,
        }
        self.times.push(took);
    }

    fn total(&self) -> u64 {
        self.yours + self.busy + self.backlog + self.all_set_aside + self.sold_out + self.one_each
    }

    fn print(&self) {
        let longest = self.longest_again;
        println!("   {:>8} x yours", self.yours);
        println!("   {:>8} x busy, come again in {longest:.0?} or less (over the limit)", self.busy);
        println!("   {:>8} x busy, come again when some are worked off (the queue is full)", self.backlog);
        println!("   {:>8} x busy, all are set aside for others", self.all_set_aside);
        println!("   {:>8} x one each, please", self.one_each);
        println!("   {:>8} x sold out", self.sold_out);
        let mut times = self.times.clone();
        times.sort_unstable();
        let (typical, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("   an answer took {typical:.1?} typically, {most:.1?} or less for 99 of 100");
    }
}

impl AddAssign for Answers {
    fn add_assign(&mut self, other: Self) {
        self.yours += other.yours;
        self.busy += other.busy;
        self.backlog += other.backlog;
        self.all_set_aside += other.all_set_aside;
        self.sold_out += other.sold_out;
        self.one_each += other.one_each;
        self.winners.extend(other.winners);
        self.longest_again = self.longest_again.max(other.longest_again);
        self.times.extend(other.times);
    }
}

/// Every thread makes its share of the requests, in bursts. With the pauses between those, the rush lasts for
/// more than three seconds: longer than it takes to sell everything at the database's pace. On a machine that
/// is too busy for that, the last fifth come one by one until everything is sold.
fn everybody_asks(gate: &Gate) -> Answers {
    let ask = |thread: u64| {
        let mut answers = Answers::default();
        for n in (thread..REQUESTS).step_by(THREADS as usize) {
            let (start, buyer) = (Instant::now(), n % BUYERS);
            let answer = gate.request(buyer);
            answers.note(buyer, &answer, start.elapsed());
            let last_fifth = n > REQUESTS / 5 * 4;
            if (n / THREADS).is_multiple_of(50) || last_fifth && gate.stock().sold() < ITEMS {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        answers
    };
    let mut all = Answers::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || ask(thread))).collect();
        threads.into_iter().for_each(|thread| all += thread.join().expect("no thread panics"));
    });
    all
}

/// The most times that lie within one window, wherever that begins. `times` must be in order.
fn fullest_window<T: Copy>(times: &[T], between: impl Fn(T, T) -> Duration) -> usize {
    let mut first = 0;
    let sizes = times.iter().enumerate().map(|(n, &time)| {
        while between(time, times[first]) >= WINDOW {
            first += 1;
        }
        n + 1 - first
    });
    sizes.max().unwrap_or(0)
}

const A_MINUTE: u32 = 10_000;
const WORKERS: usize = 50;
const MINUTE: Duration = Duration::from_secs(60);

/// In virtual time the limit is exact, and a minute takes a moment. Each worker is a consumer of its own, as
/// if it ran in a place of its own, so that its share of the work can be counted.
fn black_friday() -> Result<(), Box<dyn std::error::Error>> {
    println!("\n3. Black Friday, in virtual time: {A_MINUTE} orders a minute over {WORKERS} workers.");
    let real = Instant::now();
    let (broker, simulation) = Broker::simulated(11);
    let orders: Queue<Order> =
        broker.queue("black-friday").rate_limit(Rate::per_minute(A_MINUTE)).capacity(A_MINUTE as usize).declare()?;
    let handled: Arc<Mutex<Vec<(u64, SystemTime)>>> = Arc::default();
    let shares: Vec<Arc<AtomicU64>> = (0..WORKERS).map(|_| Arc::default()).collect();
    for share in &shares {
        let (share, handled, clock) = (share.clone(), handled.clone(), simulation.clone());
        orders.consumer().start(move |order: &Message<Order>| {
            share.fetch_add(1, Ordering::Relaxed);
            handled.lock().unwrap().push((order.buyer, clock.now()));
        })?;
    }

    let start = simulation.now();
    let mut most_waiting = 0;
    for buyer in 0..u64::from(A_MINUTE) {
        orders.send(Order { buyer })?;
        if buyer % 100 == 99 {
            simulation.advance(Duration::from_millis(100));
            most_waiting = most_waiting.max(orders.len());
        }
    }
    let rush = simulation.now().duration_since(start)?;
    println!("   all placed within {rush:.0?}; at most {most_waiting} waited");
    assert!(broker.wait_idle(2 * MINUTE), "the orders were not carried out in time");

    let handled = handled.lock().unwrap();
    let (times, took) = (times(&handled), handled[handled.len() - 1].1.duration_since(handled[0].1)?);
    let fullest = fullest_window(&times, |later, earlier| later.duration_since(earlier).unwrap_or_default());
    let shares: Vec<u64> = shares.iter().map(|share| share.load(Ordering::Relaxed)).collect();
    let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
    println!("   all carried out within {took:.1?}; {fullest} in the fullest 100 ms, of 16.7 allowed");
    println!("   a worker carried out {} to {} of them", least.unwrap_or(0), most.unwrap_or(0));
    println!("   {:.0} ms for each order would keep all of them busy", 60_000.0 * WORKERS as f64 / f64::from(A_MINUTE));
    println!("   the minute took {:.0?}", real.elapsed());

    let buyers: BTreeSet<u64> = handled.iter().map(|(buyer, _)| *buyer).collect();
    assert!(buyers.into_iter().eq(0..u64::from(A_MINUTE)), "none is lost");
    assert_eq!(handled.len(), A_MINUTE as usize, "none is carried out twice");
    assert!(took <= MINUTE && took >= MINUTE - Duration::from_millis(10), "{took:?}");
    assert!(fullest <= 17, "{fullest} orders in 100 ms");
    assert!(least >= Some(100) && most <= Some(300), "the work is spread unevenly: {shares:?}");
    Ok(())
}

/// When each order was carried out, in order.
fn times(handled: &[(u64, SystemTime)]) -> Vec<SystemTime> {
    handled.iter().map(|(_, at)| *at).collect()
}
