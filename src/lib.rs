//! An embedded message queue.

mod sync;
mod error;
mod message;
mod outcome;
mod clock;
mod random;
mod rate;
mod stats;
mod route;
mod retry;
mod breaker;
mod scheduler;
mod simulation;
mod runtime;
mod queue;
mod name;
mod topic;
mod delivery;
mod dead_letter;
mod consumer;
mod alarm;
mod describe;
mod shutdown;
mod broker;

pub use alarm::{Alarm, AlarmHandle, Alert, Level};
pub use breaker::{Circuit, CircuitBreaker};
pub use broker::{Broker, Builder};
pub use clock::ManualClock;
pub use consumer::{Consumer, ConsumerBuilder};
pub use dead_letter::{DeadLetter, Reason, Redrive, Redriven};
pub use delivery::{Batch, Delivery};
pub use describe::{Description, QueueDescription, TopicDescription};
pub use error::{
    BatchError, Error, PublishError, RecvError, RecvTimeoutError, Refused, SendError, SendTimeoutError, SettleError,
    TryRecvError, TrySendError,
};
pub use message::{Attempt, Message, MessageId};
pub use name::{Name, QueueName, TopicName};
pub use outcome::{Classify, Failure, IntoOutcome, Outcome};
pub use queue::{Overflow, Queue, QueueBuilder};
pub use rate::Rate;
pub use retry::{DelayLevel, Retry};
pub use route::{Binding, Headers, Pattern, PatternError};
pub use runtime::Event;
pub use shutdown::{Leftover, ShutdownReport};
pub use simulation::Simulation;
pub use stats::{HandlingTime, QueueStats, Stats, TopicStats};
pub use topic::{BindTarget, Receipt, Router, Routing, Topic, TopicBuilder};
