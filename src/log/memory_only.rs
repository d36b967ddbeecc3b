//! Stands in for durable logs where the feature `sqlite` is off: there are none.

use super::chunk::Places;
use super::record::Record;
use super::segment::Segment;
use super::shelf::Shelf;
use crate::clock::Timestamp;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;

pub(crate) struct Durably<T>(Infallible, PhantomData<fn() -> T>);

impl<T> Durably<T> {
    pub(crate) fn mode(&self) -> Infallible {
        self.0
    }
    pub(crate) fn window(&self) -> usize {
        match self.0 {}
    }
}

pub(crate) struct OnFile<T>(Infallible, PhantomData<fn() -> T>);

impl<T> OnFile<T> {
    pub(crate) fn trim(&self, _: u64) {
        match self.0 {}
    }
    pub(crate) fn deletions(&self, _: impl Iterator<Item = (u64, bool)>) -> Deletions {
        match self.0 {}
    }
}

pub(crate) struct Deletions(Infallible);

impl Deletions {
    pub(crate) fn hand_in(self) {
        match self.0 {}
    }
}

pub(crate) struct Marks(Infallible);

impl Marks {
    pub(crate) fn note(&self, _: usize, _: u64) {
        match self.0 {}
    }
}

pub(super) type ReadError = Infallible;

pub(super) fn is_end_of_file(error: &ReadError) -> bool {
    match *error {}
}

impl<T: Send + Sync + 'static> Shelf<T> {
    /// What is nowhere but in a file. There is no such record.
    pub(super) fn fetch(&self, _: usize, _: Places) -> Result<Option<Arc<Segment<T>>>, Infallible> {
        Ok(None)
    }

    pub(super) fn fetch_one(&self, _: usize, _: u64, _: Places) -> Result<Option<Record<T>>, Infallible> {
        Ok(None)
    }

    pub(super) fn offset_at(&self, partition: usize, time: Timestamp) -> Result<u64, Infallible> {
        Ok(self.partition(partition).offset_at(time).0)
    }
}
