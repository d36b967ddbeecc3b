//! Leaving a sick downstream alone: a consumer's circuit breaker as a pure state machine.

use crate::clock::Timestamp;
use crate::outcome::Outcome;
use std::collections::VecDeque;
use std::time::Duration;

/// Stops a consumer that mostly fails from failing on: see
/// [`ConsumerBuilder::circuit_breaker`](crate::ConsumerBuilder::circuit_breaker).
///
/// It looks at the consumer's last `window_calls` handlings (a batch is one handling):
///
/// | a handling that ends with | says about the downstream |
/// |---|---|
/// | an ack | it works |
/// | a retry of either kind, an error that is not permanent, a panic | it fails |
/// | a dead letter (a permanent error included) or a discard | nothing: the input was bad |
///
/// What says nothing does not enter the window either.
///
/// * **Closed.** The consumer works as ever. The circuit opens with a failure after which the window is full
///   and at least `failure_share` of it are failures.
/// * **Open.** None of its workers takes a message: ready ones stay in the queue, retries that become due
///   join them, other consumers of the queue go on. What was in hand when it opened ends as it ends, and
///   says nothing any more. The failures that opened it are retried or given up on as the queue's policy says.
/// * **Half open**, when the pause is over. Exactly one message is let through as a probe, however many
///   workers there are; a batch consumer probes with a batch of one. If it succeeds the circuit closes, with
///   an empty window; if it fails the circuit opens for the same pause again; if it says nothing the next
///   message is the probe. While a probe is in hand nothing else is taken.
///
/// ```
/// use postroom::{Broker, Circuit, CircuitBreaker, Message, Queue, Retry};
/// use std::time::Duration;
///
/// let (broker, simulation) = Broker::simulated(1);
/// let mail: Queue<u32> = broker.queue("mail").retry(Retry::none()).declare()?;
/// let breaker = CircuitBreaker::new(10, 0.5).pause(Duration::from_secs(60)).redrive_on_close();
/// let consumer = mail.consumer().circuit_breaker(breaker).start(|_: &Message<u32>| {
///     Err::<(), _>(std::io::Error::other("server is down"))
/// })?;
///
/// mail.send_batch(0..100).unwrap();
/// simulation.run_until_idle();
/// assert_eq!(consumer.circuit(), Some(Circuit::Open));
/// assert_eq!((mail.dead_letters().len(), mail.len()), (10, 90)); // instead of 100 dead letters
/// # Ok::<(), postroom::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a circuit breaker does nothing until a consumer is given it"]
pub struct CircuitBreaker {
    window: u32,
    share: f64,
    pause: Duration,
    redrive: bool,
}

impl CircuitBreaker {
    /// Opens when at least `failure_share` (above 0, at most 1) of the last `window_calls` handlings failed.
    pub fn new(window_calls: u32, failure_share: f64) -> Self {
        Self { window: window_calls, share: failure_share, pause: Duration::from_secs(30), redrive: false }
    }

    /// How long it stays open before the next probe. Default 30 s.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// When it closes, sends the dead letters of the outage back to the queue: those that this queue gave up
    /// on because their attempts were exhausted, since the first of the failures that opened the circuit.
    /// Dead letters for other reasons, of other queues and of earlier times stay. Default: all stay.
    pub fn redrive_on_close(mut self) -> Self {
        self.redrive = true;
        self
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.window == 0 {
            problems.push("circuit breaker over a window of 0 handlings sees nothing: at least 1".into());
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            problems.push(format!("circuit breaker at a failure share of {}: must be above 0, at most 1", self.share));
        }
        if self.pause.is_zero() {
            problems.push("circuit breaker with a pause of 0 never stays open".into());
        }
        problems
    }

    pub(crate) fn redrives(&self) -> bool {
        self.redrive
    }
}

/// Whether a consumer with a [`CircuitBreaker`] takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// It does.
    Closed,
    /// It takes none until the pause is over.
    Open,
    /// It takes one at a time until one has succeeded or failed.
    HalfOpen,
}

/// What a handling says about the downstream's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Healthy,
    Sick,
    /// The input was bad, whatever the downstream is like.
    Neither,
}

impl Sign {
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ack => Self::Healthy,
            Outcome::Retry | Outcome::RetryAfter(_) => Self::Sick,
            Outcome::DeadLetter(_) | Outcome::Discard => Self::Neither,
        }
    }
}

/// On what grounds a message is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// The circuit is closed, and has been since it closed for the `period`-th time.
    Call {
        period: u64,
    },
    Probe,
}

/// What a handling has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Opened {
        until: Timestamp,
        failures: u32,
        of: u32,
    },
    /// The next message is the probe.
    ProbeAgain,
    Closed {
        /// The first failure of the outage.
        since: Timestamp,
    },
}

/// The state of one consumer's circuit. It reads no clock and waits for nothing.
#[derive(Debug)]
pub(crate) struct Breaker {
    settings: CircuitBreaker,
    state: State,
    /// Raised each time it closes: handlings begun before the outage say nothing about the time after it.
    period: u64,
    /// The latest handlings that said something: when each failed, or `None` if it did not.
    window: VecDeque<Option<Timestamp>>,
    failures: u32,
    since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Timestamp },
    HalfOpen { probing: bool },
}

impl Breaker {
    pub(crate) fn new(settings: CircuitBreaker) -> Self {
        let (window, since) = (VecDeque::new(), Timestamp::default());
        Self { settings, state: State::Closed, period: 0, window, failures: 0, since }
    }

    /// Says what the time is; if it stays open, until when.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Option<Timestamp> {
        let until = self.open_until()?;
        if until > now {
            return Some(until);
        }
        self.state = State::HalfOpen { probing: false };
        None
    }

    /// Claims the right to probe; whether it was there to claim.
    pub(crate) fn claim_probe(&mut self) -> bool {
        let free = self.state == State::HalfOpen { probing: false };
        if free {
            self.state = State::HalfOpen { probing: true };
        }
        free
    }

    /// Gives the right to probe back, unused.
    pub(crate) fn return_probe(&mut self) {
        debug_assert_eq!(self.state, State::HalfOpen { probing: true });
        self.state = State::HalfOpen { probing: false };
    }

    /// What a message that is no probe may be handled on.
    pub(crate) fn call(&self) -> Option<Permit> {
        (self.state == State::Closed).then_some(Permit::Call { period: self.period })
    }

    /// Hears what a handling said.
    pub(crate) fn record(&mut self, permit: Permit, sign: Sign, now: Timestamp) -> Option<Change> {
        match permit {
            Permit::Probe => Some(self.probed(sign, now)),
            Permit::Call { .. } if self.call() != Some(permit) || sign == Sign::Neither => None,
            Permit::Call { .. } => self.called(sign, now),
        }
    }

    pub(crate) fn circuit(&self) -> Circuit {
        match self.state {
            State::Closed => Circuit::Closed,
            State::Open { .. } => Circuit::Open,
            State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }

    pub(crate) fn open_until(&self) -> Option<Timestamp> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    pub(crate) fn redrives(&self) -> bool {
        self.settings.redrives()
    }

    fn called(&mut self, sign: Sign, now: Timestamp) -> Option<Change> {
        let failed = sign == Sign::Sick;
        self.window.push_back(failed.then_some(now));
        self.failures += u32::from(failed);
        if self.window.len() > self.settings.window as usize {
            let oldest = self.window.pop_front().flatten();
            self.failures -= u32::from(oldest.is_some());
        }
        let opens = failed && self.window.len() == self.settings.window as usize && self.share() >= self.settings.share;
        opens.then(|| {
            self.since = self.window.iter().flatten().min().copied().unwrap_or(now);
            self.open(now, self.failures, self.settings.window)
        })
    }

    /// A quotient, so that 7 of 100 compares equal to 0.07.
    fn share(&self) -> f64 {
        f64::from(self.failures) / f64::from(self.settings.window)
    }

    fn probed(&mut self, sign: Sign, now: Timestamp) -> Change {
        debug_assert_eq!(self.state, State::HalfOpen { probing: true });
        match sign {
            Sign::Sick => self.open(now, 1, 1),
            Sign::Neither => {
                self.return_probe();
                Change::ProbeAgain
            }
            Sign::Healthy => {
                self.state = State::Closed;
                self.period += 1;
                Change::Closed { since: self.since }
            }
        }
    }

    fn open(&mut self, now: Timestamp, failures: u32, of: u32) -> Change {
        let until = now.after(self.settings.pause);
        self.state = State::Open { until };
        self.window = VecDeque::new();
        self.failures = 0;
        Change::Opened { until, failures, of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const PAUSE: u64 = 100;

    fn breaker(window: u32, share: f64) -> Breaker {
        Breaker::new(CircuitBreaker::new(window, share).pause(Duration::from_nanos(PAUSE)))
    }

    /// Feeds handlings one nanosecond apart; the number of the one that opened the circuit.
    fn opened_at(breaker: &mut Breaker, signs: &str) -> Option<usize> {
        (1..).zip(signs.chars()).find_map(|(n, sign)| {
            let sign = match sign {
                'F' => Sign::Sick,
                '-' => Sign::Neither,
                _ => Sign::Healthy,
            };
            let permit = breaker.call().expect("closed");
            let change = breaker.record(permit, sign, Timestamp(n as u64));
            matches!(change, Some(Change::Opened { .. })).then_some(n)
        })
    }

    #[test]
    fn it_opens_with_the_failure_that_makes_a_full_window_bad_enough() {
        for (window, share, signs, expected) in [
            (1, 1.0, "F", Some(1)),
            (1, 0.01, "....F", Some(5)),
            (4, 0.5, "FFF", None),       // not full
            (4, 0.5, "FF..", None),      // full, but by a success
            (4, 0.5, "FF...F", None),    // the first ones have left the window
            (4, 0.5, "FF..F", Some(5)),  // F, F of the last four
            (4, 0.5, "F..F", Some(4)),   // exactly half
            (4, 0.5, "F--..F", Some(6)), // bad input takes no place
            (4, 1.0, "FFF.FFF", None),   // never four in a row
            (4, 1.0, "FFF.FFFF", Some(8)),
            (3, 0.34, "F.F", Some(3)), // 2 of 3
            (3, 0.34, "..F", None),    // 1 of 3 is less than 0.34
        ] {
            assert_eq!(opened_at(&mut breaker(window, share), signs), expected, "{window} {share} {signs}");
        }
    }

    #[test]
    fn shares_written_as_decimals_are_reached_exactly() {
        let failures = |n| "F".repeat(n) + &".".repeat(99 - n);
        for n in 1..99 {
            let share = format!("0.{n:02}").parse().unwrap();
            assert_eq!(opened_at(&mut breaker(100, share), &(failures(n - 1) + "F")), Some(100), "{n}");
            assert_eq!(opened_at(&mut breaker(100, share + 1e-9), &(failures(n - 1) + "F")), None, "{n}");
        }
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let mut breaker = breaker(2, 1.0);
        assert_eq!(opened_at(&mut breaker, "FF"), Some(2));
        assert_eq!((breaker.circuit(), breaker.call(), breaker.claim_probe()), (Circuit::Open, None, false));
        assert_eq!(breaker.tick(Timestamp(2 + PAUSE - 1)), Some(Timestamp(2 + PAUSE)));
        assert_eq!(breaker.tick(Timestamp(2 + PAUSE)), None);
        assert_eq!((breaker.circuit(), breaker.call()), (Circuit::HalfOpen, None));
        assert!(breaker.claim_probe() && !breaker.claim_probe());
        breaker.return_probe();
        assert!(breaker.claim_probe());
        assert_eq!(breaker.record(Permit::Probe, Sign::Neither, Timestamp(150)), Some(Change::ProbeAgain));
        assert!(breaker.claim_probe());
        let again = Change::Opened { until: Timestamp(160 + PAUSE), failures: 1, of: 1 };
        assert_eq!(breaker.record(Permit::Probe, Sign::Sick, Timestamp(160)), Some(again));
        assert_eq!(breaker.tick(Timestamp(160 + PAUSE)), None);
        assert!(breaker.claim_probe());
        let closed = Change::Closed { since: Timestamp(1) };
        assert_eq!(breaker.record(Permit::Probe, Sign::Healthy, Timestamp(300)), Some(closed));
        assert_eq!(opened_at(&mut breaker, "F"), None, "the window starts empty");
    }

    #[test]
    fn handlings_begun_before_the_outage_say_nothing_during_and_after_it() {
        let mut breaker = breaker(1, 1.0);
        let old = breaker.call().unwrap();
        assert_eq!(opened_at(&mut breaker, "F"), Some(1));
        assert_eq!(breaker.record(old, Sign::Healthy, Timestamp(2)), None);
        breaker.tick(Timestamp(1000));
        assert_eq!(breaker.record(old, Sign::Sick, Timestamp(1000)), None);
        assert!(breaker.claim_probe());
        assert_eq!(breaker.record(old, Sign::Sick, Timestamp(1001)), None);
        breaker.record(Permit::Probe, Sign::Healthy, Timestamp(1002));
        assert_eq!(breaker.record(old, Sign::Sick, Timestamp(1003)), None);
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }

    /// What the rules say, from the whole list of handlings since the circuit last closed.
    fn should_open(heard: &[Sign], window: usize, share: f64) -> bool {
        let telling: Vec<_> = heard.iter().filter(|sign| **sign != Sign::Neither).collect();
        let Some(last) = telling.len().checked_sub(window).map(|from| &telling[from..]) else { return false };
        let failures = last.iter().filter(|sign| ***sign == Sign::Sick).count();
        heard.last() == Some(&Sign::Sick) && failures as f64 / window as f64 >= share
    }

    #[test]
    fn a_random_run_agrees_with_the_rules_read_from_the_whole_history() {
        let mut random = Random::new(5);
        for _ in 0..200 {
            let (window, share) = (1 + random.below(12) as u32, 0.05 + 0.95 * random.unit());
            let mut breaker = breaker(window, share);
            let (mut heard, mut now, mut reopens, mut first_failure) = (Vec::new(), 0, 0, None);
            for _ in 0..300 {
                now += random.below(40);
                let sign = [Sign::Healthy, Sign::Sick, Sign::Sick, Sign::Neither][random.below(4) as usize];
                breaker.tick(Timestamp(now));
                if let Some(permit) = breaker.call() {
                    heard.push(sign);
                    let opens = should_open(&heard, window as usize, share);
                    assert_eq!(breaker.record(permit, sign, Timestamp(now)).is_some(), opens);
                    assert_eq!(breaker.circuit() == Circuit::Open, opens);
                    if opens {
                        (reopens, first_failure) = (now + PAUSE, Some(breaker.since));
                    }
                } else if breaker.claim_probe() {
                    assert!(now >= reopens, "never early");
                    match breaker.record(Permit::Probe, sign, Timestamp(now)).unwrap() {
                        Change::Opened { .. } => reopens = now + PAUSE,
                        Change::ProbeAgain => assert_eq!(sign, Sign::Neither),
                        Change::Closed { since } => {
                            assert_eq!(Some(since), first_failure);
                            heard.clear();
                        }
                    }
                } else {
                    assert!(now < reopens, "half open as soon as it may");
                }
            }
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (breaker, problems) in [
            (CircuitBreaker::new(1, 1.0), 0),
            (CircuitBreaker::new(0, 0.5), 1),
            (CircuitBreaker::new(1, 0.0), 1),
            (CircuitBreaker::new(1, 1.01), 1),
            (CircuitBreaker::new(1, f64::NAN), 1),
            (CircuitBreaker::new(0, -1.0).pause(Duration::ZERO), 3),
        ] {
            assert_eq!(breaker.problems().len(), problems, "{breaker:?}");
        }
    }
}
