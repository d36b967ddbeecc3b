//! What a durable queue cannot decode is a dead letter of its bytes: nothing of it is lost, and it finds its way back.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{Folder, flush};
use common::{ON_PURPOSE, eventually, quiet, within};
use postroom::store::{Batch, Change, Durability, Limit, Options, Reader, Store, StreamInfo};
use postroom::{
    Broker, CheckBack, Codec, CodecError, DeadLetter, Exhausted, Group, Log, ManualClock, Message, Queue, QueueBuilder,
    Rate, Reason, Record, Resolution, Retry, Simulation, Start, Topic, Undecoded,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const BUFFERED: Durability = Durability::Buffered;

/// Texts; it cannot read those that begin with a letter it has forgotten, and says `words` then.
#[derive(Clone, Default)]
struct Fussy {
    forgotten: Arc<Mutex<(String, String)>>,
}

impl Fussy {
    fn forget(&self, letters: &str, words: &str) {
        *self.forgotten.lock().unwrap() = (letters.into(), words.into());
    }

    fn remember_all(&self) {
        self.forget("", "");
    }
}

impl Codec<String> for Fussy {
    fn name(&self) -> &str {
        "fussy"
    }

    fn encode(&self, text: &String) -> Result<Vec<u8>, CodecError> {
        Ok(text.clone().into_bytes())
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        let text = String::from_utf8(bytes.to_vec())?;
        let (letters, words) = self.forgotten.lock().unwrap().clone();
        if !text.starts_with(|letter| letters.contains(letter)) {
            return Ok(text);
        }
        assert_ne!(words, "panic", "{ON_PURPOSE}");
        Err(words.into())
    }
}

/// One run after the other, on a clock that goes on.
struct World {
    folder: Folder,
    clock: ManualClock,
    codec: Fussy,
    told: Arc<Mutex<Vec<String>>>,
}

struct Run {
    broker: Broker,
    simulation: Simulation,
    queue: Queue<String>,
}

type Settings = fn(QueueBuilder<String>) -> QueueBuilder<String>;

impl World {
    fn new() -> Self {
        let (folder, clock) = (Folder::new(), ManualClock::new());
        Self { folder, clock, codec: Fussy::default(), told: Arc::default() }
    }

    fn broker(&self) -> (Broker, Simulation) {
        let told = Arc::clone(&self.told);
        let hook = move |event: &postroom::Event| told.lock().unwrap().push(format!("{event:?}"));
        let builder = Broker::builder().clock(self.clock.clone()).seed(1).store(self.folder.file()).on_event(hook);
        builder.build_simulated().unwrap()
    }

    fn run(&self) -> Run {
        self.run_with(|builder| builder)
    }

    fn run_with(&self, settings: Settings) -> Run {
        let (broker, simulation) = self.broker();
        let queue = settings(broker.queue("jobs").retry(Retry::fixed(SECOND).max_attempts(3)));
        let queue = queue.durable_with(BUFFERED, self.codec.clone()).declare().unwrap();
        Run { broker, simulation, queue }
    }

    /// As if the process were killed now.
    fn kill(&mut self, run: Run) {
        flush(&run.broker);
        let copy = self.folder.killed();
        drop(run);
        self.folder = copy;
    }

    /// With these in the file, the process is killed, and the codec forgets some letters.
    fn with(texts: &[&str], forgotten: &str) -> Self {
        let mut world = Self::new();
        let run = world.run();
        run.queue.send_batch(texts.iter().map(|text| text.to_string())).unwrap();
        world.kill(run);
        world.codec.forget(forgotten, "no such letter");
        world
    }
}

fn texts(queue: &Queue<String>) -> Vec<String> {
    queue.list(usize::MAX).iter().map(|message| message.payload().clone()).collect()
}

/// Also what is only in the file.
fn take_all(queue: &Queue<String>) -> Vec<String> {
    std::iter::from_fn(|| {
        let delivery = queue.try_recv().ok()?;
        let text = delivery.payload().clone();
        delivery.ack().unwrap();
        Some(text)
    })
    .collect()
}

fn bytes(queue: &Queue<String>) -> Vec<String> {
    let letters = queue.undecodable().list(usize::MAX);
    letters.iter().map(|letter| String::from_utf8_lossy(letter.bytes()).into_owned()).collect()
}

fn redrive(queue: &Queue<String>) -> (usize, usize) {
    let redriven = queue.undecodable().redrive().run().unwrap();
    (redriven.moved, redriven.kept)
}

fn assert_accounted(broker: &Broker) {
    broker.stats().queues.iter().for_each(|queue| assert_eq!(queue.unaccounted(), 0, "{queue:?}"));
}

#[test]
fn it_is_a_dead_letter_with_all_that_is_known_of_it() {
    let mut world = World::new();
    let run = world.run();
    let topic = run.broker.topic("work").declare().unwrap();
    topic.bind(&run.queue, "job.*").unwrap();
    let message = Message::new("rotten".to_string()).with_id(4711).with_key("user-7").with_header("tenant", "acme");
    topic.publish("job.new", message.with_priority(3)).unwrap();
    run.queue.send("fresh".to_string()).unwrap();
    run.queue.recv().unwrap().retry().unwrap();
    let before = run.queue.list_delayed(1).remove(0).1;
    drop(topic);
    world.kill(run);

    world.codec.forget("r", "does not smell right");
    world.clock.advance(10 * SECOND);
    let run = world.run();
    assert_eq!(texts(&run.queue), ["fresh"]);
    let letters = run.queue.undecodable();
    let letter = letters.peek().unwrap();
    assert_eq!((letter.bytes(), letter.schema(), letter.given_up()), (&b"rotten"[..], 0, None));
    assert_eq!((letter.reason(), letter.queue(), letter.at()), (&Reason::Undecodable, "jobs", world.clock.now()));
    assert_eq!(
        (letter.message().id(), letter.id(), letter.message().key()),
        (4711.into(), 4711.into(), Some("user-7"))
    );
    assert_eq!((letter.header("tenant"), letter.routing_key()), (Some("acme"), "job.new"));
    assert_eq!((letter.priority(), letter.message().attempt()), (3, 1));
    assert_eq!(letter.message().published_at(), before.published_at());
    let errors: Vec<&str> = letter.attempts().iter().map(|attempt| attempt.error.as_str()).collect();
    assert_eq!(errors, ["asked for a retry", "does not smell right"]);
    assert_eq!(letter.error(), Some("does not smell right"));

    let (stats, of_letters) = (run.queue.stats(), letters.stats());
    assert_eq!((stats.recovered, stats.dead_lettered, stats.ready), (2, 1, 1));
    assert_eq!((of_letters.published, of_letters.ready, of_letters.holds_dead_letters), (1, 1, true));
    assert_accounted(&run.broker);
    let description = run.broker.describe().to_string();
    assert!(
        description.contains("queue \"jobs.undecodable\" of ") && description.contains(", unbounded"),
        "{description}"
    );
    assert!(description.contains("what cannot be decoded to \"jobs.undecodable\""), "{description}");
    assert!(run.broker.describe().mermaid().contains("-. undecodable .->"));
    let found: Queue<DeadLetter<Undecoded>> = run.broker.queue("jobs.undecodable").find().unwrap();
    assert_eq!((found.len(), run.queue.dead_letters().len()), (1, 0));
    assert_eq!(world.told.lock().unwrap().len(), 1);
    assert!(world.told.lock().unwrap()[0].contains("does not smell right"));
    let report = run.broker.shutdown(SECOND);
    assert!(report.is_clean() && report.stored.iter().any(|left| left.queue == "jobs.undecodable"), "{report}");
}

#[test]
fn it_is_there_once_whatever_run_it_is() {
    let mut world = World::with(&["a", "x1", "b", "x2"], "x");
    for _ in 0..3 {
        let run = world.run();
        assert_eq!(
            (texts(&run.queue), bytes(&run.queue)),
            (vec!["a".into(), "b".into()], vec!["x1".into(), "x2".into()])
        );
        assert_accounted(&run.broker);
        let letter = run.queue.undecodable().peek().unwrap();
        assert_eq!((letter.error(), letter.attempts().len()), (Some("no such letter"), 1));
        world.kill(run);
    }
    assert_eq!(world.told.lock().unwrap().len(), 2, "they are told of once");
    // A codec that reads them all again changes nothing until somebody asks.
    world.codec.remember_all();
    let run = world.run();
    assert_eq!((run.queue.len(), run.queue.undecodable().len()), (2, 2));
}

#[test]
fn redriven_with_a_mended_codec_all_come_back_in_order() {
    let mut world = World::new();
    let run = world.run();
    for n in 0..20 {
        run.queue.send(Message::new(format!("x{n:02}")).with_id(100 + n).with_header("n", n.to_string())).unwrap();
    }
    world.kill(run);
    world.codec.forget("x", "no such letter");
    let run = world.run();
    assert_eq!(redrive(&run.queue), (0, 20));
    world.codec.remember_all();
    assert_eq!(redrive(&run.queue), (20, 0));
    let stats = (run.queue.stats().redriven, run.queue.undecodable().stats().acked, run.queue.undecodable().len());
    assert_eq!(stats, (20, 20, 0));
    assert_accounted(&run.broker);

    world.kill(run);
    let run = world.run();
    assert_eq!(bytes(&run.queue), [""; 0]);
    for n in 0..20 {
        let delivery = run.queue.recv().unwrap();
        assert_eq!((delivery.id(), delivery.payload().clone()), ((100 + n).into(), format!("x{n:02}")));
        assert_eq!((delivery.attempt(), delivery.header("n")), (1, Some(&*n.to_string())));
        let errors: Vec<&str> = delivery.history().iter().map(|attempt| attempt.error.as_str()).collect();
        assert_eq!(errors, ["no such letter"; 2], "its history stays");
        delivery.ack().unwrap();
    }
    assert_accounted(&run.broker);
}

#[test]
fn attempts_start_again() {
    let mut world = World::new();
    let run = world.run();
    run.queue.send("x".to_string()).unwrap();
    for _ in 0..2 {
        run.queue.recv().unwrap().retry_after(Duration::ZERO).unwrap();
    }
    world.kill(run);
    world.codec.forget("x", "no");
    let run = world.run();
    assert_eq!(run.queue.undecodable().peek().unwrap().message().attempt(), 2);
    world.codec.remember_all();
    assert_eq!(redrive(&run.queue), (1, 0));
    for attempt in 1..=3 {
        let delivery = run.queue.recv().unwrap();
        assert_eq!((delivery.attempt(), delivery.redelivered()), (attempt, true));
        delivery.retry_after(Duration::ZERO).unwrap();
    }
    let letter = run.queue.dead_letters().peek().unwrap();
    assert_eq!((letter.reason(), letter.message().attempt()), (&Reason::Exhausted, 3));
    assert_eq!(letter.attempts().len(), 6, "two before, one of the codec, three after");
}

#[test]
fn those_that_still_fail_stay_with_the_new_error() {
    let mut world = World::with(&["x", "y", "z"], "xyz");
    let run = world.run();
    let peeked = run.queue.undecodable().peek().unwrap();
    world.codec.forget("xz", "not yet");
    assert_eq!(redrive(&run.queue), (1, 2));
    assert_eq!((texts(&run.queue), bytes(&run.queue)), (vec!["y".into()], vec!["x".into(), "z".into()]));
    assert_eq!(peeked.error(), Some("no such letter"), "who looked before sees what was then");
    drop(peeked);
    for _ in 0..2 {
        let letters = run.queue.undecodable().list(9);
        assert!(letters.iter().all(|letter| letter.error() == Some("not yet") && letter.attempts().len() == 2));
    }
    world.kill(run);
    let run = world.run();
    let letter = run.queue.undecodable().peek().unwrap();
    let errors: Vec<&str> = letter.attempts().iter().map(|attempt| attempt.error.as_str()).collect();
    assert_eq!(errors, ["no such letter", "not yet"]);
    assert_accounted(&run.broker);
    world.codec.remember_all();
    assert_eq!((redrive(&run.queue), texts(&run.queue)), ((2, 0), vec!["y".into(), "x".into(), "z".into()]));
}

#[test]
fn a_codec_that_panics_is_one_that_refuses() {
    quiet();
    let world = World::with(&["a", "x", "b"], "");
    world.codec.forget("x", "panic");
    let run = world.run();
    assert_eq!((texts(&run.queue), bytes(&run.queue)), (vec!["a".into(), "b".into()], vec!["x".into()]));
    assert!(run.queue.undecodable().peek().unwrap().error().unwrap().contains(ON_PURPOSE));
    assert_eq!(redrive(&run.queue), (0, 1));
    world.codec.remember_all();
    assert_eq!((redrive(&run.queue), texts(&run.queue)), ((1, 0), vec!["a".into(), "b".into(), "x".into()]));
}

#[test]
fn an_upgrade_that_refuses_or_comes_too_late_puts_apart_as_well() {
    let folder = Folder::new();
    let open = |version: u32, refused: &'static str| -> (Broker, Queue<String>) {
        let upgrade = move |_: u32, bytes: &[u8]| -> Result<String, CodecError> {
            let old: String = serde_json::from_slice(bytes)?;
            if old == refused { Err("not this one".into()) } else { Ok(format!("{old}!")) }
        };
        let broker = Broker::open(folder.file()).unwrap();
        let queue = broker.queue("jobs").durable(BUFFERED).schema(version, upgrade).declare().unwrap();
        (broker, queue)
    };
    let (broker, queue) = open(1, "");
    queue.send_batch(["a", "b"].map(String::from)).unwrap();
    drop((broker, queue));
    let (broker, queue) = open(2, "a");
    assert_eq!((texts(&queue), bytes(&queue)), (vec!["b!".into()], vec!["\"a\"".into()]));
    assert_eq!(queue.undecodable().peek().unwrap().schema(), 1);
    queue.send("c".to_string()).unwrap();
    drop((broker, queue));
    // Back to the version before.
    let (broker, queue) = open(1, "");
    assert_eq!((texts(&queue), bytes(&queue)), (vec!["b".into()], vec!["\"a\"".into(), "\"c\"".into()]));
    let letter = queue.undecodable().list(9).pop().unwrap();
    assert!(letter.error().unwrap().contains("version 2"), "{letter:?}");
    // As what they are, "a" can be decoded by now.
    assert_eq!(redrive(&queue), (1, 1));
    let older = |letter: &DeadLetter<Undecoded>| letter.payload().clone().with_schema(0);
    assert_eq!(queue.undecodable().redrive().edit(older).run().unwrap().moved, 1);
    assert_eq!(texts(&queue), ["b", "a", "c!"]);
    assert_accounted(&broker);
}

#[test]
fn bytes_can_be_mended_and_those_that_are_not_good_enough_change_nothing() {
    let world = World::with(&["x1", "x2"], "x");
    let run = world.run();
    let mend = |letter: &DeadLetter<Undecoded>| {
        let text = String::from_utf8_lossy(letter.bytes()).replace("x1", "a1").replace("x2", "x3");
        letter.payload().clone().with_bytes(text)
    };
    let redriven = run.queue.undecodable().redrive().edit(mend).run().unwrap();
    assert_eq!((redriven.moved, redriven.kept), (1, 1));
    assert_eq!((texts(&run.queue), bytes(&run.queue)), (vec!["a1".into()], vec!["x2".into()]));
}

#[test]
fn a_filter_a_limit_and_a_panic_keep_the_others_where_they_are() {
    quiet();
    let world = World::with(&["x1", "x2", "x3", "x4"], "x");
    let run = world.run();
    world.codec.remember_all();
    let letters = run.queue.undecodable();
    let redriven = letters.redrive().filter(|letter| letter.bytes() != b"x1").limit(2).run().unwrap();
    assert_eq!((redriven.moved, bytes(&run.queue)), (2, vec!["x1".into(), "x4".into()]));
    let panics = |_: &DeadLetter<Undecoded>| -> Undecoded { panic!("{ON_PURPOSE}") };
    let run_it = || letters.redrive().edit(panics).run();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run_it)).is_err());
    assert_eq!(
        (texts(&run.queue), bytes(&run.queue)),
        (vec!["x2".into(), "x3".into()], vec!["x1".into(), "x4".into()])
    );
    assert_accounted(&run.broker);
}

#[test]
fn at_a_rate_they_come_back_over_time() {
    let mut world = World::with(&["x1", "x2", "x3"], "x");
    let run = world.run();
    world.codec.remember_all();
    run.queue.undecodable().redrive().rate(Rate::per_second(1.0)).run().unwrap();
    assert_eq!((run.queue.len(), run.queue.delayed()), (1, 2));
    world.kill(run);
    let run = world.run();
    assert_eq!((run.queue.len(), run.queue.delayed()), (1, 2));
    run.simulation.advance(SECOND);
    assert_eq!(run.queue.len(), 2);
    run.simulation.advance(SECOND);
    assert_eq!(texts(&run.queue), ["x1", "x2", "x3"]);
}

#[test]
fn a_delay_that_has_not_ended_goes_on() {
    let mut world = World::new();
    let run = world.run();
    for (text, seconds) in [("x60", 60), ("x5", 5)] {
        run.queue.send(Message::new(text.to_string()).with_delay(seconds * SECOND)).unwrap();
    }
    world.kill(run);
    world.codec.forget("x", "no");
    let run = world.run();
    assert_eq!((run.queue.undecodable().len(), run.queue.undecodable().delayed()), (2, 0), "they are there at once");
    run.simulation.advance(10 * SECOND);
    world.kill(run);
    world.codec.remember_all();
    let run = world.run();
    assert_eq!(redrive(&run.queue), (2, 0));
    assert_eq!((texts(&run.queue), run.queue.delayed()), (vec!["x5".into()], 1));
    run.simulation.advance(49 * SECOND);
    assert_eq!(run.queue.len(), 1);
    run.simulation.advance(SECOND);
    assert_eq!(texts(&run.queue), ["x60", "x5"]);
}

#[test]
fn a_dead_letter_that_cannot_be_decoded_is_again_the_one_it_was() {
    let mut world = World::new();
    let run = world.run();
    run.queue.send_batch(["x1", "x2", "x3"].map(String::from)).unwrap();
    run.queue.recv().unwrap().retry_after(Duration::ZERO).unwrap();
    run.queue.recv().unwrap().dead_letter("smells").unwrap();
    let before = run.queue.dead_letters().peek().unwrap();
    world.kill(run);

    world.codec.forget("x", "no such letter");
    world.clock.advance(10 * SECOND);
    let run = world.run();
    let dead = run.queue.dead_letters();
    assert_eq!((dead.len(), bytes(&run.queue)), (0, ["x1", "x2", "x3"].map(String::from).to_vec()));
    assert_eq!((dead.stats().dead_lettered, run.queue.stats().dead_lettered), (1, 2));
    let letter = dead.undecodable().peek().unwrap();
    assert_eq!((letter.reason(), letter.queue()), (&Reason::Undecodable, "jobs.dead"));
    assert_eq!((letter.given_up(), letter.message().attempt()), (Some(Reason::Rejected("smells".into())), 2));
    let errors: Vec<&str> = letter.attempts().iter().map(|attempt| attempt.error.as_str()).collect();
    assert_eq!((errors.len(), errors[2]), (3, "no such letter"), "{errors:?}");
    assert_accounted(&run.broker);

    world.kill(run);
    world.codec.remember_all();
    let run = world.run();
    assert_eq!(redrive(&run.queue), (3, 0));
    for _ in 0..2 {
        assert_eq!(texts(&run.queue), ["x2", "x3"]);
        let letter = run.queue.dead_letters().peek().unwrap();
        assert_eq!((letter.payload().payload(), letter.reason()), (&"x1".to_string(), before.reason()));
        assert_eq!((letter.attempts(), letter.at(), letter.queue()), (before.attempts(), before.at(), "jobs"));
        assert_eq!(letter.message().published_at(), before.message().published_at());
        assert_eq!(letter.history(), [], "nobody has handled the letter itself");
    }
    assert_accounted(&run.broker);
    world.kill(run);
    let run = world.run();
    assert_eq!((run.queue.len(), run.queue.dead_letters().len(), run.queue.undecodable().len()), (2, 1, 0));
    assert_eq!(run.queue.dead_letters().redrive().run().unwrap().moved, 1);
    assert_eq!(texts(&run.queue).len(), 3);
}

#[test]
fn they_can_be_purged_consumed_and_drained() {
    let mut world = World::with(&["x1", "x2", "x3", "x4"], "x");
    let run = world.run();
    let letters = run.queue.undecodable();
    letters.recv().unwrap().ack().unwrap();
    world.kill(run);
    let run = world.run();
    assert_eq!(bytes(&run.queue), ["x2", "x3", "x4"]);
    let seen = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&seen);
    let consumer = run.queue.undecodable().consumer().start(move |letter: &Message<DeadLetter<Undecoded>>| {
        counts.fetch_add(1, Ordering::SeqCst);
        if letter.bytes() == b"x2" { Ok(()) } else { Err(std::io::Error::other("later")) }
    });
    run.simulation.run_until_idle();
    consumer.unwrap().stop();
    assert_eq!((seen.load(Ordering::SeqCst), run.queue.undecodable().stats().acked), (3, 1));
    world.kill(run);
    let run = world.run();
    let letters = run.queue.undecodable();
    assert_eq!((letters.delayed(), letters.purge(), letters.len()), (2, 2, 0));
    assert_accounted(&run.broker);
    drop(letters);
    world.kill(run);
    let run = world.run();
    assert_eq!((run.queue.undecodable().len(), run.queue.undecodable().delayed()), (0, 0));
    assert_eq!(run.queue.undecodable().undecodable().len() + run.queue.undecodable().dead_letters().len(), 0);
}

#[test]
fn in_the_midst_of_a_backlog_they_are_found_when_their_turn_comes() {
    let mut world = World::new();
    let run = world.run();
    let sent: Vec<String> = (0..9_000).map(|n| format!("{}{n:05}", if n % 2 == 0 { 'x' } else { 'a' })).collect();
    run.queue.send_batch(sent.clone()).unwrap();
    world.kill(run);
    world.codec.forget("x", "no");
    let run = world.run_with(|builder| builder);
    assert!(run.queue.undecodable().len() < 4_500, "they are not looked for");
    assert_eq!(take_all(&run.queue), sent.iter().filter(|text| text.starts_with('a')).cloned().collect::<Vec<_>>());
    // More than are in memory.
    assert_eq!((run.queue.undecodable().len(), run.queue.stats().dead_lettered), (4_500, 4_500));
    assert_accounted(&run.broker);
    world.kill(run);
    let run = world.run();
    assert_eq!(run.queue.undecodable().len(), 4_500);
    world.codec.remember_all();
    assert_eq!(redrive(&run.queue), (4_500, 0));
    assert_eq!(take_all(&run.queue), sent.iter().filter(|text| text.starts_with('x')).cloned().collect::<Vec<_>>());
    assert_accounted(&run.broker);
}

#[test]
fn it_holds_back_no_key() {
    let by_key: Settings = |builder| builder.ordered_by(|text: &String| text[1..2].to_owned());
    let parks: Settings = |builder| {
        let builder = builder.ordered_by(|text: &String| text[1..2].to_owned());
        builder.retry(Retry::none()).on_exhausted(Exhausted::Park)
    };
    for (settings, parked) in [(by_key, 0), (parks, 1)] {
        let mut world = World::new();
        let run = world.run_with(settings);
        run.queue.send_batch(["x1", "a1", "a2", "b1"].map(String::from)).unwrap();
        if parked > 0 {
            run.queue.recv().unwrap().retry().unwrap();
            assert_eq!(run.queue.parked().len(), 1);
        }
        world.kill(run);
        world.codec.forget("x", "no");
        let run = world.run_with(settings);
        assert_eq!((run.queue.parked().len(), run.queue.len(), bytes(&run.queue)), (0, 3, vec!["x1".into()]));
        assert_accounted(&run.broker);
        world.codec.remember_all();
        assert_eq!(redrive(&run.queue), (1, 0));
        let order: Vec<String> = std::iter::from_fn(|| {
            let delivery = run.queue.try_recv().ok()?;
            let text = delivery.payload().clone();
            delivery.ack().unwrap();
            Some(text)
        })
        .filter(|text| text.ends_with('1'))
        .collect();
        assert_eq!(order, ["a1", "b1", "x1"], "behind what waits under its key then");
    }
}

#[test]
fn readers_that_meet_bring_each_there_once() {
    for round in 0..8 {
        let (folder, codec) = (Folder::new(), Fussy::default());
        let open = || {
            let broker = Broker::open(folder.file()).unwrap();
            let queue = broker.queue("jobs").durable_with(BUFFERED, codec.clone()).window(8).declare().unwrap();
            (broker, queue)
        };
        let (broker, queue) = open();
        queue.send_batch((0..400).map(|n| format!("{}{n}", if n % 3 == 0 { 'x' } else { 'a' }))).unwrap();
        drop((broker, queue));
        codec.forget("x", "no");
        let (broker, queue) = open();
        let all = queue.clone();
        within(LIMIT, move || {
            thread::scope(|scope| {
                let receiver = scope.spawn(|| (0..40 * round).map_while(|_| all.try_recv().ok()?.ack().ok()).count());
                let drainer = scope.spawn(|| all.drain().len());
                let purger = scope.spawn(|| all.purge());
                let out = receiver.join().unwrap() + drainer.join().unwrap() + purger.join().unwrap();
                assert_eq!(out + all.drain().len(), 266, "what can be decoded");
            });
        });
        let letters = queue.undecodable().list(usize::MAX);
        let ids: std::collections::BTreeSet<_> = letters.iter().map(|letter| letter.id()).collect();
        assert_eq!((letters.len(), ids.len(), queue.undecodable().len()), (134, 134, 134));
        assert_eq!(queue.stats().dead_lettered, 134);
        assert_accounted(&broker);
    }
}

#[test]
fn whoever_waits_for_a_reply_to_it_is_told() {
    let world = World::new();
    let broker = Broker::open(world.folder.file()).unwrap();
    let queue = broker.queue("jobs").durable_with(BUFFERED, world.codec.clone()).window(1).declare().unwrap();
    queue.send("a".to_string()).unwrap();
    let asked = queue.clone();
    let answer = thread::spawn(move || asked.request::<u32>("x".to_string(), LIMIT));
    eventually("it waits behind the other one, in the file", || queue.len() == 2);
    world.codec.forget("x", "no such letter");
    queue.recv().unwrap().ack().unwrap();
    assert!(queue.try_recv().is_err());
    let error = within(LIMIT, || answer.join().unwrap().unwrap_err());
    assert!(error.to_string().contains("(undecodable): no such letter"), "{error}");
    assert_eq!((bytes(&queue), queue.stats().unaccounted()), (vec!["x".to_string()], 0));
}

#[test]
fn a_queue_that_is_not_durable_has_none() {
    let broker = Broker::new();
    let queue: Queue<u32> = broker.queue("jobs").declare().unwrap();
    assert!(queue.undecodable().is_empty() && queue.undecodable().try_recv().is_err());
    assert!(broker.queue::<DeadLetter<Undecoded>>("jobs.undecodable").find().is_err());
}

#[test]
fn its_name_may_not_be_taken() {
    let world = World::new();
    let (broker, _simulation) = world.broker();
    let taken: Queue<u32> = broker.queue("jobs.undecodable").declare().unwrap();
    let error = broker.queue::<u32>("jobs").durable(BUFFERED).declare().unwrap_err();
    assert!(error.to_string().contains("\"jobs.undecodable\", is taken"), "{error}");
    assert!(taken.is_empty());
    let other: Queue<u32> = broker.queue("other").durable(BUFFERED).declare().unwrap();
    assert!(broker.queue::<u32>("other.undecodable").durable(BUFFERED).declare().is_err());
    assert!(other.is_empty());
}

#[test]
fn what_cannot_be_written_is_still_where_it_was() {
    let world = World::with(&["x1", "x2"], "x");
    let run = world.run();
    world.codec.remember_all();
    run.broker.store().unwrap().close().unwrap();
    assert_eq!((redrive(&run.queue), texts(&run.queue)), ((2, 0), vec!["x1".into(), "x2".into()]));
    drop(run);
    let run = world.run();
    assert_eq!((run.queue.len(), bytes(&run.queue)), (0, vec!["x1".into(), "x2".into()]));
}

// ---- files of earlier versions ---------------------------------------------------------------------

fn stream(reader: &Reader<'_>, name: &str) -> Option<StreamInfo> {
    reader.stream("undecodable", name).unwrap()
}

/// Moves all rows of a stream to one for the undecodable, as they are.
fn put_apart_as_before(store: &Store, kind: &str, name: &str) {
    let from = store.reader().unwrap().stream(kind, name).unwrap().unwrap().id;
    let to = store.declare("undecodable", name, "").unwrap();
    for row in store.reader().unwrap().read(from, 0, Limit::items(99)).unwrap() {
        store.commit(Batch::new().move_to(from, row.seq, to, Change::new()), BUFFERED).unwrap();
    }
}

#[test]
fn what_an_earlier_version_has_put_apart_is_found() {
    let mut world = World::new();
    let run = world.run();
    let delayed = Message::new("x1".to_string()).with_id(7).with_header("a", "b").with_delay(1_000 * SECOND);
    run.queue.send(delayed).unwrap();
    run.queue.send_batch(["x2", "x3"].map(String::from)).unwrap();
    run.queue.recv().unwrap().dead_letter("smells").unwrap();
    drop(run);
    let store = Store::open(world.folder.file(), Options::new()).unwrap();
    let apart = store.reader().unwrap().stream("undecodable", "jobs").unwrap().unwrap();
    store.commit(Batch::new().remove(apart.id), BUFFERED).unwrap();
    put_apart_as_before(&store, "queue", "jobs");
    put_apart_as_before(&store, "dead letters", "jobs.dead");
    store.close().unwrap();

    for again in 0..3 {
        let run = world.run();
        let letters = run.queue.undecodable().list(9);
        assert_eq!(bytes(&run.queue), ["x1", "x3", "x2"], "those that were dead letters come last");
        assert_eq!(
            (run.queue.undecodable().delayed(), letters[0].id(), letters[0].header("a")),
            (0, 7.into(), Some("b"))
        );
        assert!(letters.iter().all(|letter| *letter.reason() == Reason::Undecodable && letter.attempts().len() <= 2));
        assert!(letters.iter().all(|letter| letter.error().unwrap().contains("not noted")));
        let of: Vec<&str> = letters.iter().map(|letter| letter.queue()).collect();
        assert_eq!(of, ["jobs", "jobs", "jobs.dead"]);
        let store = run.broker.store().unwrap();
        assert!(stream(&store.reader().unwrap(), "jobs.dead").is_none());
        if again == 1 {
            // As if it had been killed before it was through.
            let half_way = stream(&store.reader().unwrap(), "jobs").unwrap().id;
            store.commit(Batch::new().settings(half_way, ""), BUFFERED).unwrap();
        }
        world.kill(run);
    }
    let run = world.run();
    assert_eq!(redrive(&run.queue), (3, 0));
    assert_eq!((texts(&run.queue), run.queue.delayed()), (vec!["x3".into()], 1));
    let letter = run.queue.dead_letters().peek().unwrap();
    assert_eq!((letter.payload().payload(), letter.reason()), (&"x2".into(), &Reason::Rejected("smells".into())));
    assert_accounted(&run.broker);
}

#[test]
fn what_a_foreign_hand_has_broken_stays_in_the_file() {
    let mut world = World::with(&["x1", "x2", "x3"], "x");
    drop(world.run());
    let store = Store::open(world.folder.file(), Options::new()).unwrap();
    let apart = stream(&store.reader().unwrap(), "jobs").unwrap().id;
    let rows = store.reader().unwrap().read(apart, 0, Limit::items(9)).unwrap();
    let break_it = |batch: Batch, at: usize, extra: Option<&[u8]>| {
        batch.update(apart, rows[at].seq, Change::new().extra(extra.map(<[u8]>::to_vec)))
    };
    let broken = break_it(break_it(Batch::new(), 0, Some(b"{")), 1, None);
    store.commit(broken, BUFFERED).unwrap();
    store.close().unwrap();
    let run = world.run();
    assert_eq!(bytes(&run.queue), ["x2", "x3"], "the first says nothing of itself any more");
    assert_accounted(&run.broker);
    world.codec.remember_all();
    assert_eq!((redrive(&run.queue), texts(&run.queue)), ((2, 0), vec!["x2".into(), "x3".into()]));
    world.kill(run);
    let run = world.run();
    let reader = run.broker.store().unwrap().reader().unwrap();
    assert_eq!(stream(&reader, "jobs").unwrap().count, 1);
    drop(reader);
}

// ---- half messages, and groups of logs -------------------------------------------------------------

struct Halves {
    broker: Broker,
    simulation: Simulation,
    topic: Topic<String>,
    queue: Queue<String>,
}

impl World {
    /// The check-back commits what `commits`, and does not know about others.
    fn halves(&self, commits: &'static str) -> Halves {
        let (broker, simulation) = self.broker();
        let check = CheckBack::new(move |text: &Message<String>| match text.contains(commits) {
            true => Resolution::Commit,
            false => Resolution::Unknown,
        });
        let check = check.first(10 * SECOND).every(SECOND).times(2).durable_with(BUFFERED, self.codec.clone());
        let topic = broker.topic("orders").check_back(check).declare().unwrap();
        let queue = broker.queue("jobs").declare().unwrap();
        topic.bind(&queue, "#").unwrap();
        Halves { broker, simulation, topic, queue }
    }

    fn kill_halves(&mut self, run: Halves) {
        let Halves { broker, simulation, topic, queue } = run;
        drop(topic);
        self.kill(Run { broker, simulation, queue });
    }
}

fn unread(broker: &Broker, name: &str) -> Queue<DeadLetter<Undecoded>> {
    broker.queue(name).find().unwrap()
}

#[test]
fn an_undecodable_half_message_is_open_again_once_it_can_be_decoded() {
    let mut world = World::new();
    let run = world.halves("nothing");
    let wishes = Message::new("x1".to_string()).with_id(7).with_key("k").with_delay(60 * SECOND).with_timer("t");
    drop(run.topic.prepare("order.placed", wishes).unwrap());
    drop(run.topic.prepare("order.placed", "a".to_string()).unwrap());
    world.kill_halves(run);
    world.codec.forget("x", "no such letter");
    for _ in 0..2 {
        let run = world.halves("nothing");
        let letters = unread(&run.broker, "orders.half.undecodable");
        let letter = letters.peek().unwrap();
        assert_eq!((letters.len(), letter.bytes(), letter.queue()), (1, &b"x1"[..], "orders"));
        assert_eq!((letter.id(), letter.message().key(), letter.routing_key()), (7.into(), Some("k"), "order.placed"));
        assert_eq!((letter.message().attempt(), letter.error()), (0, Some("no such letter")));
        assert_eq!((run.topic.stats().halves.recovered, run.topic.stats().halves.open), (1, 1));
        assert_eq!(letters.redrive().run().unwrap().kept, 1);
        drop((letter, letters));
        world.kill_halves(run);
        world.codec.forget("x", "no such letter");
    }
    world.codec.remember_all();
    let run = world.halves("x");
    let letters = unread(&run.broker, "orders.half.undecodable");
    assert_eq!(letters.peek().unwrap().attempts().len(), 3);
    let before = run.topic.prepare("order.placed", Message::new("x2".to_string()).with_id(7)).unwrap();
    assert_eq!(letters.redrive().run().unwrap().kept, 1, "another of its id is open");
    assert!(letters.peek().unwrap().error().unwrap().contains("of this id is open"));
    before.rollback().unwrap();
    assert_eq!((letters.redrive().run().unwrap().moved, letters.len(), run.topic.stats().halves.open), (1, 0, 2));
    assert_eq!((run.queue.len(), run.queue.delayed()), (0, 0), "nobody has said that it was committed");
    drop(letters);
    world.kill_halves(run);

    let run = world.halves("x");
    assert_eq!((run.topic.halves().len(), unread(&run.broker, "orders.half.undecodable").len()), (2, 0));
    run.simulation.advance(10 * SECOND);
    assert_eq!((run.topic.stats().halves.committed, run.queue.delayed()), (1, 1), "its delay counts from now");
    assert!(run.broker.cancel_timer("t"));
    let stats = run.topic.stats().halves;
    assert_eq!(stats.prepared + stats.recovered, stats.committed + stats.open + stats.unresolved, "{stats:?}");
}

#[test]
fn half_messages_come_back_at_a_rate_and_start_the_worker_that_asks() {
    let mut world = World::new();
    let run = world.halves("nothing");
    ["x1", "x2"].into_iter().for_each(|text| drop(run.topic.prepare("k", text.to_string()).unwrap()));
    world.kill_halves(run);
    world.codec.forget("x", "no such letter");
    let run = world.halves("x");
    world.codec.remember_all();
    let letters = unread(&run.broker, "orders.half.undecodable");
    letters.redrive().rate(Rate::per_second(0.1)).run().unwrap();
    run.simulation.advance(9 * SECOND);
    assert_eq!(run.queue.len(), 0);
    run.simulation.advance(SECOND);
    assert_eq!(run.queue.len(), 1);
    run.simulation.advance(10 * SECOND);
    assert_eq!(texts(&run.queue), ["x1", "x2"]);
    drop(letters);
    world.kill_halves(run);
    assert_eq!(world.halves("x").topic.stats().halves.open, 0);
}

#[test]
fn an_unresolved_half_message_that_cannot_be_decoded_is_unresolved_again() {
    let mut world = World::new();
    let run = world.halves("nothing");
    drop(run.topic.prepare("k", "x1".to_string()).unwrap());
    run.simulation.advance(20 * SECOND);
    let dead: Queue<DeadLetter<String>> = run.broker.queue("orders.half.dead").find().unwrap();
    assert_eq!(dead.len(), 1);
    drop(dead);
    world.kill_halves(run);
    world.codec.forget("x", "no such letter");
    let run = world.halves("nothing");
    world.codec.remember_all();
    let dead: Queue<DeadLetter<String>> = run.broker.queue("orders.half.dead").find().unwrap();
    let letter = dead.undecodable().peek().unwrap();
    assert_eq!((letter.queue(), letter.given_up(), dead.len()), ("orders.half.dead", Some(Reason::Unresolved), 0));
    assert_eq!((dead.undecodable().redrive().run().unwrap().moved, dead.len()), (1, 1));
    assert_eq!((dead.peek().unwrap().reason(), run.queue.len()), (&Reason::Unresolved, 0));
    assert_eq!((dead.redrive().run().unwrap().moved, texts(&run.queue)), (1, vec!["x1".to_string()]));
}

#[test]
fn half_messages_of_an_earlier_version_are_upgraded() {
    let world = World::new();
    let (broker, simulation) = world.broker();
    let check = CheckBack::new(|_: &Message<u32>| Resolution::Unknown).durable(BUFFERED);
    let numbers = broker.topic("orders").check_back(check).declare().unwrap();
    [17, 18].into_iter().for_each(|n| drop(numbers.prepare("k", n).unwrap()));
    drop((broker, simulation, numbers));

    let (broker, simulation) = world.broker();
    let upgrade = |version: u32, bytes: &[u8]| match serde_json::from_slice::<u32>(bytes)? {
        17 => Ok(format!("order 17 of version {version}")),
        other => Err(format!("nobody knows {other}").into()),
    };
    let check = CheckBack::new(|_: &Message<String>| Resolution::Commit).durable(BUFFERED).schema(3, upgrade);
    let orders = broker.topic("orders").check_back(check).declare().unwrap();
    let queue = broker.queue("jobs").declare().unwrap();
    orders.bind(&queue, "#").unwrap();
    drop(orders.prepare("k", "order 19".to_string()).unwrap());
    simulation.advance(60 * SECOND);
    assert_eq!(texts(&queue), ["order 17 of version 0", "order 19"]);
    let letter = unread(&broker, "orders.half.undecodable").peek().unwrap();
    assert_eq!((letter.bytes(), letter.error()), (&b"18"[..], Some("nobody knows 18")));

    let early = CheckBack::new(|_: &Message<String>| Resolution::Commit).schema(1, |_, _| Err("no".into()));
    let error = broker.topic("others").check_back(early.durable(BUFFERED)).declare().unwrap_err();
    assert!(error.to_string().contains("schema without durable"), "{error}");
}

#[test]
fn half_messages_that_an_earlier_version_has_put_apart_are_found() {
    let mut world = World::new();
    let run = world.halves("nothing");
    drop(run.topic.prepare("k", Message::new("x1".to_string()).with_ttl(60 * SECOND)).unwrap());
    let Halves { broker, simulation, topic, queue } = run;
    drop((broker, simulation, topic, queue));
    let store = Store::open(world.folder.file(), Options::new()).unwrap();
    let reader = store.reader().unwrap();
    let halves = reader.stream("half messages", "orders").unwrap().unwrap();
    let apart = stream(&reader, "orders.half").unwrap();
    store.commit(Batch::new().remove(apart.id), BUFFERED).unwrap();
    let apart = store.declare("undecodable", "orders.half", "").unwrap();
    store.commit(Batch::new().move_to(halves.id, 0, apart, Change::new()), BUFFERED).unwrap();
    drop(reader);
    store.close().unwrap();
    let run = world.halves("nothing");
    let letters = unread(&run.broker, "orders.half.undecodable");
    assert_eq!((letters.len(), letters.peek().unwrap().queue(), run.topic.stats().halves.open), (1, "orders", 0));
    assert_eq!(letters.redrive().run().unwrap().moved, 1);
    drop(letters);
    world.kill_halves(run);
    let run = world.halves("x");
    run.simulation.advance(10 * SECOND);
    assert!(run.queue.peek().unwrap().expires_at().is_some(), "as it was wished for");
}

#[test]
fn an_undecodable_dead_letter_of_a_group_is_again_one_of_its() {
    let mut world = World::new();
    let group = |world: &World| -> (Broker, Simulation, Log<String>, Group<String>) {
        let (broker, simulation) = world.broker();
        let log = broker.log("lines").durable_with(BUFFERED, world.codec.clone()).declare().unwrap();
        let group = log.group("readers").retry(Retry::none()).start(Start::Earliest).unwrap();
        (broker, simulation, log, group)
    };
    let (broker, simulation, log, readers) = group(&world);
    log.append("x1".to_string()).unwrap();
    let consumer = readers.consumer().start(|_: &Record<String>| Err::<(), _>(std::io::Error::other("no"))).unwrap();
    simulation.run_until_idle();
    assert_eq!(readers.dead_letters().len(), 1);
    drop((consumer, log, readers));
    let queue = broker.queue("jobs").declare().unwrap();
    world.kill(Run { broker, simulation, queue });

    world.codec.forget("x", "no such letter");
    let (broker, _simulation, log, readers) = group(&world);
    assert_eq!(readers.dead_letters().len(), 0);
    let letters = unread(&broker, "lines/readers.dead.undecodable");
    assert_eq!((letters.len(), readers.dead_letters().undecodable().len()), (1, 1));
    // The group goes, and another one of its name comes: the letters are still the same.
    drop(readers);
    log.remove_group("readers").unwrap();
    let readers = log.group("readers").retry(Retry::none()).start(Start::Latest).unwrap();
    assert_eq!(readers.dead_letters().undecodable().len(), 1);
    world.codec.remember_all();
    assert_eq!((letters.redrive().run().unwrap().moved, readers.dead_letters().len()), (1, 1));
    assert_eq!(readers.dead_letters().peek().unwrap().reason(), &Reason::Exhausted);
}
