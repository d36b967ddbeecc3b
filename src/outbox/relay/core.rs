//! A running relay, whoever drives it.

use super::desk::{Desk, Orders};
use super::engine::Engine;
use super::simulated::Simulated;
use super::stats::Board;
use super::thread::Thread;
use super::{Listen, Settings};
use crate::clock::Timestamp;
use crate::outbox::error::OutboxError;
use crate::runtime::{Companion, Runtime};
use crate::sync::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Core {
    pub(super) name: String,
    pub(super) desk: Arc<Desk>,
    pub(super) board: Arc<Board>,
    pub(super) runtime: Arc<Runtime>,
    driver: Driver,
}

enum Driver {
    Thread(Mutex<Thread>),
    Simulation(Arc<Simulated>),
}

/// Beyond that an `Instant` may overflow.
const LONGEST_STOP: Duration = Duration::from_secs(365 * 24 * 3600);

impl Core {
    pub(super) fn start(
        settings: &Settings,
        mut engine: Engine,
        listen: Option<Listen>,
    ) -> Result<Arc<Self>, OutboxError> {
        let name = settings.name.clone();
        let (desk, board, runtime) = (Arc::clone(&engine.desk), Arc::clone(&engine.board), Arc::clone(&engine.runtime));
        if runtime.is_simulated() {
            if let Err(error) = engine.claim() {
                engine.leave();
                return Err(error);
            }
            let driver = Driver::Simulation(Simulated::start(engine));
            return Ok(Arc::new(Self { name, desk, board, runtime, driver }));
        }
        let started = Thread::start(&name, engine);
        let mut thread = started.map_err(|error| settings.refusal(format!("no thread: {error}")))?;
        if let Some(listen) = listen {
            let board = Arc::clone(&board);
            thread.listen(listen(Arc::clone(&desk), Box::new(move |listening| board.set_listening(listening))));
        }
        Ok(Arc::new(Self { name, desk, board, runtime, driver: Driver::Thread(Mutex::new(thread)) }))
    }

    /// Whether everything that was published has been marked in time.
    pub(super) fn stop(self: &Arc<Self>, timeout: Duration) -> bool {
        let timeout = timeout.min(LONGEST_STOP);
        let deadline = Instant::now() + timeout;
        self.desk.order(Orders::Wind);
        match &self.driver {
            Driver::Thread(_) => self.board.wait_settled(deadline),
            Driver::Simulation(relay) => relay.wait_settled(timeout),
        }
        let late = self.end(Some(deadline));
        self.runtime.dismiss(&(self.clone() as Arc<dyn Companion>));
        late == 0 && self.board.is_settled()
    }
}

impl Companion for Core {
    fn name(&self) -> &str {
        &self.name
    }

    fn stop_bringing(&self) {
        self.desk.order(Orders::Wind);
    }

    fn is_busy(&self, horizon: Timestamp) -> bool {
        match &self.driver {
            Driver::Thread(_) => false,
            Driver::Simulation(relay) => relay.is_busy(horizon),
        }
    }

    fn end(&self, deadline: Option<Instant>) -> usize {
        match &self.driver {
            Driver::Thread(thread) => {
                let thread = std::mem::take(&mut *thread.lock());
                thread.end(&self.desk, &self.board, deadline)
            }
            Driver::Simulation(relay) => {
                relay.end();
                0
            }
        }
    }
}
