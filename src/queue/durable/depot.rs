//! The broker's side of its file: handing batches in, and what has to be done after them.

use crate::clock::Timestamp;
use crate::outcome::{contained, drop_contained};
use crate::runtime::{Registration, Runtime};
use crate::scheduler::Timed;
use crate::store::{Batch, Call, Durability, Seq, Sleeper, Store, StoreError, StreamId, Wake};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Something that may run the user's code, and therefore not on the writer's thread.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

/// A broker's store, shared by its durable queues.
pub(crate) struct Depot {
    pub(crate) store: Store,
    simulated: bool,
    errands: Arc<Errands>,
    arrivals: Arc<Arrivals>,
    /// Commits whose outcome has not been shown.
    under_way: AtomicUsize,
    alarm: Registration,
    runtime: Arc<Runtime>,
    /// Held from the moment records of logs get their time until they are handed in.
    order: Mutex<()>,
}

/// A queue that hears of what was put into its stream, on the writer's thread.
pub(super) trait InFile: Send + Sync {
    fn arrived(&self, first: Seq, end: Seq);
}

/// By the stream's number.
#[derive(Default)]
struct Arrivals(Mutex<BTreeMap<u16, Weak<dyn InFile>>>);

/// Those of batches that nobody waits for; the scheduler does them.
#[derive(Default)]
struct Errands(Mutex<Vec<Errand>>);

impl Errands {
    fn run_all(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        run(all);
    }
}

impl Timed for Errands {
    fn fire(&self, _: Timestamp) -> Option<Timestamp> {
        self.run_all();
        None
    }
}

fn run(errands: Vec<Errand>) {
    for errand in errands {
        let _ = contained(errand);
    }
}

impl Depot {
    pub(crate) fn new(store: Store, runtime: &Arc<Runtime>) -> Arc<Self> {
        let errands = Arc::new(Errands::default());
        let timed: Weak<Errands> = Arc::downgrade(&errands);
        let alarm = Registration::in_background(runtime, timed);
        let simulated = runtime.is_simulated();
        let arrivals = Arc::new(Arrivals::default());
        let hears = Arc::clone(&arrivals);
        store.watch(move |stream, places| {
            let queue = hears.0.lock().get(&stream.get()).and_then(Weak::upgrade);
            queue.into_iter().for_each(|queue| queue.arrived(places.start, places.end));
        });
        let (under_way, order) = (AtomicUsize::new(0), Mutex::new(()));
        let runtime = Arc::clone(runtime);
        Arc::new(Self { store, simulated, errands, arrivals, under_way, alarm, runtime, order })
    }

    /// Whoever hands in records of logs holds this meanwhile, so that their times have the order of the file. Nothing
    /// waits under it.
    pub(crate) fn in_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock()
    }

    /// In a simulation everybody waits, so that the same seed gives the same run.
    pub(crate) fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// Has a queue hear of what other connections put into its stream.
    pub(super) fn watch(&self, stream: StreamId, queue: Weak<dyn InFile>) {
        self.arrivals.0.lock().insert(stream.get(), queue);
    }

    /// Has them done on another thread than this one.
    fn later(&self, errands: Vec<Errand>) {
        if errands.is_empty() {
            return;
        }
        self.errands.0.lock().extend(errands);
        self.alarm.arm(self.runtime.clock.now());
    }

    /// Hands a batch in. `show` is called after its commit, on the writer's thread (or on this one, if there is
    /// nothing to commit, nor anything under way that it could overtake, or the store is closed).
    pub(crate) fn commit<R: Send + 'static>(
        self: &Arc<Self>,
        batch: Batch,
        durability: Durability,
        show: impl FnOnce(Result<&[Seq], StoreError>, &mut Vec<Errand>) -> R + Send + 'static,
    ) -> Pending<R> {
        let slot = Arc::new(Slot { state: Mutex::new(State::Waiting), came: Condvar::new() });
        let is_alone = self.under_way.fetch_add(1, Ordering::SeqCst) == 0;
        let answer = Answer { slot: Some(Arc::clone(&slot)), depot: Arc::clone(self) };
        let call: Call = Box::new(move |result| {
            let mut errands = Vec::new();
            let shown = show(result, &mut errands);
            answer.give(shown, errands)
        });
        if batch.is_empty() && is_alone {
            drop(call(Ok(&[])));
        } else if let Err(call) = self.store.submit_call(batch, durability, call) {
            drop(call(Err(StoreError::Closed)));
        }
        Pending { slot, taken: false }
    }

    /// Hands in what nobody waits for. On a closed store it comes too late: the file keeps what it has.
    pub(crate) fn note(&self, batch: Batch) {
        if !batch.is_empty() {
            let _ = self.store.submit_lazily(batch);
        }
    }

    /// Writes what is on its way, and lets go of the file.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let closed = self.store.close();
        self.errands.run_all();
        closed
    }
}

struct Slot<R> {
    state: Mutex<State<R>>,
    came: Condvar,
}

impl<R: Send> Sleeper for Slot<R> {
    fn wake(&self) {
        self.came.notify_all();
    }
}

enum State<R> {
    Waiting,
    Here(R, Vec<Errand>),
    /// Nobody waits.
    Abandoned,
    /// Nobody waits, and this is to be told on the scheduler's thread.
    Handed(Box<dyn FnOnce(R) + Send>),
    /// Nobody will answer: something went wrong on the writer's thread.
    Lost,
    Taken,
}

/// An answer to wait for. Dropped, it is not waited for, and nothing else changes.
pub(crate) struct Pending<R: Send + 'static> {
    slot: Arc<Slot<R>>,
    taken: bool,
}

impl<R: Send + 'static> Pending<R> {
    /// Waits for the commit, holding nothing.
    pub(crate) fn wait(mut self) -> R {
        self.taken = true;
        let mut state = self.slot.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Here(shown, errands) => {
                    drop(state);
                    run(errands);
                    return shown;
                }
                State::Lost => panic!("the store's thread has panicked"),
                waiting => *state = waiting,
            }
            self.slot.came.wait(&mut state);
        }
    }

    /// Waits for nothing: `tell` hears of it, on the scheduler's thread or, if it is known already, here.
    pub(crate) fn then(mut self, tell: impl FnOnce(R) + Send + 'static) {
        self.taken = true;
        let mut state = self.slot.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Here(shown, errands) => {
                drop(state);
                run(errands);
                tell(shown);
            }
            State::Waiting => *state = State::Handed(Box::new(tell)),
            // Something went wrong, and nobody will answer.
            _ => {}
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        !matches!(*self.slot.state.lock(), State::Waiting)
    }
}

impl<R: Send + 'static> Drop for Pending<R> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let state = std::mem::replace(&mut *self.slot.state.lock(), State::Abandoned);
        if let State::Here(shown, errands) = state {
            run(errands);
            drop_contained(shown);
        }
    }
}

/// Owed for a commit, which is under way as long as this lives.
struct Answer<R: Send + 'static> {
    slot: Option<Arc<Slot<R>>>,
    depot: Arc<Depot>,
}

impl<R: Send + 'static> Answer<R> {
    /// Whoever waits is yet to be woken.
    fn give(mut self, shown: R, mut errands: Vec<Errand>) -> Option<Wake> {
        let slot = self.slot.take()?;
        let mut state = slot.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Abandoned => {
                drop(state);
                errands.push(Box::new(move || drop(shown)));
                self.depot.later(errands);
                return None;
            }
            State::Handed(tell) => {
                drop(state);
                errands.push(Box::new(move || tell(shown)));
                self.depot.later(errands);
                return None;
            }
            _ => *state = State::Here(shown, errands),
        }
        drop(state);
        Some(Wake(slot))
    }
}

impl<R: Send + 'static> Drop for Answer<R> {
    fn drop(&mut self) {
        self.depot.under_way.fetch_sub(1, Ordering::SeqCst);
        if let Some(slot) = self.slot.take() {
            let mut state = slot.state.lock();
            if matches!(*state, State::Waiting) {
                *state = State::Lost;
            }
            drop(state);
            slot.came.notify_all();
        }
    }
}
