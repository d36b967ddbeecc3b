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
    /// The logs.
    pub logs: Vec<LogDescription>,
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
    /// How it finds out about half messages, and where unresolved ones go; `None` if it takes none.
    pub check_back: Option<String>,
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
    /// Where a durable queue's messages go that cannot be decoded; `None` for a dead-letter queue.
    pub undecodable: Option<String>,
    /// Workers of all its consumers.
    pub workers: usize,
    /// What a durable queue promises; `None` if it is only in memory.
    pub durable: Option<&'static str>,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogDescription {
    /// Its name.
    pub name: String,
    /// The type of its payload.
    pub payload: &'static str,
    /// How many partitions it has.
    pub partitions: usize,
    /// How much it keeps.
    pub retention: String,
    /// Whether it keeps only the latest record of each key.
    pub compacted: bool,
    /// What a durable log promises; `None` if it is only in memory.
    pub durable: Option<&'static str>,
    /// Its groups.
    pub groups: Vec<GroupDescription>,
}

/// One group of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// Its retry policy.
    pub retry: String,
    /// Where its dead letters go.
    pub dead_letters: String,
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
            if let Some(check_back) = &topic.check_back {
                writeln!(f, "  half messages: {check_back}")?;
            }
            for (binding, target) in &topic.bindings {
                writeln!(f, "  {binding} -> {target}")?;
            }
        }
        self.queues.iter().try_for_each(|queue| write!(f, "{queue}"))?;
        self.logs.iter().try_for_each(|log| write!(f, "{log}"))
    }
}

impl fmt::Display for LogDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, payload, partitions) = (&self.name, self.payload, self.partitions);
        write!(f, "log {name:?} of {payload}, {partitions} partitions, keeps {}", self.retention)?;
        f.write_str(if self.compacted { ", compacted" } else { "" })?;
        self.durable.map_or(Ok(()), |promise| write!(f, ", {promise}"))?;
        writeln!(f)?;
        for group in &self.groups {
            let GroupDescription { name, retry, dead_letters, workers } = group;
            write!(f, "  group {name:?}, retry {retry}, dead letters to {dead_letters:?}")?;
            if *workers > 0 {
                write!(f, ", {workers} workers")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl TopicDescription {
    fn routing_text(&self) -> String {
        self.routing.map_or("own router".into(), |routing| format!("routing {routing:?}"))
    }
}

impl fmt::Display for QueueDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {:?} of {}", self.name, self.payload)?;
        match self.capacity {
            u64::MAX => f.write_str(", unbounded")?,
            capacity => write!(f, ", capacity {capacity}, {:?}", self.overflow)?,
        }
        if let Some(retry) = &self.retry {
            write!(f, ", retry {retry}")?;
        }
        if let Some(dead) = &self.dead_letters {
            write!(f, ", dead letters to {dead:?}")?;
        }
        if self.workers > 0 {
            write!(f, ", {} workers", self.workers)?;
        }
        if let Some(promise) = self.durable {
            write!(f, ", {promise}")?;
        }
        if let Some(apart) = &self.undecodable {
            write!(f, ", what cannot be decoded to {apart:?}")?;
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
            if let Some(apart) = &queue.undecodable {
                let _ = writeln!(out, "    {node} -. undecodable .-> {}", self.node(&format!("queue {apart:?}")));
            }
            if queue.workers > 0 {
                let _ = writeln!(out, "    {node} --> {node}w{{{{\"{} workers\"}}}}", queue.workers);
            }
        }
        self.draw_logs(&mut out);
        out
    }

    fn draw_logs(&self, out: &mut String) {
        for log in &self.logs {
            let node = self.node(&format!("log {:?}", log.name));
            let _ = writeln!(out, "    {node}[/\"{}\"/]", escaped(&log.name));
            for (i, group) in log.groups.iter().enumerate() {
                let _ = writeln!(out, "    {node} --> {node}g{i}{{{{\"group {}\"}}}}", escaped(&group.name));
                let dead = self.node(&format!("queue {:?}", group.dead_letters));
                let _ = writeln!(out, "    {node}g{i} -. dead letters .-> {dead}");
            }
        }
    }

    /// An identifier that the diagram language takes, whatever the name.
    fn node(&self, full_name: &str) -> String {
        let topics = self.topics.iter().map(|topic| format!("topic {:?}", topic.name));
        let queues = self.queues.iter().map(|queue| format!("queue {:?}", queue.name));
        let logs = self.logs.iter().map(|log| format!("log {:?}", log.name));
        let position = topics.chain(queues).chain(logs).position(|name| name == full_name);
        position.map_or_else(|| "unknown".into(), |position| format!("n{position}"))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "#quot;").replace('<', "&lt;").replace('>', "&gt;")
}
