//! Signals as a readable descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal means to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM or SIGINT: end.
    Terminate,
    /// SIGHUP.
    HangUp,
}

/// The signals of this process.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and every one it starts from now on, and gives them a descriptor. So it is
    /// called before any other thread exists. SIGPIPE needs no word: Rust's runtime ignores it before `main`.
    pub(crate) fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in [Number::SIGTERM, Number::SIGINT, Number::SIGHUP] {
            set.add(number);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal that came, if one did.
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        let Some(information) = self.0.read_signal()? else { return Ok(None) };
        Ok(Some(if information.ssi_signo == Number::SIGHUP as u32 { Signal::HangUp } else { Signal::Terminate }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
