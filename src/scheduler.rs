//! At this time, do this: a heap of deadlines, and the one thread that waits for the earliest.
//!
//! The scheduler knows no queue. Whatever waits for time implements [`Timed`], keeps its own
//! [`DelayHeap`] of things that become due, and arms the scheduler with the earliest of them; so a million
//! delayed messages of one queue are one entry here.

use crate::clock::{Clock, OnAdvance, SystemClock, Timestamp};
use crate::heap::{Deadline, DeadlineHeap};
use crate::outcome::contained;
use crate::sync::{Condvar, JoinHandle, Mutex, ThreadBuilder, current_thread};
use ahash::AHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};

/// Things that become due, in the order of their time and, at equal times, of their insertion.
///
/// A heap of deadlines beside a slab of entries: the heap moves 16 bytes a level, never the entry. Cancelling empties
/// the slot and leaves the heap's entry to be skipped later.
pub(crate) struct DelayHeap<E> {
    heap: DeadlineHeap,
    /// Apart from their marks, so that an entry is copied to its place in one piece.
    slots: Vec<Option<E>>,
    marks: Vec<Mark>,
    free: Option<u32>,
    live: usize,
    sequence: u64,
}

/// Of a slot: the sequence of its entry, or that it is free, and which one is next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark(u64);

impl Mark {
    const FREE: u64 = 1 << 63;

    fn free(next: Option<u32>) -> Self {
        Self(Self::FREE | next.map_or(0, |next| u64::from(next) + 1))
    }

    /// Of a free one.
    fn next(self) -> Option<u32> {
        (self.0 & !Self::FREE).checked_sub(1).map(|next| next as u32)
    }
}

/// Names one entry of a [`DelayHeap`]; never matches a later entry in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayKey {
    sequence: u64,
    slot: u32,
}

impl<E> DelayHeap<E> {
    pub(crate) fn new() -> Self {
        Self { heap: DeadlineHeap::default(), slots: Vec::new(), marks: Vec::new(), free: None, live: 0, sequence: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn insert(&mut self, due: Timestamp, entry: E) -> DelayKey {
        self.insert_with(due, |_| entry)
    }

    /// Inserts an entry that knows its own key.
    pub(crate) fn insert_with(&mut self, due: Timestamp, entry: impl FnOnce(DelayKey) -> E) -> DelayKey {
        let key = self.next_key();
        self.push(due, entry(key));
        key
    }

    /// Inserts an entry; whether nothing else is due before it.
    #[inline]
    pub(crate) fn push(&mut self, due: Timestamp, entry: E) -> bool {
        self.push_made(due, || entry)
    }

    /// The same of an entry that is made in its place.
    #[inline(always)]
    pub(crate) fn push_made(&mut self, due: Timestamp, entry: impl FnOnce() -> E) -> bool {
        let DelayKey { sequence, slot } = self.next_key();
        if self.free.is_none() {
            self.marks.push(Mark(sequence));
            self.slots.push(Some(entry()));
        } else {
            self.occupy(slot, sequence, entry());
        }
        self.sequence += 1;
        self.live += 1;
        // The one on top may have been cancelled. Whoever waits for the first is called then all the same.
        self.heap.push(Deadline::new(due.0, sequence as u32, slot))
    }

    /// Takes the entry out before its time; `None` if it has left already.
    pub(crate) fn cancel(&mut self, key: DelayKey) -> Option<E> {
        let entry = self.vacate(key)?;
        if self.heap.len() > 64 && self.heap.len() > 4 * self.live {
            self.forget_cancelled();
        }
        Some(entry)
    }

    pub(crate) fn earliest(&mut self) -> Option<Timestamp> {
        while let Some(&deadline) = self.heap.peek() {
            if stands(&self.marks, &deadline) {
                return Some(Timestamp(deadline.due));
            }
            self.heap.pop();
        }
        None
    }

    /// Takes out every entry of a kind, earliest first.
    pub(crate) fn take_where(&mut self, wanted: impl Fn(&E) -> bool) -> Vec<E> {
        let mut found = self.in_order();
        found.retain(|deadline| self.slots[deadline.slot() as usize].as_ref().is_some_and(&wanted));
        found.into_iter().filter_map(|deadline| self.cancel(self.key_of(deadline.slot())?)).collect()
    }

    /// Takes out everything, in no order.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = E> + use<E> {
        self.heap.clear(0);
        (self.marks, self.free, self.live) = (Vec::new(), None, 0);
        std::mem::take(&mut self.slots).into_iter().flatten()
    }

    /// All entries, in no order.
    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut E> {
        self.slots.iter_mut().flatten()
    }

    /// The same, to look at.
    #[cfg(feature = "sqlite")]
    pub(crate) fn entries(&self) -> impl Iterator<Item = &E> {
        self.slots.iter().flatten()
    }

    /// Takes out every entry of a kind, in no order.
    #[cfg(feature = "sqlite")]
    pub(crate) fn remove_where(&mut self, wanted: impl Fn(&E) -> bool) -> Vec<E> {
        let is_wanted = |slot: &Option<E>| slot.as_ref().is_some_and(&wanted);
        let found: Vec<u32> = (0..).zip(&self.slots).filter(|(_, slot)| is_wanted(slot)).map(|(at, _)| at).collect();
        let removed = found.into_iter().filter_map(|slot| self.vacate(self.key_of(slot)?)).collect();
        self.forget_cancelled();
        removed
    }

    /// Takes out up to `max` entries that are due, earliest first. Many at a time cost less than each by itself: one
    /// is fetched from memory while another is.
    pub(crate) fn pop_run(&mut self, now: Timestamp, max: usize) -> Vec<E> {
        let mut run = Vec::new();
        while run.len() < max && self.heap.peek().is_some_and(|deadline| deadline.due <= now.0) {
            run.extend(self.heap.pop());
        }
        if run.len() == max {
            self.heap.expect_more(now.0, self.sequence as u32);
        }
        // All are looked at before the first is moved, which waits for what it finds.
        let mut fetched = false;
        run.retain(|deadline| {
            fetched ^= self.slots[deadline.slot() as usize].is_some();
            stands(&self.marks, deadline)
        });
        std::hint::black_box(fetched);
        run.into_iter().filter_map(|deadline| self.vacate(self.key_of(deadline.slot())?)).collect()
    }

    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<E> {
        if self.earliest()? > now {
            return None;
        }
        let slot = self.heap.pop()?.slot();
        self.vacate(self.key_of(slot)?)
    }

    /// Up to `max` entries with their times, earliest first.
    pub(crate) fn earliest_mut(&mut self, max: usize) -> Vec<(Timestamp, &mut E)> {
        let mut order = self.in_order();
        order.truncate(max);
        // By slot, since the slots are borrowed in their own order.
        let mut wanted: AHashMap<u32, (usize, Timestamp)> = order
            .iter()
            .enumerate()
            .map(|(rank, deadline)| (deadline.slot(), (rank, Timestamp(deadline.due))))
            .collect();
        let mut found: Vec<_> = (0_u32..)
            .zip(&mut self.slots)
            .filter_map(|(slot, content)| {
                let entry = content.as_mut()?;
                wanted.remove(&slot).map(|(rank, due)| (rank, due, entry))
            })
            .collect();
        found.sort_unstable_by_key(|&(rank, ..)| rank);
        found.into_iter().map(|(_, due, entry)| (due, entry)).collect()
    }

    /// The key of the entry that is inserted next.
    #[inline]
    fn next_key(&self) -> DelayKey {
        let slot = self.free.unwrap_or_else(|| u32::try_from(self.slots.len()).expect("fewer than 2^32 entries"));
        DelayKey { sequence: self.sequence, slot }
    }

    fn occupy(&mut self, slot: u32, sequence: u64, entry: E) {
        let slot = slot as usize;
        self.free = self.marks[slot].next();
        self.marks[slot] = Mark(sequence);
        self.slots[slot] = Some(entry);
    }

    /// The deadlines of all entries, earliest first.
    fn in_order(&self) -> Vec<Deadline> {
        let mut order: Vec<_> = self.heap.iter().filter(|deadline| stands(&self.marks, deadline)).copied().collect();
        order.sort_unstable_by_key(|deadline| deadline.in_order(self.sequence as u32));
        order
    }

    fn key_of(&self, slot: u32) -> Option<DelayKey> {
        let Mark(sequence) = self.marks[slot as usize];
        (sequence & Mark::FREE == 0).then_some(DelayKey { sequence, slot })
    }

    fn vacate(&mut self, key: DelayKey) -> Option<E> {
        let slot = key.slot as usize;
        if *self.marks.get(slot)? != Mark(key.sequence) {
            return None;
        }
        self.marks[slot] = Mark::free(self.free);
        self.free = Some(key.slot);
        let entry = self.slots[slot].take();
        self.live -= 1;
        if self.live == 0 {
            self.release_memory();
        }
        entry
    }

    /// Once empty, a large heap gives its memory back. The sequence goes on, so old keys stay invalid.
    fn release_memory(&mut self) {
        self.heap.clear(1024);
        self.slots.clear();
        self.slots.shrink_to(1024);
        self.marks.clear();
        self.marks.shrink_to(1024);
        self.free = None;
    }

    fn forget_cancelled(&mut self) {
        let marks = &self.marks;
        self.heap.retain(|deadline| stands(marks, deadline));
    }
}

/// Whether the entry that a deadline was made for is still there. The heap keeps half of its number, so one
/// that was cancelled could be mistaken for another only after 2^32 insertions that end in the same slot,
/// all before its time comes and before the cancelled ones are cleared out.
fn stands(marks: &[Mark], deadline: &Deadline) -> bool {
    let Mark(sequence) = marks[deadline.slot() as usize];
    sequence & Mark::FREE == 0 && sequence as u32 == deadline.sequence()
}

/// Something that waits for time to pass.
pub(crate) trait Timed: Send + Sync {
    /// Does what is due at `now` and answers when it wants to be called next.
    fn fire(&self, now: Timestamp) -> Option<Timestamp>;
}

/// Names a [`Timed`] at its scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TimedId(u64);

#[cfg(test)]
impl TimedId {
    pub(crate) fn for_test(n: u64) -> Self {
        Self(n)
    }
}

/// Calls what is due: from a thread of its own, started at the first deadline, or (simulated) from
/// whoever calls [`Scheduler::fire_due`].
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    threaded: bool,
}

struct Shared {
    clock: Arc<Clock>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    heap: BinaryHeap<Reverse<(Timestamp, u64)>>,
    targets: AHashMap<u64, Target>,
    next_id: u64,
    ticking: bool,
    stopping: bool,
}

struct Target {
    timed: Weak<dyn Timed>,
    /// It looks on and brings nothing about.
    background: bool,
    /// The only heap entry of this target that counts; others are left-overs.
    armed: Option<Timestamp>,
}

impl Scheduler {
    pub(crate) fn new(clock: Arc<Clock>, threaded: bool) -> Self {
        let shared = Arc::new(Shared { clock, state: Mutex::new(State::default()), wake: Condvar::new() });
        let listener: Weak<dyn OnAdvance> = Arc::downgrade(&(Arc::clone(&shared) as Arc<dyn OnAdvance>));
        shared.clock.listen(listener);
        Self { shared, thread: Mutex::new(None), threaded }
    }

    pub(crate) fn register(&self, timed: Weak<dyn Timed>) -> TimedId {
        self.register_as(timed, false)
    }

    /// For what comes again and again for as long as it exists; see [`Scheduler::awaits_work`].
    pub(crate) fn register_in_background(&self, timed: Weak<dyn Timed>) -> TimedId {
        self.register_as(timed, true)
    }

    fn register_as(&self, timed: Weak<dyn Timed>, background: bool) -> TimedId {
        let mut state = self.shared.state.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.targets.insert(id, Target { timed, background, armed: None });
        TimedId(id)
    }

    pub(crate) fn unregister(&self, id: TimedId) {
        self.shared.state.lock().targets.remove(&id.0);
    }

    /// Has `id` called at `due` or earlier.
    pub(crate) fn arm(&self, id: TimedId, due: Timestamp) {
        let mut state = self.shared.state.lock();
        let earliest = state.earliest();
        if state.arm(id.0, due) {
            self.ensure_thread(&mut state);
            if earliest.is_none_or(|e| due < e) {
                drop(state);
                self.shared.wake.notify_one();
            }
        }
    }

    /// Keeps the system clock's cached reading fresh for as long as it is used.
    pub(crate) fn start_ticking(&self) {
        let mut state = self.shared.state.lock();
        if state.ticking || state.stopping || !self.threaded {
            return;
        }
        state.ticking = true;
        self.ensure_thread(&mut state);
        drop(state);
        self.shared.wake.notify_one();
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.shared.state.lock().earliest()
    }

    /// Whether anything is due, ever, that is not in the background.
    pub(crate) fn awaits_work(&self) -> bool {
        let state = self.shared.state.lock();
        state.targets.values().any(|target| target.armed.is_some() && !target.background)
    }

    /// Calls everything due at `now` on the caller's thread; how many calls that were.
    pub(crate) fn fire_due(&self, now: Timestamp) -> usize {
        let mut fired = 0;
        while self.shared.fire_next(now) {
            fired += 1;
        }
        fired
    }

    /// Ends the thread and joins it, unless called from it. What was not due stays where it is.
    pub(crate) fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.wake.notify_all();
        let Some(thread) = self.thread.lock().take() else { return };
        if thread.thread().id() != current_thread().id() {
            // The thread's own body contains every panic.
            let _ = thread.join();
        }
    }

    fn ensure_thread(&self, state: &mut State) {
        if !self.threaded || state.stopping {
            return;
        }
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let spawned = ThreadBuilder::new().name("postroom-scheduler".into()).spawn(move || shared.run());
            // Without a thread nothing delayed would ever arrive, and the caller could not know.
            *thread = Some(spawned.expect("the system refused the scheduler thread"));
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}

impl OnAdvance for Shared {
    fn advanced(&self) {
        // Taken so that a thread between its look at the clock and its wait does not miss the call.
        drop(self.state.lock());
        self.wake.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut quiet_ticks = 0;
        loop {
            // A few at a time, so that a target that is always due delays neither the tick nor the end.
            let busy = (0..64).all(|_| self.fire_next(self.clock.now()));
            let mut state = self.state.lock();
            if state.stopping {
                self.tick_off(&mut state);
                return;
            }
            let due = state.earliest();
            let tick = state.ticking.then(|| self.tick(&mut state, &mut quiet_ticks)).flatten();
            if busy || due.is_some_and(|due| due <= self.clock.now()) {
                continue;
            }
            let until = due.into_iter().chain(tick).min().and_then(|t| self.clock.instant_of(t));
            match until {
                Some(instant) => drop(self.wake.wait_until(&mut state, instant)),
                None => self.wake.wait(&mut state),
            }
        }
    }

    /// Refreshes the cached time; after a while without readers, ends it. Answers when the next one is due.
    fn tick(&self, state: &mut State, quiet: &mut u32) -> Option<Timestamp> {
        const QUIET_TICKS: u32 = 20;
        let Clock::System(clock) = &*self.clock else { return None };
        *quiet = if clock.was_asked() { 0 } else { *quiet + 1 };
        if *quiet > QUIET_TICKS {
            *quiet = 0;
            self.tick_off(state);
            return None;
        }
        clock.tick();
        Some(self.clock.now().after(SystemClock::TICK))
    }

    fn tick_off(&self, state: &mut State) {
        state.ticking = false;
        if let Clock::System(clock) = &*self.clock {
            clock.stop_ticking();
        }
    }

    /// Calls the earliest target if it is due. No lock is held across the call.
    fn fire_next(&self, now: Timestamp) -> bool {
        let (id, timed) = {
            let mut state = self.state.lock();
            if state.earliest().is_none_or(|due| due > now) {
                return false;
            }
            let Some(found) = state.disarm_earliest() else { return true };
            found
        };
        // A payload's destructor or a user's hook may panic in there, also when this is the last one to hold
        // the target; the thread outlives it.
        let next = contained(move || timed.fire(now)).unwrap_or(Some(now.after(SystemClock::TICK)));
        if let Some(due) = next {
            self.state.lock().arm(id, due);
        }
        true
    }
}

impl State {
    /// Whether this made the target's call earlier.
    fn arm(&mut self, id: u64, due: Timestamp) -> bool {
        let Some(target) = self.targets.get_mut(&id) else { return false };
        if target.armed.is_some_and(|armed| armed <= due) {
            return false;
        }
        target.armed = Some(due);
        self.heap.push(Reverse((due, id)));
        true
    }

    fn earliest(&mut self) -> Option<Timestamp> {
        while let Some(&Reverse((due, id))) = self.heap.peek() {
            if self.targets.get(&id).is_some_and(|t| t.armed == Some(due)) {
                return Some(due);
            }
            self.heap.pop();
        }
        None
    }

    fn disarm_earliest(&mut self) -> Option<(u64, Arc<dyn Timed>)> {
        let Reverse((_, id)) = self.heap.pop()?;
        let target = self.targets.get_mut(&id)?;
        target.armed = None;
        let timed = target.timed.upgrade();
        if timed.is_none() {
            self.targets.remove(&id);
        }
        timed.map(|timed| (id, timed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn at(n: u64) -> Timestamp {
        Timestamp(n)
    }

    #[test]
    fn equal_times_keep_their_insertion_order() {
        let mut heap = DelayHeap::new();
        for n in 0..100 {
            heap.insert(at(7), n);
        }
        let order: Vec<_> = std::iter::from_fn(|| heap.pop_due(at(7))).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_leaves_before_its_time() {
        let mut heap = DelayHeap::new();
        heap.insert(at(10), "late");
        assert_eq!(heap.pop_due(at(9)), None);
        assert_eq!(heap.pop_due(at(10)), Some("late"));
    }

    #[test]
    fn cancelled_entries_never_come_out_and_their_keys_never_match_again() {
        let mut heap = DelayHeap::new();
        let key = heap.insert(at(1), "a");
        assert_eq!(heap.cancel(key), Some("a"));
        assert_eq!(heap.cancel(key), None);
        heap.insert(at(2), "b");
        assert_eq!(heap.cancel(key), None);
        assert_eq!(heap.pop_due(at(9)), Some("b"));
        assert_eq!(heap.len(), 0);
    }

    #[test]
    fn a_random_run_agrees_with_a_sorted_list() {
        let mut random = Random::new(3);
        let mut heap = DelayHeap::new();
        let mut model: Vec<(u64, u64, DelayKey)> = Vec::new();
        for n in 0..20_000_u64 {
            match random.below(4) {
                0 | 1 => {
                    let due = random.below(500);
                    model.push((due, n, heap.insert(at(due), n)));
                }
                2 if !model.is_empty() => {
                    let (_, value, key) = model.swap_remove(random.below(model.len() as u64) as usize);
                    assert_eq!(heap.cancel(key), Some(value));
                }
                _ => {
                    let now = random.below(500);
                    let due = model.iter().filter(|m| m.0 <= now).min_by_key(|m| (m.0, m.1)).copied();
                    assert_eq!(heap.pop_due(at(now)), due.map(|m| m.1));
                    model.retain(|m| Some(m.1) != due.map(|d| d.1));
                }
            }
            assert_eq!(heap.len(), model.len());
        }
    }

    #[test]
    fn only_a_new_first_one_says_so() {
        let mut heap = DelayHeap::new();
        let said: Vec<_> = [5, 7, 5, 4, 6, 4, 3].map(|due| heap.push(at(due), due)).into();
        assert_eq!(said, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn runs_come_in_order_leave_out_the_cancelled_and_end_with_what_is_not_due() {
        let mut random = Random::new(9);
        for n in [0, 1, 10, 1000] {
            let mut heap = DelayHeap::new();
            let keys: Vec<_> = (0..n).map(|n| (random.below(100), n)).collect();
            let keys: Vec<_> = keys.into_iter().map(|(due, n)| (due, n, heap.insert(at(due), (due, n)))).collect();
            let (cancelled, mut left): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(_, n, _)| n % 3 == 0);
            cancelled.into_iter().for_each(|(_, _, key)| assert!(heap.cancel(key).is_some()));
            left.sort_unstable_by_key(|&(due, n, _)| (due, n));
            let mut come = Vec::new();
            while heap.earliest().is_some_and(|due| due <= at(49)) {
                let run = heap.pop_run(at(49), 7);
                assert!(run.len() <= 7);
                come.extend(run);
            }
            let due: Vec<_> = left.iter().filter(|(due, ..)| *due <= 49).map(|&(due, n, _)| (due, n)).collect();
            assert_eq!((come.len() + heap.len(), come), (left.len(), due));
            assert!(heap.pop_run(at(49), 7).is_empty());
            assert_eq!(heap.take_all().count(), left.iter().filter(|(due, ..)| *due > 49).count());
            assert!(heap.len() == 0 && heap.earliest().is_none());
        }
    }

    #[test]
    fn mass_cancellation_leaves_no_trace() {
        let mut heap = DelayHeap::new();
        let keys: Vec<_> = (0..10_000).map(|n| heap.insert(at(n), n)).collect();
        for key in keys {
            heap.cancel(key);
        }
        assert!(heap.heap.len() == 0 && heap.slots.capacity() <= 1024 && heap.marks.capacity() <= 1024);
    }

    struct Recorder(Mutex<Vec<Timestamp>>, Option<Timestamp>);

    impl Timed for Recorder {
        fn fire(&self, now: Timestamp) -> Option<Timestamp> {
            self.0.lock().push(now);
            self.1.filter(|&next| next > now)
        }
    }

    fn manual() -> (crate::ManualClock, Scheduler) {
        let clock = crate::ManualClock::new();
        let scheduler = Scheduler::new(Arc::new(Clock::Manual(clock.clone())), false);
        (clock, scheduler)
    }

    #[test]
    fn the_earliest_arming_counts_and_fires_once() {
        let (clock, scheduler) = manual();
        let start = clock.timestamp();
        let seen = Arc::new(Recorder(Mutex::new(Vec::new()), None));
        let timed: Arc<dyn Timed> = seen.clone();
        let id = scheduler.register(Arc::downgrade(&timed));
        for n in [9, 3, 5] {
            scheduler.arm(id, Timestamp(start.0 + n));
        }
        assert_eq!(scheduler.next_due(), Some(Timestamp(start.0 + 3)));
        assert_eq!(scheduler.fire_due(Timestamp(start.0 + 20)), 1);
        assert_eq!(scheduler.next_due(), None);
    }

    #[test]
    fn a_target_that_is_gone_is_forgotten() {
        let (_, scheduler) = manual();
        let timed: Arc<dyn Timed> = Arc::new(Recorder(Mutex::new(Vec::new()), None));
        let id = scheduler.register(Arc::downgrade(&timed));
        scheduler.arm(id, at(1));
        drop(timed);
        scheduler.fire_due(at(5));
        assert!(scheduler.shared.state.lock().targets.is_empty());
    }

    #[test]
    fn a_target_may_ask_to_be_called_again() {
        let (_, scheduler) = manual();
        let seen = Arc::new(Recorder(Mutex::new(Vec::new()), Some(at(8))));
        let timed: Arc<dyn Timed> = seen.clone();
        let id = scheduler.register(Arc::downgrade(&timed));
        scheduler.arm(id, at(1));
        scheduler.fire_due(at(1));
        assert_eq!(scheduler.next_due(), Some(at(8)));
    }
}
