//! The broker's side of its file: handing batches in, and what has to be done after them.

use super::spares::Spares;
use crate::clock::Timestamp;
use crate::outcome::{contained, drop_contained};
use crate::runtime::{Registration, Runtime};
use crate::scheduler::Timed;
use crate::store::{Batch, Durability, Seq, Sleeper, Store, StoreError, StreamId, Submission, Wake};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Padded};
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
    /// Commits handed in, and those of them whose outcome has been shown: two numbers, since one that publishers and the
    /// writer both change would be on its way between two cores all the time.
    begun: Padded<AtomicUsize>,
    ended: Padded<AtomicUsize>,
    alarm: Registration,
    runtime: Arc<Runtime>,
    /// For messages that get a place in the file.
    pub(super) spares: Spares,
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
        let runtime = Arc::clone(runtime);
        Arc::new(Self {
            store,
            simulated,
            errands,
            arrivals,
            begun: Padded(AtomicUsize::new(0)),
            ended: Padded(AtomicUsize::new(0)),
            alarm,
            runtime,
            spares: Spares::default(),
            order: Mutex::new(()),
        })
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
    pub(super) fn later(&self, errands: Vec<Errand>) {
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
        Arc::clone(self).commit_shown(batch, durability, Some(show))
    }

    /// The same for what is shown where it lies.
    pub(super) fn commit_shown<R: Send + 'static>(
        self: Arc<Self>,
        batch: Batch,
        durability: Durability,
        show: impl Show<R> + 'static,
    ) -> Pending<R> {
        // Read before the other one is raised: those that have ended are among those begun before this.
        let ended = self.ended.load(Ordering::SeqCst);
        let is_alone = self.begun.fetch_add(1, Ordering::SeqCst) == ended;
        let slot = Slot { state: Mutex::new(State::Waiting), came: Condvar::new() };
        let has_nothing = batch.is_empty();
        let order = Arc::new(Order { slot, show: Mutex::new(show), batch, depot: self });
        if has_nothing && is_alone {
            drop(Arc::clone(&order).done(Ok(&[])));
            order.depot.store.call_now();
        } else {
            order.depot.store.submit_shared(Arc::clone(&order) as Arc<dyn Submission>, durability);
        }
        Pending { order, taken: false }
    }

    /// Hands in what nobody waits for. On a closed store it comes too late: the file keeps what it has.
    pub(crate) fn note(&self, batch: Batch) {
        if !batch.is_empty() {
            let _ = self.store.submit_lazily(batch);
        }
    }

    /// As [`Depot::note`] with the deletion of one item.
    pub(super) fn forget(&self, stream: StreamId, place: Seq) {
        let _ = self.store.delete_lazily(stream, place);
    }

    /// Writes what is on its way, and lets go of the file.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let closed = self.store.close();
        self.errands.run_all();
        closed
    }
}

/// What is to be done once a batch is committed, or cannot be; asked for once. See [`Depot::commit`] for where.
pub(super) trait Show<R>: Send {
    fn show(&mut self, result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>) -> R;
}

impl<R, F> Show<R> for Option<F>
where
    F: FnOnce(Result<&[Seq], StoreError>, &mut Vec<Errand>) -> R + Send,
{
    fn show(&mut self, result: Result<&[Seq], StoreError>, errands: &mut Vec<Errand>) -> R {
        self.take().expect("shown once")(result, errands)
    }
}

/// A batch, what is to be shown once it is committed, and who waits for that.
struct Order<R, S> {
    slot: Slot<R>,
    /// Locked by whoever shows it, once.
    show: Mutex<S>,
    batch: Batch,
    depot: Arc<Depot>,
}

struct Slot<R> {
    state: Mutex<State<R>>,
    came: Condvar,
}

impl<R, S> Submission for Order<R, S>
where
    R: Send + 'static,
    S: Show<R> + 'static,
{
    fn batch(&self) -> &Batch {
        &self.batch
    }

    fn done(self: Arc<Self>, result: Result<&[Seq], StoreError>) -> Option<Wake> {
        let mut unfinished = Unfinished { slot: &self.slot, depot: &self.depot, is_given: false };
        let mut errands = Vec::new();
        let shown = self.show.lock().show(result, &mut errands);
        let is_awaited = self.slot.give(shown, errands, &self.depot);
        unfinished.is_given = true;
        drop(unfinished);
        is_awaited.then(|| Wake(self))
    }
}

impl<R: Send, S: Send> Sleeper for Order<R, S> {
    fn wake(&self) {
        self.slot.came.notify_all();
    }
}

/// An order as whoever waits for it sees it.
trait Awaited<R>: Send + Sync {
    fn slot(&self) -> &Slot<R>;
}

impl<R: Send, S: Send> Awaited<R> for Order<R, S> {
    fn slot(&self) -> &Slot<R> {
        &self.slot
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
    order: Arc<dyn Awaited<R>>,
    taken: bool,
}

impl<R: Send + 'static> Pending<R> {
    /// Waits for the commit, holding nothing.
    pub(crate) fn wait(mut self) -> R {
        self.taken = true;
        let slot = self.order.slot();
        let mut state = slot.state.lock();
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
            slot.came.wait(&mut state);
        }
    }

    /// Waits for nothing: `tell` hears of it, on the scheduler's thread or, if it is known already, here.
    pub(crate) fn then(mut self, tell: impl FnOnce(R) + Send + 'static) {
        self.taken = true;
        let mut state = self.order.slot().state.lock();
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
        !matches!(*self.order.slot().state.lock(), State::Waiting)
    }
}

impl<R: Send + 'static> Drop for Pending<R> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let state = std::mem::replace(&mut *self.order.slot().state.lock(), State::Abandoned);
        if let State::Here(shown, errands) = state {
            run(errands);
            drop_contained(shown);
        }
    }
}

impl<R: Send + 'static> Slot<R> {
    /// Whether somebody waits, who is yet to be woken.
    fn give(&self, shown: R, mut errands: Vec<Errand>, depot: &Depot) -> bool {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Abandoned => {
                drop(state);
                errands.push(Box::new(move || drop(shown)));
                depot.later(errands);
                false
            }
            State::Handed(tell) => {
                drop(state);
                errands.push(Box::new(move || tell(shown)));
                depot.later(errands);
                false
            }
            _ => {
                *state = State::Here(shown, errands);
                true
            }
        }
    }
}

/// A commit is under way as long as this lives. Whoever waits for one whose end was never given, since something
/// panicked, hears of that.
struct Unfinished<'a, R> {
    slot: &'a Slot<R>,
    depot: &'a Depot,
    is_given: bool,
}

impl<R> Drop for Unfinished<'_, R> {
    fn drop(&mut self) {
        self.depot.ended.fetch_add(1, Ordering::SeqCst);
        if self.is_given {
            return;
        }
        let mut state = self.slot.state.lock();
        if matches!(*state, State::Waiting) {
            *state = State::Lost;
            drop(state);
            self.slot.came.notify_all();
        }
    }
}
