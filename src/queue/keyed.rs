//! Messages in lanes, one per ordering key; a lane hands out one message at a time.
//!
//! Lanes that have a message and none in flight stand in line, so that each key gets its turn however much
//! waits under another. A lane exists while something of its key waits or is under way, no longer. Messages
//! and lanes live in slabs and are linked by number, so a steady flow allocates nothing, and taking a
//! message out anywhere (it expired, or is the oldest of a full queue) costs the same as at the front.

use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::message::{MessageId, Text};
use ahash::AHashMap;
use std::fmt;
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::SystemTime;

/// How a queue finds the ordering key of a message.
pub(crate) enum KeyRule<T> {
    Unordered,
    /// By the key that the message was given.
    OfMessage,
    /// All have the same.
    One,
    Of(Arc<dyn Fn(&T) -> Text + Send + Sync>),
}

impl<T> Clone for KeyRule<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Unordered => Self::Unordered,
            Self::OfMessage => Self::OfMessage,
            Self::One => Self::One,
            Self::Of(key) => Self::Of(Arc::clone(key)),
        }
    }
}

/// What a queue ordered by key does when it gives up on a message after its last attempt, or after a
/// failure that no retry can mend.
///
/// What a consumer rejects itself ([`Delivery::dead_letter`](crate::Delivery::dead_letter),
/// [`Outcome::DeadLetter`](crate::Outcome::DeadLetter)) and what expires is a decision or the clock's doing,
/// not a failure: those become dead letters, and their key goes on, whatever is set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Exhausted {
    /// The message becomes a dead letter, and the next one of its key goes on. The default.
    #[default]
    DeadLetter,
    /// The key is parked: the message and all that follow under its key stay until
    /// [`Queue::release_key`](crate::Queue::release_key) or [`Queue::drop_key`](crate::Queue::drop_key). Other
    /// keys flow.
    Park,
    /// The key is parked, and nothing at all is handed out until [`Queue::resume`](crate::Queue::resume).
    Stop,
}

/// A key that is held back since one of its messages failed for good; see [`Exhausted::Park`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parked {
    /// The ordering key.
    pub key: String,
    /// How many messages stay, the one that failed included.
    pub waiting: usize,
    /// The message that failed.
    pub message: MessageId,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was given up on.
    pub reason: Reason,
    /// What its last attempt said.
    pub error: Option<String>,
    /// Since when the key is held back, on the broker's timeline.
    pub since: SystemTime,
}

/// Why and since when a lane is held back.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) reason: Reason,
    pub(crate) since: Timestamp,
}

/// Who comes after a lane that gets a message back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Everybody: it was not that lane's turn, in effect.
    First,
    /// Nobody: the others go first.
    Last,
}

pub(crate) struct Keyed<M> {
    by_key: AHashMap<Text, u32>,
    lanes: Slab<Lane>,
    nodes: Slab<Node<M>>,
    /// All messages, in the order they came; a message that came back leads.
    arrival: Ends,
    /// Lanes that may hand out a message, in the order of their turns.
    line: Ends,
    in_line: usize,
    parked: AHashMap<u32, Hold>,
    /// Messages in parked lanes.
    held: usize,
    stopped: bool,
}

/// The messages of one key.
struct Lane {
    key: Text,
    messages: Ends,
    waiting: u32,
    state: State,
    turn: Links,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In line, unless it has no message.
    Open,
    /// A message is in flight or waits for its retry.
    Busy,
    Parked,
}

struct Node<M> {
    message: Option<M>,
    lane: u32,
    in_lane: Links,
    arrived: Links,
}

/// No lane or node.
const NONE: u32 = u32::MAX;
/// Lanes or keys for which memory is kept when there are none.
const SPARE: usize = 1024;

impl<M> Keyed<M> {
    pub(crate) fn new() -> Self {
        Self {
            by_key: AHashMap::new(),
            lanes: Slab::new(),
            nodes: Slab::new(),
            arrival: Ends::EMPTY,
            line: Ends::EMPTY,
            in_line: 0,
            parked: AHashMap::new(),
            held: 0,
            stopped: false,
        }
    }

    /// How many lanes have a message that may be handed out now.
    pub(crate) fn available(&self) -> usize {
        if self.stopped { 0 } else { self.in_line }
    }

    /// Whether any message will get its turn without anybody's help: those behind one that is under way do.
    pub(crate) fn moves_on(&self) -> bool {
        !self.stopped && self.nodes.live() > self.held
    }

    /// Keys of which something waits or is under way.
    pub(crate) fn keys(&self) -> usize {
        self.lanes.live()
    }

    /// Messages held back in parked lanes.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Behind all of its key. Whether one more lane has something to hand out by it.
    pub(crate) fn push(&mut self, key: Text, message: M) -> bool {
        let lane = self.lane_of(key);
        let node = self.nodes.insert(Node::new(lane, message));
        self.arrival.push_back(&mut self.nodes, node, Node::arrived);
        let Lane { messages, waiting, state, .. } = &mut self.lanes[lane];
        messages.push_back(&mut self.nodes, node, Node::in_lane);
        *waiting += 1;
        self.held += usize::from(*state == State::Parked);
        let first = *state == State::Open && *waiting == 1;
        if first {
            self.queue_up(lane, Turn::Last);
        }
        first
    }

    /// The next message of the lane whose turn it is; that lane hands out no other until it is freed.
    pub(crate) fn pop(&mut self) -> Option<(u32, M)> {
        if self.stopped || self.line.first == NONE {
            return None;
        }
        let lane = self.line.first;
        self.leave_line(lane);
        self.lanes[lane].state = State::Busy;
        let node = self.lanes[lane].messages.first;
        Some((lane, self.take_out(node)))
    }

    /// What the lane handed out is gone. Whether it has another message to hand out.
    pub(crate) fn free(&mut self, lane: u32) -> bool {
        debug_assert!(self.lanes[lane].state == State::Busy);
        self.open(lane, Turn::Last)
    }

    /// What the lane handed out comes back, ahead of all that follow under its key.
    pub(crate) fn give_back(&mut self, lane: u32, message: M, turn: Turn) {
        debug_assert!(self.lanes[lane].state == State::Busy);
        self.put_first(lane, message);
        self.open(lane, turn);
    }

    /// As [`Keyed::give_back`], but the lane is held back from now on.
    pub(crate) fn park(&mut self, lane: u32, message: M, hold: Hold) {
        debug_assert!(self.lanes[lane].state == State::Busy);
        self.put_first(lane, message);
        let Lane { state, waiting, .. } = &mut self.lanes[lane];
        *state = State::Parked;
        self.held += *waiting as usize;
        self.parked.insert(lane, hold);
    }

    /// Hands out nothing until [`Keyed::resume`].
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Lifts a stop, if there is one; parked lanes stay so.
    pub(crate) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.stopped)
    }

    /// Lets a parked key go on from the message that failed, which is shown to `restart`.
    pub(crate) fn release(&mut self, key: &Text, restart: impl FnOnce(&mut M)) -> bool {
        let Some(lane) = self.parked_lane(key) else { return false };
        let first = self.lanes[lane].messages.first;
        restart(self.nodes[first].message.as_mut().expect("linked"));
        self.unpark(lane);
        true
    }

    /// Takes all messages of a parked key.
    pub(crate) fn take_parked(&mut self, key: &Text) -> Option<(Hold, Vec<M>)> {
        let lane = self.parked_lane(key)?;
        let hold = self.parked[&lane].clone();
        self.parked.remove(&lane);
        self.held -= self.lanes[lane].waiting as usize;
        // Its messages leave before it gets in line.
        self.lanes[lane].state = State::Busy;
        let mut messages = Vec::with_capacity(self.lanes[lane].waiting as usize);
        while self.lanes[lane].messages.first != NONE {
            let first = self.lanes[lane].messages.first;
            messages.push(self.take_out(first));
        }
        self.free(lane);
        Some((hold, messages))
    }

    /// The key of a lane.
    pub(crate) fn key(&self, lane: u32) -> &Text {
        &self.lanes[lane].key
    }

    /// Each parked key with why it is, its first message, and how many wait; longest parked first.
    pub(crate) fn parked(&self) -> Vec<(&Text, &Hold, &M, usize)> {
        let mut all: Vec<_> = self.parked.iter().collect();
        all.sort_unstable_by_key(|(lane, hold)| (hold.since, **lane));
        let parked = all.into_iter().map(|(&lane, hold)| {
            let Lane { key, messages, waiting, .. } = &self.lanes[lane];
            let first = self.nodes[messages.first].message.as_ref().expect("linked");
            (key, hold, first, *waiting as usize)
        });
        parked.collect()
    }

    /// The keys that are parked.
    pub(crate) fn parked_keys(&self) -> Vec<Text> {
        self.parked.keys().map(|&lane| self.lanes[lane].key.clone()).collect()
    }

    /// The message that has waited longest.
    pub(crate) fn oldest(&self) -> Option<&M> {
        (self.arrival.first != NONE).then(|| self.nodes[self.arrival.first].message.as_ref().expect("linked"))
    }

    /// Shows up to `max` messages, in the order they came.
    pub(crate) fn show(&mut self, max: usize, mut look: impl FnMut(&mut M)) {
        let mut node = self.arrival.first;
        for _ in 0..max {
            if node == NONE {
                return;
            }
            look(self.nodes[node].message.as_mut().expect("linked"));
            node = self.nodes[node].arrived.next;
        }
    }

    /// Takes out the first message to come of those `wanted`.
    pub(crate) fn evict(&mut self, wanted: impl Fn(&M) -> bool) -> Option<M> {
        let mut node = self.arrival.first;
        while node != NONE && !wanted(self.nodes[node].message.as_ref().expect("linked")) {
            node = self.nodes[node].arrived.next;
        }
        (node != NONE).then(|| self.withdraw(node))
    }

    /// Takes out what is not to stay, in the order it came.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&M) -> bool) -> Vec<M> {
        let mut removed = Vec::new();
        let mut node = self.arrival.first;
        while node != NONE {
            let next = self.nodes[node].arrived.next;
            if !stays(self.nodes[node].message.as_ref().expect("linked")) {
                removed.push(self.withdraw(node));
            }
            node = next;
        }
        removed
    }

    fn lane_of(&mut self, key: Text) -> u32 {
        let lanes = &mut self.lanes;
        let new = |key: &Text| lanes.insert(Lane::new(key.clone()));
        *self.by_key.entry(key).or_insert_with_key(new)
    }

    fn parked_lane(&self, key: &Text) -> Option<u32> {
        self.by_key.get(key).copied().filter(|lane| self.parked.contains_key(lane))
    }

    fn put_first(&mut self, lane: u32, message: M) {
        let node = self.nodes.insert(Node::new(lane, message));
        self.arrival.push_front(&mut self.nodes, node, Node::arrived);
        let Lane { messages, waiting, .. } = &mut self.lanes[lane];
        messages.push_front(&mut self.nodes, node, Node::in_lane);
        *waiting += 1;
    }

    /// Unlinks a message, whatever that means for its lane.
    fn take_out(&mut self, node: u32) -> M {
        let lane = self.nodes[node].lane;
        self.arrival.remove(&mut self.nodes, node, Node::arrived);
        let Lane { messages, waiting, .. } = &mut self.lanes[lane];
        messages.remove(&mut self.nodes, node, Node::in_lane);
        *waiting -= 1;
        let message = self.nodes[node].message.take().expect("linked");
        self.nodes.vacate(node);
        message
    }

    /// Takes out a message that waits, not by its turn. If its lane is parked for it, that goes on.
    fn withdraw(&mut self, node: u32) -> M {
        let lane = self.nodes[node].lane;
        let culprit = self.lanes[lane].messages.first == node;
        let message = self.take_out(node);
        match self.lanes[lane].state {
            State::Busy => {}
            State::Parked => {
                self.held -= 1;
                if culprit {
                    self.unpark(lane);
                }
            }
            State::Open => {
                if self.lanes[lane].waiting == 0 {
                    self.leave_line(lane);
                    self.forget(lane);
                }
            }
        }
        message
    }

    fn unpark(&mut self, lane: u32) {
        self.parked.remove(&lane);
        self.held -= self.lanes[lane].waiting as usize;
        self.open(lane, Turn::Last);
    }

    /// Gets a lane in line that is not, or forgets it if it has nothing left. Whether it is in line.
    fn open(&mut self, lane: u32, turn: Turn) -> bool {
        self.lanes[lane].state = State::Open;
        let has_message = self.lanes[lane].waiting > 0;
        if has_message {
            self.queue_up(lane, turn);
        } else {
            self.forget(lane);
        }
        has_message
    }

    fn queue_up(&mut self, lane: u32, turn: Turn) {
        match turn {
            Turn::First => self.line.push_front(&mut self.lanes, lane, Lane::turn),
            Turn::Last => self.line.push_back(&mut self.lanes, lane, Lane::turn),
        }
        self.in_line += 1;
    }

    fn leave_line(&mut self, lane: u32) {
        self.line.remove(&mut self.lanes, lane, Lane::turn);
        self.in_line -= 1;
    }

    fn forget(&mut self, lane: u32) {
        let key = std::mem::replace(&mut self.lanes[lane].key, Text::EMPTY);
        self.by_key.remove(&key);
        // A map does not say how much it has taken, but there are never fewer numbers for lanes than keys in it.
        let large = self.lanes.numbers() > SPARE;
        self.lanes.vacate(lane);
        if large && self.by_key.is_empty() {
            self.by_key = AHashMap::new();
        }
    }
}

impl<M> fmt::Debug for Keyed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("keys", &self.keys()).field("waiting", &self.nodes.live()).finish_non_exhaustive()
    }
}

impl Lane {
    fn new(key: Text) -> Self {
        Self { key, messages: Ends::EMPTY, waiting: 0, state: State::Open, turn: Links::NOWHERE }
    }

    fn turn(&mut self) -> &mut Links {
        &mut self.turn
    }
}

impl<M> Node<M> {
    fn new(lane: u32, message: M) -> Self {
        Self { message: Some(message), lane, in_lane: Links::NOWHERE, arrived: Links::NOWHERE }
    }

    fn in_lane(&mut self) -> &mut Links {
        &mut self.in_lane
    }

    fn arrived(&mut self) -> &mut Links {
        &mut self.arrived
    }
}

/// A member's neighbours in a list.
#[derive(Debug, Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

impl Links {
    const NOWHERE: Self = Self { previous: NONE, next: NONE };
}

/// A list of things in a slab, by their links.
#[derive(Debug, Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

impl Ends {
    const EMPTY: Self = Self { first: NONE, last: NONE };

    #[inline]
    fn push_back<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        *links(&mut slab[id]) = Links { previous: self.last, next: NONE };
        match self.last {
            NONE => self.first = id,
            last => links(&mut slab[last]).next = id,
        }
        self.last = id;
    }

    fn push_front<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        *links(&mut slab[id]) = Links { previous: NONE, next: self.first };
        match self.first {
            NONE => self.last = id,
            first => links(&mut slab[first]).previous = id,
        }
        self.first = id;
    }

    #[inline]
    fn remove<N>(&mut self, slab: &mut Slab<N>, id: u32, links: impl Fn(&mut N) -> &mut Links) {
        let Links { previous, next } = std::mem::replace(links(&mut slab[id]), Links::NOWHERE);
        match previous {
            NONE => self.first = next,
            previous => links(&mut slab[previous]).next = next,
        }
        match next {
            NONE => self.last = previous,
            next => links(&mut slab[next]).previous = previous,
        }
    }
}

/// Things by number, in chunks: growing moves nothing, and numbers are used again.
struct Slab<N> {
    chunks: Vec<Vec<N>>,
    vacant: Vec<u32>,
    len: u32,
}

impl<N> Slab<N> {
    const CHUNK: usize = 256;

    fn new() -> Self {
        Self { chunks: Vec::new(), vacant: Vec::new(), len: 0 }
    }

    /// How many things there were at once, since it was last empty and large.
    fn numbers(&self) -> usize {
        self.len as usize
    }

    fn live(&self) -> usize {
        self.len as usize - self.vacant.len()
    }

    fn insert(&mut self, thing: N) -> u32 {
        if let Some(id) = self.vacant.pop() {
            self[id] = thing;
            return id;
        }
        let id = self.len;
        assert!(id < NONE, "fewer than 2^32 messages");
        if id as usize / Self::CHUNK == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(Self::CHUNK));
        }
        self.chunks[id as usize / Self::CHUNK].push(thing);
        self.len += 1;
        id
    }

    /// Frees the number; what is left under it must own nothing.
    fn vacate(&mut self, id: u32) {
        self.vacant.push(id);
        // Once empty, a large slab gives its memory back.
        if self.live() == 0 && self.chunks.len() > SPARE / Self::CHUNK {
            *self = Self::new();
        }
    }
}

impl<N> Index<u32> for Slab<N> {
    type Output = N;
    #[inline]
    fn index(&self, id: u32) -> &N {
        &self.chunks[id as usize / Self::CHUNK][id as usize % Self::CHUNK]
    }
}

impl<N> IndexMut<u32> for Slab<N> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut N {
        &mut self.chunks[id as usize / Self::CHUNK][id as usize % Self::CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    fn key(n: u64) -> Text {
        Text::new(&n.to_string())
    }

    fn hold() -> Hold {
        Hold { reason: Reason::Exhausted, since: Timestamp(0) }
    }

    #[test]
    fn keys_take_turns_however_much_waits_under_one() {
        let mut keyed = Keyed::new();
        (0..1000).for_each(|n| _ = keyed.push(key(0), (0, n)));
        (1..=100).for_each(|k| _ = keyed.push(key(k), (k, 0)));
        for round in 0..100 {
            let (lane, hot) = keyed.pop().unwrap();
            let cold = if round == 0 { None } else { Some(hot) };
            assert!(cold.is_none_or(|(k, _)| k == round));
            keyed.free(lane);
        }
    }

    #[test]
    fn many_keys_leave_no_trace() {
        let mut keyed = Keyed::new();
        (0..300_000).for_each(|n| _ = keyed.push(key(n), n));
        let busy: Vec<u32> = std::iter::from_fn(|| keyed.pop()).map(|(lane, _)| lane).collect();
        assert_eq!((busy.len(), keyed.keys()), (300_000, 300_000));
        busy.into_iter().for_each(|lane| assert!(!keyed.free(lane)));
        assert_eq!((keyed.keys(), keyed.nodes.live()), (0, 0));
        assert!(keyed.by_key.capacity() <= 2 * SPARE && keyed.lanes.chunks.is_empty() && keyed.nodes.chunks.is_empty());
    }

    #[test]
    fn a_parked_key_goes_on_when_the_message_that_failed_is_gone() {
        let mut keyed = Keyed::new();
        (0..3).for_each(|n| _ = keyed.push(key(1), n));
        let (lane, first) = keyed.pop().unwrap();
        keyed.park(lane, first, hold());
        assert_eq!((keyed.available(), keyed.held(), keyed.moves_on()), (0, 3, false));
        assert_eq!(keyed.retain(|&n| n != 1), [1]);
        assert_eq!((keyed.available(), keyed.held()), (0, 2));
        assert_eq!(keyed.retain(|&n| n != 0), [0]);
        assert_eq!((keyed.available(), keyed.held()), (1, 0));
        assert_eq!(keyed.pop().unwrap().1, 2);
    }

    /// What each key should hold, by a plain model.
    #[derive(Default)]
    struct Model {
        waiting: BTreeMap<u64, VecDeque<u64>>,
        busy: Vec<(u32, u64, u64)>,
        parked: BTreeSet<u64>,
    }

    impl Model {
        fn servable(&self) -> usize {
            let busy: BTreeSet<u64> = self.busy.iter().map(|b| b.1).collect();
            let idle = |k: &&u64| !busy.contains(k) && !self.parked.contains(k);
            self.waiting.iter().filter(|(_, w)| !w.is_empty()).map(|(k, _)| k).filter(idle).count()
        }

        fn check(&self, keyed: &Keyed<(u64, u64)>) {
            assert_eq!(keyed.available(), self.servable());
            assert_eq!(keyed.nodes.live(), self.waiting.values().map(VecDeque::len).sum::<usize>());
            assert_eq!(keyed.held(), self.parked.iter().map(|k| self.waiting[k].len()).sum::<usize>());
        }
    }

    #[test]
    fn any_mix_of_operations_agrees_with_a_plain_model() {
        let mut random = Random::new(5);
        let (mut keyed, mut model) = (Keyed::new(), Model::default());
        for n in 0..60_000_u64 {
            match random.below(12) {
                0..=3 => {
                    let k = random.below(20);
                    keyed.push(key(k), (k, n));
                    model.waiting.entry(k).or_default().push_back(n);
                }
                4..=6 => {
                    let servable = model.servable();
                    let popped = keyed.pop();
                    assert_eq!(popped.is_some(), servable > 0);
                    if let Some((lane, (k, n))) = popped {
                        assert_eq!(model.waiting.get_mut(&k).unwrap().pop_front(), Some(n), "in order");
                        assert!(model.busy.iter().all(|b| b.1 != k), "one at a time");
                        model.busy.push((lane, k, n));
                    }
                }
                7..=10 if !model.busy.is_empty() => {
                    let at = random.below(model.busy.len() as u64) as usize;
                    let (lane, k, n) = model.busy.swap_remove(at);
                    match random.below(4) {
                        0 => {
                            keyed.give_back(lane, (k, n), Turn::Last);
                            model.waiting.entry(k).or_default().push_front(n);
                        }
                        1 if random.below(5) == 0 => {
                            keyed.park(lane, (k, n), hold());
                            model.waiting.entry(k).or_default().push_front(n);
                            model.parked.insert(k);
                        }
                        _ => _ = keyed.free(lane),
                    }
                }
                _ => {
                    let k = random.below(20);
                    match random.below(20) {
                        0 => assert_eq!(keyed.release(&key(k), |_| {}), model.parked.remove(&k)),
                        1 => {
                            let taken = keyed.take_parked(&key(k)).map(|(_, all)| all);
                            let expected = model.parked.remove(&k).then(|| {
                                model.waiting.remove(&k).unwrap().into_iter().map(|n| (k, n)).collect::<Vec<_>>()
                            });
                            assert_eq!(taken, expected);
                        }
                        2 => {
                            keyed.retain(|m| m.1 % 7 != 0);
                            for (k, waiting) in &mut model.waiting {
                                let first = waiting.front().copied();
                                waiting.retain(|n| n % 7 != 0);
                                if waiting.front().copied() != first {
                                    model.parked.remove(k);
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            model.check(&keyed);
        }
    }
}
