//! Who runs when, and what counts as a result.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use crate::rows::{Entry, Row, Run, Target};

/// No run takes this long unless a wake-up got lost.
const HUNG: Duration = Duration::from_secs(120);

/// A row's runs, entry by entry in the row's order.
pub struct RowResult<'a> {
    pub row: &'a Row,
    pub messages: u64,
    pub entries: Vec<EntryResult<'a>>,
}

/// One entry's runs; the first failure ends them.
pub struct EntryResult<'a> {
    pub entry: &'a Entry,
    /// The row's figures of each repetition, in the order they ran.
    pub samples: Vec<Vec<f64>>,
    pub failure: Option<String>,
}

/// What a set of samples comes down to.
#[derive(Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Runs every entry once per repetition.
///
/// A shared machine drifts, so entries are interleaved, and each repetition starts with another entry so
/// that nobody always runs after the same neighbour. One short round before the first is not counted.
/// An error means that a run hung: its threads cannot be ended, so nothing after it could be trusted.
pub fn measure(row: &Row, repetitions: usize, scale: u64) -> Result<RowResult<'_>, String> {
    let messages = if row.scales { row.messages.div_ceil(scale) } else { row.messages };
    let mut result = RowResult::new(row, messages);
    for index in 0..row.entries.len() {
        result.entries[index].run(row.name, messages.div_ceil(10), false)?;
    }
    for repetition in 0..repetitions.min(row.repetitions) {
        for step in 0..row.entries.len() {
            let index = (repetition + step) % row.entries.len();
            result.entries[index].run(row.name, messages, true)?;
        }
    }
    Ok(result)
}

impl RowResult<'_> {
    fn new(row: &Row, messages: u64) -> RowResult<'_> {
        let entries = row.entries.iter().map(EntryResult::new).collect();
        RowResult { row, messages, entries }
    }

    pub fn has_failure(&self) -> bool {
        self.entries.iter().any(|entry| entry.failure.is_some())
    }

    /// The entry's median of a figure over the reference's; none if either failed.
    pub fn ratio(&self, entry: &EntryResult, figure: usize) -> Option<f64> {
        let reference = self.median_of(self.row.reference?.name, figure)?;
        Some(entry.summary(figure)?.median / reference)
    }

    /// What a target compares with its limit.
    pub fn measured(&self, target: &Target) -> Option<f64> {
        let median = self.median_of(target.who, target.figure)?;
        match target.of {
            Some((of, figure)) => Some(median / self.median_of(of, figure)?),
            None => Some(median),
        }
    }

    fn median_of(&self, name: &str, figure: usize) -> Option<f64> {
        let entry = self.entries.iter().find(|entry| entry.entry.contestant.name == name)?;
        Some(entry.summary(figure)?.median)
    }
}

impl EntryResult<'_> {
    fn new(entry: &Entry) -> EntryResult<'_> {
        EntryResult { entry, samples: Vec::new(), failure: None }
    }

    /// None for an entry that failed: a contestant that loses messages is not a fast one.
    pub fn summary(&self, figure: usize) -> Option<Summary> {
        match self.failure {
            Some(_) => None,
            None => Summary::of(self.samples.iter().map(|figures| figures[figure]).collect()),
        }
    }

    fn run(&mut self, row: &str, messages: u64, counts: bool) -> Result<(), String> {
        if self.failure.is_some() {
            return Ok(());
        }
        let name = self.entry.contestant.name;
        match watched(&self.entry.run, messages) {
            Some(Ok(figures)) if counts => self.samples.push(figures),
            Some(Ok(_)) => {}
            Some(Err(message)) => self.failure = Some(message),
            None => return Err(format!("{row}: {name} hung for {} s", HUNG.as_secs())),
        }
        Ok(())
    }
}

impl Summary {
    fn of(mut samples: Vec<f64>) -> Option<Summary> {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = match samples.len() {
            0 => return None,
            odd if odd % 2 == 1 => samples[middle],
            _ => (samples[middle - 1] + samples[middle]) / 2.0,
        };
        Some(Summary { median, min: samples[0], max: samples[samples.len() - 1] })
    }
}

/// Runs on a thread of its own; none if it hung.
fn watched(run: &Run, messages: u64) -> Option<Result<Vec<f64>, String>> {
    let (done, outcome) = mpsc::channel();
    let run = Arc::clone(run);
    thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(messages)));
        // Nobody listens only after a hang, and then the process is about to end.
        let _ = done.send(outcome.unwrap_or_else(|_| Err("panicked".into())));
    });
    outcome.recv_timeout(HUNG).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Summary, measure};
    use crate::{rows::Row, work::Contestant};

    fn contestant(name: &'static str) -> Contestant {
        Contestant { name, package: None, note: "" }
    }

    #[test]
    fn median_of_odd_even_and_no_samples() {
        let median = |samples: &[f64]| Summary::of(samples.to_vec()).map(|summary| summary.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn failed_runs_have_a_reason_and_no_ratio() {
        let row = Row::cost("row", "", 1000)
            .reference(contestant("reference"))
            .target(3.0, contestant("reference"))
            .entry(contestant("reference"), |n| Ok(Duration::from_nanos(n * 10)))
            .entry(contestant("postroom"), |n| Ok(Duration::from_nanos(n * 20)))
            .entry(contestant("loses"), |_| Err("999 of 1000 messages arrived".into()))
            .entry(contestant("panics"), |_| std::panic::resume_unwind(Box::new(())));
        let result = measure(&row, 3, 1).unwrap();
        let ratios: Vec<_> = result.entries.iter().map(|entry| result.ratio(entry, 0)).collect();
        assert_eq!(ratios, [Some(1.0), Some(2.0), None, None]);
        let failures: Vec<_> = result.entries.iter().map(|e| e.failure.as_deref()).collect();
        let lost = Some("999 of 1000 messages arrived");
        assert_eq!(failures, [None, None, lost, Some("panicked")]);
        assert_eq!(result.entries[1].samples.len(), 3);
        assert_eq!(result.measured(&row.targets[0]), Some(2.0));
    }
}
