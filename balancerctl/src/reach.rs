//! Which balancer a command is for, and how long it waits for it: what every command has in common.

use std::path::Path;
use std::time::Duration;

/// Which balancer is meant, and how long one of its answers may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach<'a> {
    /// Its control socket. `None`: that of this user.
    pub(crate) socket: Option<&'a Path>,
    /// `None`: as long as the request usually takes at most.
    pub(crate) timeout: Option<Duration>,
}
