//! Hearing of commits.

use super::outbox::ConnectClient;
use crate::outbox::relay::Listener;
use crate::outbox::relay::desk::{Call, Desk};
use crate::outcome::contained;
use crate::sync::{AtomicBool, JoinHandle, Ordering, ThreadBuilder};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A thread with a connection of its own, since one that waits for notifications can do nothing else.
pub(super) struct CommitListener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Ear {
    connect: ConnectClient,
    channel: String,
    desk: Arc<Desk>,
    said: Box<dyn Fn(bool) + Send>,
    stop: Arc<AtomicBool>,
}

/// How long it takes at most to find that it is to stop, if nothing wakes it.
const AT_MOST: Duration = Duration::from_secs(1);
/// For a connection on which nothing has come.
const CHECK_EVERY: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl CommitListener {
    pub(super) fn start(
        connect: ConnectClient,
        channel: String,
        desk: Arc<Desk>,
        said: Box<dyn Fn(bool) + Send>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ear = Ear { connect, channel, desk, said, stop: Arc::clone(&stop) };
        let builder = ThreadBuilder::new().name(format!("listener {}", ear.channel));
        // Without it the relay polls.
        let thread = builder.spawn(move || ear.listen_on()).ok();
        Self { stop, thread }
    }
}

impl Listener for CommitListener {
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for CommitListener {
    /// One that no notification reaches any more is not waited for: it ends within a second.
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

impl Ear {
    fn listen_on(self) {
        let mut pause = Duration::from_millis(50);
        while !self.is_stopped() {
            if let Ok(Ok(mut client)) = contained(|| (self.connect)())
                && client.batch_execute(&format!("LISTEN \"{}\"", self.channel)).is_ok()
            {
                (self.said)(true);
                pause = Duration::from_millis(50);
                self.hear(&mut client);
                (self.said)(false);
            }
            // What was committed meanwhile has been told to nobody.
            self.desk.ring(Call::Committed);
            if !self.is_stopped() {
                std::thread::park_timeout(pause);
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// Rings until the connection is lost or it is to stop.
    fn hear(&self, client: &mut Client) {
        self.desk.ring(Call::Committed);
        let mut checked = Instant::now();
        while !self.is_stopped() && !client.is_closed() {
            let heard = {
                let mut notifications = client.notifications();
                let heard = notifications.timeout_iter(AT_MOST).next();
                // All that have come by now are one call.
                while matches!(notifications.iter().next(), Ok(Some(_))) {}
                heard
            };
            match heard {
                Ok(Some(_)) => self.desk.ring(Call::Committed),
                Ok(None) if checked.elapsed() < CHECK_EVERY => {}
                Ok(None) if client.is_valid(AT_MOST).is_ok() => checked = Instant::now(),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
