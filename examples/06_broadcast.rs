//! Broadcast: a setting changes, and every node refreshes its cache.
//!
//! **Situation.** Feature switches, black lists and dictionaries are read all the time and changed now and
//! then. Every node keeps a copy in memory. Asking a database for each request is slow; telling each node by
//! name means that whoever changes a setting has to know all nodes.
//!
//! **What the queue gives.** Whoever changes a setting publishes it once; every node that has subscribed sees
//! every change, in order. A node that joins late starts from the current value of each setting and misses
//! nothing that changes meanwhile. What happens to a node that is too slow is chosen, and it is told. The same
//! mechanism pushes jobs to drivers that are connected over TCP.
//!
//! **What to expect on screen.** Five nodes with the same 40 settings after 2000 changes; a late one that needed
//! 40 messages to catch up rather than 2000; slow nodes under each of the three lag policies, and how they
//! recover; drivers on real sockets, one of which hangs up in the middle of its shift.
//!
//! `cargo run --release --example 06_broadcast`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use names::{Job, SETTINGS};
use postroom::{BroadcastError, Broker, Event, Lag, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::TopicName;

    /// The name of a setting is the message's key.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Setting {
        pub value: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Job {
        pub number: u32,
        pub from: &'static str,
        pub to: &'static str,
    }

    pub const SETTINGS: TopicName<Setting> = TopicName::new("settings");
    pub const JOBS: TopicName<Job> = TopicName::new("jobs");
}

/// Where settings are changed. It knows no node.
mod admin {
    use crate::names::{SETTINGS, Setting};
    use postroom::{Broker, Error, Message, Topic};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    pub const SETTINGS_KNOWN: usize = 40;

    pub struct Admin {
        settings: Topic<Setting>,
        /// What every cache has to be equal to in the end.
        truth: Mutex<BTreeMap<String, String>>,
    }

    impl Admin {
        pub fn new(broker: &Broker) -> Result<Self, Error> {
            Ok(Self { settings: broker.topic(SETTINGS).keep_latest_by_key().declare()?, truth: Mutex::default() })
        }

        pub fn set(&self, name: &str, value: impl ToString) {
            let setting = Setting { value: value.to_string() };
            self.truth.lock().unwrap().insert(name.to_owned(), setting.value.clone());
            // Only a broker that is shutting down, or a node that all wait for, can refuse it.
            self.settings.publish("", Message::new(setting).with_key(name)).expect("the broker is open");
        }

        pub fn truth(&self) -> BTreeMap<String, String> {
            self.truth.lock().unwrap().clone()
        }

        /// Changes switches, the black list and the dictionary, one after the other.
        pub fn change(&self, changes: std::ops::Range<usize>) {
            for n in changes {
                let kind = ["feature", "blacklist", "dictionary", "limit"][n % 4];
                self.set(&format!("{kind}.{}", n % SETTINGS_KNOWN / 4), n);
            }
        }
    }
}

/// A node's copy of all settings.
mod node {
    use crate::names::{SETTINGS, Setting};
    use postroom::{Broker, Error, Message, Subscription};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    pub struct Cache {
        values: Mutex<BTreeMap<String, String>>,
        refreshed: Mutex<usize>,
    }

    impl Cache {
        pub fn refresh(&self, setting: &Message<Setting>) {
            let name = setting.key().unwrap_or_default().to_owned();
            self.values.lock().unwrap().insert(name, setting.value.clone());
            *self.refreshed.lock().unwrap() += 1;
        }

        pub fn values(&self) -> BTreeMap<String, String> {
            self.values.lock().unwrap().clone()
        }

        pub fn refreshed(&self) -> usize {
            *self.refreshed.lock().unwrap()
        }
    }

    pub fn start(broker: &Broker, name: &str) -> Result<(Arc<Cache>, Subscription), Error> {
        let cache = Arc::new(Cache::default());
        let mine = cache.clone();
        let settings = broker.topic(SETTINGS).find()?;
        let refresh = move |setting: &Message<Setting>| mine.refresh(setting);
        let subscription = settings.subscribe().name(name).capacity(4096).replay_latest_by_key().start(refresh)?;
        Ok((cache, subscription))
    }
}

/// Pushes jobs to whoever is connected.
mod dispatch {
    use crate::names::Job;
    use postroom::{BroadcastError, Lag, Subscriber, Topic};
    use std::io::{BufRead, BufReader, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// Listens on the loopback interface; each driver that connects is served by a thread of its own until the
    /// topic is closed or the driver hangs up.
    pub fn listen(jobs: Topic<Job>, drivers: usize, online: Arc<AtomicUsize>) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for connection in listener.incoming().take(drivers).flatten() {
                // A driver that does not read in time is cut off: it must not hold up the others.
                let subscriber = jobs.subscribe().name("driver").capacity(4096).lag(Lag::Disconnect).open();
                let Ok(subscriber) = subscriber else { return };
                let online = online.clone();
                online.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    push(subscriber, connection);
                    online.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(address)
    }

    /// Returns when the line is dead or the topic closed, and has unsubscribed by then.
    fn push(jobs: Subscriber<Job>, mut driver: TcpStream) {
        loop {
            let sent = match jobs.recv() {
                Ok(job) => writeln!(driver, "{} {} -> {}", job.number, job.from, job.to),
                Err(BroadcastError::Lagged(_)) => continue,
                Err(_) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// What a driver's own program does: reads jobs until the line goes dead or the shift is over.
    pub fn drive(address: SocketAddr, shift: usize) -> std::io::Result<Vec<u32>> {
        let lines = BufReader::new(TcpStream::connect(address)?).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| line.split(' ').next()?.parse().ok());
        Ok(numbers.take(shift).collect())
    }
}

const CHANGES: usize = 2000;
const NODES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("06_broadcast.rs"));
    let start = Instant::now();
    let cut_off = Arc::new(AtomicUsize::new(0));
    let cuts = cut_off.clone();
    let broker = Broker::builder()
        .on_event(move |event| {
            if let Event::SubscriberDisconnected { topic, subscriber } = event {
                println!("   [event] {subscriber:?} was cut off from {topic:?}");
                cuts.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()?;
    let admin = admin::Admin::new(&broker)?;
    every_node_gets_every_change(&broker, &admin)?;
    slow_nodes(&broker, &admin)?;
    drivers(&broker)?;
    let report = broker.shutdown(PATIENCE);
    assert!(report.is_clean(), "{report}");
    assert_eq!(cut_off.load(Ordering::SeqCst), 1);
    println!("\nShut down: {report}. It took {:.1?}.", start.elapsed());
    Ok(())
}

fn every_node_gets_every_change(broker: &Broker, admin: &admin::Admin) -> Result<(), Box<dyn std::error::Error>> {
    println!("1. {NODES} nodes, {CHANGES} changes of {} settings.", admin::SETTINGS_KNOWN);
    let names: Vec<String> = (1..=NODES).map(|n| format!("node {n}")).collect();
    let nodes = names.iter().map(|name| node::start(broker, name)).collect::<Result<Vec<_>, _>>()?;
    let published = Instant::now();
    admin.change(0..CHANGES / 2);
    // Joins while the second half comes in.
    let (late, _) = thread::scope(|scope| {
        scope.spawn(|| admin.change(CHANGES / 2..CHANGES));
        node::start(broker, "late node")
    })?;
    let took = published.elapsed();
    assert!(broker.wait_idle(PATIENCE), "every node is up to date");
    let truth = admin.truth();
    assert_eq!(truth.len(), admin::SETTINGS_KNOWN);
    for (cache, subscription) in &nodes {
        assert_eq!((cache.refreshed(), subscription.lagged()), (CHANGES, 0), "every change, each once");
        assert_eq!(cache.values(), truth);
    }
    println!("   {NODES} nodes x {CHANGES} changes seen, all caches equal; published in {took:.1?}");

    println!("\n2. Nodes that join late start from the current values.");
    assert_eq!(late.values(), truth, "it missed nothing that changed while it joined");
    // The settings as they stood, and every change from then on.
    let most = admin::SETTINGS_KNOWN + CHANGES / 2;
    assert!((admin::SETTINGS_KNOWN..=most).contains(&late.refreshed()), "{} messages", late.refreshed());
    println!("   one joined in the middle of the changes: its cache is equal after {} messages", late.refreshed());
    let (latest, _) = node::start(broker, "latest node")?;
    assert!(broker.wait_idle(PATIENCE));
    assert_eq!((latest.values(), latest.refreshed()), (truth, admin::SETTINGS_KNOWN));
    println!("   one joined after them: its cache is equal after {} messages, not {CHANGES}", latest.refreshed());
    Ok(())
}

fn slow_nodes(broker: &Broker, admin: &admin::Admin) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n3. Nodes that are too slow: 100 changes, room for 10.");
    let settings = broker.topic(SETTINGS).find()?;
    let slow = settings.subscribe().name("slow node").capacity(10).lag(Lag::DropOldest).open()?;
    let hung = settings.subscribe().name("hung node").capacity(10).lag(Lag::Disconnect).open()?;
    admin.change(0..100);

    let Err(BroadcastError::Lagged(missed)) = slow.recv() else { return Err("it must have lagged".into()) };
    let left = slow.recv_batch(100)?.len();
    println!("   DropOldest: told that it missed {missed}, went on with the last {left}");
    assert_eq!((missed, left), (90, 10));
    let cache = node::Cache::default();
    let again = settings.subscribe().replay_latest_by_key().open()?;
    (0..admin::SETTINGS_KNOWN).try_for_each(|_| again.recv().map(|setting| cache.refresh(&setting)))?;
    println!("   what it missed does not matter: it subscribed again and has all {} values", cache.values().len());
    assert_eq!(cache.values(), admin.truth());

    let end = hung.recv().expect_err("it is told, rather than left with old values");
    println!("   Disconnect: {end}");
    assert_eq!(end, BroadcastError::Disconnected);

    let (each, room) = (Duration::from_millis(2), 10);
    let strict = settings.subscribe().name("strict node").capacity(room).lag(Lag::Block).open()?;
    let begun = Instant::now();
    let seen = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let take = |_| {
                thread::sleep(each);
                strict.recv().is_ok()
            };
            (0..100).filter(|n| take(*n)).count()
        });
        admin.change(0..100);
        println!("   Block: the admin waited {:.0?} until the node had room for all", begun.elapsed());
        assert!(begun.elapsed() >= each * (100 - room as u32));
        reader.join().expect("it does not panic")
    });
    println!("   ... and the node saw all {seen}");
    assert_eq!(seen, 100);
    let stats = settings.stats();
    println!("   counted: {} missed, {} cut off", stats.lagged, stats.disconnected);
    // The slow node has subscribed all the time, and missed what came for the strict one as well.
    assert_eq!((stats.lagged, stats.disconnected), (90 + 90, 1));
    Ok(())
}

fn drivers(broker: &Broker) -> Result<(), Box<dyn std::error::Error>> {
    const DRIVERS: usize = 4;
    const JOBS: u32 = 200;
    println!("\n4. Jobs pushed to {DRIVERS} drivers over TCP; one hangs up after 20.");
    let jobs: Topic<Job> = broker.topic(names::JOBS).declare()?;
    let online = Arc::new(AtomicUsize::new(0));
    let address = dispatch::listen(jobs.clone(), DRIVERS, online.clone())?;
    let drivers: Vec<_> = (0..DRIVERS)
        .map(|n| thread::spawn(move || dispatch::drive(address, if n == 0 { 20 } else { JOBS as usize })))
        .collect();
    until(|| online.load(Ordering::SeqCst) == DRIVERS);
    println!("   {DRIVERS} drivers online at {address}");
    for number in 0..JOBS {
        jobs.publish("", Job { number, from: "Central Station", to: "Airport" })?;
        if number % 20 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let seen = drivers.into_iter().map(|driver| driver.join().expect("it does not panic"));
    let seen = seen.collect::<Result<Vec<_>, _>>()?;
    assert!(seen[0].iter().copied().eq(0..20));
    for jobs in &seen[1..] {
        assert!(jobs.iter().copied().eq(0..JOBS), "every job, in order");
    }
    println!("   {} drivers got all {JOBS} jobs, the one that hung up {}", DRIVERS - 1, seen[0].len());
    // Writing to a line that is dead fails sooner or later; that ends the subscription. No faster than anybody could
    // read, or one who is only slow would be cut off.
    until(|| {
        _ = jobs.publish("", Job { number: JOBS, from: "nowhere", to: "nowhere" });
        thread::sleep(Duration::from_millis(19));
        online.load(Ordering::SeqCst) == 0
    });
    assert_eq!(jobs.stats().subscribers, 0);
    println!("   all have hung up: 0 subscribers left");
    Ok(())
}

fn until(mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < patience, "it did not come to that");
        thread::sleep(Duration::from_millis(1));
    }
}
