//! qubit-event-bus with its local provider.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use qubit_event_bus::{
    EventBus,
    local::LocalEventBusConfig,
    model::{AdmissionOutcome, PublishRequest, SubscribeRequest, Topic},
    spi::{ShutdownMode, ShutdownOutcome},
};

use crate::work::{Block, CAPACITY, Contestant, Outcome, Payload, Tally, arrivals::wait_until, crew};

pub const SELF: Contestant = Contestant {
    name: "qubit-event-bus",
    package: Some("qubit-event-bus"),
    note: "refuses when full, so its publisher tries again; retry and dead letters are its own; no routing keys",
};

pub fn one_to_one(n: u64) -> Outcome {
    let bus =
        EventBus::local(LocalEventBusConfig::new().queue_capacity(CAPACITY)).map_err(|error| error.to_string())?;
    let topic = Topic::<Block>::new("parcels").map_err(|error| error.to_string())?;
    // Its handlers may run on several threads at once.
    let seen = Arc::new(Mutex::new(Tally::default()));
    let tally = Arc::clone(&seen);
    let request = SubscribeRequest::new("deliveries", topic.clone()).map_err(|error| error.to_string())?;
    let subscription = bus.subscribe(request, move |delivery| tally.lock().unwrap().add(delivery.payload()));
    let _subscription = subscription.map_err(|error| error.to_string())?;
    let producer: crew::Thread = Box::new(|| {
        (0..n).for_each(|number| publish(&bus, &topic, number));
        wait_until(|| seen.lock().unwrap().count >= n);
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![producer])?;
    let report = bus.shutdown(ShutdownMode::Graceful { timeout: Duration::from_secs(10) });
    let report = report.map_err(|error| error.to_string())?;
    if report.outcome != ShutdownOutcome::Complete {
        return Err("the shutdown left messages behind".into());
    }
    let tally = *seen.lock().unwrap();
    tally.check::<Block>(n)?;
    Ok(elapsed)
}

fn publish(bus: &EventBus, topic: &Topic<Block>, number: u64) {
    loop {
        let request = PublishRequest::new(topic.clone(), Block::numbered(number)).expect("a valid request");
        match bus.publish(request).expect("it is open").admission_outcome() {
            AdmissionOutcome::Accepted(_) => return,
            AdmissionOutcome::NoneAccepted(_) => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}
