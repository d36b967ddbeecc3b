//! All that the modules know of each other.

use postroom::{DeadLetter, QueueName, TopicName};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Card {
    Good,
    Expired,
    Stolen,
}

/// Where customers come in: no faster than the shop can bear.
pub const GATE: TopicName<Order> = TopicName::new("gate");
/// What happens to orders. Each step listens to the one before it and says when it is done itself.
pub const ORDERS: TopicName<Order> = TopicName::new("orders");
pub const PLACED: &str = "order.placed";
pub const RESERVED: &str = "order.reserved";
pub const PAID: &str = "order.paid";
/// Delivered when the time to pay is over, unless the order is paid before.
pub const DUE: &str = "order.due";
pub const CANCELLED: &str = "order.cancelled";

pub const STOCK: QueueName<Order> = QueueName::new("stock");
pub const STOCK_RELEASE: QueueName<Order> = QueueName::new("stock-release");
pub const PAYMENT: QueueName<Order> = QueueName::new("payment");
pub const PAYMENT_DUE: QueueName<Order> = QueueName::new("payment-due");
pub const MAIL: QueueName<Order> = QueueName::new("mail");
/// What any of them gave up on.
pub const UNSOLVED: QueueName<DeadLetter<Order>> = QueueName::new("unsolved");

/// The timer that ends an order's time to pay.
pub fn unpaid(order: u64) -> String {
    format!("unpaid-{order}")
}
