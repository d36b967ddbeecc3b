//! How often and how soon a failed message comes back: policy as data, the decision a pure function.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::outcome::contained;
use crate::random::Random;

const DEFAULT_ATTEMPTS: u32 = 5;
const DEFAULT_FIRST: Duration = Duration::from_millis(100);
const DEFAULT_MAX_DELAY: Duration = Duration::from_secs(30);
const DEFAULT_FACTOR: f64 = 2.0;
const NO_LIMIT: u32 = u32::MAX;

/// How often and how soon a failed message is delivered again.
///
/// An *attempt* is one call of the handler, the first included; a *retry* is every attempt after the first.
/// When the attempts are used up, the message is exhausted and the queue's dead-letter rule applies.
///
/// | Policy | Delay before each retry | Attempts by default |
/// |---|---|---|
/// | [`none`](Retry::none) | no retry | 1 |
/// | [`immediate`](Retry::immediate) | zero | retries + 1 |
/// | [`fixed`](Retry::fixed) | always the same | 5 |
/// | [`linear`](Retry::linear) | step, 2 × step, 3 × step ... | 5 |
/// | [`exponential`](Retry::exponential) | doubles, up to 30 s | 5 |
/// | [`ladder`](Retry::ladder) | one after the other from a list | rungs + 1 |
/// | [`custom`](Retry::custom) | what a function says | until the function gives up |
///
/// The default is five attempts, 100 ms doubling to 30 s, without jitter. Delays too large for a
/// [`Duration`] become [`Duration::MAX`]. Settings that make no sense, such as no attempts at all, are
/// reported when the queue is declared.
///
/// Two policies are equal if their settings are, whether spelled out or left at the default; two custom
/// functions are equal only if one policy is a clone of the other.
///
/// # Examples
///
/// ```
/// use postroom::Retry;
/// use std::time::Duration;
///
/// let retry = Retry::exponential(Duration::from_millis(100))
///     .max_attempts(6)
///     .max_delay(Duration::from_secs(1));
///
/// let delays: Vec<String> = retry.schedule().map(|d| format!("{d:?}")).collect();
/// println!("{retry}: {}", delays.join(", "));
/// # assert_eq!(retry.to_string(), "6 attempts, 100ms doubling to 1s");
/// assert_eq!(delays, ["100ms", "200ms", "400ms", "800ms", "1s"]);
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Retry {
    shape: Shape,
    // None: the default of the shape.
    max_attempts: Option<u32>,
    max_delay: Option<Duration>,
    factor: Option<f64>,
    jitter: f64,
    immediate_first: u32,
}

impl Retry {
    /// No retry: one attempt, then the message is exhausted.
    pub fn none() -> Self {
        Self::immediate(0)
    }

    /// That many retries, each at once: `retries + 1` attempts.
    pub fn immediate(retries: u32) -> Self {
        Self::of(Shape::Immediate).max_attempts(retries.saturating_add(1))
    }

    /// The same delay before each retry; 5 attempts by default.
    pub fn fixed(delay: Duration) -> Self {
        Self::of(Shape::Fixed(delay))
    }

    /// `step`, then twice, three times `step` and so on; 5 attempts and no longest delay by default.
    pub fn linear(step: Duration) -> Self {
        Self::of(Shape::Linear(step))
    }

    /// `first`, then each delay [`factor`](Self::factor) times the one before, up to
    /// [`max_delay`](Self::max_delay).
    ///
    /// By default 5 attempts, a factor of 2, and 30 s as the longest delay, or `first` if that is longer.
    pub fn exponential(first: Duration) -> Self {
        Self::of(Shape::Exponential(first))
    }

    /// One retry per delay, in the order given: by default one attempt more than there are delays.
    ///
    /// If [`max_attempts`](Self::max_attempts) asks for more, the last delay repeats. A
    /// [`DelayLevel`] converts into a rung.
    pub fn ladder(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self::of(Shape::Ladder(delays.into_iter().collect()))
    }

    /// A function of the number of the attempt that has just failed, 1 being the first: the delay before
    /// the next attempt, or `None` to give up.
    ///
    /// There is no attempt limit unless [`max_attempts`](Self::max_attempts) sets one. The function is
    /// asked after every failure that the limit lets pass, also when another delay than its own is used
    /// because the handler named one or [`immediate_first`](Self::immediate_first) applies: its `None`
    /// always counts. If it panics, the default policy answers for that attempt, and so gives up after
    /// the fifth (a program built to abort on panic still aborts).
    ///
    /// ```
    /// use postroom::Retry;
    /// use std::time::Duration;
    ///
    /// let squares = Retry::custom(|failed| {
    ///     (failed < 4).then(|| Duration::from_secs(u64::from(failed * failed)))
    /// });
    /// let seconds: Vec<u64> = squares.schedule().map(|d| d.as_secs()).collect();
    /// assert_eq!(seconds, [1, 4, 9]);
    /// ```
    pub fn custom(f: impl Fn(u32) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self::of(Shape::Custom(Custom(Arc::new(f))))
    }

    /// The number of handler calls in all, the first included; [`u32::MAX`] means no limit.
    pub fn max_attempts(self, n: u32) -> Self {
        Self { max_attempts: Some(n), ..self }
    }

    /// The longest delay; longer ones are cut to it.
    ///
    /// Jitter comes on top of it, and a delay that the handler asks for explicitly is not cut.
    pub fn max_delay(self, d: Duration) -> Self {
        Self { max_delay: Some(d), ..self }
    }

    /// How many times longer each delay of an [`exponential`](Self::exponential) policy is than the one
    /// before: at least 1; 2 by default. Other policies do not take it.
    pub fn factor(self, f: f64) -> Self {
        Self { factor: Some(f), ..self }
    }

    /// Spreads retries out: adds a random part of the delay, between nothing and `share` of it.
    ///
    /// `share` is from 0 (the default, no jitter) to 1 (up to twice the delay). The configured delay is
    /// the floor: jitter never makes a retry earlier.
    pub fn jitter(self, share: f64) -> Self {
        Self { jitter: share, ..self }
    }

    /// Makes the first `n` retries immediate; after them the schedule starts from its first delay.
    ///
    /// They count as attempts. Only a [`ladder`](Self::ladder) without
    /// [`max_attempts`](Self::max_attempts) gets `n` attempts more, so that every rung is still used.
    /// A [`custom`](Self::custom) function still sees the number of the attempt that failed.
    ///
    /// ```
    /// use postroom::Retry;
    /// use std::time::Duration;
    ///
    /// let retry = Retry::fixed(Duration::from_secs(10)).immediate_first(2);
    /// let seconds: Vec<u64> = retry.schedule().map(|d| d.as_secs()).collect();
    /// assert_eq!(seconds, [0, 0, 10, 10]);
    /// ```
    pub fn immediate_first(self, n: u32) -> Self {
        Self { immediate_first: n, ..self }
    }

    /// The delay before each retry, without jitter; ends when the policy gives up.
    ///
    /// Without an attempt limit it goes on for billions of delays: `take` as many as you need. A custom
    /// function is called for each.
    pub fn schedule(&self) -> impl Iterator<Item = Duration> + '_ {
        (1..=u32::MAX).map_while(|failed| self.delay_after(failed))
    }

    /// The most handler calls a message gets, the first included; [`u32::MAX`] means no limit.
    ///
    /// A custom function may give up earlier.
    pub fn attempts(&self) -> u32 {
        self.max_attempts.unwrap_or_else(|| match &self.shape {
            Shape::Ladder(rungs) => {
                u32::try_from(rungs.len()).unwrap_or(NO_LIMIT).saturating_add(self.immediate_first).saturating_add(1)
            }
            Shape::Custom(_) => NO_LIMIT,
            _ => DEFAULT_ATTEMPTS,
        })
    }

    /// What is wrong with the settings, each sentence naming the offender; empty if nothing is.
    ///
    /// Deciding by a policy with problems is safe all the same.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_attempts == Some(0) {
            problems.push("retry: max_attempts(0): the first delivery is an attempt too".into());
        }
        if matches!(&self.shape, Shape::Ladder(rungs) if rungs.is_empty()) {
            problems.push("retry: ladder([]): needs at least one delay".into());
        }
        problems.extend(self.factor.and_then(|factor| self.factor_problem(factor)));
        // Written so that NaN fails.
        if !(0.0..=1.0).contains(&self.jitter) {
            problems.push(format!("retry: jitter({}): must be between 0 and 1", self.jitter));
        }
        problems
    }

    fn factor_problem(&self, factor: f64) -> Option<String> {
        if !matches!(self.shape, Shape::Exponential(_)) {
            Some(format!("retry: factor({factor}): only an exponential policy has a factor"))
        } else if !factor.is_finite() || factor < 1.0 {
            Some(format!("retry: factor({factor}): must be finite and at least 1"))
        } else {
            None
        }
    }

    fn of(shape: Shape) -> Self {
        Self { shape, max_attempts: None, max_delay: None, factor: None, jitter: 0.0, immediate_first: 0 }
    }

    /// The delay without jitter, or `None` to give up.
    fn delay_after(&self, failed: u32) -> Option<Duration> {
        // Attempts count from 1; a 0 must not pass for an immediate retry.
        let failed = failed.max(1);
        let limit = self.attempts();
        if failed >= limit && limit != NO_LIMIT {
            return None;
        }
        // Before the immediate retries are looked at, because a custom function may give up during them.
        let delay = self.shape_delay(failed)?;
        if failed <= self.immediate_first {
            return Some(Duration::ZERO);
        }
        Some(delay.min(self.cap()))
    }

    fn shape_delay(&self, failed: u32) -> Option<Duration> {
        let nth = failed.saturating_sub(self.immediate_first).max(1);
        match &self.shape {
            Shape::Immediate => Some(Duration::ZERO),
            Shape::Fixed(delay) => Some(*delay),
            Shape::Linear(step) => Some(step.saturating_mul(nth)),
            Shape::Exponential(first) => Some(grown(*first, self.growth(), nth - 1)),
            Shape::Ladder(rungs) => rungs.get(nth as usize - 1).or(rungs.last()).copied(),
            Shape::Custom(custom) => custom.delay_after(failed),
        }
    }

    fn cap(&self) -> Duration {
        self.max_delay.unwrap_or(match self.shape {
            Shape::Exponential(first) => first.max(DEFAULT_MAX_DELAY),
            _ => Duration::MAX,
        })
    }

    fn growth(&self) -> f64 {
        self.factor.unwrap_or(DEFAULT_FACTOR)
    }

    fn with_jitter(&self, delay: Duration, random: &mut Random) -> Duration {
        let share = self.jitter.clamp(0.0, 1.0);
        delay.saturating_add(from_nanos(nanos(delay) * share * random.unit()))
    }
}

impl Default for Retry {
    /// Five attempts, 100 ms doubling to 30 s.
    fn default() -> Self {
        Self::exponential(DEFAULT_FIRST)
    }
}

impl<F: Fn(u32) -> Option<Duration> + Send + Sync + 'static> From<F> for Retry {
    /// The same as [`Retry::custom`].
    fn from(f: F) -> Self {
        Self::custom(f)
    }
}

impl PartialEq for Retry {
    // Compares what is in effect, so that a default spelled out is still the default.
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape
            && self.attempts() == other.attempts()
            && self.cap() == other.cap()
            && self.growth() == other.growth()
            && self.jitter == other.jitter
            && self.immediate_first == other.immediate_first
    }
}

impl fmt::Display for Retry {
    /// A short line for people, such as `5 attempts, 100ms doubling to 30s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempts() {
            1 => return f.write_str("1 attempt"),
            NO_LIMIT => f.write_str("unlimited attempts")?,
            n => write!(f, "{n} attempts")?,
        }
        if matches!(self.shape, Shape::Immediate) {
            return f.write_str(" at once");
        }
        if self.immediate_first > 0 {
            write!(f, ", retries at once: {}, then", self.immediate_first)?;
        } else {
            f.write_str(",")?;
        }
        self.write_delays(f)?;
        if self.jitter != 0.0 {
            write!(f, ", jitter up to {:.0}%", self.jitter * 100.0)?;
        }
        Ok(())
    }
}

impl Retry {
    fn write_delays(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cap = self.cap();
        match &self.shape {
            Shape::Immediate => Ok(()),
            Shape::Fixed(delay) | Shape::Linear(delay) | Shape::Exponential(delay) if *delay >= cap => {
                write!(f, " {cap:?} apart")
            }
            Shape::Fixed(delay) => write!(f, " {delay:?} apart"),
            Shape::Linear(step) => {
                write!(f, " {step:?} growing by {step:?}")?;
                self.write_cap(f)
            }
            Shape::Exponential(first) if self.growth() == 2.0 => {
                write!(f, " {first:?} doubling to {cap:?}")
            }
            Shape::Exponential(first) => {
                write!(f, " {first:?} growing {} times to {cap:?}", self.growth())
            }
            Shape::Ladder(rungs) => {
                let rungs: Vec<_> = rungs.iter().map(|r| format!("{:?}", r.min(&cap))).collect();
                write!(f, " after {}", rungs.join(", "))
            }
            Shape::Custom(_) => {
                f.write_str(" custom delays")?;
                self.write_cap(f)
            }
        }
    }

    fn write_cap(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max_delay {
            Some(cap) => write!(f, " to {cap:?}"),
            None => Ok(()),
        }
    }
}

/// The curve of the delays, before any cap or jitter.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Immediate,
    Fixed(Duration),
    Linear(Duration),
    Exponential(Duration),
    Ladder(Arc<[Duration]>),
    Custom(Custom),
}

#[derive(Clone)]
struct Custom(Arc<dyn Fn(u32) -> Option<Duration> + Send + Sync>);

impl Custom {
    /// A panic in the user's function must not cost the message, so the default policy answers instead.
    fn delay_after(&self, failed: u32) -> Option<Duration> {
        contained(|| (self.0)(failed)).unwrap_or_else(|_| Retry::default().delay_after(failed))
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("custom")
    }
}

/// What happens to a message after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Deliver it again after this delay.
    Again(Duration),
    /// The attempts are used up.
    GiveUp,
}

/// Decides what happens after attempt number `failed`, counted from 1.
///
/// `asked` is a delay the handler asked for. It replaces the policy's delay and gets no jitter and no cap,
/// but the policy still says whether there is another attempt.
pub(crate) fn decide(policy: &Retry, failed: u32, asked: Option<Duration>, random: &mut Random) -> Decision {
    match policy.delay_after(failed) {
        None => Decision::GiveUp,
        Some(delay) => Decision::Again(asked.unwrap_or_else(|| policy.with_jitter(delay, random))),
    }
}

/// `first * factor^times`, and never below `first`, whatever the factor.
fn grown(first: Duration, factor: f64, times: u32) -> Duration {
    from_nanos((nanos(first) * factor.powf(f64::from(times))).round()).max(first)
}

fn nanos(d: Duration) -> f64 {
    d.as_nanos() as f64
}

/// Total: NaN and negative numbers become zero, what is too large becomes the longest duration.
fn from_nanos(nanos: f64) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let nanos = nanos as u128;
    match u64::try_from(nanos / SECOND) {
        Ok(seconds) => Duration::new(seconds, (nanos % SECOND) as u32),
        Err(_) => Duration::MAX,
    }
}

/// The eighteen delays that message brokers of the RocketMQ family offer as levels 1 to 18.
///
/// Handy where such levels are already in use; any other [`Duration`] is as good. The letter is the unit:
/// seconds, minutes, hours.
///
/// # Examples
///
/// ```
/// use postroom::{DelayLevel, Retry};
/// use std::time::Duration;
///
/// assert_eq!(DelayLevel::level(5), Some(DelayLevel::M1));
/// assert_eq!(DelayLevel::M1.duration(), Duration::from_secs(60));
///
/// let retry = Retry::ladder([DelayLevel::S10, DelayLevel::M1, DelayLevel::H1].map(Duration::from));
/// assert_eq!(retry.to_string(), "4 attempts, after 10s, 60s, 3600s");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DelayLevel {
    // The value of each is its length in seconds.
    /// 1 second.
    S1 = 1,
    /// 5 seconds.
    S5 = 5,
    /// 10 seconds.
    S10 = 10,
    /// 30 seconds.
    S30 = 30,
    /// 1 minute.
    M1 = 60,
    /// 2 minutes.
    M2 = 120,
    /// 3 minutes.
    M3 = 180,
    /// 4 minutes.
    M4 = 240,
    /// 5 minutes.
    M5 = 300,
    /// 6 minutes.
    M6 = 360,
    /// 7 minutes.
    M7 = 420,
    /// 8 minutes.
    M8 = 480,
    /// 9 minutes.
    M9 = 540,
    /// 10 minutes.
    M10 = 600,
    /// 20 minutes.
    M20 = 1_200,
    /// 30 minutes.
    M30 = 1_800,
    /// 1 hour.
    H1 = 3_600,
    /// 2 hours.
    H2 = 7_200,
}

impl DelayLevel {
    /// All levels, shortest first.
    pub const ALL: [Self; 18] = [
        Self::S1,
        Self::S5,
        Self::S10,
        Self::S30,
        Self::M1,
        Self::M2,
        Self::M3,
        Self::M4,
        Self::M5,
        Self::M6,
        Self::M7,
        Self::M8,
        Self::M9,
        Self::M10,
        Self::M20,
        Self::M30,
        Self::H1,
        Self::H2,
    ];

    /// The level with this number, counted from 1 to 18; `None` for any other number.
    pub fn level(n: usize) -> Option<Self> {
        Self::ALL.get(n.checked_sub(1)?).copied()
    }

    /// How long the delay is.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self as u64)
    }
}

impl From<DelayLevel> for Duration {
    fn from(level: DelayLevel) -> Self {
        level.duration()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn panicking() -> Retry {
        Retry::custom(|_| panic!("on purpose"))
    }

    fn decide_plain(policy: &Retry, failed: u32) -> Decision {
        decide(policy, failed, None, &mut Random::new(0))
    }

    /// Handler calls until the policy gives up, if every one fails.
    fn calls(policy: &Retry, asked: Option<Duration>) -> u32 {
        let mut random = Random::new(1);
        let again = |failed: &u32| decide(policy, *failed, asked, &mut random) == Decision::GiveUp;
        (1..1000).find(again).expect("gives up")
    }

    #[test]
    fn schedules() {
        let table: Vec<(Retry, Vec<u64>)> = vec![
            (Retry::none(), vec![]),
            (Retry::immediate(3), vec![0, 0, 0]),
            (Retry::fixed(ms(50)), vec![50, 50, 50, 50]),
            (Retry::fixed(ms(50)).max_delay(ms(20)), vec![20, 20, 20, 20]),
            (Retry::linear(ms(50)), vec![50, 100, 150, 200]),
            (Retry::linear(ms(50)).max_delay(ms(120)), vec![50, 100, 120, 120]),
            (Retry::default(), vec![100, 200, 400, 800]),
            (Retry::default().max_attempts(11), vec![100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]),
            (Retry::exponential(secs(60)), vec![60_000, 60_000, 60_000, 60_000]),
            (Retry::exponential(secs(60)).max_delay(secs(1)), vec![1000, 1000, 1000, 1000]),
            (Retry::exponential(ms(80)).factor(1.5), vec![80, 120, 180, 270]),
            (Retry::exponential(ms(7)).factor(1.0), vec![7, 7, 7, 7]),
            (Retry::exponential(ms(0)), vec![0, 0, 0, 0]),
            (Retry::ladder([ms(5), ms(1), ms(9)]), vec![5, 1, 9]),
            (Retry::ladder([ms(5), ms(1), ms(9)]).max_attempts(6), vec![5, 1, 9, 9, 9]),
            (Retry::ladder([ms(5), ms(1)]).max_attempts(2), vec![5]),
            (Retry::ladder([ms(5), ms(9)]).max_delay(ms(6)), vec![5, 6]),
            (Retry::ladder([ms(5), ms(9)]).immediate_first(2), vec![0, 0, 5, 9]),
            (Retry::default().immediate_first(2), vec![0, 0, 100, 200]),
            (Retry::default().immediate_first(9), vec![0, 0, 0, 0]),
            (Retry::linear(ms(50)).immediate_first(1).max_attempts(4), vec![0, 50, 100]),
            (Retry::custom(|n| (n < 4).then(|| ms(u64::from(n)))), vec![1, 2, 3]),
            (Retry::custom(|n| Some(ms(u64::from(n)))).max_attempts(3).immediate_first(1), vec![0, 2]),
            (Retry::from(|n| (n < 3).then_some(ms(9))).max_delay(ms(8)), vec![8, 8]),
        ];
        for (policy, expected) in table {
            let got: Vec<Duration> = policy.schedule().collect();
            let expected: Vec<Duration> = expected.into_iter().map(ms).collect();
            assert_eq!(got, expected, "{policy:?}");
            // Jitter 0: the decision is the schedule.
            for (failed, delay) in (1..).zip(&expected) {
                assert_eq!(decide_plain(&policy, failed), Decision::Again(*delay));
            }
        }
    }

    #[test]
    fn handler_calls_are_counted_exactly() {
        let table = [
            (Retry::none(), 1),
            (Retry::immediate(3), 4),
            (Retry::default(), 5),
            (Retry::fixed(ms(1)), 5),
            (Retry::linear(ms(1)), 5),
            (Retry::ladder([ms(1), ms(2)]), 3),
            (Retry::ladder([ms(1)]).max_attempts(7), 7),
            (Retry::fixed(ms(1)).max_attempts(1), 1),
            (Retry::fixed(ms(1)).immediate_first(3), 5),
            (Retry::custom(|n| (n < 7).then_some(ms(1))), 7),
            (Retry::custom(|n| (n < 7).then_some(ms(1))).max_attempts(3), 3),
            (Retry::custom(|n| (n < 2).then_some(ms(1))).immediate_first(9), 2),
        ];
        for (policy, expected) in table {
            assert_eq!(calls(&policy, None), expected, "{policy:?}");
            assert_eq!(calls(&policy, Some(secs(1))), expected, "{policy:?}");
        }
    }

    #[test]
    fn attempts_tells_the_limit_in_effect() {
        assert_eq!(Retry::none().attempts(), 1);
        assert_eq!(Retry::immediate(3).attempts(), 4);
        assert_eq!(Retry::default().attempts(), 5);
        assert_eq!(Retry::ladder([ms(1), ms(2)]).attempts(), 3);
        assert_eq!(Retry::custom(|_| None).attempts(), u32::MAX);
        assert_eq!(Retry::custom(|_| None).max_attempts(2).attempts(), 2);
    }

    #[test]
    fn jitter_only_adds_and_within_its_share() {
        let policy = Retry::fixed(ms(1000)).jitter(0.25).max_delay(ms(1000));
        let mut random = Random::new(42);
        let draws: Vec<Duration> = (0..10_000)
            .map(|_| match decide(&policy, 1, None, &mut random) {
                Decision::Again(delay) => delay,
                Decision::GiveUp => panic!("gave up"),
            })
            .collect();
        assert!(draws.iter().all(|d| (ms(1000)..=ms(1250)).contains(d)));
        assert!(draws.iter().any(|d| *d < ms(1010)));
        assert!(draws.iter().any(|d| *d > ms(1240)));
    }

    #[test]
    fn jitter_repeats_with_the_seed() {
        let policy = Retry::default().jitter(1.0);
        let draw = |seed| decide(&policy, 1, None, &mut Random::new(seed));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn asked_delay_is_taken_as_it_is() {
        let policy = Retry::default().jitter(1.0).max_delay(secs(1)).immediate_first(1);
        for asked in [Duration::ZERO, ms(1), secs(3600), Duration::MAX] {
            for failed in 1..5 {
                let got = decide(&policy, failed, Some(asked), &mut Random::new(9));
                assert_eq!(got, Decision::Again(asked));
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        let extremes = [Duration::ZERO, Duration::from_nanos(1), secs(1), Duration::MAX];
        for d in extremes {
            for factor in [2.0, f64::MAX, f64::INFINITY, f64::NAN, -3.0, 0.0] {
                for jitter in [0.0, 1.0, f64::INFINITY, f64::NAN, -1.0] {
                    for policy in [
                        Retry::fixed(d),
                        Retry::linear(d),
                        Retry::exponential(d).max_delay(Duration::MAX).factor(factor),
                        Retry::ladder([d]),
                        Retry::ladder([]),
                        Retry::custom(move |_| Some(d)),
                    ] {
                        let policy = policy.max_attempts(u32::MAX).jitter(jitter);
                        for failed in [0, 1, 2, 1 << 31, u32::MAX - 1, u32::MAX] {
                            let delay = policy.delay_after(failed).unwrap_or(d);
                            assert!(delay >= d, "{policy:?} {failed}");
                            decide_plain(&policy, failed);
                            decide_plain(&policy.clone().immediate_first(u32::MAX), failed);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn too_long_becomes_the_longest() {
        let longest = Decision::Again(Duration::MAX);
        let endless = |policy: Retry| policy.max_attempts(u32::MAX).max_delay(Duration::MAX);
        let exponential = endless(Retry::exponential(ms(1)));
        assert_eq!(decide_plain(&exponential, u32::MAX), longest);
        assert_eq!(decide_plain(&exponential, 1000), longest);
        let linear = endless(Retry::linear(Duration::MAX));
        assert_eq!(decide_plain(&linear, u32::MAX), longest);
        let fixed = Retry::fixed(Duration::MAX).jitter(1.0);
        assert_eq!(decide_plain(&fixed, 1), longest);
    }

    #[test]
    fn no_limit_is_no_limit() {
        let policy = Retry::fixed(ms(1)).max_attempts(u32::MAX);
        assert_eq!(decide_plain(&policy, u32::MAX), Decision::Again(ms(1)));
        let rungs = Retry::ladder([ms(1)]).immediate_first(u32::MAX);
        assert_eq!(decide_plain(&rungs, u32::MAX), Decision::Again(ms(0)));
        assert_eq!(policy.schedule().take(10_000).count(), 10_000);
    }

    #[test]
    fn no_attempts_gives_up() {
        let policy = Retry::default().max_attempts(0);
        assert_eq!(decide_plain(&policy, 1), Decision::GiveUp);
        assert_eq!(decide_plain(&Retry::ladder([]), 1), Decision::GiveUp);
    }

    #[test]
    fn problems_name_the_offender() {
        let exponential = || Retry::exponential(ms(100));
        let table = [
            (Retry::default(), vec![]),
            (Retry::none(), vec![]),
            (Retry::fixed(secs(9)).max_delay(ms(1)), vec![]),
            (exponential().factor(1.0).jitter(1.0), vec![]),
            (Retry::fixed(ms(1)).max_attempts(0), vec!["max_attempts(0)"]),
            (Retry::ladder([]), vec!["ladder([])"]),
            (exponential().factor(f64::NAN), vec!["factor(NaN)"]),
            (exponential().factor(f64::INFINITY), vec!["factor(inf)"]),
            (exponential().factor(0.9), vec!["factor(0.9)"]),
            (Retry::fixed(ms(1)).factor(2.0), vec!["factor(2)"]),
            (Retry::none().factor(3.0), vec!["factor(3)"]),
            (exponential().jitter(f64::NAN), vec!["jitter(NaN)"]),
            (exponential().jitter(f64::INFINITY), vec!["jitter(inf)"]),
            (exponential().jitter(-0.1), vec!["jitter(-0.1)"]),
            (exponential().jitter(1.1), vec!["jitter(1.1)"]),
            (
                Retry::ladder([]).max_attempts(0).factor(2.0).jitter(2.0),
                vec!["max_attempts(0)", "ladder([])", "factor(2)", "jitter(2)"],
            ),
        ];
        for (policy, offenders) in table {
            let problems = policy.problems();
            assert_eq!(problems.len(), offenders.len(), "{problems:?}");
            for (problem, offender) in problems.iter().zip(offenders) {
                assert!(problem.contains(offender), "{problem} / {offender}");
            }
        }
    }

    #[test]
    fn panicking_function_falls_back_to_the_default_policy() {
        let default: Vec<Duration> = Retry::default().schedule().collect();
        assert_eq!(panicking().schedule().collect::<Vec<_>>(), default);
        assert_eq!(calls(&panicking().max_attempts(100), None), 5);
        assert_eq!(calls(&panicking().max_attempts(3), None), 3);
        assert_eq!(calls(&panicking(), Some(secs(1))), 5);
    }

    #[test]
    fn one_panic_costs_nothing_but_its_own_delay() {
        let policy = Retry::custom(|n| {
            assert_ne!(n, 2, "on purpose");
            (n < 4).then_some(secs(7))
        });
        let expected = [secs(7), ms(200), secs(7)];
        assert_eq!(policy.schedule().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn displays_for_people() {
        let table = [
            (Retry::default(), "5 attempts, 100ms doubling to 30s"),
            (Retry::none(), "1 attempt"),
            (Retry::default().max_attempts(1), "1 attempt"),
            (Retry::immediate(3), "4 attempts at once"),
            (Retry::fixed(secs(1)), "5 attempts, 1s apart"),
            (Retry::linear(secs(1)), "5 attempts, 1s growing by 1s"),
            (Retry::linear(secs(1)).max_delay(secs(3)), "5 attempts, 1s growing by 1s to 3s"),
            (Retry::default().factor(1.5).jitter(0.2), "5 attempts, 100ms growing 1.5 times to 30s, jitter up to 20%"),
            (Retry::exponential(secs(60)), "5 attempts, 60s apart"),
            (Retry::ladder([secs(1), secs(5)]), "3 attempts, after 1s, 5s"),
            (Retry::fixed(secs(1)).immediate_first(2), "5 attempts, retries at once: 2, then 1s apart"),
            (Retry::custom(|_| None), "unlimited attempts, custom delays"),
        ];
        for (policy, expected) in table {
            assert_eq!(policy.to_string(), expected);
        }
    }

    #[test]
    fn equal_if_the_settings_are() {
        let spelled_out = Retry::exponential(ms(100)).max_attempts(5).factor(2.0).max_delay(secs(30));
        assert_eq!(Retry::default(), spelled_out);
        assert_ne!(Retry::default(), Retry::default().max_attempts(6));
        assert_ne!(Retry::fixed(ms(1)), Retry::linear(ms(1)));
        let custom = Retry::custom(|_| None);
        assert_eq!(custom, custom.clone());
        assert_ne!(custom, Retry::custom(|_| None));
        assert_ne!(custom, custom.clone().jitter(0.5));
    }

    #[test]
    fn debug_hides_the_function() {
        let shown = format!("{:?}", Retry::custom(|_| None));
        assert!(shown.contains("Custom(custom)"), "{shown}");
    }

    #[test]
    fn levels_are_the_eighteen_classic_ones() {
        let seconds = [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
        for (n, expected) in (1..).zip(seconds) {
            let level = DelayLevel::level(n).expect("a level");
            assert_eq!(Duration::from(level), secs(expected));
        }
        for n in [0, 19, usize::MAX] {
            assert_eq!(DelayLevel::level(n), None);
        }
        assert!(DelayLevel::ALL.is_sorted());
    }
}
