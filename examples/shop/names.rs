//! All that the modules know of each other.

use postroom::{DeadLetter, LogName, Message, QueueName, TopicName};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Chosen by the customer's side: it is what makes every step idempotent.
    pub id: u64,
    pub customer: String,
    pub item: String,
    pub quantity: u32,
    pub cents: u64,
    pub card: Card,
}

impl Order {
    /// What is published when something has happened to it: its number keeps its events together.
    pub fn event(&self) -> Message<Self> {
        Message::new(self.clone()).with_key(self.id.to_string())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Card {
    Good,
    Expired,
    Stolen,
}

/// Where customers come in, no faster than the shop can bear. Answered with an `Answer`.
pub const GATE: TopicName<Order> = TopicName::new("gate");
pub const ORDER_DESK: QueueName<Order> = QueueName::new("order-desk");

/// What is placed, where the orders are in the broker's file.
#[cfg(feature = "sqlite")]
pub const TRAY: QueueName<Order> = QueueName::new("tray");

/// What a customer hears, or why the order could not be placed.
pub type Answer = Result<Placed, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    Now,
    /// An order of that number has been placed already; this one changes nothing.
    Before,
}

/// What happens to orders. Each step listens to the one before it and says when it is done itself.
pub const ORDERS: TopicName<Order> = TopicName::new("orders");
pub const PLACED: &str = "order.placed";
pub const RESERVED: &str = "order.reserved";
pub const PAID: &str = "order.paid";
pub const SHIPPED: &str = "order.shipped";
pub const CANCELLED: &str = "order.cancelled";
/// Nothing that happens, but a reminder: delivered when the time to pay is over, unless the order is paid before.
pub const DUE: &str = "payment.due";
/// All that happened, to be read again.
pub const JOURNAL: LogName<Order> = LogName::new("journal");

/// Which orders are finished, where orders are kept.
#[cfg(feature = "sqlite")]
pub const ORDER_BOOK: QueueName<Order> = QueueName::new("order-book");
pub const STOCK: QueueName<Order> = QueueName::new("stock");
pub const STOCK_RELEASE: QueueName<Order> = QueueName::new("stock-release");
pub const PAYMENT: QueueName<Order> = QueueName::new("payment");
pub const PAYMENT_DUE: QueueName<Order> = QueueName::new("payment-due");
pub const MAIL: QueueName<Order> = QueueName::new("mail");
pub const PACKING: QueueName<Order> = QueueName::new("packing");
/// What any of them gave up on.
pub const UNSOLVED: QueueName<DeadLetter<Order>> = QueueName::new("unsolved");

/// The timer that ends an order's time to pay.
pub fn unpaid(order: u64) -> String {
    format!("unpaid-{order}")
}

/// The steps of an order that is paid, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    Picked,
    Packed,
    Shipped,
}

impl Step {
    pub const ALL: [Self; 3] = [Self::Picked, Self::Packed, Self::Shipped];

    pub fn before(self) -> Option<Self> {
        match self {
            Self::Picked => None,
            Self::Packed => Some(Self::Picked),
            Self::Shipped => Some(Self::Packed),
        }
    }
}

/// An order is to take this step.
#[derive(Serialize, Deserialize)]
pub struct Parcel {
    pub order: Order,
    pub to: Step,
}

pub const PARCELS: QueueName<Parcel> = QueueName::new("parcels");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    Post,
    Courier,
}

/// What the office decides; the name of a setting is the message's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// Of one piece, in cents.
    Price(u64),
    Switch(bool),
}

pub const SETTINGS: TopicName<Setting> = TopicName::new("settings");
/// Whether parcels go by courier rather than by post.
pub const COURIER: &str = "switch.courier";

pub fn price(item: &str) -> String {
    format!("price.{item}")
}

/// What modules ask each other about an item.
pub struct Question {
    pub item: String,
}

pub const QUESTIONS: TopicName<Question> = TopicName::new("questions");
/// Answered with `InStock`.
pub const HOW_MANY: &str = "how.many";
/// Answered with a `Quote`.
pub const WHAT_PRICE: &str = "what.price";

#[derive(Debug)]
pub struct InStock(pub u32);

#[derive(Debug)]
pub struct Quote {
    pub cents_each: u64,
}

pub const STOCK_DESK: QueueName<Question> = QueueName::new("stock-desk");
pub const PRICES: QueueName<Question> = QueueName::new("prices");
