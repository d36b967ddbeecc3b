//! A whole shop in one process: modules that know only names, wired with one topic and a few queues.
//!
//! **Situation.** Orders come in as JSON lines, from a file, from a pipe or made up. Stock reserves what was
//! ordered, payment charges the card, mail confirms. Every one of them can fail: items sell out, the gateway
//! is busy, a worker crashes after it has charged, cards are bad, and the mail server is down at first.
//!
//! **What the queue gives.** Each module has its own queue, workers and retry policy. Whatever they give up
//! on ends in one place, `unsolved`, with the reason; people repair what can be repaired and send it back.
//! Full queues slow the reader of the orders down, so that a file of any length needs no more memory.
//!
//! **What to expect on screen.** How many orders came in, and how fast; what is unsolved, by reason, before
//! and after the repair; a table of all queues; and that the books balance: every order is paid and out of
//! stock, or a dead letter with its reason, and no item and no cent is missing.
//!
//! `cargo run --release --example shop -- --help`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod names;
mod args;
mod source;
mod orders;
mod stock;
mod payment;
mod mail;
mod unsolved;
mod books;

use crate::args::{Args, Command};
use crate::mail::MailServer;
use crate::names::{Card, Order};
use crate::orders::Intake;
use crate::payment::Gateway;
use crate::stock::Warehouse;
use postroom::{Broker, DeadLetter, Queue};
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
    let broker = Broker::builder().seed(args.seed).on_event(|event| eprintln!("   [broker] {event:?}")).build()?;

    // The wiring: from here on, the modules meet only in the broker.
    let warehouse = Arc::new(Warehouse::stocked());
    let gateway = Arc::new(Gateway::new(args.seed));
    let mail_server = Arc::new(MailServer::default());
    let unsolved = unsolved::declare(&broker)?;
    stock::start(&broker, &unsolved, warehouse.clone())?;
    payment::start(&broker, &unsolved, gateway.clone())?;
    mail::start(&broker, &unsolved, mail_server.clone())?;

    println!("1. Orders come in: {source}.");
    let start = Instant::now();
    let mut orders = Intake::new(&broker)?;
    let read = orders.take_all(source);
    let read_in = start.elapsed();
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest");
    let (placed, took) = (orders.placed().len(), start.elapsed());
    println!("   {placed} orders placed in {read_in:.1?}, {} bad lines skipped", orders.bad_lines());
    println!("   all of them worked off after {took:.1?}, {:.0} orders a second", placed as f64 / took.as_secs_f64());

    println!("\n2. Unsolved by the end of the day.");
    unsolved::print(&unsolved);

    println!("\n3. Repair: the mail server is up again, customers give a new card for an expired one.");
    mail_server.repair();
    repair(&unsolved)?;
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest");
    println!("   what stays unsolved:");
    unsolved::print(&unsolved);
    let released = orders.abandon(&unsolved)?;
    assert!(broker.wait_idle(PATIENCE), "the shop did not come to rest");
    println!("   {released} of these had items reserved, which are for sale again");

    println!("\n4. The queues.");
    books::print_queues(&broker.stats());
    let books = books::Books { orders: &orders, unsolved: &unsolved, warehouse: &warehouse, gateway: &gateway };
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
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        match (thread.name(), panic.payload().downcast_ref::<String>()) {
            (Some(worker), Some(words)) if worker != "main" => eprintln!("   [{worker}] panicked: {words}"),
            _ => standard(panic),
        }
    }));
}
