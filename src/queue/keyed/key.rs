//! What messages are ordered by.

use crate::message::Text;
use ahash::RandomState;
use std::sync::Arc;

/// How a queue finds the ordering key of a message.
pub(crate) enum KeyRule<T> {
    Unordered,
    /// By the key that the message was given.
    OfMessage,
    /// All have the same.
    One,
    Of(Arc<dyn Fn(&T, &mut Text) + Send + Sync>),
}

impl<T> Clone for KeyRule<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Unordered => Self::Unordered,
            Self::OfMessage => Self::OfMessage,
            Self::One => Self::One,
            Self::Of(key) => Self::Of(Arc::clone(key)),
        }
    }
}

/// An ordering key and its hash, found once by whoever brings the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(super) hash: u32,
    pub(super) text: Text,
}

impl Key {
    /// Without a text, until one is [written](Key::write).
    pub(crate) const NONE: Self = Self { hash: 0, text: Text::EMPTY };

    pub(crate) fn new(text: Text, seed: &RandomState) -> Self {
        Self { hash: seed.hash_one(&text) as u32, text }
    }

    /// What `write` puts there becomes the key, in its place: moving it at once takes longer than finding it, for a
    /// processor does not read quickly what it has just written in other pieces.
    #[inline]
    pub(crate) fn write<E>(
        &mut self,
        seed: &RandomState,
        write: impl FnOnce(&mut Text) -> Result<(), E>,
    ) -> Result<(), E> {
        write(&mut self.text)?;
        self.hash = seed.hash_one(&self.text) as u32;
        Ok(())
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn as_str(&self) -> &str {
        self.text.as_str()
    }

    pub(crate) fn into_text(self) -> Text {
        self.text
    }
}
