//! What came of one run of the load.

use std::time::Duration;

use crate::account::Faults;
use crate::ceiling::Probe;
use crate::load::Tally;

/// The part of a rate that has to be sent for it to have been tried.
const OFFERED: f64 = 0.97;
/// The part of the time that a balancer may have waited for a processor for its losses to be its own.
const WAITED: f64 = 0.05;

/// What came of one run, at both ends and in between.
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// Datagrams that did all that was expected of them: were answered, or arrived.
    pub(crate) done: u64,
    pub(crate) faults: Faults,
    /// Of the lost ones, those that the kernel dropped at our own sockets; in trains, at most so many.
    pub(crate) overflow: u64,
    /// The balancer's processor time.
    pub(crate) spent: Option<Duration>,
    /// How long the balancer was ready and had no processor.
    pub(crate) waited: Option<Duration>,
}

impl Outcome {
    /// Whether `rate` was too much, and for whom.
    pub(crate) fn probe(&self, rate: f64) -> Probe {
        let waited = self.waited.is_some_and(|waited| waited > self.tally.elapsed.mul_f64(WAITED));
        let offered = self.tally.sent as f64 / self.tally.elapsed.as_secs_f64();
        if self.faults.lost > self.overflow {
            if waited { Probe::Waited } else { Probe::Lost }
        } else if self.faults.lost > 0 || self.faults.unsent > 0 || offered < rate * OFFERED {
            Probe::Ours
        } else {
            Probe::Clean
        }
    }
}
