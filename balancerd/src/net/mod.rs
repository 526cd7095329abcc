//! The shell: owns the sockets, and turns readiness into calls of the model. What follows from them goes back to the
//! daemon as a value; nothing here calls it.

pub(crate) mod conn;
mod connect;
pub(crate) mod control;
pub(crate) mod listen;
mod options;
pub(crate) mod probe;
pub(crate) mod proxy;
pub(crate) mod tcp;

use std::io;
use std::time::Instant;

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
