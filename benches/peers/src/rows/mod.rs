//! Which work, done by whom, compared with whom.
//!
//! A new kind of work is a new directory under `work` and a new file of rows here; the harness and the report
//! need no change.

use std::sync::Arc;

use crate::work::{Contestant, Outcome};

mod broadcast;
#[cfg(feature = "durable")]
mod durable;
mod hand_off;
#[cfg(feature = "jobs")]
mod jobs;
mod latency;
mod log;
mod loopback;
mod order;
mod routing;
mod scale;
mod time;

/// One piece of work and everybody who does it.
pub struct Row {
    /// Starts with the target it belongs to, if any.
    pub name: &'static str,
    pub about: &'static str,
    /// How many messages one run moves.
    pub messages: u64,
    /// Whether a quick run may do with fewer.
    pub scales: bool,
    /// It takes long enough to be repeated no more often than this.
    pub repetitions: usize,
    /// What each run measures.
    pub figures: &'static [Figure],
    /// What the figures' names count, if they are the points of a curve.
    pub axis: Option<&'static str>,
    /// The contestant whose median is 1.00; none where ratios say nothing.
    pub reference: Option<Contestant>,
    pub targets: Vec<Target>,
    pub entries: Vec<Entry>,
    /// Says why the row cannot be run here, if it cannot.
    pub needs: fn() -> Result<(), String>,
}

/// One contestant's way to do a row's work.
pub struct Entry {
    pub contestant: Contestant,
    pub run: Run,
    /// What to know before comparing this entry with the others.
    pub note: &'static str,
}

/// Does the work for so many messages, checks that all arrived, and returns the row's figures.
pub type Run = Arc<dyn Fn(u64) -> Result<Vec<f64>, String> + Send + Sync>;

/// Something measured; less is better.
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
}

/// What postroom, or the entry named, should not exceed.
pub struct Target {
    pub who: &'static str,
    /// Which of the row's figures.
    pub figure: usize,
    pub at_most: f64,
    /// Times that contestant's figure of that index; none for a target in the figure's own unit.
    pub of: Option<(&'static str, usize)>,
}

const COST: &[Figure] = &[Figure { name: "", unit: "ns" }];
const MILLION: u64 = 1_000_000;

pub fn all() -> Vec<Row> {
    let groups = [
        hand_off::rows(),
        broadcast::rows(),
        routing::rows(),
        time::rows(),
        order::rows(),
        log::rows(),
        #[cfg(feature = "jobs")]
        jobs::rows(),
        loopback::rows(),
        #[cfg(feature = "durable")]
        durable::rows(),
        scale::rows(),
        latency::rows(),
    ];
    groups.into_iter().flatten().collect()
}

impl Row {
    /// A row that measures the time per message.
    pub fn cost(name: &'static str, about: &'static str, messages: u64) -> Row {
        Row::of(name, about, messages, COST)
    }

    fn of(name: &'static str, about: &'static str, messages: u64, figures: &'static [Figure]) -> Row {
        let (targets, entries) = (Vec::new(), Vec::new());
        let (axis, reference, repetitions) = (None, None, usize::MAX);
        let needs = || Ok(());
        Row { name, about, messages, scales: true, repetitions, figures, axis, reference, targets, entries, needs }
    }

    fn axis(self, axis: &'static str) -> Row {
        Row { axis: Some(axis), ..self }
    }

    /// Its name says how many, so a quick run does no fewer.
    fn exactly(self) -> Row {
        Row { scales: false, ..self }
    }

    fn needs(self, needs: fn() -> Result<(), String>) -> Row {
        Row { needs, ..self }
    }

    fn repetitions(self, at_most: usize) -> Row {
        Row { repetitions: at_most, ..self }
    }

    pub fn reference(self, contestant: Contestant) -> Row {
        Row { reference: Some(contestant), ..self }
    }

    /// Postroom's figure should be at most so many times this contestant's.
    pub fn target(self, at_most: f64, of: Contestant) -> Row {
        self.targets("postroom", 0, at_most, Some((of.name, 0)))
    }

    fn targets(mut self, who: &'static str, figure: usize, at_most: f64, of: Option<(&'static str, usize)>) -> Row {
        self.targets.push(Target { who, figure, at_most, of });
        self
    }

    /// A contestant that measures how long it took.
    pub fn entry(self, contestant: Contestant, run: impl Fn(u64) -> Outcome + Send + Sync + 'static) -> Row {
        self.gauge(contestant, move |n| run(n).map(|took| vec![took.as_nanos() as f64 / n as f64]))
    }

    /// A contestant that measures the row's figures itself.
    fn gauge(
        mut self,
        contestant: Contestant,
        run: impl Fn(u64) -> Result<Vec<f64>, String> + Send + Sync + 'static,
    ) -> Row {
        self.entries.push(Entry { contestant, run: Arc::new(run), note: contestant.note });
        self
    }

    /// Replaces the general note of the contestant just added where this row needs another.
    fn note(mut self, note: &'static str) -> Row {
        self.entries.last_mut().expect("an entry comes first").note = note;
        self
    }
}
