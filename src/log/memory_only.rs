//! Stands in for durable logs where the feature `sqlite` is off: there are none.

use std::convert::Infallible;
use std::marker::PhantomData;

pub(crate) struct Durably<T>(Infallible, PhantomData<fn() -> T>);

impl<T> Durably<T> {
    pub(crate) fn mode(&self) -> Infallible {
        self.0
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
