//! Tells customers that their order is paid.

use crate::keeping::{Book, Keeping, Ready};
use crate::names::{Carrier, MAIL, ORDERS, Order, PAID};
use crate::settings::Settings;
use crate::time::Time;
use crate::unsolved::Unsolved;
use postroom::{Broker, Error, Message, Retry};
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
    told: Mutex<Book<u64, (String, Carrier)>>,
}

const REFUSED_CONNECTIONS: u64 = 300;

impl MailServer {
    pub fn open(time: &Time, keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        let call = time.call(Duration::from_micros(100));
        let told = Mutex::new(keeping.book("told")?);
        Ok(Self { call, repaired: AtomicBool::default(), connections: AtomicU64::default(), told })
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
        BTreeMap::clone(&self.told.lock().unwrap())
    }
}

pub fn open(
    broker: &Broker,
    time: &Time,
    unsolved: &Unsolved,
    server: Arc<MailServer>,
    settings: Arc<Settings>,
) -> Result<Ready, Error> {
    let retry = Retry::fixed(time.seconds(1)).max_attempts(3);
    let queue = unsolved.queue(MAIL, |mail| mail.capacity(5_000).retry(retry))?;
    broker.topic(ORDERS).declare()?.bind(&queue, PAID)?;
    let send = move |order: &Message<Order>| {
        let by = settings.carrier();
        server.send(order, by)
    };
    Ok(Box::new(move || queue.consumer().workers(4).start(send).map(drop)))
}
