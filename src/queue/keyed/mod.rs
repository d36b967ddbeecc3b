//! Messages in lanes, one per ordering key; a lane hands out one message at a time.
//!
//! Lanes that have a message and none in flight stand in line, so that each key gets its turn however much
//! waits under another. A lane exists while something of its key waits or is under way, no longer. Messages
//! and lanes live in slabs and are linked by number, so a steady flow allocates nothing, and taking a
//! message out anywhere (it expired, or is the oldest of a full queue) costs the same as at the front.

mod behind;
mod index;
mod key;
mod list;
mod policy;
mod slab;
#[cfg(test)]
mod tests;

#[cfg(feature = "sqlite")]
pub(crate) use behind::Pass;
pub(crate) use key::{Key, KeyRule};
pub(crate) use policy::Hold;
pub use policy::{Exhausted, Parked};

use crate::message::Text;
use behind::Behind;
use index::Index;
use list::{Links, List};
use slab::{NONE, Slab};
use std::collections::BTreeMap;
use std::fmt;

/// Who comes after a lane that gets a message back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Everybody: it was not that lane's turn, in effect.
    First,
    /// Nobody: the others go first.
    Last,
}

pub(crate) struct Keyed<M> {
    by_key: Index,
    lanes: Slab<Lane>,
    nodes: Slab<Node<M>>,
    /// All messages, in the order they came; a message that came back leads.
    arrival: List,
    /// Lanes that may hand out a message, in the order of their turns.
    line: List,
    in_line: usize,
    parked: BTreeMap<u32, Hold>,
    /// Messages in parked lanes.
    held: usize,
    stopped: bool,
    /// Lanes of which a part is not here.
    behind: Behind,
}

/// The messages of one key.
struct Lane {
    key: Key,
    messages: List,
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

impl<M> Keyed<M> {
    pub(crate) fn new() -> Self {
        Self {
            by_key: Index::new(),
            lanes: Slab::new(),
            nodes: Slab::new(),
            arrival: List::EMPTY,
            line: List::EMPTY,
            in_line: 0,
            parked: BTreeMap::new(),
            held: 0,
            stopped: false,
            behind: Behind::default(),
        }
    }

    /// How many lanes have a message that may be handed out now.
    #[inline]
    pub(crate) fn available(&self) -> usize {
        if self.stopped { 0 } else { self.in_line }
    }

    /// Whether any message will get its turn without anybody's help: those behind one that is under way do.
    pub(crate) fn moves_on(&self) -> bool {
        !self.stopped && (self.nodes.live() > self.held || self.misses_turns())
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

    /// Behind all of its key.
    #[cfg(test)]
    pub(crate) fn push(&mut self, mut key: Key, message: M) {
        let mut message = Some(message);
        self.push_next(&mut key, || message.take());
    }

    /// As [`Keyed::push`], what `next` gives. It is put straight into its place, since it may be large; so is
    /// what [`Keyed::pop`] gives taken straight out of it. Of the key there may be nothing left.
    #[inline]
    pub(crate) fn push_next(&mut self, key: &mut Key, next: impl FnOnce() -> Option<M>) {
        let id = self.lane_of(key);
        let lane = &mut self.lanes[id];
        let (in_lane, arrived) = (lane.messages.at_end(), self.arrival.at_end());
        let node = self.nodes.claim(Node::empty);
        let place = &mut self.nodes[node];
        (place.lane, place.in_lane, place.arrived) = (id, in_lane, arrived);
        place.message = next();
        self.arrival.append(&mut self.nodes, node, Node::arrived);
        lane.messages.append(&mut self.nodes, node, Node::in_lane);
        lane.waiting += 1;
        match lane.state {
            State::Open if lane.waiting == 1 => {
                self.queue_up(id, Turn::Last);
                if !self.behind.is_empty() {
                    self.behind.set_hungry(id, false);
                }
            }
            State::Parked => self.held += 1,
            State::Open | State::Busy => {}
        }
    }

    /// What [`Keyed::pop`] would take.
    #[inline]
    pub(crate) fn next(&self) -> Option<&M> {
        if self.stopped || self.line.is_empty() {
            return None;
        }
        Some(self.first_of(self.line.first))
    }

    /// The next message of the lane whose turn it is, once it is marked with that; the lane hands out no
    /// other until it is freed.
    #[inline(always)]
    pub(crate) fn pop(&mut self, mark: impl FnOnce(&mut M, u32)) -> Option<M> {
        if self.stopped || self.line.is_empty() {
            return None;
        }
        let id = self.line.first;
        self.leave_line(id);
        let lane = &mut self.lanes[id];
        lane.state = State::Busy;
        let first = lane.messages.first;
        mark(self.nodes[first].message.as_mut().expect("linked"), id);
        self.take_out(first)
    }

    /// What the lane handed out is gone. Whether it has another message to hand out, or one to fetch.
    #[inline]
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
        self.behind.note_parked(lane);
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
    pub(crate) fn release(&mut self, key: &Key, restart: impl FnOnce(&mut M)) -> bool {
        let Some(lane) = self.parked_lane(key) else { return false };
        let first = self.lanes[lane].messages.first;
        restart(self.nodes[first].message.as_mut().expect("linked"));
        self.unpark(lane);
        true
    }

    /// The key of a lane.
    pub(crate) fn key(&self, lane: u32) -> &Text {
        &self.lanes[lane].key.text
    }

    /// Each parked key with why it is, its first message, and how many wait; longest parked first.
    pub(crate) fn parked(&self) -> Vec<(&Text, &Hold, &M, usize)> {
        let parked = self.parked_lanes().map(|(lane, hold)| {
            let Lane { key, waiting, .. } = &self.lanes[lane];
            (&key.text, hold, self.first_of(lane), *waiting as usize + self.missing(lane) as usize)
        });
        parked.collect()
    }

    /// The keys that are parked, longest first.
    pub(crate) fn parked_keys(&self) -> Vec<Key> {
        self.parked_lanes().map(|(lane, _)| self.lanes[lane].key.clone()).collect()
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

    /// Takes everything that waits, in the order it came.
    pub(crate) fn take_all(&mut self) -> Vec<M> {
        self.retain(|_| false)
    }

    #[inline]
    fn lane_of(&mut self, key: &mut Key) -> u32 {
        if let Some(lane) = self.find(key) {
            return lane;
        }
        let hash = key.hash;
        let lane = self.lanes.claim(Lane::empty);
        std::mem::swap(&mut self.lanes[lane].key, key);
        self.by_key.insert(hash, lane);
        lane
    }

    #[inline]
    fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.find(key.hash, |lane| self.lanes[lane].key.text == key.text)
    }

    fn parked_lane(&self, key: &Key) -> Option<u32> {
        self.find(key).filter(|lane| self.parked.contains_key(lane))
    }

    fn parked_lanes(&self) -> impl Iterator<Item = (u32, &Hold)> {
        let mut all: Vec<_> = self.parked.iter().map(|(&lane, hold)| (lane, hold)).collect();
        all.sort_unstable_by_key(|(lane, hold)| (hold.since, *lane));
        all.into_iter()
    }

    #[inline]
    fn first_of(&self, lane: u32) -> &M {
        self.nodes[self.lanes[lane].messages.first].message.as_ref().expect("linked")
    }

    fn put_first(&mut self, lane: u32, message: M) {
        let node = self.nodes.claim(Node::empty);
        self.nodes[node].lane = lane;
        self.nodes[node].message = Some(message);
        self.arrival.push_front(&mut self.nodes, node, Node::arrived);
        let Lane { messages, waiting, .. } = &mut self.lanes[lane];
        messages.push_front(&mut self.nodes, node, Node::in_lane);
        *waiting += 1;
    }

    /// Unlinks a message, whatever that means for its lane.
    #[inline(always)]
    fn take_out(&mut self, node: u32) -> Option<M> {
        self.arrival.remove(&mut self.nodes, node, Node::arrived);
        let lane = &mut self.lanes[self.nodes[node].lane];
        lane.messages.remove(&mut self.nodes, node, Node::in_lane);
        lane.waiting -= 1;
        self.nodes.vacate(node);
        self.nodes[node].message.take()
    }

    /// Takes out a message that waits, not by its turn. If its lane is parked for it, that goes on.
    fn withdraw(&mut self, node: u32) -> M {
        let lane = self.nodes[node].lane;
        let culprit = self.lanes[lane].messages.first == node;
        let message = self.take_out(node).expect("linked");
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
                    self.empty(lane);
                }
            }
        }
        message
    }

    fn unpark(&mut self, lane: u32) {
        self.parked.remove(&lane);
        self.behind.note_unparked(lane);
        self.held -= self.lanes[lane].waiting as usize;
        self.open(lane, Turn::Last);
    }

    /// Gets a lane in line that is not, or forgets it if it has nothing left. Whether it is in line, or would be if it
    /// had its next message.
    #[inline]
    fn open(&mut self, lane: u32, turn: Turn) -> bool {
        self.lanes[lane].state = State::Open;
        if self.lanes[lane].waiting > 0 {
            self.queue_up(lane, turn);
            return true;
        }
        self.empty(lane)
    }

    /// Forgets an open lane that has nothing, unless it is only that nothing is here.
    #[inline]
    fn empty(&mut self, lane: u32) -> bool {
        let lives_on = self.behind.has(lane);
        if lives_on {
            self.behind.set_hungry(lane, true);
        } else {
            self.forget(lane);
        }
        lives_on
    }

    #[inline]
    fn queue_up(&mut self, lane: u32, turn: Turn) {
        match turn {
            Turn::First => self.line.push_front(&mut self.lanes, lane, Lane::turn),
            Turn::Last => self.line.push_back(&mut self.lanes, lane, Lane::turn),
        }
        self.in_line += 1;
    }

    #[inline]
    fn leave_line(&mut self, lane: u32) {
        self.line.remove(&mut self.lanes, lane, Lane::turn);
        self.in_line -= 1;
    }

    #[inline]
    fn forget(&mut self, lane: u32) {
        let key = &mut self.lanes[lane].key;
        let hash = key.hash;
        // Only a long text owns anything.
        key.text = Text::EMPTY;
        self.by_key.remove(hash, lane);
        self.lanes.vacate(lane);
        self.lanes.tidy();
        self.nodes.tidy();
    }
}

impl<M> fmt::Debug for Keyed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("keys", &self.keys()).field("waiting", &self.nodes.live()).finish_non_exhaustive()
    }
}

impl Lane {
    /// As [`Keyed::forget`] leaves one behind.
    fn empty() -> Self {
        Self { key: Key::NONE, messages: List::EMPTY, waiting: 0, state: State::Open, turn: Links::NOWHERE }
    }

    fn turn(&mut self) -> &mut Links {
        &mut self.turn
    }
}

impl<M> Node<M> {
    fn empty() -> Self {
        Self { message: None, lane: NONE, in_lane: Links::NOWHERE, arrived: Links::NOWHERE }
    }

    fn in_lane(&mut self) -> &mut Links {
        &mut self.in_lane
    }

    fn arrived(&mut self) -> &mut Links {
        &mut self.arrived
    }
}
