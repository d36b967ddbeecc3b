//! What the scenarios for the model checker share.

use postroom::{Broker, ManualClock};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use std::time::Duration;

const ITERATIONS: usize = 3_000;
/// More than ten times what any scenario takes; one that gets there is going round in circles.
const MOST_STEPS: usize = 50_000;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Explores at random, then with few but adversarial preemptions.
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = shuttle::Config::new();
    config.max_steps = shuttle::MaxSteps::FailAfter(MOST_STEPS);
    let random = RandomScheduler::new(ITERATIONS);
    shuttle::Runner::new(random, config.clone()).run(scenario.clone());
    shuttle::Runner::new(PctScheduler::new(3, ITERATIONS), config).run(scenario);
}

pub(crate) fn broker() -> (Broker, ManualClock) {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).seed(1).build().unwrap();
    (broker, clock)
}
