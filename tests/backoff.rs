//! A message that waits for its retry costs nothing but memory, and comes exactly when its policy says.

use postroom::{Broker, DelayLevel, Message, Outcome, Queue, Retry, Simulation};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn failure() -> std::io::Error {
    std::io::Error::other("not yet")
}

type Times = Arc<Mutex<Vec<SystemTime>>>;

/// A queue whose handler always fails and notes when it was called.
fn failing(retry: Retry) -> (Broker, Simulation, Queue<u32>, Times) {
    let (broker, simulation) = Broker::simulated(7);
    let queue: Queue<u32> = broker.queue("q").retry(retry).declare().unwrap();
    let times = Times::default();
    let (log, clock) = (Arc::clone(&times), simulation.clone());
    let handler = move |_: &Message<u32>| {
        log.lock().unwrap().push(clock.now());
        Err::<(), _>(failure())
    };
    queue.consumer().start(handler).unwrap();
    queue.send(7).unwrap();
    (broker, simulation, queue, times)
}

/// The delays between the handler's calls, and how often the message became a dead letter.
fn delays(retry: Retry) -> Vec<Duration> {
    let (_broker, simulation, queue, times) = failing(retry);
    simulation.advance(secs(1_000_000));
    assert_eq!((queue.dead_letters().len(), queue.delayed(), queue.len()), (1, 0, 0));
    let letter = queue.dead_letters().peek().unwrap();
    let times = times.lock().unwrap();
    let noted: Vec<_> = letter.attempts().iter().map(|attempt| attempt.at).collect();
    assert_eq!(noted, *times);
    times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap()).collect()
}

#[test]
fn every_policy_keeps_its_times_and_its_number_of_attempts() {
    let table = [
        (Retry::none(), vec![]),
        (Retry::immediate(3), vec![0, 0, 0]),
        (Retry::fixed(secs(5)), vec![5, 5, 5, 5]),
        (Retry::fixed(secs(5)).max_attempts(1), vec![]),
        (Retry::fixed(secs(5)).max_attempts(3).immediate_first(1), vec![0, 5]),
        (Retry::linear(secs(2)), vec![2, 4, 6, 8]),
        (Retry::linear(secs(2)).max_delay(secs(5)), vec![2, 4, 5, 5]),
        (Retry::exponential(secs(10)), vec![10, 20, 30, 30]),
        (Retry::exponential(secs(1)).factor(3.0).max_attempts(4), vec![1, 3, 9]),
        (Retry::exponential(secs(1)).max_delay(secs(3)).max_attempts(4), vec![1, 2, 3]),
        (Retry::ladder([secs(1), secs(10), secs(60)]), vec![1, 10, 60]),
        (Retry::ladder([secs(1), secs(10)]).max_attempts(5), vec![1, 10, 10, 10]),
        (Retry::ladder([DelayLevel::ALL[0].into(), DelayLevel::ALL[17].into()]), vec![1, 7200]),
        (Retry::custom(|failed| (failed < 4).then(|| secs(u64::from(failed)))), vec![1, 2, 3]),
    ];
    for (retry, expected) in table {
        let shown = retry.to_string();
        let planned: Vec<_> = retry.schedule().take(20).collect();
        let expected: Vec<_> = expected.into_iter().map(secs).collect();
        assert_eq!(planned, expected, "{shown}: as planned");
        assert_eq!(delays(retry), expected, "{shown}: as run");
    }
}

#[test]
fn jitter_only_adds() {
    let found = delays(Retry::fixed(secs(10)).max_attempts(50).jitter(0.5));
    assert!(found.iter().all(|delay| (secs(10)..secs(15)).contains(delay)), "{found:?}");
    assert!(found.iter().any(|delay| *delay != found[0]));
}

#[test]
fn no_retry_is_early() {
    let (_broker, simulation, _queue, times) = failing(Retry::fixed(secs(5)).max_attempts(2));
    simulation.advance(secs(5) - Duration::from_nanos(1));
    assert_eq!(times.lock().unwrap().len(), 1);
    simulation.advance(Duration::from_nanos(1));
    assert_eq!(times.lock().unwrap().len(), 2);
}

#[test]
fn a_delay_the_handler_asks_for_replaces_the_policys() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> =
        broker.queue("q").retry(Retry::fixed(secs(5)).max_delay(secs(5)).max_attempts(3)).declare().unwrap();
    let times = Times::default();
    let (log, clock) = (Arc::clone(&times), simulation.clone());
    let handler = move |message: &Message<u32>| {
        log.lock().unwrap().push(clock.now());
        if message.attempt() == 1 { Outcome::RetryAfter(secs(77)) } else { Outcome::Retry }
    };
    queue.consumer().start(handler).unwrap();
    queue.send(7).unwrap();
    simulation.advance(secs(1000));
    let times = times.lock().unwrap();
    let delays: Vec<_> = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap()).collect();
    assert_eq!(delays, [secs(77), secs(5)]);
}

#[test]
fn a_waiting_retry_occupies_no_worker_and_no_slot() {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").capacity(1).max_in_flight(1).retry(Retry::fixed(secs(3600)).max_attempts(2));
    let queue: Queue<u32> = builder.declare().unwrap();
    let handler = |message: &Message<u32>| if **message == 0 { Err(failure()) } else { Ok(()) };
    queue.consumer().start(handler).unwrap();
    queue.send(0).unwrap();
    simulation.run_until_idle();
    assert_eq!((queue.delayed(), queue.in_flight()), (1, 0));
    for n in 1..50 {
        queue.try_send(n).unwrap();
        simulation.run_until_idle();
    }
    assert_eq!((queue.stats().acked, queue.delayed()), (49, 1));
    simulation.advance(secs(3600));
    assert_eq!(queue.dead_letters().len(), 1);
}

#[test]
fn thousands_of_waiting_retries_come_in_the_order_of_their_times() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").declare().unwrap();
    let came = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&came);
    let handler = move |message: &Message<u64>| {
        if message.attempt() == 1 {
            return Outcome::RetryAfter(secs(1 + (**message * 7919) % 2000));
        }
        log.lock().unwrap().push((**message * 7919) % 2000);
        Outcome::Ack
    };
    queue.consumer().start(handler).unwrap();
    queue.send_batch(0..2000).unwrap();
    simulation.run_until_idle();
    assert_eq!(queue.delayed(), 2000);
    simulation.advance(secs(3000));
    assert_eq!(*came.lock().unwrap(), (0..2000).collect::<Vec<_>>());
}

#[test]
fn a_very_long_delay_neither_overflows_nor_delays_others() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::fixed(Duration::MAX)).declare().unwrap();
    queue.send_batch([1, 2]).unwrap();
    queue.try_recv().unwrap().retry().unwrap();
    queue.try_recv().unwrap().retry_after(secs(1)).unwrap();
    simulation.advance(secs(1));
    assert_eq!((queue.len(), queue.delayed()), (1, 1));
}
