//! Where orders are placed: on the topic at once, in a database with an outbox, or in the broker's own file.

#[cfg(not(feature = "sqlite"))]
mod memory;
#[cfg(feature = "sqlite")]
mod file;
#[cfg(feature = "sqlite")]
mod one_file;
#[cfg(feature = "sqlite")]
mod outbox;

use crate::keeping::Keeping;
use crate::names::{Order, Placed};
use crate::time::Time;
use postroom::Broker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type AnyError = Box<dyn std::error::Error>;

/// One way to place orders.
pub trait Placing: Send + Sync {
    /// Everybody has to be listening: a message that nobody wants is not kept.
    fn start(&self, broker: &Broker, time: &Time) -> Result<(), AnyError>;

    fn print(&self);

    /// An order that is refused has no message either.
    fn place(&self, order: &Order) -> Result<Placed, AnyError>;

    /// Placed by earlier runs of the shop, and this run's business.
    fn left_over(&self) -> &BTreeMap<u64, Order>;

    /// Lets time pass until every order has been handled by those who listen for it.
    fn deliver_all(&self, time: &Time) -> Result<(), AnyError>;

    /// # Panics
    /// If what was placed is not what the books say.
    fn check(
        &self,
        placed: &BTreeMap<u64, Order>,
        shipped: &BTreeSet<u64>,
        cancelled: &BTreeSet<u64>,
    ) -> Result<(), AnyError>;

    fn close(&self) -> Result<(), AnyError>;
}

#[cfg(feature = "sqlite")]
pub fn open(database: Option<&str>, keeping: &Keeping) -> Result<Arc<dyn Placing>, AnyError> {
    Ok(match keeping.file() {
        Some(file) => one_file::OneFile::open(keeping, file)?,
        None => outbox::Outbox::open(database)?,
    })
}

#[cfg(not(feature = "sqlite"))]
pub fn open(database: Option<&str>, _: &Keeping) -> Result<Arc<dyn Placing>, AnyError> {
    Ok(memory::Memory::open(database)?)
}
