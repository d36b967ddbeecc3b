//! Tells customers that their order is paid.

use crate::names::{COURIER, Carrier, MAIL, ORDERS, Order, PAID};
use crate::settings::Settings;
use crate::time::Time;
use postroom::{Broker, DeadLetter, Error, Message, Queue, Retry};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Down for its first connections, or until it is repaired.
pub struct MailServer {
    call: Duration,
    repaired: AtomicBool,
    connections: AtomicU64,
    told: Mutex<BTreeMap<u64, (String, Carrier)>>,
}

const REFUSED_CONNECTIONS: u64 = 300;

impl MailServer {
    pub fn new(time: &Time) -> Self {
        let call = time.call(Duration::from_micros(100));
        Self { call, repaired: AtomicBool::default(), connections: AtomicU64::default(), told: Mutex::default() }
    }

    fn send(&self, order: &Order, by: Carrier) -> io::Result<()> {
        std::thread::sleep(self.call);
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        if connection < REFUSED_CONNECTIONS && !self.repaired.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "mail server refuses connections"));
        }
        self.told.lock().unwrap().insert(order.id, (order.customer.clone(), by));
        Ok(())
    }

    pub fn repair(&self) {
        self.repaired.store(true, Ordering::Relaxed);
    }

    /// Who got a mail, and who is to bring the parcel, by order.
    pub fn told(&self) -> BTreeMap<u64, (String, Carrier)> {
        self.told.lock().unwrap().clone()
    }
}

pub fn start(
    broker: &Broker,
    time: &Time,
    unsolved: &Queue<DeadLetter<Order>>,
    server: Arc<MailServer>,
    settings: Arc<Settings>,
) -> Result<(), Error> {
    let retry = Retry::fixed(time.seconds(1)).max_attempts(3);
    let queue = broker.queue(MAIL).capacity(5_000).retry(retry).dead_letter_to(unsolved).declare()?;
    broker.topic(ORDERS).declare()?.bind(&queue, PAID)?;
    queue.consumer().workers(4).start(move |order: &Message<Order>| {
        let by = if settings.is_on(COURIER) { Carrier::Courier } else { Carrier::Post };
        server.send(order, by)
    })?;
    Ok(())
}
