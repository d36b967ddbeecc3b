//! Stands in for backlogs in a file where the feature `sqlite` is off: there are none.

use super::{Core, Intake, Outlet, Waiting};
use crate::clock::Timestamp;
use crate::message::Message;
use crate::queue::keyed::Key;
use crate::scheduler::DelayHeap;
use crate::sync::MutexGuard;
use std::collections::HashMap;

pub(super) struct Spill<T>(std::marker::PhantomData<fn() -> T>);

impl<T> Intake<T> {
    pub(super) fn level_to_read(&self) -> Option<usize> {
        None
    }
    pub(super) fn lowest_is_unread(&self, _: &Message<T>) -> bool {
        false
    }
    pub(super) fn new_spill(_: u8) -> Spill<T> {
        Spill(std::marker::PhantomData)
    }
    pub(super) fn unread_delayed(&self) -> u64 {
        0
    }
    pub(super) fn unread_due(&self) -> u64 {
        0
    }
    pub(super) fn soonest_unread(&self) -> Option<Timestamp> {
        None
    }
    pub(super) fn delayed_read_to(&self) -> Timestamp {
        Timestamp::MAX
    }
    pub(super) fn note_fired(&mut self, _: &mut Message<T>) {}
    pub(super) fn note_coming(&mut self, _: &Message<T>) {}
    pub(super) fn note_cleared(&mut self) {}
    pub(super) fn keep_waste(&mut self, _: Message<T>) {}
    pub(super) fn has_spilled(&self) -> bool {
        false
    }
    pub(super) fn pass_over(&mut self, _: &mut Message<T>, _: bool) {}
    pub(super) fn take_late(&mut self) -> Vec<Message<T>> {
        Vec::new()
    }
    pub(super) fn settle_cleared(&mut self, _: &mut Outlet<T>) -> u64 {
        0
    }
    pub(super) fn late_requests(&mut self) -> Vec<crate::request::Request> {
        Vec::new()
    }
    pub(super) fn unread_requests(&mut self) -> Vec<crate::request::Request> {
        Vec::new()
    }
    pub(super) fn trouble(&self) -> Option<String> {
        None
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    #[inline]
    pub(super) fn put_in_window(&self, _: &mut Intake<T>, _: &mut Message<T>) -> bool {
        true
    }
    #[inline]
    pub(super) fn put_in_window_of_turns(
        &self,
        _: &mut Intake<T>,
        key: Key,
        message: Message<T>,
    ) -> Option<(Key, Message<T>)> {
        Some((key, message))
    }
    pub(super) fn wants_reading(&self, _: &Outlet<T>, _: &Intake<T>) -> bool {
        false
    }
    pub(super) fn expects_unread(&self, _: &Outlet<T>, _: &Intake<T>) -> bool {
        false
    }
    pub(super) fn turns_to_fetch(&self, _: &Outlet<T>, _: &Intake<T>) -> usize {
        0
    }
    #[inline]
    pub(super) fn may_miss_a_turn(&self) -> bool {
        false
    }
    pub(super) fn unread_of(&self, _: &Outlet<T>, _: &Intake<T>, _: u32) -> Option<(u64, u64)> {
        None
    }
    pub(super) fn drop_unread(&self, _: &Key, _: u32, _: (u64, u64)) -> usize {
        0
    }
    pub(super) fn count_ahead(&self, _: &mut HashMap<String, usize>) {}
    #[inline]
    pub(crate) fn load_more(&self) -> bool {
        false
    }
    #[inline]
    pub(crate) fn load_rest(&self) -> bool {
        false
    }
    pub(super) fn rest_in_file(
        &self,
        _: &mut MutexGuard<'_, DelayHeap<Waiting<T>>>,
        message: Message<T>,
    ) -> Option<Message<T>> {
        Some(message)
    }
    pub(super) fn attend_to_rest(&self, _: Timestamp) -> Option<Timestamp> {
        None
    }
    pub(super) fn clearing<R>(&self, clear: impl FnOnce() -> R) -> R {
        clear()
    }
    pub(super) fn load_again(&self) {}
    pub(super) fn call_later(&self) {}
    pub(super) fn drop_spilled(&self) {}
}
