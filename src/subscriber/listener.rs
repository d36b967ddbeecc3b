//! A subscriber whose messages go to a handler.

use super::LagHook;
use super::reader::Reader;
use super::ring::Ring;
use super::seat::{Lag, Seat};
use crate::breaker::Circuit;
use crate::clock::Timestamp;
use crate::consumer::Crew;
use crate::error::{BroadcastError, Error};
use crate::message::{Message, MessageId};
use crate::outcome::contained;
use crate::queue::core::Patience;
use crate::runtime::Event;
use crate::scheduler::TimedId;
use crate::simulation::Task;
use crate::stats::Counter;
use crate::sync::{AtomicBool, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, ThreadBuilder, current_thread};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A running handler of broadcasts. Dropping this handle leaves it running.
///
/// ```
/// use postroom::{Broker, Message, Topic};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::time::Duration;
///
/// let broker = Broker::new();
/// let topic: Topic<u32> = broker.topic("numbers").declare()?;
/// let sum = Arc::new(AtomicU32::new(0));
/// let total = sum.clone();
/// let subscription = topic.subscribe().start(move |n: &Message<u32>| _ = total.fetch_add(**n, Ordering::Relaxed))?;
/// (1..=3).for_each(|n| _ = topic.publish("", n).unwrap());
/// assert!(broker.wait_idle(Duration::from_secs(5)));
/// assert_eq!((sum.load(Ordering::Relaxed), subscription.panicked()), (6, 0));
/// subscription.stop();
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Clone)]
pub struct Subscription {
    pub(super) crew: Arc<dyn Listening>,
}

impl Subscription {
    /// Unsubscribes: it finishes the message in hand and is joined. Called from its own handler, it does not
    /// wait for that.
    pub fn stop(&self) {
        self.crew.order_stop();
        self.crew.join(None);
    }

    /// How many of its messages wait for the handler, the one in hand included; 0 once it has ended.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.crew.backlog()
    }

    /// How many messages it has missed because it was too slow, and was told of.
    #[must_use]
    pub fn lagged(&self) -> u64 {
        self.crew.lagged()
    }

    /// How often its handler panicked.
    #[must_use]
    pub fn panicked(&self) -> u64 {
        self.crew.panicked()
    }

    /// Whether it still receives: it was neither stopped nor disconnected, and the broker was not shut down.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.crew.drainers() != Some(0)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("name", &self.crew.queue()).finish_non_exhaustive()
    }
}

/// A listener without its types, as its handle sees it.
pub(super) trait Listening: Crew {
    fn backlog(&self) -> u64;
    fn lagged(&self) -> u64;
    fn panicked(&self) -> u64;
}

pub(super) struct Listener<T: Send + Sync + 'static, H> {
    ring: Arc<Ring<T>>,
    seat: Arc<Seat>,
    handler: H,
    on_lag: Option<LagHook>,
    lagged: Counter,
    panicked: Counter,
    /// At rest, in a simulation; otherwise its thread has it.
    reader: Mutex<Option<Reader<T>>>,
    stopping: AtomicBool,
    roster: Mutex<Roster>,
    /// Waited on with the roster: the thread has left.
    left: Condvar,
}

#[derive(Default)]
struct Roster {
    present: bool,
    thread: Option<JoinHandle<()>>,
    /// Keeps it alive where no thread does.
    simulated: Option<Arc<dyn Task>>,
}

impl<T: Send + Sync + 'static, H: Fn(&Message<T>) + Send + Sync + 'static> Listener<T, H> {
    pub(super) fn start(reader: Reader<T>, handler: H, on_lag: Option<LagHook>) -> std::io::Result<Arc<Self>> {
        let listener = Arc::new(Self {
            ring: Arc::clone(&reader.ring),
            seat: Arc::clone(&reader.seat),
            handler,
            on_lag,
            lagged: Counter::default(),
            panicked: Counter::default(),
            reader: Mutex::new(None),
            stopping: AtomicBool::new(false),
            roster: Mutex::new(Roster::default()),
            left: Condvar::new(),
        });
        let crew: Weak<Self> = Arc::downgrade(&listener);
        listener.ring.runtime.enlist(crew);
        let mut roster = listener.roster.lock();
        roster.present = true;
        if let Some(executor) = &listener.ring.runtime.executor {
            let task: Weak<Self> = Arc::downgrade(&listener);
            executor.add(task);
            roster.simulated = Some(Arc::clone(&listener) as Arc<dyn Task>);
            *listener.reader.lock() = Some(reader);
        } else {
            let serving = Arc::clone(&listener);
            let name = listener.seat.name.to_string();
            match ThreadBuilder::new().name(name).spawn(move || serving.serve(reader)) {
                Ok(thread) => roster.thread = Some(thread),
                Err(error) => {
                    roster.present = false;
                    return Err(error);
                }
            }
        }
        drop(roster);
        Ok(listener)
    }

    /// What its thread does.
    fn serve(&self, mut reader: Reader<T>) {
        let go_on = || !self.stopping.load(Ordering::Acquire);
        self.ring.runtime.as_worker(self.seat.identity(), || {
            while go_on() && self.handle_next(&mut reader, Patience::Forever, &go_on) {
                self.handle_run(&mut reader);
            }
        });
        drop(reader);
        self.leave();
    }

    /// Handles one message or one lag; `false` when nothing will come any more.
    fn handle_next(&self, reader: &mut Reader<T>, patience: Patience, go_on: &impl Fn() -> bool) -> bool {
        match reader.next(patience, go_on) {
            Ok(()) => self.handle(reader.last()),
            Err(BroadcastError::Lagged(missed)) => self.tell_lag(missed),
            // In a simulation, if all that was there had expired.
            Err(BroadcastError::Empty) => {}
            Err(_) => return false,
        }
        reader.is_done();
        self.ring.runtime.note_progress();
        true
    }

    /// Handles what was taken together with the one before, and says of each when it is done: whoever looks wants to
    /// know how many wait for the handler.
    fn handle_run(&self, reader: &mut Reader<T>) {
        let (seat, runtime) = (&*self.seat, &*self.ring.runtime);
        let may_be_cut = seat.lag == Lag::Disconnect;
        loop {
            let mut place = reader.place();
            let result = contained(|| {
                for message in reader.run() {
                    if self.stopping.load(Ordering::Acquire) || may_be_cut && seat.is_cut() {
                        break;
                    }
                    place += 1;
                    (self.handler)(message);
                    seat.has_done_to(place);
                    runtime.note_progress();
                }
            });
            reader.go_to(place);
            // A panic ends the run at its message; what is left of it follows.
            let is_through = result.is_ok();
            result.unwrap_or_else(|text| self.tell_panic(reader.last().id(), text));
            reader.is_done();
            runtime.note_progress();
            if is_through {
                return;
            }
        }
    }

    #[inline]
    fn handle(&self, message: &Message<T>) {
        if let Err(text) = contained(|| (self.handler)(message)) {
            self.tell_panic(message.id(), text);
        }
    }

    #[cold]
    fn tell_panic(&self, message: MessageId, text: String) {
        self.panicked.add(1);
        self.ring.runtime.tell(|| Event::HandlerPanicked { queue: self.seat.name.to_string(), message, text });
    }

    #[cold]
    fn tell_lag(&self, missed: u64) {
        self.lagged.add(missed);
        if let Some(hook) = &self.on_lag {
            let _ = contained(|| hook(missed));
        }
    }

    fn leave(&self) {
        self.roster.lock().present = false;
        self.left.notify_all();
        self.ring.runtime.note_progress();
        // Who counted on it to make room may now wait for ever.
        self.ring.runtime.waits.look_again();
    }

    /// In a simulation: gives its seat up, unless it is handling something right now.
    fn retire(&self) {
        let reader = self.reader.lock().take();
        if reader.is_some() {
            drop(reader);
            self.leave();
        }
    }
}

impl<T: Send + Sync + 'static, H: Fn(&Message<T>) + Send + Sync + 'static> Task for Listener<T, H> {
    fn poll(&self) -> bool {
        // Gone while its handler waits for something, further up this thread.
        let reader = self.reader.lock().take();
        let Some(mut reader) = reader else { return false };
        let ready = reader.is_ready();
        let goes_on = !ready
            || self
                .ring
                .runtime
                .as_worker(self.seat.identity(), || self.handle_next(&mut reader, Patience::None, &|| true));
        *self.reader.lock() = Some(reader);
        if !goes_on || self.stopping.load(Ordering::Acquire) {
            self.retire();
        }
        ready && goes_on
    }
}

impl<T: Send + Sync + 'static, H: Fn(&Message<T>) + Send + Sync + 'static> Crew for Listener<T, H> {
    fn queue(&self) -> &str {
        &self.seat.name
    }

    fn queue_id(&self) -> TimedId {
        self.seat.registration.id()
    }

    fn drainers(&self) -> Option<usize> {
        Some(usize::from(self.roster.lock().present))
    }

    fn workers(&self) -> usize {
        0
    }

    fn scale_to(&self, _: usize) -> Result<(), Error> {
        Err(Error::new(format!("{:?}", self.seat.name), "a subscriber has one thread"))
    }

    fn pause(&self, _: bool) {}

    fn circuit(&self) -> Option<Circuit> {
        None
    }

    fn available_at(&self) -> Option<Timestamp> {
        None
    }

    fn order_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let simulated = self.roster.lock().simulated.take();
        if simulated.is_some() {
            self.retire();
        }
        drop(simulated);
        self.ring.wake_everyone();
    }

    fn join(&self, deadline: Option<Instant>) -> usize {
        let roster = self.roster.lock();
        let myself = current_thread().id();
        if roster.thread.as_ref().is_none_or(|thread| thread.thread().id() == myself) {
            return 0;
        }
        let Some(mut roster) = self.wait_until_left(roster, deadline) else { return 1 };
        let thread = roster.thread.take();
        drop(roster);
        // Its body contains every panic, so there is nothing to hear from it.
        thread.into_iter().for_each(|thread| drop(thread.join()));
        0
    }
}

impl<T: Send + Sync + 'static, H> Listener<T, H> {
    fn wait_until_left<'a>(
        &'a self,
        mut roster: MutexGuard<'a, Roster>,
        deadline: Option<Instant>,
    ) -> Option<MutexGuard<'a, Roster>> {
        while roster.present {
            let timed_out = match deadline {
                Some(at) => self.left.wait_until(&mut roster, at).timed_out(),
                None => {
                    self.left.wait(&mut roster);
                    false
                }
            };
            if timed_out && roster.present {
                return None;
            }
        }
        Some(roster)
    }
}

impl<T: Send + Sync + 'static, H: Fn(&Message<T>) + Send + Sync + 'static> Listening for Listener<T, H> {
    fn backlog(&self) -> u64 {
        self.ring.pending(&self.seat)
    }

    fn lagged(&self) -> u64 {
        self.lagged.get()
    }

    fn panicked(&self) -> u64 {
        self.panicked.get()
    }
}
