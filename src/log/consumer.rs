//! Workers of a group, and what they do with a partition they have claimed.

use super::claim::{Claim, Next, Want};
use super::core::GroupCore;
use super::record::Record;
use super::settle::Answer;
use super::squad::{Squad, subject};
use crate::consumer::Consumer;
use crate::error::Error;
use crate::outcome::{IntoOutcome, contained};
use crate::sync::yield_now;
use std::sync::Arc;
use std::time::Duration;

/// How many records a worker handles, and for how long, before it lets another partition have its turn.
const RUN: usize = 128;
const TURN: Duration = Duration::from_millis(10);

/// Describes a consumer of a group; nothing runs until it is started.
#[must_use = "nothing runs until `start` is called"]
pub struct GroupConsumerBuilder<T> {
    group: Arc<GroupCore<T>>,
    workers: usize,
}

impl<T: Send + Sync + 'static> GroupConsumerBuilder<T> {
    pub(super) fn new(group: Arc<GroupCore<T>>) -> Self {
        Self { group, workers: 1 }
    }

    /// How many threads handle records at the same time, each of another partition. Default 1. More than
    /// there are partitions have nothing to do.
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = n;
        self
    }

    /// Starts the workers. Each claims a partition, calls `handler` with its records one by one, commits each
    /// that succeeded, and gives the partition back after 128 records or about 10 ms, so that others have
    /// their turn. `()` or `Ok` commits, an error tries again
    /// as the group's retry policy says (the partition waits, others flow) or makes a dead letter; an
    /// [`Outcome`](crate::Outcome) says itself. A panic is a failed attempt.
    ///
    /// # Errors
    /// Zero workers, a group that was removed, a log that is closed, or a system that refuses a thread: none runs
    /// then.
    pub fn start<R, H>(self, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&Record<T>) -> R + Send + Sync + 'static,
    {
        self.launch(Vec::new(), Single { handler })
    }

    /// Starts workers that take up to `max` records of one partition at a time: as soon as there are so many,
    /// or `linger` after the first was seen. The answer holds for all of them; if they fail, the same
    /// records come again together.
    ///
    /// # Errors
    /// As [`GroupConsumerBuilder::start`], and a `max` of zero.
    pub fn start_batch<R, H>(self, max: usize, linger: Duration, handler: H) -> Result<Consumer, Error>
    where
        R: IntoOutcome,
        H: Fn(&[Record<T>]) -> R + Send + Sync + 'static,
    {
        let problems = if max == 0 { vec!["batches of 0 records: at least 1".to_owned()] } else { Vec::new() };
        self.launch(problems, Batches { handler, want: Want { max, linger } })
    }

    fn launch<W: Work<T>>(self, mut problems: Vec<String>, work: W) -> Result<Consumer, Error> {
        if self.workers == 0 {
            problems.push("0 workers would handle nothing: at least 1".into());
        }
        if self.group.is_closed() {
            problems.push("the log is closed".into());
        }
        Error::unless_none(subject(&self.group.full_name), problems)?;
        Ok(Consumer::of(Squad::start(self.group, work, self.workers)?))
    }
}

/// How a claimed partition is handled.
pub(super) trait Work<T>: Send + Sync + 'static {
    fn want(&self) -> Want;
    /// Handles something from `first` on and settles it; what becomes of the partition.
    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        most: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Next;
}

struct Single<H> {
    handler: H,
}

impl<T, H, R> Work<T> for Single<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&Record<T>) -> R + Send + Sync + 'static,
{
    fn want(&self) -> Want {
        Want::ONE
    }

    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        _: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Next {
        let mut record = first;
        // What failed before, or has to keep its pace, is looked at one by one.
        let run = if record.attempt() > 1 || group.settings.replay.is_paced() { 1 } else { RUN };
        let runtime = &group.shelf.runtime;
        let end = runtime.stamp().after(TURN);
        for _ in 0..run {
            let answer: Answer = contained(|| (self.handler)(&record).into_outcome());
            if let Some(next) = group.settle(claim, std::slice::from_ref(&record), answer) {
                return next;
            }
            if !go_on() || group.is_paused() || runtime.stamp() >= end || !moves_on(group, &mut record) {
                break;
            }
        }
        Next::Ready
    }
}

/// Moves on to the next record. At the end of the log it lets others run a few times first: giving the
/// partition back and sleeping costs far more, and so does waking up for each append.
fn moves_on<T: Send + Sync + 'static>(group: &GroupCore<T>, record: &mut Record<T>) -> bool {
    const PATIENCE: usize = 4;
    group.advance(record)
        || (0..PATIENCE).any(|_| {
            yield_now();
            group.advance(record)
        })
}

struct Batches<H> {
    handler: H,
    want: Want,
}

impl<T, H, R> Work<T> for Batches<H>
where
    T: Send + Sync + 'static,
    R: IntoOutcome,
    H: Fn(&[Record<T>]) -> R + Send + Sync + 'static,
{
    fn want(&self) -> Want {
        self.want
    }

    fn handle(
        &self,
        group: &GroupCore<T>,
        claim: &Claim<T>,
        first: Record<T>,
        most: usize,
        _: &dyn Fn() -> bool,
    ) -> Next {
        let batch = group.collect(first, most);
        let answer: Answer = contained(|| (self.handler)(&batch).into_outcome());
        group.settle(claim, &batch, answer).unwrap_or(Next::Ready)
    }
}
