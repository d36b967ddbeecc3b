//! Which workers wait for room, and whether any of them waits for ever.

use crate::scheduler::TimedId;
use crate::sync::{AtomicU64, Mutex, Ordering};
use std::sync::{Arc, Weak};

/// A queue somebody waits for.
pub(crate) trait Awaited: Send + Sync {
    /// Has those who wait look again.
    fn wake_everyone(&self);
    /// Whether who waits for room has to wait on: there is none, and it is not closed.
    fn keeps_waiting(&self) -> bool;
}

/// A queue, for telling apart and for telling about.
#[derive(Clone)]
pub(crate) struct QueueRef {
    pub(crate) id: TimedId,
    pub(crate) name: Arc<str>,
}

/// A worker of one queue that waits for room in another.
struct Wait {
    ticket: u64,
    works_for: QueueRef,
    waits_for: QueueRef,
    queue: Weak<dyn Awaited>,
}

/// All of them, of one broker. Looked at only by workers about to block, so it costs others nothing.
#[derive(Default)]
pub(crate) struct Waits {
    waiting: Mutex<Waiting>,
    /// How often somebody has left on whom a wait may have counted.
    changes: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    next_ticket: u64,
    waits: Vec<Wait>,
}

/// Names a wait until it is over.
pub(crate) struct Ticket(u64);

impl Waits {
    /// Enters a wait that is about to begin.
    pub(crate) fn begin(&self, works_for: QueueRef, waits_for: QueueRef, queue: Weak<dyn Awaited>) -> Ticket {
        let mut waiting = self.waiting.lock();
        let ticket = waiting.next_ticket;
        waiting.next_ticket += 1;
        waiting.waits.push(Wait { ticket, works_for, waits_for, queue });
        Ticket(ticket)
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self, ticket: &Ticket) {
        self.waiting.lock().waits.retain(|wait| wait.ticket != ticket.0);
    }

    /// The circle of queues in which this wait would last for ever, as "a -> b -> a"; `None` if somebody
    /// may still come and take a message. `drainers` says how many workers can empty a queue, or `None` if
    /// others than workers may.
    pub(crate) fn circle(&self, ticket: &Ticket, drainers: impl Fn(TimedId) -> Option<usize>) -> Option<String> {
        // Outlives the lock: it may hold the last handle to a queue.
        let queues: Vec<Option<Arc<dyn Awaited>>>;
        let waiting = self.waiting.lock();
        let mine = waiting.waits.iter().find(|wait| wait.ticket == ticket.0)?;
        queues = waiting.waits.iter().map(|wait| wait.queue.upgrade()).collect();
        // A worker for whom there is room by now only has not woken up yet.
        let stays = |queue: &Option<Arc<dyn Awaited>>| queue.as_ref().is_none_or(|queue| queue.keeps_waiting());
        let stuck_waits = waiting.waits.iter().zip(&queues).filter(|(_, queue)| stays(queue));
        let edges: Vec<_> = stuck_waits.map(|(wait, _)| (wait.works_for.id, wait.waits_for.id)).collect();
        let path = stuck(&edges, mine.works_for.id, mine.waits_for.id, drainers)?;
        let name = |id: &TimedId| {
            let refs = waiting.waits.iter().flat_map(|wait| [&wait.works_for, &wait.waits_for]);
            refs.filter(|queue| queue.id == *id).map(|queue| queue.name.to_string()).next().unwrap_or_default()
        };
        Some(path.iter().map(name).collect::<Vec<_>>().join(" -> "))
    }

    /// Called when a worker has left: who counted on it has to look again.
    pub(crate) fn look_again(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let queues: Vec<_> = self.waiting.lock().waits.iter().filter_map(|wait| wait.queue.upgrade()).collect();
        queues.iter().for_each(|queue| queue.wake_everyone());
    }
}

/// Whether a worker of `from` that waits for `to` waits for ever: every worker that could make room there
/// waits itself, for queues of which the same is true. Any one of a queue's workers is enough to go on,
/// so all of them have to be stuck. Answers the way round, from `from` back to it.
fn stuck(
    waits: &[(TimedId, TimedId)],
    from: TimedId,
    to: TimedId,
    drainers: impl Fn(TimedId) -> Option<usize>,
) -> Option<Vec<TimedId>> {
    // Each queue with the one whose workers led to it.
    let mut reached = vec![(to, from)];
    let mut next = 0;
    while let Some(&(queue, _)) = reached.get(next) {
        next += 1;
        let blocked: Vec<_> = waits.iter().filter(|(works_for, _)| *works_for == queue).collect();
        if drainers(queue)? > blocked.len() {
            return None;
        }
        for &&(_, waits_for) in &blocked {
            if reached.iter().all(|(seen, _)| *seen != waits_for) {
                reached.push((waits_for, queue));
            }
        }
    }
    Some(way(&reached, from, to))
}

/// From `from` over `to` back to `from`, or to the farthest queue reached.
fn way(reached: &[(TimedId, TimedId)], from: TimedId, to: TimedId) -> Vec<TimedId> {
    let end = if reached.iter().any(|(queue, _)| *queue == from) { from } else { reached[reached.len() - 1].0 };
    let mut path = vec![end];
    while let Some(&last) = path.last()
        && last != to
    {
        let Some((_, via)) = reached.iter().find(|(queue, _)| *queue == last) else { break };
        path.push(*via);
    }
    path.push(from);
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<TimedId> {
        text.bytes().map(|b| TimedId::for_test(u64::from(b))).collect()
    }

    /// `waits` as "AB" pairs (a worker of A waits for B), `workers` as letters, one per worker.
    fn look(waits: &[&str], workers: &str, external: &str) -> Option<String> {
        let edges: Vec<_> = waits.iter().map(|w| (ids(w)[0], ids(w)[1])).collect();
        let (from, to) = *edges.last().expect("the wait that is about to begin");
        let count = |id| (!ids(external).contains(&id)).then(|| ids(workers).iter().filter(|w| **w == id).count());
        let letter = |id: &TimedId| (b'A'..=b'Z').find(|b| ids(&(*b as char).to_string())[0] == *id).unwrap() as char;
        stuck(&edges, from, to, count).map(|path| path.iter().map(letter).collect())
    }

    #[test]
    fn waits_for_ever_are_told_from_those_that_end() {
        let table: &[(&[&str], &str, &str, Option<&str>)] = &[
            (&["AA"], "A", "", Some("AA")),
            (&["AA"], "AA", "", None),
            (&["AA", "AA"], "AA", "", Some("AA")),
            (&["AB"], "AB", "", None),
            (&["BA", "AB"], "AB", "", Some("ABA")),
            (&["BA", "AB"], "ABB", "", None),
            (&["BC", "CA", "AB"], "ABC", "", Some("ABCA")),
            (&["BC", "CA", "AB"], "ABC", "C", None),
            (&["BC", "BA", "AB"], "ABB", "C", None),
            (&["BC", "BA", "CC", "AB"], "ABBC", "", Some("ABA")),
        ];
        for (waits, workers, external, expected) in table {
            assert_eq!(look(waits, workers, external).as_deref(), *expected, "{waits:?} {workers} {external}");
        }
    }
}
