//! The floor under a hand-off that safe Rust can peek into: two mutexes and an envelope, and nothing else.
//!
//! An envelope as large as postroom's is filled, put in under the producers' lock and taken out under the
//! consumers'. No names, routes, acknowledgement or retry, and nobody ever sleeps.

use std::{
    collections::VecDeque,
    hint, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use parking_lot::Mutex;

use crate::work::{
    CAPACITY, Contestant, Outcome, Payload, Tally, crew,
    crew::{Share, handles},
};

pub const SELF: Contestant = Contestant {
    name: "two mutexes",
    package: Some("parking_lot"),
    note: "a floor: envelope and locks, nothing else; spins",
};

pub const SETTLED: Contestant = Contestant {
    name: "two mutexes, settled",
    package: Some("parking_lot"),
    note: "a floor: the same, and what is received holds its queue until it is acknowledged, which is counted",
};

/// As much as postroom knows about a message, in as many bytes.
pub struct Envelope<T> {
    _id: u64,
    _published_at: u64,
    attempt: u64,
    _routing_key: [u8; 24],
    _extras: Option<Box<u64>>,
    payload: T,
}

impl<T> Envelope<T> {
    pub fn new(id: u64, payload: T) -> Self {
        let routing_key = *b"parcel.sent.............";
        Self { _id: id, _published_at: id, attempt: 0, _routing_key: routing_key, _extras: None, payload }
    }

    pub fn open(mut self) -> T {
        self.attempt += 1;
        self.payload
    }
}

#[repr(align(128))]
struct Padded<V>(V);

struct Queue<T> {
    tail: Padded<Mutex<Tail<T>>>,
    head: Padded<Mutex<VecDeque<Envelope<T>>>>,
    taken: Padded<AtomicU64>,
    acknowledged: Padded<AtomicU64>,
    producers: AtomicUsize,
}

struct Tail<T> {
    messages: VecDeque<Envelope<T>>,
    sent: u64,
}

impl<T: Payload> Queue<T> {
    fn new(producers: usize) -> Arc<Self> {
        Arc::new(Self {
            tail: Padded(Mutex::new(Tail { messages: VecDeque::with_capacity(CAPACITY), sent: 0 })),
            head: Padded(Mutex::new(VecDeque::with_capacity(CAPACITY))),
            taken: Padded(AtomicU64::new(0)),
            acknowledged: Padded(AtomicU64::new(0)),
            producers: AtomicUsize::new(producers),
        })
    }

    fn send(&self, payload: T) {
        let mut round = 0;
        loop {
            let mut tail = self.tail.0.lock();
            if tail.sent - self.taken.0.load(Ordering::Acquire) < CAPACITY as u64 {
                let envelope = Envelope::new(tail.sent, payload);
                tail.sent += 1;
                return tail.messages.push_back(envelope);
            }
            drop(tail);
            snooze(&mut round);
        }
    }

    fn try_recv(&self) -> Option<T> {
        self.try_take().map(Envelope::open)
    }

    fn try_take(&self) -> Option<Envelope<T>> {
        let mut head = self.head.0.lock();
        if head.is_empty() {
            mem::swap(&mut *head, &mut self.tail.0.lock().messages);
        }
        let envelope = head.pop_front()?;
        self.taken.0.store(self.taken.0.load(Ordering::Relaxed) + 1, Ordering::Release);
        Some(envelope)
    }

    /// `None` once all producers are gone and everything is taken.
    fn recv(&self) -> Option<T> {
        let mut round = 0;
        loop {
            let over = self.producers.load(Ordering::Acquire) == 0;
            match self.try_recv() {
                None if !over => snooze(&mut round),
                answer => return answer,
            }
        }
    }
}

/// What is to be acknowledged, wherever its receiver takes it.
struct Delivery<T> {
    envelope: Envelope<T>,
    queue: Arc<Queue<T>>,
}

impl<T: Payload> Delivery<T> {
    fn receive(queue: &Arc<Queue<T>>) -> Option<Self> {
        Some(Self { envelope: queue.try_take()?, queue: Arc::clone(queue) })
    }

    fn acknowledge(self) -> T {
        self.queue.acknowledged.0.fetch_add(1, Ordering::Relaxed);
        self.envelope.open()
    }
}

fn snooze(round: &mut u32) {
    if *round < 4 {
        (0..20).for_each(|_| hint::spin_loop());
    } else {
        thread::yield_now();
    }
    *round += 1;
}

pub fn one_to_one<T: Payload>(n: u64) -> Outcome {
    let queue = Queue::new(1);
    crew::run(n, [|share: Share<T>| send(&queue, share)], [|| receive(&queue)])
}

pub fn many<T: Payload, const N: usize>(n: u64) -> Outcome {
    let queue = Queue::new(N);
    let producers = handles::<_, N>(Arc::clone(&queue)).map(|queue| move |share: Share<T>| send(&queue, share));
    let consumers = handles::<_, N>(queue).map(|queue| move || receive(&queue));
    crew::run(n, producers, consumers)
}

pub fn one_thread<T: Payload>(n: u64) -> Outcome {
    let queue = Queue::new(1);
    crew::alone(n, |message: T| {
        queue.send(message);
        queue.recv().unwrap()
    })
}

pub fn one_thread_settled<T: Payload>(n: u64) -> Outcome {
    let queue = Queue::new(1);
    crew::alone(n, |message: T| {
        queue.send(message);
        Delivery::receive(&queue).unwrap().acknowledge()
    })
}

fn send<T: Payload>(queue: &Queue<T>, share: Share<T>) {
    share.for_each(|message| queue.send(message));
    queue.producers.fetch_sub(1, Ordering::Release);
}

fn receive<T: Payload>(queue: &Queue<T>) -> Tally {
    std::iter::from_fn(|| queue.recv()).collect()
}
