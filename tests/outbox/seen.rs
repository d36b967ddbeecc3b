//! Consumers that note what they handle.

use crate::lab::Puts;
use postroom::{Broker, Exhausted, Failure, Message, MessageId, Outcome, Queue, Retry, Topic};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What was handled, in that order.
pub(crate) type Seen = Arc<Mutex<Vec<u64>>>;

pub(crate) fn consume(queue: &Queue<u64>, workers: usize) -> Seen {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    queue.consumer().workers(workers).start(move |n: &Message<u64>| note.lock().unwrap().push(**n)).unwrap();
    seen
}

/// A queue bound to everything, ordered by key, that parks what it gives up on.
pub(crate) fn ordered(broker: &Broker, topic: &Topic<u64>, capacity: usize, retry: Retry) -> Queue<u64> {
    let queue = broker.queue("billing").capacity(capacity).ordered_by_key().on_exhausted(Exhausted::Park);
    let queue = queue.retry(retry).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    queue
}

/// Numbers with one of five keys each.
pub(crate) fn with_five_keys(numbers: Range<u64>) -> Puts {
    numbers.map(|n| ("k", Message::new(n).with_key(format!("key {}", n % 5)))).collect()
}

/// What four workers have handled of each key.
pub(crate) struct SeenByKey(Arc<Mutex<BTreeMap<String, Vec<u64>>>>);

impl SeenByKey {
    /// Every seventh handling fails at first.
    pub(crate) fn consume(queue: &Queue<u64>) -> Self {
        let seen = Self(Arc::default());
        let (note, calls) = (Arc::clone(&seen.0), AtomicUsize::new(0));
        let handler = move |n: &Message<u64>| {
            if calls.fetch_add(1, Ordering::SeqCst) % 7 == 3 {
                return Outcome::Retry;
            }
            note.lock().unwrap().entry(n.key().unwrap().to_owned()).or_default().push(**n);
            Outcome::Ack
        };
        queue.consumer().workers(4).start(handler).unwrap();
        seen
    }

    #[track_caller]
    pub(crate) fn assert_in_order(&self, count: usize, what: impl Display) {
        let seen = self.0.lock().unwrap();
        assert_eq!(seen.values().map(Vec::len).sum::<usize>(), count, "{what}");
        assert!(seen.values().all(|numbers| numbers.is_sorted()), "{what}: {seen:?}");
    }
}

/// Fails with number 2 until it is repaired.
pub(crate) struct Printer {
    broken: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<(MessageId, u64)>>>,
}

impl Printer {
    pub(crate) fn consume(queue: &Queue<u64>) -> Self {
        let printer = Self { broken: Arc::new(AtomicBool::new(true)), seen: Arc::default() };
        let (is_broken, note) = (Arc::clone(&printer.broken), Arc::clone(&printer.seen));
        let handler = move |n: &Message<u64>| -> Result<(), Failure> {
            if is_broken.load(Ordering::SeqCst) && **n == 2 {
                return Err(Failure::transient("no printer"));
            }
            note.lock().unwrap().push((n.id(), **n));
            Ok(())
        };
        queue.consumer().start(handler).unwrap();
        printer
    }

    pub(crate) fn repair(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }

    pub(crate) fn seen(&self) -> Vec<(MessageId, u64)> {
        self.seen.lock().unwrap().clone()
    }
}
