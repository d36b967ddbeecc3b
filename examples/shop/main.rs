//! A whole shop in one process: modules that know only names, wired with one topic and a few queues.
//!
//! **Situation.** Orders come in as JSON lines, from a file, from a pipe or made up, and all at once. Stock
//! reserves what was ordered, payment charges the card, mail confirms. Every one of them can fail: items sell
//! out, the gateway is busy now and then and down in the middle of the day, a worker crashes after it has
//! charged, cards are bad, and the mail server is down at first. Items that nobody pays for must not stay
//! reserved.
//!
//! **What the queue gives.** The gate lets in what the shop can bear and tells everybody else when to come
//! again. Each module has its own queue, workers and retry policy; payment keeps to the rate its gateway
//! allows, and a circuit breaker leaves the gateway alone while it is down. An alarm tells of the backlog. A
//! delayed message cancels each order after 30 minutes, unless payment cancels its timer. Whatever is given up
//! on ends in one place, `unsolved`, with the reason; people repair what can be repaired and send it back.
//! Full queues slow the reader of the orders down, so that a file of any length needs no more memory.
//!
//! **What to expect on screen.** How many orders came in, and how many were told to come again; what the owner
//! was told of; what is unsolved, by reason, before and after the repair, and what was cancelled; a table of
//! all queues; and that the books balance: every order is paid and out of stock, or a dead letter with its
//! reason and its items for sale again, and no item and no cent is missing. An hour of the shop takes a
//! moment, in virtual time; `--threads` runs it on threads and the real clock.
//!
//! `cargo run --release --example shop -- --help`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod names;
mod args;
mod time;
mod source;
mod orders;
mod stock;
mod payment;
mod mail;
mod unsolved;
mod watch;
mod books;

use crate::args::{Args, Command};
use crate::mail::MailServer;
use crate::names::{Card, Order};
use crate::orders::Intake;
use crate::payment::Till;
use crate::stock::{TO_PAY_MINUTES, Warehouse};
use crate::watch::Watch;
use postroom::{DeadLetter, Queue};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough for a large file; it ends as soon as nothing moves any more.
const PATIENCE: Duration = Duration::from_secs(3600);

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
    let (broker, time) = time::start(args.threads, args.seed, move |event| ears.hear(event))?;

    // The wiring: from here on, the modules meet only in the broker.
    let warehouse = Arc::new(Warehouse::stocked());
    let till = Arc::new(Till::new(args.seed, &time));
    let mail_server = Arc::new(MailServer::new(&time));
    let unsolved = unsolved::declare(&broker)?;
    stock::start(&broker, &time, &unsolved, warehouse.clone())?;
    payment::start(&broker, &time, &unsolved, till.clone())?;
    mail::start(&broker, &time, &unsolved, mail_server.clone())?;
    watch::start(&broker, &time, watch.clone())?;

    println!("1. Orders come in, all at once: {source}.");
    let start = Instant::now();
    let mut orders = Intake::new(&broker, time.clone())?;
    let read = orders.take_all(source);
    let (placed, (busy, wait)) = (orders.placed().len(), orders.busy());
    println!("   {placed} orders placed, {} bad lines skipped", orders.bad_lines());
    println!("   {busy} customers were told at once that we are busy, to come again in {wait:.0?} or less, and did");
    time.pass(time.minutes(10));
    let took = start.elapsed();
    println!("   ten minutes later (in {took:.1?}, {:.0} orders a second):", placed as f64 / took.as_secs_f64());
    watch.print();

    println!("\n2. Unsolved by then.");
    unsolved::print(&unsolved);

    println!("\n3. Repair: the mail server is up again, customers give a new card for an expired one.");
    mail_server.repair();
    repair(&unsolved)?;
    time.pass(time.minutes(TO_PAY_MINUTES));
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest");
    println!("   half an hour later, what stays unsolved:");
    unsolved::print(&unsolved);
    let cancelled = till.cancelled().len();
    println!(
        "   {cancelled} were not paid within {TO_PAY_MINUTES} minutes and are cancelled: their items are for sale again"
    );

    println!("\n4. The queues.");
    books::print_queues(&broker.stats());
    let books = books::Books { orders: &orders, unsolved: &unsolved, warehouse: &warehouse, till: &till };
    books.check(&mail_server, &broker.stats());
    let report = broker.shutdown(PATIENCE);
    assert!(report.is_clean(), "{report}");
    Ok(read?)
}

/// Sends back what somebody has done something about.
fn repair(unsolved: &Queue<DeadLetter<Order>>) -> Result<(), postroom::Error> {
    let mails = unsolved.redrive().filter(|letter| letter.queue() == names::MAIL.as_str()).run()?;
    let of_payment = |letter: &DeadLetter<Order>| letter.queue() == names::PAYMENT.as_str();
    let cards = unsolved.redrive().filter(|letter| of_payment(letter) && letter.card == Card::Expired);
    let cards = cards.edit(|letter| Order { card: Card::Good, ..letter.payload().clone() }).run()?;
    println!("   redriven: {} mails, {} payments with a new card", mails.moved, cards.moved);
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
