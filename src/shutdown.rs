//! Coming to rest, and saying what was left.

use crate::broker::AnyQueue;
use crate::clock::Timestamp;
use crate::consumer::Crew;
use crate::half::AnyHalves;
use crate::log::AnyLog;
use crate::runtime::Runtime;
use crate::simulation::Until;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What [`Broker::shutdown`](crate::Broker::shutdown) left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Queues that still hold messages, dead-letter queues apart; [`Queue::drain`](crate::Queue::drain)
    /// takes them out, typed. Also subscribers whose handler had not got to all when the time was up; those
    /// messages are gone; and, under their topic's name, those that were delayed for subscribers. Also, as `log/group`, the groups of logs that are not at the end; a
    /// [`Reader`](crate::Reader) takes out what they have not handled.
    pub undelivered: Vec<Leftover>,
    /// Dead-letter queues that hold messages.
    pub dead_letters: Vec<Leftover>,
    /// Durable queues that hold messages, dead letters among them, and topics with durable half messages, which
    /// count as delayed. Nothing of them is lost: they stay in the broker's file, until the queue or topic is declared
    /// on it again.
    #[serde(default)]
    pub stored: Vec<Leftover>,
    /// Topics with half messages that nobody has settled, and how many those are;
    /// [`Topic::drain_halves`](crate::Topic::drain_halves) takes them out, typed.
    #[serde(default)]
    pub half_messages: Vec<(String, u64)>,
    /// Queues whose workers did not come back from their handler in time, and how many those are. Also the
    /// tables of relays that could not end in time.
    pub stuck_workers: Vec<(String, usize)>,
}

/// What one queue still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leftover {
    /// The queue's name, the subscriber's, the topic's, or the log's and the group's (`log/group`).
    pub queue: String,
    /// Messages that were never handed out, or came back.
    pub ready: u64,
    /// Messages that wait for a delay or a retry that was not due in time.
    pub delayed: u64,
    /// Messages handed out and never settled.
    pub in_flight: u64,
}

impl Leftover {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ready + self.delayed + self.in_flight
    }
}

impl ShutdownReport {
    /// Whether everything accepted was settled or became a dead letter, and every thread has ended.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.undelivered.is_empty() && self.half_messages.is_empty() && self.stuck_workers.is_empty()
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() && self.dead_letters.is_empty() && self.stored.is_empty() {
            return f.write_str("nothing left");
        }
        for (kind, leftovers) in [
            ("undelivered", &self.undelivered),
            ("dead letters", &self.dead_letters),
            ("kept in the file", &self.stored),
        ] {
            for l in leftovers {
                writeln!(
                    f,
                    "{kind} in {:?}: {} ready, {} delayed, {} in flight",
                    l.queue, l.ready, l.delayed, l.in_flight
                )?;
            }
        }
        for (topic, n) in &self.half_messages {
            writeln!(f, "{n} open half messages of {topic:?}")?;
        }
        self.stuck_workers.iter().try_for_each(|(queue, n)| writeln!(f, "{n} workers of {queue:?} did not return"))
    }
}

/// For workers to come back once their queues are closed, beyond the timeout.
const GRACE: Duration = Duration::from_millis(30);

/// Everything that holds messages.
pub(crate) struct Places {
    pub(crate) queues: Vec<Arc<dyn AnyQueue>>,
    pub(crate) logs: Vec<Arc<dyn AnyLog>>,
    pub(crate) halves: Vec<Arc<dyn AnyHalves>>,
}

pub(crate) fn run(runtime: &Runtime, places: &Places, timeout: Duration) -> ShutdownReport {
    let deadline = Instant::now().checked_add(timeout);
    let queues = &places.queues;
    places.halves.iter().for_each(|halves| halves.start_draining());
    runtime.companions().iter().for_each(|companion| companion.stop_bringing());
    places.logs.iter().for_each(|log| log.start_draining());
    queues.iter().for_each(|queue| queue.start_draining());
    runtime.rings().iter().for_each(|ring| ring.start_draining());
    // From a handler, its own message would be waited for in vain.
    if !runtime.is_worker() {
        wait_idle(runtime, places, timeout);
    }
    let crews = runtime.crews();
    crews.iter().for_each(|crew| crew.order_stop());
    if join_all(&crews, deadline).is_empty() {
        return finish(runtime, places, deadline, Vec::new());
    }
    // Those who wait for room, a message or a reply from some queue have not failed to return: let them.
    queues.iter().for_each(|queue| queue.close());
    queues.iter().for_each(|queue| queue.end_requests());
    runtime.rings().iter().for_each(|ring| ring.close());
    let stuck_workers = join_all(&crews, Some(Instant::now() + GRACE));
    finish(runtime, places, deadline, stuck_workers)
}

/// The queues whose workers were late, with the number of those.
fn join_all(crews: &[Arc<dyn Crew>], deadline: Option<Instant>) -> Vec<(String, usize)> {
    let late = crews.iter().map(|crew| (crew.queue().to_owned(), crew.join(deadline)));
    late.filter(|(_, late)| *late > 0).collect()
}

fn finish(
    runtime: &Runtime,
    places: &Places,
    deadline: Option<Instant>,
    mut stuck_workers: Vec<(String, usize)>,
) -> ShutdownReport {
    runtime.scheduler.stop();
    places.halves.iter().for_each(|halves| halves.end());
    for companion in runtime.take_companions() {
        let late = companion.end(deadline);
        stuck_workers.extend((late > 0).then(|| (companion.name().to_owned(), late)));
    }
    places.queues.iter().for_each(|queue| queue.end());
    places.logs.iter().for_each(|log| log.end());
    let rings = runtime.rings();
    rings.iter().for_each(|ring| ring.close());
    let mut report = report(places, stuck_workers);
    report.undelivered.extend(rings.iter().flat_map(|ring| ring.leftovers()));
    report
}

fn report(places: &Places, stuck_workers: Vec<(String, usize)>) -> ShutdownReport {
    let mut report = ShutdownReport { stuck_workers, ..ShutdownReport::default() };
    for halves in places.halves.iter().filter(|halves| halves.open() > 0) {
        let (topic, open) = (halves.topic().to_owned(), halves.open());
        if halves.stay() {
            report.stored.push(Leftover { queue: topic, ready: 0, delayed: open, in_flight: 0 });
        } else {
            report.half_messages.push((topic, open));
        }
    }
    for log in &places.logs {
        let list = if log.is_durable() { &mut report.stored } else { &mut report.undelivered };
        list.extend(log.leftovers().into_iter().filter(|left| left.total() > 0));
    }
    for queue in &places.queues {
        let stats = queue.stats();
        let leftover =
            Leftover { queue: stats.name, ready: stats.ready, delayed: stats.delayed, in_flight: stats.in_flight };
        if leftover.total() > 0 {
            if queue.is_durable() {
                report.stored.push(leftover);
                continue;
            }
            let list = if queue.holds_dead_letters() { &mut report.dead_letters } else { &mut report.undelivered };
            list.push(leftover);
        }
    }
    report
}

/// Waits until every queue is at rest that somebody empties; whether it came to that in time.
pub(crate) fn wait_idle(runtime: &Runtime, places: &Places, timeout: Duration) -> bool {
    let now = runtime.clock.now();
    let horizon = now.after(timeout);
    if runtime.is_simulated() {
        // With threads, what is committed is published in its own time; here, nobody would do it.
        let bringing = || runtime.companions().iter().any(|companion| companion.is_busy(horizon));
        let end = runtime.simulate_until(Some(horizon), || !bringing() && at_rest(runtime, places, horizon));
        return end == Until::Done;
    }
    // On a manual clock nothing becomes due by waiting.
    let horizon = if runtime.clock.is_manual() { now } else { horizon };
    runtime.watch(Instant::now().checked_add(timeout), || at_rest(runtime, places, horizon))
}

/// Whether all queues are at rest at one moment. Looking at them one after the other could miss a message
/// that moves from a queue not yet seen to one already seen; if nothing at all has moved between two
/// looks, none did.
fn at_rest(runtime: &Runtime, places: &Places, horizon: Timestamp) -> bool {
    let rings = runtime.rings();
    let look = || {
        let queues = places.queues.iter().map(|queue| queue.unrest(horizon));
        let logs = places.logs.iter().map(|log| log.unrest(horizon));
        let halves = places.halves.iter().map(|halves| halves.unrest(horizon));
        let mut all = queues.chain(logs).chain(halves).chain(rings.iter().map(|ring| ring.unrest(horizon)));
        all.try_fold(0_u64, |moves, (unrest, moved)| (unrest == 0).then(|| moves.wrapping_add(moved)))
    };
    let first = look();
    first.is_some() && first == look()
}
