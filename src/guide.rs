//! The guarantees one by one, and how to build on them.
//!
//! The first part has a section for each guarantee: what holds, where it ends, and a program that shows
//! it. The second part is advice. Every program on this page runs as a test. Most use
//! [`Broker::simulated`], which runs handlers on the calling thread in virtual time; with [`Broker::new`]
//! the same code runs on threads.
//!
//! # At least once
//!
//! A message that a queue accepted belongs to the library until it is settled. A handler that returns an
//! error or panics, and a [`Delivery`] dropped unsettled, count as a failed attempt: the message is
//! delivered again with [`Message::attempt`] raised, or becomes a dead letter after the last one. A panic
//! never ends a worker.
//!
//! ```
//! use postroom::{Broker, Failure, Message, Queue};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let mail: Queue<&str> = broker.queue("mail").declare()?;
//! mail.consumer().start(|mail: &Message<&str>| match mail.attempt() {
//!     1 => panic!("a bug"),
//!     2 => Err(Failure::transient("the server is down")),
//!     _ => Ok(()),
//! })?;
//!
//! mail.send("hello").unwrap();
//! simulation.advance(Duration::from_secs(1));
//! let stats = mail.stats();
//! assert_eq!((stats.delivered, stats.panicked, stats.acked), (3, 1, 1));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Where it ends: with the process (see [What is lost when the process
//! dies](#what-is-lost-when-the-process-dies)), with an overflow policy that drops, with
//! [`Queue::purge`], with a timer that is cancelled, with [`Expired::Drop`], and with a handler that says
//! [`Outcome::Discard`]. Each of these is a choice, and each is counted. "At least" once means that a handler can see a message twice: see [Idempotent
//! consumers](#idempotent-consumers).
//!
//! # Settle once
//!
//! Settling consumes the delivery, so a second settlement does not compile. There are six ways:
//!
//! | a receiver calls | a handler returns | what becomes of the message |
//! |---|---|---|
//! | [`ack`](crate::Delivery::ack) | `()`, `Ok(())`, a [`Receipt`](crate::Receipt) in `Ok`, [`Outcome::Ack`] | done, gone |
//! | [`retry`](crate::Delivery::retry) | any error, [`Outcome::Retry`] | again after the queue's back-off |
//! | [`retry_after`](crate::Delivery::retry_after) | [`Outcome::RetryAfter`] | again after that delay |
//! | [`requeue`](crate::Delivery::requeue) | | again, behind all that are ready; no failure counted |
//! | [`dead_letter`](crate::Delivery::dead_letter) | an error marked [`permanent`](crate::Classify::permanent), [`Outcome::DeadLetter`] | a dead letter now |
//! | [`discard`](crate::Delivery::discard) | [`Outcome::Discard`] | dropped and counted |
//!
//! ```
//! use postroom::{Broker, Queue};
//!
//! let jobs: Queue<u32> = Broker::new().queue("jobs").declare()?;
//! jobs.send(7).unwrap();
//! jobs.recv().unwrap().requeue().unwrap();
//!
//! let again = jobs.recv().unwrap();
//! assert_eq!((again.attempt(), again.redelivered()), (1, true));
//! again.ack().unwrap();
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! ```compile_fail,E0382
//! # fn twice(delivery: postroom::Delivery<u32>) {
//! delivery.ack().unwrap();
//! delivery.discard().unwrap(); // use of moved value
//! # }
//! ```
//!
//! Settling can come too late: once [`Broker::shutdown`] has reported a message as left, every way to
//! settle it answers [`SettleError::ShutDown`], and the message is back in its queue. Under an [ack
//! timeout](#ack-timeout) the answer may be [`SettleError::Late`].
//!
//! # All or none
//!
//! One publish reaches every queue it matches or, if one of them cannot take it, none; the error holds the
//! message. A queue reached by several bindings, or through several topics, gets one copy. The copies
//! share the payload; it is never cloned.
//!
//! ```
//! use postroom::{Broker, Overflow, PublishError, Queue, Topic};
//!
//! let broker = Broker::new();
//! let orders: Topic<String> = broker.topic("orders").declare()?;
//! let billing: Queue<String> = broker.queue("billing").declare()?;
//! let stock: Queue<String> = broker.queue("stock").capacity(1).overflow(Overflow::Reject).declare()?;
//! orders.bind(&billing, "order.*")?;
//! orders.bind(&billing, "#")?;
//! orders.bind(&stock, "order.*")?;
//!
//! assert_eq!(orders.publish("order.placed", "first".to_string()).unwrap().routed(), 2);
//! let refused = orders.publish("order.placed", "second".to_string()).unwrap_err();
//! assert!(matches!(refused, PublishError::Full(_)));
//! assert_eq!(refused.by(), "stock");
//! assert_eq!(refused.into_message().payload(), "second");
//! assert_eq!((billing.len(), stock.len()), (1, 1));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! A publish that waits for one full queue holds nothing in the others meanwhile. In
//! [`Topic::publish_batch`] the promise is made for each message, not for the batch.
//!
//! # Bounded
//!
//! Every queue has a capacity in messages, 10,000 unless told otherwise. A message takes room when it is
//! accepted and gives it up when it is first handed out; so a redelivery needs none and can neither block
//! nor get lost. A full queue does what its [`Overflow`] policy says:
//!
//! | policy | `publish`, `send` | `try_publish`, `try_send` |
//! |---|---|---|
//! | [`Wait`](crate::Overflow::Wait), the default | block until there is room | give the message back |
//! | [`Reject`](crate::Overflow::Reject) | give the message back | the same |
//! | [`DropOldest`](crate::Overflow::DropOldest) | the oldest ready message goes | the same |
//! | [`DropNewest`](crate::Overflow::DropNewest) | the new message goes | the same |
//! | [`DeadLetter`](crate::Overflow::DeadLetter) | the new message becomes a dead letter | the same |
//!
//! ```
//! use postroom::{Broker, Overflow, Queue};
//!
//! let positions: Queue<u32> =
//!     Broker::new().queue("positions").capacity(3).overflow(Overflow::DropOldest).declare()?;
//! for position in 1..=5 {
//!     positions.send(position).unwrap();
//! }
//! let kept: Vec<u32> = positions.list(10).iter().map(|message| *message.payload()).collect();
//! assert_eq!(kept, [3, 4, 5]);
//! assert_eq!(positions.stats().dropped, 2);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Eviction by `DropOldest` looks only at ready messages that were never handed out; with
//! [priorities](#priorities), at those of the lowest level that has any. Redeliveries take up no room, so
//! throwing them away would make none, and delayed messages are left alone. If the queue is full of nothing
//! but what is delayed or promised, the new message is the one that goes.
//!
//! A message that is [delayed](#delay) takes room from its publish on. What capacity does not bound: messages
//! in flight (limit them with [`max_in_flight`](crate::QueueBuilder::max_in_flight)) and messages waiting for a
//! retry. If a service is down, the latter pile up at the rate at which handlers fail, each for as long as its
//! retry schedule lasts, unless a [circuit breaker](#circuit-breakers) stops the handlers.
//!
//! # No self-deadlock
//!
//! Back-pressure can close a circle: the workers of `a` wait for room in `b`, those of `b` for room in `a`,
//! and nobody is left to make any. Before a worker blocks, it looks for such a circle; the one that would
//! close it gets [`PublishError::Deadlock`] with the message and the names, instead of hanging. Its handler
//! may do something else, or return the error: then its own message is retried later, and the worker goes on.
//!
//! ```
//! use postroom::{Broker, Message, PublishError, Queue, Topic};
//! use std::time::Duration;
//!
//! let broker = Broker::new(); // on threads
//! let tasks: Topic<u32> = broker.topic("tasks").declare()?;
//! let queue: Queue<u32> = broker.queue("tasks").capacity(1).declare()?;
//! tasks.bind(&queue, "#")?;
//!
//! let (told, hear) = std::sync::mpsc::channel();
//! let next = tasks.clone();
//! queue.consumer().start(move |n: &Message<u32>| {
//!     if **n > 0 {
//!         return Ok(());
//!     }
//!     // Two follow-up tasks and room for one: only this worker could make room for the other.
//!     next.publish("task", 1)?;
//!     next.publish("task", 2).map(drop).inspect_err(|refused| told.send(refused.to_string()).unwrap())
//! })?;
//!
//! tasks.publish("task", 0)?;
//! let words = hear.recv_timeout(Duration::from_secs(5)).expect("it does not hang");
//! assert!(words.ends_with("only its own circle drains it: tasks -> tasks"), "{words}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every blocking form is checked, those with a timeout as well, and so is a worker that is waiting already
//! when another one leaves on whom it counted. What the check cannot see, it takes for a way out, so that it
//! never reports a wait which would have ended:
//!
//! * a queue from which somebody has received by hand, with `recv` or one of its kin, or which has no consumer:
//!   whoever receives may come back;
//! * a queue with a paused consumer, which may be resumed;
//! * threads of your own: only workers are looked at, and a thread that a handler starts is not one;
//! * waits for anything but room: a mutex, a reply, a message of another queue.
//!
//! For these there is [`Event::WorkerBlocked`], told when a worker has waited for room, or for a
//! [subscriber](#broadcast), for a second
//! ([`Builder::blocked_warning`](crate::Builder::blocked_warning)). In a simulation a blocking call reports
//! any standstill of the whole.
//!
//! # Backoff costs no worker
//!
//! A message that waits for its retry sits in a heap of delayed messages. Its worker takes the next
//! message, and its room in the queue is free for others.
//!
//! ```
//! use postroom::{Broker, Failure, Message, Queue, Retry};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let jobs: Queue<u32> = broker.queue("jobs").retry(Retry::fixed(Duration::from_secs(3600))).declare()?;
//! jobs.consumer().workers(1).start(|job: &Message<u32>| {
//!     if job.payload() == &0 && job.attempt() == 1 { Err(Failure::transient("busy")) } else { Ok(()) }
//! })?;
//!
//! jobs.send_batch(0..100).unwrap();
//! simulation.run_until_idle(); // no time passes
//! assert_eq!((jobs.stats().acked, jobs.delayed()), (99, 1));
//! simulation.advance(Duration::from_secs(3600));
//! assert_eq!(jobs.stats().acked, 100);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! A retry is never early. With threads it can be late: by the wake-up of the scheduler thread, and by as
//! long as all workers are busy. [`Retry`] has the policies; [`Retry::schedule`] prints one before you
//! trust it.
//!
//! # Delay
//!
//! A message may say when it is to be delivered: after any [duration](crate::Message::with_delay), of which
//! [`DelayLevel`] names the classic ones, or [at a time](crate::Message::with_delivery_at) of the wall clock. A
//! time that is past means now. It is never early; equal times keep the order in which they were sent. A
//! [`Timer`], or a name for one, cancels it.
//!
//! ```
//! use postroom::{Broker, DelayLevel, Message, Queue};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let unpaid: Queue<u32> = broker.queue("unpaid").declare()?;
//! for order in [41, 42] {
//!     let message = Message::new(order).with_delay(DelayLevel::M30).with_timer(format!("unpaid-{order}"));
//!     unpaid.send(message).unwrap();
//! }
//! let at = simulation.now() + Duration::from_secs(60);
//! unpaid.send(Message::new(43).with_delivery_at(at)).unwrap();
//! assert_eq!(unpaid.list_delayed(1)[0].0, at);
//!
//! assert!(broker.cancel_timer("unpaid-42")); // paid
//! simulation.advance(DelayLevel::M30.duration());
//! let due: Vec<u32> = unpaid.list(9).iter().map(|order| **order).collect();
//! assert_eq!((due, unpaid.stats().cancelled), (vec![43, 41], 1));
//! assert!(!broker.cancel_timer("unpaid-41")); // too late: it is delivered
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * **Cancelling and firing exclude each other.** `true` means that no queue delivers the message, `false`
//!   that each one does which took it, or that there was none. Publishing again with the same timer replaces
//!   what is pending. A name is forgotten once its timer has fired or was cancelled.
//! * **Subscribers** get it when it is due, too; see [Broadcast](#broadcast).
//! * **Capacity.** A delayed message is accepted and routed at once and takes room while it waits: a queue has
//!   to hold all that is pending. When it is due it becomes ready behind what is ready then.
//! * **The wall clock.** A time is turned into a delay when the message is published, by the system's clock as
//!   it stands then. Setting that clock later moves no delivery. With a [`ManualClock`] and in simulations,
//!   the broker's own time counts.
//! * **Shutdown** waits for what is due within its timeout; the rest is reported as delayed, and
//!   [`Queue::drain`] takes it out.
//! * **Death of the process** loses delayed messages as it does all others, and they are exposed to it for
//!   longer. Keep the deadline in your database too, and publish again what is open when you start.
//!
//! # Schedules
//!
//! A [schedule](crate::Broker::schedule) publishes, or sends, what a function returns: at an interval, or with
//! the feature `cron` at the times of a cron expression in a time zone. Its name makes it idempotent: scheduling
//! the same again finds the one that exists.
//!
//! ```
//! # #[cfg(feature = "cron")]
//! # {
//! use postroom::{Broker, ManualClock, Missed, Queue};
//! use std::time::Duration;
//!
//! // The clock stands at midnight in Greenwich, on New Year's Day of 2025.
//! let (broker, simulation) = Broker::builder().clock(ManualClock::new()).build_simulated()?;
//! let jobs: Queue<&str> = broker.queue("jobs").declare()?;
//! broker.schedule("report").cron("0 3 * * *", "Europe/Berlin").send(&jobs, || "report")?;
//! let hourly = broker.schedule("sweep").every(Duration::from_secs(3600)).missed(Missed::Skip);
//! let hourly = hourly.send(&jobs, || "sweep")?;
//!
//! simulation.advance(Duration::from_secs(24 * 3600));
//! assert_eq!((hourly.fired(), jobs.len()), (24, 25));
//! # }
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * **Missed firings**, of a process that was suspended or held up, are made up for by [one](crate::Missed::Once)
//!   unless you ask for [none](crate::Missed::Skip) or [all](crate::Missed::All). Less than a minute late is on
//!   time. While the process does not run, nothing is missed: a schedule lives and ends with its broker. One that is
//!   `ScheduleBuilder::durable` (feature `sqlite`) notes in the broker's file when it fires next, and a later run makes
//!   up for what was missed meanwhile.
//! * **Daylight saving.** An expression with one time of day fires once on every day it names: at the end of the
//!   gap if the clock jumps over that time, at the first occurrence if it comes twice. An expression with several
//!   goes by the clock on the wall: what is jumped over does not happen, and what comes twice fires twice.
//! * **Never waiting.** The function runs on the scheduler's thread, so keep it short. A firing that finds its
//!   queue full, over its admission limit or closed has failed: it is counted, and
//!   [`ScheduleInfo::last_error`](crate::ScheduleInfo::last_error) says why. Nor does that thread wait for the commit
//!   of a durable queue, unless the topic has subscribers or logs, filters, or a limit; the firing counts once it is
//!   committed.
//! * **The clock** is the broker's: the wall clock when it was built, and the monotonic clock from there.
//!
//! # Expiry
//!
//! [`ttl`](crate::QueueBuilder::ttl) bounds how long messages of a queue may wait to be handled, and
//! [`with_ttl`](crate::Message::with_ttl) how long one may; the shorter counts. An expired message is never
//! delivered. It leaves the queue wherever it stands, not only at the head, and becomes a dead letter, or with
//! [`Expired::Drop`] a number in the statistics.
//!
//! ```
//! use postroom::{Broker, Expired, Message, Queue, Reason};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let minute = Duration::from_secs(60);
//! let offers: Queue<&str> = broker.queue("offers").ttl(10 * minute).declare()?;
//! offers.send("ten minutes").unwrap();
//! offers.send(Message::new("one minute").with_ttl(minute)).unwrap();
//! offers.send(Message::new("eleven").with_delay(minute)).unwrap(); // counts from the end of its delay
//!
//! simulation.advance(minute); // the second one, behind the first
//! assert_eq!(*offers.dead_letters().peek().unwrap().reason(), Reason::Expired);
//! simulation.advance(9 * minute);
//! assert_eq!((offers.len(), offers.dead_letters().len()), (1, 2));
//!
//! let prices: Queue<u32> = broker.queue("prices").ttl(minute).expired(Expired::Drop).declare()?;
//! prices.send(7).unwrap();
//! simulation.advance(minute);
//! assert_eq!((prices.stats().expired, prices.stats().dead_lettered), (1, 0));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! A redelivery does not start the time again, so a message may expire while it waits for its retry; what is
//! in flight is left alone. A redriven dead letter starts the queue's time again and is rid of its own. In a very long queue a message that has expired may stand for a moment longer,
//! and takes up room until it is found; it is not delivered all the same.
//!
//! # Priorities
//!
//! A queue with [`priority_levels`](crate::QueueBuilder::priority_levels) hands out the highest
//! [priority](crate::Message::with_priority) first; 0 is the lowest, and what is above the highest level counts as
//! that. Within a level it is first in, first out; a redelivery leads its own level, no other.
//!
//! ```
//! use postroom::{Broker, Message, Queue};
//!
//! let broker = Broker::new();
//! let jobs: Queue<&str> = broker.queue("jobs").priority_levels(2).low_priority_share(0.25).declare()?;
//! for n in 0..6 {
//!     jobs.send(["report 1", "report 2", "report 3", "report 4", "report 5", "report 6"][n]).unwrap();
//!     jobs.send(Message::new("order").with_priority(1)).unwrap();
//! }
//! let first: Vec<&str> = jobs.iter().take(8).map(|job| **job).collect();
//! assert_eq!(first[..4], ["order", "order", "order", "report 1"]); // every fourth goes to the lowest
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Order by priority is strict, so as long as there are higher messages, lower ones wait: give them a
//! [share](crate::QueueBuilder::low_priority_share), or a queue and workers of their own. When such a queue is
//! full, [`DropOldest`](crate::Overflow::DropOldest) throws away the oldest of the lowest level, and a new message that is lower than
//! all that wait is itself the one.
//!
//! # Ack timeout
//!
//! A handler that hangs keeps its message for ever, unless the queue has an
//! [`ack_timeout`](crate::QueueBuilder::ack_timeout): then a delivery that is not settled in time counts as a
//! failed attempt, and the message is delivered again, or given up on. Who needs longer says so in time, with
//! [`Message::extend_ack`](crate::Message::extend_ack).
//!
//! ```
//! use postroom::{Broker, Queue, Retry, SettleError};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let second = Duration::from_secs(1);
//! let jobs: Queue<u32> = broker.queue("jobs").ack_timeout(10 * second).retry(Retry::immediate(3)).declare()?;
//! jobs.send(7).unwrap();
//!
//! let slow = jobs.recv().unwrap();
//! simulation.advance(9 * second);
//! slow.extend_ack(5 * second).unwrap();
//! simulation.advance(5 * second);
//! let again = jobs.recv().unwrap();
//! assert_eq!((again.attempt(), jobs.stats().timed_out), (2, 1));
//! assert!(matches!(slow.ack(), Err(SettleError::Late { .. })));
//! again.ack().unwrap();
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Nobody can stop the slow handler: it runs on beside the new one, and what it answers then is counted as
//! `settled_late`, told by [`Event::SettledLate`], and has no effect. So choose a time that only what hangs
//! exceeds, and make handlers [idempotent](#idempotent-consumers).
//!
//! # Rate limits and admission
//!
//! Two limits, at the two ends of a queue:
//!
//! | | [`rate_limit`](crate::QueueBuilder::rate_limit) | [`admission`](crate::QueueBuilder::admission) |
//! |---|---|---|
//! | limits | what is handed out, redeliveries included, over all consumers | what is let in; also of a [topic](crate::TopicBuilder::admission) |
//! | above it | messages wait in the queue | they are given back at once, by every form of sending |
//! | protects | what the handlers call | the queue, and the producers' time |
//!
//! ```
//! use postroom::{Broker, Message, PublishError, Queue, Rate, Topic};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let gate: Topic<u32> = broker.topic("gate").admission(Rate::per_second(10).burst(2)).declare()?;
//! let orders: Queue<u32> = broker.queue("orders").rate_limit(Rate::per_second(5)).declare()?;
//! gate.bind(&orders, "#")?;
//! orders.consumer().workers(8).start(|_: &Message<u32>| ())?;
//!
//! gate.publish("order", 1).unwrap();
//! gate.publish("order", 2).unwrap();
//! let Err(PublishError::Limited(refused)) = gate.publish("order", 3) else { panic!("the burst is used up") };
//! assert_eq!(refused.retry_in(), Some(Duration::from_millis(100))); // an honest "come again"
//!
//! simulation.advance(refused.retry_in().unwrap());
//! gate.publish("order", refused.into_message()).unwrap();
//! assert_eq!(orders.stats().acked, 1); // five a second
//! simulation.advance(Duration::from_millis(300));
//! assert_eq!(orders.stats().acked, 3);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * A limit is a ceiling, not a pace: in any time `t`, at most the burst and what the rate allows in `t` pass.
//!   With a burst of 1 and threads, every wake-up that comes late lowers the average a little.
//! * A quiet time saves up one [burst](crate::Rate::burst) and no more.
//! * [`rate_limit_per_key`](crate::QueueBuilder::rate_limit_per_key) limits each ordering key by itself. A message
//!   that has to wait steps aside, still taking room, and those of other keys flow past.
//! * A topic's limit holds for what is published to that topic, not for what reaches it through another.
//! * All of them can be changed while the queue runs: [`Queue::set_rate_limit`](crate::Queue::set_rate_limit),
//!   [`Queue::set_admission`](crate::Queue::set_admission), [`Topic::set_admission`](crate::Topic::set_admission).
//! * [`Queue::estimated_wait`](crate::Queue::estimated_wait) says how long a message sent now would wait.
//!
//! # Order
//!
//! A queue is first in, first out. With one worker, messages are handled in the order in which they were
//! accepted, each producer's in its own order. What changes that: more workers, a failure (the message comes
//! back after its delay, ahead of fresh ones), [`Delivery::requeue`] (the message goes to the end), a
//! [delay](#delay), [priorities](#priorities), and a rate limit per key.
//!
//! Where that matters, a queue is [ordered by a key](crate::QueueBuilder::ordered_by): messages of one key are
//! handed out one at a time and in the order they were accepted, whatever the number of workers and through
//! failures, retries and panics; a key that waits holds up no other. Keys take turns: one of which thousands
//! wait gets at most every thousandth turn or so while as many others have something. What happens after the
//! last attempt, [`on_exhausted`](crate::QueueBuilder::on_exhausted) says.
//! [`one_at_a_time`](crate::QueueBuilder::one_at_a_time) is the same with one key for all.
//!
//! ```
//! use postroom::{Broker, Exhausted, Queue, Retry};
//!
//! let broker = Broker::new();
//! let steps: Queue<(u32, &str)> = broker
//!     .queue("steps")
//!     .ordered_by(|(order, _): &(u32, &str)| *order)
//!     .retry(Retry::none())
//!     .on_exhausted(Exhausted::Park)
//!     .declare()?;
//! for step in [(7, "paid"), (7, "shipped"), (8, "paid")] {
//!     steps.send(step).unwrap();
//! }
//! steps.recv().unwrap().retry().unwrap(); // fails for good: order 7 is parked
//! assert_eq!(**steps.recv().unwrap(), (8, "paid"));
//! assert_eq!((steps.parked()[0].key.as_str(), steps.parked()[0].waiting), ("7", 2));
//! assert!(steps.release_key("7")); // repaired: it goes on from where it failed
//! assert_eq!(**steps.recv().unwrap(), (7, "paid"));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! It costs two to three times what a plain queue does: each message is sorted into the lane of its key.
//!
//! # Broadcast
//!
//! A [subscriber](crate::Topic::subscribe) sees every message that is published to its topic after it
//! subscribed, whatever the routing key, and none twice. It [receives](crate::Subscriber) by hand or has a
//! [handler](crate::SubscriberBuilder::start) called. All subscribers share one message; nothing is cloned. One
//! that falls behind by more than its capacity, 1,024 messages unless told otherwise, lags, and its [`Lag`]
//! says what happens; it is never silent:
//!
//! | policy | the publisher | the subscriber |
//! |---|---|---|
//! | [`DropOldest`](crate::Lag::DropOldest), the default | does not notice | its next receive says [`Lagged(n)`](crate::BroadcastError::Lagged), then it goes on with the oldest message left |
//! | [`Block`](crate::Lag::Block) | waits for it, as for a full queue; `try_publish` gives the message back | misses nothing |
//! | [`Disconnect`](crate::Lag::Disconnect) | does not notice | is cut off, and told so |
//!
//! ```
//! use postroom::{Broker, BroadcastError, Lag, Message, PublishError, Topic};
//!
//! let broker = Broker::new();
//! let settings: Topic<u32> = broker.topic("settings").keep_latest_by_key().declare()?;
//! let cache = settings.subscribe().name("cache").capacity(2).open()?;
//! let audit = settings.subscribe().name("audit").capacity(3).lag(Lag::Block).open()?;
//! for limit in [10, 20, 30] {
//!     settings.publish("", Message::new(limit).with_key("limit")).unwrap();
//! }
//! assert_eq!(cache.recv().unwrap_err(), BroadcastError::Lagged(1));
//! assert_eq!(**cache.recv().unwrap(), 20);
//!
//! let Err(PublishError::Full(refused)) = settings.try_publish("", 40) else { panic!("audit is waited for") };
//! assert_eq!(refused.by(), "audit");
//!
//! let late = settings.subscribe().replay_latest_by_key().open()?; // starts with what holds now
//! assert_eq!(**late.recv().unwrap(), 30);
//! # drop(audit);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * **What it costs.** A publish writes once, into a ring that all subscribers of the topic read, each at its
//!   own place. Neither the writing nor the memory grows with their number. The ring has a lock, which a
//!   subscriber takes once for up to an eighth of its capacity, at most 128 messages. What it has taken ahead it
//!   cannot miss any more, and nobody waits for; so it may be behind by that much more than its capacity.
//! * **The past.** A topic remembers [the last n](crate::TopicBuilder::keep_last) messages, or [the latest of each
//!   key](crate::TopicBuilder::keep_latest_by_key), if it is declared so. A late subscriber starts with them
//!   ([`replay_last`](crate::SubscriberBuilder::replay_last),
//!   [`replay_latest_by_key`](crate::SubscriberBuilder::replay_latest_by_key)) and goes on with what is published
//!   from then on, without a gap and without a message twice.
//! * **All or none** counts subscribers that are waited for as well: a publish that one of them has no room for
//!   reaches no queue either. Such a wait closes circles as one for a queue does: a handler whose publish could
//!   only be taken by itself gets [`PublishError::Deadlock`].
//! * **Nothing is settled.** A handler that panics is [told of](crate::Event::HandlerPanicked), and the next
//!   message follows. What must be retried belongs in a queue; bind one beside the subscribers.
//! * **A delayed message** reaches, when it is due, whoever has subscribed by then; its [`Timer`] cancels it for
//!   queues and subscribers alike. It takes no subscriber's room before, and if there is none when it is due, it
//!   waits for some. **One that has outlived its time to live** is left out, and counted in
//!   [`TopicStats::expired`](crate::TopicStats::expired). Priorities mean nothing here.
//! * **Shutdown** lets handlers finish. Who receives by hand gets what is left, and then
//!   [`Closed`](crate::BroadcastError::Closed).
//!
//! # Request and reply
//!
//! A module that needs an answer publishes a [request](crate::Topic::request) and waits; the other side returns
//! the reply from a handler started with [`respond`](crate::ConsumerBuilder::respond), or gives it with
//! [`Message::reply`](crate::Message::reply), now or later, on any thread. A request is an ordinary message: it
//! is routed, retried and limited like any other, and the replier need not know who asks.
//!
//! ```
//! use postroom::{Broker, Failure, Message, Queue, RequestError, Retry, Topic};
//! use std::time::Duration;
//!
//! let (broker, _simulation) = Broker::simulated(1);
//! let tickets: Topic<u32> = broker.topic("tickets").declare()?;
//! let desk: Queue<u32> = broker.queue("desk").retry(Retry::immediate(2)).declare()?;
//! tickets.bind(&desk, "ticket.*")?;
//! desk.consumer().respond(|seat: &Message<u32>| match **seat {
//!     0 => Err(Failure::permanent("no such seat")),
//!     seat => Ok(format!("ticket for seat {seat}")),
//! })?;
//!
//! let minute = Duration::from_secs(60);
//! assert_eq!(tickets.request::<String>("ticket.buy", 7, minute).unwrap(), "ticket for seat 7");
//! let failed = tickets.request::<String>("ticket.buy", 0, minute).unwrap_err();
//! assert_eq!(failed.to_string(), "queue \"desk\" gave up on the request (permanent failure): no such seat");
//! let lost = tickets.request::<String>("prize.pay", 7, minute).unwrap_err();
//! assert!(matches!(lost, RequestError::Publish(_))); // nobody got it; it is inside
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * **The requester hears as soon as it is certain** that nobody will reply, without waiting for its timeout:
//!   the message became a dead letter or was parked, expired, was purged or left at shutdown, was acked without a
//!   reply. [`RequestError`](crate::RequestError) says which. While attempts are left, it waits for the next.
//! * **A timeout is no cancellation.** The message may be handled afterwards; its reply then counts in
//!   [`Stats::late_replies`](crate::Stats::late_replies). A request that is safe to repeat is worth some effort.
//! * **Several queues** may get a request; the first reply counts, and a failure is told only when all of them
//!   have given up. Subscribers and logs see it and cannot reply.
//! * **A key that is held back** ([`Exhausted::Park`](crate::Exhausted::Park)): the request that failed is
//!   answered at once, though its message may be handled later; those behind it wait until the key is released, or
//!   for their timeout.
//! * **A worker may ask.** It is busy meanwhile, and its queue has one worker less. If only its own circle could
//!   reply, it is told so ([`RequestError::Deadlock`](crate::RequestError::Deadlock)) instead of hanging.
//!
//! # Dead letters keep everything
//!
//! A queue gives up on a message when its attempts are used up, when a failure is permanent, when its
//! consumer says so, when it expires, or when the queue overflows with [`Overflow::DeadLetter`]. The [`DeadLetter`] holds
//! the message as it was published, the [`Reason`], and the time and error of every failed attempt (of
//! more than 64, the first 32 and the latest 32).
//!
//! Dead letters go to a queue named `<queue>.dead`, or to the one given with
//! [`dead_letter_to`](crate::QueueBuilder::dead_letter_to). It is an ordinary queue: list it, consume it, purge
//! it, or [redrive](crate::Queue::redrive) it, with attempts starting again and the history kept.
//!
//! ```
//! use postroom::{Broker, Classify, Failure, Message, Queue, Rate, Reason};
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let ages: Queue<String> = broker.queue("ages").declare()?;
//! ages.consumer().start(|age: &Message<String>| -> Result<(), Failure> {
//!     age.parse::<u32>().permanent()?; // a bad number stays bad
//!     Ok(())
//! })?;
//! for age in ["41", "4z"] {
//!     ages.send(Message::new(age.to_string()).with_header("tenant", "acme")).unwrap();
//! }
//! simulation.run_until_idle();
//!
//! let dead = ages.dead_letters();
//! let letter = dead.peek().unwrap();
//! assert_eq!((letter.reason(), letter.message().header("tenant")), (&Reason::Permanent, Some("acme")));
//! assert_eq!(letter.error(), Some("invalid digit found in string"));
//! drop(letter); // a letter that somebody holds is not redriven
//!
//! let repaired = dead.redrive()
//!     .filter(|letter| *letter.reason() == Reason::Permanent)
//!     .edit(|letter| letter.replace('z', "2"))
//!     .rate(Rate::per_second(50))
//!     .run()?;
//! assert_eq!(repaired.moved, 1);
//! simulation.run_until_idle();
//! assert_eq!((ages.stats().acked, dead.len()), (2, 0));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! A dead-letter queue gives up on nothing: a letter whose handler fails comes back until it is settled.
//! If it is full, the message that should go there is kept, takes up room in its own queue, and is tried
//! again every second; [`Event::DeadLettersFull`] tells the owner.
//!
//! # Replay
//!
//! A queue forgets a message once it is settled. A [`Log`] keeps what is appended for as long as its
//! [`Retention`] says (so many records, so many bytes, so long, or everything), and any number of
//! [groups](crate::Group) read it, each all of it and at its own pace. A topic can be [bound](crate::Topic::bind) to
//! a log as to a queue. Readers share the log's memory, nothing is copied.
//!
//! A log has partitions. Messages with the same key (their own, or one that a
//! [function](crate::LogBuilder::keyed_by) names) go to the same one, where each record has an offset that
//! never changes. The members of a group, which are workers or [`Reader`](crate::Reader)s by hand, share the
//! partitions: one member reads a partition at a time, so its order is kept, and they may come and go.
//!
//! How far a group has come is committed after the handler has succeeded, or by hand; it goes back only when
//! told to.
//!
//! ```
//! use postroom::{Broker, Log, LogError, Message, Record, Retention, Start};
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let lines: Log<&str> = broker.log("lines").partitions(2).retain(Retention::count(1_000)).declare()?;
//! for line in ["started", "ready", "stopped"] {
//!     lines.append(Message::new(line).with_key("web-1")).unwrap();
//! }
//!
//! let indexer = lines.group("indexer").start(Start::Earliest)?;
//! indexer.consumer().workers(2).start(|line: &Record<&str>| assert_eq!(line.key(), Some("web-1")))?;
//! simulation.run_until_idle();
//! assert_eq!((indexer.lag(), indexer.stats().delivered), (0, 3));
//!
//! indexer.rewind(Start::Earliest)?; // everything once more
//! simulation.run_until_idle();
//! assert_eq!(indexer.stats().delivered, 6);
//!
//! // A group that comes late reads it all, here by hand.
//! let archive = lines.group("archive").start(Start::Earliest)?;
//! let mut reader = archive.reader();
//! let first = reader.recv()?;
//! archive.commit(first.partition(), first.offset())?;
//! assert_eq!((*first.payload(), archive.lag()), ("started", 2));
//!
//! // Old offsets are trimmed, and whoever asks for one is told which is the oldest.
//! lines.append_batch((0..5_000).map(|_| Message::new("busy").with_key("web-1"))).unwrap();
//! assert!(matches!(reader.recv(), Err(LogError::Trimmed { asked: 1, oldest: 3_000.., .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A group begins at the earliest record, the latest, an offset or a time ([`Start`]), and is given records as
//! fast as it takes them or [at the pace](crate::Replay::original_pace) at which they were published. A record that
//! fails is tried again by the group's retry policy while its partition waits and the others flow; after the last
//! attempt it is a dead letter, and the partition goes on. If the dead-letter queue is full, the partition waits
//! for room there, and whoever reads it next, worker or reader, tries again.
//!
//! With [`compact`](crate::LogBuilder::compact), a log keeps the latest record of each key, so that a late
//! group gets the state of things instead of their history; a [tombstone](crate::LogBuilder::tombstone) says
//! that a key is no more, and goes once every group has read it. A group that nobody needs any more holds
//! tombstones back until it is [removed](crate::Log::remove_group).
//!
//! Where it ends: retention waits for no group. Workers that are too slow go on at the oldest record, which
//! [`skipped`](crate::GroupStats::skipped) counts and [`Event::LogTrimmed`] tells. By hand, nothing happens to a
//! record that is not committed until its reader is dropped: then it comes again. A [`Record`](crate::Record)
//! that is kept, and a dead letter, keep their segment of the log in memory (up to 1,024 records, or a quarter
//! of what is retained). A log lives in memory, as queues do, unless it is [durable](#durable-queues): then memory has
//! its latest records and what groups further behind are reading.
//!
//! # Transactions
//!
//! [`Broker::transaction`](crate::Broker::transaction) publishes several messages, to any mix of topics, queues and
//! logs, all together or not at all. An error or a panic inside rolls back. Nothing is routed, promised or visible
//! before the function has returned; then everything it reaches promises a place, and only then is anything put in.
//!
//! ```
//! use postroom::{Broker, Obstacle, Queue, Topic, TransactionError};
//!
//! let broker = Broker::new();
//! let orders: Topic<u32> = broker.topic("orders").declare()?;
//! let billing: Queue<u32> = broker.queue("billing").declare()?;
//! let shipments: Queue<u32> = broker.queue("shipments").capacity(1).declare()?;
//! orders.bind(&billing, "#")?;
//! let place = |order: u32| {
//!     broker.try_transaction(|tx| {
//!         tx.publish(&orders, "order.placed", order)?;
//!         tx.send(&shipments, order)?;
//!         Ok(())
//!     })
//! };
//!
//! place(1)?;
//! let Err(TransactionError::Refused(refused)) = place(2) else { panic!("there is no room for a shipment") };
//! assert_eq!((refused.operation(), refused.by(), refused.why()), (1, "shipments", &Obstacle::Full));
//! assert_eq!((billing.len(), shipments.len()), (1, 1)); // nothing of the second
//!
//! shipments.recv()?.ack()?;
//! refused.into_transaction().commit()?; // it came back as it was staged
//! assert_eq!((billing.len(), shipments.len()), (2, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * **Nobody sees half of it.** The messages are put in under the locks of all the queues, partitions and subscribers
//!   they go to, held together and let go of when the last is in place: whoever sees one finds the others. What has
//!   a delay appears when that ends; what a full queue makes a dead letter comes right after the rest.
//! * **Waiting** is as for a publish: for room in queues whose policy that is, holding nothing meanwhile, so two
//!   transactions never wait for each other, whatever their order. A worker that would wait for itself gets
//!   [`Obstacle::Deadlock`](crate::Obstacle::Deadlock). All of a transaction's messages to one queue need room at the
//!   same moment: where others take every place that becomes free, a large one may wait for long.
//! * **Handlers** that publish: with [`start_transactional`](crate::ConsumerBuilder::start_transactional) a handler
//!   stages what it publishes, and that is released only if it succeeds. So a retry does not publish twice. The
//!   release comes before the ack; if it is refused, the handling has failed.
//!
//! ## Half messages
//!
//! When a row in a database and a message must both exist or neither, no transaction over messages helps. A half
//! message does: [prepare](crate::Topic::prepare) it, write the row, then [commit](crate::Half::commit) or
//! [roll back](crate::Half::rollback). If the producer vanishes between the two, a
//! [check-back](crate::TopicBuilder::check_back) looks into the database and decides.
//!
//! ```
//! use postroom::{Broker, CheckBack, DeadLetter, Message, Queue, Reason, Resolution, Topic};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let check = CheckBack::new(|order: &Message<u32>| match **order {
//!     1 => Resolution::Commit,   // the row is there
//!     2 => Resolution::Rollback, // it is not, and nobody is writing it
//!     _ => Resolution::Unknown,  // its transaction is still open
//! });
//! let orders: Topic<u32> = broker.topic("orders").check_back(check).declare()?;
//! let billing: Queue<u32> = broker.queue("billing").declare()?;
//! orders.bind(&billing, "#")?;
//!
//! for order in 1..=3 {
//!     drop(orders.prepare("order.placed", order)?); // the producer vanishes
//! }
//! simulation.advance(Duration::from_secs(6));
//! assert_eq!((billing.len(), orders.stats().halves.open), (1, 1));
//!
//! simulation.advance(Duration::from_secs(14 * 30)); // asked 15 times in all
//! let letters: Queue<DeadLetter<u32>> = broker.queue("orders.half.dead").find()?;
//! assert_eq!(*letters.peek().unwrap().reason(), Reason::Unresolved);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`publish_transactional`](crate::Topic::publish_transactional) runs the local transaction for you. Its error
//!   must mean that nothing was saved; where that is not sure, answer [`Resolution::Unknown`](crate::Resolution).
//! * **The times** are those of the [`CheckBack`](crate::CheckBack): first after 6 s, then every 30 s, 15 times, by
//!   default. They run from the preparation, whether or not the producer still holds its handle, so choose the first
//!   longer than a local transaction takes, and answer `Unknown` while one is open. The listener has a thread of its
//!   own per topic and may block; a slow one delays the check-backs of its topic, nothing else.
//! * **It settles once.** Whoever comes first, producer or check-back, decides; the other is told how. A commit that
//!   finds no room keeps the half message and gives the handle back; one that the check-back decided is tried again
//!   every second.
//! * **What is open** is counted ([`HalfStats`](crate::HalfStats)), bounded, listed, reported by shutdown, and can be
//!   [taken out](crate::Topic::drain_halves). It lives in memory, unless the check-back is
//!   `CheckBack::durable` (feature `sqlite`): otherwise, if the process dies, the row may be saved and its message gone.
//!   A durable one is in the broker's file when `prepare` returns, to publish it is one commit for it and the durable
//!   queues it reaches, and a later run asks on.
//! * **Unresolved** ones are dead letters; to redrive them is to publish them. Durable ones that cannot be decoded any
//!   more are dead letters of bytes in `<topic>.half.undecodable`; to redrive them is to ask about them again.
//!
//! # Effectively once
//!
//! Delivery is at least once; what makes the effect happen once is that a handler's success is remembered. A queue
//! that is [`idempotent`](crate::QueueBuilder::idempotent) claims a message's id before it hands the message out,
//! completes the claim when it is acked, and releases it on any failure. What comes again while the id is remembered
//! is acked without anybody seeing it.
//!
//! ```
//! use postroom::{Broker, Failure, Message, Queue, Window};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let window = Window::of(Duration::from_secs(3600)).max(50_000);
//! let payments: Queue<u64> = broker.queue("payments").idempotent(window).declare()?;
//! let balance = Arc::new(AtomicU64::new(0));
//! let account = balance.clone();
//! payments.consumer().workers(4).start(move |cents: &Message<u64>| {
//!     if cents.attempt() == 1 {
//!         return Err(Failure::transient("failed before its work was done"));
//!     }
//!     account.fetch_add(**cents, Ordering::SeqCst);
//!     Ok(())
//! })?;
//!
//! payments.send(Message::new(500).with_id(1)).unwrap();
//! payments.send(Message::new(500).with_id(1)).unwrap(); // the same payment, sent again
//! payments.send(Message::new(700).with_id(2)).unwrap();
//! simulation.advance(Duration::from_secs(60));
//! assert_eq!(balance.load(Ordering::SeqCst), 1200);
//! assert_eq!((payments.stats().acked, payments.stats().duplicates), (3, 1));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! * **A failure is no duplicate.** A second message that arrives while the first is in hand waits for what becomes of
//!   that; only if it is acked is the second a duplicate. A retry, a redriven dead letter, a delivery that an ack
//!   timeout has taken back are handled.
//! * **By what** messages are told apart: by their id, which they must bring along, or by a key of their payload
//!   ([`idempotent_by`](crate::QueueBuilder::idempotent_by)).
//! * **The window** is a time and a number, whichever is less. What is in hand is never forgotten. The memory is the
//!   process's: a restart forgets all of it, except what is in the broker's file: that of a [durable queue](#durable-queues), of a
//!   topic that refuses duplicates durably, and of `Broker::durable_idempotency`.
//! * **By hand**: [`Idempotency`](crate::Idempotency) has the same claims for consumers that receive by themselves, or
//!   for anything else that must not be done twice.
//! * **At the other end** a topic can [refuse](crate::TopicBuilder::refuse_duplicates) what was published before.
//! * **Where it ends**: a handler that did its work and failed afterwards is called again. Nobody but the store that
//!   holds the effect can prevent that; see [Idempotent consumers](#idempotent-consumers).
//!
//! # Shutdown loses nothing unreported
//!
//! [`Broker::shutdown`] refuses new publishes, lets consumers empty their queues (handlers may still
//! publish, so work in several steps comes to its end), joins every thread and reports what was left where.
//! What was left can be taken out, typed. The timeout bounds it all; a handler that does not return in time
//! is left behind and reported.
//!
//! ```
//! use postroom::{Broker, PublishError, Queue, Topic};
//! use std::time::Duration;
//!
//! let broker = Broker::new();
//! let orders: Topic<u32> = broker.topic("orders").declare()?;
//! let billing: Queue<u32> = broker.queue("billing").declare()?; // nobody consumes it
//! orders.bind(&billing, "#")?;
//! orders.publish("order.placed", 7).unwrap();
//!
//! let report = broker.shutdown(Duration::from_secs(1));
//! assert!(!report.is_clean());
//! assert_eq!((report.undelivered[0].queue.as_str(), report.undelivered[0].ready), ("billing", 1));
//! assert!(matches!(orders.publish("order.placed", 8), Err(PublishError::Closed(_))));
//!
//! let left: Vec<u32> = billing.drain().into_iter().map(|message| *message.payload()).collect();
//! assert_eq!(left, [7]);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Dead letters do not make a report unclean; they are listed in
//! [`dead_letters`](crate::ShutdownReport::dead_letters). Dropping the last clone of a broker is no substitute:
//! its workers finish what they have in hand, and what is queued is gone with the last handle to its queue.
//!
//! # Time is a parameter
//!
//! Whatever the library does by the clock, it does by the broker's clock, and whatever is random comes
//! from the broker's seed. With [`Broker::simulated`] a whole topology runs on the caller's thread: time
//! moves only when told to, and the same seed gives the same run.
//!
//! ```
//! use postroom::{Broker, Message, Queue};
//! use std::sync::{Arc, Mutex};
//!
//! fn run(seed: u64) -> Vec<u32> {
//!     let (broker, simulation) = Broker::simulated(seed);
//!     let log = Arc::new(Mutex::new(Vec::new()));
//!     for name in ["a", "b"] {
//!         let queue: Queue<u32> = broker.queue(name).declare().unwrap();
//!         let log = Arc::clone(&log);
//!         queue.consumer().start(move |n: &Message<u32>| log.lock().unwrap().push(**n)).unwrap();
//!         queue.send_batch(0..20).unwrap();
//!     }
//!     simulation.run_until_idle();
//!     log.lock().unwrap().clone()
//! }
//! assert_eq!(run(7), run(7));
//! assert_ne!(run(7), run(8)); // another interleaving of the two consumers
//! ```
//!
//! A [`ManualClock`] gives a broker with real threads a clock that tests move by hand.
//!
//! # Choosing capacity and overflow
//!
//! A queue absorbs bursts; it does not add throughput. If messages arrive faster than they are handled for
//! good, every capacity fills up, and a larger one only makes the oldest message older. So choose:
//!
//! * **Capacity** from the delay you accept: handled per second, times the seconds a message may wait. A
//!   queue handled at 500 a second whose messages may be 2 s old needs 1,000. Check that capacity times
//!   the payload's size fits in memory.
//! * **`Wait`** where the producer can slow down: batch jobs, pipelines, anything that reads from a source
//!   which waits by itself. It is back-pressure. Where handlers publish in a circle, be prepared for
//!   [`PublishError::Deadlock`], and see what that [cannot detect](#no-self-deadlock).
//! * **`Reject`** where somebody waits for an answer: "busy" now beats an answer too late.
//! * **`DropOldest`** where only the latest matters: positions, prices, progress.
//! * **`DropNewest`** where a sample is enough: traces, statistics.
//! * **`DeadLetter`** where nothing may get lost and somebody will look.
//!
//! # Idempotent consumers
//!
//! At least once means: now and then twice. A handler may have done its work and then fail or panic, and a
//! shutdown may report a message as left whose handler was still at it. So make the effect the same when
//! it happens twice. The simplest way is to key the effect by the message, in the store that holds the
//! effect:
//!
//! ```
//! use postroom::{Broker, Message, Queue};
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let payments: Queue<u64> = broker.queue("payments").declare()?;
//! let ledger = Arc::new(Mutex::new(HashMap::new()));
//! let book = Arc::clone(&ledger);
//! payments.consumer().start(move |cents: &Message<u64>| {
//!     book.lock().unwrap().insert(cents.id(), **cents); // an upsert, not `total += cents`
//!     assert!(cents.attempt() > 1, "fails after its work is done");
//! })?;
//!
//! payments.send(Message::new(500).with_id(4711)).unwrap();
//! simulation.advance(Duration::from_secs(1));
//! assert_eq!(payments.stats().delivered, 2);
//! assert_eq!(ledger.lock().unwrap().values().sum::<u64>(), 500);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Where the effect cannot be keyed, let the queue remember the ids that are done: see [Effectively
//! once](#effectively-once). Ids that the broker assigns start at 1 in every process;
//! for a memory that outlives it, give your own with [`Message::with_id`].
//!
//! # Watching backlog and failures
//!
//! [`Broker::stats`] has every counter, ready to be serialised; [`Queue::stats`] those of one queue. Watch
//! at least:
//!
//! | number | what it says |
//! |---|---|
//! | `ready`, `oldest_age` | the backlog, and how late you are |
//! | `in_flight` equal to the workers, for long | handlers are slow or stuck; see `handling` |
//! | `retried` rising | something that handlers need is failing |
//! | `delayed` | how much waits for that to be mended |
//! | `dead_lettered` rising | somebody has to look |
//! | `dropped`, `refused` rising | capacity or workers are too few |
//! | `expired` rising, dead letters with [`Reason::Expired`] | messages wait for longer than they are good for |
//! | `timed_out`, `settled_late` above 0 | handlers hang, or the ack timeout is too short |
//! | `panicked` above 0 | a bug |
//! | a topic's `halves.open` rising, `halves.unknown`, `halves.unresolved` above 0 | producers vanish between preparing and settling |
//! | a topic's `unroutable` rising | a binding is missing, or a routing key is misspelt |
//!
//! ```
//! use postroom::{Broker, Event, Overflow, Queue};
//! use std::sync::{Arc, Mutex};
//!
//! let events = Arc::new(Mutex::new(Vec::new()));
//! let sink = Arc::clone(&events);
//! let broker = Broker::builder()
//!     .on_event(move |event: &Event| sink.lock().unwrap().push(event.clone()))
//!     .build()?;
//! let traces: Queue<u32> = broker.queue("traces").capacity(1).overflow(Overflow::DropNewest).declare()?;
//! traces.send(1).unwrap();
//! traces.send(2).unwrap();
//!
//! assert_eq!(*events.lock().unwrap(), [Event::Dropped { queue: "traces".into(), total: 1 }]);
//! let stats = broker.stats();
//! assert_eq!((stats.queue("traces").unwrap().ready, stats.queue("traces").unwrap().dropped), (1, 1));
//! assert_eq!(stats.queue("traces").unwrap().unaccounted(), 0); // nothing has vanished
//! println!("{}", broker.describe()); // topics, bindings, queues and their settings
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! ## Alarms
//!
//! Watching by hand ends on the first quiet day. An [`Alarm`] looks at the backlog of a queue, the age of its
//! oldest message, or its share of failures, and calls you once when that is too much and once when it is well
//! again. Two levels apart keep it from ringing all day.
//!
//! ```
//! use postroom::{Alarm, Broker, Queue};
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let _jobs: Queue<u32> = broker.queue("jobs").declare()?; // somewhere else
//!
//! let jobs: Queue<u32> = broker.queue("jobs").find()?; // the one who watches knows only the name
//! let rang = Arc::new(Mutex::new(Vec::new()));
//! let log = rang.clone();
//! jobs.alarm(Alarm::age(Duration::from_secs(60), Duration::from_secs(5)), move |alert| {
//!     log.lock().unwrap().push(alert.raised);
//! })?;
//!
//! jobs.send(1).unwrap();
//! simulation.advance(Duration::from_secs(600));
//! assert_eq!(*rang.lock().unwrap(), [true]); // once, not every second
//! jobs.recv().unwrap().ack().unwrap();
//! simulation.advance(Duration::from_secs(1));
//! assert_eq!(*rang.lock().unwrap(), [true, false]);
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! It looks [every](crate::Alarm::every) second unless told otherwise; what rises and falls between two looks
//! goes unseen. The callback runs on the scheduler's thread, which all delays and retries wait for: note the
//! alert, and do the rest elsewhere.
//!
//! ## Circuit breakers
//!
//! When what the handlers need is down, every attempt fails: messages use up their attempts one after the
//! other, and whoever tries to come back is met by all of them. A consumer with a [`CircuitBreaker`] stops
//! taking messages once enough of its last handlings have failed, and after a pause probes with a single one.
//! Meanwhile messages wait in the queue, with their attempts kept.
//!
//! ```
//! use postroom::{Broker, Circuit, CircuitBreaker, Failure, Message, Queue};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
//! use std::time::Duration;
//!
//! let (broker, simulation) = Broker::simulated(1);
//! let mail: Queue<u32> = broker.queue("mail").declare()?;
//! let (up, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
//! let (server, count) = (up.clone(), calls.clone());
//! let breaker = CircuitBreaker::new(10, 0.5).pause(Duration::from_secs(60));
//! let consumer = mail.consumer().workers(4).circuit_breaker(breaker).start(move |_: &Message<u32>| {
//!     count.fetch_add(1, Ordering::Relaxed);
//!     if server.load(Ordering::Relaxed) { Ok(()) } else { Err(Failure::transient("server is down")) }
//! })?;
//!
//! mail.send_batch(0..1000).unwrap();
//! simulation.advance(Duration::from_secs(590));
//! assert_eq!(consumer.circuit(), Some(Circuit::Open));
//! assert_eq!(calls.load(Ordering::Relaxed), 10 + 9); // to notice, and one a minute since
//!
//! up.store(true, Ordering::Relaxed);
//! simulation.advance(Duration::from_secs(60));
//! assert_eq!((mail.stats().acked, mail.dead_letters().len()), (1000, 0));
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! Only failures that another attempt could mend count; a permanent one says that the input was bad, nothing
//! about the server. Failures that opened the circuit take their course: where attempts are few, ask for
//! [`redrive_on_close`](crate::CircuitBreaker::redrive_on_close). The breaker belongs to one consumer. While it
//! is open the queue fills up, so capacity and overflow decide what producers notice of an outage.
//!
//! ## Events
//!
//! What the library has to tell its owner goes to [`on_event`](crate::Builder::on_event), on the thread where it
//! happens:
//!
//! | event | what it says |
//! |---|---|
//! | [`HandlerPanicked`](crate::Event::HandlerPanicked) | a bug, with what the panic said |
//! | [`Dropped`](crate::Event::Dropped) | an overflow policy has thrown messages away; told when their number doubles |
//! | [`WorkerBlocked`](crate::Event::WorkerBlocked) | a worker has waited for room for longer than the threshold |
//! | [`DeadLettersFull`](crate::Event::DeadLettersFull) | a dead letter found no room; nothing is lost, but its queue is blocked by it |
//! | [`Undecodable`](crate::Event::Undecodable) | bytes in the file are of no version that the program knows; they are kept, see [durable queues](#durable-queues) |
//! | [`SettledLate`](crate::Event::SettledLate) | a handler was slower than its ack timeout: its work was done twice |
//! | [`CheckBackPanicked`](crate::Event::CheckBackPanicked) | a topic's check-back has a bug; the half message is asked about again |
//! | [`CircuitOpened`](crate::Event::CircuitOpened), [`CircuitClosed`](crate::Event::CircuitClosed) | a consumer has stopped taking messages, or works again |
//!
//! ## Logging each message
//!
//! To log what each handling came to, give the consumer hooks:
//! [`before`](crate::ConsumerBuilder::before), [`after`](crate::ConsumerBuilder::after) and
//! [`on_give_up`](crate::ConsumerBuilder::on_give_up).
//!
//! # What is lost when the process dies
//!
//! Everything that is not settled, outside of [durable queues and logs](#durable-queues): postroom keeps its
//! messages in memory. A crash, a kill, a power cut, a panic in a program built with `panic = "abort"`, or a
//! `main` that returns without [`Broker::shutdown`] loses
//!
//! * messages that are ready, delayed, or wait for a retry,
//! * messages in flight, whose handler may have done half of its work,
//! * dead letters.
//!
//! What to do about it:
//!
//! * Declare the queue, or the log, [durable](#durable-queues).
//! * Catch the signal that ends your process, call [`Broker::shutdown`], and write down what
//!   [`Queue::drain`] returns, dead letters included.
//! * Keep the truth where it survives: commit the message to your database together with the order, and
//!   have it published from there; see [outbox and inbox](#outbox-and-inbox). With idempotent consumers that
//!   loses nothing.
//!
//! # Durable queues
//!
//! With the feature `sqlite` a broker can have a file, and queues that are declared durable keep their messages there
//! until they are settled; logs keep their records for as long as they are retained. All others stay in memory, at full
//! speed.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # {
//! use postroom::store::Durability;
//! use postroom::{Broker, Message, Queue, Retry};
//! use std::time::Duration;
//!
//! # let path = std::env::temp_dir().join(format!("postroom-guide-durable-{}.db", std::process::id()));
//! fn mail(broker: &Broker) -> Result<Queue<String>, postroom::Error> {
//!     broker.queue("mail").retry(Retry::fixed(Duration::from_secs(60))).durable(Durability::Sync).declare()
//! }
//!
//! let broker = Broker::open(&path)?;
//! let queue = mail(&broker)?;
//! queue.send("ann@example.org".to_string()).unwrap(); // on the disk when this returns
//! queue.recv().unwrap().retry().unwrap(); // the mail server does not answer
//! drop((broker, queue)); // the process ends, however it ends
//!
//! let broker = Broker::open(&path)?;
//! let queue = mail(&broker)?;
//! let (_, waiting) = queue.list_delayed(1).remove(0);
//! assert_eq!((waiting.payload().as_str(), waiting.attempt()), ("ann@example.org", 1));
//! # drop((broker, queue));
//! # for end in ["", ".lock"] { let _ = std::fs::remove_file(format!("{}{end}", path.display())); }
//! # }
//! # Ok::<(), postroom::Error>(())
//! ```
//!
//! | mode | `Ok` means | it survives |
//! |---|---|---|
//! | not durable | it is in the queue | nothing |
//! | `Durability::Buffered` | it is written | the end of the process, however that ends |
//! | `Durability::Sync` | it is written and synced | the loss of power, too |
//!
//! **Publishing.** One publish is one commit for all durable queues that it reaches, and so are a batch and a
//! transaction; queues in memory get their copies when the commit has succeeded. What arrives while a commit is
//! under way shares the next one, so many producers are as fast as the disk lets one be, together; a single one can
//! have many publishes under way with `publish_deferred`. If the file does not take it, every queue is as
//! before, and the message comes back as [`PublishError::NotStored`](crate::PublishError::NotStored) with the reason:
//! a full disk may pass, after a failed write or sync nothing is taken until the file is opened anew.
//!
//! **Settling** waits for nothing. The file hears of it a few milliseconds later, together with others; what had been
//! settled shortly before a crash may therefore be delivered again. That is at least once, as everywhere.
//!
//! **Coming back.** A queue that is declared on a file which has its messages gets them all: in their order, with
//! attempts and history; delays, retries and times to live run on while nobody has the file open. In a queue that is
//! not ordered, what had been delivered before comes first, in the order in which it was due. Settings may change between runs, but neither the order
//! nor the codec. Consumers get what is there as soon as they start: where one of them publishes, declare and bind
//! whatever is to hear of it first.
//!
//! **What cannot be decoded.** Programs change, and their files do not. Say which version of its type a payload is, and
//! how to make one of the bytes of an earlier version (`schema`, for queues, half messages and logs). A message whose
//! bytes are refused all the same, by the upgrade or the codec, be it with a panic, or that was in a row of the file
//! that several messages share and that is damaged, is a dead letter of its bytes when its turn comes to be read: `Queue::undecodable`, a queue named `<queue>.undecodable`. It has everything but the
//! payload, with the codec's words as the last error; it moves there in one commit, an
//! [event](crate::Event::Undecodable) tells, and `dead_lettered` counts it. List them, look at the bytes, mend the codec,
//! and [redrive](crate::Queue::redrive) them, at a rate if they are many: each is decoded again and goes back to its
//! queue, or to the dead letters if it was one of those; what still cannot be decoded stays, with the new error. Bytes
//! can be mended too (`Undecoded::with_bytes`, with [`edit`](crate::Redrive::edit)). What could not be decoded holds up
//! nobody, so in a queue ordered by key it loses its place: it comes back behind what waits under its key then. A topic's
//! half messages have `<topic>.half.undecodable`, and are open again once they are redriven. A log's record leaves a gap
//! at its offset.
//!
//! **What cannot be read** at all, as a row of a single message that is damaged, or a file on a disk that fails, is tried
//! again every second, and what is behind it waits. An [event](crate::Event::NotRead) tells when that begins, and
//! [another](crate::Event::ReadAgain) when it is over; until then `QueueStats::trouble`, or `GroupStats::trouble` of a
//! log, says why.
//!
//! **A backlog** stays in the file. Memory has the first few thousand messages of a queue, so opening a file with
//! millions takes no longer than opening an empty one. Of what is delayed, memory has those due soonest; of
//! a queue with priorities, the first of each level; in a queue ordered by key, what stands behind thousands of a key
//! that is busy or parked is found all the same. What is redriven from the dead letters stays in the file until its turn,
//! too, and then takes room of the queue's capacity until it is handed out. What had failed and waits for its next
//! attempt when the file is opened is read like what is delayed, and as soon: a million of them take no more memory than
//! ten thousand, and come in the order in which they are due, before what was never handed out. Two kinds of queues
//! differ: with priorities, what is overdue when the file is opened comes among the others of its level, in the order in
//! which they were sent; and in a queue ordered by key, memory has the keys of what has failed, so that nothing overtakes
//! it, but not the messages: measured, opening with a million of them, of a key each, took 1.2 s of processor time and
//! 96 MiB.
//!
//! In memory as a whole are the following; measured with a payload of 8 bytes, a routing key of 100 and one failure noted.
//!
//! | what | bytes each, about |
//! |---|---:|
//! | by key: what had failed when the file was opened, one of each key | 110, and a key of more than 22 bytes |
//! | by key: what parks its key | 800 |
//! | what fails from then on, until its next attempt | 900 |
//! | with priorities: what falls due from then on and is not taken | 600 |
//! | given back without a failure, or redriven at a [rate](crate::Redrive::rate), and not handed out since | 600 |
//! | delayed with a timer | 830 |
//! | a compacted log: the latest record of each key | 600 |
//!
//! So is, in a queue ordered by key, what is delayed or had failed, falls due after the opening and is not taken. And of
//! what had failed, each key waits for one: after a change of the function for the key there may be more of one, which
//! are in memory too, ready behind the first, whatever the time of their next attempt was.
//!
//! A full queue that [drops its oldest](crate::Overflow::DropOldest) drops the oldest that is in memory, and the newcomer
//! if nothing is.
//!
//! **Your own rows.** The file is a SQLite database and may hold tables of yours. `Queue::send_in` sends a message in a
//! transaction that changes them: both or neither, without an outbox and a relay.
//!
//! **Logs** are durable in the same way (`LogBuilder::durable`): a record is in the file before `Ok` and before anybody
//! reads it, and stays there until retention or compaction removes it. One publish, batch or transaction is one commit
//! for all that is durable, queues and logs. In a later run the log has the same records with the same offsets, and a
//! group that is started again goes on where it had committed, whatever its `Start`; a new one is in the file before
//! it begins. What a group commits or seeks is noted as settling is, a few milliseconds later: after a crash some
//! records come again, and none is passed over. The number of partitions and the codec are those of the file. Memory
//! has the latest few thousand records of each partition, and for each group that is further behind the up to 1,024 it
//! is reading; measured, opening a log of a million records of 100 bytes after a kill took 0.2 s to the first delivery,
//! and 7 MiB as for ten thousand. Exceptions: a compacted log is in memory as a whole, and a retention by bytes reads
//! the log once when it is declared.
//!
//! **Dead letters** of a durable queue are durable: giving up on a message, and redriving it, moves it in the file in
//! one commit. Those that go to a queue you gave are as durable as that is.
//!
//! **Effectively once.** An [idempotent](#effectively-once) durable queue remembers over a restart what it has
//! completed: a message's key is noted in the commit that deletes it.
//!
//! **Half messages** are durable if their topic's [`CheckBack`](crate::CheckBack) is: see [half
//! messages](#transactions).
//!
//! **Schedules** are durable if asked: a firing is noted in the commit that writes its message, see
//! [schedules](#schedules).
//!
//! **Parked keys** stay parked, and timers with a name still cancel what they were given to.
//!
//! **Not durable** is, for now, how often a record has failed in a log's group.
//!
//! **One at a time.** A second broker, in this process or another, is told who has the file.
//!
//! # Outbox and inbox
//!
//! With the feature `sqlite` or `postgres`, a message can be part of a transaction of your own database, and
//! the work it leads to can be part of another.
//!
//! An **outbox** (`SqliteOutbox`, `PostgresOutbox`) is a table. `put` writes a message into it on your own
//! connection, in your own open transaction, so a change and its message are both committed or neither is. A
//! **relay**, a thread of the broker, publishes committed rows to their topics and marks a row as done once
//! every queue that got its message has handled it.
//!
//! An **inbox** (`SqliteInbox`, `PostgresInbox`) is a table in the consumer's database. `handle` runs your work
//! and notes the message's id in one transaction; if the id is there already, the work is not done again.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # {
//! use postroom::rusqlite::{self, Connection};
//! use postroom::{Broker, Failure, Message, SqliteInbox, SqliteOutbox, TopicName};
//! use std::sync::Mutex;
//! use std::time::Duration;
//!
//! const PAID: TopicName<i64> = TopicName::new("paid");
//!
//! # let directory = std::env::temp_dir().join(format!("postroom-guide-outbox-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory).unwrap();
//! # let path = directory.join("shop.db");
//! let mut shop = Connection::open(&path)?;
//! shop.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE orders (cents INTEGER)")?;
//! let outbox = SqliteOutbox::new("outbox").unwrap();
//! outbox.create_table(&shop).unwrap();
//!
//! let mut books = Connection::open_in_memory()?; // another module's database
//! books.execute_batch("CREATE TABLE income (cents INTEGER)")?;
//! let inbox = SqliteInbox::new("inbox", "books").unwrap();
//! inbox.create_table(&books).unwrap();
//!
//! let broker = Broker::new();
//! let paid = broker.topic(PAID).declare().unwrap();
//! let queue = broker.queue("books").declare().unwrap();
//! paid.bind(&queue, "#").unwrap();
//! let books = Mutex::new(books);
//! queue.consumer().start(move |cents: &Message<i64>| -> Result<_, Failure> {
//!     let once = inbox.handle(&mut books.lock().unwrap(), cents, |tx| {
//!         tx.execute("INSERT INTO income VALUES (?1)", [cents.payload()])
//!     })?;
//!     Ok(once)
//! }).unwrap();
//! let file = path.clone();
//! let relay = outbox.relay(&broker, move || Connection::open(&file)).topic(&paid).start().unwrap();
//! outbox.watch(&shop).unwrap(); // its commits wake the relay
//!
//! let tx = shop.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
//! tx.execute("INSERT INTO orders VALUES (4200)", [])?;
//! outbox.put(&tx, PAID, "order.paid", 4200).unwrap();
//! tx.commit()?;
//! # let end = std::time::Instant::now() + Duration::from_secs(10);
//! # while relay.stats().done == 0 && std::time::Instant::now() < end { std::thread::yield_now() }
//! assert!(broker.shutdown(Duration::from_secs(10)).is_clean());
//! assert_eq!(outbox.stats(&shop).unwrap().done, 1);
//! # drop(shop);
//! # std::fs::remove_dir_all(&directory).unwrap();
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What survives what.** For queues in memory, what counts is when a row is marked.
//!
//! | the process dies | what happens to the message |
//! |---|---|
//! | before your commit, or you roll back | there is none |
//! | after the commit, before or during the publish | the next relay publishes it |
//! | when it is in a queue, delayed, waiting for a retry, or in a handler | its row is not done, so the next relay publishes it again, under the same id |
//! | after the handler, before the row is marked | it comes again; through an inbox, its effect does not |
//! | after the row is marked | it was handled |
//!
//! So delivery is at least once, and with an inbox the effect is there exactly once. As many messages may come
//! again after a crash as were under way, at most the relay's `window`. With `done_when_published` a row is done
//! as soon as the queues have it: fewer messages come again, and those in the queues are lost with the process.
//!
//! | a queue | the row is |
//! |---|---|
//! | acked it; its consumer discarded it; it was purged or drained, expired, or its delay was cancelled | done |
//! | made a dead letter of it, or dropped it because it was full | dead, with the reason |
//! | still had it at shutdown, or was dropped with its broker | as it was, so it comes again |
//!
//! Of several queues, each has to be done with it. Logs and subscribers have what they get at once: nothing is
//! waited for, and they keep nothing beyond the process. A row that cannot be decoded, or that no binding
//! matches, is dead as well, and the rows behind it go on. As long as nothing at all is bound to a topic its
//! rows wait.
//!
//! **Dead rows** stay until you decide: `dead` lists them, `retry` has them published again under their ids,
//! `delete_dead` deletes them. A message that a queue gave up on is in that queue's dead letters too, while the
//! process lives. Redriving it there does not change its row; trying both leads to a repeated message.
//!
//! **Order.** Rows are published in the order of their ids, so messages of one key keep their order up to the
//! queue; a queue ordered by key keeps it from there. A retry of a dead row comes after what has passed it.
//!
//! **Ids.** The row gives the message its id, which is the same after every restart and differs from those of
//! other tables. The ids that a broker gives begin at 1 in each process, so an inbox refuses them: for messages
//! that did not come from an outbox, name a key of your own (`handle_as`).
//!
//! **Several relays** on one table are fine, in one process or many. For each topic one of them has a lease and
//! publishes; the others wait for it to end. A relay that could not prolong its lease publishes nothing more.
//! Stopped in order, it gives the lease back; after a crash another has to wait for its end (5 s by default).
//!
//! **When the database fails**, the relay tries again after a pause that grows from 20 ms to 2 s, connects anew,
//! and goes on where it was; nothing is lost and nothing is published twice by that alone, unless its lease has
//! ended meanwhile and another relay has taken over. It says so in `RelayStats::trouble` and by
//! [`Event::OutboxFailing`].
//!
//! **In time.** PostgreSQL tells the relay of commits (`LISTEN` and `NOTIFY`, sent by `put`). SQLite tells only
//! the connection that commits, so `watch` that; commits of other connections and processes are found by a
//! look at a counter every 250 ms (`poll`). A relay works in real time, whatever clock its broker has.
//!
//! **In simulations**, a relay is a task like a consumer: no thread, virtual time, the same run for the
//! same seed. It looks into the table when a commit rang that was made in this process (`watch`, `notify`) or
//! `Relay::wake` was called, never because time has passed. Time only ends its pauses after an error or a refusal,
//! and those grow to 20 minutes. `run_until_idle` ends with all that was committed published, as far as there is
//! room, and all that was handled marked; `wait_idle` includes both. A full queue lets its consumers run first. Rows
//! are put in real time, so delay and time to live count from the publication. A lease, which is a promise to other
//! processes, holds in real time: `start` takes it, waits for one that a killed process left behind, and fails if
//! another relay is at work. Relays of PostgreSQL hear of commits on another thread, and are refused unless their
//! outbox is `without_notify`.
//!
//! In SQLite, begin transactions that write with `IMMEDIATE`: one that reads first and then finds that another
//! has written meanwhile can only be rolled back.
//!
//! # Testing with simulations
//!
//! Wire the modules of your program as a function of a broker, and a test can run them under
//! [`Broker::simulated`]: no sleeps, no ports, hours of back-off in microseconds. A test that passes for
//! one seed has seen one order of events; try a hundred.
//!
//! ```
//! use postroom::{Broker, Error, Failure, Message, Queue};
//! use std::time::Duration;
//!
//! /// The program under test.
//! fn wire(broker: &Broker) -> Result<Queue<u32>, Error> {
//!     let parsed: Queue<u32> = broker.queue("parsed").declare()?;
//!     let stored: Queue<u32> = broker.queue("stored").declare()?;
//!     let next = stored.clone();
//!     parsed.consumer().workers(2).start(move |n: &Message<u32>| next.send(**n).map(|_| ()))?;
//!     stored.consumer().workers(2).start(|n: &Message<u32>| match (n.payload(), n.attempt()) {
//!         (0, 1) => Err(Failure::transient("the disk is busy")),
//!         _ => Ok(()),
//!     })?;
//!     Ok(parsed)
//! }
//!
//! for seed in 0..100 {
//!     let (broker, _simulation) = Broker::simulated(seed);
//!     let parsed = wire(&broker)?;
//!     parsed.send_batch(0..5).unwrap();
//!     assert!(broker.wait_idle(Duration::from_secs(3600)), "seed {seed}"); // runs the simulation
//!     let stats = broker.stats();
//!     assert_eq!(stats.queue("stored").unwrap().acked, 5, "seed {seed}");
//!     assert!(stats.queues.iter().all(|queue| queue.unaccounted() == 0), "seed {seed}");
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! A simulation takes one handling at a time, in an order drawn from the seed. It finds mistakes in the
//! order of events, not data races inside your handlers.
//!
//! # When a queue is the wrong tool
//!
//! * **You need the answer to go on.** Call the function. A request and its reply through two queues are a
//!   slower call with more ways to fail.
//! * **Two steps must both happen or neither, at the same moment.** A queue makes the second happen later. Use one
//!   database transaction, or accept "later" with a [half message](#half-messages).
//! * **Messages must leave the process.** Not yet here: use a broker. To survive the process, a queue can be
//!   [durable](#durable-queues), or a message can come from your database by an [outbox](#outbox-and-inbox).
//! * **You only hand values to a thread.** With nothing to retry, route or watch, a channel is simpler and
//!   faster.
//! * **You want to use all cores for one computation.** Use a data-parallel library.
//! * **The program is asynchronous.** Every blocking call here blocks its thread. From a task, use the
//!   `try_` forms, or a thread meant for blocking.
//! * **Consumers are too slow for good.** A queue hides that for a while. Make them faster, add some, or
//!   refuse work at the door.
//!
//! [`Alarm`]: crate::Alarm
//! [`CircuitBreaker`]: crate::CircuitBreaker
//! [`DelayLevel`]: crate::DelayLevel
//! [`Event::OutboxFailing`]: crate::Event::OutboxFailing
//! [`Event::SettledLate`]: crate::Event::SettledLate
//! [`Event::WorkerBlocked`]: crate::Event::WorkerBlocked
//! [`Expired::Drop`]: crate::Expired::Drop
//! [`Reason::Expired`]: crate::Reason::Expired
//! [`SettleError::Late`]: crate::SettleError::Late
//! [`Lag`]: crate::Lag
//! [`Timer`]: crate::Timer
//! [`Broker::new`]: crate::Broker::new
//! [`Broker::simulated`]: crate::Broker::simulated
//! [`Broker::shutdown`]: crate::Broker::shutdown
//! [`Broker::stats`]: crate::Broker::stats
//! [`Delivery`]: crate::Delivery
//! [`Delivery::requeue`]: crate::Delivery::requeue
//! [`Message::attempt`]: crate::Message::attempt
//! [`Message::with_id`]: crate::Message::with_id
//! [`Outcome::Ack`]: crate::Outcome::Ack
//! [`Outcome::Retry`]: crate::Outcome::Retry
//! [`Outcome::RetryAfter`]: crate::Outcome::RetryAfter
//! [`Outcome::DeadLetter`]: crate::Outcome::DeadLetter
//! [`Outcome::Discard`]: crate::Outcome::Discard
//! [`Overflow`]: crate::Overflow
//! [`Overflow::DeadLetter`]: crate::Overflow::DeadLetter
//! [`PublishError::Deadlock`]: crate::PublishError::Deadlock
//! [`Queue::drain`]: crate::Queue::drain
//! [`Queue::purge`]: crate::Queue::purge
//! [`Queue::stats`]: crate::Queue::stats
//! [`Retry`]: crate::Retry
//! [`Retry::schedule`]: crate::Retry::schedule
//! [`SettleError::ShutDown`]: crate::SettleError::ShutDown
//! [`Topic::publish_batch`]: crate::Topic::publish_batch
//! [`DeadLetter`]: crate::DeadLetter
//! [`Reason`]: crate::Reason
//! [`ManualClock`]: crate::ManualClock
//! [`Event::DeadLettersFull`]: crate::Event::DeadLettersFull
//! [`Event::LogTrimmed`]: crate::Event::LogTrimmed
//! [`Log`]: crate::Log
//! [`Retention`]: crate::Retention
//! [`Start`]: crate::Start
