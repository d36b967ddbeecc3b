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
//! [`Queue::purge`], and with a handler that says [`Outcome::Discard`]. Each of these is a choice, and
//! each is counted. "At least" once means that a handler can see a message twice: see [Idempotent
//! consumers](#idempotent-consumers).
//!
//! # Settle once
//!
//! Settling consumes the delivery, so a second settlement does not compile. There are six ways:
//!
//! | a receiver calls | a handler returns | what becomes of the message |
//! |---|---|---|
//! | [`ack`](crate::Delivery::ack) | `()`, `Ok(())`, [`Outcome::Ack`] | done, gone |
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
//! settle it answers [`SettleError::ShutDown`], and the message is back in its queue.
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
//! What capacity does not bound: messages in flight (limit them with
//! [`max_in_flight`](crate::QueueBuilder::max_in_flight)) and messages waiting for a retry. If a service is down,
//! the latter pile up at the rate at which handlers fail, each for as long as its retry schedule lasts.
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
//! # Order
//!
//! A queue is first in, first out. With one worker, messages are handled in the order in which they were
//! accepted, each producer's in its own order. Three things change that: more workers, a failure (the
//! message comes back after its delay, ahead of fresh ones) and [`Delivery::requeue`] (the message goes to
//! the end). Order by key, kept through failures and across workers, is not there yet.
//!
//! # Dead letters keep everything
//!
//! A queue gives up on a message when its attempts are used up, when a failure is permanent, when its
//! consumer says so, or when the queue overflows with [`Overflow::DeadLetter`]. The [`DeadLetter`] holds
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
//!   which waits by itself. It is back-pressure. Do not let a handler wait for room in a queue that only
//!   its own workers empty, directly or through others: on threads that hangs (a simulation reports
//!   [`PublishError::Deadlock`]). Use `try_publish` or `publish_timeout` in such cycles.
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
//! Where the effect cannot be keyed, remember the ids that are done, and do so after the work: an id
//! recorded before it turns a failure into a loss. Ids that the broker assigns start at 1 in every process;
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
//! | `panicked` above 0 | a bug |
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
//! To log what each handling came to, give the consumer hooks:
//! [`before`](crate::ConsumerBuilder::before), [`after`](crate::ConsumerBuilder::after) and
//! [`on_give_up`](crate::ConsumerBuilder::on_give_up).
//!
//! # What is lost when the process dies
//!
//! Everything that is not settled: postroom keeps its messages in memory. A crash, a kill, a power cut, a
//! panic in a program built with `panic = "abort"`, or a `main` that returns without
//! [`Broker::shutdown`] loses
//!
//! * messages that are ready or wait for a retry,
//! * messages in flight, whose handler may have done half of its work,
//! * dead letters.
//!
//! What to do about it until queues can be durable:
//!
//! * Catch the signal that ends your process, call [`Broker::shutdown`], and write down what
//!   [`Queue::drain`] returns, dead letters included.
//! * Keep the truth where it survives. Commit the order to the database first, with a column that says
//!   what remains to be done; publish after that; on start, publish again what the column says. With
//!   idempotent consumers that loses nothing.
//! * Where neither will do, use a broker or a table that is durable today.
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
//! * **Two steps must both happen or neither.** A queue makes the second happen later. Use one database
//!   transaction, or accept "later" and make it visible.
//! * **Messages must survive the process, or leave it.** Not yet here: use a database table, or a broker.
//! * **You only hand values to a thread.** With nothing to retry, route or watch, a channel is simpler and
//!   faster.
//! * **You want to use all cores for one computation.** Use a data-parallel library.
//! * **The program is asynchronous.** Every blocking call here blocks its thread. From a task, use the
//!   `try_` forms, or a thread meant for blocking.
//! * **Consumers are too slow for good.** A queue hides that for a while. Make them faster, add some, or
//!   refuse work at the door.
//!
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
