//! A client's socket and requests, as every workload uses them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};

use crate::clock;
use crate::process::Process;
use crate::response::Response;

/// The number of different clients: balancers pick the server by the client's address.
const CLIENTS: usize = 250;
/// How long a program may take from its start until it answers.
pub const START_LIMIT: Duration = Duration::from_secs(20);
/// How long one blocking exchange may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);

/// The request for the small answer on a connection that is kept.
pub const KEPT: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
/// The request for the small answer after which the server closes.
pub const CLOSING: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
/// The request for the answer of middle size on a connection that is kept.
pub const MEDIUM: &[u8] = b"GET /medium HTTP/1.1\r\nHost: bench\r\n\r\n";
/// The request for the large answer on a connection that is kept.
pub const BULK: &[u8] = b"GET /bulk HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Starts to connect client number `index` to `target`: from its own loopback address, without waiting.
///
/// # Errors
/// When the socket cannot be opened or bound.
pub fn connect(index: usize, target: SocketAddrV4) -> Result<TcpStream> {
    open(index, target, SockFlag::SOCK_NONBLOCK)
}

/// Connects client number `index` to `target` and makes one request; the session stays open and idle.
///
/// # Errors
/// When there is no good response in time.
pub fn exchange(index: usize, target: SocketAddrV4) -> Result<TcpStream> {
    let mut stream = open(index, target, SockFlag::empty())?;
    stream.set_read_timeout(Some(EXCHANGE_LIMIT)).context("set a time limit")?;
    stream.write_all(KEPT).context("send a request")?;
    let mut response = Response::default();
    let mut bytes = [0; 1024];
    loop {
        let count = stream.read(&mut bytes).context("read a response")?;
        ensure!(count > 0, "the connection ended without a response");
        if response.push(&bytes[..count])? {
            return Ok(stream);
        }
    }
}

/// Waits until `process`, which has just been started, answers requests at `addr`.
///
/// # Errors
/// When it has ended, or does not answer within [`START_LIMIT`].
pub fn await_answer(addr: SocketAddrV4, process: &mut Process) -> Result<()> {
    clock::retry(START_LIMIT, || {
        process.check()?;
        exchange(0, addr).with_context(|| format!("no answer at {addr}: {}", process.printed().trim()))
    })?;
    Ok(())
}

fn open(index: usize, target: SocketAddrV4, flags: SockFlag) -> Result<TcpStream> {
    let last = u8::try_from(index % CLIENTS).expect("CLIENTS fits the last part of an address") + 1;
    let source = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, last), 0));
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)
        .context("open a client's socket")?;
    // The port is chosen at connect, so that it only has to be free for this one target.
    setsockopt(&fd, sockopt::IpBindAddressNoPort, &true).context("choose the port late")?;
    socket::bind(fd.as_raw_fd(), &source).with_context(|| format!("bind to {source}"))?;
    match socket::connect(fd.as_raw_fd(), &SockaddrIn::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(error) => Err(error).with_context(|| format!("connect to {target}")),
    }
}
