//! Signals as a readable descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal means to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM or SIGINT: end in order, and at once when it comes again.
    Terminate,
    /// SIGQUIT: end in order, however often it comes.
    Quit,
    /// SIGHUP.
    HangUp,
    /// SIGUSR1: open the log again.
    OpenLog,
    /// SIGUSR2: is kept for an upgrade.
    Upgrade,
    /// One that means nothing, and would end the process all the same if nobody took it.
    Nothing(Number),
}

/// A signal that came, and who sent it. The kernel's own are of the process 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) signal: Signal,
    pub(crate) uid: u32,
    pub(crate) pid: i32,
}

/// What the signals mean that are taken.
const MEANINGS: [(Number, Signal); 6] = [
    (Number::SIGTERM, Signal::Terminate),
    (Number::SIGINT, Signal::Terminate),
    (Number::SIGQUIT, Signal::Quit),
    (Number::SIGHUP, Signal::HangUp),
    (Number::SIGUSR1, Signal::OpenLog),
    (Number::SIGUSR2, Signal::Upgrade),
];

/// Signals that mean nothing here. One that comes with a failed write says nothing that the write's own error does not say:
/// SIGPIPE, and SIGXFSZ where a file is as long as it may become.
const OTHERS: [Number; 8] = [
    Number::SIGALRM,
    Number::SIGVTALRM,
    Number::SIGPROF,
    Number::SIGIO,
    Number::SIGPIPE,
    Number::SIGXFSZ,
    Number::SIGSTKFLT,
    Number::SIGPWR,
];

/// The signals of this process.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and every one it starts from now on, and gives them a descriptor. So it is
    /// called before any other thread exists.
    pub(crate) fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in MEANINGS.into_iter().map(|(number, _)| number).chain(OTHERS) {
            set.add(number);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal that came, if one did.
    pub(crate) fn read(&self) -> io::Result<Option<Sent>> {
        let Some(information) = self.0.read_signal()? else { return Ok(None) };
        let meaning = |number: Number| {
            let known = MEANINGS.into_iter().find(|(known, _)| *known == number);
            known.map_or(Signal::Nothing(number), |(_, meaning)| meaning)
        };
        let signal = Number::try_from(information.ssi_signo.cast_signed()).ok().map(meaning);
        let (uid, pid) = (information.ssi_uid, information.ssi_pid.cast_signed());
        Ok(signal.map(|signal| Sent { signal, uid, pid }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
