//! For tests of half messages: what became of the local transactions.

use postroom::{CheckBack, Message, Resolution};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What a listener answers, and about whom it was asked when, in seconds since a start.
#[derive(Clone)]
pub(crate) struct Truth {
    start: SystemTime,
    answers: Arc<Mutex<HashMap<u32, Resolution>>>,
    asked: Arc<Mutex<Vec<(u32, u64)>>>,
}

impl Truth {
    pub(crate) fn since(start: SystemTime) -> Self {
        Self { start, answers: Arc::default(), asked: Arc::default() }
    }

    pub(crate) fn is(&self, n: u32, resolution: Resolution) {
        self.answers.lock().unwrap().insert(n, resolution);
    }

    pub(crate) fn asked(&self) -> Vec<(u32, u64)> {
        self.asked.lock().unwrap().clone()
    }

    /// A check-back whose listener says what is known by then; `now` is the time on its broker's clock.
    pub(crate) fn check_back(&self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> CheckBack<u32> {
        let truth = self.clone();
        CheckBack::new(move |n: &Message<u32>| {
            let after = now().duration_since(truth.start).unwrap().as_secs();
            truth.asked.lock().unwrap().push((**n, after));
            truth.answers.lock().unwrap().get(n.payload()).copied().unwrap_or(Resolution::Unknown)
        })
    }
}
