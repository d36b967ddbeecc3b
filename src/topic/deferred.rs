//! Publishing without waiting for the commit.

use super::accept::refusal_error;
use super::route::Route;
use super::{Receipt, Topic, TopicCore, durably};
use crate::error::PublishError;
use crate::message::{Message, MessageId, Text};
use crate::queue::Queue;
use crate::queue::core::{Core, Patience};
use crate::queue::durable::{Delivered, Pending};
use crate::sync::Ordering;
use std::fmt;
use std::sync::Arc;

/// A publish whose commit may be under way; see [`Topic::publish_deferred`].
///
/// Dropped, nobody hears what came of it: the message appears if its commit succeeds. Kept, it keeps the bytes
/// that were written, so wait for tickets in turn rather than at the end of a long run.
#[must_use = "waiting for it says whether the message is safe"]
pub struct Ticket<T: Send + Sync + 'static> {
    id: MessageId,
    state: Option<State<T>>,
}

enum State<T: Send + Sync + 'static> {
    /// A refusal in a box, since tickets are kept by the thousand.
    Known(Result<Receipt, Box<PublishError<T>>>),
    /// With the topic that counts.
    Pending(Pending<Delivered<T>>, Option<Arc<TopicCore<T>>>),
}

impl<T: Send + Sync + 'static> Ticket<T> {
    fn known(id: MessageId, result: Result<Receipt, PublishError<T>>) -> Self {
        Self { id, state: Some(State::Known(result.map_err(Box::new))) }
    }

    fn pending(
        id: MessageId,
        pending: Pending<Delivered<T>>,
        core: &Arc<Core<T>>,
        topic: Option<Arc<TopicCore<T>>>,
    ) -> Self {
        let state = State::Pending(pending, topic);
        let mut ticket = Self { id, state: Some(state) };
        if core.runtime.is_simulated() {
            // So that the same seed gives the same run.
            let result = ticket.conclude();
            ticket.state = Some(State::Known(result.map_err(Box::new)));
        }
        ticket
    }

    /// The message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Whether [`Ticket::wait`] would not wait any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            Some(State::Pending(pending, ..)) => pending.is_done(),
            _ => true,
        }
    }

    /// Waits for the commit.
    ///
    /// # Errors
    /// Gives the message back, and no queue has it; see [`Topic::publish`].
    pub fn wait(mut self) -> Result<Receipt, PublishError<T>> {
        self.conclude()
    }

    fn conclude(&mut self) -> Result<Receipt, PublishError<T>> {
        match self.state.take().expect("asked once") {
            State::Known(result) => result.map_err(|refused| *refused),
            State::Pending(pending, topic) => concluded(self.id, pending.wait(), topic.as_deref()),
        }
    }

    /// Waits for nothing: `tell` hears of it, here if it is known already, otherwise on the scheduler's thread.
    pub(crate) fn then(mut self, tell: impl FnOnce(Result<Receipt, PublishError<T>>) + Send + 'static) {
        let id = self.id;
        match self.state.take().expect("asked once") {
            State::Known(result) => tell(result.map_err(|refused| *refused)),
            State::Pending(pending, topic) => {
                pending.then(move |delivered| tell(concluded(id, delivered, topic.as_deref())));
            }
        }
    }
}

fn concluded<T: Send + Sync + 'static>(
    id: MessageId,
    delivered: Delivered<T>,
    topic: Option<&TopicCore<T>>,
) -> Result<Receipt, PublishError<T>> {
    let Delivered { routed, queues } = delivered;
    let refusing = || durably::first_durable(&queues).expect("one of them has refused");
    let routed = routed.map_err(|refused| refusal_error(refusing(), *refused))?;
    topic.iter().for_each(|topic| topic.count(1));
    Ok(Receipt { id, routed })
}

impl<T: Send + Sync + 'static> Drop for Ticket<T> {
    fn drop(&mut self) {
        if let Some(State::Pending(_, Some(topic))) = &self.state {
            topic.count(1);
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("done", &self.is_done()).finish()
    }
}

impl<T: Send + Sync + 'static> Topic<T> {
    /// Publishes without waiting for the commit where durable queues get the message: one producer can have many
    /// under way, and they share commits. Waits for room, as [`Topic::publish`] does, in full queues and before a
    /// file that cannot keep up. Messages of one thread appear in the order of these calls.
    ///
    /// Where no durable queue gets it, it is published at once. So it is, with waiting, where a filter, a router,
    /// headers, subscribers or a log have a part in it, or the topic has an admission limit or refuses duplicates;
    /// and in a simulation.
    ///
    /// ```
    /// use postroom::store::Durability;
    /// use postroom::{Broker, Queue, Topic};
    ///
    /// # let path = std::env::temp_dir().join(format!("postroom-doc-deferred-{}.db", std::process::id()));
    /// let broker = Broker::open(&path)?;
    /// let orders: Topic<u32> = broker.topic("orders").declare()?;
    /// let billing: Queue<u32> = broker.queue("billing").durable(Durability::Sync).declare()?;
    /// orders.bind(&billing, "#")?;
    ///
    /// let tickets: Vec<_> = (0..100).map(|n| orders.publish_deferred("order.placed", n)).collect();
    /// for ticket in tickets {
    ///     ticket.wait().unwrap(); // synced
    /// }
    /// assert_eq!(billing.len(), 100);
    /// # drop((broker, billing));
    /// # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
    /// # Ok::<(), postroom::Error>(())
    /// ```
    pub fn publish_deferred(&self, key: impl AsRef<str>, message: impl Into<Message<T>>) -> Ticket<T> {
        self.publish_later(key.as_ref(), message.into(), Patience::Forever)
    }

    pub(crate) fn publish_later(&self, key: &str, message: Message<T>, patience: Patience) -> Ticket<T> {
        self.core.publish_deferred(&self.core, key, message, patience)
    }
}

impl<T: Send + Sync + 'static> Queue<T> {
    /// As [`Queue::send`], without waiting for the commit of a durable queue; see [`Topic::publish_deferred`].
    pub fn send_deferred(&self, message: impl Into<Message<T>>) -> Ticket<T> {
        self.send_later(message.into(), Patience::Forever)
    }

    pub(crate) fn send_later(&self, mut message: Message<T>, patience: Patience) -> Ticket<T> {
        self.core.stamp(&mut message);
        let id = message.id;
        if self.core.is_durable() {
            return begin(&self.core, message, None, patience);
        }
        let accepted = self.core.accept(message, patience);
        let routed = accepted.map(|accepted| usize::from(accepted.is_routed()));
        let result = routed.map_err(|refused| refusal_error(&self.core, refused));
        Ticket::known(id, result.map(|routed| Receipt { id, routed }))
    }
}

fn begin<T: Send + Sync + 'static>(
    core: &Arc<Core<T>>,
    message: Message<T>,
    topic: Option<Arc<TopicCore<T>>>,
    patience: Patience,
) -> Ticket<T> {
    let id = message.id;
    match core.begin_durably(message, patience) {
        Ok(pending) => Ticket::pending(id, pending, core, topic),
        Err(refused) => Ticket::known(id, Err(refusal_error(core, refused))),
    }
}

impl<T: Send + Sync + 'static> TopicCore<T> {
    fn publish_deferred(&self, me: &Arc<Self>, key: &str, mut message: Message<T>, patience: Patience) -> Ticket<T> {
        if self.limited.load(Ordering::Relaxed) {
            let given = message.id;
            let result = self.publish(key, message, patience);
            let id = result.as_ref().map_or(given, Receipt::id);
            return Ticket::known(id, result);
        }
        self.stamp(&mut message, Text::new(key));
        let id = message.id;
        let route = self.remembered_route(&message.routing_key);
        match (&route, durably::first_durable(route.only_queues())) {
            (Route::One(queue), Some(_)) => begin(queue, message, Some(Arc::clone(me)), patience),
            (Route::Many(queues), Some(by)) => match durably::begin(queues, &[], Vec::new(), message, patience) {
                Ok(pending) => Ticket::pending(id, pending, by, Some(Arc::clone(me))),
                Err(refused) => Ticket::known(id, Err(refused)),
            },
            _ => Ticket::known(id, self.publish_slowly(&route, message, patience)),
        }
    }
}
