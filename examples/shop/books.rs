//! Whether anything is missing at the end of the day.

use crate::journal::{Audit, Figures};
use crate::keeping::Book;
use crate::mail::MailServer;
use crate::names::{CANCELLED, Carrier, PAID, PAYMENT, PLACED, RESERVED, SHIPPED, STOCK};
use crate::orders::Intake;
use crate::payment::Till;
use crate::placing::Placing;
use crate::shipping::Ramp;
use crate::stock::Warehouse;
use crate::unsolved::Unsolved;
use postroom::Stats;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub struct Books<'a> {
    pub orders: &'a Intake,
    pub unsolved: &'a Unsolved,
    pub warehouse: &'a Warehouse,
    pub till: &'a Till,
    pub ramp: &'a Ramp,
    /// What those pay who were offered what had been sold out.
    pub offers: &'a Book<u64, u64>,
    /// Whether some of this was done by earlier runs, which had journals of their own.
    pub continued: bool,
}

impl Books<'_> {
    /// # Panics
    /// If they do not balance.
    pub fn check(&self, mail_server: &MailServer, stats: &Stats) {
        for queue in &stats.queues {
            assert_eq!(queue.unaccounted(), 0, "messages are missing from {}", queue.name);
            let expected = self.unsolved.count_in(&queue.name) as u64;
            assert_eq!(queue.ready + queue.delayed + queue.in_flight, expected, "{}", queue.name);
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
        let price = |order: &u64| *self.offers.get(order).unwrap_or(&placed[order].cents);
        let due: BTreeMap<u64, u64> = paid.keys().map(|order| (*order, price(order))).collect();
        assert_eq!(paid, due, "every order is charged its price, once");
        let told = mail_server.told();
        let customers = told.iter().map(|(order, (customer, _))| (order, customer));
        assert!(customers.eq(paid.keys().map(|order| (order, &placed[order].customer))), "who paid is told");

        let shipped = self.ramp.shipped();
        assert!(shipped.keys().eq(paid.keys()), "what is paid is shipped, and nothing else");
        assert_eq!(self.ramp.out_of_order(), 0, "no parcel took a step before the one that comes first");
        for order in self.offers.keys().filter(|order| paid.contains_key(order)) {
            assert_eq!((shipped[order], told[order].1), (Carrier::Courier, Carrier::Courier), "the switch had changed");
        }

        let cents: u128 = paid.values().map(|&cents| u128::from(cents)).sum();
        println!(
            "\nThe books balance: {} orders placed, {} paid, {} unsolved;",
            placed.len(),
            paid.len(),
            failed.len()
        );
        println!("{}.{:02} in the till, no item, order or message missing.", cents / 100, cents % 100);
    }

    /// What the journal's groups have read, against what the modules have done.
    pub fn check_journal(&self, audit: &Audit, figures: &Figures) {
        let paid = self.till.charged();
        let cancelled = self.till.cancelled();
        let expected = |order: &u64| {
            let more: &[&str] = match order {
                _ if paid.contains_key(order) => &[RESERVED, PAID, SHIPPED],
                _ if cancelled.contains(order) => &[RESERVED, CANCELLED],
                _ => &[],
            };
            [PLACED].iter().chain(more).map(|event| (*event).to_owned()).collect::<BTreeSet<_>>()
        };
        let histories = audit.histories();
        if self.continued {
            // A log is in memory: it has what happened since the start, some of it for a second time.
            let placed = self.orders.placed();
            assert!(histories.keys().all(|order| placed.contains_key(order)), "only orders are in the journal");
            histories.iter().for_each(|(order, events)| assert!(events.is_subset(&expected(order)), "order {order}"));
            return;
        }
        assert!(histories.keys().eq(self.orders.placed().keys()), "every order is in the journal");
        for (order, events) in &histories {
            assert_eq!(*events, expected(order), "the history of order {order}");
        }
        assert_eq!(figures.cents.values().sum::<u64>(), paid.values().sum::<u64>(), "what analytics says was paid");
    }

    /// Where orders are placed, against what came in and what the modules have done.
    pub fn check_placed(&self, placing: &dyn Placing) -> Result<(), Box<dyn std::error::Error>> {
        let shipped = self.ramp.shipped().into_keys().collect();
        placing.check(self.orders.placed(), &shipped, &self.till.cancelled())
    }

    /// The orders whose items were set aside and never paid for.
    fn unpaid(&self) -> BTreeSet<u64> {
        let letters = self.unsolved.list();
        letters.iter().filter(|letter| letter.queue() == PAYMENT.as_str()).map(|letter| letter.payload().id).collect()
    }

    /// The orders that could not be fulfilled; each of their letters says why.
    fn failed(&self) -> BTreeSet<u64> {
        let letters = self.unsolved.list();
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
