//! postroom's subscribers: one shared ring, each with a place of its own in it.

use std::{array, iter, sync::Arc, time::Duration};

use postroom::{Broker, Lag, Message, Subscriber, Topic};

use crate::work::{
    BATCH, CAPACITY, Contestant, Outcome, Payload, Tally,
    arrivals::{Slot, wait_until},
    crew,
    crew::Share,
};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "received one at a time, shared by Arc; any number of publishers, late subscribers, lag policies",
};

pub const BATCHES: Contestant = Contestant {
    name: "postroom, in batches",
    package: Some("postroom"),
    note: "as above, received up to 64 at a time",
};

pub const HANDLER: Contestant = Contestant {
    name: "postroom, handler",
    package: Some("postroom"),
    note: "as above, handled by reference on a thread of each subscriber; panics contained",
};

pub fn received<T: Payload, const N: usize>(n: u64) -> Outcome {
    receiving::<T, N>(n, |subscriber| {
        let mut tally = Tally::default();
        while let Ok(message) = subscriber.recv() {
            tally.add(message.payload());
        }
        tally
    })
}

pub fn received_in_batches<T: Payload, const N: usize>(n: u64) -> Outcome {
    receiving::<T, N>(n, |subscriber| {
        let mut tally = Tally::default();
        while let Ok(messages) = subscriber.recv_batch(BATCH) {
            messages.iter().for_each(|message| tally.add(message.payload()));
        }
        tally
    })
}

pub fn handled<T: Payload, const N: usize>(n: u64) -> Outcome {
    let (broker, topic) = declare::<T>();
    let slots: Arc<[Slot; N]> = Arc::new(array::from_fn(|_| Slot::default()));
    for index in 0..N {
        let slots = Arc::clone(&slots);
        let handler = move |message: &Message<T>| slots[index].add(message.payload());
        let subscriber = topic.subscribe().capacity(CAPACITY).lag(Lag::Block);
        subscriber.start(handler).expect("its thread starts");
    }
    let publisher: crew::Thread = Box::new(|| {
        publish(&topic, Share::of(0..n));
        wait_until(|| slots.iter().all(|slot| slot.tally().count >= n));
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![publisher])?;
    broker.shutdown(Duration::from_secs(10));
    crew::each_saw_all::<T>(n, slots.iter().map(Slot::tally))?;
    Ok(elapsed)
}

/// The subscribers go on until the broker is gone and they have received everything.
fn receiving<T: Payload, const N: usize>(n: u64, receive: fn(Subscriber<T>) -> Tally) -> Outcome {
    let (broker, topic) = declare::<T>();
    let open = || topic.subscribe().capacity(CAPACITY).lag(Lag::Block).open().expect("a new subscriber");
    let subscribers: Vec<_> = iter::repeat_with(open).take(N).map(|subscriber| move || receive(subscriber)).collect();
    let publisher = |share: Share<T>| {
        publish(&topic, share);
        broker.shutdown(Duration::ZERO);
    };
    crew::fan_out(n, publisher, subscribers)
}

fn declare<T: Payload>() -> (Broker, Topic<T>) {
    let broker = Broker::new();
    let topic = broker.topic("parcels").declare().expect("a new topic");
    (broker, topic)
}

fn publish<T: Payload>(topic: &Topic<T>, share: Share<T>) {
    for message in share {
        assert!(topic.publish("parcel.sent", message).is_ok());
    }
}
