//! The tools of the loop: readiness, time and signals. The only part that uses mio, and it uses nothing of ours.

mod acceptor;
mod clock;
mod deadlines;
mod ends;
mod poller;
mod repeated;
mod signal;
mod waker;
mod watch;

pub(crate) use acceptor::{Acceptor, Backlog, set_freebind};
pub(crate) use clock::now;
pub(crate) use deadlines::Deadlines;
pub(crate) use ends::Ends;
pub(crate) use poller::{Events, Interest, Key, Poller, Ready};
pub(crate) use repeated::Repeated;
pub(crate) use signal::{Sent, Signal, Signals};
pub(crate) use waker::Waker;
pub(crate) use watch::{News, Watch};
