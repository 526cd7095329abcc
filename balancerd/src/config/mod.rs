//! What the daemon is to be: the arguments, checked and with every default filled in. The configuration file that they
//! may name is read by `file`.

mod connection;
mod elsewhere;
pub(crate) mod file;
mod flow;
mod health;
pub(crate) mod list;
mod listens;
mod section;
mod settings;
mod value;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use wire::Places;

use crate::net::tcp::Timeouts;

/// The settings of one daemon.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where clients of the default service connect.
    pub(crate) listen: Option<SocketAddr>,
    /// The configuration file, absolute.
    pub(crate) file: Option<PathBuf>,
    /// At the start the file may be missing: then `listen` says what is served, and otherwise the file alone.
    pub(crate) file_may_be_missing: bool,
    /// Where its files are.
    pub(crate) places: Places,
    /// How long sessions may wait.
    pub(crate) timeouts: Timeouts,
    /// How long sessions may go on when the daemon stops.
    pub(crate) drain: Duration,
    /// Points that a server of weight 1 has on the ring.
    pub(crate) points_per_weight: NonZeroU32,
}
