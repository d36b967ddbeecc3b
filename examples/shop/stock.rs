//! Reserves what was ordered.

use crate::names::{
    CANCELLED, DUE, HOW_MANY, InStock, ORDERS, Order, PLACED, QUESTIONS, Question, RESERVED, STOCK, STOCK_DESK,
    STOCK_RELEASE, unpaid,
};
use crate::time::Time;
use postroom::{Broker, Classify, DeadLetter, Error, Failure, Message, Queue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct Warehouse {
    shelves: Mutex<Shelves>,
}

#[derive(Default)]
struct Shelves {
    delivered: BTreeMap<String, u32>,
    on_hand: BTreeMap<String, u32>,
    /// By order, so that an order delivered twice takes its items once.
    reserved: BTreeMap<u64, (String, u32)>,
}

/// Lamps are few: they sell out.
const IN_THE_MORNING: [(&str, u32); 4] =
    [("kettle", 1_000_000), ("lamp", 500), ("chair", 1_000_000), ("teapot", 1_000_000)];

pub const TO_PAY_MINUTES: u32 = 30;

impl Warehouse {
    pub fn stocked() -> Self {
        let warehouse = Self { shelves: Mutex::default() };
        IN_THE_MORNING.iter().for_each(|(item, count)| warehouse.deliver(item, *count));
        warehouse
    }

    pub fn deliver(&self, item: &str, count: u32) {
        let mut shelves = self.shelves.lock().unwrap();
        *shelves.delivered.entry(item.to_owned()).or_default() += count;
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
        let due = order.event().with_delay(to_pay).with_timer(unpaid(order.id));
        next.publish(DUE, due)?;
        next.publish(RESERVED, order.event())?;
        Ok(())
    })?;

    let cancelled = broker.queue(STOCK_RELEASE).dead_letter_to(unsolved).declare()?;
    orders.bind(&cancelled, CANCELLED)?;
    let shelves = warehouse.clone();
    cancelled.consumer().start(move |order: &Message<Order>| shelves.release(order))?;
    answer_questions(broker, warehouse)
}

fn answer_questions(broker: &Broker, warehouse: Arc<Warehouse>) -> Result<(), Error> {
    let desk = broker.queue(STOCK_DESK).declare()?;
    broker.topic(QUESTIONS).declare()?.bind(&desk, HOW_MANY)?;
    desk.consumer().respond(move |question: &Message<Question>| -> Result<InStock, Failure> {
        Ok(InStock(warehouse.on_hand(&question.item)))
    })?;
    Ok(())
}
