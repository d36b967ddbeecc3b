//! Reserves what was ordered.

use crate::keeping::{Book, Keeping, Ready};
use crate::names::{
    CANCELLED, DUE, HOW_MANY, InStock, ORDERS, Order, PLACED, QUESTIONS, Question, RESERVED, STOCK, STOCK_DESK,
    STOCK_RELEASE, unpaid,
};
use crate::time::Time;
use crate::unsolved::Unsolved;
use postroom::{Broker, Classify, Error, Failure, Message};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct Warehouse {
    shelves: Mutex<Shelves>,
}

struct Shelves {
    delivered: Book<String, u32>,
    on_hand: BTreeMap<String, u32>,
    /// By order, so that an order delivered twice takes its items once.
    reserved: Book<u64, (String, u32)>,
}

/// Lamps are few: they sell out.
const IN_THE_MORNING: [(&str, u32); 4] =
    [("kettle", 1_000_000), ("lamp", 500), ("chair", 1_000_000), ("teapot", 1_000_000)];

pub const TO_PAY_MINUTES: u32 = 30;

impl Warehouse {
    /// As it was left, or full.
    pub fn open(keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        let (delivered, reserved) = (keeping.book("delivered")?, keeping.book::<_, (String, u32)>("reserved")?);
        let mut on_hand: BTreeMap<String, u32> = delivered.clone();
        for (item, quantity) in reserved.values() {
            *on_hand.get_mut(item).ok_or("reserved, but never delivered")? -= quantity;
        }
        let warehouse = Self { shelves: Mutex::new(Shelves { delivered, on_hand, reserved }) };
        for (item, count) in IN_THE_MORNING {
            if !warehouse.shelves.lock().unwrap().delivered.contains_key(item) {
                warehouse.deliver(item, count);
            }
        }
        Ok(warehouse)
    }

    pub fn deliver(&self, item: &str, count: u32) {
        let mut shelves = self.shelves.lock().unwrap();
        let delivered = shelves.delivered.get(item).copied().unwrap_or(0) + count;
        shelves.delivered.insert(item.to_owned(), delivered);
        *shelves.on_hand.entry(item.to_owned()).or_default() += count;
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

    /// Of what nobody has reserved.
    fn on_hand(&self, item: &str) -> u32 {
        self.shelves.lock().unwrap().on_hand.get(item).copied().unwrap_or(0)
    }

    /// The orders that have their items.
    pub fn reserved(&self) -> Vec<u64> {
        self.shelves.lock().unwrap().reserved.keys().copied().collect()
    }

    /// Whether every item that was delivered is on its shelf or reserved for an order.
    pub fn is_complete(&self) -> bool {
        let shelves = self.shelves.lock().unwrap();
        shelves.delivered.iter().all(|(item, count)| {
            let reserved = shelves.reserved.values().filter(|(name, _)| name == item);
            shelves.on_hand[item] + reserved.map(|(_, quantity)| quantity).sum::<u32>() == *count
        })
    }
}

/// Items are set aside before anybody has paid for them, so each order starts a timer: when that fires, whoever
/// takes the money decides. Until then its message waits in their queue.
pub fn open(broker: &Broker, time: &Time, unsolved: &Unsolved, warehouse: Arc<Warehouse>) -> Result<Ready, Error> {
    let orders = broker.topic(ORDERS).declare()?;
    let placed = unsolved.queue(STOCK, |stock| stock.capacity(5_000))?;
    orders.bind(&placed, PLACED)?;
    let cancelled = unsolved.queue(STOCK_RELEASE, |release| release)?;
    orders.bind(&cancelled, CANCELLED)?;
    answer_questions(broker, warehouse.clone())?;

    let (shelves, next, to_pay) = (warehouse.clone(), orders.clone(), time.minutes(TO_PAY_MINUTES));
    let reserve = move |order: &Message<Order>| -> Result<(), Failure> {
        // Waiting brings no new items.
        shelves.reserve(order).permanent()?;
        // Delivered a second time, the same order only starts the same timer anew.
        let due = order.event().with_delay(to_pay).with_timer(unpaid(order.id));
        next.publish(DUE, due)?;
        next.publish(RESERVED, order.event())?;
        Ok(())
    };
    Ok(Box::new(move || {
        placed.consumer().workers(2).start(reserve)?;
        cancelled.consumer().start(move |order: &Message<Order>| warehouse.release(order))?;
        Ok(())
    }))
}

fn answer_questions(broker: &Broker, warehouse: Arc<Warehouse>) -> Result<(), Error> {
    let desk = broker.queue(STOCK_DESK).declare()?;
    broker.topic(QUESTIONS).declare()?.bind(&desk, HOW_MANY)?;
    desk.consumer().respond(move |question: &Message<Question>| -> Result<InStock, Failure> {
        Ok(InStock(warehouse.on_hand(&question.item)))
    })?;
    Ok(())
}
