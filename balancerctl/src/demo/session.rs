//! One client's connection through the balancer, from an address of its own.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, socket};

/// How long an answer may take. On this machine alone it is there within a millisecond.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    /// Connects from `client`, an address in 127.0.0.0/8: all of them are this machine, on Linux.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub(super) fn open(client: Ipv4Addr, balancer: SocketAddr) -> io::Result<Self> {
        let descriptor = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(descriptor.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(client, 0)))?;
        connect(descriptor.as_raw_fd(), &SockaddrStorage::from(balancer))?;
        let stream = TcpStream::from(descriptor);
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Says something and gives the answer, which is the server's name; `None` when the session has ended.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub(super) fn ask(&mut self) -> io::Result<Option<String>> {
        let ended =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        let mut answer = String::new();
        let result =
            self.stream.get_mut().write_all(b"who are you?\n").and_then(|()| self.stream.read_line(&mut answer));
        match result {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(answer.trim_end().to_owned())),
            Err(error) if ended(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hangs up in order, and waits until the balancer has done so too: from then on it counts the session as ended.
    pub(super) fn end(mut self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
        // An error is an end as well.
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }
}
