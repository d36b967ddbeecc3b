//! How payloads become bytes where they leave the process.

use std::error::Error as StdError;

/// What is wrong with a payload or its bytes.
pub type CodecError = Box<dyn StdError + Send + Sync>;

/// Turns payloads of type `T` into bytes and back.
///
/// Called outside all locks of the library; a panic counts as an error. Bytes may be read by a later version
/// of the program than the one that wrote them, so a codec should read what it has ever written.
///
/// ```
/// use postroom::{Codec, CodecError};
///
/// #[derive(Clone, Copy)]
/// struct BigEndian;
/// impl Codec<u64> for BigEndian {
///     fn name(&self) -> &str {
///         "u64-be"
///     }
///     fn encode(&self, number: &u64) -> Result<Vec<u8>, CodecError> {
///         Ok(number.to_be_bytes().to_vec())
///     }
///     fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
///         Ok(u64::from_be_bytes(bytes.try_into()?))
///     }
/// }
/// assert_eq!(BigEndian.decode(&BigEndian.encode(&7)?)?, 7);
/// assert!(BigEndian.decode(b"no").is_err());
/// # Ok::<(), CodecError>(())
/// ```
pub trait Codec<T>: Send + Sync + 'static {
    /// Kept beside the bytes, so that those of another codec are told from damaged ones.
    fn name(&self) -> &str;

    /// The bytes of a payload.
    ///
    /// # Errors
    /// Why there are none.
    fn encode(&self, payload: &T) -> Result<Vec<u8>, CodecError>;

    /// The payload these bytes stand for.
    ///
    /// # Errors
    /// What is wrong with them.
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// Payloads as JSON, by `serde_json`.
#[cfg(feature = "json")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Json;

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    fn name(&self) -> &str {
        "json"
    }

    fn encode(&self, payload: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(payload)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Payloads as protocol buffers, by `prost`.
#[cfg(feature = "protobuf")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protobuf;

#[cfg(feature = "protobuf")]
impl<T: prost::Message + Default> Codec<T> for Protobuf {
    fn name(&self) -> &str {
        "protobuf"
    }

    fn encode(&self, payload: &T) -> Result<Vec<u8>, CodecError> {
        Ok(payload.encode_to_vec())
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Ok(T::decode(bytes)?)
    }
}

#[cfg(all(test, feature = "json", feature = "protobuf"))]
mod tests {
    use super::*;

    /// `String` is a protobuf message as well: the well-known wrapper of a string.
    fn comes_back(codec: &impl Codec<String>) {
        let bytes = codec.encode(&"grüße".to_owned()).unwrap();
        assert_eq!(codec.decode(&bytes).unwrap(), "grüße");
        assert!(codec.decode(&bytes[..bytes.len() - 1]).is_err(), "{} takes what was cut short", codec.name());
    }

    #[test]
    fn what_a_codec_writes_it_reads() {
        comes_back(&Json);
        comes_back(&Protobuf);
    }
}
