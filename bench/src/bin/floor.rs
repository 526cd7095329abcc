//! A bare relay: what any relay of small messages has to do on this machine, and nothing else. It picks no server, counts
//! nothing, checks nothing and ends no session but for its peers. What a balancer costs beside it is the balancer's own;
//! what it costs itself is the kernel's. `relay --only floor,…` starts it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

/// Events of one wait, and bytes of one read: as balancerd has them.
const EVENTS: usize = 1024;
const SCRATCH: usize = 64 * 1024;

/// Relays TCP from one address to another, and does nothing else.
#[derive(Parser)]
struct Arguments {
    /// Where it listens.
    listen: SocketAddr,
    /// The server.
    server: SocketAddr,
}

/// The descriptors that are relayed, each at its number, with the number of the other side.
type Sides = Vec<Option<(TcpStream, usize)>>;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen).context("listen")?;
    listener.set_nonblocking(true).context("listen")?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll instance")?;
    let watch = |fd: &dyn std::os::fd::AsFd, number: usize| {
        epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64))
    };
    let own = number(&listener);
    watch(&listener, own).context("watch the listener")?;
    let mut sides = Sides::new();
    let mut scratch = vec![0; SCRATCH];
    let mut events = vec![EpollEvent::empty(); EVENTS];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).context("wait")?;
        for event in &events[..count] {
            let at = event.data() as usize;
            if at == own {
                let Ok((client, _)) = listener.accept() else { continue };
                let server = connected(arguments.server)?;
                client.set_nonblocking(true)?;
                client.set_nodelay(true)?;
                let (one, other) = (number(&client), number(&server));
                watch(&client, one)?;
                watch(&server, other)?;
                sides.resize_with(sides.len().max(one.max(other) + 1), || None);
                sides[one] = Some((client, other));
                sides[other] = Some((server, one));
            } else if !relay(&sides, at, &mut scratch)
                && let Some((_, other)) = sides[at].take()
            {
                sides[other] = None;
            }
        }
    }
}

fn number(of: &impl std::os::fd::AsRawFd) -> usize {
    of.as_raw_fd().unsigned_abs() as usize
}

/// A stream that connects.
fn connected(server: SocketAddr) -> Result<TcpStream> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket(family, SockType::Stream, flags, None).context("make a socket")?);
    stream.set_nodelay(true)?;
    // What goes wrong is met by the first read.
    let _ = connect(stream.as_raw_fd(), &SockaddrStorage::from(server));
    Ok(stream)
}

/// Passes on what is there. Whether both sides go on; those that are gone already do.
fn relay(sides: &Sides, at: usize, scratch: &mut [u8]) -> bool {
    let Some((from, other)) = &sides[at] else { return true };
    let Some((to, _)) = &sides[*other] else { return true };
    match (&*from).read(scratch) {
        Ok(0) => false,
        Ok(count) => write(to, &scratch[..count]),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Writes all, and waits for a peer that takes nothing.
fn write(mut to: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(_) => return false,
        }
    }
    true
}
