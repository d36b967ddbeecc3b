//! postroom's queue, ordered by key and not.

use std::{sync::Arc, time::Duration};

use postroom::{Broker, Message, Queue, QueueBuilder};

use super::{Keys, Progress, Step, WORKERS, check};
use crate::work::{CAPACITY, Contestant, Outcome, Tally, arrivals::Arrivals, crew};

pub const SELF: Contestant = Contestant {
    name: "postroom",
    package: Some("postroom"),
    note: "ordered_by: ack, retry and dead letters; a failing key keeps its order and holds up no other",
};

pub const PLAIN: Contestant =
    Contestant { name: "postroom, plain queue", package: Some("postroom"), note: "ack, retry, dead letters; no order" };

pub fn ordered(n: u64, keys: Keys) -> Outcome {
    let progress = Arc::new(Progress::new());
    let took = handled(n, keys(), |queue| queue.ordered_by(|step: &Step| step.key), &progress)?;
    progress.was_in_order()?;
    Ok(took)
}

pub fn plain(n: u64, keys: Keys) -> Outcome {
    handled(n, keys(), |queue| queue, &Arc::new(Progress::new()))
}

fn handled(
    n: u64,
    keys: &'static [u64],
    settings: fn(QueueBuilder<Step>) -> QueueBuilder<Step>,
    progress: &Arc<Progress>,
) -> Outcome {
    let broker = Broker::new();
    let queue: Queue<Step> = settings(broker.queue("steps").capacity(CAPACITY)).declare().expect("a new queue");
    let arrivals = Arc::new(Arrivals::default());
    let (seen, progress) = (arrivals.clone(), progress.clone());
    let handler = move |step: &Message<Step>| {
        progress.note(step.payload());
        seen.add(step.payload());
    };
    queue.consumer().workers(WORKERS).start(handler).expect("workers start");
    let producer: crew::Thread = Box::new(|| {
        (0..n).for_each(|number| assert!(queue.send(Step::of(keys, number)).is_ok()));
        arrivals.wait_for(n);
        Tally::default()
    });
    let (elapsed, _) = crew::time(vec![producer])?;
    if !broker.shutdown(Duration::from_secs(10)).is_clean() {
        return Err("the shutdown left messages behind".into());
    }
    check(arrivals.tally(), n)?;
    Ok(elapsed)
}
