//! How time runs: virtual, or on threads and the real clock, 600 times as fast as in the shop.

use postroom::{Broker, Error, Event, Rate, Simulation};
use std::time::{Duration, SystemTime};

#[derive(Clone)]
pub struct Time {
    /// Drives the whole shop on one thread; none with threads.
    simulation: Option<Simulation>,
    /// What a minute of the shop takes on the broker's clock.
    minute: Duration,
}

/// The broker and its time. Nothing else in the shop depends on how it runs.
pub fn start(
    threads: bool,
    seed: u64,
    file: Option<&str>,
    on_event: impl Fn(&Event) + Send + Sync + 'static,
) -> Result<(Broker, Time), Error> {
    let builder = Broker::builder().seed(seed).on_event(on_event);
    #[cfg(feature = "sqlite")]
    let builder = if let Some(file) = file { builder.store(file) } else { builder };
    #[cfg(not(feature = "sqlite"))]
    let _ = file; // refused before
    if threads {
        return Ok((builder.build()?, Time { simulation: None, minute: Duration::from_millis(100) }));
    }
    let (broker, simulation) = builder.build_simulated()?;
    Ok((broker, Time { simulation: Some(simulation), minute: Duration::from_secs(60) }))
}

impl Time {
    pub fn minutes(&self, n: u32) -> Duration {
        self.minute * n
    }

    pub fn seconds(&self, n: u32) -> Duration {
        self.minute * n / 60
    }

    pub fn per_second(&self, n: u32) -> Rate {
        Rate::per_second(f64::from(n) / self.seconds(1).as_secs_f64())
    }

    /// The time of the broker's clock.
    pub fn now(&self) -> SystemTime {
        self.simulation.as_ref().map_or_else(SystemTime::now, Simulation::now)
    }

    /// Lets time pass; meanwhile the shop works.
    pub fn pass(&self, time: Duration) {
        match &self.simulation {
            Some(simulation) => _ = simulation.advance(time),
            None => std::thread::sleep(time),
        }
    }

    /// How long a call to somebody outside takes. Virtual time stands still during a handling.
    pub fn call(&self, takes: Duration) -> Duration {
        if self.simulation.is_some() { Duration::ZERO } else { takes }
    }
}
