//! When schedules fire next, as noted in the broker's file.

use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::queue::NO_STORE;
use crate::queue::durable::{Depot, Rider};
use crate::store::{Batch, StoreError, StreamId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The kind of the stream whose marks they are, by name.
const SCHEDULES: &str = "schedules";

/// What is noted of one schedule.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    rule: String,
    /// `None` if there is no time left.
    next: Option<u64>,
}

/// The part of a durable schedule that is in the file.
pub(super) struct Book {
    depot: Arc<Depot>,
    stream: StreamId,
    name: String,
    rule: String,
}

impl Book {
    /// With the next firing, if an earlier run has noted one for the same rule. May wait for a commit.
    pub(super) fn open(broker: &Broker, name: &str, rule: &str) -> Result<(Self, Option<Timestamp>), String> {
        let depot = broker.depot().ok_or(NO_STORE)?;
        let (stream, noted) = find(depot, name).map_err(|error| format!("its file: {error}"))?;
        let noted = noted.and_then(|text| serde_json::from_slice::<Noted>(&text).ok());
        let next = noted.filter(|noted| noted.rule == rule).and_then(|noted| noted.next);
        let book = Self { depot: Arc::clone(depot), stream, name: name.to_owned(), rule: rule.to_owned() };
        Ok((book, next.map(Timestamp)))
    }

    fn noting(&self, next: Option<Timestamp>) -> Batch {
        let noted = Noted { rule: self.rule.clone(), next: next.map(|next| next.0) };
        // A text and a number can always be written.
        let text = serde_json::to_vec(&noted).unwrap_or_default();
        Batch::new().mark(self.stream, self.name.as_str(), text)
    }

    pub(super) fn note(&self, next: Option<Timestamp>) {
        self.depot.note(self.noting(next));
    }

    /// For the message of a firing, behind which `next` is the next.
    pub(super) fn rider(&self, next: Option<Timestamp>) -> Rider {
        Rider::new(&self.depot, self.noting(next))
    }

    /// The schedule is removed.
    pub(super) fn forget(&self) {
        self.depot.note(Batch::new().unmark(self.stream, self.name.as_str()));
    }
}

fn find(depot: &Depot, name: &str) -> Result<(StreamId, Option<Vec<u8>>), StoreError> {
    let reader = depot.store.reader()?;
    match reader.stream(SCHEDULES, "")? {
        Some(stream) => Ok((stream.id, reader.mark(stream.id, name)?)),
        None => Ok((depot.store.declare(SCHEDULES, "", "")?, None)),
    }
}
