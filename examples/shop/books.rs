//! Whether anything is missing at the end of the day.

use crate::mail::MailServer;
use crate::names::{Order, PAYMENT, STOCK};
use crate::orders::Intake;
use crate::payment::Till;
use crate::stock::Warehouse;
use postroom::{DeadLetter, Queue, Stats};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub struct Books<'a> {
    pub orders: &'a Intake,
    pub unsolved: &'a Queue<DeadLetter<Order>>,
    pub warehouse: &'a Warehouse,
    pub till: &'a Till,
}

impl Books<'_> {
    /// # Panics
    /// If they do not balance.
    pub fn check(&self, mail_server: &MailServer, stats: &Stats) {
        for queue in &stats.queues {
            assert_eq!(queue.unaccounted(), 0, "messages are missing from {}", queue.name);
            assert_eq!(queue.ready + queue.delayed + queue.in_flight, self.expected_in(&queue.name), "{}", queue.name);
        }
        let placed = self.orders.placed();
        let paid = self.till.charged();
        let failed = self.failed();
        assert!(paid.keys().all(|order| !failed.contains(order)), "an order is paid and unsolved");
        let settled: BTreeSet<u64> = paid.keys().chain(&failed).copied().collect();
        assert!(settled.iter().eq(placed.keys()), "every order is paid or unsolved, and no other is");
        assert_eq!(self.till.cancelled(), self.unpaid(), "who has not paid in time is cancelled, and nobody else");
        assert!(paid.keys().copied().eq(self.warehouse.reserved()), "what is paid is out of stock, and only that");
        assert!(self.warehouse.is_complete(), "items are missing");
        let due: BTreeMap<u64, u64> = paid.keys().map(|order| (*order, placed[order].cents)).collect();
        assert_eq!(paid, due, "every order is charged its price, once");
        let due: BTreeMap<u64, String> = paid.keys().map(|order| (*order, placed[order].customer.clone())).collect();
        assert_eq!(mail_server.told(), due, "every customer who paid is told");

        let cents: u128 = paid.values().map(|&cents| u128::from(cents)).sum();
        println!(
            "\nThe books balance: {} orders placed, {} paid, {} unsolved;",
            placed.len(),
            paid.len(),
            failed.len()
        );
        println!("{}.{:02} in the till, no item, order or message missing.", cents / 100, cents % 100);
    }

    fn expected_in(&self, queue: &str) -> u64 {
        if queue == self.unsolved.name() { self.unsolved.len() as u64 } else { 0 }
    }

    /// The orders whose items were set aside and never paid for.
    fn unpaid(&self) -> BTreeSet<u64> {
        let letters = self.unsolved.list(usize::MAX);
        letters.iter().filter(|letter| letter.queue() == PAYMENT.as_str()).map(|letter| letter.payload().id).collect()
    }

    /// The orders that could not be fulfilled; each of their letters says why.
    fn failed(&self) -> BTreeSet<u64> {
        let letters = self.unsolved.list(usize::MAX);
        for letter in &letters {
            assert!([STOCK.as_str(), PAYMENT.as_str()].contains(&letter.queue()), "{letter:?}");
            assert!(letter.error().is_some_and(|why| !why.is_empty()), "{letter:?}");
        }
        let failed: BTreeSet<u64> = letters.iter().map(|letter| letter.payload().id).collect();
        assert_eq!(failed.len(), letters.len(), "an order is unsolved twice");
        failed
    }
}

pub fn print_queues(stats: &Stats) {
    println!(
        "   {:<14} {:>9} {:>8} {:>9} {:>8} {:>8} {:>6} {:>9} {:>10}",
        "queue", "published", "acked", "cancelled", "retried", "panicked", "dead", "redriven", "p99"
    );
    // A queue for dead letters has one of its own, too, that is never used.
    for queue in stats.queues.iter().filter(|queue| !queue.name.ends_with(".dead")) {
        let handling = queue.handling.quantile(0.99).map_or("-".to_owned(), rounded);
        println!(
            "   {:<14} {:>9} {:>8} {:>9} {:>8} {:>8} {:>6} {:>9} {:>10}",
            queue.name,
            queue.published,
            queue.acked,
            queue.cancelled,
            queue.retried,
            queue.panicked,
            queue.dead_lettered,
            queue.redriven,
            handling
        );
    }
}

/// The histogram is exact to a factor of two. In virtual time, handling takes none.
fn rounded(time: Duration) -> String {
    if time < Duration::from_nanos(2) { "-".to_owned() } else { format!("< {time:.1?}") }
}
