//! Picks, packs and ships what is paid. Each order goes through these steps in their order, whatever the number
//! of workers; one that is stuck holds up only itself.

use crate::keeping::{Book, Keeping, Ready};
use crate::names::{Carrier, ORDERS, Order, PACKING, PAID, PARCELS, Parcel, SHIPPED, Step};
use crate::settings::Settings;
use crate::source::Dice;
use crate::time::Time;
use crate::unsolved::Unsolved;
use postroom::{Broker, Classify, Error, Exhausted, Failure, Message, Parked, Queue, Retry};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub struct Ramp {
    seed: u64,
    parcels: Mutex<Book<u64, (Step, Carrier)>>,
    out_of_order: AtomicU64,
    /// The machine that tapes parcels; one in a thousand jams it until it is repaired.
    repaired: AtomicBool,
}

impl Ramp {
    pub fn open(seed: u64, keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        let parcels = Mutex::new(keeping.book("parcels")?);
        Ok(Self { seed, parcels, out_of_order: AtomicU64::default(), repaired: AtomicBool::default() })
    }

    fn take_step(&self, parcel: &Message<Parcel>, by: Carrier) -> Result<(), Failure> {
        let (order, to) = (parcel.order.id, parcel.to);
        if to == Step::Packed && order % 1_000 == 500 && !self.repaired.load(Ordering::Relaxed) {
            return Err("the taping machine is jammed").transient();
        }
        let mut dice = Dice::new(self.seed ^ 0x5417, order * 8 + to as u64);
        if dice.below(10) == 0 && !parcel.redelivered() {
            return Err("the scanner reads nothing").transient();
        }
        let mut parcels = self.parcels.lock().unwrap();
        let before = parcels.get(&order).map(|(step, _)| *step);
        // A step that has been taken is taken again after a crash, and changes nothing.
        if before.is_some_and(|before| before >= to) {
            return Ok(());
        }
        self.out_of_order.fetch_add(u64::from(before != to.before()), Ordering::Relaxed);
        parcels.insert(order, (to, by));
        Ok(())
    }

    pub fn out_of_order(&self) -> u64 {
        self.out_of_order.load(Ordering::Relaxed)
    }

    /// Who carries it, of each order that has left the shop.
    pub fn shipped(&self) -> BTreeMap<u64, Carrier> {
        let parcels = self.parcels.lock().unwrap();
        parcels.iter().filter(|(_, (step, _))| *step == Step::Shipped).map(|(order, (_, by))| (*order, *by)).collect()
    }

    /// What was held back, and goes on now.
    pub fn repair(&self, parcels: &Queue<Parcel>) -> Vec<Parked> {
        self.repaired.store(true, Ordering::Relaxed);
        let held_back = parcels.parked();
        held_back.iter().for_each(|parcel| assert!(parcels.release_key(&parcel.key)));
        held_back
    }
}

pub fn open(
    broker: &Broker,
    time: &Time,
    (keeping, unsolved): (&Keeping, &Unsolved),
    ramp: Arc<Ramp>,
    settings: Arc<Settings>,
) -> Result<(Queue<Parcel>, Ready), Error> {
    let parcels = keeping
        .queue(broker, PARCELS)
        .capacity(5_000)
        .ordered_by(|parcel: &Parcel| parcel.order.id)
        .retry(Retry::fixed(time.seconds(1)).max_attempts(3))
        .on_exhausted(Exhausted::Park)
        .declare()?;
    let orders = broker.topic(ORDERS).find()?;
    let packing = unsolved.queue(PACKING, |packing| packing.capacity(5_000))?;
    orders.bind(&packing, PAID)?;

    let steps = parcels.clone();
    let pack = move |order: &Message<Order>| {
        let order = order.payload();
        Step::ALL.into_iter().try_for_each(|to| steps.send(Parcel { order: order.clone(), to }).map(drop))
    };
    let (queue, step) = (parcels.clone(), move |parcel: &Message<Parcel>| -> Result<(), Failure> {
        let by = settings.carrier();
        ramp.take_step(parcel, by)?;
        if parcel.to == Step::Shipped {
            orders.publish(SHIPPED, parcel.order.event())?;
        }
        Ok(())
    });
    let ready = Box::new(move || {
        packing.consumer().start(pack)?;
        queue.consumer().workers(8).start(step)?;
        Ok(())
    });
    Ok((parcels, ready))
}
