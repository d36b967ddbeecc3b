//! How large it may get: many queues, many consumers, much memory.

use std::{
    env, fs,
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

use postroom::{Binding, Broker, Message, Queue, Topic};

use super::{Block, Contestant, Payload, hand_off};

pub const SELF: Contestant = Contestant { note: "", ..hand_off::postroom::SELF };
pub const CROSSBEAM: Contestant = Contestant { name: "crossbeam-channel", ..hand_off::crossbeam::SELF };

/// Milliseconds for so many queues, and for a binding of each to one topic.
pub fn declare(n: u64) -> Result<Vec<f64>, String> {
    let broker = Broker::new();
    let topic: Topic<u64> = broker.topic("orders").declare().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let queues: Vec<_> = (0..n).map(|number| queue(&broker, number)).collect();
    let declared = start.elapsed();
    let start = Instant::now();
    for (number, queue) in queues.iter().enumerate() {
        topic.bind(queue, Binding::pattern(format!("site{number}.*.#"))).map_err(|error| error.to_string())?;
    }
    let bound = start.elapsed();
    let found = topic.publish("site1.order", 0).map_or(0, |receipt| receipt.routed());
    if found == 1 { Ok(vec![millis(declared), millis(bound)]) } else { Err(format!("{found} queues found")) }
}

/// Milliseconds until so many workers of one consumer, all waiting for messages, have stopped.
pub fn stop(n: u64) -> Result<Vec<f64>, String> {
    let broker = Broker::new();
    let queue = queue(&broker, 0);
    let consumer =
        queue.consumer().workers(n as usize).start(|_: &Message<u64>| {}).map_err(|error| error.to_string())?;
    (0..n).for_each(|number| assert!(queue.send(number).is_ok()));
    assert!(broker.wait_idle(Duration::from_secs(10)));
    let start = Instant::now();
    consumer.stop();
    let took = start.elapsed();
    if consumer.workers() == 0 { Ok(vec![millis(took)]) } else { Err("workers are left".into()) }
}

/// Milliseconds until the broker has shut down, with so many consumers of a queue each.
pub fn shut_down(n: u64) -> Result<Vec<f64>, String> {
    let broker = Broker::new();
    for number in 0..n {
        let queue = queue(&broker, number);
        queue.consumer().start(|_: &Message<u64>| {}).map_err(|error| error.to_string())?;
        assert!(queue.send(number).is_ok());
    }
    assert!(broker.wait_idle(Duration::from_secs(10)));
    let start = Instant::now();
    let report = broker.shutdown(Duration::from_secs(10));
    let took = start.elapsed();
    if report.is_clean() { Ok(vec![millis(took)]) } else { Err(report.to_string()) }
}

fn queue(broker: &Broker, number: u64) -> Queue<u64> {
    broker.queue(format!("queue {number}")).declare().expect("a new queue")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What is weighed: its name on the command line, and what takes memory.
type Load = (&'static str, fn(u64) -> Box<dyn Send>);

/// Each in a process of its own, because memory that was freed before would be used again unseen.
const LOADS: &[Load] = &[
    ("postroom-queue", idle_queues),
    ("postroom-u64", |n| queued(n, |number| number)),
    ("postroom-128B", |n| queued(n, Block::numbered)),
    ("postroom-delayed", delayed),
    ("crossbeam-queue", |n| Box::new((0..n).map(|_| crossbeam_channel::bounded::<u64>(1024)).collect::<Vec<_>>())),
    ("crossbeam-u64", |n| in_channel(n, |number| number)),
    ("crossbeam-128B", |n| in_channel(n, Block::numbered)),
];

/// Bytes for each: idle queue of capacity 1024, queued `u64`, queued 128-byte struct, delayed `u64`.
pub fn postroom_memory(n: u64) -> Result<Vec<f64>, String> {
    weigh(&[("postroom-queue", n / 100), ("postroom-u64", n), ("postroom-128B", n), ("postroom-delayed", n)])
}

/// The same; it has no delay.
pub fn crossbeam_memory(n: u64) -> Result<Vec<f64>, String> {
    let mut bytes = weigh(&[("crossbeam-queue", n / 100), ("crossbeam-u64", n), ("crossbeam-128B", n)])?;
    bytes.push(f64::NAN);
    Ok(bytes)
}

fn weigh(loads: &[(&str, u64)]) -> Result<Vec<f64>, String> {
    loads.iter().map(|(name, n)| weigh_in_child(name, *n)).collect()
}

fn weigh_in_child(name: &str, n: u64) -> Result<f64, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program).args(["--weigh", name, &n.to_string()]).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| format!("weighing {name} failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// In the child: bytes for each of `n`, or none if nothing of that name can be weighed here.
pub fn weigh_here(name: &str, n: u64) -> Option<f64> {
    let (_, load) = LOADS.iter().find(|(load, _)| *load == name)?;
    let before = resident()?;
    let held = black_box(load(n));
    let after = resident()?;
    drop(held);
    Some(after.saturating_sub(before) as f64 / n as f64)
}

/// Bytes of memory this process has in use.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn idle_queues(n: u64) -> Box<dyn Send> {
    let broker = Broker::new();
    (0..n).for_each(|number| _ = queue(&broker, number));
    Box::new(broker)
}

fn queued<T: Payload>(n: u64, make: fn(u64) -> T) -> Box<dyn Send> {
    let broker = Broker::new();
    let queue: Queue<T> = broker.queue("deep").capacity(n as usize).declare().expect("a new queue");
    (0..n).for_each(|number| assert!(queue.send(make(number)).is_ok()));
    Box::new((broker, queue))
}

fn delayed(n: u64) -> Box<dyn Send> {
    let broker = Broker::new();
    let queue: Queue<u64> = broker.queue("later").capacity(n as usize).declare().expect("a new queue");
    let hour = Duration::from_secs(3600);
    (0..n).for_each(|number| assert!(queue.send(Message::new(number).with_delay(hour)).is_ok()));
    Box::new((broker, queue))
}

fn in_channel<T: Payload>(n: u64, make: fn(u64) -> T) -> Box<dyn Send> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    (0..n).for_each(|number| sender.send(make(number)).unwrap());
    Box::new((sender, receiver))
}
