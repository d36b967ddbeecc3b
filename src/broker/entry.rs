//! What a name stands for, looked up by whoever declares something under it.

use super::{AnyLog, AnyQueue, AnyTopic, Inner, Registry};
use crate::error::{Error, SHUT_DOWN};
use crate::half::half_name;
use crate::log::{Log, LogBuilder, LogCore};
use crate::queue::core::Core;
use crate::queue::{Queue, QueueBuilder, dead_letter_name, undecodable_name};
use crate::sync::MutexGuard;
use crate::topic::{Topic, TopicBuilder, TopicCore};
use std::any::type_name;
use std::sync::Arc;

/// What a builder finds under its name.
pub(super) enum Entry<'a, H> {
    /// It is declared already, as the builder describes it.
    Occupied(H),
    /// Nothing has the name, or those that go with it, as long as the registry is locked.
    Vacant(MutexGuard<'a, Registry>),
}

impl Inner {
    /// The registry of a broker that was not shut down.
    pub(super) fn open_registry(&self, subject: &str) -> Result<MutexGuard<'_, Registry>, Error> {
        let registry = self.registry.lock();
        registry.check_open(subject)?;
        Ok(registry)
    }

    /// Nothing that is wrong is returned as `Ok`: neither of the problems found before, nor of those found here.
    pub(super) fn entry_of_queue<T: Send + Sync + 'static>(
        &self,
        builder: &QueueBuilder<T>,
        mut problems: Vec<String>,
    ) -> Result<Entry<'_, Queue<T>>, Error> {
        let registry = self.registry_without(&builder.name);
        problems.extend(registry.problem());
        if let Some(existing) = registry.queues.get(builder.name.as_str()).cloned() {
            drop(registry);
            return same_queue(builder, existing, problems).map(Entry::Occupied);
        }
        let dead_name = dead_letter_name(&builder.name);
        if builder.dead_letters.is_none() && registry.queues.contains_key(dead_name.as_str()) {
            problems.push(dead_letters_taken(&dead_name));
        }
        if builder.settings.durable.is_some() {
            problems.extend(registry.taken_for_undecodable(&undecodable_name(&builder.name)));
        }
        Error::unless_none(builder.subject(), problems)?;
        Ok(Entry::Vacant(registry))
    }

    /// `dead_name` is that of the queue for its unresolved half messages, should it need one.
    pub(super) fn entry_of_topic<T: Send + Sync + 'static>(
        &self,
        builder: &TopicBuilder<T>,
        dead_name: &str,
    ) -> Result<Entry<'_, Topic<T>>, Error> {
        let registry = self.registry_for_topic(builder.name());
        registry.check_open(&builder.subject())?;
        if let Some(existing) = registry.topics.get(builder.name()).cloned() {
            drop(registry);
            return same_topic(builder, existing).map(Entry::Occupied);
        }
        if builder.needs_dead_letters() && registry.has_queue(dead_name) {
            return Err(Error::new(builder.subject(), dead_letters_taken(dead_name)));
        }
        let apart_name = undecodable_name(&half_name(builder.name()));
        if let Some(problem) = registry.taken_for_undecodable(&apart_name).filter(|_| builder.keeps_halves()) {
            return Err(Error::new(builder.subject(), problem));
        }
        Ok(Entry::Vacant(registry))
    }

    /// As [`Inner::entry_of_queue`].
    pub(super) fn entry_of_log<T: Send + Sync + 'static>(
        &self,
        builder: &LogBuilder<T>,
        mut problems: Vec<String>,
    ) -> Result<Entry<'_, Log<T>>, Error> {
        let registry = self.registry_without_log(&builder.name);
        problems.extend(registry.problem());
        if let Some(existing) = registry.logs.get(builder.name.as_str()).cloned() {
            drop(registry);
            return same_log(builder, existing, problems).map(Entry::Occupied);
        }
        Error::unless_none(builder.subject(), problems)?;
        Ok(Entry::Vacant(registry))
    }

    /// The registry, if a queue for the dead letters of something that is no queue can have the name.
    pub(super) fn vacant_for_letters(&self, name: &str) -> Result<MutexGuard<'_, Registry>, Error> {
        let subject = format!("queue {name:?}");
        let registry = self.registry_without(name);
        registry.check_open(&subject)?;
        if registry.queues.contains_key(name) {
            return Err(Error::new(subject, "the name is taken by another queue"));
        }
        Ok(registry)
    }
}

impl Registry {
    pub(super) fn check_open(&self, subject: &str) -> Result<(), Error> {
        self.problem().map_or(Ok(()), |problem| Err(Error::new(subject, problem)))
    }

    /// Why nothing can be declared any more.
    fn problem(&self) -> Option<String> {
        self.closed.then(|| SHUT_DOWN.into())
    }

    /// Why there cannot be a queue of that name for what is undecodable.
    pub(super) fn taken_for_undecodable(&self, name: &str) -> Option<String> {
        let taken = || format!("the name of its queue for what cannot be decoded, {name:?}, is taken by another queue");
        self.has_queue(name).then(taken)
    }

    /// Also if it is just being filled from the file.
    fn has_queue(&self, name: &str) -> bool {
        #[cfg(feature = "sqlite")]
        if self.reserved.contains(name) {
            return true;
        }
        self.queues.contains_key(name)
    }
}

fn dead_letters_taken(dead_name: &str) -> String {
    format!("the name of its dead-letter queue, {dead_name:?}, is taken by another queue")
}

/// The log that exists under the builder's name, if it is what the builder describes.
fn same_log<T: Send + Sync + 'static>(
    builder: &LogBuilder<T>,
    existing: Arc<dyn AnyLog>,
    mut problems: Vec<String>,
) -> Result<Log<T>, Error> {
    let payload = existing.payload();
    let found = existing.as_any().downcast::<LogCore<T>>().map(|core| Log { core });
    match &found {
        Err(_) => problems.push(other_payload::<T>(payload)),
        Ok(log) => problems.extend(builder.differences(log)),
    }
    Error::unless_none(builder.subject(), problems)?;
    Ok(found.expect("a problem otherwise"))
}

/// The queue that exists under the builder's name, if it is what the builder describes.
fn same_queue<T: Send + Sync + 'static>(
    builder: &QueueBuilder<T>,
    existing: Arc<dyn AnyQueue>,
    mut problems: Vec<String>,
) -> Result<Queue<T>, Error> {
    let payload = existing.payload();
    let core = existing.as_any().downcast::<Core<T>>();
    match &core {
        Err(_) => problems.push(other_payload::<T>(payload)),
        Ok(core) => problems.extend(core.settings.differences(&builder.settings)),
    }
    Error::unless_none(builder.subject(), problems)?;
    Ok(Queue::from_core(core.expect("a problem otherwise")))
}

/// The topic that exists under the builder's name, if it is what the builder describes.
fn same_topic<T: Send + Sync + 'static>(
    builder: &TopicBuilder<T>,
    existing: Arc<dyn AnyTopic>,
) -> Result<Topic<T>, Error> {
    let payload = existing.payload();
    let Ok(core) = existing.as_any().downcast::<TopicCore<T>>() else {
        return Err(Error::new(builder.subject(), other_payload::<T>(payload)));
    };
    let topic = Topic { core };
    builder.same_as(&topic).map(|()| topic)
}

pub(super) fn other_payload<T>(existing: &str) -> String {
    format!("it exists with the payload {existing}, asked for {}", type_name::<T>())
}
