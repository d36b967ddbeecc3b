//! Settling consumes the delivery, and each of the six ways does what it says.

use postroom::{
    Broker, Classify, Failure, IntoOutcome, Message, Outcome, Queue, QueueBuilder, Reason, Retry, SettleError,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn one(retry: Retry) -> Queue<u32> {
    let queue: Queue<u32> = QueueBuilder::new("q").retry(retry).declare().unwrap();
    queue.send(7).unwrap();
    queue
}

#[test]
fn ack_is_the_end() {
    let queue = one(Retry::default());
    queue.recv().unwrap().ack().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.ready, stats.in_flight, stats.unaccounted()), (1, 0, 0, 0));
}

#[test]
fn retry_follows_the_policy_and_counts_a_failure() {
    let queue = one(Retry::immediate(1));
    queue.recv().unwrap().retry().unwrap();
    let again = queue.try_recv().unwrap();
    assert_eq!((again.attempt(), again.history()[0].error.as_str()), (2, "asked for a retry"));
    again.retry().unwrap();
    let letter = queue.dead_letters().recv().unwrap();
    assert_eq!((letter.reason(), letter.attempts().len()), (&Reason::Exhausted, 2));
}

#[test]
fn retry_after_waits_that_long_and_keeps_the_limit() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::fixed(SECOND).max_attempts(2)).declare().unwrap();
    queue.send(7).unwrap();
    queue.try_recv().unwrap().retry_after(SECOND * 60).unwrap();
    simulation.advance(SECOND * 60 - Duration::from_nanos(1));
    assert_eq!((queue.len(), queue.delayed()), (0, 1));
    simulation.advance(Duration::from_nanos(1));
    queue.try_recv().unwrap().retry_after(SECOND).unwrap();
    assert_eq!((queue.delayed(), queue.dead_letters().len()), (0, 1));
}

#[test]
fn requeue_goes_to_the_end_and_counts_no_failure() {
    let queue = one(Retry::none());
    queue.send(8).unwrap();
    queue.recv().unwrap().requeue().unwrap();
    let order: Vec<_> = queue.recv_batch(9).unwrap().map(|d| (*d.payload(), d.attempt(), d.redelivered())).collect();
    assert_eq!(order, [(8, 1, false), (7, 1, true)]);
    assert_eq!(queue.stats().requeued, 1);
}

#[test]
fn dead_letter_gives_up_at_once_with_the_words_given() {
    let queue = one(Retry::immediate(9));
    queue.recv().unwrap().dead_letter("no such user").unwrap();
    let letter = queue.dead_letters().recv().unwrap();
    assert_eq!(letter.reason(), &Reason::Rejected("no such user".into()));
    assert_eq!(letter.error(), Some("no such user"));
}

#[test]
fn discard_is_counted() {
    let queue = one(Retry::default());
    queue.recv().unwrap().discard().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.discarded, stats.dropped, stats.acked, stats.unaccounted()), (1, 1, 0, 0));
}

#[test]
fn a_delivery_may_be_settled_on_another_thread() {
    let queue = one(Retry::default());
    let delivery = queue.recv().unwrap();
    std::thread::spawn(move || delivery.ack().unwrap()).join().unwrap();
    assert_eq!(queue.stats().acked, 1);
}

/// What one handled message has led to: acked, ready again, delayed, dead, discarded.
fn after<R: IntoOutcome + 'static>(handler: impl Fn() -> R + Send + Sync + 'static) -> [u64; 5] {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::fixed(SECOND)).declare().unwrap();
    queue.consumer().start(move |_: &Message<u32>| handler()).unwrap();
    queue.send(7).unwrap();
    simulation.run_until_idle();
    let stats = queue.stats();
    assert_eq!(stats.unaccounted(), 0);
    [stats.acked, stats.ready, stats.delayed, stats.dead_lettered, stats.discarded]
}

fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
    text.parse()
}

fn by_question_mark() -> Result<(), Failure> {
    number("x")?;
    Ok(())
}

#[test]
fn handlers_answer_in_every_form() {
    assert_eq!(after(|| ()), [1, 0, 0, 0, 0]);
    assert_eq!(after(|| number("7").map(drop)), [1, 0, 0, 0, 0]);
    assert_eq!(after(|| number("x").map(drop)), [0, 0, 1, 0, 0]);
    assert_eq!(after(|| -> Result<(), Failure> { number("x").permanent().map(|_| ()) }), [0, 0, 0, 1, 0]);
    assert_eq!(after(|| -> Result<(), Failure> { number("x").transient().map(|_| ()) }), [0, 0, 1, 0, 0]);
    assert_eq!(after(by_question_mark), [0, 0, 1, 0, 0]);
    assert_eq!(after(|| Err::<(), _>(Failure::permanent("words"))), [0, 0, 0, 1, 0]);
    assert_eq!(after(|| Outcome::Ack), [1, 0, 0, 0, 0]);
    assert_eq!(after(|| Outcome::Retry), [0, 0, 1, 0, 0]);
    assert_eq!(after(|| Outcome::RetryAfter(SECOND * 9)), [0, 0, 1, 0, 0]);
    assert_eq!(after(|| Outcome::DeadLetter("no".into())), [0, 0, 0, 1, 0]);
    assert_eq!(after(|| Outcome::Discard), [0, 0, 0, 0, 1]);
    assert_eq!(after(|| number("7").map(|_| Outcome::Discard)), [0, 0, 0, 0, 1]);
}

#[test]
fn settling_after_shutdown_says_so_and_the_message_can_be_drained() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send_batch(0..7).unwrap();
    let mut hands: Vec<_> = (0..7).map(|_| queue.recv().unwrap()).collect();
    let report = broker.shutdown(Duration::ZERO);
    assert_eq!(report.undelivered[0].in_flight, 7);
    let mut next = || hands.pop().unwrap();
    let answers = [
        next().ack(),
        next().retry(),
        next().retry_after(SECOND),
        next().requeue(),
        next().dead_letter("late"),
        next().discard(),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(SettleError::ShutDown { queue }) if &*queue == "q"));
    }
    drop(hands);
    let mut left: Vec<_> = queue.drain().into_iter().map(|m| m.try_into_payload().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!((queue.stats().unaccounted(), queue.in_flight(), queue.dead_letters().len()), (0, 0, 0));
}

#[test]
fn a_batch_settled_after_shutdown_can_be_drained() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send_batch(0..3).unwrap();
    let batch = queue.recv_batch(3).unwrap();
    let _ = broker.shutdown(Duration::ZERO);
    assert!(batch.ack().is_err());
    let left: Vec<_> = queue.drain().iter().map(|m| (*m.payload(), m.attempt())).collect();
    assert_eq!(left, [(0, 0), (1, 0), (2, 0)]);
}
