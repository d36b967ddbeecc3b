use super::*;
use crate::clock::Timestamp;
use crate::dead_letter::Reason;
use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn key(n: u64) -> Key {
    // Some hashes alike, since only the keys tell them apart.
    Key { hash: ((n / 3) as u32).wrapping_mul(0x9E37_79B9), text: Text::new(&n.to_string()) }
}

fn pop<M>(keyed: &mut Keyed<M>) -> Option<(u32, M)> {
    let mut from = NONE;
    let message = keyed.pop(|_, lane| from = lane)?;
    Some((from, message))
}

fn hold() -> Hold {
    Hold { reason: Reason::Exhausted, since: Timestamp(0) }
}

#[test]
fn keys_take_turns_however_much_waits_under_one() {
    let mut keyed = Keyed::new();
    (0..1000).for_each(|n| keyed.push(key(0), (0, n)));
    (1..=100).for_each(|k| keyed.push(key(k), (k, 0)));
    for round in 0..100 {
        let (lane, hot) = pop(&mut keyed).unwrap();
        let cold = if round == 0 { None } else { Some(hot) };
        assert!(cold.is_none_or(|(k, _)| k == round));
        keyed.free(lane);
    }
}

#[test]
fn many_keys_leave_no_trace() {
    let mut keyed = Keyed::new();
    (0..300_000).for_each(|n| keyed.push(key(n), n));
    let busy: Vec<u32> = std::iter::from_fn(|| pop(&mut keyed)).map(|(lane, _)| lane).collect();
    assert_eq!((busy.len(), keyed.keys()), (300_000, 300_000));
    busy.into_iter().for_each(|lane| assert!(!keyed.free(lane)));
    assert_eq!((keyed.keys(), keyed.nodes.live()), (0, 0));
    assert!(keyed.by_key.capacity() <= 2 * slab::SPARE && keyed.lanes.is_bare() && keyed.nodes.is_bare());
}

#[test]
fn a_parked_key_goes_on_when_the_message_that_failed_is_gone() {
    let mut keyed = Keyed::new();
    (0..3).for_each(|n| keyed.push(key(1), n));
    let (lane, first) = pop(&mut keyed).unwrap();
    keyed.park(lane, first, hold());
    assert_eq!((keyed.available(), keyed.held(), keyed.moves_on()), (0, 3, false));
    assert_eq!(keyed.retain(|&n| n != 1), [1]);
    assert_eq!((keyed.available(), keyed.held()), (0, 2));
    assert_eq!(keyed.retain(|&n| n != 0), [0]);
    assert_eq!((keyed.available(), keyed.held()), (1, 0));
    assert_eq!(pop(&mut keyed).unwrap().1, 2);
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
                let popped = pop(&mut keyed);
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
                        let taken = keyed.begin_drop(&key(k)).map(|(lane, _, all)| {
                            keyed.free(lane);
                            all
                        });
                        let expected = model
                            .parked
                            .remove(&k)
                            .then(|| model.waiting.remove(&k).unwrap().into_iter().map(|n| (k, n)).collect::<Vec<_>>());
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

/// Places of a file, most of them unread, and passes over them whatever is in hand or parked: each key gets its
/// messages in order, and none twice.
#[cfg(feature = "sqlite")]
#[test]
fn what_is_left_behind_is_taken_in_later_and_in_order() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let (total, window) = (300, 1 + random.below(9));
        let key_of = |place: u64| place * place / 7 % 6;
        let mut unread: BTreeSet<u64> = BTreeSet::new();
        let (mut keyed, mut known, mut last) = (Keyed::new(), 0, BTreeMap::new());
        let (mut busy, mut done, mut handed_out) = (Vec::new(), 0, BTreeSet::new());
        for _ in 0..20_000 {
            while busy.len() < 3
                && let Some((lane, place)) = pop(&mut keyed)
            {
                let before = last.insert(key_of(place), place);
                assert!(before.is_none_or(|before| before <= place), "seed {seed}: {place} after {before:?}");
                busy.push((lane, place));
                handed_out.insert(place);
            }
            if keyed.available() == 0 {
                for (place, message) in
                    keyed.shed(window as usize, |&place| Some(place).filter(|place| !handed_out.contains(place)))
                {
                    assert!(place == message && unread.insert(place), "seed {seed}");
                }
                let from = keyed.hungry().unwrap_or(known).min(known);
                let mut pass = Pass::new(from, false);
                let mut end = from;
                for place in from..(from + window).min(total) {
                    if place >= known || unread.remove(&place) {
                        if place < known {
                            keyed.seen_again(&key(key_of(place)));
                        }
                        if keyed.take_in(&mut pass, place, &key(key_of(place)), place).is_err() {
                            unread.insert(place);
                        }
                    }
                    end = place + 1;
                }
                known = known.max(end);
                keyed.end_pass(&pass, end, known);
            }
            if !busy.is_empty() {
                let (lane, place) = busy.swap_remove(random.below(busy.len() as u64) as usize);
                match random.below(6) {
                    0 => keyed.give_back(lane, place, Turn::Last),
                    1 => keyed.park(lane, place, hold()),
                    _ => {
                        done += 1;
                        keyed.free(lane);
                    }
                }
            }
            if random.below(3) == 0 {
                keyed.release(&key(random.below(6)), |_| {});
            }
        }
        assert_eq!((done, unread.len(), keyed.keys(), keyed.is_behind()), (total, 0, 0, false), "seed {seed}");
    }
}
