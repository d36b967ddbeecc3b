//! Typed names: what modules share that never see each other.

use std::fmt;
use std::marker::PhantomData;

macro_rules! typed_name {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        pub struct $name<T: ?Sized> {
            name: &'static str,
            payload: PhantomData<fn() -> Box<T>>,
        }

        impl<T: ?Sized> $name<T> {
            /// A name with its payload type.
            #[must_use]
            pub const fn new(name: &'static str) -> Self {
                Self { name, payload: PhantomData }
            }

            /// The name itself.
            #[must_use]
            pub const fn as_str(&self) -> &'static str {
                self.name
            }
        }

        impl<T: ?Sized> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T: ?Sized> Copy for $name<T> {}

        impl<T: ?Sized> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.name)
            }
        }

        impl<T> From<$name<T>> for Name<T> {
            fn from(name: $name<T>) -> Self {
                Self::from(name.name)
            }
        }
    };
}

typed_name! {
    /// A topic's name and payload type, usually a constant.
    ///
    /// ```
    /// use postroom::{Broker, TopicName};
    ///
    /// struct OrderPlaced;
    /// const ORDERS: TopicName<OrderPlaced> = TopicName::new("orders");
    ///
    /// let broker = Broker::new();
    /// let orders = broker.topic(ORDERS).declare()?;
    /// # Ok::<(), postroom::Error>(())
    /// ```
    TopicName
}

typed_name! {
    /// A queue's name and payload type, usually a constant.
    ///
    /// ```
    /// use postroom::{Broker, QueueName};
    ///
    /// const JOBS: QueueName<u32> = QueueName::new("jobs");
    ///
    /// let broker = Broker::new();
    /// let jobs = broker.queue(JOBS).declare()?;
    /// # Ok::<(), postroom::Error>(())
    /// ```
    QueueName
}

typed_name! {
    /// A log's name and payload type, usually a constant.
    ///
    /// ```
    /// use postroom::{Broker, LogName};
    ///
    /// const LINES: LogName<String> = LogName::new("lines");
    ///
    /// let broker = Broker::new();
    /// let lines = broker.log(LINES).partitions(4).declare()?;
    /// # Ok::<(), postroom::Error>(())
    /// ```
    LogName
}

/// What a topic, queue or log is declared by: a [`TopicName`], [`QueueName`] or [`LogName`], or plain text where the payload
/// type is clear from elsewhere.
pub struct Name<T> {
    pub(crate) text: String,
    payload: PhantomData<fn() -> T>,
}

impl<T> From<&str> for Name<T> {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl<T> From<String> for Name<T> {
    fn from(text: String) -> Self {
        Self { text, payload: PhantomData }
    }
}
