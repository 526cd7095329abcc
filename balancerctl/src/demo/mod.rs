//! The demonstration: the main job with nothing set up before. [`story`] tells it; [`private`] is the balancer it is
//! told about, [`server`] and [`session`] are what stands on the two sides of that balancer.
//!
//! The story runs in a thread of its own, and this one waits for its end or a signal: whatever comes first, the
//! private balancer is dropped here, which stops it and removes its directory.

mod private;
mod server;
mod session;
mod story;

use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use crate::failure::Failure;
use crate::output::Output;
use private::PrivateBalancer;
use story::Story;

/// Why the demonstration ended early. All of it is cleaned up then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// The signals that end a program cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signals(Errno),
    /// No directory.
    #[error("no temporary directory can be made: {0}")]
    Directory(io::Error),
    /// No server.
    #[error("a server cannot be started: {0}")]
    Server(io::Error),
    /// A client got no answer.
    #[error("client {client} got no answer through the balancer: {source}")]
    Session {
        /// Its address.
        client: Ipv4Addr,
        /// What the system said.
        source: io::Error,
    },
    /// What the balancer is for is not so.
    #[error("the balancer broke its promise: {0}")]
    Broken(String),
    /// A fault in the demonstration.
    #[error("the demonstration has a fault; it is above")]
    Fault,
    /// Somebody pressed Ctrl-C.
    #[error("ended by {0}; the private balancer is stopped and its directory removed")]
    Interrupted(Signal),
}

enum End {
    Story(Result<(), Failure>),
    Signal(Signal),
}

/// Shows a balancer at work.
///
/// # Errors
/// When something goes wrong, or the balancer does not keep its promise.
pub(crate) fn run(output: &Output) -> Result<(), Failure> {
    let signals = block_signals().map_err(DemoError::Signals)?;
    let balancer = PrivateBalancer::start()?;
    let story = Story::new(output.clone(), &balancer);
    let (ends, end) = mpsc::channel();
    let told = ends.clone();
    thread::spawn(move || {
        // A thread in a thread: a panic of the story must come to an end here, too.
        let result = thread::spawn(move || story.tell()).join();
        let _ = told.send(End::Story(result.unwrap_or_else(|_| Err(DemoError::Fault.into()))));
    });
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            let _ = ends.send(End::Signal(signal));
        }
    });
    let first = end.recv().expect("a thread sends before it ends");
    drop(balancer);
    match first {
        End::Story(result) => result,
        End::Signal(signal) => Err(DemoError::Interrupted(signal).into()),
    }
}

/// Blocks the signals that would end this program in every thread that starts from here.
fn block_signals() -> Result<SigSet, Errno> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    Ok(signals)
}
