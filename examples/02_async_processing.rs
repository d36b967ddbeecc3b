//! Asynchronous processing: an upload answers at once, the work is done later.
//!
//! **Situation.** A video that was uploaded has to be transcoded, needs thumbnails and must be checked by
//! moderation. That takes far longer than anybody looks at a progress bar. When all three are done, in
//! whatever order, the user is told.
//!
//! **What the queue gives.** The upload publishes one event and answers. Each stage is a queue with as many
//! workers as it needs at the moment; the number changes while they run. A stage that panics on one video
//! keeps that video as a dead letter and goes on with the next.
//!
//! **What to expect on screen.** How long 500 uploads waited for their answer; transcoding with 1, 8 and
//! then 2 workers while a backlog exists, and the rate of each; one video that crashes the encoder, which
//! neither the other videos nor the other stages notice; how it completes once the encoder is fixed.
//!
//! `cargo run --release --example 02_async_processing`

#![allow(unreachable_pub)] // in a program, plain `pub` is easier to read than `pub(crate)`

mod common;

use postroom::{Broker, Queue};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// All that the modules know of each other.
mod names {
    use postroom::{QueueName, TopicName};

    pub struct Uploaded {
        pub video: u64,
        pub codec: &'static str,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Stage {
        Transcoding,
        Thumbnails,
        Moderation,
    }

    pub struct StageDone {
        pub video: u64,
        pub stage: Stage,
    }

    pub struct Ready {
        pub video: u64,
    }

    pub const UPLOADS: TopicName<Uploaded> = TopicName::new("uploads");
    pub const STAGES: TopicName<StageDone> = TopicName::new("stages");
    pub const VIDEOS: TopicName<Ready> = TopicName::new("videos");

    pub const TRANSCODING: QueueName<Uploaded> = QueueName::new("transcoding");
    pub const THUMBNAILS: QueueName<Uploaded> = QueueName::new("thumbnails");
    pub const MODERATION: QueueName<Uploaded> = QueueName::new("moderation");
    pub const COMPLETION: QueueName<StageDone> = QueueName::new("completion");
    pub const NOTIFICATION: QueueName<Ready> = QueueName::new("notification");
}

mod upload {
    use crate::names::{UPLOADS, Uploaded};
    use postroom::{Broker, Error, PublishError, Topic};

    pub struct Uploads {
        topic: Topic<Uploaded>,
    }

    impl Uploads {
        pub fn new(broker: &Broker) -> Result<Self, Error> {
            Ok(Self { topic: broker.topic(UPLOADS).declare()? })
        }

        /// Once this has returned, the user can be told "we got it": every stage has the video in its queue.
        pub fn accept(&self, video: u64, codec: &'static str) -> Result<(), PublishError<Uploaded>> {
            self.topic.publish("video.uploaded", Uploaded { video, codec })?;
            Ok(())
        }
    }
}

mod transcoding {
    use crate::names::{STAGES, Stage, StageDone, TRANSCODING, UPLOADS, Uploaded};
    use postroom::{Broker, Consumer, Error, Message, Queue, Retry};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    pub const TIME_PER_VIDEO: Duration = Duration::from_millis(10);

    #[derive(Default)]
    pub struct Encoder {
        pub knows_odd_codec: AtomicBool,
    }

    impl Encoder {
        fn encode(&self, video: &Uploaded) {
            std::thread::sleep(TIME_PER_VIDEO);
            let known = video.codec != "odd" || self.knows_odd_codec.load(Ordering::Relaxed);
            assert!(known, "encoder crashed on video {}", video.video);
        }
    }

    /// The consumer is for whoever decides how many workers there are.
    pub fn start(broker: &Broker, encoder: Arc<Encoder>) -> Result<(Queue<Uploaded>, Consumer), Error> {
        let retry = Retry::fixed(Duration::from_millis(20)).max_attempts(3);
        let queue = broker.queue(TRANSCODING).retry(retry).declare()?;
        broker.topic(UPLOADS).declare()?.bind(&queue, "video.uploaded")?;
        let stages = broker.topic(STAGES).declare()?;
        let consumer = queue.consumer().workers(1).start(move |video: &Message<Uploaded>| {
            encoder.encode(video);
            let done = StageDone { video: video.video, stage: Stage::Transcoding };
            stages.publish("stage.done", done).map(|_| ())
        })?;
        Ok((queue, consumer))
    }
}

mod thumbnails {
    use crate::names::{STAGES, Stage, StageDone, THUMBNAILS, UPLOADS, Uploaded};
    use postroom::{Broker, Error, Message};
    use std::time::Duration;

    pub fn start(broker: &Broker) -> Result<(), Error> {
        let queue = broker.queue(THUMBNAILS).declare()?;
        broker.topic(UPLOADS).declare()?.bind(&queue, "video.uploaded")?;
        let stages = broker.topic(STAGES).declare()?;
        queue.consumer().workers(2).start(move |video: &Message<Uploaded>| {
            std::thread::sleep(Duration::from_millis(2)); // drawing
            let done = StageDone { video: video.video, stage: Stage::Thumbnails };
            stages.publish("stage.done", done).map(|_| ())
        })?;
        Ok(())
    }
}

mod moderation {
    use crate::names::{MODERATION, STAGES, Stage, StageDone, UPLOADS, Uploaded};
    use postroom::{Broker, Error, Message};
    use std::time::Duration;

    pub fn start(broker: &Broker) -> Result<(), Error> {
        let queue = broker.queue(MODERATION).declare()?;
        broker.topic(UPLOADS).declare()?.bind(&queue, "video.uploaded")?;
        let stages = broker.topic(STAGES).declare()?;
        queue.consumer().workers(2).start(move |video: &Message<Uploaded>| {
            std::thread::sleep(Duration::from_millis(3)); // looking
            let done = StageDone { video: video.video, stage: Stage::Moderation };
            stages.publish("stage.done", done).map(|_| ())
        })?;
        Ok(())
    }
}

/// Knows when a video is complete.
mod completion {
    use crate::names::{COMPLETION, Ready, STAGES, Stage, StageDone, VIDEOS};
    use postroom::{Broker, Error, Message};
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    pub struct Completion {
        /// What is done of each video that is not complete. Stages, not their number: a stage may report
        /// a video twice.
        pub incomplete: Mutex<BTreeMap<u64, BTreeSet<Stage>>>,
    }

    impl Completion {
        /// Whether this stage was the last one missing.
        fn record(&self, report: &StageDone) -> bool {
            let mut incomplete = self.incomplete.lock().unwrap();
            let done = incomplete.entry(report.video).or_default();
            done.insert(report.stage);
            done.len() == 3
        }

        fn forget(&self, video: u64) {
            self.incomplete.lock().unwrap().remove(&video);
        }
    }

    pub fn start(broker: &Broker, completion: Arc<Completion>) -> Result<(), Error> {
        let queue = broker.queue(COMPLETION).declare()?;
        broker.topic(STAGES).declare()?.bind(&queue, "stage.done")?;
        let videos = broker.topic(VIDEOS).declare()?;
        queue.consumer().start(move |report: &Message<StageDone>| {
            if completion.record(report) {
                // Forgotten only after the publish: should that fail, the retry finds the video complete again.
                videos.publish("video.ready", Ready { video: report.video })?;
                completion.forget(report.video);
            }
            Ok::<_, postroom::PublishError<Ready>>(())
        })?;
        Ok(())
    }
}

mod notification {
    use crate::names::{NOTIFICATION, Ready, VIDEOS};
    use postroom::{Broker, Error, Message};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    #[derive(Default)]
    pub struct Notifications {
        pub told: Mutex<Vec<(u64, Instant)>>,
    }

    pub fn start(broker: &Broker, notifications: Arc<Notifications>) -> Result<(), Error> {
        let queue = broker.queue(NOTIFICATION).declare()?;
        broker.topic(VIDEOS).declare()?.bind(&queue, "video.ready")?;
        queue.consumer().start(move |ready: &Message<Ready>| {
            notifications.told.lock().unwrap().push((ready.video, Instant::now()));
        })?;
        Ok(())
    }
}

/// So many that there is still a backlog after all that is measured, even if nobody looks for a second.
const VIDEOS_UPLOADED: u64 = 1_500;
const BROKEN: u64 = 13;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::takes_no_arguments(include_str!("02_async_processing.rs"));
    print_panics_in_one_line();
    let broker = Broker::new();
    let uploads = upload::Uploads::new(&broker)?;
    let encoder = Arc::new(transcoding::Encoder::default());
    let completion = Arc::new(completion::Completion::default());
    let notifications = Arc::new(notification::Notifications::default());
    let (transcoding, crew) = transcoding::start(&broker, encoder.clone())?;
    thumbnails::start(&broker)?;
    moderation::start(&broker)?;
    completion::start(&broker, completion.clone())?;
    notification::start(&broker, notifications.clone())?;

    println!("1. {VIDEOS_UPLOADED} videos are uploaded. Transcoding one takes {:?}.", transcoding::TIME_PER_VIDEO);
    let mut uploaded_at = Vec::new();
    let mut answers = Vec::new();
    for video in 1..=VIDEOS_UPLOADED {
        let start = Instant::now();
        uploads.accept(video, if video == BROKEN { "odd" } else { "usual" })?;
        answers.push(start.elapsed());
        uploaded_at.push(start);
    }
    let answer = median(&mut answers);
    println!("   answered in {answer:.1?} typically, in {:.1?} at worst", answers.iter().max().unwrap());

    println!("\n2. {} videos wait for transcoding. The number of workers changes while they run.", transcoding.len());
    println!("   {:>7} {:>10} {:>8} {:>12} {:>12}", "workers", "transcoded", "in", "per second", "still wait");
    let alone = measure(&transcoding, 1, 40);
    crew.scale_to(8)?;
    let crowd = measure(&transcoding, 8, 480);
    crew.scale_to(2)?;
    let pair = measure(&transcoding, 2, 60);
    assert!(!transcoding.is_empty(), "all of that happened while there was a backlog");
    assert!(crowd > 2.0 * alone, "8 workers are faster than 1");
    assert!(pair < crowd, "2 workers are slower than 8");
    crew.scale_to(16)?;

    assert!(broker.wait_idle(PATIENCE), "the stages did not finish in time");
    let mut times: Vec<Duration> = (notifications.told.lock().unwrap().iter())
        .map(|&(video, at)| at.duration_since(uploaded_at[video as usize - 1]))
        .collect();
    let told = times.len() as u64;
    let all_done = median(&mut times);
    println!("\n3. {told} users were told that their video is ready, typically {all_done:.1?} after the upload.");
    assert_eq!(told, VIDEOS_UPLOADED - 1);
    assert!(answer < transcoding::TIME_PER_VIDEO / 10 && answer < all_done / 10);

    println!("   Video {BROKEN} is missing: its transcoding panicked. The others did not notice.");
    let letters = transcoding.dead_letters();
    let letter = letters.peek().expect("the video that crashes the encoder");
    for attempt in letter.attempts() {
        println!("   attempt {}: {}", attempt.number, attempt.error);
    }
    assert_eq!((letters.len(), letter.video, letter.attempts().len()), (1, BROKEN, 3));
    drop(letter); // a letter that somebody looks at is not redriven
    let done = completion.incomplete.lock().unwrap()[&BROKEN].clone();
    println!("   done so far: {done:?}; nobody is told before all three are");
    assert_eq!(done.len(), 2);

    encoder.knows_odd_codec.store(true, Ordering::Relaxed);
    let redriven = letters.redrive().run()?;
    assert!(broker.wait_idle(PATIENCE), "the redriven video did not finish in time");
    println!("   encoder fixed, {} redriven: the user of video {BROKEN} is told as well", redriven.moved);
    let mut told: Vec<u64> = notifications.told.lock().unwrap().iter().map(|&(video, _)| video).collect();
    told.sort_unstable();
    assert!(told.into_iter().eq(1..=VIDEOS_UPLOADED), "every user is told exactly once");
    assert!(completion.incomplete.lock().unwrap().is_empty());

    assert!(broker.stats().queues.iter().all(|queue| queue.unaccounted() == 0));
    let report = broker.shutdown(PATIENCE);
    println!("   shut down: {report}");
    assert!(report.is_clean());
    Ok(())
}

/// Videos per second while the next `count` of them are transcoded.
fn measure(queue: &Queue<names::Uploaded>, workers: usize, count: u64) -> f64 {
    let (start, before) = (Instant::now(), queue.stats().acked);
    while queue.stats().acked < before + count {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (took, done) = (start.elapsed(), queue.stats().acked - before);
    let rate = done as f64 / took.as_secs_f64();
    println!("   {workers:>7} {done:>10} {:>8} {rate:>12.0} {:>12}", format!("{took:.0?}"), queue.len());
    rate
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A worker survives a panic, but the standard hook would fill the screen with it.
fn print_panics_in_one_line() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        match (thread.name(), panic.payload().downcast_ref::<String>()) {
            (Some(worker), Some(words)) if worker != "main" => eprintln!("   [{worker}] panicked: {words}"),
            _ => standard(panic),
        }
    }));
}
