//! Message bus: modules that know only names ask each other, and are told at once when nobody can answer.
//!
//! **Situation.** A lottery office. A dispatcher at the counter takes customers' wishes: a ticket comes from
//! the ticketing module, a prize is paid by the pay-out module. It must not call either of them directly, yet
//! the customer at the counter waits for an answer.
//!
//! **What the queue gives.** A request is a message that carries its way back. The dispatcher publishes to a
//! topic and gets a typed reply; which module answers, with how many workers, is a matter of bindings. Nobody
//! declares a queue for replies or compares correlation numbers. If there is no answer the reason comes at
//! once: refused for good, not bound, crashed, shut down. Only a module that may still answer is waited for,
//! until a timeout.
//!
//! **What to expect on screen.** A wish that nobody can fulfil yet; 2,000 wishes from four counters, each
//! answered with its own ticket or prize; a prize that was paid before; a pay-out module that crashes, one that
//! dozes off, and one that has gone when the office closes. Each time, what the counter hears.
//!
//! `cargo run --release --example message_bus`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use names::Ticket;
use postroom::{Broker, RequestError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Wish {
        Ticket { customer: u64 },
        Prize { ticket: u64 },
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Ticket {
        pub number: u64,
        pub customer: u64,
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Paid {
        pub ticket: u64,
        pub cents: u64,
    }

    pub const COUNTER: TopicName<Wish> = TopicName::new("counter");
    pub const TICKETING: QueueName<Wish> = QueueName::new("ticketing");
    pub const PAY_OUT: QueueName<Wish> = QueueName::new("pay-out");
}

/// Hands wishes on. It knows a topic and the types of the answers, and no other module.
mod dispatcher {
    use crate::names::{COUNTER, Paid, Ticket, Wish};
    use postroom::{Broker, Error, RequestError, Topic};
    use std::time::Duration;

    pub struct Dispatcher {
        wishes: Topic<Wish>,
        patience: Duration,
    }

    impl Dispatcher {
        pub fn new(broker: &Broker, patience: Duration) -> Result<Self, Error> {
            Ok(Self { wishes: broker.topic(COUNTER).declare()?, patience })
        }

        pub fn ticket(&self, customer: u64) -> Result<Ticket, RequestError<Wish>> {
            self.wishes.request("ticket", Wish::Ticket { customer }, self.patience)
        }

        pub fn prize(&self, ticket: u64) -> Result<Paid, RequestError<Wish>> {
            self.wishes.request("prize", Wish::Prize { ticket }, self.patience)
        }
    }
}

mod ticketing {
    use crate::names::{COUNTER, TICKETING, Ticket, Wish};
    use postroom::{Broker, Classify, Error, Failure, Message};
    use std::sync::atomic::{AtomicU64, Ordering};

    pub fn start(broker: &Broker) -> Result<(), Error> {
        let queue = broker.queue(TICKETING).declare()?;
        broker.topic(COUNTER).declare()?.bind(&queue, "ticket")?;
        let next = AtomicU64::new(1);
        queue.consumer().workers(2).respond(move |wish: &Message<Wish>| -> Result<Ticket, Failure> {
            let Wish::Ticket { customer } = *wish.payload() else { return Err("not a ticket").permanent() };
            Ok(Ticket { number: next.fetch_add(1, Ordering::Relaxed), customer })
        })?;
        Ok(())
    }
}

mod pay_out {
    use crate::names::{COUNTER, PAY_OUT, Paid, Wish};
    use postroom::{Broker, Classify, Consumer, Error, Failure, Message, Retry};
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    #[derive(Default)]
    pub struct PayOut {
        pub crashes: AtomicBool,
        pub dozes: AtomicBool,
        paid: Mutex<BTreeSet<u64>>,
    }

    impl PayOut {
        fn pay(&self, ticket: u64) -> Result<Paid, Failure> {
            assert!(!self.crashes.load(Ordering::Relaxed), "crashed: the safe does not open");
            // Not for ever, should nobody wake it.
            let wakes = Instant::now() + Duration::from_secs(30);
            while self.dozes.load(Ordering::Relaxed) && Instant::now() < wakes {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !self.paid.lock().unwrap().insert(ticket) {
                return Err(format!("ticket {ticket} was paid before")).permanent();
            }
            Ok(Paid { ticket, cents: ticket * 10 })
        }
    }

    /// Paying twice is worse than not paying, so a failure is not retried: the customer decides.
    pub fn start(broker: &Broker, module: std::sync::Arc<PayOut>) -> Result<Consumer, Error> {
        let queue = broker.queue(PAY_OUT).retry(Retry::none()).declare()?;
        broker.topic(COUNTER).declare()?.bind(&queue, "prize")?;
        queue.consumer().workers(2).respond(move |wish: &Message<Wish>| match *wish.payload() {
            Wish::Prize { ticket } => module.pay(ticket),
            Wish::Ticket { .. } => Err("not a prize").permanent(),
        })
    }
}

const COUNTERS: u64 = 4;
const CUSTOMERS: u64 = 250;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("message_bus.rs"));
    print_crashes_in_one_line();
    let broker = Broker::new();
    let patience = Duration::from_secs(60);
    let office = dispatcher::Dispatcher::new(&broker, patience)?;

    println!("1. The office opens before its modules do.");
    let start = Instant::now();
    let error = office.ticket(1).unwrap_err();
    println!("   a ticket, please: {error}");
    assert!(error.is_unpublished() && start.elapsed() < patience / 2, "told at once");

    println!("\n2. Both modules run: {COUNTERS} counters, {CUSTOMERS} customers each buy a ticket and win.");
    ticketing::start(&broker)?;
    let module = Arc::new(pay_out::PayOut::default());
    let paying = pay_out::start(&broker, module.clone())?;
    let start = Instant::now();
    let tickets = serve_all(&office);
    let wishes = 2 * COUNTERS * CUSTOMERS;
    println!("   {wishes} wishes answered, {:.1?} each", start.elapsed() / u32::try_from(wishes)?);
    let numbers: BTreeSet<u64> = tickets.iter().map(|ticket| ticket.number).collect();
    assert!(numbers.iter().copied().eq(1..=COUNTERS * CUSTOMERS), "every ticket was sold once");

    println!("\n3. The pay-out module refuses, crashes, and dozes off. Each time the counter hears why.");
    let ask = |ticket| {
        let start = Instant::now();
        let error = office.prize(ticket).expect_err("no prize this time");
        println!("   {error}");
        (error, start.elapsed())
    };
    let (error, took) = ask(7);
    assert!(matches!(error, RequestError::Failed { .. }) && took < patience / 2);
    assert!(error.to_string().contains("ticket 7 was paid before"));

    module.crashes.store(true, Ordering::Relaxed);
    let (error, took) = ask(5_000);
    assert!(matches!(error, RequestError::Failed { .. }) && took < patience / 2);
    module.crashes.store(false, Ordering::Relaxed);

    // A module that is slow may still answer, so this is the one case in which the counter has to wait.
    module.dozes.store(true, Ordering::Relaxed);
    let hurried = dispatcher::Dispatcher::new(&broker, Duration::from_millis(50))?;
    let error = hurried.prize(5_001).unwrap_err();
    println!("   {error}");
    assert!(matches!(error, RequestError::Timeout(_)));

    let still_sold = office.ticket(1)?;
    println!("   ticketing knows nothing of it and sells ticket {}", still_sold.number);

    println!("\n4. The pay-out module wakes up and pays; nobody waits for that answer any more.");
    module.dozes.store(false, Ordering::Relaxed);
    assert!(broker.wait_idle(patience));
    println!("   late replies: {}", broker.stats().late_replies);
    assert_eq!(broker.stats().late_replies, 1);
    assert_eq!(office.prize(5_002)?.cents, 50_020);

    println!("\n5. Somebody still waits when the office closes.");
    paying.stop();
    let last = thread::scope(|scope| {
        let waiting = scope.spawn(|| office.prize(5_003));
        while broker.stats().queue("pay-out").is_some_and(|queue| queue.ready == 0) {
            thread::sleep(Duration::from_millis(1));
        }
        let report = broker.shutdown(Duration::from_secs(1));
        println!("   shut down: {}", report.to_string().trim_end().replace('\n', "; "));
        waiting.join().expect("it does not panic")
    });
    let error = last.unwrap_err();
    println!("   {error}");
    assert!(matches!(error, RequestError::Unanswered { .. }));
    Ok(())
}

/// Every customer gets a ticket of their own and the prize of that ticket.
fn serve_all(office: &dispatcher::Dispatcher) -> Vec<Ticket> {
    let serve = |customer| {
        let ticket = office.ticket(customer).expect("ticketing runs");
        assert_eq!(ticket.customer, customer);
        assert_eq!(office.prize(ticket.number).expect("pay-out runs").ticket, ticket.number);
        ticket
    };
    thread::scope(|scope| {
        let counters: Vec<_> = (0..COUNTERS)
            .map(|counter| scope.spawn(move || (0..CUSTOMERS).map(|n| serve(counter * CUSTOMERS + n)).collect()))
            .collect();
        counters.into_iter().flat_map(|counter| -> Vec<Ticket> { counter.join().expect("served") }).collect()
    })
}

/// A worker survives a panic, but the standard hook would fill the screen with it.
fn print_crashes_in_one_line() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.payload().downcast_ref::<&str>() {
        Some(words) if words.starts_with("crashed") => eprintln!("   [worker] panicked: {words}"),
        _ => standard(panic),
    }));
}
