//! Delayed messages: orders that are not paid within 30 minutes are cancelled.
//!
//! **Situation.** An order holds its items back from everybody else, so it must not stay unpaid for ever. The
//! usual answer is a job that asks the database every so often which orders are overdue: mostly for nothing,
//! always late, and the more often it asks the more it costs.
//!
//! **What the queue gives.** Placing an order publishes a second message that is delivered 30 minutes later,
//! with a timer named after the order. Payment cancels that timer; if it fires, the order is cancelled. Nobody
//! asks anything meanwhile, and cancelling and firing exclude each other.
//!
//! **What to expect on screen.** An evening of 1,000 orders in virtual time: which were paid, which were
//! cancelled and when, who paid too late. The three ways to say when. The same evening with a polling job:
//! how late it is and how many rows it reads, beside the timers. Last, on the real clock, how late a delayed
//! message is: never early, and late by what the system takes to wake a thread.
//!
//! With `--durable PATH` the delays of the last part are in that file. Kill the program while they run and start it
//! again with the same path: it finds those that had not fired, those that became due meanwhile fire at once, and
//! none is lost or early. One that had fired just before the kill may fire again.
//!
//! `cargo run --release --example 08_delayed`
//! `cargo run --release --features sqlite --example 08_delayed -- --durable timers.db`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;
#[path = "common/durable.rs"]
mod durable;

use durable::Ledger;
use orders::{Fate, Orders};
use postroom::{Broker, DelayLevel, Message, Queue, QueueName, QueueStats};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};

    #[derive(Clone)]
    pub struct Order {
        pub id: u64,
    }

    pub const ORDERS: TopicName<Order> = TopicName::new("orders");
    /// Published when an order is placed, delivered when its time to pay is over.
    pub const OVERDUE: &str = "order.overdue";
    pub const CANCELLATION: QueueName<Order> = QueueName::new("cancellation");

    pub fn timer(order: u64) -> String {
        format!("unpaid-{order}")
    }
}

/// The table of orders: what became of each, and when. Its rows know nothing of queues.
mod orders {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::time::SystemTime;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fate {
        Open,
        Paid,
        Cancelled { at: SystemTime },
    }

    #[derive(Clone, Copy)]
    pub struct Row {
        pub placed: SystemTime,
        pub fate: Fate,
    }

    #[derive(Default)]
    pub struct Orders {
        rows: Mutex<BTreeMap<u64, Row>>,
    }

    impl Orders {
        pub fn insert(&self, id: u64, placed: SystemTime) {
            self.rows.lock().unwrap().insert(id, Row { placed, fate: Fate::Open });
        }

        /// Moves an order out of `Open`, once; whether it was still open.
        pub fn close(&self, id: u64, fate: Fate) -> bool {
            let mut rows = self.rows.lock().unwrap();
            let row = rows.get_mut(&id).filter(|row| row.fate == Fate::Open);
            row.map(|row| row.fate = fate).is_some()
        }

        pub fn rows(&self) -> Vec<(u64, Row)> {
            self.rows.lock().unwrap().iter().map(|(id, row)| (*id, *row)).collect()
        }
    }
}

/// Takes orders in.
mod intake {
    use crate::names::{ORDERS, OVERDUE, Order, timer};
    use crate::orders::Orders;
    use postroom::{Broker, DelayLevel, Error, Message, PublishError, Topic};
    use std::sync::Arc;
    use std::time::SystemTime;

    pub struct Intake {
        topic: Topic<Order>,
        orders: Arc<Orders>,
    }

    impl Intake {
        pub fn new(broker: &Broker, orders: Arc<Orders>) -> Result<Self, Error> {
            Ok(Self { topic: broker.topic(ORDERS).declare()?, orders })
        }

        pub fn place(&self, id: u64, now: SystemTime) -> Result<(), PublishError<Order>> {
            self.orders.insert(id, now);
            let overdue = Message::new(Order { id }).with_delay(DelayLevel::M30).with_timer(timer(id));
            self.topic.publish(OVERDUE, overdue)?;
            Ok(())
        }
    }
}

/// Takes money.
mod payment {
    use crate::names::timer;
    use crate::orders::{Fate, Orders};
    use postroom::Broker;
    use std::sync::Arc;

    pub struct Payment {
        pub broker: Broker,
        pub orders: Arc<Orders>,
    }

    impl Payment {
        /// Whether it came in time. If the timer could be cancelled, it never fires; if not, it has fired.
        pub fn pay(&self, order: u64) -> bool {
            self.broker.cancel_timer(&timer(order)) && self.orders.close(order, Fate::Paid)
        }
    }
}

/// Cancels what was not paid.
mod cancellation {
    use crate::names::{CANCELLATION, ORDERS, OVERDUE, Order};
    use crate::orders::{Fate, Orders};
    use postroom::{Broker, Error, Message, Queue};
    use std::sync::Arc;
    use std::time::SystemTime;

    /// Delayed messages occupy capacity: it has to hold all orders that are open at the same time.
    pub fn start(
        broker: &Broker,
        orders: Arc<Orders>,
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Result<Queue<Order>, Error> {
        let queue = broker.queue(CANCELLATION).capacity(5_000).declare()?;
        broker.topic(ORDERS).declare()?.bind(&queue, OVERDUE)?;
        queue.consumer().start(move |order: &Message<Order>| {
            // Only an open order is cancelled: a second delivery of this message changes nothing.
            orders.close(order.id, Fate::Cancelled { at: now() });
        })?;
        Ok(queue)
    }
}

/// The other way: a job that looks for overdue orders every so often.
mod polling {
    use crate::orders::{Fate, Orders};
    use postroom::{Broker, Error, Message, Queue, Schedule};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, SystemTime};

    #[derive(Default)]
    pub struct Work {
        pub queries: AtomicU64,
        pub rows: AtomicU64,
    }

    pub fn start(
        broker: &Broker,
        every: Duration,
        orders: Arc<Orders>,
        work: Arc<Work>,
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Result<Schedule, Error> {
        let jobs: Queue<()> = broker.queue("poll").declare()?;
        jobs.consumer().start(move |_: &Message<()>| {
            work.queries.fetch_add(1, Ordering::Relaxed);
            // Even with an index on the state, every open order is looked at.
            for (id, row) in orders.rows().into_iter().filter(|(_, row)| row.fate == Fate::Open) {
                work.rows.fetch_add(1, Ordering::Relaxed);
                if now() >= row.placed + crate::TO_PAY {
                    orders.close(id, Fate::Cancelled { at: now() });
                }
            }
        })?;
        broker.schedule("poll").every(every).send(&jobs, || ())
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const TO_PAY: Duration = Duration::from_secs(30 * 60);
const ORDERS: u64 = 1_000;
/// One order every 3.6 s: an hour of orders. They do not come on the full second, as those of people do not.
const BETWEEN: Duration = Duration::from_millis(3_607);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = durable::path_argument(include_str!("08_delayed.rs"));
    let broker = durable::broker(file.as_deref());
    let late = an_evening_with_timers()?;
    three_ways_to_say_when()?;
    the_same_evening_with_polling(late)?;
    on_the_real_clock(&broker, file.as_deref())
}

/// How long after its placing an order is paid, if ever: one in four never, one in ten too late.
fn pays_after(id: u64) -> Option<Duration> {
    match id % 20 {
        0..5 => None,
        5..7 => Some(Duration::from_secs(31 * 60 + id % 600)),
        _ => Some(Duration::from_secs(30 + id * 37 % 1_700)),
    }
}

/// What there is to compare: how late orders were cancelled, and what that took.
struct Lateness {
    cancelled: usize,
    mean: Duration,
    most: Duration,
}

fn an_evening_with_timers() -> Result<(Lateness, QueueStats), Box<dyn std::error::Error>> {
    println!("1. {ORDERS} orders within an hour, each to be paid within {} minutes.", TO_PAY.as_secs() / 60);
    let real = Instant::now();
    let (broker, simulation) = Broker::simulated(8);
    let orders = Arc::new(Orders::default());
    let intake = intake::Intake::new(&broker, orders.clone())?;
    let clock = simulation.clone();
    let queue = cancellation::start(&broker, orders.clone(), move || clock.now())?;
    let payment = payment::Payment { broker: broker.clone(), orders: orders.clone() };

    let mut most_waiting = 0;
    let mut in_time = 0;
    let mut too_late = Vec::new();
    for step in evening() {
        simulation.advance(step.after);
        match step.what {
            What::Place(id) => intake.place(id, simulation.now())?,
            What::Pay(id) if payment.pay(id) => in_time += 1,
            What::Pay(id) => too_late.push(id),
        }
        most_waiting = most_waiting.max(queue.delayed());
    }
    simulation.advance(TO_PAY);

    let stats = queue.stats();
    let lateness = lateness(&orders);
    println!("   {in_time} paid in time, each cancelled its timer; at most {most_waiting} timers ran at once");
    println!("   {} cancelled, {} of them paid too late and got their money back", lateness.cancelled, too_late.len());
    println!("   the first: order {}, {:?} after it was placed", 1, age_when_cancelled(&orders, 1));
    println!("   the hour and a half took {:.0?}", real.elapsed());

    for (id, row) in orders.rows() {
        let paid = pays_after(id).is_some_and(|after| after < TO_PAY);
        assert_eq!(row.fate == Fate::Paid, paid, "order {id}: {:?}", row.fate);
        assert_eq!(too_late.contains(&id), pays_after(id).is_some() && !paid);
        assert!(paid || age_when_cancelled(&orders, id) == TO_PAY, "order {id}: {:?}", row.fate);
    }
    assert_eq!((stats.published, stats.delivered), (ORDERS, lateness.cancelled as u64));
    assert_eq!((stats.cancelled, stats.delayed, stats.unaccounted()), (in_time, 0, 0));
    Ok((lateness, stats))
}

enum What {
    Place(u64),
    Pay(u64),
}

struct Step {
    after: Duration,
    what: What,
}

/// All that customers do, in order, each with the time since the one before.
fn evening() -> Vec<Step> {
    let mut plan: Vec<(Duration, What)> = Vec::new();
    for id in 1..=ORDERS {
        let placed = BETWEEN * id as u32;
        plan.push((placed, What::Place(id)));
        plan.extend(pays_after(id).map(|after| (placed + after, What::Pay(id))));
    }
    plan.sort_by_key(|(at, _)| *at);
    let mut now = Duration::ZERO;
    let steps = plan.into_iter().map(|(at, what)| {
        let after = at - now;
        now = at;
        Step { after, what }
    });
    steps.collect()
}

fn age_when_cancelled(orders: &Orders, id: u64) -> Duration {
    let row = orders.rows().into_iter().find(|(other, _)| *other == id).expect("every order has a row").1;
    match row.fate {
        Fate::Cancelled { at } => at.duration_since(row.placed).unwrap_or_default(),
        fate => panic!("order {id} was not cancelled: {fate:?}"),
    }
}

fn lateness(orders: &Orders) -> Lateness {
    let late: Vec<Duration> = orders
        .rows()
        .into_iter()
        .filter_map(|(id, row)| match row.fate {
            Fate::Cancelled { at } => {
                let due = row.placed + TO_PAY;
                Some(at.duration_since(due).unwrap_or_else(|early| panic!("order {id} is early by {early:?}")))
            }
            _ => None,
        })
        .collect();
    let most = late.iter().max().copied().unwrap_or_default();
    Lateness { cancelled: late.len(), mean: late.iter().sum::<Duration>() / late.len().max(1) as u32, most }
}

fn three_ways_to_say_when() -> Result<(), Box<dyn std::error::Error>> {
    println!("\n2. Three ways to say \"in half an hour\", and one to say \"at once\".");
    let (broker, simulation) = Broker::simulated(8);
    let reminders: Queue<&str> = broker.queue("reminders").declare()?;
    let start = simulation.now();
    reminders.send(Message::new("any duration").with_delay(Duration::from_secs(1_800)))?;
    reminders.send(Message::new("a level: M30, number 16 of 18").with_delay(DelayLevel::M30))?;
    reminders.send(Message::new("a time of the wall clock").with_delivery_at(start + Duration::from_secs(1_800)))?;
    reminders.send(Message::new("a time that is past: now").with_delivery_at(start - Duration::from_secs(60)))?;
    assert_eq!(DelayLevel::level(16), Some(DelayLevel::M30));

    let now = reminders.recv()?;
    println!("   in    0s: {}", **now);
    now.ack()?;
    for (due, reminder) in reminders.list_delayed(10) {
        println!("   in {:>4?}: {}", due.duration_since(start)?, *reminder);
        assert_eq!(due, start + TO_PAY);
    }

    simulation.advance(TO_PAY - Duration::from_nanos(1));
    assert!(reminders.is_empty(), "never early, not by a nanosecond");
    simulation.advance(Duration::from_nanos(1));
    assert_eq!(reminders.len(), 3);
    let order: Vec<&str> = reminders.list(3).iter().map(|reminder| **reminder).collect();
    assert!(order[0].starts_with("any") && order[2].starts_with("a time of"), "equal times keep their order");
    println!("   all three came at the same moment, in the order they were sent");
    Ok(())
}

fn the_same_evening_with_polling((timers, stats): (Lateness, QueueStats)) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n3. The same evening with a job that looks for overdue orders, beside the timers.");
    println!("   {:<14} {:>10} {:>10} {:>10} {:>12}", "", "mean late", "most late", "queries", "rows read");
    let mut all_rows = Vec::new();
    for every in [300, 60, 10, 1].map(Duration::from_secs) {
        let (polled, queries, rows) = an_evening_with_polling(every)?;
        print_row(&format!("polling, {every:?}"), &polled, queries, rows);
        assert!(polled.most <= every && polled.mean > Duration::ZERO);
        assert_eq!(polled.cancelled, timers.cancelled, "the same orders are cancelled, later");
        all_rows.push(rows);
    }
    print_row("timers", &timers, 0, stats.delivered);
    assert_eq!(timers.most, Duration::ZERO);
    assert!(all_rows.iter().all(|&rows| rows > stats.delivered), "polling reads more than what is overdue");
    Ok(())
}

fn print_row(name: &str, late: &Lateness, queries: u64, rows: u64) {
    println!(
        "   {name:<14} {:>9.1}s {:>9.1}s {queries:>10} {rows:>12}",
        late.mean.as_secs_f64(),
        late.most.as_secs_f64()
    );
}

fn an_evening_with_polling(every: Duration) -> Result<(Lateness, u64, u64), Box<dyn std::error::Error>> {
    let (broker, simulation) = Broker::simulated(8);
    let orders = Arc::new(Orders::default());
    let work = Arc::new(polling::Work::default());
    let clock = simulation.clone();
    let job = polling::start(&broker, every, orders.clone(), work.clone(), move || clock.now())?;
    for step in evening() {
        simulation.advance(step.after);
        match step.what {
            What::Place(id) => orders.insert(id, simulation.now()),
            // An order that is overdue but not polled yet must not be paid either.
            What::Pay(id) if pays_after(id).is_some_and(|after| after < TO_PAY) => _ = orders.close(id, Fate::Paid),
            What::Pay(_) => {}
        }
    }
    simulation.advance(TO_PAY + every);
    job.remove();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    Ok((lateness(&orders), count(&work.queries), count(&work.rows)))
}

/// A delay of the last part.
#[derive(Serialize, Deserialize)]
struct Delay {
    id: u64,
    at: SystemTime,
    /// Exact, but means nothing to a later run.
    #[serde(skip)]
    due: Option<Instant>,
}

impl Delay {
    const QUEUE: QueueName<Delay> = QueueName::new("timers");

    fn of(id: u64, delay: Duration) -> Message<Self> {
        Message::new(Self { id, at: SystemTime::now() + delay, due: Some(Instant::now() + delay) }).with_delay(delay)
    }

    fn late(&self) -> Duration {
        match self.due {
            // `None` would be early.
            Some(due) => Instant::now().checked_duration_since(due).expect("never early"),
            // Between runs somebody may have set the clock a little.
            None => SystemTime::now().duration_since(self.at).unwrap_or_else(|early| {
                assert!(early.duration() < Duration::from_millis(10), "early by {early:?}");
                Duration::ZERO
            }),
        }
    }
}

/// What virtual time cannot show: the thread that waits has to be woken.
fn on_the_real_clock(broker: &Broker, file: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    const TIMERS: u64 = 1_000;
    println!("\n4. On the real clock: {TIMERS} delays between 100 ms and 1.1 s.");
    let (mut sent, fired) = (Ledger::open(file, "sent")?, Arc::new(Mutex::new(Ledger::open(file, "fired")?)));
    let queue = durable::queue(broker, Delay::QUEUE).declare()?;
    let found = durable::say_what_was_there(broker);
    let late: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (sink, done) = (late.clone(), fired.clone());
    queue.consumer().start(move |delay: &Message<Delay>| {
        sink.lock().unwrap().push(delay.late());
        done.lock().unwrap().insert(delay.id);
    })?;
    let reminder: Queue<SystemTime> = broker.queue("exact").declare()?;
    for n in 0..TIMERS {
        if sent.numbers.contains(&n) {
            continue; // by an earlier run
        }
        queue.send(Delay::of(n, Duration::from_millis(100 + n * 7919 % 1_000)))?;
        sent.insert(n);
    }
    println!("   all are on their way");
    let at = SystemTime::now() + Duration::from_millis(500);
    reminder.send(Message::new(at).with_delivery_at(at))?;
    let exact = reminder.recv()?;
    let exact_late = SystemTime::now().duration_since(**exact).unwrap_or_default();
    exact.ack()?;

    assert!(broker.wait_idle(PATIENCE), "the timers did not fire in time");
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.panicked), (stats.published + found, 0), "a timer was lost or early");
    assert!(fired.lock().unwrap().numbers.iter().copied().eq(0..TIMERS), "a timer was lost");
    let mut late = late.lock().unwrap();
    late.sort_unstable();
    if let (Some(typical), Some(most)) = (late.get(late.len() / 2), late.get(late.len() * 99 / 100)) {
        println!("   never early; late by {typical:.0?} typically, by {most:.0?} or less for 99 of 100");
    }
    println!("   a message for an exact time of the wall clock was late by {exact_late:.0?}");
    assert!(broker.shutdown(PATIENCE).is_clean());
    sent.forget()?;
    fired.lock().unwrap().forget()?;
    Ok(())
}
