//! The descriptors of the process, and how many sessions they allow.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::net::control::MOST_CONNECTIONS;
use crate::net::tcp::MOST_KERNEL_PIPES;
use crate::source::MOST_ENTRIES;

/// A session has two sockets.
const PER_SESSION: u64 = 2;

/// Checks of servers that may run at a time, and one for so many descriptors.
const MOST_PROBES: u64 = 256;
const PER_PROBE: u64 = 16;

/// A kernel pipe has two ends.
const PER_KERNEL_PIPE: u64 = 2;

/// One kernel pipe for so many descriptors: a 32nd of them is for bulk.
const PER_PIPE: u64 = 64;

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
        (self.limit.saturating_sub(RESERVED) / PER_PROBE).clamp(1, MOST_PROBES) as usize
    }

    /// Kernel pipes that there may be.
    pub(crate) fn kernel_pipes(self) -> usize {
        let pipes = self.limit.saturating_sub(RESERVED) / PER_PIPE;
        usize::try_from(pipes).unwrap_or(usize::MAX).min(MOST_KERNEL_PIPES)
    }

    /// Sessions that there may be beside so many listeners.
    pub(crate) fn sessions(self, listeners: usize) -> usize {
        let pipes = self.kernel_pipes() as u64 * PER_KERNEL_PIPE;
        let others = RESERVED + self.probes() as u64 + pipes + (listeners as u64).saturating_sub(1);
        let sessions = self.limit.saturating_sub(others) / PER_SESSION;
        usize::try_from(sessions).unwrap_or(usize::MAX).min(MOST_ENTRIES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_allows_half_as_many_sessions_less_the_reserve_the_checks_the_pipes_and_the_listeners() {
        assert_eq!((Descriptors { limit: 1024 }.kernel_pipes(), Descriptors { limit: 1024 }.probes()), (15, 60));
        assert_eq!(Descriptors { limit: 1024 }.sessions(1), 435);
        assert_eq!(Descriptors { limit: 1024 }.sessions(101), 385);
        assert_eq!((Descriptors { limit: 100 }.kernel_pipes(), Descriptors { limit: 100 }.probes()), (0, 2));
        assert_eq!(Descriptors { limit: 100 }.sessions(1), 17);
        assert_eq!(Descriptors { limit: 64 }.sessions(1), 0);
        assert_eq!(Descriptors { limit: u64::MAX }.sessions(1), MOST_ENTRIES - 1);
    }
}
