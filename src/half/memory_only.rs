//! Stands in for half messages in a file where the feature `sqlite` is off: there are none.

use super::halves::{Halves, Unprepared};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::durable::{Along, Rider};
use std::convert::Infallible;
use std::marker::PhantomData;

pub(super) struct Filed<T>(Infallible, PhantomData<fn() -> T>);

impl<T: Send + Sync + 'static> Halves<T> {
    pub(super) fn is_durable(&self) -> bool {
        self.filed.get().is_some_and(|filed| match filed.0 {})
    }
    pub(super) fn write(&self, _: &Message<T>, _: Timestamp) -> Result<Option<u64>, Unprepared> {
        Ok(None)
    }
    pub(super) fn erase(&self, _: &mut Message<T>) {}
    pub(super) fn note_check(&self, _: Option<u64>, _: u32, _: Timestamp) {}
    pub(super) fn rider(&self, _: Option<u64>) -> Rider {
        Rider
    }
    pub(super) fn depart(&self, _: &mut Message<T>) -> Along {
        Along::nothing()
    }
}
