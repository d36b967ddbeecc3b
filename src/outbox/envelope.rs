//! A message as a row, and back.

use crate::codec::{Codec, CodecError};
use crate::message::{Delay, Message, MessageId};
use crate::outbox::error::OutboxError;
use crate::outcome::contained;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is written of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) topic: String,
    pub(crate) routing_key: String,
    pub(crate) ordering_key: Option<String>,
    /// As a JSON object.
    pub(crate) headers: Option<String>,
    pub(crate) priority: i16,
    pub(crate) codec: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) created: Micros,
    pub(crate) deliver_at: Option<Micros>,
    /// From the delivery time on, or from the creation.
    pub(crate) ttl: Option<i64>,
}

/// A row that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) message_id: MessageId,
    pub(crate) envelope: Result<Envelope, Unreadable>,
}

/// A row that somebody else must have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) String);

/// Microseconds since the UNIX epoch, as the tables keep times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) i64);

impl Micros {
    pub(crate) fn now() -> Self {
        Self::of(SystemTime::now())
    }

    pub(crate) fn of(time: SystemTime) -> Self {
        Self(micros(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }

    pub(crate) fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.0.max(0) as u64)
    }

    #[cfg(any(test, feature = "sqlite"))]
    pub(crate) fn before(self, age: Duration) -> Self {
        Self(self.0.saturating_sub(micros(age)))
    }

    pub(crate) fn age(self) -> Duration {
        Duration::from_micros(Self::now().0.saturating_sub(self.0).max(0) as u64)
    }
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Row ids have this many bits of a message id; the number of their table stands above. A broker does not
/// come that far with ids of its own, so those are told from ids that hold for good.
const ROW_BITS: u32 = 40;

/// The id of a row's message: the same after every restart, and no other table's.
pub(crate) fn message_id(table_number: i64, row: i64) -> MessageId {
    MessageId::from((table_number as u64).wrapping_shl(ROW_BITS).wrapping_add(row as u64))
}

/// Whether the id stays the same when the message is published again by another process.
pub(crate) fn is_stable(id: MessageId) -> bool {
    id.get() >> ROW_BITS != 0
}

impl Envelope {
    pub(crate) fn pack<T, C: Codec<T>>(
        table: &str,
        topic: String,
        routing_key: &str,
        message: &Message<T>,
        codec: &C,
    ) -> Result<Self, OutboxError> {
        let unsupported = |what| OutboxError::Unsupported { table: table.to_owned(), what };
        let extras = message.extras.as_deref();
        if message.id() != MessageId::default() {
            return Err(unsupported("the row gives the message its id, so it cannot bring one"));
        }
        if extras.is_some_and(|extras| extras.timer.is_some()) {
            return Err(unsupported("a timer does not outlive its process"));
        }
        let encoded = contained(|| codec.encode(message.payload())).map_err(CodecError::from).and_then(|result| result);
        let payload = encoded.map_err(|source| OutboxError::Encode {
            table: table.to_owned(),
            codec: codec.name().to_owned(),
            source,
        })?;
        let created = Micros::now();
        let deliver_at = message.delay().map(|delay| match delay {
            Delay::For(delay) => Micros(created.0.saturating_add(micros(delay))),
            Delay::Until(time) => Micros::of(time),
        });
        let headers: BTreeMap<&str, &str> = message.headers().collect();
        Ok(Self {
            topic,
            routing_key: routing_key.to_owned(),
            ordering_key: message.key().map(str::to_owned),
            headers: (!headers.is_empty()).then(|| serde_json::to_string(&headers).expect("text is JSON")),
            priority: message.priority().into(),
            codec: codec.name().to_owned(),
            payload,
            created,
            deliver_at: deliver_at.filter(|at| *at > created),
            ttl: extras.and_then(|extras| extras.ttl).map(micros),
        })
    }
}

impl Row {
    /// The message as it was put, or why that cannot be told.
    pub(crate) fn unpack<T, C: Codec<T>>(&self, codec: &C) -> Result<Message<T>, String> {
        self.unpack_with(codec, Envelope::with_times)
    }

    /// As [`Row::unpack`], for virtual time: that knows nothing of when the message was put, so delay and time to
    /// live begin anew.
    pub(crate) fn unpack_anew<T, C: Codec<T>>(&self, codec: &C) -> Result<Message<T>, String> {
        self.unpack_with(codec, Envelope::with_times_anew)
    }

    fn unpack_with<T, C: Codec<T>>(
        &self,
        codec: &C,
        with_times: impl FnOnce(&Envelope, Message<T>) -> Message<T>,
    ) -> Result<Message<T>, String> {
        let envelope = self.envelope.as_ref().map_err(|Unreadable(problem)| format!("unreadable: {problem}"))?;
        let Envelope { payload, headers, ordering_key, .. } = envelope;
        if envelope.codec != codec.name() {
            return Err(format!("written by codec {:?}, read by codec {:?}", envelope.codec, codec.name()));
        }
        let decoded = contained(|| codec.decode(payload)).map_err(|words| format!("the codec {words}"))?;
        let payload = decoded.map_err(|error| format!("undecodable: {error}"))?;
        let mut message = Message::new(payload).with_id(self.message_id);
        if let Some(key) = ordering_key {
            message = message.with_key(key);
        }
        if let Some(headers) = headers {
            let headers: BTreeMap<String, String> =
                serde_json::from_str(headers).map_err(|error| format!("undecodable headers: {error}"))?;
            message = headers.into_iter().fold(message, |message, (name, value)| message.with_header(name, value));
        }
        if envelope.priority > 0 {
            message = message.with_priority(u8::try_from(envelope.priority).unwrap_or(u8::MAX));
        }
        Ok(with_times(envelope, message))
    }

    pub(crate) fn routing_key(&self) -> &str {
        self.envelope.as_ref().map_or("", |envelope| &envelope.routing_key)
    }

    pub(crate) fn created(&self) -> Micros {
        self.envelope.as_ref().map_or_else(|_| Micros::now(), |envelope| envelope.created)
    }
}

impl Envelope {
    fn with_times<T>(&self, mut message: Message<T>) -> Message<T> {
        let (created, deliver_at, ttl) = (self.created, self.deliver_at, self.ttl);
        if let Some(at) = deliver_at {
            message = message.with_delivery_at(at.to_system_time());
        }
        if let Some(ttl) = ttl {
            let ttl = Duration::from_micros(ttl.max(0) as u64);
            // It counts from the delivery time, if there is one, and goes on while the row waits.
            message = message.with_ttl(ttl.saturating_sub(deliver_at.unwrap_or(created).age()));
        }
        message
    }

    fn with_times_anew<T>(&self, mut message: Message<T>) -> Message<T> {
        let between =
            |earlier: Micros, later: Micros| Duration::from_micros(later.0.saturating_sub(earlier.0).max(0) as u64);
        if let Some(at) = self.deliver_at {
            message = message.with_delay(between(self.created, at));
        }
        if let Some(ttl) = self.ttl {
            message = message.with_ttl(between(Micros(0), Micros(ttl)));
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Json;

    fn row(message: Message<String>) -> Row {
        let envelope = Envelope::pack("t", "orders".into(), "order.placed", &message, &Json).unwrap();
        Row { id: 7, message_id: message_id(3, 7), envelope: Ok(envelope) }
    }

    #[test]
    fn what_is_put_comes_out_again() {
        let put =
            Message::new("a".to_owned()).with_key("k").with_header("h", "1").with_header("g", "ü").with_priority(3);
        let message: Message<String> = row(put).unpack(&Json).unwrap();
        assert_eq!((message.payload().as_str(), message.key(), message.priority()), ("a", Some("k"), 3));
        assert_eq!((message.header("h"), message.header("g")), (Some("1"), Some("ü")));
        assert_eq!(message.id().get(), (3 << 40) + 7);
    }

    #[test]
    fn time_to_live_goes_on_counting_in_the_table() {
        let mut row = row(Message::new(String::new()).with_ttl(Duration::from_secs(60)));
        row.envelope.as_mut().unwrap().created = Micros::now().before(Duration::from_secs(50));
        let left = row.unpack::<String, _>(&Json).unwrap().extras.unwrap().ttl.unwrap();
        assert!((Duration::from_secs(9)..=Duration::from_secs(10)).contains(&left), "{left:?}");
        row.envelope.as_mut().unwrap().created = Micros::now().before(Duration::from_secs(90));
        assert_eq!(row.unpack::<String, _>(&Json).unwrap().extras.unwrap().ttl, Some(Duration::ZERO));
    }

    #[test]
    fn damaged_rows_say_what_is_wrong() {
        let good = row(Message::new("x".to_owned()).with_header("a", "b"));
        for (damage, words) in [
            (
                (|row: &mut Row| row.envelope.as_mut().unwrap().payload = b"\"".to_vec()) as fn(&mut Row),
                "undecodable: EOF",
            ),
            (
                |row| row.envelope.as_mut().unwrap().codec = "protobuf".into(),
                "written by codec \"protobuf\", read by codec \"json\"",
            ),
            (|row| row.envelope.as_mut().unwrap().headers = Some("[1]".into()), "undecodable headers"),
        ] {
            let mut row = good.clone();
            damage(&mut row);
            let problem = row.unpack::<String, _>(&Json).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
    }

    #[test]
    fn ids_of_rows_are_no_brokers_own() {
        assert!(is_stable(message_id(1, 1)));
        assert!(!is_stable(MessageId::from(123_456_789)));
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        let pack = |message: Message<u32>| Envelope::pack("t", "o".into(), "", &message, &Json).unwrap_err();
        assert!(pack(Message::new(1).with_id(9)).to_string().contains("gives the message its id"));
        assert!(pack(Message::new(1).with_timer("unpaid-1")).to_string().contains("timer"));
    }
}
