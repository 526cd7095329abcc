//! What the daemon tells of what has happened: changes of the health of servers, each with a number. As with reports,
//! the types are also the shape of `balancerctl --json`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::report::HealthState;

/// The events after a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsReport {
    /// The process of the daemon.
    pub pid: u32,
    /// When the daemon began, as its log writes times. Numbers belong to one run of it: where this is another text than
    /// before, they have begun again.
    pub started: String,
    /// The number that the next event will have; the first one had 1.
    pub next: u64,
    /// Events after the number that are not kept any more.
    pub dropped: u64,
    /// Those that are, in the order of their numbers.
    pub events: Vec<HealthEvent>,
}

/// The health of a server has changed: one line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthEvent {
    /// Its number.
    pub number: u64,
    /// When it was logged, as the log writes times: it is for people, and jumps when somebody sets the clock.
    pub time: String,
    /// The pool.
    pub pool: String,
    /// The server.
    pub server: SocketAddr,
    /// What its health was.
    pub from: HealthState,
    /// What it is from now on.
    pub to: HealthState,
    /// Why, when it is not up.
    pub reason: Option<String>,
    /// For how long it is left out, when it is ejected.
    pub out_ms: Option<u64>,
    /// Servers of the pool that are up after it.
    pub up: u64,
    /// Servers of the pool that take part.
    pub of: u64,
}
