//! A consumer's circuit breaker: a sick downstream is left alone, then probed with one message at a time.

use postroom::{
    Broker, Circuit, CircuitBreaker, Classify, Consumer, Event, Failure, ManualClock, Message, Outcome, Queue, Retry,
    Simulation,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_nanos(1);

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new(4, 0.5).pause(PAUSE)
}

/// Something to call that is up or down, and remembers who called.
#[derive(Clone, Default)]
struct Downstream {
    up: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<u32>>>,
}

impl Downstream {
    fn call(&self, n: u32) -> Result<(), Failure> {
        self.calls.lock().unwrap().push(n);
        if self.up.load(SeqCst) { Ok(()) } else { Err("down").transient() }
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

struct Scene {
    broker: Broker,
    simulation: Simulation,
    queue: Queue<u32>,
    downstream: Downstream,
    events: Arc<Mutex<Vec<Event>>>,
}

fn scene(retry: Retry) -> Scene {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let builder = Broker::builder().seed(7).on_event(move |event| log.lock().unwrap().push(event.clone()));
    let (broker, simulation) = builder.build_simulated().unwrap();
    let queue = broker.queue("mail").retry(retry).declare().unwrap();
    Scene { broker, simulation, queue, downstream: Downstream::default(), events }
}

impl Scene {
    fn start(&self, workers: usize, breaker: CircuitBreaker) -> Consumer {
        let downstream = self.downstream.clone();
        let consumer = self.queue.consumer().workers(workers).circuit_breaker(breaker);
        consumer.start(move |n: &Message<u32>| downstream.call(**n)).unwrap()
    }

    fn send(&self, numbers: std::ops::Range<u32>) {
        self.queue.send_batch(numbers).unwrap();
    }
}

fn is_opened(event: &Event) -> bool {
    matches!(event, Event::CircuitOpened { .. })
}

#[test]
fn it_opens_after_the_window_and_leaves_the_rest_in_the_queue() {
    let scene = scene(Retry::none());
    let consumer = scene.start(4, breaker());
    assert_eq!(consumer.circuit(), Some(Circuit::Closed));
    scene.send(0..100);
    scene.simulation.run_until_idle();
    assert_eq!(consumer.circuit(), Some(Circuit::Open));
    assert_eq!((scene.downstream.calls(), scene.queue.len(), scene.queue.dead_letters().len()), (4, 96, 4));
    scene.simulation.advance(PAUSE - TICK);
    assert_eq!(scene.downstream.calls(), 4);
    assert_eq!(scene.queue.stats().unaccounted(), 0);
}

#[test]
fn each_pause_ends_with_one_probe_until_one_succeeds() {
    let scene = scene(Retry::none());
    let consumer = scene.start(8, breaker());
    scene.send(0..100);
    scene.simulation.run_until_idle();
    for probes in 1..=3 {
        scene.simulation.advance(PAUSE);
        assert_eq!((scene.downstream.calls(), consumer.circuit()), (4 + probes, Some(Circuit::Open)));
    }
    scene.downstream.set_up(true);
    scene.simulation.advance(PAUSE - TICK);
    assert_eq!(scene.downstream.calls(), 7);
    scene.simulation.advance(TICK);
    assert_eq!((scene.downstream.calls(), consumer.circuit()), (100, Some(Circuit::Closed)));
    let opened = |failures, of| Event::CircuitOpened { queue: "mail".into(), failures, of };
    let closed = Event::CircuitClosed { queue: "mail".into(), redriven: 0 };
    assert_eq!(*scene.events.lock().unwrap(), [opened(4, 4), opened(1, 1), opened(1, 1), opened(1, 1), closed]);
}

#[test]
fn after_closing_the_window_has_to_fill_again() {
    let scene = scene(Retry::none());
    let consumer = scene.start(1, breaker());
    scene.send(0..5);
    scene.simulation.run_until_idle();
    scene.downstream.set_up(true);
    scene.simulation.advance(PAUSE);
    scene.downstream.set_up(false);
    scene.send(0..3);
    scene.simulation.run_until_idle();
    assert_eq!((scene.downstream.calls(), consumer.circuit()), (4 + 1 + 3, Some(Circuit::Closed)));
    scene.send(0..3);
    scene.simulation.run_until_idle();
    assert_eq!((scene.downstream.calls(), consumer.circuit()), (4 + 1 + 4, Some(Circuit::Open)));
}

#[test]
fn bad_input_says_nothing_about_the_downstream() {
    let scene = scene(Retry::none());
    let answer = |n: &Message<u32>| match **n % 3 {
        0 => Err("bad input").permanent(),
        1 => Ok(Outcome::Discard),
        _ => Ok(Outcome::DeadLetter("not mine".into())),
    };
    let consumer = scene.queue.consumer().circuit_breaker(CircuitBreaker::new(1, 0.1)).start(answer).unwrap();
    scene.send(0..300);
    scene.simulation.run_until_idle();
    assert_eq!((consumer.circuit(), scene.queue.len()), (Some(Circuit::Closed), 0));
}

#[test]
fn a_probe_that_was_bad_input_makes_the_next_message_the_probe() {
    let scene = scene(Retry::none());
    let downstream = scene.downstream.clone();
    let handler = move |n: &Message<u32>| match **n {
        4 | 5 => Err("bad input").permanent(),
        n => downstream.call(n),
    };
    let consumer = scene.queue.consumer().workers(3).circuit_breaker(breaker()).start(handler).unwrap();
    scene.send(0..10);
    scene.simulation.run_until_idle();
    scene.simulation.advance(PAUSE);
    assert_eq!(*scene.downstream.calls.lock().unwrap(), [0, 1, 2, 3, 6]);
    assert_eq!((consumer.circuit(), scene.queue.len()), (Some(Circuit::Open), 3));
}

#[test]
fn panics_and_asked_for_retries_are_failures() {
    let failing: [fn() -> Outcome; 3] =
        [|| panic!("no connection"), || Outcome::Retry, || Outcome::RetryAfter(Duration::from_secs(9))];
    for fail in failing {
        let scene = scene(Retry::none());
        let consumer = scene.queue.consumer().circuit_breaker(breaker()).start(move |_: &Message<u32>| fail()).unwrap();
        scene.send(0..10);
        scene.simulation.run_until_idle();
        assert_eq!((consumer.circuit(), scene.queue.len()), (Some(Circuit::Open), 6));
    }
}

#[test]
fn a_probe_that_panics_opens_it_again() {
    let scene = scene(Retry::none());
    let handler = |_: &Message<u32>| -> () { panic!("no connection") };
    let consumer = scene.queue.consumer().workers(2).circuit_breaker(breaker()).start(handler).unwrap();
    scene.send(0..10);
    scene.simulation.run_until_idle();
    scene.simulation.advance(PAUSE);
    assert_eq!((consumer.circuit(), scene.queue.len()), (Some(Circuit::Open), 5));
}

#[test]
fn retries_that_become_due_while_it_is_open_wait_ready() {
    let scene = scene(Retry::fixed(Duration::from_secs(1)).max_attempts(3));
    let consumer = scene.start(2, breaker());
    scene.send(0..4);
    scene.simulation.run_until_idle();
    assert_eq!((scene.queue.delayed(), scene.queue.len()), (4, 0));
    scene.simulation.advance(Duration::from_secs(30));
    assert_eq!((scene.queue.delayed(), scene.queue.len(), scene.downstream.calls()), (0, 4, 4));
    scene.downstream.set_up(true);
    scene.simulation.advance(PAUSE);
    assert_eq!((consumer.circuit(), scene.downstream.calls()), (Some(Circuit::Closed), 8));
    assert_eq!((scene.queue.stats().acked, scene.queue.stats().retried), (4, 4));
}

#[test]
fn a_failure_that_opens_it_is_not_handled_again_before_the_pause_is_over() {
    let scene = scene(Retry::immediate(100));
    scene.start(4, breaker());
    scene.send(0..1);
    scene.simulation.run_until_idle();
    assert_eq!((scene.downstream.calls(), scene.queue.len()), (4, 1));
}

#[test]
fn the_window_counts_the_latest_handlings_only() {
    let scene = scene(Retry::none());
    let handler = |n: &Message<u32>| if n.is_multiple_of(3) { Outcome::Retry } else { Outcome::Ack };
    let consumer = scene.queue.consumer().circuit_breaker(breaker()).start(handler).unwrap();
    scene.send(1..300); // a third fails, at most two of four in a row: 3 . . 6
    scene.simulation.run_until_idle();
    assert_eq!(consumer.circuit(), Some(Circuit::Open));
    assert_eq!(scene.queue.len(), 300 - 7, "with the sixth: two of 3, 4, 5, 6");
}

#[test]
fn other_consumers_of_the_queue_go_on() {
    let scene = scene(Retry::none());
    let broken = scene.start(1, breaker());
    scene.send(0..4);
    scene.simulation.run_until_idle();
    let others = Arc::new(AtomicUsize::new(0));
    let seen = others.clone();
    scene.queue.consumer().start(move |_: &Message<u32>| _ = seen.fetch_add(1, SeqCst)).unwrap();
    scene.send(0..100);
    scene.simulation.run_until_idle();
    assert_eq!((broken.circuit(), others.load(SeqCst), scene.downstream.calls()), (Some(Circuit::Open), 100, 4));
}

#[test]
fn consumers_without_one_have_no_circuit() {
    let scene = scene(Retry::none());
    let consumer = scene.queue.consumer().start(|_: &Message<u32>| {}).unwrap();
    assert_eq!(consumer.circuit(), None);
}

#[test]
fn closing_redrives_the_dead_letters_of_the_outage_and_no_others() {
    let scene = scene(Retry::none());
    let letters = scene.queue.dead_letters();
    let neighbour: Queue<u32> =
        scene.broker.queue("sms").retry(Retry::none()).dead_letter_to(&letters).declare().unwrap();
    neighbour.consumer().start(|_: &Message<u32>| Outcome::Retry).unwrap();
    let downstream = scene.downstream.clone();
    let handler = move |n: &Message<u32>| if **n == 7 { Err("bad").permanent() } else { downstream.call(**n) };
    let breaker = CircuitBreaker::new(3, 1.0).pause(PAUSE).redrive_on_close();
    let consumer = scene.queue.consumer().circuit_breaker(breaker).start(handler).unwrap();

    scene.send(0..1); // before the outage: its success below puts a gap between
    scene.simulation.run_until_idle();
    scene.downstream.set_up(true);
    scene.send(1..2);
    scene.simulation.advance(Duration::from_secs(1));
    scene.downstream.set_up(false);
    scene.queue.send_batch([2, 7, 3, 4, 5, 6]).unwrap(); // 7: given up on for another reason
    neighbour.send(99).unwrap();
    scene.simulation.run_until_idle();
    assert_eq!(consumer.circuit(), Some(Circuit::Open));
    scene.simulation.advance(PAUSE); // the probe, 5, joins the dead letters
    assert_eq!((letters.len(), scene.queue.len()), (7, 1));

    scene.downstream.set_up(true);
    scene.simulation.advance(PAUSE);
    let mut kept: Vec<u32> = letters.list(10).iter().map(|letter| **letter.message()).collect();
    kept.sort_unstable();
    assert_eq!(kept, [0, 7, 99]);
    let redriven = Event::CircuitClosed { queue: "mail".into(), redriven: 4 };
    assert_eq!(scene.events.lock().unwrap().last(), Some(&redriven));
    assert_eq!((scene.queue.stats().redriven, scene.queue.stats().acked), (4, 6));
    assert_eq!((scene.queue.stats().unaccounted(), letters.stats().unaccounted()), (0, 0));
}

#[test]
fn a_batch_is_one_handling_and_a_batch_of_one_the_probe() {
    let scene = scene(Retry::none());
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let (up, log) = (scene.downstream.up.clone(), sizes.clone());
    let handler = move |batch: &[Message<u32>]| {
        log.lock().unwrap().push(batch.len());
        if up.load(SeqCst) { Outcome::Ack } else { Outcome::Retry }
    };
    let consumer = scene.queue.consumer().workers(3).circuit_breaker(CircuitBreaker::new(2, 1.0).pause(PAUSE));
    let consumer = consumer.start_batch(10, Duration::from_secs(5), handler).unwrap();
    scene.send(0..100);
    scene.simulation.run_until_idle();
    assert_eq!((consumer.circuit(), scene.queue.len()), (Some(Circuit::Open), 80));
    scene.simulation.advance(PAUSE);
    scene.downstream.set_up(true);
    scene.simulation.advance(PAUSE);
    assert_eq!(sizes.lock().unwrap()[..6], [10, 10, 1, 1, 10, 10]);
    assert_eq!(scene.queue.len(), 0);
}

#[test]
fn nonsense_is_refused_with_the_queue_s_name_and_all_problems() {
    let scene = scene(Retry::none());
    let wrong = CircuitBreaker::new(0, f64::NAN).pause(Duration::ZERO);
    let error = scene.queue.consumer().workers(0).circuit_breaker(wrong).start(|_: &Message<u32>| {}).unwrap_err();
    assert_eq!(error.problems().len(), 4, "{error}");
    assert!(error.to_string().contains("queue \"mail\""), "{error}");
}

#[test]
fn the_same_seed_gives_the_same_outage() {
    let run = || {
        let scene = scene(Retry::fixed(Duration::from_millis(10)));
        scene.start(4, breaker());
        scene.send(0..50);
        scene.simulation.advance(PAUSE * 3);
        scene.downstream.set_up(true);
        scene.simulation.advance(PAUSE);
        scene.downstream.calls.lock().unwrap().clone()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_paused_consumer_does_not_probe_before_it_is_resumed() {
    let scene = scene(Retry::none());
    let consumer = scene.start(2, breaker());
    scene.send(0..10);
    scene.simulation.run_until_idle();
    consumer.pause();
    scene.simulation.advance(PAUSE * 2);
    assert_eq!((scene.downstream.calls(), consumer.circuit()), (4, Some(Circuit::HalfOpen)));
    consumer.resume();
    scene.simulation.run_until_idle();
    assert_eq!((scene.downstream.calls(), consumer.circuit()), (5, Some(Circuit::Open)));
}

#[test]
fn shutdown_waits_for_a_pause_that_ends_in_time() {
    let scene = scene(Retry::none());
    scene.start(2, breaker());
    scene.send(0..10);
    scene.simulation.run_until_idle();
    scene.downstream.set_up(true);
    let report = scene.broker.shutdown(PAUSE * 2);
    assert!(report.is_clean(), "{report}");
    assert_eq!(scene.downstream.calls(), 10);
}

#[test]
fn shutdown_reports_what_a_longer_pause_leaves() {
    let scene = scene(Retry::none());
    scene.start(2, breaker());
    scene.send(0..10);
    scene.simulation.run_until_idle();
    let before = scene.simulation.now();
    let report = scene.broker.shutdown(PAUSE / 2);
    assert_eq!(report.undelivered.iter().map(|left| left.ready).collect::<Vec<_>>(), [6]);
    assert_eq!(scene.simulation.now(), before, "it does not wait in vain");
}

// ---- with threads ----------------------------------------------------------------------------------

const SOON: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Threads on a clock that stands still: nothing but moving it ends a pause.
fn threaded() -> (Broker, ManualClock, Queue<u32>) {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue = broker.queue("mail").retry(Retry::none()).declare().unwrap();
    (broker, clock, queue)
}

#[test]
fn eight_threads_make_one_probe() {
    let (broker, clock, queue) = threaded();
    let (entered, probes) = mpsc::channel();
    let (answer, answers) = mpsc::channel::<Outcome>();
    let (failing, answers) = (Arc::new(AtomicBool::new(true)), Mutex::new(answers));
    let outage = failing.clone();
    let handler = move |n: &Message<u32>| {
        if outage.load(SeqCst) {
            return Outcome::Retry;
        }
        entered.send(**n).unwrap();
        answers.lock().unwrap().recv().unwrap()
    };
    let consumer = queue.consumer().workers(8).circuit_breaker(breaker()).start(handler).unwrap();
    queue.send_batch(0..1000).unwrap();
    eventually("it opens", || consumer.circuit() == Some(Circuit::Open) && queue.in_flight() == 0);
    failing.store(false, SeqCst);
    for round in 0..20 {
        assert!(probes.try_recv().is_err(), "nothing is handled while it is open");
        let left = queue.len();
        clock.advance(PAUSE);
        probes.recv_timeout(SOON).expect("the probe");
        assert_eq!(consumer.circuit(), Some(Circuit::HalfOpen));
        queue.send(2000 + round).unwrap(); // wakes nobody who would take it
        std::thread::sleep(Duration::from_millis(2));
        assert!(probes.try_recv().is_err(), "exactly one");
        assert_eq!((queue.len(), queue.in_flight()), (left, 1));
        answer.send(Outcome::Retry).unwrap();
        eventually("it opens again", || consumer.circuit() == Some(Circuit::Open) && queue.in_flight() == 0);
    }
    clock.advance(PAUSE);
    (0..2000).for_each(|_| answer.send(Outcome::Ack).unwrap());
    assert!(broker.wait_idle(SOON));
    assert_eq!((queue.len(), consumer.circuit()), (0, Some(Circuit::Closed)));
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn a_batch_of_threads_probes_with_one_message() {
    let (broker, clock, queue) = threaded();
    let (entered, batches) = mpsc::channel();
    let handler = move |batch: &[Message<u32>]| {
        entered.send(batch.len()).unwrap();
        Outcome::Retry
    };
    let consumer = queue.consumer().workers(4).circuit_breaker(CircuitBreaker::new(1, 1.0).pause(PAUSE));
    let consumer = consumer.start_batch(50, Duration::from_secs(3600), handler).unwrap();
    queue.send_batch(0..50).unwrap();
    assert_eq!(batches.recv_timeout(SOON), Ok(50));
    eventually("it opens", || consumer.circuit() == Some(Circuit::Open));
    queue.send_batch(0..3).unwrap();
    clock.advance(PAUSE);
    assert_eq!(batches.recv_timeout(SOON), Ok(1), "without lingering for more");
    eventually("it opens again", || consumer.circuit() == Some(Circuit::Open));
    assert!(broker.shutdown(SOON).stuck_workers.is_empty());
    assert_eq!((batches.try_recv().is_err(), queue.len()), (true, 2));
}

#[test]
fn what_was_taken_but_not_begun_when_it_opens_goes_back() {
    let (_broker, _clock, queue) = threaded();
    let (entered, batches) = mpsc::channel();
    let handler = move |batch: &[Message<u32>]| {
        entered.send(batch.len()).unwrap();
        Outcome::Retry
    };
    let consumer = queue.consumer().workers(2).circuit_breaker(CircuitBreaker::new(1, 1.0).pause(PAUSE));
    consumer.start_batch(10, Duration::from_secs(3600), handler).unwrap();
    // The two share them; the one that has ten first opens the circuit while the other waits for more.
    let mut sent = 0;
    let mut began = false;
    while !began {
        queue.send(sent).unwrap();
        sent += 1;
        // One at a time, and not more than it takes, or both could have ten.
        eventually("it is in somebody's hand", || {
            began |= batches.try_recv().is_ok();
            began || sent < 19 && queue.in_flight() == sent as usize
        });
    }
    eventually("nothing stays in hand", || queue.in_flight() == 0);
    assert!(batches.try_recv().is_err(), "only one was handled");
    assert_eq!((queue.len(), queue.stats().unaccounted()), (sent as usize - 10, 0));
    let numbers: Vec<u32> = queue.list(20).iter().map(|n| **n).collect();
    assert!(numbers.is_sorted(), "in their order: {numbers:?}");
    assert!(queue.list(20).iter().all(|n| n.attempt() == 0 && !n.redelivered()));
}

#[test]
fn an_idle_probe_waits_for_its_message() {
    let (_broker, clock, queue) = threaded();
    let downstream = Downstream::default();
    let handler = {
        let downstream = downstream.clone();
        move |n: &Message<u32>| downstream.call(**n)
    };
    let consumer = queue.consumer().workers(4).circuit_breaker(breaker()).start(handler).unwrap();
    queue.send_batch(0..4).unwrap();
    eventually("it opens", || consumer.circuit() == Some(Circuit::Open));
    clock.advance(PAUSE);
    eventually("it is half open", || consumer.circuit() == Some(Circuit::HalfOpen));
    // Those who leave may have been about to probe; somebody else does it then.
    consumer.scale_to(1).unwrap();
    consumer.pause();
    consumer.resume();
    consumer.scale_to(3).unwrap();
    downstream.set_up(true);
    queue.send_batch(4..50).unwrap();
    eventually("all are handled", || downstream.calls() == 50);
    assert_eq!(consumer.circuit(), Some(Circuit::Closed));
    consumer.stop();
}

#[test]
fn stop_scale_and_shutdown_do_not_wait_for_the_pause() {
    for batch in [false, true] {
        let (broker, _clock, queue) = threaded();
        let builder = queue.consumer().workers(4).circuit_breaker(CircuitBreaker::new(1, 1.0));
        let consumer = if batch {
            builder.start_batch(3, Duration::ZERO, |_: &[Message<u32>]| Outcome::Retry).unwrap()
        } else {
            builder.start(|_: &Message<u32>| Outcome::Retry).unwrap()
        };
        queue.send_batch(0..100).unwrap();
        eventually("it opens", || consumer.circuit() == Some(Circuit::Open));
        let start = Instant::now();
        consumer.scale_to(2).unwrap();
        consumer.scale_to(6).unwrap();
        let second = queue.consumer().circuit_breaker(breaker()).start(|_: &Message<u32>| Outcome::Retry).unwrap();
        eventually("the second opens", || second.circuit() == Some(Circuit::Open));
        second.stop();
        let report = broker.shutdown(SOON);
        assert!(start.elapsed() < SOON, "at once");
        assert!(report.stuck_workers.is_empty() && report.undelivered[0].ready > 80, "{report}");
    }
}

#[test]
fn on_the_system_clock_it_reopens_by_itself() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("mail").retry(Retry::none()).declare().unwrap();
    let downstream = Downstream::default();
    let handler = {
        let downstream = downstream.clone();
        move |n: &Message<u32>| downstream.call(**n)
    };
    let breaker = CircuitBreaker::new(4, 1.0).pause(Duration::from_millis(30)).redrive_on_close();
    let consumer = queue.consumer().workers(4).circuit_breaker(breaker).start(handler).unwrap();
    queue.send_batch(0..500).unwrap();
    eventually("a probe fails", || downstream.calls() > 8);
    downstream.set_up(true);
    eventually("it closes and catches up", || queue.stats().acked == 500);
    assert_eq!((consumer.circuit(), queue.dead_letters().len()), (Some(Circuit::Closed), 0));
    assert!(broker.shutdown(SOON).is_clean());
}

#[test]
fn two_consumers_with_breakers_lose_nothing_in_a_flapping_outage() {
    let opened = Arc::new(AtomicUsize::new(0));
    let counted = opened.clone();
    let count = move |event: &Event| _ = counted.fetch_add(usize::from(is_opened(event)), SeqCst);
    let broker = Broker::builder().on_event(count).build().unwrap();
    let queue: Queue<u32> = broker.queue("mail").retry(Retry::immediate(1)).declare().unwrap();
    let start = |seed: u32| {
        let calls = AtomicUsize::new(0);
        let handler = move |_: &Message<u32>| match calls.fetch_add(1, SeqCst) as u32 * seed % 7 {
            0..=3 => Outcome::Retry,
            _ => Outcome::Ack,
        };
        let breaker = CircuitBreaker::new(5, 0.4).pause(Duration::from_millis(1)).redrive_on_close();
        queue.consumer().workers(3).circuit_breaker(breaker).start(handler).unwrap()
    };
    let _consumers = [start(3), start(5)];
    queue.send_batch(0..2000).unwrap();
    eventually("all are done", || {
        queue.stats().acked + queue.dead_letters().len() as u64 >= 2000 && queue.in_flight() == 0
    });
    assert!(opened.load(SeqCst) > 0);
    assert!(broker.shutdown(SOON).stuck_workers.is_empty());
    assert_eq!(queue.stats().unaccounted(), 0);
}

#[test]
fn an_event_hook_that_panics_changes_nothing() {
    let broker = Broker::builder().on_event(|event| assert!(!is_opened(event), "ouch")).build_simulated().unwrap();
    let (broker, simulation) = broker;
    let queue: Queue<u32> = broker.queue("mail").retry(Retry::none()).declare().unwrap();
    let consumer = queue.consumer().circuit_breaker(breaker()).start(|_: &Message<u32>| Outcome::Retry).unwrap();
    queue.send_batch(0..10).unwrap();
    simulation.run_until_idle();
    assert_eq!((consumer.circuit(), queue.len(), queue.dead_letters().len()), (Some(Circuit::Open), 6, 4));
}
