//! A client: one TCP connection, from an address of its choice.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use crate::wait;

/// A connection. Nothing on it waits for longer than [`wait::LIMIT`].
#[derive(Debug)]
pub struct Client(TcpStream);

impl Client {
    /// Connects from whatever address the kernel takes.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect_timeout(&to, wait::LIMIT).unwrap_or_else(|error| panic!("{to}: {error}")))
    }

    /// Connects from this address.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        Self::try_from(from, to).unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
    }

    /// Connects from this address.
    ///
    /// # Errors
    /// When it is refused.
    pub fn try_from(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let descriptor = open(from, to, SockFlag::empty())?;
        socket::connect(descriptor.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(Self::of(descriptor.into()))
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(wait::LIMIT)).expect("a limit");
        stream.set_write_timeout(Some(wait::LIMIT)).expect("a limit");
        Self(stream)
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Reads the name that a [`crate::Server`] says first: who serves this client.
    ///
    /// # Panics
    /// When there is no name.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.try_server().expect("a server says its name")
    }

    /// Reads the name that a [`crate::Server`] says first.
    ///
    /// # Errors
    /// When the connection ends before.
    pub fn try_server(&self) -> io::Result<SocketAddr> {
        let (mut name, mut byte) = (Vec::new(), [0]);
        loop {
            (&self.0).read_exact(&mut byte)?;
            if byte == *b"\n" {
                let text = String::from_utf8(name).map_err(io::Error::other)?;
                return text.parse().map_err(io::Error::other);
            }
            name.extend_from_slice(&byte);
        }
    }

    /// Sends all of it.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn send(&self, bytes: &[u8]) {
        (&self.0).write_all(bytes).expect("the bytes are taken");
    }

    /// Reads so many bytes.
    ///
    /// # Panics
    /// When the connection ends before.
    #[must_use]
    pub fn receive(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        (&self.0).read_exact(&mut bytes).expect("so many bytes come");
        bytes
    }

    /// Sends it and reads as many bytes, both at once.
    ///
    /// # Panics
    /// When the connection breaks.
    #[must_use]
    pub fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        thread::scope(|scope| {
            scope.spawn(|| self.send(bytes));
            self.receive(bytes.len())
        })
    }

    /// Sends no more.
    ///
    /// # Panics
    /// When the connection is broken.
    pub fn shut(&self) {
        self.0.shutdown(Shutdown::Write).expect("half closed");
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When there is no end in order.
    pub fn rest(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&self.0).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the connection has ended, in order or not, and nothing came before that.
    ///
    /// # Panics
    /// When something came, or nothing within the limit.
    pub fn assert_ended(&self) {
        match self.rest() {
            Ok(bytes) => assert!(bytes.is_empty(), "{} bytes came before the end", bytes.len()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    /// Resets the connection.
    pub fn reset(self) {
        reset(self.0);
    }
}

fn open(from: IpAddr, to: SocketAddr, flags: SockFlag) -> nix::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let descriptor = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)?;
    // The port is chosen at connect, when the other end is known: one address has 28,000 ports towards each.
    setsockopt(&descriptor, sockopt::IpBindAddressNoPort, &true)?;
    socket::bind(descriptor.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    Ok(descriptor)
}

/// Connects and goes, and waits for neither, also where the queue of the listener is full. Whether anybody listens.
#[must_use]
pub fn knock(from: IpAddr, to: SocketAddr) -> bool {
    let connected = open(from, to, SockFlag::SOCK_NONBLOCK)
        .and_then(|descriptor| socket::connect(descriptor.as_raw_fd(), &SockaddrStorage::from(to)));
    connected != Err(Errno::ECONNREFUSED)
}

/// Closes a connection so that its peer sees a reset.
///
/// # Panics
/// When the option cannot be set.
pub fn reset(stream: impl AsFd) {
    let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &abort).expect("set");
}
