//! Alarms on a queue: raised once at the high line, cleared once at the low one.

use postroom::{
    Alarm, AlarmHandle, Alert, Broker, Level, ManualClock, Message, Outcome, Queue, QueueBuilder, RecvError, Retry,
    Simulation,
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_nanos(1);

struct Scene {
    broker: Broker,
    simulation: Simulation,
    queue: Queue<u32>,
    start: SystemTime,
    alerts: Arc<Mutex<Vec<Alert>>>,
}

fn scene() -> Scene {
    let (broker, simulation) = Broker::simulated(3);
    let queue = broker.queue("jobs").retry(Retry::none()).declare().unwrap();
    let start = simulation.now();
    Scene { broker, simulation, queue, start, alerts: Arc::default() }
}

impl Scene {
    fn set(&self, alarm: Alarm) -> AlarmHandle {
        let alerts = self.alerts.clone();
        self.queue.alarm(alarm, move |alert| alerts.lock().unwrap().push(alert.clone())).unwrap()
    }

    /// What was told since the last call: value, raised or cleared, when.
    fn told(&self) -> Vec<(Level, bool, Duration)> {
        let alerts = std::mem::take(&mut *self.alerts.lock().unwrap());
        let told = |alert: Alert| (alert.value, alert.raised, alert.at.duration_since(self.start).unwrap());
        alerts.into_iter().map(told).collect()
    }
}

#[test]
fn a_backlog_is_told_once_up_and_once_down() {
    let scene = scene();
    let alarm = scene.set(Alarm::backlog(10, 3).every(SECOND));
    scene.queue.send_batch(0..9).unwrap();
    scene.simulation.advance(5 * SECOND);
    assert_eq!((scene.told(), alarm.is_raised()), (vec![], false));

    scene.queue.send_batch(0..3).unwrap();
    scene.simulation.advance(SECOND - TICK);
    assert_eq!(scene.told(), [], "it looks once a second");
    scene.simulation.advance(TICK + 5 * SECOND);
    assert_eq!((scene.told(), alarm.is_raised()), (vec![(Level::Backlog(12), true, 6 * SECOND)], true));

    (0..8).for_each(|_| scene.queue.recv().unwrap().ack().unwrap());
    scene.simulation.advance(5 * SECOND);
    assert_eq!(scene.told(), [], "4 is still above the low line");
    scene.queue.recv().unwrap().ack().unwrap();
    scene.simulation.advance(5 * SECOND);
    assert_eq!((scene.told(), alarm.is_raised()), (vec![(Level::Backlog(3), false, 17 * SECOND)], false));
}

#[test]
fn the_oldest_message_s_age_counts_wherever_it_is() {
    let scene = scene();
    scene.set(Alarm::age(10 * SECOND, 2 * SECOND).every(SECOND));
    scene.simulation.advance(SECOND / 2);
    scene.queue.send_batch(0..2).unwrap(); // nobody has looked at them yet
    scene.simulation.advance(12 * SECOND);
    assert_eq!(scene.told(), [(Level::Age(SECOND * 21 / 2), true, 11 * SECOND)]);
    scene.queue.recv().unwrap().ack().unwrap(); // the other one has been brought up by now
    scene.simulation.advance(5 * SECOND);
    assert_eq!(scene.told(), []);
    scene.queue.recv().unwrap().ack().unwrap();
    scene.simulation.advance(5 * SECOND);
    assert_eq!(scene.told(), [(Level::Age(Duration::ZERO), false, 18 * SECOND)]);
}

#[test]
fn the_share_of_failures_is_that_of_the_last_interval() {
    let scene = scene();
    scene.set(Alarm::failures(0.5, 0.1).every(SECOND));
    let handler = |n: &Message<u32>| if **n == 0 { Outcome::Retry } else { Outcome::Ack };
    let consumer = scene.queue.consumer().start(handler).unwrap();
    let interval = |failures: usize, successes: usize| {
        scene.queue.send_batch(std::iter::repeat_n(0, failures).chain(std::iter::repeat_n(1, successes))).unwrap();
        scene.simulation.advance(SECOND);
        scene.told()
    };
    assert_eq!(interval(4, 6), []);
    assert_eq!(interval(5, 5), [(Level::Failures(0.5), true, 2 * SECOND)]);
    assert_eq!(interval(0, 0), [], "nothing settled says nothing");
    assert_eq!(interval(2, 8), []);
    assert_eq!(interval(1, 9), [(Level::Failures(0.1), false, 5 * SECOND)]);
    assert_eq!(interval(3, 0), [(Level::Failures(1.0), true, 6 * SECOND)]);
    consumer.stop(); // what its workers counted is not counted twice
    assert_eq!(interval(0, 0), []);
}

#[test]
fn an_alert_says_everything_in_a_line() {
    let scene = scene();
    scene.set(Alarm::failures(0.25, 0.0));
    scene.queue.send(1).unwrap();
    scene.queue.recv().unwrap().discard().unwrap();
    scene.simulation.advance(SECOND);
    let alerts = scene.alerts.lock().unwrap();
    let text = "queue \"jobs\": 100.0 % of deliveries failed, alarm at 25.0 % of deliveries failed raised";
    assert_eq!(alerts[0].to_string(), text);
    assert_eq!((alerts[0].high, alerts[0].low), (Level::Failures(0.25), Level::Failures(0.0)));
}

#[test]
fn a_removed_alarm_is_silent_and_its_callback_gone() {
    let scene = scene();
    let alarm = scene.set(Alarm::backlog(1, 0));
    assert_eq!(Arc::strong_count(&scene.alerts), 2);
    alarm.remove();
    assert_eq!(Arc::strong_count(&scene.alerts), 1);
    scene.queue.send(1).unwrap();
    scene.simulation.advance(10 * SECOND);
    assert_eq!((scene.told(), scene.simulation.next_due()), (vec![], None));
}

#[test]
fn dropping_the_handle_leaves_it_on() {
    let scene = scene();
    drop(scene.set(Alarm::backlog(1, 0)));
    scene.queue.send(1).unwrap();
    scene.simulation.advance(SECOND);
    assert_eq!(scene.told().len(), 1);
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("ouch, too");
    }
}

#[test]
fn an_alarm_may_remove_itself_and_panic_on_its_way() {
    let scene = scene();
    let (handle, calls) = (Arc::new(Mutex::new(None::<AlarmHandle>)), Arc::new(AtomicUsize::new(0)));
    let (own, count, bomb) = (handle.clone(), calls.clone(), Bomb);
    let alarm = scene.queue.alarm(Alarm::backlog(1, 0), move |_| {
        count.fetch_add(1, SeqCst);
        let _in_the_callback = &bomb;
        own.lock().unwrap().take().unwrap().remove();
        panic!("ouch");
    });
    *handle.lock().unwrap() = Some(alarm.unwrap());
    scene.set(Alarm::backlog(1, 0));
    scene.queue.send(1).unwrap();
    scene.simulation.advance(SECOND);
    scene.queue.purge();
    scene.simulation.advance(SECOND);
    assert_eq!((calls.load(SeqCst), scene.told().len()), (1, 2), "the other one goes on");
}

#[test]
fn a_callback_that_panics_each_time_stays_on() {
    let scene = scene();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let callback = move |_: &Alert| {
        count.fetch_add(1, SeqCst);
        panic!("ouch");
    };
    scene.queue.alarm(Alarm::backlog(1, 0), callback).unwrap();
    for _ in 0..3 {
        scene.queue.send(1).unwrap();
        scene.simulation.advance(2 * SECOND);
        scene.queue.purge();
        scene.simulation.advance(2 * SECOND);
    }
    assert_eq!(calls.load(SeqCst), 6);
}

#[test]
fn nonsense_is_refused_with_the_queue_s_name_and_all_problems() {
    let scene = scene();
    let error = scene.queue.alarm(Alarm::failures(0.1, 1.5).every(Duration::ZERO), |_| {}).unwrap_err();
    assert!(error.subject().contains("queue \"jobs\""), "{error}");
    let text = error.to_string();
    assert!(text.contains("0ns") && text.contains("1.5") && text.contains("above high"), "{text}");
    assert_eq!(error.problems().len(), 3);
}

#[test]
fn shutdown_ends_the_alarms() {
    let scene = scene();
    let alarm = scene.set(Alarm::backlog(1, 0));
    scene.queue.send(1).unwrap();
    scene.broker.shutdown(SECOND);
    assert_eq!(Arc::strong_count(&scene.alerts), 1, "the callback is dropped");
    scene.simulation.advance(10 * SECOND);
    assert_eq!((scene.told(), alarm.is_raised()), (vec![], false));
    alarm.remove();
    let error = scene.queue.alarm(Alarm::backlog(1, 0), |_| {}).unwrap_err();
    assert!(error.to_string().contains("shut down"), "{error}");
}

#[test]
fn it_keeps_no_queue_alive() {
    let queue: Queue<Arc<()>> = Queue::standalone(QueueBuilder::new("scratch")).unwrap();
    let (payload, callback) = (Arc::new(()), Arc::new(()));
    queue.send(payload.clone()).unwrap();
    let own = callback.clone();
    let alarm = queue.alarm(Alarm::backlog(1, 0).every(Duration::from_millis(1)), move |_| drop(own.clone())).unwrap();
    drop(queue);
    let end = Instant::now() + Duration::from_secs(10); // a look may be under way
    while Arc::strong_count(&payload) + Arc::strong_count(&callback) > 2 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert!(!alarm.is_raised());
}

#[test]
fn waiting_in_vain_is_still_noticed_in_a_simulation() {
    let scene = scene();
    scene.set(Alarm::backlog(1, 0));
    assert_eq!(scene.queue.recv().unwrap_err(), RecvError::Deadlock);
}

#[test]
fn on_a_manual_clock_threads_are_told_when_it_is_moved() {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().unwrap();
    let queue: Queue<u32> = broker.queue("jobs").declare().unwrap();
    let (sender, alerts) = std::sync::mpsc::channel();
    queue.alarm(Alarm::age(Duration::from_secs(60), SECOND), move |alert| sender.send(alert.raised).unwrap()).unwrap();
    queue.send(1).unwrap();
    clock.advance(Duration::from_secs(59));
    std::thread::sleep(Duration::from_millis(20));
    assert!(alerts.try_recv().is_err());
    clock.advance(SECOND);
    assert_eq!(alerts.recv_timeout(Duration::from_secs(10)), Ok(true));
    broker.shutdown(SECOND);
    assert!(alerts.recv().is_err(), "the callback is dropped with its sender");
}

#[test]
fn looking_is_exact_on_the_system_clock_too() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("jobs").declare().unwrap();
    let (sender, alerts) = std::sync::mpsc::channel();
    let every = Duration::from_millis(5);
    queue.alarm(Alarm::backlog(100, 10).every(every), move |alert| sender.send(alert.raised).unwrap()).unwrap();
    for _ in 0..3 {
        queue.send_batch(0..100).unwrap();
        assert_eq!(alerts.recv_timeout(Duration::from_secs(10)), Ok(true));
        queue.purge();
        assert_eq!(alerts.recv_timeout(Duration::from_secs(10)), Ok(false));
    }
}
