//! The descriptors of the process, and how many sessions they allow.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::net::control::MOST_CONNECTIONS;
use crate::source::MOST_ENTRIES;

/// A session has two sockets.
const PER_SESSION: u64 = 2;

/// What is not for sessions: control connections, and the epoll instances, listeners, signals, locks, log and state
/// file with room to spare.
const RESERVED: u64 = MOST_CONNECTIONS as u64 + 32;

/// The limits, after the soft one was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    pub(crate) limit: u64,
    pub(crate) sessions: usize,
}

impl Descriptors {
    /// Raises the soft limit to the hard one.
    pub(crate) fn raise() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(Self::for_limit(hard))
    }

    fn for_limit(limit: u64) -> Self {
        let sessions = limit.saturating_sub(RESERVED) / PER_SESSION;
        Self { limit, sessions: usize::try_from(sessions).unwrap_or(usize::MAX).min(MOST_ENTRIES - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_allows_half_as_many_sessions_less_the_reserve() {
        assert_eq!(Descriptors::for_limit(1024).sessions, 480);
        assert_eq!(Descriptors::for_limit(64).sessions, 0);
        assert_eq!(Descriptors::for_limit(u64::MAX).sessions, MOST_ENTRIES - 1);
    }
}
