//! Learning when the queues are done with a message.
//!
//! Whoever keeps a message elsewhere until it has been handled (an outbox) follows it by a [`Track`]. Every
//! queue that got the message has a share in it, as in a request; the last share to end reports.

use crate::dead_letter::Reason;
use crate::request::{End, Fate};
use crate::sync::Mutex;
use std::sync::Arc;

/// What became of a message in all queues that got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every one of them is done with it.
    Settled,
    /// One gave up on it, or dropped it because it was full.
    Failed(String),
    /// One ended, or was left by shutdown, with the message in it.
    Lost,
}

impl Ended {
    /// Of several copies, the one counts that needs most attention.
    fn weight(&self) -> u8 {
        match self {
            Self::Settled => 0,
            Self::Failed(_) => 1,
            Self::Lost => 2,
        }
    }

    fn of(end: Option<End>) -> Self {
        match end {
            None | Some(End::Gone | End::Unanswered(_, Fate::Left)) => Self::Lost,
            Some(End::Unanswered(queue, fate @ Fate::Dropped)) => Self::Failed(format!("{fate} by queue {queue:?}")),
            Some(End::Unanswered(..) | End::Handled(_)) => Self::Settled,
            Some(End::Failed(queue, reason, error)) => Self::Failed(failure(&queue, &reason, error)),
        }
    }
}

fn failure(queue: &str, reason: &Reason, error: Option<String>) -> String {
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    format!("queue {queue:?} gave up on it ({reason}){error}")
}

/// Whoever follows messages. Called on the thread that settles, possibly under a queue's lock: it must be
/// short and call nobody.
pub(crate) trait Tracks: Send + Sync {
    fn ended(&self, row: i64, how: Ended);
}

/// One message that is followed.
pub(crate) struct Track {
    row: i64,
    owner: Arc<dyn Tracks>,
    state: Mutex<State>,
}

struct State {
    shares: usize,
    worst: Ended,
    /// It was not published after all.
    called_off: bool,
}

impl Track {
    pub(crate) fn new(row: i64, owner: Arc<dyn Tracks>) -> Arc<Self> {
        let state = State { shares: 0, worst: Ended::Settled, called_off: false };
        Arc::new(Self { row, owner, state: Mutex::new(state) })
    }

    pub(crate) fn add_share(&self) {
        self.state.lock().shares += 1;
    }

    pub(crate) fn call_off(&self) {
        self.state.lock().called_off = true;
    }

    pub(crate) fn share_ended(&self, end: Option<End>) {
        self.note(Ended::of(end));
    }

    /// It went to somebody who settles nothing.
    pub(crate) fn share_given_up(&self) {
        self.note(Ended::Settled);
    }

    fn note(&self, how: Ended) {
        let mut state = self.state.lock();
        if how.weight() > state.worst.weight() {
            state.worst = how;
        }
        state.shares -= 1;
        if state.shares > 0 || state.called_off {
            return;
        }
        let worst = std::mem::replace(&mut state.worst, Ended::Settled);
        drop(state);
        self.owner.ended(self.row, worst);
    }
}
