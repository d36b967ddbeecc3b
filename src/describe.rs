//! The topology, for people.

use crate::queue::Overflow;
use crate::topic::Routing;
use std::fmt::{self, Write as _};

/// A broker's topics, bindings and queues, each in the order of their names.
///
/// ```
/// use postroom::{Broker, Queue, Topic};
///
/// let broker = Broker::new();
/// let orders: Topic<u32> = broker.topic("orders").declare()?;
/// let billing: Queue<u32> = broker.queue("billing").declare()?;
/// orders.bind(&billing, "order.*")?;
///
/// let description = broker.describe();
/// assert!(description.to_string().contains(r#""order.*" -> queue "billing""#));
/// assert!(description.mermaid().starts_with("flowchart LR"));
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The topics.
    pub topics: Vec<TopicDescription>,
    /// The queues, dead-letter queues included.
    pub queues: Vec<QueueDescription>,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// The type of its payload.
    pub payload: &'static str,
    /// How it chooses among its bindings; `None` for a router of the user's own.
    pub routing: Option<Routing>,
    /// Each binding, and what it leads to.
    pub bindings: Vec<(String, String)>,
    /// Its subscribers now.
    pub subscribers: usize,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDescription {
    /// Its name.
    pub name: String,
    /// The type of its payload.
    pub payload: &'static str,
    /// How many messages it may hold.
    pub capacity: u64,
    /// What happens when it is full.
    pub overflow: Overflow,
    /// Its retry policy; `None` for a dead-letter queue, which never gives up.
    pub retry: Option<String>,
    /// Where its dead letters go; `None` for a dead-letter queue.
    pub dead_letters: Option<String>,
    /// Workers of all its consumers.
    pub workers: usize,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for topic in &self.topics {
            write!(f, "topic {:?} of {}, {}", topic.name, topic.payload, topic.routing_text())?;
            match topic.subscribers {
                0 => writeln!(f)?,
                1 => writeln!(f, ", 1 subscriber")?,
                n => writeln!(f, ", {n} subscribers")?,
            }
            for (binding, target) in &topic.bindings {
                writeln!(f, "  {binding} -> {target}")?;
            }
        }
        self.queues.iter().try_for_each(|queue| write!(f, "{queue}"))
    }
}

impl TopicDescription {
    fn routing_text(&self) -> String {
        self.routing.map_or("own router".into(), |routing| format!("routing {routing:?}"))
    }
}

impl fmt::Display for QueueDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {:?} of {}, capacity {}, {:?}", self.name, self.payload, self.capacity, self.overflow)?;
        if let Some(retry) = &self.retry {
            write!(f, ", retry {retry}")?;
        }
        if let Some(dead) = &self.dead_letters {
            write!(f, ", dead letters to {dead:?}")?;
        }
        if self.workers > 0 {
            write!(f, ", {} workers", self.workers)?;
        }
        writeln!(f)
    }
}

impl Description {
    /// The topology as a [Mermaid](https://mermaid.js.org) flowchart, which many Markdown viewers draw.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut out = String::from("flowchart LR\n");
        for topic in &self.topics {
            let name = format!("topic {:?}", topic.name);
            let _ = writeln!(out, "    {}([\"{}\"])", self.node(&name), escaped(&topic.name));
            for (binding, target) in &topic.bindings {
                let (from, to) = (self.node(&name), self.node(target));
                let _ = writeln!(out, "    {from} -- \"{}\" --> {to}", escaped(binding));
            }
        }
        for topic in self.topics.iter().filter(|topic| topic.subscribers > 0) {
            let node = self.node(&format!("topic {:?}", topic.name));
            let _ = writeln!(out, "    {node} --> {node}s{{{{\"{} subscribers\"}}}}", topic.subscribers);
        }
        for queue in &self.queues {
            let node = self.node(&format!("queue {:?}", queue.name));
            let _ = writeln!(out, "    {node}[(\"{}\")]", escaped(&queue.name));
            if let Some(dead) = &queue.dead_letters {
                let _ = writeln!(out, "    {node} -. dead letters .-> {}", self.node(&format!("queue {dead:?}")));
            }
            if queue.workers > 0 {
                let _ = writeln!(out, "    {node} --> {node}w{{{{\"{} workers\"}}}}", queue.workers);
            }
        }
        out
    }

    /// An identifier that the diagram language takes, whatever the name.
    fn node(&self, full_name: &str) -> String {
        let topics = self.topics.iter().map(|topic| format!("topic {:?}", topic.name));
        let queues = self.queues.iter().map(|queue| format!("queue {:?}", queue.name));
        let position = topics.chain(queues).position(|name| name == full_name);
        position.map_or_else(|| "unknown".into(), |position| format!("n{position}"))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "#quot;").replace('<', "&lt;").replace('>', "&gt;")
}
