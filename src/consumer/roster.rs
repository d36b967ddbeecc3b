//! Who works, and on what terms.

use super::staff::Staff;
use crate::breaker::{Breaker, Circuit, Permit};
use crate::stats::Tally;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Roster {
    pub(super) staff: Staff,
    pub(super) breaker: Option<Breaker>,
    /// What all of them count in, in a simulation.
    pub(super) tally: Option<Arc<Tally>>,
}

impl Roster {
    pub(super) fn circuit(&self) -> Circuit {
        self.breaker.as_ref().map_or(Circuit::Closed, Breaker::circuit)
    }

    /// As what a worker may take its next message, if the circuit lets it.
    pub(super) fn pass(&mut self) -> Option<Pass> {
        match (self.circuit(), &mut self.breaker) {
            (Circuit::HalfOpen, Some(breaker)) => breaker.claim_probe().then_some(Pass::Probe),
            (Circuit::Open, _) => None,
            _ => Some(Pass::Free),
        }
    }

    /// On what grounds a message taken with this pass is handled; `None` if the circuit opened meanwhile.
    pub(super) fn permit(&self, pass: Pass) -> Option<Permit> {
        match pass {
            Pass::Probe => Some(Permit::Probe),
            Pass::Free => self.breaker.as_ref().and_then(Breaker::call),
        }
    }
}

/// As what a worker takes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Free,
    /// The only one of its consumer, to see whether the downstream works again.
    Probe,
}

impl Pass {
    /// How many messages it is good for.
    pub(super) fn limit(self) -> usize {
        match self {
            Self::Free => usize::MAX,
            Self::Probe => 1,
        }
    }
}
