//! What is in progress and what is done, by key. Pure but for its lock: it is told the time.

use super::Window;
use crate::clock::Timestamp;
use crate::message::Text;
use crate::sync::Mutex;
use ahash::AHashMap;
use std::collections::VecDeque;

/// How many keys that are out of date are forgotten with each claim and completion, so that none takes long.
const FORGET_AT_ONCE: usize = 64;

/// Remembers which keys are claimed and, for a window, which are done. `W` is what may wait for a claim to end.
pub(crate) struct Ledger<W> {
    window: Window,
    book: Mutex<Book<W>>,
}

struct Book<W> {
    entries: AHashMap<Text, Entry<W>>,
    /// What is done, oldest first. An item whose number is not its entry's any more is a left-over.
    done: VecDeque<(Text, u64)>,
    /// Of the next that is done.
    number: u64,
}

enum Entry<W> {
    /// With those who wait for it to end.
    Claimed(Vec<W>),
    Done {
        until: Timestamp,
        number: u64,
    },
}

/// What a claim finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The key is the caller's until it is completed or released.
    Nothing,
    InProgress,
    Done,
}

/// What becomes of something that claims a key, or waits for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Screened<W> {
    Claimed(W),
    Waits,
    Done(W),
}

impl<W> Ledger<W> {
    pub(crate) fn new(window: Window) -> Self {
        let book = Book { entries: AHashMap::new(), done: VecDeque::new(), number: 0 };
        Self { window, book: Mutex::new(book) }
    }

    pub(crate) fn claim(&self, key: &Text, now: Timestamp) -> Found {
        let mut book = self.book.lock();
        book.forget(now, self.window.max);
        match book.entries.get(key) {
            Some(Entry::Claimed(_)) => Found::InProgress,
            Some(Entry::Done { until, .. }) if *until > now => Found::Done,
            _ => {
                book.entries.insert(key.clone(), Entry::Claimed(Vec::new()));
                Found::Nothing
            }
        }
    }

    /// As [`Ledger::claim`]; who finds the key claimed waits until [`Ledger::complete`] or [`Ledger::release`]
    /// answers him.
    pub(crate) fn claim_or_wait(&self, key: &Text, now: Timestamp, who: W) -> Screened<W> {
        let mut book = self.book.lock();
        book.forget(now, self.window.max);
        match book.entries.get_mut(key) {
            Some(Entry::Claimed(waiting)) => {
                waiting.push(who);
                Screened::Waits
            }
            Some(Entry::Done { until, .. }) if *until > now => Screened::Done(who),
            _ => {
                book.entries.insert(key.clone(), Entry::Claimed(Vec::new()));
                Screened::Claimed(who)
            }
        }
    }

    /// The work is done; who has waited for that. `note` is told the number of the oldest key that is still remembered,
    /// in the order of completion and before anybody finds this one done. It runs under the lock.
    pub(crate) fn complete_noting(&self, key: &Text, now: Timestamp, note: impl FnOnce(u64)) -> Vec<W> {
        let mut book = self.book.lock();
        let ended = book.finish(key.clone(), now.after(self.window.time));
        book.forget(now, self.window.max);
        note(book.done.front().map_or(book.number, |(_, number)| *number));
        waiting(ended)
    }

    /// A key that was done in an earlier run, at that time; the oldest come first. `number` is its number.
    #[cfg(feature = "sqlite")]
    pub(crate) fn restore(&self, key: Text, number: u64, at: Timestamp) {
        let mut book = self.book.lock();
        book.number = number;
        book.finish(key, at.after(self.window.time));
    }

    /// The number that the next key to be done gets.
    #[cfg(feature = "sqlite")]
    pub(crate) fn begin_at(&self, number: u64) {
        self.book.lock().number = number;
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// The work has failed, and may be done by another; who has waited for that.
    pub(crate) fn release(&self, key: &Text) -> Vec<W> {
        let mut book = self.book.lock();
        let ended = book.entries.remove(key);
        debug_assert!(matches!(ended, Some(Entry::Claimed(_))), "only who has claimed it releases it");
        waiting(ended)
    }

    /// Everybody who waits, and does so no longer.
    pub(crate) fn take_waiting(&self) -> Vec<W> {
        let mut book = self.book.lock();
        let mut all = Vec::new();
        for entry in book.entries.values_mut() {
            if let Entry::Claimed(waiting) = entry {
                all.append(waiting);
            }
        }
        all
    }

    /// How many keys it remembers, claimed or done. Those that are out of date may count for a while.
    pub(crate) fn len(&self) -> usize {
        self.book.lock().entries.len()
    }
}

fn waiting<W>(ended: Option<Entry<W>>) -> Vec<W> {
    match ended {
        Some(Entry::Claimed(waiting)) => waiting,
        _ => Vec::new(),
    }
}

impl<W> Book<W> {
    /// It is done; what it was before.
    fn finish(&mut self, key: Text, until: Timestamp) -> Option<Entry<W>> {
        let number = self.number;
        self.number += 1;
        self.done.push_back((key.clone(), number));
        self.entries.insert(key, Entry::Done { until, number })
    }

    /// Forgets what is out of date, and of what is done as much as is too much.
    fn forget(&mut self, now: Timestamp, max: usize) {
        for _ in 0..FORGET_AT_ONCE {
            let Some((key, number)) = self.done.front() else { return };
            let until = match self.entries.get(key) {
                Some(Entry::Done { until, number: other }) if other == number => Some(*until),
                _ => None,
            };
            if until.is_some_and(|until| until > now) && self.done.len() <= max {
                return;
            }
            if until.is_some() {
                self.entries.remove(key);
            }
            self.done.pop_front();
            if self.done.is_empty() {
                self.done.shrink_to(1024);
                self.entries.shrink_to(1024);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::HashMap;
    use std::time::Duration;

    fn ledger(seconds: u64, max: usize) -> Ledger<u32> {
        Ledger::new(Window::of(Duration::from_secs(seconds)).max(max))
    }

    impl<W> Ledger<W> {
        fn complete(&self, key: &Text, now: Timestamp) -> Vec<W> {
            self.complete_noting(key, now, |_| {})
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    fn key(n: u64) -> Text {
        Text::showing(&n)
    }

    #[test]
    fn a_key_is_claimed_then_done_then_forgotten() {
        let ledger = ledger(10, 9);
        assert_eq!(ledger.claim(&key(1), at(0)), Found::Nothing);
        assert_eq!(ledger.claim(&key(1), at(1)), Found::InProgress);
        assert!(ledger.complete(&key(1), at(2)).is_empty());
        assert_eq!(ledger.claim(&key(1), at(11)), Found::Done);
        assert_eq!(ledger.claim(&key(1), at(12)), Found::Nothing);
        ledger.release(&key(1));
        assert_eq!((ledger.claim(&key(1), at(12)), ledger.len()), (Found::Nothing, 1));
    }

    #[test]
    fn a_claim_is_never_forgotten_however_old_or_however_many() {
        let ledger = ledger(1, 2);
        assert_eq!(ledger.claim(&key(0), at(0)), Found::Nothing);
        for n in 1..100 {
            ledger.claim(&key(n), at(n));
            ledger.complete(&key(n), at(n));
        }
        assert_eq!(ledger.claim(&key(0), at(1_000)), Found::InProgress);
    }

    #[test]
    fn the_oldest_of_too_many_are_forgotten_first() {
        let ledger = ledger(1_000, 3);
        for n in 0..5 {
            ledger.claim(&key(n), at(n));
            ledger.complete(&key(n), at(n));
        }
        let found: Vec<_> = (2..5).map(|n| ledger.claim(&key(n), at(9))).collect();
        assert_eq!((found, ledger.len()), (vec![Found::Done; 3], 3));
    }

    #[test]
    fn who_waits_is_answered_once_the_claim_ends() {
        let ledger = ledger(10, 9);
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 7), Screened::Claimed(7));
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 8), Screened::Waits);
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 9), Screened::Waits);
        assert_eq!(ledger.release(&key(1)), [8, 9]);
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 8), Screened::Claimed(8));
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 9), Screened::Waits);
        assert_eq!(ledger.complete(&key(1), at(0)), [9]);
        assert_eq!(ledger.claim_or_wait(&key(1), at(0), 9), Screened::Done(9));
    }

    /// Against a model that keeps everything and looks at the times.
    #[test]
    fn it_answers_as_a_simple_model_does_and_stays_small() {
        for seed in 0..20 {
            let (ledger, mut random) = (ledger(50, usize::MAX), Random::new(seed));
            let (mut now, mut claimed, mut done) = (0, Vec::new(), HashMap::new());
            for _ in 0..5_000 {
                now += random.below(3);
                let n = random.below(60);
                match random.below(3) {
                    0 => {
                        let found = ledger.claim(&key(n), at(now));
                        let expected = match (claimed.contains(&n), done.get(&n)) {
                            (true, _) => Found::InProgress,
                            (false, Some(&at)) if at + 50 > now => Found::Done,
                            _ => Found::Nothing,
                        };
                        assert_eq!(found, expected, "seed {seed}");
                        if found == Found::Nothing {
                            claimed.push(n);
                        }
                    }
                    more if !claimed.is_empty() => {
                        let n = claimed.swap_remove(random.below(claimed.len() as u64) as usize);
                        if more == 1 {
                            ledger.complete(&key(n), at(now));
                            done.insert(n, now);
                        } else {
                            ledger.release(&key(n));
                        }
                    }
                    _ => {}
                }
            }
            ledger.claim(&key(1_000), at(now + 1_000));
            assert_eq!(ledger.len(), claimed.len() + 1, "seed {seed}: all that was done is out of date");
        }
    }

    #[test]
    fn many_keys_take_no_more_than_the_window_says() {
        let ledger = ledger(1_000_000, 1_000);
        for n in 0..100_000 {
            ledger.claim(&key(n), at(n));
            ledger.complete(&key(n), at(n));
            assert!(ledger.len() <= 1_001);
        }
        let book = ledger.book.lock();
        assert!(book.done.capacity() <= 4_096 && book.entries.capacity() <= 4_096);
    }
}
