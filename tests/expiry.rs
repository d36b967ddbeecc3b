//! A message is never delivered after its time, and leaves its queue wherever it stands.

#![cfg(not(shuttle))]

mod common;

use common::eventually;
use postroom::{
    Broker, DeadLetter, Expired, ManualClock, Message, Overflow, Queue, Rate, Reason, Retry, Simulation, Topic,
};
use std::time::{Duration, Instant};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const NANO: Duration = Duration::from_nanos(1);

fn mortal(n: u64, ttl: Duration) -> Message<u64> {
    Message::new(n).with_ttl(ttl)
}

fn queue() -> (Broker, Simulation, Queue<u64>) {
    let (broker, simulation) = Broker::simulated(1);
    let queue = broker.queue("q").expired(Expired::Drop).declare().unwrap();
    (broker, simulation, queue)
}

fn ready(queue: &Queue<u64>) -> Vec<u64> {
    let deliveries = std::iter::from_fn(|| queue.try_recv().ok());
    deliveries.map(|delivery| (**delivery, delivery.ack()).0).collect()
}

fn is_conserved(queue: &Queue<u64>) {
    assert_eq!(queue.stats().unaccounted(), 0, "{:?}", queue.stats());
}

#[test]
fn it_leaves_from_the_front_the_middle_and_the_end_at_its_time() {
    let (_broker, simulation, queue) = queue();
    queue
        .send_batch([mortal(0, secs(2)), Message::new(1), mortal(2, secs(1)), Message::new(3), mortal(4, secs(3))])
        .unwrap();
    simulation.advance(secs(1) - NANO);
    assert_eq!(queue.len(), 5);
    for (after, left) in [(NANO, 4), (secs(1), 3), (secs(1), 2)] {
        simulation.advance(after);
        assert_eq!((queue.len(), queue.stats().expired), (left, 5 - left as u64));
    }
    assert_eq!(ready(&queue), [1, 3]);
    is_conserved(&queue);
}

#[test]
fn the_shorter_of_message_and_queue_counts() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").ttl(secs(5)).expired(Expired::Drop).declare().unwrap();
    queue.send_batch([Message::new(1), mortal(2, secs(1)), mortal(3, secs(9))]).unwrap();
    simulation.advance(secs(1));
    assert_eq!(queue.len(), 2);
    simulation.advance(secs(4));
    assert_eq!((queue.len(), queue.stats().expired), (0, 3));
}

#[test]
fn expired_messages_become_dead_letters_by_default_and_live_on_there() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").ttl(secs(5)).declare().unwrap();
    queue.send(mortal(1, secs(1)).with_header("a", "b")).unwrap();
    queue.send(2).unwrap();
    simulation.advance(secs(1_000));
    let dead = queue.dead_letters();
    assert_eq!((queue.len(), dead.len(), queue.stats().dead_lettered, queue.stats().expired), (0, 2, 2, 0));
    let letter = dead.peek().unwrap();
    assert_eq!((letter.reason(), letter.header("a"), letter.attempts().len()), (&Reason::Expired, Some("b"), 0));
    drop(letter);
    simulation.advance(secs(1_000_000));
    assert_eq!(dead.len(), 2);
    assert_eq!(dead.redrive().run().unwrap().moved, 2);
    assert_eq!((queue.len(), dead.len()), (2, 0), "not expired again at once");
    simulation.advance(secs(5) - NANO);
    assert_eq!(queue.len(), 2);
    simulation.advance(NANO);
    assert_eq!((queue.len(), dead.len()), (0, 2), "but by the queue's time to live");
    is_conserved(&queue);
}

#[test]
fn zero_expires_at_once() {
    let (_broker, simulation, queue) = queue();
    queue.send(mortal(1, Duration::ZERO)).unwrap();
    assert!(queue.try_recv().is_err());
    simulation.run_until_idle();
    assert_eq!((queue.len(), queue.stats().expired), (0, 1));
    is_conserved(&queue);
}

#[test]
fn a_redelivery_does_not_start_the_time_again() {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").retry(Retry::fixed(secs(4)).max_attempts(9)).expired(Expired::Drop);
    let queue: Queue<u64> = builder.declare().unwrap();
    let handler = |_: &Message<u64>| Err::<(), _>(std::io::Error::other("no"));
    queue.consumer().start(handler).unwrap();
    queue.send(mortal(1, secs(10))).unwrap();
    simulation.advance(secs(10) - NANO);
    assert_eq!((queue.delayed(), queue.stats().delivered), (1, 3));
    simulation.advance(NANO);
    assert_eq!((queue.delayed(), queue.stats().delivered, queue.stats().expired), (0, 3, 1), "while it waits");
    is_conserved(&queue);
}

#[test]
fn what_is_in_flight_is_left_alone_and_not_delivered_again() {
    let (_broker, simulation, queue) = queue();
    queue.send_batch([mortal(1, secs(1)), mortal(2, secs(1))]).unwrap();
    let [first, second] = [queue.try_recv().unwrap(), queue.try_recv().unwrap()];
    simulation.advance(secs(5));
    first.ack().unwrap();
    second.requeue().unwrap();
    assert!(queue.try_recv().is_err());
    assert_eq!((queue.stats().acked, queue.stats().expired), (1, 1));
    is_conserved(&queue);
}

#[test]
fn it_leaves_the_lanes_of_priorities_and_the_others_keep_their_places() {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").priority_levels(3).retry(Retry::immediate(3)).expired(Expired::Drop);
    let queue: Queue<u64> = builder.declare().unwrap();
    let of = |n: u64| Message::new(n).with_priority(n as u8 % 3);
    queue.send_batch((0..9).map(|n| if n < 3 { of(n).with_ttl(secs(1)) } else { of(n) })).unwrap();
    queue.send(of(11)).unwrap();
    // 2 is taken and given back: behind 5, 8 and 11, also after the queue has been looked through.
    queue.try_recv().unwrap().ack().unwrap();
    queue.try_recv().unwrap().requeue().unwrap();
    simulation.advance(secs(2));
    assert_eq!(queue.stats().expired, 2);
    assert_eq!(ready(&queue), [8, 11, 5, 4, 7, 3, 6]);
    is_conserved(&queue);
}

#[test]
fn the_time_counts_from_the_end_of_a_delay() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").ttl(secs(3)).expired(Expired::Drop).declare().unwrap();
    queue.send(mortal(1, secs(1)).with_delay(secs(10))).unwrap();
    queue.send(Message::new(2).with_delay(secs(10))).unwrap();
    simulation.advance(secs(11) - NANO);
    assert_eq!(queue.len(), 2);
    simulation.advance(NANO);
    assert_eq!(queue.len(), 1);
    simulation.advance(secs(2) - NANO);
    assert_eq!(queue.len(), 1);
    simulation.advance(NANO);
    assert_eq!((queue.len(), queue.stats().expired), (0, 2));
}

#[test]
fn a_batch_receive_and_a_batch_handler_get_none_of_them() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u64> = broker.queue("q").expired(Expired::Drop).declare().unwrap();
    let mixed = |n| if n % 2 == 0 { mortal(n, Duration::ZERO) } else { Message::new(n) };
    queue.send_batch((0..10).map(mixed)).unwrap();
    let batch = queue.recv_batch(10).unwrap();
    assert_eq!(batch.iter().map(|message| **message).collect::<Vec<_>>(), [1, 3, 5, 7, 9]);
    batch.ack().unwrap();
    let handler = |batch: &[Message<u64>]| assert!(batch.iter().all(|message| **message % 2 == 1));
    queue.consumer().start_batch(4, secs(1), handler).unwrap();
    queue.send_batch((0..10).map(mixed)).unwrap();
    simulation.advance(secs(9));
    assert_eq!((queue.stats().acked, queue.stats().expired, queue.stats().retried), (10, 10, 0));
    is_conserved(&queue);
}

#[test]
fn expiry_makes_room() {
    let (broker, simulation) = Broker::simulated(1);
    let builder = broker.queue("q").capacity(3).overflow(Overflow::DropOldest).expired(Expired::Drop);
    let queue: Queue<u64> = builder.declare().unwrap();
    queue.send_batch([Message::new(1), mortal(2, secs(1)), Message::new(3)]).unwrap();
    simulation.advance(secs(1));
    queue.send(4).unwrap();
    assert_eq!(queue.stats().dropped, 0);
    queue.send(5).unwrap();
    assert_eq!(ready(&queue), [3, 4, 5]);
    is_conserved(&queue);
}

#[test]
fn a_writer_that_waits_for_room_gets_what_expiry_frees() {
    let broker = Broker::new();
    let builder = broker.queue("q").capacity(1).expired(Expired::Drop);
    let queue: Queue<u64> = builder.declare().unwrap();
    queue.send(mortal(1, Duration::from_millis(20))).unwrap();
    queue.send_timeout(2, secs(10)).unwrap();
    assert_eq!(ready(&queue), [2]);
}

#[test]
fn a_writer_gets_the_room_of_one_that_expired_waiting_for_its_keys_turn() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let builder = broker.queue("q").capacity(1).expired(Expired::Drop).rate_limit_per_key(Rate::per_minute(1));
    let queue: Queue<u64> = builder.declare().unwrap();
    queue.send(Message::new(1).with_key("k")).unwrap();
    queue.recv().unwrap().ack().unwrap();
    queue.send(mortal(2, secs(30)).with_key("k")).unwrap();
    assert!(queue.try_recv().is_err());
    assert_eq!(queue.delayed(), 1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| queue.send_timeout(3, secs(3600)).is_ok());
        std::thread::sleep(Duration::from_millis(20));
        clock.advance(secs(30));
        assert!(writer.join().unwrap());
    });
    assert_eq!((queue.delayed(), queue.stats().expired), (0, 1));
    is_conserved(&queue);
}

#[test]
fn each_queue_of_a_fan_out_keeps_its_own_time() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<u64> = broker.topic("t").declare().unwrap();
    let short: Queue<u64> = broker.queue("short").ttl(secs(1)).expired(Expired::Drop).declare().unwrap();
    let long: Queue<u64> = broker.queue("long").ttl(secs(5)).expired(Expired::Drop).declare().unwrap();
    topic.bind(&short, "#").unwrap();
    topic.bind(&long, "#").unwrap();
    topic.publish("k", mortal(1, secs(3))).unwrap();
    for (after, lens) in [(1, (0, 1)), (1, (0, 1)), (1, (0, 0))] {
        simulation.advance(secs(after));
        assert_eq!((short.len(), long.len()), lens);
    }
}

#[test]
fn one_sent_on_lives_anew() {
    let (broker, simulation, queue) = queue();
    let next: Queue<u64> = broker.queue("next").ttl(secs(2)).declare().unwrap();
    queue.send(Message::new(1).with_key("k").with_delay(secs(1))).unwrap();
    simulation.advance(secs(10));
    let delivery = queue.try_recv().unwrap();
    next.send((*delivery).clone()).unwrap();
    delivery.ack().unwrap();
    assert_eq!(ready(&next), [1]);
}

#[test]
fn a_long_queue_of_many_times_is_emptied_without_a_look_for_each() {
    let broker = Broker::new();
    let builder = broker.queue("q").capacity(100_000).expired(Expired::Drop);
    let queue: Queue<u64> = builder.declare().unwrap();
    let start = Instant::now();
    queue.send_batch((0..20_000).map(|n| mortal(n, Duration::from_micros(n * 10)))).unwrap();
    eventually("all have expired", || queue.stats().expired == 20_000);
    assert!(start.elapsed() >= Duration::from_millis(199));
    assert!(queue.is_empty());
    is_conserved(&queue);
}

#[test]
fn purging_what_waits_for_room_among_the_dead_frees_each_place_once() {
    let (broker, simulation) = Broker::simulated(1);
    let dead: Queue<DeadLetter<u32>> = broker.queue("dead").capacity(1).overflow(Overflow::Reject).declare().unwrap();
    let queue = broker.queue::<u32>("q").capacity(4).overflow(Overflow::Reject).ttl(Duration::from_millis(5));
    let queue = queue.expired(Expired::DeadLetter).dead_letter_to(&dead).declare().unwrap();
    (0..4).for_each(|n| _ = queue.try_send(n).unwrap());
    simulation.advance(Duration::from_millis(10));
    assert_eq!((dead.len(), queue.delayed()), (1, 3));
    assert_eq!(queue.purge(), 3);
    (0..4).for_each(|n| _ = queue.try_send(n).unwrap());
    assert!(queue.try_send(4).is_err());
    assert_eq!(queue.stats().unaccounted(), 0);
}
