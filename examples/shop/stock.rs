//! Reserves what was ordered.

use crate::names::{CANCELLED, DUE, ORDERS, Order, PLACED, RESERVED, STOCK, STOCK_RELEASE, unpaid};
use crate::time::Time;
use postroom::{Broker, Classify, DeadLetter, Error, Failure, Message, Queue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct Warehouse {
    shelves: Mutex<Shelves>,
}

#[derive(Default)]
struct Shelves {
    on_hand: BTreeMap<String, u32>,
    /// By order, so that an order delivered twice takes its items once.
    reserved: BTreeMap<u64, (String, u32)>,
}

/// Lamps are few: they sell out.
const DELIVERED: [(&str, u32); 4] = [("kettle", 1_000_000), ("lamp", 500), ("chair", 1_000_000), ("teapot", 1_000_000)];

pub const TO_PAY_MINUTES: u32 = 30;

impl Warehouse {
    pub fn stocked() -> Self {
        let on_hand = DELIVERED.iter().map(|&(item, count)| (item.to_owned(), count)).collect();
        Self { shelves: Mutex::new(Shelves { on_hand, ..Shelves::default() }) }
    }

    fn reserve(&self, order: &Order) -> Result<(), String> {
        let mut shelves = self.shelves.lock().unwrap();
        if shelves.reserved.contains_key(&order.id) {
            return Ok(());
        }
        let on_hand = shelves.on_hand.get_mut(&order.item).ok_or_else(|| format!("no such item: {}", order.item))?;
        *on_hand = on_hand.checked_sub(order.quantity).ok_or_else(|| format!("sold out: {}", order.item))?;
        shelves.reserved.insert(order.id, (order.item.clone(), order.quantity));
        Ok(())
    }

    fn release(&self, order: &Order) {
        let mut shelves = self.shelves.lock().unwrap();
        if let Some((item, quantity)) = shelves.reserved.remove(&order.id) {
            *shelves.on_hand.entry(item).or_default() += quantity;
        }
    }

    /// The orders that have their items.
    pub fn reserved(&self) -> Vec<u64> {
        self.shelves.lock().unwrap().reserved.keys().copied().collect()
    }

    /// Whether every item that was delivered is on its shelf or reserved for an order.
    pub fn is_complete(&self) -> bool {
        let shelves = self.shelves.lock().unwrap();
        DELIVERED.iter().all(|&(item, count)| {
            let reserved = shelves.reserved.values().filter(|(name, _)| name == item);
            shelves.on_hand[item] + reserved.map(|(_, quantity)| quantity).sum::<u32>() == count
        })
    }
}

/// Items are set aside before anybody has paid for them, so each order starts a timer: when that fires, whoever
/// takes the money decides. Until then its message waits in their queue.
pub fn start(
    broker: &Broker,
    time: &Time,
    unsolved: &Queue<DeadLetter<Order>>,
    warehouse: Arc<Warehouse>,
) -> Result<(), Error> {
    let orders = broker.topic(ORDERS).declare()?;

    let placed = broker.queue(STOCK).capacity(5_000).dead_letter_to(unsolved).declare()?;
    orders.bind(&placed, PLACED)?;
    let (shelves, next, to_pay) = (warehouse.clone(), orders.clone(), time.minutes(TO_PAY_MINUTES));
    placed.consumer().workers(2).start(move |order: &Message<Order>| -> Result<(), Failure> {
        // Waiting brings no new items.
        shelves.reserve(order).permanent()?;
        // Delivered a second time, the same order only starts the same timer anew.
        let due = Message::new(order.payload().clone()).with_delay(to_pay).with_timer(unpaid(order.id));
        next.publish(DUE, due)?;
        next.publish(RESERVED, order.payload().clone())?;
        Ok(())
    })?;

    let cancelled = broker.queue(STOCK_RELEASE).dead_letter_to(unsolved).declare()?;
    orders.bind(&cancelled, CANCELLED)?;
    cancelled.consumer().start(move |order: &Message<Order>| warehouse.release(order))?;
    Ok(())
}
