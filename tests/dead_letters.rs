//! Dead letters keep everything, and there is a way back for each of them.

mod common;

use common::within;
use postroom::{
    Broker, DeadLetter, Event, Failure, Message, Outcome, Overflow, Queue, QueueBuilder, Rate, Reason, Retry,
    Simulation, Topic,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A queue with its messages `0..n` all dead, rejected as "even" or "odd".
fn dead(n: u32) -> (Broker, Simulation, Queue<u32>, Queue<DeadLetter<u32>>) {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.send_batch(0..n).unwrap();
    for delivery in queue.recv_batch(n as usize).unwrap() {
        let words = if *delivery.payload() % 2 == 0 { "even" } else { "odd" };
        delivery.dead_letter(words).unwrap();
    }
    let letters = queue.dead_letters();
    assert_eq!(letters.len(), n as usize);
    (broker, simulation, queue, letters)
}

fn contents(queue: &Queue<u32>) -> Vec<u32> {
    queue.list(99).iter().map(|message| *message.payload()).collect()
}

#[test]
fn a_letter_keeps_everything() {
    let (broker, simulation) = Broker::simulated(1);
    let topic: Topic<String> = broker.topic("t").declare().unwrap();
    let queue: Queue<String> = broker.queue("q").retry(Retry::fixed(SECOND).max_attempts(3)).declare().unwrap();
    topic.bind(&queue, "#").unwrap();
    let handler = |message: &Message<String>| Err::<(), _>(std::io::Error::other(format!("no. {}", message.attempt())));
    queue.consumer().start(handler).unwrap();
    let start = simulation.now();
    let message = Message::new("text".to_owned()).with_key("user-7").with_header("tenant", "acme").with_id(99);
    topic.publish("order.placed", message).unwrap();
    simulation.advance(SECOND * 10);
    let letter = queue.dead_letters().recv().unwrap();
    assert_eq!((letter.message().as_str(), letter.message().id().get()), ("text", 99));
    assert_eq!((letter.message().key(), letter.message().header("tenant")), (Some("user-7"), Some("acme")));
    assert_eq!((letter.message().routing_key(), letter.message().published_at()), ("order.placed", start));
    assert_eq!((letter.reason(), letter.queue(), letter.at()), (&Reason::Exhausted, "q", start + SECOND * 2));
    assert_eq!(letter.error(), Some("no. 3"));
    let attempts: Vec<_> = letter.attempts().iter().map(|a| (a.number, a.at, a.error.as_str())).collect();
    assert_eq!(attempts, [(1, start, "no. 1"), (2, start + SECOND, "no. 2"), (3, start + SECOND * 2, "no. 3")]);
}

/// Files of earlier runs are read by these words.
#[test]
fn a_reason_is_written_in_words_that_stay() {
    for (reason, words) in [
        (Reason::Exhausted, r#""exhausted""#),
        (Reason::Permanent, r#""permanent""#),
        (Reason::Rejected("not mine".to_owned()), r#"{"rejected":"not mine"}"#),
        (Reason::Expired, r#""expired""#),
        (Reason::Overflow, r#""overflow""#),
        (Reason::Unresolved, r#""unresolved""#),
        (Reason::KeyDropped, r#""key_dropped""#),
        (Reason::Undecodable, r#""undecodable""#),
    ] {
        assert_eq!(serde_json::to_string(&reason).unwrap(), words);
        assert_eq!(serde_json::from_str::<Reason>(words).unwrap(), reason);
    }
}

#[test]
fn a_permanent_failure_says_so() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| Err::<(), _>(Failure::permanent("bad card"))).unwrap();
    queue.send(1).unwrap();
    simulation.run_until_idle();
    let letter = queue.dead_letters().recv().unwrap();
    assert_eq!((letter.reason(), letter.error(), letter.attempts().len()), (&Reason::Permanent, Some("bad card"), 1));
}

#[test]
fn redriving_takes_all_in_order_or_some_by_filter_or_number() {
    let (_broker, _simulation, queue, letters) = dead(10);
    let evens = letters.redrive().filter(|letter| letter.error() == Some("even")).run().unwrap();
    assert_eq!((evens.moved, evens.kept, contents(&queue)), (5, 5, vec![0, 2, 4, 6, 8]));
    let two = letters.redrive().limit(2).run().unwrap();
    assert_eq!((two.moved, two.kept), (2, 3));
    let none = letters.redrive().limit(0).run().unwrap();
    assert_eq!((none.moved, none.kept), (0, 3));
    let rest = letters.redrive().run().unwrap();
    assert_eq!((rest.moved, rest.kept), (3, 0));
    assert_eq!(contents(&queue), [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]);
    assert_eq!((queue.stats().redriven, queue.stats().unaccounted(), letters.stats().unaccounted()), (10, 0, 0));
}

#[test]
fn what_is_kept_keeps_its_order_and_its_attempt() {
    let (_broker, _simulation, _queue, letters) = dead(6);
    for _ in 0..3 {
        letters.redrive().filter(|_| false).run().unwrap();
    }
    let kept: Vec<_> = letters.recv_batch(9).unwrap().map(|letter| (****letter, letter.attempt())).collect();
    assert_eq!(kept, [0, 1, 2, 3, 4, 5].map(|n| (n, 1)));
}

#[test]
fn a_filter_that_panics_leaves_its_letter_and_the_rest() {
    common::quiet();
    let (_broker, _simulation, queue, letters) = dead(6);
    let redrive =
        letters.redrive().filter(|letter| if ***letter == 3 { panic!("{}", common::ON_PURPOSE) } else { true });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| redrive.run())).is_err());
    assert_eq!((contents(&queue), letters.len(), letters.in_flight()), (vec![0, 1, 2], 3, 0));
    assert_eq!((queue.stats().unaccounted(), letters.stats().unaccounted()), (0, 0));
}

#[test]
fn redriving_may_repair_the_payload() {
    let (_broker, _simulation, queue, letters) = dead(3);
    let peeked = letters.peek().unwrap();
    letters.redrive().edit(|letter| ***letter + 100).run().unwrap();
    assert_eq!((contents(&queue), letters.len()), (vec![100, 101, 102], 0));
    assert_eq!(***peeked, 0, "somebody who still looks at the first sees it as it was");
}

#[test]
fn redriving_at_a_rate_spreads_over_time() {
    let (_broker, simulation, queue, letters) = dead(10);
    letters.redrive().rate(Rate::per_second(2)).run().unwrap();
    let arrived: Vec<_> = (0..10).map(|_| (simulation.advance(SECOND), queue.len()).1).collect();
    assert_eq!(arrived, [3, 5, 7, 9, 10, 10, 10, 10, 10, 10]);
    assert!(letters.redrive().rate(Rate::per_second(0)).run().is_err());
}

#[test]
fn redriving_to_another_queue() {
    let (broker, _simulation, queue, letters) = dead(4);
    let other: Queue<u32> = broker.queue("other").capacity(1).declare().unwrap();
    letters.redrive().to(&other).run().unwrap();
    assert_eq!((queue.len(), contents(&other)), (0, vec![0, 1, 2, 3]));
    assert_eq!(other.stats().unaccounted(), 0);
}

#[test]
fn attempts_start_again_and_history_stays() {
    let (broker, simulation) = Broker::simulated(1);
    let queue: Queue<u32> = broker.queue("q").retry(Retry::immediate(1)).declare().unwrap();
    queue.consumer().start(|_: &Message<u32>| Outcome::Retry).unwrap();
    queue.send(7).unwrap();
    simulation.run_until_idle();
    let letters = queue.dead_letters();
    letters.redrive().run().unwrap();
    simulation.run_until_idle();
    let letter = letters.recv().unwrap();
    assert_eq!(letter.attempts().iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2, 1, 2]);
    assert_eq!((queue.stats().dead_lettered, queue.stats().published), (2, 2));
}

#[test]
fn a_shared_dead_letter_queue_sends_each_back_to_where_it_came_from() {
    let broker = Broker::new();
    let graves = broker.queue("graves").declare().unwrap();
    let queues = ["a", "b"].map(|name| broker.queue::<u32>(name).dead_letter_to(&graves).declare().unwrap());
    for (n, queue) in queues.iter().enumerate() {
        queue.send(n as u32).unwrap();
        queue.recv().unwrap().dead_letter("no").unwrap();
    }
    let origins: Vec<_> = graves.list(9).iter().map(|letter| letter.queue().to_owned()).collect();
    assert_eq!(origins, ["a", "b"]);
    graves.redrive().run().unwrap();
    assert_eq!((contents(&queues[0]), contents(&queues[1])), (vec![0], vec![1]));
}

#[test]
fn a_full_dead_letter_queue_loses_nothing_holds_capacity_and_tells() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let builder = Broker::builder().seed(1).on_event(move |event| log.lock().unwrap().push(event.clone()));
    let (broker, simulation) = builder.build_simulated().unwrap();
    let graves = broker.queue("graves").capacity(1).declare().unwrap();
    let queue: Queue<u32> = broker.queue("q").capacity(3).dead_letter_to(&graves).declare().unwrap();
    queue.send_batch([0, 1, 2]).unwrap();
    queue.recv_batch(3).unwrap().for_each(|delivery| delivery.dead_letter("no").unwrap());
    assert_eq!((graves.len(), queue.delayed(), queue.stats().unaccounted()), (1, 2, 0));
    let told = Event::DeadLettersFull { queue: "q".into(), dead_letters: "graves".into() };
    assert!(heard.lock().unwrap().contains(&told));
    queue.try_send(3).unwrap();
    assert!(queue.try_send(4).is_err(), "what waits for burial holds capacity");
    simulation.advance(SECOND * 5);
    assert_eq!((graves.len(), queue.delayed()), (1, 2));
    for n in 0..3 {
        let letter = graves.try_recv().unwrap();
        assert_eq!(****letter, n);
        letter.ack().unwrap();
        simulation.advance(SECOND);
    }
    assert_eq!((queue.delayed(), queue.stats().dead_lettered, queue.stats().unaccounted()), (0, 3, 0));
    queue.try_send(4).unwrap();
    queue.try_send(5).unwrap();
    assert!(queue.try_send(6).is_err());
}

#[test]
fn letters_waiting_for_room_can_be_drained_or_purged() {
    for drains in [true, false] {
        let (broker, _simulation) = Broker::simulated(1);
        let graves = broker.queue("graves").capacity(1).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").capacity(2).dead_letter_to(&graves).declare().unwrap();
        queue.send_batch([0, 1]).unwrap();
        queue.recv_batch(2).unwrap().for_each(|delivery| delivery.dead_letter("no").unwrap());
        let out = if drains { queue.drain().len() } else { queue.purge() };
        assert_eq!((out, queue.delayed(), queue.stats().unaccounted()), (1, 0, 0));
        queue.try_send(2).unwrap();
        queue.try_send(3).unwrap();
        assert!(queue.try_send(4).is_err());
    }
}

#[test]
fn a_dead_letter_queue_that_drops_its_oldest_never_holds_letters_up() {
    let broker = Broker::new();
    let graves = broker.queue("graves").capacity(2).overflow(Overflow::DropOldest).declare().unwrap();
    let queue: Queue<u32> = broker.queue("q").dead_letter_to(&graves).declare().unwrap();
    queue.send_batch(0..5).unwrap();
    queue.recv_batch(5).unwrap().for_each(|delivery| delivery.dead_letter("no").unwrap());
    let kept: Vec<_> = graves.list(9).iter().map(|letter| ****letter).collect();
    assert_eq!((kept, queue.delayed(), graves.stats().dropped), (vec![3, 4], 0, 3));
    assert_eq!((graves.stats().unaccounted(), queue.stats().unaccounted()), (0, 0));
}

#[test]
fn a_failing_consumer_of_dead_letters_neither_loops_hot_nor_loses_any() {
    let (_broker, simulation, queue, letters) = dead(3);
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    let handler = move |_: &Message<DeadLetter<u32>>| {
        *count.lock().unwrap() += 1;
        Outcome::DeadLetter("cannot".into())
    };
    letters.consumer().start(handler).unwrap();
    simulation.advance(SECOND * 3600);
    let calls = *calls.lock().unwrap();
    assert!((3 * 100..3 * 200).contains(&calls), "{calls} calls in an hour");
    assert_eq!(letters.len() + letters.delayed(), 3);
    assert_eq!((letters.stats().unaccounted(), letters.stats().dead_lettered, queue.len()), (0, 0, 0));
    let none = letters.dead_letters();
    assert!(none.is_empty() && none.send(DeadLetterOfNothing::make()).is_err());
}

/// A letter to offer to the closed queue that stands for "dead letters of dead letters".
struct DeadLetterOfNothing;

impl DeadLetterOfNothing {
    fn make() -> DeadLetter<DeadLetter<u32>> {
        let outer: Queue<DeadLetter<u32>> = QueueBuilder::new("outer").declare().unwrap();
        let inner: Queue<u32> = QueueBuilder::new("inner").declare().unwrap();
        inner.send(1).unwrap();
        inner.recv().unwrap().dead_letter("x").unwrap();
        let Ok(letter) = inner.dead_letters().drain().remove(0).try_into_payload() else { unreachable!() };
        outer.send(letter).unwrap();
        outer.recv().unwrap().dead_letter("x").unwrap();
        let Ok(letter) = outer.dead_letters().drain().remove(0).try_into_payload() else { unreachable!() };
        letter
    }
}

#[test]
fn letters_arrive_while_others_look_through_them() {
    within(Duration::from_secs(30), || {
        let broker = Broker::new();
        let graves = broker.queue("graves").capacity(1).overflow(Overflow::DropNewest).declare().unwrap();
        let queue: Queue<u32> = broker.queue("q").retry(Retry::none()).dead_letter_to(&graves).declare().unwrap();
        queue.consumer().workers(2).start(|_: &Message<u32>| Outcome::Retry).unwrap();
        let sender = queue.clone();
        let sending = std::thread::spawn(move || (0..3000).for_each(|n| assert!(sender.send(n).is_ok())));
        while !sending.is_finished() {
            graves.redrive().filter(|_| false).run().unwrap();
            assert!(graves.len() <= 1, "{} letters in a queue for 1", graves.len());
        }
        sending.join().unwrap();
        assert!(broker.wait_idle(Duration::from_secs(20)));
        assert_eq!((queue.stats().unaccounted(), graves.stats().unaccounted()), (0, 0));
    });
}
