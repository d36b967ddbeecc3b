//! For tests of logs and their groups.

use postroom::{Broker, Log, Simulation};
use std::ops::Range;

/// One named "log", in a simulation.
pub(crate) fn simulated(partitions: usize) -> (Broker, Simulation, Log<u64>) {
    let (broker, simulation) = Broker::simulated(7);
    let log = broker.log("log").partitions(partitions).declare().unwrap();
    (broker, simulation, log)
}

pub(crate) fn fill(log: &Log<u64>, range: Range<u64>) {
    range.for_each(|n| _ = log.append(n).unwrap());
}
