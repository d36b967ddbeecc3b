//! One publish reaches every queue it matches or none of them, and each of them once.

mod common;

use common::{eventually, within};
use postroom::{Broker, Overflow, PublishError, Queue, Topic};
use std::collections::HashSet;
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn queue(broker: &Broker, name: &str, capacity: usize, overflow: Overflow) -> Queue<u32> {
    broker.queue(name).capacity(capacity).overflow(overflow).declare().unwrap()
}

fn fan_out(queues: &[&Queue<u32>], broker: &Broker) -> Topic<u32> {
    let topic: Topic<u32> = broker.topic("t").declare().unwrap();
    queues.iter().for_each(|queue| topic.bind(*queue, "#").unwrap());
    topic
}

#[test]
fn one_full_queue_keeps_it_from_all_and_the_payload_comes_back() {
    for full in 0..3 {
        let broker = Broker::new();
        let queues: Vec<_> = ["a", "b", "c"].iter().map(|name| queue(&broker, name, 1, Overflow::Reject)).collect();
        let topic = fan_out(&queues.iter().collect::<Vec<_>>(), &broker);
        queues[full].send(0).unwrap();
        let error = topic.publish("k", 7).unwrap_err();
        assert!(matches!(error, PublishError::Full(_)));
        assert_eq!(error.by(), queues[full].name());
        assert_eq!(error.into_message().try_into_payload().unwrap(), 7);
        let lengths: Vec<_> = queues.iter().map(Queue::len).collect();
        assert_eq!(lengths.iter().sum::<usize>(), 1, "{lengths:?}");
        queues[full].recv().unwrap().ack().unwrap();
        assert_eq!(topic.publish("k", 8).unwrap().routed(), 3);
    }
}

#[test]
fn a_timeout_leaves_it_in_no_queue() {
    let broker = Broker::new();
    let (roomy, full) = (queue(&broker, "a", 9, Overflow::Wait), queue(&broker, "b", 1, Overflow::Wait));
    let topic = fan_out(&[&roomy, &full], &broker);
    full.send(0).unwrap();
    let error = topic.publish_timeout("k", 7, Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, PublishError::Timeout(_)));
    assert!(matches!(topic.try_publish("k", 7), Err(PublishError::Full(_))));
    assert_eq!(roomy.len(), 0);
}

#[test]
fn a_queue_that_dead_letters_its_overflow_does_not_refuse_for_the_others() {
    let broker = Broker::new();
    let (roomy, full) = (queue(&broker, "a", 9, Overflow::Wait), queue(&broker, "b", 1, Overflow::DeadLetter));
    let topic = fan_out(&[&roomy, &full], &broker);
    topic.publish("k", 1).unwrap();
    topic.publish("k", 2).unwrap();
    assert_eq!((roomy.len(), full.len(), full.dead_letters().len()), (2, 1, 1));
}

#[test]
fn queues_that_drop_do_not_refuse_for_the_others() {
    let broker = Broker::new();
    let queues = [
        queue(&broker, "a", 9, Overflow::Wait),
        queue(&broker, "b", 1, Overflow::DropNewest),
        queue(&broker, "c", 1, Overflow::DropOldest),
    ];
    let topic = fan_out(&queues.iter().collect::<Vec<_>>(), &broker);
    assert_eq!(topic.publish("k", 1).unwrap().routed(), 3);
    assert_eq!(topic.publish("k", 2).unwrap().routed(), 2);
    let first: Vec<_> = queues.iter().map(|queue| *queue.peek().unwrap().payload()).collect();
    assert_eq!(first, [1, 1, 2]);
}

#[test]
fn a_closed_queue_refuses_for_all() {
    let broker = Broker::new();
    let (open, closed) = (queue(&broker, "a", 9, Overflow::Wait), queue(&broker, "b", 9, Overflow::Wait));
    let topic = fan_out(&[&open, &closed], &broker);
    closed.close();
    assert!(matches!(topic.publish("k", 1), Err(PublishError::Closed(_))));
    assert_eq!(open.len(), 0);
}

#[test]
fn a_queue_reached_by_several_paths_gets_one_copy() {
    let broker = Broker::new();
    let target = queue(&broker, "q", 9, Overflow::Wait);
    let topics: Vec<Topic<u32>> =
        ["top", "left", "right"].iter().map(|name| broker.topic(*name).declare().unwrap()).collect();
    let [top, left, right] = &topics[..] else { unreachable!() };
    for via in [left, right] {
        top.bind(via, "#").unwrap();
        via.bind(&target, "order.*").unwrap();
        via.bind(&target, "*.placed").unwrap();
    }
    top.bind(&target, "order.#").unwrap();
    let receipt = top.publish("order.placed", 7).unwrap();
    assert_eq!((receipt.routed(), target.len()), (1, 1));
    assert_eq!(target.peek().unwrap().id(), receipt.id());
}

/// Two producers fan out to the same two tiny queues while others fill either alone; consumers empty both.
#[test]
fn hammered_by_threads_both_queues_have_the_same_messages() {
    within(LONG, || {
        let broker = Broker::new();
        let (a, b) = (queue(&broker, "a", 1, Overflow::Wait), queue(&broker, "b", 2, Overflow::Wait));
        let topic = fan_out(&[&a, &b], &broker);
        let readers = [&a, &b].map(Queue::clone).map(|queue| thread::spawn(move || read_all(&queue)));
        let writers = [0, 1, 2, 3].map(|n| (n, topic.clone())).map(|(n, t)| thread::spawn(move || write(n, &t)));
        let sent: HashSet<u32> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        // Tells the readers that nothing more will come.
        a.close();
        b.close();
        for reader in readers {
            let got = reader.join().unwrap();
            assert_eq!(got.len(), sent.len(), "a message came twice or was lost");
            assert_eq!(got.into_iter().collect::<HashSet<_>>(), sent);
        }
    });
}

fn read_all(queue: &Queue<u32>) -> Vec<u32> {
    let mut got = Vec::new();
    for delivery in queue.iter() {
        got.push(*delivery.payload());
        delivery.ack().unwrap();
    }
    got
}

/// Publishes in all three forms; which ones were taken.
fn write(producer: u32, topic: &Topic<u32>) -> Vec<u32> {
    let publish = |n: u32| match n % 3 {
        0 => topic.publish("k", n),
        1 => topic.try_publish("k", n),
        _ => topic.publish_timeout("k", n, Duration::from_micros(50)),
    };
    (0..600).map(|n| producer * 1000 + n).filter(|&n| publish(n).is_ok()).collect()
}

/// A publisher that was woken because of room in one queue, and then has to wait for another, must leave
/// the room to those who wait for the first.
#[test]
fn a_publisher_waiting_for_two_queues_swallows_nobodys_room() {
    within(LONG, || {
        let broker = Broker::new();
        let (first, second) = (queue(&broker, "a", 1, Overflow::Wait), queue(&broker, "b", 1, Overflow::Wait));
        let topic = fan_out(&[&first, &second], &broker);
        second.send(0).unwrap();
        let both = thread::spawn(move || topic.publish("k", 1).unwrap());
        thread::sleep(Duration::from_millis(50));
        let sender = second.clone();
        let alone = thread::spawn(move || sender.send_timeout(2, 10 * LONG).is_ok());
        thread::sleep(Duration::from_millis(50));
        first.send(3).unwrap();
        // Room in the second queue now: the first waiter cannot use it, the second can.
        second.recv().unwrap().ack().unwrap();
        eventually("who waits for the room is told of it", || second.len() == 1);
        second.recv().unwrap().ack().unwrap();
        first.recv().unwrap().ack().unwrap();
        both.join().unwrap();
        assert!(alone.join().unwrap());
    });
}
