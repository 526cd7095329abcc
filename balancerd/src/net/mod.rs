//! The shell: owns the sockets, and turns readiness into calls of the model. What follows from them goes back to the
//! daemon as a value; nothing here calls it.

pub(crate) mod asker;
pub(crate) mod conn;
mod connect;
pub(crate) mod control;
pub(crate) mod listen;
mod numbers;
mod options;
pub(crate) mod probe;
pub(crate) mod proxy;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::io;
use std::time::Instant;

use nix::errno::Errno;

use crate::event::Poller;
use crate::model::Model;

/// What every handler of an event may use: the daemon lends it for the length of a call.
pub(crate) struct Context<'a> {
    pub(crate) poller: &'a Poller,
    pub(crate) model: &'a mut Model,
    /// The one buffer that all reads go through. What it holds is worth nothing after the call.
    pub(crate) scratch: &'a mut [u8],
    pub(crate) now: Instant,
}

/// Whether a call on a socket is to be made again when it is ready: nothing went wrong.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The number of an error of the operating system; 0 for one that has none.
fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// What went wrong, as a part of a sentence.
fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}
