//! What a topic is bound to.

use super::{Routing, Topic, TopicCore};
use crate::error::Error;
use crate::log::{Log, LogCore};
use crate::queue::Queue;
use crate::queue::core::Core;
use crate::route::{Binding, Index, Pattern, Resolved, Selector};
use crate::runtime::Runtime;
use crate::sync::Ordering;
use std::fmt;
use std::sync::Arc;

pub(super) struct Table<T> {
    pub(super) index: Index,
    /// By the id the index knows it by; `None` once unbound.
    pub(super) bound: Vec<Option<Arc<Bound<T>>>>,
}

pub(super) struct Bound<T> {
    pub(super) binding: Binding<T>,
    pub(super) resolved: Resolved,
    pub(super) target: Target<T>,
}

/// What a topic can be bound to.
pub(crate) enum Target<T> {
    Queue(Arc<Core<T>>),
    Topic(Arc<TopicCore<T>>),
    Log(Arc<LogCore<T>>),
}

mod sealed {
    pub trait Sealed {}
    impl<T> Sealed for super::Queue<T> {}
    impl<T> Sealed for super::Topic<T> {}
    impl<T> Sealed for super::Log<T> {}
}

/// What a topic can be bound to: a [`Queue`], a [`Log`] or another [`Topic`] of the same payload.
pub trait BindTarget<T>: sealed::Sealed {
    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T>;
}

impl<T> BindTarget<T> for Queue<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Queue(Arc::clone(&self.core))
    }
}

impl<T> BindTarget<T> for Log<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Log(Arc::clone(&self.core))
    }
}

impl<T> BindTarget<T> for Topic<T> {
    #[allow(private_interfaces)]
    fn target(&self) -> Target<T> {
        Target::Topic(Arc::clone(&self.core))
    }
}

impl<T: Send + Sync + 'static> Table<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.bound.is_empty()
    }

    pub(super) fn find(&self, target: &Target<T>, binding: &Binding<T>) -> Option<u32> {
        let same = |bound: &Arc<Bound<T>>| bound.target.is(target) && bound.binding.same_as(binding);
        let position = self.bound.iter().position(|bound| bound.as_ref().is_some_and(same));
        position.map(|id| id as u32)
    }

    pub(super) fn insert(&mut self, bound: Bound<T>) {
        // Never reused: ids give the order of binding, which a user's router sees.
        let id = self.bound.len() as u32;
        self.index.insert(id, &bound.resolved);
        self.bound.push(Some(Arc::new(bound)));
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Arc<Bound<T>>> {
        let bound = self.bound[id as usize].take()?;
        self.index.remove(id, &bound.resolved);
        while self.bound.last().is_some_and(Option::is_none) {
            self.bound.pop();
        }
        Some(bound)
    }
}

impl<T: Send + Sync + 'static> Target<T> {
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Queue(one), Self::Queue(other)) => Arc::ptr_eq(one, other),
            (Self::Topic(one), Self::Topic(other)) => Arc::ptr_eq(one, other),
            (Self::Log(one), Self::Log(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    pub(super) fn runtime(&self) -> &Arc<Runtime> {
        match self {
            Self::Queue(queue) => &queue.runtime,
            Self::Topic(topic) => &topic.runtime,
            Self::Log(log) => &log.shelf.runtime,
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Display for Target<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue {:?}", queue.name),
            Self::Topic(topic) => write!(f, "topic {:?}", topic.name),
            Self::Log(log) => write!(f, "log {:?}", log.shelf.name),
        }
    }
}

impl<T: Send + Sync + 'static> Bound<T> {
    pub(super) fn text(&self) -> &str {
        match &self.binding.selector {
            Selector::Text(text) => text,
            _ => "",
        }
    }
}

impl<T: Send + Sync + 'static> TopicCore<T> {
    pub(super) fn bind(&self, target: Target<T>, binding: Binding<T>) -> Result<(), Error> {
        let resolved =
            self.resolve_selector(&binding.selector).map_err(|problem| self.binding_error(&binding, problem))?;
        if !Arc::ptr_eq(target.runtime(), &self.runtime) {
            return Err(self.binding_error(&binding, format!("{target} belongs to another broker")));
        }
        // Held until the binding is in, so that no other can close a cycle meanwhile.
        let _topology = self.runtime.topology.lock();
        if let Target::Topic(topic) = &target
            && let Some(path) = topic.path_to(self)
        {
            return Err(self.binding_error(&binding, format!("messages would go in a circle: {} -> {path}", self.name)));
        }
        let mut table = self.table.lock();
        if table.find(&target, &binding).is_some() {
            return Ok(());
        }
        table.insert(Bound { binding, resolved, target });
        drop(table);
        self.runtime.routes_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub(super) fn unbind(&self, target: &Target<T>, binding: &Binding<T>) -> Result<(), Error> {
        let removed = {
            let mut table = self.table.lock();
            let found = table.find(target, binding);
            found.and_then(|id| table.remove(id))
        };
        if removed.is_none() {
            return Err(self.binding_error(binding, format!("there is no such binding to {target}")));
        }
        self.runtime.routes_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    pub(super) fn binding_error(&self, binding: &Binding<T>, problem: impl Into<String>) -> Error {
        Error::new(format!("binding {binding} of topic {:?}", self.name), problem)
    }

    /// Reads a binding as this topic's kind of routing does.
    pub(super) fn resolve_selector(&self, selector: &Selector) -> Result<Resolved, String> {
        if self.settings.own_router {
            return match selector {
                Selector::Text(_) | Selector::All => Ok(Resolved::All),
                _ => Err("a topic with a router of its own takes plain text, which the router reads".into()),
            };
        }
        match (self.settings.routing, selector) {
            (_, Selector::All) | (Routing::Fanout, Selector::Text(_)) => Ok(Resolved::All),
            (Routing::Direct, Selector::Text(key)) => Ok(Resolved::Key(key.clone())),
            (Routing::Direct | Routing::Pattern, Selector::Key(key)) => Ok(Resolved::Key(key.clone())),
            (Routing::Pattern, Selector::Text(pattern) | Selector::Pattern(pattern)) => {
                Pattern::parse(pattern).map(Resolved::Pattern).map_err(|error| error.to_string())
            }
            (Routing::Pattern | Routing::Headers, Selector::Headers(headers)) => Ok(Resolved::Headers(headers.clone())),
            (routing, _) => Err(format!("a topic with routing {routing:?} cannot match it")),
        }
    }

    /// The way from here to `goal` over topics, if there is one, as "a -> b -> c".
    pub(super) fn path_to(&self, goal: &TopicCore<T>) -> Option<String> {
        if std::ptr::eq(self, goal) {
            return Some(goal.name.to_string());
        }
        let next: Vec<_> = self.table.lock().bound.iter().flatten().cloned().collect();
        next.iter().find_map(|bound| match &bound.target {
            Target::Topic(topic) => topic.path_to(goal).map(|path| format!("{} -> {path}", self.name)),
            Target::Queue(_) | Target::Log(_) => None,
        })
    }

    /// Each binding and the name of what it leads to.
    pub(crate) fn bindings(&self) -> Vec<(String, String)> {
        let table = self.table.lock();
        let bound = table.bound.iter().flatten();
        let mut bindings: Vec<_> = bound.map(|bound| (bound.binding.to_string(), bound.target.to_string())).collect();
        if let Some(queue) = &self.alternate {
            bindings.push(("nothing else".into(), format!("queue {:?}", queue.name)));
        }
        bindings
    }
}
