//! The descriptors of the process, and how many sessions they allow.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::net::control::MOST_CONNECTIONS;
use crate::source::MOST_ENTRIES;

/// A session has two sockets.
const PER_SESSION: u64 = 2;

/// Checks of servers that may run at a time, and the part of the descriptors that they may take.
const MOST_PROBES: u64 = 256;
const PART_OF_PROBES: u64 = 16;

/// What is not for sessions: control connections, and the epoll instances, a listener, signals, locks, log and files,
/// with room to spare. Further listeners come on top.
const RESERVED: u64 = MOST_CONNECTIONS as u64 + 32;

/// The limits, after the soft one was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) limit: u64,
}

impl Descriptors {
    /// Raises the soft limit to the hard one.
    pub(crate) fn raise() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(Self { limit: hard })
    }

    /// Checks of servers that may run at a time.
    pub(crate) fn probes(self) -> usize {
        (self.limit / PART_OF_PROBES).clamp(1, MOST_PROBES) as usize
    }

    /// Sessions that there may be beside so many listeners.
    pub(crate) fn sessions(self, listeners: usize) -> usize {
        let others = RESERVED + self.probes() as u64 + (listeners as u64).saturating_sub(1);
        let sessions = self.limit.saturating_sub(others) / PER_SESSION;
        usize::try_from(sessions).unwrap_or(usize::MAX).min(MOST_ENTRIES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_allows_half_as_many_sessions_less_the_reserve_and_the_listeners() {
        assert_eq!(Descriptors { limit: 1024 }.sessions(1), 448);
        assert_eq!(Descriptors { limit: 1024 }.sessions(101), 398);
        assert_eq!(Descriptors { limit: 64 }.sessions(1), 0);
        assert_eq!(Descriptors { limit: u64::MAX }.sessions(1), MOST_ENTRIES - 1);
    }
}
