//! What both ends of a session do with its bytes: say them, and look whether those that come are right.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::clock;
use nix::sys::socket::{setsockopt, sockopt};

use crate::content::Stream;
use crate::findings::Findings;

/// Bytes that are written, and read, at once.
const PIECE: usize = 64 * 1024;

/// Bytes that a slow reader reads at once, and how long it pauses then.
const SLOW_PIECE: usize = 4 * 1024;
const SLOW_PAUSE: Duration = Duration::from_millis(4);

/// Says the stream up to this offset.
pub(crate) fn say(mut socket: &TcpStream, stream: &mut Stream, until: u64) -> io::Result<()> {
    while stream.offset() < until {
        let count = (until - stream.offset()).min(PIECE as u64) as usize;
        socket.write_all(stream.next(count))?;
    }
    Ok(())
}

/// How hearing ended.
pub(crate) enum Heard {
    /// There is no more.
    End,
    /// All that was wanted came.
    Enough,
    /// The connection broke.
    Broken(io::Error),
    /// A byte was wrong, which is told already.
    Wrong,
}

impl Heard {
    /// The kernel tells a reset once: whoever writes at that moment gets it, and whoever reads finds an end.
    pub(crate) fn beside(self, said: io::Result<()>) -> Self {
        match (self, said) {
            (Self::End, Err(error)) if !is_timeout(&error) => Self::Broken(ErrorKind::ConnectionReset.into()),
            (heard, _) => heard,
        }
    }
}

/// Whether nothing happened for as long as one waits.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Hears the stream, until there is no more or there are so many bytes. `then` gets each piece.
pub(crate) fn hear(
    mut socket: &TcpStream,
    stream: &mut Stream,
    enough: Option<u64>,
    is_slow: bool,
    who: &dyn Fn() -> String,
    findings: &Findings,
    mut then: impl FnMut(&[u8]) -> io::Result<()>,
) -> Heard {
    let mut buffer = vec![0; if is_slow { SLOW_PIECE } else { PIECE }];
    loop {
        let room = enough.map_or(buffer.len(), |enough| buffer.len().min((enough - stream.offset()) as usize));
        if room == 0 {
            return Heard::Enough;
        }
        match socket.read(&mut buffer[..room]) {
            Ok(0) => return Heard::End,
            Ok(count) => {
                if let Some(at) = stream.check(&buffer[..count]) {
                    findings.fault(format!("{}: the byte at offset {at} is not the one that was sent", who()));
                    return Heard::Wrong;
                }
                findings.bytes.fetch_add(count as u64, Ordering::Relaxed);
                if let Err(error) = then(&buffer[..count]) {
                    return Heard::Broken(error);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Heard::Broken(error),
        }
        if is_slow {
            clock::pause(SLOW_PAUSE);
        }
    }
}

/// Has the socket's peer see a reset when it is closed.
pub(crate) fn reset(socket: impl AsFd) {
    let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&socket, sockopt::Linger, &abort);
}
