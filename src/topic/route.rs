//! Where a routing key leads, and the memory of it.

use super::binding::{Bound, Target};
use super::{Router, TopicCore};
use crate::log::LogCore;
use crate::message::{Message, Text};
use crate::outcome::contained;
use crate::queue::core::Core;
use crate::runtime::thread_slot;
use crate::subscriber::ring::Ring;
use crate::sync::Ordering;
use ahash::AHashMap;
use smallvec::SmallVec;
use std::sync::Arc;

/// Threads spread over this many route caches.
pub(super) const LANES: usize = 8;
/// Routes a lane remembers before it starts afresh.
pub(super) const REMEMBERED_ROUTES: usize = 1024;

/// What some threads' publishes share: their memory of resolved routes, and a count.
pub(super) struct Lane<T> {
    pub(super) version: u64,
    /// By routing key, the position in `routes`.
    pub(super) index: AHashMap<Box<str>, usize>,
    pub(super) routes: Vec<(Text, Route<T>)>,
    /// The position that was asked for last: producers repeat themselves.
    pub(super) latest: usize,
    pub(super) published: u64,
}

/// What a lane remembers of a routing key.
pub(super) struct Known<'a, T> {
    pub(super) route: &'a Route<T>,
    pub(super) key: &'a Text,
    /// The count of what was published.
    pub(super) published: &'a mut u64,
}

/// Where a routing key leads.
pub(super) enum Route<T> {
    Nowhere,
    One(Arc<Core<T>>),
    Many(Arc<[Arc<Core<T>>]>),
    /// To the subscribers of one topic and to nobody else.
    Ring(Arc<Ring<T>>),
    Wide(Arc<Wide<T>>),
    /// Depends on the message: filters, headers, a user's router.
    Asks,
}

/// Queues, logs, and the subscribers of some topics.
pub(super) struct Wide<T> {
    pub(super) queues: Vec<Arc<Core<T>>>,
    pub(super) rings: Vec<Arc<Ring<T>>>,
    pub(super) logs: Vec<Arc<LogCore<T>>>,
    /// Otherwise the rings only remember.
    pub(super) subscribed: bool,
}

impl<T: Send + Sync + 'static> Lane<T> {
    pub(super) fn new() -> Self {
        Self { version: 0, index: AHashMap::new(), routes: Vec::new(), latest: 0, published: 0 }
    }

    /// The route of a key, if it was looked up before and nothing has been bound since.
    ///
    /// The key comes back as the lane keeps it: one that was just put together, byte by byte, is slow to copy.
    #[inline(always)]
    pub(super) fn known(&mut self, topic: &TopicCore<T>, key: &str) -> Option<Known<'_, T>> {
        if self.version != topic.runtime.routes_version.load(Ordering::Acquire) {
            return None;
        }
        if !self.is_latest(key) {
            self.latest = *self.index.get(key)?;
        }
        let (key, route) = self.routes.get(self.latest)?;
        Some(Known { route, key, published: &mut self.published })
    }

    #[inline(always)]
    fn is_latest(&self, key: &str) -> bool {
        self.routes.get(self.latest).is_some_and(|(latest, _)| latest.as_bytes() == key.as_bytes())
    }

    pub(super) fn look_up(&mut self, topic: &TopicCore<T>, key: &Text, outdated: &mut Vec<Outdated<T>>) -> &Route<T> {
        let version = topic.runtime.routes_version.load(Ordering::Acquire);
        if self.version != version || self.routes.len() > REMEMBERED_ROUTES {
            self.index.clear();
            outdated.append(&mut self.routes);
            self.version = version;
        }
        if !self.is_latest(key.as_str()) {
            let position = self.index.get(key.as_str()).copied();
            self.latest = position.unwrap_or_else(|| self.learn(topic, key, version));
        }
        &self.routes[self.latest].1
    }

    #[cold]
    fn learn(&mut self, topic: &TopicCore<T>, key: &Text, version: u64) -> usize {
        self.index.insert(key.as_str().into(), self.routes.len());
        let route = topic.resolve(key.as_str());
        if matches!(route, Route::Ring(_)) && topic.table.lock().is_empty() {
            topic.only_ring_at.fetch_max(version, Ordering::Release);
        }
        self.routes.push((key.clone(), route));
        self.routes.len() - 1
    }
}

/// What a lane has forgotten.
pub(super) type Outdated<T> = (Text, Route<T>);

#[cfg(feature = "sqlite")]
impl<T> Route<T> {
    /// The queues it leads to, if it leads to nothing else.
    pub(super) fn only_queues(&self) -> &[Arc<Core<T>>] {
        match self {
            Self::One(queue) => std::slice::from_ref(queue),
            Self::Many(queues) => queues,
            _ => &[],
        }
    }
}

impl<T> Clone for Route<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Nowhere => Self::Nowhere,
            Self::One(queue) => Self::One(Arc::clone(queue)),
            Self::Many(queues) => Self::Many(Arc::clone(queues)),
            Self::Ring(ring) => Self::Ring(Arc::clone(ring)),
            Self::Wide(wide) => Self::Wide(Arc::clone(wide)),
            Self::Asks => Self::Asks,
        }
    }
}

/// What one walk over the topics has come across.
pub(super) struct Found<T> {
    pub(super) queues: Vec<Arc<Core<T>>>,
    pub(super) rings: Vec<Arc<Ring<T>>>,
    /// Somebody reads one of them.
    pub(super) subscribed: bool,
    pub(super) logs: Vec<Arc<LogCore<T>>>,
    pub(super) topics: SmallVec<[*const (); 8]>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { queues: Vec::new(), rings: Vec::new(), subscribed: false, logs: Vec::new(), topics: SmallVec::new() }
    }
}

impl<T: Send + Sync + 'static> Found<T> {
    /// Whether the walk has been here; a topic reached twice adds nothing the second time.
    pub(super) fn visited(&mut self, topic: &TopicCore<T>) -> bool {
        let topic = std::ptr::from_ref(topic).cast();
        let visited = self.topics.contains(&topic);
        if !visited {
            self.topics.push(topic);
        }
        visited
    }

    /// Each queue and log once, queues in the order they were declared.
    pub(super) fn into_route(mut self) -> Route<T> {
        self.queues.sort_by_key(|queue| queue.number());
        self.queues.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.logs.sort_by(|one, other| one.shelf.name.cmp(&other.shelf.name));
        self.logs.dedup_by(|one, other| Arc::ptr_eq(one, other));
        let Self { mut queues, mut rings, subscribed, logs, .. } = self;
        match (queues.len(), rings.len()) {
            _ if !logs.is_empty() => Route::Wide(Arc::new(Wide { queues, rings, logs, subscribed })),
            (0, 0) => Route::Nowhere,
            (1, 0) => Route::One(queues.remove(0)),
            (_, 0) => Route::Many(queues.into()),
            (0, 1) if subscribed => Route::Ring(rings.remove(0)),
            _ => Route::Wide(Arc::new(Wide { queues, rings, logs, subscribed })),
        }
    }
}

/// Why a walk could not be finished.
pub(super) enum Unresolved {
    NeedsMessage,
    Panicked(String),
}

pub(super) fn passes<T>(
    filter: Option<&(dyn Fn(&T) -> bool + Send + Sync)>,
    message: Option<&Message<T>>,
) -> Result<bool, Unresolved> {
    let Some(filter) = filter else { return Ok(true) };
    let message = message.ok_or(Unresolved::NeedsMessage)?;
    contained(|| filter(message.payload())).map_err(Unresolved::Panicked)
}

pub(super) fn ask_router<T: Send + Sync + 'static>(
    router: &dyn Router<T>,
    message: Option<&Message<T>>,
    bound: &[Arc<Bound<T>>],
) -> Result<SmallVec<[Arc<Bound<T>>; 8]>, Unresolved> {
    let message = message.ok_or(Unresolved::NeedsMessage)?;
    let texts: Vec<&str> = bound.iter().map(|bound| bound.text()).collect();
    let mut selected = Vec::new();
    contained(|| router.route(message, &texts, &mut selected)).map_err(Unresolved::Panicked)?;
    Ok(selected.into_iter().filter_map(|i| bound.get(i).cloned()).collect())
}

impl<T: Send + Sync + 'static> TopicCore<T> {
    /// Where a routing key leads, from this thread's memory if it was asked before.
    pub(super) fn remembered_route(&self, key: &Text) -> Route<T> {
        // Dropped after the lock: a route may hold the last handle to a queue, whose messages go with it.
        let mut outdated = Vec::new();
        self.lanes[thread_slot() % LANES].lock().look_up(self, key, &mut outdated).clone()
    }

    /// What a routing key leads to, as far as that can be said without a message.
    pub(super) fn resolve(&self, key: &str) -> Route<T> {
        let mut found = Found::default();
        if self.collect(key, None, &mut found).is_err() {
            return Route::Asks;
        }
        found.into_route()
    }

    /// What a routing key leads to with this message; otherwise what a filter or a router said when it panicked.
    pub(super) fn route_of(&self, message: &Message<T>) -> Result<Route<T>, String> {
        let mut found = Found::default();
        match self.collect(message.routing_key.as_str(), Some(message), &mut found) {
            Ok(()) => Ok(found.into_route()),
            Err(Unresolved::Panicked(words)) => Err(words),
            Err(Unresolved::NeedsMessage) => unreachable!("it was given one"),
        }
    }

    /// Adds every queue that the message reaches from here. No lock is held while user code runs.
    pub(super) fn collect(
        &self,
        key: &str,
        message: Option<&Message<T>>,
        found: &mut Found<T>,
    ) -> Result<(), Unresolved> {
        if found.visited(self) {
            return Ok(());
        }
        if let Some(ring) = self.ring.get() {
            let (wants, subscribed) = ring.interest();
            found.subscribed |= subscribed;
            found.rings.extend(wants.then(|| Arc::clone(ring)));
        }
        for bound in self.matching(key, message)? {
            if !passes(bound.binding.filter.as_deref(), message)? {
                continue;
            }
            match &bound.target {
                Target::Queue(queue) => found.queues.push(Arc::clone(queue)),
                Target::Topic(topic) => topic.collect(key, message, found)?,
                Target::Log(log) => found.logs.push(Arc::clone(log)),
            }
        }
        Ok(())
    }

    pub(super) fn matching(
        &self,
        key: &str,
        message: Option<&Message<T>>,
    ) -> Result<SmallVec<[Arc<Bound<T>>; 8]>, Unresolved> {
        let table = self.table.lock();
        if let Some(router) = &self.router {
            let bound: SmallVec<_> = table.bound.iter().flatten().cloned().collect();
            drop(table);
            return if bound.is_empty() { Ok(bound) } else { ask_router(&**router, message, &bound) };
        }
        let mut ids = SmallVec::new();
        table.index.by_key(key, &mut ids);
        if table.index.has_headers() {
            let message = message.ok_or(Unresolved::NeedsMessage)?;
            table.index.by_headers(message.headers(), &mut ids);
        }
        Ok(ids.iter().filter_map(|&id| table.bound[id as usize].clone()).collect())
    }
}
