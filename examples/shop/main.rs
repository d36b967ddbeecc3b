//! A whole shop in one process: modules that know only names, wired with one topic and a few queues.
//!
//! **Situation.** Orders come in as JSON lines, from a file, from a pipe or made up, and all at once. Stock
//! reserves what was ordered, payment charges the card, mail confirms. Every one of them can fail: items sell
//! out, the gateway is busy now and then and down in the middle of the day, a worker crashes after it has
//! charged, cards are bad, and the mail server is down at first. Items that nobody pays for must not stay
//! reserved.
//!
//! **What the queue gives.** The gate lets in what the shop can bear and tells everybody else when to come
//! again. An order is placed when its row and its message are committed to a SQLite database, by one transaction;
//! a relay takes the message from there to the modules, which know nothing of it. Each module has its own queue, workers and retry policy; payment keeps to the rate its gateway
//! allows, and a circuit breaker leaves the gateway alone while it is down. An alarm tells of the backlog. A
//! delayed message cancels each order after 30 minutes, unless payment cancels its timer. Full queues slow the
//! reader of the orders down. Shipping's steps are ordered by order: a parcel that is stuck holds up only
//! itself. What the office decides is broadcast, so every module has the prices and switches at hand. Modules
//! that need an answer ask a topic, and hear at once if there is nobody to give one. All that happens is kept
//! in a log, which the audit and analytics read on the way and the tax office when all is over. Whatever is
//! given up on ends in one place, `unsolved`, with the reason; people repair what can be repaired and send it
//! back.
//!
//! **What survives.** Stock, till and parcels are in memory and die with the process. What is placed does not: run
//! the shop again on the same `--database`, and every order that is neither shipped nor cancelled comes first, from
//! the beginning. So none is lost, and one that was shipped in the moment before a kill is shipped again.
//!
//! With `--durable PATH` everything survives, in one file. The queues are in it, and each module's book is a table
//! beside them, so an order goes on where it was when the shop was killed. Orders are placed without outbox and relay:
//! since the database is the broker's own file, one transaction has the row and the message. A few messages come twice,
//! which changes nothing, since every module goes by the number of the order. The journal, a log, is in memory: it has
//! what happened since the start. No module begins to work before all are bound, because a queue from the file may have
//! messages at once, and what they lead to is to be heard by everybody.
//!
//! **What to expect on screen.** How many orders came in, and how many were told to come again; what the owner
//! was told of; what is unsolved, by reason, before and after the repair, and what was cancelled; offers made
//! to those who found things sold out; the figures of the day, counted on the way and once more from the log;
//! a table of all queues; and that the books balance: every order is paid, out of stock and shipped, or a dead
//! letter with its reason and its items for sale again, no item and no cent is missing, and the database holds
//! the orders that were placed and no other. An hour of the
//! shop takes a moment, in virtual time; `--threads` runs it on threads and the real clock.
//!
//! `cargo run --release --features sqlite,json --example shop -- --help`
//! `cargo run --release --features sqlite,json --example shop -- --durable shop.db`
//!
//! Without the features, orders are placed on the topic directly, and die with the process like everything else.

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod names;
mod args;
mod time;
mod keeping;
mod source;
mod settings;
mod orders;
mod placing;
mod stock;
mod payment;
mod shipping;
mod mail;
mod prices;
mod sales;
mod journal;
mod unsolved;
mod watch;
mod books;

use crate::args::{Args, Command};
use crate::books::Books;
use crate::journal::{Audit, Figures};
use crate::keeping::Keeping;
use crate::mail::MailServer;
use crate::names::{Card, Order, Setting};
use crate::orders::Intake;
use crate::payment::Till;
use crate::sales::Sales;
use crate::settings::{Office, Settings};
use crate::shipping::Ramp;
use crate::stock::{TO_PAY_MINUTES, Warehouse};
use crate::unsolved::Unsolved;
use crate::watch::Watch;
use postroom::{Broker, DeadLetter, Log, Start};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Long enough for a large file; it ends as soon as nothing moves any more.
const PATIENCE: Duration = Duration::from_secs(3600);
const MORE_LAMPS: u32 = 60;

fn main() -> ExitCode {
    let outcome = match args::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Run(args)) => run(&args),
        Err(problem) => Err(format!("{problem}\n\n{}", args::HELP).into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("shop: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    print_panics_in_one_line();
    // Opened before anything is started, so that a wrong name costs nothing.
    let source = source::open(&args.source)?;
    let watch = Arc::new(Watch::default());
    let ears = watch.clone();
    let (broker, time) = time::start(args.threads, args.seed, args.durable.as_deref(), move |event| ears.hear(event))?;
    let keeping = Keeping::of(&broker)?;
    let placing = placing::open(args.database.as_deref(), &keeping)?;

    // The wiring: from here on, the modules meet only in the broker.
    let warehouse = Arc::new(Warehouse::open(&keeping)?);
    let till = Arc::new(Till::open(args.seed, &time, &keeping)?);
    let ramp = Arc::new(Ramp::open(args.seed, &keeping)?);
    let mail_server = Arc::new(MailServer::open(&time, &keeping)?);
    let mut sales = Sales::open(&broker, &keeping)?;
    let office = open_office(&broker, &keeping)?;
    let unsolved = Unsolved::declare(&broker, &keeping)?;
    let [for_shipping, for_mail, for_prices] =
        ["shipping", "mail", "prices"].map(|module| Settings::of(&broker, module));
    let copies = [for_shipping?, for_mail?, for_prices?];
    let [for_shipping, for_mail, for_prices] = copies.clone();
    let mut modules = vec![stock::open(&broker, &time, &unsolved, warehouse.clone())?];
    modules.push(payment::open(&broker, &time, &unsolved, till.clone())?);
    let (parcels, shipping) = shipping::open(&broker, &time, (&keeping, &unsolved), ramp.clone(), for_shipping)?;
    modules.push(shipping);
    modules.push(mail::open(&broker, &time, &unsolved, mail_server.clone(), for_mail)?);
    prices::start(&broker, for_prices)?;
    watch::start(&broker, &time, watch.clone())?;
    let journal = journal::declare(&broker)?;
    let (audit, figures) = (Arc::new(Audit::default()), Arc::new(Mutex::new(Figures::default())));
    audit.start(&journal)?;
    journal::start_analytics(&journal, &time, figures.clone())?;
    modules.into_iter().try_for_each(|module| module())?;
    placing.start(&broker, &time)?;

    println!("1. Orders come in, all at once: {source}.");
    placing.print();
    say_what_was_there(&broker);
    let start = Instant::now();
    let mut orders = Intake::open(&broker, time.clone(), placing.clone())?;
    let read = orders.take_all(source);
    placing.deliver_all(&time)?;
    let (placed, (busy, wait)) = (orders.new_orders(), orders.busy());
    println!("   {placed} orders placed, {} bad lines skipped", orders.bad_lines());
    if orders.placed_before() > 0 {
        println!("   {} were in the database already, and are not placed again", orders.placed_before());
    }
    println!("   {busy} customers were told at once that we are busy, to come again in {wait:.0?} or less, and did");
    time.pass(time.minutes(10));
    let took = start.elapsed();
    println!("   ten minutes later (in {took:.1?}, {:.0} orders a second):", placed as f64 / took.as_secs_f64());
    watch.print();

    println!("\n2. Unsolved by then.");
    unsolved.print();
    if keeping.is_on() {
        println!("   {} letters of what came twice thrown away", unsolved.throw_away_doubles(&till.charged())?);
    }

    println!("\n3. Repair: the mail server is up again, customers give a new card for an expired one.");
    let noon = time.now();
    mail_server.repair();
    repair(&unsolved)?;
    for parcel in ramp.repair(&parcels) {
        let why = parcel.error.unwrap_or_default();
        println!("   goes on: parcel of order {} with {} steps, after {why}", parcel.key, parcel.waiting);
    }
    println!("   the office raises the price of lamps, and switches from post to courier");
    office.decide(&names::price("lamp"), Setting::Price(4_900));
    office.decide(names::COURIER, Setting::Switch(true));
    time.pass(time.minutes(TO_PAY_MINUTES));
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest");
    // Threads may have given up on something in the very moment of the repair.
    ramp.repair(&parcels);
    unsolved.send_back(|letter| letter.queue() == names::MAIL.as_str(), Order::clone)?;
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest again");
    println!("   half an hour later, what stays unsolved:");
    unsolved.print();
    let cancelled = till.cancelled().len();
    println!(
        "   {cancelled} were not paid within {TO_PAY_MINUTES} minutes and are cancelled: their items are for sale again"
    );

    println!(
        "\n4. {MORE_LAMPS} lamps are delivered. Sales asks around, and makes offers to those who found them sold out."
    );
    warehouse.deliver("lamp", MORE_LAMPS);
    let taken = sales.make_offers(&unsolved)?;
    println!("   {taken} customers take the offer");
    let nobody = sales.ask_for_gift_wrap("lamp");
    println!("   gift wrap? {nobody}");
    assert!(nobody.is_unpublished());
    assert!(broker.wait_idle(PATIENCE), "the offers did not come to rest");
    check_settings(&broker, &office, &copies)?;

    println!("\n5. The journal.");
    if keeping.is_on() {
        unsolved.throw_away_doubles(&till.charged())?;
    }
    let books = Books {
        orders: &orders,
        unsolved: &unsolved,
        warehouse: &warehouse,
        till: &till,
        ramp: &ramp,
        offers: sales.offers(),
        continued: keeping.is_on() && !placing.left_over().is_empty(),
    };
    let figures = figures.lock().unwrap();
    read_again(&journal, &figures, noon)?;
    books.check_journal(&audit, &figures);

    println!("\n6. The queues.");
    books::print_queues(&broker.stats());
    books.check(&mail_server, &broker.stats());
    books.check_placed(&*placing)?;
    let report = broker.shutdown(PATIENCE);
    assert!(report.is_clean(), "{report}");
    placing.close()?;
    Ok(read?)
}

/// The settings of the morning, or those that were decided later in an earlier run.
fn open_office(broker: &Broker, keeping: &Keeping) -> Result<Office, Box<dyn std::error::Error>> {
    let office = Office::open(broker, keeping)?;
    let decided = office.decided();
    let morning = source::PRICE_LIST.map(|(item, cents)| (names::price(item), Setting::Price(cents)));
    for (name, setting) in morning.into_iter().chain([(names::COURIER.to_owned(), Setting::Switch(false))]) {
        office.decide(&name, decided.get(&name).copied().unwrap_or(setting));
    }
    Ok(office)
}

/// What earlier runs have left in the queues.
fn say_what_was_there(broker: &Broker) {
    let stats = broker.stats();
    let found = stats.queues.iter().filter(|queue| queue.recovered > 0);
    let words: Vec<_> = found.map(|queue| format!("{} in {}", queue.recovered, queue.name)).collect();
    if !words.is_empty() {
        println!("   found from before: {}", words.join(", "));
    }
}

/// Every module knows what the office has decided; a new one does from its start.
fn check_settings(broker: &Broker, office: &Office, copies: &[Arc<Settings>]) -> Result<(), postroom::Error> {
    let decided = office.decided();
    let settings = decided.len() as u64;
    let newcomer = Settings::of(broker, "newcomer")?;
    assert!(broker.wait_idle(PATIENCE));
    assert_eq!((newcomer.all(), newcomer.heard()), (decided.clone(), (settings, 0)));
    for copy in copies {
        // The settings of the morning, and the two of noon.
        assert_eq!((copy.all(), copy.heard()), (decided.clone(), (settings + 2, 0)));
    }
    println!("   all modules know the {settings} settings of the office; a new one has just heard all of them");
    Ok(())
}

/// Two groups that come late: one wants everything, one the afternoon.
fn read_again(journal: &Log<Order>, live: &Figures, noon: SystemTime) -> Result<(), Box<dyn std::error::Error>> {
    let again = journal::recount(journal, "tax office", Start::Earliest, |_| true)?;
    println!("   {:>16} {:>7}", "event", "times");
    again.events.iter().for_each(|(event, times)| println!("   {event:>16} {times:>7}"));
    println!("   the tax office has read all {} events from the start, and counts what analytics did", again.all());
    assert_eq!(again, *live, "read on the way and read again");

    let afternoon = journal::recount(journal, "afternoon", Start::Time(noon), |_| true)?;
    let expected = journal::recount(journal, "checker", Start::Earliest, |event| event.published_at() >= noon)?;
    println!("   {} of them happened after the repair", afternoon.all());
    assert_eq!(afternoon, expected);
    Ok(())
}

/// Sends back what somebody has done something about.
fn repair(unsolved: &Unsolved) -> Result<(), postroom::Error> {
    let of = |letter: &DeadLetter<Order>, queue: &str| letter.queue() == queue;
    let mails = unsolved.send_back(|letter| of(letter, names::MAIL.as_str()), Order::clone)?;
    let expired = |letter: &DeadLetter<Order>| of(letter, names::PAYMENT.as_str()) && letter.card == Card::Expired;
    let cards = unsolved.send_back(expired, |order| Order { card: Card::Good, ..order.clone() })?;
    println!("   redriven: {mails} mails, {cards} payments with a new card");
    Ok(())
}

/// A worker survives a panic, but the standard hook would fill the screen with it.
fn print_panics_in_one_line() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.payload().downcast_ref::<String>() {
        Some(words) if words.starts_with("crashed") => eprintln!("   [worker] panicked: {words}"),
        _ => standard(panic),
    }));
}
