//! Notes what the owner of the shop should hear about.

use crate::names::PAYMENT;
use crate::time::Time;
use postroom::{Alarm, Broker, Error, Event};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Watch {
    log: Mutex<Vec<String>>,
}

impl Watch {
    pub fn note(&self, line: impl Into<String>) {
        self.log.lock().unwrap().push(line.into());
    }

    pub fn hear(&self, event: &Event) {
        match event {
            Event::CircuitOpened { queue, failures: 1, of: 1 } => {
                self.note(format!("{queue}: the gateway is still down"))
            }
            Event::CircuitOpened { queue, failures, of } => {
                self.note(format!("{queue}: {failures} of the last {of} calls failed, so none is made for a while"));
            }
            Event::CircuitClosed { queue, .. } => self.note(format!("{queue}: the gateway is back, all workers go on")),
            Event::KeyParked { queue, key, .. } => {
                self.note(format!("{queue}: order {key} is stuck, all others go on"))
            }
            Event::OutboxFailing { error, .. } => self.note(format!("orders: the database fails: {error}")),
            Event::OutboxRecovered { .. } => self.note("orders: the database works again"),
            // Whatever it is, it is among the unsolved.
            Event::OutboxRowDead { .. } => {}
            other => eprintln!("   [broker] {other:?}"),
        }
    }

    pub fn print(&self) {
        let log = self.log.lock().unwrap();
        if log.is_empty() {
            println!("   nothing");
        }
        // One line for many equal ones.
        for same in log.chunk_by(|one, other| one == other) {
            let times = if same.len() > 1 { format!(" ({} times)", same.len()) } else { String::new() };
            println!("   {}{times}", same[0]);
        }
    }
}

/// Knows nothing of payment but the name of its queue.
pub fn start(broker: &Broker, time: &Time, watch: Arc<Watch>) -> Result<(), Error> {
    let alarm = Alarm::backlog(500, 50).every(time.seconds(5));
    broker.queue(PAYMENT).find()?.alarm(alarm, move |alert| watch.note(alert.to_string()))?;
    Ok(())
}
