//! Stands in for backlogs in a file where the feature `sqlite` is off: there are none.

use super::{Core, Intake};
use crate::message::Message;

pub(super) struct Spill<T>(std::marker::PhantomData<fn() -> T>);

impl<T> Intake<T> {
    pub(super) fn new_spill() -> Spill<T> {
        Spill(std::marker::PhantomData)
    }
    pub(super) fn wants_reading(&self) -> bool {
        false
    }
    pub(super) fn has_unread(&self) -> bool {
        false
    }
    pub(super) fn pass_over(&mut self, _: &mut Message<T>) {}
    pub(super) fn unread_requests(&mut self) -> Vec<crate::request::Request> {
        Vec::new()
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    #[inline]
    pub(super) fn put_in_window(&self, _: &mut Intake<T>, message: Message<T>) -> Option<Message<T>> {
        Some(message)
    }
    #[inline]
    pub(crate) fn load_more(&self) -> bool {
        false
    }
    #[inline]
    pub(crate) fn load_rest(&self) -> bool {
        false
    }
    pub(super) fn load_again(&self) {}
    pub(super) fn drop_spilled(&self) {}
}
